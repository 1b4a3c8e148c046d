"""Chromium without a window, driven by Selenium: for the tests that look at our pages in a real browser."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


class Browser:
    """Chromium, without a window, at a page of ours."""

    def __init__(self, driver: Any, folder: Path) -> None:
        self.driver, self.folder = driver, folder

    def show(self, path: Path, width: int = 1280, dark: bool = False, media: str = "") -> None:
        """Another page; messages of the ones before are gone."""
        self.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.devtools("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.driver.get_log("browser"), self.driver.get_log("performance")
        self.driver.get(path.as_uri())

    def settle(self) -> None:
        """Wait until the page has drawn all, and done what it had put off: no task of its own is left."""
        self.driver.execute_async_script("""
            const done = arguments[arguments.length - 1];
            requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done)));""")

    def wait(self, what: Any) -> Any:
        """What a function returns, as soon as that is true; a minute ends it."""
        from selenium.webdriver.support.wait import WebDriverWait

        return WebDriverWait(self.driver, 60, 0.05).until(lambda driver: what())

    def devtools(self, command: str, **arguments: Any) -> Any:
        return self.driver.execute_cdp_cmd(command, arguments)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def open_details(self) -> None:
        self.run("for (const d of document.querySelectorAll('details')) d.open = true")

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def one(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def messages(self) -> list[str]:
        return [record["message"] for record in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        events = [json.loads(record["message"])["message"] for record in self.driver.get_log("performance")]
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]

    def keys(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def contrasts(self) -> list[tuple[float, str, str]]:
        """Of each text that is shown: its contrast with what is behind it, and where it is."""
        return self.run(_CONTRAST)

    def beyond(self) -> list[str]:
        """What reaches beyond the right edge, but for what is in a box that scrolls."""
        return self.run("""
            const kept = '.scroll, .definitions, .skip, script, svg';
            const out = (e) => e.getClientRects().length && e.getBoundingClientRect().right > innerWidth + 1;
            const found = [...document.querySelectorAll('body *')].filter((e) => !e.closest(kept) && out(e));
            return found.map((e) => e.outerHTML.slice(0, 100));""")


def started(folder: Path) -> Iterator[Browser]:
    """A browser, until the generator goes on. Where there is none the test is skipped; in CI it fails."""
    found = _find()
    if isinstance(found, str):
        if os.environ.get("CI"):
            pytest.fail(f"CI must have a browser: {found}")
        pytest.skip(found)
    if not os.environ.get("CI"):
        pytest.importorskip("selenium")
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = found[0]
    # Neither containers nor root let it have its sandbox; it opens files of these tests alone.
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--hide-scrollbars",
    ):
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(found[1]))
    yield Browser(driver, folder)
    driver.quit()


def _find() -> tuple[str, str] | str:
    """Chromium and its driver, or what is missing."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    chrome = next(filter(None, map(shutil.which, names)), None)
    driver = shutil.which("chromedriver")
    if not chrome or not driver:
        missing = "chromedriver" if chrome else "Chromium"
        return f"no {missing} (Debian: apt-get install chromium chromium-driver)"
    return chrome, driver


_CONTRAST = """
const channel = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
const parse = (text) => text.match(/[\\d.]+/g).map(Number);
const behind = (e) => {
  for (; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] === 1) return c;
    if (c[3] !== 0) throw new Error("a ground that shines through");
  }
  throw new Error("no ground");
};
const found = [];
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const e = walk.currentNode.parentElement;
  if (!walk.currentNode.textContent.trim() || !e.getClientRects().length) continue;
  if (["SCRIPT", "OPTION"].includes(e.tagName)) continue;
  const style = getComputedStyle(e);
  const colour = parse(e instanceof SVGElement ? style.fill : style.color);
  const [a, b] = [light(colour), light(behind(e))].sort((x, y) => y - x);
  found.push([(a + 0.05) / (b + 0.05), walk.currentNode.textContent.slice(0, 40), e.outerHTML.slice(0, 80)]);
}
return found;
"""
