"""NCHW to nChw16c and back, in C++: native/kernels/reorder.hpp."""

from __future__ import annotations

from collections.abc import Callable

from ..geometry import Reorder
from .native_call import compiled, kernel

Launch = Callable[..., None]


@compiled("reorder", name="transpose", layout="NCHW>nChw16c")
def reorder_block(g: Reorder) -> Launch:
    return kernel("reorder_block", g.N, g.C, g.H * g.W)


@compiled("reorder", name="transpose", layout="nChw16c>NCHW")
def reorder_unblock(g: Reorder) -> Launch:
    return kernel("reorder_unblock", g.N, g.C, g.H * g.W)
