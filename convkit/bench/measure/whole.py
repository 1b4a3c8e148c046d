"""Whole passes of an AlexNet, timed: checked against a network in float64, then in turns like anything else.

A pass is checked before it is timed: logits against a network in float64, and for a training step every
gradient, and that the step learns. Caches are as the pass before left them. The batch is the same in every
call; no result of a step could be kept, since the weights change. For the same reason no timed call is
compared with anything: its loss is seen to be finite, which is no check, and a result file says "unchecked"
of all that comes after the beginning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np

from ...check.tolerance import relative_rms
from ...network.alexnet import AlexNet
from ...network.presets import PRESETS
from ...op import Problem
from ...registry import Implementation
from ..steps import Step
from ..work import FORWARD, Item
from .checks import refuse
from .entry import Checks, Clock, Entry, Result, Settings, on_its_device
from .timing import Rounds, refuse_impossible

#: Largest relative RMS error of logits; of gradients, where a ReLU may go the other way in float32.
LOGITS, GRADIENTS = 1e-3, 1e-2
#: Images whose gradients are compared with float64.
CHECKED = 4
Array = np.ndarray


@dataclass
class NetworkEntry(Entry):
    """A network that is built when it is first asked for.

    Attributes
    ----------
    build : callable
    kernels : list of (Implementation, Problem)
        What a step runs of convkit's, once it has run.
    """

    build: Callable[[], Any] = lambda: None
    kernels: list[tuple[Implementation, Problem]] = field(default_factory=list)


# ---------------------------------------------------------------------------------------------------
# Right or wrong
# ---------------------------------------------------------------------------------------------------
def images(preset: str, batch: int) -> tuple[Array, Array]:
    """A batch of normal data, of the size of what the preset sees, and labels."""
    rng = np.random.default_rng(batch)
    chosen = PRESETS[preset]
    size, unit = chosen.image_size, 1 if chosen.preprocess.scale < 1 else 50
    x = rng.standard_normal((batch, 3, size, size), np.float32) * unit
    return x, rng.integers(0, chosen.num_classes, batch)


@lru_cache(maxsize=1)
def _reference(preset: str, batch: int) -> tuple[Array, Array, dict[str, Array]]:
    """Logits, their gradient, and every parameter's, in float64, of the first images of a batch."""
    few = images(preset, batch)[0][:CHECKED]
    net = AlexNet(preset, seed=0, dtype="float64")
    logits = net.forward(few.astype(np.float64))
    dlogits = np.random.default_rng(9).standard_normal(logits.shape).astype(np.float32) / len(few)
    net.backward(dlogits.astype(np.float64))
    return logits, dlogits, {name: g.astype(np.float32) for name, g in net.grads.items()}


def rms(got: Any, wanted: Array) -> float:
    """Relative RMS error; infinite where the shapes differ."""
    got = _host(got)
    return relative_rms(got, wanted) if got.shape == wanted.shape else math.inf


def _host(array: Any) -> Array:
    if hasattr(array, "get") and not isinstance(array, np.ndarray):
        return array.get()
    return np.asarray(array.detach() if hasattr(array, "detach") else array)


def check(net: Any, item: Item, to: Callable[[Array], Any]) -> tuple[float, str]:
    """(error, what is wrong): logits of the whole batch; of a step, gradients of some images."""
    assert isinstance(item.problem, Step)
    preset = item.problem.preset
    x, labels = images(preset, item.batch)
    logits, dlogits, grads = _reference(preset, item.batch)
    error = rms(_host(net.logits(to(x)))[:CHECKED], logits)
    if not error <= LOGITS:
        return error, f"the relative RMS error of its logits is {error:.1e}, more than {LOGITS:g}"
    net.load(to(x), to(labels))
    if item.op == FORWARD:
        return error, ""
    found = net.gradients(to(x[:CHECKED]), to(dlogits))
    worst = max(grads, key=lambda name: rms(found[name], grads[name]))
    slope = rms(found[worst], grads[worst])
    if not slope <= GRADIENTS:
        return (
            slope,
            f"the relative RMS error of the gradient of {worst} is {slope:.1e}, more than {GRADIENTS:g}",
        )
    before, loss = _host(net.params["fc8.w"]).copy(), net.step()
    if not math.isfinite(loss):
        return slope, f"its loss is {loss}"
    if np.array_equal(before, _host(net.params["fc8.w"])):
        return slope, "its step does not change the weights"
    return max(error, slope), ""


