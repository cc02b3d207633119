from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import make_model, models
from nbutils import registry
from nbutils.limits import (
    arithmetic_intensity,
    decode_ceiling_tok_per_s,
    decode_flop,
    decode_step_bytes,
    kv_bytes_per_token,
    kv_bytes_read,
    kv_layers,
    mbu,
    prefill_ceiling_tok_per_s,
    prefill_flop,
    ridge_point,
)
from nbutils.specs import Block, Model, Shape
from nbutils.tensors import active_parameters, tensors, weight_bytes_read

Q8_CACHE = Block(elements=32, bytes=34, source="ggml", standing="vendor")
DEPTHS = st.integers(0, 50_000)
BANDWIDTHS = st.floats(1e9, 1e13)

#: Gemma 3 27B: 10 of 62 layers see everything, 52 see a window of 1024.
GEMMA = Shape(
    n_layer=62,
    n_embd=5376,
    n_head=32,
    n_head_kv=16,
    head_dim=128,
    n_ff=21504,
    n_vocab=262208,
    n_ctx_train=131072,
    sliding_window=1024,
    full_every=6,
)

# ── independent numbers ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("model_id", "n_bytes"),
    [("llama-3.1-8b", 131_072), ("llama-3.3-70b", 327_680), ("qwen3-32b", 262_144), ("qwen3-30b-a3b", 98_304), ("gpt-oss-120b", 36_864)],
)
def test_kv_bytes_per_token_equal_an_independent_sum(model_id: str, n_bytes: int) -> None:
    assert kv_bytes_per_token(registry.load_model(model_id).shape) == n_bytes


def test_only_the_layers_without_a_window_grow() -> None:
    assert kv_layers(GEMMA) == (10, 52)
    assert kv_bytes_per_token(GEMMA) == 81_920
    assert kv_bytes_read(GEMMA, 100_000) == 81_920 * 100_000 + 436_207_616


def test_an_8_bit_cache_has_a_scale_for_32_values() -> None:
    shape = registry.load_model("qwen3-32b").shape
    assert kv_bytes_per_token(shape, Q8_CACHE) == 262_144 * 34 // 64


@pytest.mark.parametrize(("format_id", "tok_per_s"), [("Q4_K_M", 6.51), ("FP8", 3.87)])
def test_a_70b_model_on_273_gb_per_s_decodes_no_faster_than_this(format_id: str, tok_per_s: float) -> None:
    step_bytes = decode_step_bytes(registry.load_model("llama-3.3-70b"), registry.load_format(format_id))
    assert decode_ceiling_tok_per_s(273e9, step_bytes) == pytest.approx(tok_per_s, abs=0.005)


def test_8_bits_stored_as_fp8_and_as_q8_0_are_on_the_same_side_of_the_trap() -> None:
    model = registry.load_model("llama-3.3-70b")
    fp8, q8, q4 = (weight_bytes_read(model, registry.load_format(f)) for f in ("FP8", "Q8_0", "Q4_K_M"))
    assert q8 / fp8 == pytest.approx(1.0625, rel=0.02)
    assert fp8 > 1.6 * q4


def test_a_gb10_is_balanced_at_458_flop_per_byte() -> None:
    spark = registry.load_device("dgx-spark")
    peak = spark.peak("bf16")
    assert peak is not None
    assert ridge_point(peak.base("compute"), spark.configuration().bandwidth_bytes_per_s) == pytest.approx(125e12 / 273e9)


def test_decode_is_two_flop_per_active_parameter() -> None:
    """OpenAI's gpt-oss-120b has 5.1 B active parameters, so some 10.3 GFLOP a token."""
    assert decode_flop(registry.load_model("gpt-oss-120b")) == 2 * 5_132_849_472


# ── brute force: one token after another, one layer after another ─────────────────────────────────


