"""2-D convolution: `conv2d_fprop`, `conv2d_dgrad`, `conv2d_wgrad`, `conv2d_bgrad`.

`conv2d_dgrad_relu` takes the gradient of the ReLU below as well; `conv2d_wgrad_bgrad` makes the gradients of
weights and bias as one op, so that dy is read once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ..arrays import A
from ..dispatch import Arguments, operation
from ..errors import ShapeError
from ..op import OPS, Cases, Op, Problem, Shape, Tensors, Weights, defines, draw
from ..options import flag, integer, pair, shape_of
from . import channel_sum, window
from .channel_sum import ChannelSum
from .rounding import f64, sums
from .window import output_extent, padding4

Array = np.ndarray


@dataclass(frozen=True)
class Conv2d(Problem):
    """A 2-D convolution (cross-correlation, as in every deep-learning library), for all its passes."""

    of_parameters: ClassVar[frozenset[str]] = frozenset(("dw", "db"))

    N: int
    C: int
    H: int
    W: int
    K: int
    R: int
    S: int
    stride_h: int = 1
    stride_w: int = 1
    pad_top: int = 0
    pad_bottom: int = 0
    pad_left: int = 0
    pad_right: int = 0
    dilation_h: int = 1
    dilation_w: int = 1
    groups: int = 1
    dtype: str = "float32"

    @classmethod
    def of(
        cls,
        x_shape: Any,
        w_shape: Any,
        *,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        dtype: str = "float32",
    ) -> Conv2d:
        """Validate what a user wrote and make the problem.

        Parameters
        ----------
        x_shape : (N, C, H, W)
        w_shape : (K, C/groups, R, S)
        stride, dilation : int or (vertical, horizontal)
        padding : int, (vertical, horizontal), or ((top, bottom), (left, right))
        """
        N, C, H, W = shape_of("x", x_shape, 4, "(N, C, H, W)")
        K, C_group, R, S = shape_of("w", w_shape, 4, "(K, C/groups, R, S)")
        groups = integer("groups", groups, 1)
        if C % groups:
            raise ShapeError(f"x has C = {C} channels, not divisible by groups = {groups}")
        if K % groups:
            raise ShapeError(f"w has K = {K} filters, not divisible by groups = {groups}")
        if K == 0:
            raise ShapeError(f"w must have at least one filter: {tuple(w_shape)}")
        if C_group * groups != C:
            raise ShapeError(
                f"w of shape {tuple(w_shape)} has {C_group} channels per filter, but x of shape "
                f"{tuple(x_shape)} with groups = {groups} needs C/groups = {C // groups}"
            )
        return cls(
            *(N, C, H, W, K, R, S),
            *pair("stride", stride, 1),
            *padding4(padding),
            *pair("dilation", dilation, 1),
            groups,
            dtype,
        )

    @cached_property
    def P(self) -> int:
        return output_extent(self.H, self.R, self.stride_h, self.pad_top, self.pad_bottom, self.dilation_h)

    @cached_property
    def Q(self) -> int:
        return output_extent(self.W, self.S, self.stride_w, self.pad_left, self.pad_right, self.dilation_w)

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        x = (self.N, self.C, self.H, self.W)
        w = (self.K, self.C // self.groups, self.R, self.S)
        b = (self.K,)
        y = (self.N, self.K, self.P, self.Q)
        return {"x": x, "dx": x, "w": w, "dw": w, "b": b, "db": b, "y": y, "dy": y}

    def flops(self, op: str) -> int:
        return 2 * self.N * self.K * self.P * self.Q * (self.C // self.groups) * self.R * self.S

    def reduction(self, op: str) -> int:
        if op == "conv2d_fprop":
            return (self.C // self.groups) * self.R * self.S + 1
        if op.startswith("conv2d_dgrad"):
            return (self.K // self.groups) * self.R * self.S
        return max(1, self.N * self.P * self.Q)

    def __str__(self) -> str:
        extra = f" groups {self.groups}" if self.groups > 1 else ""
        pads = (self.pad_top, self.pad_bottom, self.pad_left, self.pad_right)
        extra += f" pad {pads[0] if len(set(pads)) == 1 else pads}" if any(pads) else ""
        extra += (
            "" if self.dilation_h == self.dilation_w == 1 else f" dil {self.dilation_h},{self.dilation_w}"
        )
        return f"x{self.shapes['x']} w{self.shapes['w']} stride {self.stride_h},{self.stride_w}{extra}"


# ---------------------------------------------------------------------------------------------------
# Definition
# ---------------------------------------------------------------------------------------------------
def _groups(g: Conv2d) -> Iterator[tuple[slice, slice]]:
    """The (input channels, filters) of each group."""
    c, k = g.C // g.groups, g.K // g.groups
    for i in range(g.groups):
        yield slice(i * c, (i + 1) * c), slice(i * k, (i + 1) * k)


def _pixels(maps: Array) -> Array:
    """(N, channels, P, Q) as one matrix for each image, (N, channels, P*Q)."""
    return maps.reshape(*maps.shape[:2], -1)


def _maps(matrices: Array, like: Array) -> Array:
    """(N, channels, pixels) as maps again, of the extents of `like`."""
    return matrices.reshape(*matrices.shape[:2], *like.shape[2:])


# ---------------------------------------------------------------------------------------------------
# Cases
# ---------------------------------------------------------------------------------------------------
#: name: (x, w, options) of each convolution; 2012's first image has 224 pixels and 3 more on two sides.
_LAYERS: dict[str, tuple[tuple, tuple, dict[str, Any]]] = {
    "2012 conv1": ((1, 3, 224, 224), (96, 3, 11, 11), {"stride": 4, "padding": ((0, 3), (0, 3))}),
    "caffe conv1": ((1, 3, 227, 227), (96, 3, 11, 11), {"stride": 4}),
    "2012 conv2": ((1, 96, 27, 27), (256, 48, 5, 5), {"padding": 2, "groups": 2}),
    "2012 conv3": ((1, 256, 13, 13), (384, 256, 3, 3), {"padding": 1}),
    "2012 conv4": ((1, 384, 13, 13), (384, 192, 3, 3), {"padding": 1, "groups": 2}),
    "2012 conv5": ((2, 384, 13, 13), (256, 192, 3, 3), {"padding": 1, "groups": 2}),
    "owt conv1": ((1, 3, 224, 224), (64, 3, 11, 11), {"stride": 4, "padding": 2}),
    "owt conv2": ((1, 64, 27, 27), (192, 64, 5, 5), {"padding": 2}),
    "owt conv3": ((1, 192, 13, 13), (384, 192, 3, 3), {"padding": 1}),
    "owt conv4": ((2, 384, 13, 13), (256, 384, 3, 3), {"padding": 1}),
}
#: (name, x, w, options)
_EDGES: tuple[tuple[str, tuple, tuple, dict[str, Any]], ...] = (
    ("one pixel", (1, 1, 1, 1), (1, 1, 1, 1), {}),
    ("one pixel seen by a 3 x 3 window", (2, 3, 1, 1), (4, 3, 3, 3), {"padding": 1}),
    ("1 x 1 window", (2, 5, 7, 6), (3, 5, 1, 1), {}),
    ("1 x 1 window on a larger map", (2, 18, 19, 17), (31, 18, 1, 1), {}),
    ("1 x 1 window on a map of 2 x 128 pixels", (1, 33, 2, 128), (14, 33, 1, 1), {}),
    ("1 x 1 window in groups", (2, 10, 16, 13), (6, 5, 1, 1), {"groups": 2}),
    ("1 x 1 window, stride 2", (2, 6, 7, 6), (4, 3, 1, 1), {"stride": 2, "groups": 2}),
    ("stride beyond the window", (2, 3, 13, 11), (5, 3, 2, 2), {"stride": (5, 4)}),
    ("rows that no window sees", (2, 2, 12, 11), (3, 2, 3, 3), {"stride": 4}),
    ("dilation", (2, 4, 13, 12), (5, 4, 3, 3), {"dilation": (2, 3), "padding": 2}),
    ("dilation in groups", (1, 6, 11, 11), (4, 3, 3, 2), {"dilation": 3, "groups": 2, "stride": 2}),
    ("padding that differs on each side", (2, 3, 6, 7), (4, 3, 3, 4), {"padding": ((0, 2), (3, 1))}),
    ("padding beyond the window", (1, 2, 3, 3), (3, 2, 2, 2), {"padding": 4}),
    ("taps wholly in the padding", (1, 2, 2, 2), (3, 2, 3, 3), {"dilation": 4, "padding": 4}),
    ("one window on the whole image", (3, 4, 6, 5), (7, 4, 6, 5), {}),
    ("depthwise", (2, 7, 8, 8), (7, 1, 3, 3), {"padding": 1, "groups": 7}),
    ("depthwise, two filters each", (1, 5, 9, 8), (10, 1, 3, 3), {"groups": 5, "stride": 2}),
    ("depthwise, three filters each", (2, 4, 5, 3), (12, 1, 2, 3), {"groups": 4, "padding": 1}),
    ("five images, five groups", (5, 10, 4, 3), (15, 2, 2, 2), {"groups": 5, "stride": (1, 2)}),
    ("one channel", (3, 1, 9, 9), (8, 1, 5, 5), {"padding": 2}),
    ("one filter", (2, 9, 9, 9), (1, 9, 3, 3), {"padding": 1}),
    ("primes", (3, 7, 17, 19), (11, 7, 5, 3), {"padding": ((1, 3), (2, 0)), "stride": (3, 2)}),
    ("many channels, few pixels", (2, 130, 3, 3), (67, 130, 3, 3), {"padding": 1}),
    ("few channels, many pixels", (1, 3, 37, 41), (16, 3, 3, 3), {"padding": 1}),
    ("a row", (2, 3, 1, 23), (4, 3, 1, 3), {"padding": (0, 1)}),
    ("a column", (2, 3, 23, 1), (4, 3, 3, 1), {"padding": (1, 0), "stride": (2, 1)}),
    ("one column, one filter tap, strides that differ", (2, 3, 7, 1), (4, 3, 1, 1), {"stride": (1, 2)}),
    ("one row, one filter tap, strides that differ", (2, 3, 1, 7), (4, 3, 1, 1), {"stride": (2, 1)}),
    ("one column, a row of taps", (2, 3, 7, 1), (4, 3, 1, 3), {"stride": (1, 3), "padding": (0, 1)}),
    ("one row, a column of taps", (2, 3, 1, 7), (4, 3, 3, 1), {"stride": (3, 1), "padding": (1, 0)}),
    ("one column of outputs", (2, 3, 7, 4), (4, 3, 2, 3), {"stride": (1, 5)}),
    ("one row of outputs", (2, 3, 4, 9), (4, 3, 3, 2), {"stride": (5, 1)}),
    ("one pixel, strides that differ", (3, 5, 1, 1), (4, 5, 1, 1), {"stride": (1, 2)}),
    ("one output, dilation", (2, 3, 5, 1), (4, 3, 3, 1), {"stride": (2, 7), "dilation": (2, 3)}),
    (
        "padding on one side alone",
        (2, 3, 1, 5),
        (4, 3, 2, 1),
        {"padding": ((2, 0), (0, 0)), "stride": (1, 2)},
    ),
    ("a small conv1", (2, 3, 31, 31), (20, 3, 11, 11), {"stride": 4, "padding": ((0, 3), (0, 3))}),
    ("a small conv2", (2, 12, 9, 9), (24, 6, 5, 5), {"padding": 2, "groups": 2}),
    ("a small conv3", (2, 20, 13, 13), (36, 20, 3, 3), {"padding": 1}),
    ("empty batch", (0, 3, 7, 7), (4, 3, 3, 3), {}),
)


def _layers() -> Iterator[tuple[str, Conv2d]]:
    for name, (x, w, options) in _LAYERS.items():
        yield name, Conv2d.of(x, w, **options)


def _conv_channels(g: Conv2d, value: int) -> Problem:
    return replace(g, C=value * g.groups)


def _conv_filters(g: Conv2d, value: int) -> Problem:
    return replace(g, K=value * g.groups)


def _conv_groups(g: Conv2d, value: int) -> Problem:
    return replace(g, C=g.C // g.groups * value, K=g.K // g.groups * value, groups=value)


class _Cases(Cases):
    extents = {
        **{name: window.extent(name) for name in ("N", "H", "W", *window.WINDOW, *window.PADS)},
        "channels": _conv_channels,
        "filters": _conv_filters,
        "groups": _conv_groups,
    }
    small = frozenset((*window.WINDOW, *window.PADS))

    def layers(self) -> Iterable[tuple[str, Problem]]:
        return _layers()

    def edges(self) -> Iterable[tuple[str, Problem]]:
        for name, x, w, options in _EDGES:
            yield name, Conv2d.of(x, w, **options)

    def data(self) -> Iterable[Problem]:
        return [
            Conv2d.of((2, 6, 11, 10), (8, 6, 3, 3), padding=1),
            Conv2d.of((2, 6, 12, 9), (4, 3, 3, 2), stride=2, groups=2),
        ]

    def tried(self) -> Problem:
        return Conv2d.of((2, 6, 9, 8), (4, 3, 3, 3), padding=1, stride=2, groups=2)

    def bases(self) -> list[Problem]:
        wide, plain = Conv2d(2, 2, 5, 4, 3, 2, 3, 1, 2, 1, 0, 1, 2), Conv2d(1, 3, 1, 2, 2, 1, 1)
        return [wide, plain, Conv2d(1, 2, 2, 3, 2, 2, 2)]

    def more(self) -> Iterable[tuple[str, Problem]]:
        return window.strides_and_dilations(self.bases()[0])

    def random(self, rng: np.random.Generator) -> Problem:
        groups = int(rng.choice([1, 1, 1, 2, 3]))
        (N,), (c, k), (R, S) = draw(rng, 1, 3, 1), draw(rng, 1, 9, 2), draw(rng, 1, 5, 2)
        (u, v), (i, j), pads = draw(rng, 1, 3, 2), draw(rng, 1, 2, 2), window.random_pads(rng, 3)
        if rng.random() < 0.25:  # the shape that fast algorithms are written for
            R, S, u, v, i, j = 3, 3, 1, 1, 1, 1
        H = window.random_extent(rng, R, i, pads[0], pads[1])
        W = window.random_extent(rng, S, j, pads[2], pads[3])
        if thin := window.thin(rng):
            H, W = thin
            (R, i) = window.fit(H, R, i, pads[0] + pads[1])
            (S, j) = window.fit(W, S, j, pads[2] + pads[3])
        if rng.random() < 0.1:  # and that of a matrix product
            R, S, u, v, i, j, pads = 1, 1, 1, 1, 1, 1, [0, 0, 0, 0]
            H, W = draw(rng, 8, 24, 2)
        return Conv2d(N, c * groups, H, W, k * groups, R, S, u, v, *pads, i, j, groups)  # type: ignore[call-arg]

    def large(self) -> Iterable[tuple[str, Problem]]:
        many = 65_537
        yield "66,049 pixels", Conv2d(1, 2, 257, 257, 3, 3, 3, 1, 1, 1, 1, 1, 1)
        yield "65,537 images", Conv2d(many, 1, 1, 2, 2, 1, 2)
        yield "65,537 filters", Conv2d(1, 2, 1, 1, many, 1, 1)

    def huge(self) -> list[Problem]:
        many = 100_000
        return [
            Conv2d(many, 3, 16, 16, 64, 3, 3),
            Conv2d(1, many, 8, 8, 64, 3, 3),
            Conv2d(1, 64, 8, 8, many, 3, 3),
            Conv2d(1, many, 8, 8, many, 3, 3, groups=many),
            Conv2d(1, 1, many, many, 1, 3, 3),
            Conv2d(512, 256, 256, 256, 64, 3, 3, 1, 1, 1, 1, 1, 1),
            Conv2d(1, 64, 2, 2_000_000, 64, 1, 3),
            Conv2d(1, 64, 2_000_000, 2, 64, 3, 1),
        ]

    def plantable(self, op: Op, problem: Any) -> set[str]:
        """All but the input that meets the padding.

        Whether 0 * NaN is computed there, or left out as no pixel at all, is the algorithm's own affair. In a
        dgrad, zeros between the strides meet w in the same way.
        """
        g, names = problem, set(op.inputs)
        padded = any((g.pad_top, g.pad_bottom, g.pad_left, g.pad_right))
        if "dx" in op.outputs or padded:
            names.discard("w")
        if "dw" in op.outputs and padded:
            names.discard("dy")
        return names


# ---------------------------------------------------------------------------------------------------
# Ops
# ---------------------------------------------------------------------------------------------------
@defines(
    "conv2d_fprop", Conv2d, ("x", "w", "b"), ("y",), optional=("b",), options=("relu",), slices="rows",
    whole=("w", "b"), cases=_Cases(), rounding=sums,
)  # fmt: skip
def _fprop(g: Conv2d, x: Array, w: Array, b: Array | None, y: Array, relu: bool = False) -> None:
    image, weights = f64(x), f64(w)
    total = np.zeros(y.shape)
    if b is not None:
        total += f64(b)[:, None, None]
    for r, s, windows, pixels in window.seen(g):
        part, seen = total[windows], image[pixels]
        for c, k in _groups(g):
            part[:, k] += _maps(weights[k, :, r, s] @ _pixels(seen[:, c]), part)
    y[...] = np.maximum(total, 0) if relu else total


@defines(
    "conv2d_dgrad", Conv2d, ("dy", "w"), ("dx",), slices="rows", whole=("w",), cases=_Cases(), rounding=sums
)
def _dgrad(g: Conv2d, dy: Array, w: Array, dx: Array) -> None:
    gradient, weights = f64(dy), f64(w)
    total = np.zeros(dx.shape)
    for r, s, windows, pixels in window.seen(g):
        part, seen = total[pixels], gradient[windows]
        for c, k in _groups(g):
            part[:, c] += _maps(weights[k, :, r, s].T @ _pixels(seen[:, k]), part)
    dx[...] = total


# dx of a convolution whose input x is a ReLU's output: zero where x is.
@defines(
    "conv2d_dgrad_relu", Conv2d, ("dy", "w", "x"), ("dx",), slices="rows", whole=("w",), rectified=("x",),
    parts=("conv2d_dgrad", "relu_dgrad"), cases=_Cases(), rounding=sums,
)  # fmt: skip
def _dgrad_relu(g: Conv2d, dy: Array, w: Array, x: Array, dx: Array) -> None:
    gradient = np.empty(dx.shape)
    _dgrad(g, dy, w, gradient)
    dx[...] = np.where(f64(x) <= 0, 0, gradient)


@defines("conv2d_wgrad", Conv2d, ("x", "dy"), ("dw",), slices="filters", cases=_Cases(), rounding=sums)
def _wgrad(g: Conv2d, x: Array, dy: Array, dw: Array) -> None:
    image, gradient = f64(x), f64(dy)
    dw[...] = 0
    for r, s, windows, pixels in window.seen(g):
        for c, k in _groups(g):
            products = _pixels(gradient[windows][:, k]) @ _pixels(image[pixels][:, c]).swapaxes(1, 2)
            dw[k, :, r, s] = products.sum(axis=0)


defines(
    "conv2d_bgrad", ChannelSum, ("dy",), ("db",), slices="filters",
    cases=channel_sum.Images((name, ChannelSum.of(conv.shape("y"), 4)) for name, conv in _layers()),
    rounding=sums,
)(channel_sum.define)  # fmt: skip


def _bias(g: Conv2d) -> ChannelSum:
    """The problem of the bias's gradient."""
    return ChannelSum.of(g.shape("dy"), 4, g.dtype)


