"""Will it fit: a memory budget by line, a verdict, the largest context, and what to do when it does not. Pure.

Everything is counted but the compute buffer, which depends on how llama.cpp plans its graph: it is llama.cpp's own answer
(``oracle``), or the bound below where nobody can be asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from nbutils.errors import UsageError
from nbutils.limits import F16_CACHE, decode_step_bytes, kv_row_bytes, recurrent_state_bytes
from nbutils.specs import Block, Configuration, Device, LayerKind, Runtimes, Shape
from nbutils.tensors import Variant

__all__ = [
    "BOUND_MARGIN",
    "BOUND_PADDING",
    "CONTEXT_PAD",
    "N_BATCH",
    "N_UBATCH",
    "TIGHT_MARGIN",
    "Basis",
    "BoundSizes",
    "ComputeBuffer",
    "Linked",
    "MemoryBudget",
    "Room",
    "Spill",
    "Verdict",
    "bound_compute",
    "bound_sizes",
    "check_cache",
    "check_windows",
    "compute_buffer_bound_bytes",
    "elsewhere_bytes",
    "kv_cache_bytes",
    "largest_context",
    "layer_cells",
    "linked",
    "memory_budget",
    "output_buffer_bytes",
    "room",
    "spill",
]

Verdict = Literal["fits", "tight", "does_not_fit"]
#: Where a compute buffer's size comes from: llama.cpp just now, an answer it gave before, our bound on it, or that bound
#: lent to an engine that cannot be asked.
Basis = Literal["asked", "kept", "upper_bound", "allowance"]

#: Headroom below this share of what a program may use is called tight: a browser can take it.
TIGHT_MARGIN = 0.05
#: llama.cpp's tools: logical and micro-batch, and the multiple that a context is padded to.
N_BATCH = 2048
N_UBATCH = 512
CONTEXT_PAD = 256
_F16_BYTES, _F32_BYTES = 2, 4


# ── what a program may use ────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Memory of a machine, from what is built in to what a model may take. Bytes."""

    memory_bytes: int
    #: What no program can have: firmware, the carve-out of the other side, what Metal keeps from a process.
    unusable_bytes: int
    #: What the running system and its desktop take of the rest.
    system_bytes: int
    #: What the backend takes for itself, whatever the model.
    overhead_bytes: int

    @property
    def available_bytes(self) -> int:
        return self.memory_bytes - self.unusable_bytes - self.system_bytes


def room(device: Device, configuration: Configuration, runtimes: Runtimes) -> Room:
    """The room on one configuration of a device, with the system and the backend it is usually run with."""
    system = runtimes.systems[device.system]
    keeps = system.unified if device.memory_kind == "unified" else system.discrete
    return Room(
        memory_bytes=configuration.memory_bytes,
        unusable_bytes=configuration.memory_bytes - configuration.usable_bytes,
        system_bytes=0 if configuration.usable_leaves_system else round(keeps.base("memory")),
        overhead_bytes=round(runtimes.backends[device.backend].overhead.base("memory")),
    )


# ── what a model takes ────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class ComputeBuffer:
    """Scratch memory of the graph, and whose figure it is."""

    n_bytes: int
    basis: Basis


@dataclass(slots=True, frozen=True, kw_only=True)
class MemoryBudget:
    """Bytes by cause. All are exact but the compute buffer, whose ``basis`` says how it is known."""

    weight_bytes: int
    kv_cache_bytes: int
    recurrent_state_bytes: int = 0
    compute: ComputeBuffer
    output_buffer_bytes: int = 0
    overhead_bytes: int = 0
    available_bytes: int
    #: Part of ``available_bytes`` that lies elsewhere: what of this model is kept in the processor's memory or left on disk.
    elsewhere_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        held = self.weight_bytes + self.kv_cache_bytes + self.recurrent_state_bytes
        return held + self.compute.n_bytes + self.output_buffer_bytes + self.overhead_bytes

    @property
    def headroom_bytes(self) -> int:
        """Available memory minus the budget; negative means it does not fit."""
        return self.available_bytes - self.total_bytes

    @property
    def verdict(self) -> Verdict:
        if self.headroom_bytes < 0:
            return "does_not_fit"
        return "tight" if self.headroom_bytes < TIGHT_MARGIN * (self.available_bytes - self.elsewhere_bytes) else "fits"


