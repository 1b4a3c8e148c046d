"""The CPU backend's goals: what `convkit bench` must show beside the other libraries on this machine.

    make bench-cpu                       measures it all, most of an hour, and prints the verdicts
    python bench/goals.py --quick        a few minutes: small batches, few rounds, no verdicts of the big ones
    python bench/goals.py run.json ...   the goals that these result files speak of
    python bench/goals.py --folder DIR   keep the result files there, and go on with those that are there

Each goal names rows of result files by their ids. It is reached where the best of the libraries that it is
against takes at least so many times as long as convkit's pick; or, against none, where convkit's own figure
is at most the value. "Within the interval" says that another run may find otherwise.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from statistics import median
from typing import Any

from convkit.bench.measure import stats
from convkit.bench.results import figures, files
from convkit.errors import ConvkitError

ALL = "torch,onnxruntime,jax"
PYTORCH = ("PyTorch",)
_LAYERS = (
    "conv1,conv2,conv3,conv4,conv5,norm1+pool1,norm2+pool2,fc6+relu6,fc7+relu7,fc8,fc6+update,fc7+update,"
    "fc8+update"
)
#: What is measured, by file: arguments of `convkit bench`, and what takes their place with `--quick`.
RUNS = {
    "steps": (["--step", "--batch", "1,16,128", "--against", ALL], ["--step", "--batch", "1"]),
    "steps-owt": (["--step", "--preset", "owt", "--batch", "16", "--against", ALL], None),
    "forward": (["--forward", "--batch", "1,16,128", "--against", ALL], ["--forward", "--batch", "1"]),
    "layers": (
        ["--layers", _LAYERS, "--directions", "fwd,dgrad,wgrad,update", "--batch", "16"],
        ["--layers", "conv2,norm1+pool1", "--batch", "2"],
    ),
    "geometries": (
        ["--geometries", "--against", "torch,onnxruntime"], ["--geometries", "--against", "torch"]
    ),
    "processes": (["--memory", "--first-call", "--batch", "128"], ["--first-call"]),
}  # fmt: skip


@dataclass(frozen=True)
class Goal:
    """What rows must show.

    Attributes
    ----------
    name : str
    value : float
    rows : str or tuple of str
        A pattern of ids: one verdict for each row that fits. Several ids: one verdict for all of them
        together, by the sums of their times.
    against : tuple of str, optional
        Libraries; None for all. Empty: convkit's own figure must be at most `value`, in the row's unit.
    over : {"", "median", "least"}
        One verdict for all rows that fit: of their ratios.
    """

    name: str
    value: float
    rows: str | tuple[str, ...]
    against: tuple[str, ...] | None = PYTORCH
    over: str = ""


def _id(layer: str, op: str, batch: int = 16, preset: str = "paper") -> str:
    return f"alexnet-{preset}/{layer}/{op}/N={batch}/float32/fp32"


def _both(number: int) -> tuple[str, str]:
    layer = f"norm{number}+pool{number}"
    return _id(layer, "lrn_maxpool2d_fprop"), _id(layer, "lrn_maxpool2d_dgrad")


_STEPS = (("paper", 1, 3.5), ("paper", 16, 3.5), ("paper", 128, 7), ("owt", 16, 2.5))
GOALS: tuple[Goal, ...] = (
    *(
        Goal(f"step, {preset}, N = {batch}", value, _id("step", "step", batch, preset))
        for preset, batch, value in _STEPS
    ),
    *(
        Goal(f"forward, N = {batch}", value, _id("forward", "forward", batch), ("ONNX Runtime",))
        for batch, value in ((1, 1.3), (16, 3.5), (128, 8))
    ),
    *(
        Goal(f"conv{i} {way}", 3 if (i, way) == (1, "fprop") else 2, _id(f"conv{i}", f"conv2d_{way}"), None)
        for i in range(1, 6)
        for way in ("fprop", "dgrad", "wgrad")
    ),
    Goal("norm1+pool1, both ways", 15, _both(1), None),
    Goal("norm2+pool2, both ways", 15, _both(2), None),
    Goal(
        "fc6 to fc8, forward, backward, update", 2.5,
        (
            _id("fc6+relu6", "linear_fprop"), _id("fc7+relu7", "linear_fprop"), _id("fc8", "linear_fprop"),
            *(_id(f"fc{i}+update", "linear_dgrad_wgrad_sgd") for i in (6, 7, 8)),
        ),
        None,
    ),
    Goal("other geometries", 1.0, "conv/*-*/conv2d_*", over="median"),
    Goal("other geometries", 0.6, "conv/*-*/conv2d_*", over="least"),
    Goal("memory of a step, N = 128, MB", 1600, _id("memory", "memory", 128), ()),
    Goal("memory of a step, N = 128", 1.0, _id("memory", "memory", 128)),
    Goal("first call, ms", 50, "conv/first call/*", ()),
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """A goal beside what was measured: "reached" or "missed".

    `clear` is False where the goal lies inside the interval.
    """

    goal: Goal
    what: str
    measured: float
    low: float
    high: float

    @property
    def reached(self) -> bool:
        most = self.goal.against == ()
        return self.measured <= self.goal.value if most else self.measured >= self.goal.value

    @property
    def clear(self) -> bool:
        return not self.low < self.goal.value < self.high


def evaluate(rows: Iterable[Mapping[str, Any]], goals: Sequence[Goal] = GOALS) -> list[Verdict]:
    """The verdict of every goal that these rows speak of."""
    by_id = {row["id"]: row for row in rows}
    found: list[Verdict] = []
    for goal in goals:
        if isinstance(goal.rows, tuple):
            found += _together([by_id[name] for name in goal.rows if name in by_id], goal)
            continue
        mine = [v for name, row in by_id.items() if fnmatch(name, goal.rows) and (v := _of_row(row, goal))]
        found += mine if not goal.over else _over(mine, goal)
    return found


def _pair(row: Mapping[str, Any], goal: Goal) -> tuple[Any, Any] | None:
    """convkit's pick and the best of those that the goal is against, where both were timed."""
    field = sorted(filter(figures.correct, row["contenders"]), key=lambda c: median(figures.rounds_of(c)))
    own = next((c for c in field if c["name"] == (row["ranking"] or {}).get("own")), None)
    rivals = [c for c in field if c["library"] != figures.OWN and goal.against in (None, ())]
    rivals += [c for c in field if goal.against and c["library"] in goal.against]
    if own is None or not (rivals or goal.against == ()):
        return None
    return own, rivals[0] if rivals else None


