from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import each_record, make_bench, make_record, make_served, make_sustain
from nbutils import records
from nbutils.errors import DataError, UsageError
from nbutils.specs import AnyRecord, Gpu, NamedRun, Record


def with_machine(**changes: Any) -> Record:
    return make_record(machine=make_record().machine.model_copy(update=changes))


def everything_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


# ── round trip and name ───────────────────────────────────────────────────────────────────────────


def test_a_record_comes_back_as_it_was(home: Path) -> None:
    record = make_record()
    path = records.write(record)
    assert path.parent == home / "records" / "unlisted"
    assert records.read(path) == record
    assert records.list_records() == [path]


@given(seconds=st.lists(st.floats(1e-9, 1e4), min_size=4, max_size=4))
def test_samples_come_back_to_the_last_bit(seconds: list[float], tmp_path_factory: pytest.TempPathFactory) -> None:
    prefill, decode = make_record().points
    points = (prefill, decode.model_copy(update={"repetitions_s": (tuple(seconds),) * 2}))
    path = records.write(make_record(points=points), tmp_path_factory.mktemp("records"))
    assert records.read(path).points == points


def test_the_name_is_time_subject_and_the_digest_of_the_content(tmp_path: Path) -> None:
    path = records.write(make_record(), tmp_path)
    canonical = json.dumps(json.loads(path.read_text()), sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode()).hexdigest()[:8]
    assert path.name == f"20260105T120000Z-stand-in-dense-small-q4-k-m-{digest}.json"


def test_the_time_in_the_name_is_utc(tmp_path: Path) -> None:
    created = datetime(2026, 1, 5, 14, tzinfo=timezone(timedelta(hours=2)))
    assert records.write(make_record(created=created), tmp_path).name.startswith("20260105T120000Z-")


def test_a_different_sample_is_a_different_name() -> None:
    point = make_record().points[0].model_copy(update={"warmup_s": 0.020000000000000004})
    assert records.file_name(make_record(points=(point, make_record().points[1]))) != records.file_name(make_record())


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b\\c", "..", "  ", "Ünïcödé 70B", "x" * 300])
def test_no_model_name_leaves_the_folder(name: str, tmp_path: Path) -> None:
    record = make_record(model=make_record().model.model_copy(update={"name": name}))
    path = records.write(record, tmp_path)
    assert path.parent == tmp_path
    assert re.fullmatch(r"[0-9TZ]{16}-[a-z0-9-]*-[0-9a-f]{8}\.json", path.name)
    assert len(path.name) < 100
    assert records.read(path) == record


def test_records_are_listed_oldest_first(home: Path) -> None:
    days = [3, 1, 2]
    written = [records.write(make_record(created=datetime(2026, 1, day, tzinfo=UTC))) for day in days]
    assert records.list_records() == [path for _, path in sorted(zip(days, written, strict=True))]


# ── what is refused ───────────────────────────────────────────────────────────────────────────────


def rewritten(path: Path, old: str, new: str) -> Path:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"n_cores":2', '"n_cores":3', "records are never edited, measure again"),
        ("0.0011", "0.0001", "records are never edited, measure again"),
        ('"schema_version":1', '"schema_version":2', "schema version 2, this nbutils reads 1"),
        ('"schema_version":1', '"schema_version":"new"', "schema version 'new', this nbutils reads 1"),
        ('"n_cores":2', '"n_cores":2,"host":"x"', "machine.host: no such field"),
        ('"n_cores":2', '"n_cores":0', "machine.n_cores: Input should be greater than 0"),
        ('"device":"unlisted"', '"device":"../evil"', "machine.device"),
        ('"n_cores":2', '"n_cores":', "not valid JSON (cut short?)"),
        ('"states":[]', '"states":[{"watt":NaN}]', "not valid JSON"),
    ],
)
def test_a_record_that_was_touched_is_refused(old: str, new: str, words: str, tmp_path: Path) -> None:
    path = rewritten(records.write(make_record(), tmp_path), old, new)
    with pytest.raises(DataError, match=rf"^{re.escape(path.name)}: .*{re.escape(words)}"):
        records.read(path)


