"""The backward pass of a step with its hooks: `Network.on_gradient` and `Network.before_update`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..arrays import Array
from ..call import Call
from .parameters import Parameters
from .plan import Plan

OnGradient = Callable[[str, Any], None]
BeforeUpdate = Callable[[Parameters, Any], Any]


def run_backward(
    plan: Plan,
    calls: list[Call],
    grads: Parameters,
    on_gradient: OnGradient | None,
    before_update: BeforeUpdate | None,
) -> bool:
    """Run a backward pass with its hooks; returns whether they let the update happen.

    Parameters
    ----------
    plan : Plan
    calls : list of Call
        Of the backward pass.
    grads : Parameters
        All gradients of the network. The hooks see those of the parameters that the step updates.
    on_gradient, before_update : callable, optional
    """
    plan.run(calls, after=on_gradient and _after_each(plan, grads, on_gradient))
    if before_update is None:
        return True
    updated = {name: gradient for name, gradient in grads.items() if name not in plan.frozen}
    answer = before_update(Parameters("grads", updated), plan.finite)
    # A comparison of arrays gives a bool of NumPy's or CuPy's. A number, such as a norm, is not an answer.
    return bool(answer) if isinstance(answer, bool) or _is_bool_array(answer) else True


def _after_each(plan: Plan, grads: Parameters, on_gradient: OnGradient) -> Callable[[Call], None]:
    """What runs after each call that makes gradients: the hook, for each parameter that is updated."""

    def after(call: Call) -> None:
        for name in plan.made_by(call):
            if name not in plan.frozen:
                on_gradient(name, grads[name])

    return after


def _is_bool_array(value: Array | Any) -> bool:
    return getattr(value, "dtype", None) == np.bool_ and getattr(value, "size", 0) == 1
