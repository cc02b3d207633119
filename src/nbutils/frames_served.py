"""Records of servers become frames: TTFT, ITL, decode and prefill rates by requests in flight, and what stands in their way in words.

A record holds when each piece of each answer came and what the server counted. Only whole answers make rates; the others are counted and named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from statistics import mean, median
from typing import Any

import numpy as np
import pandas as pd

from nbutils.errors import DataError
from nbutils.specs import ServedRecord, ServedRequest

__all__ = [
    "SERVED_FORMATS",
    "SERVED_HEADINGS",
    "decode_tok_per_s",
    "itl_frame",
    "levels",
    "prefill_tok_per_s",
    "problem_lines",
    "served_frame",
    "served_table",
    "shown_tokens",
    "whole_requests",
]

#: Tokens per piece from which ITL no longer is the time between tokens.
MERGED_RATIO = 1.1
#: Pieces that come together: this share of the times between them is under a tenth of their mean.
BURST_SHARE = 0.1
#: Being kept from listening for longer than this is worth a word.
LAG_S = 0.025
#: Share of a prompt out of the server's cache that a template explains, and how far a prompt may be from the length asked for.
CACHED_SHARE, LENGTH_RATIO = 0.05, 1.1


def _tokens(record: ServedRecord, request: ServedRequest) -> int:
    """Tokens of an answer, by the server's count.

    Where it does not count, an answer that ended by ``length`` has what was asked for: that is what the word means. A server that allows fewer
    would be taken for faster than it is; so this holds only where at least half as many pieces came. Otherwise pieces are counted.
    """
    pieces = len(request.content_at_s)
    if request.n_completion_tokens:
        return request.n_completion_tokens
    return record.max_tokens if request.finish == "length" and 2 * pieces >= record.max_tokens else pieces


def shown_tokens(record: ServedRecord, request: ServedRequest) -> int:
    """Tokens of an answer that came as pieces: all, without reasoning that was thought and not sent."""
    tokens = _tokens(record, request)
    return max(len(request.content_at_s), tokens - (request.n_reasoning_tokens or 0)) if _hides_reasoning(request) else tokens


def _hides_reasoning(request: ServedRequest) -> bool:
    return bool(request.n_reasoning_tokens) and not request.n_reasoning_pieces


def decode_tok_per_s(record: ServedRecord, request: ServedRequest) -> float | None:
    """Decode rate of one answer: what came after the first piece, over the time from the first piece to the last.

    A piece holds as many tokens as the average one, so that the first piece's own tokens, which prefill brought, are not counted. ``None`` for an
    answer in one piece.
    """
    at_s = request.content_at_s
    if len(at_s) < 2 or at_s[-1] <= at_s[0]:
        return None
    return shown_tokens(record, request) * (1 - 1 / len(at_s)) / (at_s[-1] - at_s[0])


def _all_streams_tok_per_s(record: ServedRecord, requests: Sequence[ServedRequest]) -> float | None:
    """All streams together: tokens after each first piece, over the time in which at least one stream was decoding."""
    spans = sorted((r.at_s + r.content_at_s[0], r.at_s + r.content_at_s[-1]) for r in requests if len(r.content_at_s) > 1)
    busy_s, reached_s = 0.0, 0.0
    for start_s, end_s in spans:
        busy_s += max(0.0, end_s - max(start_s, reached_s))
        reached_s = max(reached_s, end_s)
    tokens = sum(shown_tokens(record, r) * (1 - 1 / len(r.content_at_s)) for r in requests if len(r.content_at_s) > 1)
    return tokens / busy_s if busy_s > 0 else None


def _prompt_tokens(record: ServedRecord, request: ServedRequest) -> float:
    """Tokens of a prompt: by the server's count, else by what it counted in prompts of other lengths, else what was asked for."""
    if request.n_prompt_tokens:
        return request.n_prompt_tokens
    if not record.calibration:
        return record.prompt_tokens_asked
    (few, first), *_, (many, last) = sorted(record.calibration) * 2 if len(record.calibration) == 1 else sorted(record.calibration)
    per_word = (last - first) / (many - few) if many > few else 1.0
    words, tokens = min(record.calibration, key=lambda pair: abs(pair[0] - record.n_prompt_words))
    return tokens + per_word * (record.n_prompt_words - words)


def prefill_tok_per_s(record: ServedRecord, request: ServedRequest) -> float:
    """Prompt tokens that were not in the server's cache, over TTFT."""
    return max(0.0, _prompt_tokens(record, request) - (request.n_cached_tokens or 0)) / request.content_at_s[0]


def _gaps_s(request: ServedRequest) -> list[float]:
    return [later - sooner for sooner, later in zip(request.content_at_s, request.content_at_s[1:], strict=False)]


def whole_requests(requests: Iterable[ServedRequest]) -> list[ServedRequest]:
    """Those that were answered to the end: only they make rates."""
    return [r for r in requests if not r.problem and r.content_at_s and r.content_at_s[0] > 0]


