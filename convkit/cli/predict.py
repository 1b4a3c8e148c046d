"""`convkit predict`: what a trained network takes images for."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ._output import printable, table


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "predict",
        help="what a trained network takes images for",
        description="The most probable classes of image files, by the network of a run. An image that cannot "
        "be read is named, the others go on, and the exit status is 1. Images for a network of grey images "
        "are made grey; a digit is light on dark, as in MNIST.",
    )
    option = parser.add_argument
    option("run_folder", metavar="RUN", help="folder of the run")
    option("images", nargs="+", metavar="IMAGE", help="image files and folders")
    option("--top", type=int, default=5, help="classes for each image (default: 5)")
    option("--views", type=int, default=1, choices=(1, 10), help="as in `convkit evaluate` (default: 1)")
    option("--checkpoint", metavar="NAME",
           help="best, last, previous, or a file (default: best, or last where there is none)")  # fmt: skip
    option("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print a table of each image's classes."""
    from ..train.trained import open_run

    trained = open_run(args.run_folder, args.checkpoint, args.device)
    info = trained.run.info
    rows: list[tuple[str, str, str, str]] = []
    bad = 0
    named = info.names != info.classes
    for one in trained.predict(args.images, top=args.top, views=args.views):
        if one.reason:
            bad += 1
            print(printable(f"convkit predict: {one.path}: {one.reason}"), file=sys.stderr)
        for place, (number, name, probability) in enumerate(one.classes):
            rows.append((
                printable(one.path) if not place else "",
                f"{100 * probability:.2f} %",
                printable(name),
                printable(info.classes[number]) if named else "",
            ))  # fmt: skip
    if rows:
        heads = ("image", "probability", "class", "key")
        columns = 4 if named else 3
        print(
            table(
                [row[:columns] for row in rows],
                heads[:columns],
                colalign=("left", "right", "left", "left")[:columns],
            )
        )
    return 1 if bad else 0
