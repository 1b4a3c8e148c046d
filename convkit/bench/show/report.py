"""`convkit report`: result files as one HTML page that needs nothing else, and hides nothing.

The page loads nothing: style, script, charts and the result files themselves are in it, and a content
security policy forbids the rest. Its tables and charts are there without JavaScript; that adds sorting,
filters and the choice of a theme. No verdict is made here: the page shows the result file's, and says
whether its digest holds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import OptionError
from ..results import figures, files
from . import caveats, charts, tables
from .page import cells, circumstances, details, frame, overview, svg
from .page.markup import Markup, clean, data, tag

_HERE = Path(__file__).parent / "page"
_DATA = re.compile(
    r'<script type="application/json" class="(?:capsule|results)-data"[^>]*>(.*?)</script>', re.DOTALL
)


def write(originals: Sequence[Mapping[str, Any]], path: str | Path) -> Path:
    """Write one HTML page about some result files, at once or not at all.

    Parameters
    ----------
    originals : sequence of dict
        As `files.load` returns them; each becomes a section.
    path : str or Path

    Returns
    -------
    Path

    Raises
    ------
    OptionError
        If there is no result file, one has values that make no sense, or the file cannot be written.
    """
    if not originals:
        raise OptionError("a report needs a result file: `convkit bench --json FILE` writes one")
    files.writable(path)
    try:
        text = page(originals)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise OptionError(
            f"no report can be made of a damaged result file: {type(error).__name__}: {error}"
        ) from error
    files.replace(path, text)
    return Path(path)


def read(path: str | Path) -> list[dict[str, Any]]:
    """The result files that a page was made of, as they were: `files.digest` of each is the same again.

    Raises
    ------
    OptionError
        If the file cannot be read, or is no such page.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        found = [json.loads(block) for block in _DATA.findall(text)]
    except (OSError, ValueError) as error:
        raise OptionError(f"cannot read {path}: {error}") from None
    if not found:
        raise OptionError(f"{path} is no report of convkit: there is no result file in it")
    return found


# ---------------------------------------------------------------------------------------------------
# The page
# ---------------------------------------------------------------------------------------------------
def page(originals: Sequence[Mapping[str, Any]]) -> str:
    """The page's text."""
    documents = [files.plain(document) for document in originals]
    styles = charts.styles(documents)
    style = frame.themes() + frame.STYLE.read_text(encoding="utf-8")
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    names = [clean(charts.where(d)) for d in documents]
    title = f"convkit bench: {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
    sections = [
        _section(
            document,
            caveats.digest_state(original),
            {library: styles[library] for library in charts.styles([document])},
            f"c{number}",
        )
        for number, (document, original) in enumerate(zip(documents, originals), 1)
    ]
    return frame.document(
        title,
        style,
        script,
        tag("a", "Skip to the results", href="#main", class_="skip"),
        svg.definitions(),
        _header(documents, names),
        overview.filters(documents, styles),
        tag("main", sections, circumstances.reading(), id="main"),
        [
            tag("script", data(d), type="application/json", class_="results-data", id=f"c{i}-data")
            for i, d in enumerate(documents, 1)
        ],
    )


