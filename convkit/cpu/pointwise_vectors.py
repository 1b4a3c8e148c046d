"""ReLU, dropout and the update rule in C++, in place too: native/kernels/pointwise.hpp."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..geometry import Pointwise
from ..registry import implements
from . import keep
from .native_call import NATIVE, STORAGE, call
from .philox import threshold

Array = np.ndarray


@implements("relu_fprop", name="vectors", dtypes=STORAGE, **NATIVE)
def relu_fprop(g: Pointwise, x: Array, y: Array) -> None:
    call("relu_fprop", g.dtype, g.size, x, y)


@implements("relu_dgrad", name="vectors", dtypes=STORAGE, **NATIVE)
def relu_dgrad(g: Pointwise, dy: Array, y: Array, dx: Array) -> None:
    call("relu_dgrad", g.dtype, g.size, dy, y, dx)


@implements("dropout_fprop", name="vectors", dtypes=STORAGE, **NATIVE)
def dropout_fprop(g: Pointwise, x: Array, y: Array, p: float, seed: int, offset: int, scale: float) -> None:
    call("dropout", g.dtype, g.size, x, y, seed, offset, threshold(p), scale)


@implements("dropout_dgrad", name="vectors", dtypes=STORAGE, **NATIVE)
def dropout_dgrad(g: Pointwise, dy: Array, dx: Array, p: float, seed: int, offset: int, scale: float) -> None:
    call("dropout", g.dtype, g.size, dy, dx, seed, offset, threshold(p), scale)


@implements("sgd_momentum", name="vectors", dtypes=STORAGE, **NATIVE)
def sgd_momentum(
    g: Pointwise,
    w: Array,
    dw: Array,
    v: Array,
    w_new: Array,
    v_new: Array,
    *,
    finite: Array | None = None,
    **options: Any,
) -> None:
    if keep.forbidden(finite):
        keep.copy((w, v), (w_new, v_new))
    else:
        call("sgd_momentum", g.dtype, g.size, w, dw, v, w_new, v_new, **options)
