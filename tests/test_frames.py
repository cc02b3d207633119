"""Rates, ceilings, shares and walls of a record small enough to work out on paper."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import PAPER_MOE, make_record, stored
from nbutils import explain, fit, frames, limits, places, registry
from nbutils.errors import DataError, UnknownId
from nbutils.oracle import Comparison
from nbutils.places import Place
from nbutils.specs import Figure, KernelRate, Machine, Point, Record, Suite, SuitePoint, Yardstick


def ruler(when: str, samples_s: tuple[float, ...], *, method: str = "ruler", where: str = "cpu", kind: str = "read") -> Yardstick:
    return Yardstick(when=when, method=method, kind=kind, where=where, n_threads=1, n_bytes=1000, samples_s=samples_s)


def kernel(placement: str, samples_s: tuple[float, ...], n_bytes: int = 1000) -> KernelRate:
    sizes = {"n_rows": 10, "n_columns": 50, "n_batch": 1, "n_bytes": n_bytes, "n_threads": 1}
    return KernelRate(when="before", tensor_type="F16", placement=placement, samples_s=samples_s, **sizes)


def paper_record(token_s: float = 1.0, **changes: object) -> Record:
    """Decode of 4 tokens at depth 8, ``token_s`` a token. Medians: memory 1,000 bytes/s (2,000 at best), cache 4,000."""
    suite = Suite(id="paper", name="Paper", points=(SuitePoint(kind="decode", n_tokens=4, depth=8),), repetitions=2, yardstick_s=0.1)
    point = Point(kind="decode", n_tokens=4, depth=8, warmup_s=1, repetitions_s=((token_s,) * 4, (token_s,) * 4))
    fields: dict[str, object] = {
        "suite": suite,
        "points": (point,),
        "model": PAPER_MOE,
        "yardsticks": (ruler("before", (1.25, 1.0, 0.8)), ruler("after", (1.0, 1.0, 0.5))),
        "kernels": (kernel("cache", (0.3, 0.25, 0.2)), kernel("memory", (1.0,))),
    }
    return make_record(**(fields | changes))


# ── what was measured ─────────────────────────────────────────────────────────────────────────────


def test_a_step_reads_the_used_experts_and_the_cache_at_its_middle() -> None:
    record = paper_record()
    # 2 of 8 experts: 100. Output 100, other 200. The embedding is looked up, one row of it. K and V: 10 x (8 + 4 / 2).
    assert frames.step_bytes(record, record.points[0]) == pytest.approx(100 + 100 + 200 + 100)


def test_a_row_of_the_measured_frame_is_what_paper_says() -> None:
    (row,) = frames.measured_frame([paper_record(token_s=1.0)]).to_dict("records")
    expected = {
        "tok_per_s": 1.0,
        "step_bytes": 500,
        "achieved": 500,
        "bandwidth": 1000,
        "arithmetic": 4000,
        "ceiling_tok_per_s": 2.0,
        "share": 0.5,
        "noise": 1.0,
    }
    assert {name: row[name] for name in expected} == pytest.approx(expected)
    assert (row["kind"], row["format"], row["phase"], row["depth"]) == ("MoE", "F16", "decode", 8)


def test_the_rate_is_the_median_of_repetitions_between_the_slowest_and_the_fastest() -> None:
    suite = Suite(id="paper", name="Paper", points=(SuitePoint(kind="prefill", n_tokens=60),), repetitions=3, yardstick_s=0.1)
    point = Point(kind="prefill", n_tokens=60, depth=0, warmup_s=9, repetitions_s=((6.0,), (1.0,), (2.0,)))
    (row,) = frames.measured_frame([paper_record(suite=suite, points=(point,))]).to_dict("records")
    assert (row["tok_per_s"], row["low"], row["high"]) == (30, 10, 60)


def one_point(point: Point, **changes: object) -> Record:
    """``paper_record`` with one point of any shape."""
    asked = SuitePoint(kind=point.kind, n_tokens=point.n_tokens, depth=point.depth, n_seq=point.n_seq)
    suite = Suite(id="paper", name="Paper", points=(asked,), repetitions=len(point.repetitions_s), yardstick_s=0.1)
    return paper_record(suite=suite, points=(point,), **changes)


def test_how_far_repetitions_vary_and_drift() -> None:
    """Rates 10, 10, 20, 30: mean 17.5, sample deviation 9.574; the later half's median is 25, the earlier's 10."""
    point = Point(kind="prefill", n_tokens=60, depth=0, warmup_s=9, repetitions_s=((6.0,), (6.0,), (3.0,), (2.0,)))
    (row,) = frames.measured_frame([one_point(point)]).to_dict("records")
    assert row["cv"] == pytest.approx(9.5743 / 17.5, rel=1e-4)
    assert row["drift"] == pytest.approx(1.5)
    assert row["warmup_s"] == 9


def test_of_an_odd_number_of_repetitions_the_middle_one_drifts_nowhere() -> None:
    point = Point(kind="prefill", n_tokens=60, depth=0, warmup_s=9, repetitions_s=((6.0,), (0.001,), (3.0,)))
    (row,) = frames.measured_frame([one_point(point)]).to_dict("records")
    assert row["drift"] == pytest.approx(1.0)


def test_one_repetition_neither_varies_nor_drifts() -> None:
    point = Point(kind="prefill", n_tokens=60, depth=0, warmup_s=9, repetitions_s=((6.0,),))
    (row,) = frames.measured_frame([one_point(point)]).to_dict("records")
    assert (row["cv"], row["drift"]) == (None, None)


def test_the_time_between_tokens_is_told_by_its_median_and_its_slow_end() -> None:
    """Twenty steps of 1 to 20 s over two repetitions: half are above 10.5, and one in twenty above 19.05."""
    steps = tuple(float(n) for n in range(1, 21))
    point = Point(kind="decode", n_tokens=10, depth=0, warmup_s=1, repetitions_s=(steps[::2], steps[1::2]))
    (row,) = frames.measured_frame([one_point(point)]).to_dict("records")
    assert (row["itl_median_s"], row["itl_p95_s"]) == pytest.approx((10.5, 19.05))


def side_by_side(n_seq: int, *, counted: tuple[int, ...] = (), step_s: float = 1.0) -> Record:
    return one_point(Point(kind="decode", n_tokens=4, depth=8, n_seq=n_seq, warmup_s=1, repetitions_s=((step_s,) * 4,) * 2, distinct_experts=counted))


@pytest.mark.parametrize(
    ("n_seq", "counted", "experts"),
    [
        (1, (), 2),
        (1, (2, 2), 2),
        (2, (), 8 * (1 - 0.75**2)),  # 3.5 of 8 when two tokens choose two each, evenly
        (2, (2, 3, 4, 4), 3.25),
        (64, (), 8 * (1 - 0.75**64)),
    ],
)
def test_a_step_of_several_sequences_reads_the_experts_of_all_and_the_cache_of_each(n_seq: int, counted: tuple[int, ...], experts: float) -> None:
    """300 bytes every token needs, 50 an expert, and for each sequence 10 bytes at 10 places."""
    record = side_by_side(n_seq, counted=counted)
    assert frames.distinct_experts(record, record.points[0]) == pytest.approx(experts)
    assert frames.step_bytes(record, record.points[0]) == pytest.approx(300 + 50 * experts + n_seq * 10 * (8 + 4 / 2))


@given(n_seq=st.integers(1, 256), step_s=st.floats(1e-4, 1e3))
def test_rate_ceiling_share_and_bytes_of_any_batch_agree(n_seq: int, step_s: float) -> None:
    """All sequences together: the share is the rate over the ceiling, and the bytes of a step over what the memory delivers meanwhile."""
    (row,) = frames.measured_frame([side_by_side(n_seq, step_s=step_s)]).to_dict("records")
    assert row["n_seq"] == n_seq
    assert row["tok_per_s"] == pytest.approx(n_seq / step_s)
    assert row["share"] * row["ceiling_tok_per_s"] == pytest.approx(row["tok_per_s"])
    assert row["share"] == pytest.approx(row["step_bytes"] / (row["bandwidth"] * step_s))
    assert row["achieved"] == pytest.approx(row["share"] * row["bandwidth"])
    assert row["itl_median_s"] == pytest.approx(step_s)


def test_what_binds_a_batch_is_unknown_where_only_one_vector_was_timed() -> None:
    walls = [frames.measured_frame([side_by_side(n)])["wall"].iloc[0] for n in (1, 2)]
    assert walls == ["overhead", "unknown"]


def test_rows_of_one_and_of_several_sequences_stand_apart_and_say_which_they_are() -> None:
    frame = frames.measured_frame([side_by_side(1), side_by_side(4)])
    summary = frames.summary_frame(frame)
    assert list(summary["n_seq"]) == [1, 4]
    assert list(summary["decode"]) == [1, 4]
    assert "n_seq" in frames.summary_headings(frame)
    assert "n_seq" not in frames.summary_headings(frame[frame["n_seq"] == 1])


@pytest.mark.parametrize(
    ("type_k", "type_v", "share"), [("F16", "F16", 1), ("Q8_0", "Q8_0", 34 / 64), ("Q8_0", "F16", (34 + 64) / 128), ("F16", "Q4_0", (64 + 18) / 128)]
)
def test_a_smaller_cache_type_makes_a_step_read_less(type_k: str, type_v: str, share: float) -> None:
    settings = make_record().settings.model_copy(update={"type_k": type_k, "type_v": type_v})
    record = paper_record(settings=settings)
    assert frames.cache_bytes_per_token(record) == pytest.approx(10 * share)
    assert frames.step_bytes(record, record.points[0]) == pytest.approx(400 + 100 * share)


def test_where_layers_are_not_all_alike_the_cache_is_left_out() -> None:
    record = paper_record(model=PAPER_MOE.model_copy(update={"kv_bytes_per_token": None}))
    assert frames.cache_bytes_per_token(record) == 0
    assert frames.step_bytes(record, record.points[0]) == 400


def test_bandwidth_is_the_better_methods_median_in_the_memory_the_weights_lie_in() -> None:
    rulers = (
        ruler("before", (1.0, 0.5)),
        ruler("after", (0.25,)),  # rates 1000, 2000, 4000
        ruler("after", (0.8,), method="another"),
        ruler("before", (0.1,), kind="copy"),
        ruler("before", (0.01,), where="gpu"),
    )
    assert frames.bandwidth_bytes_per_s(paper_record(yardsticks=rulers)) == 2000
    assert frames.bandwidth_bytes_per_s(paper_record(yardsticks=rulers), best=True) == 4000
    on_gpu = make_record().backend.model_copy(update={"device": "CUDA0: a card"})
    assert frames.bandwidth_bytes_per_s(paper_record(yardsticks=rulers, backend=on_gpu)) == 100_000


def test_without_a_ruler_shares_are_unknown_not_zero() -> None:
    frame = frames.measured_frame([paper_record(yardsticks=(), kernels=())])
    assert frame[["bandwidth", "ceiling_tok_per_s", "share"]].isna().all(axis=None)
    assert frame["wall"].iloc[0] == "unknown"
    assert frames.check_against_ceiling(paper_record(yardsticks=())) == []


def test_a_frame_of_nothing_says_what_to_do() -> None:
    with pytest.raises(DataError, match="no records to show; 'nbutils book'"):
        frames.measured_frame([])


@pytest.mark.parametrize(
    ("achieved", "bandwidth", "arithmetic", "found"),
    [
        (900, 1000, 4000, "bandwidth"),
        (700, 1000, 1500, "bandwidth and arithmetic"),
        (450, 1000, 500, "arithmetic"),
        (100, 1000, 4000, "overhead"),
        (599, 1000, 4000, "overhead"),  # 0.75 x 1000 x 4000 / 5000 = 600
        (601, 1000, 4000, "bandwidth"),
        (900, None, 4000, "unknown"),
        (900, 1000, None, "unknown"),
    ],
)
def test_what_binds(achieved: float, bandwidth: float | None, arithmetic: float | None, found: str) -> None:
    assert frames.wall(achieved=achieved, bandwidth=bandwidth, arithmetic=arithmetic) == found


@pytest.mark.parametrize(("token_s", "n_problems"), [(0.5, 0), (0.121, 0), (0.117, 1), (0.01, 1)])
def test_a_decode_faster_than_every_yardstick_speaks_against_the_record(token_s: float, n_problems: int) -> None:
    """500 bytes a token; the fastest is the cache with 4,000 bytes/s, and a twentieth more is allowed."""
    problems = frames.check_against_ceiling(paper_record(token_s=token_s))
    assert len(problems) == n_problems
    assert all("measure again on a quiet machine" in p and "\n" not in p for p in problems)


@pytest.mark.parametrize(("token_s", "n_problems"), [(0.242, 0), (0.234, 1)])
def test_without_a_rate_from_cache_the_fastest_read_is_the_bound(token_s: float, n_problems: int) -> None:
    assert len(frames.check_against_ceiling(paper_record(token_s=token_s, kernels=()))) == n_problems


def test_the_noise_is_how_far_one_ruler_moved() -> None:
    rulers = (ruler("before", (1.0,)), ruler("after", (1.0, 1.5, 2.0)), ruler("before", (9.0,), method="another"))
    assert frames.spread_of_yardsticks(paper_record(yardsticks=rulers)) == 1.5
    assert frames.spread_of_yardsticks(paper_record(yardsticks=())) == 1
    assert frames.noise_line(frames.measured_frame([paper_record(yardsticks=rulers)])).startswith("A noisy machine: ")
    assert frames.noise_line(frames.measured_frame([paper_record()])).startswith("A quiet machine: ")


def test_the_wall_is_told_in_gigabytes_per_second() -> None:
    shown, headings, formats = frames.wall_table(frames.measured_frame([paper_record()]))
    (row,) = shown.to_dict("records")
    assert (row["achieved"], row["bandwidth"], row["arithmetic"]) == pytest.approx((500e-9, 1000e-9, 4000e-9))
    assert row["wall"] == "overhead"  # 0.75 / (1 / 1000 + 1 / 4000) = 600, and 500 is less
    assert set(headings) <= set(shown.columns)
    assert set(formats) <= set(headings)


def test_the_summary_has_a_row_per_file_and_depth_with_both_phases() -> None:
    suite = Suite(
        id="paper",
        name="Paper",
        points=tuple(SuitePoint(kind=k, n_tokens=4, depth=d) for d in (0, 8) for k in ("prefill", "decode")),
        repetitions=1,
        yardstick_s=0.1,
    )
    points = tuple(
        Point(kind=p.kind, n_tokens=4, depth=p.depth, warmup_s=1, repetitions_s=((0.5,),) if p.kind == "prefill" else ((1.0,) * 4,))
        for p in suite.points
    )
    summary = frames.summary_frame(frames.measured_frame([paper_record(suite=suite, points=points)]))
    assert list(summary["depth"]) == [0, 8]
    assert list(summary["prefill"]) == [8, 8]
    assert list(summary["decode"]) == [1, 1]
    # At depth 0: 400 + 10 x 2 = 420 bytes a step.
    assert list(summary["ceiling"]) == pytest.approx([1000 / 420, 2])
    assert set(frames.SUMMARY_HEADINGS) <= set(summary.columns)


def test_two_records_of_one_file_on_two_backends_are_two_rows_of_the_summary() -> None:
    on_gpu = make_record().backend.model_copy(update={"device": "CUDA0: a card"})
    records = [paper_record(), paper_record(backend=on_gpu, yardsticks=(ruler("before", (0.1,), where="gpu"),))]
    summary = frames.summary_frame(frames.measured_frame(records))
    assert sorted(summary["backend"]) == ["CPU", "CUDA0: a card"]


def test_a_summary_without_decode_has_unknowns() -> None:
    suite = Suite(id="paper", name="Paper", points=(SuitePoint(kind="prefill", n_tokens=4),), repetitions=1, yardstick_s=0.1)
    point = Point(kind="prefill", n_tokens=4, depth=0, warmup_s=1, repetitions_s=((0.5,),))
    summary = frames.summary_frame(frames.measured_frame([paper_record(suite=suite, points=(point,))]))
    assert summary[["decode", "ceiling", "share"]].isna().all(axis=None)


def test_kernels_and_yardsticks_become_rates() -> None:
    (row,) = frames.kernel_frame([kernel("cache", (0.5, 0.25))]).to_dict("records")
    assert (row["bytes_per_s"], row["flop_per_s"]) == (4000, 2 * 10 * 50 / 0.25)
    (row,) = frames.yardstick_frame([ruler("before", (1.0, 0.5, 2.0))]).to_dict("records")
    assert (row["best"], row["median"], row["samples"]) == (2000, 1000, 3)


# ── what is possible ──────────────────────────────────────────────────────────────────────────────


def place_of(device_id: str, configuration: str = "") -> Place:
    device = registry.load_device(device_id)
    return places.place(device, device.configuration(configuration))


def test_a_budget_adds_up_to_what_is_available() -> None:
    budget = fit.MemoryBudget(weight_bytes=5, kv_cache_bytes=3, compute=fit.ComputeBuffer(1, "kept"), overhead_bytes=2, available_bytes=20)
    frame = frames.budget_frame(budget)
    assert frame["bytes"].sum() == 20
    assert frame.iloc[-1].to_dict() == {"part": "headroom", "bytes": 9}
    assert "compute buffer, asked" in set(frame["part"])


@pytest.mark.parametrize(("format_id", "basis", "words"), [("Q4_K_M", "upper_bound", "at most"), ("FP8", "allowance", "allowed for")])
def test_an_engine_that_nobody_asked_is_lent_the_bound(format_id: str, basis: str, words: str) -> None:
    found, where = stored("qwen3-8b", format_id), place_of("rtx-4090")
    budget = frames.budget_of(found, where, n_ctx=5000)
    assert budget.compute == fit.ComputeBuffer(fit.compute_buffer_bound_bytes(found.shape, 5000), basis)
    assert f"compute buffer, {words}" in set(frames.budget_frame(budget)["part"])


def test_a_verdict_as_plain_values_has_all_that_a_program_needs() -> None:
    """The contract of 'nbutils fit --json'. A field may be added, none may go."""
    row = frames.fit_row(stored("nemotron-3-nano", "Q4_K_M"), place_of("dgx-spark"), n_ctx=8192, kv_type="q8_0", batch_size=2, largest=4096)
    contract = """
    model device memory_gb format n_ctx kv_type weight_bytes kv_cache_bytes recurrent_state_bytes compute_buffer_bytes compute_buffer_basis
    output_buffer_bytes overhead_bytes total_bytes available_bytes headroom_bytes verdict max_ctx
    """
    assert set(contract.split()) <= row.keys()
    parts = "weight_bytes kv_cache_bytes recurrent_state_bytes compute_buffer_bytes output_buffer_bytes overhead_bytes"
    assert sum(row[name] for name in parts.split()) == row["total_bytes"]
    assert row["memory_bytes"] - row["unusable_bytes"] - row["system_bytes"] + row["elsewhere_bytes"] == row["available_bytes"]
    assert row["available_bytes"] - row["total_bytes"] == row["headroom_bytes"]
    assert row["elsewhere_bytes"] == 0
    beside_a_card = frames.fit_row(stored("glm-4.5-air", "Q4_K_M"), place_of("rtx-4090"), n_ctx=8192, kv_type="f16", batch_size=2, largest=None)
    assert beside_a_card["elsewhere_bytes"] == fit.elsewhere_bytes(stored("glm-4.5-air", "Q4_K_M"), discrete=True, batch_size=2)
    assert all(isinstance(value, int) for name, value in row.items() if name.endswith("_bytes"))
    said = {name: row[name] for name in ("model", "device", "memory_gb", "format", "n_ctx", "kv_type", "batch", "max_ctx", "compute_buffer_basis")}
    assert said == {
        "model": "nemotron-3-nano",
        "device": "dgx-spark",
        "memory_gb": 128,
        "format": "Q4_K_M",
        "n_ctx": 8192,
        "kv_type": "q8_0",
        "batch": 2,
        "max_ctx": 4096,
        "compute_buffer_basis": "upper_bound",
    }
    assert row["kv_cache_bytes"] == 2 * 8192 * 6144 * 34 // 64
    assert row["recurrent_state_bytes"] == 2 * 49_930_240


def test_ceilings_as_plain_values_have_all_that_a_program_needs() -> None:
    """The contract of 'nbutils limits --json', and what its values are made of."""
    found, where = stored("llama-3.3-70b", "Q4_K_M"), place_of("dgx-spark")
    row = frames.limits_row(found, where, bandwidth_bytes_per_s=273e9, depth=1000, batch_size=2, n_prompt=512, rent_usd_per_hour=3.6)
    contract = "bytes_per_token decode_ceiling_tok_per_s prefill_ceiling_tok_per_s ridge_point_flop_per_byte binding"
    assert set(contract.split()) <= row.keys()
    step = limits.decode_step_bytes(found, depth=1000, batch_size=2)
    assert row["bytes_per_token"] == step / 2
    assert row["step_weight_bytes"] == found.step_weight_bytes
    assert row["step_kv_bytes"] == 2 * 1000 * 327_680
    assert row["step_state_bytes"] == 0
    assert row["step_weight_bytes"] + row["step_kv_bytes"] + row["step_state_bytes"] == step
    assert row["step_bandwidth_s"] == pytest.approx(step / 273e9)
    assert row["step_compute_s"] == pytest.approx(2 * row["flop_per_token"] / row["peak_flop_per_s"])
    assert row["beyond_training"] is False
    assert row["decode_ceiling_tok_per_s"] == pytest.approx(2 * 273e9 / step)
    assert row["ridge_point_flop_per_byte"] == pytest.approx(row["peak_flop_per_s"] / 273e9)
    assert row["prefill_ceiling_tok_per_s"] == pytest.approx(512 * row["peak_flop_per_s"] / limits.prefill_flop(found, n_tokens=512, depth=1000))
    assert row["binding"] == "bandwidth"
    assert row["energy_j_per_token"] == pytest.approx(where.power_w / row["decode_ceiling_tok_per_s"])
    assert row["rent_usd_per_million_tokens"] == pytest.approx(1000 / row["decode_ceiling_tok_per_s"])
    assert row["training_flop_per_token"]["full"] == pytest.approx(6 * found.n_active_parameters)
    by_method = row["training_ceiling_tok_per_s"]
    assert by_method == {m: pytest.approx(125e12 / flop) for m, flop in row["training_flop_per_token"].items()}
    assert by_method["lora"] == by_method["qlora"] == pytest.approx(1.5 * by_method["full"])
    first = limits.compute_bound_batch(found, bandwidth_bytes_per_s=273e9, peak_flop_per_s=row["peak_flop_per_s"], depth=1000)
    assert row["compute_bound_batch"] == first


@pytest.mark.parametrize("batch_size", [1, 7])
def test_a_step_of_a_hybrid_reads_weights_context_and_states(batch_size: int) -> None:
    found, where = stored("nemotron-3-nano", "Q4_K_M"), place_of("dgx-spark")
    row = frames.limits_row(found, where, bandwidth_bytes_per_s=273e9, depth=1000, batch_size=batch_size)
    assert row["step_state_bytes"] == batch_size * 49_930_240
    assert row["step_kv_bytes"] == batch_size * 1000 * 6144
    parts = row["step_weight_bytes"] + row["step_kv_bytes"] + row["step_state_bytes"]
    assert parts == pytest.approx(batch_size * row["bytes_per_token"])
    assert row["step_weight_bytes"] == pytest.approx(limits.decode_step_bytes(found, batch_size=batch_size) - row["step_state_bytes"])


@pytest.mark.parametrize(("depth", "beyond"), [(40_960, False), (40_961, True)])
def test_a_depth_beyond_training_is_said(depth: int, beyond: bool) -> None:
    row = frames.limits_row(stored("qwen3-32b", "Q4_K_M"), place_of("rtx-4090"), bandwidth_bytes_per_s=1008e9, depth=depth)
    assert row["beyond_training"] is beyond


@pytest.mark.parametrize("device_id", ["rtx-5090", "dgx-spark", "rtx-4090"])
def test_one_file_under_two_names_has_one_ceiling(device_id: str) -> None:
    """The experts of gpt-oss are MXFP4 in either file type, and all else Q8_0: what counts is what is stored, not what it is called."""
    where = place_of(device_id)
    q8, mixture = (stored("gpt-oss-120b", f) for f in ("Q8_0", "MXFP4_MOE"))
    assert (q8.weight_bytes, q8.groups) == (mixture.weight_bytes, mixture.groups)
    rows = [frames.limits_row(v, where, bandwidth_bytes_per_s=where.bandwidth_bytes_per_s or 0, n_prompt=2048) for v in (q8, mixture)]
    first, second = ({name: value for name, value in row.items() if name != "format"} for row in rows)
    assert first == second
    assert first["prefill_ceiling_tok_per_s"] > 0


def test_a_smaller_chip_of_a_device_has_a_lower_ceiling_for_a_prompt() -> None:
    """Two bins of one Mac: 32 and 40 cores. Apple's GPUs have no INT8, so a prompt runs at the FP16 rate, 14.72 or 18.4 TFLOP/s."""
    found = stored("qwen3-8b", "Q4_K_M")
    peaks = [place_of("mac-studio-m4-max", c).peak(found.arithmetic)[0] for c in ("36gb-32c", "128gb")]
    assert peaks == [pytest.approx(14.72e12), pytest.approx(18.4e12)]
    assert peaks[0] / peaks[1] == pytest.approx(32 / 40)


