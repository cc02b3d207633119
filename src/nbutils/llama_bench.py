"""llama-bench's rows: those of the program become records, and records become such rows.

The program prints one flat row per test as json, jsonl or csv. Names, order, types and formulas here are those of
``tools/llama-bench/llama-bench.cpp`` of llama.cpp.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

import nbutils
from nbutils import registry
from nbutils.errors import DataError, UsageError
from nbutils.specs import BenchRecord, BenchTest, Point, Record

__all__ = ["MAX_BYTES", "read", "rows"]

#: Some ten thousand rows. More is not what a benchmark printed.
MAX_BYTES = 20_000_000
_MOST = 2**64 - 1

#: What a row says of the build, the machine and the file.
_HEAD: dict[str, type] = {
    "build_commit": str,
    "build_number": int,
    "cpu_info": str,
    "gpu_info": str,
    "backends": str,
    "model_filename": str,
    "model_type": str,
    "model_size": int,
    "model_n_params": int,
}
#: Its settings, with what the program prints when nobody sets them. ``n_threads`` has no such value: it is the machine's.
_SETTINGS: dict[str, bool | int | str] = {
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_threads": 0,
    "cpu_mask": "0x0",
    "cpu_strict": False,
    "poll": 50,
    "type_k": "f16",
    "type_v": "f16",
    "n_gpu_layers": -1,
    "n_cpu_moe": 0,
    "split_mode": "layer",
    "main_gpu": 0,
    "no_kv_offload": False,
    "flash_attn": -1,
    "devices": "auto",
    "tensor_split": "0.00",
    "tensor_buft_overrides": "none",
    "load_mode": "auto",
    "lazy_mode": "auto",
    "embeddings": False,
    "no_op_offload": 0,
    "no_host": False,
    "repack": True,
    "fit_target": 0,
    "fit_min_ctx": 0,
}
#: What was asked and what came out. json and jsonl go on with ``samples_ns`` and ``samples_ts``.
_TEST: dict[str, type] = {
    "n_prompt": int,
    "n_gen": int,
    "n_depth": int,
    "test_time": str,
    "avg_ns": int,
    "stddev_ns": int,
    "avg_ts": float,
    "stddev_ts": float,
}
_ESSENTIAL = _HEAD | _TEST
_SAMPLES = ("samples_ns", "samples_ts")
_ABOVE_ZERO = ("avg_ns", "avg_ts", "model_size", "model_n_params")
_KIND_WORDS = {str: "text", int: "a whole number", float: "a number"}
_FLASH_ATTN = {"auto": -1, "off": 0, "on": 1}
_WORDS = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]{0,4000}")
_AGAIN = "run llama-bench again with -o json"


# ── records out ───────────────────────────────────────────────────────────────────────────────────


def rows(record: Record | BenchRecord, *, filename: str = "") -> list[dict[str, Any]]:
    """A record as llama-bench would have printed it: the program's field names, order and types.

    A run becomes a row per point; points of several sequences have no row in llama-bench's terms and are left out.
    Settings that our runs never change have the program's defaults. ``filename`` is what ``model_filename`` shall say;
    by default the name that the record knows. Samples are in nanoseconds (``samples_ns``) and tokens/s (``samples_ts``).
    """
    head, settings, tests = _parts_of_run(record) if isinstance(record, Record) else _parts_of_import(record)
    if filename:
        head["model_filename"] = filename
    # Fields of another llama-bench stand after those of this one: which order it has, nobody here knows.
    known = {name: settings[name] for name in _SETTINGS if name in settings}
    other = {name: settings[name] for name in sorted(settings.keys() - known.keys())}
    return [{**head, **known, **other, **_results(test)} for test in tests]


def _parts_of_import(record: BenchRecord) -> tuple[dict[str, Any], dict[str, Any], list[BenchTest]]:
    return {name: getattr(record, name) for name in _HEAD}, record.settings, list(record.tests)


def _parts_of_run(record: Record) -> tuple[dict[str, Any], dict[str, Any], list[BenchTest]]:
    backends = _backends(record)
    head = {
        "build_commit": record.versions.get("llama.cpp", "unknown"),
        "build_number": 0,  # as the program prints where it has no git to count with
        "cpu_info": record.machine.cpu,
        "gpu_info": "" if backends == "CPU" else ", ".join(g.name for g in record.machine.gpus) or record.backend.device.partition(": ")[2],
        "backends": backends,
        "model_filename": record.model.name,
        "model_type": record.model.description or record.model.architecture,
        "model_size": sum(group.n_bytes for group in record.model.tensors),
        "model_n_params": record.model.n_parameters,
    }
    used = record.settings
    settings = _SETTINGS | {
        "n_batch": used.n_batch,
        "n_ubatch": used.n_ubatch,
        "n_threads": used.n_threads,
        "type_k": used.type_k.lower(),
        "type_v": used.type_v.lower(),
        "n_gpu_layers": used.n_gpu_layers,
        "flash_attn": _FLASH_ATTN[used.flash_attn],
    }
    when = record.created.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return head, settings, [_test_of(point, when) for point in record.points if point.n_seq == 1]


def _backends(record: Record) -> str:
    """Backends but the processor's, comma-separated: those that llama.cpp lists with their features, and the one that ran."""
    listed = re.findall(r"(?:^|\| )(\w+) : ", record.backend.system_info)
    ran = re.sub(r"\d+$", "", record.backend.device.partition(":")[0])
    return ",".join(dict.fromkeys(name for name in [*listed, ran] if name != "CPU")) or "CPU"


