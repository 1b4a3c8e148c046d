"""A kernel that the host's compiler refuses: is it wrong, or does the emulator lack what it uses?

NVRTC decides where it is installed. What it refuses is the user's error, in NVRTC's words; what it compiles
is right, and a GPU can run it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import MissingExtra
from .launch import KernelError

#: Where NVRTC is asked: of the architectures, the one with the most to offer that GPUs in use have.
ARCHITECTURE = "sm_90a"

#: What valid CUDA may use that the emulator does not have, by what the compiler says of it.
_KNOWN = (
    (r"convkit_unsupported_inline_ptx", "inline PTX (asm)"),
    (r"cluster_dims|this_cluster|cluster_group", "thread block clusters"),
    (r"\bmma\.h\b|wmma|nvcuda", "warp matrix functions (wmma)"),
    (r"\bcub\b", "CUB"),
    (r"\bthrust\b", "Thrust"),
    (r"\bcutlass\b|\bcute\b", "CUTLASS"),
    (r"\bcuda/|cuda_pipeline|cuda_awbarrier|cuda::", "libcu++ and its barriers and pipelines (<cuda/...>)"),
    (r"\bcurand", "cuRAND"),
    (r"cuda_fp[468]|__nv_fp[468]", "numbers of 8 bits and fewer"),
    (r"\btex(?:1D|2D|3D|Cubemap)|\bsurf[123]D|cudaTextureObject|cudaSurfaceObject|\btexture\b|\bsurface\b",
     "textures and surfaces"),
    (r"<<<|cudaLaunch|cudaStream|cudaMalloc|cudaDeviceSynchronize", "launches from a kernel"),
    (r"grid_group|this_grid|multi_grid|memcpy_async|cooperative_groups|labeled_partition|binary_partition"
     r"|barrier_arrive|barrier_wait|_scan\b|invoke_one", "a part of cooperative groups that is not there"),
    (r"\bmalloc\b|\bfree\b|operator new", "memory allocated by a kernel"),
    (r"\batomic\w+_(?:block|system)\b|\batomic\w*\b|__nv_atomic", "an atomic operation that is not there"),
)  # fmt: skip


def judged(error: KernelError, source: str, include: Sequence[Path]) -> KernelError:
    """The compiler's error, or a better one.

    Parameters
    ----------
    error : KernelError
        Of `host_compiler.compile_error`.
    source : str
        The translation unit.
    include : sequence of Path
        Folders of the files that it includes.

    Returns
    -------
    KernelError
        Of kind "unsupported" where the source is right as far as is known; else of kind "compile error".
    """
    if "is there an extern" in str(error):  # the unit is right, but for the name that was asked for
        return error
    what = _name(error)
    if error.file.endswith(".cpp") and not Path(error.file).is_absolute():  # the translation unit itself
        error.file, error.line = "", 0
    try:
        refused = _refused(source, include)
    except MissingExtra:
        if what is None:
            return error
        told = "NVRTC, which says whether a GPU could run it, is not installed"
        return _unsupported(error, what, told)
    if refused is None:
        what = what or f"what the emulator does not have ({_message(error)})"
        return _unsupported(error, what, "NVRTC compiles it: a GPU can run it")
    first = _first_error(refused)
    if first is None:
        return error
    file, line, message = first
    if file == "default_program":
        file, line = "", 0
    if what is not None and "cannot open source file" in message and file not in (error.file, ""):
        return _unsupported(error, what, f"NVRTC cannot tell: {message} ({Path(file).name})")
    where = f"\n  at {file}:{line}" if file else ""
    return KernelError(
        f"{error.kernel} does not compile: {message}{where}\n  (NVRTC for {ARCHITECTURE})",
        kernel=error.kernel, kind="compile error", file=file, line=line, log=f"{refused}\n{error.log}",
    )  # fmt: skip


def _unsupported(error: KernelError, what: str, told: str) -> KernelError:
    where = f"\n  at {error.file}:{error.line}" if error.file else ""
    uses = what if what.startswith("what ") else f"{what}, which the emulator does not have"
    return KernelError(
        f"{error.kernel} uses {uses}; {told}{where}",
        kernel=error.kernel, kind="unsupported", file=error.file, line=error.line, log=error.log,
    )  # fmt: skip


def _message(error: KernelError) -> str:
    """What the compiler says first."""
    first = str(error).partition("\n")[0].partition(" does not compile: ")[2]
    return first.partition(" (is there an extern")[0]


def _name(error: KernelError) -> str | None:
    """What it is that the emulator lacks, if the error and its line tell."""
    shown = str(error).partition(" does not compile: ")[2]
    return next((what for pattern, what in _KNOWN if re.search(pattern, shown)), None)


def _refused(source: str, include: Sequence[Path]) -> str | None:
    """NVRTC's log where it refuses the source, else None."""
    from . import nvrtc  # on first use: it takes CUDA's compiler along

    try:
        nvrtc.compile_cubin(source, ARCHITECTURE, include=include)
    except nvrtc.CompileError as error:
        return str(error)
    return None


def _first_error(log: str) -> tuple[str, int, str] | None:
    log = log.partition("\n")[2]  # behind the sentence that `nvrtc` puts in front
    found = re.search(
        r"^(?P<file>[^\n]*?)\((?P<line>\d+)\): (?:catastrophic )?error: (?P<text>.*)$", log, re.M
    )
    if found is None:
        return None
    return found["file"], int(found["line"]), found["text"]
