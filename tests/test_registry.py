"""The real data is whole; a broken file gives one line that names the file, the field and what would be right."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from nbutils import registry
from nbutils.errors import DataError, NbutilsError, UnknownId
from nbutils.paths import data_dir
from nbutils.specs import BufferAnswers

HERE = Path(__file__).parent / "test_registry"


# ── the real data ─────────────────────────────────────────────────────────────────────────────────


def test_the_real_data_has_no_problems() -> None:
    assert registry.check_data() == []


def words(text: str) -> list[str]:
    return text.split()


DEVICES = words("""
a100-80gb arc-b580 b200 dgx-spark gtx-1050-ti h100-sxm h200-sxm jetson-agx-thor mac-mini-m4 mac-mini-m4-pro mac-studio-m1-max mac-studio-m2-ultra
mac-studio-m3-ultra mac-studio-m4-max mac-studio-m4-max-32c macbook-air-m5 macbook-pro-m2-pro macbook-pro-m3-max macbook-pro-m5-max
macbook-pro-m5-max-32c macbook-pro-m5-pro radeon-ai-pro-r9700 rtx-2080 rtx-3060 rtx-3080 rtx-3090 rtx-4060-ti-16gb rtx-4070-ti rtx-4090
rtx-5060-ti-16gb rtx-5070 rtx-5090 rtx-pro-6000 rtx-spark-n1 rtx-spark-n1x rx-7900-xt rx-7900-xtx rx-9070-xt snapdragon-x-elite strix-halo
surface-laptop-ultra
""")
MODELS = words("""
codellama-34b deepseek-v3 gemma-3-27b glm-4.5-air gpt-oss-120b gpt-oss-20b llama-2-7b llama-3.1-405b llama-3.1-8b llama-3.3-70b llama-4-scout
mistral-7b mixtral-8x7b nemotron-3-nano nemotron-3-super qwen3-0.6b qwen3-1.7b qwen3-235b-a22b qwen3-30b-a3b qwen3-32b qwen3-4b qwen3-8b
qwen3.5-122b-a10b qwen3.6-35b-a3b
""")
GGUF = words("F16 Q8_0 Q6_K Q5_K_M Q5_K_S Q5_0 Q4_K_M Q4_K_S Q4_0 IQ4_NL IQ4_XS Q3_K_L Q3_K_M Q3_K_S Q2_K MXFP4_MOE MXFP4_GGUF NVFP4_GGUF")
OTHERS = words("BF16 FP8 NVFP4 MXFP4 MLX_4BIT MLX_8BIT")


def test_what_the_book_speaks_of_is_there() -> None:
    assert (len(DEVICES), len(MODELS), len(GGUF + OTHERS)) == (41, 24, 24)
    assert set(DEVICES) <= set(registry.device_ids())
    assert set(MODELS) <= set(registry.model_ids())
    assert set(GGUF) == {fmt.id for fmt in registry.load_formats().values() if fmt.container == "gguf"}
    assert set(OTHERS) == {fmt.id for fmt in registry.load_formats().values() if fmt.container != "gguf"}


def test_everything_that_is_listed_loads_under_its_name() -> None:
    for ids, load in (
        (registry.device_ids(), registry.load_device),
        (registry.model_ids(), registry.load_model),
        (registry.suite_ids(), registry.load_suite),
        (registry.run_ids(), registry.load_run),
    ):
        assert [load(wanted).id for wanted in ids] == ids
    assert all(registry.load_format(wanted).id == wanted for wanted in registry.load_formats())


@pytest.mark.parametrize("device_id", registry.device_ids())
def test_a_device_has_what_a_bound_needs_and_sources_behind_it(device_id: str) -> None:
    device, runtimes = registry.load_device(device_id), registry.load_runtimes()
    for configuration in device.configurations:
        assert 2 * 2**30 < configuration.memory_bytes < 2**40
        assert 50e9 < configuration.bandwidth_bytes_per_s < 20e12
        assert configuration.usable_bytes > 0.45 * configuration.memory_bytes
    assert device.backend in runtimes.backends
    assert device.system in runtimes.systems
    said = [figure for c in device.configurations for figure in (c.memory, c.bandwidth, c.usable, c.price) if figure]
    peaks = [*device.peaks, *(p for c in device.configurations for p in c.peaks)]
    for figure in (*said, *peaks):
        source = device.sources[figure.source]
        assert source.url or figure.standing in ("derived", "unverified"), f"{source.title}: no address, so it is a derivation or nothing to rely on"
    dense = [p for p in peaks if p.basis == "dense"]
    assert all(p.base("compute") > 1e12 for p in dense)


def test_a_model_comes_in_formats_that_exist_and_in_one_that_llama_cpp_runs() -> None:
    formats = registry.load_formats()
    for model_id in registry.model_ids():
        named = registry.load_model(model_id).formats
        assert set(named) <= formats.keys()
        assert len(set(named)) == len(named)
        assert any(formats[f].container == "gguf" for f in named), model_id


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


def test_what_runs_beside_a_model_is_said_for_every_backend_and_system() -> None:
    runtimes = registry.load_runtimes()
    assert set(runtimes.backends) == {"cpu", "cuda", "metal", "rocm", "sycl", "vulkan"}
    assert set(runtimes.systems) == {"linux", "macos", "windows"}


# ── caches and kept answers ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("engine", "kv_type", "bits"),
    [("llama.cpp", "f16", 16), ("llama.cpp", "q8_0", 8.5), ("llama.cpp", "q4_0", 4.5), ("vllm", "fp8", 8), ("mlx", "q8", 8.5), ("mlx", "q4", 4.5)],
)
def test_a_cache_type_has_so_many_bits(engine: str, kv_type: str, bits: float) -> None:
    block = registry.load_cache_type(engine, kv_type)
    assert block.bytes * 8 / block.elements == bits


@pytest.mark.parametrize(
    ("engine", "kv_type", "has"), [("llama.cpp", "fp8", "f16, q8_0, q4_0"), ("vllm", "q8_0", "f16, fp8"), ("mlx", "F16", "f16, q8, q4")]
)
def test_a_cache_type_that_an_engine_lacks_is_refused_with_those_it_has(engine: str, kv_type: str, has: str) -> None:
    with pytest.raises(UnknownId, match=rf"^{engine} has no cache type '{kv_type}'; it has {has}$"):
        registry.load_cache_type(engine, kv_type)


@pytest.mark.parametrize("model_id", registry.model_ids())
def test_llama_cpps_answers_are_kept_for_every_model_up_to_what_it_was_trained_for(model_id: str) -> None:
    answers, trained = registry.load_answers(model_id), registry.load_model(model_id).shape.n_ctx_train
    assert answers is not None
    assert (answers.backend, answers.n_ubatch) == ("cpu", 512)
    assert list(answers.compute_bytes) == list(registry.CACHE_TYPES["llama.cpp"])
    for pairs in answers.compute_bytes.values():
        contexts = [n for n, _ in pairs]
        assert contexts == sorted(set(contexts))
        assert contexts[0] == 1024
        assert contexts[-1] == trained


def test_a_kept_answer_is_found_by_the_context_that_llama_cpp_would_allocate() -> None:
    at_8192 = dict(registry.kept_compute_buffers("qwen3-32b", "f16"))[8192]
    assert [registry.kept_compute_buffer("qwen3-32b", n, "f16") for n in (8192, 8191, 7937)] == [at_8192] * 3
    assert registry.kept_compute_buffer("qwen3-32b", 7936, "f16") is None
    assert registry.kept_compute_buffer("qwen3-32b", 8192, "fp8") is None
    assert registry.kept_compute_buffer("no-such-model", 8192, "f16") is None


def test_answers_come_back_as_they_were_written(data: Path) -> None:
    table = {"f16": ((256, 1), (512, 2)), "q8_0": ((256, 3),)}
    answers = BufferAnswers(id="example", build="llama.cpp 1", backend="cpu", n_ubatch=512, header_sha256="ab" * 32, compute_bytes=table)
    assert registry.write_answers(answers) == data / "buffers" / "example.yaml"
    assert registry.load_answers("example") == answers


# ── one defect, one line ──────────────────────────────────────────────────────────────────────────

#: Defect -> where the line must point, and what it must say.
DEFECTS: dict[str, tuple[str, str]] = {
    "wrong_unit_for_memory": ("configurations.0", "unit 'GB/s' is not a unit of memory; use one of bytes, MB, MiB, GB, GiB"),
    "unknown_unit": ("configurations.0.bandwidth", "unit 'GBps' is unknown; use one of bytes, MB, MiB, GB, GiB, GB/s, TB/s"),
    "missing_source": ("configurations.0.bandwidth.source", "is missing; add it"),
    "unlisted_source": ("", "source 'blog' is not listed under 'sources'"),
    "unused_source": ("", "source 'blog' is listed and never used"),
    "misspelt_field": ("nvml_name", "no such field; data/README.md lists them"),
    "duplicate_key": (" line 7", "the key 'name' stands twice"),
    "id_is_not_the_file_name": ("", "id is 'exmaple'; make it 'example', the name of the file"),
    "number_in_quotes_is_no_number": ("configurations.0.bandwidth.value", "should be a valid number"),
    "truth_is_no_number": ("configurations.0.bandwidth.value", "should be a valid number"),
    "bandwidth_is_zero": ("configurations.0.bandwidth.value", "should be greater than 0 (got '0')"),
    "disagreement_without_reason": ("configurations.0.bandwidth", "'because' must say which is used and why"),
    "impossible_date": ("", "not valid YAML"),
    "text_of_two_lines": ("name", "match pattern"),
    "not_a_mapping": ("", "holds list, expected a mapping of fields"),
    "empty": ("", "expected a mapping of fields"),
    "invalid_syntax": (" line 9", "not valid YAML"),
    "tab_indentation": (" line 9", "not valid YAML"),
    "key_is_a_list": (" line 13", "not valid YAML"),
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
        ("rule: gguf-mixture", "rule: gguf-mixed", "formats.Q8_0: rule: "),
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


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        ("runtimes.yaml", "unit: MiB", "unit: GB/s", "is not a unit of memory"),
        ("runtimes.yaml", "source: ollama", "source: llama", "source 'llama' is not listed under 'sources'"),
        ("runtimes.yaml", "  metal:", "  metel:", "backends.metel"),
        ("buffers/qwen3-8b.yaml", "n_ubatch: 512", "n_ubatch: 0", "n_ubatch: Input should be greater than 0 (got '0')"),
        ("buffers/qwen3-8b.yaml", 'header_sha256: "', 'header_sha256: "x', "header_sha256: String should match pattern"),
        ("buffers/qwen3-8b.yaml", 'id: "qwen3-8b"', 'id: "qwen3-9b"', "id is 'qwen3-9b'; make it 'qwen3-8b', the name of the file"),
        ("models/gemma-3-27b.yaml", "full_every: 6", "full_ever: 6", "shape.full_ever: no such field"),
        ("models/nemotron-3-nano.yaml", "pattern: M", "pattern: MM", "shape: pattern names 53 layers, n_layer is 52"),
        ("models/deepseek-v3.yaml", "architecture: deepseek2", "architecture: llama", "architecture 'llama' has no shape.latent"),
    ],
)
def test_a_bad_runtime_buffer_or_model_gives_a_line_that_names_it(name: str, old: str, new: str, words: str, data: Path) -> None:
    path = data / name
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    problems = registry.check_data()
    assert problems
    assert all(p.startswith(f"data/{name}: ") and len(p.splitlines()) == 1 for p in problems)
    assert any(words in p for p in problems), problems


def test_missing_runtimes_are_a_problem_and_not_a_traceback(data: Path) -> None:
    (data / "runtimes.yaml").unlink()
    (problem,) = registry.check_data()
    assert problem.startswith("data/runtimes.yaml: cannot be read")


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
        (registry.load_model, "deepseek-v4", "deepseek-v3"),
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
