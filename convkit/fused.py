"""Ops that are several in one, for networks: what lies between them is never stored.

They are ops like any other: each has a float64 reference, goes through the gate, and may be swapped. A
network's plan takes one where an implementation fits, and the single ops where none does.
"""

from __future__ import annotations

from typing import Any

from .dispatch import Arguments, in_range, operation
from .errors import ConvkitError, OptionError
from .geometry import LRN, Conv2d, Linear, LrnMaxPool2d, Pool2d, Reorder, finite, flag, shape_of

Array = Any


@operation
def conv2d_dgrad_relu(
    dy: Array,
    w: Array,
    x: Array,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    math: str | None = None,
    impl: str | None = None,
    out: Array | None = None,
) -> Array:
    """Gradient of a convolution with respect to the input of the ReLU below it: `conv2d_dgrad`, `relu_dgrad`.

    Parameters
    ----------
    dy : array, (N, K, P, Q)
    w : array, (K, C/groups, R, S)
    x : array, (N, C, H, W)
        The convolution's input, which is the ReLU's output.
    stride, padding, dilation, groups, math
        As in `convkit.conv2d_fprop`.

    Returns
    -------
    dx : array, (N, C, H, W)
        Zero where x is not positive.
    """
    a = Arguments("conv2d_dgrad_relu", dy=dy, w=w, x=x)
    problem = Conv2d.of(
        a.x.shape, a.w.shape, stride=stride, padding=padding, dilation=dilation, groups=groups, dtype=a.dtype
    )
    return a.run(problem, out=out, impl=impl, math=math)


@operation
def lrn_maxpool2d_fprop(
    x: Array,
    *,
    lrn: dict[str, Any],
    pool: dict[str, Any],
    impl: str | None = None,
    out: tuple[Array, Array] | None = None,
) -> tuple[Array, Array]:
    """Max pooling of a local response normalisation.

    Parameters
    ----------
    x : array, (N, C, H, W)
    lrn, pool : dict
        Keyword arguments of `convkit.lrn_fprop` and `convkit.maxpool2d_fprop`.

    Returns
    -------
    y, argmax : array, (N, C, P, Q)
        As of `convkit.maxpool2d_fprop`. Where two normalised values differ by less than rounding, either
        may win.
    """
    a = Arguments("lrn_maxpool2d_fprop", x=x)
    return a.run(_lrn_maxpool(a.x.shape, lrn, pool, a.dtype), out=out, impl=impl)  # type: ignore[no-any-return]


@operation
def lrn_maxpool2d_dgrad(
    dy: Array,
    argmax: Array,
    x: Array,
    *,
    lrn: dict[str, Any],
    pool: dict[str, Any],
    relu: bool = False,
    impl: str | None = None,
    out: Array | None = None,
) -> Array:
    """Gradient of `lrn_maxpool2d_fprop` with respect to its input.

    Parameters
    ----------
    dy, argmax : array, (N, C, P, Q)
    x : array, (N, C, H, W)
        The input of the forward pass.
    lrn, pool : dict
        As in `lrn_maxpool2d_fprop`.
    relu : bool
        x is the output of a ReLU, and the gradient of that is taken too: zero where x is not positive.

    Returns
    -------
    dx : array, (N, C, H, W)

    Raises
    ------
    OptionError
        If argmax holds a position outside the window.
    """
    a = Arguments("lrn_maxpool2d_dgrad", dy=dy, argmax=argmax, x=x)
    problem = _lrn_maxpool(a.x.shape, lrn, pool, a.dtype)
    in_range("argmax", a.argmax, problem.pool.R * problem.pool.S, "a position in the window")
    return a.run(problem, out=out, impl=impl, relu=flag("relu", relu))


