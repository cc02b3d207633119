"""Rates out of arrival times: what is known is found again, what is unknown is said."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import matplotlib.pyplot as plt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import make_record
from nbutils import frames_served, plots
from nbutils.errors import DataError
from nbutils.specs import ServedRecord, ServedRequest

WHOLE = {"finish": "length", "n_prompt_tokens": 512}


def answer(*, ttft_s: float = 0.5, itl_s: float = 0.02, n: int = 32, per_piece: int = 1, **changes: Any) -> ServedRequest:
    """An answer of ``n`` pieces that come at even times, counted by the server."""
    at_s = tuple(round(ttft_s + i * itl_s, 6) for i in range(n))
    fields = {"concurrency": 1, "at_s": 0.0, "content_at_s": at_s, "end_s": at_s[-1] if at_s else ttft_s, "n_completion_tokens": n * per_piece}
    return ServedRequest(**(fields | WHOLE | changes))


def served(*requests: ServedRequest, **changes: Any) -> ServedRecord:
    fields: dict[str, Any] = {
        "schema_version": 1,
        "created": datetime(2026, 1, 5, tzinfo=UTC),
        "versions": {},
        "kind": "endpoint",
        "machine": make_record().machine,
        "place": "this machine",
        "model": "a model",
        "interface": "chat",
        "prompt_tokens_asked": 512,
        "max_tokens": 32,
        "concurrency": (1,),
        "repetitions": 1,
        "timeout_s": 60,
        "n_prompt_words": 400,
        "requests": requests,
    }
    return ServedRecord(**(fields | changes))


def row_of(*requests: ServedRequest, **changes: Any) -> dict[str, Any]:
    (row,) = frames_served.served_frame([served(*requests, **changes)]).to_dict("records")
    return row


@given(st.floats(0.01, 60), st.floats(0.001, 1), st.integers(2, 300), st.integers(1, 8))
def test_even_times_give_their_rates_back(ttft_s: float, itl_s: float, n: int, per_piece: int) -> None:
    row = row_of(answer(ttft_s=ttft_s, itl_s=itl_s, n=n, per_piece=per_piece))
    assert row["ttft_s"] == pytest.approx(ttft_s, rel=1e-3)
    assert (row["itl_s"], row["itl_p95_s"]) == pytest.approx((itl_s, itl_s), rel=1e-2)
    assert row["tok_per_s"] == row["low"] == row["high"] == pytest.approx(per_piece / itl_s, rel=1e-2)
    assert row["prefill_tok_per_s"] == pytest.approx(512 / ttft_s, rel=1e-3)
    assert row["all_tok_per_s"] == pytest.approx(row["tok_per_s"])


def test_one_slow_answer_moves_the_spread_and_not_the_median() -> None:
    row = row_of(answer(), answer(), answer(ttft_s=2.0, itl_s=0.2), answer(), answer())
    assert (row["ttft_s"], row["ttft_low_s"], row["ttft_high_s"]) == (0.5, 0.5, 2.0)
    assert (row["tok_per_s"], row["low"], row["high"]) == pytest.approx((50, 5, 50))
    assert (row["itl_s"], row["itl_p95_s"]) == pytest.approx((0.02, 0.2))


def test_streams_that_overlap_add_up_and_streams_that_queue_do_not() -> None:
    both = {"concurrency": (2,)}
    together = row_of(answer(concurrency=2), answer(concurrency=2, at_s=0.1), **both)
    assert together["all_tok_per_s"] == pytest.approx(2 * 31 / (31 * 0.02 + 0.1))
    queued = row_of(answer(concurrency=2), answer(concurrency=2, ttft_s=0.5 + 31 * 0.02 + 0.3), **both)
    assert queued["all_tok_per_s"] == pytest.approx(50), "time in which nobody decodes is not decoding"


def test_failed_requests_are_counted_and_make_no_rate() -> None:
    cut = answer(n=3, itl_s=5.0, finish="", problem="nothing new for 5 s after 3 pieces", n_completion_tokens=None)
    record = served(answer(), cut, answer(n=0, problem="HTTP 500", finish=""), cut)
    (row,) = frames_served.served_frame([record]).to_dict("records")
    assert (row["n_requests"], row["n_failed"]) == (4, 3)
    assert (row["tok_per_s"], row["itl_p95_s"]) == pytest.approx((50, 0.02))
    assert frames_served.problem_lines(record)[0] == (
        "1 in flight: 3 of 4 requests failed, 2 with a part of the answer, which is kept: nothing new for 5 s after 3 pieces (2 times); HTTP 500."
    )
    frame = frames_served.itl_frame([record])
    assert frame.groupby("request")["whole"].first().to_dict() == {0: True, 1: False, 3: False}
    assert len(frame) == 31 + 2 + 2


def test_a_level_of_failures_has_a_row_without_rates_and_the_next_is_missed() -> None:
    record = served(answer(), answer(n=0, concurrency=4, problem="HTTP 500"), concurrency=(1, 4, 8))
    frame = frames_served.served_frame([record])
    assert list(frame["concurrency"]) == [1, 4]
    assert frame[["ttft_s", "itl_s", "tok_per_s", "all_tok_per_s", "prefill_tok_per_s"]].iloc[1].isna().all()
    assert frames_served.problem_lines(record)[-1] == "Not measured: 8 in flight; the run stopped after every request with 4 in flight failed."
    table, headings, formats = frames_served.served_table([record])
    assert list(table["answers"]) == ["1", "0 of 1"]
    assert "–" in plots.table(table, headings, formats).to_html()


def test_all_well_needs_no_words() -> None:
    assert frames_served.problem_lines(served(answer(), answer())) == []


@pytest.mark.parametrize(
    ("request_", "changes", "rate", "said"),
    [
        (answer(n_completion_tokens=None), {}, 50, "does not count the tokens of a stream"),
        (answer(n_completion_tokens=None, n=16), {}, 100, "taken to have the 32 tokens asked for"),
        (answer(n_completion_tokens=None, n=15), {}, 50, "of others the pieces are counted"),
        (answer(n_completion_tokens=None, n=16, finish="stop"), {}, 50, "of others the pieces are counted"),
        (answer(per_piece=4), {"max_tokens": 128}, 200, "a piece holds 4.0 tokens on average"),
        (answer(n=1, per_piece=32), {}, None, "whole answers come as one piece"),
        (answer(n_reasoning_tokens=100, n_completion_tokens=132), {"max_tokens": 132}, 50, "some 100 tokens of it pass before the first piece"),
        (answer(n_cached_tokens=256), {}, 50, "took 50% of the prompts from its cache"),
        (answer(n=8, finish="stop"), {}, 50, "1 of 1 answers ended early, typically after 8 of 32 tokens"),
        (answer(n_prompt_tokens=None), {}, 50, "guessed: it counted none"),
        (answer(n_prompt_tokens=700), {}, 50, "prompts have 700 tokens where 512 were asked for"),
        (answer(content_at_s=(0.5, 0.50001, 0.54, 0.54001, 0.58, 0.58001), n_completion_tokens=6), {"max_tokens": 6}, 62.5, "pieces come in bursts"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_what_a_reader_must_know_is_said(request_: ServedRequest, changes: dict[str, Any], rate: float | None, said: str) -> None:
    row = row_of(request_, **changes)
    assert row["tok_per_s"] == (None if rate is None else pytest.approx(rate, rel=1e-3))
    assert said in row["caveats"]
    assert any(said.lower() in line.lower() for line in frames_served.problem_lines(served(request_, **changes)))


def test_prompt_tokens_come_from_other_prompts_that_were_counted() -> None:
    row = row_of(answer(n_prompt_tokens=None), calibration=((32, 60), (160, 220), (390, 520)), n_prompt_words=400)
    assert row["n_prompt"] == pytest.approx(520 + 10 * 460 / 358)
    assert "estimated from other prompts it counted" in row["caveats"]
    assert row_of(answer(n_prompt_tokens=None), calibration=((400, 500),))["n_prompt"] == 500


def test_cached_tokens_are_no_prefill() -> None:
    assert row_of(answer(n_cached_tokens=256))["prefill_tok_per_s"] == pytest.approx(512)


def test_reasoning_has_a_column_where_there_is_some_and_models_where_there_are_several() -> None:
    thinking = served(answer(n_reasoning_pieces=8, n_reasoning_tokens=8))
    _, headings, formats = frames_served.served_table([thinking])
    assert "reasoning_share" in headings
    assert "model" not in headings
    assert frames_served.served_frame([thinking])["reasoning_share"].iloc[0] == 0.25
    table, headings, _ = frames_served.served_table([served(answer()), served(answer(), model="another")])
    assert "reasoning_share" not in headings
    assert list(table["model"]) == ["a model", "another"]
    assert set(formats) <= {*headings, "reasoning_share"}


def test_no_records_say_how_to_make_one() -> None:
    with pytest.raises(DataError, match="nbutils measure --endpoint"):
        frames_served.served_frame([])


def test_the_strip_has_a_median_per_level_and_marks_what_was_cut_short() -> None:
    record = served(answer(), answer(concurrency=2, itl_s=0.05), answer(n=3, problem="HTTP 500"), concurrency=(1, 2))
    ax = plots.itl_strip(frames_served.itl_frame([record]), ax=plots.new_axes())
    labels = ax.get_legend_handles_labels()[1]
    assert labels == ["1 in flight, median 20 ms", "2 in flight, median 50 ms", "answers cut short"]
    assert "ms" in ax.get_ylabel()
    ax.figure.canvas.draw()
    empty = plots.itl_strip(frames_served.itl_frame([served(answer(n=1))]), ax=plots.new_axes())
    empty.figure.canvas.draw()
    plt.close("all")
