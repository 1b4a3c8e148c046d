"""A tree of class folders, as ImageNet's: `train/n01440764/...`, `val/n01440764/...`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..errors import DataError
from .dataset import Data
from .decode import read_file
from .files import Encoded, Names, is_image
from .fingerprint import fingerprint
from .left_out import LeftOut
from .names import readable

#: Names of the folder for validation, in the order in which they are looked for.
_VALIDATION = ("val", "validation", "valid", "test")
#: Of a tree without validation, one image of so many is held out for it.
_HELD_OUT = 10


class Folder(Encoded):
    """Images in class folders.

    Parameters
    ----------
    root : str
        The folder of the class folders.
    classes : tuple of str
        Their names.
    labels : array of integers, (n,)
    names : Names
        Of the files, inside their class folders.
    size, square
        As in `Encoded`.
    """

    def __init__(
        self, root: str, classes: tuple[str, ...], labels: np.ndarray, names: Names, size: int, square: str
    ) -> None:
        super().__init__(labels, size, square)
        self.root, self.classes, self.names = root, classes, names

    def name(self, index: int) -> str:
        """The image's file."""
        return os.path.join(self.root, self.classes[self.labels[index]], self.names[index])

    def encoded(self, index: int) -> bytes:
        return read_file(self.name(index))


def open_folder(folder: Path, size: int, square: str) -> Data:
    """A tree as a data set; the arguments are those of `convkit.train.data.open_data`.

    Classes are numbered in the order of their folders' names. A class folder without an image stays a class,
    so that the others keep their numbers; it is among what is left out.

    Raises
    ------
    DataError
        If there are no class folders, no image in them, or classes for validation that training lacks.
    """
    left_out: LeftOut = []
    train, validation = _roots(folder)
    classes = _class_folders(train)
    if not classes:
        what = "images, but no class folders" if _has_images(train) else "no class folders"
        raise DataError(f"{train} has {what}; each class needs a folder of its own in it")
    found = _images(train, classes, left_out)
    if not any(found):
        raise DataError(f"no image in the {len(classes)} class folders of {train}")
    name = folder.resolve().name
    if validation is None:
        held_out = [[one for one in names if _is_held_out(key, one)] for key, names in zip(classes, found)]
        kept = [[one for one in names if not _is_held_out(key, one)] for key, names in zip(classes, found)]
        parts = [_split(train, classes, kept, size, square), _split(train, classes, held_out, size, square)]
        name += f" (no folder for validation: {len(parts[1]):,} of {sum(map(len, found)):,} images held out)"
    else:
        parts = [
            _split(train, classes, found, size, square),
            _of_validation(validation, classes, left_out, size, square),
        ]
    contents = [content for part in parts for content in (part.names.text, part.names.ends, part.labels)]
    return Data(
        name=name,
        classes=classes,
        names=readable(classes),
        train=parts[0],
        validation=parts[1] if len(parts[1]) else None,
        fingerprint=fingerprint("files", size, square, "\0".join(classes), *contents),
        left_out=tuple(left_out),
    )


def _roots(folder: Path) -> tuple[Path, Path | None]:
    """The folders of training and validation; the second is None where there is none."""
    inside = _class_folders(folder)
    others = [name for name in inside if name not in ("train", *_VALIDATION)]
    if "train" not in inside or (others and not _class_folders(folder / "train")):
        return folder, None
    for name in _VALIDATION:
        if name in inside:
            if _class_folders(folder / name):
                return folder / "train", folder / name
            if name != "test":  # ImageNet's images for testing have no labels
                what = "images, but no class folders" if _has_images(folder / name) else "no class folders"
                raise DataError(f"{folder / name} has {what}; validation needs the class folders of training")
    return folder / "train", None


def _class_folders(folder: Path) -> tuple[str, ...]:
    """Names of the folders in a folder, in order; those that begin with a point are passed over."""
    try:
        with os.scandir(folder) as entries:
            return tuple(sorted(one.name for one in entries if one.is_dir() and one.name[0] != "."))
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror or error}") from None


def _has_images(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(is_image(entry.name) for entry in entries)


def _images(root: Path, classes: Sequence[str], left_out: LeftOut) -> list[list[str]]:
    """The images of each class, in order, by their names inside the class's folder."""
    found = []
    for key in tqdm(classes, desc=f"images in {root}", unit=" folders", leave=False, disable=None):
        folder = os.path.join(root, key)
        before = len(left_out)
        inside = sorted(_inside(folder, "", left_out))
        if not inside and len(left_out) == before:
            left_out.append((folder, "a class folder without a file"))
        elif not inside:
            left_out.append((folder, "a class folder without an image"))
        found.append(inside)
    return found


def _inside(folder: str, within: str, left_out: LeftOut) -> list[str]:
    """Images in a folder and in those in it; no file is opened, nor asked for its size."""
    found = []
    deeper = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if entry.is_dir():
                    if entry.is_symlink():  # it may lead into a circle
                        left_out.append((entry.path, "a link to a folder is not followed"))
                    else:
                        deeper.append(name)
                elif not is_image(name):
                    left_out.append((entry.path, "its name is not that of an image"))
                elif not (entry.is_file() or entry.is_symlink()):
                    left_out.append((entry.path, "not a file"))
                else:
                    found.append(within + name)
    except OSError as error:
        left_out.append((folder, f"cannot be read: {error.strerror or error}"))
    for name in deeper:
        path = os.path.join(folder, name)
        more = _inside(path, f"{within}{name}/", left_out)
        if not more:
            left_out.append((path, "a folder without an image"))
        found += more
    return found


def _is_held_out(key: str, name: str) -> bool:
    """Whether an image is for validation, by a hash of its name: the same whatever else the tree holds."""
    hashed = hashlib.blake2b(os.fsencode(f"{key}/{name}"), digest_size=8).digest()
    return int.from_bytes(hashed, "little") % _HELD_OUT == 0


def _split(
    root: Path, classes: tuple[str, ...], found: Sequence[Sequence[str]], size: int, square: str
) -> Folder:
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(names) for names in found])
    return Folder(str(root), classes, labels, Names(name for names in found for name in names), size, square)


def _of_validation(root: Path, classes: tuple[str, ...], left_out: LeftOut, size: int, square: str) -> Folder:
    """The images of validation, with the labels of training."""
    inside = _class_folders(root)
    images = dict(zip(inside, _images(root, inside, left_out)))
    strange = sorted(key for key, names in images.items() if names and key not in set(classes))
    if strange:
        more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
        raise DataError(f"{root} has classes that training lacks: {', '.join(strange[:3])}{more}")
    if not any(images.values()):
        raise DataError(f"no image in the {len(inside)} class folders of {root}")
    return _split(root, classes, [images.get(key, []) for key in classes], size, square)
