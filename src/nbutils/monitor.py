"""Meters beside a run: graphics cards, the processor's energy counters, the system.

Each meter has a thread of its own. One that refuses, is lost or hangs costs its own trace; the run goes on.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import psutil

from nbutils.errors import MissingExtra
from nbutils.specs import Gpu, Neighbours, Trace

__all__ = [
    "GpuMeter",
    "LostMeter",
    "Meter",
    "Monitor",
    "ProcessorTime",
    "RaplMeter",
    "SystemMeter",
    "Tracer",
    "gpu_states",
    "gpu_used_bytes",
    "gpus",
    "rapl_meters",
]

#: A trace starts with this many seconds between moments and doubles them whenever it is full.
INTERVAL_S = 0.1
MAX_MOMENTS = 2500
#: Over all traces of a run, so that eight graphics cards still make a record.
MAX_NUMBERS = 30_000
#: Looking for child processes costs a walk over all processes; once in so long is too little to be seen in a rate.
SYSTEM_INTERVAL_S = 2.0
#: Waking cards that nobody keeps awake takes a driver seconds each; one that takes longer than this hangs.
DRIVER_LIMIT_S = 60.0
STOP_LIMIT_S = 2.0
RAPL_DIR = Path("/sys/class/powercap")

T = TypeVar("T")


class LostMeter(Exception):
    """A meter will not answer any more."""


class Meter(Protocol):
    """What can be read again and again. ``counters`` count up; the number is where they start over, ``None`` for never."""

    name: str
    counters: Mapping[str, float | None]
    refused: list[str]
    least_interval_s: float

    def read(self) -> dict[str, float | None]:
        """The quantities of this moment, ``None`` for one without an answer. Raises ``LostMeter``."""


# ── graphics cards, through NVML ──────────────────────────────────────────────────────────────────


class GpuMeter:
    """One GPU. What its driver refuses at the first question is not asked again."""

    least_interval_s = 0.0

    def __init__(self, nvml: Any, index: int) -> None:
        self.name = f"NVML GPU {index}"
        # In millijoules since the driver was loaded, in 64 bits: it never starts over while the driver lives.
        self.counters: Mapping[str, float | None] = {"energy_j": None}
        self.refused: list[str] = []
        self._nvml, self._index = nvml, index
        self._asks: dict[str, Callable[[], float]] | None = None

    def read(self) -> dict[str, float | None]:
        if self._asks is None:
            return self._first()
        found = {quantity: self._answer(ask) for quantity, ask in self._asks.items()}
        if found and all(value is None for value in found.values()):
            raise LostMeter
        return found

    def _first(self) -> dict[str, float | None]:
        try:
            handle = self._nvml.nvmlDeviceGetHandleByIndex(self._index)
        except self._nvml.NVMLError:
            raise LostMeter from None
        found: dict[str, float | None] = {}
        asks: dict[str, Callable[[], float]] = {}
        for quantity, questions in self._questions(handle).items():
            answers = ((ask, self._answer(ask)) for ask in questions)
            asks[quantity], found[quantity] = next(((a, v) for a, v in answers if v is not None), (questions[0], None))
        self.refused = [quantity for quantity, value in found.items() if value is None]
        for quantity in self.refused:
            del asks[quantity], found[quantity]
        self._asks = asks
        return found

    def _questions(self, handle: Any) -> dict[str, tuple[Callable[[], float], ...]]:
        """By quantity, what to ask; where a function has a new name, the old one comes second."""
        nvml = self._nvml
        return {
            "power_w": (lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,),
            "energy_j": (lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000,),
            "temperature_c": (lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),),
            "graphics_clock_mhz": (lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_GRAPHICS),),
            "memory_clock_mhz": (lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),),
            "throttle_reasons": (
                lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(handle),
                lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
            ),
            "used_bytes": (lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used,),
        }

    def _answer(self, ask: Callable[[], float]) -> float | None:
        try:
            return ask()
        except AttributeError:  # an older module has no such function
            return None
        except self._nvml.NVMLError as error:
            if isinstance(error, getattr(self._nvml, "NVMLError_GpuIsLost", ())):
                raise LostMeter from None
            return None


def gpus() -> list[Gpu]:
    """Every NVIDIA GPU and what it says of itself; none where there is no driver, or one that hangs."""
    return _within(DRIVER_LIMIT_S, _gpus, [])


def _gpus() -> list[Gpu]:
    with _session() as nvml:
        if nvml is None:
            return []
        driver = _text(_ask(nvml, "nvmlSystemGetDriverVersion"))
        return [_gpu(nvml, index, driver) for index in range(_ask(nvml, "nvmlDeviceGetCount") or 0)]


def _gpu(nvml: Any, index: int, driver: str) -> Gpu:
    handle = _ask(nvml, "nvmlDeviceGetHandleByIndex", index)
    if handle is None:
        return Gpu(name=f"GPU {index}, lost", driver=driver, refused=("handle",))
    memory = _ask(nvml, "nvmlDeviceGetMemoryInfo", handle)
    limit = _ask(nvml, "nvmlDeviceGetPowerManagementLimit", handle)
    return Gpu(
        name=_text(_ask(nvml, "nvmlDeviceGetName", handle)) or f"GPU {index}",
        memory_bytes=memory.total if memory else None,
        driver=driver,
        power_limit_w=None if limit is None else limit / 1000,
        refused=tuple(name for name, answer in (("memory", memory), ("power limit", limit)) if answer is None),
    )


def gpu_states(when: str) -> list[dict[str, Any]]:
    """Clocks, power, temperature and throttle reasons of every GPU, as NVML gives them; absent where it refuses."""
    return _within(DRIVER_LIMIT_S, lambda: _gpu_states(when), [])


def _gpu_states(when: str) -> list[dict[str, Any]]:
    with _session() as nvml:
        return [_gpu_state(nvml, index, when) for index in range(_count(nvml))]


def _gpu_state(nvml: Any, index: int, when: str) -> dict[str, Any]:
    state: dict[str, Any] = {"when": when, "gpu": index, "time": datetime.now(UTC).isoformat(timespec="seconds")}
    try:
        return state | GpuMeter(nvml, index).read()
    except LostMeter:
        return state | {"lost": True}


def gpu_used_bytes() -> list[int | None]:
    """Memory in use on each GPU, by all programs; ``None`` where the driver does not say."""

    def ask() -> list[int | None]:
        with _session() as nvml:
            handles = [_ask(nvml, "nvmlDeviceGetHandleByIndex", index) for index in range(_count(nvml))]
            answers = [handle and _ask(nvml, "nvmlDeviceGetMemoryInfo", handle) for handle in handles]
            return [int(answer.used) if answer else None for answer in answers]

    return _within(DRIVER_LIMIT_S, ask, [])


@contextmanager
def _session() -> Iterator[Any | None]:
    """The NVML module, started and in the end shut down; ``None`` where there is no driver."""
    nvml = _start_nvml()
    try:
        yield nvml
    finally:
        if nvml is not None:
            _ask(nvml, "nvmlShutdown")


def _start_nvml() -> Any | None:
    try:
        import pynvml
    except ImportError:
        raise MissingExtra("probing needs nvidia-ml-py: pip install -e '.[engine]'") from None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def _count(nvml: Any | None) -> int:
    return 0 if nvml is None else _ask(nvml, "nvmlDeviceGetCount") or 0


def _ask(nvml: Any, question: str, *arguments: Any) -> Any | None:
    """One NVML question; ``None`` where the driver refuses it, as unified-memory machines do for memory."""
    try:
        return getattr(nvml, question)(*arguments)
    except nvml.NVMLError:
        return None


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value or "")


def _within(limit_s: float, ask: Callable[[], T], late: T) -> T:
    """The answer, or ``late`` when it has not come after ``limit_s``: a driver that hangs must not take us with it."""
    answers: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def answer() -> None:
        try:
            answers.put((ask(), None))
        except BaseException as error:  # raised again where it was asked
            answers.put((None, error))

    threading.Thread(target=answer, daemon=True).start()
    try:
        value, error = answers.get(timeout=limit_s)
    except queue.Empty:
        return late
    if error is not None:
        raise error
    return value  # type: ignore[return-value]  # None only if T allows it


# ── the processor's energy counters ───────────────────────────────────────────────────────────────


class RaplMeter:
    """One RAPL domain of an Intel or AMD processor, through Linux. Since 2020 usually readable by root alone."""

    least_interval_s = 0.0

    def __init__(self, zone: Path, domain: str) -> None:
        self.name = f"RAPL {domain}"
        self.refused: list[str] = []
        self._file = zone / "energy_uj"
        self.counters: Mapping[str, float | None] = {"energy_j": (_number_in(zone / "max_energy_range_uj") or 0) / 1e6 or None}
        self._answered = False

    def read(self) -> dict[str, float | None]:
        microjoules = _number_in(self._file)
        if microjoules is None:
            if self._answered:
                raise LostMeter
            self.refused = ["energy_j"]
            return {}
        self._answered = True
        return {"energy_j": microjoules / 1e6}


def rapl_meters(folder: Path = RAPL_DIR) -> list[RaplMeter]:
    """A meter per package, per memory beside it, and for the platform as a whole. Cores are part of their package and left out."""
    meters = []
    for zone in sorted(folder.glob("intel-rapl:*")):
        domain = _word_in(zone / "name")
        parent = _word_in(zone.parent / zone.name.rpartition(":")[0] / "name")
        if domain.startswith(("package", "psys")) or domain == "dram":
            meters.append(RaplMeter(zone, f"{parent} {domain}".strip()))
    return meters


def _word_in(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()[:60]
    except OSError:
        return ""


def _number_in(file: Path) -> int | None:
    word = _word_in(file)
    return int(word) if word.isdigit() else None


# ── the system ────────────────────────────────────────────────────────────────────────────────────


class ProcessorTime:
    """Processor time since the start: ours with our children's, everybody's, and what the host took away; all in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ended_s = 0.0
        before = os.times()
        self._reaped_before_s = before.children_user + before.children_system
        self._living: dict[tuple[int, float], float] = {}
        self.looks: list[tuple[float, float, float, float | None]] = []

    def look(self) -> None:
        """Note the state of now as ``(at, own, busy, stolen)``."""
        times, all_times = os.times(), psutil.cpu_times()
        living = _children_s()
        self._ended_s += sum(spent for child, spent in self._living.items() if child not in living)
        self._living = living
        # Systems that count what ended children spent do it exactly; elsewhere what was last seen of them has to do.
        ended_s = max(times.children_user + times.children_system - self._reaped_before_s, self._ended_s)
        own_s = times.user + times.system + sum(living.values()) + ended_s
        busy_s = sum(getattr(all_times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq"))
        self.looks.append((self._clock(), own_s, busy_s, getattr(all_times, "steal", None)))
        del self.looks[1:-2]  # the first, the one before and this

    def shares(self) -> dict[str, float | None]:
        """Processors' worth that others used and that the host took away, since the look before; ``None`` after the first."""
        *_, before, now = [None, *self.looks]
        if before is None or now is None or now[0] - before[0] < 0.2:  # the clock of processor time ticks in hundredths
            return {"others_cpus": None, "stolen_cpus": None}
        wall_s = now[0] - before[0]
        others_s = max(0.0, (now[2] - before[2]) - (now[1] - before[1]))
        stolen_s = None if now[3] is None or before[3] is None else max(0.0, now[3] - before[3])
        return {"others_cpus": others_s / wall_s, "stolen_cpus": None if stolen_s is None else stolen_s / wall_s}

    def neighbours(self) -> Neighbours | None:
        """Over the whole time looked at; ``None`` before the second look."""
        if len(self.looks) < 2 or self.looks[-1][0] <= self.looks[0][0]:
            return None
        first, last = self.looks[0], self.looks[-1]
        own_s, busy_s = max(0.0, last[1] - first[1]), max(0.0, last[2] - first[2])
        stolen_s = None if first[3] is None or last[3] is None else round(max(0.0, last[3] - first[3]), 3)
        return Neighbours(
            wall_s=round(last[0] - first[0], 3),
            n_cpus=psutil.cpu_count() or 1,
            own_s=round(own_s, 3),
            others_s=round(max(0.0, busy_s - own_s), 3),
            stolen_s=stolen_s,
        )


def _children_s() -> dict[tuple[int, float], float]:
    """Processor time of every living descendant of this process, by what it is known by for good."""
    found = {}
    try:
        children = psutil.Process().children(recursive=True)
    except psutil.Error:
        return {}
    for child in children:
        try:
            times = child.cpu_times()
            found[child.pid, child.create_time()] = float(times.user + times.system)
        except psutil.Error:
            continue  # ended between two questions
    return found


#: Chips whose temperature is the processor's own, as Linux calls them.
_CPU_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal", "soc_thermal")


class SystemMeter:
    """The processor's temperature and clock as the system tells them, and what others use of it."""

    counters: Mapping[str, float | None] = {}
    least_interval_s = SYSTEM_INTERVAL_S

    def __init__(self, processors: ProcessorTime) -> None:
        self.name = "system"
        self.refused: list[str] = []
        self._processors = processors
        self._asks: dict[str, Callable[[], float | None]] | None = None

    def read(self) -> dict[str, float | None]:
        self._processors.look()
        shares = self._processors.shares()
        if self._asks is None:
            asks = {"temperature_c": _cpu_temperature_c, "cpu_clock_mhz": _cpu_clock_mhz}
            self.refused = [quantity for quantity, ask in asks.items() if ask() is None]
            if self._processors.looks[0][3] is None:
                self.refused.append("stolen_cpus")
            self._asks = {quantity: ask for quantity, ask in asks.items() if quantity not in self.refused}
        return {quantity: ask() for quantity, ask in self._asks.items()} | {k: v for k, v in shares.items() if k not in self.refused}


def _cpu_temperature_c() -> float | None:
    try:
        chips = psutil.sensors_temperatures()
        return max((float(s.current) for name in _CPU_SENSORS for s in chips.get(name, ()) if s.current), default=None)
    except Exception:  # no such function on this system, or a sensor that cannot be read
        return None


def _cpu_clock_mhz() -> float | None:
    try:
        return float(psutil.cpu_freq().current) or None
    except Exception:  # as above
        return None


# ── moment by moment ──────────────────────────────────────────────────────────────────────────────


class Tracer:
    """Reads one meter and keeps what it said, never more than ``most`` moments: a full trace drops every second one and slows down."""

    def __init__(self, meter: Meter, *, zero_s: float, interval_s: float = INTERVAL_S, most: int = MAX_MOMENTS, clock: Callable[[], float]) -> None:
        self.meter, self.most = meter, most
        self.interval_s = max(interval_s, meter.least_interval_s)
        self._zero_s, self._clock = zero_s, clock
        self._rows: list[tuple[float, dict[str, float | None]]] = []
        self._counted: dict[str, tuple[float, float]] = {}
        self._broken: set[str] = set()
        self._asked_at_s: float | None = None
        self._lost_at_s: float | None = None

    def take(self) -> bool:
        """One moment more. False when there will be no more: the meter is lost, or has nothing to say."""
        start_s = self._clock() - self._zero_s
        self._asked_at_s = start_s
        try:
            found = self.meter.read()
        except Exception:  # whatever a driver's module raises costs its trace, not the run
            self._lost_at_s = start_s
            found = {}
        self._asked_at_s = None
        if not found:
            return False
        for quantity, wraps_at in self.meter.counters.items():
            if quantity in found:
                found[quantity] = self._count(quantity, found[quantity], wraps_at)
        at_s = (start_s + self._clock() - self._zero_s) / 2
        self._rows.append((at_s, found))
        if len(self._rows) >= self.most:
            self._rows[:] = self._rows[::2]
            self.interval_s *= 2
        return True

    def _count(self, quantity: str, value: float | None, wraps_at: float | None) -> float | None:
        """Counted up from zero at the first moment; a counter that falls although it never wraps is not believed again."""
        if value is None or quantity in self._broken:
            return None
        last, total = self._counted.get(quantity, (value, 0.0))
        if value < last and wraps_at is None:
            self._broken.add(quantity)
            return None
        total += value - last + (wraps_at or 0.0 if value < last else 0.0)
        self._counted[quantity] = (value, total)
        return total

    def latest(self, quantity: str) -> float | None:
        """The last value of a quantity; ``None`` where there is none."""
        return next((found[quantity] for _, found in reversed(self._rows) if found.get(quantity) is not None), None)

    def n_numbers(self) -> int:
        """How many numbers a moment takes."""
        return 1 + len(self._rows[0][1]) if self._rows else 0

    def trace(self, *, hangs: bool = False) -> Trace:
        """What was said so far. With ``hangs`` the question that is still open is the moment at which the meter was lost."""
        rows = list(self._rows)
        quantities = list(dict.fromkeys(quantity for _, found in rows for quantity, value in found.items() if value is not None))
        lost_at_s = self._asked_at_s if hangs and self._lost_at_s is None else self._lost_at_s
        return Trace(
            meter=self.meter.name,
            at_s=tuple(round(max(0.0, at_s), 4) for at_s, _ in rows) if quantities else (),
            values={quantity: tuple(_rounded(found.get(quantity)) for _, found in rows) for quantity in quantities},
            refused=tuple(self.meter.refused),
            lost_at_s=None if lost_at_s is None else round(max(0.0, lost_at_s), 4),
        )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


class Monitor:
    """Watches while its block runs. ``zero_s`` is the monotonic clock's value from which all moments are counted.

    ``meters`` replaces the ones that are there; ``clock`` and ``wait`` let tests play hours in no time: ``wait(seconds)``
    returns whether the run is over.
    """

    def __init__(
        self,
        *,
        interval_s: float = INTERVAL_S,
        meters: Sequence[Meter] | None = None,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], bool] | None = None,
        stop_limit_s: float = STOP_LIMIT_S,
    ) -> None:
        self.zero_s = 0.0
        self._interval_s, self._meters, self._clock = interval_s, meters, clock
        self._stop = threading.Event()
        self._wait = wait or self._stop.wait
        self._stop_limit_s = stop_limit_s
        self._processors = ProcessorTime(clock)
        self._tracers: list[Tracer] = []
        self._threads: list[threading.Thread] = []
        self._traces: tuple[Trace, ...] | None = None
        self._nvml: Any | None = None

    def __enter__(self) -> Self:
        meters = self._all_meters() if self._meters is None else self._meters
        self.zero_s = self._clock()
        self._tracers = [Tracer(meter, zero_s=self.zero_s, interval_s=self._interval_s, clock=self._clock) for meter in meters]
        begun = []
        for tracer in self._tracers:
            begun.append(threading.Event())
            self._threads.append(threading.Thread(target=self._watch, args=(tracer, begun[-1]), daemon=True, name=tracer.meter.name))
            self._threads[-1].start()
        # What a counter said before the run is what it is counted from.
        end = time.monotonic() + self._stop_limit_s
        for event in begun:
            event.wait(max(0.0, end - time.monotonic()))
        most = MAX_NUMBERS // max(1, sum(tracer.n_numbers() for tracer in self._tracers))
        for tracer in self._tracers:
            tracer.most = max(10, min(tracer.most, most))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        end = time.monotonic() + self._stop_limit_s
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        self._traces = tuple(tracer.trace(hangs=thread.is_alive()) for tracer, thread in zip(self._tracers, self._threads, strict=True))
        if self._nvml is not None and not any(thread.is_alive() for thread in self._threads):
            _ask(self._nvml, "nvmlShutdown")  # not under a question that still waits for its answer

    def _all_meters(self) -> list[Meter]:
        self._nvml = _within(DRIVER_LIMIT_S, _start_nvml, None)
        cards = _within(DRIVER_LIMIT_S, lambda: _count(self._nvml), 0)
        return [*(GpuMeter(self._nvml, index) for index in range(cards)), *rapl_meters(), SystemMeter(self._processors)]

    def _watch(self, tracer: Tracer, begun: threading.Event) -> None:
        goes_on = tracer.take()
        begun.set()
        while goes_on and not self._wait(tracer.interval_s):
            goes_on = tracer.take()
        if goes_on:
            tracer.take()  # so that the end of the run lies between two moments

    def traces(self) -> tuple[Trace, ...]:
        """One per meter. After the block they do not change any more, whatever a driver that hung may still say."""
        return tuple(tracer.trace() for tracer in self._tracers) if self._traces is None else self._traces

    def neighbours(self) -> Neighbours | None:
        """Processor time over the run, ours and others'; ``None`` where it could not be read."""
        return self._processors.neighbours()

    def latest(self, quantity: str) -> float | None:
        """The last value of a quantity, of the first meter that has one: graphics cards come first."""
        return next((value for tracer in self._tracers if (value := tracer.latest(quantity)) is not None), None)
