"""Loss scaling, for gradients in float16: `rescale`, `adjust_loss_scale`.

float16 ends at 6e-8, and gradients of activations are often smaller. So the gradient of the loss is
multiplied by a scale before the backward pass, and the gradients of the parameters are divided by it
afterwards. The scale is as large as it can be: it is halved where a gradient is not finite, in a step that
then changes nothing, and doubled after many steps in which all were. It stays on the device, as the flag does
by which updates know.

Source
------
Micikevicius et al., "Mixed precision training", ICLR 2018, section 3.2; the numbers are those of PyTorch's
`torch.amp.GradScaler`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..arrays import A
from ..dispatch import Arguments, operation
from ..errors import OptionError
from ..op import Cases, Op, Problem, Shape, Tensors, Weights, defines, draw, extent
from ..options import finite, flag, integer, shape_of
from .elementwise import Elementwise, ElementwiseCases
from .rounding import exact, f64, few

Array = np.ndarray

#: The scale that a network begins with; what it is multiplied by after so many good steps, and after a bad
#: one.
INITIAL, GROWTH, BACKOFF, INTERVAL = 2.0**16, 2.0, 0.5, 2000
#: The scale does not fall below this, and does not grow beyond float32.
LEAST, MOST = 1.0, float(np.finfo(np.float32).max)


def checked_scale(value: Any) -> float:
    """A network's scale as it is given: an infinite one would stay so, however often it is halved."""
    number = finite("loss_scale", value, LEAST)
    if number > MOST:
        raise OptionError(f"loss_scale must be at most {MOST:.3g}, where float32 ends, not {value!r}")
    return number


# ---------------------------------------------------------------------------------------------------
# Scaling
# ---------------------------------------------------------------------------------------------------
def _rescale_rounding(
    op: Op, g: Elementwise, inputs: Tensors, options: dict[str, Any], values: dict[str, Array]
) -> Weights:
    return {
        **few(op, g, inputs, options, {"x_new": values["x_new"]}),
        **exact(op, g, inputs, options, {"sound_new": values["sound_new"]}),
    }


class _RescaleCases(ElementwiseCases):
    options = ({"inverse": False}, {"inverse": True})

    def values(
        self, tensor: str, problem: Any, rng: np.random.Generator, kind: str, fill: Callable[[Any], None]
    ) -> Array | None:
        if tensor == "scale":
            return rng.choice([1.0, 2.0**16, 2.0**-7, 3.0], (1,))
        return rng.choice([0, 1, 1, -65536], (1,)) if tensor == "sound" else None

    def plantable(self, op: Op, problem: Any) -> set[str]:
        return {"x"}


@defines(
    "rescale", Elementwise, ("x", "scale", "sound"), ("x_new", "sound_new"), options=("inverse",),
    dtypes={"scale": "float32", "sound": "int32"}, direction="update", cases=_RescaleCases(),
    rounding=_rescale_rounding,
)  # fmt: skip
def _rescale(
    g: Elementwise, x: Array, scale: Array, sound: Array, x_new: Array, sound_new: Array, inverse: bool
) -> None:
    # The flag first: x_new may be x's own memory.
    sound_new[...] = bool(sound[0]) and bool(np.isfinite(f64(x)).all())
    x_new[...] = f64(x) / f64(scale) if inverse else f64(x) * f64(scale)


@operation
def rescale(
    x: A,
    scale: A,
    sound: A,
    *,
    inverse: bool = False,
    impl: str | None = None,
    out: tuple[A, A] | None = None,
) -> tuple[A, A]:
    """An array times a number on its device, and whether all its elements are finite.

    Parameters
    ----------
    x : array, of any shape
    scale : array of float32, (1,)
    sound : array of int32, (1,)
        The flag before.
    inverse : bool
        Divide instead.
    out : (x_new, sound_new), optional
        May be x and sound themselves.

    Returns
    -------
    x_new : array
    sound_new : array of int32, (1,)
        1 where `sound` is not 0 and every element of x is finite, else 0: the flag of `sgd_momentum`.
    """
    a = Arguments("rescale", x=x, scale=scale, sound=sound)
    return a.run(Elementwise(a.x.shape, a.dtype), out=out, impl=impl, inverse=flag("inverse", inverse))


