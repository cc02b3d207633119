"""Power and heat: what meters said beside a run becomes joules per token, a course over minutes, and words.

A trace holds samples; energy, shares and reasons exist only here. Joules always name the meter, and what it does not see.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any, Literal

import numpy as np
import pandas as pd

from nbutils import paths
from nbutils.errors import DataError
from nbutils.specs import Neighbours, Record, SustainRecord, Trace

__all__ = [
    "Energy",
    "block_frame",
    "energy_between",
    "energy_frame",
    "energy_table",
    "meter_notes",
    "moments_frame",
    "power_test_table",
    "slice_s",
    "sustain_frame",
    "sustain_summary",
    "sustain_table",
    "throttle_shares",
    "throttle_words",
    "unseen",
]

#: Fewer moments than this inside an interval, and the two ends, which are interpolated, weigh too much: with five at most 8 %.
LEAST_MOMENTS = 5
#: Newer drivers tell power as the mean of the last second; shorter than this, the second before the interval weighs too much.
LEAST_SAMPLED_S = 5.0
#: Between two readings of power this many usual distances apart nobody knows what happened.
LARGEST_GAP = 5.0
#: A rate that moves by less from the first to the last minute has held.
STEADY = 0.03
#: Shares and changes below these are not worth a word.
_LEAST_SHARE, _LEAST_STOLEN, _LEAST_CLOCK_FALL, _LEAST_RISE_C, _LEAST_CPUS = 0.05, 0.01, 0.02, 3.0, 0.25

#: NVML's clocks event reasons by bit, in our words.
_REASONS = {
    0x1: "idle",
    0x2: "clocks set by somebody",
    0x4: "power limit",
    0x8: "hardware slowdown (heat, power brake or a current peak)",
    0x10: "sync boost (waits for other GPUs of its group)",
    0x20: "temperature limit (software)",
    0x40: "temperature limit (hardware)",
    0x80: "power brake (hardware, as by the power supply)",
    0x100: "clocks set for the display",
    0x200: "board limit",
    0x400: "reliability limit (voltage)",
}
IDLE = _REASONS[0x1]


# ── energy ────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Energy:
    """Joules of one meter over an interval, and whether it counted them or we summed up power."""

    joules: float
    basis: Literal["counter", "sampled power"]


#: More than a display or a browser takes in the meantime.
_GREW_BYTES = 1e8


def energy_between(trace: Trace, start_s: float, end_s: float) -> Energy | None:
    """Energy from ``start_s`` to ``end_s`` of the run: the meter's own counter where it has one, else its power by trapezoids.

    ``None`` where the meter does not cover the interval: lost before its end, too few moments in it, too long without an
    answer, or power known for less than ``LEAST_SAMPLED_S``.
    """
    at, counted = _known(trace, "energy_j", start_s, end_s)
    if len(at):
        return Energy(float(np.interp(end_s, at, counted) - np.interp(start_s, at, counted)), "counter")
    at, power = _known(trace, "power_w", start_s, end_s)
    if not len(at) or end_s - start_s < LEAST_SAMPLED_S or np.diff(at).max() > LARGEST_GAP * np.median(np.diff(at)):
        return None
    inside = (at > start_s) & (at < end_s)
    moments = np.concatenate([[start_s], at[inside], [end_s]])
    return Energy(float(np.trapezoid(np.interp(moments, at, power), moments)), "sampled power")


def _known(trace: Trace, quantity: str, start_s: float, end_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Moments and values of a quantity from the last before the interval to the first after it; empty if it is not covered."""
    pairs = [(at, value) for at, value in zip(trace.at_s, trace.values.get(quantity, ()), strict=False) if value is not None]
    at, values = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    if not len(at) or end_s <= start_s or at[0] > start_s or at[-1] < end_s:
        return np.array([]), np.array([])
    part = slice(int(np.searchsorted(at, start_s, "right")) - 1, int(np.searchsorted(at, end_s, "left")) + 1)
    if len(at[part]) < LEAST_MOMENTS + 2:
        return np.array([]), np.array([])
    return at[part], values[part]


