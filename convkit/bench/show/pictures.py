"""Result files as a PNG: bars against the peers, a roofline, latencies, accuracy against speed.

Each chart is drawn by itself, all of the same width, and they are put one under the other. matplotlib draws;
it is imported by `picture` alone.
"""

from __future__ import annotations

import importlib
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ...errors import MissingExtra, OptionError, unknown
from ..results import figures, files
from ..results.figures import OWN
from . import caveats, charts, tables
from .charts import HATCHES, LIGHT, SHAPES, Document, Point, Row, Scale

KINDS = ("bars", "roofline", "latency", "accuracy")
ALL = "all"
_WIDTH, _DPI = 13.0, 120
#: Inches of a bar, bars of a column, panels of latencies, entries in one of them.
_BAR, _COLUMN, _PANELS, _STRIPS = 0.19, 90, 18, 9
_SPACE = 1.1  # between the rows of a bar chart, in bars
_OUTLINES = {"heuristic": "--", "deterministic": ":"}
_DASHES = ("-", "--", ":", "-.", (0, (8, 3)), (0, (3, 2)))
#: matplotlib's shapes are of different sizes for the same number.
_SIZES = {"o": 8.5, "s": 7.5, "^": 8.5, "D": 7, "v": 8.5, "P": 9, "X": 9, "h": 9, "*": 12}
Axes = Any
Figure = Any


def require_png(path: str | Path) -> Path:
    """The path, unless its name says that it is no PNG."""
    path = Path(path)
    if path.suffix.lower() not in (".png", ""):
        raise OptionError(f"cannot write {path}: a picture is a PNG, so its name ends in .png")
    return path


def picture(documents: Sequence[Document], path: str | Path, kind: str = ALL) -> Path:
    """Draw result files into a PNG.

    Parameters
    ----------
    documents : sequence of dict
        As `files.load` returns them.
    path : str or Path
        Ends in ".png", or in nothing.
    kind : {"bars", "roofline", "latency", "accuracy", "all"}

    Returns
    -------
    Path

    Raises
    ------
    MissingExtra
        If matplotlib is not installed.
    OptionError
        If the kind is not known, there is nothing to draw, or the file cannot be written.
    """
    if kind != ALL and kind not in KINDS:
        raise unknown("kind of picture", kind, (*KINDS, ALL))
    path = require_png(path)
    files.writable(path)
    matplotlib = load_matplotlib()
    drawn: list[np.ndarray] = []
    styles = charts.styles(documents)
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE}):
        for document in documents:
            digest = caveats.digest_state(document)
            plain = files.plain(document)
            for name in KINDS if kind == ALL else (kind,):
                figure = _DRAW[name](plain, styles)
                if figure is not None:
                    drawn.append(_pixels(figure, _heading(plain, name), _caveat(plain, digest)))
    if not drawn:
        what = "bars, points or samples" if kind == ALL else f"a picture of kind {kind!r}"
        raise OptionError(f"nothing to draw: no row of {len(documents)} result files has {what}")
    _save(drawn, path)
    return path


#: Of every picture, whatever the caller's matplotlib is set to.
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": LIGHT["control"],
    "axes.linewidth": 0.8,
    "axes.labelcolor": LIGHT["muted"],
    "xtick.color": LIGHT["text"],
    "ytick.color": LIGHT["text"],
    "text.color": LIGHT["text"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "hatch.linewidth": 0.7,
    "text.parse_math": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "legend.frameon": False,
}


def load_matplotlib() -> ModuleType:
    """matplotlib, or `MissingExtra` where it is not installed."""
    try:
        importlib.import_module("matplotlib.backends.backend_agg")
    except ImportError:
        raise MissingExtra("a picture", "matplotlib", "bench") from None
    return importlib.import_module("matplotlib")


