"""ReLU, dropout and the update rule in C++, in place too: native/kernels/pointwise.hpp."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..ops.elementwise import Elementwise
from ..ops.philox import threshold
from ..ops.sgd import forbidden, keep
from .native_call import STORAGE, compiled, kernel

Array = np.ndarray
Launch = Callable[..., None]


@compiled("relu_fprop", name="vectors", dtypes=STORAGE)
def relu_fprop(g: Elementwise) -> Launch:
    return kernel("relu_fprop", g.dtype, g.size)


@compiled("relu_dgrad", name="vectors", dtypes=STORAGE)
def relu_dgrad(g: Elementwise) -> Launch:
    return kernel("relu_dgrad", g.dtype, g.size)


@compiled("dropout_dgrad", name="vectors", dtypes=STORAGE)
@compiled("dropout_fprop", name="vectors", dtypes=STORAGE)
def dropout(g: Elementwise) -> Launch:
    run = kernel("dropout", g.dtype, g.size)

    def launch(x: Array, y: Array, p: float, seed: int, offset: int, scale: float) -> None:
        run(x, y, seed, offset, threshold(p), scale)

    return launch


@compiled("sgd_momentum", name="vectors", dtypes=STORAGE)
def sgd_momentum(g: Elementwise) -> Launch:
    run = kernel("sgd_momentum", g.dtype, g.size)

    def launch(
        w: Array,
        dw: Array,
        v: Array,
        w_new: Array,
        v_new: Array,
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        dampening: float,
        nesterov: bool,
        lr_in_velocity: bool,
        finite: Array | None = None,
    ) -> None:
        if forbidden(finite):
            keep((w, v), (w_new, v_new))
            return
        run(w, dw, v, w_new, v_new, lr, momentum, weight_decay, dampening, nesterov, lr_in_velocity)

    return launch
