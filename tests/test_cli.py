"""The command line: help everywhere, one line for every error, exit code 2 for misuse and 1 for failure."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import psutil
import pytest
import typer.main

import nbutils
from helpers import copy_of_data, make_record
from nbutils import build, cli, measure, paths, records, registry
from nbutils.specs import SuitePoint

MAIN = "from nbutils.cli import main; main()"

Run = Callable[..., tuple[int, str, str]]


def commands(group: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in getattr(group, "commands", {}).items():
        yield (*path, name)
        yield from commands(command, (*path, name))


ALL = list(commands(typer.main.get_command(cli.app)))


def test_the_commands_are_known() -> None:
    assert {("book",), ("clean",), ("run",), ("check-data",), ("notebooks",), ("records", "submit")} <= set(ALL)
    assert {("measure",), ("tune",), ("sustain",), ("probe",), ("import", "llama-bench")} <= set(ALL)
    assert {("fit",), ("limits",), ("need",), ("devices",), ("models",), ("buffers",)} <= set(ALL)


@pytest.mark.parametrize("command", [(), *ALL], ids=" ".join)
def test_every_command_has_help_and_so_has_each_of_its_options(command: tuple[str, ...], run: Run) -> None:
    code, out, err = run(*command, "--help")
    assert (code, err) == (0, "")
    assert "Usage" in out
    found: click.Command = typer.main.get_command(cli.app)
    for name in command:
        found = found.commands[name]  # type: ignore[attr-defined]
    assert (found.help or "").strip()
    for parameter in found.params:
        assert getattr(parameter, "help", "").strip(), f"{parameter.name} has no help"


def test_the_version_is_the_packages(run: Run) -> None:
    assert run("--version") == (0, f"nbutils {nbutils.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("measure",), 2, "nothing to measure"),
        (("measure", "-m", "absent.gguf", "--cpu"), 2, "model file 'absent.gguf' does not exist"),
        (("measure", "-m", "stand-in-dense-smal"), 2, "did you mean 'stand-in-dense-small'?"),
        (("measure", "-m", "stand-in-dense-small", "--suite", "smok"), 2, "did you mean 'smoke'?"),
        (("measure", "--repo", "a/b"), 2, "file is ''"),
        (("book", "--size", "huge"), 2, "no size 'huge'"),
        (("run", "fit", "out.ipynb", "-p", "device"), 2, "has no '='"),
        (("run", "fti", "out.ipynb"), 2, "no notebook 'fti'"),
        (("records", "show", "absent.json"), 2, "no record at 'absent.json'"),
        (("records", "check", "absent.json"), 2, "no record at 'absent.json'"),
        (("records", "submit", "absent.json"), 2, "no record at 'absent.json'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_an_error_is_one_line_and_its_code_says_who_acts(arguments: tuple[str, ...], code: int, said: str, run: Run) -> None:
    found, _, err = run(*arguments)
    assert found == code
    assert len(err.splitlines()) == 1, err
    assert err.startswith("nbutils: ")
    assert said in err


@pytest.mark.parametrize(
    "arguments",
    [("no-such-command",), ("fit",), ("fit", "dgx-spark", "llama-3.3-70b"), ("probe", "--seconds", "none"), ("book", "--quickly")],
    ids=" ".join,
)
def test_what_is_no_command_is_misuse(arguments: tuple[str, ...], run: Run) -> None:
    code, _, err = run(*arguments)
    assert code == 2
    assert "Traceback" not in err


def test_the_registry_is_checked_and_a_bad_file_is_one_line(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("check-data")[0] == 0
    data = copy_of_data(tmp_path, monkeypatch)
    assert run("check-data")[0] == 0
    device = data / "devices" / "rtx-4090.yaml"
    device.write_text(device.read_text(encoding="utf-8").replace("id: rtx-4090", "id: rtx-4091").replace("unit: GiB", "unit: GiBB"), encoding="utf-8")
    code, _, err = run("check-data")
    assert code == 1
    first, *_, last = err.splitlines()
    assert first.startswith("data/devices/rtx-4090.yaml: ")
    assert "GiBB" in first
    assert last.startswith("nbutils: ")


def test_a_book_is_not_started_on_bad_data(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = copy_of_data(tmp_path, monkeypatch)
    (data / "devices" / "dgx-spark.yaml").write_text("id: [", encoding="utf-8")
    code, _, err = run("book", "--published")
    assert code == 1
    assert "data/devices/dgx-spark.yaml" in err
    assert len(err.splitlines()) == 1


def test_a_misspelt_suite_stops_a_build_before_anything_is_probed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.engine, "describe", lambda: pytest.fail("it started to probe"))
    code, _, err = run("book", "--suite", "smok")
    assert code == 2
    assert "did you mean 'smoke'?" in err


# ── records ───────────────────────────────────────────────────────────────────────────────────────


def test_records_are_listed_shown_and_checked(run: Run, own_home: Path) -> None:
    assert "no records in" in run("records", "list")[1].replace("\n", " ")
    path = records.write(make_record())
    code, out, _ = run("records", "list")
    assert code == 0
    assert str(path) in out
    assert [row["model"] for row in json.loads(run("records", "list", "--json")[1])] == ["stand-in-dense-small"]
    rows = json.loads(run("records", "show", path, "--json")[1])
    assert [row["phase"] for row in rows] == ["prefill", "decode"]
    assert "stand-in-dense-small" in run("records", "show", path)[1]
    assert run("records", "check", path)[0] == 0


def test_a_damaged_record_does_not_hide_the_others(run: Run, own_home: Path) -> None:
    path = records.write(make_record())
    (path.parent / "00000000T000000Z-cut-00000000.json").write_text("{", encoding="utf-8")
    code, out, err = run("records", "list")
    assert code == 0
    assert str(path) in out
    assert "not valid JSON" in err


def test_a_submitted_record_is_copied_once(run: Run, own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = copy_of_data(tmp_path, monkeypatch)
    path = records.write(make_record())
    code, out, _ = run("records", "submit", path)
    assert code == 0
    assert "copied to data/records/unlisted/" in out
    assert (data / "records" / "unlisted" / path.name).read_bytes() == path.read_bytes()
    code, _, err = run("records", "submit", path)
    assert code == 2
    assert "append-only" in err


# ── running ───────────────────────────────────────────────────────────────────────────────────────


def test_run_executes_a_notebook_with_typed_parameters(run: Run, tmp_path: Path) -> None:
    code, out, err = run("run", "fit", tmp_path / "out.ipynb", "-p", "device=rtx-4090", "-p", "n_ctx=4096")
    assert (code, err) == (0, "")
    assert "does_not_fit" in out
    assert str(tmp_path / "out.ipynb") in out


def test_run_refuses_a_wrong_parameter_before_a_kernel_starts(run: Run, tmp_path: Path) -> None:
    code, _, err = run("run", "fit", tmp_path / "out.ipynb", "-p", "n_ctx=many")
    assert code == 2
    assert "parameter 'n_ctx' is 'many', a str; it takes int" in err
    assert list(tmp_path.glob("*.ipynb")) == []


def started(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from nbutils.cli import main; main()", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def a_child_of(process: subprocess.Popen[str]) -> psutil.Process:
    """The first engine child that ``process`` starts."""
    while process.poll() is None:
        for child in psutil.Process(process.pid).children(recursive=True):
            try:
                if "nbutils._engine_child" in child.cmdline():
                    return child
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.01)
    raise AssertionError(f"ended before it measured: {process.communicate()}")


def ends(child: psutil.Process, within_s: float = 10.0) -> bool:
    """Whether a process is gone, or soon is: one that was just being started notices by itself that nobody listens.

    One that only waits for somebody to ask how it ended is gone, too.
    """
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        try:
            if child.status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


def test_a_measurement_whose_child_is_killed_is_one_line_and_no_record(small_file: Path, own_home: Path) -> None:
    process = started("measure", "-m", str(small_file), "--suite", "smoke", "--cpu")
    a_child_of(process).kill()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    (line,) = err.splitlines()
    assert "ended by SIGKILL" in line
    assert records.list_records() == []


def test_an_interrupted_measurement_is_one_line_and_leaves_nothing_running(small_file: Path, own_home: Path) -> None:
    process = started("measure", "-m", str(small_file), "--suite", "full", "--cpu")
    child = a_child_of(process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "interrupted" in err
    assert ends(child)
    assert records.list_records() == []


@pytest.mark.skipif(os.name == "nt", reason="Windows ends a process without asking it")
def test_a_request_to_end_ends_the_child_too(small_file: Path, own_home: Path) -> None:
    process = started("measure", "-m", str(small_file), "--suite", "full", "--cpu")
    child = a_child_of(process)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert ends(child)
    assert records.list_records() == []


def files_in(home: Path) -> dict[str, bytes]:
    """Everything private but the cache, by its place: records, whole or half written, and notes of runs underway."""
    found = {folder: sorted((home / folder).rglob("*")) for folder in ("records", "underway")}
    return {path.relative_to(home).as_posix(): path.read_bytes() for paths_ in found.values() for path in paths_ if path.is_file()}


def test_ten_kills_at_random_moments_leave_earlier_records_whole_and_say_how_to_go_on(
    small_file: Path, own_home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Half of them hit llama.cpp's process, whose parent must say so; half the parent, for which the next run must speak."""
    first = make_record()
    records.write(first)
    before = files_in(own_home)
    draw = random.Random(20261120)
    victims = ["child", "parent"] * 5
    draw.shuffle(victims)
    arguments = ["measure", "-m", str(small_file), "-p", "64", "-n", "32", "-r", "20", "-t", "1", "--cpu"]
    again = shlex.join(["nbutils", *arguments])
    # Asked before, so that of the children only those are left without which nothing can be measured.
    engine_settings = measure.settings_of(measure.Knobs(), use_gpu=False, n_ctx=64)
    assert measure._predicted(small_file, SuitePoint(kind="prefill", n_tokens=64), engine_settings)[0]
    owed = False
    for victim in victims:
        process = started(*arguments)
        note = own_home / "underway" / f"{process.pid}.json"
        while not note.is_file() and process.poll() is None:
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 1.5))
        if victim == "child":
            a_child_of(process).kill()
        else:
            orphans = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            assert all(ends(child) for child in orphans)
        _, err = process.communicate(timeout=60)
        lines = err.splitlines()
        if owed:
            told = lines.pop(0)
            assert told.startswith("nbutils: an earlier run was cut off")
            assert told.endswith(f"every record before it is whole; to go on, run it again: {again}")
        if victim == "child":
            assert process.returncode == 1
            (line,) = lines
            assert line.startswith("nbutils: llama.cpp's process was ended by SIGKILL")
            assert "nothing was recorded" in line
        else:
            assert lines == []
        owed = victim == "parent"
        left = files_in(own_home)
        assert (left.pop(f"underway/{process.pid}.json", None) is not None) == owed
        assert left == before, "the earlier record to the last byte; no other, whole or half, and no note of what ended in order"
    assert [records.read_any(path) for path in records.list_records()] == [first]
    capfd.readouterr()
    with records.underway():
        pass
    assert (again in capfd.readouterr().err) == owed
    assert files_in(own_home) == before


