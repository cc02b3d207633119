"""papermill over many cells: each run once for everything it depends on, kept whole or not at all, gone on with after any kill.

A **cell** is a notebook with parameters and a place for its page. ``execute`` runs one in a folder of its own and leaves
there ``executed.ipynb``, ``records/<device>/*.json`` (what the notebook measured) and, last, ``result.json``: the cell, with
digests of its notebook and of every file that the kernel read. A cell that fails leaves ``error.txt`` instead, and
``failed.ipynb`` where it got so far; what it had measured by then is a measurement all the same, and is kept. ``execute`` needs
the cell, the folder and the project, so it can run anywhere; ``Cell`` is made of plain values, with paths in POSIX form
relative to the project.

A **runner** says where: ``submit(cell, watch)`` returns a future of such a folder on this machine's disk, one that
``Store.staging(cell)`` gave. ``Local`` runs cells in worker processes here; one that runs them elsewhere brings the folder's
files back. It calls ``watch.started(cell)`` when a cell starts and ``watch.told(cell, line)`` with its lines of progress, from
any thread. A cell that cannot be run at all is an ``NbutilsError`` in its future and is reported as failed. A runner keeps two
measurements of one device apart (``cell.measures``, ``cell.device``).

``run`` hands cells to a runner and commits what comes back. A **store** holds what one sweep has done: ``commit`` renames the
folder into ``done/`` in one step and then delivers, records to the user's folder and the page to its place. Delivery can be
repeated without harm, and is when it was cut off. So a kill at any moment costs cells that were under way, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Protocol

import psutil
import yaml

from nbutils import _reads, paths
from nbutils.errors import DataError, MissingExtra, NbutilsError, UsageError
from nbutils.notebook import KERNEL_ARGUMENTS, TOLD, declared_in, validate

__all__ = [
    "Cell",
    "CellFailed",
    "Local",
    "Runner",
    "Store",
    "Summary",
    "Watch",
    "digest",
    "digest_of",
    "end_tree",
    "execute",
    "rerun",
    "run",
    "run_cell",
    "versions",
]

#: The code that times. A measurement is not repeated because a drawing, a figure or a library changed: rates and ceilings are computed when shown.
TIMING_MODULES = frozenset(
    {
        "_allocations",
        "_bench",
        "_engine_child",
        "_ggml",
        "endpoint",
        "engine",
        "fit",
        "gguf_files",
        "measure",
        "monitor",
        "oracle",
        "probe",
        "specs",
        "subjects",
        "sustain",
        "tensors",
    }
)
#: A model is known by its size and its time; reading it all would take longer than measuring it.
_LARGE_BYTES = 16_000_000


class CellFailed(NbutilsError):
    """A notebook stopped with an error; the executed notebook is kept beside its output."""


class CellMisused(UsageError):
    """A notebook refused its parameters."""


_MISUSE = ("UnknownId", "UnknownParameter", "UsageError")


# ── a cell ────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One notebook run: what to run, with what, where, and where its page goes. Paths are absolute, or relative to the project."""

    notebook: str
    output: str
    parameters: dict[str, Any] = field(default_factory=dict)
    #: Replaces the first heading, so that a page is called by its subject.
    title: str = ""
    #: The registry's id of the device that must run it; empty for any.
    device: str = ""
    #: Whether it times something, and so wants its device for itself.
    measures: bool = False
    #: What it depends on and no file says, by name: this machine, a build of llama.cpp.
    depends: dict[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """A name for folders: of the page that the cell makes, whatever its parameters are by now."""
        slug = re.sub(r"[^A-Za-z0-9.-]+", "-", "-".join(Path(self.output).with_suffix("").parts[-2:]))
        return f"{slug[-60:].strip('-.')}-{hashlib.sha256(self.output.encode()).hexdigest()[:8]}"

    @property
    def source(self) -> Path:
        return _placed(self.notebook)

    @property
    def target(self) -> Path:
        return _placed(self.output)

    @property
    def failed(self) -> Path:
        """Where the notebook is kept, with the error in it, when it stops."""
        return self.target.with_suffix(".failed.ipynb")

    @property
    def name(self) -> str:
        return self.title or Path(self.output).stem


def _placed(path: str) -> Path:
    return Path(path) if Path(path).is_absolute() else paths.project_dir() / path


def rerun(cell: Cell) -> str:
    """The command that runs a cell by itself."""
    words = ["nbutils", "run", cell.source.stem if cell.source.parent == paths.project_dir() / "notebooks" else str(cell.source), str(cell.target)]
    for name, value in cell.parameters.items():
        words += ["-p", f"{name}={_as_yaml(value)}"]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def _as_yaml(value: Any) -> str:
    """A value in a line, as ``nbutils run`` reads it back; a word needs no quotes."""
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z_][\w./+-]*", value) and yaml.safe_load(value) == value:
        return value
    style = '"' if isinstance(value, str) else None
    return str(yaml.safe_dump(value, default_style=style, default_flow_style=True, width=1e9)).removesuffix("\n...\n").strip("\n")


