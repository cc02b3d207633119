"""A sweep on a fleet: a real scheduler and real workers as processes on loopback, of which some die, differ or come late.

Everything runs in a copy of the project, because the copies on a fleet's machines must be the same, and a checkout in which somebody works is not.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest

from helpers import make_record
from loopback_fleet import Fleet, copy_project, eventually
from nbutils import cluster, records
from nbutils.cluster import Tls, differences, unpack
from nbutils.errors import DataError, MissingExtra, NbutilsError, UsageError
from nbutils.sweep import Cell, CellFailed, Store, Watch

#: A notebook that says when it starts and where, takes its time, and leaves a record of its own.
TINY = """
import json, os, time
from pathlib import Path
from nbutils import records
from nbutils.specs import Record

with Path(seen).open("a") as file:
    file.write(f"{n} {os.getpid()} {os.getppid()}\\n")
time.sleep(take_s)
fields = json.loads(Path("template.json").read_text(encoding="utf-8"))
fields["settings"]["seed"] = n
path = records.write(Record.model_validate(fields)) if n else None
"""
SWEEP = """
id: {id}
name: Of the tests
machines: {machines}
cells:
  - notebook: tiny
    measures: {measures}
    parameters: {{n: {n}, take_s: {take_s}, seen: "{seen}"}}
    output: "_build/{id}/{{n}}{suffix}.ipynb"
"""


#: Makes a worker one with another papermill.
OLDER = """
from importlib.metadata import version
from nbutils import cluster

cluster.version = lambda name: "older" if name == "papermill" else version(name)
"""


def write_sweep(fleet: Fleet, sweep_id: str, *, n: list[int], machines: str = "[]", measures: bool = False, take_s: float = 0.3) -> Path:
    """A sweep of the tiny notebook; returns the file in which its cells say that they run."""
    seen = fleet.root / f"{sweep_id}.seen"
    suffix = "-{machine}" if machines != "[]" else ""
    text = SWEEP.format(id=sweep_id, machines=machines, measures=str(measures).lower(), n=n, take_s=take_s, seen=seen.as_posix(), suffix=suffix)
    (fleet.root / "data" / "suites" / f"{sweep_id}.yaml").write_text(text, encoding="utf-8")
    return seen


def begin(fleet: Fleet, sweep_id: str, *options: str) -> subprocess.Popen[str]:
    return fleet.nbutils("sweep", sweep_id, "--scheduler", fleet.address, "--json", *options)


def ended(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any], str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, json.loads(out or "{}"), err


def delivered(fleet: Fleet) -> Counter[int]:
    """How many records were delivered, by the seed that the cell gave its own."""
    return Counter(records.read(path).settings.seed for path in (fleet.root / "homes" / "parent" / "records").glob("*/*.json"))


def ran(seen: Path) -> list[tuple[int, int, int]]:
    """What ran so far: n, the kernel, its worker."""
    lines = seen.read_text(encoding="utf-8").splitlines() if seen.exists() else []
    return [(int(n), int(kernel), int(worker)) for n, kernel, worker in map(str.split, lines)]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project whose only notebook is the tiny one."""
    root = tmp_path_factory.mktemp("project")
    copy_project(root)
    code = nbformat.v4.new_code_cell
    parameters = code("n: int = 0\ntake_s: float = 0.0\nseen: str = ''", metadata={"tags": ["parameters"]})
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    (root / "notebooks").mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=[parameters, code(TINY)], metadata=kernel), root / "notebooks" / "tiny.ipynb")
    (root / "notebooks" / "template.json").write_text(make_record().model_dump_json(), encoding="utf-8")
    return root


@pytest.fixture
def fleet(project: Path) -> Iterator[Fleet]:
    """A scheduler without workers."""
    for folder in ("homes", "_build"):
        shutil.rmtree(project / folder, ignore_errors=True)
    made = Fleet(project)
    try:
        made.scheduler()
        yield made
    finally:
        made.end()


# ── a fleet ───────────────────────────────────────────────────────────────────────────────────────


