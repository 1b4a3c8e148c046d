"""Convolution in C++: Winograd's minimal filtering, direct sums, and kernels for few channels.

`native/kernels/*.cpp` argue each. What is here decides which problems each of
them takes. Winograd and direct sums compute in nChw16c, and are registered for every layout: a network's
plan, which keeps its activations blocked, and users' NCHW arrays, which are packed on the way in and
unpacked on the way out, a few images at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple
from functools import lru_cache, partial
from typing import Any

import numpy as np

from .. import layouts
from ..ops.conv2d import Conv2d
from ..ops.window import window_span
from . import extension, threads
from .native_call import excess
from .storage import prepares

Array = np.ndarray
Launch = Callable[..., None]
BLOCKED = layouts.NCHW16C

#: Relative RMS error of Winograd's tiles of 7 x 7 against float64; see native/kernels/winograd_transform.hpp.
WINOGRAD_ERROR = 1e-5
#: With fewer tiles than these, and transformed weights of more bytes than those, their traffic costs more
#: than Winograd saves: AlexNet's conv3 to conv5 at batch 1 have 9 tiles and 10 to 19 MB, and direct sums
#: took up to 15 % less time; at batch 2 Winograd took 16 to 37 % less.
FEW_TILES, FEW_BYTES = 14, 1 << 20
#: So many channels fill a quarter of a block of 16: from 3 to 64 channels, on 224 x 224, Winograd took 1.7
#: times as long as direct sums forward, and 2.8 times as long as `few_channels` backward to the weights.
FEW = 4
#: (of the input's side, of the output's side)
LAYOUTS = ("NCHW", "NCHW>nChw16c", "nChw16c>NCHW", "nChw16c")


@lru_cache(maxsize=256)
def numbers(g: Conv2d) -> tuple[int, ...]:
    """The C++ struct `Conv`."""
    return (*astuple(g)[:-1], g.P, g.Q)


def _flags(layout: str) -> tuple[bool, bool]:
    return layouts.of(layout, "x") == BLOCKED, layouts.of(layout, "y") == BLOCKED


def _blocks_fit(g: Conv2d, layout: str) -> str | None:
    """A group's channels must be whole blocks where a blocked tensor is shared by groups."""
    if g.groups == 1:
        return None
    for side, channels in (("x", g.C), ("y", g.K)):
        if layouts.of(layout, side) == BLOCKED and channels // g.groups % BLOCKED.block:
            return f"in {BLOCKED.name}, each group needs whole blocks of {BLOCKED.block} channels"
    return None


