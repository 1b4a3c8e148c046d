"""Images that can be learned in a few steps, made from a seed: nothing is downloaded, no package is needed.

Each class is a pattern of coarse patches; an image is the pattern of its class, shifted, with noise.
"""

from __future__ import annotations

import numpy as np

from ..network.presets import Preset
from ..options import integer

#: Classes of the images, patches along a side, grey levels of noise, and the part of a patch that an image is
#: shifted by at the most.
CLASSES, PATCHES, NOISE, SHIFT = 4, 8, 32.0, 0.5


class Patterns:
    """Batches of images of a few classes.

    Parameters
    ----------
    preset : Preset
        Its image size and `preprocess` are followed, as for photographs.
    seed : int
        The same seed gives the same batches.
    classes : int
    """

    def __init__(self, preset: Preset, seed: int = 0, classes: int = CLASSES) -> None:
        self.preset, self.seed, self.classes = preset, integer("seed", seed, 0), classes
        rng = np.random.default_rng([self.seed, 0])
        self._coarse = rng.integers(0, 256, (classes, 3, PATCHES, PATCHES)).astype(np.float32)

    def batch(self, number: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """One batch; each number is another one.

        Parameters
        ----------
        number, size : int

        Returns
        -------
        x : float32 array, (size, 3, image_size, image_size)
        labels : int64 array, (size,)
        """
        rng = np.random.default_rng([self.seed, 1, number])
        how, extent = self.preset.preprocess, self.preset.image_size
        labels = rng.permutation(np.arange(size) % self.classes)
        x = np.empty((size, 3, extent, extent), np.float32)
        mean, std = (np.array(v, np.float32)[:, None, None] for v in (how.mean, how.std))
        most = int(SHIFT * extent / PATCHES)
        for n, label in enumerate(labels):
            down, across = rng.integers(0, most + 1, 2)
            rows, columns = (
                ((np.arange(extent) + by) * PATCHES // extent) % PATCHES for by in (down, across)
            )
            pixels = self._coarse[label][:, rows[:, None], columns]
            pixels = np.clip(pixels + NOISE * rng.standard_normal(pixels.shape, np.float32), 0, 255)
            x[n] = (pixels * np.float32(how.scale) - mean) / std
        return x, labels
