"""``nbutils records``: what was measured, here and elsewhere; compared, exported, checked and handed in."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from nbutils import contribute, frames, frames_compared, frames_records, llama_bench, paths, records
from nbutils.cli_measure import show, summary
from nbutils.errors import DataError, MissingExtra, UsageError, did_you_mean
from nbutils.printing import AsJson, err, out, print_json, rows_of, rows_table
from nbutils.specs import AnyRecord, BenchRecord, Record

__all__ = ["register"]

Names = Annotated[list[str], typer.Argument(help="Record files, by path, by name or by the last eight letters of the name.")]
Published = Annotated[bool, typer.Option("--published", help="Those of data/records instead of your own.")]
All = Annotated[bool, typer.Option("--all", help="Both.")]
Device = Annotated[str, typer.Option("--device", "-d", help="Only of this device: an id of the registry, or 'unlisted'.")]
Model = Annotated[str, typer.Option("--model", "-m", help="Only of models whose name holds this.")]
Kind = Annotated[str, typer.Option("--kind", help="Only of this kind: run, sustain, endpoint or llama-bench.")]

_KINDS = ("run", "sustain", "endpoint", "llama-bench")
_SHOWN = 200
_FORMATS = ("csv", "parquet", "llama-bench")


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    commands = typer.Typer(no_args_is_help=True, help="What was measured: list, show, compare, export, check and submit records.")
    for name, command in (
        ("list", list_command),
        ("show", show_command),
        ("compare", compare_command),
        ("export", export_command),
        ("check", check_command),
        ("submit", submit_command),
    ):
        commands.command(name)(command)
    app.add_typer(commands, name="records")


@contextmanager
def _telling() -> Iterator[Callable[[str], None]]:
    with err.status("reading records …") as status:
        yield lambda text: status.update(escape(text))


def _complain(text: str) -> None:
    err.print(f"nbutils: {_shown(text)}", markup=False, highlight=False, soft_wrap=True)


def _say(text: str) -> None:
    out.print(_shown(text), markup=False, highlight=False, soft_wrap=True)


def _shown(text: str) -> str:
    """Lines without a character that would steer a terminal: names in records are anybody's."""
    if text.replace("\n", "").isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def _files(published: bool, both: bool) -> list[Path]:
    if published and both:
        raise UsageError("both --published and --all are given; --all has the published ones too")
    if both:
        return records.list_all()
    return records.list_records(records.committed_dir() if published else None)


# ── looking ───────────────────────────────────────────────────────────────────────────────────────


def list_command(
    published: Published = False,
    both: All = False,
    device: Device = "",
    model: Model = "",
    kind: Kind = "",
    limit: Annotated[int, typer.Option(min=0, help="Show so many of the newest; 0 for all. JSON has all.")] = _SHOWN,
    as_json: AsJson = False,
) -> None:
    """List records, oldest first, with a prefill and a decode rate: your own, or those that are published.

    Rates are medians: of decode, one sequence at the least depth; of a server, one request in flight. Example: nbutils records list --all -m qwen3
    """
    if kind and kind not in _KINDS:
        raise UsageError(f"no kind of record {kind!r}{did_you_mean(kind, _KINDS)}")
    files = _files(published, both)
    rows = _list_rows(files, device, model, kind)
    if as_json:
        print_json(rows)
        return
    if not rows:
        where = records.committed_dir() if published else paths.user_records_dir()
        narrowed = " like that" if device or model or kind else ""
        _say(f"no records{narrowed} in {where}; 'nbutils book' or 'nbutils measure' makes some, --published lists those of the book")
        return
    shown = rows[-limit:] if limit else rows
    cells = [[_list_cell(row[name]) for name in _LIST_COLUMNS] for row in shown]
    _say("\n".join(_aligned([_LIST_HEADINGS, *([created[:16].replace("T", " "), *rest] for created, *rest in cells)])))
    if len(shown) < len(rows):
        _say(f"{len(rows) - len(shown):,} older not shown; --limit 0 shows all {len(rows):,}")


