"""Will it fit: a memory budget by line, a verdict, and the largest context that fits. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nbutils.errors import UsageError
from nbutils.limits import F16_CACHE, kv_bytes_per_token, kv_layers
from nbutils.specs import Block, Format, Model
from nbutils.tensors import weight_bytes

__all__ = [
    "TIGHT_MARGIN",
    "MemoryBudget",
    "Verdict",
    "compute_buffer_estimate_bytes",
    "kv_cache_bytes",
    "largest_context",
    "memory_budget",
]

Verdict = Literal["fits", "tight", "does_not_fit"]

#: Headroom below this share of what a program may use is called tight: a browser can take it.
TIGHT_MARGIN = 0.05
#: llama.cpp's n_ubatch, and the multiple it pads a context to.
N_UBATCH = 512
CONTEXT_PAD = 256


@dataclass(slots=True, frozen=True, kw_only=True)
class MemoryBudget:
    """Bytes by cause. ``compute_buffer_bytes`` is an estimate; the other two are exact."""

    weight_bytes: int
    kv_cache_bytes: int
    compute_buffer_bytes: int
    usable_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.kv_cache_bytes + self.compute_buffer_bytes

    @property
    def headroom_bytes(self) -> int:
        """Usable memory minus the budget; negative means it does not fit."""
        return self.usable_bytes - self.total_bytes

    @property
    def verdict(self) -> Verdict:
        if self.headroom_bytes < 0:
            return "does_not_fit"
        return "tight" if self.headroom_bytes < TIGHT_MARGIN * self.usable_bytes else "fits"


def _pad(n: int) -> int:
    return -(-n // CONTEXT_PAD) * CONTEXT_PAD


def kv_cache_bytes(model: Model, n_ctx: int, cache: Block = F16_CACHE, *, n_ubatch: int = N_UBATCH) -> int:
    """Bytes llama.cpp allocates for K and V at ``n_ctx``.

    The context is padded to 256; a sliding-window layer holds its window and one micro-batch
    (``llama_kv_cache_iswa`` of llama.cpp, with its tools' ``swa_full = false``).
    """
    shape = model.shape
    full, windowed = kv_layers(shape)
    layer_bytes = 2 * shape.n_head_kv * shape.head_dim * cache.bytes // cache.elements
    cells = _pad(n_ctx)
    window_cells = min(cells, _pad((shape.sliding_window or 0) + n_ubatch))
    return (full * cells + windowed * window_cells) * layer_bytes


def compute_buffer_estimate_bytes(model: Model, *, n_ubatch: int = N_UBATCH) -> int:
    """One peak of llama.cpp's scratch memory: logits and two hidden states of a micro-batch, in F32.

    An estimate, not a bound: it equals llama.cpp's own figure for many dense models and can be a third short for
    others at long context. llama.cpp asked about the model itself is the authority.
    """
    return n_ubatch * (model.shape.n_vocab + 2 * model.shape.n_embd) * 4


def memory_budget(model: Model, fmt: Format, *, n_ctx: int, usable_bytes: int, cache: Block = F16_CACHE) -> MemoryBudget:
    """The budget of one sequence with ``n_ctx`` tokens of context. Raises ``UsageError`` for less than one token."""
    if n_ctx < 1:
        raise UsageError(f"n_ctx is {n_ctx}; a context has at least 1 token")
    return MemoryBudget(
        weight_bytes=weight_bytes(model, fmt),
        kv_cache_bytes=kv_cache_bytes(model, n_ctx, cache),
        compute_buffer_bytes=compute_buffer_estimate_bytes(model),
        usable_bytes=usable_bytes,
    )


def largest_context(model: Model, fmt: Format, *, usable_bytes: int, cache: Block = F16_CACHE) -> int | None:
    """The largest context that still fits, at most what the model was trained for; ``None`` when not even 256 tokens do."""

    def headroom(n_ctx: int) -> int:
        return memory_budget(model, fmt, n_ctx=n_ctx, usable_bytes=usable_bytes, cache=cache).headroom_bytes

    trained = model.shape.n_ctx_train
    if headroom(CONTEXT_PAD) < 0:
        return None
    if headroom(trained) >= 0:
        return trained
    # Above the window every pad adds the same bytes, so one division lands within a window of the answer.
    per_pad = CONTEXT_PAD * kv_bytes_per_token(model.shape, cache)
    n_ctx = min(_pad(trained), CONTEXT_PAD * (1 + headroom(CONTEXT_PAD) // per_pad))
    while n_ctx > CONTEXT_PAD and headroom(n_ctx) < 0:
        n_ctx -= CONTEXT_PAD
    return n_ctx
