"""Verdicts are computed. The bounds here are worked out by hand from published figures, not by the code under test."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from nbutils import claims, frames_claims, paths
from nbutils.claims import VERDICTS, Judgement, Rival, say_value
from nbutils.specs import Source
from nbutils.specs_articles import Article, Claim

SOURCES = {"press": Source(title="A paper", url="https://example.org/paper", seen=date(2026, 11, 20))}
LLAMA = {"model": "llama-3.3-70b", "format": "Q4_K_M"}


def claim(**fields: Any) -> Claim:
    return Claim.model_validate({"id": "one", "says": "says", "where": "there", "subject": "it", **fields})


def rate(value: float, high: float | None = None, *, device: str = "mac-studio-m4-max", quantity: str = "decode_rate", **more: Any) -> Claim:
    readings = more.pop("readings", [{"device": device, **LLAMA}])
    return claim(quantity=quantity, value=value, value_high=high, unit="tok/s", readings=readings, **more)


def judged(found: Claim, *rivals: Claim, own_url: str = "") -> Judgement:
    cases = [frames_claims.case_of(reading, found.quantity) for reading in found.readings]
    others = [Rival(article="another", claim=c) for c in rivals]
    return claims.judge(found, cases, sources=SOURCES, rivals=others, own_url=own_url)


# ── walls ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_rate_above_bandwidth_over_bytes_is_above_the_ceiling() -> None:
    """546 GB/s over the 41.92 GB that a token reads of Llama 3.3 70B in Q4_K_M is 13.02 tok/s."""
    found = judged(rate(20, 25))
    assert (found.verdict, found.bound_kind) == ("above_ceiling", "decode_ceiling")
    assert found.bound == pytest.approx(546 / 41.92, rel=1e-3)
    assert "1.54 to 1.92 times" in found.because


def test_a_range_is_above_as_soon_as_its_upper_end_is() -> None:
    found = judged(rate(12, 14))
    assert found.verdict == "above_ceiling"
    assert "upper end" in found.because
    assert judged(rate(12, 13)).verdict == "consistent"


def test_training_is_bounded_by_compute() -> None:
    """QLoRA: four FLOP per weight and token, 69.5e9 active weights, 125 TFLOP/s in BF16: 450 tok/s."""
    qlora = {"device": "dgx-spark", "model": "llama-3.3-70b", "format": "BF16", "method": "qlora"}
    found = judged(rate(5079, quantity="training_rate", readings=[qlora]))
    assert (found.verdict, found.bound_kind) == ("above_ceiling", "training_ceiling")
    assert found.bound == pytest.approx(125e12 / (4 * 69.5e9), rel=0.01)


def test_prefill_is_bounded_by_the_peak_of_the_format() -> None:
    found = judged(
        rate(803, quantity="prefill_rate", device="dgx-spark", readings=[{"device": "dgx-spark", "model": "llama-3.3-70b", "format": "FP8"}])
    )
    assert found.verdict == "consistent"
    assert found.bound == pytest.approx(250e12 / (2 * 69.5e9), rel=0.02)


@given(share=st.floats(0.01, 3))
def test_what_is_said_follows_from_the_share_of_the_ceiling(share: float) -> None:
    ceiling = 546e9 / frames_claims.case_of(rate(1).readings[0]).variant.step_weight_bytes  # type: ignore[union-attr]
    found = judged(rate(round(ceiling * share, 3)))
    if abs(share - 1) > 0.001:
        assert found.verdict in (("above_ceiling",) if share > 1 else ("consistent", "implausible"))
        if 0.5 < share < 0.9:  # where such machines are
            assert found.verdict == "consistent"


def test_what_is_possible_and_never_seen_is_implausible() -> None:
    """Two tenths of a ceiling, or nearly all of it: possible, and not what such machines do; the odds are said."""
    found = judged(rate(2.6))
    assert found.verdict == "implausible"
    assert "odds of one in" in found.because or "less than one in a million" in found.because
    assert judged(rate(9.4)).verdict == "consistent"
    assert judged(rate(2.6, means="at_least")).verdict == "consistent", "more is meant"


@given(middle=st.floats(1, 100), down=st.floats(1.05, 3), up=st.floats(1.05, 3))
def test_odds_fall_with_distance_and_are_a_tenth_at_the_ends_of_the_range(middle: float, down: float, up: float) -> None:
    expected = claims.Expectation(tok_per_s=middle, low_tok_per_s=middle / down, high_tok_per_s=middle * up)
    assert expected.odds(middle, middle) == 1
    assert expected.odds(middle * up, middle * up) == pytest.approx(0.1)
    assert expected.odds(middle / down, middle / down) == pytest.approx(0.1)
    assert expected.odds(middle * up**2, middle * up**3) == pytest.approx(0.01)
    assert expected.odds(middle / 10, middle * 10) == 1, "a range that holds what is expected"


# ── readings ──────────────────────────────────────────────────────────────────────────────────────

THIRTY = [
    {"assumes": "If it is dense", "device": "rtx-spark-n1x", "model": "qwen3-32b", "format": "Q4_K_M"},
    {"assumes": "If it is a mixture", "device": "rtx-spark-n1x", "model": "qwen3-30b-a3b", "format": "Q4_K_M"},
]


def test_true_for_one_reading_and_false_for_another_needs_a_condition() -> None:
    found = judged(rate(40, means="at_least", readings=THIRTY))
    assert found.verdict == "needs_condition"
    assert [r.holds for r in found.readings] == [False, True]
    assert "If it is dense" in found.because
    assert "If it is a mixture" in found.because
    assert found.bound == pytest.approx(300 / 19.32, rel=1e-3), "of the first reading, the most literal one"


def test_false_for_every_reading_is_false() -> None:
    assert judged(rate(200, readings=THIRTY)).verdict == "above_ceiling"
    assert judged(rate(10, readings=THIRTY)).verdict == "consistent"


def test_a_million_tokens_depend_on_the_model() -> None:
    """The trained context of gpt-oss ends at 131,072; Nemotron 3 Super's 1M fits beside its weights."""
    readings = [
        {"device": "rtx-spark-n1x", "model": "gpt-oss-120b", "format": "MXFP4_MOE"},
        {"device": "rtx-spark-n1x", "model": "nemotron-3-super", "format": "Q4_K_M"},
    ]
    found = judged(claim(quantity="context", value=1_000_000, unit="tokens", readings=readings))
    assert found.verdict == "needs_condition"
    assert [r.bound.value for r in found.readings if r.bound] == [131_072, 1_048_576]


