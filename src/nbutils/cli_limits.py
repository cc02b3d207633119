"""``nbutils fit``, ``limits``, ``need``, ``devices``, ``models``, ``buffers``: what is possible, without measuring anything."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from nbutils import fit, frames, frames_predict, limits, oracle, places, probe, registry, subjects
from nbutils.errors import UnknownId, UsageError
from nbutils.explain import ASSUMED, ASSUMPTIONS, Line, cost_lines, explain, fit_lines, limit_lines
from nbutils.places import Place
from nbutils.printing import AsJson, err, out, print_json, rows_table
from nbutils.specs import Device, Model
from nbutils.subjects import Subject
from nbutils.tensors import Variant, active_parameters, parameters

__all__ = ["register"]

#: Two DDR5-5600 modules of 64 bits: 5600e6 x 2 x 8. What a desktop usually reads weights with that its GPU has no room for.
HOST_GB_PER_S = 89.6
#: 200 Gb/s Ethernet, as two DGX Spark are linked. Thunderbolt 5 is 10.
LINK_GB_PER_S = 25.0
#: Up to so many rows llama.cpp is asked for the exact largest context of each; a table over everything uses what is kept.
_ASK_ROWS = 8

Named = Annotated[str, typer.Argument(help="The same as --model.", show_default=False)]
ModelName = Annotated[
    str, typer.Option("--model", "-m", help="A model id ('nbutils models' lists them), a .gguf file, or the URL of one; only its header is read.")
]
DeviceName = Annotated[str, typer.Option("--device", "-d", help="A device id ('nbutils devices' lists them), or 'this'; all when left out.")]
Memory = Annotated[float | None, typer.Option("--memory-gb", help="Only the configuration sold with this much memory.")]
Configuration = Annotated[str, typer.Option("--configuration", help="Only the configuration with this id.")]
FormatName = Annotated[str, typer.Option("--format", "-f", help="A format of data/formats.yaml, such as Q4_K_M; all of the model when left out.")]
KvType = Annotated[str, typer.Option("--kv-type", help="Cache type: f16, q8_0 or q4_0 (llama.cpp); f16 or fp8 (vLLM); f16, q8 or q4 (MLX).")]
Batch = Annotated[int, typer.Option("--batch", help="Sequences at once; each has the whole context.")]
Explain = Annotated[bool, typer.Option("--explain", help="Show the arithmetic line by line, with units and sources.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command("fit")(fit_command)
    app.command("limits")(limits_command)
    app.command("need")(need_command)
    app.command("devices")(devices_command)
    app.command("models")(models_command)
    app.command("buffers")(buffers_command)


def _places(device: str, memory_gb: float | None, configuration: str) -> list[Place]:
    if memory_gb is not None and not memory_gb > 0:
        raise UsageError(f"--memory-gb is {memory_gb:g}; it must be above 0")
    if device:
        return places.find(device, memory_gb=memory_gb, configuration=configuration)
    if configuration:
        raise UsageError(f"--configuration {configuration!r} needs --device, whose configuration it is")
    found = [p for p in places.all_places() if memory_gb is None or p.memory_gb == memory_gb]
    if not found:
        sizes = ", ".join(f"{n:g}" for n in sorted({p.memory_gb for p in places.all_places()}))
        raise UsageError(f"no device of the registry is sold with {memory_gb:g} GB; sizes are {sizes}")
    return found


def _model(named: str, model: str) -> str:
    if named and model and named != model:
        raise UsageError(f"{named!r} and --model {model!r} are both given; give one")
    if not (named or model):
        raise UsageError("no model is named: give --model with an id ('nbutils models' lists them), a .gguf file or its URL")
    return named or model


def _wanted(subject: Subject, place: Place, format_id: str, kv_type: str) -> bool:
    """Whether a row makes sense where it was not asked for by name: an engine made for the machine, with such a cache."""
    engine = subject.variant.engine
    return bool(format_id) or subject.model is None or (place.runs(engine) and kv_type in registry.CACHE_TYPES[engine])


def _check_kv_type(kv_type: str, found: list[Subject], where: list[Place]) -> None:
    """``UnknownId`` where no engine that would be shown has such a cache."""
    engines = list(dict.fromkeys(s.variant.engine for s in found if any(s.model is None or p.runs(s.variant.engine) for p in where)))
    if engines and not any(kv_type in registry.CACHE_TYPES[engine] for engine in engines):
        raise UnknownId("; ".join(f"{engine} has no cache type {kv_type!r}; it has {', '.join(registry.CACHE_TYPES[engine])}" for engine in engines))


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise UsageError(f"{name} is {value}; it must be at least {least}")
    if value > 10**9:
        raise UsageError(f"{name} is {value}; nothing is that long, and the most is 1,000,000,000")


# ── fit ───────────────────────────────────────────────────────────────────────────────────────────

_FIT_COLUMNS = {
    "device": ("device", "{}"),
    "memory_gb": ("GB", "{:g}"),
    "format": ("format", "{}"),
    "weights": ("weights", "{:,.2f}"),
    "kv": ("KV cache", "{:,.2f}"),
    "buffers": ("buffers", "{:,.2f}"),
    "total": ("total", "{:,.2f}"),
    "available": ("available", "{:,.2f}"),
    "verdict": ("verdict", "{}"),
    "max_ctx": ("max ctx", "{:,}"),
    "expected_tok_per_s": ("tok/s", "{:,.1f}"),
}


def fit_command(
    named: Named = "",
    model: ModelName = "",
    device: DeviceName = "",
    memory_gb: Memory = None,
    configuration: Configuration = "",
    format_id: FormatName = "",
    n_ctx: Annotated[int, typer.Option("--ctx", help="Tokens of context to make room for, for each sequence.")] = 8192,
    kv_type: KvType = "f16",
    batch: Batch = 1,
    backend: Annotated[
        str, typer.Option("--backend", help="Whose compute buffer to ask llama.cpp for: cpu, cuda, metal …; this build's own when left out.")
    ] = "",
    machines: Annotated[
        int, typer.Option("--machines", min=1, max=2, help="2 shows what two of them, linked, can hold and how fast they could be.")
    ] = 1,
    link_gb_s: Annotated[float, typer.Option("--link-gb-s", help="Bandwidth of that link in GB/s.")] = LINK_GB_PER_S,
    host_gb_s: Annotated[
        float, typer.Option("--host-gb-s", help="Memory bandwidth of the processor beside a graphics card, for what the card has no room for.")
    ] = HOST_GB_PER_S,
    show: Explain = False,
    as_json: AsJson = False,
) -> None:
    """Will it fit: weights, caches and buffers against what the device lets a program use.

    Leave out --device or --format to see all of them. A discrete card without enough room is shown with what could be left
    in the processor's memory, and what that costs.

    Examples: nbutils fit -m llama-3.3-70b -d dgx-spark -f Q4_K_M --ctx 32768;  nbutils fit -m model.gguf -d this
    """
    model = _model(named, model)
    _at_least("--ctx", n_ctx, 1)
    _at_least("--batch", batch, 1)
    for name, rate in (("--link-gb-s", link_gb_s), ("--host-gb-s", host_gb_s)):
        if not 0 < rate <= 1e9:
            raise UsageError(f"{name} is {rate:g}; it must be above 0 and at most 1,000,000,000")
    where = _places(device, memory_gb, configuration)
    with err.status("reading …") as status, subjects.find_all(model, (format_id,) if format_id else ()) as found:
        asked = _backend(backend, found)
        _check_kv_type(kv_type, found, where)
        cells = [(s, p) for s in found for p in where if _wanted(s, p, format_id, kv_type)]
        may_solve = len(cells) <= _ASK_ROWS
        rows = []
        for subject, place in cells:
            row = _fit_row(subject, place, n_ctx=n_ctx, kv_type=kv_type, batch=batch, backend=asked, may_solve=may_solve, say=status.update)
            ways = _ways_out(subject, place, row, machines=machines, link_bytes_per_s=link_gb_s * 1e9, host_bytes_per_s=host_gb_s * 1e9)
            rows.append(row | ways)
        expected = frames_predict.expected_of([(subject.variant, place, n_ctx // 2) for subject, place in cells])
        rows = [row | said for row, said in zip(rows, expected, strict=True)]
    if as_json:
        print_json(rows)
        return
    if len(rows) == 1 or show:
        for row, (subject, place) in zip(rows, cells, strict=True):
            _explain_fit(row, subject, place)
        return
    _print_fits(model, rows, n_ctx, kv_type, batch, may_solve=may_solve)


def _backend(wanted: str, found: list[Subject]) -> str:
    if wanted:
        oracle.check_backend(wanted)
        return wanted
    return oracle.own_backend() if any(s.variant.engine == "llama.cpp" for s in found) else "cpu"


def _caveat(stored: Variant, place: Place) -> str:
    """What speaks against a row that was asked for by name."""
    return stored.caveat if place.runs(stored.engine) else f"{stored.engine} is not made for {place.device_id}"


def _fit_row(subject: Subject, place: Place, *, n_ctx: int, kv_type: str, batch: int, backend: str, may_solve: bool, say: Any) -> dict[str, Any]:
    stored = subject.variant
    cache = registry.load_cache_type(stored.engine, kv_type)
    fit.check_cache(stored.shape, cache, kv_type)
    fit.check_windows(stored, kv_type)
    compute = oracle.compute_buffer(subject, n_ctx, kv_type=kv_type, batch_size=batch, backend=backend, progress=say)

    def budget_at(n: int, buffer: fit.ComputeBuffer | None) -> fit.MemoryBudget:
        return frames.budget_of(stored, place, n_ctx=n, cache=cache, batch_size=batch, compute=buffer)

    largest = oracle.solve_context(subject, budget_at, kv_type=kv_type, batch_size=batch, backend=backend, may_ask=may_solve, progress=say)
    row = frames.fit_row(stored, place, n_ctx=n_ctx, kv_type=kv_type, batch_size=batch, compute=compute, largest=largest)
    asked = may_solve and stored.engine == "llama.cpp" and oracle.can_ask(largest or 0, batch)
    solved = largest == stored.shape.n_ctx_train or asked
    said = {"caveat": _caveat(stored, place), "max_ctx_basis": "solved" if solved else "safe"}
    return {**row, **ASSUMED, **said, "backend": backend, "beyond_training": n_ctx > stored.shape.n_ctx_train}


def _budget(stored: Variant, place: Place, row: dict[str, Any]) -> fit.MemoryBudget:
    """The budget that a row was made of."""
    cache = registry.load_cache_type(stored.engine, row["kv_type"])
    compute = fit.ComputeBuffer(row["compute_buffer_bytes"], row["compute_buffer_basis"])
    return frames.budget_of(stored, place, n_ctx=row["n_ctx"], cache=cache, batch_size=row["batch"], compute=compute)


def _ways_out(
    subject: Subject, place: Place, row: dict[str, Any], *, machines: int, link_bytes_per_s: float, host_bytes_per_s: float
) -> dict[str, Any]:
    """What to do when it does not fit: leave layers or experts behind on a card, or link two machines."""
    stored = subject.variant
    cache, budget = registry.load_cache_type(stored.engine, row["kv_type"]), _budget(stored, place, row)
    found: dict[str, Any] = {"spill": [], "linked": None}
    if place.bandwidth_bytes_per_s is None:
        return found
    if budget.headroom_bytes < 0 and place.discrete and row["batch"] == 1 and stored.engine == "llama.cpp":
        whats: tuple[Literal["layers", "experts"], ...] = ("layers", "experts")
        for what in whats:
            spilled = fit.spill(
                stored,
                budget,
                what=what,
                n_ctx=row["n_ctx"],
                cache=cache,
                bandwidth_bytes_per_s=place.bandwidth_bytes_per_s,
                host_bandwidth_bytes_per_s=host_bytes_per_s,
            )
            if spilled:
                found["spill"].append(
                    {
                        "what": what,
                        "n_left": spilled.n_left,
                        "n_layer": spilled.n_layer,
                        "left_bytes": spilled.left_bytes,
                        "headroom_bytes": spilled.budget.headroom_bytes,
                        "host_bandwidth_bytes_per_s": host_bytes_per_s,
                        "decode_ceiling_tok_per_s": spilled.ceiling_tok_per_s,
                    }
                )
    if machines == 2:
        two = fit.linked(
            stored,
            budget,
            n_ctx=row["n_ctx"],
            cache=cache,
            bandwidth_bytes_per_s=place.bandwidth_bytes_per_s,
            link_bytes_per_s=link_bytes_per_s,
            batch_size=row["batch"],
        )
        found["linked"] = {
            "machines": 2,
            "n_layer_first": two.n_layer_first,
            "fuller_total_bytes": two.budget.total_bytes,
            "headroom_bytes": two.budget.headroom_bytes,
            "verdict": two.budget.verdict,
            "link_bandwidth_bytes_per_s": link_bytes_per_s,
            "by_layer_tok_per_s": two.by_layer_tok_per_s,
            "by_tensor_tok_per_s": two.by_tensor_tok_per_s,
        }
    return found


def _explain_fit(row: dict[str, Any], subject: Subject, place: Place) -> None:
    stored = subject.variant
    budget = _budget(stored, place, row)
    lines = fit_lines(stored, budget, place.room, n_ctx=row["n_ctx"], kv_type=row["kv_type"], batch_size=row["batch"], sources=place.sources)
    _say(f"{stored.name} {stored.format} on {place.device_id} {place.configuration}".rstrip())
    _say(explain(lines))
    if row["caveat"] and row["caveat"] != stored.caveat:
        _say(f"caveat: {row['caveat']}")
    largest = "none" if row["max_ctx"] is None else f"{row['max_ctx']:,} tokens"
    sure = "" if row["max_ctx_basis"] == "solved" else " surely"
    _say(f"largest context that{sure} fits: {largest}; trained for {row['n_ctx_train']:,}")
    if row["beyond_training"]:
        _say(_beyond(row["n_ctx"], row["n_ctx_train"]))
    _say_ways_out(row)
    _say(
        f"assumed: {ASSUMPTIONS}"
        if stored.engine == "llama.cpp"
        else f"assumed: {stored.engine}; its buffers are an allowance by llama.cpp's upper bound"
    )


def _beyond(n_ctx: int, trained: int) -> str:
    return f"note: {n_ctx:,} tokens is beyond the {trained:,} that the model was trained for; the bytes are right, the words may not be"


def _say_ways_out(row: dict[str, Any]) -> None:
    """What could be left behind, and what two of them could do."""
    for way in row["spill"]:
        what = "experts of layers" if way["what"] == "experts" else "layers"
        _say(
            f"with {what} 0 to {way['n_left'] - 1} ({way['n_left']} of {way['n_layer']}) left to a processor that reads"
            f" {way['host_bandwidth_bytes_per_s'] / 1e9:g} GB/s: decode ceiling {way['decode_ceiling_tok_per_s']:.2f} tok/s"
        )
    if two := row["linked"]:
        left = f"{two['verdict'].replace('_', ' ')}, {two['headroom_bytes']:,} bytes left on the fuller"
        rates = f"{two['by_layer_tok_per_s']:.2f} tok/s one after the other, {two['by_tensor_tok_per_s']:.2f} side by side"
        _say(f"two of them over {two['link_bandwidth_bytes_per_s'] / 1e9:g} GB/s: {left}; decode ceiling {rates}")


def _print_fits(model: str, rows: list[dict[str, Any]], n_ctx: int, kv_type: str, batch: int, *, may_solve: bool) -> None:
    shown = []
    for row in rows:
        buffers = row["compute_buffer_bytes"] + row["output_buffer_bytes"] + row["overhead_bytes"]
        cache = row["kv_cache_bytes"] + row["recurrent_state_bytes"]
        sizes = {"weights": row["weight_bytes"], "kv": cache, "buffers": buffers, "total": row["total_bytes"]}
        sizes |= {"available": row["available_bytes"]}
        rate = None if row["verdict"] == "does_not_fit" else row["expected_tok_per_s"]
        words = {"verdict": row["verdict"].replace("_", " "), "expected_tok_per_s": rate}
        shown.append({**row, **{k: v / 1e9 for k, v in sizes.items()}, **words})
    caption = "Sizes in GB (10⁹ bytes); tok/s is what to expect of decode of one sequence, a 16-bit cache half full. "
    caption += "" if may_solve else "The largest context is a safe one; name a device and a format for the exact one."
    title = f"{model}, {n_ctx:,} tokens, {kv_type} cache" + (f", {batch} sequences" if batch > 1 else "")
    out.print(rows_table(title, shown, _FIT_COLUMNS, caption=caption))
    if rows and rows[0]["beyond_training"]:
        _say(_beyond(n_ctx, rows[0]["n_ctx_train"]))
    for row in rows if may_solve else ():
        if row["spill"] or row["linked"]:
            _say(f"{row['device']} {row['configuration']}, {row['format']}:")
            _say_ways_out(row)


def _say(text: str) -> None:
    out.print(text, highlight=False, markup=False, soft_wrap=True)


# ── limits and need ───────────────────────────────────────────────────────────────────────────────

_LIMIT_COLUMNS = {
    "device": ("device", "{}"),
    "memory_gb": ("GB", "{:g}"),
    "format": ("format", "{}"),
    "read_gb": ("GB per token", "{:,.3f}"),
    "decode_ceiling_tok_per_s": ("decode ceiling (tok/s)", "{:,.2f}"),
    "prefill_ceiling_tok_per_s": ("prefill ceiling (tok/s)", "{:,.0f}"),
    "ridge_point_flop_per_byte": ("ridge point (FLOP/byte)", "{:,.0f}"),
    "binding": ("binds", "{}"),
}


def limits_command(
    named: Named = "",
    model: ModelName = "",
    device: DeviceName = "",
    memory_gb: Memory = None,
    configuration: Configuration = "",
    format_id: FormatName = "",
    depth: Annotated[int, typer.Option("--depth", help="Tokens already in the context.")] = 0,
    batch: Batch = 1,
    kv_type: KvType = "f16",
    prompt: Annotated[int, typer.Option("--prompt", help="Tokens of the prompt that the prefill ceiling is for.")] = 2048,
    rent: Annotated[float | None, typer.Option("--rent-usd-hour", help="What renting such a machine costs, to compare with owning one.")] = None,
    show: Explain = False,
    as_json: AsJson = False,
) -> None:
    """How fast could it be at most: bandwidth over bytes, compute over FLOP. Ceilings, not predictions.

    Rates are over all sequences of the batch. Whether it fits is another question: 'nbutils fit'.

    Example: nbutils limits -m qwen3-30b-a3b -d rtx-5090 -f Q4_K_M --depth 4096 --explain
    """
    model = _model(named, model)
    _at_least("--depth", depth, 0)
    _at_least("--batch", batch, 1)
    _at_least("--prompt", prompt, 1)
    if rent is not None and not 0 < rent < float("inf"):
        raise UsageError(f"--rent-usd-hour is {rent:g}; it must be above 0")
    where = _places(device, memory_gb, configuration)
    with err.status("reading …") as status, subjects.find_all(model, (format_id,) if format_id else ()) as found:
        _check_kv_type(kv_type, found, where)
        rows, texts = [], []
        for place in where:
            bandwidth, source = place.bandwidth_bytes_per_s, place.sources.get("bandwidth", "")
            if bandwidth is None:
                bandwidth, source = probe.bandwidth(seconds=0.3, progress=status.update), "measured now"
            for subject in found:
                stored = subject.variant
                if not _wanted(subject, place, format_id, kv_type):
                    continue
                fit.check_windows(stored, kv_type)
                rows.append(
                    frames.limits_row(
                        stored,
                        place,
                        bandwidth_bytes_per_s=bandwidth,
                        depth=depth,
                        batch_size=batch,
                        kv_type=kv_type,
                        n_prompt=prompt,
                        rent_usd_per_hour=rent,
                    )
                )
                if not (show or len(where) * len(found) == 1) or as_json:
                    continue
                cache = registry.load_cache_type(stored.engine, kv_type)
                peak, peak_source = place.peak(stored.arithmetic)
                limit = limits.decode_limit(stored, bandwidth_bytes_per_s=bandwidth, peak_flop_per_s=peak, depth=depth, batch_size=batch, cache=cache)
                lines = limit_lines(
                    stored,
                    limit,
                    bandwidth_bytes_per_s=bandwidth,
                    bandwidth_source=source,
                    peak_flop_per_s=peak,
                    peak_source=peak_source,
                    depth=depth,
                    cache=cache,
                    n_prompt=prompt,
                )
                texts.append(
                    f"{stored.name} {stored.format} on {place.device_id} {place.configuration}".rstrip()
                    + "\n"
                    + explain([*lines, *_extra_lines(rows[-1], place)])
                )
    beyond = _beyond(depth, found[0].variant.shape.n_ctx_train) if rows and rows[0]["beyond_training"] else ""
    if as_json:
        print_json(rows)
    elif texts:
        for text in texts:
            _say(text)
        if beyond:
            _say(beyond)
    else:
        shown = [{**row, "read_gb": row["bytes_per_token"] / 1e9} for row in rows]
        out.print(rows_table(f"{model}, depth {depth:,}, batch {batch}", shown, _LIMIT_COLUMNS, caption="Ceilings: what no such machine can beat."))
        if beyond:
            _say(beyond)


def _extra_lines(row: dict[str, Any], place: Place) -> list[Line]:
    """Below the ceilings: where arithmetic takes over, and what a token costs at the ceiling."""
    lines = [Line("ridge point", row["ridge_point_flop_per_byte"], "FLOP/byte", "peak / bandwidth")]
    if row["compute_bound_batch"]:
        lines.append(Line("arithmetic binds", row["compute_bound_batch"], "sequences", "from this batch on, at this depth"))
    lines += cost_lines(
        energy_j=row["energy_j_per_token"],
        usd_per_million=row["usd_per_million_tokens"],
        power_w=place.power_w,
        price_usd=place.price_usd,
        years=frames.YEARS,
        usd_per_kwh=frames.USD_PER_KWH,
        rate="decode ceiling",
        sources=place.sources,
    )
    if row["rent_usd_per_million_tokens"] is not None:
        lines.append(Line("rented", row["rent_usd_per_million_tokens"], "USD/10⁶ tok", "rent / decode ceiling"))
    for method, flop in row["training_flop_per_token"].items():
        rate = row["training_ceiling_tok_per_s"].get(method)
        words = "full: 6 FLOP per active weight" if method == "full" else f"{method}: 4, and 6 per weight of the adapter"
        lines.append(Line("training", flop, "FLOP/token", words + ("" if rate is None else f"; at most {rate:,.0f} tok/s at the FP16 peak")))
    return lines


def need_command(
    named: Named = "",
    model: ModelName = "",
    format_id: Annotated[str, typer.Option("--format", "-f", help="A format of data/formats.yaml, Q4_K_M unless given; a file has its own.")] = "",
    tok_s: Annotated[float, typer.Option("--tok-s", help="Tokens per second that one sequence shall reach.")] = 20.0,
    n_ctx: Annotated[int, typer.Option("--ctx", help="Tokens of context; the rate is asked for at this depth.")] = 8192,
    kv_type: KvType = "f16",
    as_json: AsJson = False,
) -> None:
    """What a rate takes: the bandwidth, memory and compute below which it is impossible, and which devices have them.

    Having them is necessary, not sufficient: real machines stay below their ceilings.

    Example: nbutils need -m llama-3.3-70b -f Q4_K_M --tok-s 20
    """
    model = _model(named, model)
    _at_least("--ctx", n_ctx, 1)
    if not 0 < tok_s <= 1e9:
        raise UsageError(f"--tok-s is {tok_s:g}; it must be above 0 and at most 1,000,000,000")
    with err.status("reading …") as status, subjects.find(model, format_id, usual="Q4_K_M") as subject:
        stored = subject.variant
        cache = registry.load_cache_type(stored.engine, kv_type)
        fit.check_windows(stored, kv_type)
        compute = oracle.compute_buffer(subject, n_ctx, kv_type=kv_type, backend="cpu", progress=status.update)
        bare = fit.memory_budget(stored, n_ctx=n_ctx, available_bytes=0, cache=cache, compute=compute)
        step, flop = limits.decode_step_bytes(stored, depth=n_ctx, cache=cache), limits.decode_flop(stored, depth=n_ctx)
    have: list[dict[str, Any]] = []
    for place in places.all_places():
        if not place.runs(stored.engine):
            continue
        budget = frames.budget_of(stored, place, n_ctx=n_ctx, cache=cache, compute=compute)
        peak, _ = place.peak(stored.arithmetic)
        assert place.bandwidth_bytes_per_s is not None
        ceiling = limits.decode_ceiling_tok_per_s(place.bandwidth_bytes_per_s, step)
        if budget.headroom_bytes >= 0 and ceiling >= tok_s and (peak is None or peak >= tok_s * flop):
            have.append(
                {
                    "device": place.device_id,
                    "configuration": place.configuration,
                    "memory_gb": place.memory_gb,
                    "bandwidth_gb_per_s": place.bandwidth_bytes_per_s / 1e9,
                    "decode_ceiling_tok_per_s": ceiling,
                    "share_needed": tok_s / ceiling,
                    "verdict": budget.verdict,
                    "price_usd": place.price_usd,
                }
            )
    have.sort(key=lambda row: -row["decode_ceiling_tok_per_s"])
    answer = {
        "model": stored.name,
        "format": stored.format,
        "tok_s": tok_s,
        "n_ctx": n_ctx,
        "kv_type": kv_type,
        "beyond_training": n_ctx > stored.shape.n_ctx_train,
        "bytes_per_token": step,
        "bandwidth_bytes_per_s": tok_s * step,
        "memory_bytes": bare.total_bytes,
        "flop_per_token": flop,
        "compute_flop_per_s": tok_s * flop,
        "devices": have,
    }
    if as_json:
        print_json(answer)
        return
    _say(f"{stored.name} {stored.format}, {tok_s:g} tok/s with {n_ctx:,} tokens in a {kv_type} cache takes at least")
    _say(f"  bandwidth {tok_s * step / 1e9:,.1f} GB/s: {step / 1e9:,.3f} GB per token")
    _say(f"  memory    {bare.total_bytes / 1e9:,.2f} GB, and what the runtime and the system take")
    _say(f"  compute   {tok_s * flop / 1e12:,.2f} TFLOP/s: {flop / 1e9:,.2f} GFLOP per token")
    if answer["beyond_training"]:
        _say(_beyond(n_ctx, stored.shape.n_ctx_train))
    columns = {
        "device": ("device", "{}"),
        "memory_gb": ("GB", "{:g}"),
        "bandwidth_gb_per_s": ("GB/s", "{:,.0f}"),
        "decode_ceiling_tok_per_s": ("ceiling (tok/s)", "{:,.1f}"),
        "share_needed": ("share of it needed", "{:.0%}"),
        "verdict": ("memory", "{}"),
        "price_usd": ("price (USD)", "{:,.0f}"),
    }
    if have:
        out.print(rows_table("Not ruled out", have, columns, caption="Machines reach some 60 to 90 % of a decode ceiling."))
    else:
        _say("no device of the registry has all three")


# ── the registry ──────────────────────────────────────────────────────────────────────────────────


def devices_command(
    device: Annotated[str, typer.Argument(help="One device, whole, with every figure's source; all in short when left out.")] = "",
    as_json: AsJson = False,
) -> None:
    """The devices of the registry. Example: nbutils devices dgx-spark"""
    if device:
        record = registry.load_device(device)
        if as_json:
            print_json(_device_record(record))
            return
        figures = frames.figure_frame(record)
        out.print(rows_table(record.name, figures.to_dict("records"), {k: (k, "{}") for k in ("figure", "value", "standing", "source", "note")}))
        if record.notes:
            _say(record.notes)
        return
    found = [registry.load_device(i) for i in registry.device_ids()]
    if as_json:
        print_json([_device_record(d) for d in found])
        return
    rows = []
    for d in found:
        sizes, rates = {c.memory.value for c in d.configurations}, {c.bandwidth_bytes_per_s / 1e9 for c in d.configurations}
        peak = d.peak("fp16")
        span = {"memory": _span(sizes), "bandwidth": _span(rates), "peak": peak.base("compute") / 1e12 if peak else None}
        rows.append({"id": d.id, "name": d.name, **span})
    columns = {"id": ("id", "{}"), "name": ("name", "{}"), "memory": ("memory (GB)", "{}"), "bandwidth": ("bandwidth (GB/s)", "{}")}
    out.print(rows_table("Devices", rows, {**columns, "peak": ("dense FP16 (TFLOP/s)", "{:,.1f}")}))


def _device_record(device: Device) -> dict[str, Any]:
    """The file as it is, and beside each configuration's figures what they are in bytes."""
    fields = device.model_dump(mode="json")
    for written, configuration in zip(fields["configurations"], device.configurations, strict=True):
        written["memory_bytes"] = configuration.memory_bytes
        written["usable_bytes"] = configuration.usable_bytes
        written["bandwidth_bytes_per_s"] = configuration.bandwidth_bytes_per_s
    return fields


