"""The page's charts: SVG that takes its colours from the page's theme.

Bars and strips have their places in percent, so that they are as wide as the page and their texts as large as
the page's; the two planes (roofline, accuracy) have a fixed size and scroll in a box of their own where it is
narrower. Everything that they show also stands in a table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .. import charts
from ..charts import Point, Scale
from .markup import Markup, joined, tag

#: Shapes of `charts.SHAPES`, around the origin and of about the same area.
_PATHS = (
    "M-5.5 0A5.5 5.5 0 1 0 5.5 0A5.5 5.5 0 1 0 -5.5 0Z",
    "M-5 -5H5V5H-5Z",
    "M0 -6.5L6 4.5H-6Z",
    "M0 -6.8L6 0L0 6.8L-6 0Z",
    "M0 6.5L6 -4.5H-6Z",
    "M-2 -6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z",
    "M-3.4 -6L0 -2.6L3.4 -6L6 -3.4L2.6 0L6 3.4L3.4 6L0 2.6L-3.4 6L-6 3.4L-2.6 0L-6 -3.4Z",
    "M-3 -5.6H3L6 0L3 5.6H-3L-6 0Z",
    "M0 -7L1.8 -2.3L6.7 -2.2L2.9 0.9L4.1 5.7L0 3L-4.1 5.7L-2.9 0.9L-6.7 -2.2L-1.8 -2.3Z",
)
#: Hatchings of `charts.HATCHES`: what is drawn over the colour, in a tile of 8 x 8.
_TILES = (
    "",
    "M-2 10L10 -2M-2 2L2 -2M6 10L10 6",
    "M2 2h.01M6 6h.01",
    "M0 0L8 8M8 0L0 8",
    "M-2 -2L10 10M6 -2L10 2M-2 6L2 10",
    "M0 2H8M0 6H8",
    "M2 0V8M6 0V8",
    "M0 4H8M4 0V8",
    "M4 1.5A2.5 2.5 0 1 0 4 6.5A2.5 2.5 0 1 0 4 1.5",
)
#: Lines of ceilings, the highest first.
DASHES = ("none", "7 4", "2 4", "9 3 2 3", "12 5", "4 2")
_WIDTH, _HEIGHT = 940, 470
_LEFT, _RIGHT, _TOP, _BOTTOM = 86, 20, 14, 52
_CHARACTER, _LINE = 6.7, 15


def definitions() -> Markup:
    """Shapes, hatchings, and both beside each other for legends: once for a page."""
    shapes = [tag("path", id=f"m{i}", d=d) for i, d in enumerate(_PATHS)]
    hatchings = [
        tag(
            "pattern",
            tag("rect", width=8, height=8, class_=f"s{i} fill"),
            tag("path", d=d, class_="hatch", stroke_linecap="round") if d else None,
            id=f"h{i}",
            width=8,
            height=8,
            patternUnits="userSpaceOnUse",
        )
        for i, d in enumerate(_TILES)
    ]
    both = [
        tag(
            "symbol",
            tag("rect", x=0.75, y=2.5, width=21, height=11, fill=f"url(#h{i})", class_=f"s{i} edge"),
            tag("use", href=f"#m{i}", x=32, y=8, class_=f"s{i} pick"),
            id=f"w{i}",
            viewBox="0 0 40 16",
        )
        for i in range(len(_PATHS))
    ]
    return tag(
        "svg",
        tag("defs", shapes, hatchings, both),
        width=0,
        height=0,
        class_="definitions",
        aria_hidden="true",
    )


def swatch(style: int) -> Markup:
    """A library's hatching and shape, for a legend or beside a name."""
    return tag("svg", tag("use", href=f"#w{style}"), class_="swatch", width=40, height=16, aria_hidden="true")


def line(number: int) -> Markup:
    """A ceiling's line, for the legend."""
    dash = DASHES[number % len(DASHES)]
    path = tag("path", d="M1 8H39", class_="roof", stroke_dasharray=dash)
    return tag("svg", path, class_="swatch", width=40, height=16, viewBox="0 0 40 16", aria_hidden="true")


# ---------------------------------------------------------------------------------------------------
# As wide as the page: bars, and strips of samples
# ---------------------------------------------------------------------------------------------------
def percent(share: float) -> str:
    """A place between 0 and 1."""
    return f"{100 * share:.2f}%".replace(".00%", "%")


def axis(scale: Scale, most: int = 6) -> Markup:
    """The numbers under or over bars and strips."""
    texts = []
    for tick in scale.ticks(most):
        at = scale.at(tick)
        side = "start" if at < 0.04 else "end" if at > 0.96 else "middle"
        texts.append(tag("text", charts.number(tick), x=percent(at), y=13, text_anchor=side))
    return tag("svg", texts, class_="axis", height=18, aria_hidden="true")