# ── digests ───────────────────────────────────────────────────────────────────────────────────────


def digest(files: Iterable[Path]) -> str:
    """SHA-256 over names and contents, in a fixed order; folders are walked."""
    total = hashlib.sha256()
    for name, path in sorted(_walk(files)):
        total.update(name.encode() + b"\0" + _digest_of(path).encode())
    return total.hexdigest()


def digest_of(value: Any) -> str:
    """SHA-256 of a plain value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _walk(files: Iterable[Path]) -> list[tuple[str, Path]]:
    """Files with their names relative to the folder that was asked for."""
    found: list[tuple[str, Path]] = []
    for path in files:
        if path.is_dir():
            found += [(p.relative_to(path).as_posix(), p) for p in path.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
        elif path.is_file():
            found.append((path.name, path))
    return found


def _digest_of(path: Path) -> str:
    """Of a file what is in it, of a folder the names in it; empty for what is not there."""
    try:
        if path.is_dir():
            names = sorted(p.name for p in path.iterdir() if not p.name.startswith((".", "__")))
            return hashlib.sha256("\0".join(names).encode()).hexdigest()
        said = path.stat()
        return _digest_of_file(path, said.st_mtime_ns, said.st_size)
    except OSError:
        return ""


@lru_cache(maxsize=8192)
def _digest_of_file(path: Path, mtime_ns: int, size: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if size < _LARGE_BYTES else f"{size} bytes of {mtime_ns}"


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """What is installed of what this project asks for, and Python."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for line in requires("nbutils") or []:
        if 'extra == "test"' in line.replace("'", '"'):
            continue
        name = re.split(r"[^A-Za-z0-9_.-]", line, maxsplit=1)[0]
        with suppress(PackageNotFoundError):
            found[name.lower()] = version(name)
    return dict(sorted(found.items()))


# ── what a kernel read ────────────────────────────────────────────────────────────────────────────


def _roots(cell: Cell) -> dict[str, Path]:
    """Folders whose files count, by the name that they have in a list of reads on every machine; the innermost first."""
    return {"code": Path(__file__).parent, "data": paths.data_dir(), "records": paths.user_records_dir(), "beside": cell.source.parent}


def _files_named(cell: Cell) -> list[Path]:
    """Files that parameters name, such as a model: llama.cpp reads it in a process of its own."""
    texts = [value for value in cell.parameters.values() if isinstance(value, str) and value]
    return [path for path in (cell.source.parent / os.path.expanduser(text) for text in texts) if _is_file(path)]  # noqa: PTH111 - raises for no user


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False  # too long for a path, or no text for one


