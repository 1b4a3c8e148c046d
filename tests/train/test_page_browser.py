"""The page of an evaluation in a real browser; where there is none, see `chromium`."""

from __future__ import annotations

import itertools
from typing import Any

import page_contents as contents
import pytest
from chromium import Browser

from convkit.train.page.document import write

pytestmark = pytest.mark.xdist_group("browser")  # one browser, not one in each worker
CONTENTS = [contents.digits, contents.imagenet, contents.least, contents.twenty]


def show(browser: Browser, make: Any, **how: Any) -> None:
    browser.show(write(make(), browser.folder / "evaluation.html"), **how)
    browser.open_details()
    browser.settle()


@pytest.mark.parametrize("make", CONTENTS)
def test_page_is_silent_and_shows_its_images(chromium_browser: Browser, make: Any) -> None:
    show(chromium_browser, make)
    assert chromium_browser.messages() == []
    requests = chromium_browser.requests()
    assert len([url for url in requests if not url.startswith("data:")]) == 1
    loaded = chromium_browser.run("return [...document.images].map((i) => i.complete && i.naturalWidth > 0)")
    assert all(loaded) and (loaded or make is contents.least)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_page_shows_texts_with_contrast(chromium_browser: Browser, dark: bool) -> None:
    for make in (contents.digits, contents.twenty):
        show(chromium_browser, make, dark=dark)
        found = chromium_browser.contrasts()
        assert len(found) > 200
        assert not [f for f in found if f[0] < 4.5]
    ground = chromium_browser.run("return getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") != dark


@pytest.mark.parametrize("make", CONTENTS)
def test_page_never_scrolls_sideways(chromium_browser: Browser, make: Any) -> None:
    for width in (360,) if make is contents.imagenet else (360, 400, 1280):
        show(chromium_browser, make, width=width)
        assert chromium_browser.run("return document.documentElement.scrollWidth") <= width
        assert not chromium_browser.beyond()


def test_page_shows_curves_with_labels_that_do_not_overlap(chromium_browser: Browser) -> None:
    show(chromium_browser, contents.digits)
    charts = chromium_browser.run("""
        const of = (r) => [r.left, r.top, r.right, r.bottom];
        const box = (e) => of(e.getBoundingClientRect());
        return [...document.querySelectorAll('.curves')].map(
          (svg) => [box(svg), [...svg.querySelectorAll('text')].map(box)]);""")
    assert len(charts) == 2
    for (left, top, right, bottom), texts in charts:
        assert len(texts) > 10
        for box in texts:
            assert box[0] >= left - 1 and box[1] >= top - 1 and box[2] <= right + 1 and box[3] <= bottom + 1
        for a, b in itertools.combinations(texts, 2):
            assert a[0] >= b[2] or b[0] >= a[2] or a[1] >= b[3] - 2 or b[1] >= a[3] - 2


def test_page_names_what_it_shows(chromium_browser: Browser) -> None:
    show(chromium_browser, contents.digits)
    nodes = chromium_browser.devtools("Accessibility.getFullAXTree")["nodes"]
    pictures = [n for n in nodes if n["role"].get("value") == "image" and not n["ignored"]]
    named = {n["name"]["value"].split(" Cross")[0].split(" Share")[0] for n in pictures}
    assert "" not in named and {"Loss", "Errors", "32 filters of 5 x 5 pixels"} <= named
    levels = [int(h.tag_name[1]) for h in chromium_browser.all("h1, h2, h3")]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in itertools.pairwise(levels))
