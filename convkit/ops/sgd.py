"""The update rule: `sgd_momentum`. Other ops that update weights share its options, definition and bounds."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arrays import A
from ..dispatch import Arguments, operation
from ..errors import OptionError
from ..op import Op, Tensors, Weights, defines
from ..options import finite as finite_number
from ..options import flag
from .elementwise import Elementwise, ElementwiseCases
from .rounding import exact, f64

Array = np.ndarray

#: Options of an update.
OPTIONS = ("lr", "momentum", "weight_decay", "dampening", "nesterov", "lr_in_velocity")
#: Where it is 0, the update changes nothing: each new value is the old one, bit for bit.
FLAGS = ("finite",)


# ---------------------------------------------------------------------------------------------------
# An update that is not to be
# ---------------------------------------------------------------------------------------------------
def forbidden(finite: Array | None) -> bool:
    """Whether the flag is given and holds 0. It is read when the update runs, not when it is planned."""
    return finite is not None and not finite[0]


def keep(old: tuple[Array, ...], new: tuple[Array, ...]) -> None:
    """Each new array gets the bits of the old one. It may be that one, or another of the old ones."""
    moved = [(a, b) for a, b in zip(old, new, strict=True) if not _same(a, b)]
    if any(np.may_share_memory(a, b) for a, _ in moved for b in new):
        moved = [(a.copy(), b) for a, b in moved]
    for a, b in moved:
        b[...] = a


def _same(a: Array, b: Array) -> bool:
    return bool(a.ctypes.data == b.ctypes.data)


# ---------------------------------------------------------------------------------------------------
# Rounding
# ---------------------------------------------------------------------------------------------------
def magnitudes(w: Array, dw: Array, v: Array, options: dict[str, Any]) -> tuple[Array, Array]:
    """What the update rule adds up, without signs: of the weights and of the velocity."""
    w, dw, v = np.abs(w), np.abs(dw), np.abs(v)
    lr, momentum, damp = abs(options["lr"]), abs(options["momentum"]), abs(1 - options["dampening"])
    gradient = dw + abs(options["weight_decay"]) * w
    if options["lr_in_velocity"]:
        velocity = momentum * v + lr * gradient
        weights = w + velocity
    else:
        velocity = momentum * v + damp * gradient
        weights = w + lr * (velocity + (gradient + momentum * velocity if options["nesterov"] else 0))
    return weights, velocity


def _rounding(
    op: Op, g: Elementwise, inputs: Tensors, options: dict[str, Any], values: dict[str, Array]
) -> Weights:
    if forbidden(inputs.get("finite")):
        return exact(op, g, inputs, options, values)
    w, dw, v = (f64(inputs[name]) for name in ("w", "dw", "v"))
    weights, velocity = magnitudes(w, dw, v, options)
    return {"w_new": (8 * weights, weights), "v_new": (8 * velocity, velocity)}


# ---------------------------------------------------------------------------------------------------
# Cases
# ---------------------------------------------------------------------------------------------------
_USUAL = {
    "lr": 0.01,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "dampening": 0.0,
    "nesterov": False,
    "lr_in_velocity": False,
}
#: Sets of options that the gate tries.
TRIED: tuple[dict[str, Any], ...] = (
    _USUAL,
    {**_USUAL, "lr_in_velocity": True},
    {**_USUAL, "nesterov": True},
    {**_USUAL, "dampening": 0.3, "lr": 0.7},
    {**_USUAL, "dampening": 0.9, "nesterov": True, "weight_decay": 0.1},
    {**_USUAL, "momentum": 0.0, "weight_decay": 0.0},
    {**_USUAL, "momentum": 0.0, "lr": 1.5, "lr_in_velocity": True, "weight_decay": 0.2},
    {**_USUAL, "lr": 0.0},
    # 1 - dampening in float32 would be off by 5e-5.
    {**_USUAL, "dampening": 0.999, "momentum": 0.0, "weight_decay": 0.0},
)


def random_options(rng: np.random.Generator) -> dict[str, Any]:
    """Options of a random case."""
    return {"lr": float(rng.random()), "momentum": float(rng.random())}


class _Cases(ElementwiseCases):
    options = TRIED

    def random_options(self, rng: np.random.Generator) -> dict[str, Any]:
        return random_options(rng)


# ---------------------------------------------------------------------------------------------------
# Op
# ---------------------------------------------------------------------------------------------------
@defines(
    "sgd_momentum", Elementwise, ("w", "dw", "v"), ("w_new", "v_new"), options=OPTIONS, inplace=True,
    flags=FLAGS, slices="rows", direction="update", cases=_Cases(), rounding=_rounding,
)  # fmt: skip
def define(
    g: Elementwise,
    w: Array,
    dw: Array,
    v: Array,
    w_new: Array,
    v_new: Array,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    dampening: float,
    nesterov: bool,
    lr_in_velocity: bool,
    finite: Array | None = None,
) -> None:
    """The definition."""
    if forbidden(finite):
        keep((w, v), (w_new, v_new))
        return
    weights, velocity = f64(w), f64(v)
    gradient = f64(dw) + weight_decay * weights
    if lr_in_velocity:
        velocity = momentum * velocity - lr * gradient
        weights = weights + velocity
    else:
        velocity = momentum * velocity + (1 - dampening) * gradient
        weights = weights - lr * (gradient + momentum * velocity if nesterov else velocity)
    w_new[...] = weights
    v_new[...] = velocity


@operation
def sgd_momentum(
    w: A,
    dw: A,
    v: A,
    *,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    lr_in_velocity: bool = False,
    finite: A | None = None,
    impl: str | None = None,
    out: tuple[A, A] | None = None,
) -> tuple[A, A]:
    """Stochastic gradient descent with momentum: one step.

    There are two conventions, which agree only while lr is constant; `lr_in_velocity` chooses.

    ===================  ================================================  ============================
    ``lr_in_velocity``   velocity                                          weights
    ===================  ================================================  ============================
    False (PyTorch)      ``v = momentum*v + (1-dampening)*(dw + wd*w)``    ``w = w - lr*v``
    True (2012, Caffe)   ``v = momentum*v - lr*(dw + wd*w)``               ``w = w + v``
    ===================  ================================================  ============================

    The 2012 code writes ``+ lr*g`` because its g is the gradient of the log-likelihood, which is -dw.

    Parameters
    ----------
    w, dw, v : array, of any one shape
        Weights, their gradient (of the mean loss) and velocity; v starts as zeros.
    lr : float
        Learning rate.
    momentum, weight_decay : float
    dampening : float
        Only for ``lr_in_velocity=False``. PyTorch skips it in the first step, and so should the caller.
    nesterov : bool
        Only for ``lr_in_velocity=False``: the weights move by ``lr * (dw + wd*w + momentum*v)``.
    finite : array of int32, (1,), optional
        On the device of the others. Where it holds 0, nothing changes: w_new is w and v_new is v, bit for
        bit. The update reads it when it runs, so that on a GPU a step of no use (its loss is NaN, say)
        changes nothing, and the host need not wait for it. An implementation that does not take it is passed
        over.
    out : (w, v), optional
        May be w and v themselves: an update in place.

    Returns
    -------
    w_new, v_new : array
    """
    a = Arguments("sgd_momentum", w=w, dw=dw, v=v, finite=finite)
    if lr_in_velocity and (nesterov or dampening):
        raise OptionError("nesterov and dampening are defined for lr_in_velocity=False only")
    numbers = _numbers(lr=lr, momentum=momentum, weight_decay=weight_decay, dampening=dampening)
    return a.run(  # type: ignore[no-any-return]
        Elementwise(a.w.shape, a.dtype),
        out=out,
        impl=impl,
        **numbers,
        nesterov=flag("nesterov", nesterov),
        lr_in_velocity=flag("lr_in_velocity", lr_in_velocity),
    )


def _numbers(**numbers: float) -> dict[str, Any]:
    return {name: finite_number(name, value) for name, value in numbers.items()}


def rule(lr: float, momentum: float, weight_decay: float, lr_in_velocity: bool) -> dict[str, Any]:
    """The options of an update inside of another op, checked."""
    return {
        **_numbers(lr=lr, momentum=momentum, weight_decay=weight_decay),
        "dampening": 0.0,
        "nesterov": False,
        "lr_in_velocity": flag("lr_in_velocity", lr_in_velocity),
    }
