"""`convkit source`: what is compiled for a kernel."""

from __future__ import annotations

import argparse
from typing import Any

from ._kernel import arguments, unit


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "source",
        help="print what is compiled for a kernel",
        description="Print the translation unit of a kernel, for nvcc, ncu or a look: "
        "convkit source NAME > unit.cu; nvcc -I kernels -cubin -arch=sm_90a unit.cu",
    )
    arguments(parser, arch=False)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the translation unit of one kernel."""
    print(unit(args).text)
    return 0
