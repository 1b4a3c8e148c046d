"""What was taken for what: a matrix of few classes; of many the most confused pairs; each class's errors."""

from __future__ import annotations

import math

from ...bench.show import charts
from ...bench.show.page import cells
from ...bench.show.page.markup import Markup, joined, tag
from .content import Content
from .text import interval, percent

#: With more classes than this a matrix cannot be read.
MATRIX = 20
#: Pairs and classes that are listed.
PAIRS, WORST = 20, 20
#: Shades of a cell, from none to the strongest, for right and wrong; texts have 4.5 : 1 on each of them.
SHADES = 6
_ENDS = {"right": ("#8fd3cf", "#0e5a57"), "wrong": ("#f5b48f", "#7a3413")}


def colours(dark: bool) -> dict[str, str]:
    """The shades by name, between the page's ground and the strongest."""
    ground = (charts.DARK if dark else charts.LIGHT)["bg"]
    return {
        f"{kind}{step}": _mixed(ground, ends[dark], step / SHADES)
        for kind, ends in _ENDS.items()
        for step in range(SHADES + 1)
    }


def _mixed(a: str, b: str, share: float) -> str:
    parts = (round(int(a[i : i + 2], 16) * (1 - share) + int(b[i : i + 2], 16) * share) for i in (1, 3, 5))
    return "#" + "".join(f"{part:02x}" for part in parts)


def style() -> str:
    """The classes of the shades."""
    return "".join(
        f".{kind}{step}{{background:var(--{kind}{step})}}" for kind in _ENDS for step in range(SHADES + 1)
    )


def matrix(content: Content) -> Markup:
    """Each class's images by what they were taken for, in shades of their share."""
    found = content.evaluation.confusion().tolist()
    labels = [content.label(i) for i in range(len(found))]
    # Long names do not fit over columns: there their numbers stand.
    short = all(len(label) <= 4 for label in labels)
    heads = labels if short else [str(i + 1) for i in range(len(found))]
    top = [tag("th", head, scope="col", class_="number", title=label) for head, label in zip(heads, labels)]
    rows = []
    for i, counts in enumerate(found):
        total = sum(counts)
        name = labels[i] if short else f"{i + 1} · {labels[i]}"
        body = [_cell(count, total, i == j, labels[i], labels[j]) for j, count in enumerate(counts)]
        rows.append(tag("tr", tag("th", name, scope="row"), body))
    inner = tag(
        "table",
        tag("caption", "Confusion"),
        tag("thead", tag("tr", tag("th", "true class", scope="col"), top)),
        tag("tbody", rows),
        class_="matrix",
    )
    return joined(
        tag("p", "A row for each true class, a column for each class that the network put first.",
            class_="muted"),
        cells.box(inner, "Confusion"),
    )  # fmt: skip


def _cell(count: int, total: int, right: bool, true: str, taken: str) -> Markup:
    share = count / total if total else 0.0
    # Few errors of many images would all be pale: their root is shown.
    step = math.ceil(SHADES * (share if right else math.sqrt(share)))
    title = f"{count} of {total} images of {true} taken for {taken}"
    return tag("td", str(count) if count else "·", title=title,
               class_=f"number {'right' if right else 'wrong'}{step}")  # fmt: skip


def pairs(content: Content) -> Markup | None:
    """The most confused pairs; None where nothing was confused."""
    evaluation = content.evaluation
    found = evaluation.pairs(wrong=True)
    if not found:
        return None
    by_class = evaluation.by_class()
    body = [
        [
            tag("th", content.label(label), scope="row"),
            tag("td", content.label(predicted)),
            cells.figure(count, str(count)),
            cells.figure(count / by_class[label][0].total, percent(count / by_class[label][0].total)),
        ]
        for label, predicted, count in found[:PAIRS]
    ]
    heads = [("true class", ""), ("taken for", ""), ("images", "n"), ("of the class", "n")]
    return cells.table("Most confused pairs", heads, body)


def by_class(content: Content, only: int = 0) -> Markup:
    """Errors of each class, the worst first.

    Parameters
    ----------
    content : Content
    only : int
        At most so many; 0: all.
    """
    evaluation = content.evaluation
    with_top5 = evaluation.top5 is not None
    rates = [(i, *both) for i, both in enumerate(evaluation.by_class()) if both[0].total]
    rates.sort(key=lambda row: (-row[1].value, -row[1].count))
    body = [
        [
            tag("th", content.label(i), scope="row"),
            cells.figure(first.total, str(first.total)),
            cells.figure(first.count, str(first.count)),
            cells.figure(first.value, percent(first.value)),
            tag("td", interval(first), class_="number interval"),
            cells.figure(fifth.value, percent(fifth.value)) if with_top5 else None,
        ]
        for i, first, fifth in rates[: only or None]
    ]
    heads = [("class", ""), ("images", "n"), ("errors", "n"), ("top-1 error", "n"), ("95 % interval", "n")]
    heads += [("top-5 error", "n")] if with_top5 else []
    rows = [[cell for cell in row if cell is not None] for row in body]
    return cells.table("Worst classes" if only else "Errors of each class", heads, rows)