# ---------------------------------------------------------------------------------------------------
# The scale itself
# ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class LossScale(Problem):
    """N loss scales with the steps since each last changed, and their flags. A network has one."""

    N: int = 1
    dtype: str = "float32"

    @classmethod
    def of(cls, scale_shape: Any) -> LossScale:
        (N,) = shape_of("scale", scale_shape, 1, "(N,)")
        return cls(N)

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        return dict.fromkeys(("scale", "steps", "sound", "scale_new", "steps_new"), (self.N,))

    def dtype_of(self, tensor: str) -> str:
        return "float32" if tensor in ("scale", "scale_new") else "int32"

    def flops(self, op: str) -> int:
        return self.N


class _AdjustCases(Cases):
    extents = {"N": extent("N")}
    options = tuple(
        {"growth": growth, "backoff": backoff, "interval": interval}
        for growth, backoff, interval in ((GROWTH, BACKOFF, INTERVAL), (GROWTH, BACKOFF, 7), (1.5, 0.25, 1))
    )

    def layers(self) -> Iterable[tuple[str, Problem]]:
        yield "a network", LossScale()

    def edges(self) -> Iterable[tuple[str, Problem]]:
        for N in (1, 3, 32, 257, 1025, 0):
            yield f"{N} scales", LossScale(N)

    def data(self) -> Iterable[Problem]:
        return [LossScale(61)]

    def bases(self) -> list[Problem]:
        return [LossScale(3)]

    def random(self, rng: np.random.Generator) -> Problem:
        return LossScale(*draw(rng, 1, 3000, 1))

    def tried(self) -> Problem:
        return LossScale(300)

    def large(self) -> Iterable[tuple[str, Problem]]:
        yield "65,537 scales", LossScale(65_537)

    def huge(self) -> list[Problem]:
        return [LossScale(2_000_000_000)]

    def values(
        self, tensor: str, problem: Any, rng: np.random.Generator, kind: str, fill: Callable[[Any], None]
    ) -> Array | None:
        shape = problem.shape(tensor)
        if tensor == "scale":  # also where it can neither fall nor grow
            return rng.choice([LEAST, 1.5, 2.0**16, 2.0**100 if kind == "large" else 2.0**127], shape)
        if tensor == "steps":
            return rng.choice([0, 5, 6, 7, INTERVAL - 1], shape)
        return rng.choice([0, 1, 1, -65536], shape)

    def plantable(self, op: Op, problem: Any) -> set[str]:
        return set()


@defines(
    "adjust_loss_scale", LossScale, ("scale", "steps", "sound"), ("scale_new", "steps_new"),
    options=("growth", "backoff", "interval"), direction="update",
    dtypes={"scale": "float32", "steps": "int32", "sound": "int32"}, cases=_AdjustCases(), rounding=few,
)  # fmt: skip
def _adjust(
    g: LossScale,
    scale: Array,
    steps: Array,
    sound: Array,
    scale_new: Array,
    steps_new: Array,
    growth: float,
    backoff: float,
    interval: int,
) -> None:
    now, good = f64(scale), sound != 0
    grows = good & (steps + 1 >= interval)
    larger = np.where(now * growth <= np.finfo(np.float32).max, now * growth, now)
    steps_new[...] = np.where(good & ~grows, steps + 1, 0)
    scale_new[...] = np.where(grows, larger, np.where(good, now, np.maximum(now * backoff, LEAST)))


@operation
def adjust_loss_scale(
    scale: A,
    steps: A,
    sound: A,
    *,
    growth: float = GROWTH,
    backoff: float = BACKOFF,
    interval: int = INTERVAL,
    impl: str | None = None,
    out: tuple[A, A] | None = None,
) -> tuple[A, A]:
    """The loss scales of the next step, of N networks or parts of one that each have their own.

    Parameters
    ----------
    scale : array of float32, (N,)
    steps : array of int32, (N,)
        Good steps in a row at this scale.
    sound : array of int32, (N,)
        Whether this step was a good one: not 0.
    growth : float
        The scale is multiplied by it after `interval` good steps in a row, unless it would leave float32.
    backoff : float
        The scale is multiplied by it after a bad step; it does not fall below 1.
    interval : int
    out : (scale, steps), optional
        May be scale and steps themselves.

    Returns
    -------
    scale_new : array of float32, (N,)
    steps_new : array of int32, (N,)
    """
    a = Arguments("adjust_loss_scale", scale=scale, steps=steps, sound=sound)
    return a.run(
        LossScale.of(a.scale.shape),
        out=out,
        impl=impl,
        growth=finite("growth", growth, 1),
        backoff=finite("backoff", backoff, 0),
        interval=integer("interval", interval, 1, 2**31 - 1),
    )
