"""Gradients of biases in C++: native/kernels/sums.hpp."""

from __future__ import annotations

import numpy as np

from ..geometry import ChannelSum
from ..registry import implements
from .native_call import NATIVE, STORAGE, call

Array = np.ndarray


@implements("conv2d_bgrad", name="registers", dtypes=STORAGE, **NATIVE)
def conv2d_bgrad(g: ChannelSum, dy: Array, db: Array) -> None:
    call("channel_sums", g.dtype, g.N, g.K, g.P * g.Q, dy, db)


@implements("conv2d_bgrad", name="registers", layout="nChw16c", **NATIVE)
def conv2d_bgrad_blocked(g: ChannelSum, dy: Array, db: Array) -> None:
    call("channel_sums_blocked", g.N, g.K, g.P * g.Q, dy, db)


@implements("linear_bgrad", name="registers", dtypes=STORAGE, **NATIVE)
def linear_bgrad(g: ChannelSum, dy: Array, db: Array) -> None:
    call("column_sums", g.dtype, g.N, g.K, dy, db)
