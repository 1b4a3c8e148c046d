"""LRN across channels, in C++, a row at a time: native/kernels/lrn.hpp (nChw16c) and lrn_maps.cpp (NCHW)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from ..geometry import LRN
from ..registry import implements
from .native_call import NATIVE, STORAGE, call, kernels

Array = np.ndarray


def shape(g: LRN) -> Any:
    """The C++ struct `Lrn`."""
    return _shape(kernels(), g)


@lru_cache(maxsize=256)
def _shape(module: Any, g: LRN) -> Any:
    extents = (g.N, g.C, g.H, g.W, g.groups, g.behind, g.ahead)
    return module.Lrn(extents, g.k, g.alpha / g.taps, g.beta)


def across_channels(g: LRN) -> str | None:
    return None if g.region == "across_channels" else "takes windows across channels only"


@implements("lrn_fprop", name="rows", dtypes=STORAGE, when=across_channels, **NATIVE)
def lrn_fprop(g: LRN, x: Array, y: Array) -> None:
    call("lrn_fprop", g.dtype, shape(g), x, y)


@implements("lrn_dgrad", name="rows", dtypes=STORAGE, when=across_channels, **NATIVE)
def lrn_dgrad(g: LRN, dy: Array, x: Array, dx: Array) -> None:
    call("lrn_dgrad", g.dtype, shape(g), dy, x, dx)


@implements("lrn_fprop", name="rows", layout="nChw16c", when=across_channels, **NATIVE)
def lrn_fprop_blocked(g: LRN, x: Array, y: Array) -> None:
    call("lrn_fprop_blocked", shape(g), x, y)


@implements("lrn_dgrad", name="rows", layout="nChw16c", when=across_channels, **NATIVE)
def lrn_dgrad_blocked(g: LRN, dy: Array, x: Array, dx: Array) -> None:
    call("lrn_dgrad_blocked", shape(g), dy, x, dx)
