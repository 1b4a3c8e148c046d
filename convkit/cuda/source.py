"""The translation unit of a kernel file: the text that NVRTC, nvcc and the emulator compile alike."""

from __future__ import annotations

from collections.abc import Mapping

from ..op import Problem
from .header import KernelFile

#: How a storage dtype is called in CUDA C++.
STORAGE = {"float32": "float", "float64": "double", "float16": "__half", "bfloat16": "__nv_bfloat16"}


def translation_unit(kernel: KernelFile, problem: Problem, tile: Mapping[str, int] | None = None) -> str:
    """The whole source that is compiled, for NVRTC, nvcc and the emulator alike.

    In front of the file stand the problem's struct, `storage_t` (the type of the arrays), the tile, and
    `GEOMETRY(type)`, the kernel's first parameter: it declares `g`, at run time or, where the header says
    `geometry = "constexpr"`, as a constant. `#line` makes messages name the file's own lines.
    """
    kind = type(problem).__name__
    values = {**kernel.header.tile, **(tile or {})}
    lines = [
        f"// {kernel.stem}: what convkit declares in front of the file",
        problem.c_struct(),
        f"#define CONVKIT_STORAGE_{problem.dtype} 1",  # type: ignore[attr-defined]
    ]
    lines += [f"[[maybe_unused]] constexpr int {name} = {value};" for name, value in values.items()]
    if kernel.header.geometry == "constexpr":
        numbers = ", ".join(f"{v!r}f" if isinstance(v, float) else str(v) for v in problem.scalars().values())
        lines += [f"constexpr {kind} g = {{{numbers}}};", "#define GEOMETRY(type) const type"]
    else:
        lines += ["#define GEOMETRY(type) const type g"]
    path = str(kernel.path).replace("\\", "/")
    return "\n".join([*lines, f'#line 1 "{path}"', kernel.source])