def _reads_in(notes: Path, cell: Cell, began_ns: int) -> dict[str, str]:
    """Digests of everything that a kernel noted, by name; nothing that changed while it ran has one."""
    try:
        lines = notes.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except FileNotFoundError:
        raise CellFailed(
            f"{cell.source.name}: its kernel did not say what it reads; 'python3' must be a kernel of the Python that runs nbutils"
        ) from None
    roots = _roots(cell)
    found = {f"file/{path.as_posix()}": path for path in _files_named(cell)}
    for what, _, text in (line.partition(" ") for line in lines):
        if what == "child":  # it may import any module of ours
            found |= {f"code/{path.name}": path for path in roots["code"].glob("*.py")}
        elif what in ("open", "list"):
            path = _reads.source_of(Path(text))
            if (name := _name_of(path, what, roots)) and not path.is_relative_to(notes.parent):
                found[name] = path
    return {name: _digest_since(path, began_ns) for name, path in sorted(found.items())}


def _name_of(path: Path, what: str, roots: dict[str, Path]) -> str:
    if path.name.startswith("."):
        return ""
    for root, folder in roots.items():
        if path.is_relative_to(folder):
            # Imports list the folders that they look in.
            shown = what == "open" or root not in ("code", "beside")
            return f"{root}/{path.relative_to(folder).as_posix()}{'/' if what == 'list' else ''}" if shown else ""
    return ""


def _digest_since(path: Path, began_ns: int) -> str:
    with suppress(OSError):
        if path.stat().st_mtime_ns >= began_ns:
            return "changed while it ran"
    return _digest_of(path)


def _located(name: str, roots: dict[str, Path]) -> Path:
    root, _, rest = name.partition("/")
    return Path(rest) if root == "file" else roots[root] / rest


def _shown(name: str) -> str:
    return {"code": "src/nbutils/", "beside": ""}.get(name.partition("/")[0], name.partition("/")[0] + "/") + name.partition("/")[2]


def _times(name: str) -> bool:
    """Whether a measurement depends on it."""
    root, _, rest = name.partition("/")
    if root == "code":
        return Path(rest).stem in TIMING_MODULES
    return root == "file" or (name.startswith("data/suites/") and not name.endswith("/"))


# ── running one ───────────────────────────────────────────────────────────────────────────────────


def execute(cell: Cell, folder: Path, told: Callable[[str], None] | None = None) -> None:
    """Run a cell in ``folder``, which is empty: see the top of this module for what it leaves there.

    ``told`` gets the notebook's lines of progress. Raises nothing that a notebook does; safe in threads.
    """
    began_ns, began_s = time.time_ns(), time.perf_counter()
    try:
        validate(declared_in(cell.source), cell.parameters)
        made_of = _digest_of(cell.source)
        _run_notebook(cell, folder, _Lines(told) if told else None, recorded=True)
        result = {
            "cell": asdict(cell),
            "notebook": made_of,
            "versions": versions(),
            "reads": _reads_in(folder / "reads.txt", cell, began_ns),
            "records": _records_in(folder),
            "took_s": round(time.perf_counter() - began_s, 3),
        }
        paths.write_text(folder / "result.json", json.dumps(result, indent=1) + "\n")
    except NbutilsError as error:
        paths.write_text(folder / "error.txt", f"{error}\n")
    except Exception as error:  # one cell is not to end the others
        paths.write_text(folder / "error.txt", f"{cell.source.name}: {type(error).__name__}: {' '.join(str(error).split())[:400]}\n")


def run_cell(cell: Cell, stream: Any = None) -> None:
    """Run one notebook now; its output appears whole or, with the error in it, beside as ``*.failed.ipynb``.

    ``stream`` is a text file that gets what the notebook prints, as it prints it. Raises ``UnknownParameter`` for a
    parameter the notebook does not have, ``CellFailed`` with the notebook's own one-line error when a cell stops.
    """
    validate(declared_in(cell.source), cell.parameters)
    _require_writable(cell.target)
    with tempfile.TemporaryDirectory(prefix="nbutils-") as name:
        folder = Path(name)
        try:
            _run_notebook(cell, folder, stream)
        except NbutilsError as error:
            if not (folder / "failed.ipynb").exists():
                raise
            _deliver_file(folder / "failed.ipynb", cell.failed)
            raise type(error)(f"{error} (the run is kept in {cell.failed.name})") from None
        _deliver_file(folder / "executed.ipynb", cell.target)
    cell.failed.unlink(missing_ok=True)


