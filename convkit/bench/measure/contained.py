"""Candidates in processes of their own: what it takes to ask one, which is no part of its time.

The clock is the judge's: it runs from just before the process is asked until its answer begins to come. While
inputs are written, caches flushed and others timed, the process stands still, so that it can do no work
before its time runs. What a call there takes beyond one in this process is measured in turns with the
candidate, by a tiny call of convkit's own, here and in another process of the same kind: a candidate cannot
make its own look longer. The median is taken off.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from ...call import Call
from ...check.process import Contained, Limits, of_file
from ...check.process.memory import Shared
from ...discovery import register
from ...errors import OptionError
from ...op import OPS
from ...ops.elementwise import Elementwise
from ...registry import Implementation, implementations
from .clocks import elapsed_ms

#: Round trips in each turn, at most, and how many of the last ones count.
TRIPS, KEPT = 3, 24
#: Nanoseconds of waiting for a core that make a call's time void, at most so many times in a row; of its own
#: process only where the call is short, as longer ones are interrupted in any process.
WAIT, TRIES, SHORT = 25_000, 4, 2_000_000


class RoundTrip:
    """Milliseconds that a call takes in another process beyond what it takes in this one."""

    def __init__(self) -> None:
        here = next(i for i in implementations("relu_fprop", device="cpu") if i.name == "maximum")
        key = (here.op, here.device, here.name, here.layout)
        self._process = Contained("shipped", [key], Limits())
        (there,) = self._process.load()
        problem, op = Elementwise((64,)), OPS["relu_fprop"]
        # In memory of both processes, as the tensors of a candidate are.
        x, y = (self._process.shared.empty(256).view(np.float32) for _ in range(2))
        x.fill(1)
        self._here, self._there = (Call(op, i, problem, (x,), (y,)) for i in (here, there))
        self._samples: deque[float] = deque(maxlen=KEPT)

    def measure(self, cold: Callable[[], None] = lambda: None) -> None:
        """One more of them, after caches were evicted where they are for the candidate."""
        for _ in range(TRIES):
            self._process.pause()
            cold()
            self._there.run()
            if not held_up(self._process):
                break
        else:
            if self._samples:
                return
        self._process.pause()
        cold()
        self._samples.append(self._process.took / 1e6 - elapsed_ms(self._here.run))

    @property
    def ms(self) -> float:
        """The median of the last ones."""
        if not self._samples:
            for _ in range(2 * TRIPS):
                self.measure()
            if len(self._samples) > 1:
                self._samples.popleft()  # a process that has just begun
        return float(np.median(self._samples))

    @property
    def spread_ms(self) -> float:
        """The distance of their quartiles."""
        low, high = np.quantile(self._samples, [0.25, 0.75]) if self._samples else (0.0, 0.0)
        return float(high - low)

    def close(self) -> None:
        """End the process."""
        self._process.close()


@functools.cache
def same_kind() -> Shared:
    """Memory of the kind that a candidate's tensors lie in, which no candidate can reach.

    The system may give it smaller pages than other memory, so all of convkit's entries in a race with a
    candidate get theirs from here.
    """
    return Shared()


def held_up(process: Contained) -> bool:
    """Whether the last call's time is void, because others had the cores when one side was to wake up.

    That is no part of its work, and no call within this process waits for it. It cannot be taken off: a
    candidate that keeps the cores busy once it has answered would have its time shortened.
    """
    mine, its = process.waited
    worked = process.took - mine - its
    return mine > max(WAIT, worked // 100) or (its > WAIT and worked < SHORT)


@functools.cache
def round_trip() -> RoundTrip:
    """The one that all candidates share."""
    return RoundTrip()


def load(
    paths: list[str], limits: Limits | None, stack: ExitStack
) -> tuple[list[Implementation], list[Contained]]:
    """The implementations of users' files, in processes of their own until the stack ends.

    Of a CUDA kernel's file only the header is read here; it runs on a GPU, in this process.

    Parameters
    ----------
    paths : list of str
    limits : Limits, optional
        None: all in this process.
    stack : ExitStack

    Raises
    ------
    OptionError
        A file is not there, cannot be loaded, or changed meanwhile.
    Lost
        The process of one did not live through its being loaded.
    """
    found: list[Implementation] = []
    groups: list[Contained] = []
    for path in map(Path, paths):
        before = path.read_bytes() if path.is_file() else b""
        if limits is None or path.suffix == ".cu":
            found += register(path)
        else:
            group = of_file(path, limits)
            stack.callback(group.close)
            groups.append(group)
            found += group.load()
        if path.read_bytes() != before:
            raise OptionError(f"{path.name} changed while it was loaded: what runs would not be known")
    if groups:
        stack.callback(round_trip.cache_clear)
        stack.callback(round_trip().close)
    return found, groups
