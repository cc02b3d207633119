"""From a sweep's file to its cells: every combination that makes sense, each with a place of its own."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from nbutils import grid, registry
from nbutils.errors import NbutilsError, UnknownId
from nbutils.specs_sweeps import Sweep


def made(**cells: Any) -> Sweep:
    return Sweep.model_validate({"id": "tried", "name": "Tried", "cells": [{"notebook": "fit", **cells}]})


def test_every_combination_is_a_cell_with_a_page_of_its_own() -> None:
    cells, left_out = grid.cells_of(made(parameters={"device": ["dgx-spark", "rtx-4090"], "n_ctx": [4096, 8192], "kv_type": "q8_0"}))
    assert [cell.parameters for cell in cells] == [
        {"device": device, "n_ctx": n_ctx, "kv_type": "q8_0"} for device in ("dgx-spark", "rtx-4090") for n_ctx in (4096, 8192)
    ]
    assert cells[0].output == "_build/sweeps/tried/pages/fit-dgx-spark-4096.ipynb"
    assert len({cell.output for cell in cells}) == 4
    assert not left_out


def test_what_the_registry_says_cannot_be_is_left_out_and_counted() -> None:
    model = registry.load_model("llama-3.3-70b")
    assert "MXFP4" not in model.formats
    parameters = {"model": ["llama-3.3-70b", "gpt-oss-120b"], "format": ["Q8_0", "MXFP4"], "device": "rtx-4090", "configuration": ["24gb", "9000gb"]}
    cells, left_out = grid.cells_of(made(parameters=parameters))
    assert [(c.parameters["model"], c.parameters["format"]) for c in cells] == [
        ("llama-3.3-70b", "Q8_0"),
        ("gpt-oss-120b", "Q8_0"),
        ("gpt-oss-120b", "MXFP4"),
    ]
    assert left_out == {"a format that the model is not published in": 2, "a configuration that the device is not sold in": 3}


def test_all_and_pages_are_words_where_they_have_one_meaning() -> None:
    cells, _ = grid.cells_of(made(parameters={"device": "pages"}, output="x/{device}.ipynb", title="{device_name}"))
    assert [cell.parameters["device"] for cell in cells] == list(registry.page_ids())
    assert [cell.title for cell in cells] == [registry.load_device(d).name for d in registry.page_ids()]
    cells, _ = grid.cells_of(made(parameters={"model": "all"}))
    assert [cell.parameters["model"] for cell in cells] == registry.model_ids()
    cells, _ = grid.cells_of(made(notebook="proof", parameters={"models": "all"}))
    assert [cell.parameters for cell in cells] == [{"models": "all"}], "of another parameter it is a value"


def test_each_machine_runs_every_cell() -> None:
    wanted = made(notebook="measure", parameters={"suite": ["smoke", "quick"]}, measures=True).model_copy(
        update={"machines": ("dgx-spark", "strix-halo")}
    )
    cells, _ = grid.cells_of(wanted)
    assert [(cell.device, cell.parameters["suite"]) for cell in cells] == [
        ("dgx-spark", "smoke"),
        ("strix-halo", "smoke"),
        ("dgx-spark", "quick"),
        ("strix-halo", "quick"),
    ]
    assert len({cell.output for cell in cells}) == 4
    here, elsewhere = grid.on_this_machine(cells)
    assert (len(here), len(elsewhere)) == (0, 4), "no such machine is here"


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ({"notebook": "fti"}, "data/suites/tried.yaml: cells.0: no notebook 'fti'"),
        ({"parameters": {"devcie": "dgx-spark"}}, "data/suites/tried.yaml: cells.0: fit: no parameter 'devcie'; did you mean 'device'?"),
        ({"parameters": {"n_ctx": "many"}}, "data/suites/tried.yaml: cells.0: fit: parameter 'n_ctx' is 'many', a str; it takes int"),
        (
            {"parameters": {"n_ctx": [1, 2]}, "output": "x.ipynb"},
            "data/suites/tried.yaml: several cells write x.ipynb; name what differs in 'output'",
        ),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_in_one_line(cells: dict[str, Any], said: str) -> None:
    with pytest.raises(NbutilsError) as caught:
        grid.cells_of(made(**cells))
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    "output", ["/etc/x.ipynb", "../x.ipynb", "a/../../x.ipynb", "x.txt", "{nothing}.ipynb", "{device.id}.ipynb", "{device!r}.ipynb", "{device"]
)
def test_an_output_stays_inside_and_names_what_there_is(output: str) -> None:
    with pytest.raises(ValueError, match=r"output|no parameter|expected"):
        made(parameters={"device": "dgx-spark"}, output=output)


@pytest.mark.parametrize("sweep_id", registry.sweep_ids())
def test_the_projects_own_sweeps_have_cells(sweep_id: str) -> None:
    assert grid.cells_of(registry.load_sweep(sweep_id))[0]


def test_suites_and_sweeps_lie_in_one_folder_and_are_told_apart() -> None:
    assert not set(registry.suite_ids()) & set(registry.sweep_ids())
    assert {"pages", "stand-ins"} <= set(registry.sweep_ids())
    with pytest.raises(UnknownId, match="'pages' is a sweep: 'nbutils sweep pages' runs it; suites of timings: batch"):
        registry.load_suite("pages")
    with pytest.raises(UnknownId, match=r"'quick' is a suite of timings, for 'nbutils measure --suite'; sweeps: .*pages"):
        registry.load_sweep("quick")
    with pytest.raises(UnknownId, match="'pagse' is no sweep of data/suites; did you mean 'pages'"):
        registry.load_sweep("pagse")


def test_a_page_that_tells_old_prices_is_made_again_when_one_has_become_old(monkeypatch: pytest.MonkeyPatch) -> None:
    depends = []
    for now in (date(2025, 1, 1), date(2026, 11, 20)):
        monkeypatch.setattr(grid, "date", type("Day", (date,), {"today": classmethod(lambda _, now=now: now)}))
        cells, _ = grid.cells_of(registry.load_sweep("pages"))
        depends.append({cell.output: cell.depends for cell in cells})
    changed = {output for output in depends[0] if depends[0][output] != depends[1][output]}
    assert changed == {output for output in depends[0] if output.startswith("book/devices/")}
