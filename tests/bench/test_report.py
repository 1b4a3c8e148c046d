"""The report: what it says is what the result file says. A browser shows it in test_report_browser.py."""

from __future__ import annotations

import copy
import itertools
import json
import math
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic_capsules as synthetic
from hypothesis import given
from hypothesis import strategies as st
from page_tree import Element, Tree, body, captioned, columns, every

from convkit.bench.results import figures, files
from convkit.bench.show import caveats, charts, report
from convkit.bench.show.page.markup import data, escaped, tag
from convkit.errors import OptionError


def tree(*documents: dict[str, Any]) -> Element:
    return Tree(report.page(documents)).root


@pytest.fixture(scope="module")
def cpu() -> dict[str, Any]:
    return synthetic.cpu()


@pytest.fixture(scope="module")
def gpu() -> dict[str, Any]:
    return synthetic.gpu()


# ---------------------------------------------------------------------------------------------------
# What the page says
# ---------------------------------------------------------------------------------------------------
def near(cell: Element, value: float | None) -> None:
    """A cell has a figure exactly, and shows it in three digits or so; or it shows that there is none."""
    if value is None:
        assert cell.text == "–" and "data-v" not in cell.attributes
        return
    assert float(cell.attributes["data-v"] or "nan") == value
    shown = float(re.split(r"[ ×\[]", cell.text)[0].replace(",", ""))
    assert shown == pytest.approx(value, rel=0.02 if "%" not in cell.text else 0.2, abs=0.06)


def interval(cell: Element) -> list[float]:
    """What stands in its brackets."""
    return [float(v.replace(",", "")) for v in cell.text.partition("[")[2].partition("]")[0].split(", ")]


@pytest.mark.parametrize("which", ["cpu", "gpu"])
def test_tables_have_the_capsules_figures(which: str, request: pytest.FixtureRequest) -> None:
    document = request.getfixturevalue(which)
    page = tree(document)
    lines = body(captioned(page, "Every row"))
    assert len(lines) == len(document["rows"])
    for row, label, line in zip(document["rows"], charts.labels(document["rows"]), lines):
        own, best = charts.own(row), row["ranking"]["against"].get("best")
        assert line["row"].text == label
        near(line["ms"], own and own["median_ms"])
        near(line["GFLOP/s"], own and own["gflops"])
        near(line["ratio"], best and best["ratio"])
        assert line["verdict"].text.split()[-1] == (best["verdict"] if best else "peer" if own else "timed")
        if best:
            assert interval(line["ratio"]) == pytest.approx([best["low"], best["high"]], rel=0.01)
            assert best["name"] in line["best of the others"].text

        entries = {c["name"]: c for c in row["contenders"]}
        table = body(captioned(page, f"Entries, {label}"))
        assert len(table) == len(entries)
        for record in table:
            name = record["entry"].all("span")[0].text
            c = entries.pop(name)
            timed = figures.timed(c)
            for column, key in (
                ("ms", "median_ms"),
                ("GFLOP/s", "gflops"),
                ("GB/s", "gbs"),
                ("% of ceiling", "percent"),
            ):
                near(record[column], c[key] if timed else None)
            if timed:
                assert interval(record["ms"]) == pytest.approx([c["low_ms"], c["high_ms"]], rel=0.01)
            near(record["error"], c["error"])
            assert c["library"] in record["library"].text
            assert all(
                f"{key}: {value}" in record["facts"].text
                for key, value in c["facts"].items()
                if key == "engine"
            )
            assert all(mark in record["entry"].text for mark in c["marks"])
            assert (f"refused: {c['refused']}" in record["entry"].text) == bool(c["refused"])
            assert ("yes" in record["same bits twice"].text) == (c["deterministic"] is True)
            if c["workspace_bytes"]:
                near_mb = float(record["workspace"].text.split()[0])
                assert near_mb == pytest.approx(c["workspace_bytes"] / 1e6, rel=0.01)
        assert not entries


def test_a_entry_carries_the_capsules_verdict_against_it(gpu: dict[str, Any]) -> None:
    page = tree(gpu)
    for row, label in zip(gpu["rows"], charts.labels(gpu["rows"])):
        verdicts = {v["name"]: v for key, v in row["ranking"]["against"].items() if v and key != "convkit"}
        for record in body(captioned(page, f"Entries, {label}")):
            name, text = record["entry"].all("span")[0].text, record["convkit's pick against it"].text
            if name in verdicts:
                assert verdicts[name]["verdict"] in text
            else:
                assert text in ("–", "the pick")


