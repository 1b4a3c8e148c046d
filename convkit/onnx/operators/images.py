"""Convolution, pooling, LRN and ReLU."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from ...errors import OptionError, ShapeError
from ...ops.avgpool2d import avgpool2d_fprop
from ...ops.conv2d import conv2d_fprop
from ...ops.lrn import lrn_fprop
from ...ops.maxpool2d import Pool2d, maxpool2d_fprop
from ...ops.relu import relu_fprop
from ...ops.window import output_extent, window_span
from ..table import operator

Array = np.ndarray

AUTO_PAD = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")
POOL = {"auto_pad": AUTO_PAD, "ceil_mode": (0, 1)}
IMAGE = (3, 4)  # 1-D and 2-D, with N and C


def _lift(x: Array) -> Array:
    """A 1-D image as a 2-D one of height 1."""
    return x[:, :, None] if x.ndim == 3 else x


def _lower(y: Array, x: Array) -> Array:
    """The result for x, of which `_lift` made a 2-D image."""
    return y if x.ndim == 4 else y[:, :, 0]


def _window(
    extents: Sequence[int], window: Sequence[int], auto_pad: str, strides: Any, pads: Any, dilations: Any
) -> dict[str, Any]:
    """ONNX's attributes of a sliding window as convkit's options; a 1-D window gets a height of 1."""
    n = len(window)
    if n not in (1, 2) or len(extents) != n:
        raise ShapeError(
            f"only 1-D and 2-D images are covered, not extents {tuple(extents)}, window {tuple(window)}"
        )
    strides, dilations = tuple(strides or (1,) * n), tuple(dilations or (1,) * n)
    pads = tuple(pads or (0,) * 2 * n) if auto_pad == "NOTSET" else (0,) * 2 * n
    if len(strides) != n or len(dilations) != n or len(pads) != 2 * n:
        raise ShapeError(
            f"strides {strides}, dilations {dilations} and pads {pads} must be those of {n} axes"
        )
    if min(strides) < 1:
        raise OptionError(f"strides must each be at least 1, not {strides}")
    padding = list(zip(pads[:n], pads[n:]))
    if auto_pad.startswith("SAME"):
        for axis, (size, stride) in enumerate(zip(extents, strides)):
            # As many positions as a window of one pixel has: ceil(size / stride).
            last = (output_extent(size, 1, stride, 0, 0) - 1) * stride
            total = max(0, last + window_span(window[axis], dilations[axis]) - size)
            less, more = total // 2, total - total // 2
            padding[axis] = (less, more) if auto_pad == "SAME_UPPER" else (more, less)
    if n == 1:
        strides, dilations, padding = (1, *strides), (1, *dilations), [(0, 0), *padding]
    return {"stride": strides, "padding": tuple(padding), "dilation": dilations}


@operator("Conv", ranks=IMAGE, choices={"auto_pad": AUTO_PAD})
def conv(
    x, w, b=None, *, auto_pad="NOTSET", dilations=None, group=1, kernel_shape=None, pads=None, strides=None
):
    if kernel_shape and tuple(kernel_shape) != w.shape[2:]:
        raise ShapeError(f"kernel_shape {tuple(kernel_shape)} is not that of the weights, {w.shape}")
    options = _window(x.shape[2:], w.shape[2:], auto_pad, strides, pads, dilations)
    y = conv2d_fprop(_lift(x), _lift(w), b, groups=group, **options)
    return _lower(y, x)


def _pool(
    x: Array, kernel_shape: Any, auto_pad: str, ceil_mode: int, strides: Any, pads: Any, dilations: Any
) -> dict[str, Any]:
    """ONNX's attributes of a pool as convkit's options."""
    options = _window(x.shape[2:], kernel_shape, auto_pad, strides, pads, dilations)
    # With auto_pad the text of ONNX gives the same size in both modes (its shape inference does not).
    ceil = bool(ceil_mode) and auto_pad == "NOTSET"
    return {**options, "window": (1, *kernel_shape)[-2:], "ceil_mode": ceil}


@operator("MaxPool", ranks=IMAGE, choices={**POOL, "storage_order": (0, 1)})
def max_pool(
    x,
    *,
    kernel_shape,
    auto_pad="NOTSET",
    ceil_mode=0,
    dilations=None,
    pads=None,
    storage_order=0,
    strides=None,
):
    options = _pool(x, kernel_shape, auto_pad, ceil_mode, strides, pads, dilations)
    image = _lift(x)
    if x.dtype in (np.int8, np.uint8):  # exact in float32
        image = image.astype(np.float32)
    y, argmax = maxpool2d_fprop(image, **options)
    if image.dtype != x.dtype:
        y = np.maximum(y, np.iinfo(x.dtype).min)  # -inf: a window that sees padding alone

    def indices() -> Array:
        return _lower(_indices(Pool2d.of(image.shape, **options), argmax, storage_order), x)

    return _lower(y.astype(x.dtype, copy=False), x), indices


def _indices(g: Pool2d, argmax: Array, storage_order: int) -> Array:
    """Position of each maximum in the whole of x, flattened; column by column in storage order 1."""
    r, s = np.divmod(argmax.astype(np.int64), g.S)
    h = np.arange(g.P)[:, None] * g.stride_h - g.pad_top + r * g.dilation_h
    w = np.arange(g.Q) * g.stride_w - g.pad_left + s * g.dilation_w
    first = np.arange(g.N * g.C).reshape(g.N, g.C, 1, 1) * (g.H * g.W)
    return first + (w * g.H + h if storage_order else h * g.W + w)


@operator("AveragePool", ranks=IMAGE, choices={**POOL, "count_include_pad": (0, 1)})
def average_pool(
    x,
    *,
    kernel_shape,
    auto_pad="NOTSET",
    ceil_mode=0,
    count_include_pad=0,
    dilations=None,
    pads=None,
    strides=None,
):
    options = _pool(x, kernel_shape, auto_pad, ceil_mode, strides, pads, dilations)
    return _lower(avgpool2d_fprop(_lift(x), count_include_pad=bool(count_include_pad), **options), x)


@operator("LRN")
def lrn(x, *, size, alpha=1e-4, beta=0.75, bias=1.0):
    image = x if x.ndim == 4 else x.reshape(*x.shape[:2], 1, prod(x.shape[2:]))
    return lrn_fprop(image, size=size, alpha=alpha, beta=beta, k=bias).reshape(x.shape)


@operator("Relu")
def relu(x):
    return relu_fprop(x)