def test_what_nobody_says_of_a_device_is_none() -> None:
    where = replace(place_of("dgx-spark"), device=None, power_w=None, price_usd=None)
    row = frames.limits_row(stored("qwen3-8b", "Q4_K_M"), where, bandwidth_bytes_per_s=273e9)
    unknown = """
    peak_flop_per_s prefill_ceiling_tok_per_s ridge_point_flop_per_byte compute_bound_batch energy_j_per_token usd_per_million_tokens
    rent_usd_per_million_tokens
    """
    assert [row[name] for name in unknown.split()] == [None] * 7
    assert row["training_ceiling_tok_per_s"] == {}
    assert row["decode_ceiling_tok_per_s"] > 0


def test_an_own_machine_costs_its_electricity_and_its_years() -> None:
    where = replace(place_of("dgx-spark"), price_usd=26_298.0, power_w=1000.0)
    # Three years have 26,298 hours: a dollar an hour, and 15 cents for the kilowatt.
    assert frames.usd_per_million(where, tok_per_s=1e6 / 3600) == pytest.approx(1.15)
    assert frames.usd_per_million(replace(where, price_usd=None), tok_per_s=1) is None
    assert frames.usd_per_million(replace(where, power_w=None), tok_per_s=1) is None


def test_a_cache_type_of_another_engine_is_refused() -> None:
    with pytest.raises(UnknownId, match="vllm has no cache type 'q8_0'"):
        frames.fit_row(stored("qwen3-8b", "FP8"), place_of("rtx-4090"), n_ctx=256, kv_type="q8_0", largest=None)