def test_the_hosts_time_is_a_column_where_it_is_known(cpu: dict[str, Any], gpu: dict[str, Any]) -> None:
    made = copy.deepcopy(gpu)
    row = made["rows"][0]
    for number, c in enumerate(row["contenders"]):
        c["host_us"] = 1234.5 * number if figures.timed(c) else None
    waits = next(c for c in row["contenders"] if c["library"] == "PyTorch")
    waits["marks"].append("host included")
    page = tree(made)
    label, other = charts.labels(made["rows"])[:2]
    table = captioned(page, f"Entries, {label}")
    assert columns(table)[3:5] == ["ms", "host µs"]
    entries = {c["name"]: c for c in row["contenders"]}
    for record in body(table):
        c = entries[record["entry"].all("span")[0].text]
        near(record["host µs"], c["host_us"])
        near(record["ms"], c["median_ms"])
        doubts = [mark.text for mark in record["entry"].all("span", class_="doubt")]
        assert ("host included" in doubts) == (c is waits)
    assert "waits for the GPU inside its call" in page.text
    for unknown in (captioned(page, f"Entries, {other}"), *tree(cpu).all("table")):
        assert "host µs" not in columns(unknown) if unknown.all("thead") else True


def test_wins_are_counted_from_the_verdicts(cpu: dict[str, Any], gpu: dict[str, Any]) -> None:
    page = tree(cpu, gpu)
    for document, tiles in zip((cpu, gpu), page.all("ul", class_="tiles")):
        best = [row["ranking"]["against"].get("best") for row in document["rows"]]
        found = Counter(v["verdict"] if v else "no verdict" for v in best)
        shown = {n.attributes["data-count"]: int(n.text) for n in tiles.all("span", class_="big")}
        assert shown == {word: found[word] for word in ("win", "tie", "loss", "no verdict")}
        assert sum(shown.values()) == len(document["rows"])


def test_verdicts_are_words_and_shapes(cpu: dict[str, Any]) -> None:
    page = tree(cpu)
    for word, shape in charts.VERDICTS.items():
        found = [v for v in page.all("span", class_="verdict") if v.has("class_", word)]
        assert found and all(v.text == f"{shape} {word}" for v in found)
    assert len(set(charts.VERDICTS.values())) == 3


def test_bars_have_the_ratio_and_its_interval(gpu: dict[str, Any]) -> None:
    (figure,) = (d for d in tree(gpu).all("div", class_="bars") if d.all("div", class_="group"))
    groups = figure.all("div", class_="group")
    assert len(groups) == len(gpu["rows"])
    for row, group in zip(gpu["rows"], groups):
        lines = group.all("div", class_="line")
        found = charts.bars(row)
        assert len(lines) == len(found) >= 2
        assert {b.name for b in found} == {
            v["name"] for k, v in row["ranking"]["against"].items() if v and k != "convkit"
        }
        for b, line in zip(found, lines):
            (value,) = line.all("span", class_="value")
            assert float(value.text.split("×")[0]) == pytest.approx(b.ratio, rel=0.01)
            assert interval(value) == pytest.approx([b.low, b.high], rel=0.01)
            assert value.text.endswith(b.verdict) and b.name in line.text


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({}, None),
        ({"interrupted": True}, "Interrupted"),
        ({"rows": []}, "Empty"),
        ({"missing": {"jax": "not installed here"}}, "jax did not take part"),
        ({"conditions": [{"t": 0, "row": "x", "others": 0.5}]}, "Disturbed"),
        ({"conditions": [{"t": 0, "row": "x", "throttle": ["power cap"]}]}, "Throttled"),
        ({"convkit": {"version": "1", "commit": "a", "dirty": True}}, "Changed checkout"),
        ({"failures": [{"row": "a", "contender": None, "reason": "no memory"}]}, "Failures"),
        ({"machine": {"device": "emulator", "name": "E"}}, "Emulated"),
        ({"kernels": {"a/b": {"file": "b.cu", "status": synthetic.UNRUN}}}, "Not yet run on a GPU"),
        ({"settings": {"rounds": 6, "cache": "cold", "quick": True}}, "Quick"),
    ],
)
def test_what_must_be_said_is_said_first(change: dict[str, Any], word: str | None) -> None:
    clean = synthetic.row("conv1", "fwd", [synthetic.entry(random.Random(0), "a", "convkit", 4.0)])
    document = files.sealed({**synthetic.document([clean]), **change})
    (notices,) = tree(document).all("ul", class_="notices")
    words = [n.text.rstrip(": ") for n in notices.all("strong")]
    assert (word in words) if word else not words


