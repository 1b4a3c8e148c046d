"""One contender's honesty: what is done so that only the work that was asked for is timed.

====================  ===================================================================================
defence               what it stops
====================  ===================================================================================
gate                  wrong results in small and awkward cases: `convkit.check`, once per implementation
before, after         wrong results at the timed size, of every element; other bits for the same inputs
poison                work that is skipped, or done in part: outputs are full of NaN before each call
fresh                 results that are kept, or moved by some elements: no two calls of convkit's own have the
                      same inputs, nor any that are a shifted copy of others (but labels, probabilities and
                      positions in windows, which are moved by whole rows)
looks                 being right only while it is checked: a call of each turn, nobody knows which, is
                      compared with float64, in a part of its outputs that nobody knows; that part is copied
                      as soon as the call returns, so work that ends later comes too late, whenever it ends
glance                returning before the work is done: outputs are read at once, and again later
inputs                changing the inputs, for the next one or for oneself
bands                 writing outside the outputs
declared              raising the error that one declares, once one runs
timers                replacing Python's timers, or this module's clock; hooks of Python that go on with the
                      work when the clock has stopped
wall                  a clock that is fooled: the system's own must agree, call by call, and turn by turn
device                on a GPU: events that were replaced, lines of L2 that survive the flush
held                  on a GPU: work on another stream that is over before the one that is timed goes on
ceilings              figures that beat what the machine was measured to do
====================  ===================================================================================

For each there is something in tests/cheats that it catches, alone; with those that catch it switched off,
that gets through (tests/test_bench_core.py). Problems and implementations are copied for each contender, so
that who changes them does so for nobody else; nor does it last until the next race. Other libraries are
compared in the same way, but their own copies of the inputs are renewed once a turn only. What none of this
stops is code that rewrites this module while it runs, or has the system tell it when its outputs are read:
a contender is in the same process. Who does not trust its source at all must read it.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import median
from typing import Any

import numpy as np

from ..check import check_these
from ..check.tolerance import Expected, compare, relative_rms
from ..errors import OptionError
from ..op import Tensors
from ..registry import Implementation
from . import clocks, fresh
from .ceilings import TOLERANCE, holding
from .clocks import independent
from .fresh import Memory, Part
from .timing import Arrays, Checks, Clock, Contender, Settings

#: Names of the defences that are switched off; for the tests of the defences.
_off: frozenset[str] = frozenset()
#: Relative RMS error up to which another library does the same work, by dtype or, for float32, by arithmetic.
PEER_ERROR = {
    "float64": 1e-10, "fp32": 5e-5, "fp32-emulated": 5e-5, "tf32": 3e-3, "float16": 5e-3, "bfloat16": 4e-2,
}  # fmt: skip
#: Elements that a glance reads.
GLANCE = 64
#: Windows of each output, and elements of each, that are watched while a stream is held back.
WINDOWS, WINDOW = 4, 16
#: A call that takes longer (ms) is not repeated within a turn, nor preceded by an untimed one.
LONG_CALL = 300.0
#: A call on a GPU that is shorter (ms) is as short as its launch: warm ones are timed in a graph of so many.
SHORT_CALL, GRAPH = 0.05, 20
#: Seconds that looking at one call may take, as a multiple of a turn: what costs more is looked at less
#: often.
LOOK = 5.0
_sleep, _ns = time.sleep, time.perf_counter_ns


def on(defence: str) -> bool:
    return defence not in _off


class Caught(Exception):
    """A contender that is wrong, or that cheats; the message is the reason."""


@dataclass
class Look:
    """What was seen after a timed call: a part of the outputs, and what they were made of."""

    part: Part
    values: Tensors
    got: Arrays
    glance: bytes
    where: str


class Trial:
    """One contender on an item's memory.

    Attributes
    ----------
    name : str
    own : bool
        It is an implementation of convkit's, or of a user: nothing is taken on trust.
    checks : Checks
    refused : str
        Why it is out; empty while it is in.
    """

    def __init__(
        self, item: Any, contender: Contender, memory: Memory, clock: Clock, settings: Settings
    ) -> None:
        self.item, self.contender, self.memory = item, contender, memory
        self.clock, self.settings = clock, settings
        self.name, self.own = contender.name, contender.implementation is not None
        # As it is before it first runs: what it declares then, it is held to.
        self._declared = contender.implementation and replace(contender.implementation)
        self._hooks = clocks.hooks()
        self.checks, self.refused = Checks(), ""
        self._run: Any = None
        self._graph = False
        self._random = random.SystemRandom()  # no seed that a contender could know
        self._places: dict[str, np.ndarray] = {}
        self._seen: set[bytes] = set()
        self._look_seconds = 0.0
        # Over all turns: what the calls took, by how much the system's clock exceeds that, and turns by two
        # clocks: what they took at least and at most by the system's, and what by Python's.
        self._times: list[float] = []
        self._gaps: list[float] = []
        # On a GPU: what the host needed for the calls of the turns, and whether one waited for the device.
        self.host_us: list[float] = []
        self.host_included = False
        self._walls = [0.0, 0.0, 0.0]

    # ---- one call ----------------------------------------------------------------------------------
    def renew(self) -> None:
        """New inputs, bound."""
        if on("fresh") or self._run is None:
            self.memory.refresh()
        self.bind()

    def bind(self) -> None:
        self._run = self.contender.bind(dict(self.memory.inputs), dict(self.memory.outputs))

    def written(self) -> Arrays:
        """The arrays that a run writes to, as far as they are known."""
        if self.contender.memory is not None:
            return self.contender.memory()
        return self.memory.outputs if self.contender.read is None else {}

    def outputs(self) -> Arrays:
        """Copies of the outputs of the last run, NCHW, on the host."""
        if self.contender.read is not None:
            return {name: np.array(array) for name, array in self.contender.read().items()}
        return {name: np.array(fresh.host(array)) for name, array in self.memory.outputs.items()}

    def _poison(self) -> None:
        if on("poison"):
            self.memory.poison()
            for array in self.written().values():
                fresh.fill_nan(array)

    def timed(self) -> tuple[float, float]:
        """One call of what is bound: milliseconds, and by how much the system's own clock exceeds them."""
        self._poison()
        if self.settings.cache == "cold":
            self.clock.cold()
        start = independent()
        try:
            if self._graph:
                ms = self.clock.batch(self._run, GRAPH)  # type: ignore[attr-defined]
            else:
                ms = self._time()
        except SystemExit as error:
            raise Caught(f"wanted to end the program ({error!r})") from None
        outer = (independent() - start) * 1e3
        if on("timers") and clocks.hooks() != self._hooks:
            sys.setprofile(self._hooks[0])
            sys.settrace(self._hooks[1])
            raise Caught("set a hook that runs behind it (sys.setprofile, sys.settrace)")
        return ms, getattr(self.clock, "gap_ms", outer - ms)

    def _time(self) -> float:
        """Milliseconds of one call, of the device alone where the clock can tell them apart."""
        if not hasattr(self.clock, "held"):
            return self.clock.time(self._run)
        clock: Any = self.clock
        watch = self._watch() if self.own else None
        if watch and not clock.watches:
            self.contender.facts["not watched"] = "a copy to the host waits for a stream that is held"
        ms = float(clock.time(self._run, hold_back=not self.host_included, again=self._again, look=watch))
        if clock.early and on("held"):
            raise Caught("wrote its outputs while its stream was held back: it works on another stream")
        self.host_included = self.host_included or not clock.held
        return ms

    def _again(self) -> Any:
        """A sample was void: what it was to compute is there already, and must not be there for the next."""
        if self.own:
            self.renew()
        self._poison()
        return self._run

    def _watch(self) -> Callable[[], bytes]:
        """Some windows of what is written to on a GPU, other ones each time, and how to read them."""
        windows = []
        for array in self.written().values():
            if not isinstance(array, np.ndarray) and array.size:
                flat, wide = array.reshape(-1), min(WINDOW, array.size)
                starts = [self._random.randrange(flat.size - wide + 1) for _ in range(WINDOWS - 1)]
                windows += [flat[start : start + wide] for start in (*starts, flat.size - wide)]
        return lambda: b"".join(window.get().tobytes() for window in windows)

    def _glance(self) -> bytes:
        """Some elements of what is written, at once: a few microseconds."""
        found = []
        for name, array in self.written().items():
            if isinstance(array, np.ndarray) and array.size:
                flat = array.reshape(-1)
                if name not in self._places:
                    spread = [self._random.randrange(flat.size) for _ in range(GLANCE - 1)]
                    self._places[name] = np.array([*spread, flat.size - 1])
                found.append(flat[self._places[name]].tobytes())
        return b"".join(found)

    def _copy(self, part: Part) -> tuple[Arrays, Arrays | None]:
        """A part of the outputs as they are now, and all of them where a part cannot be had alone."""
        if self.contender.look is not None:
            return self.contender.look(part), None
        if self.contender.read is not None:
            outputs = self.outputs()
            return part.of(outputs), outputs
        arrays = self.memory.outputs
        return {name: np.array(fresh.host(arrays[name][place])) for name, place in part.outputs.items()}, None

    # ---- a turn ------------------------------------------------------------------------------------
    def estimate(self) -> tuple[float, float]:
        """Milliseconds of a call, and of all that a turn spends on it."""
        start = independent()
        self.renew()
        ms, _ = self.timed()
        if self.settings.cache == "warm" and ms < SHORT_CALL and hasattr(self.clock, "batch"):
            try:
                ms, self._graph = self.clock.batch(self._run, GRAPH), True
                self.contender.facts["timed"] = f"in a CUDA graph of {GRAPH} calls"
            except Exception:  # what synchronises, or allocates, cannot be captured: it is timed call by call
                self.clock.synchronize()
        return ms, (independent() - start) * 1e3

    def turn(self, calls: int, where: str) -> list[float]:
        """Milliseconds of each call of a turn, one of which is looked at.

        Raises
        ------
        Caught
        """
        self.renew()
        if calls > 1:
            self._run()  # threads awake, code in the caches
        chosen = self._random.randrange(calls)
        if self._look_seconds > LOOK * max(self.settings.turn_s, 0.05):
            worth = LOOK * max(self.settings.turn_s, 0.05) / self._look_seconds
            chosen = chosen if self._random.random() < worth else -1
        samples: list[float] = []
        looks: list[Look] = []
        # Both are chosen now: when a call has returned, nothing stands between it and its copy.
        part = fresh.any_part(self.item, self._random)
        self._glance()
        start = _moment()
        for number in range(calls):
            if self.own:
                self.renew()
            ms, gap = self.timed()
            samples.append(ms)
            self._gaps.append(gap)
            if hasattr(self.clock, "host_us"):
                self.host_us.append(self.clock.host_us)
            if number == chosen:
                looks.append(self._look(ms, part, f"{where}, call {number + 1}"))
        self._walls = [sum(pair) for pair in zip(self._walls, _between(start, _moment()))]
        self._times += samples
        self._timers()
        if len(self._gaps) > 8:
            self.wall()
        for look in looks:
            self._judge(look)
        return samples

    def _look(self, ms: float, part: Part, where: str) -> Look:
        """Look at a call that has just returned: outputs that must be final, its inputs, the bands.

        What is to be compared is copied first of all. After the pause it would also be right of one that
        works in the background, for as long as the pause and the comparison of the inputs take.
        """
        begin = independent()
        glance = self._glance()
        got, first = self._copy(part)
        if on("glance"):
            _sleep(min(0.3, max(0.01, 2e-3 * ms)))
            late = self._glance() != glance if first is None else not same(first, self.outputs())
            if late:
                raise Caught(
                    f"its outputs changed after it had returned ({where}): work went on in the background"
                )
        self._memory(where)
        self.checks.looks += 1
        self._look_seconds = max(self._look_seconds, independent() - begin)
        return Look(part, self.memory.values, got, glance, where)

    def _judge(self, look: Look) -> None:
        if on("looks"):
            begin = independent()
            for name, want in look.part.expected(look.values).items():
                if name in look.got and (reason := self.wrong(name, look.got[name], want, look.glance)):
                    raise Caught(f"{reason} ({look.where})")
            self._look_seconds = max(self._look_seconds, independent() - begin)
        self._seen.add(look.glance)

    def _memory(self, where: str) -> None:
        """Tensors as they were written, and bands untouched."""
        name, place = self.memory.changed(), self.memory.trespass()
        if name or place:
            self.memory.restore()
        if self.contender.trespass is not None:
            own_name, own_place = self.contender.trespass()
            name, place = name or own_name, place or own_place
        if name and on("inputs"):
            raise Caught(f"changed its input {name} ({where})")
        if place and on("bands"):
            raise Caught(f"wrote outside its tensors, {place} ({where})")

    def _timers(self) -> None:
        if on("timers") and (name := clocks.replaced()):
            clocks.restore()
            raise Caught(f"replaced {name}")
        tampered = getattr(self.clock, "tampered", None)
        if on("device") and tampered and (what := tampered()):
            raise Caught(what)

    def wall(self) -> None:
        """Whether the clock and the system's own agree, over all calls: a single one is held up by chance."""
        if not on("wall") or not self._times:
            return
        gap, ms = median(self._gaps), median(self._times)
        if gap > self.clock.slack_ms + 0.05 * (ms + gap):
            if self.clock.device == "cuda":
                raise Caught(
                    f"its events say {ms:.3g} ms, but the device was busy for {gap:.3g} ms more: "
                    "it works on another stream, or the events were replaced"
                )
            raise Caught(
                f"the clock says {ms:.3g} ms where the system's own says {ms + gap:.3g} ms: "
                "it was tampered with"
            )
        least, most, python = self._walls
        beyond = max(least - python, python - most)
        if beyond > 20 + 0.02 * most or sum(self._times) > most + 20:
            raise Caught(
                f"the clocks disagree: its turns took {most:.4g} ms by the system's, {python:.4g} ms by "
                f"Python's, and its calls {sum(self._times):.4g} ms"
            )

    # ---- right or wrong ------------------------------------------------------------------------------
    def wrong(self, name: str, got: np.ndarray, want: Expected, glance: bytes = b"") -> str:
        """What is wrong with an output, or an empty string; where it can be told, what the contender did."""
        if got.shape != want.value.shape:
            return f"{name} has shape {got.shape}, not {want.value.shape}"
        reason = self._compare(name, got, want)
        if not reason:
            return ""
        if poison := _poison_in(got):
            return f"did not write {poison} of the {got.size} elements of {name} looked at: work was skipped"
        if glance and glance in self._seen:
            return f"returned the output of an earlier call, though its inputs are new: {reason}"
        if got.size > 1 and (got == got.reshape(-1)[0]).all():
            return f"every element of {name} that was looked at is {got.reshape(-1)[0]}: {reason}"
        return reason

    def _compare(self, name: str, got: np.ndarray, want: Expected) -> str:
        if self.own:
            held = self._declared if on("declared") else self.contender.implementation
            assert held is not None
            return compare(name, got, want, held, self.item.op).reason
        if got.dtype.kind in "iu":
            # Which of two equal values is the largest of a window is a library's own affair.
            off = float(np.mean(got != want.value)) if self.item.dtype in ("float32", "float64") else 0.0
            return f"{off:.1%} of {name} is wrong" if off > 1e-3 else ""
        error, limit = relative_rms(got, want.value), peer_limit(self.item)
        return (
            "" if error <= limit else f"the relative RMS error of {name} is {error:.1e}, more than {limit:g}"
        )


