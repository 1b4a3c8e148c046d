"""The translation unit of a kernel file: the text that NVRTC, nvcc and the emulator compile alike."""

from __future__ import annotations

from collections.abc import Mapping

from ..op import Problem, param_dtype, storage_dtype
from . import dividers
from .header import KernelFile

#: How a storage dtype is called in CUDA C++.
STORAGE = {"float32": "float", "float64": "double", "float16": "__half", "bfloat16": "__nv_bfloat16"}


def translation_unit(kernel: KernelFile, problem: Problem, tile: Mapping[str, int] | None = None) -> str:
    """The whole source that is compiled, for NVRTC, nvcc and the emulator alike.

    In front of the file stand the problem's struct, the dtype of the arrays, and of parameters where that is
    another one (storage.cuh makes `storage_t` and `param_t` of them), the tile, and
    `GEOMETRY(type)`, the kernel's first parameter: it declares `g`, at run time or, where the header says
    `geometry = "constexpr"`, as a constant. `#line` makes messages name the file's own lines.
    """
    kind = type(problem).__name__
    values = {**kernel.header.tile, **(tile or {})}
    dtype: str = problem.dtype  # type: ignore[attr-defined]
    storage, parameters = storage_dtype(dtype), param_dtype(dtype)
    lines = [
        f"// {kernel.stem}: what convkit declares in front of the file",
        problem.c_struct(),
        f"#define CONVKIT_STORAGE_{storage} 1",
        *([f"#define CONVKIT_PARAM_{parameters} 1"] if parameters != storage else []),
    ]
    lines += [f"[[maybe_unused]] constexpr int {name} = {value};" for name, value in values.items()]
    header, name = kernel.header, "type"
    numbers = ", ".join(f"{v!r}f" if isinstance(v, float) else str(v) for v in problem.scalars().values())
    if header.dividers:
        lines += [dividers.c_struct(header, problem)]
        kind, name = f"Divided<{kind}>", "Divided<type>"
        of_each = ("{" + ", ".join(map(str, one)) + "}" for one in dividers.values(header, problem).values())
        numbers = ", ".join([f"{{{numbers}}}", *of_each])
    if header.geometry == "constexpr":
        lines += [f"constexpr {kind} g = {{{numbers}}};", f"#define GEOMETRY(type) const {name}"]
    else:
        lines += [f"#define GEOMETRY(type) const {name} g"]
    path = str(kernel.path).replace("\\", "/")
    return "\n".join([*lines, f'#line 1 "{path}"', kernel.source])
