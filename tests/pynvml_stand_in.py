"""A stand-in for pynvml: answers about cards that are not there, and refuses what their drivers refuse.

A card may be a function of time: give the module a clock, and each quantity as a number or as a function of its seconds.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

from nbutils.monitor import GpuMeter, Meter, Tracer
from nbutils.specs import Trace

OverTime = float | Callable[[float], float | None] | None


class NVMLError(Exception):
    """What pynvml raises for every refusal."""


class NVMLError_GpuIsLost(NVMLError):
    """The card fell off the bus."""


@dataclass
class Card:
    """One graphics card. ``None`` is an answer the driver refuses; a function may give it for a while."""

    name: str | bytes
    memory_bytes: int | None = None
    power_limit_w: float | None = None
    lost: bool = False
    power_w: OverTime = 61.5
    #: A counter since the driver was loaded; cards before Volta have none.
    energy_j: OverTime = None
    temperature_c: OverTime = 54
    graphics_clock_mhz: OverTime = 2520
    memory_clock_mhz: OverTime = 10501
    throttle_reasons: OverTime = None
    used_bytes: OverTime = 3 * 2**30
    lost_at_s: float = float("inf")
    #: From then on every question waits for an answer that does not come, until this is set.
    hangs_at_s: float = float("inf")
    released: threading.Event = field(default_factory=threading.Event)
    #: How often each quantity was asked for.
    asked: dict[str, int] = field(default_factory=dict)


class Clock:
    """Seconds that pass when somebody says so."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


class StandIn(ModuleType):
    """The module itself; put it into ``sys.modules['pynvml']``. Counts how often it was started and shut down.

    ``old`` is a driver that knows throttle reasons by their former name only.
    """

    NVMLError, NVMLError_GpuIsLost = NVMLError, NVMLError_GpuIsLost
    NVML_CLOCK_GRAPHICS, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 0, 2, 0

    def __init__(
        self, *cards: Card, driver: str | bytes = "580.95.05", has_driver: bool = True, clock: Callable[[], float] = lambda: 0.0, old: bool = False
    ) -> None:
        super().__init__("pynvml")
        self.cards, self.driver, self.has_driver, self.clock, self.old = cards, driver, has_driver, clock, old
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
            raise NVMLError_GpuIsLost("GPU is lost")
        return self.cards[index]

    def nvmlDeviceGetName(self, card: Card) -> str | bytes:
        return card.name

    def nvmlDeviceGetMemoryInfo(self, card: Card) -> Any:
        return SimpleNamespace(total=_told(card.memory_bytes), used=round(self._now(card, "used_bytes")))

    def nvmlDeviceGetPowerManagementLimit(self, card: Card) -> int:
        return round(1000 * _told(card.power_limit_w))

    def nvmlDeviceGetPowerUsage(self, card: Card) -> int:
        return round(1000 * self._now(card, "power_w"))

    def nvmlDeviceGetTotalEnergyConsumption(self, card: Card) -> int:
        return round(1000 * self._now(card, "energy_j"))

    def nvmlDeviceGetClockInfo(self, card: Card, clock: int) -> int:
        return round(self._now(card, {self.NVML_CLOCK_GRAPHICS: "graphics_clock_mhz", self.NVML_CLOCK_MEM: "memory_clock_mhz"}[clock]))

    def nvmlDeviceGetTemperature(self, card: Card, sensor: int) -> int:
        return round(self._now(card, "temperature_c"))

    def nvmlDeviceGetCurrentClocksEventReasons(self, card: Card) -> int:
        if self.old:
            raise NVMLError("Function Not Found")
        return round(self._now(card, "throttle_reasons"))

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, card: Card) -> int:
        return round(self._now(card, "throttle_reasons"))

    def _now(self, card: Card, quantity: str) -> float:
        card.asked[quantity] = card.asked.get(quantity, 0) + 1
        now_s = self.clock()
        if card.lost or now_s >= card.lost_at_s:
            raise NVMLError_GpuIsLost("GPU is lost")
        if now_s >= card.hangs_at_s:
            card.released.wait()
        value = getattr(card, quantity)
        return float(_told(value(now_s) if callable(value) else value))


def _told(value: Any) -> Any:
    if value is None:
        raise NVMLError("Not Supported")
    return value


def card_of(clock: Clock, **quantities: Any) -> GpuMeter:
    """The meter of a card whose quantities are these."""
    return GpuMeter(StandIn(Card("NVIDIA GeForce RTX 4090", 24 * 2**30, **quantities), clock=clock), 0)


def watched(
    meter: Meter,
    clock: Clock,
    *,
    seconds: float,
    interval_s: float = 0.5,
    most: int = 1200,
    jitter_s: float = 0.0,
    before: Callable[[], None] = lambda: None,
) -> Trace:
    """What a tracer keeps of ``seconds`` that pass at once, woken up to ``jitter_s`` late; ``before`` runs before each moment."""
    tracer = Tracer(meter, zero_s=clock(), interval_s=interval_s, most=most, clock=clock)
    late = random.Random(1)
    before()
    while tracer.take() and clock() < seconds:
        clock.advance(tracer.interval_s + jitter_s * late.random())
        before()
    return tracer.trace()
