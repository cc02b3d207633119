"""Decode for a while: what the child found becomes a record, whatever the meters do meanwhile."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbutils import engine, frames_power, records, sustain
from nbutils.errors import EngineError, UsageError
from nbutils.measure import Knobs, ModelFile
from nbutils.specs import SustainRecord
from pynvml_stand_in import Card, StandIn

FACTS = {
    "architecture": "qwen3",
    "gguf_type": "Q4_K_M",
    "n_parameters": 1000,
    "file_bytes": 1000,
    "n_layer": 1,
    "n_ctx_train": 4096,
    "n_expert": 0,
    "n_expert_used": 0,
    "tensors": [{"role": "other", "n_bytes": 1000, "n_elements": 1000}],
    "type_bytes_read": {"Q4_K": 1000},
    "header_sha256": "0" * 64,
}


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A child process that answers at once, on a machine with one card; gives what it was asked, and what it will find."""
    seen: dict[str, Any] = {"found": {"block_tokens": 64, "at_s": [0.5, 1.5], "block_s": [0.8, 0.9]}, "stages": ["warm-up"]}
    monkeypatch.setitem(sys.modules, "pynvml", StandIn(Card("A card", 8 * 2**30, temperature_c=63)))
    device = {"name": "CUDA0", "description": "A card", "is_gpu": True, "memory_bytes": 2**33}
    description = {"binding": "llama-cpp-python 0.3.36", "system_info": "CPU", "gpu_offload": True, "device": device}
    monkeypatch.setattr(engine, "describe", lambda: description)

    def sustain_file(path: Path, *, progress: engine.Progress | None, **asked: Any) -> dict[str, Any]:
        seen["asked"] = asked
        for stage in seen["stages"]:
            if progress:
                progress(stage)
        return {"facts": FACTS, "flash_attn_used": "on", **seen["found"]}

    monkeypatch.setattr(engine, "sustain_file", sustain_file)
    return seen


MODEL = ModelFile(path=Path("some-folder/model.gguf"), name="model", origin="file")


def test_what_the_child_found_becomes_a_record_with_the_meters_beside_it(child: dict[str, Any]) -> None:
    record = sustain.sustain(MODEL, minutes=0.5, knobs=Knobs(n_threads=3), depth=100)
    asked = child["asked"]
    assert (asked["seconds"], asked["block_tokens"], asked["depth"]) == (30, 0, 100)
    assert asked["settings"]["n_threads"] == 3
    assert asked["settings"]["n_gpu_layers"] == -1
    assert asked["settings"]["n_ctx"] > 100
    assert asked["zero_s"] > 0
    assert (record.block_tokens, record.at_s, record.block_s) == (64, (0.5, 1.5), (0.8, 0.9))
    assert record.settings.flash_attn_used == "on"
    assert record.backend.device == "CUDA0: A card"
    assert [t.meter for t in record.traces if t.meter.startswith("NVML")] == ["NVML GPU 0"]
    assert "some-folder" not in record.model_dump_json()


def test_the_processor_is_measured_when_it_is_meant(child: dict[str, Any]) -> None:
    assert sustain.sustain(MODEL, minutes=0.5, cpu=True).backend.device == "CPU"
    assert child["asked"]["settings"]["n_gpu_layers"] == 0


def test_progress_tells_the_temperature_and_is_not_told_of_every_short_block(child: dict[str, Any]) -> None:
    child["stages"] = ["loading", "warm-up", *(f"{n} s to go, 12.0 tok/s" for n in range(30, 0, -1))]
    said: list[str] = []
    sustain.sustain(MODEL, minutes=0.5, progress=said.append)
    assert said == ["loading", "warm-up", "30 s to go, 12.0 tok/s, 63 °C"]


def test_blocks_are_told_again_when_time_has_passed() -> None:
    said: list[str] = []
    now = [0.0]
    watch: Any = type("Watch", (), {"latest": lambda self, quantity: None})()
    tell = sustain._slower(said.append, watch, every_s=10, clock=lambda: now[0])
    for second in range(25):
        now[0] = float(second)
        tell(f"{25 - second} s to go")
    assert said == ["25 s to go", "15 s to go", "5 s to go"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"minutes": 0}, "0 minutes"),
        ({"minutes": -1}, "-1 minutes"),
        ({"minutes": float("nan")}, "nan minutes"),
        ({"minutes": 1e9}, "1e+09 minutes; give more than 0 and at most 1,440"),
        ({"minutes": 1, "depth": -5}, "depth -5"),
        ({"minutes": 1, "block_tokens": -1}, "blocks of -1 tokens"),
    ],
)
def test_numbers_out_of_range_are_misuse_before_anything_starts(options: dict[str, Any], words: str, child: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        sustain.sustain(MODEL, **options)
    assert words in str(caught.value)
    assert "asked" not in child


def test_nonsense_from_the_child_is_one_line(child: dict[str, Any]) -> None:
    child["found"]["block_s"] = [0.8, -1.0]
    with pytest.raises(EngineError, match=r"model\.gguf: the measurement makes no record: .*block_s"):
        sustain.sustain(MODEL, minutes=1)


@given(n=st.integers(1, 400), most=st.integers(1, 50), block_tokens=st.integers(1, 512))
def test_joined_blocks_are_few_and_keep_their_rate(n: int, most: int, block_tokens: int) -> None:
    n_tokens, at_s, block_s = sustain.joined(block_tokens, [float(i) for i in range(n)], [0.5] * n, most=most)
    assert 1 <= len(block_s) == len(at_s) <= max(most, 1)
    assert all(n_tokens / seconds == block_tokens / 0.5 for seconds in block_s)
    assert n_tokens * len(block_s) > block_tokens * n / 2 - n_tokens, "less than a block of the new size is left out at each joining"
    assert at_s[0] == 0
    assert at_s == sorted(at_s)


def test_a_day_of_blocks_is_still_a_record(child: dict[str, Any], tmp_path: Path) -> None:
    n = 200_000
    child["found"] = {"block_tokens": 512, "at_s": [round(0.4321 * i, 4) for i in range(n)], "block_s": [0.4320123] * n}
    record = sustain.sustain(MODEL, minutes=1440)
    path = records.write(record, tmp_path)
    assert path.stat().st_size < records.MAX_BYTES
    assert records.read_any(path) == record


def test_seconds_of_real_decode_without_a_gpu(small_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", StandIn(has_driver=False))
    model = ModelFile(path=small_file, name="stand-in-dense-small", origin="stand-in")
    record = sustain.sustain(model, minutes=0.01, block_tokens=8, depth=16, cpu=True)
    assert record.at_s[0] > 0
    assert all(b >= a for a, b in zip(record.at_s, record.at_s[1:], strict=False))
    for a, seconds, b in zip(record.at_s, record.block_s, record.at_s[1:], strict=False):
        assert a + seconds <= b + 0.001, "a block ends before the next begins"
    system = record.traces[-1]
    assert system.meter == "system"
    assert record.neighbours is not None
    assert record.neighbours.wall_s > record.at_s[-1]
    kept = records.read_any(records.write(record, tmp_path))
    assert isinstance(kept, SustainRecord)
    assert frames_power.sustain_summary(kept)
    assert frames_power.energy_frame(kept).empty or any(t.meter.startswith("RAPL") for t in kept.traces)
