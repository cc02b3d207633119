"""Rows and tables on a terminal, and JSON beside every one."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

__all__ = ["AsJson", "cell", "err", "frame_table", "out", "print_json", "rows_of", "rows_table"]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
#: Columns whose words are not to be broken; headings of numbers may be.
_WHOLE = {"device", "id", "format", "verdict", "architecture"}
out, err = Console(), Console(stderr=True)
if not out.is_terminal:
    out.width = 120  # a log has no width of its own; 80 columns would fold every table


def cell(value: Any, pattern: str) -> str:
    """One value by a format; unknown shows as a dash, and nothing in it is markup."""
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    if missing:
        return "–"
    # What a terminal would obey rather than show, from a record of somebody else's.
    return escape("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in pattern.format(value)))


def rows_of(frame: Any) -> list[dict[str, Any]]:
    """A frame as JSON-able rows; unknown is null."""
    rows: list[dict[str, Any]] = json.loads(frame.to_json(orient="records", date_format="iso"))
    return rows


def print_json(value: Any) -> None:
    """JSON on standard output, and nothing else."""
    sys.stdout.write(json.dumps(value, indent=1, allow_nan=False) + "\n")


def rows_table(title: str, rows: Iterable[Mapping[str, Any]], columns: Mapping[str, tuple[str, str]], caption: str = "") -> Table:
    """A table of rows; ``columns`` maps a key to its heading and its format. Numbers stand to the right."""
    table = Table(title=title, caption=caption or None)
    for heading, pattern in columns.values():
        table.add_column(heading, justify="left" if pattern == "{}" else "right", overflow="fold", no_wrap=heading in _WHOLE)
    for row in rows:
        table.add_row(*(cell(row[name], pattern) for name, (_, pattern) in columns.items()))
    return table


def frame_table(title: str, frame: Any, columns: Mapping[str, str]) -> Table:
    """A table of a frame whose column names are its headings."""
    return rows_table(title, frame.to_dict("records"), {name: (name, pattern) for name, pattern in columns.items()})
