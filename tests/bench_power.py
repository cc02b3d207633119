"""The power test: known curves of watts go through the meter code, and joules per token must come back."""

from __future__ import annotations

import argparse
import json
import math
import platform
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nbutils import paths
from nbutils.frames_power import energy_frame, meter_notes, sustain_summary
from nbutils.monitor import rapl_meters
from nbutils.specs import Trace
from pynvml_stand_in import Clock, card_of, watched
from test_frames_power import ON_GPU, integral, sustained

HELP = """The power test of the book.

A stand-in for the NVIDIA driver answers as a card would whose power over time is known: constant, rising, throttling,
averaged by its sensor, with an energy counter and without one, lost in mid-run. RAPL counters are files that count up. The clock is
scripted, so ten minutes take no time and every run gives the same. The meter code of nbutils watches, the report code of nbutils
turns what it saw into joules per token, and both are held against the integral of the curve.

The result goes to data/benchmarks/power.json, by rename; the chapter on methods shows it."""

Curve = Callable[[float], float]


def row(
    case: str, meter: str, trace: Trace, *, power_w: Curve, tok_per_s: Curve = lambda t: 100.0, span_s: tuple[float, float] = (20.0, 80.0)
) -> dict[str, Any]:
    """One case: decode goes on over ``span_s`` while the meter's trace is longer."""
    start_s, end_s = span_s
    record = sustained(
        trace, rate=tok_per_s, start_s=start_s, minutes=(end_s - start_s) / 60, block_tokens=max(5, round((end_s - start_s) / 10)), backend=ON_GPU
    )
    end_s = record.at_s[-1] + record.block_s[-1]
    known = integral(power_w, start_s, end_s) / (record.block_tokens * len(record.block_s))
    found = energy_frame(record)
    recovered = None if found.empty else float(found["j_per_token"].iloc[0])
    said = found["basis"].iloc[0] if recovered is not None else " ".join(meter_notes(record)[:1])
    error = None if recovered is None else 100 * (recovered / known - 1)
    return {
        "case": case,
        "meter": meter,
        "known_j_per_token": round(known, 4),
        "recovered_j_per_token": recovered and round(recovered, 4),
        "error_percent": None if error is None else round(error, 3) + 0.0,
        "said": said,
    }


def card(seconds: float = 100, *, interval_s: float = 0.1, jitter_s: float = 0.0, **quantities: Any) -> Trace:
    clock = Clock()
    return watched(card_of(clock, **quantities), clock, seconds=seconds, interval_s=interval_s, jitter_s=jitter_s)


