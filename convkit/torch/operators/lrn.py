"""Local response normalisation as an operator of PyTorch."""

from __future__ import annotations

from typing import Any

import torch

from ...ops.lrn import lrn_dgrad, lrn_fprop
from .library import Impl, TorchShapeError, array, channels_last, chosen, define, empty, name_of, tensor

_FAMILY = "local_response_norm"
_OPTIONS = "int size, float alpha, float beta, float k"


def _call(op: Any, name: str, tensors: tuple[torch.Tensor, ...], last: bool, *given: Any) -> torch.Tensor:
    """An even window of PyTorch's reaches further behind than ahead, and convkit's the other way."""
    size, alpha, beta, k, impl = given
    turned = size % 2 == 0
    arrays = [array(t.flip(1) if turned else t) for t in tensors]
    result = op(*arrays, size=size, alpha=alpha, beta=beta, k=k, impl=name_of(name, _FAMILY, impl))
    if not turned:
        return tensor(result, last)
    return empty(tensors[0], tensors[0].shape, last).copy_(tensor(result).flip(1))


def _fprop(x: torch.Tensor, *given: Any) -> torch.Tensor:
    return _call(lrn_fprop, "lrn_fprop", (x,), channels_last(x), *given)


def _dgrad(dy: torch.Tensor, x: torch.Tensor, *given: Any) -> torch.Tensor:
    return _call(lrn_dgrad, "lrn_dgrad", (dy, x), channels_last(x), *given)


# ---------------------------------------------------------------------------------------------------
# Gradients
# ---------------------------------------------------------------------------------------------------
def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    x, *ctx.options = inputs
    ctx.save_for_backward(x)


def _backward(ctx: Any, dy: torch.Tensor) -> Any:
    return _DGRAD(dy, ctx.saved_tensors[0], *ctx.options), *[None] * 5


def _keep_dgrad(ctx: Any, inputs: Any, output: Any) -> None:
    dy, x, *ctx.options = inputs
    ctx.save_for_backward(dy, x)


def _backward_dgrad(ctx: Any, g: torch.Tensor) -> Any:
    """The gradient's own gradient, in PyTorch's operators: no kernel of convkit computes it.

    With W the sum over the window of an element, W' over the windows that hold it, and d = k + a W(x^2),
    a = alpha/size: dx = dy d^-beta - c x W'(dy x d^(-beta-1)), c = 2 a beta.
    """
    dy, x = ctx.saved_tensors
    size, alpha, beta, k, _ = ctx.options
    a = alpha / size
    c = 2 * a * beta
    behind, ahead = size // 2, (size - 1) // 2

    def window(v: torch.Tensor, before: int, after: int) -> torch.Tensor:
        padded = torch.nn.functional.pad(v, (0, 0, 0, 0, before, after))
        return padded.unfold(1, size, 1).sum(-1)

    d = k + a * window(x * x, behind, ahead)
    first, second = d**-beta, d ** (-beta - 1)
    shared = window(g * x, behind, ahead)
    d_dy = g * first - c * x * second * shared
    d_d = -beta * g * dy * second + c * (beta + 1) * shared * dy * x * second / d
    d_x = -c * (g * window(dy * x * second, ahead, behind) + shared * dy * second)
    d_x = d_x + 2 * a * x * window(d_d, ahead, behind)
    return d_dy, d_x, *[None] * 5


_DGRAD = define(
    f"lrn_dgrad(Tensor dy, Tensor x, {_OPTIONS}, str impl) -> Tensor",
    _dgrad,
    lambda dy, x, *options: empty(dy, x.shape, channels_last(x)),
    _backward_dgrad,
    _keep_dgrad,
)
_FPROP = define(
    f"local_response_norm(Tensor x, {_OPTIONS}, str impl) -> Tensor",
    _fprop,
    lambda x, *options: empty(x, x.shape, channels_last(x)),
    _backward,
    _keep,
)


def local_response_norm(
    input: torch.Tensor,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    *,
    impl: Impl = None,
) -> torch.Tensor:
    """Local response normalisation, as `torch.nn.functional.local_response_norm`.

    Parameters
    ----------
    input : Tensor, (N, C, ...)
        At least three dimensions.
    size : int
        Channels in a window: [c - size//2, c + (size-1)//2], as in PyTorch.
    alpha, beta, k : float
        k must be positive.
    impl : str or dict, optional
        As in `relu`.

    Returns
    -------
    Tensor
        In the input's memory format.
    """
    if input.dim() < 3:
        raise TorchShapeError(
            f"local_response_norm: input must have at least 3 dimensions, not {input.dim()}"
        )
    if input.numel() == 0:
        return input
    shape = input.shape
    x = input if input.dim() == 4 else input.reshape(shape[0], shape[1], -1, shape[-1])
    y: torch.Tensor = _FPROP(x, size, float(alpha), float(beta), float(k), chosen(_FAMILY, impl))
    return y if input.dim() == 4 else y.reshape(shape)