def _both_rounding(
    op: Op, g: Conv2d, inputs: Tensors, options: dict[str, Any], values: dict[str, Array]
) -> Weights:
    """Of each gradient as of the op that makes it alone."""
    own: Tensors = {"dy": inputs["dy"]}
    return {
        **sums(OPS["conv2d_wgrad"], g, inputs, options, {"dw": values["dw"]}),
        **sums(OPS["conv2d_bgrad"], _bias(g), own, options, {"db": values["db"]}),
    }


@defines(
    "conv2d_wgrad_bgrad", Conv2d, ("x", "dy"), ("dw", "db"), slices="filters", direction="wgrad",
    parts=("conv2d_wgrad", "conv2d_bgrad"), cases=_Cases(), rounding=_both_rounding,
)  # fmt: skip
def _wgrad_bgrad(g: Conv2d, x: Array, dy: Array, dw: Array, db: Array) -> None:
    _wgrad(g, x, dy, dw)
    channel_sum.define(_bias(g), dy, db)


@operation
def conv2d_fprop(
    x: A,
    w: A,
    b: A | None = None,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    relu: bool = False,
    math: str | None = None,
    impl: str | None = None,
    out: A | None = None,
) -> A:
    """2-D convolution, forward.

    ``y[n,k,p,q] = b[k] + sum over c,r,s of x[n, c, p*stride + r*dilation - pad, ...] * w[k,c,r,s]``

    Parameters
    ----------
    x : array, (N, C, H, W)
    w : array, (K, C/groups, R, S)
    b : array, (K,), optional
    stride, dilation : int or (vertical, horizontal)
    padding : int, (vertical, horizontal), or ((top, bottom), (left, right))
        Zeros around the image.
    groups : int
        Channels and filters are split into so many independent parts.
    relu : bool
        Apply max(y, 0) before the result is stored.
    math : {"fp32", "tf32", "fp32-emulated"}, optional
        Coarsest arithmetic accepted for float32 data: "fp32" (the default) is true float32 throughout,
        "fp32-emulated" tensor cores with float32-grade error, "tf32" a 10-bit mantissa.
    impl, out
        See the module. The default may be Winograd, whose declared error is an RMS, not a bound for each
        element: beside an outlier, see "Winograd and outliers" in docs/cpu.md.

    Returns
    -------
    y : array, (N, K, P, Q)
        ``P = (H + top + bottom - ((R - 1) * dilation + 1)) // stride + 1``, Q likewise.

    Raises
    ------
    ShapeError, DtypeError, OptionError, NoImplementation
        All are `ConvkitError`, and a `ValueError` or `TypeError`.
    """
    a = Arguments("conv2d_fprop", x=x, w=w, b=b)
    problem = Conv2d.of(
        a.x.shape, a.w.shape, stride=stride, padding=padding, dilation=dilation, groups=groups, dtype=a.dtype
    )
    return a.run(problem, out=out, impl=impl, math=math, relu=flag("relu", relu))


