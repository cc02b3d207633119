"""An explanation is right when its lines add up to what it explains."""

from __future__ import annotations

import pytest

from helpers import each_kind, stored
from nbutils import fit, frames, limits, places, registry
from nbutils.explain import Line, explain, fit_lines, layer_words, limit_lines
from nbutils.places import Place
from nbutils.specs import Model
from nbutils.tensors import Variant, variant


def place_of(device_id: str, configuration: str = "") -> Place:
    device = registry.load_device(device_id)
    return places.place(device, device.configuration(configuration))


def told_of_fit(found: Variant, where: Place, n_ctx: int = 8192, batch_size: int = 1) -> dict[str, Line]:
    budget = frames.budget_of(found, where, n_ctx=n_ctx, batch_size=batch_size)
    lines = fit_lines(found, budget, where.room, n_ctx=n_ctx, kv_type="f16", batch_size=batch_size, sources=where.sources)
    return {line.what.strip(): line for line in lines}


def value(told: dict[str, Line], *names: str) -> float:
    """The sum of the named lines; a line that is not shown counts as nothing."""
    values = [told[name].value for name in names if name in told]
    assert all(isinstance(v, int | float) for v in values)
    return sum(v for v in values if isinstance(v, int | float))


# ── fit ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("device_id", ["dgx-spark", "rtx-4090"])
@pytest.mark.parametrize("batch_size", [1, 3])
@each_kind
def test_the_lines_of_a_fit_add_up(model: Model, batch_size: int, device_id: str) -> None:
    found, where = variant(model, registry.load_format("Q4_K_M")), place_of(device_id)
    told = told_of_fit(found, where, batch_size=batch_size)
    held = value(told, "weights", "KV cache", "recurrent state", "compute buffer", "output buffer", "runtime")
    assert held == value(told, "total")
    assert value(told, "memory") - value(told, "out of reach", "system keeps") + value(told, "elsewhere") == value(told, "available")
    assert value(told, "available") - value(told, "total") == value(told, "headroom")
    assert told["headroom"].how == "fits"
    assert {line.unit for line in told.values()} == {"bytes"}


def test_what_a_model_does_not_have_is_not_explained() -> None:
    where = place_of("dgx-spark")
    assert "recurrent state" not in told_of_fit(stored("qwen3-8b", "Q4_K_M"), where)
    assert "recurrent state" in told_of_fit(stored("nemotron-3-nano", "Q4_K_M"), where)
    assert "elsewhere" not in told_of_fit(stored("qwen3-8b", "Q4_K_M"), where)
    assert "caveat" not in told_of_fit(stored("qwen3-8b", "Q4_K_M"), where)


@pytest.mark.parametrize(
    ("model_id", "device_id", "how"),
    [
        ("glm-4.5-air", "dgx-spark", "layers that only draft tokens stay on disk"),
        ("qwen3-8b", "rtx-4090", "the input embedding and the logits stay with the processor"),
        ("glm-4.5-air", "rtx-4090", "layers that only draft tokens stay on disk; the input embedding and the logits stay with the processor"),
    ],
)
def test_what_lies_elsewhere_is_said_before_what_is_available(model_id: str, device_id: str, how: str) -> None:
    found, where = stored(model_id, "Q4_K_M"), place_of(device_id)
    told = told_of_fit(found, where)
    assert told["elsewhere"] == Line("elsewhere", fit.elsewhere_bytes(found, discrete=where.discrete), "bytes", how)
    assert list(told)[-3:] == ["elsewhere", "available", "headroom"]


@pytest.mark.parametrize(("headroom", "words"), [(-1, "does not fit"), (1, "tight"), (10**12, "fits")])
def test_a_fit_ends_in_its_verdict(headroom: int, words: str) -> None:
    found, where = stored("qwen3-8b", "Q4_K_M"), place_of("rtx-4090")
    need = frames.budget_of(found, where, n_ctx=256).total_bytes
    budget = fit.memory_budget(found, n_ctx=256, available_bytes=need + headroom, overhead_bytes=where.room.overhead_bytes)
    assert fit_lines(found, budget, where.room, n_ctx=256, kv_type="f16")[-1] == Line("headroom", headroom, "bytes", words)


@pytest.mark.parametrize(
    ("basis", "words"),
    [("asked", "was asked"), ("kept", "answer for its CPU backend"), ("upper_bound", "an upper bound"), ("allowance", "an allowance")],
)
def test_whose_compute_buffer_it_is_stands_beside_it(basis: fit.Basis, words: str) -> None:
    found, where = stored("qwen3-8b", "Q4_K_M"), place_of("rtx-4090")
    budget = frames.budget_of(found, where, n_ctx=256, compute=fit.ComputeBuffer(10**8, basis))
    (line,) = (x for x in fit_lines(found, budget, where.room, n_ctx=256, kv_type="f16") if x.what == "compute buffer")
    assert line.value == 10**8
    assert words in line.how


def test_every_figure_that_is_somebodys_names_its_source() -> None:
    where = place_of("dgx-spark")
    told = told_of_fit(stored("qwen3-8b", "Q4_K_M"), where)
    device, runtimes = registry.load_device("dgx-spark"), registry.load_runtimes()
    configuration = device.configuration()
    assert configuration.usable is not None
    assert told["memory"].source == device.sources[configuration.memory.source].title
    assert told["out of reach"].source == device.sources[configuration.usable.source].title
    assert told["system keeps"].source == runtimes.sources[runtimes.systems["linux"].unified.source].title
    assert told["runtime"].source == runtimes.sources[runtimes.backends["cuda"].overhead.source].title


