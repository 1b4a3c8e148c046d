"""Layers: hyper-parameters, and which ops they are made of, forward and backward.

A layer is a frozen description: for an input's shape it says which ops it needs, on which problems. It knows
nothing of plans, memory or devices; a network's plan puts the ops in a row, fuses some, and runs them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from ..errors import OptionError
from ..op import Problem, Shape
from ..ops.channel_sum import ChannelSum
from ..ops.conv2d import Conv2d
from ..ops.elementwise import Elementwise
from ..ops.linear import Linear as LinearProblem
from ..ops.lrn import LRN
from ..ops.maxpool2d import Pool2d
from ..options import finite, integer

Array = np.ndarray


# ---------------------------------------------------------------------------------------------------
# Initialisation
# ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Normal:
    """Normal values with mean 0.

    Parameters
    ----------
    sigma : float
        Standard deviation.
    """

    sigma: float

    def fill(self, rng: np.random.Generator, shape: Shape, fan_in: int) -> Array:
        return rng.standard_normal(shape, np.float32) * np.float32(self.sigma)

    def __str__(self) -> str:
        return f"normal, sigma {self.sigma:g}"


@dataclass(frozen=True)
class Constant:
    """One value everywhere.

    Parameters
    ----------
    value : float
    """

    value: float

    def fill(self, rng: np.random.Generator, shape: Shape, fan_in: int) -> Array:
        return np.full(shape, self.value, np.float32)

    def __str__(self) -> str:
        return f"{self.value:g}"


@dataclass(frozen=True)
class FanInUniform:
    """Uniform on +-1/sqrt(fan in): torch.nn's default for convolutions and linear layers."""

    def fill(self, rng: np.random.Generator, shape: Shape, fan_in: int) -> Array:
        bound = 1 / np.sqrt(fan_in)
        return rng.uniform(-bound, bound, shape).astype(np.float32)

    def __str__(self) -> str:
        return "uniform, +-1/sqrt(fan in)"


@dataclass(frozen=True)
class He:
    """Normal values with mean 0 and standard deviation sqrt(2/fan in).

    Activations then keep their scale through any number of layers with ReLUs.

    Source
    ------
    He, Zhang, Ren, Sun, "Delving deep into rectifiers", ICCV 2015, equation 10.
    """

    def fill(self, rng: np.random.Generator, shape: Shape, fan_in: int) -> Array:
        return rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / fan_in))

    def __str__(self) -> str:
        return "normal, sigma sqrt(2/fan in)"


Init = Normal | Constant | FanInUniform | He


# ---------------------------------------------------------------------------------------------------
# Layers
# ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Use:
    """An op that a layer needs.

    Its tensors have the op's own names: x and y are the layer's input and output, dx and dy their gradients,
    w and b its parameters, dw and db theirs. What else it writes forward (argmax) is kept for its backward
    pass.

    Attributes
    ----------
    op : str
    problem : Problem
    options : mapping
        Keyword arguments of an implementation.
    """

    op: str
    problem: Problem
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Passes:
    """The ops of a layer: the one of its forward pass, and those of its backward pass, in order.

    Without a forward op the output is the input in another shape, in NCHW.
    """

    forward: Use | None
    backward: tuple[Use, ...] = ()


@dataclass(frozen=True)
class Layer:
    """Base of the layers.

    Attributes
    ----------
    name : str
        Unique in its network; parameters are called `name.w` and `name.b`.
    """

    name: str

    def parameters(self, x_shape: Shape, num_classes: int) -> dict[str, tuple[Shape, Init]]:
        """Shape and initialisation of each parameter, for an input of that shape."""
        return {}

    def output_shape(self, x_shape: Shape, num_classes: int) -> Shape:
        """Shape of the output for an input of that shape."""
        return x_shape

    def passes(self, x_shape: Shape, num_classes: int, dtype: str) -> Passes:
        """Its ops for an input of that shape and dtype."""
        raise NotImplementedError


