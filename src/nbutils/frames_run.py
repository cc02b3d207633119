"""One run looked at from all sides: its memory, its noise, its roofline, its experts, and what tuning tried."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

import numpy as np
import pandas as pd

from nbutils import frames, limits
from nbutils.specs import MemoryUse, Neighbours, Record, TriedThreads
from nbutils.tensors import bytes_read_per_token

__all__ = [
    "experts_frame",
    "memory_frame",
    "memory_lines",
    "memory_overview",
    "memory_table",
    "neighbour_lines",
    "noise_lines",
    "points_table",
    "roofline_points",
    "roofs_frame",
    "tuning_frame",
    "tuning_line",
]

#: Other programs or the host taking more than this share of the processors is worth a word.
BUSY_SHARE = 0.05

_CONTEXT = "context (kv, state, compute, output)"

Table = tuple[pd.DataFrame, dict[str, str], dict[str, str]]


# ── rates ─────────────────────────────────────────────────────────────────────────────────────────


def points_table(records: Sequence[Record]) -> Table:
    """Every point of the runs with its spread, variation, drift and warm-up."""
    frame = frames.measured_frame(records)
    for column in ("itl_median_s", "itl_p95_s"):
        frame[column.replace("_s", "_ms")] = 1e3 * frame[column] if column in frame else np.nan
    headings = {
        "model": "model",
        "format": "format",
        "phase": "phase",
        "n_tokens": "tokens",
        "depth": "depth",
        "n_seq": "sequences",
        "tok_per_s": "tok/s",
        "low": "slowest",
        "high": "fastest",
        "cv": "variation",
        "drift": "drift",
        "itl_median_ms": "ITL (ms)",
        "itl_p95_ms": "ITL p95 (ms)",
        "warmup_s": "warm-up (s)",
    }
    formats = {
        **dict.fromkeys(("tok_per_s", "low", "high"), "{:,.1f}"),
        **dict.fromkeys(("itl_median_ms", "itl_p95_ms"), "{:,.2f}"),
        "cv": "{:.1%}",
        "drift": "{:+.1%}",
        "warmup_s": "{:,.2f}",
        "depth": "{:,}",
    }
    return frame, {k: v for k, v in headings.items() if k != "n_seq" or set(frame["n_seq"]) != {1}}, formats


def noise_lines(record: Record) -> list[str]:
    """What disturbed a run, in sentences; the first says whether it was quiet."""
    return [frames.noise_line(frames.measured_frame([record])), *neighbour_lines(record.neighbours)]


def neighbour_lines(beside: Neighbours | None) -> list[str]:
    """What took the processors away during a run, in sentences; none where nothing did, or nobody looked."""
    if beside is None:
        return []
    found = []
    processors = beside.wall_s * beside.n_cpus
    if beside.others_s > BUSY_SHARE * processors:
        found.append(f"Other programs took {beside.others_s / processors:.0%} of the processors during the run.")
    if beside.stolen_s is not None and beside.stolen_s > BUSY_SHARE * processors:
        found.append(f"The host of this virtual machine took away {beside.stolen_s / processors:.0%} of its processor time.")
    return found


# ── memory ────────────────────────────────────────────────────────────────────────────────────────


def memory_frame(record: Record) -> pd.DataFrame:
    """Predicted, llama.cpp's own word and what the process really grew by, in bytes; empty without a memory record.

    The process grows in two steps: when the model is loaded and when the context is made and used. What llama.cpp allots
    on a GPU grows the driver's figure instead, which is added where a driver gives one.
    """
    use = record.memory
    if use is None:
        return pd.DataFrame(columns=["part", "predicted", "own", "grown"])
    own = {part: sum(b.n_bytes for b in use.own if b.what == part) for part in ("weights", "kv", "recurrent", "compute", "output")}
    rows: list[dict[str, Any]] = [
        {
            "part": part,
            "predicted": use.predicted_bytes.get(part),
            "own": n_bytes,
            "grown": _growth(use, "start", "loaded") if part == "weights" else None,
        }
        for part, n_bytes in own.items()
        if n_bytes or use.predicted_bytes.get(part)
    ]
    context = {"part": _CONTEXT, "own": sum(n for part, n in own.items() if part != "weights")}
    predicted = sum(n for part, n in use.predicted_bytes.items() if part != "weights")
    rows.append({**context, "predicted": predicted if "compute" in use.predicted_bytes else None, "grown": _growth(use, "before", "ran")})
    return pd.DataFrame(rows)


def _growth(use: MemoryUse, first: str, last: str) -> int | None:
    """How much the process and the GPUs grew between two stages."""
    by_name = {stage.stage: stage for stage in use.stages}
    if first not in by_name or last not in by_name:
        return None
    a, b = by_name[first], by_name[last]
    gpus = sum(after - before for before, after in zip(a.gpu_used_bytes, b.gpu_used_bytes, strict=False) if before is not None and after is not None)
    return b.resident_bytes - a.resident_bytes + gpus


def memory_table(record: Record) -> Table:
    """``memory_frame`` in MB, as ``plots.table`` takes it."""
    frame = memory_frame(record)
    columns = {"predicted": "predicted (MB)", "own": "llama.cpp's buffers (MB)", "grown": "process and driver grew by (MB)"}
    shown = frame.assign(**{name: pd.to_numeric(frame[name]) / 1e6 for name in columns})
    return shown, {"part": "part"} | columns, dict.fromkeys(columns, "{:,.1f}")


def memory_overview(records: Iterable[Record]) -> Table:
    """One row per record: the sums of the three columns in MB, and what there is to add in a word."""
    rows = []
    for record in records:
        frame, use = memory_frame(record), record.memory
        if use is None or frame.empty:
            continue
        both = frame[frame["part"].isin(("weights", _CONTEXT))]
        sums = {name: pd.to_numeric(both[name]).sum(min_count=2) / 1e6 for name in ("predicted", "own", "grown")}
        copied = sum(b.n_bytes for b in use.own if "REPACK" in b.where)
        rows.append({"model": record.model.name, "format": record.model.gguf_type, "n_ctx": use.n_ctx, **sums, "copied": copied / 1e6})
    columns = {
        "predicted": "predicted (MB)",
        "own": "llama.cpp's buffers (MB)",
        "copied": "of these a second copy of weights (MB)",
        "grown": "process and driver grew by (MB)",
    }
    frame = pd.DataFrame(rows, columns=["model", "format", "n_ctx", *columns])
    return frame, {"model": "model", "format": "format", "n_ctx": "context"} | columns, dict.fromkeys(columns, "{:,.1f}") | {"n_ctx": "{:,}"}


def memory_lines(record: Record) -> list[str]:
    """What explains the differences between the three columns, each with its figure."""
    use = record.memory
    if use is None:
        return []
    stages = {stage.stage: stage for stage in use.stages}
    by_place: dict[str, int] = {}
    for buffer in use.own:
        if buffer.what == "weights":
            by_place[buffer.where] = by_place.get(buffer.where, 0) + buffer.n_bytes
    lines = []
    mapped = sum(n for where, n in by_place.items() if where.endswith("_Mapped"))
    repacked = sum(n for where, n in by_place.items() if "REPACK" in where)
    if repacked:
        lines.append(
            f"Weights stand twice: {mapped / 1e6:,.1f} MB are the file mapped into memory, {repacked / 1e6:,.1f} MB a copy in the layout this"
            " processor multiplies fastest. The system may drop the mapped original of what was copied."
        )
    elif on_gpu := sum(n for where, n in by_place.items() if not where.startswith("CPU") and not where.endswith(("_Host", "_Mapped"))):
        first, then = (stages[s].gpu_used_bytes if s in stages else () for s in ("start", "loaded"))
        grown = sum(b - a for a, b in zip(first, then, strict=False) if a is not None and b is not None)
        driver = f", whose driver's figure grew by {grown / 1e6:,.1f} MB; the rest is its own context, kernels, other programs" if grown else ""
        lines.append(f"Of the weights {on_gpu / 1e6:,.1f} MB went to the GPU{driver}.")
    elif mapped:
        lines.append(f"The weights are the file itself, mapped into memory: {mapped / 1e6:,.1f} MB become resident as they are read.")
    if use.compute_basis == "upper_bound":
        lines.append("The predicted compute buffer is an upper bound, as for every context that llama.cpp was not asked about.")
    if {"loaded", "before"} <= stages.keys():
        between = stages["before"].resident_bytes - stages["loaded"].resident_bytes
        before, loaded = stages["before"].file_bytes, stages["loaded"].file_bytes
        files = "" if before is None or loaded is None else f", of which {(before - loaded) / 1e6:+,.1f} MB mirror files"
        lines.append(
            f"Between loading and this context the process changed by {between / 1e6:+,.1f} MB{files}:"
            " pages of weights read by earlier points, kept prompts, the yardsticks' remains."
        )
    if {"before", "context", "ran"} <= stages.keys():
        made = stages["context"].resident_bytes - stages["before"].resident_bytes
        used = stages["ran"].resident_bytes - stages["context"].resident_bytes
        lines.append(
            f"Making the context added {made / 1e6:,.1f} MB, using it {used / 1e6:+,.1f} MB: a buffer counts for the process only where it has"
            " been written to, and threads, graphs and prompts kept for the next repetition come on top."
        )
    if use.stages:
        lines.append(f"Before the model there were {use.stages[0].resident_bytes / 1e6:,.1f} MB: Python and the libraries.")
    return lines


# ── roofline ──────────────────────────────────────────────────────────────────────────────────────


def _active_elements(record: Record) -> int:
    """Weights that one token is multiplied with."""
    return bytes_read_per_token(((g.role, g.n_elements) for g in record.model.tensors), record.model.n_expert, record.model.n_expert_used)


def roofline_points(records: Iterable[Record]) -> pd.DataFrame:
    """Each point at depth 0 in the roofline's plane: FLOP per byte of weights, and FLOP per second achieved.

    Two FLOP per weight and token; attention is left out, which is why deep points are. Prefill reads the weights once per
    micro-batch.
    """
    rows = []
    for record in records:
        for point in record.points:
            if point.depth:
                continue
            flop_per_token = 2 * _active_elements(record)
            tokens = frames.step_tokens(record, point)
            rate = median(point.n_seq * point.n_tokens / sum(samples) for samples in point.repetitions_s)
            rows.append(
                {
                    "model": record.model.name,
                    "kind": "MoE" if record.model.n_expert else "dense",
                    "format": record.model.gguf_type,
                    "phase": point.kind,
                    "tokens": tokens,
                    "intensity": tokens * flop_per_token / frames.step_weight_bytes(record, point),
                    "flop_per_s": rate * flop_per_token,
                }
            )
    return pd.DataFrame(rows, columns=["model", "kind", "format", "phase", "tokens", "intensity", "flop_per_s"])


def roofs_frame(records: Sequence[Record]) -> pd.DataFrame:
    """The roofs measured in the same runs: bandwidth in bytes/s, and FLOP/s by tensor type for one vector and for many.

    Columns ``kind`` (``bandwidth``, ``vector``, ``matrix``), ``tensor_type``, ``rate``: the median over all samples.
    """
    bandwidths = [b for b in (frames.bandwidth_bytes_per_s(r) for r in records) if b]
    rows: list[dict[str, Any]] = [{"kind": "bandwidth", "tensor_type": "", "rate": median(bandwidths)}] if bandwidths else []
    rates: dict[tuple[str, str], list[float]] = {}
    for k in (k for r in records for k in r.kernels):
        kind = "matrix" if k.n_batch > 1 else "vector" if k.placement == "cache" else ""
        if kind:
            rates.setdefault((kind, k.tensor_type), []).extend(2 * k.n_rows * k.n_columns * k.n_batch / s for s in k.samples_s)
    rows += [{"kind": kind, "tensor_type": tensor_type, "rate": median(found)} for (kind, tensor_type), found in rates.items()]
    return pd.DataFrame(rows, columns=["kind", "tensor_type", "rate"])


# ── experts ───────────────────────────────────────────────────────────────────────────────────────


def experts_frame(records: Iterable[Record]) -> pd.DataFrame:
    """For each batch of the MoE records: distinct experts counted and expected, and the rate of all sequences."""
    rows = []
    for record in records:
        model = record.model
        for point in (p for p in record.points if p.kind == "decode"):
            rates = [point.n_seq * point.n_tokens / sum(samples) for samples in point.repetitions_s]
            kind = "MoE" if model.n_expert else "dense"
            row: dict[str, Any] = {"model": model.name, "kind": kind, "format": model.gguf_type, "n_seq": point.n_seq, "depth": point.depth}
            if model.n_expert:
                row |= {
                    "n_expert": model.n_expert,
                    "expected": limits.distinct_experts(model.n_expert, model.n_expert_used, point.n_seq),
                    "counted": float(np.mean(point.distinct_experts)) if point.distinct_experts else None,
                    "counted_low": min(point.distinct_experts, default=None),
                    "counted_high": max(point.distinct_experts, default=None),
                }
            rows.append(row | {"tok_per_s": median(rates), "low": min(rates), "high": max(rates), "step_bytes": frames.step_bytes(record, point)})
    return pd.DataFrame(rows)


# ── threads ───────────────────────────────────────────────────────────────────────────────────────


def tuning_frame(tried: Sequence[TriedThreads]) -> pd.DataFrame:
    """One row per number of threads: median rates and the slowest and fastest round."""
    rows = []
    for t in tried:
        decode, prefill = ([n / s for s in samples] for n, samples in ((t.decode_tokens, t.decode_s), (t.prefill_tokens, t.prefill_s)))
        rows.append(
            {
                "threads": t.n_threads,
                "decode": median(decode),
                "decode_low": min(decode),
                "decode_high": max(decode),
                "prefill": median(prefill),
                "prefill_low": min(prefill),
                "prefill_high": max(prefill),
            }
        )
    return pd.DataFrame(rows)


def tuning_line(tried: Sequence[TriedThreads], chosen: int) -> str:
    """What was tried and what was chosen, in a sentence."""
    names = ", ".join(str(t.n_threads) for t in tried)
    return f"Tried {names} threads in {len(tried[0].decode_s)} interleaved rounds; decode is fastest with {chosen}."
