"""``nbutils records`` from a terminal: list, compare, export, check and submit."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from helpers import MAKERS, make_bench, make_record, make_served, make_sustain
from nbutils import contribute, frames_records, llama_bench, records
from nbutils.specs import AnyRecord

Run = Callable[..., tuple[int, str, str]]


def model(name: str) -> AnyRecord:
    return make_record(model=make_record().model.model_copy(update={"name": name}))


# ── list ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_list_has_a_line_per_record_with_its_rates_and_its_path(run: Run, own_home: Path) -> None:
    path = records.write(make_record())
    code, out, err = run("records", "list")
    heading, line = out.splitlines()
    assert (code, err) == (0, "")
    assert heading.split() == ["UTC", "machine", "what", "model", "format", "prefill", "tok/s", "decode", "tok/s", "record"]
    prefill, decode = (32 / 0.011 + 32 / 0.012) / 2, (4 / 0.0043 + 1000) / 2
    rates = [f"{prefill:,.1f}", f"{decode:,.1f}"]
    assert line.split() == ["2026-01-05", "12:00", "Example", "CPU", "tiny", "stand-in-dense-small", "Q4_K_M", *rates, str(path)]


def test_a_list_of_every_kind_as_json(run: Run, own_home: Path) -> None:
    for make in MAKERS.values():
        records.write(make())
    rows = {row["kind"]: row for row in json.loads(run("records", "list", "--json")[1])}
    assert list(rows) == sorted(MAKERS, key=lambda kind: records.file_name(MAKERS[kind]()))
    assert [row["store"] for row in rows.values()] == ["private"] * 4
    decode = {kind: row["decode_tok_per_s"] for kind, row in rows.items()}
    assert decode == pytest.approx({"run": (4 / 0.0043 + 1000) / 2, "sustain": 16 / 10.05, "endpoint": 20.0, "llama-bench": 12.8}, rel=1e-3)
    assert rows["sustain"]["prefill_tok_per_s"] is None


def test_a_server_that_answered_nothing_is_listed_without_rates(run: Run, own_home: Path) -> None:
    path = records.write(make_served(requests=make_served().requests[2:]))
    records.write(make_bench())
    (row,) = [r for r in json.loads(run("records", "list", "--json")[1]) if r["file"] == str(path)]
    assert (row["file"], row["kind"], row["model"]) == (str(path), "endpoint", "some-model")
    assert row["prefill_tok_per_s"] is row["decode_tok_per_s"] is None
    assert run("records", "list", "--kind", "endpoint")[1].splitlines()[1].split()[-3:] == ["–", "–", str(path)]
    assert frames_records.records_frame([path]).empty


def test_a_list_can_be_of_what_is_published_of_both_and_narrowed(run: Run, own_home: Path, data: Path) -> None:
    records.write(model("Qwen-a"))
    records.write(make_bench())
    contribute.submit(records.write(model("qwen-b")))

    def listed(*options: str) -> list[tuple[str, str]]:
        return sorted((row["model"], row["store"]) for row in json.loads(run("records", "list", "--json", *options)[1]))

    bench = ("some-model-Q4_K_M", "private")
    assert listed() == [("Qwen-a", "private"), ("qwen-b", "private"), bench]
    assert listed("--published") == [("qwen-b", "published")]
    assert listed("--all") == [("Qwen-a", "private"), ("qwen-b", "published"), bench]
    assert listed("--all", "-m", "QWEN") == [("Qwen-a", "private"), ("qwen-b", "published")]
    assert listed("--kind", "llama-bench") == [bench]
    assert listed("--device", "dgx-spark") == []
    assert listed("--device", "unlisted", "-m", "-b") == [("qwen-b", "private")]
    code, _, err = run("records", "list", "--all", "--published")
    assert (code, "both --published and --all" in err) == (2, True)
    code, _, err = run("records", "list", "--kind", "sustian")
    assert (code, "did you mean 'sustain'?" in err) == (2, True)


def test_a_long_list_shows_the_newest(run: Run, own_home: Path) -> None:
    for i in range(3):
        records.write(model(f"model-{i}"))
    shown = run("records", "list", "--limit", "2")[1].splitlines()
    assert len(shown) == 4
    assert shown[-1] == "1 older not shown; --limit 0 shows all 3"
    assert len(run("records", "list", "--limit", "0")[1].splitlines()) == 4


def test_a_list_steers_no_terminal(run: Run, own_home: Path) -> None:
    records.write(model("a\x9b2Jb\u202ec[red]d"))
    code, out, _ = run("records", "list")
    assert code == 0
    assert "a\N{REPLACEMENT CHARACTER}2Jb\N{REPLACEMENT CHARACTER}c[red]d" in out


# ── compare ───────────────────────────────────────────────────────────────────────────────────────


def slower(record: AnyRecord) -> AnyRecord:
    points = tuple(p.model_copy(update={"repetitions_s": tuple(tuple(2 * s for s in r) for r in p.repetitions_s)}) for p in make_record().points)
    return record.model_copy(update={"points": points})


def test_a_comparison_says_the_ratio_the_verdict_and_what_differs(run: Run, own_home: Path) -> None:
    settings = make_record().settings.model_copy(update={"n_threads": 1})
    a, b = records.write(make_record()), records.write(slower(make_record(settings=settings)))
    code, out, err = run("records", "compare", a.stem[-8:], b)
    assert (code, err) == (0, "")
    plain = " ".join(out.split())
    assert "0.500" in plain
    assert "differs, A | B: threads: 2 | 1" in plain
    assert "95 times in 100" in plain
    found = json.loads(run("records", "compare", a, b, "--json")[1])
    assert [pair["ratio"] for pair in found["pairs"]] == pytest.approx([0.5, 0.5])
    assert found["pairs"][0]["notes"] == ["threads: 2 | 1"]
    assert {"ratio_low", "ratio_high", "verdict", "basis", "a_runs"} <= set(found["pairs"][0])
    assert (found["level"], found["left_out"]) == (0.95, [])


def test_a_comparison_without_a_pair_says_why(run: Run, own_home: Path) -> None:
    a, b = records.write(make_record()), records.write(make_served())
    code, out, _ = run("records", "compare", a, b)
    assert code == 0
    assert out.splitlines()[0] == "no test is on both sides"
    assert "left out of A: stand-in-dense-small Q4_K_M prefill 32: B has no model stand-in-dense-small; it has model some-model" in out


@pytest.mark.parametrize(
    ("names", "words"), [(("nowhere", "nothing"), "no record, folder, run, device or machine 'nowhere'"), ((), "Missing argument")]
)
def test_a_comparison_of_nothing_is_a_wrong_call(names: tuple[str, ...], words: str, run: Run, own_home: Path) -> None:
    code, _, err = run("records", "compare", *names)
    assert (code, words in err) == (2, True)


# ── export ────────────────────────────────────────────────────────────────────────────────────────


def test_csv_has_a_row_per_repetition_and_comes_back_as_it_was(run: Run, own_home: Path, tmp_path: Path) -> None:
    for record in (model('=HYPERLINK("x"), "quoted"'), make_sustain(), make_served(), make_bench()):
        records.write(record)
    file = tmp_path / "all.csv"
    code, out, err = run("records", "export", file)
    assert (code, out.splitlines(), err) == (0, [f"17 rows of 4 records: {file}"], "")
    with file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert {row["model"] for row in rows} == {'\'=HYPERLINK("x"), "quoted"', "stand-in-dense-small", "some-model", "some-model-Q4_K_M"}
    first = [row for row in rows if row["kind"] == "run"]
    assert [float(row["tok_per_s"]) for row in first] == [32 / 0.011, 32 / 0.012, 4 / (0.001 + 0.0011 + 0.001 + 0.0012), 4 / 0.004]
    assert list(pd.read_csv(file)["tok_per_s"]) == [float(row["tok_per_s"]) for row in rows]


def test_chosen_records_are_exported_and_a_damaged_one_of_the_store_is_told(run: Run, own_home: Path, tmp_path: Path) -> None:
    path = records.write(make_record())
    records.write(make_bench())
    cut = path.parent / "00000000T000000Z-cut-00000000.json"
    cut.write_text("{")
    code, out, _ = run("records", "export", tmp_path / "a.csv", path.stem[-8:], "--json")
    assert (code, json.loads(out)) == (0, {"file": str(tmp_path / "a.csv"), "format": "csv", "records": 1, "rows": 4, "left_out": []})
    code, _, err = run("records", "export", tmp_path / "b.csv")
    assert (code, "cut short" in err) == (0, True)
    assert len(pd.read_csv(tmp_path / "b.csv")) == 7
    code, _, err = run("records", "export", tmp_path / "c.csv", cut)
    assert (code, "cut short" in err, (tmp_path / "c.csv").exists()) == (1, True, False)


def test_llama_benchs_json_is_read_by_our_own_import(run: Run, own_home: Path, tmp_path: Path) -> None:
    """Out, in and out again: the same rows."""
    sampled = make_bench(tests=make_bench().tests[:1])
    paths = [records.write(record) for record in (make_record(), sampled, make_sustain())]
    file = tmp_path / "bench.json"
    code, out, err = run("records", "export", file, *paths)
    assert (code, out.splitlines()) == (0, [f"3 rows of 3 records: {file}"])
    assert "llama-bench has no rows for a record of the kind 'sustain'; csv and parquet have" in err
    rows = json.loads(file.read_text(encoding="utf-8"))
    assert rows == [*llama_bench.rows(make_record()), *llama_bench.rows(sampled)]
    for path in paths:
        path.unlink()
    assert run("import", "llama-bench", file)[0] == 0
    imported = [row for path in records.list_records() for row in llama_bench.rows(records.read_any(path))]  # type: ignore[arg-type]
    key = lambda row: (row["model_filename"], row["n_prompt"])  # noqa: E731
    assert sorted(imported, key=key) == sorted(rows, key=key)


def test_parquet_keeps_types(run: Run, own_home: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    for make in MAKERS.values():
        records.write(make())
    assert run("records", "export", tmp_path / "all.parquet")[0] == 0
    frame = pd.read_parquet(tmp_path / "all.parquet")
    assert len(frame) == 17
    assert frame["tok_per_s"].dtype == float


def test_without_pyarrow_parquet_says_what_to_install(run: Run, own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    records.write(make_record())
    code, _, err = run("records", "export", tmp_path / "all.parquet")
    assert (code, err.strip()) == (2, "nbutils: Parquet needs pyarrow: pip install pyarrow; --to csv needs nothing")
    assert not (tmp_path / "all.parquet").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("all.xlsx",), "'all.xlsx' says no format; give --to csv, parquet or llama-bench"),
        (("x", "--to", "cvs"), "--to is 'cvs'; did you mean 'csv'?"),
        (("x.csv", "absent.json"), "no record at 'absent.json'"),
        (("x.csv", "absent.json", "--all"), "leave one of the two out"),
        (("x.json",), "none of these records has a row in llama-bench's terms"),
    ],
)
def test_an_export_of_nothing_or_to_nowhere_is_a_wrong_call(arguments: tuple[str, ...], words: str, run: Run, own_home: Path, tmp_path: Path) -> None:
    code, _, err = run("records", "export", tmp_path / arguments[0], *arguments[1:])
    assert (code, words in err) == (2, True), err
    assert not (tmp_path / arguments[0]).exists()


def test_an_export_replaces_no_record(run: Run, own_home: Path, tmp_path: Path) -> None:
    path, other = records.write(make_record()), records.write(make_bench())
    before = path.read_bytes()
    for named in (path, path.parent / "new.csv", tmp_path / path.name):
        code, _, err = run("records", "export", named, other, "--to", "csv")
        assert (code, "the file to write comes first" in err, named.exists()) == (2, True, named == path)
    assert path.read_bytes() == before


def test_of_two_records_that_cannot_both_be_submitted_none_is_copied(run: Run, own_home: Path, data: Path) -> None:
    path = records.write(make_record())
    before = sorted(records.committed_dir().rglob("*.json"))
    code, _, err = run("records", "submit", path, path)
    assert (code, "is named twice" in err, sorted(records.committed_dir().rglob("*.json"))) == (2, True, before)


def test_a_folder_that_takes_no_export_is_named(run: Run, own_home: Path, tmp_path: Path) -> None:
    records.write(make_record())
    (tmp_path / "file").write_text("")
    for name in ("a.csv", "a.json"):
        code, _, err = run("records", "export", tmp_path / "file" / name)
        assert (code, "cannot be written" in err) == (1, True)


# ── check and submit ──────────────────────────────────────────────────────────────────────────────


def test_every_problem_of_every_record_is_a_line(run: Run, own_home: Path, data: Path) -> None:
    good = records.write(make_record())
    bad = records.write(make_record(versions={}, yardsticks=()))
    worse = records.write(make_bench(settings={}))
    code, out, err = run("records", "check", good, bad.stem[-8:], worse)
    assert (code, out) == (1, f"{good.name}: no problem\n")
    first, second = err.splitlines()
    assert first.startswith(f"nbutils: {bad.name}: does not say versions.nbutils, a yardstick of reading")
    assert second.startswith(f"nbutils: {worse.name}: does not say settings.n_threads")
    code, out, _ = run("records", "check", good, bad, "--json")
    assert code == 1
    assert [(row["file"], len(row["problems"])) for row in json.loads(out)] == [(str(good), 0), (str(bad), 1)]


def test_what_is_submitted_lies_in_the_store_and_what_to_do_next_is_said(run: Run, own_home: Path, data: Path) -> None:
    path = records.write(make_record())
    code, out, err = run("records", "submit", path.stem[-8:])
    assert (code, err) == (0, "")
    first, *after = out.splitlines()
    assert first == f"copied to data/records/unlisted/{path.name}"
    said = "\n".join(after)
    assert all(word in said for word in ("git switch", "git add data/records/unlisted", "pull request", "data/runs"))
    code, _, err = run("records", "submit", path)
    assert (code, "append-only" in err) == (2, True)


def test_one_bad_record_keeps_all_from_being_copied(run: Run, own_home: Path, data: Path) -> None:
    good, bad = records.write(make_record()), records.write(make_record(versions={}))
    code, _, err = run("records", "submit", good, bad)
    assert (code, bad.name in err) == (1, True)
    assert not (data / "records").exists()


def test_the_check_of_the_repository_is_the_same(run: Run, own_home: Path, data: Path) -> None:
    """What CI runs says of a record in the store what ``check`` says of it before."""
    bad = records.write(make_record(versions={}))
    (line,) = run("records", "check", bad)[2].splitlines()
    target = data / "records" / "unlisted" / bad.name
    target.parent.mkdir(parents=True)
    target.write_bytes(bad.read_bytes())
    code, _, err = run("check-data")
    assert code == 1
    assert f"data/records/unlisted/{line.removeprefix('nbutils: ')}" in err.splitlines()
