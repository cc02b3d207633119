from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import helpers  # noqa: F401 - loads the profile of hypothesis
from nbutils.units import UNITS, format_bytes, format_rate, format_si, to_base


@pytest.mark.parametrize(
    ("value", "unit", "dimension", "base"),
    [
        (273, "GB/s", "bandwidth", 273_000_000_000),
        (4.8, "TB/s", "bandwidth", 4_800_000_000_000),
        (128, "GB", "memory", 128_000_000_000),
        (128, "GiB", "memory", 137_438_953_472),
        (1024, "MiB", "memory", 1_073_741_824),
        (1, "PFLOP/s", "compute", 1_000_000_000_000_000),
        (660.6, "TOP/s", "compute", 660_600_000_000_000),
    ],
)
def test_units_mean_what_they_say(value: float, unit: str, dimension: str, base: float) -> None:
    assert to_base(value, unit, dimension) == pytest.approx(base, rel=1e-12)


def test_a_gib_is_seven_percent_more_than_a_gb() -> None:
    assert to_base(1, "GiB", "memory") / to_base(1, "GB", "memory") == pytest.approx(1.073741824)


@given(st.floats(1e-6, 1e9), st.sampled_from(sorted(UNITS)))
def test_units_round_trip(value: float, unit: str) -> None:
    dimension, factor = UNITS[unit]
    assert to_base(value, unit, dimension) / factor == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("unit", "dimension", "allowed"),
    [
        ("GB/s", "memory", "bytes, MB, MiB, GB, GiB"),
        ("GB", "bandwidth", "GB/s, TB/s"),
        ("Gb/s", "bandwidth", "GB/s, TB/s"),
        ("TFLOPS", "compute", "TFLOP/s, PFLOP/s, TOP/s"),
    ],
)
def test_a_wrong_unit_is_answered_with_the_right_ones(unit: str, dimension: str, allowed: str) -> None:
    with pytest.raises(ValueError, match=f"^unit '{unit}' is not a unit of {dimension}; use one of {allowed}$"):
        to_base(1, unit, dimension)


def test_bytes_say_which_gigabyte_they_are_in() -> None:
    assert format_bytes(42_512_531_712) == "42.51 GB"
    assert format_bytes(42_512_531_712, "GiB") == "39.59 GiB"  # as gguf-parser-go's README prints the same file
    assert format_bytes(4e12, digits=0) == "4,000 GB"


def test_unknown_is_a_dash_and_zero_is_not() -> None:
    assert format_rate(None) == format_si(None, "B/s") == "–"
    assert format_rate(0.0) == "0.0 tok/s"
    assert format_si(0.0, "B/s") == "0 B/s"


@pytest.mark.parametrize(
    ("value", "text"),
    [(273e9, "273 GB/s"), (4.8e12, "4.8 TB/s"), (1e15, "1 PB/s"), (1234.0, "1.23 kB/s"), (12.0, "12 B/s"), (-5e6, "-5 MB/s")],
)
def test_a_prefix_is_chosen_for_the_value(value: float, text: str) -> None:
    assert format_si(value, "B/s") == text


@given(st.floats(1, 999e15))
@example(999.9e9)
def test_a_prefix_leaves_no_exponent(value: float) -> None:
    assert "e+" not in format_si(value, "B/s")
