from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import MIB, each_kind, make_model, models, small, stored
from nbutils import frames, places, registry
from nbutils.errors import UsageError
from nbutils.fit import (
    N_UBATCH,
    ComputeBuffer,
    MemoryBudget,
    Spill,
    check_cache,
    compute_buffer_bound_bytes,
    elsewhere_bytes,
    kv_cache_bytes,
    largest_context,
    linked,
    memory_budget,
    output_buffer_bytes,
    room,
    spill,
)
from nbutils.limits import decode_step_bytes, kv_row_bytes, recurrent_state_bytes
from nbutils.specs import Block, Model
from nbutils.tensors import Variant, variant

GIB = 2**30
Q8_CACHE = Block(elements=32, bytes=34, source="ggml", standing="vendor")
CONTEXTS = st.integers(1, 100_000)


def as_stored(model: Model, format_id: str = "Q4_K_M") -> Variant:
    return variant(model, registry.load_format(format_id))


# ── what llama.cpp itself allocates (its log, hollow files, build of llama-cpp-python 0.3.36) ─────


@pytest.mark.parametrize(
    ("model_id", "n_ctx", "mib"),
    [
        ("qwen3-32b", 4096, 1024),
        ("qwen3-32b", 32768, 8192),
        ("qwen3-30b-a3b", 4096, 384),
        ("qwen3-30b-a3b", 32768, 3072),
    ],
)
def test_the_kv_cache_is_as_large_as_llama_cpp_says(model_id: str, n_ctx: int, mib: int) -> None:
    assert kv_cache_bytes(stored(model_id, "Q4_K_M"), n_ctx) == mib * MIB


def test_windowed_layers_of_gemma_hold_624_mib_at_32k_as_llama_cpp_says() -> None:
    """52 layers, 1536 tokens each: a window of 1024 and a micro-batch of 512."""
    assert kv_cache_bytes(stored("gemma-3-27b", "Q4_K_M"), 32768) == 32768 * 81_920 + 624 * MIB


def test_half_the_layers_of_gpt_oss_hold_768_tokens_whatever_the_context() -> None:
    """Window 128 and one micro-batch of 512, padded to 256: 18 layers x 768 tokens x 2048 bytes. The other 18 hold everything."""
    found = stored("gpt-oss-120b", "MXFP4_MOE")
    assert [kv_cache_bytes(found, n) - n * 36_864 for n in (4096, 131_072)] == [18 * 768 * 2048] * 2


def test_a_70b_model_holds_42_9_gb_of_context_at_131072_tokens() -> None:
    assert kv_cache_bytes(stored("llama-3.3-70b", "Q4_K_M"), 131_072) / 1e9 == pytest.approx(42.9, abs=0.05)


KEPT = [
    (model_id, kv_type, n_ctx, n_bytes)
    for model_id in registry.model_ids()
    for kv_type in registry.CACHE_TYPES["llama.cpp"]
    for n_ctx, n_bytes in registry.kept_compute_buffers(model_id, kv_type)
]


def test_the_bound_is_above_every_compute_buffer_that_llama_cpp_named_and_not_far_above() -> None:
    ratios = {(m, kv, n): compute_buffer_bound_bytes(registry.load_model(m).shape, n) / n_bytes for m, kv, n, n_bytes in KEPT}
    assert len(ratios) > 500
    assert min(ratios.values()) > 1.1
    hybrids = {key: ratio for key, ratio in ratios.items() if ratio > 2}
    assert {model_id for model_id, _, _ in hybrids} <= {"nemotron-3-super", "nemotron-3-nano", "qwen3.6-35b-a3b", "qwen3.5-122b-a10b"}
    assert max(ratios.values()) < 2.4


