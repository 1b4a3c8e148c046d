"""Geometries that kernels are likely to get wrong, for Hypothesis and for seeded generators alike.

Thin and lopsided: one row, one column, one pixel, one output; windows of 1 x S and R x 1; strides, dilations
and paddings that differ between the axes and the sides. A kernel's shortcuts hold for some of these and not
for others, and images of photographs have none of them.

`conv2d`, `pool2d`, `lrn_within` and `lrn_pool` are strategies; each `draw_...` makes the same from any
`pick(low, high)`, so that a fuzz run with a seed of its own draws from the same place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from hypothesis import reject
from hypothesis import strategies as st

from convkit.errors import ShapeError
from convkit.ops.conv2d import Conv2d
from convkit.ops.lrn import LRN
from convkit.ops.lrn_maxpool2d import LrnMaxPool2d
from convkit.ops.maxpool2d import Pool2d
from convkit.ops.window import window_span

#: An integer between two, both included.
Pick = Callable[[int, int], int]
#: The largest stride, padding or dilation that a problem may have.
LARGEST = 2**31 - 1
SIZES = (0, 1, 2, 5, 100, 10**4, 10**6, LARGEST // 2, LARGEST - 1, LARGEST)
#: Around the widths of registers and blocks.
CHANNELS = (1, 2, 3, 4, 5, 8, 9, 15, 16, 17, 31, 33)


class Axis(NamedTuple):
    """What a convolution or a pool is along one axis."""

    extent: int
    taps: int
    stride: int
    before: int
    after: int
    dilation: int


def seeded(rng: np.random.Generator) -> Pick:
    """A `pick` with a seed of its own."""
    return lambda low, high: int(rng.integers(low, high + 1))


def _one_of(pick: Pick, choices: tuple[Any, ...]) -> Any:
    return choices[pick(0, len(choices) - 1)]


def draw_axis(pick: Pick, thin: bool, *, padded: bool, pool: bool = False, long: int = 70) -> Axis:
    """One axis. `thin`: of 1 to 3 pixels; `long`: else of so many at the most. Of a pool: little padding."""
    extent = _one_of(pick, (1, 1, 1, 2, 3)) if thin else pick(1, _one_of(pick, (9, 30, long)))
    taps = _one_of(pick, (1, 1, 2, 3, 3, 4, 5, 7))
    dilation = _one_of(pick, (1, 1, 1, 2, 3))
    stride = _one_of(pick, (1, 1, 1, 1, 2, 2, 3, 4, 8, 17))
    span = window_span(taps, dilation)
    before, after = (_one_of(pick, (0, 0, 1, 2, 5)) if padded else 0 for _ in range(2))
    if pool:
        before, after = min(before, span - 1), min(after, span - 1)
    if padded and not pool:  # all on one side, which is as lopsided as can be
        after += max(0, span - extent - before - after)
    return Axis(max(extent, span - before - after), taps, stride, before, after, dilation)


def _axes(pick: Pick, thin: bool, *, pool: bool = False, long: int = 70) -> tuple[Axis, Axis]:
    padded = bool(pick(0, 1))
    others_thin = thin and pick(0, 3) == 3
    axes = (
        draw_axis(pick, thin, padded=padded, pool=pool, long=long),
        draw_axis(pick, others_thin, padded=padded, pool=pool, long=long),
    )
    return axes if pick(0, 1) else (axes[1], axes[0])


def _options(h: Axis, w: Axis) -> tuple[int, ...]:
    """The fields of a problem from its strides to its dilations."""
    return (h.stride, w.stride, h.before, h.after, w.before, w.after, h.dilation, w.dilation)


def draw_conv2d(pick: Pick, thin: bool = True, long: int = 70) -> Conv2d:
    h, w = _axes(pick, thin, long=long)
    if pick(0, 1):  # a filter of one tap, which every kernel has a shortcut for
        h, w = (a._replace(taps=1, dilation=pick(1, 2)) for a in (h, w))
    if lopsided := pick(0, 2):  # a stride along one axis alone
        strides = (1, _one_of(pick, (2, 3, 8, 17)))
        h, w = (a._replace(stride=strides[(lopsided + i) % 2]) for i, a in enumerate((h, w)))
    groups = _one_of(pick, (1, 1, 1, 2, 3))
    c, k = (_one_of(pick, CHANNELS) for _ in range(2))
    return Conv2d(
        *(pick(1, 3), c * groups, h.extent, w.extent, k * groups, h.taps, w.taps), *_options(h, w), groups
    )


def draw_pool2d(pick: Pick, thin: bool = True) -> Pool2d:
    h, w = _axes(pick, thin, pool=True)
    N, C, ceil_mode = pick(1, 3), _one_of(pick, CHANNELS), bool(pick(0, 1))
    return Pool2d(N, C, h.extent, w.extent, h.taps, w.taps, *_options(h, w), ceil_mode)


def _draw_lrn(pick: Pick, shape: tuple[int, ...], region: str) -> LRN:
    beta = _one_of(pick, (0.75, 0.75, 0.5, 1.0))
    return LRN.of(shape, size=pick(1, 9), alpha=0.7, beta=beta, k=0.5 + pick(0, 2), region=region)


def draw_lrn_within(pick: Pick) -> LRN:
    h, w = _axes(pick, True)
    return _draw_lrn(pick, (pick(1, 3), _one_of(pick, CHANNELS), h.extent, w.extent), "within_channel")


def draw_lrn_pool(pick: Pick) -> LrnMaxPool2d:
    pool = draw_pool2d(pick)
    return LrnMaxPool2d(_draw_lrn(pick, pool.shape("x"), "across_channels"), pool)


def draw_absurd(pick: Pick, pool: bool = False) -> Conv2d | Pool2d:
    """A few pixels, and strides, paddings, dilations, and windows of pools, of any size."""

    def any_size(least: int) -> int:
        return max(least, _one_of(pick, SIZES))

    def axis() -> Axis:
        extent, dilation = pick(1, 6), any_size(1)
        taps = any_size(1) if pool and pick(0, 3) == 3 else pick(1, 4)
        dilation = min(dilation, LARGEST // max(1, taps - 1))
        span = window_span(taps, dilation)
        before, after = (min(any_size(0), span - 1 if pool else LARGEST) for _ in range(2))
        if (short := span - extent - before - after) > 0:  # the padding that it takes, behind first
            room = (span - 1 if pool else LARGEST) - after
            after += min(room, short)
            before += max(0, short - room)
        free = extent + before + after - span
        stride = any_size(1)
        if pick(0, 7):  # but for one in eight, few outputs
            stride = min(LARGEST, max(stride, free // pick(1, 6)))
        return Axis(extent, taps, stride, before, after, dilation)

    h, w = axis(), axis()
    N, c = pick(1, 3), _one_of(pick, (1, 3, 4, 9, 17))
    if pool:
        if h.taps * w.taps > 2**32:  # more than argmax can count
            w = w._replace(taps=1, dilation=1, before=0, after=0)
        return Pool2d(N, c, h.extent, w.extent, h.taps, w.taps, *_options(h, w), bool(pick(0, 1)))
    groups, k = _one_of(pick, (1, 1, 2, 5)), _one_of(pick, (1, 4, 17))
    return Conv2d(N, c * groups, h.extent, w.extent, k * groups, h.taps, w.taps, *_options(h, w), groups)


def _strategy(make: Callable[..., Any], **options: Any) -> Callable[[], st.SearchStrategy[Any]]:
    @st.composite
    def strategy(draw: st.DrawFn) -> Any:
        try:
            return make(lambda low, high: draw(st.integers(low, high)), **options)
        except ShapeError:  # a tensor of more bytes than there are addresses
            reject()

    return strategy


conv2d = _strategy(draw_conv2d)
pool2d = _strategy(draw_pool2d)
lrn_within = _strategy(draw_lrn_within)
lrn_pool = _strategy(draw_lrn_pool)
absurd_conv2d = _strategy(draw_absurd)
absurd_pool2d = _strategy(draw_absurd, pool=True)
