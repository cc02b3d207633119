"""Where records and limits meet: tidy frames, one row per thing that is shown.

A record holds samples and settings; the registry holds figures. Rates, shares and ceilings exist only here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

import pandas as pd

from nbutils import fit, limits, registry
from nbutils.errors import DataError
from nbutils.specs import Backend, Configuration, Device, Figure, Format, KernelRate, Machine, Model, Point, Record, Yardstick
from nbutils.tensors import bytes_read_per_token, weight_bytes_read

__all__ = [
    "CACHEABLE_BYTES",
    "CLEAR_RATIO",
    "DEVICE_FORMATS",
    "DEVICE_HEADINGS",
    "NOISY_RATIO",
    "OVERHEAD_SHARE",
    "SUMMARY_FORMATS",
    "SUMMARY_HEADINGS",
    "YARDSTICK_SLACK",
    "bandwidth_bytes_per_s",
    "budget_frame",
    "ceiling_lines",
    "ceiling_matrix",
    "check_against_ceiling",
    "decode_rows",
    "device_frame",
    "explain_decode",
    "explain_device",
    "explain_fit",
    "figure_frame",
    "file_table",
    "kernel_frame",
    "machine_frame",
    "measured_frame",
    "noise_line",
    "roofline_frame",
    "spread_of_yardsticks",
    "step_bytes",
    "summary_frame",
    "summary_headings",
    "summary_table",
    "wall",
    "wall_sentence",
    "wall_table",
    "yardstick_frame",
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
    """Bytes that one decode step of ``point`` must read: the weights it needs, and K and V at its middle depth."""
    model = record.model
    weights = bytes_read_per_token(((g.role, g.n_bytes) for g in model.tensors), model.n_expert, model.n_expert_used)
    return weights + (model.kv_bytes_per_token or 0) * (point.depth + point.n_tokens / 2)


def bandwidth_bytes_per_s(record: Record, *, best: bool = False) -> float | None:
    """Read bandwidth of the memory the weights lie in, by the better of the two methods.

    The median over the whole run, because decode rates are medians of the same run: both saw the same neighbours. With
    ``best`` the fastest sample, as STREAM reports it (McCalpin, 1995): what no honest rate can be above.
    """
    where = "cpu" if record.backend.device == "CPU" else "gpu"
    by_method: dict[str, list[float]] = {}
    for y in record.yardsticks:
        if y.kind == "read" and y.where == where:
            by_method.setdefault(y.method, []).extend(y.n_bytes / s for s in y.samples_s)
    return max((max(rates) if best else median(rates) for rates in by_method.values()), default=None)


def spread_of_yardsticks(record: Record) -> float:
    """How far the same yardstick, of bandwidth or of arithmetic, moved within the run: the largest ratio of its medians."""
    medians: dict[tuple[str, ...], list[float]] = {}
    for y in record.yardsticks:
        medians.setdefault((y.method,), []).append(median(y.samples_s))
    for k in record.kernels:
        medians.setdefault((k.tensor_type, k.placement), []).append(median(k.samples_s))
    return max((max(found) / min(found) for found in medians.values()), default=1.0)


def _cache_rate(record: Record) -> float | None:
    """Bytes of weights per second when they stay in cache: the arithmetic of the file's tensor types, as a token mixes them.

    Times add up, so rates combine harmonically. Types too rare to have been timed are taken to be like the others;
    ``None`` when most of what a token reads has no rate.
    """
    rates: dict[str, list[float]] = {}
    for k in record.kernels:
        if k.placement == "cache":
            rates.setdefault(k.tensor_type, []).extend(k.n_bytes / s for s in k.samples_s)
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

    ``tok_per_s`` is the median over repetitions, ``low`` and ``high`` the slowest and the fastest. Rates in bytes/s.
    """
    rows = []
    for record in records:
        bandwidth, arithmetic = bandwidth_bytes_per_s(record), _cache_rate(record)
        for point in record.points:
            rates = [point.n_tokens / sum(samples) for samples in point.repetitions_s]
            row = {
                "created": record.created,
                "device": record.machine.device,
                "backend": record.backend.device,
                "model": record.model.name,
                "kind": "MoE" if record.model.n_expert else "dense",
                "format": record.model.gguf_type,
                "phase": point.kind,
                "n_tokens": point.n_tokens,
                "depth": point.depth,
                "tok_per_s": median(rates),
                "low": min(rates),
                "high": max(rates),
                "file_bytes": record.model.file_bytes,
                "bandwidth": bandwidth,
                "arithmetic": arithmetic,
                "noise": spread_of_yardsticks(record),
            }
            rows.append(row | (_decode_columns(record, point, median(rates), bandwidth, arithmetic) if point.kind == "decode" else {}))
    if not rows:
        raise DataError("no records to show; 'nbutils book' measures this machine, 'nbutils records list' shows what there is")
    return pd.DataFrame(rows)


