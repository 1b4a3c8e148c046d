"""The report in a real browser: Chromium without a window, driven by Selenium.

Where there is none, the tests are skipped with the reason; in CI they fail.
"""

from __future__ import annotations

import itertools
from typing import Any

import chromium
import pytest
import synthetic_capsules as synthetic

from convkit.bench.results import files
from convkit.bench.show import caveats, charts, report

pytestmark = pytest.mark.xdist_group("browser")  # one browser, not one in each worker
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def cpu() -> dict[str, Any]:
    return synthetic.cpu()


@pytest.fixture(scope="module")
def gpu() -> dict[str, Any]:
    return synthetic.gpu()


class Browser(chromium.Browser):
    """A browser at a report."""

    def open(
        self, *documents: dict[str, Any], width: int = 1280, dark: bool = False, media: str = ""
    ) -> None:
        """A new page; messages of the ones before are gone."""
        self.show(report.write(documents, self.folder / "page.html"), width, dark, media)

    def column(self, head: str, table: str = "table.overview") -> list[str]:
        """The texts of a column, as they are shown."""
        script = """
            const table = document.querySelector(arguments[0]);
            const heads = [...table.tHead.rows[0].cells].map(c => c.textContent);
            const rows = [...table.tBodies[0].rows].filter(r => r.offsetParent !== null);
            return rows.map(r => r.cells[heads.indexOf(arguments[1])].textContent);"""
        return self.run(script, table, head)

    def head(self, text: str) -> Any:
        (found,) = (b for b in self.all("table.overview thead button") if b.text.split(" ↕")[0] == text)
        return found


@pytest.fixture(scope="module")
def browser(chromium_browser: chromium.Browser) -> Browser:
    return Browser(chromium_browser.driver, chromium_browser.folder)


@pytest.mark.parametrize("make", [synthetic.cpu, synthetic.hostile, synthetic.empty])
def test_browser_is_silent_and_asks_for_nothing(browser: Browser, make: Any) -> None:
    browser.open(make())
    browser.open_details()
    browser.settle()
    requests = browser.requests()
    assert requests and all(url.startswith(("file://", "data:")) for url in requests), requests
    assert len([url for url in requests if url.startswith("file:")]) == 1
    assert browser.messages() == []
    assert browser.run("return document.images.length") == 0


def test_browser_sorts_by_click(browser: Browser, cpu: dict[str, Any]) -> None:
    browser.open(cpu)
    times = [own["median_ms"] for row in cpu["rows"] if (own := charts.own(row))]
    missing = len(cpu["rows"]) - len(times)
    assert missing == 1
    shown = lambda: [float(t.split()[0]) for t in browser.column("ms") if t != "–"]  # noqa: E731
    assert shown() != sorted(shown())
    browser.head("ms").click()
    assert shown() == sorted(shown()) and browser.column("ms")[-missing:] == ["–"] * missing
    head = browser.one("table.overview th[aria-sort]")
    assert head.get_attribute("aria-sort") == "ascending" and head.text.startswith("ms")
    head.find_element("css selector", "button").click()
    assert shown() == sorted(shown(), reverse=True) and browser.column("ms")[-missing:] == ["–"] * missing
    assert head.get_attribute("aria-sort") == "descending"
    browser.head("row").click()
    assert browser.column("row") == sorted(browser.column("row"))
    assert len(browser.all("table.overview th[aria-sort]")) == 1
    assert browser.messages() == []


