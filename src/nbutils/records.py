"""Records in and out: one JSON file per run, append-only, named by time, subject and a digest of its content.

A run writes to this user's own folder; ``submit`` copies a checked record into ``data/records/<device>/``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
from pydantic import ValidationError

from nbutils import paths, registry
from nbutils.errors import DataError, UsageError
from nbutils.specs import SCHEMA_VERSION, AnyRecord, BenchRecord, NamedRun, Record, ServedRecord, SustainRecord

__all__ = [
    "MAX_BYTES",
    "committed_dir",
    "device_of",
    "file_name",
    "list_records",
    "load_any",
    "load_named",
    "read",
    "read_any",
    "require_writable",
    "resolve",
    "subject_of",
    "submit",
    "underway",
    "write",
]

#: A record of the full suite is some 50 kB, one of ten minutes with all meters some 300; more is not a record.
MAX_BYTES = 500_000
#: A note holds a command of 2,000 characters, each escaped at most. Nobody takes a minute to write a file.
_MAX_NOTE_BYTES, _HALF_WRITTEN_S = 30_000, 60.0

_KINDS: dict[str, type[AnyRecord]] = {"run": Record, "sustain": SustainRecord, "endpoint": ServedRecord, "llama-bench": BenchRecord}


def canonical(fields: dict[str, Any]) -> bytes:
    """The bytes a digest is taken of: sorted keys, no spaces."""
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _digest(fields: dict[str, Any]) -> str:
    return hashlib.sha256(canonical(fields)).hexdigest()[:8]


def device_of(record: AnyRecord) -> str:
    """The registry's id of the machine, or ``unlisted``: also the folder the record lies in."""
    return "unlisted" if isinstance(record, BenchRecord) else record.machine.device


def subject_of(record: AnyRecord) -> tuple[str, str]:
    """What was measured and in which format, as far as the record knows: ``("qwen3-32b", "Q4_K_M")``."""
    if isinstance(record, BenchRecord):
        return record.model_filename.removesuffix(".gguf"), record.model_type
    if isinstance(record, ServedRecord):
        return record.model, ""
    return record.model.name, record.model.gguf_type


def file_name(record: AnyRecord) -> str:
    """``<UTC time>-<model>-<type>-<digest>.json``; other kinds than a run are named before the model."""
    kind = "" if record.kind == "run" else f"{record.kind}-"
    slug = kind + re.sub(r"[^a-z0-9]+", "-", "-".join(subject_of(record)).lower()).strip("-")[:48].strip("-")
    stamp = record.created.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    return f"{stamp}-{slug}-{_digest(record.model_dump(mode='json'))}.json"


def write(record: AnyRecord, folder: Path | None = None) -> Path:
    """Write a record whole, under a name that no other record has; return where.

    Raises ``DataError`` when it would be larger than ``MAX_BYTES`` or the folder cannot be written.
    """
    text = canonical(record.model_dump(mode="json")).decode() + "\n"
    if len(text.encode()) > MAX_BYTES:
        raise DataError(f"record of {len(text):,} bytes is over the limit of {MAX_BYTES:,}; use fewer tokens, repetitions or minutes")
    path = (folder or paths.user_records_dir() / device_of(record)) / file_name(record)
    try:
        with paths.atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise DataError(f"record cannot be written to {path.parent}: {error.strerror}; nothing was kept") from None
    return path


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no number")


def read(path: Path) -> Record:
    """Read and check the record of a run; ``DataError`` for any other kind."""
    record = read_any(path)
    if not isinstance(record, Record):
        raise DataError(f"{path.name}: is a record of the kind {record.kind!r}, not of a run; 'nbutils records show' reads every kind")
    return record


def read_any(path: Path) -> AnyRecord:
    """Read and check one record of any kind; ``DataError`` says which file, what is wrong and what to do."""
    name = path.name
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{name}: {path.stat().st_size:,} bytes, over the limit of {MAX_BYTES:,}: not a record")
        fields = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
        # Of what was written, not of what is understood: a field that came later takes its default and spoils nothing.
        expected = _digest(fields)
    except FileNotFoundError:
        raise UsageError(f"no record at {str(path)!r}; 'nbutils records list' shows this machine's own") from None
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise DataError(f"{name}: not valid JSON (cut short?); remove it and measure again") from None
    version = fields.get("schema_version") if isinstance(fields, dict) else None
    if version != SCHEMA_VERSION:
        raise DataError(f"{name}: schema version {version!r}, this nbutils reads {SCHEMA_VERSION}; use the nbutils that wrote it, or update")
    kind = fields.get("kind", "run")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise DataError(f"{name}: kind {str(kind)[:40]!r}, this nbutils reads {', '.join(_KINDS)}; use the nbutils that wrote it, or update")
    try:
        record = _KINDS[kind].model_validate(fields)
    except ValidationError as error:
        raise DataError(f"{name}: {registry.problems_of(error)[0]}") from None
    if not path.stem.endswith(expected):
        raise DataError(f"{name}: its content has the digest {expected}, its name says otherwise; records are never edited, measure again")
    return record


