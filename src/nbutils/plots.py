"""Frames become figures. A bound is drawn as a line, a measurement as a point, and every axis names its unit.

Every function takes a frame and an ``ax`` and returns the ``ax``. Colours are seaborn's colour-blind palette, and
nothing is told by colour alone.
"""

from __future__ import annotations

import base64
import hashlib
import html
import itertools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.core.getipython import get_ipython
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from matplotlib_inline.config import InlineBackend
from pandas.io.formats.style import Styler

from nbutils.errors import UsageError

__all__ = [
    "STYLES",
    "batch_rates",
    "decode_against_bytes",
    "decode_by_format",
    "device_ceilings",
    "download",
    "experts_touched",
    "itl_strip",
    "legend_below",
    "measured_over_depth",
    "measured_roofline",
    "meters_over_time",
    "new_axes",
    "over_batch",
    "over_depth",
    "parity",
    "plain_log_ticks",
    "rate_over_time",
    "rates_by_wall",
    "roofline",
    "table",
    "text",
    "yardsticks",
]

#: A table of more rows is long: the book lets its readers sort and filter it.
LONG_ROWS = 20
#: Characters. A column with longer text than this keeps a width to be read in; the table scrolls instead.
_PROSE = 40
#: Points. A phone shows a figure at two thirds of its size, and this is then still read.
_SMALL = 10
_LOOKS: dict[str, Any] = {
    "figure.dpi": 144,
    "savefig.dpi": 144,
    # Equal figures are equal files.
    "svg.hashsalt": "nbutils",
    "axes.edgecolor": "0.75",
    "grid.color": "0.9",
    "legend.frameon": False,
    "legend.fontsize": _SMALL,
}
#: Of the size that is asked for, 6.6 inches for a column of text. The page stretches the figure to its column, and so its letters.
_CANVAS = 0.85

#: Lines that are told apart without colour.
STYLES: list[Any] = ["-", "--", "-.", (0, (1, 1.2)), (0, (5, 1, 1, 1, 1, 1)), (0, (9, 3))]
_VERDICT_MARKS = {"fits": "o", "tight": "D", "does_not_fit": "X"}
VERDICT_WORDS = {"fits": "fits", "tight": "tight", "does_not_fit": "does not fit (ceiling if it did)"}


