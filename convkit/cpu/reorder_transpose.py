"""NCHW to nChw16c and back, in C++: native/kernels/reorder.hpp."""

from __future__ import annotations

import numpy as np

from ..geometry import Reorder
from ..registry import implements
from .native_call import NATIVE, call

Array = np.ndarray


@implements("reorder", name="transpose", layout="NCHW>nChw16c", **NATIVE)
def reorder_block(g: Reorder, x: Array, y: Array) -> None:
    call("reorder_block", g.N, g.C, g.H * g.W, x, y)


@implements("reorder", name="transpose", layout="nChw16c>NCHW", **NATIVE)
def reorder_unblock(g: Reorder, x: Array, y: Array) -> None:
    call("reorder_unblock", g.N, g.C, g.H * g.W, x, y)
