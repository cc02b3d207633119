"""The notebooks of ``notebooks/`` as their users run them: papermill with parameters, nbval against what is stored."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest

from nbutils import notebook, paths, records

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def cells(path: Path, kind: str = "code") -> list[Any]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def tags(cell: Any) -> list[str]:
    return list(cell.metadata.get("tags", []))


# ── what is stored ────────────────────────────────────────────────────────────────────────────────


def test_there_are_notebooks() -> None:
    assert {"device", "fit", "here", "measure", "probe"} <= {p.stem for p in NOTEBOOKS}


@each_notebook
def test_cells_are_short_and_define_nothing(path: Path) -> None:
    banned = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    for cell in cells(path):
        assert len(cell.source.splitlines()) <= 12, f"over twelve lines: {cell.source}"
        assert not [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, banned)], f"a definition in a cell: {cell.source}"


@each_notebook
def test_the_first_code_cell_is_the_parameters_and_the_second_checks_them(path: Path) -> None:
    first, second, *rest = cells(path)
    assert "parameters" in tags(first)
    assert "parameters(globals())" in second.source
    assert not [cell for cell in (second, *rest) if "parameters" in tags(cell)]


@each_notebook
def test_papermill_sees_every_parameter_with_its_type_and_help(path: Path) -> None:
    inspected = papermill.inspect_notebook(str(path))
    assert list(inspected) == list(notebook.declared(cells(path)[0].source))
    for name, entry in inspected.items():
        assert entry["help"].strip(), f"{name} has no help"
        assert entry["inferred_type_name"] not in ("", "None"), f"{name} has no type"


@each_notebook
def test_only_checked_cells_have_outputs_and_they_are_text(path: Path) -> None:
    for cell in cells(path):
        if notebook.CHECKED not in tags(cell):
            assert (cell.outputs, cell.execution_count) == ([], None), f"run 'nbutils notebooks': {cell.source}"
            continue
        assert cell.outputs, f"checked and stores nothing, so nothing would be compared: {cell.source}"
        assert cell.execution_count
        for output in cell.outputs:
            assert output.output_type in ("stream", "execute_result", "display_data")
            assert str(output.get("text") or output.data["text/plain"]).strip()
            assert set(output.get("data", {"text/plain"})) == {"text/plain"}


@each_notebook
def test_at_least_one_cell_is_checked(path: Path) -> None:
    assert [cell for cell in cells(path) if notebook.CHECKED in tags(cell)]


@each_notebook
def test_ids_are_positions_and_metadata_is_tags(path: Path) -> None:
    stored = nbformat.read(path, as_version=4)
    assert [cell["id"] for cell in stored.cells] == [f"cell-{i:02d}" for i in range(len(stored.cells))]
    assert set(stored.metadata) == {"kernelspec", "language_info"}
    assert all(set(cell.metadata) <= {"tags", "mystnb"} for cell in stored.cells)


@each_notebook
def test_checked_outputs_hold_no_paths_times_or_long_floats(path: Path) -> None:
    for cell in cells(path):
        text = "\n".join(str(output.get("text", "")) for output in cell.outputs)
        assert not re.search(r"/(?:tmp|home|root|Users)/|0x[0-9a-f]{6}|\d\.\d{7}|\d\d:\d\d:\d\d", text), text


@each_notebook
def test_every_figure_has_its_description(path: Path) -> None:
    for cell in cells(path):
        if "plots.new_axes" in cell.source:
            assert len(cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")) > 30, cell.source


# ── papermill ─────────────────────────────────────────────────────────────────────────────────────


def run_papermill(name: str, output: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", str(FOLDER / f"{name}.ipynb"), str(output), *arguments]
    return subprocess.run(command, cwd=output.parent, capture_output=True, text=True, timeout=200, check=False)


def errors(path: Path) -> list[list[str]]:
    return [list(o.traceback) for cell in cells(path) for o in cell.outputs if o.output_type == "error"]


def test_a_70b_does_not_fit_on_a_4090_and_the_notebook_says_so(tmp_path: Path) -> None:
    done = run_papermill("fit", tmp_path / "out.ipynb", "-p", "device", "rtx-4090")
    assert done.returncode == 0, done.stderr[-2000:]
    printed = "".join(o.text for cell in cells(tmp_path / "out.ipynb") for o in cell.outputs if o.output_type == "stream")
    assert "verdict: does_not_fit" in printed
    assert "RTX 4090" in printed


def test_a_file_on_this_machine_gets_the_picture_of_the_calculator(small_file: Path, tmp_path: Path) -> None:
    done = run_papermill("fit", tmp_path / "out.ipynb", "-p", "device", "this", "-p", "model", str(small_file))
    assert done.returncode == 0, done.stderr[-2000:]
    outputs = [o for cell in cells(tmp_path / "out.ipynb") for o in cell.outputs]
    assert [o for o in outputs if "image/svg+xml" in o.get("data", {})]
    shown = "".join(o.get("text", "") + "".join(o.get("data", {}).get("text/html", "")) for o in outputs)
    assert "decode ceiling at depth 4,096" in shown
    assert "A file is not compared" in shown
    assert "calculator.html" not in shown, "no link can name a file"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("devcie", "x"), "UnknownParameter: no parameter 'devcie'; did you mean 'device'?"),
        (("device", "rtx-4909"), "UnknownId: no device 'rtx-4909' in data/devices; did you mean 'rtx-4090'?"),
        (("n_ctx", "abc"), "UnknownParameter: parameter 'n_ctx' is 'abc', a str; it takes int"),
    ],
    ids=" ".join,
)
def test_a_wrong_parameter_stops_papermill_with_one_line(arguments: tuple[str, str], line: str, tmp_path: Path) -> None:
    done = run_papermill("fit", tmp_path / "out.ipynb", "-p", *arguments)
    assert done.returncode != 0
    assert line in done.stderr
    ((shown,),) = errors(tmp_path / "out.ipynb")
    assert shown.startswith(line)
    assert "\n" not in shown


def test_a_damaged_model_is_one_line_in_the_notebook_and_no_record(small_file: Path, own_home: Path, tmp_path: Path) -> None:
    bad = tmp_path / "cut.gguf"
    bad.write_bytes(small_file.read_bytes()[:-100_000])
    done = run_papermill("measure", tmp_path / "out.ipynb", "-p", "model", str(bad), "-y", "cpu: true")
    assert done.returncode != 0
    ((shown,),) = errors(tmp_path / "out.ipynb")
    assert shown.startswith("EngineError: cut.gguf: damaged or cut short")
    assert "\n" not in shown
    assert records.list_records() == []


def test_measure_writes_one_record_where_it_is_told(own_home: Path, tmp_path: Path) -> None:
    done = run_papermill("measure", tmp_path / "out.ipynb", "-p", "record_dir", str(tmp_path / "mine"), "-y", "cpu: true", "-p", "format", "Q8_0")
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = (tmp_path / "mine").glob("*.json")
    assert records.read(path).model.gguf_type == "Q8_0"
    assert records.list_records() == []


# ── nbval ─────────────────────────────────────────────────────────────────────────────────────────


def run_nbval(*, data: Path | None = None, source: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The two notebooks that measure nothing, compared with what is stored."""
    environment = os.environ | ({"NBUTILS_DATA": str(data)} if data else {}) | ({"PYTHONPATH": str(source)} if source else {})
    command = [sys.executable, "-m", "pytest", "--nbval", "notebooks/fit.ipynb", "notebooks/device.ipynb", "-q", "-p", "no:cacheprovider"]
    return subprocess.run(command, cwd=FOLDER.parent, env=environment, capture_output=True, text=True, timeout=200, check=False)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """Copies of ``data/`` and ``src/``, as they are."""
    root = paths.project_dir()
    for folder in ("data", "src"):
        shutil.copytree(root / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(root / "pyproject.toml", tmp_path)
    return tmp_path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {path.name}"
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_unchanged_copies_give_the_stored_outputs(copied: Path) -> None:
    done = run_nbval(data=copied / "data", source=copied / "src")
    assert done.returncode == 0, done.stdout[-3000:]
    assert "nbutils notebooks" not in done.stdout


def test_one_more_gigabyte_per_second_in_the_registry_is_noticed(copied: Path) -> None:
    edit(copied / "data" / "devices" / "dgx-spark.yaml", "value: 273\n", "value: 274\n")
    done = run_nbval(data=copied / "data")
    assert done.returncode == 1
    assert "outputs moved: if the change is meant, run 'nbutils notebooks' and commit the diff" in done.stdout


def test_half_a_percent_in_a_limit_is_noticed(copied: Path) -> None:
    formula = "self.batch_size / max(self.bandwidth_s, self.compute_s or 0.0)"
    edit(copied / "src" / "nbutils" / "limits.py", f"return {formula}", f"return 1.005 * {formula}")
    done = run_nbval(source=copied / "src", data=copied / "data")
    assert done.returncode == 1
    assert "run 'nbutils notebooks'" in done.stdout
