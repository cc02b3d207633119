"""What a machine is called, with cards that are not there: the module that asks the driver is replaced."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from nbutils import engine, probe
from nbutils.errors import MissingExtra
from nbutils.specs import Gpu
from pynvml_stand_in import Card, StandIn

GIB = 2**30


@pytest.fixture
def machine_with(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend to be a machine with these cards and this much memory; gives the stand-in module."""

    def pretend(*cards: Card, memory_gib: float = 64, **options: Any) -> StandIn:
        module = StandIn(*cards, **options)
        monkeypatch.setitem(sys.modules, "pynvml", module)
        memory = SimpleNamespace(total=int(memory_gib * GIB), available=int(memory_gib * GIB * 0.9))
        monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
        monkeypatch.setattr(probe, "_cpu_name", lambda: "A processor")
        return module

    return pretend


def test_a_gb10_that_does_not_tell_its_memory_is_found_by_the_system_memory(machine_with: Any) -> None:
    machine_with(Card("NVIDIA GB10"), memory_gib=121.6)
    machine = probe.machine()
    assert (machine.device, machine.configuration) == ("dgx-spark", "128gb")
    assert machine.gpus[0].memory_bytes is None
    assert "memory" in machine.gpus[0].refused
    assert any("NVIDIA GB10" in note and "system's memory is used" in note for note in machine.notes)


def test_a_graphics_card_is_found_by_its_own_memory_whatever_the_system_has(machine_with: Any) -> None:
    machine_with(Card("NVIDIA GeForce RTX 4090", 24 * GIB - 580 * 2**20, power_limit_w=450), memory_gib=192)
    machine = probe.machine()
    assert (machine.device, machine.configuration) == ("rtx-4090", "24gb")
    assert machine.gpus[0].power_limit_w == 450
    assert machine.gpus[0].refused == ()


@pytest.mark.parametrize(
    ("name", "memory_gib"),
    [
        ("NVIDIA GeForce RTX 5060 Ti", 8),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 16),
        ("NVIDIA GeForce RTX 4090 D", 24),
        ("NVIDIA GeForce RTX 4090", 48),
    ],
)
def test_a_card_of_like_name_or_other_memory_is_not_taken_for_a_listed_one(machine_with: Any, name: str, memory_gib: int) -> None:
    machine_with(Card(name, memory_gib * GIB))
    machine = probe.machine()
    assert (machine.device, machine.configuration) == ("unlisted", "")
    assert "not in the registry: compared only with itself" in machine.notes


def test_the_5060_ti_with_16_gb_is_the_listed_one(machine_with: Any) -> None:
    machine_with(Card("NVIDIA GeForce RTX 5060 Ti", 16 * GIB - 300 * 2**20))
    assert probe.machine().device == "rtx-5060-ti-16gb"


def test_the_memory_that_counts_is_that_of_the_card_whose_name_matched(machine_with: Any) -> None:
    machine_with(Card("NVIDIA T400 4GB", 4 * GIB), Card("NVIDIA GeForce RTX 4090", 24 * GIB))
    assert probe.machine().device == "rtx-4090"


def test_no_driver_means_no_graphics_cards_and_says_so(machine_with: Any) -> None:
    machine_with(has_driver=False)
    machine = probe.machine()
    assert machine.gpus == ()
    assert "no NVIDIA GPU answers NVML" in machine.notes
    assert probe.gpu_states("before") == []


def test_names_that_come_as_bytes_are_text(machine_with: Any) -> None:
    machine_with(Card(b"NVIDIA GeForce RTX 4090", 24 * GIB), driver=b"470.1")
    machine = probe.machine()
    assert machine.device == "rtx-4090"
    assert (machine.gpus[0].name, machine.gpus[0].driver) == ("NVIDIA GeForce RTX 4090", "470.1")


def test_without_nvidia_ml_py_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(MissingExtra, match=r"nvidia-ml-py: pip install"):
        probe.machine()


def test_a_mac_is_found_by_its_chip_and_its_memory() -> None:
    from nbutils import registry

    macs = [d for d in map(registry.load_device, registry.device_ids()) if d.chip_names]
    assert len(macs) > 5
    for device in macs:
        for configuration in device.configurations:
            device_id, configuration_id = probe.identify(device.chip_names[0], (), configuration.memory_bytes)
            found = registry.load_device(device_id)
            assert found.chip_names == device.chip_names
            assert registry.load_configuration(found, configuration_id).memory_bytes == configuration.memory_bytes


def test_of_two_entries_with_one_chip_the_more_special_is_found() -> None:
    """An M4 Max with 36 GB has the smaller GPU; with more memory it has the larger one."""
    assert probe.identify("Apple M4 Max", (), 36 * GIB)[0] == "mac-studio-m4-max-32c"
    assert probe.identify("Apple M4 Max", (), 64 * GIB)[0] == "mac-studio-m4-max"
    assert probe.identify("Apple M4 Max", (), 8 * GIB) == ("unlisted", "")


def test_every_listed_configuration_is_found_from_its_own_name_and_memory() -> None:
    from nbutils import registry

    for device_id in registry.device_ids():
        device = registry.load_device(device_id)
        for name in device.nvml_names:
            for configuration in device.configurations:
                card = Gpu(name=name, memory_bytes=configuration.memory_bytes)
                assert probe.identify("A processor", (card,), configuration.memory_bytes)[0] == device_id


def test_this_machine_fits_its_own_description(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", StandIn(has_driver=False))
    machine = probe.machine()
    assert 1 <= machine.n_cores <= machine.n_threads_hw
    assert 0 < machine.memory_available_bytes <= machine.memory_bytes
    assert 1 <= probe.n_threads_default() <= machine.n_threads_hw


# ── how fast it reads ─────────────────────────────────────────────────────────────────────────────


def yardstick(kind: str, where: str, gb_per_s: float, *samples_s: float) -> dict[str, Any]:
    """A measurement whose median time reads ``gb_per_s``."""
    times = samples_s or (0.1,)
    n_bytes = round(gb_per_s * 1e9 * sorted(times)[len(times) // 2])
    return {"when": "probe", "method": "m", "kind": kind, "where": where, "n_threads": 1, "n_bytes": n_bytes, "samples_s": times}


@pytest.mark.parametrize(
    ("told", "gb_per_s"),
    [
        ([yardstick("read", "cpu", 40), yardstick("read", "cpu", 50), yardstick("copy", "cpu", 90)], 50),
        ([yardstick("read", "cpu", 40, 0.1, 0.001, 0.2)], 40),
        ([yardstick("read", "cpu", 400), yardstick("read", "gpu", 300), yardstick("copy", "gpu", 900)], 300),
    ],
    ids=["the better of two methods, copies left out", "by the median", "where there is a GPU, its memory"],
)
def test_bandwidth_is_what_reading_weights_would_see(told: list[dict[str, Any]], gb_per_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "time_reading", lambda **options: {"yardsticks": told})
    assert probe.bandwidth(seconds=1) == pytest.approx(gb_per_s * 1e9)


def test_the_bandwidth_of_this_machine_is_a_memorys() -> None:
    stages: list[str] = []
    assert 0.2e9 < probe.bandwidth(seconds=0.05, progress=stages.append) < 100e12
    assert stages
