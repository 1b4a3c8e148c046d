"""Whole training steps of an AlexNet: convkit's planned network against the same network in other libraries.

A step is forward, loss, backward and update. It is checked before it is timed: logits and every gradient
against a network in float64, and that the step learns. Then contenders take turns as for any other row;
caches are as a step leaves them, and the batch is the same in every call: no result could be kept, since the
weights change. For the same reason no call that is timed is compared with anything: of its loss it is seen
that it is finite, which is no check, and a capsule says "unchecked" of all that comes after the beginning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np

from ..check.tolerance import relative_rms
from ..errors import OptionError, unknown
from ..network.presets import PRESETS
from ..op import Problem, Shape
from ..registry import Implementation
from . import capsule, work
from .own import UNRUN
from .peers import PEERS, Missing, threads
from .timing import (
    OWN,
    PICKED,
    Checks,
    Clock,
    Contender,
    Result,
    Rounds,
    Settings,
    on_its_device,
    refuse_impossible,
)
from .trial import refuse
from .work import STEP, Item, Wanted, of_preset

#: Largest relative RMS error of logits; of gradients, where a ReLU may go the other way in float32.
LOGITS, GRADIENTS = 1e-3, 1e-2
#: Images whose gradients are compared with float64.
CHECKED = 4
Array = np.ndarray


@dataclass(frozen=True)
class Step(Problem):
    """A training step of a preset."""

    preset: str
    N: int
    dtype: str = "float32"

    @property
    def shapes(self) -> dict[str, Shape]:
        size = PRESETS[self.preset].image_size
        return {"x": (self.N, 3, size, size), "labels": (self.N,)}

    def flops(self, op: str) -> int:
        """All passes of all layers, the update, but not the gradient of the images."""
        return sum(item.flops for item in _parts(self.preset, self.N))

    def bytes(self, *tensors: str) -> int:
        """What no step can avoid: weights and velocities read and written, images read."""
        words = sum(4 * w for w in _weights(self.preset)) + math.prod(self.shapes["x"])
        return 4 * words

    def __str__(self) -> str:
        return f"AlexNet ({self.preset}), x{self.shapes['x']}: forward, loss, backward, update"


@dataclass(frozen=True)
class StepItem(Item):
    """A step as an item."""

    @property
    def direction(self) -> str:
        return STEP

    @property
    def inputs(self) -> tuple[str, ...]:
        return "x", "labels"

    @property
    def fast_flops(self) -> int:
        assert isinstance(self.problem, Step)
        return sum(item.fast_flops for item in _parts(self.problem.preset, self.batch))

    @property
    def bytes(self) -> int:
        return self.problem.bytes()


def items(wanted: Wanted) -> list[Item]:
    """A step for each batch size."""
    if wanted.preset not in PRESETS:
        raise unknown("preset", wanted.preset, PRESETS)
    for dtype in wanted.dtypes:
        if dtype != "float32":
            raise unknown("dtype of --step", dtype, ("float32",))
    return [step(wanted.preset, batch) for batch in wanted.batches]


def step(preset: str, batch: int) -> Item:
    """The step of a preset on a batch."""
    net, problem = f"alexnet-{preset}", Step(preset, batch)
    name = work.identity(net, "step", STEP, batch, problem.dtype, "fp32")
    return StepItem(name, STEP, problem, layer="step", net=net, batch=batch)


def item_of(row: Mapping[str, Any]) -> Item:
    """As `work.item_of`, for a step too."""
    if row["op"] != STEP:
        return work.item_of(row)
    name, batch = row["problem"].get("preset"), row["problem"].get("N")
    if name not in PRESETS:
        raise unknown("preset", str(name), PRESETS)
    if not isinstance(batch, int) or batch < 1:
        raise OptionError(f"row {row['id']}: its problem cannot be read: N is {batch!r}")
    return step(name, batch)


def _parts(preset: str, batch: int) -> Iterator[Item]:
    """The plain ops of a step."""
    for item in of_preset(preset, batch):
        if "+" not in item.layer and not (item.layer == "conv1" and item.direction == "dgrad"):
            yield item


@lru_cache(maxsize=8)
def _weights(preset: str) -> tuple[int, ...]:
    wgrads = [i for i in of_preset(preset, 1) if i.op.endswith("_wgrad") and "+" not in i.layer]
    return tuple(math.prod(i.problem.shape("dw")) + i.problem.shape("dy")[1] for i in wgrads)


# ---------------------------------------------------------------------------------------------------
# Contenders
# ---------------------------------------------------------------------------------------------------
@dataclass
class StepContender(Contender):
    """A network that is built when it is first asked for.

    Attributes
    ----------
    build : callable
    kernels : list of (Implementation, Problem)
        What a step runs of convkit's, once it has run.
    """

    build: Callable[[], Any] = lambda: None
    kernels: list[tuple[Implementation, Problem]] = field(default_factory=list)


def contenders(item: Item, device: str, peers: Sequence[str]) -> tuple[list[Contender], list[dict[str, Any]]]:
    """convkit's network and the peers'; and entries for those that have none."""
    assert isinstance(item.problem, Step)
    preset = item.problem.preset
    found: list[Contender] = [
        _contender("convkit", OWN, (PICKED, *((UNRUN,) if device == "cuda" else ())), item,
                   lambda: _own(preset, device))
    ]  # fmt: skip
    lacking = []
    for name in peers:
        try:
            for title, build in _networks(name, preset, device):
                found.append(_contender(title, PEERS[name], (), item, build))
        except Missing as reason:
            lacking.append(capsule.absent(name, PEERS[name], str(reason)))
    return found, lacking


def _contender(
    name: str, library: str, marks: tuple[str, ...], item: Item, build: Callable[[], Any]
) -> StepContender:
    def bind(inputs: Any, outputs: Any) -> Callable[[], None]:
        raise NotImplementedError("a step is built, not bound")

    facts = {"algorithm_flops": item.fast_flops}
    return StepContender(name, library, bind, layout="", facts=facts, marks=marks, build=build)


def _own(preset: str, device: str) -> Any:
    from .peers.networks import ConvkitNet

    return ConvkitNet({"preset": preset}, device)


def _networks(name: str, preset: str, device: str) -> list[tuple[str, Callable[[], Any]]]:
    """(name, how it is built) of a library's networks."""
    from .peers import networks

    if name not in ("torch", "jax"):
        raise Missing("trains nothing" if name == "onnxruntime" else "has no networks, only layers")
    if device == "cuda":
        raise Missing("its networks are written for the CPU here")
    spec = networks.describe(preset)

    def torch(layout: str) -> Callable[[], Any]:
        return lambda: networks.TorchNet(networks.TorchTools(threads(), layout), spec, _params(preset))

    if name == "jax":
        return [("jax", lambda: networks.JaxNet(networks.JaxTools(threads()), spec, _params(preset)))]
    return [("torch", torch("nchw")), ("torch channels_last", torch("channels_last"))]


