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
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from nbutils import engine, gguf_files, grid, measure, paths, probe, records, registry, sweep
from nbutils.errors import DataError, NbutilsError
from nbutils.specs import Record
from nbutils.tensors import weight_bytes

__all__ = ["SIZES", "Options", "Result", "build_book", "clean", "make_stand_ins"]

SIZES = tuple(gguf_files.SIZES)


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
    stage = _Stages(console, result.stages_s)
    with stage("checking data"):
        if problems := registry.check_data():
            raise DataError(f"{len(problems)} problems in the registry, the first: {problems[0]} ('nbutils check-data' lists all)")
        registry.load_suite(options.suite)
        if not options.published:
            records.require_writable()
    local_pages: list[Path] = []
    if not options.published:
        local_pages, result.records = _this_machine(options, out, stage)
    with stage("pages") as say:
        cells, _ = grid.cells_of(registry.load_sweep("pages"))
        _remove_others(cells)
        _sweep("pages", cells, say)
    with stage("book") as say:
        _jupyter_book(root, out, local_pages, say)
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


def _this_machine(options: Options, out: Path, stage: _Stages) -> tuple[list[Path], list[Record]]:
    description = engine.describe()
    measure.check_backend(description, cpu=options.cpu)
    depends = grid.this_machine(description)
    asked = {"n_threads": options.n_threads, "cpu": options.cpu}
    with stage("probe") as say:
        seconds = min(1.0, registry.load_suite(options.suite).yardstick_s)
        probed = sweep.Cell(
            notebook="notebooks/probe.ipynb",
            output="book/here/probe.ipynb",
            parameters={"seconds": seconds, **asked},
            title="What this machine is",
            measures=True,
            depends=depends,
        )
        _sweep("here", [probed], say)
    size = options.size or _size(out / "nbutils" / "size.txt", description, options, depends)
    with stage("stand-in models") as say:
        stand_ins = [stand_in for stand_in, _ in make_stand_ins(size, say)]
    with stage("measurements") as say:
        cells = [_measuring(stand_in, {"suite": options.suite, **asked}, depends) for stand_in in stand_ins]
        store = _sweep("here", cells, say)
        files = [file for cell in cells for file in store.records(cell)]
    with stage("pages of this machine") as say:
        cells = _pages_of_this_machine([file.relative_to(paths.user_records_dir()).as_posix() for file in files])
        _sweep("here", cells, say)
    return [cells[0].target, probed.target, cells[1].target], [records.read(f) for f in files]


def _measuring(stand_in: gguf_files.StandIn, asked: dict[str, Any], depends: dict[str, str]) -> sweep.Cell:
    """A cell that leaves a record in the user's folder, and its notebook under ``_build``."""
    return sweep.Cell(
        notebook="notebooks/measure.ipynb",
        output=f"_build/nbutils/runs/measure-{stand_in.name}-{stand_in.format}.ipynb",
        parameters={"model": stand_in.name, "format": stand_in.format, **asked},
        title=f"{stand_in.name} in {stand_in.format}",
        measures=True,
        depends=depends | {"the stand-in": gguf_files.stand_in_path(stand_in).name},
    )


def _pages_of_this_machine(names: list[str]) -> list[sweep.Cell]:
    """What its records show, and what fits: where the registry does not know it, on the notebook's own example, and the title names that."""
    machine = probe.machine()
    device, configuration = ("dgx-spark", "") if machine.device == "unlisted" else (machine.device, machine.configuration)
    return [
        sweep.Cell(
            notebook="notebooks/here.ipynb",
            output="book/here/this-machine.ipynb",
            parameters={"records": names},
            title="This machine",
        ),
        sweep.Cell(
            notebook="notebooks/fit.ipynb",
            output="book/here/fit.ipynb",
            parameters={"device": device, "configuration": configuration},
            title=f"Will Llama 3.3 70B fit on {registry.load_device(device).name}?",
        ),
    ]


def _size(chosen: Path, description: dict[str, Any], options: Options, depends: dict[str, str]) -> str:
    """The size of stand-in for this machine; on a GPU it depends on how fast its memory is, which is measured once."""
    if not measure.wants_gpu(description, cpu=options.cpu):
        return "base"
    key, kept = sweep.digest_of(depends), chosen.with_suffix(".key")
    if not _is_made(chosen, kept, key):
        found = probe.speed(seconds=0.2, n_threads=probe.n_threads_default(), use_gpu=True)
        rates = [y.n_bytes / min(y.samples_s) for y in found["yardsticks"] if y.kind == "read" and y.where == "gpu"]
        paths.write_text(chosen, gguf_files.choose_size(max(rates), registry.load_format("F16"), has_gpu=True))
        paths.write_text(kept, key)
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


# ── pages ─────────────────────────────────────────────────────────────────────────────────────────


def _sweep(name: str, cells: list[sweep.Cell], say: Callable[[str], None]) -> sweep.Store:
    """Run what has to be run; raises ``DataError`` for the first cell that failed, after the others."""
    store = sweep.Store(name)
    with store.lock():
        todo = [cell for cell, _ in sweep.unfinished(cells, store)]
        for cell in cells:
            store.restore(cell)
        summary = sweep.run(todo, store, sweep.Local(store, min(8, os.cpu_count() or 1)), _Said(say, len(todo)))
    if summary.failed:
        more = f" (and {len(summary.failed) - 1} more cells failed)" if len(summary.failed) > 1 else ""
        raise DataError(summary.failed[0][1] + more)
    return store


class _Said(sweep.Watch):
    """Says in a line how far a sweep is."""

    def __init__(self, say: Callable[[str], None], total: int) -> None:
        self._say, self._ended, self._total = say, 0, total

    def told(self, cell: sweep.Cell, line: str) -> None:
        self._say(f"{cell.name}: {line}")

    def ended(self, cell: sweep.Cell, problem: str) -> None:
        self._ended += 1
        self._say(f"{self._ended} of {self._total}, {cell.name}")


def _remove_others(cells: list[sweep.Cell]) -> None:
    """Pages of what is no longer there would stay in the book."""
    wanted = {cell.target for cell in cells}
    for stale in [path for folder in {path.parent for path in wanted} for path in folder.glob("*.ipynb") if path not in wanted]:
        stale.unlink()


def _is_made(path: Path, kept: Path, key: str) -> bool:
    """Whether a file is there, made with the key that is kept."""
    return path.is_file() and kept.is_file() and kept.read_text(encoding="utf-8") == key


def _jupyter_book(root: Path, out: Path, local_pages: list[Path], say: Callable[[str], None]) -> None:
    """Build the HTML unless nothing it reads has changed; warnings are errors."""
    index = out / "html" / "index.html"
    toc = _toc(root, out, local_pages)
    reads = [root / "book", root / "src" / "nbutils", paths.data_dir(), root / "_config.yml", toc, root / "requirements.lock"]
    key, kept = sweep.digest(reads), out / "nbutils" / "html.key"
    if _is_made(index, kept, key):
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
            if process.poll() is None:
                sweep.end_tree(process.pid)  # and the kernels it started
                process.wait()
    if code != 0:
        raise DataError(f"jupyter-book stopped with code {code}: {_first_complaint(log)} (all of it: {log})")
    kept.unlink(missing_ok=True)  # from here on it would vouch for something else
    shutil.rmtree(index.parent, ignore_errors=True)
    (building / "_build" / "html").replace(index.parent)
    paths.write_text(kept, key)


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
