"""What comes first: notices, counts, filters, a line for each row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...results import figures
from .. import caveats, charts, tables
from . import svg
from .cells import box, figure, interval, marks, ms, one_line, rates, verdict
from .markup import Markup, joined, tag

Row = Mapping[str, Any]
Entry = Mapping[str, Any]
Document = Mapping[str, Any]


def notices(document: Document, digest: str) -> Markup:
    """Everything that a reader must know before believing a figure."""
    items = [
        tag("li", tag("strong", f"{n.word}: "), n.text, class_=n.kind) for n in caveats.of(document, digest)
    ]
    return tag("ul", items, class_="notices")


def tiles(document: Document, name: str) -> Markup:
    """How many rows were won, tied and lost against the best of the others."""
    counts = Counter(caveats.outcome(row) for row in document["rows"])
    records = [("win", counts["win"]), ("tie", counts["tie"]), ("loss", counts["loss"])]
    records.append(("no verdict", counts["no peer"] + counts["not timed"]))
    boxes = [
        tag(
            "li",
            tag("span", n, class_="big", data_count=word),
            verdict(word) if n or word != "no verdict" else "no verdict",
            class_="tile",
        )
        for word, n in records
    ]
    return joined(
        tag("p", "convkit's pick against the best of the others, in rows:", class_="tiles-title"),
        tag("ul", boxes, class_="tiles", data_results=name),
    )


def filters(documents: Sequence[Document], styles: Mapping[str, int]) -> Markup:
    """What the rows of every result file can be chosen by; shown where there is a script to do it."""
    rows = [row for document in documents for row in document["rows"]]
    wanted: list[tuple[str, str, Iterable[str]]] = [
        ("layer", "Layer", (str(row["layer"] or row["op"]) for row in rows)),
        ("direction", "Direction", (str(row["direction"]) for row in rows)),
        ("batch", "N", (str(n) for n in sorted({row["batch"] or 0 for row in rows}))),
        ("grade", "Type", (charts.grade(row) for row in rows)),
        ("verdict", "Verdict", (caveats.outcome(row) for row in rows)),
    ]
    boxes = [_select(key, title, [(v, v) for v in dict.fromkeys(values)]) for key, title, values in wanted]
    boxes.insert(2, _select("library", "Library", [(str(i), name) for name, i in styles.items()]))
    return tag(
        "form", boxes, tag("button", "All rows", type="reset"),
        tag("output", f"{len(rows)} of {caveats.count(len(rows), 'row')}", id="shown", aria_live="polite"),
        id="filters", class_="needs-script", aria_label="Show only some rows",
    )  # fmt: skip


def _select(key: str, title: str, options: Sequence[tuple[str, str]]) -> Markup:
    records = [tag("option", "all", value=""), *(tag("option", text, value=value) for value, text in options)]
    return tag("label", tag("span", title), tag("select", records, name=key, id=f"filter-{key}"))


_OVERVIEW = (
    ("row", ""),
    ("verdict", ""),
    ("ratio", "n"),
    ("convkit's pick", ""),
    ("ms", "n"),
    ("best of the others", ""),
    ("its ms", "n"),
    ("rank", "n"),
    ("GFLOP/s", "n"),
    ("GB/s", "n"),
    ("% of ceiling", "n"),
    ("error", "n"),
    ("dir", ""),
    ("N", "n"),
    ("type", ""),
)


def overview(rows: Sequence[tuple[Row, str]], styles: Mapping[str, int], name: str) -> Markup:
    """The table of all rows of a result file."""
    heads = [tag("th", t, scope="col", class_="number" if kind == "n" else None) for t, kind in _OVERVIEW]
    lines = [
        tag(
            "tr",
            _overview_cells(row, label, styles, f"{name}-{i}"),
            data_r=f"{name}-{i}",
            data_layer=row["layer"] or row["op"],
            data_direction=row["direction"],
            data_batch=row["batch"] or 0,
            data_grade=charts.grade(row),
            data_verdict=caveats.outcome(row),
            data_libraries=" ".join(sorted({str(styles[str(c["library"])]) for c in row["contenders"]})),
        )
        for i, (row, label) in enumerate(rows)
    ]
    caption = "Every row"
    inner = tag("table", tag("caption", caption), tag("thead", tag("tr", heads)), tag("tbody", lines),
                class_="sortable overview")  # fmt: skip
    return box(inner, caption, len(rows))


def _overview_cells(row: Row, label: str, styles: Mapping[str, int], key: str) -> list[Markup]:
    own, best = charts.own(row), charts.against(row, "best")
    rank = row.get("ranking") or {}
    head = tag("th", tag("a", label, href=f"#{key}"), scope="row", class_=one_line(label))
    tail = [
        tag("td", row["direction"]),
        figure(row["batch"], str(row["batch"])),
        tag("td", charts.grade(row)),
    ]
    none = figure(None, "")
    if own is None:
        reason = next((c.get("refused") for c in row["contenders"] if figures.PICKED in c["marks"]), None)
        pick = tag("td", reason or "not timed", class_="reason")
        return [head, tag("td", verdict("not timed")), none, pick, none, tag("td", "–"), *[none] * 6, *tail]
    pick = tag("td", own["name"], " ", marks([m for m in own["marks"] if m != figures.PICKED]))
    time = figure(own["median_ms"], ms(own["median_ms"]), interval(own["low_ms"], own["high_ms"]))
    place = figure(rank.get("rank"), f"{rank.get('rank')} of {rank.get('of')}")
    error = figure(own.get("error"), charts.short_power(own.get("error") or 0))
    if best is None:
        return [
            head,
            tag("td", verdict("no peer")),
            none,
            pick,
            time,
            tag("td", "–"),
            none,
            place,
            *rates(own),
            error,
            *tail,
        ]
    other = charts.rival(row, best["name"])
    other_ms = other["median_ms"] if other else None
    return [
        head,
        tag("td", verdict(best["verdict"])),
        figure(
            best["ratio"],
            f"{tables.times(best['ratio'])}×",
            interval(best["low"], best["high"], tables.times),
        ),
        pick,
        time,
        tag(
            "td",
            svg.swatch(styles[str(other["library"])]) if other else None,
            best["name"],
            class_=one_line(best["name"]),
        ),
        figure(other_ms, ms(other_ms)),
        place,
        *rates(own),
        error,
        *tail,
    ]