def prefill_flop_by_loop(model: Model, n_tokens: int, depth: int) -> int:
    """Every layer for every token, the head once; attention counted by visible token."""
    shape = model.shape
    head = "token_embd.weight" if shape.tied_embedding else "output.weight"
    total = 0
    for position in range(depth, depth + n_tokens):
        for tensor in tensors(model):
            if tensor.part in ("token_embd", "output"):
                continue
            share = shape.experts.n_expert_used / shape.experts.n_expert if shape.experts and tensor.role == "experts" else 1
            total += 2 * round(tensor.n_elements * share)
        for layer in range(shape.n_layer):
            windowed = shape.full_every is not None and (layer + 1) % shape.full_every != 0
            visible = min(position + 1, shape.sliding_window or 0) if windowed else position + 1
            total += shape.n_head * shape.head_dim * 2 * 2 * visible  # scores and sums, a multiply and an add each
    return total + 2 * next(t.n_elements for t in tensors(model) if t.name == head)


@pytest.mark.parametrize(("n_tokens", "depth"), [(1, 0), (7, 0), (5, 3), (20, 30)])
@pytest.mark.parametrize(
    "model",
    [
        make_model(rope_freqs=32),
        make_model("qwen3", tied_embedding=True),
        make_model("qwen3moe", experts=(8, 2, 64)),
        make_model("gpt-oss", n_layer=5, experts=(4, 1, 64), sliding_window=8, full_every=2),
    ],
    ids=["llama", "qwen3 tied", "qwen3moe", "gpt-oss"],
)
def test_prefill_flop_equal_a_loop_over_tokens_and_layers(model: Model, n_tokens: int, depth: int) -> None:
    assert prefill_flop(model, n_tokens=n_tokens, depth=depth) == prefill_flop_by_loop(model, n_tokens, depth)


@given(model=models(), depth=DEPTHS)
def test_reading_one_token_costs_what_producing_it_costs(model: Model, depth: int) -> None:
    assert prefill_flop(model, n_tokens=1, depth=depth) == decode_flop(model, depth=depth + 1)


@given(model=models(), first=st.integers(1, 500), second=st.integers(1, 500))
def test_a_prompt_in_two_parts_costs_one_output_head_more(model: Model, first: int, second: int) -> None:
    parts = prefill_flop(model, n_tokens=first) + prefill_flop(model, n_tokens=second, depth=first)
    assert parts - prefill_flop(model, n_tokens=first + second) == 2 * model.shape.n_embd * model.shape.n_vocab


# ── identities ────────────────────────────────────────────────────────────────────────────────────


@given(bandwidth=BANDWIDTHS, step_bytes=st.floats(1e6, 1e12))
def test_mbu_is_one_where_the_rate_is_the_ceiling(bandwidth: float, step_bytes: float) -> None:
    itl_s = 1 / decode_ceiling_tok_per_s(bandwidth, step_bytes)
    assert mbu(step_bytes=step_bytes, itl_s=itl_s, bandwidth_bytes_per_s=bandwidth) == pytest.approx(1)


@given(bandwidth=BANDWIDTHS, peak=st.floats(1e10, 1e15), n_bytes=st.floats(1e6, 1e12))
def test_at_the_ridge_point_both_walls_are_equally_far(bandwidth: float, peak: float, n_bytes: float) -> None:
    ridge = ridge_point(peak, bandwidth)
    assert ridge is not None
    flop = ridge * n_bytes
    assert flop / peak == pytest.approx(n_bytes / bandwidth)
    assert arithmetic_intensity(flop, n_bytes) == pytest.approx(ridge)


def test_decode_at_batch_one_is_far_below_every_ridge_point() -> None:
    model, fmt = registry.load_model("llama-3.3-70b"), registry.load_format("Q4_K_M")
    intensity = arithmetic_intensity(decode_flop(model), decode_step_bytes(model, fmt))
    for device_id in registry.device_ids():
        device = registry.load_device(device_id)
        peak = device.peak("fp16")
        ridge = ridge_point(peak.base("compute") if peak else None, device.configuration().bandwidth_bytes_per_s)
        assert ridge is None or intensity < ridge / 5, device_id


