"""A runner of ``sweep`` that sends cells to other machines, through a Dask scheduler.

Dask carries cells and files, sees workers come and go, and meters what they announce: a cell for a device takes the one unit of the resource of
that name. Which worker gets the next cell is decided here, and none gets more than it can start at once. Left to itself, Dask hands all that
waits to the workers that are there, counts a death against every cell that waited on the dead worker, and offers cells to whoever joins later,
with whatever versions.

A scheduler belongs on a network whose machines may all run programs on each other, because Dask unpickles what it is sent. What comes back as
files is checked all the same: a broken worker is likelier than a hostile one.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import threading
import time
import uuid
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from nbutils import paths, records, sweep
from nbutils.errors import DataError, MissingExtra, NbutilsError, UsageError, did_you_mean
from nbutils.sweep import Cell, Store, Watch

__all__ = ["Fleet", "Tls", "differences", "end", "perform", "present", "report", "unpack"]

#: A cell is given up when this many workers in a row went away with it.
_TRIES = 3
#: How often workers are looked for, how long one may take to say what it is, and a scheduler to answer at all.
_LOOK_S, _ANSWER_S, _CONNECT_S = 0.5, 60.0, 5.0
#: A page with many figures has some MB.
_MAX_BYTES = {"executed.ipynb": 50_000_000, "failed.ipynb": 50_000_000, "result.json": 2_000_000, "error.txt": 10_000}
_MAX_RECORDS = 200
_RECORD_NAME = re.compile(r"records/([a-z0-9][a-z0-9.-]{0,80})/([A-Za-z0-9][A-Za-z0-9.-]{0,160}\.json)")


class _SchedulerLost(Exception):
    """The scheduler went away. No ``NbutilsError``, which a sweep would take for the failure of one cell."""


class _WorkerGone(Exception):
    """The worker went away, or turned out to be another than it said, before a cell was done."""


# ── what must be the same on every machine ────────────────────────────────────────────────────────


def report() -> dict[str, dict[str, str]]:
    """What a machine runs cells with: ``versions`` of what is installed, and digests of ``files``, code and data and notebooks."""
    root = paths.project_dir()
    folders = {"src/nbutils": Path(__file__).parent, "data": paths.data_dir(), "notebooks": root / "notebooks"}
    files = {f"{name}/{inner}": found for name, folder in folders.items() for inner, found in _digests(folder).items()}
    if _digests(folders["src/nbutils"]) != _CODE_AT_START:
        files["src/nbutils"] = "changed since this process was started"
    return {"versions": _versions(), "files": files}


def _digests(folder: Path) -> dict[str, str]:
    names = (p for p in folder.rglob("*") if p.is_file() and not any(part.startswith((".", "__pycache__")) for part in p.relative_to(folder).parts))
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in names}


_CODE_AT_START = _digests(Path(__file__).parent)


def _versions() -> dict[str, str]:
    """Python by its minor version, and of the packages those that cells run on: what only tests need may be missing."""
    found = {name: "none" for name in ("nbutils", "distributed", *map(_name_of, requires("nbutils") or [])) if name}
    for name in found:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found | {"python": ".".join(sweep.versions()["python"].split(".")[:2])}


def _name_of(requirement: str) -> str:
    extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", requirement)
    needed = extra is None or extra[1] in ("engine", "book", "cluster")
    return re.split(r"[^A-Za-z0-9_.-]", requirement, maxsplit=1)[0].lower() if needed else ""


def differences(here: Mapping[str, Mapping[str, str]], there: object) -> list[str]:
    """What a worker has otherwise than this machine, in words; ``there`` is its report, or the error that it gave instead of one.

    A record or a suite that one side does not have is no difference: nothing reads it unless it is named, and then its absence shows.

    >>> here = {"versions": {"nbutils": "0.2"}, "files": {"data/market.yaml": "ab", "data/suites/mine.yaml": "cd"}}
    >>> differences(here, {"versions": {"nbutils": "0.1"}, "files": {"data/market.yaml": "xy"}})
    ['nbutils 0.2 here and 0.1 there', 'data/market.yaml']
    """
    if not isinstance(there, dict) or not all(isinstance(there.get(part), dict) for part in ("versions", "files")):
        return [f"all: it cannot say what it is ({_line(there)}); start it from an environment with nbutils[book,cluster,engine]"]
    found = [
        f"{name} {wanted} here and {str(there['versions'].get(name, 'none'))[:40]} there"
        for name, wanted in here["versions"].items()
        if there["versions"].get(name) != wanted
    ]
    for name in sorted({*here["files"], *map(str, there["files"])}):
        one, other = here["files"].get(name), there["files"].get(name)
        optional = name.startswith(("data/records/", "data/suites/")) and None in (one, other)
        if one != other and not optional:
            found.append(name if name != "src/nbutils" else f"src/nbutils {one or other}: start it again")
    return found


def _line(error: object) -> str:
    words = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {words}" if isinstance(error, Exception) else words


def _shortened(found: Sequence[str]) -> str:
    return ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")


# ── on the worker ─────────────────────────────────────────────────────────────────────────────────

_UNDER_WAY: dict[str, Path] = {}


def perform(job: str, fields: dict[str, Any], topic: str) -> dict[str, bytes]:
    """Run a cell in a folder of its own and return the files that are left, by name. What the notebook tells goes out under ``topic``."""
    from distributed import get_worker

    worker = get_worker()
    with tempfile.TemporaryDirectory(prefix="nbutils-") as name:
        folder = _UNDER_WAY[job] = Path(name)
        try:
            # Its page goes to whoever asked; no folder for it is made in this checkout.
            cell = Cell(**fields | {"output": str(folder / "page.ipynb")})
            sweep.execute(cell, folder, lambda line: worker.log_event(topic, {"job": job, "line": line[:200]}))
            return _packed(folder)
        finally:
            del _UNDER_WAY[job]


def _packed(folder: Path) -> dict[str, bytes]:
    found = [folder / name for name in _MAX_BYTES if (folder / name).is_file()] + sorted(folder.glob("records/*/*.json"))
    named = {path.relative_to(folder).as_posix(): path for path in found}
    _check_names_and_sizes({name: path.stat().st_size for name, path in named.items()})
    return {name: path.read_bytes() for name, path in named.items()}


def present() -> bool:
    """Whether this module can be loaded; a scheduler unpickles what it hands on."""
    return True


def end(jobs: Sequence[str]) -> None:
    """End the kernels of these jobs: nobody waits for them any more, and they would disturb what comes next."""
    for job in jobs:
        if folder := _UNDER_WAY.get(job):
            sweep.end_kernel(folder)


# ── what comes back ───────────────────────────────────────────────────────────────────────────────


def unpack(sent: object, cell: Cell, folder: Path) -> dict[str, Any]:
    """Write what a worker sent into ``folder``, as ``sweep.execute`` would have left it there, but for ``result.json``. Raises ``DataError``.

    Returns what belongs into ``result.json``, which makes a cell done; nothing for a cell that failed. It names the cell as it is here, and the
    records that came instead of those that it says came. Versions are this machine's, because the worker was let in for having the same.
    """
    if not isinstance(sent, dict) or not all(isinstance(name, str) and isinstance(content, bytes) for name, content in sent.items()):
        raise DataError(f"no files came back, but a {type(sent).__name__}")
    _check_names_and_sizes({name: len(content) for name, content in sent.items()})
    for name in [name for name in sent if name != "result.json"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(sent[name])
    arrived = sorted(name.removeprefix("records/") for name in sent if name.startswith("records/"))
    for name in arrived:
        _check_record(folder / "records" / name, name, cell)
    if "result.json" in sent:
        _check_notebook(sent.get("executed.ipynb", b""))
        return _result(sent["result.json"]) | {"cell": asdict(cell), "versions": sweep.versions(), "records": arrived}
    if "error.txt" not in sent:
        raise DataError("neither a result nor an error came back")
    return {}


def _check_record(path: Path, name: str, cell: Cell) -> None:
    found = records.read_any(path)
    device = records.device_of(found)
    if name != f"{device}/{records.file_name(found)}":
        raise DataError(f"record {name!r} is of the device {device!r} and should be named {records.file_name(found)!r}")
    if cell.device and device not in (cell.device, "unlisted"):
        raise DataError(f"record {name!r} is of the device {device!r}, and the worker announces {cell.device!r}")


def _check_names_and_sizes(sizes: Mapping[str, int]) -> None:
    if sum(name not in _MAX_BYTES for name in sizes) > _MAX_RECORDS:
        raise DataError(f"{len(sizes)} files came of one cell; {_MAX_RECORDS} records are the limit")
    for name, size in sizes.items():
        if name not in _MAX_BYTES and not _RECORD_NAME.fullmatch(name):
            raise DataError(f"a file named {name[:80]!r} is nothing that a cell leaves")
        if size > (limit := _MAX_BYTES.get(name, records.MAX_BYTES)):
            raise DataError(f"{name} has {size:,} bytes, over the limit of {limit:,}")


def _check_notebook(content: bytes) -> None:
    import nbformat

    read: Callable[..., Any] = nbformat.reads
    try:
        nbformat.validate(read(content.decode("utf-8"), as_version=4))
    except Exception as error:  # of many kinds, none of which says which file
        raise DataError(f"executed.ipynb is no notebook ({_line(error)[:120]})") from None


def _result(content: bytes) -> dict[str, Any]:
    try:
        said = json.loads(content)
        reads = said["reads"]
        if not all(isinstance(text, str) for text in (said["notebook"], *reads, *reads.values())):
            raise TypeError("a digest that is no text")
        if strange := [name for name in reads if name.partition("/")[0] not in ("code", "data", "records", "beside", "file")]:
            raise ValueError(f"{strange[0][:40]!r} is nothing that a cell reads")
        # A model that lies there is not to be held against one that happens to lie here under the same name.
        reads = {name: digest for name, digest in reads.items() if not name.startswith("file/")}
        return {"notebook": said["notebook"], "reads": reads, "took_s": float(said["took_s"])}
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise DataError(f"result.json says nothing that this nbutils reads ({_line(error)[:120]})") from None


# ── who is there ──────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Files for a scheduler at ``tls://``: its authority's certificate, ours, and our key."""

    ca: str = ""
    cert: str = ""
    key: str = ""

    def security(self, address: str) -> Any:
        """What Dask's client takes, or ``None`` for a scheduler without TLS. Raises ``UsageError`` where address and files do not agree."""
        given = {"--tls-ca": self.ca, "--tls-cert": self.cert, "--tls-key": self.key}
        if not address.startswith("tls:"):
            if named := [option for option, file in given.items() if file]:
                raise UsageError(f"{named[0]} goes with a scheduler at tls://, and this is {address!r}")
            return None
        for option, file in given.items():
            if not Path(file).is_file():
                raise UsageError(f"a scheduler at tls:// needs {option}" + (f"; there is no file {file!r}" if file else " FILE"))
        from distributed import security

        new: Callable[..., Any] = security.Security
        return new(require_encryption=True, tls_ca_file=self.ca, tls_client_cert=self.cert, tls_client_key=self.key)


