from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import MIB, make_model, models
from nbutils import registry
from nbutils.errors import UsageError
from nbutils.fit import MemoryBudget, compute_buffer_estimate_bytes, kv_cache_bytes, largest_context, memory_budget
from nbutils.specs import Block, Model
from nbutils.tensors import weight_bytes
from test_limits import GEMMA

Q8_CACHE = Block(elements=32, bytes=34, source="ggml", standing="vendor")

# ── what llama.cpp itself allocates (its log, header-only files, build of llama-cpp-python 0.3.36) ─


@pytest.mark.parametrize(
    ("model_id", "n_ctx", "mib"),
    [("qwen3-32b", 4096, 1024), ("qwen3-32b", 32768, 8192), ("qwen3-30b-a3b", 4096, 384), ("qwen3-30b-a3b", 32768, 3072)],
)
def test_the_kv_cache_is_as_large_as_llama_cpp_says(model_id: str, n_ctx: int, mib: int) -> None:
    assert kv_cache_bytes(registry.load_model(model_id), n_ctx) == mib * MIB


def test_windowed_layers_of_gemma_hold_624_mib_at_32k_as_llama_cpp_says() -> None:
    gemma = make_model(n_ctx_train=131072).model_copy(update={"shape": GEMMA})
    assert kv_cache_bytes(gemma, 32768) == 32768 * 81_920 + 624 * MIB


@pytest.mark.parametrize(("model_id", "mib"), [("qwen3-32b", 316.75), ("qwen3-30b-a3b", 304.75), ("llama-3.1-8b", 266.50)])
def test_the_compute_buffer_of_these_is_as_large_as_llama_cpp_says(model_id: str, mib: float) -> None:
    assert compute_buffer_estimate_bytes(registry.load_model(model_id)) == mib * MIB


def test_a_70b_model_holds_42_9_gb_of_context_at_131072_tokens() -> None:
    assert kv_cache_bytes(registry.load_model("llama-3.3-70b"), 131_072) / 1e9 == pytest.approx(42.9, abs=0.05)


def test_half_the_layers_of_gpt_oss_hold_768_tokens_whatever_the_context() -> None:
    """Window 128 and one micro-batch of 512, padded to 256: 18 layers x 768 tokens x 2048 bytes. The other 18 hold everything."""
    model = registry.load_model("gpt-oss-120b")
    assert [kv_cache_bytes(model, n) - n * 36_864 for n in (4096, 131_072)] == [18 * 768 * 2048] * 2


@pytest.mark.parametrize(
    ("device_id", "model_id", "format_id", "n_ctx", "verdict"),
    [
        ("dgx-spark", "llama-3.3-70b", "Q4_K_M", 131_072, "fits"),
        ("dgx-spark", "llama-3.3-70b", "F16", 4096, "does_not_fit"),
        ("rtx-4090", "qwen3-32b", "Q4_K_M", 8192, "fits"),
        ("rtx-4090", "qwen3-32b", "Q8_0", 4096, "does_not_fit"),
        ("rtx-5060-ti-16gb", "qwen3-30b-a3b", "Q4_K_M", 4096, "does_not_fit"),
    ],
)
def test_known_cases_have_the_known_verdict(device_id: str, model_id: str, format_id: str, n_ctx: int, verdict: str) -> None:
    usable = registry.load_device(device_id).configuration().usable_bytes
    budget = memory_budget(registry.load_model(model_id), registry.load_format(format_id), n_ctx=n_ctx, usable_bytes=usable)
    assert budget.verdict == verdict


# ── the arithmetic ────────────────────────────────────────────────────────────────────────────────


def test_the_total_is_the_sum_of_its_lines() -> None:
    budget = MemoryBudget(weight_bytes=4_700, kv_cache_bytes=1_000, compute_buffer_bytes=300, usable_bytes=8_000)
    assert (budget.total_bytes, budget.headroom_bytes) == (6_000, 2_000)


