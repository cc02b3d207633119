"""Two sides of records -> the tests that both have, how many times as fast the second is, and whether noise would explain that."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd

from nbutils import frames, frames_records, frames_run, ratios, records, registry
from nbutils.errors import DataError, UsageError, did_you_mean
from nbutils.frames_records import Cell, cells, facts, test_words
from nbutils.specs import AnyRecord, BenchRecord, Record, SustainRecord

__all__ = ["COMPARED_FORMATS", "COMPARED_HEADINGS", "METHOD", "Comparison", "Side", "compare", "side"]

#: How a reader is told where the interval comes from.
METHOD = (
    "Ratios are of geometric means, B over A, with an interval that holds the truth 95 times in 100; so of twenty tests that are equally fast"
    " one is called different. Of fewer than four runs together the interval comes from their repetitions, counted as fewer the more they resemble"
    " their neighbours, and from how far the yardsticks moved within the run; of four and more from the spread between runs."
    " Where fewer than four runs have no yardsticks (sustained decode, servers, llama-bench) it knows these runs only: what another run would"
    " change is not in it."
)
VERDICT_WORDS = {
    "faster": "faster",
    "slower": "slower",
    "no_difference": "no difference that the noise would not explain",
    "unknown": "not known: each side was timed once",
}
#: Columns of ``Comparison.pairs`` that are shown, and what a reader sees above them.
COMPARED_HEADINGS = {
    "model": "model",
    "format": "format",
    "words": "test",
    "a_tok_per_s": "A (tok/s)",
    "b_tok_per_s": "B (tok/s)",
    "ratio": "B / A",
    "interval": "95 %",
    "verdict_words": "finding",
}
COMPARED_FORMATS = {"a_tok_per_s": "{:,.4g}", "b_tok_per_s": "{:,.4g}", "ratio": "{:.3f}"}

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Side:
    """Records that are compared as one, under the name they were asked for by; ``damaged`` files have a reason each."""

    name: str
    found: tuple[tuple[Path, AnyRecord], ...]
    damaged: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Comparison:
    """What came of it: a row per pair, what has no partner and why, and what to keep in mind."""

    pairs: pd.DataFrame
    #: Dicts of ``side``, ``model``, ``format``, ``test`` and ``reason``.
    left_out: list[dict[str, str]]
    #: What one side's records say of their machine's noise.
    noisy: list[str]
    #: A sentence per kind of test: the geometric mean of its ratios.
    summary: list[str] = field(default_factory=list)


# ── sides ─────────────────────────────────────────────────────────────────────────────────────────


def side(name: str, *, say: Say | None = None) -> Side:
    """The records that ``name`` stands for: a record, a folder, a run of ``data/runs``, a device id, or a machine as ``records list`` calls it.

    Devices and machines take their records from the whole store. Raises ``UsageError`` where nothing has that name.
    """
    files = _files(name, say)
    if not files:
        if name in registry.device_ids():
            raise UsageError(f"no records of {name!r}; 'nbutils records list --all' shows which there are")
        known = [*registry.run_ids(), *sorted({path.parent.name for path in records.list_all()})]
        raise UsageError(f"no record, folder, run, device or machine {name!r}{did_you_mean(name, known)}; 'nbutils records list --all' shows records")
    if len(files) == 1:
        return Side(name, ((files[0], records.read_any(files[0])),))
    found, damaged = [], []
    for number, path in enumerate(files):
        if say and number % 100 == 0:
            say(f"reading records: {number:,} of {len(files):,} …")
        try:
            found.append((path, records.read_any(path)))
        except DataError as error:
            damaged.append(str(error))
    if not found:
        raise DataError(f"{name}: none of its {len(files)} records can be read: {damaged[0]}")
    return Side(name, tuple(found), tuple(damaged))


def _files(name: str, say: Say | None) -> list[Path]:
    if Path(name).is_dir():
        return sorted(Path(name).rglob("*.json"), key=lambda path: path.name)
    if name in registry.run_ids():
        return [records.committed_dir() / file for file in registry.load_run(name).records]
    try:
        return [records.resolve(name)]
    except UsageError:
        pass
    everything = records.list_all()
    if of_device := [path for path in everything if path.parent.name == name]:
        return of_device
    frame = frames_records.records_frame(everything, say=say, complain=lambda _: None)
    return [Path(file) for file in frame.loc[frame["machine"].str.casefold() == name.casefold(), "file"].unique()]


# ── pairs ─────────────────────────────────────────────────────────────────────────────────────────

#: What must agree for two tests to be the same: the work that is done.
_WORK = ("model", "format", "test", "prompt_tokens", "generated_tokens", "depth_tokens", "sequences", "cache_types")
#: What may differ, because it is what one compares, and what a reader must then know of.
_TOLD = {
    "file_bytes": "bytes of the file",
    "kind": "kind of record",
    "machine": "machine",
    "backend": "backend",
    "engine": "engine",
    "threads": "threads",
    "gpu_layers": "layers on the GPU",
    "flash_attention": "flash attention",
    "batch_tokens": "batch",
    "micro_batch_tokens": "micro-batch",
    "nbutils": "nbutils",
    "meters": "meters",
}


@dataclass(frozen=True, slots=True)
class _Timed:
    """One cell of one record, with what its record says."""

    cell: Cell
    said: Mapping[str, Any]
    run: ratios.Run

    @property
    def work(self) -> tuple[Any, ...]:
        return tuple(str(self.said[n] or "").casefold() if n in ("model", "format", "cache_types") else getattr(self.cell, n) for n in _WORK)


_Tests = dict[tuple[Any, ...], list[_Timed]]


def compare(a: Side, b: Side) -> Comparison:
    """Pair the tests of two sides and compare each pair; see ``METHOD``.

    A record that is on both sides counts on the side that has fewer. Raises ``UsageError`` where that leaves a side empty.
    """
    a, b = (_without(a, b), b) if len(a.found) > len(b.found) else (a, _without(b, a))
    of_a, of_b = _timed(a), _timed(b)
    rows = [_row(of_a[work], of_b[work]) for work in of_a if work in of_b]
    left_out = [*_alone("A", of_a, "B", of_b), *_alone("B", of_b, "A", of_a)]
    for mark, of in (("A", a), ("B", b)):
        left_out += [{"side": mark, "model": "", "format": "", "test": "", "reason": reason} for reason in _without_rates(of)]
    pairs = pd.DataFrame(rows, columns=_PAIR_COLUMNS)
    return Comparison(pairs, left_out, [*_noisy("A", a), *_noisy("B", b)], _summary(pairs))


def _alone(mark: str, mine: _Tests, theirs: str, other: _Tests) -> list[dict[str, str]]:
    """The tests of one side that the other does not have, each with the reason."""
    return [
        {"side": mark, "model": tests[0].said["model"], "format": tests[0].said["format"], "test": test_words(tests[0].cell)}
        | {"reason": _why_alone(tests[0], other, theirs)}
        for work, tests in mine.items()
        if work not in other
    ]


def _without(more: Side, fewer: Side) -> Side:
    names = {path.name for path, _ in fewer.found}
    found = tuple((path, record) for path, record in more.found if path.name not in names)
    if not found:
        raise UsageError(f"{more.name!r} and {fewer.name!r} are the same records; compare records that are different")
    return replace(more, found=found)


def _timed(of: Side) -> _Tests:
    """The tests of a side by the work they are, the records of each in order of time."""
    found: _Tests = {}
    for _, record in of.found:
        said = facts(record) | {"nbutils": record.versions.get("nbutils", ""), "meters": _meters(record)}
        moved, moved_df = ratios.variance_of_log(frames.yardstick_medians(record)) if isinstance(record, Record) else (0.0, 0)
        for cell in cells(record):
            timed = _Timed(cell, said, ratios.Run(cell.moments, moved, moved_df))
            found.setdefault(timed.work, []).append(timed)
    return found


def _meters(record: AnyRecord) -> str:
    traces = record.traces if isinstance(record, Record | SustainRecord) else ()
    return ", ".join(sorted({trace.meter for trace in traces})) or "none"


_PAIR_COLUMNS = [
    *("model", "format", "words", "test", "prompt_tokens", "generated_tokens", "depth_tokens", "sequences"),
    *("a_tok_per_s", "b_tok_per_s", "a_runs", "b_runs", "a_repetitions", "b_repetitions"),
    *("ratio", "ratio_low", "ratio_high", "interval", "verdict", "verdict_words", "basis", "notes"),
]


def _row(a: Sequence[_Timed], b: Sequence[_Timed]) -> dict[str, Any]:
    found = ratios.ratio([timed.run for timed in a], [timed.run for timed in b])
    cell = a[0].cell
    return {
        "model": a[0].said["model"],
        "format": a[0].said["format"],
        "words": test_words(cell),
        "test": cell.test,
        "prompt_tokens": cell.prompt_tokens,
        "generated_tokens": cell.generated_tokens,
        "depth_tokens": cell.depth_tokens,
        "sequences": cell.sequences,
        "a_tok_per_s": _geometric_mean(a),
        "b_tok_per_s": _geometric_mean(b),
        "a_runs": len(a),
        "b_runs": len(b),
        "a_repetitions": sum(len(timed.run.rates) for timed in a),
        "b_repetitions": sum(len(timed.run.rates) for timed in b),
        "ratio": found.value,
        "ratio_low": found.low,
        "ratio_high": found.high,
        "interval": "" if found.low is None else f"{found.low:.3f} to {found.high:.3f}",
        "verdict": found.verdict,
        "verdict_words": VERDICT_WORDS[found.verdict],
        "basis": found.basis,
        "notes": _differences(a, b),
    }


def _geometric_mean(side: Sequence[_Timed]) -> float:
    return math.exp(sum(sum(map(math.log, t.run.rates)) / len(t.run.rates) for t in side) / len(side))


def _differences(a: Sequence[_Timed], b: Sequence[_Timed]) -> list[str]:
    """What is not the same on both sides beside the rate, in words."""
    notes = []
    for name, words in _TOLD.items():
        mine, theirs = (list(dict.fromkeys(timed.said[name] for timed in side)) for side in (a, b))
        if set(mine) != set(theirs):
            notes.append(f"{words}: {_said(mine)} | {_said(theirs)}")
    return notes


def _said(values: Iterable[Any]) -> str:
    return ", ".join(f"{value:,}" if isinstance(value, int) else str(value) if value not in (None, "") else "not said" for value in values)


def _why_alone(alone: _Timed, other: _Tests, theirs: str) -> str:
    """Why a test has no partner: the first thing in which nothing of the other side agrees with it."""
    wanted, left = alone.work, list(other)
    for place, name in enumerate(_WORK):
        agree = [work for work in left if work[place] == wanted[place]]
        if not agree:
            they_have = list(dict.fromkeys(_has(other[work][0], name) for work in left))
            return f"{theirs} has no {_has(alone, name)}; it has {', '.join(they_have[:4])}{' …' if len(they_have) > 4 else ''}"
        left = agree
    raise AssertionError("a test that agrees in everything has a partner")


def _has(timed: _Timed, name: str) -> str:
    """One part of the work, in words."""
    value = timed.said[name] if name in timed.said else getattr(timed.cell, name)
    words = {"prompt_tokens": "prompt of {:,} tokens", "generated_tokens": "{:,} tokens generated", "depth_tokens": "depth {:,}"}
    words |= {"sequences": "{} at once", "model": "model {}", "format": "format {}", "cache_types": "cache {}"}
    return words.get(name, "{}").format(value if value is not None and value != "" else "not said")


def _without_rates(of: Side) -> list[str]:
    empty = [f"{path.name}: holds no whole answer, so no rate" for path, record in of.found if not cells(record)]
    return [*of.damaged, *empty]


def _noisy(mark: str, of: Side) -> list[str]:
    """A line for each record whose machine was not quiet, as far as it knows."""
    lines = []
    for path, record in of.found:
        said = frames_run.neighbour_lines(record.neighbours) if isinstance(record, Record | SustainRecord) else []
        if isinstance(record, Record) and (noise := frames.spread_of_yardsticks(record)) > frames.NOISY_RATIO:
            said.insert(0, frames.noise_line(pd.DataFrame({"noise": [noise]})))
        if isinstance(record, BenchRecord) and any(cell.printed for cell in cells(record)):
            said.append("It has means without their samples; each counts as timed once.")
        lines += [f"{mark}, {path.stem}: {' '.join(said)}"] if said else []
    return lines


def _summary(pairs: pd.DataFrame) -> list[str]:
    lines = []
    rows = sorted(pairs.to_dict("records"), key=lambda row: str(row["test"]))
    for test, group in groupby(rows, key=lambda row: str(row["test"])):
        found = list(group)
        values = [row["ratio"] for row in found]
        mean = math.exp(sum(map(math.log, values)) / len(values))
        counts = [
            f"{n} {VERDICT_WORDS[verdict].partition(':')[0]}" for verdict in VERDICT_WORDS if (n := sum(r["verdict"] == verdict for r in found))
        ]
        span = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
        lines.append(f"{test}: B is {mean:.3f} times as fast over {len(found)} {'pair' if len(found) == 1 else 'pairs'}{span}: {'; '.join(counts)}")
    return lines
