"""PyTorch's layers on convkit's operators: subclasses that a layer is given as its class.

A layer keeps its identity that way: parameters, buffers, hooks, the keys of its state, and whoever refers to
it. What is added is one attribute, `convkit_impl`, which is the operators' argument `impl`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .operators.conv2d import conv2d
from .operators.linear import linear
from .operators.lrn import local_response_norm
from .operators.pooling import avg_pool2d, max_pool2d
from .operators.relu import relu


class OnConvkit:
    """What the classes below have in common."""

    convkit_impl: str = ""

    def extra_repr(self) -> str:
        own: str = super().extra_repr()  # type: ignore[misc]
        text = f"convkit={self.convkit_impl or 'picked'!r}"
        return f"{own}, {text}" if own else text


class Conv2d(OnConvkit, nn.Conv2d):
    """`torch.nn.Conv2d` on convkit."""

    def _conv_forward(
        self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            pads = self._reversed_padding_repeated_twice
            input = nn.functional.pad(input, pads, mode=self.padding_mode)
            padding = 0
        return conv2d(
            input, weight, bias, self.stride, padding, self.dilation, self.groups, impl=self.convkit_impl
        )


class Linear(OnConvkit, nn.Linear):
    """`torch.nn.Linear` on convkit."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return linear(input, self.weight, self.bias, impl=self.convkit_impl)


class ReLU(OnConvkit, nn.ReLU):
    """`torch.nn.ReLU` on convkit."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return relu(input, inplace=self.inplace, impl=self.convkit_impl)


class LocalResponseNorm(OnConvkit, nn.LocalResponseNorm):
    """`torch.nn.LocalResponseNorm` on convkit."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return local_response_norm(input, self.size, self.alpha, self.beta, self.k, impl=self.convkit_impl)


class MaxPool2d(OnConvkit, nn.MaxPool2d):
    """`torch.nn.MaxPool2d` on convkit."""

    def forward(self, input: torch.Tensor) -> Any:
        return max_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            self.return_indices,
            impl=self.convkit_impl,
        )


class AvgPool2d(OnConvkit, nn.AvgPool2d):
    """`torch.nn.AvgPool2d` on convkit."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            impl=self.convkit_impl,
        )


#: For each kind of layer, PyTorch's class and the one on convkit.
KINDS: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "conv2d": (nn.Conv2d, Conv2d),
    "relu": (nn.ReLU, ReLU),
    "local_response_norm": (nn.LocalResponseNorm, LocalResponseNorm),
    "max_pool2d": (nn.MaxPool2d, MaxPool2d),
    "avg_pool2d": (nn.AvgPool2d, AvgPool2d),
    "linear": (nn.Linear, Linear),
}


def refusal(kind: str, layer: nn.Module) -> str | None:
    """Why a layer of that kind is left as it is, or None."""
    plain, ours = KINDS[kind]
    if nn.utils.parametrize.is_parametrized(layer):
        return "parametrized: swap it before it is parametrized"
    if type(layer) not in (plain, ours):
        return f"of the class {type(layer).__name__}, which may compute something else"
    if "forward" in vars(layer) or "_conv_forward" in vars(layer):
        return "its forward has been replaced"
    if kind == "avg_pool2d" and getattr(layer, "divisor_override", None) is not None:
        return "divisor_override is not covered"
    if kind == "local_response_norm" and not float(layer.k) > 0:  # type: ignore[arg-type]
        return f"k = {layer.k} is not positive"
    for name, parameter in layer.named_parameters(recurse=False):
        if parameter.dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
            return f"{name} is of {parameter.dtype}"
    return None
