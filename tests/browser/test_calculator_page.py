"""The calculator as a person uses it: choose, type, tab, reload, share, go offline. The page is made alone, without the book around it."""

from __future__ import annotations

import base64
import functools
import hashlib
import html as html_entities
import http.server
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jinja2
import pytest
from sphinx.errors import ExtensionError

from contrast import faint
from nbutils import calculator, frames_predict, places, registry
from nbutils.tensors import variant

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "book" / "_extensions"))

import calculator as page_maker  # noqa: E402

sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect

MOST_BYTES = 300_000
CHAPTER = """<section id="calculator">
<h1>Calculator<a class="headerlink" href="#calculator">#</a></h1><p>What it answers.</p><section id="assumed"><h2>What it assumes</h2></section>
</section><script>kernelName = 'python3'</script>"""


@functools.cache
def its_data() -> str:
    return calculator.to_json(calculator.data())


def made(data: str, body: str = CHAPTER) -> str:
    """The page as Sphinx would write it, with links that lead nowhere."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(ROOT / "book" / "_templates"), undefined=jinja2.StrictUndefined)
    around = {"title": "Calculator", "project": "The book", "metatags": "", "pageurl": "", "root_doc": "index", "pathto": "{}.html".format}
    return environment.get_template("calculator.html").render(calculator=page_maker.parts(data, body), **around)


# ── how the page is made ──────────────────────────────────────────────────────────────────────────


def test_data_that_could_end_the_element_that_carries_them_stop_the_build() -> None:
    assert "<" not in calculator.to_json({"name": "</script><script>alert(1)</script><!-- Ü"})
    with pytest.raises(ExtensionError, match="to_json"):
        page_maker.parts('{"name": "</script>"}', "")


def test_the_chapter_becomes_a_part_of_the_page_and_brings_no_script() -> None:
    about = page_maker.parts(its_data(), CHAPTER)["body"]
    assert "<h1" not in about
    assert "<script" not in about
    assert "<h3>What it assumes</h3>" in about


@pytest.mark.parametrize("text", ["a = '</script>'", "b = '<!-- '", "c = '</STYLE>'"])
def test_a_script_that_would_end_its_element_stops_the_build(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.js").write_text(text, encoding="utf-8")
    with pytest.raises(ExtensionError, match=r"x\.js"):
        page_maker._script(tmp_path / "x.js")


def test_the_policy_names_every_script_and_style_of_the_page_and_nothing_else() -> None:
    page = made(its_data())
    policy = html_entities.unescape(page.split('Content-Security-Policy" content="')[1].split('"')[0])
    inline = re.findall(r"<(script|style)>(.*?)</\1>", page, re.DOTALL)
    digests = {base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for _, text in inline}
    assert set(re.findall(r"'sha256-([^']+)'", policy)) == digests
    assert policy.startswith("default-src 'none'; ")
    assert not re.search(r"unsafe|https?:|\*|data:(?<!img-src data:)", policy)


def test_the_page_is_small_and_names_no_other_file() -> None:
    page = made(its_data())
    assert len(page.encode()) < MOST_BYTES
    assert "sourceMappingURL" not in page
    assert not re.search(r"<(?:script|img|iframe|link)[^>]*(?:src|href)=[\"'](?!data:)", page)


def test_what_others_wrote_is_what_they_published() -> None:
    """The sums of the README; a file that somebody edits is no longer the library's."""
    folder = ROOT / "book" / "calculator" / "vendor"
    sums = dict(re.findall(r"^\| `([^`]+)` \|.*\| `([0-9a-f]{64})` \|$", (folder / "README.md").read_text(encoding="utf-8"), re.MULTILINE))
    files = {path.name for path in folder.iterdir() if path.name != "README.md"}
    assert set(sums) == files
    # A checkout on Windows may have other ends of lines.
    assert {name: hashlib.sha256((folder / name).read_bytes().replace(b"\r\n", b"\n")).hexdigest() for name in sums} == sums


# ── a browser that watches ────────────────────────────────────────────────────────────────────────


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    (folder / "calculator.html").write_text(made(its_data()), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/calculator.html"
    server.shutdown()
    server.server_close()


Visit = Callable[..., Any]


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Visit]:
    """Opens the page with something behind its address. At the end no visit may have asked for anything else, complained, or asked the reader."""
    contexts: list[Any] = []
    asked: list[str] = []
    complaints: list[str] = []

    def dismiss(dialog: Any) -> None:
        complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def go(behind: str = "", at: str = address, **options: Any) -> Any:
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce"} | options))
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("request", lambda request: asked.append(request.url.split("#")[0]))
        page.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", dismiss)
        page.goto(at + behind, wait_until="load")
        return page

    yield go
    for context in contexts:
        context.close()
    assert complaints == []
    assert [url for url in asked if not url.split("?")[0].endswith("/calculator.html")] == []