@lru_cache(maxsize=1)
def _params(preset: str) -> dict[str, Array]:
    from ..network.alexnet import AlexNet

    return {name: np.array(w) for name, w in AlexNet(preset, seed=0).params.items()}


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
    from ..network.alexnet import AlexNet

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
        return array.get()  # type: ignore[no-any-return]
    return np.asarray(array.detach() if hasattr(array, "detach") else array)


def check(net: Any, item: Item, to: Callable[[Array], Any]) -> tuple[float, str]:
    """(error, what is wrong): logits of the whole batch, gradients of some images."""
    assert isinstance(item.problem, Step)
    preset = item.problem.preset
    x, labels = images(preset, item.batch)
    logits, dlogits, grads = _reference(preset, item.batch)
    error = rms(_host(net.logits(to(x)))[:CHECKED], logits)
    if not error <= LOGITS:
        return error, f"the relative RMS error of its logits is {error:.1e}, more than {LOGITS:g}"
    found = net.gradients(to(x[:CHECKED]), to(dlogits))
    worst = max(grads, key=lambda name: rms(found[name], grads[name]))
    slope = rms(found[worst], grads[worst])
    if not slope <= GRADIENTS:
        return (
            slope,
            f"the relative RMS error of the gradient of {worst} is {slope:.1e}, more than {GRADIENTS:g}",
        )
    net.load(to(x), to(labels))
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

    def __init__(self, item: Item, contender: StepContender, clock: Clock, settings: Settings) -> None:
        self.item, self.contender, self.clock, self.settings = item, contender, clock, settings
        self.name, self.checks, self.refused = contender.name, Checks(), ""
        self.net: Any = None
        self.loss = math.nan
        self._read: Callable[[], float] = lambda: math.nan
        # As in `trial.Trial`.
        self.host_us: list[float] = []
        self.host_included = False

    def prepare(self) -> None:
        self.net = self.contender.build()
        self.checks.error, reason = check(self.net, self.item, _sender(self.clock.device))
        self.refused, self.checks.before = reason, reason or "passed"
        if kernels := getattr(self.net, "kernels", None):
            self.contender.kernels = kernels(self.item.batch)

    def _step(self) -> None:
        self.loss = self.net.step()

    def _queue(self) -> None:
        self._read = self.net.queue()

    def _time(self) -> float:
        """Milliseconds of a step; on a GPU its loss, for which one has to wait, is read afterwards."""
        clock: Any = self.clock
        if not hasattr(clock, "held"):
            return float(clock.time(self._step))
        queues = hasattr(self.net, "queue")
        ms = float(clock.time(self._queue if queues else self._step, hold_back=not self.host_included))
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
        if not math.isfinite(self.loss):
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

    return cupy.asarray  # type: ignore[no-any-return]


def race(
    item: Item,
    contenders: Sequence[Any],
    clock: Clock,
    settings: Settings,
    progress: Callable[[str], None],
    ceilings: dict[str, dict[str, Any]] | None = None,
) -> Result:
    """As `timing.race`, for steps."""
    with on_its_device(clock):
        return _race(item, contenders, clock, settings, progress, ceilings or {})


def _race(
    item: Item,
    contenders: Sequence[Any],
    clock: Clock,
    settings: Settings,
    progress: Callable[[str], None],
    ceilings: dict[str, dict[str, Any]],
) -> Result:
    # A step is long: in the time of a single op it would have too few rounds for any verdict.
    settings = replace(settings, budget_s=4 * settings.budget_s)
    result = Result(item, cache="warm")
    trials = [_Trial(item, contender, clock, settings) for contender in contenders]
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
