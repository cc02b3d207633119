from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from helpers import MAKERS, each_record, make_bench, make_model, make_record, make_served, make_sustain
from nbutils import registry
from nbutils.specs import (
    AnyRecord,
    BenchRecord,
    BenchTest,
    Configuration,
    Experts,
    Figure,
    MemoryStage,
    NamedRun,
    Neighbours,
    OwnBuffer,
    Point,
    Record,
    ServedRecord,
    ServedRequest,
    Settings,
    Shape,
    Source,
    SuitePoint,
    SustainRecord,
    Trace,
)

FIGURE: dict[str, Any] = {"value": 273, "unit": "GB/s", "source": "vendor", "standing": "vendor"}
OTHER: dict[str, Any] = {"value": 218, "unit": "GB/s", "source": "press", "standing": "press"}
MEMORY: dict[str, Any] = {"value": 128, "unit": "GiB", "source": "vendor", "standing": "vendor"}
SHAPE: dict[str, Any] = make_model().shape.model_dump()
RECURRENT: dict[str, Any] = {"conv_kernel": 4, "inner_size": 64, "state_size": 16, "time_step_rank": 2, "group_count": 1}
LATENT: dict[str, Any] = {"q_lora_rank": 64, "kv_lora_rank": 96, "n_rot": 32, "head_dim_nope": 32, "head_dim_v": 64}


# ── the registry's own values, in plain units ─────────────────────────────────────────────────────


def test_a_device_gives_bytes_and_bytes_per_second() -> None:
    spark = registry.load_device("dgx-spark").configuration("128gb")
    assert spark.memory_bytes == 137_438_953_472
    assert spark.bandwidth_bytes_per_s == 273e9
    assert spark.usable_bytes == round(121.6 * 2**30)


@pytest.mark.parametrize(
    ("device_id", "dtype", "peak"), [("dgx-spark", "fp4", 500e12), ("rtx-4090", "fp16", 165.2e12), ("rtx-4090", "fp8", 330.3e12)]
)
def test_a_peak_is_dense_and_sums_in_full_width(device_id: str, dtype: str, peak: float) -> None:
    found = registry.load_device(device_id).peak(dtype)
    assert found is not None
    assert found.base("compute") == pytest.approx(peak)


def test_a_peak_that_nobody_states_is_unknown() -> None:
    assert registry.load_device("rtx-4090").peak("fp4") is None


@pytest.mark.parametrize(
    ("device_id", "dtypes", "peak"),
    [
        ("rtx-4090", ("fp16",), 165.2e12),
        ("rtx-4090", ("fp16/any",), 330.3e12),  # sums in FP16 too, twice as fast on this card
        ("rtx-4090", ("bf16", "fp16/any"), 330.3e12),
        ("rtx-4090", ("fp16/any", "int8"), 660.6e12),
        ("rtx-4090", ("fp8",), 330.3e12),
        ("dgx-spark", ("fp16/any",), 125e12),  # whose FP16 sums nobody states
    ],
)
def test_sums_in_half_precision_count_where_they_are_asked_for(device_id: str, dtypes: tuple[str, ...], peak: float) -> None:
    found = registry.load_device(device_id).peak(*dtypes)
    assert found is not None
    assert found.base("compute") == pytest.approx(peak)
    assert found.basis == "dense"


def test_a_configuration_with_another_chip_has_its_own_peaks_and_no_others() -> None:
    device = registry.load_device("macbook-pro-m3-max")
    small, large = device.configuration("96gb-30c"), device.configuration("48gb")
    assert (bool(small.peaks), large.peaks) == (True, ())
    peaks = [device.peak("fp16", configuration=c) for c in (small, large, None)]
    assert [p and p.base("compute") for p in peaks] == [pytest.approx(n * 1e12) for n in (14.2 * 30 / 40, 14.2, 14.2)], "30 of 40 cores"
    spark = registry.load_device("dgx-spark")
    other = spark.configuration().model_copy(update={"peaks": small.peaks})
    assert spark.peak("fp4", configuration=other) is None, "all of them: the device's FP4 is another chip's"