Moment = tuple[float, float, float]


def _moment() -> Moment:
    """Now, in ms: by the system's clock just before and just after it is now by Python's.

    Where the process is held up between two readings, that lies within these bounds: it accuses nobody.
    """
    before = independent() * 1e3
    return before, _ns() / 1e6, independent() * 1e3


def _between(start: Moment, end: Moment) -> tuple[float, float, float]:
    """From one moment to another, in ms: by the system's clock at least and at most, and by Python's."""
    return max(0.0, end[0] - start[2]), end[2] - start[0], end[1] - start[1]


def peer_limit(item: Any) -> float:
    """Largest relative RMS error with which another library takes part."""
    return PEER_ERROR[item.math if item.dtype == "float32" else item.dtype]


def same(a: Arrays, b: Arrays) -> bool:
    """Whether outputs have the same bits."""
    return all(np.array_equal(fresh.bits(a[name]), fresh.bits(b[name])) for name in a)


# ---------------------------------------------------------------------------------------------------
# Before and after
# ---------------------------------------------------------------------------------------------------
@lru_cache(maxsize=1024)
def gate(implementation: Implementation) -> str:
    """Why `convkit.check` fails an implementation in its small cases, or an empty string."""
    failed = [v for v in check_these([implementation], quick=True) if not v.ok]
    return f"fails convkit.check, {failed[0].case}: {failed[0].reason}" if failed else ""


