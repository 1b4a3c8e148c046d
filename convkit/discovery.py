"""Finds implementations: the modules of `convkit.cpu`, the files of `kernels/`, and a user's file.

An implementation registers by existing: a module or a file that is put there is found on the first look-up.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
import traceback
from dataclasses import replace
from pathlib import Path

from . import cpp, cpu, registry, tuned
from .checked import Sources
from .cuda import header, packed, prepare
from .errors import OptionError
from .registry import Implementation


def _find(device: str) -> None:
    """Register what convkit ships for a device."""
    if device == "cpu":
        for module in pkgutil.iter_modules(cpu.__path__, "convkit.cpu."):
            importlib.import_module(module.name)
    else:
        kernels = [prepare.implementation(path) for path in header.builtin_files()]
        for implementation in (*kernels, *packed.implementations(kernels)):
            registry.add(implementation)


registry.finder, registry.tuner = _find, tuned.better


def register(path: str | Path) -> list[Implementation]:
    """Load a user's file and register the implementations in it.

    Parameters
    ----------
    path : path
        A kernel file (`.cu`) or a C++ file for the CPU (`.cpp`), of which only the header is read; or a
        Python file that uses `@convkit.implements`, which is executed: load only what you trust.

    Returns
    -------
    list of Implementation
        Those that the file registered.

    Raises
    ------
    OptionError
        If the file does not exist, is of an unknown type, fails, or registers nothing.
    """
    try:
        path = Path(path).resolve()
    except TypeError:
        raise OptionError(f"a path is needed, not {path!r}") from None
    except (OSError, RuntimeError) as error:  # links that lead in a circle
        raise OptionError(f"cannot read {path}: {error}") from None
    if not path.is_file():
        raise OptionError(f"{'not a file' if path.exists() else 'no such file'}: {path}")
    registry.builtin()
    if path.suffix == ".cu":
        return [registry.add(replace(prepare.implementation(path), origin=str(path)))]
    if path.suffix == ".cpp":
        return [registry.add(replace(cpp.implementation(path), origin=str(path)))]
    if path.suffix != ".py":
        raise OptionError(
            f"{path.name}: a .cu, a .cpp or a .py file can be registered, not {path.suffix or 'this'!r}"
        )
    with registry.whole() as before:
        _execute(path)
    found = registry.since(before)
    if not found:
        raise OptionError(
            f"{path.name} registers nothing: decorate a function with @convkit.implements(op, name=...)"
        )
    return [
        registry.add(replace(i, origin=str(path), sources=Sources.of(i.source, str(path)))) for i in found
    ]


def _execute(path: Path) -> None:
    name = f"convkit_user_{abs(hash(path)):x}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        sys.modules.pop(name, None)
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        where = f" ({path.name}:{lines[-1]})" if lines else ""
        raise OptionError(
            f"{path.name} could not be loaded: {type(error).__name__}: {error}{where}"
        ) from error