def _run_notebook(cell: Cell, folder: Path, stream: Any, *, recorded: bool = False) -> None:
    """Execute a notebook to ``executed.ipynb``, or to ``failed.ipynb`` and an error.

    ``recorded``: what it reads is noted in ``folder``, and its records are kept there.
    """
    papermill, nbformat = _papermill()
    executed = folder / "executed.ipynb"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("papermill").setLevel(logging.ERROR)
        try:
            papermill.execute_notebook(
                _for_papermill(cell.source),
                _for_papermill(executed),
                parameters=cell.parameters,
                progress_bar=False,
                request_save_on_cell_execute=False,
                log_output=stream is not None,
                stdout_file=stream,
                # Not papermill's own cwd, which is that of the whole process.
                resources={"metadata": {"path": str(cell.source.parent)}},
                extra_arguments=[*KERNEL_ARGUMENTS, *([_noting(cell, folder)] if recorded else [])],
            )
        except papermill.PapermillExecutionError as error:
            executed.replace(folder / "failed.ipynb")
            what = str(error.evalue).splitlines()[0] if error.evalue else error.ename
            raise (CellMisused if error.ename in _MISUSE else CellFailed)(f"{cell.source.name}: {error.ename}: {what}") from None
        except RuntimeError as error:  # nbclient's, when the kernel is gone
            source = nbformat.read(cell.source, as_version=4)
            source.cells.insert(
                0, nbformat.v4.new_markdown_cell("**The kernel died** before this notebook was through; nothing of what it showed was kept.")
            )
            nbformat.write(source, folder / "failed.ipynb")
            raise CellFailed(f"{cell.source.name}: its kernel died: {' '.join(str(error).split())}") from None
    _finish(executed, cell.title, nbformat)


def _for_papermill(path: Path) -> str:
    """papermill fills in what stands in braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _noting(cell: Cell, folder: Path) -> str:
    """The kernel's argument that makes it note what it reads; it leaves no name behind."""
    roots = [str(root) for root in _roots(cell).values()]
    arguments = ", ".join(repr(value) for value in (str(folder / "reads.txt"), str(folder / "records"), roots))
    return f"--IPKernelApp.exec_lines=__import__('nbutils._reads', fromlist=['start']).start({arguments})"


def _require_writable(output: Path) -> None:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise UsageError(f"{str(output)!r} cannot be written: {error.strerror}; name another output") from None


def _finish(path: Path, title: str, nbformat: Any) -> None:
    """Make an executed notebook a page: its subject as the title, no injected parameters, no run times."""
    notebook = nbformat.read(path, as_version=4)
    first = notebook.cells[0]
    if title and first.cell_type == "markdown":
        first.source = "\n".join([f"# {title}", *first.source.splitlines()[1:]])
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if "injected-parameters" in tags and "remove-input" not in tags:
            tags.append("remove-input")
        cell.metadata = {"tags": tags} | {k: v for k, v in cell.metadata.items() if k == "mystnb"}
    notebook.metadata.pop("papermill", None)
    path.write_text(nbformat.writes(notebook), encoding="utf-8", newline="\n")


_NEEDS_PAPERMILL = "running notebooks needs papermill: pip install -e '.[book]'"


def _papermill() -> tuple[Any, Any]:
    try:
        import nbformat
        import papermill
    except ImportError:
        raise MissingExtra(_NEEDS_PAPERMILL) from None
    return papermill, nbformat


class _Lines:
    """A text file that hands on the notebook's lines of progress (``notebook.tell``) and drops the rest."""

    def __init__(self, told: Callable[[str], None]) -> None:
        self._told, self._rest = told, ""

    def write(self, text: str) -> int:
        *whole, self._rest = (self._rest + text).split("\n")
        for line in whole:
            if line.startswith(TOLD):
                self._told(line.removeprefix(TOLD).strip())
        return len(text)

    def flush(self) -> None:
        """Nothing to do: a line is handed on when it is whole."""


