"""Ceilings and floors from four numbers: bytes per token, bandwidth, FLOP per token, peak FLOP/s.

Pure arithmetic on plain values. A ceiling is what no machine of these properties can beat; it is not a prediction.
The bounds are those of the roofline model (Williams, Waterman and Patterson, 2009, doi:10.1145/1498765.1498785).
"""

from __future__ import annotations

from nbutils.specs import Block, Format, Model, Shape
from nbutils.tensors import active_parameters, bytes_read_per_token, weight_bytes_read

__all__ = [
    "arithmetic_intensity",
    "bytes_read_per_token",
    "decode_ceiling_tok_per_s",
    "decode_flop",
    "decode_step_bytes",
    "kv_bytes_per_token",
    "kv_bytes_read",
    "kv_layers",
    "mbu",
    "prefill_ceiling_tok_per_s",
    "prefill_flop",
    "ridge_point",
]

#: llama.cpp's default cache type.
F16_CACHE = Block(elements=1, bytes=2, source="llama.cpp", standing="vendor")


def kv_layers(shape: Shape) -> tuple[int, int]:
    """Number of layers that see the whole context, and of layers that see a sliding window."""
    if shape.full_every is None:
        return shape.n_layer, 0
    full = shape.n_layer // shape.full_every
    return full, shape.n_layer - full


def kv_bytes_per_token(shape: Shape, cache: Block = F16_CACHE) -> int:
    """Bytes of K and V that one more token of context adds, once every window is full."""
    return kv_layers(shape)[0] * _kv_layer_bytes(shape, cache)


def _kv_layer_bytes(shape: Shape, cache: Block) -> int:
    elements = 2 * shape.n_head_kv * shape.head_dim  # K and V
    return elements * cache.bytes // cache.elements


def kv_bytes_read(shape: Shape, depth: int, cache: Block = F16_CACHE) -> int:
    """Bytes of K and V that one decode step reads at ``depth`` tokens of context."""
    full, windowed = kv_layers(shape)
    seen = min(depth, shape.sliding_window or depth)
    return (full * depth + windowed * seen) * _kv_layer_bytes(shape, cache)


def decode_step_bytes(model: Model, fmt: Format, *, depth: int = 0, batch_size: int = 1, cache: Block = F16_CACHE) -> int:
    """Least bytes one decode step reads: the weights once, each sequence's K and V once.

    For a mixture of experts with ``batch_size`` above one this assumes that all sequences pick the same experts:
    a floor on bytes, as a ceiling on speed needs.
    """
    return weight_bytes_read(model, fmt) + batch_size * kv_bytes_read(model.shape, depth, cache)


def decode_ceiling_tok_per_s(bandwidth_bytes_per_s: float, step_bytes: float, *, batch_size: int = 1) -> float:
    """Upper bound on tok/s over all sequences of the batch, set by memory bandwidth alone.

    It holds where each step reads ``step_bytes`` from memory, nothing stays in cache, arithmetic hides behind the reads,
    and no draft is checked several tokens at a time (speculative decoding).

    >>> decode_ceiling_tok_per_s(273e9, 42e9)
    6.5
    """
    return batch_size * bandwidth_bytes_per_s / step_bytes


def decode_flop(model: Model, *, depth: int = 0) -> int:
    """FLOP of one decode step of one sequence: two per active weight, four per cached element seen by a head."""
    return 2 * active_parameters(model) + _attention_flop(model.shape, depth)


def _attention_flop(shape: Shape, depth: int) -> int:
    full, windowed = kv_layers(shape)
    seen = min(depth, shape.sliding_window or depth)
    return 4 * shape.n_head * shape.head_dim * (full * depth + windowed * seen)


def prefill_flop(model: Model, *, n_tokens: int, depth: int = 0) -> int:
    """FLOP to read ``n_tokens`` at ``depth``: every layer for every token, the output head for the last one only.

    Attention is causal: token i sees ``depth + i`` others. llama.cpp computes the head for the last token only.
    """
    shape = model.shape
    head = 2 * shape.n_embd * shape.n_vocab
    linear = n_tokens * (2 * active_parameters(model) - head) + head
    full, windowed = kv_layers(shape)
    per_seen = 4 * shape.n_head * shape.head_dim
    all_seen = n_tokens * depth + n_tokens * (n_tokens + 1) // 2
    attention = per_seen * full * all_seen
    if windowed:
        assert shape.sliding_window is not None
        window_seen = sum(min(depth + i, shape.sliding_window) for i in range(1, n_tokens + 1))
        attention += per_seen * windowed * window_seen
    return linear + attention


def prefill_ceiling_tok_per_s(peak_flop_per_s: float | None, flop: float, *, n_tokens: int) -> float | None:
    """Most prompt tok/s that arithmetic allows; ``None`` when the peak is unknown.

    >>> prefill_ceiling_tok_per_s(125e12, 1e15, n_tokens=8)
    1.0
    """
    return None if peak_flop_per_s is None else n_tokens * peak_flop_per_s / flop


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
