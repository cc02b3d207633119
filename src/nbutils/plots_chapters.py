"""Figures of the argument chapters, in the style of ``plots``: bounds as lines, units on axes, nothing told by colour alone."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from nbutils.plots import STYLES, legend_below, plain_log_ticks

__all__ = ["formats_over_batch", "memory_over_context", "stored_against_read", "two_walls"]


def two_walls(frame: pd.DataFrame, *, ax: Axes) -> Axes:
    """How long reading alone and arithmetic alone take on each device, for one token and for a prompt; the longer one binds and is named."""
    blue, orange = sns.color_palette("colorblind", 2)
    devices, whats = list(dict.fromkeys(frame["device"])), list(dict.fromkeys(frame["what"]))
    step = len(devices) + 1.4
    y = np.array([whats.index(row.what) * step + devices.index(row.device) for row in frame.itertuples()])
    read, compute = frame["read_s"].to_numpy(), frame["compute_s"].to_numpy()
    ax.hlines(y, np.minimum(read, compute), np.maximum(read, compute), color="0.75", linewidth=2, zorder=1)
    ax.vlines(read, y - 0.34, y + 0.34, color=blue, linewidth=4, label="reading the weights")
    ax.vlines(compute, y - 0.34, y + 0.34, color=orange, linewidth=4, linestyle=(0, (1.2, 0.6)), label="doing the arithmetic")
    for place, a, b in zip(y, read, compute, strict=True):
        words = f"{max(a, b) / min(a, b):,.0f} × longer"
        ax.annotate(words, (max(a, b), place), xytext=(7, -3.5), textcoords="offset points", fontsize=10, color="0.25")
    for i, what in enumerate(whats):
        ax.annotate(
            what, (0, i * step - 1.0), xycoords=("axes fraction", "data"), xytext=(4, -3), textcoords="offset points", fontsize=11, fontweight="bold"
        )
    ax.set_yticks(y, frame["device"])
    ax.set(xscale="log", xlabel="time that it takes at least", ylim=(y.max() + 0.8, -1.7))
    ax.set_xlim(min(read.min(), compute.min()) / 1.6, max(read.max(), compute.max()) * 40)
    ax.grid(visible=False, axis="y")
    ax.xaxis.set_major_locator(LogLocator(base=100))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda s, _: f"{s:g} s" if s > 0.05 else f"{1e3 * s:g} ms"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    legend_below(ax)
    return ax


def memory_over_context(frame: pd.DataFrame, rooms: Mapping[str, float], *, ax: Axes) -> Axes:
    """Memory that a model takes over the context it is given, a line per model, against what machines leave for it, in bytes by name."""
    colours, styles = itertools.cycle(sns.color_palette("colorblind")), itertools.cycle(STYLES)
    for (_, part), colour, style in zip(frame.groupby("name", sort=False), colours, styles, strict=False):
        ax.plot(part["n_ctx"], part["total_bytes"] / 1e9, color=colour, linestyle=style, linewidth=2, label=part["label"].iloc[0])
        ax.plot(part["n_ctx"].iloc[-1:], part["total_bytes"].iloc[-1:] / 1e9, "o", color=colour, markersize=5)
    for name, n_bytes in rooms.items():
        ax.axhline(n_bytes / 1e9, color="0.35", linewidth=1)
        ax.annotate(name, (frame["n_ctx"].min(), n_bytes / 1e9), xytext=(0, 3), textcoords="offset points", fontsize=10, color="0.25")
    contexts = [n for n in (1024, 4096, 16384, 65536, 262144, 1048576) if n <= frame["n_ctx"].max()]
    ax.set(xscale="log", yscale="log", xlabel="context (tokens)", ylabel="memory (GB)")
    ax.xaxis.set_major_locator(FixedLocator(contexts))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n / 1048576:g} M" if n >= 1048576 else f"{n / 1024:g} K"))
    plain_log_ticks(ax, "y", (1, 2, 5))
    legend_below(ax)
    return ax


def stored_against_read(frame: pd.DataFrame, ceilings_gb_per_s: float, *, ax: Axes) -> Axes:
    """GB read per token over GB stored, a point per model; on the right, the decode ceiling that ``ceilings_gb_per_s`` of bandwidth gives."""

    def inverse(value: Any) -> Any:
        return ceilings_gb_per_s / np.maximum(value, 1e-12)

    blue, orange = sns.color_palette("colorblind", 2)
    reach = np.array([frame["stored_gb"].min() / 6, frame["stored_gb"].max() * 4])
    ax.plot(reach, reach, color="0.35", linewidth=1.5)
    for kind, mark, colour in (("dense", "o", blue), ("MoE", "s", orange)):
        part = frame[frame["kind"] == kind]
        ax.plot(part["stored_gb"], part["read_gb"], mark, color=colour, markersize=7, label={"MoE": "mixture of experts"}.get(kind, kind))
    for row in frame[frame["kind"] == "dense"].itertuples():
        ax.annotate(row.label, (row.stored_gb, row.read_gb), xytext=(-8, -3), textcoords="offset points", ha="right", fontsize=10)
    experts = frame[frame["kind"] == "MoE"].sort_values("stored_gb")
    for i, row in enumerate(experts.itertuples()):
        below = i % 2 and i < len(experts) - 1
        place = (row.stored_gb, row.read_gb)
        ax.annotate(row.label, place, xytext=(0, -16 if below else 8), textcoords="offset points", ha="center", fontsize=10)
    slope: dict[str, Any] = {"rotation": 45, "rotation_mode": "anchor", "transform_rotates_text": True}
    ax.text(62, 57, "all of it is read", fontsize=10, color="0.25", ha="left", va="top", **slope)
    ax.set(xscale="log", yscale="log", xlabel="stored (GB): the memory to buy", ylabel="read per token (GB): the time to wait")
    ax.set(xlim=(reach[0], reach[1]), ylim=(frame["read_gb"].min() / 1.8, frame["read_gb"].max() * 1.8))
    right = ax.secondary_yaxis("right", functions=(inverse, inverse))
    right.set_ylabel(f"decode ceiling at {ceilings_gb_per_s:.0f} GB/s (tok/s)")
    right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    right.yaxis.set_minor_formatter(NullFormatter())
    plain_log_ticks(ax, "x", (1,))
    plain_log_ticks(ax, "y", (1, 2, 5))
    legend_below(ax)
    return ax


def formats_over_batch(frame: pd.DataFrame, *, ax: Axes) -> Axes:
    """Decode ceilings of one model over the batch, a line per format; a dot where arithmetic takes over from bandwidth."""
    colours, styles = itertools.cycle(sns.color_palette("colorblind")), itertools.cycle(STYLES)
    for (label, part), colour, style in zip(frame.groupby("label", sort=False), colours, styles, strict=False):
        ax.plot(part["batch"], part["total"], color=colour, linestyle=style, linewidth=2, label=label)
        turned = part[part["binding"] == "compute"]
        if len(turned):
            ax.plot(turned["batch"].iloc[:1], turned["total"].iloc[:1], "o", color=colour, markersize=7)
    ax.plot([], [], "o", color="0.4", label="from here on arithmetic binds")
    ax.set(xscale="log", yscale="log", xlabel="batch (sequences)", ylabel="decode ceiling, all sequences (tok/s)")
    ax.xaxis.set_major_locator(FixedLocator([n for n in (1, 4, 16, 64, 256, 1024) if n <= frame["batch"].max()]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    plain_log_ticks(ax, "y", (1,))
    legend_below(ax)
    return ax