def unseen(meter: str) -> str:
    """What a meter's joules leave out, in words."""
    if meter.startswith("NVML"):
        return "the GPU's own sensor, not the wall: processor, system memory, fans and power supply are not in it"
    if meter.endswith("dram"):
        return "the memory's own counter, not the wall: nothing else is in it"
    if meter.endswith("psys"):
        return "the board's own counter, not the wall: graphics cards may not be in it; contains the package"
    return "the processor's own counter, not the wall: memory, graphics cards and power supply are not in it"


def _of_run(record: Record | SustainRecord) -> list[Trace]:
    """Its traces without cards that took no part: NVML sees every card of a machine, and those of others draw power too.

    A card that computes has grown in memory since the run began; where none has, none is left out.
    """
    grew = [trace for trace in record.traces if trace.meter.startswith("NVML") and _growth_bytes(trace) > _GREW_BYTES]
    return [trace for trace in record.traces if not grew or trace in grew or not trace.meter.startswith("NVML")]


def _growth_bytes(trace: Trace) -> float:
    used = [value for value in trace.values.get("used_bytes", ()) if value is not None]
    return max(used) - used[0] if used else 0.0


def energy_frame(record: Record | SustainRecord) -> pd.DataFrame:
    """One row per decode interval and meter that covers it: joules, tokens, watts, joules per token; a row for the sum where several do.

    Intervals are the repetitions of a point taken together, or the whole of a sustained run.
    """
    rows = []
    for label, n_tokens, spans in _decoded(record):
        found = []
        for trace in _of_run(record):
            parts = [energy_between(trace, start, end) for start, end in spans]
            known = [part for part in parts if part is not None]
            if known and len(known) == len(parts):
                found.append((trace.meter, sum(part.joules for part in known), known[0].basis))
        # The platform's counter contains the package's, so it is in no sum.
        apart = [joules for meter, joules, _ in found if not meter.endswith("psys")]
        seconds = sum(end - start for start, end in spans)
        for meter, joules, basis in found:
            rows.append(_energy_row(label, meter, joules, n_tokens, seconds) | {"basis": basis, "unseen": unseen(meter)})
        if len(apart) > 1:
            rows.append(_energy_row(label, "these meters together", sum(apart), n_tokens, seconds) | {"basis": "", "unseen": "still not the wall"})
    return pd.DataFrame(rows, columns=["what", "meter", "tokens", "seconds", "joules", "watts", "j_per_token", "basis", "unseen"])


def _energy_row(what: str, meter: str, joules: float, n_tokens: int, seconds: float) -> dict[str, Any]:
    row = {"what": what, "meter": meter, "tokens": n_tokens, "seconds": seconds, "joules": joules}
    return row | {"watts": joules / seconds, "j_per_token": joules / n_tokens}


def _decoded(record: Record | SustainRecord) -> list[tuple[str, int, list[tuple[float, float]]]]:
    """What was decoded: a label, tokens, and from when to when."""
    if isinstance(record, SustainRecord):
        span = (record.at_s[0], record.at_s[-1] + record.block_s[-1])
        return [(f"decode at depth {record.depth}", record.block_tokens * len(record.block_s), [span])]
    found = []
    for point in record.points:
        if point.kind == "decode" and point.at_s:
            label = f"decode {point.n_tokens} at depth {point.depth}" + (f", {point.n_seq} sequences" if point.n_seq > 1 else "")
            spans = [(start, start + sum(samples)) for start, samples in zip(point.at_s, point.repetitions_s, strict=True)]
            found.append((label, point.n_tokens * point.n_seq * len(spans), spans))
    return found


