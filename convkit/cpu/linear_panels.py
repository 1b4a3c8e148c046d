"""Fully connected layers in C++: `native/kernels/linear_{fprop,backward}.cpp` argue the kernels.

Weights stay row by row, as users have them: every pass reads that order, so nothing is repacked in memory.
The 16-bit types are read and written by the kernels themselves, and computed in float32: half the bytes for a
small batch, whose bound they are.

The two ops that update weights have no function in `ops`: a plan uses them. `w_new` and `v_new` may be
`w` and `v`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import native
from ..geometry import Linear
from ..registry import implements
from . import keep, threads

Array = np.ndarray

_DECLARED: dict[str, Any] = {
    "name": "panels",
    "dtypes": ("float32", "bfloat16", "float16"),
    "rank": 20,
    "missing": native.kernels_missing,
}


def _problem(g: Linear) -> tuple[str, tuple[int, int, int]]:
    return g.dtype, (g.N, g.C, g.K)


def _kernel(name: str) -> Any:
    return getattr(native.kernels(), name)


def _fprop_workspace(g: Linear) -> int:
    return int(_kernel("linear_fprop_workspace")((g.N, g.C, g.K)))


def _dgrad_workspace(g: Linear) -> int:
    return int(_kernel("linear_backward_workspace")((g.N, g.C, g.K)))


@implements("linear_fprop", workspace=_fprop_workspace, **_DECLARED)
def linear_fprop(
    g: Linear, x: Array, w: Array, b: Array | None, y: Array, relu: bool = False, *, workspace: Array
) -> None:
    _kernel("linear_fprop")(*_problem(g), x, w, b, y, relu, workspace, threads.count())


def _backward(
    g: Linear,
    dy: Array,
    *,
    w: Array | None = None,
    x: Array | None = None,
    v: Array | None = None,
    dx: Array | None = None,
    dw: Array | None = None,
    w_new: Array | None = None,
    v_new: Array | None = None,
    relu: bool = False,
    workspace: Array | None = None,
    finite: Array | None = None,
    **sgd: Any,
) -> None:
    """Whatever of dx, dw and the new weights is wanted."""
    kernel = _kernel("linear_backward")
    if keep.forbidden(finite):
        assert w is not None and v is not None and w_new is not None and v_new is not None
        if dx is not None:
            _backward(g, dy, w=w, x=x, dx=dx, relu=relu, workspace=workspace)
        keep.copy((w, v), (w_new, v_new))
    else:
        kernel(*_problem(g), dy, w, x, v, dx, dw, w_new, v_new, relu, sgd, workspace, threads.count())


@implements("linear_dgrad", workspace=_dgrad_workspace, **_DECLARED)
def linear_dgrad(g: Linear, dy: Array, w: Array, dx: Array, *, workspace: Array) -> None:
    _backward(g, dy, w=w, dx=dx, workspace=workspace)


@implements("linear_wgrad", **_DECLARED)
def linear_wgrad(g: Linear, x: Array, dy: Array, dw: Array) -> None:
    _backward(g, dy, x=x, dw=dw)


@implements("linear_wgrad_sgd", **_DECLARED)
def linear_wgrad_sgd(
    g: Linear, x: Array, dy: Array, w: Array, v: Array, w_new: Array, v_new: Array, **sgd: Any
) -> None:
    _backward(g, dy, w=w, x=x, v=v, w_new=w_new, v_new=v_new, **sgd)


@implements("linear_dgrad_wgrad_sgd", workspace=_dgrad_workspace, **_DECLARED)
def linear_dgrad_wgrad_sgd(
    g: Linear,
    dy: Array,
    w: Array,
    x: Array,
    v: Array,
    dx: Array,
    w_new: Array,
    v_new: Array,
    relu: bool = False,
    **sgd: Any,
) -> None:
    _backward(g, dy, w=w, x=x, v=v, dx=dx, w_new=w_new, v_new=v_new, relu=relu, **sgd)
