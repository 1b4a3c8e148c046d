"""Layers: hyper-parameters, and which ops they are made of, forward and backward.

A layer is a frozen description. `forward` and `backward` call the public ops on the memory that a `Plan`
hands out; what the backward pass needs, and no more, is kept there.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from . import fused, layouts, ops
from .geometry import LRN, Conv2d, LrnMaxPool2d, Pool2d, Shape

if TYPE_CHECKING:
    from .plan import Plan

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
class Layer:
    """Base of the layers.

    Parameters
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

    def fits(self, plan: Plan, x_shape: Shape, x_layout: str, y_layout: str) -> bool:
        """Whether its ops can be run with an input and an output in these layouts."""
        return x_layout == y_layout == layouts.NCHW

    def forward(self, plan: Plan, x: Array) -> Array:
        """Call the forward ops on the plan's memory; returns the output."""
        raise NotImplementedError

    def backward(self, plan: Plan, dy: Array) -> Array:
        """Call the backward ops; fills the parameters' gradients and returns the input's."""
        raise NotImplementedError


@dataclass(frozen=True)
class _Weighted(Layer):
    """A layer with weights and a bias; a ReLU behind it runs in its epilogue."""

    filters: int | None
    """Outputs; None means the number of classes."""

    def fused_relu(self, plan: Plan, y: Array, dy: Array) -> Array:
        if plan.fuses_relu(self) and not plan.rectified_above(self):
            ops.relu_dgrad(dy, y, out=dy)
        return dy