def new_axes(width: float = 6.6, height: float = 4.2) -> Axes:
    """An empty plot in the book's style, of so many inches on a page whose column has 6.6."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind", rc=_LOOKS)
    _draw_vectors()
    _, ax = plt.subplots(figsize=(_CANVAS * width, _CANVAS * height), layout="constrained")
    return ax


def legend_below(ax: Axes) -> None:
    """What the marks and lines are called, in as many columns as the width holds, on new canvas under the plot; nothing where nothing is named."""
    handles, labels = ax.get_legend_handles_labels()
    figure = ax.get_figure(root=True)
    if labels and figure is not None:
        across = max(1, int(72 * figure.get_figwidth() / (0.62 * _SMALL * max(map(len, labels)) + 3.5 * _SMALL)))
        rows = math.ceil(len(labels) / across)
        figure.set_figheight(figure.get_figheight() + (rows + 0.5) * 1.6 * _SMALL / 72)
        figure.legend(handles, labels, loc="outside lower center", ncols=math.ceil(len(labels) / rows))


def _draw_vectors() -> None:
    """In a kernel figures become SVG for the page and PNG for what shows no SVG, neither with the time of day in it."""
    if (shell := get_ipython()) is None:
        return
    inline = InlineBackend.instance(parent=shell)
    inline.shell = shell
    inline.print_figure_kwargs = {"bbox_inches": "tight", "metadata": {"Date": None}}  # type: ignore[dict-item]
    inline.figure_formats = {"svg", "png"}


def table(
    frame: pd.DataFrame,
    columns: Mapping[str, str],
    formats: Mapping[str, str] | None = None,
    *,
    links: Mapping[str, str] | None = None,
    long: bool | None = None,
) -> Styler:
    """The named columns under readable headings, without an index. Text is escaped; unknown shows as a dash.

    ``formats`` maps columns to format strings, ``"{:,.1f}"`` for one; ``links`` maps a column of text to the column with
    its address, which may be empty. The book makes a ``long`` table sortable and filterable; by default one of more than
    ``LONG_ROWS`` rows is.
    """
    shown = frame[list(columns)].rename(columns=dict(columns))
    style = shown.style.format(escape="html", na_rep="–").format_index(escape="html", axis="columns").hide(axis="index")
    style = style.set_uuid(hashlib.sha256("|".join([str(len(shown)), *columns.values()]).encode()).hexdigest()[:6])
    if len(shown) > LONG_ROWS if long is None else long:
        style = style.set_table_attributes('class="long"')
    for name, pattern in (formats or {}).items():
        style = style.format(pattern, subset=[columns[name]], na_rep="–", escape="html")
    for name, address in (links or {}).items():
        cells = [_link(text, url) for text, url in zip(frame[name], frame[address], strict=True)]
        style = style.format(_in_turn(cells), subset=[columns[name]])
    given = {columns[name] for name in formats or {}}
    numeric = [heading for heading in shown.columns if heading in given or pd.api.types.is_numeric_dtype(shown[heading])]
    heads = {name: [{"selector": "th.col_heading", "props": [("text-align", "right")]}] for name in numeric}
    style = style.set_properties(subset=numeric, **{"text-align": "right", "white-space": "nowrap"}).set_table_styles(heads, overwrite=False)
    prose = [heading for heading in shown.columns if heading not in numeric and shown[heading].astype(str).str.len().max() > _PROSE]
    return style.set_properties(subset=prose, **{"min-width": "11rem"})


def download(frame: pd.DataFrame, name: str) -> HTML:
    """A link to the frame as a CSV file. It travels within the link; the book's build makes a file of it.

    Text that a spreadsheet would take for a formula gets an apostrophe in front; lists and lines become one line. ``name`` is of lower
    case letters, digits and hyphens (``UsageError``).
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name):
        raise UsageError(f"plots.download: {name!r} is no name for a file; use lower case letters, digits and hyphens")
    plain = frame.map(_plain_cell).rename(columns=_plain_cell)
    data = base64.b64encode(plain.to_csv(index=False, lineterminator="\n").encode()).decode()
    size = f"{len(frame):,} row{'s' if len(frame) != 1 else ''}"
    words = f'<a class="data-download" download="{name}.csv" href="data:text/csv;charset=utf-8;base64,{data}">{name}.csv</a> ({size})'
    return HTML(f'<p class="data-download">Data: {words}</p>')  # type: ignore[no-untyped-call]


def _plain_cell(value: Any) -> Any:
    """What a spreadsheet shows and does not run: text in one line that begins no formula."""
    if isinstance(value, list | tuple | set | frozenset):
        value = "; ".join(map(str, sorted(value) if isinstance(value, set | frozenset) else value))
    if not isinstance(value, str):
        return value
    line = " ".join(value.split())
    return f"'{line}" if line.startswith(("=", "+", "-", "@")) else line


def text(words: str) -> HTML:
    """A paragraph from data, escaped."""
    return HTML(f"<p>{html.escape(words)}</p>" if words else "")  # type: ignore[no-untyped-call]


def _link(text: str, url: str) -> str:
    """An anchor for an http address or a page of the book, plain text for anything else."""
    escaped = html.escape(str(text))
    if re.fullmatch(r"(\.\./)?\w[\w./\-]*\.html(#[\w.\-]+)?", str(url)):
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
    reach = np.array([decode["step_bytes"].min() / 4, decode["step_bytes"].max() * 1.6])
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
        ax.annotate(f"{row.kind} {row.format}", place, xytext=shift, textcoords="offset points", ha=side, fontsize=_SMALL)
    ax.set(xscale="log", yscale="log", xlabel="bytes read per token (GB)", ylabel="decode (tok/s)")
    plain_log_ticks(ax, "x")
    plain_log_ticks(ax, "y")
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
    legend_below(ax)
    return ax


