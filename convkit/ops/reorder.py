"""The same tensor in another layout or dtype: `reorder`. A plan places it where two of them meet."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ..arrays import A, dtype_name, view
from ..bound import unkeyed
from ..dispatch import Arguments, operation
from ..layouts import Tensor
from ..op import PAIRS, Cases, Problem, Shape, defines, draw, extent
from ..options import shape_of
from .rounding import exact

Array = np.ndarray


@dataclass(frozen=True)
class Reorder(Problem):
    """The same tensor in another layout; of a pair dtype, x is of the second, and y of the first.

    Weights are such a tensor too: (K, C/groups, R, S) for (N, C, H, W).
    """

    of_parameters: ClassVar[frozenset[str]] = frozenset(("x",))

    N: int
    C: int
    H: int
    W: int
    dtype: str = "float32"

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        return dict.fromkeys(("x", "y"), (self.N, self.C, self.H, self.W))

    def flops(self, op: str) -> int:
        return 0


class _Cases(Cases):
    extents = {name: extent(name) for name in ("N", "C", "H", "W")}

    def layers(self) -> Iterable[tuple[str, Problem]]:
        yield "pool5's output", Reorder(2, 256, 6, 6)

    def edges(self) -> Iterable[tuple[str, Problem]]:
        for extents in (
            (1, 1, 1, 1),
            (2, 16, 5, 7),
            (1, 35, 3, 16),
            (3, 3, 9, 17),
            (1, 50, 1, 33),
            (0, 16, 2, 2),
            (2, 72, 8, 10),
            (1, 67, 9, 15),
        ):
            yield "edge", Reorder(*extents)

    def data(self) -> Iterable[Problem]:
        return [Reorder(2, 21, 3, 5)]

    def bases(self) -> list[Problem]:
        return [Reorder(2, 3, 3, 5), Reorder(1, 1, 2, 1)]

    def random(self, rng: np.random.Generator) -> Problem:
        return Reorder(*draw(rng, 1, 40, 4))

    def large(self) -> Iterable[tuple[str, Problem]]:
        yield "65,537 images", Reorder(65_537, 1, 1, 1)
        yield "65,537 channels", Reorder(1, 65_537, 1, 1)

    def huge(self) -> list[Problem]:
        return [Reorder(100_000, 3, 32, 32), Reorder(512, 512, 200, 200), Reorder(1, 16, 100_000, 10_000)]


# An implementation's own layout says from which layout to which.
@defines("reorder", Reorder, ("x",), ("y",), slices="rows", direction="fwd", cases=_Cases(), rounding=exact)
def _define(g: Reorder, x: Array, y: Array) -> None:
    y[...] = x


@operation
def reorder(x: A, *, impl: str | None = None, out: A | None = None) -> A:
    """The same tensor in another layout: that of `out`.

    Parameters
    ----------
    x : array or `convkit.layouts.Tensor`, (N, C, H, W)
    out : array or `convkit.layouts.Tensor`, (N, C, H, W), optional
        Where x is float32, it may be float16 or bfloat16: each element is rounded to nearest, ties to even.

    Returns
    -------
    y : array or `convkit.layouts.Tensor`, (N, C, H, W)
    """
    a = Arguments("reorder", x=x)
    N, C, H, W = shape_of("x", tuple(a.x.shape), 4, "(N, C, H, W)")
    return a.run(Reorder(N, C, H, W, _with(a.dtype, out)), out=out, impl=impl)


def _with(dtype: str, out: Any) -> str:
    """The problem's dtype for an x of this one: a pair where `out` is of another one that fits."""
    if out is None:
        return dtype
    array = out.data if isinstance(out, Tensor) else view("out (y)", out, write=True)
    if (pair := f"{dtype_name('out (y)', array)}/{dtype}") not in PAIRS:
        return dtype
    unkeyed()
    return pair
