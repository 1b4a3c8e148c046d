"""One HTML page about an evaluation, which needs nothing else: no file, no network, no script."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...bench.results import files
from ...bench.show import charts
from ...bench.show.page import cells, frame
from ...bench.show.page.markup import Markup, joined, tag
from ..errors import BadImage
from ..evaluation import Wrong
from . import confusion, curves, pictures
from .content import Content
from .text import interval, number, percent

#: Images that are shown.
SHOWN = 24
#: Images left out that are named.
_NAMED = 200


def write(content: Content, path: str | Path) -> Path:
    """Write the page, whole or not at all.

    Parameters
    ----------
    content : Content
    path : str or Path

    Raises
    ------
    OptionError
        If it cannot be written.
    """
    files.replace(path, page(content))
    return Path(path)


def page(content: Content) -> str:
    """The page's text."""
    light = charts.LIGHT | confusion.colours(dark=False)
    dark = charts.DARK | confusion.colours(dark=True)
    own = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    style = frame.themes(light, dark) + frame.STYLE.read_text(encoding="utf-8") + own + confusion.style()
    evaluation = content.evaluation
    few = evaluation.num_classes <= confusion.MATRIX
    wrong = evaluation.worst(SHOWN, content.split.name)
    every_class = confusion.by_class(content)
    sections = [
        _section("The run in training", curves.curves(content)),
        _section(
            "What was taken for what",
            confusion.matrix(content) if few else None,
            _pairs(content),
        ),
        _section(
            "Classes",
            every_class if few else confusion.by_class(content, confusion.WORST),
            None if few else tag("details", tag("summary", "Every class"), every_class),
        ),
        _section("The images that it was most wrong about", _wrongs(content, wrong)),
        _section("First-layer filters", _filters(content)),
        _left_out(content),
        _section("The recipe", tag("pre", content.recipe, tabindex=0)) if content.recipe else None,
    ]
    facts = cells.plain("What was evaluated", content.facts) if content.facts else None
    return frame.document(
        f"convkit evaluate: {content.title}",
        style,
        "",
        tag("a", "Skip to the results", href="#main", class_="skip"),
        tag("header", tag("div", tag("h1", "convkit evaluate"), tag("p", content.title, class_="muted"))),
        tag("main", _tiles(content), _notices(content), facts, sections, id="main"),
    )  # fmt: skip


def _section(title: str, *parts: Markup | None) -> Markup:
    return tag("section", tag("h2", title), *parts)


def _pairs(content: Content) -> Markup:
    table = confusion.pairs(content)
    if table is None:
        return tag("p", "Nothing was confused.", class_="muted")
    return joined(tag("h3", "Most confused"), table)


def _tiles(content: Content) -> Markup:
    evaluation = content.evaluation
    top5 = evaluation.top5

    def tile(name: str, big: str, more: str) -> Markup:
        return tag("li", tag("span", name), tag("span", big, class_="big"),
                   tag("span", more, class_="interval"), class_="tile")  # fmt: skip

    tiles = [
        tile("top-1 error", percent(evaluation.top1.value), interval(evaluation.top1)),
        tile("top-5 error", percent(top5.value), interval(top5)) if top5
        else tile("top-5 error", "-", f"there are {evaluation.num_classes} classes"),
        tile("cross-entropy", number(evaluation.loss), "nats, the mean"),
        tile("images", f"{evaluation.images:,}", f"{evaluation.num_classes:,} classes"),
    ]  # fmt: skip
    return tag("ul", tiles, class_="tiles")


def _notices(content: Content) -> Markup | None:
    if not content.notices:
        return None
    return tag("ul", [tag("li", notice, class_="warn") for notice in content.notices], class_="notices")


def _wrongs(content: Content, wrong: list[Wrong]) -> Markup:
    if not wrong:
        return tag("p", "It was wrong about none.", class_="muted")
    return tag("ul", [_wrong(content, one) for one in wrong], class_="wrongs")


def _wrong(content: Content, wrong: Wrong) -> Markup:
    true, taken = content.label(wrong.label), content.label(wrong.predicted)
    pixels = np.zeros(content.split.shape, np.uint8)
    try:
        content.split.read(wrong.index, pixels)
        picture = pictures.image(pixels, f"{true}, taken for {taken}")
    except BadImage as error:
        picture = tag("p", f"It cannot be read any more: {error}", class_="muted")
    return tag(
        "li",
        picture,
        tag("p", tag("strong", true), f" {percent(wrong.label_probability)}"),
        tag("p", "taken for ", tag("strong", taken), f" {percent(wrong.probability)}"),
        tag("p", wrong.name, class_="small"),
    )


def _filters(content: Content) -> Markup:
    weights = content.filters
    if weights is None:
        return tag("p", "The first layer has no filters that can be shown as images.", class_="muted")
    K, C, R, S = weights.shape
    picture = pictures.image(pictures.filters(weights), f"{K} filters of {R} x {S} pixels")
    words = f"{K} filters of {R} x {S} pixels{'' if C == 1 else ' and three colours'}"
    return tag(
        "figure",
        tag("figcaption", f"{words}, as in figure 3 of the paper. Each has a scale of its own: grey is 0."),
        tag("div", picture, class_="filters"),
    )


def _left_out(content: Content) -> Markup | None:
    left_out = content.evaluation.left_out
    if not left_out:
        return None
    body = [[tag("th", name, scope="row"), tag("td", reason, class_="reason")]
            for name, reason in left_out[:_NAMED]]  # fmt: skip
    more = len(left_out) - len(body)
    return _section(
        "Images left out",
        cells.table("Images left out", [("image", ""), ("reason", "")], body),
        tag("p", f"and {more:,} more; --json has them all", class_="muted") if more else None,
    )
