"""Claims of articles held against the registry: verdicts as rows, with what they rest on.

Here a claim's readings are looked up and claims of several articles meet; ``claims`` decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import pandas as pd

from nbutils import claims, places, registry
from nbutils.claims import RELATION, VERDICTS, Case, Expectation, Judgement, Rival, say_value
from nbutils.frames_predict import expected_or_none
from nbutils.places import Place
from nbutils.specs_articles import Article, Claim, Reading
from nbutils.tensors import variant

__all__ = [
    "FIELDS",
    "Audited",
    "arithmetic_table",
    "article_table",
    "articles_table",
    "audience_table",
    "audit",
    "case_of",
    "claimed",
    "claims_frame",
    "claims_table",
    "counts_frame",
    "devices_of",
    "predictions_table",
    "rivals_table",
    "row",
    "wall_frame",
    "words",
    "worst_table",
]

#: What ``nbutils claims --json`` prints of a claim, in this order, before what explains it.
FIELDS = (
    "id",
    "article",
    "subject",
    "quantity",
    "claimed_low",
    "claimed_high",
    "unit",
    "bound",
    "bound_kind",
    "verdict",
    "because",
    "also",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Audited:
    """A claim with its verdict; ``judgement`` is ``None`` for figures about audience or biography, which are not judged."""

    article: Article
    claim: Claim
    judgement: Judgement | None


# ── looking up ────────────────────────────────────────────────────────────────────────────────────


def case_of(reading: Reading, quantity: str = "") -> Case:
    """A reading with everything it names, and what to expect of a rate. Raises ``UnknownId`` for what the registry does not have."""
    place: Place | None = None
    if reading.device:
        device = registry.load_device(reading.device)
        place = places.place(device, registry.load_configuration(device, reading.configuration))
    model = registry.load_model(reading.model) if reading.model else None
    stored = variant(model, registry.load_format(reading.format)) if model and reading.format else None
    peak, peak_source = (None, "")
    if place is not None and stored is not None:
        # Training multiplies in 16 bits unless a reading says otherwise; weights stored in fewer bits are unpacked first.
        types = (reading.dtype,) if reading.dtype else ("fp16", "bf16") if reading.method else stored.arithmetic
        peak, peak_source = place.peak(types)
    return Case(
        reading=reading,
        name=_name(reading, place, model.name if model else ""),
        device=place.device if place else None,
        configuration=place.device.configuration(place.configuration) if place and place.device else None,
        model=model,
        variant=stored,
        room=place.room if place else None,
        discrete=place.discrete if place else False,
        peak_flop_per_s=peak,
        peak_source=peak_source,
        expected=_expectation(reading, place, quantity) if place is not None and stored is not None else None,
        over=case_of(reading.over) if reading.over else None,
    )


def _expectation(reading: Reading, place: Place, quantity: str) -> Expectation | None:
    """What to expect of a rate in this reading; only of one sequence, which is what others measured."""
    if reading.batch_size != 1 or place.device is None or quantity not in ("decode_rate", "prefill_rate"):
        return None
    prefill = quantity == "prefill_rate"
    # A prompt sees half of itself by the mean.
    depth = reading.depth + (reading.n_tokens // 2 if prefill else 0)
    found = expected_or_none(place, reading.model, reading.format, depth=depth, phase="prefill" if prefill else "decode")
    if found is None:
        return None
    return Expectation(tok_per_s=found.expected_tok_per_s, low_tok_per_s=found.low_tok_per_s, high_tok_per_s=found.high_tok_per_s)


def _name(reading: Reading, place: Place | None, model: str) -> str:
    """A reading in words: what, in which format, where, and what is not as usual."""
    parts = []
    if model:
        parts.append(f"{model} in {reading.format}" if reading.format else model)
    if reading.bits_per_weight:
        parts.append(f"{reading.bits_per_weight:g} bits per weight")
    if place is not None and place.device is not None:
        several = len(place.device.configurations) > 1
        parts.append(f"{'on ' if parts else ''}{place.device.name}" + (f" with {place.memory_gb:g} GB" if several else ""))
    words = " ".join(parts)
    if reading.dtype and reading.basis:
        words += f", {reading.basis} {reading.dtype.upper()}"
    if reading.depth:
        words += f", {reading.depth:,} tokens in the cache"
    if reading.batch_size > 1:
        words += f", {reading.batch_size} sequences at once"
    return words or "as stated"


def devices_of(claim: Claim) -> tuple[str, ...]:
    """The registry's ids of the devices that a claim speaks of, each once: those that its readings name, and those it lists."""
    found = [*(r.device for reading in claim.readings for r in (reading, reading.over) if r is not None and r.device), *claim.devices]
    return tuple(dict.fromkeys(found))


