"""The CPU backend's thread pool: `split` runs ranges of independent units on every thread.

Idea      Numba's own parallel layers do not serve a library: its OpenMP dies in a forked child, its workqueue
          breaks under several Python threads. So kernels are compiled without the GIL (`jit.kernel`), take a
          range (start, stop) of units, and a ThreadPoolExecutor hands out ranges. The caller works too, and
          a range belongs to whoever asks next, so that a core which is busy with something else does not hold
          up the rest.
Bits      A unit (a row, a plane, a block of pixels) is computed whole by one thread and its extent never
          depends on the number of threads: the result has the same bits for any number of them.
Fork      A forked child has none of its parent's threads: the pool is forgotten there and made anew.
Bound     Waking a thread costs tens of microseconds, so `split` is told roughly what the work costs, and
          leaves small work to the caller.

BLAS is called from these threads too, each call on one thread (`blas.product`).
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from ..errors import OptionError

VARIABLE = "CONVKIT_NUM_THREADS"
#: Below this many nanoseconds per thread, waking another thread costs more than it saves.
WORTH_WAKING = 50_000
#: Ranges per thread: enough that a thread which was held up leaves its share to the others.
RANGES = 4

_lock = threading.Lock()
_pool: tuple[int, ThreadPoolExecutor] | None = None


def count() -> int:
    """How many threads work: CONVKIT_NUM_THREADS, else the CPUs that this process may run on."""
    asked = os.environ.get(VARIABLE, "").strip()
    if asked:
        if not (asked.isascii() and asked.isdigit() and 1 <= int(asked) <= 4096):
            raise OptionError(f"{VARIABLE} must be a number of threads, 1 to 4096, not {asked!r}")
        return int(asked)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def split(run: Callable[[int, int], object], units: int, cost: float) -> None:
    """Call `run(start, stop)` on ranges that together cover range(units) once, on several threads.

    Parameters
    ----------
    run : callable
        Must give the same result for a unit in whichever range it lies.
    units : int
    cost : float
        Roughly what all units cost on one thread, in nanoseconds; it decides how many threads are woken.
    """
    threads = min(count(), units, max(1, int(cost / WORTH_WAKING)))
    if threads <= 1:
        run(0, units)
        return
    ranges = min(units, RANGES * threads)
    turn = itertools.count()  # next() is one step under the GIL: every range is taken once

    def work() -> None:
        with np.errstate(all="ignore"):  # each thread has its own state; dispatch has set the caller's
            while (i := next(turn)) < ranges:
                run(i * units // ranges, (i + 1) * units // ranges)

    helpers = _start(work, threads - 1)
    error: BaseException | None = None
    try:
        work()
    finally:
        for helper in helpers:
            # One that has not begun has nothing left to do. Not waiting for it also means that calls from
            # inside the pool, or from many Python threads at once, cannot wait for each other.
            if not helper.cancel():
                error = helper.exception() or error
    if error is not None:
        raise error


def _start(work: Callable[[], None], helpers: int) -> list[Future[None]]:
    """Have `helpers` threads of the pool do `work` too; fewer where no more can be had."""
    global _pool
    started: list[Future[None]] = []
    size = max(helpers, count() - 1)
    try:
        with _lock:
            if _pool is None or _pool[0] != size:
                if _pool is not None:
                    _pool[1].shutdown(wait=False)
                _pool = size, ThreadPoolExecutor(size, thread_name_prefix="convkit")
            pool = _pool[1]
        while len(started) < helpers:
            started.append(pool.submit(work))
    except RuntimeError:
        pass  # no more to be had: the system's limit, the interpreter's end, another size asked for meanwhile
    return started


def _forget() -> None:
    global _lock, _pool
    _lock, _pool = threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
