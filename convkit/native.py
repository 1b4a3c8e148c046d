"""The optional C++ extension `convkit._native`: the module, or the reason that it is not there."""

from __future__ import annotations

import functools
import importlib
import sys
from pathlib import Path
from types import ModuleType

_NAME = "convkit._native"
# Written by setup.py. A strict editable install links the sources from elsewhere, hence resolve().
_REASON_FILE = Path(__file__).resolve().parent / "_native_missing.txt"


def load() -> ModuleType | None:
    """The extension module, or None where it is missing (`why_missing` says why). Never raises."""
    return _load()[0]


def why_missing() -> str:
    """One line: why the extension is missing, and what to do about it. Empty where it is there."""
    return _load()[1]


@functools.lru_cache(maxsize=1)
def _load() -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module(_NAME), ""
    except ModuleNotFoundError as error:
        if error.name != _NAME:
            return None, f"{_NAME} cannot be loaded: {error}"
        return None, _why_not_built()
    except ImportError as error:  # built, but for other libraries than these
        return None, f"{_NAME} cannot be loaded ({error}); run `pip install -e .` again"


def _why_not_built() -> str:
    try:
        reasons = _REASON_FILE.read_text(encoding="utf-8").splitlines()
    except OSError:
        reasons = []
    for line in reasons:
        name, _, reason = line.partition(": ")
        if name == _NAME:
            first = "install g++ and " if "compiler was found" in reason else ""
            return f"{_NAME} is not built: {reason}; {first}run `pip install -e .` again"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return f"{_NAME} is not built for this Python ({version}): run `pip install -e .` with {sys.executable}"
