"""The fully connected layer as an operator of PyTorch."""

from __future__ import annotations

from typing import Any

import torch

from ...ops.linear import linear_bgrad, linear_dgrad, linear_fprop, linear_wgrad
from .library import Impl, TorchShapeError, array, autocast, chosen, define, empty, name_of, tensor


def _fprop(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None, impl: str) -> torch.Tensor:
    bias = None if b is None else array(b)
    return tensor(linear_fprop(array(x), array(w), bias, impl=name_of("linear_fprop", "linear", impl)))


def _dgrad(dy: torch.Tensor, w: torch.Tensor, impl: str) -> torch.Tensor:
    return tensor(linear_dgrad(array(dy), array(w), impl=name_of("linear_dgrad", "linear", impl)))


def _wgrad(x: torch.Tensor, dy: torch.Tensor, impl: str) -> torch.Tensor:
    return tensor(linear_wgrad(array(x), array(dy), impl=name_of("linear_wgrad", "linear", impl)))


def _bgrad(dy: torch.Tensor, impl: str) -> torch.Tensor:
    return tensor(linear_bgrad(array(dy), impl=name_of("linear_bgrad", "linear", impl)))


def _fake_fprop(x: Any, w: Any, b: Any, impl: str) -> Any:
    if x.dim() != 2 or w.dim() != 2 or x.shape[1] != w.shape[1]:
        raise TorchShapeError(f"linear_fprop: w of {tuple(w.shape)} does not fit x of {tuple(x.shape)}")
    return empty(x, (x.shape[0], w.shape[0]), False)


# ---------------------------------------------------------------------------------------------------
# Gradients: y = x w^T, dx = dy w and dw = dy^T x are each a product of the two others
# ---------------------------------------------------------------------------------------------------
def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    x, w, _, ctx.impl = inputs
    ctx.save_for_backward(x if w.requires_grad else None, w if x.requires_grad else None)


def _backward(ctx: Any, dy: torch.Tensor) -> Any:
    x, w = ctx.saved_tensors
    needs = ctx.needs_input_grad
    return (
        _DGRAD(dy, w, ctx.impl) if needs[0] else None,
        _WGRAD(x, dy, ctx.impl) if needs[1] else None,
        _BGRAD(dy, ctx.impl) if needs[2] else None,
        None,
    )


def _keep_two(ctx: Any, inputs: Any, output: Any) -> None:
    first, second, ctx.impl = inputs
    ctx.save_for_backward(first, second)


def _backward_dgrad(ctx: Any, g: torch.Tensor) -> Any:
    dy, w = ctx.saved_tensors
    needs = ctx.needs_input_grad
    d_dy = _FPROP(g, w, None, ctx.impl) if needs[0] else None
    return d_dy, _WGRAD(g, dy, ctx.impl) if needs[1] else None, None


def _backward_wgrad(ctx: Any, g: torch.Tensor) -> Any:
    x, dy = ctx.saved_tensors
    needs = ctx.needs_input_grad
    d_x = _DGRAD(dy, g, ctx.impl) if needs[0] else None
    return d_x, _FPROP(x, g, None, ctx.impl) if needs[1] else None, None


def _keep_bgrad(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.shape = inputs[0].shape


def _backward_bgrad(ctx: Any, g: torch.Tensor) -> Any:
    return g.expand(ctx.shape), None


_DGRAD = define(
    "linear_dgrad(Tensor dy, Tensor w, str impl) -> Tensor",
    _dgrad,
    lambda dy, w, impl: empty(dy, (dy.shape[0], w.shape[1]), False),
    _backward_dgrad,
    _keep_two,
)
_WGRAD = define(
    "linear_wgrad(Tensor x, Tensor dy, str impl) -> Tensor",
    _wgrad,
    lambda x, dy, impl: empty(x, (dy.shape[1], x.shape[1]), False),
    _backward_wgrad,
    _keep_two,
)
_BGRAD = define(
    "linear_bgrad(Tensor dy, str impl) -> Tensor",
    _bgrad,
    lambda dy, impl: empty(dy, (dy.shape[1],), False),
    _backward_bgrad,
    _keep_bgrad,
)
_FPROP = define(
    "linear(Tensor x, Tensor w, Tensor? b, str impl) -> Tensor", _fprop, _fake_fprop, _backward, _keep
)


def linear(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, impl: Impl = None
) -> torch.Tensor:
    """Fully connected layer, as `torch.nn.functional.linear`.

    Parameters
    ----------
    input : Tensor, (..., C)
        float32, float64, float16 or bfloat16; under autocast, of its dtype.
    weight : Tensor, (K, C) or (C,)
    bias : Tensor, (K,), or of no dimension, optional
    impl : str or dict, optional
        As in `conv2d`.

    Returns
    -------
    Tensor, (..., K), or (...) where the weight is (C,)
    """
    if weight.dim() not in (1, 2) or input.dim() == 0:
        raise TorchShapeError(
            f"linear: weight must be (K, C) or (C,) and input (..., C), not {tuple(weight.shape)} and "
            f"{tuple(input.shape)}"
        )
    x, w, b = autocast(input, weight, bias)
    vector = w.dim() == 1
    if vector:
        w, b = w.unsqueeze(0), None if b is None else b.reshape(1)
    elif b is not None and b.dim() == 0:
        b = b.expand(w.shape[0])
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    y: torch.Tensor = _FPROP(rows, w, b, chosen("linear", impl))
    if vector:
        return y.reshape(x.shape[:-1])
    return y if x.dim() == 2 else y.reshape(*x.shape[:-1], w.shape[0])
