"""``nbutils measure``, ``tune``, ``sustain``, ``probe`` and ``import``: everything that puts a figure on record."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table

from nbutils import frames, frames_run, records, registry
from nbutils.engine import Progress
from nbutils.errors import UsageError
from nbutils.measure import CACHE_TYPES, Knobs, ModelFile, best_threads, custom_suite, find_model
from nbutils.printing import AsJson, cell, err, frame_table, out, print_json, rows_of, rows_table
from nbutils.specs import AnyRecord, BenchRecord, Record, ServedRecord, SustainRecord

__all__ = ["Cpu", "SuiteName", "Threads", "register", "show", "summary"]

Cpu = Annotated[bool, typer.Option("--cpu", help="Measure the processor even where there is a GPU.")]
Threads = Annotated[int, typer.Option("--threads", "-t", min=0, max=1024, help="Processor threads; 0 means one per physical core.")]
SuiteName = Annotated[str, typer.Option("--suite", help="What to time: a file stem in data/suites (smoke, quick, full, depths, batch).")]
ModelName = Annotated[
    str, typer.Option("--model", "-m", help="A .gguf file, or a stand-in such as stand-in-moe-base. With --endpoint: its name there.")
]
FormatName = Annotated[str, typer.Option("--format", help="Format of a stand-in: F16, Q8_0, Q4_K_M, MXFP4_GGUF or NVFP4_GGUF.")]
Repo = Annotated[str, typer.Option(help="A Hugging Face repository, with --file.")]
File = Annotated[str, typer.Option(help="The .gguf file in that repository.")]
Batch = Annotated[int, typer.Option("--batch-size", "-b", min=1, max=65536, help="Tokens of a prompt handed over at once.")]
Micro = Annotated[int, typer.Option("--ubatch-size", "-ub", min=1, max=65536, help="Tokens of a prompt computed at once.")]
Flash = Annotated[str, typer.Option("--flash-attn", "-fa", help="Flash attention: on, off or auto.")]
TypeK = Annotated[str, typer.Option("--cache-type-k", "-ctk", help=f"Cache type of keys: {', '.join(CACHE_TYPES).lower()}.")]
TypeV = Annotated[str, typer.Option("--cache-type-v", "-ctv", help="Cache type of values.")]
Layers = Annotated[int | None, typer.Option("--n-gpu-layers", "-ngl", min=0, help="Layers to offload; all where there is a GPU to use.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command("measure")(measure_command)
    app.command("tune")(tune_command)
    app.command("sustain")(sustain_command)
    app.command("probe")(probe_command)
    imports = typer.Typer(no_args_is_help=True, help="Take over what other programs measured.")
    imports.command("llama-bench")(import_llama_bench)
    app.add_typer(imports, name="import")


@contextmanager
def _telling() -> Iterator[Progress]:
    """Takes what goes on and shows it on a terminal's last line; nothing in it is markup."""
    with err.status("starting …") as status:
        yield lambda text: status.update(escape(text))


# ── measure ───────────────────────────────────────────────────────────────────────────────────────


