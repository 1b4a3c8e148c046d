"""The CPU backend's thread pool: `split` runs ranges of independent units on every thread.

Idea      Numba's own parallel layers do not serve a library: its OpenMP dies in a forked child, its workqueue
          breaks under several Python threads. So kernels are compiled without the GIL (`jit.kernel`), take a
          range (start, stop) of units, and threads of our own take ranges. The caller works too. A range goes
          to the thread that asks next, so that a core which is busy otherwise does not hold up the rest.
          Threads meet in SimpleQueues alone, which are C and survive a Ctrl-C at any moment; a
          ThreadPoolExecutor's locks, which are Python, can be left locked by one.
Bits      A unit (a row, a plane, a block of pixels) is computed whole by one thread and its extent never
          depends on the number of threads: the result has the same bits for any number of them.
Fork      A forked child has none of its parent's threads: the pool is forgotten there and made anew.
Bound     Waking a thread costs tens of microseconds, so `split` is told roughly what the work costs, and
          leaves small work to the caller.
Limits    The C++ kernels have a pool of their own (`native/kernels/pool.hpp`), which takes the number of
          threads from `count` too. threadpoolctl sees both as one (user_api "convkit"): its limits hold for
          the Python thread or the task that sets them, as OpenMP's do, so that two threads which set and
          lift limits at the same time do not leave each other's behind.

BLAS is called from these threads too, each call on one thread (`blas.product`).
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from contextvars import ContextVar
from queue import SimpleQueue

import numpy as np
import threadpoolctl

from ..errors import OptionError
from . import extension

VARIABLE = "CONVKIT_NUM_THREADS"
#: Below this many nanoseconds per thread, waking another thread costs more than it saves.
WORTH_WAKING = 50_000
#: Ranges per thread: enough that a thread which was held up leaves its share to the others.
RANGES = 4

_lock = threading.Lock()
_workers = 0
_tasks: SimpleQueue[Callable[[], None]] = SimpleQueue()
_limit: ContextVar[int | None] = ContextVar("convkit_threads", default=None)


#: The variables of the environment as the system has them: `os.environ.get` takes a microsecond for one that
#: is not set. Windows, and other Pythons, may keep them in another way; then it is asked.
_encoded: dict[bytes, bytes] | None = getattr(os.environ, "_data", None) if os.name == "posix" else None
_KEY = VARIABLE.encode()


def count() -> int:
    """How many threads work: threadpoolctl's limit, else CONVKIT_NUM_THREADS, else this process's CPUs."""
    return _limit.get() or _unlimited()


def _unlimited() -> int:
    if _encoded is not None and _KEY not in _encoded:
        return _cpus()
    asked = os.environ.get(VARIABLE, "").strip()
    if asked:
        if not (asked.isascii() and asked.isdigit() and 1 <= int(asked) <= 4096):
            raise OptionError(f"{VARIABLE} must be a number of threads, 1 to 4096, not {asked!r}")
        return int(asked)
    return _cpus()


def _cpus() -> int:
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
    done: SimpleQueue[BaseException | None] = SimpleQueue()
    limit = _limit.get()

    def work() -> None:
        _limit.set(limit)  # a `split` inside of this one is held to it too
        with np.errstate(all="ignore"):  # each thread has its own state; dispatch has set the caller's
            while (i := next(turn)) < ranges:
                try:
                    run(i * units // ranges, (i + 1) * units // ranges)
                except BaseException as error:
                    done.put(error)
                else:
                    done.put(None)

    _wake(work, threads - 1)
    try:
        work()
        # Every range is taken by now, and is being worked on: the caller does not wait for a thread that
        # has not begun, so that calls from inside the pool, or from many Python threads, cannot lock up.
        errors = [error for error in (done.get() for _ in range(ranges)) if error is not None]
    except KeyboardInterrupt:
        turn = itertools.count(ranges)  # leave the rest undone
        raise
    if errors:
        raise errors[0]


def _wake(work: Callable[[], None], helpers: int) -> None:
    """Have `helpers` threads of the pool do `work` too, when they get to it."""
    global _workers
    with _lock:
        while _workers < helpers:
            try:
                threading.Thread(target=_serve, args=(_tasks,), name="convkit", daemon=True).start()
            except RuntimeError:
                break  # the system's limit: there will be fewer
            _workers += 1
    for _ in range(helpers):
        _tasks.put(work)


def _serve(tasks: SimpleQueue[Callable[[], None]]) -> None:
    while True:
        tasks.get()()


def _forget() -> None:
    global _lock, _workers, _tasks
    _lock, _workers, _tasks = threading.Lock(), 0, SimpleQueue()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


# ---------------------------------------------------------------------------------------------------
# threadpoolctl
# ---------------------------------------------------------------------------------------------------
class _NoLimit(int):
    """What `count` is without a limit. threadpoolctl hands it back to lift its limit."""


class _Controller(threadpoolctl.LibController):
    """How threadpoolctl reads and sets the number of threads. It looks for libraries, so it is shown one."""

    user_api = "convkit"
    internal_api = "convkit"
    filename_prefixes = ("_native",)
    check_symbols = ("convkit_is_here",)  # others may have a library of this name

    def get_num_threads(self) -> int:
        try:
            return _limit.get() or _NoLimit(_unlimited())
        except OptionError:  # convkit's own calls say so; those of others to threadpoolctl must not fail
            return _NoLimit(_cpus())

    def set_num_threads(self, num_threads: int) -> None:
        _limit.set(None if isinstance(num_threads, _NoLimit) else max(1, int(num_threads)))

    def get_version(self) -> str:
        from ..version import __version__

        return __version__


# A limit can be set before anything is computed, and threadpoolctl knows only what is loaded then. The
# extension is small; the kernels may wait.
if extension.load() is not None:
    threadpoolctl.register(_Controller)
