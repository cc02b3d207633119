from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import copy_of_data, make_record
from nbutils import records
from nbutils.errors import DataError, UnknownId, UsageError
from nbutils.specs import NamedRun, Record


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NBUTILS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return copy_of_data(tmp_path, monkeypatch)


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
    import hashlib

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
    with pytest.raises(DataError, match=r"not valid JSON \(cut short\?\); remove it and measure again"):
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


# ── submit ────────────────────────────────────────────────────────────────────────────────────────


def test_a_submitted_record_lies_under_its_device_unchanged(home: Path, data: Path) -> None:
    path = records.write(with_machine(device="dgx-spark"))
    target = records.submit(path)
    assert target == data / "records" / "dgx-spark" / path.name
    assert target.read_bytes() == path.read_bytes()
    run = NamedRun(id="a", name="A", description="x", records=(f"dgx-spark/{path.name}",))
    assert records.load_named(run) == [records.read(path)]


def test_a_record_is_submitted_once(home: Path, data: Path) -> None:
    path = records.write(make_record())
    target = records.submit(path)
    before = target.stat().st_mtime_ns
    with pytest.raises(UsageError, match="is already in data/records/unlisted; records are append-only"):
        records.submit(path)
    assert target.stat().st_mtime_ns == before


def test_a_record_from_the_future_is_refused(home: Path, data: Path) -> None:
    path = records.write(make_record())
    created = make_record().created
    with pytest.raises(DataError, match=r"made in the future \(2026-01-05 12:00 UTC\); set the clock and measure again"):
        records.submit(path, now=created - timedelta(hours=1, seconds=1))
    assert not (data / "records").exists()
    assert records.submit(path, now=created - timedelta(minutes=59)).is_file()


def test_the_future_is_told_in_utc(home: Path, data: Path) -> None:
    path = records.write(make_record(created=datetime(2026, 1, 5, 14, tzinfo=timezone(timedelta(hours=2)))))
    with pytest.raises(DataError, match="2026-01-05 12:00 UTC"):
        records.submit(path, now=datetime(2026, 1, 1, tzinfo=UTC))


def test_a_device_that_is_not_in_the_registry_is_refused(home: Path, data: Path) -> None:
    path = records.write(with_machine(device="dgx-sprak"))
    with pytest.raises(UnknownId, match="did you mean 'dgx-spark'"):
        records.submit(path)
    assert not (data / "records").exists()


def test_an_edited_record_is_not_submitted(home: Path, data: Path) -> None:
    path = rewritten(records.write(make_record()), '"n_cores":2', '"n_cores":4')
    with pytest.raises(DataError, match="records are never edited"):
        records.submit(path)
    assert not (data / "records").exists()


def test_a_path_without_a_record_is_a_wrong_call(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'nbutils records list' shows this machine's own"):
        records.submit(tmp_path / "none.json")


def test_a_submission_that_fails_halfway_leaves_nothing(home: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = records.write(make_record())

    def full(self: Path, *arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises((OSError, DataError)):
        records.submit(path)
    monkeypatch.undo()
    assert everything_in(data / "records") == []


def test_a_record_readable_by_all_is_what_a_write_leaves(tmp_path: Path) -> None:
    if os.name == "posix":
        assert records.write(make_record(), tmp_path).stat().st_mode & 0o777 == 0o644


def test_make_record_refuses_a_field_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="summary"):
        make_record(summary="fast")


def test_a_folder_that_takes_no_record_is_named_before_anything_is_measured(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(DataError, match="records cannot be written to"):
        records.require_writable(blocked / "records")
