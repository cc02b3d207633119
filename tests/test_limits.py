from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import each_kind, make_model, models, small, stored
from nbutils import registry
from nbutils.limits import (
    F16_CACHE,
    arithmetic_intensity,
    compute_bound_batch,
    decode_ceiling_tok_per_s,
    decode_flop,
    decode_limit,
    decode_step_bytes,
    distinct_experts,
    energy_j_per_token,
    hourly_price_usd,
    kv_bytes_per_token,
    kv_bytes_read,
    kv_row_bytes,
    mbu,
    prefill_bytes,
    prefill_ceiling_tok_per_s,
    prefill_flop,
    prefill_limit,
    recurrent_state_bytes,
    ridge_point,
    training_flop_per_token,
    usd_per_million_tokens,
)
from nbutils.specs import Block, Model, Shape
from nbutils.tensors import Variant, tensors, variant

Q8_CACHE = Block(elements=32, bytes=34, source="ggml", standing="vendor")
DEPTHS = st.integers(0, 50_000)
BANDWIDTHS = st.floats(1e9, 1e13)
DENSE = ("gemma3", "qwen3")


def as_stored(model: Model, format_id: str = "Q4_K_M") -> Variant:
    return variant(model, registry.load_format(format_id))


def shape_of(model_id: str) -> Shape:
    return registry.load_model(model_id).shape


# ── what a context costs: independent numbers ─────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("model_id", "n_bytes"),
    [
        ("codellama-34b", 196_608),
        ("deepseek-v3", 70_272),
        ("gemma-3-27b", 81_920),
        ("glm-4.5-air", 188_416),
        ("gpt-oss-120b", 36_864),
        ("gpt-oss-20b", 24_576),
        ("llama-2-7b", 524_288),
        ("llama-3.1-405b", 516_096),
        ("llama-3.1-8b", 131_072),
        ("llama-3.3-70b", 327_680),
        ("llama-4-scout", 49_152),
        ("mistral-7b", 131_072),
        ("mixtral-8x7b", 131_072),
        ("nemotron-3-nano", 6_144),
        ("nemotron-3-super", 8_192),
        ("qwen3-0.6b", 114_688),
        ("qwen3-1.7b", 114_688),
        ("qwen3-235b-a22b", 192_512),
        ("qwen3-30b-a3b", 98_304),
        ("qwen3-32b", 262_144),
        ("qwen3-4b", 147_456),
        ("qwen3-8b", 147_456),
        ("qwen3.5-122b-a10b", 24_576),
        ("qwen3.6-35b-a3b", 20_480),
    ],
)
def test_kv_bytes_per_token_equal_an_independent_sum(model_id: str, n_bytes: int) -> None:
    assert kv_bytes_per_token(shape_of(model_id)) == n_bytes


@pytest.mark.parametrize(
    ("model_id", "n_bytes"),
    [
        ("qwen3.6-35b-a3b", 65_863_680),  # 30 layers x 4 bytes x (3 x 8192 + 128 x 4096)
        ("nemotron-3-nano", 49_930_240),  # 23 layers x 4 bytes x (3 x 6144 + 128 x 4096)
        ("llama-3.3-70b", 0),
    ],
)
def test_a_recurrent_state_has_the_size_that_llama_cpp_prints(model_id: str, n_bytes: int) -> None:
    assert recurrent_state_bytes(shape_of(model_id)) == n_bytes


@pytest.mark.parametrize(
    ("model_id", "megabytes"), [("qwen3.6-35b-a3b", 62.9), ("qwen3.5-122b-a10b", 151), ("nemotron-3-nano", 48.2), ("nemotron-3-super", 167.8)]
)
def test_nearly_all_of_a_state_is_matrices(model_id: str, megabytes: float) -> None:
    """Published figures leave the inputs of the convolution out: three rows, beside a matrix per head."""
    shape = shape_of(model_id)
    assert shape.recurrent is not None
    matrices = shape.layer_kinds.count("recurrent") * 4 * shape.recurrent.state_size * shape.recurrent.inner_size
    assert matrices / 1e6 == pytest.approx(megabytes, abs=0.06)
    assert matrices < recurrent_state_bytes(shape) < 1.05 * matrices


