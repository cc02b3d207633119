"""The built book as a reader sees it, in a real browser, from loopback: nothing is fetched from anywhere else."""

from __future__ import annotations

import csv
import functools
import http.server
import io
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urlsplit

import numpy as np
import pytest
from PIL import Image

from contrast import faint

sync_api = pytest.importorskip("playwright.sync_api")

pytestmark = pytest.mark.usefixtures("browser")
#: What the browser says of a host; the one that was asked for has its own test.
KNOWN = "net::ERR_NAME_NOT_RESOLVED"
#: Where a session of tests leaves what the book points to elsewhere, for whoever wants to try it.
EXTERNAL = Path(__file__).resolve().parents[2] / "_build" / "nbutils" / "external-links.txt"

#: Words of the page whose colour is too near the ground they stand on: WCAG's contrast, 4.5 to 1.
FAINT = faint("article :is(p, li, td, th, a:not(.headerlink), code, summary, .dt-info, label)")
WIDE = """() => [...document.querySelectorAll('article *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1)
  .slice(0, 5).map(e => e.tagName + '.' + e.className)"""


@dataclass
class Visit:
    """What one page showed and asked for."""

    name: str
    complaints: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    headings: list[str] = field(default_factory=list)
    figures: list[dict[str, Any]] = field(default_factory=list)
    undescribed: list[str] = field(default_factory=list)
    computed: int = 0
    text: str = ""
    links: list[str] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    overflow: dict[tuple[int, str], Any] = field(default_factory=dict)
    faint: dict[str, list[str]] = field(default_factory=dict)


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
def visits(built: Any, address: str, browser: Any) -> list[Visit]:
    """Every page of the book, opened once and seen at the widths of a screen and of a phone, light and dark."""
    html: Path = built.checkout.html
    # The calculator allows no style but its own, and _look adds one.
    page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light", bypass_csp=True)
    found: list[Visit] = []
    _watch(page, address, lambda: found[-1])
    for path in sorted((html / "book").rglob("*.html")):
        found.append(Visit(path.relative_to(html).as_posix()))
        _look(page, address, found[-1])
    page.close()
    return found


def _watch(page: Any, home: str, visit: Callable[[], Visit]) -> None:
    """Keep what the page complains about and what it asks of others."""
    page.on("request", lambda asked: visit().elsewhere.append(asked.url) if not asked.url.startswith((home, "data:", "blob:")) else None)
    page.on("console", lambda message: visit().complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: visit().complaints.append(str(error)))


def _look(page: Any, address: str, visit: Visit) -> None:
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto(f"{address}/{visit.name}", wait_until="load")
    visit.headings = page.locator("article h1:visible").all_inner_texts()
    visit.text = page.locator("article").first.inner_text()
    page.evaluate("document.querySelectorAll('img').forEach(i => i.loading = 'eager')")
    page.wait_for_function("[...document.querySelectorAll('article img')].every(i => i.complete)")
    visit.figures = page.evaluate("[...document.querySelectorAll('article img')].map(i => ({alt: i.alt, width: i.naturalWidth, src: i.src}))")
    visit.undescribed = page.evaluate("[...document.images].filter(i => !i.hasAttribute('alt')).map(i => i.src)")
    visit.computed = page.locator("article .cell_output :is(table, img)").count()
    visit.links = page.evaluate("[...document.querySelectorAll('a[href]')].map(a => a.href)")
    visit.ids = set(page.evaluate("[...document.querySelectorAll('[id], a[name]')].map(e => e.id || e.name)"))
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    page.add_style_tag(content="* { transition: none !important }")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_function("scheme => document.documentElement.dataset.theme === scheme", arg=scheme)
        visit.faint[scheme] = page.evaluate(FAINT)
        for width in (1280, 360):
            page.set_viewport_size({"width": width, "height": 740})
            over = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            if over > 0:
                visit.overflow[width, scheme] = (over, page.evaluate(WIDE))


# ── every page ────────────────────────────────────────────────────────────────────────────────────


def test_every_page_is_visited(visits: list[Visit]) -> None:
    names = {v.name for v in visits}
    assert {"book/index.html", "book/here/this-machine.html", "book/devices/dgx-spark.html"} <= names


def test_no_page_asks_another_host_for_anything(visits: list[Visit]) -> None:
    assert {v.name: v.elsewhere for v in visits if v.elsewhere} == {}


