"""`convkit prepare`: labelled images become a store, which training reads without decoding anything."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from ..errors import OptionError
from ._output import printable, progress_bar

if TYPE_CHECKING:
    from ..train.preparation import Prepared

#: Files that were left out, and classes without an image, that are shown.
_SHOWN = 5


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "prepare",
        help="make a store of labelled images: uint8 squares, read without decoding anything",
        description="Read every image of DATA once, and make STORE of them: uint8 squares in memory-mapped "
        "files, labels, the training images' mean and principal colours, and a list of what was left out and "
        "why. Stopped at any moment, the same command goes on.",
    )
    option = parser.add_argument
    option(
        "data",
        metavar="DATA",
        help="digits, a folder of IDX files, a folder tree as ImageNet's, or the folder of its tars; with "
        "--verify alone, a store",
    )
    option(
        "store", metavar="STORE", nargs="?", help="the folder to make; about 200 KB an image of 256 pixels"
    )
    option(
        "--size",
        type=int,
        default=256,
        help="height and width of the squares (default: 256); pixel data (digits, IDX) keep theirs",
    )
    option(
        "--square",
        choices=("crop", "stretch"),
        default="crop",
        help="crop: resize the shorter side and keep the middle (default); stretch: resize both sides",
    )
    option("--workers", type=int, metavar="N", help="processes that decode (default: one for each CPU)")
    option("--anew", action="store_true", help="start over where STORE is there already")
    option("--verify", action="store_true", help="compare every file of the store with its SHA-256")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Make a store, or verify one; 1 if a file of it is damaged."""
    if args.store is None and not args.verify:
        raise OptionError("it takes DATA and STORE; --verify takes a store alone")
    if args.store is not None:
        from ..train.preparation import prepare

        try:
            with progress_bar("img") as progress:
                made = prepare(
                    args.data, args.store, size=args.size, square=args.square, workers=args.workers,
                    anew=args.anew, progress=progress,
                )  # fmt: skip
        except KeyboardInterrupt:
            print("what is complete is kept: the same command goes on with it", file=sys.stderr)
            raise
        _print(made, args.store)
    return _verify(args.store or args.data) if args.verify else 0


def _verify(store: str) -> int:
    from ..train.data.store import damaged

    total = 0

    with progress_bar("B", unit_scale=True) as progress:

        def note(done: int, size: int) -> None:
            nonlocal total
            total = size
            progress(done, size)

        found = damaged(store, note)
    for line in found:
        print(printable(line))
    if not found:
        print(f"{printable(store)} is as it was written: {_size(total)}")
    return 1 if found else 0


def _print(made: Prepared, store: str) -> None:
    data, shown = made.data, printable(store)
    H, W, C = data.train.shape
    held = 0 if data.validation is None else len(data.validation)
    print(
        f"{shown}: {len(data.train):,} training and {held:,} validation images of {len(data.classes):,} "
        f"classes, {H} x {W} x {C}, {_size(made.bytes)} in {_count(made.shards, 'shard')}"
    )
    if made.empty:
        names = ", ".join(printable(name) for name in made.empty[:_SHOWN])
        more = ", ..." if len(made.empty) > _SHOWN else ""
        print(f"no training image of {_count(len(made.empty), 'class', 'classes')}: {names}{more}")
    if data.left_out:
        print(f"left out {_count(len(data.left_out), 'file')}, see {shown}/left_out.txt:")
        for name, reason in data.left_out[:_SHOWN]:
            print(f"  {printable(name)}: {printable(reason)}")
        if len(data.left_out) > _SHOWN:
            print("  ...")
    if made.images:
        rate = made.images / max(made.seconds, 1e-9)
        print(f"{made.images:,} images read in {_time(made.seconds)}, {rate:,.0f} images/s")
    else:
        print("it was complete already: nothing was read")


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
