"""LRN and max pooling as one op on NCHW arrays: the C++ kernels of both, one after the other.

Idea      What lies between goes through scratch memory, in float32: the same sums in the same order as the
          two ops have, and so the same bits in float32.
Traffic   That of the two ops: what lies between is written and read once more than `rows` does in nChw16c.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from ..ops.lrn_maxpool2d import LrnMaxPool2d
from . import extension, lrn_rows, maxpool2d_rows, threads
from .native_call import kernels
from .storage import prepares

Array = np.ndarray
Launch = Callable[..., None]


def _declared(way: str) -> dict[str, Any]:
    def fits(g: LrnMaxPool2d) -> str | None:
        return lrn_rows.across_channels(g.lrn) or maxpool2d_rows.rings(way)(g.pool)

    return {
        "name": "two_passes", "rank": 10, "float64": False, "compiled": True,
        "missing": extension.kernels_missing, "when": fits,
        "workspace": lambda g: 4 * g.lrn.N * g.lrn.C * g.lrn.H * g.lrn.W,
    }  # fmt: skip


@prepares("lrn_maxpool2d_fprop", **_declared("fprop"))
def lrn_maxpool2d_fprop(g: LrnMaxPool2d) -> Launch:
    run, count, dtype = kernels(), threads.count, g.dtype
    lrn, pool = lrn_rows.shape(g.lrn), maxpool2d_rows.shape(g.pool)

    def launch(x: Array, y: Array, argmax: Array, *, workspace: Array) -> None:
        number = count()
        run.lrn_fprop(dtype, lrn, x, workspace, number)
        run.maxpool2d_fprop(dtype, pool, workspace, y, argmax, number)

    return launch


@prepares("lrn_maxpool2d_dgrad", **_declared("dgrad"))
def lrn_maxpool2d_dgrad(g: LrnMaxPool2d) -> Launch:
    run, count, dtype, size = kernels(), threads.count, g.dtype, prod(g.shape("x"))
    lrn, pool = lrn_rows.shape(g.lrn), maxpool2d_rows.shape(g.pool)

    def launch(
        dy: Array, argmax: Array, x: Array, dx: Array, relu: bool = False, *, workspace: Array
    ) -> None:
        number = count()
        run.lrn_maxpool2d_dgrad(dtype, lrn, pool, dy, argmax, x, dx, workspace, number)
        if relu:
            run.relu_dgrad(dtype, size, dx, x, dx, number)

    return launch
