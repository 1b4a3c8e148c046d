"""What is seen of a run while it trains: a progress bar or lines of text, and events for TensorBoard.

A row is a dict. These names are shown, where a row has them; others are only kept in the CSV files:

======================  ============================================================================
"epoch", "step"         from 1 on; a step's number counts over all epochs
"loss"                  mean cross-entropy of training, in nats
"error", "top5_error"   share of the training images that were wrong, from 0 to 1
"validation_loss", "validation_error", "validation_top5_error"
                        the same of the validation images
"lr"                    rate of the weights
"images_per_second"
"wait"                  share of the time that the loop waited for images, from 0 to 1
"seconds"               that the epoch took
======================  ============================================================================
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from .errors import RunError, one_line
from .events import Events

#: Seconds between two states of the bar, two lines of text, two flushes of the events.
_BAR, _LINE, _FLUSH = 0.2, 30.0, 10.0
_MEANS = ("loss", "error", "wait", "images_per_second")
_VALIDATION = "validation_"
_FORMS: dict[str, Callable[[Any], str]] = {
    "loss": lambda v: f"loss {v:.4f}",
    "error": lambda v: f"error {100 * v:.2f} %",
    "top5_error": lambda v: f"top-5 {100 * v:.2f} %",
    "lr": lambda v: f"lr {v:.3g}",
    "images_per_second": lambda v: f"{_rate(v)} images/s",
    "wait": lambda v: f"waiting {100 * v:.0f} %",
}
#: Columns below which there are numbers without a bar.
_WIDE = 120


class Log:
    """What is seen of a run.

    On a terminal there is a bar that says where training is, and a line for each epoch. Elsewhere there is a
    line every half a minute and for each epoch. An output that is gone (a closed terminal) ends the display,
    not the training.

    Parameters
    ----------
    quiet : bool
        Show nothing. Events are written all the same.
    events : str or Path, optional
        Folder for TensorBoard's events. Nothing is written where tensorboard is not installed.
    stream : text file, optional
        Default: stderr.
    interval : float
        Seconds between two lines of text, where there is no terminal.
    clock : callable, optional
        Returns seconds; for tests.
    """

    def __init__(
        self, *, quiet: bool = False, events: str | Path | None = None, stream: TextIO | None = None,
        interval: float = _LINE, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._stream = sys.stderr if stream is None else stream
        self._quiet, self._clock, self._interval = quiet or self._stream is None, clock, interval
        self._terminal = not self._quiet and self._stream.isatty()
        self._folder = None if events is None else Path(events)
        self._events: Events | None = None
        self._bar: Any = None
        self._sums: dict[str, float] = {}
        self._summed = 0
        self.begin(epochs=1, epoch_steps=1)

    def begin(self, *, epochs: int, epoch_steps: int, done: int = 0, total: int | None = None) -> None:
        """Training begins, or goes on.

        Parameters
        ----------
        epochs, epoch_steps : int
            Epochs in all, and steps of each.
        done : int
            Steps that are complete already. TensorBoard forgets what an interrupted run wrote beyond them.
        total : int, optional
            Steps in all; default: those of all epochs.
        """
        self._epochs, self._epoch_steps, self._first = epochs, epoch_steps, done
        self._total = epochs * epoch_steps if total is None else total
        self._began = self._shown = self._flushed = self._clock()
        self._epoch, self._epoch_began, self._epoch_first = 0, self._began, done
        self._started = False

    def step(self, row: Mapping[str, Any]) -> None:
        """A step is complete. What is shown are means over the steps since the last time."""
        now = self._clock()
        if not self._started:
            self._start()
        if row["epoch"] != self._epoch:
            self._epoch, self._epoch_first = row["epoch"], row["step"] - 1
        if self._events is not None:
            self._event(row["step"], {f"train/{name}": value for name, value in row.items()}, now)
        if self._quiet:
            return
        self._summed += 1
        for name in _MEANS:
            if name in row:
                self._sums[name] = self._sums.get(name, 0.0) + row[name]
        if now - self._shown >= (_BAR if self._terminal else self._interval):
            self._shown = now
            self._show(row, now)

    def epoch(self, row: Mapping[str, Any]) -> None:
        """An epoch is complete, and validated."""
        if not self._started:
            self._start()
        self._close_bar()
        self._sums, self._summed = {}, 0
        self._epoch_began = self._clock()  # of the next one
        self._line(epoch_line(row, self._epochs))
        if self._events is not None:
            self._event(row["step"], {_tag(name): value for name, value in row.items()}, math.inf)

    def doing(self, text: str) -> None:
        """What is done instead of steps: "validation 12/40". It is seen on a terminal alone."""
        if self._terminal and not self._quiet:
            self._draw(text)

    def say(self, text: str) -> None:
        """A line of text."""
        self._line(text)

    def end(self, text: str = "") -> None:
        """Training is over, or interrupted: close all, and say something. More may be said afterwards."""
        self._close_bar()
        if text:
            self._line(text)
        if self._events is not None:
            with contextlib.suppress(OSError):
                self._events.close()
            self._events = None
        self._started = False

    @contextlib.contextmanager
    def warnings(self) -> Iterator[None]:
        """Inside, Python's warnings are lines that do not disturb the bar."""
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: self.say(f"warning: {one_line(message)}")
            yield

    # -- the terminal ---------------------------------------------------------------------------------
    def _show(self, row: Mapping[str, Any], now: float) -> None:
        means = {name: value / self._summed for name, value in self._sums.items()}
        self._sums, self._summed = {}, 0
        step = row["step"]
        in_epoch = step - (self._epoch - 1) * self._epoch_steps
        left = _left(now - self._epoch_began, step - self._epoch_first, self._epoch_steps - in_epoch)
        all_left = _left(now - self._began, step - self._first, self._total - step)
        losses, rest = (
            _facts(means, "loss", "error"),
            _facts({**row, **means}, "images_per_second", "wait", "lr"),
        )
        times = f"left {left}, {all_left} in all"
        if self._terminal:
            self._draw(", ".join([*losses, times, *rest]), in_epoch)  # a narrow one cuts the end off
        else:
            where = f"epoch {self._epoch}/{self._epochs}, step {in_epoch}/{self._epoch_steps}"
            self._line(f"{where}: {', '.join([*losses, *rest, times])}")

    def _draw(self, text: str, step: int = 0) -> None:
        def draw() -> None:
            bar = "|{bar:12}|" if _columns(self._stream) >= _WIDE else ":"
            form = f"epoch {max(self._epoch, 1)}/{self._epochs}, step {{n}}/{{total}}{bar} {_braced(text)}"
            if self._bar is None:
                self._bar = _bar()(
                    total=self._epoch_steps, initial=step, bar_format=form, file=self._stream, leave=False,
                    dynamic_ncols=True,
                )  # fmt: skip
            else:
                self._bar.n, self._bar.bar_format = step or self._bar.n, form
                self._bar.refresh()

        self._try(draw)

    def _line(self, text: str) -> None:
        def write() -> None:
            if self._bar is not None:
                self._bar.clear()
            self._stream.write(f"{text}\n")
            self._stream.flush()
            if self._bar is not None:
                self._bar.refresh()

        self._try(write)

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._try(self._bar.close)
            self._bar = None

    def _try(self, write: Callable[[], object]) -> None:
        if not self._quiet:
            try:
                write()
            except (OSError, ValueError):  # the terminal is gone, the pipe or the file closed
                self._quiet, self._bar = True, None

    # -- TensorBoard ----------------------------------------------------------------------------------
    def _start(self) -> None:
        self._started = True
        if self._folder is None:
            return
        try:
            self._events = Events.make(self._folder, self._first)
        except (OSError, RunError) as error:
            self.say(f"no events for TensorBoard: {error}")

    def _event(self, step: int, values: Mapping[str, Any], now: float) -> None:
        assert self._events is not None
        try:
            self._events.add(step, values)
            if now - self._flushed >= _FLUSH:
                self._events.flush()
                self._flushed = self._clock()
        except OSError as error:
            self._events = None
            self.say(f"no more events for TensorBoard: {error.strerror or error}")