@given(share=st.floats(0, 0.99))
def test_a_record_cut_short_is_refused(share: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = records.write(make_record(), tmp_path_factory.mktemp("records"))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(DataError, match=r"not valid JSON \(cut short\?\); if it is a record, remove it and measure again"):
        records.read(path)


@pytest.mark.parametrize("text", ["[]", "1", "null", '"x"', "{}"])
def test_json_that_is_no_record_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"^x\.json: schema version None"):
        records.read(path)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[" * 90_000])
def test_bytes_that_are_no_json_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"^x\.json: not valid JSON"):
        records.read(path)


def test_a_record_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^no record at '.*x\.json'"):
        records.read(tmp_path / "x.json")


def test_a_file_that_is_too_large_is_not_even_parsed(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(" " * (records.MAX_BYTES + 1))
    with pytest.raises(DataError, match="500,001 bytes, over the limit of 500,000: not a record"):
        records.read(path)


def test_a_record_that_would_be_too_large_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="over the limit of 500,000; use fewer tokens, repetitions or minutes"):
        records.write(with_machine(notes=("x" * 400,) * 1300), tmp_path)
    assert everything_in(tmp_path) == []


def test_whatever_can_be_written_can_be_read(tmp_path: Path) -> None:
    """The limit is in bytes both ways: these notes are under it in characters and over it in bytes."""
    try:
        path = records.write(with_machine(notes=("é" * 400,) * 650), tmp_path)
    except DataError:
        assert everything_in(tmp_path) == []
    else:
        assert records.read(path).machine.notes[0] == "é" * 400


# ── a write that fails ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("what", ["replace", "write_text"])
def test_a_write_that_fails_halfway_leaves_nothing(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, *arguments: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, what, full)
    with pytest.raises(DataError, match=r"cannot be written to .*: No space left on device; nothing was kept"):
        records.write(make_record(), tmp_path)
    monkeypatch.undo()
    assert everything_in(tmp_path) == []


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: Path, *arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        records.write(make_record(), tmp_path)
    monkeypatch.undo()
    assert everything_in(tmp_path) == []


# ── writing, whatever happens ─────────────────────────────────────────────────────────────────────


def test_a_record_readable_by_all_is_what_a_write_leaves(tmp_path: Path) -> None:
    if os.name == "posix":
        assert records.write(make_record(), tmp_path).stat().st_mode & 0o777 == 0o644


def test_what_no_folder_takes_is_kept_among_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk of the records is full, the one of temporary files is not: minutes of measuring are not lost."""
    replace = Path.replace

    def full(self: Path, target: Path) -> Path:
        if target.is_relative_to(tmp_path / "store"):
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(DataError, match=r"No space left on device; it is kept as .*\.json: make room, then move it there") as caught:
        records.write(make_record(), tmp_path / "store")
    assert everything_in(tmp_path / "store") == []
    (kept,) = tmp_path.glob("nbutils-*/*.json")
    assert str(kept) in str(caught.value)
    assert records.read(kept) == make_record()


CHILD = """
import json, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from helpers import make_record
from nbutils import records
"""


def child(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD + code, str(Path(__file__).parent), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_file_system_that_ends_in_the_middle_of_a_record_leaves_none(tmp_path: Path) -> None:
    """The kernel itself refuses to write on: a limit on the size of files stands in for a full disk, for which one would have to be root."""
    pytest.importorskip("resource")
    code = """
import resource, tempfile
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
tempfile.tempdir = sys.argv[2]
from nbutils.errors import DataError
try:
    records.write(make_record(), Path(sys.argv[2]) / "store")
except DataError as error:
    print(error)
