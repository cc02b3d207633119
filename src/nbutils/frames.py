"""Where records and limits meet: tidy frames, one row per thing that is shown.

A record holds samples and settings; the registry holds figures. Rates, shares and ceilings exist only here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from itertools import chain
from statistics import fmean, median
from typing import Any, Literal

import numpy as np
import pandas as pd

from nbutils import fit, limits, registry
from nbutils.errors import DataError
from nbutils.explain import Line, layer_words
from nbutils.oracle import Comparison
from nbutils.places import Place, place
from nbutils.specs import Backend, Block, Configuration, Device, Figure, KernelRate, Machine, Model, Point, Price, Record, Yardstick
from nbutils.tensors import Variant, bytes_read_per_token, variant

__all__ = [
    "CACHEABLE_BYTES",
    "CLEAR_RATIO",
    "DEVICE_FORMATS",
    "DEVICE_HEADINGS",
    "NOISY_RATIO",
    "OVERHEAD_SHARE",
    "PROOF_FORMATS",
    "PROOF_HEADINGS",
    "SUMMARY_FORMATS",
    "SUMMARY_HEADINGS",
    "YARDSTICK_SLACK",
    "bandwidth_bytes_per_s",
    "batch_frame",
    "budget_frame",
    "budget_of",
    "cache_bytes_per_token",
    "cache_kinds_frame",
    "ceiling_lines",
    "ceiling_matrix",
    "check_against_ceiling",
    "configurations_frame",
    "decode_rows",
    "depth_frame",
    "device_frame",
    "distinct_experts",
    "explain_device",
    "explain_table",
    "figure_frame",
    "file_table",
    "fit_grid",
    "fit_row",
    "kept_compute",
    "kernel_frame",
    "largest_context",
    "limits_row",
    "machine_frame",
    "measured_frame",
    "measured_rows",
    "noise_line",
    "proof_frame",
    "proof_lines",
    "roofline_frame",
    "rooms_frame",
    "short_name",
    "spread_of_yardsticks",
    "step_bytes",
    "step_tokens",
    "step_weight_bytes",
    "summary_frame",
    "summary_headings",
    "summary_table",
    "usd_per_million",
    "usual_format",
    "variation",
    "wall",
    "wall_sentence",
    "wall_table",
    "yardstick_frame",
    "yardstick_medians",
]

#: A yardstick that moves by more than this within a run says that something else used the memory.
NOISY_RATIO = 1.25
#: Arithmetic alone this many times as fast as reading alone hides behind it.
CLEAR_RATIO = 2.0
#: Decode below this share of reading and arithmetic one after the other has another cause.
OVERHEAD_SHARE = 0.75
#: Decode faster than a yardstick by more than this says that the yardstick was disturbed.
YARDSTICK_SLACK = 1.05
#: A file below this could stay in the largest caches there are, and then memory does not bound it.
CACHEABLE_BYTES = 256 * 2**20


# ── what was measured ─────────────────────────────────────────────────────────────────────────────


def step_bytes(record: Record, point: Point) -> float:
    """Bytes that one decode step of ``point`` must read: the weights its sequences need, and K and V of each at its middle depth."""
    return _step_bytes(record, point, cache_bytes_per_token(record))


def _step_bytes(record: Record, point: Point, cache_bytes: float) -> float:
    return step_weight_bytes(record, point) + point.n_seq * cache_bytes * (point.depth + point.n_tokens / 2)


def step_tokens(record: Record, point: Point) -> int:
    """Tokens that share one reading of the weights: a token of each sequence, or a micro-batch of the prompt."""
    return point.n_seq if point.kind == "decode" else min(point.n_tokens, record.settings.n_ubatch)


def step_weight_bytes(record: Record, point: Point) -> float:
    """Bytes of weights that a step reads once for all its tokens; of the experts, those of ``distinct_experts``."""
    model = record.model
    weights = float(bytes_read_per_token(((g.role, g.n_bytes) for g in model.tensors), model.n_expert, model.n_expert_used))
    if model.n_expert and step_tokens(record, point) > 1:
        experts = sum(g.n_bytes for g in model.tensors if g.role == "experts")
        weights += experts * (distinct_experts(record, point) - model.n_expert_used) / model.n_expert
    return weights


def distinct_experts(record: Record, point: Point) -> float:
    """Different experts that a layer used per step, on average: counted where the record has counts, else expected if tokens choose evenly."""
    if point.distinct_experts:
        return float(np.mean(point.distinct_experts))
    return limits.distinct_experts(record.model.n_expert, record.model.n_expert_used, step_tokens(record, point))


def cache_bytes_per_token(record: Record) -> float:
    """K and V of one token in the cache types of the run; 0 where the file's layers are not all alike."""
    kinds = record.settings.type_k, record.settings.type_v
    blocks = {kind: registry.load_cache_type("llama.cpp", kind.lower()) for kind in set(kinds)}
    return (record.model.kv_bytes_per_token or 0) / 2 * sum(blocks[kind].bytes / blocks[kind].elements / 2 for kind in kinds)


def bandwidth_bytes_per_s(record: Record, *, best: bool = False) -> float | None:
    """Read bandwidth of the memory the weights lie in, by the better of the two methods.

    The median over the whole run, because decode rates are medians of the same run: both saw the same neighbours. With
    ``best`` the fastest sample, as STREAM reports it (McCalpin, 1995): what no honest rate can be above.
    """
    if 0 < record.settings.n_gpu_layers <= record.model.n_layer:
        return None  # weights lie in two memories, and one bandwidth says nothing of them
    where = "cpu" if record.backend.device == "CPU" else "gpu"
    by_method: dict[str, list[float]] = {}
    for y in record.yardsticks:
        if y.kind == "read" and y.where == where:
            by_method.setdefault(y.method, []).extend([y.n_bytes / s for s in y.samples_s])
    return max((max(rates) if best else median(rates) for rates in by_method.values()), default=None)


def spread_of_yardsticks(record: Record) -> float:
    """How far the same yardstick, of bandwidth or of arithmetic, moved within the run: the largest ratio of its medians."""
    return max((max(found) / min(found) for found in yardstick_medians(record)), default=1.0)