def levels(record: ServedRecord) -> list[tuple[int, list[ServedRequest]]]:
    """The levels that were reached, with their requests, in the order they were run."""
    found = [(level, [r for r in record.requests if r.concurrency == level]) for level in record.concurrency]
    return [(level, requests) for level, requests in found if requests]


def served_frame(records: Sequence[ServedRecord]) -> pd.DataFrame:
    """One row per record and number of requests in flight; times in seconds, rates in tokens per second, ``None`` where nothing whole came.

    ``tok_per_s`` with ``low`` and ``high`` is the decode rate of a stream: median, slowest and fastest answer. ``prefill_tok_per_s`` contains
    whatever else passes before the first piece: the network, the queue. ``caveats`` says in words what a reader must know.
    """
    rows = [_row(record, level, requests) for record in records for level, requests in levels(record)]
    if not rows:
        raise DataError("no records of servers to show; 'nbutils measure --endpoint ADDRESS' makes one")
    return pd.DataFrame(rows)


def _row(record: ServedRecord, level: int, requests: list[ServedRequest]) -> dict[str, Any]:
    whole = whole_requests(requests)
    ttft_s = [r.content_at_s[0] for r in whole]
    gaps_s = [gap for r in whole for gap in _gaps_s(r)]
    rates = [rate for r in whole if (rate := decode_tok_per_s(record, r)) is not None]
    pieces = sum(len(r.content_at_s) for r in whole)
    return {
        "created": record.created,
        "device": record.machine.device,
        "place": record.place,
        "model": record.model,
        "software": record.software,
        "interface": record.interface,
        "concurrency": level,
        "n_requests": len(requests),
        "n_failed": len(requests) - len(whole),
        "n_prompt": _of(median, [_prompt_tokens(record, r) for r in whole]),
        "n_tokens": _of(median, [_tokens(record, r) for r in whole]),
        "ttft_s": _of(median, ttft_s),
        "ttft_low_s": _of(min, ttft_s),
        "ttft_high_s": _of(max, ttft_s),
        "itl_s": _of(median, gaps_s),
        "itl_p95_s": float(np.percentile(gaps_s, 95)) if gaps_s else None,
        "tok_per_s": _of(median, rates),
        "low": _of(min, rates),
        "high": _of(max, rates),
        "all_tok_per_s": _all_streams_tok_per_s(record, whole),
        "prefill_tok_per_s": _of(median, [prefill_tok_per_s(record, r) for r in whole]),
        "reasoning_share": sum(r.n_reasoning_pieces for r in whole) / pieces if pieces else None,
        "caveats": "; ".join(_caveats(record, whole)),
    }


def _of(summary: Callable[[list[float]], float], values: list[float]) -> float | None:
    return summary(values) if values else None


#: Columns of ``served_table`` and what a reader sees above them.
SERVED_HEADINGS = {
    "model": "model",
    "concurrency": "in flight",
    "answers": "answers",
    "ttft_s": "TTFT (s)",
    "ttft_high_s": "slowest TTFT (s)",
    "itl_ms": "ITL (ms)",
    "itl_p95_ms": "ITL, 95 % (ms)",
    "tok_per_s": "decode (tok/s)",
    "low": "slowest",
    "high": "fastest",
    "all_tok_per_s": "all streams (tok/s)",
    "prefill_tok_per_s": "prefill (tok/s)",
    "reasoning_share": "reasoning",
}
SERVED_FORMATS = {
    "concurrency": "{:,}",
    "ttft_s": "{:,.3f}",
    "ttft_high_s": "{:,.3f}",
    "itl_ms": "{:,.2f}",
    "itl_p95_ms": "{:,.2f}",
    "tok_per_s": "{:,.1f}",
    "low": "{:,.1f}",
    "high": "{:,.1f}",
    "all_tok_per_s": "{:,.1f}",
    "prefill_tok_per_s": "{:,.0f}",
    "reasoning_share": "{:.0%}",
}


def served_table(records: Sequence[ServedRecord]) -> tuple[pd.DataFrame, dict[str, str], dict[str, str]]:
    """The frame with its headings and formats, as ``plots.table`` takes it; the model where there are several, reasoning where there is some."""
    frame = served_frame(records)
    answers = [f"{row.n_requests - row.n_failed} of {row.n_requests}" if row.n_failed else str(row.n_requests) for row in frame.itertuples()]
    numbers = frame[["itl_s", "itl_p95_s"]].astype(float) * 1e3
    frame = frame.assign(answers=answers, itl_ms=numbers["itl_s"], itl_p95_ms=numbers["itl_p95_s"])
    left_out = {"model"} if frame["model"].nunique() == 1 else set()
    left_out |= set() if (frame["reasoning_share"].astype(float) > 0).any() else {"reasoning_share"}
    headings = {name: heading for name, heading in SERVED_HEADINGS.items() if name not in left_out}
    return frame, headings, {name: pattern for name, pattern in SERVED_FORMATS.items() if name in headings}


