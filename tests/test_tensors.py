"""Bytes and parameters, against figures that others published and against llama.cpp's own quantiser."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from helpers import ARCHITECTURES, MIB, in_child, make_model, models, quantiser_plans, small, stored
from nbutils import gguf_files, registry
from nbutils.specs import Model, Published
from nbutils.tensors import (
    Stored,
    Tensor,
    active_parameters,
    bytes_read_per_token,
    gguf_arithmetic,
    parameters,
    tensor_bytes,
    tensor_type,
    tensors,
    variant,
    variant_of,
    weight_bytes,
    weight_bytes_read,
)

PUBLISHED = [(model_id, figure) for model_id in registry.model_ids() for figure in registry.load_model(model_id).published]
GGUF = [fmt.id for fmt in registry.load_formats().values() if fmt.container == "gguf" and fmt.id not in gguf_files.ON_DEMAND]


def figure_id(value: str | Published) -> str:
    return value if isinstance(value, str) else f"{value.quantity}-{value.format}".rstrip("-")


def test_there_are_published_figures_to_check_against() -> None:
    nothing_found = {"codellama-34b"}  # its file says so
    assert {model_id for model_id, _ in PUBLISHED} == set(registry.model_ids()) - nothing_found


@pytest.mark.parametrize(("model_id", "figure"), PUBLISHED, ids=figure_id)
def test_our_count_is_the_published_one(model_id: str, figure: Published) -> None:
    model = registry.load_model(model_id)
    ours = parameters(model) if figure.quantity == "parameters" else weight_bytes(model, registry.load_format(figure.format))
    assert ours == figure.value, f"{model_id}: {figure.quantity} {figure.format}: {ours:,}, published {figure.value:,}"


# ── sums made by another program, which met the published figure of every file that has one ───────


@pytest.mark.parametrize(
    ("model_id", "count"),
    [
        ("codellama-34b", 33_743_970_304),
        ("deepseek-v3", 671_026_419_200),
        ("gemma-3-27b", 27_009_346_304),
        ("llama-2-7b", 6_738_415_616),
        ("llama-3.1-405b", 405_853_388_800 + 64),  # 64: the rope frequencies that llama.cpp counts as well
        ("llama-3.1-8b", 8_030_261_248 + 64),
        ("llama-3.3-70b", 70_553_706_496 + 64),
        ("llama-4-scout", 107_769_861_120 + 64),
        ("mistral-7b", 7_248_023_552),
        ("mixtral-8x7b", 46_702_792_704),
        ("nemotron-3-nano", 31_577_940_288),
        ("nemotron-3-super", 120_668_707_840),
        ("qwen3-0.6b", 596_049_920),
        ("qwen3-1.7b", 1_720_574_976),
        ("qwen3-235b-a22b", 235_093_634_560),
        ("qwen3-30b-a3b", 30_532_122_624),
        ("qwen3-32b", 32_762_123_264),
        ("qwen3-4b", 4_022_468_096),
        ("qwen3-8b", 8_190_735_360),
        ("qwen3.5-122b-a10b", 122_111_526_912),
        ("qwen3.6-35b-a3b", 34_660_610_688),
    ],
)
def test_parameters_equal_an_independent_sum(model_id: str, count: int) -> None:
    assert parameters(registry.load_model(model_id)) == count


#: Without the input embedding, and of the experts those that a token is sent to.
ACTIVE = {
    "deepseek-v3": 36_625_618_432,
    "glm-4.5-air": 12_803_372_672,
    "gpt-oss-120b": 5_132_849_472,
    "gpt-oss-20b": 3_608_307_264,
    "llama-4-scout": 16_138_408_960 + 64,
    "mixtral-8x7b": 12_748_853_248,
    "nemotron-3-nano": 3_227_754_816,
    "nemotron-3-super": 12_233_366_528,
    "qwen3-235b-a22b": 21_568_433_664,
    "qwen3-30b-a3b": 3_041_867_776,
    "qwen3.5-122b-a10b": 9_008_449_536,
    "qwen3.6-35b-a3b": 2_946_429_568,
}


@pytest.mark.parametrize(("model_id", "count"), ACTIVE.items())
def test_active_parameters_equal_an_independent_sum(model_id: str, count: int) -> None:
    assert active_parameters(registry.load_model(model_id)) == count
    assert stored(model_id, "F16").n_active_parameters == count


@pytest.mark.parametrize(
    ("model_id", "billions"),
    [("gpt-oss-20b", 3.6), ("gpt-oss-120b", 5.1), ("glm-4.5-air", 12.8), ("nemotron-3-super", 12.2), ("nemotron-3-nano", 3.2)],
)
def test_names_that_count_active_parameters_without_the_embedding(model_id: str, billions: float) -> None:
    assert active_parameters(registry.load_model(model_id)) / 1e9 == pytest.approx(billions, abs=0.05)


@pytest.mark.parametrize(
    ("model_id", "billions"),
    [("mixtral-8x7b", 12.9), ("qwen3-30b-a3b", 3.3), ("qwen3-235b-a22b", 22.2), ("llama-4-scout", 17.2), ("deepseek-v3", 37.6)],
)
def test_others_count_the_embedding_as_well(model_id: str, billions: float) -> None:
    found = stored(model_id, "F16")
    assert (found.n_active_parameters + found.groups["embedding"].n_elements) / 1e9 == pytest.approx(billions, abs=0.06)


#: Tensor bytes in Q4_K_M, Q8_0 and F16.
SIZES = {
    "codellama-34b": (20_219_150_336, 35_855_302_656, 67_489_529_856),
    "gemma-3-27b": (16_540_125_824, 28_701_409_280, 54_021_401_600),
    "llama-2-7b": (4_080_263_168, 7_160_348_672, 13_477_363_712),
    "llama-3.1-405b": (243_061_719_296, 431_231_402_240, 811_715_068_160),
    "llama-3.3-70b": (42_512_531_712, 74_967_187_712, 141_110_051_072),
    "llama-4-scout": (65_346_798_336, 114_518_487_296, 215_548_580_096),
    "mistral-7b": (4_372_054_016, 7_701_807_104, 14_496_579_584),
    "mixtral-8x7b": (28_447_727_616, 49_625_579_520, 93_408_215_040),
    "qwen3-0.6b": (390_753_280, 633_495_552, 1_192_230_912),
    "qwen3-1.7b": (1_101_457_408, 1_828_474_880, 3_441_397_760),
    "qwen3-235b-a22b": (142_148_069_376, 249_934_100_480, 470_287_431_680),
    "qwen3-30b-a3b": (18_550_716_416, 32_477_962_240, 61_089_832_960),
    "qwen3-32b": (19_756_174_336, 34_811_744_256, 65_525_600_256),
    "qwen3-4b": (2_491_323_904, 4_274_448_384, 8_045_328_384),
    "qwen3-8b": (5_021_827_072, 8_703_561_728, 16_382_087_168),
}


@pytest.mark.parametrize(("model_id", "sizes"), SIZES.items(), ids=SIZES)
def test_stored_bytes_equal_an_independent_sum(model_id: str, sizes: tuple[int, int, int]) -> None:
    assert tuple(stored(model_id, format_id).weight_bytes for format_id in ("Q4_K_M", "Q8_0", "F16")) == sizes


@pytest.mark.parametrize(
    ("model_id", "format_id", "gigabytes"),
    [
        ("codellama-34b", "Q4_K_M", 20.072),
        ("gemma-3-27b", "Q4_K_M", 16.540),
        ("gpt-oss-120b", "F16", 5.033),
        ("gpt-oss-120b", "MXFP4_MOE", 3.594),
        ("gpt-oss-20b", "F16", 3.715),
        ("gpt-oss-20b", "MXFP4_MOE", 2.575),
        ("llama-2-7b", "Q4_K_M", 4.007),
        ("llama-3.1-405b", "Q4_K_M", 241.880),
        ("llama-3.1-8b", "Q4_K_M", 4.617),
        ("llama-3.3-70b", "Q4_K_M", 41.922),
        ("llama-4-scout", "Q4_K_M", 9.911),
        ("llama-4-scout", "Q8_0", 17.160),
        ("mistral-7b", "Q4_K_M", 4.297),
        ("mixtral-8x7b", "Q4_K_M", 7.895),
        ("mixtral-8x7b", "Q8_0", 13.550),
        ("qwen3-0.6b", "Q4_K_M", 0.391),
        ("qwen3-1.7b", "Q4_K_M", 1.101),
        ("qwen3-235b-a22b", "Q4_K_M", 13.087),
        ("qwen3-235b-a22b", "Q8_0", 23.064),
        ("qwen3-30b-a3b", "Q4_K_M", 1.920),
        ("qwen3-30b-a3b", "Q8_0", 3.270),
        ("qwen3-32b", "Q4_K_M", 19.319),
        ("qwen3-4b", "Q4_K_M", 2.491),
        ("qwen3-8b", "Q4_K_M", 4.672),
    ],
)
def test_bytes_read_per_token_equal_an_independent_sum(model_id: str, format_id: str, gigabytes: float) -> None:
    read = weight_bytes_read(registry.load_model(model_id), registry.load_format(format_id))
    assert read / 1e9 == pytest.approx(gigabytes, abs=0.0005)


# ── what llama.cpp's own tests keep of its quantiser: the matrices that do not get the type of the file ─


@pytest.mark.parametrize(
    ("model_id", "format_id", "count"),
    [
        ("deepseek-v3", "IQ4_XS", 73),
        ("deepseek-v3", "MXFP4_MOE", 429),  # all but the experts, in Q8_0
        ("deepseek-v3", "Q2_K", 242),
        ("deepseek-v3", "Q5_K_M", 119),
        ("llama-3.3-70b", "IQ4_XS", 91),
        ("llama-3.3-70b", "Q3_K_M", 241),
        ("llama-3.3-70b", "Q4_K_S", 91),
        ("llama-3.3-70b", "Q5_K_S", 1),
        ("llama-3.3-70b", "Q6_K", 0),
        ("nemotron-3-nano", "IQ4_NL", 5),
        ("nemotron-3-nano", "Q2_K", 141),
        ("nemotron-3-nano", "Q4_0", 1),
        ("nemotron-3-nano", "Q5_K_M", 135),
    ],
)
def test_as_many_matrices_are_singled_out_as_llama_cpp_keeps(model_id: str, format_id: str, count: int) -> None:
    model, fmt = registry.load_model(model_id), registry.load_format(format_id)
    usual = fmt.more if format_id == "MXFP4_MOE" else fmt.base
    assert sum(tensor_type(t, model, fmt) != usual for t in tensors(model) if t.is_matrix) == count


@pytest.mark.parametrize(
    ("model_id", "format_id", "name", "kind"),
    [
        ("nemotron-3-nano", "Q2_K", "output", "Q8_0"),  # 2688 is no multiple of 256
        ("nemotron-3-nano", "Q2_K", "blk.5.attn_v", "Q4_0"),
        ("nemotron-3-nano", "Q2_K", "blk.5.attn_output", "Q3_K"),
        ("nemotron-3-nano", "Q2_K", "blk.1.ffn_down_exps", "Q4_0"),
        ("gpt-oss-120b", "Q2_K", "blk.0.attn_v", "Q5_0"),
        ("gpt-oss-120b", "Q4_0", "output", "Q8_0"),
        ("qwen3-0.6b", "Q2_K", "blk.0.attn_v", "Q3_K"),
        ("qwen3-0.6b", "Q4_0", "token_embd", "Q6_K"),
    ],
)
def test_single_matrices_get_the_type_that_llama_cpp_keeps(model_id: str, format_id: str, name: str, kind: str) -> None:
    model, fmt = registry.load_model(model_id), registry.load_format(format_id)
    (tensor,) = (t for t in tensors(model) if t.name == f"{name}.weight")
    assert tensor_type(tensor, model, fmt) == kind


# ── llama.cpp's quantiser as the oracle: a dry run over an F16 file names the type of every tensor ─


def assert_llama_cpp_agrees(model: Model, folder: Path, format_ids: list[str] = GGUF) -> None:
    """Types one by one; then the total, with llama.cpp's block sizes, as llama.cpp prints it to 0.01 MiB."""
    import gguf

    path = folder / "model.gguf"
    gguf_files.write_hollow(path, model, registry.load_format("F16"))
    sizes = {kind.name: size for kind, size in gguf.GGML_QUANT_SIZES.items()}
    listed = tensors(model)
    for format_id, (theirs, printed) in quantiser_plans(path, format_ids).items():
        fmt = registry.load_format(format_id)
        assert theirs.keys() == {t.name for t in listed}
        ours = {t.name: tensor_type(t, model, fmt) for t in listed}
        if model.architecture == "gpt-oss":  # its experts come in MXFP4 and nobody quantises them again
            ours = {t.name: theirs[t.name] if t.role == "experts" and t.is_matrix else ours[t.name] for t in listed}
        assert {name: (kind, theirs[name]) for name, kind in ours.items() if theirs[name] != kind} == {}, format_id
        total = sum(t.n_elements // sizes[theirs[t.name]][0] * sizes[theirs[t.name]][1] for t in listed)
        assert total / MIB == pytest.approx(printed, abs=0.0051)
        assert total == weight_bytes(model, fmt) or model.architecture == "gpt-oss"


@pytest.mark.parametrize("model_id", registry.model_ids())
def test_llama_cpp_would_quantise_a_real_model_to_our_types(model_id: str, tmp_path: Path) -> None:
    assert_llama_cpp_agrees(registry.load_model(model_id), tmp_path)


@pytest.mark.parametrize("size", gguf_files.SIZES)
@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_llama_cpp_would_quantise_a_stand_in_to_the_types_it_is_made_of(kind: str, size: str, tmp_path: Path) -> None:
    assert_llama_cpp_agrees(gguf_files.stand_in_model(kind, size), tmp_path, list(gguf_files.FORMATS))


_PURE = """
import ctypes, json, sys
import llama_cpp
log = []
@llama_cpp.llama_log_callback
def keep(level, text, data):
    log.append(text.decode(errors="replace"))
llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
found = []
for name in ("MXFP4_MOE", "NVFP4"):
    log.clear()
    params = llama_cpp.llama_model_quantize_default_params()
    assert not params.dry_run and not params.pure
    params.dry_run, params.pure, params.nthread = True, True, 1
    params.ftype = getattr(llama_cpp, "LLAMA_FTYPE_MOSTLY_" + name)
    status = llama_cpp.llama_model_quantize(sys.argv[1].encode(), (sys.argv[1] + ".never").encode(), ctypes.byref(params))
    found.append([status, "".join(log)])
print(json.dumps(found))
"""


@pytest.mark.parametrize("model", [gguf_files.stand_in_model("dense", "base"), gguf_files.stand_in_model("moe", "base")], ids=lambda m: m.id)
def test_llama_quantize_pure_would_make_every_matrix_mxfp4_and_refuses_nvfp4(model: Model, tmp_path: Path) -> None:
    gguf_files.write_hollow(tmp_path / "model.gguf", model, registry.load_format("F16"))
    (status, log), (refused, why) = in_child(_PURE, str(tmp_path / "model.gguf"))
    assert status == 0
    theirs = {name: (after or before).upper() for name, before, after in re.findall(r"(\S+)\s+- \[.*?\], type =\s*(\w+), .*?(?:\((\w+)\))?\n", log)}
    fmt = registry.load_format("MXFP4_GGUF")
    assert theirs == {t.name: tensor_type(t, model, fmt) for t in tensors(model)}
    assert set(theirs.values()) == {"MXFP4", "F32"}
    assert weight_bytes(model, fmt) / MIB == pytest.approx(float(re.search(r"quant size\s+=\s+([\d.]+)", log)[1]), abs=0.0051)
    assert refused
    assert "invalid output file type" in why


SHARED = {"n_expert": 4, "n_expert_used": 2, "n_ff_expert": 256, "n_ff_shared": 256, "n_layer_dense": 1}
AWKWARD: dict[str, tuple[str, dict[str, Any]]] = {
    "tied embedding": ("llama", {"tied_embedding": True}),
    "rows that are no multiple of 256": ("llama", {"n_embd": 96, "head_dim": 16, "n_head": 6, "n_ff": 160, "n_layer": 9}),
    "rows that are no multiple of 32": ("llama", {"n_embd": 80, "head_dim": 16, "n_head": 6, "n_ff": 112}),
    "80 layers with shared heads, the 70B class": ("llama", {"n_layer": 80, "n_embd": 128}),
    "80 layers without shared heads": ("llama", {"n_layer": 80, "n_head_kv": 4}),
    "80 layers of another architecture": ("qwen3", {"n_layer": 80}),
    "8 experts, the Mixtral class": ("qwen3moe", {"experts": (8, 2, 256)}),
    "a drafting layer that counts as one of thirteen": ("glm4moe", {"n_layer": 12, "n_layer_mtp": 1, "experts": SHARED}),
    "experts with awkward rows": ("qwen3moe", {"experts": (4, 2, 96), "n_layer": 5}),
}


@pytest.mark.parametrize(("architecture", "shape"), AWKWARD.values(), ids=AWKWARD)
def test_llama_cpp_agrees_on_awkward_shapes(architecture: str, shape: dict[str, Any], tmp_path: Path) -> None:
    assert_llama_cpp_agrees(make_model(architecture, **shape), tmp_path)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_llama_cpp_agrees_on_shapes_that_nobody_thought_of(architecture: str, tmp_path: Path) -> None:
    @settings(max_examples=4)
    @given(model=models((architecture,)))
    def agrees(model: Model) -> None:
        assert_llama_cpp_agrees(model, tmp_path)

    agrees()


# ── outside GGUF ──────────────────────────────────────────────────────────────────────────────────


def split(model_id: str) -> tuple[int, int, int]:
    """Elements of the ends (embedding and head), of the matrices between, and of everything small."""
    listed = [t for t in tensors(registry.load_model(model_id)) if not t.name.startswith("rope_freqs")]  # a setting, and GGUF's alone
    ends = sum(t.n_elements for t in listed if t.role in ("embedding", "output"))
    linear = sum(t.n_elements for t in listed if t.is_matrix)
    return ends, linear - ends, sum(t.n_elements for t in listed) - linear


@pytest.mark.parametrize("model_id", ["llama-3.3-70b", "qwen3-32b"])
def test_a_release_costs_what_its_rule_says(model_id: str) -> None:
    """FP8: a byte. NVFP4: 4.5 bits. MLX: 4.5 or 8.5 bits, ends included. What a rule leaves alone: two bytes."""
    ends, linear, rest = split(model_id)
    expected = {
        "BF16": 2 * (ends + linear + rest),
        "FP8": linear + 2 * (ends + rest),
        "NVFP4": linear * 9 // 16 + 2 * (ends + rest),
        "MLX_4BIT": (ends + linear) * 36 // 64 + 2 * rest,
        "MLX_8BIT": (ends + linear) * 68 // 64 + 2 * rest,
    }
    assert {format_id: stored(model_id, format_id).weight_bytes for format_id in expected} == expected


def test_openais_own_files_of_gpt_oss_have_this_size() -> None:
    """Published: 65,248,815,744 bytes of tensors. Experts in MXFP4, all else in BF16, which is 116,829,156,672 parameters in two ways."""
    found = stored("gpt-oss-120b", "MXFP4")
    in_blocks = 36 * 128 * 3 * 2880 * 2880
    assert found.weight_bytes == 65_248_815_744 == in_blocks * 17 // 32 + 2 * (116_829_156_672 - in_blocks)


def test_a_row_that_is_no_whole_number_of_blocks_stays_as_released() -> None:
    model = make_model(n_embd=96, head_dim=24, n_head=4)
    kinds = {t.name: tensor_type(t, model, registry.load_format("MLX_4BIT")) for t in tensors(model)}
    assert kinds["blk.0.attn_q.weight"] == "BF16"  # rows of 96 are no groups of 64
    assert kinds["blk.0.ffn_down.weight"] == "MLX4"  # rows of 512 are


def test_rope_frequencies_are_in_gguf_alone() -> None:
    """Llama 3.1 8B: 64 of them, F32, and in no other container. FP8 has a byte for each weight of its layers and two for all else."""
    names = {f: stored("llama-3.1-8b", f) for f in ("F16", "BF16", "FP8", "MLX_4BIT")}
    assert {f: v.n_parameters for f, v in names.items()} == {f: 8_030_261_248 + (64 if f == "F16" else 0) for f in names}
    assert names["FP8"].weight_bytes == 9_081_200_640 == 32 * 218_103_808 + 2 * (2 * 128_256 * 4096 + 65 * 4096)


def test_a_conversion_for_mlx_has_no_drafting_layers() -> None:
    """GLM-4.5-Air: 110.5 B parameters as released and as GGUF, 106.9 B for MLX."""
    found = {f: stored("glm-4.5-air", f) for f in ("Q4_K_M", "FP8", "MLX_4BIT")}
    assert {f: v.n_parameters for f, v in found.items()} == {"Q4_K_M": 110_468_824_832, "FP8": 110_468_824_832, "MLX_4BIT": 106_852_251_264}
    assert {f for f, v in found.items() if "idle" in v.groups} == {"Q4_K_M", "FP8"}


@pytest.mark.parametrize(
    ("types", "peaks"),
    [
        ({"F16", "F32"}, ("fp16/any",)),
        ({"BF16", "F32"}, ("fp16/any",)),
        ({"Q4_K", "Q6_K", "F32"}, ("fp16/any", "int8")),
        ({"F16", "Q8_0"}, ("fp16/any", "int8")),
        ({"Q8_0", "MXFP4", "F32"}, ("fp16/any", "int8", "fp4")),
        ({"MXFP4"}, ("fp16/any", "int8", "fp4")),
        ({"NVFP4", "BF16", "F32"}, ("fp16/any", "int8", "fp4")),
    ],
)
def test_which_peaks_llama_cpp_may_reach_follows_from_the_types_that_are_there(types: set[str], peaks: tuple[str, ...]) -> None:
    assert gguf_arithmetic(types) == gguf_arithmetic([*types, *types]) == peaks


@pytest.mark.parametrize(
    ("model_id", "format_id", "peaks"),
    [
        ("llama-3.3-70b", "BF16", ("fp16",)),  # not llama.cpp's: as its format says, with sums in full width
        ("llama-3.3-70b", "F16", ("fp16/any",)),
        ("llama-3.3-70b", "Q8_0", ("fp16/any", "int8")),
        ("gpt-oss-20b", "F16", ("fp16/any", "int8", "fp4")),  # the experts are MXFP4 even there
        ("gpt-oss-120b", "Q8_0", ("fp16/any", "int8", "fp4")),
        ("gpt-oss-120b", "MXFP4_MOE", ("fp16/any", "int8", "fp4")),
        ("qwen3-8b", "MXFP4_MOE", ("fp16/any", "int8")),  # a mixture's file type without a mixture: Q8_0
    ],
)
def test_the_arithmetic_of_a_file_is_that_of_its_tensors(model_id: str, format_id: str, peaks: tuple[str, ...]) -> None:
    assert stored(model_id, format_id).arithmetic == peaks


def test_who_runs_a_format_follows_from_where_it_is_stored() -> None:
    engines = {f: stored("llama-3.1-8b", f).engine for f in ("Q4_K_M", "FP8", "MLX_4BIT")}
    assert engines == {"Q4_K_M": "llama.cpp", "FP8": "vllm", "MLX_4BIT": "mlx"}


# ── roles ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_layer_that_only_drafts_is_stored_and_not_read() -> None:
    """GLM-4.5-Air: a whole layer of experts with an embedding and a head of its own. 110.5 B in the file, 106.9 B without."""
    found = stored("glm-4.5-air", "F16")
    idle = found.groups["idle"].n_elements
    assert found.n_parameters - idle == 106_852_251_264
    assert idle == 110_468_824_832 - 106_852_251_264
    assert len(found.layer_bytes) == 46
    by_hand = sum(n for role, n in ((r, g.n_bytes) for r, g in found.groups.items()) if role in ("output", "other"))
    assert found.step_weight_bytes == by_hand + found.groups["experts"].n_bytes * 8 // 128


@pytest.mark.parametrize(
    ("name", "layer", "idle", "role"),
    [
        ("token_embd.weight", None, False, "embedding"),
        ("output.weight", None, False, "output"),
        ("output_norm.weight", None, False, "other"),
        ("blk.3.attn_output.weight", 3, False, "other"),
        ("blk.3.ffn_down_exps.weight", 3, False, "experts"),
        ("blk.3.ffn_down_exps.bias", 3, False, "experts"),
        ("blk.3.ffn_down_shexp.weight", 3, False, "other"),
        ("blk.3.ffn_gate_inp.weight", 3, False, "other"),
        ("blk.3.ffn_down_exps.weight", 3, True, "idle"),
        ("blk.3.nextn.embed_tokens.weight", 3, True, "idle"),
    ],
)
def test_the_role_of_a_tensor_follows_from_its_name(name: str, layer: int | None, idle: bool, role: str) -> None:
    assert Tensor(name=name, shape=(32, 32), layer=layer, idle=idle).role == role


def test_deepseek_caches_one_vector_and_stores_two_expansions_of_it() -> None:
    """Section 2.1 of DeepSeek-V2: keys and values of all 128 heads are made from 512 values, 64 more carry the position."""
    shapes = {t.name: t.shape for t in tensors(registry.load_model("deepseek-v3"))}
    assert shapes["blk.0.attn_kv_a_mqa.weight"] == (7168, 512 + 64)
    assert shapes["blk.0.attn_k_b.weight"] == (128, 512, 128)
    assert shapes["blk.0.attn_v_b.weight"] == (512, 128, 128)
    assert shapes["blk.2.ffn_down.weight"] == (18432, 7168), "the first three layers have no experts"
    assert shapes["blk.3.ffn_down_exps.weight"] == (2048, 7168, 256)


# ── identities ────────────────────────────────────────────────────────────────────────────────────


def test_every_block_size_is_the_one_of_the_gguf_package() -> None:
    import gguf

    elsewhere = {"F8_E4M3", "NVFP4_16", "MLX4", "MLX8"}  # of other containers
    for name, block in registry.load_format("F16").blocks.items():
        if name not in elsewhere:
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
def test_a_variant_is_the_sum_of_its_roles_and_of_its_layers(model: Model) -> None:
    for format_id in ("F16", "Q4_K_M", "FP8", "MLX_4BIT"):
        fmt = registry.load_format(format_id)
        found, listed = variant(model, fmt), [t for t in tensors(model) if format_id != "MLX_4BIT" or not t.idle]
        assert found.weight_bytes == weight_bytes(model, fmt) == sum(tensor_bytes(t, model, fmt) for t in listed)
        assert found.n_parameters == parameters(model) - sum(t.n_elements for t in tensors(model) if t not in listed)
        assert found.n_active_parameters == active_parameters(model) <= found.n_parameters
        assert 0 < found.step_weight_bytes <= found.weight_bytes
        outside = sum(tensor_bytes(t, model, fmt) for t in listed if t.layer is None or t.idle)
        assert sum(found.layer_bytes) + outside == found.weight_bytes
        assert sum(found.layer_expert_bytes) == (found.groups["experts"].n_bytes if "experts" in found.groups else 0)
        assert all(e <= whole for e, whole in zip(found.layer_expert_bytes, found.layer_bytes, strict=True))


def test_a_variant_can_be_made_of_sizes_alone() -> None:
    """That is how a file becomes one: no format says how large its tensors are, the header does."""
    shape = make_model().shape
    listed = [Stored(t, 10) for t in tensors(make_model())]
    fields: dict[str, Any] = {"name": "x", "format": "y", "architecture": "llama", "engine": "llama.cpp", "arithmetic": ("fp16",)}
    found = variant_of(listed, shape=shape, **fields)
    assert found.weight_bytes == 10 * len(listed)
    assert found.n_parameters == small().n_parameters
    assert found.layer_bytes == (90, 90)


def test_all_experts_used_reads_all_experts() -> None:
    assert bytes_read_per_token([("experts", 80), ("other", 5)], 8, 8) == 85
    assert bytes_read_per_token([("other", 5), ("embedding", 3)], 0, 0) == 8
    assert bytes_read_per_token([("other", 5), ("output", 3), ("embedding", 3), ("idle", 7)], 0, 0) == 8