def yardstick_medians(record: Record) -> list[list[float]]:
    """For each yardstick of the run its median time in seconds, moment after moment: before, between, after."""
    medians: dict[tuple[str, ...], list[float]] = {}
    for y in record.yardsticks:
        medians.setdefault((y.method,), []).append(median(y.samples_s))
    for k in record.kernels:
        medians.setdefault((k.tensor_type, k.placement, str(k.n_batch)), []).append(median(k.samples_s))
    return list(medians.values())


def _cache_rate(record: Record) -> float | None:
    """Bytes of weights per second when they stay in cache: the arithmetic of the file's tensor types, as a token mixes them.

    Times add up, so rates combine harmonically. Types too rare to have been timed are taken to be like the others;
    ``None`` when most of what a token reads has no rate.
    """
    rates: dict[str, list[float]] = {}
    for k in record.kernels:
        if k.placement == "cache":
            rates.setdefault(k.tensor_type, []).extend([k.n_bytes / s for s in k.samples_s])
    read = record.model.type_bytes_read
    timed = {kind: n for kind, n in read.items() if kind in rates}
    if sum(timed.values()) <= sum(read.values()) / 2:
        return None
    return sum(timed.values()) / sum(n / median(rates[kind]) for kind, n in timed.items())


def wall(*, achieved: float, bandwidth: float | None, arithmetic: float | None) -> str:
    """What binds, from three rates in bytes of weights per second.

    Reading alone takes ``1 / bandwidth`` per byte and arithmetic alone ``1 / arithmetic``. If they overlap perfectly the
    slower one sets the pace; if not at all, they add up. A rate below even the sum has another cause: starting kernels,
    routing, attention. A rate above the slower of the two shows that a yardstick was disturbed, and then nothing is known.

    >>> wall(achieved=43e9, bandwidth=48e9, arithmetic=138e9)
    'bandwidth'
    >>> wall(achieved=32e9, bandwidth=46e9, arithmetic=52e9)
    'bandwidth and arithmetic'
    """
    if bandwidth is None or arithmetic is None or achieved > YARDSTICK_SLACK * min(bandwidth, arithmetic):
        return "unknown"
    if achieved < OVERHEAD_SHARE / (1 / bandwidth + 1 / arithmetic):
        return "overhead"
    if arithmetic < bandwidth:
        return "arithmetic"
    return "bandwidth" if arithmetic > CLEAR_RATIO * bandwidth else "bandwidth and arithmetic"


def measured_frame(records: Sequence[Record]) -> pd.DataFrame:
    """One row per record and point, with the rate, its spread, the ceiling of this run, the share reached and the wall.

    ``tok_per_s`` is the median over repetitions, ``low`` and ``high`` the slowest and the fastest, ``cv`` their standard
    deviation over their mean, ``drift`` how much faster the later half was than the earlier one. Of several sequences
    rates are of all together. Rates in bytes/s.
    """
    rows = [row for record in records for row in measured_rows(record)]
    if not rows:
        raise DataError("no records to show; 'nbutils book' measures this machine, 'nbutils records list' shows what there is")
    return pd.DataFrame(rows)


def measured_rows(record: Record, *, itl: bool = True) -> list[dict[str, Any]]:
    """The rows of ``measured_frame`` for one record, as plain values; without ``itl`` no quantiles over all its tokens, which take longest."""
    rows = []
    bandwidth, arithmetic, noise = bandwidth_bytes_per_s(record), _cache_rate(record), spread_of_yardsticks(record)
    cache_bytes = cache_bytes_per_token(record)
    for point in record.points:
        rates = [point.n_seq * point.n_tokens / sum(samples) for samples in point.repetitions_s]
        half = len(rates) // 2
        row: dict[str, Any] = {
            "created": record.created,
            "device": record.machine.device,
            "backend": record.backend.device,
            "model": record.model.name,
            "kind": "MoE" if record.model.n_expert else "dense",
            "format": record.model.gguf_type,
            "phase": point.kind,
            "n_tokens": point.n_tokens,
            "depth": point.depth,
            "n_seq": point.n_seq,
            "tok_per_s": median(rates),
            "low": min(rates),
            "high": max(rates),
            "cv": variation(rates),
            "drift": median(rates[-half:]) / median(rates[:half]) - 1 if half else None,
            "warmup_s": point.warmup_s,
            "file_bytes": record.model.file_bytes,
            "bandwidth": bandwidth,
            "arithmetic": arithmetic,
            "noise": noise,
        }
        if point.kind == "decode":
            row |= _decode_columns(point, _step_bytes(record, point, cache_bytes), row["tok_per_s"], bandwidth, arithmetic)
            row |= _itl_columns(point) if itl else {}
        rows.append(row)
    return rows


def variation(rates: Sequence[float]) -> float | None:
    """Standard deviation over mean; ``None`` of fewer than two. In floats: ``statistics`` adds up fractions, which takes twenty times as long."""
    mean = fmean(rates)
    return math.sqrt(sum([(rate - mean) ** 2 for rate in rates]) / (len(rates) - 1)) / mean if len(rates) > 1 else None


def _decode_columns(point: Point, n_bytes: float, rate: float, bandwidth: float | None, arithmetic: float | None) -> dict[str, float | str | None]:
    steps_per_s = rate / point.n_seq
    return {
        "step_bytes": n_bytes,
        "achieved": n_bytes * steps_per_s,
        "ceiling_tok_per_s": None if bandwidth is None else point.n_seq * limits.decode_ceiling_tok_per_s(bandwidth, n_bytes),
        "share": None if bandwidth is None else limits.mbu(step_bytes=n_bytes, itl_s=1 / steps_per_s, bandwidth_bytes_per_s=bandwidth),
        # The kernel in cache was timed with one vector; with several it does another amount of arithmetic per byte.
        "wall": wall(achieved=n_bytes * steps_per_s, bandwidth=bandwidth, arithmetic=arithmetic if point.n_seq == 1 else None),
    }


def _itl_columns(point: Point) -> dict[str, float]:
    tokens = sorted(chain.from_iterable(point.repetitions_s))
    return {"itl_median_s": median(tokens), "itl_p95_s": _quantile(tokens, 0.95)}


def _quantile(ordered: Sequence[float], share: float) -> float:
    """A quantile of sorted values; between two of them by how near it is to each, as numpy has it by default."""
    place = share * (len(ordered) - 1)
    below = int(place)
    return ordered[below] + (place - below) * (ordered[min(below + 1, len(ordered) - 1)] - ordered[below])