def test_a_grid_says_what_its_cells_would() -> None:
    """All places and formats at once, as columns; every cell that is looked at says the same by itself."""
    wheres = [place_of(d) for d in ("dgx-spark", "rtx-4090", "mac-studio-m4-max", "gtx-1050-ti")]
    variants = [stored(m, f) for m, f in (("qwen3-8b", "Q4_K_M"), ("qwen3-32b", "Q4_K_M"), ("gpt-oss-120b", "MXFP4"), ("glm-4.5-air", "Q4_K_M"))]
    contexts = (5000, 8192, 32_768)
    grid = frames.fit_grid(wheres, variants, contexts)
    assert len(grid) == len(wheres) * len(variants) * len(contexts)
    cells = grid.set_index(["device", "model", "format", "n_ctx"])
    assert cells.index.is_unique
    for where in wheres:
        for found in variants:
            for n_ctx in contexts:
                row = frames.fit_row(found, where, n_ctx=n_ctx, kv_type="f16", compute=frames.kept_compute(found, n_ctx), largest=None)
                cell = cells.loc[(where.device_id, found.name, found.format, n_ctx)]
                same = ("configuration", "total_bytes", "available_bytes", "headroom_bytes", "verdict")
                assert {name: cell[name] for name in same} == {name: row[name] for name in same}
    assert {"fits", "does_not_fit"} <= set(grid["verdict"])


