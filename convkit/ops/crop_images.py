"""From stored images to a network's input: `crop_images`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from ..arrays import DTYPES, A
from ..dispatch import Arguments, operation
from ..errors import ShapeError, unknown
from ..op import Cases, Op, Problem, Shape, Tensors, Weights, defines, draw, extent, np_itemsize
from ..options import MAX_OPTION, flag, integer, shape_of
from .rounding import f64

Array = np.ndarray

#: What a mean is of: the image, of whose pixels each has its own; the crop; each channel.
MEANS = ("image", "crop", "channel")
_LEAST, _MOST = -(2**31), 2**31 - 1


@dataclass(frozen=True)
class CropImages(Problem):
    """Crops of `size` x `size` pixels of N images of H x W pixels; the dtype is that of x.

    The kernels' numbers are the mean's extents, `mean_h` and `mean_w`, and whether it moves with the crop,
    `moves`, in place of `mean_of`.
    """

    N: int
    H: int
    W: int
    C: int
    size: int
    mean_of: str = "channel"
    reverse: bool = False
    dtype: str = "float32"

    @classmethod
    def of(
        cls,
        images_shape: Any,
        mean_shape: Any,
        size: int,
        mean_of: str | None = None,
        reverse: bool = False,
        dtype: str = "float32",
    ) -> CropImages:
        N, H, W, C = shape_of("images", images_shape, 4, "(N, H, W, C)")
        size = integer("size", size, 1, MAX_OPTION)
        if dtype not in DTYPES:
            raise unknown("dtype", dtype, DTYPES)
        if mean_of is not None and mean_of not in MEANS:
            raise unknown("mean_of", mean_of, MEANS)
        found = cls(N, H, W, C, size, "image", flag("reverse", reverse), dtype)
        shapes = {kind: replace(found, mean_of=kind).shape("mean") for kind in MEANS}
        if mean_of is not None:
            return replace(found, mean_of=mean_of)  # whether the shape fits is asked with all others
        for kind, shape in shapes.items():
            if shape == tuple(mean_shape):
                return replace(found, mean_of=kind)
        wanted = ", ".join(f"{shape} ({kind})" for kind, shape in shapes.items())
        raise ShapeError(f"mean must have one of the shapes {wanted}, not {tuple(mean_shape)}")

    @property
    def mean_extents(self) -> tuple[int, int]:
        """Rows and columns of the mean."""
        extents = {"image": (self.H, self.W), "crop": (self.size, self.size), "channel": (1, 1)}
        return extents[self.mean_of]

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        return {
            "images": (self.N, self.H, self.W, self.C),
            "crops": (self.N, 3),
            "mean": (self.C, *self.mean_extents),
            "shift": (self.N, self.C),
            "factor": (self.C,),
            "x": (self.N, self.C, self.size, self.size),
        }

    def dtype_of(self, tensor: str) -> str:
        return {"images": "uint8", "crops": "int32", "x": self.dtype}.get(tensor, "float32")

    def bytes(self, *tensors: str) -> int:
        """Of the images no more than the crops."""
        skipped = "images" in tensors and self.H * self.W - min(self.H, self.size) * min(self.W, self.size)
        own = sum(prod(self.shape(t)) * np_itemsize(self.dtype_of(t)) for t in tensors)
        return own - self.N * self.C * skipped

    def scalars(self) -> dict[str, int | float]:
        mean_h, mean_w = self.mean_extents
        return {
            **super().scalars(),
            "mean_h": mean_h,
            "mean_w": mean_w,
            "moves": int(self.mean_of == "image"),
        }

    def flops(self, op: str) -> int:
        """Two additions and a product for each element of x."""
        return 3 * prod(self.shape("x"))


# ---------------------------------------------------------------------------------------------------
# Definition
# ---------------------------------------------------------------------------------------------------
def places(g: CropImages, crop: Array) -> tuple[Array, Array]:
    """Row and column of the image for each row and column of a crop, which may lie outside: int64 (size,)."""
    top, left, flipped = (int(v) for v in crop)
    along = np.arange(g.size, dtype=np.int64)
    return top + along, left + (along[::-1] if flipped else along)


def _gathered(
    g: CropImages, images: Array, crops: Array, mean: Array
) -> Iterable[tuple[int, Array, Array, Array]]:
    """Of each image, (number, where the crop is inside the image, pixels, their mean), in float64 and CHW."""
    mean = f64(mean)
    for n in range(g.N):
        rows, columns = places(g, crops[n])
        inside = ((rows >= 0) & (rows < g.H))[:, None] & ((columns >= 0) & (columns < g.W))
        r, s = np.clip(rows, 0, g.H - 1)[:, None], np.clip(columns, 0, g.W - 1)
        pixels = np.moveaxis(f64(images[n])[r, s], -1, 0)
        yield (
            n,
            inside,
            pixels[::-1] if g.reverse else pixels,
            mean[:, r, s] if g.mean_of == "image" else mean,
        )


def _rounding(
    op: Op, g: CropImages, inputs: Tensors, options: dict[str, Any], values: dict[str, Array]
) -> Weights:
    images, crops, mean = inputs["images"], inputs["crops"], inputs["mean"]
    assert images is not None and crops is not None and mean is not None
    shift, factor = _both(g, inputs["shift"], inputs["factor"])
    magnitude = np.zeros(g.shape("x"))
    for n, inside, pixels, own in _gathered(g, images, crops, mean):
        terms = (pixels + np.abs(own) + np.abs(shift[n])) * np.abs(factor)
        magnitude[n] = np.where(inside, terms, 0)
    return {"x": (4 * magnitude, np.abs(values["x"]))}


def _both(g: CropImages, shift: Array | None, factor: Array | None) -> tuple[Array, Array]:
    """Shift and factor in float64, (N, C, 1, 1) and (C, 1, 1); 0 and 1 where they are not given."""
    added = np.zeros(g.shape("shift")) if shift is None else f64(shift)
    times = np.ones(g.C) if factor is None else f64(factor)
    return added[..., None, None], times[:, None, None]


# ---------------------------------------------------------------------------------------------------
# Cases
# ---------------------------------------------------------------------------------------------------
_EDGES: dict[str, tuple[tuple[int, int, int, int, int], str, bool]] = {
    "a pixel": ((1, 1, 1, 1, 1), "image", False),
    "grey digits": ((9, 8, 8, 1, 8), "image", False),
    "grey, smaller than the crop": ((9, 7, 9, 1, 20), "channel", False),
    "colours, odd extents": ((9, 21, 18, 3, 13), "image", True),
    "colours, smaller than the crop": ((8, 9, 11, 3, 19), "image", False),
    "the mean of the crop": ((8, 40, 37, 3, 33), "crop", True),
    "five channels": ((9, 12, 10, 5, 9), "channel", True),
    "wide": ((8, 2, 300, 3, 70), "crop", False),
    "high": ((8, 150, 3, 3, 40), "image", True),
    "whole registers": ((8, 34, 66, 3, 32), "crop", False),
    "empty batch": ((0, 5, 4, 3, 3), "channel", False),
}


class _Cases(Cases):
    extents = {name: extent(name) for name in ("N", "H", "W", "C", "size")}

    def layers(self) -> Iterable[tuple[str, Problem]]:
        yield "2012", CropImages(2, 256, 256, 3, 224, "crop")
        yield "Caffe", CropImages(1, 256, 256, 3, 227, "image", reverse=True)
        yield "digits", CropImages(64, 28, 28, 1, 28, "channel")

    def edges(self) -> Iterable[tuple[str, Problem]]:
        for name, (extents, mean_of, reverse) in _EDGES.items():
            yield name, CropImages(*extents, mean_of, reverse)

    def data(self) -> Iterable[Problem]:
        return [CropImages(9, 13, 11, 3, 7, "image"), CropImages(8, 6, 9, 3, 8, "crop", reverse=True)]

    def bases(self) -> list[Problem]:
        return [
            CropImages(3, 5, 7, 3, 4, "image"),
            CropImages(2, 4, 3, 2, 5, "crop", reverse=True),
            CropImages(1, 1, 2, 1, 1),
        ]

    def random(self, rng: np.random.Generator) -> Problem:
        N, H, W, C, size = (draw(rng, 1, most, 1)[0] for most in (10, 40, 40, 5, 40))
        return CropImages(N, H, W, C, size, str(rng.choice(MEANS)), bool(rng.integers(2)))

    def large(self) -> Iterable[tuple[str, Problem]]:
        yield "65,537 images", CropImages(65_537, 2, 1, 1, 1, "image")
        yield "65,537 channels", CropImages(1, 1, 2, 65_537, 1)
        yield "65,537 columns", CropImages(2, 1, 65_537, 3, 3, "image")

    def huge(self) -> list[Problem]:
        return [
            CropImages(100_000, 64, 64, 3, 56, "crop"),
            CropImages(1, 100_000, 20_000, 3, 30_000, "image"),
            CropImages(2_000_000, 32, 32, 1, 32),
        ]

    def values(
        self, tensor: str, problem: Any, rng: np.random.Generator, kind: str, fill: Callable[[Any], None]
    ) -> Array | None:
        g: CropImages = problem
        if tensor == "images":
            return np.asarray(rng.integers(0, 256, g.shape(tensor), np.uint8))
        if tensor == "mean":
            return np.asarray(rng.normal(110, 40, g.shape(tensor)))
        if tensor != "crops":
            return None
        crops = np.empty(g.shape(tensor), np.int64)
        for axis, held in enumerate((g.H, g.W)):
            room = held - g.size
            low, high = (-2, room + 2) if room >= 0 else (room, 0)
            crops[:, axis] = rng.integers(low, high + 1, g.N)
        crops[:, 2] = rng.choice([0, 0, 1, 1, 2, -1], g.N)
        if (
            g.N >= 8
        ):  # what a crop must not do to memory, each at another image; the one in the middle is plain
            crops[0] = -g.size // 2, 0, 1
            crops[1] = _LEAST, _MOST, 1
            crops[2, :2] = g.H - 1, g.W - 1
            crops[3, :2] = 1 - g.size, 1 - g.size
            crops[g.N // 2, :2] = 0
            crops[5] = _MOST, _LEAST, _LEAST
            crops[6, 1] = rng.choice([g.W, -g.size])
            crops[-1, :2] = g.H - g.size, g.W - g.size  # to the last byte of all images
        return crops


# ---------------------------------------------------------------------------------------------------
# Op
# ---------------------------------------------------------------------------------------------------
@defines(
    "crop_images", CropImages, ("images", "crops", "mean", "shift", "factor"), ("x",),
    optional=("shift", "factor"), slices="rows", whole=("mean", "factor"), direction="fwd",
    dtypes={
        "images": "uint8", "crops": "int32", **dict.fromkeys(("mean", "shift", "factor"), "real"),
    },
    cases=_Cases(), rounding=_rounding,
)  # fmt: skip
def _define(
    g: CropImages,
    images: Array,
    crops: Array,
    mean: Array,
    shift: Array | None,
    factor: Array | None,
    x: Array,
) -> None:
    added, times = _both(g, shift, factor)
    for n, inside, pixels, own in _gathered(g, images, crops, mean):
        x[n] = np.where(inside, (pixels - own + added[n]) * times, 0)


@operation
def crop_images(
    images: A,
    crops: A,
    mean: A,
    shift: A | None = None,
    factor: A | None = None,
    *,
    size: int,
    mean_of: str | None = None,
    reverse: bool = False,
    dtype: str = "float32",
    impl: str | None = None,
    out: A | None = None,
) -> A:
    """A network's input from stored images: crops, mirrored or not, less a mean, shifted, scaled.

    ``x[n, c, i, j] = (images[n, top + i, left + j, c] - mean + shift[n, c]) * factor[c]``, where ``top, left,
    flipped = crops[n]``. Where `flipped` is not 0, ``size - 1 - j`` stands in the place of ``j``.

    Parameters
    ----------
    images : array of uint8, (N, H, W, C)
    crops : array of int32, (N, 3)
        Top, left and flipped of each. A crop may reach beyond the image, or lie outside: there x is exactly
        0, whatever mean, shift and factor are.
    mean : array of real numbers, (C, H, W), (C, size, size) or (C, 1, 1)
        (C, H, W): of the image; the pixel's own mean is subtracted, wherever the crop is.
        (C, size, size): of the crop; what is subtracted does not depend on where the crop is, nor on
        `flipped`.
        (C, 1, 1): of each channel.
    shift : array of real numbers, (N, C), optional
        Colour noise of each image.
    factor : array of real numbers, (C,), optional
    size : int
        Height and width of the crops, in pixels.
    mean_of : {"image", "crop", "channel"}, optional
        What the mean is of; by default as its shape says, and "image" where H, W and `size` are equal.
    reverse : bool
        Whether x has the channels in reverse order (BGR of RGB). Mean, shift and factor are in the order of
        x.
    dtype : {"float32", "float16", "bfloat16", "float64"}
        Of x. It is computed in float32, or float64 for float64; mean, shift and factor are cast to float32.

    Returns
    -------
    x : array of `dtype`, (N, C, size, size)
    """
    a = Arguments("crop_images", images=images, crops=crops, mean=mean, shift=shift, factor=factor)
    problem = CropImages.of(a.images.shape, a.mean.shape, size, mean_of, reverse, dtype)
    with np.errstate(over="ignore"):  # a float64 beyond float32 is an infinity there
        return a.run(problem, out=out, impl=impl)