_LIST_COLUMNS = ("created", "machine", "what", "model", "format", "prefill_tok_per_s", "decode_tok_per_s", "file")
_LIST_HEADINGS = ("UTC", "machine", "what", "model", "format", "prefill tok/s", "decode tok/s", "record")


_LIST_READ = ("file", "created", "kind", "suite", "device", "machine", "model", "format", "test", "tok_per_s")


def _list_rows(files: Sequence[Path], device: str, model: str, kind: str) -> list[dict[str, Any]]:
    """One row per record that is wanted, with the plainest of its rates."""
    with _telling() as say:
        frame = frames_records.records_frame(files, empty=True, say=say, complain=_complain)
    wanted = frame["model"].str.contains(model, case=False, regex=False)
    wanted &= (frame["device"] == device) | (not device)
    wanted &= (frame["kind"] == kind) | (not kind)
    found: dict[str, dict[str, Any]] = {}
    published = records.committed_dir()
    plainest = frame[wanted].sort_values(["sequences", "depth_tokens"], kind="stable")
    for row in plainest[list(_LIST_READ)].itertuples():
        listed = found[row.file] if row.file in found else found.setdefault(row.file, _list_row(row, published))
        for phase in ("prefill", "decode"):
            if isinstance(row.test, str) and row.test.endswith(phase) and " then " not in row.test and listed[f"{phase}_tok_per_s"] is None:
                listed[f"{phase}_tok_per_s"] = row.tok_per_s
    return [found[str(path)] for path in files if str(path) in found]


def _list_row(row: Any, published: Path) -> dict[str, Any]:
    return {
        "file": row.file,
        "created": row.created.isoformat(),
        "store": "published" if Path(row.file).is_relative_to(published) else "private",
        "kind": row.kind,
        "suite": row.suite,
        "what": row.suite or row.kind,
        "device": row.device,
        "machine": row.machine,
        "model": row.model,
        "format": row.format,
        "prefill_tok_per_s": None,
        "decode_tok_per_s": None,
    }


def _list_cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.1f}"
    return "–" if value is None else _shown(str(value)).replace("\n", " ")


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines with columns of equal width, the last as long as it is, so that a path stays whole."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        *cells, last = row
        yield "  ".join([*(c.rjust(w) if _is_rate(i) else c.ljust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=False))), last])


def _is_rate(column: int) -> bool:
    return _LIST_COLUMNS[column].endswith("tok_per_s")


def show_command(files: Names, as_json: AsJson = False) -> None:
    """Show what records say: rates, ceilings, shares, memory; of every kind. Example: nbutils records show 2c6de24b"""
    found = [records.read_any(records.resolve(name)) for name in files]
    runs = [record for record in found if isinstance(record, Record)]
    if as_json:
        others = [record.model_dump(mode="json") for record in found if not isinstance(record, Record)]
        print_json((rows_of(frames.measured_frame(runs)) if runs else []) + others)
        return
    if len(runs) == len(found) > 1:
        out.print(summary(runs))
        return
    for record in found:
        show(record)


# ── comparing ─────────────────────────────────────────────────────────────────────────────────────

_ALONE_SHOWN = 10


def compare_command(
    a: Annotated[str, typer.Argument(metavar="A", help="A record, a folder of records, a run of data/runs, a device id or a machine's name.")],
    b: Annotated[str, typer.Argument(metavar="B", help="What to hold against it, in the same words.")],
    as_json: AsJson = False,
) -> None:
    """Compare two records, or all records of two machines: how many times as fast B is, and whether noise would explain it.

    Tests are paired where model, format, lengths, depth, sequences and cache types agree; what has no partner is listed with the reason.

    Examples: nbutils records compare 2c6de24b 9b3b8e62 · nbutils records compare dgx-spark strix-halo
    """
    with _telling() as say:
        found = frames_compared.compare(frames_compared.side(a, say=say), frames_compared.side(b, say=say))
    if as_json:
        hidden = ["words", "interval", "verdict_words"]
        print_json(
            {"a": a, "b": b, "level": 0.95, "pairs": rows_of(found.pairs.drop(columns=hidden)), "left_out": found.left_out}
            | {"summary": found.summary, "noisy": found.noisy, "method": frames_compared.METHOD}
        )
        return
    if len(found.pairs):
        headings = {name: (head, frames_compared.COMPARED_FORMATS.get(name, "{}")) for name, head in frames_compared.COMPARED_HEADINGS.items()}
        out.print(rows_table(escape(f"A: {a}   B: {b}"), found.pairs.to_dict("records"), headings))
    else:
        _say("no test is on both sides")
    for line in _said_below(found):
        _say(line)


