"""What the argument chapters draw, against numbers worked out by hand or printed by others."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.axes import Axes

from nbutils import frames_chapters, places, plots, plots_chapters, registry
from nbutils.places import Place
from nbutils.tensors import variant


def here(device_id: str = "dgx-spark") -> Place:
    device = registry.load_device(device_id)
    return places.place(device, device.configuration())


def walls() -> pd.DataFrame:
    llama = variant(registry.load_model("llama-3.3-70b"), registry.load_format("Q4_K_M"))
    devices = [registry.load_device(i) for i in ("dgx-spark", "surface-laptop-ultra", "h100-sxm")]
    return frames_chapters.walls_frame(llama, devices, n_prompt=512)


def contexts(*model_ids: str) -> pd.DataFrame:
    return frames_chapters.context_frame([registry.load_model(i) for i in model_ids], [2**k for k in range(10, 21)])


def crowd() -> pd.DataFrame:
    formats = [registry.load_format(f) for f in ("BF16", "FP8", "Q4_K_M")]
    return frames_chapters.batch_formats_frame(registry.load_model("qwen3-32b"), formats, here(), [1, 2, 1024])


# ── frames ────────────────────────────────────────────────────────────────────────────────────────


def test_a_token_waits_for_memory_and_a_prompt_for_arithmetic() -> None:
    frame = walls().set_index(["device", "what"])
    token = frame.loc[("DGX Spark", "one token")]
    assert token["read_s"] == pytest.approx(41.92e9 / 273e9, rel=1e-3), "bytes of the file without its embedding, by the data sheet"
    assert token["compute_s"] == pytest.approx(2 * 69.5e9 / 125e12, rel=1e-3)
    prompt = frame.loc[("DGX Spark", "a prompt of 512 tokens")]
    assert prompt["read_s"] == token["read_s"]
    assert prompt["compute_s"] > prompt["read_s"]


def test_a_device_without_a_known_peak_has_no_walls_to_draw() -> None:
    unknown = next(d for d in map(registry.load_device, registry.device_ids()) if d.peak("fp16") is None)
    llama = variant(registry.load_model("llama-3.1-8b"), registry.load_format("Q4_K_M"))
    assert frames_chapters.walls_frame(llama, [unknown], n_prompt=512).empty


def test_memory_over_context_is_the_file_the_cache_and_little_else() -> None:
    frame = contexts("llama-3.3-70b")
    assert list(frame["n_ctx"]) == [2**k for k in range(10, 18)], "the line ends where training did, and no context stands twice"
    cache = 80 * 8 * 128 * 2 * 2 * 131072  # layers, heads, size of a head, K and V, bytes
    assert frame["total_bytes"].iloc[-1] == pytest.approx(42_512_531_712 + cache, rel=0.006), "the published file, and a cache of 16-bit numbers"
    assert frame["total_bytes"].is_monotonic_increasing


def test_the_largest_context_is_empty_where_the_weights_alone_do_not_fit() -> None:
    models = [registry.load_model(i) for i in ("nemotron-3-super", "llama-3.1-8b")]
    frame, headings, formats = frames_chapters.largest_context_frame(models, [here(), here("rtx-5090")], 2**20)
    rows = frame.set_index("name")
    assert rows.loc["nemotron-3-super", "dgx-spark"] == 2**20
    assert pd.isna(rows.loc["nemotron-3-super", "rtx-5090"])
    assert rows.loc["llama-3.1-8b", "cache"] == pytest.approx(32 * 8 * 128 * 2 * 2 * 2**20 / 1e9), "asked for more than it was trained for"
    assert set(formats) <= set(headings) <= set(frame)


def test_a_dense_model_is_read_whole_and_a_mixture_is_not() -> None:
    rows = frames_chapters.stored_frame([registry.load_model(i) for i in ("llama-3.3-70b", "qwen3-30b-a3b")]).set_index("kind")
    assert rows.loc["dense", "stored_gb"] == pytest.approx(42.512531712)
    assert rows.loc["dense", "read_gb"] / rows.loc["dense", "stored_gb"] > 0.98
    assert rows.loc["MoE", "read_gb"] < 0.11 * rows.loc["MoE", "stored_gb"]


def test_formats_part_on_the_slope_by_bytes_and_on_the_flat_by_arithmetic() -> None:
    rows = crowd().set_index(["label", "batch"])
    assert rows.loc[("BF16", 2), "total"] == pytest.approx(2 * rows.loc[("BF16", 1), "total"])
    assert rows.loc[("FP8", 1), "total"] / rows.loc[("BF16", 1), "total"] == pytest.approx(1.95, abs=0.05), "half the bytes but for the output head"
    assert rows.loc[("FP8", 1024), "total"] == pytest.approx(250e12 / (2 * 31.98e9), rel=1e-3), "the dense FP8 peak over two per weight"
    assert rows.loc[("Q4_K_M", 1024), "total"] == rows.loc[("FP8", 1024), "total"] == 2 * rows.loc[("BF16", 1024), "total"]


def test_the_batch_where_arithmetic_takes_over_is_a_row_and_the_first_of_its_kind() -> None:
    frame = crowd()
    turns = frame[frame["binding"] == "compute"].groupby("label")["batch"].min()
    before = frames_chapters.batch_formats_frame(registry.load_model("qwen3-32b"), [registry.load_format("FP8")], here(), [int(turns["FP8"]) - 1])
    assert set(before["binding"]) == {"bandwidth"}
    assert turns["Q4_K_M"] < turns["FP8"] < 1024


# ── figures ───────────────────────────────────────────────────────────────────────────────────────


def words(ax: Axes) -> set[str]:
    named = [text.get_text() for text in ax.texts] + [label.get_text() for label in ax.get_yticklabels()]
    return {*named, ax.get_xlabel(), ax.get_ylabel(), *ax.get_legend_handles_labels()[1]}


@pytest.fixture
def ax() -> Axes:
    return plots.new_axes()


def test_the_figure_of_both_walls_names_them_and_by_how_much_they_differ(ax: Axes) -> None:
    said = words(plots_chapters.two_walls(walls(), ax=ax))
    assert {"reading the weights", "doing the arithmetic", "one token", "a prompt of 512 tokens", "DGX Spark", "138 × longer"} <= said
    ax.figure.canvas.draw()
    ticks = {label.get_text() for label in ax.get_xticklabels()}
    assert {"10 ms", "1 s"} <= ticks
    plt.close()


def test_memory_over_context_draws_a_line_per_model_and_one_per_machine(ax: Axes) -> None:
    plots_chapters.memory_over_context(contexts("llama-3.3-70b", "nemotron-3-nano"), {"left on this": 50e9, "left on that": 30e9}, ax=ax)
    assert {"Llama 3.3 70B", "left on this", "context (tokens)", "memory (GB)"} <= words(ax)
    level = [line.get_ydata()[0] for line in ax.lines if len(set(line.get_ydata())) == 1 and len(line.get_ydata()) == 2]
    assert level == [50.0, 30.0]
    ax.figure.canvas.draw()
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1 K", "4 K", "16 K", "64 K", "256 K", "1 M"]
    plt.close()


def test_stored_against_read_turns_bytes_into_ceilings_on_the_right(ax: Axes) -> None:
    frame = frames_chapters.stored_frame([registry.load_model(i) for i in ("llama-3.1-8b", "llama-3.3-70b", "qwen3-30b-a3b", "gpt-oss-120b")])
    plots_chapters.stored_against_read(frame, 273, ax=ax)
    ax.figure.canvas.draw()
    (right,) = ax.child_axes
    for gb, tok_per_s in ((42, 6.5), (2, 136.5)):  # the division of the first page
        assert right.transData.transform((0, tok_per_s))[1] == pytest.approx(ax.transData.transform((10, gb))[1], abs=0.01), gb
    assert {"Llama 3.3 70B", "gpt-oss 120B", "dense", "mixture of experts"} <= words(ax)
    assert "(tok/s)" in right.get_ylabel()
    plt.close()


def test_formats_over_batch_marks_where_arithmetic_takes_over(ax: Axes) -> None:
    frame = crowd()
    plots_chapters.formats_over_batch(frame, ax=ax)
    dots = sorted(float(line.get_xdata()[0]) for line in ax.lines if line.get_marker() == "o" and len(line.get_xdata()) == 1)
    assert dots == sorted(frame[frame["binding"] == "compute"].groupby("label")["batch"].min().astype(float))
    assert {"BF16", "FP8", "Q4_K_M", "from here on arithmetic binds"} <= words(ax)
    plt.close()
