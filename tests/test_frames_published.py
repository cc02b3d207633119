"""Published rates beside ceilings: figures that others computed are met, and what a table or a line says can be wrong in no silent way."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from helpers import make_record
from nbutils import frames, frames_published, plots, plots_published
from nbutils.errors import DataError, UnknownId
from nbutils.frames_published import fixed_cost, lawful, published_frame

FRAME = published_frame()


def the(device: str, model: str, fmt: str, **fields: Any) -> Any:
    rows = FRAME[(FRAME["device"] == device) & (FRAME["model"] == model) & (FRAME["format"] == fmt)]
    for name, value in fields.items():
        rows = rows[rows[name] == value]
    assert len(rows) == 1, rows[["depth", "engine", "tok_per_s", "source"]]
    return rows.iloc[0]


# ── rates beside ceilings ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("device", "model", "fmt", "engine", "measured", "ceiling"),
    [
        # Ceilings at depth 0 as computed by hand elsewhere; a short context takes less than 2 % off.
        ("dgx-spark", "llama-3.3-70b", "Q4_K_M", "ollama", 4.71, 6.51),
        ("mac-studio-m3-ultra", "llama-3.3-70b", "Q4_K_M", "ollama", 14.08, 19.54),
        ("mac-studio-m1-max", "llama-3.3-70b", "Q4_K_M", "ollama", 7.25, 9.54),
        ("mac-mini-m4", "llama-3.1-8b", "Q4_K_M", "llama.cpp", 20.87, 25.99),
    ],
)
def test_a_rate_stands_beside_its_ceiling(device: str, model: str, fmt: str, engine: str, measured: float, ceiling: float) -> None:
    row = the(device, model, fmt, engine=engine)
    assert row["tok_per_s"] == measured
    assert ceiling * 0.98 < row["ceiling_tok_per_s"] <= ceiling * 1.001
    assert row["share"] == pytest.approx(row["tok_per_s"] / row["ceiling_tok_per_s"])


def test_depth_lowers_the_ceiling_by_the_cache() -> None:
    short, deep = (the("dgx-spark", "qwen3-30b-a3b", "Q8_0", depth=d, engine="llama.cpp") for d in (16, 32784))
    # 48 layers x 2 x 4 heads x 128 x 2 bytes per token of context.
    assert 1e9 * (deep["step_gb"] - short["step_gb"]) == pytest.approx((32784 - 16) * 98_304)
    assert deep["ceiling_tok_per_s"] == pytest.approx(273 / deep["step_gb"])


def test_bytes_from_a_page_are_marked_as_such() -> None:
    row = FRAME[(FRAME["device"] == "rtx-5060-ti-16gb")].iloc[0]
    assert not row["exact"]
    assert row["ceiling_tok_per_s"] == pytest.approx(448e9 / (4.348e9 + 64 * 57_344))
    shown, headings, _ = frames_published.published_table(FRAME[FRAME["device"] == "rtx-5060-ti-16gb"])
    assert shown["share_words"].tolist() == ["~85%"]
    assert headings["share_words"] == "share"


def test_what_is_above_its_ceiling_is_there_and_told_apart() -> None:
    above = FRAME[FRAME["share"] > 1]
    assert len(above) > 0
    assert (above["above_because"] != "").all()
    assert lawful(FRAME)["share"].max() < 1
    assert len(lawful(FRAME)) + len(above) == len(FRAME)
    shown, headings, _ = frames_published.above_table(FRAME)
    assert shown["share"].is_monotonic_increasing
    assert set(headings) <= set(shown)


def test_prefill_is_bounded_by_arithmetic_where_the_peak_is_known() -> None:
    prefill = published_frame(phase="prefill")
    assert len(prefill) > 30
    assert (prefill["share"].dropna() < 1).all()
    assert (prefill["n_prompt"] > 0).all()


def test_a_device_and_a_model_can_be_asked_for_and_unknown_ones_are_named() -> None:
    assert set(published_frame(device="dgx-spark", model="gpt-oss-120b")["device"]) == {"dgx-spark"}
    none = published_frame(device="rtx-spark-n1x")
    assert len(none) == 0
    assert list(none) == list(FRAME)
    with pytest.raises(UnknownId, match="no device 'dgx-sprak' in data/devices; did you mean 'dgx-spark'"):
        published_frame(device="dgx-sprak")
    with pytest.raises(UnknownId, match="no model 'llama'"):
        published_frame(model="llama")


def test_own_rates_have_the_ceiling_of_the_bandwidth_measured_beside_them() -> None:
    measured = frames.measured_frame([make_record()])
    own = frames_published.own_frame(measured)
    decode = frames.decode_rows(measured)
    assert own["ceiling_tok_per_s"].tolist() == decode["ceiling_tok_per_s"].tolist()
    assert set(own) - {"date"} <= set(FRAME)


# ── tables ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "table", [frames_published.published_table, frames_published.family_table, frames_published.best_table, frames_published.depth_table]
)
def test_tables_become_pages_without_holes(table: Any) -> None:
    shown, headings, formats = table(FRAME)
    assert set(formats) <= set(headings) <= set(shown)
    page = plots.table(shown, headings, formats).to_html()
    assert "nan" not in page
    assert "None" not in page


def test_a_table_of_no_rates_is_an_empty_table() -> None:
    shown, headings, formats = frames_published.published_table(FRAME.iloc[:0])
    assert "<td" not in plots.table(shown, headings, formats, links={"title": "url"}).to_html()


def test_text_of_a_source_does_not_become_markup() -> None:
    rows = FRAME.head(1).assign(title="<script>x</script>", note="<b>")
    shown, headings, formats = frames_published.published_table(rows)
    page = plots.table(shown, headings, formats, links={"title": "url"}).to_html()
    assert "<script>" not in page
    assert "<b>" not in page


def test_the_best_of_each_device_is_one_row_and_its_best_share() -> None:
    shown, _, _ = frames_published.best_table(FRAME)
    rows = lawful(FRAME)
    assert len(shown) == rows["device"].nunique()
    assert dict(zip(shown["device"], shown["share"], strict=True)) == rows.groupby("device")["share"].max().to_dict()
    assert dict(zip(shown["device"], shown["rates"], strict=True)) == rows["device"].value_counts().to_dict()


def test_families_are_medians_of_what_they_say() -> None:
    shown = frames_published.family_table(FRAME)[0].set_index("family")
    rows = lawful(FRAME, shallow=True)
    apple = rows[(rows["family"] == "apple") & (rows["kind"] == "dense") & (rows["step_gb"] >= 3)]["share"]
    assert shown.loc["Apple", "large"] == np.median(apple)
    assert shown["rates"].sum() == len(rows)


def test_pairs_of_depths_are_of_one_model_by_one_source() -> None:
    shown = frames_published.depth_table(FRAME, least=32000)[0]
    pair = shown[(shown["model_name"] == "Qwen3 30B-A3B") & (shown["device_name"] == "NVIDIA DGX Spark")].iloc[0]
    assert pair["rate_left"] == pytest.approx(30.21 / 61.06)
    assert pair["depth"] == 32784
    assert (shown["depth"] >= 32000).all()


# ── the cost of a layer ───────────────────────────────────────────────────────────────────────────


def rates(read_share: float, layer_s: float, sizes: list[tuple[float, int]]) -> pd.DataFrame:
    """Rates of a machine that is exactly two constants."""
    rows = []
    for gb, layers in sizes:
        seconds = gb / (read_share * 1000) + layers * layer_s
        fields = {"device": "x", "device_name": "X", "engine": "e", "kind": "dense", "depth": 0, "batch_size": 1, "above_because": ""}
        rows.append(fields | {"bandwidth_gb_per_s": 1000.0, "step_gb": gb, "n_layer": layers, "tok_per_s": 1 / seconds, "share": gb / 1000 / seconds})
    return pd.DataFrame(rows)


def test_two_constants_are_found_again() -> None:
    found = fixed_cost(rates(0.9, 40e-6, [(0.5, 24), (1, 28), (4, 32), (8, 32), (20, 64)]), "x", "e")
    assert found.read_share == pytest.approx(0.9)
    assert found.layer_s == pytest.approx(40e-6)
    assert found.median_error == pytest.approx(0, abs=1e-9)
    assert found.seconds(4e9, 32) == pytest.approx(4 / 900 + 32 * 40e-6)


def test_published_rates_give_the_constants_that_an_independent_analysis_of_them_found() -> None:
    card = fixed_cost(FRAME, "rtx-4090", "llama.cpp")
    assert card.read_share == pytest.approx(0.94, abs=0.02)
    assert 1e6 * card.layer_s == pytest.approx(39, abs=3)
    assert 1e6 * fixed_cost(FRAME, "rtx-4090", "calm").layer_s == pytest.approx(18, abs=7)


def test_too_few_rates_and_costs_below_zero_are_said() -> None:
    with pytest.raises(DataError, match=r"^x has 3 dense rates of e at short context; two constants need four at least$"):
        fixed_cost(rates(0.9, 40e-6, [(1, 24), (2, 28), (4, 32)]), "x", "e")
    with pytest.raises(DataError, match="it would be negative"):
        fixed_cost(rates(0.9, -4e-6, [(1, 24), (2, 28), (4, 32), (8, 32)]), "x", "e")


# ── figures ───────────────────────────────────────────────────────────────────────────────────────


def test_every_rate_is_a_point_and_the_wall_is_where_both_are_equal() -> None:
    own = frames_published.own_frame(frames.measured_frame([make_record()]))
    ax = plots_published.ceiling_and_measured(FRAME, own, ax=plots.new_axes())
    points = sum(len(line.get_xdata()) for line in ax.lines if line.get_marker() not in ("None", ""))
    assert points == len(FRAME) + len(own)
    wall = ax.lines[0]
    assert list(wall.get_xdata()) == list(wall.get_ydata())
    assert ax.get_xlim() == ax.get_ylim()
    assert ax.get_xlim()[0] < FRAME["tok_per_s"].min()
    plt.close("all")


def test_lines_of_the_constants_run_through_rates_that_obey_them() -> None:
    frame = rates(0.9, 40e-6, [(0.5, 32), (1, 32), (4, 32), (16, 32)])
    ax = plots_published.share_over_bytes(frame, [fixed_cost(frame, "x", "e")], ax=plots.new_axes())
    points, line, *_ = ax.lines
    drawn = np.interp(points.get_xdata(), line.get_xdata(), line.get_ydata())
    assert drawn == pytest.approx(np.asarray(points.get_ydata()), rel=1e-3)
    assert ax.get_ylim()[1] > 1
    plt.close("all")
