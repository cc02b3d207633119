"""A record on its way into ``data/records``: everything that speaks against it, and the copy.

One check, for ``nbutils records check`` and ``submit`` and for every record that ``nbutils check-data`` finds in the repository.
"""

from __future__ import annotations

import os
import re
import shutil
import unicodedata
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from nbutils import frames, paths, records, registry
from nbutils.errors import DataError, UnknownId, UsageError
from nbutils.frames_records import Cell, cells, record_rows, test_words
from nbutils.specs import AnyRecord, BenchRecord, Record, ServedRecord, SustainRecord

__all__ = ["problems", "refuse_again", "store_problems", "submit"]

#: How far a clock may be ahead, and when the first record can have been made: nbutils, and llama-bench before it.
_AHEAD = timedelta(hours=1)
_FIRST, _FIRST_BENCH = datetime(2026, 1, 1, tzinfo=UTC), datetime(2023, 8, 1, tzinfo=UTC)
#: Settings of llama-bench without which nobody could run the same again.
_BENCH_SETTINGS = ("n_threads", "n_batch", "n_ubatch", "n_gpu_layers", "type_k", "type_v")
#: Characters that change how other text is shown, or are not shown: control, format (marks of direction among them), and those without a meaning.
_UNSEEN = {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"}
_LONGEST_TEXT = 4000
#: A thousand times what the fastest card reads of a prompt for the smallest stand-in.
_ABSURD_TOK_PER_S = 1e9
#: What twelve of the fastest cards read together, a hundred times what they multiply, and the least share of a file that a token of any
#: mixture reads; and a hundred times what one stream of any server decodes.
_ABSURD_BYTES_PER_S, _ABSURD_FLOP_PER_S, _LEAST_SHARE, _ABSURD_STREAM_TOK_PER_S = 1e14, 1e18, 0.01, 1e6
#: How far a mean of rates may be above the rate of the mean time: repetitions would have to differ by several times.
_MOST_OVER_MEAN = 4.0
_SOMEBODYS_FOLDER = re.compile(r"(?:/home|/Users|[A-Za-z]:\\Users)[/\\]\w")
_SOMEBODYS_MAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,}\b")
_FORMAT = re.compile(r"\w[\w.\-]{0,31}", re.ASCII)


# ── the check ─────────────────────────────────────────────────────────────────────────────────────