def verdict(page: Any) -> Any:
    return page.locator("#verdict")


def choose(page: Any, label: str, words: str) -> None:
    """As one does it: click, type, take the first of the list."""
    field = page.get_by_role("combobox", name=label, exact=True)
    field.click()
    field.press_sequentially(words)
    field.press("Enter")


def settled(page: Any) -> None:
    """The address follows what is typed a moment later."""
    page.wait_for_timeout(250)


def behind(page: Any) -> str:
    return str(page.evaluate("location.hash"))


# ── the first view, and what it says ──────────────────────────────────────────────────────────────


def test_the_first_view_answers_a_question_with_the_figures_of_nbutils(visit: Visit) -> None:
    page = visit()
    (spark,) = places.find("dgx-spark")
    stored = variant(registry.load_model("llama-3.3-70b"), registry.load_format("Q4_K_M"))
    (expected,) = frames_predict.expected_of([(stored, spark, 4096)])
    expect(verdict(page)).to_contain_text("It fits")
    expect(page.get_by_role("region", name="Writing (decode)")).to_contain_text(f"{expected['expected_tok_per_s']:,.1f} tok/s expected")
    expect(page.get_by_role("region", name="It fits")).to_contain_text(f"takes {_total(stored, spark) / 1e9:,.2f} GB")
    assert behind(page) == "", "the address stays clean until something is chosen"


def _total(stored: Any, place: Any) -> int:
    from nbutils import frames

    cache = registry.load_cache_type("llama.cpp", "f16")
    return frames.budget_of(stored, place, n_ctx=8192, cache=cache, compute=frames.kept_compute(stored, 8192)).total_bytes


def test_every_number_opens_into_its_arithmetic(visit: Visit) -> None:
    page = visit()
    for title, line in (("The memory, line by line", "KV cache"), ("Decode, line by line", "weights read"), ("Energy and money", "energy")):
        page.locator("summary", has_text=title).click()
        expect(page.get_by_role("rowheader", name=line, exact=True).first).to_be_visible()
    rows = page.locator("details", has_text="The memory, line by line").locator("tbody tr")
    expect(rows.filter(has_text="weights").first).to_contain_text("42,512,531,712")
    assert page.evaluate("[...document.querySelectorAll('[open] .scroll')].filter((e) => e.scrollWidth > e.clientWidth).length") == 0, (
        "units are in sight"
    )


# ── choosing and typing ───────────────────────────────────────────────────────────────────────────


def test_a_model_and_a_machine_are_found_by_words_and_the_answer_follows_at_once(visit: Visit) -> None:
    page = visit()
    field = page.get_by_role("combobox", name="Machine", exact=True)
    field.click()
    everything = page.locator("#place-list [role=option]").count()
    field.press_sequentially("4090 nv")
    expect(page.locator("#place-list [role=option]")).to_have_count(1)
    assert everything > 50
    page.get_by_role("option", name="RTX 4090").click()
    expect(verdict(page)).to_contain_text("It does not fit")
    choose(page, "Model", "qwen3 30b")
    expect(verdict(page)).to_contain_text("It fits")
    expect(field).to_have_value(re.compile("RTX 4090"))


def found_in(page: Any, label: str, words: str) -> list[str]:
    """Names that a list offers for what is typed."""
    field = page.get_by_role("combobox", name=label, exact=True)
    field.fill(words)
    names: list[str] = page.locator(f"#{field.get_attribute('id')}-list [role=option] > span").all_inner_texts()
    field.press("Escape")
    return names


def test_typing_finds_the_starts_of_words_and_what_people_call_it(visit: Visit) -> None:
    page = visit()
    sizes = found_in(page, "Machine", "24 GB")
    assert len(sizes) >= 5
    assert all(name.endswith(", 24 GB") for name in sizes), "240 GB/s is no 24 GB"
    assert found_in(page, "Machine", "4090 card") == ["RTX 4090, 24 GB"]
    for words in ("cpu", "ddr5", "pc"):
        assert found_in(page, "Machine", words) == ["My own machine …"], words
    assert found_in(page, "Machine", "3090") == ["RTX 3090, 24 GB", "My budget: 3,090 USD"], "a number may be either"
    assert found_in(page, "Machine", "$900") == ["My budget: 900 USD"]
    assert found_in(page, "Model", "r1") == ["DeepSeek-V3 671B"], "the registry says that it has the same shape"
    choose(page, "Machine", "2600 usd")
    expect(page.get_by_label("Budget", exact=True)).to_have_value("2,600")


