"""Figures and tables of machines side by side: what fits, how fast at best, what a budget buys."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from pandas.io.formats.style import Styler

from nbutils import plots

__all__ = ["budget_ceilings", "compared_ceilings", "fit_table", "speculative"]

#: A verdict's tint, through which the page's own colours show in both themes; the words say it without colour.
_INKS = {"fits": "rgba(1, 115, 178, .22)", "tight": "rgba(222, 143, 5, .25)", "does_not_fit": "rgba(213, 94, 0, .28)"}
_MARKS = "osD^vP"


def fit_table(words: pd.DataFrame, verdicts: pd.DataFrame) -> Styler:
    """The matrix of ``frames_market.fit_matrix``: a row per model, a column per format, each cell in colour and in words."""
    shown = words.replace("", "–").rename_axis(index=None, columns=None).reset_index(names="model")
    colours = verdicts.reset_index(drop=True).map(lambda v: f"background-color: {_INKS[v]}" if v else "")
    style = shown.style.format(escape="html").hide(axis="index").set_uuid(hashlib.sha256("|".join(shown.columns).encode()).hexdigest()[:6])
    style = style.apply(lambda part: colours.reindex(columns=part.columns).fillna(""), axis=None, subset=list(words.columns))
    return style.set_properties(subset=list(words.columns), **{"white-space": "nowrap"})


def compared_ceilings(found: pd.DataFrame, measured: Mapping[tuple[str, str, str], float], *, ax: Axes) -> Axes:
    """Decode ceilings of several machines, a group per model: a line ends at the ceiling, a bar is the expected range, a point what others measured.

    ``found`` as ``frames_market.compare_frame`` gives it; ``measured`` is that of ``best_measured``. What does not fit says so.
    """
    blue, orange, green = sns.color_palette("colorblind", 3)
    points = [measured.get(key) for key in zip(found["device_id"], found["model_id"], found["format"], strict=True)]
    rates = found["decode_ceiling_tok_per_s"].where(found["verdict"] != "does_not_fit")
    rows = found.assign(label=found["device"], seen=pd.Series(points, index=found.index, dtype=float), rate=rates)
    rows["words"] = [_rate_words(rate) + (" tight" if verdict == "tight" else "") for rate, verdict in zip(rates, found["verdict"], strict=True)]
    for y, row in _grouped(rows, "does not fit", ax=ax, room=3):
        if pd.notna(row["rate"]) and pd.notna(row["expected_tok_per_s"]):
            ax.plot([row["low_tok_per_s"], row["high_tok_per_s"]], [y, y], color=green, linewidth=5, alpha=0.45, solid_capstyle="butt")
        ax.plot(row["rate"], y, "|", color=blue, markersize=12, markeredgewidth=3)
        if pd.notna(row["seen"]):
            ax.plot(row["seen"], y, "o", color=orange, markersize=6)
    ax.plot([], [], "|", color=blue, markersize=12, markeredgewidth=3, linestyle="none", label="decode ceiling")
    if rows["expected_tok_per_s"].notna().any():
        ax.plot([], [], color=green, linewidth=5, alpha=0.45, label="expected, nine times in ten")
    if rows["seen"].notna().any():
        ax.plot([], [], "o", color=orange, linestyle="none", label="best measured by others")
    ax.set(xlabel="decode, one user, depth 0 (tok/s)")
    plots.legend_below(ax)
    return ax


def budget_ceilings(found: pd.DataFrame, *, ax: Axes) -> Axes:
    """What a budget buys: for each model the decode ceiling of the fastest configuration that can be bought, a mark per budget with its name.

    ``found`` as ``frames_market.budget_frame`` gives it.
    """
    models, budgets = list(dict.fromkeys(found["model"])), sorted(found["budget_usd"].unique())
    rows = found[found["role"] == "fastest"].sort_values("model", key=lambda names: names.map(models.index), kind="stable")
    rows = rows.assign(rate=rows["ceiling_tok_per_s"].astype(float), seen=np.nan, label=[f"{usd:,.0f} USD" for usd in rows["budget_usd"]])
    rows["words"] = [f"{_rate_words(rate)}, {device}" for rate, device in zip(rows["rate"], rows["device"], strict=True)]
    colours = sns.color_palette("colorblind", len(budgets))
    for y, row in _grouped(rows, "nothing with a known price holds it", ax=ax, room=9):
        which = budgets.index(row["budget_usd"])
        ax.plot(row["rate"], y, _MARKS[which % len(_MARKS)], color=colours[which], markersize=7)
    ax.set(xlabel="decode ceiling, one user, depth 0 (tok/s)")
    return ax


def _grouped(rows: pd.DataFrame, otherwise: str, *, ax: Axes, room: float) -> list[tuple[float, dict[Hashable, Any]]]:
    """Lay out a group of lines per model on a logarithmic axis; return the place and the row of each that has a ``rate``.

    Columns: ``model, format, label, rate, seen, words``. A row without a rate says ``otherwise``. ``room`` is how far the axis goes past the longest.
    """
    low = 0.6 * float(np.nanmin(rows[["rate", "seen"]].to_numpy(dtype=float)))
    y, labels, drawn = -1.4, {}, []
    for model, part in rows.groupby("model", sort=False):
        y += 1.4
        place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "xytext": (4, -3)}
        ax.annotate(f"{model} {part['format'].iloc[0]}", (0, y), fontsize=10, fontweight="bold", color="0.15", **place)
        for row in part.to_dict("records"):
            y += 1
            labels[y] = row["label"]
            if pd.isna(row["rate"]):
                ax.annotate(otherwise, (0, y), fontsize=10, color="0.35", style="italic", **place)
                continue
            ax.hlines(y, low, row["rate"], color="0.7", linewidth=1.5)
            ax.annotate(row["words"], (row["rate"], y), xytext=(8, -3), textcoords="offset points", fontsize=10)
            drawn.append((y, row))
    ax.set_yticks(list(labels), list(labels.values()), fontsize=10)
    ax.set(xscale="log", xlim=(low, rows["rate"].max() * room), ylim=(y + 0.8, -0.8))
    ax.grid(visible=False, axis="y")
    plots.plain_log_ticks(ax, "x")
    return drawn


def _rate_words(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:,.1f}"


def speculative(frame: pd.DataFrame, plain_tok_per_s: float, *, ax: Axes) -> Axes:
    """Expected bound over the number of drafted tokens, a line per rate of acceptance; the plain ceiling as a level."""
    styles = ["-", "--", "-.", (0, (1, 1.2))]
    for (accept, part), colour, style in zip(frame.groupby("accept", sort=True), sns.color_palette("colorblind"), styles, strict=False):
        ax.plot(part["n_draft"], part["tok_per_s"], color=colour, linestyle=style, label=f"{accept:.0%} of drafts accepted")
    ax.axhline(plain_tok_per_s, color="0.3", linewidth=1.2)
    ax.annotate(
        "ceiling without drafts", (frame["n_draft"].max(), plain_tok_per_s), xytext=(0, -13), textcoords="offset points", ha="right", fontsize=10
    )
    ax.set(xlabel="tokens drafted per pass", ylabel="expected bound (tok/s)", ylim=(0, None), xticks=np.arange(0, frame["n_draft"].max() + 1, 2))
    plots.legend_below(ax)
    return ax
