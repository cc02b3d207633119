"""A stand-in for pynvml: answers about cards that are not there, and refuses what their drivers refuse."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any


class NVMLError(Exception):
    """What pynvml raises for every refusal."""


@dataclass
class Card:
    """One graphics card. ``None`` is an answer the driver refuses."""

    name: str | bytes
    memory_bytes: int | None = None
    power_limit_w: float | None = None
    lost: bool = False


class StandIn(ModuleType):
    """The module itself; put it into ``sys.modules['pynvml']``. Counts how often it was started and shut down."""

    NVMLError = NVMLError
    NVML_CLOCK_GRAPHICS, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 0, 2, 0

    def __init__(self, *cards: Card, driver: str | bytes = "580.95.05", has_driver: bool = True) -> None:
        super().__init__("pynvml")
        self.cards, self.driver, self.has_driver = cards, driver, has_driver
        self.n_started = self.n_shut_down = 0

    def nvmlInit(self) -> None:
        if not self.has_driver:
            raise NVMLError("NVML Shared Library Not Found")
        self.n_started += 1

    def nvmlShutdown(self) -> None:
        self.n_shut_down += 1

    def nvmlSystemGetDriverVersion(self) -> str | bytes:
        return self.driver

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Card:
        if self.cards[index].lost:
            raise NVMLError("GPU is lost")
        return self.cards[index]

    def nvmlDeviceGetName(self, card: Card) -> str | bytes:
        return card.name

    def nvmlDeviceGetMemoryInfo(self, card: Card) -> Any:
        return SimpleNamespace(total=_told(card.memory_bytes))

    def nvmlDeviceGetPowerManagementLimit(self, card: Card) -> int:
        return round(1000 * _told(card.power_limit_w))

    def nvmlDeviceGetPowerUsage(self, card: Card) -> int:
        return 61_500

    def nvmlDeviceGetClockInfo(self, card: Card, clock: int) -> int:
        return {self.NVML_CLOCK_GRAPHICS: 2520, self.NVML_CLOCK_MEM: 10501}[clock]

    def nvmlDeviceGetTemperature(self, card: Card, sensor: int) -> int:
        return 54

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, card: Card) -> int:
        raise NVMLError("Not Supported")


def _told(value: Any) -> Any:
    if value is None:
        raise NVMLError("Not Supported")
    return value