def _checked(address: str) -> str:
    with suppress(ValueError):
        parts = urlsplit(address)
        if parts.scheme in ("tcp", "tls") and parts.hostname and parts.port and not (parts.path or parts.query or parts.username):
            return address
    raise UsageError(f"{address!r} is no address of a scheduler; write it like tcp://192.168.1.10:8786")


def _host(address: str) -> str | None:
    return urlsplit(address).hostname


@dataclass(slots=True, eq=False)
class _Worker:
    """A worker that was let in, and what it does for us now."""

    address: str
    name: str
    devices: frozenset[str]
    n_threads: int
    busy: int = 0
    alone: bool = False
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    def serves(self, device: str) -> bool:
        return not device or device in self.devices

    def can_start(self, cell: Cell) -> bool:
        return self.serves(cell.device) and not self.alone and self.busy < (1 if _wants_all(cell) else self.n_threads)


def _wants_all(cell: Cell) -> bool:
    """Beside a measurement nothing else runs, on its worker."""
    return cell.measures or bool(cell.device)


class Fleet:
    """The runner of ``nbutils sweep --scheduler``. Made, it has a scheduler, and a worker for every cell; see ``sweep.Runner`` for the rest.

    ``wait_s`` is how long cells wait for a worker that can run them when there is none, at the start and later. ``say`` gets a line about
    every worker that is refused and every cell that has to be run again. Raises an ``NbutilsError`` with what is missing.
    """

    def __init__(
        self, address: str, store: Store, cells: Sequence[Cell], *, tls: Tls | None = None, wait_s: float = 30.0, say: Callable[[str], None] = print
    ) -> None:
        self._address, self._store, self._wait_s, self._say = _checked(address), store, wait_s, say
        self._distributed = _distributed()
        self._security = (tls or Tls()).security(address)
        self._wanted = Counter(cell.device for cell in cells)
        self._topic = f"nbutils-{uuid.uuid4().hex}"
        self._here = report()
        self._workers: dict[str, _Worker] = {}
        self._refused: dict[str, str] = {}
        self._listening: dict[str, tuple[Cell, Watch]] = {}
        self._jobs: set[asyncio.Task[Path]] = set()
        started: Future[None] = Future()
        opened: Future[None] = Future()
        self._thread = threading.Thread(target=self._live, args=(started, opened), name="fleet", daemon=True)
        self._thread.start()
        started.result()
        try:
            opened.result()
        except BaseException:
            self._end()
            raise

    # Called by ``sweep.run``.

    def submit(self, cell: Cell, watch: Watch) -> Future[Path]:
        return asyncio.run_coroutine_threadsafe(self._run(cell, watch), self._loop)

    def close(self) -> None:
        """End what still runs. Raises an ``NbutilsError`` if the scheduler was lost: one line, and not one per cell."""
        self._end()
        if self._lost.done():
            raise NbutilsError(f"{self._lost.result()}; finished cells are kept, the same command goes on")

    def _end(self) -> None:
        with suppress(RuntimeError):  # it has ended
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    # Everything below runs in the fleet's own thread.

    def _live(self, started: Future[None], opened: Future[None]) -> None:
        # Tornado, which Dask is built on, waits for sockets in a way that the usual loop of Windows does not know.
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop if os.name == "nt" else None) as runner:
            runner.run(self._main(started, opened))

    async def _main(self, started: Future[None], opened: Future[None]) -> None:
        self._loop, self._stop, self._turn = asyncio.get_running_loop(), asyncio.Event(), asyncio.Condition()
        self._lost: asyncio.Future[_SchedulerLost] = self._loop.create_future()
        options = {"asynchronous": True, "set_as_default": False, "timeout": _CONNECT_S, "security": self._security, "name": "nbutils"}
        try:
            self._client = self._distributed.Client(self._address, **options)
        except Exception as error:  # certificates that are none, a key that needs a password
            started.set_exception(UsageError(f"no connection to {self._address} can be made: {_line(error)}"))
            return
        started.set_result(None)
        try:
            await self._open()
            opened.set_result(None)
            while not self._stop.is_set() and not self._lost.done():
                await self._look()
                await self._pause()
            await self._stop.wait()
        except Exception as error:
            if not opened.done():
                opened.set_exception(error)
            else:
                await self._lose(f"the fleet was lost sight of ({_line(error)})")
        finally:
            await self._stop.wait()
            await self._leave()

    async def _pause(self) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), _LOOK_S)

    async def _lose(self, why: str = "") -> None:
        if not self._lost.done():
            self._lost.set_result(_SchedulerLost(why or f"the scheduler at {self._address} is gone"))
        await self._tell_waiting()

    async def _unless_lost(self, answer: Awaitable[Any]) -> Any:
        """An answer of the scheduler. Raises ``OSError`` when Dask gives the connection up, which a call alone would try to mend for a long time."""
        asked, until_s = asyncio.ensure_future(answer), time.monotonic() + _ANSWER_S
        while not asked.done() and self._client.status == "running" and time.monotonic() < until_s:
            await asyncio.wait({asked}, timeout=_LOOK_S)
        if self._client.status == "running" and asked.done():
            return asked.result()
        asked.cancel()
        raise OSError

    async def _tell_waiting(self) -> None:
        async with self._turn:
            self._turn.notify_all()

    async def _leave(self) -> None:
        under_way = list(self._listening)
        for job in self._jobs:
            job.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)
        with suppress(Exception):
            if under_way and not self._lost.done():
                await asyncio.wait_for(self._client.run(end, under_way, workers=list(self._workers), on_error="ignore"), _CONNECT_S)
        with suppress(Exception):
            await asyncio.wait_for(self._client.close(), 1.0 if self._lost.done() else _CONNECT_S)

    # ── workers ──

    async def _open(self) -> None:
        """Find the scheduler, and a worker for every cell."""
        try:
            await asyncio.wait_for(self._client, _CONNECT_S)
        except (OSError, TimeoutError):
            raise NbutilsError(f"no scheduler answers at {self._address}; start one with 'dask scheduler', or mend the address") from None
        except Exception as error:  # an address that resolves to nothing, or a service of another kind
            raise NbutilsError(f"no Dask scheduler at {self._address}: {_line(error)}") from None
        try:
            await asyncio.wait_for(self._client.run_on_scheduler(present), _ANSWER_S)
        except Exception as error:
            raise NbutilsError(
                f"the scheduler at {self._address} cannot load nbutils ({_line(error)}); install nbutils[cluster] there as well"
            ) from None
        self._client.subscribe_topic(self._topic, self._told)
        until_s, said = time.monotonic() + self._wait_s, False
        while True:
            await self._look()
            missing = self._missing()
            if self._lost.done():
                raise NbutilsError(str(self._lost.result()))
            if not missing:
                return
            if time.monotonic() >= until_s or self._stop.is_set():
                raise NbutilsError(missing)
            if not said:
                said = True
                self._say(f"{missing}; waiting {self._wait_s:.0f} s")
            await self._pause()

    def _missing(self) -> str:
        """Which cells no worker can run, in words."""
        lacking = {device: n for device, n in self._wanted.items() if not any(w.serves(device) for w in self._workers.values())}
        return "; ".join(
            [*(self._lacks(device, f"{n} cell{'s' * (n > 1)}") for device, n in lacking.items()), *(self._refused.values() if lacking else ())]
        )

    def _lacks(self, device: str, for_what: str) -> str:
        if not device:
            return f"no worker of {self._address} can take part, for {for_what}; start one with 'dask worker {self._address}'"
        announced = sorted({d for worker in self._workers.values() for d in worker.devices})
        known = did_you_mean(device, announced) if announced else ""
        return f"no worker announces {device!r}, for {for_what}{known}; start one with 'dask worker {self._address} --resources \"{device}=1\"'"

    async def _look(self) -> None:
        """See who came and who went."""
        try:
            seen = (await self._unless_lost(self._client.scheduler.identity()))["workers"]
            came = [a for a in seen.keys() - self._workers.keys() - self._refused.keys() if seen[a]["status"] == "running"]
            said = await self._unless_lost(asyncio.gather(*map(self._ask, came)))
        except (OSError, TimeoutError):
            await self._lose()
            return
        gone = self._workers.keys() - seen.keys()
        for address in gone:
            self._workers.pop(address).gone.set()
        # Who was refused beside one that is gone is asked again: the device may be free now.
        for address in [a for a in self._refused if a not in seen or _host(a) in map(_host, gone)]:
            del self._refused[address]
        for address, report_of_it in zip(came, said, strict=True):
            self._admit(address, seen[address], report_of_it)
        await self._tell_waiting()

    async def _ask(self, address: str) -> object:
        """What a worker reports, or the error that it gives; one that cannot even say what is wrong must not stop the others."""
        try:
            return (await asyncio.wait_for(self._client.run(report, workers=[address]), _ANSWER_S / 2))[address]
        except Exception as error:
            return error

    def _admit(self, address: str, about: Mapping[str, Any], said: object) -> None:
        name = address if about["name"] == address else f"{about['name']} ({address})"
        announced = {device: n for device, n in about["resources"].items() if device in self._wanted}
        if found := differences(self._here, said):
            self._refuse(address, name, f"it differs in {_shortened(found)}")
        elif several := [device for device, n in announced.items() if n != 1]:
            self._refuse(address, name, f"it announces {several[0]}={announced[several[0]]:g}, and a device runs one cell at a time: announce 1")
        elif twice := [d for d in announced for w in self._workers.values() if d in w.devices and _host(w.address) == _host(address)]:
            self._refuse(address, name, f"another worker on its machine announces {twice[0]}, and a device runs one cell at a time")
        else:
            self._workers[address] = _Worker(address, name, frozenset(about["resources"]), about["nthreads"])

    def _refuse(self, address: str, name: str, why: str) -> None:
        self._refused[address] = f"worker {name} is refused: {why}"
        if (worker := self._workers.pop(address, None)) is not None:
            worker.gone.set()
        self._say(self._refused[address])

    # ── cells ──

    async def _run(self, cell: Cell, watch: Watch) -> Path:
        task = asyncio.current_task()
        assert task is not None
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)
        if Path(cell.notebook).is_absolute():
            raise UsageError(
                f"{cell.notebook!r} lies outside of the project, and workers have no such file; copy it into the project on every machine"
            )
        lost: list[str] = []
        while len(lost) < _TRIES:
            worker = await self._place(cell)
            folder = self._store.staging(cell)
            try:
                sent = await self._send(worker, cell, watch)
                if result := await asyncio.to_thread(unpack, sent, cell, folder):
                    self._check_reads(worker, cell, result["reads"] | {f"beside/{PurePosixPath(cell.notebook).name}": result["notebook"]})
                    paths.write_text(folder / "result.json", json.dumps(result, indent=1) + "\n")
            except _WorkerGone as gone:
                lost.append(worker.name)
                shutil.rmtree(folder, ignore_errors=True)
                self._say(f"{cell.name}: {gone}; " + ("running it again" if len(lost) < _TRIES else "given up"))
            except NbutilsError as error:
                shutil.rmtree(folder, ignore_errors=True)
                raise DataError(f"{cell.name}, from worker {worker.name}: {error}") from None
            else:
                return folder
            finally:
                worker.busy, worker.alone = worker.busy - 1, False
                await self._tell_waiting()
        raise sweep.CellFailed(f"{cell.name}: its workers went away while they ran it: {', '.join(lost)}")

    async def _place(self, cell: Cell) -> _Worker:
        """Wait for a worker that can start the cell now. Those without a device are asked first where any will do."""
        since_s = time.monotonic()
        async with self._turn:
            while not self._lost.done():
                able = [worker for worker in self._workers.values() if worker.serves(cell.device)]
                ready = [worker for worker in able if worker.can_start(cell) and not self._disturbs(worker, cell)]
                if ready:
                    worker = min(ready, key=lambda w: (len(w.devices), w.busy))
                    worker.busy, worker.alone = worker.busy + 1, _wants_all(cell)
                    return worker
                if able:
                    since_s = time.monotonic()
                elif time.monotonic() - since_s > self._wait_s:
                    raise NbutilsError(self._lacks(cell.device, cell.name))
                await self._turn.wait()
        raise self._lost.result()

    def _disturbs(self, worker: _Worker, cell: Cell) -> bool:
        """Whether one of the two would be timed beside the other, on another worker of the same machine. Where devices are named, they decide."""
        others = [w for w in self._workers.values() if w is not worker and _host(w.address) == _host(worker.address)]
        return not cell.device and any(w.busy if cell.measures else w.alone for w in others)

    async def _send(self, worker: _Worker, cell: Cell, watch: Watch) -> object:
        job = uuid.uuid4().hex
        task = self._client.submit(
            perform,
            job,
            asdict(replace(cell, output="")),
            self._topic,
            key=f"{cell.id}-{job}",
            workers=[worker.address],
            resources={cell.device: 1} if cell.device else None,
            pure=False,
        )
        self._listening[job] = (cell, watch)
        watch.started(cell)
        went = _WorkerGone(f"worker {worker.name} went away")
        answer, gone = asyncio.ensure_future(task.result()), asyncio.ensure_future(worker.gone.wait())
        try:
            await asyncio.wait({answer, gone, self._lost}, return_when=asyncio.FIRST_COMPLETED)
            if self._lost.done():
                raise self._lost.result()
            if not answer.done():
                raise went
            return answer.result()
        except (NbutilsError, _SchedulerLost, _WorkerGone):
            raise
        except self._distributed.KilledWorker:
            raise went from None
        except CancelledError:  # how Dask says that it lost the scheduler
            if self._client.status != "running":
                await self._lose()
            raise (self._lost.result() if self._lost.done() else went) from None
        except Exception as error:
            raise DataError(_line(error)) from None
        finally:
            del self._listening[job]
            for waiting in (answer, gone):
                waiting.cancel()
            with suppress(Exception):
                await task.cancel()

    def _check_reads(self, worker: _Worker, cell: Cell, read: Mapping[str, str]) -> None:
        """Refuse the worker when the cell read there what is not here: somebody changed a checkout since it was let in."""
        if private := [name for name in read if name.startswith("records/")]:
            raise DataError(f"it reads {private[0]}, and every machine has records of its own; run it without --scheduler")
        if changed := [name for name, digest in self._known(read, cell).items() if self._here["files"].get(name, "") != digest]:
            self._refuse(worker.address, worker.name, f"it has changed {_shortened(changed)} since it came")
            raise _WorkerGone(f"worker {worker.name} ran it with other files")

    @staticmethod
    def _known(read: Mapping[str, str], cell: Cell) -> dict[str, str]:
        """Files that were read, by the names that they have in a report."""
        folders = {"code": "src/nbutils", "data": "data", "beside": PurePosixPath(cell.notebook).parent.as_posix()}
        named = {f"{folders.get(name.partition('/')[0])}/{name.partition('/')[2]}": digest for name, digest in read.items() if not name.endswith("/")}
        return {name: digest for name, digest in named.items() if name.startswith(("src/nbutils/", "data/", "notebooks/"))}

    def _told(self, event: tuple[float, dict[str, str]]) -> None:
        job, line = event[1].get("job", ""), event[1].get("line", "")
        if job in self._listening:
            cell, watch = self._listening[job]
            watch.told(cell, str(line)[:200])


def _distributed() -> Any:
    try:
        import distributed
    except ImportError:
        raise MissingExtra("--scheduler needs Dask: pip install -e '.[cluster]'") from None
    # Its own words would come between the lines of the sweep, which says the same in one.
    for name in ("distributed", "distributed.client"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", category=distributed.versions.VersionMismatchWarning)
    return distributed