def _decode_columns(record: Record, point: Point, rate: float, bandwidth: float | None, arithmetic: float | None) -> dict[str, float | str | None]:
    n_bytes = step_bytes(record, point)
    return {
        "step_bytes": n_bytes,
        "achieved": n_bytes * rate,
        "ceiling_tok_per_s": None if bandwidth is None else limits.decode_ceiling_tok_per_s(bandwidth, n_bytes),
        "share": None if bandwidth is None else limits.mbu(step_bytes=n_bytes, itl_s=1 / rate, bandwidth_bytes_per_s=bandwidth),
        "wall": wall(achieved=n_bytes * rate, bandwidth=bandwidth, arithmetic=arithmetic),
    }


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
    fastest = bandwidth_bytes_per_s(record, best=True) or 0.0
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


def device_frame(device: Device, configuration: Configuration, models: Iterable[Model], *, n_ctx: int, n_prompt: int = 2048) -> pd.DataFrame:
    """One row per model and format: fit at ``n_ctx`` and the two ceilings at depth 0.

    The prefill ceiling uses the best dense peak that kernels for the format may reach: quantised weights may be
    multiplied in INT8.
    """
    rows = []
    for model in models:
        for format_id in model.formats:
            fmt = registry.load_format(format_id)
            budget = fit.memory_budget(model, fmt, n_ctx=n_ctx, usable_bytes=configuration.usable_bytes)
            flop = limits.prefill_flop(model, n_tokens=n_prompt)
            peak = device.peak(*fmt.arithmetic)
            rows.append(
                {
                    "model": model.name,
                    "kind": "MoE" if model.shape.experts else "dense",
                    "format": format_id,
                    "weight_bytes": budget.weight_bytes,
                    "weight_gb": budget.weight_bytes / 1e9,
                    "total_bytes": budget.total_bytes,
                    "verdict": budget.verdict,
                    "verdict_words": budget.verdict.replace("_", " "),
                    "headroom_bytes": budget.headroom_bytes,
                    "largest_context": fit.largest_context(model, fmt, usable_bytes=configuration.usable_bytes),
                    "decode_ceiling_tok_per_s": limits.decode_ceiling_tok_per_s(
                        configuration.bandwidth_bytes_per_s, limits.decode_step_bytes(model, fmt)
                    ),
                    "prefill_in": peak.dtype.upper() if peak else None,
                    "prefill_ceiling_tok_per_s": limits.prefill_ceiling_tok_per_s(peak.base("compute") if peak else None, flop, n_tokens=n_prompt),
                }
            )
    return pd.DataFrame(rows)


def budget_frame(budget: fit.MemoryBudget) -> pd.DataFrame:
    """The budget by line, in bytes; the last row is what is left."""
    lines = {
        "weights": budget.weight_bytes,
        "KV cache": budget.kv_cache_bytes,
        "compute buffer, estimated": budget.compute_buffer_bytes,
        "headroom": budget.headroom_bytes,
    }
    return pd.DataFrame({"part": list(lines), "bytes": list(lines.values())})


def explain_fit(model: Model, fmt: Format, configuration: Configuration, *, n_ctx: int) -> list[str]:
    """The arithmetic of the verdict, a line a step."""
    budget = fit.memory_budget(model, fmt, n_ctx=n_ctx, usable_bytes=configuration.usable_bytes)
    full, windowed = limits.kv_layers(model.shape)
    layers = f"{full} layers" + (f" and {windowed} with a window of {model.shape.sliding_window}" if windowed else "")
    return [
        f"weights         {budget.weight_bytes:>18,} bytes, {fmt.id}, summed over every tensor",
        f"KV cache        {budget.kv_cache_bytes:>18,} bytes, {n_ctx:,} tokens in F16, {layers}",
        f"compute buffer  {budget.compute_buffer_bytes:>18,} bytes, an estimate",
        f"total           {budget.total_bytes:>18,} bytes",
        f"usable          {budget.usable_bytes:>18,} bytes, {configuration.id}",
        f"headroom        {budget.headroom_bytes:>18,} bytes: {budget.verdict}",
    ]


