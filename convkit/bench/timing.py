"""The timing core: contenders take turns under one clock, on fresh inputs, with caches as they are asked for.

`race` measures one item. Each round, every contender has one turn, in a random order, after a pause; a turn
is a few calls, each on new inputs, into outputs full of NaN, with cold caches unless `Settings.cache` says
"warm". Probes of arithmetic and of memory take turns like contenders. What keeps a contender honest is in
`trial`.
"""

from __future__ import annotations

import contextlib
import gc
import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import OptionError, unknown
from ..registry import Implementation, preserved
from . import clocks, conditions, stats

if TYPE_CHECKING:
    from .trial import Trial

Arrays = dict[str, Any]
CACHES = ("cold", "warm")
#: The library of convkit's own contenders, and of users'; and the mark of the one that is chosen.
OWN, PICKED = "convkit", "picked"
#: The mark of a contender that waits for a GPU inside its call: its times are no times of the device alone.
HOST_INCLUDED = "host included"
#: Calls of a turn, at most.
MOST_CALLS = 50
#: How often ceilings are measured again before a contender that beats them is refused.
AGAIN = 3
_sleep = time.sleep


@dataclass
class Contender:
    """One way to do an item's work.

    Attributes
    ----------
    name : str
        "winograd", "torch", "cudnn:graph:eng37{k2=1}"; unique within an item.
    library : str
        "convkit", "PyTorch", "ONNX Runtime", "JAX", "cuDNN".
    bind : callable
        ``bind(inputs, outputs) -> run``. `inputs` and `outputs` are NCHW arrays on the item's device by
        name, the inputs read-only; an optional input may be None. ``run()`` does the work, and nothing else:
        what needs another layout is copied by `bind`. Called anew, with the same memory, whenever the inputs
        have new values: before each timed call for convkit's own, once a turn for other libraries. So it
        should keep what is expensive and does not depend on the values (a compiled function, a session, a
        plan).
    read : callable, optional
        The outputs of the last run as NCHW NumPy arrays by name. None: they are in the `outputs` that were
        bound.
    layout : str
    facts : dict
        Engine, algorithm, "workspace_bytes", "algorithm_flops" (fewer than the definition's), declared
        determinism, rank among the heuristic's, ...
    marks : tuple of str
        "picked", "tuned", "heuristic", "not yet run on a GPU", "unchecked".
    implementation : Implementation, optional
        convkit's own, which the gate judges.
    memory : callable, optional
        The arrays that the run which was bound last writes to, by any names, where those are not the
        `outputs`: they are filled with NaN before a call, and looked at as soon as it returns. None:
        unknown, or `outputs`.
    trespass : callable, optional
        Where it has memory of its own: an input there that is not what was written, and where it was written
        outside its tensors; empty strings where all is well.
    look : callable, optional
        ``look(part) -> arrays``: NCHW copies of a part (`fresh.Part`) of the last run's outputs, and of no
        more, so that little time passes between the end of a call and its copy. None: a part of what `read`
        gives, or of the `outputs`.
    """

    name: str
    library: str
    bind: Callable[[Arrays, Arrays], Callable[[], None]]
    read: Callable[[], Arrays] | None = None
    layout: str = "NCHW"
    facts: dict[str, Any] = field(default_factory=dict)
    marks: tuple[str, ...] = ()
    implementation: Implementation | None = None
    memory: Callable[[], Arrays] | None = None
    trespass: Callable[[], tuple[str, str]] | None = None
    look: Callable[[Any], Arrays] | None = None


@dataclass
class Settings:
    """How long and how often.

    Attributes
    ----------
    rounds : int
        Turns of each contender. With the default and 10 calls in a turn, a difference of 2 % is found under
        noise of 5 % (in four of five runs). Below 6 rounds nothing can be a win or a loss.
    turn_s, pause_s : float
        Seconds that a turn of short calls is filled with, flushes and fresh inputs included, and of rest
        before it.
    budget_s : float
        Seconds for one contender's turns: a slow one gets fewer rounds, at least 1. The one that is marked
        "picked" is in every round that any other is in, since ratios pair rounds.
    cache : {"cold", "warm"}
        Whether caches are evicted before each call. Warm: the inputs were written just before.
    seed : int
        Of the order of turns. Inputs, and which calls are looked at, have no seed: a contender may not know.
    quick : bool
        Only for the record; `quickly` makes settings with fewer rounds (6) and shorter turns.
    confidence : float
        Of the intervals.
    gate : bool
        Put convkit's contenders through the small cases of `convkit.check` first, once in a process. At the
        timed size every contender is compared with float64 in any case.
    """

    rounds: int = 18
    turn_s: float = 0.1
    pause_s: float = 0.02
    budget_s: float = 30.0
    cache: str = "cold"
    seed: int = 0
    quick: bool = False
    confidence: float = 0.95
    gate: bool = True

    @classmethod
    def quickly(cls, **changes: Any) -> Settings:
        """Those of `--quick`."""
        return cls(**{"rounds": stats.LEAST, "turn_s": 0.03, "budget_s": 3.0, "quick": True, **changes})