@pytest.mark.parametrize(("more", "verdict"), [(-2, "tight"), (2, "fits")])
def test_a_grid_calls_tight_what_leaves_less_than_a_twentieth_of_the_card(more: int, verdict: str) -> None:
    """Of the card alone: with what the processor keeps, 296 MB here, the twentieth would be larger."""
    found, where = stored("llama-3.1-8b", "Q4_K_M"), place_of("rtx-4090")
    kept = frames.kept_compute(found, 8192)
    budget = frames.budget_of(found, where, n_ctx=8192, compute=kept)
    own = round((budget.total_bytes - budget.elsewhere_bytes) / (1 - fit.TIGHT_MARGIN)) + more
    exactly = replace(where, room=replace(where.room, memory_bytes=own, unusable_bytes=0, system_bytes=0))
    assert frames.fit_grid([exactly], [found], [8192])["verdict"].tolist() == [verdict]
    assert frames.budget_of(found, exactly, n_ctx=8192, compute=kept).verdict == verdict


def test_every_device_has_a_row_per_model_and_format_under_its_own_ceiling() -> None:
    models = [registry.load_model(m) for m in ("llama-3.3-70b", "qwen3.6-35b-a3b", "gemma-3-27b", "gpt-oss-20b")]
    away = {
        (m.name, f, discrete): fit.elsewhere_bytes(stored(m.id, f), discrete=discrete)
        for m in models
        for f in m.formats
        for discrete in (True, False)
    }
    for device_id in registry.device_ids():
        where = place_of(device_id)
        frame = frames.device_frame(where, models, n_ctx=8192)
        assert len(frame) == sum(where.runs(stored(m.id, f).engine) for m in models for f in m.formats)
        for row in frame.itertuples():
            room = where.room.available_bytes + away[row.model, row.format, where.discrete]
            assert row.headroom_bytes + row.total_bytes == room, (device_id, row.model, row.format)
        assert ((frame["verdict"] == "does_not_fit") == (frame["headroom_bytes"] < 0)).all()
        assert (frame["decode_ceiling_tok_per_s"] > 0).all()
        assert list(frame[frame["usual"]]["model"]) == [m.name for m in models]
        # Where a peak is unknown the prefill ceiling is too, and says so with a dash.
        assert (frame["prefill_ceiling_tok_per_s"].isna() == frame["prefill_in"].isna()).all()
        assert "nan" not in frames.ceiling_lines(frame).lower()


