"""Dropout: `dropout_fprop`, `dropout_dgrad`. The mask is computed, never stored."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arrays import A
from ..dispatch import Arguments, operation
from ..errors import OptionError
from ..op import defines
from ..options import finite, integer
from .elementwise import Elementwise, ElementwiseCases
from .philox import dropped
from .rounding import few

Array = np.ndarray


class _Cases(ElementwiseCases):
    options = tuple(
        {"p": p, "seed": seed, "offset": offset, "scale": scale}
        for p, seed, offset, scale in (
            (0.5, 0, 0, 2.0),
            (0.0, 1, 0, 1.0),
            (1.0, 2, 0, 0.0),
            (0.5, 2**64 - 1, 12345, 1.0),
            (0.1, 2**32 + 7, 2**32 - 3, 1 / 0.9),  # the counter's low word runs over
            (1e-9, 3, 2**40 + 1, 1.0),
            (0.75, 0x0123456789ABCDEF, 2**63 - 2**20, 4.0),
            (0.0, 4, 7, 2.0),
        )
    )

    def random_options(self, rng: np.random.Generator) -> dict[str, Any]:
        seed, offset = int(rng.integers(2**63)), int(rng.integers(2**33))
        return {"p": float(rng.random()), "seed": seed, "offset": offset}


_OPTIONS = ("p", "seed", "offset", "scale")


# Not cut into slices: an element's number counts.
@defines(
    "dropout_fprop", Elementwise, ("x",), ("y",), options=_OPTIONS, inplace=True, cases=_Cases(), rounding=few
)
def _fprop(g: Elementwise, x: Array, y: Array, p: float, seed: int, offset: int, scale: float) -> None:
    y[...] = np.where(dropped(g.size, p, seed, offset).reshape(x.shape), 0, x.astype(np.float64) * scale)


@defines(
    "dropout_dgrad",
    Elementwise,
    ("dy",),
    ("dx",),
    options=_OPTIONS,
    inplace=True,
    cases=_Cases(),
    rounding=few,
)
def _dgrad(g: Elementwise, dy: Array, dx: Array, p: float, seed: int, offset: int, scale: float) -> None:
    _fprop(g, dy, dx, p, seed, offset, scale)


@operation
def dropout_fprop(
    x: A,
    *,
    p: float,
    seed: int,
    offset: int = 0,
    scale: float | None = None,
    impl: str | None = None,
    out: A | None = None,
) -> A:
    """Dropout: each element is zeroed with probability p, the others are multiplied by `scale`.

    The mask is not stored: it is a function of (seed, offset, index), so that the backward pass, another
    machine, or a replay of the run makes the same one. Element i takes word i % 4 of Philox4x32-10 with
    counter offset + i // 4 and key seed, and is dropped where that word is below p * 2^32.

    Parameters
    ----------
    x : array, of any shape
        `out` may be `x` itself.
    p : float
        Probability of a zero, 0 <= p <= 1.
    seed : int
        0 <= seed < 2^64.
    offset : int
        First counter, 0 <= offset < 2^63. A call uses ceil(size / 4) of them; start the next one behind.
    scale : float, optional
        1 / (1 - p) by default ("inverted" dropout: nothing to do at test time). The 2012 code has 1, and
        multiplies by 1 - p at test time.

    Returns
    -------
    y : array, of the shape of x

    Source
    ------
    Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    a = Arguments("dropout_fprop", x=x)
    return a.run(Elementwise(a.x.shape, a.dtype), out=out, impl=impl, **_dropout(p, seed, offset, scale))


@operation
def dropout_dgrad(
    dy: A,
    *,
    p: float,
    seed: int,
    offset: int = 0,
    scale: float | None = None,
    impl: str | None = None,
    out: A | None = None,
) -> A:
    """Gradient of `dropout_fprop` with the same p, seed, offset and scale: the same mask, applied to dy."""
    a = Arguments("dropout_dgrad", dy=dy)
    return a.run(Elementwise(a.dy.shape, a.dtype), out=out, impl=impl, **_dropout(p, seed, offset, scale))


def _dropout(p: float, seed: int, offset: int, scale: float | None) -> dict[str, Any]:
    p = finite("p", p, 0)
    if p > 1:
        raise OptionError(f"p must be a probability, not {p}")
    if scale is None:
        scale = 1 / (1 - p) if p < 1 else 0.0
    seed, offset = integer("seed", seed, 0), integer("offset", offset, 0)
    if seed >= 2**64 or offset >= 2**63:
        raise OptionError(f"seed must be below 2^64 and offset below 2^63, not {seed} and {offset}")
    return {"p": p, "seed": seed, "offset": offset, "scale": finite("scale", scale)}
