"""llama-bench's rows in and out. The files of ``test_llama_bench/`` are what the program printed, of the source that the pinned binding carries."""

from __future__ import annotations

import copy
import csv
import io
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nbutils
from helpers import make_record
from nbutils import engine, llama_bench, records
from nbutils.errors import DataError, NbutilsError, UsageError
from nbutils.specs import BenchRecord, BenchTest, FileFacts, Point, Record, Settings, Suite, SuitePoint

PRINTED = Path(__file__).parent / "test_llama_bench"
Row = dict[str, Any]
#: What the program prints as 0 or 1 in csv and as false or true in json.
BOOLS = {"cpu_strict", "no_kv_offload", "embeddings", "no_host", "repack"}
RATES = {"avg_ts", "stddev_ts"}


def printed(name: str) -> list[Row]:
    """The program's own rows, with a file's name in place of its path."""
    text = (PRINTED / name).read_text(encoding="utf-8")
    rows: list[Row]
    if name.endswith(".csv"):
        rows = list(csv.DictReader(io.StringIO(text)))
    else:
        rows = json.loads(text) if name.endswith(".json") else [json.loads(line) for line in text.splitlines()]
    return [row | {"model_filename": row["model_filename"].rpartition("/")[2]} for row in rows]


def as_csv(rows: list[Row]) -> str:
    """Rows as the program's csv: every cell in quotes, no samples."""

    def cell(name: str, value: Any) -> str:
        text = f"{value:.6f}" if name in RATES else str(int(value)) if name in BOOLS else str(value)
        return '"' + text.replace('"', '""') + '"'

    names = [name for name in rows[0] if not name.startswith("samples_")]
    return "".join(line + "\n" for line in [",".join(names), *(",".join(cell(name, row[name]) for name in names) for row in rows)])


def as_json(rows: list[Row]) -> str:
    return json.dumps(rows, indent=2, ensure_ascii=False)