def problems(path: Path, *, now: datetime | None = None) -> list[str]:
    """What speaks against publishing the record at ``path``, a line each, without its name; empty when nothing does.

    Raises ``UsageError`` where there is no file.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        return ["is no plain file; give the record itself"]
    try:
        fields, record = records.read_fields(path), records.read_any(path)
    except DataError as error:
        return [str(error).removeprefix(f"{path.name}: ")]
    found = [*_name_problems(path, record), *_clock_problems(record, now or datetime.now(UTC)), *_device_problems(record)]
    found += [*_missing(record), *_text_problems(fields), *_format_problems(record), *_mean_problems(record)]
    try:
        return found + _speed_problems(record)
    except UnknownId as error:  # a cache type, say, whose bytes nobody here knows
        return [*found, str(error)]


def _name_problems(path: Path, record: AnyRecord) -> Iterator[str]:
    due = f"{records.file_name(record).rpartition('-')[0]}-{_digest(path)}.json"
    if path.name != due:
        yield f"its content makes it {due}; give it that name"
    path = path.absolute()
    if path.is_relative_to(records.committed_dir()) and path.parent != records.committed_dir() / records.device_of(record):
        yield f"was measured on {records.device_of(record)!r} and lies in {path.parent.name!r}; move it to data/records/{records.device_of(record)}"


def _clock_problems(record: AnyRecord, now: datetime) -> Iterator[str]:
    made = f"{record.created.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    first = _FIRST_BENCH if isinstance(record, BenchRecord) else _FIRST
    if record.created > now + _AHEAD:
        yield f"made in the future ({made}); set the clock and measure again"
    if record.created < first:
        yield f"made before there was a program to make it ({made}, not before {first:%Y-%m-%d}); set the clock and measure again"


def _device_problems(record: AnyRecord) -> Iterator[str]:
    device = records.device_of(record)
    if device == "unlisted" or isinstance(record, BenchRecord):
        return
    try:
        registry.load_configuration(registry.load_device(device), record.machine.configuration)
    except UnknownId as error:
        yield str(error)


def _missing(record: AnyRecord) -> Iterator[str]:
    """Settings and facts that the schema allows to be empty and that nobody could compare without."""
    said: dict[str, Any] = {"versions.nbutils": record.versions.get("nbutils")}
    if isinstance(record, BenchRecord):
        said |= {f"settings.{name}": str(record.settings.get(name, "")) for name in _BENCH_SETTINGS}
        said |= {"build_commit": record.build_commit, "cpu_info": record.cpu_info, "backends": record.backends}
    else:
        said |= {"machine.cpu": record.machine.cpu, "machine.system": record.machine.system}
    if isinstance(record, ServedRecord):
        said |= {"model": record.model, "a whole answer": cells(record)}
    if isinstance(record, Record | SustainRecord):
        said |= {"model.name": record.model.name, "backend.binding": record.backend.binding, "backend.device": record.backend.device}
    if isinstance(record, Record):
        said["a yardstick of reading"] = [y for y in record.yardsticks if y.kind == "read"]
    if gone := [name for name, value in said.items() if not value]:
        yield f"does not say {', '.join(gone)}; measure again with an nbutils that does"


def _text_problems(fields: dict[str, Any]) -> Iterator[str]:
    """Text that is not shown as it is, or that names somebody's disk or mail.

    What looks like markup or a formula is text, and escaped where it is shown.
    """
    for place, text in _texts(fields):
        if unseen := next((c for c in text if unicodedata.category(c) in _UNSEEN), ""):
            yield f"{place}: holds U+{ord(unseen):04X}, a character that is not shown; take it out of the name and measure again"
        elif len(text) > _LONGEST_TEXT:
            yield f"{place}: text of {len(text):,} characters; nothing in a record is as long"
        elif _SOMEBODYS_FOLDER.search(text):
            yield f"{place}: names a folder of somebody's disk; measure again from another folder"
        elif _SOMEBODYS_MAIL.search(text):
            yield f"{place}: holds somebody's mail address; take it out of the name and measure again"


def _texts(fields: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Every text in a record with its place, keys among them; deep nesting costs no stack."""
    left: list[tuple[str, Any]] = [("", fields)]
    while left:
        place, value = left.pop()
        if isinstance(value, str):
            yield place, value
        elif isinstance(value, dict):
            for key, inner in value.items():
                name = f"{place}.{key[:40]}".lstrip(".") if key.isprintable() else f"{place}.{key[:40]!r}"
                yield name, key
                left.append((name, inner))
        elif isinstance(value, list):
            left += [(place, inner) for inner in value]


def _format_problems(record: AnyRecord) -> Iterator[str]:
    """Names of types become labels of figures, where signs have a meaning of their own."""
    names = set()
    if isinstance(record, Record | SustainRecord):
        names = {record.model.gguf_type, record.settings.type_k, record.settings.type_v, *record.model.type_bytes_read}
    if isinstance(record, Record):
        names |= {kernel.tensor_type for kernel in record.kernels}
    yield from (f"{name[:40]!r} is no name of a format" for name in sorted(names) if not _FORMAT.fullmatch(name))


def _mean_problems(record: AnyRecord) -> Iterator[str]:
    """Means of llama-bench that are not those of its times. A mean of rates is never below the rate of the mean time."""
    for number, test in enumerate(record.tests) if isinstance(record, BenchRecord) else ():
        of_mean = (test.n_prompt + test.n_gen) * 1e9 / test.avg_ns
        if test.samples_ns and abs(test.avg_ns - sum(test.samples_ns) / len(test.samples_ns)) >= 1:
            yield f"tests.{number}: avg_ns is {test.avg_ns:,}, which is not the mean of samples_ns; import llama-bench's own output again"
        elif test.avg_ts is not None and not 0.999 < test.avg_ts / of_mean < _MOST_OVER_MEAN:
            yield f"tests.{number}: avg_ts is {test.avg_ts:g}, and avg_ns makes {of_mean:g} tok/s; import llama-bench's own output again"


# ── faster than it can be ─────────────────────────────────────────────────────────────────────────


def _speed_problems(record: AnyRecord) -> list[str]:
    """Rates above what the run's own yardsticks, or the maker of its machine, allow; of records without either, above what anything could."""
    timed = [(cell, max(cell.rates)) for cell in cells(record)]
    absurd = [f"{test_words(cell)} at {rate:g} tok/s: nothing is as fast" for cell, rate in timed if rate > _fastest(record, cell)]
    if absurd:
        return absurd
    if isinstance(record, Record):
        return [*frames.check_against_ceiling(record), *_above_nominal(record)]
    return list(_above_nominal(record)) if isinstance(record, SustainRecord) else []


