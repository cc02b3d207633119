"""A benchmark, not a test: how long does a sweep take beside a plain loop of ``papermill`` commands, and how does its cost grow?

All device pages of the book, by a loop of ``papermill`` commands and by ``nbutils sweep``, which take turns; then a sweep of a small notebook with
more and more cells, cold (everything to do) and warm (nothing to do).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import nbformat

from nbutils import paths, probe, registry, sweep

NOTE = (
    "Seconds of wall time, from the start of the command to its end. The loop runs 'papermill notebooks/device.ipynb OUT -p device ID' for one page "
    "after the other; the sweep is 'nbutils sweep' with two jobs and an empty store. Warm is the same command again, with nothing to do: it reads "
    "the list of what each page had read and compares digests. Ratios are loop over cold sweep, round by round. The curve is a sweep of a notebook "
    "that prints one number; peak memory is that of the parent process, not of its two workers and their kernels."
)
SUITE = "bench-device-pages"
NBUTILS = [sys.executable, "-c", "from nbutils.cli import main; main()"]

#: A sweep of the small notebook; prints seconds of the sweep alone, and the peak memory of this process.
CURVE = """
import json, re, sys, time
from pathlib import Path
from nbutils import sweep
folder, n_cells, jobs = json.loads(sys.argv[1])
folder = Path(folder)
began_s = time.perf_counter()
cells = [sweep.Cell(notebook=str(folder / "cell.ipynb"), output=str(folder / "pages" / f"{n}.ipynb"), parameters={"n": n}) for n in range(n_cells)]
store = sweep.Store("curve", folder / "store")
with store.lock():
    todo = [cell for cell, _ in sweep.unfinished(cells, store)]
    for cell in cells:
        store.restore(cell)
    summary = sweep.run(todo, store, sweep.Local(store, jobs), sweep.Watch())
assert not summary.failed, summary.failed[0]
took_s = time.perf_counter() - began_s
# Not getrusage, whose peak a process inherits from the one that started it.
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
print(json.dumps([len(todo), took_s, 1024 * int(peak[1])]))
"""


def loop_s(folder: Path) -> float:
    """A plain loop over all pages, a command each."""
    began_s = time.perf_counter()
    for device_id in registry.page_ids():
        command = [sys.executable, "-m", "papermill", "notebooks/device.ipynb", str(folder / f"{device_id}.ipynb"), "-p", "device", device_id]
        subprocess.run([*command, "--no-progress-bar"], cwd=paths.project_dir(), check=True, capture_output=True)
    return time.perf_counter() - began_s


def sweep_s(data: Path, expected: int) -> float:
    """``nbutils sweep`` over all pages; ``expected`` is how many cells have to run."""
    began_s = time.perf_counter()
    command = [*NBUTILS, "sweep", SUITE, "--jobs", "2", "--json"]
    done = subprocess.run(command, cwd=paths.project_dir(), env=os.environ | {"NBUTILS_DATA": str(data)}, capture_output=True, text=True, check=False)
    took_s = time.perf_counter() - began_s
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["done"] == expected, done.stdout
    return took_s


@contextmanager
def data_with_a_sweep(folder: Path) -> Iterator[Path]:
    """A copy of the registry with a sweep of device pages alone; what it makes is removed in the end."""
    data = folder / "data"
    shutil.copytree(paths.data_dir(), data)
    (data / "suites" / f"{SUITE}.yaml").write_text(
        f"id: {SUITE}\nname: All device pages\ncells:\n  - {{notebook: device, parameters: {{device: pages}}}}\n", encoding="utf-8"
    )
    try:
        yield data
    finally:
        shutil.rmtree(sweep.Store(SUITE).folder, ignore_errors=True)


def pages(rounds: int) -> dict[str, Any]:
    found: dict[str, list[float]] = {"loop_s": [], "cold_s": [], "warm_s": []}
    n_pages = len(registry.page_ids())
    with tempfile.TemporaryDirectory() as name, data_with_a_sweep(Path(name)) as data:

        def cold() -> None:
            shutil.rmtree(sweep.Store(SUITE).folder, ignore_errors=True)
            found["cold_s"].append(round(sweep_s(data, n_pages), 3))
            found["warm_s"].append(round(sweep_s(data, 0), 3))

        def loop() -> None:
            found["loop_s"].append(round(loop_s(Path(name)), 3))

        for number in range(rounds):
            for way in (loop, cold) if number % 2 == 0 else (cold, loop):
                way()
            print(f"round {number + 1} of {rounds}: " + ", ".join(f"{what} {seconds[-1]:.1f}" for what, seconds in found.items()), flush=True)
    ratios = [a / b for a, b in zip(found["loop_s"], found["cold_s"], strict=True)]
    summary = {"ratio_median": round(median(ratios), 3), "ratio_low": round(min(ratios), 3), "ratio_high": round(max(ratios), 3)}
    return {"name": "all device pages", "n_cells": n_pages} | found | summary


def curve(n_cells: int) -> dict[str, Any]:
    """A sweep of the small notebook, cold and warm."""
    with tempfile.TemporaryDirectory() as name:
        parameters = nbformat.v4.new_code_cell("n: int = 0", metadata={"tags": ["parameters"]})
        made = nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell("print(n)")])
        made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(made, Path(name) / "cell.ipynb")
        asked = json.dumps([name, n_cells, 2])
        row: dict[str, Any] = {"n_cells": n_cells}
        for what, expected in (("cold", n_cells), ("warm", 0)):
            done = subprocess.run([sys.executable, "-c", CURVE, asked], capture_output=True, text=True, check=True)
            ran, took_s, peak_bytes = json.loads(done.stdout)
            assert ran == expected
            row |= {f"{what}_s": round(took_s, 3), f"{what}_peak_bytes": peak_bytes}
        return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds of both ways (default: %(default)s)")
    parser.add_argument("--cells", type=int, nargs="*", default=[40, 100, 200, 400], help="cells of the small notebook (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=paths.data_dir() / "benchmarks" / "sweep.json", help="where the result goes (default: %(default)s)"
    )
    given = parser.parse_args()
    row = pages(given.rounds)
    rows = []
    for n_cells in given.cells:
        rows.append(curve(n_cells))
        print(f"{n_cells} cells: " + ", ".join(f"{name} {value:,}" for name, value in rows[-1].items() if name != "n_cells"), flush=True)
    machine = probe.machine()
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cpu": machine.cpu, "cores": machine.n_cores, "memory_bytes": machine.memory_bytes, "system": machine.system},
        "versions": {name: version(name) for name in ("nbutils", "papermill", "nbclient", "ipykernel")},
        "rounds": given.rounds,
        "rows": [row],
        "curve": rows,
        "note": NOTE,
    }
    paths.write_text(given.out, json.dumps(result, indent=1) + "\n")
    medians = ", ".join(f"{what.removesuffix('_s')} {median(row[what]):.1f} s" for what in ("loop_s", "cold_s", "warm_s"))
    print(f"{medians}; loop / cold {row['ratio_median']}")
    print(f"written: {given.out}")


if __name__ == "__main__":
    main()
