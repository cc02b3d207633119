"""Cells run once for everything they depend on, are kept whole, and survive whatever happens to who runs them."""

from __future__ import annotations

import errno
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import nbformat
import psutil
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from helpers import make_record
from killed_sweep import kill_a_sweep
from nbutils import records, sweep
from nbutils.errors import DataError, UnknownParameter, UsageError
from nbutils.sweep import Cell, CellFailed, Local, Store, Watch, digest, execute, run_cell

#: Reads one file of the registry, lists a folder of it, and leaves a record where it is asked to.
CODE = """
import json
from nbutils import paths
if n < 0:
    from nbutils.errors import EngineError
    raise EngineError(f"{n} is less than nothing")
if n == 13:
    import os
    os._exit(1)
text = (paths.data_dir() / "devices" / "read.yaml").read_text(encoding="utf-8")
names = sorted(p.name for p in (paths.data_dir() / "models").iterdir())
if leaves_record:
    from nbutils import records
    from nbutils.specs import Record
    records.write(Record.model_validate(json.load(open("record.json"))))
if n == 7:
    from nbutils.errors import EngineError
    raise EngineError("nothing can be drawn of 7")
print("n is", n, text, *names)
"""


def write_notebook(path: Path, code: str = CODE) -> Path:
    cell = nbformat.v4.new_code_cell
    made = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell("# Any subject\n\nA sentence."),
            cell("n: int = 1  # how many\nleaves_record: bool = False", metadata={"tags": ["parameters", "remove-input"]}),
            cell(code),
        ],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    )
    nbformat.write(made, path)
    return path


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small notebook with a registry of three files beside it, and what two runs of it left: ``plain``, and ``measured`` with a record."""
    folder = tmp_path_factory.mktemp("executed")
    for name in ("devices/read.yaml", "devices/unread.yaml", "models/one.yaml"):
        (folder / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "data" / name).write_text(name, encoding="utf-8")
    (folder / "record.json").write_text(make_record().model_dump_json(), encoding="utf-8")
    notebook = write_notebook(folder / "small.ipynb")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("NBUTILS_DATA", str(folder / "data"))
        for name, parameters in (("plain", {"n": 3}), ("measured", {"leaves_record": True})):
            (folder / name).mkdir()
            execute(Cell(notebook=str(notebook), output="page.ipynb", parameters=parameters, title="Three"), folder / name)
    return folder


@pytest.fixture
def small(executed: Path, tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> Cell:
    """A cell of a copy of that notebook, with a copy of the registry and a home of its own."""
    shutil.copytree(executed / "data", tmp_path / "data")
    for name in ("small.ipynb", "record.json"):
        shutil.copy2(executed / name, tmp_path / name)
    monkeypatch.setenv("NBUTILS_DATA", str(tmp_path / "data"))
    return Cell(notebook=str(tmp_path / "small.ipynb"), output=str(tmp_path / "pages" / "page.ipynb"), parameters={"n": 3}, title="Three")


@pytest.fixture
def measuring(small: Cell) -> Cell:
    return replace(small, parameters={"leaves_record": True})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store("tested", tmp_path / "store")


def staged(cell: Cell, store: Store, executed: Path) -> Path:
    """What a run of the cell leaves, without running it again."""
    folder = store.staging(cell)
    shutil.copytree(executed / ("measured" if "leaves_record" in cell.parameters else "plain"), folder, dirs_exist_ok=True)
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    (folder / "result.json").write_text(json.dumps(result | {"cell": asdict(cell)}), encoding="utf-8")
    return folder


def done(cell: Cell, store: Store, executed: Path) -> None:
    assert store.commit(cell, staged(cell, store, executed)) == ""


def ran(cell: Cell, store: Store) -> str:
    """Run and commit one cell in this process; returns what went wrong."""
    folder = store.staging(cell)
    execute(cell, folder)
    return store.commit(cell, folder)


def listing(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def reads_of(store: Store) -> dict[str, str]:
    (result,) = store.folder.glob("done/*/result.json")
    found: dict[str, str] = json.loads(result.read_text(encoding="utf-8"))["reads"]
    return found


# ── what a cell depends on ────────────────────────────────────────────────────────────────────────


def test_a_cell_runs_again_for_what_it_read_and_for_nothing_else(small: Cell, store: Store, executed: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert store.why(small) == ["new"]
    done(small, store, executed)
    assert store.why(small) == []
    (data / "devices" / "unread.yaml").write_text("another figure", encoding="utf-8")
    (data / "devices" / "new.yaml").touch()
    assert store.why(small) == [], "it opened one file of that folder and never listed it"
    (data / "models" / "two.yaml").touch()
    assert store.why(small) == ["names in data/models/ changed"]
    (data / "models" / "two.yaml").unlink()
    (data / "devices" / "read.yaml").write_text("another figure", encoding="utf-8")
    assert store.why(small) == ["data/devices/read.yaml changed"]
    (data / "devices" / "read.yaml").unlink()
    assert store.why(small) == ["data/devices/read.yaml changed"], "or is gone"


def test_a_cell_reads_the_modules_that_its_kernel_imports(small: Cell, store: Store, executed: Path) -> None:
    done(small, store, executed)
    code = {name for name in reads_of(store) if name.startswith("code/")}
    assert {"code/paths.py", "code/errors.py", "code/__init__.py"} <= code
    assert not code & {"code/frames.py", "code/sweep.py"}


def test_a_cell_that_starts_a_child_may_read_every_module(small: Cell, store: Store) -> None:
    write_notebook(Path(small.notebook), "import subprocess, sys\nsubprocess.run([sys.executable, '-c', ''], check=True)")
    ran(small, store)
    assert {"code/frames.py", "code/sweep.py", "code/_engine_child.py"} <= reads_of(store).keys()


def test_what_changed_while_it_ran_is_not_taken_for_what_it_read(small: Cell, store: Store, tmp_path: Path) -> None:
    write_notebook(Path(small.notebook), CODE + "\nopen(paths.data_dir() / 'devices' / 'read.yaml', 'w').write(text)")
    ran(small, store)
    assert store.why(small) == ["data/devices/read.yaml changed"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"parameters": {"n": 4}}, ["parameter n: 3 → 4"]),
        ({"parameters": {"n": 3, "leaves_record": True}}, ["parameter leaves_record: None → True"]),
        ({"title": "Four"}, ["title: 'Three' → 'Four'"]),
        ({"depends": {"this machine": "another"}}, ["this machine changed"]),
    ],
)
def test_a_changed_cell_says_what_changed(change: dict[str, Any], said: list[str], small: Cell, store: Store, executed: Path) -> None:
    done(small, store, executed)
    assert store.why(replace(small, **change)) == said


def test_a_changed_notebook_and_another_library_are_reasons(small: Cell, store: Store, executed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done(small, store, executed)
    Path(small.notebook).write_text(Path(small.notebook).read_text(encoding="utf-8").replace("A sentence", "Another"), encoding="utf-8")
    others = sweep.versions() | {"numpy": "0.1"}
    monkeypatch.setattr(sweep, "versions", lambda: others)
    notebook, library = store.why(small)
    assert notebook.startswith("notebook changed")
    assert library.startswith("numpy: ")
    assert library.endswith("→ 0.1")


def test_a_measurement_is_not_repeated_for_a_drawing_or_a_figure(
    measuring: Cell, store: Store, executed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done(measuring, store, executed)
    (tmp_path / "data" / "devices" / "read.yaml").write_text("another figure", encoding="utf-8")
    others = sweep.versions() | {"numpy": "0.1"}
    monkeypatch.setattr(sweep, "versions", lambda: others)
    assert store.why(measuring) == []
    assert store.why(replace(measuring, depends={"its build of llama.cpp": "another"})) == ["its build of llama.cpp changed"]
    (record,) = store.records(measuring)
    record.unlink()
    assert store.why(measuring) == [f"record unlisted/{record.name} is gone"]


def test_a_page_that_is_gone_is_put_back_without_running(small: Cell, store: Store, executed: Path) -> None:
    done(small, store, executed)
    page = small.target.read_bytes()
    small.target.unlink()
    assert store.why(small) == []
    store.restore(small)
    assert small.target.read_bytes() == page


def test_a_digest_sees_contents_names_and_new_files_but_not_compiled_ones(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "__pycache__").mkdir(parents=True)
    (folder / "a.yaml").write_text("1", encoding="utf-8")
    seen = [digest([folder])]
    (folder / "a.yaml").write_text("22", encoding="utf-8")
    seen.append(digest([folder]))
    (folder / "a.yaml").rename(folder / "b.yaml")
    seen.append(digest([folder]))
    (folder / "c.yaml").touch()
    seen.append(digest([folder]))
    assert len(set(seen)) == 4
    (folder / "__pycache__" / "x.pyc").write_text("x", encoding="utf-8")
    assert digest([folder]) == seen[-1]


# ── running one ───────────────────────────────────────────────────────────────────────────────────


def test_a_page_has_its_own_title_no_parameters_shown_and_no_run_times(small: Cell) -> None:
    heard = io.StringIO()
    run_cell(small, heard)
    page = nbformat.read(small.target, as_version=4)
    assert page.cells[0].source == "# Three\n\nA sentence."
    assert page.cells[-1].outputs[0].text == "n is 3 devices/read.yaml one.yaml\n"
    injected = [c for c in page.cells if "injected-parameters" in c.metadata.tags]
    assert [c.metadata.tags for c in injected] == [["injected-parameters", "remove-input"]]
    assert "papermill" not in page.metadata
    assert all("papermill" not in c.metadata for c in page.cells)
    assert "n is 3" in heard.getvalue()
    assert listing(small.target.parent) == ["page.ipynb"]


def test_a_failing_cell_is_one_line_and_keeps_the_run_beside(small: Cell) -> None:
    with pytest.raises(CellFailed) as caught:
        run_cell(replace(small, parameters={"n": -1}))
    assert str(caught.value) == "small.ipynb: EngineError: -1 is less than nothing (the run is kept in page.failed.ipynb)"
    assert listing(small.target.parent) == ["page.failed.ipynb"]
    kept = nbformat.read(small.failed, as_version=4)
    errors = [o for c in kept.cells if c.cell_type == "code" for o in c.outputs if o.output_type == "error"]
    assert [o.traceback for o in errors] == [["EngineError: -1 is less than nothing"]], "one line, no traceback"
    run_cell(small)
    assert listing(small.target.parent) == ["page.ipynb"], "a success removes the failed run"


def test_an_earlier_page_survives_a_failing_run(small: Cell) -> None:
    small.target.parent.mkdir()
    small.target.write_text("the page of yesterday", encoding="utf-8")
    with pytest.raises(CellFailed):
        run_cell(replace(small, parameters={"n": -1}))
    assert small.target.read_text(encoding="utf-8") == "the page of yesterday"


def test_the_output_appears_by_rename(small: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who reads the folder while a cell runs sees no half-written notebook."""
    seen: list[bool] = []
    real = os.replace

    def watched(source: object, target: object) -> None:
        seen.append(small.target.exists())
        real(source, target)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "replace", watched)
    run_cell(small)
    assert seen
    assert not any(seen)
    assert small.target.is_file()


