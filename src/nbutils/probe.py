"""What is this machine: processor, memory, graphics cards, and how fast they really are.

"None" is a normal answer. Vendor figures stay in the registry; what is found here goes into a record.
"""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from nbutils import engine, monitor, registry
from nbutils.monitor import gpu_states
from nbutils.specs import Device, Gpu, KernelRate, Machine, Yardstick

__all__ = ["bandwidth", "gpu_states", "identify", "machine", "n_threads_allowed", "n_threads_default", "speed"]

#: How far a reported memory size may lie under the nominal one: firmware and kernel keep some of it.
_MEMORY_TOLERANCE = 0.12


def machine() -> Machine:
    """Everything about this machine that needs no timing."""
    memory = psutil.virtual_memory()
    gpus = tuple(monitor.gpus())
    cpu = _cpu_name()
    working_set = _apple_working_set(memory.total)
    device, configuration = identify(cpu, gpus, memory.total)
    notes = []
    if not gpus:
        notes.append("no NVIDIA GPU answers NVML")
    for gpu in gpus:
        if gpu.memory_bytes is None:
            notes.append(f"NVML does not say how much memory {gpu.name} has; the system's memory is used instead")
    if device == "unlisted":
        notes.append("not in the registry: compared only with itself")
    return Machine(
        device=device,
        configuration=configuration,
        system=f"{platform.system()} {platform.release()}"[:200],
        architecture=platform.machine(),
        cpu=cpu,
        n_cores=psutil.cpu_count(logical=False) or os.cpu_count() or 1,
        n_threads_hw=psutil.cpu_count(logical=True) or 1,
        memory_bytes=memory.total,
        memory_available_bytes=memory.available,
        gpus=gpus,
        apple_working_set_bytes=working_set,
        notes=tuple(notes),
    )


def n_threads_default() -> int:
    """One thread per physical core this process may use: what llama.cpp's own tools start with."""
    allowed = n_threads_allowed()
    return max(1, min(psutil.cpu_count(logical=False) or allowed, allowed))


def n_threads_allowed() -> int:
    """Hardware threads this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def identify(cpu: str, gpus: tuple[Gpu, ...], system_memory_bytes: int) -> tuple[str, str]:
    """The registry's device and configuration for this machine, or ``("unlisted", "")``.

    Names are compared whole; of several configurations the one is taken whose memory is nearest, within 12 %.
    """
    found: list[tuple[int, str, str]] = []
    for device_id in registry.device_ids():
        device = registry.load_device(device_id)
        named = [gpu for gpu in gpus if gpu.name in device.nvml_names]
        if named or cpu in device.chip_names:
            own = named[0].memory_bytes if named and device.memory_kind == "discrete" else None
            if configuration := _nearest_configuration(device, own or system_memory_bytes):
                found.append((len(device.configurations), device_id, configuration))
    # Two entries may share a chip: the one with fewer configurations is the more special.
    return min(found)[1:] if found else ("unlisted", "")


def _nearest_configuration(device: Device, memory_bytes: int) -> str:
    best = min(device.configurations, key=lambda c: abs(c.memory_bytes - memory_bytes))
    return best.id if abs(best.memory_bytes - memory_bytes) <= _MEMORY_TOLERANCE * best.memory_bytes else ""


def speed(*, seconds: float, n_threads: int, use_gpu: bool, progress: engine.Progress | None = None) -> dict[str, Any]:
    """Measured bandwidth and kernel rates: ``{yardsticks, kernels, matrix}`` as parsed values."""
    found = engine.probe_speed(seconds=seconds, n_threads=n_threads, use_gpu=use_gpu, progress=progress)
    return {
        "yardsticks": [Yardstick.model_validate(y) for y in found["yardsticks"]],
        "kernels": [KernelRate.model_validate(k) for k in found["kernels"]],
        "matrix": [KernelRate.model_validate(k) for k in found["matrix"]],
    }


def bandwidth(*, seconds: float, progress: engine.Progress | None = None) -> float:
    """Read bandwidth in bytes/s of the memory llama.cpp would use here: the better of two methods, medians of ``seconds`` each."""
    found = engine.time_reading(seconds=seconds, n_threads=n_threads_default(), progress=progress)
    reads = [Yardstick.model_validate(y) for y in found["yardsticks"] if y["kind"] == "read"]
    where = "gpu" if any(y.where == "gpu" for y in reads) else "cpu"
    return max(y.n_bytes / median(y.samples_s) for y in reads if y.where == where)


# ── the rest ──────────────────────────────────────────────────────────────────────────────────────


def _cpu_name() -> str:
    """The processor's marketing name; ``platform.processor()`` says ``x86_64`` on most Linux machines."""
    name = ""
    if platform.system() == "Darwin":
        name = _sysctl("machdep.cpu.brand_string")
    elif platform.system() == "Windows":
        name = os.environ.get("PROCESSOR_IDENTIFIER", "")
    else:
        try:
            lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
            name = next((line.split(":", 1)[1] for line in lines if line.startswith(("model name", "Model"))), "")
        except OSError:
            pass
    return " ".join((name or platform.processor() or platform.machine() or "unknown").split())[:200]


def _apple_working_set(memory_bytes: int) -> int | None:
    """What macOS lets the GPU use: the limit set by ``iogpu.wired_limit_mb``; ``None`` off Apple or when none is set."""
    if platform.system() != "Darwin":
        return None
    megabytes = _sysctl("iogpu.wired_limit_mb")
    return int(megabytes) * 2**20 if megabytes.isdigit() and int(megabytes) else None


def _sysctl(name: str) -> str:
    try:
        return subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
