"""ILSVRC 2012 as it is distributed, made of a tree of class folders: two tars of images, and the devkit."""

from __future__ import annotations

import io
import random
import tarfile
from pathlib import Path

import numpy as np
from conftest import need

TRAIN, VALIDATION = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
_DATA = "ILSVRC2012_devkit_t12/data/"
TRUTH, META = f"{_DATA}ILSVRC2012_validation_ground_truth.txt", f"{_DATA}meta.mat"


def pack(tree: Path, folder: Path) -> Path:
    """Make the three files of the tree's `train` and `val`; what is no plain file is left out.

    The images for validation are shuffled, and the devkit numbers its classes in an order of its own.

    Returns
    -------
    folder : Path
    """
    folder.mkdir(parents=True)
    classes = sorted(path.name for path in (tree / "train").iterdir())
    write_tar(folder / TRAIN, {f"{key}.tar": tar(plain(tree / "train" / key)) for key in classes})

    shuffled = random.Random(0)
    images = [
        (key, content) for key in classes if (tree / "val" / key).is_dir()
        for content in plain(tree / "val" / key).values()
    ]  # fmt: skip
    shuffled.shuffle(images)
    names = (f"ILSVRC2012_val_{number:08}.JPEG" for number in range(1, len(images) + 1))
    write_tar(folder / VALIDATION, {name: content for name, (_, content) in zip(names, images)})

    order = shuffled.sample(classes, len(classes))
    numbers = {key: number for number, key in enumerate(order, 1)}
    write_devkit(folder / DEVKIT, numbers, [numbers[key] for key, _ in images])
    return folder


def write_devkit(path: Path, numbers: dict[str, int], truth: list[int]) -> None:
    """The devkit: the number of each synset, and the one of each image for validation."""
    table = np.empty((len(numbers) + 1, 1), [("ILSVRC2012_ID", "O"), ("WNID", "O")])
    # Synsets that are made of several classes have numbers beyond 1000, and no image.
    for row, (key, number) in enumerate([*numbers.items(), ("n00001740", 1001)]):
        table[row, 0] = number, key
    meta = io.BytesIO()
    need("scipy.io").savemat(meta, {"synsets": table})
    write_tar(path, {TRUTH: "".join(f"{n}\n" for n in truth).encode(), META: meta.getvalue()})


def plain(folder: Path) -> dict[str, bytes]:
    """What is in the plain files of a folder, by their names."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.is_symlink())
    return {path.name: path.read_bytes() for path in files}


def tar(files: dict[str, bytes]) -> bytes:
    """A tar of files."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return made.getvalue()


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    """A tar of files as a file; its name says whether it is compressed."""
    content = tar(files)
    if path.suffix == ".gz":
        import gzip

        content = gzip.compress(content, 1)
    path.write_bytes(content)