def as_jsonl(rows: list[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read(text: str | bytes, folder: Path) -> list[BenchRecord]:
    path = folder / "results.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return llama_bench.read(path)


def refused(text: str | bytes, folder: Path) -> str:
    """The one line that a bad file is answered with."""
    with pytest.raises(NbutilsError) as caught:
        read(text, folder)
    message = str(caught.value)
    assert message.startswith("results.txt: "), message
    assert len(message) < 300
    assert message.isprintable()
    return message


def all_rows(found: list[BenchRecord]) -> list[Row]:
    return [row for record in found for row in llama_bench.rows(record)]


# ── what the program printed ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["tests.json", "settings.jsonl", "long.jsonl"])
def test_the_programs_rows_come_back_to_the_last_digit_and_in_its_order(name: str) -> None:
    rows = all_rows(llama_bench.read(PRINTED / name))
    assert rows == printed(name)
    assert [list(row) for row in rows] == [list(row) for row in printed(name)]


def test_the_programs_csv_comes_back_to_the_letter() -> None:
    text = (PRINTED / "tests.csv").read_text(encoding="utf-8").replace("models/", "")
    assert as_csv(all_rows(llama_bench.read(PRINTED / "tests.csv"))) == text


def test_csv_is_the_same_run_without_its_samples() -> None:
    """Both were printed by one run, one to standard output and one to standard error."""
    for full, short in zip(llama_bench.read(PRINTED / "tests.json"), llama_bench.read(PRINTED / "tests.csv"), strict=True):
        assert short.settings == full.settings
        for ours, theirs in zip(llama_bench.rows(full), llama_bench.rows(short), strict=True):
            assert {name: value for name, value in ours.items() if not name.startswith("samples_")} == theirs


def test_there_is_a_record_per_file_and_settings_and_a_test_per_row() -> None:
    dense, moe = llama_bench.read(PRINTED / "tests.json")
    assert (dense.model_filename, moe.model_filename) == ("stand-in-dense-small-Q4_K_M.gguf", "stand-in-moe-small-F16.gguf")
    assert [(t.n_prompt, t.n_gen, t.n_depth) for t in dense.tests] == [(32, 0, 0), (0, 8, 0), (16, 4, 0), (32, 0, 64), (0, 8, 64), (16, 4, 64)]
    assert dense.created.strftime("%Y-%m-%dT%H:%M:%SZ") == dense.tests[0].test_time
    assert dense.created.tzinfo is UTC
    assert dense.versions == {"llama-bench": dense.build_commit, "nbutils": nbutils.__version__}
    told = [(r.settings["n_threads"], r.settings["flash_attn"]) for r in llama_bench.read(PRINTED / "settings.jsonl")]
    assert told == [(1, 0), (2, 0), (1, 1), (2, 1)]


def test_what_samples_give_is_not_kept_beside_them() -> None:
    assert all(test.samples_ns and test.avg_ts is test.stddev_ts is None for r in llama_bench.read(PRINTED / "tests.json") for test in r.tests)


def test_an_imported_record_is_kept_like_any_other(tmp_path: Path) -> None:
    for record in [*llama_bench.read(PRINTED / "settings.jsonl"), *llama_bench.read(PRINTED / "tests.csv")]:
        kept = records.read_any(records.write(record, tmp_path))
        assert kept == record
        assert isinstance(kept, BenchRecord)
        assert [list(row) for row in llama_bench.rows(kept)] == [list(row) for row in llama_bench.rows(record)], "order survives sorted keys"


@pytest.mark.parametrize(("name", "what"), [("tests.md", "a Markdown table"), ("settings.sql", "SQL")])
def test_formats_for_other_readers_are_refused_with_the_ones_that_can_be_read(name: str, what: str) -> None:
    with pytest.raises(UsageError, match=rf"{name}: is {what}; .*-o json, -o jsonl and -o csv"):
        llama_bench.read(PRINTED / name)


# ── how files come ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["tests.json", "settings.jsonl", "tests.csv"])
@pytest.mark.parametrize(
    "arriving",
    [
        lambda text: b"\xef\xbb\xbf" + text.encode(),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: b"\xff\xfe" + text.replace("\n", "\r\n").encode("utf-16-le"),  # PowerShell's >
        lambda text: "\n\n" + text + "\n\n",
    ],
    ids=["BOM", "CRLF", "UTF-16", "blank lines"],
)
def test_what_shells_and_editors_do_to_a_file_is_no_matter(name: str, arriving: Callable[[str], str | bytes], tmp_path: Path) -> None:
    text = (PRINTED / name).read_text(encoding="utf-8")
    assert read(arriving(text), tmp_path) == llama_bench.read(PRINTED / name)


@pytest.mark.parametrize("path", ["a.gguf", "/home/somebody/a.gguf", r"C:\Users\somebody\a.gguf"])
def test_a_record_names_no_folder(path: str, tmp_path: Path) -> None:
    (record,) = read(as_json([printed("tests.json")[0] | {"model_filename": path}]), tmp_path)
    assert record.model_filename == "a.gguf"
    assert "somebody" not in record.model_dump_json()


def test_files_of_one_name_in_two_folders_are_two_files(tmp_path: Path) -> None:
    row = printed("tests.json")[0]
    assert len(read(as_json([row | {"model_filename": f"{folder}/a.gguf"} for folder in "xyx"]), tmp_path)) == 2


@pytest.mark.parametrize("cell", ['=cmd|"/C calc"!A0', "+1", "-1", "@SUM(A1)", 'a "quoted", name', "<script>alert(1)</script>", "naïve 模型"])
@pytest.mark.parametrize("printer", [as_json, as_jsonl, as_csv])
def test_text_is_text_whatever_a_spreadsheet_would_make_of_it(cell: str, printer: Callable[[list[Row]], str], tmp_path: Path) -> None:
    (record,) = read(printer([printed("tests.json")[0] | {"cpu_info": cell, "type_k": cell}]), tmp_path)
    assert (record.cpu_info, record.settings["type_k"]) == (cell, cell)


def test_settings_of_another_llama_bench_are_kept_under_its_names(tmp_path: Path) -> None:
    row = printed("tests.json")[0]
    later = {"n_prompt": row.pop("n_prompt"), **row, "zzz": 0.5, "use_mmap": True, "flash_attn": "auto"}
    del later["load_mode"]
    (record,) = read(as_json([later]), tmp_path)
    assert record.settings["zzz"] == 0.5
    assert record.settings["use_mmap"] is True
    assert llama_bench.rows(record) == [later]


def test_rates_that_another_machine_rounded_otherwise_are_kept_as_printed(tmp_path: Path) -> None:
    row = printed("tests.json")[0]
    other = row | {"avg_ts": round(row["avg_ts"] + 1e-6, 6)}
    (record,) = read(as_json([other]), tmp_path)
    assert record.tests[0].avg_ts == other["avg_ts"]
    assert record.tests[0].stddev_ts is None
    assert llama_bench.rows(record) == [other]


# ── what is refused ───────────────────────────────────────────────────────────────────────────────


def changed(**fields: Any) -> str:
    rows = copy.deepcopy(printed("tests.json")[:3])
    rows[1] |= fields
    return json.dumps(rows)


@pytest.mark.parametrize("field", ["build_commit", "model_size", "n_depth", "test_time", "avg_ns", "stddev_ts"])
@pytest.mark.parametrize("printer", [as_json, as_jsonl, as_csv])
def test_a_missing_field_is_named_with_its_row(field: str, printer: Callable[[list[Row]], str], tmp_path: Path) -> None:
    rows = printed("tests.json")[:1]
    del rows[0][field]
    message = refused(printer(rows), tmp_path)
    assert re.match(rf"results\.txt: (row 1|line [12]): {field}: is missing; .*-o json", message), message


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"avg_ns": 0}, "row 2: avg_ns: should be above 0 (got 0)"),
        ({"n_gen": -8}, "row 2: n_gen: should be 0 or more (got -8)"),
        ({"n_gen": 0}, "row 2: n_gen: is 0 and n_prompt too"),
        ({"n_gen": "8"}, "row 2: n_gen: should be a whole number (got '8')"),
        ({"n_gen": True}, "row 2: n_gen: should be a whole number (got 'True')"),
        ({"n_gen": 8.0}, "row 2: n_gen: should be a whole number (got '8.0')"),
        ({"model_size": 0}, "row 2: model_size: should be above 0"),
        ({"model_n_params": 10**30}, "row 2: model_n_params: a number of more than 64 bits"),
        ({"n_batch": 10**30}, "row 2: n_batch: a number of more than 64 bits"),
        ({"model_type": None}, "row 2: model_type: is neither text nor a number"),
        ({"model_type": 7}, "row 2: model_type: should be text"),
        ({"model_filename": "models/"}, "row 2: model_filename: names no file"),
        ({"backends": "x" * 401}, "row 2: backends: "),
        ({"cpu_info": "x" * 10_000_000}, "row 2: cpu_info: text of 10,000,000 characters"),
        ({"cpu_info": "two\nlines"}, "row 2: cpu_info: text of 9 characters, or with control characters"),
        ({"type_k": "\x1b[31mred"}, "row 2: type_k: text of"),
        ({"type_k": "\ud800"}, "row 2: type_k: text of"),
        ({"\x1b[31m": 1}, "row 2: field '\\x1b[31m': is no name of a field"),
        ({"x" * 1000: 1}, "row 2: field 'xxxx"),
        ({"parts": [1, 2]}, "row 2: parts: is neither text nor a number"),
        ({"parts": {"a": 1}}, "row 2: parts: is neither text nor a number"),
        ({"test_time": "yesterday"}, "row 2: test_time: should be a time such as"),
        ({"test_time": "0001-01-01T00:00:00+14:00"}, "row 2: test_time: should be a time such as"),
        ({"samples_ns": []}, "row 2: samples_ns: should be a list of numbers"),
        ({"samples_ns": {"a": 1}}, "row 2: samples_ns: should be a list of numbers"),
        ({"samples_ns": [1.5]}, "row 2: samples_ns: should hold numbers above 0 only (got '1.5')"),
        ({"samples_ns": [0]}, "row 2: samples_ns: should hold numbers above 0 only (got '0')"),
        ({"samples_ts": "fast"}, "row 2: samples_ts: should be a list of numbers"),
        ({"avg_ns": 1}, "row 2: avg_ns: is 1, the mean of samples_ns is"),
        ({"avg_ts": 1e6}, "row 2: avg_ts: is 1e+06, samples_ns give"),
        ({"stddev_ts": 0}, "row 2: stddev_ts: is 0, samples_ns give"),
        ({"samples_ts": [1, 2, 3]}, "row 2: samples_ts: is not tokens over samples_ns"),
        ({"n_gen": 9}, "row 2: samples_ts: is not tokens over samples_ns"),
    ],
)
def test_what_cannot_be_is_refused_with_row_and_field(fields: Row, says: str, tmp_path: Path) -> None:
    # A group of its own, so that the whole record of the row is looked at.
    assert says in refused(changed(n_threads=77, **fields), tmp_path)


