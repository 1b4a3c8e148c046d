"""How `bench/cpu.py` measures: interleaved contenders, probes, ratios with their intervals, and the goals.

One row is one piece of work that several contenders do. They take turns, in a random order, round after
round, with a pause before each turn, so that a change of the machine's speed meets all of them, and so that
threads which spin for a while after their work (OpenMP's, ONNX Runtime's) are asleep before the next one
starts. Two probes, of arithmetic and of memory, take turns like contenders: they say what the machine could
do just then; and the kernel's counters say how busy other processes, or other guests, kept its CPUs.
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from statistics import median
from typing import Any

import numpy as np

from convkit.bench import clocks
from convkit.bench.conditions import Others
from convkit.bench.stats import interval, ratio_of
from convkit.cpu import probe

#: Calls longer than this are not repeated within a turn, nor preceded by an untimed one.
LONG_CALL = 0.3
#: The two layouts of PyTorch; its better one counts.
PYTORCH = ("torch", "torch-channels-last")
#: convkit's figures, best first: the calls of a plan, then the public op on NumPy arrays.
OWN = ("convkit", "convkit-op")
FMA, COPY, OTHERS = "fma probe", "copy probe", "others"


# ---------------------------------------------------------------------------------------------------
# Rows
# ---------------------------------------------------------------------------------------------------
@dataclass
class Entry:
    """What one contender does in a row.

    Attributes
    ----------
    name : str
    run : callable
        The work; called many times.
    error : callable, optional
        Runs it, and returns the relative RMS error of what came out; called once, before the timing.
    limit : float
        The largest error that is timed; NaN never is.
    """

    name: str
    run: Callable[[], Any]
    error: Callable[[], float] | None = None
    limit: float = 1e-3


@dataclass
class Row:
    """One piece of work and what it took, per contender.

    Attributes
    ----------
    name : str
        "section/what/N=batch/direction".
    samples : dict of str to list of list of float
        By contender: round by round, every timed call, in `unit`.
    probes : dict of str to list of float
        GFLOP/s, GB/s, and the share of the CPUs that others took, one for each round.
    errors : dict of str to float
        Relative RMS error of each contender that was checked.
    refused : dict of str to str
        Contenders that were not timed, and why.
    """

    name: str
    unit: str = "ms"
    flops: int = 0
    samples: dict[str, list[list[float]]] = field(default_factory=dict)
    probes: dict[str, list[float]] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def rounds(self, contender: str) -> list[float]:
        """One figure for each round: the median of the round's calls."""
        return [median(calls) for calls in self.samples.get(contender, ()) if calls]

    def middle(self, contender: str) -> float:
        """The median of the rounds; NaN where the contender was not timed."""
        values = self.rounds(contender)
        return median(values) if values else math.nan

    def quartiles(self, contender: str) -> tuple[float, float]:
        """Lower and upper quartile of the rounds."""
        values = self.rounds(contender)
        return (float(np.quantile(values, 0.25)), float(np.quantile(values, 0.75)))

    @property
    def own(self) -> str | None:
        """Which of convkit's figures stands for it: the planned calls where there are any."""
        return next((name for name in OWN if self.samples.get(name)), None)

    def best(self, among: Iterable[str] | None = None) -> str | None:
        """The contender with the smallest median, of those named; by default of all but convkit's."""
        names = [n for n in self.samples if n not in OWN] if among is None else list(among)
        timed = [name for name in names if self.samples.get(name)]
        return min(timed, key=self.middle, default=None)

    def as_dict(self) -> dict[str, Any]:
        summary = {
            name: {"median": self.middle(name), "quartiles": self.quartiles(name)} for name in self.samples
        }
        best = self.best()
        ratio = None
        if self.own and best:
            ratio = {"peer": best, **ratio_of(self.rounds(best), self.rounds(self.own)).as_dict()}
        return {
            "name": self.name, "unit": self.unit, "flops": self.flops, "summary": summary, "ratio": ratio,
            "errors": self.errors, "refused": self.refused, "notes": self.notes, "probes": self.probes,
            "samples": self.samples,
        }  # fmt: skip


# ---------------------------------------------------------------------------------------------------
# Goals
# ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Goal:
    """What a row must show.

    Attributes
    ----------
    rows : str
        Name of the row, or a pattern; with `over`, one verdict for all that fit, else one for each.
    value : float
    against : tuple of str, optional
        The best of these contenders must take at least `value` times as long as convkit does; by default
        the best of all. Empty: convkit's own figure must be at most `value`.
    over : {"", "median", "minimum"}
    """

    rows: str
    value: float
    against: tuple[str, ...] | None = PYTORCH
    over: str = ""


