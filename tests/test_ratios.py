"""Ratios against textbook intervals, and against simulated runs whose true ratio is known."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from nbutils import ratios
from nbutils.ratios import Run, ratio

rates = st.lists(st.floats(1, 1e4), min_size=1, max_size=8).map(tuple)
sides = st.lists(rates.map(Run), min_size=1, max_size=4)


def spread(n: int, draw: np.random.Generator, *, mean: float = 100.0, cv: float = 0.02, correlation: float = 0.0) -> tuple[float, ...]:
    """Rates of a run: noise around a mean, each value resembling the one before by ``correlation``."""
    noise = draw.standard_normal(n).tolist()
    for i in range(1, n if correlation else 0):
        noise[i] = correlation * noise[i - 1] + math.sqrt(1 - correlation**2) * noise[i]
    return tuple(mean * math.exp(cv * value) for value in noise)


# ── against what is known ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("df", [2, 2.5, 3, 4, 7.3, 30, 1000, math.inf])
def test_students_t_is_scipys_to_a_hundredth(df: float) -> None:
    assert ratios._t(df) == pytest.approx(stats.t.ppf(0.975, df), rel=0.01)


def test_of_runs_enough_the_interval_is_students() -> None:
    a, b = [Run((x, x)) for x in (100.0, 103.0, 98.0)], [Run((x,)) for x in (120.0, 119.0, 125.0, 121.0)]
    found = ratio(a, b)
    logs = [[math.log(run.rates[0]) for run in side] for side in (b, a)]
    interval = stats.ttest_ind(*logs).confidence_interval(0.95)
    assert found.basis == "runs"
    assert (found.low, found.high) == pytest.approx((math.exp(interval.low), math.exp(interval.high)), rel=2e-3)
    assert found.verdict == "faster"


def test_the_ratio_is_of_geometric_means() -> None:
    assert ratio([Run((10.0, 1000.0))], [Run((200.0, 200.0))]).value == pytest.approx(2.0)


@given(a=sides, b=sides)
def test_the_other_way_round_is_the_inverse(a: list[Run], b: list[Run]) -> None:
    there, back = ratio(a, b), ratio(b, a)
    assert there.value * back.value == pytest.approx(1)
    turned = {"faster": "slower", "slower": "faster"}
    assert back.verdict == turned.get(there.verdict, there.verdict)
    if there.low is None:
        assert back.low is None
    else:
        assert back.low is not None
        assert there.high is not None
        assert there.high * back.low == pytest.approx(1)
        assert there.low <= there.value * (1 + 1e-12) <= there.high * (1 + 1e-9)


@given(side=sides, factor=st.floats(0.01, 100))
def test_units_do_not_matter(side: list[Run], factor: float) -> None:
    other = [Run((rate * 1.1,)) for rate in (50.0, 51.0)]
    scaled = [[Run(tuple(rate * factor for rate in run.rates)) for run in of] for of in (side, other)]
    plain, found = ratio(side, other), ratio(*scaled)
    assert found.value == pytest.approx(plain.value)
    assert (found.low is None) == (plain.low is None)


# ── what was timed once, and what never moved ─────────────────────────────────────────────────────


def test_two_single_times_tell_a_ratio_and_nothing_of_its_spread() -> None:
    found = ratio([Run((100.0,))], [Run((150.0,))])
    assert (found.value, found.low, found.high, found.verdict, found.basis) == (pytest.approx(1.5), None, None, "unknown", "nothing")


def test_a_side_that_was_timed_once_is_taken_to_scatter_like_the_other() -> None:
    many = Run((100.0, 104.0, 96.0, 101.0, 99.0))
    both, once = ratio([many], [many]), ratio([many], [Run((100.0,))])
    assert once.verdict == "no_difference"
    assert once.high is not None
    assert both.high is not None
    assert once.high / once.value > both.high / both.value, "one value is less sure than the mean of five"


def test_runs_without_any_spread_differ_by_whatever_they_differ() -> None:
    found = ratio([Run((100.0, 100.0))], [Run((101.0, 101.0))])
    assert (found.low, found.high, found.verdict) == (found.value, found.value, "faster")
    assert ratio([Run((100.0, 100.0))], [Run((100.0, 100.0))]).verdict == "no_difference"


@pytest.mark.parametrize(
    ("groups", "variance", "df"),
    [
        ([], 0.0, 0),
        ([[1.0], [2.0]], 0.0, 0),
        ([[1.0, math.e]], 0.5, 1),
        ([[1.0, math.e], [1.0, 1.0, 1.0]], 0.5 / 3, 2),
    ],
)
def test_what_moved_is_a_variance_of_logarithms(groups: list[list[float]], variance: float, df: int) -> None:
    assert ratios.variance_of_log(groups) == (pytest.approx(variance), df)


# ── against simulated noise ───────────────────────────────────────────────────────────────────────

N = 1000


def share(found: Iterable[bool]) -> float:
    return float(np.mean(list(found)))


def covers(found: ratios.Ratio, truth: float) -> bool:
    assert found.low is not None
    assert found.high is not None
    return found.low <= truth <= found.high


@pytest.mark.parametrize("n", [3, 5, 10, 40])
def test_a_known_ratio_is_inside_at_least_as_often_as_stated(n: int) -> None:
    """Independent repetitions of one run each. Allowing for correlation costs some width where there is none."""
    draw = np.random.default_rng(n)
    found = share(covers(ratio([Run(spread(n, draw))], [Run(spread(n, draw, mean=107.0, cv=0.01))]), 1.07) for _ in range(N))
    assert 0.94 <= found < 0.998


@pytest.mark.parametrize("runs", [(2, 2), (4, 1), (5, 5)])
def test_where_runs_differ_more_than_repetitions_several_runs_know_it(runs: tuple[int, int]) -> None:
    """Each run has a speed of its own: between runs 3 %, within them 0.5 %."""
    draw = np.random.default_rng(sum(runs))

    def side(k: int, mean: float) -> list[Run]:
        return [Run(spread(5, draw, mean=mean * float(np.exp(0.03 * draw.standard_normal())), cv=0.005)) for _ in range(k)]

    found = share(covers(ratio(side(runs[0], 100.0), side(runs[1], 107.0)), 1.07) for _ in range(N))
    assert found == pytest.approx(0.95, abs=0.025)


def test_one_run_each_knows_from_its_yardsticks_that_the_machine_moves() -> None:
    """The machine's speed changes by 4 % from moment to moment; a test lies in one moment, three readings of a yardstick in others."""
    draw = np.random.default_rng(4)

    def run(mean: float) -> Run:
        moments = np.exp(0.04 * draw.standard_normal(4))
        yardsticks = [[float(1 / m) for m in moments[1:]]]
        return Run(spread(5, draw, mean=mean * float(moments[0]), cv=0.005), *ratios.variance_of_log(yardsticks))

    def blind(of: Run) -> Run:
        return Run(of.rates)

    pairs = [(run(100.0), run(107.0)) for _ in range(N)]
    assert share(covers(ratio([a], [b]), 1.07) for a, b in pairs) == pytest.approx(0.95, abs=0.025)
    assert share(covers(ratio([blind(a)], [blind(b)]), 1.07) for a, b in pairs) < 0.4, "without the yardsticks nobody would know"