def yardstick_frame(yardsticks: Iterable[Yardstick]) -> pd.DataFrame:
    """One row per yardstick: best and median rate in bytes per second."""
    return pd.DataFrame(
        {
            "when": y.when,
            "method": y.method,
            "kind": y.kind,
            "where": y.where,
            "best": y.n_bytes / min(y.samples_s),
            "median": y.n_bytes / median(y.samples_s),
            "samples": len(y.samples_s),
        }
        for y in yardsticks
    )


def kernel_frame(kernels: Iterable[KernelRate]) -> pd.DataFrame:
    """One row per kernel: bytes of weights per second, and FLOP per second (two per weight and column)."""
    return pd.DataFrame(
        {
            "type": k.tensor_type,
            "placement": k.placement,
            "n_batch": k.n_batch,
            "bytes_per_s": k.n_bytes / min(k.samples_s),
            "flop_per_s": 2 * k.n_rows * k.n_columns * k.n_batch / min(k.samples_s),
        }
        for k in kernels
    )


def check_against_ceiling(record: Record) -> list[str]:
    """What speaks against a record: a decode rate above what the fastest yardstick of the same run allows.

    Only a file small enough to stay in a cache may be faster than memory; what was timed in cache bounds it.
    """
    # Where weights lie in two memories, or in one that was not timed, none of them goes faster than the faster of what was.
    timed = [y.n_bytes / min(y.samples_s) for y in record.yardsticks if y.kind == "read"]
    fastest = bandwidth_bytes_per_s(record, best=True) or max(timed, default=0.0)
    if record.model.file_bytes < CACHEABLE_BYTES:
        fastest = max(fastest, _cache_rate(record) or 0.0)
    decode = decode_rows(measured_frame([record]))
    return [
        f"decode of {row.model} {row.format} at {row.tok_per_s:.1f} tok/s goes through {row.achieved / 1e9:.1f} GB/s of weights, but no yardstick"
        f" of the same run is above {fastest / 1e9:.1f}; one of the two is wrong: measure again on a quiet machine"
        for row in decode.itertuples()
        if fastest and row.achieved > YARDSTICK_SLACK * fastest
    ]


# ── what is possible ──────────────────────────────────────────────────────────────────────────────


def fit_row(
    variant: Variant,
    place: Place,
    *,
    n_ctx: int,
    kv_type: str,
    batch_size: int = 1,
    compute: fit.ComputeBuffer | None = None,
    largest: int | None,
) -> dict[str, Any]:
    """One verdict as plain values, bytes as integers: what ``nbutils fit --json`` prints."""
    cache = registry.load_cache_type(variant.engine, kv_type)
    budget = budget_of(variant, place, n_ctx=n_ctx, cache=cache, batch_size=batch_size, compute=compute)
    return {
        "model": variant.name,
        "device": place.device_id,
        "configuration": place.configuration,
        "memory_gb": place.memory_gb,
        "format": variant.format,
        "engine": variant.engine,
        "n_ctx": n_ctx,
        "kv_type": kv_type,
        "batch": batch_size,
        "weight_bytes": budget.weight_bytes,
        "kv_cache_bytes": budget.kv_cache_bytes,
        "recurrent_state_bytes": budget.recurrent_state_bytes,
        "compute_buffer_bytes": budget.compute.n_bytes,
        "compute_buffer_basis": budget.compute.basis,
        "output_buffer_bytes": budget.output_buffer_bytes,
        "overhead_bytes": budget.overhead_bytes,
        "total_bytes": budget.total_bytes,
        "memory_bytes": place.room.memory_bytes,
        "unusable_bytes": place.room.unusable_bytes,
        "system_bytes": place.room.system_bytes,
        "elsewhere_bytes": budget.elsewhere_bytes,
        "available_bytes": budget.available_bytes,
        "headroom_bytes": budget.headroom_bytes,
        "verdict": budget.verdict,
        "max_ctx": largest,
        "n_ctx_train": variant.shape.n_ctx_train,
        "caveat": variant.caveat,
    }


def budget_of(
    variant: Variant,
    place: Place,
    *,
    n_ctx: int,
    cache: Block = limits.F16_CACHE,
    batch_size: int = 1,
    compute: fit.ComputeBuffer | None = None,
) -> fit.MemoryBudget:
    """The budget in a place. Without ``compute`` it is the upper bound."""
    return fit.memory_budget(
        variant,
        n_ctx=n_ctx,
        available_bytes=place.room.available_bytes,
        cache=cache,
        batch_size=batch_size,
        compute=compute,
        overhead_bytes=place.room.overhead_bytes,
        elsewhere_bytes=fit.elsewhere_bytes(variant, discrete=place.discrete, batch_size=batch_size),
    )


