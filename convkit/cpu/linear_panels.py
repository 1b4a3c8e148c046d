"""Fully connected layers in C++: `native/kernels/linear_{fprop,backward}.cpp` argue the kernels.

Weights stay row by row, as users have them: every pass reads that order, so nothing is repacked in memory.
The 16-bit types are read and written by the kernels themselves, and computed in float32: half the bytes for a
small batch, whose bound they are.

The two ops that update weights have no function in `ops`: a plan uses them. `w_new` and `v_new` may be
`w` and `v`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..ops.linear import Linear
from ..ops.sgd import forbidden, keep
from . import threads
from .native_call import STORAGE, compiled, kernels

Array = np.ndarray
Launch = Callable[..., None]


def _fprop_workspace(g: Linear) -> int:
    return int(kernels().linear_fprop_workspace((g.N, g.C, g.K)))


def _dgrad_workspace(g: Linear) -> int:
    return int(kernels().linear_backward_workspace((g.N, g.C, g.K)))


@compiled("linear_fprop", name="panels", dtypes=STORAGE, workspace=_fprop_workspace)
def linear_fprop(g: Linear) -> Launch:
    run, dtype, extents, count = kernels().linear_fprop, g.dtype, (g.N, g.C, g.K), threads.count

    def launch(
        x: Array, w: Array, b: Array | None, y: Array, relu: bool = False, *, workspace: Array
    ) -> None:
        run(dtype, extents, x, w, b, y, relu, workspace, count())

    return launch


def _backward(g: Linear) -> Launch:
    """Binds the kernel of whatever of dx, dw and the new weights is wanted: None where it is not."""
    run, dtype, extents, count = kernels().linear_backward, g.dtype, (g.N, g.C, g.K), threads.count

    def launch(
        *arrays: Array | None, relu: bool = False, sgd: dict[str, Any], workspace: Array | None = None
    ) -> None:
        """`arrays`: dy, w, x, v, dx, dw, w_new, v_new."""
        run(dtype, extents, *arrays, relu, sgd, workspace, count())

    return launch


@compiled("linear_dgrad", name="panels", dtypes=STORAGE, workspace=_dgrad_workspace)
def linear_dgrad(g: Linear) -> Launch:
    run = _backward(g)

    def launch(dy: Array, w: Array, dx: Array, *, workspace: Array) -> None:
        run(dy, w, None, None, dx, None, None, None, sgd={}, workspace=workspace)

    return launch


@compiled("linear_wgrad", name="panels", dtypes=STORAGE)
def linear_wgrad(g: Linear) -> Launch:
    run = _backward(g)

    def launch(x: Array, dy: Array, dw: Array) -> None:
        run(dy, None, x, None, None, dw, None, None, sgd={})

    return launch


@compiled("linear_wgrad_sgd", name="panels", dtypes=STORAGE)
def linear_wgrad_sgd(g: Linear) -> Launch:
    run = _backward(g)

    def launch(
        x: Array,
        dy: Array,
        w: Array,
        v: Array,
        w_new: Array,
        v_new: Array,
        *,
        finite: Array | None = None,
        **sgd: Any,
    ) -> None:
        if forbidden(finite):
            keep((w, v), (w_new, v_new))
            return
        run(dy, w, x, v, None, None, w_new, v_new, sgd=sgd)

    return launch


@compiled("linear_dgrad_wgrad_sgd", name="panels", dtypes=STORAGE, workspace=_dgrad_workspace)
def linear_dgrad_wgrad_sgd(g: Linear) -> Launch:
    run = _backward(g)

    def launch(
        dy: Array,
        w: Array,
        x: Array,
        v: Array,
        dx: Array,
        w_new: Array,
        v_new: Array,
        relu: bool = False,
        *,
        workspace: Array,
        finite: Array | None = None,
        **sgd: Any,
    ) -> None:
        if forbidden(finite):
            run(dy, w, x, None, dx, None, None, None, relu=relu, sgd={}, workspace=workspace)
            keep((w, v), (w_new, v_new))
            return
        run(dy, w, x, v, dx, None, w_new, v_new, relu=relu, sgd=sgd, workspace=workspace)

    return launch
