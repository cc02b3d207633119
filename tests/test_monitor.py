"""Meters beside a run: what they say is kept, what they refuse is asked once, and one that is lost or hangs costs its own trace only."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbutils import monitor
from nbutils.monitor import GpuMeter, Monitor, ProcessorTime, Tracer
from pynvml_stand_in import Card, Clock, StandIn, card_of, watched

GIB = 2**30


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a driver with these cards in the place of NVML; gives the module."""

    def install(*cards: Card, **options: Any) -> StandIn:
        module = StandIn(*cards, **options)
        monkeypatch.setitem(sys.modules, "pynvml", module)
        return module

    return install


# ── one graphics card, moment by moment ───────────────────────────────────────────────────────────


def test_a_card_that_answers_is_traced_in_watts_joules_degrees_and_bits() -> None:
    clock = Clock()
    trace = watched(
        card_of(clock, power_w=lambda t: 100 + t, energy_j=lambda t: 5000 + 100 * t, temperature_c=lambda t: 40 + t, throttle_reasons=4),
        clock,
        seconds=2,
    )
    assert trace.meter == "NVML GPU 0"
    assert trace.at_s == (0, 0.5, 1, 1.5, 2)
    assert trace.values["power_w"] == (100, 100.5, 101, 101.5, 102)
    assert trace.values["energy_j"] == (0, 50, 100, 150, 200), "counted from the start of the run"
    assert trace.values["temperature_c"] == (40, 40, 41, 42, 42)
    assert trace.values["throttle_reasons"] == (4,) * 5
    assert trace.values["graphics_clock_mhz"] == (2520,) * 5
    assert trace.values["memory_clock_mhz"] == (10501,) * 5
    assert trace.values["used_bytes"] == (3 * GIB,) * 5
    assert (trace.refused, trace.lost_at_s) == ((), None)


def test_what_a_driver_refuses_is_named_and_asked_for_once() -> None:
    clock = Clock()
    card = Card("NVIDIA GB10", energy_j=None, throttle_reasons=None)
    trace = watched(GpuMeter(StandIn(card, clock=clock), 0), clock, seconds=5)
    assert trace.refused == ("energy_j", "throttle_reasons", "used_bytes")
    assert set(trace.values) == {"power_w", "temperature_c", "graphics_clock_mhz", "memory_clock_mhz"}
    assert card.asked["energy_j"] == 1
    assert card.asked["power_w"] == len(trace.at_s) == 11


def test_an_older_driver_knows_throttle_reasons_by_their_former_name() -> None:
    clock = Clock()
    trace = watched(GpuMeter(StandIn(Card("A card", throttle_reasons=0x20), clock=clock, old=True), 0), clock, seconds=1)
    assert trace.values["throttle_reasons"] == (0x20,) * 3


def test_a_module_without_a_function_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(StandIn, "nvmlDeviceGetTotalEnergyConsumption")
    clock = Clock()
    assert "energy_j" in watched(card_of(clock, energy_j=1.0), clock, seconds=1).refused


def test_a_card_that_tells_nothing_has_an_empty_trace_and_is_not_lost() -> None:
    clock = Clock()
    mute = dict.fromkeys(("power_w", "temperature_c", "graphics_clock_mhz", "memory_clock_mhz"))
    trace = watched(GpuMeter(StandIn(Card("A part of a card", **mute), clock=clock), 0), clock, seconds=5)
    assert (trace.at_s, trace.values, trace.lost_at_s) == ((), {}, None)
    assert "power_w" in trace.refused