def itl_frame(records: Sequence[ServedRecord]) -> pd.DataFrame:
    """One row per piece after the first: ``model, concurrency, request, piece, itl_s, whole``. Answers cut short are not ``whole``."""
    rows = [
        {"model": record.model, "concurrency": r.concurrency, "request": number, "piece": piece, "itl_s": gap, "whole": not r.problem}
        for record in records
        for number, r in enumerate(record.requests)
        for piece, gap in enumerate(_gaps_s(r), 2)
    ]
    return pd.DataFrame(rows, columns=["model", "concurrency", "request", "piece", "itl_s", "whole"]).astype({"whole": bool})


# ── in words ──────────────────────────────────────────────────────────────────────────────────────


def problem_lines(record: ServedRecord) -> list[str]:
    """What failed, what was not reached, and what to keep in mind, a sentence each; empty when all is well."""
    lines = []
    for level, requests in levels(record):
        problems = Counter(r.problem for r in requests if r.problem)
        failed, partial = sum(problems.values()), sum(1 for r in requests if r.problem and r.content_at_s)
        if failed:
            kept = f", {partial} with a part of the answer, which is kept" if partial else ""
            lines.append(f"{level} in flight: {failed} of {len(requests)} requests failed{kept}: {'; '.join(_times(problems))}.")
    reached = [level for level, _ in levels(record)]
    if missing := [level for level in record.concurrency if level not in reached]:
        last = f" after every request with {reached[-1]} in flight failed" if reached else ""
        lines.append(f"Not measured: {', '.join(map(str, missing))} in flight; the run stopped{last}.")
    return lines + [f"{caveat[0].upper()}{caveat[1:]}." for caveat in _caveats(record, whole_requests(record.requests))]


def _times(problems: Counter[str]) -> list[str]:
    return [f"{problem} ({n} times)" if n > 1 else problem for problem, n in problems.most_common(3)]


def _caveats(record: ServedRecord, whole: Sequence[ServedRequest]) -> list[str]:
    """What stands between these figures and what they seem to say."""
    if not whole:
        return []
    said = [_about_counts(record, whole), *_about_pieces(record, whole), *_about_prompts(record, whole)]
    short = [r for r in whole if r.finish != "length" and 2 * _tokens(record, r) < record.max_tokens]
    if short:
        typical = median(_tokens(record, r) for r in short)
        said.append(f"{len(short)} of {len(whole)} answers ended early, typically after {typical:.0f} of {record.max_tokens} tokens")
    return [caveat for caveat in said if caveat]


def _about_counts(record: ServedRecord, whole: Sequence[ServedRequest]) -> str:
    if all(r.n_completion_tokens for r in whole):
        return ""
    return (
        "the server does not count the tokens of a stream: an answer that ended by length is taken to have the"
        f" {record.max_tokens} tokens asked for, of others the pieces are counted, and one piece may hold several tokens"
    )


def _about_pieces(record: ServedRecord, whole: Sequence[ServedRequest]) -> Iterable[str]:
    pieces, tokens = sum(len(r.content_at_s) for r in whole), sum(shown_tokens(record, r) for r in whole)
    if hidden := [r for r in whole if _hides_reasoning(r)]:
        thought = median(r.n_reasoning_tokens or 0 for r in hidden)
        yield f"reasoning is not streamed: some {thought:.0f} tokens of it pass before the first piece, so TTFT is the time to the visible answer"
    if any(len(r.content_at_s) == 1 < _tokens(record, r) for r in whole):
        yield "whole answers come as one piece: the server does not stream, and there is no decode rate"
    elif tokens > MERGED_RATIO * pieces:
        yield f"a piece holds {tokens / pieces:.1f} tokens on average: ITL is the time between pieces, not between tokens"
    if (lag_s := max(r.lag_s for r in whole)) > LAG_S:
        yield f"other programs kept this one from listening for up to {lag_s * 1e3:.0f} ms: pieces that waited seem late, and to come all at once"
    gaps_s = [gap for r in whole for gap in _gaps_s(r)]
    if gaps_s and mean(gap < mean(gaps_s) / 10 for gap in gaps_s) >= BURST_SHARE:
        yield "pieces come in bursts: the median ITL is not the time a token takes; the decode rate is"


def _about_prompts(record: ServedRecord, whole: Sequence[ServedRequest]) -> Iterable[str]:
    cached, n_prompt = sum(r.n_cached_tokens or 0 for r in whole), sum(_prompt_tokens(record, r) for r in whole)
    if cached > CACHED_SHARE * n_prompt:
        yield f"the server took {cached / n_prompt:.0%} of the prompts from its cache although no two are alike; prefill counts the rest only"
    if not all(r.n_prompt_tokens for r in whole):
        how = "estimated from other prompts it counted" if record.calibration else "guessed: it counted none"
        yield f"the server does not count the tokens of these prompts; their length is {how}, and so is the prefill rate"
    typical = n_prompt / len(whole)
    if not record.prompt_tokens_asked / LENGTH_RATIO <= typical <= record.prompt_tokens_asked * LENGTH_RATIO:
        yield f"prompts have {typical:.0f} tokens where {record.prompt_tokens_asked} were asked for"