def _test_of(point: Point, when: str) -> BenchTest:
    samples = tuple(max(1, round(sum(times) * 1e9)) for times in point.repetitions_s)
    is_prompt = point.kind == "prefill"
    return BenchTest(
        n_prompt=point.n_tokens if is_prompt else 0,
        n_gen=0 if is_prompt else point.n_tokens,
        n_depth=point.depth,
        test_time=when,
        avg_ns=sum(samples) // len(samples),
        stddev_ns=_stddev_ns(samples),
        samples_ns=samples,
    )


def _results(test: BenchTest) -> dict[str, Any]:
    fields: dict[str, Any] = {name: getattr(test, name) for name in _TEST}
    if not test.samples_ns:
        return fields
    rates = _rates(test.n_prompt + test.n_gen, test.samples_ns)
    mean, stddev = _mean_and_stddev(rates)
    fields["avg_ts"] = _six_places(mean) if test.avg_ts is None else test.avg_ts
    fields["stddev_ts"] = _six_places(stddev) if test.stddev_ts is None else test.stddev_ts
    return fields | {"samples_ns": list(test.samples_ns), "samples_ts": [_six_digits(rate) for rate in rates]}


# ── the program's arithmetic ──────────────────────────────────────────────────────────────────────


def _rates(n_tokens: int, samples_ns: tuple[int, ...]) -> list[float]:
    """Tokens per second of each repetition."""
    return [1e9 * n_tokens / ns for ns in samples_ns]