def test_an_unchecked_row_says_so_everywhere(cpu: dict[str, Any]) -> None:
    page = tree(cpu)
    (number,) = (i for i, row in enumerate(cpu["rows"]) if caveats.is_unchecked(row))
    label = charts.labels(cpu["rows"])[number]
    (notices,) = page.all("ul", class_="notices")
    assert f"not compared with float64: {label}." in notices.text
    assert "unchecked" in body(captioned(page, "Every row"))[number]["convkit's pick"].text
    record = body(captioned(page, f"Entries, {label}"))[0]
    assert "unchecked" in record["entry"].text and "unchecked" in record["checks"].text
    for other in body(captioned(page, "Entries, conv1 fwd")):
        assert "unchecked" not in other["checks"].text


def test_too_few_rounds_are_said() -> None:
    chance = random.Random(0)
    own = synthetic.entry(chance, "a", "convkit", 4.0, rounds=8, marks=("picked",))
    peer = synthetic.entry(chance, "b", "PyTorch", 12.0, rounds=5)
    document = synthetic.document([synthetic.row("conv1", "fwd", [own, peer])])
    page = tree(document)
    assert "Few rounds: fewer than 6" in page.all("ul", class_="notices")[0].text
    assert "in only 5 rounds" in page.all("ul", class_="sentences")[0].text
    assert page.all("span", class_="verdict")[-1].text == "◆ tie"


def test_a_failed_check_is_not_called_passed(cpu: dict[str, Any]) -> None:
    document = copy.deepcopy(cpu)
    document["rows"][0]["contenders"][1]["checks"] = {
        "before": "passed",
        "during": "unchecked",
        "after": "dw differs",
    }
    record = next(
        e
        for e in body(captioned(tree(document), "Entries, conv1 fwd"))
        if e["entry"].text.startswith("direct")
    )
    assert "after: dw differs" in record["checks"].text and "unchecked during" in record["checks"].text
    assert "passed" not in record["checks"].text


def test_a_changed_capsule_is_called_changed(cpu: dict[str, Any]) -> None:
    changed = copy.deepcopy(cpu)
    changed["rows"][0]["ranking"]["against"]["best"]["verdict"] = "loss"
    unsigned = {**cpu, "digest": ""}
    for document, state, words in (
        (cpu, "match", "The digest matches"),
        (changed, "mismatch", "Believe no figure here"),
        (unsigned, "missing", "nothing shows that this result file is as it was written"),
    ):
        assert caveats.digest_state(document) == state
        assert words in tree(document).text
    assert "Believe no figure" not in tree(cpu).text


def test_conditions_machine_and_ceilings_are_there(gpu: dict[str, Any]) -> None:
    page = tree(gpu)
    clocks = [c["sm_mhz"] for c in gpu["conditions"]]
    record = next(
        e for e in body(captioned(page, "Conditions during the rounds")) if e["what"].text == "SM clock"
    )
    assert [float(record[k].attributes["data-v"] or 0) for k in ("lowest", "median", "highest")] == [
        min(clocks), float(np.median(clocks)), max(clocks),
    ]  # fmt: skip
    assert "740,000 GFLOP/s" in captioned(page, "Ceilings").text
    assert "9.0" in captioned(page, "Machine").text and "52.4 MB" in captioned(page, "Machine").text
    assert "cold" in captioned(page, "Settings").text
    kernels = {e["kernel"].text: e["status"].text for e in body(captioned(page, "Kernels"))}
    assert kernels == {"conv2d_fprop/implicit_gemm": "run", "conv2d_fprop/sliding": "not yet run on a GPU"}


def test_several_capsules_stand_on_one_page(cpu: dict[str, Any], gpu: dict[str, Any]) -> None:
    page = tree(cpu, gpu, cpu)
    assert [s.attributes["id"] for s in page.all("section", class_="results")] == ["c1", "c2", "c3"]
    ids = [e.attributes["id"] for e in every(page) if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    targets = {a.attributes["href"] for a in page.all("a")}
    assert {"#c1", "#c2", "#c3", "#main"} <= targets
    assert targets <= {f"#{i}" for i in ids}


def test_an_empty_run_still_makes_a_page() -> None:
    page = tree(synthetic.empty())
    assert "nothing was measured" in page.text and "torch did not take part" in page.text
    assert not page.all("figure")


def test_labels_tell_rows_apart(gpu: dict[str, Any]) -> None:
    labels = charts.labels(gpu["rows"])
    assert len(set(labels)) == len(labels) and labels[0] == "conv2 fwd N=1 bfloat16"
    twins = [{**gpu["rows"][0], "id": "one"}, {**gpu["rows"][0], "id": "two"}]
    assert charts.labels(twins) == ["one", "two"]
    assert charts.labels(gpu["rows"][:1]) == ["conv2 fwd"]
    fused = [{**gpu["rows"][0], "op": "a"}, {**gpu["rows"][0], "op": "b"}]
    assert charts.labels(fused) == ["conv2 fwd a", "conv2 fwd b"]


# ---------------------------------------------------------------------------------------------------
# The page as a file
# ---------------------------------------------------------------------------------------------------
def test_the_page_gives_its_capsules_back(tmp_path: Path, cpu: dict[str, Any], gpu: dict[str, Any]) -> None:
    path = report.write([cpu, gpu, synthetic.hostile()], tmp_path / "r.html")
    found = report.read(path)
    assert found == [cpu, gpu, synthetic.hostile()]
    assert all(files.digest(d) == d["digest"] for d in found)
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]