def limits_row(
    variant: Variant,
    place: Place,
    *,
    bandwidth_bytes_per_s: float,
    depth: int = 0,
    batch_size: int = 1,
    kv_type: str = "f16",
    n_prompt: int = 2048,
    rent_usd_per_hour: float | None = None,
) -> dict[str, Any]:
    """Both ceilings as plain values: what ``nbutils limits --json`` prints. Unknown is ``None``."""
    cache = registry.load_cache_type(variant.engine, kv_type)
    peak, peak_source = place.peak(variant.arithmetic)
    limit = limits.decode_limit(
        variant, bandwidth_bytes_per_s=bandwidth_bytes_per_s, peak_flop_per_s=peak, depth=depth, batch_size=batch_size, cache=cache
    )
    prefill = limits.prefill_limit(
        variant, n_tokens=n_prompt, bandwidth_bytes_per_s=bandwidth_bytes_per_s, peak_flop_per_s=peak, depth=depth, cache=cache
    )
    kv, state = limits.kv_bytes_read(variant.shape, depth, cache), limits.recurrent_state_bytes(variant.shape)
    rate = limit.ceiling_tok_per_s
    return {
        "model": variant.name,
        "device": place.device_id,
        "configuration": place.configuration,
        "memory_gb": place.memory_gb,
        "format": variant.format,
        "depth": depth,
        "batch": batch_size,
        "kv_type": kv_type,
        "bytes_per_token": limit.bytes_per_token,
        "flop_per_token": limit.flop / batch_size,
        "step_weight_bytes": limit.step_bytes - batch_size * (kv + state),
        "step_kv_bytes": batch_size * kv,
        "step_state_bytes": batch_size * state,
        "step_bandwidth_s": limit.bandwidth_s,
        "step_compute_s": limit.compute_s,
        "beyond_training": depth > variant.shape.n_ctx_train,
        "bandwidth_bytes_per_s": bandwidth_bytes_per_s,
        "peak_flop_per_s": peak,
        "peak": peak_source,
        "decode_ceiling_tok_per_s": rate,
        "n_prompt": n_prompt,
        "prefill_ceiling_tok_per_s": prefill.ceiling_tok_per_s,
        "prefill_binding": prefill.binding,
        "ridge_point_flop_per_byte": limits.ridge_point(peak, bandwidth_bytes_per_s),
        "intensity_flop_per_byte": limits.arithmetic_intensity(limit.flop, limit.step_bytes),
        "binding": limit.binding,
        "compute_bound_batch": limits.compute_bound_batch(
            variant, bandwidth_bytes_per_s=bandwidth_bytes_per_s, peak_flop_per_s=peak, depth=depth, cache=cache
        ),
        "energy_j_per_token": None if place.power_w is None else limits.energy_j_per_token(place.power_w, rate),
        "usd_per_million_tokens": usd_per_million(place, tok_per_s=rate),
        "rent_usd_per_million_tokens": rent_usd_per_hour and limits.usd_per_million_tokens(tok_per_s=rate, usd_per_hour=rent_usd_per_hour),
        "training_flop_per_token": {m: limits.training_flop_per_token(variant, method=m) for m in _METHODS},
        "training_ceiling_tok_per_s": _training(variant, place),
    }


_METHODS: tuple[Literal["full", "lora", "qlora"], ...] = ("full", "lora", "qlora")


def _training(variant: Variant, place: Place) -> dict[str, float]:
    """Most tokens per second that the FP16 or BF16 peak allows by method, adapters taken as infinitely small; empty where no peak is known."""
    peak, _ = place.peak(("fp16", "bf16"))
    return {} if peak is None else {m: peak / limits.training_flop_per_token(variant, method=m) for m in _METHODS}


#: How an own machine is written off where nothing else is said, and what its electricity costs.
YEARS, USD_PER_KWH = 3.0, 0.15


def usd_per_million(place: Place, *, tok_per_s: float, years: float = YEARS, usd_per_kwh: float = USD_PER_KWH) -> float | None:
    """Price of a million tokens from an own machine that never rests; ``None`` where its price or power is unknown."""
    if place.price_usd is None or place.power_w is None:
        return None
    hour = limits.hourly_price_usd(price_usd=place.price_usd, years=years, power_w=place.power_w, usd_per_kwh=usd_per_kwh)
    return limits.usd_per_million_tokens(tok_per_s=tok_per_s, usd_per_hour=hour)


def device_frame(place: Place, models: Iterable[Model], *, n_ctx: int, n_prompt: int = 2048) -> pd.DataFrame:
    """One row per model and format that is made for the place: fit at ``n_ctx`` and the two ceilings at depth 0.

    The prefill ceiling uses the best dense peak that kernels for the format may reach: quantised weights may be
    multiplied in INT8. Compute buffers are those that ``data`` keeps, or upper bounds.
    """
    rows = []
    for model in models:
        for format_id in model.formats:
            fmt = registry.load_format(format_id)
            stored = variant(model, fmt)
            if not place.runs(stored.engine):
                continue
            budget = budget_of(stored, place, n_ctx=n_ctx, compute=kept_compute(stored, n_ctx))
            assert place.bandwidth_bytes_per_s is not None
            bounds = limits_row(stored, place, bandwidth_bytes_per_s=place.bandwidth_bytes_per_s, n_prompt=n_prompt)
            peak = bounds["peak"]
            rows.append(
                {
                    "model": model.name,
                    "kind": "MoE" if model.shape.experts else "dense",
                    "format": format_id,
                    "usual": format_id == usual_format(model),
                    "weight_bytes": budget.weight_bytes,
                    "weight_gb": budget.weight_bytes / 1e9,
                    "total_bytes": budget.total_bytes,
                    "verdict": budget.verdict,
                    "verdict_words": budget.verdict.replace("_", " "),
                    "headroom_bytes": budget.headroom_bytes,
                    "largest_context": largest_context(stored, place),
                    "decode_ceiling_tok_per_s": bounds["decode_ceiling_tok_per_s"],
                    "prefill_in": "reading" if bounds["prefill_binding"] == "bandwidth" else peak.split(",", maxsplit=1)[0] or None,
                    "prefill_ceiling_tok_per_s": bounds["prefill_ceiling_tok_per_s"],
                }
            )
    return pd.DataFrame(rows)


def kept_compute(stored: Variant, n_ctx: int, kv_type: str = "f16") -> fit.ComputeBuffer | None:
    """What ``data`` keeps of llama.cpp's answers; ``None`` for other engines, and where it keeps nothing for this context."""
    kept = registry.kept_compute_buffer(stored.name, n_ctx, kv_type) if stored.engine == "llama.cpp" else None
    return None if kept is None else fit.ComputeBuffer(kept, "kept")


def largest_context(stored: Variant, place: Place, *, kv_type: str = "f16", batch_size: int = 1) -> int | None:
    """The largest context that surely fits, without asking llama.cpp: by the upper bound, or a kept answer above that."""
    cache = registry.load_cache_type(stored.engine, kv_type)

    def budget_at(n_ctx: int, compute: fit.ComputeBuffer | None = None) -> fit.MemoryBudget:
        return budget_of(stored, place, n_ctx=n_ctx, cache=cache, batch_size=batch_size, compute=compute)

    kept = registry.kept_compute_buffers(stored.name, kv_type) if batch_size == 1 and stored.engine == "llama.cpp" else ()
    return fit.largest_context(stored.shape.n_ctx_train, budget_at, kept)


