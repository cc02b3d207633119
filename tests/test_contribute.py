"""What speaks against a record that somebody hands in, and what of a hostile one gets through to a page: nothing."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import MAKERS, each_record, make_bench, make_record, make_served, make_sustain
from nbutils import contribute, frames, frames_compared, frames_records, frames_run, frames_served, paths, plots, records
from nbutils.errors import DataError, UsageError
from nbutils.specs import AnyRecord, NamedRun, Record, Trace

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


def with_bench_test(number: int, **changes: Any) -> AnyRecord:
    tests = list(make_bench().tests)
    tests[number] = tests[number].model_copy(update=changes)
    return make_bench(tests=tuple(tests))


def with_machine(**changes: Any) -> Record:
    return make_record(machine=make_record().machine.model_copy(update=changes))


def with_model(**changes: Any) -> Record:
    return make_record(model=make_record().model.model_copy(update=changes))


def problems(record: AnyRecord, folder: Path) -> list[str]:
    return contribute.problems(records.write(record, folder), now=NOW)


def everything_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


# ── the check ─────────────────────────────────────────────────────────────────────────────────────


@each_record
def test_a_plausible_record_of_every_kind_has_no_problem(make: Callable[..., AnyRecord], tmp_path: Path) -> None:
    assert problems(make(), tmp_path) == []


def test_every_record_of_the_repository_has_no_problem() -> None:
    assert records.list_records(records.committed_dir())
    assert contribute.store_problems() == []


BACKWARDS, HIDDEN, PRIVATE, ESCAPE = "qwen\u202e3", "qwen\u200b3", "qwen\ue0003", "qwen\x9b2J"


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (make_record(created=NOW + timedelta(hours=1, seconds=1)), "made in the future (2026-11-20 13:00 UTC); set the clock and measure again"),
        (
            make_record(created=datetime(2025, 12, 31, tzinfo=UTC)),
            "made before there was a program to make it (2025-12-31 00:00 UTC, not before 2026-01-01)",
        ),
        (make_bench(created=datetime(2023, 7, 1, tzinfo=UTC)), "not before 2023-08-01"),
        (with_machine(device="dgx-sprak"), "no device 'dgx-sprak' in data/devices; did you mean 'dgx-spark'?"),
        (with_machine(device="dgx-spark", configuration="1tb"), "dgx-spark has no configuration '1tb'"),
        (make_record(versions={"python": "3.11"}), "does not say versions.nbutils; measure again"),
        (with_machine(cpu="", system=""), "does not say machine.cpu, machine.system"),
        (make_record(yardsticks=()), "does not say a yardstick of reading"),
        (
            make_bench(settings={"n_batch": 2048, "n_threads": 4}),
            "does not say settings.n_ubatch, settings.n_gpu_layers, settings.type_k, settings.type_v",
        ),
        (make_served(requests=make_served().requests[2:]), "does not say a whole answer"),
        (with_model(name=BACKWARDS), "model.name: holds U+202E, a character that is not shown"),
        (make_sustain(model=with_model(name=HIDDEN).model), "model.name: holds U+200B"),
        (make_served(model=PRIVATE), "model: holds U+E000"),
        (make_bench(model_type=ESCAPE), "model_type: holds U+009B"),
        (make_record(versions={"nbutils": "1", "\u2066x": "1"}), "holds U+2066"),
        (make_record(states=({"a": {"b": ["x", "\u2028"]}},)), "states.a.b: holds U+2028"),
        (make_record(states=({"a": "x" * 4001},)), "states.a: text of 4,001 characters"),
        (with_machine(notes=("log in /home/ada/run.log",)), "machine.notes: names a folder of somebody's disk"),
        (make_bench(settings=make_bench().settings | {"tensor_buft_overrides": r"C:\Users\ada=CPU"}), "names a folder of somebody's disk"),
        (with_machine(notes=("ask ada@example.org first",)), "machine.notes: holds somebody's mail address"),
        (with_bench_test(0, avg_ns=10**9), "tests.0: avg_ns is 1,000,000,000, which is not the mean of samples_ns"),
        (with_bench_test(1, avg_ts=128.0), "tests.1: avg_ts is 128, and avg_ns makes 12.8 tok/s"),
        (with_bench_test(1, avg_ts=12.7), "tests.1: avg_ts is 12.7, and avg_ns makes 12.8 tok/s"),
        (make_record(settings=make_record().settings.model_copy(update={"type_k": "Q3_X"})), "llama.cpp has no cache type 'q3_x'"),
        (with_model(gguf_type=r"$\frac{1}{0}$"), r"'$\\frac{1}{0}$' is no name of a format"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_what_speaks_against_a_record_is_said(record: AnyRecord, words: str, tmp_path: Path) -> None:
    (line,) = problems(record, tmp_path)
    assert words in line
    assert line.isprintable()
    assert len(line) < 300


def test_an_hour_of_a_clock_ahead_is_allowed_whatever_its_zone(tmp_path: Path) -> None:
    ahead = (NOW + timedelta(minutes=59)).astimezone(timezone(timedelta(hours=-7)))
    assert problems(make_record(created=ahead), tmp_path) == []


def test_several_problems_are_all_said(tmp_path: Path) -> None:
    found = problems(with_model(name=BACKWARDS, gguf_type="a b").model_copy(update={"versions": {}, "yardsticks": ()}), tmp_path)
    assert [line.split(" ")[0] for line in found] == ["does", "model.name:", "'a"]


# ── faster than it can be ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "record",
    [
        make_record(points=(make_record().points[0].model_copy(update={"repetitions_s": ((1e-12,), (1e9,))}), make_record().points[1])),
        make_bench(tests=(make_bench().tests[0].model_copy(update={"samples_ns": (1, 1), "avg_ns": 1}),)),
        make_bench(tests=(make_bench().tests[1].model_copy(update={"avg_ts": 1e308, "avg_ns": 1}),)),
        # Within what small models reach, and 500 TB/s at the least share of 50 GB.
        make_bench(model_size=50 * 10**9, tests=(make_bench().tests[1].model_copy(update={"avg_ts": 1e6, "avg_ns": 128_000}),)),
    ],
)
def test_what_nothing_could_reach_is_a_problem_even_without_a_yardstick(record: AnyRecord, tmp_path: Path) -> None:
    *_, line = problems(record, tmp_path)
    assert line.endswith("nothing is as fast")


def test_decode_above_its_own_yardstick_is_a_problem(tmp_path: Path) -> None:
    slow = make_record().yardsticks[0].model_copy(update={"samples_s": (100.0,)})
    (line,) = problems(make_record(yardsticks=(slow,)), tmp_path)
    assert "no yardstick of the same run is above" in line


LARGE = make_record().model.model_copy(
    update={
        "file_bytes": 50 * 10**9,
        "tensors": (make_record().model.tensors[2].model_copy(update={"n_bytes": 50 * 10**9}),),
        "type_bytes_read": {"Q4_K": 50 * 10**9},
    }
)


def on_spark(record: AnyRecord, **changes: Any) -> AnyRecord:
    machine = make_record().machine.model_copy(update={"device": "dgx-spark"} | changes)
    return record.model_copy(update={"machine": machine, "model": LARGE})


def test_minutes_of_decode_above_what_the_maker_says_are_a_problem(tmp_path: Path) -> None:
    """50 GB a token and 273 GB/s by the maker: 5.46 tok/s at best, and a twentieth for the maker's rounding."""
    six, five = (on_spark(make_sustain(block_s=(16 / rate,) * 6)) for rate in (6.0, 5.5))
    (line,) = problems(six, tmp_path)
    assert "sustained decode at 6.0 tok/s goes through 300.0 GB/s, data/devices has 273.0; measure again, or mend the device" in line
    assert problems(five, tmp_path) == []
    assert problems(six.model_copy(update={"machine": make_record().machine}), tmp_path) == [], "of an unlisted machine nobody knows"


