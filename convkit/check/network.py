"""A whole training step under the gate: each call of a plan, on the values that the step itself makes.

Two right implementations of a network need not agree at its end: where a ReLU's input or two maxima are equal
up to rounding, their gradients go different ways. So each call is judged on its own, on the very inputs that
it had, and held to the gate's bounds; a step in which every call is right is right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import arrays
from ..network.network import Network
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
    plan = net.load_step(x, labels)
    calls = plan.calls()
    verdicts = []
    for done, call in enumerate(calls):
        op, problem, implementation = call.op, call.problem, call.implementation
        what = f"{call.layer}, {problem}"
        if progress:
            progress(done, len(calls), f"{call.layer} {op.name}")
        # Copies: an output may lie where an input was.
        inputs = {
            name: None if a is None else _host(a).copy()
            for name, a in zip(op.inputs, call.nchw(op.inputs, call.inputs), strict=True)
        }
        options = {name: value for name, value in call.options.items() if name != "workspace"}
        inputs |= {name: _host(options.pop(name)) for name in op.flags if name in options}
        wanted = expected(op.name, problem, inputs, options)
        call.run()
        outputs = zip(op.outputs, call.nchw(op.outputs, call.outputs), strict=True)
        found = [compare(n, _host(a), wanted[n], implementation, op.name) for n, a in outputs]
        worst = max(found, key=lambda c: (bool(c.reason), c.ratio))
        verdicts.append(
            Verdict(
                *(op.name, implementation.label, what, net.dtype, not worst.reason, worst.reason),
                ratio=worst.ratio,
                rms=max((c.rms for c in found if not np.isnan(c.rms)), default=float("nan")),
                index=worst.index,
                got=worst.got,
                expected=worst.wanted,
                device=implementation.device,
            )
        )
    return verdicts


def _host(array: Any) -> np.ndarray:
    return array if isinstance(array, np.ndarray) else array.get()