def epoch_line(row: Mapping[str, Any], epochs: int) -> str:
    """The line of an epoch."""
    parts = [", ".join(_facts(row, "loss", "error"))]
    if validation := _facts(row, "loss", "error", "top5_error", prefix=_VALIDATION):
        parts.append(f"validation {', '.join(validation)}")
    rest = _facts(row, "lr", "images_per_second", "wait")
    if "seconds" in row:
        rest.append(duration(row["seconds"]))
    parts.append(", ".join(rest))
    width = len(str(epochs))
    return f"epoch {row['epoch']:{width}}/{epochs}: {'; '.join(part for part in parts if part)}"


def duration(seconds: float) -> str:
    """Seconds as "1:02:03" or "2:03"; "?" where they are no number."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(max(seconds, 0.0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _facts(row: Mapping[str, Any], *names: str, prefix: str = "") -> list[str]:
    """What a row says, for people; what it does not have is left out."""
    return [_FORMS[name](row[prefix + name]) for name in names if row.get(prefix + name) is not None]


def _rate(value: float) -> str:
    return f"{value:.0f}" if value >= 100 or not math.isfinite(value) else f"{value:.3g}"


def _left(seconds: float, done: int, left: int) -> str:
    return duration(seconds / done * max(left, 0)) if done > 0 else "?"


def _tag(name: str) -> str:
    if name.startswith(_VALIDATION):
        return f"validation/{name.removeprefix(_VALIDATION)}"
    return f"epoch/{name}"


def _braced(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _columns(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        return 80


def _bar() -> Any:
    from tqdm import tqdm

    class Bar(tqdm):
        monitor_interval = 0  # no thread beside it: processes are forked while it is there

    return Bar