def gridlines(scale: Scale, name: str, one: bool = True) -> Markup:
    """Lines at the ticks, and a heavy one at 1, to be put behind every bar."""
    lines = [
        tag("line", x1=percent(scale.at(t)), x2=percent(scale.at(t)), y1=0, y2="100%", class_="grid")
        for t in scale.ticks(6)
    ]
    if one:
        at = percent(scale.at(1))
        lines.append(tag("line", x1=at, x2=at, y1=0, y2="100%", class_="one"))
    group = tag("g", lines, id=name)
    return tag("svg", tag("defs", group), width=0, height=0, class_="definitions", aria_hidden="true")


def bar(found: charts.Bar, scale: Scale, style: int, grid: str) -> Markup:
    """From 1 to the ratio, with its interval."""
    start, end = sorted((scale.at(1), scale.at(found.ratio)))
    low, high = scale.at(found.low), scale.at(found.high)
    ends = [tag("line", x1=percent(v), x2=percent(v), y1=5, y2=15) for v in (low, high)]
    whisker = tag("line", x1=percent(low), x2=percent(high), y1=10, y2=10)
    hatching = f"url(#h{style})" if found.best else "none"
    rect = tag(
        "rect", x=percent(start), y=3, width=percent(end - start), height=14, fill=hatching, class_="edge"
    )
    return tag(
        "svg", tag("use", href=f"#{grid}"), rect, tag("g", whisker, ends, class_="whisker halo"),
        tag("g", whisker, ends, class_="whisker"), class_=f"bar s{style}", height=20, aria_hidden="true",
    )  # fmt: skip


