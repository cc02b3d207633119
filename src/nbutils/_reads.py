"""Runs in the kernel of a sweep's cell, before anything else: writes down what the kernel reads, as it reads it.

A list, a line each: ``pid N``, ``open PATH``, ``list FOLDER``, ``child``. It is appended to at once, so that it is whole however the kernel ends.
"""

from __future__ import annotations

import os
import sys
from importlib.util import source_from_cache
from pathlib import Path

__all__ = ["start"]

_LISTS = ("os.listdir", "os.scandir")
_STARTS = ("subprocess.Popen", "os.posix_spawn", "os.spawn", "os.fork")


def start(notes: str, records: str, roots: list[str]) -> None:
    """Note in ``notes`` what is read below ``roots``, and have records written to the folder ``records`` from here on."""
    os.environ["NBUTILS_NEW_RECORDS"] = records
    # A descriptor, because writing to it is no event; appended to, because children may inherit it.
    descriptor = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    under = tuple(whole_path(root) for root in roots)
    seen: set[str] = set()

    def note(line: str) -> None:
        if line not in seen:
            seen.add(line)
            os.write(descriptor, f"{line}\n".encode("utf-8", "surrogateescape"))

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            # What is opened to be written anew is not read; os.open says no mode.
            anew = {"w", "x", "a"} & set(str(mode)) if mode else isinstance(flags, int) and flags & os.O_WRONLY
            if not anew:
                note_path("open", path)
        elif event in _LISTS:
            note_path("list", arguments[0])
        elif event in _STARTS:
            note("child")

    def note_path(what: str, path: object) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return  # a descriptor
        whole = str(source_of(Path(whole_path(path))))
        if whole.startswith(under) and "\n" not in whole:
            note(f"{what} {whole}")

    note(f"pid {os.getpid()}")
    for module in list(sys.modules.values()):
        if module.__name__.partition(".")[0] == "nbutils" and getattr(module, "__file__", None):
            note_path("open", module.__file__)
    sys.addaudithook(hook)


def whole_path(path: str | bytes | os.PathLike[str]) -> str:
    """From the root and without dots, by words alone: a link stays what it is called, and nothing is asked of the disk."""
    return os.path.abspath(os.fsdecode(path))  # noqa: PTH100 - resolve() would ask


def source_of(path: Path) -> Path:
    """The source of a compiled module; any other path is its own."""
    if path.suffix != ".pyc" or not (path.parent.name == "__pycache__" or sys.pycache_prefix):
        return path
    try:
        return Path(source_from_cache(str(path)))
    except ValueError:  # compiled by other means
        return path