def test_a_petaflop_is_one_only_if_zeros_count() -> None:
    peaks = [{"device": "rtx-spark-n1x", "dtype": "fp4", "basis": basis} for basis in ("sparse", "dense")]
    found = judged(claim(quantity="peak_compute", value=1000, unit="TFLOP/s", readings=peaks))
    assert found.verdict == "needs_condition"
    assert [r.holds for r in found.readings] == [True, False]


# ── figures ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("fields", "verdict"),
    [
        (
            {
                "quantity": "bandwidth",
                "value": 546,
                "unit": "GB/s",
                "readings": [{"device": "macbook-pro-m5-max"}, {"device": "macbook-pro-m5-max-32c"}],
            },
            "contradicts_source",
        ),
        ({"quantity": "bandwidth", "value": 546, "unit": "GB/s", "readings": [{"device": "mac-studio-m4-max"}]}, "consistent"),
        ({"quantity": "file_size", "value": 43, "unit": "GB", "readings": [{"model": "llama-4-scout", "format": "Q4_K_M"}]}, "contradicts_source"),
        ({"quantity": "file_size", "value": 41, "unit": "GB", "rounded": True, "readings": [LLAMA]}, "consistent"),  # 42.5, "roughly"
        ({"quantity": "file_size", "value": 41.1, "unit": "GB", "readings": [LLAMA]}, "contradicts_source"),  # printed to a tenth
        (
            {
                "quantity": "memory_needed",
                "value": 16,
                "unit": "GB",
                "readings": [{"device": "rtx-5060-ti-16gb", "model": "qwen3-30b-a3b", "format": "Q4_K_M"}],
            },
            "contradicts_source",
        ),
        ({"quantity": "memory_needed", "value": 128, "unit": "GB", "readings": [LLAMA]}, "consistent"),
        ({"quantity": "power", "value": 300, "unit": "W", "readings": [{"device": "dgx-spark"}]}, "contradicts_source"),
        ({"quantity": "price", "value": 4699, "unit": "USD", "readings": [{"device": "dgx-spark"}]}, "consistent"),  # since the rise
        ({"quantity": "parameters", "value": 70, "unit": "10^9", "readings": [{"model": "llama-4-scout"}]}, "contradicts_source"),
        (
            {"quantity": "parameters_that_fit", "value": 405, "unit": "10^9", "readings": [{"device": "rtx-spark-n1x", "bits_per_weight": 4.25}]},
            "contradicts_source",
        ),
        (
            {
                "quantity": "ratio",
                "value": 2,
                "unit": "times",
                "rounded": True,
                "readings": [{"of": "bytes_per_token", "model": "llama-3.3-70b", "format": "FP8", "over": LLAMA}],
            },
            "contradicts_source",
        ),
    ],
)
def test_a_figure_is_held_against_what_is_counted_or_listed(fields: dict[str, Any], verdict: str) -> None:
    assert judged(claim(**fields)).verdict == verdict


