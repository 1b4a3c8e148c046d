"""Between layouts: NCHW and nChw16c in C++ (native/kernels/reorder.hpp), NCHW and NHWC by NumPy."""

from __future__ import annotations

import numpy as np

from ..geometry import Reorder
from ..layouts import NHWC
from ..registry import ALL_DTYPES, implements
from .native_call import NATIVE, call

Array = np.ndarray


@implements("reorder", name="transpose", layout="NCHW>nChw16c", **NATIVE)
def reorder_block(g: Reorder, x: Array, y: Array) -> None:
    call("reorder_block", g.N, g.C, g.H * g.W, x, y)


@implements("reorder", name="transpose", layout="nChw16c>NCHW", **NATIVE)
def reorder_unblock(g: Reorder, x: Array, y: Array) -> None:
    call("reorder_unblock", g.N, g.C, g.H * g.W, x, y)


@implements("reorder", name="numpy", layout="NCHW>NHWC", dtypes=ALL_DTYPES)
def reorder_to_nhwc(g: Reorder, x: Array, y: Array) -> None:
    NHWC.pack(x, y)


@implements("reorder", name="numpy", layout="NHWC>NCHW", dtypes=ALL_DTYPES)
def reorder_from_nhwc(g: Reorder, x: Array, y: Array) -> None:
    y[...] = x.transpose(0, 3, 1, 2)
