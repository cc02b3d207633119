"""What the argument chapters draw: both walls of a step, memory over context, bytes stored against bytes read, formats over batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from nbutils import fit, limits, registry
from nbutils.frames import kept_compute, largest_context, short_name, usual_format
from nbutils.places import Place
from nbutils.specs import Device, Format, Model
from nbutils.tensors import Variant, variant

__all__ = ["batch_formats_frame", "context_frame", "largest_context_frame", "stored_frame", "walls_frame"]


def walls_frame(stored: Variant, devices: Iterable[Device], *, n_prompt: int) -> pd.DataFrame:
    """How long reading alone and arithmetic alone take, in seconds, for one token and for a prompt, on each device's largest configuration.

    Arithmetic at the dense FP16 peak; devices without a known one are left out. Columns: ``device, what, read_s, compute_s``.
    """
    rows = []
    for device in devices:
        peak = device.peak("fp16")
        if peak is None:
            continue
        bandwidth, flop_per_s = device.configuration().bandwidth_bytes_per_s, peak.base("compute")
        for what, n_bytes, flop in (
            ("one token", limits.decode_step_bytes(stored), limits.decode_flop(stored)),
            (f"a prompt of {n_prompt:,} tokens", limits.prefill_bytes(stored, n_tokens=n_prompt), limits.prefill_flop(stored, n_tokens=n_prompt)),
        ):
            rows.append({"device": short_name(device), "what": what, "read_s": n_bytes / bandwidth, "compute_s": flop / flop_per_s})
    return pd.DataFrame(rows)


def context_frame(models: Sequence[Model], contexts: Sequence[int]) -> pd.DataFrame:
    """Bytes that a model, in the format most people run, takes with each context: weights, cache, states and buffers, no runtime and no system.

    Compute buffers are llama.cpp's own where they are kept, upper bounds elsewhere. A line ends where the model's training did, or with
    ``contexts``. Columns: ``name, label, n_ctx, total_bytes``.
    """
    rows = []
    for model in models:
        stored = variant(model, registry.load_format(usual_format(model)))
        trained = model.shape.n_ctx_train
        for n_ctx in sorted({min(n, trained) for n in contexts}):
            budget = fit.memory_budget(stored, n_ctx=n_ctx, available_bytes=0, compute=kept_compute(stored, n_ctx))
            rows.append({"name": model.id, "label": model.name, "n_ctx": n_ctx, "total_bytes": budget.total_bytes})
    return pd.DataFrame(rows)


def largest_context_frame(models: Sequence[Model], places: Sequence[Place], n_ctx: int) -> tuple[pd.DataFrame, dict[str, str], dict[str, str]]:
    """The largest context that surely fits each place, and what ``n_ctx`` tokens would take, trained for or not; for ``plots.table``."""
    rows = []
    for model in models:
        stored = variant(model, registry.load_format(usual_format(model)))
        budget = fit.memory_budget(stored, n_ctx=n_ctx, available_bytes=0, compute=kept_compute(stored, n_ctx))
        row: dict[str, object] = {
            "name": model.id,
            "model": f"{model.name} {stored.format}",
            "trained": model.shape.n_ctx_train,
            "asked": budget.total_bytes / 1e9,
            "cache": (budget.kv_cache_bytes + budget.recurrent_state_bytes) / 1e9,
        }
        for here in places:
            row[here.device_id] = largest_context(stored, here)
        rows.append(row)
    names = {p.device_id: f"largest on {short_name(p.device) if p.device else p.device_id} (tokens)" for p in places}
    headings = {"model": "model", "trained": "trained for (tokens)"} | names
    headings |= {"cache": f"cache at {n_ctx:,} tokens (GB)", "asked": f"all of it at {n_ctx:,} tokens (GB)"}
    formats = {"trained": "{:,}", "cache": "{:,.1f}", "asked": "{:,.0f}"} | dict.fromkeys(names, "{:,.0f}")
    return pd.DataFrame(rows), headings, formats


def stored_frame(models: Iterable[Model]) -> pd.DataFrame:
    """GB stored and GB read per token of each model in the format most people run. Columns: ``label, kind, stored_gb, read_gb``."""
    rows = []
    for model in models:
        stored = variant(model, registry.load_format(usual_format(model)))
        kind = "MoE" if model.shape.experts else "dense"
        rows.append({"label": model.name, "kind": kind, "stored_gb": stored.weight_bytes / 1e9, "read_gb": limits.decode_step_bytes(stored) / 1e9})
    return pd.DataFrame(rows)


def batch_formats_frame(model: Model, formats: Sequence[Format], here: Place, batches: Sequence[int]) -> pd.DataFrame:
    """Decode ceilings of one model in several formats over the batch, empty contexts, each with the best dense peak its kernels may reach.

    Where arithmetic takes over from bandwidth, that batch is a row too. Columns: ``label, batch, total, binding``.
    """
    assert here.bandwidth_bytes_per_s is not None
    rows = []
    for fmt in formats:
        stored = variant(model, fmt)
        peak, _ = here.peak(stored.arithmetic)
        turn = limits.compute_bound_batch(stored, bandwidth_bytes_per_s=here.bandwidth_bytes_per_s, peak_flop_per_s=peak, most=max(batches))
        for n in sorted({*batches, turn or batches[0]}):
            limit = limits.decode_limit(stored, bandwidth_bytes_per_s=here.bandwidth_bytes_per_s, peak_flop_per_s=peak, batch_size=n)
            rows.append({"label": fmt.id, "batch": n, "total": limit.ceiling_tok_per_s, "binding": limit.binding})
    return pd.DataFrame(rows)