def test_two_ceilings_do_not_bound_a_ratio_of_rates() -> None:
    """Programs reach different shares; what is exact on both sides has a ratio that decides."""
    sides = {"device": "mac-studio-m4-max", **LLAMA, "over": {"device": "rtx-spark-n1x", **LLAMA}}
    assert judged(claim(quantity="ratio", value=1, unit="times", readings=[{"of": "decode_rate", **sides}])).verdict == "cannot_check"
    assert judged(claim(quantity="ratio", value=1, unit="times", readings=[{"of": "decode_ceiling", **sides}])).verdict == "contradicts_source"
    assert judged(claim(quantity="ratio", value=1.82, unit="times", readings=[{"of": "bandwidth", **sides}])).verdict == "consistent"


def test_a_measured_figure_that_speaks_against_a_claim_is_named_too() -> None:
    assert judged(claim(quantity="power", value=300, unit="W", readings=[{"device": "dgx-spark"}])).also == ("contradicts_measurement",)


def test_an_article_is_no_witness_for_itself() -> None:
    """The only price of N1X comes from an article, unverified; it can neither confirm nor contradict."""
    price = claim(quantity="price", value=2899, unit="USD", means="at_least", readings=[{"device": "rtx-spark-n1x"}])
    found = judged(price, own_url="https://runaihome.com/blog/nvidia-rtx-spark-local-ai-2026/")
    assert (found.verdict, found.bound) == ("cannot_check", None)


# ── evidence and rivals ───────────────────────────────────────────────────────────────────────────


def evidence(value: Any, **more: Any) -> dict[str, Any]:
    return {"value": value, "source": "press", "standing": "measured", "says": "what was seen", **more}


def test_a_slower_machine_that_does_better_contradicts() -> None:
    found = judged(rate(3, device="rtx-spark-n1x", evidence=[evidence(4.71, relation="at_least", kind="measurement")]))
    assert found.verdict == "contradicts_measurement"
    assert "A paper" in found.because


def test_what_is_measured_to_be_most_bounds_all_of_a_range() -> None:
    measured = evidence(12, relation="at_most", kind="measurement")
    assert judged(rate(11, 13, evidence=[measured])).verdict == "consistent", "ten per cent to spare"
    assert judged(rate(11, 14, evidence=[measured])).also == ("contradicts_measurement",)
    later = evidence(date(2026, 9, 1), relation="at_least")
    assert judged(claim(quantity="date", value=date(2026, 10, 1), unit="date", evidence=[later])).verdict == "consistent"


def test_weak_evidence_does_not_decide() -> None:
    assert judged(claim(quantity="figure", value=900, unit="GB/s", evidence=[evidence(600, standing="unverified")])).verdict == "cannot_check"
    assert judged(claim(quantity="figure", value=900, unit="GB/s", evidence=[evidence(600)])).verdict == "contradicts_source"


def test_a_day_is_exact_and_may_be_announced_or_sold() -> None:
    readings = [
        {"assumes": "If announced is meant", "evidence": [evidence(date(2026, 6, 1))]},
        {"assumes": "If sold is meant", "evidence": [evidence(date(2026, 9, 1), relation="at_least")]},
    ]
    found = judged(claim(quantity="date", value=date(2026, 6, 1), unit="date", readings=readings))
    assert (found.verdict, found.bound) == ("needs_condition", date(2026, 6, 1))
    assert judged(claim(quantity="date", value=date(2026, 6, 2), unit="date", evidence=[evidence(date(2026, 6, 1))])).verdict == "contradicts_source"


def test_articles_that_exclude_each_other_are_named_and_the_truth_is_not_hidden() -> None:
    found = judged(rate(12, 13, topic="m4"), rate(20, 25, topic="m4"))
    assert (found.verdict, found.also) == ("contradicts_other_article", ("consistent",))
    assert judged(rate(20, 25), rate(12, 13)).also == ("contradicts_other_article",)
    assert judged(rate(12, 13), rate(11, 12.5)).also == ()
    assert judged(rate(12, means="at_least"), rate(12.5)).verdict == "consistent"


