"""Records in and out: one JSON file per run, append-only, named by time, subject and a digest of its content.

The store has two folders of ``<device>/*.json``: this user's own, where a run writes, and ``data/records``, which git keeps and into which
``contribute.submit`` copies what is to be published.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC
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
    "list_all",
    "list_records",
    "load_any",
    "load_named",
    "machine_of",
    "read",
    "read_any",
    "read_fields",
    "require_writable",
    "resolve",
    "subject_of",
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


def machine_of(record: AnyRecord) -> str:
    """What a reader would call the machine: the registry's id, or else the name of the card or processor that computed."""
    if isinstance(record, BenchRecord):
        return (record.gpu_info if record.backends != "CPU" else "") or record.cpu_info
    machine = record.machine
    if machine.device != "unlisted":
        return machine.device
    on_cpu = not isinstance(record, ServedRecord) and record.backend.device == "CPU"
    return machine.cpu if on_cpu or not machine.gpus else machine.gpus[0].name


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

    Raises ``DataError`` when it would be larger than ``MAX_BYTES`` or the folder cannot be written; what was measured is then kept among the
    system's temporary files, if these have room, and the message says where.
    """
    text = canonical(record.model_dump(mode="json")).decode() + "\n"
    if len(text.encode()) > MAX_BYTES:
        raise DataError(f"record of {len(text):,} bytes is over the limit of {MAX_BYTES:,}; use fewer tokens, repetitions or minutes")
    path = (folder or paths.new_records_dir() / device_of(record)) / file_name(record)
    try:
        _write(path, text)
    except OSError as error:
        raise DataError(f"record cannot be written to {path.parent}: {error.strerror}; {_kept_elsewhere(path, text)}") from None
    return path


def _write(path: Path, text: str) -> None:
    with paths.atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())  # a name whose content a power cut takes away would be worse than no name


def _kept_elsewhere(path: Path, text: str) -> str:
    try:
        spare = Path(tempfile.mkdtemp(prefix="nbutils-"))
    except OSError:
        return "nothing was kept"
    try:
        _write(spare / path.name, text)
    except OSError:
        spare.rmdir()
        return "nothing was kept"
    return f"it is kept as {spare / path.name}: make room, then move it there"


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no number")


#: Digits that may be a number of more than 64 bits. What follows a point is no whole number, and text is looked at more closely.
_LONG_NUMBER = re.compile(rb"[:,\[]-?[0-9]{20}")
#: Every digit made the same one: a long run of it is found five times as fast as by the expression, which then looks at the few that have one.
_ALIKE, _LONG_RUN = bytes.maketrans(b"123456789", b"0" * 9), b"0" * 20


def _whole(digits: str) -> int:
    """A whole number that also fits into a float; ``ArithmeticError`` for any other, which would end in a traceback wherever it is divided."""
    if len(digits) > 20 or abs(int(digits)) >= 2**64:
        raise ArithmeticError(f"{digits[:20]}…")
    return int(digits)


def read(path: Path) -> Record:
    """Read and check the record of a run; ``DataError`` for any other kind."""
    record = read_any(path)
    if not isinstance(record, Record):
        raise DataError(f"{path.name}: is a record of the kind {record.kind!r}, not of a run; 'nbutils records show' reads every kind")
    return record


def read_any(path: Path) -> AnyRecord:
    """Read and check one record of any kind; ``DataError`` says which file, what is wrong and what to do."""
    name, raw = path.name, _bytes_of(path)
    return _as_written(name, raw) or _taken_apart(name, raw)


def read_fields(path: Path) -> dict[str, Any]:
    """What a record's file says, as plain values, once ``read_any`` has nothing against it."""
    name, raw = path.name, _bytes_of(path)
    _taken_apart(name, raw)
    fields: dict[str, Any] = json.loads(raw)
    return fields