def test_a_word_that_nothing_has_leaves_the_choice_as_it_was(visit: Visit) -> None:
    page = visit()
    field = page.get_by_role("combobox", name="Model", exact=True)
    field.click()
    field.press_sequentially("gpt-17")
    expect(page.get_by_text("Nothing here is called “gpt-17”.")).to_be_visible()
    field.press("Escape")
    expect(field).to_have_value("Llama 3.3 70B")
    field.press_sequentially("gemma")
    field.press("Escape")
    expect(field).to_have_value("Llama 3.3 70B")


def test_all_of_it_can_be_done_with_the_keyboard(visit: Visit) -> None:
    page = visit()
    page.locator("#model").focus()
    keyboard = page.keyboard
    keyboard.press("ArrowDown")
    expect(page.locator("#model")).to_have_attribute("aria-expanded", "true")
    keyboard.press("Home")
    first = page.locator("#model").get_attribute("aria-activedescendant")
    keyboard.press("End")
    last = page.locator("#model").get_attribute("aria-activedescendant")
    assert first == "model-0"
    assert last == f"model-{page.locator('#model-list [role=option]').count() - 1}"
    keyboard.press("Escape")
    expect(page.locator("#model")).to_have_attribute("aria-expanded", "false")
    keyboard.type("qwen3 32b")
    keyboard.press("Tab")
    expect(page.locator("#model")).to_have_value("Qwen3 32B")
    expect(page.locator("#format")).to_be_focused()
    keyboard.type("Q8")
    expect(page.locator("#format")).to_have_value("Q8_0")
    keyboard.press("Tab")
    keyboard.type("m4 max 128")
    keyboard.press("Tab")
    expect(page.locator("#place")).to_have_value("Mac Studio M4 Max 40c, 128 GB")
    expect(page.get_by_role("button", name="My own machine")).to_be_focused()
    keyboard.press("Tab")
    keyboard.press("Tab")
    expect(page.locator("#n_ctx")).to_be_focused()
    keyboard.type("32k")
    expect(page.get_by_role("region", name="It fits")).to_contain_text("32,768 tokens of context")
    page.locator("input[name=filled]:checked").focus()
    keyboard.press("ArrowRight")
    expect(page.get_by_role("region", name="Writing (decode)")).to_contain_text("32,768 tokens in the context")


def test_tab_goes_through_everything_in_the_order_of_the_page_and_shows_where_it_is(visit: Visit) -> None:
    page = visit()
    wanted = page.evaluate("""() => {
      const all = [...document.querySelectorAll('a[href], button, input, select, summary, [tabindex="0"]')];
      const seen = all.filter((e) => e.checkVisibility({visibilityProperty: true}) && !e.disabled && (e.type !== 'radio' || e.checked));
      seen.forEach((e, index) => e.dataset.order = index);
      return seen.length;
    }""")
    where = """() => {
      const e = document.activeElement;
      return [e.dataset.order, getComputedStyle(e).outlineStyle !== 'none', e.outerHTML.slice(0, 90)];
    }"""
    reached = []
    for _ in range(wanted):
        page.keyboard.press("Tab")
        order, outlined, element = page.evaluate(where)
        assert outlined, element
        reached.append(order)
    assert reached == [str(n) for n in range(wanted)]


@pytest.mark.parametrize(("typed", "means"), [("16384", "16,384"), ("16,384", "16,384"), ("16k", "16,384"), (" 16 K ", "16,384"), ("1_024", "1,024")])
def test_a_context_may_be_written_as_people_write_it(typed: str, means: str, visit: Visit) -> None:
    page = visit()
    page.get_by_label("Context", exact=True).fill(typed)
    expect(page.locator(".verdict")).to_contain_text(f"with {means} tokens of context")


def test_the_largest_context_is_one_click_away(visit: Visit) -> None:
    page = visit("#")
    choose(page, "Machine", "mac mini m4 pro 64")
    page.get_by_label("Context", exact=True).fill("131072")
    expect(verdict(page)).to_contain_text("It does not fit")
    page.locator(".ways button", has_text="tokens of context").click()
    expect(verdict(page)).not_to_contain_text("does not")
    page.get_by_label("Context", exact=True).fill("4096")
    page.get_by_role("button", name="Use it").click()
    expect(verdict(page)).to_contain_text("only just")


def test_what_does_not_fit_names_ways_out_and_each_of_them_fits(visit: Visit) -> None:
    tight = "#m=qwen3-32b&f=Q4_K_M&c=16384&p=rtx-3090/24gb"
    page = visit(tight)
    expect(verdict(page)).to_contain_text("It does not fit")
    ways = page.locator(".ways button").all_inner_texts()
    for words in ("q8_0 cache", "tokens of context", "the cheapest on sale"):
        assert any(words in way for way in ways), words
    for way in ways:
        page.locator(".ways button", has_text=way).click()
        expect(verdict(page)).not_to_contain_text("does not")
        settled(page)
        page.evaluate("link => { location.hash = link }", tight)
        expect(verdict(page)).to_contain_text("It does not fit")
    page.get_by_label("Context", exact=True).fill("4096")
    page.get_by_label("Format").select_option("F16")
    expect(page.locator(".ways button", has_text="Q4_K_M")).to_be_visible()
    page.evaluate("location.hash = '#m=llama-3.1-405b&p=rtx-3090/24gb'")
    expect(page.locator(".ways")).to_contain_text("nothing on sale with a known price holds it")