def explain_decode(model: Model, fmt: Format, configuration: Configuration, *, depth: int) -> list[str]:
    """The arithmetic of the decode ceiling, a line a step."""
    weights = weight_bytes_read(model, fmt)
    kv = limits.kv_bytes_read(model.shape, depth)
    ceiling = limits.decode_ceiling_tok_per_s(configuration.bandwidth_bytes_per_s, weights + kv)
    return [
        f"weights read    {weights:>18,} bytes per token",
        f"K and V read    {kv:>18,} bytes per token at depth {depth:,}",
        f"bandwidth       {configuration.bandwidth_bytes_per_s:>18,.0f} bytes/s, nominal",
        f"decode ceiling  {ceiling:>18.2f} tok/s",
    ]


def decode_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The decode rows of a measured frame."""
    return frame[frame["phase"] == "decode"].reset_index(drop=True)


#: Columns of ``summary_frame`` and what a reader sees above them.
SUMMARY_HEADINGS = {
    "model": "model",
    "format": "format",
    "depth": "depth (tokens)",
    "prefill": "prefill (tok/s)",
    "decode": "decode (tok/s)",
    "ceiling": "decode ceiling (tok/s)",
    "share": "share of measured bandwidth",
    "wall": "what binds",
    "backend": "backend",
}
SUMMARY_FORMATS = {"depth": "{:,}", "prefill": "{:,.0f}", "decode": "{:,.1f}", "ceiling": "{:,.1f}", "share": "{:.0%}"}


def summary_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per model, format and depth: prefill and decode rates, and the share of the bandwidth measured beside them."""
    rows = []
    for (_, model, fmt, depth), part in frame.groupby(["backend", "model", "format", "depth"], sort=False):
        prefill, decode = part[part["phase"] == "prefill"], part[part["phase"] == "decode"]
        last = decode.iloc[-1] if len(decode) else part.iloc[-1]
        rows.append(
            {
                "model": model,
                "format": fmt,
                "depth": depth,
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
    """Headings of the summary; the depth is shown where there is more than one, or another than zero."""
    return {k: v for k, v in SUMMARY_HEADINGS.items() if k != "depth" or set(frame["depth"]) != {0}}


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
    peak = device.peak("fp16")
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
    "prefill_in": "computed in",
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

    for c in device.configurations:
        add(f"memory, {c.id}", c.memory)
        add(f"usable, {c.id}", c.usable)
        add(f"bandwidth, {c.id}", c.bandwidth)
        add(f"price, {c.id}" + (f", asked {c.price.asked}" if c.price else ""), c.price)
    for peak in device.peaks:
        accumulate = "accumulator not stated" if peak.accumulate == "unstated" else f"accumulated in {peak.accumulate.upper()}"
        add(f"{peak.dtype.upper()} {peak.basis}, {accumulate}", peak)
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


def ceiling_matrix(devices: Sequence[Device], models: Sequence[Model], *, n_ctx: int) -> tuple[pd.DataFrame, dict[str, str], dict[str, str]]:
    """Decode ceilings of every model, in the first K-quant or native format it has, on every device's largest configuration.

    Returns what ``plots.table`` takes: the frame, its headings, its number formats. ``None`` where it does not fit.
    """
    rows = []
    for device in devices:
        configuration = device.configuration()
        row: dict[str, Any] = {
            "device": device.name.split(",")[0].split(" (")[0],
            "memory": configuration.memory_bytes / 2**30,
            "bandwidth": configuration.bandwidth_bytes_per_s / 1e9,
        }
        for model in models:
            found = device_frame(device, configuration, [model], n_ctx=n_ctx)
            chosen = found[found["format"] == _usual_format(model)].iloc[0]
            row[model.id] = None if chosen["verdict"] == "does_not_fit" else chosen["decode_ceiling_tok_per_s"]
        rows.append(row)
    headings = {"device": "device", "memory": "GiB", "bandwidth": "GB/s"} | {m.id: f"{m.name} {_usual_format(m)} (tok/s)" for m in models}
    return pd.DataFrame(rows), headings, {"memory": "{:,.0f}", "bandwidth": "{:,.0f}"} | {m.id: "{:,.1f}" for m in models}


def _usual_format(model: Model) -> str:
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
