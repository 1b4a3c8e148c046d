"""Photographs as a network's input: scikit-image's own, or the user's files and folders."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConvkitError, MissingExtra, OptionError, OutOfMemory
from ..network.presets import Preset
from ..options import integer
from .data.pillow import SIDEWAYS, TURNS, explained, one_line, orientation, pillow, rgb, white
from .errors import BadImage

#: Colour photographs that scikit-image's wheel holds, so that nothing is downloaded.
EXAMPLES = ("astronaut", "chelsea", "coffee", "rocket")


class ImageError(ConvkitError, ValueError):
    """A file that is not an image, or a folder without one."""


def find(paths: Sequence[str | Path]) -> list[Path]:
    """Image files for a mix of files and folders; folders are searched to any depth, in order of name.

    Raises
    ------
    ImageError
        If a path does not exist or cannot be looked at, or a folder holds no file with an image's suffix.
    """
    suffixes = pillow().registered_extensions()
    found: list[Path] = []
    for text in paths:
        if not str(text):
            raise ImageError("an empty path names no image")
        try:
            found += _inside(Path(text), suffixes)
        except (OSError, ValueError) as error:  # a name that is too long, a link to itself, a NUL
            if isinstance(error, ImageError):
                raise
            raise ImageError(f"{one_line(text)}: {getattr(error, 'strerror', None) or error}") from error
    return found


def _inside(path: Path, suffixes: Container[str]) -> list[Path]:
    """The path itself, or what is inside a folder."""
    if not path.is_dir():
        if not path.exists():
            raise ImageError(f"no such file or folder: {one_line(path)}")
        return [path]
    inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
    if not inside:
        raise ImageError(f"no image in the folder {one_line(path)}")
    return inside


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


#: A side that is longer than this times the shorter one is cut before it is resized. That may change the
#: order of Pillow's two passes. Each of them rounds, so a pixel may change by one grey level.
_WINDOW = 4


def load(path: Path, preset: Preset) -> np.ndarray:
    """One photograph, prepared as the preset has it.

    The file's first frame is turned upright as its EXIF data say. Colours become RGB by Pillow's conversion;
    transparency is dropped: the colour under it counts. Samples become 8 bits, by the range of their type and
    never by the values that an image happens to have:

    - 16-bit grey is divided by 65535, 12-bit grey by 4095, and rounded; Pillow keeps the high byte of a
      16-bit colour;
    - floating point is taken from 0 to 1, where all values are in there;
    - other floating point, 32-bit integers and signed integers are refused: no file says what is white.

    Of an image more than 4 times as long as wide, only what the centre crop needs is converted and resized.
    It takes little memory besides its decoded file.

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
        If the file is not an image that Pillow can read, if it does not say what is white, if it has more
        pixels than Pillow takes for safe (twice `PIL.Image.MAX_IMAGE_PIXELS`), or if memory is short.
    """
    how, size = preset.preprocess, preset.image_size
    if how.resize < size:
        raise OptionError(f"a crop of {size} pixels needs resize of at least as many, not {how.resize}")
    try:
        with explained():
            photo = _centre(path, how.resize, size)
    except BadImage as error:
        joint = " is" if error.__cause__ else ":"
        raise ImageError(f"{one_line(path)}{joint} {error}") from error.__cause__
    except MemoryError:
        raise ImageError(f"no memory to read {one_line(path)}") from None
    pixels = np.asarray(photo, np.float32)
    if how.order == "BGR":
        pixels = pixels[..., ::-1]
    mean, std = np.array(how.mean, np.float32), np.array(how.std, np.float32)
    pixels = (pixels * np.float32(how.scale) - mean) / std
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


@dataclass(frozen=True)
class _Axis:
    """How one side of an image becomes `size` pixels, the centre of its `whole` when resized.

    Attributes
    ----------
    cut : int
        Pixels that are cut off at either end first: as many at both, so that what is left is the centre
        however the image is turned.
    begin, end : float
        What is resized of the rest ...
    made : int
        ... into this many pixels.
    left : int
        Of these, where the crop begins.
    """

    cut: int
    begin: float
    end: float
    made: int
    left: int

    @classmethod
    def of(cls, extent: int, whole: int, size: int, windowed: bool) -> _Axis:
        left = (whole - size) // 2
        if not windowed:
            return cls(0, 0, extent, whole, left)
        begin, end = left * extent / whole, (left + size) * extent / whole
        margin = max(1, extent / whole) + 1  # the width of the filter: pixels are those of the uncut image
        cut = max(0, math.floor(min(begin, extent - end) - margin))
        return cls(cut, begin - cut, end - cut, size, 0)


def _centre(path: Path, resize: int, size: int) -> Any:
    """The centre, size x size and RGB, of the image whose shorter side is resized to `resize`."""
    Image = pillow()
    with Image.open(path) as file:
        file.load()
        samples = white(file)
        turn = orientation(file.getexif)
        extents = file.size[::-1] if turn in SIDEWAYS else file.size
        if min(extents) < 1:
            raise BadImage("it has no pixels")
        ratio = resize / min(extents)
        wholes = [max(resize, round(extent * ratio)) for extent in extents]
        across, down = (_Axis.of(e, w, size, w > _WINDOW * resize) for e, w in zip(extents, wholes))
        x, y = (down.cut, across.cut) if turn in SIDEWAYS else (across.cut, down.cut)
        photo = file.crop((x, y, file.width - x, file.height - y)) if x or y else file
        photo = rgb(photo, *samples)
        if turn in TURNS:
            photo = photo.transpose(getattr(Image.Transpose, TURNS[turn]))
        box = across.begin, down.begin, across.end, down.end
        photo = photo.resize((across.made, down.made), Image.Resampling.BILINEAR, box=box)
        return photo.crop((across.left, down.left, across.left + size, down.left + size))


def batch(
    paths: Sequence[str | Path], preset: Preset, size: int | None = None
) -> tuple[np.ndarray, np.ndarray, list[Path]]:
    """A batch of photographs; where there are fewer than `size`, they are repeated in turn.

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
    photos = [load(path, preset) for path in files]
    try:
        labels = np.arange(count) % len(files)
        return np.stack(photos)[labels], labels, files
    except (MemoryError, ValueError) as error:
        gib = count * photos[0].nbytes / 2**30
        raise OutOfMemory(f"no memory for a batch of {count}: {gib:.1f} GiB; take a smaller one") from error