def _pad(n: int, multiple: int = CONTEXT_PAD) -> int:
    return -(-n // multiple) * multiple


def layer_cells(variant: Variant, kind: LayerKind, n_ctx: int, n_ubatch: int = N_UBATCH) -> int:
    """Tokens that one layer keeps room for, for one sequence.

    llama.cpp pads to 256 and gives a windowed layer its window and one micro-batch (``llama_kv_cache_iswa``, with
    the tools' ``swa_full = false``). MLX grows in steps of 256 and keeps the window alone (``RotatingKVCache``). vLLM has pages of
    16 tokens; its windowed layers keep the window, the tokens of a batch in flight and a page (``SlidingWindowSpec``).
    """
    if kind not in ("full", "latent", "window"):
        return 0
    padded = _pad(n_ctx, 16) if variant.engine == "vllm" else _pad(n_ctx)
    if kind != "window":
        return padded
    window = variant.shape.sliding_window or 0
    if variant.engine == "vllm":
        return min(padded, _pad(window - 1 + N_BATCH, 16) + 16)
    return min(padded, window if variant.engine == "mlx" else _pad(window + n_ubatch))


def kv_cache_bytes(variant: Variant, n_ctx: int, cache: Block = F16_CACHE, *, batch_size: int = 1, n_ubatch: int = N_UBATCH) -> int:
    """Bytes allocated for K and V of ``batch_size`` sequences of ``n_ctx`` tokens each."""
    kinds = variant.shape.layer_kinds
    cells = sum(kinds.count(kind) * layer_cells(variant, kind, n_ctx, n_ubatch) for kind in ("full", "latent", "window"))
    return batch_size * cells * kv_row_bytes(variant.shape, cache)


def check_cache(shape: Shape, cache: Block, name: str) -> None:
    """``UsageError`` where a head is no whole number of the cache type's blocks: llama.cpp refuses such a cache."""
    if shape.head_dim % cache.elements or (shape.head_dim_v or 0) % cache.elements:
        raise UsageError(f"a {name} cache has blocks of {cache.elements} elements and this model's heads have {shape.head_dim}; use f16")


def check_windows(variant: Variant, name: str) -> None:
    """``UsageError`` for a cache that MLX does not have."""
    if variant.engine == "mlx" and name != "f16" and "window" in variant.shape.layer_kinds:
        raise UsageError(f"MLX does not quantise the caches of windowed layers; {variant.name} has some, use --kv-type f16")


def output_buffer_bytes(shape: Shape, batch_size: int = 1) -> int:
    """Logits of one token of each sequence, F32 (``llama_context::output_reserve``)."""
    return batch_size * shape.n_vocab * _F32_BYTES


#: What the bound adds for padding and fragmentation. Of 1,236 contexts on 309 random shapes of ten architectures none needs
#: more (``tests/test_oracle.py`` goes on trying); the bound is 1.05 to 3.3 times llama.cpp's answer there, the median 1.34.
BOUND_MARGIN, BOUND_PADDING = 1.15, 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundSizes:
    """What the bound depends on besides the context: elements of a token of the micro-batch and of a sequence, and what masks there are."""

    per_token: int
    per_sequence: int
    sees_all: bool
    #: ``None`` where no layer has a window.
    window: int | None


def bound_sizes(shape: Shape) -> BoundSizes:
    """The residual stream twice and the largest phase, for a token; the states of recurrent layers, for a sequence."""
    kinds = set(shape.layer_kinds)
    width = 3 * shape.n_embd
    phases = [shape.n_vocab + width, 3 * shape.n_ff + width]
    if kinds & {"full", "window"}:
        phases.append((5 * shape.n_head + 4 * shape.n_head_kv) * shape.head_dim + width)
    if a := shape.latent:
        phases.append(shape.n_head * (a.head_dim_nope + 3 * a.n_rot + 4 * a.kv_lora_rank) + width)
    if e := shape.experts:
        routed = e.n_expert_used * (3 * e.n_ff_expert + 2 * (e.n_embd_latent or shape.n_embd))
        phases.append(routed + 4 * e.n_expert + 3 * e.n_ff_shared + width)
    states = 0
    if r := shape.recurrent:
        phases.append(10 * r.inner_size + 10 * r.group_count * r.state_size + width)
        states = 3 * r.state_size * r.inner_size
    return BoundSizes(
        per_token=2 * shape.n_embd + max(phases),
        per_sequence=states,
        sees_all=bool(kinds & {"full", "latent"}),
        window=(shape.sliding_window or 0) if "window" in kinds else None,
    )


def compute_buffer_bound_bytes(shape: Shape, n_ctx: int, *, batch_size: int = 1, n_ubatch: int = N_UBATCH) -> int:
    """An upper bound on llama.cpp's compute buffer with flash attention: masks, the residual stream, and the largest phase.

    A bound and no estimate: for the models of the registry it is 14 to 133 % above llama.cpp's own answer, most for hybrids.
    """
    sizes, cells = bound_sizes(shape), _pad(n_ctx)
    n = min(n_ubatch, cells * batch_size)
    masks = n * cells if sizes.sees_all else 0
    if sizes.window is not None:
        masks += n * min(cells, _pad(sizes.window + n))
    total = _F16_BYTES * masks + _F32_BYTES * (n * sizes.per_token + batch_size * sizes.per_sequence)
    return round(total * BOUND_MARGIN) + BOUND_PADDING


def bound_compute(variant: Variant, n_ctx: int, *, batch_size: int = 1, n_ubatch: int = N_UBATCH) -> ComputeBuffer:
    """The bound as a compute buffer: llama.cpp's own for its files, lent to other engines, which cannot be asked."""
    n_bytes = compute_buffer_bound_bytes(variant.shape, n_ctx, batch_size=batch_size, n_ubatch=n_ubatch)
    return ComputeBuffer(n_bytes, "upper_bound" if variant.engine == "llama.cpp" else "allowance")


def memory_budget(
    variant: Variant,
    *,
    n_ctx: int,
    available_bytes: int,
    cache: Block = F16_CACHE,
    batch_size: int = 1,
    compute: ComputeBuffer | None = None,
    overhead_bytes: int = 0,
    elsewhere_bytes: int = 0,
    n_ubatch: int = N_UBATCH,
) -> MemoryBudget:
    """The budget of ``batch_size`` sequences of ``n_ctx`` tokens each. Without ``compute`` it is ``bound_compute``.

    Raises ``UsageError`` for less than one token or sequence.
    """
    for name, value in (("n_ctx", n_ctx), ("batch_size", batch_size)):
        if value < 1:
            raise UsageError(f"{name} is {value}; it must be at least 1")
    return MemoryBudget(
        weight_bytes=variant.weight_bytes,
        kv_cache_bytes=kv_cache_bytes(variant, n_ctx, cache, batch_size=batch_size, n_ubatch=n_ubatch),
        recurrent_state_bytes=batch_size * recurrent_state_bytes(variant.shape),
        compute=compute or bound_compute(variant, n_ctx, batch_size=batch_size, n_ubatch=n_ubatch),
        output_buffer_bytes=output_buffer_bytes(variant.shape, batch_size),
        overhead_bytes=overhead_bytes,
        available_bytes=available_bytes + elsewhere_bytes,
        elsewhere_bytes=elsewhere_bytes,
    )


def elsewhere_bytes(variant: Variant, *, discrete: bool, batch_size: int = 1) -> int:
    """What of a model's listed bytes does not lie in the memory it is judged by.

    Layers that only draft stay on disk: engines load them when asked to draft. Beside a discrete card llama.cpp keeps the
    input embedding, unless it is the output head too, and the logits with the processor.
    """
    found = variant.groups["idle"].n_bytes if "idle" in variant.groups else 0
    if discrete and variant.engine == "llama.cpp":
        if {"output", "embedding"} <= variant.groups.keys():
            found += variant.groups["embedding"].n_bytes
        found += output_buffer_bytes(variant.shape, batch_size)
    return found


def largest_context(trained: int, budget_at: Callable[[int, ComputeBuffer | None], MemoryBudget], kept: Iterable[tuple[int, int]] = ()) -> int | None:
    """The largest context that surely fits, at most ``trained``; ``None`` when not even 256 tokens do.

    ``budget_at`` gives the budget of a context with a compute buffer; its upper bound is used, and bisected over multiples
    of 256, which is what llama.cpp allocates. ``kept`` are pairs of context and compute buffer that llama.cpp named: one of them
    may fit beyond what the bound allows.
    """
    low, high = 0, -(-trained // CONTEXT_PAD)
    if budget_at(trained, None).headroom_bytes >= 0:
        return trained
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if budget_at(middle * CONTEXT_PAD, None).headroom_bytes >= 0 else (low, middle)
    found = low * CONTEXT_PAD
    for n_ctx, n_bytes in kept:
        if found < n_ctx <= trained and budget_at(n_ctx, ComputeBuffer(n_bytes, "kept")).headroom_bytes >= 0:
            found = n_ctx
    return found or None


# ── when it does not fit ──────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Spill:
    """Weights left in the memory of the processor, and the ceiling that leaves."""

    #: Whole layers, or the experts of layers, that stay behind; counted from the first layer, as llama.cpp's options do.
    what: Literal["layers", "experts"]
    n_left: int
    n_layer: int
    left_bytes: int
    budget: MemoryBudget
    ceiling_tok_per_s: float


def _layer_kv_bytes(variant: Variant, layer: int, n_ctx: int, cache: Block, n_ubatch: int) -> int:
    kind = variant.shape.layer_kinds[layer]
    if kind == "recurrent":
        return recurrent_state_bytes(variant.shape) // variant.shape.layer_kinds.count("recurrent")
    return layer_cells(variant, kind, n_ctx, n_ubatch) * kv_row_bytes(variant.shape, cache)


def _step_layer_bytes(variant: Variant, layer: int) -> float:
    """Bytes of weights one step reads of a layer."""
    experts, e = variant.layer_expert_bytes[layer], variant.shape.experts
    share = e.n_expert_used / e.n_expert if e else 1.0
    return variant.layer_bytes[layer] - experts * (1 - share)


def spill(
    variant: Variant,
    budget: MemoryBudget,
    *,
    what: Literal["layers", "experts"],
    n_ctx: int,
    cache: Block = F16_CACHE,
    bandwidth_bytes_per_s: float,
    host_bandwidth_bytes_per_s: float,
) -> Spill | None:
    """Leave as few layers as will do with the processor, from the first on. One sequence, an empty context.

    ``layers``: whole ones, with their caches (llama.cpp's ``--n-gpu-layers``). ``experts``: those of a layer and nothing
    else (``--n-cpu-moe``): many bytes, few of them read. The ceiling adds up both reads, because one waits for the other.
    ``None`` where leaving all is not enough, and for the experts of a dense model.
    """
    shape = variant.shape
    if what == "experts" and shape.experts is None:
        return None
    left = left_kv = left_states = 0
    left_read = 0.0
    e = shape.experts
    for layer in range(shape.n_layer):
        if what == "layers":
            left += variant.layer_bytes[layer]
            kv = _layer_kv_bytes(variant, layer, n_ctx, cache, N_UBATCH)
            recurrent = shape.layer_kinds[layer] == "recurrent"
            left_states, left_kv = (left_states + kv, left_kv) if recurrent else (left_states, left_kv + kv)
            left_read += _step_layer_bytes(variant, layer)
        elif e is not None:
            left += variant.layer_expert_bytes[layer]
            left_read += variant.layer_expert_bytes[layer] * e.n_expert_used / e.n_expert
        kept = MemoryBudget(
            weight_bytes=budget.weight_bytes - left,
            kv_cache_bytes=budget.kv_cache_bytes - left_kv,
            recurrent_state_bytes=budget.recurrent_state_bytes - left_states,
            compute=budget.compute,
            output_buffer_bytes=budget.output_buffer_bytes,
            overhead_bytes=budget.overhead_bytes,
            available_bytes=budget.available_bytes,
            elsewhere_bytes=budget.elsewhere_bytes,
        )
        if kept.headroom_bytes >= 0:
            step = decode_step_bytes(variant)
            seconds = (step - left_read) / bandwidth_bytes_per_s + left_read / host_bandwidth_bytes_per_s
            return Spill(what=what, n_left=layer + 1, n_layer=shape.n_layer, left_bytes=left, budget=kept, ceiling_tok_per_s=1 / seconds)
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Linked:
    """Two equal machines over a link: the fuller one's budget, and two ceilings on decode of one sequence."""

    #: Layers on the first machine; the others are on the second, with the output head.
    n_layer_first: int
    budget: MemoryBudget
    #: One machine after the other: twice the memory, no more speed.
    by_layer_tok_per_s: float
    #: Every matrix cut in two: both read at once, and exchange sums twice a layer.
    by_tensor_tok_per_s: float


def linked(
    variant: Variant,
    budget: MemoryBudget,
    *,
    n_ctx: int,
    cache: Block = F16_CACHE,
    bandwidth_bytes_per_s: float,
    link_bytes_per_s: float,
    batch_size: int = 1,
) -> Linked:
    """Cut a model between two machines like the one of ``budget``, so that the fuller is as empty as can be.

    Both rates are ceilings for one sequence and an empty context; latency of the link is left out. By layer one vector
    of F16 crosses per token; by tensor two per layer
    (Shoeybi et al., 2019, arXiv:1909.08053, section 3: one sum after attention, one after the feed-forward part).
    """
    shape = variant.shape
    layers = [variant.layer_bytes[i] + batch_size * _layer_kv_bytes(variant, i, n_ctx, cache, N_UBATCH) for i in range(shape.n_layer)]
    whole_embedding = variant.groups["embedding"].n_bytes if "embedding" in variant.groups else 0
    idle = variant.groups["idle"].n_bytes if "idle" in variant.groups else 0
    # What lies elsewhere for one machine does for two.
    embedding = 0 if budget.elsewhere_bytes > idle else whole_embedding
    rest = variant.weight_bytes - sum(variant.layer_bytes) - whole_embedding - idle
    tied = 0 if "output" in variant.groups else whole_embedding  # then both ends need it
    whole = sum(layers)
    first = best = 0
    fuller = whole + rest + tied + embedding
    for n, size in enumerate(layers, start=1):
        first += size
        heavier = max(first + embedding, whole - first + rest + tied)
        if heavier < fuller:
            best, fuller = n, heavier
    halves = [
        (sum(layers[:best]) + embedding, sum(variant.layer_bytes[:best]) + embedding),
        (sum(layers[best:]) + rest + tied, sum(variant.layer_bytes[best:]) + rest + tied),
    ]
    fuller, weights = max(halves)
    half = MemoryBudget(
        weight_bytes=weights,
        kv_cache_bytes=fuller - weights,
        compute=budget.compute,
        output_buffer_bytes=budget.output_buffer_bytes,
        overhead_bytes=budget.overhead_bytes,
        available_bytes=budget.available_bytes - budget.elsewhere_bytes,
    )
    step = decode_step_bytes(variant)
    vector = _F16_BYTES * shape.n_embd
    return Linked(
        n_layer_first=best,
        budget=half,
        by_layer_tok_per_s=1 / (step / bandwidth_bytes_per_s + vector / link_bytes_per_s),
        by_tensor_tok_per_s=1 / (step / 2 / bandwidth_bytes_per_s + 2 * shape.n_layer * vector / link_bytes_per_s),
    )
