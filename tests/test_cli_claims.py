"""``nbutils claims`` and the articles it reads: the fields are a contract, and the verdicts argued about come out as computed here by hand."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from helpers import copy_of_data
from nbutils import claims, frames_claims, plots, plots_claims, registry
from nbutils.claims import VERDICTS

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def every() -> dict[str, dict[str, Any]]:
    return {r["id"]: r for r in map(frames_claims.row, frames_claims.audit())}


# ── the articles ──────────────────────────────────────────────────────────────────────────────────


def test_every_numeric_claim_of_three_articles_is_there(every: dict[str, dict[str, Any]]) -> None:
    """118 numbers were found by a first reading, biography and repeats included."""
    assert len(registry.article_ids()) >= 3
    assert len(every) >= 118
    assert {r["verdict"] for r in every.values() if r["quantity"] != "audience"} <= set(VERDICTS)


@pytest.mark.parametrize(
    ("wanted", "verdict", "bound"),
    [
        # Decode: nominal bandwidth over the bytes that a token reads, both from datasheets and published files.
        ({"quantity": "decode_rate", "claimed_low": 20, "claimed_high": 25}, "above_ceiling", 546 / 41.92),
        ({"quantity": "decode_rate", "claimed_low": 12, "claimed_high": 14}, "above_ceiling", 546 / 41.92),
        ({"quantity": "decode_rate", "claimed_low": 5, "claimed_high": 7}, "above_ceiling", 273 / 41.92),
        ({"quantity": "decode_rate", "claimed_low": 3, "article": "byteiota-rtx-spark"}, "contradicts_measurement", 300 / 41.92),
        ({"quantity": "decode_rate", "claimed_low": 40, "means": "at_least"}, "needs_condition", 300 / 19.32),
        ({"quantity": "decode_rate", "claimed_low": 89, "subject": re.compile("DGX")}, "consistent", 273 / 1.920),
        ({"quantity": "decode_rate", "claimed_low": 10.7}, "consistent", 273 / 19.32),
        ({"quantity": "decode_rate", "claimed_low": 2.7}, "consistent", 273 / 70.55),
        # Compute: dense peaks over two FLOP per weight, or four for an adapter on frozen weights.
        ({"quantity": "prefill_rate", "claimed_low": 803}, "consistent", 250e12 / (2 * 69.5e9)),
        ({"quantity": "training_rate", "claimed_low": 5079}, "above_ceiling", 125e12 / (4 * 69.5e9)),
        ({"quantity": "peak_compute", "claimed_low": 1000, "article": "kunalganglani-rtx-spark"}, "needs_condition", 1000),
        # What fits, and what is listed.
        ({"quantity": "context", "claimed_low": 1_000_000}, "needs_condition", None),
        ({"quantity": "memory_needed", "claimed_low": 16, "subject": re.compile("30B", re.IGNORECASE)}, "contradicts_source", None),
        ({"quantity": "file_size", "claimed_low": 43, "article": "byteiota-rtx-spark"}, "contradicts_source", 65.35),
        ({"quantity": "bandwidth", "claimed_low": 546, "subject": re.compile("M5 Max")}, "contradicts_source", 614),
        ({"unit": "GB/s", "claimed_low": 900}, "contradicts_source", 600),
        ({"claimed_low": 300, "unit": "W"}, "contradicts_source", 140),
        ({"quantity": "ratio", "claimed_low": 2}, "contradicts_source", None),
    ],
)
def test_the_claims_that_are_argued_about(every: dict[str, dict[str, Any]], wanted: dict[str, Any], verdict: str, bound: float | None) -> None:
    def meets(value: Any, want: Any) -> bool:
        return bool(want.search(value)) if isinstance(want, re.Pattern) else bool(value == want)

    found = [r for r in every.values() if all(meets(r[k], v) for k, v in wanted.items())]
    assert found, f"no such claim: {wanted}"
    for r in found:
        assert r["verdict"] == verdict, r["because"]
        if bound is not None:
            assert r["bound"] == pytest.approx(bound, rel=0.03)


def test_the_same_error_stands_in_two_articles(every: dict[str, dict[str, Any]]) -> None:
    """Their agreement is no evidence."""
    wrong = {r["article"] for r in every.values() if r["quantity"] == "bandwidth" and r["claimed_low"] == 546 and "M5 Max" in r["subject"]}
    assert len(wrong) == 2


def test_what_cannot_be_checked_says_why_and_pads_nothing(every: dict[str, dict[str, Any]]) -> None:
    unchecked = [r for r in every.values() if r["verdict"] == "cannot_check"]
    assert unchecked
    for r in unchecked:
        assert r["because"]
        assert (r["bound"], r["bound_kind"]) == (None, None)


def test_predictions_say_when_they_fall_due_and_what_is_known(every: dict[str, dict[str, Any]]) -> None:
    due = [r for r in every.values() if r["due"]]
    assert due
    for r in due:
        assert date.fromisoformat(r["due"]) > date(2026, 5, 1)
        assert r["known"]


def test_claims_are_told_briefly_and_without_quotation_marks(every: dict[str, dict[str, Any]]) -> None:
    for r in every.values():
        assert '"' not in r["says"]
        assert len(r["says"].split()) < 60


# ── the command ───────────────────────────────────────────────────────────────────────────────────


def test_json_has_the_fields_of_the_contract_in_their_order(run: Run) -> None:
    code, out, err = run("claims", "--article", "byteiota-rtx-spark", "--verdict", "above_ceiling", "--json")
    assert (code, err) == (0, "")
    rows = json.loads(out)
    assert rows
    for r in rows:
        assert tuple(r)[: len(frames_claims.FIELDS)] == frames_claims.FIELDS
        assert r["verdict"] == "above_ceiling"
        assert r["claimed_low"] <= r["claimed_high"]
        assert isinstance(r["also"], list)


def test_one_claim_is_told_with_its_arithmetic(run: Run, every: dict[str, dict[str, Any]]) -> None:
    wanted = next(r for r in every.values() if r["claimed_low"] == 20 and r["unit"] == "tok/s")
    code, out, err = run("claims", wanted["id"])
    assert (code, err) == (0, "")
    assert "verdict: above_ceiling" in out
    assert re.search(r"decode ceiling +13\.02 tok/s", out)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--article", "byteota-rtx-spark"], "no article 'byteota-rtx-spark'; did you mean 'byteiota-rtx-spark'?"),
        (["--verdict", "wrong"], "no verdict 'wrong'"),
        (["--device", "dgx-sparc"], "did you mean 'dgx-spark'?"),
        (["nothing/here"], "no article 'nothing'"),
        (["byteiota-rtx-spark/nothing"], "no claim 'byteiota-rtx-spark/nothing'"),
        (["byteiota-rtx-spark"], "is an article"),
        (["a/b", "--article", "byteiota-rtx-spark"], "leave one of the two out"),
    ],
)
def test_a_wrong_call_is_one_line(run: Run, arguments: list[str], said: str) -> None:
    code, out, err = run("claims", *arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.strip().splitlines()) == 1


# ── the pages ─────────────────────────────────────────────────────────────────────────────────────


def test_a_device_finds_the_claims_that_speak_of_it() -> None:
    """Those whose readings name it, and those that list it."""
    assert len(frames_claims.claims_frame(device="dgx-spark")) > 10
    for device in ("surface-laptop-ultra", "strix-halo", "h100-sxm", "rtx-spark-n1"):
        assert len(frames_claims.claims_frame(device=device)), device
    assert frames_claims.claims_frame(device="gtx-1050-ti").empty


def test_what_names_one_device_is_judged_as_among_all_and_the_rest_is_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page about a device depends on the figures that its claims are held against, and on no others."""
    every = frames_claims.claims_frame()
    named = every[[("dgx-spark" in devices) for devices in every["devices"]]].reset_index(drop=True)
    judged: list[str] = []
    judge = frames_claims._judged
    monkeypatch.setattr(frames_claims, "_judged", lambda article, claim, others: judged.append(claim.id) or judge(article, claim, others))  # type: ignore[func-returns-value]
    pd.testing.assert_frame_equal(frames_claims.claims_frame(device="dgx-spark"), named, check_dtype=False)
    assert len(judged) < len(every) / 2


