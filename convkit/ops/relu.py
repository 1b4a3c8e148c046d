"""ReLU: `relu_fprop`, `relu_dgrad`."""

from __future__ import annotations

import numpy as np

from ..arrays import A
from ..dispatch import Arguments, operation
from ..op import defines
from .elementwise import Elementwise, ElementwiseCases
from .rounding import exact

Array = np.ndarray


@defines(
    "relu_fprop", Elementwise, ("x",), ("y",), inplace=True, slices="rows",
    cases=ElementwiseCases(most=2_200_000), rounding=exact,
)  # fmt: skip
def _fprop(g: Elementwise, x: Array, y: Array) -> None:
    y[...] = np.maximum(x.astype(np.float64), 0)


@defines(
    "relu_dgrad", Elementwise, ("dy", "y"), ("dx",), inplace=True, slices="rows", rectified=("y",),
    cases=ElementwiseCases(), rounding=exact,
)  # fmt: skip
def _dgrad(g: Elementwise, dy: Array, y: Array, dx: Array) -> None:
    dx[...] = np.where(y.astype(np.float64) <= 0, 0, dy.astype(np.float64))


@operation
def relu_fprop(x: A, *, impl: str | None = None, out: A | None = None) -> A:
    """Rectified linear unit, max(x, 0), of an array of any shape. `out` may be `x` itself.

    Returns
    -------
    y : array, of the shape of x
        NaN where x is NaN.
    """
    a = Arguments("relu_fprop", x=x)
    return a.run(Elementwise(a.x.shape, a.dtype), out=out, impl=impl)


@operation
def relu_dgrad(dy: A, y: A, *, impl: str | None = None, out: A | None = None) -> A:
    """Gradient of the rectified linear unit: dy where the output y is positive, else 0.

    Parameters
    ----------
    dy, y : array, of any one shape
        y is the output of `relu_fprop`; its input serves as well. `out` may be either of them.

    Returns
    -------
    dx : array, of the shape of dy
        At y = 0 the gradient is 0, as everywhere. Where y is NaN it is dy, as in PyTorch.
    """
    a = Arguments("relu_dgrad", dy=dy, y=y)
    return a.run(Elementwise(a.dy.shape, a.dtype), out=out, impl=impl)
