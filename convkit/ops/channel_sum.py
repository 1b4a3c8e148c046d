"""The gradient of a bias: a sum over all but the channels, for convolution and fully connected layers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ..op import Cases, Problem, Shape, draw, extent
from ..options import shape_of


@dataclass(frozen=True)
class ChannelSum(Problem):
    """The gradient of a bias: dy of shape (N, K, ...) summed over all but K."""

    of_parameters: ClassVar[frozenset[str]] = frozenset(("db",))

    N: int
    K: int
    P: int = 1
    Q: int = 1
    rank: int = 4
    dtype: str = "float32"

    @classmethod
    def of(cls, dy_shape: Any, rank: int, dtype: str = "float32") -> ChannelSum:
        letters = "(N, K, P, Q)" if rank == 4 else "(N, K)"
        N, K, *pixels = shape_of("dy", dy_shape, rank, letters)
        P, Q = pixels or (1, 1)
        return cls(N, K, P, Q, rank, dtype)

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        return {"dy": (self.N, self.K, self.P, self.Q)[: self.rank], "db": (self.K,)}

    def flops(self, op: str) -> int:
        return self.N * self.K * self.P * self.Q

    def reduction(self, op: str) -> int:
        return max(1, self.N * self.P * self.Q)


def define(g: ChannelSum, dy: np.ndarray, db: np.ndarray) -> None:
    """The definition of both ops."""
    db[...] = dy.astype(np.float64).sum(axis=(0, *range(2, dy.ndim)))


class Images(Cases):
    """Sums over images and pixels: dy is (N, K, P, Q)."""

    extents = {name: extent(name) for name in ("N", "K", "P", "Q")}

    def __init__(self, layers: Iterable[tuple[str, Problem]]) -> None:
        self._layers = list(layers)

    def layers(self) -> Iterable[tuple[str, Problem]]:
        return self._layers

    def edges(self) -> Iterable[tuple[str, Problem]]:
        for image in (
            (1, 1, 1, 1),
            (3, 7, 5, 1),
            (2, 13, 17, 19),
            (1, 3, 100, 101),
            (17, 301, 1, 2),
            (0, 4, 3, 3),
        ):
            yield "edge", ChannelSum.of(image, 4)

    def data(self) -> Iterable[Problem]:
        return [ChannelSum(3, 5, 4, 3, 4)]

    def bases(self) -> list[Problem]:
        return [ChannelSum(2, 3, 3, 5, 4), ChannelSum(1, 2, 1, 3, 4)]

    def random(self, rng: np.random.Generator) -> Problem:
        N, K, P, Q = draw(rng, 1, 20, 4)
        return ChannelSum(N, K, P, Q, 4)

    def large(self) -> Iterable[tuple[str, Problem]]:
        yield "65,537 channels", ChannelSum(1, 65_537, 1, 2, 4)
        yield "65,537 images", ChannelSum(65_537, 2, 1, 1, 4)

    def huge(self) -> list[Problem]:
        many = 100_000
        return [
            ChannelSum(many, 64, 32, 32, 4),
            ChannelSum(1, many, 100, 100, 4),
            ChannelSum(1, 1, many, many, 4),
        ]


class Rows(Cases):
    """Sums over rows: dy is (N, K)."""

    extents = {name: extent(name) for name in ("N", "K")}

    def layers(self) -> Iterable[tuple[str, Problem]]:
        yield "fc6", ChannelSum.of((128, 4096), 2)

    def edges(self) -> Iterable[tuple[str, Problem]]:
        for row in ((1, 1), (3, 7), (128, 13), (1, 1000), (1001, 3), (0, 4)):
            yield "edge", ChannelSum.of(row, 2)

    def data(self) -> Iterable[Problem]:
        return [ChannelSum(9, 5, 1, 1, 2)]

    def bases(self) -> list[Problem]:
        return [ChannelSum(3, 5, 1, 1, 2)]

    def random(self, rng: np.random.Generator) -> Problem:
        N, K, P, _ = draw(rng, 1, 20, 4)
        return ChannelSum(N * P, K, 1, 1, 2)

    def large(self) -> Iterable[tuple[str, Problem]]:
        yield "65,537 channels", ChannelSum(2, 65_537, 1, 1, 2)
        yield "65,537 rows", ChannelSum(65_537, 3, 1, 1, 2)

    def huge(self) -> list[Problem]:
        return [ChannelSum(10_000_000, 1000, 1, 1, 2), ChannelSum(10, 100_000_000, 1, 1, 2)]
