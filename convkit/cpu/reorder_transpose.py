"""Between layouts: NCHW and nChw16c in C++ (native/kernels/reorder.hpp), NCHW and NHWC by NumPy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..layouts import NHWC
from ..ops.reorder import Reorder
from ..registry import ALL_DTYPES, implements
from .native_call import compiled, kernel

Array = np.ndarray
Launch = Callable[..., None]


@compiled("reorder", name="transpose", layout="NCHW>nChw16c")
def reorder_block(g: Reorder) -> Launch:
    return kernel("reorder_block", g.N, g.C, g.H * g.W)


@compiled("reorder", name="transpose", layout="nChw16c>NCHW")
def reorder_unblock(g: Reorder) -> Launch:
    return kernel("reorder_unblock", g.N, g.C, g.H * g.W)


@implements("reorder", name="numpy", layout="NCHW>NHWC", dtypes=ALL_DTYPES)
def reorder_to_nhwc(g: Reorder, x: Array, y: Array) -> None:
    NHWC.pack(x, y)


@implements("reorder", name="numpy", layout="NHWC>NCHW", dtypes=ALL_DTYPES)
def reorder_from_nhwc(g: Reorder, x: Array, y: Array) -> None:
    y[...] = x.transpose(0, 3, 1, 2)
