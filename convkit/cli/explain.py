"""`convkit explain`: what an implementation of an op receives."""

from __future__ import annotations

import argparse
from typing import Any


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "explain",
        help="what an implementation of an op receives",
        description="Print what an implementation of an op receives: the order of its arguments, shapes, "
        "dtypes, options, ties. Without an op, all of them as a page (docs/ops.md).",
    )
    parser.add_argument("op", nargs="?", help="the op; by default every op, in Markdown")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print one op, or the page."""
    from .. import explain

    if args.op is None:
        print(explain.page(), end="")
        return 0
    print(explain.received(args.op).about, "\n")
    print("\n".join([*explain.lines(args.op), "", *explain.ARRAYS]))
    return 0