def _of_row(row: Mapping[str, Any], goal: Goal) -> Verdict | None:
    pair = _pair(row, goal)
    if pair is None:
        return None
    own, rival = pair
    if goal.against == ():
        values = figures.rounds_of(own)
        return Verdict(goal, row["id"], median(values), *stats.interval(values))
    ratio = stats.ratio_of(figures.rounds_of(rival), figures.rounds_of(own))
    return Verdict(goal, f"{row['id']}: {rival['name']}", ratio.middle, ratio.low, ratio.high)


def _together(rows: list[Mapping[str, Any]], goal: Goal) -> list[Verdict]:
    """Of the sums over all rows; nothing unless each of them was measured."""
    pairs = [_pair(row, goal) for row in rows]
    if len(rows) < len(goal.rows) or not all(pairs):
        return []
    mine = [figures.rounds_of(pair[0]) for pair in pairs if pair]
    theirs = [figures.rounds_of(pair[1]) for pair in pairs if pair]
    ratio = stats.ratio_of([sum(r) for r in zip(*theirs)], [sum(r) for r in zip(*mine)])
    return [Verdict(goal, f"{len(rows)} rows", ratio.middle, ratio.low, ratio.high)]


def _over(verdicts: list[Verdict], goal: Goal) -> list[Verdict]:
    """One verdict of many rows."""
    if not verdicts:
        return []
    if goal.over == "least":
        worst = min(verdicts, key=lambda v: v.measured)
        return [
            Verdict(goal, f"least of {len(verdicts)}: {worst.what}", worst.measured, worst.low, worst.high)
        ]
    ratios = [v.measured for v in verdicts]
    return [Verdict(goal, f"median of {len(ratios)}", median(ratios), *stats.interval(ratios))]


def table(verdicts: Sequence[Verdict]) -> str:
    """A line for each."""
    from tabulate import tabulate

    lines = [
        (
            v.goal.name, f"{v.measured:.2f}", f"{v.low:.2f}-{v.high:.2f}",
            f"{'<=' if v.goal.against == () else '>='} {v.goal.value:g}",
            ("reached" if v.reached else "missed") + ("" if v.clear else ", within the interval"), v.what,
        )
        for v in verdicts
    ]  # fmt: skip
    headers = ("goal", "measured", "95 %", "wanted", "verdict", "of")
    return tabulate(lines, headers, tablefmt="simple", disable_numparse=True)


# ---------------------------------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------------------------------
def measure(folder: Path, quick: bool) -> list[Path]:
    """Run `convkit bench` for all of it; what is in the folder already is gone on with."""
    found = []
    for name, (full, small) in RUNS.items():
        arguments = small if quick else full
        if arguments is None:
            continue
        path = folder / f"{name}.json"
        more = ["--quick"] if quick else []
        command = [sys.executable, "-m", "convkit", "bench", "--device", "cpu", *arguments, *more]
        print(f"\n== convkit bench {' '.join(arguments)}", flush=True)
        done = subprocess.run([*command, "--summary", "--json", str(path), "--resume"])
        if done.returncode == 130:
            break
        found += [path] if path.exists() else []
    return found


def main(argv: list[str] | None = None) -> int:
    """Measure, or read, and judge; returns the exit status."""
    p = argparse.ArgumentParser(
        "goals.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("files", nargs="*", type=Path, metavar="FILE", help="result files; by default it measures")
    p.add_argument("--quick", action="store_true", help="small batches and few rounds")
    p.add_argument("--folder", type=Path, help="where the result files are kept (default: nowhere)")
    args = p.parse_args(argv)
    if args.folder is not None and not args.folder.is_dir():
        p.error(f"there is no folder {args.folder}")
    with tempfile.TemporaryDirectory() as scratch:
        paths = args.files or measure(args.folder or Path(scratch), args.quick)
        try:
            rows = [row for path in paths for row in files.load(path)["rows"]]
        except ConvkitError as error:
            p.error(str(error))
    verdicts = evaluate(rows)
    print(f"\n{table(verdicts)}" if verdicts else "\nno goal speaks of these rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