@operation
def conv2d_dgrad(
    dy: A,
    w: A,
    x_shape: Any,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    math: str | None = None,
    impl: str | None = None,
    out: A | None = None,
) -> A:
    """2-D convolution: gradient with respect to its input.

    Parameters
    ----------
    dy : array, (N, K, P, Q)
    w : array, (K, C/groups, R, S)
    x_shape : (N, C, H, W)
        Needed because several input sizes give the same output size where stride > 1.
    stride, padding, dilation, groups, math
        As in `conv2d_fprop`.

    Returns
    -------
    dx : array, (N, C, H, W)
    """
    a = Arguments("conv2d_dgrad", dy=dy, w=w)
    problem = Conv2d.of(
        x_shape, a.w.shape, stride=stride, padding=padding, dilation=dilation, groups=groups, dtype=a.dtype
    )
    return a.run(problem, out=out, impl=impl, math=math)


@operation
def conv2d_wgrad(
    x: A,
    dy: A,
    w_shape: Any,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    dtype: str | None = None,
    math: str | None = None,
    impl: str | None = None,
    out: A | None = None,
) -> A:
    """2-D convolution: gradient with respect to its weights, summed over the batch.

    Parameters
    ----------
    x : array, (N, C, H, W)
    dy : array, (N, K, P, Q)
    w_shape : (K, C/groups, R, S)
    stride, padding, dilation, groups, math
        As in `conv2d_fprop`.
    dtype : str, optional
        Of the gradient: by default that of x and dy. Of 16-bit arrays it may be "float32": the sum, which is
        in float32 anyhow, is then not rounded.

    Returns
    -------
    dw : array, (K, C/groups, R, S)
        Zeros for an empty batch.
    """
    a = Arguments("conv2d_wgrad", x=x, dy=dy)
    problem = Conv2d.of(
        a.x.shape,
        w_shape,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        dtype=a.with_parameters(dtype),
    )
    return a.run(problem, out=out, impl=impl, math=math)


