"""Figures: axes carry units, ceilings are lines, measurements are points, and nothing warns (warnings are errors here)."""

from __future__ import annotations

import base64
import csv
import io
import re
from collections.abc import Callable, Iterator

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell
from matplotlib.axes import Axes
from matplotlib.text import Text

from helpers import PAPER_MOE, make_record, make_served, stored
from nbutils import frames, frames_power, frames_run, frames_served, places, plots, registry
from nbutils.errors import UsageError
from nbutils.places import Place
from nbutils.specs import KernelRate, Point, Record, Suite, SuitePoint
from nbutils.tensors import Variant
from test_frames_power import sustained, traced


def measured() -> pd.DataFrame:
    kernel = KernelRate(
        when="before", tensor_type="Q4_K", placement="cache", n_rows=10, n_columns=10, n_batch=1, n_bytes=2**29, n_threads=1, samples_s=(0.01,)
    )
    return frames.measured_frame([make_record(kernels=(kernel,))])


def batches() -> list[Record]:
    """A dense file and an MoE with prompts and with 1, 4 and 16 sequences, whose experts were counted, and all rulers."""
    asked = [SuitePoint(kind="prefill", n_tokens=32), *(SuitePoint(kind="decode", n_tokens=2, n_seq=n) for n in (1, 4, 16))]
    suite = Suite(id="batches", name="Batches", points=tuple(asked), repetitions=2, yardstick_s=0.1)
    counts = {1: (2, 2), 4: (4, 6), 16: (7, 8)}

    def points(*, moe: bool) -> tuple[Point, ...]:
        return tuple(
            Point(kind="prefill", n_tokens=32, depth=0, warmup_s=0.1, repetitions_s=((0.1,), (0.12,)))
            if p.kind == "prefill"
            else Point(
                kind="decode",
                n_tokens=2,
                depth=0,
                n_seq=p.n_seq,
                warmup_s=0.1,
                repetitions_s=((0.01, 0.01), (0.011, 0.011)),
                distinct_experts=counts[p.n_seq] if moe else (),
            )
            for p in asked
        )

    sizes = {"n_rows": 2000, "n_columns": 2000, "n_threads": 1, "n_bytes": 4_000_000}
    kernels = tuple(
        KernelRate(when="before", tensor_type="F16", placement=placement, n_batch=n_batch, samples_s=(seconds,), **sizes)
        for placement, n_batch, seconds in (("cache", 1, 2e-4), ("memory", 512, 0.02))
    )
    shared = {"suite": suite, "kernels": kernels}
    dense = make_record().model.model_copy(update={"gguf_type": "F16"})
    return [make_record(points=points(moe=True), model=PAPER_MOE, **shared), make_record(points=points(moe=False), model=dense, **shared)]


def here() -> Place:
    device = registry.load_device("rtx-4090")
    return places.place(device, device.configuration())


def device() -> pd.DataFrame:
    models = [registry.load_model(m) for m in ("llama-3.3-70b", "qwen3-8b", "qwen3-30b-a3b")]
    return frames.device_frame(here(), models, n_ctx=8192)


def rooflines() -> pd.DataFrame:
    return pd.DataFrame({"name": ["one", "two", "of unknown peak"], "bandwidth": [273e9, 1008e9, 500e9], "peak": [125e12, 165e12, None]})


def two() -> list[Variant]:
    return [stored("qwen3-8b", "Q4_K_M"), stored("qwen3-30b-a3b", "Q4_K_M")]


def power_over_time() -> pd.DataFrame:
    moments = frames_power.moments_frame(sustained(traced()))
    return moments[moments["quantity"] == "power (W)"]


def parities() -> pd.DataFrame:
    rows = [("stand-in-dense-base", "F16", "pp512", 1.002, 0.997, 1.02), ("stand-in-moe-base", "Q8_0", "tg128 @ d4096", 0.98, 0.97, 1.0)]
    return pd.DataFrame(rows, columns=["model", "format", "test", "ratio", "ratio_low", "ratio_high"])


