"""Holding a CUDA stream back until all of a sample is queued, so that no host time lies between its events.

A call of a few launches leaves the host over tens of microseconds, or over milliseconds where Python makes
it; kernels that are shorter would be timed as the host. So a kernel of one thread goes ahead of the sample
and spins until the host, which has queued everything by then, writes a flag in pinned memory. It waits as
long as the host needs and no longer; a delay of a fixed length would have to be guessed.

It cannot hang. Its loop is counted, and each turn of it reads the flag across the bus; it also ends after
some cycles of the SM's own counter, which never stands still. Whichever comes first: where the host writes no
flag, because the call waits for the device or because the process died, the kernel ends by itself, and says
so. Such a sample is void: some of it may have been queued behind work that ran already.

Written to CuPy 14's source and walked on a stand-in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

#: Seconds that the first hold lasts at most; the longest that any does; how much longer than the host took
#: the next one is; and how often it is tried.
FIRST, LONGEST, LONGER, ATTEMPTS = 0.02, 1.0, 3, 3
#: Cycles of an SM in a second, near enough: the limit is a bound, and no measure.
HERTZ = 2e9
#: Seconds that a read of the flag takes at least; it crosses the bus, which takes several times as long.
READ = 1e-7
#: How a hold ended.
LET_GO, RAN_OUT = 1, 2

NAME = "convkit_hold"
SOURCE = r"""
// words[0] is set by the host to let go; words[1] then says how it ended: 1 let go, 2 by its own limits.
extern "C" __global__ void convkit_hold(volatile int* words, long long cycles, long long reads) {
  const long long begin = clock64();
  int how = 2;
  for (long long i = 0; i < reads; ++i) {
    if (words[0] != 0) {
      how = 1;
      break;
    }
    if (clock64() - begin >= cycles) break;
  }
  words[1] = how;
  __threadfence_system();
}
"""


class Hold:
    """Holds the current stream of the current device back; one at a time.

    Parameters
    ----------
    cupy : module
    """

    def __init__(self, cupy: Any) -> None:
        self._kernel = cupy.RawKernel(SOURCE, NAME)
        # Pinned memory has the same address on the device (unified addressing), and is never cached there.
        self._memory = cupy.cuda.alloc_pinned_memory(8)
        self._words = np.frombuffer(self._memory, np.int32, 2)
        self.begin(0.0)  # loads it: what is loaded while a stream is held might wait for it

    def begin(self, limit: float) -> None:
        """Queue it: what is queued behind it waits for `end`, or for some `limit` seconds."""
        self._words[:] = 0
        cycles, reads = max(1, int(limit * HERTZ)), max(1, int(limit / READ))
        self._kernel((1,), (1,), (np.uint64(self._memory.ptr), np.int64(cycles), np.int64(reads)))

    def end(self) -> None:
        """Let go."""
        self._words[0] = 1

    def lasted(self) -> bool:
        """Whether it held until `end`: asked when the device is idle again."""
        return int(self._words[1]) == LET_GO


@dataclass(frozen=True)
class Sample:
    """One call as it was timed: see the attributes of `clocks.CudaClock`."""

    ms: float
    held: bool
    early: bool
    host_us: float
    gap_ms: float


class Sampler:
    """Times calls on the current stream of the device that was current when this was made.

    Parameters
    ----------
    cupy : module
    now : callable
        The time, in seconds.
    array : cupy.ndarray
        Any one, to try a copy of.

    Attributes
    ----------
    sees : bool
        Whether memory can be looked at while a stream is held. Where a copy to the host waits for what is
        held, against the documentation, every sample with a look would be void: then nothing is looked at.
    """

    def __init__(self, cupy: Any, now: Callable[[], float], array: Any) -> None:
        cuda = cupy.cuda
        # Taken now: an entry may replace them in the module.
        self._event, self._elapsed, self._wait = (
            cuda.Event,
            cuda.get_elapsed_time,
            cuda.runtime.deviceSynchronize,
        )
        self._now = now
        self._side = cuda.Stream(non_blocking=True)
        self._hold = Hold(cupy)
        self.sees = True
        self.sees = self.sample(lambda: None, FIRST, None, lambda: bytes(array[:1].get())).held

    def sample(
        self,
        run: Callable[[], Any],
        limit: float,
        evict: Callable[[], Any] | None,
        look: Callable[[], Any] | None = None,
    ) -> Sample:
        """Time one call.

        Parameters
        ----------
        run : callable
        limit : float
            Seconds that the stream is held back at most; 0 to hold nothing back, and time the host too.
        evict : callable, optional
            Queues what evicts the caches, ahead of the first event.
        look : callable, optional
            Called before and at the end of the hold, on a stream that waits for no other.
        """
        opened, start, end = self._event(), self._event(), self._event()
        self._wait()
        before = self._seen(look)
        try:
            if limit:
                self._hold.begin(limit)
            opened.record()
            if evict:
                evict()
            if not limit:
                self._wait()  # or some of the host's time would lie behind the eviction, and some not
            start.record()
            begin = self._now()
            result = run()
            queued = self._now()
            end.record()
            early = self._seen(look) != before
            let_go = self._now()
        finally:  # whatever happened, nothing is left waiting
            self._hold.end()
            self._wait()
        idle = self._now()
        del result
        held = bool(limit) and self._hold.lasted()
        # From the flag on, the device is busy with what lies between `opened` and `end`, and nothing else.
        wall, first = (idle - let_go, opened) if limit else (idle - begin, start)
        return Sample(
            ms=float(self._elapsed(start, end)),
            held=held,
            early=early and held,
            host_us=(queued - begin) * 1e6,
            gap_ms=wall * 1e3 - float(self._elapsed(first, end)),
        )

    def _seen(self, look: Callable[[], Any] | None) -> Any:
        if look is None or not self.sees:
            return None
        with self._side:
            return look()
