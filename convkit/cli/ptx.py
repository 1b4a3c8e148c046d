"""`convkit ptx`: the PTX that NVRTC makes of a kernel, with no GPU."""

from __future__ import annotations

import argparse
from typing import Any

from ._kernel import arguments, unit


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "ptx",
        help="print the PTX of a kernel",
        description="Compile a kernel by NVRTC, on any machine, and print its PTX.",
    )
    arguments(parser, arch=True)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the PTX of one kernel."""
    from ..cuda import nvrtc

    of = unit(args)
    print(nvrtc.compile_ptx(of.text, args.arch, include=(of.file.path.parent,), name=of.file.stem).rstrip())
    return 0
