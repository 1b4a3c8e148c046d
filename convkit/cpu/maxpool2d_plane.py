"""Max pooling, a plane at a time: forward without branches, backward by scatter.

Idea      The unit is a plane, one channel of one image. Forward, the comparisons of a window are arithmetic,
          not branches: which tap is the largest cannot be predicted, and a branch per tap took 2-3 times as
          long. The first tap inside the image starts as the winner, so that a window of -inf has the position
          that the reference gives it. NaNs are only counted; a window that has any is looked at again.
dgrad     Each dy is added to the pixel that won. A plane belongs to one thread, which takes the windows in
          order: no atomics, and the same bits every time. Winners in the padding (windows that saw nothing
          else) are dropped.
Traffic   Forward reads x and writes y and argmax once: 4HW + 5PQ bytes of a float32 plane. Backward the same,
          the other way.
Measured  Zen 3, one thread, CPU time, N = 16: window 3, stride 2 on (96, 55, 55): 23 ms forward, 20 ns per
          output, bound by the comparisons (1.1 GB/s); 5.0 ms backward, 4.8 GB/s.
"""

from __future__ import annotations

import numpy as np

from ..ops.maxpool2d import Pool2d
from . import jit, threads
from .jit import uint
from .storage import accelerates

Array = np.ndarray


@jit.kernel
def _fprop(x, y, argmax, extents, start, stop):
    H, W, P, Q, R, S, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w = extents
    lowest = x.dtype.type(-np.inf)
    begin, end = np.empty(Q, np.int64), np.empty(Q, np.int64)  # the taps s inside the image
    for q in range(Q):
        left = q * stride_w - pad_left
        begin[q] = -(left // dilation_w) if left < 0 else 0
        end[q] = min(S, (W - 1 - left) // dilation_w + 1)
    for plane in range(start, stop):
        for p in range(P):
            top = p * stride_h - pad_top
            r0 = -(top // dilation_h) if top < 0 else 0
            r1 = min(R, (H - 1 - top) // dilation_h + 1)
            to = (plane * P + p) * Q
            for q in range(Q):
                s0, s1 = begin[uint(q)], end[uint(q)]
                corner = (plane * H + top) * W + q * stride_w - pad_left
                best = lowest
                winner = r0 * S + s0 if r0 < r1 and s0 < s1 else 0
                nans = 0
                for r in range(r0, r1):
                    at = corner + r * dilation_h * W
                    for s in range(s0, s1):
                        value = x[uint(at + s * dilation_w)]
                        winner += (r * S + s - winner) * (value > best)
                        best = value if value > best else best
                        nans += value != value
                if nans:  # the first one wins
                    for r in range(r1 - 1, r0 - 1, -1):
                        for s in range(s1 - 1, s0 - 1, -1):
                            value = x[uint(corner + r * dilation_h * W + s * dilation_w)]
                            if value != value:
                                winner = r * S + s
                                best = value
                y[uint(to + q)] = best
                argmax[uint(to + q)] = winner


@jit.kernel
def _dgrad(dy, argmax, dx, extents, start, stop):
    H, W, P, Q, R, S, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w = extents
    zero = dx.dtype.type(0)
    kept = min(R * S, 1024)  # divisions are slow, but a window may be far larger than its image
    down, right = np.empty(kept, np.int64), np.empty(kept, np.int64)  # of each tap
    for tap in range(kept):
        down[tap] = tap // S * dilation_h - pad_top
        right[tap] = tap % S * dilation_w - pad_left
    for plane in range(start, stop):
        for i in range(plane * H * W, (plane + 1) * H * W):
            dx[uint(i)] = zero
        for p in range(P):
            at = (plane * P + p) * Q
            for q in range(Q):
                tap = np.int64(argmax[uint(at + q)])
                if tap < R * S:
                    if tap < kept:
                        h = p * stride_h + down[uint(tap)]
                        w = q * stride_w + right[uint(tap)]
                    else:
                        h = p * stride_h + tap // S * dilation_h - pad_top
                        w = q * stride_w + tap % S * dilation_w - pad_left
                    if h >= 0 and h < H and w >= 0 and w < W:
                        dx[uint((plane * H + h) * W + w)] += dy[uint(at + q)]


def _extents(g: Pool2d) -> tuple[int, ...]:
    return (
        *(g.H, g.W, g.P, g.Q, g.R, g.S, g.stride_h, g.stride_w),
        *(g.pad_top, g.pad_left, g.dilation_h, g.dilation_w),
    )


@accelerates("maxpool2d_fprop", name="plane", missing=jit.missing)
def maxpool2d_fprop(g: Pool2d, x: Array, y: Array, argmax: Array) -> None:
    source, target, winners, extents = x.reshape(-1), y.reshape(-1), argmax.reshape(-1), _extents(g)
    threads.split(
        lambda start, stop: _fprop(source, target, winners, extents, start, stop),
        g.N * g.C,
        0.5 * g.flops("maxpool2d_fprop"),
    )


@accelerates("maxpool2d_dgrad", name="plane", missing=jit.missing)
def maxpool2d_dgrad(g: Pool2d, dy: Array, argmax: Array, dx: Array) -> None:
    gradient, winners, target, extents = dy.reshape(-1), argmax.reshape(-1), dx.reshape(-1), _extents(g)
    threads.split(
        lambda start, stop: _dgrad(gradient, winners, target, extents, start, stop),
        g.N * g.C,
        g.N * g.C * (2 * g.P * g.Q + 0.2 * g.H * g.W),
    )
