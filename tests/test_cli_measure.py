"""``measure``, ``tune``, ``sustain``, ``import``, and records of every kind from a terminal; and what is left when a run is killed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import typer.main

from helpers import MAKERS, each_record, make_bench, make_record, make_served, make_sustain
from nbutils import cli, cli_measure, endpoint, llama_bench, measure, records
from nbutils.errors import EngineError
from nbutils.specs import AnyRecord, Record, Suite, TriedThreads

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is typed is timed, but no yardsticks: they are tested elsewhere and take most of a short run."""

    def without_rulers(**asked: Any) -> Suite:
        return measure.custom_suite(**asked).model_copy(update={"yardstick_s": 1e-9})

    monkeypatch.setattr(cli_measure, "custom_suite", without_rulers)
    monkeypatch.setattr(
        measure.engine, "measure_file", lambda path, original=measure.engine.measure_file, **k: original(path, **k | {"yardstick_s": 0})
    )


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What would have been measured, and with what: the call that is not made."""
    found: dict[str, Any] = {}

    def stop(model: measure.ModelFile, suite: Suite, **more: Any) -> Record:
        found.update(more, model=model, suite=suite)
        raise EngineError("stopped here")

    monkeypatch.setattr(measure, "measure", stop)
    return found


def the_line(err: str) -> str:
    (line,) = err.splitlines()
    assert line.startswith("nbutils: ")
    return line


# ── measuring ─────────────────────────────────────────────────────────────────────────────────────


def test_measure_prints_llama_benchs_rows_and_keeps_the_record(run: Run, quick: None, small_file: Path, own_home: Path) -> None:
    code, out, err = run("measure", "-m", small_file, "-p", "16,32", "-n", "3", "-d", "0,16", "-r", "2", "-t", "1", "--cpu", "--json")
    assert code == 0
    rows = json.loads(out)
    assert [(r["n_prompt"], r["n_gen"], r["n_depth"]) for r in rows] == [(16, 0, 0), (32, 0, 0), (0, 3, 0), (16, 0, 16), (32, 0, 16), (0, 3, 16)]
    (path,) = records.list_records()
    assert str(path) in err, "beside the rows, not among them"
    record = records.read(path)
    assert [row["avg_ts"] for row in rows] == pytest.approx([row["avg_ts"] for row in llama_bench.rows(record)])
    for row, point in zip(rows, record.points, strict=True):
        assert row["samples_ns"] == [round(sum(times) * 1e9) for times in point.repetitions_s]
        assert (row["n_threads"], row["n_gpu_layers"], row["backends"]) == (1, 0, "CPU")
    assert rows[0]["model_filename"] == str(small_file)


def test_measure_shows_every_test_and_the_memory_and_where_the_record_is(run: Run, quick: None, small_file: Path, own_home: Path) -> None:
    code, out, err = run("measure", "-m", small_file, "-p", "16", "-n", "2", "-npl", "1,3", "-r", "1", "-t", "1", "--cpu")
    assert (code, err) == (0, "")
    (path,) = records.list_records()
    assert out.splitlines()[-1] == f"record: {path}"
    for words in ("Every test", "sequences", "Memory", "context (kv, state, compute, output)", "ITL"):
        assert words in out
    assert [p.n_seq for p in records.read(path).points] == [1, 1, 3]


@pytest.mark.parametrize(("arguments", "phase"), [(("-p", "0", "-n", "2"), "decode"), (("-p", "16", "-n", "0"), "prefill")])
def test_one_phase_alone_is_measured_and_shown(
    arguments: tuple[str, ...], phase: str, run: Run, quick: None, small_file: Path, own_home: Path
) -> None:
    code, out, err = run("measure", "-m", small_file, *arguments, "-r", "1", "-t", "1", "--cpu")
    assert (code, err) == (0, "")
    assert phase in out
    assert "nan" not in out.lower()


def test_rows_that_llama_bench_has_no_words_for_are_not_left_out_in_silence(run: Run, quick: None, small_file: Path, own_home: Path) -> None:
    code, out, err = run("measure", "-m", small_file, "-p", "0", "-n", "2", "-npl", "2", "-r", "1", "-t", "1", "--cpu", "--json")
    assert (code, json.loads(out)) == (0, [])
    assert "no rows for several sequences; 'nbutils records show' has them" in err


def test_options_of_llama_bench_are_called_as_there(run: Run, asked: dict[str, Any], small_file: Path, own_home: Path) -> None:
    short = "-p 32 -n 8 -d 16 -npl 1,2 -r 3 -t 2 -b 256 -ub 128 -fa on -ctk q8_0 -ctv q4_0 -ngl 7"
    long = (
        "--n-prompt 32 --n-gen 8 --n-depth 16 --parallel 1,2 --repetitions 3 --threads 2 --batch-size 256 --ubatch-size 128"
        " --flash-attn on --cache-type-k q8_0 --cache-type-v q4_0 --n-gpu-layers 7"
    )
    for options in (short, long, short.replace("-fa on", "-fa 1").replace("-p 32", "-p32")):
        asked.clear()
        code, _, err = run("measure", "-m", small_file, *options.split())
        assert (code, the_line(err)) == (1, "nbutils: stopped here")
        assert asked["knobs"] == measure.Knobs(n_threads=2, n_batch=256, n_ubatch=128, flash_attn="on", type_k="Q8_0", type_v="Q4_0", n_gpu_layers=7)
        assert [(p.kind, p.n_tokens, p.depth, p.n_seq) for p in asked["suite"].points] == [
            ("prefill", 32, 16, 1),
            ("decode", 8, 16, 1),
            ("decode", 8, 16, 2),
        ]
        assert asked["suite"].repetitions == 3


@pytest.mark.parametrize(
    ("options", "suite", "points"),
    [
        ("", "quick", ["prefill 128", "decode 32"]),
        ("--suite smoke", "smoke", ["prefill 32", "decode 8"]),
        ("-r 2", "custom", ["prefill 512", "decode 128"]),
        ("-n 8", "custom", ["prefill 512", "decode 8"]),
        ("-p 8", "custom", ["prefill 8", "decode 128"]),
        ("-p 0", "custom", ["decode 128"]),
    ],
)
def test_what_is_timed_when_little_is_said(
    options: str, suite: str, points: list[str], run: Run, asked: dict[str, Any], small_file: Path, own_home: Path
) -> None:
    run("measure", "-m", small_file, "--cpu", *options.split())
    assert asked["suite"].id == suite
    assert [f"{p.kind} {p.n_tokens}" for p in asked["suite"].points] == points
    assert asked["cpu"] is True
    assert asked["knobs"] == measure.Knobs()


def test_a_micro_batch_is_never_larger_than_the_batch(run: Run, asked: dict[str, Any], small_file: Path, own_home: Path) -> None:
    """As in llama.cpp: with ``-b 128`` alone nobody means the usual micro-batch of 512."""
    run("measure", "-m", small_file, "-b", "128")
    assert (asked["knobs"].n_batch, asked["knobs"].n_ubatch) == (128, 128)


def test_tuning_first_takes_the_best_number_and_keeps_what_was_tried(
    run: Run, asked: dict[str, Any], small_file: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = [TriedThreads(n_threads=n, decode_tokens=1, decode_s=(1 / n,), prefill_tokens=1, prefill_s=(1.0,)) for n in (1, 2, 4)]
    monkeypatch.setattr(measure, "tune", lambda *a, **k: tried)
    run("measure", "-m", small_file, "--tune", "-fa", "off")
    assert asked["knobs"] == measure.Knobs(n_threads=4, flash_attn="off")
    assert asked["tuned"] == tried


def test_tune_says_which_number_is_best_and_what_it_tried(run: Run, small_file: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = measure.engine.tune_threads
    monkeypatch.setattr(measure, "threads_to_try", lambda *a: [1])
    monkeypatch.setattr(measure.engine, "tune_threads", lambda path, **asked: timed(path, **asked | {"n_decode": 2, "n_prefill": 2}))
    code, out, err = run("tune", "-m", small_file, "--rounds", "1", "--cpu", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert [row["threads"] for row in found["tried"]] == [1]
    assert (found["best_decode_threads"], found["best_prefill_threads"]) == (1, 1)
    assert min(row["decode"] for row in found["tried"]) > 0
    assert records.list_records() == []


def test_tune_shows_a_table_and_how_to_go_on(run: Run, small_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = tmp_path / "[bold]x.gguf"
    odd.symlink_to(small_file)
    tried = [TriedThreads(n_threads=n, decode_tokens=1, decode_s=(1 / n,), prefill_tokens=1, prefill_s=(float(n),)) for n in (1, 2, 4)]
    monkeypatch.setattr(measure, "tune", lambda *a, **k: tried)
    code, out, err = run("tune", "-m", odd)
    assert (code, err) == (0, "")
    for words in ("Threads for [bold]x", "Tried 1, 2, 4 threads in 1 interleaved rounds; decode is fastest with 4.", "next: nbutils measure -t 4"):
        assert words in out
    assert "Prefill alone would be fastest with 1." in out


def test_decode_on_end_is_recorded_and_told(run: Run, small_file: Path, own_home: Path) -> None:
    code, out, err = run("sustain", "-m", small_file, "--minutes", "0.01", "-t", "1", "--cpu", "-d", "16", "--json")
    assert (code, err) == (0, "")
    said = json.loads(out)
    (path,) = records.list_records()
    assert said["record"] == str(path)
    assert said["rows"]
    record = records.read_any(path)
    assert (record.kind, record.depth, record.settings.n_threads) == ("sustain", 16, 1)  # type: ignore[union-attr]


def test_a_server_is_measured_by_its_address(run: Run, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def served(url: str, model: str, **more: Any) -> AnyRecord:
        given.update(more, url=url, model=model)
        return make_served()

    monkeypatch.setattr(endpoint, "measure", served)
    monkeypatch.setenv("NBUTILS_API_KEY", "a-secret")
    address = "http://127.0.0.1:1"
    code, out, err = run("measure", "--endpoint", address, "-m", "m", "-p", "64", "-n", "8", "-r", "2", "--concurrency", "1,2", "--json")
    assert (code, err) == (0, "")
    wanted = {"url": address, "model": "m", "prompt_tokens": 64, "max_tokens": 8, "concurrency": [1, 2], "repetitions": 2, "api_key": "a-secret"}
    assert {k: given[k] for k in wanted} == wanted
    (path,) = records.list_records()
    assert json.loads(out)["record"] == str(path)
    text = path.read_text(encoding="utf-8")
    assert address not in text
    assert "a-secret" not in text + out + err


# ── refusals ──────────────────────────────────────────────────────────────────────────────────────

SERVER = "measure --endpoint http://127.0.0.1:1 "
MISUSES = {
    "measure -p 16": "nothing to measure",
    "measure -m x.gguf --suite quick -p 64": "--suite quick already says what -p says; give one of the two",
    "measure -m x.gguf --suite quick -d 64": "--suite quick already says what -d says",
    "measure -m x.gguf --suite quick -r 3": "--suite quick already says what -r says",
    "measure -m x.gguf --suite quik": "did you mean 'quick'?",
    "measure -m x.gguf -p many": "-p 'many' is not a list of whole numbers such as 512 or 512,2048",
    "measure -m x.gguf -n 1,,2": "-n '1,,2' is not a list",
    "measure -m x.gguf -d 1.5": "-d '1.5' is not a list",
    "measure -m x.gguf -npl=-1": "-npl '-1' has a number below 0",
    "measure -m x.gguf -p 0 -n 0": "nothing to time: both -p and -n are 0",
    "measure -m x.gguf -p 99999999": "less than or equal to 65536 (got '99999999')",
    "measure -m x.gguf -d 99999999": "less than or equal to 1048576 (got '99999999')",
    "measure -m x.gguf -npl 257": "less than or equal to 256 (got '257')",
    "measure -m x.gguf -npl 0": "n_seq: ",
    "measure -m x.gguf -fa maybe": "--flash-attn 'maybe'; it is on, off or auto",
    "measure -m x.gguf -ctk q5": "type_k 'Q5'",
    "measure -m x.gguf -ctv f17": "did you mean 'F16'?",
    "measure -m x.gguf --tune -t 4": "--tune finds the number of threads and -t 4 gives it; give one of the two",
    "measure -m x.gguf --concurrency 2": "--concurrency goes with --endpoint",
    "measure -m x.gguf -r 0": "'--repetitions' / '-r': Input should be greater than or equal to 1",
    "measure -m x.gguf -r 101": "'--repetitions' / '-r': Input should be less than or equal to 100",
    "measure -m x.gguf -b 0": "'--batch-size' / '-b'",
    "measure -m x.gguf -ub 0": "'--ubatch-size' / '-ub'",
    "measure -m x.gguf -t -1": "'--threads' / '-t'",
    "measure -m x.gguf -ngl -2": "'--n-gpu-layers' / '-ngl'",
    "measure -m x.gguf -ngl all": "'--n-gpu-layers' / '-ngl'",
    "measure --repo a/b --file [/x].gguf -m y.gguf": "give one",
    SERVER + "--suite quick": "--suite goes with a file, not with --endpoint",
    SERVER + "-d 64": "-d goes with a file, not with --endpoint",
    SERVER + "--tune": "--tune goes with a file, not with --endpoint",
    SERVER + "-t 2": "-t goes with a file",
    SERVER + "-ctk q8_0": "-ctk goes with a file",
    SERVER + "-ngl 0": "-ngl goes with a file",
    SERVER + "-p 64,128": "-p and -n take one number each",
    SERVER + "--concurrency two": "--concurrency 'two' is not a list",
    "tune": "nothing to tune for",
    "tune -m x.gguf --rounds 0": "'--rounds'",
    "sustain": "nothing to run",
    "sustain -m x.gguf --minutes 0": "'--minutes'",
    "sustain -m x.gguf --minutes nan": "'--minutes'",
    "sustain -m x.gguf -d -1": "'--n-depth' / '-d'",
    "probe --seconds 0": "'--seconds'",
    "import llama-bench": "Missing argument",
    "import llama-bench absent.json": "absent.json",
    "import": "",
}


@pytest.mark.parametrize("line", MISUSES)
def test_misuse_is_one_line_and_nothing_is_started(line: str, run: Run, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("describe", "measure_file", "sustain_file", "tune_threads"):
        monkeypatch.setattr(measure.engine, name, lambda *a, **k: pytest.fail("something was started"))
    code, out, err = run(*line.split())
    assert code == 2
    if MISUSES[line]:
        assert MISUSES[line] in the_line(err)
        assert out == ""
    assert "Traceback" not in err
    assert records.list_records() == []


def test_names_from_the_hub_are_shown_as_they_are_while_they_are_fetched(run: Run, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What looks like markup is none."""
    import huggingface_hub

    def refuse(*_: Any) -> None:
        raise OSError("no network here")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    code, _, err = run("measure", "--repo", "a/b", "--file", "[/x].gguf")
    assert code == 1
    assert "a/b/[/x].gguf: could not be fetched: OSError: no network here" in err


