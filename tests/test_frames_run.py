"""Memory, noise, roofline, experts and threads of runs small enough to work out on paper."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import PAPER_MOE, make_record
from nbutils import frames, frames_run, plots
from nbutils.specs import (
    FileFacts,
    KernelRate,
    MemoryStage,
    MemoryUse,
    Neighbours,
    OwnBuffer,
    Point,
    Record,
    Suite,
    SuitePoint,
    TriedThreads,
)

MB = 10**6
PREDICTED = {"weights": 100 * MB, "kv": 40 * MB, "recurrent": 0, "compute": 30 * MB, "output": 1 * MB}
OWN = (
    OwnBuffer(what="weights", where="CPU_Mapped", n_bytes=100 * MB),
    OwnBuffer(what="weights", where="CPU_REPACK", n_bytes=70 * MB),
    OwnBuffer(what="kv", where="CPU", n_bytes=41 * MB),
    OwnBuffer(what="compute", where="CPU", n_bytes=28 * MB),
    OwnBuffer(what="output", where="CPU", n_bytes=1 * MB),
)
#: Resident, of that mirroring files, in MB.
GROWTH = {"start": (60, 20), "loaded": (150, 90), "before": (180, 110), "context": (230, 110), "ran": (245, 110)}


def stages(gpus: dict[str, tuple[int | None, ...]] | None = None, without: str = "") -> tuple[MemoryStage, ...]:
    return tuple(
        MemoryStage(stage=name, resident_bytes=rss * MB, file_bytes=files * MB, gpu_used_bytes=(gpus or {}).get(name, ()))
        for name, (rss, files) in GROWTH.items()
        if name != without
    )


def with_memory(**changes: Any) -> Record:
    fields: dict[str, Any] = {"n_ctx": 36, "predicted_bytes": PREDICTED, "compute_basis": "asked", "own": OWN, "stages": stages()}
    return make_record(memory=MemoryUse(**(fields | changes)))


def rows_of(record: Record) -> dict[str, dict[str, Any]]:
    """By part; unknown is ``None`` whatever pandas makes of it."""
    frame = frames_run.memory_frame(record)
    return {row["part"]: {k: None if pd.isna(v) else v for k, v in row.items()} for row in frame.to_dict("records")}


CONTEXT = "context (kv, state, compute, output)"


# ── memory ────────────────────────────────────────────────────────────────────────────────────────


def test_memory_three_ways_stands_side_by_side_and_adds_up() -> None:
    rows = rows_of(with_memory())
    assert list(rows) == ["weights", "kv", "compute", "output", CONTEXT], "a state that neither side has takes no row"
    assert (rows["weights"]["predicted"], rows["weights"]["own"], rows["weights"]["grown"]) == (100 * MB, 170 * MB, 90 * MB)
    for column in ("predicted", "own"):
        assert rows[CONTEXT][column] == sum(rows[part][column] for part in ("kv", "compute", "output"))
    assert rows[CONTEXT]["grown"] == (245 - 180) * MB, "from just before the context to the end of its use"
    assert {rows[part]["grown"] for part in ("kv", "compute", "output")} == {None}, "the system does not tell the parts apart"


@given(
    predicted=st.dictionaries(st.sampled_from(["weights", "kv", "recurrent", "compute", "output"]), st.integers(0, 10**12)),
    own=st.lists(st.tuples(st.sampled_from(["weights", "kv", "recurrent", "compute", "output"]), st.integers(0, 10**12)), max_size=9),
)
def test_the_context_is_the_sum_of_its_parts_whatever_was_allotted(predicted: dict[str, int], own: list[tuple[str, int]]) -> None:
    record = with_memory(predicted_bytes=predicted, own=tuple(OwnBuffer(what=what, where="CPU", n_bytes=n) for what, n in own))
    rows = rows_of(record)
    parts = [rows[part] for part in ("kv", "recurrent", "compute", "output") if part in rows]
    assert rows[CONTEXT]["own"] == sum(row["own"] for row in parts)
    known = "compute" in predicted  # without it the others would pass for the whole
    assert rows[CONTEXT]["predicted"] == (sum(row["predicted"] or 0 for row in parts) if known else None)
    assert all((row["grown"] is not None) == (part in ("weights", CONTEXT)) for part, row in rows.items())


@pytest.mark.parametrize(("without", "unknown"), [("start", "weights"), ("loaded", "weights"), ("before", CONTEXT), ("ran", CONTEXT)])
def test_growth_between_moments_that_nobody_saw_is_unknown(without: str, unknown: str) -> None:
    rows = rows_of(with_memory(stages=stages(without=without)))
    assert rows[unknown]["grown"] is None
    assert {part for part, row in rows.items() if row["grown"] is not None} == {"weights", CONTEXT} - {unknown}


def test_what_a_gpu_grew_by_is_added_where_its_driver_says() -> None:
    """Two cards, of which one refuses; the process itself grows by 90 and 65 MB."""
    on_cards = stages({"start": (500 * MB, None), "loaded": (620 * MB, None), "before": (620 * MB, None), "ran": (700 * MB, 10 * MB)})
    rows = rows_of(with_memory(stages=on_cards))
    assert (rows["weights"]["grown"], rows[CONTEXT]["grown"]) == ((90 + 120) * MB, (65 + 80) * MB)


def test_a_file_that_could_not_be_counted_has_no_prediction() -> None:
    rows = rows_of(with_memory(predicted_bytes={}, compute_basis=""))
    assert {row["predicted"] for row in rows.values()} == {None}
    assert rows["kv"]["own"] == 41 * MB


def test_a_record_from_before_memory_was_kept_has_an_empty_table_and_no_words() -> None:
    assert frames_run.memory_frame(make_record()).empty
    assert frames_run.memory_lines(make_record()) == []
    assert list(frames_run.memory_frame(make_record()).columns) == list(frames_run.memory_frame(with_memory()).columns)


def test_the_table_of_memory_is_in_megabytes_and_unknowns_are_dashes() -> None:
    html = plots.table(*frames_run.memory_table(with_memory())).to_html()
    for figure in ("100.0", "170.0", "41.0", "65.0", "–"):
        assert figure in html
    assert "nan" not in html.lower()


def test_the_words_about_memory_have_its_figures() -> None:
    text = " ".join(frames_run.memory_lines(with_memory()))
    assert "100.0 MB are the file mapped into memory, 70.0 MB a copy" in text
    assert "Between loading and this context the process changed by +30.0 MB, of which +20.0 MB mirror files" in text
    assert "Making the context added 50.0 MB, using it +15.0 MB" in text
    assert "Before the model there were 60.0 MB" in text
    assert "upper bound" not in text
    bounded = with_memory(compute_basis="upper_bound", own=OWN[:1])
    assert "compute buffer is an upper bound" in " ".join(frames_run.memory_lines(bounded))
    assert "The weights are the file itself, mapped into memory: 100.0 MB" in " ".join(frames_run.memory_lines(bounded))


# ── noise ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("others_s", "stolen_s", "said"),
    [
        (0.9, 0.9, []),  # of 20 processor seconds one is worth a word
        (5.0, 0.0, ["Other programs took 25% of the processors"]),
        (0.0, 2.0, ["The host of this virtual machine took away 10%"]),
        (5.0, 2.0, ["Other programs took 25%", "took away 10%"]),
        (0.0, None, []),
    ],
)
def test_neighbours_are_told_when_they_took_a_part_worth_a_word(others_s: float, stolen_s: float | None, said: list[str]) -> None:
    record = make_record(neighbours=Neighbours(wall_s=10, n_cpus=2, own_s=8, others_s=others_s, stolen_s=stolen_s))
    first, *rest = frames_run.noise_lines(record)
    assert first == frames.noise_line(frames.measured_frame([record]))
    assert len(rest) == len(said)
    assert all(words in line for words, line in zip(said, rest, strict=True))


def test_of_a_run_without_neighbours_only_its_yardsticks_speak() -> None:
    assert len(frames_run.noise_lines(make_record())) == 1


# ── every test ────────────────────────────────────────────────────────────────────────────────────


def test_every_point_has_a_row_and_prefill_no_time_between_tokens() -> None:
    frame, headings, formats = frames_run.points_table([make_record()])
    prefill, decode = frame.to_dict("records")
    assert pd.isna(prefill["itl_median_ms"])
    assert (decode["itl_median_ms"], decode["itl_p95_ms"]) == pytest.approx((1.0, 1.165))
    assert "n_seq" not in headings
    assert set(headings) <= set(frame.columns)
    assert set(formats) <= set(frame.columns)
    html = plots.table(frame, headings, {k: v for k, v in formats.items() if k in headings}).to_html()
    assert "–" in html
    assert "nan" not in html.lower()


def test_a_run_of_prompts_alone_has_a_table_too() -> None:
    suite = Suite(id="paper", name="Paper", points=(SuitePoint(kind="prefill", n_tokens=32),), repetitions=2, yardstick_s=0.1)
    frame, headings, _ = frames_run.points_table([make_record(suite=suite, points=make_record().points[:1])])
    assert frame[["itl_median_ms", "itl_p95_ms"]].isna().all(axis=None)
    assert set(headings) <= set(frame.columns)


# ── roofline ──────────────────────────────────────────────────────────────────────────────────────

DENSE = PAPER_MOE.model_copy(update={"name": "paper", "n_expert": 0, "n_expert_used": 0, "tensors": PAPER_MOE.tensors[:1] + PAPER_MOE.tensors[2:]})


def paper(*points: Point, model: FileFacts = PAPER_MOE, **changes: Any) -> Record:
    asked = tuple(SuitePoint(kind=p.kind, n_tokens=p.n_tokens, depth=p.depth, n_seq=p.n_seq) for p in points)
    suite = Suite(id="paper", name="Paper", points=asked, repetitions=1, yardstick_s=0.1)
    return make_record(suite=suite, points=points, model=model, **changes)


def decode(n_seq: int = 1, *, depth: int = 0, counted: tuple[int, ...] = (), step_s: float = 0.5) -> Point:
    return Point(kind="decode", n_tokens=2, depth=depth, n_seq=n_seq, warmup_s=1, repetitions_s=((step_s,) * 2,), distinct_experts=counted)


def prefill(n_tokens: int, seconds: float = 2.0) -> Point:
    return Point(kind="prefill", n_tokens=n_tokens, depth=0, warmup_s=1, repetitions_s=((seconds,),))


def test_one_token_of_two_byte_weights_has_an_intensity_of_one() -> None:
    """Two FLOP per weight of two bytes; of an MoE the same, because a token reads the experts it uses and no others."""
    frame = frames_run.roofline_points([paper(decode()), paper(decode(), model=DENSE)])
    assert list(frame["intensity"]) == [1, 1]
    assert list(frame["flop_per_s"]) == [2 * 2 * 200, 2 * 2 * 150], "two steps a second, two FLOP for each weight that is used"


@pytest.mark.parametrize("n_seq", [1, 2, 16])
def test_a_batch_of_a_dense_file_has_the_intensity_of_its_sequences(n_seq: int) -> None:
    (row,) = frames_run.roofline_points([paper(decode(n_seq), model=DENSE)]).to_dict("records")
    assert (row["intensity"], row["tokens"]) == (n_seq, n_seq)
    assert row["flop_per_s"] == 2 * n_seq * 2 * 150


def test_a_batch_of_an_moe_reads_more_experts_and_gains_less() -> None:
    """Three counted experts: 300 bytes all need, 50 an expert, and 200 weights a token."""
    counted, expected = frames_run.roofline_points([paper(decode(2, counted=(3, 3))), paper(decode(2))])["intensity"]
    assert counted == pytest.approx(2 * 2 * 200 / (300 + 50 * 3))
    assert expected == pytest.approx(2 * 2 * 200 / (300 + 50 * 3.5))


def test_a_prompt_reads_the_weights_once_for_each_micro_batch() -> None:
    settings = make_record().settings.model_copy(update={"n_ubatch": 64})
    record = paper(prefill(32), prefill(64), prefill(640), model=DENSE, settings=settings)
    frame = frames_run.roofline_points([record])
    assert list(frame["intensity"]) == [32, 64, 64]
    assert list(frame["flop_per_s"]) == [n / 2 * 2 * 150 for n in (32, 64, 640)]


def test_points_at_depth_are_left_out_because_attention_is() -> None:
    assert list(frames_run.roofline_points([paper(decode(), decode(depth=32))])["tokens"]) == [1]


@given(n_seq=st.integers(1, 256), step_s=st.floats(1e-3, 1e3))
def test_flop_per_second_over_intensity_is_the_bytes_that_decode_went_through(n_seq: int, step_s: float) -> None:
    """A point lies as far under the slope as its share of the bandwidth says; at depth 0 but for two tokens' cache."""
    record = paper(decode(n_seq, step_s=step_s), model=DENSE.model_copy(update={"kv_bytes_per_token": None}))
    (row,) = frames_run.roofline_points([record]).to_dict("records")
    (measured,) = frames.measured_frame([record]).to_dict("records")
    assert row["flop_per_s"] / row["intensity"] == pytest.approx(measured["achieved"])


