"""Ceilings and floors from four numbers: bytes per token, bandwidth, FLOP per token, peak FLOP/s.

Pure arithmetic on plain values. A ceiling is what no machine of these properties can beat; it is not a prediction.
The bounds are those of the roofline model (Williams, Waterman and Patterson, 2009, doi:10.1145/1498765.1498785).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nbutils.specs import Block, Shape
from nbutils.tensors import Variant, bytes_read_per_token

__all__ = [
    "F16_CACHE",
    "DecodeLimit",
    "PrefillLimit",
    "arithmetic_intensity",
    "bytes_read_per_token",
    "compute_bound_batch",
    "decode_ceiling_tok_per_s",
    "decode_flop",
    "decode_limit",
    "decode_step_bytes",
    "distinct_experts",
    "energy_j_per_token",
    "flop_per_seen",
    "growing_layers",
    "hourly_price_usd",
    "kv_bytes_per_token",
    "kv_bytes_read",
    "kv_row_bytes",
    "mbu",
    "prefill_bytes",
    "prefill_ceiling_tok_per_s",
    "prefill_flop",
    "prefill_limit",
    "recurrent_flop",
    "recurrent_state_bytes",
    "ridge_point",
    "training_flop_per_token",
    "usd_per_million_tokens",
]

#: llama.cpp's default cache type.
F16_CACHE = Block(elements=1, bytes=2, source="llama.cpp", standing="vendor")
_F32_BYTES = 4


# ── what a token of context costs ─────────────────────────────────────────────────────────────────


def kv_row_bytes(shape: Shape, cache: Block = F16_CACHE) -> int:
    """Bytes of K and V that one attention layer keeps of one token.

    Latent attention keeps one compressed key for all heads and no value: the value is a part of it
    (``llama_kv_cache`` of llama.cpp; DeepSeek-V2, arXiv:2405.04434, section 2.1).
    """
    if shape.latent is not None:
        elements = shape.latent.kv_lora_rank + shape.latent.n_rot
    else:
        elements = shape.n_head_kv * (shape.head_dim + (shape.head_dim_v or shape.head_dim))
    return elements * cache.bytes // cache.elements


def kv_bytes_per_token(shape: Shape, cache: Block = F16_CACHE) -> int:
    """Bytes of K and V that one more token of context adds, once every window is full."""
    return growing_layers(shape) * kv_row_bytes(shape, cache)


def recurrent_state_bytes(shape: Shape) -> int:
    """Bytes of state of one sequence, whatever its length: F32, the convolution's last inputs included.

    llama.cpp, ``llama_hparams::n_embd_r`` and ``n_embd_s``.
    """
    r = shape.recurrent
    if r is None:
        return 0
    convolution = (r.conv_kernel - 1) * (r.inner_size + 2 * r.group_count * r.state_size)
    return shape.layer_kinds.count("recurrent") * _F32_BYTES * (convolution + r.state_size * r.inner_size)


def kv_bytes_read(shape: Shape, depth: int, cache: Block = F16_CACHE) -> int:
    """Bytes of K and V that one decode step reads at ``depth`` tokens of context; windows are honoured."""
    seen = growing_layers(shape) * depth + shape.layer_kinds.count("window") * _window_seen(shape, depth)
    return seen * kv_row_bytes(shape, cache)


def growing_layers(shape: Shape) -> int:
    """Layers that keep something of every token."""
    return shape.layer_kinds.count("full") + shape.layer_kinds.count("latent")


def _window_seen(shape: Shape, depth: int) -> int:
    """Tokens that a windowed layer sees when ``depth`` came before."""
    window = shape.sliding_window
    if window is None:
        return depth
    return depth % window if shape.chunked else min(depth, window)


def _window_seen_sum(shape: Shape, depth: int, n_tokens: int) -> int:
    """The same, summed over ``n_tokens`` tokens that each see themselves too."""
    window = shape.sliding_window
    assert window is not None

    def up_to(n: int) -> int:
        if shape.chunked:
            chunks, rest = divmod(n, window)
            return chunks * window * (window + 1) // 2 + rest * (rest + 1) // 2
        ramp = min(n, window)
        return ramp * (ramp + 1) // 2 + (n - ramp) * window

    return up_to(depth + n_tokens) - up_to(depth)


# ── decode ────────────────────────────────────────────────────────────────────────────────────────


def distinct_experts(n_expert: int, n_expert_used: int, batch_size: int) -> float:
    """Experts of a layer that a batch is expected to need: ``E (1 - (1 - k/E)^B)``, each token choosing evenly and on its own.

    Real routers prefer some experts, and then fewer are needed.

    >>> distinct_experts(128, 8, 1), round(distinct_experts(128, 8, 16), 1)
    (8.0, 82.4)
    """
    return n_expert * (1 - (1 - n_expert_used / n_expert) ** batch_size)


def decode_step_bytes(variant: Variant, *, depth: int = 0, batch_size: int = 1, cache: Block = F16_CACHE) -> float:
    """Bytes one decode step reads: weights once for all sequences, each sequence's K, V and state.

    Of the experts, those that the batch is expected to need (``distinct_experts``); one sequence needs exactly ``n_expert_used``.
    """
    weights = float(variant.step_weight_bytes)
    experts = variant.shape.experts
    if batch_size > 1 and experts is not None and "experts" in variant.groups:
        extra = distinct_experts(experts.n_expert, experts.n_expert_used, batch_size) - experts.n_expert_used
        weights += variant.groups["experts"].n_bytes * extra / experts.n_expert
    return weights + batch_size * (kv_bytes_read(variant.shape, depth, cache) + recurrent_state_bytes(variant.shape))


def decode_ceiling_tok_per_s(bandwidth_bytes_per_s: float, step_bytes: float, *, batch_size: int = 1) -> float:
    """Upper bound on tok/s over all sequences of the batch, set by memory bandwidth alone.

    It holds where each step reads ``step_bytes`` from memory, nothing stays in cache, arithmetic hides behind the reads,
    and no draft is checked several tokens at a time (speculative decoding).

    >>> decode_ceiling_tok_per_s(273e9, 42e9)
    6.5
    """
    return batch_size * bandwidth_bytes_per_s / step_bytes


def decode_flop(variant: Variant, *, depth: int = 0) -> int:
    """FLOP of one decode step of one sequence: two per active weight, and attention to what is cached."""
    shape = variant.shape
    windowed = shape.layer_kinds.count("window")
    seen = growing_layers(shape) * depth + windowed * _window_seen(shape, depth)
    return 2 * variant.n_active_parameters + flop_per_seen(shape) * seen + recurrent_flop(shape)


def flop_per_seen(shape: Shape) -> int:
    """FLOP of one layer for one token seen: all heads multiply with its key and add up its value."""
    if shape.latent is not None:  # every head works on the compressed vector, whose first part also is the value
        per_head = 2 * shape.latent.kv_lora_rank + shape.latent.n_rot
    else:
        per_head = shape.head_dim + (shape.head_dim_v or shape.head_dim)
    return 2 * shape.n_head * per_head


def recurrent_flop(shape: Shape) -> int:
    """Least FLOP a token costs in recurrent layers: each element of the state is updated and read, two operations each."""
    r = shape.recurrent
    return 0 if r is None else 4 * shape.layer_kinds.count("recurrent") * r.state_size * r.inner_size


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeLimit:
    """What bounds a decode step, with its parts. Times in seconds of one step of the whole batch."""

    step_bytes: float
    flop: int
    batch_size: int
    bandwidth_s: float
    compute_s: float | None

    @property
    def binding(self) -> Literal["bandwidth", "compute"]:
        return "compute" if self.compute_s is not None and self.compute_s > self.bandwidth_s else "bandwidth"

    @property
    def bytes_per_token(self) -> float:
        return self.step_bytes / self.batch_size

    @property
    def ceiling_tok_per_s(self) -> float:
        """Over all sequences of the batch."""
        return self.batch_size / max(self.bandwidth_s, self.compute_s or 0.0)


def decode_limit(
    variant: Variant,
    *,
    bandwidth_bytes_per_s: float,
    peak_flop_per_s: float | None = None,
    depth: int = 0,
    batch_size: int = 1,
    cache: Block = F16_CACHE,
) -> DecodeLimit:
    """The slower of two walls: reading the step's bytes, and doing its arithmetic (where the peak is known)."""
    step_bytes = decode_step_bytes(variant, depth=depth, batch_size=batch_size, cache=cache)
    flop = batch_size * decode_flop(variant, depth=depth)
    return DecodeLimit(
        step_bytes=step_bytes,
        flop=flop,
        batch_size=batch_size,
        bandwidth_s=step_bytes / bandwidth_bytes_per_s,
        compute_s=None if peak_flop_per_s is None else flop / peak_flop_per_s,
    )