# ── what is done ──────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Done:
    """A finished cell as it lies in a store."""

    folder: Path
    result: dict[str, Any]

    @property
    def cell(self) -> Cell:
        return Cell(**self.result["cell"])

    @property
    def records(self) -> list[str]:
        return list(self.result["records"])


class Store:
    """What is done and what is under way, of one sweep, in ``_build/sweeps/<name>``. Only who holds ``lock`` may write."""

    def __init__(self, name: str, folder: Path | None = None) -> None:
        self.name = name
        self.folder = folder or paths.project_dir() / "_build" / "sweeps" / name
        self._done = self.folder / "done"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the store, after putting in order what a killed sweep left.

        Raises ``UsageError`` while another process holds it, ``DataError`` where what is left cannot be written to its place.
        """
        with _held(self.folder / "running", self.name):
            try:
                self._put_in_order()
            except OSError as error:
                raise DataError(f"what an earlier sweep made cannot be put in its place: {error.strerror}; free some space, then go on") from None
            yield

    def staging(self, cell: Cell) -> Path:
        """A new empty folder to run a cell in."""
        folder = self.folder / "staging" / f"{cell.id}.{uuid.uuid4().hex[:8]}"
        folder.mkdir(parents=True)
        return folder

    def _put_in_order(self) -> None:
        for folder in sorted(self.folder.glob("staging/*")):
            self._take_up(folder)
        for done in self._all():
            if not (done.folder / "delivered").exists():
                self._deliver(done)

    def _take_up(self, folder: Path) -> None:
        """Of a killed sweep: end a kernel that runs on, keep a cell that was finished and what one that failed had measured, remove others."""
        end_kernel(folder)
        if (done := _read_done(folder)) is not None:
            self.commit(done.cell, folder)
        elif (folder / "error.txt").is_file():
            self._deliver_records(folder, _records_in(folder))
        shutil.rmtree(folder, ignore_errors=True)

    def commit(self, cell: Cell, folder: Path) -> str:
        """Take over what ``execute`` left in ``folder``; returns what went wrong, in a line, or nothing."""
        done = _read_done(folder)
        if done is None:
            problem = _text_of(folder / "error.txt") or f"{cell.source.name}: ended without a result"
            if (folder / "failed.ipynb").is_file():
                _deliver_file(folder / "failed.ipynb", cell.failed)
                problem += f" (the run is kept in {cell.failed.name})"
            if names := _records_in(folder):
                self._deliver_records(folder, names)
                problem += (
                    f"; it had measured, and {'its record is' if len(names) == 1 else f'its {len(names)} records are'} kept: {', '.join(names)}"
                )
            shutil.rmtree(folder, ignore_errors=True)
            return problem
        earlier = self._folders_of(cell)
        number = int(earlier[-1].name.rpartition("@")[2]) + 1 if earlier else 1
        target = self._done / f"{cell.id}@{number:06}"
        self._done.mkdir(parents=True, exist_ok=True)
        _sync(folder)
        folder.replace(target)
        self._deliver(_Done(target, done.result))
        for replaced in earlier:
            shutil.rmtree(replaced, ignore_errors=True)
        return ""

    def _deliver(self, done: _Done) -> None:
        """Copy records and page to their places."""
        self._deliver_records(done.folder, done.records)
        _deliver_file(done.folder / "executed.ipynb", done.cell.target)
        done.cell.failed.unlink(missing_ok=True)
        (done.folder / "delivered").touch()

    @staticmethod
    def _deliver_records(folder: Path, names: Sequence[str]) -> None:
        """Records have their digest in the name, so that twice is once."""
        for name in names:
            if not (paths.user_records_dir() / name).exists():
                _deliver_file(folder / "records" / name, paths.user_records_dir() / name)

    def _folders_of(self, cell: Cell) -> list[Path]:
        return sorted(self._done.glob(f"{cell.id}@*"))

    def _all(self) -> list[_Done]:
        found = {folder.name.rpartition("@")[0]: folder for folder in sorted(self._done.glob("*@*"))}
        return [done for folder in found.values() if (done := _read_done(folder)) is not None]

    def _find(self, cell: Cell) -> _Done | None:
        folders = self._folders_of(cell)
        return _read_done(folders[-1]) if folders else None

    def why(self, cell: Cell) -> list[str]:
        """Why a cell has to run; empty when it has not. A page that is gone or was changed is no reason: it is kept here."""
        done = self._find(cell)
        if done is None:
            return ["failed before" if cell.failed.exists() else "new"]
        return _differences(done, cell)

    def restore(self, cell: Cell) -> None:
        """Put the page of a finished cell back where it is not what was made."""
        done = self._find(cell)
        if done is not None and _digest_of(done.folder / "executed.ipynb") != _digest_of(cell.target):
            _deliver_file(done.folder / "executed.ipynb", cell.target)

    def records(self, cell: Cell) -> list[Path]:
        """The records that a finished cell left in the user's folder."""
        done = self._find(cell)
        return [paths.user_records_dir() / name for name in done.records] if done else []


