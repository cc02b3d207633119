"""A fleet on one machine: a copy of the project, Dask's scheduler and workers as processes on loopback, each with a home of its own.

A copy, because what runs on a fleet must be the same on every machine, and a checkout in which somebody works is not.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

PROJECT = Path(__file__).resolve().parents[1]
NBUTILS = [sys.executable, "-c", "from nbutils.cli import main; main()"]


def copy_project(root: Path, *more: str) -> None:
    """Code and data, without records, and ``more`` folders, to ``root``."""
    for name in ("src", "data", *more):
        shutil.copytree(PROJECT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "records", "runs"))
    shutil.copy2(PROJECT / "pyproject.toml", root)


def eventually(what: Callable[[], Any], within_s: float = 30.0) -> Any:
    """The first true value of ``what``."""
    until_s = time.monotonic() + within_s
    while not (found := what()):
        assert time.monotonic() < until_s, f"waited {within_s:.0f} s for nothing"
        time.sleep(0.05)
    return found


@dataclass
class Fleet:
    """A scheduler and workers that run in a copy of the project; all end with ``end``."""

    root: Path
    address: str = ""
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def scheduler(self) -> None:
        """Start a scheduler on a free port."""
        self._start("scheduler", "scheduler", "--host", "127.0.0.1", "--port", "0")
        log = self.root / "scheduler.log"
        self.address = eventually(lambda: re.search(r"Scheduler at:\s+(tcp://127\.0\.0\.1:\d+)", log.read_text(encoding="utf-8")))[1]

    def worker(self, name: str, device: str = "", *, preload: Path | None = None) -> None:
        """Start a worker that announces ``device``; ``preload`` is Python that it runs first."""
        options = ["--resources", f"{device}=1"] if device else []
        options += ["--preload", str(preload)] if preload else []
        self._start("worker", name, self.address, *options, "--no-nanny", "--nthreads", "1", "--name", name, "--host", "127.0.0.1")

    def _start(self, program: str, name: str, *arguments: str) -> None:
        command = [sys.executable, "-m", "dask", program, *arguments, "--no-dashboard"]
        with (self.root / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(command, cwd=self.root, env=self.environment(name), stdout=log, stderr=log)

    def environment(self, name: str) -> dict[str, str]:
        """With the copy's code and data, and a home of ``name``'s own."""
        environment = os.environ | {"PYTHONPATH": str(self.root / "src"), "NBUTILS_HOME": str(self.root / "homes" / name)}
        environment.pop("NBUTILS_DATA", None)
        return environment

    def nbutils(self, *arguments: str) -> subprocess.Popen[str]:
        """The command line of the machine that sweeps."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([*NBUTILS, *arguments], cwd=self.root, env=self.environment("parent"), text=True, encoding="utf-8", **pipes)

    def kill(self, name: str) -> None:
        """End a worker, or the scheduler, as a pulled plug does, and the kernels that it runs."""
        process = self.processes.pop(name)
        try:
            started = psutil.Process(process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            started = []
        process.kill()
        process.wait()
        for child in started:
            try:
                child.kill()
            except psutil.NoSuchProcess:
                pass

    def name_of(self, pid: int) -> str:
        """Which worker a process is."""
        return next((name for name, process in self.processes.items() if process.pid == pid), "")

    def end(self) -> None:
        """End every process."""
        for name in list(self.processes):
            self.kill(name)