def test_an_unknown_parameter_stops_before_a_kernel_starts(small: Cell) -> None:
    with pytest.raises(UnknownParameter, match="no parameter 'm'"):
        run_cell(replace(small, parameters={"m": 1}))
    assert not small.target.parent.exists()


@pytest.mark.parametrize(("content", "said"), [(None, "no notebook"), ("not json", "is not a notebook"), ("{}", "is not a notebook")])
def test_what_is_no_notebook_is_refused(content: str | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "x.ipynb"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=said):
        run_cell(Cell(notebook=str(path), output=str(tmp_path / "out.ipynb")))


def test_a_failed_cell_of_a_sweep_keeps_its_notebook_and_is_tried_again(small: Cell, store: Store) -> None:
    assert (
        ran(replace(small, parameters={"n": -1}), store) == "small.ipynb: EngineError: -1 is less than nothing (the run is kept in page.failed.ipynb)"
    )
    assert listing(small.target.parent) == ["page.failed.ipynb"]
    assert store.why(small) == ["failed before"]
    assert listing(store.folder / "staging") == []


def test_a_kernel_that_dies_is_a_failed_cell(small: Cell, store: Store) -> None:
    problem = ran(replace(small, parameters={"n": 13}), store)
    assert problem.startswith("small.ipynb: its kernel died")
    assert small.failed.is_file()


