"""Matrix products: BLAS on one thread at a time, called from this package's own threads.

Idea      A product is cut into blocks of its longer side, `BLOCK` wide, and the blocks are handed out by
          `threads.split`. BLAS's own threads stay out of it: they split a product evenly and then wait for
          each other by spinning, so that a core which another program needs as well stops them all.
Bits      Blocks do not depend on the number of threads, and BLAS runs each on one: the same bits always.
Bound     BLAS's kernel on each core. Narrow blocks make BLAS pack the other operand anew for each of them:
          at 256 columns that is some 1/256 of the multiply-adds, times what a copy costs more than they do.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import os
import threading
from collections.abc import Callable, Iterator

import numpy as np
import threadpoolctl

from . import threads

Array = np.ndarray

#: Rows or columns of the result in one call of BLAS.
BLOCK = 256
#: Multiply-adds per nanosecond on one thread, roughly; decides how many threads are worth waking.
_RATE = 20.0

_lock = threading.Lock()
_users = 0
_before: list[int] = []

Library = tuple[Callable[[], int], Callable[[int], object]]


@functools.lru_cache(maxsize=1)
def _libraries() -> tuple[Library, ...]:
    """(get, set) of the number of threads, for each BLAS that is loaded.

    threadpoolctl finds them. For OpenBLAS its own functions are called: threadpoolctl lets one Python
    thread at a time change the number, and passes over the calls of any other.
    """
    found: list[Library] = []
    for library in threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers:
        names = (
            itertools.product(("", "scipy_"), ("", "64_", "_64"))
            if library.internal_api == "openblas"
            else ()
        )
        handle = ctypes.CDLL(library.filepath)
        for prefix, suffix in names:
            get = getattr(handle, f"{prefix}openblas_get_num_threads{suffix}", None)
            put = getattr(handle, f"{prefix}openblas_set_num_threads{suffix}", None)
            if get and put:
                get.restype, put.argtypes, put.restype = ctypes.c_int, [ctypes.c_int], None
                found.append((get, put))
                break
        else:
            found.append((library.get_num_threads, library.set_num_threads))
    return tuple(found)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Hold BLAS to one thread. The limit is the process's: the first user sets it, the last one lifts it."""
    global _users, _before
    with _lock:
        if _users == 0:
            _before = [get() for get, _ in _libraries()]
            for _, put in _libraries():
                put(1)
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                for (_, put), count in zip(_libraries(), _before):
                    put(count)


def _forget() -> None:
    """In a forked child: the parent's threads, which would have lifted their limit, are not there."""
    global _lock, _users
    _lock, _users = threading.Lock(), 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def product(a: Array, b: Array, out: Array) -> None:
    """out = a b, for matrices or stacks of matrices (..., M, K) x (..., K, N)."""
    M, N = out.shape[-2:]
    rows = M > N
    blocks = -(-max(M, N) // BLOCK)
    stacks = out.shape[0] if out.ndim == 3 else 1
    if out.ndim == 2:
        a, b, out = a[None], b[None], out[None]

    def run(start: int, stop: int) -> None:
        for unit in range(start, stop):
            i, block = divmod(unit, blocks)
            part = slice(block * BLOCK, (block + 1) * BLOCK)
            if rows:
                np.matmul(a[i, part], b[i], out=out[i, part])
            else:
                np.matmul(a[i], b[i, :, part], out=out[i, :, part])

    with one_thread():
        threads.split(run, stacks * blocks, stacks * M * N * a.shape[-1] / _RATE)
