"""A benchmark, not a test: nbutils beside llama-bench, both of one llama.cpp, on the stand-in models. Run: make parity

llama-bench is built from the source that the pinned llama-cpp-python carries, and called inside the process that measures: on
the binding's own llama.cpp, the model loaded once, by the same thread. The two take turns by the context, each with its warm-up and one
repetition, and who goes first alternates. As programs of their own they would differ in where things come to lie, which makes decode
some per cent faster or slower for as long as a process lives, and a prompt at depth 4,096 by up to a third; so the two contexts of a pair
lie in the same places of the same memory, drawn anew for every pair (``bench_parity.c``). What is compared is what each program does
around llama.cpp, and what its clock says. A pair begins only when nothing else uses the processor, so rounds can go on beside
other work. Linux only. The result is data/benchmarks/parity.json. Exit code 1 when a row's median is off by more than 1 %.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from random import getrandbits
from statistics import median
from typing import Annotated, Any

import greenlet
import numpy as np
import psutil
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from nbutils import engine, gguf_files, measure, paths, probe, registry
from nbutils.errors import EngineError, NbutilsError, UsageError
from nbutils.printing import err, out
from nbutils.specs import Settings

#: How far a median may be off.
TOLERANCE_PERCENT = 1.0
N_PROMPT, N_GEN = 512, 128
KINDS = ("dense", "moe")
PHASES = ("prefill", "decode")
PAUSE_S = 0.02
#: A pair begins when the processor was no busier than this, over all cores, for so long.
QUIET_PERCENT, QUIET_S = 6.0, 0.25
#: What OpenMP, which runs llama.cpp's threads on Linux, is told: threads stay on their cores.
BOUND = {"OMP_PROC_BIND": "true", "OMP_PLACES": "threads"}

Say = Callable[[str], None]


@dataclass(frozen=True)
class Subject:
    """A stand-in and where it lies."""

    model: str
    format: str
    path: Path


@dataclass(frozen=True)
class Plan:
    """What both programs are asked."""

    program: Path
    between: Path
    subjects: list[Subject]
    depths: list[int]
    repetitions: int
    settings: Settings


# ── both programs, side by side ─────────────────────────────────────────────────────────────────────────────────


def label(kind: str, depth: int) -> str:
    """llama-bench's own words: ``tg128 @ d4096``."""
    return (f"pp{N_PROMPT}" if kind == "prefill" else f"tg{N_GEN}") + (f" @ d{depth}" if depth else "")


def sittings(plan: Plan) -> list[tuple[Subject, int]]:
    """What one process measures with both, prefill and then decode: a file, at a depth."""
    return [(subject, depth) for subject in plan.subjects for depth in plan.depths]


def n_tokens_of(phase: str) -> int:
    return N_PROMPT if phase == "prefill" else N_GEN


def load_between(made: Path) -> ctypes.CDLL:
    """The library of ``bench_parity.c``, to be loaded before llama.cpp is, and seen by it; for the rest of this process."""
    between = ctypes.CDLL(str(made), mode=ctypes.RTLD_GLOBAL)
    between.beside_context.argtypes, between.beside_asked.restype = [ctypes.c_uint64], ctypes.c_uint64
    return between


class LlamaBench:
    """llama-bench, called here and left wherever it has finished with a context; entered again it goes on with the next."""

    def __init__(self, plan: Plan, path: str, depth: int, llama: Any, model: Any, between: ctypes.CDLL) -> None:
        # A test named twice is run twice, each time in a new context.
        lengths = {option: ",".join([str(n)] * plan.repetitions) for option, n in (("-p", N_PROMPT), ("-n", N_GEN))}
        used = plan.settings
        options = lengths | {"-d": depth, "-r": 1, "-t": used.n_threads, "-b": used.n_batch, "-ub": used.n_ubatch, "-ngl": used.n_gpu_layers}
        words = ["llama-bench", "-m", path, "-o", "jsonl", *(str(x) for pair in options.items() for x in pair)]
        given = (ctypes.c_char_p * (len(words) + 1))(*(os.fsencode(word) for word in words), None)
        main = ctypes.CDLL(str(plan.program.with_name("libllama-bench-impl.so")))._Z11llama_benchiPPc
        here = greenlet.getcurrent()

        def at_end(context: int) -> None:
            llama.llama_free(ctypes.c_void_p(context))
            here.switch()

        self._at_end = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(at_end)  # held, or it would be gone when it is called
        if not between.beside_start(ctypes.c_void_p(model), self._at_end):
            raise EngineError("the system gives no room of addresses for the contexts of both; raise the limit (ulimit -v)")
        self._run = greenlet.greenlet(lambda: main(len(words), given))

    def context(self) -> None:
        """Its next context, from making it to freeing it."""
        self._run.switch()
        if self._run.dead:
            raise EngineError("llama-bench ended before its last context")

    def end(self) -> None:
        self._run.switch()


