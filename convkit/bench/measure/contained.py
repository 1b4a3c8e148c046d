"""Candidates in processes of their own: what it takes to ask one, which is no part of its time.

The clock is the judge's: it runs from just before the process is asked until its answer begins to come. While
inputs are written, caches flushed and others timed, the process stands still, so that it can do no work
before its time runs. The way there and back is measured in turns with the candidate, by a process of the same
kind that runs none: a candidate cannot make its own look longer. Its median is taken off.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from ...check.process import Contained, Limits, of_file
from ...discovery import register
from ...errors import OptionError
from ...registry import Implementation

#: Round trips in each turn, at most, and how many of the last ones count.
TRIPS, KEPT = 3, 24
#: Nanoseconds of work of such a round trip: so long that the judge is asleep when the answer comes.
WORK = 200_000


class RoundTrip:
    """Milliseconds from asking a process to its answer, beyond the work that was asked for."""

    def __init__(self) -> None:
        # With the memory of one that runs a candidate, and threads that wait for work as there.
        self._process = Contained("shipped", [], Limits())
        self._samples: deque[float] = deque(maxlen=KEPT)

    def measure(self, cold: Callable[[], None] = lambda: None) -> None:
        """One more of them, after caches were evicted where they are for the candidate."""
        self._process.pause()
        cold()
        worked = self._process.ask({"do": "spin", "ns": WORK})["ns"]
        self._samples.append((self._process.took - worked) / 1e6)
        self._process.pause()

    @property
    def ms(self) -> float:
        """The median of the last ones."""
        if not self._samples:
            for _ in range(2 * TRIPS):
                self.measure()
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
def round_trip() -> RoundTrip:
    """The one that all candidates share."""
    return RoundTrip()


def load(
    paths: list[str], limits: Limits | None, stack: ExitStack
) -> tuple[list[Implementation], list[Contained]]:
    """The implementations of users' files: of Python files in processes of their own, until the stack ends.

    Of a kernel file only the header is read here; it runs on a GPU, in this process.

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
        if limits is None or path.suffix != ".py":
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