def kernel(n_batch: int, placement: str, samples_s: tuple[float, ...], kind: str = "F16") -> KernelRate:
    sizes = {"n_rows": 10, "n_columns": 50, "n_bytes": 1000, "n_threads": 1}
    return KernelRate(when="before", tensor_type=kind, placement=placement, n_batch=n_batch, samples_s=samples_s, **sizes)


def test_roofs_are_the_bandwidth_and_for_each_type_one_vector_and_many() -> None:
    kernels = (kernel(1, "cache", (1.0, 2.0, 4.0)), kernel(1, "memory", (9.0,)), kernel(512, "memory", (0.5,)), kernel(512, "memory", (1.0,), "Q8_0"))
    record = paper(decode(), kernels=kernels)
    frame = frames_run.roofs_frame([record])
    assert {(r["kind"], r["tensor_type"]): r["rate"] for r in frame.to_dict("records")} == {
        ("bandwidth", ""): frames.bandwidth_bytes_per_s(record),
        ("vector", "F16"): 2 * 500 / 2,  # the median; what was read from memory is bandwidth again, not a roof
        ("matrix", "F16"): 2 * 500 * 512 / 0.5,
        ("matrix", "Q8_0"): 2 * 500 * 512,
    }


def test_without_a_ruler_there_is_no_roof() -> None:
    frame = frames_run.roofs_frame([paper(decode(), yardsticks=())])
    assert frame.empty
    assert list(frame.columns) == ["kind", "tensor_type", "rate"]


