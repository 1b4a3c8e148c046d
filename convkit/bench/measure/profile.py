"""Where a training step's time goes, layer by layer, and how exact each layer is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import numpy as np

from ... import arrays
from ...call import Call
from ...check.tolerance import relative_rms
from ...cpu import probe
from ...errors import ConvkitError
from ...network.network import Network
from ...network.plan import Plan
from ...registry import implementations
from .clocks import elapsed_ms


@dataclass
class Row:
    """One layer of the table. Times are medians, in ms; error is None where none was measured.

    `math` is the grade of the arithmetic that was picked: `Network(math=)` is the coarsest that may be.
    `peak_percent` is of the machine's measured peak of float32 multiply-adds; None on a GPU. `error` is the
    relative RMS error of the layer's outputs, forward and backward, against the float64 reference on the same
    inputs.
    """

    layer: str
    implementation: str
    layout: str
    math: str
    output: str
    forward_ms: float
    backward_ms: float
    gflops: float
    peak_percent: float | None
    error: float | None = None


@dataclass
class Profile:
    """A profiled training step. Samples are whole steps, in ms.

    `math` is the coarsest arithmetic that was accepted, None for fp32. On a GPU no peak is measured:
    `convkit bench` does that.
    """

    batch: int
    dtype: str
    device: str
    math: str | None
    peak_gflops: float | None
    peak_method: str
    rows: list[Row]
    forward_ms: float
    backward_ms: float
    loss_ms: float
    update_ms: float
    update_error: float | None
    step_ms_samples: list[float] = field(default_factory=list)
    peak_samples: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    @property
    def step_ms(self) -> float:
        return median(self.step_ms_samples)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "step_ms": self.step_ms}


def run_and_compare(call: Call) -> float:
    """Run a call; the relative RMS error of its outputs against the reference on the same inputs.

    Integers are not compared: of two equal maxima either may win.
    """
    reference = next(i for i in implementations(call.op.name, device="cpu") if i.name == "reference")
    inputs = [
        _host(a, copy=any(_shared(a, o) for o in call.outputs))
        for a in call.nchw(call.op.inputs, call.inputs)
    ]
    call.run()
    outputs = [_host(a) for a in call.nchw(call.op.outputs, call.outputs)]
    exact = [np.empty(o.shape, o.dtype if o.dtype.kind in "iu" else np.float64) for o in outputs]
    options = {name: value for name, value in call.options.items() if name != "workspace"}
    with np.errstate(all="ignore"):
        reference.run(call.problem, *inputs, *exact, **options)
    pairs = zip(outputs, exact, strict=True)
    return max((relative_rms(o, e) for o, e in pairs if o.dtype.kind not in "iu"), default=0.0)


def _shared(a: Any, b: Any) -> bool:
    return isinstance(a, np.ndarray) and np.may_share_memory(a, b)


def _host(array: Any, copy: bool = False) -> Any:
    """An array in host memory; one of a GPU's is a copy."""
    if array is None or isinstance(array, np.ndarray):
        return array.copy() if copy and array is not None else array
    return array.get()


def profile(
    net: Network,
    x: Any,
    labels: Any,
    *,
    repeats: int = 5,
    errors: bool = True,
    lr: float | None = None,
    progress: Callable[[int, str], None] = lambda done, what: None,
) -> Profile:
    """Train for some steps, timing each call. On a GPU each call is waited for: some microseconds more.

    Parameters
    ----------
    net : Network
        Its parameters change: these are real steps.
    x : array, (N, C, H, W)
    labels : array of integers, (N,)
    repeats : int
        Timed steps, after one to warm up. The peak is measured before each; the highest counts, since a
        shared machine may lend half a core at times.
    errors : bool
        Run one more step, and compare each call with the float64 reference: slow.
    lr : float, optional
    progress : callable
        Called as `progress(steps of work done, what comes next)`; there are `repeats + 1` of them, and
        one for each call where errors are wanted.

    Returns
    -------
    Profile
    """
    with arrays.queue(net.gpu_arrays()):  # on the network's GPU, whichever is the current one
        return _profile(net, x, labels, repeats, errors, lr, progress)


