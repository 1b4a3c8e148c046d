"""A store: labelled images of one size as uint8 in memory-mapped files, read without decoding anything.

A store is a folder::

    store.json              shape, classes, and every other file with its bytes and SHA-256; written last
    train-00000.npy, ...    uint8 (rows, H, W, C), about 1 GiB each
    train-labels.npy        int32
    train-names.npy         uint8: the images' names, one after the other
    train-name-ends.npy     int64: where each name ends
    validation-...          the same, if there is a validation split
    statistics.npz          mean image and principal components of the training images' colours
    left_out.txt            a line for each image that could not be read: its name, a tab, why

It can be moved and copied. Rows stand in the order of the data that they are from: training draws rows at
random, so a shuffled order would gain nothing, and a store from which nothing was left out gives training
the same bits as its source.

What is checked: sizes and headers always; each small file's SHA-256 when it is read; the shards' when the
store is opened if they have up to 256 MiB together, otherwise by `damaged` (`convkit prepare STORE --verify`)
alone, since that reads everything. A file that shrinks while it is mapped ends the process: the kernel
cannot report it in another way.
"""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import DataError
from . import left_out, statistics
from .dataset import Data, Failures, Split

#: The number of the format that is written. One that is larger is refused.
FORMAT = 1
INDEX = "store.json"
#: What `convkit prepare` has while it works.
UNFINISHED = "unfinished.npz"
#: Shards with up to so many bytes together are verified whenever a store is opened: a quarter of a second.
VERIFIED = 256 << 20
#: A shard with up to so many bytes is asked for as a whole, a larger one row by row.
_WHOLE = 64 << 20

Progress = Callable[[int, int], None]


def is_store(path: str | Path) -> bool:
    """Whether a path is a store, or the beginning of one."""
    return any((Path(path) / name).is_file() for name in (INDEX, UNFINISHED))


def open_store(path: str | Path, verify: bool | None = None) -> Data:
    """Open a store.

    Parameters
    ----------
    path : str or Path
        Its folder.
    verify : bool, optional
        Whether to compare the shards' SHA-256; None: if they have up to `VERIFIED` bytes together.

    Raises
    ------
    DataError
        If it is no store, not finished, of a newer format, or damaged; it names the file.
    """
    folder = Path(path)
    index = read_index(folder)
    for entry in files(index):
        _require_size(folder, entry)
    shards = [shard for split in _splits(index) for shard in split["shards"]]
    if verify or (verify is None and sum(shard["bytes"] for shard in shards) <= VERIFIED):
        for shard in shards:
            _require_sum(folder, shard)
    splits = {name: StoredImages(folder, index, name) for name, split in index["splits"].items() if split}
    return Data(
        name=index["name"],
        classes=tuple(index["classes"]),
        names=tuple(index["names"]),
        train=splits["train"],
        validation=splits.get("validation"),
        fingerprint=index["fingerprint"],
        statistics=statistics.load(io.BytesIO(_small(folder, index["statistics"]))),
        left_out=left_out.from_text(_small(folder, index["left_out"])),
    )


def damaged(path: str | Path, progress: Progress | None = None) -> list[str]:
    """Compare every file of a store with what was written.

    Parameters
    ----------
    path : str or Path
    progress : callable, optional
        Called with the bytes that were read, and those of all files.

    Returns
    -------
    damages : list of str
        A line for each file that is not as it was written.

    Raises
    ------
    DataError
        If it is no store, or its store.json is damaged.
    """
    folder = Path(path)
    entries = files(read_index(folder))
    total, done = sum(entry["bytes"] for entry in entries), 0
    found = []

    def check(entry: dict[str, Any]) -> str | None:
        try:
            _require_size(folder, entry)
            _require_sum(folder, entry)
        except DataError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # SHA-256 runs without the GIL
        for entry, damage in zip(entries, pool.map(check, entries)):
            found += [damage] if damage else []
            done += entry["bytes"]
            if progress:
                progress(done, total)
    return found


