"""Philox4x32-10, the counter-based random generator behind dropout, in NumPy.

Each counter gives four independent 32-bit words under a 64-bit key, with no state to carry: the word of
element i is computed from i alone, in any order, on any machine.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011; its published test
vectors are among the tests.
"""

from __future__ import annotations

import numpy as np

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


def philox(counter: tuple[np.ndarray, ...], key: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """Four arrays of 32-bit words (held in uint64) for four arrays of counter words."""
    c0, c1, c2, c3 = (np.asarray(c, np.uint64) for c in counter)
    k0, k1 = key
    for _ in range(ROUNDS):
        product0, product1 = c0 * np.uint64(MULTIPLIERS[0]), c2 * np.uint64(MULTIPLIERS[1])
        c0, c1, c2, c3 = (
            (product1 >> _32) ^ c1 ^ np.uint64(k0),
            product1 & _LOW,
            (product0 >> _32) ^ c3 ^ np.uint64(k1),
            product0 & _LOW,
        )
        k0, k1 = (k0 + WEYL[0]) & 0xFFFFFFFF, (k1 + WEYL[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


def words(size: int, seed: int, offset: int) -> np.ndarray:
    """The first `size` words of the stream that begins at counter `offset`, as uint64."""
    counter = np.arange(offset, offset + -(-size // 4), dtype=np.uint64)
    zeros = np.zeros_like(counter)
    four = philox((counter & _LOW, counter >> _32, zeros, zeros), (seed & 0xFFFFFFFF, seed >> 32))
    return np.stack(four, axis=1).ravel()[:size]


def threshold(p: float) -> int:
    """Words below this are dropped: p of them, to 32 bits."""
    return round(p * 2**32)


def dropped(size: int, p: float, seed: int, offset: int) -> np.ndarray:
    """Dropout's mask: True where an element is zeroed."""
    return words(size, seed, offset) < np.uint64(threshold(p))