def _fastest(record: AnyRecord, cell: Cell) -> float:
    """A rate in tok/s over all sequences that no machine reaches with a model of this size."""
    if isinstance(record, ServedRecord):
        return _ABSURD_STREAM_TOK_PER_S if cell.test == "served decode" else _ABSURD_TOK_PER_S
    if isinstance(record, BenchRecord):
        n_bytes, n_weights = _LEAST_SHARE * record.model_size, _LEAST_SHARE * record.model_n_params
    else:
        n_bytes, n_weights = float(sum(record.model.type_bytes_read.values())), _LEAST_SHARE * record.model.n_parameters
    by_flop = _ABSURD_FLOP_PER_S / (2 * n_weights)
    return min(_ABSURD_TOK_PER_S, by_flop, _ABSURD_BYTES_PER_S / n_bytes * cell.sequences if cell.test in ("decode", "sustained decode") else by_flop)


def _above_nominal(record: Record | SustainRecord) -> Iterator[str]:
    """What goes through memory faster than its maker says. Files that a cache may hold, and several cards, are bounded by more than one memory."""
    machine = record.machine
    if machine.device not in registry.device_ids() or len(machine.gpus) > 1:
        return
    device = registry.load_device(machine.device)
    if record.backend.device == "CPU" and device.memory_kind == "discrete":
        return  # weights lie in the computer's memory, of which the registry knows nothing
    try:
        nominal = registry.load_configuration(device, machine.configuration).bandwidth_bytes_per_s
    except UnknownId:
        return  # has a line of its own
    where = "data/devices has" if not machine.configuration else f"data/devices has for {machine.configuration}"
    for what, achieved in _achieved(record):
        if achieved > frames.YARDSTICK_SLACK * nominal:
            yield f"{what} goes through {achieved / 1e9:.1f} GB/s, {where} {nominal / 1e9:.1f}; measure again, or mend the device"


def _achieved(record: Record | SustainRecord) -> Iterator[tuple[str, float]]:
    """Bytes per second of memory that a record claims, by what claims them."""
    if isinstance(record, Record) and (bandwidth := frames.bandwidth_bytes_per_s(record)):
        yield "its yardstick of reading", bandwidth
    if record.model.file_bytes < frames.CACHEABLE_BYTES:
        return
    for row in record_rows(record):
        if row["step_bytes"]:
            yield f"{row['test']} at {row['tok_per_s']:.1f} tok/s", row["step_bytes"] * row["tok_per_s"] / row["sequences"]


# ── the store ─────────────────────────────────────────────────────────────────────────────────────


def store_problems() -> list[str]:
    """All that is wrong in ``data/records``, a line each that begins with the file."""
    folder = records.committed_dir()
    found, seen = [], dict[str, str]()
    for path in sorted(folder.rglob("*")) if folder.is_dir() else []:
        place = f"data/records/{path.relative_to(folder).as_posix()}"
        if path.is_dir() and not path.is_symlink():
            continue
        if path.suffix != ".json" or path.parent.parent != folder:
            found.append(f"{place}: is no record in the folder of a device; remove it")
            continue
        found += [f"{place}: {line}" for line in problems(path)]
        if (first := seen.setdefault(_digest(path), place)) != place:
            found.append(f"{place}: is {first} once more; remove one")
    return found


def _digest(path: Path) -> str:
    return path.stem.rpartition("-")[2]


def refuse_again(files: Sequence[Path]) -> None:
    """Raise ``UsageError`` for a record that is in ``data/records`` already, or twice among ``files``."""
    there = {_digest(path): f"is already in data/records/{path.parent.name} as {path.name}" for path in records.list_records(records.committed_dir())}
    for path in files:
        if why := there.get(_digest(path)):
            raise UsageError(f"{path.name} {why}; records are append-only")
        there[_digest(path)] = "is named twice"


def submit(path: Path, *, now: datetime | None = None) -> Path:
    """Check one record and copy it to ``data/records/<device>/``; return where it went.

    Raises ``DataError`` with the first thing that speaks against it, ``UsageError`` for one that is there already.
    """
    if found := problems(path, now=now):
        raise DataError(f"{path.name}: {found[0]}")
    refuse_again([path])
    device = records.device_of(records.read_any(path))
    target = records.committed_dir() / device / path.name
    try:
        with paths.atomic_path(target) as temporary:
            shutil.copyfile(path, temporary)
    except OSError as error:
        raise DataError(f"{path.name} cannot be copied to data/records/{device}: {error.strerror}; nothing was changed there") from None
    os.utime(target)
    return target