@dataclass(frozen=True)
class Conv(_Weighted):
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

    @property
    def _geometry(self) -> dict[str, Any]:
        return {"stride": self.stride, "padding": self.padding, "groups": self.groups}

    def parameters(self, x_shape: Shape, num_classes: int) -> dict[str, tuple[Shape, Init]]:
        w_shape = (self.filters, x_shape[1] // self.groups, self.window, self.window)
        return {"w": (w_shape, self.weights), "b": ((self.filters,), self.bias)}

    def output_shape(self, x_shape: Shape, num_classes: int) -> Shape:
        w_shape, _ = self.parameters(x_shape, num_classes)["w"]
        return Conv2d.of(x_shape, w_shape, **self._geometry).shape("y")

    def fits(self, plan: Plan, x_shape: Shape, x_layout: str, y_layout: str) -> bool:
        problem = Conv2d.of(x_shape, plan.parameter(self, "w").shape, **self._geometry, dtype=plan.dtype)
        layout = layouts.joined(x_layout, y_layout)
        wanted = ("conv2d_fprop", "conv2d_dgrad", "conv2d_wgrad")
        return layout == layouts.NCHW or all(plan.has(op, problem, layout) for op in wanted)

    def forward(self, plan: Plan, x: Array) -> Array:
        w, b = plan.parameter(self, "w"), plan.parameter(self, "b")
        y = plan.keep(self, "y", Conv2d.of(x.shape, w.shape, **self._geometry).shape("y"))
        plan.keep_view(self, "x", x)
        ops.conv2d_fprop(x, w, b, **self._geometry, relu=plan.fuses_relu(self), math=plan.math, out=y)
        return y

    def backward(self, plan: Plan, dy: Array) -> Array:
        x, y, w = plan.kept(self, "x"), plan.kept(self, "y"), plan.parameter(self, "w")
        dy = self.fused_relu(plan, y, dy)
        ops.conv2d_bgrad(dy, out=plan.gradient(self, "b"))
        ops.conv2d_wgrad(x, dy, w.shape, **self._geometry, math=plan.math, out=plan.gradient(self, "w"))
        dx = plan.scratch(x, dy)
        options = {**self._geometry, "math": plan.math, "out": dx}
        problem = Conv2d.of(x.shape, w.shape, **self._geometry, dtype=plan.dtype)
        layout = layouts.named({"x": isinstance(x, layouts.Blocked), "y": isinstance(y, layouts.Blocked)})
        if plan.rectifies(self) and plan.has("conv2d_dgrad_relu", problem, layout):
            return fused.conv2d_dgrad_relu(dy, w, x, **options)
        dx = ops.conv2d_dgrad(dy, w, x.shape, **options)
        return ops.relu_dgrad(dx, x, out=dx) if plan.rectifies(self) else dx


@dataclass(frozen=True)
class Linear(_Weighted):
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

    def parameters(self, x_shape: Shape, num_classes: int) -> dict[str, tuple[Shape, Init]]:
        K = num_classes if self.filters is None else self.filters
        return {"w": ((K, x_shape[1]), self.weights), "b": ((K,), self.bias)}

    def output_shape(self, x_shape: Shape, num_classes: int) -> Shape:
        return x_shape[0], num_classes if self.filters is None else self.filters

    def forward(self, plan: Plan, x: Array) -> Array:
        w, b = plan.parameter(self, "w"), plan.parameter(self, "b")
        y = plan.keep(self, "y", (x.shape[0], w.shape[0]))
        plan.keep_view(self, "x", x)
        return ops.linear_fprop(x, w, b, relu=plan.fuses_relu(self), math=plan.math, out=y)

    def backward(self, plan: Plan, dy: Array) -> Array:
        x, y, w = plan.kept(self, "x"), plan.kept(self, "y"), plan.parameter(self, "w")
        dy = self.fused_relu(plan, y, dy)
        ops.linear_bgrad(dy, out=plan.gradient(self, "b"))
        ops.linear_wgrad(x, dy, math=plan.math, out=plan.gradient(self, "w"))
        dx = ops.linear_dgrad(dy, w, math=plan.math, out=plan.scratch(x, dy))
        return ops.relu_dgrad(dx, x, out=dx) if plan.rectifies(self) else dx

    def descend(self, plan: Plan, dy: Array) -> Array:
        """`backward`, with the update of the weights in it; their gradient is not kept."""
        x, y, w = plan.kept(self, "x"), plan.kept(self, "y"), plan.parameter(self, "w")
        dy = self.fused_relu(plan, y, dy)
        ops.linear_bgrad(dy, out=plan.gradient(self, "b"))
        v = plan.velocity(self, "w")
        dx, _, _ = fused.linear_dgrad_wgrad_sgd(
            dy, w, x, v, **plan.update_of("w"), relu=plan.rectifies(self), math=plan.math,
            out=(plan.scratch(x, dy), w, v),
        )  # fmt: skip
        return dx


@dataclass(frozen=True)
class Relu(Layer):
    """Rectified linear unit, in place: no layer before it needs its own output to go backward.

    Parameters
    ----------
    name : str
    """

    def fits(self, plan: Plan, x_shape: Shape, x_layout: str, y_layout: str) -> bool:
        return x_layout == y_layout

    def forward(self, plan: Plan, x: Array) -> Array:
        return ops.relu_fprop(x, out=plan.keep_view(self, "y", x))

    def backward(self, plan: Plan, dy: Array) -> Array:
        return dy if plan.rectified_above(self) else ops.relu_dgrad(dy, plan.kept(self, "y"), out=dy)


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

    @property
    def _constants(self) -> dict[str, Any]:
        names = ("size", "alpha", "beta", "k", "groups", "region")
        return {name: getattr(self, name) for name in names}

    def fits(self, plan: Plan, x_shape: Shape, x_layout: str, y_layout: str) -> bool:
        problem = LRN.of(x_shape, **self._constants, dtype=plan.dtype)
        layout = layouts.joined(x_layout, y_layout)
        wanted = ("lrn_fprop", "lrn_dgrad")
        return layout == layouts.NCHW or all(plan.has(op, problem, layout) for op in wanted)

    def forward(self, plan: Plan, x: Array) -> Array:
        plan.keep_view(self, "x", x)
        return ops.lrn_fprop(x, **self._constants, out=plan.keep(self, "y", x.shape))

    def backward(self, plan: Plan, dy: Array) -> Array:
        x = plan.kept(self, "x")
        return ops.lrn_dgrad(dy, x, **self._constants, out=plan.scratch(x, dy))


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

    @property
    def _geometry(self) -> dict[str, Any]:
        return {"window": self.window, "stride": self.stride, "ceil_mode": self.ceil_mode}

    def output_shape(self, x_shape: Shape, num_classes: int) -> Shape:
        return Pool2d.of(x_shape, **self._geometry).shape("y")

    def fits(self, plan: Plan, x_shape: Shape, x_layout: str, y_layout: str) -> bool:
        problem = Pool2d.of(x_shape, **self._geometry, dtype=plan.dtype)
        layout = layouts.joined(x_layout, y_layout)
        wanted = ("maxpool2d_fprop", "maxpool2d_dgrad")
        return layout == layouts.NCHW or all(plan.has(op, problem, layout) for op in wanted)

    def forward(self, plan: Plan, x: Array) -> Array:
        problem = Pool2d.of(x.shape, **self._geometry)
        y = plan.keep(self, "y", problem.shape("y"))
        argmax = plan.keep(self, "argmax", problem.shape("argmax"), problem.dtype_of("argmax"))
        plan.keep_view(self, "x", x)
        ops.maxpool2d_fprop(x, **self._geometry, out=(y, argmax))
        return y

    def backward(self, plan: Plan, dy: Array) -> Array:
        x, argmax = plan.kept(self, "x"), plan.kept(self, "argmax")
        return ops.maxpool2d_dgrad(dy, argmax, x.shape, **self._geometry, out=plan.scratch(x, dy))


@dataclass(frozen=True)
class LrnMaxPool(Layer):
    """An `Lrn` and the `MaxPool` behind it as one; a plan makes it of the two.

    Parameters
    ----------
    name : str
    lrn : Lrn
    pool : MaxPool
    """

    lrn: Lrn
    pool: MaxPool

    @classmethod
    def of(cls, lrn: Lrn, pool: MaxPool) -> LrnMaxPool:
        return cls(f"{lrn.name}+{pool.name}", lrn, pool)

    @property
    def _geometry(self) -> dict[str, Any]:
        return {"lrn": self.lrn._constants, "pool": self.pool._geometry}

    def output_shape(self, x_shape: Shape, num_classes: int) -> Shape:
        return self.pool.output_shape(x_shape, num_classes)

    def fits(self, plan: Plan, x_shape: Shape, x_layout: str, y_layout: str) -> bool:
        lrn = LRN.of(x_shape, **self.lrn._constants, dtype=plan.dtype)
        problem = LrnMaxPool2d(lrn, Pool2d.of(x_shape, **self.pool._geometry, dtype=plan.dtype), plan.dtype)
        layout = layouts.joined(x_layout, y_layout)
        return all(plan.has(op, problem, layout) for op in ("lrn_maxpool2d_fprop", "lrn_maxpool2d_dgrad"))

    def forward(self, plan: Plan, x: Array) -> Array:
        problem = Pool2d.of(x.shape, **self.pool._geometry)
        y = plan.keep(self, "y", problem.shape("y"))
        argmax = plan.keep(self, "argmax", problem.shape("argmax"), problem.dtype_of("argmax"))
        plan.keep_view(self, "x", x)
        fused.lrn_maxpool2d_fprop(x, **self._geometry, out=(y, argmax))
        return y

    def backward(self, plan: Plan, dy: Array) -> Array:
        x, argmax = plan.kept(self, "x"), plan.kept(self, "argmax")
        return fused.lrn_maxpool2d_dgrad(
            dy, argmax, x, **self._geometry, relu=plan.rectifies(self), out=plan.scratch(x, dy)
        )


@dataclass(frozen=True)
class Dropout(Layer):
    """Dropout, in place: behind a ReLU the zeros that it adds let no gradient through either.

    Parameters
    ----------
    name : str
    p : float
        Probability with which an element is dropped in training.
    inverted : bool
        Whether what is left is scaled by 1/(1-p) in training. Else, as in 2012, outputs are multiplied by
        1-p at test.
    """

    p: float = 0.5
    inverted: bool = True

    def options(self, training: bool) -> dict[str, Any]:
        """p and scale of the op in training and at test time."""
        if training:
            return {"p": self.p, "scale": 1 / (1 - self.p) if self.inverted else 1.0}
        return {"p": 0.0, "scale": 1.0 if self.inverted else 1 - self.p}

    def forward(self, plan: Plan, x: Array) -> Array:
        return ops.dropout_fprop(x, **self.options(False), seed=0, out=x)

    def backward(self, plan: Plan, dy: Array) -> Array:
        return ops.dropout_dgrad(dy, **self.options(False), seed=0, out=dy)


@dataclass(frozen=True)
class Flatten(Layer):
    """(N, C, H, W) to (N, C*H*W): a view of an NCHW tensor, a copy of a blocked one.

    Parameters
    ----------
    name : str
    """

    def output_shape(self, x_shape: Shape, num_classes: int) -> Shape:
        return x_shape[0], prod(x_shape[1:])

    def fits(self, plan: Plan, x_shape: Shape, x_layout: str, y_layout: str) -> bool:
        return y_layout == layouts.NCHW

    def forward(self, plan: Plan, x: Array) -> Array:
        plan.keep_view(self, "x", x)
        if isinstance(x, layouts.Blocked):
            x = fused.reorder(x, out=plan.keep(self, "nchw", x.shape))
        return x.reshape(self.output_shape(x.shape, 0))

    def backward(self, plan: Plan, dy: Array) -> Array:
        x = plan.kept(self, "x")
        maps = dy.reshape(x.shape)
        return fused.reorder(maps, out=plan.scratch(x, dy)) if isinstance(x, layouts.Blocked) else maps