def energy_table(record: Record | SustainRecord) -> tuple[pd.DataFrame, dict[str, str], dict[str, str]]:
    """What ``plots.table`` takes: joules per token by meter, with what each of them does not see."""
    headings = {"what": "what", "meter": "meter", "j_per_token": "J/token", "watts": "mean power (W)", "basis": "from", "unseen": "what it is"}
    return energy_frame(record), headings, {"j_per_token": "{:,.3f}", "watts": "{:,.1f}"}


def meter_notes(record: Record | SustainRecord) -> list[str]:
    """What could not be metered here and the way out, a sentence each."""
    metered = [trace for trace in record.traces if {"energy_j", "power_w"} & trace.values.keys()]
    lost = [
        f"{t.meter} stopped answering {t.lost_at_s:.0f} s into the run; what it said before is kept."
        for t in record.traces
        if t.lost_at_s is not None
    ]
    mute = [f"{t.meter} does not tell {', '.join(t.refused)}." for t in record.traces if t.meter.startswith("NVML") and t.refused]
    if not metered:
        return [f"No meter here tells energy, so joules are unknown. {_no_meter(record)}", *lost, *mute]
    if energy_frame(record).empty and all(trace.lost_at_s is None for trace in metered):
        return [f"Joules are unknown: decode was too short for {_listed(t.meter for t in metered)}. {_LEAST_WORDS}", *mute]
    return lost + mute


_LEAST_WORDS = f"At least {LEAST_MOMENTS} readings must lie in it, and {LEAST_SAMPLED_S:.0f} s where power is read and energy is not counted."


def _no_meter(record: Record | SustainRecord) -> str:
    if any(trace.meter.startswith("RAPL") for trace in record.traces):
        return "RAPL is there, but only root may read it; until the next start, sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj opens it."
    cards = _listed(trace.meter for trace in record.traces if trace.meter.startswith("NVML"))
    card = f"{cards} tells neither power nor energy" if cards else "There is no NVIDIA driver"
    if record.machine.system.startswith("Darwin"):
        return "macOS tells power through powermetrics, to root alone, and that is not read here."
    if record.machine.system.startswith("Linux"):
        return f"{card}, and there is no RAPL counter; a virtual machine seldom has one."
    return f"{card}, and the processor's counters are read on Linux only."


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


# ── heat ──────────────────────────────────────────────────────────────────────────────────────────


def throttle_words(bits: int) -> list[str]:
    """NVML's reasons for the clock it runs at, in words; empty when nothing held it back.

    >>> throttle_words(0x24), throttle_words(0)
    (['power limit', 'temperature limit (software)'], [])
    """
    known = [words for bit, words in _REASONS.items() if bits & bit]
    rest = bits & ~sum(_REASONS)
    return known + ([f"reason {rest:#x}"] if rest else [])


def throttle_shares(trace: Trace, start_s: float = 0.0, end_s: float = float("inf")) -> dict[str, float]:
    """For each reason the share of moments at which it held, the most frequent first; empty where the meter does not say."""
    told = [int(bits) for bits in _within(trace, "throttle_reasons", start_s, end_s)]
    counts: dict[str, int] = {}
    for bits in told:
        for words in throttle_words(bits):
            counts[words] = counts.get(words, 0) + 1
    return {words: n / len(told) for words, n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))}


def _within(trace: Trace, quantity: str, start_s: float, end_s: float) -> list[float]:
    values = trace.values.get(quantity, ())
    return [value for at, value in zip(trace.at_s, values, strict=False) if value is not None and start_s <= at <= end_s]


# ── minutes on end ────────────────────────────────────────────────────────────────────────────────


def slice_s(record: SustainRecord) -> float:
    """Seconds of a slice: a minute, or of a shorter run than two minutes some fifth of it in round numbers; all of it where blocks are few."""
    span = record.at_s[-1] + record.block_s[-1] - record.at_s[0]
    if span >= 120:
        return 60.0
    return max((s for s in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0) if 2 * median(record.block_s) <= s <= span / 4), default=span)


