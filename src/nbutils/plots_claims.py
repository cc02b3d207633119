"""Claims drawn and told: rates against their walls, verdicts counted, and each claim with its arithmetic behind a fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import HTML
from matplotlib.axes import Axes

from nbutils import frames_claims, plots
from nbutils.frames_claims import Audited

__all__ = ["MEANINGS", "against_walls", "claims_in_full", "meanings", "verdict_counts"]

#: What each verdict says, for readers.
MEANINGS: Mapping[str, str] = {
    "above_ceiling": "More than bandwidth or peak compute of the named machine allows, at the stated format and batch, without speculative decoding.",
    "contradicts_source": "A datasheet, a count of the model's own tensors, or another named source says otherwise.",
    "contradicts_measurement": "Somebody measured otherwise.",
    "contradicts_other_article": "Another of the articles says otherwise; at least one of them is wrong.",
    "needs_condition": "True for one reading and false for another: the text leaves open which is meant.",
    "implausible": "Possible, and far outside what such machines reach.",
    "consistent": "Nothing here speaks against it.",
    "cannot_check": "Nothing here decides it, and the reason is given.",
}
_CONTRADICTED = ("contradicts_source", "contradicts_measurement", "contradicts_other_article")
#: Groups of verdicts with a mark and a colour of the palette each.
_GROUPS = (
    ("above the ceiling", ("above_ceiling",), "X", 1),
    ("contradicted", _CONTRADICTED, "s", 4),
    ("needs a condition", ("needs_condition",), "D", 2),
    ("implausible", ("implausible",), "v", 5),
    ("consistent", ("consistent",), "o", 0),
    ("cannot be checked", ("cannot_check",), "P", 7),
)


def against_walls(frame: pd.DataFrame, *, ax: Axes) -> Axes:
    """Claimed rate over ceiling, of ``frames_claims.wall_frame``, both in tok/s on logarithmic axes. What lies above the line cannot be."""
    shown = frame[frame["ceiling"] > 0]
    if shown.empty:
        return ax
    # Left of the marks there is room for their names.
    low, left = 0.6 * shown["low"].min(), 0.1 * shown["ceiling"].min()
    high = 2.2 * max(shown["high"].max(), shown["ceiling"].max())
    palette = sns.color_palette("colorblind")
    ax.fill_between([left, high], [left, high], high, color="0.9", label="cannot be")
    ax.plot([left, high], [left, high], color="0.35", linewidth=1.6, label="the wall, where claimed equals ceiling")
    for words, verdicts, mark, colour in _GROUPS:
        part = shown[shown["verdict"].isin(verdicts)]
        if part.empty:
            continue
        middle = np.sqrt(part["low"] * part["high"])
        spread = [middle - part["low"], part["high"] - middle]
        style = {"color": palette[colour], "markersize": 8, "markeredgecolor": "white", "markeredgewidth": 0.6}
        ax.errorbar(part["ceiling"], middle, yerr=spread, fmt=mark, capsize=3, label=words, zorder=3, **style)
    _name_the_impossible(shown[shown["verdict"] == "above_ceiling"], ax)
    ax.set(xscale="log", yscale="log", xlim=(left, high), ylim=(low, high), xlabel="ceiling (tok/s)", ylabel="claimed (tok/s)")
    for axis in ("x", "y"):
        plots.plain_log_ticks(ax, axis, (1,))
    plots.legend_below(ax)
    return ax


def _name_the_impossible(frame: pd.DataFrame, ax: Axes) -> None:
    """The subjects of claims above the wall, left of their marks; of one subject the reading with the lowest ceiling."""
    for r in frame.sort_values("ceiling").drop_duplicates("label").itertuples():
        words = "\n".join(str(r.label).split(", ", maxsplit=1))
        ax.annotate(
            words, (r.ceiling, (r.low * r.high) ** 0.5), (-9, 0), textcoords="offset points", ha="right", va="center", fontsize=8, linespacing=1.1
        )


def verdict_counts(counts: pd.DataFrame, *, ax: Axes) -> Axes:
    """How many claims carry each verdict, of ``frames_claims.counts_frame``: a bar each, stacked by article, the sum at its end."""
    articles = [c for c in counts.columns if c not in ("verdict", "all")]
    names = counts["verdict"].str.replace("_", " ")
    left = np.zeros(len(counts))
    for article, colour, hatch in zip(articles, sns.color_palette("colorblind"), ("", "//", "..", "xx", "\\\\", "++") * 4, strict=False):
        ax.barh(names, counts[article], left=left, color=[colour], hatch=hatch, edgecolor="white", linewidth=0, label=article)
        left += counts[article].to_numpy()
    for position, total in enumerate(counts["all"]):
        ax.text(total + 0.4, position, str(total), va="center")
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    ax.set(xlabel="claims", ylabel="", xlim=(0, 1.1 * max(1, counts["all"].max())))
    plots.legend_below(ax)
    return ax


def meanings(counts: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str], dict[str, str]]:
    """Verdicts with their meaning and how many claims carry them, for ``plots.table``."""
    frame = pd.DataFrame({"verdict": counts["verdict"].str.replace("_", " "), "means": counts["verdict"].map(MEANINGS), "claims": counts["all"]})
    return frame, {"verdict": "verdict", "means": "what it means", "claims": "claims"}, {"claims": "{:d}"}


def claims_in_full(audited: Sequence[Audited]) -> HTML:
    """Each claim behind a fold with an anchor of its own: what is said, where, why the verdict, and the arithmetic with linked sources."""
    return HTML("\n".join(_in_full(a) for a in audited if a.judgement is not None))  # type: ignore[no-untyped-call]


def _in_full(audited: Audited) -> str:
    claim, judgement = audited.claim, audited.judgement
    assert judgement is not None
    plain = frames_claims.row(audited)
    also = f" <small>(also {escape(', '.join(v.replace('_', ' ') for v in judgement.also))})</small>" if judgement.also else ""
    summary = f"<b>{escape(claim.subject)}</b>: {escape(frames_claims.claimed(plain))} — <i>{escape(judgement.verdict.replace('_', ' '))}</i>{also}"
    parts = [f"<p>{escape(claim.says)} <small>({escape(claim.where)})</small></p>"]
    told = [escape(f"{r.assumes}: {r.because}" if r.assumes else r.because) for r in judgement.readings]
    parts.append(f"<ul>{''.join(f'<li>{words}</li>' for words in told)}</ul>" if len(told) > 1 else f"<p>{''.join(told)}</p>")
    parts.append(f"<p>{escape(judgement.beside)}</p>" if judgement.beside else "")
    if claim.missing:
        parts.append(f"<p>Not said: {escape('; '.join(claim.missing))}.</p>")
    if claim.due and claim.known:
        parts.append(f"<p>Due {claim.due.isoformat()}. As of {claim.known.as_of.isoformat()}: {escape(claim.known.says)}</p>")
    parts.append(_arithmetic(audited))
    return f'<details class="claim" id="{escape(claim.id)}"><summary>{summary}</summary>{"".join(parts)}</details>'


def _arithmetic(audited: Audited) -> str:
    """The lines of all readings as one table that scrolls in its own box."""
    frame, headings, _ = frames_claims.arithmetic_table(audited)
    if frame.empty:
        return ""
    head = "".join(f'<th scope="col">{escape(h)}</th>' for h in headings.values())
    body = []
    for entry in frame.to_dict("records"):
        source = escape(entry["source"])
        if entry["url"]:
            source = f'<a class="reference external" href="{escape(entry["url"])}">{source}</a>'
        cells = [escape(str(entry[name])) for name in headings if name != "source"]
        body.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + f"<td>{source}</td></tr>")
    return f'<div class="table-box"><table class="dataframe"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