def test_a_yardstick_above_what_the_maker_says_vouches_for_nothing(tmp_path: Path) -> None:
    """Both the rate and the yardstick beside it are made up, so they agree; the maker's figure is not theirs to choose."""
    fast = make_record().yardsticks[0].model_copy(update={"n_bytes": 10**12, "samples_s": (1.0,)})
    decode = make_record().points[1].model_copy(update={"repetitions_s": ((0.06,) * 4,) * 2})
    record = on_spark(make_record(yardsticks=(fast,), points=(make_record().points[0], decode)))
    yardstick, rate = problems(record, tmp_path)
    assert "its yardstick of reading goes through 1000.0 GB/s, data/devices has 273.0" in yardstick
    assert "decode at 16.7 tok/s goes through 833" in rate


def test_the_memory_of_a_processor_beside_a_card_is_not_the_cards(tmp_path: Path) -> None:
    record = make_sustain(block_s=(0.1,) * 6).model_copy(update={"model": LARGE})
    card = make_record().machine.model_copy(update={"device": "rtx-4090"})
    assert problems(record.model_copy(update={"machine": card}), tmp_path) == []
    on_card = record.backend.model_copy(update={"device": "CUDA0: NVIDIA GeForce RTX 4090"})
    (line,) = problems(record.model_copy(update={"machine": card, "backend": on_card}), tmp_path)
    assert "data/devices has 1008.0" in line


