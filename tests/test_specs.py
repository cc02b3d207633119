from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from helpers import make_model, make_record
from nbutils import registry
from nbutils.specs import Configuration, Experts, Figure, NamedRun, Point, Record, Settings, Shape, Source

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
        (Point, {"kind": "prefill", "n_tokens": 3, "depth": 0, "warmup_s": 1, "repetitions_s": ((0,),)}, "Input should be greater than 0"),
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


def test_a_record_without_a_time_zone_is_refused() -> None:
    assert "created: needs a time zone" in refusal(Record, make_record().model_dump() | {"created": datetime(2026, 11, 20, 12)})
    assert make_record(created=datetime(2026, 11, 20, 12, tzinfo=UTC))


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