def test_no_page_complains_to_the_console(visits: list[Visit]) -> None:
    ours = {v.name: [c for c in v.complaints if KNOWN not in c] for v in visits}
    assert {name: complaints for name, complaints in ours.items() if complaints} == {}


def test_every_page_has_one_title(visits: list[Visit]) -> None:
    assert {v.name: v.headings for v in visits if len(v.headings) != 1 or not v.headings[0].strip(" #")} == {}


def test_every_figure_is_there_and_described(visits: list[Visit]) -> None:
    assert {v.name: f for v in visits for f in v.figures if len(f["alt"]) < 30 or f["width"] < 100} == {}
    assert {v.name: v.undescribed for v in visits if v.undescribed} == {}


def test_every_figure_is_drawn_in_vectors(visits: list[Visit]) -> None:
    assert {v.name: f["src"] for v in visits for f in v.figures if not f["src"].endswith(".svg")} == {}


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
    assert {v.name: v.overflow for v in visits if v.overflow} == {}


def test_words_stand_out_from_their_ground_light_and_dark(visits: list[Visit]) -> None:
    assert {(v.name, scheme): words for v in visits for scheme, words in v.faint.items() if words} == {}


# ── links ─────────────────────────────────────────────────────────────────────────────────────────


def test_every_link_within_the_book_leads_somewhere(visits: list[Visit], built: Any, address: str) -> None:
    html: Path = built.checkout.html
    ids = {v.name: v.ids for v in visits}
    dead = set()
    for visit in visits:
        for url in visit.links:
            if not url.startswith(f"{address}/"):
                continue
            target, fragment = urldefrag(url)
            name = unquote(urlsplit(target).path).lstrip("/") or "index.html"
            # A question in the calculator's address is no anchor.
            anchor = "" if name == "book/calculator.html" and "=" in fragment else unquote(fragment)
            if not (html / name).is_file() or (anchor and name in ids and anchor not in ids[name]):
                dead.add((visit.name, url.removeprefix(address)))
    assert dead == set()


def test_links_out_of_the_book_are_addresses_and_are_listed(visits: list[Visit], address: str) -> None:
    pages: dict[str, set[str]] = {}
    for visit in visits:
        for url in visit.links:
            if not url.startswith((f"{address}/", "javascript:void")):
                pages.setdefault(url, set()).add(visit.name)
    assert [url for url in pages if not re.match(r"https?://[\w.-]+\.\w+(:\d+)?(/|$)", url)] == []
    EXTERNAL.parent.mkdir(parents=True, exist_ok=True)
    EXTERNAL.write_text("".join(f"{url}\t{', '.join(sorted(on))}\n" for url, on in sorted(pages.items())), encoding="utf-8")


def test_every_computed_page_says_how_and_hands_out_its_notebook(visits: list[Visit], built: Any, address: str) -> None:
    for visit in visits:
        if "/here/" not in visit.name and "/devices/" not in visit.name:
            continue
        assert "How was this computed?" in visit.text, visit.name
        assert re.search(r"By notebooks/\w+\.ipynb", visit.text), visit.name
        assert any(url.startswith(address) and url.endswith(".ipynb") for url in visit.links), visit.name


def test_chapters_hand_out_the_notebook_that_was_run(visits: list[Visit], built: Any) -> None:
    (visit,) = [v for v in visits if v.name == "book/moe-vs-dense.html"]
    assert any(url.endswith("_sources/book/moe-vs-dense.ipynb") for url in visit.links)
    assert "output_type" in (built.checkout.html / "_sources" / "book" / "moe-vs-dense.ipynb").read_text(encoding="utf-8")


def test_every_page_that_shows_data_hands_them_out(visits: list[Visit]) -> None:
    assert [v.name for v in visits if v.computed and not any(url.endswith(".csv") for url in v.links)] == []


def test_data_of_pages_are_files_that_a_spreadsheet_reads(visits: list[Visit], built: Any) -> None:
    files = {urlsplit(url).path.lstrip("/") for v in visits for url in v.links if urlsplit(url).path.endswith(".csv")}
    assert files, "no page hands out its data"
    for name in files:
        header, *rows = csv.reader(io.StringIO((built.checkout.html / name).read_text(encoding="utf-8")))
        assert rows, name
        assert {len(row) for row in rows} == {len(header)}, name
    assert not [v.name for v in visits for url in v.links if url.startswith("data:")], "written as files, not carried in the page"


# ── what links to the book show ───────────────────────────────────────────────────────────────────


