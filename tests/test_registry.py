"""The real data is whole; a broken file gives one line that names the file, the field and what would be right."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from helpers import copy_of_data
from nbutils import registry
from nbutils.errors import DataError, NbutilsError, UnknownId
from nbutils.paths import data_dir

HERE = Path(__file__).parent / "test_registry"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return copy_of_data(tmp_path, monkeypatch)


# ── the real data ─────────────────────────────────────────────────────────────────────────────────


def test_the_real_data_has_no_problems() -> None:
    assert registry.check_data() == []


def test_everything_that_is_listed_loads_under_its_name() -> None:
    for ids, load in (
        (registry.device_ids(), registry.load_device),
        (registry.model_ids(), registry.load_model),
        (registry.suite_ids(), registry.load_suite),
        (registry.run_ids(), registry.load_run),
    ):
        assert [load(wanted).id for wanted in ids] == ids
    assert all(registry.load_format(wanted).id == wanted for wanted in registry.load_formats())
    assert min(map(len, (registry.device_ids(), registry.model_ids(), registry.suite_ids()))) >= 3


def test_published_sizes_name_a_format_the_model_comes_in() -> None:
    for model_id in registry.model_ids():
        model = registry.load_model(model_id)
        named = {figure.format for figure in model.published if figure.quantity == "tensor_bytes"}
        assert named <= set(model.formats), model_id


def test_every_source_of_the_formats_is_used() -> None:
    fields = yaml.safe_load((data_dir() / "formats.yaml").read_text(encoding="utf-8"))
    used = {entry["source"] for part in ("blocks", "formats") for entry in fields[part].values()}
    used |= {entry["arithmetic_source"] for entry in fields["formats"].values()}
    assert used == fields["sources"].keys()


# ── one defect, one line ──────────────────────────────────────────────────────────────────────────

#: Defect -> where the line must point, and what it must say.
DEFECTS: dict[str, tuple[str, str]] = {
    "wrong_unit_for_memory": ("configurations.0", "unit 'GB/s' is not a unit of memory; use one of bytes, MB, MiB, GB, GiB"),
    "unknown_unit": ("configurations.0.bandwidth", "unit 'GBps' is unknown; use one of bytes, MB, MiB, GB, GiB, GB/s, TB/s"),
    "missing_source": ("configurations.0.bandwidth.source", "is missing; add it"),
    "unlisted_source": ("", "source 'blog' is not listed under 'sources'"),
    "unused_source": ("", "source 'blog' is listed and never used"),
    "misspelt_field": ("nvml_name", "no such field; data/README.md lists them"),
    "duplicate_key": (" line 5", "the key 'name' stands twice"),
    "id_is_not_the_file_name": ("", "id is 'exmaple'; make it 'example', the name of the file"),
    "number_in_quotes_is_no_number": ("configurations.0.bandwidth.value", "should be a valid number"),
    "truth_is_no_number": ("configurations.0.bandwidth.value", "should be a valid number"),
    "bandwidth_is_zero": ("configurations.0.bandwidth.value", "should be greater than 0 (got '0')"),
    "disagreement_without_reason": ("configurations.0.bandwidth", "'because' must say which is used and why"),
    "impossible_date": ("", "not valid YAML"),
    "text_of_two_lines": ("name", "match pattern"),
    "not_a_mapping": ("", "holds list, expected a mapping of fields"),
    "empty": ("", "expected a mapping of fields"),
    "invalid_syntax": (" line 7", "not valid YAML"),
    "tab_indentation": (" line 7", "not valid YAML"),
    "key_is_a_list": (" line 11", "not valid YAML"),
}


def test_the_fixture_that_all_others_are_made_from_is_good(data: Path) -> None:
    shutil.copy(HERE / "device_good.yaml", data / "devices" / "example.yaml")
    assert registry.check_data() == []
    assert registry.load_device("example").configuration().bandwidth_bytes_per_s == 4.8e12


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_bad_device_gives_one_line_with_file_field_and_remedy(defect: str, data: Path) -> None:
    field, remedy = DEFECTS[defect]
    shutil.copy(HERE / f"device_{defect}.yaml", data / "devices" / "example.yaml")
    problems = registry.check_data()
    assert len(problems) == 1, problems
    assert problems[0].startswith(f"data/devices/example.yaml{field if field.startswith(' ') else ': ' + field}")
    assert remedy in problems[0]
    assert len(problems[0].splitlines()) == 1
    with pytest.raises(DataError, match=r"^data/devices/example\.yaml"):
        registry.load_device("example")


def test_no_fixture_is_forgotten() -> None:
    good = {"device_good", "device_number_with_exponent_is_text_to_yaml"}
    assert {p.stem for p in HERE.glob("device_*.yaml")} - good == {f"device_{defect}" for defect in DEFECTS}


def test_a_number_that_yaml_takes_for_text_is_still_the_number(data: Path) -> None:
    """YAML 1.1 wants a sign in the exponent, so PyYAML reads 4.8e3 as a string. A device must not lose its bandwidth over that."""
    path = data / "devices" / "example.yaml"
    shutil.copy(HERE / "device_number_with_exponent_is_text_to_yaml.yaml", path)
    assert yaml.safe_load(path.read_text())["configurations"][0]["bandwidth"]["value"] == "4.8e3"
    assert registry.load_device("example").configuration().bandwidth_bytes_per_s == 4.8e12


def test_two_defects_are_two_lines_and_loading_names_the_first(data: Path) -> None:
    good = (HERE / "device_good.yaml").read_text()
    (data / "devices" / "example.yaml").write_text(good.replace("value: 128", "value: -1").replace("value: 4800", "value: 0"))
    assert len(registry.check_data()) == 2
    with pytest.raises(DataError, match=r"and 1 more; 'nbutils check-data' lists them"):
        registry.load_device("example")


def test_problems_of_different_files_are_all_listed(data: Path) -> None:
    shutil.copy(HERE / "device_unknown_unit.yaml", data / "devices" / "example.yaml")
    (data / "suites" / "empty.yaml").write_text("")
    (data / "models" / "notes.txt").write_text("x")
    assert [line.split(":")[0] for line in registry.check_data()] == [
        "data/devices/example.yaml",
        "data/models/notes.txt",
        "data/suites/empty.yaml",
    ]


def edit_formats(data: Path, change: Callable[[str], str]) -> None:
    path = data / "formats.yaml"
    text = path.read_text(encoding="utf-8")
    assert change(text) != text
    path.write_text(change(text), encoding="utf-8")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("rule: gguf-plain", "rule: gguf-plane", "formats.Q8_0: rule: "),
        ("base: Q4_K\n", "base: Q4_X\n", "formats.Q4_K_M: tensor type 'Q4_X' is not under 'blocks'"),
        (
            "elements: 256, bytes: 144, source: ggml-common",
            "elements: 256, bytes: 144, source: gml",
            "source 'gml' is not listed under 'sources'",
        ),
        ("  fp8: {title", "  fp7: {title", "source 'fp8' is not listed under 'sources'"),
        ("bytes: 144", "bytes: 0", "blocks.Q4_K.bytes: Input should be greater than 0"),
        ("\nformats:\n", "\nformats:\n  NEW:\n", "formats.NEW"),
    ],
)
def test_a_bad_format_gives_one_line(old: str, new: str, words: str, data: Path) -> None:
    edit_formats(data, lambda text: text.replace(old, new, 1))
    problems = registry.check_data()
    assert len(problems) == 1, problems
    assert problems[0].startswith("data/formats.yaml: ")
    assert words in problems[0]


def test_missing_formats_are_a_problem_and_not_a_traceback(data: Path) -> None:
    (data / "formats.yaml").unlink()
    problems = registry.check_data()
    assert len(problems) == 1
    assert problems[0].startswith("data/formats.yaml: ")


def test_a_model_in_a_format_that_does_not_exist_is_named(data: Path) -> None:
    path = data / "models" / "qwen3-32b.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("formats: [F16", "formats: [F61"), encoding="utf-8")
    assert registry.check_data() == ["data/models/qwen3-32b.yaml: formats: no format 'F61' in data/formats.yaml"]


def test_an_edited_file_is_read_again(data: Path) -> None:
    path = data / "devices" / "example.yaml"
    shutil.copy(HERE / "device_good.yaml", path)
    assert registry.load_device("example").name == "Example"
    path.write_text(path.read_text().replace("name: Example", "name: Improved"))
    os.utime(path, ns=(1, 1))
    assert registry.load_device("example").name == "Improved"


# ── names that do not exist ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("load", "wanted", "near"),
    [
        (registry.load_device, "dgx-sprak", "dgx-spark"),
        (registry.load_device, "DGX-Spark", "dgx-spark"),
        (registry.load_device, "../devices/dgx-spark", "dgx-spark"),
        (registry.load_model, "llama3.3-70b", "llama-3.3-70b"),
        (registry.load_suite, "qick", "quick"),
        (registry.load_format, "q4_k_m", "Q4_K_M"),
        (registry.load_format, "Q4KM", "Q4_K_M"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(load: Callable[[str], object], wanted: str, near: str) -> None:
    with pytest.raises(UnknownId) as caught:
        load(wanted)
    assert repr(wanted) in str(caught.value)
    assert f"did you mean {near!r}?" in str(caught.value)


def test_an_unknown_configuration_suggests_the_nearest() -> None:
    with pytest.raises(UnknownId, match=r"^dgx-spark has no configuration '128'; did you mean '128gb'\?$"):
        registry.load_configuration(registry.load_device("dgx-spark"), "128")


def test_a_folder_that_is_no_registry_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBUTILS_DATA", str(tmp_path))
    with pytest.raises(NbutilsError, match=r"NBUTILS_DATA .* no folder 'devices'"):
        registry.device_ids()


def test_a_format_that_a_model_is_not_published_in_is_refused() -> None:
    with pytest.raises(UnknownId, match=r"^qwen3-32b is not published in MXFP4_MOE; it is in F16, Q8_0"):
        registry.load_format_of(registry.load_model("qwen3-32b"), "MXFP4_MOE")
