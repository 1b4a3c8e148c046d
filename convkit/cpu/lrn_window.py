"""Local response normalisation: the window's sum, taken directly, along lines of pixels.

Idea      Both regions are one loop nest over (planes, lines, pixels). Across channels, a plane is a group of
          channels of one image, a line is one channel, and its pixels are cut into blocks, each a task.
          Within a channel, a plane is one map and a line is one of its rows. A window is `size` lines; within
          a channel it also reaches over neighbouring pixels. Inner loops run along pixels, which are
          contiguous.
Direct    A sum of `size` squares each time, not a running sum that adds and subtracts: no error builds up,
          and the reads come out of the L1 cache.
Power     beta = 0.75: d^-0.75 = 1 / (sqrt(d) * sqrt(sqrt(d))), which vectorises. Any other beta calls pow.
dgrad     One pass. With d per element, t = dy * x * d^(-beta-1) is kept for the last `size` lines only, in a
          ring; as soon as all lines that a window reaches are there, dx = dy * d^-beta - coefficient * x *
          (sum of t).
Traffic   fprop reads x and writes y once; dgrad reads dy and x and writes dx once: 8 and 12 bytes per
          element.
Scratch   dgrad's ring: (size + 1) lines of at most 1024 pixels for each thread, 24 KB for size 5.
Measured  Zen 3, one thread, CPU time, N = 16: 8.3 ms forward and 11.0 ms backward on (96, 55, 55), 4.9 and
          6.5 ms on (256, 27, 27): about 1.8 and 2.3 ns per element, 5 GB/s, bound by the square roots and
          divisions. With pow (beta = 0.7) forward took 4.5 times as long.
"""

from __future__ import annotations

import numpy as np

from ..ops.lrn import LRN
from . import jit, threads
from .jit import uint
from .storage import accelerates, accumulator

Array = np.ndarray

#: Pixels of a block: a window of 5 lines fits into L1.
BLOCK = 1024


@jit.kernel
def _fprop(x, y, extents, numbers, three_quarters, start, stop):
    lines, pixels, block, behind, ahead, aside = extents
    k, scale, beta = numbers
    one = x.dtype.type(1)
    blocks = (pixels + block - 1) // block
    for unit in range(start, stop):
        base = unit // blocks * lines * pixels
        i0 = unit % blocks * block
        i1 = min(pixels, i0 + block)
        for line in range(lines):
            to = base + line * pixels
            # y holds the sum of squares until the last step.
            for i in range(i0, i1):
                y[uint(to + i)] = 0
            for other in range(max(0, line - behind), min(lines, line + ahead + 1)):
                for shift in range(-behind * aside, ahead * aside + 1):
                    at = base + other * pixels + shift
                    for i in range(max(i0, -shift), min(i1, pixels - shift)):
                        value = x[uint(at + i)]
                        y[uint(to + i)] += value * value
            if three_quarters:
                for i in range(i0, i1):
                    root = np.sqrt(k + scale * y[uint(to + i)])
                    y[uint(to + i)] = x[uint(to + i)] * (one / (root * np.sqrt(root)))
            else:
                for i in range(i0, i1):
                    y[uint(to + i)] = x[uint(to + i)] * (k + scale * y[uint(to + i)]) ** -beta


