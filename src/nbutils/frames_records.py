"""Many records, of every kind, as tidy frames: a row per test with its ceilings, or a row per repetition.

A cell is one test of one record. What a record says of a cell never changes, because a record never does; so the rows of records that were read once
are kept in the cache, and only what the registry says is joined to them anew.
"""

from __future__ import annotations

import gc
import hashlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from operator import attrgetter, itemgetter
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal, cast

import pandas as pd

from nbutils import frames, frames_served, limits, paths, records, registry
from nbutils.errors import DataError, NbutilsError
from nbutils.specs import AnyRecord, BenchRecord, BenchTest, Point, Record, ServedRecord, SustainRecord

__all__ = [
    "COLUMNS",
    "Cell",
    "Test",
    "cells",
    "facts",
    "format_words",
    "record_rows",
    "records_frame",
    "repetitions_frame",
    "rows_or_why",
    "spreadsheet_text",
    "test_words",
]

Test = Literal["prefill", "decode", "prefill then decode", "sustained decode", "served prefill", "served decode"]
Say = Callable[[str], None]

#: From so many records on it pays to keep their rows.
_KEPT_FROM = 100
#: So many records take about a second, twice what it takes to start a process; and more processes than these wait for the disk.
_WORTH_A_PROCESS, _MOST_PROCESSES = 2000, 8
#: What the columns of a cell's row are, beside its file's: those of ``facts``, what was asked, and what came out.
COLUMNS = (
    *("record", "created", "kind", "suite", "device", "configuration", "machine", "backend", "engine", "model", "format", "file_bytes"),
    *("threads", "batch_tokens", "micro_batch_tokens", "cache_types", "flash_attention", "gpu_layers"),
    *("test", "prompt_tokens", "generated_tokens", "depth_tokens", "sequences", "repetitions"),
    *("tok_per_s", "low_tok_per_s", "high_tok_per_s", "cv", "drift", "noise"),
    *("step_bytes", "bandwidth_bytes_per_s", "ceiling_tok_per_s", "share", "wall"),
)


# ── cells ─────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Cell:
    """One test of one record: what was asked, and the rate of every repetition in the order they were taken, in tok/s over all sequences.

    Of a server the rates are those of single answers, ``sequences`` of them in flight together.
    """

    test: Test
    prompt_tokens: int
    generated_tokens: int
    depth_tokens: int
    sequences: int
    rates: tuple[float, ...]
    #: Seconds of the run at which each began, and that it took; empty where the record does not say.
    at_s: tuple[float, ...] = ()
    times_s: tuple[float, ...] = ()
    #: Whether the rate is a mean that somebody printed without its samples.
    printed: bool = False
    #: Of a server: which answers were in flight together, by a number each.
    rounds: tuple[int, ...] = ()

    @property
    def moments(self) -> tuple[float, ...]:
        """Rates of one moment each: answers that were in flight together had the same neighbours and count as one."""
        if not self.rounds:
            return self.rates
        return tuple(fmean(rate for _, rate in together) for _, together in groupby(zip(self.rounds, self.rates, strict=True), itemgetter(0)))


def cells(record: AnyRecord) -> list[Cell]:
    """The tests of a record of any kind that have a rate."""
    if isinstance(record, Record):
        return [_of_point(point) for point in record.points]
    if isinstance(record, SustainRecord):
        rates = tuple(record.block_tokens / seconds for seconds in record.block_s)
        return [Cell("sustained decode", 0, record.block_tokens, record.depth, 1, rates, record.at_s, record.block_s)]
    if isinstance(record, BenchRecord):
        return [_of_bench(test) for test in record.tests]
    return list(_of_server(record))


def _of_point(point: Point) -> Cell:
    times_s = tuple(map(sum, point.repetitions_s))
    rates = tuple(point.n_seq * point.n_tokens / seconds for seconds in times_s)
    lengths = (point.n_tokens, 0) if point.kind == "prefill" else (0, point.n_tokens)
    return Cell(point.kind, *lengths, point.depth, point.n_seq, rates, point.at_s, times_s)


def _of_bench(test: BenchTest) -> Cell:
    kind: Test = "prefill then decode" if test.n_prompt and test.n_gen else "prefill" if test.n_prompt else "decode"
    times_s = tuple(ns / 1e9 for ns in test.samples_ns)
    rates = tuple((test.n_prompt + test.n_gen) / seconds for seconds in times_s) or (cast("float", test.avg_ts),)
    return Cell(kind, test.n_prompt, test.n_gen, test.n_depth, 1, rates, (), times_s, printed=not times_s)


