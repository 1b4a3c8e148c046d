"""From stored images to a network's input: `Inputs`, as a recipe and a preset have it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import arrays
from ..errors import OptionError, ShapeError
from ..network.presets import Preset
from ..ops.crop_images import crop_images
from .data.dataset import Statistics
from .errors import DataError
from .recipe import Recipe


class Inputs:
    """Makes batches of a network's input from stored images.

    The input is (pixel - mean + colour noise) * scale / standard deviation: the mean is the recipe's choice,
    scale and standard deviation are the preset's, and so is the order of channels.

    Parameters
    ----------
    preset : Preset
        Of the network: its image size and `preprocess` count. Of the preset's colours the first C.
    recipe : Recipe
        `images`, and the dtype of the network.
    statistics : Statistics or None
        Of the training set; not needed where `needs_statistics` says so.
    image_shape : (H, W, C)
        Of the stored images. A network's input that is larger has zeros around the image.
    device : str
        Where the input is made.

    Raises
    ------
    DataError
        If statistics are needed and not given, or are those of images of another shape.
    """

    def __init__(
        self,
        preset: Preset,
        recipe: Recipe,
        statistics: Statistics | None,
        image_shape: tuple[int, int, int],
        device: str = "cpu",
    ) -> None:
        self._shape, self._size = image_shape, preset.image_size
        self._rescale = recipe.images.colour_rescale
        self._dtype, self._device = recipe.network.dtype, device
        self._reverse = preset.preprocess.order == "BGR"
        if self.needs_statistics(recipe):
            if statistics is None:
                raise DataError("the recipe's mean or colour noise needs the statistics of the training set")
            if statistics.mean.shape != tuple(image_shape):
                raise DataError(
                    f"the statistics are those of images of shape {statistics.mean.shape}, not {image_shape}"
                )
        self._statistics = statistics
        how, C = preset.preprocess, image_shape[2]
        self._factor = how.scale / np.array(how.std[:C])
        self._mean_of, mean = self._mean(preset, recipe)
        self._mean_array = self._put(np.ascontiguousarray(mean, np.float32))
        self._factors: dict[float, Any] = {}

    @staticmethod
    def needs_statistics(recipe: Recipe) -> bool:
        """Whether a recipe asks for the mean or the principal components of the training set's colours."""
        noise = [recipe.images.colour_noise, *(stage.colour_noise or 0.0 for stage in recipe.schedule)]
        return recipe.images.mean in ("image", "channel") or any(noise)

    def train(
        self,
        images: Any,
        crops: np.ndarray,
        normals: np.ndarray | None = None,
        noise: float = 0.0,
        *,
        out: Any = None,
    ) -> Any:
        """The input of a step of training.

        Parameters
        ----------
        images : array of uint8, (n, H, W, C)
            On the CPU, or where the input is made.
        crops : int32 array, (n, 3)
            Top, left, flipped.
        normals : array, (n, 3), optional
            Normal numbers of each image; needed where `noise` is not 0. Of images of one channel the first
            alone counts: their noise is a change of brightness.
        noise : float
            Times a normal number, times the standard deviation along each principal component. Where the
            recipe has `colour_rescale`, the input is also divided by 1 + noise.
        out : array, optional
            To be filled: the network's own (`Network.inputs`).

        Returns
        -------
        x : array, (n, C, size, size)
        """
        return self._crop(images, crops, self._shift(normals, noise), noise if self._rescale else 0.0, out)

    def centre(self, images: Any, *, out: Any = None) -> Any:
        """The crop in the centre, for validation; parameters and result as of `train`."""
        return next(self.views(images, 1, out=out))

    def views(self, images: Any, count: int, *, out: Any = None) -> Iterator[Any]:
        """The crops of which a test averages the predictions, in the order of the authors' code.

        Parameters
        ----------
        images : array of uint8, (n, H, W, C)
        count : int
            1: the centre. 10: top left, top right, centre, bottom left, bottom right; then these mirrored.
        out : array, optional
            Filled again by each view.

        Yields
        ------
        x : array, (n, C, size, size)
        """
        for crop in self.places(count):
            crops = np.tile(np.array(crop, np.int32), (len(images), 1))
            yield self._crop(images, crops, None, 0.0, out)

    def places(self, count: int) -> list[tuple[int, int, int]]:
        """(top, left, flipped) of each of 1 or 10 views.

        Raises
        ------
        OptionError
            For another number.
        """
        if count not in (1, 10):
            raise OptionError(f"views must be 1 or 10, not {count!r}")
        bottom, right = (extent - self._size for extent in self._shape[:2])
        centre = bottom // 2, right // 2
        if count == 1:
            return [(*centre, 0)]
        corners = [(0, 0), (0, right), centre, (bottom, 0), (bottom, right)]
        return [(*place, flipped) for flipped in (0, 1) for place in corners]

    # -- what is subtracted, added, multiplied ---------------------------------------------------------
    def _mean(self, preset: Preset, recipe: Recipe) -> tuple[str, np.ndarray]:
        """What the mean is of, and the mean in the order of x's channels."""
        how, C, images = preset.preprocess, self._shape[2], recipe.images
        if images.mean == "none":
            return "channel", np.zeros((C, 1, 1))
        if images.mean == "preset":
            return "channel", (np.array(how.mean[:C]) / how.scale)[:, None, None]
        assert self._statistics is not None
        mean = np.moveaxis(self._statistics.mean, -1, 0).astype(np.float64)
        mean = mean[::-1] if self._reverse else mean
        if images.mean == "channel":
            return "channel", mean.mean(axis=(1, 2), keepdims=True)
        if images.mean_at_crop:
            return "image", mean
        ((top, left, _),) = self.places(1)
        rows, columns = (
            np.clip(np.arange(self._size) + first, 0, extent - 1)  # beyond the image: as at its edge
            for first, extent in zip((top, left), self._shape)
        )
        return "crop", mean[:, rows[:, None], columns]

    def _shift(self, normals: np.ndarray | None, noise: float) -> np.ndarray | None:
        if not noise:
            return None
        if normals is None or self._statistics is None:
            raise OptionError("colour noise needs normal numbers, and the statistics of the training set")
        stdevs, vectors = (
            a.astype(np.float64) for a in (self._statistics.stdevs, self._statistics.eigenvectors)
        )
        along = noise * stdevs * np.asarray(normals)[:, : len(stdevs)]
        # One addition after the other: the bits of a BLAS depend on how many rows there are.
        shift = np.zeros((len(along), len(vectors)))
        for component, vector in enumerate(vectors.T):
            shift += along[:, component, None] * vector
        return np.ascontiguousarray(shift[:, ::-1] if self._reverse else shift, np.float32)

    def _crop(self, images: Any, crops: np.ndarray, shift: np.ndarray | None, noise: float, out: Any) -> Any:
        if tuple(images.shape[1:]) != tuple(self._shape):
            raise ShapeError(f"images must have shape (n, *{tuple(self._shape)}), not {tuple(images.shape)}")
        if noise not in self._factors:
            self._factors[noise] = self._put((self._factor / (1 + noise)).astype(np.float32))
        return crop_images(
            self._put(images), self._put(crops), self._mean_array, self._put(shift), self._factors[noise],
            size=self._size, mean_of=self._mean_of, reverse=self._reverse, dtype=self._dtype, out=out,
        )  # fmt: skip

    def _put(self, values: Any) -> Any:
        """An array where the input is made."""
        if values is None or self._device == "cpu" or not isinstance(values, np.ndarray):
            return values
        array = arrays.empty(values.shape, values.dtype.name, self._device)
        arrays.assign(array, values)
        return array