@operation
def linear_wgrad_sgd(
    x: Array,
    dy: Array,
    w: Array,
    v: Array,
    *,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    lr_in_velocity: bool = False,
    finite: Array | None = None,
    math: str | None = None,
    impl: str | None = None,
    out: tuple[Array, Array] | None = None,
) -> tuple[Array, Array]:
    """Fully connected layer: the update of its weights, whose gradient is never stored.

    Parameters
    ----------
    x : array, (N, C)
    dy : array, (N, K)
    w, v : array, (K, C)
        Weights and velocity. `out` may name them: an update in place.
    lr, momentum, weight_decay, lr_in_velocity, finite
        As in `convkit.sgd_momentum`.

    Returns
    -------
    w_new, v_new : array, (K, C)
    """
    a = Arguments("linear_wgrad_sgd", x=x, dy=dy, w=w, v=v, finite=finite)
    rule = _sgd(lr, momentum, weight_decay, lr_in_velocity)
    problem = Linear.of(a.x.shape, a.w.shape, a.dtype)
    return a.run(problem, out=out, impl=impl, math=math, **rule)  # type: ignore[no-any-return]


@operation
def linear_dgrad_wgrad_sgd(
    dy: Array,
    w: Array,
    x: Array,
    v: Array,
    *,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    lr_in_velocity: bool = False,
    relu: bool = False,
    finite: Array | None = None,
    math: str | None = None,
    impl: str | None = None,
    out: tuple[Array, Array, Array] | None = None,
) -> tuple[Array, Array, Array]:
    """Fully connected layer, backward, and the update of its weights: their gradient is never stored.

    Parameters
    ----------
    dy : array, (N, K)
    w, v : array, (K, C)
        Weights and velocity. `out` may name them: an update in place.
    x : array, (N, C)
    lr, momentum, weight_decay, lr_in_velocity
        As in `convkit.sgd_momentum`.
    relu : bool
        x is the output of a ReLU, and the gradient of that is taken too: zero where x is not positive.
    finite : array of int32, (1,), optional
        As in `convkit.sgd_momentum`. dx is computed whatever it holds.

    Returns
    -------
    dx : array, (N, C)
        Made with the weights before the update.
    w_new, v_new : array, (K, C)
    """
    a = Arguments("linear_dgrad_wgrad_sgd", dy=dy, w=w, x=x, v=v, finite=finite)
    rule = _sgd(lr, momentum, weight_decay, lr_in_velocity)
    problem = Linear.of(a.x.shape, a.w.shape, a.dtype)
    return a.run(problem, out=out, impl=impl, math=math, relu=flag("relu", relu), **rule)  # type: ignore[no-any-return]


@operation
def reorder(x: Array, *, impl: str | None = None, out: Array | None = None) -> Array:
    """The same tensor in another layout: that of `out`.

    Parameters
    ----------
    x : array or `convkit.layouts.Tensor`, (N, C, H, W)

    Returns
    -------
    y : array or `convkit.layouts.Tensor`, (N, C, H, W)
    """
    a = Arguments("reorder", x=x)
    N, C, H, W = shape_of("x", tuple(a.x.shape), 4, "(N, C, H, W)")
    return a.run(Reorder(N, C, H, W, a.dtype), out=out, impl=impl)


def _lrn_maxpool(shape: Any, lrn: dict[str, Any], pool: dict[str, Any], dtype: str) -> LrnMaxPool2d:
    parts: list[Any] = []
    for name, kind, options in (("lrn", LRN, lrn), ("pool", Pool2d, pool)):
        try:
            parts.append(kind.of(shape, dtype=dtype, **options))
        except TypeError as error:  # no dict, or a name that the op has not
            if isinstance(error, ConvkitError):
                raise
            raise OptionError(f"{name} must be a dict of {name} options, not {options!r}: {error}") from None
    return LrnMaxPool2d(parts[0], parts[1], dtype)


def _sgd(lr: float, momentum: float, weight_decay: float, lr_in_velocity: bool) -> dict[str, Any]:
    return {
        "lr": finite("lr", lr),
        "momentum": finite("momentum", momentum),
        "weight_decay": finite("weight_decay", weight_decay),
        "dampening": 0.0,
        "nesterov": False,
        "lr_in_velocity": flag("lr_in_velocity", lr_in_velocity),
    }
