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
        (Shape, SHAPE | {"full_every": 2}, "sliding_window and full_every go together"),
        (Shape, SHAPE | {"n_layer": 0}, "n_layer: Input should be greater than 0"),
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


@pytest.mark.parametrize(("architecture", "shape", "words"), [("qwen3moe", {}, "needs shape.experts"), ("llama", {"experts": (4, 1, 64)}, "has no")])
def test_an_architecture_and_its_experts_belong_together(architecture: str, shape: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        make_model(architecture, **shape)


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
    known = "n_threads n_batch n_ubatch n_ctx flash_attn type_k type_v n_gpu_layers seed"
    assert set(Settings.model_fields) == set(known.split())
