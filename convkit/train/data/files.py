"""Images that are files: what splits of them share, and their names, kept small."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np

from .dataset import Split
from .decode import decode

#: Files that are taken for images by their name; what they hold is looked at when they are read.
SUFFIXES = frozenset((
    "bmp", "dib", "gif", "jfif", "jp2", "jpe", "jpeg", "jpg", "pbm", "pgm", "png", "pnm", "ppm", "tga", "tif",
    "tiff", "webp",
))  # fmt: skip


def is_image(name: str) -> bool:
    """Whether a file's name is that of an image."""
    return name.rpartition(".")[2].lower() in SUFFIXES and not name.rpartition("/")[2].startswith(".")


class Names:
    """Many names as one text, so that a million of them take little memory and are sent to a process at once.

    Parameters
    ----------
    names : iterable of str
        As the operating system gives them.
    """

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self.text = b"".join(encoded)
        self.ends = np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        begin = int(self.ends[index - 1]) if index else 0
        return os.fsdecode(self.text[begin : int(self.ends[index])])


class Encoded(Split):
    """Images that are decoded when they are read.

    Parameters
    ----------
    labels : array of integers, (n,)
    size : int
        Height and width to which they are decoded.
    square : str
        "crop" or "stretch", as in `convkit.train.data.open_data`.
    """

    def __init__(self, labels: np.ndarray, size: int, square: str) -> None:
        self.labels = np.ascontiguousarray(labels, np.int32)
        self.shape = size, size, 3
        self.square = square

    def encoded(self, index: int) -> bytes:
        """The bytes of a file.

        Raises
        ------
        BadImage
            If they cannot be read.
        """
        raise NotImplementedError

    def read(self, index: int, out: np.ndarray) -> None:
        out[...] = decode(self.encoded(index), self.shape[0], self.square)
