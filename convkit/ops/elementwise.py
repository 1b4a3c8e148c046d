"""Ops that treat each element alone (ReLU, dropout, the update rule): their problem and their cases."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from ..op import Cases, Problem, Shape, draw


@dataclass(frozen=True)
class Elementwise(Problem):
    """An op that treats each element alone: ReLU, dropout, the update rule."""

    dims: Shape
    dtype: str = "float32"

    def __str__(self) -> str:
        return f"x{self.dims}"

    @property
    def size(self) -> int:
        return prod(self.dims)

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        same = dict.fromkeys(("x", "y", "dx", "dy", "w", "dw", "v", "w_new", "v_new", "x_new"), self.dims)
        return {**same, **dict.fromkeys(("finite", "sound", "sound_new", "scale"), (1,))}

    def dtype_of(self, tensor: str) -> str:
        if tensor in ("finite", "sound", "sound_new"):
            return "int32"
        return "float32" if tensor == "scale" else self.dtype

    @property
    def empty(self) -> bool:
        return self.size == 0

    def in_memory(self, shape: Shape) -> Problem:
        return self if prod(shape) == self.size else replace(self, dims=tuple(shape))

    def flops(self, op: str) -> int:
        return self.size * (6 if op == "sgd_momentum" else 1)

    def scalars(self) -> dict[str, int | float]:
        return {"size": self.size}

    def c_type(self, scalar: str) -> str:
        return "long long"


def _elements(g: Any, value: int) -> Problem:
    return Elementwise((value,), g.dtype)


_SHAPES: dict[str, tuple[int, ...]] = {
    "one number": (1,),
    "no axes": (),
    "three": (3,),
    "seven": (7,),
    "four axes": (2, 3, 5, 7),
    "4097": (4097,),
    "100,003": (100_003,),
    "empty": (0, 3),
}


class ElementwiseCases(Cases):
    """What the gate asks.

    Parameters
    ----------
    most : int
        The most elements that it asks about, which is as far as it is cheap to judge. A grid that is too
        small shows at any size beyond its own.
    """

    extents = {"elements": _elements}

    def __init__(self, most: int = 600_000) -> None:
        self._most = most

    def layers(self) -> Iterable[tuple[str, Problem]]:
        yield "conv1's output", Elementwise((1, 96, 55, 55))

    def edges(self) -> Iterable[tuple[str, Problem]]:
        for name, shape in _SHAPES.items():
            yield name, Elementwise(shape)

    def data(self) -> Iterable[Problem]:
        return [Elementwise((5, 67)), Elementwise((43, 3))]

    def bases(self) -> list[Problem]:
        return [Elementwise((3, 5))]

    def tried(self) -> Problem:
        return Elementwise((5, 7, 11))

    def random(self, rng: np.random.Generator) -> Problem:
        return Elementwise(tuple(draw(rng, 1, 9, int(rng.integers(1, 5)))))

    def ladder(self) -> Iterable[tuple[str, Problem]]:
        """Whole blocks, one element more, and octaves up to millions of elements, as far as that is cheap."""
        for exponent in range(6, 18):
            whole, more = 1 << exponent, (1 << exponent) + 1
            if exponent > 12:  # one of the two, in the middle of the octave
                sizes: tuple[int, ...] = (3 * whole // 2 + exponent % 2,)
            else:
                sizes = whole, more
            for size in sizes:
                yield f"{size:,} elements", Elementwise((size,))
        yield f"{self._most:,} elements", Elementwise((self._most,))

    def large(self) -> Iterable[tuple[str, Problem]]:
        return ()

    def huge(self) -> list[Problem]:
        return [Elementwise((10_000_000_000,)), Elementwise((2**31,)), Elementwise((2**31 - 1,))]
