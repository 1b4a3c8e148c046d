"""Labelled images, wherever they come from: `Data` with its splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..errors import BadImage, DataError

#: What a split could not read: (position in the request, reason).
Failures = list[tuple[int, str]]


class Split:
    """Labelled images that are read by number, all of one size.

    It can be pickled, so that other processes read from it. Several threads may read at once.

    Attributes
    ----------
    shape : (H, W, C)
        Of each image; C is 3 (RGB) or 1 (grey).
    labels : array of int32, (n,)
        Number of each image's class.
    in_memory : bool
        Whether reading is copying from memory or a memory-mapped file, so that workers are of no use.
    """

    shape: tuple[int, int, int]
    labels: np.ndarray
    in_memory: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """The image's name for people: its file, or its number."""
        return f"image {index}"

    def read(self, index: int, out: np.ndarray) -> None:
        """Read one image.

        Parameters
        ----------
        index : int
        out : uint8 array, (H, W, C)

        Raises
        ------
        BadImage
            Where there is none.
        """
        raise NotImplementedError

    def read_many(self, indices: np.ndarray, out: np.ndarray) -> Failures:
        """Read several images.

        Parameters
        ----------
        indices : array of integers, (m,)
        out : uint8 array, (m, H, W, C)

        Returns
        -------
        failures : list of (int, str)
            Positions in `indices` that could not be read, with the reason; what is in `out` there is zero.
        """
        failures: Failures = []
        for position, index in enumerate(indices):
            try:
                self.read(int(index), out[position])
            except BadImage as error:
                out[position] = 0
                failures.append((position, str(error)))
        return failures


def none_readable(split: Split, what: str, index: int, reason: str) -> DataError:
    """The error where no image can be read; `index` and `reason` are those of the first."""
    return DataError(f"none of {what} can be read; the first: {split.name(index)}: {reason}")


class Pixels(Split):
    """Images that are in memory as uint8.

    Parameters
    ----------
    pixels : uint8 array, (n, H, W, C)
    labels : array of integers, (n,)
    """

    in_memory = True

    def __init__(self, pixels: np.ndarray, labels: np.ndarray) -> None:
        self.pixels, self.labels = pixels, np.ascontiguousarray(labels, np.int32)
        H, W, C = pixels.shape[1:]
        self.shape = H, W, C

    def read(self, index: int, out: np.ndarray) -> None:
        out[...] = self.pixels[index]

    def read_many(self, indices: np.ndarray, out: np.ndarray) -> Failures:
        np.take(self.pixels, indices, axis=0, out=out, mode="clip")
        return []


@dataclass(frozen=True)
class Statistics:
    """What the colours of a training set are like.

    Attributes
    ----------
    mean : float32 array, (H, W, C)
        The mean image.
    stdevs : float32 array, (C,)
        Standard deviations along the principal components of the pixels' colours, largest first.
    eigenvectors : float32 array, (C, C)
        The components, as columns; each has its largest coefficient (by magnitude) positive.
    images : int
        From how many images they were taken.
    """

    mean: np.ndarray
    stdevs: np.ndarray
    eigenvectors: np.ndarray
    images: int


@dataclass(frozen=True)
class Data:
    """A set of labelled images.

    Attributes
    ----------
    name : str
        For people: "digits", a folder's name, ...
    classes : tuple of str
        Key of each class, by its number: a synset ("n01440764"), a folder's name, "0", ...
    names : tuple of str
        The classes' names for people; the keys themselves where there are none.
    train : Split
    validation : Split or None
    statistics : Statistics or None
        Of `train`, where they are known (a store has them).
    fingerprint : str
        Hash of what the images and labels are, as far as it is known without reading every image. A run that
        goes on with other data is refused.
    left_out : tuple of (str, str)
        Files that were left out when the set was opened, with the reason.
    """

    name: str
    classes: tuple[str, ...]
    names: tuple[str, ...]
    train: Split
    validation: Split | None
    fingerprint: str
    statistics: Statistics | None = None
    left_out: Sequence[tuple[str, str]] = field(default_factory=tuple)
