"""Which engine runs where: whole, sourced, and found for every device; a broken file says what would be right."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from helpers import copy_of_data
from nbutils import frames_engines, registry
from nbutils.errors import DataError


def test_every_device_of_the_registry_is_of_one_platform_and_something_runs_there() -> None:
    for device_id in registry.device_ids():
        table, _, _ = frames_engines.device_engines(registry.load_device(device_id))
        assert "yes" in set(table["runs"]), device_id


def test_what_the_book_measures_with_runs_everywhere() -> None:
    table, _, _ = frames_engines.engine_rows()
    assert set(table[table["engine"] == "llama.cpp"]["runs"]) == {"yes"}


@pytest.mark.parametrize(
    ("device_id", "engine", "runs"),
    [  # each against the page that the data names, read by hand
        ("mac-studio-m4-max", "vLLM", "partly"),
        ("mac-studio-m4-max", "TensorRT-LLM", "no"),
        ("strix-halo", "vLLM", "yes"),
        ("strix-halo", "MLX", "no"),
        ("dgx-spark", "TensorRT-LLM", "yes"),
        ("dgx-spark", "MLX", "not known here"),
        ("rtx-spark-n1x", "vLLM", "partly"),
        ("rtx-spark-n1x", "TensorRT-LLM", "no"),
    ],
)
def test_a_device_has_the_word_of_its_platform(device_id: str, engine: str, runs: str) -> None:
    table, _, _ = frames_engines.device_engines(registry.load_device(device_id))
    assert table.set_index("engine").loc[engine, "runs"] == runs


def test_what_is_not_known_is_said_and_has_no_source() -> None:
    engines = registry.load_engines()
    table, _, _ = frames_engines.engine_rows()
    unknown = table["runs"] == frames_engines.UNKNOWN
    assert len(table) == len(engines.engines) * len(engines.platforms)
    assert unknown.sum() == len(table) - sum(len(engine.platforms) for engine in engines.engines.values())
    assert (table.loc[unknown, ["how", "source", "seen"]] == "").all(axis=None)
    assert (table.loc[~unknown, "url"].str.startswith("https://")).all()


METAL = '      apple-macos: {runs: fully, how: "Metal, on by default"'


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            METAL,
            METAL.replace("fully", "yes"),
            "engines.llama-cpp.platforms.apple-macos.runs: Input should be 'fully', 'partly' or 'not' (got 'True')",
        ),
        (METAL, METAL.replace("apple-macos", "apple"), "file: engines.llama-cpp.platforms: 'apple' is not under 'platforms'"),
        ("source: mlx-2300", "source: mlx-2301", "file: source 'mlx-2301' is not listed under 'sources'"),
        (
            "system: windows, families: [intel]",
            "system: windows, families: [qualcomm]",
            "file: platforms.qualcomm-windows.families: qualcomm under windows is 'intel-windows' already",
        ),
    ],
)
def test_a_mistake_is_one_line_that_names_the_field(old: str, new: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = copy_of_data(tmp_path, monkeypatch) / "engines.yaml"
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(DataError, match=re.escape(f"data/engines.yaml: {line}")):
        registry.load_engines()


def test_check_data_has_a_line_for_every_problem_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = copy_of_data(tmp_path, monkeypatch) / "engines.yaml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("standing: press", "standing: rumour"), encoding="utf-8")
    assert sum("standing: Input should be" in line for line in registry.check_data()) == text.count("standing: press") > 1
