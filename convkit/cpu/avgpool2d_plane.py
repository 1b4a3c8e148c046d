"""Average pooling, a plane at a time: forward by gathering, backward by scattering.

Idea      The unit is a plane, one channel of one image. A window's divisor is a product of two numbers, one
          for its row of windows and one for its column, which are made once for all planes.
dgrad     Each window adds its share to the pixels that it sees. A plane belongs to one thread, which takes
          the windows in order: no atomics, and the same bits every time.
Traffic   x (or dy) is read once and y (or dx) written once; pixels that windows share lie in cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..ops.avgpool2d import AvgPool2d
from . import jit, threads
from .jit import uint
from .storage import accelerates

Array = np.ndarray


@jit.kernel
def _fprop(x, y, rows, columns, extents, start, stop):
    H, W, P, Q, dilation_h, dilation_w = extents
    for plane in range(start, stop):
        for p in range(P):
            top, r0, r1, count_h = rows[p]
            to = (plane * P + p) * Q
            for q in range(Q):
                left, s0, s1, count_w = columns[q]
                total = x.dtype.type(0)
                for r in range(r0, r1):
                    at = (plane * H + top + r * dilation_h) * W + left
                    for s in range(s0, s1):
                        total += x[uint(at + s * dilation_w)]
                y[uint(to + q)] = total / x.dtype.type(max(count_h * count_w, 1))


@jit.kernel
def _dgrad(dy, dx, rows, columns, extents, start, stop):
    H, W, P, Q, dilation_h, dilation_w = extents
    zero = dx.dtype.type(0)
    for plane in range(start, stop):
        for i in range(plane * H * W, (plane + 1) * H * W):
            dx[uint(i)] = zero
        for p in range(P):
            top, r0, r1, count_h = rows[p]
            at = (plane * P + p) * Q
            for q in range(Q):
                left, s0, s1, count_w = columns[q]
                share = dy[uint(at + q)] / dy.dtype.type(max(count_h * count_w, 1))
                for r in range(r0, r1):
                    to = (plane * H + top + r * dilation_h) * W + left
                    for s in range(s0, s1):
                        dx[uint(to + s * dilation_w)] += share


def _axis(windows: int, taps: int, stride: int, pad: int, dilation: int, size: int, counted: int) -> Array:
    """For each window along an axis: its begin, its first tap on the image, the end, the taps that count.

    Parameters
    ----------
    counted : int
        End of what counts.
    """
    begin = np.arange(windows, dtype=np.int64) * stride - pad

    def taps_below(end: int) -> Array:
        return np.clip(-((begin - end) // dilation), 0, taps)  # those at begin + tap * dilation < end

    first, last = taps_below(0), taps_below(size)
    # With the padding counted every tap from the first on counts: no window begins before the padding.
    return np.stack([begin, first, np.maximum(first, last), taps_below(counted)], axis=1)


def _prepared(g: AvgPool2d) -> tuple[Array, Array, tuple[int, ...]]:
    extents = g.scalars()
    rows = _axis(g.P, g.R, g.stride_h, g.pad_top, g.dilation_h, g.H, int(extents["count_h"]))
    columns = _axis(g.Q, g.S, g.stride_w, g.pad_left, g.dilation_w, g.W, int(extents["count_w"]))
    if not g.count_include_pad:
        rows[:, 3] = rows[:, 2] - rows[:, 1]
        columns[:, 3] = columns[:, 2] - columns[:, 1]
    return rows, columns, (g.H, g.W, g.P, g.Q, g.dilation_h, g.dilation_w)


def _run(kernel: Any, g: AvgPool2d, source: Array, target: Array) -> None:
    flat, result = source.reshape(-1), target.reshape(-1)
    prepared = _prepared(g)
    work = g.N * g.C * (0.2 * g.H * g.W + g.P * g.Q * (2 + g.R * g.S))
    threads.split(lambda start, stop: kernel(flat, result, *prepared, start, stop), g.N * g.C, work)


@accelerates("avgpool2d_fprop", name="plane", missing=jit.missing)
def avgpool2d_fprop(g: AvgPool2d, x: Array, y: Array) -> None:
    _run(_fprop, g, x, y)


@accelerates("avgpool2d_dgrad", name="plane", missing=jit.missing)
def avgpool2d_dgrad(g: AvgPool2d, dy: Array, dx: Array) -> None:
    _run(_dgrad, g, dy, dx)
