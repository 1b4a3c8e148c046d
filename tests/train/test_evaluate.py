"""Error rates: image by image, whatever the batch; intervals, confusion, views, what cannot be read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import convkit as ck
from convkit.train.data.dataset import Pixels, Split
from convkit.train.errors import BadImage, DataError
from convkit.train.evaluation import ErrorRate, Evaluation, evaluate, validate
from convkit.train.loader import Loader
from convkit.train.position import Sums

K = 8


class Net:
    """A network whose logits are the image's first pixels, so that every figure can be worked out by hand."""

    num_classes = K

    def __init__(self) -> None:
        self.batches: list[int] = []

    def inputs(self, batch: int) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((batch, 1, 1, K), np.float32), np.zeros(batch, np.int64)

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.batches.append(len(x))
        return x.reshape(len(x), K)


class Inputs:
    """Pixels as they are; a view is the image with its pixels moved on."""

    def centre(self, images: np.ndarray, *, out: np.ndarray) -> np.ndarray:
        out[...] = images.reshape(len(images), 1, 1, K)
        return out

    def views(self, images: np.ndarray, count: int, *, out: np.ndarray) -> Iterator[np.ndarray]:
        for place in range(count):
            out[...] = np.roll(images.reshape(len(images), 1, 1, K), place, axis=-1)
            yield out


class Broken(Pixels):
    """Some images cannot be read."""

    broken: tuple[int, ...] = (3, 10)

    def read(self, index: int, out: np.ndarray) -> None:
        if index in self.broken:
            raise BadImage("it is torn")
        super().read(index, out)

    read_many = Split.read_many


def pixels(n: int = 23, kind: type[Pixels] = Pixels) -> Pixels:
    rng = np.random.default_rng(5)
    return kind(rng.integers(0, 6, (n, 1, K, 1), np.uint8), rng.integers(0, K, n))


def found(split: Pixels, batch: int = 7, views: int = 1) -> Evaluation:
    return evaluate(Net(), split, Inputs(), views=views, batch=batch)  # type: ignore[arg-type]


def validated(net: Any, split: Pixels, indices: range | None = None, batch: int = 7) -> Sums:
    with Loader(split) as loader:
        return validate(net, Inputs(), loader, range(len(split)) if indices is None else indices, batch=batch)  # type: ignore[arg-type]