def measure_both(line: Connection, plan: Plan, path: str, depth: int, ours_first: bool, folder: str) -> None:
    """In the child: tell the parent of every pair, and in the end our rates by phase, or what went wrong."""
    try:
        line.send(take_turns(lambda: line.send("pair"), plan, path, depth, ours_first, folder))
    except NbutilsError as error:
        line.send(str(error))


def take_turns(tell: Callable[[], None], plan: Plan, path: str, depth: int, ours_first: bool, folder: str) -> dict[str, list[float]]:
    """The code that ``nbutils measure`` runs in its child, and llama-bench, in turn; our rates by phase. What llama-bench prints is in ``folder``."""
    from nbutils._bench import Bench
    from nbutils._engine_child import _llama

    for number, name in ((1, "printed"), (2, "said")):
        os.dup2(os.open(Path(folder, name), os.O_WRONLY | os.O_CREAT), number)
    between = load_between(plan.between)
    llama, log = _llama()
    bench = Bench(path, plan.settings.model_dump(exclude={"flash_attn_used"}), zero_s=time.monotonic(), log=log, llama=llama)
    bench.load()
    theirs = LlamaBench(plan, path, depth, llama, bench.model, between)
    if len({entry.split()[-1] for entry in Path("/proc/self/maps").read_text().splitlines() if re.search(r"/libllama\.so[.0-9]*$", entry)}) > 1:
        raise EngineError("llama-bench brought a llama.cpp of its own; build it from the source that the installed llama-cpp-python carries")
    tests = [phase for phase in PHASES for _ in range(plan.repetitions)]
    places = [getrandbits(63) for _ in tests]
    found: dict[str, list[list[float]]] = {phase: [] for phase in PHASES}
    asked: dict[str, list[int]] = {"nbutils": [], "llama-bench": []}

    def our_turn(turn: int) -> None:
        between.beside_context(places[turn])
        point = bench.point(lambda *_, **__: None, kind=tests[turn], n_tokens=n_tokens_of(tests[turn]), depth=depth, repetitions=1)
        found[tests[turn]] += point["repetitions_s"]
        asked["nbutils"].append(between.beside_asked())

    def their_turn(turn: int) -> None:
        between.beside_context(places[turn])
        theirs.context()
        asked["llama-bench"].append(between.beside_asked())

    def after() -> None:
        if asked["nbutils"] != asked["llama-bench"]:
            raise EngineError(
                f"{label(tests[len(asked['nbutils']) - 1], depth)}: the two asked for different memory, so their contexts are not the same"
            )
        tell()

    in_turn(*((our_turn, their_turn) if ours_first else (their_turn, our_turn)), len(tests), after)
    bench.close()
    theirs.end()
    return {phase: [n_tokens_of(phase) / sum(times) for times in repetitions] for phase, repetitions in found.items()}