def test_the_largest_context_of_a_row_fits_and_the_next_does_not() -> None:
    model, where = registry.load_model("qwen3-32b"), place_of("rtx-4090")
    found = stored("qwen3-32b", "Q4_K_M")
    safe = frames.largest_context(found, where)
    assert safe is not None
    assert frames.budget_of(found, where, n_ctx=safe).headroom_bytes >= 0 > frames.budget_of(found, where, n_ctx=safe + 256).headroom_bytes
    (row,) = (r for r in frames.device_frame(where, [model], n_ctx=8192).to_dict("records") if r["format"] == "Q4_K_M")
    assert row["largest_context"] == safe


@pytest.mark.parametrize("batch_size", [1, 2])
def test_an_answer_that_is_kept_reaches_further_than_the_bound_for_one_sequence(batch_size: int) -> None:
    found, where = stored("qwen3-32b", "Q4_K_M"), place_of("rtx-4090")
    kept = frames.kept_compute(found, 16_384)
    need = frames.budget_of(found, where, n_ctx=16_384, batch_size=batch_size, compute=kept).total_bytes
    need -= fit.elsewhere_bytes(found, discrete=True, batch_size=batch_size)
    exactly = replace(where, room=replace(where.room, memory_bytes=need, unusable_bytes=0, system_bytes=0))
    nameless = replace(found, name="a-file.gguf")  # of which nothing is kept
    safe = frames.largest_context(nameless, exactly, batch_size=batch_size)
    assert safe is not None
    assert safe < 16_384
    assert frames.largest_context(found, exactly, batch_size=batch_size) == (16_384 if batch_size == 1 else safe)


