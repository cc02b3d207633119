"""A sweep that is killed at random moments: its parent, its workers, its kernels. What was finished must stay, once.

``python tests/killed_sweep.py --kills 20`` kills twenty times; ``tests/test_sweep.py`` does it with fewer.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import psutil

import nbutils
from helpers import make_record
from nbutils import paths

SEED = 20261120

#: A cell leaves a record of its number and of the time: a second run would be a second record.
CODE = """
import json, time
from datetime import UTC, datetime
from nbutils import records
from nbutils.specs import Record
fields = json.load(open("record.json"))
fields["created"], fields["model"]["name"] = datetime.now(UTC).isoformat(), f"cell-{n}"
time.sleep(pause_s)
records.write(Record.model_validate(fields))
"""

SWEEP = """
import json, sys
from pathlib import Path
from nbutils import sweep
folder, n_cells, pause_s, jobs = json.loads(sys.argv[1])
folder = Path(folder)
cells = [
    sweep.Cell(notebook=str(folder / "cell.ipynb"), output=str(folder / "pages" / f"{n}.ipynb"), parameters={"n": n, "pause_s": pause_s})
    for n in range(n_cells)
]
store = sweep.Store("killed", folder / "store")
with store.lock():
    todo = [cell for cell, _ in sweep.unfinished(cells, store)]
    summary = sweep.run(todo, store, sweep.Local(store, jobs), sweep.Watch())
sys.exit(1 if summary.failed else 0)
"""


@dataclass
class Report:
    """What a sweep went through, and what became of it. ``lost``, ``twice`` and ``missing`` should be empty."""

    kills: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    done_at_kills: list[int] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)
    took_s: float = 0.0


class Victim:
    """A sweep of cells that leave a record each, started again when it was killed."""

    def __init__(self, folder: Path, *, n_cells: int, pause_s: float, jobs: int) -> None:
        self.folder, self.n_cells = folder, n_cells
        self.asked = json.dumps([str(folder), n_cells, pause_s, jobs])
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0
        # A copy of the code: an edit while this runs would be a reason to run a cell again.
        shutil.copytree(Path(nbutils.__file__).parent, folder / "checkout" / "src" / "nbutils", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(paths.project_dir() / "pyproject.toml", folder / "checkout" / "pyproject.toml")
        (folder / "record.json").write_text(make_record().model_dump_json(), encoding="utf-8")
        parameters = nbformat.v4.new_code_cell("n: int = 0\npause_s: float = 0.0", metadata={"tags": ["parameters"]})
        made = nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell(CODE)])
        made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(made, folder / "cell.ipynb")

    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> subprocess.Popen[bytes]:
        own = {"NBUTILS_HOME": self.folder / "home", "NBUTILS_DATA": paths.data_dir(), "PYTHONPATH": self.folder / "checkout" / "src"}
        environment = os.environ | {name: str(path) for name, path in own.items()}
        self.process = subprocess.Popen([sys.executable, "-c", SWEEP, self.asked], env=environment, stderr=subprocess.DEVNULL)
        self.starts += 1
        return self.process

    def kill(self, what: str) -> bool:
        """Kill the parent, or a worker or a kernel of it; false when there is none."""
        assert self.process is not None
        found = {"parent": [psutil.Process(self.process.pid)] if self.running() else [], "worker": [], "kernel": []}
        for child in found["parent"][0].children(recursive=True) if found["parent"] else []:
            try:
                words = " ".join(child.cmdline())
            except psutil.Error:
                continue
            found["worker"] += [child] if "_sweep_worker" in words else []
            found["kernel"] += [child] if "ipykernel" in words else []
        try:
            for process in found[what][:1]:
                process.kill()
                if what == "parent":
                    self.process.wait()
                return True
        except psutil.NoSuchProcess:
            pass
        return False

    def wait_for(self, n_finished: int, limit_s: float = 60.0) -> None:
        """Until so many cells are done, or the sweep has come to an end."""
        until_s = time.monotonic() + limit_s
        while self.running() and len(self.finished()) < n_finished and time.monotonic() < until_s:
            time.sleep(0.05)

    def finished(self) -> dict[str, list[str]]:
        """Records of every cell that is committed, by cell."""
        found = {}
        for result in (self.folder / "store").glob("done/*/result.json"):
            try:
                found[result.parent.name.rpartition("@")[0]] = json.loads(result.read_text(encoding="utf-8"))["records"]
            except OSError:
                continue  # replaced while we look, which a finished cell never should be: its records tell
        return found

    def records(self) -> dict[int, list[str]]:
        """What lies in the user's folder, by the number of the cell."""
        found: dict[int, list[str]] = {}
        for path in (self.folder / "home" / "records").glob("*/*.json"):
            number = re.search(r"cell-(\d+)-", path.name)
            assert number, path.name
            found.setdefault(int(number[1]), []).append(f"{path.parent.name}/{path.name}")
        return found


def kill_a_sweep(folder: Path, *, n_cells: int, n_kills: int, seed: int = SEED, pause_s: float = 0.2, jobs: int = 2) -> Report:
    """Run a sweep, kill something of it ``n_kills`` times, and let it come to its end."""
    chance, report, began_s = random.Random(seed), Report(), time.perf_counter()
    victim, seen = Victim(folder, n_cells=n_cells, pause_s=pause_s, jobs=jobs), {}
    while report.kills.total() < n_kills:
        if not victim.running():
            if victim.process is not None and victim.process.returncode == 0:
                break  # done before the last kill: more cells are needed, and the report says how many kills there were
            victim.start()
        what = chance.choice(["parent", "worker", "kernel"])
        victim.wait_for(len(seen) + chance.randrange(4))
        time.sleep(chance.uniform(0, 1))
        seen |= victim.finished()
        if victim.kill(what):
            report.kills[what] += 1
            report.done_at_kills.append(len(seen))
    for _ in range(5):
        if (victim.process or victim.start()).wait() == 0:
            break
        victim.start()
    records, done = victim.records(), victim.finished()
    report.lost = [
        f"{cell}: {names}"
        for cell, names in seen.items()
        if done.get(cell) != names or not all((folder / "home" / "records" / n).is_file() for n in names)
    ]
    report.twice = [f"cell {n}: {', '.join(names)}" for n, names in records.items() if len(names) > 1]
    report.missing = [n for n in range(n_cells) if n not in records or not (folder / "pages" / f"{n}.ipynb").is_file()]
    report.starts, report.took_s = victim.starts, time.perf_counter() - began_s
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="how many kills (default: %(default)s)")
    parser.add_argument("--cells", type=int, default=40, help="how many cells (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=SEED, help="of what is killed when (default: %(default)s)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        report = kill_a_sweep(Path(name), n_cells=given.cells, n_kills=given.kills, seed=given.seed)
    kills = ", ".join(f"{times} of a {what}" for what, times in sorted(report.kills.items()))
    print(f"{report.kills.total()} kills ({kills}), {report.starts} starts, {report.took_s:.0f} s; cells done at each: {report.done_at_kills}")
    problems: dict[str, list[Any]] = {"lost": report.lost, "twice": report.twice, "missing": report.missing}
    for what, found in problems.items():
        print(f"{what}: {len(found)}", *found, sep="\n  ")
    sys.exit(1 if any(problems.values()) else 0)


if __name__ == "__main__":
    main()
