"""`convkit source`: what is compiled for a kernel."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..cuda import header
from ..cuda.source import translation_unit
from ..errors import unknown


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "source",
        help="print what is compiled for a kernel",
        description="Print the translation unit of a kernel, for nvcc, ncu or a look: "
        "convkit source NAME > unit.cu; nvcc -I kernels -cubin -arch=sm_90a unit.cu",
    )
    parser.add_argument("kernel", help="a kernel file's stem, or a path to a .cu file")
    parser.add_argument("--dtype", help="storage (default: the first that the kernel declares)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the translation unit of one kernel."""
    from .. import check

    files = {path.stem: path for path in header.builtin_files()}
    path = Path(args.kernel)
    if path.suffix != ".cu":
        if args.kernel not in files:
            raise unknown("kernel", args.kernel, files)
        path = files[args.kernel]
    file = header.read(path.resolve())
    dtype = args.dtype or file.header.dtypes[0]
    if dtype not in file.header.dtypes:
        raise unknown(f"dtype of {file.stem}", dtype, file.header.dtypes)
    case = next(iter(check.cases(file.header.op))).of(dtype)
    print(translation_unit(file, case.problem))
    return 0