# ── a budget, a machine of one's own, the other way round ─────────────────────────────────────────


def test_a_budget_buys_the_fastest_machine_that_it_pays_for(visit: Visit) -> None:
    page = visit()
    page.get_by_role("button", name="My budget").click()
    budget = page.get_by_label("Budget", exact=True)
    budget.fill("$2,500")
    expect(verdict(page)).to_contain_text(re.compile(r"Ryzen AI Max\+ 395, 64 GB\s+USD 1,639.*It fits"))
    budget.fill("9000 USD")
    expect(verdict(page)).not_to_contain_text("Ryzen")
    expect(verdict(page)).to_contain_text("It fits")


def test_a_budget_that_buys_nothing_names_the_cheapest_that_holds_it(visit: Visit) -> None:
    page = visit()
    page.get_by_role("button", name="My budget").click()
    field = page.get_by_label("Budget", exact=True)
    best = calculator.cheapest(calculator.Query())
    assert best is not None
    field.fill("1.500")
    error = page.locator(".fields .problems .error")
    expect(error).to_contain_text(f"Nothing on sale for 1.5 USD holds it; the cheapest that does is {best['name']}, USD {best['price_usd']:,.0f}.")
    expect(page.locator(".instead")).to_contain_text("no answer")
    needed = page.get_by_role("region", name="The other way round")
    expect(needed).to_contain_text("or no machine can")
    expect(needed).not_to_contain_text("at any bandwidth")
    error.get_by_role("button", name="Use it").click()
    expect(field).to_have_value(f"{best['price_usd']:,.0f}")
    expect(verdict(page)).to_contain_text(best["name"])


def test_a_machine_of_one_s_own_begins_as_the_one_that_was_chosen(visit: Visit) -> None:
    page = visit()
    before = verdict(page).inner_text()
    choose(page, "Machine", "my own")
    expect(page.get_by_label("Memory as sold")).to_have_value("128")
    expect(page.get_by_label("Bandwidth")).to_have_value("273")
    for its_own in ("Dense FP16 peak", "Power", "Price"):
        expect(page.get_by_label(re.compile(f"^{its_own}"))).to_have_value("")
    money = page.get_by_role("region", name="A million tokens")
    expect(money).to_contain_text("no price and no power")
    page.get_by_label(re.compile("^Power")).fill("100 W")
    expect(money).to_contain_text("no price of")
    rate = page.get_by_role("region", name="Writing (decode)").locator(".figure")
    slow = rate.inner_text()
    page.get_by_label("Bandwidth").fill("546")
    expect(rate).not_to_have_text(slow)
    page.get_by_label("Memory as sold").fill("24")
    expect(verdict(page)).to_contain_text("It does not fit")
    assert before != verdict(page).inner_text()
    for module, gb_per_s in (("DDR4-3200", "51.2"), ("DDR5-5600", "89.6")):
        page.get_by_role("button", name=module).click()
        expect(page.get_by_label("Bandwidth")).to_have_value(gb_per_s)
    expect(page.get_by_label("Kind")).to_have_value("cpu")
    settled(page)
    page.reload()
    expect(page.get_by_label("Memory as sold")).to_have_value("24")
    expect(verdict(page)).to_contain_text("It does not fit")


def test_a_wanted_rate_is_turned_into_bandwidth_and_machines(visit: Visit) -> None:
    page = visit()
    section = page.get_by_role("region", name="The other way round")
    section.get_by_label("I want").fill("40")
    step = calculator_step("llama-3.3-70b", "Q4_K_M", 8192)
    expect(section).to_contain_text(f"{40 * step / 1e9:,.0f} GB/s")
    section.get_by_label("I want").fill("-3")
    expect(section.locator(".error")).to_be_visible()
    expect(verdict(page)).to_contain_text("It fits")
    section.get_by_label("I want").fill("10")
    section.locator(".chips button").first.click()
    expect(page.get_by_role("combobox", name="Machine", exact=True)).not_to_have_value(re.compile("DGX Spark"))


def calculator_step(model: str, fmt: str, depth: int) -> float:
    from nbutils import limits

    return limits.decode_step_bytes(variant(registry.load_model(model), registry.load_format(fmt)), depth=depth)


# ── every machine ─────────────────────────────────────────────────────────────────────────────────


def every_row(page: Any) -> Any:
    page.get_by_role("button", name=re.compile("^All .* configurations$")).click()
    return page