@jit.kernel
def _dgrad(dy, x, dx, extents, numbers, three_quarters, start, stop):
    lines, pixels, block, behind, ahead, aside = extents
    k, scale, beta, coefficient = numbers
    zero, one = x.dtype.type(0), x.dtype.type(1)
    blocks = (pixels + block - 1) // block
    width = min(pixels, block)
    rows = min(lines, behind + ahead + 1)
    ring = np.empty(rows * width, x.dtype)
    sums = np.empty(width, x.dtype)
    for unit in range(start, stop):
        base = unit // blocks * lines * pixels
        i0 = unit % blocks * block
        n = min(pixels - i0, block)
        # Element `line` counts in the windows centred on [line - ahead, line + behind].
        for line in range(lines + behind):
            if line < lines:
                to = base + line * pixels + i0
                keep = line % rows * width
                for i in range(n):
                    sums[uint(i)] = zero
                for other in range(max(0, line - behind), min(lines, line + ahead + 1)):
                    for shift in range(-behind * aside, ahead * aside + 1):
                        at = base + other * pixels + i0 + shift
                        for i in range(max(0, -shift - i0), min(n, pixels - shift - i0)):
                            value = x[uint(at + i)]
                            sums[uint(i)] += value * value
                if three_quarters:
                    for i in range(n):
                        d = k + scale * sums[uint(i)]
                        root = np.sqrt(d)
                        direct = dy[uint(to + i)] * (one / (root * np.sqrt(root)))
                        dx[uint(to + i)] = direct
                        ring[uint(keep + i)] = direct * x[uint(to + i)] / d
                else:
                    for i in range(n):
                        d = k + scale * sums[uint(i)]
                        direct = dy[uint(to + i)] * d**-beta
                        dx[uint(to + i)] = direct
                        ring[uint(keep + i)] = direct * x[uint(to + i)] / d
            ready = line - behind
            if ready < 0:
                continue
            to = base + ready * pixels + i0
            for i in range(n):
                sums[uint(i)] = zero
            for other in range(max(0, ready - ahead), min(lines, ready + behind + 1)):
                for shift in range(-ahead * aside, behind * aside + 1):
                    at = other % rows * width + shift
                    for i in range(max(0, -shift), min(n, n - shift)):
                        sums[uint(i)] += ring[uint(at + i)]
            for i in range(n):
                dx[uint(to + i)] -= coefficient * x[uint(to + i)] * sums[uint(i)]


def _plan(g: LRN) -> tuple[int, tuple[int, ...]]:
    """(number of units, extents) for the kernels."""
    if g.region == "across_channels":
        lines, pixels, aside = g.C // g.groups, g.H * g.W, 0
        planes, block = g.N * g.groups, BLOCK
    else:
        # A row is not cut: its windows reach over neighbouring pixels.
        lines, pixels, aside = g.H, g.W, 1
        planes, block = g.N * g.C, g.W
    # What a window reaches beyond its plane costs nothing.
    behind, ahead = (min(reach, max(lines, pixels if aside else 1) - 1) for reach in (g.behind, g.ahead))
    return planes * -(-pixels // block), (lines, pixels, block, behind, ahead, aside)


def _cost(g: LRN, passes: int) -> float:
    taps = min(g.taps, g.C * g.H * g.W)
    return passes * g.N * g.C * g.H * g.W * (0.2 * taps + (1 if g.beta == 0.75 else 10))


@accelerates("lrn_fprop", name="window", missing=jit.missing)
def lrn_fprop(g: LRN, x: Array, y: Array) -> None:
    units, extents = _plan(g)
    real = accumulator(g).type
    numbers = real(g.k), real(g.alpha / g.taps), real(g.beta)
    source, target = x.reshape(-1), y.reshape(-1)
    threads.split(
        lambda start, stop: _fprop(source, target, extents, numbers, g.beta == 0.75, start, stop),
        units,
        _cost(g, 1),
    )


@accelerates("lrn_dgrad", name="window", missing=jit.missing)
def lrn_dgrad(g: LRN, dy: Array, x: Array, dx: Array) -> None:
    units, extents = _plan(g)
    real = accumulator(g).type
    numbers = real(g.k), real(g.alpha / g.taps), real(g.beta), real(2 * g.alpha * g.beta / g.taps)
    gradient, source, target = dy.reshape(-1), x.reshape(-1), dx.reshape(-1)
    threads.split(
        lambda start, stop: _dgrad(gradient, source, target, extents, numbers, g.beta == 0.75, start, stop),
        units,
        _cost(g, 2),
    )