def _mean_and_stddev(values: list[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1), summed from left to right as there: ``sum`` rounds better, and so differently."""
    n = len(values)
    total, squares = 0.0, 0.0
    for value in values:
        total += value
        squares += value * value
    mean = total / n
    if n == 1:
        return mean, 0.0
    # Of equal samples rounding can leave less than nothing; the program then prints "-nan".
    return mean, math.sqrt(max(0.0, squares / (n - 1) - mean * mean * n / (n - 1)))


def _stddev_ns(samples: tuple[int, ...]) -> int:
    """The same in whole nanoseconds. The program's 64 bits overflow from some seconds on; these do not."""
    n = len(samples)
    mean = sum(samples) // n
    return 0 if n == 1 else math.isqrt(sum(s * s for s in samples) // (n - 1) - mean * mean * n // (n - 1))


def _six_places(value: float) -> float:
    return float(f"{value:.6f}")


def _six_digits(value: float) -> float:
    return float(f"{value:g}")


# ── files in ──────────────────────────────────────────────────────────────────────────────────────


def read(path: Path) -> list[BenchRecord]:
    """Records of a file that llama-bench wrote as json, jsonl or csv: one per model file and settings, in order of appearance.

    The kind is told by content. ``nbutils measure --json`` is read as well. Raises ``UsageError`` for a file that is not
    there or of another format, ``DataError`` naming the row and the field for anything else. Folders are not kept.
    """
    text = _text(path)
    found: dict[str, BenchRecord] = {}
    for place, row in _rows_in(text, path.name):
        say = _Complaint(path.name, place)
        _check(row, say)
        head = {name: row[name] for name in _HEAD}
        settings = {name: value for name, value in row.items() if name not in _ESSENTIAL and name not in _SAMPLES}
        test = _test_in(row, say)
        key = json.dumps([head, settings], sort_keys=True)  # the whole path: two folders may have files of one name
        if key in found:
            found[key] = found[key].model_copy(update={"tests": (*found[key].tests, test)})
        else:
            found[key] = _record(head, settings, test, say)
    if not found:
        raise DataError(f"{path.name}: holds no row; {_AGAIN}")
    return list(found.values())


class _Complaint:
    """Ends the reading with one line that names file and row."""

    def __init__(self, name: str, place: str) -> None:
        self._where = f"{name}: {place}"

    def __call__(self, field: str, wrong: str) -> NoReturn:
        raise DataError(f"{self._where}: {field}: {wrong}")


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise UsageError(f"no file {str(path)!r}; give what 'llama-bench -o json' printed, saved to a file") from None
    except OSError as error:
        raise DataError(f"{path.name}: cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise DataError(f"{path.name}: more than {MAX_BYTES:,} bytes; no benchmark prints so much, split it if it is one")
    try:
        # What a redirection in Windows PowerShell writes begins with one of these two marks.
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name}: byte {error.start} is not UTF-8 text; {_AGAIN}") from None


def _rows_in(text: str, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row with its place in words."""
    begin = text.lstrip()[:40]
    if not begin:
        raise DataError(f"{name}: is empty; {_AGAIN}")
    if begin.startswith("|") or re.match(r"CREATE TABLE|INSERT INTO", begin):
        what = "a Markdown table" if begin.startswith("|") else "SQL"
        raise UsageError(f"{name}: is {what}; llama-bench's -o json, -o jsonl and -o csv can be read")
    if begin.startswith("["):
        yield from _json_rows(text, name)
    elif begin.startswith("{"):
        yield from _jsonl_rows(text, name)
    elif re.match(r'"?\w+"?,', begin):
        yield from _csv_rows(text, name)
    else:
        raise UsageError(f"{name}: begins with {begin[:20]!r}, which is no output of llama-bench; {_AGAIN} and save its standard output alone")


def _json_rows(text: str, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    found = _parsed(text, name, 1, "was llama-bench ended early? Run it again, or with -o jsonl, which keeps finished rows")
    for number, row in enumerate(found, start=1):
        yield f"row {number}", _pairs(row, name, f"row {number}")


def _jsonl_rows(text: str, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: a name may hold other line ends
        if line.strip():
            row = _parsed(line, name, number, "remove that line or run llama-bench again")
            yield f"line {number}", _pairs(row, name, f"line {number}")


class _Pairs(list[tuple[str, Any]]):
    """An object of JSON before anything in it is lost."""


def _no_number(word: str) -> NoReturn:
    raise ArithmeticError(word)


def _parsed(text: str, name: str, first_line: int, way_out: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_Pairs, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        if word := re.match(r"-?(?:nan|inf)", text[error.pos :], re.IGNORECASE):
            raise DataError(f"{name}: line {first_line + error.lineno - 1}: {word[0]!r} is no number; {_AGAIN} and more repetitions") from None
        raise DataError(f"{name}: line {first_line + error.lineno - 1} is not valid JSON (cut short?); {way_out}") from None
    except ArithmeticError as error:
        raise DataError(f"{name}: {str(error)!r} is no number; {_AGAIN} and more repetitions") from None
    except (ValueError, RecursionError):  # digits without end, brackets without end
        raise DataError(f"{name}: line {first_line}: is no output of llama-bench; {_AGAIN}") from None


def _pairs(row: Any, name: str, place: str) -> dict[str, Any]:
    if not isinstance(row, _Pairs):
        raise DataError(f"{name}: {place}: is no object with fields; {_AGAIN}")
    return _without_repeats(row, name, place)


def _without_repeats(pairs: list[tuple[str, Any]], name: str, place: str) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [key for key, _ in pairs]
        raise DataError(f"{name}: {place}: the field {next(key for key in names if names.count(key) > 1)[:40]!r} stands twice; {_AGAIN}")
    return fields


def _csv_rows(text: str, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    try:
        for cells in lines:
            if not header:
                header = cells
            elif cells:
                place = f"line {lines.line_num}"
                if len(cells) != len(header):
                    raise DataError(f"{name}: {place}: {len(cells)} cells under {len(header)} headings (cut short?); remove that line or run again")
                row = _without_repeats(list(zip(header, cells, strict=True)), name, place)
                yield place, {key: _from_cell(key, cell) for key, cell in row.items()}
    except csv.Error as error:
        raise DataError(f"{name}: line {lines.line_num}: not valid CSV: {error} (cut short?); remove that line or run again") from None


def _from_cell(name: str, cell: str) -> Any:
    """A cell in the type that the program prints the field in; as it is where it does not look like that."""
    kind = _ESSENTIAL.get(name) or type(_SETTINGS.get(name, ""))
    if kind is bool:
        return {"0": False, "1": True}.get(cell, cell)
    if kind is int and re.fullmatch(r"-?[0-9]{1,20}", cell):
        return int(cell)
    if kind is float and re.fullmatch(r"[0-9]{1,300}(\.[0-9]{1,300})?", cell):
        return float(cell)
    return cell


# ── rows in ───────────────────────────────────────────────────────────────────────────────────────


def _check(row: dict[str, Any], say: _Complaint) -> None:
    """Every field there, every value in its type, of a plausible size, and text that is one line."""
    for field, value in row.items():
        if not re.fullmatch(r"[A-Za-z_]\w{0,63}", field, re.ASCII):
            say(f"field {field[:40]!r}", f"is no name of a field; {_AGAIN}")
        if isinstance(value, str) and not _WORDS.fullmatch(value):
            say(field, f"text of {len(value):,} characters, or with control characters among them; {_AGAIN}")
        if (isinstance(value, int) and abs(value) > _MOST) or (isinstance(value, float) and not math.isfinite(value)):
            say(field, f"a number of more than 64 bits; {_AGAIN}")
        if field not in _SAMPLES and not isinstance(value, bool | int | float | str):
            say(field, "is neither text nor a number; update nbutils, or use the llama-bench that it knows")
    for field, kind in _ESSENTIAL.items():
        if field not in row:
            say(field, f"is missing; {_AGAIN}, of a newer llama.cpp if this was json")
        _check_essential(field, kind, row[field], say)
    if not row["n_prompt"] and not row["n_gen"]:
        say("n_gen", f"is 0 and n_prompt too: nothing was timed; {_AGAIN}")


def _check_essential(field: str, kind: type, value: Any, say: _Complaint) -> None:
    wanted: Any = int | float if kind is float else kind
    if isinstance(value, bool) or not isinstance(value, wanted):
        say(field, f"should be {_KIND_WORDS[kind]} (got {str(value)[:40]!r}); {_AGAIN}")
    if kind is not str and (value < 0 or (value == 0 and field in _ABOVE_ZERO)):
        say(field, f"should be {'above 0' if field in _ABOVE_ZERO else '0 or more'} (got {value}); {_AGAIN}")


def _test_in(row: dict[str, Any], say: _Complaint) -> BenchTest:
    fields = {name: row[name] for name in _TEST}
    if any(name in row for name in _SAMPLES):
        samples = _samples_in(row, say)
        fields |= {"samples_ns": samples, **_kept_rates(row, samples, say)}
    try:
        return BenchTest(**fields)
    except ValidationError as error:
        say(*_first_problem(error))


def _samples_in(row: dict[str, Any], say: _Complaint) -> tuple[int, ...]:
    for name, kinds in zip(_SAMPLES, (int, int | float), strict=True):
        values = row.get(name)
        if not isinstance(values, list) or isinstance(values, _Pairs) or not values:
            say(name, f"should be a list of numbers; {_AGAIN}")
        for value in values:
            if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value <= _MOST:
                say(name, f"should hold numbers above 0 only (got {str(value)[:40]!r}); {_AGAIN}")
    return tuple(row["samples_ns"])


def _kept_rates(row: dict[str, Any], samples: tuple[int, ...], say: _Complaint) -> dict[str, float | None]:
    """Check the rates that were printed against the samples; keep those whose last digits another machine's rounding changed."""
    if row["avg_ns"] != sum(samples) // len(samples):
        say("avg_ns", f"is {row['avg_ns']:,}, the mean of samples_ns is {sum(samples) // len(samples):,}: the row was changed; {_AGAIN}")
    rates = _rates(row["n_prompt"] + row["n_gen"], samples)
    if len(rates) != len(row["samples_ts"]) or not all(map(_alike, rates, row["samples_ts"])):
        say("samples_ts", f"is not tokens over samples_ns: the row was changed; {_AGAIN}")
    mean, stddev = _mean_and_stddev(rates)
    # A difference of two large squares: what rounding leaves of it depends on the machine.
    slack = {"avg_ts": 1e-9 * mean, "stddev_ts": 1e-7 * mean}
    kept: dict[str, float | None] = {}
    for name, value in (("avg_ts", mean), ("stddev_ts", stddev)):
        if abs(row[name] - value) > 1e-6 + slack[name]:
            say(name, f"is {row[name]:g}, samples_ns give {value:g}: the row was changed; {_AGAIN}")
        kept[name] = None if row[name] == _six_places(value) else row[name]
    return kept


def _alike(rate: float, printed: float) -> bool:
    """Equal to the six digits that the program prints."""
    return abs(rate - printed) <= 1e-5 * rate


def _record(head: dict[str, Any], settings: dict[str, Any], test: BenchTest, say: _Complaint) -> BenchRecord:
    try:
        created = datetime.fromisoformat(test.test_time)
        created = (created.replace(tzinfo=UTC) if created.tzinfo is None else created).astimezone(UTC)
    except (ValueError, OverflowError):
        say("test_time", f"should be a time such as 2026-11-20T13:03:45Z (got {test.test_time[:40]!r}); {_AGAIN}")
    name = re.split(r"[\\/]", head["model_filename"])[-1]
    if not name:
        say("model_filename", f"names no file; {_AGAIN}")
    try:
        return BenchRecord(
            schema_version=1,
            kind="llama-bench",
            created=created,
            versions={"llama-bench": head["build_commit"], "nbutils": nbutils.__version__},
            settings=settings,
            tests=(test,),
            **head | {"model_filename": name},
        )
    except ValidationError as error:
        say(*_first_problem(error))


def _first_problem(error: ValidationError) -> tuple[str, str]:
    field, _, wrong = registry.problems_of(error)[0].partition(": ")
    return "test" if field == "file" else field, f"{wrong}; {_AGAIN}"
