"""Benchmarks, not tests: how long the grid over everything takes, and importing the package. Run: python tests/bench_grid.py

Each run is a process of its own, so that reading the registry counts; medians of interleaved runs.
"""

from __future__ import annotations

import subprocess
import sys
import time
from statistics import median

GRID = """
from nbutils import frames, places, registry
from nbutils.tensors import variant
models = [registry.load_model(m) for m in registry.model_ids()]
stored = [variant(m, registry.load_format(f)) for m in models for f in m.formats]
print(len(frames.fit_grid(places.all_places(), stored, [1024 * 2**k for k in range(10)])))
"""
PROGRAMS = {"nothing": "pass", "import nbutils": "import nbutils", "grid": GRID}


def seconds(program: str) -> tuple[float, str]:
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return time.perf_counter() - start, done.stdout.strip()


def main() -> None:
    times: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    rows = ""
    for _ in range(9):
        for name, program in PROGRAMS.items():
            taken, said = seconds(program)
            times[name].append(taken)
            rows = said or rows
    for name, taken_s in times.items():
        print(f"{name:<15} median {median(taken_s):6.3f} s, {min(taken_s):6.3f} to {max(taken_s):6.3f}")
    print(f"the grid has {rows} rows")


if __name__ == "__main__":
    main()
