"""2-D max pooling and average pooling as operators of PyTorch."""

from __future__ import annotations

from typing import Any

import torch

from ...ops.avgpool2d import avgpool2d_dgrad, avgpool2d_fprop
from ...ops.maxpool2d import maxpool2d_dgrad, maxpool2d_fprop
from ...ops.window import output_extent, window_span
from ...options import flag
from .library import (
    Impl,
    TorchOptionError,
    array,
    batched,
    channels_last,
    chosen,
    define,
    empty,
    name_of,
    tensor,
    two,
)

Ints = list[int]
_WINDOW = "int[] window, int[] stride, int[] padding"


def _extents(
    x_shape: Any, window: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil_mode: bool
) -> tuple[Any, Any]:
    """P and Q."""
    P, Q = (
        output_extent(x_shape[2 + i], window[i], stride[i], padding[i], padding[i], dilation[i], ceil_mode)
        for i in (0, 1)
    )
    return P, Q


# ---------------------------------------------------------------------------------------------------
# Max pooling: what is kept for the backward pass is a byte for each window
# ---------------------------------------------------------------------------------------------------
def _max_options(
    window: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil_mode: bool
) -> dict[str, Any]:
    return {
        "window": tuple(window),
        "stride": tuple(stride),
        "padding": tuple(padding),
        "dilation": tuple(dilation),
        "ceil_mode": ceil_mode,
    }


def _max_fprop(x: torch.Tensor, *given: Any) -> tuple[torch.Tensor, torch.Tensor]:
    *options, impl = given
    name = name_of("maxpool2d_fprop", "max_pool2d", impl)
    y, argmax = maxpool2d_fprop(array(x), **_max_options(*options), impl=name)
    last = channels_last(x)
    return tensor(y, last), tensor(argmax, last)


def _fake_max_fprop(x: Any, *given: Any) -> Any:
    *options, _ = given
    last, taps = channels_last(x), options[0][0] * options[0][1]
    shape = (*x.shape[:2], *_extents(x.shape, *options))
    dtype = torch.uint8 if taps <= 2**8 else torch.uint16 if taps <= 2**16 else torch.uint32
    return empty(x, shape, last), empty(x, shape, last, dtype)


def _max_dgrad(
    dy: torch.Tensor, argmax: torch.Tensor, x_shape: Ints, last: bool, *given: Any
) -> torch.Tensor:
    *options, impl = given
    name = name_of("maxpool2d_dgrad", "max_pool2d", impl)
    dx = maxpool2d_dgrad(array(dy), array(argmax), tuple(x_shape), **_max_options(*options), impl=name)
    return tensor(dx, last)


def _indices(
    argmax: torch.Tensor, x_shape: Any, window: Ints, stride: Ints, padding: Ints, dilation: Ints
) -> torch.Tensor:
    """Positions in each map, h*W + w, for positions in each window."""
    taps = argmax.to(torch.int64)
    p = torch.arange(argmax.shape[2], device=argmax.device)[:, None]
    q = torch.arange(argmax.shape[3], device=argmax.device)
    h = p * stride[0] - padding[0] + taps // window[1] * dilation[0]
    w = q * stride[1] - padding[1] + taps % window[1] * dilation[1]
    return h * x_shape[3] + w


def _max_keep(ctx: Any, inputs: Any, output: Any) -> None:
    x, *ctx.options = inputs
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.x_shape, ctx.last = x.shape, channels_last(x)


def _max_backward(ctx: Any, dy: torch.Tensor | None, _: Any) -> Any:
    if dy is None:
        return (None,) * 7
    return _MAX_DGRAD(dy, ctx.saved_tensors[0], ctx.x_shape, ctx.last, *ctx.options), *[None] * 6


def _max_keep_dgrad(ctx: Any, inputs: Any, output: Any) -> None:
    _, argmax, ctx.x_shape, _, *ctx.options = inputs
    ctx.save_for_backward(argmax)


def _max_backward_dgrad(ctx: Any, g: torch.Tensor) -> Any:
    """Each window takes what its winner gets."""
    (argmax,) = ctx.saved_tensors
    indices = _indices(argmax, ctx.x_shape, *ctx.options[:4])
    d_dy = g.flatten(2).gather(2, indices.flatten(2)).view_as(indices)
    return d_dy, *[None] * 9


_MAX_DGRAD = define(
    f"max_pool2d_dgrad(Tensor dy, Tensor argmax, SymInt[] x_shape, bool last, {_WINDOW}, int[] dilation, "
    "bool ceil_mode, str impl) -> Tensor",
    _max_dgrad,
    lambda dy, argmax, x_shape, last, *options: empty(dy, x_shape, last),
    _max_backward_dgrad,
    _max_keep_dgrad,
)
_MAX_FPROP = define(
    f"max_pool2d(Tensor x, {_WINDOW}, int[] dilation, bool ceil_mode, str impl) -> (Tensor, Tensor)",
    _max_fprop,
    _fake_max_fprop,
    _max_backward,
    _max_keep,
)


def _options(kernel_size: Any, stride: Any, padding: Any) -> tuple[Ints, Ints, Ints]:
    window = two("kernel_size", kernel_size, 1)
    given = stride is not None and stride != () and stride != []
    return window, two("stride", stride, 1) if given else window, two("padding", padding, 0)


