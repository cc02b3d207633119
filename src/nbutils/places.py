"""What ``--device`` names: a configuration of a device in the registry, or ``this`` machine. All become a ``Place``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from nbutils import predict, probe, registry
from nbutils.errors import UnknownId, UsageError, did_you_mean
from nbutils.fit import Room, room
from nbutils.specs import BackendName, Configuration, Device, Machine, Runtimes, SystemName

__all__ = ["OWN", "THIS", "Place", "all_places", "family_of", "find", "largest", "place", "typed"]

THIS = "this"
#: The id of a machine that somebody describes.
OWN = "own"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One configuration of a device, as far as limits and fit care. ``None`` is unknown."""

    device_id: str
    configuration: str
    #: As it is sold: 128 for "128 GB".
    memory_gb: float
    room: Room
    backend: BackendName
    #: Whether a graphics card with a memory of its own is meant.
    discrete: bool = False
    device: Device | None = None
    #: One of ``predict.FAMILIES``; empty where nothing is known.
    family: str = ""
    #: The dense FP16 peak of a machine that somebody describes.
    typed_peak_flop_per_s: float | None = None
    bandwidth_bytes_per_s: float | None = None
    power_w: float | None = None
    price_usd: float | None = None
    #: Titles of the sources of ``memory``, ``unusable``, ``system``, ``overhead`` and ``bandwidth``.
    sources: Mapping[str, str] = field(default_factory=dict)

    def runs(self, engine_name: str) -> bool:
        """Whether an engine is made for such a machine: MLX for Apple's, vLLM for the others, llama.cpp for all."""
        return engine_name == "llama.cpp" or (engine_name == "mlx") == (self.family == "apple")

    def peak(self, arithmetic: tuple[str, ...]) -> tuple[float | None, str]:
        """The best dense peak in any of these types in FLOP/s, and its type and source; ``None`` where none is known."""
        if self.typed_peak_flop_per_s is not None:
            return self.typed_peak_flop_per_s, "typed"
        chosen = self.device.configuration(self.configuration) if self.device else None
        found = self.device.peak(*arithmetic, configuration=chosen) if self.device else None
        if found is None or self.device is None:
            return None, ""
        return found.base("compute"), f"{found.dtype.upper()}, {self.device.sources[found.source].title}"


def place(device: Device, configuration: Configuration) -> Place:
    """One configuration of a device, with the system and the backend it is usually run with."""
    runtimes = registry.load_runtimes()
    usable = configuration.usable
    return Place(
        device_id=device.id,
        configuration=configuration.id,
        memory_gb=configuration.memory.value,
        room=room(device, configuration, runtimes),
        backend=device.backend,
        discrete=device.memory_kind == "discrete",
        device=device,
        family=family_of(device, configuration),
        bandwidth_bytes_per_s=configuration.bandwidth_bytes_per_s,
        power_w=device.power.base("power") if device.power else None,
        price_usd=configuration.price.base("price") if configuration.price else None,
        sources={
            "memory": device.sources[configuration.memory.source].title,
            "unusable": device.sources[usable.source].title if usable else "no source says that any is",
            "bandwidth": device.sources[configuration.bandwidth.source].title,
            **({"power": device.sources[device.power.source].title} if device.power else {}),
            **({"price": device.sources[configuration.price.source].title} if configuration.price else {}),
            **_runtime_sources(runtimes, device.backend, device.system, device.memory_kind),
        },
    )


def family_of(device: Device, configuration: Configuration) -> str:
    """The family whose constants predictions have: cards with stacked memory are one of their own."""
    stacked = device.family == "nvidia-discrete" and configuration.bandwidth_bytes_per_s >= predict.HBM_GB_PER_S * 1e9
    return "nvidia-hbm" if stacked else device.family


def typed(
    *,
    memory_gb: float,
    bandwidth_gb_per_s: float,
    family: str,
    peak_flop_per_s: float | None = None,
    power_w: float | None = None,
    price_usd: float | None = None,
) -> Place:
    """A machine that somebody describes, with ``memory_gb`` of 2^30 bytes, as memory is sold.

    What of it a model may use is told by the registry's machine of that family with the nearest memory; by the figures of Linux and the CPU
    backend where the registry has none.
    """
    memory = round(memory_gb * 2**30)
    alike = [p for p in all_places() if p.family == family]
    like = min(alike, key=lambda p: max(p.room.memory_bytes / memory, memory / p.room.memory_bytes), default=None)
    runtimes = registry.load_runtimes()
    if like is None:
        own = Room(
            memory_bytes=memory,
            unusable_bytes=0,
            system_bytes=round(runtimes.systems["linux"].unified.base("memory")),
            overhead_bytes=round(runtimes.backends["cpu"].overhead.base("memory")),
        )
        said = {"unusable": "no source says that any is", **_runtime_sources(runtimes, "cpu", "linux", "unified")}
    else:
        assert like.device is not None
        share = 1 - like.room.unusable_bytes / like.room.memory_bytes
        own = replace(like.room, memory_bytes=memory, unusable_bytes=memory - round(memory * share))
        said = {**like.sources, "unusable": f"the share of {like.device.name}, {like.configuration}"}
    return Place(
        device_id=OWN,
        configuration="",
        memory_gb=memory_gb,
        room=own,
        backend="cpu" if like is None else like.backend,
        discrete=like is not None and like.discrete,
        family=family,
        typed_peak_flop_per_s=peak_flop_per_s,
        bandwidth_bytes_per_s=bandwidth_gb_per_s * 1e9,
        power_w=power_w,
        price_usd=price_usd,
        sources={**said, **dict.fromkeys(("memory", "bandwidth", "power", "price"), "typed")},
    )