def test_a_cell_lost_with_its_worker_runs_again_and_is_recorded_once_and_a_worker_that_differs_gets_none(fleet: Fleet, tmp_path: Path) -> None:
    older = tmp_path / "older.py"
    older.write_text(OLDER, encoding="utf-8")
    for name in ("one", "two", "three"):
        fleet.worker(name)
    fleet.worker("other", preload=older)
    seen = write_sweep(fleet, "killed", n=list(range(1, 9)), take_s=0.6)
    sweeping = begin(fleet, "killed")
    (n, _, pid) = eventually(lambda: ran(seen))[0]
    fleet.kill(fleet.name_of(pid))
    code, said, told = ended(sweeping)
    assert (code, said["done"], said["failed"]) == (0, 8, [])
    times = Counter(m for m, _, _ in ran(seen))
    assert times[n] == 2, "run again elsewhere"
    assert sum(times.values()) == 9, "and nothing else was"
    assert delivered(fleet) == dict.fromkeys(range(1, 9), 1)
    assert "other" not in {fleet.name_of(pid) for _, _, pid in ran(seen)}
    assert re.search(r"worker other \(tcp://127\.0\.0\.1:\d+\) is refused: it differs in papermill \S+ here and older there\n", told)
    assert "went away; running it again" in told
    assert len(list((fleet.root / "_build" / "killed").glob("*.ipynb"))) == 8, "pages came back as well"


def test_cells_wait_for_their_device_and_one_at_a_time_run_on_it(fleet: Fleet) -> None:
    fleet.worker("spark", "dgx-spark")
    seen = write_sweep(fleet, "devices", n=[1, 2], machines="[dgx-spark, strix-halo]", measures=True)
    sweeping = begin(fleet, "devices", "--wait", "40")
    assert sweeping.stderr is not None
    line = sweeping.stderr.readline()
    assert re.match(r"no worker announces 'strix-halo', for 2 cells.* --resources \"strix-halo=1\"'; waiting 40 s", line)
    assert not ran(seen), "nothing is sent before every cell has a place"
    fleet.worker("late", "strix-halo")
    code, said, _ = ended(sweeping)
    assert (code, said["done"]) == (0, 4)
    each = {(fleet.name_of(pid), n) for n, _, pid in ran(seen)}
    assert each == {(name, n) for name in ("spark", "late") for n in (1, 2)}, "each device ran each of its cells"


def test_a_device_that_nobody_announces_stops_the_sweep_before_it_starts(fleet: Fleet) -> None:
    fleet.worker("spark", "dgx-sprak")
    seen = write_sweep(fleet, "nobody", n=[1], machines="[dgx-spark]")
    code, _, told = ended(begin(fleet, "nobody", "--wait", "3"))
    assert (code, ran(seen)) == (1, [])
    last = told.splitlines()[-1]
    assert last.startswith("nbutils: no worker announces 'dgx-spark', for 1 cell; did you mean 'dgx-sprak'?; start one with 'dask worker tcp://")


def test_a_scheduler_that_dies_ends_the_sweep_in_one_line_and_what_is_done_is_kept(fleet: Fleet) -> None:
    fleet.worker("one")
    seen = write_sweep(fleet, "dies", n=[1, 2, 3, 4], take_s=0.2)
    sweeping = begin(fleet, "dies")
    eventually(lambda: len(ran(seen)) == 2 and delivered(fleet)[1])
    fleet.kill("scheduler")
    code, _, told = ended(sweeping)
    assert code == 1
    assert told.splitlines()[-1] == f"nbutils: the scheduler at {fleet.address} is gone; finished cells are kept, the same command goes on"
    assert "Traceback" not in told
    done = delivered(fleet)
    assert done[1] == 1
    # A new scheduler and a new worker: the same command goes on.
    fleet.scheduler()
    fleet.worker("new")
    code, said, _ = ended(begin(fleet, "dies"))
    assert (code, said["done"] + said["kept"], said["kept"]) == (0, 4, sum(done.values()))
    assert delivered(fleet) == dict.fromkeys(range(1, 5), 1)


# ── who gets what, with a scheduler that does as a test says ──────────────────────────────────────


class Killed(Exception):
    """Dask's ``KilledWorker``."""