def _half(what: str, window: Ints, padding: Ints, dilation: Ints) -> None:
    """PyTorch's limit of the padding."""
    for i in (0, 1):
        if padding[i] > window_span(window[i], dilation[i]) // 2:
            raise TorchOptionError(
                f"{what}: padding {tuple(padding)} must be at most half of the effective kernel size, "
                f"kernel_size {tuple(window)} with dilation {tuple(dilation)}"
            )


def max_pool2d(
    input: torch.Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    impl: Impl = None,
) -> Any:
    """2-D max pooling, as `torch.nn.functional.max_pool2d`.

    Parameters
    ----------
    input : Tensor, (N, C, H, W) or (C, H, W)
    kernel_size, stride, padding, dilation : int or pair
        `stride` is that of the window's size by default.
    ceil_mode, return_indices : bool
    impl : str or dict, optional
        As in `relu`.

    Returns
    -------
    output : Tensor
        In the input's memory format.
    indices : Tensor of int64, where `return_indices`
        Position of the maximum in its map, h*W + w. Of equal values the first; of several NaNs the first
        too, where PyTorch has the last.
    """
    x, single = batched(input, "max_pool2d")
    window, stride, padding = _options(kernel_size, stride, padding)
    dilation = two("dilation", dilation, 1)
    _half("max_pool2d", window, padding, dilation)
    text, ceil = chosen("max_pool2d", impl), flag("ceil_mode", ceil_mode)
    y, argmax = _MAX_FPROP(x, window, stride, padding, dilation, ceil, text)
    if not return_indices:
        return y.squeeze(0) if single else y
    indices = _indices(argmax, x.shape, window, stride, padding, dilation)
    return (y.squeeze(0), indices.squeeze(0)) if single else (y, indices)


# ---------------------------------------------------------------------------------------------------
# Average pooling
# ---------------------------------------------------------------------------------------------------
def _avg_options(
    window: Ints, stride: Ints, padding: Ints, ceil_mode: bool, count_include_pad: bool
) -> dict[str, Any]:
    return {
        "window": tuple(window),
        "stride": tuple(stride),
        "padding": tuple(padding),
        "ceil_mode": ceil_mode,
        "count_include_pad": count_include_pad,
    }


def _avg_fprop(x: torch.Tensor, *given: Any) -> torch.Tensor:
    *options, impl = given
    name = name_of("avgpool2d_fprop", "avg_pool2d", impl)
    return tensor(avgpool2d_fprop(array(x), **_avg_options(*options), impl=name), channels_last(x))


def _fake_avg_fprop(x: Any, *given: Any) -> Any:
    window, stride, padding, ceil_mode, _, _ = given
    shape = (*x.shape[:2], *_extents(x.shape, window, stride, padding, [1, 1], ceil_mode))
    return empty(x, shape, channels_last(x))


def _avg_dgrad(dy: torch.Tensor, x_shape: Ints, last: bool, *given: Any) -> torch.Tensor:
    *options, impl = given
    name = name_of("avgpool2d_dgrad", "avg_pool2d", impl)
    return tensor(avgpool2d_dgrad(array(dy), tuple(x_shape), **_avg_options(*options), impl=name), last)


def _avg_keep(ctx: Any, inputs: Any, output: Any) -> None:
    x, *ctx.options = inputs
    ctx.x_shape, ctx.last = x.shape, channels_last(x)


def _avg_backward(ctx: Any, dy: torch.Tensor) -> Any:
    return _AVG_DGRAD(dy, ctx.x_shape, ctx.last, *ctx.options), *[None] * 6


def _avg_keep_dgrad(ctx: Any, inputs: Any, output: Any) -> None:
    _, _, _, *ctx.options = inputs


def _avg_backward_dgrad(ctx: Any, g: torch.Tensor) -> Any:
    return _AVG_FPROP(g, *ctx.options), *[None] * 8


_AVG_DGRAD = define(
    f"avg_pool2d_dgrad(Tensor dy, SymInt[] x_shape, bool last, {_WINDOW}, bool ceil_mode, "
    "bool count_include_pad, str impl) -> Tensor",
    _avg_dgrad,
    lambda dy, x_shape, last, *options: empty(dy, x_shape, last),
    _avg_backward_dgrad,
    _avg_keep_dgrad,
)
_AVG_FPROP = define(
    f"avg_pool2d(Tensor x, {_WINDOW}, bool ceil_mode, bool count_include_pad, str impl) -> Tensor",
    _avg_fprop,
    _fake_avg_fprop,
    _avg_backward,
    _avg_keep,
)


def avg_pool2d(
    input: torch.Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    impl: Impl = None,
) -> torch.Tensor:
    """2-D average pooling, as `torch.nn.functional.avg_pool2d`.

    Parameters
    ----------
    input : Tensor, (N, C, H, W) or (C, H, W)
    kernel_size, stride, padding : int or pair
        `stride` is that of the window's size by default.
    ceil_mode, count_include_pad : bool
    divisor_override : None
        Nothing else is covered.
    impl : str or dict, optional
        As in `relu`.

    Returns
    -------
    Tensor
        In the input's memory format.
    """
    x, single = batched(input, "avg_pool2d")
    if divisor_override is not None:
        raise TorchOptionError("avg_pool2d: divisor_override is not covered; scale the result instead")
    window, stride, padding = _options(kernel_size, stride, padding)
    _half("avg_pool2d", window, padding, [1, 1])
    flags = flag("ceil_mode", ceil_mode), flag("count_include_pad", count_include_pad)
    y: torch.Tensor = _AVG_FPROP(x, window, stride, padding, *flags, chosen("avg_pool2d", impl))
    return y.squeeze(0) if single else y
