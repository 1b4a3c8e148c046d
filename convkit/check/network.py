"""A whole training step under the gate: each call of a plan, on the values that the step itself makes.

Two right implementations of a network need not agree at its end: where a ReLU's input or two maxima are equal
up to rounding, their gradients go different ways. So each call is judged on its own, on the very inputs that
it had, and held to the gate's bounds; a step in which every call is right is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .. import arrays
from ..call import Call
from ..network.network import Network
from .faults import Lost, Raised
from .tolerance import compare, expected
from .verdicts import Verdict

Progress = Callable[[int, int, str], None]


def check_step(net: Network, x: Any, labels: Any, *, progress: Progress | None = None) -> list[Verdict]:
    """Run one training step, judging every call.

    Parameters
    ----------
    net : Network
        Its parameters change, as in `Network.step`. Inside `with convkit.emulate()` its kernels are emulated.
    x : array, (N, C, H, W)
    labels : array of integers, (N,)
    progress : callable, optional
        Called as ``progress(done, total, what)``.

    Returns
    -------
    list of Verdict
        One for each call, in order, the gradient of the input among them; `case` names the layer.
    """
    with arrays.queue(net.gpu_arrays()):  # on the network's GPU, whichever is the current one
        return _check_step(net, x, labels, progress)


def _check_step(net: Network, x: Any, labels: Any, progress: Progress | None) -> list[Verdict]:
    return list(verdicts_of_step(net, x, labels, progress=progress))


def verdicts_of_step(
    net: Network,
    x: Any,
    labels: Any,
    *,
    judged: Callable[[Call], bool] = lambda call: True,
    progress: Progress | None = None,
) -> Iterator[Verdict]:
    """As `check_step`, one verdict after the other, so that a caller may stop early.

    Every call runs; those that are `judged` have a verdict. What a candidate's process does to one of these
    is a verdict as well, the last one: the calls behind it have no inputs.
    """
    plan = net.load_step(x, labels)
    calls = plan.calls()
    for done, call in enumerate(calls):
        if progress:
            progress(done, len(calls), f"{call.layer} {call.op.name}")
        if judged(call):
            verdict = _judged(call, net.dtype)
            yield verdict
            if verdict.index is None and not verdict.ok:
                return
        else:
            call.run()
    if progress:
        progress(len(calls), len(calls), "")


def _judged(call: Call, dtype: str) -> Verdict:
    """Run one call and compare what it wrote."""
    op, problem, implementation = call.op, call.problem, call.implementation
    # Copies: an output may lie where an input was.
    inputs = {
        name: None if a is None else _host(a).copy()
        for name, a in zip(op.inputs, call.nchw(op.inputs, call.inputs), strict=True)
    }
    options = {name: value for name, value in call.options.items() if name != "workspace"}
    inputs |= {name: _host(options.pop(name)) for name in op.flags if name in options}
    wanted = expected(op.name, problem, inputs, options)
    _poison(call)
    what = f"{call.layer}, {problem}"
    try:
        call.run()
    except (Lost, Raised) as error:
        reason = str(error) if isinstance(error, Lost) else f"raised {error}"
        return Verdict(
            *(op.name, implementation.label, what, dtype, False, reason), device=implementation.device
        )
    outputs = zip(op.outputs, call.nchw(op.outputs, call.outputs), strict=True)
    found = [compare(n, _host(a), wanted[n], implementation, op.name) for n, a in outputs]
    worst = max(found, key=lambda c: (bool(c.reason), c.ratio))
    return Verdict(
        *(op.name, implementation.label, what, dtype, not worst.reason, worst.reason),
        ratio=worst.ratio,
        rms=max((c.rms for c in found if not np.isnan(c.rms)), default=float("nan")),
        index=worst.index,
        got=worst.got,
        expected=worst.wanted,
        device=implementation.device,
    )


def _poison(call: Call) -> None:
    """Fill the outputs with 0xFF, a NaN in every float type, so that what is not written shows.

    Not where an input lies in the same memory, and not the channels that pad a layout.
    """
    given = [a for a in (*call.inputs, *call.options.values()) if isinstance(a, np.ndarray)]
    for output in call.outputs:
        if isinstance(output, np.ndarray) and not any(np.shares_memory(output, a) for a in given):
            output.view(np.uint8).fill(0xFF)


def _host(array: Any) -> np.ndarray:
    return array if isinstance(array, np.ndarray) else array.get()
