"""LRN and the max pooling that follows, as one op, in C++: see native/kernels/lrn_maxpool2d.cpp."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import native
from ..geometry import LRN, LrnMaxPool2d, Pool2d
from ..layouts import BLOCKED
from ..registry import implements
from . import threads

Array = np.ndarray


def lrn_shape(g: LRN) -> Any:
    return native.kernels().Lrn(
        N=g.N,
        C=g.C,
        H=g.H,
        W=g.W,
        groups=g.groups,
        behind=g.behind,
        ahead=g.ahead,
        k=g.k,
        scale=g.alpha / g.taps,
        beta=g.beta,
    )


def pool_shape(g: Pool2d) -> Any:
    return native.kernels().Pool(
        [
            *(g.N, g.C, g.H, g.W, g.P, g.Q, g.R, g.S, g.stride_h, g.stride_w),
            *(g.pad_top, g.pad_left, g.dilation_h, g.dilation_w),
        ]
    )


def across_channels(g: LrnMaxPool2d) -> str | None:
    return None if g.lrn.region == "across_channels" else "takes windows across channels"


@implements("lrn_maxpool2d_fprop", name="rows", layout=BLOCKED, rank=20, missing=native.kernels_missing, when=across_channels)
def lrn_maxpool2d_fprop(g: LrnMaxPool2d, x: Array, y: Array, argmax: Array) -> None:
    native.kernels().lrn_maxpool2d_fprop_blocked(
        lrn_shape(g.lrn), pool_shape(g.pool), x, y, argmax, threads=threads.count()
    )


@implements("lrn_maxpool2d_dgrad", name="rows", layout=BLOCKED, rank=20, missing=native.kernels_missing, when=across_channels)
def lrn_maxpool2d_dgrad(
    g: LrnMaxPool2d, dy: Array, argmax: Array, x: Array, dx: Array, relu: bool = False
) -> None:
    native.kernels().lrn_maxpool2d_dgrad_blocked(
        lrn_shape(g.lrn), pool_shape(g.pool), dy, argmax, x, dx, relu=relu, threads=threads.count()
    )