@pytest.mark.parametrize(("headroom", "verdict"), [(-1, "does_not_fit"), (0, "tight"), (499, "tight"), (500, "fits")])
def test_tight_is_less_than_a_twentieth_left(headroom: int, verdict: str) -> None:
    assert MemoryBudget(weight_bytes=10_000 - headroom, kv_cache_bytes=0, compute_buffer_bytes=0, usable_bytes=10_000).verdict == verdict


@given(model=models(), usable=st.integers(0, 10**12), more=st.integers(0, 10**12))
def test_headroom_is_linear_in_usable_memory(model: Model, usable: int, more: int) -> None:
    fmt = registry.load_format("Q4_K_M")
    less, greater = (memory_budget(model, fmt, n_ctx=1000, usable_bytes=n) for n in (usable, usable + more))
    assert greater.headroom_bytes - less.headroom_bytes == more
    assert less.weight_bytes == weight_bytes(model, fmt)


@given(model=models(), n_ctx=st.integers(1, 100_000))
def test_the_cache_is_padded_to_256_tokens(model: Model, n_ctx: int) -> None:
    padded = (n_ctx + 255) // 256 * 256
    assert kv_cache_bytes(model, n_ctx) == kv_cache_bytes(model, padded) <= kv_cache_bytes(model, padded + 1)


def test_without_a_window_the_cache_is_padded_tokens_times_bytes_per_token() -> None:
    model = make_model(n_layer=3, n_head_kv=2, head_dim=64)
    assert kv_cache_bytes(model, 257) == 512 * 3 * 2 * 2 * 64 * 2


@given(model=models(), n_ctx=st.integers(1, 100_000), longer=st.integers(0, 100_000))
def test_a_longer_context_never_leaves_more_room(model: Model, n_ctx: int, longer: int) -> None:
    assert kv_cache_bytes(model, n_ctx) <= kv_cache_bytes(model, n_ctx + longer)


@given(model=models(), n_ctx=st.integers(1, 100_000))
def test_an_8_bit_cache_takes_17_32nds(model: Model, n_ctx: int) -> None:
    assert kv_cache_bytes(model, n_ctx, Q8_CACHE) * 32 == kv_cache_bytes(model, n_ctx) * 17


@given(model=models(), share=st.floats(0, 1.2))
def test_the_largest_context_is_the_largest_multiple_that_fits(model: Model, share: float) -> None:
    fmt, trained = registry.load_format("Q4_K_M"), model.shape.n_ctx_train
    empty, whole = (memory_budget(model, fmt, n_ctx=n, usable_bytes=0).total_bytes for n in (1, trained))
    usable = round(0.95 * empty + share * (whole - 0.95 * empty))

    def fits(n_ctx: int) -> bool:
        return memory_budget(model, fmt, n_ctx=n_ctx, usable_bytes=usable).headroom_bytes >= 0

    found = largest_context(model, fmt, usable_bytes=usable)
    if found is None:
        assert not fits(1)
    elif found == trained:
        assert fits(trained)
    else:
        assert found % 256 == 0
        assert found < trained
        assert fits(found)
        assert not fits(found + 256)


def test_the_largest_context_agrees_with_trying_them_all() -> None:
    model, fmt = registry.load_model("qwen3-32b"), registry.load_format("Q4_K_M")
    usable = registry.load_device("rtx-4090").configuration().usable_bytes
    tried = [n for n in range(256, model.shape.n_ctx_train + 1, 256) if memory_budget(model, fmt, n_ctx=n, usable_bytes=usable).headroom_bytes >= 0]
    assert largest_context(model, fmt, usable_bytes=usable) == max(tried)


def test_a_context_of_less_than_one_token_is_misuse() -> None:
    model, fmt = registry.load_model("llama-3.1-8b"), registry.load_format("Q4_K_M")
    with pytest.raises(UsageError, match="n_ctx is -5"):
        memory_budget(model, fmt, n_ctx=-5, usable_bytes=10**12)
