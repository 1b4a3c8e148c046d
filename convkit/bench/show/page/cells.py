"""Cells, tables, and the small things in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...measure.entry import HOST_INCLUDED, NOT_PASSED, QUICK_ONLY, TOO_SHORT
from ...status import UNRUN
from .. import charts, tables
from .markup import Markup, joined, tag

#: Marks that say that something has not been shown.
DOUBTS = ("unchecked", NOT_PASSED, QUICK_ONLY, UNRUN, HOST_INCLUDED, TOO_SHORT)
#: Rows from which on a table or a chart scrolls in a box of its own.
TALL = 25
ms = charts.milliseconds


def figure(value: float | None, text: str, more: Any = None) -> Markup:
    """A cell with a number: what is shown is rounded, what is sorted by is not."""
    if value is None:
        return tag("td", "–", class_="number")
    return tag("td", text, more, class_="number", data_v=repr(value))


def interval(low: float | None, high: float | None, text: Any = ms) -> Markup | None:
    """An interval, beside a figure."""
    if low is None or high is None:
        return None
    return tag("span", f" [{text(low)}, {text(high)}]", class_="interval")


def ratio(value: float, low: float | None, high: float | None) -> Markup:
    """A ratio with its interval."""
    return joined(f"{tables.times(value)}×", interval(low, high, tables.times))


def verdict(word: str) -> Markup:
    """Win, loss or tie: a word, a shape, a colour."""
    shape = charts.VERDICTS.get(word, "")
    return tag(
        "span",
        tag("span", shape, aria_hidden="true") if shape else None,
        f" {word}" if shape else word,
        class_=f"verdict {word if shape else 'none'}",
    )


def marks(words: Iterable[str]) -> list[Markup]:
    """Marks as small labels; those that say what was not shown stand out."""
    return [tag("span", w, class_="mark doubt" if w in DOUBTS else "mark") for w in words]


def table(
    caption: str,
    heads: Sequence[tuple[str, str]],
    body: Sequence[Sequence[Markup]],
    keys: Sequence[tuple[Any, ...]] = (),
    classes: Sequence[str] = (),
) -> Markup:
    """A table that can be sorted, in a box that scrolls.

    Parameters
    ----------
    caption : str
        Its name.
    heads : sequence of (title, kind)
        Kind "n" is a column of numbers.
    body : sequence of rows of cells
    keys : sequence of (row, library)
        What the filters ask of each row; None where they do not.
    """
    head = [tag("th", title, scope="col", class_="number" if kind == "n" else None) for title, kind in heads]
    rows = []
    for number, cells in enumerate(body):
        row, library = (*keys[number], None, None)[:2] if keys else (None, None)
        rows.append(tag("tr", cells, data_r=row, data_l=library, class_=classes[number] if classes else None))
    inner = tag(
        "table", tag("caption", caption), tag("thead", tag("tr", head)), tag("tbody", rows), class_="sortable"
    )
    return box(inner, caption, len(body))


def box(inner: Markup, name: str, rows: int = 0) -> Markup:
    """What is wide, or long, scrolls by itself: never the page sideways."""
    return tag(
        "div",
        inner,
        class_="scroll tall" if rows >= TALL else "scroll",
        tabindex=0,
        role="region",
        aria_label=name,
    )


def plain(caption: str, pairs: Iterable[tuple[str, Any]]) -> Markup:
    """Names and values."""
    rows = [tag("tr", tag("th", name, scope="row"), tag("td", value)) for name, value in pairs]
    inner = tag("table", tag("caption", caption), tag("tbody", rows), class_="pairs")
    return box(inner, caption)


def rates(entry: Mapping[str, Any]) -> list[Markup]:
    """Cells of GFLOP/s, GB/s and the share of the nearer ceiling."""
    share = entry.get("percent")
    over = (
        " (by definition)"
        if share and share > 100 and (entry.get("facts") or {}).get("algorithm_flops")
        else ""
    )
    text = "" if share is None else f"{share:.0f} %"
    ceiling = tag("span", f" {entry.get('ceiling') or ''}{over}", class_="interval")
    return [
        figure(entry.get("gflops"), _rate(entry.get("gflops"))),
        figure(entry.get("gbs"), _rate(entry.get("gbs"))),
        figure(share, text, ceiling),
    ]


def one_line(name: Any) -> str | None:
    """The class of a cell that stays in one line, where its text is one that can."""
    return "line-of-text" if len(str(name)) <= 40 else None


def _rate(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.1f}"


def megabytes(size: float | None) -> str:
    """Bytes in a unit that suits them."""
    if size is None:
        return ""
    return f"{size} B" if size < 1000 else f"{charts.number(size / 1e6)} MB"