# ── files ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_that_is_no_record_has_one_line_without_its_name(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("{")
    assert contribute.problems(path) == ["not valid JSON (cut short?); if it is a record, remove it and measure again"]
    path.write_text(json.dumps({"schema_version": 7}))
    assert contribute.problems(path) == ["schema version 7, this nbutils reads 1; use the nbutils that wrote it, or update"]


def test_ten_megabytes_are_refused_by_their_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is parsed, and whether the bytes are one string or a thousand."""
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"schema_version": 1, "notes": "x" * 10_000_000}))
    monkeypatch.setattr(json, "loads", None)
    assert contribute.problems(path) == ["10,000,034 bytes, over the limit of 500,000: not a record"]


def test_what_is_no_plain_file_is_not_read(tmp_path: Path) -> None:
    path = records.write(make_record(), tmp_path)
    link = tmp_path / "link" / path.name
    link.parent.mkdir()
    link.symlink_to(path)
    assert contribute.problems(link) == ["is no plain file; give the record itself"]
    assert contribute.problems(tmp_path) == ["is no plain file; give the record itself"]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.json")
        assert contribute.problems(tmp_path / "pipe.json") == ["is no plain file; give the record itself"]
    with pytest.raises(UsageError, match="no record at"):
        contribute.problems(tmp_path / "absent.json")


def test_a_name_that_says_something_else_is_told_its_own(tmp_path: Path) -> None:
    path = records.write(make_record(), tmp_path)
    other = path.rename(path.with_name(f"20200101T000000Z-a-better-model-q8-0-{path.stem[-8:]}.json"))
    assert contribute.problems(other) == [f"its content makes it {path.name}; give it that name"]


@pytest.mark.parametrize(
    "device", ["../evil", "..", "/etc", "a/b", "a\\b", "dgx-spark\n", "DGX-SPARK", "", "x" * 65, "a\u202eb", None, 1, ["unlisted"]]
)
def test_a_device_that_would_leave_the_folder_is_no_device(device: object, tmp_path: Path, home: Path, data: Path) -> None:
    fields = make_record().model_dump(mode="json")
    fields["machine"]["device"] = device
    path = tmp_path / f"20260105T120000Z-x-{hashlib.sha256(records.canonical(fields)).hexdigest()[:8]}.json"
    path.write_bytes(records.canonical(fields) + b"\n")
    (line,) = contribute.problems(path)
    assert line.startswith("machine.device")
    with pytest.raises(DataError, match=r"machine\.device"):
        contribute.submit(path)
    assert not (data / "records").exists()


def leaves(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else []
    return [leaf for key, part in inner for leaf in leaves(part, (*place, key))] or [place]


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 2**63, 2**64 - 1, 10**30]),
    st.floats(),
    st.text(max_size=30),
    st.sampled_from([1e308, 5e-324, 1e-12, "\u202e", "../x", "=1", "x" * 5000]),
    st.lists(st.integers(0, 3), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(0, 3), max_size=2),
)


@each_record
@given(draw=st.data())
def test_whatever_stands_in_a_record_the_answer_is_lines(
    make: Callable[..., AnyRecord], draw: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """One or two values of a good record replaced by anything, under the name that fits: a refusal in words, or a record that all can show."""
    fields = make().model_dump(mode="json")
    for place in draw.draw(st.lists(st.sampled_from(leaves(fields)), min_size=1, max_size=2, unique=True)):
        part = fields
        for key in place[:-1]:
            part = part[key]
        part[place[-1]] = draw.draw(ANYTHING)
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    path = tmp_path_factory.mktemp("x") / f"20260105T120000Z-x-{hashlib.sha256(text.encode()).hexdigest()[:8]}.json"
    path.write_text(text + "\n", encoding="utf-8")
    lines = contribute.problems(path, now=NOW)
    assert lines, "at least its name is not its own"
    assert all(line.isprintable() for line in lines)
    try:
        record = records.read_any(path)
    except DataError:
        return
    assert frames_records.records_frame([path]).shape[0] == len(frames_records.cells(record))
    frames_records.repetitions_frame([(path, record)])
    frames_compared.compare(frames_compared.Side("a", ((path, record),)), frames_compared.Side("b", ((Path("b.json"), make()),)))


# ── the store ─────────────────────────────────────────────────────────────────────────────────────


def test_what_lies_in_the_store_and_does_not_belong_there_is_named(data: Path) -> None:
    store = data / "records"
    good = records.write(make_record(), store / "unlisted")
    wrong = records.write(make_sustain(), store / "dgx-spark")
    twice = store / "unlisted" / good.name.replace("20260105", "20260106")
    twice.write_bytes(good.read_bytes())
    for name in ("unlisted/notes.txt", "unlisted/.x.json.abc.part", "loose.json", "unlisted/deep/x.json"):
        (store / name).parent.mkdir(exist_ok=True)
        (store / name).write_text("{}")
    assert contribute.store_problems() == [
        f"data/records/dgx-spark/{wrong.name}: was measured on 'unlisted' and lies in 'dgx-spark'; move it to data/records/unlisted",
        "data/records/loose.json: is no record in the folder of a device; remove it",
        "data/records/unlisted/.x.json.abc.part: is no record in the folder of a device; remove it",
        f"data/records/unlisted/{twice.name}: its content makes it {good.name}; give it that name",
        f"data/records/unlisted/{twice.name}: is data/records/unlisted/{good.name} once more; remove one",
        "data/records/unlisted/deep/x.json: is no record in the folder of a device; remove it",
        "data/records/unlisted/notes.txt: is no record in the folder of a device; remove it",
    ]


@each_record
def test_a_submitted_record_lies_under_its_device_unchanged(make: Callable[..., AnyRecord], home: Path, data: Path) -> None:
    path = records.write(make())
    target = contribute.submit(path, now=NOW)
    assert target == data / "records" / records.device_of(make()) / path.name
    assert target.read_bytes() == path.read_bytes()
    assert contribute.store_problems() == []


def test_a_submitted_run_can_be_named_in_a_set(home: Path, data: Path) -> None:
    target = contribute.submit(records.write(with_machine(device="dgx-spark")))
    run = NamedRun(id="a", name="A", description="x", records=(f"dgx-spark/{target.name}",))
    assert records.load_named(run) == [records.read(target)]


def test_a_record_is_submitted_once_under_any_name(home: Path, data: Path) -> None:
    path = records.write(make_record())
    target = contribute.submit(path)
    before = target.stat().st_mtime_ns
    with pytest.raises(UsageError, match=f"is already in data/records/unlisted as {target.name}; records are append-only"):
        contribute.submit(path)
    assert target.stat().st_mtime_ns == before


@pytest.mark.parametrize("record", [make_record(versions={"python": "3"}), with_machine(device="dgx-sprak"), with_model(name=BACKWARDS)])
def test_a_record_with_a_problem_is_not_copied(record: Record, home: Path, data: Path) -> None:
    with pytest.raises(DataError, match=r"^20260105T.*\.json: "):
        contribute.submit(records.write(record), now=NOW)
    assert not (data / "records").exists()


def test_an_edited_record_is_not_copied(home: Path, data: Path) -> None:
    path = records.write(make_record())
    path.write_text(path.read_text(encoding="utf-8").replace('"n_cores":2', '"n_cores":4'), encoding="utf-8")
    with pytest.raises(DataError, match="records are never edited"):
        contribute.submit(path)
    assert not (data / "records").exists()


def test_a_submission_that_fails_halfway_leaves_nothing(home: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = records.write(make_record())

    def full(self: Path, *arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(DataError, match="cannot be copied to data/records/unlisted: No space left on device; nothing was changed there"):
        contribute.submit(path)
    monkeypatch.undo()
    assert everything_in(data / "records") == []


# ── what of it reaches a page ─────────────────────────────────────────────────────────────────────

HOSTILE = {
    "script": "<script>alert(1)</script>",
    "attribute": '"onmouseover="alert(1)" x="',
    "image": "<img src=x onerror=alert(1)>",
    "link": "[x](javascript:alert(1))",
    "entity": "&lt;script&gt;alert(1)&lt;/script&gt;",
    "template": "{{ 7*7 }}{% raw %}${7*7}",
    "formula": '=HYPERLINK("https://evil.example";"look")',
    "plus": "+1+cmd|' /C calc'!A0",
    "minus": "-2+3",
    "at": "@SUM(1+1)",
    "path": "../../../etc/passwd",
    "markup": "[red]x[/red]",
}
hostile = pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)


def hostile_records(text: str) -> list[AnyRecord]:
    """A record of every kind with that text wherever text may stand."""
    machine = make_record().machine.model_copy(update={"cpu": text, "system": text, "notes": (text,), "configuration": text})
    model = make_record().model.model_copy(update={"name": text, "reference": text, "architecture": text, "description": text})
    backend = make_record().backend.model_copy(update={"binding": text, "system_info": text})
    trace = Trace(meter=text, at_s=(0.0, 60.0), values={"temperature_c": (50.0, 60.0), text: (1.0, 2.0)}, refused=(text,))
    versions = {"nbutils": text, text: text}
    of_run = {"machine": machine, "model": model, "backend": backend, "versions": versions, "traces": (trace,)}
    return [
        make_record(**of_run, sample_text=text, states=({text: text},)),
        make_sustain(**of_run),
        make_served(machine=machine, model=text, software=text, versions=versions),
        make_bench(model_filename=f"{text}.gguf", model_type=text, cpu_info=text, gpu_info=text, settings=make_bench().settings | {text: text}),
    ]


class _Inert(HTMLParser):
    """Collects what a browser would act on, and the text that it would show."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.shown = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.shown += data


