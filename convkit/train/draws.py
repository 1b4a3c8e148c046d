"""What is random in the images of training: their order, crops, flips and colours, from Philox.

Every number is a function of (seed, epoch, image) alone, so there is no state to keep: a run that is
resumed, or that reads with other workers or on other ranks, sees the same images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..ops.philox import philox

#: The last word of the counter: what the numbers are for.
_ORDER, _CROP, _COLOUR = 1, 2, 3
_MASK = 0xFFFFFFFF


@dataclass(frozen=True)
class Crops:
    """How images are cut at random.

    Attributes
    ----------
    size : int
        Height and width of the crop.
    padding : int
        Pixels by which a crop may reach beyond the image, on each side.
    flip : bool
        Whether half of them are mirrored.
    group : int
        Images, in the order of the epoch, that share a crop and a flip; 1 as a rule.
    """

    size: int
    padding: int = 0
    flip: bool = True
    group: int = 1


def _words(seed: int, epoch: int, numbers: np.ndarray, purpose: int) -> tuple[np.ndarray, ...]:
    numbers = np.asarray(numbers, np.uint64)
    same = np.ones_like(numbers)
    counter = (
        numbers & np.uint64(_MASK),
        numbers >> np.uint64(32),
        same * np.uint64(epoch),
        same * np.uint64(purpose),
    )
    return philox(counter, (seed & _MASK, seed >> 32))


def order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of an epoch: a permutation of range(count), int64.

    Parameters
    ----------
    seed : int
        0 <= seed < 2^64.
    epoch : int
        From 1 on.
    count : int
    """
    high, low, _, _ = _words(seed, epoch, np.arange(count), _ORDER)
    return np.argsort((high << np.uint64(32)) | low, kind="stable")


def crops(
    seed: int, epoch: int, positions: np.ndarray, indices: np.ndarray, extent: tuple[int, int], how: Crops
) -> np.ndarray:
    """Crops of some images of an epoch: int32 (n, 3), each (top, left, flipped).

    Parameters
    ----------
    seed, epoch : int
    positions, indices : array of integers, (n,)
        The images' places in the epoch's order, which decide in groups, and their numbers, which decide
        where `how.group` is 1.
    extent : (H, W)
        Of the images.
    how : Crops
    """
    drawn_by = indices if how.group == 1 else np.asarray(positions) // how.group
    a, b, c, _ = _words(seed, epoch, drawn_by, _CROP)
    found = np.empty((len(drawn_by), 3), np.int32)
    for axis, word in enumerate((a, b)):
        places = extent[axis] + 2 * how.padding - how.size + 1
        found[:, axis] = ((word * np.uint64(places)) >> np.uint64(32)).astype(np.int64) - how.padding
    found[:, 2] = (c & np.uint64(1)).astype(np.int32) if how.flip else 0
    return found


def normals(seed: int, epoch: int, indices: np.ndarray) -> np.ndarray:
    """Three independent normal numbers for each image, float64 (n, 3): by Box and Muller's transform."""
    a, b, c, d = _words(seed, epoch, indices, _COLOUR)
    scale = 2.0**-32
    radius = np.sqrt(-2 * np.log((a + 0.5) * scale)), np.sqrt(-2 * np.log((c + 0.5) * scale))
    angle = 2 * np.pi * b * scale, 2 * np.pi * d * scale
    return np.stack(
        [radius[0] * np.cos(angle[0]), radius[0] * np.sin(angle[0]), radius[1] * np.cos(angle[1])], axis=1
    )