def test_a_record_goes_where_the_sweep_keeps_it_and_then_to_the_user(measuring: Cell, store: Store) -> None:
    folder = store.staging(measuring)
    execute(measuring, folder)
    assert records.list_records() == []
    assert store.commit(measuring, folder) == ""
    assert [records.read(path) for path in records.list_records()] == [make_record()]
    assert store.records(measuring) == records.list_records()


def test_what_a_cell_measured_before_it_failed_is_kept(measuring: Cell, store: Store) -> None:
    cell = replace(measuring, parameters={"n": 7, "leaves_record": True})
    problem = ran(cell, store)
    (path,) = records.list_records()
    assert records.read(path) == make_record()
    assert problem.endswith(
        f"nothing can be drawn of 7 (the run is kept in page.failed.ipynb); it had measured, and its record is kept: {path.parent.name}/{path.name}"
    )
    assert store.why(cell) == ["failed before"]


def test_what_a_cell_measured_before_it_failed_outlives_its_sweep(measuring: Cell, store: Store) -> None:
    execute(replace(measuring, parameters={"n": 7, "leaves_record": True}), store.staging(measuring))
    with store.lock():
        assert [records.read(path) for path in records.list_records()] == [make_record()]


def test_lines_of_progress_are_handed_on_whole_and_results_are_not() -> None:
    heard: list[str] = []
    lines = sweep._Lines(heard.append)
    for part in ("… load", "ing\nverdict: fits\n… pp32", ": warm-up\n"):
        lines.write(part)
    assert heard == ["loading", "pp32: warm-up"]


