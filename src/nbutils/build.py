"""From a clean checkout to a book: stand-ins, probe, measurements, pages, Jupyter Book.

Everything that a run makes lies in ``_build``, in ``book/devices`` and ``book/here`` (both ignored by git), and in
this user's own folders. No tracked file is touched.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import yaml
from rich.console import Console

from nbutils import engine, gguf_files, measure, notebook, paths, probe, records, registry, sweep
from nbutils.errors import DataError, NbutilsError
from nbutils.specs import Record
from nbutils.tensors import weight_bytes

__all__ = ["SIZES", "Options", "Result", "build_book", "clean", "make_stand_ins"]

SIZES = tuple(gguf_files.SIZES)

#: What a measurement depends on besides its notebook: the code that times, not the code that draws.
_TIMING_MODULES = (
    "_allocations",
    "_bench",
    "_engine_child",
    "_ggml",
    "engine",
    "fit",
    "gguf_files",
    "measure",
    "monitor",
    "oracle",
    "probe",
    "specs",
    "subjects",
    "tensors",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to build. ``published`` leaves this machine out: no measuring, no local pages."""

    suite: str = "quick"
    size: str = ""
    cpu: bool = False
    n_threads: int = 0
    published: bool = False


@dataclass(slots=True)
class Result:
    """What was built: the page to open, this machine's records, and the seconds each stage took."""

    index: Path
    records: list[Record] = field(default_factory=list)
    stages_s: dict[str, float] = field(default_factory=dict)


def build_book(options: Options, console: Console) -> Result:
    """Build the book and return what was built. Raises ``NbutilsError`` with one line for whatever stops it."""
    root = paths.project_dir()
    out = root / "_build"
    result = Result(index=out / "html" / "index.html")
    ledger = sweep.Ledger(out / "nbutils" / "ledger.json")
    stage = _Stages(console, result.stages_s)
    with stage("checking data"):
        if problems := registry.check_data():
            raise DataError(f"{len(problems)} problems in the registry, the first: {problems[0]} ('nbutils check-data' lists all)")
        registry.load_suite(options.suite)
        if not options.published:
            records.require_writable()
    local_pages: list[Path] = []
    if not options.published:
        local_pages, result.records = _this_machine(options, root, out, ledger, stage)
    with stage("device pages") as say:
        _device_pages(root, ledger, say)
    with stage("article pages") as say:
        _article_pages(root, ledger, say)
    with stage("the proof") as say:
        _proof_page(root, ledger, say)
    with stage("book") as say:
        _jupyter_book(root, out, local_pages, ledger, say)
    return result


class _Stages:
    """Names each stage as it starts and keeps how long it took."""

    def __init__(self, console: Console, seconds: dict[str, float]) -> None:
        self._console, self._seconds = console, seconds

    @contextmanager
    def __call__(self, name: str) -> Iterator[Callable[[str], None]]:
        start = time.perf_counter()
        with self._console.status(f"{name} …") as status:
            subject = ""

            def say(text: str) -> None:
                nonlocal subject
                if self._console.is_terminal:
                    status.update(f"{name}: {text}")
                elif text.split(":", maxsplit=1)[0] != subject:  # a log gets a line per subject, not per step
                    subject = text.split(":", maxsplit=1)[0]
                    self._console.print(f"  {name}: {subject}", markup=False, highlight=False, soft_wrap=True)

            try:
                yield say
            except NbutilsError:
                self._console.print(f"✗ {name}", markup=False)
                raise
        self._seconds[name] = time.perf_counter() - start
        self._console.print(f"✓ {name}  {self._seconds[name]:.1f} s", markup=False, highlight=False)


# ── this machine ──────────────────────────────────────────────────────────────────────────────────


