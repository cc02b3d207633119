"""The arithmetic behind a verdict or a ceiling, line by line, with units and sources. Pure; text and tables are made from the same lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nbutils import limits
from nbutils.fit import N_BATCH, N_UBATCH, MemoryBudget, Room
from nbutils.limits import F16_CACHE, DecodeLimit, PrefillLimit
from nbutils.specs import Block, LayerKind
from nbutils.tensors import Variant

__all__ = ["ASSUMED", "ASSUMPTIONS", "BASIS_WORDS", "Line", "cost_lines", "explain", "fit_lines", "layer_words", "limit_lines", "prefill_lines"]

#: What llama.cpp's own tools assume; every memory figure of a GGUF file is for these.
ASSUMED = {"n_batch": N_BATCH, "n_ubatch": N_UBATCH, "flash_attn": "auto", "swa_full": False}
ASSUMPTIONS = ", ".join(f"{name} {str(value).lower()}" for name, value in ASSUMED.items())

_LAYER_WORDS: dict[LayerKind, str] = {
    "full": "{n} layers keep all of it",
    "window": "{n} keep a window of {window:,}",
    "latent": "{n} layers keep one compressed vector per token",
    "recurrent": "{n} layers keep a state of fixed size",
    "none": "{n} layers keep nothing",
}
_BRIEF_WORDS: dict[LayerKind, str] = {
    "full": "{n} all",
    "window": "{n} a window of {window:,}",
    "latent": "{n} one vector",
    "recurrent": "{n} a state",
    "none": "{n} nothing",
}
BASIS_WORDS = {
    "asked": "llama.cpp was asked",
    "kept": "llama.cpp's answer for its CPU backend",
    "upper_bound": "an upper bound; llama.cpp was not asked",
    "allowance": "an allowance: llama.cpp's upper bound, for want of this engine's own",
}


@dataclass(frozen=True, slots=True)
class Line:
    """One step: what, how much, in which unit, how it comes about, and where it is from."""

    what: str
    value: float | int | str | None
    unit: str = ""
    how: str = ""
    source: str = ""

    @property
    def shown(self) -> str:
        if self.value is None:
            return "unknown"
        if isinstance(self.value, str):
            return self.value
        if isinstance(self.value, int):
            return f"{self.value:,}"
        small = f"{self.value:.2g}" if 0 < abs(self.value) < 0.1 else f"{self.value:,.2f}"
        return small if abs(self.value) < 1e6 else f"{self.value:,.0f}"


def explain(lines: Sequence[Line]) -> str:
    """The lines as plain text, figures right-aligned."""
    first = max((len(x.what) for x in lines), default=0)
    second = max((len(x.shown) for x in lines if not isinstance(x.value, str)), default=0)
    shown = []
    for x in lines:
        source = f"  [{x.source}]" if x.source else ""
        shown.append(f"{x.what:<{first}}  {x.shown:>{second}} {x.unit}{f': {x.how}' if x.how else ''}{source}".rstrip())
    return "\n".join(shown)


def layer_words(variant: Variant, *, brief: bool = False) -> str:
    """What the layers keep of a context, in words; ``brief`` for the cell of a table."""
    kinds, words = variant.shape.layer_kinds, _BRIEF_WORDS if brief else _LAYER_WORDS
    found = [(kind, kinds.count(kind)) for kind in words if kind in kinds]
    return ", ".join(words[kind].format(n=n, window=variant.shape.sliding_window or 0) for kind, n in found)


def fit_lines(
    variant: Variant, budget: MemoryBudget, room: Room, *, n_ctx: int, kv_type: str, batch_size: int = 1, sources: Mapping[str, str] | None = None
) -> list[Line]:
    """The budget, from weights to verdict."""
    said = sources or {}
    sequences = "" if batch_size == 1 else f"{batch_size} sequences of "
    lines = [Line("weights", budget.weight_bytes, "bytes", f"{variant.format}, summed over every tensor")]
    lines.append(Line("KV cache", budget.kv_cache_bytes, "bytes", f"{sequences}{n_ctx:,} tokens in {kv_type}; {layer_words(variant)}"))
    if budget.recurrent_state_bytes:
        lines.append(Line("recurrent state", budget.recurrent_state_bytes, "bytes", "F32, whatever the context and the cache type"))
    lines += [
        Line("compute buffer", budget.compute.n_bytes, "bytes", BASIS_WORDS[budget.compute.basis]),
        Line("output buffer", budget.output_buffer_bytes, "bytes", "logits of one token per sequence, F32"),
        Line("runtime", budget.overhead_bytes, "bytes", "what the backend takes for itself", said.get("overhead", "")),
        Line("total", budget.total_bytes, "bytes"),
        Line("memory", room.memory_bytes, "bytes", "built in", said.get("memory", "")),
        Line("out of reach", room.unusable_bytes, "bytes", "firmware, driver, or what the system grants no program", said.get("unusable", "")),
        Line("system keeps", room.system_bytes, "bytes", "the running system and its desktop", said.get("system", "")),
        *_elsewhere(variant, budget),
        Line("available", budget.available_bytes, "bytes"),
        Line("headroom", budget.headroom_bytes, "bytes", budget.verdict.replace("_", " ")),
    ]
    if variant.caveat:
        lines.append(Line("caveat", variant.caveat))
    return lines


def _elsewhere(variant: Variant, budget: MemoryBudget) -> list[Line]:
    """What of the total lies in another memory, which is room here."""
    if not budget.elsewhere_bytes:
        return []
    idle = variant.groups["idle"].n_bytes if "idle" in variant.groups else 0
    drafting = ["layers that only draft tokens stay on disk"] if idle else []
    host = ["the input embedding and the logits stay with the processor"] if budget.elsewhere_bytes > idle else []
    return [Line("elsewhere", budget.elsewhere_bytes, "bytes", "; ".join(drafting + host))]


def limit_lines(
    variant: Variant,
    limit: DecodeLimit,
    *,
    bandwidth_bytes_per_s: float,
    bandwidth_source: str,
    peak_flop_per_s: float | None,
    peak_source: str,
    depth: int,
    cache: Block = F16_CACHE,
    n_prompt: int = 0,
) -> list[Line]:
    """Both ceilings, from bytes and FLOP to tokens per second. ``n_prompt`` of 0 leaves prefill out."""
    batch = limit.batch_size
    kv = limits.kv_bytes_read(variant.shape, depth, cache)
    state = limits.recurrent_state_bytes(variant.shape)
    weights = limit.step_bytes - batch * (kv + state)
    every = "each weight once" if batch == 1 else f"each weight once for {batch} sequences"
    experts = variant.shape.experts
    if experts:
        needed = limits.distinct_experts(experts.n_expert, experts.n_expert_used, batch)
        every += f", {needed:,.1f} of {experts.n_expert} experts a layer" + (" expected" if batch > 1 else "")
    lines = [
        Line("weights read", round(weights), "bytes/step", every),
        Line("K and V read", batch * kv, "bytes/step", f"depth {depth:,}; {layer_words(variant)}"),
    ]
    if state:
        lines.append(Line("state read", batch * state, "bytes/step"))
    lines += [
        Line("step", round(limit.step_bytes), "bytes", "their sum"),
        Line("bandwidth", round(bandwidth_bytes_per_s), "bytes/s", "", bandwidth_source),
        Line("reading takes", limit.bandwidth_s * 1e3, "ms/step", "bytes / bandwidth"),
        Line("arithmetic", limit.flop, "FLOP/step", "two per active weight, and attention"),
        Line("peak", None if peak_flop_per_s is None else round(peak_flop_per_s), "FLOP/s", "dense", peak_source),
    ]
    if limit.compute_s is not None:
        lines.append(Line("computing takes", limit.compute_s * 1e3, "ms/step", "FLOP / peak"))
    lines.append(
        Line(
            "decode ceiling", limit.ceiling_tok_per_s, "tok/s", f"{limit.binding} binds" + (f"; all {batch} sequences together" if batch > 1 else "")
        )
    )
    if n_prompt:
        prefill = limits.prefill_limit(
            variant, n_tokens=n_prompt, bandwidth_bytes_per_s=bandwidth_bytes_per_s, peak_flop_per_s=peak_flop_per_s, depth=depth, cache=cache
        )
        lines += prefill_lines(prefill)
    return lines


def prefill_lines(limit: PrefillLimit) -> list[Line]:
    """The ceiling on reading a prompt."""
    return [
        Line("prompt", limit.flop, "FLOP", f"{limit.n_tokens:,} tokens, attention included, head for the last one"),
        Line("prompt read", round(limit.read_bytes), "bytes", "every weight that it needs, once"),
        Line("prefill ceiling", limit.ceiling_tok_per_s, "tok/s", f"{limit.binding} binds" if limit.binding else ""),
    ]


def cost_lines(
    *,
    energy_j: float | None,
    usd_per_million: float | None,
    power_w: float | None,
    price_usd: float | None,
    years: float,
    usd_per_kwh: float,
    rate: str,
    sources: Mapping[str, str],
) -> list[Line]:
    """What a token costs at a rate, which ``rate`` names; a cost that is unknown has no line."""
    lines = []
    if energy_j is not None:
        lines.append(Line("energy", energy_j, "J/token", f"rated {power_w:g} W / {rate}", sources.get("power", "")))
    if usd_per_million is not None:
        how = f"{price_usd:,.0f} USD over {years:g} years that never rest, {power_w:g} W at {usd_per_kwh:g} USD/kWh"
        lines.append(Line("owned", usd_per_million, "USD/10⁶ tok", how, sources.get("price", "")))
    return lines