# ---------------------------------------------------------------------------------------------------
# store.json
# ---------------------------------------------------------------------------------------------------
def read_index(folder: Path) -> dict[str, Any]:
    """What store.json says; the errors are those of `open_store`."""
    path = folder / INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if (folder / UNFINISHED).is_file():
            raise DataError(
                f"the store {folder} is not finished: the `convkit prepare` that was interrupted, once more, "
                "goes on with it"
            ) from None
        raise DataError(f"{folder} is not a store: it has no {INDEX}") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path} is damaged: it is not JSON ({error})") from error
    number = index.get("format") if isinstance(index, dict) else None
    if not isinstance(number, int) or number < 1:
        raise DataError(f"{path} is not that of a store: it has no number of a format")
    if number > FORMAT:
        raise DataError(
            f"{path} is of format {number}, and this convkit reads up to {FORMAT}: a newer one reads it"
        )
    if index.get("fingerprint") != fingerprint(index):
        raise DataError(f"{path} is damaged: its contents do not have the fingerprint that it names")
    return index


def fingerprint(index: dict[str, Any]) -> str:
    """SHA-256 of what a store holds, with its files' sums; its name and its maker do not count."""
    counted = {key: value for key, value in index.items() if key not in ("fingerprint", "name", "made_by")}
    return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()


def difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """How what a store was made of differs from what is asked for, in words; empty if it does not."""
    changed = [key for key in now if before.get(key) != now[key]]
    shape, square = (f"{before.get(key)} against {now.get(key)}" for key in ("shape", "square"))
    # Another size changes the fingerprint and the rows of a shard too.
    parts = [f"shape {shape}"] if "shape" in changed else []
    parts += [f"square {square}"] if "square" in changed else []
    return ", ".join(parts) or ("other images" if changed else "")


def files(index: dict[str, Any]) -> list[dict[str, Any]]:
    """Every file of a store but store.json: `file`, `bytes`, `sha256`."""
    found = [index["statistics"], index["left_out"]]
    for split in _splits(index):
        found += [split["labels"], split["image_names"], split["image_name_ends"], *split["shards"]]
    return found


def _splits(index: dict[str, Any]) -> Iterable[dict[str, Any]]:
    return (split for split in index["splits"].values() if split)


# ---------------------------------------------------------------------------------------------------
# Checks
# ---------------------------------------------------------------------------------------------------
def _require_size(folder: Path, entry: dict[str, Any]) -> None:
    path = folder / entry["file"]
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise DataError(f"{path} is missing: the store is damaged") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    if size != entry["bytes"]:
        raise DataError(f"{path} has {size:,} bytes, but {entry['bytes']:,} were written: it is damaged")


def _require_sum(folder: Path, entry: dict[str, Any]) -> None:
    path = folder / entry["file"]
    try:
        with open(path, "rb") as file:
            found = sha256(file)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    if found != entry["sha256"]:
        raise DataError(f"{path} is damaged: its SHA-256 is not that of what was written")


def sha256(file: BinaryIO) -> str:
    """SHA-256 of the rest of a file, as hexadecimal digits."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(1 << 20))
    while size := file.readinto(buffer):  # type: ignore[attr-defined]
        digest.update(buffer[:size])
    return digest.hexdigest()


def _small(folder: Path, entry: dict[str, Any]) -> bytes:
    """A small file's contents, verified."""
    path = folder / entry["file"]
    try:
        contents = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    if hashlib.sha256(contents).hexdigest() != entry["sha256"]:
        raise DataError(f"{path} is damaged: its SHA-256 is not that of what was written")
    return contents


def _array(folder: Path, entry: dict[str, Any]) -> np.ndarray:
    return np.load(io.BytesIO(_small(folder, entry)), allow_pickle=False)


