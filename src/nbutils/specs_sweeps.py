"""What a sweep is: notebooks over a grid of their parameters. Parsed once from ``data/suites``."""

from __future__ import annotations

from string import Formatter
from typing import Annotated, Literal, Self

from pydantic import Field, StrictBool, StrictFloat, StrictInt, StrictStr, StringConstraints, model_validator

from nbutils.specs import Frozen, Id, Line, Name

__all__ = ["NAMES", "Scalar", "Sweep", "SweepCells"]

Scalar = StrictStr | StrictBool | StrictInt | StrictFloat
_Parameter = Annotated[str, StringConstraints(pattern=r"^[a-z_][a-z0-9_]*$")]
#: What may stand in braces besides parameters: the machine a cell runs on, and what the registry calls what a parameter names.
NAMES = {"machine": "", "device_name": "device", "model_name": "model", "article_name": "article"}


class SweepCells(Frozen):
    """Cells of a sweep: a notebook, and every combination of the values that its parameters are given."""

    #: A file stem in ``notebooks/``.
    notebook: Id
    #: By parameter a value, or a list of values. ``all`` and ``pages`` are words where the parameter is a device, model, format, article or suite.
    parameters: dict[_Parameter, Scalar | Annotated[tuple[Scalar, ...], Field(min_length=1)]] = Field(default_factory=dict)
    #: Where a page goes, from the root of the project, and what it is called; parameters stand in braces.
    output: Annotated[str, StringConstraints(max_length=200, pattern=r"^([A-Za-z0-9_.\-/{}]+\.ipynb)?$")] = ""
    title: Line | Literal[""] = ""
    #: Whether a cell times something, and so wants its machine for itself.
    measures: bool = False

    @model_validator(mode="after")
    def _places_are_known(self) -> Self:
        if self.output.startswith("/") or ".." in self.output.split("/"):
            raise ValueError("output leaves the project; write it from the root of the project")
        known = {*self.parameters, *(name for name, parameter in NAMES.items() if not parameter or parameter in self.parameters)}
        for text in (self.output, self.title):
            for _, name, form, conversion in Formatter().parse(text):
                if name is not None and (form or conversion or name not in known):
                    raise ValueError(f"{{{name}}} in {text!r} is no parameter of these cells; there are {', '.join(sorted(known))}")
        return self


class Sweep(Frozen):
    """Notebooks over a grid of parameters, on one machine or several."""

    id: Id
    name: Name
    #: Devices that each cell runs on, once on each; none means whatever machine there is.
    machines: tuple[Id, ...] = ()
    cells: Annotated[tuple[SweepCells, ...], Field(min_length=1)]
