"""Bytes and parameters, against figures that others published and against llama.cpp's own quantiser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from helpers import MIB, header_only_file, make_model, models, quantiser_plan
from nbutils import gguf_files, registry
from nbutils.specs import Model, Published
from nbutils.tensors import (
    active_parameters,
    bytes_read_per_token,
    parameters,
    tensor_bytes,
    tensor_type,
    tensors,
    weight_bytes,
    weight_bytes_read,
)

PUBLISHED = [(model_id, figure) for model_id in registry.model_ids() for figure in registry.load_model(model_id).published]


def figure_id(value: str | Published) -> str:
    return value if isinstance(value, str) else f"{value.quantity}-{value.format}".rstrip("-")


def test_there_are_published_figures_to_check_against() -> None:
    assert {model_id for model_id, _ in PUBLISHED} == set(registry.model_ids())


@pytest.mark.parametrize(("model_id", "figure"), PUBLISHED, ids=figure_id)
def test_our_count_is_the_published_one(model_id: str, figure: Published) -> None:
    model = registry.load_model(model_id)
    ours = parameters(model) if figure.quantity == "parameters" else weight_bytes(model, registry.load_format(figure.format))
    assert ours == figure.value, f"{model_id}: {figure.quantity} {figure.format}: {ours:,}, published {figure.value:,}"


# Sums made by another program (facts of 2026-11-20), which met the published figure of every file that has one.
@pytest.mark.parametrize(
    ("model_id", "count"),
    [
        ("llama-3.1-8b", 8_030_261_248 + 64),
        ("qwen3-32b", 32_762_123_264),
        ("qwen3-30b-a3b", 30_532_122_624),
        ("gpt-oss-120b", 116_829_156_672),
    ],
)
def test_parameters_equal_an_independent_sum(model_id: str, count: int) -> None:
    assert parameters(registry.load_model(model_id)) == count  # 64: the rope frequencies that llama.cpp counts as well


@pytest.mark.parametrize(("model_id", "count"), [("qwen3-30b-a3b", 3_041_867_776), ("gpt-oss-120b", 5_132_849_472)])
def test_active_parameters_equal_an_independent_sum(model_id: str, count: int) -> None:
    assert active_parameters(registry.load_model(model_id)) == count


@pytest.mark.parametrize(
    ("model_id", "format_id", "gigabytes"),
    [
        ("llama-3.1-8b", "Q4_K_M", 4.617),
        ("llama-3.3-70b", "Q4_K_M", 41.922),
        ("qwen3-32b", "Q4_K_M", 19.319),
        ("qwen3-30b-a3b", "Q4_K_M", 1.920),
        ("qwen3-30b-a3b", "Q8_0", 3.270),
        ("gpt-oss-120b", "MXFP4_MOE", 3.594),
        ("gpt-oss-120b", "F16", 5.033),
    ],
)
def test_bytes_read_per_token_equal_an_independent_sum(model_id: str, format_id: str, gigabytes: float) -> None:
    read = weight_bytes_read(registry.load_model(model_id), registry.load_format(format_id))
    assert read / 1e9 == pytest.approx(gigabytes, abs=0.0005)


# ── llama.cpp's quantiser as the oracle: a dry run over an F16 file names the type of every tensor ─


def assert_llama_cpp_agrees(path: Path, model: Model, format_id: str) -> None:
    """Types one by one; then the total, with llama.cpp's block sizes, as llama.cpp prints it to 0.01 MiB."""
    import gguf

    fmt = registry.load_format(format_id)
    theirs, printed = quantiser_plan(path, format_id)
    listed = tensors(model)
    ours = {t.name: tensor_type(t, model, fmt) for t in listed}
    assert {name: kind for name, kind in ours.items() if theirs[name] != kind} == {}, "ours; llama.cpp says otherwise"
    assert theirs.keys() == ours.keys()
    sizes = {kind.name: size for kind, size in gguf.GGML_QUANT_SIZES.items()}
    total = sum(t.n_elements // sizes[theirs[t.name]][0] * sizes[theirs[t.name]][1] for t in listed)
    assert total == weight_bytes(model, fmt)
    assert total / MIB == pytest.approx(printed, abs=0.0051)


@pytest.mark.parametrize("format_id", ["Q4_K_M", "Q8_0"])
@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_llama_cpp_would_quantise_a_stand_in_to_the_types_it_is_made_of(
    kind: str, format_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NBUTILS_HOME", str(tmp_path))
    path = gguf_files.make(gguf_files.StandIn(kind, "small", "F16"), registry.load_format("F16"))
    assert_llama_cpp_agrees(path, gguf_files.stand_in_model(kind, "small"), format_id)


REAL = [(m, f) for m in registry.model_ids() for f in registry.load_model(m).formats if f in ("Q4_K_M", "Q8_0", "MXFP4_MOE")]


@pytest.mark.parametrize(("model_id", "format_id"), REAL)
def test_llama_cpp_would_quantise_a_real_model_to_our_types(model_id: str, format_id: str, tmp_path: Path) -> None:
    model = registry.load_model(model_id)
    assert_llama_cpp_agrees(header_only_file(model, tmp_path / "model.gguf"), model, format_id)


@pytest.mark.parametrize("size", ["base", "wide"])
@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_llama_cpp_agrees_with_the_large_stand_ins_too(kind: str, size: str, tmp_path: Path) -> None:
    model = gguf_files.stand_in_model(kind, size)
    assert_llama_cpp_agrees(header_only_file(model, tmp_path / "model.gguf"), model, "Q4_K_M")


AWKWARD: dict[str, tuple[str, dict[str, Any]]] = {
    "tied embedding": ("llama", {"tied_embedding": True}),
    "rows that are no multiple of 256": ("llama", {"n_embd": 96, "head_dim": 16, "n_head": 6, "n_ff": 160, "n_layer": 9}),
    "rows that are no multiple of 32": ("llama", {"n_embd": 80, "head_dim": 16, "n_head": 6, "n_ff": 112}),
    "80 layers with shared heads, the 70B class": ("llama", {"n_layer": 80, "n_embd": 128}),
    "80 layers without shared heads": ("llama", {"n_layer": 80, "n_head_kv": 4}),
    "80 layers of another architecture": ("qwen3", {"n_layer": 80}),
    "8 experts, the Mixtral class": ("qwen3moe", {"experts": (8, 2, 256)}),
    "experts with awkward rows": ("qwen3moe", {"experts": (4, 2, 96), "n_layer": 5}),
}


@pytest.mark.parametrize(("architecture", "shape"), AWKWARD.values(), ids=AWKWARD)
def test_llama_cpp_agrees_on_awkward_shapes(architecture: str, shape: dict[str, Any], tmp_path: Path) -> None:
    model = make_model(architecture, **shape)
    assert_llama_cpp_agrees(header_only_file(model, tmp_path / "model.gguf"), model, "Q4_K_M")


# ── identities ────────────────────────────────────────────────────────────────────────────────────


def test_every_block_size_is_the_one_of_the_gguf_package() -> None:
    import gguf

    for name, block in registry.load_format("F16").blocks.items():
        if name != "F8_E4M3":
            assert (block.elements, block.bytes) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]], name