def strip(samples: Sequence[float], scale: Scale, style: int) -> Markup:
    """Every call as a dot, the middle half as a box, the median as a line."""
    x = [1000 * scale.at(v) for v in samples]
    dots = "".join(f"M{v:.0f} {5 + i * 7 % 17}h0" for i, v in enumerate(x))
    low, middle, high = (1000 * scale.at(charts.quantile(samples, q)) for q in (0.25, 0.5, 0.75))
    grid = "".join(f"M{1000 * scale.at(t):.0f} 0V26" for t in scale.ticks(6))
    return tag(
        "svg",
        tag("path", d=grid, class_="grid"),
        tag("rect", x=f"{low:.1f}", y=3, width=f"{max(high - low, 1):.1f}", height=20, class_="box"),
        tag("path", d=dots, class_="dots"),
        tag("path", d=f"M{middle:.1f} 1V25", class_="median"),
        class_=f"strip s{style}", viewBox="0 0 1000 26", preserveAspectRatio="none", height=26,
        aria_hidden="true",
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------
# Planes
# ---------------------------------------------------------------------------------------------------
class Plane:
    """A chart with two logarithmic axes.

    Parameters
    ----------
    x, y : Scale
    floor : bool
        Whether values of 0 have a lane at the bottom.
    """

    def __init__(self, x: Scale, y: Scale, floor: bool = False) -> None:
        self.x, self.y = x, y
        self.base = _HEIGHT - _BOTTOM
        self.bottom = self.base - (34 if floor else 0)
        self.floor = floor

    def at(self, x: float, y: float) -> tuple[float, float]:
        """In pixels; an y of 0 lies in the lane at the bottom."""
        across = _LEFT + self.x.at(x) * (_WIDTH - _LEFT - _RIGHT)
        if y <= 0:
            return across, self.base - 14
        return across, self.bottom - self.y.at(y) * (self.bottom - _TOP)

    def axes(self, x_title: str, y_title: str) -> Markup:
        right = _WIDTH - _RIGHT
        parts = []
        for tick in self.x.ticks(10):
            x, _ = self.at(tick, self.y.low)
            parts.append(tag("path", d=f"M{x:.1f} {_TOP}V{self.base}", class_="grid"))
            parts.append(
                tag("text", charts.number(tick), x=f"{x:.1f}", y=self.base + 17, text_anchor="middle")
            )
        for tick in self.y.ticks(10):
            _, y = self.at(self.x.low, tick)
            parts.append(tag("path", d=f"M{_LEFT} {y:.1f}H{right}", class_="grid"))
            parts.append(tag("text", charts.number(tick), x=_LEFT - 7, y=f"{y + 4:.1f}", text_anchor="end"))
        if self.floor:
            parts.append(tag("path", d=f"M{_LEFT} {self.bottom}H{right}", class_="grid dashed"))
            parts.append(tag("text", "0", x=_LEFT - 7, y=self.base - 10, text_anchor="end"))
        frame = tag("path", d=f"M{_LEFT} {_TOP}V{self.base}H{right}", class_="frame")
        middle = (_LEFT + right) / 2
        titles = [
            tag("text", x_title, x=middle, y=_HEIGHT - 8, text_anchor="middle", class_="title"),
            tag("text", y_title, transform=f"translate(13 {(_TOP + self.base) / 2}) rotate(-90)",
                text_anchor="middle", class_="title"),
        ]  # fmt: skip
        return joined(parts, frame, titles)

    def points(
        self,
        points: Sequence[Point],
        styles: Mapping[str, int],
        prefix: str,
        describe: Callable[[Point], str],
    ) -> Markup:
        """Shapes with tooltips, and the names of the rows beside convkit's picks, where there is room."""
        marks, boxes = [], []
        for p in points:
            x, y = self.at(p.x, p.y)
            style = styles[p.library]
            boxes.append((x - 5, y - 5, x + 5, y + 5))
            marks.append(
                tag("use", tag("title", describe(p)), href=f"#m{style}",
                    transform=f"translate({x:.1f} {y:.1f})" + ("scale(.62)" if p.kind == "own" else ""),
                    class_=f"s{style} {p.kind}", data_r=f"{prefix}-{p.row}", data_l=style)
            )  # fmt: skip
        picks = [p for p in points if p.kind == "pick"]
        anchors = [self.at(p.x, p.y) for p in picks]
        sizes = [(_CHARACTER * len(p.label), float(_LINE)) for p in picks]
        places = charts.place(anchors, sizes, boxes, (_LEFT + 2, _TOP, _WIDTH - 2, self.base - 2))
        names = [
            tag("text", p.label, x=f"{at[0]:.1f}", y=f"{at[1] + 4:.1f}", text_anchor="middle", class_="name",
                data_r=f"{prefix}-{p.row}")
            for p, at in zip(picks, places)
            if at
        ]  # fmt: skip
        return joined(marks, names)

    def image(self, name: str, title: str, description: str, *parts: Any) -> Markup:
        """The whole chart, with what a screen reader says of it."""
        return tag(
            "svg", tag("title", title, id=f"{name}-t"), tag("desc", description, id=f"{name}-d"), parts,
            class_="plane", viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img",
            aria_labelledby=f"{name}-t {name}-d",
        )  # fmt: skip


def roofline(document: charts.Document, styles: Mapping[str, int], prefix: str) -> Markup | None:
    """Each entry under the ceilings that were measured; None where there is nothing to draw."""
    points, roofs = charts.roofline(document), charts.roofs(document)
    if not points:
        return None
    x = Scale.over([p.x for p in points], pad=2, least=20)
    compute = max((r.value for r in roofs if not r.memory), default=math.inf)
    memory = max((r.value for r in roofs if r.memory), default=math.inf)
    tops = [min(compute, memory * v) for v in (x.low, x.high)]
    y = Scale.over(
        [*(p.y for p in points), *tops, *(r.value for r in roofs if not r.memory)], pad=1.5, least=20
    )
    plane = Plane(x, y)
    lines = []
    for number, roof in enumerate(roofs):
        ridge = compute / roof.value if roof.memory else roof.value / memory
        start, end = (x.low, min(ridge, x.high)) if roof.memory else (max(ridge, x.low), x.high)
        if roof.memory and roof.at(start) < y.low:
            start = y.low / roof.value
        if start < end:
            (x0, y0), (x1, y1) = plane.at(start, roof.at(start)), plane.at(end, roof.at(end))
            lines.append(tag("path", tag("title", roof.text), d=f"M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}",
                             class_="roof", stroke_dasharray=DASHES[number % len(DASHES)]))  # fmt: skip

    def said(p: Point) -> str:
        rate, intensity = charts.number(p.y), charts.number(p.x)
        return f"{p.label}: {p.name} ({p.library}), {rate} GFLOP/s, {intensity} FLOP/byte"

    return plane.image(
        f"{prefix}-roofline",
        "Roofline",
        "Rate of arithmetic over FLOP per byte; the table below has the figures.",
        plane.axes("arithmetic intensity, FLOP/byte", "GFLOP/s"),
        lines,
        plane.points(points, styles, prefix, said),
    )


def accuracy(document: charts.Document, styles: Mapping[str, int], prefix: str) -> Markup | None:
    """Error over time; None where there is nothing to draw."""
    points = charts.accuracy(document)
    if not points:
        return None
    plane = Plane(
        Scale.over((p.x for p in points), pad=1.6),
        Scale.over((p.y for p in points), pad=1.8, least=10),
        floor=any(p.y <= 0 for p in points),
    )

    def said(p: Point) -> str:
        time, error = charts.number(p.x), charts.short_power(p.y)
        return f"{p.label}: {p.name} ({p.library}), {time} ms, error {error}"

    return plane.image(
        f"{prefix}-accuracy", "Accuracy against speed",
        "Relative error against float64 over time; the tables of the rows have the figures.",
        plane.axes("ms, median (left is faster)", "relative RMS error (down is better)"),
        plane.points(points, styles, prefix, said),
    )  # fmt: skip