# ── experts ───────────────────────────────────────────────────────────────────────────────────────


def test_experts_are_told_counted_beside_expected_with_the_rate_of_all_sequences() -> None:
    record = paper(decode(1, counted=(2, 2)), decode(4, counted=(4, 5, 7, 6)), decode(8), prefill(32))
    frame = frames_run.experts_frame([record, paper(decode(4), model=DENSE)])
    assert list(frame["n_seq"]) == [1, 4, 8, 4], "prompts are not batches of sequences"
    one, four, eight, dense = frame.to_dict("records")
    assert (one["counted"], one["expected"]) == (2, pytest.approx(2))
    assert (four["counted"], four["counted_low"], four["counted_high"], four["n_expert"]) == (5.5, 4, 7, 8)
    assert four["expected"] == pytest.approx(8 * (1 - 0.75**4))
    assert pd.isna(eight["counted"])
    assert pd.isna(dense["expected"])
    assert [row["tok_per_s"] for row in (one, four, eight)] == pytest.approx([2, 8, 16])
    assert four["step_bytes"] == pytest.approx(frames.step_bytes(record, record.points[1]))


# ── threads ───────────────────────────────────────────────────────────────────────────────────────

TRIED = [
    TriedThreads(n_threads=1, decode_tokens=8, decode_s=(4.0, 2.0, 1.0), prefill_tokens=64, prefill_s=(8.0, 8.0, 4.0)),
    TriedThreads(n_threads=2, decode_tokens=8, decode_s=(1.0, 1.0, 2.0), prefill_tokens=64, prefill_s=(4.0, 4.0, 2.0)),
]