def require_writable(folder: Path | None = None) -> None:
    """Raise ``DataError`` unless a record can be written: better before a measurement than after it."""
    folder = folder or paths.user_records_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * MAX_BYTES)
            file.flush()
    except OSError as error:
        raise DataError(f"records cannot be written to {folder}: {error.strerror}; free some space or set NBUTILS_HOME to another folder") from None


@contextmanager
def underway() -> Iterator[None]:
    """Leave a note while something is measured, so that the next command can say what was cut off; it says so now.

    What a killed run had measured is lost, whole records are not touched: they are only ever added, by rename.
    """
    folder = paths.user_records_dir().parent / "underway"
    for message in _cut_off(folder):
        print(f"nbutils: {message}", file=sys.stderr)
    me = psutil.Process()
    note = folder / f"{me.pid}.json"
    command = re.sub(r"//[^/@\s]*@", "//…@", shlex.join(["nbutils", *sys.argv[1:]]))[:2000]
    try:
        paths.write_text(note, json.dumps({"pid": me.pid, "started": me.create_time(), "command": command}) + "\n")
    except OSError:
        pass  # a note is a courtesy; what must be writable is checked elsewhere
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        print(f"nbutils: ended before it was done; every record before it is whole; to go on, run it again: {command}", file=sys.stderr)
        raise
    finally:
        _remove(note)


def _cut_off(folder: Path) -> list[str]:
    """One line for each note whose process is gone; the notes are removed, and what was half written when it went."""
    found = []
    for path in sorted(folder.glob("*.json")):
        command = ""
        try:
            if path.stat().st_size <= _MAX_NOTE_BYTES:
                note = json.loads(path.read_text(encoding="utf-8"))
                pid, started, command = int(note["pid"]), float(note["started"]), str(note["command"])[:2000]
                if psutil.pid_exists(pid) and abs(psutil.Process(pid).create_time() - started) < 1:
                    continue
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError, psutil.Error):
            pass  # of a process that has just gone, or no note of ours
        _remove(path)
        again = f"; to go on, run it again: {command}" if command.isprintable() and command else ""
        found.append(f"an earlier run was cut off and what it had not finished is lost; every record before it is whole{again}")
    for path in [*folder.glob(".*.part"), *paths.user_records_dir().glob("*/.*.part")]:
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _HALF_WRITTEN_S:
                path.unlink()
    return found


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def resolve(name: str) -> Path:
    """The record file of that name: a path, or a name below this user's records."""
    return Path(name) if Path(name).is_file() else paths.user_records_dir() / name


def list_records(folder: Path | None = None) -> list[Path]:
    """Record files below ``folder`` (this user's own by default), oldest first."""
    return sorted((folder or paths.user_records_dir()).glob("*/*.json"), key=lambda p: p.name)


def committed_dir() -> Path:
    """Where submitted records lie: ``data/records`` of the registry."""
    return paths.data_dir() / "records"


def load_named(run: NamedRun) -> list[Record]:
    """The committed records of a named run, each of them a run of a suite."""
    return [read(committed_dir() / name) for name in run.records]


def load_any(run: NamedRun) -> list[AnyRecord]:
    """The committed records of a named run, of whatever kind."""
    return [read_any(committed_dir() / name) for name in run.records]


def submit(path: Path, *, now: datetime | None = None) -> Path:
    """Check one record and copy it to ``data/records/<device>/``; return where it went."""
    if not path.is_file():
        raise UsageError(f"no record at {path}; 'nbutils records list' shows this machine's own")
    record = read_any(path)
    if record.created > (now or datetime.now(UTC)) + timedelta(hours=1):
        raise DataError(f"{path.name}: made in the future ({record.created.astimezone(UTC):%Y-%m-%d %H:%M} UTC); set the clock and measure again")
    device = device_of(record)
    if device != "unlisted":
        registry.load_device(device)
    target = committed_dir() / device / path.name
    if target.exists():
        raise UsageError(f"{path.name} is already in data/records/{device}; records are append-only")
    with paths.atomic_path(target) as temporary:
        shutil.copyfile(path, temporary)
    os.utime(target)
    return target