def audit(article_ids: Sequence[str] = (), *, device: str = "") -> list[Audited]:
    """Every claim of these articles, or of all, with its verdict; each is held against the claims of all the others.

    With ``device`` only claims that name it. Others are not judged, so that a page about one device reads only what bears on it.
    """
    every = [registry.load_article(i) for i in registry.article_ids()]
    chosen = [registry.load_article(i) for i in article_ids] if article_ids else every
    wanted = [(a, c) for a in chosen for c in a.claims if not device or device in devices_of(c)]
    return [Audited(article=a, claim=c, judgement=_judged(a, c, every)) for a, c in wanted]


def _judged(article: Article, claim: Claim, every: Iterable[Article]) -> Judgement | None:
    if claim.quantity == "audience":
        return None
    rivals = [
        Rival(article=other.publisher, claim=c)
        for other in every
        if other.id != article.id and claim.topic
        for c in other.claims
        if c.topic == claim.topic and c.unit == claim.unit and c.quantity != "audience"
    ]
    cases = [case_of(reading, claim.quantity) for reading in claim.readings]
    return claims.judge(claim, cases, sources=article.sources, rivals=rivals, own_url=article.url)


# ── frames ────────────────────────────────────────────────────────────────────────────────────────


def row(audited: Audited) -> dict[str, Any]:
    """One claim as plain values: the fields of ``FIELDS``, then what explains them. Dates are text."""
    claim, judgement = audited.claim, audited.judgement
    known = claim.known
    return {
        "id": f"{audited.article.id}/{claim.id}",
        "article": audited.article.id,
        "subject": claim.subject,
        "quantity": claim.quantity,
        "claimed_low": _value(claim.low),
        "claimed_high": _value(claim.high),
        "unit": claim.unit,
        "bound": _value(judgement.bound) if judgement else None,
        "bound_kind": judgement.bound_kind if judgement else None,
        "verdict": judgement.verdict if judgement else None,
        "because": judgement.because if judgement else "About audience or biography: not judged.",
        "also": list(judgement.also) if judgement else [],
        "says": claim.says,
        "where": claim.where,
        "means": claim.means,
        "stated": list(claim.stated),
        "missing": list(claim.missing),
        "due": claim.due.isoformat() if claim.due else None,
        "known": f"{known.says} ({known.as_of.isoformat()})" if known else None,
        "devices": list(devices_of(claim)),
        "readings": [
            {
                "name": r.name,
                "assumes": r.assumes,
                "bound": _value(r.bound.value) if r.bound else None,
                "bound_kind": r.bound.kind if r.bound else None,
                "against": list(r.against),
                "holds": r.holds,
                "because": r.because,
            }
            for r in (judgement.readings if judgement else ())
        ],
    }


def _value(value: float | date | None) -> float | str | None:
    return value.isoformat() if isinstance(value, date) else value


def claims_frame(article: str = "", *, verdict: str = "", device: str = "") -> pd.DataFrame:
    """Judged claims, a row each with the columns of ``row``; of one article, with one verdict, or that name one device."""
    rows = [r for r in (row(a) for a in audit([article] if article else [], device=device)) if r["quantity"] != "audience"]
    if verdict:
        rows = [r for r in rows if r["verdict"] == verdict]
    return pd.DataFrame(rows, columns=list(row_columns()))


def row_columns() -> tuple[str, ...]:
    """The columns of ``claims_frame``."""
    return (*FIELDS, "says", "where", "means", "stated", "missing", "due", "known", "devices", "readings")


def counts_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """Claims by verdict and article: a row per verdict in the order in which they win, a column per publisher, and ``all``."""
    table = pd.crosstab(frame["verdict"], _publishers(frame["article"])).reindex(list(VERDICTS), fill_value=0)
    return table.assign(all=table.sum(axis=1)).rename_axis(columns=None).reset_index()


