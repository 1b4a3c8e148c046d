"""LRN and the max pooling that follows, as one op, in C++: native/kernels/lrn_maxpool2d.cpp."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..ops.lrn_maxpool2d import LrnMaxPool2d
from . import lrn_rows, maxpool2d_rows
from .native_call import compiled, kernel

Array = np.ndarray
Launch = Callable[..., None]


def across_channels(g: LrnMaxPool2d) -> str | None:
    return lrn_rows.across_channels(g.lrn)


@compiled("lrn_maxpool2d_fprop", name="rows", layout="nChw16c", when=across_channels)
def lrn_maxpool2d_fprop(g: LrnMaxPool2d) -> Launch:
    return kernel("lrn_maxpool2d_fprop_blocked", lrn_rows.shape(g.lrn), maxpool2d_rows.shape(g.pool))


@compiled("lrn_maxpool2d_dgrad", name="rows", layout="nChw16c", when=across_channels)
def lrn_maxpool2d_dgrad(g: LrnMaxPool2d) -> Launch:
    run = kernel("lrn_maxpool2d_dgrad_blocked", lrn_rows.shape(g.lrn), maxpool2d_rows.shape(g.pool))

    def launch(dy: Array, argmax: Array, x: Array, dx: Array, relu: bool = False) -> None:
        run(dy, argmax, x, dx, relu)

    return launch