def test_a_link_to_a_page_shows_its_title_and_a_picture(built: Any) -> None:
    html: Path = built.checkout.html
    for path in sorted((html / "book").rglob("*.html")):
        head = path.read_text(encoding="utf-8").split("</head>")[0]
        told = dict(re.findall(r'<meta property="og:(\w+)" content="([^"]*)"', head))
        assert told["title"], path.name
        assert 20 < len(told["description"]) <= 210, path.name
        with Image.open(html / told["image"]) as picture:
            assert picture.format == "PNG", path.name
            assert picture.width >= 1.2 * picture.height, path.name
        assert 'rel="icon"' in head, path.name


# ── figures and long tables ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_figure_stands_on_the_page_s_own_ground(scheme: str, address: str, browser: Any) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
    page.goto(f"{address}/book/devices/dgx-spark.html", wait_until="load")
    figure = page.locator("article img").first
    figure.scroll_into_view_if_needed()
    page.wait_for_function("[...document.querySelectorAll('article img')].every(i => i.complete)")
    ground = page.evaluate("getComputedStyle(document.querySelector('.bd-main')).backgroundColor || ''")
    ground = ground if "0, 0, 0, 0" not in ground else page.evaluate("getComputedStyle(document.body).backgroundColor")
    with Image.open(io.BytesIO(figure.screenshot())) as picture:
        pixels = picture.convert("RGB")
    page.close()
    wanted = tuple(int(part) for part in re.findall(r"\d+", ground)[:3])
    assert max(abs(a - b) for a, b in zip(pixels.getpixel((2, 2)), wanted, strict=True)) <= 2
    values = np.asarray(pixels)
    farthest = values.max() if scheme == "dark" else 255 - values.min(axis=2).min()
    assert farthest > 150, "letters stand out from the ground"


def test_a_long_table_sorts_and_filters(address: str, browser: Any) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(f"{address}/book/devices/dgx-spark.html", wait_until="load")
    box = page.locator(".dt-container:visible").last
    table = box.locator("table")
    rows = table.locator("tbody tr")
    before = rows.count()
    assert before > 20
    table.locator("th").first.click()
    sync_api.expect(table.locator("th").first).to_have_attribute("aria-sort", "ascending")
    first = [text.strip() for text in table.locator("tbody tr td:first-child").all_inner_texts()]
    assert first == page.evaluate("texts => texts.sort((a, b) => a.localeCompare(b, undefined, {numeric: true}))", first)
    word = rows.first.locator("td").first.inner_text()
    box.locator(".dt-search input").fill(word)
    sync_api.expect(rows).not_to_have_count(before)
    assert rows.count() > 0
    assert all(part in text.lower() for text in rows.all_inner_texts() for part in word.lower().split())
    page.close()


def test_numbers_sort_as_numbers_and_unknowns_come_last(browser: Any, built: Any) -> None:
    page = browser.new_page()
    cells = ["9.5", "1,200", "–", "37.6*"]
    body = "".join(f"<tr><td>{c}</td><td>&lt;img src=x onerror=document.title=1&gt;</td></tr>" for c in cells)
    page.set_content(f'<table class="long"><thead><tr><th>n</th><th>t</th></tr></thead><tbody>{body}</tbody></table>')
    for name in ("datatables.js", "long-tables.js"):
        page.add_script_tag(path=built.checkout.html / "_static" / name)
    column = page.locator("tbody tr td:first-child")
    page.locator("th").first.click()
    sync_api.expect(column).to_have_text(["1,200", "37.6*", "9.5", "–"])
    page.locator("th").first.click()
    sync_api.expect(column).to_have_text(["9.5", "37.6*", "1,200", "–"])
    assert page.locator("tbody img").count() == 0, "what was escaped stays text"
    page.close()


def test_without_javascript_a_long_table_is_a_table(address: str, browser: Any) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{address}/book/devices/dgx-spark.html", wait_until="load")
    assert page.locator("article table.long:visible").last.locator("tbody tr").count() > 20
    assert page.locator(".dt-search").count() == 0
    context.close()


def test_a_book_on_disk_reads_like_one_on_a_server(built: Any, browser: Any) -> None:
    """Opened as a file, which is what ``nbutils book`` names at its end."""
    page = browser.new_page()
    visit = Visit("from disk")
    home = built.checkout.html.as_uri()
    _watch(page, home, lambda: visit)
    page.goto(f"{home}/book/devices/dgx-spark.html", wait_until="load")
    assert page.locator(".dt-search").count() > 0
    assert visit.complaints == visit.elsewhere == []
    page.close()