def fit_grid(places: Sequence[Place], variants: Sequence[Variant], contexts: Sequence[int], *, kv_type: str = "f16") -> pd.DataFrame:
    """Verdicts of every variant at every context in every place: one row each, computed as columns.

    Columns: ``device, configuration, model, format, n_ctx, total_bytes, available_bytes, headroom_bytes, verdict``.
    """
    needs = []
    for stored in variants:
        names = registry.CACHE_TYPES[stored.engine]
        cache = registry.load_cache_type(stored.engine, kv_type if kv_type in names else "f16")
        for n_ctx in contexts:
            budget = fit.memory_budget(stored, n_ctx=n_ctx, available_bytes=0, cache=cache, compute=kept_compute(stored, n_ctx, kv_type))
            away = [fit.elsewhere_bytes(stored, discrete=discrete) for discrete in (True, False)]
            needs.append((stored.name, stored.format, n_ctx, budget.total_bytes, *away))
    rooms = [(p.device_id, p.configuration, p.room.overhead_bytes, p.room.available_bytes, p.discrete) for p in places]
    need = pd.DataFrame(needs, columns=["model", "format", "n_ctx", "total_bytes", "beside_a_card", "beside_none"])
    found = pd.DataFrame(rooms, columns=["device", "configuration", "overhead_bytes", "own_bytes", "discrete"]).merge(need, how="cross")
    found["total_bytes"] += found.pop("overhead_bytes")
    elsewhere = np.where(found.pop("discrete"), found.pop("beside_a_card"), found.pop("beside_none"))
    own = found.pop("own_bytes")
    found["available_bytes"] = own + elsewhere
    found["headroom_bytes"] = found["available_bytes"] - found["total_bytes"]
    tight = found["headroom_bytes"] < fit.TIGHT_MARGIN * own
    found["verdict"] = np.where(found["headroom_bytes"] < 0, "does_not_fit", np.where(tight, "tight", "fits"))
    return found


def proof_frame(comparisons: Iterable[Comparison]) -> pd.DataFrame:
    """One row per model: what its layers keep, how many figures were compared, and the largest difference of each kind in bytes."""
    frame = pd.DataFrame(
        {"model": c.model, "what": "weights" if c.what == "weights" else "memory", "differs_by": c.differs_by, "raw": abs(c.ours - c.llama_cpp)}
        for c in comparisons
    )
    rows = []
    for model_id, part in frame.groupby("model", sort=False):
        model = registry.load_model(str(model_id))
        worst = part.groupby("what")[["differs_by", "raw"]].max()
        rows.append(
            {
                "model": model.name,
                "architecture": model.architecture,
                "layers": layer_words(variant(model, registry.load_format("F16")), brief=True),
                "compared": len(part),
                "weights": int(worst.loc["weights", "raw"]),
                "memory": int(worst.loc["memory", "differs_by"]),
                "rounding": int(worst.loc["memory", "raw"]),
            }
        )
    return pd.DataFrame(rows)


#: Columns of ``proof_frame`` and what a reader sees above them.
PROOF_HEADINGS = {
    "model": "model",
    "architecture": "architecture",
    "layers": "what its layers keep",
    "compared": "figures compared",
    "weights": "weights differ by (bytes)",
    "memory": "memory differs by (bytes)",
    "rounding": "before rounding (bytes)",
}
PROOF_FORMATS = dict.fromkeys(("compared", "weights", "memory", "rounding"), "{:,}")


def proof_lines(comparisons: Iterable[Comparison]) -> str:
    """Every figure compared, as plain text: ours, llama.cpp's, and what no rounding explains."""
    rows = [
        {
            "model": c.model,
            "what": f"{c.what}, {c.under}" + ("" if c.n_ctx is None else f", {c.n_ctx:,} tokens"),
            "ours (bytes)": f"{c.ours:,}",
            "llama.cpp (bytes)": f"{c.llama_cpp:,}",
            "differ by (bytes)": f"{c.differs_by:,}",
        }
        for c in comparisons
    ]
    return str(pd.DataFrame(rows).to_string(index=False))


def budget_frame(budget: fit.MemoryBudget) -> pd.DataFrame:
    """The budget by line, in bytes; the last row is what is left."""
    basis = {"asked": "asked", "kept": "asked", "upper_bound": "at most", "allowance": "allowed for"}[budget.compute.basis]
    lines = {
        "weights": budget.weight_bytes,
        "KV cache": budget.kv_cache_bytes,
        "recurrent state": budget.recurrent_state_bytes,
        f"compute buffer, {basis}": budget.compute.n_bytes,
        "output buffer": budget.output_buffer_bytes,
        "runtime": budget.overhead_bytes,
        "headroom": budget.headroom_bytes,
    }
    return pd.DataFrame({"part": list(lines), "bytes": list(lines.values())})


def explain_table(lines: Sequence[Line]) -> tuple[pd.DataFrame, dict[str, str], dict[str, str]]:
    """The lines of an explanation as what ``plots.table`` takes."""
    rows = [{"what": x.what.strip(), "value": x.shown, "unit": x.unit, "how": x.how, "source": x.source} for x in lines]
    return pd.DataFrame(rows), {"what": "", "value": "value", "unit": "unit", "how": "how", "source": "source"}, {"value": "{}"}


def decode_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The decode rows of a measured frame."""
    return frame[frame["phase"] == "decode"].reset_index(drop=True)


#: Columns of ``summary_frame`` and what a reader sees above them.
SUMMARY_HEADINGS = {
    "model": "model",
    "format": "format",
    "depth": "depth (tokens)",
    "n_seq": "sequences",
    "prefill": "prefill (tok/s)",
    "decode": "decode (tok/s)",
    "ceiling": "decode ceiling (tok/s)",
    "share": "share of measured bandwidth",
    "wall": "what binds",
    "backend": "backend",
}
SUMMARY_FORMATS = {"depth": "{:,}", "n_seq": "{:,}", "prefill": "{:,.0f}", "decode": "{:,.1f}", "ceiling": "{:,.1f}", "share": "{:.0%}"}


def summary_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per model, format and depth: prefill and decode rates, and the share of the bandwidth measured beside them."""
    rows = []
    for (_, model, fmt, depth, n_seq), part in frame.groupby(["backend", "model", "format", "depth", "n_seq"], sort=False):
        prefill, decode = part[part["phase"] == "prefill"], part[part["phase"] == "decode"]
        last = decode.iloc[-1] if len(decode) else part.iloc[-1]
        rows.append(
            {
                "model": model,
                "format": fmt,
                "depth": depth,
                "n_seq": n_seq,
                "prefill": prefill["tok_per_s"].iloc[-1] if len(prefill) else None,
                "decode": last["tok_per_s"] if len(decode) else None,
                "ceiling": last.get("ceiling_tok_per_s"),
                "share": last.get("share"),
                "wall": last.get("wall"),
                "backend": last["backend"],
            }
        )
    return pd.DataFrame(rows)


