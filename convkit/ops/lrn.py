"""Local response normalisation: `lrn_fprop`, `lrn_dgrad`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ..arrays import A
from ..dispatch import Arguments, operation
from ..errors import OptionError, ShapeError
from ..op import Cases, Op, Problem, Shape, Tensors, Weights, defines, draw, extent
from ..options import MAX_OPTION, finite, integer, shape_of
from .rounding import f64

Array = np.ndarray


@dataclass(frozen=True)
class LRN(Problem):
    """Local response normalisation: y = x * (k + alpha/n * sum of x^2 over the window)^-beta.

    `across_channels`: the window is `size` neighbouring channels, and n = size. A window never leaves
    its group of channels. `within_channel`: the window is size x size pixels of one map, n = size^2.
    An even window reaches further ahead than behind, as in ONNX and cuDNN (PyTorch: the other way):
    [c - (size-1)//2, c + size//2].
    """

    N: int
    C: int
    H: int
    W: int
    size: int = 5
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 1.0
    groups: int = 1
    region: str = "across_channels"
    dtype: str = "float32"

    @classmethod
    def of(
        cls,
        x_shape: Any,
        *,
        size: int = 5,
        alpha: float = 1e-4,
        beta: float = 0.75,
        k: float = 1.0,
        groups: int = 1,
        region: str = "across_channels",
        dtype: str = "float32",
    ) -> LRN:
        N, C, H, W = shape_of("x", x_shape, 4, "(N, C, H, W)")
        size, groups = integer("size", size, 1, MAX_OPTION), integer("groups", groups, 1)
        if C % groups:
            raise ShapeError(f"x has C = {C} channels, not divisible by groups = {groups}")
        if region not in ("across_channels", "within_channel"):
            raise OptionError(f"region must be 'across_channels' or 'within_channel', not {region!r}")
        alpha, beta, k = finite("alpha", alpha, 0), finite("beta", beta), finite("k", k)
        if k <= 0:
            raise OptionError(f"k must be positive, not {k}: a window of zeros would divide by zero")
        return cls(N, C, H, W, size, alpha, beta, k, groups, region, dtype)

    @property
    def behind(self) -> int:
        """How far the window reaches to smaller indices."""
        return (self.size - 1) // 2

    @property
    def ahead(self) -> int:
        """How far the window reaches to larger indices."""
        return self.size // 2

    @property
    def taps(self) -> int:
        """n, by which alpha is divided: the elements of a whole window."""
        return self.size if self.region == "across_channels" else self.size**2

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        x = (self.N, self.C, self.H, self.W)
        return {"x": x, "y": x, "dx": x, "dy": x}

    def scalars(self) -> dict[str, int | float]:
        """`within` is 1 for the region within a channel; `taps` is a float: size^2 may pass 2^31."""
        within = int(self.region == "within_channel")
        window = {"within": within, "behind": self.behind, "ahead": self.ahead, "taps": float(self.taps)}
        return {**super().scalars(), **window}

    def flops(self, op: str) -> int:
        """By convention: a multiply-add per tap of each window sum, and 4 operations around it."""
        sums = 1 if op == "lrn_fprop" else 2
        return self.N * self.C * self.H * self.W * sums * (2 * self.taps + 4)

    def reduction(self, op: str) -> int:
        return self.taps


# ---------------------------------------------------------------------------------------------------
# Definition
# ---------------------------------------------------------------------------------------------------
def window_sum(g: LRN, a: Array, behind: int, ahead: int) -> Array:
    """Sum of `a` over the window [i - behind, i + ahead]; outside the group or the map are zeros."""
    if g.region == "across_channels":
        axes: tuple[int, ...] = (2,)
        grouped = a.reshape(g.N, g.groups, g.C // g.groups, g.H, g.W)
    else:
        grouped, axes = a, (2, 3)
    for axis in axes:
        moved = np.moveaxis(grouped, axis, 0)
        total, n = np.zeros(moved.shape), len(moved)
        for shift in range(-min(behind, n - 1), min(ahead, n - 1) + 1):
            total[max(0, -shift) : n - max(0, shift)] += moved[max(0, shift) : n + min(0, shift)]
        grouped = np.moveaxis(total, 0, axis)
    return grouped.reshape(a.shape)


# ---------------------------------------------------------------------------------------------------
# Rounding
# ---------------------------------------------------------------------------------------------------
def _parts(g: LRN, x: Array) -> tuple[Array, Array]:
    """d, and the relative error of d^-beta in units of u, for beta = 1 of it and apart from it."""
    d = g.k + g.alpha / g.taps * window_sum(g, x**2, g.behind, g.ahead)
    # Squares are positive: their sum's relative error is that of L additions, and d's is no more.
    return d, np.sqrt(g.taps) + 3 + np.abs(np.log(d))


def fprop_weight(g: LRN, x: Array, y: Array) -> Array:
    """Bound of the rounding of y = LRN(x)."""
    # d^-beta multiplies d's relative error by beta; a power by exp and log adds u |beta ln d|; products, 4.
    _, error = _parts(g, x)
    weight: Array = 4 * np.abs(y) * (abs(g.beta) * error + 4)
    return weight


def _fprop_rounding(
    op: Op, g: LRN, inputs: Tensors, options: dict[str, Any], values: dict[str, Array]
) -> Weights:
    y = values["y"]
    return {"y": (fprop_weight(g, f64(inputs["x"]), y), np.abs(y))}


def dgrad_weight(g: LRN, dy: Array, x: Array) -> tuple[Array, Array]:
    """Bound of the rounding of dx, and its scale."""
    d, error = _parts(g, x)
    first = np.abs(dy * d**-g.beta)
    terms = np.abs(dy * x * d ** (-g.beta - 1))
    factor = np.abs(2 * g.alpha * g.beta / g.taps * x)
    # Each term of the sum has its own error, and the sum of L of them rounds as any sum does.
    sums = window_sum(g, terms * (abs(g.beta + 1) * error + 4 + np.sqrt(g.taps)), g.ahead, g.behind)
    scale = first + factor * window_sum(g, terms, g.ahead, g.behind)
    return 4 * (first * (abs(g.beta) * error + 4) + factor * sums), scale


def _dgrad_rounding(
    op: Op, g: LRN, inputs: Tensors, options: dict[str, Any], values: dict[str, Array]
) -> Weights:
    return {"dx": dgrad_weight(g, f64(inputs["dy"]), f64(inputs["x"]))}


# ---------------------------------------------------------------------------------------------------
# Cases
# ---------------------------------------------------------------------------------------------------
def _channels(g: LRN, value: int) -> Problem:
    return replace(g, C=value * g.groups)


def _groups(g: LRN, value: int) -> Problem:
    return replace(g, C=g.C // g.groups * value, groups=value)


_EDGES: tuple[tuple[str, tuple, dict[str, Any]], ...] = (
    ("one element", (1, 1, 1, 1), {"alpha": 0.5}),
    ("size 1", (2, 5, 3, 4), {"size": 1, "alpha": 0.3}),
    ("size 2: even reaches ahead", (2, 5, 3, 4), {"size": 2, "alpha": 0.7}),
    ("size 4", (2, 9, 4, 3), {"size": 4, "alpha": 0.9, "beta": 0.5}),
    ("size beyond the channels", (2, 3, 4, 5), {"size": 9, "alpha": 1.3}),
    ("size 8 beyond the channels", (2, 3, 4, 5), {"size": 8, "alpha": 1.3}),
    ("size 8 within the channels", (2, 19, 3, 2), {"size": 8, "alpha": 1.3}),
    ("size 11 within the channels", (1, 23, 2, 3), {"size": 11, "alpha": 1.3, "beta": 0.72}),
    ("a window of 10 within the map", (1, 2, 13, 12), {"size": 10, "alpha": 1.3, "region": "within_channel"}),
    ("negative beta", (2, 6, 3, 4), {"alpha": 1.3, "beta": -0.5}),
    ("alpha that matters", (2, 7, 5, 6), {"size": 5, "alpha": 2.5, "k": 2.0}),
    ("beta 1", (2, 7, 5, 6), {"size": 3, "alpha": 0.5, "beta": 1.0}),
    ("beta 0", (1, 4, 3, 3), {"alpha": 0.5, "beta": 0.0}),
    ("alpha 0", (1, 4, 3, 3), {"alpha": 0.0, "k": 3.0}),
    ("small k", (1, 8, 3, 5), {"alpha": 1.0, "k": 1e-3}),
    ("groups", (2, 12, 5, 4), {"size": 5, "alpha": 1.5, "groups": 3}),
    ("groups of one channel", (2, 4, 5, 4), {"size": 5, "alpha": 1.5, "groups": 4}),
    ("within the map", (2, 3, 7, 6), {"size": 3, "alpha": 1.5, "region": "within_channel"}),
    ("within the map, even", (2, 3, 7, 6), {"size": 4, "alpha": 1.5, "region": "within_channel"}),
    ("within a smaller map", (1, 3, 2, 3), {"size": 7, "alpha": 1.5, "region": "within_channel"}),
    ("within a wide map", (1, 11, 37, 71), {"size": 5, "alpha": 1.5, "region": "within_channel"}),
    ("within a tall map", (2, 9, 70, 9), {"size": 3, "alpha": 1.5, "region": "within_channel"}),
    ("primes", (3, 17, 7, 5), {"alpha": 0.2}),
    ("many channels, one pixel", (2, 131, 1, 1), {"alpha": 0.2}),
    ("empty batch", (0, 5, 3, 3), {}),
)


class LRNCases(Cases):
    """What the gate asks.

    Parameters
    ----------
    without : tuple of str
        How data are not filled.
    """

    extents = {
        **{name: extent(name) for name in ("N", "H", "W", "size")},
        "channels": _channels,
        "groups": _groups,
    }
    small = frozenset({"size"})

    def __init__(self, without: tuple[str, ...] = ()) -> None:
        self.fills = (*(f for f in self.fills if f not in without), "large")

    def layers(self) -> Iterable[tuple[str, Problem]]:
        paper: dict[str, Any] = {"alpha": 1e-4, "beta": 0.75, "k": 2.0}
        yield "2012 norm1", LRN.of((1, 96, 55, 55), groups=2, **paper)
        yield "2012 norm2", LRN.of((1, 256, 27, 27), groups=2, **paper)
        yield "caffe norm1", LRN.of((1, 96, 55, 55))
        yield "caffe norm1, within the map", LRN.of((1, 96, 55, 55), region="within_channel")

    def edges(self) -> Iterable[tuple[str, Problem]]:
        for name, x, options in _EDGES:
            yield name, LRN.of(x, **options)

    def data(self) -> Iterable[Problem]:
        return [
            LRN.of((2, 9, 4, 5), alpha=0.5),
            LRN.of((2, 3, 6, 5), size=3, alpha=0.5, region="within_channel"),
        ]

    def bases(self) -> list[Problem]:
        inside = LRN(2, 2, 5, 4, 3, 0.5, region="within_channel")
        return [LRN(2, 7, 3, 2, 5, 0.5), inside, LRN(1, 4, 2, 1, 4, 0.5, 1.0, 2.0, 2)]

    def random(self, rng: np.random.Generator) -> LRN:
        groups, (N, c, H, W) = int(rng.choice([1, 1, 2, 3])), draw(rng, 1, 9, 4)
        region = str(rng.choice(["across_channels", "across_channels", "within_channel"]))
        alpha, k = float(10 ** rng.uniform(-4, 1)), float(rng.uniform(0.1, 3))
        beta = float(rng.choice([0.75, 0.5, 1.0, rng.uniform(0, 2)]))
        return LRN(min(N, 3), c * groups, H, W, int(rng.integers(1, 8)), alpha, beta, k, groups, region)

    def large(self) -> Iterable[tuple[str, Problem]]:
        yield "65,537 images", LRN(65_537, 1, 1, 1, 5, 0.5)
        yield "66,049 pixels", LRN(1, 2, 257, 257, 5, 0.5)

    def huge(self) -> list[Problem]:
        many, row = 100_000, 10_000
        across = [LRN(many, 3, 32, 32), LRN(512, 512, 200, 200), LRN(1, 5, many, row), LRN(2, many, 16, 16)]
        return [*across, *(replace(g, region="within_channel", size=3) for g in across)]


# ---------------------------------------------------------------------------------------------------
# Ops
# ---------------------------------------------------------------------------------------------------
@defines("lrn_fprop", LRN, ("x",), ("y",), slices="rows", cases=LRNCases(), rounding=_fprop_rounding)
def fprop(g: LRN, x: Array, y: Array) -> None:
    """The definition."""
    x64 = f64(x)
    d = g.k + g.alpha / g.taps * window_sum(g, x64**2, g.behind, g.ahead)
    y[...] = x64 * d**-g.beta


# Beyond an infinity, which power meets which product first decides between 0, NaN and infinity.
@defines(
    "lrn_dgrad", LRN, ("dy", "x"), ("dx",), slices="rows", cases=LRNCases(without=("inf",)),
    rounding=_dgrad_rounding,
)  # fmt: skip
def dgrad(g: LRN, dy: Array, x: Array, dx: Array) -> None:
    """The definition."""
    x64, dy64 = f64(x), f64(dy)
    d = g.k + g.alpha / g.taps * window_sum(g, x64**2, g.behind, g.ahead)
    # Element i counts in the windows centred on [i - ahead, i + behind]: the mirrored window.
    s = window_sum(g, dy64 * x64 * d ** (-g.beta - 1), g.ahead, g.behind)
    dx[...] = dy64 * d**-g.beta - 2 * g.alpha * g.beta / g.taps * x64 * s


@operation
def lrn_fprop(
    x: A,
    *,
    size: int = 5,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    groups: int = 1,
    region: str = "across_channels",
    impl: str | None = None,
    out: A | None = None,
) -> A:
    """Local response normalisation, forward.

    ``y = x * (k + alpha/n * sum of x^2 over the window)^-beta``

    alpha is divided by n, the elements of a whole window, also at the borders where part of the window
    lies outside: so do Caffe, cuda-convnet, cuDNN, PyTorch and ONNX. TensorFlow and the text of the 2012
    paper do not divide; pass ``alpha * size`` for theirs.

    Parameters
    ----------
    x : array, (N, C, H, W)
    size : int
        Extent of the window: channels [c - (size-1)//2, c + size//2].
    alpha, beta, k : float
        k must be positive. Squares of x must not overflow: in float32, |x| < 1.8e19.
    groups : int
        Windows never cross from one group of channels into the next (the two GPUs of 2012).
    region : {"across_channels", "within_channel"}
        "within_channel" sums over size x size pixels of one map instead, and n = size^2.

    Returns
    -------
    y : array, (N, C, H, W)
    """
    a = Arguments("lrn_fprop", x=x)
    problem = LRN.of(
        a.x.shape, size=size, alpha=alpha, beta=beta, k=k, groups=groups, region=region, dtype=a.dtype
    )
    return a.run(problem, out=out, impl=impl)


@operation
def lrn_dgrad(
    dy: A,
    x: A,
    *,
    size: int = 5,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    groups: int = 1,
    region: str = "across_channels",
    impl: str | None = None,
    out: A | None = None,
) -> A:
    """Local response normalisation: gradient with respect to its input.

    With ``d = k + alpha/n * sum of x^2``:
    ``dx = dy * d^-beta - 2*alpha*beta/n * x * sum of dy * x * d^(-beta-1)``, where the second sum is over
    the outputs whose window holds the element.

    Parameters
    ----------
    dy, x : array, (N, C, H, W)
        x is the input of `lrn_fprop`; nothing else needs to be kept for the backward pass.
    size, alpha, beta, k, groups, region
        As in `lrn_fprop`.

    Returns
    -------
    dx : array, (N, C, H, W)
    """
    a = Arguments("lrn_dgrad", dy=dy, x=x)
    problem = LRN.of(
        a.x.shape, size=size, alpha=alpha, beta=beta, k=k, groups=groups, region=region, dtype=a.dtype
    )
    return a.run(problem, out=out, impl=impl)