def _header(documents: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Markup:
    versions = dict.fromkeys(str(d.get("convkit", {}).get("version", "?")) for d in documents)
    rows = sum(len(d["rows"]) for d in documents)
    what = f"{rows} row{'' if rows == 1 else 's'}, measured by convkit {', '.join(versions)}"
    links = [tag("li", tag("a", name, href=f"#c{i}")) for i, name in enumerate(names, 1)]
    return tag(
        "header",
        tag("div", tag("h1", "convkit bench"), tag("p", what, class_="muted")),
        tag("button", "Dark theme", type="button", id="theme", aria_pressed="false", class_="needs-script"),
        tag("nav", tag("ul", links), aria_label="Result files") if len(names) > 1 else None,
    )


# ---------------------------------------------------------------------------------------------------
# A result file
# ---------------------------------------------------------------------------------------------------
def _section(document: Mapping[str, Any], digest: str, styles: Mapping[str, int], name: str) -> Markup:
    labels = charts.labels(document["rows"])
    rows = list(zip(document["rows"], labels))
    parts: list[Any] = [
        tag("h2", charts.where(document), id=f"{name}-title"),
        tag("p", _machine_line(document), class_="muted"),
        overview.notices(document, digest),
    ]
    if rows:
        parts += [
            overview.tiles(document, name),
            tag("h3", "Every row, in a line"),
            overview.overview(rows, styles, name),
            tag("h3", "Against the other libraries"),
            _bars(rows, styles, name),
            tag("h3", "Roofline"),
            _roofline(document, styles, name),
            tag("h3", "Accuracy against speed"),
            _accuracy(document, styles, name),
            tag("h3", "Every entry, row by row"),
            tag("p", tag("button", "Open all rows", type="button", class_="open-all"), class_="needs-script"),
            [
                details.details(document, row, label, styles, f"{name}-{i}")
                for i, (row, label) in enumerate(rows)
            ],
        ]
    parts += [circumstances.circumstances(document), circumstances.raw(document, digest, name)]
    return tag("section", parts, id=name, class_="results", aria_labelledby=f"{name}-title")


def _machine_line(document: Mapping[str, Any]) -> str:
    machine, settings = document["machine"], document["settings"]
    words = [
        {"cpu": "CPU", "cuda": "GPU", "emulator": "the emulator"}.get(str(machine.get("device")), ""),
        f"{machine['threads']} threads" if machine.get("threads") else "",
        str(machine.get("isa") or ""),
        f"{settings.get('rounds', '?')} rounds in random order",
        tables.caches(document),
        str(document.get("created") or ""),
    ]
    return " · ".join(filter(None, words))


def _legend(styles: Mapping[str, int], extra: Sequence[Markup] = ()) -> Markup:
    records = [tag("li", svg.swatch(i), name, data_l=i) for name, i in styles.items()]
    return tag("ul", records, extra, class_="legend")


def _bars(rows: Sequence[tuple[Any, str]], styles: Mapping[str, int], name: str) -> Markup:
    found = [charts.bars(row) for row, _ in rows]
    if not any(found):
        return tag(
            "p",
            "No other library was timed beside convkit's pick: there is nothing to compare.",
            class_="muted",
        )
    values = [v for bars in found for b in bars for v in (b.low, b.high)]
    scale = charts.Scale.over([1.0, *values], pad=1.06, least=1.5)
    grid = f"{name}-grid"
    heading = tag(
        "div", tag("span", "times convkit's pick", class_="muted"), svg.axis(scale), class_="line axis-line"
    )
    groups = [
        _group(row, label, bars, scale, styles, f"{name}-{i}", grid)
        for i, ((row, label), bars) in enumerate(zip(rows, found))
    ]
    caption = (
        "How many times as long the others take as convkit's pick, with the interval. Right of the line at "
        "1, convkit is ahead. A bar without filling is not the best of its library."
    )
    others = {library: i for library, i in styles.items() if library != figures.OWN}
    return tag(
        "figure",
        tag("figcaption", caption),
        _legend(others),
        svg.gridlines(scale, grid),
        tag(
            "div",
            heading,
            groups,
            class_="bars tall" if len(rows) >= cells.TALL else "bars",
            tabindex=0,
            role="region",
            aria_label="Bars against the other libraries",
        ),
        class_="chart",
    )


def _group(
    row: Any,
    label: str,
    bars: Sequence[charts.Bar],
    scale: charts.Scale,
    styles: Mapping[str, int],
    key: str,
    grid: str,
) -> Markup:
    own = charts.own(row)
    pick = f"{own['name']}, {cells.ms(own['median_ms'])} ms" if own else "convkit's pick was not timed"
    lines: list[Markup] = []
    for b in bars:
        style = styles.get(b.library, 0)
        value = tag(
            "span",
            cells.ratio(b.ratio, b.low, b.high),
            " ",
            cells.verdict(b.verdict),
            class_="value",
        )
        title = tag("span", b.title, tag("span", b.name, class_="muted small") if b.name != b.title else None,
                    class_="entry")  # fmt: skip
        lines.append(tag("div", title, svg.bar(b, scale, style, grid), value, class_="line", data_l=style))
    if not bars:
        lines.append(tag("p", "no other library was timed" if own else "no verdict", class_="muted small"))
    return tag(
        "div",
        tag("p", tag("strong", label), " ", tag("span", pick, class_="muted"), class_="row-name"),
        lines,
        class_="group",
        data_r=key,
    )


def _roofline(document: Mapping[str, Any], styles: Mapping[str, int], name: str) -> Markup:
    drawn = svg.roofline(document, styles, name)
    if drawn is None:
        return tag("p", "No row with both FLOP and bytes was timed.", class_="muted")
    roofs = [tag("li", svg.line(i), roof.text) for i, roof in enumerate(charts.roofs(document))]
    caption = (
        "Each entry of convkit (filled, the pick large) and the best of each library (hollow), under "
        "the ceilings that were measured in the same run. Winograd is counted with the FLOP of the "
        "definition, of which it needs fewer: it may stand above a ceiling, and so may other libraries' "
        "convolutions, since they do not say which algorithm they chose; the rest by 10 % at most. With warm "
        "caches memory is no bound. Names stand where there is room; a point tells its own when pointed at."
    )
    heads, formats = ("FLOP/byte", "GFLOP/s"), (charts.number, charts.number)
    points = charts.roofline(document)
    return _plane("Roofline", caption, drawn, _legend(styles, roofs), (heads, formats, points), styles, name)


def _accuracy(document: Mapping[str, Any], styles: Mapping[str, int], name: str) -> Markup:
    drawn = svg.accuracy(document, styles, name)
    if drawn is None:
        return tag("p", "No error was measured.", class_="muted")
    caption = (
        "Relative RMS error against float64 over time: convkit's entries filled, its pick large, the best "
        "of each library hollow. Lower left is better on both counts."
    )
    content = (("ms", "error"), (cells.ms, charts.short_power), charts.accuracy(document))
    return _plane("Accuracy against speed", caption, drawn, _legend(styles), content, styles, name)


#: Titles of the two axes, how their figures are written, the points.
_Content = tuple[tuple[str, str], tuple[Callable[[float], str], Callable[[float], str]], list[charts.Point]]


def _plane(
    title: str,
    caption: str,
    drawn: Markup,
    legend: Markup,
    content: _Content,
    styles: Mapping[str, int],
    name: str,
) -> Markup:
    """A chart with two axes, and the table of what it shows."""
    (x_title, y_title), (x_text, y_text), points = content
    body = [
        [
            tag("th", p.label, scope="row"),
            tag("td", svg.swatch(styles[p.library]), p.library),
            tag("td", p.name),
            cells.figure(p.x, x_text(p.x)),
            cells.figure(p.y, y_text(p.y)),
        ]
        for p in points
    ]
    keys = [(f"{name}-{p.row}", styles[p.library]) for p in points]
    heads = [("row", ""), ("library", ""), ("entry", ""), (x_title, "n"), (y_title, "n")]
    table = cells.table(f"{title}: its points", heads, body, keys)
    return tag(
        "figure",
        tag("figcaption", caption),
        legend,
        cells.box(drawn, title),
        tag("details", tag("summary", "The same as a table"), table, class_="same"),
        class_="chart",
    )