def _this_machine(options: Options, root: Path, out: Path, ledger: sweep.Ledger, stage: _Stages) -> tuple[list[Path], list[Record]]:
    description = engine.describe()
    measure.check_backend(description, cpu=options.cpu)
    timing = sweep.digest([root / "src" / "nbutils" / f"{name}.py" for name in _TIMING_MODULES])
    # A measurement belongs to this machine and this build of llama.cpp.
    machine = probe.machine().model_dump(exclude={"memory_available_bytes", "notes"})
    reads = "|".join([timing, str(machine), str(description)])
    page, pages = root / "book" / "here", []
    with stage("probe") as say:
        cell = sweep.Cell(
            notebook=root / "notebooks" / "probe.ipynb",
            output=page / "probe.ipynb",
            parameters={"seconds": min(1.0, registry.load_suite(options.suite).yardstick_s), "n_threads": options.n_threads, "cpu": options.cpu},
            title="What this machine is",
            reads=reads + _reads_for_pages(root),
        )
        pages.append(_run(cell, ledger, say))
    size = options.size or _size(out / "nbutils" / "size.txt", description, options, ledger, reads)
    with stage("stand-in models") as say:
        stand_ins = [stand_in for stand_in, _ in make_stand_ins(size, say)]
    with stage("measurements") as say:
        files = []
        for number, stand_in in enumerate(stand_ins, 1):
            label = f"{number} of {len(stand_ins)}, {stand_in.name} {stand_in.format}"
            files.append(_measure(stand_in, options, root, out, ledger, reads, partial(_say_with, say, label)))
    # A machine that the registry does not know gets the notebook's own example, and the title names it.
    unlisted = machine["device"] == "unlisted"
    fit_device, fit_configuration = ("dgx-spark", "") if unlisted else (machine["device"], machine["configuration"])
    with stage("pages of this machine") as say:
        cells = [
            sweep.Cell(
                notebook=root / "notebooks" / "here.ipynb",
                output=page / "this-machine.ipynb",
                parameters={"records": [f.relative_to(paths.user_records_dir()).as_posix() for f in files]},
                title="This machine",
                reads=_reads_for_pages(root),
            ),
            sweep.Cell(
                notebook=root / "notebooks" / "fit.ipynb",
                output=page / "fit.ipynb",
                parameters={"device": fit_device, "configuration": fit_configuration},
                title=f"Will Llama 3.3 70B fit on {registry.load_device(fit_device).name}?",
                reads=_reads_for_pages(root),
            ),
        ]
        pages = [_run(cells[0], ledger, say), *pages, _run(cells[1], ledger, say)]
    return pages, [records.read(f) for f in files]


def _size(chosen: Path, description: dict[str, Any], options: Options, ledger: sweep.Ledger, reads: str) -> str:
    """The size of stand-in for this machine; on a GPU it depends on how fast its memory is, which is measured once."""
    if not measure.wants_gpu(description, cpu=options.cpu):
        return "base"
    key = f"{reads}|{options.cpu}"
    if not ledger.is_done(chosen, key):
        found = probe.speed(seconds=0.2, n_threads=probe.n_threads_default(), use_gpu=True)
        rates = [y.n_bytes / min(y.samples_s) for y in found["yardsticks"] if y.kind == "read" and y.where == "gpu"]
        paths.write_text(chosen, gguf_files.choose_size(max(rates), registry.load_format("F16"), has_gpu=True))
        ledger.put(chosen, key)
    return chosen.read_text(encoding="utf-8")


def make_stand_ins(size: str, say: Callable[[str], None]) -> list[tuple[gguf_files.StandIn, Path]]:
    """Make the pair of ``size`` in every format, unless it is there, telling how far it is."""
    formats = {name: registry.load_format(name) for name in gguf_files.FORMATS}
    stand_ins = [gguf_files.StandIn(kind, size, f) for kind in ("dense", "moe") for f in gguf_files.FORMATS]
    total = sum(weight_bytes(gguf_files.stand_in_model(s.kind, s.size), formats[s.format]) for s in stand_ins)
    written, told = 0, 0

    def progress(n_bytes: int) -> None:
        nonlocal written, told
        written += n_bytes
        if written - told > total / 10:
            told = written
            say(f"{written / 1e9:.1f} of {total / 1e9:.1f} GB")

    return list(zip(stand_ins, gguf_files.make_all(stand_ins, formats, progress), strict=True))