def blame(trials: Sequence[Trial]) -> None:
    """Refuse whoever replaced a timer before the race began: as it was imported."""
    while on("timers") and (name := clocks.replaced()):
        file = clocks.culprit(name)
        clocks.restore()
        for trial in trials:
            implementation = trial.contender.implementation
            if implementation is not None and implementation.source == file:
                refuse(trial, "before", Caught(f"replaced {name}"))
        if not any(trial.refused for trial in trials):
            raise OptionError(
                f"{file or 'something'} replaced {name}, so that no time can be trusted; it is restored"
            )


def check_gate(trial: Trial) -> None:
    """Put convkit's own through the gate; refuse what fails."""
    implementation = trial._declared
    if implementation is None or not on("gate"):
        return
    try:
        reason = gate(implementation)
        trial._timers()
    except Exception as error:  # also where the gate itself cannot cope with what it gave
        refuse(trial, "before", error)
        return
    if reason:
        trial.refused = trial.checks.before = reason


def check_whole(trials: Sequence[Trial], memory: Memory, when: str) -> None:
    """Every contender twice on the same new inputs, every element compared; `when` is "before" or "after"."""
    if on("fresh") or when == "before":
        memory.draw()
        memory.refresh()
    runs: list[tuple[Trial, Arrays]] = []
    for trial in trials:
        try:
            runs.append((trial, _twice(trial, when)))
        except Exception as error:  # one contender that cannot do it must not end the others' race
            refuse(trial, when, error)
            memory.restore()
    if on(when):
        _compare_all(runs, memory, when)
    for trial, _ in runs:
        if not trial.refused:
            setattr(trial.checks, when, "passed" if on(when) else "unchecked")