def measure_command(
    model: ModelName = "",
    format_id: FormatName = "Q4_K_M",
    repo: Repo = "",
    file: File = "",
    suite: SuiteName = "",
    prompts: Annotated[str, typer.Option("--n-prompt", "-p", help="Prompt lengths to time, such as 512 or 512,2048; 0 for none.")] = "",
    generated: Annotated[str, typer.Option("--n-gen", "-n", help="Numbers of tokens to generate; 0 for none.")] = "",
    depths: Annotated[str, typer.Option("--n-depth", "-d", help="Tokens in the cache before, such as 0,4096.")] = "",
    sequences: Annotated[str, typer.Option("--parallel", "-npl", help="Sequences decoded side by side, such as 1,2,4.")] = "",
    repetitions: Annotated[int | None, typer.Option("--repetitions", "-r", min=1, max=100, help="Times each test is repeated.")] = None,
    threads: Threads = 0,
    tune: Annotated[bool, typer.Option("--tune", help="Try numbers of threads first and take the best.")] = False,
    batch: Batch = 2048,
    micro: Micro = 512,
    flash: Flash = "auto",
    type_k: TypeK = "f16",
    type_v: TypeV = "f16",
    layers: Layers = None,
    cpu: Cpu = False,
    endpoint: Annotated[str, typer.Option("--endpoint", help="Measure a server that speaks the OpenAI protocol instead, by its address.")] = "",
    concurrency: Annotated[str, typer.Option("--concurrency", help="With --endpoint: requests in flight, such as 1,2,4; 1 by default.")] = "",
    as_json: AsJson = False,
) -> None:
    """Measure one model file, or a server, and keep the record.

    With -p, -n, -d and -r the tests are llama-bench's, and --json prints its rows. Without them a suite is run.

    Examples: nbutils measure -m model.gguf -p 512 -n 128 -r 5 -d 0,4096 · nbutils measure --endpoint http://127.0.0.1:8080 -m NAME -n 128
    """
    lists = {"-p": prompts, "-n": generated, "-d": depths, "-npl": sequences}
    if endpoint:
        of_files = {"--suite": suite, "--repo": repo, "--file": file, "-d": depths, "-npl": sequences, "-t": threads, "--tune": tune, "--cpu": cpu}
        of_files |= {"-b": batch != 2048, "-ub": micro != 512, "-fa": flash != "auto", "-ctk": type_k != "f16", "-ctv": type_v != "f16"}
        of_files |= {"-ngl": layers is not None, "--format": format_id != "Q4_K_M"}
        if misplaced := [name for name, given in of_files.items() if given]:
            raise UsageError(f"{misplaced[0]} goes with a file, not with --endpoint; -p, -n and -r go with both")
        _measure_endpoint(endpoint, model, prompts, generated, repetitions, concurrency, as_json)
        return
    from nbutils import measure

    if concurrency:
        raise UsageError("--concurrency goes with --endpoint; sequences of a file are decoded side by side with -npl")
    if tune and threads:
        raise UsageError(f"--tune finds the number of threads and -t {threads} gives it; give one of the two")
    _require_model("nothing to measure", model or repo or file)
    if suite and (any(lists.values()) or repetitions):
        given = next((name for name, text in lists.items() if text), "-r")
        raise UsageError(f"--suite {suite} already says what {given} says; give one of the two")
    if suite or not (any(lists.values()) or repetitions):
        plan = registry.load_suite(suite or "quick")
    else:
        plan = custom_suite(
            prompts=_numbers("-p", prompts or "512"),
            generated=_numbers("-n", generated or "128"),
            depths=_numbers("-d", depths or "0"),
            sequences=_numbers("-npl", sequences or "1"),
            repetitions=repetitions or 5,
        )
    knobs = _knobs(threads, batch, micro, flash, type_k, type_v, layers, cpu)
    records.require_writable()
    with records.underway(), _telling() as say:
        found = find_model(model, format_id=format_id, repo=repo, file=file, progress=say)
        tried = measure.tune(found, knobs=knobs, cpu=cpu, progress=say) if tune else []
        if tried:
            knobs = _knobs(best_threads(tried), batch, micro, flash, type_k, type_v, layers, cpu)
        record = measure.measure(found, plan, knobs=knobs, cpu=cpu, tuned=tried, progress=say)
        path = records.write(record)
    if as_json:
        from nbutils import llama_bench

        print_json(llama_bench.rows(record, filename=str(found.path)))
        if any(point.n_seq > 1 for point in record.points):
            err.print("llama-bench has no rows for several sequences; 'nbutils records show' has them", highlight=False, soft_wrap=True)
        err.print(f"record: {path}", highlight=False, soft_wrap=True, markup=False)
        return
    if tried:
        out.print(frames_run.tuning_line(tried, record.settings.n_threads), highlight=False)
    show(record)
    out.print(f"record: {path}", highlight=False, soft_wrap=True, markup=False)


def _require_model(lacking: str, named: str) -> None:
    if not named:
        raise UsageError(f"{lacking}: give --model FILE, --model stand-in-dense-base, or --repo with --file (or, to measure, --endpoint ADDRESS)")


