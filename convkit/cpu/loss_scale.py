"""Loss scaling: an array times a number, and a look at its elements, in NumPy on every thread.

Traffic   x once for the product and once for the flag; a block of it is in the cache the second time.
"""

from __future__ import annotations

import numpy as np

from ..ops.elementwise import Elementwise
from . import threads
from .storage import accelerates

Array = np.ndarray

#: Elements that are read twice while they are in the cache.
_BLOCK = 1 << 15


@accelerates("rescale", name="blocks")
def rescale(
    g: Elementwise, x: Array, scale: Array, sound: Array, x_new: Array, sound_new: Array, *, inverse: bool
) -> None:
    source, target, factor = x.reshape(-1), x_new.reshape(-1), x.dtype.type(scale[0])
    change = np.divide if inverse else np.multiply
    bad: list[int] = []

    def part(start: int, stop: int) -> None:
        for first in range(start, stop, _BLOCK):
            block = source[first : min(first + _BLOCK, stop)]
            if not np.isfinite(block).all():  # before it is overwritten
                bad.append(first)
            change(block, factor, out=target[first : first + block.size])

    good = bool(sound[0])  # sound_new may be its memory
    threads.split(part, g.size, 0.3 * g.size)
    sound_new[...] = good and not bad