def _said_below(found: frames_compared.Comparison) -> Iterator[str]:
    yield from found.summary
    by_note: dict[str, int] = {}
    for notes in found.pairs["notes"]:
        for note in notes:
            by_note[note] = by_note.get(note, 0) + 1
    for note, n in by_note.items():
        yield f"differs, A | B: {note}" + ("" if n == len(found.pairs) else f" ({n} of {len(found.pairs)} pairs)")
    yield from (f"noisy: {line}" for line in found.noisy)
    for alone in found.left_out[:_ALONE_SHOWN]:
        test = " ".join(filter(None, (alone["model"], alone["format"], alone["test"])))
        yield f"left out of {alone['side']}: {test + ': ' if test else ''}{alone['reason']}"
    if len(found.left_out) > _ALONE_SHOWN:
        yield f"and {len(found.left_out) - _ALONE_SHOWN} more are left out; --json has them all"
    if len(found.pairs):
        yield frames_compared.METHOD


# ── taking elsewhere ──────────────────────────────────────────────────────────────────────────────


def export_command(
    file: Annotated[Path, typer.Argument(help="Where it goes; what is there is replaced.")],
    files: Annotated[list[str] | None, typer.Argument(metavar="[RECORD]...", help="Records, as 'show' takes them; your own when left out.")] = None,
    to: Annotated[str, typer.Option("--to", help="csv, parquet or llama-bench; by the ending of FILE when left out.")] = "",
    published: Published = False,
    both: All = False,
    as_json: AsJson = False,
) -> None:
    """Write records as CSV or Parquet, a row per repetition of each test, or as llama-bench's json, a row per test.

    Units are in the names of the columns. In CSV an apostrophe stands before text that a spreadsheet would run as a formula. llama-bench's json
    has the tests of runs and of llama-bench; 'nbutils import llama-bench' reads it. Example: nbutils records export all.csv --all
    """
    kind = to or {".csv": "csv", ".parquet": "parquet", ".json": "llama-bench"}.get(file.suffix, "")
    if kind not in _FORMATS:
        raise UsageError(
            f"--to is {kind!r}{did_you_mean(kind, _FORMATS)}" if to else f"{file.name!r} says no format; give --to csv, parquet or llama-bench"
        )
    if files and (published or both):
        raise UsageError("records by name or all of a store; leave one of the two out")
    _refuse_among_records(file)
    chosen = [records.resolve(name) for name in files] if files else _files(published, both)
    with _telling() as say:
        n_rows, left_out = _export(kind, file, _read(chosen, say, complain=not files))
    if as_json:
        print_json({"file": str(file), "format": kind, "records": len(chosen), "rows": n_rows, "left_out": left_out})
        return
    _say(f"{n_rows:,} {'row' if n_rows == 1 else 'rows'} of {len(chosen):,} {'record' if len(chosen) == 1 else 'records'}: {file}")
    for line in left_out:
        _complain(line)


def _refuse_among_records(file: Path) -> None:
    """An export replaces what is there; a record by its place or its name is there once, and stays."""
    stores = (paths.user_records_dir(), records.committed_dir())
    if any(file.resolve().is_relative_to(folder.resolve()) for folder in stores) or re.fullmatch(r"\d{8}T\d{6}Z-.*-[0-9a-f]{8}\.json", file.name):
        raise UsageError(f"{file.name!r} is a record, or would lie among them; the file to write comes first, then the records")


def _read(files: Sequence[Path], say: Callable[[str], None], *, complain: bool) -> Iterator[tuple[Path, AnyRecord]]:
    """The records one after the other; of a whole store a damaged one is told and left out."""
    for number, path in enumerate(files):
        if number % 100 == 0:
            say(f"reading records: {number:,} of {len(files):,} …")
        try:
            record = records.read_any(path)
        except DataError as error:
            if not complain:
                raise
            _complain(str(error))
            continue
        yield path, record


