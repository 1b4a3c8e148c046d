"""Making a store, so that it can be stopped at any moment and resumed.

A shard has the images of a fixed range of its split, less those that cannot be read, so what is in it depends
on nothing but the data. It is written under another name, then to the disk, then renamed; after each shard
`unfinished.npz` is replaced, which says what is complete. `store.json` comes last.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from ...version import __version__
from .. import disk
from ..errors import DataError
from . import left_out, statistics
from .dataset import Data, Split
from .statistics import Totals
from .store import FORMAT, INDEX, UNFINISHED, difference, fingerprint, sha256

_PARTIAL = ".partial"
#: The files that a store may have: what is removed where a store is made anew.
_OURS = re.compile(
    r"((train|validation)-(\d{5,}|labels|names|name-ends)\.npy"
    rf"|statistics\.npz|left_out\.txt|{re.escape(INDEX)}|{re.escape(UNFINISHED)})({re.escape(_PARTIAL)})?"
)


class Writer:
    """A folder that becomes a store; a context manager, which ends with `finish` or leaves it unfinished.

    Parameters
    ----------
    folder : Path
        Made where it is missing. It must be empty, or hold what an earlier writer has left.
    source : dict
        What the rows depend on, as JSON has it: only a store of the same source is resumed.
    shape : (H, W, C)
    anew : bool
        Remove what earlier writers have left, and start over.

    Raises
    ------
    DataError
        If the folder cannot be used, or another process writes to it.
    """

    def __init__(
        self, folder: Path, source: dict[str, Any], shape: tuple[int, int, int], anew: bool = False
    ) -> None:
        self.folder, self.source, self.shape = folder, source, shape
        self.totals = Totals(shape)
        self.splits: dict[str, list[dict[str, Any]]] = {}
        self._partial: tuple[Path, BinaryIO] | None = None
        self._began = False
        self._made = _make(folder)
        self._lock = _lock(folder)
        self._threads = ThreadPoolExecutor(4)
        try:
            self._start(anew)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown()
        if self._partial is not None:
            path, file = self._partial
            with contextlib.suppress(OSError):  # such as a buffer for which the disk has no room
                file.close()
            with contextlib.suppress(OSError):
                path.unlink()
        if error is not None and self._began and not any(self.splits.values()):
            with contextlib.suppress(DataError):
                self.discard()
        os.close(self._lock)

    # -----------------------------------------------------------------------------------------------
    # What is there already
    # -----------------------------------------------------------------------------------------------
    def _start(self, anew: bool) -> None:
        first = UNFINISHED + _PARTIAL  # all that there is where the first note was not finished
        if anew:
            self._clear()
        elif (self.folder / UNFINISHED).exists():
            self._continue()
        elif any(path.name != first for path in self.folder.iterdir()):
            raise DataError(f"{self.folder} is neither empty nor a store: nothing is written to it")
        with self._writing():
            for path in self.folder.iterdir():
                if path.name.endswith(_PARTIAL) and _OURS.fullmatch(path.name):
                    path.unlink()
        self._began = True
        self._note()

    def _clear(self) -> None:
        """Remove the store's files, the index first, so that what is left is not taken for a store."""
        with self._writing():
            names = [path.name for path in self.folder.iterdir()]
            foreign = [name for name in names if not _OURS.fullmatch(name)]
            if foreign:
                raise DataError(
                    f"{self.folder} holds {foreign[0]}, which is no part of a store: nothing is removed"
                )
            for name in sorted(names, key=lambda name: name != INDEX):
                (self.folder / name).unlink()

    def _continue(self) -> None:
        path = self.folder / UNFINISHED
        try:
            with np.load(path, allow_pickle=False) as file:
                state = json.loads(file["state"].tobytes())
                values, products = file["values"], file["products"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"cannot read {path} ({error}); --anew starts over") from error
        if state["source"] != self.source:
            if not any(state["splits"].values()):
                return  # nothing is lost
            line = difference(state["source"], self.source)
            raise DataError(
                f"{self.folder} is an unfinished store, but of other data: {line}; --anew starts over"
            )
        for shard in (shard for shards in state["splits"].values() for shard in shards if shard["count"]):
            file_path = self.folder / shard["file"]
            if not file_path.is_file() or file_path.stat().st_size != shard["bytes"]:
                raise DataError(
                    f"{file_path} was complete, and is damaged or missing now; --anew starts over"
                )
        self.splits = state["splits"]
        self.totals.values, self.totals.products = values, products
        self.totals.images = state["images"]

    def _note(self) -> None:
        """Write what is complete."""
        state = {"source": self.source, "splits": self.splits, "images": self.totals.images}
        contents = io.BytesIO()
        np.savez(
            contents,
            state=np.frombuffer(json.dumps(state).encode(), np.uint8),
            values=self.totals.values,
            products=self.totals.products,
        )
        self._write(UNFINISHED, contents.getvalue())

    # -----------------------------------------------------------------------------------------------
    # Shards
    # -----------------------------------------------------------------------------------------------
    def complete(self, split: str) -> int:
        """How many shards of a split are complete."""
        return len(self.splits.get(split, ()))

    @contextlib.contextmanager
    def shard(self, split: str, images: int) -> Iterator[_Shard]:
        """The next shard of a split, for at most so many images; it is complete at the end of the block.

        A block that ends with an error leaves no shard.
        """
        done = self.splits.setdefault(split, [])
        name = f"{split}-{len(done):05}.npy"
        path = self.folder / (name + _PARTIAL)
        with self._writing():
            self._partial = path, io.BufferedRandom(io.FileIO(path, "w+"))
        shard = _Shard(self, self._partial[1], images, self.totals if split == "train" else None)
        yield shard
        with self._writing():
            entry = shard.end()
            self._partial[1].close()
            if entry["count"]:
                os.replace(path, self.folder / name)
            else:
                path.unlink()
            self._partial = None
            disk.sync(self.folder)
        done.append({"file": name, **entry})
        self._note()

    def finish(self, data: Data) -> dict[str, Any]:
        """Write what is not yet there, `store.json` last; returns its contents.

        Parameters
        ----------
        data : Data
            Whose images were written.
        """
        index: dict[str, Any] = {
            "format": FORMAT,
            "name": data.name,
            "classes": list(data.classes),
            "names": list(data.names),
            "shape": list(self.shape),
            "source": self.source,
            "splits": {
                "train": self._split("train", data.train),
                "validation": None if data.validation is None else self._split("validation", data.validation),
            },
            "statistics": self._write("statistics.npz", statistics.to_bytes(self.totals.statistics())),
            "left_out": self._write("left_out.txt", left_out.to_text(self._left_out(data))),
            "made_by": f"convkit {__version__}",
        }
        index["fingerprint"] = fingerprint(index)
        self._write(INDEX, (json.dumps(index, indent=1) + "\n").encode())
        with self._writing():
            (self.folder / UNFINISHED).unlink()
        return index

    def discard(self) -> None:
        """Remove what was written, and the folder if it was made."""
        self._clear()
        if self._made:
            with contextlib.suppress(OSError):
                self.folder.rmdir()

    def kept(self, split: str, count: int) -> np.ndarray:
        """Numbers of the images of a split, of `count`, that are in its complete shards."""
        keep = np.ones(count, bool)
        for shard in self.splits[split]:
            keep[[index for index, _ in shard["failures"]]] = False
        return np.flatnonzero(keep)

    def _left_out(self, data: Data) -> Iterator[tuple[str, str]]:
        yield from data.left_out
        for name, split in (("train", data.train), ("validation", data.validation)):
            if split is not None:
                for shard in self.splits[name]:
                    for index, reason in shard["failures"]:
                        yield split.name(index), reason

    def _split(self, name: str, split: Split) -> dict[str, Any]:
        kept = self.kept(name, len(split))
        texts = [split.name(index).encode("utf-8", "surrogateescape") for index in kept.tolist()]
        ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
        shards = [
            {key: shard[key] for key in ("file", "count", "bytes", "sha256")}
            for shard in self.splits[name]
            if shard["count"]
        ]
        return {
            "count": len(kept),
            "labels": self._write_array(f"{name}-labels.npy", split.labels[kept]),
            "image_names": self._write_array(f"{name}-names.npy", np.frombuffer(b"".join(texts), np.uint8)),
            "image_name_ends": self._write_array(f"{name}-name-ends.npy", ends),
            "shards": shards,
        }

    # -----------------------------------------------------------------------------------------------
    # Files
    # -----------------------------------------------------------------------------------------------
    def _write_array(self, name: str, array: np.ndarray) -> dict[str, Any]:
        contents = io.BytesIO()
        np.save(contents, array, allow_pickle=False)
        return self._write(name, contents.getvalue())

    def _write(self, name: str, contents: bytes) -> dict[str, Any]:
        with self._writing():
            disk.replace(self.folder / name, contents, self.folder / (name + _PARTIAL))
        return {"file": name, "bytes": len(contents), "sha256": hashlib.sha256(contents).hexdigest()}

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DataError(
                    f"the disk of {self.folder} is full; with more room, the same command goes on with "
                    f"the {sum(map(len, self.splits.values()))} shards that are complete"
                ) from error
            raise DataError(f"cannot write to {self.folder}: {error.strerror}") from error


