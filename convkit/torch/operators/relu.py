"""ReLU as an operator of PyTorch."""

from __future__ import annotations

from typing import Any

import torch

from ...ops.relu import relu_dgrad, relu_fprop
from .library import Impl, array, channels_last, chosen, define, empty, name_of, tensor

_NHWC, _BACK = (0, 2, 3, 1), (0, 3, 1, 2)


def _each(op: Any, last: bool, impl: str | None, *tensors: torch.Tensor) -> torch.Tensor:
    """An elementwise op; of channels_last tensors in the order of their memory."""
    if not last:
        return tensor(op(*[array(t) for t in tensors], impl=impl))
    result = tensor(op(*[array(t.permute(_NHWC)) for t in tensors], impl=impl))
    return result.permute(_BACK)


def _fprop(x: torch.Tensor, impl: str) -> torch.Tensor:
    return _each(relu_fprop, channels_last(x), name_of("relu_fprop", "relu", impl), x)


def _dgrad(dy: torch.Tensor, y: torch.Tensor, impl: str) -> torch.Tensor:
    return _each(relu_dgrad, channels_last(y), name_of("relu_dgrad", "relu", impl), dy, y)


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(output)
    ctx.impl = inputs[-1]


def _backward(ctx: Any, dy: torch.Tensor) -> Any:
    return _DGRAD(dy, ctx.saved_tensors[0], ctx.impl), None


def _keep_dgrad(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.impl = inputs[-1]


def _backward_dgrad(ctx: Any, g: torch.Tensor) -> Any:
    return _DGRAD(g, ctx.saved_tensors[0], ctx.impl), None, None


_DGRAD = define(
    "relu_dgrad(Tensor dy, Tensor y, str impl) -> Tensor",
    _dgrad,
    lambda dy, y, impl: empty(dy, dy.shape, channels_last(y)),
    _backward_dgrad,
    _keep_dgrad,
)
_FPROP = define(
    "relu(Tensor x, str impl) -> Tensor",
    _fprop,
    lambda x, impl: empty(x, x.shape, channels_last(x)),
    _backward,
    _keep,
)


def relu(input: torch.Tensor, inplace: bool = False, *, impl: Impl = None) -> torch.Tensor:
    """Rectified linear unit, as `torch.nn.functional.relu`.

    Parameters
    ----------
    input : Tensor
        Of any shape; float32, float64, float16 or bfloat16.
    inplace : bool
        Write the result into `input` as well, and return that. It is computed beside it, then copied.
    impl : str or dict, optional
        Implementation: a name, or one for each pass, ``{"fprop": ..., "dgrad": ...}``.

    Returns
    -------
    Tensor
        In the input's memory format.
    """
    y: torch.Tensor = _FPROP(input, chosen("relu", impl))
    return input.copy_(y) if inplace else y