def summary_headings(frame: pd.DataFrame) -> dict[str, str]:
    """Headings of the summary; depth and sequences are shown where they are not what everybody expects."""
    usual = {"depth": {0}, "n_seq": {1}}
    return {k: v for k, v in SUMMARY_HEADINGS.items() if k not in usual or set(frame[k]) != usual[k]}


def summary_table(frame: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str], dict[str, str]]:
    """The summary as ``plots.table`` takes it, for a page that names its one backend elsewhere."""
    headings = {k: v for k, v in summary_headings(frame).items() if k != "backend"}
    return summary_frame(frame), headings, {k: v for k, v in SUMMARY_FORMATS.items() if k in headings}


def wall_table(frame: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str], dict[str, str]]:
    """What was reached, what reading and arithmetic alone allow, what binds; what ``plots.table`` takes."""
    decode = decode_rows(frame)
    rates = {"achieved": "decode (GB/s of weights)", "bandwidth": "reading alone", "arithmetic": "arithmetic alone"}
    shown = decode[["kind", "format", "wall"]].assign(**{name: decode[name] / 1e9 for name in rates})
    return shown, {"kind": "stand-in", "format": "format"} | rates | {"wall": "what binds"}, dict.fromkeys(rates, "{:,.1f}")


def wall_sentence(frame: pd.DataFrame, kind: str, gguf_type: str) -> str:
    """How far reading and arithmetic overlapped for one file: between what none and what perfect overlap would give."""
    decode = decode_rows(frame)
    row = decode[(decode["kind"] == kind) & (decode["format"] == gguf_type)].iloc[-1]
    if row["wall"] == "unknown":
        return f"For {kind} {gguf_type} the yardsticks do not say."
    ratio = row["arithmetic"] / row["bandwidth"]
    return (
        f"In {gguf_type} arithmetic alone goes through {row['arithmetic'] / 1e9:.0f} GB/s of weights, {ratio:.1f} times what the memory"
        f" delivers: with no overlap decode would reach {ratio / (1 + ratio):.0%} of the bandwidth, with perfect overlap {min(1.0, ratio):.0%};"
        f" it reaches {row['share']:.0%}."
    )


def noise_line(frame: pd.DataFrame) -> str:
    """Whether the machine was quiet, in a sentence."""
    noise = float(frame["noise"].max())
    if noise <= NOISY_RATIO:
        return f"A quiet machine: within a run the same yardstick varied by a factor of {noise:.2f} at most."
    return f"A noisy machine: within one run the same yardstick varied by a factor of {noise:.2f}. Read shares with that in mind."


# ── what a device and a machine are ───────────────────────────────────────────────────────────────


def explain_device(device: Device, configuration: Configuration) -> list[str]:
    """Capacity, bandwidth, peak and ridge point, a line each."""
    peak = device.peak("fp16", configuration=configuration)
    flop_per_s = peak.base("compute") if peak else None
    ridge = limits.ridge_point(flop_per_s, configuration.bandwidth_bytes_per_s)
    return [
        f"{device.name}, {configuration.id}",
        f"memory       {configuration.memory_bytes:>18,} bytes",
        f"usable       {configuration.usable_bytes:>18,} bytes" + ("" if configuration.usable else ", no source says less than all"),
        f"bandwidth    {configuration.bandwidth_bytes_per_s:>18,.0f} bytes/s",
        f"peak         {'unknown' if flop_per_s is None else f'{flop_per_s:,.0f}':>18} FLOP/s, dense FP16, FP32 accumulation",
        f"ridge point  {'unknown' if ridge is None else f'{ridge:,.0f}':>18} FLOP/byte",
    ]


#: Columns of ``device_frame`` and what a reader sees above them.
DEVICE_HEADINGS = {
    "model": "model",
    "format": "format",
    "weight_gb": "weights (GB)",
    "verdict_words": "verdict",
    "largest_context": "largest context (tokens)",
    "decode_ceiling_tok_per_s": "decode ceiling (tok/s)",
    "prefill_ceiling_tok_per_s": "prefill ceiling (tok/s)",
    "prefill_in": "bound by",
}
DEVICE_FORMATS = {
    "weight_gb": "{:,.2f}",
    "largest_context": "{:,.0f}",
    "decode_ceiling_tok_per_s": "{:,.1f}",
    "prefill_ceiling_tok_per_s": "{:,.0f}",
}


def ceiling_lines(rows: pd.DataFrame) -> str:
    """The frame of a device as plain text: what fits, with how much context, and both ceilings."""
    shown = pd.DataFrame(
        {
            "model": rows["model"],
            "format": rows["format"],
            "weights (bytes)": [f"{n:,}" for n in rows["weight_bytes"]],
            "verdict": rows["verdict"],
            "largest context": ["–" if pd.isna(n) else f"{int(n):,}" for n in rows["largest_context"]],
            "decode ceiling (tok/s)": [f"{x:,.2f}" for x in rows["decode_ceiling_tok_per_s"]],
            "prefill ceiling (tok/s)": ["–" if pd.isna(x) else f"{x:,.0f}" for x in rows["prefill_ceiling_tok_per_s"]],
        }
    )
    return str(shown.to_string(index=False))


