"""A swap as a PNG: losses, time of a step, gradient differences. matplotlib draws, where it is installed."""

from __future__ import annotations

import importlib
import math
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from ..bench.show.charts import LIGHT
from ..bench.show.pictures import STYLE, load_matplotlib, require_png
from ..errors import OptionError
from .report import FACTOR, Report

#: Colour, shape and line of each run: they differ in grey too.
_LOOK = {
    "without": {"color": LIGHT["s0"], "marker": "o", "linestyle": "-"},
    "candidate": {"color": LIGHT["s2"], "marker": "s", "linestyle": "--"},
    "other": {"color": LIGHT["s1"], "marker": "^", "linestyle": ":"},
}
_WIDTH, _HEIGHT, _DPI = 13.0, 7.6, 110


def draw(report: Report, path: str | Path) -> Path:
    """Draw a report into a PNG.

    Raises
    ------
    MissingExtra
        If matplotlib is not installed.
    OptionError
        If the file cannot be written, or there was no training to draw.
    """
    path = require_png(path)
    if not report.candidate.losses:
        raise OptionError("nothing to draw: the candidate made no step of training")
    library = load_matplotlib()
    with library.rc_context({**library.rcParamsDefault, **STYLE}):
        figure = importlib.import_module("matplotlib.figure").Figure(
            figsize=(_WIDTH, _HEIGHT), dpi=_DPI, layout="constrained"
        )
        importlib.import_module("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
        has = bool(report.gradients)
        axes = figure.subplot_mosaic([["loss", "time"], ["gradients"] * 2] if has else [["loss", "time"]])
        _losses(axes["loss"], report)
        _times(axes["time"], report)
        if has:
            _gradients(axes["gradients"], report)
        figure.suptitle(
            textwrap.fill(report.verdict, 150),
            x=0.01, ha="left", fontsize=10.5, color=LIGHT["text" if report.ok else "loss"],
        )  # fmt: skip
        try:
            figure.savefig(path, format="png")
        except OSError as error:
            raise OptionError(f"cannot write {path}: {error.strerror or error}") from None
    return path


def _curves(report: Report) -> list[tuple[str, str, Any]]:
    curves = [
        ("without", "without it", report.without),
        ("candidate", f"with {', '.join(dict.fromkeys(report.candidates.values()))}", report.candidate),
        ("other", f"with {report.others}", report.other),
    ]
    return [row for row in curves if row[2].losses]


def _losses(axes: Any, report: Report) -> None:
    for key, label, curve in _curves(report):
        steps = range(1, len(curve.losses) + 1)
        axes.plot(steps, curve.losses, label=label, markersize=4.5, linewidth=1.3, **_LOOK[key])
    axes.set(xlabel="step", ylabel="loss before the update, nats", title="Loss")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylim(bottom=0)
    axes.legend()
    axes.grid(color=LIGHT["grid"])


def _times(axes: Any, report: Report) -> None:
    for key, label, curve in _curves(report):
        steps = range(2, len(curve.losses) + 1)
        axes.plot(steps, [1e3 * t for t in curve.times], label=label, markersize=4.5, **_look(key))
    title = "Time of a step" + (": the emulator's, not a GPU's" if report.device == "emulated" else "")
    axes.set(xlabel="step", ylabel="ms", title=title)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylim(bottom=0)
    axes.grid(color=LIGHT["grid"])


def _look(key: str) -> dict[str, Any]:
    return {**_LOOK[key], "linewidth": 0.8}


def _gradients(axes: Any, report: Report) -> None:
    """Each parameter's differences, step by step, beside those of another right implementation."""
    names = list(report.gradients)
    series = [("candidate", -0.13)] + ([("spread", 0.13)] if report.other.losses else [])
    for which, shift in series:
        look = _LOOK["other" if which == "spread" else which]
        for n, name in enumerate(names):
            values = np.maximum(getattr(report.gradients[name], which), 1e-9)
            label = {"candidate": "with the candidate", "spread": f"with {report.others}"}[which]
            axes.plot(
                np.full(len(values), n + shift), values, linestyle="none", markersize=5, alpha=0.8,
                marker=look["marker"], color=look["color"], label=label if n == 0 else None,
            )  # fmt: skip
    for n, name in enumerate(names):
        limit = FACTOR * report.spread_of(name)
        axes.plot([n - 0.35, n + 0.35], [limit] * 2, color=LIGHT["loss"], linewidth=1.5,
                  label="allowed at the median" if n == 0 else None)  # fmt: skip
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0e}")
    axes.yaxis.set_minor_formatter(lambda value, _: "")
    axes.set_xticks(range(len(names)), names, rotation=45 if len(names) > 16 else 0, fontsize=8.5)
    steps = ", ".join(map(str, report.compared_steps))
    axes.set(ylabel="relative RMS difference", title=f"Gradients at the same weights, before steps {steps}")
    axes.legend(loc="upper right", ncols=3)
    axes.grid(axis="y", color=LIGHT["grid"])
    low, high = axes.get_ylim()
    if math.isfinite(high):
        axes.set_ylim(low, high * 6)  # room for the legend