values = st.one_of(
    st.booleans(),
    st.integers(-(10**6), 10**6),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
    st.lists(st.text(max_size=5), max_size=2),
)


@given(parameters=st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), values, max_size=4))
def test_the_command_that_runs_a_cell_again_names_its_parameters(parameters: dict[str, Any]) -> None:
    """As ``nbutils run`` reads them: NAME=VALUE, where the value is YAML and nothing is an empty string."""
    cell = Cell(notebook="notebooks/fit.ipynb", output="out.ipynb", parameters=parameters)
    nbutils, run, notebook, _, *given = shlex.split(sweep.rerun(cell))
    assert [nbutils, run, notebook] == ["nbutils", "run", "fit"]
    pairs = [text.partition("=") for text in given[1::2]]
    assert {name: yaml.safe_load(text) if text else "" for name, _, text in pairs} == parameters


# ── a store ───────────────────────────────────────────────────────────────────────────────────────


class Pulled(BaseException):
    """The plug."""


@pytest.mark.parametrize("delivered", [0, 1, 2])
def test_what_was_not_delivered_when_the_plug_was_pulled_is_delivered_at_the_next_start(
    delivered: int, measuring: Cell, store: Store, executed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the record, between record and page, after both."""
    real, calls = sweep._deliver_file, []
    folder = staged(measuring, store, executed)

    def pulled(source: Path, target: Path) -> None:
        if len(calls) == delivered:
            raise Pulled
        calls.append(target)
        real(source, target)
        if delivered == 2 == len(calls):
            raise Pulled

    monkeypatch.setattr(sweep, "_deliver_file", pulled)
    with pytest.raises(Pulled):
        store.commit(measuring, folder)
    monkeypatch.setattr(sweep, "_deliver_file", real)
    with store.lock():
        assert store.why(measuring) == []
    assert [records.read(path) for path in records.list_records()] == [make_record()]
    assert measuring.target.is_file()


def test_a_full_disk_is_a_line_and_the_cell_is_kept(measuring: Cell, store: Store, executed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Done, but neither record nor page could be put in their places: both are, once there is room."""

    class Finished:
        def submit(self, cell: Cell, watch: Watch) -> Future[Path]:
            future: Future[Path] = Future()
            future.set_result(staged(cell, store, executed))
            return future

        def close(self) -> None: ...

    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(sweep, "_deliver_file", full)
        with store.lock():
            summary = sweep.run([measuring], store, Finished(), Watch())
        ((_, problem),) = summary.failed
        assert problem == "Three: cannot be kept: No space left on device; free some space, then go on"
        with pytest.raises(DataError, match="what an earlier sweep made cannot be put in its place: No space left on device"), store.lock():
            pass
    with store.lock():
        assert store.why(measuring) == []
    assert [records.read(path) for path in records.list_records()] == [make_record()]
    assert measuring.target.is_file()


def test_a_cell_that_was_done_when_its_sweep_was_killed_is_kept_and_another_is_not(small: Cell, store: Store, executed: Path) -> None:
    staged(small, store, executed)
    half = store.staging(replace(small, output="pages/other.ipynb"))
    (half / "executed.ipynb").write_text("{", encoding="utf-8")
    with store.lock():
        assert store.why(small) == []
    assert small.target.is_file()
    assert listing(store.folder / "staging") == []


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"cell": 3}', '{"cell": {}, "reads": {}}'])
def test_a_damaged_result_costs_a_run_and_nothing_else(content: str, small: Cell, store: Store, executed: Path) -> None:
    done(small, store, executed)
    (result,) = store.folder.glob("done/*/result.json")
    result.write_text(content, encoding="utf-8")
    with store.lock():
        assert store.why(small) == ["new"]
        done(small, store, executed)
        assert store.why(small) == []