@pytest.mark.parametrize("how", ["it says so", "nothing is answered any more"])
def test_a_card_lost_in_mid_run_keeps_what_it_said_and_is_left_alone(how: str) -> None:
    clock = Clock()
    gone = {q: lambda t: 50 if t < 3 else None for q in ("power_w", "temperature_c", "graphics_clock_mhz", "memory_clock_mhz", "used_bytes")}
    card = Card("A card", 8 * GIB, **({"lost_at_s": 3.0} if how == "it says so" else gone))
    trace = watched(GpuMeter(StandIn(card, clock=clock), 0), clock, seconds=10)
    assert trace.lost_at_s == 3
    assert trace.at_s == (0, 0.5, 1, 1.5, 2, 2.5)
    assert set(trace.values["temperature_c"]) <= {50, 54}
    assert card.asked["power_w"] == 7


def test_a_card_lost_before_the_run_is_a_lost_trace() -> None:
    clock = Clock()
    trace = watched(GpuMeter(StandIn(Card("A card", lost=True), clock=clock), 0), clock, seconds=5)
    assert (trace.at_s, trace.lost_at_s) == ((), 0)


def test_a_single_answer_that_fails_is_a_hole() -> None:
    clock = Clock()
    trace = watched(card_of(clock, power_w=lambda t: None if t == 1 else 80), clock, seconds=2)
    assert trace.values["power_w"] == (80, 80, None, 80, 80)
    assert trace.lost_at_s is None


def test_a_counter_that_falls_although_it_never_wraps_is_not_believed_again() -> None:
    """The driver was loaded anew: what was used between two moments is unknown, and nought would be a lie."""
    clock = Clock()
    trace = watched(card_of(clock, energy_j=lambda t: 100 * t if t < 1.2 else 100 * (t - 1.2)), clock, seconds=2)
    assert trace.values["energy_j"] == (0, 50, 100, None, None)