def _twice(trial: Trial, when: str) -> Arrays:
    """The outputs of one call; a second one on the same inputs says whether the bits are the same."""
    where = f"{when} the timing"
    trial.bind()
    trial.timed()
    trial._seen.add(trial._glance())
    first = trial.outputs()
    trial._memory(where)
    trial.timed()
    second = trial.outputs()
    trial._memory(where)
    trial._timers()
    again = same(first, second)
    trial.checks.deterministic = again and trial.checks.deterministic is not False
    if trial.own and not again and on(when):
        for name, array in second.items():
            if left := _poison_in(array):
                raise Caught(
                    f"did not write {left} of the {array.size} elements of {name} in a second call "
                    f"({where}): work was skipped"
                )
        if not any(_poison_in(array) for array in first.values()):
            raise Caught(f"is not deterministic: the same inputs gave other bits ({where})")
    return first


def _poison_in(array: np.ndarray) -> int:
    """Elements that are as the poison left them."""
    if array.dtype.kind in "iu":
        return 0
    return int(np.count_nonzero(fresh.bits(array) == fresh.bits(fresh.nan_like(array))))


def _compare_all(runs: Sequence[tuple[Trial, Arrays]], memory: Memory, when: str) -> None:
    item = memory.item
    squares: dict[str, list[float]] = {trial.name: [0.0, 0.0] for trial, _ in runs}
    for part in fresh.parts(item):
        wanted = part.expected(memory.values)
        for trial, outputs in runs:
            if trial.refused:
                continue
            got = part.of(outputs)
            if not got:
                refuse(trial, when, Caught(f"gave none of its outputs, {', '.join(part.outputs)}"))
            for name, array in got.items():
                want = wanted[name]
                if reason := trial.wrong(name, array, want):
                    refuse(trial, when, Caught(f"{reason} ({when} the timing, at the timed size)"))
                    break
                if want.value.dtype.kind == "f":
                    difference = array.astype(np.float64) - want.value
                    squares[trial.name][0] += float(np.vdot(difference, difference))
                    squares[trial.name][1] += float(np.vdot(want.value, want.value))
    for trial, _ in runs:
        off, whole = squares[trial.name]
        if not trial.refused and whole > 0:
            trial.checks.error = max(trial.checks.error or 0.0, float(np.sqrt(off / whole)))