@dataclass
class Checks:
    """What was found out about one contender: each "passed", a reason, "unchecked", or "" (not got that far).

    `error` is its relative RMS error against float64 at the timed size; `deterministic`, measured, is
    whether the same inputs gave the same bits; `looks` counts the timed calls that were looked at.
    """

    before: str = ""
    during: str = ""
    after: str = ""
    error: float | None = None
    deterministic: bool | None = None
    looks: int = 0

    def as_dict(self) -> dict[str, str]:
        """The "checks" of a capsule."""
        return {n: getattr(self, n) or "unchecked" for n in ("before", "during", "after")}


@dataclass
class Result:
    """What a race gave.

    Attributes
    ----------
    samples : dict of str to list of list of float
        By contender: round by round, the milliseconds of each call. Of those that were refused: none.
    refused : dict of str to str
        By contender: why it was not timed, or why its samples are not worth anything.
    checks : dict of str to Checks
    conditions : list of dict
        Of each round: "t" (seconds since the start), "row" (the item's id), what `conditions.sample` says,
        "others".
    probes : dict of str to list of float
        The ceilings, by name ("fma" in GFLOP/s, "copy" in GB/s), round by round; and behind them what was
        measured again where a contender seemed to beat them.
    host_us : dict of str to float
        On a GPU, by contender: microseconds that the host needed to queue a call, the median of all.
    host_included : set of str
        On a GPU, contenders of which a call could not be queued as a whole: those that wait for the device.
    cache : str
    interrupted : bool
        A Ctrl-C ended it; complete rounds are kept.
    """

    item: Any
    samples: dict[str, list[list[float]]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    checks: dict[str, Checks] = field(default_factory=dict)
    conditions: list[dict[str, Any]] = field(default_factory=list)
    probes: dict[str, list[float]] = field(default_factory=dict)
    host_us: dict[str, float] = field(default_factory=dict)
    host_included: set[str] = field(default_factory=set)
    cache: str = "cold"
    interrupted: bool = False

    def note_host(self, name: str, host_us: Sequence[float], included: bool) -> None:
        """Note what the host needed for a contender's calls; nothing on a CPU."""
        if host_us:
            self.host_us[name] = stats.median(host_us)
        if included:
            self.host_included.add(name)

    def rounds(self, name: str) -> list[float]:
        """One figure for each round of a contender: the median of its calls, in ms."""
        return [stats.median(calls) for calls in self.samples.get(name, ()) if calls]

    def ratio(self, peer: str, own: str, confidence: float = stats.CONFIDENCE) -> stats.Ratio:
        """How many times longer `peer` takes than `own`, paired by round."""
        return stats.ratio_of(self.rounds(peer), self.rounds(own), confidence)


class Clock(Protocol):
    """Times calls on one device; see `clocks.CudaClock` for what one of a GPU has besides.

    Attributes
    ----------
    name, device : str
    slack_ms : float
        By how much the wall clock may exceed a sample for good reasons (launches, synchronisation).
    """

    name: str
    device: str
    slack_ms: float

    def cold(self) -> None:
        """Evict caches."""

    def time(self, run: Callable[[], Any]) -> float:
        """Milliseconds of one call, all that it started included."""

    def synchronize(self) -> None:
        """Wait for the whole device."""

    def probe(self) -> dict[str, float]:
        """What the device can do just now: "fma" in GFLOP/s, "copy" in GB/s; some 50 ms."""

    def ceilings(self) -> dict[str, dict[str, Any]]:
        """The "ceilings" of a capsule, with more care: {name: {"unit", "value", "samples", ...}}."""


def clock_for(device: str, threads: int | None = None) -> Clock:
    """The clock of a device.

    Parameters
    ----------
    device : {"cpu", "cuda", "cuda:1", ...}
        "cuda" is CuPy's current one.
    threads : int, optional
        On a CPU, threads of the probes and of the flush.
    """
    if device == "cpu":
        return clocks.CpuClock(threads)
    if re.fullmatch(r"cuda(:[0-9]{1,4})?", device):
        number = device.partition(":")[2]
        return clocks.CudaClock(int(number) if number else None)
    raise unknown("device", device, ("cpu", "cuda"))


# ---------------------------------------------------------------------------------------------------
# The race
# ---------------------------------------------------------------------------------------------------
@preserved()
def race(
    item: Any,
    contenders: Sequence[Contender],
    clock: Clock,
    settings: Settings | None = None,
    progress: Callable[[str], None] = lambda text: None,
    ceilings: dict[str, dict[str, Any]] | None = None,
) -> Result:
    """Check each contender, let the right ones take turns, check them again.

    Parameters
    ----------
    item : work.Item
    contenders : sequence of Contender
    clock : Clock
    settings : Settings, optional
    progress : callable
        Called with a line of text now and then.
    ceilings : dict, optional
        Of `clock.ceilings()`: a contender that beats them is refused. Without them, by the probes' own.

    Returns
    -------
    Result
        A contender that is wrong, that fails, or that was caught at something is in `refused` with the
        reason, and has no samples. Only KeyboardInterrupt ends a race early, and then the complete rounds
        are in it.

    Raises
    ------
    OptionError
        If two contenders have the same name.
    OutOfMemory
        If there is no memory for the item itself.
    """
    with on_its_device(clock):
        return _race(item, contenders, clock, settings or Settings(), progress, ceilings or {})


def on_its_device(clock: Clock) -> contextlib.AbstractContextManager[Any]:
    """A block in which a clock's GPU is the current one."""
    here: Callable[[], contextlib.AbstractContextManager[Any]] = getattr(
        clock, "here", contextlib.nullcontext
    )
    return here()


def _race(
    item: Any,
    contenders: Sequence[Contender],
    clock: Clock,
    settings: Settings,
    progress: Callable[[str], None],
    ceilings: dict[str, dict[str, Any]],
) -> Result:
    from . import trial as trials_of
    from .fresh import Memory

    if settings.cache not in CACHES:
        raise unknown("cache", settings.cache, CACHES)
    names = [contender.name for contender in contenders]
    if len(set(names)) < len(names):
        raise OptionError(f"two contenders of {item.id} have the same name: {', '.join(sorted(names))}")
    result = Result(item, cache=settings.cache)
    memory = Memory(item, clock.device)
    trials = [trials_of.Trial(item, contender, memory, clock, settings) for contender in contenders]
    result.checks = {trial.name: trial.checks for trial in trials}
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        _check_before(trials, memory, settings, progress)
        Rounds(result, trials, memory, settings, progress).run()
        for one in (trial for trial in trials if not trial.refused):
            try:
                one.wall()
            except trials_of.Caught as caught:
                trials_of.refuse(one, "during", caught)
        progress(f"{item.id}: checking again")
        trials_of.check_whole([trial for trial in trials if not trial.refused], memory, "after")
    except KeyboardInterrupt:
        result.interrupted = True
    finally:
        if was_enabled:
            gc.enable()
    refuse_impossible(result, trials, ceilings)
    for trial in trials:
        result.note_host(trial.name, trial.host_us, trial.host_included)
        if trial.refused:
            result.refused[trial.name] = trial.refused
            result.samples.pop(trial.name, None)
    return result


def _check_before(
    trials: Sequence[Trial], memory: Any, settings: Settings, progress: Callable[[str], None]
) -> None:
    from .trial import blame, check_gate, check_whole

    blame(trials)
    for trial in trials:
        if settings.gate and trial.own and not trial.refused:
            progress(f"{memory.item.id}: {trial.name}, the gate")
            check_gate(trial)
    progress(f"{memory.item.id}: comparing with float64")
    check_whole([trial for trial in trials if not trial.refused], memory, "before")


class Rounds:
    """The rounds of a race: who has a turn when, and what came of it."""

    def __init__(
        self,
        result: Result,
        trials: Sequence[Trial],
        memory: Any,
        settings: Settings,
        progress: Callable[[str], None],
    ) -> None:
        self.result, self.memory, self.settings, self.progress = result, memory, settings, progress
        self.trials = [trial for trial in trials if not trial.refused]
        self.calls: dict[str, int] = {}
        self.plan: dict[str, int] = {}

    def run(self) -> None:
        """Run them all; after a KeyboardInterrupt, the complete ones are in the result."""
        settings, order = self.settings, random.Random(self.settings.seed)
        self._plan()
        self.trials = [trial for trial in self.trials if not trial.refused]
        if not self.trials:
            return
        clock, begin = self.trials[0].clock, clocks.independent()
        for number in range(max(self.plan.values())):
            turns: list[Trial | None] = [
                t for t in self.trials if self.plan[t.name] > number and not t.refused
            ]
            if not turns:
                return
            turns.append(None)  # the probes have a turn too
            order.shuffle(turns)
            self.progress(f"{self.result.item.id}: round {number + 1} of {max(self.plan.values())}")
            self.memory.draw()
            found: dict[str, list[float]] = {}
            probes: dict[str, float] = {}
            others = conditions.Others()
            for trial in turns:
                _sleep(settings.pause_s)
                if trial is None:
                    probes = clock.probe()
                elif samples := self._turn(trial, number):
                    found[trial.name] = samples
            # Only now: a round that is cut short leaves nothing.
            for name, samples in found.items():
                self.result.samples.setdefault(name, []).append(samples)
            for name, value in probes.items():
                self.result.probes.setdefault(name, []).append(value)
            state = {"t": round(clocks.independent() - begin, 3), "row": self.result.item.id}
            share = others.share()
            state |= conditions.sample(clock.device)
            self.result.conditions.append({**state, "others": share if share == share else None})
            gc.collect(0)  # all that is new

    def _turn(self, trial: Trial, number: int) -> list[float]:
        from .trial import refuse

        try:
            samples = trial.turn(self.calls[trial.name], f"round {number + 1}")
        except Exception as error:  # one that fails must not end the others' race
            refuse(trial, "during", error)
            self.memory.restore()
            return []
        trial.checks.during = "passed" if trial.checks.looks else ""
        return samples

    def _plan(self) -> None:
        """Calls of a turn, and rounds, for each contender, from one call of it."""
        from .trial import LONG_CALL, refuse

        settings = self.settings
        self.memory.draw()
        for trial in self.trials:
            self.progress(f"{self.result.item.id}: {trial.name}, warming up")
            try:
                ms, cost = min(trial.estimate() for _ in range(2))
            except Exception as error:
                refuse(trial, "during", error)
                continue
            fitting = int(settings.turn_s * 1e3 / max(cost, 1e-3))
            self.calls[trial.name] = calls = 1 if ms > LONG_CALL else max(3, min(MOST_CALLS, fitting))
            rounds = int(settings.budget_s * 1e3 / max(calls * cost, 1e-3))
            # convkit's pick is in every round that a peer is in: ratios pair rounds.
            every = PICKED in trial.contender.marks
            self.plan[trial.name] = settings.rounds if every else max(1, min(settings.rounds, rounds))
        if peers := [count for name, count in self.plan.items() if not self._every(name)]:
            self.plan = {name: min(count, max(peers)) for name, count in self.plan.items()}

    def _every(self, name: str) -> bool:
        return any(t.name == name and PICKED in t.contender.marks for t in self.trials)


def refuse_impossible(result: Result, trials: Sequence[Trial], ceilings: dict[str, dict[str, Any]]) -> None:
    """Refuse whoever was faster than the machine can be.

    A ceiling may have been measured while the machine was busy with something else: before anybody is
    refused, it is measured again, and what is found is kept with the probes.
    """
    from .trial import above_ceiling

    def suspects() -> dict[str, str]:
        highest = {name: max(values) for name, values in result.probes.items()}
        for name, entry in ceilings.items():
            highest[name] = max(highest.get(name, 0.0), entry["value"])
        found = {}
        for trial in trials:
            rounds = result.rounds(trial.name)
            if rounds and not trial.refused:
                ms, facts = stats.median(rounds), trial.contender.facts
                if reason := above_ceiling(result.item, facts, ms, highest, result.cache):
                    found[trial.name] = reason
        return found

    for _ in range(0 if result.interrupted else AGAIN):
        if not suspects():
            return
        for name, entry in trials[0].clock.ceilings().items():
            result.probes.setdefault(name, []).append(entry["value"])
    found = suspects()
    for trial in trials:
        trial.refused = trial.refused or found.get(trial.name, "")