def block_frame(record: SustainRecord) -> pd.DataFrame:
    """One row per block: its middle in seconds since the first began, and its rate."""
    at, block = np.array(record.at_s), np.array(record.block_s)
    return pd.DataFrame({"at_s": at - at[0] + block / 2, "tok_per_s": record.block_tokens / block})


def sustain_frame(record: SustainRecord) -> pd.DataFrame:
    """One row per slice: its rate with the slowest and fastest block, and means of what the meters said in it.

    A block belongs to the slice its middle lies in; a last slice of less than half the length goes to the one before.
    Joules are those of ``meters_of(record)``, all of them together, ``None`` where one does not cover the slice.
    """
    length, first = slice_s(record), record.at_s[0]
    whole = record.at_s[-1] + record.block_s[-1] - first
    n_slices = max(1, round(whole / length))
    blocks: dict[int, list[int]] = {}
    for i, middle in enumerate(block_frame(record)["at_s"]):
        blocks.setdefault(min(n_slices - 1, int(middle / length)), []).append(i)
    return pd.DataFrame([_slice_row(record, n * length, blocks[n]) for n in sorted(blocks)])


def _slice_row(record: SustainRecord, from_s: float, blocks: list[int]) -> dict[str, Any]:
    start, end = record.at_s[blocks[0]], record.at_s[blocks[-1]] + record.block_s[blocks[-1]]
    times = [record.block_s[i] for i in blocks]
    used = meters_of(record)
    energy = [energy_between(trace, start, end) for trace in used]
    joules = sum(e.joules for e in energy if e) if energy and all(energy) else None
    cards = [trace for trace in _of_run(record) if trace.meter.startswith("NVML")] if _on_gpu(record) else []
    system = [trace for trace in record.traces if trace.meter == "system"]
    reasons: dict[str, float] = {}
    for words, share in (item for trace in cards for item in throttle_shares(trace, start, end).items()):
        reasons[words] = max(share, reasons.get(words, 0.0))
    return {
        "from_s": from_s,
        "start_s": start,
        "end_s": end,
        "blocks": len(blocks),
        "tok_per_s": record.block_tokens * len(blocks) / sum(times),
        "low": record.block_tokens / max(times),
        "high": record.block_tokens / min(times),
        "temperature_c": _mean(cards or system, "temperature_c", start, end, max),
        "clock_mhz": _mean(cards, "graphics_clock_mhz", start, end, min)
        if cards
        else _mean([t for t in system if _moves(t)], "cpu_clock_mhz", start, end, min),
        "watts": None if joules is None else joules / (end - start),
        "j_per_token": None if joules is None else joules / (record.block_tokens * len(blocks)),
        "throttled": ", ".join(f"{words} {share:.0%}" for words, share in reasons.items() if words != IDLE and share >= _LEAST_SHARE),
        "others_cpus": _mean(system, "others_cpus", start, end, max),
    }


def _mean(traces: Sequence[Trace], quantity: str, start_s: float, end_s: float, of_several: Any) -> float | None:
    """The mean over an interval; of several meters the hottest or the slowest."""
    means = [mean(values) for trace in traces if (values := _within(trace, quantity, start_s, end_s))]
    return of_several(means) if means else None


def _moves(trace: Trace) -> bool:
    """Whether the processor's clock moved at all: in a virtual machine it is a number on paper."""
    return len(set(trace.values.get("cpu_clock_mhz", ()))) > 1


def _on_gpu(record: Record | SustainRecord) -> bool:
    return record.backend.device != "CPU"


def meters_of(record: Record | SustainRecord) -> list[Trace]:
    """The meters of what computed: graphics cards, or else the processor's packages and their memory."""
    prefix = "NVML" if _on_gpu(record) else "RAPL"
    told = [trace for trace in _of_run(record) if {"energy_j", "power_w"} & trace.values.keys()]
    return [trace for trace in told if trace.meter.startswith(prefix) and not trace.meter.endswith("psys")]


