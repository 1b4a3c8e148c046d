"""CUDA C++ -> machine code, by NVRTC: on any machine, with no GPU, driver or toolkit.

What CI inspects is what runs: the same compiler, options and translation unit make the CUBIN that CuPy loads.
Needs the wheels of the extras `[cuda12]` or `[cuda13]`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConvkitError, MissingExtra, OptionError
from ..paths import kernels_dir
from .cache import Cache, key_of

#: Architectures that every shipped kernel must compile for: A100, RTX 30, RTX 40, H100/H200, B200, RTX 50.
ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120")

#: Whether machine code says which line of the source it comes from, for tools that look on.
line_info = False


class CompileError(ConvkitError, ValueError):
    """A kernel that does not compile; the message begins at the user's own line."""


@dataclass(frozen=True)
class Resources:
    """What ptxas reports of one kernel."""

    registers: int
    spill_bytes: int
    stack_bytes: int
    shared_bytes: int


@dataclass(frozen=True)
class Cubin:
    """Machine code for one architecture, and the compiler's log."""

    code: bytes
    log: str

    def resources(self) -> dict[str, Resources]:
        """Registers, spills, stack and static shared memory, by entry point."""
        found = {}
        parts = re.split(r"Compiling entry function '(\w+)'", self.log)
        for name, text in zip(parts[1::2], parts[2::2]):

            def number(pattern: str, text: str = text) -> int:
                match = re.search(pattern, text)
                return int(match.group(1)) if match else 0

            found[name] = Resources(
                number(r"Used (\d+) registers"),
                number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
                number(r"(\d+) bytes stack frame"),
                number(r"(\d+) bytes smem"),
            )
        return found


@functools.lru_cache(maxsize=1)
def _toolchain() -> tuple[Any, list[str]]:
    """cuda-core's module, and the folders of CUDA's own headers."""
    try:
        import cuda.core as core
        from cuda import pathfinder
    except ImportError:
        raise MissingExtra("compiling CUDA kernels", "cuda-core", "cuda13") from None
    folders = [pathfinder.find_nvidia_header_directory(name) for name in ("cudart", "cccl")]
    return core, [folder for folder in folders if folder]


def compile_cubin(source: str, arch: str, *, include: Sequence[Path] = (), name: str = "kernel") -> Cubin:
    """Compile a translation unit.

    Parameters
    ----------
    source : str
        As `source.translation_unit` makes it.
    arch : str
        Such as "sm_90a".
    include : sequence of Path
        Folders searched before `kernels/`, `kernels/std/` (headers of the C++ library, of which NVRTC has
        none) and CUDA's own headers.
    name : str
        For messages.

    Raises
    ------
    CompileError
        With the first error at its line.
    MissingExtra
        If the wheels are not installed.
    """
    core, paths = _folders(arch, include)
    options = core.ProgramOptions(
        std="c++17", arch=arch, include_path=paths, ptxas_options="-v", lineinfo=line_info or None
    )
    log = _Log()
    try:
        program = core.Program(source, "c++", options)
        cubin = program.compile("cubin", logs=log)
    except Exception as error:
        raise _refused(name, arch, log.text or str(error)) from None
    return Cubin(bytes(cubin.code), log.text)


def compile_ptx(
    source: str, arch: str, *, include: Sequence[Path] = (), name: str = "kernel", lines: bool = False
) -> str:
    """The PTX of a translation unit; parameters and errors as of `compile_cubin`.

    With `lines` it says from which line of the source each instruction comes, and is else the same.
    """
    _, paths = _folders(arch, include)
    # Not by cuda-core, which asks the driver whether it could load the PTX, and fails where there is none.
    from cuda.bindings import nvrtc

    flags = ["--std=c++17", f"--gpu-architecture={arch}", *["-lineinfo"] * lines]
    flags += [f"--include-path={path}" for path in paths]
    error, program = nvrtc.nvrtcCreateProgram(source.encode(), f"{name}.cu".encode(), 0, [], [])
    if error:
        raise CompileError(f"{name}: NVRTC failed: {nvrtc.nvrtcGetErrorString(error)[1].decode()}")
    try:
        (error,) = nvrtc.nvrtcCompileProgram(program, len(flags), [flag.encode() for flag in flags])
        if error:
            log = b" " * nvrtc.nvrtcGetProgramLogSize(program)[1]
            nvrtc.nvrtcGetProgramLog(program, log)
            text = log.decode(errors="replace").replace("\0", "").strip()
            raise _refused(name, arch, text or nvrtc.nvrtcGetErrorString(error)[1].decode())
        made = b" " * nvrtc.nvrtcGetPTXSize(program)[1]
        nvrtc.nvrtcGetPTX(program, made)
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return made.rstrip(b"\0").decode()


