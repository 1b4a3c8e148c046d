"""`fit`: what `convkit train` does, for Python."""

from __future__ import annotations

import math as maths
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..errors import ConvkitError, OptionError
from ..network.network import Network
from ..network.plan.program import Program
from ..options import integer
from ..registry import MATH
from . import exchange as exchanges
from .build import build, stored_size
from .data import open_data
from .data.dataset import Data, Statistics
from .data.folder import Folder
from .errors import DataError, NotFinite, RunError
from .exchange import Exchange
from .inputs import Inputs
from .log import Log
from .loop import Loop
from .position import Position
from .preparation import statistics as statistics_of
from .recipe import Recipe, load, overridden, parse, table
from .run_folder import Info, RunFolder
from .stops import Stopped, Stops

#: Images whose statistics are taken where the data do not bring their own: all are read once for it.
SAMPLE = 10_000
#: What a run may change when it is resumed.
CHANGEABLE = ("about", "epochs", "steps", "lr", "schedule", "plateau")
T = TypeVar("T")


def fit(
    data: str | Path | Data,
    output: str | Path,
    *,
    recipe: str | Path | Recipe | None = None,
    overrides: Iterable[str] = (),
    resume: bool = False,
    device: str = "cpu",
    math: str | None = None,
    workers: int | None = None,
    checkpoint_steps: int = 0,
    checkpoint_minutes: float = 10.0,
    quiet: bool = False,
) -> RunFolder:
    """Train a network by a recipe; what `convkit train` does.

    Under `mpiexec` all processes call it, and share each batch.

    Parameters
    ----------
    data : str, Path or Data
        "digits", or a folder: an IDX data set, folders of classes, the ILSVRC tars, a store.
    output : str or Path
        The run's folder: recipe, logs, curves, checkpoints. It must be new or empty, unless `resume`.
    recipe : str, Path or Recipe, optional
        A shipped recipe's name, or a file; by default "small", or that of the run that is resumed.
    overrides : iterable of str
        "lr=0.005", "images.flip=false", ...
    resume : bool
        Go on with the run in `output` from its last checkpoint; begin where there is none. The rate, its
        schedule, and the number of epochs may be others; all else must be the same.
    device, math : str
        As in `convkit.AlexNet`.
    workers : int, optional
        Processes that decode images, on each rank; by default one for each CPU.
    checkpoint_steps : int
        A checkpoint after each so many steps, besides those after each epoch.
    checkpoint_minutes : float
        A checkpoint where the last one is so old.
    quiet : bool
        Print nothing.

    Returns
    -------
    run : RunFolder

    Raises
    ------
    DataError, RunError, OptionError
        For data, folders and recipes that cannot be used. And if a loss is not finite: the weights are then
        those before that step, and saved.
    Stopped
        After SIGTERM, SIGHUP or Ctrl-C, when the checkpoint is written.
    """
    if workers is not None:
        workers = integer("workers", workers, 0)
    checkpoint_steps = integer("checkpoint_steps", checkpoint_steps, 0)
    if not checkpoint_minutes > 0:
        raise OptionError(f"checkpoint_minutes must be above 0, not {checkpoint_minutes!r}")
    ended: Stopped | NotFinite | None = None
    with exchanges.here(device) as exchange:
        log = Log(quiet=quiet, events=Path(output) / "events") if exchange.rank == 0 else Log(quiet=True)
        setup = _Setup(data, Path(output), recipe, tuple(overrides), resume, workers, log)
        with log.warnings(), setup:
            made = _together(exchange, lambda: setup.read(exchange.size))
            shape, classes = made.data.train.shape, made.data.classes
            # Before anything is written: what cannot be built leaves no run that cannot be resumed.
            net = build(made.recipe, shape, len(classes), device=exchange.device, math=math)
            statistics, position = _together(exchange, lambda: setup.begin(net, made))
            inputs = Inputs(net.preset, made.recipe, statistics, shape, exchange.device)
            with Stops() as stops:
                loop = Loop(
                    net, made.data, made.recipe, inputs, setup.run, exchange, log, position, stops,
                    workers=workers, checkpoint_steps=checkpoint_steps,
                    checkpoint_seconds=60 * checkpoint_minutes,
                )  # fmt: skip
                log.say(_first_lines(loop, setup.changes))
                try:
                    loop.train()
                    log.end(_last_line(loop))
                except (Stopped, NotFinite) as error:
                    ended = error  # of all processes together, so it does not end the others
    if ended is not None:
        raise ended
    return RunFolder.open(output)