def test_an_explanation_as_a_table_has_the_words_of_the_text() -> None:
    lines = [explain.Line("  elsewhere", 1234, "bytes", "why", "who"), explain.Line("peak", None, "FLOP/s")]
    frame, headings, formats = frames.explain_table(lines)
    assert frame.to_dict("records")[0] == {"what": "elsewhere", "value": "1,234", "unit": "bytes", "how": "why", "source": "who"}
    assert frame["value"].iloc[1] == "unknown"
    assert set(headings) == set(frame.columns)
    assert set(formats) <= set(headings)


def test_the_matrix_of_ceilings_is_empty_where_a_model_does_not_fit() -> None:
    devices = [registry.load_device(d) for d in ("gtx-1050-ti", "dgx-spark")]
    models = [registry.load_model(m) for m in ("qwen3-8b", "llama-3.3-70b")]
    frame, headings, formats, links = frames.ceiling_matrix(devices, models, n_ctx=8192)
    assert list(frame["bandwidth"]) == sorted(frame["bandwidth"], reverse=True)
    spark, card = frame.to_dict("records")
    assert spark["llama-3.3-70b"] == "6.5"
    assert (spark["device"], card["device"]) == ("DGX Spark", "GTX 1050 Ti†"), "of one no source says what is usable"
    assert pd.isna(card["llama-3.3-70b"])
    assert pd.isna(card["qwen3-8b"])
    assert set(headings) | set(links.values()) == set(frame.columns)
    assert set(formats) <= set(headings)


