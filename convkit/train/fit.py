"""`fit`: what `convkit train` does, for Python."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..errors import ConvkitError
from . import exchange as exchanges
from .build import build, stored_size
from .checkpoint import Checkpoint
from .data import open_data
from .data.dataset import Data, Statistics
from .errors import DataError
from .exchange import Exchange
from .inputs import Inputs
from .log import Log
from .loop import Loop, Position
from .prepare import statistics
from .recipe import Recipe, load, overridden, parse, table
from .run_folder import Info, RunFolder
from .stops import Stops

#: Images whose statistics are taken where the data do not bring their own: all are read once for it.
SAMPLE = 10_000
#: What a run may change when it is resumed.
CHANGEABLE = ("about", "epochs", "steps", "lr", "schedule", "plateau")
T = TypeVar("T")


def fit(
    data: str | Path | Data,
    output: str | Path,
    *,
    recipe: str | Recipe | None = None,
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
    recipe : str or Recipe, optional
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
    with exchanges.here(device) as exchange, Stops() as stops:
        setup = _Setup(data, Path(output), recipe, tuple(overrides), resume, workers, exchange)
        log = setup.log(quiet)
        with log.warnings(), setup:
            made = _together(exchange, setup.make)
            shape, classes = made.data.train.shape, made.data.classes
            net = build(made.recipe, shape, len(classes), device=exchange.device, math=math)
            inputs = Inputs(net.preset, made.recipe, made.statistics, shape, exchange.device)
            position = Position()
            if made.checkpoint is not None:
                made.checkpoint.load_into(net, classes)
                position = Position.of(made.checkpoint.position)
            log.say(_first_line(net, made, position, exchange.size))
            Loop(
                net, made.data, made.recipe, inputs, setup.run, exchange, log, position, stops,
                workers=workers, checkpoint_steps=checkpoint_steps,
                checkpoint_seconds=60 * checkpoint_minutes,
            ).train()  # fmt: skip
        log.end()
    return RunFolder.open(output)


@dataclass(frozen=True)
class _Made:
    """What rank 0 has found out, for all ranks."""

    recipe: Recipe
    data: Data
    statistics: Statistics | None
    checkpoint: Checkpoint | None


class _Setup:
    """What rank 0 does before the first step: read, check, and lock."""

    run: RunFolder | None = None

    def __init__(
        self, data: Any, output: Path, recipe: Any, overrides: tuple[str, ...], resume: bool,
        workers: int | None, exchange: Exchange,
    ) -> None:  # fmt: skip
        self.given, self.output, self.recipe, self.overrides = data, output, recipe, overrides
        self.resume, self.workers, self.exchange = resume, workers, exchange

    def make(self) -> _Made:
        """Everything that can be refused is refused here, before anything is written."""
        old = RunFolder.open(self.output) if self.resume and RunFolder.holds_run(self.output) else None
        recipe = self._recipe(old)
        data = self.given
        if not isinstance(data, Data):
            data = open_data(str(data), stored_size(recipe), recipe.images.square)
        self._require(data, recipe)
        info = Info.of(data, "" if isinstance(self.given, Data) else str(self.given))
        if old is None:
            self.run = RunFolder.create(self.output, recipe, info, self._statistics(data, recipe))
        else:
            old.require_data(info)
            changes = old.require_recipe(recipe, CHANGEABLE)
            self.run = old.lock()
            if changes:
                old.replace_recipe(recipe)
        checkpoint = self.run.load("last") if self.run.has_checkpoint() else None
        if old is not None:
            self.run.cut_logs(checkpoint.position if checkpoint else {"step": 0, "epoch": 0})
        return _Made(recipe, data, self.run.statistics, checkpoint)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        if self.run is not None:
            self.run.close()

    def log(self, quiet: bool) -> Log:
        """For rank 0; the others are silent."""
        if self.exchange.rank:
            return Log(quiet=True)
        return Log(quiet=quiet, events=self.output / "events")

    def _recipe(self, old: RunFolder | None) -> Recipe:
        """The recipe that was asked for, by default that of the run that goes on."""
        given = old.recipe if self.recipe is None and old is not None else self.recipe
        if isinstance(given, Recipe):
            return parse(overridden(table(given), self.overrides))
        return load(given or "small", self.overrides)

    def _require(self, data: Data, recipe: Recipe) -> None:
        """Refuse data with which no step can be made."""
        if len(data.train) < recipe.batch:
            raise DataError(
                f"a batch of {recipe.batch} is more than the {len(data.train)} training images of "
                f"{data.name}; --set batch=... takes a smaller one"
            )
        if recipe.batch < self.exchange.size:
            raise DataError(f"a batch of {recipe.batch} cannot be shared by {self.exchange.size} processes")

    def _statistics(self, data: Data, recipe: Recipe) -> Statistics | None:
        if not Inputs.needs_statistics(recipe):
            return None
        return data.statistics or statistics(data.train, workers=self.workers, most=SAMPLE)


def _together(exchange: Exchange, work: Callable[[], T]) -> T:
    """What rank 0 finds, on all ranks; and its error."""
    outcome: tuple[bool, Any] = (False, None)
    if exchange.rank == 0:
        try:
            outcome = True, work()
        except ConvkitError as error:
            if exchange.size == 1:
                raise
            outcome = False, error
    done, value = exchange.broadcast(outcome)
    if not done:
        raise value
    found: T = value
    return found


def _first_line(net: Any, made: _Made, position: Position, ranks: int) -> str:
    """What is trained, with what."""
    H, W, C = made.data.train.shape
    size = net.preset.image_size
    parameters = sum(w.size for w in net.params.values())
    held = (
        "no validation set"
        if made.data.validation is None
        else f"{len(made.data.validation):,} for validation"
    )
    per_epoch = len(made.data.train) // made.recipe.batch
    lines = [
        f"AlexNet ({net.preset.name}): {size} x {size} x {C} pixels, {len(made.data.classes)} classes, "
        f"{parameters:,} parameters",
        f"{made.data.name}: {len(made.data.train):,} images of {H} x {W} pixels, {held}",
        f"{made.recipe.epochs} epochs of {per_epoch:,} steps with {made.recipe.batch} images"
        + (f", on {ranks} processes" if ranks > 1 else ""),
    ]
    if made.checkpoint is not None:
        lines.append(f"going on after step {position.step}, in epoch {position.epoch + 1}")
    return "\n".join(lines)