@pytest.mark.parametrize("word", ["nan", "-nan", "NaN", "inf", "-Infinity"])
def test_a_rate_that_is_no_number_is_named(word: str, tmp_path: Path) -> None:
    """Of equal times the program prints the deviation as -nan, which is no JSON either."""
    line = as_jsonl(printed("tests.json")[:2])
    message = refused(line.replace(f'"stddev_ts": {printed("tests.json")[1]["stddev_ts"]}', f'"stddev_ts": {word}'), tmp_path)
    assert f"{word!r} is no number" in message
    cells = (PRINTED / "tests.csv").read_text().replace(f'{printed("tests.csv")[1]["stddev_ts"]}"', f'{word}"')
    assert f"line 3: stddev_ts: should be a number (got {word!r})" in refused(cells, tmp_path)


def test_a_file_of_a_benchmark_that_was_ended_is_refused(tmp_path: Path) -> None:
    text = (PRINTED / "tests.json").read_text()
    assert re.search(r"line \d+ is not valid JSON \(cut short\?\); was llama-bench ended early\?", refused(text[:-3], tmp_path))
    lines = (PRINTED / "settings.jsonl").read_text()
    assert "line 4 is not valid JSON (cut short?); remove that line" in refused(lines[:-40], tmp_path)
    cells = (PRINTED / "tests.csv").read_text()
    assert "line 13: not valid CSV" in refused(cells[:-4], tmp_path)
    assert "line 13: 40 cells under 42 headings (cut short?)" in refused(cells[: cells.rindex(',"', 0, cells.rindex(',"'))] + "\n", tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        (" \n\n", "is empty"),
        ("[]", "holds no row"),
        ("[1]", "row 1: is no object"),
        ("[[]]", "row 1: is no object"),
        ('{"a": 1, "a": 2}', "line 1: the field 'a' stands twice"),
        ("build_commit,build_commit\n1,2\n", "line 2: the field 'build_commit' stands twice"),
        ("build_commit,build_number\n", "holds no row"),
        ("hello", "begins with 'hello', which is no output of llama-bench"),
        ("ggml_cuda_init: found 1 device\n[", "save its standard output alone"),
        (b"\xfe\xff\xd8", "is not UTF-8 text"),
        (b"[\xff]", "byte 1 is not UTF-8 text"),
        ("[" * 100_000, "is no output of llama-bench"),
        ("[" + "9" * 10_000 + "]", "is no output of llama-bench"),
        ('build_commit,x\n"' + "x" * 200_000 + '",1\n', "line 2: not valid CSV: field larger than field limit"),
        (b"a\0,b\n1,2\n", "no output of llama-bench"),
    ],
    ids=str,
)
def test_other_files_are_refused_in_a_line(text: str | bytes, says: str, tmp_path: Path) -> None:
    assert says in refused(text, tmp_path)