GOALS: tuple[Goal, ...] = (
    Goal("step/paper/N=1", 3.5),
    Goal("step/paper/N=16", 3.5),
    Goal("step/paper/N=128", 7),
    Goal("step/owt/N=16", 2.5),
    Goal("forward/paper/N=1", 1.3, ("onnxruntime",)),
    Goal("forward/paper/N=16", 3.5, ("onnxruntime",)),
    Goal("forward/paper/N=128", 8, ("onnxruntime",)),
    *(
        Goal(f"layers/conv{i}/N=16/{direction}", 3 if (i, direction) == (1, "fwd") else 2, None)
        for i in range(1, 6)
        for direction in ("fwd", "dgrad", "wgrad")
    ),
    Goal("blocks/norm1+pool1/N=16/both", 15, None),
    Goal("blocks/norm2+pool2/N=16/both", 15, None),
    Goal("blocks/fc6-8/N=16/step", 2.5, None),
    Goal("geometries/*", 1.0, over="median"),
    Goal("geometries/*", 0.6, over="minimum"),
    Goal("memory/paper/N=128", 1.6, ()),
    Goal("memory/paper/N=128", 1.0),
    Goal("first/*", 50, ()),
)


@dataclass(frozen=True)
class Verdict:
    """A goal beside what was measured: "reached", "missed", or "not measured".

    `clear` is False where the goal lies inside the interval: another run may say otherwise.
    """

    goal: Goal
    row: str
    what: str
    measured: float = math.nan
    low: float = math.nan
    high: float = math.nan
    verdict: str = "not measured"
    clear: bool = True

    def as_dict(self) -> dict[str, Any]:
        found = {k: v for k, v in vars(self).items() if k != "goal"}
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in found.items()}
        return {**finite, "goal": self.goal.value, "over": self.goal.over}


def evaluate(rows: Sequence[Row], goals: Sequence[Goal] = GOALS) -> list[Verdict]:
    """Every goal beside the rows that it speaks of."""
    verdicts = []
    for goal in goals:
        fitting = [row for row in rows if fnmatch(row.name, goal.rows)]
        found = [v for row in fitting if (v := _measured(row, goal)) is not None]
        if not found:
            verdicts.append(Verdict(goal, goal.rows, _what(goal)))
        elif goal.over:
            ratios = [v.measured for v in found]
            if goal.over == "median":
                middle, (low, high) = median(ratios), interval(ratios)
            else:
                worst = min(found, key=lambda v: v.measured)
                middle, low, high = worst.measured, worst.low, worst.high
                fitting = [row for row in fitting if row.name == worst.row]
            name = f"{goal.rows} ({goal.over} of {len(found)})"
            if goal.over == "minimum":
                name += f": {fitting[0].name.partition('/')[2]}"
            verdicts.append(_verdict(goal, name, _what(goal), middle, low, high))
        else:
            verdicts += found
    return verdicts


def _what(goal: Goal) -> str:
    if goal.against == ():
        return "at most"
    if goal.against is None:
        return "x the best peer"
    return "x PyTorch" if goal.against == PYTORCH else f"x {LABELS[goal.against[0]]}"


def _measured(row: Row, goal: Goal) -> Verdict | None:
    own = row.own
    if own is None:
        return None
    if goal.against == ():
        values = row.rounds(own)
        return _verdict(goal, row.name, f"{row.unit}, at most", median(values), *interval(values))
    best = row.best(goal.against)
    if best is None:
        return None
    ratio = ratio_of(row.rounds(best), row.rounds(own))
    what = f"x {LABELS.get(best, best)}" + ("" if own == OWN[0] else ", by the op")
    return _verdict(goal, row.name, what, ratio.middle, ratio.low, ratio.high)


def _verdict(goal: Goal, row: str, what: str, middle: float, low: float, high: float) -> Verdict:
    reached = middle <= goal.value if goal.against == () else middle >= goal.value
    clear = not low < goal.value < high
    return Verdict(goal, row, what, middle, low, high, "reached" if reached else "missed", clear)


#: How contenders are called in tables and pictures.
LABELS = {
    "convkit": "convkit",
    "convkit-op": "convkit, one op",
    "torch": "PyTorch NCHW",
    "torch-channels-last": "PyTorch channels_last",
    "torch-compile": "torch.compile",
    "onnxruntime": "ONNX Runtime",
    "jax": "JAX",
}