def figure_frame(device: Device) -> pd.DataFrame:
    """Every figure of a device with its standing and source; figures that other sources give stand below the one used."""
    rows: list[dict[str, str]] = []

    def add(name: str, figure: Figure | None) -> None:
        if figure is None:
            return
        for i, entry in enumerate((figure, *figure.also)):
            note = entry.note or (figure.because if i == 0 else "")
            source = device.sources[entry.source]
            rows.append(
                {
                    "figure": name if i == 0 else f"{name}, another source",
                    "value": f"{entry.value:,g} {entry.unit}",
                    "standing": "⚠ unverified" if entry.standing == "unverified" else entry.standing,
                    "source": source.title,
                    "url": source.url,
                    "note": note,
                }
            )

    def add_shared(name: str, figures: Iterable[tuple[str, Figure | None]]) -> None:
        """A figure that several configurations share stands once, with all their names."""
        shared: dict[Figure, list[str]] = {}
        for configuration_id, figure in figures:
            if figure is not None:
                shared.setdefault(figure, []).append(configuration_id)
        for figure, ids in shared.items():
            asked = f", asked {figure.asked}" if isinstance(figure, Price) else ""
            add(f"{name}, {', '.join(ids)}{asked}", figure)

    configurations = device.configurations
    add_shared("memory", [(c.id, c.memory) for c in configurations])
    add_shared("usable", [(c.id, c.usable) for c in configurations])
    add_shared("bandwidth", [(c.id, c.bandwidth) for c in configurations])
    add_shared("price", [(c.id, c.price) for c in configurations])
    own = [(f", {c.id}", peak) for c in configurations for peak in c.peaks]
    for whose, peak in [*(("", peak) for peak in device.peaks), *own]:
        accumulate = "accumulator not stated" if peak.accumulate == "unstated" else f"accumulated in {peak.accumulate.upper()}"
        add(f"{peak.dtype.upper()} {peak.basis}, {accumulate}{whose}", peak)
    add("power", device.power)
    return pd.DataFrame(rows)


def machine_frame(machine: Machine, description: dict[str, Any] | None = None, backend: Backend | None = None) -> pd.DataFrame:
    """What a machine is, as rows of property and value. Give llama.cpp's ``description`` or a record's ``backend``."""
    rows = [
        ("registry", machine.device + (f", {machine.configuration}" if machine.configuration else "")),
        ("processor", f"{machine.cpu}, {machine.n_cores} cores, {machine.n_threads_hw} hardware threads"),
        ("memory", f"{machine.memory_bytes / 2**30:.1f} GiB, {machine.memory_available_bytes / 2**30:.1f} GiB available"),
        ("system", f"{machine.system}, {machine.architecture}"),
    ]
    for gpu in machine.gpus:
        memory = "memory not told" if gpu.memory_bytes is None else f"{gpu.memory_bytes / 2**30:.1f} GiB"
        limit = "" if gpu.power_limit_w is None else f", {gpu.power_limit_w:.0f} W limit"
        rows.append(("GPU", f"{gpu.name}, {memory}{limit}, driver {gpu.driver}"))
    if machine.apple_working_set_bytes:
        rows.append(("working set", f"{machine.apple_working_set_bytes / 2**30:.1f} GiB set by iogpu.wired_limit_mb"))
    if description:
        device = description["device"]
        rows.append(("llama.cpp", f"{description['binding']}, on {device['description']}, {device['memory_bytes'] / 2**30:.1f} GiB"))
    if backend:
        rows.append(("llama.cpp", f"{backend.binding}, on {backend.device}, {backend.memory_bytes / 2**30:.1f} GiB"))
    rows += [("note", note) for note in machine.notes]
    return pd.DataFrame(rows, columns=["property", "value"])


def short_name(device: Device, configuration: str = "") -> str:
    """A name for a narrow column: no maker, and of what stands in parentheses only the cores of the GPU, which a configuration may name in its id."""
    plain, _, inner = device.name.partition(" (")
    cores = re.search(r"-(\d+)c$", configuration) or re.search(r"(\d+)-core GPU", inner)
    plain = re.sub(r"^(NVIDIA|AMD|Apple|Intel|Microsoft|Qualcomm) (GeForce )?", "", plain).replace(",", "")
    return plain + (f" {cores[1]}c" if cores else "")


def ceiling_matrix(
    devices: Sequence[Device], models: Sequence[Model], *, n_ctx: int
) -> tuple[pd.DataFrame, dict[str, str], dict[str, str], dict[str, str]]:
    """Decode ceilings of every model, in the format most people run, on every device's largest configuration.

    Returns what ``plots.table`` takes: the frame, its headings, its number formats, its links. Fastest memory first. ``None`` where it
    does not fit, a star where it is tight, a dagger where no source says how much of the memory a program may use.
    """
    stored = {m.id: (m, variant(m, registry.load_format(usual_format(m)))) for m in models}
    rows = []
    for device in devices:
        here = place(device, device.configuration())
        assert here.bandwidth_bytes_per_s is not None
        row: dict[str, Any] = {
            "device": short_name(device) + ("" if device.configuration().usable else "†"),
            "page": f"devices/{device.id}.html" if device.id in registry.page_ids() else "",
            "memory": here.memory_gb,
            "bandwidth": here.bandwidth_bytes_per_s / 1e9,
        }
        for model, v in stored.values():
            verdict = budget_of(v, here, n_ctx=n_ctx, compute=kept_compute(v, n_ctx)).verdict
            ceiling = limits.decode_ceiling_tok_per_s(here.bandwidth_bytes_per_s, limits.decode_step_bytes(v))
            shown = f"{ceiling:,.0f}" if ceiling >= 100 else f"{ceiling:,.1f}"
            row[model.id] = None if verdict == "does_not_fit" else shown + ("*" if verdict == "tight" else "")
        rows.append(row)
    headings = {"device": "device", "memory": "GB", "bandwidth": "GB/s"} | {m.id: f"{m.name} {usual_format(m)} (tok/s)" for m in models}
    formats = {"memory": "{:,.0f}", "bandwidth": "{:,.0f}"} | {m.id: "{}" for m in models}
    frame = pd.DataFrame(rows).sort_values(["bandwidth", "device"], ascending=[False, True], ignore_index=True)
    return frame, headings, formats, {"device": "page"}


def cache_kinds_frame(models: Sequence[Model], *, n_ctx: int) -> tuple[pd.DataFrame, dict[str, str], dict[str, str]]:
    """What caches really take beside what they would if every layer kept everything of every token; for ``plots.table``."""
    rows = []
    for model in models:
        stored = variant(model, registry.load_format(usual_format(model)))
        shape = model.shape
        kept = fit.kv_cache_bytes(stored, n_ctx) + limits.recurrent_state_bytes(shape)
        heads = shape.n_head * (shape.latent.head_dim_nope + shape.latent.n_rot + shape.latent.head_dim_v) if shape.latent else 0
        row = 2 * heads if heads else limits.kv_row_bytes(shape)
        plain = shape.n_layer * row * n_ctx
        rows.append(
            {"model": model.name, "layers": layer_words(stored, brief=True), "plain": plain / 1e9, "kept": kept / 1e9, "factor": plain / kept}
        )
    headings = {"model": "model", "layers": "what its layers keep", "plain": "if all kept everything (GB)", "kept": "kept (GB)", "factor": "factor"}
    return pd.DataFrame(rows), headings, {"plain": "{:,.2f}", "kept": "{:,.2f}", "factor": "{:,.1f}"}