# ---------------------------------------------------------------------------------------------------
# Taking turns
# ---------------------------------------------------------------------------------------------------
class _Trial:
    """A network in the race; what `timing.Rounds` wants of a trial."""

    def __init__(self, item: Item, entry: NetworkEntry, clock: Clock, settings: Settings) -> None:
        self.item, self.entry, self.clock, self.settings = item, entry, clock, settings
        self.name, self.checks, self.refused = entry.name, Checks(), ""
        self.net: Any = None
        self.trains = item.op != FORWARD
        self.loss = math.nan
        self._read: Callable[[], float] = lambda: math.nan
        # As in `trial.Trial`.
        self.host_us: list[float] = []
        self.host_included = False

    def prepare(self) -> None:
        self.net = self.entry.build()
        self.checks.error, reason = check(self.net, self.item, _sender(self.clock.device))
        self.refused, self.checks.before = reason, reason or "passed"
        if kernels := getattr(self.net, "kernels", None):
            self.entry.kernels = kernels(self.item.batch)

    def _pass(self) -> None:
        if self.trains:
            self.loss = self.net.step()
        else:
            self.net.forward()

    def _queue(self) -> None:
        self._read = self.net.queue()

    def _time(self) -> float:
        """Milliseconds of a pass; on a GPU a step's loss, for which one has to wait, is read afterwards."""
        clock: Any = self.clock
        if not hasattr(clock, "held"):
            return float(clock.time(self._pass))
        queues = self.trains and hasattr(self.net, "queue")
        ms = float(clock.time(self._queue if queues else self._pass, hold_back=not self.host_included))
        self.host_included = self.host_included or not clock.held
        if queues:
            self.loss = self._read()
        return ms

    def estimate(self) -> tuple[float, float]:
        ms = self._time()
        return ms, ms

    def turn(self, calls: int, where: str) -> list[float]:
        found = []
        for _ in range(calls):
            found.append(self._time())
            if hasattr(self.clock, "host_us"):
                self.host_us.append(self.clock.host_us)
        if self.trains and not math.isfinite(self.loss):
            raise ArithmeticError(f"its loss is {self.loss} ({where})")
        return found


class _Batch:
    """The memory of a step's race: nothing is drawn anew."""

    def __init__(self, item: Item) -> None:
        self.item = item

    def draw(self) -> None:
        pass

    restore = draw


def _sender(device: str) -> Callable[[Array], Any]:
    if device != "cuda":
        return lambda array: array
    import cupy

    return cupy.asarray


def race(
    item: Item,
    entries: Sequence[Any],
    clock: Clock,
    settings: Settings,
    progress: Callable[[str], None],
    ceilings: dict[str, dict[str, Any]] | None = None,
) -> Result:
    """As `timing.race`, for steps."""
    with on_its_device(clock):
        return _race(item, entries, clock, settings, progress, ceilings or {})


def _race(
    item: Item,
    entries: Sequence[Any],
    clock: Clock,
    settings: Settings,
    progress: Callable[[str], None],
    ceilings: dict[str, dict[str, Any]],
) -> Result:
    # A step is long: in the time of a single op it would have too few rounds for any verdict.
    settings = replace(settings, budget_s=4 * settings.budget_s)
    result = Result(item, cache="warm")
    trials = [_Trial(item, entry, clock, settings) for entry in entries]
    result.checks = {trial.name: trial.checks for trial in trials}
    try:
        for trial in trials:
            progress(f"{item.id}: {trial.name}, building and comparing with float64")
            try:
                trial.prepare()
            except Exception as error:  # a library that breaks ends its own race alone
                refuse(trial, "before", error)  # type: ignore[arg-type]
        Rounds(result, trials, _Batch(item), settings, progress).run()  # type: ignore[arg-type]
    except KeyboardInterrupt:
        result.interrupted = True
    for trial in trials:
        trial.net = None
    refuse_impossible(result, trials, ceilings)  # type: ignore[arg-type]
    for trial in trials:
        result.note_host(trial.name, trial.host_us, trial.host_included)
        if trial.refused:
            result.refused[trial.name] = trial.refused
            result.samples.pop(trial.name, None)
    return result