def test_a_file_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_bench, "MAX_BYTES", 1000)
    assert "more than 1,000 bytes" in refused("[" + " " * 1000, tmp_path)


def test_no_file_and_no_readable_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no file .*nowhere"):
        llama_bench.read(tmp_path / "nowhere")
    with pytest.raises(DataError, match="cannot be read"):
        llama_bench.read(tmp_path)


# ── our runs as such rows ─────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def run_of_small(small_file: Path) -> Record:
    """A measurement of the stand-in that ``tests.json`` begins with, at its points."""
    suite = Suite(
        id="as-printed",
        name="As printed",
        points=(
            SuitePoint(kind="prefill", n_tokens=32),
            SuitePoint(kind="decode", n_tokens=8),
            SuitePoint(kind="prefill", n_tokens=32, depth=64),
            SuitePoint(kind="decode", n_tokens=8, depth=64),
        ),
        repetitions=3,
        yardstick_s=0.1,
    )
    settings = Settings(n_threads=1, n_batch=2048, n_ubatch=512, n_ctx=96, flash_attn="auto", type_k="F16", type_v="F16", n_gpu_layers=0, seed=1)
    points = [point.model_dump() for point in suite.points]
    found = engine.measure_file(small_file, points=points, repetitions=3, yardstick_s=0.0, settings=settings.model_dump())
    model = FileFacts(name="stand-in-dense-small", origin="stand-in", **found["facts"])
    return make_record(suite=suite, settings=settings, model=model, points=tuple(map(Point.model_validate, found["points"])))


