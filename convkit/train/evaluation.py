"""How often a network is wrong: error rates, their intervals, confusion, the images it was most wrong about.

`evaluate` keeps a record of every image. `validate` only counts: it is for the end of an epoch, and several
processes can share it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from .. import arrays
from ..errors import OptionError
from ..network.network import Network
from ..ops.softmax_xent import label_rank
from .data.dataset import Split, none_readable
from .inputs import Inputs
from .loader import Loader
from .position import Sums

#: How many views of an image can be asked for.
VIEWS = (1, 10)
#: A top-5 error says something where there are more classes than this.
TOP = 5
_Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class ErrorRate:
    """A share of images, with the 95 % interval of Wilson's score.

    Attributes
    ----------
    count, total : int
    """

    count: int
    total: int

    @property
    def value(self) -> float:
        """From 0 to 1; NaN of no image."""
        return self.count / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """What the share would be over all images of the kind, with 95 % confidence.

        Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
        """
        if not self.total:
            return 0.0, 1.0
        n, p = self.total, self.value
        middle = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
        reach = _Z / (1 + _Z**2 / n) * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
        # At 0 and 1 an end is exact, but for rounding.
        low = 0.0 if self.count == 0 else max(0.0, middle - reach)
        return low, 1.0 if self.count == n else min(1.0, middle + reach)


def validate(net: Network, inputs: Inputs, loader: Loader, indices: range, *, batch: int = 128) -> Sums:
    """Add up the errors and losses of some images: the centre of each.

    Parameters
    ----------
    net : Network
    inputs : Inputs
    loader : Loader
    indices : range
        Numbers of the loader's images.
    batch : int
        Images at a time. It changes no count.
    """
    found, batch = Sums(), max(1, min(batch, len(indices)))
    for read in loader.read(_requests(indices, batch)):
        scores, logs = scored(net, inputs, filled(read.images, batch), 1)
        good = np.flatnonzero(read.labels >= 0)
        rank = label_rank(scores[good], read.labels[good])
        found.loss += math.fsum(-_own(logs[good], read.labels[good]))
        found.errors += int((rank >= 1).sum())
        found.top5_errors += int((rank >= TOP).sum())
        found.images += len(good)
        found.left_out += len(read.failures)
    return found


@dataclass(frozen=True)
class Wrong:
    """An image for which the network's first class was another.

    Attributes
    ----------
    index : int
    name : str
    label, predicted : int
        -1 for `predicted` where the network's output is NaN.
    probability, label_probability : float
        That the network gave to the two.
    loss : float
        In nats.
    """

    index: int
    name: str
    label: int
    predicted: int
    probability: float
    label_probability: float
    loss: float


@dataclass(frozen=True)
class Evaluation:
    """What a network made of each image.

    Attributes
    ----------
    num_classes : int
    views : int
    indices : int64 array, (n,)
        Of the images that could be read.
    labels : int32 array, (n,)
    predicted : int32 array, (n,)
        The network's first class; -1 where its output is NaN.
    ranks : int32 array, (n,)
        Classes that stand before the label: as of `convkit.label_rank`.
    probabilities : float64 array, (n,)
        Of the first class.
    losses : float64 array, (n,)
        Cross-entropy, in nats.
    left_out : tuple of (str, str)
        Name and reason of each image that could not be read.
    """

    num_classes: int
    views: int
    indices: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    ranks: np.ndarray
    probabilities: np.ndarray
    losses: np.ndarray
    left_out: tuple[tuple[str, str], ...] = ()

    @property
    def images(self) -> int:
        """How many were looked at."""
        return len(self.labels)

    @property
    def loss(self) -> float:
        """Mean cross-entropy, in nats. With ten views it is that of the averaged probabilities."""
        finite = np.isfinite(self.losses).all()
        return math.fsum(self.losses) / self.images if finite else float(np.mean(self.losses))

    @property
    def top1(self) -> ErrorRate:
        """The top-1 error."""
        return ErrorRate(int((self.ranks >= 1).sum()), self.images)

    @property
    def top5(self) -> ErrorRate | None:
        """The top-5 error; None where there are at most five classes, since it would be 0."""
        return ErrorRate(int((self.ranks >= TOP).sum()), self.images) if self.num_classes > TOP else None

    @property
    def not_finite(self) -> int:
        """Images for which the network's output is NaN, or gives the label no probability at all."""
        return int((~np.isfinite(self.losses)).sum())

    def confusion(self) -> np.ndarray:
        """Images by label (row) and first class (column): int64 (K, K); without those of which it is NaN."""
        found = np.zeros((self.num_classes, self.num_classes), np.int64)
        known = self.predicted >= 0
        np.add.at(found, (self.labels[known], self.predicted[known]), 1)
        return found

    def pairs(self, wrong: bool = False) -> list[tuple[int, int, int]]:
        """What is not 0 in `confusion`: (label, first class, images), the most frequent first.

        Parameters
        ----------
        wrong : bool
            Only those off the diagonal.
        """
        known = (self.predicted >= 0) & ((self.predicted != self.labels) if wrong else True)
        codes = self.labels[known].astype(np.int64) * self.num_classes + self.predicted[known]
        found, counts = np.unique(codes, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        labels, predicted = np.divmod(found[order], self.num_classes)
        return list(zip(labels.tolist(), predicted.tolist(), counts[order].tolist()))

    def by_class(self) -> list[tuple[ErrorRate, ErrorRate]]:
        """Top-1 and top-5 error of each class."""
        K = self.num_classes
        total, first, fifth = (
            np.bincount(self.labels[chosen], minlength=K).tolist()
            for chosen in (slice(None), self.ranks >= 1, self.ranks >= TOP)
        )
        return [(ErrorRate(a, n), ErrorRate(b, n)) for n, a, b in zip(total, first, fifth)]

    def worst(self, count: int, name: Callable[[int], str] = str) -> list[Wrong]:
        """The images that it was most wrong about: the largest losses among the top-1 errors.

        Parameters
        ----------
        count : int
            At most so many.
        name : callable
            An image's name by its index: `Split.name`.
        """
        wrong = np.flatnonzero(self.ranks >= 1)
        # NaN is the worst of all; of equal losses the first image comes first.
        order = np.argsort(-np.nan_to_num(self.losses[wrong], nan=np.inf), kind="stable")
        return [
            Wrong(
                int(self.indices[i]), name(int(self.indices[i])), int(self.labels[i]), int(self.predicted[i]),
                float(self.probabilities[i]), math.exp(-self.losses[i]), float(self.losses[i]),
            )
            for i in wrong[order[:count]]
        ]  # fmt: skip


def evaluate(
    net: Network,
    split: Split,
    inputs: Inputs,
    *,
    views: int = 1,
    batch: int = 128,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Look at every image of a split.

    Parameters
    ----------
    net : Network
    split : Split
        Its labels are the network's classes.
    inputs : Inputs
    views : {1, 10}
        1: the centre. 10: the four corners and the centre, and their mirror images; the softmax of each is
        averaged, as in the paper.
    batch : int
        Images at a time. Rows that fill up the last one do not count, so that it changes no result, as far
        as the same implementations run.
    workers : int, optional
        As in `Loader`.
    progress : callable, optional
        Called with the number of images that are done, and of all.

    Raises
    ------
    DataError
        If no image can be read.
    """
    require_views(views)
    if batch < 1:
        raise OptionError(f"batch must be at least 1, not {batch}")
    batch = min(batch, len(split))
    parts: list[dict[str, np.ndarray]] = []
    failures: list[tuple[int, str]] = []
    done = 0
    with Loader(split, workers=workers) as loader:
        for read in loader.read(_requests(range(len(split)), batch)):
            failures += read.failures
            done += len(read.labels)
            good = np.flatnonzero(read.labels >= 0)
            if len(good):
                scores, logs = scored(net, inputs, filled(read.images, batch), views)
                parts.append(_judged(scores[good], logs[good], read.indices[good], read.labels[good]))
            if progress is not None:
                progress(done, len(split))
    if not parts:
        raise none_readable(split, f"the {len(split)} images", *failures[0])
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    left_out = tuple((split.name(index), reason) for index, reason in failures)
    return Evaluation(net.num_classes, views, **columns, left_out=left_out)


def require_views(views: int) -> None:
    """Refuse a number of views that there is not."""
    if views not in VIEWS:
        raise OptionError(f"views must be {' or '.join(map(str, VIEWS))}, not {views!r}")


def scored(net: Network, inputs: Inputs, images: np.ndarray, views: int) -> tuple[np.ndarray, np.ndarray]:
    """What a network makes of images.

    Parameters
    ----------
    net : Network
    inputs : Inputs
    images : uint8 array, (N, H, W, C)
    views : {1, 10}

    Returns
    -------
    scores : float64 array, (N, K)
        What classes are ranked by: of one view the logits, of ten the averaged probabilities' logarithms.
    logs : float64 array, (N, K)
        Logarithms of the probabilities.
    """
    own, _ = net.inputs(len(images))  # the plan's own memory
    if views == 1:
        logits = _host(net.forward(inputs.centre(images, out=own)))
        return logits, _log_softmax(logits)
    total: np.ndarray | None = None
    for x in inputs.views(images, views, out=own):
        logs = _log_softmax(_host(net.forward(x)))
        total = logs if total is None else np.logaddexp(total, logs)
    assert total is not None
    total -= math.log(views)
    return total, total


def _judged(
    scores: np.ndarray, logs: np.ndarray, indices: np.ndarray, labels: np.ndarray
) -> dict[str, np.ndarray]:
    """The columns of `Evaluation`."""
    broken = np.isnan(scores).any(axis=1)
    predicted = scores.argmax(axis=1)
    probabilities = np.exp(_own(logs, predicted))
    predicted[broken] = -1
    return {
        "indices": indices,
        "labels": labels,
        "predicted": predicted.astype(np.int32),
        "ranks": label_rank(scores, labels),
        "probabilities": probabilities,
        "losses": -_own(logs, labels),
    }


def _own(values: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """One value of each row."""
    own: np.ndarray = np.take_along_axis(values, columns[:, None].astype(np.int64), axis=1)[:, 0]
    return own


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    """Logarithm of the softmax of each row, in float64."""
    with np.errstate(invalid="ignore"):  # NaN and infinities of a network that has diverged stay NaN
        shifted = logits - logits.max(axis=1, keepdims=True)
        logs: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logs


def _host(values: Any) -> np.ndarray:
    """An array of the network's as float64 in host memory."""
    here = np.empty(values.shape, values.dtype)
    arrays.assign(here, values)
    return here.astype(np.float64)


def filled(images: np.ndarray, batch: int) -> np.ndarray:
    """The images, the last one repeated up to a whole batch: each batch size would need a plan of its own."""
    missing = batch - len(images)
    return images if not missing else np.concatenate([images, np.repeat(images[-1:], missing, axis=0)])


def _requests(indices: range, batch: int) -> Iterator[np.ndarray]:
    return (np.asarray(indices[i : i + batch]) for i in range(0, len(indices), batch))
