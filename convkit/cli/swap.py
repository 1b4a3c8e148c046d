"""`convkit swap`: a candidate in a network, its calls compared, and training with and without it."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ._output import require_writable, table, write

if TYPE_CHECKING:
    from ..swap import Report

#: Reasons that are printed.
_SHOWN = 6
_DESCRIPTION = """\
Put a candidate into a network and see what it does there.

First every call that the candidate has in one training step is compared with float64, element by element, on
the very inputs that it gets there. Then the network trains three times, step by step in turns: as it is, with
the candidate, and with another right implementation in the candidate's place. The last says how far two right
implementations differ; the candidate's gradients and its loss curve are held against that. Then the calls of
one more step are compared, by the process that has trained."""

_EPILOG = """\
The candidate runs in a process of its own: a crash, a hang or NaN after some steps is a verdict too. A kernel
file runs on the GPU, or under the emulator where there is none. That one op is then emulated, in a network
that otherwise runs on the CPU, and its time says nothing. Exit status: 0 the swap is safe; 1 it is not, or
there is no verdict; 2 the command could not be carried out."""


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "swap",
        help="put a candidate into a network: are its calls right, and what does it do to training?",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option = parser.add_argument
    option("file", help="a kernel file (.cu), or a .py or .cpp file that has implementations")
    option("--preset", default="small", help="small (default), paper, 2012, caffe or owt")
    option("--layer", help="the layer in which it runs (default: each one that it takes)")
    option("--impl", metavar="NAME", help="which implementation, where the file has several of one op")
    option("--steps", type=int, help="of training (default: 20; 10 of large presets or emulated)")
    option("--batch", type=int, help="images of a step (default: 16; 4 of large presets or emulated)")
    option("--lr", type=float, help="learning rate (default: one with which the loss falls, such as 0.005)")
    option("--seed", type=int, default=0, help="of weights, dropout and images (default: 0)")
    option("--go-on", action="store_true", help="train also after a wrong call")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--cuda", action="store_true", help="run a kernel file on the GPU, and nowhere else")
    where.add_argument("--emulate", action="store_true", help="emulate it even where there is a GPU")
    option("--timeout", type=float, default=60.0, metavar="SECONDS",
           help="that a call, or a step, may take (default: 60); then its process is ended")  # fmt: skip
    option("--memory", type=float, default=4.0, metavar="GIB",
           help="that the candidate's process may take beyond its tensors (default: 4)")  # fmt: skip
    option("--picture", metavar="FILE", help="draw losses, times and gradients into this PNG")
    option("--json", metavar="FILE", help="write everything found to this file ('-': stdout)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry a swap out; 1 where it is not safe."""
    from .. import check, swap
    from ..bench.results import files
    from ..swap import picture

    require_writable(args.json)
    if args.picture:
        # Refused now, before the work.
        files.writable(picture.require_png(args.picture))
        picture.load_matplotlib()
    emulate = True if args.emulate else False if args.cuda else None
    try:
        report = swap.swap(
            args.file, preset=args.preset, layer=args.layer, impl=args.impl, steps=args.steps,
            batch=args.batch, seed=args.seed, lr=args.lr, emulate=emulate, go_on=args.go_on,
            limits=check.Limits.of(args.timeout, args.memory), progress=_bar(),
        )  # fmt: skip
    except swap.NotRun as reason:
        print(f"no verdict: {reason}")
        return 1
    if report.printed:
        check.print_apart(report.file, report.printed)
    if args.json != "-":
        print(text(report))
    if args.json:
        write(args.json, json.dumps(report.as_dict(), indent=1))
    if args.picture and report.candidate.losses:
        picture.draw(report, args.picture)
        print(f"\npicture: {args.picture}", file=sys.stderr if args.json == "-" else sys.stdout)
    elif args.picture:
        print("\nno picture: it was not trained; --go-on trains after a wrong call too", file=sys.stderr)
    return 0 if report.ok else 1


