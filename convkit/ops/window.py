"""Windows that slide over images: their options, how many positions they have, and which taps see a pixel.

Convolution and pooling share this. `output_extent` is the only output-size formula in the project.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import OptionError, ShapeError
from ..op import Problem, Stretch
from ..options import MAX_OPTION, integer, pair

#: Fields of a problem that has a window, apart from extents of tensors.
WINDOW = ("R", "S", "stride_h", "stride_w", "dilation_h", "dilation_w")
PADS = ("pad_top", "pad_bottom", "pad_left", "pad_right")


def padding4(value: Any) -> tuple[int, int, int, int]:
    """Padding as (top, bottom, left, right) from an int, a pair, or ((top, bottom), (left, right))."""
    nested = isinstance(value, (tuple, list)) and any(isinstance(v, (tuple, list)) for v in value)
    if not nested:
        vertical, horizontal = pair("padding", value, 0)
        return vertical, vertical, horizontal, horizontal
    try:
        (top, bottom), (left, right) = value
    except (TypeError, ValueError):
        raise OptionError(
            f"padding must be an int, a pair, or ((top, bottom), (left, right)), not {value!r}"
        ) from None
    top, bottom, left, right = (integer("padding", v, 0, MAX_OPTION) for v in (top, bottom, left, right))
    return top, bottom, left, right


def window_span(window: int, dilation: int) -> int:
    """Pixels from the first to the last tap of a dilated window, both included."""
    return (window - 1) * dilation + 1


def output_extent(
    size: int, window: int, stride: int, before: int, after: int, dilation: int = 1, ceil: bool = False
) -> int:
    """Number of positions of a window along one axis. The only output-size formula in the project.

    With `ceil` the last window may overhang the padded image, but must begin inside the image or the
    padding before it, as Caffe, PyTorch and ONNX have it: otherwise it would see nothing.
    """
    free = size + before + after - window_span(window, dilation)
    if free < 0:
        raise ShapeError(
            f"the window spans {window_span(window, dilation)} pixels, more than the padded image's "
            f"{size + before + after} ({before} + {size} + {after})"
        )
    if not ceil:
        return free // stride + 1
    count = -(-free // stride) + 1
    return count - 1 if (count - 1) * stride >= size + before else count


# ---------------------------------------------------------------------------------------------------
# Taps
# ---------------------------------------------------------------------------------------------------
def _axis(
    taps: int, extent: int, outputs: int, stride: int, pad: int, dilation: int
) -> Iterator[tuple[int, slice, slice]]:
    """(tap, outputs, pixels) of each tap along one axis that sees the image: where, and what."""

    def steps(at: int, step: int, most: int) -> tuple[int, int]:  # those i for which at + i * step is inside
        return max(0, -(at // step)), min(most, (extent - 1 - at) // step + 1)

    which: Iterable[int] = range(taps)
    if taps > extent + outputs:  # a pool's window may be far larger than its image
        each = (range(*steps(p * stride - pad, dilation, taps)) for p in range(outputs))
        which = sorted({tap for found in each for tap in found})
    for tap in which:
        at = tap * dilation - pad  # what it sees from output 0
        p0, p1 = steps(at, stride, outputs)
        if p0 < p1:
            yield tap, slice(p0, p1), slice(at + p0 * stride, at + (p1 - 1) * stride + 1, stride)


def seen(g: Any) -> Iterator[tuple[int, int, tuple, tuple]]:
    """(r, s, windows, pixels): tap (r, s) of `y[windows]` sees `x[pixels]`; elsewhere, padding.

    Indices into (N, channels, P, Q) and (N, channels, H, W); the padding is never stored, however wide.
    """
    rows = _axis(g.R, g.H, g.P, g.stride_h, g.pad_top, g.dilation_h)
    columns = list(_axis(g.S, g.W, g.Q, g.stride_w, g.pad_left, g.dilation_w))
    for r, p, h in rows:
        for s, q, w in columns:
            yield r, s, (..., p, q), (..., h, w)


# ---------------------------------------------------------------------------------------------------
# Problems for the gate
# ---------------------------------------------------------------------------------------------------
def extent(name: str, *, pads_within: bool = False) -> Stretch:
    """The stretch of one field, with an image that the window fits into.

    Parameters
    ----------
    name : str
    pads_within : bool
        The padding must be smaller than the window's span, as a pool's.
    """

    def stretch(g: Any, value: int) -> Problem:
        return replace(_fitting(_with(g, **{name: value}), pads_within))  # which may refuse

    return stretch


def _fitting(g: Any, pads_within: bool) -> Any:
    """The problem with an image that its window fits into, and padding that it accepts."""
    span_h, span_w = window_span(g.R, g.dilation_h), window_span(g.S, g.dilation_w)
    if pads_within:
        pads = {name: min(getattr(g, name), span_h - 1) for name in ("pad_top", "pad_bottom")}
        pads |= {name: min(getattr(g, name), span_w - 1) for name in ("pad_left", "pad_right")}
        g = _with(g, **pads)
    high, wide = span_h - g.pad_top - g.pad_bottom, span_w - g.pad_left - g.pad_right
    return _with(g, H=max(g.H, high), W=max(g.W, wide))


def _with(g: Any, **changes: Any) -> Any:
    """A changed copy; what cannot be computed before the window fits is not looked at yet."""
    values = {name: getattr(g, name) for name in g.__dataclass_fields__}
    made = object.__new__(type(g))
    for name, value in {**values, **changes}.items():
        object.__setattr__(made, name, value)
    return made


def strides_and_dilations(base: Any) -> Iterable[tuple[str, Problem]]:
    """Each stride up to 3 beside each dilation up to 3, along one axis and then the other."""
    for stride in (1, 2, 3):
        for dilation in (1, 2, 3):
            along = "hw"[(stride + dilation) % 2]
            options = {f"stride_{along}": stride, f"dilation_{along}": dilation}
            other = {"H": 1, "W": 11, "R": 1, "S": 3} if along == "w" else {"H": 11, "W": 1, "R": 3, "S": 1}
            plain = dict.fromkeys(("stride_h", "stride_w", "dilation_h", "dilation_w"), 1)
            changed: Any = {**plain, **dict.fromkeys(PADS, 0), **other, **options}
            yield f"stride {stride}, dilation {dilation}", replace(base, **changed)


def random_extent(rng: np.random.Generator, window: int, dilation: int, before: int, after: int) -> int:
    """An image extent on which the window finds between one and a dozen pixels of room."""
    least = max(1, window_span(window, dilation) - before - after)
    return least + int(rng.integers(0, 12))


def random_pads(rng: np.random.Generator, limit: int) -> Any:
    """Four pads up to the limit; every other time, none."""
    if limit and rng.random() < 0.6:
        return [int(v) for v in rng.integers(0, limit + 1, 4)]
    return [0, 0, 0, 0]


def thin(rng: np.random.Generator) -> tuple[int, int] | None:
    """Extents of an image of one or two rows, columns or both; two times in three, none."""
    if rng.random() < 0.65:
        return None
    short, long = int(rng.integers(1, 3)), int(2 ** rng.uniform(0, 6))
    return (short, long) if rng.random() < 0.5 else (long, short)


def fit(extent: int, window: int, dilation: int, pads: int) -> tuple[int, int]:
    """Window and dilation that find room: as they are, without dilation, or one tap."""
    if window_span(window, dilation) <= extent + pads:
        return window, dilation
    return (window, 1) if window <= extent + pads else (1, dilation)
