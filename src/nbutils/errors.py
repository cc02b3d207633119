"""What can go wrong, by who must act.

Every error is one line: the value, the place, the way out. Notebooks show that line instead of a
traceback, because IPython asks an exception for ``_render_traceback_``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "DataError",
    "EngineError",
    "MissingExtra",
    "NbutilsError",
    "UnknownId",
    "UnknownParameter",
    "UsageError",
    "did_you_mean",
]


class NbutilsError(Exception):
    """Base of every error a user is meant to read. ``exit_code`` is what the command line returns."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(str(message).split()))

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


class DataError(NbutilsError):
    """A file says something it must not: edit the file."""


class EngineError(NbutilsError):
    """llama.cpp refused, crashed or hung; nothing was recorded."""


class MissingExtra(NbutilsError):
    """Something has to be installed; the message holds the command."""

    exit_code = 2


class UsageError(NbutilsError):
    """The call is wrong: change the call."""

    exit_code = 2


class UnknownId(UsageError):
    """No such device, model, format or suite."""


class UnknownParameter(UsageError):
    """A notebook has no such parameter, or the value has the wrong type."""


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the nearest known name, or the list of what is known.

    >>> did_you_mean("dgx-sprak", ["dgx-spark", "rtx-4090"])
    "; did you mean 'dgx-spark'?"
    >>> did_you_mean("mainframe", ["dgx-spark", "rtx-4090"])
    '; known: dgx-spark, rtx-4090'
    """
    names = list(known)
    for name in difflib.get_close_matches(wrong, names, n=1, cutoff=0.5):
        return f"; did you mean {name!r}?"
    return f"; known: {', '.join(names)}"
