"""Statistics of a training set: exact sums, the components' convention, and files."""

from __future__ import annotations

import numpy as np
import pytest

from convkit.cpu import jit
from convkit.train.data import statistics as stored
from convkit.train.data.dataset import Pixels, Split
from convkit.train.data.statistics import Totals
from convkit.train.errors import BadImage, DataError
from convkit.train.preparation import statistics

RNG = np.random.default_rng(0)


def images(count: int, size: int = 6, channels: int = 3) -> np.ndarray:
    """Images whose channels go together, as those of photographs do."""
    common = RNG.integers(0, 200, (count, size, size, 1))
    return (common + RNG.integers(0, 56, (count, size, size, channels))).astype(np.uint8)


def expected(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean image and covariance, as NumPy has them."""
    flat = pixels.reshape(-1, pixels.shape[-1]).astype(np.float64)
    return pixels.mean(axis=0, dtype=np.float64), np.atleast_2d(np.cov(flat.T, bias=True))


@pytest.mark.parametrize("channels", (1, 3))
def test_statistics_are_numpys(channels):
    pixels = images(50, channels=channels)
    found = statistics(Pixels(pixels, np.zeros(50)))
    mean, covariance = expected(pixels)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-6)
    again = found.eigenvectors * found.stdevs.astype(np.float64) ** 2 @ found.eigenvectors.T
    np.testing.assert_allclose(again, covariance, rtol=1e-5)
    assert found.images == 50
    assert found.mean.dtype == found.stdevs.dtype == found.eigenvectors.dtype == np.float32


def test_components_are_in_order_and_have_their_largest_coefficient_positive():
    found = statistics(Pixels(images(50), np.zeros(50)))
    assert list(found.stdevs) == sorted(found.stdevs, reverse=True)
    for column in found.eigenvectors.T:
        assert column[np.abs(column).argmax()] > 0


def test_one_grey_channel_has_the_component_one():
    pixels = images(20, channels=1)
    found = statistics(Pixels(pixels, np.zeros(20)))
    assert found.eigenvectors.tolist() == [[1.0]]
    assert found.stdevs[0] == np.float32(pixels.std())


def test_white_images_overflow_nothing():
    white = np.full((40, 64, 64, 3), 255, np.uint8)  # 163,840 pixels: more than 32 bits of products
    found = statistics(Pixels(white, np.zeros(40)))
    assert (found.mean == 255).all()
    assert not found.stdevs.any()


@pytest.mark.parametrize("compiled", (True, False))
def test_sums_are_exact_in_any_order(monkeypatch, compiled):
    if not compiled:
        monkeypatch.setattr(jit, "missing", lambda: "left out")
    elif missing := jit.missing():
        pytest.skip(missing)
    pixels = images(300, 16)
    totals = Totals((16, 16, 3))
    for some in (pixels[200:], pixels[:7], pixels[7:200]):
        totals.add(some)
    wide = pixels.astype(np.int64)
    flat = wide.reshape(-1, 3)
    assert (totals.values == wide.sum(axis=0)).all()
    assert (totals.products == flat.T @ flat).all()
    assert totals.images == 300


class Broken(Split):
    """Images of which every third cannot be read."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels, self.shape = pixels, pixels.shape[1:]
        self.labels = np.zeros(len(pixels), np.int32)
        self.asked: list[int] = []

    def read(self, index: int, out: np.ndarray) -> None:
        self.asked.append(index)
        if index % 3 == 0:
            raise BadImage("it is a song")
        out[...] = self.pixels[index]


def test_images_that_cannot_be_read_do_not_count():
    pixels = images(30)
    found = statistics(Broken(pixels), workers=0)
    kept = pixels[np.arange(30) % 3 != 0]
    np.testing.assert_allclose(found.mean, kept.mean(axis=0), rtol=1e-6)
    assert found.images == 20


def test_most_takes_images_evenly():
    split = Broken(images(90))
    assert statistics(split, workers=0, most=9).images == 6
    assert sorted(split.asked) == [0, 10, 20, 30, 40, 50, 60, 70, 80]


def test_nothing_to_read_is_an_error():
    with pytest.raises(DataError, match=r"none of .* images can be read; the first: image 0: it is a song"):
        statistics(Broken(images(1)), workers=0)
    with pytest.raises(DataError, match="none of 1 images can be read; the first: image 0: it is a song"):
        statistics(Broken(images(6)), workers=0, most=1)


def test_statistics_are_written_and_read(tmp_path):
    found = statistics(Pixels(images(9), np.zeros(9)))
    path = tmp_path / "statistics.npz"
    path.write_bytes(stored.to_bytes(found))
    again = stored.load(path)
    for name in ("mean", "stdevs", "eigenvectors"):
        assert getattr(again, name).tobytes() == getattr(found, name).tobytes()
    assert again.images == 9


@pytest.mark.parametrize("contents", (b"", b"PK\x03\x04 no more", b"mean"))
def test_a_file_without_statistics_is_named(tmp_path, contents):
    path = tmp_path / "statistics.npz"
    with pytest.raises(DataError, match="holds no statistics: No such file"):
        stored.load(path)
    path.write_bytes(contents)
    with pytest.raises(DataError, match="statistics.npz is damaged, or holds no statistics"):
        stored.load(path)
    np.savez(path, mean=np.zeros((2, 2, 3)), stdevs=np.zeros(2), eigenvectors=np.zeros((3, 3)), images=1)
    with pytest.raises(DataError, match="expected"):
        stored.load(path)