def test_our_rows_are_the_programs_but_for_the_times(run_of_small: Record) -> None:
    ours = llama_bench.rows(run_of_small, filename="stand-in-dense-small-Q4_K_M.gguf")
    theirs = [row for row in printed("tests.json")[:6] if not (row["n_prompt"] and row["n_gen"])]
    may_differ = {"build_commit", "build_number", "cpu_info", "n_threads", "n_gpu_layers", "test_time", *RATES, "avg_ns", "stddev_ns"}
    for mine, row in zip(ours, theirs, strict=True):
        assert list(mine) == list(row)
        assert [type(value) for value in mine.values()] == [type(value) for value in row.values()]
        assert {n: v for n, v in mine.items() if n not in may_differ and not n.startswith("samples_")} == {
            n: v for n, v in row.items() if n not in may_differ and not n.startswith("samples_")
        }


@pytest.mark.parametrize("printer", [as_json, as_jsonl])
def test_our_own_rows_can_be_imported(printer: Callable[[list[Row]], str], tmp_path: Path) -> None:
    rows = llama_bench.rows(make_record())
    (record,) = read(printer(rows), tmp_path)
    assert llama_bench.rows(record) == rows


def test_a_rate_is_the_mean_of_the_repetitions_rates() -> None:
    """Not tokens over the mean time, which is another number."""
    prefill, decode = llama_bench.rows(make_record())
    assert prefill["samples_ns"] == [11_000_000, 12_000_000]
    assert prefill["avg_ns"] == 11_500_000
    assert prefill["avg_ts"] == pytest.approx((32 / 0.011 + 32 / 0.012) / 2, abs=1e-6)
    assert prefill["stddev_ts"] == pytest.approx((32 / 0.011 - 32 / 0.012) / 2**0.5, abs=1e-4)
    assert (decode["n_gen"], decode["n_depth"], decode["samples_ns"]) == (4, 32, [4_300_000, 4_000_000])


def test_one_repetition_has_no_deviation() -> None:
    record = make_record()
    once = record.suite.model_copy(update={"repetitions": 1})
    points = tuple(p.model_copy(update={"repetitions_s": p.repetitions_s[:1]}) for p in record.points)
    for row in llama_bench.rows(make_record(suite=once, points=points)):
        assert row["stddev_ns"] == row["stddev_ts"] == 0


def test_long_repetitions_do_not_overflow() -> None:
    """The program's deviation in nanoseconds wraps where the sum of squares passes 64 bits: 3 s, five times."""
    record = make_record()
    point = record.points[0].model_copy(update={"repetitions_s": ((3.0,), (3.1,))})
    assert llama_bench.rows(make_record(points=(point, record.points[1])))[0]["stddev_ns"] == pytest.approx(0.1e9 / 2**0.5, rel=1e-6)