def words(audited: Audited) -> list[str]:
    """One claim as sentences: what is said, the verdict, why, which conditions are missing, and what became of it."""
    plain = row(audited)
    claim = audited.claim
    lines = [f"{plain['id']}: {claim.says}", f"where: {claim.where}"]
    if audited.judgement:
        also = f" (also {', '.join(audited.judgement.also)})" if audited.judgement.also else ""
        lines.append(f"verdict: {audited.judgement.verdict}{also}")
    lines.append(f"because: {plain['because']}")
    lines += [f"{name}: {'; '.join(plain[name])}" for name in ("stated", "missing") if plain[name]]
    if claim.due and claim.known:
        lines.append(f"due {claim.due.isoformat()}; known on {claim.known.as_of.isoformat()}: {claim.known.says}")
    return lines


def claims_table(frame: pd.DataFrame, *, articles: str = "articles/") -> tuple[pd.DataFrame, dict[str, str], dict[str, str]]:
    """What ``plots.table`` takes: claim, figures and verdict; ``page`` leads to where it is told in full, by the way ``articles``."""
    shown = frame.assign(
        claimed=[claimed(r) for r in frame.to_dict("records")],
        bounded=["" if r.bound is None or r.bound != r.bound else _said(r.bound, r.bound, r.unit) for r in frame.itertuples()],
        verdict=frame["verdict"].str.replace("_", " "),
        page=[f"{articles}{r.article}.html#{r.id.partition('/')[2]}" for r in frame.itertuples()],
    )
    headings = {"subject": "about", "says": "the claim", "claimed": "claimed", "bounded": "bound or figure", "verdict": "verdict"}
    return shown, headings, {}


def _said(low: Any, high: Any, unit: str) -> str:
    if unit == "date":
        return str(low) if low == high else f"{low} to {high}"
    return say_value(low, unit, high)


def article_day(article: Article) -> str:
    """When it was published, as far as it says."""
    return article.dated or (article.published.isoformat() if article.published else "")


def article_table(article: Article) -> tuple[pd.DataFrame, dict[str, str], dict[str, str]]:
    """Who published the article, when, and where it was read; for ``plots.table``."""
    rows = [
        ("title", article.title),
        ("published by", article.publisher),
        ("published", article_day(article)),
        ("read", article.seen.isoformat()),
    ]
    rows += [("page", article.url)] if article.url else []
    frame = pd.DataFrame(rows, columns=["what", "which"])
    return frame.assign(url=[which if what == "page" else "" for what, which in rows]), {"what": "", "which": "article"}, {}


def arithmetic_table(audited: Audited) -> tuple[pd.DataFrame, dict[str, str], dict[str, str]]:
    """The lines of every reading of a claim, for ``plots.table``, with the page of their source in ``url``; empty where nothing was computed."""
    addresses = _addresses(audited)
    rows = [
        {"reading": r.name or "evidence", "what": x.what, "value": x.shown, "unit": x.unit, "how": x.how, "source": x.source}
        for r in (audited.judgement.readings if audited.judgement and audited.judgement.verdict != "cannot_check" else ())
        if r.bound
        for x in r.bound.lines
    ]
    columns = ("reading", "what", "value", "unit", "how", "source")
    frame = pd.DataFrame(rows, columns=list(columns))
    return frame.assign(url=[_address(title, addresses) for title in frame["source"]]), {c: c for c in columns}, {}


def _addresses(audited: Audited) -> dict[str, str]:
    """Pages of the sources that a claim's arithmetic may name, by title."""
    devices = [registry.load_device(i) for i in devices_of(audited.claim)]
    every = [*audited.article.sources.values(), *(s for d in devices for s in d.sources.values())]
    return {source.title: source.url for source in every if source.url.startswith(("https://", "http://"))}


def _address(title: str, addresses: dict[str, str]) -> str:
    """The page of a source; a peak names its type before the title."""
    return addresses.get(title) or addresses.get(title.partition(", ")[2], "")


def claimed(plain: dict[str, Any]) -> str:
    """The figure of a row as the text means it: at least, at most, or that much."""
    return RELATION[plain["means"]] + _said(plain["claimed_low"], plain["claimed_high"], plain["unit"])