def test_what_nothing_decides_says_why_and_nothing_else() -> None:
    found = judged(claim(quantity="figure", value=90, unit="%", cannot_check="No method is given."))
    assert found == Judgement(
        verdict="cannot_check", also=(), because="No method is given.", bound=None, bound_kind=None, beside="No method is given."
    )


# ── what a claim may say ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"quantity": "decode_rate", "value": 3, "unit": "tok/s"}, "readings or evidence"),
        ({"quantity": "decode_rate", "value": 3, "unit": "GB", "readings": [{"device": "x", **LLAMA}]}, "is in tok/s"),
        ({"quantity": "decode_rate", "value": 3, "unit": "tok/s", "readings": [LLAMA]}, "needs 'device'"),
        ({"quantity": "figure", "value": 3, "unit": "W", "cannot_check": "why", "evidence": [evidence(3)]}, "one of the two"),
        ({"quantity": "figure", "value": 3, "value_high": 2, "unit": "W", "evidence": [evidence(3)]}, "not above"),
        ({"quantity": "date", "value": 3, "unit": "date", "evidence": [evidence(3)]}, "goes with dates"),
        ({"quantity": "audience", "value": 3, "unit": "views", "cannot_check": "why"}, "not judged"),
        ({"quantity": "figure", "value": True, "unit": "W", "evidence": [evidence(3)]}, "a number, or a date"),
        ({"quantity": "figure", "value": 3, "unit": "W", "evidence": [evidence(3)], "due": "2026-12-01"}, "prediction"),
        ({"quantity": "figure", "value": 3, "unit": "W", "readings": [{"assumes": "if"}]}, "evidence of its own"),
        ({"quantity": "ratio", "value": 2, "unit": "times", "readings": [{"of": "bandwidth", "device": "a", "over": LLAMA}]}, "needs 'device'"),
    ],
)
def test_a_claim_that_cannot_be_judged_is_refused_with_the_way_out(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        claim(**fields)


def test_an_article_lists_its_sources_and_each_claim_once() -> None:
    one = {"id": "a", "says": "s", "where": "w", "subject": "s", "quantity": "figure", "value": 1, "unit": "W", "evidence": [evidence(1)]}
    fields = {"id": "x", "title": "t", "publisher": "p", "published": "2026-06-01", "seen": "2026-11-20", "about": "a"}
    sources = {"press": {"title": "A paper", "seen": "2026-11-20"}}
    assert Article.model_validate({**fields, "claims": [one], "sources": sources}).claims[0].low == 1
    for broken, complaint in (({"claims": [one]}, "not listed"), ({"claims": [one, one], "sources": sources}, "repeat")):
        with pytest.raises(ValidationError, match=complaint):
            Article.model_validate({**fields, **broken})
    with pytest.raises(ValidationError, match="say in 'dated'"):
        Article.model_validate({**fields, "published": None, "claims": [one], "sources": sources})
    with pytest.raises(ValidationError, match="no claim uses it"):
        Article.model_validate({**fields, "claims": [one], "sources": sources | {"b": sources["press"]}})


@pytest.mark.parametrize(
    ("value", "unit", "high", "said"),
    [
        (13.024, "tok/s", None, "13 tok/s"),
        (7.156, "tok/s", None, "7.16 tok/s"),
        (5079, "tok/s", None, "5,079 tok/s"),
        (2999, "USD", 3500, "$2,999 to $3,500"),
    ],
)
def test_figures_in_sentences_are_short(value: float, unit: str, high: float | None, said: str) -> None:
    assert say_value(value, unit, high) == said


def test_verdicts_stand_in_the_order_in_which_they_win() -> None:
    assert VERDICTS[0] == "above_ceiling"
    assert VERDICTS[-1] == "cannot_check"
    assert len(set(VERDICTS)) == 8


def test_the_example_of_contributing_is_an_article_and_gets_the_verdict_that_is_printed_there() -> None:
    text = (paths.project_dir() / "CONTRIBUTING.md").read_text(encoding="utf-8")
    article = Article.model_validate(yaml.safe_load(text.split("```yaml\n")[1].split("```")[0]))
    (only,) = article.claims
    found = claims.judge(only, [frames_claims.case_of(r) for r in only.readings], sources=article.sources)
    assert found.verdict == "needs_condition"
    assert [round(r.bound.value) for r in found.readings if r.bound and isinstance(r.bound.value, float)][:2] == [14, 142]
