"""A candidate in a network: is every call right, and what does it do to a training run?

First each call of one step is compared with float64, on the very inputs that it has there. Then the network
trains, with the candidate, without it, and with another right implementation in its place: in processes of
their own, step by step in turns. Then the calls of one more step are compared, by the process that has
trained. `report` says what follows from it, `places` where in a network a candidate can stand.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import checked, devices, registry
from ..check.faults import Lost, Misdeclared, Raised
from ..check.network import verdicts_of_step
from ..check.process import Contained, Limits, of_file
from ..check.process.training import emulated as as_emulated
from ..check.tolerance import relative_rms
from ..cuda.emulate import Emulator
from ..cuda.emulate import emulate as as_gpu
from ..errors import OptionError, UncheckedWarning
from ..network.alexnet import AlexNet
from ..network.presets import preset as find_preset
from ..options import finite, integer
from ..registry import Implementation
from ..train.patterns import Patterns
from . import places
from .report import Gradients, Report
from .runs import Run

__all__ = ["NotRun", "Report", "swap"]

#: (batch, steps) by default: for images of up to 64 pixels, for larger ones, and under the emulator.
DEFAULTS = {"small": (16, 20), "large": (4, 10), "emulated": (4, 10)}
#: Learning rates with which the loss falls within some steps, and rounding does not yet rule the curves: by
#: preset, for the others, and for the small batches of the emulator.
_RATES = {"small": 0.005, "owt": 0.01}
_RATE = _EMULATED_RATE = 0.001

#: Batches behind those of the run on which gradients are compared before the first step.
_MORE = (1, 2)

Progress = Callable[[str, int, int], None]


class NotRun(OptionError):
    """A candidate that this machine has no device for: nothing is known about it."""


def swap(
    file: str | Path,
    *,
    preset: str = "small",
    layer: str | None = None,
    impl: str | None = None,
    steps: int | None = None,
    batch: int | None = None,
    seed: int = 0,
    lr: float | None = None,
    emulate: bool | None = None,
    go_on: bool = False,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> Report:
    """Put a candidate into a network and compare its training with and without it.

    Parameters
    ----------
    file : path
        A kernel file (.cu), or a Python file that registers implementations.
    preset : {"small", "paper", "2012", "caffe", "owt"}
    layer : str, optional
        The layer in which the candidate runs; by default every one that it takes.
    impl : str, optional
        Which implementation of the file, where it has several of one op.
    steps, batch : int, optional
        By default 20 steps of 16 images; 10 of 4 for the large presets and under the emulator.
    seed : int
        Of weights, dropout and images.
    lr : float, optional
        Learning rate.
    emulate : bool, optional
        Whether kernel files run under the emulator, in a network that otherwise runs on the CPU. By default
        where there is no GPU.
    go_on : bool
        Go on after a wrong call.
    limits : Limits, optional
        Of the candidate's process. The time is that of one call, and of one step.
    progress : callable, optional
        Called as ``progress(what, done, total)``.

    Returns
    -------
    Report

    Raises
    ------
    NotRun
        If the candidate needs a device that is not there.
    OptionError
        If there is nothing to do: no such file, layer or preset, or an op that the network does not have.
    """
    chosen = find_preset(preset)
    places.require_layer(chosen, layer)
    group = of_file(file, limits or Limits())
    is_kernel = Path(file).suffix == ".cu"
    there = not is_kernel or devices.gpu_found()
    use_emulator = is_kernel and (emulate if emulate is not None else not there)
    kind = "emulated" if use_emulator else "small" if chosen.image_size <= 64 else "large"
    batch = integer("batch", DEFAULTS[kind][0] if batch is None else batch, 1)
    steps = integer("steps", DEFAULTS[kind][1] if steps is None else steps, 1)
    usual = _EMULATED_RATE if use_emulator else _RATES.get(preset, _RATE)
    rate = finite("lr", usual if lr is None else lr, 0)
    report = Report(Path(file).name, preset, batch, steps, integer("seed", seed, 0), rate, "cpu")
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", UncheckedWarning)  # the report says it
        stack.callback(group.close)
        try:
            found = group.load()
        except Lost as error:
            report.fault = f"it could not be loaded: {error}"
            return _with_prints(report, group)
        one = places.one_for_each_op(found, impl)
        found = [i for i in found if i.op in one and one[i.op].name == i.name]
        report.device = "emulated" if use_emulator else _device(found)
        with as_gpu() if use_emulator else contextlib.nullcontext():
            report.unchecked = [text for i in found if (text := checked.lacking(i)) is not None]
        found = [_hosted(i, report.device, group) for i in found]
        stack.enter_context(registry.added(found))
        chosen_ones = places.one_for_each_op(found)
        report.candidates = {op: i.name for op, i in chosen_ones.items()}
        report.declared = max(i.error for i in found)
        try:
            _Swap(report, group, chosen_ones, progress, go_on).run(layer)
        except (Lost, Raised, Misdeclared) as error:
            report.fault = report.fault or str(error)
    return _with_prints(report, group)


def _with_prints(report: Report, group: Contained) -> Report:
    group.close()
    report.printed = group.printed()
    return report


def _device(found: list[Implementation]) -> str:
    """Where the candidates' network runs: "cpu" or "cuda"."""
    kinds = {i.device for i in found}
    if len(kinds) > 1:
        raise OptionError("the file has implementations for the CPU and for a GPU; choose one with --impl")
    for one in found:
        if one.missing is not None and (lack := one.missing()):
            raise NotRun(f"{one.op} {one.name!r} was not run: {lack}")
    (device,) = kinds
    if device == "cuda" and not devices.gpu_found():
        raise NotRun("it was not run: it is for a GPU, and no GPU was found")
    return device