def test_caches_of_other_kinds_are_smaller_by_the_factors_that_their_makers_promise() -> None:
    """DeepSeek: 128 heads of 192 + 128 in place of 576 values, 71 times as much. One layer in six of Gemma keeps everything."""
    models = [registry.load_model(m) for m in ("deepseek-v3", "gemma-3-27b", "llama-3.3-70b", "qwen3.6-35b-a3b")]
    frame, headings, formats = frames.cache_kinds_frame(models, n_ctx=131_072)
    factors = list(frame["factor"])
    assert factors[0] == pytest.approx(128 * (192 + 128) / 576)
    assert 5.5 < factors[1] < 6.2
    assert factors[2] == 1
    assert factors[3] == pytest.approx(4, rel=0.03)
    assert set(headings) == set(frame.columns)
    assert set(formats) <= set(headings)


def test_rooms_add_up_to_what_is_built_in() -> None:
    frame, headings, formats = frames.rooms_frame([place_of(d) for d in ("dgx-spark", "rtx-4090", "strix-halo")])
    assert (frame["unusable"] + frame["system"] + frame["overhead"] + frame["left"]).tolist() == pytest.approx(frame["memory"].tolist())
    assert frame["share"].between(0.4, 1).all()
    assert set(headings) == set(frame.columns)
    assert set(formats) <= set(headings)


def test_ceilings_over_depth_and_batch_are_those_of_limits() -> None:
    variants, where = [stored("qwen3-8b", "Q4_K_M"), stored("gpt-oss-20b", "MXFP4_MOE")], place_of("rtx-4090")
    deep = frames.depth_frame(variants, where, [0, 1000, 40_000])
    assert list(deep["name"]) == ["qwen3-8b"] * 3 + ["gpt-oss-20b"] * 3
    for row in deep.itertuples():
        found = next(v for v in variants if v.name == row.name)
        assert row.ceiling == pytest.approx(1008e9 / limits.decode_step_bytes(found, depth=row.depth))
    wide = frames.batch_frame(variants, where, [1, 16, 4096], depth=0)
    assert (wide["total"] / wide["batch"] == wide["each"]).all()
    first = wide.iloc[0]
    assert first["total"] == pytest.approx(deep.iloc[0]["ceiling"])
    assert list(wide["binding"][:3]) == ["bandwidth", "bandwidth", "compute"]