def roofline(devices: pd.DataFrame, marks: Mapping[str, float], *, ax: Axes) -> Axes:
    """Rooflines of devices: attainable FLOP/s over FLOP per byte, with vertical lines at the intensities of ``marks``.

    Columns: ``name, bandwidth, peak``; a device whose peak is unknown is left out.
    """
    known = devices.dropna(subset=["peak"])
    x = np.geomspace(0.5, 4096, 200)
    styles = itertools.cycle(STYLES)
    for row, colour, style in zip(known.itertuples(), sns.color_palette("colorblind"), styles, strict=False):
        ax.plot(x, np.minimum(row.bandwidth * x, row.peak) / 1e12, color=colour, linestyle=style, label=row.name)
    for label, intensity in marks.items():
        ax.axvline(intensity, color="0.5", linewidth=1)
        ax.annotate(
            label, (intensity, 0.02), xycoords=("data", "axes fraction"), xytext=(4, 0), textcoords="offset points", fontsize=_SMALL, color="0.25"
        )
    ax.set(xscale="log", yscale="log", xlabel="arithmetic intensity (FLOP/byte)", ylabel="attainable (TFLOP/s)")
    legend_below(ax)
    plain_log_ticks(ax, "x")
    plain_log_ticks(ax, "y")
    return ax


def measured_roofline(points: pd.DataFrame, roofs: pd.DataFrame, *, ax: Axes) -> Axes:
    """Measured points under measured roofs: the slope is bandwidth, a solid line a type's matrix rate, a dashed one its rate for one vector.

    ``points`` and ``roofs`` as ``frames_run`` gives them. Round marks are dense, square ones MoE; filled is decode, hollow prefill.
    """
    if points.empty:
        ax.set(xlabel="no point at depth 0 to draw")
        return ax
    formats = list(dict.fromkeys(points["format"]))
    colours = dict(zip(formats, sns.color_palette("colorblind"), strict=False))
    reach = np.array([points["intensity"].min() / 2, points["intensity"].max() * 2])
    top = roofs.loc[roofs["kind"] == "matrix", "rate"].max() if (roofs["kind"] == "matrix").any() else points["flop_per_s"].max() * 2
    for bandwidth in roofs.loc[roofs["kind"] == "bandwidth", "rate"]:
        ax.plot([reach[0], top / bandwidth], [reach[0] * bandwidth / 1e9, top / 1e9], color="0.3", linewidth=1.5)
        place = (reach[0] * 1.15, reach[0] * 1.15 * bandwidth / 1e9)
        ax.annotate(f"{bandwidth / 1e9:.0f} GB/s", place, xytext=(12, -4), textcoords="offset points", fontsize=_SMALL, color="0.25")
    for row in roofs[roofs["kind"] != "bandwidth"].itertuples():
        # A format is told by its main type; Q4_K_M is mostly Q4_K.
        colour = next((c for name, c in colours.items() if name.startswith(row.tensor_type)), None)
        if colour is not None:
            style = "-" if row.kind == "matrix" else (0, (4, 2))
            ax.plot(reach, [row.rate / 1e9] * 2, color=colour, linestyle=style, linewidth=1.2, alpha=0.8)
    for row in points.itertuples():
        fill = colours[row.format] if row.phase == "decode" else "white"
        mark = "s" if row.kind == "MoE" else "o"
        ax.plot(row.intensity, row.flop_per_s / 1e9, mark, color=colours[row.format], markerfacecolor=fill, markersize=7, markeredgewidth=1.6)
    for name, colour in colours.items():
        ax.plot([], [], "o", color=colour, label=name)
    ax.plot([], [], "s", color="0.4", label="MoE (square)")
    ax.plot([], [], "o", color="0.4", markerfacecolor="white", label="prefill (hollow)")
    ax.plot([], [], "-", color="0.4", label="matrix product")
    ax.plot([], [], linestyle=(0, (4, 2)), color="0.4", label="one vector, in cache")
    ax.set(xscale="log", yscale="log", xlabel="arithmetic intensity (FLOP per byte of weights)", ylabel="GFLOP/s", xlim=tuple(reach))
    legend_below(ax)
    plain_log_ticks(ax, "x")
    plain_log_ticks(ax, "y")
    return ax


