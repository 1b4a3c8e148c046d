"""The training loop: from a recipe and labelled images to weights, through stops of any kind.

A step is a function of the state and of its number: order, crops, flips and colours come from Philox, dropout
from its counters. So a run that is stopped at any moment and resumed ends with the bits of one that was not.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import asdict, dataclass, field
from typing import Any, NoReturn

import numpy as np

from ..network.loss import Loss
from . import curves, draws, evaluate
from .data.dataset import Data
from .errors import NotFinite
from .exchange import Exchange
from .inputs import Inputs
from .loader import Loader, Read
from .log import Log
from .recipe import Recipe, Setting, setting
from .run_folder import RunFolder
from .stops import Stops

#: Rows of steps.csv in an epoch, at most.
ROWS = 200


@dataclass
class Sums:
    """What adds up over steps."""

    loss: float = 0.0
    errors: int = 0
    top5_errors: int = 0
    images: int = 0

    def add(self, loss: Loss) -> None:
        self.loss += float(loss) * loss.images
        self.errors += loss.errors
        self.top5_errors += loss.top5_errors
        self.images += loss.images

    def mean(self, prefix: str = "") -> dict[str, float]:
        """Mean loss, and shares of wrong images."""
        count = max(1, self.images)
        return {
            f"{prefix}loss": self.loss / count,
            f"{prefix}error": self.errors / count,
            f"{prefix}top5_error": self.top5_errors / count,
        }


@dataclass
class Position:
    """Where a run is: all of its state that is not in the network.

    Attributes
    ----------
    epoch : int
        Epochs that are complete.
    batch : int
        Batches of the next one that are done.
    step : int
        Steps that are done, over all epochs.
    epoch_sums, row_sums : Sums
        Of the epoch that is under way; of the steps since the last row of steps.csv.
    lowered, waited : int
        How often a plateau has lowered the rate; epochs since the lowest validation error.
    best : float
        The lowest top-1 validation error, from 0 to 1.
    finished : bool
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    epoch_sums: Sums = field(default_factory=Sums)
    row_sums: Sums = field(default_factory=Sums)
    lowered: int = 0
    waited: int = 0
    best: float = float("inf")
    finished: bool = False

    @classmethod
    def of(cls, table: dict[str, Any]) -> Position:
        sums = {name: Sums(**table[name]) for name in ("epoch_sums", "row_sums")}
        best = float("inf") if table["best"] is None else table["best"]
        return cls(**{**table, **sums, "best": best})

    def table(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {**asdict(self), "best": None if self.best == float("inf") else self.best}


class Loop:
    """A training run.

    Parameters
    ----------
    net : AlexNet
        With the weights to begin with, or those of the checkpoint.
    data : Data
    recipe : Recipe
    inputs : Inputs
    run : RunFolder or None
        Locked; of rank 0, which alone writes.
    exchange : Exchange
    log : Log
    position : Position
    stops : Stops
        Says whether a signal asks for an end.
    workers : int, optional
        Processes that read images, on this rank.
    checkpoint_steps : int
        A checkpoint after each so many steps; 0: none but the others.
    checkpoint_seconds : float
        A checkpoint where the last one is so long ago. There is always one after each epoch.
    """

    def __init__(
        self, net: Any, data: Data, recipe: Recipe, inputs: Inputs, run: RunFolder | None, exchange: Exchange,
        log: Log, position: Position, stops: Stops, *, workers: int | None = None, checkpoint_steps: int = 0,
        checkpoint_seconds: float = 600.0,
    ) -> None:  # fmt: skip
        self.net, self.data, self.recipe, self.inputs, self.run = net, data, recipe, inputs, run
        self.exchange, self.log, self.position, self.stops = exchange, log, position, stops
        self.workers, self.every, self.seconds = workers, checkpoint_steps, checkpoint_seconds
        self.steps_in_epoch = len(data.train) // recipe.batch
        self._row_every = max(1, -(-self.steps_in_epoch // ROWS))
        self._saved = self._row_began = self._epoch_began = time.monotonic()
        self._row_waited = self._epoch_waited = 0.0
        self._bad: dict[int, str] = {}

    # -- the run --------------------------------------------------------------------------------------
    def train(self) -> None:
        """Train until the recipe ends, or until a signal asks for an end.

        Raises
        ------
        NotFinite
            If a loss is not finite. The weights are then those before that step, and saved.
        Stopped
            After a signal, when the checkpoint is written.
        """
        self.exchange.attach(self.net)
        recipe, steps = self.recipe, self.steps_in_epoch * self.recipe.epochs
        self.log.begin(
            epochs=recipe.epochs, epoch_steps=self.steps_in_epoch, done=self.position.step,
            total=min(steps, recipe.steps) if recipe.steps else steps,
        )  # fmt: skip
        with Loader(self.data.train, workers=self.workers, substitute=True) as loader:
            while not self.position.finished:
                self._epoch(loader)

    def _epoch(self, loader: Loader) -> None:
        now, recipe = self.position, self.recipe
        order = draws.order(recipe.seed, now.epoch + 1, len(self.data.train))
        first, stop = self.exchange.share(recipe.batch)
        places = [
            np.arange(batch * recipe.batch + first, batch * recipe.batch + stop)
            for batch in range(now.batch, self.steps_in_epoch)
        ]
        self._epoch_began, self._epoch_waited = time.monotonic(), 0.0
        self._row_began, self._row_waited = self._epoch_began, 0.0
        self._step_began = self._epoch_began
        reads = loader.read(order[place] for place in places)
        try:
            for place, read in zip(places, reads):
                self._step(place, read)
                if recipe.steps and now.step >= recipe.steps:
                    break
        finally:
            close = getattr(reads, "close", None)
            if close is not None:
                close()
        self._end_epoch()

    def _step(self, places: np.ndarray, read: Read) -> None:
        now, net = self.position, self.net
        to_use = setting(self.recipe, now.epoch + 1, now.step + 1, now.lowered)
        if net.update != to_use.update:
            net.update = to_use.update
        x, labels = self._input(places, read, to_use)
        offset = net.dropout_offset
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            loss = self.exchange.step(net, x, labels, self.recipe.batch, lr=to_use.lr)
        for warning in caught:
            self.log.say(f"warning: {warning.message}")
        if not loss.finite:
            net.dropout_offset = offset
            self._refuse()
        now.step += 1
        now.batch += 1
        for sums in (now.epoch_sums, now.row_sums):
            sums.add(loss)
        self._note(read, loss, to_use.lr)
        stop, save = self._asked()
        if stop:
            self._stop()
        if save:
            self._save()

    def _input(self, places: np.ndarray, read: Read, to_use: Setting) -> tuple[Any, Any]:
        """A batch as the network takes it, in the plan's own arrays."""
        seed, epoch = self.recipe.seed, self.position.epoch + 1
        how = draws.Crops(
            self.net.preset.image_size, self.recipe.images.crop_padding, self.recipe.images.flip,
            self.recipe.images.crop_group,
        )  # fmt: skip
        H, W, _ = self.data.train.shape
        crops = draws.crops(seed, epoch, places, read.indices, (H, W), how)
        normals = draws.normals(seed, epoch, read.indices) if to_use.colour_noise else None
        x, _ = self.net.inputs(len(read.indices))
        self.inputs.train(read.images, crops, normals, to_use.colour_noise, out=x)
        return x, read.labels

    def _asked(self) -> tuple[bool, bool]:
        """Whether a rank was asked to stop, and whether a checkpoint is due: the same on all ranks."""
        due = bool(self.every) and self.position.step % self.every == 0
        if self.exchange.rank == 0 and time.monotonic() - self._saved > self.seconds:
            due = True
        stop, save = self.exchange.add(np.array([bool(self.stops), due], np.float64))
        return bool(stop), bool(save)

    # -- what is kept and shown -------------------------------------------------------------------------
    def _note(self, read: Read, loss: Loss, lr: float) -> None:
        """Show a step, and write a row for each few of them."""
        now = self.position
        if read.failures:
            self._bad.update(read.failures)
        one = Sums()
        one.add(loss)
        self._row_waited += read.waited
        self._epoch_waited += read.waited
        ended = time.monotonic()
        seconds, self._step_began = max(1e-9, ended - self._step_began), ended
        self.log.step(self._row(one, lr, seconds, read.waited))
        if now.batch % self._row_every and now.batch != self.steps_in_epoch:
            return
        row = self._row(now.row_sums, lr, max(1e-9, ended - self._row_began), self._row_waited)
        now.row_sums, self._row_began, self._row_waited = Sums(), ended, 0.0
        if self.run is not None:
            self.run.log_step(row)

    def _row(self, sums: Sums, lr: float, seconds: float, waited: float) -> dict[str, Any]:
        now = self.position
        return {
            "step": now.step,
            "epoch": now.epoch + 1,
            **sums.mean(),
            "lr": lr,
            "images_per_second": sums.images / seconds,
            "wait": waited / seconds,
        }

    def _end_epoch(self) -> None:
        now, recipe = self.position, self.recipe
        seconds = time.monotonic() - self._epoch_began
        now.epoch += 1
        lr = setting(recipe, now.epoch, now.step, now.lowered).lr
        row: dict[str, Any] = {
            "epoch": now.epoch,
            "step": now.step,
            **now.epoch_sums.mean(),
            **self._validate(),
            "lr": lr,
            "images_per_second": now.epoch_sums.images / max(1e-9, seconds),
            "wait": self._epoch_waited / max(1e-9, seconds),
            "seconds": seconds,
        }
        best = self._judge(row.get("validation_error"))
        ended = now.epoch >= recipe.epochs or (recipe.steps and now.step >= recipe.steps)
        now.finished = bool(now.finished or ended)
        now.batch, now.epoch_sums = 0, Sums()
        if self.run is not None:
            self.run.log_epoch(row)
        self.log.epoch(row)
        self._save(best=best)
        if self.run is not None:
            curves.draw(self.run.path, f"{self.data.name}, AlexNet ({self.net.preset.name})")
        self._name_bad()

    def _validate(self) -> dict[str, float]:
        if self.data.validation is None:
            return {}
        split = self.data.validation
        share = self.exchange.share(len(split))
        own = evaluate.validate(
            self.net, split, self.inputs, batch=self.recipe.batch, workers=self.workers, share=share
        )
        total = evaluate.Counts.of(self.exchange.add(own.array()))
        return Sums(total.loss, total.errors, total.top5_errors, total.images).mean("validation_")

    def _judge(self, error: float | None) -> bool:
        """Note whether the validation error is the lowest; lower the rate on a plateau."""
        now, plateau = self.position, self.recipe.plateau
        if error is None:
            return False
        if error < now.best:
            now.best, now.waited = error, 0
            return True
        now.waited += 1
        if plateau.factor and now.waited >= plateau.patience:
            now.waited = 0
            if now.lowered < plateau.times:
                now.lowered += 1
                self.log.say(f"the validation error has not fallen for {plateau.patience} epochs: lower rate")
            else:
                now.finished = True
        return False

    def _name_bad(self) -> None:
        if not self._bad or self.run is None:
            return
        files = [(self.data.train.name(index), reason) for index, reason in sorted(self._bad.items())]
        self.run.left_out(files)
        (name, reason), more = files[0], len(files) - 1
        also = f", and {more} more" if more else ""
        self.log.say(f"another image stands in for {name} ({reason}){also}: see {self.run.path}/left_out.txt")
        self._bad = {}

    # -- ends -------------------------------------------------------------------------------------------
    def _save(self, best: bool = False) -> None:
        if self.run is not None:
            self.run.save(self.net.state(), self.position.table(), best=best)
        self._saved = time.monotonic()

    def _stop(self) -> NoReturn:
        self._save()
        self.stops.end(f"stopped after step {self.position.step}: saved; --resume goes on")

    def _refuse(self) -> NoReturn:
        now = self.position
        self._save()
        raise NotFinite(
            f"the loss of step {now.step + 1}, in epoch {now.epoch + 1}, is not finite. The weights of step "
            f"{now.step} are saved; to go on with a lower rate: --resume --set lr=..."
        )