class Scripted:
    """Stands in for Dask and its client: workers by address, and what becomes of a cell on one of them."""

    KilledWorker = Killed

    def __init__(self) -> None:
        self.status, self.report = "running", cluster.report()
        self.there: dict[str, dict[str, Any]] = {}
        self.ran: list[tuple[str, str]] = []
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.told: Callable[[Any], None] = print
        self.scheduler = self

    def Client(self, *_: object, **__: object) -> Scripted:
        return self

    def __await__(self) -> Generator[Any, Any, Scripted]:
        yield from asyncio.sleep(0).__await__()
        return self

    def join(self, address: str, n_threads: int = 1, **resources: float) -> None:
        about = {"name": address, "status": "running", "nthreads": n_threads}
        self.there = self.there | {address: about | {"resources": {d.replace("_", "-"): n for d, n in resources.items()}}}

    def leave(self, address: str) -> None:
        self.there = {a: about for a, about in self.there.items() if a != address}

    async def identity(self) -> dict[str, Any]:
        return {"workers": self.there}

    async def run(self, function: object, *_: object, workers: list[str], **__: object) -> dict[str, Any]:
        return dict.fromkeys(workers, self.report) if function is cluster.report else {}

    async def run_on_scheduler(self, function: Callable[[], object]) -> object:
        return function()

    def subscribe_topic(self, _: str, handler: Callable[[Any], None]) -> None:
        self.told = handler

    async def close(self) -> None:
        self.status = "closed"

    def submit(self, _: object, job: str, fields: dict[str, Any], *__: object, workers: list[str], resources: object, **___: object) -> Task:
        assert resources == ({fields["device"]: 1} if fields["device"] else None)
        self.ran.append((workers[0], fields["title"]))
        return Task(self, workers[0], job, fields)

    async def perform(self, address: str, job: str, fields: dict[str, Any]) -> object:
        """What comes back for a cell; tests replace it."""
        return {"executed.ipynb": PAGE, "result.json": result(reads={})}


@dataclass
class Task:
    dask: Scripted
    address: str
    job: str
    fields: dict[str, Any]

    async def result(self) -> object:
        self.dask.now[self.address] += 1
        self.dask.most[self.address] = max(self.dask.most[self.address], self.dask.now[self.address])
        try:
            return await self.dask.perform(self.address, self.job, self.fields)
        finally:
            self.dask.now[self.address] -= 1

    async def cancel(self) -> None:
        """Nobody is left to tell."""