def experts_touched(frame: pd.DataFrame, *, ax: Axes) -> Axes:
    """Distinct experts of a layer over the batch: counted as points with their range, expected as a line."""
    rows = frame.dropna(subset=["counted"]).sort_values("n_seq")
    blue, orange = sns.color_palette("colorblind", 2)
    batches = np.geomspace(1, rows["n_seq"].max(), 60)
    first = rows.iloc[0]
    n_expert = first["n_expert"]
    missed = (1 - first["expected"] / n_expert) ** (1 / first["n_seq"])  # an expert, by one token
    ax.plot(batches, n_expert * (1 - missed**batches), color=orange, label="expected, if tokens choose evenly")
    ax.axhline(n_expert, color="0.4", linewidth=1, linestyle=(0, (4, 2)), label=f"all {n_expert:.0f} experts")
    spread = [rows["counted"] - rows["counted_low"], rows["counted_high"] - rows["counted"]]
    ax.errorbar(rows["n_seq"], rows["counted"], yerr=spread, fmt="o", color=blue, capsize=3, label="counted (mean, least and most)")
    ax.set(xscale="log", xlabel="sequences decoded side by side", ylabel="distinct experts per layer and step", ylim=(0, n_expert * 1.08))
    _counted_ticks(ax, rows["n_seq"])
    legend_below(ax)
    return ax


def measured_over_depth(frame: pd.DataFrame, *, ax: Axes) -> Axes:
    """Measured decode over depth as points with their range, the ceilings from the bandwidth of the same runs as lines."""
    for (name, part), colour, style in zip(frame.groupby(["kind", "format"], sort=False), sns.color_palette("colorblind"), STYLES, strict=False):
        rows = part.sort_values("depth")
        spread = [rows["tok_per_s"] - rows["low"], rows["high"] - rows["tok_per_s"]]
        label, mark = f"{name[0]} {name[1]}", "s" if name[0] == "MoE" else "o"
        ax.errorbar(rows["depth"], rows["tok_per_s"], yerr=spread, fmt=mark, color=colour, capsize=3, clip_on=False, label=f"{label}, measured")
        ax.plot(rows["depth"], rows["ceiling_tok_per_s"], color=colour, linestyle=style, label=f"{label}, ceiling")
    ax.set(xlabel="depth (tokens of context)", ylabel="decode (tok/s)", xlim=(0, None), ylim=(0, None))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    legend_below(ax)
    return ax


def batch_rates(frame: pd.DataFrame, *, ax: Axes) -> Axes:
    """Measured decode over the batch, all sequences together: points with their range, a line per file to guide the eye."""
    names = list(dict.fromkeys(zip(frame["kind"], frame["format"], strict=True)))
    for (kind, fmt), colour, style in zip(names, sns.color_palette("colorblind"), itertools.cycle(STYLES), strict=False):
        rows = frame[(frame["kind"] == kind) & (frame["format"] == fmt)].sort_values("n_seq")
        spread = [rows["tok_per_s"] - rows["low"], rows["high"] - rows["tok_per_s"]]
        mark = "s" if kind == "MoE" else "o"
        ax.errorbar(rows["n_seq"], rows["tok_per_s"], yerr=spread, fmt=mark, color=colour, capsize=3, label=f"{kind} {fmt}")
        ax.plot(rows["n_seq"], rows["tok_per_s"], color=colour, linestyle=style, linewidth=1, alpha=0.6)
    ax.set(xscale="log", yscale="log", xlabel="sequences decoded side by side", ylabel="decode, all sequences (tok/s)")
    _counted_ticks(ax, frame["n_seq"])
    legend_below(ax)
    plain_log_ticks(ax, "y")
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
            f"{ceiling:,.0f}" if ceiling >= 100 else f"{ceiling:,.1f}",
            (ceiling, position),
            xytext=(8, -3),
            textcoords="offset points",
            fontsize=_SMALL,
        )
    ax.set_yticks(y, [f"{m} {f}" for m, f in zip(rows["model"], rows["format"], strict=True)])
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    ax.set(xscale="log", xlabel="decode ceiling, one sequence, depth 0 (tok/s)")
    ax.set_xlim(rows["decode_ceiling_tok_per_s"].min() / 3, rows["decode_ceiling_tok_per_s"].max() * 3.5)
    legend_below(ax)
    plain_log_ticks(ax, "x")
    return ax