# ---------------------------------------------------------------------------------------------------
# Taking turns
# ---------------------------------------------------------------------------------------------------
@dataclass
class Settings:
    """How long and how often.

    Attributes
    ----------
    rounds : int
        Turns of each contender in a row.
    budget : float
        Seconds for one contender's timed calls in one row: a slow one gets fewer rounds (at least 1).
    pause : float
        Seconds of rest before each turn.
    turn : float
        Seconds that a turn of a short call is filled with.
    threads : int
    """

    rounds: int = 9
    budget: float = 40.0
    pause: float = 0.05
    turn: float = 0.1
    threads: int = 1
    probe_seconds: float = 0.03
    probe_megabytes: float = 128.0
    progress: Callable[[str], None] = lambda text: None
    order: random.Random = field(default_factory=lambda: random.Random(0))


def measure(row: Row, entries: Sequence[Entry], settings: Settings) -> Row:
    """Check each contender, then let the right ones take turns. Samples go into the row as they come.

    A Ctrl-C leaves the row with the rounds that were complete for convkit's sake: ratios pair rounds.
    """
    entries = [entry for entry in entries if _is_right(row, entry, settings)]
    if not entries:
        return row
    plans: dict[str, int] = {}
    slow: dict[str, bool] = {}
    for entry in entries:
        settings.progress(f"{row.name}: {LABELS.get(entry.name, entry.name)}, warming up")
        _timed(entry.run)  # the first call allocates, compiles, packs; the second one says how long it takes
        seconds = _timed(entry.run)
        slow[entry.name] = seconds > LONG_CALL
        plans[entry.name] = max(1, min(settings.rounds, int(settings.budget / max(seconds, 1e-9))))
        row.samples[entry.name] = []
    # A pair needs both: convkit is timed in every round in which a peer is.
    peers = [count for name, count in plans.items() if name not in OWN]
    last = max(peers) if peers else max(plans.values())
    for name in OWN:
        if name in plans and peers:
            plans[name] = last
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for number in range(last):
            turns: list[Entry | str] = [entry for entry in entries if plans[entry.name] > number]
            turns += [FMA, COPY]
            settings.order.shuffle(turns)
            settings.progress(f"{row.name}: round {number + 1} of {last}")
            others = Others()
            for turn in turns:
                time.sleep(settings.pause)
                if isinstance(turn, str):
                    row.probes.setdefault(turn, []).append(_probe(turn, settings))
                else:
                    row.samples[turn.name].append(_turn(turn.run, slow[turn.name], settings.turn))
            row.probes.setdefault(OTHERS, []).append(others.share())
            gc.collect()
    finally:
        if was_enabled:
            gc.enable()
    return row


def _is_right(row: Row, entry: Entry, settings: Settings) -> bool:
    if entry.error is None:
        return True
    settings.progress(f"{row.name}: {LABELS.get(entry.name, entry.name)}, checking")
    try:
        error = float(entry.error())
    except Exception as problem:  # one contender that cannot do it must not end the others' race
        text = f"{type(problem).__name__}: {problem}".splitlines()
        row.refused[entry.name] = text[0][:200] if text else type(problem).__name__
        return False
    row.errors[entry.name] = error
    if not error <= entry.limit:
        row.refused[entry.name] = f"wrong: relative RMS error {error:.1e}, more than {entry.limit:g}"
        return False
    return True


def _turn(run: Callable[[], Any], slow: bool, seconds: float) -> list[float]:
    """Milliseconds of the calls of one turn."""
    if slow:
        return [_timed(run) * 1e3]
    run()  # threads awake, caches as they are in a loop
    found: list[float] = []
    end = time.perf_counter() + seconds
    while len(found) < 3 or (len(found) < 50 and time.perf_counter() < end):
        found.append(_timed(run) * 1e3)
    return found


def _timed(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    result = run()
    seconds = time.perf_counter() - start
    del result  # freeing what was returned is not part of the call
    return seconds


def _probe(name: str, settings: Settings) -> float:
    if name == FMA:
        return probe.peak_gflops(settings.threads, settings.probe_seconds).gflops
    return probe.copy_gbs(settings.threads, settings.probe_megabytes, settings.probe_seconds).gbs


# ---------------------------------------------------------------------------------------------------
# Memory ceilings besides copying, and cold caches
# ---------------------------------------------------------------------------------------------------
def memory_rates(threads: int) -> dict[str, float]:
    """GB/s of reading, and of changing in place, by NumPy on several threads: the best of three."""
    return {name: max(rates) for name, rates in clocks.memory_rates(threads).items()}


class Flush:
    """Reads more than the caches hold, so that a call finds its data in DRAM and no dirty lines to write."""

    def __init__(self, megabytes: float = 160) -> None:
        self._data = np.ones(int(megabytes * 1e6 / 4), np.float32)

    def __call__(self) -> None:
        self._data.max()
