"""JAX as an entry: jitted functions, NHWC, images and weights in that layout beforehand.

A call is over when its result is there (`block_until_ready`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from ...op import OPS
from ...ops.conv2d import Conv2d
from ...ops.lrn import LRN
from ...ops.lrn_maxpool2d import LrnMaxPool2d
from ...ops.maxpool2d import Pool2d
from ..measure.entry import Entry
from ..work import Item
from . import Missing, need

Arrays = dict[str, Any]


def about(device: str) -> dict[str, Any]:
    """Version and settings."""
    _here(device)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    jax = need("jax")
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"version": jax.__version__, "settings": {"threads": cpus, "layout": "NHWC", "jit": True}}


def _here(device: str) -> None:
    if device == "cuda":
        raise Missing("runs on streams of its own, which events on the current stream do not time")


def entries(item: Item, device: str) -> list[Entry]:
    """One, where its primitives make the op."""
    _here(device)
    jax = need("jax")
    if item.op not in _FUNCTIONS:
        raise Missing(f"no function for {item.op} is written here")
    if item.dtype == "float64":
        raise Missing("computes in float64 only where the whole process does")
    function, used = _FUNCTIONS[item.op](jax, item)
    jitted = jax.jit(function)
    state: dict[str, Any] = {}

    def bind(inputs: Arrays, outputs: Arrays) -> Callable[[], None]:
        given = [_put(jax, name, inputs[name]) for name in used if inputs.get(name) is not None]
        jax.block_until_ready(jitted(*given))  # compiled

        def run() -> None:
            state["outputs"] = jax.block_until_ready(jitted(*given))

        return run

    def read() -> Arrays:
        made = state["outputs"] if isinstance(state["outputs"], tuple) else (state["outputs"],)
        return {name: _back(name, value) for name, value in zip(OPS[item.op].outputs, made)}

    facts: dict[str, Any] = {}
    if isinstance(item.problem, Conv2d):
        facts["algorithm_flops"] = item.fast_flops
    marks = ("no argmax",) if "argmax" in OPS[item.op].outputs else ()
    return [Entry("jax", "JAX", bind, read, "NHWC", facts, marks)]


def _weights(name: str) -> bool:
    return name in ("w", "dw")


def _put(jax: Any, name: str, array: Any) -> Any:
    """A device array: images NHWC, weights RSCK, a matrix as it is."""
    if array.ndim == 4:
        array = array.transpose((2, 3, 1, 0) if _weights(name) else (0, 2, 3, 1))
    return jax.device_put(np.array(array, order="C"))


def _back(name: str, value: Any) -> Any:
    array = np.asarray(value)
    if array.ndim == 4:
        array = array.transpose((3, 2, 0, 1) if _weights(name) else (0, 3, 1, 2))
    return np.asarray(array, order="C")


# ---------------------------------------------------------------------------------------------------
# The ops: each returns a function and the names of its arguments
# ---------------------------------------------------------------------------------------------------
Made = tuple[Callable[..., Any], tuple[str, ...]]


def _product(jax: Any, g: Conv2d) -> Callable[[Any, Any], Any]:
    def product(x: Any, w: Any) -> Any:
        return jax.lax.conv_general_dilated(
            x, w, (g.stride_h, g.stride_w), ((g.pad_top, g.pad_bottom), (g.pad_left, g.pad_right)),
            rhs_dilation=(g.dilation_h, g.dilation_w), feature_group_count=g.groups,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip

    return product


def _conv_fprop(jax: Any, item: Item) -> Made:
    product, relu = _product(jax, item.problem), item.options.get("relu")  # type: ignore[arg-type]

    def forward(x: Any, w: Any, *b: Any) -> Any:
        y = product(x, w) + b[0] if b else product(x, w)
        return jax.numpy.maximum(y, 0) if relu else y

    return forward, ("x", "w", "b")


def _conv_dgrad(jax: Any, item: Item) -> Made:
    g = item.problem
    assert isinstance(g, Conv2d)
    product, shape = _product(jax, g), (g.N, g.H, g.W, g.C)

    def dgrad(dy: Any, w: Any, *x: Any) -> Any:
        (dx,) = jax.linear_transpose(lambda x: product(x, w), jax.ShapeDtypeStruct(shape, dy.dtype))(dy)
        return jax.numpy.where(x[0] > 0, dx, 0) if x else dx

    return dgrad, ("dy", "w", "x")


def _conv_wgrad(jax: Any, item: Item) -> Made:
    g = item.problem
    assert isinstance(g, Conv2d)
    product, shape = _product(jax, g), (g.R, g.S, g.C // g.groups, g.K)

    def wgrad(x: Any, dy: Any) -> Any:
        return jax.linear_transpose(lambda w: product(x, w), jax.ShapeDtypeStruct(shape, dy.dtype))(dy)[0]

    return wgrad, ("x", "dy")


def _norm(jax: Any, g: LRN) -> Callable[[Any], Any]:
    if g.groups != 1 or g.region != "across_channels":
        raise Missing("LRN in groups, or within a channel, is not written here")

    def norm(x: Any) -> Any:
        pads = ((0, 0),) * 3 + ((g.behind, g.ahead),)
        sums = jax.lax.reduce_window(x * x, 0.0, jax.lax.add, (1, 1, 1, g.size), (1,) * 4, pads)
        return x * (g.k + g.alpha / g.size * sums) ** -g.beta

    return norm


def _lrn_dgrad(jax: Any, item: Item) -> Made:
    norm = _norm(jax, item.problem)  # type: ignore[arg-type]
    return (lambda dy, x: jax.vjp(norm, x)[1](dy)[0]), ("dy", "x")


def _linear_fprop(jax: Any, item: Item) -> Made:
    def forward(x: Any, w: Any, *b: Any) -> Any:
        y = x @ w.T + b[0] if b else x @ w.T
        return jax.numpy.maximum(y, 0) if item.options.get("relu") else y

    return forward, ("x", "w", "b")


def _pool(jax: Any, item: Item) -> Made:
    """The maximum alone: an argmax is no primitive of its windows."""
    g = item.problem.pool if isinstance(item.problem, LrnMaxPool2d) else item.problem
    assert isinstance(g, Pool2d)
    if g.ceil_mode and (
        (g.H + g.pad_top + g.pad_bottom - g.R) % g.stride_h
        or (g.W + g.pad_left + g.pad_right - g.S) % g.stride_w
    ):
        raise Missing("its pools do not overhang their image")
    norm = _norm(jax, item.problem.lrn) if isinstance(item.problem, LrnMaxPool2d) else lambda x: x

    def pool(x: Any) -> Any:
        return jax.lax.reduce_window(
            norm(x), -jax.numpy.inf, jax.lax.max, (1, g.R, g.S, 1), (1, g.stride_h, g.stride_w, 1),
            ((0, 0), (g.pad_top, g.pad_bottom), (g.pad_left, g.pad_right), (0, 0)),
            window_dilation=(1, g.dilation_h, g.dilation_w, 1),
        )  # fmt: skip

    return pool, ("x",)


_FUNCTIONS: dict[str, Callable[[Any, Item], Made]] = {
    "conv2d_fprop": _conv_fprop,
    "conv2d_dgrad": _conv_dgrad,
    "conv2d_dgrad_relu": _conv_dgrad,
    "conv2d_wgrad": _conv_wgrad,
    "conv2d_bgrad": lambda jax, item: ((lambda dy: dy.sum((0, 1, 2))), ("dy",)),
    "relu_fprop": lambda jax, item: ((lambda x: jax.numpy.maximum(x, 0)), ("x",)),
    "relu_dgrad": lambda jax, item: ((lambda dy, y: jax.numpy.where(y > 0, dy, 0)), ("dy", "y")),
    "lrn_fprop": lambda jax, item: (_norm(jax, item.problem), ("x",)),  # type: ignore[arg-type]
    "lrn_dgrad": _lrn_dgrad,
    "maxpool2d_fprop": _pool,
    "lrn_maxpool2d_fprop": _pool,
    "linear_fprop": _linear_fprop,
    "linear_dgrad": lambda jax, item: ((lambda dy, w: dy @ w), ("dy", "w")),
    "linear_wgrad": lambda jax, item: ((lambda x, dy: dy.T @ x), ("x", "dy")),
    "linear_bgrad": lambda jax, item: ((lambda dy: dy.sum(0)), ("dy",)),
}
