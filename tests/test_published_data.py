"""What others measured: the real files are whole, and a broken one gives one line that names the file, the row and what would be right."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from helpers import copy_of_data
from nbutils import registry
from nbutils.errors import DataError
from nbutils.paths import data_dir
from nbutils.specs import PublishedRate

GOOD = (Path(__file__).parent / "test_published_data" / "good.yaml").read_text(encoding="utf-8")
PLACE = "data/published/example.yaml: "
MACHINES = "dgx-spark mac-studio-m4-max mac-studio-m3-ultra macbook-pro-m5-max mac-mini-m4-pro strix-halo rtx-4090 rtx-5090 rtx-5060-ti-16gb rtx-3090"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry of the example and of what it names, so that checking it is quick."""
    root = copy_of_data(tmp_path, monkeypatch)
    for path in root.glob("*/*.yaml"):
        if path.stem not in ("dgx-spark", "rtx-4090", "llama-3.3-70b") or path.parent.name == "published":
            path.unlink()
    (root / "published" / "example.yaml").write_text(GOOD, encoding="utf-8")
    return root


def problems() -> list[str]:
    """What is wrong with published files. Others name devices that the small registry lacks; that is not asked here."""
    return [line for line in registry.check_data() if line.startswith("data/published/")]


def rate(**changes: object) -> PublishedRate:
    fields = {"device": "rtx-4090", "backend": "cuda", "engine": "llama.cpp", "model": "llama-3.1-8b", "format": "Q4_K_M", "phase": "decode"}
    return PublishedRate.model_validate(fields | {"depth": 0, "tok_per_s": 1, "date": "2026"} | changes)


# ── the real data ─────────────────────────────────────────────────────────────────────────────────


def test_every_machine_of_the_articles_that_somebody_measured_is_there() -> None:
    measured = {row.device for source in registry.load_published() for row in source.rows}
    assert set(MACHINES.split()) <= measured
    assert not {"rtx-spark-n1x", "rtx-spark-n1"} & measured  # nobody had one


def test_a_source_is_a_page_with_a_day_on_which_it_was_read_and_no_copy_of_a_whole_one() -> None:
    sources = registry.load_published()
    assert len({source.url for source in sources}) == len(sources)
    assert all(source.seen <= date.today() for source in sources)
    assert all(source.what for source in sources)
    assert not any(trap in source.url for source in sources for trap in ("fate-oracle", "brick-house"))
    assert max(len(source.rows) for source in sources) < 60


# ── bytes ─────────────────────────────────────────────────────────────────────────────────────────


def test_bytes_follow_from_shape_and_format_where_the_registry_has_them() -> None:
    # 70B in Q4_K_M reads 41.92 GB per token, and each token of context is 80 layers x 2 x 8 heads x 128 x 2 bytes of K and V.
    read = registry.published_step_bytes(rate(model="llama-3.3-70b", depth=1000))
    assert read == pytest.approx(41.92e9 + 1000 * 327_680, rel=1e-3)


@pytest.mark.parametrize(
    ("engine", "kv_type", "part"), [("llama.cpp", "f16", 1), ("vllm", "fp8", 1 / 2), ("ollama", "q8_0", 8.5 / 16), ("mlx", "q4", 4.5 / 16)]
)
def test_bytes_that_a_page_prints_are_taken_with_the_cache_of_its_type(engine: str, kv_type: str, part: float) -> None:
    other = {"model": None, "model_name": "Other", "weight_gb_read": 4.0, "basis": "its file", "kind": "dense", "n_layer": 32}
    read = registry.published_step_bytes(rate(**other, engine=engine, kv_type=kv_type, depth=1000, kv_bytes_per_token=100_000))
    assert read == pytest.approx(4e9 + 1000 * 100_000 * part)


def test_printed_weights_of_a_known_model_take_its_own_cache_and_state() -> None:
    known = registry.published_step_bytes(rate(model="qwen3.6-35b-a3b", format="Q4_K_M", depth=500))
    weights = registry.published_step_bytes(rate(model="qwen3.6-35b-a3b", format="Q4_K_M")) - 65_863_680  # state, F32, of 30 layers
    printed = registry.published_step_bytes(rate(model="qwen3.6-35b-a3b", format="UD", weight_gb_read=weights / 1e9, basis="x", depth=500))
    assert printed == pytest.approx(known)