def sit(plan: Plan, subject: Subject, depth: int, ours_first: bool, step: Callable[[], None]) -> dict[str, list[tuple[float, float]]]:
    """One process that measures a file at a depth with both; by phase the rates of each pair, ours and llama-bench's."""
    fresh = multiprocessing.get_context("spawn")
    heard, line = fresh.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        process = fresh.Process(target=measure_both, args=(line, plan, str(subject.path), depth, ours_first, folder), daemon=True)
        process.start()
        line.close()
        try:
            while (ours := heard.recv()) == "pair":
                step()
        except EOFError:
            process.join()
            said = Path(folder, "said").read_text(encoding="utf-8", errors="replace").strip() if Path(folder, "said").is_file() else ""
            ours = f"ended with code {process.exitcode}: {said[-300:]}"
        finally:
            process.kill()
            process.join()
            heard.close()
        if isinstance(ours, str):
            raise EngineError(f"{subject.path.name}: {ours}")
        rows = [json.loads(row) for row in Path(folder, "printed").read_text(encoding="utf-8").splitlines() if row.startswith("{")]
    theirs = {"prefill": [row for row in rows if row["n_prompt"]], "decode": [row for row in rows if row["n_gen"]]}
    return {
        phase: list(zip(ours[phase], (n_tokens_of(phase) * 1e9 / ns for row in theirs[phase] for ns in row["samples_ns"]), strict=True))
        for phase in PHASES
    }


# ── rounds ────────────────────────────────────────────────────────────────────────────────────────


def in_turn(first: Callable[[int], None], second: Callable[[int], None], n_turns: int, after: Callable[[], None]) -> None:
    """Let both have their turns, one beside the other; who goes first alternates. ``after`` is called after every pair."""
    for turn in range(n_turns):
        # Both wait here, so whatever is busy now is somebody else.
        while psutil.cpu_percent(QUIET_S) > QUIET_PERCENT:
            pass
        for play in (first, second) if turn % 2 == 0 else (second, first):
            # What the other one left running, threads that still look for work, shall be asleep.
            time.sleep(PAUSE_S)
            play(turn)
        after()


def run_round(plan: Plan, number: int, say: Say, step: Callable[[], None]) -> dict[tuple[str, str, str], list[tuple[float, float]]]:
    """One round: by model, format and test the rates of each pair, ours and llama-bench's."""
    found = {}
    for position, (subject, depth) in enumerate(sittings(plan)):
        say(f"{subject.model} {subject.format}, {' and '.join(label(phase, depth) for phase in PHASES)}")
        pairs = sit(plan, subject, depth, (number + position) % 2 == 0, step)
        found |= {(subject.model, subject.format, label(phase, depth)): pairs[phase] for phase in PHASES}
    return found


def add_round(rows: list[dict[str, Any]], found: dict[tuple[str, str, str], list[tuple[float, float]]]) -> list[dict[str, Any]]:
    """The rows with the pairs of another round; the ratio of ours to llama-bench's as the median over pairs, with its quartiles."""
    known = {(row["model"], row["format"], row["test"]): row for row in rows}
    for (model, fmt, test), pairs in found.items():
        before = known.get((model, fmt, test), {})
        our_rates = [*before.get("ours_tok_per_s", []), *(round(a, 3) for a, _ in pairs)]
        their_rates = [*before.get("llama_bench_tok_per_s", []), *(round(b, 3) for _, b in pairs)]
        row = {"model": model, "format": fmt, "test": test, "ours_tok_per_s": our_rates, "llama_bench_tok_per_s": their_rates}
        low, middle, high = np.percentile(np.array(our_rates) / np.array(their_rates), (25, 50, 75))
        known[model, fmt, test] = row | {"ratio": round(middle, 5), "ratio_low": round(low, 5), "ratio_high": round(high, 5)}
    return list(known.values())


def worst_percent(rows: list[dict[str, Any]]) -> float:
    """How far the worst row's median is from one, in per cent."""
    return round(max(abs(float(row["ratio"]) - 1) for row in rows) * 100, 3)