def _export(kind: str, file: Path, found: Iterator[tuple[Path, AnyRecord]]) -> tuple[int, list[str]]:
    """Write the file; how many rows it has, and what it leaves out."""
    if kind == "llama-bench":
        return _export_llama_bench(file, found)
    if kind == "parquet":
        try:
            import pyarrow  # noqa: F401 - pandas needs it below, and it is named here with the way out
        except ImportError:
            raise MissingExtra("Parquet needs pyarrow: pip install pyarrow; --to csv needs nothing") from None
    frame = frames_records.repetitions_frame(found)
    try:
        with paths.atomic_path(file) as temporary:
            if kind == "parquet":
                frame.to_parquet(temporary, index=False)
            else:
                frame.map(frames_records.spreadsheet_text).to_csv(temporary, index=False, lineterminator="\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"{file}: cannot be written: {error.strerror}") from None
    return len(frame), []


def _export_llama_bench(file: Path, found: Iterator[tuple[Path, AnyRecord]]) -> tuple[int, list[str]]:
    rows: list[dict[str, Any]] = []
    left_out = []
    for path, record in found:
        if not isinstance(record, Record | BenchRecord):
            left_out.append(f"{path.name}: llama-bench has no rows for a record of the kind {record.kind!r}; csv and parquet have")
            continue
        rows += llama_bench.rows(record)
        if isinstance(record, Record) and any(point.n_seq > 1 for point in record.points):
            left_out.append(f"{path.name}: llama-bench has no rows for several sequences; csv and parquet have")
    if not rows:
        raise UsageError(f"none of these records has a row in llama-bench's terms, so {file.name} is not written; csv and parquet have them all")
    try:
        paths.write_text(file, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise DataError(f"{file}: cannot be written: {error.strerror}") from None
    return len(rows), left_out


# ── handing in ────────────────────────────────────────────────────────────────────────────────────


def check_command(files: Names, as_json: AsJson = False) -> None:
    """Check records as 'submit' and CI do: schema, digest, clock, settings, text, and that nothing is faster than its ceiling.

    Every problem is a line. Example: nbutils records check 2c6de24b
    """
    chosen = [records.resolve(name) for name in files]
    found = {path: contribute.problems(path) for path in chosen}
    if as_json:
        print_json([{"file": str(path), "problems": lines} for path, lines in found.items()])
    else:
        for path in (path for path, lines in found.items() if not lines):
            _say(f"{path.name}: no problem")
    _raise_if_any(found, quiet=as_json)


def _raise_if_any(found: dict[Path, list[str]], *, quiet: bool = False) -> None:
    """Tell every problem but the last on a line of its own, and raise that."""
    lines = [f"{path.name}: {line}" for path, problems in found.items() for line in problems]
    if lines:
        for line in [] if quiet else lines[:-1]:
            _complain(line)
        raise DataError(lines[-1])


def submit_command(files: Names) -> None:
    """Check records and copy them to data/records/<device>/, ready to be committed; then say what to do next.

    Nothing is copied unless all of them are in order. Nothing is sent anywhere. Example: nbutils records submit 2c6de24b
    """
    chosen = [records.resolve(name) for name in files]
    _raise_if_any({path: contribute.problems(path) for path in chosen})
    contribute.refuse_again(chosen)
    targets = [contribute.submit(path) for path in chosen]
    for target in targets:
        _say(f"copied to data/records/{target.parent.name}/{target.name}")
    _say("next: look at what 'nbutils records show' says of them; then")
    _say(f"  git switch -c records-{targets[0].stem.rpartition('-')[2]}")
    _say(f"  git add {' '.join(sorted({f'data/records/{target.parent.name}' for target in targets}))}")
    _say("  git commit -m 'Records of MACHINE' && git push -u origin HEAD")
    _say("and open a pull request; its template asks what the record cannot say. CI runs the same check.")
    _say("to show them in a chapter, name them in a file of data/runs and run 'nbutils check-data'")
