"""Pictures inside the page: images as they are stored, and the first layer's filters."""

from __future__ import annotations

import base64
import io
import math
from typing import Any

import numpy as np

from ...bench.show.page.markup import Markup, tag
from ..data.pillow import pillow

#: Images of at most this many pixels a side are kept without loss, and are enlarged with sharp edges.
SMALL = 64
_QUALITY = 85
#: Pixels between two filters.
_GAP = 1


def image(pixels: np.ndarray, alt: str) -> Markup:
    """An image in the page.

    Parameters
    ----------
    pixels : uint8 array, (H, W, C)
        C is 1 (grey), 3 (RGB) or 4 (RGB and opacity).
    alt : str
        What it shows, for those who do not see it.
    """
    H, W, C = pixels.shape
    small = max(H, W) <= SMALL or C == 4
    options: dict[str, Any] = {"format": "PNG"} if small else {"format": "JPEG", "quality": _QUALITY}
    file = io.BytesIO()
    Image = pillow("showing images", "train")
    Image.fromarray(np.ascontiguousarray(pixels[..., 0] if C == 1 else pixels)).save(file, **options)
    kind = options["format"].lower()
    source = f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
    return tag("img", src=source, alt=alt, width=W, height=H, class_="sharp" if small else None)


def filters(weights: np.ndarray, columns: int = 0) -> np.ndarray:
    """Filters side by side, each on a scale of its own: grey is 0, the largest magnitude black or white.

    Parameters
    ----------
    weights : float array, (K, C, R, S)
        C is 1 or 3.
    columns : int
        0: as many as fill the rows, and make the picture about twice as wide as high.

    Returns
    -------
    picture : uint8 array, (rows * (R + 1) - 1, columns * (S + 1) - 1, 4)
        Red, green, blue, opacity: between the filters nothing hides what is behind.
    """
    K, C, R, S = weights.shape
    columns = columns or _columns(K, math.sqrt(2 * K * R / S))
    rows = math.ceil(K / columns)
    largest = np.abs(weights).max(axis=(1, 2, 3), keepdims=True)
    scaled = np.divide(weights, largest, out=np.zeros_like(weights, np.float64), where=largest > 0)
    values = np.rint(127.5 + 127.5 * scaled).astype(np.uint8).transpose(0, 2, 3, 1)
    picture = np.zeros((rows * (R + _GAP) - _GAP, columns * (S + _GAP) - _GAP, 4), np.uint8)
    for number, pixels in enumerate(np.broadcast_to(values, (K, R, S, 3)) if C == 1 else values):
        top, left = (number // columns) * (R + _GAP), (number % columns) * (S + _GAP)
        picture[top : top + R, left : left + S, :3] = pixels
        picture[top : top + R, left : left + S, 3] = 255
    return picture


def _columns(count: int, wanted: float) -> int:
    """The divisor of `count` nearest to `wanted` by its ratio; where none is near, the next number."""
    divisors = (d for d in range(count, 0, -1) if count % d == 0)
    nearest = min(divisors, key=lambda d: round(abs(math.log(d / wanted)), 9))
    return nearest if wanted / 1.5 <= nearest <= wanted * 1.5 else max(1, min(count, math.ceil(wanted)))
