"""What notebooks call before anything else, and how the ones in ``notebooks/`` are kept in order.

papermill only warns about a parameter that a notebook does not have, and then runs the default. ``parameters``
makes that an error.
"""

from __future__ import annotations

import ast
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args, get_origin

from nbutils import paths
from nbutils.errors import DataError, MissingExtra, UnknownParameter, UsageError, did_you_mean

__all__ = ["CHECKED", "KERNEL_ARGUMENTS", "TOLD", "declared", "declared_in", "normalise", "notebook_files", "parameters", "tell", "validate"]

#: The tag of cells whose output is stored and compared by nbval.
CHECKED = "checked"
REFRESH = "nbutils notebooks"
#: How a line of progress starts, so that it can be told from a result.
TOLD = "… "
#: The kernel says at every start that loopback TCP is not encrypted; once was enough.
KERNEL_ARGUMENTS = ["--IPKernelApp.log_level=CRITICAL"]


def tell(text: str) -> None:
    """Print a line of progress."""
    print(f"{TOLD}{text}", flush=True)


def declared(source: str) -> dict[str, Any]:
    """Names and types that a parameters cell declares: ``name: type = default  # help``."""
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = eval(ast.unparse(node.annotation), {})  # noqa: S307 - our own cell, types only
    return found


def declared_in(path: Path) -> dict[str, Any]:
    """Names and types that the parameters cell of a notebook declares. Raises ``UsageError`` for what is no notebook."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        tagged = [cell["source"] for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    except FileNotFoundError:
        raise UsageError(f"no notebook {str(path)!r}") from None
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        raise UsageError(f"{str(path)!r} is not a notebook") from None
    return declared("".join(tagged[0])) if tagged else {}


def parameters(namespace: dict[str, Any]) -> None:
    """Check what papermill injected against what the parameters cell declares.

    Call it in the cell after the parameters with ``globals()``. Raises ``UnknownParameter`` for a name that the
    notebook does not have or a value of another type, before anything has run.
    """
    history: list[str] = [cell for cell in namespace.get("In", []) if cell]
    # nbval keeps no history, and injects nothing.
    types = declared(history[0]) if history else dict(namespace.get("__annotations__", {}))
    if not types:
        raise DataError("nbutils.notebook.parameters found no parameters cell before it; run the notebook from its first cell")
    nodes = [node for cell in history[1:-1] for node in ast.parse(cell).body if isinstance(node, ast.Assign)]
    injected = {target.id for node in nodes for target in node.targets if isinstance(target, ast.Name)}
    validate(types, {name: namespace[name] for name in injected | types.keys() if name in namespace})


def validate(types: dict[str, Any], values: dict[str, Any]) -> None:
    """Raise ``UnknownParameter`` for the first name without a type, or value that is not of its type."""
    for name, value in values.items():
        if name not in types:
            raise UnknownParameter(f"no parameter {name!r}{did_you_mean(name, types)}")
        if not _is_a(value, types[name]):
            wanted = getattr(types[name], "__name__", None) if get_origin(types[name]) is None else str(types[name])
            raise UnknownParameter(f"parameter {name!r} is {value!r}, a {type(value).__name__}; it takes {wanted}")


def _is_a(value: Any, wanted: Any) -> bool:
    if get_origin(wanted) is list:
        return isinstance(value, list) and all(_is_a(item, get_args(wanted)[0]) for item in value)
    if wanted is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if wanted is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, wanted)


def notebook_files() -> list[Path]:
    """The notebooks of the project, by name."""
    return sorted((paths.project_dir() / "notebooks").glob("*.ipynb"))


def normalise(path: Path) -> bool:
    """Execute a notebook with its default parameters in a fresh kernel and store the outputs of checked cells only.

    Cell ids become their positions, metadata is reduced to tags, outputs to plain text. Returns whether the file
    changed. Raises ``DataError`` when a cell fails.
    """
    nbformat, client = _tools()
    notebook = nbformat.read(path, as_version=4)
    with _private_home():
        try:
            client(
                notebook, timeout=600, kernel_name="python3", extra_arguments=KERNEL_ARGUMENTS, resources={"metadata": {"path": str(path.parent)}}
            ).execute()
        except Exception as error:
            last = re.sub(r"\x1b\[[0-9;]*m", "", str(error).strip().splitlines()[-1])
            raise DataError(f"{path.name}: a cell fails: {last}; mend the cell, then run '{REFRESH}' again") from None
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    notebook.nbformat_minor = 5
    for position, cell in enumerate(notebook.cells):
        _normalise_cell(cell, position)
    text = nbformat.writes(notebook, indent=1) + "\n"
    if text == path.read_text(encoding="utf-8"):
        return False
    paths.write_text(path, text)
    return True


def _normalise_cell(cell: Any, position: int) -> None:
    tags = cell.metadata.get("tags", [])
    keep = {"tags": tags} if tags else {}
    cell.metadata = keep | {key: cell.metadata[key] for key in ("mystnb",) if key in cell.metadata}
    cell["id"] = f"cell-{position:02d}"
    if cell.cell_type != "code":
        return
    if CHECKED not in tags:
        cell.outputs, cell.execution_count = [], None
        return
    cell.outputs = [_text_only(output) for output in cell.outputs]


def _text_only(output: Any) -> Any:
    if "data" in output:
        output.data = {key: value for key, value in output.data.items() if key == "text/plain"}
        output.metadata = {}
    return output


@contextmanager
def _private_home() -> Iterator[None]:
    """Run with an empty home of nbutils, so that what somebody measured before does not show; models stay cached."""
    before = os.environ.get("NBUTILS_HOME")
    with tempfile.TemporaryDirectory() as home:
        cached = paths.cache_dir()
        cached.mkdir(parents=True, exist_ok=True)
        try:
            (Path(home) / "cache").symlink_to(cached, target_is_directory=True)
        except OSError:
            pass  # Windows without the right to link: stand-ins are made again, in a second
        os.environ["NBUTILS_HOME"] = home
        try:
            yield
        finally:
            os.environ.pop("NBUTILS_HOME")
            if before is not None:
                os.environ["NBUTILS_HOME"] = before


def _tools() -> tuple[Any, Any]:
    try:
        import nbformat
        from nbclient import NotebookClient
    except ImportError:
        raise MissingExtra("running notebooks needs papermill and its friends: pip install -e '.[book]'") from None
    return nbformat, NotebookClient