@operation
def conv2d_bgrad(dy: A, *, dtype: str | None = None, impl: str | None = None, out: A | None = None) -> A:
    """2-D convolution: gradient with respect to its bias.

    Parameters
    ----------
    dy : array, (N, K, P, Q)
    dtype : str, optional
        As in `conv2d_wgrad`.

    Returns
    -------
    db : array, (K,)
        dy summed over images and pixels.
    """
    a = Arguments("conv2d_bgrad", dy=dy)
    return a.run(ChannelSum.of(a.dy.shape, 4, a.with_parameters(dtype)), out=out, impl=impl)


@operation
def conv2d_dgrad_relu(
    dy: A,
    w: A,
    x: A,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    math: str | None = None,
    impl: str | None = None,
    out: A | None = None,
) -> A:
    """Gradient of a convolution with respect to the input of the ReLU below it: `conv2d_dgrad`, `relu_dgrad`.

    Parameters
    ----------
    dy : array, (N, K, P, Q)
    w : array, (K, C/groups, R, S)
    x : array, (N, C, H, W)
        The convolution's input, which is the ReLU's output.
    stride, padding, dilation, groups, math
        As in `convkit.conv2d_fprop`.

    Returns
    -------
    dx : array, (N, C, H, W)
        Zero where x is not positive.
    """
    a = Arguments("conv2d_dgrad_relu", dy=dy, w=w, x=x)
    problem = Conv2d.of(
        a.x.shape, a.w.shape, stride=stride, padding=padding, dilation=dilation, groups=groups, dtype=a.dtype
    )
    return a.run(problem, out=out, impl=impl, math=math)