def test_texts_of_a_capsule_make_no_element() -> None:
    page = tree(synthetic.hostile())
    assert not page.all("img") and not page.all("b")
    scripts = page.all("script")
    assert [s.attributes.get("type") for s in scripts] == ["application/json", None]
    plain = report.page([synthetic.cpu()])
    names = {e.name for e in every(page)} - {"li", "p"}
    assert names <= {e.name for e in every(Tree(plain).root)} | {"code"}
    handlers = [k for e in every(page) for k in e.attributes if k.startswith("on") or k == "style"]
    assert not handlers
    assert synthetic.HOSTILE in page.text  # and yet it can be read


def test_markup_escapes_all_but_markup() -> None:
    assert tag("p", "<b>", class_='"') == '<p class="&quot;">&lt;b&gt;</p>'
    assert tag("p", tag("br"), None, ["a", ["&"]]) == "<p><br>a&amp;</p>"
    assert escaped("a\x00\ud800b") == "a\ufffd\ufffdb"
    assert json.loads(data({"a": "</script><!-- \u2028"})) == {"a": "</script><!-- \u2028"}
    assert not set("<>&\u2028") & set(data({"a": "</script><!-- & \u2028"}))


def test_the_page_asks_for_nothing_from_outside(cpu: dict[str, Any]) -> None:
    text = report.page([cpu])
    assert not re.search(r"https?:|[\"'(]//|@import|src\s*=|srcset|url\((?!#h)|fetch\(|XMLHttpRequest", text)
    targets = set(re.findall(r'href="([^"]*)"', text))
    assert {t for t in targets if not t.startswith("#")} == {"data:,"}
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy.startswith("default-src &#x27;none&#x27;;") and "unsafe" not in policy


@pytest.mark.parametrize(
    ("make", "most"), [(synthetic.cpu, 0.5e6), (synthetic.gpu, 1.2e6), (synthetic.hundred, 3e6)]
)
def test_the_page_is_of_a_sane_size(make: Any, most: float) -> None:
    document = make()
    size = len(report.page([document]).encode())
    assert len(json.dumps(document, separators=(",", ":"))) < size < most


def test_write_refuses_what_makes_no_page(tmp_path: Path, cpu: dict[str, Any]) -> None:
    old = tmp_path / "r.html"
    old.write_text("old")
    for capsules, path, words in (
        ([], old, "needs a result file"),
        ([{**cpu, "rows": [{"id": "x"}]}], old, "damaged result file: KeyError"),
        ([{**cpu, "rows": [{**cpu["rows"][0], "contenders": "no list"}]}], old, "damaged result file"),
        ([cpu], tmp_path / "none" / "r.html", "there is no folder"),
        ([cpu], tmp_path, "it is a folder"),
    ):
        with pytest.raises(OptionError, match=words) as caught:
            report.write(capsules, path)
        assert "\n" not in str(caught.value)
    assert old.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["r.html"]
    with pytest.raises(OptionError, match="no report of convkit"):
        report.read(old)
    with pytest.raises(OptionError, match="cannot read"):
        report.read(tmp_path / "absent.html")


def test_values_that_json_lacks_do_not_pass_for_the_capsules_own(cpu: dict[str, Any]) -> None:
    document = copy.deepcopy(cpu)
    document["rows"][0]["contenders"][2]["error"] = math.nan
    assert caveats.digest_state(document) == "mismatch"
    assert "nan" not in "".join(
        e["error"].text for e in body(captioned(tree(document), "Entries, conv1 fwd"))
    )


