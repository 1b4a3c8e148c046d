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
import functools
import os
import threading
from collections.abc import Iterator
from typing import Any

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
_limit: Any = None


@functools.lru_cache(maxsize=1)
def _controller() -> threadpoolctl.ThreadpoolController:
    return threadpoolctl.ThreadpoolController()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Hold BLAS to one thread. The limit is the process's: the first user sets it, the last one lifts it."""
    global _users, _limit
    with _lock:
        if _users == 0:
            _limit = _controller().limit(limits=1, user_api="blas")
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                _limit.restore_original_limits()


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
