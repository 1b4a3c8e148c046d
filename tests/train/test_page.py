"""The page of an evaluation: what it says is what was found. A browser shows it in test_page_browser.py."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import page_contents as contents
import pytest
from conftest import need
from page_tree import Element, Tree, body, captioned, every

from convkit.errors import OptionError
from convkit.train.page import confusion, curves, pictures
from convkit.train.page.content import Content
from convkit.train.page.document import SHOWN, page, write

Image = need("PIL.Image")


@cache
def text_of(make: Callable[[], Content]) -> str:
    return page(make())


@cache
def tree(make: Callable[[], Content]) -> Element:
    return Tree(text_of(make)).root


def tiles(root: Element) -> dict[str, tuple[str, str]]:
    rows = [[e.text for e in tile.all("span")] for tile in root.all("li", class_="tile")]
    return {name: (big, more) for name, big, more in rows}


def decoded(img: Element) -> np.ndarray:
    kind, _, data = (img.attributes["src"] or "").partition(",")
    assert kind in ("data:image/png;base64", "data:image/jpeg;base64")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


# ---------------------------------------------------------------------------------------------------
# Figures
# ---------------------------------------------------------------------------------------------------
def test_tiles_have_the_figures():
    content = contents.digits()
    found = tiles(tree(contents.digits))
    evaluation = content.evaluation
    low, high = evaluation.top1.interval
    assert found["top-1 error"] == (
        f"{100 * evaluation.top1.count / 397:.2f} %", f"{100 * low:.2f} to {100 * high:.2f} %"
    )  # fmt: skip
    assert evaluation.top5 is not None
    assert found["top-5 error"][0] == f"{100 * evaluation.top5.count / 397:.2f} %"
    assert float(found["cross-entropy"][0]) == pytest.approx(evaluation.losses.mean(), rel=1e-3)
    assert found["images"] == ("397", "10 classes")


def test_top5_of_few_classes_is_a_dash():
    found = tiles(tree(contents.least))
    assert found["top-5 error"] == ("-", "there are 2 classes") and found["top-1 error"][0] == "0.00 %"
    assert tiles(tree(contents.twenty))["cross-entropy"][0] == "-"  # NaN


def test_the_matrix_is_the_confusion():
    content = contents.digits()
    table = captioned(tree(contents.digits), "Confusion")
    rows = [[cell.text for cell in row.all("td")] for row in table.all("tbody")[0].all("tr")]
    found = np.array([[0 if text == "·" else int(text) for text in row] for row in rows])
    np.testing.assert_array_equal(found, content.evaluation.confusion())
    shades = [
        [cell.attributes["class"] or "" for cell in row.all("td")] for row in table.all("tbody")[0].all("tr")
    ]
    for i, row in enumerate(shades):
        for j, shade in enumerate(row):
            assert ("right" in shade) == (i == j) and shade.endswith("0") == (found[i, j] == 0)


def test_pairs_and_classes():
    content = contents.imagenet()
    root = tree(contents.imagenet)
    pairs = body(captioned(root, "Most confused pairs"))
    wanted = content.evaluation.pairs(wrong=True)[: confusion.PAIRS]
    assert [int(row["images"].text) for row in pairs] == [n for _, _, n in wanted]
    assert pairs[0]["true class"].text == content.label(wanted[0][0])
    assert not [t for t in root.all("caption") if t.text == "Confusion"]
    classes = body(captioned(root, "Errors of each class"))
    assert len(classes) == 1000 and len(body(captioned(root, "Worst classes"))) == confusion.WORST
    rates = [float(row["top-1 error"].attributes["data-v"] or "") for row in classes]
    assert rates == sorted(rates, reverse=True)
    assert sum(int(row["errors"].text) for row in classes) == content.evaluation.top1.count


def test_classes_of_the_same_name_are_told_apart():
    content = contents.imagenet()
    assert [content.label(i) for i in (0, 1, 5)] == [
        "crane (n00000000)", "crane (n00000001)", "some animal 5, Latinus nomen 5"
    ]  # fmt: skip
    assert content.label(-1) == "no class (NaN)"


def test_the_most_wrong_images_are_shown():
    content = contents.digits()
    shown = tree(contents.digits).all("ul", class_="wrongs")[0].all("li")
    worst = content.evaluation.worst(SHOWN, content.split.name)
    assert len(shown) == len(worst) == content.evaluation.top1.count < SHOWN
    for item, wrong in zip(shown, worst):
        (img,) = item.all("img")
        np.testing.assert_array_equal(decoded(img), content.split.pixels[wrong.index, ..., 0])  # type: ignore[attr-defined]
        assert img.attributes["alt"] == f"{wrong.label}, taken for {wrong.predicted}"
        assert f"taken for {wrong.predicted} {100 * wrong.probability:.2f} %" in item.text
        assert f"{wrong.label} {100 * np.exp(-wrong.loss):.2f} %" in item.text and wrong.name in item.text


def test_an_image_that_is_gone_says_so():
    items = tree(contents.imagenet).all("ul", class_="wrongs")[0].all("li")
    assert len(items) == SHOWN
    gone = [item for item in items if not item.all("img")]
    assert 0 < len(gone) < SHOWN and all("cannot be read any more" in item.text for item in gone)


def test_left_out_images_are_named():
    root = tree(contents.imagenet)
    assert len(body(captioned(root, "Images left out"))) == 200 and "and 100 more" in root.text
    assert not [h for h in tree(contents.digits).all("h2") if h.text == "Images left out"]


# ---------------------------------------------------------------------------------------------------
# Pictures and curves
# ---------------------------------------------------------------------------------------------------
def test_filters_have_a_scale_each():
    weights = np.zeros((3, 3, 2, 2))
    weights[0, 0, 0, 0], weights[0, 1, 1, 1] = (
        0.5,
        -0.25,
    )  # red, and less green
    weights[1] = -7.0
    picture = pictures.filters(weights, columns=2)
    assert picture.shape == (5, 5, 4) and picture.dtype == np.uint8
    np.testing.assert_array_equal(picture[0, 0], [255, 128, 128, 255])
    np.testing.assert_array_equal(picture[1, 1], [128, 64, 128, 255])
    np.testing.assert_array_equal(picture[:2, 3:5], np.broadcast_to([0, 0, 0, 255], (2, 2, 4)))
    np.testing.assert_array_equal(picture[3:5, :2], np.broadcast_to([128, 128, 128, 255], (2, 2, 4)))
    assert not picture[2].any() and not picture[:, 2].any() and not picture[3:, 3:].any()


@pytest.mark.parametrize(("count", "columns"), [(96, 16), (64, 16), (32, 8), (97, 14), (1, 1), (3, 3)])
def test_filters_fill_their_rows(count, columns):
    assert pictures.filters(np.ones((count, 1, 3, 3))).shape[1] == columns * 4 - 1


def test_large_images_are_jpegs():
    rows = np.zeros((80, 80, 3), np.uint8)
    rows[..., 0] = np.arange(80)
    assert 'src="data:image/jpeg;' in pictures.image(rows, "")
    (img,) = Tree(pictures.image(rows, '"><b>')).root.all("img")
    assert np.abs(decoded(img).astype(int) - rows).max() < 12 and img.attributes["alt"] == '"><b>'


def test_curves_have_their_points():
    figures = {f.all("title")[0].text: f for f in tree(contents.digits).all("figure", class_="chart")}
    titles = [t.text for t in figures["Errors"].all("title")[1:]]
    assert len(titles) == 3 * 14 and titles[::14] == [
        "training, top-1, epoch 1: 63.3", "validation, top-1, epoch 1: 56.5", "validation, top-5, epoch 1: 12"
    ]  # fmt: skip
    legend = [li.text for li in figures["Loss"].all("li")]
    assert legend == ["training, each step", "training", "validation"]
    paths = [
        p.attributes["d"] or ""
        for p in figures["Errors"].all("path", class_="curve")
        if "L" in (p.attributes["d"] or "")
    ]
    heights = [float(y) for y in re.findall(r" ([\d.]+)", paths[-1])]
    assert len(heights) == 14 and heights == sorted(heights)  # errors fall: down is larger in SVG
    rows = body(captioned(tree(contents.digits), "Each epoch"))
    assert len(rows) == 14 and rows[13]["validation error"].text == f"{2 + 70 * np.exp(-3.5):.2f} %"
    assert rows[0]["seconds"].text == "–"


def test_curves_leave_out_what_is_not_finite():
    log = {"epoch": np.arange(3.0), "loss": np.array([1.0, np.nan, 0.0])}
    assert curves.column(log, "epoch", "loss") == [(0, 1), (2, 0)]
    assert curves.column(log, "epoch", "error") == []
    assert "d=" in curves.curves(Content("", *_least(), epochs=log))
    assert "no log" in curves.curves(Content("", *_least()))


def _least() -> tuple[Any, ...]:
    content = contents.least()
    return content.evaluation, content.split, content.classes, content.names


def test_points_are_averaged():
    points = [(float(i), float(i % 2)) for i in range(1000)]
    found = curves.averaged(points, 300)
    assert len(found) == 250 and found[0] == (1.5, 0.5)
    assert curves.averaged(points[:5], 300) == points[:5]


# ---------------------------------------------------------------------------------------------------
# The page
# ---------------------------------------------------------------------------------------------------
def test_names_make_no_element():
    root = tree(contents.imagenet)
    assert not root.all("script") and {i.attributes.get("class") for i in root.all("img")} <= {None, "sharp"}
    assert not [k for e in every(root) for k in e.attributes if k.startswith("on") or k == "style"]
    assert root.text.count("<script>alert(1)</script>") > 100  # and yet it can be read


def test_the_page_asks_for_nothing_from_outside():
    text = text_of(contents.digits)
    bare = re.sub(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/=]*", "data:", text)
    assert not re.search(r"https?:|[\"'(]//|@import|srcset|url\(|<script", bare)
    assert set(re.findall(r'src="([^"]*)"', bare)) == {"data:"}
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy.startswith("default-src &#x27;none&#x27;;") and "unsafe" not in policy
    assert "script-src" not in policy


def test_every_colour_is_there():
    text = text_of(contents.digits)
    used = set(re.findall(r"var\(--([a-z0-9]+)\)", text)) - {"c"}
    assert all(text.count(f"--{name}:") == 4 for name in used)  # light, dark, chosen dark, on paper


@pytest.mark.parametrize("dark", [False, True])
def test_shades_go_from_the_ground_on(dark):
    found = confusion.colours(dark)
    assert len(found) == 2 * (confusion.SHADES + 1)
    assert found["right0"] == found["wrong0"] != found["right1"]


def test_the_page_is_of_a_sane_size():
    assert len(text_of(contents.digits)) < 100_000
    assert len(text_of(contents.imagenet)) < 700_000


def test_writing(tmp_path: Path):
    path = write(contents.least(), tmp_path / "page.html")
    assert path.read_text(encoding="utf-8") == text_of(contents.least)
    with pytest.raises(OptionError, match="cannot write"):
        write(contents.least(), tmp_path / "no" / "page.html")
