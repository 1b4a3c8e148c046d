"""Loss and errors over the epochs, as SVG that takes its colours from the page's theme."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...bench.show.charts import Scale, number
from ...bench.show.page import cells
from ...bench.show.page.markup import Markup, joined, tag
from .content import Content, Log
from .text import percent

_WIDTH, _HEIGHT = 560, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 12, 42
#: Points of the loss in training, over the steps; more are averaged.
_POINTS = 300
#: Styles of `charts`, and dashes, so that lines are told apart without colour.
_TRAIN, _VALIDATION, _TOP5 = 2, 1, 3
_DASHES = {_TRAIN: "none", _VALIDATION: "none", _TOP5: "7 4"}


@dataclass(frozen=True)
class Line:
    """A curve: its name, its style, its points."""

    name: str
    style: int
    points: Sequence[tuple[float, float]]
    thin: bool = False


class _Linear:
    """An axis from `low` to `high`, with no ticks between the multiples of 10^least."""

    def __init__(self, low: float, high: float, least: int = -9) -> None:
        self.low, self.high, self.least = low, max(high, low + 1e-9), least

    def at(self, value: float) -> float:
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))

    def ticks(self, most: int = 8) -> list[float]:
        span = self.high - self.low
        base = 10.0 ** max(self.least, math.floor(math.log10(span / most)))
        step = next(s for s in (base, 2 * base, 5 * base, 10 * base) if span / s <= most)
        first = math.ceil(self.low / step - 1e-9)
        return [float(f"{i * step:.12g}") for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def column(log: Log, x: str, y: str, factor: float = 1.0) -> list[tuple[float, float]]:
    """Points of a log: two of its columns, the second times a factor, where both are there and finite."""
    if x not in log or y not in log:
        return []
    found = np.stack([log[x], factor * log[y]], axis=1)
    points: list[tuple[float, float]] = [(a, b) for a, b in found[np.isfinite(found).all(axis=1)].tolist()]
    return points


def averaged(points: Sequence[tuple[float, float]], most: int = _POINTS) -> list[tuple[float, float]]:
    """At most so many points: means of neighbours."""
    size = math.ceil(len(points) / most) or 1
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in p) / len(p), sum(y for _, y in p) / len(p)) for p in parts]


def steps_in_epochs(steps: Log, epochs: Log) -> list[tuple[float, float]]:
    """The loss of each step, at its place among the epochs; empty where that is not known."""
    ends = column(epochs, "epoch", "step")
    if not ends or not ends[-1][1]:
        return []
    per_epoch = ends[-1][1] / ends[-1][0]
    return [(step / per_epoch, loss) for step, loss in column(steps, "step", "loss")]


def curves(content: Content) -> Markup:
    """Both charts, and the table of what they show."""
    epochs = content.epochs
    losses = [
        Line("training, each step", _TRAIN, averaged(steps_in_epochs(content.steps, epochs)), thin=True),
        Line("training", _TRAIN, column(epochs, "epoch", "loss")),
        Line("validation", _VALIDATION, column(epochs, "epoch", "validation_loss")),
    ]
    errors = [
        Line("training, top-1", _TRAIN, column(epochs, "epoch", "error", 100)),
        Line("validation, top-1", _VALIDATION, column(epochs, "epoch", "validation_error", 100)),
        Line("validation, top-5", _TOP5, column(epochs, "epoch", "validation_top5_error", 100)),
    ]
    losses, errors = ([line for line in lines if line.points] for lines in (losses, errors))
    if not losses and not errors:
        return tag("p", "The run has no log of an epoch.", class_="muted")
    charts = [
        _figure("Loss", "Cross-entropy in nats; the scale is logarithmic.", losses, True),
        _figure("Errors", "Share of the images, in percent.", errors, False),
    ]
    return joined(tag("div", charts, class_="sides"), _table(epochs))


def _figure(title: str, caption: str, lines: Sequence[Line], logarithmic: bool) -> Markup | None:
    if not lines:
        return None
    legend = [tag("li", _swatch(line), line.name) for line in lines]
    return tag(
        "figure",
        tag("figcaption", tag("strong", title), f". {caption}"),
        tag("ul", legend, class_="legend"),
        _plane(title, caption, lines, logarithmic),
        class_="chart",
    )


def _swatch(line: Line) -> Markup:
    path = tag("path", d="M1 8H39", class_=_classes(line), stroke_dasharray=_DASHES[line.style])
    return tag("svg", path, class_="swatch", width=40, height=16, viewBox="0 0 40 16", aria_hidden="true")


def _classes(line: Line) -> str:
    return f"s{line.style} curve{' thin' if line.thin else ''}"


def _plane(title: str, caption: str, lines: Sequence[Line], logarithmic: bool) -> Markup:
    xs, ys = ([p[i] for line in lines for p in line.points] for i in (0, 1))
    across = _Linear(0, max(xs), least=0)
    up: Scale | _Linear
    up = Scale.over(ys, pad=1.1, least=3) if logarithmic else _Linear(0, max(*ys, 1.0) * 1.05)
    right, base = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        # A loss of 0 has no place on a logarithmic scale: it lies at the bottom.
        share = up.at(y) if y > 0 else 0.0
        return _LEFT + across.at(x) * (right - _LEFT), base - share * (base - _TOP)

    parts = []
    for tick in across.ticks(8):
        x, _ = at(tick, up.low)
        parts.append(tag("path", d=f"M{x:.1f} {_TOP}V{base}", class_="grid"))
        parts.append(tag("text", number(tick), x=f"{x:.1f}", y=base + 17, text_anchor="middle"))
    for tick in up.ticks(7):
        _, y = at(0, tick)
        parts.append(tag("path", d=f"M{_LEFT} {y:.1f}H{right}", class_="grid"))
        parts.append(tag("text", number(tick), x=_LEFT - 7, y=f"{y + 4:.1f}", text_anchor="end"))
    parts.append(tag("path", d=f"M{_LEFT} {_TOP}V{base}H{right}", class_="frame"))
    parts.append(tag("text", "epoch", x=(_LEFT + right) / 2, y=_HEIGHT - 6, text_anchor="middle",
                     class_="title"))  # fmt: skip
    for line in lines:
        places = [at(x, y) for x, y in line.points]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        parts.append(tag("path", d=path, class_=_classes(line), stroke_dasharray=_DASHES[line.style]))
        if not line.thin:
            parts += [
                tag("circle", tag("title", f"{line.name}, epoch {number(x)}: {number(y)}"),
                    cx=f"{a:.1f}", cy=f"{b:.1f}", r=3 if len(places) <= 40 else 1.5,
                    class_=f"s{line.style} fill")
                for (a, b), (x, y) in zip(places, line.points)
            ]  # fmt: skip
    name = title.lower()
    return tag(
        "svg", tag("title", title, id=f"{name}-t"), tag("desc", f"{caption} The table has the figures.",
        id=f"{name}-d"), parts, class_="curves", viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img",
        aria_labelledby=f"{name}-t {name}-d",
    )  # fmt: skip


def _table(epochs: Log) -> Markup | None:
    if not epochs:
        return None
    rows = zip(*(values.tolist() for values in epochs.values()))
    body = [[_cell(name, value) for name, value in zip(epochs, row)] for row in rows]
    heads = [(name.replace("_", " "), "n") for name in epochs]
    return tag("details", tag("summary", "Each epoch as a table"), cells.table("Each epoch", heads, body))


def _cell(name: str, value: float) -> Markup:
    if not math.isfinite(value):
        return cells.figure(None, "")
    share = name == "wait" or name.endswith("error")
    return cells.figure(value, percent(value) if share else f"{value:.6g}")