def worst_table(frame: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str], dict[str, str]]:
    """Rates above their wall, the furthest first: how many times the ceiling the claim reaches, for ``plots.table``."""
    walls = wall_frame(frame[frame["verdict"] == "above_ceiling"])
    walls = walls.assign(times=walls["high"] / walls["ceiling"]).sort_values("times", ascending=False)
    walls = walls.assign(
        article=_publishers(walls["article"]),
        claimed=[say_value(r.low, "tok/s", r.high) for r in walls.itertuples()],
        what=walls["kind"].str.replace("_", " "),
    )
    headings = {
        "label": "claimed of",
        "claimed": "claimed",
        "what": "bound",
        "ceiling": "ceiling (tok/s)",
        "times": "times the ceiling",
        "article": "article",
    }
    return walls, headings, {"ceiling": "{:,.1f}", "times": "{:.2f}"}


def _publishers(ids: pd.Series) -> pd.Series:
    """Who printed it, in place of a file's name."""
    return ids.map({i: registry.load_article(i).publisher for i in registry.article_ids()})


def articles_table(frame: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str], dict[str, str]]:
    """The articles with how many claims they make and how those fare; ``page`` leads to the article's own."""
    rows = []
    for article in [registry.load_article(i) for i in registry.article_ids()]:
        mine = frame[frame["article"] == article.id]["verdict"]
        wrong = mine.isin(["above_ceiling", "contradicts_source", "contradicts_measurement", "contradicts_other_article"]).sum()
        rows.append(
            {
                "title": article.title,
                "publisher": article.publisher,
                "published": article_day(article),
                "claims": len(mine),
                "wrong": int(wrong),
                "consistent": int((mine == "consistent").sum()),
                "page": f"articles/{article.id}.html",
            }
        )
    headings = {"title": "article", "publisher": "published by", "published": "on", "claims": "claims", "wrong": "above a wall or contradicted"}
    return pd.DataFrame(rows), {**headings, "consistent": "consistent"}, {}


def rivals_table() -> tuple[pd.DataFrame, dict[str, str], dict[str, str]]:
    """What articles say of one thing that cannot all be true: a row per claim, topics together."""
    every = [a for a in audit() if a.judgement]
    excluded = {a.claim.topic for a in every if a.judgement and "contradicts_other_article" in (a.judgement.verdict, *a.judgement.also)}
    rows = [
        {"topic": a.claim.topic, "article": a.article.publisher, "subject": a.claim.subject, "claimed": claimed(row(a)), "verdict": _words(a)}
        for a in sorted(every, key=lambda a: a.claim.topic)
        if a.claim.topic in excluded
    ]
    return pd.DataFrame(rows, columns=list(_RIVALS)), {k: v for k, v in _RIVALS.items() if k != "topic"}, {}


_RIVALS = {"topic": "topic", "subject": "about", "article": "article", "claimed": "claimed", "verdict": "verdict"}


def _words(audited: Audited) -> str:
    return audited.judgement.verdict.replace("_", " ") if audited.judgement else ""


def predictions_table(frame: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str], dict[str, str]]:
    """Claims that had a day to come true, soonest first, with what is known of them."""
    shown = frame[frame["due"].notna()].sort_values("due")
    shown = shown.assign(article=_publishers(shown["article"]), claimed=[claimed(r) for r in shown.to_dict("records")])
    return shown, {"subject": "about", "claimed": "claimed", "article": "article", "due": "due", "known": "known"}, {}


def audience_table(article: str = "") -> tuple[pd.DataFrame, dict[str, str], dict[str, str]]:
    """Figures about audience or biography, which are listed and not judged."""
    found = [a for a in audit([article] if article else []) if a.judgement is None]
    rows = [{"says": a.claim.says, "claimed": _said(_value(a.claim.low), _value(a.claim.high), a.claim.unit), "where": a.claim.where} for a in found]
    return pd.DataFrame(rows, columns=["says", "claimed", "where"]), {"says": "the figure", "claimed": "value", "where": "where"}, {}


_WALLS = ("decode_ceiling", "prefill_ceiling", "training_ceiling")


def wall_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """Claimed rates beside their ceilings: ``label, verdict, kind, ceiling, low, high``, a row for every reading that has one."""
    rows = [
        {
            "label": r.subject,
            "article": r.article,
            "verdict": r.verdict,
            "kind": reading["bound_kind"],
            "ceiling": reading["bound"],
            "low": r.claimed_low,
            "high": r.claimed_high,
        }
        for r in frame.itertuples()
        for reading in r.readings
        if r.unit == "tok/s" and r.quantity.endswith("_rate") and reading["bound_kind"] in _WALLS and reading["bound"] is not None
    ]
    return pd.DataFrame(rows, columns=["label", "article", "verdict", "kind", "ceiling", "low", "high"])