def test_browser_sorts_by_keyboard(browser: Browser, cpu: dict[str, Any]) -> None:
    browser.open(cpu)
    tab = "\ue004"
    for _ in range(40):  # from the top of the page, as far as the header of the first column of numbers
        browser.keys(tab)
        if browser.run("return document.activeElement.textContent") == "ratio":
            break
    else:
        pytest.fail("the header cannot be reached by the Tab key")
    outline = browser.run("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    browser.keys("\ue007")  # Enter
    found = [float(t.split("×")[0]) for t in browser.column("ratio") if t != "–"]
    assert found == sorted(found)
    browser.keys(" ")
    assert [float(t.split("×")[0]) for t in browser.column("ratio") if t != "–"] == found[::-1]
    assert browser.run("return document.activeElement.textContent") == "ratio"


def test_browser_filters(browser: Browser, cpu: dict[str, Any], gpu: dict[str, Any]) -> None:
    browser.open(cpu, gpu)
    total = len(cpu["rows"]) + len(gpu["rows"])
    rows = lambda: len([e for e in browser.all("table.overview tbody tr") if e.is_displayed()])  # noqa: E731

    def choose(name: str, text: str) -> None:
        (option,) = (o for o in browser.all(f"#filter-{name} option") if o.text == text)
        option.click()

    assert rows() == total and f"{total} of {total} rows" in browser.one("#shown").text
    choose("layer", "conv2")
    wanted = sum(row["layer"] == "conv2" for d in (cpu, gpu) for row in d["rows"])
    assert rows() == wanted and browser.one("#shown").text == f"{wanted} of {total} rows"
    choose("direction", "dgrad")
    assert rows() == 1 and browser.column("row") == ["conv2 dgrad"]
    assert [d.text.split(" ▲")[0] for d in browser.all("details.row") if d.is_displayed()] == ["conv2 dgrad"]
    assert len([g for g in browser.all(".group") if g.is_displayed()]) == 1
    names = [t for t in browser.all("#c1 .plane .name") if t.is_displayed()]
    assert all(t.text == "conv2 dgrad" for t in names)
    tiles = {e.get_attribute("data-count"): e.text for e in browser.all("#c1 .tiles .big")}
    assert tiles == {"win": "1", "tie": "0", "loss": "0", "no verdict": "0"}
    browser.one("#filters button[type=reset]").click()
    assert rows() == total

    choose("library", "JAX")
    assert rows() == sum(any(c["library"] == "JAX" for c in row["contenders"]) for row in cpu["rows"])
    browser.run("document.querySelector('#c1-0').open = true")
    shown = [e.text.split("\n")[0] for e in browser.all("#c1-0 table tbody th") if e.is_displayed()]
    assert [name.split()[0] for name in shown] == ["winograd", "direct", "jax"]
    assert not [e for e in browser.all("#c1 .plane use.s1") if e.is_displayed()]
    browser.one("#filters button[type=reset]").click()
    choose("verdict", "loss")
    assert rows() == sum(caveats.outcome(row) == "loss" for d in (cpu, gpu) for row in d["rows"])
    assert browser.messages() == []


def test_browser_changes_the_theme(browser: Browser, cpu: dict[str, Any]) -> None:
    ground = lambda: browser.run("return getComputedStyle(document.body).backgroundColor")  # noqa: E731
    rgb = lambda colour: "rgb({}, {}, {})".format(*(int(colour[i : i + 2], 16) for i in (1, 3, 5)))  # noqa: E731
    light, dark = rgb(charts.LIGHT["bg"]), rgb(charts.DARK["bg"])
    for system in (False, True):
        browser.open(cpu, dark=system)
        browser.run("localStorage.clear()")
        browser.open(cpu, dark=system)
        button = browser.one("#theme")
        first, second = (dark, light) if system else (light, dark)
        assert ground() == first and button.get_attribute("aria-pressed") == str(system).lower()
        button.click()
        assert ground() == second and button.get_attribute("aria-pressed") == str(not system).lower()
        browser.open(cpu, dark=system)
        assert ground() == second, "the choice is forgotten"
        browser.open(cpu, dark=system, media="print")
        assert ground() == light, "paper is light"
    browser.run("localStorage.clear()")
    assert browser.messages() == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_browser_shows_texts_with_contrast(
    browser: Browser, cpu: dict[str, Any], gpu: dict[str, Any], dark: bool
) -> None:
    browser.open({**cpu, "digest": "0" * 64}, gpu, dark=dark)
    browser.open_details()
    found = browser.contrasts()
    assert len(found) > 1000
    assert not [f for f in found if f[0] < 4.5]


@pytest.mark.parametrize(
    "make",
    [
        synthetic.cpu,
        pytest.param(synthetic.gpu, marks=slow),
        synthetic.hostile,
        pytest.param(synthetic.empty, marks=slow),
    ],
)
def test_browser_never_scrolls_the_page_sideways(browser: Browser, make: Any) -> None:
    for width in (360, 700, 1280):
        browser.open(make(), width=width)
        browser.open_details()
        wide = browser.run("return document.documentElement.scrollWidth")
        assert wide <= width
        assert not browser.beyond()


@pytest.mark.parametrize(
    "make",
    [synthetic.cpu, pytest.param(synthetic.gpu, marks=slow), pytest.param(synthetic.hundred, marks=slow)],
)
def test_browser_shows_labels_that_do_not_overlap(browser: Browser, make: Any) -> None:
    browser.open(make())
    for chart in ("c1-roofline", "c1-accuracy"):
        found = browser.run("""
            const svg = document.querySelector(`[aria-labelledby^="${arguments[0]}"]`);
            const of = (r) => [r.left, r.top, r.right, r.bottom];
            const box = (e) => of(e.getBoundingClientRect());
            return [box(svg), [...svg.querySelectorAll('text')].map(box)];""", chart)  # fmt: skip
        (left, top, right, bottom), texts = found
        assert len(texts) > 12
        for box in texts:
            assert box[0] >= left - 1 and box[1] >= top - 1 and box[2] <= right + 1 and box[3] <= bottom + 1
        shrink = [(a + 1, b + 2, c - 1, d - 2) for a, b, c, d in texts]
        for a, b in itertools.combinations(shrink, 2):
            assert a[0] >= b[2] or b[0] >= a[2] or a[1] >= b[3] or b[1] >= a[3]


@slow
def test_browser_opens_the_row_that_a_link_names(browser: Browser, cpu: dict[str, Any]) -> None:
    browser.open(cpu)
    details = browser.one("#c1-3")
    assert details.get_attribute("open") is None
    browser.one("table.overview a[href='#c1-3']").click()
    browser.wait(lambda: details.get_attribute("open") is not None)
    table = details.find_element("css selector", "table")
    assert table.is_displayed()
    button = browser.one(".open-all")
    button.click()
    assert all(d.get_attribute("open") is not None for d in browser.all("details.row"))
    button.click()
    assert not any(d.get_attribute("open") is not None for d in browser.all("details.row"))


@slow
def test_browser_saves_a_capsule_that_verifies(browser: Browser, cpu: dict[str, Any]) -> None:
    browser.open(cpu)
    browser.devtools("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(browser.folder))
    browser.one(".save").click()
    path = browser.folder / "results.json"
    browser.wait(lambda: path.exists() and path.read_text().endswith("}"))
    found = files.load(path)
    assert files.digest(found) == found["digest"] == cpu["digest"]


def test_browser_shows_all_without_scripts(browser: Browser, cpu: dict[str, Any]) -> None:
    try:
        browser.devtools("Emulation.setScriptExecutionDisabled", value=True)
        browser.open(cpu)
        image = browser.devtools("Page.captureScreenshot", format="png")
        assert len(image["data"]) > 10000
        nodes = browser.devtools("DOM.getDocument", depth=0)
        root = nodes["root"]["nodeId"]

        def size(selector: str) -> float:
            node = browser.devtools("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
            try:
                return browser.devtools("DOM.getBoxModel", nodeId=node)["model"]["height"]
            except Exception:  # it says "could not compute box model" of what is not displayed
                return 0

        for selector in ("table.overview tbody tr", ".bars .group", ".plane", "details.row summary"):
            assert size(selector) > 10, selector
        for selector in ("#filters", "#theme", ".save"):
            assert size(selector) == 0, selector
    finally:
        browser.devtools("Emulation.setScriptExecutionDisabled", value=False)


@slow
def test_browser_prints_every_row(browser: Browser, cpu: dict[str, Any]) -> None:
    browser.open(cpu)
    printed = browser.devtools("Page.printToPDF", preferCSSPageSize=True)
    assert len(printed["data"]) > 50000
    browser.run("dispatchEvent(new Event('beforeprint'))")
    assert all(d.get_attribute("open") is not None for d in browser.all("details.row"))
    browser.run("dispatchEvent(new Event('afterprint'))")
    assert not any(d.get_attribute("open") is not None for d in browser.all("details.row"))


def test_browser_names_charts_and_tables(browser: Browser, cpu: dict[str, Any]) -> None:
    browser.open(cpu)
    tree_ = browser.devtools("Accessibility.getFullAXTree")["nodes"]

    def named(role: str) -> list[str]:
        return [n["name"]["value"] for n in tree_ if n["role"].get("value") == role and not n["ignored"]]

    assert any(name.startswith("Roofline") for name in named("image"))
    assert any(name.startswith("Accuracy against speed") for name in named("image"))
    assert "Every row" in named("table")
    assert {"Layer", "Direction", "Library", "Verdict"} <= set(named("combobox"))
    assert all(named("button"))
    levels = [int(h.tag_name[1]) for h in browser.all("h1, h2, h3")]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in itertools.pairwise(levels))