# ── help ──────────────────────────────────────────────────────────────────────────────────────────


def command_named(*path: str) -> click.Command:
    found: Any = typer.main.get_command(cli.app)
    for name in path:
        found = found.commands[name]
    return found  # type: ignore[no-any-return]


@pytest.mark.parametrize("path", [("measure",), ("tune",), ("sustain",), ("probe",), ("import", "llama-bench")], ids=" ".join)
def test_help_has_an_example_that_the_program_takes(path: tuple[str, ...], run: Run) -> None:
    """An example with an option that does not exist teaches an error."""
    command = command_named(*path)
    examples = re.findall(rf"nbutils {' '.join(path)}((?: [^\s·;]+)*)", (command.help or "").partition("Example")[2])
    assert examples
    for example in examples:
        with command.make_context("example", example.replace("…", "").split()) as context:
            assert context.params
    code, out, _ = run(*path, "--help")
    assert code == 0
    assert "Example" in out


# ── records of every kind ─────────────────────────────────────────────────────────────────────────


@each_record
def test_a_record_of_every_kind_is_listed_shown_and_checked(make: Callable[..., AnyRecord], run: Run, own_home: Path) -> None:
    record = make()
    path = records.write(record)
    code, out, err = run("records", "list")
    assert (code, err) == (0, "")
    assert str(path) in out
    code, out, err = run("records", "show", path)
    assert (code, err) == (0, "")
    titles = {"run": "Every test", "sustain": "Sustained decode", "endpoint": "Served", "llama-bench": "llama-bench: some-model"}
    assert titles[record.kind] in out
    assert "nan" not in out.lower()
    code, out, err = run("records", "check", path)
    assert (code, out, err) == (0, f"{path.name}: no problem\n", "")


