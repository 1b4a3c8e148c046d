"""A clock that no other process can hold up: seconds pass only where a test says so.

Measuring code that is put on it sees times that follow from the test alone, and a wait takes no time. Work
"in the background" is done while somebody sleeps, and at no other moment, so that it does not depend on the
system which of two threads comes first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any


class Clock:
    """What `time` and the bench's own clocks give, for code that is put on it.

    Parameters
    ----------
    look : float
        Seconds that each look at the clock takes.

    Attributes
    ----------
    seconds : list of one float
        The time; a stand-in with a clock of its own may share the list.
    """

    def __init__(self, look: float = 1e-6) -> None:
        self.look, self.seconds = look, [1000.0]
        self._waiting: list[tuple[float, Callable[[], Any]]] = []

    def now(self) -> float:
        """Seconds, as `time.perf_counter` gives them."""
        self.seconds[0] += self.look
        return self.seconds[0]

    def ns(self) -> int:
        """Nanoseconds, as `time.perf_counter_ns` gives them."""
        return round(1e9 * self.now())

    def work(self, seconds: float) -> None:
        """Time passes, in which the caller is busy."""
        self.seconds[0] += seconds

    def sleep(self, seconds: float) -> None:
        """Time passes, in which others do what they were to do until then, each in a thread of its own."""
        self.seconds[0] += seconds
        due = [work for at, work in self._waiting if at <= self.seconds[0]]
        self._waiting = [one for one in self._waiting if one[0] > self.seconds[0]]
        for work in due:
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()

    def later(self, seconds: float, work: Callable[[], Any]) -> None:
        """Have something done in so many seconds, behind the caller's back."""
        self._waiting.append((self.seconds[0] + seconds, work))

    def module(self) -> Any:
        """What may stand in the place of the module `time`."""
        return SimpleNamespace(
            perf_counter=self.now, perf_counter_ns=self.ns, monotonic=self.now, sleep=self.sleep
        )