def column(page: Any, n: int) -> list[str]:
    return [re.split(r"[\s†‡]", text)[0] for text in page.locator(f".table tbody tr td:nth-child({n})").all_inner_texts()]


def test_the_table_sorts_by_its_headings_with_what_is_unknown_last(visit: Visit) -> None:
    page = every_row(visit())
    heading = page.get_by_role("columnheader", name="Price, USD")
    expect(page.locator("[aria-sort]")).to_have_count(0)
    for direction, reverse in (("ascending", False), ("descending", True)):
        heading.get_by_role("button").click()
        expect(heading).to_have_attribute("aria-sort", direction)
        prices = column(page, 8)
        numbers = [float(p.replace(",", "")) for p in prices if p != "–"]
        assert numbers == sorted(numbers, reverse=reverse)
        assert prices[len(numbers) :] == ["–"] * (len(prices) - len(numbers))
        assert len(numbers) >= 20


def test_the_name_of_a_machine_chooses_it_in_the_table_and_in_the_picture(visit: Visit) -> None:
    page = every_row(visit())
    page.locator(".table").get_by_role("button", name="Mac Studio M3 Ultra 80c, 512 GB").click()
    expect(page.get_by_role("combobox", name="Machine", exact=True)).to_have_value(re.compile("M3 Ultra.*512"))
    expect(page.locator(".table tr[aria-current]")).to_contain_text("512 GB")
    page.locator(".rows").get_by_role("button", name="B200").click()
    expect(page.get_by_role("combobox", name="Machine", exact=True)).to_have_value(re.compile("B200"))


def test_an_old_price_is_marked_wherever_it_stands(visit: Visit) -> None:
    spark = calculator.data()["places"]["dgx-spark/128gb"]
    assert spark["stale"]
    page = every_row(visit())
    expect(page.get_by_role("region", name="A million tokens")).to_contain_text(f"asked {spark['asked']}, stale")
    expect(page.get_by_role("row", name="DGX Spark, 128 GB").locator(".price")).to_contain_text("†")
    expect(page.locator(".notes")).to_contain_text("more than 90 days ago")
    expect(page.locator("#place-hint")).to_contain_text("(stale)")


def test_a_picture_of_nothing_has_no_axis(visit: Visit) -> None:
    page = visit("#m=llama-3.1-405b&f=F16&b=64")
    expect(page.locator(".compare")).to_contain_text("It fits on none of them.")
    expect(page.locator(".compare .scale")).to_have_count(0)


def test_what_does_not_fit_has_no_rate_and_can_be_left_out(visit: Visit) -> None:
    page = every_row(visit())
    rows = page.locator(".table tbody tr")
    before = rows.count()
    expect(page.locator(".table")).to_contain_text(f"{before} of {before} shown")
    assert "–" in page.locator(".table tr.does_not_fit").first.inner_text()
    page.get_by_label("Only what fits").check()
    assert 0 < rows.count() < before
    expect(page.locator(".table tr.does_not_fit")).to_have_count(0)


# ── the address ───────────────────────────────────────────────────────────────────────────────────


def composed(page: Any) -> str:
    """A question unlike the first one."""
    choose(page, "Model", "gpt-oss 120b")
    choose(page, "Machine", "strix halo 128")
    page.get_by_label("Context", exact=True).fill("65536")
    page.get_by_label("full", exact=True).check()
    settled(page)
    return str(page.locator("#answer").inner_text())


def test_reloading_gives_the_same_answer(visit: Visit) -> None:
    page = visit()
    before = composed(page)
    page.reload()
    assert page.locator("#answer").inner_text() == before
    expect(page.get_by_label("Context", exact=True)).to_have_value("65,536")


def test_a_copied_link_opens_the_same_answer_elsewhere(visit: Visit) -> None:
    page = visit(permissions=["clipboard-read", "clipboard-write"])
    before = composed(page)
    page.get_by_role("button", name="Copy link").click()
    expect(page.get_by_text("Copied.")).to_be_visible()
    link = page.evaluate("navigator.clipboard.readText()")
    there = visit(at=link, color_scheme="dark")
    assert there.locator("#answer").inner_text() == before


def test_where_the_clipboard_is_denied_the_link_is_there_to_copy(visit: Visit) -> None:
    page = visit()
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: {writeText: () => Promise.reject(new Error('denied'))}})")
    before = composed(page)
    page.get_by_role("button", name="Copy link").click()
    field = page.get_by_label("Link to this answer")
    expect(field).to_be_focused()
    assert visit(at=field.input_value()).locator("#answer").inner_text() == before


