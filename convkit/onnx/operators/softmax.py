"""Softmax and its losses."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np

from ... import arrays
from ...errors import DtypeError, OptionError, ShapeError
from ...ops.softmax_xent import softmax_xent_fprop
from ..table import operator
from .shapes import flatten

Array = np.ndarray


def _softmax(rows: Array) -> Array:
    return softmax_xent_fprop(rows, np.zeros(len(rows), np.int64))[1] if rows.size else rows


def _log_softmax(rows: Array) -> Array:
    """By the loss of each row's largest logit, which is log(sum(exp(x - max))): no logarithm of a zero."""
    if not rows.size:
        return rows
    largest = rows.argmax(axis=1)
    loss, _ = softmax_xent_fprop(rows, largest)
    wide = rows.astype(loss.dtype)
    return (wide - wide.max(axis=1, keepdims=True) - loss[:, None]).astype(rows.dtype)


def _class_rows(x: Array, axis: int = 1) -> Array:
    """x with `axis` last and the others as one."""
    if not -x.ndim <= axis < x.ndim:
        raise ShapeError(f"x of shape {x.shape} has no axis {axis}")
    moved = np.moveaxis(x, axis, -1)
    return moved.reshape(prod(moved.shape[:-1]), moved.shape[-1])


def _from_class_rows(rows: Array, shape: tuple[int, ...], axis: int = 1) -> Array:
    """The inverse of `_class_rows`."""
    axis %= len(shape)
    return np.moveaxis(rows.reshape(*shape[:axis], *shape[axis + 1 :], shape[axis]), -1, axis)


@operator("Softmax")
def softmax_before_13(x, *, axis=1):
    return _softmax(flatten(x, axis=axis)).reshape(x.shape)


@operator("LogSoftmax")
def log_softmax_before_13(x, *, axis=1):
    return _log_softmax(flatten(x, axis=axis)).reshape(x.shape)


@operator("Softmax", since=13)
def softmax(x, *, axis=-1):
    return _from_class_rows(_softmax(_class_rows(x, axis)), x.shape, axis)


@operator("LogSoftmax", since=13)
def log_softmax(x, *, axis=-1):
    return _from_class_rows(_log_softmax(_class_rows(x, axis)), x.shape, axis)


def _reduced(loss_of: Callable[[Array], Array], scores, labels, weights, ignore_index, reduction) -> Array:
    """Weigh and reduce, in float64, the losses that `loss_of(labels)` gives; an ignored label counts for
    nothing.
    """
    classes, places = scores.shape[1], (*scores.shape[:1], *scores.shape[2:])
    if labels.shape != places:
        raise ShapeError(f"labels must have shape {places} for scores {scores.shape}, not {labels.shape}")
    arrays.dtype_name("scores", scores)
    if labels.dtype.kind not in "iu":
        raise DtypeError(f"labels must be of an integer dtype, not {labels.dtype}")
    if weights is not None and weights.shape != (classes,):
        raise ShapeError(f"weights must have shape {(classes,)}, one for each class, not {weights.shape}")
    counted = np.ones(places, bool) if ignore_index is None else labels != ignore_index
    safe = np.where(counted, labels, 0)
    wrong = counted & ((safe < 0) | (safe >= classes))
    if wrong.any():
        also = "" if ignore_index is None else f", or ignore_index, {ignore_index}"
        raise OptionError(
            f"labels must each be a class, 0 <= label < {classes}{also}; found {labels[wrong].flat[0]}"
        )
    loss, scale = np.zeros(places), counted.astype(np.float64)
    if counted.any():
        loss = np.where(counted, loss_of(safe.reshape(-1)).astype(np.float64).reshape(places), 0)
        if weights is not None:
            scale = np.where(counted, weights.astype(np.float64)[safe], 0)
    loss = loss * scale
    if reduction == "none":
        return loss.astype(scores.dtype)
    total = loss.sum()
    return np.asarray(total / scale.sum() if reduction == "mean" else total).astype(scores.dtype)


REDUCTION = {"reduction": ("none", "sum", "mean")}


@operator("SoftmaxCrossEntropyLoss", choices=REDUCTION)
def softmax_cross_entropy_loss(scores, labels, weights=None, *, ignore_index=None, reduction="mean"):
    rows = _class_rows(scores)
    loss = _reduced(
        lambda safe: softmax_xent_fprop(rows, safe)[0], scores, labels, weights, ignore_index, reduction
    )
    return loss, lambda: _from_class_rows(_log_softmax(rows), scores.shape)


@operator("NegativeLogLikelihoodLoss", choices=REDUCTION)
def negative_log_likelihood_loss(log_probs, labels, weights=None, *, ignore_index=None, reduction="mean"):
    rows = _class_rows(log_probs)
    return _reduced(
        lambda safe: -rows[np.arange(len(rows)), safe], log_probs, labels, weights, ignore_index, reduction
    )