# ── engines ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("format_id", "cells"),
    [
        ("Q4_K_M", [256, 768, 768]),  # llama.cpp: the window and a micro-batch, in steps of 256
        ("MLX_4BIT", [128, 128, 128]),  # MLX: the window alone
        ("FP8", [112, 1008, 2192]),  # vLLM: pages of 16; 127 tokens seen and 2048 in flight are 136 pages, and one more
    ],
)
def test_what_a_windowed_layer_keeps_depends_on_the_engine(format_id: str, cells: list[int]) -> None:
    every, none = (small("gemma3", format_id, n_layer=4, sliding_window=w, full_every=e) for w, e in ((128, 1), (128, 5)))
    contexts = (100, 1000, 100_000)
    row = kv_row_bytes(every.shape)
    padded = [-(-n // (16 if format_id == "FP8" else 256)) * (16 if format_id == "FP8" else 256) for n in contexts]
    assert [kv_cache_bytes(every, n) for n in contexts] == [4 * row * n for n in padded]
    assert [kv_cache_bytes(none, n) for n in contexts] == [4 * row * n for n in cells], "no layer sees everything"


@pytest.mark.parametrize(
    ("format_id", "kv_type", "sixteenths"),
    [("Q4_K_M", "q8_0", 8.5), ("Q4_K_M", "q4_0", 4.5), ("FP8", "fp8", 8), ("MLX_4BIT", "q8", 8.5), ("MLX_4BIT", "q4", 4.5)],
)
@pytest.mark.parametrize("model_id", ["llama-3.3-70b", "deepseek-v3", "gemma-3-27b", "qwen3.6-35b-a3b"])
def test_a_cache_type_shrinks_all_of_the_cache_and_nothing_else(model_id: str, format_id: str, kv_type: str, sixteenths: float) -> None:
    found = stored(model_id, format_id)
    cache = registry.load_cache_type(found.engine, kv_type)
    assert kv_cache_bytes(found, 8192, cache) == kv_cache_bytes(found, 8192) * sixteenths / 16
    states = [
        memory_budget(found, n_ctx=8192, available_bytes=0, cache=c).recurrent_state_bytes
        for c in (cache, registry.load_cache_type(found.engine, "f16"))
    ]
    assert states == [recurrent_state_bytes(found.shape)] * 2


@pytest.mark.parametrize(("head_dim", "n_elements", "good"), [(64, 32, True), (128, 64, True), (80, 32, False), (96, 64, False), (80, 1, True)])
def test_a_head_must_be_whole_blocks_of_its_cache(head_dim: int, n_elements: int, good: bool) -> None:
    shape, cache = make_model(head_dim=head_dim).shape, Block(elements=n_elements, bytes=34, source="x", standing="vendor")
    if good:
        check_cache(shape, cache, "q8_0")
        return
    with pytest.raises(UsageError, match=rf"^a q8_0 cache has blocks of {n_elements} elements and this model's heads have {head_dim}; use f16$"):
        check_cache(shape, cache, "q8_0")


@given(model=models(), n_ctx=CONTEXTS)
def test_the_cache_is_padded_to_256_tokens(model: Model, n_ctx: int) -> None:
    found, padded = as_stored(model), (n_ctx + 255) // 256 * 256
    assert kv_cache_bytes(found, n_ctx) == kv_cache_bytes(found, padded) <= kv_cache_bytes(found, padded + 1)


def test_without_a_window_the_cache_is_padded_tokens_times_bytes_per_token() -> None:
    assert kv_cache_bytes(small(n_layer=3, n_head_kv=2, head_dim=64), 257) == 512 * 3 * 2 * 2 * 64 * 2


@given(model=models(), format_id=st.sampled_from(["Q4_K_M", "FP8", "MLX_4BIT"]), n_ctx=CONTEXTS, longer=st.integers(0, 100_000))
def test_a_longer_context_never_leaves_more_room(model: Model, format_id: str, n_ctx: int, longer: int) -> None:
    found = as_stored(model, format_id)
    short, long = (memory_budget(found, n_ctx=n, available_bytes=10**12) for n in (n_ctx, n_ctx + longer))
    assert short.kv_cache_bytes <= long.kv_cache_bytes
    assert short.compute.n_bytes <= long.compute.n_bytes
    assert short.recurrent_state_bytes == long.recurrent_state_bytes


@pytest.mark.parametrize(("n_ctx", "batch_size"), [(1, 2), (5000, 7)])
@each_kind
def test_each_sequence_of_a_batch_has_caches_and_logits_of_its_own(model: Model, n_ctx: int, batch_size: int) -> None:
    found = as_stored(model)
    one, many = (memory_budget(found, n_ctx=n_ctx, available_bytes=0, batch_size=n) for n in (1, batch_size))
    assert many.weight_bytes == one.weight_bytes
    for field in ("kv_cache_bytes", "recurrent_state_bytes", "output_buffer_bytes"):
        assert getattr(many, field) == batch_size * getattr(one, field)
    assert many.compute.n_bytes >= one.compute.n_bytes
    assert output_buffer_bytes(model.shape) == 4 * model.shape.n_vocab


# ── the budget ────────────────────────────────────────────────────────────────────────────────────


def test_the_total_is_the_sum_of_its_lines() -> None:
    budget = MemoryBudget(
        weight_bytes=4_700,
        kv_cache_bytes=1_000,
        recurrent_state_bytes=200,
        compute=ComputeBuffer(50, "asked"),
        output_buffer_bytes=30,
        overhead_bytes=20,
        available_bytes=8_000,
    )
    assert (budget.total_bytes, budget.headroom_bytes) == (6_000, 2_000)


@pytest.mark.parametrize(("headroom", "verdict"), [(-1, "does_not_fit"), (0, "tight"), (499, "tight"), (500, "fits")])
def test_tight_is_less_than_a_twentieth_left(headroom: int, verdict: str) -> None:
    budget = MemoryBudget(weight_bytes=10_000 - headroom, kv_cache_bytes=0, compute=ComputeBuffer(0, "asked"), available_bytes=10_000)
    assert budget.verdict == verdict


@given(model=models(), available=st.integers(0, 10**12), more=st.integers(0, 10**12), overhead=st.integers(0, 10**9))
def test_headroom_is_linear_in_memory_and_overhead(model: Model, available: int, more: int, overhead: int) -> None:
    found = as_stored(model)
    less, greater = (memory_budget(found, n_ctx=1000, available_bytes=n) for n in (available, available + more))
    assert greater.headroom_bytes - less.headroom_bytes == more
    assert less.headroom_bytes - memory_budget(found, n_ctx=1000, available_bytes=available, overhead_bytes=overhead).headroom_bytes == overhead
    assert less.weight_bytes == found.weight_bytes


def test_without_an_answer_the_compute_buffer_is_its_bound_and_says_so() -> None:
    found = stored("qwen3-32b", "Q4_K_M")
    bound = compute_buffer_bound_bytes(found.shape, 4096)
    assert memory_budget(found, n_ctx=4096, available_bytes=0).compute == ComputeBuffer(bound, "upper_bound")
    answer = ComputeBuffer(332_136_448, "kept")
    assert memory_budget(found, n_ctx=4096, available_bytes=0, compute=answer).compute is answer


@pytest.mark.parametrize(("name", "value"), [("n_ctx", 0), ("n_ctx", -5), ("batch_size", 0)])
def test_less_than_one_token_or_sequence_is_misuse(name: str, value: int) -> None:
    arguments: dict[str, Any] = {"n_ctx": 1, "available_bytes": 10**12} | {name: value}
    with pytest.raises(UsageError, match=rf"^{name} is {value}; it must be at least 1$"):
        memory_budget(stored("llama-3.1-8b", "Q4_K_M"), **arguments)


# ── the room ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("device_id", "configuration", "gib", "unusable", "system"),
    [
        # Unified: of 128 GiB the system shows 121.6 and its desktop takes 5.84.
        ("dgx-spark", "128gb", 128, 128 - 121.6, 5.84),
        # Discrete, with a Windows desktop on it: 24,080 MiB that CUDA gives out, less 1,585.5.
        ("rtx-4090", "24gb", 24, 24 - 24_080 / 1024, 1585.5 / 1024),
        # Apple's working set leaves the system its share; other programs' textures come on top.
        ("mac-studio-m4-max", "128gb", 128, 128 - 107.52, 422_166_528 / GIB),
    ],
)
def test_room_is_memory_less_what_others_have(device_id: str, configuration: str, gib: float, unusable: float, system: float) -> None:
    device = registry.load_device(device_id)
    found = room(device, device.configuration(configuration), registry.load_runtimes())
    assert found.memory_bytes == gib * GIB
    assert found.unusable_bytes / GIB == pytest.approx(unusable, abs=1e-6)
    assert found.system_bytes / GIB == pytest.approx(system, abs=1e-6)
    assert found.available_bytes == found.memory_bytes - found.unusable_bytes - found.system_bytes


def test_a_carve_out_already_leaves_the_system_its_memory() -> None:
    """Strix Halo: 96 of 128 GB can be given to the graphics part; the system lives in the other 32."""
    device = registry.load_device("strix-halo")
    carved = [c for c in device.configurations if c.usable_leaves_system]
    assert carved
    for configuration in carved:
        found = room(device, configuration, registry.load_runtimes())
        assert found.system_bytes == 0
        assert found.available_bytes == configuration.usable_bytes


def test_every_configuration_of_every_device_leaves_some_room() -> None:
    runtimes = registry.load_runtimes()
    for device_id in registry.device_ids():
        device = registry.load_device(device_id)
        for configuration in device.configurations:
            found = room(device, configuration, runtimes)
            assert 0.4 * found.memory_bytes < found.available_bytes <= found.memory_bytes, (device_id, configuration.id)
            least = 50 * MIB if device.backend == "cpu" else 100 * MIB
            assert least < found.overhead_bytes < GIB


@pytest.mark.parametrize(
    ("device_id", "model_id", "format_id", "n_ctx", "verdict"),
    [
        ("dgx-spark", "llama-3.3-70b", "Q4_K_M", 131_072, "fits"),
        ("dgx-spark", "llama-3.3-70b", "F16", 4096, "does_not_fit"),
        ("dgx-spark", "nemotron-3-super", "Q4_K_M", 1_000_000, "fits"),  # the one of its class that is trained for as much
        ("dgx-spark", "deepseek-v3", "Q4_K_M", 4096, "does_not_fit"),
        ("rtx-4090", "qwen3-32b", "Q4_K_M", 8192, "tight"),
        ("rtx-4090", "qwen3-32b", "Q8_0", 4096, "does_not_fit"),
        ("rtx-5060-ti-16gb", "qwen3-30b-a3b", "Q4_K_M", 4096, "does_not_fit"),
    ],
)
def test_known_cases_have_the_known_verdict(device_id: str, model_id: str, format_id: str, n_ctx: int, verdict: str) -> None:
    device = registry.load_device(device_id)
    there = room(device, device.configuration(), registry.load_runtimes())
    kept = registry.kept_compute_buffer(model_id, n_ctx, "f16")
    budget = memory_budget(
        stored(model_id, format_id),
        n_ctx=n_ctx,
        available_bytes=there.available_bytes,
        compute=None if kept is None else ComputeBuffer(kept, "kept"),
        overhead_bytes=there.overhead_bytes,
    )
    assert budget.verdict == verdict


# ── what lies elsewhere ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("format_id", ["Q4_K_M", "FP8", "MLX_4BIT"])
@each_kind
def test_beside_a_card_llama_cpp_keeps_the_embedding_and_the_logits_with_the_processor(model: Model, format_id: str, batch_size: int) -> None:
    """Unless the embedding is the output head too: then the card has it. Layers that only draft are on no machine at all."""
    found = as_stored(model, format_id)
    idle = found.groups["idle"].n_bytes if "idle" in found.groups else 0
    assert (idle > 0) == (model.shape.n_layer_mtp > 0 and format_id != "MLX_4BIT")
    embedding = 0 if model.shape.tied_embedding else found.groups["embedding"].n_bytes
    with_processor = embedding + 4 * batch_size * model.shape.n_vocab if format_id == "Q4_K_M" else 0
    assert elsewhere_bytes(found, discrete=False, batch_size=batch_size) == idle
    assert elsewhere_bytes(found, discrete=True, batch_size=batch_size) == idle + with_processor


@given(
    model=models(),
    format_id=st.sampled_from(["Q4_K_M", "FP8", "MLX_4BIT"]),
    available=st.integers(0, 10**9),
    discrete=st.booleans(),
    batch_size=st.integers(1, 9),
)
def test_what_lies_elsewhere_is_listed_and_is_room(model: Model, format_id: str, available: int, discrete: bool, batch_size: int) -> None:
    found = as_stored(model, format_id)
    away = elsewhere_bytes(found, discrete=discrete, batch_size=batch_size)
    arguments: dict[str, Any] = {"n_ctx": 1000, "available_bytes": available, "batch_size": batch_size}
    without, budget = memory_budget(found, **arguments), memory_budget(found, elsewhere_bytes=away, **arguments)
    assert 0 <= away < budget.total_bytes == without.total_bytes
    assert (budget.elsewhere_bytes, budget.available_bytes) == (away, available + away)
    assert budget.headroom_bytes == budget.available_bytes - budget.total_bytes == without.headroom_bytes + away


@pytest.mark.parametrize(("headroom", "verdict"), [(-1, "does_not_fit"), (0, "tight"), (499, "tight"), (500, "fits")])
def test_tight_is_judged_by_the_memory_at_hand(headroom: int, verdict: str) -> None:
    """A twentieth of the 10,000 bytes that are here; what is kept elsewhere, ten times as much, does not count."""
    away = 100_000
    parts: dict[str, Any] = {"kv_cache_bytes": 0, "compute": ComputeBuffer(0, "asked"), "elsewhere_bytes": away}
    assert MemoryBudget(weight_bytes=10_000 + away - headroom, available_bytes=10_000 + away, **parts).verdict == verdict


def test_beside_a_card_llama_3_1_8b_has_300_mb_more_room() -> None:
    """128,256 rows of 4,096 values in Q4_K, 144 bytes for 256 of them, and as many logits of 4 bytes."""
    device, found = registry.load_device("rtx-4090"), stored("llama-3.1-8b", "Q4_K_M")
    where = places.place(device, device.configuration())
    assert where.discrete
    budget = frames.budget_of(found, where, n_ctx=8192)
    by_itself = memory_budget(found, n_ctx=8192, available_bytes=where.room.available_bytes, overhead_bytes=where.room.overhead_bytes)
    assert budget.total_bytes == by_itself.total_bytes
    assert budget.headroom_bytes - by_itself.headroom_bytes == 128_256 * 4096 * 144 // 256 + 4 * 128_256 == 296_014_848


@pytest.mark.parametrize("format_id", ["Q4_K_M", "MXFP4_MOE", "MLX_4BIT"])
def test_glm_4_5_air_fits_96_gb_with_all_of_its_context(format_id: str) -> None:
    """Its 47th layer only drafts. Without it, and without the embedding, there is room for 131,072 tokens."""
    device, found = registry.load_device("rtx-pro-6000"), stored("glm-4.5-air", format_id)
    budget = frames.budget_of(found, places.place(device, device.configuration()), n_ctx=131_072)
    assert budget.verdict == "fits"
    assert budget.elsewhere_bytes == elsewhere_bytes(found, discrete=True)


# ── the largest context ───────────────────────────────────────────────────────────────────────────


@given(model=models(), share=st.floats(0, 1.2), answers=st.lists(st.tuples(CONTEXTS, st.integers(0, 10**8)), max_size=3))
def test_the_largest_context_is_the_largest_of_all_that_were_tried(model: Model, share: float, answers: list[tuple[int, int]]) -> None:
    found, trained = as_stored(model), model.shape.n_ctx_train
    empty, whole = (memory_budget(found, n_ctx=n, available_bytes=0).total_bytes for n in (1, trained))
    available = round(0.95 * empty + share * (whole - 0.95 * empty))

    def budget_at(n_ctx: int, compute: ComputeBuffer | None) -> MemoryBudget:
        return memory_budget(found, n_ctx=n_ctx, available_bytes=available, compute=compute)

    tried = [n for n in (*range(256, trained, 256), trained) if budget_at(n, None).headroom_bytes >= 0]
    kept = [n for n, size in answers if n <= trained and budget_at(n, ComputeBuffer(size, "kept")).headroom_bytes >= 0]
    assert largest_context(trained, budget_at) == max(tried, default=None)
    assert largest_context(trained, budget_at, answers) == max(tried + kept, default=None)


def test_a_kept_answer_reaches_further_than_the_bound() -> None:
    """32 billion parameters on 24 GB: llama.cpp needs less scratch than the bound says, and there is a kept answer in between."""
    found = stored("qwen3-32b", "Q4_K_M")
    at = 8192
    kept = registry.kept_compute_buffers(found.name, "f16")
    exact = ComputeBuffer(dict(kept)[at], "kept")
    available = memory_budget(found, n_ctx=at, available_bytes=0, compute=exact).total_bytes

    def budget_at(n_ctx: int, compute: ComputeBuffer | None) -> MemoryBudget:
        return memory_budget(found, n_ctx=n_ctx, available_bytes=available, compute=compute)

    alone = largest_context(40_960, budget_at)
    assert alone is not None
    assert alone < at == largest_context(40_960, budget_at, kept)


# ── leaving some with the processor ───────────────────────────────────────────────────────────────

SPILLS: dict[str, Any] = {"n_ctx": 4096, "bandwidth_bytes_per_s": 1000e9, "host_bandwidth_bytes_per_s": 90e9}


def layer_sizes(found: Variant, n_ctx: int) -> list[int]:
    """Weights and caches of each layer."""
    shape, row = found.shape, kv_row_bytes(found.shape)
    padded = -(-n_ctx // 256) * 256
    window = -(-((shape.sliding_window or 0) + N_UBATCH) // 256) * 256
    state = recurrent_state_bytes(shape) // max(1, shape.layer_kinds.count("recurrent"))
    keeps = {"full": padded * row, "latent": padded * row, "window": min(padded, window) * row, "recurrent": state, "none": 0}
    return [n + keeps[kind] for n, kind in zip(found.layer_bytes, shape.layer_kinds, strict=True)]


def lacking(found: Variant, available: int) -> MemoryBudget:
    """A card with so much room; the input embedding and the logits are with the processor already."""
    return memory_budget(found, n_ctx=SPILLS["n_ctx"], available_bytes=available, elsewhere_bytes=elsewhere_bytes(found, discrete=True))


@pytest.mark.parametrize("what", ["layers", "experts"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.97])
@each_kind
def test_as_few_are_left_behind_as_will_do(model: Model, share: float, what: Any) -> None:
    found = as_stored(model)
    whole = lacking(found, 0)
    scratch = whole.compute.n_bytes
    budget = lacking(found, scratch + round(share * (-whole.headroom_bytes - scratch)))
    spilled = spill(found, budget, what=what, **SPILLS)
    parts = found.layer_bytes if what == "layers" else found.layer_expert_bytes
    if spilled is None:
        caches = budget.kv_cache_bytes + budget.recurrent_state_bytes if what == "layers" else 0
        assert model.shape.experts is None or budget.total_bytes - sum(parts) - caches > budget.available_bytes
        return
    assert spilled.budget.headroom_bytes >= 0
    assert spilled.left_bytes == budget.weight_bytes - spilled.budget.weight_bytes
    n, e = spilled.n_left, model.shape.experts
    assert 1 <= n <= model.shape.n_layer
    assert spilled.left_bytes == sum(parts[:n])
    assert spilled.budget.available_bytes == budget.available_bytes
    assert spilled.budget.elsewhere_bytes == budget.elsewhere_bytes
    left_states = model.shape.layer_kinds[:n].count("recurrent") if what == "layers" else 0
    n_recurrent = model.shape.layer_kinds.count("recurrent")
    assert budget.recurrent_state_bytes - spilled.budget.recurrent_state_bytes == left_states * budget.recurrent_state_bytes // max(1, n_recurrent)
    back = layer_sizes(found, SPILLS["n_ctx"]) if what == "layers" else found.layer_expert_bytes
    assert spilled.budget.headroom_bytes < back[n - 1], "one fewer would not do"
    step = decode_step_bytes(found)
    on_card, on_host = (rate / step for rate in (SPILLS["bandwidth_bytes_per_s"], SPILLS["host_bandwidth_bytes_per_s"]))
    assert on_host * (1 - 1e-9) <= spilled.ceiling_tok_per_s <= on_card * (1 + 1e-9)
    assert (spilled.ceiling_tok_per_s == pytest.approx(on_card)) == (not sum(parts[:n]))
    assert what == "layers" or e is not None


@pytest.mark.parametrize(("model_id", "gb"), [("llama-3.3-70b", 24), ("qwen3-30b-a3b", 16), ("nemotron-3-super", 32), ("gpt-oss-120b", 24)])
def test_with_one_layer_fewer_on_the_processor_it_would_not_fit(model_id: str, gb: int) -> None:
    """Room for one byte less than the whole of what stays means one layer more."""
    found = stored(model_id, "Q4_K_M")
    chosen = spill(found, lacking(found, gb * 10**9), what="layers", **SPILLS)
    assert chosen is not None
    on_card = chosen.budget.total_bytes - chosen.budget.elsewhere_bytes
    exactly = spill(found, lacking(found, on_card), what="layers", **SPILLS)
    less = spill(found, lacking(found, on_card - 1), what="layers", **SPILLS)
    assert exactly is not None
    assert less is not None
    assert exactly.n_left == chosen.n_left == less.n_left - 1


@pytest.mark.parametrize(("model_id", "gb"), [("qwen3-30b-a3b", 16), ("gpt-oss-120b", 24), ("mixtral-8x7b", 16), ("qwen3.6-35b-a3b", 16)])
def test_leaving_experts_leaves_more_speed_than_leaving_layers(model_id: str, gb: int) -> None:
    """An expert is many bytes of which few are read; attention and caches stay where memory is fast."""
    found = stored(model_id, "Q4_K_M")
    budget = lacking(found, gb * 10**9)
    layers, experts = (spill(found, budget, what=what, **SPILLS) for what in ("layers", "experts"))
    assert layers is not None
    assert experts is not None
    assert experts.ceiling_tok_per_s > layers.ceiling_tok_per_s
    assert experts.budget.kv_cache_bytes == budget.kv_cache_bytes > layers.budget.kv_cache_bytes


def test_the_ceiling_of_a_split_model_by_hand() -> None:
    """Half of 80 layers at 90 GB/s: the two reads add up, because one waits for the other."""
    found = stored("llama-3.3-70b", "Q8_0")
    half = 40
    stays = found.weight_bytes - found.groups["embedding"].n_bytes - sum(found.layer_bytes[:half])
    budget = lacking(found, 0)
    rest = budget.kv_cache_bytes // 2 + budget.compute.n_bytes
    spilled = spill(found, lacking(found, stays + rest), what="layers", **SPILLS)
    assert isinstance(spilled, Spill)
    assert (spilled.n_left, spilled.n_layer) == (half, 80)
    read = sum(found.layer_bytes[:half])
    seconds = read / 90e9 + (found.step_weight_bytes - read) / 1000e9
    assert spilled.ceiling_tok_per_s == pytest.approx(1 / seconds)


def test_a_dense_model_has_no_experts_to_leave_and_some_cards_have_no_room_for_anything() -> None:
    dense, moe = stored("llama-3.3-70b", "Q4_K_M"), stored("qwen3-30b-a3b", "Q4_K_M")
    assert spill(dense, lacking(dense, 24 * 10**9), what="experts", **SPILLS) is None
    assert spill(dense, lacking(dense, 10**8), what="layers", **SPILLS) is None
    assert spill(moe, lacking(moe, 10**8), what="experts", **SPILLS) is None


# ── two machines ──────────────────────────────────────────────────────────────────────────────────

LINK: dict[str, Any] = {"bandwidth_bytes_per_s": 273e9, "link_bytes_per_s": 25e9}


@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("n_ctx", [256, 20_000])
@each_kind
def test_the_fuller_of_two_machines_is_as_empty_as_can_be(model: Model, n_ctx: int, batch_size: int) -> None:
    found = as_stored(model)
    away = elsewhere_bytes(found, discrete=False)
    budget = memory_budget(found, n_ctx=n_ctx, available_bytes=10**9, batch_size=batch_size, elsewhere_bytes=away)
    two = linked(found, budget, n_ctx=n_ctx, batch_size=batch_size, **LINK)
    caches = [whole - weights for whole, weights in zip(layer_sizes(found, n_ctx), found.layer_bytes, strict=True)]
    sizes = [weights + batch_size * cache for weights, cache in zip(found.layer_bytes, caches, strict=True)]
    held = budget.weight_bytes - away + budget.kv_cache_bytes + budget.recurrent_state_bytes
    embedding = found.groups["embedding"].n_bytes
    ends = found.weight_bytes - away - sum(found.layer_bytes) - embedding  # head and norm; what only drafts is on disk
    head = embedding if model.shape.tied_embedding else 0  # tied: both machines hold it
    halves = [(sum(sizes[:n]) + embedding, sum(sizes[n:]) + ends + head) for n in range(1, len(sizes) + 1)]
    assert all(sum(half) == held + head for half in halves)
    fuller = two.budget.weight_bytes + two.budget.kv_cache_bytes + two.budget.recurrent_state_bytes
    assert fuller == min(max(half) for half in halves) == max(halves[two.n_layer_first - 1])
    assert two.budget.headroom_bytes >= budget.headroom_bytes - head
    assert (two.budget.available_bytes, two.budget.elsewhere_bytes) == (10**9, 0)


@pytest.mark.parametrize("model_id", ["llama-3.3-70b", "glm-4.5-air", "deepseek-v3"])
def test_two_cards_need_no_embedding_and_two_unified_machines_do(model_id: str) -> None:
    """Beside a card it stays with the processor; else the first machine has it. The sum of both halves tells."""
    found = stored(model_id, "Q4_K_M")
    embedding, idle = found.groups["embedding"].n_bytes, found.groups["idle"].n_bytes if "idle" in found.groups else 0
    for discrete in (True, False):
        away = elsewhere_bytes(found, discrete=discrete)
        budget = memory_budget(found, n_ctx=256, available_bytes=10**12, elsewhere_bytes=away)
        two = linked(found, budget, n_ctx=256, **LINK)
        first = sum(found.layer_bytes[: two.n_layer_first]) + (0 if discrete else embedding)
        second = found.weight_bytes - idle - embedding - sum(found.layer_bytes[: two.n_layer_first])
        assert two.budget.weight_bytes == max(first, second)
        assert two.budget.available_bytes == 10**12


@given(model=models(), link=st.floats(1e8, 1e13))
def test_two_machines_are_at_most_twice_as_fast_and_one_after_the_other_no_faster_at_all(model: Model, link: float) -> None:
    found = as_stored(model)
    budget = memory_budget(found, n_ctx=256, available_bytes=10**12)
    two = linked(found, budget, n_ctx=256, bandwidth_bytes_per_s=273e9, link_bytes_per_s=link)
    alone = 273e9 / decode_step_bytes(found)
    assert two.by_layer_tok_per_s < alone
    assert two.by_tensor_tok_per_s < 2 * alone
    # F16 vectors over the link: one between the machines, or a sum after attention and one after the feed-forward part of each layer.
    vector_s = 2 * model.shape.n_embd / link
    assert 1 / two.by_layer_tok_per_s == pytest.approx(1 / alone + vector_s)
    assert 1 / two.by_tensor_tok_per_s == pytest.approx(1 / alone / 2 + 2 * model.shape.n_layer * vector_s)


def test_over_a_slow_link_cutting_matrices_costs_more_than_it_brings() -> None:
    """Llama 3.3 70B: 160 vectors of 16 kB a token. Over 25 GB/s that is nothing, over 100 MB/s it is a quarter of the time."""
    found = stored("llama-3.3-70b", "Q4_K_M")
    budget = memory_budget(found, n_ctx=8192, available_bytes=10**11)
    fast, slow = (linked(found, budget, n_ctx=8192, bandwidth_bytes_per_s=273e9, link_bytes_per_s=n) for n in (25e9, 1e7))
    alone = 273e9 / decode_step_bytes(found)
    assert fast.by_tensor_tok_per_s == pytest.approx(2 * alone, rel=0.01)
    assert slow.by_tensor_tok_per_s < slow.by_layer_tok_per_s < alone
    assert abs(fast.n_layer_first - 40) <= 1


def test_two_cards_need_no_tied_embedding_on_the_first_of_them() -> None:
    """The processor looks it up, the second card has it as the head: 33 of Gemma's 62 layers fit beside nothing."""
    found = stored("gemma-3-27b", "Q4_K_M")
    budget = memory_budget(found, n_ctx=8192, available_bytes=10**12, elsewhere_bytes=elsewhere_bytes(found, discrete=True))
    two = linked(found, budget, n_ctx=8192, **LINK)
    assert (two.n_layer_first, two.budget.weight_bytes + two.budget.kv_cache_bytes) == (33, 9_021_116_032)
