"""Image files by Pillow: the range of their samples, their orientation, and what is wrong with them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ...errors import ConvkitError, MissingExtra
from ..errors import BadImage

#: Keeps what Pillow logs of a damaged file off stderr. Other handlers get it all the same.
_SILENT = logging.NullHandler()
#: Formats whose 16-bit samples have a range that Pillow does not report.
_UNSCALED = ("FITS", "MCIDAS")
#: Formats whose mode "I" holds 16-bit samples: Pillow scales them to 65535.
_SIXTEEN_BITS_IN_I = ("PNG", "PPM")
#: EXIF's orientations, and Pillow's names of the turns that undo them.
TURNS = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE",
    6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90",
}  # fmt: skip
#: Those that exchange width and height.
SIDEWAYS = (5, 6, 7, 8)
#: Tags of EXIF and TIFF.
_BITS, _PHOTOMETRIC, _ORIENTATION, _SAMPLE_FORMAT = 258, 262, 274, 339
_WHITE_IS_ZERO, _SIGNED = 0, 2


def pillow(purpose: str = "reading photographs", extra: str = "images") -> Any:
    """The module `PIL.Image`.

    Raises
    ------
    MissingExtra
        Without Pillow.
    """
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtra(purpose, "Pillow", extra) from None
    return Image


def one_line(text: object) -> str:
    """A text without its line breaks."""
    return " ".join(str(text).split())


@contextmanager
def explained() -> Iterator[None]:
    """What Pillow raises inside becomes a `BadImage`; what it warns of, or logs, is kept from stderr."""
    logging.getLogger("PIL").addHandler(_SILENT)
    try:
        with warnings.catch_warnings():  # Pillow warns of oddities in files that it can read
            warnings.simplefilter("ignore")
            yield
    except (ConvkitError, MemoryError):
        raise
    except Exception as error:  # a damaged file makes Pillow raise anything: KeyError, struct.error, ...
        reason = one_line(error) or type(error).__name__
        raise BadImage(f"not an image that can be read: {reason}") from error


def orientation(exif: Callable[[], Any]) -> int:
    """EXIF's orientation, 1 to 8; 1, which is upright, where there is none or it cannot be read.

    Parameters
    ----------
    exif : callable
        Returns Pillow's `Exif`.
    """
    try:
        value = exif().get(_ORIENTATION)
    except Exception:  # damaged EXIF data make Pillow raise anything; the pixels may be whole all the same
        return 1
    return value if value in TURNS else 1


def white(file: Any) -> tuple[int, bool]:
    """(white, inverted): the value of white in an image of more than 8 bits, or 0; whether it is black.

    Raises
    ------
    BadImage
        Where the file does not say what is white.
    """
    tags = getattr(file, "tag_v2", {})
    inverted = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    advice = "what is white is not written in the file; save it with 8 or 16 bits"
    if _SIGNED in tags.get(_SAMPLE_FORMAT, ()):
        raise BadImage(f"it holds signed integers, and {advice}")
    if file.mode.startswith("I;16"):
        if file.format in _UNSCALED:
            raise BadImage(f"it holds 16-bit measurements, and {advice}")
        return (4095 if tags.get(_BITS) == (12,) else 65535), inverted
    if file.mode == "I":
        if file.format in _SIXTEEN_BITS_IN_I:
            return 65535, inverted
        raise BadImage(f"it holds 32-bit integers, and {advice}")
    if file.mode == "F":
        low, high = file.getextrema()
        if not 0 <= low <= high <= 1:
            raise BadImage(f"it holds floating point from {low:g} to {high:g}, not from 0 to 1, and {advice}")
        return 1, inverted
    return 0, False


def rgb(photo: Any, white: int, inverted: bool) -> Any:
    """An image, or a part of one, as RGB of 8 bits; `white` and `inverted` are what `white` says of it."""
    if white:
        photo = _eight_bits(photo, white, inverted)
    return photo if photo.mode == "RGB" else photo.convert("RGB")


def _eight_bits(photo: Any, white: int, inverted: bool) -> Any:
    """A grey image of mode "L", scaled so that `white` is 255 (or 0, where that is inverted)."""
    values = np.asarray(photo)
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():  # `getextrema` passes over NaN
            raise BadImage("it holds NaN")
        grey = (values * np.float32(255) + np.float32(0.5)).astype(np.uint8)
    else:
        table = (np.arange(white + 1) * 255 + white // 2) // white
        grey = table.astype(np.uint8)[values]
    return pillow().fromarray(255 - grey if inverted else grey)