@dataclass(frozen=True)
class _Made:
    """What rank 0 has read, for all ranks."""

    recipe: Recipe
    data: Data


class _Setup:
    """What rank 0 does before the first step: read, check, and lock; `run` is the folder, on rank 0."""

    def __init__(
        self, data: Any, output: Path, recipe: Any, overrides: tuple[str, ...], resume: bool,
        workers: int | None, log: Log,
    ) -> None:  # fmt: skip
        self.given, self.output, self.recipe, self.overrides = data, output, recipe, overrides
        self.resume, self.workers, self.log = resume, workers, log
        self.run: RunFolder | None = None
        self.changes: list[str] = []

    def __enter__(self) -> _Setup:
        return self

    def __exit__(self, *_: object) -> None:
        self.log.end()
        if self.run is not None:
            self.run.close()

    def read(self, processes: int) -> _Made:
        """Recipe and data, and all checks that need no network. It changes nothing."""
        if self.resume and RunFolder.holds_run(self.output):
            self.run = RunFolder.open(self.output).lock()
        else:
            RunFolder.require_new(self.output)
        recipe = self._recipe()
        if self.run is not None:
            self.changes = self.run.require_recipe(recipe, CHANGEABLE)
        data = self.given
        if not isinstance(data, Data):
            self.log.doing("looking at the data")
            data = open_data(data, stored_size(recipe), recipe.images.square)
        if self.run is not None:
            self.run.require_data(Info.of(data))
        inner = self.output.resolve()
        if isinstance(data.train, Folder) and (outer := Path(data.train.root).resolve()) in inner.parents:
            raise RunError(f"{self.output} is inside of {outer}: the run would become one of its classes")
        if len(data.train) < recipe.batch:
            raise DataError(
                f"a batch of {recipe.batch} is more than the {len(data.train)} training images of "
                f"{data.name}; --set batch=... takes a smaller one"
            )
        if recipe.batch < processes:
            raise DataError(f"a batch of {recipe.batch} cannot be shared by {processes} processes")
        return _Made(recipe, data)

    def begin(self, net: Any, made: _Made) -> tuple[Statistics | None, Position]:
        """Make the run's folder, or load its checkpoint into the network."""
        if self.run is None:
            found, info = self._statistics(made), Info.of(made.data, self._path())
            self.run = RunFolder.create(self.output, made.recipe, info, found)
            return found, Position()
        position = Position()
        if self.run.has_checkpoint():
            checkpoint = self.run.load("last")
            position = Position.of(checkpoint.position)
            checkpoint.load_into(net, made.data.classes)
        if self.changes:
            self.run.replace_recipe(made.recipe)
        self.run.cut_logs(position.table())
        return self.run.statistics, position

    def _path(self) -> str:
        """Where the data are, from any working directory; empty if that is not known."""
        if isinstance(self.given, Data):
            return ""
        return "digits" if str(self.given) == "digits" else os.path.abspath(self.given)

    def _recipe(self) -> Recipe:
        """The recipe that was asked for, by default that of the run that goes on."""
        given = self.run.recipe if self.recipe is None and self.run is not None else self.recipe
        if isinstance(given, Recipe):
            return parse(overridden(table(given), self.overrides))
        return load(given or "small", self.overrides)

    def _statistics(self, made: _Made) -> Statistics | None:
        if not Inputs.needs_statistics(made.recipe):
            return None
        return made.data.statistics or statistics_of(
            made.data.train, workers=self.workers, most=SAMPLE,
            progress=lambda done, count, _: self.log.doing(f"mean image: {done:,} of {count:,} images"),
        )  # fmt: skip