def test_records_of_several_kinds_are_shown_one_after_the_other(run: Run, own_home: Path) -> None:
    paths = [records.write(make()) for make in MAKERS.values()]
    code, out, err = run("records", "show", *paths)
    assert (code, err) == (0, "")
    places = [out.index(title) for title in ("Every test", "Sustained decode", "Served", "llama-bench: ")]
    assert places == sorted(places)
    found = json.loads(run("records", "show", *paths, "--json")[1])
    assert [row.get("phase", row.get("kind")) for row in found] == ["prefill", "decode", "sustain", "endpoint", "llama-bench"]


def test_several_runs_are_shown_in_one_table(run: Run, own_home: Path) -> None:
    paths = [records.write(make_record()), records.write(make_record(sample_text="another"))]
    code, out, _ = run("records", "show", *paths)
    assert code == 0
    assert out.count("Measured on this machine") == 1
    assert "Every test" not in out


@pytest.mark.parametrize(
    "record",
    [
        make_record(model=make_record().model.model_copy(update={"name": "[/red]a [bold]model"})),
        make_sustain(model=make_record().model.model_copy(update={"name": "[/red]a [bold]model"})),
        make_served(model="[/red]a [bold]model"),
        make_bench(model_filename="[/red]a [bold]model"),
    ],
    ids=MAKERS,
)
def test_a_name_that_looks_like_markup_is_shown_as_it_is(record: AnyRecord, run: Run, own_home: Path) -> None:
    path = records.write(record)
    code, out, err = run("records", "show", path)
    assert (code, err) == (0, "")
    assert run("records", "list")[1].count("[/red]a [bold]model") == 1
    if record.kind != "endpoint":  # whose table is about requests
        assert "[/red]a" in out


def test_a_record_that_is_faster_than_its_yardsticks_fails_the_check(run: Run, own_home: Path) -> None:
    slow = make_record().yardsticks[0].model_copy(update={"samples_s": (100.0,)})
    path = records.write(make_record(yardsticks=(slow,)))
    code, out, err = run("records", "check", path)
    assert (code, out) == (1, "")
    assert "measure again on a quiet machine" in the_line(err)


def test_what_llama_bench_printed_becomes_a_record(run: Run, own_home: Path, tmp_path: Path) -> None:
    rows = llama_bench.rows(make_bench(tests=make_bench().tests[:1]))
    file = tmp_path / "bench.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    code, out, err = run("import", "llama-bench", file)
    assert (code, err) == (0, "")
    (path,) = records.list_records()
    assert out.splitlines()[-1] == f"record: {path}"
    assert "some-model-Q4_K_M.gguf" in out
    record = records.read_any(path)
    assert (record.kind, record.model_type) == ("llama-bench", make_bench().model_type)  # type: ignore[union-attr]
    file.write_text("garbage", encoding="utf-8")
    code, _, err = run("import", "llama-bench", file)
    assert code == 2
    assert "bench.json" in the_line(err)
    assert records.list_records() == [path]
