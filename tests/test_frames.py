"""Rates, ceilings, shares and walls of a record small enough to work out on paper."""

from __future__ import annotations

import pandas as pd
import pytest

from helpers import make_record
from nbutils import fit, frames, limits, registry
from nbutils.errors import DataError
from nbutils.specs import Figure, FileFacts, KernelRate, Machine, Point, Record, Suite, SuitePoint, TensorGroup, Yardstick

EXPERTS = FileFacts(
    name="paper-moe",
    origin="stand-in",
    architecture="qwen3moe",
    gguf_type="F16",
    n_parameters=500,
    file_bytes=1100,
    n_layer=1,
    n_ctx_train=64,
    n_expert=8,
    n_expert_used=2,
    kv_bytes_per_token=10,
    tensors=(
        TensorGroup(role="embedding", n_bytes=300, n_elements=150),
        TensorGroup(role="experts", n_bytes=400, n_elements=200),
        TensorGroup(role="output", n_bytes=100, n_elements=50),
        TensorGroup(role="other", n_bytes=200, n_elements=100),
    ),
    type_bytes_read={"F16": 400},
    header_sha256="0" * 64,
)


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
        "model": EXPERTS,
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


def test_a_budget_adds_up_to_what_is_usable() -> None:
    budget = fit.MemoryBudget(weight_bytes=5, kv_cache_bytes=3, compute_buffer_bytes=1, usable_bytes=20)
    frame = frames.budget_frame(budget)
    assert frame["bytes"].sum() == 20
    assert frame.iloc[-1].to_dict() == {"part": "headroom", "bytes": 11}


def test_every_device_has_a_row_per_model_and_format_under_its_own_ceiling() -> None:
    models = [registry.load_model(m) for m in registry.model_ids()]
    for device_id in registry.device_ids():
        device = registry.load_device(device_id)
        config = registry.load_configuration(device)
        frame = frames.device_frame(device, config, models, n_ctx=8192)
        assert len(frame) == sum(len(m.formats) for m in models)
        assert (frame["headroom_bytes"] + frame["total_bytes"] == config.usable_bytes).all()
        assert ((frame["verdict"] == "does_not_fit") == (frame["headroom_bytes"] < 0)).all()
        assert (frame["decode_ceiling_tok_per_s"] > 0).all()
        # A device without a known peak has no prefill ceiling, and says so with a dash.
        assert frame["prefill_ceiling_tok_per_s"].isna().all() == (device.peak("fp16") is None)
        assert "nan" not in frames.ceiling_lines(frame).lower()


def test_the_lines_of_the_arithmetic_end_in_what_limits_says() -> None:
    device, model, fmt = registry.load_device("dgx-spark"), registry.load_model("llama-3.3-70b"), registry.load_format("Q4_K_M")
    config = registry.load_configuration(device)
    ceiling = limits.decode_ceiling_tok_per_s(config.bandwidth_bytes_per_s, limits.decode_step_bytes(model, fmt, depth=8192))
    assert frames.explain_decode(model, fmt, config, depth=8192)[-1].endswith(f"{ceiling:.2f} tok/s")
    assert frames.explain_fit(model, fmt, config, n_ctx=8192)[-1].endswith(": fits")


def test_every_figure_of_every_device_has_a_source_and_disagreeing_ones_stand_below() -> None:
    for device_id in registry.device_ids():
        device = registry.load_device(device_id)
        frame = frames.figure_frame(device)
        assert (frame["source"].str.len() > 0).all()
        figures = [f for c in device.configurations for f in (c.memory, c.bandwidth, c.usable, c.price)] + [*device.peaks, device.power]
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

    model = EXPERTS.model_copy(update={"type_bytes_read": {"Q4_K": 400, "Q6_K": 400, "F32": 8}})
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