def _of_server(record: ServedRecord) -> Iterator[Cell]:
    for level, requests in frames_served.levels(record):
        whole = frames_served.whole_requests(requests)
        asked = [(i // level, request) for i, request in enumerate(sorted(requests, key=attrgetter("at_s"))) if request in whole]
        tests: tuple[tuple[Test, Any], ...] = (
            ("served prefill", frames_served.prefill_tok_per_s),
            ("served decode", frames_served.decode_tok_per_s),
        )
        for test, rate_of in tests:
            if kept := [(number, request.at_s, rate) for number, request in asked if 0 < (rate := rate_of(record, request) or 0) < math.inf]:
                rounds, at_s, rates = zip(*kept, strict=True)
                yield Cell(test, record.prompt_tokens_asked, record.max_tokens, 0, level, rates, at_s, rounds=rounds)


def test_words(cell: Any) -> str:
    """What was timed, in words: of a ``Cell`` or a row of a frame.

    >>> test_words(Cell("decode", 0, 128, 4096, 2, (1.0,)))
    'decode 128 at depth 4,096, 2 sequences'
    """
    lengths = [f"{n:,}" for n in (cell.prompt_tokens, cell.generated_tokens) if n]
    depth = f" at depth {cell.depth_tokens:,}" if cell.depth_tokens else ""
    several = f", {cell.sequences} {'in flight' if cell.test.startswith('served') else 'sequences'}" if cell.sequences > 1 else ""
    return f"{cell.test} {' + '.join(lengths)}{depth}{several}"


test_words.__test__ = False  # type: ignore[attr-defined]  # its name begins like a test's


# ── what a record says of all its cells ───────────────────────────────────────────────────────────


def facts(record: AnyRecord) -> dict[str, Any]:
    """Whose and of what a record is, and the settings that change speed; ``None`` where it does not say."""
    said = {
        "created": record.created.isoformat(),
        "kind": record.kind,
        "suite": record.suite.id if isinstance(record, Record) else "",
        "device": records.device_of(record),
        "configuration": "" if isinstance(record, BenchRecord) else record.machine.configuration,
        "machine": records.machine_of(record),
        "model": records.subject_of(record)[0].removesuffix(".gguf"),
    }
    if isinstance(record, BenchRecord):
        return said | _bench_facts(record)
    if isinstance(record, ServedRecord):
        return said | {"backend": "", "engine": record.software, "format": "", "file_bytes": None} | dict.fromkeys(_SETTINGS)
    used = record.settings
    return said | {
        "backend": record.backend.device,
        "engine": f"llama.cpp {record.versions.get('llama.cpp', '')}".strip(),
        "format": record.model.gguf_type,
        "file_bytes": record.model.file_bytes,
        "threads": used.n_threads,
        "batch_tokens": used.n_batch,
        "micro_batch_tokens": used.n_ubatch,
        "cache_types": f"{used.type_k.lower()}/{used.type_v.lower()}",
        "flash_attention": used.flash_attn_used or used.flash_attn,
        "gpu_layers": used.n_gpu_layers,
    }


_SETTINGS = ("threads", "batch_tokens", "micro_batch_tokens", "cache_types", "flash_attention", "gpu_layers")
_FLASH = {"1": "on", "True": "on", "0": "off", "False": "off", "-1": "auto", "None": None}


def _bench_facts(record: BenchRecord) -> dict[str, Any]:
    used = record.settings
    return {
        "backend": record.backends,
        "engine": f"llama.cpp {record.build_commit}",
        "format": format_words(record.model_type),
        "file_bytes": record.model_size,
        "threads": used.get("n_threads"),
        "batch_tokens": used.get("n_batch"),
        "micro_batch_tokens": used.get("n_ubatch"),
        "cache_types": f"{used.get('type_k', '?')}/{used.get('type_v', '?')}".lower(),
        "flash_attention": _FLASH.get(str(used.get("flash_attn")), str(used.get("flash_attn"))),
        "gpu_layers": used.get("n_gpu_layers"),
    }


def format_words(model_type: str) -> str:
    """The format in what llama.cpp calls a file, by the name that everybody else uses.

    >>> format_words("qwen3moe 30B.A3B Q4_K - Medium"), format_words("gpt-oss 20B MXFP4 MoE"), format_words("llama 8B IQ4_NL - 4.5 bpw")
    ('Q4_K_M', 'MXFP4_MOE', 'IQ4_NL')
    """
    described = re.fullmatch(r"\S+ \S+ (?:\((?:Scout|Maverick|guessed)\) )*(?:mostly |all )?(.+)", model_type)
    name, _, more = (described[1] if described else model_type).partition(" - ")
    if (name, more) == ("Q2_K", "Medium") or name == "IQ3_S mix":  # what everybody else calls otherwise
        return "Q2_K" if name == "Q2_K" else "IQ3_M"
    size = f"_{more[0]}" if more in ("Small", "Medium", "Large") else ""
    return "_".join(name.upper().split()) + size if name.upper().endswith(" MOE") else f"{name.split(' ')[0]}{size}"


def record_rows(record: AnyRecord) -> list[dict[str, Any]]:
    """A row per cell, with the ceiling of the bandwidth that was measured beside it; nothing of the registry's devices is in it."""
    said, found = facts(record), cells(record)
    if isinstance(record, Record):
        return [said | _asked(cell) | _of_run(cell, row) for cell, row in zip(found, frames.measured_rows(record, itl=False), strict=True)]
    bound = _of_minutes(record) if isinstance(record, SustainRecord) else {}
    return [said | _asked(cell) | _spread(cell) | bound for cell in found]


def _asked(cell: Cell) -> dict[str, Any]:
    return {name: getattr(cell, name) for name in ("test", "prompt_tokens", "generated_tokens", "depth_tokens", "sequences")}


def _spread(cell: Cell) -> dict[str, Any]:
    rates, half = cell.rates, len(cell.rates) // 2
    return {
        "repetitions": None if cell.printed else len(rates),
        "tok_per_s": median(rates),
        "low_tok_per_s": min(rates),
        "high_tok_per_s": max(rates),
        "cv": frames.variation(rates),
        "drift": median(rates[-half:]) / median(rates[:half]) - 1 if half else None,
    }


_RENAMED = {"low_tok_per_s": "low", "high_tok_per_s": "high", "bandwidth_bytes_per_s": "bandwidth"}
_KEPT = ("tok_per_s", "cv", "drift", "noise", "step_bytes", "ceiling_tok_per_s", "share", "wall")


def _of_run(cell: Cell, row: dict[str, Any]) -> dict[str, Any]:
    """The columns of ``frames.measured_rows`` that are ours too."""
    renamed = {ours: row[theirs] for ours, theirs in _RENAMED.items()}
    return {"repetitions": len(cell.rates)} | renamed | {name: row.get(name) for name in _KEPT}


def _of_minutes(record: SustainRecord) -> dict[str, Any]:
    """What a step of a block reads; no yardstick was read beside it."""
    block = Point.model_construct(kind="decode", n_tokens=record.block_tokens, depth=record.depth, n_seq=1, distinct_experts=())
    return {"step_bytes": frames.step_bytes(cast("Record", record), block)}  # of which that takes the model and the settings


# ── a row per cell, of thousands of records ───────────────────────────────────────────────────────


def records_frame(files: Sequence[Path], *, empty: bool = False, say: Say | None = None, complain: Say | None = None) -> pd.DataFrame:
    """One row per test of the records in ``files``: rates in tok/s, the ceiling of the run's own bandwidth, and that of the registry's.

    With ``empty`` a record of which no test has a rate, as of a server that answered nothing, has a row as well, without a test.

    ``share`` is of the measured bandwidth, ``nominal_share`` of what the maker names; both only for decode. A file that is no whole record is left
    out and told to ``complain`` (``DataError`` without one). ``say`` hears how far the reading is.
    """
    found = []
    with _no_collection():
        for path, rows in _kept_rows(files, say or _to_nobody, complain):
            found += [(str(path), *row) for row in rows if empty or row[_TEST] is not None]
    frame = pd.DataFrame(found, columns=["file", *COLUMNS])
    frame["created"] = pd.to_datetime(frame["created"], utc=True, format="ISO8601")
    numbers = [*_NUMBERS, "step_bytes", "bandwidth_bytes_per_s", "ceiling_tok_per_s", "share", "noise"]
    frame[numbers] = frame[numbers].astype(float)
    return _with_nominal(frame)


_TEST = COLUMNS.index("test")
_NUMBERS = ("tok_per_s", "low_tok_per_s", "high_tok_per_s", "cv", "drift")


def _to_nobody(_: str) -> None:
    pass


@contextmanager
def _no_collection() -> Iterator[None]:
    """No search for cycles meanwhile: millions of numbers come and go in records, which have none, and it took a tenth of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _with_nominal(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with what nominal bandwidth of each row's device allows: empty for one that the registry does not have."""
    known = _bandwidths(paths.data_dir())
    places = zip(frame["device"], frame["configuration"], strict=True)
    bandwidth = pd.Series([known.get(place) for place in places], index=frame.index, dtype=float)
    decode = frame["test"].isin(("decode", "sustained decode"))
    ceiling = limits.decode_ceiling_tok_per_s(bandwidth, frame["step_bytes"]) * frame["sequences"].astype(float)
    frame["nominal_ceiling_tok_per_s"] = ceiling.where(decode)
    frame["nominal_share"] = frame["tok_per_s"] / frame["nominal_ceiling_tok_per_s"]
    return frame


@cache
def _bandwidths(_data: Path) -> dict[tuple[str, str], float]:
    """Nominal bandwidth of every configuration of the registry; of the largest under the empty name."""
    found = {}
    for device in map(registry.load_device, registry.device_ids()):
        found[device.id, ""] = device.configuration().bandwidth_bytes_per_s
        found |= {(device.id, c.id): c.bandwidth_bytes_per_s for c in device.configurations}
    return found


def _kept_rows(files: Sequence[Path], say: Say, complain: Say | None) -> Iterator[tuple[Path, list[list[Any]]]]:
    """The rows of each record, as lists in the order of ``COLUMNS``: from the cache where its file is the same, else from the file."""
    kept = _read_kept() if len(files) >= _KEPT_FROM else {}
    stamps = {path: _stamp(path) for path in files}
    changed = [path for path, stamp in stamps.items() if not _is_of(kept.get(str(path)), stamp)]
    fresh: dict[str, Any] = {}
    for path, found in zip(changed, _read_rows(changed, say), strict=True):
        if isinstance(found, list):
            fresh[str(path)] = [*stamps[path], found]
        elif complain is None:
            raise DataError(found)
        else:
            complain(found)
    if fresh and len(files) >= _KEPT_FROM:
        _write_kept(kept | fresh)
    unread = set(changed) - {Path(path) for path in fresh}
    for path in files:
        if path not in unread:
            yield path, (fresh.get(str(path)) or kept[str(path)])[-1]


def _stamp(path: Path) -> list[int]:
    """Size and time of a file; nothing of one that is gone, which its reading will say."""
    try:
        stat = path.stat()
    except OSError:
        return []
    return [stat.st_size, stat.st_mtime_ns]


def _is_of(entry: Any, stamp: list[int]) -> bool:
    return isinstance(entry, list) and len(entry) == 3 and entry[:2] == stamp


def rows_or_why(path: Path) -> list[list[Any]] | str:
    """The rows of the record in ``path``, as lists in the order of ``COLUMNS``; a sentence with its name where it is no record.

    Of a record without any rate one row that says what it is.
    """
    try:
        path.stat()  # one that went meanwhile is no misuse, as read_any would have it
        record = records.read_any(path)
        rows = record_rows(record)
    except (NbutilsError, OSError) as error:
        why = f"cannot be read: {error.strerror}" if isinstance(error, OSError) else str(error).removeprefix(f"{path.name}: ")
        return f"{path.name}: {why}"
    return [[path.stem, *map(row.get, COLUMNS[1:])] for row in rows or [facts(record)]]


def _read_rows(files: Sequence[Path], say: Say) -> list[list[list[Any]] | str]:
    """``rows_or_why`` of all ``files``, in order; of thousands by one process per core."""
    n = max(1, min(os.cpu_count() or 1, _MOST_PROCESSES, len(files) // _WORTH_A_PROCESS))
    found: list[Any] = [None] * len(files)
    with ExitStack() as stack:
        # Every n-th file, because neighbours are alike: then all shares take equally long.
        others = [(first, stack.enter_context(_child_reads(files[first::n]))) for first in range(1, n)]
        for number in range(0, len(files), n):
            if number % 100 < n:
                say(f"reading records: {number:,} of {len(files):,} …")
            found[number] = rows_or_why(files[number])
        for first, answers in others:
            found[first::n] = answers() or [rows_or_why(path) for path in files[first::n]]
    return found


@contextmanager
def _child_reads(files: Sequence[Path]) -> Iterator[Callable[[], list[Any] | None]]:
    """Another process reads ``files``; what comes is to be called for its answers, which are ``None`` if it had an accident.

    Not ``multiprocessing``, whose children run a user's script once more where they are not forked. Both ways lead through files: nobody waits.
    """
    with ExitStack() as stack:
        child: subprocess.Popen[bytes] | None = None
        try:
            asked, told = (stack.enter_context(tempfile.TemporaryFile(buffering=0)) for _ in range(2))
            asked.write(json.dumps([str(path) for path in files]).encode())
            asked.seek(0)
            child = subprocess.Popen([sys.executable, "-m", "nbutils._rows_child"], stdin=asked, stdout=told, stderr=subprocess.DEVNULL)
            stack.callback(child.wait)
            stack.callback(child.kill)
        except OSError:
            pass  # a full disk, or no more processes: they are read here

        def answers() -> list[Any] | None:
            if child is None or child.wait() != 0:
                return None
            told.seek(0)
            try:
                found: list[Any] = json.load(told)
            except ValueError:
                return None
            return found

        yield answers


# ── the cache of rows ─────────────────────────────────────────────────────────────────────────────
# A record is named by the digest of its content and never edited, so rows of the same name, size and time are its rows as long as the
# program and the formats that made them are the same: both are in the name of the cache.


def _kept_path() -> Path:
    return paths.cache_dir() / f"record-rows-{_made_by(paths.data_dir())}.json"


@cache
def _made_by(data: Path) -> str:
    """A digest of what turns a record into rows: these modules, and the formats of the registry."""
    here = Path(__file__).parent
    sources = [here / f"{name}.py" for name in ("specs", "records", "limits", "tensors", "frames", "frames_served", "frames_records")]
    digest = hashlib.sha256()
    for path in (*sources, data / "formats.yaml"):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _read_kept() -> dict[str, Any]:
    """What was kept; nothing where that is damaged, which costs time and is right again after the next reading."""
    try:
        found = json.loads(_kept_path().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _write_kept(kept: dict[str, Any]) -> None:
    path = _kept_path()
    try:
        for old in path.parent.glob("record-rows-*.json"):
            if old != path:
                old.unlink(missing_ok=True)
        paths.write_text(path, json.dumps(kept, separators=(",", ":")))
    except OSError:
        pass  # a full disk makes the next reading slow, and nothing wrong


# ── a row per repetition ──────────────────────────────────────────────────────────────────────────


#: Whole numbers, of which some records say none.
_WHOLE = (
    *("file_bytes", "threads", "batch_tokens", "micro_batch_tokens", "gpu_layers"),
    *("prompt_tokens", "generated_tokens", "depth_tokens", "sequences", "repetition"),
)


def repetitions_frame(found: Iterable[tuple[Path, AnyRecord]]) -> pd.DataFrame:
    """One row per repetition of every test: what ``nbutils records export`` writes. Units are in the names of the columns.

    A rate that was printed without its samples is one row without a number of repetition.
    """
    rows = []
    for path, record in found:
        said = {"record": path.stem} | facts(record)
        for cell in cells(record):
            rows += [said | _asked(cell) | repetition for repetition in _repetitions(cell)]
    names = COLUMNS[: COLUMNS.index("repetitions")]
    frame = pd.DataFrame(rows, columns=[*names, "repetition", "at_s", "time_s", "tok_per_s"])
    for name in _WHOLE:
        values = (row[name] for row in rows)
        frame[name] = pd.array([v if isinstance(v, int) and abs(v) < 2**53 else None for v in values], dtype="Int64")
    return frame


def _repetitions(cell: Cell) -> Iterator[dict[str, Any]]:
    for i, rate in enumerate(cell.rates):
        yield {
            "repetition": None if cell.printed else i + 1,
            "at_s": cell.at_s[i] if cell.at_s else None,
            "time_s": cell.times_s[i] if cell.times_s else None,
            "tok_per_s": rate,
        }


def spreadsheet_text(value: Any) -> Any:
    """Text that a spreadsheet would take for a formula gets an apostrophe in front; everything else stays as it is.

    >>> spreadsheet_text("=1+1"), spreadsheet_text(-1)
    ("'=1+1", -1)
    """
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
