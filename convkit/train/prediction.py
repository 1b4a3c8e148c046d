"""What a network takes images for: its first classes of each file, with their probabilities."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..network.network import Network
from ..options import integer
from . import photos
from .data import decode
from .errors import BadImage
from .evaluation import filled, require_views, scored
from .inputs import Inputs

#: Images at a time; a plan is made for as many.
_BATCH = 8
#: Weights of red, green and blue in grey, as in JPEG (ITU-R BT.601).
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class Prediction:
    """What a network takes one image for.

    Attributes
    ----------
    path : str
    classes : tuple of (int, str, float)
        Number, name and probability, the most probable first; empty where the image cannot be read.
    reason : str
        Why it cannot be read; empty where it can.
    """

    path: str
    classes: tuple[tuple[int, str, float], ...] = ()
    reason: str = ""


def predict(
    net: Network,
    inputs: Inputs,
    names: Sequence[str],
    paths: Iterable[str | Path],
    *,
    image_shape: tuple[int, int, int],
    square: str = "crop",
    top: int = 5,
    views: int = 1,
) -> Iterator[Prediction]:
    """The first classes of image files, one after the other.

    Parameters
    ----------
    net : Network
    inputs : Inputs
    names : sequence of str
        Of the classes.
    paths : iterable of paths
        Files and folders; folders are searched to any depth. What cannot be read is reported, and the rest
        goes on.
    image_shape : (H, W, C)
        Of the images that the network was trained with. Files are resized to it, and made grey if C is 1:
        light on dark or dark on light as they are.
    square : {"crop", "stretch"}
        As in the recipe's `images`.
    top : int
        Classes of each image; all where there are fewer.
    views : {1, 10}
        As in `evaluate`.

    Yields
    ------
    Prediction
        In the order of the files.
    """
    top = min(integer("top", top, 1), len(names))
    require_views(views)
    batch = 0
    waiting: list[Prediction] = []
    images: list[np.ndarray] = []

    def predicted(batch: int) -> Iterator[Prediction]:
        found = iter(_classes(net, inputs, names, np.stack(images), top, views, batch) if images else ())
        for one in waiting:
            yield one if one.reason else Prediction(one.path, next(found))
        waiting.clear()
        images.clear()

    for path, reason in _found(paths):
        if not reason:
            try:
                images.append(stored(path, image_shape, square))
            except BadImage as error:
                reason = str(error)
        waiting.append(Prediction(str(path), reason=reason))
        if len(images) == _BATCH:
            yield from predicted(_BATCH)
            batch = _BATCH  # the plan that there is
    yield from predicted(batch or len(images))


def _found(paths: Iterable[str | Path]) -> Iterator[tuple[Path, str]]:
    """Each file, or the reason why there is none."""
    for path in paths:
        try:
            yield from ((found, "") for found in photos.find([path]))
        except photos.ImageError as error:
            yield Path(path), str(error)


def stored(path: Path, image_shape: tuple[int, int, int], square: str) -> np.ndarray:
    """A file as a training set would have stored it: uint8 (H, W, C).

    Raises
    ------
    BadImage
        If it cannot be read.
    """
    H, W, C = image_shape
    size = max(H, W)
    pixels = decode.decode(decode.read_file(path), size, square)
    top, left = (size - H) // 2, (size - W) // 2
    pixels = pixels[top : top + H, left : left + W]
    return pixels if C == 3 else grey(pixels)


def grey(pixels: np.ndarray) -> np.ndarray:
    """RGB as grey: uint8 (H, W, 3) to (H, W, 1)."""
    return np.rint(pixels.astype(np.float32) @ _LUMA)[..., None].astype(np.uint8)


def _classes(
    net: Network,
    inputs: Inputs,
    names: Sequence[str],
    images: np.ndarray,
    top: int,
    views: int,
    batch: int,
) -> list[tuple[tuple[int, str, float], ...]]:
    _, logs = scored(net, inputs, filled(images, batch), views)
    probabilities = np.exp(logs[: len(images)])
    # Of equal ones the first class comes first, as in `label_rank`.
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
    return [
        tuple((int(k), names[k], float(row[k])) for k in first) for row, first in zip(probabilities, order)
    ]
