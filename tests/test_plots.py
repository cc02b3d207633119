"""Figures: axes carry units, ceilings are lines, measurements are points, and nothing warns (warnings are errors here)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.axes import Axes

from helpers import make_record
from nbutils import frames, plots, registry
from nbutils.specs import KernelRate


def measured() -> pd.DataFrame:
    kernel = KernelRate(
        when="before", tensor_type="Q4_K", placement="cache", n_rows=10, n_columns=10, n_batch=1, n_bytes=2**29, n_threads=1, samples_s=(0.01,)
    )
    return frames.measured_frame([make_record(kernels=(kernel,))])


def device() -> pd.DataFrame:
    machine = registry.load_device("rtx-4090")
    models = [registry.load_model(m) for m in registry.model_ids()]
    return frames.device_frame(machine, registry.load_configuration(machine), models, n_ctx=8192)


def budget() -> pd.DataFrame:
    return pd.DataFrame({"part": ["weights", "KV cache", "compute buffer (estimate)", "headroom"], "bytes": [40e9, 3e9, 1e9, -5e9]})


def rooflines() -> pd.DataFrame:
    return pd.DataFrame({"name": ["one", "two", "of unknown peak"], "bandwidth": [273e9, 1008e9, 500e9], "peak": [125e12, 165e12, None]})


FIGURES: dict[str, Callable[[Axes], Axes]] = {
    "decode_against_bytes": lambda ax: plots.decode_against_bytes(measured(), ax=ax),
    "rates_by_wall": lambda ax: plots.rates_by_wall(measured(), ax=ax),
    "device_ceilings": lambda ax: plots.device_ceilings(device(), ax=ax),
    "budget_bar": lambda ax: plots.budget_bar(budget(), 39_000_000_000, ax=ax),
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
    assert re.search(r"\((?:GB|GB/s|tok/s|FLOP/byte|GFLOP/s|TFLOP/s)\)$", ax.get_xlabel()), ax.get_xlabel()
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


def test_a_paragraph_of_data_is_escaped() -> None:
    assert plots.text("1 < 2 & <script>").data == "<p>1 &lt; 2 &amp; &lt;script&gt;</p>"


def test_an_unknown_in_a_table_is_a_dash_and_numbers_are_formatted() -> None:
    frame = pd.DataFrame({"a": [1234.56, None], "b": ["x", None]})
    html = plots.table(frame, {"a": "rate (tok/s)", "b": "name"}, {"a": "{:,.1f}"}).to_html()
    assert "1,234.6" in html
    assert html.count("–") == 2
    assert "nan" not in html.lower()
    assert "None" not in html
