"""Power and heat: known curves come back as the joules they are, reasons as words, and what nobody metered as unknown."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import make_record
from nbutils import frames_power, paths, plots
from nbutils.errors import DataError
from nbutils.frames_power import energy_between, energy_frame, meter_notes, sustain_frame, sustain_summary, throttle_shares, throttle_words
from nbutils.specs import Backend, Neighbours, Point, SustainRecord, Trace
from pynvml_stand_in import Clock, card_of, watched

ON_GPU = Backend(binding="llama-cpp-python 0.3.36", device="CUDA0: NVIDIA GeForce RTX 4090", memory_bytes=24 * 2**30, system_info="")


def blocks_of(rate: Callable[[float], float], *, start_s: float, end_s: float, block_tokens: int) -> tuple[list[float], list[float]]:
    """Starts and times of blocks decoded one after the other at ``rate(t)`` tok/s."""
    at_s, block_s = [start_s], []
    while at_s[-1] < end_s:
        block_s.append(block_tokens / rate(at_s[-1]))
        at_s.append(at_s[-1] + block_s[-1])
    return at_s[:-1], block_s


def sustained(
    *traces: Trace,
    rate: Callable[[float], float] = lambda t: 100.0,
    minutes: float = 10,
    start_s: float = 5.0,
    block_tokens: int = 100,
    **changes: Any,
) -> SustainRecord:
    """A run of ``minutes`` that began ``start_s`` after the meters."""
    whole = make_record()
    at_s, block_s = blocks_of(rate, start_s=start_s, end_s=start_s + 60 * minutes - 1e-6, block_tokens=block_tokens)
    fields = {name: getattr(whole, name) for name in ("schema_version", "created", "versions", "machine", "backend", "model", "settings")}
    fields |= {"kind": "sustain", "minutes": minutes, "block_tokens": block_tokens, "depth": 0, "at_s": at_s, "block_s": block_s, "traces": traces}
    return SustainRecord(**(fields | changes))


def traced(*, seconds: float = 620, interval_s: float = 0.5, jitter_s: float = 0.0, **quantities: Any) -> Trace:
    clock = Clock()
    return watched(card_of(clock, **quantities), clock, seconds=seconds, interval_s=interval_s, jitter_s=jitter_s, most=2000)


def integral(power_w: Callable[[float], float], start_s: float, end_s: float) -> float:
    n = 20_000
    return sum(power_w(start_s + (end_s - start_s) * (i + 0.5) / n) for i in range(n)) * (end_s - start_s) / n


# ── energy ────────────────────────────────────────────────────────────────────────────────────────

CURVES: dict[str, tuple[Callable[[float], float], Callable[[float], float]]] = {
    "300 W throughout": (lambda t: 300.0, lambda t: 300 * t),
    "a ramp": (lambda t: 100 + 5 * t, lambda t: 100 * t + 2.5 * t * t),
    "from 350 to 220 W within a moment": (lambda t: 350.0 if t < 30 else 220.0, lambda t: 350 * min(t, 30) + 220 * max(0, t - 30)),
    "a wave": (lambda t: 250 + 100 * math.sin(t / 3), lambda t: 250 * t - 300 * math.cos(t / 3) + 300),
}
each_curve = pytest.mark.parametrize("name", CURVES)


@each_curve
def test_a_counter_gives_the_joules_back_exactly(name: str) -> None:
    power_w, energy_j = CURVES[name]
    trace = traced(seconds=60, power_w=power_w, energy_j=energy_j)
    found = energy_between(trace, 10, 50)
    assert found is not None
    assert found.basis == "counter"
    assert found.joules == pytest.approx(energy_j(50) - energy_j(10), abs=0.002)


@each_curve
@pytest.mark.parametrize("jitter_s", [0.0, 0.3])
def test_readings_of_power_give_them_back_within_one_per_cent(name: str, jitter_s: float) -> None:
    power_w, energy_j = CURVES[name]
    found = energy_between(traced(seconds=60, power_w=power_w, jitter_s=jitter_s), 10.2, 50.1)
    assert found is not None
    assert found.basis == "sampled power"
    assert found.joules == pytest.approx(energy_j(50.1) - energy_j(10.2), rel=0.01)


@given(
    start_s=st.floats(0, 40),
    first_s=st.floats(5, 20),
    second_s=st.floats(5, 20),
    base=st.floats(1, 600),
    slope=st.floats(0, 5),
    counts=st.booleans(),
)
def test_energy_adds_up_and_is_at_least_the_least_power(
    start_s: float, first_s: float, second_s: float, base: float, slope: float, counts: bool
) -> None:
    energy = {"energy_j": lambda t: base * t + slope * t * t / 2} if counts else {}
    trace = traced(seconds=100, power_w=lambda t: base + slope * t, **energy)
    middle_s, end_s = start_s + first_s, start_s + first_s + second_s
    parts = [energy_between(trace, *span) for span in ((start_s, middle_s), (middle_s, end_s), (start_s, end_s))]
    first, second, whole = [part.joules for part in parts if part]
    assert first + second == pytest.approx(whole, rel=1e-3, abs=0.01)
    assert whole >= (base - 0.01) * (end_s - start_s) * 0.999
    assert whole == pytest.approx((end_s - start_s) * (base + slope * (start_s + end_s) / 2), rel=2e-3, abs=0.02)


@pytest.mark.parametrize(
    ("why", "trace", "span"),
    [
        ("lost before its end", lambda: traced(seconds=60, lost_at_s=30), (10, 40)),
        ("began too late", lambda: traced(seconds=60), (-1, 40)),
        ("ended too early", lambda: traced(seconds=60), (10, 90)),
        ("power for less than five seconds", lambda: traced(seconds=60, interval_s=0.1), (10, 14.5)),
        ("a counter read too seldom", lambda: traced(seconds=60, energy_j=lambda t: t, power_w=None), (10, 12)),
        ("nobody answered for a while", lambda: traced(seconds=60, power_w=lambda t: None if 20 < t < 26 else 80), (10, 40)),
        ("nothing between", lambda: traced(seconds=60), (20, 20)),
        ("no such quantity", lambda: traced(seconds=60, power_w=None), (10, 40)),
    ],
)
def test_what_a_meter_does_not_cover_is_unknown(why: str, trace: Callable[[], Trace], span: tuple[float, float]) -> None:
    assert energy_between(trace(), *span) is None, why


def test_up_to_the_loss_of_a_card_its_joules_are_known() -> None:
    found = energy_between(traced(seconds=60, power_w=200, lost_at_s=30), 10, 29)
    assert found is not None
    assert found.joules == pytest.approx(3800)


def test_where_a_counter_broke_readings_of_power_stand_in() -> None:
    trace = traced(seconds=60, power_w=200, energy_j=lambda t: 200 * t if t < 30 else 200 * (t - 30))
    assert [e and e.basis for e in (energy_between(trace, 5, 25), energy_between(trace, 20, 50))] == ["counter", "sampled power"]


def rapl(name: str, watts: float, *, seconds: float = 620) -> Trace:
    at_s = tuple(float(t) for t in range(int(seconds)))
    return Trace(meter=f"RAPL {name}", at_s=at_s, values={"energy_j": tuple(watts * t for t in at_s)})


def test_joules_per_token_of_a_run_name_the_meter_and_what_it_does_not_see() -> None:
    trace = traced(power_w=300, energy_j=lambda t: 300 * t)
    frame = energy_frame(sustained(trace, rapl("package-0", 50), rapl("package-0 dram", 10), rapl("psys", 80), backend=ON_GPU))
    by_meter = frame.set_index("meter")
    assert by_meter["j_per_token"].to_dict() == pytest.approx(
        {"NVML GPU 0": 3.0, "RAPL package-0": 0.5, "RAPL package-0 dram": 0.1, "RAPL psys": 0.8, "these meters together": 3.6}
    ), "the platform's counter contains the package and is in no sum"
    assert by_meter.loc["NVML GPU 0", "watts"] == pytest.approx(300)
    assert frame["unseen"].str.contains("not the wall").all()
    assert by_meter["unseen"].nunique() == 5


def test_one_meter_alone_has_no_sum() -> None:
    assert list(energy_frame(sustained(traced(power_w=300)))["meter"]) == ["NVML GPU 0"]


def test_joules_per_token_of_decode_points_leave_out_what_lies_between_repetitions() -> None:
    """Filling the cache again takes power too, but no decoded token."""
    busy = [(10.0, 18.0), (30.0, 38.0)]
    trace = traced(seconds=60, interval_s=0.1, energy_j=lambda t: sum(300 * max(0.0, min(t, b) - a) for a, b in busy) + 1000 * max(0.0, t - 50))
    point = Point(kind="decode", n_tokens=4, depth=32, n_seq=2, warmup_s=0.1, repetitions_s=((2.0,) * 4, (2.0,) * 4), at_s=(10.0, 30.0))
    record = make_record()
    suite = record.suite.model_copy(update={"points": (record.suite.points[0], record.suite.points[1].model_copy(update={"n_seq": 2}))})
    record = make_record(suite=suite, points=(record.points[0], point), traces=(trace,))
    (row,) = energy_frame(record).to_dict("records")
    assert (row["what"], row["tokens"]) == ("decode 4 at depth 32, 2 sequences", 16)
    assert row["j_per_token"] == pytest.approx(4800 / 16, rel=1e-3)
    assert row["watts"] == pytest.approx(300, rel=1e-3)


def test_a_record_without_moments_or_meters_has_no_joules_and_says_why() -> None:
    record = make_record()
    assert energy_frame(record).empty
    (note,) = meter_notes(record)
    assert "joules are unknown" in note
    assert "There is no NVIDIA driver, and there is no RAPL counter" in note


def test_every_note_says_what_is_missing_and_the_way_out() -> None:
    closed = Trace(meter="RAPL package-0", at_s=(), values={}, refused=("energy_j",))
    assert "sudo chmod a+r /sys/class/powercap" in meter_notes(sustained(closed))[0]
    for system, word in (("Darwin 24.1", "powermetrics"), ("Windows 11", "Linux only")):
        assert word in meter_notes(sustained(machine=make_record().machine.model_copy(update={"system": system})))[0]
    lost, mute = meter_notes(sustained(traced(lost_at_s=30.0)))
    assert "NVML GPU 0 stopped answering 30 s into the run" in lost
    assert mute == "NVML GPU 0 does not tell energy_j, throttle_reasons."
    assert meter_notes(sustained(traced(seconds=30), minutes=0.02))[0].startswith("Joules are unknown: decode was too short for NVML GPU 0.")
    assert "NVML GPU 0 tells neither power nor energy" in meter_notes(sustained(traced(power_w=None)))[0]


# ── reasons ───────────────────────────────────────────────────────────────────────────────────────


@given(bits=st.integers(0, 2**20 - 1))
def test_every_bit_has_a_word_and_no_bit_none(bits: int) -> None:
    words = throttle_words(bits)
    assert bool(words) == bool(bits)
    known = [word for word in words if not word.startswith("reason ")]
    assert len(known) == bin(bits & 0x7FF).count("1")


def test_every_reason_that_the_drivers_module_knows_is_known_here() -> None:
    pynvml = pytest.importorskip("pynvml")
    names = [n for n in dir(pynvml) if n.startswith(("nvmlClocksEventReason", "nvmlClocksThrottleReason")) and not n.endswith(("All", "None"))]
    assert len(names) > 8
    for name in names:
        (word,) = throttle_words(getattr(pynvml, name))
        assert not word.startswith("reason "), name


def test_shares_of_reasons_are_of_the_moments_that_were_told() -> None:
    trace = traced(seconds=100, throttle_reasons=lambda t: None if 0 < t < 20 else 4 if t <= 80 else 4 | 0x20)
    shares = throttle_shares(trace)
    assert shares == pytest.approx({"power limit": 1.0, "temperature limit (software)": 40 / 162}, abs=0.01)
    assert throttle_shares(trace, 85, 95)["temperature limit (software)"] == 1
    assert throttle_shares(traced(seconds=10)) == {}


# ── minutes on end ────────────────────────────────────────────────────────────────────────────────


def throttling(**changes: Any) -> SustainRecord:
    """Three minutes at 100 tok/s, then seven at 75 with a lower clock, because the card is hot."""
    trace = traced(
        power_w=lambda t: 350 if t < 185 else 250,
        energy_j=lambda t: 350 * min(t, 185) + 250 * max(0.0, t - 185),
        temperature_c=lambda t: min(84.0, 45 + t / 4),
        graphics_clock_mhz=lambda t: 2520 if t < 185 else 1890,
        throttle_reasons=lambda t: 0 if t < 185 else 0x20,
    )
    return sustained(trace, rate=lambda t: 100 if t < 185 else 75, backend=ON_GPU, **changes)


def test_minutes_show_the_fall_and_what_went_with_it() -> None:
    frame = sustain_frame(throttling())
    assert len(frame) == 10
    assert frame["tok_per_s"].tolist() == pytest.approx([100] * 3 + [75] * 7, rel=0.01)
    assert frame["j_per_token"].tolist() == pytest.approx([3.5] * 3 + [250 / 75] * 7, rel=0.01)
    assert frame["watts"].tolist() == pytest.approx([350] * 3 + [250] * 7, rel=0.01)
    assert frame["clock_mhz"].tolist() == pytest.approx([2520] * 3 + [1890] * 7, rel=0.01)
    assert frame["temperature_c"].iloc[0] < 60 < frame["temperature_c"].iloc[-1]
    assert frame["throttled"].tolist()[:2] == ["", ""]
    assert frame["throttled"].iloc[-1] == "temperature limit (software) 100%"


def test_words_name_the_fall_and_the_reason() -> None:
    words = " ".join(sustain_summary(throttling()))
    assert "100.0 tok/s in the first minute, 75.0 tok/s in the last" in words
    assert "a fall of 25%" in words
    assert "the clock of GPU 0 was held by temperature limit (software) for 70% of the time" in words
    assert "the clock of GPU 0 fell from 2,520 to 1,890 MHz" in words
    assert "GPU 0 went from 54 to 84 °C" in words


def test_a_run_that_holds_says_so_and_what_held_the_clock_all_the_while() -> None:
    words = " ".join(sustain_summary(sustained(traced(throttle_reasons=4), backend=ON_GPU)))
    assert "no fall" in words
    assert "Why" not in words
    assert "held by power limit for 100% of the time" in words


def test_an_idle_card_is_no_reason() -> None:
    assert "idle" not in " ".join(sustain_summary(sustained(traced(throttle_reasons=1), rate=lambda t: 100 if t < 100 else 50, backend=ON_GPU)))


def test_without_meters_the_reason_is_not_known() -> None:
    *_, last = sustain_summary(sustained(rate=lambda t: 100 if t < 100 else 50))
    assert last.startswith("Why is not known: no meter here tells throttling or temperature")


def test_neighbours_are_named_where_they_took_much() -> None:
    busy = Neighbours(wall_s=600, n_cpus=2, own_s=700, others_s=360, stolen_s=48)
    words = " ".join(sustain_summary(sustained(rate=lambda t: 100 if t < 100 else 50, neighbours=busy)))
    assert "other programs took 30% of the processors over the whole run" in words
    assert "the host took 4% of them away" in words
    quiet = Neighbours(wall_s=600, n_cpus=2, own_s=1190, others_s=5, stolen_s=1)
    words = " ".join(sustain_summary(sustained(rate=lambda t: 100 if t < 100 else 50, neighbours=quiet)))
    assert "Why is not known" in words
    assert "other programs used little" in words


def test_neighbours_that_came_late_are_told_from_those_that_were_there() -> None:
    at_s = tuple(2.0 * i for i in range(310))
    system = Trace(meter="system", at_s=at_s, values={"others_cpus": tuple(0.1 if t < 300 else 1.2 for t in at_s)})
    words = " ".join(sustain_summary(sustained(system, rate=lambda t: 100 if t < 300 else 60)))
    assert "other programs used 0.1 processors at first and 1.2 in the end" in words


def test_a_start_that_was_slow_is_no_fall() -> None:
    words = " ".join(sustain_summary(sustained(rate=lambda t: 50 if t < 65 else 100)))
    assert "rose by" in words
    assert "fall" not in words


@given(minutes=st.floats(0.01, 15), rate=st.floats(0.5, 2000), block_tokens=st.integers(1, 512))
def test_every_block_is_in_one_slice(minutes: float, rate: float, block_tokens: int) -> None:
    if 60 * minutes * rate / block_tokens > 5000:
        block_tokens = math.ceil(60 * minutes * rate / 5000)
    record = sustained(rate=lambda t: rate, minutes=minutes, block_tokens=block_tokens)
    frame = sustain_frame(record)
    assert frame["blocks"].sum() == len(record.block_s)
    assert frame["tok_per_s"].tolist() == pytest.approx([rate] * len(frame))
    assert (frame["low"] <= frame["tok_per_s"] * 1.000001).all()
    assert (frame["from_s"].diff().dropna() > 0).all()
    assert sustain_summary(record)


@pytest.mark.parametrize(("minutes", "length", "n"), [(10, 60, 10), (2.4, 60, 2), (2.6, 60, 3), (1, 10, 6), (0.05, 0.5, 6)])
def test_slices_are_minutes_or_round_parts_of_a_short_run(minutes: float, length: float, n: int) -> None:
    record = sustained(minutes=minutes, block_tokens=4)
    assert frames_power.slice_s(record) == length
    assert len(sustain_frame(record)) == n


def test_a_run_of_few_blocks_is_one_slice_and_sees_no_fall() -> None:
    record = sustained(minutes=0.03, block_tokens=150)
    assert len(record.block_s) == 2
    (row,) = sustain_frame(record).to_dict("records")
    assert row["from_s"] == 0
    assert "too short to see a fall" in sustain_summary(record)[0]


def test_a_table_has_the_columns_that_the_meters_fill() -> None:
    _, headings, formats = frames_power.sustain_table(sustained())
    assert list(headings.values()) == ["minute", "tok/s", "slowest block", "fastest block"]
    assert set(formats) <= set(headings)
    frame, headings, formats = frames_power.sustain_table(throttling())
    assert {"GPU (°C)", "GPU clock (MHz)", "NVML GPU 0 (W)", "NVML GPU 0 (J/token)", "clock held by"} <= set(headings.values())
    shown = plots.table(frame, headings, formats).to_html()
    assert "temperature limit (software) 100%" in shown
    assert "nan" not in shown


def test_a_clock_that_never_moves_is_not_drawn_where_it_may_be_a_number_on_paper() -> None:
    at_s = (6.0, 8.0, 10.0)
    still = Trace(meter="system", at_s=at_s, values={"cpu_clock_mhz": (2596.0,) * 3, "temperature_c": (50.0, None, 52.0)})
    assert sustain_frame(sustained(still))["clock_mhz"].isna().all()
    moments = frames_power.moments_frame(sustained(still))
    assert moments[["quantity", "at_s", "value"]].values.tolist() == [["temperature (°C)", 1.0, 50.0], ["temperature (°C)", 5.0, 52.0]]
    moving = still.model_copy(update={"values": {"cpu_clock_mhz": (2596.0, 2400.0, 2000.0)}})
    assert set(frames_power.moments_frame(sustained(moving))["quantity"]) == {"clock (MHz)"}


# ── the power test ────────────────────────────────────────────────────────────────────────────────


def test_the_kept_power_test_recovers_what_is_known() -> None:
    frame, headings, formats = frames_power.power_test_table()
    plots.table(frame, headings, formats).to_html()
    counted = frame[frame["said"] == "counter"]
    assert len(counted) >= 4
    assert counted["error_percent"].abs().max() < 0.2
    sampled = frame[frame["said"] == "sampled power"]
    assert len(sampled) >= 4
    assert sampled["error_percent"].abs().max() < 5
    unknown = frame[frame["recovered_j_per_token"].isna()]
    assert len(unknown) >= 2
    assert unknown["error_percent"].isna().all()


@pytest.mark.parametrize("text", [None, "{}", "[1", '{"rows": [{"case": 1}]}'])
def test_without_a_power_test_the_error_names_what_makes_it(text: str | None, tmp_path: Path) -> None:
    file = tmp_path / "power.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(DataError, match=r"power\.json.*bench_power\.py"):
        frames_power.power_test_table(file)


def test_the_kept_power_test_names_its_day_and_versions() -> None:
    kept = json.loads((paths.data_dir() / "benchmarks" / "power.json").read_text(encoding="utf-8"))
    assert set(kept) == {"date", "machine", "versions", "rows"}
    assert pd.Timestamp(kept["date"]) > pd.Timestamp("2026-01-01")


def test_a_card_that_somebody_else_uses_is_not_charged() -> None:
    """Of two cards one grows by a model and draws 100 W; the other is full of somebody else's and draws 300 W."""
    moments = tuple(float(t) for t in range(0, 700))
    ours = Trace(meter="NVML GPU 0", at_s=moments, values={"power_w": (100.0,) * 700, "used_bytes": (1e9, *(9e9,) * 699)})
    other = Trace(meter="NVML GPU 1", at_s=moments, values={"power_w": (300.0,) * 700, "used_bytes": (20e9,) * 700})
    record = sustained(ours, other)
    assert set(frames_power.energy_frame(record)["meter"]) == {"NVML GPU 0"}
    (watts,) = frames_power.energy_frame(record)["watts"]
    assert watts == pytest.approx(100)