def test_a_second_sweep_of_the_same_is_refused_in_one_line(store: Store) -> None:
    """By another process; what a dead one left, or one whose number another has by now, is no hindrance."""
    notes = store.folder / "running"
    notes.mkdir(parents=True)
    parent = psutil.Process(os.getppid())
    (notes / "1.json").write_text(json.dumps({"pid": parent.pid, "started": parent.create_time() - 100}), encoding="utf-8")
    (notes / "2.json").write_text("cut o", encoding="utf-8")
    with store.lock():
        assert listing(notes) == [f"{os.getpid()}.json"]
    (notes / f"{parent.pid}.json").write_text(json.dumps({"pid": parent.pid, "started": parent.create_time()}), encoding="utf-8")
    with pytest.raises(UsageError, match=f"a sweep of 'tested' is under way in process {parent.pid}; wait until it is done, or end it"), store.lock():
        pass
    assert listing(notes) == [f"{parent.pid}.json"]


# ── running many ──────────────────────────────────────────────────────────────────────────────────


class Heard(Watch):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def started(self, cell: Cell) -> None:
        self.lines.append(f"started {cell.name}")

    def told(self, cell: Cell, line: str) -> None:
        self.lines.append(f"told {line}")

    def ended(self, cell: Cell, problem: str) -> None:
        self.lines.append(f"ended {cell.name} {problem}".strip())


def test_one_cell_that_fails_does_not_stop_the_others(small: Cell, store: Store) -> None:
    cells = [replace(small, output=small.output.replace("page.", f"{n}."), parameters={"n": n}, title=f"cell {n}") for n in (1, -1, 2)]
    heard = Heard()
    with store.lock():
        summary = sweep.run(cells, store, Local(store, 2), heard)
    assert summary.done == 2
    assert [(cell.title, problem) for cell, problem in summary.failed] == [
        ("cell -1", "small.ipynb: EngineError: -1 is less than nothing (the run is kept in -1.failed.ipynb)")
    ]
    assert listing(small.target.parent) == ["-1.failed.ipynb", "1.ipynb", "2.ipynb"]
    assert {line for line in heard.lines if line.startswith("started")} == {"started cell 1", "started cell -1", "started cell 2"}
    assert [cell.title for cell, _ in sweep.unfinished(cells, store)] == ["cell -1"]


class Pretended:
    """Stands in for a worker process; says when it ran what."""

    spans: ClassVar[list[tuple[bool, float, float]]] = []
    goes_at: ClassVar[set[int]] = set()
    made = 0

    def __init__(self) -> None:
        type(self).made += 1
        self._number = self.made

    def run(self, cell: Cell, folder: Path, watch: Watch) -> bool:
        began_s = time.perf_counter()
        time.sleep(0.03)
        self.spans.append((cell.measures, began_s, time.perf_counter()))
        return self._number not in self.goes_at

    def end(self) -> None:
        pass


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> type[Pretended]:
    fresh = type("Fresh", (Pretended,), {"spans": [], "goes_at": set(), "made": 0})
    monkeypatch.setattr(sweep, "_Worker", fresh)
    return fresh