def over_depth(frame: pd.DataFrame, *, ax: Axes) -> Axes:
    """Decode ceilings over the depth of the context, a line per model; where a line bends down, the cache outweighs the weights."""
    styles = itertools.cycle(STYLES)
    colours = itertools.cycle(sns.color_palette("colorblind"))
    for (_, part), colour, style in zip(frame.groupby("name", sort=False), colours, styles, strict=False):
        ax.plot(part["depth"], part["ceiling"], color=colour, linestyle=style, label=part["label"].iloc[0])
        ax.plot(part["depth"].iloc[-1:], part["ceiling"].iloc[-1:], ".", color=colour)
    ax.set(xscale="log", yscale="log", xlabel="depth (tokens of context)", ylabel="decode ceiling (tok/s)")
    legend_below(ax)
    plain_log_ticks(ax, "x")
    plain_log_ticks(ax, "y")
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
    _counted_ticks(ax, frame["batch"])
    legend_below(ax)
    plain_log_ticks(ax, "y")
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
    legend_below(ax)
    return ax


def _counted_ticks(ax: Axes, counts: pd.Series) -> None:
    """A logarithmic axis with a plain number at each of what was counted."""
    ax.set_xticks(sorted(counts.unique()))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def plain_log_ticks(ax: Axes, axis: str, steps: tuple[float, ...] = ()) -> None:
    """Plain numbers at ``steps`` of each decade, or at 1, 2 and 5 where there are few decades; powers are for other readers."""
    target = ax.xaxis if axis == "x" else ax.yaxis
    low, high = ax.get_xlim() if axis == "x" else ax.get_ylim()
    target.set_major_locator(LogLocator(subs=steps or ((1, 2, 5) if high / low < 300 else (1,))))
    target.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    target.set_minor_formatter(NullFormatter())


def decode_by_format(frame: pd.DataFrame, *, ax: Axes) -> Axes:
    """For each format, most bytes first: measured decode with its range, and what reading alone and arithmetic alone would allow, in tok/s."""
    decode = frame[frame["phase"] == "decode"].sort_values("step_bytes", ascending=False).reset_index(drop=True)
    blue, orange, green = sns.color_palette("colorblind", 3)
    y = np.arange(len(decode))
    for name, colour, style, label in (
        ("bandwidth", blue, "-", "ceiling from bandwidth"),
        ("arithmetic", orange, (0, (2, 1)), "ceiling from arithmetic (weights in cache)"),
    ):
        ax.vlines(decode[name] / decode["step_bytes"], y - 0.32, y + 0.32, color=colour, linewidth=3, linestyle=style, label=label)
    spread = [decode["tok_per_s"] - decode["low"], decode["high"] - decode["tok_per_s"]]
    ax.errorbar(decode["tok_per_s"], y, xerr=spread, fmt="o", color=green, markersize=9, capsize=3, label="decode, measured")
    ax.set_yticks(y, [f"{row.format}\n{row.step_bytes / 1e6:.0f} MB per token" for row in decode.itertuples()])
    for position, wall in enumerate(decode["wall"]):
        words = wall.replace(" and ", " and\n")
        ax.annotate(words, (1.02, position), xycoords=("axes fraction", "data"), va="center", fontsize=_SMALL, color="0.25", annotation_clip=False)
    ax.annotate("what binds", (1.02, 1.02), xycoords="axes fraction", fontsize=_SMALL, fontweight="bold", color="0.25", annotation_clip=False)
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    ax.set(xlabel="decode (tok/s)", xlim=(0, None))
    legend_below(ax)
    return ax


def itl_strip(frame: pd.DataFrame, *, ax: Axes) -> Axes:
    """The time before every piece of streamed answers, by its place in the answer; per number of requests in flight a colour, a mark and a median."""
    colours, marks = itertools.cycle(sns.color_palette("colorblind")), itertools.cycle("os^Dv")
    whole, cut = frame[frame["whole"]], frame[~frame["whole"]]
    shown_ms = 1e3 * np.maximum(frame["itl_s"], 1e-5)  # the finest that a record keeps; pieces that came together lie on it
    for (level, part), colour, mark, style in zip(whole.groupby("concurrency"), colours, marks, itertools.cycle(STYLES), strict=False):
        ax.plot(part["piece"], shown_ms[part.index], mark, color=colour, markersize=4, alpha=0.4, markeredgewidth=0)
        middle = 1e3 * part["itl_s"].median()
        if middle > 0:
            ax.axhline(middle, color=colour, linestyle=style, linewidth=1.2, label=f"{level} in flight, median {middle:,.3g} ms")
    if len(cut):
        ax.plot(cut["piece"], shown_ms[cut.index], "x", color="0.4", markersize=5, label="answers cut short")
    ax.set(xlabel="piece of the answer", ylabel="time since the piece before (ms)", yscale="log", xlim=(0, None))
    legend_below(ax)
    plain_log_ticks(ax, "y")
    return ax


