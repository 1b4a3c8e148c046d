"""The optional C++ extension `convkit._native`: the module, or the reason that it is not there."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
from collections.abc import Iterator
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


# ---------------------------------------------------------------------------------------------------
# Kernels, one module for each instruction set
# ---------------------------------------------------------------------------------------------------
VARIABLE = "CONVKIT_ISA"
#: Widest first.
ISAS = ("v4", "v3", "v2", "neon", "generic")

_kernels: ModuleType | None = None
_chosen = False


@functools.lru_cache(maxsize=1)
def isas() -> tuple[str, ...]:
    """The instruction sets whose kernels are installed and that this machine can run, widest first."""
    package = Path(__file__).resolve().parent
    supported = set(load().cpu_isas()) if load() is not None else set()
    return tuple(isa for isa in ISAS if isa in supported and any(package.glob(f"_cpu_{isa}.*")))


def kernels() -> ModuleType | None:
    """The CPU kernels for the widest instruction set here (or CONVKIT_ISA), or None where there are none."""
    global _kernels, _chosen
    if not _chosen:
        asked = os.environ.get(VARIABLE, "").strip()
        found = isas()
        _kernels = _module(asked or found[0]) if found else None
        _chosen = True
    return _kernels


def _module(isa: str) -> ModuleType:
    return importlib.import_module(f"convkit._cpu_{isa}")


@contextlib.contextmanager
def using(isa: str) -> Iterator[ModuleType]:
    """Run the kernels of another instruction set in a `with` block; for tests and benchmarks."""
    global _kernels, _chosen
    before = _kernels, _chosen
    _kernels, _chosen = _module(isa), True
    try:
        yield _kernels
    finally:
        _kernels, _chosen = before