def by_hand(split: Pixels, views: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Scores and probabilities of each image, in the plainest way."""
    logits = split.pixels.reshape(-1, K).astype(np.float64)
    probs = [np.exp(np.roll(logits, v, axis=1)) for v in range(views)]
    mean = sum(p / p.sum(axis=1, keepdims=True) for p in probs) / views
    return (logits if views == 1 else mean), mean


@pytest.mark.parametrize("views", [1, 10])
def test_each_image_is_judged_as_by_hand(views):
    split = pixels()
    scores, probs = by_hand(split, views)
    evaluation = found(split, views=views)
    rows, labels = np.arange(23), split.labels
    own = scores[rows, labels][:, None]
    # A class of the same score stands before the label where its number is smaller. In float64 two views'
    # sums may differ in the last digit, so only scores that differ by more are held to it.
    ahead = (scores > own + 1e-12) | (
        (np.abs(scores - own) <= 1e-12) & (np.arange(K) < labels[:, None]) & (views == 1)
    )
    if views == 1:
        np.testing.assert_array_equal(evaluation.ranks, ahead.sum(axis=1))
        np.testing.assert_array_equal(evaluation.predicted, scores.argmax(axis=1))
        assert (np.sort(scores, axis=1)[:, -1] == np.sort(scores, axis=1)[:, -2]).any(), "no tie was tried"
    else:
        assert (evaluation.ranks >= ahead.sum(axis=1)).all()
        top = scores.max(axis=1)
        np.testing.assert_allclose(scores[rows, evaluation.predicted], top, rtol=1e-12)
    np.testing.assert_allclose(evaluation.losses, -np.log(probs[rows, labels]), rtol=1e-12)
    np.testing.assert_allclose(evaluation.probabilities, probs.max(axis=1), rtol=1e-12)
    assert evaluation.loss == pytest.approx(-np.log(probs[rows, labels]).mean(), rel=1e-12)
    assert evaluation.top1 == ErrorRate(int((evaluation.ranks > 0).sum()), 23)
    assert evaluation.top5 == ErrorRate(int((evaluation.ranks > 4).sum()), 23)
    np.testing.assert_array_equal(evaluation.indices, rows)


@pytest.mark.parametrize("views", [1, 10])
def test_the_batch_changes_nothing(views):
    split = pixels(kind=Broken)
    first = found(split, 23, views)
    for batch in (1, 2, 7, 22, 1000):
        other = found(split, batch, views)
        for name in ("indices", "labels", "predicted", "ranks", "probabilities", "losses"):
            np.testing.assert_array_equal(getattr(first, name), getattr(other, name))
        assert first.left_out == other.left_out and first.loss == other.loss


def test_one_plan_serves_all_batches():
    net = Net()
    evaluate(net, pixels(), Inputs(), batch=7)  # type: ignore[arg-type]
    validated(net, pixels(), batch=7)
    assert set(net.batches) == {7}


def test_what_cannot_be_read_is_named_and_does_not_count():
    split, whole = pixels(kind=Broken), pixels()
    seen: list[tuple[int, int]] = []
    evaluation = evaluate(Net(), split, Inputs(), batch=7, progress=lambda *done: seen.append(done))  # type: ignore[arg-type]
    assert evaluation.left_out == (("image 3", "it is torn"), ("image 10", "it is torn"))
    kept = np.setdiff1d(np.arange(23), Broken.broken)
    np.testing.assert_array_equal(evaluation.indices, kept)
    np.testing.assert_array_equal(evaluation.losses, found(whole).losses[kept])
    assert seen == [(7, 23), (14, 23), (21, 23), (23, 23)]

    class Torn(Broken):
        broken = tuple(range(23))

    with pytest.raises(DataError, match="image 0.*it is torn"):
        found(pixels(kind=Torn))


@pytest.mark.parametrize("kind", [Pixels, Broken])
def test_validation_counts_the_same(kind):
    split = pixels(kind=kind)
    evaluation = found(split)
    whole = validated(Net(), split, batch=5)
    assert (whole.images, whole.errors, whole.top5_errors, whole.left_out) == (
        evaluation.images, evaluation.top1.count, evaluation.top5.count, len(evaluation.left_out)  # type: ignore[union-attr]
    )  # fmt: skip
    assert whole.loss / whole.images == pytest.approx(evaluation.loss, rel=1e-12)
    # Shares of ranks, added as arrays, one of them without an image.
    parts = [validated(Net(), split, range(*share), batch=5) for share in ((0, 9), (9, 9), (9, 23))]
    assert parts[1] == Sums()
    added = Sums.of(np.sum([part.array() for part in parts], axis=0))
    assert added == dataclasses.replace(whole, loss=pytest.approx(whole.loss, rel=1e-12))


def evaluation(labels, predicted, losses, num_classes=3, **more) -> Evaluation:
    labels, predicted = np.array(labels, np.int32), np.array(predicted, np.int32)
    ranks = np.where(labels == predicted, 0, num_classes - 1)
    return Evaluation(
        num_classes, 1, np.arange(len(labels)) * 2, labels, predicted, ranks,
        np.full(len(labels), 0.5), np.array(losses, np.float64), **more,
    )  # fmt: skip


def test_confusion_and_classes():
    some = evaluation([0, 0, 1, 2, 2, 2], [0, 1, 1, 1, 1, -1], [0.1, 2, 0.1, 3, 4, np.nan])
    np.testing.assert_array_equal(some.confusion(), [[1, 1, 0], [0, 1, 0], [0, 2, 0]])
    assert some.confusion().dtype == np.int64
    assert some.pairs() == [(2, 1, 2), (0, 0, 1), (0, 1, 1), (1, 1, 1)]
    assert some.pairs(wrong=True) == [(2, 1, 2), (0, 1, 1)]
    assert [first for first, _ in some.by_class()] == [ErrorRate(1, 2), ErrorRate(0, 1), ErrorRate(3, 3)]
    assert math.isnan(some.loss) and some.not_finite == 1


def test_the_most_wrong_come_first():
    some = evaluation([0, 0, 1, 2, 2], [0, 1, 0, 1, -1], [9, 2, 3, 3, np.nan])
    worst = some.worst(3, lambda index: f"file {index}")
    # A right one is not wrong however dear; NaN is the worst; of equals the first comes first.
    assert [(w.index, w.name, w.label, w.predicted) for w in worst] == [
        (8, "file 8", 2, -1), (4, "file 4", 1, 0), (6, "file 6", 2, 1)
    ]  # fmt: skip
    assert worst[1].label_probability == pytest.approx(math.exp(-3))


def test_top5_says_nothing_of_five_classes():
    assert evaluation([0, 1], [0, 0], [1, 1], num_classes=5).top5 is None
    assert evaluation([0, 1], [0, 0], [1, 1], num_classes=6).top5 == ErrorRate(1, 2)


def test_nan_is_an_error():
    split = pixels()
    split.pixels[4] = 255

    class Diverged(Inputs):
        def centre(self, images: np.ndarray, *, out: np.ndarray) -> np.ndarray:
            super().centre(images, out=out)[images.reshape(len(images), -1).min(axis=1) == 255] = np.nan
            return out

    found_ = evaluate(Net(), split, Diverged(), batch=7)  # type: ignore[arg-type]
    assert found_.predicted[4] == -1 and found_.ranks[4] == K and found_.not_finite == 1
    assert found_.confusion().sum() == 22


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    # Newcombe, "Two-sided confidence intervals for the single proportion" (1998), table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval(count, total, low, high):
    assert ErrorRate(count, total).interval == pytest.approx((low, high), abs=5e-5)
    assert ErrorRate(total - count, total).interval == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_no_image_has_no_rate():
    assert math.isnan(ErrorRate(0, 0).value) and ErrorRate(0, 0).interval == (0, 1)


def test_refusals():
    with pytest.raises(ck.OptionError, match="views must be 1 or 10, not 5"):
        found(pixels(), views=5)
    with pytest.raises(ck.OptionError, match="batch must be at least 1, not 0"):
        found(pixels(), batch=0)