FIGURES: dict[str, Callable[[Axes], Axes]] = {
    "decode_against_bytes": lambda ax: plots.decode_against_bytes(measured(), ax=ax),
    "rates_by_wall": lambda ax: plots.rates_by_wall(measured(), ax=ax),
    "device_ceilings": lambda ax: plots.device_ceilings(device(), ax=ax),
    "over_depth": lambda ax: plots.over_depth(frames.depth_frame(two(), here(), [256, 4096, 32768]), ax=ax),
    "over_batch": lambda ax: plots.over_batch(frames.batch_frame(two(), here(), [1, 16, 256, 4096], depth=256), ax=ax),
    "yardsticks": lambda ax: plots.yardsticks(frames.yardstick_frame(make_record().yardsticks), ax=ax),
    "roofline": lambda ax: plots.roofline(rooflines(), {"decode": 3.3}, ax=ax),
    "measured_roofline": lambda ax: plots.measured_roofline(frames_run.roofline_points(batches()), frames_run.roofs_frame(batches()), ax=ax),
    "experts_touched": lambda ax: plots.experts_touched(frames_run.experts_frame(batches()), ax=ax),
    "measured_over_depth": lambda ax: plots.measured_over_depth(frames.decode_rows(measured()), ax=ax),
    "decode_by_format": lambda ax: plots.decode_by_format(measured(), ax=ax),
    "itl_strip": lambda ax: plots.itl_strip(frames_served.itl_frame([make_served()]), ax=ax),
    "rate_over_time": lambda ax: plots.rate_over_time(frames_power.block_frame(sustained()), frames_power.sustain_frame(sustained()), ax=ax),
    "meters_over_time": lambda ax: plots.meters_over_time(power_over_time(), ax=ax),
    "parity": lambda ax: plots.parity(parities(), ax=ax),
    "batch_rates": lambda ax: plots.batch_rates(frames_run.experts_frame(batches()), ax=ax),
}
#: Axes that count things, and so name them instead of a unit.
COUNTED = ("sequences decoded side by side", "distinct experts per layer and step", "piece of the answer")
each_figure = pytest.mark.parametrize("name", FIGURES)


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    plt.close("all")


def test_every_figure_of_the_module_is_drawn_here() -> None:
    assert set(FIGURES) == set(plots.__all__) - {"STYLES", "download", "legend_below", "new_axes", "plain_log_ticks", "table", "text"}


@each_figure
def test_a_figure_is_drawn_on_the_given_axes_with_units_and_without_a_warning(name: str) -> None:
    ax = plots.new_axes()
    assert FIGURES[name](ax) is ax
    ax.figure.canvas.draw()
    units = r"\((?:ratio|s|min|GB|GB/s|tok/s|tokens of context|sequences|FLOP/byte|FLOP per byte of weights|GFLOP/s|TFLOP/s)\)$"
    assert re.search(f"{units}|^(?:{'|'.join(COUNTED)})$", ax.get_xlabel()), ax.get_xlabel()
    if ax.get_ylabel():
        assert re.search(rf"\(.+\)$|^GFLOP/s$|^(?:{'|'.join(COUNTED)})$", ax.get_ylabel()), ax.get_ylabel()
    else:
        assert all(t.get_text() for t in ax.get_yticklabels()) or not len(ax.get_yticks()), "an axis without unit names its rows"


@each_figure
def test_an_axis_starts_at_zero_unless_it_is_logarithmic(name: str) -> None:
    ax = FIGURES[name](plots.new_axes())
    if ax.get_xscale() == "linear":
        assert ax.get_xlim()[0] == 0


@each_figure
def test_a_phone_shows_letters_that_can_be_read(name: str) -> None:
    """A page of 360 CSS pixels has 328 for a figure; the smallest letters are then no smaller than 7.5."""
    figure = FIGURES[name](plots.new_axes()).figure
    figure.canvas.draw()
    letters_px = min(t.get_fontsize() for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()) * 96 / 72
    assert letters_px * 328 / (96 * figure.get_tightbbox().width) >= 7.5


def test_a_legend_takes_new_canvas_and_as_many_columns_as_fit() -> None:
    heights, columns = [], []
    for labels in (["a", "b", "c"], ["a long name of forty letters, all counted"] * 3):
        ax = plots.new_axes(6.6, 1.5)
        for label in labels:
            ax.plot([0, 1], label=label)
        before = ax.figure.get_figheight()
        plots.legend_below(ax)
        heights.append(ax.figure.get_figheight() - before)
        columns.append(ax.figure.legends[0]._ncols)
        ax.figure.canvas.draw()
        assert ax.get_window_extent().height > 0.6 * 72, "the plot keeps its height"
    assert columns == [3, 1]
    assert heights[1] > heights[0] > 0


def test_nothing_named_has_no_legend() -> None:
    ax = plots.new_axes()
    plots.legend_below(ax)
    assert not ax.figure.legends


def test_a_kernel_draws_vectors_that_are_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    shell = InteractiveShell()
    monkeypatch.setattr(plots, "get_ipython", lambda: shell)
    shown = []
    for _ in range(2):
        ax = plots.roofline(rooflines(), {"decode": 3.3}, ax=plots.new_axes())
        data, _ = shell.display_formatter.format(ax.figure)
        shown.append(data)
    assert {"image/svg+xml", "image/png"} <= shown[0].keys()
    assert shown[0] == shown[1]
    assert "<dc:date>" not in shown[0]["image/svg+xml"]