def test_threads_that_were_tried_have_a_rate_and_its_range() -> None:
    one, two = frames_run.tuning_frame(TRIED).to_dict("records")
    assert one == {"threads": 1, "decode": 4, "decode_low": 2, "decode_high": 8, "prefill": 8, "prefill_low": 8, "prefill_high": 16}
    assert (two["decode"], two["prefill"]) == (8, 16)


def test_a_sentence_says_what_was_tried_and_chosen() -> None:
    assert frames_run.tuning_line(TRIED, 2) == "Tried 1, 2 threads in 3 interleaved rounds; decode is fastest with 2."


def test_weights_in_two_memories_have_no_one_bandwidth() -> None:
    record = make_record()
    partly = record.model_copy(update={"settings": record.settings.model_copy(update={"n_gpu_layers": 1})})
    assert frames.bandwidth_bytes_per_s(record)
    assert frames.bandwidth_bytes_per_s(partly) is None
    assert frames.decode_rows(frames.measured_frame([partly]))["wall"].unique().tolist() == ["unknown"]


def test_a_run_of_deep_points_alone_has_an_empty_roofline_and_not_an_error() -> None:
    record = make_record()
    points = [p.model_copy(update={"depth": 64}) for p in record.points]
    deep = record.model_copy(update={"points": tuple(points)})
    assert frames_run.roofline_points([deep]).empty
    ax = plots.measured_roofline(frames_run.roofline_points([deep]), frames_run.roofs_frame([deep]), ax=plots.new_axes())
    assert ax.get_xlabel() == "no point at depth 0 to draw"
