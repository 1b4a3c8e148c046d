"""What the colours of a training set are like: sums over its pixels, and what follows from them.

All sums are of integers, so they are exact, and do not depend on the order of the images.
"""

from __future__ import annotations

import io
import zipfile
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ...cpu import jit
from ..errors import DataError
from .dataset import Statistics


class Totals:
    """Sums over images, to which more can be added.

    Parameters
    ----------
    shape : (H, W, C)
        Of each image.

    Attributes
    ----------
    images : int
        How many were added.
    values : int64 array, (H, W, C)
        The sum of all images.
    products : int64 array, (C, C)
        The sum over all pixels of the products of two channels.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.images = 0
        self.values = np.zeros(shape, np.int64)
        self.products = np.zeros((shape[2], shape[2]), np.int64)

    def add(self, images: np.ndarray) -> None:
        """Add images, uint8 (n, H, W, C)."""
        self.add_values(images)
        self.add_products(images)

    def add_values(self, images: np.ndarray) -> None:
        """The half of `add` that the mean needs; the halves may run in two threads."""
        self.images += len(images)
        for some in np.array_split(images, range(4096, len(images), 4096)):
            self.values += some.sum(axis=0, dtype=np.uint32)

    def add_products(self, images: np.ndarray) -> None:
        """The half of `add` that the components need."""
        pixels = images.reshape(-1, images.shape[-1])
        if pixels.shape[1] == 3 and pixels.flags.c_contiguous and not jit.missing():
            found = np.zeros(6, np.int64)
            _products_of_three(pixels, found)
            self.products += found[[[0, 1, 2], [1, 3, 4], [2, 4, 5]]]
            return
        for some in np.array_split(pixels, range(65536, len(pixels), 65536)):
            wide = some.astype(np.float64)  # exact: the sums are below 65536 * 255^2 < 2^53
            self.products += (wide.T @ wide).astype(np.int64)

    def statistics(self) -> Statistics:
        """Mean image and principal components.

        Raises
        ------
        DataError
            If there are no images.
        """
        if not self.images:
            raise DataError("there are no statistics of no images")
        H, W, C = self.values.shape
        mean = (self.values / self.images).astype(np.float32)
        count = self.images * H * W
        sums = [int(s) for s in self.values.sum(axis=(0, 1))]
        # n * sum(xy) - sum(x) * sum(y) is a small difference of large numbers: exact in Python's integers.
        covariance = np.array(
            [
                [
                    float(Fraction(count * int(self.products[i, j]) - sums[i] * sums[j], count * count))
                    for j in range(C)
                ]
                for i in range(C)
            ]
        )
        variances, vectors = np.linalg.eigh(covariance)
        variances, vectors = variances[::-1], vectors[:, ::-1]
        largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=0)[None], axis=0)
        vectors = vectors * np.where(largest < 0, -1.0, 1.0)
        return Statistics(
            mean,
            np.sqrt(np.maximum(variances, 0)).astype(np.float32),
            np.ascontiguousarray(vectors, np.float32),
            self.images,
        )


@jit.kernel
def _products_of_three(pixels: np.ndarray, found: np.ndarray) -> None:
    """Sums of rr, rg, rb, gg, gb, bb over uint8 pixels (n, 3)."""
    uint, wide = jit.uint, np.uint32
    for start in range(0, pixels.shape[0], 32768):  # so that 32 bits hold each part: 32768 * 255^2 < 2^32
        rr = rg = rb = gg = gb = bb = wide(0)
        for p in range(start, min(start + 32768, pixels.shape[0])):
            r, g, b = wide(pixels[uint(p), 0]), wide(pixels[uint(p), 1]), wide(pixels[uint(p), 2])
            rr += wide(r * r)
            rg += wide(r * g)
            rb += wide(r * b)
            gg += wide(g * g)
            gb += wide(g * b)
            bb += wide(b * b)
        found[0] += rr
        found[1] += rg
        found[2] += rb
        found[3] += gg
        found[4] += gb
        found[5] += bb


def to_bytes(statistics: Statistics) -> bytes:
    """Statistics as the contents of an .npz file: the same bytes for the same values."""
    file = io.BytesIO()
    np.savez(
        file,
        mean=statistics.mean,
        stdevs=statistics.stdevs,
        eigenvectors=statistics.eigenvectors,
        images=np.int64(statistics.images),
    )
    return file.getvalue()


def load(path: str | Path | BinaryIO) -> Statistics:
    """Read what `to_bytes` has made.

    Raises
    ------
    DataError
        If the file is missing, or is no such file; it names the file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            found = Statistics(file["mean"], file["stdevs"], file["eigenvectors"], int(file["images"]))
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} is damaged, or holds no statistics: {getattr(error, 'strerror', None) or error}"
        ) from error
    _, _, C = found.mean.shape if found.mean.ndim == 3 else (0, 0, 0)
    if not C or found.stdevs.shape != (C,) or found.eigenvectors.shape != (C, C):
        raise DataError(
            f"{path} is damaged: mean {found.mean.shape}, stdevs {found.stdevs.shape}, "
            f"eigenvectors {found.eigenvectors.shape}; expected (H, W, C), (C,), (C, C)"
        )
    return found