def _profile(
    net: Network,
    x: Any,
    labels: Any,
    repeats: int,
    errors: bool,
    lr: float | None,
    progress: Callable[[int, str], None],
) -> Profile:
    progress(0, "warming up")
    losses = [float(net.step(x, labels, lr=lr))]  # compiles, fills caches
    plan = net.plan(len(x))
    phases = plan.phases()
    samples: dict[int, list[float]] = {id(call): [] for calls in phases.values() for call in calls}
    wait = _waiting(net.device)
    steps, peaks = [], []

    def each() -> None:
        for calls in phases.values():
            for call in calls:
                samples[id(call)].append(elapsed_ms(call.run, wait))

    for repeat in range(repeats):
        progress(1, f"step {repeat + 1} of {repeats}")
        if net.device == "cpu":
            peaks.append(probe.peak_gflops(seconds=0.1))
        net.load_step(x, labels, lr=lr)
        wait()
        steps.append(elapsed_ms(each))
        losses.append(float(plan.losses.mean()))
    progress(1, "comparing with float64")
    net.load_step(x, labels, lr=lr)
    deviation = _errors(phases, progress) if errors else {}
    best = max(peaks, key=lambda p: p.gflops, default=None)
    peak = best.gflops if best else None

    def total(calls: list[Call]) -> float:
        return sum(median(samples[id(call)]) for call in calls)

    rows = [
        _row(layer, plan, total, peak, deviation)
        for layer in dict.fromkeys(call.layer for call in plan.forward)
    ]
    return Profile(
        batch=len(x),
        dtype=net.dtype,
        device=net.device,
        math=net.math,
        peak_gflops=peak,
        peak_method=best.method if best else "not measured on a GPU",
        rows=rows,
        forward_ms=total(phases["forward"]),
        backward_ms=total(phases["backward"]),
        loss_ms=total(phases["loss"]),
        update_ms=total(phases["update"]),
        update_error=max(deviation[id(c)] for c in phases["update"]) if deviation else None,
        step_ms_samples=steps,
        peak_samples=[p.gflops for p in peaks],
        losses=losses,
    )


def _waiting(device: str) -> Callable[[], Any]:
    """What waits until the device has done what is queued on it."""
    if device == "cpu":
        return lambda: None
    import cupy

    return cupy.cuda.runtime.deviceSynchronize


def _errors(phases: dict[str, list[Call]], progress: Any) -> dict[int, float]:
    """Error of each call, in one more training step."""
    found = {}
    for calls in phases.values():
        for call in calls:
            progress(1, f"float64 {call.layer} {call.op.name}")
            try:
                found[id(call)] = run_and_compare(call)
            except MemoryError:
                raise ConvkitError(
                    f"no memory for {call.layer} in float64; take a smaller batch, or errors=False"
                ) from None
    return found


def _row(
    layer: str,
    plan: Plan,
    total: Callable[[list[Call]], float],
    peak: float | None,
    deviation: dict[int, float],
) -> Row:
    phases = plan.phases()
    forward = [call for call in phases["forward"] if call.layer == layer]
    backward = [call for call in phases["backward"] if call.layer == layer]
    calls = forward + backward
    flops = sum(call.problem.flops(call.op.name) for call in calls)
    # A bias gradient or a ReLU is not what the layer is named for.
    main = [c for c in calls if c.problem.flops(c.op.name) * 20 >= flops]
    forward_ms, backward_ms = total(forward), total(backward)
    gflops = flops / 1e6 / (forward_ms + backward_ms)
    return Row(
        layer,
        "/".join(dict.fromkeys(call.implementation.name for call in main)),
        "/".join(dict.fromkeys(call.implementation.layout for call in main)),
        "/".join(dict.fromkeys(call.implementation.math for call in main)),
        "x".join(map(str, forward[-1].problem.shape(forward[-1].op.outputs[0]))),
        forward_ms,
        backward_ms,
        gflops,
        100 * gflops / peak if peak else None,
        max(deviation[id(c)] for c in calls) if deviation else None,
    )
