"""Figures of one question: what a model takes of a machine and how fast it may be there, and the same for every machine.

They take what ``calculator`` answers, so that the page, a notebook and a command show the same.
"""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import seaborn as sns
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from nbutils import frames, places, registry
from nbutils.plots import legend_below, plain_log_ticks, table

__all__ = ["ask_calculator", "fit_view", "memory_bars", "places_compared", "places_table"]

_SMALL = 10
#: Letters that fit into a line beside the names of the bars.
_LINE = 68
#: Inches that a line of a legend or a row of places takes.
_ROW = 0.2
#: Letters of a machine's name beside its line; the table has all of it.
_NAME = 26
#: How many of the machines that lack memory are drawn, those that lack least.
_LACKING = 4
#: What a model takes: the figures that make a part, its colour of the palette and its hatch, as the calculator's page has them.
_TAKES = {
    "weights": (("weight_bytes",), 0, ""),
    "KV cache": (("kv_cache_bytes",), 1, ".."),
    "recurrent state": (("recurrent_state_bytes",), 2, "//"),
    "buffers": (("compute_buffer_bytes", "output_buffer_bytes"), 4, "\\\\"),
    "runtime": (("overhead_bytes",), 5, "--"),
}
#: What of a machine a program cannot have, in greys.
_KEEPS = {"system keeps": ("system_bytes", "0.7", "||"), "out of reach": ("unusable_bytes", "0.5", "xx")}

_COLUMNS = {
    "name": ("machine", ""),
    "memory_gb": ("memory (GB)", "{:g}"),
    "verdict": ("verdict", ""),
    "headroom_gb": ("left (GB)", "{:,.1f}"),
    "max_ctx": ("largest context", "{:,.0f}"),
    "ceiling_tok_per_s": ("decode ceiling (tok/s)", "{:,.1f}"),
    "expected_tok_per_s": ("expected (tok/s)", "{:,.1f}"),
    "range": ("90 % range", "{}"),
    "prompt_s": ("prompt (s)", "{:,.0f}"),
    "price_usd": ("price (USD)", "{:,.0f}"),
    "usd_per_million_tokens": ("USD per million tokens", "{:,.2f}"),
}


def memory_bars(answer: Mapping[str, Any], *, ax: Axes) -> Axes:
    """What a model takes above what the machine has, and a line where a program's share of it ends. Fields as ``frames.fit_row`` names them."""
    _draw_memory(answer, ax)
    legend_below(ax)
    return ax


def fit_view(answer: Mapping[str, Any], *, ax: Axes) -> Axes:
    """The verdict over both sides of the memory; below it decode and the time for a prompt: bounds as lines, expected values as points in a range.

    ``answer`` as ``calculator.answer`` gives it. ``ax`` becomes the upper part of a figure that is its alone and gets the height it needs.
    """
    figure = _figure(ax)
    _draw_memory(answer, ax)
    handles, labels = ax.get_legend_handles_labels()
    inches = (0.8, _ROW * math.ceil(len(labels) / 2), 0.35, 0.35)
    figure.set_figheight(sum(inches) + 2.6)
    grid = figure.add_gridspec(len(inches), 1, height_ratios=inches)
    ax.set_subplotspec(grid[0])
    names, decode, prompt = (figure.add_subplot(grid[row]) for row in (1, 2, 3))
    figure.suptitle(_verdict(answer), x=0.01, ha="left", fontsize=11, fontweight="bold")
    ax.set_title(_wrapped(_question(answer)), loc="left", fontsize=_SMALL)
    names.set_axis_off()
    names.legend(handles, labels, loc="center", ncols=2)
    _draw_decode(answer, decode)
    _draw_prompt(answer, prompt)
    _name_marks(prompt, expected=answer["expected_tok_per_s"] is not None or answer["prompt"]["expected_s"] is not None)
    legend_below(prompt)
    return ax


