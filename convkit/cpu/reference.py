"""The reference implementation of every op: float64, the plain definition, nothing clever.

This is what everything else is checked against, so it is written to be compared with the formula by eye.
Loops run over the taps of a window; the arrays carry images, channels and pixels. Each function computes
in float64 whatever the storage is; the one rounding is the assignment to the output.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from ..geometry import (
    LRN,
    ChannelSum,
    Conv2d,
    Linear,
    LossSummary,
    LrnMaxPool2d,
    Pointwise,
    Pool2d,
    Reorder,
    SoftmaxXent,
)
from ..registry import ALL_DTYPES, implements
from . import keep
from .philox import dropped

Array = np.ndarray


def _reference(op: str):
    return implements(op, name="reference", dtypes=ALL_DTYPES, rank=-100, error=0.0)


def _f64(a: Array) -> Array:
    return a.astype(np.float64)


def _axis(
    taps: int, extent: int, outputs: int, stride: int, pad: int, dilation: int
) -> Iterator[tuple[int, slice, slice]]:
    """(tap, outputs, pixels) of each tap along one axis that sees the image: where, and what."""

    def steps(at: int, step: int, most: int) -> tuple[int, int]:  # those i for which at + i * step is inside
        return max(0, -(at // step)), min(most, (extent - 1 - at) // step + 1)

    which: Iterable[int] = range(taps)
    if taps > extent + outputs:  # a pool's window may be far larger than its image
        each = (range(*steps(p * stride - pad, dilation, taps)) for p in range(outputs))
        which = sorted({tap for found in each for tap in found})
    for tap in which:
        at = tap * dilation - pad  # what it sees from output 0
        p0, p1 = steps(at, stride, outputs)
        if p0 < p1:
            yield tap, slice(p0, p1), slice(at + p0 * stride, at + (p1 - 1) * stride + 1, stride)


def _seen(g: Conv2d | Pool2d) -> Iterator[tuple[int, int, tuple, tuple]]:
    """(r, s, windows, pixels): tap (r, s) of `y[windows]` sees `x[pixels]`; elsewhere, padding.

    Indices into (N, channels, P, Q) and (N, channels, H, W); the padding is never stored, however wide.
    """
    rows = _axis(g.R, g.H, g.P, g.stride_h, g.pad_top, g.dilation_h)
    columns = list(_axis(g.S, g.W, g.Q, g.stride_w, g.pad_left, g.dilation_w))
    for r, p, h in rows:
        for s, q, w in columns:
            yield r, s, (..., p, q), (..., h, w)


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


@_reference("conv2d_fprop")
def conv2d_fprop(g: Conv2d, x: Array, w: Array, b: Array | None, y: Array, relu: bool = False) -> None:
    image, weights = _f64(x), _f64(w)
    total = np.zeros(y.shape)
    if b is not None:
        total += _f64(b)[:, None, None]
    for r, s, windows, pixels in _seen(g):
        part, seen = total[windows], image[pixels]
        for c, k in _groups(g):
            part[:, k] += _maps(weights[k, :, r, s] @ _pixels(seen[:, c]), part)
    y[...] = np.maximum(total, 0) if relu else total


@_reference("conv2d_dgrad")
def conv2d_dgrad(g: Conv2d, dy: Array, w: Array, dx: Array) -> None:
    gradient, weights = _f64(dy), _f64(w)
    total = np.zeros(dx.shape)
    for r, s, windows, pixels in _seen(g):
        part, seen = total[pixels], gradient[windows]
        for c, k in _groups(g):
            part[:, c] += _maps(weights[k, :, r, s].T @ _pixels(seen[:, k]), part)
    dx[...] = total


@_reference("conv2d_dgrad_relu")
def conv2d_dgrad_relu(g: Conv2d, dy: Array, w: Array, x: Array, dx: Array) -> None:
    gradient = np.empty(dx.shape)
    conv2d_dgrad(g, dy, w, gradient)
    dx[...] = np.where(_f64(x) <= 0, 0, gradient)


@_reference("conv2d_wgrad")
def conv2d_wgrad(g: Conv2d, x: Array, dy: Array, dw: Array) -> None:
    image, gradient = _f64(x), _f64(dy)
    dw[...] = 0
    for r, s, windows, pixels in _seen(g):
        for c, k in _groups(g):
            products = _pixels(gradient[windows][:, k]) @ _pixels(image[pixels][:, c]).swapaxes(1, 2)
            dw[k, :, r, s] = products.sum(axis=0)


@_reference("conv2d_bgrad")
def conv2d_bgrad(g: ChannelSum, dy: Array, db: Array) -> None:
    db[...] = _f64(dy).sum(axis=(0, 2, 3))


@_reference("relu_fprop")
def relu_fprop(g: Pointwise, x: Array, y: Array) -> None:
    y[...] = np.maximum(_f64(x), 0)


@_reference("relu_dgrad")
def relu_dgrad(g: Pointwise, dy: Array, y: Array, dx: Array) -> None:
    dx[...] = np.where(_f64(y) <= 0, 0, _f64(dy))


def _window_sum(g: LRN, a: Array, behind: int, ahead: int) -> Array:
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


@_reference("lrn_fprop")
def lrn_fprop(g: LRN, x: Array, y: Array) -> None:
    x64 = _f64(x)
    d = g.k + g.alpha / g.taps * _window_sum(g, x64**2, g.behind, g.ahead)
    y[...] = x64 * d**-g.beta


@_reference("lrn_dgrad")
def lrn_dgrad(g: LRN, dy: Array, x: Array, dx: Array) -> None:
    x64, dy64 = _f64(x), _f64(dy)
    d = g.k + g.alpha / g.taps * _window_sum(g, x64**2, g.behind, g.ahead)
    # Element i counts in the windows centred on [i - ahead, i + behind]: the mirrored window.
    s = _window_sum(g, dy64 * x64 * d ** (-g.beta - 1), g.ahead, g.behind)
    dx[...] = dy64 * d**-g.beta - 2 * g.alpha * g.beta / g.taps * x64 * s


@_reference("maxpool2d_fprop")
def maxpool2d_fprop(g: Pool2d, x: Array, y: Array, argmax: Array) -> None:
    image = _f64(x)
    best = np.full(y.shape, -np.inf)
    winner = np.zeros(y.shape, np.int64)
    seen = np.zeros(y.shape, bool)
    for r, s, windows, pixels in _seen(g):
        value, so_far = image[pixels], best[windows]
        # A NaN beats every number, and nothing beats the first NaN; padding takes no part.
        beats = (value > so_far) | (np.isnan(value) & ~np.isnan(so_far)) | ~seen[windows]
        so_far[beats] = value[beats]
        winner[windows][beats] = r * g.S + s
        seen[windows] = True
    y[...] = best
    argmax[...] = winner


@_reference("maxpool2d_dgrad")
def maxpool2d_dgrad(g: Pool2d, dy: Array, argmax: Array, dx: Array) -> None:
    gradient = _f64(dy)
    total = np.zeros(dx.shape)
    for r, s, windows, pixels in _seen(g):
        total[pixels] += np.where(argmax[windows] == r * g.S + s, gradient[windows], 0)
    dx[...] = total


@_reference("reorder")
def reorder(g: Reorder, x: Array, y: Array) -> None:
    y[...] = x


@_reference("lrn_maxpool2d_fprop")
def lrn_maxpool2d_fprop(g: LrnMaxPool2d, x: Array, y: Array, argmax: Array) -> None:
    normalised = np.empty(x.shape)
    lrn_fprop(g.lrn, x, normalised)
    maxpool2d_fprop(g.pool, normalised, y, argmax)


@_reference("lrn_maxpool2d_dgrad")
def lrn_maxpool2d_dgrad(
    g: LrnMaxPool2d, dy: Array, argmax: Array, x: Array, dx: Array, relu: bool = False
) -> None:
    inner = np.empty(x.shape)
    maxpool2d_dgrad(g.pool, dy, argmax, inner)
    gradient = np.empty(x.shape)
    lrn_dgrad(g.lrn, inner, x, gradient)
    dx[...] = np.where(_f64(x) <= 0, 0, gradient) if relu else gradient


@_reference("linear_fprop")
def linear_fprop(g: Linear, x: Array, w: Array, b: Array | None, y: Array, relu: bool = False) -> None:
    total = _f64(x) @ _f64(w).T
    if b is not None:
        total += _f64(b)
    y[...] = np.maximum(total, 0) if relu else total


@_reference("linear_dgrad")
def linear_dgrad(g: Linear, dy: Array, w: Array, dx: Array) -> None:
    dx[...] = _f64(dy) @ _f64(w)


@_reference("linear_wgrad")
def linear_wgrad(g: Linear, x: Array, dy: Array, dw: Array) -> None:
    dw[...] = _f64(dy).T @ _f64(x)


@_reference("linear_bgrad")
def linear_bgrad(g: ChannelSum, dy: Array, db: Array) -> None:
    db[...] = _f64(dy).sum(axis=0)


@_reference("dropout_fprop")
def dropout_fprop(g: Pointwise, x: Array, y: Array, p: float, seed: int, offset: int, scale: float) -> None:
    y[...] = np.where(dropped(g.size, p, seed, offset).reshape(x.shape), 0, _f64(x) * scale)


@_reference("dropout_dgrad")
def dropout_dgrad(g: Pointwise, dy: Array, dx: Array, p: float, seed: int, offset: int, scale: float) -> None:
    dropout_fprop(g, dy, dx, p, seed, offset, scale)


def _own_class(g: SoftmaxXent, labels: Array) -> tuple[Array, Array]:
    """Whether each label is a class, and an index of its element that is one in any case."""
    known = (labels >= 0) & (labels < g.K)
    return known, np.where(known, labels, 0)


@_reference("softmax_xent_fprop")
def softmax_xent_fprop(g: SoftmaxXent, logits: Array, labels: Array, loss: Array, probs: Array) -> None:
    shifted = _f64(logits)
    shifted -= shifted.max(axis=1, keepdims=True)  # so that the largest exponential is 1
    total = np.exp(shifted).sum(axis=1, keepdims=True)
    known, label = _own_class(g, labels)
    loss[...] = np.where(known, np.log(total[:, 0]) - shifted[np.arange(g.N), label], np.nan)
    probs[...] = np.exp(shifted) / total


@_reference("softmax_xent_dgrad")
def softmax_xent_dgrad(g: SoftmaxXent, probs: Array, labels: Array, dloss: Array, dlogits: Array) -> None:
    gradient = _f64(probs)
    known, label = _own_class(g, labels)
    gradient[np.arange(g.N), label] -= 1
    gradient[~known] = np.nan
    dlogits[...] = gradient * _f64(dloss)[:, None]


@_reference("label_rank")
def label_rank(g: SoftmaxXent, logits: Array, labels: Array, rank: Array) -> None:
    z = _f64(logits)
    known, label = _own_class(g, labels)
    own = z[np.arange(g.N), label][:, None]
    before = (z > own) | ((z == own) & (np.arange(g.K) < label[:, None]))
    rank[...] = np.where(known & ~np.isnan(z).any(axis=1), before.sum(axis=1), g.K)


@_reference("loss_summary")
def loss_summary(
    g: LossSummary, loss: Array, rank: Array, total: Array, errors: Array, finite: Array
) -> None:
    total[...] = _f64(loss).sum()
    errors[...] = (rank >= 1).sum(), (rank >= 5).sum()
    finite[...] = np.isfinite(_f64(loss)).all()


@_reference("sgd_momentum")
def sgd_momentum(
    g: Pointwise,
    w: Array,
    dw: Array,
    v: Array,
    w_new: Array,
    v_new: Array,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    dampening: float,
    nesterov: bool,
    lr_in_velocity: bool,
    finite: Array | None = None,
) -> None:
    if keep.forbidden(finite):
        keep.copy((w, v), (w_new, v_new))
        return
    weights, velocity = _f64(w), _f64(v)
    gradient = _f64(dw) + weight_decay * weights
    if lr_in_velocity:
        velocity = momentum * velocity - lr * gradient
        weights = weights + velocity
    else:
        velocity = momentum * velocity + (1 - dampening) * gradient
        weights = weights - lr * (gradient + momentum * velocity if nesterov else velocity)
    w_new[...] = weights
    v_new[...] = velocity


@_reference("linear_wgrad_sgd")
def linear_wgrad_sgd(
    g: Linear, x: Array, dy: Array, w: Array, v: Array, w_new: Array, v_new: Array, **sgd: Any
) -> None:
    gradient = np.empty(w.shape)
    linear_wgrad(g, x, dy, gradient)
    sgd_momentum(Pointwise(w.shape), w, gradient, v, w_new, v_new, **sgd)


@_reference("linear_dgrad_wgrad_sgd")
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
    gradient = np.empty(dx.shape)
    linear_dgrad(g, dy, w, gradient)
    dx[...] = np.where(_f64(x) <= 0, 0, gradient) if relu else gradient
    linear_wgrad_sgd(g, x, dy, w, v, w_new, v_new, **sgd)