def parsed(html: str) -> _Inert:
    page = _Inert()
    page.feed(html)
    return page


def tables_of(found: list[AnyRecord]) -> list[tuple[pd.DataFrame, dict[str, str], dict[str, str]]]:
    """Every table that pages make of records, as ``plots.table`` takes it."""
    run, _, served, _ = found
    assert isinstance(run, Record)
    rows = frames_records.repetitions_frame([(Path("x.json"), record) for record in found])
    other = make_record(**{name: getattr(run, name) for name in ("machine", "model", "backend")}, created=NOW)
    pairs = frames_compared.compare(frames_compared.Side("a", ((Path("a.json"), run),)), frames_compared.Side("b", ((Path("b.json"), other),))).pairs
    return [
        frames_run.points_table([run]),
        frames.summary_table(frames.measured_frame([run])),
        (frames.machine_frame(run.machine, None, run.backend), {"property": "property", "value": "value"}, {}),
        frames_served.served_table([served, served.model_copy(update={"model": "another"})]),  # type: ignore[list-item, union-attr]
        (rows, {name: name for name in rows.columns}, {}),
        (pairs, frames_compared.COMPARED_HEADINGS, frames_compared.COMPARED_FORMATS),
        (pd.DataFrame({"heading": [1]}), {"heading": run.model.name}, {}),
    ]