def test_the_configuration_without_a_name_is_the_largest() -> None:
    for device_id in registry.device_ids():
        device = registry.load_device(device_id)
        assert device.configuration().memory_bytes == max(c.memory_bytes for c in device.configurations)
        assert all(device.configuration(c.id) is c for c in device.configurations)


def test_all_memory_is_usable_where_no_source_says() -> None:
    configuration = Configuration(id="128gb", memory=MEMORY, bandwidth=FIGURE)
    assert configuration.usable_bytes == configuration.memory_bytes == 128 * 2**30


# ── what is refused, and how ──────────────────────────────────────────────────────────────────────


def refusal(kind: type[Any], fields: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as caught:
        kind(**fields)
    return " | ".join(registry.problems_of(caught.value))


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        (Figure, FIGURE | {"also": [OTHER]}, "'because' must say which is used and why"),
        (Figure, FIGURE | {"unit": "Gb/s"}, "unit 'Gb/s' is unknown; use one of"),
        (Figure, FIGURE | {"value": 0}, "value: Input should be greater than 0"),
        (Figure, FIGURE | {"value": float("inf")}, "value: Input should be a finite number"),
        (Figure, FIGURE | {"standing": "rumour"}, "standing: Input should be 'vendor', 'press'"),
        (Figure, FIGURE | {"note": "two\nlines"}, "note: "),
        (Figure, FIGURE | {"note": "x" * 401}, "note: String should have at most 400 characters"),
        (Figure, FIGURE | {"sauce": "x"}, "sauce: no such field"),
        (Source, {"title": "A page"}, "seen: is missing; add it"),
        (
            Configuration,
            {"id": "a", "memory": MEMORY, "bandwidth": FIGURE, "usable": MEMORY | {"value": 129}},
            "usable: more than the memory itself",
        ),
        (Configuration, {"id": "A b", "memory": MEMORY, "bandwidth": FIGURE}, "id: "),
        (Experts, {"n_expert": 4, "n_expert_used": 5, "n_ff_expert": 64}, "n_expert_used 5 is more than n_expert 4"),
        (Shape, SHAPE | {"n_head_kv": 3}, "n_head 4 is no multiple of n_head_kv 3"),
        (Shape, SHAPE | {"n_ff": 0}, "neither n_ff nor experts"),
        (Experts, {"n_expert": 4, "n_expert_used": 0, "n_ff_expert": 64}, "n_expert_used: Input should be greater than 0"),
        (Shape, SHAPE | {"n_layer": 0}, "n_layer: Input should be greater than 0"),
        (Shape, SHAPE | {"n_layer": 1001}, "n_layer: Input should be less than or equal to 1000"),
        (Shape, SHAPE | {"n_head": 0}, "n_head: Input should be greater than 0"),
        (Shape, SHAPE | {"n_head_kv": 0}, "n_head_kv: Input should be greater than 0"),
        (Shape, SHAPE | {"n_embd": -1}, "n_embd: Input should be greater than 0"),
        (Shape, SHAPE | {"full_every": 2}, "full_every goes with sliding_window or with recurrent layers"),
        (Shape, SHAPE | {"sliding_window": 512}, "full_every goes with sliding_window or with recurrent layers"),
        (Shape, SHAPE | {"recurrent": RECURRENT}, "full_every goes with sliding_window or with recurrent layers"),
        (Shape, SHAPE | {"recurrent": RECURRENT | {"conv_kernel": 0}, "full_every": 2}, "recurrent.conv_kernel: Input should be greater than 0"),
        (Shape, SHAPE | {"recurrent": RECURRENT, "pattern": "M*E"}, "pattern names 3 layers, n_layer is 2"),
        (Shape, SHAPE | {"recurrent": RECURRENT, "pattern": "MX"}, "pattern: String should match pattern"),
        (Shape, SHAPE | {"latent": {"kv_lora_rank": 64}}, "latent.q_lora_rank: is missing; add it"),
        (Shape, SHAPE | {"n_layer_mtp": -1}, "n_layer_mtp: Input should be greater than or equal to 0"),
        (
            Shape,
            SHAPE | {"n_ff": 0, "experts": {"n_expert": 4, "n_expert_used": 1, "n_ff_expert": 64, "n_layer_dense": 1}},
            "experts.n_layer_dense needs n_ff, the width of those layers",
        ),
        (
            Point,
            {"kind": "decode", "n_tokens": 3, "depth": 0, "warmup_s": 1, "repetitions_s": ((1, 1),)},
            "2 times in a repetition, expected 3",
        ),
        (
            Point,
            {"kind": "prefill", "n_tokens": 3, "depth": 0, "warmup_s": 1, "repetitions_s": ((1, 1),)},
            "2 times in a repetition, expected 1",
        ),
        (Point, {"kind": "prefill", "n_tokens": 3, "depth": 0, "warmup_s": 1, "repetitions_s": ((0,),)}, "greater than or equal to 0.000000000001"),
        (NamedRun, {"id": "a", "name": "A", "description": "x", "records": ["/etc/passwd"]}, "records.0: "),
        (NamedRun, {"id": "a", "name": "A", "description": "x", "records": ["dgx-spark/../x.json"]}, "records.0: "),
        (NamedRun, {"id": "a", "name": "A", "description": "x", "records": ["../x.json"]}, "records.0: "),
    ],
)
def test_a_value_that_cannot_be_is_refused_in_words(kind: type[Any], fields: dict[str, Any], words: str) -> None:
    assert words in refusal(kind, fields)


