"""Gradients of biases in C++: native/kernels/sums.hpp."""

from __future__ import annotations

from collections.abc import Callable

from ..ops.channel_sum import ChannelSum
from .native_call import STORAGE, compiled, kernel

Launch = Callable[..., None]


@compiled("conv2d_bgrad", name="registers", dtypes=STORAGE)
def conv2d_bgrad(g: ChannelSum) -> Launch:
    return kernel("channel_sums", g.dtype, g.N, g.K, g.P * g.Q)


@compiled("conv2d_bgrad", name="registers", layout="nChw16c")
def conv2d_bgrad_blocked(g: ChannelSum) -> Launch:
    return kernel("channel_sums_blocked", g.N, g.K, g.P * g.Q)


@compiled("linear_bgrad", name="registers", dtypes=STORAGE)
def linear_bgrad(g: ChannelSum) -> Launch:
    return kernel("column_sums", g.dtype, g.N, g.K)
