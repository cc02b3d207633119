"""Cells run once, appear whole, and fail beside their output."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest

from nbutils.errors import UnknownParameter, UsageError
from nbutils.sweep import Cell, CellFailed, Ledger, digest, run_cell


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A notebook with one parameter, which fails when that is negative."""
    code = nbformat.v4.new_code_cell
    made = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell("# Any subject\n\nA sentence."),
            code("n: int = 1  # how many", metadata={"tags": ["parameters", "remove-input"]}),
            code("from nbutils.errors import EngineError\nif n < 0:\n    raise EngineError(f'{n} is less than nothing')"),
            code("print('n is', n)"),
        ],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    )
    nbformat.write(made, tmp_path / "small.ipynb")
    return tmp_path / "small.ipynb"


def listing(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# ── keys ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_key_changes_with_everything_the_result_depends_on(small: Path, tmp_path: Path) -> None:
    cell = Cell(notebook=small, output=tmp_path / "out.ipynb", parameters={"n": 1}, title="One", reads="data")
    keys = [cell.key, replace(cell, parameters={"n": 2}).key, replace(cell, title="Two").key, replace(cell, reads="other data").key]
    small.write_text(small.read_text(encoding="utf-8").replace("A sentence", "Another sentence"), encoding="utf-8")
    keys.append(cell.key)
    assert len(set(keys)) == len(keys)


def test_a_key_does_not_change_with_where_the_output_goes_or_the_order_of_parameters(small: Path, tmp_path: Path) -> None:
    one = Cell(notebook=small, output=tmp_path / "a.ipynb", parameters={"a": 1, "b": 2})
    assert one.key == replace(one, output=tmp_path / "b.ipynb", parameters={"b": 2, "a": 1}).key


def test_a_digest_sees_contents_names_and_new_files_but_not_compiled_ones(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "__pycache__").mkdir(parents=True)
    (folder / "a.yaml").write_text("1", encoding="utf-8")
    seen = [digest([folder])]
    (folder / "a.yaml").write_text("2", encoding="utf-8")
    seen.append(digest([folder]))
    (folder / "a.yaml").rename(folder / "b.yaml")
    seen.append(digest([folder]))
    (folder / "c.yaml").touch()
    seen.append(digest([folder]))
    assert len(set(seen)) == 4
    (folder / "__pycache__" / "x.pyc").write_text("x", encoding="utf-8")
    assert digest([folder]) == seen[-1]


def test_a_digest_sees_a_file_move_between_folders(tmp_path: Path) -> None:
    (tmp_path / "devices").mkdir()
    (tmp_path / "models").mkdir()
    (tmp_path / "devices" / "a.yaml").write_text("1", encoding="utf-8")
    before = digest([tmp_path])
    (tmp_path / "devices" / "a.yaml").rename(tmp_path / "models" / "a.yaml")
    assert digest([tmp_path]) != before


# ── the ledger ────────────────────────────────────────────────────────────────────────────────────


def test_a_ledger_remembers_and_forgets_when_a_file_is_gone(tmp_path: Path) -> None:
    output, left = tmp_path / "out.ipynb", tmp_path / "record.json"
    output.touch()
    left.touch()
    ledger = Ledger(tmp_path / "ledger.json")
    assert not ledger.is_done(output, "key")
    ledger.put(output, "key", str(left))
    again = Ledger(tmp_path / "ledger.json")
    assert again.is_done(output, "key")
    assert again.left(output) == str(left)
    assert not again.is_done(output, "another key")
    left.unlink()
    assert not again.is_done(output, "key"), "what it left behind is gone"
    left.touch()
    output.unlink()
    assert not again.is_done(output, "key"), "the output is gone"


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"out.ipynb": 3}', '{"out.ipynb": {}}'])
def test_a_damaged_ledger_costs_a_rerun_and_nothing_else(content: str, tmp_path: Path) -> None:
    (tmp_path / "ledger.json").write_text(content, encoding="utf-8")
    (tmp_path / "out.ipynb").touch()
    ledger = Ledger(tmp_path / "ledger.json")
    assert not ledger.is_done(tmp_path / "out.ipynb", "key")
    ledger.put(tmp_path / "out.ipynb", "key")
    assert Ledger(tmp_path / "ledger.json").is_done(tmp_path / "out.ipynb", "key")


