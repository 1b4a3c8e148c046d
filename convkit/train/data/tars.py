"""ILSVRC 2012 as it is distributed: images are read where they lie in the tars, nothing is unpacked."""

from __future__ import annotations

import io
import os
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from ..errors import BadImage, DataError, one_line
from .dataset import Data
from .devkit import validation_synsets
from .files import Encoded, Names, is_image
from .fingerprint import fingerprint
from .left_out import LeftOut
from .names import readable

_TRAIN, _VALIDATION = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
_DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"


def found(names: Iterable[str]) -> bool:
    """Whether a folder with these files is one of ILSVRC's tars."""
    return _TRAIN in names


@dataclass(frozen=True)
class Places:
    """Where files lie in a tar.

    Attributes
    ----------
    names : Names
    offsets, sizes : int64 arrays, (n,)
        In bytes.
    """

    names: Names
    offsets: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, files: list[tuple[str, int, int]]) -> Places:
        """From names, offsets and sizes."""
        numbers = np.array([file[1:] for file in files], np.int64).reshape(-1, 2)
        return cls(Names(file[0] for file in files), numbers[:, 0].copy(), numbers[:, 1].copy())


class Tar(Encoded):
    """Images in a tar.

    Parameters
    ----------
    path : str
    places : Places
    labels, size, square
        As in `Encoded`.
    """

    def __init__(self, path: str, places: Places, labels: np.ndarray, size: int, square: str) -> None:
        super().__init__(labels, size, square)
        self.path, self.places = path, places
        self._file: io.FileIO | None = None

    def name(self, index: int) -> str:
        """The tar, and the file in it."""
        return os.path.join(self.path, self.places.names[index])

    def encoded(self, index: int) -> bytes:
        try:
            if self._file is None:
                self._file = io.FileIO(self.path)
            # At an offset, so that threads and forked processes share the file without sharing a position.
            data = os.pread(
                self._file.fileno(), int(self.places.sizes[index]), int(self.places.offsets[index])
            )
        except OSError as error:
            raise BadImage(f"cannot be read: {error.strerror or error}") from None
        if len(data) != self.places.sizes[index]:
            raise BadImage("the tar ends inside it")
        return data

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_file": None}


def open_tars(folder: Path, size: int, square: str) -> Data:
    """ILSVRC's tars as a data set; the arguments are those of `convkit.train.data.open_data`.

    Opening reads the header of each file in the tars, 1.3 million in all.

    Raises
    ------
    DataError
        If a tar is missing or damaged, or the development kit does not fit the images.
    MissingExtra
        Without SciPy, which reads the development kit.
    """
    missing = [name for name in (_TRAIN, _VALIDATION, _DEVKIT) if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{folder} has {_TRAIN}, but lacks {' and '.join(missing)}")
    left_out: LeftOut = []
    classes, train = _train(folder / _TRAIN, left_out)
    validation = _validation(folder / _VALIDATION, left_out)
    synsets = validation_synsets(folder / _DEVKIT)
    if len(synsets) != len(validation):
        raise DataError(
            f"{folder}: {_VALIDATION} has {len(validation)} images, {_DEVKIT} labels for {len(synsets)}"
        )
    numbers = {key: number for number, key in enumerate(classes)}
    if strange := sorted(set(synsets) - set(classes)):
        raise DataError(f"{folder}: {_TRAIN} has no class {strange[0]}, which {_DEVKIT} has")
    labels = [np.repeat(np.arange(len(classes)), [len(files) for files in train])]
    labels += [np.array([numbers[key] for key in synsets])]
    splits = [
        Tar(str(folder / name), Places.of(files), label, size, square)
        for name, files, label in zip(
            (_TRAIN, _VALIDATION), ([one for files in train for one in files], validation), labels
        )
    ]
    contents = [part for split in splits for part in (split.places.names.text, split.labels)]
    return Data(
        name=folder.resolve().name,
        classes=classes,
        names=readable(classes),
        train=splits[0],
        validation=splits[1],
        fingerprint=fingerprint("files", size, square, "\0".join(classes), *contents),
        left_out=tuple(left_out),
    )


def _train(path: Path, left_out: LeftOut) -> tuple[tuple[str, ...], list[list[tuple[str, int, int]]]]:
    """Classes, and files of each, from a tar that holds a tar for each class."""
    found: dict[str, list[tuple[str, int, int]]] = {}
    with open(path, "rb") as file:
        progress = tqdm(
            _members(file, path), desc=f"images in {path}", unit=" classes", leave=False, disable=None
        )
        for name, offset, size in progress:
            key, dot, kind = name.rpartition(".")
            if kind != "tar" or not dot:
                left_out.append((f"{path}/{name}", "not the tar of a class"))
                continue
            inside = []
            with open(path, "rb") as inner:
                for within, at, length in _members(inner, f"{path}/{name}", offset, offset + size):
                    if is_image(within):
                        inside.append((f"{name}/{within}", at, length))
                    else:
                        left_out.append((f"{path}/{name}/{within}", "its name is not that of an image"))
            if not inside:
                left_out.append((f"{path}/{name}", "the tar of a class without an image"))
            found[key] = sorted(inside)
    if not any(found.values()):
        raise DataError(f"{path} holds no tar with images, which each class should have")
    classes = tuple(sorted(found))
    return classes, [found[key] for key in classes]


def _validation(path: Path, left_out: LeftOut) -> list[tuple[str, int, int]]:
    """Files of a tar, in the order of their names, which is that of the development kit's labels."""
    files = []
    with open(path, "rb") as file:
        for name, offset, size in _members(file, path):
            if is_image(name):
                files.append((name, offset, size))
            else:
                left_out.append((f"{path}/{name}", "its name is not that of an image"))
    return sorted(files, key=lambda one: one[0].rpartition("/")[2])


def _members(
    file: BinaryIO, path: str | Path, begin: int = 0, end: int | None = None
) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size) of each file in a tar, which may itself lie in a file, from `begin` to `end`."""
    end = os.fstat(file.fileno()).st_size if end is None else end
    file.seek(begin)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if member.offset >= end:
                    return
                if member.offset_data + member.size > end:
                    raise DataError(f"{path} is damaged: it ends inside {member.name}")
                if member.isfile():
                    yield member.name, member.offset_data, member.size
            # A damaged header is an end to `tarfile`; the true one is a block of zeros.
            file.seek(tar.offset)
            if tar.offset < end and any(file.read(tarfile.BLOCKSIZE)):
                raise DataError(
                    f"{path} is damaged: there is no file's header at byte {tar.offset - begin:,}"
                )
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path} is damaged, or no tar: {one_line(error)}") from None
