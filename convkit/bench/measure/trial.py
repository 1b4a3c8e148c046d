"""One entry on an item's memory: its turns, and what each turn is watched for (see `defences`)."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from ...check.process import Contained
from ...check.tolerance import Expected, compare, relative_rms
from ...op import Tensors
from . import fresh
from .clocks import independent
from .contained import TRIES, TRIPS, held_up, round_trip
from .defences import on
from .entry import Arrays, Checks, Clock, Entry, Settings
from .fresh import Memory, Part

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
_sleep = time.sleep


class Caught(Exception):
    """An entry that is wrong, or that cheats; the message is the reason."""


@dataclass
class Look:
    """What was seen after a timed call: a part of the outputs, and what they were made of."""

    part: Part
    values: Tensors
    got: Arrays
    glance: bytes
    where: str


class Trial:
    """One entry on an item's memory.

    Attributes
    ----------
    name : str
    own : bool
        It is an implementation of convkit's, or of a user: nothing is taken on trust.
    checks : Checks
    refused : str
        Why it is out; empty while it is in.
    """

    def __init__(self, item: Any, entry: Entry, memory: Memory, clock: Clock, settings: Settings) -> None:
        self.item, self.entry, self.memory = item, entry, memory
        self.clock, self.settings = clock, settings
        self.name, self.own = entry.name, entry.implementation is not None
        self.checks, self.refused = Checks(), ""
        self._run: Any = None
        self._graph = False
        self._random = random.SystemRandom()  # no seed that an entry could know
        self._places: dict[str, np.ndarray] = {}
        self._seen: set[bytes] = set()
        self._look_seconds = 0.0
        # A time that is void may be taken again: on new inputs, which no check of all entries could have.
        self._in_turn = False
        # Over all turns: what the calls took, and on a GPU by how much the wall clock exceeds that.
        self._times: list[float] = []
        self._gaps: list[float] = []
        # On a GPU: what the host needed for the calls of the turns, and whether one waited for the device.
        self.host_us: list[float] = []
        self.host_included = False

    # ---- one call ----------------------------------------------------------------------------------
    def renew(self) -> None:
        """New inputs, bound."""
        if on("fresh") or self._run is None:
            self.memory.refresh()
        self.bind()

    def bind(self) -> None:
        self._run = self.entry.bind(dict(self.memory.inputs), dict(self.memory.outputs))

    def written(self) -> Arrays:
        """The arrays that a run writes to, as far as they are known."""
        if self.entry.memory is not None:
            return self.entry.memory()
        return self.memory.outputs if self.entry.read is None else {}

    def outputs(self) -> Arrays:
        """Copies of the outputs of the last run, NCHW, on the host."""
        if self.entry.read is not None:
            return {name: np.array(array) for name, array in self.entry.read().items()}
        return {name: np.array(fresh.host(array)) for name, array in self.memory.outputs.items()}

    def _poison(self) -> None:
        if on("poison"):
            self.memory.poison()
            for array in self.written().values():
                fresh.fill_nan(array)

    def timed(self) -> float:
        """Milliseconds of one call of what is bound."""
        self._poison()
        if self.settings.cache == "cold":
            self.clock.cold()
        try:
            if self._graph:
                return float(self.clock.batch(self._run, GRAPH))  # type: ignore[attr-defined]
            return self._time()
        except SystemExit as error:
            raise Caught(f"wanted to end the program ({error!r})") from None

    def _time(self) -> float:
        """Milliseconds of one call, of the device alone where the clock can tell them apart."""
        if self.entry.process is not None:
            return self._time_there(self.entry.process)
        if not hasattr(self.clock, "held"):
            return self.clock.time(self._run)
        clock: Any = self.clock
        watch = self._watch() if self.own else None
        if watch and not clock.watches:
            self.entry.facts["not watched"] = "a copy to the host waits for a stream that is held"
        ms = float(clock.time(self._run, hold_back=not self.host_included, again=self._again, look=watch))
        if clock.early and on("held"):
            raise Caught("wrote its outputs while its stream was held back: it works on another stream")
        self.host_included = self.host_included or not clock.held
        return ms

    def _time_there(self, process: Contained) -> float:
        """Milliseconds of one call in its own process, without the way there and back."""
        trip = round_trip()
        way = trip.ms
        assert self._run is not None
        self._run()
        for _ in range(TRIES - 1 if self._in_turn else 0):
            if not held_up(process):
                break
            process.pause()
            self.renew()
            self._poison()
            if self.settings.cache == "cold":
                self.clock.cold()
            self._run()
        ms = process.took / 1e6
        process.pause()
        # What is much shorter than the way cannot be told from nothing.
        return max(ms - way, 0.1 * way)

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
        if self.entry.look is not None:
            return self.entry.look(part), None
        if self.entry.read is not None:
            outputs = self.outputs()
            return part.of(outputs), outputs
        arrays = self.memory.outputs
        return {name: np.array(fresh.host(arrays[name][place])) for name, place in part.outputs.items()}, None

    # ---- a turn ------------------------------------------------------------------------------------
    def estimate(self) -> tuple[float, float]:
        """Milliseconds of a call, and of all that a turn spends on it."""
        start = independent()
        self.renew()
        ms = self.timed()
        if self.settings.cache == "warm" and ms < SHORT_CALL and hasattr(self.clock, "batch"):
            try:
                ms, self._graph = self.clock.batch(self._run, GRAPH), True
                self.entry.facts["timed"] = f"in a CUDA graph of {GRAPH} calls"
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
        for number in range(calls):
            if self.entry.process is not None and number < TRIPS:
                round_trip().measure(self.clock.cold if self.settings.cache == "cold" else lambda: None)
            if self.own:
                self.renew()
            self._in_turn = True
            ms = self.timed()
            self._in_turn = False
            samples.append(ms)
            if hasattr(self.clock, "host_us"):
                self.host_us.append(self.clock.host_us)
                self._gaps.append(getattr(self.clock, "gap_ms", 0.0))
            if number == chosen:
                looks.append(self._look(ms, part, f"{where}, call {number + 1}"))
        self._times += samples
        self._tampered()
        if self.entry.process is not None:
            self.entry.facts |= {
                "round_trip_us": 1e3 * round_trip().ms,
                "round_trip_spread_us": 1e3 * round_trip().spread_ms,
            }
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
        if self.entry.trespass is not None:
            own_name, own_place = self.entry.trespass()
            name, place = name or own_name, place or own_place
        if name and on("inputs"):
            raise Caught(f"changed its input {name} ({where})")
        if place and on("bands"):
            raise Caught(f"wrote outside its tensors, {place} ({where})")

    def _tampered(self) -> None:
        tampered = getattr(self.clock, "tampered", None)
        if on("device") and tampered and (what := tampered()):
            raise Caught(what)

    def wall(self) -> None:
        """Whether events and wall clock agree, over all calls: a single one is held up by chance."""
        if not on("wall") or not self._gaps:
            return
        gap, ms = median(self._gaps), median(self._times)
        if gap > self.clock.slack_ms + 0.05 * (ms + gap):
            raise Caught(
                f"its events say {ms:.3g} ms, but the device was busy for {gap:.3g} ms more: "
                "it works on another stream, or the events were replaced"
            )

    # ---- right or wrong ------------------------------------------------------------------------------
    def wrong(self, name: str, got: np.ndarray, want: Expected, glance: bytes = b"") -> str:
        """What is wrong with an output, or an empty string; where it can be told, what the entry did."""
        if got.shape != want.value.shape:
            return f"{name} has shape {got.shape}, not {want.value.shape}"
        reason = self._compare(name, got, want)
        if not reason:
            return ""
        if poison := poison_in(got):
            return f"did not write {poison} of the {got.size} elements of {name} looked at: work was skipped"
        if glance and glance in self._seen:
            return f"returned the output of an earlier call, though its inputs are new: {reason}"
        if got.size > 1 and (got == got.reshape(-1)[0]).all():
            return f"every element of {name} that was looked at is {got.reshape(-1)[0]}: {reason}"
        return reason

    def _compare(self, name: str, got: np.ndarray, want: Expected) -> str:
        if self.own:
            assert self.entry.implementation is not None
            return compare(name, got, want, self.entry.implementation, self.item.op).reason
        if got.dtype.kind in "iu":
            # Which of two equal values is the largest of a window is a library's own affair.
            off = float(np.mean(got != want.value)) if self.item.dtype in ("float32", "float64") else 0.0
            return f"{off:.1%} of {name} is wrong" if off > 1e-3 else ""
        error, limit = relative_rms(got, want.value), peer_limit(self.item)
        return (
            "" if error <= limit else f"the relative RMS error of {name} is {error:.1e}, more than {limit:g}"
        )


def peer_limit(item: Any) -> float:
    """Largest relative RMS error with which another library takes part."""
    return PEER_ERROR[item.math if item.dtype == "float32" else item.dtype]


def same(a: Arrays, b: Arrays) -> bool:
    """Whether outputs have the same bits."""
    return all(np.array_equal(fresh.bits(a[name]), fresh.bits(b[name])) for name in a)


def poison_in(array: np.ndarray) -> int:
    """Elements that are as the poison left them."""
    if array.dtype.kind in "iu":
        return 0
    return int(np.count_nonzero(fresh.bits(array) == fresh.bits(fresh.nan_like(array))))
