"""IDX files: MNIST, Fashion-MNIST, and whatever else is written like them."""

from __future__ import annotations

import gzip
import hashlib
import re
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..errors import DataError
from .dataset import Data, Pixels
from .fingerprint import fingerprint

#: (train or t10k, images or labels); some sites write a point for a hyphen.
_NAME = re.compile(r"(train|t10k)-(images|labels)[-.]idx[134]-ubyte(?:\.gz)?")
#: IDX's number of the type uint8.
_UINT8 = 8
#: What Fashion-MNIST's numbers stand for (Xiao, Rasul, Vollgraf, 2017). Its files have MNIST's names, so its
#: labels for training identify it: this is their SHA-256.
_FASHION_LABELS = "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7"
_FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def found(names: Iterable[str]) -> bool:
    """Whether a folder with these files is one of IDX files."""
    return any(_NAME.fullmatch(name) for name in names)


def open_idx(folder: Path) -> Data:
    """A folder of IDX files as a data set; without `t10k-...` it has no validation.

    Raises
    ------
    DataError
        If a file is missing, or damaged, or does not fit the others.
    """
    files: dict[tuple[str, str], Path] = {}
    for path in sorted(folder.iterdir(), reverse=True):  # of two, the one that is not compressed
        if match := _NAME.fullmatch(path.name):
            files[match[1], match[2]] = path
    train = _split(folder, files, "train")
    validation = _split(folder, files, "t10k") if any(part == "t10k" for part, _ in files) else None
    count = int(train.labels.max()) + 1
    classes = tuple(str(number) for number in range(count))
    parts = [train]
    if validation is not None:
        parts.append(validation)
        if validation.shape != train.shape:
            raise DataError(
                f"{folder}: its images for training are {_size(train)}, those for testing {_size(validation)}"
            )
        if validation.labels.max() >= count:
            raise DataError(
                f"{files['t10k', 'labels']}: a label is {validation.labels.max()}, but those of training end "
                f"at {count - 1}"
            )
    hashed = hashlib.sha256(train.labels.astype(np.uint8).tobytes()).hexdigest()
    contents = [array for part in parts for array in (part.pixels, part.labels)]
    return Data(
        name=folder.resolve().name,
        classes=classes,
        names=_FASHION if hashed == _FASHION_LABELS else classes,
        train=train,
        validation=validation,
        fingerprint=fingerprint("idx", *contents),
    )


def _size(pixels: Pixels) -> str:
    return " x ".join(map(str, pixels.shape))


def _split(folder: Path, files: dict[tuple[str, str], Path], part: str) -> Pixels:
    for kind, ending in (("images", "idx3-ubyte"), ("labels", "idx1-ubyte")):
        if (part, kind) not in files:
            raise DataError(f"{folder} has no {part}-{kind}-{ending}, nor that with .gz")
    images = read_idx(files[part, "images"], (3, 4))
    labels = read_idx(files[part, "labels"], (1,))
    if images.ndim == 3:
        images = images[..., np.newaxis]
    if len(images) != len(labels):
        raise DataError(f"{folder}: {part} has {len(images)} images and {len(labels)} labels")
    if not len(images):
        raise DataError(f"{files[part, 'images']} holds no image")
    if images.shape[3] not in (1, 3):
        raise DataError(
            f"{files[part, 'images']}: an image has {images.shape[3]} channels (the last extent), not 1 or 3"
        )
    if not images.size:
        raise DataError(f"{files[part, 'images']}: its images are {' x '.join(map(str, images.shape[1:]))}")
    return Pixels(images, labels)


def read_idx(path: Path, ranks: tuple[int, ...]) -> np.ndarray:
    """An IDX file of bytes, compressed by gzip or not.

    Format: two zero bytes, the type, the rank, each extent as a big-endian 32-bit integer, then the data.

    Parameters
    ----------
    path : Path
    ranks : tuple of int
        The ranks that are right here.

    Returns
    -------
    array : uint8 array

    Raises
    ------
    DataError
        If the file cannot be read, or is another, or has another length than its extents say.
    """
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is damaged: {error}") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    wanted = " or ".join(f"00 00 08 {rank:02x}" for rank in ranks)
    if len(content) < 4 or content[:3] != bytes((0, 0, _UINT8)) or content[3] not in ranks:
        raise DataError(
            f"{path} is no IDX file of bytes: it begins with {content[:4].hex(' ')}, not {wanted}"
        )
    rank = content[3]
    begin = 4 + 4 * rank
    shape = (
        tuple(int(extent) for extent in np.frombuffer(content[4:begin], ">u4"))
        if len(content) >= begin
        else ()
    )
    size = 1
    for extent in shape:
        size *= extent
    if len(content) != begin + size or len(shape) != rank:
        extents = " x ".join(map(str, shape)) or "none"
        raise DataError(
            f"{path} is damaged: it has {len(content):,} bytes, not the {begin + size:,} of its extents "
            f"({extents})"
        )
    return np.frombuffer(content, np.uint8, offset=begin).reshape(shape)
