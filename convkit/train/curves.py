"""The curves of a run as a PNG: loss, error, rate, speed. matplotlib draws, where it is installed."""

from __future__ import annotations

import importlib
import io
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConvkitWarning, MissingExtra
from . import table
from .checkpoint import put
from .errors import RunError

_WIDTH, _HEIGHT, _DPI = 11.0, 6.6, 110
#: Fixed, since matplotlib's own layout takes as long as all the rest.
_MARGINS = {"left": 0.06, "right": 0.985, "bottom": 0.075, "top": 0.905, "wspace": 0.75, "hspace": 0.33}
#: Rows of steps.csv that are read, and points that are drawn of them: each is a mean.
_ROWS, _POINTS = 6_000, 150
#: A loss that falls by more than this is drawn on a logarithmic scale.
_RANGE = 20.0
_warned: set[str] = set()
Columns = dict[str, np.ndarray]


def draw(folder: str | Path, title: str = "") -> Path | None:
    """Draw the curves of a run from its steps.csv and epochs.csv into its curves.png.

    It is for the end of an epoch, so it never ends a run: where matplotlib is not installed, or the file
    cannot be written, there is one `ConvkitWarning` and no picture.

    Parameters
    ----------
    folder : str or Path
        The run's.
    title : str
        Stands above the picture.

    Returns
    -------
    Path or None
        The picture's; None if there is none, or nothing to draw.
    """
    folder = Path(folder)
    path = folder / "curves.png"
    try:
        steps, epochs = table.read(folder / "steps.csv", _ROWS), table.read(folder / "epochs.csv")
        if not (_has(steps, "step") or _has(epochs, "epoch")):
            return None
        put(path, _png(steps, epochs, title))
    except (RunError, MissingExtra) as error:
        if str(error) not in _warned:
            _warned.add(str(error))
            warnings.warn(f"no curves.png: {error}", ConvkitWarning, stacklevel=2)
        return None
    return path