def table_of(result: dict[str, Any]) -> Table:
    table = Table(title="nbutils over llama-bench", caption="medians and quartiles of repetitions that took turns")
    for heading in ("model", "format", "test", "nbutils (tok/s)", "llama-bench (tok/s)", "ratio", "quartiles"):
        table.add_column(heading, justify="left" if heading in ("model", "format", "test") else "right", no_wrap=heading == "test")
    for row in result["rows"]:
        rates = [f"{median(row[name]):,.2f}" for name in ("ours_tok_per_s", "llama_bench_tok_per_s")]
        good = abs(row["ratio"] - 1) * 100 <= TOLERANCE_PERCENT
        ratio = f"{row['ratio']:.4f}" + ("" if good else " (off)")
        table.add_row(
            row["model"].removeprefix("stand-in-"), row["format"], row["test"], *rates, ratio, f"{row['ratio_low']:.4f} to {row['ratio_high']:.4f}"
        )
    return table


# ── the program ───────────────────────────────────────────────────────────────────────────────────


def program_in(folder: Path) -> Path:
    return folder / "bin" / "llama-bench"


def locked_entry(text: str) -> str:
    """The lines of ``requirements.lock`` that pin llama-cpp-python, hashes included."""
    found = re.search(r"^llama-cpp-python==[^\n]*(?:\n[ \t]+--hash=[^\n]*)+", text, re.MULTILINE)
    if not found:
        raise UsageError("requirements.lock pins no llama-cpp-python with hashes; restore it from git")
    return found[0] + "\n"


def fetch_source(folder: Path, say: Say) -> Path:
    """The pinned source distribution, checked by hash and unpacked below ``folder``."""
    name = f"llama_cpp_python-{version('llama-cpp-python')}"
    if not (folder / name / "vendor").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        entry = folder / "requirement.txt"
        paths.write_text(entry, locked_entry((paths.project_dir() / "requirements.lock").read_text(encoding="utf-8")))
        say("fetching the source of llama-cpp-python")
        pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps", "--no-binary", "llama-cpp-python"]
        run([*pip, "--require-hashes", "-r", str(entry), "-d", str(folder)], folder / "fetch.log")
        archive = folder / f"{name}.tar.gz"
        if not archive.is_file():
            raise UsageError(f"requirements.lock does not pin the installed {name.replace('_', '-')}; run 'make install'")
        say("unpacking")
        with tempfile.TemporaryDirectory(dir=folder) as temporary, tarfile.open(archive) as packed:
            packed.extractall(temporary, filter="data")
            (Path(temporary) / name).replace(folder / name)
    return folder / name


def build(source: Path, folder: Path, say: Say) -> Path:
    """Configure and build llama-bench in ``folder``; return the program. For the processor: measured is the binding's own llama.cpp."""
    llama = source / "vendor" / "llama.cpp"
    if not (llama / "tools" / "llama-bench").is_dir():
        raise UsageError(f"{str(source)!r} holds no vendor/llama.cpp with llama-bench; give an unpacked source distribution of llama-cpp-python")
    if not shutil.which("cmake"):
        raise UsageError("building llama-bench needs cmake and a C++ compiler: pip install cmake ninja")
    wanted = {"CMAKE_BUILD_TYPE": "Release", "BUILD_SHARED_LIBS": "ON", "LLAMA_CURL": "OFF", "LLAMA_BUILD_COMMON": "ON", "LLAMA_BUILD_TOOLS": "ON"}
    wanted |= {f"LLAMA_BUILD_{what}": "OFF" for what in ("TESTS", "EXAMPLES", "SERVER", "APP", "UI")}
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    say("configuring llama.cpp")
    settings = [f"-D{name}={value}" for name, value in wanted.items()]
    run(["cmake", "-S", str(llama), "-B", str(folder), *generator, *settings], folder / "configure.log")
    say(f"building llama-bench, some minutes (log: {folder / 'build.log'})")
    jobs = str(os.cpu_count() or 1)
    run(["cmake", "--build", str(folder), "--config", "Release", "--target", "llama-bench", "--parallel", jobs], folder / "build.log")
    return program_in(folder)


def build_between(folder: Path) -> Path:
    """The library that stands between the two programs and llama.cpp, in ``folder``."""
    made = folder / "libbench-parity.so"
    source = Path(__file__).with_suffix(".c")
    run([os.environ.get("CC", "cc"), "-shared", "-fPIC", "-O1", "-o", str(made), str(source), "-ldl"], folder / "bench-parity.log")
    return made