def test_another_link_in_the_same_tab_is_followed_and_the_anchors_of_the_page_are_none(visit: Visit) -> None:
    page = visit()
    composed(page)
    link = behind(page)
    page.goto("about:blank")
    page = visit()
    page.evaluate("link => { location.hash = link }", link)
    expect(page.get_by_role("combobox", name="Model", exact=True)).to_have_value("gpt-oss 120B")
    page.evaluate("location.hash = '#about'")
    expect(page.get_by_role("combobox", name="Model", exact=True)).to_have_value("gpt-oss 120B")
    page.reload()
    expect(page.get_by_role("combobox", name="Model", exact=True)).to_have_value("gpt-oss 120B")
    expect(visit("#calculator").locator(".broken")).to_have_count(0)
    expect(visit("?utm_source=mail").locator(".broken")).to_have_count(0)


def test_without_a_network_it_goes_on(visit: Visit) -> None:
    page = visit()
    page.context.set_offline(True)
    before = composed(page)
    page.get_by_label("empty", exact=True).check()
    expect(page.locator("#answer")).not_to_have_text(before)
    expect(page.locator(".table tbody tr").first).to_be_visible()


def test_it_works_as_a_file(visit: Visit, folder: Path) -> None:
    page = visit(at=(folder / "calculator.html").as_uri())
    before = composed(page)
    page.reload()
    assert page.locator("#answer").inner_text() == before


# ── what people and links get wrong ───────────────────────────────────────────────────────────────


def test_a_context_beyond_training_is_answered_with_a_warning(visit: Visit) -> None:
    page = visit()
    choose(page, "Model", "llama 2 7b")
    page.get_by_label("Context", exact=True).fill("1000000")
    expect(page.locator("#n_ctx-problems .warning")).to_contain_text("4,096")
    expect(page.locator(".verdict")).to_contain_text("1,000,000 tokens of context")
    expect(page.get_by_label("Context", exact=True)).not_to_have_attribute("aria-invalid", "true")


@pytest.mark.parametrize("typed", ["-5", "0", "1.5", "1e99", "many", "", "0,15", "1e9k", "9" * 400, "NaN", "Infinity", "0x10"])
def test_an_absurd_number_is_named_and_the_last_good_answer_stays_in_sight(typed: str, visit: Visit) -> None:
    page = visit()
    answer = page.locator(".verdict").inner_text()
    field = page.get_by_label("Context", exact=True)
    field.fill(typed)
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#n_ctx-problems .error")).to_be_visible()
    expect(page.locator(".instead")).to_contain_text("no answer")
    expect(page.locator(".cards")).to_have_class(re.compile("stale"))
    assert page.locator(".verdict").inner_text() == answer
    expect(page.get_by_role("region", name="The same question for every machine").first).to_have_class("stale")
    settled(page)
    assert behind(page) in ("", "#"), "the address keeps to what can be answered"
    field.blur()
    expect(field).to_have_value(typed)
    field.fill("4k")
    expect(page.locator(".instead")).to_have_count(0)
    expect(page.locator(".verdict")).to_contain_text("4,096")


def test_an_engine_that_is_not_made_for_the_machine_is_said_so(visit: Visit) -> None:
    page = visit()
    page.get_by_label("Format").select_option("MLX_4BIT")
    expect(page.locator(".question .error")).to_contain_text("not made for")
    choose(page, "Machine", "m4 max 128")
    expect(page.locator(".question .error")).to_have_count(0)
    expect(verdict(page)).to_contain_text("It fits")


SCRIPT = "<script>alert(1)</script>"
IMAGE = "<img src=x onerror=alert(1)>"


BAD = [SCRIPT, IMAGE, "javascript:alert(1)", "__proto__", "constructor", "-1", "1e999", "%00", "a" * 20_000, "%E0%A4%A"]
STRANGE = [
    f"#{SCRIPT}",
    f"#{IMAGE}={IMAGE}",
    "#__proto__[x]=1&constructor.prototype.x=1",
    "#%",
    "#=&=&==",
    "#" + "m=llama-3.3-70b&" * 5_000,
]
#: Of the page: how many elements of each kind there are that could run or fetch anything, and whether the language was meddled with.
COUNTED = """() => [
  ...['script', 'img', 'iframe', 'object', 'embed', 'link', 'style', 'base', 'meta'].map((tag) => document.querySelectorAll(tag).length),
  [...document.querySelectorAll('*')].filter((e) => [...e.attributes].some((a) => /^on/.test(a.name))).length, {}.x, document.title.length < 200]"""
#: The page has read a new address when it has been drawn twice.
FOLLOWED = "link => { location.hash = link; return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))); }"
#: A link that has every field.
EVERYTHING = """CalculatorCore.link(CALCULATOR_DATA, {
  ...CalculatorCore.parse(CALCULATOR_DATA, '').query, place: 'own', n_ctx: 4097, kv_type: 'q8_0', batch: 2,
  filled: 'full', model: 'qwen3-8b', format: 'Q8_0', memory_gb: 33, bandwidth_gb_per_s: 333, compute_tflop_per_s: 33, family: 'apple', power_w: 33,
  price_usd: 333, want_tok_per_s: 33, years: 4, usd_per_kwh: 0.33, budget_usd: 3333})"""