"""
    said, err = child(code, tmp_path).communicate(timeout=60)
    assert said.endswith(": File too large; nothing was kept\n"), err
    assert everything_in(tmp_path) == []


def test_two_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    """Both write thirty records of their own into one folder and, over each other, the same thirty."""
    code = """
print("ready", flush=True)
input()
for i in range(30):
    records.write(make_record(sample_text=f"both {i}"), Path(sys.argv[2]))
    records.write(make_record(sample_text=f"{sys.argv[3]} {i}"), Path(sys.argv[2]))
"""
    both = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD + code, str(Path(__file__).parent), str(tmp_path), name],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for name in ("first", "second")
    ]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    for process in both:
        process.communicate()
    said = sorted(records.read(path).sample_text for path in tmp_path.iterdir())
    assert said == sorted(f"{who} {i}" for who in ("both", "first", "second") for i in range(30))


def test_make_record_refuses_a_field_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="summary"):
        make_record(summary="fast")


def test_a_folder_that_takes_no_record_is_named_before_anything_is_measured(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(DataError, match="records cannot be written to"):
        records.require_writable(blocked / "records")


# ── kinds, and fields that came later ─────────────────────────────────────────────────────────────


@each_record
def test_a_record_of_every_kind_comes_back_as_it_was(make: Callable[..., AnyRecord], home: Path) -> None:
    record = make()
    path = records.write(record)
    assert records.read_any(path) == record
    assert path.parent == home / "records" / "unlisted"
    assert records.list_records() == [path]
    kind = "" if record.kind == "run" else f"{record.kind}-"
    assert path.name.startswith(f"20260105T120000Z-{kind}{records.subject_of(record)[0].lower().replace('_', '-')}")


@pytest.mark.parametrize("make", [make_sustain, make_served, make_bench])
def test_where_a_run_is_needed_another_kind_is_refused_by_its_name(make: Callable[..., AnyRecord], tmp_path: Path) -> None:
    path = records.write(make(), tmp_path)
    with pytest.raises(DataError, match=rf"is a record of the kind '{make().kind}', not of a run; 'nbutils records show' reads every kind"):
        records.read(path)


@pytest.mark.parametrize("kind", ["video", "", None, 1, ["run"], {"kind": "run"}, "x" * 10_000])
def test_a_kind_that_nobody_knows_says_which_there_are(kind: object, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"schema_version": 1, "kind": kind}))
    with pytest.raises(DataError, match="this nbutils reads run, sustain, endpoint, llama-bench; use the nbutils that wrote it, or update") as caught:
        records.read_any(path)
    assert len(str(caught.value)) < 250


def by_hand(fields: dict[str, Any], folder: Path) -> Path:
    """A record file as another nbutils would have written it, its name ending in the digest of its content."""
    path = folder / f"20250101T000000Z-by-hand-{hashlib.sha256(records.canonical(fields)).hexdigest()[:8]}.json"
    path.write_bytes(records.canonical(fields) + b"\n")
    return path


#: Fields of a run that records written before them do not have, by the place they stand in.
LATER: dict[str, tuple[str, ...]] = {
    "": ("kind", "kernels", "sample_text", "states", "traces", "memory", "neighbours", "tuned"),
    "model": ("description",),
    "settings": ("flash_attn_used",),
    "points": ("n_seq", "at_s", "distinct_experts"),
}


def test_a_record_without_the_fields_that_came_later_is_whole(tmp_path: Path) -> None:
    """Its digest is of what was written, so defaults that a newer nbutils adds in reading change nothing."""
    fields = make_record().model_dump(mode="json")
    for place, names in LATER.items():
        inner = fields[place] if place else fields
        for part in inner if isinstance(inner, list) else [inner]:
            for name in names:
                del part[name]
    for point in fields["suite"]["points"]:
        del point["n_seq"]
    record = records.read(by_hand(fields, tmp_path))
    assert record == make_record()
    assert (record.kind, record.points[1].n_seq, record.points[1].at_s, record.memory) == ("run", 1, (), None)


def test_a_record_with_a_field_of_the_future_says_so(tmp_path: Path) -> None:
    fields = make_record().model_dump(mode="json") | {"mood": "good"}
    with pytest.raises(DataError, match="mood: no such field"):
        records.read(by_hand(fields, tmp_path))


@pytest.mark.parametrize("value", ["1e999", "-1e999", "Infinity", r'"\ud800"'], ids=["too large", "too small", "no number", "half a character"])
def test_values_that_json_cannot_hold_are_refused_though_they_can_be_read(value: str, tmp_path: Path) -> None:
    path = rewritten(records.write(make_record(), tmp_path), '"states":[]', f'"states":[{{"watt":{value}}}]')
    with pytest.raises(DataError, match="not valid JSON"):
        records.read(path)


def test_a_named_run_holds_runs_only(home: Path, data: Path) -> None:
    target = records.write(make_sustain(), data / "records" / "unlisted")
    with pytest.raises(DataError, match="of the kind 'sustain', not of a run"):
        records.load_named(NamedRun(id="a", name="A", description="x", records=(f"unlisted/{target.name}",)))


# ── the quick way to read, and the thorough one ───────────────────────────────────────────────────


@each_record
def test_a_record_reads_the_same_whether_its_bytes_are_ours_or_not(make: Callable[..., AnyRecord], tmp_path: Path) -> None:
    path = records.write(make(), tmp_path)
    assert records._as_written(path.name, path.read_bytes()) == make(), "the quick way takes it"
    path.write_text(json.dumps(json.loads(path.read_bytes()), indent=2), encoding="utf-8")
    assert records._as_written(path.name, path.read_bytes()) is None, "the quick way leaves it to the other"
    assert records.read_any(path) == make()


@pytest.mark.parametrize("value", ["1e999", "NaN", "-Infinity", r'"\ud800"', "[" * 5000 + "]" * 5000])
def test_a_name_that_fits_bytes_which_are_no_record_opens_no_way_around_the_check(value: str, tmp_path: Path) -> None:
    """The digest is one of the bytes as they are, so the quick way looks at them; it must not take what the other refuses."""
    text = records.write(make_record(), tmp_path).read_text().rstrip("\n").replace('"states":[]', f'"states":[{{"watt":{value}}}]')
    path = tmp_path / f"20260105T120000Z-x-{hashlib.sha256(text.encode()).hexdigest()[:8]}.json"
    path.write_text(text + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"not valid JSON|digest"):
        records.read_any(path)


@pytest.mark.parametrize("digits", ["9" * 21, "9" * 400, "-" + "9" * 21, str(2**64)])
def test_a_number_that_no_float_holds_is_refused_where_it_is_read(digits: str, tmp_path: Path) -> None:
    text = records.write(make_record(), tmp_path).read_text().rstrip("\n").replace('"file_bytes":5512992', f'"file_bytes":{digits}')
    path = tmp_path / f"20260105T120000Z-x-{hashlib.sha256(text.encode()).hexdigest()[:8]}.json"
    path.write_text(text + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"has more than 64 bits; nothing was ever counted that far"):
        records.read_any(path)


def test_long_digits_in_a_name_are_text(tmp_path: Path) -> None:
    record = make_record(model=make_record().model.model_copy(update={"name": f"a,{'9' * 30}"}))
    assert records.read_any(records.write(record, tmp_path)) == record


def test_a_kind_in_the_name_of_a_model_is_no_kind_of_record(tmp_path: Path) -> None:
    record = make_record(model=make_record().model.model_copy(update={"name": "sustain-of-something"}))
    assert records.read_any(records.write(record, tmp_path)) == record


# ── finding ───────────────────────────────────────────────────────────────────────────────────────


def test_a_record_is_found_by_its_path_its_name_and_the_end_of_it(home: Path, data: Path) -> None:
    mine = records.write(make_record())
    theirs = records.write(make_sustain(), data / "records" / "unlisted")
    for path in (mine, theirs):
        for name in (path, f"unlisted/{path.name}", path.name, path.stem, path.stem[-8:], path.stem[-15:]):
            assert records.resolve(str(name)) == path
    assert records.list_all() == sorted([mine, theirs], key=lambda path: path.name)


@pytest.mark.parametrize("name", ["", ".json", "absent.json", "deadbeef", "../../etc/absent", "a" * 5000, "x\0y"])
def test_a_name_that_nothing_has_is_a_wrong_call(name: str, home: Path, data: Path) -> None:
    records.write(make_record())
    with pytest.raises(UsageError, match="'nbutils records list' shows this machine's own"):
        records.resolve(name)


def test_an_end_that_several_records_have_names_them(home: Path, data: Path) -> None:
    (home / "records" / "unlisted").mkdir(parents=True)
    for day in (1, 2):
        (home / "records" / "unlisted" / f"2026010{day}T000000Z-x-0a1b2c3d.json").write_text("{}")
    with pytest.raises(UsageError, match=r"names 2 records: 20260101T000000Z-x-0a1b2c3d\.json, .*; give a longer name"):
        records.resolve("0a1b2c3d")


def test_a_record_in_both_stores_is_listed_where_it_is_published(home: Path, data: Path) -> None:
    records.write(make_record())
    published = records.write(make_record(), data / "records" / "unlisted")
    assert records.list_all() == [published]


@pytest.mark.parametrize(
    ("record", "name"),
    [
        (make_record(), "Example CPU"),
        (with_machine(device="dgx-spark"), "dgx-spark"),
        (with_machine(gpus=(Gpu(name="A card"),)), "Example CPU"),
        (
            with_machine(gpus=(Gpu(name="A card"),)).model_copy(
                update={"backend": make_record().backend.model_copy(update={"device": "CUDA0: A card"})}
            ),
            "A card",
        ),
        (make_served(machine=make_record().machine.model_copy(update={"gpus": (Gpu(name="A card"),)})), "A card"),
        (make_bench(), "Example CPU"),
        (make_bench(gpu_info="A card", backends="CUDA"), "A card"),
    ],
)
def test_a_machine_is_called_by_what_computed(record: AnyRecord, name: str) -> None:
    assert records.machine_of(record) == name


# ── a run that was cut off ────────────────────────────────────────────────────────────────────────


def notes(home: Path) -> list[Path]:
    return sorted((home / "underway").iterdir()) if (home / "underway").is_dir() else []


def a_dead_process() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def leave_note(home: Path, **fields: Any) -> Path:
    (home / "underway").mkdir(parents=True, exist_ok=True)
    path = home / "underway" / f"{fields.get('pid', 'x')}.json"
    path.write_text(json.dumps(fields), encoding="utf-8")
    return path


def test_a_run_leaves_a_note_while_it_lasts(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["nbutils", "measure", "-m", "my model.gguf"])
    with records.underway():
        (note,) = notes(home)
        assert json.loads(note.read_text()) == {
            "pid": os.getpid(),
            "started": psutil.Process().create_time(),
            "command": "nbutils measure -m 'my model.gguf'",
        }
    assert notes(home) == []
    assert capsys.readouterr().err == ""


def test_a_note_is_removed_however_a_run_ends(home: Path) -> None:
    with pytest.raises(KeyboardInterrupt), records.underway():
        raise KeyboardInterrupt
    assert notes(home) == []


def test_a_run_that_was_killed_is_told_once_with_the_command_that_goes_on(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave_note(home, pid=a_dead_process(), started=1.0, command="nbutils measure -m a.gguf -r 20")
    with records.underway():
        pass
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("nbutils: an earlier run was cut off")
    assert line.endswith("; every record before it is whole; to go on, run it again: nbutils measure -m a.gguf -r 20")
    with records.underway():
        pass
    assert capsys.readouterr().err == ""
    assert notes(home) == []


def test_a_run_that_still_goes_on_is_left_alone(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        note = leave_note(home, pid=other.pid, started=psutil.Process(other.pid).create_time(), command="nbutils measure")
        with records.underway():
            assert len(notes(home)) == 2
        assert notes(home) == [note]
        assert capsys.readouterr().err == ""
    finally:
        other.communicate(b"\n")


def test_another_process_with_the_number_of_a_dead_one_does_not_speak_for_it(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave_note(home, pid=os.getppid(), started=psutil.Process(os.getppid()).create_time() - 3600, command="nbutils book")
    with records.underway():
        pass
    assert "run it again: nbutils book" in capsys.readouterr().err


HOSTILE_NOTES: dict[str, bytes] = {
    "control characters": json.dumps({"pid": 2**22 + 1, "started": 0, "command": "ls\x1b[2J\nrm -rf /"}).encode(),
    "half a character": b'{"pid": 4194305, "started": 0, "command": "\\ud800"}',
    "no number": b'{"pid": "x", "started": 0, "command": "x"}',
    "a number beyond all": b'{"pid": 1e999, "started": 0, "command": "x"}',
    "a process beyond all": b'{"pid": %d, "started": 0, "command": "x"}' % 10**30,
    "a process below all": b'{"pid": -1, "started": NaN, "command": "x"}',
    "a list": b"[]",
    "deep": b"[" * 20_000,
    "no text": b"\xff\xfe",
    "empty": b"",
    "huge": b'{"pid": 4194305, "started": 0, "command": "' + b"x" * 1_000_000 + b'"}',
    "long": b'{"pid": 4194305, "started": 0, "command": "' + b"x" * 25_000 + b'"}',
}


@pytest.mark.parametrize("content", HOSTILE_NOTES.values(), ids=HOSTILE_NOTES)
def test_a_note_that_is_not_ours_does_no_harm(content: bytes, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "underway").mkdir(parents=True)
    (home / "underway" / "1.json").write_bytes(content)
    with records.underway():
        pass
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isprintable()
    assert len(line) < 2200
    assert "rm -rf" not in line
    assert notes(home) == []


def test_what_a_killed_run_had_half_written_is_cleared_away_and_what_is_being_written_is_not(home: Path) -> None:
    """A part is a file that a rename never finished: nobody reads it, but it takes room."""
    whole = records.write(make_record())
    content = whole.read_bytes()
    old, fresh = (whole.with_name(f".{name}.json.abc.part") for name in ("old", "fresh"))
    for part in (old, fresh):
        part.write_text("{")
    os.utime(old, (time.time() - 3600,) * 2)
    with records.underway():
        pass
    assert everything_in(whole.parent) == sorted([fresh.name, whole.name])
    assert whole.read_bytes() == content


@pytest.mark.parametrize("blocked", ["underway", "underway/1.json"])
def test_a_note_that_cannot_be_left_or_removed_stops_no_run(blocked: str, home: Path) -> None:
    """A file stands where the folder should be, or a folder where a note should be."""
    (home / blocked).parent.mkdir(parents=True, exist_ok=True)
    (home / blocked).write_text("") if blocked == "underway" else (home / blocked).mkdir()
    ran = False
    with records.underway():
        ran = True
    assert ran


def test_who_is_asked_to_end_says_how_to_go_on_and_keeps_no_secret(
    own_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["nbutils", "measure", "--endpoint", "http://me:secret@127.0.0.1:1/v1"])
    kept = []
    with pytest.raises(SystemExit), records.underway():
        sys.exit([kept.append(p.read_text()) for p in notes(own_home)] and 143)
    assert kept
    assert "secret" not in kept[0]
    said = capsys.readouterr().err
    assert "to go on, run it again: nbutils measure --endpoint" in said
    assert "secret" not in said
    assert notes(own_home) == []
