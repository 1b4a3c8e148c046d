"""Softmax with cross-entropy, and the label's rank: `softmax_xent_fprop`, `_dgrad`, `label_rank`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..arrays import A, empty, kind_of, view
from ..dispatch import Arguments, in_range, operation
from ..op import FILLS, Cases, Op, Problem, Shape, Tensors, Weights, defines, draw, extent
from ..options import shape_of
from .rounding import exact, f64

Array = np.ndarray

#: Half of the labels are no class: what lives on a GPU cannot be looked at beforehand.
STRAY_LABELS = "stray labels"


@dataclass(frozen=True)
class SoftmaxXent(Problem):
    """Softmax and cross-entropy of N rows of K logits, and the label's rank among them.

    The loss is kept in the accumulation type.
    """

    N: int
    K: int
    dtype: str = "float32"

    @classmethod
    def of(cls, logits_shape: Any, dtype: str = "float32", name: str = "logits") -> SoftmaxXent:
        N, K = shape_of(name, logits_shape, 2, "(N, K)")
        return cls(N, K, dtype)

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        rows, row = (self.N, self.K), (self.N,)
        each_row = dict.fromkeys(("labels", "loss", "dloss", "rank"), row)
        return {"logits": rows, "probs": rows, "dlogits": rows, **each_row}

    def dtype_of(self, tensor: str) -> str:
        if tensor in ("labels", "rank"):
            return "int64" if tensor == "labels" else "int32"
        if tensor in ("loss", "dloss"):
            return "float64" if self.dtype == "float64" else "float32"
        return self.dtype

    def flops(self, op: str) -> int:
        """Max, subtract, exp and sum per logit forward; subtract and scale backward; a rank compares."""
        return self.N * self.K * {"softmax_xent_fprop": 4, "label_rank": 1}.get(op, 2)

    def reduction(self, op: str) -> int:
        return self.K if op == "softmax_xent_fprop" else 1


# ---------------------------------------------------------------------------------------------------
# Rounding
# ---------------------------------------------------------------------------------------------------
def _own_class(g: SoftmaxXent, labels: Array) -> tuple[Array, Array]:
    """Whether each label is a class, and an index of its element that is one in any case."""
    known = (labels >= 0) & (labels < g.K)
    return known, np.where(known, labels, 0)


def _fprop_rounding(
    op: Op, g: SoftmaxXent, inputs: Tensors, options: dict[str, Any], values: dict[str, Array]
) -> Weights:
    z, labels = f64(inputs["logits"]), inputs["labels"]
    assert labels is not None
    _, label = _own_class(g, labels)
    shifted = np.abs(z - z.max(axis=1, keepdims=True)) if z.size else z
    p, loss = values["probs"], values["loss"]
    # exp(z - max): the subtraction's error counts |z - max| fold. The sum of K positive terms weighs theirs.
    weighted = np.where(p > 0, p * shifted, 0)  # 0 * inf: a logit of -inf has no weight
    total = weighted.sum(axis=1, keepdims=True) + np.sqrt(g.K) + 4
    with_class = shifted[np.arange(g.N), label]
    weight = 4 * np.where(p > 0, p * (shifted + total), p)
    return {"loss": (4 * (total[:, 0] + with_class + np.abs(loss)), np.abs(loss)), "probs": (weight, p)}


def _dgrad_rounding(
    op: Op, g: SoftmaxXent, inputs: Tensors, options: dict[str, Any], values: dict[str, Array]
) -> Weights:
    magnitude = np.abs(values["dlogits"]) + np.zeros(g.shape("probs"))
    return {"dlogits": (4 * magnitude, magnitude)}  # p - 1 is exact near 1, and rounds once elsewhere


# ---------------------------------------------------------------------------------------------------
# Cases
# ---------------------------------------------------------------------------------------------------
_EDGES = {
    "one class": (3, 1),
    "two classes": (1, 2),
    "one row": (1, 1000),
    "primes": (13, 17),
    "513 rows": (513, 10),
    "empty batch": (0, 5),
}


class _Cases(Cases):
    extents = {name: extent(name) for name in ("N", "K")}
    fills = (*FILLS, "large")

    def layers(self) -> Iterable[tuple[str, Problem]]:
        yield "1000 classes", SoftmaxXent(128, 1000)

    def edges(self) -> Iterable[tuple[str, Problem]]:
        for name, (N, K) in _EDGES.items():
            yield name, SoftmaxXent(N, K)

    def data(self) -> Iterable[Problem]:
        return [SoftmaxXent(9, 11)]

    def bases(self) -> list[Problem]:
        return [SoftmaxXent(3, 5)]

    def random(self, rng: np.random.Generator) -> Problem:
        return SoftmaxXent(*draw(rng, 1, 30, 2))

    def large(self) -> Iterable[tuple[str, Problem]]:
        yield "65,537 rows", SoftmaxXent(65_537, 3)
        yield "65,537 classes", SoftmaxXent(2, 65_537)

    def on_device(self) -> Iterable[tuple[str, str, Problem]]:
        for rows in (9, 11), (65, 300):
            yield "no class", STRAY_LABELS, SoftmaxXent(*rows)

    def huge(self) -> list[Problem]:
        return [SoftmaxXent(100_000_000, 10), SoftmaxXent(10, 100_000_000)]

    def values(
        self, tensor: str, problem: Any, rng: np.random.Generator, kind: str, fill: Callable[[Any], None]
    ) -> Array | None:
        shape = problem.shape(tensor)
        if tensor == "labels":
            labels: Array = rng.integers(0, problem.K, shape)
            if kind == STRAY_LABELS:
                stray = [-100, -1, problem.K, 2**31, -(2**40), 2**62]
                labels[::2] = rng.choice(stray, labels[::2].shape)
            return labels
        if tensor == "probs":
            e = np.exp(rng.standard_normal(shape))
            return np.asarray(e / e.sum(axis=1, keepdims=True))
        return None


# ---------------------------------------------------------------------------------------------------
# Ops
# ---------------------------------------------------------------------------------------------------
_LABELS = {"labels": "integer"}


@defines(
    "softmax_xent_fprop", SoftmaxXent, ("logits", "labels"), ("loss", "probs"), slices="rows", dtypes=_LABELS,
    cases=_Cases(), rounding=_fprop_rounding,
)  # fmt: skip
def _fprop(g: SoftmaxXent, logits: Array, labels: Array, loss: Array, probs: Array) -> None:
    shifted = f64(logits)
    shifted -= shifted.max(axis=1, keepdims=True)  # so that the largest exponential is 1
    total = np.exp(shifted).sum(axis=1, keepdims=True)
    known, label = _own_class(g, labels)
    loss[...] = np.where(known, np.log(total[:, 0]) - shifted[np.arange(g.N), label], np.nan)
    probs[...] = np.exp(shifted) / total


@defines(
    "softmax_xent_dgrad", SoftmaxXent, ("probs", "labels", "dloss"), ("dlogits",), slices="rows",
    dtypes={**_LABELS, "dloss": "real"}, cases=_Cases(), rounding=_dgrad_rounding,
)  # fmt: skip
def _dgrad(g: SoftmaxXent, probs: Array, labels: Array, dloss: Array, dlogits: Array) -> None:
    gradient = f64(probs)
    known, label = _own_class(g, labels)
    gradient[np.arange(g.N), label] -= 1
    gradient[~known] = np.nan
    dlogits[...] = gradient * f64(dloss)[:, None]


@defines(
    "label_rank", SoftmaxXent, ("logits", "labels"), ("rank",), slices="rows", direction="fwd",
    dtypes=_LABELS, cases=_Cases(), rounding=exact,
)  # fmt: skip
def _rank(g: SoftmaxXent, logits: Array, labels: Array, rank: Array) -> None:
    z = f64(logits)
    known, label = _own_class(g, labels)
    own = z[np.arange(g.N), label][:, None]
    before = (z > own) | ((z == own) & (np.arange(g.K) < label[:, None]))
    rank[...] = np.where(known & ~np.isnan(z).any(axis=1), before.sum(axis=1), g.K)


@operation
def softmax_xent_fprop(
    logits: A, labels: A, *, impl: str | None = None, out: tuple[A, A] | None = None
) -> tuple[A, A]:
    """Softmax and its cross-entropy with the true classes.

    Parameters
    ----------
    logits : array, (N, K)
    labels : array of integers, (N,)
        True class of each row, 0 <= label < K. There is no `ignore_index`: a row is left out of the gradient
        by `dloss` = 0 in `softmax_xent_dgrad`, with any label that is a class, and out of a mean by its user.
        PyTorch's -100 is no class.

    Returns
    -------
    loss : array, (N,)
        ``-log(probs[n, labels[n]])``, for each row, in nats; not averaged. float32, or float64 for
        float64 logits. On a GPU, NaN where the label is no class.
    probs : array, (N, K)
        Softmax of each row; what the backward pass needs.

    Raises
    ------
    OptionError
        If a label is no class; not on a GPU, where to read the labels would be to wait for it.
    """
    a = Arguments("softmax_xent_fprop", logits=logits, labels=labels)
    problem = SoftmaxXent.of(a.logits.shape, a.dtype)
    in_range("labels", a.labels, problem.K, "a class")
    return a.run(problem, out=out, impl=impl)  # type: ignore[no-any-return]


@operation
def softmax_xent_dgrad(
    probs: A,
    labels: A,
    dloss: A | None = None,
    *,
    impl: str | None = None,
    out: A | None = None,
) -> A:
    """Gradient of `softmax_xent_fprop` with respect to the logits.

    Parameters
    ----------
    probs : array, (N, K)
        The second result of `softmax_xent_fprop`.
    labels : array of integers, (N,)
        As in `softmax_xent_fprop`.
    dloss : array of real numbers, (N,), optional
        Gradient of each row's loss; 1/N, that of the mean loss, by default. It is cast to the dtype of the
        loss. 0 leaves the row out.

    Returns
    -------
    dlogits : array, (N, K)
        ``(probs - onehot(labels)) * dloss``. On a GPU, a row of NaN where the label is no class.

    Raises
    ------
    OptionError
        If a label is no class; not on a GPU.
    """
    if dloss is None:
        rows = view("probs", probs).shape[:1]  # an object with DLPack need not have a shape itself
        mean: Any = empty(rows, "float64", kind_of("probs", probs).device)
        mean.fill(1 / max(1, mean.size))
        dloss = mean
    a = Arguments("softmax_xent_dgrad", probs=probs, labels=labels, dloss=dloss)
    problem = SoftmaxXent.of(a.probs.shape, a.dtype, name="probs")
    in_range("labels", a.labels, problem.K, "a class")
    with np.errstate(over="ignore"):  # a float64 beyond float32 is an infinity there
        return a.run(problem, out=out, impl=impl)


@operation
def label_rank(logits: A, labels: A, *, impl: str | None = None, out: A | None = None) -> A:
    """Number of classes that stand before the true one, for each row.

    A class stands before the label's where its logit is larger, or equal with a smaller index. So the
    label is the argmax where its rank is 0; a rank of at least 1 is a top-1 error, of at least 5 a top-5
    error.

    Parameters
    ----------
    logits : array, (N, K)
        Probabilities serve as well.
    labels : array of integers, (N,)
        True class of each row, 0 <= label < K.

    Returns
    -------
    rank : array of int32, (N,)
        K where any logit of the row is NaN. On a GPU also where the label is no class.

    Raises
    ------
    OptionError
        If a label is no class; not on a GPU.
    """
    a = Arguments("label_rank", logits=logits, labels=labels)
    problem = SoftmaxXent.of(a.logits.shape, a.dtype)
    in_range("labels", a.labels, problem.K, "a class")
    return a.run(problem, out=out, impl=impl)
