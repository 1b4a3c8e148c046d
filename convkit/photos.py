"""Photographs as a network's input: scikit-image's own, or the user's files and folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .errors import ConvkitError, MissingExtra, OptionError, OutOfMemory
from .geometry import integer
from .presets import Preset

#: Colour photographs that scikit-image's wheel holds, so that nothing is downloaded.
EXAMPLES = ("astronaut", "chelsea", "coffee", "rocket")


class ImageError(ConvkitError, ValueError):
    """A file that is not an image, or a folder without one."""


def _pillow() -> Any:
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise MissingExtra("reading photographs", "Pillow", "images") from None
    return Image, ImageOps


def find(paths: Sequence[str | Path]) -> list[Path]:
    """Image files for a mix of files and folders; folders are searched to any depth, in order of name.

    Raises
    ------
    ImageError
        If a path does not exist, or a folder holds no file with an image's suffix.
    """
    Image, _ = _pillow()
    suffixes = Image.registered_extensions()
    found: list[Path] = []
    for text in paths:
        path = Path(text)
        if not str(text):
            raise ImageError("an empty path names no image")
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
            if not inside:
                raise ImageError(f"no image in the folder {path}")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise ImageError(f"no such file or folder: {path}")
    return found


def examples() -> list[Path]:
    """scikit-image's photographs, as files."""
    try:
        import skimage.data
    except ImportError:
        raise MissingExtra("showing its example photographs", "scikit-image", "images") from None
    folder = Path(skimage.data.__file__).parent
    present = [
        p for name in EXAMPLES for p in (folder / f"{name}.png", folder / f"{name}.jpg") if p.is_file()
    ]
    if not present:
        raise OptionError("this scikit-image has no photographs in its package; name images of your own")
    return present


def load(path: Path, preset: Preset) -> np.ndarray:
    """One photograph, prepared as the preset has it.

    Parameters
    ----------
    path : Path
    preset : Preset
        Its `preprocess` and `image_size` are followed: the shorter side is resized, the centre cropped,
        the channels ordered, scaled, and freed of the mean.

    Returns
    -------
    image : float32 array, (3, image_size, image_size)

    Raises
    ------
    ImageError
        If the file is not an image that Pillow can read.
    """
    Image, ImageOps = _pillow()
    how, size = preset.preprocess, preset.image_size
    try:
        with Image.open(path) as file:
            photo = ImageOps.exif_transpose(file).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"{path} is not an image that can be read: {error}") from error
    ratio = how.resize / min(photo.size)
    photo = photo.resize([max(how.resize, round(extent * ratio)) for extent in photo.size], Image.BILINEAR)
    left, top = ((extent - size) // 2 for extent in photo.size)
    pixels = np.asarray(photo.crop((left, top, left + size, top + size)), np.float32)
    if how.order == "BGR":
        pixels = pixels[..., ::-1]
    mean, std = np.array(how.mean, np.float32), np.array(how.std, np.float32)
    pixels = (pixels * np.float32(how.scale) - mean) / std
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def batch(
    paths: Sequence[str | Path], preset: Preset, size: int | None = None
) -> tuple[np.ndarray, np.ndarray, list[Path]]:
    """A batch of photographs; where there are fewer than `size`, they take turns.

    Parameters
    ----------
    paths : sequence of paths
        Files and folders; empty for scikit-image's photographs.
    preset : Preset
    size : int, optional
        Images in the batch; one of each by default.

    Returns
    -------
    x : float32 array, (size, 3, image_size, image_size)
    labels : int64 array, (size,)
        The number of the photograph, so that each is a class of its own.
    files : list of Path
        The photographs used.
    """
    files = find(paths) if paths else examples()
    count = len(files) if size is None else integer("batch", size, 1)
    files = files[:count]
    photos = np.stack([load(path, preset) for path in files])
    try:
        labels = np.arange(count) % len(files)
        return photos[labels], labels, files
    except (MemoryError, ValueError) as error:
        gib = count * photos[0].nbytes / 2**30
        raise OutOfMemory(f"no memory for a batch of {count}: {gib:.1f} GiB; take a smaller one") from error
