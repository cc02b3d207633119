"""A rehearsal, not a test: a sweep over three workers, one of which is killed in a measurement and started again.

All three are processes of this machine that announce the devices of the sweep, so the rates say nothing about those. What was typed and what came
of it is kept for the book's page about fleets, with a count of cells, reruns and records.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import tempfile
import threading
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from loopback_fleet import Fleet, copy_project, eventually
from nbutils import paths, probe

#: Names of the three workers, by the device that they announce.
WORKERS = {"dgx-spark": "spark", "strix-halo": "halo", "mac-studio-m4-max": "studio"}
SWEEP = """\
id: fleet
name: The same files on three machines
machines: [dgx-spark, strix-halo, mac-studio-m4-max]
cells:
  - notebook: measure
    measures: true
    parameters:
      model: [stand-in-dense-small, stand-in-moe-small]
      format: [F16, Q8_0, Q4_K_M]
      suite: quick
      n_threads: 1
    title: "{model} in {format} on {machine}"
  - notebook: probe
    measures: true
    title: "What {machine} is"
"""
#: The one that is killed, in its third measurement; so long it is away.
VICTIM, AWAY_S = "mac-studio-m4-max", 4.0


class Rehearsal:
    """Types commands and keeps what they say."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.steps: list[dict[str, Any]] = []

    def type(self, *arguments: str, meanwhile: Any = None) -> list[str]:
        """Run a command of nbutils to its end; ``meanwhile`` gets the lines that it has said so far."""
        said: list[str] = []
        began_s = time.perf_counter()
        process = self.fleet.nbutils(*arguments)
        readers = [threading.Thread(target=self._collect, args=(stream, said)) for stream in (process.stdout, process.stderr)]
        for reader in readers:
            reader.start()
        try:
            if meanwhile is not None:
                meanwhile(said)
        except AssertionError:
            process.kill()
            print("\n".join(said))
            raise
        code = process.wait()
        for reader in readers:
            reader.join()
        step = {
            "command": self.shown(shlex.join(["nbutils", *arguments])),
            "said": said,
            "exit_code": code,
            "took_s": round(time.perf_counter() - began_s, 1),
        }
        self.steps.append(step)
        print(f"$ {step['command']}\n" + "\n".join(said) + f"\n({code}, {step['took_s']} s)\n", flush=True)
        return said

    def _collect(self, stream: Any, said: list[str]) -> None:
        for line in stream:
            said.append(self.shown(line.rstrip()))

    def shown(self, text: str) -> str:
        """As it would stand in a copy of the project that somebody keeps."""
        return text.replace(str(self.fleet.root), "~/project")

    def kill_one(self, said: list[str]) -> None:
        """Pull the plug of a worker while it measures, and start it again a while later."""
        eventually(lambda: sum(f"on {VICTIM}" in line for line in said) == 2, within_s=240)
        time.sleep(2.0)
        self.fleet.kill(WORKERS[VICTIM])
        time.sleep(AWAY_S)
        self.fleet.worker(WORKERS[VICTIM], VICTIM)

    def records(self) -> dict[str, list[Path]]:
        """Records that were delivered, by the device whose cell left them; gathered in a folder for each."""
        found: dict[str, list[Path]] = {}
        for file in (self.fleet.root / "_build" / "sweeps" / "fleet" / "done").glob("*/result.json"):
            result = json.loads(file.read_text(encoding="utf-8"))
            for name in result["records"]:
                folder = self.fleet.root / result["cell"]["device"]
                folder.mkdir(exist_ok=True)
                found.setdefault(folder.name, []).append(Path(shutil.copy2(file.parent / "records" / name, folder)))
        return found


def rehearse(root: Path) -> dict[str, Any]:
    copy_project(root, "notebooks")
    (root / "data" / "suites" / "fleet.yaml").write_text(SWEEP, encoding="utf-8")
    # What workers make for themselves, the models, they share here; on three machines each makes its own.
    (root / "cache").mkdir()
    for name in ("parent", *WORKERS.values()):
        (root / "homes" / name).mkdir(parents=True)
        (root / "homes" / name / "cache").symlink_to(root / "cache", target_is_directory=True)
    fleet = Fleet(root)
    try:
        fleet.scheduler()
        rehearsal = Rehearsal(fleet)
        sweep = ["sweep", "fleet", "--scheduler", fleet.address]
        for device in ("dgx-spark", "strix-halo"):
            fleet.worker(WORKERS[device], device)
        rehearsal.type(*sweep, "--wait", "5")
        fleet.worker(WORKERS[VICTIM], VICTIM)
        rehearsal.type(*sweep, "--dry-run")
        said = rehearsal.type(*sweep, meanwhile=rehearsal.kill_one)
        found = rehearsal.records()
        rehearsal.type(*sweep)
        one, other = (str(root / device) for device in list(WORKERS)[:2])
        compared = json.loads("".join(rehearsal.type("records", "compare", one, other, "--json")))
        rehearsal.steps.pop()
    finally:
        fleet.end()
    delivered = list((root / "homes" / "parent" / "records").glob("*/*.json"))
    assert sorted(p.name for p in delivered) == sorted(p.name for files in found.values() for p in files), "what was delivered is what cells left"
    return {
        "sweep": SWEEP,
        "workers": len(WORKERS),
        "cells": sum(bool(re.match(r"✓ ", line)) for line in said),
        "lost": sum("running it again" in line for line in said),
        "failed": sum(bool(re.match(r"✗ ", line)) for line in said),
        "records": len(delivered),
        "away_s": AWAY_S,
        "compared": {
            "command": rehearsal.shown(f"nbutils records compare {one} {other}"),
            "pairs": compared["pairs"],
            "summary": compared["summary"],
        },
        "steps": rehearsal.steps,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=paths.data_dir() / "benchmarks" / "fleet.json", help="where the result goes (default: %(default)s)"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nbutils-fleet-") as folder:
        found = rehearse(Path(folder))
    machine = probe.machine()
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cpu": machine.cpu, "cores": machine.n_cores, "memory_bytes": machine.memory_bytes, "system": machine.system},
        "versions": {name: version(name) for name in ("nbutils", "llama_cpp_python", "distributed", "papermill")},
        **found,
    }
    paths.write_text(given.out, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(f"{found['cells']} cells, {found['lost']} run again, {found['failed']} failed, {found['records']} records; written: {given.out}")


if __name__ == "__main__":
    main()