def rooms_frame(places: Sequence[Place]) -> tuple[pd.DataFrame, dict[str, str], dict[str, str]]:
    """What machines of one size on the box let a model use; for ``plots.table``."""
    rows = []
    for here in places:
        room = here.room
        known = here.device is None or here.device.configuration(here.configuration).usable is not None
        parts = {"memory": room.memory_bytes, "unusable": room.unusable_bytes, "system": room.system_bytes, "overhead": room.overhead_bytes}
        name = short_name(here.device) if here.device else here.device_id
        left = room.available_bytes - room.overhead_bytes
        rows.append(
            {
                "device": name,
                **{k: v / 1e9 for k, v in parts.items()},
                **({} if known else {"unusable": None}),
                "left": left / 1e9,
                "share": left / room.memory_bytes,
            }
        )
    headings = {"device": "device", "memory": "built in (GB)", "unusable": "out of reach (GB)", "system": "system keeps (GB)"}
    headings |= {"overhead": "runtime (GB)", "left": "left for a model (GB)", "share": "share"}
    return pd.DataFrame(rows), headings, {**dict.fromkeys(("memory", "unusable", "system", "overhead", "left"), "{:,.1f}"), "share": "{:.0%}"}


def depth_frame(stored: Sequence[Variant], here: Place, depths: Sequence[int]) -> pd.DataFrame:
    """Decode ceilings over the depth of the context, one row per variant and depth: ``name, label, depth, ceiling, gb``.

    A line ends where the model's training did.
    """
    bandwidth = here.bandwidth_bytes_per_s
    assert bandwidth is not None
    rows = []
    for v in stored:
        trained = v.shape.n_ctx_train
        for depth in sorted({min(depth, trained) for depth in depths}):
            step = limits.decode_step_bytes(v, depth=depth)
            rows.append(
                {
                    "name": v.name,
                    "label": _display(v.name),
                    "depth": depth,
                    "ceiling": limits.decode_ceiling_tok_per_s(bandwidth, step),
                    "gb": step / 1e9,
                }
            )
    return pd.DataFrame(rows)


def batch_frame(stored: Sequence[Variant], here: Place, batches: Sequence[int], *, depth: int) -> pd.DataFrame:
    """Decode ceilings over the batch, one row per variant and batch: ``name, label, batch, total, each, binding, fits``."""
    assert here.bandwidth_bytes_per_s is not None
    rows = []
    for v in stored:
        peak, _ = here.peak(v.arithmetic)
        for n in batches:
            limit = limits.decode_limit(v, bandwidth_bytes_per_s=here.bandwidth_bytes_per_s, peak_flop_per_s=peak, depth=depth, batch_size=n)
            total = limit.ceiling_tok_per_s
            fits = budget_of(v, here, n_ctx=max(1, depth), batch_size=n).headroom_bytes >= 0
            rows.append(
                {"name": v.name, "label": _display(v.name), "batch": n, "total": total, "each": total / n, "binding": limit.binding, "fits": fits}
            )
    return pd.DataFrame(rows)


def _display(name: str) -> str:
    """The name on pages of a model of the registry; a file's own name."""
    return registry.load_model(name).name if name in registry.model_ids() else name


def configurations_frame(device: Device, models: Sequence[Model], *, n_ctx: int) -> tuple[pd.DataFrame, dict[str, str], dict[str, str]]:
    """Verdicts of every model, in the format most people run, on every configuration of a device; for ``plots.table``."""
    rows = []
    for model in models:
        stored = variant(model, registry.load_format(usual_format(model)))
        row = {"model": model.name, "format": stored.format}
        for c in device.configurations:
            budget = budget_of(stored, place(device, c), n_ctx=n_ctx, compute=kept_compute(stored, n_ctx))
            row[c.id] = budget.verdict.replace("_", " ")
        rows.append(row)
    return pd.DataFrame(rows), {"model": "model", "format": "format"} | {c.id: c.id for c in device.configurations}, {}


def usual_format(model: Model) -> str:
    """The format most people run: Q4_K_M where there is one."""
    return "Q4_K_M" if "Q4_K_M" in model.formats else model.formats[0]


def roofline_frame(devices: Sequence[Device]) -> pd.DataFrame:
    """Name, bandwidth and dense FP16 peak of each device's largest configuration; an unknown peak is ``None``."""
    rows = []
    for device in devices:
        peak = device.peak("fp16")
        bandwidth = device.configuration().bandwidth_bytes_per_s
        rows.append({"name": device.name, "bandwidth": bandwidth, "peak": peak.base("compute") if peak else None})
    return pd.DataFrame(rows)


def file_table(records: Sequence[Record]) -> tuple[pd.DataFrame, dict[str, str], dict[str, str]]:
    """What the measured files are, from their headers; what ``plots.table`` takes."""
    rows = []
    for record in records:
        m = record.model
        read = bytes_read_per_token(((g.role, g.n_bytes) for g in m.tensors), m.n_expert, m.n_expert_used)
        experts = f"{m.n_expert_used} of {m.n_expert}" if m.n_expert else "–"
        rows.append(
            {"name": "MoE" if m.n_expert else "dense", "architecture": m.architecture, "format": m.gguf_type, "layers": m.n_layer, "experts": experts}
            | {"parameters": m.n_parameters / 1e6, "stored": m.file_bytes / 1e6, "read": read / 1e6}
        )
    headings = {"name": "stand-in", "architecture": "architecture", "format": "format", "layers": "layers", "experts": "experts used"}
    numbers = {"parameters": "parameters (10⁶)", "stored": "file (MB)", "read": "read per token (MB)"}
    return pd.DataFrame(rows), headings | numbers, dict.fromkeys(numbers, "{:,.1f}")
