"""2-D convolution as an operator of PyTorch."""

from __future__ import annotations

from typing import Any

import torch

from ...ops.conv2d import conv2d_bgrad, conv2d_dgrad, conv2d_fprop, conv2d_wgrad
from ...ops.window import output_extent
from ...options import integer
from .library import (
    Impl,
    TorchOptionError,
    TorchShapeError,
    array,
    autocast,
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
#: Arguments of every operator here, as the schema has them; padding is [top, bottom, left, right].
_OPTIONS = "int[] stride, int[] padding, int[] dilation, int groups"


def _options(stride: Ints, padding: Ints, dilation: Ints, groups: int) -> dict[str, Any]:
    top, bottom, left, right = padding
    return {
        "stride": tuple(stride),
        "padding": ((top, bottom), (left, right)),
        "dilation": tuple(dilation),
        "groups": groups,
    }


# ---------------------------------------------------------------------------------------------------
# Kernels
# ---------------------------------------------------------------------------------------------------
def _fprop(
    x: torch.Tensor,
    w: torch.Tensor,
    b: torch.Tensor | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    impl: str,
) -> torch.Tensor:
    y = conv2d_fprop(
        array(x),
        array(w),
        None if b is None else array(b),
        **_options(stride, padding, dilation, groups),
        impl=name_of("conv2d_fprop", "conv2d", impl),
    )
    return tensor(y, channels_last(x))


def _dgrad(
    dy: torch.Tensor,
    w: torch.Tensor,
    x_shape: Ints,
    last: bool,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    impl: str,
) -> torch.Tensor:
    dx = conv2d_dgrad(
        array(dy),
        array(w),
        tuple(x_shape),
        **_options(stride, padding, dilation, groups),
        impl=name_of("conv2d_dgrad", "conv2d", impl),
    )
    return tensor(dx, last)


def _wgrad(
    x: torch.Tensor,
    dy: torch.Tensor,
    w_shape: Ints,
    last: bool,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    impl: str,
) -> torch.Tensor:
    dw = conv2d_wgrad(
        array(x),
        array(dy),
        tuple(w_shape),
        **_options(stride, padding, dilation, groups),
        impl=name_of("conv2d_wgrad", "conv2d", impl),
    )
    return tensor(dw, last)


def _bgrad(dy: torch.Tensor, impl: str) -> torch.Tensor:
    return tensor(conv2d_bgrad(array(dy), impl=name_of("conv2d_bgrad", "conv2d", impl)))


# ---------------------------------------------------------------------------------------------------
# Without data
# ---------------------------------------------------------------------------------------------------
def _fake_fprop(
    x: Any, w: Any, b: Any, stride: Ints, padding: Ints, dilation: Ints, groups: int, impl: str
) -> Any:
    if x.dim() != 4 or w.dim() != 4 or x.shape[1] != w.shape[1] * groups:
        raise TorchShapeError(
            f"conv2d_fprop: w of shape {tuple(w.shape)} with groups = {groups} does not fit x of shape "
            f"{tuple(x.shape)}"
        )
    top, bottom, left, right = padding
    P = output_extent(x.shape[2], w.shape[2], stride[0], top, bottom, dilation[0])
    Q = output_extent(x.shape[3], w.shape[3], stride[1], left, right, dilation[1])
    return empty(x, (x.shape[0], w.shape[0], P, Q), channels_last(x))


# ---------------------------------------------------------------------------------------------------
# Gradients: each is a convolution, or a gradient of one, again
# ---------------------------------------------------------------------------------------------------
def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    x, w, _, *ctx.options = inputs
    ctx.save_for_backward(x if w.requires_grad else None, w if x.requires_grad else None)
    ctx.x_shape, ctx.w_shape = x.shape, w.shape
    ctx.x_last, ctx.w_last = channels_last(x), channels_last(w)


def _backward(ctx: Any, dy: torch.Tensor) -> Any:
    x, w = ctx.saved_tensors
    needs = ctx.needs_input_grad
    dx = _DGRAD(dy, w, ctx.x_shape, ctx.x_last, *ctx.options) if needs[0] else None
    dw = _WGRAD(x, dy, ctx.w_shape, ctx.w_last, *ctx.options) if needs[1] else None
    db = _BGRAD(dy, ctx.options[-1]) if needs[2] else None
    return dx, dw, db, *[None] * 5


def _keep_dgrad(ctx: Any, inputs: Any, output: Any) -> None:
    dy, w, _, _, *ctx.options = inputs
    ctx.save_for_backward(dy, w)
    ctx.w_last = channels_last(w)


def _backward_dgrad(ctx: Any, g: torch.Tensor) -> Any:
    dy, w = ctx.saved_tensors
    needs = ctx.needs_input_grad
    d_dy = _FPROP(g, w, None, *ctx.options) if needs[0] else None
    d_w = _WGRAD(g, dy, w.shape, ctx.w_last, *ctx.options) if needs[1] else None
    return d_dy, d_w, *[None] * 7


def _keep_wgrad(ctx: Any, inputs: Any, output: Any) -> None:
    x, dy, _, _, *ctx.options = inputs
    ctx.save_for_backward(x, dy)
    ctx.x_last = channels_last(x)


def _backward_wgrad(ctx: Any, g: torch.Tensor) -> Any:
    x, dy = ctx.saved_tensors
    needs = ctx.needs_input_grad
    d_x = _DGRAD(dy, g, x.shape, ctx.x_last, *ctx.options) if needs[0] else None
    d_dy = _FPROP(x, g, None, *ctx.options) if needs[1] else None
    return d_x, d_dy, *[None] * 7


def _keep_bgrad(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.shape = inputs[0].shape


def _backward_bgrad(ctx: Any, g: torch.Tensor) -> Any:
    return g[:, None, None].expand(ctx.shape), None


_DGRAD = define(
    f"conv2d_dgrad(Tensor dy, Tensor w, SymInt[] x_shape, bool last, {_OPTIONS}, str impl) -> Tensor",
    _dgrad,
    lambda dy, w, x_shape, last, *options: empty(dy, x_shape, last),
    _backward_dgrad,
    _keep_dgrad,
)
_WGRAD = define(
    f"conv2d_wgrad(Tensor x, Tensor dy, SymInt[] w_shape, bool last, {_OPTIONS}, str impl) -> Tensor",
    _wgrad,
    lambda x, dy, w_shape, last, *options: empty(x, w_shape, last),
    _backward_wgrad,
    _keep_wgrad,
)
_BGRAD = define(
    "conv2d_bgrad(Tensor dy, str impl) -> Tensor",
    _bgrad,
    lambda dy, impl: empty(dy, (dy.shape[1],), False),
    _backward_bgrad,
    _keep_bgrad,
)
_FPROP = define(
    f"conv2d(Tensor x, Tensor w, Tensor? b, {_OPTIONS}, str impl) -> Tensor",
    _fprop,
    _fake_fprop,
    _backward,
    _keep,
)


def _padding(padding: Any, w: torch.Tensor, stride: Ints, dilation: Ints) -> Ints:
    """Padding as [top, bottom, left, right]."""
    if not isinstance(padding, str):
        vertical, horizontal = two("padding", padding, 0)
        return [vertical, vertical, horizontal, horizontal]
    if padding == "valid":
        return [0, 0, 0, 0]
    if padding != "same":
        raise TorchOptionError(f"conv2d: padding must be numbers, 'valid' or 'same', not {padding!r}")
    if stride != [1, 1]:
        raise TorchOptionError("conv2d: padding='same' is not supported for strided convolutions")
    down, across = dilation[0] * (int(w.shape[2]) - 1), dilation[1] * (int(w.shape[3]) - 1)
    return [down // 2, down - down // 2, across // 2, across - across // 2]


def conv2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    impl: Impl = None,
) -> torch.Tensor:
    """2-D convolution, as `torch.nn.functional.conv2d`.

    Parameters
    ----------
    input : Tensor, (N, C, H, W) or (C, H, W)
        float32, float64, float16 or bfloat16; under autocast, of its dtype.
    weight : Tensor, (K, C/groups, R, S)
    bias : Tensor, (K,), optional
    stride, dilation : int or pair
    padding : int, pair, "valid" or "same"
    groups : int
    impl : str or dict, optional
        Implementation: a name, which counts for each pass that has one of that name, or names by pass:
        ``{"fprop": ..., "dgrad": ..., "wgrad": ..., "bgrad": ...}``.

    Returns
    -------
    Tensor
        In the input's memory format.

    Raises
    ------
    ShapeError, DtypeError, OptionError, NoImplementation
        Each is also a RuntimeError, as PyTorch raises.
    """
    x, single = batched(input, "conv2d")
    stride, dilation = two("stride", stride, 1), two("dilation", dilation, 1)
    if weight.dim() != 4:
        raise TorchShapeError(f"conv2d: weight must be (K, C/groups, R, S), not {tuple(weight.shape)}")
    pads = _padding(padding, weight, stride, dilation)
    x, weight, bias = autocast(x, weight, bias)
    groups = integer("groups", groups, 1)
    y: torch.Tensor = _FPROP(x, weight, bias, stride, pads, dilation, groups, chosen("conv2d", impl))
    return y.squeeze(0) if single else y