def test_deepseek_caches_576_values_a_layer_for_all_of_its_128_heads() -> None:
    shape = shape_of("deepseek-v3")
    assert kv_row_bytes(shape) == 576 * 2
    assert kv_bytes_read(shape, 1000) == 61 * 576 * 2 * 1000
    whole_heads = shape.n_head * (192 + 128) * 2  # what plain attention with such heads would keep
    assert whole_heads / kv_row_bytes(shape) == pytest.approx(71, abs=0.2)


def test_only_the_layers_without_a_window_grow() -> None:
    """Gemma 3 27B: 10 of 62 layers see everything, 52 see 1024 tokens of 8192 bytes."""
    shape = shape_of("gemma-3-27b")
    assert (shape.layer_kinds.count("full"), shape.layer_kinds.count("window")) == (10, 52)
    assert kv_bytes_read(shape, 100_000) == 81_920 * 100_000 + 52 * 1024 * 8192
    assert kv_bytes_read(shape, 1000) == 62 * 1000 * 8192


def test_an_8_bit_cache_has_a_scale_for_32_values() -> None:
    assert kv_bytes_per_token(shape_of("qwen3-32b"), Q8_CACHE) == 262_144 * 34 // 64
    assert kv_bytes_per_token(shape_of("deepseek-v3"), Q8_CACHE) == 61 * 576 * 34 // 32


def test_value_heads_may_be_smaller_than_key_heads() -> None:
    shape = make_model(head_dim=64, head_dim_v=32, n_head_kv=2).shape
    assert kv_row_bytes(shape) == 2 * (64 + 32) * 2


# ── ceilings: independent numbers ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("format_id", "tok_per_s"), [("Q4_K_M", 6.51), ("FP8", 3.87)])
def test_a_70b_model_on_273_gb_per_s_decodes_no_faster_than_this(format_id: str, tok_per_s: float) -> None:
    limit = decode_limit(stored("llama-3.3-70b", format_id), bandwidth_bytes_per_s=273e9)
    assert limit.ceiling_tok_per_s == pytest.approx(tok_per_s, abs=0.005)
    assert limit.binding == "bandwidth"


def test_8_bits_stored_as_fp8_and_as_q8_0_are_on_the_same_side_of_the_trap() -> None:
    fp8, q8, q4 = (stored("llama-3.3-70b", f).step_weight_bytes for f in ("FP8", "Q8_0", "Q4_K_M"))
    assert q8 / fp8 == pytest.approx(1.0625, rel=0.02)
    assert fp8 > 1.6 * q4


def test_a_gb10_is_balanced_at_458_flop_per_byte() -> None:
    spark = registry.load_device("dgx-spark")
    peak = spark.peak("bf16")
    assert peak is not None
    assert ridge_point(peak.base("compute"), spark.configuration().bandwidth_bytes_per_s) == pytest.approx(125e12 / 273e9)


def test_decode_is_two_flop_per_active_parameter() -> None:
    """OpenAI's gpt-oss-120b has 5.1 B active parameters, so some 10.3 GFLOP a token."""
    assert decode_flop(stored("gpt-oss-120b", "MXFP4")) == 2 * 5_132_849_472


def test_a_million_tokens_of_nemotron_3_super() -> None:
    """Worked out by others: 9.0e16 FLOP to read them, 12.0 minutes at 125 TFLOP/s; then 18 tok/s at 300 GB/s."""
    nemotron = stored("nemotron-3-super", "Q4_K_M")
    flop = prefill_flop(nemotron, n_tokens=10**6)
    assert flop == pytest.approx(9.0e16, rel=0.02)
    rate = prefill_ceiling_tok_per_s(125e12, flop, n_tokens=10**6)
    assert rate is not None
    assert 10**6 / rate / 60 == pytest.approx(12.0, abs=0.2)
    assert prefill_flop(nemotron, n_tokens=10**6) - prefill_flop(nemotron, n_tokens=1) > 3 * 2.1e16, "most of it is attention"
    step = decode_step_bytes(nemotron, depth=10**6)
    assert decode_ceiling_tok_per_s(300e9, step) == pytest.approx(18, abs=0.5)