def test_an_unknown_peak_gives_an_unknown_bound() -> None:
    assert ridge_point(None, 273e9) is None
    assert prefill_ceiling_tok_per_s(None, 1e12, n_tokens=512) is None


@given(model=models(), bandwidth=BANDWIDTHS)
def test_a_batch_of_one_at_depth_zero_reads_the_weights(model: Model, bandwidth: float) -> None:
    fmt = registry.load_format("Q8_0")
    step_bytes = decode_step_bytes(model, fmt)
    assert step_bytes == weight_bytes_read(model, fmt)
    assert decode_ceiling_tok_per_s(bandwidth, step_bytes, batch_size=1) == bandwidth / step_bytes


@given(model=models(), depth=DEPTHS, batch_size=st.integers(1, 64))
def test_a_batch_shares_the_weights_and_nothing_else(model: Model, depth: int, batch_size: int) -> None:
    fmt = registry.load_format("Q4_K_M")
    one = decode_step_bytes(model, fmt, depth=depth)
    many = decode_step_bytes(model, fmt, depth=depth, batch_size=batch_size)
    assert many == batch_size * one - (batch_size - 1) * weight_bytes_read(model, fmt)
    single, batch = decode_ceiling_tok_per_s(273e9, one), decode_ceiling_tok_per_s(273e9, many, batch_size=batch_size)
    assert single <= batch * (1 + 1e-12)
    assert batch <= batch_size * single * (1 + 1e-12)


@given(model=models(), depth=DEPTHS, deeper=DEPTHS)
def test_deeper_context_never_raises_a_ceiling(model: Model, depth: int, deeper: int) -> None:
    fmt, (low, high) = registry.load_format("Q4_K_M"), sorted((depth, deeper))
    ceilings = [decode_ceiling_tok_per_s(273e9, decode_step_bytes(model, fmt, depth=d)) for d in (low, high)]
    assert ceilings[1] <= ceilings[0]
    assert decode_flop(model, depth=low) <= decode_flop(model, depth=high)
    prefill = [prefill_ceiling_tok_per_s(1e14, prefill_flop(model, n_tokens=16, depth=d), n_tokens=16) or 0 for d in (low, high)]
    assert prefill[1] <= prefill[0]


@given(model=models(), depth=DEPTHS)
def test_more_bits_never_raise_decode(model: Model, depth: int) -> None:
    speeds = [
        decode_ceiling_tok_per_s(273e9, decode_step_bytes(model, registry.load_format(format_id), depth=depth))
        for format_id in ("Q4_K_M", "Q8_0", "F16")
    ]
    assert speeds == sorted(speeds, reverse=True)


@given(model=models(), depth=DEPTHS)
def test_a_window_never_makes_a_step_read_more(model: Model, depth: int) -> None:
    full = model.shape.model_copy(update={"sliding_window": None, "full_every": None})
    assert kv_bytes_read(model.shape, depth) <= kv_bytes_read(full, depth) == depth * kv_bytes_per_token(full)


@given(model=models(), depth=DEPTHS)
def test_once_the_window_is_full_a_token_adds_what_the_other_layers_keep(model: Model, depth: int) -> None:
    depth += model.shape.sliding_window or 0
    assert kv_bytes_read(model.shape, depth + 1) - kv_bytes_read(model.shape, depth) == kv_bytes_per_token(model.shape)


def test_a_mixture_of_experts_does_as_much_work_as_its_active_parameters() -> None:
    dense, moe = (registry.load_model(name) for name in ("qwen3-32b", "qwen3-30b-a3b"))
    assert decode_flop(dense) / decode_flop(moe) == pytest.approx(active_parameters(dense) / active_parameters(moe))
    assert decode_flop(dense) > 10 * decode_flop(moe)