def futures(cells: list[Cell], store: Store, jobs: int) -> list[Future[Path]]:
    local = Local(store, jobs)
    submitted = [local.submit(cell, Watch()) for cell in cells]
    for future in submitted:
        future.exception(timeout=10)
    local.close()
    return submitted


def test_a_measurement_has_the_machine_for_itself_and_pages_share_it(pretended: type[Pretended], store: Store) -> None:
    cells = [Cell(notebook="n.ipynb", output=f"{n}.ipynb", measures=n % 3 == 0) for n in range(12)]
    futures(cells, store, 4)
    assert len(pretended.spans) == 12
    overlap = [(a[0] or b[0]) for i, a in enumerate(pretended.spans) for b in pretended.spans[:i] if a[1] < b[2] and b[1] < a[2]]
    assert overlap, "pages run side by side"
    assert not any(overlap), "and nothing beside a measurement"


def test_a_cell_whose_worker_goes_is_run_once_more(pretended: type[Pretended], store: Store) -> None:
    cell = Cell(notebook="n.ipynb", output="one.ipynb")
    pretended.goes_at = {1}
    (future,) = futures([cell], store, 1)
    assert future.result().parent == store.folder / "staging"
    pretended.goes_at = {3, 4}
    (failed, after) = futures([cell, replace(cell, output="two.ipynb")], store, 1)
    with pytest.raises(CellFailed, match=r"n\.ipynb: the process that ran it was ended, twice"):
        failed.result()
    assert after.result().is_dir()


def test_no_process_is_left_when_a_sweep_is_interrupted(small: Cell, tmp_path: Path) -> None:
    """The parent is asked to end while a kernel runs: worker and kernel go with it, and the next start finds nothing to wait for."""
    write_notebook(Path(small.notebook), "import time\ntime.sleep(60)")
    code = (
        "import json, signal, sys\nfrom pathlib import Path\nfrom nbutils import sweep\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "store, cell = sweep.Store('tested', Path(sys.argv[1])), sweep.Cell(**json.loads(sys.argv[2]))\n"
        "with store.lock():\n    sweep.run([cell], store, sweep.Local(store, 1), sweep.Watch())\n"
    )
    cell = json.dumps({"notebook": small.notebook, "output": small.output, "parameters": {}})
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "store"), cell])
    children = eventually(lambda: kernel_of(parent.pid))
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(timeout=20) == 143
    gone, alive = psutil.wait_procs(children, timeout=10)
    assert len(gone) >= 2
    assert not alive


def kernel_of(pid: int) -> list[psutil.Process]:
    """A process's children, once a kernel is among them that has begun to note what it reads."""
    found = psutil.Process(pid).children(recursive=True)
    return found if any("reads.txt" in " ".join(child.cmdline()) for child in found) else []


def eventually(look: Callable[[], list[psutil.Process]]) -> list[psutil.Process]:
    for _ in range(200):
        try:
            if found := look():
                return found
        except psutil.Error:
            pass
        time.sleep(0.1)
    raise AssertionError("it never came to it")


def test_a_worker_ends_its_kernel_when_its_parent_is_gone(small: Cell, store: Store) -> None:
    write_notebook(Path(small.notebook), "import time\ntime.sleep(60)")
    worker, folder = sweep._Worker(), store.staging(small)
    waiting = threading.Thread(target=worker.run, args=(small, folder, Watch()), daemon=True)
    waiting.start()
    children = eventually(lambda: kernel_of(worker._process.pid))
    worker._input.close()
    assert worker._process.wait(timeout=10) == 0
    assert not psutil.wait_procs(children, timeout=10)[1]
    waiting.join(timeout=10)
    worker.end()


def test_random_kills_lose_no_finished_cell_and_repeat_none(tmp_path: Path) -> None:
    """Parent, worker and kernel; ``tests/killed_sweep.py`` is the same at length."""
    n_kills = int(os.environ.get("NBUTILS_TEST_KILLS", "5"))
    report = kill_a_sweep(tmp_path, n_cells=3 * n_kills, n_kills=n_kills)
    assert report.kills.total() == n_kills
    assert (report.lost, report.twice, report.missing) == ([], [], [])
