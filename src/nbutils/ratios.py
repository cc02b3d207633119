"""Two sets of timed runs -> how many times as fast, how sure that is, and whether noise would explain it.

Rates are compared as logarithms, so that twice as fast and half as fast are equally far from equal. Repetitions follow each other and resemble
each other, which makes their mean less sure than their number says: they count as fewer (Zwiers and von Storch, J. Climate 8, 1995, 336-351), by
the correlation that their successive differences show (von Neumann, Ann. Math. Stat. 12, 1941, 367-395). What one run cannot see is by how much the
next one would differ. Where there are runs enough they say it themselves (Kalibera and Jones, ISMM 2013, 63-74); else whatever should have stood
still during the run, and moved, does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

__all__ = ["LEVEL", "RUNS_ENOUGH", "Ratio", "Run", "Verdict", "ratio", "variance_of_log"]

#: What an interval holds the true ratio with, if noise is what it is taken to be.
LEVEL = 0.95
#: Runs of both sides together from which the spread between runs is known better from the runs than from within them.
RUNS_ENOUGH = 4
#: Fewer degrees of freedom than this are not told apart from so few repetitions.
_LEAST_DF = 2.0

Verdict = Literal["faster", "slower", "no_difference", "unknown"]


@dataclass(frozen=True, slots=True)
class Run:
    """Rates of one test in one run, in the order they were taken."""

    rates: tuple[float, ...]
    #: Variance of the logarithm of what should have stood still from one moment of the run to another, and its degrees of freedom; 0 if unwatched.
    moved: float = 0.0
    moved_df: int = 0


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times as fast ``b`` is as ``a``, with an interval that holds the truth ``LEVEL`` of the time; ``None`` if its width is unknown."""

    value: float
    low: float | None
    high: float | None
    verdict: Verdict
    #: What the width is known from.
    basis: Literal["runs", "repetitions", "nothing"]


def ratio(a: Sequence[Run], b: Sequence[Run]) -> Ratio:
    """Compare one test on two sides, each of one run or several.

    >>> found = ratio([Run((100.0, 101.0, 99.0, 100.0, 100.0))], [Run((120.0, 119.0, 121.0, 120.0, 120.0))])
    >>> f"{found.value:.2f} {found.verdict}"
    '1.20 faster'
    """
    centre = _mean(_means(b)) - _mean(_means(a))
    basis: Literal["runs", "repetitions"] = "runs" if len(a) + len(b) >= RUNS_ENOUGH else "repetitions"
    parts = _between(a, b) if basis == "runs" else _within(a, b)
    if not parts:
        return Ratio(_power(centre), None, None, "unknown", "nothing")
    variance = sum(v for v, _ in parts)
    # Welch and Satterthwaite: of a sum of variances that are each known from few values.
    df = variance**2 / sum(v**2 / df for v, df in parts) if variance else math.inf
    reach = _t(df) * math.sqrt(variance)
    verdict: Verdict = "no_difference" if abs(centre) <= reach else "faster" if centre > 0 else "slower"
    return Ratio(_power(centre), _power(centre - reach), _power(centre + reach), verdict, basis)


def variance_of_log(groups: Sequence[Sequence[float]]) -> tuple[float, int]:
    """Variance of the logarithm within groups of values that should be equal, and its degrees of freedom.

    Groups that were taken at the same moments move together, so their degrees of freedom do not add up: those of the longest count.
    """
    logs = [[math.log(value) for value in group] for group in groups if len(group) > 1]
    if not logs:
        return 0.0, 0
    squares = sum((value - _mean(group)) ** 2 for group in logs for value in group)
    return squares / sum(len(group) - 1 for group in logs), max(len(group) for group in logs) - 1


def _means(runs: Sequence[Run]) -> list[float]:
    return [_mean([math.log(rate) for rate in run.rates]) for run in runs]


def _between(a: Sequence[Run], b: Sequence[Run]) -> list[tuple[float, float]]:
    """Variance of the difference by Student's pooled estimate over the means of the runs."""
    sides = [_means(a), _means(b)]
    df = len(a) + len(b) - 2
    pooled = sum((mean - _mean(side)) ** 2 for side in sides for mean in side) / df
    return [(pooled * (1 / len(a) + 1 / len(b)), df)]


def _within(a: Sequence[Run], b: Sequence[Run]) -> list[tuple[float, float]]:
    """Variances that add up to that of the difference, with their degrees of freedom; empty where a side was timed once and so was the other.

    A side that was timed once is taken to scatter like the other.
    """
    spreads = [_spread(run) for run in (*a, *b) if len(run.rates) > 1]
    if not spreads:
        return []
    once = max(spreads)
    parts = []
    for side in (a, b):
        for run in side:
            spread, alike, df = _spread(run) if len(run.rates) > 1 else (once[0], 1.0, once[2])
            parts.append((spread * alike / len(run.rates) / len(side) ** 2, df))
            if run.moved_df:
                parts.append((run.moved / len(side) ** 2, float(run.moved_df)))
    return parts


def _spread(run: Run) -> tuple[float, float, float]:
    """Variance of one repetition, how many count as one because they resemble each other, and degrees of freedom of their mean."""
    logs = [math.log(rate) for rate in run.rates]
    n, mean = len(logs), _mean(logs)
    variance = sum((value - mean) ** 2 for value in logs) / (n - 1)
    if variance == 0:
        return 0.0, 1.0, max(n - 1.0, _LEAST_DF)
    successive = sum((later - sooner) ** 2 for sooner, later in pairwise(logs)) / (n - 1)
    # Of few values the correlation comes out too low, by about one over their number.
    correlation = 1 - successive / (2 * variance) + 1 / n
    alike = min((1 + correlation) / (1 - correlation), n) if 0 < correlation < 1 else 1.0 if correlation <= 0 else float(n)
    return variance, alike, max(n / alike - 1, _LEAST_DF)


def _power(log: float) -> float:
    """The ratio that has this logarithm, or the largest or least that can be shown."""
    return math.exp(min(max(log, -700.0), 700.0))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _t(df: float) -> float:
    """Student's t that ``LEVEL`` lies within, by Fisher's expansion (Abramowitz and Stegun 26.7.5); to 1 % from 2 degrees of freedom on."""
    if df < _LEAST_DF:
        return 12.706  # of one degree: the tail is too heavy for the expansion
    return 1.95996 + 2.37227 / df + 2.82250 / df**2 + 2.55585 / df**3 + 1.58953 / df**4