def rapl(counted_j: Curve, *, wraps_at_j: float, seconds: float = 100) -> Trace:
    """A package's counter in a folder as Linux shows it."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        zone = Path(folder) / "intel-rapl:0"
        zone.mkdir()
        (zone / "name").write_text("package-0\n", encoding="utf-8")
        (zone / "max_energy_range_uj").write_text(f"{wraps_at_j * 1e6:.0f}\n", encoding="utf-8")

        def count() -> None:
            (zone / "energy_uj").write_text(f"{counted_j(clock()) % wraps_at_j * 1e6:.0f}\n", encoding="utf-8")

        count()
        (meter,) = rapl_meters(Path(folder))
        return watched(meter, clock, seconds=seconds, interval_s=0.1, before=count)


def cases() -> Iterator[dict[str, Any]]:
    constant: Curve = lambda t: 300.0  # noqa: E731
    yield row("300 W throughout", "energy counter", card(energy_j=lambda t: 300 * t), power_w=constant)
    yield row("300 W throughout", "readings of power", card(power_w=constant), power_w=constant)

    ramp: Curve = lambda t: 100 + 3 * t  # noqa: E731
    yield row("rising from 160 to 340 W", "energy counter", card(energy_j=lambda t: 100 * t + 1.5 * t * t), power_w=ramp)
    yield row("rising from 160 to 340 W", "readings of power", card(power_w=ramp), power_w=ramp)
    yield row("rising, read up to 0.4 s late", "readings of power", card(power_w=ramp, jitter_s=0.4), power_w=ramp)

    step: Curve = lambda t: 350.0 if t < 40 else 220.0  # noqa: E731
    counted: Curve = lambda t: 350 * min(t, 40) + 220 * max(0.0, t - 40)  # noqa: E731
    slower: Curve = lambda t: 110.0 if t < 40 else 80.0  # noqa: E731
    hot = {"throttle_reasons": lambda t: 0 if t < 40 else 0x20, "graphics_clock_mhz": lambda t: 2520 if t < 40 else 1830}
    yield row("throttling from 350 to 220 W", "energy counter", card(energy_j=counted, **hot), power_w=step, tok_per_s=slower)
    yield row("throttling from 350 to 220 W", "readings of power", card(power_w=step, **hot), power_w=step, tok_per_s=slower)

    wave: Curve = lambda t: 250 + 100 * math.sin(t)  # noqa: E731
    yield row("swinging between 150 and 350 W", "readings of power", card(power_w=wave), power_w=wave)
    stale: Curve = lambda t: 300 * math.floor(t * 10) / 10  # noqa: E731
    yield row("300 W, counter refreshed ten times a second", "energy counter", card(energy_j=stale, jitter_s=0.05), power_w=constant)

    load: Curve = lambda t: 60.0 if t < 20 else 300.0  # noqa: E731
    averaged: Curve = lambda t: 60 + 240 * min(1.0, max(0.0, t - 20))  # noqa: E731
    yield row("load comes on, sensor tells the last second's mean", "readings of power", card(power_w=averaged), power_w=load)
    short = {"power_w": load, "span_s": (20.0, 30.0)}
    yield row("the same, 10 s only", "readings of power", card(power_w=averaged), **short)
    yield row("the same, 3 s only", "readings of power", card(power_w=averaged), power_w=load, span_s=(20.0, 23.0))

    hour = card(3600, energy_j=lambda t: 300 * t)
    yield row("300 W for an hour", f"energy counter, {len(hour.at_s)} moments kept", hour, power_w=constant, span_s=(20.0, 3500.0))
    yield row("40 W, counter wraps every 25 s", "RAPL", rapl(lambda t: 40 * t, wraps_at_j=1000), power_w=lambda t: 40.0)

    lost = card(energy_j=lambda t: 300 * t, lost_at_s=60.0)
    yield row("card lost after 60 s, whole run", "energy counter", lost, power_w=constant)
    yield row("card lost after 60 s, up to then", "energy counter", lost, power_w=constant, span_s=(20.0, 58.0))
    yield row("refuses power and energy", "none", card(power_w=None), power_w=constant)


def words() -> str:
    """What the report says of a throttling run: printed, for somebody to read."""
    trace = card(
        200,
        power_w=lambda t: 350.0 if t < 90 else 220.0,
        temperature_c=lambda t: min(83.0, 45 + t / 2),
        throttle_reasons=lambda t: 0 if t < 90 else 0x20,
        graphics_clock_mhz=lambda t: 2520 if t < 90 else 1830,
    )
    return " ".join(sustain_summary(sustained(trace, rate=lambda t: 110.0 if t < 90 else 80.0, minutes=3, backend=ON_GPU)))


def main() -> None:
    parser = argparse.ArgumentParser(description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=paths.data_dir() / "benchmarks" / "power.json", help="where the result goes")
    chosen = parser.parse_args()
    rows = list(cases())
    kept = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}; the clock is scripted, so the machine does not matter",
        "versions": {"python": platform.python_version()} | {name: version(name) for name in ("nbutils", "numpy")},
        "rows": rows,
    }
    paths.write_text(chosen.out, json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
    for found in rows:
        recovered = (
            "unknown" if found["recovered_j_per_token"] is None else f"{found['recovered_j_per_token']:7.3f} ({found['error_percent']:+.2f} %)"
        )
        print(f"{found['case']:<52} {found['meter']:<38} {found['known_j_per_token']:7.3f} {recovered}   {found['said']}")
    print(words())


if __name__ == "__main__":
    main()
