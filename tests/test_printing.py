"""What reaches a terminal, a log or another program."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from nbutils import printing


def drawn(table: Any, width: int = 100) -> str:
    console = Console(width=width)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


@pytest.mark.parametrize(
    ("value", "pattern", "shown"),
    [
        (None, "{:,.2f}", "–"),
        (float("nan"), "{:,.2f}", "–"),
        (0, "{:,}", "0"),
        (0.0, "{:,.1f}", "0.0"),
        (1234.5, "{:,.2f}", "1,234.50"),
        ("", "{}", ""),
        ("a [bold]b[/bold]", "{}", r"a \[bold]b\[/bold]"),
    ],
)
def test_a_cell_shows_its_value_and_an_unknown_as_a_dash(value: Any, pattern: str, shown: str) -> None:
    assert printing.cell(value, pattern) == shown


def test_a_table_shows_names_as_they_are_and_numbers_to_the_right() -> None:
    rows = [{"name": "[red]x[/red]", "n": 1}, {"name": "y", "n": 1000}, {"name": "z", "n": None}]
    text = drawn(printing.rows_table("A title", rows, {"name": ("name", "{}"), "n": ("count", "{:,}")}, caption="A caption"))
    assert "A title" in text
    assert "A caption" in text
    lines = [line for line in text.splitlines() if line.rstrip().endswith("│")]
    assert len(lines) == 3
    assert "[red]x[/red]" in lines[0], "a name is no markup"
    assert [line.rstrip(" │").rsplit(" ", 1)[-1] for line in lines] == ["1", "1,000", "–"]
    assert len({len(line.rstrip(" │")) for line in lines}) == 1, "numbers end in one column"


def test_in_a_narrow_table_a_name_stays_whole_and_a_heading_of_numbers_is_broken() -> None:
    rows = [{"id": "a-device-with-a-name", "rate": 3.5, "words": "some words that may be broken anywhere"}]
    columns = {"id": ("device", "{}"), "rate": ("decode ceiling (tok/s)", "{:g}"), "words": ("note", "{}")}
    text = drawn(printing.rows_table("T", rows, columns), width=50)
    assert "a-device-with-a-name" in text, "an id that is broken cannot be copied"
    assert "decode ceiling (tok/s)" not in text
    assert "(tok/s)" in text
    assert "some words that may be broken anywhere" not in text
    assert max(map(len, text.splitlines())) <= 50


def test_a_row_without_a_column_that_is_shown_is_a_mistake_and_more_columns_are_none() -> None:
    assert "7" not in drawn(printing.rows_table("T", [{"a": 1, "b": 7}], {"a": ("a", "{}")}))
    with pytest.raises(KeyError):
        printing.rows_table("T", [{"a": 1}], {"b": ("b", "{}")})


def test_a_frame_has_its_columns_for_headings() -> None:
    text = drawn(printing.frame_table("T", pd.DataFrame({"rate": [1.5, None], "left out": [8, 9]}), {"rate": "{:.2f}"}))
    assert "rate" in text
    assert "1.50" in text
    assert "–" in text
    assert "left out" not in text


def test_rows_of_a_frame_are_what_json_can_say() -> None:
    frame = pd.DataFrame({"n": [1, None], "when": pd.to_datetime(["2026-11-20", None]), "x": ["a", None]})
    rows = printing.rows_of(frame)
    assert rows[1] == {"n": None, "when": None, "x": None}
    assert rows[0]["when"].startswith("2026-11-20")
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


def test_json_is_alone_on_standard_output_and_never_says_nan(capsys: pytest.CaptureFixture[str]) -> None:
    printing.print_json([{"a": None, "b": "–"}])
    captured = capsys.readouterr()
    assert json.loads(captured.out) == [{"a": None, "b": "–"}]
    assert captured.err == ""
    with pytest.raises(ValueError, match="JSON"):
        printing.print_json({"a": float("nan")})
