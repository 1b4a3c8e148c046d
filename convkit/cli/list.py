"""`convkit list`: ops and their implementations, and what the CPU's kernels run on."""

from __future__ import annotations

import argparse
from typing import Any

from ..cpu import extension, threads
from ..registry import implementations
from ._output import table


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser("list", help="list ops and their implementations")
    parser.add_argument("op", nargs="?", help="only this op")
    parser.add_argument("--device", help="only this device")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print a row for each implementation."""
    rows = [
        (i.op, i.name, i.device, i.layout, " ".join(i.dtypes), f"{i.error:g}", i.rank,
         (i.missing and i.missing()) or "ready")
        for i in implementations(args.op, device=args.device, layout=None)
    ]  # fmt: skip
    print(table(rows, ("op", "implementation", "device", "layout", "dtypes", "error", "rank", "state")))
    module = extension.load()
    print(f"\nnative extension: {module.isa() if module else extension.why_missing()}")
    if args.device in (None, "cpu"):
        _print_cpu()
    return 0


def _print_cpu() -> None:
    """The instruction sets that the CPU's kernels are built for, one a line, and the threads."""
    reason = extension.kernels_missing()
    print(f"C++ kernels: {extension.isa()}{f' ({reason})' if reason else ''}")
    for isa, reason in extension.unusable().items():
        state = reason or ("in use" if isa == extension.isa() else "usable")
        print(f"  {isa}: {extension.ISAS[isa]}: {state}")
    print(f"threads: {threads.count()}")