def _records_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder / "records").as_posix() for path in folder.glob("records/*/*.json"))


def _read_done(folder: Path) -> _Done | None:
    """A folder that holds everything of a finished cell, or nothing."""
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        done = _Done(folder, result)
        whole = all((folder / "records" / name).is_file() for name in done.records) and (folder / "executed.ipynb").is_file()
        known = isinstance(done.cell.depends, dict) and isinstance(result["reads"], dict) and isinstance(result["versions"], dict)
        return done if whole and known and result["notebook"] else None
    except (AttributeError, KeyError, OSError, TypeError, ValueError):
        return None


def _differences(done: _Done, cell: Cell) -> list[str]:
    """What is not as it was when a cell was run, a line each."""
    was, result = done.cell, done.result
    found = [
        f"parameter {name}: {was.parameters.get(name)!r} → {cell.parameters.get(name)!r}"
        for name in sorted(was.parameters.keys() | cell.parameters.keys())
        if was.parameters.get(name) != cell.parameters.get(name)
    ]
    if was.notebook != cell.notebook or result["notebook"] != _digest_of(cell.source):
        found.append(f"notebook changed: {cell.notebook}")
    if was.title != cell.title:
        found.append(f"title: {was.title!r} → {cell.title!r}")
    found += [f"{name} changed" for name in sorted(was.depends.keys() | cell.depends.keys()) if was.depends.get(name) != cell.depends.get(name)]
    now, before = versions(), result["versions"]
    if done.records:  # here it depends on its build of llama.cpp; of a measurement elsewhere the version is all that is known of it
        before = {name: v for name, v in before.items() if name == "llama-cpp-python" and not (was.depends or cell.depends)}
    found += [f"{name}: {was_version} → {now.get(name, 'none')}" for name, was_version in before.items() if now.get(name) != was_version]
    roots = _roots(cell)
    for name, digest_then in result["reads"].items():
        path = _located(name, roots)
        # A model may lie on the machine that measured it, and not here.
        elsewhere = name.startswith("file/") and not path.exists()
        if not elsewhere and (not done.records or _times(name)) and _digest_of(path) != digest_then:
            found.append(f"{'names in ' if name.endswith('/') else ''}{_shown(name)} changed")
    gone = [name for name in done.records if not (paths.user_records_dir() / name).exists()]
    return found + [f"record {name} is gone" for name in gone]


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _deliver_file(source: Path, target: Path) -> None:
    with paths.atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())  # a pulled plug must not leave the name of a record without its content


def _sync(folder: Path) -> None:
    """Have the disk hold a folder's files before its name changes, so that a pulled plug leaves all of it or none."""
    for path in [p for p in folder.rglob("*") if p.is_file()]:
        with path.open("rb+") as file:
            os.fsync(file.fileno())


