"""Where things are kept: the registry, this user's records, the cache of stand-in models.

``NBUTILS_DATA`` names another registry, ``NBUTILS_HOME`` another folder for everything that is private.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import platformdirs

from nbutils.errors import DataError

__all__ = ["atomic_path", "cache_dir", "data_dir", "extend_with_hole", "new_records_dir", "project_dir", "user_records_dir", "write_text"]


@lru_cache(maxsize=1)
def project_dir() -> Path:
    """The root of the checkout this package was installed from (``pip install -e .``)."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "pyproject.toml").is_file():
        raise DataError(f"no checkout around {root}: install with 'pip install -e .' from a clone of the project")
    return root


def data_dir() -> Path:
    """The registry: ``NBUTILS_DATA`` if set, else ``data/`` of the checkout."""
    if named := os.environ.get("NBUTILS_DATA"):
        path = Path(named).expanduser()
        if not (path / "devices").is_dir():
            raise DataError(f"NBUTILS_DATA is {named!r}, which has no folder 'devices'; point it at a copy of data/")
        return path
    return project_dir() / "data"


def user_records_dir() -> Path:
    """This user's own records; never inside the checkout."""
    home = os.environ.get("NBUTILS_HOME")
    return (Path(home).expanduser() if home else platformdirs.user_data_path("nbutils", False)) / "records"


def new_records_dir() -> Path:
    """Where a record is written: the user's own folder, or the one that a sweep takes its cells' records from."""
    named = os.environ.get("NBUTILS_NEW_RECORDS")
    return Path(named) if named else user_records_dir()


def cache_dir() -> Path:
    """What can be made again: stand-in models."""
    home = os.environ.get("NBUTILS_HOME")
    return Path(home).expanduser() / "cache" if home else platformdirs.user_cache_path("nbutils", False)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; it becomes ``path`` by rename if the block succeeds, else it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def extend_with_hole(path: Path, size: int) -> None:
    """Make a file ``size`` bytes long without taking room for what is added. Raises ``DataError`` where the disk has no holes.

    On Windows a file must be told that it may have some (``FSCTL_SET_SPARSE``); elsewhere truncating is enough.
    """
    try:
        if os.name == "nt":
            _allow_holes(path)
        os.truncate(path, size)
    except OSError as error:
        need = f"a file of {size / 1e9:,.0f} GB that is nearly all hole"
        raise DataError(f"{path.parent} cannot hold {need}: {error.strerror}; set TMPDIR to a folder on another disk") from None


def _allow_holes(path: Path) -> None:  # pragma: no cover - Windows only
    import ctypes
    import msvcrt

    with path.open("r+b") as file:
        handle = ctypes.c_void_p(getattr(msvcrt, "get_osfhandle")(file.fileno()))  # noqa: B009 - unknown to type checkers elsewhere
        returned = ctypes.c_ulong()
        kernel32 = getattr(ctypes, "windll").kernel32  # noqa: B009
        if not kernel32.DeviceIoControl(handle, 0x900C4, None, 0, None, 0, ctypes.byref(returned), None):
            raise OSError(0, "it allows no sparse files")


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