def test_a_run_killed_between_writing_its_record_and_naming_it_leaves_no_record(own_home: Path, run: Run) -> None:
    """The one moment at which half a file lies beside the whole ones: nobody takes it for a record, and it is cleared away."""
    code = (
        "import os, pathlib, signal, sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from helpers import make_record\n"
        "from nbutils import records\n"
        "pathlib.Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGTERM)\n"
        "signal.signal(signal.SIGTERM, signal.SIG_DFL)\n"
        "records.write(make_record())\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent)], check=False)
    assert done.returncode != 0
    (half,) = files_in(own_home)
    assert half.endswith(".part")
    assert records.list_records() == []
    assert "no records in" in run("records", "list")[1]
    os.utime(own_home / half, (time.time() - 3600,) * 2)
    with records.underway():
        pass
    assert files_in(own_home) == {}


def test_stand_ins_are_made_on_their_own_and_listed_as_json() -> None:
    said = subprocess.run([sys.executable, "-c", MAIN, "stand-ins", "--small", "--json"], capture_output=True, text=True, check=True)
    rows = json.loads(said.stdout)
    assert len(rows) == 6
    assert all(Path(row["path"]).stat().st_size == row["bytes"] for row in rows)
    assert sum(row["bytes"] for row in rows) < 100e6


def test_two_sizes_at_once_are_misuse() -> None:
    said = subprocess.run(
        [sys.executable, "-c", MAIN, "book", "--small", "--size", "wide"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 2
    assert "give one" in said.stderr


def test_a_run_that_names_a_missing_record_is_a_problem_of_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    shutil.copytree(paths.data_dir(), data)
    (missing,) = registry.load_run("dev-machine-sustain").records
    (data / "records" / missing).unlink()
    said = subprocess.run(
        [sys.executable, "-c", MAIN, "check-data"], capture_output=True, text=True, check=False, env=os.environ | {"NBUTILS_DATA": str(data)}
    )
    assert said.returncode == 1
    problem, total = said.stderr.splitlines()
    assert problem == f"data/runs/dev-machine-sustain.yaml: records: no file {missing!r} in data/records"
    assert total == "nbutils: 1 problem in data/"


def test_an_output_that_cannot_be_written_is_misuse(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = subprocess.run(
        [sys.executable, "-c", MAIN, "run", "fit", str(tmp_path / "file" / "out.ipynb")], capture_output=True, text=True, check=False
    )
    assert (said.returncode, "Traceback" in said.stderr) == (2, False)
    assert "cannot be written" in said.stderr
