"""A network's input from stored images in C++: native/kernels/crop_images.cpp."""

from __future__ import annotations

from collections.abc import Callable

from ..ops.crop_images import CropImages
from .native_call import STORAGE, compiled, kernel


@compiled("crop_images", name="rows", dtypes=STORAGE)
def crop_images(g: CropImages) -> Callable[..., None]:
    extents = (g.N, g.H, g.W, g.C, g.size, *g.mean_extents)
    return kernel("crop_images_rows", g.dtype, extents, g.mean_of == "image", g.reverse)