def test_the_ceiling_is_a_line_and_the_measurement_a_point_under_it() -> None:
    frame = measured()
    ax = plots.decode_against_bytes(frame, ax=plots.new_axes())
    line, *_ = ax.lines
    x, y = line.get_data()
    assert [a * b for a, b in zip(x, y, strict=True)] == pytest.approx([frame["bandwidth"].max() / 1e9] * 2), "rate times bytes is the bandwidth"
    row = frames.decode_rows(frame).iloc[0]
    points = [(float(p.get_xdata()[0]), float(p.get_ydata()[0])) for p in ax.lines[1:] if len(p.get_xdata()) == 1]
    assert any(p == pytest.approx((row["step_bytes"] / 1e9, row["tok_per_s"])) for p in points)


def test_measured_points_lie_where_their_frame_says_and_roofs_are_lines() -> None:
    points, roofs = frames_run.roofline_points(batches()), frames_run.roofs_frame(batches())
    ax = plots.measured_roofline(points, roofs, ax=plots.new_axes())
    drawn = {(float(line.get_xdata()[0]), float(line.get_ydata()[0])): line for line in ax.lines if len(line.get_xdata()) == 1}
    assert drawn.keys() == {(row.intensity, row.flop_per_s / 1e9) for row in points.itertuples()}
    for row in points.itertuples():
        line = drawn[row.intensity, row.flop_per_s / 1e9]
        assert line.get_marker() == ("s" if row.kind == "MoE" else "o"), "not told by colour alone"
        assert (line.get_markerfacecolor() == "white") == (row.phase == "prefill")
    slope, *flat = [line for line in ax.lines if len(line.get_xdata()) == 2]
    (bandwidth,) = roofs.loc[roofs["kind"] == "bandwidth", "rate"]
    assert list(slope.get_ydata() / slope.get_xdata()) == pytest.approx([bandwidth / 1e9] * 2)
    assert sorted(float(line.get_ydata()[0]) for line in flat) == sorted(roofs.loc[roofs["kind"] != "bandwidth", "rate"] / 1e9)


def test_expected_experts_do_not_depend_on_which_batches_were_counted() -> None:
    frame = frames_run.experts_frame(batches())
    ax = plots.experts_touched(frame[frame["n_seq"] > 1], ax=plots.new_axes())
    assert ax.lines[0].get_ydata()[[0, -1]] == pytest.approx([2, 8 * (1 - 0.75**16)])


def test_expected_experts_start_at_those_of_one_token_and_end_below_all_of_them() -> None:
    frame = frames_run.experts_frame(batches())
    ax = plots.experts_touched(frame, ax=plots.new_axes())
    expected, everyone, *_ = ax.lines
    assert expected.get_ydata()[0] == pytest.approx(2)
    assert expected.get_ydata()[-1] == pytest.approx(8 * (1 - 0.75**16))
    assert list(everyone.get_ydata()) == [8, 8]
    (counted,) = ax.containers
    assert list(counted.lines[0].get_ydata()) == [2, 5, 7.5], "means of what was counted; the dense file has none"


def test_rates_of_a_batch_are_points_with_a_line_for_each_file() -> None:
    frame = frames_run.experts_frame(batches())
    ax = plots.batch_rates(frame, ax=plots.new_axes())
    (legend,) = ax.figure.legends
    assert [t.get_text() for t in legend.get_texts()] == ["MoE F16", "dense F16"]
    for container, kind in zip(ax.containers, ("MoE", "dense"), strict=True):
        assert list(container.lines[0].get_ydata()) == list(frame[frame["kind"] == kind]["tok_per_s"])


def test_a_device_without_a_known_peak_has_no_roofline() -> None:
    ax = plots.roofline(rooflines(), {"decode": 3.3}, ax=plots.new_axes())
    (legend,) = ax.figure.legends
    assert [t.get_text() for t in legend.get_texts()] == ["one", "two"]


def test_a_batch_that_does_not_fit_is_a_hollow_mark() -> None:
    """Not told by colour alone."""
    frame = frames.batch_frame(two(), here(), [1, 16, 256, 4096], depth=2048)
    assert set(frame["fits"]) == {True, False}
    ax = plots.over_batch(frame, ax=plots.new_axes())
    for fits in (True, False):
        lines = [line for line in ax.lines if line.get_marker() != "None" and (line.get_markerfacecolor() != "white") == fits]
        drawn = sorted(float(x) for line in lines for x in line.get_xdata())
        assert drawn == sorted(frame[frame["fits"] == fits]["batch"])
    (legend,) = ax.figure.legends
    assert legend.get_texts()[-1].get_text() == "does not fit"