def sustain_table(record: SustainRecord) -> tuple[pd.DataFrame, dict[str, str], dict[str, str]]:
    """What ``plots.table`` takes: a row per minute or slice, with the columns that the meters here fill."""
    frame = sustain_frame(record)
    minutes = slice_s(record) == 60
    frame["slice"] = [f"{row.from_s / 60 + 1:.0f}" if minutes else f"from {row.from_s:g} s" for row in frame.itertuples()]
    meters = " + ".join(trace.meter for trace in meters_of(record))
    what = "GPU" if _on_gpu(record) else "processor"
    headings = {
        "slice": "minute" if minutes else f"slice of {slice_s(record):.3g} s",
        "tok_per_s": "tok/s",
        "low": "slowest block",
        "high": "fastest block",
        "temperature_c": f"{what} (°C)",
        "clock_mhz": f"{what} clock (MHz)",
        "watts": f"{meters} (W)",
        "j_per_token": f"{meters} (J/token)",
        "throttled": "clock held by",
        "others_cpus": "processors used by others",
    }
    kept = {name: heading for name, heading in headings.items() if frame[name].notna().any() and (frame[name] != "").any()}
    formats = dict.fromkeys(("tok_per_s", "low", "high", "watts", "others_cpus"), "{:,.1f}")
    formats |= {"temperature_c": "{:.0f}", "clock_mhz": "{:,.0f}", "j_per_token": "{:,.3f}"}
    return frame, kept, {name: pattern for name, pattern in formats.items() if name in kept}


_SHOWN = {
    "temperature_c": "temperature (°C)",
    "graphics_clock_mhz": "clock (MHz)",
    "cpu_clock_mhz": "clock (MHz)",
    "power_w": "power (W)",
}


def moments_frame(record: SustainRecord) -> pd.DataFrame:
    """Temperatures, clocks and power over time, a row each: ``quantity, meter, at_s, value``; at_s since the first block began.

    A processor's clock that never moves is left out.
    """
    rows = [
        {"quantity": heading, "meter": trace.meter, "at_s": at - record.at_s[0], "value": value}
        for quantity, heading in _SHOWN.items()
        for trace in record.traces
        if quantity != "cpu_clock_mhz" or _moves(trace)
        for at, value in zip(trace.at_s, trace.values.get(quantity, ()), strict=False)
        if value is not None and record.at_s[0] <= at <= record.at_s[-1] + record.block_s[-1]
    ]
    return pd.DataFrame(rows, columns=["quantity", "meter", "at_s", "value"])


def sustain_summary(record: SustainRecord) -> list[str]:
    """What the run showed, in sentences: the rate at first and at last, what the meters say of it, and what is not known."""
    frame = sustain_frame(record)
    first, last = frame.iloc[0], frame.iloc[-1]
    fall = 1 - last["tok_per_s"] / first["tok_per_s"]
    unit = "minute" if slice_s(record) == 60 else f"{slice_s(record):g} s"
    span = (last["end_s"] - first["start_s"]) / 60
    lasted = f"{span:.1f} min" if span >= 1 else f"{60 * span:.1f} s"
    start = f"Decode of {record.model.name} {record.model.gguf_type} at depth {record.depth} for {lasted}"
    if len(frame) == 1:
        return [f"{start}: {first['tok_per_s']:,.1f} tok/s, too short to see a fall.", *_said("Beside it", _causes(record, first, last))]
    said = [f"{start}: {first['tok_per_s']:,.1f} tok/s in the first {unit}, {last['tok_per_s']:,.1f} tok/s in the last."]
    causes = _causes(record, first, last)
    if fall > STEADY:
        said.append(f"That is a fall of {fall:.0%}.")
        said += _said("What the meters say of it", causes) or [f"Why is not known: {_blind(record)}."]
    else:
        said.append("That is no fall." if fall >= -STEADY else f"It rose by {-fall:.0%}, so the start was disturbed or cold.")
        said += _said("Beside it", causes)
    return said