@contextmanager
def _held(folder: Path, what: str) -> Iterator[None]:
    """Be the only process inside. Each leaves a note first and looks for others then, so that of two at once none or one goes on."""
    me = psutil.Process()
    note = folder / f"{me.pid}.json"
    paths.write_text(note, json.dumps({"pid": me.pid, "started": me.create_time()}) + "\n")
    try:
        for path in sorted(folder.glob("*.json")):
            if path != note and (pid := _alive(path)):
                raise UsageError(f"a sweep of {what!r} is under way in process {pid}; wait until it is done, or end it")
        yield
    finally:
        note.unlink(missing_ok=True)


def _alive(note: Path) -> int:
    """The process that left a note, if it still runs; else 0, and the note is removed."""
    try:
        left = json.loads(note.read_text(encoding="utf-8"))
        pid, started = int(left["pid"]), float(left["started"])
        if psutil.pid_exists(pid) and abs(psutil.Process(pid).create_time() - started) < 1:
            return pid
    except (OSError, ValueError, KeyError, TypeError, OverflowError, psutil.Error):
        pass
    note.unlink(missing_ok=True)
    return 0


def end_kernel(folder: Path) -> None:
    """End the kernel that runs a cell in ``folder``, and what it started, if it still does."""
    first = _text_of(folder / "reads.txt").partition("\n")[0].removeprefix("pid ")
    with suppress(psutil.Error, ValueError):
        # Another process may have the number by now; this one has the folder among its arguments.
        if any(folder.name in word for word in psutil.Process(int(first)).cmdline()):
            end_tree(int(first))