# ── one defect, one line ──────────────────────────────────────────────────────────────────────────


def test_the_example_that_all_others_are_made_from_is_good(data: Path) -> None:
    assert problems() == []
    (source,) = registry.load_published()
    assert [row.tok_per_s for row in source.rows] == [4.5, 100, 12, 300]


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("device: rtx-4090", "device: rtx-4900", "rows.1: no device 'rtx-4900' in data/devices; did you mean 'rtx-4090'?"),
        ("configuration: 128gb", "configuration: 64gb", "rows.0: dgx-spark has no configuration '64gb'"),
        ("model: llama-3.3-70b, format: FP8", "model: llama-3.3, format: FP8", "rows.2: no model 'llama-3.3' in data/models"),
        ("format: FP8", "format: FP9", "rows.2: no format 'FP9' in data/formats.yaml; did you mean 'FP8'?"),
        ("kv_type: fp8", "kv_type: q8_0", "rows.2: vllm has no cache type 'q8_0'; it has f16, fp8"),
        ("tok_per_s: 4.5", "tok_per_s: 6.6", "rows.0.tok_per_s: 6.6 is above the ceiling of 6.509; mend what is wrong"),
        ("tok_per_s: 12,", "tok_per_s: 2,", "rows.2.above_because: 2 is not above the ceiling of"),
        ("tok_per_s: 300,", "tok_per_s: 300, above_because: x,", "rows.3.above_because: only decode has a ceiling here; leave it out"),
        ('date: "2026-01"', 'date: "2126-01"', "rows.0.date: String should match pattern"),
        ('date: "2026-01"', 'date: "2099-01"', "rows.0.date: 2099-01 has not come yet"),
        ("seen: 2026-01-05", "seen: 2099-01-05", "seen: 2099-01-05 has not come yet"),
        ("url: https://", "url: http://", "url: String should match pattern"),
        ("basis: size of the file, ", "", "rows.1: weight_gb_read and basis go together"),
        ("n_layer: 32, ", "", "rows.1: no model of the registry: model_name, weight_gb_read, basis, kind, n_layer and kv_bytes_per_token are needed"),
        ("kv_type: fp8,", "kv_type: fp8, n_layer: 80,", "rows.2: n_layer: the model of the registry says it; leave it out"),
        ("n_prompt: 2048, ", "", "rows.3: n_prompt is 0: how long was the prompt that was read?"),
        ("engine: vllm", "engine: vlm", "rows.2.engine: Input should be 'llama.cpp'"),
        ("tok_per_s: 100,", "tok_per_s: 0,", "rows.1.tok_per_s: Input should be greater than 0 (got '0')"),
        ("tok_per_s: 100,", "toks: 100,", "rows.1.tok_per_s: is missing; add it"),
    ],
)
def test_a_bad_row_gives_a_line_that_names_it(old: str, new: str, line: str, data: Path) -> None:
    assert old in GOOD
    (data / "published" / "example.yaml").write_text(GOOD.replace(old, new, 1), encoding="utf-8")
    found = problems()
    assert any(problem.startswith(PLACE + line) for problem in found), found
    assert all(problem.startswith(PLACE) and len(problem.splitlines()) == 1 for problem in found)


def test_a_speed_that_stands_twice_is_no_second_measurement(data: Path) -> None:
    (data / "published" / "mirror.yaml").write_text(GOOD.replace("id: example", "id: mirror").replace('"2026-01"', '"2025-12"'), encoding="utf-8")
    found = problems()
    assert len(found) == 4
    assert found[0] == "data/published/mirror.yaml: rows.0: repeats example rows.0; keep the one nearer to who measured"


def test_a_broken_device_file_is_not_blamed_on_those_who_name_it(data: Path) -> None:
    path = data / "devices" / "rtx-4090.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("family:", "familie:", 1), encoding="utf-8")
    assert problems() == []
    with pytest.raises(DataError, match=r"^data/devices/rtx-4090\.yaml"):
        registry.load_device("rtx-4090")


def test_files_are_named_after_what_they_hold(data: Path) -> None:
    assert data == data_dir()
    (data / "published" / "example.yaml").rename(data / "published" / "other.yaml")
    assert problems() == ["data/published/other.yaml: id is 'example'; make it 'other', the name of the file"]