# ── brute force: one token after another, one layer after another ─────────────────────────────────


def seen_by(shape: Shape, layer: int, position: int) -> int:
    """Tokens that the token at ``position`` sees in a layer, itself included."""
    kind = shape.layer_kinds[layer]
    if kind in ("recurrent", "none"):
        return 0
    if kind != "window":
        return position + 1
    window = shape.sliding_window or 0
    return sum(1 for p in range(position + 1) if (p // window == position // window if shape.chunked else position - p < window))


def flop_by_loop(model: Model, n_tokens: int, depth: int) -> int:
    """Every layer for every token, the head once; attention counted by visible token."""
    shape = model.shape
    head = "token_embd.weight" if shape.tied_embedding else "output.weight"
    width = shape.n_head * (shape.head_dim + (shape.head_dim_v or shape.head_dim))
    if shape.latent:  # scores over all that is cached, sums over the part that is also the value
        width = shape.n_head * (shape.latent.kv_lora_rank + shape.latent.n_rot + shape.latent.kv_lora_rank)
    r = shape.recurrent
    total = 0
    for position in range(depth, depth + n_tokens):
        for tensor in tensors(model):
            if tensor.role in ("embedding", "output", "idle"):
                continue
            share = shape.experts.n_expert_used / shape.experts.n_expert if shape.experts and tensor.role == "experts" else 1
            total += 2 * round(tensor.n_elements * share)
        for layer in range(shape.n_layer):
            total += 2 * width * seen_by(shape, layer, position)  # a multiply and an add
            if r and shape.layer_kinds[layer] == "recurrent":
                total += 2 * 2 * r.state_size * r.inner_size  # updated and read
    return total + 2 * next(t.n_elements for t in tensors(model) if t.name == head)


@pytest.mark.parametrize(("n_tokens", "depth"), [(1, 0), (7, 0), (5, 3), (20, 30)])
@each_kind
def test_prefill_flop_equal_a_loop_over_tokens_and_layers(model: Model, n_tokens: int, depth: int) -> None:
    assert prefill_flop(as_stored(model), n_tokens=n_tokens, depth=depth) == flop_by_loop(model, n_tokens, depth)


@pytest.mark.parametrize("depth", [0, 1, 7, 8, 9, 16, 100])
@each_kind
def test_a_step_reads_what_the_layers_before_it_left(model: Model, depth: int) -> None:
    """The token before it sees as many in every layer, itself included. A chunk that has just ended leaves nothing."""
    shape = model.shape
    row = kv_row_bytes(shape)
    by_loop = sum(
        seen_by(shape, layer, depth - 1) * row
        for layer in range(shape.n_layer if depth else 0)
        if not (shape.chunked and shape.layer_kinds[layer] == "window" and depth % (shape.sliding_window or 1) == 0)
    )
    assert kv_bytes_read(shape, depth) == by_loop
    assert decode_step_bytes(as_stored(model), depth=depth) == as_stored(model).step_weight_bytes + by_loop + recurrent_state_bytes(shape)


@given(model=models(("llama", "gemma3", "gpt-oss", "deepseek2", "nemotron_h_moe", "qwen35moe")), depth=DEPTHS)
def test_reading_one_token_costs_what_producing_it_costs(model: Model, depth: int) -> None:
    assert prefill_flop(as_stored(model), n_tokens=1, depth=depth) == decode_flop(as_stored(model), depth=depth + 1)


@given(model=models(), first=st.integers(1, 500), second=st.integers(1, 500))
def test_a_prompt_in_two_parts_costs_one_output_head_more(model: Model, first: int, second: int) -> None:
    found = as_stored(model)
    parts = prefill_flop(found, n_tokens=first) + prefill_flop(found, n_tokens=second, depth=first)
    assert parts - prefill_flop(found, n_tokens=first + second) == 2 * model.shape.n_embd * model.shape.n_vocab


# ── batches ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("n_expert", "n_used", "batch_size"), [(4, 1, 3), (4, 2, 2), (5, 2, 3), (6, 3, 2), (3, 3, 2), (7, 1, 1)])
def test_the_expected_number_of_experts_is_the_mean_over_all_choices(n_expert: int, n_used: int, batch_size: int) -> None:
    choices = list(itertools.combinations(range(n_expert), n_used))
    counts = [len(set().union(*together)) for together in itertools.product(choices, repeat=batch_size)]
    assert distinct_experts(n_expert, n_used, batch_size) == pytest.approx(sum(counts) / len(counts))


@given(model=models(DENSE), depth=DEPTHS, batch_size=st.integers(1, 64))
def test_a_batch_shares_the_weights_and_nothing_else(model: Model, depth: int, batch_size: int) -> None:
    found = as_stored(model)
    one = decode_step_bytes(found, depth=depth)
    many = decode_step_bytes(found, depth=depth, batch_size=batch_size)
    assert many == batch_size * one - (batch_size - 1) * found.step_weight_bytes


@given(model=models(), depth=DEPTHS, batch_size=st.integers(1, 300), more=st.integers(1, 300))
def test_a_larger_batch_reads_less_per_token_and_is_never_slower(model: Model, depth: int, batch_size: int, more: int) -> None:
    found = as_stored(model)
    few, many = (
        decode_limit(found, bandwidth_bytes_per_s=273e9, peak_flop_per_s=1e13, depth=depth, batch_size=n) for n in (batch_size, batch_size + more)
    )
    assert many.bytes_per_token <= few.bytes_per_token * (1 + 1e-12)
    assert many.ceiling_tok_per_s >= few.ceiling_tok_per_s * (1 - 1e-12)
    assert many.ceiling_tok_per_s / many.batch_size <= few.ceiling_tok_per_s / few.batch_size * (1 + 1e-12), "one sequence gains nothing"


@given(model=models(("qwen3moe", "gpt-oss", "deepseek2", "nemotron_h_moe")), batch_size=st.integers(1, 5000))
def test_a_batch_reads_between_the_used_and_all_of_the_experts(model: Model, batch_size: int) -> None:
    found, e = as_stored(model, "Q8_0"), model.shape.experts
    assert e is not None
    weights = decode_step_bytes(found, batch_size=batch_size) - batch_size * recurrent_state_bytes(model.shape)
    experts = found.groups["experts"].n_bytes if "experts" in found.groups else 0
    ceiling = found.step_weight_bytes + experts * (1 - e.n_expert_used / e.n_expert) + 1
    assert found.step_weight_bytes <= weights <= ceiling


@pytest.mark.parametrize(
    ("model_id", "format_id", "peak", "depth"),
    [
        ("llama-3.3-70b", "Q4_K_M", 125e12, 0),
        ("qwen3-30b-a3b", "Q4_K_M", 125e12, 0),
        ("deepseek-v3", "FP8", 1e15, 512),
        ("qwen3.6-35b-a3b", "Q8_0", 125e12, 0),
        ("qwen3-0.6b", "F16", 1e10, 0),
    ],
)
def test_the_batch_from_which_arithmetic_binds_is_the_first_one(model_id: str, format_id: str, peak: float, depth: int) -> None:
    found = stored(model_id, format_id)

    def binding(batch_size: int) -> str:
        return decode_limit(found, bandwidth_bytes_per_s=273e9, peak_flop_per_s=peak, depth=depth, batch_size=batch_size).binding

    first = compute_bound_batch(found, bandwidth_bytes_per_s=273e9, peak_flop_per_s=peak, depth=depth)
    tried = next((n for n in range(1, 3000) if binding(n) == "compute"), None)
    assert first == tried


def test_with_a_deep_context_arithmetic_may_never_bind() -> None:
    """Each sequence brings K and V of its own: 327,680 bytes a token for 2 x 2 x 64 x 128 x 80 FLOP, 8 FLOP a byte."""
    found = stored("llama-3.3-70b", "Q4_K_M")
    assert compute_bound_batch(found, bandwidth_bytes_per_s=273e9, peak_flop_per_s=125e12, depth=100_000) is None
    assert compute_bound_batch(found, bandwidth_bytes_per_s=273e9, peak_flop_per_s=None) is None


def test_a_dense_model_in_16_bits_turns_at_the_ridge_point() -> None:
    """Two FLOP for two bytes: the batch at which both walls are equally far is the ridge point itself."""
    found = stored("llama-2-7b", "F16")
    first = compute_bound_batch(found, bandwidth_bytes_per_s=100e9, peak_flop_per_s=20e12)
    assert first is not None
    assert abs(first - 200) <= 1


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


@given(model=models(), depth=DEPTHS, batch_size=st.integers(1, 500), peak=st.none() | st.floats(1e9, 1e16))
def test_the_ceiling_is_the_lower_of_two(model: Model, depth: int, batch_size: int, peak: float | None) -> None:
    found = as_stored(model)
    limit = decode_limit(found, bandwidth_bytes_per_s=1e12, peak_flop_per_s=peak, depth=depth, batch_size=batch_size)
    by_bandwidth = decode_ceiling_tok_per_s(1e12, limit.step_bytes, batch_size=batch_size)
    by_compute = float("inf") if peak is None else batch_size * peak / limit.flop
    assert limit.ceiling_tok_per_s == pytest.approx(min(by_bandwidth, by_compute))
    assert limit.binding == ("compute" if by_compute < by_bandwidth else "bandwidth")
    assert limit.flop == batch_size * decode_flop(found, depth=depth)


def test_decode_at_batch_one_is_far_below_every_ridge_point() -> None:
    found = stored("llama-3.3-70b", "Q4_K_M")
    intensity = arithmetic_intensity(decode_flop(found), decode_step_bytes(found))
    for device_id in registry.device_ids():
        device = registry.load_device(device_id)
        peak = device.peak("fp16")
        ridge = ridge_point(peak.base("compute") if peak else None, device.configuration().bandwidth_bytes_per_s)
        assert ridge is None or intensity < ridge / 3, device_id


def test_an_unknown_peak_gives_an_unknown_bound() -> None:
    assert ridge_point(None, 273e9) is None
    assert prefill_ceiling_tok_per_s(None, 1e12, n_tokens=512) is None
    limit = decode_limit(small(), bandwidth_bytes_per_s=273e9)
    assert (limit.compute_s, limit.binding) == (None, "bandwidth")


@given(model=models(), depth=DEPTHS, deeper=DEPTHS)
def test_deeper_context_never_raises_a_ceiling(model: Model, depth: int, deeper: int) -> None:
    if model.shape.chunked:  # a chunk that ends lets a layer forget: only whole chunks can be compared
        depth, deeper = (n // (model.shape.sliding_window or 1) * (model.shape.sliding_window or 1) for n in (depth, deeper))
    found, (low, high) = as_stored(model), sorted((depth, deeper))
    ceilings = [decode_ceiling_tok_per_s(273e9, decode_step_bytes(found, depth=d)) for d in (low, high)]
    assert ceilings[1] <= ceilings[0]
    assert decode_flop(found, depth=low) <= decode_flop(found, depth=high)
    prefill = [prefill_ceiling_tok_per_s(1e14, prefill_flop(found, n_tokens=16, depth=d), n_tokens=16) or 0 for d in (low, high)]
    assert prefill[1] <= prefill[0]


@given(model=models(), depth=DEPTHS)
def test_more_bits_never_raise_decode(model: Model, depth: int) -> None:
    speeds = [decode_ceiling_tok_per_s(273e9, decode_step_bytes(as_stored(model, f), depth=depth)) for f in ("Q4_K_M", "Q8_0", "F16")]
    assert speeds == sorted(speeds, reverse=True)


@given(model=models(("gemma3", "gpt-oss", "llama4")), depth=DEPTHS)
def test_a_window_never_makes_a_step_read_more(model: Model, depth: int) -> None:
    full = model.shape.model_copy(update={"sliding_window": None, "full_every": None, "chunked": False})
    assert kv_bytes_read(model.shape, depth) <= kv_bytes_read(full, depth) == depth * kv_bytes_per_token(full)


@given(model=models(("gemma3", "gpt-oss")), depth=DEPTHS)
def test_once_the_window_is_full_a_token_adds_what_the_other_layers_keep(model: Model, depth: int) -> None:
    depth += model.shape.sliding_window or 0
    assert kv_bytes_read(model.shape, depth + 1) - kv_bytes_read(model.shape, depth) == kv_bytes_per_token(model.shape)


def test_a_mixture_of_experts_does_as_much_work_as_its_active_parameters() -> None:
    dense, moe = (stored(name, "Q4_K_M") for name in ("qwen3-32b", "qwen3-30b-a3b"))
    assert decode_flop(dense) / decode_flop(moe) == pytest.approx(dense.n_active_parameters / moe.n_active_parameters)
    assert decode_flop(dense) > 10 * decode_flop(moe)


# ── energy, money, training ───────────────────────────────────────────────────────────────────────


@given(power=st.floats(5, 2000), rate=st.floats(0.1, 1e5), price=st.floats(0.001, 1), usd=st.floats(100, 1e6), years=st.floats(0.5, 10))
def test_a_million_tokens_cost_their_energy_and_their_share_of_the_machine(power: float, rate: float, price: float, usd: float, years: float) -> None:
    """Two ways to count: by the hour, or energy by the kWh and the machine by the time it takes."""
    hour = hourly_price_usd(price_usd=usd, years=years, power_w=power, usd_per_kwh=price)
    kwh = energy_j_per_token(power, rate) * 1e6 / 3.6e6
    hours = 1e6 / rate / 3600
    assert usd_per_million_tokens(tok_per_s=rate, usd_per_hour=hour) == pytest.approx(kwh * price + hours * usd / (years * 365.25 * 24))


def test_training_takes_six_flop_a_weight_and_an_adapter_four() -> None:
    found = stored("llama-3.1-8b", "F16")
    n = found.n_active_parameters
    assert training_flop_per_token(found, method="full") == 6 * n
    assert training_flop_per_token(found, method="lora", n_adapter_parameters=10**7) == 4 * n + 6 * 10**7
    assert training_flop_per_token(found, method="qlora", n_adapter_parameters=10**7) == 4 * n + 6 * 10**7


@pytest.mark.parametrize("model_id", ["llama-3.1-8b", "qwen3-30b-a3b", "deepseek-v3"])
def test_full_training_is_three_times_reading_with_a_head_for_every_token(model_id: str) -> None:
    """Forward once and backward twice: so the attention in it is three times that of a prompt."""
    found: Any = stored(model_id, "BF16" if model_id != "deepseek-v3" else "FP8")
    n_ctx = 4096
    heads = 2 * (n_ctx - 1) * found.shape.n_embd * found.shape.n_vocab
    forward = prefill_flop(found, n_tokens=n_ctx) + heads
    assert training_flop_per_token(found, method="full", n_ctx=n_ctx) * n_ctx == pytest.approx(3 * forward, rel=1e-3)


def test_the_usual_cache_is_two_bytes_a_value() -> None:
    assert (F16_CACHE.elements, F16_CACHE.bytes) == (1, 2)


def test_a_prompt_waits_for_its_arithmetic_or_for_its_weights_whichever_takes_longer() -> None:
    """512 tokens make a mixture of experts read nearly all of its weights: on a B200 that takes longer than the arithmetic."""
    moe, dense = stored("gpt-oss-120b", "MXFP4_MOE"), stored("llama-3.1-8b", "Q4_K_M")
    for found in (moe, dense):
        n_bytes = prefill_bytes(found, n_tokens=512)
        assert found.step_weight_bytes <= n_bytes <= found.weight_bytes
        assert prefill_bytes(found, n_tokens=512, depth=1000) == n_bytes + kv_bytes_read(found.shape, 1000)
    assert prefill_bytes(dense, n_tokens=512) == dense.step_weight_bytes
    fast, slow, unknown = (prefill_limit(moe, n_tokens=512, bandwidth_bytes_per_s=8e12, peak_flop_per_s=p) for p in (9e15, 9e12, None))
    assert (fast.binding, fast.ceiling_tok_per_s) == ("bandwidth", pytest.approx(512 * 8e12 / prefill_bytes(moe, n_tokens=512)))
    assert (slow.binding, slow.ceiling_tok_per_s) == ("compute", pytest.approx(512 * 9e12 / prefill_flop(moe, n_tokens=512)))
    assert (unknown.binding, unknown.ceiling_tok_per_s) == (None, None)