def _bytes_of(path: Path) -> bytes:
    """The content of a file that is no larger than a record may be; a larger one is not read."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            raw = file.read(MAX_BYTES + 1) if size <= MAX_BYTES else b""
    except FileNotFoundError:
        raise UsageError(f"no record at {str(path)!r}; 'nbutils records list' shows this machine's own") from None
    except OSError as error:
        raise DataError(f"{path.name}: cannot be read: {error.strerror}") from None
    if max(size, len(raw)) > MAX_BYTES:
        raise DataError(f"{path.name}: {max(size, len(raw)):,} bytes, over the limit of {MAX_BYTES:,}: not a record")
    return raw


def _as_written(name: str, raw: bytes) -> AnyRecord | None:
    """The record where its bytes are just those of ``write``, three times as fast; ``None`` for anything else, which has then to be taken apart."""
    text = raw.removesuffix(b"\n")
    if not name.endswith(f"-{hashlib.sha256(text).hexdigest()[:8]}.json"):
        return None
    if _LONG_RUN in text.translate(_ALIKE) and _LONG_NUMBER.search(text):
        return None
    kind = next((kind for kind in _KINDS if name[17:].startswith(f"{kind}-")), "run")  # after the time
    try:
        record = _KINDS[kind].model_validate_json(text)
        if isinstance(record, Record):
            canonical({"states": record.states})  # the one field of any content, numbers beyond all among it
    except ValueError:
        return None
    return record


def _taken_apart(name: str, raw: bytes) -> AnyRecord:
    try:
        fields = json.loads(raw.decode("utf-8"), parse_constant=_no_number, parse_int=_whole)
        # Of what was written, not of what is understood: a field that came later takes its default and spoils nothing.
        expected = _digest(fields)
    except (ValueError, RecursionError):
        raise DataError(f"{name}: not valid JSON (cut short?); if it is a record, remove it and measure again") from None
    except ArithmeticError as error:
        raise DataError(f"{name}: {error} has more than 64 bits; nothing was ever counted that far, measure again") from None
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
    if not name.endswith(f"{expected}.json"):
        raise DataError(f"{name}: its content has the digest {expected}, its name says otherwise; records are never edited, measure again")
    return record


def require_writable(folder: Path | None = None) -> None:
    """Raise ``DataError`` unless a record can be written: better before a measurement than after it."""
    folder = folder or paths.new_records_dir()
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
    """The record file of that name: a path, one below this user's records or the published ones, or the last eight letters before ``.json``.

    Raises ``UsageError`` where there is none or several.
    """
    for path in (Path(name), paths.user_records_dir() / name, committed_dir() / name):
        with suppress(OSError):  # of a name that is longer than names may be
            if path.is_file():
                return path
    wanted = name.removesuffix(".json")
    found = [path for path in list_all() if wanted and (path.stem == wanted or path.stem.endswith(f"-{wanted}"))]
    if not found:
        raise UsageError(f"no record at {name!r}; 'nbutils records list' shows this machine's own")
    if len(found) > 1:
        raise UsageError(f"{name!r} names {len(found)} records: {', '.join(path.name for path in found[:4])}; give a longer name")
    return found[0]


def list_records(folder: Path | None = None) -> list[Path]:
    """Record files below ``folder`` (this user's own by default), oldest first."""
    return sorted((folder or paths.user_records_dir()).glob("*/*.json"), key=lambda p: p.name)


def list_all() -> list[Path]:
    """The whole store, oldest first: what is published and this user's own; a record that is in both is named where it is published."""
    by_name = {path.name: path for folder in (paths.user_records_dir(), committed_dir()) for path in list_records(folder)}
    return [by_name[name] for name in sorted(by_name)]


def committed_dir() -> Path:
    """Where submitted records lie: ``data/records`` of the registry."""
    return paths.data_dir() / "records"


def load_named(run: NamedRun) -> list[Record]:
    """The committed records of a named run, each of them a run of a suite."""
    return [read(committed_dir() / name) for name in run.records]


def load_any(run: NamedRun) -> list[AnyRecord]:
    """The committed records of a named run, of whatever kind."""
    return [read_any(committed_dir() / name) for name in run.records]
