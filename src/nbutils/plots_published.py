"""Figures of what others measured: every rate under its ceiling, and why small models stay far below."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from nbutils.frames_published import FixedCost, fixed_cost_rows, lawful
from nbutils.plots import STYLES, legend_below, plain_log_ticks

__all__ = ["ceiling_and_measured", "share_over_bytes"]

_MARKS = {"dense": "o", "MoE": "s"}
_SMALL = 10


def ceiling_and_measured(frame: pd.DataFrame, own: pd.DataFrame | None = None, *, ax: Axes) -> Axes:
    """Measured decode over its ceiling, both axes logarithmic: on the line is the wall, a colour per family, square for a mixture of experts.

    Rates above the wall are crosses; ``own`` rows, as ``frames_published.own_frame`` gives them, are stars.
    """
    rows, above = lawful(frame), frame[frame["above_because"] != ""]
    low, high = rows["tok_per_s"].min() / 2, rows["ceiling_tok_per_s"].max() * 1.6
    wall = np.array([low, high])
    ax.fill_between(wall, wall, high, color="0.93", zorder=0)
    ax.plot(wall, wall, color="0.2", linewidth=2)
    along: dict[str, Any] = {"rotation": 45, "rotation_mode": "anchor", "textcoords": "offset points", "fontsize": _SMALL, "color": "0.3"}
    ax.annotate("the wall", (high / 4, high / 4), xytext=(-6, 6), **along)
    for part, words in ((0.5, "half"), (0.25, "a quarter")):
        ax.plot(wall, wall * part, color="0.6", linewidth=1, linestyle=(0, (4, 3)))
        ax.annotate(words, (1.5 * low / part, 1.5 * low), xytext=(5, -9), **along)
    names = rows["family_name"].value_counts().index
    colours = dict(zip(names, itertools.cycle(sns.color_palette("colorblind")), strict=False))
    edge: dict[str, Any] = {"markersize": 6, "markeredgewidth": 0.5, "markeredgecolor": "white"}
    for name, colour in colours.items():
        for kind, mark in _MARKS.items():
            part = rows[(rows["family_name"] == name) & (rows["kind"] == kind)]
            ax.plot(part["ceiling_tok_per_s"], part["tok_per_s"], mark, color=colour, alpha=0.8, **edge)
        ax.plot([], [], "o", color=colour, label=name)
    ax.plot([], [], "s", color="0.5", label="MoE (square)")
    if own is not None and len(own):
        ax.plot(own["ceiling_tok_per_s"], own["tok_per_s"], "*", color="0.1", label="own machine", **edge | {"markersize": 11})
    if len(above):
        ax.plot(above["ceiling_tok_per_s"], above["tok_per_s"], "X", color="0.1", label="not plain decode", **edge | {"markersize": 9})
    ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), xlabel="decode ceiling (tok/s)", ylabel="decode, measured (tok/s)")
    for axis in ("x", "y"):
        plain_log_ticks(ax, axis, (1,))
    ax.set_aspect("equal")
    legend_below(ax)
    return ax


def share_over_bytes(frame: pd.DataFrame, costs: Iterable[FixedCost], *, ax: Axes) -> Axes:
    """Share of the ceiling over bytes read per token, dense models at short context: measured as points, and what two constants make of it as lines.

    A line takes as many layers as a model of that size has by trend.
    """
    for cost, colour, style, mark in zip(costs, sns.color_palette("colorblind"), itertools.cycle(STYLES), itertools.cycle("oD^vP"), strict=False):
        part = fixed_cost_rows(frame, cost.device, cost.engine)
        size, layers = part["step_gb"].to_numpy(float), part["n_layer"].to_numpy(float)
        ax.plot(size, part["share"], mark, color=colour, markersize=6, alpha=0.85, label=f"{cost.name}, {cost.engine}")
        reach = np.geomspace(size.min(), size.max(), 60)
        trend = np.poly1d(np.polyfit(np.log(size), np.log(layers), 1))
        best_s = reach * 1e9 / cost.bandwidth_bytes_per_s
        cost_s = [cost.seconds(gb * 1e9, float(np.exp(trend(np.log(gb))))) for gb in reach]
        ax.plot(reach, best_s / np.array(cost_s), color=colour, linestyle=style, linewidth=1.5)
    ax.axhline(1, color="0.2", linewidth=2)
    ax.set(xscale="log", ylim=(0, 1.06), xlabel="bytes read per token (GB)", ylabel="share of the ceiling reached")
    plain_log_ticks(ax, "x", (1, 3))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
    legend_below(ax)
    return ax
