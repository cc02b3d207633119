"""The built book as a reader sees it, in a real browser, from loopback: nothing is fetched from anywhere else."""

from __future__ import annotations

import functools
import http.server
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

sync_api = pytest.importorskip("playwright.sync_api")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
#: Of the theme: it declares this twice when a page can be launched; nothing of ours depends on it.
KNOWN = ("'THEBE_JS_URL' has already been declared", "net::ERR_FAILED")  # what was asked of another host has its own test
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]


@dataclass
class Visit:
    """What one page showed and asked for."""

    name: str
    complaints: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    headings: list[str] = field(default_factory=list)
    figures: list[dict[str, Any]] = field(default_factory=list)
    text: str = ""
    overflow_px: int = 0
    wide: list[str] = field(default_factory=list)


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def address(built: Any) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, directory=str(built.checkout.html)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def visits(built: Any, address: str) -> list[Visit]:
    """Every page of the book, opened once at the width of a screen and measured at the width of a phone."""
    html: Path = built.checkout.html
    found = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        for path in sorted((html / "book").rglob("*.html")):
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            found.append(_visit(page, address, path.relative_to(html).as_posix()))
            page.close()
        browser.close()
    return found


def _visit(page: Any, address: str, name: str) -> Visit:
    visit = Visit(name)

    def route(asked: Any) -> None:
        url = asked.request.url
        if url.startswith((address, "data:", "blob:")):
            asked.continue_()
        else:
            visit.elsewhere.append(url)
            asked.abort()

    page.route("**/*", route)
    page.on("console", lambda message: visit.complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: visit.complaints.append(str(error)))
    page.goto(f"{address}/{name}", wait_until="load")
    visit.headings = page.locator("article h1:visible").all_inner_texts()
    visit.text = page.locator("article").first.inner_text()
    page.evaluate("document.querySelectorAll('img').forEach(i => i.loading = 'eager')")
    page.wait_for_function("[...document.querySelectorAll('article img')].every(i => i.complete)")
    visit.figures = page.evaluate("[...document.querySelectorAll('article img')].map(i => ({alt: i.alt, width: i.naturalWidth}))")
    page.set_viewport_size({"width": 360, "height": 740})
    visit.overflow_px = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    visit.wide = page.evaluate(
        "[...document.querySelectorAll('article *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1)"
        ".slice(0, 5).map(e => e.tagName + '.' + e.className)"
    )
    return visit


def test_every_page_is_visited(visits: list[Visit]) -> None:
    names = {v.name for v in visits}
    assert {"book/index.html", "book/here/this-machine.html", "book/devices/dgx-spark.html"} <= names


def test_no_page_asks_another_host_for_anything(visits: list[Visit]) -> None:
    assert {v.name: v.elsewhere for v in visits if v.elsewhere} == {}


def test_no_page_complains_to_the_console(visits: list[Visit]) -> None:
    ours = {v.name: [c for c in v.complaints if not any(known in c for known in KNOWN)] for v in visits}
    assert {name: complaints for name, complaints in ours.items() if complaints} == {}


def test_every_page_has_one_title(visits: list[Visit]) -> None:
    assert {v.name: v.headings for v in visits if len(v.headings) != 1 or not v.headings[0].strip(" #")} == {}


def test_every_figure_is_there_and_described(visits: list[Visit]) -> None:
    assert {v.name: f for v in visits for f in v.figures if len(f["alt"]) < 30 or f["width"] < 100} == {}


@pytest.mark.parametrize("name", ["book/here/this-machine.html", "book/here/probe.html", "book/here/fit.html", "book/devices/dgx-spark.html"])
def test_the_pages_that_have_figures_show_them(name: str, visits: list[Visit]) -> None:
    (visit,) = [v for v in visits if v.name == name]
    assert visit.figures


def test_no_page_shows_an_error_or_a_number_that_is_none(visits: list[Visit]) -> None:
    bad = re.compile(r"Traceback|\bnan\b|\binf\b|\bNone\b|\bNaT\b|Error:")
    assert {v.name: bad.findall(v.text) for v in visits if bad.search(v.text)} == {}


def test_no_page_shows_where_it_was_built(visits: list[Visit], built: Any) -> None:
    private = [str(built.checkout.root), str(built.checkout.home), str(Path.home()) + "/"]
    assert {v.name: word for v in visits for word in private if word in v.text} == {}


def test_a_phone_scrolls_tables_not_pages(visits: list[Visit]) -> None:
    assert {v.name: (v.overflow_px, v.wide) for v in visits if v.overflow_px > 0} == {}
