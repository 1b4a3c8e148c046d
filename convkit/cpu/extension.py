"""The optional C++ extensions: `convkit._native`, and the CPU kernels, one module for each instruction set.

A machine may lack any of them. Whatever is there is loaded on first use, the rest says why it is not.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from .. import devices
from ..errors import OptionError, unknown

VARIABLE = "CONVKIT_ISA"
#: The instruction sets that kernels may be compiled for (setup.py), widest first, and what a CPU needs.
ISAS = {
    "v4": "x86-64 with AVX-512 (F, BW, CD, DQ, VL)",
    "v3": "x86-64 with AVX2 and FMA",
    "v2": "x86-64 with SSE4.2",
    "neon": "64-bit ARM",
    "generic": "another architecture",
}
#: The value of CONVKIT_ISA that does without the kernels.
NONE = "none"

_NAME = "convkit._native"
# Written by setup.py. A strict editable install links the sources from elsewhere, hence resolve().
_REASON_FILE = Path(__file__).resolve().parents[1] / "_native_missing.txt"


def load() -> ModuleType | None:
    """The extension module, or None where it is missing (`why_missing` says why). Never raises."""
    return _load(_NAME)[0]


def why_missing() -> str:
    """One line: why the extension is missing, and what to do about it. Empty where it is there."""
    return _load(_NAME)[1]


@functools.cache
def _load(name: str) -> tuple[ModuleType | None, str]:
    """A module, or the reason that it is not there."""
    try:
        return importlib.import_module(name), ""
    except ModuleNotFoundError as error:
        if error.name != name:
            return None, f"{name} cannot be loaded: {error}"
        return None, _why_not_built(name)
    except Exception as error:  # built, but for other libraries than these
        return None, f"{name} cannot be loaded ({error}); run `pip install -e .` again"


def _why_not_built(name: str) -> str:
    try:
        reasons = _REASON_FILE.read_text(encoding="utf-8").splitlines()
    except OSError:
        reasons = []
    for line in reasons:
        left_out, _, reason = line.partition(": ")
        if left_out == name:
            first = "install g++ and " if "compiler was found" in reason else ""
            return f"{name} is not built: {reason}; {first}run `pip install -e .` again"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return f"{name} is not built for this Python ({version}): run `pip install -e .` with {sys.executable}"


# ---------------------------------------------------------------------------------------------------
# Kernels, one module for each instruction set
# ---------------------------------------------------------------------------------------------------
#: The module, its instruction set, why there is none: what `devices.cpu_kernels` holds, once it is chosen.
#: One tuple, so that threads which choose at the same time do no harm.
Chosen = tuple[ModuleType | None, str, str]
_OFF = (None, NONE, "the C++ kernels are switched off")
_broken: dict[str, str] = {}  # instruction sets whose module could not be loaded, and why


def kernels() -> ModuleType | None:
    """The CPU kernels for the widest instruction set here (or CONVKIT_ISA), or None where there are none.

    Raises
    ------
    OptionError
        If CONVKIT_ISA names an instruction set that is not known, or that cannot be used here.
    """
    return (devices.cpu_kernels or _choose())[0]


def kernels_missing() -> str | None:
    """None, or why there are no kernels; for `Implementation.missing`.

    Raises
    ------
    OptionError
        As `kernels` does: a misspelt CONVKIT_ISA is reported, and nothing slower runs in its place.
    """
    return (devices.cpu_kernels or _choose())[2] or None


def isa() -> str:
    """The instruction set whose kernels `kernels` returns, or "none"."""
    return (devices.cpu_kernels or _choose())[1]


def isas() -> tuple[str, ...]:
    """The instruction sets whose kernels are installed and that this machine can run, widest first."""
    return tuple(isa for isa, reason in unusable().items() if not reason)


def unusable() -> dict[str, str]:
    """Every instruction set of this architecture, widest first, and why it cannot be used; empty if it can.

    What is installed is looked for, not loaded; a module that turned out to be broken is known as such.
    """
    return {isa: _unusable(isa) for isa in ISAS if isa in _supported() or _installed(isa)}


def _choose() -> Chosen:
    asked = os.environ.get(VARIABLE, "").strip()
    if asked:
        devices.cpu_kernels = _of(asked, VARIABLE)
        return devices.cpu_kernels
    for isa in isas():
        if (module := _try(isa)) is not None:  # else a narrower one may load
            devices.cpu_kernels = module, isa, ""
            return devices.cpu_kernels
    here = [reason for isa, reason in unusable().items() if isa in _supported()]
    why = why_missing() or "; ".join(here) or "there are no C++ kernels for this CPU"
    devices.cpu_kernels = None, NONE, why
    return devices.cpu_kernels


def _of(isa: str, asked_by: str) -> Chosen:
    """The choice of one instruction set by name; an error begins with `asked_by` where it cannot be used."""
    usable = f"usable here: {', '.join((*isas(), NONE))}"
    if isa == NONE:
        return _OFF
    if isa not in ISAS:
        raise OptionError(f"{asked_by}: {unknown('instruction set', isa, (*ISAS, NONE))}; {usable}")
    module = None if _unusable(isa) else _try(isa)
    if module is None:
        raise OptionError(f"{asked_by}: {isa!r} cannot be used: {_unusable(isa)}; {usable}")
    return module, isa, ""


def _try(isa: str) -> ModuleType | None:
    module, reason = _load(_module_name(isa))
    if module is None:
        _broken[isa] = reason
    return module


def _module_name(isa: str) -> str:
    return f"convkit._cpu_{isa}"


def _supported() -> tuple[str, ...]:
    module = load()
    return () if module is None else tuple(module.cpu_isas())


@functools.cache
def _installed(isa: str) -> bool:
    return importlib.util.find_spec(_module_name(isa)) is not None


def _unusable(isa: str) -> str:
    """Why the kernels of this instruction set cannot be used, or an empty string."""
    if load() is None:
        return why_missing()
    if isa not in _supported():
        return f"this CPU, or its system, is not {ISAS[isa]}"
    if not _installed(isa):
        return _why_not_built(_module_name(isa))
    return _broken.get(isa, "")


@contextlib.contextmanager
def using(isa: str) -> Iterator[ModuleType | None]:
    """Run the kernels of another instruction set in a `with` block, in all threads; for tests and benchmarks.

    Parameters
    ----------
    isa : str
        One of `isas()`, or "none" for no kernels.

    Raises
    ------
    OptionError
        If it is not known, or cannot be used here.
    """
    before, chosen = devices.cpu_kernels, _of(isa, "using")
    devices.cpu_kernels = chosen
    try:
        yield chosen[0]
    finally:
        devices.cpu_kernels = before
