"""Fully connected layers: `linear_fprop`, `linear_dgrad`, `linear_wgrad`, `linear_bgrad`.

`linear_wgrad_sgd` and `linear_dgrad_wgrad_sgd` are the gradient of the weights and their update as one op, so
that the gradient is never stored.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ..arrays import A
from ..dispatch import Arguments, operation
from ..errors import ShapeError
from ..op import OPS, Cases, Op, Problem, Shape, Tensors, Weights, defines, draw, extent, param_dtype
from ..options import flag, shape_of
from . import channel_sum, sgd
from .channel_sum import ChannelSum
from .elementwise import Elementwise
from .rounding import exact, f64, part, sums

Array = np.ndarray


@dataclass(frozen=True)
class Linear(Problem):
    """y = x w^T + b: N rows of C inputs to K outputs."""

    of_parameters: ClassVar[frozenset[str]] = frozenset(("dw", "v", "w_new", "v_new"))

    N: int
    C: int
    K: int
    dtype: str = "float32"

    @classmethod
    def of(cls, x_shape: Any, w_shape: Any, dtype: str = "float32") -> Linear:
        N, C = shape_of("x", x_shape, 2, "(N, C)")
        K, C_w = shape_of("w", w_shape, 2, "(K, C)")
        if C_w != C or K == 0:
            raise ShapeError(
                f"w of shape {(K, C_w)} does not fit x of shape {(N, C)}: w must be (K, C) with C = {C}"
            )
        return cls(N, C, K, dtype)

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        x, w, b, y = (self.N, self.C), (self.K, self.C), (self.K,), (self.N, self.K)
        weights = dict.fromkeys(("w", "dw", "v", "w_new", "v_new"), w)
        return {"x": x, "dx": x, "b": b, "y": y, "dy": y, **weights, "finite": (1,)}

    def dtype_of(self, tensor: str) -> str:
        """In a pair `w` are the parameters that an update changes; no other op of theirs takes a pair."""
        if tensor == "w":
            return param_dtype(self.dtype)
        return "int32" if tensor == "finite" else super().dtype_of(tensor)

    def flops(self, op: str) -> int:
        return 2 * self.N * self.C * self.K * (2 if op == "linear_dgrad_wgrad_sgd" else 1)

    def reduction(self, op: str) -> int:
        return {"linear_fprop": self.C + 1, "linear_dgrad": self.K}.get(op, max(1, self.N))


# ---------------------------------------------------------------------------------------------------
# Rounding
# ---------------------------------------------------------------------------------------------------
def _update_rounding(
    op: Op, g: Linear, inputs: Tensors, options: dict[str, Any], values: dict[str, Array]
) -> Weights:
    """The update's own rounding, and what it makes of the gradient's; dx is as that of linear_dgrad."""
    gradient, bound, scale = part(OPS["linear_wgrad"], g, inputs)
    w, v = f64(inputs["w"]), f64(inputs["v"])
    own = sgd.magnitudes(w, gradient, v, options)
    passed = sgd.magnitudes(np.zeros(w.shape), bound, np.zeros(v.shape), options)
    scales = sgd.magnitudes(w, scale, v, options)
    weights: Weights = {
        name: (8 * a + b, c) for name, a, b, c in zip(("w_new", "v_new"), own, passed, scales, strict=True)
    }
    if "dx" in values:
        _, bound, scale = part(OPS["linear_dgrad"], g, inputs)
        masked = (f64(inputs["x"]) <= 0) & bool(options["relu"])
        weights["dx"] = np.where(masked, 0, bound), np.where(masked, 0, scale)
    if sgd.forbidden(inputs.get("finite")):
        weights |= exact(op, g, inputs, options, {name: values[name] for name in ("w_new", "v_new")})
    return weights


# ---------------------------------------------------------------------------------------------------
# Cases
# ---------------------------------------------------------------------------------------------------
_LAYERS = {"fc6": (1, 9216, 4096), "fc7": (2, 4096, 4096), "fc8": (3, 4096, 1000)}
_EDGES = {
    "one number": (1, 1, 1),
    "one row": (1, 37, 11),
    "one input": (5, 1, 9),
    "one output": (5, 33, 1),
    "primes": (7, 101, 53),
    "blocks and one more": (17, 65, 129),
    "powers of two": (16, 64, 32),
    "long sum": (2, 3001, 3),
    "long sums, several outputs": (3, 700, 20),
    "blocks and one more each way": (33, 65, 66),
    "empty batch": (0, 7, 5),
}


class _Cases(Cases):
    extents = {name: extent(name) for name in ("N", "C", "K")}

    def layers(self) -> Iterable[tuple[str, Problem]]:
        for name, (N, C, K) in _LAYERS.items():
            yield name, Linear(N, C, K)

    def edges(self) -> Iterable[tuple[str, Problem]]:
        for name, (N, C, K) in _EDGES.items():
            yield name, Linear(N, C, K)

    def data(self) -> Iterable[Problem]:
        return [Linear(6, 35, 10), Linear(1, 16, 8)]

    def tried(self) -> Problem:
        return Linear(5, 23, 9)

    def bases(self) -> list[Problem]:
        return [Linear(3, 5, 7), Linear(2, 3, 1)]

    def random(self, rng: np.random.Generator) -> Problem:
        return Linear(*draw(rng, 1, 12, 1), *draw(rng, 1, 150, 2))

    def large(self) -> Iterable[tuple[str, Problem]]:
        many = 65_537
        yield "65,537 rows", Linear(many, 2, 1)
        yield "65,537 inputs", Linear(2, many, 1)
        yield "65,537 outputs", Linear(1, 2, many)

    def huge(self) -> list[Problem]:
        return [Linear(10_000_000, 64, 64), Linear(1, 100_000, 100_000), Linear(16, 64, 10_000_000)]


class _UpdateCases(_Cases):
    """Of an op that updates weights."""

    options = sgd.TRIED

    def layers(self) -> Iterable[tuple[str, Problem]]:
        """Not the large layers: the definition takes some twenty times their memory."""
        yield "fc8", Linear(*_LAYERS["fc8"])

    def flagged(self) -> Iterable[tuple[str, Problem]]:
        """And beyond the batch that a kernel may take at once."""
        return [*self.edges(), ("many rows", Linear(150, 20, 9))]

    def random_options(self, rng: np.random.Generator) -> dict[str, Any]:
        return sgd.random_options(rng)


# ---------------------------------------------------------------------------------------------------
# Ops
# ---------------------------------------------------------------------------------------------------
@defines(
    "linear_fprop", Linear, ("x", "w", "b"), ("y",), optional=("b",), options=("relu",), slices="rows",
    whole=("w", "b"), cases=_Cases(), rounding=sums,
)  # fmt: skip
def _fprop(g: Linear, x: Array, w: Array, b: Array | None, y: Array, relu: bool = False) -> None:
    total = f64(x) @ f64(w).T
    if b is not None:
        total += f64(b)
    y[...] = np.maximum(total, 0) if relu else total


@defines(
    "linear_dgrad", Linear, ("dy", "w"), ("dx",), slices="rows", whole=("w",), cases=_Cases(), rounding=sums
)
def _dgrad(g: Linear, dy: Array, w: Array, dx: Array) -> None:
    dx[...] = f64(dy) @ f64(w)


@defines("linear_wgrad", Linear, ("x", "dy"), ("dw",), slices="filters", cases=_Cases(), rounding=sums)
def _wgrad(g: Linear, x: Array, dy: Array, dw: Array) -> None:
    dw[...] = f64(dy).T @ f64(x)


defines(
    "linear_bgrad", ChannelSum, ("dy",), ("db",), slices="filters", cases=channel_sum.Rows(), rounding=sums
)(channel_sum.define)


@defines(
    "linear_wgrad_sgd", Linear, ("x", "dy", "w", "v"), ("w_new", "v_new"), options=sgd.OPTIONS,
    flags=sgd.FLAGS, slices="filters", direction="update", parts=("linear_wgrad", "sgd_momentum"),
    cases=_UpdateCases(), rounding=_update_rounding,
)  # fmt: skip
def _wgrad_sgd(
    g: Linear, x: Array, dy: Array, w: Array, v: Array, w_new: Array, v_new: Array, **rule: Any
) -> None:
    gradient = np.empty(w.shape)
    _wgrad(g, x, dy, gradient)
    sgd.define(Elementwise(w.shape), w, gradient, v, w_new, v_new, **rule)


# With relu, dx is zero where x is not positive: x is then a ReLU's output.
@defines(
    "linear_dgrad_wgrad_sgd", Linear, ("dy", "w", "x", "v"), ("dx", "w_new", "v_new"),
    options=("relu", *sgd.OPTIONS), flags=sgd.FLAGS, direction="update",
    parts=("linear_dgrad", "linear_wgrad", "sgd_momentum"), cases=_UpdateCases(), rounding=_update_rounding,
)  # fmt: skip
def _dgrad_wgrad_sgd(
    g: Linear,
    dy: Array,
    w: Array,
    x: Array,
    v: Array,
    dx: Array,
    w_new: Array,
    v_new: Array,
    relu: bool = False,
    **rule: Any,
) -> None:
    gradient = np.empty(dx.shape)
    _dgrad(g, dy, w, gradient)
    dx[...] = np.where(f64(x) <= 0, 0, gradient) if relu else gradient
    _wgrad_sgd(g, x, dy, w, v, w_new, v_new, **rule)


@operation
def linear_fprop(
    x: A,
    w: A,
    b: A | None = None,
    *,
    relu: bool = False,
    math: str | None = None,
    impl: str | None = None,
    out: A | None = None,
) -> A:
    """Fully connected layer, forward: ``y = x w^T + b``.

    Parameters
    ----------
    x : array, (N, C)
    w : array, (K, C)
    b : array, (K,), optional
    relu : bool
        Apply max(y, 0) before the result is stored.
    math
        As in `conv2d_fprop`.

    Returns
    -------
    y : array, (N, K)
    """
    a = Arguments("linear_fprop", x=x, w=w, b=b)
    return a.run(
        Linear.of(a.x.shape, a.w.shape, a.dtype), out=out, impl=impl, math=math, relu=flag("relu", relu)
    )


@operation
def linear_dgrad(dy: A, w: A, *, math: str | None = None, impl: str | None = None, out: A | None = None) -> A:
    """Fully connected layer: gradient with respect to its input, ``dx = dy w``.

    Parameters
    ----------
    dy : array, (N, K)
    w : array, (K, C)

    Returns
    -------
    dx : array, (N, C)
    """
    a = Arguments("linear_dgrad", dy=dy, w=w)
    if a.dy.ndim != 2 or a.w.ndim != 2:
        raise ShapeError(f"dy must be (N, K) and w (K, C), not {a.dy.shape} and {a.w.shape}")
    problem = Linear.of((a.dy.shape[0], a.w.shape[1]), a.w.shape, a.dtype)
    return a.run(problem, out=out, impl=impl, math=math)


@operation
def linear_wgrad(
    x: A,
    dy: A,
    *,
    dtype: str | None = None,
    math: str | None = None,
    impl: str | None = None,
    out: A | None = None,
) -> A:
    """Fully connected layer: gradient with respect to its weights, ``dw = dy^T x``.

    Parameters
    ----------
    x : array, (N, C)
    dy : array, (N, K)
    dtype : str, optional
        As in `conv2d_wgrad`.

    Returns
    -------
    dw : array, (K, C)
        Summed over the batch; zeros for an empty one.
    """
    a = Arguments("linear_wgrad", x=x, dy=dy)
    if a.x.ndim != 2 or a.dy.ndim != 2:
        raise ShapeError(f"x must be (N, C) and dy (N, K), not {a.x.shape} and {a.dy.shape}")
    problem = Linear.of(a.x.shape, (a.dy.shape[1], a.x.shape[1]), a.with_parameters(dtype))
    return a.run(problem, out=out, impl=impl, math=math)


@operation
def linear_bgrad(dy: A, *, dtype: str | None = None, impl: str | None = None, out: A | None = None) -> A:
    """Fully connected layer: gradient with respect to its bias, dy summed over the batch.

    Parameters
    ----------
    dy : array, (N, K)
    dtype : str, optional
        As in `conv2d_wgrad`.

    Returns
    -------
    db : array, (K,)
    """
    a = Arguments("linear_bgrad", dy=dy)
    return a.run(ChannelSum.of(a.dy.shape, 2, a.with_parameters(dtype)), out=out, impl=impl)


@operation
def linear_wgrad_sgd(
    x: A,
    dy: A,
    w: A,
    v: A,
    *,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    lr_in_velocity: bool = False,
    finite: A | None = None,
    math: str | None = None,
    impl: str | None = None,
    out: tuple[A, A] | None = None,
) -> tuple[A, A]:
    """Fully connected layer: the update of its weights, whose gradient is never stored.

    Parameters
    ----------
    x : array, (N, C)
    dy : array, (N, K)
    w, v : array, (K, C)
        Weights and velocity; float32 also where x and dy have 16 bits. `out` may name them: an update in
        place.
    lr, momentum, weight_decay, lr_in_velocity, finite
        As in `convkit.sgd_momentum`.

    Returns
    -------
    w_new, v_new : array, (K, C)
    """
    a = Arguments("linear_wgrad_sgd", x=x, dy=dy, w=w, v=v, finite=finite)
    rule = sgd.rule(lr, momentum, weight_decay, lr_in_velocity)
    problem = Linear.of(a.x.shape, a.w.shape, a.dtype)
    return a.run(problem, out=out, impl=impl, math=math, **rule)


@operation
def linear_dgrad_wgrad_sgd(
    dy: A,
    w: A,
    x: A,
    v: A,
    *,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    lr_in_velocity: bool = False,
    relu: bool = False,
    finite: A | None = None,
    math: str | None = None,
    impl: str | None = None,
    out: tuple[A, A, A] | None = None,
) -> tuple[A, A, A]:
    """Fully connected layer, backward, and the update of its weights: their gradient is never stored.

    Parameters
    ----------
    dy : array, (N, K)
    w, v : array, (K, C)
        Weights and velocity. `out` may name them: an update in place.
    x : array, (N, C)
    lr, momentum, weight_decay, lr_in_velocity
        As in `convkit.sgd_momentum`.
    relu : bool
        x is the output of a ReLU, and the gradient of that is taken too: zero where x is not positive.
    finite : array of int32, (1,), optional
        As in `convkit.sgd_momentum`. dx is computed whatever it holds.

    Returns
    -------
    dx : array, (N, C)
        Made with the weights before the update.
    w_new, v_new : array, (K, C)
    """
    a = Arguments("linear_dgrad_wgrad_sgd", dy=dy, w=w, x=x, v=v, finite=finite)
    rule = sgd.rule(lr, momentum, weight_decay, lr_in_velocity)
    problem = Linear.of(a.x.shape, a.w.shape, a.dtype)
    return a.run(problem, out=out, impl=impl, math=math, relu=flag("relu", relu), **rule)
