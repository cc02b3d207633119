"""Parameters that a notebook does not have stop it; stored notebooks are normalised."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nbformat
import pytest

from nbutils import notebook, paths
from nbutils.errors import DataError, UnknownParameter

CELL = 'device: str = "dgx-spark"  # a file stem\nn_ctx: int = 8192\nseconds: float = 1.0\ncpu: bool = False\nrecords: list[str] = []\n'
TYPES = {"device": str, "n_ctx": int, "seconds": float, "cpu": bool, "records": list[str]}
DEFAULTS: dict[str, Any] = {"device": "dgx-spark", "n_ctx": 8192, "seconds": 1.0, "cpu": False, "records": []}
CALL = "from nbutils.notebook import parameters\nparameters(globals())"


def run(*injected: str, **values: Any) -> None:
    """Call ``parameters`` as a kernel would: with its history and its names."""
    notebook.parameters({"In": ["", CELL, *injected, CALL], **DEFAULTS, **values})


def test_names_and_types_are_read_from_the_cell() -> None:
    assert notebook.declared(CELL) == TYPES
    assert notebook.declared("x = 1\nprint(x)") == {}


def test_defaults_pass() -> None:
    run()


@pytest.mark.parametrize(
    "values",
    [{"device": "rtx-4090"}, {"device": ""}, {"n_ctx": 4096}, {"seconds": 2}, {"seconds": 0.1}, {"cpu": True}, {"records": ["a", "b"]}],
    ids=repr,
)
def test_values_of_the_declared_type_pass(values: dict[str, Any]) -> None:
    run("# Parameters\n" + "\n".join(f"{k} = {v!r}" for k, v in values.items()), **values)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("n_ctx", "abc", "'abc', a str; it takes int"),
        ("n_ctx", True, "True, a bool; it takes int"),
        ("n_ctx", 8192.0, "8192.0, a float; it takes int"),
        ("seconds", True, "True, a bool; it takes float"),
        ("seconds", "1", "'1', a str; it takes float"),
        ("device", 4090, "4090, a int; it takes str"),
        ("device", None, "None, a NoneType; it takes str"),
        ("cpu", 1, "1, a int; it takes bool"),
        ("cpu", "false", "'false', a str; it takes bool"),
        ("records", "one.json", "'one.json', a str; it takes list[str]"),
        ("records", ["a", 1], "['a', 1], a list; it takes list[str]"),
    ],
)
def test_a_value_of_another_type_is_named_with_what_it_takes(name: str, value: Any, said: str) -> None:
    with pytest.raises(UnknownParameter) as caught:
        run(f"{name} = {value!r}", **{name: value})
    assert str(caught.value) == f"parameter {name!r} is {said}"


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UnknownParameter, match=r"no parameter 'devcie'; did you mean 'device'\?$"):
        run('# Parameters\ndevcie = "rtx-4090"', devcie="rtx-4090")


def test_without_a_parameters_cell_the_error_says_where_to_start() -> None:
    with pytest.raises(DataError, match="run the notebook from its first cell"):
        notebook.parameters({"In": ["", CALL]})


# ── normalising ───────────────────────────────────────────────────────────────────────────────────


def written(path: Path, *cells: tuple[str, list[str]]) -> Path:
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A title")])
    for source, tags in cells:
        made.cells.append(nbformat.v4.new_code_cell(source, metadata={"tags": tags, "editor": "mine"}))
    nbformat.write(made, path)
    return path


def test_normalising_keeps_the_checked_outputs_as_text_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBUTILS_HOME", str(tmp_path / "a user's home"))
    path = written(
        tmp_path / "small.ipynb",
        ("print('not stored')", []),
        ("import pandas as pd\npd.DataFrame({'a': [1, 2]})", [notebook.CHECKED]),
        ("from nbutils import paths\nprint(list(paths.user_records_dir().glob('*')), 'stand' in str(paths.user_records_dir()))", [notebook.CHECKED]),
    )
    records = paths.user_records_dir() / "unlisted"
    records.mkdir(parents=True)
    (records / "mine.json").write_text("{}", encoding="utf-8")
    assert notebook.normalise(path) is True
    stored = nbformat.read(path, as_version=4)
    assert [cell["id"] for cell in stored.cells] == ["cell-00", "cell-01", "cell-02", "cell-03"]
    _, silent, table, home = stored.cells
    assert (silent.outputs, silent.execution_count, dict(silent.metadata)) == ([], None, {})
    assert list(table.outputs[0].data) == ["text/plain"]
    assert table.execution_count == 2
    assert home.outputs[0].text == "[] False\n", "a notebook must not see what the user measured"
    assert os.environ["NBUTILS_HOME"] == str(tmp_path / "a user's home")
    before = path.read_bytes()
    assert notebook.normalise(path) is False
    assert path.read_bytes() == before


def test_a_notebook_whose_cell_fails_is_left_as_it_was(tmp_path: Path) -> None:
    path = written(tmp_path / "broken.ipynb", ("raise ValueError('the reason')", []))
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"broken\.ipynb: a cell fails: .*the reason.*nbutils notebooks"):
        notebook.normalise(path)
    assert path.read_bytes() == before


def test_a_notebook_that_fails_with_one_of_our_errors_shows_its_line(tmp_path: Path) -> None:
    path = written(tmp_path / "broken.ipynb", ("from nbutils import registry\nregistry.load_device('dgx-sprak')", []))
    with pytest.raises(DataError, match="did you mean 'dgx-spark'"):
        notebook.normalise(path)