def test_a_proof_shows_the_largest_difference_of_each_kind() -> None:
    def compared(what: str, ours: int, theirs: int, printed_to: int = 0) -> Comparison:
        return Comparison(model="qwen3-8b", what=what, under="f16", n_ctx=4096, ours=ours, llama_cpp=theirs, printed_to=printed_to)

    given = [compared("weights", 100, 100), compared("KV cache", 1000, 1004, 5), compared("output buffer", 50, 40, 5)]
    (row,) = frames.proof_frame(given).to_dict("records")
    assert (row["model"], row["compared"], row["layers"]) == ("Qwen3 8B", 3, "36 all")
    assert (row["weights"], row["memory"], row["rounding"]) == (0, 5, 10)
    assert set(frames.PROOF_HEADINGS) == set(row)
    text = frames.proof_lines(given)
    assert "KV cache, f16, 4,096 tokens" in text
    assert "1,004" in text


@pytest.mark.parametrize(
    ("device_id", "name"),
    [("rtx-4090", "RTX 4090"), ("dgx-spark", "DGX Spark"), ("mac-studio-m4-max-32c", "32c"), ("strix-halo", "Ryzen AI Max+ 395")],
)
def test_a_short_name_leaves_out_the_maker(device_id: str, name: str) -> None:
    short = frames.short_name(registry.load_device(device_id))
    assert short.startswith(name) or short.endswith(name)
    assert not short.startswith(("NVIDIA", "AMD", "Apple"))


def test_short_names_of_all_devices_differ() -> None:
    names = [frames.short_name(registry.load_device(d)) for d in registry.device_ids()]
    assert len(set(names)) == len(names)


def test_every_figure_of_every_device_has_a_source_and_disagreeing_ones_stand_below() -> None:
    for device_id in registry.device_ids():
        device = registry.load_device(device_id)
        frame = frames.figure_frame(device)
        assert (frame["source"].str.len() > 0).all()
        kinds = [[getattr(c, kind) for c in device.configurations] for kind in ("memory", "bandwidth", "usable", "price")]
        shared = [figure for kind in kinds for figure in set(kind)]  # what configurations have in common stands once
        own = [p for c in device.configurations for p in c.peaks]  # of another chip
        figures = [*shared, *device.peaks, *own, device.power]
        assert len(frame) == sum(1 + len(f.also) for f in figures if isinstance(f, Figure))


def test_a_machine_is_told_as_rows_and_a_refused_memory_as_words() -> None:
    fields = make_record().machine.model_dump() | {"gpus": [{"name": "NVIDIA GB10", "driver": "580"}], "notes": ["a note"]}
    frame = frames.machine_frame(Machine(**fields), {"binding": "llama-cpp-python 0.3.36", "device": {"description": "GB10", "memory_bytes": 2**30}})
    told = dict(zip(frame["property"], frame["value"], strict=True))
    assert told["GPU"] == "NVIDIA GB10, memory not told, driver 580"
    assert told["note"] == "a note"
    assert told["memory"].startswith("8.0 GiB")
    assert isinstance(frame, pd.DataFrame)


def test_arithmetic_of_several_types_adds_up_in_time() -> None:
    """Half the bytes at 100 GB/s and half at 50 take as long as all at 66.7."""

    def kernel(kind: str, seconds: float) -> KernelRate:
        sizes = {"n_rows": 1, "n_columns": 1, "n_batch": 1, "n_threads": 1, "n_bytes": 10**9}
        return KernelRate(when="before", tensor_type=kind, placement="cache", samples_s=(seconds,), **sizes)

    model = PAPER_MOE.model_copy(update={"type_bytes_read": {"Q4_K": 400, "Q6_K": 400, "F32": 8}})
    record = make_record(model=model, kernels=(kernel("Q4_K", 0.01), kernel("Q6_K", 0.02)))
    assert frames.measured_frame([record])["arithmetic"].iloc[0] == pytest.approx(1e11 / 1.5)
    only_one = make_record(model=model, kernels=(kernel("F32", 0.01),))
    assert frames.measured_frame([only_one])["arithmetic"].iloc[0] is None or pd.isna(frames.measured_frame([only_one])["arithmetic"].iloc[0])


def test_depth_is_shown_only_where_it_tells_rows_apart() -> None:
    frame = frames.measured_frame([make_record()])
    assert "depth" in frames.summary_headings(frame)
    assert "depth" not in frames.summary_headings(frame.assign(depth=0))


def test_a_rate_above_its_yardstick_says_that_nothing_is_known() -> None:
    assert frames.wall(achieved=47e9, bandwidth=46e9, arithmetic=0.4e9) == "unknown"


def test_only_a_file_that_a_cache_could_hold_may_be_faster_than_memory() -> None:
    """The same impossible rate, of a small file and of one larger than any cache."""
    kernel = KernelRate(
        when="before", tensor_type="Q4_K", placement="cache", n_rows=1, n_columns=1, n_batch=1, n_threads=1, n_bytes=10**12, samples_s=(0.5,)
    )
    fast = Point(kind="decode", n_tokens=4, depth=32, warmup_s=1e-4, repetitions_s=((5e-5,) * 4,) * 2)
    small = make_record(kernels=(kernel,))
    small = small.model_copy(update={"points": (small.points[0], fast)})
    assert frames.check_against_ceiling(small) == []
    large = small.model_copy(update={"model": small.model.model_copy(update={"file_bytes": frames.CACHEABLE_BYTES})})
    assert len(frames.check_against_ceiling(large)) == 1