def _hosted(implementation: Implementation, device: str, group: Contained) -> Implementation:
    """The candidate as the judge's network calls it, wherever that has its arrays."""
    if device == "emulated":
        return as_emulated(implementation, Emulator(timeout=group.limits.timeout))
    return implementation if device == "cpu" else replace(implementation, run=_Copied(implementation))


class _Copied:
    """Runs what takes NumPy arrays alone on a GPU's arrays: the candidate's process has its own copies."""

    def __init__(self, implementation: Implementation) -> None:
        self._run, self._outputs = implementation.run, len(registry.OPS[implementation.op].outputs)

    def __call__(self, problem: Any, *tensors: Any, **options: Any) -> None:
        host = [None if t is None else t.get() for t in tensors]
        own = {name: v.get() if hasattr(v, "get") else v for name, v in options.items()}
        for array in host[: -self._outputs]:
            if array is not None:
                array.flags.writeable = False
        self._run(problem, *host, **own)
        for there, array in zip(tensors[-self._outputs :], host[-self._outputs :]):
            there.set(array)


class _Swap:
    """The parts of a swap in their order; each fills in its part of the report."""

    def __init__(
        self,
        report: Report,
        group: Contained,
        chosen: Mapping[str, Implementation],
        progress: Progress | None,
        go_on: bool,
    ) -> None:
        self.report, self.group, self.chosen, self.go_on = report, group, chosen, go_on
        self._progress = progress or (lambda what, done, total: None)
        self.data = Patterns(find_preset(report.preset), report.seed)
        self.network: dict[str, Any] = {
            "preset": report.preset,
            "num_classes": 10,
            "seed": report.seed,
            "device": "cuda" if report.device == "cuda" else "cpu",
        }
        self.net = AlexNet(**self.network)

    def run(self, layer: str | None) -> None:
        report = self.report
        self._progress("looking for its layers", 0, 1)
        try:
            found = places.find(self.net, report.batch, self.chosen, layer)
        except (Lost, Raised, Misdeclared) as error:
            raised = "raised " if isinstance(error, Raised) else ""
            report.fault = f"asked whether it takes a problem, it {raised}{_its(error)}"
            return
        report.places, report.refused = found.names, found.refused
        for name, ops in found.names.items():
            self.net.use(name, checked=False, **ops)
        report.calls = self._compare(0, "comparing the calls of a step")
        if any(not v.ok for v in report.calls) and not self.go_on:
            return
        with contextlib.ExitStack() as stack:
            self._train(stack)
        if not report.fault:
            report.calls_after = self._compare(report.asked, "comparing the calls after the run")

    def _compare(self, batch: int, what: str) -> list[Any]:
        """The verdicts on the candidate's calls of one step, up to the first wrong one."""
        x, labels = self.data.batch(batch, self.report.batch)
        names = {(op, i.name) for op, i in self.chosen.items()}
        verdicts = []
        for verdict in verdicts_of_step(
            self.net, x, labels,
            judged=lambda call: (call.op.name, call.implementation.name) in names,
            progress=lambda done, total, _: self._progress(what, done, total),
        ):  # fmt: skip
            verdicts.append(replace(verdict, seed=self.report.seed, contained=True))
            if not verdict.ok and not self.go_on:
                break
        return verdicts

    # -- the runs ---------------------------------------------------------------------------------------
    def _train(self, stack: contextlib.ExitStack) -> None:
        report = self.report
        report.other_names = places.another_right_one(AlexNet(**self.network), report.batch, report.places)
        self._progress("starting the runs", 0, 1)
        emulated = report.device == "emulated"
        candidate = Run(self.group, self.network, report.places, emulated=emulated)
        without = Run(self._shipped(stack), self.network, {})
        runs = [without, candidate]
        if report.other_names:
            runs.append(Run(self._shipped(stack), self.network, report.other_names))
        report.without, report.candidate = without.curve, candidate.curve
        if len(runs) > 2:
            report.other = runs[2].curve
        report.gradient_steps = [1] * len(_MORE) + list(_some(report.asked))
        for number in range(1, report.asked + 1):
            self._progress("training in turns", number - 1, report.asked)
            if not self._step(number, runs):
                return
        weights = without.weights()
        for name, values in weights.items():
            self.net.params[name][...] = values

    def _shipped(self, stack: contextlib.ExitStack) -> Contained:
        group = Contained("shipped", [], Limits(timeout=600), name="convkit")
        stack.callback(group.close)
        group.load()
        return group

    def _step(self, number: int, runs: list[Run]) -> bool:
        """A step of every run; whether the candidate's can go on."""
        try:
            if number == 1:  # on other batches as well: no median rests on one or two
                for more in _MORE:
                    self._gradients(runs, self.report.asked + more)
            if number in self.report.gradient_steps:
                self._gradients(runs, number - 1)
            self._load(runs, number - 1)
            # In turns, each first as often as the other: whatever slows the machine down hits both.
            for run in runs if number % 2 else [runs[1], runs[0], *runs[2:]]:
                answer = run.step(self.report.lr)
                if run is runs[1] and not answer["finite"]:
                    return bool(self.go_on)
        except (Lost, Raised, Misdeclared) as error:
            raised = "raised " if isinstance(error, Raised) else ""
            self.report.fault = f"in training step {number} it {raised}{_its(error)}"
            return False
        return True

    def _load(self, runs: list[Run], batch: int) -> None:
        x, labels = self.data.batch(batch, self.report.batch)
        for run in runs:
            run.load(x, labels)

    def _gradients(self, runs: list[Run], batch: int) -> None:
        """The gradients of all runs at the weights that the run without the candidate has reached."""
        self._load(runs, batch)
        without, candidate, *others = runs
        weights = without.weights()
        base = {name: a.astype(np.float64) for name, a in without.gradients(weights).items()}
        for run, which in ((candidate, "candidate"), *((other, "spread") for other in others)):
            for name, made in run.gradients(weights).items():
                found = self.report.gradients.setdefault(name, Gradients())
                getattr(found, which).append(relative_rms(made, base[name]))


def _some(steps: int) -> Iterator[int]:
    """1, 2, 4, ... and the last."""
    step = 1
    while step < steps:
        yield step
        step *= 2
    yield steps


def _its(error: Exception) -> str:
    return str(error).removeprefix("its process ")