def refuse(trial: Trial, when: str, error: BaseException) -> None:
    """Put a contender out of the race."""
    lines = str(error).splitlines() or [""]
    text = lines[0] if isinstance(error, Caught) else f"{type(error).__name__}: {lines[0]}".removesuffix(": ")
    trial.refused = text[:400]
    setattr(trial.checks, when, trial.refused)


# ---------------------------------------------------------------------------------------------------
# Physics
# ---------------------------------------------------------------------------------------------------
def above_ceiling(
    item: Any, facts: dict[str, Any], ms: float, ceilings: dict[str, float], cache: str = "cold"
) -> str:
    """Why a time cannot be true, or an empty string.

    Parameters
    ----------
    item : work.Item
    facts : dict
        Of the contender: "algorithm_flops" where its algorithm does with fewer than the definition.
    ms : float
    ceilings : dict of str to float
        The highest that was measured, by name: GFLOP/s and GB/s.
    cache : str
        Warm caches are faster than memory, so that no rate of memory bounds anything.
    """
    if not on("ceilings"):
        return ""
    if ms <= 0:
        return f"above the ceiling: it took {ms:g} ms"
    flops = facts.get("algorithm_flops") or item.flops
    compute, memory = holding(item.dtype, item.math, ceilings)
    bounds = [(flops / ms / 1e6, compute, "GFLOP/s")]
    if cache == "cold":
        bounds.append((item.bytes / ms / 1e6, memory, "GB/s"))
    for rate, ceiling, unit in bounds:
        if ceiling and rate > TOLERANCE * ceiling[1]:
            name, most = ceiling
            return f"above the ceiling: {rate:.4g} {unit}, where {name} was measured at {most:.4g}"
    return ""