def test_nothing_heavy_is_imported() -> None:
    heavy = {"matplotlib", "torch", "jax", "onnxruntime", "cupy", "PIL", "scipy"}
    code = (
        "import sys, convkit.bench.show.report, convkit.bench.show.pictures; print(*sys.modules, sep='\\n')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = set(run.stdout.split())
    assert "convkit.bench.show.pictures" in found and not heavy & found


# ---------------------------------------------------------------------------------------------------
# Colours, scales, labels
# ---------------------------------------------------------------------------------------------------
def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    bright, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("colours", [charts.LIGHT, charts.DARK], ids=["light", "dark"])
def test_colours_have_enough_contrast(colours: dict[str, str]) -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for ground in ("bg", "panel", "warn", "bad"):
        assert contrast(colours["text"], colours[ground]) >= 4.5
    for ground in ("bg", "panel"):
        for word in ("muted", "link", "win", "loss", "tie"):
            assert contrast(colours[word], colours[ground]) >= 4.5, word
        for shape in ("control", *(f"s{i}" for i in range(len(charts.SHAPES)))):
            assert contrast(colours[shape], colours[ground]) >= 3, shape


def test_the_page_has_these_colours() -> None:
    text = report.page([synthetic.empty()])
    for colours in (charts.LIGHT, charts.DARK):
        assert all(f"--{name}:{value};" in text for name, value in colours.items())
    used = set(re.findall(r"var\(--([a-z0-9]+)\)", text)) - {"c"}
    assert used == set(charts.LIGHT) == set(charts.DARK)


def test_libraries_differ_in_more_than_colour(cpu: dict[str, Any]) -> None:
    assert len(set(charts.SHAPES)) == len(set(charts.HATCHES)) == len(charts.SHAPES)
    found = charts.styles([cpu, synthetic.hostile()])
    assert found["convkit"] == 0 and found["PyTorch"] == 1 and len(set(found.values())) == len(found)


@given(
    low=st.floats(1e-9, 1e9), factor=st.floats(1.0, 1e8), least=st.sampled_from([1.05, 1.5, 10.0]),
    most=st.integers(4, 10),
)  # fmt: skip
def test_ticks_are_inside_few_and_told_apart(low: float, factor: float, least: float, most: int) -> None:
    scale = charts.Scale.over([low, low * factor], pad=1.05, least=least)
    ticks = scale.ticks(most)
    assert 2 <= len(ticks) <= most + 1
    assert ticks == sorted(ticks) and all(scale.low * 0.999 <= t <= scale.high * 1.001 for t in ticks)
    texts = [charts.number(t) for t in ticks]
    assert len(set(texts)) == len(texts)
    assert 0 <= scale.at(low) < scale.at(low * factor) <= 1 or factor == 1


def test_scales_without_values() -> None:
    assert charts.Scale.over([]) == charts.Scale(0.1, 10.0)
    assert charts.Scale.over([0.0, -1.0, math.inf]) == charts.Scale(0.1, 10.0)


boxes = st.tuples(st.floats(0, 400), st.floats(0, 300))


@given(st.lists(boxes, max_size=12), st.lists(boxes, max_size=12))
def test_labels_touch_nothing(anchors: list[tuple[float, float]], points: list[tuple[float, float]]) -> None:
    frame = (0.0, 0.0, 400.0, 300.0)
    obstacles = [(x - 5, y - 5, x + 5, y + 5) for x, y in (*points, *anchors)]
    places = charts.place(anchors, [(60.0, 14.0)] * len(anchors), obstacles, frame)
    found = [(x - 30, y - 7, x + 30, y + 7) for x, y in filter(None, places)]
    for a, b in itertools.chain(itertools.combinations(found, 2), itertools.product(found, obstacles)):
        assert a[0] >= b[2] or b[0] >= a[2] or a[1] >= b[3] or b[1] >= a[3]
    assert all(f[0] >= 0 and f[1] >= 0 and f[2] <= 400 and f[3] <= 300 for f in found)
    if len(anchors) == 1 and not points and 120 < anchors[0][0] < 280:
        assert places[0] is not None


def test_samples_keep_their_extremes() -> None:
    record = {"samples_ms": [[float(i) for i in range(1, 500)], [1000.0, 0.5]]}
    found = charts.samples(record, 50)
    assert len(found) == 50 and found[0] == 0.5 and found[-1] == 1000.0 and found == sorted(found)
    assert charts.samples({"samples_ms": []}) == []
    assert charts.quantile([1.0, 2.0, 4.0], 0.5) == 2.0 and charts.quantile([1.0, 2.0], 0.25) == 1.25


@pytest.mark.parametrize(("value", "text"), [
    (0, "0"), (1, "1"), (1234.5, "1,234"), (0.02, "0.02"), (2e-7, "2e-7"), (1.5e-5, "1.5e-5"), (20, "20"),
    (100, "100"),
])  # fmt: skip
def test_numbers_are_short(value: float, text: str) -> None:
    assert charts.number(value) == text
