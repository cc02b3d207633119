"""Benchmarks, not tests: listing 10,000 records and joining them with limits, comparing and exporting them. Run: python tests/bench_records.py

The records are those of the repository, each with another time and another machine, in a folder of their own that is removed afterwards. Every run
is a process of its own, so that imports and reading the registry count; medians of interleaved runs. Cold has no rows in the cache, warm has all;
what the system keeps of the files in memory it keeps in both.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from statistics import median

from nbutils import records, registry

N = 10_000
FRAME = """
import sys
from nbutils import frames_records, records
frame = frames_records.records_frame(records.list_all())
assert frame["ceiling_tok_per_s"].notna().any() and frame["nominal_ceiling_tok_per_s"].notna().any()
print(len(frame))
"""
NBUTILS = [sys.executable, "-c", "from nbutils.cli import main; main()"]
PROGRAMS = {
    "import only": [sys.executable, "-c", "from nbutils import frames_records"],
    "rows with both ceilings": [sys.executable, "-c", FRAME],
    "records list --limit 0": [*NBUTILS, "records", "list", "--limit", "0"],
    "records list --json": [*NBUTILS, "records", "list", "--json"],
}


def fill(home: Path) -> int:
    """Write the records below ``home``; return how many bytes they are."""
    real = [records.read_any(path) for path in records.list_records(records.committed_dir())]
    devices = ["unlisted", *registry.device_ids()]
    for i in range(N):
        record = real[i % len(real)]
        machine = record.machine.model_copy(update={"device": devices[i // len(real) % len(devices)]})  # type: ignore[union-attr]
        records.write(record.model_copy(update={"machine": machine, "created": record.created - timedelta(seconds=i)}))
    return sum(path.stat().st_size for path in records.list_records(home / "records"))


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    return time.perf_counter() - start


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    with tempfile.TemporaryDirectory(prefix="nbutils-bench-") as folder:
        home = Path(folder)
        os.environ["NBUTILS_HOME"] = str(home)
        n_bytes = fill(home)
        print(f"{N:,} records, {n_bytes / 1e6:,.0f} MB")
        times: dict[str, list[float]] = {f"{name}, {state}": [] for name in PROGRAMS for state in ("cold", "warm")}
        for _ in range(rounds):
            for name, command in PROGRAMS.items():
                shutil.rmtree(home / "cache", ignore_errors=True)
                for state in ("cold", "warm"):
                    times[f"{name}, {state}"].append(seconds(command))
        groups = sorted((home / "records").iterdir())[:2]
        sides = []
        for group in groups:
            sides.append(home / f"side-{group.name}")
            shutil.copytree(group, sides[-1], ignore=lambda _, names: sorted(names)[50:])
        times["records compare, 50 a side"] = [seconds([*NBUTILS, "records", "compare", *map(str, sides)]) for _ in range(rounds)]
        times["records export, csv"] = [seconds([*NBUTILS, "records", "export", str(home / "all.csv")])]
        print(f"the CSV has {(home / 'all.csv').stat().st_size / 1e6:,.0f} MB")
    for name, taken_s in times.items():
        print(f"{name:<32} median {median(taken_s):6.2f} s, {min(taken_s):6.2f} to {max(taken_s):6.2f}")
    print(json.dumps({name: round(median(taken_s), 2) for name, taken_s in times.items()}))


if __name__ == "__main__":
    main()