@pytest.mark.parametrize(
    ("model_id", "words"),
    [
        ("qwen3-8b", "36 layers keep all of it"),
        ("gemma-3-27b", "10 layers keep all of it, 52 keep a window of 1,024"),
        ("deepseek-v3", "61 layers keep one compressed vector per token"),
        ("nemotron-3-nano", "6 layers keep all of it, 23 layers keep a state of fixed size, 23 layers keep nothing"),
    ],
)
def test_what_the_layers_keep_in_words(model_id: str, words: str) -> None:
    assert layer_words(stored(model_id, "F16")) == words


# ── limits ────────────────────────────────────────────────────────────────────────────────────────


def told_of_limits(found: Variant, peak: float | None, depth: int = 100, batch_size: int = 1, n_prompt: int = 512) -> dict[str, Line]:
    limit = limits.decode_limit(found, bandwidth_bytes_per_s=273e9, peak_flop_per_s=peak, depth=depth, batch_size=batch_size)
    lines = limit_lines(
        found,
        limit,
        bandwidth_bytes_per_s=273e9,
        bandwidth_source="a page",
        peak_flop_per_s=peak,
        peak_source="a data sheet",
        depth=depth,
        n_prompt=n_prompt,
    )
    return {line.what: line for line in lines}


@pytest.mark.parametrize("batch_size", [1, 5])
@pytest.mark.parametrize("peak", [1e9, 125e12])
@each_kind
def test_the_lines_of_a_ceiling_add_up(model: Model, peak: float, batch_size: int) -> None:
    told = told_of_limits(variant(model, registry.load_format("Q4_K_M")), peak, batch_size=batch_size)
    assert value(told, "weights read", "K and V read", "state read") == pytest.approx(value(told, "step"), abs=1)
    assert value(told, "step") / value(told, "bandwidth") * 1e3 == pytest.approx(value(told, "reading takes"), rel=1e-4)
    assert value(told, "arithmetic") / value(told, "peak") * 1e3 == pytest.approx(value(told, "computing takes"))
    slower = max(value(told, "reading takes"), value(told, "computing takes"))
    assert value(told, "decode ceiling") == pytest.approx(batch_size * 1e3 / slower)
    assert told["decode ceiling"].how.startswith("compute binds" if peak == 1e9 else "bandwidth binds")
    assert value(told, "prefill ceiling") == pytest.approx(512 * peak / value(told, "prompt"))
    assert (told["bandwidth"].source, told["peak"].source) == ("a page", "a data sheet")


def test_an_unknown_peak_is_said_and_nothing_is_computed_from_it() -> None:
    told = told_of_limits(stored("qwen3-8b", "Q4_K_M"), None)
    assert told["peak"].shown == told["prefill ceiling"].shown == "unknown"
    assert "computing takes" not in told
    assert told["decode ceiling"].how == "bandwidth binds"


def test_a_prompt_of_nothing_is_left_out() -> None:
    assert not {"prompt", "prefill ceiling"} & told_of_limits(stored("qwen3-8b", "Q4_K_M"), 1e14, n_prompt=0).keys()


def test_a_batch_says_how_many_experts_it_expects_to_need() -> None:
    found = stored("qwen3-30b-a3b", "Q4_K_M")
    assert told_of_limits(found, 1e14)["weights read"].how == "each weight once, 8.0 of 128 experts a layer"
    assert told_of_limits(found, 1e14, batch_size=16)["weights read"].how == "each weight once for 16 sequences, 82.4 of 128 experts a layer expected"


# ── text ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (None, "unknown"),
        ("words", "words"),
        (0, "0"),
        (1234567, "1,234,567"),
        (-5000, "-5,000"),
        (6.5096, "6.51"),
        (1234.5, "1,234.50"),
        (0.1, "0.10"),
        (0.09999, "0.1"),  # below a tenth two digits that say something, wherever they stand
        (0.012345, "0.012"),
        (-0.000012345, "-1.2e-05"),
        (0.0, "0.00"),
        (2.5e9, "2,500,000,000"),
    ],
)
def test_a_figure_is_shown_in_full_and_with_separators(given: float | str | None, shown: str) -> None:
    assert Line("x", given).shown == shown


def test_figures_stand_under_each_other_with_unit_reason_and_source() -> None:
    lines = [Line("weights", 5, "bytes", "summed", "a file"), Line("recurrent state", 1234, "bytes"), Line("peak", None, "FLOP/s", "", "nobody")]
    assert explain(lines).splitlines() == [
        "weights                5 bytes: summed  [a file]",
        "recurrent state    1,234 bytes",
        "peak             unknown FLOP/s  [nobody]",
    ]
    assert explain([]) == ""


def test_the_figures_of_a_real_explanation_end_in_one_column() -> None:
    told = told_of_fit(stored("nemotron-3-nano", "Q4_K_M"), place_of("mac-studio-m4-max"))
    text = explain(list(told.values())).splitlines()
    assert len({line.index(" bytes") for line in text}) == 1
    assert all(line == line.rstrip() for line in text)