def places_compared(frame: pd.DataFrame, here: str = "", *, ax: Axes) -> Axes:
    """The same question for every place: a line ends at the decode ceiling, a point is the expected rate in its range; what lacks memory says so.

    ``frame`` of what ``calculator.compare`` gives, in its order. Configurations of a device that are equally fast share a row; of those that
    lack memory only the nearest are drawn. ``here`` is the place to point at. The figure gets the height it needs.
    """
    rows, n_left_out = _rows_of_places(frame, here)
    _figure(ax).set_figheight(0.8 + _ROW * (len(rows) + 1))
    fits = rows[rows["verdict"] != "does_not_fit"]
    low = 0.6 * float(fits[["ceiling_tok_per_s", "low_tok_per_s"]].min().min()) if len(fits) else 1.0
    top = float(fits["ceiling_tok_per_s"].max()) if len(fits) else 10.0
    blue, _, green = sns.color_palette("colorblind", 3)
    ax.hlines(fits.index, low, fits["ceiling_tok_per_s"], color="0.75", linewidth=1.2, zorder=1)
    ax.hlines(fits.index, fits["low_tok_per_s"], fits["high_tok_per_s"], color=green, linewidth=5, alpha=0.45)
    ax.plot(fits["expected_tok_per_s"], fits.index, "D", color=green, markersize=4)
    ax.plot(fits["ceiling_tok_per_s"], fits.index, "|", color=blue, markersize=10, markeredgewidth=2.5)
    ends = fits["ceiling_tok_per_s"].reindex(rows.index, fill_value=low)
    for y, end, words in zip(rows.index, ends, rows["words"], strict=True):
        ax.annotate(words, (end, y), xytext=(7, -3.5), textcoords="offset points", fontsize=_SMALL, color="0.25")
    labels = [*rows["label"], *([f"and {n_left_out} more lack memory"] if n_left_out else [])]
    ax.set_yticks(range(len(labels)), labels, fontsize=_SMALL)
    for tick, asked in zip(ax.get_yticklabels(), rows["here"], strict=False):
        tick.set_fontweight("bold" if asked else "normal")
    ax.grid(visible=False, axis="y")
    ax.set(xscale="log", xlim=(low, top * (top / low) ** 0.35), ylim=(len(labels) - 0.4, -0.6), xlabel="decode (tok/s)")
    plain_log_ticks(ax, "x")
    _name_marks(ax, expected=bool(fits["expected_tok_per_s"].notna().any()))
    legend_below(ax)
    return ax


def places_table(frame: pd.DataFrame) -> Styler:
    """The rows of ``calculator.compare`` to read: memory in GB, rates in tok/s, and what is known of money."""
    ends = zip(frame["low_tok_per_s"], frame["high_tok_per_s"], strict=True)
    ranges = [None if pd.isna(low) else f"{_short(low)} to {_short(high)}" for low, high in ends]
    shown = frame.assign(name=_names(frame), headroom_gb=frame["headroom_bytes"] / 1e9, verdict=frame["verdict"].str.replace("_", " "), range=ranges)
    headings = {name: heading for name, (heading, _) in _COLUMNS.items()}
    return table(shown, headings, {name: pattern for name, (_, pattern) in _COLUMNS.items() if pattern})


def ask_calculator(link: str, words: str = "Ask the calculator about this machine", *, folder: str = "../") -> HTML:
    """A link to the calculator with a question in it, ``calculator.link`` of it; ``folder`` is where the calculator lies, seen from the page."""
    address = html.escape(f"{folder}calculator.html{link}")
    return HTML(f'<p><a class="reference internal" href="{address}">{html.escape(words)}</a></p>')  # type: ignore[no-untyped-call]


# ── parts ─────────────────────────────────────────────────────────────────────────────────────────


def _figure(ax: Axes) -> Figure:
    figure = ax.get_figure(root=True)
    assert figure is not None, "axes of no figure"
    return figure