def _png(steps: Columns, epochs: Columns, title: str) -> bytes:
    from ..bench.show.charts import LIGHT
    from ..bench.show.pictures import STYLE

    library = _matplotlib()
    with library.rc_context({**library.rcParamsDefault, **STYLE}):
        figure = importlib.import_module("matplotlib.figure").Figure(figsize=(_WIDTH, _HEIGHT), dpi=_DPI)
        importlib.import_module("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
        mosaic = [["loss"] * 3 + ["error"] * 3, ["lr"] * 2 + ["speed"] * 2 + ["wait"] * 2]
        axes = figure.subplot_mosaic(mosaic, height_ratios=[2.1, 1], gridspec_kw=_MARGINS)
        picture = _Picture(steps, epochs, LIGHT)
        picture.loss(axes["loss"])
        picture.error(axes["error"])
        picture.rate(axes["lr"])
        picture.speed(axes["speed"])
        picture.wait(axes["wait"])
        for one in axes.values():
            one.set_xlim(0, 1.01 * picture.end)
            one.grid(color=LIGHT["grid"])
            one.set_axisbelow(True)
            one.set_xlabel(picture.unit)
            one.xaxis.get_major_locator().set_params(integer=True)
        if title:
            figure.suptitle(title, x=0.02, y=0.975, ha="left", fontsize=10.5)
        file = io.BytesIO()
        figure.savefig(file, format="png")
    return file.getvalue()


class _Picture:
    """The panels, and where each row stands on their common axis."""

    def __init__(self, steps: Columns, epochs: Columns, colours: dict[str, str]) -> None:
        self.steps, self.epochs, self.colours = steps, epochs, colours
        per_epoch = _epoch_steps(steps, epochs)
        self.unit = "step" if per_epoch is None else "epoch"
        scale = per_epoch or 1.0
        self.step_x = steps["step"] / scale if _has(steps, "step") else np.zeros(0)
        self.epoch_x = epochs["epoch"] if per_epoch is not None and _has(epochs, "epoch") else np.zeros(0)
        self.end = max([*self.step_x[-1:], *self.epoch_x[-1:], 1e-3])
        self.marks = self._lowered()

    def loss(self, axes: Any) -> None:
        drawn = [
            self._line(axes, "loss", "training", "s1"),
            self._points(axes, "validation_loss", "validation", "s2", "o"),
        ]
        self._mark(axes)
        values = np.concatenate([v for v in drawn if v is not None] or [np.ones(1)])
        values = values[np.isfinite(values)]
        if values.size and values.min() > 0 and values.max() / values.min() > _RANGE:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter(lambda value, _: "")
        else:
            axes.set_ylim(bottom=0)
        axes.set(title="Loss, nats")
        _legend(axes)

    def error(self, axes: Any) -> None:
        self._line(axes, "error", "training", "s1", 100)
        found = self._points(axes, "validation_error", "validation", "s2", "o", 100)
        self._points(axes, "validation_top5_error", "validation, top-5", "s4", "s", 100)
        self._mark(axes)
        axes.set_ylim(bottom=0)
        axes.set(title="Error, %")
        if found is not None and np.isfinite(found).any():
            best = int(np.nanargmin(found))
            text = f"lowest: {found[best]:.2f} % after epoch {self.epoch_x[best]:.0f}"
            axes.axhline(found[best], color=self.colours["s2"], linewidth=0.6, linestyle=":", label=text)
        _legend(axes)

    def rate(self, axes: Any) -> None:
        for table_, x in ((self.steps, self.step_x), (self.epochs, self.epoch_x)):
            if _has(table_, "lr") and len(x):
                axes.plot(x, table_["lr"], color=self.colours["s3"], linewidth=1.4, drawstyle="steps-post")
                break
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: "")
        axes.set(title="Learning rate")

    def speed(self, axes: Any) -> None:
        self._line(axes, "images_per_second", "", "s5")
        axes.set_ylim(bottom=0)
        axes.set(title="Images per second")

    def wait(self, axes: Any) -> None:
        found = self._line(axes, "wait", "", "s8", 100)
        highest = 0.0 if found is None or not np.isfinite(found).any() else float(np.nanmax(found))
        axes.set_ylim(0, min(100.0, max(5.0, 1.1 * highest)))
        axes.set(title="Time waiting for images, %")

    def _line(self, axes: Any, name: str, label: str, colour: str, factor: float = 1.0) -> np.ndarray | None:
        """A column of the steps, as means over bins; one of the epochs where the steps have none."""
        table_, x = (self.steps, self.step_x) if _has(self.steps, name) else (self.epochs, self.epoch_x)
        if not (_has(table_, name) and len(x)):
            return None
        x, y = _means(x, factor * table_[name])
        axes.plot(
            x, y, color=self.colours[colour], linewidth=1.3, label=label, marker="." if len(x) < 3 else ""
        )
        return y

    def _points(
        self, axes: Any, name: str, label: str, colour: str, marker: str, factor: float = 1.0
    ) -> np.ndarray | None:
        if not (_has(self.epochs, name) and len(self.epoch_x) and np.isfinite(self.epochs[name]).any()):
            return None
        y = factor * self.epochs[name]
        axes.plot(
            self.epoch_x,
            y,
            color=self.colours[colour],
            linewidth=1.3,
            marker=marker,
            markersize=4,
            markevery=max(1, len(y) // 20),
            label=label,
        )
        return y

    def _lowered(self) -> list[float]:
        """Where the learning rate changes."""
        table_, x = (self.steps, self.step_x) if _has(self.steps, "lr") else (self.epochs, self.epoch_x)
        if not (_has(table_, "lr") and len(x)):
            return []
        at = np.flatnonzero(np.diff(table_["lr"]) != 0) + 1
        return [float(v) for v in x[at]] if len(at) <= 12 else []

    def _mark(self, axes: Any) -> None:
        for n, x in enumerate(self.marks):
            label = "learning rate changes" if n == 0 else None
            axes.axvline(x, color=self.colours["s3"], linewidth=0.8, linestyle="--", label=label)


def _epoch_steps(steps: Columns, epochs: Columns) -> float | None:
    """Steps of an epoch, where the tables say it."""
    if _has(epochs, "step") and _has(epochs, "epoch") and epochs["epoch"][0] > 0:
        return float(epochs["step"][0] / epochs["epoch"][0]) or None
    if _has(steps, "epoch") and steps["epoch"][-1] > steps["epoch"][0]:
        later = int(np.argmax(steps["epoch"] > steps["epoch"][0]))
        return float((steps["step"][later] - 1) / steps["epoch"][0]) or None
    return None


def _means(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of many points as many as are drawn, each the mean of its neighbours."""
    if len(x) <= _POINTS:
        return x, y
    edges = np.linspace(0, len(x), _POINTS + 1).astype(int)
    counts = np.diff(edges)
    return np.add.reduceat(x, edges[:-1]) / counts, np.add.reduceat(y, edges[:-1]) / counts


def _has(columns: Columns, name: str) -> bool:
    return name in columns and len(columns[name]) > 0


def _legend(axes: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper right", frameon=True, framealpha=0.85, edgecolor="none")


def _matplotlib() -> Any:
    # It complains of a home that cannot be written, and of fonts: nothing that a run's user can use.
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        importlib.import_module("matplotlib.backends.backend_agg")
        return importlib.import_module("matplotlib")
    except ImportError:
        raise MissingExtra("curves.png", "matplotlib", "train") from None
    finally:
        logger.setLevel(level)