def _said(lead: str, causes: list[str]) -> list[str]:
    return [f"{lead}: {'; '.join(causes)}."] if causes else []


def _blind(record: SustainRecord) -> str:
    if any({"graphics_clock_mhz", "temperature_c"} & trace.values.keys() for trace in record.traces):
        return "clocks and temperature moved too little to explain it, and other programs used little"
    return "no meter here tells throttling or temperature" + (", and other programs used little" if record.neighbours else "")


def _causes(record: SustainRecord, first: pd.Series, last: pd.Series) -> list[str]:
    """What moved between the first and the last slice, or held the clock, in words."""
    causes = []
    for trace in _of_run(record):
        what = trace.meter.removeprefix("NVML ") if trace.meter.startswith("NVML") else "the processor"
        for words, share in throttle_shares(trace, first["start_s"], last["end_s"]).items():
            if words != IDLE and share >= _LEAST_SHARE:
                causes.append(f"the clock of {what} was held by {words} for {share:.0%} of the time")
        for quantity in ("graphics_clock_mhz", "cpu_clock_mhz"):
            before, after = _ends(trace, quantity, first, last)
            if before and after is not None and after < (1 - _LEAST_CLOCK_FALL) * before:
                causes.append(f"the clock of {what} fell from {before:,.0f} to {after:,.0f} MHz")
        before, after = _ends(trace, "temperature_c", first, last)
        if before is not None and after is not None and abs(after - before) >= _LEAST_RISE_C:
            causes.append(f"{what} went from {before:.0f} to {after:.0f} °C")
        before, after = _ends(trace, "others_cpus", first, last)
        if before is not None and after is not None and after - before >= _LEAST_CPUS:
            causes.append(f"other programs used {before:.1f} processors at first and {after:.1f} in the end")
        if trace.lost_at_s is not None:
            causes.append(f"{trace.meter} stopped answering after {trace.lost_at_s:.0f} s")
    return causes + _neighbour_words(record.neighbours)


def _ends(trace: Trace, quantity: str, first: pd.Series, last: pd.Series) -> tuple[float | None, float | None]:
    means = [_mean([trace], quantity, row["start_s"], row["end_s"], max) for row in (first, last)]
    return means[0], means[1]


def _neighbour_words(neighbours: Neighbours | None) -> list[str]:
    if neighbours is None:
        return []
    whole = neighbours.wall_s * neighbours.n_cpus
    words = []
    if neighbours.others_s / whole >= _LEAST_SHARE:
        words.append(f"other programs took {neighbours.others_s / whole:.0%} of the processors over the whole run")
    if neighbours.stolen_s is not None and neighbours.stolen_s / whole >= _LEAST_STOLEN:
        words.append(f"the host took {neighbours.stolen_s / whole:.0%} of them away")
    return words


# ── the power test ────────────────────────────────────────────────────────────────────────────────


def power_test_table(path: Path | None = None) -> tuple[pd.DataFrame, dict[str, str], dict[str, str]]:
    """What ``plots.table`` takes: each case of the kept power test, known against recovered joules per token.

    Raises ``DataError`` when the file is not there or is not what ``tests/bench_power.py`` writes.
    """
    path = path or paths.data_dir() / "benchmarks" / "power.json"
    headings = {
        "case": "case",
        "meter": "meter",
        "known_j_per_token": "true (J/token)",
        "recovered_j_per_token": "recovered (J/token)",
        "error_percent": "error (%)",
        "said": "what is said",
    }
    try:
        frame = pd.DataFrame(json.loads(path.read_text(encoding="utf-8"))["rows"])[list(headings)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path.name}: no power test to show ({type(error).__name__}); python tests/bench_power.py makes it") from None
    numbers = ["known_j_per_token", "recovered_j_per_token", "error_percent"]
    frame[numbers] = frame[numbers].astype(float)
    return frame, headings, {"known_j_per_token": "{:,.3f}", "recovered_j_per_token": "{:,.3f}", "error_percent": "{:,.2f}"}