def test_counts_add_up_to_the_judged_claims() -> None:
    frame = frames_claims.claims_frame()
    counts = frames_claims.counts_frame(frame)
    assert counts["all"].sum() == len(frame)
    assert list(counts["verdict"]) == list(VERDICTS)


def test_the_wall_stands_where_claims_turn_impossible() -> None:
    walls = frames_claims.wall_frame(frames_claims.claims_frame())
    above = walls[walls["verdict"] == "above_ceiling"]
    assert (above["high"] > above["ceiling"]).all()
    assert (walls[walls["verdict"] == "consistent"]["high"] <= walls[walls["verdict"] == "consistent"]["ceiling"]).all()
    ax = plots_claims.against_walls(walls, ax=plots.new_axes())
    assert "tok/s" in ax.get_xlabel()
    assert "tok/s" in ax.get_ylabel()


def test_tables_of_the_overview_have_their_columns() -> None:
    frame = frames_claims.claims_frame()
    for shown, headings, _ in (
        frames_claims.claims_table(frame),
        frames_claims.worst_table(frame),
        frames_claims.articles_table(frame),
        frames_claims.rivals_table(),
        frames_claims.predictions_table(frame),
        frames_claims.audience_table(),
    ):
        assert set(headings) <= set(shown.columns)
        assert len(shown)


def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry whose only article tries to be a program."""
    data = copy_of_data(tmp_path, monkeypatch)
    shutil.rmtree(data / "articles")
    (data / "articles").mkdir()
    attack = "<script>alert(1)</script>"
    claim = {
        "id": "one",
        "says": attack,
        "where": attack,
        "subject": attack,
        "quantity": "figure",
        "value": 1,
        "unit": attack,
        "evidence": [{"value": 2, "source": "s", "standing": "press", "says": attack}],
    }
    fields = {"id": "bad", "title": "t", "publisher": "p", "published": "2026-06-01", "seen": "2026-11-20", "about": attack, "claims": [claim]}
    fields["sources"] = {"s": {"title": attack, "url": "javascript:alert(1)", "seen": "2026-11-20"}}
    (data / "articles" / "bad.yaml").write_text(yaml.safe_dump(fields), encoding="utf-8")


def test_text_of_an_article_reaches_pages_only_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile(tmp_path, monkeypatch)
    shown = plots_claims.claims_in_full(frames_claims.audit()).data
    assert "<script" not in shown
    assert 'href="javascript' not in shown
    assert "&lt;script&gt;" in shown


def test_check_data_names_the_reading_that_names_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = copy_of_data(tmp_path, monkeypatch)
    path = data / "articles" / "byteiota-rtx-spark.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("device: rtx-spark-n1x", "device: rtx-spark-n1y", 1), encoding="utf-8")
    (problem,) = [p for p in registry.check_data() if "n1y" in p]
    assert re.match(
        r"data/articles/byteiota-rtx-spark\.yaml: claims\.[\w.\-]+\.readings\.\d: device: no device 'rtx-spark-n1y' .* did you mean 'rtx-spark-n1'",
        problem,
    )


def test_every_verdict_has_a_meaning() -> None:
    assert tuple(plots_claims.MEANINGS) == claims.VERDICTS
