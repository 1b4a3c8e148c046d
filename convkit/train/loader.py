"""Batches of images, read before they are needed.

What is in memory, or mapped, is copied by a thread; files are decoded by processes. A loader has no state
and draws nothing: the caller says which images to read, and what it yields does not depend on how many read.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

from ..errors import OptionError
from .data.dataset import Split
from .errors import DataError
from .processes import Batch, Processes
from .reading import nothing, read_row


@dataclass
class Read:
    """Images that were asked for.

    Attributes
    ----------
    images : uint8 array, (m, H, W, C)
        Valid until the next one is asked for. Zero where nothing could be read.
    indices : int64 array, (m,)
        Number of the image in each row: the one that was asked for, or its substitute.
    labels : int32 array, (m,)
        Of these; -1 where nothing could be read.
    failures : list of (int, str)
        Number of each image that could not be read, with the reason.
    waited : float
        Seconds that the caller waited for it.
    """

    images: np.ndarray
    indices: np.ndarray
    labels: np.ndarray
    failures: list[tuple[int, str]]
    waited: float


class Loader:
    """Reads images ahead; a context manager.

    Parameters
    ----------
    split : Split
    workers : int, optional
        Processes that read; as many as there are CPUs for this one by default. 0: a thread of this process
        reads, as it does where the split is in memory, whatever is asked for.
    ahead : int
        Batches that are read while another one is in use.
    substitute : bool
        Whether an image that cannot be read is replaced by the next one that can be, (index + 1) % n and so
        on.

    Attributes
    ----------
    workers : int
        Processes that read; 0 if a thread does.

    Raises
    ------
    OptionError
        If `workers` or `ahead` is negative.
    DataError
        If there is no image, or no process can be started.

    Notes
    -----
    A process that a file ends (by a fault in a decoder) is replaced, and the file tried once more; the second
    time it counts as one that cannot be read. So does one that takes more than a minute of CPU time. A file
    system that does not answer is waited for, with a warning.
    """

    def __init__(
        self, split: Split, *, workers: int | None = None, ahead: int = 2, substitute: bool = False
    ) -> None:
        if workers is not None and workers < 0:
            raise OptionError(f"workers must be at least 0, not {workers}")
        if ahead < 0:
            raise OptionError(f"ahead must be at least 0, not {ahead}")
        if not len(split):
            raise DataError("there are no images to read")
        self.split, self.ahead, self._substitute = split, ahead, substitute
        self.workers = 0 if split.in_memory else cpus() if workers is None else workers
        self._engine: Processes | _Thread | None = (
            Processes(split, self.workers, substitute) if self.workers else _Thread(split, substitute)
        )
        self._turn = 0

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End what reads. What was read stays valid."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None
            self._turn += 1

    def read(self, requests: Iterable[np.ndarray]) -> Iterator[Read]:
        """Read batches, in order. Reading begins at once, and ends what was read before.

        Parameters
        ----------
        requests : iterable of arrays of integers, (m,)
            Numbers of images; m may differ. As many are taken as are read ahead.

        Yields
        ------
        Read

        Raises
        ------
        DataError
            For a number that no image has, and where nothing can be read: with `substitute` no image, or none
            of a thousand in a row; without, if all images were asked for and none could be read.
        """
        engine = self._open()
        engine.stop()
        self._turn += 1
        waiting: deque[Any] = deque()
        asked = iter(requests)
        self._ask(engine, asked, waiting)
        return self._reads(engine, asked, waiting, self._turn)

    def _open(self) -> Processes | _Thread:
        if self._engine is None:
            raise DataError("the loader is closed")
        return self._engine

    def _ask(self, engine: Any, asked: Iterator[np.ndarray], waiting: deque[Any]) -> None:
        while len(waiting) <= self.ahead:
            indices = next(asked, None)
            if indices is None:
                return
            indices = np.array(indices, np.int64)
            if indices.ndim != 1:
                raise DataError(f"a request is a row of numbers of images, not an array of {indices.shape}")
            wrong = indices[(indices < 0) | (indices >= len(self.split))]
            if len(wrong):
                raise DataError(f"image {wrong[0]} was asked for; there are 0 to {len(self.split) - 1}")
            waiting.append(engine.submit(indices))

    def _reads(
        self, engine: Any, asked: Iterator[np.ndarray], waiting: deque[Any], turn: int
    ) -> Iterator[Read]:
        rows, good, first = 0, 0, None
        try:
            while waiting:
                if self._turn != turn:
                    raise DataError("the loader is closed, or reads something else by now")
                start = time.perf_counter()
                self._ask(engine, asked, waiting)
                batch = waiting[0]
                engine.wait(batch)
                waiting.popleft()
                read = self._read(batch)
                rows += len(batch.indices)
                good += int((batch.found >= 0).sum())
                first = first or (read.failures[0] if read.failures else None)
                read.waited = time.perf_counter() - start
                yield read
                engine.free(batch)
        finally:
            if waiting and self._turn == turn:
                engine.stop()
        if first and not good and rows >= len(self.split):
            raise nothing(self.split, *first)

    def _read(self, batch: Batch) -> Read:
        missing = batch.found < 0
        indices = np.where(missing, batch.indices, batch.found)
        labels = np.where(missing, np.int32(-1), self.split.labels[indices])
        failures = {index: reason for _, index, reason in batch.failures()}
        return Read(batch.images, indices, labels, list(failures.items()), 0.0)


class _Thread:
    """What reads without processes: a thread, which fills arrays that are used again and again."""

    def __init__(self, split: Split, substitute: bool) -> None:
        self._split, self._substitute = split, substitute
        self._pool = ThreadPoolExecutor(1, "convkit-loader")
        self._free: list[np.ndarray] = []
        self._jobs: dict[int, tuple[Batch, Future[None]]] = {}
        self._stopped = False

    def submit(self, indices: np.ndarray) -> Batch:
        shape = len(indices), *self._split.shape
        size = int(np.prod(shape))
        block = min((b for b in self._free if b.size >= size), key=len, default=None)
        if block is None:
            block = np.empty(size, np.uint8)
        else:
            self._free = [other for other in self._free if other is not block]
        batch = Batch(indices, block[:size].reshape(shape), indices.copy(), block)
        self._jobs[id(batch)] = batch, self._pool.submit(self._fill, batch)
        return batch

    def wait(self, batch: Batch) -> None:
        self._jobs[id(batch)][1].result()
        del self._jobs[id(batch)]

    def free(self, batch: Batch) -> None:
        self._free.append(batch.block)

    def stop(self) -> None:
        self._stopped = True
        for batch, job in self._jobs.values():
            if not job.cancel():
                job.exception()  # it ends at the next row
            self._free.append(batch.block)
        self._jobs = {}
        self._stopped = False

    def close(self) -> None:
        self.stop()
        self._pool.shutdown()

    def _fill(self, batch: Batch) -> None:
        split, images = self._split, batch.images
        if split.in_memory:
            failures = split.read_many(batch.indices, images)
            rows = {row: {int(batch.indices[row]): reason} for row, reason in failures}
        else:
            rows = {row: {} for row in range(len(images))}
        for row, refused in rows.items():
            if self._stopped:
                return
            batch.found[row], failed = read_row(
                split, int(batch.indices[row]), images[row], self._substitute, refused
            )
            batch.failed[row] = [(row, index, reason) for index, reason in failed]


def cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