def _together(exchange: Exchange, work: Callable[[], T]) -> T:
    """What rank 0 finds, on all ranks; and its error."""
    if exchange.size == 1:
        return work()
    error: ConvkitError | None = None
    outcome: tuple[str, Any] = "", None
    if exchange.rank == 0:
        try:
            outcome = "", work()
        except ConvkitError as caught:
            error, outcome = caught, (str(caught), None)
    message, value = exchange.broadcast(outcome)
    if error is not None:
        raise error
    if message:
        raise RunError(message)  # as text: not every error can be pickled
    found: T = value
    return found


def _first_lines(loop: Loop, changes: list[str]) -> str:
    """What is trained, with what."""
    net, data, recipe, position = loop.net, loop.data, loop.recipe, loop.position
    H, W, C = data.train.shape
    size, ranks = net.preset.image_size, loop.exchange.size
    parameters = sum(w.size for w in net.params.values())
    epochs = "1 epoch" if recipe.epochs == 1 else f"{recipe.epochs} epochs"
    held = "no validation set" if data.validation is None else f"{len(data.validation):,} for validation"
    lines = [
        f"AlexNet ({net.preset.name}): {size} x {size} x {C} pixels, {len(data.classes)} classes, "
        f"{parameters:,} parameters",
        f"{data.name}: {len(data.train):,} images of {H} x {W} pixels, {held}",
        f"{epochs} of {loop.steps_in_epoch:,} steps with {recipe.batch} images"
        + (f"; {recipe.steps:,} steps in all" if recipe.steps else "")
        + (f", on {ranks} processes" if ranks > 1 else ""),
    ]
    if coarser := arithmetic(net, recipe.batch):
        lines.append(coarser)
    counts = np.bincount(data.train.labels, minlength=len(data.classes))
    if len(empty := np.flatnonzero(counts == 0)):
        some = ", ".join(data.classes[label] for label in empty[:3]) + (", ..." if len(empty) > 3 else "")
        lines.append(f"warning: no training image has one of {len(empty)} labels: {some}")
    if changes:
        lines.append(f"the recipe has changed, from that of the run: {'; '.join(changes)}")
    if loop.complete:
        more = "steps" if 0 < recipe.steps <= position.step else "epochs"
        if position.epoch < recipe.epochs and more == "epochs":
            more = "plateau.times"
        lines.append(f"the recipe is complete after step {position.step}; --set {more}=... goes on")
    elif position.step:
        lines.append(f"going on after step {position.step}, in epoch {position.epoch + 1}")
    return "\n".join(lines)


def arithmetic(net: Network, batch: int) -> str:
    """Where the coarser arithmetic runs that the caller has accepted; empty where none was."""
    if net.math in (None, MATH[-1]):
        return ""
    shape = batch, *net.input_shape
    program = Program(net.layers, shape, net.num_classes, net.dtype, net.device, net.math)
    step = program.step(net.params)
    nodes = program.runs((*program.forward, *step.backward, *step.update))
    coarse = dict.fromkeys(node.layer for node in nodes if program.pick(node).math == net.math)
    if not coarse:
        return f"math: {net.math} was accepted, but nothing that was picked computes in it"
    return f"math: {net.math} runs in {', '.join(coarse)}"


def _last_line(loop: Loop) -> str:
    """Where the results are."""
    if loop.run is None:
        return ""
    best = loop.position.best
    error = "" if best == maths.inf else f"; best.safetensors has a validation error of {100 * best:.2f} %"
    return f"done: {loop.run.path}{error}"
