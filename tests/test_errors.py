from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import in_child
from nbutils import errors
from nbutils.errors import DataError, EngineError, MissingExtra, NbutilsError, UnknownId, UnknownParameter, UsageError, did_you_mean

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, NbutilsError)]


@pytest.mark.parametrize("kind", KINDS)
@given(message=st.text())
def test_every_error_is_one_line_whatever_it_is_told(kind: type[NbutilsError], message: str) -> None:
    assert len(str(kind(message)).splitlines()) <= 1


def test_a_message_keeps_its_words_and_loses_its_line_breaks() -> None:
    assert str(DataError("a.yaml:\n    bandwidth\r\n is missing")) == "a.yaml: bandwidth is missing"


@pytest.mark.parametrize("kind", KINDS)
def test_a_notebook_shows_the_type_and_the_line_instead_of_a_traceback(kind: type[NbutilsError]) -> None:
    assert kind("no device\n'x'")._render_traceback_() == [f"{kind.__name__}: no device 'x'"]


_IN_IPYTHON = """
import contextlib, io, json
from IPython.core.interactiveshell import InteractiveShell
with contextlib.redirect_stdout(io.StringIO()) as said:
    InteractiveShell().run_cell("from nbutils.errors import DataError; raise DataError('a.yaml: bandwidth is missing')")
print(json.dumps(said.getvalue()))
"""


def test_ipython_prints_nothing_but_that_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("IPython")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    assert in_child(_IN_IPYTHON).strip() == "DataError: a.yaml: bandwidth is missing"


@pytest.mark.parametrize(
    ("kind", "exit_code"), [(DataError, 1), (EngineError, 1), (MissingExtra, 2), (UsageError, 2), (UnknownId, 2), (UnknownParameter, 2)]
)
def test_the_exit_code_says_whether_the_call_was_wrong(kind: type[NbutilsError], exit_code: int) -> None:
    assert kind("").exit_code == exit_code


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ("dgx-sprak", "; did you mean 'dgx-spark'?"),
        ("rtx4090", "; did you mean 'rtx-4090'?"),
        ("", "; known: dgx-spark, rtx-4090"),
        ("zzz", "; known: dgx-spark, rtx-4090"),
    ],
)
def test_the_nearest_known_name_is_offered_or_else_all_of_them(wrong: str, hint: str) -> None:
    assert did_you_mean(wrong, ["dgx-spark", "rtx-4090"]) == hint


@given(st.text(), st.lists(st.text(min_size=1)))
def test_what_is_offered_is_a_known_name(wrong: str, known: list[str]) -> None:
    hint = did_you_mean(wrong, known)
    assert hint in {f"; did you mean {name!r}?" for name in known} | {f"; known: {', '.join(known)}"}
