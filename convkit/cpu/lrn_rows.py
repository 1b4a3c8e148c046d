"""LRN across channels, in C++, a row at a time: native/kernels/lrn.hpp (nChw16c) and lrn_maps.cpp (NCHW)."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from ..ops.lrn import LRN
from .native_call import STORAGE, compiled, kernel, kernels

Launch = Callable[..., None]


def shape(g: LRN) -> Any:
    """The C++ struct `Lrn`."""
    return _shape(kernels(), g)


@lru_cache(maxsize=256)
def _shape(module: Any, g: LRN) -> Any:
    extents = (g.N, g.C, g.H, g.W, g.groups, g.behind, g.ahead)
    return module.Lrn(extents, g.k, g.alpha / g.taps, g.beta)


def across_channels(g: LRN) -> str | None:
    return None if g.region == "across_channels" else "takes windows across channels only"


@compiled("lrn_fprop", name="rows", dtypes=STORAGE, when=across_channels)
def lrn_fprop(g: LRN) -> Launch:
    return kernel("lrn_fprop", g.dtype, shape(g))


@compiled("lrn_dgrad", name="rows", dtypes=STORAGE, when=across_channels)
def lrn_dgrad(g: LRN) -> Launch:
    return kernel("lrn_dgrad", g.dtype, shape(g))


@compiled("lrn_fprop", name="rows", layout="nChw16c", when=across_channels)
def lrn_fprop_blocked(g: LRN) -> Launch:
    return kernel("lrn_fprop_blocked", shape(g))


@compiled("lrn_dgrad", name="rows", layout="nChw16c", when=across_channels)
def lrn_dgrad_blocked(g: LRN) -> Launch:
    return kernel("lrn_dgrad_blocked", shape(g))