@hostile
def test_text_of_a_record_reaches_a_page_as_text_only(text: str) -> None:
    shown = ""
    for frame, headings, formats in tables_of(hostile_records(text)):
        page = parsed(plots.table(frame, headings, formats).to_html())
        assert page.tags <= {"style", "table", "thead", "tbody", "tr", "th", "td"}
        assert page.attributes <= {"class", "id", "type", "scope", "colspan", "rowspan"}
        shown += page.shown
    assert shown.count(text) > 10, "it is shown, letter by letter"
    for words in (text, f"A sentence with {text}."):
        page = parsed(str(plots.text(words).data))
        assert (page.tags, page.shown) == ({"p"}, words)


@hostile
def test_a_figure_takes_names_of_records_as_they_are(text: str) -> None:
    """Labels of figures are formats, which the check limits to plain names; models stand in tables only."""
    run = hostile_records(text)[0]
    assert isinstance(run, Record)
    frame = frames.measured_frame([run])
    plots.rates_by_wall(frame, ax=plots.new_axes()).get_figure().canvas.draw()  # type: ignore[union-attr]


@hostile
def test_no_spreadsheet_runs_text_of_a_record(text: str) -> None:
    frame = frames_records.repetitions_frame([(Path("x.json"), record) for record in hostile_records(text)])
    plain = frame.map(frames_records.spreadsheet_text)
    cells = [cell for column in plain for cell in plain[column] if isinstance(cell, str)]
    assert any(text in cell for cell in cells)
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    assert plain["tok_per_s"].equals(frame["tok_per_s"])


@hostile
@pytest.mark.parametrize("kind", MAKERS)
def test_hostile_text_that_can_be_seen_is_kept_where_it_belongs(text: str, kind: str, home: Path, data: Path) -> None:
    """It is data: it is refused only where it would be more, and its file lies in the one folder under a plain name."""
    record = hostile_records(text)[list(MAKERS).index(kind)]
    path = records.write(record)
    assert path.parent == home / "records" / "unlisted"
    assert path.name.isascii()
    if lines := contribute.problems(path, now=NOW):
        assert all(line.isprintable() for line in lines)
    else:
        target = contribute.submit(path, now=NOW)
        assert target.parent == data / "records" / "unlisted"
        assert [p for p in paths.data_dir().parent.rglob(path.name) if "home" not in p.parts] == [target]
