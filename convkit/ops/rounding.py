"""Bounds of an op's rounding errors, as several families have them; `check.tolerance` explains the bounds.

Each function takes (op, problem, inputs, options, values) and returns, for each output, the bound of the
rounding in units of the unit roundoff, and the scale that a declared error is relative to.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..op import Op, Tensors, Weights

Array = np.ndarray


def f64(a: Array | None) -> Array:
    """An input that is there, in float64."""
    assert a is not None
    return a.astype(np.float64)


def sums(op: Op, g: Any, inputs: Tensors, options: dict[str, Any], values: dict[str, Array]) -> Weights:
    """One output, whose elements are sums of products."""
    squares: Tensors = {n: a if a is None or a.dtype.kind in "iu" else f64(a) ** 2 for n, a in inputs.items()}
    # A NaN that a ReLU's mask hides has still been in the sums around it.
    squares |= {name: np.ones(g.shape(name)) for name in op.rectified}
    (spread,) = op.evaluate(g, squares, {**options, **({"relu": False} if options else {})}).values()
    ((name, value),) = values.items()
    scale = np.sqrt(spread) + np.abs(value)
    return {name: (4 * np.sqrt(g.reduction(op.name)) * scale, scale)}


def exact(op: Op, g: Any, inputs: Tensors, options: dict[str, Any], values: dict[str, Array]) -> Weights:
    """Nothing to round."""
    return {name: (None, np.zeros(value.shape)) for name, value in values.items()}


def few(op: Op, g: Any, inputs: Tensors, options: dict[str, Any], values: dict[str, Array]) -> Weights:
    """A product or two."""
    return {name: (4 * np.abs(value), np.abs(value)) for name, value in values.items()}


def part(op: Op, g: Any, inputs: Tensors) -> tuple[Array, Array, Array]:
    """Value, bound and scale of the only output of an op that is a part of another, and a sum of products."""
    mine: Tensors = {name: inputs[name] for name in op.inputs}
    values = op.evaluate(g, mine, {})
    ((name, value),) = values.items()
    return value, *sums(op, g, mine, {}, values)[name]  # type: ignore[return-value]