def _runtime_sources(runtimes: Runtimes, backend: BackendName, system: SystemName, memory_kind: str) -> dict[str, str]:
    cost = runtimes.systems[system]
    keeps = cost.unified if memory_kind == "unified" else cost.discrete
    overhead = runtimes.backends[backend].overhead
    return {"system": runtimes.sources[keeps.source].title, "overhead": runtimes.sources[overhead.source].title}


def all_places() -> list[Place]:
    """Every configuration of every device of the registry."""
    devices = [registry.load_device(device_id) for device_id in registry.device_ids()]
    return [place(device, configuration) for device in devices for configuration in device.configurations]


def find(device_id: str, *, memory_gb: float | None = None, configuration: str = "") -> list[Place]:
    """The configurations that a device id names: those of ``memory_gb`` as sold, or the one called ``configuration``, or all.

    ``this`` is the machine this runs on, found in the registry or judged by what it says of itself.
    """
    if device_id == THIS:
        machine = probe.machine()
        if memory_gb is not None:
            raise UsageError(f"--memory-gb {memory_gb:g} does not go with --device this: its memory is what it is")
        if configuration:
            raise UsageError(f"--configuration {configuration!r} does not go with --device this: it is the one it is")
        if machine.device == "unlisted":
            return [_unlisted(machine)]
        device_id, configuration = machine.device, machine.configuration
    if device_id not in registry.device_ids():
        raise UnknownId(f"no device {device_id!r} in data/devices{did_you_mean(device_id, [*registry.device_ids(), THIS])}")
    device = registry.load_device(device_id)
    named = [registry.load_configuration(device, configuration)] if configuration else device.configurations
    chosen = [c for c in named if memory_gb is None or c.memory.value == memory_gb]
    if not chosen and configuration:
        raise UsageError(f"{device_id} {configuration} has {named[0].memory.value:g} GB, not {memory_gb:g}; leave one of the two out")
    if not chosen:
        sizes = ", ".join(f"{n:g}" for n in sorted({c.memory.value for c in device.configurations}))
        raise UsageError(f"{device_id} is not sold with {memory_gb:g} GB; it is with {sizes}")
    return [place(device, c) for c in chosen]


def largest(found: list[Place]) -> Place:
    """Of several configurations the one with most memory, and of equals the fastest."""
    return max(found, key=lambda p: (p.memory_gb, p.bandwidth_bytes_per_s or 0.0))


def _unlisted(machine: Machine) -> Place:
    """A machine that the registry does not know: its memory as its system reports it, its bandwidth unknown."""
    runtimes = registry.load_runtimes()
    gpu = next((g for g in machine.gpus if g.memory_bytes), None)
    memory = gpu.memory_bytes if gpu and gpu.memory_bytes else machine.memory_bytes
    usable = machine.apple_working_set_bytes or memory
    system: SystemName = "macos" if machine.system.startswith("Darwin") else "windows" if machine.system.startswith("Windows") else "linux"
    cost = runtimes.systems[system]
    backend: BackendName = "cuda" if gpu else "metal" if system == "macos" and machine.architecture == "arm64" else "cpu"
    said = {"memory": "what this machine says", "unusable": "what this machine says"}
    if not gpu:
        said["system"] = "in use when asked"
    return Place(
        device_id=THIS,
        configuration="",
        memory_gb=round(memory / 2**30, 1),
        room=Room(
            memory_bytes=memory,
            unusable_bytes=max(0, memory - usable),
            system_bytes=round(cost.discrete.base("memory")) if gpu else max(0, machine.memory_bytes - machine.memory_available_bytes),
            overhead_bytes=round(runtimes.backends[backend].overhead.base("memory")),
        ),
        backend=backend,
        discrete=gpu is not None,
        sources={**_runtime_sources(runtimes, backend, system, "discrete"), **said},
    )