def _numbers(option: str, text: str) -> list[int]:
    """``512,2048`` as numbers."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} {text!r} is not a list of whole numbers such as 512 or 512,2048") from None
    if any(n < 0 for n in found):
        raise UsageError(f"{option} {text!r} has a number below 0")
    return found


def _knobs(threads: int, batch: int, micro: int, flash: str, type_k: str, type_v: str, layers: int | None, cpu: bool) -> Knobs:
    if cpu and layers:
        raise UsageError(f"--cpu measures the processor and -ngl {layers} offloads to a GPU; give one of the two")
    words: dict[str, Literal["auto", "on", "off"]] = {"auto": "auto", "on": "on", "1": "on", "off": "off", "0": "off"}
    if flash not in words:
        raise UsageError(f"--flash-attn {flash!r}; it is on, off or auto")
    return Knobs(
        n_threads=threads,
        n_batch=batch,
        n_ubatch=min(micro, batch),
        flash_attn=words[flash],
        type_k=type_k.upper(),
        type_v=type_v.upper(),
        n_gpu_layers=layers,
    )


def _measure_endpoint(url: str, model: str, prompts: str, generated: str, repetitions: int | None, concurrency: str, as_json: bool) -> None:
    from nbutils import endpoint, frames_served

    lengths, tokens = _numbers("-p", prompts or "512"), _numbers("-n", generated or "128")
    if len(lengths) != 1 or len(tokens) != 1:
        raise UsageError("with --endpoint -p and -n take one number each; run the command once for each length")
    records.require_writable()
    with records.underway(), _telling() as say:
        record = endpoint.measure(
            url,
            model,
            prompt_tokens=lengths[0],
            max_tokens=tokens[0],
            concurrency=_numbers("--concurrency", concurrency or "1"),
            repetitions=repetitions or 5,
            api_key=os.environ.get("NBUTILS_API_KEY", ""),
            progress=say,
        )
        path = records.write(record)
    if as_json:
        print_json({"record": str(path), "rows": rows_of(frames_served.served_frame([record]))})
    else:
        show(record)
        out.print(f"record: {path}", highlight=False, soft_wrap=True, markup=False)


def tune_command(
    model: ModelName = "",
    format_id: FormatName = "Q4_K_M",
    repo: Repo = "",
    file: File = "",
    rounds: Annotated[int, typer.Option(min=1, max=50, help="Interleaved rounds over all numbers of threads.")] = 3,
    cpu: Cpu = False,
    as_json: AsJson = False,
) -> None:
    """Find the number of threads that decodes fastest, and say what was tried. Example: nbutils tune -m model.gguf"""
    from nbutils import measure

    _require_model("nothing to tune for", model or repo or file)
    with _telling() as say:
        found = find_model(model, format_id=format_id, repo=repo, file=file, progress=say)
        tried = measure.tune(found, rounds=rounds, cpu=cpu, progress=say)
    frame, best = frames_run.tuning_frame(tried), {phase: best_threads(tried, phase) for phase in ("decode", "prefill")}
    if as_json:
        print_json({"best_decode_threads": best["decode"], "best_prefill_threads": best["prefill"], "tried": rows_of(frame)})
        return
    rates = {"decode": "decode (tok/s)", "decode_low": "slowest", "decode_high": "fastest", "prefill": "prefill (tok/s)"}
    columns = {"threads": ("threads", "{}")} | {name: (heading, "{:,.1f}") for name, heading in rates.items()}
    out.print(rows_table(escape(f"Threads for {found.name}"), frame.to_dict("records"), columns))
    out.print(frames_run.tuning_line(tried, best["decode"]), highlight=False)
    if best["prefill"] != best["decode"]:
        out.print(f"Prefill alone would be fastest with {best['prefill']}.", highlight=False)
    out.print(f"next: nbutils measure -t {best['decode']} …", highlight=False)


def sustain_command(
    model: ModelName = "",
    format_id: FormatName = "Q4_K_M",
    repo: Repo = "",
    file: File = "",
    minutes: Annotated[float, typer.Option(min=0.01, max=1440, help="How long to decode.")] = 10.0,
    depth: Annotated[int, typer.Option("--n-depth", "-d", min=0, help="Tokens in the cache at which every block starts.")] = 0,
    threads: Threads = 0,
    cpu: Cpu = False,
    as_json: AsJson = False,
) -> None:
    """Decode for minutes on end: the rate of each minute, the fall from the first to the last, and why.

    Example: nbutils sustain -m model.gguf --minutes 30
    """
    from nbutils import frames_power, sustain

    _require_model("nothing to run", model or repo or file)
    records.require_writable()
    with records.underway(), _telling() as say:
        found: ModelFile = find_model(model, format_id=format_id, repo=repo, file=file, progress=say)
        record = sustain.sustain(found, minutes=minutes, knobs=Knobs(n_threads=threads), cpu=cpu, depth=depth, progress=say)
        path = records.write(record)
    if as_json:
        print_json({"record": str(path), "rows": rows_of(frames_power.sustain_frame(record)), "said": frames_power.sustain_summary(record)})
        return
    show(record)
    out.print(f"record: {path}", highlight=False, soft_wrap=True, markup=False)


def probe_command(
    seconds: Annotated[float, typer.Option(min=0.01, max=60, help="Time for each measurement.")] = 1.0,
    cpu: Cpu = False,
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Say what this machine is and how fast its memory and arithmetic are. Example: nbutils probe --seconds 3"""
    from nbutils import engine, measure, probe

    machine, description = probe.machine(), engine.describe()
    measure.check_backend(description, cpu=cpu)
    with _telling() as say:
        n_threads = threads or probe.n_threads_default()
        speed = probe.speed(seconds=seconds, n_threads=n_threads, use_gpu=measure.wants_gpu(description, cpu=cpu), progress=say)
    rates = frames.yardstick_frame(speed["yardsticks"])
    kernels = frames.kernel_frame([*speed["kernels"], *speed["matrix"]])
    if as_json:
        print_json({"machine": machine.model_dump(mode="json"), "bandwidth": rows_of(rates), "kernels": rows_of(kernels)})
        return
    out.print(frame_table("This machine", frames.machine_frame(machine, description), {"property": "{}", "value": "{}"}))
    rates = rates.assign(best=rates["best"] / 1e9, median=rates["median"] / 1e9)
    out.print(frame_table("Bandwidth (GB/s)", rates, {"kind": "{}", "method": "{}", "best": "{:.1f}", "median": "{:.1f}"}))
    kernels = kernels.assign(**{"GB/s": kernels["bytes_per_s"] / 1e9, "GFLOP/s": kernels["flop_per_s"] / 1e9})
    out.print(frame_table("Kernels", kernels, {"type": "{}", "placement": "{}", "n_batch": "{}", "GB/s": "{:.1f}", "GFLOP/s": "{:,.0f}"}))


