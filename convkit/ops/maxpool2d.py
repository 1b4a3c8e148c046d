"""2-D max pooling: `maxpool2d_fprop`, `maxpool2d_dgrad`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..arrays import A, np_dtype
from ..dispatch import Arguments, in_range, operation
from ..errors import OptionError
from ..op import FILLS, Cases, Problem, Shape, defines, draw
from ..options import flag, pair, shape_of
from . import window
from .rounding import exact, f64, sums
from .window import output_extent, padding4, window_span

Array = np.ndarray


@dataclass(frozen=True)
class Pool2d(Problem):
    """2-D max pooling. argmax counts row by row inside the window, in the smallest unsigned type."""

    N: int
    C: int
    H: int
    W: int
    R: int
    S: int
    stride_h: int
    stride_w: int
    pad_top: int = 0
    pad_bottom: int = 0
    pad_left: int = 0
    pad_right: int = 0
    dilation_h: int = 1
    dilation_w: int = 1
    ceil_mode: bool = False
    dtype: str = "float32"

    @classmethod
    def of(
        cls,
        x_shape: Any,
        *,
        window: Any = 3,
        stride: Any = 2,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        dtype: str = "float32",
    ) -> Pool2d:
        N, C, H, W = shape_of("x", x_shape, 4, "(N, C, H, W)")
        R, S = pair("window", window, 1)
        problem = cls(
            *(N, C, H, W, R, S),
            *pair("stride", stride, 1),
            *padding4(padding),
            *pair("dilation", dilation, 1),
            flag("ceil_mode", ceil_mode),
            dtype,
        )
        if R * S > 2**32:
            raise OptionError(f"window {window!r} has more pixels than argmax can count: 2^32")
        span_h, span_w = window_span(R, problem.dilation_h), window_span(S, problem.dilation_w)
        if (
            max(problem.pad_top, problem.pad_bottom) >= span_h
            or max(problem.pad_left, problem.pad_right) >= span_w
        ):
            raise OptionError(
                f"padding {padding!r} must be smaller than the window's span ({span_h}, {span_w}): "
                "a window would see padding alone"
            )
        return problem

    @cached_property
    def P(self) -> int:
        return output_extent(
            self.H, self.R, self.stride_h, self.pad_top, self.pad_bottom, self.dilation_h, self.ceil_mode
        )

    @cached_property
    def Q(self) -> int:
        return output_extent(
            self.W, self.S, self.stride_w, self.pad_left, self.pad_right, self.dilation_w, self.ceil_mode
        )

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

    def __str__(self) -> str:
        return (
            f"x{self.shapes['x']} window {self.R},{self.S} stride {self.stride_h},{self.stride_w} "
            f"pad {(self.pad_top, self.pad_bottom, self.pad_left, self.pad_right)} "
            f"dil {self.dilation_h},{self.dilation_w}{' ceil' if self.ceil_mode else ''}"
        )


# ---------------------------------------------------------------------------------------------------
# Cases
# ---------------------------------------------------------------------------------------------------
#: (name, x, options)
_EDGES: tuple[tuple[str, tuple, dict[str, Any]], ...] = (
    ("one pixel", (1, 1, 1, 1), {"window": 1, "stride": 1}),
    ("1 x 1 window, stride 2", (2, 3, 7, 6), {"window": 1, "stride": 2}),
    ("window 2, stride 2", (2, 3, 8, 7), {"window": 2}),
    ("overlap", (2, 3, 9, 11), {"window": 3, "stride": 1, "padding": 1}),
    ("stride beyond the window", (2, 3, 13, 11), {"window": 2, "stride": (5, 4)}),
    ("ceil_mode overhang", (2, 3, 8, 6), {"ceil_mode": True}),
    (
        "ceil_mode drops a window behind the image",
        (1, 2, 4, 4),
        {"window": 1, "stride": 4, "ceil_mode": True},
    ),
    ("ceil_mode with padding", (1, 2, 8, 9), {"window": 3, "stride": 3, "padding": 1, "ceil_mode": True}),
    ("padding that differs on each side", (2, 3, 7, 8), {"window": 4, "padding": ((0, 3), (2, 1))}),
    ("dilation", (2, 3, 13, 12), {"dilation": (2, 3), "stride": 1}),
    ("taps wholly in the padding", (1, 2, 3, 3), {"dilation": 3, "padding": 3, "stride": 1}),
    ("one window on the whole image", (2, 3, 6, 5), {"window": (6, 5)}),
    ("primes", (3, 7, 17, 19), {"window": (5, 3), "stride": (3, 2)}),
    ("a row", (1, 3, 1, 23), {"window": (1, 3)}),
    ("a column", (1, 3, 23, 1), {"window": (3, 1)}),
    ("one column, strides that differ", (2, 3, 7, 1), {"window": (2, 1), "stride": (1, 2)}),
    ("one row, strides that differ", (2, 3, 1, 7), {"window": (1, 2), "stride": (2, 1)}),
    ("one column of outputs", (2, 3, 7, 4), {"window": (2, 3), "stride": (1, 5)}),
    ("one row of outputs", (2, 3, 4, 9), {"window": (3, 2), "stride": (5, 1)}),
    ("one pixel, a window of padding around", (3, 5, 1, 1), {"window": 3, "stride": (1, 2), "padding": 1}),
    ("padding up to the window's last tap", (2, 3, 5, 4), {"padding": 2}),
    ("padding beyond the image", (1, 2, 1, 1), {"window": 9, "stride": 3, "padding": 8}),
    ("65,538 taps: argmax of uint32", (1, 1, 2, 1), {"window": (65538, 1), "padding": ((65537, 0), (0, 0))}),
    ("256 taps: the last that fit uint8", (1, 2, 20, 19), {"window": 16, "stride": 2}),
    ("289 taps: argmax of uint16", (1, 2, 21, 20), {"window": 17, "stride": 2}),
    ("empty batch", (0, 3, 7, 7), {}),
)


def random_argmax(g: Pool2d, rng: np.random.Generator, fill: Callable[[Any], None]) -> Array:
    """The argmax of a random input."""
    x, y = rng.standard_normal(g.shape("x")), np.empty(g.shape("y"))
    fill(x)
    argmax = np.empty(g.shape("argmax"), np_dtype(g.dtype_of("argmax")))
    fprop(g, x, y, argmax)
    return argmax


class PoolCases(Cases):
    """What the gate asks."""

    extents = {
        name: window.extent(name, pads_within=True)
        for name in ("N", "C", "H", "W", *window.WINDOW, *window.PADS)
    }
    small = frozenset((*window.WINDOW, *window.PADS))
    fills = (*FILLS, "minus_inf")

    def layers(self) -> Iterable[tuple[str, Problem]]:
        yield "pool1", Pool2d.of((1, 96, 55, 55))
        yield "pool2", Pool2d.of((1, 256, 27, 27))
        yield "pool5", Pool2d.of((2, 256, 13, 13))

    def edges(self) -> Iterable[tuple[str, Problem]]:
        for name, x, options in _EDGES:
            yield name, Pool2d.of(x, **options)

    def data(self) -> Iterable[Problem]:
        return [
            Pool2d.of((2, 3, 11, 12), padding=1),
            Pool2d.of((2, 3, 9, 9)),
            Pool2d.of((1, 2, 8, 8), ceil_mode=True),
        ]

    def bases(self) -> list[Problem]:
        return [Pool2d(2, 3, 7, 6, 3, 2, 2, 1, 1, 0, 0, 1), Pool2d(1, 1, 2, 3, 2, 2, 1, 1)]

    def more(self) -> Iterable[tuple[str, Problem]]:
        return window.strides_and_dilations(self.bases()[0])

    def random(self, rng: np.random.Generator) -> Pool2d:
        (N, C), (R, S), (u, v), (i, j) = (
            draw(rng, 1, 4, 2),
            draw(rng, 1, 4, 2),
            draw(rng, 1, 4, 2),
            draw(rng, 1, 2, 2),
        )
        pads = window.random_pads(rng, min(window_span(R, i), window_span(S, j)) - 1)
        H = window.random_extent(rng, R, i, pads[0], pads[1])
        W = window.random_extent(rng, S, j, pads[2], pads[3])
        if thin := window.thin(rng):
            H, W = thin
            (R, i), (S, j) = window.fit(H, R, i, 0), window.fit(W, S, j, 0)
            spans = [window_span(n, d) for n, d in ((R, i), (R, i), (S, j), (S, j))]
            pads = [min(p, span - 1) for p, span in zip(pads, spans, strict=True)]
        return Pool2d(N, C, H, W, R, S, u, v, *pads, i, j, bool(rng.random() < 0.4))  # type: ignore[call-arg]

    def large(self) -> Iterable[tuple[str, Problem]]:
        yield "66,049 maps", Pool2d(257, 257, 2, 1, 2, 1, 1, 1)

    def huge(self) -> list[Problem]:
        many = 100_000
        return [
            Pool2d(many, 3, 32, 32, 3, 3, 2, 2),
            Pool2d(512, 512, 200, 200, 3, 3, 2, 2),
            Pool2d(1, 1, many, many, 3, 3, 2, 2),
            Pool2d(1, 2, 2, 2_000_000, 2, 3, 1, 2),
            Pool2d(1, 2, 2_000_000, 2, 3, 2, 2, 1),
        ]

    def values(
        self, tensor: str, problem: Any, rng: np.random.Generator, kind: str, fill: Callable[[Any], None]
    ) -> Array | None:
        return random_argmax(problem, rng, fill) if tensor == "argmax" else None


# ---------------------------------------------------------------------------------------------------
# Ops
# ---------------------------------------------------------------------------------------------------
@defines("maxpool2d_fprop", Pool2d, ("x",), ("y", "argmax"), slices="rows", cases=PoolCases(), rounding=exact)
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
    cases=PoolCases(), rounding=sums,
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
        Position of the maximum in its window, r*S + s; of equal ones the first. uint16 or uint32 where
        the window has more than 256 or 65,536 taps.
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
    return a.run(problem, out=out, impl=impl)  # type: ignore[no-any-return]


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
