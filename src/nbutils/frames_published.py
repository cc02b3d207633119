"""What others measured, each rate beside the ceiling of the machine it was measured on: tidy frames and tables.

A ceiling comes from the bandwidth that the maker names and from the bytes that a token reads: exact ones by the registry's shape and format,
or, where the registry has neither, those that the source prints.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from nbutils import limits, registry
from nbutils.errors import DataError, UnknownId, did_you_mean
from nbutils.places import place
from nbutils.specs import Configuration, Device, Model, PublishedRate, PublishedSource
from nbutils.tensors import variant

__all__ = [
    "FAMILIES",
    "LARGE_GB",
    "SHALLOW_TOKENS",
    "FixedCost",
    "above_table",
    "best_table",
    "depth_table",
    "family_table",
    "fixed_cost",
    "fixed_cost_rows",
    "fixed_cost_table",
    "lawful",
    "own_frame",
    "own_table",
    "published_frame",
    "published_table",
    "sources_table",
]

#: What the memory of a machine is like, which is what decides here.
FAMILIES = {
    "nvidia-discrete": "NVIDIA card",
    "nvidia-unified": "NVIDIA unified",
    "apple": "Apple",
    "amd-discrete": "AMD card",
    "amd-unified": "AMD unified",
    "intel": "Intel card",
    "qualcomm": "Qualcomm",
}
#: Up to here a context is short: its K and V are a small part of what a token reads.
SHALLOW_TOKENS = 2500
#: From here a dense read is large: what a layer costs besides is a small part of its time.
LARGE_GB = 3.0

#: What ``plots.table`` takes: a frame, headings by column, formats by column.
_Table = tuple[pd.DataFrame, dict[str, str], dict[str, str]]


def published_frame(device: str = "", model: str = "", phase: Literal["decode", "prefill"] = "decode") -> pd.DataFrame:
    """One row per published rate of ``phase``, of all devices and models or of one of each.

    ``ceiling_tok_per_s`` is what nominal bandwidth allows for decode, and for prefill what the best dense peak allows that kernels for the
    format may reach; empty where that is not known. ``share`` is the measured part of it. ``UnknownId`` for a name the registry lacks.
    """
    _check(device, registry.device_ids(), "device")
    _check(model, registry.model_ids(), "model")
    rates = list(_all_rates())
    wanted = [_row(s, r) for s, r in rates if r.phase == phase and device in ("", r.device) and model in ("", r.model)]
    # Without any row there are still columns.
    return pd.DataFrame(wanted) if wanted else pd.DataFrame([_row(*rates[0])]).iloc[:0]


def _check(wanted: str, known: list[str], what: str) -> None:
    if wanted and wanted not in known:
        raise UnknownId(f"no {what} {wanted!r} in data/{what}s{did_you_mean(wanted, known)}")


def _all_rates() -> Iterator[tuple[PublishedSource, PublishedRate]]:
    for source in registry.load_published():
        for rate in source.rows:
            yield source, rate


def _row(source: PublishedSource, rate: PublishedRate) -> dict[str, Any]:
    device = registry.load_device(rate.device)
    configuration = registry.load_configuration(device, rate.configuration)
    model = registry.load_model(rate.model) if rate.model else None
    step_bytes = registry.published_step_bytes(rate)
    ceiling: float | None
    if rate.phase == "decode":
        ceiling = limits.decode_ceiling_tok_per_s(configuration.bandwidth_bytes_per_s, step_bytes, batch_size=rate.batch_size)
    else:
        ceiling = _prefill_ceiling(rate, device, configuration, model)
    return {
        "device": rate.device,
        "device_name": device.name,
        "family": device.family,
        "family_name": FAMILIES[device.family],
        "configuration": rate.configuration,
        "model": rate.model or "",
        "model_name": rate.model_name or (model.name if model else ""),
        "kind": rate.kind or ("MoE" if model and model.shape.experts else "dense"),
        "format": rate.format,
        "backend": rate.backend,
        "engine": rate.engine,
        "version": rate.version,
        "n_prompt": rate.n_prompt,
        "n_gen": rate.n_gen,
        "depth": rate.depth,
        "batch_size": rate.batch_size,
        "step_gb": step_bytes / 1e9,
        "n_layer": rate.n_layer or (model.shape.n_layer if model else None),
        "bandwidth_gb_per_s": configuration.bandwidth_bytes_per_s / 1e9,
        "tok_per_s": rate.tok_per_s,
        "stddev": rate.stddev,
        "ceiling_tok_per_s": ceiling,
        "share": None if ceiling is None else rate.tok_per_s / ceiling,
        "above_because": rate.above_because,
        "exact": rate.weight_gb_read is None,
        "date": rate.date,
        "note": rate.note,
        "source": source.id,
        "title": source.title,
        "url": source.url,
    }


def _prefill_ceiling(rate: PublishedRate, device: Device, configuration: Configuration, model: Model | None) -> float | None:
    """Tokens per second that arithmetic allows; ``None`` where the registry lacks the shape, the format or the peak."""
    if model is None or rate.weight_gb_read is not None or rate.batch_size > 1:
        return None
    stored = variant(model, registry.load_format(rate.format))
    peak, _ = place(device, configuration).peak(stored.arithmetic)
    limit = limits.prefill_limit(
        stored, n_tokens=rate.n_prompt, bandwidth_bytes_per_s=configuration.bandwidth_bytes_per_s, peak_flop_per_s=peak, depth=rate.depth
    )
    return limit.ceiling_tok_per_s


def lawful(frame: pd.DataFrame, *, shallow: bool = False) -> pd.DataFrame:
    """The rows of one sequence that a ceiling bounds: none that is above it for a reason of its own; with ``shallow``, short contexts only."""
    kept = (frame["above_because"] == "") & (frame["batch_size"] == 1)
    return frame[kept & (frame["depth"] <= SHALLOW_TOKENS) if shallow else kept].reset_index(drop=True)


def own_frame(measured: pd.DataFrame) -> pd.DataFrame:
    """The decode rows of ``frames.measured_frame`` as rows of ``published_frame``, as far as they have the same columns.

    Their machine is none of the registry, so their ceiling is that of the bandwidth measured beside them, which is lower than a nominal one.
    """
    rows = measured[(measured["phase"] == "decode") & (measured["n_seq"] == 1)].dropna(subset=["ceiling_tok_per_s"])
    return pd.DataFrame(
        {
            "model_name": rows["kind"].map({"MoE": "mixture of experts", "dense": "dense"}),
            "kind": rows["kind"],
            "format": rows["format"],
            "depth": rows["depth"],
            "step_gb": rows["step_bytes"] / 1e9,
            "tok_per_s": rows["tok_per_s"],
            "ceiling_tok_per_s": rows["ceiling_tok_per_s"],
            "share": rows["share"],
            "date": rows["created"].map(lambda created: created.date().isoformat()),
        }
    ).drop_duplicates(ignore_index=True)


# ── tables ────────────────────────────────────────────────────────────────────────────────────────


def published_table(frame: pd.DataFrame) -> _Table:
    """Published rates as ``plots.table`` takes them, best share first; ``links={"title": "url"}`` makes the sources links.

    A bound on bytes that are not the registry's own has a tilde in front of its share.
    """
    rows = frame.sort_values(["share"], ascending=False, kind="stable").reset_index(drop=True)
    shares = [f"{'' if exact else '~'}{share:.0%}" if pd.notna(share) else None for exact, share in zip(rows["exact"], rows["share"], strict=True)]
    prefill = bool((rows["n_prompt"] > 0).all()) and len(rows) > 0
    shown = rows.assign(
        runs=[
            engine if backend in _SAID_BY.get(engine, ()) else f"{engine}, {backend}"
            for engine, backend in zip(rows["engine"], rows["backend"], strict=True)
        ],
        share_words=shares,
        note_words=[above or note for above, note in zip(rows["above_because"], rows["note"], strict=True)],
    )
    headings = {
        "device_name": "device",
        "model_name": "model",
        "format": "format",
        "runs": "engine",
        **({"n_prompt": "prompt (tokens)"} if prefill else {}),
        "depth": "depth (tokens)",
        "tok_per_s": "measured (tok/s)",
        "ceiling_tok_per_s": "ceiling (tok/s)",
        "share_words": "share",
        "date": "date",
        "title": "source",
        **({"note_words": "note"} if any(shown["note_words"]) else {}),
    }
    return (
        shown,
        headings,
        {"n_prompt": "{:,}", "depth": "{:,}", "tok_per_s": "{:,.4g}", "ceiling_tok_per_s": "{:,.4g}"}
        if prefill
        else {
            "depth": "{:,}",
            "tok_per_s": "{:,.4g}",
            "ceiling_tok_per_s": "{:,.4g}",
        },
    )


#: Backends that go without saying.
_SAID_BY = {"mlx": ("metal",), "vllm": ("cuda",), "calm": ("cuda",), "sglang": ("cuda",), "tensorrt-llm": ("cuda",)}


def own_table(own: pd.DataFrame) -> _Table:
    """Own rates beside the ceiling of the bandwidth that was measured in the same run."""
    headings = {
        "model_name": "stand-in",
        "format": "format",
        "depth": "depth (tokens)",
        "step_gb": "read per token (GB)",
        "tok_per_s": "measured (tok/s)",
        "ceiling_tok_per_s": "ceiling of measured bandwidth (tok/s)",
        "share": "share",
    }
    return (
        own,
        headings,
        {
            "depth": "{:,}",
            "step_gb": "{:.2f}",
            "tok_per_s": "{:,.1f}",
            "ceiling_tok_per_s": "{:,.1f}",
            "share": "{:.0%}",
        },
    )


def family_table(frame: pd.DataFrame) -> _Table:
    """Shares at short context by family of device: dense models that read much, dense ones that read little, mixtures of experts."""
    rows = lawful(frame, shallow=True).dropna(subset=["share"])
    kinds = {
        "large": (rows["kind"] == "dense") & (rows["step_gb"] >= LARGE_GB),
        "small": (rows["kind"] == "dense") & (rows["step_gb"] < LARGE_GB),
        "moe": rows["kind"] == "MoE",
    }
    found = []
    for name, part in rows.groupby("family_name"):
        row: dict[str, Any] = {"family": name, "machines": part["device"].nunique(), "rates": len(part), "best": part["share"].max()}
        found.append(row | {kind: part.loc[chosen, "share"].median() for kind, chosen in kinds.items()})
    headings = {
        "family": "family",
        "machines": "machines",
        "rates": "rates",
        "large": f"dense, {LARGE_GB:g} GB and more",
        "small": f"dense, below {LARGE_GB:g} GB",
        "moe": "mixture of experts",
        "best": "best of all",
    }
    return (
        pd.DataFrame(found, columns=list(headings)).sort_values("large", ascending=False).reset_index(drop=True),
        headings,
        dict.fromkeys(("large", "small", "moe", "best"), "{:.0%}"),
    )


def best_table(frame: pd.DataFrame) -> _Table:
    """The rate of each device that comes closest to its ceiling, closest first."""
    rows = lawful(frame).dropna(subset=["share"])
    best = rows.loc[rows.groupby("device")["share"].idxmax()]
    best = best.assign(rates=best["device"].map(rows["device"].value_counts()))
    shown, headings, formats = published_table(best)
    kept = {k: v for k, v in headings.items() if k not in ("depth", "date", "note_words")}
    return shown, {"device_name": "device", "rates": "rates"} | kept, {k: v for k, v in formats.items() if k in kept}


def above_table(frame: pd.DataFrame) -> _Table:
    """The rates above their ceilings, and why they can be."""
    rows = frame[frame["above_because"] != ""].sort_values("share").reset_index(drop=True)
    headings = {
        "device_name": "device",
        "model_name": "model",
        "format": "format",
        "tok_per_s": "printed (tok/s)",
        "ceiling_tok_per_s": "ceiling (tok/s)",
        "share": "times the ceiling",
        "above_because": "why",
        "title": "source",
    }
    return rows, headings, {"tok_per_s": "{:,.4g}", "ceiling_tok_per_s": "{:,.4g}", "share": "{:.1f}"}


def depth_table(frame: pd.DataFrame, *, least: int = 8192) -> _Table:
    """The same model by the same people at a short context and at one of ``least`` tokens or more: what is left of the ceiling and of the rate."""
    keys = ["device_name", "model_name", "kind", "format", "engine", "backend", "version", "source"]
    rows = []
    for key, part in lawful(frame).groupby(keys, sort=False):
        short, deep = part.loc[part["depth"].idxmin()], part.loc[part["depth"].idxmax()]
        if short["depth"] <= SHALLOW_TOKENS and deep["depth"] >= least:
            rows.append(
                dict(zip(keys, key, strict=True))
                | {
                    "depth": deep["depth"],
                    "rate_left": deep["tok_per_s"] / short["tok_per_s"],
                    "ceiling_left": deep["ceiling_tok_per_s"] / short["ceiling_tok_per_s"],
                    "share_short": short["share"],
                    "share_deep": deep["share"],
                }
            )
    headings = {
        "device_name": "device",
        "model_name": "model",
        "format": "format",
        "depth": "depth (tokens)",
        "ceiling_left": "of the ceiling is left",
        "rate_left": "of the rate is left",
        "share_short": "share, short",
        "share_deep": "share, deep",
    }
    found = pd.DataFrame(rows, columns=[*keys, "depth", "rate_left", "ceiling_left", "share_short", "share_deep"])
    return (
        found.sort_values("ceiling_left").reset_index(drop=True),
        headings,
        {"depth": "{:,}"} | dict.fromkeys(("ceiling_left", "rate_left", "share_short", "share_deep"), "{:.0%}"),
    )


def sources_table() -> _Table:
    """Every source: what was run there, what to beware of, how many rates were taken; ``links={"title": "url"}`` makes them links."""
    rows = [
        {"title": s.title, "url": s.url, "what": s.what, "cautions": " ".join(s.cautions), "rates": len(s.rows), "seen": s.seen.isoformat()}
        for s in registry.load_published()
    ]
    headings = {"title": "source", "what": "what was run", "cautions": "beware", "rates": "rates", "seen": "read on"}
    return pd.DataFrame(rows), headings, {"rates": "{:,}"}


# ── why small models are far from their ceilings ──────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedCost:
    """A machine in two constants: the share of its bandwidth that reading gets, and what each layer costs besides, in seconds."""

    device: str
    engine: str
    name: str
    bandwidth_bytes_per_s: float
    read_share: float
    layer_s: float
    #: How far the two constants are off the rates they were found from, by median, as a share.
    median_error: float
    n_rates: int

    def seconds(self, step_bytes: float, n_layer: float) -> float:
        """Time of one token."""
        return step_bytes / (self.read_share * self.bandwidth_bytes_per_s) + n_layer * self.layer_s


def fixed_cost_rows(frame: pd.DataFrame, device: str, engine: str) -> pd.DataFrame:
    """The dense rates of one device and engine at short context."""
    rows = lawful(frame, shallow=True)
    return rows[(rows["device"] == device) & (rows["kind"] == "dense") & (rows["engine"] == engine)].reset_index(drop=True)


def fixed_cost(frame: pd.DataFrame, device: str, engine: str) -> FixedCost:
    """Least squares over these rates: ``t = bytes / (share x bandwidth) + layers x cost``, every rate counting alike in relative terms.

    An explanation of the rates it was found from; nothing is foretold by it. ``DataError`` with fewer than four of them, or where the best cost
    is below zero.
    """
    rows = fixed_cost_rows(frame, device, engine)
    if len(rows) < 4:
        raise DataError(f"{device} has {len(rows)} dense rates of {engine} at short context; two constants need four at least")
    bandwidth = float(rows["bandwidth_gb_per_s"].iloc[0]) * 1e9
    measured_s = 1 / rows["tok_per_s"].to_numpy(float)
    parts = np.column_stack([rows["step_gb"].to_numpy(float) * 1e9 / bandwidth, rows["n_layer"].to_numpy(float)])
    (slowness, layer_s), *_ = np.linalg.lstsq(parts / measured_s[:, None], np.ones(len(rows)), rcond=None)
    if slowness <= 0 or layer_s < 0:
        raise DataError(f"{device}: no cost per layer of {engine} can be told from its {len(rows)} dense rates; it would be negative")
    errors = np.abs(parts @ np.array([slowness, layer_s]) / measured_s - 1)
    return FixedCost(
        device=device,
        engine=engine,
        name=str(rows["device_name"].iloc[0]),
        bandwidth_bytes_per_s=bandwidth,
        read_share=float(1 / slowness),
        layer_s=float(layer_s),
        median_error=float(np.median(errors)),
        n_rates=len(rows),
    )


def fixed_cost_table(costs: Iterable[FixedCost]) -> _Table:
    """The two constants of each machine, and how many bytes it could have read in the time that a model of 32 layers costs besides."""
    rows = [
        {
            "name": c.name,
            "engine": c.engine,
            "n_rates": c.n_rates,
            "read_share": c.read_share,
            "layer_us": 1e6 * c.layer_s,
            "lost_gb": 32 * c.layer_s * c.bandwidth_bytes_per_s / 1e9,
            "median_error": c.median_error,
        }
        for c in costs
    ]
    headings = {
        "name": "device",
        "engine": "engine",
        "n_rates": "rates",
        "read_share": "bandwidth that reading gets",
        "layer_us": "cost of a layer besides (µs)",
        "lost_gb": "32 layers cost as much as reading (GB)",
        "median_error": "off by (median)",
    }
    formats = {"n_rates": "{:,}", "read_share": "{:.0%}", "layer_us": "{:.0f}", "lost_gb": "{:.1f}", "median_error": "{:.0%}"}
    return pd.DataFrame(rows), headings, formats
