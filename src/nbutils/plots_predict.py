"""Figures of predictions: what was expected beside what was measured, and how far off each formula is."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from nbutils.frames_published import FAMILIES
from nbutils.plots import legend_below, plain_log_ticks

__all__ = ["errors_by_formula", "predicted_and_measured"]

_MARKS = {"dense": "o", "MoE": "s"}


def predicted_and_measured(frame: pd.DataFrame, *, ax: Axes) -> Axes:
    """Measured over expected decode, both axes logarithmic, with the 90 % range of each as a bar: on the line a prediction is right.

    ``frame`` as ``frames_predict.predicted_frame`` gives it; a colour per family, squares for mixtures of experts.
    """
    ends = np.array([frame["measured_tok_per_s"].min() / 1.6, frame["measured_tok_per_s"].max() * 1.6])
    ax.plot(ends, ends, color="0.2", linewidth=1.5)
    for factor in (0.8, 1.25):
        ax.plot(ends, ends * factor, color="0.6", linewidth=1, linestyle=(0, (4, 3)))
    names = frame["family"].value_counts().index
    edge: dict[str, Any] = {"markersize": 5.5, "markeredgewidth": 0.5, "markeredgecolor": "white"}
    for family, colour in zip(names, itertools.cycle(sns.color_palette("colorblind")), strict=False):
        rows = frame[frame["family"] == family]
        ax.hlines(rows["measured_tok_per_s"], rows["low_tok_per_s"], rows["high_tok_per_s"], color=colour, alpha=0.18, linewidth=2)
        for kind, mark in _MARKS.items():
            part = rows[rows["kind"] == kind]
            ax.plot(part["expected_tok_per_s"], part["measured_tok_per_s"], mark, color=colour, alpha=0.85, **edge)
        ax.plot([], [], "o", color=colour, label=FAMILIES[family])
    ax.plot([], [], "s", color="0.5", label="MoE (square)")
    ax.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="decode, expected (tok/s)", ylabel="decode, measured (tok/s)")
    for axis in ("x", "y"):
        plain_log_ticks(ax, axis, (1,))
    ax.set_aspect("equal")
    legend_below(ax)
    return ax


def errors_by_formula(frame: pd.DataFrame, *, ax: Axes) -> Axes:
    """Expected over measured by the step's bytes: bandwidth over bytes as crosses, the model as points; 1 is right.

    ``frame`` as ``frames_predict.predicted_frame`` gives it.
    """
    measured, colours = frame["measured_tok_per_s"], sns.color_palette("colorblind")
    ax.plot(frame["step_gb"], frame["naive_tok_per_s"] / measured, "x", color=colours[3], markersize=5, alpha=0.8, label="bandwidth over bytes")
    ax.plot(frame["step_gb"], frame["expected_tok_per_s"] / measured, "o", color=colours[0], markersize=4.5, alpha=0.8, label="this model")
    ax.axhline(1, color="0.2", linewidth=1.5)
    ax.set(xscale="log", yscale="log", xlabel="bytes read per token (GB)", ylabel="expected over measured")
    plain_log_ticks(ax, "x", (1, 3))
    plain_log_ticks(ax, "y", (0.5, 0.7, 1, 1.5, 2, 3, 5))
    legend_below(ax)
    return ax