def _draw_memory(answer: Mapping[str, Any], ax: Axes) -> None:
    available = answer["available_bytes"]
    end = 0.0
    palette = sns.color_palette("colorblind")
    for name, (fields, colour, hatch) in _TAKES.items():
        end = _stack(ax, 0, end, sum(answer[field] for field in fields), name, palette[colour], hatch)
    edge = _stack(ax, 1, 0.0, available - answer["elsewhere_bytes"], "", "0.9", "")
    edge = _stack(ax, 1, edge, answer["elsewhere_bytes"], "lies elsewhere", "0.8", "..")
    for name, (field, grey, hatch) in _KEEPS.items():
        edge = _stack(ax, 1, edge, answer[field], name, grey, hatch)
    ax.axvline(available / 1e9, color="0.15", linewidth=2, label=f"usable: {_short(available / 1e9)} GB")
    ax.set_yticks([0, 1], ["takes", "has"])
    ax.set(xlim=(0, 1.06 * max(end, edge)), ylim=(1.55, -0.55))
    ax.set_xlabel("memory (GB)", fontsize=_SMALL)
    ax.xaxis.set_major_formatter("{x:,g}")
    ax.grid(visible=False, axis="y")


def _stack(ax: Axes, y: int, left: float, n_bytes: float, name: str, colour: Any, hatch: str) -> float:
    """One part of a bar; returns where it ends, in GB. What is nothing takes no place, not even in the legend."""
    if n_bytes <= 0:
        return left
    label = f"{name}: {_short(n_bytes / 1e9)} GB" if name else None
    ax.barh(y, n_bytes / 1e9, left=left, height=0.8, color=colour, hatch=hatch, edgecolor="white", linewidth=0, label=label)
    return left + n_bytes / 1e9


def _draw_decode(answer: Mapping[str, Any], ax: Axes) -> None:
    sequences = "" if answer["batch"] == 1 else f", {answer['batch']:,} sequences together"
    values = [answer[f"{name}_tok_per_s"] for name in ("ceiling", "expected", "low", "high")]
    ax.set_title(_words(f"Decode at depth {answer['depth']:,}{sequences}", "at most", values, _short), loc="left", fontsize=_SMALL)
    _bound_and_range(values, ax)
    ax.set_xlabel(f"decode{_if_it_fitted(answer)} (tok/s)", fontsize=_SMALL)


def _draw_prompt(answer: Mapping[str, Any], ax: Axes) -> None:
    values = [answer["prompt"][f"{name}_s"] for name in ("ceiling", "expected", "low", "high")]
    unit_s, unit = _unit_of_time(max((v for v in values if v is not None), default=0.0))
    shown = [None if v is None else v / unit_s for v in values]
    ax.set_title(_words(f"A prompt of {answer['prompt']['n_tokens']:,} tokens", "at least", shown, _plain), loc="left", fontsize=_SMALL)
    _bound_and_range(shown, ax)
    ax.set_xlabel(f"time to read it{_if_it_fitted(answer)} ({unit})", fontsize=_SMALL)


def _bound_and_range(values: list[float | None], ax: Axes) -> None:
    """A bound as a line, an expected value as a point, its range as a bar; ``values`` are bound, expected, low and high."""
    bound, expected, low, high = values
    if bound is None and expected is None:
        ax.set_axis_off()
    blue, _, green = sns.color_palette("colorblind", 3)
    if expected is not None and low is not None and high is not None:
        ax.plot([low, high], [0, 0], color=green, linewidth=9, alpha=0.45, solid_capstyle="butt")
        ax.plot(expected, 0, "D", color=green, markersize=6)
    if bound is not None:
        ax.axvline(bound, color=blue, linewidth=3)
    ax.set(yticks=[], ylim=(-1, 1), xlim=(0, 1.06 * max((v for v in (bound, expected, high) if v is not None), default=1.0)))
    ax.xaxis.set_major_formatter("{x:,g}")


def _name_marks(ax: Axes, *, expected: bool) -> None:
    blue, _, green = sns.color_palette("colorblind", 3)
    ax.plot([], [], "|", color=blue, markersize=12, markeredgewidth=3, linestyle="none", label="bound")
    if expected:
        ax.plot([], [], "D", color=green, linestyle="none", label="expected")
        ax.plot([], [], color=green, linewidth=6, alpha=0.45, label="90 % range")