class Folders:
    """The part of a store that a fleet uses."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def staging(self, cell: Cell) -> Path:
        return Path(tempfile.mkdtemp(dir=self.root))


class Lines(Watch):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def told(self, cell: Cell, line: str) -> None:
        self.lines.append(f"{cell.title}: {line}")


@pytest.fixture
def dask(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    made = Scripted()
    monkeypatch.setattr(cluster, "_distributed", lambda: made)
    monkeypatch.setattr(cluster, "_LOOK_S", 0.01)
    return made


@pytest.fixture
def opened(dask: Scripted, tmp_path: Path) -> Iterator[Callable[..., tuple[cluster.Fleet, list[str]]]]:
    """Makes fleets with the lines that they say."""
    fleets: list[cluster.Fleet] = []

    def make(cells: Sequence[Cell], wait_s: float = 0.5) -> tuple[cluster.Fleet, list[str]]:
        said: list[str] = []
        fleets.append(cluster.Fleet("tcp://10.0.0.9:8786", Folders(tmp_path), cells, wait_s=wait_s, say=said.append))  # type: ignore[arg-type]
        return fleets[-1], said

    yield make
    for fleet in fleets:
        with suppress(NbutilsError):
            fleet.close()


A, B, C = (f"tcp://10.0.0.{n}:1000" for n in (1, 2, 3))


def a_cell(title: str, device: str = "", **fields: Any) -> Cell:
    return Cell(notebook="notebooks/fit.ipynb", output=f"_build/{title}.ipynb", title=title, device=device, **fields)


def test_a_cell_that_takes_three_workers_with_it_is_given_up_and_the_others_go_on(dask: Scripted, opened: Any) -> None:
    for address in (A, B, C):
        dask.join(address, dgx_spark=1)
    dask.join("tcp://10.0.0.4:1000", n_threads=1)

    async def perform(address: str, job: str, fields: dict[str, Any]) -> object:
        if fields["title"] == "killer":
            dask.leave(address)
            await asyncio.sleep(60)
        return await Scripted.perform(dask, address, job, fields)

    dask.perform = perform  # type: ignore[method-assign]
    cells = [a_cell("killer", "dgx-spark"), a_cell("harmless")]
    fleet, said = opened(cells)
    killer, harmless = [fleet.submit(cell, Watch()) for cell in cells]
    assert (harmless.result(timeout=10) / "result.json").is_file()
    with pytest.raises(CellFailed, match=r"killer: its workers went away while they ran it: (tcp://10\.0\.0\.[123]:1000(, )?){3}$"):
        killer.result(timeout=10)
    assert [line.partition("; ")[2] for line in said] == ["running it again", "running it again", "given up"]


def test_what_comes_late_from_a_worker_that_was_given_up_is_dropped(dask: Scripted, opened: Any, tmp_path: Path) -> None:
    dask.join(A)

    async def perform(address: str, job: str, fields: dict[str, Any]) -> object:
        if address == A:
            dask.leave(A)
            dask.join(B)
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
        return {"executed.ipynb": PAGE, "result.json": result(reads={}, took_s=1.0 if address == A else 2.0)}

    dask.perform = perform  # type: ignore[method-assign]
    fleet, _ = opened([a_cell("one")])
    folder = fleet.submit(a_cell("one"), Watch()).result(timeout=10)
    assert json.loads((folder / "result.json").read_text(encoding="utf-8"))["took_s"] == 2.0
    assert list(tmp_path.iterdir()) == [folder]


def test_pages_share_a_worker_and_nothing_runs_beside_a_measurement(dask: Scripted, opened: Any) -> None:
    dask.join(A, n_threads=3, dgx_spark=1)
    beside: list[int] = []

    async def perform(address: str, job: str, fields: dict[str, Any]) -> object:
        for _ in range(3):
            await asyncio.sleep(0.01)
            beside.extend([dask.now[address]] if fields["measures"] else [])
        return await Scripted.perform(dask, address, job, fields)

    dask.perform = perform  # type: ignore[method-assign]
    cells = [a_cell(f"{kind}{n}", "dgx-spark" if kind == "m" else "", measures=kind == "m") for n in range(6) for kind in "pm"]
    fleet, _ = opened(cells)
    for future in [fleet.submit(cell, Watch()) for cell in cells]:
        future.result(timeout=20)
    assert set(beside) == {1}
    assert dask.most[A] == 3
    assert Counter(title for _, title in dask.ran) == {cell.title: 1 for cell in cells}


@pytest.mark.parametrize("ends", [Killed("by Dask's own count"), CancelledError("by another client")])
def test_a_task_that_dask_gives_up_is_sent_again(ends: Exception, dask: Scripted, opened: Any) -> None:
    dask.join(A)

    async def perform(address: str, job: str, fields: dict[str, Any]) -> object:
        if len(dask.ran) == 1:
            raise ends
        return await Scripted.perform(dask, address, job, fields)

    dask.perform = perform  # type: ignore[method-assign]
    fleet, _ = opened([a_cell("one")])
    fleet.submit(a_cell("one"), Watch()).result(timeout=10)
    assert len(dask.ran) == 2


def test_a_worker_whose_files_changed_after_it_was_let_in_is_refused_and_its_cell_runs_elsewhere(dask: Scripted, opened: Any) -> None:
    dask.join(A)
    digest = dask.report["files"]["data/formats.yaml"]

    async def perform(address: str, job: str, fields: dict[str, Any]) -> object:
        if address == A:
            dask.join(B)
        return {
            "executed.ipynb": PAGE,
            "result.json": result(reads={"data/formats.yaml": "another" if address == A else digest, "data/suites/": "x"}),
        }

    dask.perform = perform  # type: ignore[method-assign]
    fleet, said = opened([a_cell("one")])
    fleet.submit(a_cell("one"), Watch()).result(timeout=10)
    assert [address for address, _ in dask.ran] == [A, B]
    assert said[0] == f"worker {A} is refused: it has changed data/formats.yaml since it came"


def test_a_cell_that_reads_private_records_says_so(dask: Scripted, opened: Any) -> None:
    dask.join(A)

    async def perform(address: str, job: str, fields: dict[str, Any]) -> object:
        return {"executed.ipynb": PAGE, "result.json": result(reads={"records/unlisted/": "x"})}

    dask.perform = perform  # type: ignore[method-assign]
    fleet, _ = opened([a_cell("one")])
    with pytest.raises(DataError, match="it reads records/unlisted/, and every machine has records of its own; run it without --scheduler"):
        fleet.submit(a_cell("one"), Watch()).result(timeout=10)


def test_a_notebook_outside_of_the_project_is_sent_nowhere(dask: Scripted, opened: Any, tmp_path: Path) -> None:
    dask.join(A)
    fleet, _ = opened([])
    with pytest.raises(UsageError, match="lies outside of the project"):
        fleet.submit(Cell(notebook=str(tmp_path / "x.ipynb"), output="_build/x.ipynb"), Watch()).result(timeout=10)


def test_a_device_is_announced_once_on_a_machine(dask: Scripted, opened: Any) -> None:
    dask.join(A, dgx_spark=1)
    fleet, said = opened([a_cell("one", "dgx-spark")])
    dask.join("tcp://10.0.0.1:2000", dgx_spark=1)
    dask.join(B, dgx_spark=2)
    dask.join(C, dgx_spark=1)
    eventually(lambda: len(said) == 2)
    dask.leave(A)
    eventually(lambda: "tcp://10.0.0.1:2000" in fleet._workers)
    assert sorted(said) == [
        "worker tcp://10.0.0.1:2000 is refused: another worker on its machine announces dgx-spark, and a device runs one cell at a time",
        f"worker {B} is refused: it announces dgx-spark=2, and a device runs one cell at a time: announce 1",
    ]


def test_cells_whose_device_left_for_good_are_reported_after_the_wait(dask: Scripted, opened: Any) -> None:
    dask.join(A, dgx_spark=1)

    async def perform(address: str, job: str, fields: dict[str, Any]) -> object:
        dask.leave(address)
        return await asyncio.sleep(60)

    dask.perform = perform  # type: ignore[method-assign]
    fleet, _ = opened([a_cell("one", "dgx-spark")], wait_s=0.1)
    with pytest.raises(NbutilsError, match="no worker announces 'dgx-spark', for one"):
        fleet.submit(a_cell("one", "dgx-spark"), Watch()).result(timeout=10)


def test_what_a_notebook_tells_on_a_worker_is_heard(dask: Scripted, opened: Any) -> None:
    dask.join(A)
    watch = Lines()

    async def perform(address: str, job: str, fields: dict[str, Any]) -> object:
        dask.told((0.0, {"job": job, "line": "half way"}))
        dask.told((0.0, {"job": "of somebody else", "line": "no"}))
        return await Scripted.perform(dask, address, job, fields)

    dask.perform = perform  # type: ignore[method-assign]
    fleet, _ = opened([a_cell("one")])
    fleet.submit(a_cell("one"), watch).result(timeout=10)
    assert watch.lines == ["one: half way"]


def test_a_lost_scheduler_is_one_error_of_the_fleet_and_not_one_of_each_cell(dask: Scripted, opened: Any) -> None:
    dask.join(A)

    async def perform(address: str, job: str, fields: dict[str, Any]) -> object:
        dask.status = "connecting"
        return await asyncio.sleep(60)

    dask.perform = perform  # type: ignore[method-assign]
    fleet, said = opened([a_cell("one"), a_cell("two")])
    for future in [fleet.submit(a_cell(title), Watch()) for title in ("one", "two")]:
        with pytest.raises(Exception, match="is gone") as caught:
            future.result(timeout=10)
        assert not isinstance(caught.value, NbutilsError), "a sweep must not go on to the next cell"
    with pytest.raises(NbutilsError, match=r"the scheduler at tcp://10\.0\.0\.9:8786 is gone; finished cells are kept, the same command goes on"):
        fleet.close()
    assert said == []


# ── addresses ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("address", ["127.0.0.1:8786", "http://host:8786", "tcp://host", "tcp://:8786", "tcp://host:x", "tcp://host:8786/path", ""])
def test_an_address_that_is_none_is_refused_at_once(address: str) -> None:
    with pytest.raises(UsageError, match="is no address of a scheduler; write it like tcp://"):
        cluster.Fleet(address, Store("none"), [])


def test_where_nothing_answers_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_CONNECT_S", 0.5)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(NbutilsError, match=f"no scheduler answers at {address}; start one with 'dask scheduler', or mend the address"):
        cluster.Fleet(address, Store("none"), [])


def test_without_dask_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingExtra, match=r"--scheduler needs Dask: pip install -e '\.\[cluster\]'"):
        cluster.Fleet("tcp://127.0.0.1:8786", Store("none"), [])


def test_tls_files_go_with_a_tls_address_and_must_be_there(tmp_path: Path) -> None:
    there = tmp_path / "ca.pem"
    there.touch()
    assert Tls().security("tcp://host:8786") is None
    with pytest.raises(UsageError, match="--tls-ca goes with a scheduler at tls://"):
        Tls(ca=str(there)).security("tcp://host:8786")
    with pytest.raises(UsageError, match="needs --tls-cert FILE"):
        Tls(ca=str(there)).security("tls://host:8786")
    with pytest.raises(UsageError, match=r"needs --tls-key; there is no file 'gone\.pem'"):
        Tls(ca=str(there), cert=str(there), key="gone.pem").security("tls://host:8786")
    security = Tls(ca=str(there), cert=str(there), key=str(there)).security("tls://host:8786")
    assert (security.require_encryption, security.tls_ca_file) == (True, str(there))


# ── what differs ──────────────────────────────────────────────────────────────────────────────────


def test_a_report_agrees_with_itself_and_names_the_file_that_was_changed(project: Path) -> None:
    one = cluster.report()
    assert differences(one, cluster.report()) == []
    assert {"nbutils", "distributed", "papermill", "llama-cpp-python", "python", "numpy"} <= one["versions"].keys()
    assert "pytest" not in one["versions"], "what only tests need may differ"
    assert {"src/nbutils/limits.py", "data/formats.yaml", "notebooks/device.ipynb"} <= one["files"].keys()
    other = json.loads(json.dumps(one))
    other["files"]["data/market.yaml"] = "another"
    del other["files"]["src/nbutils/limits.py"]
    assert differences(one, other) == ["data/market.yaml", "src/nbutils/limits.py"]


@pytest.mark.parametrize("said", [None, 3, {}, {"versions": 1, "files": {}}, ModuleNotFoundError("No module named 'nbutils'")])
def test_a_worker_without_nbutils_differs_in_all(said: object) -> None:
    (line,) = differences(cluster.report(), said)
    assert line.startswith("all: it cannot say what it is (")


def test_a_suite_or_a_record_that_one_side_lacks_is_no_difference() -> None:
    here = {"versions": {}, "files": {"data/suites/mine.yaml": "ab", "data/suites/quick.yaml": "ab"}}
    there = {"versions": {}, "files": {"data/records/x/y.json": "ab", "data/suites/quick.yaml": "cd"}}
    assert differences(here, there) == ["data/suites/quick.yaml"]


# ── what comes back ───────────────────────────────────────────────────────────────────────────────

CELL = Cell(notebook="notebooks/tiny.ipynb", output="_build/1.ipynb")
PAGE = nbformat.writes(nbformat.v4.new_notebook()).encode()


def result(**changes: Any) -> bytes:
    return json.dumps(
        {
            "cell": {},
            "notebook": cluster.report()["files"]["notebooks/fit.ipynb"],
            "versions": {},
            "reads": {"data/formats.yaml": "cd"},
            "records": [],
            "took_s": 1.0,
        }
        | changes
    ).encode()


def a_record(tmp_path: Path) -> tuple[str, bytes]:
    path = records.write(make_record(), tmp_path / "made")
    return f"records/unlisted/{path.name}", path.read_bytes()


def test_what_a_worker_sent_becomes_a_cell_of_this_machine(tmp_path: Path) -> None:
    name, content = a_record(tmp_path)
    claimed = ["../../../../etc/passwd.json"]
    sent = {"executed.ipynb": PAGE, "result.json": result(records=claimed, versions={"python": "2.7"}, extra=1), name: content}
    kept = unpack(sent, CELL, tmp_path)
    assert (tmp_path / name).read_bytes() == content
    assert kept["records"] == [name.removeprefix("records/")], "those that came, not those that it names"
    assert (kept["cell"]["output"], kept["reads"]) == ("_build/1.ipynb", {"data/formats.yaml": "cd"})
    assert kept["versions"]["python"] != "2.7"
    assert "extra" not in kept


@pytest.mark.parametrize(
    "name",
    [
        "../evil.json",
        "records/../../evil.json",
        "records/unlisted/../../../evil.json",
        "/etc/evil.json",
        "records\\unlisted\\evil.json",
        "C:evil.json",
        "records/unlisted/.json",
        "records/unlisted/a.json\n",
        "records/unlisted/a.exe",
        "records//a.json",
        "reads.txt",
        "",
    ],
)
def test_a_name_that_no_cell_leaves_is_refused_before_anything_is_written(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    with pytest.raises(DataError, match="is nothing that a cell leaves"):
        unpack({"executed.ipynb": PAGE, name: b"{}"}, CELL, folder)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (None, "no files came back, but a NoneType"),
        ({"error.txt": "text"}, "no files came back"),
        ({}, "neither a result nor an error"),
        ({"executed.ipynb": PAGE}, "neither a result nor an error"),
        ({"error.txt": b"x" * 10_001}, "error.txt has 10,001 bytes, over the limit of 10,000"),
        ({f"records/unlisted/{n}.json": b"{}" for n in range(201)}, "200 records are the limit"),
        ({"records/unlisted/a.json": b" " * (records.MAX_BYTES + 1)}, "over the limit"),
        ({"records/unlisted/a.json": b"{"}, "not valid JSON"),
        ({"result.json": result()}, "executed.ipynb is no notebook"),
        ({"executed.ipynb": b"<script>", "result.json": result()}, "executed.ipynb is no notebook"),
        ({"executed.ipynb": PAGE, "result.json": b"[]"}, "result.json says nothing"),
        ({"executed.ipynb": PAGE, "result.json": result(reads={"data/x": 3})}, "result.json says nothing"),
        ({"executed.ipynb": PAGE, "result.json": result(took_s="long")}, "result.json says nothing"),
        ({"executed.ipynb": PAGE, "result.json": b"[" * 100_000}, "result.json says nothing"),
    ],
)
def test_what_is_not_what_a_cell_leaves_is_refused(sent: object, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        unpack(sent, CELL, tmp_path)


def test_a_record_of_another_device_than_the_worker_announced_is_refused(tmp_path: Path) -> None:
    record = make_record(machine=make_record().machine.model_copy(update={"device": "strix-halo"}))
    path = records.write(record, tmp_path / "made")
    sent = {"executed.ipynb": PAGE, "result.json": result(), f"records/strix-halo/{path.name}": path.read_bytes()}
    spark = Cell(notebook="notebooks/tiny.ipynb", output="_build/1.ipynb", device="dgx-spark")
    with pytest.raises(DataError, match="is of the device 'strix-halo', and the worker announces 'dgx-spark'"):
        unpack(sent, spark, tmp_path / "there")
    wrong = {f"records/dgx-spark/{path.name}": path.read_bytes(), "error.txt": b"stopped"}
    with pytest.raises(DataError, match="is of the device 'strix-halo' and should be named"):
        unpack(wrong, spark, tmp_path / "elsewhere")


def test_a_failed_cell_brings_its_notebook_back(tmp_path: Path) -> None:
    assert unpack({"failed.ipynb": PAGE, "error.txt": b"tiny.ipynb: ValueError: no\n"}, CELL, tmp_path) == {}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["error.txt", "failed.ipynb"]