@pytest.mark.parametrize(
    ("architecture", "shape", "words"),
    [
        ("qwen3moe", {}, "needs shape.experts"),
        ("glm4moe", {}, "needs shape.experts"),
        ("llama4", {"experts": (4, 1, 64)}, "needs shape.sliding_window"),
        ("gemma3", {}, "needs shape.sliding_window"),
        ("deepseek2", {"experts": (4, 1, 64)}, "needs shape.latent"),
        ("qwen35moe", {"experts": (4, 1, 64)}, "needs shape.recurrent"),
        ("nemotron_h_moe", {"experts": (4, 1, 64), "recurrent": RECURRENT, "full_every": 2}, "needs shape.pattern"),
        ("qwen3", {"experts": (4, 1, 64)}, "has no shape.experts"),
        ("llama", {"sliding_window": 512, "full_every": 2}, "has no shape.sliding_window"),
        ("qwen3moe", {"experts": (4, 1, 64), "latent": LATENT}, "has no shape.latent"),
        ("llama", {"recurrent": RECURRENT, "full_every": 2}, "has no shape.recurrent"),
        ("qwen35moe", {"experts": (4, 1, 64), "recurrent": RECURRENT, "pattern": "M*"}, "has no shape.pattern"),
        ("qwen4", {}, "architecture"),
    ],
)
def test_an_architecture_and_its_parts_belong_together(architecture: str, shape: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        make_model(architecture, **shape)


def test_a_llama_may_have_experts_and_is_then_mixtral() -> None:
    assert make_model("llama", experts=(8, 2, 64)).shape.experts
    assert registry.load_model("mixtral-8x7b").architecture == "llama"


@pytest.mark.parametrize(
    ("shape", "kinds"),
    [
        ({}, "full full full full"),
        ({"sliding_window": 8, "full_every": 2}, "window full window full"),
        ({"sliding_window": 8, "full_every": 6}, "window window window window"),
        ({"sliding_window": 8, "full_every": 1}, "full full full full"),
        ({"recurrent": RECURRENT, "full_every": 4}, "recurrent recurrent recurrent full"),
        ({"recurrent": RECURRENT, "pattern": "ME*E"}, "recurrent none full none"),
        ({"latent": LATENT}, "latent latent latent latent"),
    ],
)
def test_what_each_layer_keeps_follows_from_few_words(shape: dict[str, Any], kinds: str) -> None:
    assert " ".join(Shape(**(SHAPE | {"n_layer": 4} | shape)).layer_kinds) == kinds


@pytest.mark.parametrize(
    ("model_id", "counts"),
    [
        ("gemma-3-27b", {"full": 10, "window": 52}),
        ("llama-4-scout", {"full": 12, "window": 36}),
        ("gpt-oss-120b", {"full": 18, "window": 18}),
        ("qwen3.6-35b-a3b", {"full": 10, "recurrent": 30}),
        ("qwen3.5-122b-a10b", {"full": 12, "recurrent": 36}),
        ("nemotron-3-nano", {"full": 6, "recurrent": 23, "none": 23}),
        ("nemotron-3-super", {"full": 8, "recurrent": 40, "none": 40}),
        ("deepseek-v3", {"latent": 61}),
        ("glm-4.5-air", {"full": 46}),  # the 47th only drafts
    ],
)
def test_the_layers_of_a_model_are_as_its_makers_say(model_id: str, counts: dict[str, int]) -> None:
    kinds = registry.load_model(model_id).shape.layer_kinds
    assert {kind: kinds.count(kind) for kind in set(kinds)} == counts


def test_a_value_cannot_be_changed_after_it_was_checked() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        make_model().shape.n_layer = 3


# ── records ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("device", ["../evil", "..", "a/b", "a\\b", "/etc", "UPPER", "", "a\n", "x" * 65, "a b", "a\0"])
def test_a_device_that_could_be_a_path_is_refused(device: str) -> None:
    machine = make_record().machine.model_dump() | {"device": device}
    assert "machine" in refusal(Record, make_record().model_dump() | {"machine": machine})


@each_record
def test_a_record_without_a_time_zone_is_refused(make: Callable[..., AnyRecord]) -> None:
    assert "created: needs a time zone" in refusal(type(make()), make().model_dump() | {"created": datetime(2026, 11, 20, 12)})
    assert make(created=datetime(2026, 11, 20, 12, tzinfo=UTC))


def test_a_record_whose_points_are_not_the_suites_is_refused() -> None:
    fields = make_record().model_dump()
    assert "are not the suite's" in refusal(Record, fields | {"points": fields["points"][:1]})


def test_a_record_with_a_repetition_too_few_is_refused() -> None:
    fields = make_record().model_dump()
    fields["points"][0]["repetitions_s"] = fields["points"][0]["repetitions_s"][:1]
    assert "1 repetitions, the suite says 2" in refusal(Record, fields)


@pytest.mark.parametrize("field", ["host", "user", "path", "serial"])
def test_a_record_has_no_place_for_who_measured(field: str) -> None:
    machine = make_record().machine.model_dump() | {field: "x"}
    assert f"machine.{field}: no such field" in refusal(Record, make_record().model_dump() | {"machine": machine})


def test_settings_hold_numbers_and_no_paths() -> None:
    known = "n_threads n_batch n_ubatch n_ctx flash_attn type_k type_v n_gpu_layers seed flash_attn_used"
    assert set(Settings.model_fields) == set(known.split())


DECODE: dict[str, Any] = {"kind": "decode", "n_tokens": 2, "depth": 0, "warmup_s": 1, "repetitions_s": ((1, 1), (1, 1))}
TRACE: dict[str, Any] = {"meter": "NVML GPU 0", "at_s": (0.0, 0.1), "values": {"power_w": (60.0, None)}}
BENCH_TEST: dict[str, Any] = {"n_prompt": 512, "n_gen": 0, "n_depth": 0, "test_time": "x", "avg_ns": 5, "stddev_ns": 0, "samples_ns": (5,)}
REQUEST: dict[str, Any] = {"concurrency": 1, "at_s": 0.0, "end_s": 1.0}


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        (SuitePoint, {"kind": "decode", "n_tokens": 1, "n_seq": 0}, "n_seq: Input should be greater than 0"),
        (SuitePoint, {"kind": "decode", "n_tokens": 1, "n_seq": 257}, "n_seq: Input should be less than or equal to 256"),
        (SuitePoint, {"kind": "decode", "n_tokens": 65_537}, "n_tokens: Input should be less than or equal to 65536"),
        (Point, DECODE | {"at_s": (0.0,)}, "decode: 1 starts for 2 repetitions"),
        (Point, DECODE | {"at_s": (-1.0, 0.0)}, "at_s.0: Input should be greater than or equal to 0"),
        (Point, DECODE | {"at_s": (0.0, float("nan"))}, "at_s.1: Input should be a finite number"),
        (Point, DECODE | {"distinct_experts": (0,)}, "distinct_experts.0: Input should be greater than 0"),
        (Point, DECODE | {"distinct_experts": (2,) * 4097}, "distinct_experts: Tuple should have at most 4096 items"),
        (Trace, TRACE | {"at_s": (0.0,)}, "NVML GPU 0: 2 values of power_w at 1 moments"),
        (Trace, TRACE | {"values": {"power_w": (float("inf"), 1.0)}}, "values.power_w.0: Input should be a finite number"),
        (OwnBuffer, {"what": "vapour", "where": "CPU", "n_bytes": 1}, "what: Input should be 'weights', 'kv'"),
        (MemoryStage, {"stage": "later", "resident_bytes": 1}, "stage: Input should be 'start', 'loaded', 'before', 'context' or 'ran'"),
        (Neighbours, {"wall_s": 0, "n_cpus": 2, "own_s": 0, "others_s": 0}, "wall_s: Input should be greater than or equal to 0.000000000001"),
        (SustainRecord, make_sustain().model_dump() | {"at_s": (0.0,)}, "1 starts for 6 blocks"),
        (BenchTest, BENCH_TEST | {"n_prompt": 0}, "n_prompt and n_gen are both 0: nothing was timed"),
        (BenchTest, BENCH_TEST | {"samples_ns": (), "avg_ts": 1.0}, "neither samples_ns nor avg_ts and stddev_ts"),
        (BenchRecord, make_bench().model_dump() | {"tests": ()}, "tests: Tuple should have at least 1 item"),
        (ServedRequest, REQUEST | {"concurrency": 0}, "concurrency: Input should be greater than 0"),
        (ServedRecord, make_served().model_dump() | {"place": "https://example.org"}, "place: Input should be 'this machine', 'private network'"),
        (ServedRecord, make_served().model_dump() | {"url": "https://example.org"}, "url: no such field"),
    ],
)
def test_samples_that_do_not_belong_together_are_refused_in_words(kind: type[Any], fields: dict[str, Any], words: str) -> None:
    assert words in refusal(kind, fields)


@each_record
@pytest.mark.parametrize("field", ["host", "user", "path", "address", "tok_per_s"])
def test_no_kind_of_record_has_a_place_for_who_measured_or_for_a_rate(field: str, make: Callable[..., AnyRecord]) -> None:
    assert f"{field}: no such field" in refusal(type(make()), make().model_dump() | {field: "x"})


def test_the_kinds_are_told_apart_by_their_name() -> None:
    assert {name: make().kind for name, make in MAKERS.items()} == {name: name for name in MAKERS}
    for name, make in MAKERS.items():
        for other in MAKERS.keys() - {name}:
            assert "kind: Input should be" in refusal(type(make()), make().model_dump() | {"kind": other})


def test_a_record_of_as_many_sequences_as_the_suite_asked_for() -> None:
    fields = make_record().model_dump()
    fields["points"][1]["n_seq"] = 2
    assert "are not the suite's" in refusal(Record, fields)
    fields["suite"]["points"][1]["n_seq"] = 2
    assert Record(**fields).points[1].n_seq == 2
