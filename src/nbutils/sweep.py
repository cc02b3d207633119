"""papermill over many cells: each keyed by everything it depends on, run once, kept as a page or as a record.

A cell is a notebook with parameters. When neither the notebook, its parameters nor what it reads has changed since
its output was written, it is not run again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nbutils import paths
from nbutils.errors import MissingExtra, NbutilsError, UsageError
from nbutils.notebook import KERNEL_ARGUMENTS, declared, validate

__all__ = ["Cell", "CellFailed", "Ledger", "digest", "run_cell"]


class CellFailed(NbutilsError):
    """A notebook stopped with an error; the executed notebook is kept beside its output."""


class CellMisused(UsageError):
    """A notebook refused its parameters."""


_MISUSE = ("UnknownId", "UnknownParameter", "UsageError")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One notebook run: what to run, with what, what else it reads, and where its result goes."""

    notebook: Path
    output: Path
    parameters: dict[str, Any] = field(default_factory=dict)
    #: Replaces the first heading, so that a page is called by its subject.
    title: str = ""
    #: Digest of code and data that the cell reads.
    reads: str = ""

    @property
    def key(self) -> str:
        fields = [self.notebook.name, self.parameters, self.title, self.reads, digest([self.notebook])]
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def digest(files: Iterable[Path]) -> str:
    """SHA-256 over names and contents, in a fixed order; folders are walked."""
    total = hashlib.sha256()
    for name, path in sorted(_walk(files)):
        total.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def _walk(files: Iterable[Path]) -> list[tuple[str, Path]]:
    """Files with their names relative to the folder that was asked for."""
    found: list[tuple[str, Path]] = []
    for path in files:
        if path.is_dir():
            found += [(p.relative_to(path).as_posix(), p) for p in path.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
        elif path.is_file():
            found.append((path.name, path))
    return found


def _place(output: Path) -> str:
    return f"{output.parent.name}/{output.name}"


class Ledger:
    """Which key each output was made with, and what a cell left behind (a record's path, say)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries: dict[str, dict[str, str]]
        try:
            read = json.loads(path.read_text(encoding="utf-8"))
            self._entries = {name: {"key": entry["key"], "left": entry["left"]} for name, entry in read.items()}
        except (AttributeError, KeyError, OSError, TypeError, ValueError):
            self._entries = {}  # a lost ledger costs a rerun, nothing else

    def is_done(self, output: Path, key: str) -> bool:
        entry = self._entries.get(_place(output))
        left = entry.get("left", "") if entry else ""
        return entry is not None and entry["key"] == key and output.exists() and (not left or Path(left).exists())

    def left(self, output: Path) -> str:
        """What the cell left behind: a path, or an empty string."""
        return self._entries.get(_place(output), {}).get("left", "")

    def drop(self, output: Path) -> None:
        """Forget an output: what is there may be half of something."""
        if self._entries.pop(_place(output), None) is not None:
            self._write()

    def put(self, output: Path, key: str, left: str = "") -> None:
        self._entries[_place(output)] = {"key": key, "left": left}
        self._write()

    def _write(self) -> None:
        paths.write_text(self._path, json.dumps(self._entries, indent=1, sort_keys=True) + "\n")


def run_cell(cell: Cell, stream: Any = None) -> None:
    """Execute a notebook by papermill; its output appears whole or, with the error in it, beside as ``*.failed.ipynb``.

    ``stream`` is a text file that gets what the notebook prints, as it prints it. Raises ``UnknownParameter`` for a
    parameter the notebook does not have, ``CellFailed`` with the notebook's own one-line error when a cell stops.
    """
    papermill, nbformat = _papermill()
    try:
        source = nbformat.read(cell.notebook, as_version=4)
    except FileNotFoundError:
        raise UsageError(f"no notebook {str(cell.notebook)!r}") from None
    except Exception:
        raise UsageError(f"{str(cell.notebook)!r} is not a notebook") from None
    tagged = [c for c in source.cells if "parameters" in c.metadata.get("tags", [])]
    validate(declared(tagged[0].source) if tagged else {}, cell.parameters)
    failed = cell.output.with_suffix(".failed.ipynb")
    _require_writable(cell.output)
    with paths.atomic_path(cell.output) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("papermill").setLevel(logging.ERROR)
        # papermill goes by the ending of the name, and a temporary has another.
        executed = temporary.with_suffix(".ipynb")
        try:
            papermill.execute_notebook(
                cell.notebook,
                executed,
                parameters=cell.parameters,
                progress_bar=False,
                log_output=stream is not None,
                stdout_file=stream,
                cwd=str(cell.notebook.parent),
                extra_arguments=KERNEL_ARGUMENTS,
            )
            _finish(executed, cell.title, nbformat)
            executed.replace(temporary)
        except papermill.PapermillExecutionError as error:
            executed.replace(failed)
            what = str(error.evalue).splitlines()[0] if error.evalue else error.ename
            message = f"{cell.notebook.name}: {error.ename}: {what} (the run is kept in {failed.name})"
            raise (CellMisused if error.ename in _MISUSE else CellFailed)(message) from None
        finally:
            executed.unlink(missing_ok=True)
    failed.unlink(missing_ok=True)


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


def _papermill() -> tuple[Any, Any]:
    try:
        import nbformat
        import papermill
    except ImportError:
        raise MissingExtra("running notebooks needs papermill: pip install -e '.[book]'") from None
    return papermill, nbformat
