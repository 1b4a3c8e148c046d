"""What a batch's losses and label ranks come to: `loss_summary`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..arrays import A
from ..dispatch import Arguments, operation
from ..op import Cases, Op, Problem, Shape, Tensors, Weights, defines, draw, extent
from ..options import shape_of
from .rounding import exact, f64

Array = np.ndarray


@dataclass(frozen=True)
class LossSummary(Problem):
    """Losses and label ranks of N rows in a few numbers; the dtype is that of the losses."""

    N: int
    dtype: str = "float32"

    @classmethod
    def of(cls, loss_shape: Any, dtype: str = "float32") -> LossSummary:
        (N,) = shape_of("loss", loss_shape, 1, "(N,)")
        return cls(N, dtype)

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        return {"loss": (self.N,), "rank": (self.N,), "total": (1,), "errors": (2,), "finite": (1,)}

    def dtype_of(self, tensor: str) -> str:
        own = {"rank": "int32", "total": "float64", "errors": "int64", "finite": "int32"}
        return own.get(tensor, self.dtype)

    @property
    def empty(self) -> bool:
        """Never: of no rows, `finite` is 1."""
        return False

    def flops(self, op: str) -> int:
        """An addition for each loss."""
        return self.N

    def reduction(self, op: str) -> int:
        return max(1, self.N)


def _rounding(
    op: Op, g: LossSummary, inputs: Tensors, options: dict[str, Any], values: dict[str, Array]
) -> Weights:
    # The sum is in float64 whatever the losses are, and the definition's own as well: twice 2^-53, here in
    # units of the u that the gate takes from the losses' dtype.
    unit = 1 if g.dtype == "float64" else 2.0**-28
    scale = np.sqrt(np.sum(f64(inputs["loss"]) ** 2, keepdims=True)) + np.abs(values["total"])
    total = (4 * unit * np.sqrt(g.reduction(op.name)) * scale, scale)
    return {**exact(op, g, inputs, options, values), "total": total}


class _Cases(Cases):
    extents = {"N": extent("N")}

    def layers(self) -> Iterable[tuple[str, Problem]]:
        yield "a large batch", LossSummary(4096)

    def edges(self) -> Iterable[tuple[str, Problem]]:
        for N in (1, 3, 32, 128, 257, 1025, 10_007, 0):
            yield f"{N} rows", LossSummary(N)

    def data(self) -> Iterable[Problem]:
        return [LossSummary(61), LossSummary(300)]

    def bases(self) -> list[Problem]:
        return [LossSummary(3)]

    def random(self, rng: np.random.Generator) -> Problem:
        return LossSummary(*draw(rng, 1, 3000, 1))

    def large(self) -> Iterable[tuple[str, Problem]]:
        yield "65,537 rows", LossSummary(65_537)

    def huge(self) -> list[Problem]:
        return [LossSummary(2_000_000_000)]

    def values(
        self, tensor: str, problem: Any, rng: np.random.Generator, kind: str, fill: Callable[[Any], None]
    ) -> Array | None:
        if tensor != "rank":
            return None
        # More of those beside which the errors begin, and one that no row has.
        return np.asarray(rng.choice([0, 0, 1, 2, 4, 5, 6, 999, 2**31 - 1], problem.shape(tensor)))


@defines(
    "loss_summary", LossSummary, ("loss", "rank"), ("total", "errors", "finite"), direction="fwd",
    dtypes={"rank": "int32"}, cases=_Cases(), rounding=_rounding,
)  # fmt: skip
def _define(g: LossSummary, loss: Array, rank: Array, total: Array, errors: Array, finite: Array) -> None:
    total[...] = f64(loss).sum()
    errors[...] = (rank >= 1).sum(), (rank >= 5).sum()
    finite[...] = np.isfinite(f64(loss)).all()


@operation
def loss_summary(
    loss: A, rank: A, *, impl: str | None = None, out: tuple[A, A, A] | None = None
) -> tuple[A, A, A]:
    """What a batch's losses and ranks come to: three small arrays, left where the losses are.

    Parameters
    ----------
    loss : array of float32 or float64, (N,)
        As of `softmax_xent_fprop`.
    rank : array of int32, (N,)
        As of `label_rank`.

    Returns
    -------
    total : array of float64, (1,)
        Sum of the losses, added up in float64 in a fixed order.
    errors : array of int64, (2,)
        Rows of a rank of at least 1, and of at least 5: top-1 and top-5 errors.
    finite : array of int32, (1,)
        1 where every loss is finite, else 0: the flag of `sgd_momentum`. 1 for no rows.
    """
    a = Arguments("loss_summary", loss=loss, rank=rank)
    problem = LossSummary.of(a.loss.shape, a.dtype)
    return a.run(problem, out=out, impl=impl)  # type: ignore[no-any-return]
