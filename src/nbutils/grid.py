"""A sweep of ``data/suites`` -> its cells: every combination of values that makes sense."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from nbutils import engine, frames_market, paths, probe, registry, sweep
from nbutils.errors import DataError, UnknownId, UsageError
from nbutils.notebook import declared_in, notebook_files, validate
from nbutils.specs_sweeps import NAMES, Scalar, Sweep, SweepCells
from nbutils.sweep import Cell

__all__ = ["cells_of", "on_this_machine", "this_machine"]

#: What ``all`` and ``pages`` mean, by parameter. Elsewhere they are values like any other.
_WORDS: dict[str, dict[str, Callable[[], Any]]] = {
    "device": {"all": registry.device_ids, "pages": registry.page_ids},
    "model": {"all": registry.model_ids},
    "format": {"all": registry.load_formats},
    "article": {"all": registry.article_ids},
    "suite": {"all": registry.suite_ids},
}


def cells_of(wanted: Sweep) -> tuple[list[Cell], Counter[str]]:
    """The cells of a sweep in the order of its file, and how many combinations were left out, by reason.

    Raises ``UsageError`` for a notebook or a parameter that does not exist, ``DataError`` where two cells would write one page.
    """
    cells: list[Cell] = []
    left_out: Counter[str] = Counter()
    for number, part in enumerate(wanted.cells):
        place = f"data/suites/{wanted.id}.yaml: cells.{number}"
        source = _notebook(part.notebook, place)
        for values in _combinations(part):
            if reason := _cannot_be(values):
                left_out[reason] += 1
                continue
            try:
                validate(declared_in(source), values)
            except UsageError as error:
                raise type(error)(f"{place}: {part.notebook}: {error}") from None
            cells += [_cell(wanted, part, source, values, machine) for machine in wanted.machines or ("",)]
    if twice := [output for output, times in Counter(cell.output for cell in cells).items() if times > 1]:
        raise DataError(f"data/suites/{wanted.id}.yaml: several cells write {twice[0]}; name what differs in 'output'")
    return cells, left_out


def on_this_machine(cells: list[Cell]) -> tuple[list[Cell], list[Cell]]:
    """The cells that can run here, the others. What is measured here depends on this machine and its build of llama.cpp."""
    device = probe.machine().device if any(cell.device for cell in cells) else ""
    depends = this_machine(engine.describe()) if any(cell.measures for cell in cells) else {}
    here = [replace(cell, depends=depends) if cell.measures else cell for cell in cells if cell.device in ("", device)]
    return here, [cell for cell in cells if cell.device not in ("", device)]


def this_machine(description: dict[str, Any]) -> dict[str, str]:
    """What a measurement depends on and no file says; ``description`` is ``engine.describe()``."""
    machine = probe.machine().model_dump(mode="json", exclude={"memory_available_bytes", "notes"})
    return {"this machine": sweep.digest_of(machine), "its build of llama.cpp": sweep.digest_of(description)}


def _notebook(stem: str, place: str) -> Path:
    known = {path.stem: path for path in notebook_files()}
    if stem not in known:
        raise UsageError(f"{place}: no notebook {stem!r}; notebooks/ has {', '.join(known)}")
    return known[stem]


def _combinations(part: SweepCells) -> list[dict[str, Scalar]]:
    axes = [_values(name, value) for name, value in part.parameters.items()]
    return [dict(zip(part.parameters, chosen, strict=True)) for chosen in itertools.product(*axes)]


def _values(parameter: str, given: Scalar | tuple[Scalar, ...]) -> list[Scalar]:
    words = _WORDS.get(parameter, {})
    found: list[Scalar] = []
    for value in given if isinstance(given, tuple) else (given,):
        found += words[value]() if isinstance(value, str) and value in words else [value]
    return list(dict.fromkeys(found))


def _cannot_be(values: dict[str, Scalar]) -> str:
    """Why the registry says that there is no such combination; empty when it does not. What the registry does not know is not judged."""
    model, device = str(values.get("model", "")), str(values.get("device", ""))
    wanted_format, configuration = str(values.get("format", "")), str(values.get("configuration", ""))
    if wanted_format and model in registry.model_ids() and wanted_format not in registry.load_model(model).formats:
        return "a format that the model is not published in"
    if configuration and device in registry.device_ids():
        try:
            registry.load_configuration(registry.load_device(device), configuration)
        except UnknownId:
            return "a configuration that the device is not sold in"
    return ""


def _cell(wanted: Sweep, part: SweepCells, source: Path, values: dict[str, Scalar], machine: str) -> Cell:
    names = {name: _name(parameter, str(values.get(parameter, ""))) for name, parameter in NAMES.items()} | {"machine": machine} | values
    if part.output:
        output = part.output.format_map({name: _in_a_path(value) for name, value in names.items()})
    else:
        varied = [_in_a_path(value) for name, value in values.items() if isinstance(part.parameters[name], tuple) or value != part.parameters[name]]
        stem = "-".join([part.notebook, *varied, *([machine] if machine else [])])
        output = f"_build/sweeps/{wanted.id}/pages/{stem}.ipynb"
    return Cell(
        notebook=source.relative_to(paths.project_dir()).as_posix(),
        output=output,
        parameters=dict(values),
        title=part.title.format_map(names),
        device=machine,
        measures=part.measures,
        depends=_ages(declared_in(source), values),
    )


def _ages(declared: dict[str, Any], values: dict[str, Scalar]) -> dict[str, str]:
    """A page that tells old prices from new ones is made again when one has become old."""
    if "today" not in declared or values.get("today"):
        return {}
    market, today = registry.load_market(), date.today()
    asked = {said.asked for said in market.offers} | {said.asked for said in market.rents} | {said.asked for said in market.supply}
    asked |= {c.price.asked for device_id in registry.device_ids() for c in registry.load_device(device_id).configurations if c.price}
    return {"which prices are old": sweep.digest_of(sorted(str(day) for day in asked if frames_market.is_stale(day, today)))}


def _in_a_path(value: object) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", str(value)).strip("-.") or "default"


def _name(parameter: str, value: str) -> str:
    """What the registry calls what a parameter names; the value itself where it does not know it."""
    if parameter == "device" and value in registry.device_ids():
        return registry.load_device(value).name
    if parameter == "model" and value in registry.model_ids():
        return registry.load_model(value).name
    if parameter == "article" and value in registry.article_ids():
        article = registry.load_article(value)
        return f"{article.publisher}: {article.title}"
    return value