@dataclass(frozen=True)
class Conv(Layer):
    """2-D convolution (cross-correlation) with bias: (N, C, H, W) to (N, filters, P, Q).

    Parameters `name.w`, (filters, C/groups, window, window), and `name.b`, (filters,).

    Parameters
    ----------
    name : str
    filters : int
        Output channels.
    window : int
        Height and width of the filters.
    weights, bias : Init
        How the parameters start: `Normal`, `Constant`, `FanInUniform` or `He`.
    stride : int
        Pixels from one position of the window to the next.
    padding : int, (vertical, horizontal) or ((top, bottom), (left, right))
        Pixels of zeros around the image.
    groups : int
        Groups that the channels are divided into, each with filters of its own. It must divide C and
        filters.
    """

    filters: int
    window: int
    weights: Init
    bias: Init
    stride: int = 1
    padding: Any = 0
    groups: int = 1

    def __post_init__(self) -> None:
        for name in ("filters", "window", "groups"):
            integer(f"{name} of {self.name}", getattr(self, name), 1)

    def parameters(self, x_shape: Shape, num_classes: int) -> dict[str, tuple[Shape, Init]]:
        w_shape = (self.filters, x_shape[1] // self.groups, self.window, self.window)
        return {"w": (w_shape, self.weights), "b": ((self.filters,), self.bias)}

    def problem(self, x_shape: Shape, dtype: str = "float32") -> Conv2d:
        """The convolution for an input of that shape."""
        w_shape, _ = self.parameters(x_shape, 0)["w"]
        return Conv2d.of(
            x_shape, w_shape, stride=self.stride, padding=self.padding, groups=self.groups, dtype=dtype
        )

    def output_shape(self, x_shape: Shape, num_classes: int) -> Shape:
        return self.problem(x_shape).shape("y")

    def passes(self, x_shape: Shape, num_classes: int, dtype: str) -> Passes:
        g = self.problem(x_shape, dtype)
        bias = ChannelSum.of(g.shape("y"), 4, dtype)
        return Passes(
            Use("conv2d_fprop", g, {"relu": False}),
            (Use("conv2d_bgrad", bias), Use("conv2d_wgrad", g), Use("conv2d_dgrad", g)),
        )


@dataclass(frozen=True)
class Linear(Layer):
    """Fully connected layer with bias: (N, C) to (N, filters).

    Parameters `name.w`, (filters, C), and `name.b`, (filters,).

    Parameters
    ----------
    name : str
    filters : int or None
        Outputs; None, for the last layer, means the network's number of classes.
    weights, bias : Init
        How the parameters start: `Normal`, `Constant`, `FanInUniform` or `He`.
    """

    filters: int | None
    weights: Init
    bias: Init

    def __post_init__(self) -> None:
        if self.filters is not None:
            integer(f"filters of {self.name}", self.filters, 1)

    def parameters(self, x_shape: Shape, num_classes: int) -> dict[str, tuple[Shape, Init]]:
        K = num_classes if self.filters is None else self.filters
        return {"w": ((K, x_shape[1]), self.weights), "b": ((K,), self.bias)}

    def output_shape(self, x_shape: Shape, num_classes: int) -> Shape:
        return x_shape[0], num_classes if self.filters is None else self.filters

    def passes(self, x_shape: Shape, num_classes: int, dtype: str) -> Passes:
        w_shape, _ = self.parameters(x_shape, num_classes)["w"]
        g = LinearProblem.of(x_shape, w_shape, dtype)
        bias = ChannelSum.of(g.shape("y"), 2, dtype)
        return Passes(
            Use("linear_fprop", g, {"relu": False}),
            (Use("linear_bgrad", bias), Use("linear_wgrad", g), Use("linear_dgrad", g)),
        )


@dataclass(frozen=True)
class Relu(Layer):
    """Rectified linear unit. Its gradient starts from its output, so that it may run in place.

    Parameters
    ----------
    name : str
    """

    def passes(self, x_shape: Shape, num_classes: int, dtype: str) -> Passes:
        g = Elementwise(x_shape, dtype)
        return Passes(Use("relu_fprop", g), (Use("relu_dgrad", g),))


@dataclass(frozen=True)
class Lrn(Layer):
    """Local response normalisation: ``y = x * (k + alpha/size * sum x^2)^-beta``.

    The backward pass starts from its input.

    Parameters
    ----------
    name : str
    size : int
        Channels, or pixels along each side, that the sum runs over.
    alpha, beta, k : float
        Constants of the formula; alpha is divided by size, as in Caffe and PyTorch.
    groups : int
        Groups that the channels are divided into; no sum crosses from one to the next.
    region : {"across_channels", "within_channel"}
        Whether the sum runs over channels at one pixel, or over size x size pixels of one channel.
    """

    size: int = 5
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 1.0
    groups: int = 1
    region: str = "across_channels"

    def problem(self, x_shape: Shape, dtype: str = "float32") -> LRN:
        """The normalisation of an input of that shape."""
        names = ("size", "alpha", "beta", "k", "groups", "region")
        return LRN.of(x_shape, **{name: getattr(self, name) for name in names}, dtype=dtype)

    def passes(self, x_shape: Shape, num_classes: int, dtype: str) -> Passes:
        g = self.problem(x_shape, dtype)
        return Passes(Use("lrn_fprop", g), (Use("lrn_dgrad", g),))


@dataclass(frozen=True)
class MaxPool(Layer):
    """Max pooling; the backward pass needs the place of each maximum, a byte.

    Parameters
    ----------
    name : str
    window : int
        Height and width of the window; windows overlap where stride is less.
    stride : int
        Pixels from one position of the window to the next.
    ceil_mode : bool
        Whether the last window may overhang the image, as in Caffe; else the rest of the image is left out.
    """

    window: int = 3
    stride: int = 2
    ceil_mode: bool = True

    def problem(self, x_shape: Shape, dtype: str = "float32") -> Pool2d:
        """The pooling of an input of that shape."""
        return Pool2d.of(
            x_shape, window=self.window, stride=self.stride, ceil_mode=self.ceil_mode, dtype=dtype
        )

    def output_shape(self, x_shape: Shape, num_classes: int) -> Shape:
        return self.problem(x_shape).shape("y")

    def passes(self, x_shape: Shape, num_classes: int, dtype: str) -> Passes:
        g = self.problem(x_shape, dtype)
        return Passes(Use("maxpool2d_fprop", g), (Use("maxpool2d_dgrad", g),))


@dataclass(frozen=True)
class Dropout(Layer):
    """Dropout, in place: behind a ReLU the zeros that it adds let no gradient through either.

    Parameters
    ----------
    name : str
    p : float
        Probability with which an element is dropped in training, 0 <= p <= 1.
    inverted : bool
        Whether what is left is scaled by 1/(1-p) in training. Else, as in 2012, outputs are multiplied by
        1-p at test.
    """

    p: float = 0.5
    inverted: bool = True

    def __post_init__(self) -> None:
        if finite(f"p of {self.name}", self.p, 0) > 1:
            raise OptionError(f"p of {self.name} must be a probability, not {self.p}")

    def options(self, training: bool) -> dict[str, Any]:
        """p and scale of the op in training and at test time."""
        if training:
            # All is dropped where p is 1, whatever the scale.
            return {"p": self.p, "scale": 1 / (1 - self.p) if self.inverted and self.p < 1 else 1.0}
        return {"p": 0.0, "scale": 1.0 if self.inverted else 1 - self.p}

    def passes(self, x_shape: Shape, num_classes: int, dtype: str) -> Passes:
        g, options = Elementwise(x_shape, dtype), {**self.options(False), "seed": 0, "offset": 0}
        return Passes(Use("dropout_fprop", g, options), (Use("dropout_dgrad", g, options),))


@dataclass(frozen=True)
class Flatten(Layer):
    """(N, C, H, W) to (N, C*H*W): the same elements in NCHW, as another shape.

    Parameters
    ----------
    name : str
    """

    def output_shape(self, x_shape: Shape, num_classes: int) -> Shape:
        return x_shape[0], prod(x_shape[1:])

    def passes(self, x_shape: Shape, num_classes: int, dtype: str) -> Passes:
        return Passes(None)