def _model_record(model: Model) -> dict[str, Any]:
    """The file as it is, and what its tensors add up to."""
    counts = {"n_parameters": parameters(model), "n_active_parameters": active_parameters(model)}
    return {**model.model_dump(mode="json"), **counts, "n_ctx_train": model.shape.n_ctx_train}


def _span(values: set[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:,g}" if low == high else f"{low:,g} to {high:,g}"


def models_command(
    model: Annotated[str, typer.Argument(help="One model, whole, with its sources; all in short when left out.")] = "", as_json: AsJson = False
) -> None:
    """The models of the registry. Example: nbutils models deepseek-v3 --json"""
    if model:
        record = registry.load_model(model)
        if as_json:
            print_json(_model_record(record))
            return
        _say(f"{record.name} ({record.architecture})")
        for field, value in record.shape.model_dump(exclude_none=True, exclude_defaults=True).items():
            _say(f"  {field:<14} {value}")
        _say(f"  formats        {', '.join(record.formats)}")
        if record.notes:
            _say(record.notes)
        for key, source in record.sources.items():
            _say(f"[{key}] {source.title} {source.url}".rstrip())
        return
    rows = [_model_record(registry.load_model(i)) for i in registry.model_ids()]
    if as_json:
        print_json(rows)
        return
    shown = [{**r, "total": r["n_parameters"] / 1e9, "active": r["n_active_parameters"] / 1e9} for r in rows]
    columns = {"id": ("id", "{}"), "architecture": ("architecture", "{}"), "total": ("parameters (10⁹)", "{:,.2f}")}
    columns |= {"active": ("active (10⁹)", "{:,.2f}"), "n_ctx_train": ("trained for (tokens)", "{:,}")}
    out.print(rows_table("Models", shown, columns))


def buffers_command(model: Annotated[str, typer.Argument(help="One model; all when left out.")] = "") -> None:
    """Ask llama.cpp for the compute buffers of the registry's models and keep the answers in data/buffers.

    For whoever maintains the registry: after a new model, or a new llama.cpp. Nothing is downloaded and no weight is read.
    """
    for model_id in [model] if model else registry.model_ids():
        with err.status(f"{model_id} …") as status, subjects.find(model_id, "F16") as subject:
            path = registry.write_answers(oracle.keep_answers(subject, status.update))
        out.print(f"data/buffers/{path.name}", highlight=False, markup=False)