def _folders(arch: str, include: Sequence[Path]) -> tuple[Any, list[str]]:
    """cuda-core's module, and the folders of headers."""
    checked_architecture(arch)
    core, folders = _toolchain()
    return core, [*map(str, include), str(kernels_dir()), str(kernels_dir() / "std"), *folders]


def checked_architecture(arch: str) -> None:
    """Refuse what is no name of an architecture that the compiler knows, and a machine without it.

    Raises
    ------
    OptionError, MissingExtra
    """
    _toolchain()
    named = re.fullmatch(r"sm_(\d+)[af]?", arch) if isinstance(arch, str) else None
    if named is None:
        raise OptionError(f"unknown architecture {arch!r}: such as {', '.join(ARCHITECTURES)}")
    if int(named[1]) not in (known := _known_architectures()):
        names = ", ".join(f"sm_{number}" for number in known)
        raise OptionError(f"NVRTC does not compile for {arch}; it knows {names}")


@functools.cache
def _known_architectures() -> tuple[int, ...]:
    """The numbers of the architectures that NVRTC compiles for; a suffix a or f is left to it."""
    from cuda.bindings import nvrtc

    _, numbers = nvrtc.nvrtcGetSupportedArchs()
    return tuple(numbers)


def _refused(name: str, arch: str, text: str) -> CompileError:
    """The error of a text that does not compile, with the first line that says so in front."""
    text = text.strip()
    first = next((line for line in text.splitlines() if "error" in line), text.splitlines()[0])
    return CompileError(f"{name} does not compile for {arch}: {first}\n{text}")


def cached_cubin(source: str, arch: str, *, include: Sequence[Path] = (), name: str = "kernel") -> bytes:
    """`compile_cubin`, from the disk cache where the same source has been compiled before."""

    def build(path: Path) -> None:
        path.write_bytes(compile_cubin(source, arch, include=include, name=name).code)

    key = cache_key(source, arch, include=include)
    return Cache().get(f"{name}-{arch}-{key}", build, suffix=".cubin").read_bytes()


def cached_ptx(source: str, arch: str, *, include: Sequence[Path] = (), name: str = "kernel") -> str:
    """`compile_ptx` with lines, from the disk cache where the same source has been compiled before."""

    def build(path: Path) -> None:
        text = compile_ptx(source, arch, include=include, name=name, lines=True)
        path.write_text(text, encoding="utf-8")

    key = cache_key(source, arch, include=include)
    return Cache().get(f"{name}-{arch}-{key}", build, suffix=".ptx").read_text(encoding="utf-8")


def cache_key(source: str, arch: str, *, include: Sequence[Path] = ()) -> str:
    """A name for all that goes into a compilation.

    It covers the translation unit, every file that it can include, the architecture and the compiler.
    """
    core, _ = _toolchain()
    folders = dict.fromkeys((*include, kernels_dir()))
    headers = [path for folder in folders for path in sorted(folder.glob("*.cuh"))]
    headers += sorted((kernels_dir() / "std").iterdir())
    parts = [source, arch, core.__version__, version(), *(["lines"] if line_info else [])]
    return key_of([*parts, *(part for path in headers for part in (path.name, path.read_bytes()))])


def version() -> str:
    """Version of NVRTC, such as "13.0"."""
    _toolchain()
    from cuda.bindings import nvrtc

    _, major, minor = nvrtc.nvrtcVersion()
    return f"{major}.{minor}"


class _Log:
    """The file that the compiler's log is written to; NVRTC pads with NULs."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text.replace("\0", "")