def _measure(
    stand_in: gguf_files.StandIn, options: Options, root: Path, out: Path, ledger: sweep.Ledger, reads: str, say: Callable[[str], None]
) -> Path:
    """One measuring cell: an executed notebook under ``_build`` and a record in the user's folder; returns the record."""
    suite = paths.data_dir() / "suites" / f"{options.suite}.yaml"
    cell = sweep.Cell(
        notebook=root / "notebooks" / "measure.ipynb",
        output=out / "nbutils" / "runs" / f"measure-{stand_in.name}-{stand_in.format}.ipynb",
        parameters={
            "model": stand_in.name,
            "format": stand_in.format,
            "suite": options.suite,
            "n_threads": options.n_threads,
            "cpu": options.cpu,
        },
        reads="|".join([reads, sweep.digest([suite]), str(gguf_files.stand_in_path(stand_in))]),
    )
    if ledger.is_done(cell.output, cell.key):
        return Path(ledger.left(cell.output))
    before = set(records.list_records())
    sweep.run_cell(cell, _Lines(say))
    new = sorted(set(records.list_records()) - before)
    if not new:
        raise DataError(f"{cell.output.name}: the notebook ran and left no record in {paths.user_records_dir()}")
    ledger.put(cell.output, cell.key, str(new[-1]))
    return new[-1]


def _say_with(say: Callable[[str], None], label: str, line: str) -> None:
    say(f"{label}: {line}")


class _Lines:
    """A text file that hands on the notebook's lines of progress (``notebook.tell``) and drops the rest."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._rest = say, ""

    def write(self, text: str) -> int:
        *whole, self._rest = (self._rest + text).split("\n")
        for line in whole:
            if line.startswith(notebook.TOLD):
                self._say(line.removeprefix(notebook.TOLD).strip())
        return len(text)

    def flush(self) -> None:
        """Nothing to do: a line is handed on when it is whole."""


# ── pages ─────────────────────────────────────────────────────────────────────────────────────────


def _reads_for_pages(root: Path) -> str:
    return sweep.digest([root / "src" / "nbutils", paths.data_dir()])


def _reads(root: Path, *data: str) -> str:
    """The code and these parts of the data: what a page of one thing reads, so that a change elsewhere leaves it alone."""
    code = sweep.digest([root / "src" / "nbutils"])
    return "|".join([code, *(sweep.digest([paths.data_dir() / name]) for name in data)])


def _run(cell: sweep.Cell, ledger: sweep.Ledger, say: Callable[[str], None]) -> Path:
    if not ledger.is_done(cell.output, cell.key):
        say(cell.title)
        sweep.run_cell(cell, _Lines(say))
        ledger.put(cell.output, cell.key)
    return cell.output


_OF_DEVICE_PAGES = ("devices", "models", "buffers", "published", "articles", "formats.yaml", "runtimes.yaml", "market.yaml")


def _device_pages(root: Path, ledger: sweep.Ledger, say: Callable[[str], None]) -> None:
    folder = root / "book" / "devices"
    wanted = registry.page_ids()
    for stale in folder.glob("*.ipynb"):
        if stale.stem not in wanted:
            stale.unlink()
    # Rents and claims name other devices than the page's own, so a page reads them all.
    reads = _reads(root, *_OF_DEVICE_PAGES)
    cells = [
        sweep.Cell(
            notebook=root / "notebooks" / "device.ipynb",
            output=folder / f"{device_id}.ipynb",
            parameters={"device": device_id},
            title=registry.load_device(device_id).name,
            reads=reads,
        )
        for device_id in wanted
    ]
    _run_all(cells, ledger, say)


def _article_pages(root: Path, ledger: sweep.Ledger, say: Callable[[str], None]) -> None:
    folder = root / "book" / "articles"
    wanted = registry.article_ids()
    _remove_others(folder, wanted)
    # A claim is held against the claims of all the others, and against whatever device or model it names.
    reads = _reads(root, "articles", "devices", "models", "buffers", "formats.yaml", "runtimes.yaml")
    cells = [
        sweep.Cell(
            notebook=root / "notebooks" / "article.ipynb",
            output=folder / f"{article_id}.ipynb",
            parameters={"article": article_id},
            title=f"{registry.load_article(article_id).publisher}: {registry.load_article(article_id).title}",
            reads=reads,
        )
        for article_id in wanted
    ]
    _run_all(cells, ledger, say)


def _remove_others(folder: Path, wanted: list[str]) -> None:
    """Pages of what is no longer there would stay in the book."""
    for stale in folder.glob("*.ipynb"):
        if stale.stem not in wanted:
            stale.unlink()


def _run_all(cells: list[sweep.Cell], ledger: sweep.Ledger, say: Callable[[str], None]) -> None:
    waiting = [cell for cell in cells if not ledger.is_done(cell.output, cell.key)]
    # Pages compute and measure nothing, so they may share the machine. Each runs in a kernel of its own.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        runs = {pool.submit(sweep.run_cell, cell): cell for cell in waiting}
        try:
            for number, run in enumerate(as_completed(runs), start=1):
                run.result()
                ledger.put(runs[run].output, runs[run].key)
                say(f"{number} of {len(waiting)}, {runs[run].title}")
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _proof_page(root: Path, ledger: sweep.Ledger, say: Callable[[str], None]) -> None:
    """Our bytes beside llama.cpp's for every model: run again when either changes."""
    cell = sweep.Cell(
        notebook=root / "notebooks" / "proof.ipynb",
        output=root / "book" / "proof" / "proof.ipynb",
        parameters={"models": "all"},
        reads=f"{_reads(root, 'models', 'formats.yaml', 'buffers')}|{engine.build()}",
    )
    _run(cell, ledger, say)