def end_tree(pid: int, *, itself: bool = True) -> None:
    """End what a process started, and by default the process."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for child in [*process.children(recursive=True), *([process] if itself else [])]:
            with suppress(psutil.NoSuchProcess):
                child.kill()


# ── running many ──────────────────────────────────────────────────────────────────────────────────


class Watch:
    """Is told how a sweep goes, from any thread. This one does nothing with it."""

    def started(self, cell: Cell) -> None:
        """A cell is being run."""

    def told(self, cell: Cell, line: str) -> None:
        """The notebook says how far it is."""

    def ended(self, cell: Cell, problem: str) -> None:
        """A cell is done, or failed with ``problem``."""


class Runner(Protocol):
    """Where cells run; see the top of this module."""

    def submit(self, cell: Cell, watch: Watch) -> Future[Path]: ...

    def close(self) -> None:
        """End what still runs."""


@dataclass(slots=True)
class Summary:
    """How a sweep went."""

    done: int = 0
    failed: list[tuple[Cell, str]] = field(default_factory=list)
    took_s: float = 0.0


def run(cells: Sequence[Cell], store: Store, runner: Runner, watch: Watch) -> Summary:
    """Run cells, commit each as it ends, and go on whatever becomes of one. ``store`` is locked; the runner is closed at the end."""
    summary, began_s = Summary(), time.perf_counter()
    try:
        under_way = {runner.submit(cell, watch): cell for cell in cells}
        while under_way:
            # With a limit, because waiting without one cannot be interrupted on Windows.
            for future in wait(under_way, timeout=1.0, return_when=FIRST_COMPLETED).done:
                cell = under_way.pop(future)
                try:
                    problem = store.commit(cell, future.result())
                except (NbutilsError, CancelledError) as error:
                    problem = str(error) or "cancelled"
                except OSError as error:  # what it left lies in the store, and is taken up by the next sweep
                    problem = f"{cell.name}: cannot be kept: {error.strerror}; free some space, then go on"
                if problem:
                    summary.failed.append((cell, problem))
                else:
                    summary.done += 1
                watch.ended(cell, problem)
    finally:
        runner.close()
        summary.took_s = time.perf_counter() - began_s
    return summary


class Local:
    """Runs cells on this machine in ``jobs`` worker processes: pages side by side, measurements one at a time with nothing beside them."""

    def __init__(self, store: Store, jobs: int) -> None:
        if find_spec("papermill") is None:
            raise MissingExtra(_NEEDS_PAPERMILL)
        self._store, self._jobs = store, jobs
        self._waiting: list[tuple[Cell, Watch, Future[Path]]] = []
        self._threads: list[threading.Thread] = []
        self._workers: list[_Worker] = []
        self._running, self._measuring, self._closed = 0, False, False
        self._turn = threading.Condition()

    def submit(self, cell: Cell, watch: Watch) -> Future[Path]:
        future: Future[Path] = Future()
        with self._turn:
            self._waiting.append((cell, watch, future))
            if len(self._threads) < self._jobs:
                thread = threading.Thread(target=self._work, daemon=True)
                self._threads.append(thread)
                thread.start()
            self._turn.notify_all()
        return future

    def close(self) -> None:
        with self._turn:
            self._closed = True
            self._waiting.clear()
            self._turn.notify_all()
            for worker in self._workers:
                worker.end()
        for thread in self._threads:
            thread.join()

    def _next(self) -> tuple[Cell, Watch, Future[Path]] | None:
        """The next cell that may start now, pages first; waits for one, and gives ``None`` at the end."""
        with self._turn:
            while not self._closed:
                for number, (cell, _, _) in enumerate(self._waiting):
                    if not self._measuring and (not cell.measures or (self._running == 0 and all(c.measures for c, _, _ in self._waiting))):
                        self._running, self._measuring = self._running + 1, cell.measures
                        return self._waiting.pop(number)
                self._turn.wait()
        return None

    def _work(self) -> None:
        worker: _Worker | None = None
        while (taken := self._next()) is not None:
            cell, watch, future = taken
            watch.started(cell)
            try:
                # Once more, because a worker may go for reasons that are not the cell's; twice is the cell's.
                for attempt in (1, 2):
                    if worker is None:
                        worker = self._new_worker()
                    folder = self._store.staging(cell)
                    if worker.run(cell, folder, watch):
                        future.set_result(folder)
                        break
                    worker.end()
                    end_kernel(folder)
                    worker = None
                    if _read_done(folder) is not None:  # it went after the cell was done: a second run would be a second record
                        future.set_result(folder)
                        break
                    shutil.rmtree(folder, ignore_errors=True)
                    if self._closed or attempt == 2:
                        raise CellFailed(f"{cell.source.name}: the process that ran it was ended, twice")
            except Exception as error:
                future.set_exception(error if isinstance(error, NbutilsError) else CellFailed(f"{cell.source.name}: {error}"))
            finally:
                with self._turn:
                    self._running, self._measuring = self._running - 1, False
                    self._turn.notify_all()

    def _new_worker(self) -> _Worker:
        with self._turn:
            if self._closed:
                raise CellFailed("the sweep was ended")
            worker = _Worker()
            self._workers.append(worker)
            return worker


class _Worker:
    """A process that runs cells one after the other, each in a kernel of its own."""

    def __init__(self) -> None:
        # Not in the terminal's group of processes: an interrupt is the parent's to deal with.
        group: dict[str, Any] = {"creationflags": 0x200} if os.name == "nt" else {"start_new_session": True}
        command = [sys.executable, "-m", "nbutils._sweep_worker"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, **group)

    def run(self, cell: Cell, folder: Path, watch: Watch) -> bool:
        """Whether the worker came to the end of the cell; not when it is gone."""
        try:
            self._input.write(json.dumps({"cell": asdict(cell), "folder": str(folder)}).encode() + b"\n")
            self._input.flush()
            for line in self._output:
                event = json.loads(line)
                if "done" in event:
                    return True
                if "failed" in event:
                    raise CellFailed(f"{cell.source.name}: what it leaves cannot be written: {event['failed']}; free some space, then go on")
                watch.told(cell, event["told"])
        except (OSError, ValueError):
            pass  # gone, or cut off in a line
        return False

    def end(self) -> None:
        """End the worker and its kernel."""
        end_tree(self._process.pid)
        self._process.wait()
        for stream in (self._input, self._output):
            with suppress(OSError):
                stream.close()

    @property
    def _input(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def _output(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout


def unfinished(cells: Sequence[Cell], store: Store) -> list[tuple[Cell, list[str]]]:
    """The cells that have to run, each with why."""
    return [(cell, why) for cell in cells if (why := store.why(cell))]