class _Shard:
    """A shard that is being written."""

    def __init__(self, writer: Writer, file: BinaryIO, images: int, totals: Totals | None) -> None:
        self._writer, self._file, self._totals, self._planned = writer, file, totals, images
        self._digest = hashlib.sha256()
        self._count = 0
        self._failures: list[list[Any]] = []
        header = self._header(images)
        with writer._writing():
            file.write(header)
        self._digest.update(header)

    def _header(self, count: int) -> bytes:
        contents = io.BytesIO()
        shape = (count, *self._writer.shape)
        np.lib.format.write_array_header_1_0(
            contents, {"descr": "|u1", "fortran_order": False, "shape": shape}
        )
        return contents.getvalue()

    def add(self, images: np.ndarray, failures: Sequence[tuple[int, str]]) -> None:
        """Add images, and the numbers of those that are not among them, with the reasons."""
        self._failures += [[int(index), reason] for index, reason in failures]
        if not len(images):
            return
        self._count += len(images)
        rows = memoryview(np.ascontiguousarray(images)).cast("B")  # type: ignore[arg-type]
        submit = self._writer._threads.submit  # each of these runs without the GIL
        work: list[Future[Any]] = [submit(self._digest.update, rows)]
        if self._totals is not None:
            work += [
                submit(self._totals.add_values, images),
                submit(self._totals.add_products, images),
            ]
        with self._writer._writing():
            try:
                self._file.write(rows)
            finally:
                for one in work:
                    one.result()

    def end(self) -> dict[str, Any]:
        """Bring the file to the disk; returns what is noted about it."""
        file, digest = self._file, self._digest.hexdigest()
        if self._count != self._planned:  # the header has another number now, of the same width
            file.seek(0)
            file.write(self._header(self._count))
            file.seek(0)
            digest = sha256(file)
        file.flush()
        os.fsync(file.fileno())
        size = os.fstat(file.fileno()).st_size
        return {"count": self._count, "bytes": size, "sha256": digest, "failures": self._failures}


def _make(folder: Path) -> bool:
    """Make a folder; False if it was there."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        if not folder.is_dir():
            raise DataError(f"{folder} is a file; a store is a folder") from None
        return False
    except OSError as error:
        raise DataError(f"cannot make the folder {folder}: {error.strerror}") from error
    return True


def _lock(folder: Path) -> int:
    """Open and lock a folder; the lock ends with the process, or when it is closed."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise DataError(f"cannot read {folder}: {error.strerror}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise DataError(f"another process makes the store {folder}") from None
    except OSError:  # a file system without locks
        pass
    return handle
