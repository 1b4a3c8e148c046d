"""What is done once with a data set, before training: its statistics are taken, a store is made of it."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..options import integer
from .data import open_data
from .data.dataset import Data, Split, Statistics, none_readable
from .data.statistics import Totals
from .data.store import INDEX, difference, is_store, open_store, read_index
from .data.store_writer import Writer
from .errors import DataError
from .loader import Loader

#: Bytes of a shard, and of a block of images that is read at a time.
SHARD = 1 << 30
_BLOCK = 16 << 20

#: Called with the images that are done, those of all splits, and what is being read.
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Prepared:
    """What `prepare` has done.

    Attributes
    ----------
    data : Data
        The store, opened.
    bytes, shards : int
        Of the images.
    empty : tuple of str
        Classes of which no training image is left.
    images, seconds : int, float
        Images that were read now, and how long that took; the images of shards that were complete before are
        not among them. 0 images: the store was complete already.
    """

    data: Data
    bytes: int
    shards: int
    empty: tuple[str, ...]
    images: int
    seconds: float


def statistics(
    split: Split, *, workers: int | None = None, most: int | None = None, progress: Progress | None = None
) -> Statistics:
    """Mean image and principal components of the colours of a split.

    They are the same, to the bit, whatever the number of workers.

    Parameters
    ----------
    split : Split
    workers : int, optional
        As in `Loader`.
    most : int, optional
        Read at most so many images, evenly spaced; None: all.
    progress : callable, optional

    Raises
    ------
    DataError
        If no image can be read.
    """
    count = len(split) if most is None else min(most, len(split))
    chosen = np.arange(count) * len(split) // max(count, 1)
    totals, done = Totals(split.shape), 0
    first: tuple[int, str] | None = None
    with Loader(split, workers=workers) as loader:
        for read in loader.read(_blocks(chosen, split.shape)):
            totals.add(_good(read))
            done += len(read.labels)
            if read.failures:
                first = first or read.failures[0]
            if progress:
                progress(done, count, "statistics")
    if first and not totals.images:
        raise none_readable(split, f"{count} images", *first)
    return totals.statistics()


def prepare(
    source: str | Path | Data,
    store: str | Path,
    *,
    size: int = 256,
    square: str = "crop",
    workers: int | None = None,
    anew: bool = False,
    progress: Progress | None = None,
) -> Prepared:
    """Make a store of labelled images. Images that cannot be read are left out.

    Stopped at any moment, even by kill -9, the same call goes on with the shards that are complete. The
    store has the same bits whatever the number of workers, and however often it was stopped.

    Parameters
    ----------
    source : str, Path or Data
        As in `open_data`, or what it has opened.
    store : str or Path
        A folder. It must be new, empty, or a store of the same images and options.
    size, square
        As in `open_data`.
    workers : int, optional
        As in `Loader`.
    anew : bool
        Start over where there is a store already, even of other images.
    progress : callable, optional

    Raises
    ------
    DataError
        If DATA cannot be used, if none of its images can be read, if STORE is something else, or if the
        disk has not enough room.
    """
    if workers is not None:
        workers = integer("workers", workers, 0)
    folder = Path(store)
    if not isinstance(source, Data):
        _require_apart(source, folder)
    data = source if isinstance(source, Data) else open_data(source, size, square)
    if not len(data.train):
        raise DataError(f"{data.name} has no training images")
    if data.validation is not None and not len(data.validation):
        data = dataclasses.replace(data, validation=None)
    H, W, C = data.train.shape
    rows = max(1, SHARD // (H * W * C))
    made_of = {
        "fingerprint": data.fingerprint,
        "shape": [H, W, C],
        "square": square,
        "images": [len(split) for _, split in _splits(data)],
        "rows": rows,
    }
    start = time.perf_counter()
    if (folder / INDEX).exists() and not anew:
        return _complete(folder, made_of)
    with Writer(folder, made_of, (H, W, C), anew) as writer:
        read = _fill(writer, data, rows, workers, progress)
        writer.finish(data)
    return _prepared(folder, read, time.perf_counter() - start)


def _fill(writer: Writer, data: Data, rows: int, workers: int | None, progress: Progress | None) -> int:
    """Write every shard that is not complete; returns the number of images that were read."""
    shape = data.train.shape
    splits = _splits(data)
    total = sum(len(split) for _, split in splits)
    begins = {name: min(writer.complete(name) * rows, len(split)) for name, split in splits}
    before = done = sum(begins.values())
    _require_space(writer.folder, total - before, shape)
    if progress:
        progress(done, total, splits[0][0])
    for name, split in splits:
        ranges = [np.arange(b, min(b + rows, len(split))) for b in range(begins[name], len(split), rows)]
        if ranges:
            with Loader(split, workers=workers) as loader:
                # One row of requests for all shards, so that the next one is read while this one is written.
                reads = loader.read(block for indices in ranges for block in _blocks(indices, shape))
                for indices in ranges:
                    with writer.shard(name, len(indices)) as shard:
                        for _ in _blocks(indices, shape):
                            read = next(reads)
                            shard.add(_good(read), read.failures)
                            done += len(read.labels)
                            if progress:
                                progress(done, total, name)
        if not len(writer.kept(name, len(split))):
            index, reason = writer.splits[name][0]["failures"][0]
            writer.discard()
            kind = "training" if name == "train" else "validation"
            raise none_readable(split, f"the {len(split)} {kind} images of {data.name}", index, reason)
    return total - before


def _complete(folder: Path, made_of: dict[str, Any]) -> Prepared:
    """A store that is there already, if it is of the same images."""
    before = read_index(folder)["source"]
    if line := difference(before, made_of):
        raise DataError(f"{folder} is a store already, but of other data: {line}; --anew replaces it")
    return _prepared(folder, 0, 0.0)


def _prepared(folder: Path, images: int, seconds: float) -> Prepared:
    data = open_store(folder, verify=False)
    shards = [shard for _, split in _splits(data) for shard in split.shards]  # type: ignore[attr-defined]
    has = np.bincount(data.train.labels, minlength=len(data.classes))
    empty = tuple(data.classes[label] for label in np.flatnonzero(has == 0))
    return Prepared(data, sum(shard["bytes"] for shard in shards), len(shards), empty, images, seconds)


# ---------------------------------------------------------------------------------------------------
# Parts
# ---------------------------------------------------------------------------------------------------
def _splits(data: Data) -> list[tuple[str, Split]]:
    both = (("train", data.train), ("validation", data.validation))
    return [(name, split) for name, split in both if split is not None]


def _blocks(indices: np.ndarray, shape: tuple[int, int, int]) -> Iterator[np.ndarray]:
    block = max(1, min(1024, _BLOCK // int(np.prod(shape))))
    for start in range(0, len(indices), block):
        yield indices[start : start + block]


def _good(read: Any) -> np.ndarray:
    """The images of a `Read` that could be read."""
    images: np.ndarray = read.images
    return images[read.labels >= 0] if read.failures else images


def _require_apart(source: str | Path, folder: Path) -> None:
    path = Path(source)
    if not path.is_dir():
        return
    if is_store(path):
        raise DataError(f"{path} is a store already; a copy of its folder is one too")
    inner, outer = folder.resolve(), path.resolve()
    if inner == outer or outer in inner.parents:
        raise DataError(f"{folder} is inside of {path}: the store would become part of the data")


def _require_space(folder: Path, images: int, shape: tuple[int, int, int]) -> None:
    """Refuse before the work if the disk cannot hold the images."""
    needed = images * (int(np.prod(shape)) + 64) + (4 << 20)  # 64: label, name
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{images:,} images of {' x '.join(map(str, shape))} bytes need {needed / 1e9:.1f} GB, but "
            f"the disk of {folder} has {free / 1e9:.1f} GB left"
        )
