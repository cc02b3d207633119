"""Frames become figures. A bound is drawn as a line, a measurement as a point, and every axis names its unit.

Every function takes a frame and an ``ax`` and returns the ``ax``. Colours are seaborn's colour-blind palette, and
nothing is told by colour alone.
"""

from __future__ import annotations

import hashlib
import html
import itertools
import re
from collections.abc import Callable, Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from pandas.io.formats.style import Styler

__all__ = [
    "budget_bar",
    "decode_against_bytes",
    "device_ceilings",
    "new_axes",
    "over_batch",
    "over_depth",
    "rates_by_wall",
    "roofline",
    "table",
    "text",
    "yardsticks",
]

_STYLES = ["-", "--", "-.", (0, (1, 1.2)), (0, (5, 1, 1, 1, 1, 1)), (0, (9, 3))]
_VERDICT_MARKS = {"fits": "o", "tight": "D", "does_not_fit": "X"}
VERDICT_WORDS = {"fits": "fits", "tight": "tight", "does_not_fit": "does not fit (ceiling if it did)"}


def new_axes(width: float = 6.6, height: float = 4.2) -> Axes:
    """An empty plot in the book's style."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind", font_scale=1.0)
    plt.rcParams["savefig.dpi"] = plt.rcParams["figure.dpi"] = 144
    plt.rcParams["svg.hashsalt"] = "nbutils"
    _, ax = plt.subplots(figsize=(width, height), layout="constrained")
    return ax


def table(
    frame: pd.DataFrame, columns: Mapping[str, str], formats: Mapping[str, str] | None = None, *, links: Mapping[str, str] | None = None
) -> Styler:
    """The named columns under readable headings, without an index. Text is escaped; unknown shows as a dash.

    ``formats`` maps columns to format strings, ``"{:,.1f}"`` for one; ``links`` maps a column of text to the column with
    its address, which may be empty.
    """
    shown = frame[list(columns)].rename(columns=dict(columns))
    style = shown.style.format(escape="html", na_rep="–").hide(axis="index")
    style = style.set_uuid(hashlib.sha256("|".join(columns.values()).encode()).hexdigest()[:6])
    for name, pattern in (formats or {}).items():
        style = style.format(pattern, subset=[columns[name]], na_rep="–", escape="html")
    for name, address in (links or {}).items():
        cells = [_link(text, url) for text, url in zip(frame[name], frame[address], strict=True)]
        style = style.format(_in_turn(cells), subset=[columns[name]])
    given = {columns[name] for name in formats or {}}
    numeric = [heading for heading in shown.columns if heading in given or pd.api.types.is_numeric_dtype(shown[heading])]
    heads = {name: [{"selector": "th.col_heading", "props": [("text-align", "right")]}] for name in numeric}
    return style.set_properties(subset=numeric, **{"text-align": "right", "white-space": "nowrap"}).set_table_styles(heads, overwrite=False)


def text(words: str) -> HTML:
    """A paragraph from data, escaped."""
    return HTML(f"<p>{html.escape(words)}</p>" if words else "")  # type: ignore[no-untyped-call]


def _link(text: str, url: str) -> str:
    """An anchor for an http address or a page of the book, plain text for anything else."""
    escaped = html.escape(str(text))
    if re.fullmatch(r"\w[\w./\-]*\.html", str(url)):
        return f'<a class="reference internal" href="{url}">{escaped}</a>'
    if not str(url).startswith(("https://", "http://")):
        return escaped
    return f'<a class="reference external" href="{html.escape(str(url))}">{escaped}</a>'


def _in_turn(cells: list[str]) -> Callable[[object], str]:
    """A formatter that ignores the value and gives the cells in order, each time from the first after the last."""
    turn = itertools.cycle(cells)
    return lambda _: next(turn)


def decode_against_bytes(frame: pd.DataFrame, *, ax: Axes) -> Axes:
    """Decode rate over bytes read per token: the ceiling is one line of slope minus one, every file a point under it."""
    decode = frame[frame["phase"] == "decode"]
    colours = dict(zip(sorted(decode["format"].unique()), sns.color_palette("colorblind"), strict=False))
    bandwidth = decode["bandwidth"].median()
    reach = np.array([decode["step_bytes"].min() / 2.5, decode["step_bytes"].max() * 1.6])
    ax.plot(reach / 1e9, bandwidth / reach, color="0.35", linewidth=1.5)
    ax.annotate(
        f"ceiling at {bandwidth / 1e9:.0f} GB/s, the median measured",
        (reach[0] / 1e9, bandwidth / reach[0]),
        xytext=(14, -4),
        textcoords="offset points",
        color="0.25",
    )
    for row in decode.itertuples():
        marker = "s" if row.kind == "MoE" else "o"
        ax.errorbar(
            row.step_bytes / 1e9,
            row.tok_per_s,
            yerr=[[row.tok_per_s - row.low], [row.high - row.tok_per_s]],
            fmt=marker,
            color=colours[row.format],
            capsize=3,
            markersize=8,
        )
        # A mixture of experts and a dense file may lie on one spot; their names must not.
        shift, side = ((-9, -3), "right") if row.kind == "MoE" else ((0, -17), "center")
        place = (row.step_bytes / 1e9, row.tok_per_s)
        ax.annotate(f"{row.kind} {row.format}", place, xytext=shift, textcoords="offset points", ha=side, fontsize=9)
    ax.set(xscale="log", yscale="log", xlabel="bytes read per token (GB)", ylabel="decode (tok/s)")
    _plain_log_ticks(ax, "x")
    _plain_log_ticks(ax, "y")
    low, high = ax.get_ylim()
    ax.set_ylim(low / 1.25, high * 1.1)
    return ax


def rates_by_wall(frame: pd.DataFrame, *, ax: Axes) -> Axes:
    """For each file: what decode reached, what reading alone and what arithmetic alone would allow, in GB/s of weights."""
    decode = frame[frame["phase"] == "decode"].reset_index(drop=True)
    labels = [f"{row.kind} {row.format}" for row in decode.itertuples()]
    blue, orange, green = sns.color_palette("colorblind", 3)
    y = np.arange(len(decode))
    ax.vlines(decode["bandwidth"] / 1e9, y - 0.32, y + 0.32, color=blue, linewidth=3, label="reading alone (bandwidth)")
    dashes = (0, (2, 1))
    ax.vlines(
        decode["arithmetic"] / 1e9, y - 0.32, y + 0.32, color=orange, linewidth=3, linestyle=dashes, label="arithmetic alone (weights in cache)"
    )
    ax.plot(decode["achieved"] / 1e9, y, "o", color=green, markersize=9, label="decode, measured")
    ax.set_yticks(y, labels)
    ax.invert_yaxis()
    ax.set(xlabel="weights gone through (GB/s)", xlim=(0, None))
    ax.legend(loc="upper center", bbox_to_anchor=(0.42, -0.2), ncols=3, frameon=False, fontsize=9)
    return ax


def roofline(devices: pd.DataFrame, marks: Mapping[str, float], *, ax: Axes) -> Axes:
    """Rooflines of devices: attainable FLOP/s over FLOP per byte, with vertical lines at the intensities of ``marks``.

    Columns: ``name, bandwidth, peak``; a device whose peak is unknown is left out.
    """
    known = devices.dropna(subset=["peak"])
    x = np.geomspace(0.5, 4096, 200)
    styles = itertools.cycle(_STYLES)
    for row, colour, style in zip(known.itertuples(), sns.color_palette("colorblind"), styles, strict=False):
        ax.plot(x, np.minimum(row.bandwidth * x, row.peak) / 1e12, color=colour, linestyle=style, label=row.name)
    for label, intensity in marks.items():
        ax.axvline(intensity, color="0.5", linewidth=1)
        ax.annotate(label, (intensity, 0.02), xycoords=("data", "axes fraction"), xytext=(4, 0), textcoords="offset points", fontsize=9, color="0.25")
    ax.set(xscale="log", yscale="log", xlabel="arithmetic intensity (FLOP/byte)", ylabel="attainable (TFLOP/s)")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False, fontsize=9)
    _plain_log_ticks(ax, "x")
    _plain_log_ticks(ax, "y")
    return ax


def device_ceilings(frame: pd.DataFrame, *, ax: Axes) -> Axes:
    """Decode ceilings of one device, a line per model and format; the mark at its end says whether it fits."""
    rows = frame.sort_values("decode_ceiling_tok_per_s", ascending=False).reset_index(drop=True)
    y = np.arange(len(rows))
    grey, blue, red = "0.6", sns.color_palette("colorblind")[0], sns.color_palette("colorblind")[3]
    colours = {"fits": blue, "tight": "0.25", "does_not_fit": red}
    ax.hlines(y, rows["decode_ceiling_tok_per_s"].min() / 3, rows["decode_ceiling_tok_per_s"], color=grey, linewidth=1.5)
    for verdict, marker in _VERDICT_MARKS.items():
        part = rows[rows["verdict"] == verdict]
        if len(part):
            ax.plot(part["decode_ceiling_tok_per_s"], part.index, marker, color=colours[verdict], markersize=8, label=VERDICT_WORDS[verdict])
    for position, ceiling in enumerate(rows["decode_ceiling_tok_per_s"]):
        ax.annotate(
            f"{ceiling:,.0f}" if ceiling >= 100 else f"{ceiling:,.1f}", (ceiling, position), xytext=(8, -3), textcoords="offset points", fontsize=9
        )
    ax.set_yticks(y, [f"{m} {f}" for m, f in zip(rows["model"], rows["format"], strict=True)])
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    ax.set(xscale="log", xlabel="decode ceiling, one sequence, depth 0 (tok/s)")
    ax.set_xlim(rows["decode_ceiling_tok_per_s"].min() / 3, rows["decode_ceiling_tok_per_s"].max() * 3.5)
    ax.legend(loc="upper center", bbox_to_anchor=(0.4, -0.12), ncols=3, frameon=False, fontsize=9)
    _plain_log_ticks(ax, "x")
    return ax


def budget_bar(frame: pd.DataFrame, available_bytes: int, *, ax: Axes) -> Axes:
    """A memory budget as one stacked bar against what a program may use, which is a line."""
    left = 0.0
    hatches = ["", "//", "..", "xx", "--", "\\\\"]
    parts = frame[(frame["part"] != "headroom") & (frame["bytes"] > 0)]
    small = parts["bytes"] < 0.02 * parts["bytes"].sum()
    rest = pd.DataFrame({"part": ["buffers and runtime"], "bytes": [parts.loc[small, "bytes"].sum()]})
    parts = pd.concat([parts[~small], rest[rest["bytes"] > 0]])
    for row, colour, hatch in zip(parts.itertuples(), sns.color_palette("colorblind"), hatches, strict=False):
        ax.barh(0, row.bytes / 1e9, left=left, color=colour, hatch=hatch, edgecolor="white", label=f"{row.part}: {row.bytes / 1e9:.2f} GB")
        left += row.bytes / 1e9
    ax.axvline(available_bytes / 1e9, color="0.2", linewidth=2, label=f"available: {available_bytes / 1e9:.1f} GB")
    ax.set(xlabel="memory (GB)", yticks=[], xlim=(0, max(left, available_bytes / 1e9) * 1.06))
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.45), ncols=2, frameon=False, fontsize=9)
    return ax


def over_depth(frame: pd.DataFrame, *, ax: Axes) -> Axes:
    """Decode ceilings over the depth of the context, a line per model; where a line bends down, the cache outweighs the weights."""
    styles = itertools.cycle(_STYLES)
    colours = itertools.cycle(sns.color_palette("colorblind"))
    for (_, part), colour, style in zip(frame.groupby("name", sort=False), colours, styles, strict=False):
        ax.plot(part["depth"], part["ceiling"], color=colour, linestyle=style, label=part["label"].iloc[0])
        ax.plot(part["depth"].iloc[-1:], part["ceiling"].iloc[-1:], ".", color=colour)
    ax.set(xscale="log", yscale="log", xlabel="depth (tokens of context)", ylabel="decode ceiling (tok/s)")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, frameon=False, fontsize=9)
    _plain_log_ticks(ax, "x")
    _plain_log_ticks(ax, "y")
    return ax


def over_batch(frame: pd.DataFrame, *, ax: Axes) -> Axes:
    """Decode ceilings over the batch, all sequences together; hollow marks are batches that do not fit the memory."""
    colours, marks = itertools.cycle(sns.color_palette("colorblind")), itertools.cycle("os^Dv")
    for (_, part), colour, mark in zip(frame.groupby("name", sort=False), colours, marks, strict=False):
        ax.plot(part["batch"], part["total"], color=colour, linewidth=1, alpha=0.4)
        inside, outside = part[part["fits"]], part[~part["fits"]]
        ax.plot(inside["batch"], inside["total"], mark, color=colour, markersize=6, label=part["label"].iloc[0])
        if len(outside):
            ax.plot(outside["batch"], outside["total"], mark, color=colour, markersize=6, markerfacecolor="white")
    if not frame["fits"].all():
        ax.plot([], [], "o", color="0.4", markerfacecolor="white", label="does not fit")
    ax.set(xscale="log", yscale="log", xlabel="batch (sequences)", ylabel="decode ceiling, all sequences (tok/s)")
    ax.set_xticks(sorted(frame["batch"].unique()))
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, frameon=False, fontsize=9)
    _plain_log_ticks(ax, "y")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    return ax


def yardsticks(frame: pd.DataFrame, *, ax: Axes) -> Axes:
    """Measured bandwidths: the best sample as a point, the median as a tick."""
    rows = frame.reset_index(drop=True)
    y = np.arange(len(rows))
    ax.plot(rows["best"] / 1e9, y, "o", color=sns.color_palette("colorblind")[0], label="best sample")
    ax.plot(rows["median"] / 1e9, y, "|", color="0.2", markersize=16, markeredgewidth=2, label="median")
    ax.set_yticks(y, [f"{k}: {m}" for k, m in zip(rows["kind"], rows["method"], strict=True)])
    ax.invert_yaxis()
    ax.set(xlabel="bandwidth (GB/s)", xlim=(0, rows["best"].max() / 1e9 * 1.08))
    ax.margins(y=0.2)
    ax.legend(loc="upper center", bbox_to_anchor=(0.4, -0.25), ncols=2, frameon=False, fontsize=9)
    return ax


def _plain_log_ticks(ax: Axes, axis: str) -> None:
    """Plain numbers at 1, 2 and 5 of each decade, where there are few decades; powers are for other readers."""
    target = ax.xaxis if axis == "x" else ax.yaxis
    low, high = ax.get_xlim() if axis == "x" else ax.get_ylim()
    steps = (1, 2, 5) if high / low < 300 else (1,)
    target.set_major_locator(LogLocator(subs=steps))
    target.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    target.set_minor_formatter(NullFormatter())
