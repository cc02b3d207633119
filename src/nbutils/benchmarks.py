"""What the instrument was held against: the comparisons kept in ``data/benchmarks``, as frames and tables.

The files hold the medians of every round. Ratios are computed here, round by round: ours over the other's.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd

from nbutils import paths
from nbutils.errors import DataError

__all__ = ["TOLERANCE", "made_line", "parity_frame", "parity_line", "parity_table", "served_frame", "served_table"]

_MADE_BY = {
    "parity.json": "'make parity'",
    "served.json": "'python tests/bench_served.py'",
    "power.json": "'python tests/bench_power.py'",
    "fleet.json": "'python tests/bench_fleet.py'",
}
#: How far a median may be from llama-bench's before a row is called off.
TOLERANCE = 0.01
_RATIO_FORMATS = {"ratio": "{:.4f}", "ratio_low": "{:.4f}", "ratio_high": "{:.4f}"}
Table = tuple[pd.DataFrame, dict[str, str], dict[str, str]]


def parity_frame(path: Path | None = None) -> pd.DataFrame:
    """nbutils beside llama-bench, a row per stand-in, format and test.

    Columns: ``model, format, test, ours_tok_per_s, llama_bench_tok_per_s`` (medians over rounds), ``ratio, ratio_low,
    ratio_high`` (median and quartiles, over repetitions that took turns, of ours to llama-bench's), ``n``. Raises ``DataError`` naming the
    command that makes the file.
    """
    return _frame(_path("parity.json", path), ("model", "format", "test"), "ours_tok_per_s", "llama_bench_tok_per_s", (25, 75))


def parity_table(path: Path | None = None) -> Table:
    """What ``plots.table`` takes: frame, headings, formats."""
    headings = {
        "model": "model",
        "format": "format",
        "test": "test",
        "ours_tok_per_s": "nbutils (tok/s)",
        "llama_bench_tok_per_s": "llama-bench (tok/s)",
        "ratio": "ratio, median",
        "ratio_low": "lower quartile",
        "ratio_high": "upper quartile",
    }
    frame = parity_frame(path)
    return (
        frame.assign(model=frame["model"].str.removeprefix("stand-in-")),
        headings,
        {"ours_tok_per_s": "{:,.2f}", "llama_bench_tok_per_s": "{:,.2f}", **_RATIO_FORMATS},
    )


def parity_line(path: Path | None = None) -> str:
    """How many rows agree, how far the others are off, how much a row varies by itself and how well its median is known, in sentences."""
    frame = parity_frame(path)
    off = (frame["ratio"] - 1).abs()
    several = frame[frame["n"] > 1]
    spread = several["ratio_high"] / several["ratio_low"] - 1
    # Of many draws from a normal distribution, whose quartiles lie 1.349 standard deviations apart.
    error = math.sqrt(math.pi / 2) * (several["ratio_high"] - several["ratio_low"]) / 1.349 / np.sqrt(several["n"])
    varied = (
        f" In the median row half of the pairs lie within {spread.median():.1%} of each other, and the median has a standard error of"
        f" {error.median():.2%}."
        if len(several)
        else ""
    )
    return (
        f"{(off <= TOLERANCE).sum()} of {len(frame)} medians lie within {TOLERANCE:.0%} of llama-bench's; the median over all rows is"
        f" {frame['ratio'].median():.3f}, the furthest {frame['ratio'][off.idxmax()]:.3f}.{varied}"
    )


def served_frame(path: Path | None = None) -> pd.DataFrame:
    """Decode through a server beside decode in process: ``name, served_tok_per_s, in_process_tok_per_s``, and ratios as in ``parity_frame``."""
    return _frame(_path("served.json", path), ("name",), "served_tok_per_s", "in_process_tok_per_s", (0, 100))


def served_table(path: Path | None = None) -> Table:
    """What ``plots.table`` takes: frame, headings, formats."""
    headings = {
        "name": "model",
        "in_process_tok_per_s": "in process (tok/s)",
        "served_tok_per_s": "served (tok/s)",
        "ratio": "ratio, median",
        "ratio_low": "lowest round",
        "ratio_high": "highest round",
    }
    return served_frame(path), headings, {"in_process_tok_per_s": "{:,.2f}", "served_tok_per_s": "{:,.2f}", **_RATIO_FORMATS}


def made_line(name: str, path: Path | None = None) -> str:
    """When, where and with what ``parity``, ``served`` or ``power`` was made, in a sentence. Raises ``DataError`` as the frames do."""
    path = _path(f"{name}.json", path)
    kept = _kept(path)
    try:
        versions = ", ".join(f"{program.replace('_', '-')} {version}" for program, version in kept["versions"].items())
        rounds = f"; {_counted(kept, 'pair' if name == 'parity' else 'round')}" if "rounds" in kept else ""
        return f"Made {kept['date'][:10]} on {_machine(kept['machine'])}, with {versions}{rounds}."
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise _unreadable(path, error) from None


def _counted(kept: dict[str, Any], what: str) -> str:
    """How many rounds or pairs a row has; rows may differ where some were given more."""
    counts = {len(value) for row in kept["rows"] for value in row.values() if isinstance(value, list)} or {kept["rounds"]}
    return (f"1 {what}" if counts == {1} else f"{min(counts)} {what}s") if len(counts) == 1 else f"{min(counts)} to {max(counts)} {what}s"


def _machine(machine: dict[str, Any] | str) -> str:
    if isinstance(machine, str):
        return machine
    parts = [machine["cpu"], f"{machine['cores']} cores", f"{machine['memory_bytes'] / 1e9:.1f} GB", machine["system"]]
    return ", ".join([*machine.get("gpus", []), *parts])


def _path(name: str, path: Path | None) -> Path:
    return path or paths.data_dir() / "benchmarks" / name


def _unreadable(path: Path, error: Exception) -> DataError:
    how = _MADE_BY.get(path.name, " or ".join(_MADE_BY.values()))
    return DataError(f"{path.name}: no comparison to show ({type(error).__name__}); {how} makes it")


def _kept(path: Path) -> dict[str, Any]:
    try:
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return kept
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def _frame(path: Path, names: tuple[str, ...], ours: str, other: str, shown: tuple[int, int]) -> pd.DataFrame:
    kept = _kept(path)
    try:
        return pd.DataFrame([_row(row, names, ours, other, shown) for row in kept["rows"]])
    except (LookupError, TypeError, ValueError, ZeroDivisionError) as error:
        raise _unreadable(path, error) from None


def _row(row: dict[str, Any], names: tuple[str, ...], ours: str, other: str, shown: tuple[int, int]) -> dict[str, Any]:
    """``shown`` are the percentiles that stand for the spread: all of few rounds, the middle half of many repetitions."""
    rates = {name: [float(rate) for rate in row[name]] for name in (ours, other)}
    ratios = [a / b for a, b in zip(rates[ours], rates[other], strict=True)]
    if not all(0 < ratio < math.inf for ratio in ratios):
        raise ValueError("a rate that is no rate")
    medians = {name: median(found) for name, found in rates.items()}
    told = {name: str(row[name]) for name in names}
    low, high = (float(x) for x in np.percentile(ratios, shown))
    return told | medians | {"ratio": median(ratios), "ratio_low": low, "ratio_high": high, "n": len(ratios)}
