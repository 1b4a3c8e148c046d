"""Splits that processes import: images that are broken in each way that a loader knows."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np

from convkit.train.data.dataset import Failures, Split
from convkit.train.errors import BadImage, DataError


class Plain(Split):
    """Images whose pixels follow from their number; some cannot be read.

    Parameters
    ----------
    count : int
    bad : collection of int
    """

    def __init__(self, count: int, bad: tuple[int, ...] = ()) -> None:
        self.shape = 5, 4, 3
        self.labels = np.arange(count, dtype=np.int32) % 10
        self.bad = frozenset(bad)

    def pixels(self, index: int) -> np.ndarray:
        return np.random.default_rng(index).integers(0, 256, self.shape, np.uint8)

    def name(self, index: int) -> str:
        return f"{index}.jpg"

    def read(self, index: int, out: np.ndarray) -> None:
        if index in self.bad:
            raise BadImage(f"broken {index}")
        out[...] = self.pixels(index)


class InMemory(Plain):
    """The same, read as if from memory."""

    in_memory = True

    def read_many(self, indices: np.ndarray, out: np.ndarray) -> Failures:
        return super().read_many(indices, out)


class Fatal(Plain):
    """Image 3 ends the process that reads it, image 6 does so the first time; image 8 is read for ever."""

    def __init__(self, count: int, folder: Path, endless: bool = False) -> None:
        super().__init__(count)
        self.once, self.endless = folder / "once", endless

    def read(self, index: int, out: np.ndarray) -> None:
        if self.endless:
            while index == 8:
                pass
        elif index == 3:
            os.kill(os.getpid(), signal.SIGSEGV)
        elif index == 6 and not self.once.exists():
            self.once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        super().read(index, out)


class Stuck(Plain):
    """Image 3 is waited for without an end."""

    def read(self, index: int, out: np.ndarray) -> None:
        while index == 3:
            time.sleep(60)
        super().read(index, out)


class Wrong(Plain):
    """Images that raise what is no `BadImage`."""

    def read(self, index: int, out: np.ndarray) -> None:
        if index == 1:
            raise DataError("the tar is damaged")
        if index == 2:
            raise ZeroDivisionError("of its own")
        super().read(index, out)


class Unwelcome(Plain):
    """A split that cannot be unpickled."""

    def __setstate__(self, state: dict) -> None:
        raise LookupError("no such place")
