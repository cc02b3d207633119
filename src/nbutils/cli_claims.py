"""``nbutils claims``: what articles say, held against bounds and sources."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from nbutils import frames_claims, registry
from nbutils.claims import VERDICTS
from nbutils.errors import UnknownId, UsageError, did_you_mean
from nbutils.explain import explain
from nbutils.frames_claims import Audited
from nbutils.printing import AsJson, err, out, print_json, rows_table

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add this module's command to ``app``."""
    app.command("claims")(claims_command)


def claims_command(
    claim: Annotated[str, typer.Argument(help="One claim, as 'article/claim', with its arithmetic; all in short when left out.")] = "",
    article: Annotated[str, typer.Option(help="Claims of one article, a file stem in data/articles.")] = "",
    verdict: Annotated[str, typer.Option(help=f"Claims with one verdict: {', '.join(VERDICTS)}.")] = "",
    device: Annotated[str, typer.Option(help="Claims that a device of the registry decides.")] = "",
    as_json: AsJson = False,
) -> None:
    """Claims of articles, each with a computed verdict.

    A rate above the bound from nominal bandwidth or peak compute is above_ceiling; what is true for one reading and false for another
    is needs_condition; what nothing here decides is cannot_check. Figures about audience or biography are not judged.
    Example: nbutils claims --article byteiota-rtx-spark --verdict above_ceiling
    """
    if claim:
        if article or verdict or device:
            raise UsageError(f"one claim ({claim}) or a choice of them (--article, --verdict, --device); leave one of the two out")
        _one(claim, as_json)
        return
    known = registry.article_ids()
    for name, value, allowed in (("article", article, known), ("verdict", verdict, list(VERDICTS)), ("device", device, registry.device_ids())):
        if value and value not in allowed:
            raise UnknownId(f"no {name} {value!r}{did_you_mean(value, allowed)}")
    with err.status("computing …"):
        frame = frames_claims.claims_frame(article, verdict=verdict, device=device)
    rows: list[dict[str, Any]] = [{k: r[k] for k in frame.columns} for r in frame.astype(object).where(frame.notna(), None).to_dict("records")]
    if as_json:
        print_json(rows)
        return
    shown, _, _ = frames_claims.claims_table(frame)
    columns = {
        "id": ("id", "{}"),
        "subject": ("about", "{}"),
        "claimed": ("claimed", "{}"),
        "bounded": ("bound or figure", "{}"),
        "verdict": ("verdict", "{}"),
    }
    counts = frame["verdict"].value_counts()
    caption = ", ".join(f"{counts[v]} {v.replace('_', ' ')}" for v in VERDICTS if v in counts)
    out.print(rows_table(f"{len(frame)} claims", shown.to_dict("records"), columns, caption=caption))
    if len(frame):
        out.print(f"why: nbutils claims {frame['id'].iloc[0]}", highlight=False, soft_wrap=True, markup=False)


def _one(claim: str, as_json: bool) -> None:
    article, slash, _ = claim.partition("/")
    if not slash and article in registry.article_ids():
        raise UsageError(f"{article!r} is an article; its claims: nbutils claims --article {article}")
    if article not in registry.article_ids():
        raise UnknownId(f"no article {article!r}{did_you_mean(article, registry.article_ids())}; a claim is named 'article/claim'")
    known = {f"{a.article.id}/{a.claim.id}": a for a in frames_claims.audit([article] if article in registry.article_ids() else [])}
    if claim not in known:
        raise UnknownId(f"no claim {claim!r}{did_you_mean(claim, list(known))}; 'nbutils claims' lists them")
    found = known[claim]
    if as_json:
        print_json(frames_claims.row(found))
        return
    for line in frames_claims.words(found):
        out.print(line, highlight=False, soft_wrap=True, markup=False)
    _arithmetic(found)


def _arithmetic(found: Audited) -> None:
    for reading in found.judgement.readings if found.judgement else ():
        if reading.bound and reading.bound.lines:
            out.print(f"\n{reading.name or 'evidence'}", highlight=False, soft_wrap=True, markup=False)
            out.print(explain(reading.bound.lines), highlight=False, soft_wrap=True, markup=False)