def _figure(height: float) -> Figure:
    """A figure that no window system, and no state of the caller's matplotlib, knows of."""
    figure = importlib.import_module("matplotlib.figure").Figure(
        figsize=(_WIDTH, height), dpi=_DPI, layout="constrained"
    )
    importlib.import_module("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    return figure


def _pixels(figure: Figure, heading: str, caveat: str) -> np.ndarray:
    """The figure with its heading above it, so that neither can cover the other."""
    lines = textwrap.wrap(caveat, 170)
    height = 0.52 + 0.19 * len(lines)
    top = _figure(height)
    top.set_layout_engine("none")
    top.text(0.1 / _WIDTH, 1 - 0.14 / height, heading, fontsize=14, fontweight="bold", va="top")
    top.text(
        0.1 / _WIDTH,
        1 - 0.46 / height,
        "\n".join(lines),
        fontsize=9,
        va="top",
        color=LIGHT["loss"],
        linespacing=1.4,
    )
    parts = []
    for part in (top, figure):
        part.canvas.draw()
        parts.append(np.asarray(part.canvas.buffer_rgba())[..., :3].copy())
    return np.concatenate(parts)


def _heading(document: Document, kind: str) -> str:
    title = {
        "bars": "Against the other libraries", "roofline": "Roofline", "latency": "Latency of every call",
        "accuracy": "Accuracy against speed",
    }[kind]  # fmt: skip
    version = document.get("convkit", {}).get("version", "?")
    return _short(f"{title}: convkit {version} on {charts.where(document)}", 110)


def _caveat(document: Document, digest: str) -> str:
    """What makes the figures doubtful, in one text."""
    found = caveats.of(document, digest)
    return "  ".join(f"{n.word}: {n.text}" for n in found if n.kind != "note" and n.word != "Failures")


def _save(parts: Sequence[np.ndarray], path: Path) -> None:
    image = importlib.import_module("matplotlib.image")
    try:
        image.imsave(path, np.concatenate(parts), format="png", dpi=_DPI)
    except OSError as error:
        raise OptionError(f"cannot write {path}: {error.strerror or error}") from None


def _short(text: str, most: int) -> str:
    """At most so many characters, in one line."""
    text = " ".join("".join(c if c.isprintable() else "\ufffd" for c in text).split())
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _colour(style: int) -> str:
    return LIGHT[f"s{style}"]


def _legend(figure: Figure, styles: Mapping[str, int], extra: Sequence[Any] = (), bars: bool = False) -> None:
    """Above the axes, as wide as the figure."""
    patches, lines = (
        importlib.import_module("matplotlib.patches"),
        importlib.import_module("matplotlib.lines"),
    )
    handles: list[Any] = []
    labels = [*map(str, styles), *(str(h.get_label()) for h in extra)]
    for name, style in styles.items():
        colour, label = _colour(style), _short(name, 40)
        if bars:
            handles.append(
                patches.Patch(facecolor=colour, hatch=HATCHES[style], edgecolor="white", label=label)
            )
        else:
            mark = SHAPES[style]
            filled = {} if name == OWN else {"markerfacecolor": "white", "markeredgewidth": 1.5}
            handles.append(
                lines.Line2D(
                    [],
                    [],
                    color=colour,
                    marker=mark,
                    linestyle="",
                    markersize=_SIZES[mark],
                    label=label,
                    **filled,
                )
            )
    wide = sum(8 + min(40, len(label)) for label in labels) > 150
    figure.legend(
        handles=[*handles, *extra], loc="outside upper left", ncols=4 if wide else len(labels), fontsize=9
    )


def _ticks(axis: Any, scale: Scale, most: int) -> None:
    """The ticks of `charts.Scale` on a logarithmic axis of matplotlib."""
    ticks = scale.ticks(most)
    axis.set_ticks(ticks, [charts.number(t) for t in ticks])
    axis.set_minor_locator(importlib.import_module("matplotlib.ticker").NullLocator())


def _logarithmic(axes: Axes, x: Scale, y: Scale | None, most: int = 9) -> None:
    axes.set_xscale("log")
    axes.set_xlim(x.low, x.high)
    _ticks(axes.xaxis, x, most)
    if y is not None:
        axes.set_yscale("log")
        axes.set_ylim(y.low, y.high)
        _ticks(axes.yaxis, y, most)
    axes.grid(color=LIGHT["grid"], linewidth=0.8, axis="both" if y else "x")
    axes.set_axisbelow(True)


# ---------------------------------------------------------------------------------------------------
# Bars
# ---------------------------------------------------------------------------------------------------
def _bars(document: Document, styles: Mapping[str, int]) -> Figure | None:
    """Horizontal bars from 1 to the ratio, in as many columns as keep the picture readable."""
    rows = [
        (row, label, charts.bars(row))
        for row, label in zip(document["rows"], charts.labels(document["rows"]))
    ]
    if not any(bars for _, _, bars in rows):
        return None
    values = [v for _, _, bars in rows for b in bars for v in (b.low, b.high)]
    total = sum(max(1, len(bars)) + _SPACE for _, _, bars in rows)
    columns = min(3, math.ceil(total / _COLUMN))
    room = {1: 1.32, 2: 1.9, 3: 3.2}[columns]  # for the figures beside the bars
    least = min(1.0, *values)
    scale = Scale(least / (room if least < 0.995 else 1.04), max(1.2, *values) * room)
    parts = _split(rows, total / columns)
    deepest = max(sum(max(1, len(bars)) + _SPACE for _, _, bars in part) for part in parts)
    figure = _figure(1.2 + _BAR * deepest)
    for axes, part in zip(np.atleast_1d(figure.subplots(1, columns)), parts):
        _bar_axes(axes, part, styles, scale, deepest, 12 // columns)
    others = {name: style for name, style in styles.items() if name != OWN}
    figure.supxlabel("time of the other / time of convkit's pick (right of 1: convkit is ahead)", fontsize=9,
                     color=LIGHT["muted"])  # fmt: skip
    patch = importlib.import_module("matplotlib.patches").Patch
    found = {b.group for _, _, bars in rows for b in bars if not b.best}
    dashed = [
        patch(
            facecolor="none",
            edgecolor=LIGHT["text"],
            linestyle=line,
            label=f"not the best: {charts.GROUPS[group]}",
        )
        for group, line in _OUTLINES.items()
        if group in found
    ]
    _legend(figure, others, dashed, bars=True)
    return figure


Group = tuple[Row, str, list[charts.Bar]]


def _split(rows: Sequence[Group], depth: float) -> list[list[Group]]:
    """Rows into columns of about the same depth."""
    parts: list[list[Group]] = [[]]
    used = 0.0
    for record in rows:
        size = max(1, len(record[2])) + _SPACE
        if parts[-1] and used + size / 2 > depth:
            parts.append([])
            used = 0.0
        parts[-1].append(record)
        used += size
    return parts


def _bar_axes(
    axes: Axes, rows: Sequence[Group], styles: Mapping[str, int], scale: Scale, deepest: float, most: int
) -> None:
    y, places, names = 0.0, [], []
    for row, label, bars in rows:
        own = charts.own(row)
        pick = f"{own['name']} {charts.milliseconds(own['median_ms'])} ms" if own else "pick not timed"
        doubt = " (unchecked)" if caveats.is_unchecked(row) else ""
        names.append(f"{_short(label, 40)}{doubt}\n{_short(pick, 34)}")
        places.append(y + max(0, len(bars) - 1) / 2)
        if not bars:
            words = "nothing else was timed" if own else "no verdict"
            axes.annotate(
                words,
                (1, y),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
                color=LIGHT["muted"],
            )
        for b in bars:
            _bar(axes, b, y, styles.get(b.library, 0))
            y += 1
        y += _SPACE + (0 if bars else 1)
    _logarithmic(axes, scale, None, most)
    axes.axvline(1, color=LIGHT["text"], linewidth=1.3)
    axes.set_ylim(deepest - _SPACE / 2, -0.5 - _SPACE / 2)
    axes.set_yticks(places, names, fontsize=7.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _bar(axes: Axes, b: charts.Bar, y: float, style: int) -> None:
    colour = _colour(style)
    look = {"color": colour, "hatch": HATCHES[style], "edgecolor": "white"} if b.best else {
        "facecolor": "none", "edgecolor": colour, "linestyle": _OUTLINES[b.group]}  # fmt: skip
    axes.barh(y, b.ratio - 1, 0.82, left=1, linewidth=0.0 if b.best else 1.2, **look)
    for width, shade in ((3.2, "white"), (1.2, LIGHT["text"])):
        axes.errorbar(b.ratio, y, xerr=[[max(0, b.ratio - b.low)], [max(0, b.high - b.ratio)]], color=shade,
                      elinewidth=width, capsize=2.2, capthick=width)  # fmt: skip
    ahead = b.ratio >= 1
    at = max(b.high, 1) if ahead else min(b.low, 1)
    text = f"{tables.times(b.ratio)}× {charts.VERDICTS.get(b.verdict, '')} {b.verdict}"
    axes.annotate(text, (at, y), (5 if ahead else -5, 0), textcoords="offset points", va="center",
                  ha="left" if ahead else "right", fontsize=7)  # fmt: skip


# ---------------------------------------------------------------------------------------------------
# Planes
# ---------------------------------------------------------------------------------------------------
def _roofline(document: Document, styles: Mapping[str, int]) -> Figure | None:
    points, roofs = charts.roofline(document), charts.roofs(document)
    if not points:
        return None
    compute = max((r.value for r in roofs if not r.memory), default=math.inf)
    memory = max((r.value for r in roofs if r.memory), default=math.inf)
    x = Scale.over([p.x for p in points], pad=2, least=20)
    heights = [*(p.y for p in points), *(r.value for r in roofs if not r.memory)]
    heights += [v for v in (min(compute, memory * x.low), min(compute, memory * x.high)) if math.isfinite(v)]
    y = Scale.over(heights, pad=1.5, least=20)
    figure = _figure(7)
    axes = figure.subplots()
    lines = []
    for number, roof in enumerate(roofs):
        ridge = compute / roof.value if roof.memory else roof.value / memory
        ends = (x.low, min(ridge, x.high)) if roof.memory else (max(ridge, x.low), x.high)
        if ends[0] < ends[1]:
            lines += axes.plot(
                ends,
                [roof.at(v) for v in ends],
                color=LIGHT["text"],
                linewidth=1.6,
                zorder=2,
                linestyle=_DASHES[number % len(_DASHES)],
                label=_short(roof.text, 40),
            )
    _logarithmic(axes, x, y)
    axes.set_xlabel("arithmetic intensity, FLOP/byte")
    axes.set_ylabel("GFLOP/s")
    _legend(figure, styles, lines)
    _points(figure, axes, points, styles)
    return figure


def _accuracy(document: Document, styles: Mapping[str, int]) -> Figure | None:
    points = charts.accuracy(document)
    if not points:
        return None
    x = Scale.over([p.x for p in points], pad=1.6)
    y = Scale.over([p.y for p in points], pad=1.8, least=10)
    exact = [p for p in points if p.y <= 0]
    zero = y.low / (y.high / y.low) ** 0.05
    if exact:  # no logarithm reaches 0: a lane below the axis
        points = [
            p if p.y > 0 else Point(p.x, zero, p.row, p.library, p.name, p.label, p.kind) for p in points
        ]
        y = Scale(y.low / (y.high / y.low) ** 0.1, y.high)
    figure = _figure(6.2)
    axes = figure.subplots()
    _logarithmic(axes, x, y)
    if exact:
        ticks = [t for t in y.ticks(9) if t > zero * (y.high / y.low) ** 0.05]
        axes.yaxis.set_ticks([zero, *ticks], ["0", *map(charts.number, ticks)])
        axes.axhline(zero * (y.high / y.low) ** 0.05, color=LIGHT["control"], linewidth=0.8, linestyle=":")
    axes.set_xlabel("ms, median (left is faster)")
    axes.set_ylabel("relative RMS error against float64 (down is better)")
    _legend(figure, styles)
    _points(figure, axes, points, styles)
    return figure


def _points(figure: Figure, axes: Axes, points: Sequence[Point], styles: Mapping[str, int]) -> None:
    """Shapes, and the rows' names beside convkit's picks, where there is room."""
    for p in points:
        style = styles[p.library]
        mark, colour = SHAPES[style], _colour(style)
        look = {"markerfacecolor": colour, "markeredgecolor": "white", "markeredgewidth": 0.7}
        if p.kind == "peer":
            look = {"markerfacecolor": (1, 1, 1, 0.6), "markeredgecolor": colour, "markeredgewidth": 1.5}
        size = _SIZES[mark] * (0.6 if p.kind == "own" else 1)
        axes.plot([p.x], [p.y], mark, markersize=size, zorder=5 if p.kind == "pick" else 4, **look)
    figure.canvas.draw()  # the layout is only known now
    figure.set_layout_engine("none")
    picks = [p for p in points if p.kind == "pick"]
    at = lambda p: tuple(axes.transData.transform((p.x, p.y)))  # noqa: E731
    texts = [
        figure.text(0, 0, _short(p.label, 44), fontsize=8, ha="center", va="center", zorder=6) for p in picks
    ]
    boxes = [t.get_window_extent(figure.canvas.get_renderer()) for t in texts]
    frame = axes.get_window_extent()
    places = charts.place(
        [at(p) for p in picks],
        [(b.width + 8, b.height + 2) for b in boxes],
        [(px - 7, py - 7, px + 7, py + 7) for px, py in map(at, points)],
        (frame.x0 + 4, frame.y0 + 4, frame.x1, frame.y1),
        gap=9,
    )
    halo = importlib.import_module("matplotlib.patheffects").withStroke(linewidth=2.5, foreground="white")
    for text, place in zip(texts, places):
        if place is None:
            text.remove()
        else:
            text.set_position(figure.transFigure.inverted().transform(place))
            text.set_path_effects([halo])


# ---------------------------------------------------------------------------------------------------
# Latency
# ---------------------------------------------------------------------------------------------------
def _latency(document: Document, styles: Mapping[str, int]) -> Figure | None:
    """A panel for each row: the calls as dots, the middle half as a box."""
    panels = []
    for row, label in zip(document["rows"], charts.labels(document["rows"])):
        timed = sorted(filter(figures.timed, row["contenders"]), key=lambda c: c["median_ms"])
        found = [(c, charts.samples(c)) for c in timed]
        if found := [(c, values) for c, values in found if values]:
            panels.append((label, found))
    if not panels:
        return None
    shown = panels[:_PANELS]
    columns = min(3, len(shown))
    lines = math.ceil(len(shown) / columns)
    strips = [
        max(min(_STRIPS, len(p[1])) for p in shown[i * columns : (i + 1) * columns]) for i in range(lines)
    ]
    heights = [0.85 + 0.27 * n for n in strips]
    figure = _figure(sum(heights) + 0.55)
    grid = figure.add_gridspec(lines, columns, height_ratios=heights)
    for number, (label, found) in enumerate(shown):
        axes = figure.add_subplot(grid[number // columns, number % columns])
        _strips(axes, label, found, styles, strips[number // columns])
    left = (
        f"; {len(panels) - len(shown)} of {len(panels)} rows are left out" if len(panels) > len(shown) else ""
    )
    note = f"dots: calls (of more than 200 an even choice); box: the middle half; line: the median{left}"
    figure.supxlabel(note, fontsize=8.5, color=LIGHT["muted"])
    return figure


def _strips(
    axes: Axes, label: str, found: Sequence[tuple[Any, list[float]]], styles: Mapping[str, int], slots: int
) -> None:
    """One panel; the fastest on top, and convkit's pick always among them."""
    drawn = list(found[:_STRIPS])
    picked = next((e for e in found if figures.PICKED in e[0]["marks"]), None)
    if picked is not None and not any(e is picked for e in drawn):
        drawn[-1] = picked
    names = []
    for y, (c, values) in enumerate(drawn):
        style = styles[str(c["library"])]
        colour = _colour(style)
        low, middle, high = (charts.quantile(values, q) for q in (0.25, 0.5, 0.75))
        axes.barh(y, high - low, 0.62, left=low, facecolor=colour, alpha=0.22, linewidth=0)
        axes.barh(y, high - low, 0.62, left=low, facecolor="none", edgecolor=colour, linewidth=0.8)
        spread = [y - 0.3 + 0.6 * (i * 7 % 17) / 16 for i in range(len(values))]
        axes.plot(values, spread, SHAPES[style], color=colour, markersize=2.4, markeredgewidth=0)
        axes.plot([middle, middle], [y - 0.42, y + 0.42], color=LIGHT["text"], linewidth=1.6)
        names.append(_short(f"{c['name']} ({c['library']})" if c["library"] == OWN else str(c["name"]), 30))
    _logarithmic(axes, Scale.over([v for _, values in drawn for v in values], pad=1.05, least=1.08), None, 5)
    axes.set_ylim(slots - 0.4, -0.6)
    axes.set_yticks(range(len(drawn)), names, fontsize=7.5)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=7.5)
    more = f", {len(found) - len(drawn)} slower not shown" if len(found) > len(drawn) else ""
    axes.set_title(f"{_short(label, 40)}, ms{more}", fontsize=9, loc="left")


_DRAW: dict[str, Callable[[Document, Mapping[str, int]], Figure | None]] = {
    "bars": _bars, "roofline": _roofline, "latency": _latency, "accuracy": _accuracy,
}  # fmt: skip