def text(report: Report) -> str:
    """The report as it is printed."""
    parts = []
    if report.candidates:
        names = ", ".join(f"{op} {name!r}" for op, name in report.candidates.items())
        where = {"cpu": "on the CPU", "cuda": "on the GPU", "emulated": "in a network that runs on the CPU"}
        parts.append(
            f"{report.file}: {names}, {where[report.device]}\n"
            f"AlexNet ({report.preset}), batch {report.batch} of patterns, learning rate {report.lr:g}, "
            f"seed {report.seed}"
        )
    if report.places:
        parts.append("\n".join(_places(report)))
    if report.calls:
        parts.append(f"calls, each on the inputs that it has there, against float64:\n{_calls(report)}")
    if report.gradients:
        parts.append(_gradients(report))
    if report.candidate.losses:
        parts.append(_runs(report))
    parts.append(textwrap.fill(report.verdict, 110))
    if len(report.faults) > 1:
        parts.append("\n".join(f"  {fault}" for fault in report.faults[1:_SHOWN]))
        if (left := len(report.faults) - _SHOWN) > 0:
            parts[-1] += f"\n  and {left} more; --json has all"
    parts += ["\n".join(report.unchecked)] if report.unchecked else []
    return "\n\n".join(parts)


def _places(report: Report) -> Iterator[str]:
    """Layers with the same ops on one line."""
    together: dict[str, list[str]] = {}
    for layer, names in report.places.items():
        together.setdefault(", ".join(names), []).append(layer)
    for ops, layers in together.items():
        yield f"runs in {', '.join(layers)}: {ops}"
    for name, why in report.refused.items():
        yield f"not in {name}: {why}"


def _calls(report: Report) -> str:
    """A row for each call, with both steps in which it was compared."""
    rows: dict[tuple[str, str], list[list[str]]] = {}
    for which, calls in enumerate((report.calls, report.calls_after)):
        for v in calls:
            row = rows.setdefault((v.case.partition(", ")[0], v.op), [["", ""], ["", ""]])
            row[which] = [f"{v.ratio:.3g}" if v.ok else "WRONG", f"{v.rms:.1e}" if v.rms == v.rms else ""]
    headers = ("layer", "op", "error/bound", "rms", "after the run", "rms")
    cells = [(*key, *first, *after) for key, (first, after) in rows.items()]
    wide = len(headers) if report.calls_after else 4
    aligned = ("left", "left", *("right",) * (wide - 2))
    return table([row[:wide] for row in cells], headers[:wide], colalign=aligned)


def _runs(report: Report) -> str:
    from ..swap.report import losses, milliseconds

    curves = [("without it", report.without), ("with it", report.candidate)]
    if report.other.losses:
        curves.append((f"with {report.others}", report.other))
    rows = [(name, losses(c.losses), milliseconds(c)) for name, c in curves]
    done = f"{len(report.candidate.losses)} of {report.asked} steps, in turns:"
    return f"{done}\n{table(rows, ('run', 'loss', 'ms a step [interval]'))}"


def _gradients(report: Report) -> str:
    from ..bench.measure.stats import median
    from ..swap.report import FACTOR

    rows = []
    for name, found in report.gradients.items():
        right = [f"{median(found.spread):.1e}", f"{max(found.spread):.1e}"] if found.spread else ["-", "-"]
        rows.append(
            (name, f"{median(found.candidate):.1e}", f"{max(found.candidate):.1e}", *right,
             f"{report.ratio_of(name) / FACTOR:.2f}")
        )  # fmt: skip
    steps = ", ".join(map(str, report.compared_steps))
    headers = ("parameter", "median", "largest", "another's median", "largest", "part of the limit")
    other = f"; another: {report.others}" if report.others else ""
    return (
        f"gradients against those without it, relative RMS, at equal weights, before steps {steps}{other}:\n"
        + table(rows, headers, colalign=("left",) + ("right",) * 5)
    )


def _bar() -> Callable[[str, int, int], None]:
    from tqdm import tqdm

    bar = tqdm(leave=False, file=sys.stderr, disable=None, bar_format="{desc} {n}/{total} {bar}")

    def progress(what: str, done: int, total: int) -> None:
        bar.total, bar.n = total, done
        bar.set_description_str(what, refresh=False)
        bar.refresh()
        if done == total:
            bar.clear()

    return progress