@operation
def conv2d_wgrad_bgrad(
    x: A,
    dy: A,
    w_shape: Any,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    dtype: str | None = None,
    math: str | None = None,
    impl: str | None = None,
    out: tuple[A, A] | None = None,
) -> tuple[A, A]:
    """2-D convolution: gradients with respect to its weights and to its bias, summed over the batch.

    `conv2d_wgrad` and `conv2d_bgrad` as one, which reads dy once. There are kernels for CUDA alone.
    Elsewhere the definition runs, in float64; there the two ops are faster.

    Parameters
    ----------
    x : array, (N, C, H, W)
    dy : array, (N, K, P, Q)
    w_shape : (K, C/groups, R, S)
    stride, padding, dilation, groups, math
        As in `convkit.conv2d_fprop`.
    dtype : str, optional
        Of both gradients, as in `convkit.conv2d_wgrad`.

    Returns
    -------
    dw : array, (K, C/groups, R, S)
        Zeros for an empty batch.
    db : array, (K,)
        dy summed over images and pixels; zeros for an empty batch.
    """
    a = Arguments("conv2d_wgrad_bgrad", x=x, dy=dy)
    problem = Conv2d.of(
        a.x.shape,
        w_shape,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        dtype=a.with_parameters(dtype),
    )
    return a.run(problem, out=out, impl=impl, math=math)