def compute_bound_batch(
    variant: Variant, *, bandwidth_bytes_per_s: float, peak_flop_per_s: float | None, depth: int = 0, cache: Block = F16_CACHE, most: int = 65536
) -> int | None:
    """The smallest batch whose step takes longer to compute than to read; ``None`` up to ``most``, or where the peak is unknown.

    With a deep context it may never be: every sequence brings K and V of its own.
    """
    if peak_flop_per_s is None:
        return None

    def binds(batch_size: int) -> bool:
        limit = decode_limit(
            variant, bandwidth_bytes_per_s=bandwidth_bytes_per_s, peak_flop_per_s=peak_flop_per_s, depth=depth, batch_size=batch_size, cache=cache
        )
        return limit.binding == "compute"

    if not binds(most):
        return None
    # Bytes grow by less with each sequence, FLOP by as much: once arithmetic binds it goes on to.
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if binds(middle) else (middle + 1, high)
    return low


# ── prefill ───────────────────────────────────────────────────────────────────────────────────────


def prefill_flop(variant: Variant, *, n_tokens: int, depth: int = 0) -> int:
    """FLOP to read ``n_tokens`` at ``depth``: every layer for every token, the output head for the last one only.

    Attention is causal: token i sees ``depth + i`` others. llama.cpp computes the head for the last token only.
    """
    shape = variant.shape
    head = 2 * shape.n_embd * shape.n_vocab
    linear = n_tokens * (2 * variant.n_active_parameters - head + recurrent_flop(shape)) + head
    seen = growing_layers(shape) * (n_tokens * depth + n_tokens * (n_tokens + 1) // 2)
    if windowed := shape.layer_kinds.count("window"):
        seen += windowed * _window_seen_sum(shape, depth, n_tokens)
    return linear + flop_per_seen(shape) * seen


def prefill_bytes(variant: Variant, *, n_tokens: int, depth: int = 0, cache: Block = F16_CACHE) -> float:
    """Least bytes that reading a prompt takes: every weight it needs once, and what is cached already.

    Of the experts, those that so many tokens are expected to need (``distinct_experts``).
    """
    one = decode_step_bytes(variant, batch_size=n_tokens, cache=cache) - n_tokens * recurrent_state_bytes(variant.shape)
    return one + kv_bytes_read(variant.shape, depth, cache) + recurrent_state_bytes(variant.shape)


def prefill_ceiling_tok_per_s(peak_flop_per_s: float | None, flop: float, *, n_tokens: int) -> float | None:
    """Most prompt tok/s that arithmetic alone allows; ``None`` when the peak is unknown.

    >>> prefill_ceiling_tok_per_s(125e12, 1e15, n_tokens=8)
    1.0
    """
    return None if peak_flop_per_s is None else n_tokens * peak_flop_per_s / flop


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillLimit:
    """What bounds the reading of a prompt, with its parts. Times in seconds for the whole prompt."""

    n_tokens: int
    read_bytes: float
    flop: int
    bandwidth_s: float
    compute_s: float | None

    @property
    def binding(self) -> Literal["bandwidth", "compute"] | None:
        """``None`` where the peak is unknown: the arithmetic may take any time."""
        if self.compute_s is None:
            return None
        return "bandwidth" if self.bandwidth_s > self.compute_s else "compute"

    @property
    def ceiling_tok_per_s(self) -> float | None:
        return None if self.compute_s is None else self.n_tokens / max(self.compute_s, self.bandwidth_s)


def prefill_limit(
    variant: Variant,
    *,
    n_tokens: int,
    bandwidth_bytes_per_s: float,
    peak_flop_per_s: float | None,
    depth: int = 0,
    cache: Block = F16_CACHE,
) -> PrefillLimit:
    """The slower of two walls: the prompt's arithmetic, and reading once every weight that it needs."""
    flop = prefill_flop(variant, n_tokens=n_tokens, depth=depth)
    read_bytes = prefill_bytes(variant, n_tokens=n_tokens, depth=depth, cache=cache)
    return PrefillLimit(
        n_tokens=n_tokens,
        read_bytes=read_bytes,
        flop=flop,
        bandwidth_s=read_bytes / bandwidth_bytes_per_s,
        compute_s=None if peak_flop_per_s is None else flop / peak_flop_per_s,
    )


# ── the machine ───────────────────────────────────────────────────────────────────────────────────


def arithmetic_intensity(flop: float, n_bytes: float) -> float:
    """FLOP done per byte read."""
    return flop / n_bytes


def ridge_point(peak_flop_per_s: float | None, bandwidth_bytes_per_s: float) -> float | None:
    """FLOP per byte at which bandwidth and arithmetic take equally long; ``None`` when the peak is unknown."""
    return None if peak_flop_per_s is None else peak_flop_per_s / bandwidth_bytes_per_s


def mbu(*, step_bytes: float, itl_s: float, bandwidth_bytes_per_s: float) -> float:
    """Memory-bandwidth utilisation: bytes a step must read, over what the memory could have moved in that time.

    >>> mbu(step_bytes=42e9, itl_s=0.2, bandwidth_bytes_per_s=273e9)
    0.7692307692307693
    """
    return step_bytes / itl_s / bandwidth_bytes_per_s


# ── energy, money, training ───────────────────────────────────────────────────────────────────────


def energy_j_per_token(power_w: float, tok_per_s: float) -> float:
    """Joules a token costs at a power draw and a rate. With a ceiling for the rate it is the least that power can buy.

    >>> energy_j_per_token(140, 7)
    20.0
    """
    return power_w / tok_per_s


def usd_per_million_tokens(*, tok_per_s: float, usd_per_hour: float) -> float:
    """Price of a million tokens from a machine that costs ``usd_per_hour``, rented or written off.

    >>> usd_per_million_tokens(tok_per_s=100, usd_per_hour=3.6)
    10.0
    """
    return usd_per_hour / (tok_per_s * 3600) * 1e6


def hourly_price_usd(*, price_usd: float, years: float, power_w: float, usd_per_kwh: float) -> float:
    """What an hour costs on a machine that is written off over ``years`` of continuous use, with its electricity.

    >>> round(hourly_price_usd(price_usd=8766, years=1, power_w=1000, usd_per_kwh=0.25), 2)
    1.25
    """
    return price_usd / (years * 8766) + power_w / 1000 * usd_per_kwh


def training_flop_per_token(variant: Variant, *, method: Literal["full", "lora", "qlora"], n_adapter_parameters: int = 0, n_ctx: int = 0) -> int:
    """FLOP to train on one token of a sequence of ``n_ctx``.

    Forward is two per active weight. Backward is four in full training: gradients of activations, and of weights. An
    adapter leaves the base weights alone and saves the last two; its own weights cost all six. QLoRA counts as LoRA:
    unpacking four-bit weights is no matrix work. Kaplan et al. (2020, arXiv:2001.08361, section 2.1); Hu et al. (2021, arXiv:2106.09685);
    Dettmers et al. (2023, arXiv:2305.14314). Attention: as forward, twice more backward, half of the sequence seen on average.
    """
    per_weight = 6 if method == "full" else 4
    seen = growing_layers(variant.shape) * n_ctx // 2
    if windowed := variant.shape.layer_kinds.count("window"):
        seen += windowed * _window_seen_sum(variant.shape, 0, n_ctx) // max(1, n_ctx)
    attention = 3 * flop_per_seen(variant.shape) * seen
    return per_weight * variant.n_active_parameters + 6 * n_adapter_parameters + attention