# ---------------------------------------------------------------------------------------------------
# Images
# ---------------------------------------------------------------------------------------------------
class StoredImages(Split):
    """A split of a store. Its files are mapped when they are first read.

    Parameters
    ----------
    folder : Path
    index : dict
        What store.json says.
    split : str
        "train" or "validation".
    """

    in_memory = True

    def __init__(self, folder: Path, index: dict[str, Any], split: str) -> None:
        entry = index["splits"][split]
        self.folder = folder.absolute()  # the working directory may change before they are mapped
        self.shards = entry["shards"]
        self.shape = tuple(index["shape"])
        self.labels = _array(folder, entry["labels"])
        self._name_files = entry["image_names"], entry["image_name_ends"]
        counts = [shard["count"] for shard in self.shards]
        self._stops = np.cumsum(counts, dtype=np.int64)
        self._starts = self._stops - counts
        self._forget()

    def _forget(self) -> None:
        self._maps: dict[int, tuple[np.ndarray, _Advice | None]] = {}
        self._names: tuple[np.ndarray, np.ndarray] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_maps", "_names")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def name(self, index: int) -> str:
        if self._names is None:
            text, ends = (_array(self.folder, entry) for entry in self._name_files)
            self._names = text, ends
        text, ends = self._names
        start = ends[index - 1] if index else 0
        return text[start : ends[index]].tobytes().decode("utf-8", "surrogateescape")

    def read(self, index: int, out: np.ndarray) -> None:
        self.read_many(np.array([index]), out[None])

    def read_many(self, indices: np.ndarray, out: np.ndarray) -> Failures:
        indices = np.asarray(indices)
        if not indices.size:
            return []
        low, high = indices.min(), indices.max()
        if low < 0 or high >= len(self):
            raise IndexError(f"images 0 to {len(self) - 1} are in the store, not {low if low < 0 else high}")
        shards = np.searchsorted(self._stops, indices, side="right")
        rows = indices - self._starts[shards]
        maps = {shard: self._map(shard) for shard in np.unique(shards).tolist()}
        # Without advice the kernel reads a mapped file by single pages: 20 times slower from an SSD.
        places = list(zip(shards.tolist(), rows.tolist()))
        for shard, row in places:
            advise = maps[shard][1]
            if advise is not None:
                advise(row)
        if len(maps) == 1:
            np.take(maps[places[0][0]][0], rows, axis=0, out=out, mode="clip")
        else:
            for position, (shard, row) in enumerate(places):
                out[position] = maps[shard][0][row]
        return []

    def _map(self, number: int) -> tuple[np.ndarray, _Advice | None]:
        """A shard's rows, and how to ask for one before it is read."""
        if number not in self._maps:  # two threads may both map it: then one map is dropped
            self._maps[number] = _mapped(self.folder, self.shards[number], self.shape)
        return self._maps[number]


class _Advice:
    """Asks the kernel to read a row of a mapped file."""

    def __init__(self, mapped: mmap.mmap, offset: int, row_bytes: int) -> None:
        self.mapped, self.offset, self.row_bytes = mapped, offset, row_bytes

    def __call__(self, row: int) -> None:
        start = self.offset + row * self.row_bytes
        first = start - start % mmap.PAGESIZE
        self.mapped.madvise(mmap.MADV_WILLNEED, first, start + self.row_bytes - first)


def _mapped(
    folder: Path, shard: dict[str, Any], shape: tuple[int, int, int]
) -> tuple[np.ndarray, _Advice | None]:
    path = folder / shard["file"]
    _require_size(folder, shard)
    try:
        with open(path, "rb") as file:
            found = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0
            header = read(file) if found == (1, 0) else None
            offset = file.tell()
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}") from error
    expected = (shard["count"], *shape)
    if header != (expected, False, np.dtype(np.uint8)):
        raise DataError(f"{path} is damaged: its header does not say uint8 {expected}")
    images = np.frombuffer(mapped, np.uint8, offset=offset).reshape(expected)
    if not hasattr(mmap, "MADV_WILLNEED"):
        return images, None
    if shard["bytes"] <= _WHOLE:
        mapped.madvise(mmap.MADV_WILLNEED)
        return images, None
    return images, _Advice(mapped, offset, int(np.prod(shape)))