@pytest.mark.parametrize("n", [10, 20, 60, 300])
@pytest.mark.parametrize(("correlation", "most"), [(0.0, 0.05), (0.5, 0.065), (0.9, 0.09)])
def test_two_halves_of_one_run_are_seldom_called_different(n: int, correlation: float, most: float) -> None:
    """Repetitions that resemble their neighbours: what a plain t-test takes for a difference in most cases."""
    draw = np.random.default_rng(n)
    halves = [(Run(found[: n // 2]), Run(found[n // 2 :])) for found in (spread(n, draw, correlation=correlation) for _ in range(N))]
    assert share(ratio([a], [b]).verdict != "no_difference" for a, b in halves) <= most
    if correlation == 0.9 and n > 10:
        plain = share(stats.ttest_ind(np.log(a.rates), np.log(b.rates)).pvalue < 0.05 for a, b in halves)
        assert plain > 0.35


@pytest.mark.parametrize(("faster", "least"), [(1.02, 0.3), (1.05, 0.9)])
def test_a_difference_that_is_there_is_found(faster: float, least: float) -> None:
    """Five repetitions a side that vary by 1 %."""
    draw = np.random.default_rng(7)
    found = share(ratio([Run(spread(5, draw, cv=0.01))], [Run(spread(5, draw, mean=100 * faster, cv=0.01))]).verdict == "faster" for _ in range(300))
    assert found >= least


def test_a_drift_within_a_run_widens_the_interval() -> None:
    steady, drifting = [100.0, 100.2, 99.9, 100.1, 99.8], [98.0, 99.0, 100.0, 101.0, 102.0]
    shuffled = [100.0, 98.0, 102.0, 99.0, 101.0]
    widths = {}
    for name, values in (("drifting", drifting), ("shuffled", shuffled)):
        found = ratio([Run(tuple(steady))], [Run(tuple(values))])
        assert found.low is not None
        assert found.high is not None
        widths[name] = found.high / found.low - 1
    assert widths["drifting"] > 1.3 * widths["shuffled"]
