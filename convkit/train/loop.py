"""The training loop: from a recipe and labelled images to weights, through stops of any kind.

A step is a function of the state and of its number: order, crops, flips and colours come from Philox, dropout
from its counters. So a run that is stopped at any moment and resumed ends with the bits of one that was not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from ..network.loss import Loss
from ..ops.loss_scale import LEAST
from . import curves, draws, evaluation
from .data.dataset import Data
from .errors import DataError, NotFinite, RunError
from .exchange import Exchange
from .inputs import Inputs
from .loader import Loader, Read
from .log import Log
from .position import Pace, Position, Sums
from .recipe import Recipe, Setting, setting
from .run_folder import RunFolder
from .stops import Stops

#: Rows of steps.csv in an epoch, at most.
ROWS = 200
#: Batches of a validation between two looks at whether a signal asks for an end.
PIECE = 16
#: Curves are drawn where so many times the seconds that it takes have passed since.
DRAW = 100


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
        At which the network is.
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
        self._top5 = len(data.classes) > evaluation.TOP  # else there is no such error
        self.steps_in_epoch = len(data.train) // recipe.batch
        self._row_every = max(1, -(-self.steps_in_epoch // ROWS))
        self._crops = draws.Crops(
            net.preset.image_size, recipe.images.crop_padding, recipe.images.flip, recipe.images.crop_group
        )
        self._step_pace = self._row_pace = self._epoch_pace = Pace()
        self._saved, self._saved_step = time.monotonic(), -1
        self._drawn, self._drawing = self._saved, 0.0  # when the curves were drawn, seconds that it took
        self._bad: dict[int, str] = {}  # images that could not be read: on this rank, since they were named
        self._named: dict[int, str] = {}
        self._said: set[str] = set()

    @property
    def complete(self) -> bool:
        """Whether the recipe is: all epochs are done, or all steps, or a plateau was reached too often."""
        now, recipe = self.position, self.recipe
        return bool(
            now.epoch >= recipe.epochs
            or 0 < recipe.steps <= now.step
            or (recipe.plateau.factor and now.lowered > recipe.plateau.times)
        )

    # -- the run --------------------------------------------------------------------------------------
    def train(self) -> None:
        """Train until the recipe is complete, or until a signal asks for an end.

        Raises
        ------
        NotFinite
            If a loss is not finite. The weights are then those before that step, and saved.
        Stopped
            After a signal, when the checkpoint is written.
        RunError
            If the first checkpoint, or the last one, cannot be written. One in between is left out.
        """
        self.exchange.attach(self.net)
        recipe, steps = self.recipe, self.steps_in_epoch * self.recipe.epochs
        self.log.begin(
            epochs=recipe.epochs, epoch_steps=self.steps_in_epoch, done=self.position.step,
            total=min(steps, recipe.steps) if recipe.steps else steps,
        )  # fmt: skip
        if self.run is not None:
            if not self.run.has_checkpoint():
                self._save(must=True)  # whether the folder takes one is known now, not after the first epoch
            self._saved_step = self.position.step
            if self.data.left_out:
                self._try(self.run.left_out, self.data.left_out)
        with Loader(self.data.train, workers=self.workers, substitute=True) as loader:
            while not self.complete:
                self._epoch(loader)

    def _epoch(self, loader: Loader) -> None:
        now, recipe = self.position, self.recipe
        order = draws.order(recipe.seed, now.epoch + 1, len(self.data.train))
        first, stop = self.exchange.share(recipe.batch)
        places = [
            np.arange(batch * recipe.batch + first, batch * recipe.batch + stop)
            for batch in range(now.batch, self.steps_in_epoch)
        ]
        self._step_pace, self._row_pace, self._epoch_pace = Pace(), Pace(), Pace()
        if recipe.steps:
            places = places[: max(0, recipe.steps - now.step)]
        # Reads come first in the zip: they are taken to their end, where the loader has its memory back.
        for read, place in zip(loader.read(order[place] for place in places), places):
            self._step(place, read)
        self._end_epoch()

    def _step(self, places: np.ndarray, read: Read) -> None:
        now, net = self.position, self.net
        to_use = setting(self.recipe, now.epoch + 1, now.step + 1, now.lowered)
        if net.update != to_use.update:
            net.update = to_use.update
        x, labels = self._input(places, read, to_use)
        offset = net.dropout_offset
        loss = self.exchange.step(net, x, labels, self.recipe.batch, lr=to_use.lr)
        if not loss.finite:
            net.dropout_offset = offset
            self._refuse("the loss", "is not finite", "a lower rate: --resume --set lr=...")
        if loss.overflow:
            self._overflow(offset)
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
        H, W, _ = self.data.train.shape
        crops = draws.crops(seed, epoch, places, read.indices, (H, W), self._crops)
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
        for pace in (self._step_pace, self._row_pace, self._epoch_pace):
            pace.add(loss.images, read.waited)
        one = Sums()
        one.add(loss)
        self.log.step(self._row(one, lr, self._step_pace))
        self._step_pace = Pace()
        if now.batch % self._row_every == 0 or now.batch == self.steps_in_epoch:
            row = self._row(now.row_sums, lr, self._row_pace)
            now.row_sums, self._row_pace = Sums(), Pace()
            if self.run is not None:
                self._try(self.run.log_step, row)

    def _row(self, sums: Sums, lr: float, pace: Pace) -> dict[str, Any]:
        now = self.position
        return {"step": now.step, "epoch": now.epoch + 1, **sums.row(top5=self._top5), "lr": lr, **pace.row()}

    def _end_epoch(self) -> None:
        """Validate, and keep what there is; where the recipe's steps end within an epoch, too."""
        now = self.position
        pace, seconds = self._epoch_pace.row(), time.monotonic() - self._epoch_pace.began
        row: dict[str, Any] = {
            "epoch": now.epoch + 1,
            "step": now.step,
            **now.epoch_sums.row(top5=self._top5),
            **self._validate(),
            "lr": setting(self.recipe, now.epoch + 1, max(1, now.step), now.lowered).lr,
            **pace,
            "seconds": seconds,
        }
        error = row.get("validation_error")
        if now.batch == self.steps_in_epoch:  # else a later end may be asked for, so the epoch stays open
            now.epoch, now.batch, now.epoch_sums = now.epoch + 1, 0, Sums()
            self._judge(error)
        if self.run is not None:
            self._try(self.run.log_epoch, row)
        self.log.epoch(row)
        self._name_bad()
        self._save(error=error, must=self.complete)
        self._draw()

    def _draw(self) -> None:
        """Draw the curves: at the end of the recipe always, before it if that takes little of the time."""
        began = time.monotonic()
        if self.run is not None and (self.complete or began - self._drawn >= DRAW * self._drawing):
            curves.draw(self.run.path, f"{self.data.name}, AlexNet ({self.net.preset.name})")
            self._drawn = time.monotonic()
            self._drawing = self._drawn - began

    def _validate(self) -> dict[str, float]:
        split = self.data.validation
        if split is None:
            return {}
        first, stop = self.exchange.share(len(split))
        rows = PIECE * self.recipe.batch
        pieces = -(-len(split) // (rows * self.exchange.size))
        found = Sums().array()
        with Loader(split, workers=self.workers) as loader:
            for piece in range(pieces):
                self.log.doing(f"validation {piece}/{pieces}")
                part = range(first, stop)[piece * rows : (piece + 1) * rows]
                found += evaluation.validate(
                    self.net, self.inputs, loader, part, batch=self.recipe.batch
                ).array()
                if piece + 1 < pieces and self._asked()[0]:
                    self._stop()
        total = Sums.of(self.exchange.add(found))
        if total.left_out:
            self._say_once(f"{total.left_out} validation images cannot be read: they do not count")
        if not total.images:
            raise DataError(f"none of the {len(split)} validation images of {self.data.name} can be read")
        return total.row("validation_", self._top5)

    def _judge(self, error: float | None) -> None:
        """Note whether the validation error is the lowest; lower the rate on a plateau."""
        now, plateau = self.position, self.recipe.plateau
        if error is None:
            return
        if error < now.lowest:
            now.lowest, now.waited = error, 0
            return
        now.waited += 1
        if plateau.factor and now.waited >= plateau.patience:
            now.waited = 0
            now.lowered += 1
            to_do = "lower rate" if now.lowered <= plateau.times else "training ends"
            self.log.say(f"the validation error has not fallen for {plateau.patience} epochs: {to_do}")

    def _name_bad(self) -> None:
        """Name images for which others stood in, each once."""
        found: dict[int, str] = {}
        for of_rank in self.exchange.gather(self._bad):
            found.update(of_rank)
        self._bad = {}
        new = {index: reason for index, reason in found.items() if index not in self._named}
        if not new or self.run is None:
            return
        self._named |= new
        files = [(self.data.train.name(index), reason) for index, reason in sorted(self._named.items())]
        self._try(self.run.left_out, [*self.data.left_out, *files])
        index = min(new)
        also = f", and for {len(new) - 1} more" if len(new) > 1 else ""
        self.log.say(
            f"another image stands in for {self.data.train.name(index)} ({new[index]}){also}: "
            f"see {self.run.path}/left_out.txt"
        )

    def _try(self, write: Callable[..., None], *given: Any) -> None:
        """Write something without which training can go on, on a disk that is full, too."""
        try:
            write(*given)
        except RunError as error:
            self._say_once(f"warning: {error}")

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self.log.say(text)

    # -- checkpoints and ends ---------------------------------------------------------------------------
    def _save(self, *, error: float | None = None, must: bool = False) -> None:
        """Write a checkpoint: as "best" too, if the validation error is lower than that one's.

        If it cannot be written, training goes on, and the next one that is due is written; unless it must be.
        """
        now = self.position
        self._saved = time.monotonic()
        before, best = now.best, error is not None and error < now.best
        if error is not None:
            now.best = min(error, now.best)
        if self.run is None:
            return
        try:
            self.run.save(self.net.state(), now.table(), best=best)
        except RunError as problem:
            now.best = before
            if must:
                raise RunError(f"{problem}{self._saved_text()}") from problem
            self.log.say(f"warning: {problem}; training goes on without this checkpoint")
        else:
            self._saved_step = now.step

    def _saved_text(self) -> str:
        if self._saved_step < 0:
            return ""
        return f"; the checkpoint of step {self._saved_step} is there: --resume goes on from it"

    def _stop(self) -> NoReturn:
        self._name_bad()
        self._save(must=True)
        text = f"stopped after step {self.position.step}: saved; --resume goes on"
        self.stops.end(text if self.run is not None else "")

    def _overflow(self, offset: int) -> None:
        """A step in float16 has changed nothing but the loss scale: go on, if that can fall further."""
        if (scale := self.net.loss_scale) > LEAST:
            self.log.say(
                f"step {self.position.step + 1}: a gradient is beyond float16, so the step changes nothing; "
                f"the loss scale is now {scale:g}"
            )
            return
        self.net.dropout_offset = offset
        self._refuse("a gradient", "is beyond float16", "a wider dtype: --resume --dtype bfloat16")

    def _refuse(self, what: str, how: str, instead: str) -> NoReturn:
        """End the run: `what` of this step is no number, and `instead` may go better."""
        now = self.position
        if self._saved_step != now.step:  # a second try must not replace "previous", which is older
            self._save(must=True)
        text = (
            f"{what} of step {now.step + 1}, in epoch {now.epoch + 1}, {how}. The weights of step "
            f"{now.step} are saved; to go on with {instead}"
        )
        raise NotFinite(text if self.run is not None else "")