def run(command: list[str], log: Path) -> None:
    """Run to the end with everything it says in ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    # The source brings its own git history; without it nobody else's, further up, shall be taken for it.
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(paths.cache_dir())}
    with log.open("wb") as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment, check=False).returncode
    if code != 0:
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise EngineError(f"{Path(command[0]).name} ended with code {code}: {said[-1][:200] if said else 'no word'} (all of it in {log})")


def find_program(built: Path | None, source: Path | None, say: Say) -> Path:
    """A program built before, or one built now and kept for the next time."""
    if built:
        if not program_in(built).is_file():
            raise UsageError(f"{str(built)!r} holds no bin/llama-bench; name a folder in which cmake built it")
        return program_in(built)
    cache = paths.cache_dir() / "llama-bench"
    key = f"-{hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:8]}" if source else ""
    folder = cache / f"build-{version('llama-cpp-python')}{key}"
    if program_in(folder).is_file():
        return program_in(folder)
    return build(source or fetch_source(cache, say), folder, say)


def commit_of(program: Path, subject: Subject) -> str:
    """The commit that llama-bench says it was built from, in its quickest row."""
    command = [str(program), "-m", str(subject.path), "-p", "1", "-n", "0", "-r", "1", "--no-warmup", "-o", "jsonl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise EngineError(f"llama-bench ended with code {done.returncode}: {done.stderr.strip()[-300:]}")
    return str(json.loads(done.stdout)["build_commit"])


# ── the command ───────────────────────────────────────────────────────────────────────────────────


def head_of(plan: Plan) -> dict[str, Any]:
    """Everything of the result that must be the same for rounds to be comparable."""
    machine = probe.machine()
    return {
        "machine": {
            "cpu": machine.cpu,
            "cores": machine.n_cores,
            "memory_bytes": machine.memory_bytes,
            "system": machine.system,
            "gpus": [gpu.name for gpu in machine.gpus],
        },
        "versions": {name: version(name) for name in ("nbutils", "llama-cpp-python")},
        "llama_bench_commit": commit_of(plan.program, plan.subjects[0]),
        "threads": plan.settings.n_threads,
        "gpu_layers": plan.settings.n_gpu_layers,
    }


def earlier(path: Path, head: dict[str, Any]) -> dict[str, Any]:
    """The result so far, if its rounds and new ones may stand in one list."""
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        _ = [(row["model"], row["format"], row["test"]) for row in result["rows"]]
        differs = [name for name, value in head.items() if result[name] != value]
    except FileNotFoundError:
        raise UsageError(f"nothing to resume: no file {str(path)!r}; leave --resume out") from None
    except (ValueError, LookupError, TypeError):
        raise UsageError(f"{path.name} is no result of this program; remove it, or name another with --out") from None
    if differs:
        raise UsageError(f"{path.name} has other {', '.join(differs)} than asked for now; its rounds cannot go on: leave --resume out")
    return result


def numbers(text: str, option: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} {text!r}: give whole numbers with commas, such as 0,4096") from None
    if min(found) < 0 or len(set(found)) < len(found):
        raise UsageError(f"{option} {text!r}: each number once, none below 0")
    return found


def stand_ins(size: str, files: str) -> list[gguf_files.StandIn]:
    if size not in gguf_files.SIZES:
        raise UsageError(f"no size {size!r}; there are {', '.join(gguf_files.SIZES)}")
    known = {f"{kind}-{fmt}": gguf_files.StandIn(kind, size, fmt) for kind in KINDS for fmt in gguf_files.FORMATS}
    names = files.split(",") if files else list(known)
    for name in names:
        if name not in known:
            raise UsageError(f"no file {name!r}; there are {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names)]


def main(
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="Rounds to run now; each measures every row with both programs.")] = 3,
    repetitions: Annotated[
        int, typer.Option("--repetitions", "-r", min=1, max=1000, help="Repetitions of a row in a round, each in a context of its own.")
    ] = 12,
    size: Annotated[str, typer.Option(help="Size of the stand-ins: base, wide, or small to try this program.")] = "base",
    depths: Annotated[str, typer.Option(help="Tokens of context before the test, with commas.")] = "0,4096",
    files: Annotated[
        str, typer.Option(help="Some of dense-F16, dense-Q8_0, dense-Q4_K_M, moe-F16, moe-Q8_0, moe-Q4_K_M, with commas; all by default.")
    ] = "",
    threads: Annotated[int, typer.Option("--threads", "-t", min=0, max=1024, help="Processor threads of both; 0 means one per physical core.")] = 0,
    cpu: Annotated[bool, typer.Option("--cpu", help="Measure the processor even where there is a GPU.")] = False,
    built: Annotated[Path | None, typer.Option("--build", help="A folder in which cmake built llama-bench.")] = None,
    source: Annotated[
        Path | None, typer.Option(help="An unpacked source distribution of llama-cpp-python, in place of fetching the pinned one.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--out", help="Where the result goes; data/benchmarks/parity.json by default.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Add rounds to those already in the result; with --files or --depths to some of its rows, or new ones.")
    ] = False,
) -> None:
    """nbutils beside llama-bench, both of one llama.cpp: do they measure the same?

    Builds llama-bench from the source that the pinned llama-cpp-python carries, calls it on the binding's llama.cpp, lets both take turns
    on the stand-in models, and writes data/benchmarks/parity.json after every round. Exit code 1 when a row's median is off by more
    than 1 %.

    Try it: python tests/bench_parity.py --size small --rounds 2 --out parity.json
    """
    if sys.platform != "linux":
        raise UsageError(f"llama-bench is called inside this process in a way that Linux has and {sys.platform!r} has not")
    asked = stand_ins(size, files)
    wanted_depths = numbers(depths, "--depths")
    target = output or paths.data_dir() / "benchmarks" / "parity.json"
    description = engine.describe()
    use_gpu = measure.wants_gpu(description, cpu=cpu)
    measure.check_backend(description, cpu=cpu)
    os.environ.update(BOUND)  # of what is started from here on
    with err.status("looking for llama-bench …") as status:
        program = find_program(built, source, status.update)
        status.update("making stand-in models …")
        formats = {fmt: registry.load_format(fmt) for fmt in gguf_files.FORMATS}
        made = zip(asked, gguf_files.make_all(asked, formats), strict=True)
    settings = measure.settings_of(measure.Knobs(n_threads=threads), use_gpu=use_gpu, n_ctx=N_PROMPT + max(wanted_depths))
    plan = Plan(program, build_between(program.parent), [Subject(s.name, s.format, path) for s, path in made], wanted_depths, repetitions, settings)
    head = head_of(plan)
    result: dict[str, Any] = earlier(target, head) if resume else {"rounds": 0, "rows": []}
    bars = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*bars, console=err) as progress:
        task = progress.add_task("starting", total=rounds * len(sittings(plan)) * len(PHASES) * repetitions)
        for number in range(result["rounds"], result["rounds"] + rounds):
            found = run_round(plan, number, lambda text: progress.update(task, description=text), lambda: progress.advance(task))
            rows = add_round(result["rows"], found)
            now = datetime.now(UTC).date().isoformat()
            result = {"date": now, **head, "rounds": number + 1, "rows": rows, "worst_ratio_off_percent": worst_percent(rows)}
            paths.write_text(target, json.dumps(result, indent=1) + "\n")
    out.print(table_of(result))
    out.print(f"worst median: {result['worst_ratio_off_percent']:.2f} % off; written to {target}", markup=False, highlight=False, soft_wrap=True)
    if result["worst_ratio_off_percent"] > TOLERANCE_PERCENT:
        raise typer.Exit(1)


def command() -> None:
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    # A polite request to end must end the program that is being timed, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except NbutilsError as error:
        err.print(f"parity: {error}", markup=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        err.print("parity: interrupted; finished rounds are in the result, --resume adds to them")
        sys.exit(130)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        err.print(f"parity: {error.format_message()} (--help lists the options)", markup=False, soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    command()