@given(model=models())
def test_tensors_have_different_names_and_add_up(model: Model) -> None:
    listed, f16 = tensors(model), registry.load_format("F16")
    assert len({t.name for t in listed}) == len(listed)
    if model.architecture != "gpt-oss":
        assert weight_bytes(model, f16) == 2 * parameters(model) + 2 * sum(t.n_elements for t in listed if not t.is_matrix)


@given(model=models())
def test_rows_are_whole_blocks(model: Model) -> None:
    for fmt in registry.load_formats().values():
        for tensor in tensors(model):
            block = fmt.block(tensor_type(tensor, model, fmt))
            assert tensor.shape[0] % block.elements == 0
            assert tensor_bytes(tensor, model, fmt) * block.elements == tensor.n_elements * block.bytes


@given(model=models())
def test_a_token_never_needs_more_than_is_stored(model: Model) -> None:
    assert 0 < active_parameters(model) <= parameters(model)
    for fmt in registry.load_formats().values():
        assert 0 < weight_bytes_read(model, fmt) <= weight_bytes(model, fmt)


@given(model=models())
def test_fewer_bits_are_never_more_bytes(model: Model) -> None:
    f16, q8, q4 = (weight_bytes(model, registry.load_format(name)) for name in ("F16", "Q8_0", "Q4_K_M"))
    assert q4 <= q8 <= f16


def test_an_untied_input_embedding_is_stored_and_not_read() -> None:
    untied, tied = make_model(), make_model(tied_embedding=True)
    embedding = 256 * 1024
    assert parameters(untied) - active_parameters(untied) == embedding
    assert parameters(tied) == active_parameters(tied) == active_parameters(untied)


def test_experts_that_are_not_used_are_stored_and_not_read() -> None:
    model = make_model("qwen3moe", experts=(8, 2, 256))
    one_expert = 3 * 256 * 256 * 2  # gate, up and down, in two layers
    assert parameters(model) - active_parameters(model) == 256 * 1024 + 6 * one_expert


def test_all_experts_used_reads_all_experts() -> None:
    assert bytes_read_per_token([("experts", 80), ("other", 5)], 8, 8) == 85
    assert bytes_read_per_token([("other", 5), ("embedding", 3)], 0, 0) == 8