def _jupyter_book(root: Path, out: Path, local_pages: list[Path], ledger: sweep.Ledger, say: Callable[[str], None]) -> None:
    """Build the HTML unless nothing it reads has changed; warnings are errors."""
    index = out / "html" / "index.html"
    toc = _toc(root, out, local_pages)
    reads = [root / "book", root / "src" / "nbutils", paths.data_dir(), root / "_config.yml", toc, root / "requirements.lock"]
    key = sweep.digest(reads)
    if ledger.is_done(index, key):
        return
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", str(root), "--toc", str(toc)]
    command += ["-W", "-n", "--keep-going", "--all"]
    # Chapters run in kernels of their own; matplotlib must not look for a screen there.
    environment = os.environ | {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "PYTHONWARNINGS": "ignore", "NO_COLOR": "1"}
    log = out / "nbutils" / "jupyter-book.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    # Built aside and swapped in: a failed or interrupted build costs neither the last good book nor the record of it.
    building = out / "nbutils" / "building"
    shutil.rmtree(building, ignore_errors=True)
    command += ["--path-output", str(building)]
    with log.open("w+", encoding="utf-8", errors="replace") as words:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, text=True, errors="replace")
        try:
            assert process.stdout is not None
            for line in process.stdout:
                words.write(line)
                if told := re.search(r"(reading sources|writing output)\.\.\. \[ *(\d+%)\] (\S+)", line):
                    say(f"{told[1]}: {told[2]} {told[3]}")
            code = process.wait()
        finally:
            _end_tree(process)
    if code != 0:
        raise DataError(f"jupyter-book stopped with code {code}: {_first_complaint(log)} (all of it: {log})")
    ledger.drop(index)  # from here on the old key would vouch for something else
    shutil.rmtree(index.parent, ignore_errors=True)
    (building / "_build" / "html").replace(index.parent)
    ledger.put(index, key)


def _end_tree(process: subprocess.Popen[str]) -> None:
    """End a process and the kernels it started; does nothing when it has ended."""
    if process.poll() is not None:
        return
    for child in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    process.wait()


def _first_complaint(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    telling = (line.strip() for line in lines if re.search(r"WARNING:|ERROR:|Error:", line))
    return next(telling, lines[-1] if lines else "it said nothing")


def _toc(root: Path, out: Path, local_pages: list[Path]) -> Path:
    """The table of contents of this build: the committed one, and a part for this machine where there is one."""
    contents = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    if local_pages:
        chapters = [{"file": p.relative_to(root).with_suffix("").as_posix()} for p in local_pages]
        contents["parts"].insert(0, {"caption": "Measured here", "chapters": chapters})
    path = out / "nbutils" / "_toc.yml"
    paths.write_text(path, yaml.safe_dump(contents, sort_keys=False))
    return path


def clean(root: Path) -> list[Path]:
    """Remove what builds made inside the checkout; records and stand-ins lie elsewhere and stay."""
    made = [root / "_build", *(root / "book" / name for name in ("articles", "devices", "here", "proof"))]
    gone = [p for p in made if p.exists()]
    for path in gone:
        shutil.rmtree(path)
    return gone