def test_two_outputs_of_one_name_in_two_folders_are_two(tmp_path: Path) -> None:
    for folder in ("here", "devices"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "fit.ipynb").touch()
    ledger = Ledger(tmp_path / "ledger.json")
    ledger.put(tmp_path / "here" / "fit.ipynb", "one")
    ledger.put(tmp_path / "devices" / "fit.ipynb", "two")
    assert ledger.is_done(tmp_path / "here" / "fit.ipynb", "one")


# ── running ───────────────────────────────────────────────────────────────────────────────────────


def test_a_page_has_its_own_title_no_parameters_shown_and_no_run_times(small: Path, tmp_path: Path) -> None:
    output, heard = tmp_path / "pages" / "page.ipynb", io.StringIO()
    run_cell(Cell(notebook=small, output=output, parameters={"n": 3}, title="Three"), heard)
    page = nbformat.read(output, as_version=4)
    assert page.cells[0].source == "# Three\n\nA sentence."
    assert page.cells[-1].outputs[0].text == "n is 3\n"
    injected = [c for c in page.cells if "injected-parameters" in c.metadata.tags]
    assert [c.metadata.tags for c in injected] == [["injected-parameters", "remove-input"]]
    assert "papermill" not in page.metadata
    assert all("papermill" not in c.metadata for c in page.cells)
    assert "n is 3" in heard.getvalue()
    assert listing(output.parent) == ["page.ipynb"]


def test_a_failing_cell_is_one_line_and_keeps_the_run_beside(small: Path, tmp_path: Path) -> None:
    output = tmp_path / "pages" / "page.ipynb"
    with pytest.raises(CellFailed) as caught:
        run_cell(Cell(notebook=small, output=output, parameters={"n": -1}))
    assert str(caught.value) == "small.ipynb: EngineError: -1 is less than nothing (the run is kept in page.failed.ipynb)"
    assert listing(output.parent) == ["page.failed.ipynb"]
    kept = nbformat.read(output.with_suffix(".failed.ipynb"), as_version=4)
    errors = [o for c in kept.cells if c.cell_type == "code" for o in c.outputs if o.output_type == "error"]
    assert [o.traceback for o in errors] == [["EngineError: -1 is less than nothing"]], "one line, no traceback"
    run_cell(Cell(notebook=small, output=output))
    assert listing(output.parent) == ["page.ipynb"], "a success removes the failed run"


def test_an_earlier_page_survives_a_failing_run(small: Path, tmp_path: Path) -> None:
    output = tmp_path / "page.ipynb"
    output.write_text("the page of yesterday", encoding="utf-8")
    with pytest.raises(CellFailed):
        run_cell(Cell(notebook=small, output=output, parameters={"n": -1}))
    assert output.read_text(encoding="utf-8") == "the page of yesterday"


def test_the_output_appears_by_rename(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who reads the folder while a cell runs sees no half-written notebook."""
    output, seen = tmp_path / "pages" / "page.ipynb", []
    real = os.replace

    def watched(source: object, target: object) -> None:
        seen.append(output.exists())
        real(source, target)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "replace", watched)
    run_cell(Cell(notebook=small, output=output))
    assert seen
    assert not any(seen)
    assert output.is_file()


def test_an_unknown_parameter_stops_before_a_kernel_starts(small: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownParameter, match="no parameter 'm'"):
        run_cell(Cell(notebook=small, output=tmp_path / "pages" / "page.ipynb", parameters={"m": 1}))
    assert not (tmp_path / "pages").exists()


@pytest.mark.parametrize(("content", "said"), [(None, "no notebook"), ("not json", "is not a notebook"), ("{}", "is not a notebook")])
def test_what_is_no_notebook_is_refused(content: str | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "x.ipynb"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=said):
        run_cell(Cell(notebook=path, output=tmp_path / "out.ipynb"))


def test_what_is_dropped_is_made_again(tmp_path: Path) -> None:
    output = tmp_path / "page.html"
    output.write_text("")
    ledger = Ledger(tmp_path / "ledger.json")
    ledger.put(output, "key")
    assert Ledger(tmp_path / "ledger.json").is_done(output, "key")
    ledger.drop(output)
    assert not Ledger(tmp_path / "ledger.json").is_done(output, "key")