def test_nothing_of_a_link_becomes_a_part_of_the_page(visit: Visit) -> None:
    page = visit()
    keys = re.findall(r"[#&](\w+)=", page.evaluate(EVERYTHING))
    assert len(keys) >= 14
    before = page.evaluate(COUNTED)
    for link in [
        *(f"#{key}={value}" for key in keys for value in BAD),
        *("#" + "&".join(f"{key}={value}" for key in keys) for value in BAD),
        *STRANGE,
    ]:
        page.evaluate(FOLLOWED, link)
        assert page.evaluate(COUNTED) == before, link[:80]
        assert page.locator("#verdict, .instead").count() > 0, link[:80]


@pytest.mark.parametrize("link", [f"#m={IMAGE}", f"#{SCRIPT}", f"?m={SCRIPT}", "#m=nothing&c=-7&f=__proto__", "#" + "x" * 50_000, "#%E0%A4%A"])
def test_a_broken_link_says_what_was_not_understood_and_leaves_a_page_that_works(link: str, visit: Visit) -> None:
    page = visit(link)
    expect(page.locator(".broken")).to_contain_text("Not all of this link was understood")
    assert len(page.locator(".broken").inner_text()) < 2_000
    expect(verdict(page)).to_be_visible()
    choose(page, "Model", "qwen3 8b")
    expect(page.locator(".broken")).to_have_count(0)
    expect(page.locator(".verdict")).to_contain_text("Qwen3 8B")


# ── for everybody ─────────────────────────────────────────────────────────────────────────────────

#: Places of the page to look at: what is opened, and behind which address.
STATES = {"first": "", "error": "error", "does-not-fit": "#m=llama-3.1-405b", "budget": "budget", "own": "own", "open": "open"}

#: Words whose colour is too near the ground they stand on: WCAG's contrast, 4.5 to 1.
FAINT = faint("body *")
#: Controls without a name, ids that are there twice, references to ids that are not, and levels of headings that are skipped.
UNSOUND = """() => {
  const said = (ids) => (ids || '').split(' ').map((id) => document.getElementById(id)?.textContent || '').join('');
  const named = (e) => (e.getAttribute('aria-label') || said(e.getAttribute('aria-labelledby'))
    || (e.labels && [...e.labels].map((l) => l.textContent).join('')) || e.textContent).trim();
  const seen = (e) => e.checkVisibility();
  const wanted = 'a[href], button, input, select, summary, [role=listbox], [role=region], section[aria-labelledby], nav, form';
  const controls = [...document.querySelectorAll(wanted)].filter(seen);
  const ids = [...document.querySelectorAll('[id]')].map((e) => e.id);
  const referring = ['aria-labelledby', 'aria-describedby', 'aria-controls', 'aria-activedescendant', 'for'];
  const referred = referring.flatMap((name) => [...document.querySelectorAll(`[${name}]`)].flatMap((e) => e.getAttribute(name).split(' ')));
  const levels = [...document.querySelectorAll('h1, h2, h3, h4')].filter(seen).map((e) => Number(e.tagName[1]));
  return [
    ...controls.filter((e) => !named(e)).map((e) => `no name: ${e.outerHTML.slice(0, 80)}`),
    ...ids.filter((id, i) => ids.indexOf(id) !== i).map((id) => `twice: ${id}`),
    ...referred.filter((id) => !ids.includes(id)).map((id) => `refers to ${id}`),
    ...levels.filter((level, i) => i && level > levels[i - 1] + 1).map((level) => `skipped to h${level}`),
    ...(levels.filter((level) => level === 1).length === 1 ? [] : ['not one h1']),
    ...[...document.querySelectorAll('svg')]
      .filter((e) => !e.closest('[aria-hidden]') && (e.getAttribute('role') !== 'img' || !e.querySelector('title')))
      .map(() => 'a picture without words'),
    ...[...document.querySelectorAll('th')].filter((e) => !e.scope && !e.getAttribute('role')).map((e) => `a heading of nothing: ${e.textContent}`),
  ];
}"""
#: What a finger may miss: WCAG 2.2 wants 24 pixels each way, links in running text apart.
SMALL = """() => [...document.querySelectorAll('button, input, select, summary, nav a')].filter((e) => e.checkVisibility()).map((e) => {
  const box = (e.matches('[type=radio], [type=checkbox]') ? e.closest('label') : e).getBoundingClientRect();
  return [box.width, box.height, e.outerHTML.slice(0, 80)];
}).filter(([width, height]) => width < 24 || height < 24)"""
WIDE = """() => [document.documentElement.scrollWidth - innerWidth, [...document.querySelectorAll('main *')]
  .filter((e) => !e.closest('.scroll, svg, .hidden') && e.getBoundingClientRect().right > innerWidth + 1).slice(0, 3)
  .map((e) => e.outerHTML.slice(0, 80))]"""


