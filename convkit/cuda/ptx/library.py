"""The machine (`kernels/ptx/`), built once by the host's C++ compiler, and what it takes."""

from __future__ import annotations

import ctypes
import functools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ...paths import kernels_dir
from ..cache import Cache, key_of
from ..host_compiler import CompilerFailed, find_compiler, processor, run
from ..launch import KernelError

#: No product is fused with a sum unless the instruction says so, and a NaN is a NaN.
_FLAGS = (
    *(
        "-std=c++20",
        "-O2",
        "-ftree-vectorize",
        "-march=native",
        "-fPIC",
        "-fvisibility=hidden",
        "-U_FORTIFY_SOURCE",
    ),
    *("-fno-strict-aliasing", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"),
)


class Spec(ctypes.Structure):
    """A launch: keep in step with machine.hpp."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in
          ("code", "operands", "fixed", "special", "ranges", "shared", "parameters", "module")),
        *((name, ctypes.c_uint64) for name in ("seed", "steps")),
        *((name, ctypes.c_uint32) for name in
          ("code_count", "fixed_count", "special_count", "range_count", "shared_count", "parameter_bytes",
           "fixed_bytes", "file_bytes", "shared_bytes", "dynamic_bytes", "local_bytes", "seeded")),
        ("grid", ctypes.c_uint32 * 3), ("block", ctypes.c_uint32 * 3), ("seconds", ctypes.c_double),
    ]  # fmt: skip


class Fault(ctypes.Structure):
    """What went wrong in a launch: keep in step with machine.hpp."""

    _fields_ = [
        ("kind", ctypes.c_char * 48), ("text", ctypes.c_char * 256),
        ("block", ctypes.c_uint32 * 3), ("thread", ctypes.c_uint32 * 3),
        ("at", ctypes.c_int32), ("other", ctypes.c_int32), ("owner", ctypes.c_int32),
        ("offset", ctypes.c_int64), ("bytes", ctypes.c_uint32), ("writes", ctypes.c_uint32),
    ]  # fmt: skip


#: Owners of memory that are no argument: machine.hpp.
MODULE, PARAMETERS, SHARED, LOCAL, NOBODY = -1, -2, -3, -4, -5


#: The library, where another process has built it: a candidate's has a cache of its own.
built: Path | None = None


def load() -> ctypes.CDLL:
    """The machine's library; built where it is not in the cache.

    Raises
    ------
    KernelError
        If there is no C++ compiler, or it is too old for C++20.
    """
    return _loaded(path())


def path() -> Path:
    """The file of the library; errors as of `load`."""
    if built is not None and built.is_file():
        return built
    try:
        compiler = find_compiler(os.environ.get("CXX"))
    except KernelError as error:
        raise KernelError(str(error).replace("the emulator", "the PTX runner"), kind=error.kind) from None
    return _build(kernels_dir() / "ptx", compiler)


@functools.lru_cache(maxsize=4)
def _build(folder: Path, compiler: tuple[str, str]) -> Path:
    sources = sorted(folder.glob("*.cpp"))
    files = (*sources, *sorted(folder.glob("*.hpp")))
    key = key_of([*compiler, *_FLAGS, processor(), *(path.read_bytes() for path in files)])

    def build(path: Path) -> None:
        def compiled(source: Path) -> Path:
            target = path.with_name(f"{source.stem}.o")
            run([compiler[0], *_FLAGS, "-c", source, "-o", target], path.parent)
            return target

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compiled, sources))
        run([compiler[0], "-shared", *objects, "-o", path, "-lm"], path.parent)

    try:
        return Cache().get(f"ptx-{key}", build)
    except CompilerFailed as error:
        raise KernelError(f"the PTX runner does not compile:\n{error}", kind="compile error") from None


@functools.lru_cache(maxsize=4)
def _loaded(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.ckptx_find.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint32]
    library.ckptx_find.restype = ctypes.c_int32
    library.ckptx_name.argtypes = [ctypes.c_uint32]
    library.ckptx_name.restype = ctypes.c_char_p
    library.ckptx_run.argtypes = [ctypes.POINTER(Spec), ctypes.POINTER(Fault)]
    library.ckptx_run.restype = ctypes.c_int32
    return library


@functools.lru_cache(maxsize=4096)
def find(name: str) -> tuple[int, tuple[str, ...]] | None:
    """The row of an operation, and its operands' types, written ones with a `>`; None if there is none."""
    signature = ctypes.create_string_buffer(256)
    row = load().ckptx_find(name.encode(), signature, len(signature))
    text = signature.value.decode()
    return (row, tuple(text.split(",")) if text else ()) if row >= 0 else None


def operations() -> list[str]:
    """The names of all operations."""
    library = load()
    found: list[str] = []
    while (name := library.ckptx_name(len(found))) is not None:
        found.append(name.decode())
    return found