def rate_over_time(blocks: pd.DataFrame, slices: pd.DataFrame, *, ax: Axes) -> Axes:
    """Decode for minutes on end: every block a point, every slice of the run a line at its rate. Columns as ``frames_power`` gives them."""
    unit, name = _unit_of_time(blocks["at_s"].max())
    blue = sns.color_palette("colorblind")[0]
    ax.plot(blocks["at_s"] / unit, blocks["tok_per_s"], ".", color=blue, alpha=0.45, markersize=6, markeredgewidth=0, label="a block")
    start = slices["start_s"].iloc[0]
    for i, row in enumerate(slices.itertuples()):
        span = [(row.start_s - start) / unit, (row.end_s - start) / unit]
        ax.plot(span, [row.tok_per_s] * 2, color="0.15", linewidth=2, label="a slice of the run" if i == 0 else None)
    ax.set(xlabel=f"time ({name})", ylabel="decode (tok/s)", xlim=(0, None), ylim=(0, 1.08 * blocks["tok_per_s"].max()))
    legend_below(ax)
    return ax


def meters_over_time(moments: pd.DataFrame, *, ax: Axes) -> Axes:
    """One quantity that meters told beside a run, a line style per meter. Columns: ``quantity, meter, at_s, value``."""
    unit, name = _unit_of_time(moments["at_s"].max())
    looks = zip(sns.color_palette("colorblind"), STYLES * 2, strict=False)
    for (meter, part), (colour, style) in zip(moments.groupby("meter", sort=False), looks, strict=False):
        ax.plot(part["at_s"] / unit, part["value"], color=colour, linestyle=style, marker=".", markersize=3, label=meter)
    ax.set(xlabel=f"time ({name})", ylabel=moments["quantity"].iloc[0], xlim=(0, None))
    legend_below(ax)
    return ax


def _unit_of_time(seconds: float) -> tuple[float, str]:
    return (60.0, "min") if seconds >= 110 else (1.0, "s")


def parity(frame: pd.DataFrame, *, ax: Axes) -> Axes:
    """Ours over llama-bench's, a row per file and test: the median of pairs as a point, their quartiles as a bar, a band of 1 % around one.

    Ratios are drawn on a logarithmic axis: twice as fast is as far from one as half as fast.
    """
    rows = frame.reset_index(drop=True)
    y = np.arange(len(rows))
    blue, orange = sns.color_palette("colorblind", 2)
    off = (rows["ratio"] - 1).abs() > 0.01
    ax.axvspan(0.99, 1.01, color="0.88", label="within 1 %")
    ax.axvline(1, color="0.35", linewidth=1.5)
    spread = [rows["ratio"] - rows["ratio_low"], rows["ratio_high"] - rows["ratio"]]
    for mask, colour, mark, label in ((~off, blue, "o", "median of pairs, and quartiles"), (off, orange, "X", "median off by more")):
        if mask.any():
            errors = [part[mask] for part in spread]
            ax.errorbar(rows["ratio"][mask], y[mask], xerr=errors, fmt=mark, color=colour, markersize=7, capsize=3, label=label)
    ax.set_yticks(y, [f"{row.model.removeprefix('stand-in-')} {row.format}, {row.test}" for row in rows.itertuples()], fontsize=_SMALL)
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    reach = 1.1 * max(0.02, float(np.abs(np.log(rows[["ratio_low", "ratio_high"]].to_numpy())).max()))
    ax.set(xscale="log", xlim=(np.exp(-reach), np.exp(reach)), xlabel="nbutils over llama-bench (ratio)")
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    legend_below(ax)
    return ax