def _rows_of_places(frame: pd.DataFrame, here: str) -> tuple[pd.DataFrame, int]:
    """A row per device and speed in the frame's order, and how many rows are left out."""
    numbers = ["ceiling_tok_per_s", "expected_tok_per_s", "low_tok_per_s", "high_tok_per_s"]
    said = frame.assign(name=_names(frame), **{name: frame[name].astype(float) for name in numbers})
    rows, n_lacking, n_left_out = [], 0, 0
    for (name, ceiling, verdict), part in said.groupby(["name", "ceiling_tok_per_s", "verdict"], sort=False):
        row = part.iloc[0]
        is_here = here in set(part["place"])
        if verdict == "does_not_fit":
            words = f"lacks {_short(-row['headroom_bytes'] / 1e9)} GB"
            n_lacking += 1
            if n_lacking > _LACKING and not is_here:
                n_left_out += 1
                continue
        else:
            rate = f"at most {_short(ceiling)}" if pd.isna(row["expected_tok_per_s"]) else _short(row["expected_tok_per_s"])
            words = f"{rate}, tight" if verdict == "tight" else rate
        # The smaller sizes lack more than the one that is named.
        held = part if verdict != "does_not_fit" else part.iloc[:1]
        least, most = held["memory_gb"].min(), held["memory_gb"].max()
        sizes = f"{least:g} GB" if least == most else f"{least:g} to {most:g} GB"
        short = name if len(name) <= _NAME else f"{name[: _NAME - 1].rstrip()}…"
        rows.append({**row.to_dict(), "label": f"{short}, {sizes}", "words": words, "here": is_here})
    return pd.DataFrame(rows), n_left_out


def _names(frame: pd.DataFrame) -> list[str]:
    return [
        "own machine" if device == places.OWN else frames.short_name(registry.load_device(device), place.partition("/")[2])
        for device, place in zip(frame["device"], frame["place"], strict=True)
    ]


# ── words ─────────────────────────────────────────────────────────────────────────────────────────


def _verdict(answer: Mapping[str, Any]) -> str:
    gb, most = answer["headroom_bytes"] / 1e9, answer["max_ctx"]
    if answer["verdict"] == "does_not_fit":
        return f"Does not fit: {_short(-gb)} GB too many" + (f"; {most:,} tokens would fit" if most else "")
    word = "Tight" if answer["verdict"] == "tight" else "Fits"
    return f"{word}: {_short(gb)} GB left" + (f"; up to {most:,} tokens of context" if most else "")


def _question(answer: Mapping[str, Any]) -> str:
    sequences = "" if answer["batch"] == 1 else f"{answer['batch']:,} times "
    where = "this machine" if answer["device"] == places.THIS else " ".join(filter(None, (answer["device"], answer["configuration"])))
    return f"{answer['model']} {answer['format']}, {sequences}{answer['n_ctx']:,} tokens in {answer['kv_type']}, on {where}"


def _if_it_fitted(answer: Mapping[str, Any]) -> str:
    return ", if it did fit" if answer["verdict"] == "does_not_fit" else ""


def _words(what: str, bounded: str, values: list[float | None], shown: Callable[[float], str]) -> str:
    bound, expected, low, high = values
    said = []
    if expected is not None and low is not None and high is not None:
        said.append(f"expected {shown(expected)} ({shown(low)} to {shown(high)})")
    if bound is not None:
        said.append(f"{bounded} {shown(bound)}")
    return _wrapped(f"{what}: {', '.join(said) or 'nothing is known'}")


def _wrapped(words: str) -> str:
    return textwrap.fill(words, _LINE, break_on_hyphens=False)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 99.95 else f"{value:,.1f}" if value >= 0.95 else f"{value:.2g}"


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value >= 9.95 else _short(value)


def _unit_of_time(seconds: float) -> tuple[float, str]:
    return (3600.0, "h") if seconds >= 7200 else (60.0, "min") if seconds >= 120 else (1.0, "s")