def shown(visit: Visit, state: str, **options: Any) -> Any:
    page = visit(STATES[state] if STATES[state].startswith("#") else "", **options)
    if state in ("budget", "own"):
        choose(page, "Machine", state)
    if state == "error":
        page.get_by_label("Context", exact=True).fill("-1")
    if state == "open":
        page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true })")
        page.get_by_role("combobox", name="Machine", exact=True).click()
    expect(page.locator(".table tbody tr").first).to_be_visible()
    return page


@pytest.mark.parametrize("state", STATES)
def test_every_control_has_a_name_and_every_id_is_there_once(state: str, visit: Visit) -> None:
    assert shown(visit, state).evaluate(UNSOUND) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("state", STATES)
def test_words_stand_out_and_a_phone_shows_all_of_it(state: str, scheme: str, visit: Visit) -> None:
    page = shown(visit, state, color_scheme=scheme, viewport={"width": 360, "height": 740}, has_touch=True)
    assert page.locator("html").get_attribute("data-theme") == scheme
    assert page.evaluate(FAINT) == []
    assert page.evaluate(WIDE) == [0, []]
    assert page.evaluate(SMALL) == []
    page.set_viewport_size({"width": 1280, "height": 900})
    assert page.evaluate(WIDE) == [0, []]
    assert page.evaluate(FAINT) == []


def test_the_book_s_own_choice_of_dark_comes_before_the_system_s(visit: Visit) -> None:
    page = visit(color_scheme="light")
    ground = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(ground) == "rgb(255, 255, 255)"
    page.evaluate("localStorage.setItem('mode', 'dark')")
    page.reload()
    assert page.evaluate(ground) == "rgb(18, 18, 18)"


def test_a_verdict_is_told_by_words_and_shape_and_told_to_those_who_listen(visit: Visit) -> None:
    page = visit()
    said = page.locator("[aria-live=polite]").first
    fits = page.locator("#verdict svg").inner_html()
    choose(page, "Machine", "rtx 4090")
    expect(said).to_have_text(re.compile(r"^It does not fit: [\d.]+ GB too much\."))
    assert page.locator("#verdict svg").inner_html() != fits


def test_a_phone_keeps_the_verdict_in_sight_and_leads_to_the_answer(visit: Visit) -> None:
    page = visit(viewport={"width": 360, "height": 740})
    strip = page.locator(".strip")
    expect(strip).to_contain_text("It fits")
    strip.click()
    expect(verdict(page)).to_be_in_viewport()
    expect(strip).to_have_count(0)
    expect(page.locator("#answer")).to_be_focused()


def test_on_paper_the_address_stands_below_the_answer_and_nothing_to_click(visit: Visit) -> None:
    page = visit("#", color_scheme="dark")
    composed(page)
    page.emulate_media(media="print")
    expect(page.locator(".print")).to_contain_text("gpt-oss-120b")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    expect(page.get_by_role("button", name="Copy link")).to_be_hidden()
    expect(verdict(page)).to_be_visible()


def test_without_scripts_the_page_says_what_to_do_instead(visit: Visit) -> None:
    page = visit(java_script_enabled=False)
    expect(page.get_by_text("needs JavaScript")).to_be_visible()
    expect(page.get_by_role("heading", name="About this page")).to_be_visible()


# ── in the book ───────────────────────────────────────────────────────────────────────────────────


def test_the_landing_page_and_the_pages_of_devices_lead_to_it_and_it_leads_back(built: Any, visit: Visit, browser: Any) -> None:
    page = visit(at=(built.checkout.html / "book" / "calculator.html").as_uri())
    expect(verdict(page)).to_contain_text("It fits")
    expect(page.locator(".about")).to_contain_text("What it assumes")
    other = browser.new_page()
    other.goto((built.checkout.html / "book" / "index.html").as_uri())
    other.locator("article a[href*='calculator.html']").first.click()
    expect(other.locator("#verdict")).to_be_visible()
    other.locator("nav .home").click()
    expect(other.get_by_role("heading", level=1)).to_contain_text("Bandwidth Decides")
    other.goto((built.checkout.html / "book" / "devices" / "strix-halo.html").as_uri())
    other.locator("article a[href*='calculator.html#']").first.click()
    expect(other.get_by_role("combobox", name="Machine", exact=True)).to_have_value(re.compile("Ryzen AI Max"))
    expect(other.locator(".broken")).to_have_count(0)
    other.close()
