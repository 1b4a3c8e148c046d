"""Between layouts: NCHW and nChw16c in C++ (native/kernels/reorder.cpp), NCHW and NHWC by NumPy.

NumPy also casts, from float32 to a 16-bit type; in NCHW it does nothing else.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..layouts import NHWC
from ..op import PAIRS
from ..ops.reorder import Reorder
from ..registry import ALL_DTYPES, implements
from . import threads
from .native_call import compiled, kernel

Array = np.ndarray
Launch = Callable[..., None]

#: Nanoseconds to cast an element, as measured on Zen 4: 0.4 to bfloat16, 2.5 to float16.
_CAST = 1.0


@compiled("reorder", name="transpose", layout="NCHW>nChw16c")
def reorder_block(g: Reorder) -> Launch:
    return kernel("reorder_transpose_block", g.N, g.C, g.H * g.W)


@compiled("reorder", name="transpose", layout="nChw16c>NCHW")
def reorder_unblock(g: Reorder) -> Launch:
    return kernel("reorder_transpose_unblock", g.N, g.C, g.H * g.W)


@implements("reorder", name="numpy", layout="NCHW>NHWC", dtypes=(*ALL_DTYPES, *PAIRS))
def reorder_to_nhwc(g: Reorder, x: Array, y: Array) -> None:
    NHWC.pack(x, y)


@implements("reorder", name="numpy", layout="NHWC>NCHW", dtypes=(*ALL_DTYPES, *PAIRS))
def reorder_from_nhwc(g: Reorder, x: Array, y: Array) -> None:
    y[...] = x.transpose(0, 3, 1, 2)


@implements("reorder", name="numpy", dtypes=PAIRS)
def reorder_cast(g: Reorder, x: Array, y: Array) -> None:
    source, target = x.reshape(-1), y.reshape(-1)

    def part(start: int, stop: int) -> None:
        target[start:stop] = source[start:stop]

    threads.split(part, source.size, _CAST * source.size)
