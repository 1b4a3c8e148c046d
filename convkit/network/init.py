"""How parameters start: each class fills an array of a given shape with float32 values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..op import Shape


@dataclass(frozen=True)
class Normal:
    """Normal values with mean 0.

    Parameters
    ----------
    sigma : float
        Standard deviation.
    """

    sigma: float

    def fill(self, rng: np.random.Generator, shape: Shape, fan_in: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32) * np.float32(self.sigma)

    def __str__(self) -> str:
        return f"normal, sigma {self.sigma:g}"


@dataclass(frozen=True)
class Constant:
    """One value everywhere.

    Parameters
    ----------
    value : float
    """

    value: float

    def fill(self, rng: np.random.Generator, shape: Shape, fan_in: int) -> np.ndarray:
        return np.full(shape, self.value, np.float32)

    def __str__(self) -> str:
        return f"{self.value:g}"


@dataclass(frozen=True)
class FanInUniform:
    """Uniform on +-1/sqrt(fan in): torch.nn's default for convolutions and linear layers."""

    def fill(self, rng: np.random.Generator, shape: Shape, fan_in: int) -> np.ndarray:
        bound = 1 / np.sqrt(fan_in)
        return rng.uniform(-bound, bound, shape).astype(np.float32)

    def __str__(self) -> str:
        return "uniform, +-1/sqrt(fan in)"


@dataclass(frozen=True)
class He:
    """Normal values with mean 0 and standard deviation sqrt(2/fan in).

    Activations then keep their scale through any number of layers with ReLUs.

    Source
    ------
    He, Zhang, Ren, Sun, "Delving deep into rectifiers", ICCV 2015, equation 10.
    """

    def fill(self, rng: np.random.Generator, shape: Shape, fan_in: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / fan_in))

    def __str__(self) -> str:
        return "normal, sigma sqrt(2/fan in)"


Init = Normal | Constant | FanInUniform | He
