"""2-D max pooling: `maxpool2d_fprop`, `maxpool2d_dgrad`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..arrays import A, np_dtype
from ..dispatch import Arguments, in_range, operation
from ..op import FILLS, Shape, defines
from . import window
from .pooling import Pooling, PoolingCases
from .rounding import exact, f64, sums

Array = np.ndarray


@dataclass(frozen=True)
class Pool2d(Pooling):
    """2-D max pooling. argmax counts row by row inside the window, in the smallest unsigned type."""

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        x, y = (self.N, self.C, self.H, self.W), (self.N, self.C, self.P, self.Q)
        return {"x": x, "dx": x, "y": y, "dy": y, "argmax": y}

    def dtype_of(self, tensor: str) -> str:
        if tensor != "argmax":
            return self.dtype
        taps = self.R * self.S
        return "uint8" if taps <= 2**8 else "uint16" if taps <= 2**16 else "uint32"

    def flops(self, op: str) -> int:
        """Comparisons forward, additions backward."""
        return self.N * self.C * self.P * self.Q * (self.R * self.S if op == "maxpool2d_fprop" else 1)

    def reduction(self, op: str) -> int:
        if op == "maxpool2d_fprop":
            return 1
        return -(-self.R // self.stride_h) * -(-self.S // self.stride_w)


# ---------------------------------------------------------------------------------------------------
# Cases
# ---------------------------------------------------------------------------------------------------
def random_argmax(g: Pool2d, rng: np.random.Generator, fill: Callable[[Any], None]) -> Array:
    """The argmax of a random input."""
    x, y = rng.standard_normal(g.shape("x")), np.empty(g.shape("y"))
    fill(x)
    argmax = np.empty(g.shape("argmax"), np_dtype(g.dtype_of("argmax")))
    fprop(g, x, y, argmax)
    return argmax


class _Cases(PoolingCases):
    fills = (*FILLS, "minus_inf")

    def values(
        self, tensor: str, problem: Any, rng: np.random.Generator, kind: str, fill: Callable[[Any], None]
    ) -> Array | None:
        return random_argmax(problem, rng, fill) if tensor == "argmax" else None


# ---------------------------------------------------------------------------------------------------
# Ops
# ---------------------------------------------------------------------------------------------------
@defines(
    "maxpool2d_fprop", Pool2d, ("x",), ("y", "argmax"), slices="rows", cases=_Cases(Pool2d), rounding=exact
)
def fprop(g: Pool2d, x: Array, y: Array, argmax: Array) -> None:
    """The definition."""
    image = f64(x)
    best = np.full(y.shape, -np.inf)
    winner = np.zeros(y.shape, np.int64)
    seen = np.zeros(y.shape, bool)
    for r, s, windows, pixels in window.seen(g):
        value, so_far = image[pixels], best[windows]
        # A NaN beats every number, and nothing beats the first NaN; padding takes no part.
        beats = (value > so_far) | (np.isnan(value) & ~np.isnan(so_far)) | ~seen[windows]
        so_far[beats] = value[beats]
        winner[windows][beats] = r * g.S + s
        seen[windows] = True
    y[...] = best
    argmax[...] = winner


@defines(
    "maxpool2d_dgrad", Pool2d, ("dy", "argmax"), ("dx",), slices="rows", dtypes={"argmax": "integer"},
    cases=_Cases(Pool2d), rounding=sums,
)  # fmt: skip
def dgrad(g: Pool2d, dy: Array, argmax: Array, dx: Array) -> None:
    """The definition."""
    gradient = f64(dy)
    total = np.zeros(dx.shape)
    for r, s, windows, pixels in window.seen(g):
        total[pixels] += np.where(argmax[windows] == r * g.S + s, gradient[windows], 0)
    dx[...] = total


@operation
def maxpool2d_fprop(
    x: A,
    *,
    window: Any = 3,
    stride: Any = 2,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    impl: str | None = None,
    out: tuple[A, A] | None = None,
) -> tuple[A, A]:
    """2-D max pooling, forward.

    Parameters
    ----------
    x : array, (N, C, H, W)
    window, stride, dilation : int or (vertical, horizontal)
    padding : int, (vertical, horizontal), or ((top, bottom), (left, right))
        Smaller than the window's span. Padding never wins.
    ceil_mode : bool
        Round the output size up, so that the last window may overhang the image (Caffe, the 2012 code);
        a window that would begin behind the image is dropped, and one that is larger than the padded image
        is refused.

    Returns
    -------
    y : array, (N, C, P, Q)
        A window with a NaN gives NaN; one that sees padding alone, as a dilated one can, -inf.
    argmax : array of uint8, (N, C, P, Q)
        Position of the maximum in its window, r*S + s; of equal ones the first, and of NaNs too; 0 where
        the window sees padding alone. uint16 or uint32 where the window has more than 256 or 65,536 taps.
    """
    a = Arguments("maxpool2d_fprop", x=x)
    problem = Pool2d.of(
        a.x.shape,
        window=window,
        stride=stride,
        padding=padding,
        dilation=dilation,
        ceil_mode=ceil_mode,
        dtype=a.dtype,
    )
    return a.run(problem, out=out, impl=impl)


@operation
def maxpool2d_dgrad(
    dy: A,
    argmax: A,
    x_shape: Any,
    *,
    window: Any = 3,
    stride: Any = 2,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    impl: str | None = None,
    out: A | None = None,
) -> A:
    """2-D max pooling: gradient with respect to its input.

    Parameters
    ----------
    dy : array, (N, C, P, Q)
    argmax : array of an integer dtype, (N, C, P, Q)
        The second result of `maxpool2d_fprop`.
    x_shape : (N, C, H, W)
    window, stride, padding, dilation, ceil_mode
        As in `maxpool2d_fprop`.

    Returns
    -------
    dx : array, (N, C, H, W)
        Each dy goes to the pixel that won; a pixel that won several windows gets their sum.

    Raises
    ------
    OptionError
        If argmax holds a position outside the window.
    """
    a = Arguments("maxpool2d_dgrad", dy=dy, argmax=argmax)
    problem = Pool2d.of(
        x_shape,
        window=window,
        stride=stride,
        padding=padding,
        dilation=dilation,
        ceil_mode=ceil_mode,
        dtype=a.dtype,
    )
    in_range("argmax", a.argmax, problem.R * problem.S, "a position in the window")
    return a.run(problem, out=out, impl=impl)