def test_whatever_else_a_driver_raises_costs_the_trace_not_the_run() -> None:
    clock = Clock()
    trace = watched(card_of(clock, power_w=lambda t: 80 if t < 1 else 1 // 0), clock, seconds=2)
    assert (len(trace.at_s), trace.lost_at_s) == (2, 1)


# ── long runs ─────────────────────────────────────────────────────────────────────────────────────


@given(seconds=st.floats(1, 20_000), most=st.integers(4, 60), jitter_s=st.floats(0, 3))
def test_a_trace_of_any_length_stays_short_and_reaches_from_start_to_end(seconds: float, most: int, jitter_s: float) -> None:
    clock = Clock()
    trace = watched(card_of(clock, energy_j=lambda t: 300 * t), clock, seconds=seconds, most=most, jitter_s=jitter_s)
    assert 2 <= len(trace.at_s) < most
    assert trace.at_s[0] == 0
    # Full, it is halved; what is left out at the end is no longer than the distance of its moments.
    assert clock() - trace.at_s[-1] <= max(b - a for a, b in zip(trace.at_s, trace.at_s[1:], strict=False)) + jitter_s + 0.5
    for at, joules in zip(trace.at_s, trace.values["energy_j"], strict=True):
        assert joules == pytest.approx(300 * at, abs=0.1), "a counter that is read less often is still exact"


def test_many_cards_share_the_room_of_a_record(driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "MAX_NUMBERS", 2000)
    driver(*(Card("A card", 8 * GIB) for _ in range(8)))
    with Monitor(interval_s=0.001) as watch:
        time.sleep(0.5)
    traces = watch.traces()
    assert len(traces) >= 9
    assert sum(len(t.at_s) * (1 + len(t.values)) for t in traces) <= 2000


# ── the threads ───────────────────────────────────────────────────────────────────────────────────


def test_the_run_lies_between_the_first_moment_and_the_last(driver: Any) -> None:
    start = time.monotonic()
    module = driver(Card("A card", 8 * GIB, energy_j=lambda t: 250 * t), clock=lambda: time.monotonic() - start)
    with Monitor(interval_s=10) as watch:
        begun_s = time.monotonic() - watch.zero_s
        time.sleep(0.05)
        ended_s = time.monotonic() - watch.zero_s
        assert watch.latest("temperature_c") == 54
        assert watch.latest("humidity") is None
    card, *_ = watch.traces()
    assert card.at_s[0] <= begun_s < ended_s <= card.at_s[-1]
    assert len(card.at_s) == 2
    assert card.values["energy_j"][-1] == pytest.approx(250 * (card.at_s[-1] - card.at_s[0]), rel=0.2)
    assert (module.n_started, module.n_shut_down) == (1, 1)


def test_a_clock_and_a_wait_of_its_own_play_an_hour_at_once() -> None:
    clock = Clock()

    def wait(seconds: float) -> bool:
        clock.advance(seconds)
        return clock() >= 3600

    with Monitor(meters=[card_of(clock, energy_j=lambda t: 300 * t)], clock=clock, wait=wait, interval_s=0.5, stop_limit_s=10) as watch:
        pass
    (trace,) = watch.traces()
    assert trace.at_s[-1] >= 3600
    assert len(trace.at_s) <= monitor.MAX_MOMENTS
    assert trace.values["energy_j"][-1] == 300 * trace.at_s[-1]


def test_a_driver_that_hangs_does_not_hang_the_run_nor_the_other_cards(driver: Any) -> None:
    start = time.monotonic()
    stuck, fine = Card("A card", 8 * GIB, hangs_at_s=0.05), Card("Another", 8 * GIB)
    module = driver(stuck, fine, clock=lambda: time.monotonic() - start)
    with Monitor(interval_s=0.01, stop_limit_s=0.3) as watch:
        time.sleep(0.3)
    assert time.monotonic() - start < 5
    first, second, *_ = watch.traces()
    assert first.lost_at_s is not None
    assert first.at_s
    assert first.lost_at_s >= first.at_s[-1]
    assert second.lost_at_s is None
    assert second.at_s[-1] > 0.25
    assert module.n_shut_down == 0, "not under a question that is still open"
    stuck.released.set()
    time.sleep(0.05)
    assert watch.traces()[0] == first, "what it says when nobody waits any more is not part of the run"


def test_a_driver_that_hangs_when_it_is_asked_what_there_is_means_no_cards(driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "DRIVER_LIMIT_S", 0.05)
    card = Card("A card", 8 * GIB, hangs_at_s=0)
    driver(card)
    try:
        assert monitor.gpu_states("before") == []
        assert monitor.gpu_used_bytes() == []
    finally:
        card.released.set()


def test_an_error_in_the_block_passes_and_the_threads_end(driver: Any) -> None:
    module = driver(Card("A card", 8 * GIB))
    with pytest.raises(KeyError), Monitor(interval_s=0.01) as watch:
        raise KeyError
    assert len(watch.traces()) >= 2
    assert module.n_shut_down == 1


def test_without_a_driver_the_system_is_watched(driver: Any) -> None:
    driver(has_driver=False)
    with Monitor() as watch:
        pass
    traces = watch.traces()
    assert not [t for t in traces if t.meter.startswith("NVML")]
    system = traces[-1]
    assert system.meter == "system"
    assert set(system.values) | set(system.refused) <= {"temperature_c", "cpu_clock_mhz", "others_cpus", "stolen_cpus"}


# ── whose processor time ──────────────────────────────────────────────────────────────────────────

BURN = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass"


def test_what_a_child_spends_is_ours_also_after_it_ended(driver: Any) -> None:
    driver(has_driver=False)
    with Monitor() as watch:
        subprocess.run([sys.executable, "-c", BURN], check=True)
    found = watch.neighbours()
    assert found is not None
    assert found.n_cpus == psutil.cpu_count()
    assert found.wall_s > 0.3
    if os.name == "posix":
        assert found.own_s >= 0.28
    assert found.own_s < found.wall_s * found.n_cpus + 0.5


class Machine:
    """Processor times that a test writes down: ours, our ended children's, those of living ones, everybody's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = Clock()
        self.own = self.reaped = self.busy = 0.0
        self.steal: float | None = None
        self.living: dict[int, float] = {}
        monkeypatch.setattr(os, "times", lambda: SimpleNamespace(user=self.own, system=0.0, children_user=self.reaped, children_system=0.0))
        monkeypatch.setattr(psutil, "cpu_times", self._cpu_times)
        monkeypatch.setattr(psutil, "cpu_count", lambda: 4)
        monkeypatch.setattr(monitor, "_children_s", lambda: {(pid, 0.0): spent for pid, spent in self.living.items()})

    def _cpu_times(self) -> Any:
        return SimpleNamespace(user=self.busy, system=0.0, idle=1e6, iowait=55.0, **({} if self.steal is None else {"steal": self.steal}))


@pytest.mark.parametrize("counts_ended_children", [True, False])
def test_others_are_what_is_left_of_everybody(counts_ended_children: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    machine.own, machine.reaped, machine.busy, machine.living = 100.0, 7.0, 5000.0, {1: 40.0}
    time_spent = ProcessorTime(machine.clock)
    time_spent.look()
    assert time_spent.neighbours() is None
    assert time_spent.shares() == {"others_cpus": None, "stolen_cpus": None}
    # A child that was there before spends 1 s, a new one 10; we ourselves 2; others 8.
    machine.clock.advance(10)
    machine.own, machine.living, machine.busy = 102.0, {1: 41.0, 2: 10.0}, 5021.0
    time_spent.look()
    assert time_spent.shares()["others_cpus"] == pytest.approx(0.8)
    # The new one ends; others spend 4 s more.
    machine.clock.advance(10)
    machine.living, machine.busy = {1: 41.0}, 5025.0
    machine.reaped = 17.0 if counts_ended_children else 7.0
    time_spent.look()
    assert time_spent.shares() == {"others_cpus": pytest.approx(0.4), "stolen_cpus": None}
    found = time_spent.neighbours()
    assert found is not None
    assert (found.wall_s, found.n_cpus, found.own_s, found.others_s, found.stolen_s) == (20, 4, 13, 12, None)


def test_what_the_host_takes_away_is_told_where_the_system_counts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    machine.steal = 3.0
    time_spent = ProcessorTime(machine.clock)
    time_spent.look()
    machine.clock.advance(8)
    machine.steal = 5.0
    time_spent.look()
    assert time_spent.shares()["stolen_cpus"] == 0.25
    found = time_spent.neighbours()
    assert found is not None
    assert found.stolen_s == 2


def test_two_looks_at_once_say_nothing_about_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processor time ticks in hundredths of a second."""
    machine = Machine(monkeypatch)
    time_spent = ProcessorTime(machine.clock)
    time_spent.look()
    machine.clock.advance(0.01)
    machine.busy = 0.01
    time_spent.look()
    assert time_spent.shares()["others_cpus"] is None


# ── the processor's energy counters ───────────────────────────────────────────────────────────────


@pytest.fixture
def powercap(tmp_path: Path) -> Any:
    """A folder as Linux shows it; gives a function that writes one domain's counter."""
    if os.name == "nt":
        pytest.skip("Linux's names hold colons")

    def put(zone: str, name: str, energy_uj: object, max_uj: int = 262_143_328_850) -> Path:
        folder = tmp_path / zone
        folder.mkdir(exist_ok=True)
        (folder / "name").write_text(name + "\n")
        (folder / "max_energy_range_uj").write_text(f"{max_uj}\n")
        (folder / "energy_uj").write_text(f"{energy_uj}\n")
        return tmp_path

    return put


def test_packages_their_memory_and_the_platform_are_meters_and_parts_of_them_are_not(powercap: Any) -> None:
    powercap("intel-rapl:0", "package-0", 1)
    powercap("intel-rapl:0:0", "core", 1)
    powercap("intel-rapl:0:1", "uncore", 1)
    powercap("intel-rapl:0:2", "dram", 1)
    powercap("intel-rapl:1", "psys", 1)
    folder = powercap("intel-rapl-mmio:0", "package-0", 1)
    assert [m.name for m in monitor.rapl_meters(folder)] == ["RAPL package-0", "RAPL package-0 dram", "RAPL psys"]
    assert monitor.rapl_meters(folder / "nothing") == []


def test_a_counter_that_wraps_goes_on(powercap: Any) -> None:
    clock = Clock()
    folder = powercap("intel-rapl:0", "package-0", 99_000_000, 100_000_000)
    (meter,) = monitor.rapl_meters(folder)
    tracer = Tracer(meter, zero_s=0.0, clock=clock)
    for microjoules in (99_000_000, 500_000, 60_000_000, 10_000_000):
        powercap("intel-rapl:0", "package-0", microjoules, 100_000_000)
        assert tracer.take()
        clock.advance(1)
    assert tracer.trace().values["energy_j"] == (0, 1.5, 61, 111)


def test_a_counter_for_root_alone_is_refused_and_asked_once(powercap: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = powercap("intel-rapl:0", "package-0", 5)
    read_text, asked = Path.read_text, []

    def denied(path: Path, **options: Any) -> str:
        if path.name == "energy_uj":
            asked.append(path)
            raise PermissionError(13, "Permission denied")
        return read_text(path, **options)

    monkeypatch.setattr(Path, "read_text", denied)
    (meter,) = monitor.rapl_meters(folder)
    trace = watched(meter, Clock(), seconds=3)
    assert (trace.meter, trace.refused, trace.at_s, trace.lost_at_s) == ("RAPL package-0", ("energy_j",), (), None)
    assert len(asked) == 1


def test_a_counter_that_goes_away_is_lost(powercap: Any) -> None:
    folder = powercap("intel-rapl:0", "package-0", 5)
    clock = Clock()
    (meter,) = monitor.rapl_meters(folder)
    tracer = Tracer(meter, zero_s=0.0, clock=clock)
    assert tracer.take()
    (folder / "intel-rapl:0" / "energy_uj").unlink()
    clock.advance(2)
    assert not tracer.take()
    assert tracer.trace().lost_at_s == 2


# ── before and after a run ────────────────────────────────────────────────────────────────────────


def test_a_state_holds_what_the_driver_tells_and_leaves_out_what_it_refuses(driver: Any) -> None:
    driver(Card("NVIDIA GeForce RTX 4090", 24 * GIB))
    (state,) = monitor.gpu_states("before")
    assert state.pop("time").endswith("+00:00")
    assert state == {
        "when": "before",
        "gpu": 0,
        "graphics_clock_mhz": 2520,
        "memory_clock_mhz": 10501,
        "power_w": 61.5,
        "temperature_c": 54,
        "used_bytes": 3 * GIB,
    }


def test_a_card_lost_in_mid_run_is_a_state_not_an_error(driver: Any) -> None:
    card = Card("NVIDIA GeForce RTX 4090", 24 * GIB)
    driver(card)
    assert "lost" not in monitor.gpu_states("before")[0]
    card.lost = True
    (state,) = monitor.gpu_states("after")
    assert state["lost"] is True
    assert "temperature_c" not in state
    assert monitor.gpus()[0].refused == ("handle",)


def test_memory_in_use_is_told_for_each_card_or_not(driver: Any) -> None:
    driver(Card("A card", 8 * GIB, used_bytes=GIB), Card("NVIDIA GB10"), Card("Another", lost=True))
    assert monitor.gpu_used_bytes() == [GIB, None, None]
    driver(has_driver=False)
    assert monitor.gpu_used_bytes() == []


def test_nvml_is_shut_down_as_often_as_it_was_started(driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = driver(Card("NVIDIA GeForce RTX 4090", 24 * GIB))
    monitor.gpus()
    monitor.gpu_states("before")
    monitor.gpu_used_bytes()
    with Monitor():
        pass
    monkeypatch.setattr(monitor, "_gpu_state", lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        monitor.gpu_states("after")
    assert (module.n_started, module.n_shut_down) == (5, 5)
