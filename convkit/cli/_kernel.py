"""What the commands on one kernel share: the file that is meant, and what is compiled for it."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cuda import header
from ..cuda.header import KernelFile
from ..cuda.source import translation_unit
from ..errors import OptionError, unknown
from ..op import OPS, Problem

#: The architecture that is compiled for where none is named: H100 and H200.
ARCH = "sm_90a"


@dataclass(frozen=True)
class Unit:
    """A kernel file, and the translation unit of it for one dtype."""

    file: KernelFile
    dtype: str
    text: str


def arguments(parser: Any, *, arch: bool) -> None:
    """Add the arguments that name a kernel, and where it is to be compiled, for what."""
    parser.add_argument("kernel", help="a path to a .cu file, or a kernel file's stem")
    parser.add_argument("--dtype", help="storage (default: the first that the kernel declares)")
    parser.add_argument(
        "--tile", metavar="NAME=N,...", help="other values for its tile, such as TILE_M=64,TILE_N=256"
    )
    if arch:
        parser.add_argument(
            "--arch", default=ARCH, help=f"such as sm_80, sm_90a, sm_100a, sm_120 (default: {ARCH})"
        )


def unit(args: argparse.Namespace) -> Unit:
    """The kernel that the arguments name, and its translation unit."""
    files = {path.stem: path for path in header.builtin_files()}
    path = Path(args.kernel)
    if path.suffix != ".cu":
        if path.is_file() or path.suffix:
            raise OptionError(f"{path.name} is no CUDA kernel: a .cu file is needed")
        if args.kernel not in files:
            raise unknown("kernel", args.kernel, files)
        path = files[args.kernel]
    file = header.read(path.resolve())
    dtype = args.dtype or file.header.dtypes[0]
    if dtype not in file.header.dtypes:
        raise unknown(f"dtype of {file.stem}", dtype, file.header.dtypes)
    if args.tile is not None:
        file = file.tiled(_tile(file, args.tile))
    return Unit(file, dtype, translation_unit(file, _sample(file, dtype)))


def _tile(file: KernelFile, text: str) -> dict[str, int]:
    """What `--tile` says, checked against the header."""
    found = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if not equals or not value.strip().isdigit():
            raise OptionError(f"--tile takes NAME=NUMBER, with commas between, not {part!r}")
        if name.strip() not in file.header.tile:
            raise unknown(f"constant in the tile of {file.stem}", name.strip(), file.header.tile)
        found[name.strip()] = int(value)
    return found


def _sample(file: KernelFile, dtype: str) -> Problem:
    """A problem of a real layer; only where the geometry is `constexpr` does it matter which."""
    from ..check.cases import Case

    _, problem = next(iter(OPS[file.header.op].cases.layers()))
    return Case(file.header.op, problem, "").of(dtype).problem
