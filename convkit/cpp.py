"""A C++ file as an implementation for the CPU: one function, compiled on this machine, called by ctypes.

The file declares itself like a kernel file, between `// /// kernel` and `// ///`, without grid and block. Its
function bears the file's stem as its name, and receives what a kernel receives:

    extern "C" void mine(const Conv2d& g, const float* x, const float* w, const float* b, float* y, int relu)

In front of the file stand the problem's struct and `storage_t`, the type of the arrays (`float` or `double`).
What is compiled is kept on disk; nothing is compiled before the first call.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .cuda import expressions, header, host_compiler
from .cuda.cache import Cache, key_of
from .cuda.header import KernelFile
from .cuda.source import STORAGE
from .errors import OptionError
from .op import Problem
from .registry import Implementation

#: `-march=native`: nothing that is built leaves the machine. a*b+c may be fused, as in the CPU backend.
FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
BUILD = ("-fPIC", "-shared", "-pthread", "-Wall", "-Wno-unknown-pragmas")
#: C types of options, as ctypes has them.
_TYPES: dict[str, Any] = {
    "int": ctypes.c_int,
    "float": ctypes.c_float,
    "double": ctypes.c_double,
    "unsigned long long": ctypes.c_ulonglong,
}
#: Storage that the host's compilers know without a library.
DTYPES = ("float32", "float64")


def implementation(path: Path) -> Implementation:
    """The implementation that a C++ file is.

    Raises
    ------
    OptionError
        If its header is not one; the message names the line or the key.
    """
    file = header.read_host(path)
    for dtype in file.header.dtypes:
        if dtype not in DTYPES:
            raise OptionError(f"{path.name}: a C++ file takes {' and '.join(DTYPES)}, not {dtype}")
    library, declared = Library(file), file.header
    return Implementation(
        declared.op,
        file.name,
        library,
        dtypes=declared.dtypes,
        layout=declared.layout,
        rank=declared.rank,
        error=declared.error,
        math=declared.math,
        truncates=declared.truncates,
        when=library.refusal,
        missing=_missing,
        workspace=library.workspace if declared.workspace else None,
        prepare=library.prepare,
        flags=tuple(name for name in file.op.flags if name in declared.options),
        compiled=True,
        source=str(path),
    )


def _missing() -> str | None:
    return (
        None
        if host_compiler.available()
        else "no C++ compiler was found: install g++, or set CXX to its path"
    )


class Library:
    """What a C++ file does when it is called: compile, where that has not been done, and call."""

    def __init__(self, file: KernelFile) -> None:
        self.file = file
        self._function = functools.lru_cache(maxsize=8)(self._load)

    def refusal(self, problem: Problem) -> str | None:
        """Why `when` does not hold, or None."""
        when = self.file.header.when
        if not when or expressions.evaluate(when, self.file.header.scope(problem)):
            return None
        return f"needs {when}"

    def workspace(self, problem: Problem) -> int:
        """Bytes of scratch memory for the problem."""
        return max(1, int(expressions.evaluate(self.file.header.workspace, self.file.header.scope(problem))))

    def prepare(self, problem: Problem) -> Callable[..., None]:
        """The function for one problem: what is called with its arrays."""
        kind, dtype = type(problem).__name__, problem.dtype  # type: ignore[attr-defined]
        function = self._function(problem.c_struct(), kind, dtype)
        struct, options = problem.struct(), list(self.file.header.options.items())
        scratch, count = (
            bool(self.file.header.workspace),
            len(self.file.op.inputs) + len(self.file.op.outputs),
        )

        def launch(*tensors: Any, workspace: Any = None, **given: Any) -> None:
            if len(tensors) != count:
                raise TypeError(f"{count} tensors are needed, not {len(tensors)}")
            arguments = [ctypes.c_void_p(struct.ctypes.data), *map(_pointer, tensors)]
            if scratch:
                arguments.append(_pointer(workspace))
            for name, ctype in options:
                of = _TYPES.get(ctype)  # a flag is a pointer, null where it is not given
                arguments.append(of(given[name]) if of else _pointer(given.get(name)))
            function(*arguments)

        return launch

    def __call__(self, problem: Problem, *tensors: Any, **options: Any) -> None:
        self.prepare(problem)(*tensors, **options)

    def _load(self, struct: str, kind: str, dtype: str) -> Any:
        """The compiled function, from the disk cache where the same text has been compiled before."""
        file = self.file
        tile = [
            f"[[maybe_unused]] constexpr int {name} = {value};" for name, value in file.header.tile.items()
        ]
        path = str(file.path).replace("\\", "/")
        front = [struct, f"using storage_t = {STORAGE[dtype]};", *tile, f'#line 1 "{path}"']
        unit = "\n".join([*front, file.source])
        compiler = host_compiler.find_compiler(os.environ.get("CXX"))
        folder = file.path.parent
        own = [
            part for one, data in host_compiler.included(unit, [folder]).items() for part in (str(one), data)
        ]
        key = key_of([unit, *compiler, *FLAGS, host_compiler.processor(), *own])

        def build(target: Path) -> None:
            source = target.with_suffix(".cpp")
            source.write_text(unit, encoding="utf-8")
            command: list[str | Path] = [compiler[0], *FLAGS, *BUILD, f"-I{folder}", source, "-o", target]
            try:
                host_compiler.run(command, cwd=target.parent)
            except host_compiler.CompilerFailed as error:
                raise host_compiler.compile_error(str(error), file.stem, target.parent) from None

        loaded = ctypes.CDLL(str(Cache().get(f"{file.stem}-{key}", build)))
        try:
            function = loaded[file.stem]
        except AttributeError:
            raise OptionError(
                f'{file.path.name} has no function extern "C" void {file.stem}(const {kind}& g, ...): '
                "its name is the file's stem"
            ) from None
        function.restype = None
        return function


def _pointer(array: Any) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if array is None else array.ctypes.data)
