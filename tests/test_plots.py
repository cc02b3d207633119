"""Figures: axes carry units, ceilings are lines, measurements are points, and nothing warns (warnings are errors here)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.axes import Axes

from helpers import make_record, stored
from nbutils import frames, places, plots, registry
from nbutils.places import Place
from nbutils.specs import KernelRate
from nbutils.tensors import Variant


def measured() -> pd.DataFrame:
    kernel = KernelRate(
        when="before", tensor_type="Q4_K", placement="cache", n_rows=10, n_columns=10, n_batch=1, n_bytes=2**29, n_threads=1, samples_s=(0.01,)
    )
    return frames.measured_frame([make_record(kernels=(kernel,))])


def here() -> Place:
    device = registry.load_device("rtx-4090")
    return places.place(device, device.configuration())


def device() -> pd.DataFrame:
    models = [registry.load_model(m) for m in ("llama-3.3-70b", "qwen3-8b", "qwen3-30b-a3b")]
    return frames.device_frame(here(), models, n_ctx=8192)


def budget() -> pd.DataFrame:
    return pd.DataFrame({"part": ["weights", "KV cache", "compute buffer (estimate)", "headroom"], "bytes": [40e9, 3e9, 1e9, -5e9]})


def rooflines() -> pd.DataFrame:
    return pd.DataFrame({"name": ["one", "two", "of unknown peak"], "bandwidth": [273e9, 1008e9, 500e9], "peak": [125e12, 165e12, None]})


def two() -> list[Variant]:
    return [stored("qwen3-8b", "Q4_K_M"), stored("qwen3-30b-a3b", "Q4_K_M")]


FIGURES: dict[str, Callable[[Axes], Axes]] = {
    "decode_against_bytes": lambda ax: plots.decode_against_bytes(measured(), ax=ax),
    "rates_by_wall": lambda ax: plots.rates_by_wall(measured(), ax=ax),
    "device_ceilings": lambda ax: plots.device_ceilings(device(), ax=ax),
    "budget_bar": lambda ax: plots.budget_bar(budget(), 39_000_000_000, ax=ax),
    "over_depth": lambda ax: plots.over_depth(frames.depth_frame(two(), here(), [256, 4096, 32768]), ax=ax),
    "over_batch": lambda ax: plots.over_batch(frames.batch_frame(two(), here(), [1, 16, 256, 4096], depth=256), ax=ax),
    "yardsticks": lambda ax: plots.yardsticks(frames.yardstick_frame(make_record().yardsticks), ax=ax),
    "roofline": lambda ax: plots.roofline(rooflines(), {"decode": 3.3}, ax=ax),
}
each_figure = pytest.mark.parametrize("name", FIGURES)


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    plt.close("all")


def test_every_figure_of_the_module_is_drawn_here() -> None:
    assert set(FIGURES) == set(plots.__all__) - {"new_axes", "table", "text"}


@each_figure
def test_a_figure_is_drawn_on_the_given_axes_with_units_and_without_a_warning(name: str) -> None:
    ax = plots.new_axes()
    assert FIGURES[name](ax) is ax
    ax.figure.canvas.draw()
    assert re.search(r"\((?:GB|GB/s|tok/s|tokens of context|sequences|FLOP/byte|GFLOP/s|TFLOP/s)\)$", ax.get_xlabel()), ax.get_xlabel()
    if ax.get_ylabel():
        assert re.search(r"\(.+\)$", ax.get_ylabel()), ax.get_ylabel()
    else:
        assert all(t.get_text() for t in ax.get_yticklabels()) or not len(ax.get_yticks()), "an axis without unit names its rows"


@each_figure
def test_an_axis_starts_at_zero_unless_it_is_logarithmic(name: str) -> None:
    ax = FIGURES[name](plots.new_axes())
    if ax.get_xscale() == "linear":
        assert ax.get_xlim()[0] == 0


def test_the_ceiling_is_a_line_and_the_measurement_a_point_under_it() -> None:
    frame = measured()
    ax = plots.decode_against_bytes(frame, ax=plots.new_axes())
    line, *_ = ax.lines
    x, y = line.get_data()
    assert [a * b for a, b in zip(x, y, strict=True)] == pytest.approx([frame["bandwidth"].max() / 1e9] * 2), "rate times bytes is the bandwidth"
    row = frames.decode_rows(frame).iloc[0]
    points = [(float(p.get_xdata()[0]), float(p.get_ydata()[0])) for p in ax.lines[1:] if len(p.get_xdata()) == 1]
    assert any(p == pytest.approx((row["step_bytes"] / 1e9, row["tok_per_s"])) for p in points)


def test_a_device_without_a_known_peak_has_no_roofline() -> None:
    ax = plots.roofline(rooflines(), {"decode": 3.3}, ax=plots.new_axes())
    legend = ax.get_legend()
    assert legend is not None
    assert [t.get_text() for t in legend.get_texts()] == ["one", "two"]


def test_a_part_that_a_model_does_not_have_takes_no_place_in_its_bar() -> None:
    frame = pd.DataFrame({"part": ["weights", "recurrent state", "headroom"], "bytes": [40e9, 0, 5e9]})
    legend = plots.budget_bar(frame, 45_000_000_000, ax=plots.new_axes()).get_legend()
    assert legend is not None
    assert [t.get_text() for t in legend.get_texts()] == ["available: 45.0 GB", "weights: 40.00 GB"]


def test_a_batch_that_does_not_fit_is_a_hollow_mark() -> None:
    """Not told by colour alone."""
    frame = frames.batch_frame(two(), here(), [1, 16, 256, 4096], depth=2048)
    assert set(frame["fits"]) == {True, False}
    ax = plots.over_batch(frame, ax=plots.new_axes())
    for fits in (True, False):
        lines = [line for line in ax.lines if line.get_marker() != "None" and (line.get_markerfacecolor() != "white") == fits]
        drawn = sorted(float(x) for line in lines for x in line.get_xdata())
        assert drawn == sorted(frame[frame["fits"] == fits]["batch"])
    legend = ax.get_legend()
    assert legend is not None
    assert legend.get_texts()[-1].get_text() == "does not fit"


def test_a_budget_over_the_line_is_drawn_over_the_line() -> None:
    ax = plots.budget_bar(budget(), 39_000_000_000, ax=plots.new_axes())
    assert sum(p.get_width() for p in ax.patches) == pytest.approx(44)
    assert ax.get_xlim()[1] > 44


@pytest.mark.parametrize("column", ["model", "decode"])
def test_text_of_a_table_is_escaped_wherever_it_comes_from(column: str) -> None:
    frame = pd.DataFrame({"model": ["a model"], "decode": [1.0]}).astype(object)
    frame.loc[0, column] = "<script>alert(1)</script>"
    html = plots.table(frame, {"model": "model", "decode": "decode (tok/s)"}).to_html()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


def test_an_address_of_a_table_becomes_a_link_only_if_it_is_one() -> None:
    frame = pd.DataFrame({"source": ["a <b>", "c", "d"], "url": ['https://example.org/?a=1&b="2"', "javascript:alert(1)", ""]})
    html = plots.table(frame, {"source": "source"}, links={"source": "url"}).to_html()
    assert 'href="https://example.org/?a=1&amp;b=&quot;2&quot;">a &lt;b&gt;</a>' in html
    assert html.count("<a ") == 1
    assert "javascript" not in html


def test_a_page_of_the_book_is_linked_without_leaving_it() -> None:
    frame = pd.DataFrame({"device": ["one", "two", "three"], "page": ["devices/rtx-4090.html", 'x".html', "javascript:a.html"]})
    html = plots.table(frame, {"device": "device"}, links={"device": "page"}).to_html()
    assert '<a class="reference internal" href="devices/rtx-4090.html">one</a>' in html
    assert html.count("<a ") == 1


def test_a_paragraph_of_data_is_escaped() -> None:
    assert plots.text("1 < 2 & <script>").data == "<p>1 &lt; 2 &amp; &lt;script&gt;</p>"


def test_an_unknown_in_a_table_is_a_dash_and_numbers_are_formatted() -> None:
    frame = pd.DataFrame({"a": [1234.56, None], "b": ["x", None]})
    html = plots.table(frame, {"a": "rate (tok/s)", "b": "name"}, {"a": "{:,.1f}"}).to_html()
    assert "1,234.6" in html
    assert html.count("–") == 2
    assert "nan" not in html.lower()
    assert "None" not in html
