"""The calculator's view in a notebook: both sides of a memory, bounds as lines, expected rates as points, and every machine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from nbutils import calculator, plots, plots_fit
from nbutils.calculator import Query

#: Rows for machines that lack memory, before the one that says how many more there are.
LACKING = 4


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    plt.close("all")


def asked(**changes: Any) -> dict[str, Any]:
    return calculator.answer(replace(Query(), **changes))


def viewed(answer: dict[str, Any]) -> tuple[Figure, list[Axes]]:
    ax = plots_fit.fit_view(answer, ax=plots.new_axes())
    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.canvas.draw()
    return figure, list(figure.axes)


def words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def points(ax: Axes) -> list[float]:
    return [float(line.get_xdata()[0]) for line in ax.lines if line.get_marker() == "D" and len(line.get_xdata()) == 1]


def lines(ax: Axes) -> list[float]:
    """Where vertical lines stand."""
    return [float(line.get_xdata()[0]) for line in ax.lines if len(line.get_xdata()) == 2 and line.get_xdata()[0] == line.get_xdata()[1]]


# ── memory ────────────────────────────────────────────────────────────────────────────────────────


def test_bars_end_where_total_and_memory_end_and_the_line_is_between() -> None:
    answer = asked(place="mac-studio-m4-max/128gb")
    ax = plots_fit.memory_bars(answer, ax=plots.new_axes(6.6, 2.4))
    ends = {y: max(p.get_x() + p.get_width() for p in ax.patches if round(p.get_y() + p.get_height() / 2) == y) for y in (0, 1)}
    assert ends[0] == pytest.approx(answer["total_bytes"] / 1e9)
    assert ends[1] == pytest.approx((answer["memory_bytes"] + answer["elsewhere_bytes"]) / 1e9)
    assert lines(ax) == pytest.approx([answer["available_bytes"] / 1e9])
    assert ax.get_xlim()[0] == 0
    assert ax.get_xlabel() == "memory (GB)"


def test_what_does_not_fit_goes_past_the_line() -> None:
    answer = asked(place="rtx-4090/24gb")
    ax = plots_fit.memory_bars(answer, ax=plots.new_axes(6.6, 2.4))
    (line,) = lines(ax)
    assert max(p.get_x() + p.get_width() for p in ax.patches) > line
    assert ax.get_xlim()[1] > answer["total_bytes"] / 1e9


@pytest.mark.parametrize(("model", "has_state"), [("llama-3.3-70b", False), ("nemotron-3-super", True)])
def test_a_part_that_is_nothing_takes_no_place_and_no_name(model: str, has_state: bool) -> None:
    ax = plots_fit.memory_bars(asked(model=model), ax=plots.new_axes(6.6, 2.4))
    (legend,) = ax.figure.legends
    named = [text.get_text().split(":")[0] for text in legend.get_texts()]
    assert ("recurrent state" in named) == has_state
    assert all(p.get_width() > 0 for p in ax.patches)
    assert len(named) == len(set(named))


# ── the view ──────────────────────────────────────────────────────────────────────────────────────


def test_a_bound_is_a_line_and_an_expected_rate_a_point_in_its_range() -> None:
    answer = asked()
    _, (_, _, decode, prompt) = viewed(answer)
    assert lines(decode) == pytest.approx([answer["ceiling_tok_per_s"]])
    assert points(decode) == pytest.approx([answer["expected_tok_per_s"]])
    assert answer["low_tok_per_s"] < points(decode)[0] < answer["high_tok_per_s"] <= lines(decode)[0]
    assert decode.get_xlabel() == "decode (tok/s)"
    assert decode.get_xlim()[0] == prompt.get_xlim()[0] == 0


@pytest.mark.parametrize(("n_ctx", "unit", "seconds"), [(512, "s", 1), (32768, "min", 60)])
def test_a_prompt_is_told_in_the_unit_that_suits_it(n_ctx: int, unit: str, seconds: int) -> None:
    answer = asked(n_ctx=n_ctx)
    _, (_, _, _, prompt) = viewed(answer)
    assert prompt.get_xlabel() == f"time to read it ({unit})"
    assert points(prompt) == pytest.approx([answer["prompt"]["expected_s"] / seconds])
    assert lines(prompt) == pytest.approx([answer["prompt"]["ceiling_s"] / seconds])
    assert lines(prompt)[0] <= points(prompt)[0], "the bound of a time is its least"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "Fits: "),
        ({"place": "rtx-4090/24gb"}, "Does not fit: "),
        ({"place": "rtx-4090/24gb", "model": "qwen3-30b-a3b", "n_ctx": 131072}, "Does not fit: "),
    ],
)
def test_the_verdict_is_in_words_with_what_is_left_or_lacking(changes: dict[str, Any], said: str) -> None:
    answer = asked(**changes)
    figure, _ = viewed(answer)
    gb = abs(answer["headroom_bytes"]) / 1e9
    assert f"{said}{gb:.1f} GB" in words(figure)
    if answer["max_ctx"]:
        assert f"{answer['max_ctx']:,} tokens" in words(figure)


def test_where_nothing_is_expected_there_is_a_bound_and_no_point() -> None:
    answer = asked(batch=4)
    assert answer["expected_tok_per_s"] is None
    _, (_, _, decode, _) = viewed(answer)
    assert points(decode) == []
    assert lines(decode) == pytest.approx([answer["ceiling_tok_per_s"]])


def test_a_machine_of_unknown_peak_has_no_bound_on_a_prompt() -> None:
    answer = asked(place="own", compute_tflop_per_s=None, family="nvidia-discrete")
    answer["prompt"] |= dict.fromkeys(("ceiling_s", "expected_s", "low_s", "high_s"))
    figure, (_, _, _, prompt) = viewed(answer)
    assert lines(prompt) == points(prompt) == []
    assert "nothing is known" in words(figure)


@pytest.mark.parametrize("changes", [{}, {"place": "rtx-4090/24gb"}, {"batch": 64, "n_ctx": 131072}, {"model": "nemotron-3-super", "n_ctx": 2**20}])
def test_a_phone_shows_letters_that_can_be_read_and_none_over_others(changes: dict[str, Any]) -> None:
    figure, _ = viewed(asked(**changes))
    assert readable(figure)
    renderer = figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    boxes = [box.expanded(0.98, 0.9) for box in boxes]
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :] if a.overlaps(b)]
    assert figure.get_tightbbox().width <= figure.get_figwidth() + 0.02, "no word makes the picture wider than it was drawn for"


def readable(figure: Figure) -> bool:
    """A page of 360 CSS pixels has 328 for a figure; the smallest letters are then no smaller than 7.5."""
    letters_px = min(t.get_fontsize() for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()) * 96 / 72
    return bool(letters_px * 328 / (96 * figure.get_tightbbox().width) >= 7.5)


# ── every machine ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return pd.DataFrame(calculator.compare(Query()))


def test_every_machine_that_fits_has_a_row_and_the_one_asked_about_stands_out(rows: pd.DataFrame) -> None:
    ax = plots_fit.places_compared(rows, "dgx-spark/128gb", ax=plots.new_axes())
    *labels, rest = [tick.get_text() for tick in ax.get_yticklabels()]
    assert len(labels) == len(set(labels))
    fits = rows[rows["verdict"] != "does_not_fit"]
    assert len(labels) - LACKING == len(fits.groupby(["device", "ceiling_tok_per_s", "verdict"]))
    assert re.fullmatch(r"and \d+ more lack memory", rest)
    (bold,) = [tick.get_text() for tick in ax.get_yticklabels() if tick.get_fontweight() == "bold"]
    assert bold == "DGX Spark, 128 GB"
    assert ax.get_xscale() == "log"
    ax.figure.canvas.draw()
    assert readable(ax.figure)


def test_a_machine_that_is_asked_about_is_drawn_however_much_it_lacks(rows: pd.DataFrame) -> None:
    ax = plots_fit.places_compared(rows, "gtx-1050-ti/4gb", ax=plots.new_axes())
    (bold,) = [tick.get_text() for tick in ax.get_yticklabels() if tick.get_fontweight() == "bold"]
    assert bold == "GTX 1050 Ti, 4 GB"


def test_what_fits_ends_at_its_ceiling_and_what_does_not_has_no_line(rows: pd.DataFrame) -> None:
    ax = plots_fit.places_compared(rows, ax=plots.new_axes())
    drawn = sorted({float(x) for line in ax.lines if line.get_marker() == "|" for x in line.get_xdata()})
    fits = rows[rows["verdict"] != "does_not_fit"]
    assert drawn == pytest.approx(sorted(set(fits["ceiling_tok_per_s"])))
    lacking = [text.get_text() for text in ax.texts if "lacks" in text.get_text()]
    assert lacking
    assert all(text.startswith("lacks ") for text in lacking)


def test_a_model_that_nothing_holds_still_has_a_picture() -> None:
    rows = pd.DataFrame(calculator.compare(Query(model="deepseek-v3", format="F16")))
    assert set(rows["verdict"]) == {"does_not_fit"}
    ax = plots_fit.places_compared(rows, ax=plots.new_axes())
    ax.figure.canvas.draw()
    assert len(ax.texts) == len(ax.get_yticklabels()) - 1 == LACKING


def test_the_table_has_a_row_per_place_and_a_dash_for_what_is_unknown(rows: pd.DataFrame) -> None:
    shown = plots_fit.places_table(rows).to_html()
    assert shown.count("<tr>") == len(rows) + 1
    assert "nan" not in shown.lower()
    assert "does not fit" in shown


# ── the link ──────────────────────────────────────────────────────────────────────────────────────


def test_a_link_carries_the_question_and_no_markup() -> None:
    query = Query(model="qwen3-30b-a3b", n_ctx=32768, place="rtx-4090/24gb")
    assert f'href="../calculator.html{calculator.link(query)}"'.replace("&", "&amp;") in plots_fit.ask_calculator(calculator.link(query)).data
    hostile = plots_fit.ask_calculator('#m="><script>alert(1)</script>', "<b>", folder="").data
    assert "<script>" not in hostile
    assert "<b>" not in hostile
    assert 'href="calculator.html#m=&quot;&gt;' in hostile
