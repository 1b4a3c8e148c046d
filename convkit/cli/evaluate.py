"""`convkit evaluate`: how often a trained network is wrong, and about what."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from ..errors import OptionError
from ._output import printable, progress_bar, require_writable, table, write

if TYPE_CHECKING:
    from ..train.page.content import Content


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "evaluate",
        help="error rates of a trained network, and what it is wrong about",
        description="Look at every image of a data set with the network of a run: top-1 and top-5 error "
        "with 95 % intervals, cross-entropy, confusion; and an HTML page with the images that it was most "
        "wrong about, its first filters, and the curves of its training.",
    )
    option = parser.add_argument
    option("run_folder", metavar="RUN", help="folder of the run")
    option("data", nargs="?", metavar="DATA", help="as for `convkit train` (default: the run's own)")
    option("--split", default="validation", choices=("validation", "train"), help="default: validation")
    option("--views", type=int, default=1, choices=(1, 10), help="1, the centre (default); 10, with the "
           "corners, and mirrored, averaged as in the paper")  # fmt: skip
    option("--checkpoint", metavar="NAME",
           help="best, last, previous, or a file (default: best, or last where there is none)")  # fmt: skip
    option("--html", metavar="PAGE", help="write the page here (default: evaluation.html in RUN)")
    option("--json", metavar="FILE", help="write all of it to this file ('-': stdout)")
    option("--batch", type=int, help="images at a time (default: the recipe's batch)")
    option("--workers", type=int, help="processes that read images (default: one for each core)")
    option("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Evaluate, print the figures, and write the page."""
    from ..bench.results import files
    from ..train import report
    from ..train.page.document import write as write_page
    from ..train.trained import open_run

    require_writable(args.json)
    trained = open_run(args.run_folder, args.checkpoint, args.device)
    html = args.html or str(trained.run.path / "evaluation.html")
    if args.html:
        files.writable(html)
    data, split = trained.open_split(args.data, args.split)
    quiet = args.json == "-"
    with progress_bar("image") as progress:
        evaluation = trained.evaluate(
            split, views=args.views, batch=args.batch, workers=args.workers, progress=progress
        )
    content = report.content(trained, data, split, args.split, evaluation)
    if args.json:
        write(args.json, json.dumps(report.document(content), indent=1, ensure_ascii=False, allow_nan=False))
    if not quiet:
        _print(content)
    try:
        write_page(content, html)
    except OptionError as error:
        if args.html:
            raise
        print(f"convkit evaluate: no page: {error}; --html says where else", file=sys.stderr)
    else:
        if not quiet:
            print(f"\n{printable(html)}: the images that it was most wrong about, classes, filters, curves")
    return 0


def _print(content: Content) -> None:
    from ..train.page.text import interval, number, percent

    evaluation = content.evaluation
    top5 = evaluation.top5
    facts = dict(content.facts)
    print(printable(f"{facts['run']}, {facts['checkpoint']}"))
    print(printable(f"{facts['data']}, {facts['split']}, views {facts['views']}") + "\n")
    rows = [
        ("top-1 error", percent(evaluation.top1.value), interval(evaluation.top1)),
        ("top-5 error", percent(top5.value), interval(top5)) if top5
        else ("top-5 error", "-", f"with {evaluation.num_classes} classes it says nothing"),
        ("cross-entropy", number(evaluation.loss), ""),
        ("images", f"{evaluation.images:,}", ""),
    ]  # fmt: skip
    print(table(rows, ("", "", "95 % interval"), colalign=("left", "right", "left")))
    pairs = evaluation.pairs(wrong=True)[:5]
    if pairs:
        named = [(content.label(a), content.label(b), n) for a, b, n in pairs]
        print("\nmost confused: " + "; ".join(printable(f"{a} taken for {b} ({n})") for a, b, n in named))
    for notice in content.notices:
        print(f"note: {notice}")
    for name, reason in evaluation.left_out[:5]:
        print(printable(f"left out: {name}: {reason}"), file=sys.stderr)
    if len(evaluation.left_out) > 5:
        print(f"left out: {len(evaluation.left_out) - 5:,} more; --json has them all", file=sys.stderr)