# ── what others measured ──────────────────────────────────────────────────────────────────────────


def import_llama_bench(
    file: Annotated[Path, typer.Argument(help="Output of llama-bench -o json, jsonl or csv.")],
    as_json: AsJson = False,
) -> None:
    """Make records of llama-bench's output, one for each model file and set of settings.

    Example: llama-bench -m model.gguf -o jsonl > bench.jsonl; nbutils import llama-bench bench.jsonl
    """
    from nbutils import llama_bench

    found = llama_bench.read(file)
    records.require_writable()
    paths = [records.write(record) for record in found]
    if as_json:
        print_json([{"record": str(path), "rows": llama_bench.rows(record)} for path, record in zip(paths, found, strict=True)])
        return
    for path, record in zip(paths, found, strict=True):
        show(record)
        out.print(f"record: {path}", highlight=False, soft_wrap=True, markup=False)


# ── showing records of every kind ─────────────────────────────────────────────────────────────────


def summary(found: list[Record]) -> Table:
    """Model, format, rates, share and backend. The ceiling is on the page."""
    measured = frames.measured_frame(found)
    headings = {name: heading for name, heading in frames.summary_headings(measured).items() if name != "ceiling"}
    table = Table(title="Measured on this machine", caption=frames.noise_line(measured))
    for name, heading in headings.items():
        justify: Literal["left", "right"] = "right" if name in frames.SUMMARY_FORMATS else "left"
        table.add_column(heading, justify=justify, no_wrap=name in ("model", "format", "wall", "backend"))
    for row in frames.summary_frame(measured).to_dict("records"):
        table.add_row(*(cell(row[name], frames.SUMMARY_FORMATS.get(name, "{}")) for name in headings))
    return table


def show(record: AnyRecord) -> None:
    """Print what a record says, whatever its kind."""
    from nbutils import frames_power, frames_served

    if isinstance(record, Record):
        out.print(summary([record]))
        frame, headings, formats = frames_run.points_table([record])
        _table("Every test", frame, {k: v for k, v in headings.items() if k not in ("model", "format")}, formats)
        if record.memory:
            _table("Memory", *frames_run.memory_table(record))
        if len(frames_power.energy_frame(record)):
            _table("Energy", *frames_power.energy_table(record))
        lines = [*frames_run.noise_lines(record)[1:], *frames_run.memory_lines(record), *frames_power.meter_notes(record)]
    elif isinstance(record, SustainRecord):
        _table("Sustained decode", *frames_power.sustain_table(record))
        lines = frames_power.sustain_summary(record)
    elif isinstance(record, ServedRecord):
        _table(escape(f"Served: {record.model}"), *frames_served.served_table([record]))
        lines = frames_served.problem_lines(record)
    else:
        _bench_table(record)
        lines = []
    for line in lines:
        out.print(line, highlight=False, markup=False)


def _table(title: str, frame: Any, headings: dict[str, str], formats: dict[str, str]) -> None:
    out.print(rows_table(title, frame.to_dict("records"), {name: (heading, formats.get(name, "{}")) for name, heading in headings.items()}))


def _bench_table(record: BenchRecord) -> None:
    from nbutils import llama_bench

    rows = [{**row, "n_samples": len(row.get("samples_ns", []))} for row in llama_bench.rows(record)]
    columns = {
        "n_prompt": ("prompt", "{:,}"),
        "n_gen": ("generated", "{:,}"),
        "n_depth": ("depth", "{:,}"),
        "avg_ts": ("tok/s", "{:,.2f}"),
        "stddev_ts": ("±", "{:,.2f}"),
        "n_samples": ("samples", "{:,}"),
    }
    out.print(rows_table(escape(f"llama-bench: {record.model_filename}, {record.model_type}"), rows, columns))
    sys.stdout.flush()
