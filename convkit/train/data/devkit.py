"""ILSVRC 2012's development kit, which has the labels of the images for validation."""

from __future__ import annotations

import io
import tarfile
import zlib
from pathlib import Path

import numpy as np

from ...errors import MissingExtra
from ..errors import DataError, one_line

_TRUTH, _META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
#: Synsets with a number up to this one are classes; those above are made of several.
_CLASSES = 1000


def validation_synsets(path: Path) -> list[str]:
    """Synset of each image for validation, in the order of the images' names.

    The kit numbers its classes in an order of its own; `meta.mat` says the synset of each number.

    Parameters
    ----------
    path : Path
        `ILSVRC2012_devkit_t12.tar.gz`, or the folder that was made of it.

    Raises
    ------
    DataError
        If it lacks one of the two files, or they are damaged or do not fit each other.
    MissingExtra
        Without SciPy, which scikit-learn brings.
    """
    try:
        from scipy.io import loadmat
    except ImportError:
        raise MissingExtra("ILSVRC's development kit", "SciPy", "train") from None
    truth, meta = _read(path, _TRUTH), _read(path, _META)
    try:
        numbers = [int(line) for line in truth.split()]
        table = loadmat(io.BytesIO(meta), variable_names=["synsets"], squeeze_me=True)["synsets"]
        synsets = {
            int(number): str(key)
            for number, key in zip(np.atleast_1d(table["ILSVRC2012_ID"]), np.atleast_1d(table["WNID"]))
        }
    except Exception as error:  # a damaged file makes SciPy raise anything
        raise DataError(f"{path} is damaged: {type(error).__name__}: {one_line(error)}") from None
    if strange := sorted(set(numbers) - {number for number in synsets if number <= _CLASSES}):
        raise DataError(f"{path}: {_TRUTH} has the label {strange[0]}, which {_META} lacks")
    return [synsets[number] for number in numbers]


def _read(path: Path, name: str) -> bytes:
    """A file of the kit, by its own name, wherever in it."""
    try:
        if path.is_dir():
            for inside in path.rglob(name):
                return inside.read_bytes()
        else:
            with tarfile.open(path) as tar:
                for member in tar:
                    if member.isfile() and member.name.rpartition("/")[2] == name:
                        file = tar.extractfile(member)
                        return file.read() if file is not None else b""
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path} is damaged, or no tar: {one_line(error)}") from None
    raise DataError(f"{path} lacks {name}")
