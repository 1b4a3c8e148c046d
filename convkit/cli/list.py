"""`convkit list`: ops and their implementations, and what the CPU's kernels run on."""

from __future__ import annotations

import argparse
import os
from typing import Any

from ..bench import status
from ..checked import SHIPPED, engine
from ..cpu import extension, threads
from ..discovery import register
from ..op import OPS
from ..registry import Implementation, implementations
from ._output import table


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser("list", help="list ops and their implementations")
    parser.add_argument(
        "op", nargs="?", metavar="op|file", help="only this op, or what this file (.py, .cpp, .cu) registers"
    )
    parser.add_argument("--device", help="only this device")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print a row for each implementation."""
    rows = [
        (i.op, i.name, i.device, i.layout_text, " ".join(i.dtypes), f"{i.error:g}", i.rank, _checked(i),
         (i.missing and i.missing()) or "ready")
        for i in _listed(args.op, args.device)
    ]  # fmt: skip
    heads = ("op", "implementation", "device", "layout", "dtypes", "error", "rank", "checked", "state")
    print(table(rows, heads))
    module = extension.load()
    print(f"\nnative extension: {module.isa() if module else extension.why_missing()}")
    if args.device in (None, "cpu"):
        _print_cpu()
    return 0


def _checked(i: Implementation) -> str:
    """What is known of its check; on a GPU also of those that convkit ships, by the results in the tree."""
    if i.checked != SHIPPED or i.device != "cuda" or engine("cuda") == "emulator":
        return i.checked
    return i.checked if status.has_run(i) else status.UNRUN


def _listed(target: str | None, device: str | None) -> list[Implementation]:
    if target is None or target in OPS or not (target.endswith((".py", ".cu", ".cpp")) or os.sep in target):
        return implementations(target, device=device, layout=None)
    return [i for i in register(target) if device in (None, i.device)]


def _print_cpu() -> None:
    """The instruction sets that the CPU's kernels are built for, one a line, and the threads."""
    reason = extension.kernels_missing()
    print(f"C++ kernels: {extension.isa()}{f' ({reason})' if reason else ''}")
    for isa, reason in extension.unusable().items():
        state = reason or ("in use" if isa == extension.isa() else "usable")
        print(f"  {isa}: {extension.ISAS[isa]}: {state}")
    print(f"threads: {threads.count()}")
