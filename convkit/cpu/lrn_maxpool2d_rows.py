"""LRN and the max pooling that follows, as one op, in C++: native/kernels/lrn_maxpool2d.cpp."""

from __future__ import annotations

import numpy as np

from ..geometry import LrnMaxPool2d
from ..registry import implements
from . import lrn_rows, maxpool2d_rows
from .native_call import NATIVE, call

Array = np.ndarray


def across_channels(g: LrnMaxPool2d) -> str | None:
    return lrn_rows.across_channels(g.lrn)


@implements("lrn_maxpool2d_fprop", name="rows", layout="nChw16c", when=across_channels, **NATIVE)
def lrn_maxpool2d_fprop(g: LrnMaxPool2d, x: Array, y: Array, argmax: Array) -> None:
    call("lrn_maxpool2d_fprop_blocked", lrn_rows.shape(g.lrn), maxpool2d_rows.shape(g.pool), x, y, argmax)


@implements("lrn_maxpool2d_dgrad", name="rows", layout="nChw16c", when=across_channels, **NATIVE)
def lrn_maxpool2d_dgrad(
    g: LrnMaxPool2d, dy: Array, argmax: Array, x: Array, dx: Array, relu: bool = False
) -> None:
    shapes = lrn_rows.shape(g.lrn), maxpool2d_rows.shape(g.pool)
    call("lrn_maxpool2d_dgrad_blocked", *shapes, dy, argmax, x, dx, relu)
