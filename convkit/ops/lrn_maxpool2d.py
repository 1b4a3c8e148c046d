"""LRN and the max pooling of its output as one op: `lrn_maxpool2d_fprop`, `lrn_maxpool2d_dgrad`.

They are ops like any other: each has a definition, goes through the gate, and may be swapped. A network's
plan takes one where an implementation fits, and the single ops where none does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ..arrays import A
from ..dispatch import Arguments, in_range, operation
from ..errors import ConvkitError, OptionError, ShapeError
from ..op import OPS, Cases, Op, Problem, Shape, Stretch, Tensors, Weights, defines
from ..options import flag
from . import lrn as lrns
from . import maxpool2d as pools
from . import window
from .lrn import LRN
from .maxpool2d import Pool2d
from .pooling import PoolingCases
from .rounding import f64
from .window import seen

Array = np.ndarray


@dataclass(frozen=True)
class LrnMaxPool2d(Problem):
    """LRN across channels, and max pooling of its output, as one op: what lies between is not stored."""

    lrn: LRN
    pool: Pool2d
    dtype: str = "float32"

    def __post_init__(self) -> None:
        # One dtype, whichever way the problem was made.
        for name in ("lrn", "pool"):
            object.__setattr__(self, name, replace(getattr(self, name), dtype=self.dtype))
        if self.lrn.shape("x") != self.pool.shape("x"):
            raise ShapeError(f"LRN of {self.lrn.shape('x')} cannot feed a pool of {self.pool.shape('x')}")
        super().__post_init__()

    @property
    def N(self) -> int:
        return self.lrn.N

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        return self.pool.shapes

    def dtype_of(self, tensor: str) -> str:
        return self.pool.dtype_of(tensor)

    def scalars(self) -> dict[str, int | float]:
        return {**self.pool.scalars(), **self.lrn.scalars()}

    def flops(self, op: str) -> int:
        way = op.rpartition("_")[2]
        return self.lrn.flops(f"lrn_{way}") + self.pool.flops(f"maxpool2d_{way}")

    def reduction(self, op: str) -> int:
        return self.lrn.reduction("") * self.pool.reduction("maxpool2d_dgrad")

    def __str__(self) -> str:
        return f"LRN size {self.lrn.size} groups {self.lrn.groups}, then {self.pool}"


def _problem(shape: Any, lrn: dict[str, Any], pool: dict[str, Any], dtype: str = "float32") -> LrnMaxPool2d:
    parts: list[Any] = []
    for name, kind, options in (("lrn", LRN, lrn), ("pool", Pool2d, pool)):
        try:
            parts.append(kind.of(shape, dtype=dtype, **options))
        except TypeError as error:  # no dict, or a name that the op has not
            if isinstance(error, ConvkitError):
                raise
            raise OptionError(f"{name} must be a dict of {name} options, not {options!r}: {error}") from None
    return LrnMaxPool2d(parts[0], parts[1], dtype)


# ---------------------------------------------------------------------------------------------------
# Rounding
# ---------------------------------------------------------------------------------------------------
def _normalised(g: LrnMaxPool2d, inputs: Tensors) -> tuple[Array, Array]:
    """The output of LRN, and the bound of its rounding."""
    y = OPS["lrn_fprop"].evaluate(g.lrn, inputs, {})["y"]
    return y, lrns.fprop_weight(g.lrn, f64(inputs["x"]), y)


def _fprop_rounding(
    op: Op, g: LrnMaxPool2d, inputs: Tensors, options: dict[str, Any], values: dict[str, Array]
) -> Weights:
    # The maximum of a window is off by no more than any of its elements is.
    _, weight = _normalised(g, inputs)
    pool = replace(g.pool, dtype="float64")
    largest = OPS["maxpool2d_fprop"].evaluate(pool, {"x": weight}, {})["y"]
    return {"y": (largest, np.abs(values["y"])), "argmax": (None, np.zeros(values["argmax"].shape))}


def _near_maximum(g: LrnMaxPool2d, inputs: Tensors, u: float) -> dict[str, Callable[[Array], Array]]:
    """Whether each of these taps sees a value that rounding could make the largest of its window."""
    y, weight = _normalised(g, inputs)
    highest = y + u * weight
    lowest = OPS["maxpool2d_fprop"].evaluate(g.pool, {"x": y - u * weight}, {})["y"]

    def accepts(got: Array) -> Array:
        good = np.zeros(got.shape, bool)
        for r, s, windows, pixels in seen(g.pool):
            value, least = highest[pixels], lowest[windows]
            fits = np.where(np.isnan(least), np.isnan(value), ~(value < least))
            good[windows] |= (got[windows] == r * g.pool.S + s) & fits
        return good

    return {"argmax": accepts}


def _dgrad_rounding(
    op: Op, g: LrnMaxPool2d, inputs: Tensors, options: dict[str, Any], values: dict[str, Array]
) -> Weights:
    magnitudes: Tensors = {"dy": np.abs(f64(inputs["dy"])), "argmax": inputs["argmax"]}
    inner = OPS["maxpool2d_dgrad"].evaluate(replace(g.pool, dtype="float64"), magnitudes, {})["dx"]
    # The pool's sums of a few terms come first, and are then as good as one more rounding of each product.
    weight, scale = lrns.dgrad_weight(g.lrn, inner, f64(inputs["x"]))
    return {"dx": (weight + 4 * np.sqrt(g.pool.reduction("maxpool2d_dgrad")) * scale, scale)}


# ---------------------------------------------------------------------------------------------------
# Cases
# ---------------------------------------------------------------------------------------------------
#: (name, x, options of LRN, options of the pool)
_EDGES: tuple[tuple[str, tuple, dict[str, Any], dict[str, Any]], ...] = (
    ("one pixel", (1, 1, 1, 1), {"alpha": 0.5}, {"window": 1}),
    ("a small norm1", (2, 32, 15, 15), {"alpha": 0.5, "k": 2.0, "groups": 2}, {}),
    ("a small norm2", (3, 48, 7, 9), {"alpha": 0.5, "k": 2.0}, {"ceil_mode": True}),
    ("even size", (1, 20, 9, 6), {"size": 4, "alpha": 0.7}, {"window": 2}),
    ("size beyond the channels", (2, 3, 8, 5), {"size": 9, "alpha": 1.3}, {}),
    ("another beta", (1, 17, 7, 7), {"beta": 0.5, "alpha": 0.9}, {"window": (3, 2), "stride": 1}),
    ("padding", (1, 16, 8, 9), {"alpha": 0.9}, {"padding": ((0, 1), (1, 0))}),
    ("windows apart", (1, 18, 13, 11), {"alpha": 0.9}, {"window": 2, "stride": (5, 4)}),
    ("dilation", (1, 16, 12, 13), {"alpha": 0.9}, {"dilation": (2, 3), "stride": 1}),
    ("one column", (2, 17, 7, 1), {"alpha": 0.9}, {"window": (2, 1), "stride": (1, 2)}),
    ("one row", (2, 17, 1, 7), {"alpha": 0.9}, {"window": (1, 2), "stride": (2, 1)}),
    ("empty batch", (0, 16, 7, 7), {}, {}),
)


def _extent(name: str) -> Stretch:
    """An extent of LRN and of the pool behind it."""

    def stretch(g: LrnMaxPool2d, value: int) -> Problem:
        if name == "size":
            return replace(g, lrn=replace(g.lrn, size=value))
        pool: Any = window.extent(name, pads_within=True)(g.pool, value)
        C = pool.C - pool.C % g.lrn.groups or g.lrn.groups
        pool = replace(pool, C=C)
        return replace(g, pool=pool, lrn=replace(g.lrn, N=pool.N, C=C, H=pool.H, W=pool.W))

    return stretch


class _Cases(Cases):
    extents = {name: _extent(name) for name in ("N", "C", "H", "W", "size", *window.WINDOW, *window.PADS)}
    small = frozenset((*window.WINDOW, *window.PADS, "size"))
    # As for LRN; and a value that another one of its window overtakes hides an infinity beside it.
    fills = tuple(f for f in Cases.fills if f != "inf")

    def layers(self) -> Iterable[tuple[str, Problem]]:
        for name, shape in (("norm1 and pool1", (1, 96, 55, 55)), ("norm2 and pool2", (1, 256, 27, 27))):
            yield f"2012 {name}", _problem(shape, {"groups": 2, "k": 2.0}, {})

    def edges(self) -> Iterable[tuple[str, Problem]]:
        for name, x, lrn, pool in _EDGES:
            yield name, _problem(x, lrn, pool)

    def data(self) -> Iterable[Problem]:
        return [
            _problem((2, 18, 9, 8), {"alpha": 0.5}, {}),
            _problem((1, 32, 8, 8), {"alpha": 0.5, "groups": 2}, {"ceil_mode": True}),
        ]

    def tried(self) -> Problem:
        return _problem((2, 19, 9, 8), {"alpha": 0.5}, {})

    def bases(self) -> list[Problem]:
        shapes = (2, 5, 7, 6), (1, 16, 5, 3), (1, 3, 3, 3)
        return [LrnMaxPool2d(LRN(*x, 5, 0.5), Pool2d(*x, 3, 3, 2, 2)) for x in shapes]

    def random(self, rng: np.random.Generator) -> Problem:
        pool: Any = PoolingCases(Pool2d).random(rng)
        C, groups = [(pool.C, 1), (16 * pool.C, 1), (32 * pool.C, 2)][int(rng.integers(3))]
        drawn = lrns.LRNCases().random(rng)
        if rng.random() < 0.4:  # AlexNet's windows, which fast kernels are written for
            top, bottom = min(pool.pad_top, 2), min(pool.pad_bottom, 2)
            left, right = min(pool.pad_left, 2), min(pool.pad_right, 2)
            pool = Pool2d.of(
                (pool.N, pool.C, pool.H + 2, pool.W + 2),
                padding=((top, bottom), (left, right)),
                ceil_mode=pool.ceil_mode,
            )
            drawn = replace(drawn, size=int(rng.choice([3, 5])), k=float(rng.uniform(1, 3)))
        extents = {"N": pool.N, "C": C, "H": pool.H, "W": pool.W, "groups": groups}
        lrn = replace(drawn, **extents, region="across_channels", beta=0.75)
        return LrnMaxPool2d(lrn, replace(pool, C=C))

    def large(self) -> Iterable[tuple[str, Problem]]:
        many = 65_537
        yield "65,537 images", LrnMaxPool2d(LRN(many, 1, 2, 1, 5, 0.5), Pool2d(many, 1, 2, 1, 2, 1, 1, 1))

    def huge(self) -> list[Problem]:
        shapes = (100_000, 16, 32, 32), (512, 512, 200, 200)
        return [LrnMaxPool2d(LRN(*x), Pool2d(*x, 3, 3, 2, 2)) for x in shapes]

    def values(
        self, tensor: str, problem: Any, rng: np.random.Generator, kind: str, fill: Callable[[Any], None]
    ) -> Array | None:
        return pools.random_argmax(problem.pool, rng, fill) if tensor == "argmax" else None


# ---------------------------------------------------------------------------------------------------
# Ops
# ---------------------------------------------------------------------------------------------------
@defines(
    "lrn_maxpool2d_fprop", LrnMaxPool2d, ("x",), ("y", "argmax"), slices="rows", accepts=_near_maximum,
    parts=("lrn_fprop", "maxpool2d_fprop"), cases=_Cases(), rounding=_fprop_rounding,
)  # fmt: skip
def _fprop(g: LrnMaxPool2d, x: Array, y: Array, argmax: Array) -> None:
    normalised = np.empty(x.shape)
    lrns.fprop(g.lrn, x, normalised)
    pools.fprop(g.pool, normalised, y, argmax)


# With relu, dx is zero where x is not positive: x is then a ReLU's output.
@defines(
    "lrn_maxpool2d_dgrad", LrnMaxPool2d, ("dy", "argmax", "x"), ("dx",), options=("relu",), slices="rows",
    rectified=("x",), dtypes={"argmax": "integer"}, parts=("lrn_dgrad", "maxpool2d_dgrad"), cases=_Cases(),
    rounding=_dgrad_rounding,
)  # fmt: skip
def _dgrad(g: LrnMaxPool2d, dy: Array, argmax: Array, x: Array, dx: Array, relu: bool = False) -> None:
    inner = np.empty(x.shape)
    pools.dgrad(g.pool, dy, argmax, inner)
    gradient = np.empty(x.shape)
    lrns.dgrad(g.lrn, inner, x, gradient)
    dx[...] = np.where(f64(x) <= 0, 0, gradient) if relu else gradient


@operation
def lrn_maxpool2d_fprop(
    x: A,
    *,
    lrn: dict[str, Any],
    pool: dict[str, Any],
    impl: str | None = None,
    out: tuple[A, A] | None = None,
) -> tuple[A, A]:
    """Max pooling of a local response normalisation.

    Parameters
    ----------
    x : array, (N, C, H, W)
    lrn, pool : dict
        Keyword arguments of `convkit.lrn_fprop` and `convkit.maxpool2d_fprop`.

    Returns
    -------
    y, argmax : array, (N, C, P, Q)
        As of `convkit.maxpool2d_fprop`. Where two normalised values differ by less than rounding, either
        may win.
    """
    a = Arguments("lrn_maxpool2d_fprop", x=x)
    return a.run(_problem(a.x.shape, lrn, pool, a.dtype), out=out, impl=impl)


@operation
def lrn_maxpool2d_dgrad(
    dy: A,
    argmax: A,
    x: A,
    *,
    lrn: dict[str, Any],
    pool: dict[str, Any],
    relu: bool = False,
    impl: str | None = None,
    out: A | None = None,
) -> A:
    """Gradient of `lrn_maxpool2d_fprop` with respect to its input.

    Parameters
    ----------
    dy, argmax : array, (N, C, P, Q)
    x : array, (N, C, H, W)
        The input of the forward pass.
    lrn, pool : dict
        As in `lrn_maxpool2d_fprop`.
    relu : bool
        x is the output of a ReLU, and the gradient of that is taken too: zero where x is not positive.

    Returns
    -------
    dx : array, (N, C, H, W)

    Raises
    ------
    OptionError
        If argmax holds a position outside the window.
    """
    a = Arguments("lrn_maxpool2d_dgrad", dy=dy, argmax=argmax, x=x)
    problem = _problem(a.x.shape, lrn, pool, a.dtype)
    in_range("argmax", a.argmax, problem.pool.R * problem.pool.S, "a position in the window")
    return a.run(problem, out=out, impl=impl, relu=flag("relu", relu))