def test_several_sequences_have_no_row() -> None:
    record = make_record()
    suite = record.suite.model_copy(update={"points": (record.suite.points[0], record.suite.points[1].model_copy(update={"n_seq": 4}))})
    rows = llama_bench.rows(make_record(suite=suite, points=(record.points[0], record.points[1].model_copy(update={"n_seq": 4}))))
    assert [row["n_prompt"] for row in rows] == [32]


@pytest.mark.parametrize(
    ("device", "system_info", "backends"),
    [
        ("CPU", "CPU : AVX2 = 1 | REPACK = 1 |", "CPU"),
        ("CPU", "", "CPU"),
        ("CUDA0: NVIDIA H200", "CUDA : ARCHS = 900 | USE_GRAPHS = 1 | CPU : AVX2 = 1 |", "CUDA"),
        ("Vulkan0: Radeon", "CPU : AVX2 = 1 |", "Vulkan"),
    ],
)
def test_backends_are_named_as_the_program_names_them(device: str, system_info: str, backends: str) -> None:
    record = make_record()
    row = llama_bench.rows(make_record(backend=record.backend.model_copy(update={"device": device, "system_info": system_info})))[0]
    assert row["backends"] == backends
    assert row["gpu_info"] == device.partition(": ")[2]


# ── any record ────────────────────────────────────────────────────────────────────────────────────

words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=[chr(n) for n in (*range(32), 127)]), max_size=12)
whole = st.integers(0, 2**53)
positive = st.integers(1, 2**53)
#: Known settings in the program's types, a few of which another version may lack, and settings of another version.
settings_of_a_row = st.fixed_dictionaries(
    {},
    optional={
        "n_batch": whole,
        "n_gpu_layers": st.integers(-1, 999),
        "type_k": words,
        "repack": st.booleans(),
        "flash_attn": st.sampled_from([-1, 0, 1]),
        "devices": words,
        "use_mmap": words,
        "a_later_one": words,
    },
)


@st.composite
def bench_tests(draw: st.DrawFn, *, samples: bool) -> BenchTest:
    n_prompt, n_gen = draw(st.tuples(st.integers(0, 65536), st.integers(0, 65536)).filter(any))
    fields: Row = {"n_prompt": n_prompt, "n_gen": n_gen, "n_depth": draw(st.integers(0, 10**6)), "stddev_ns": draw(whole)}
    fields["test_time"] = draw(st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1))).strftime("%Y-%m-%dT%H:%M:%SZ")
    if samples:
        times = tuple(draw(st.lists(st.integers(1000, 10**12), min_size=1, max_size=6)))
        return BenchTest(**fields, samples_ns=times, avg_ns=sum(times) // len(times))
    rates = st.integers(1, 10**12).map(lambda n: n / 1e6)
    return BenchTest(**fields, avg_ns=draw(positive), avg_ts=draw(rates), stddev_ts=draw(rates))


@st.composite
def bench_records(draw: st.DrawFn, *, samples: bool) -> BenchRecord:
    tests = tuple(draw(st.lists(bench_tests(samples=samples), min_size=1, max_size=3)))
    name = draw(words.filter(lambda text: text and not set(text) & set("/\\")))
    commit = draw(words)
    return BenchRecord(
        schema_version=1,
        kind="llama-bench",
        created=datetime.fromisoformat(tests[0].test_time),
        versions={"llama-bench": commit, "nbutils": nbutils.__version__},
        build_commit=commit,
        build_number=draw(whole),
        cpu_info=draw(words),
        gpu_info=draw(words),
        backends=draw(words),
        model_filename=name,
        model_type=draw(words),
        model_size=draw(positive),
        model_n_params=draw(positive),
        settings=draw(settings_of_a_row),
        tests=tests,
    )


@pytest.mark.parametrize(("printer", "samples"), [(as_json, True), (as_jsonl, True), (as_csv, False), (as_json, False), (as_jsonl, False)])
def test_any_record_comes_back_from_its_rows(printer: Callable[[list[Row]], str], samples: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("any")

    @given(record=bench_records(samples=samples))
    def comes_back(record: BenchRecord) -> None:
        assert read(printer(llama_bench.rows(record)), folder) == [record]

    comes_back()
