"""Max pooling in C++, a row at a time: native/kernels/pool2d.hpp (nChw16c) and pool2d_maps.cpp (NCHW)."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from ..ops.maxpool2d import Pool2d
from ..ops.window import window_span
from .native_call import STORAGE, compiled, excess, kernel, kernels

Launch = Callable[..., None]


def shape(g: Pool2d) -> Any:
    """The C++ struct `Pool`."""
    return _shape(kernels(), g)


@lru_cache(maxsize=256)
def _shape(module: Any, g: Pool2d) -> Any:
    extents = (g.N, g.C, g.H, g.W, g.P, g.Q, g.R, g.S, g.stride_h, g.stride_w)
    return module.Pool((*extents, g.pad_top, g.pad_left, g.dilation_h, g.dilation_w))


def rings(way: str) -> Callable[[Pool2d], str | None]:
    """`when` of a pass on maps: it keeps the rows that a window reaches, in scratch memory of each thread."""

    def when(g: Pool2d) -> str | None:
        if way == "fprop":
            rows, width = min(g.H, window_span(g.R, g.dilation_h)), g.Q
        else:
            rows, width = min(g.P, (window_span(g.R, g.dilation_h) - 1) // g.stride_h + 2), 2 * g.W + g.Q
        return excess(8 * rows * width, g, "x", "y")

    return when


@compiled("maxpool2d_fprop", name="rows", dtypes=STORAGE, when=rings("fprop"))
def maxpool2d_fprop(g: Pool2d) -> Launch:
    return kernel("maxpool2d_fprop", g.dtype, shape(g))


@compiled("maxpool2d_dgrad", name="rows", dtypes=STORAGE, when=rings("dgrad"))
def maxpool2d_dgrad(g: Pool2d) -> Launch:
    return kernel("maxpool2d_dgrad", g.dtype, shape(g))


@compiled("maxpool2d_fprop", name="rows", layout="nChw16c")
def maxpool2d_fprop_blocked(g: Pool2d) -> Launch:
    return kernel("maxpool2d_fprop_blocked", shape(g))


@compiled("maxpool2d_dgrad", name="rows", layout="nChw16c")
def maxpool2d_dgrad_blocked(g: Pool2d) -> Launch:
    return kernel("maxpool2d_dgrad_blocked", shape(g))