@pytest.mark.parametrize("column", ["model", "decode"])
def test_text_of_a_table_is_escaped_wherever_it_comes_from(column: str) -> None:
    frame = pd.DataFrame({"model": ["a model"], "decode": [1.0]}).astype(object)
    frame.loc[0, column] = "<script>alert(1)</script>"
    html = plots.table(frame, {"model": "model", "decode": "decode (tok/s)"}).to_html()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


def test_a_heading_of_a_table_is_escaped_too() -> None:
    html = plots.table(pd.DataFrame({"a": [1.0]}), {"a": "<img src=x onerror=alert(1)>"}).to_html()
    assert "<img" not in html


@pytest.mark.parametrize(("n_rows", "long", "expected"), [(20, None, False), (21, None, True), (2, True, True), (99, False, False)])
def test_a_table_of_many_rows_is_marked_as_long(n_rows: int, long: bool | None, expected: bool) -> None:
    frame = pd.DataFrame({"a": ["<script>alert(1)</script>"] * n_rows})
    html = plots.table(frame, {"a": "a"}, long=long).to_html()
    assert ('<table id="' in html and 'class="long"' in html) == expected
    assert "<script>" not in html
    assert html.count("<tr>") == n_rows + 1, "every row is in the page, whoever reads it"


def test_only_a_column_of_prose_keeps_a_width() -> None:
    frame = pd.DataFrame({"name": ["short"], "rate": [1.0], "because": ["a reason of more than forty characters, say"]})
    html = plots.table(frame, {"name": "name", "rate": "rate", "because": "because"}).to_html()
    (rule,) = re.findall(r"([^{}]*)\{[^}]*min-width", html)
    assert rule.strip().endswith("_row0_col2")


def read_csv(link: str) -> list[list[str]]:
    encoded = re.search(r'href="data:text/csv;charset=utf-8;base64,([^"]*)"', link)
    assert encoded
    return list(csv.reader(io.StringIO(base64.b64decode(encoded[1]).decode())))


def test_data_of_a_page_is_a_file_that_reads_back() -> None:
    frame = pd.DataFrame({"model": ["a, b", 'say "c"', None], "tok_per_s": [1 / 3, -2.0, None], "devices": [("x", "y"), (), ("z",)]})
    link = plots.download(frame, "some-data").data
    assert 'download="some-data.csv"' in link
    assert "(3 rows)" in link
    assert read_csv(link) == [["model", "tok_per_s", "devices"], ["a, b", repr(1 / 3), "x; y"], ['say "c"', "-2.0", ""], ["", "", "z"]]


@pytest.mark.parametrize("text", ['=HYPERLINK("http://x")', "+1", "-1+1", "@SUM(A1)", "  =1", "\t=1", "\r=1"])
def test_a_spreadsheet_shows_a_formula_and_does_not_run_it(text: str) -> None:
    (heading,), (cell,), (listed,) = read_csv(plots.download(pd.DataFrame({text: [text, [text]]}), "x").data)
    assert heading == cell == listed == f"'{text.strip()}"


def test_a_line_of_data_is_a_line_of_the_file() -> None:
    """A spreadsheet begins a row, and so perhaps a formula, wherever a line begins."""
    assert read_csv(plots.download(pd.DataFrame({"a": ["x\r=1\n=2"]}), "x").data) == [["a"], ["x =1 =2"]]


def test_numbers_stay_numbers_in_a_spreadsheet() -> None:
    assert read_csv(plots.download(pd.DataFrame({"a": [-1.5, 2e-9]}), "x").data) == [["a"], ["-1.5"], ["2e-09"]]


@pytest.mark.parametrize("name", ["", "../x", "A", 'x" onclick="', "x.csv", "-x"])
def test_the_name_of_a_file_is_no_path_and_no_markup(name: str) -> None:
    with pytest.raises(UsageError, match="no name for a file"):
        plots.download(pd.DataFrame(), name)


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


def test_a_comparison_is_a_point_with_its_range_beside_one_and_a_band_of_a_hundredth() -> None:
    ax = plots.parity(parities(), ax=plots.new_axes())
    low, high = ax.get_xlim()
    assert low * high == pytest.approx(1), "one is in the middle"
    assert low < 0.97
    assert [t.get_text() for t in ax.get_yticklabels()] == ["dense-base F16, pp512", "moe-base Q8_0, tg128 @ d4096"]
    band = ax.patches[0].get_path().get_extents(ax.patches[0].get_patch_transform())
    assert (band.x0, band.x1) == pytest.approx((0.99, 1.01))
    marks = {line.get_marker(): [float(x) for x in line.get_xdata()] for line in ax.lines if line.get_marker() in ("o", "X")}
    assert marks == {"o": [1.002], "X": [0.98]}, "a row that is off has another mark, not just another colour"