def _frames(g: Conv2d, block: int) -> int:
    """Bytes of a batch whose maps lie in frames of zeros, about: what strides, padding and dilation span.

    `block`: channels of a group are padded to a multiple of it.
    """
    rows, columns = (
        max((outputs - 1) * (stride if outputs > 1 else 1) + 1, extent) + window_span(taps, dilation) - 1
        for outputs, stride, extent, taps, dilation in (
            (g.P, g.stride_h, g.H, g.R, g.dilation_h),
            (g.Q, g.stride_w, g.W, g.S, g.dilation_w),
        )
    )
    channels = g.groups * -(-max(g.C, g.K) // g.groups // block) * block
    return 4 * g.N * channels * rows * columns


#: The bindings of each algorithm's passes: the kernel, and the scratch memory that it wants.
Bindings = dict[str, tuple[str, str]]
WINOGRAD: Bindings = {
    "fprop": ("conv2d_fprop_winograd", "conv2d_fprop_winograd_workspace"),
    "dgrad": ("conv2d_dgrad_winograd", "conv2d_dgrad_winograd_workspace"),
    "wgrad": ("conv2d_wgrad_winograd", "conv2d_wgrad_winograd_workspace"),
}
DIRECT: Bindings = {
    "fprop": ("conv2d_fprop_direct", "conv2d_fprop_direct_workspace"),
    "dgrad": ("conv2d_dgrad_direct", "conv2d_dgrad_direct_workspace"),
    "wgrad": ("conv2d_wgrad_direct", "conv2d_wgrad_direct_workspace"),
}
NARROW_GROUPS: Bindings = {
    "fprop": ("conv2d_fprop_narrow_groups", "conv2d_fprop_narrow_groups_workspace"),
    "dgrad": ("conv2d_dgrad_narrow_groups", "conv2d_dgrad_narrow_groups_workspace"),
    "wgrad": ("conv2d_wgrad_narrow_groups", "conv2d_wgrad_narrow_groups_workspace"),
}
POINTWISE: Bindings = {
    "fprop": ("conv2d_fprop_pointwise", "conv2d_fprop_pointwise_workspace"),
    "dgrad": ("conv2d_dgrad_pointwise", "conv2d_dgrad_pointwise_workspace"),
}
FEW_CHANNELS: Bindings = {"wgrad": ("conv2d_wgrad_few_channels", "conv2d_wgrad_few_channels_workspace")}


def _register(
    algorithm: str,
    layout: str,
    rank: int,
    error: float,
    when: Callable[..., str | None],
    bindings: Bindings,
    frames: int = 0,
    flops: Callable[..., int] | None = None,
) -> None:
    """Register the passes of one algorithm for one layout.

    `frames`: its maps lie in frames of zeros, of so many channels at a time; 0: they do not. `flops`: the
    operations of a pass, where they are fewer than the definition's.
    """
    flags = _flags(layout)

    def declared(way: str) -> dict[str, Any]:
        def workspace(g: Conv2d) -> int:
            kernels = extension.kernels()
            assert kernels is not None
            return int(getattr(kernels, bindings[way][1])(numbers(g), *flags))

        @lru_cache(maxsize=1024)
        def decided(isa: str, g: Conv2d) -> str | None:
            # Frames first: the kernels' own numbers have 64 bits, which those of absurd ones do not fit.
            if frames and (reason := excess(_frames(g, frames), g, "x", "w", "y")):
                return reason
            if (reason := _blocks_fit(g, layout) or when(g, way, layout)) or g.empty:
                return reason
            return excess(workspace(g), g, "x", "w", "y")

        def fits(g: Conv2d) -> str | None:
            return decided(extension.isa(), g)

        return {
            "name": algorithm, "rank": rank, "error": error, "layout": layout, "float64": False,
            "compiled": True, "missing": extension.kernels_missing, "when": fits, "workspace": workspace,
            "flops": partial(flops, way=way) if flops else None,
        }  # fmt: skip

    def bind(way: str, g: Conv2d) -> tuple[Any, ...]:
        run = getattr(extension.kernels(), bindings[way][0])
        return run, numbers(g), *flags, threads.count

    if "fprop" in bindings:

        @prepares("conv2d_fprop", **declared("fprop"))
        def fprop(g: Conv2d) -> Launch:
            run, extents, x_blocked, y_blocked, count = bind("fprop", g)

            def launch(
                x: Array, w: Array, b: Array | None, y: Array, relu: bool = False, *, workspace: Array
            ) -> None:
                run(extents, x_blocked, y_blocked, x, w, b, y, relu, workspace, count())

            return launch

    if "dgrad" in bindings:

        @prepares("conv2d_dgrad", **declared("dgrad"))
        def dgrad(g: Conv2d) -> Launch:
            run, extents, x_blocked, y_blocked, count = bind("dgrad", g)

            def launch(dy: Array, w: Array, dx: Array, *, workspace: Array) -> None:
                run(extents, x_blocked, y_blocked, dy, w, None, dx, workspace, count())

            return launch

        @prepares("conv2d_dgrad_relu", **declared("dgrad"))
        def dgrad_relu(g: Conv2d) -> Launch:
            run, extents, x_blocked, y_blocked, count = bind("dgrad", g)

            def launch(dy: Array, w: Array, x: Array, dx: Array, *, workspace: Array) -> None:
                run(extents, x_blocked, y_blocked, dy, w, x, dx, workspace, count())

            return launch

    if "wgrad" in bindings:

        @prepares("conv2d_wgrad", **declared("wgrad"))
        def wgrad(g: Conv2d) -> Launch:
            run, extents, x_blocked, y_blocked, count = bind("wgrad", g)

            def launch(x: Array, dy: Array, dw: Array, *, workspace: Array) -> None:
                run(extents, x_blocked, y_blocked, x, dy, dw, workspace, count())

            return launch


def _asked(refusal: str) -> Callable[..., str | None]:
    """`when` of an algorithm that says itself what it cannot do, by the binding of that name."""

    def when(g: Conv2d, way: str, layout: str) -> str | None:
        return getattr(extension.kernels(), refusal)(numbers(g))

    return when


def _winograd(g: Conv2d, way: str, layout: str) -> str | None:
    stride = g.stride_h if g.P > 1 else 1  # as the kernels see it
    if stride > 1 and layouts.of(layout, "x") == BLOCKED:
        return "a stride is taken away on NCHW images only"
    if (reason := _asked("conv2d_winograd_refusal")(g, way, layout)) is not None:
        return reason
    if g.H < g.R or g.W < g.S:
        return "where the window is larger than the image, few of its taps count, and the rounding of all"
    if way != "dgrad" and g.groups * stride == 1 and g.C <= FEW:
        return f"with {g.C} channels, its transforms cost more than it saves"
    outputs = 8 - -(-g.R // stride)  # of a tile's side
    tiles = g.N * -(-g.P // outputs) * -(-g.Q // outputs)
    if tiles < FEW_TILES and 4 * 49 * g.K * g.C // g.groups > FEW_BYTES:
        return f"with {tiles} tiles, its transformed weights cost more than it saves"
    return None


def _winograd_flops(g: Conv2d, way: str) -> int:
    """Multiply-adds of the 49 matrix products, as 2 each; a stride makes channels of the pixels it skips."""
    stride = g.stride_h if g.P > 1 else 1
    taps = -(-g.R // stride)
    outputs = 8 - taps  # of a tile's side
    rows, columns = g.P, g.Q
    if way == "dgrad":
        rows, columns = (g.H, g.W) if stride == 1 else (g.P + taps - 1, g.Q + taps - 1)
    tiles = g.N * -(-rows // outputs) * -(-columns // outputs)
    return 2 * 49 * tiles * g.K * g.C // g.groups * stride * stride


_register("narrow_groups", "NCHW", 40, 1e-6, _asked("conv2d_narrow_groups_refusal"), NARROW_GROUPS, frames=1)
_register("pointwise", "NCHW", 35, 1e-6, _asked("conv2d_pointwise_refusal"), POINTWISE)
_register("few_channels", "NCHW", 25, 1e-6, _asked("conv2d_few_channels_refusal"), FEW_CHANNELS, frames=1)
for _layout in LAYOUTS:
    _register("winograd", _layout, 30, WINOGRAD_ERROR, _winograd, WINOGRAD, flops=_winograd_flops)
    _register("direct", _layout, 20, 1e-6, _asked("conv2d_direct_refusal"), DIRECT, frames=BLOCKED.block)
