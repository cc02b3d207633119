"""Modules import downwards only. The order is the one drawn in CONTRIBUTING; a new module takes its place in it here."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import nbutils

PACKAGE = Path(nbutils.__file__).parent

#: Bottom to top. Modules of one line do not import each other, but for the pairs of ``BESIDE``.
LAYERS = (
    ("errors", "units"),
    ("specs",),
    ("specs_articles", "specs_calibration", "specs_sweeps"),
    ("tensors",),
    ("limits",),
    ("fit",),
    ("explain",),
    ("claims", "predict", "ratios"),
    ("paths", "_reads"),
    ("registry", "records"),
    ("_ggml", "_allocations", "_bench", "_engine_child", "gguf_files", "gguf_header", "engine", "monitor", "probe"),
    ("subjects", "places"),
    ("oracle",),
    ("measure", "endpoint", "llama_bench", "sustain"),
    ("calibrate", "frames_predict"),
    ("frames",),
    ("frames_chapters", "frames_claims", "frames_engines", "frames_market", "frames_power", "frames_published", "frames_run", "frames_served"),
    ("frames_records",),
    ("_rows_child", "benchmarks", "calculator", "contribute", "frames_compared"),
    ("plots",),
    ("plots_chapters", "plots_claims", "plots_fit", "plots_market", "plots_predict", "plots_published"),
    ("notebook",),
    ("sweep",),
    ("_sweep_worker", "cluster", "grid"),
    ("build",),
    ("printing",),
    ("cli_claims", "cli_limits", "cli_measure", "cli_predict", "cli_records", "cli_sweep"),
    ("cli",),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
BESIDE = {
    ("records", "registry"),
    ("_engine_child", "_ggml"),
    ("_engine_child", "_allocations"),
    ("_engine_child", "_bench"),
    ("_bench", "_ggml"),
    ("_bench", "_allocations"),
    ("_bench", "monitor"),
    ("_allocations", "_ggml"),
    ("probe", "engine"),
    ("probe", "monitor"),
    ("sustain", "measure"),
    ("endpoint", "measure"),
    ("cli_records", "cli_measure"),
}
#: Records hold samples, limits hold bounds; they meet in ``frames``.
NEVER = {("records", name) for name in ("tensors", "limits", "fit", "claims", "predict")}

#: What reads bytes from strangers has nothing at hand that it could be talked into using.
ONLY = {"gguf_header": {"errors", "paths"}, "printing": set(), "_allocations": {"_ggml", "errors", "fit"}}

PURE = (
    "errors",
    "units",
    "specs",
    "specs_articles",
    "specs_calibration",
    "specs_sweeps",
    "tensors",
    "limits",
    "fit",
    "explain",
    "claims",
    "predict",
    "ratios",
)
WORLD = {
    "io",
    "json",
    "os",
    "pathlib",
    "platform",
    "random",
    "shutil",
    "socket",
    "subprocess",
    "sys",
    "tempfile",
    "threading",
    "time",
    "urllib",
}
OPTIONAL = {
    "dask",
    "distributed",
    "gguf",
    "httpx",
    "httpx2",
    "huggingface_hub",
    "jupyter_book",
    "llama_cpp",
    "nbformat",
    "papermill",
    "pyarrow",
    "pynvml",
}


def imported(tree: ast.AST) -> set[str]:
    """Every module named by an import, wherever it stands; ``from nbutils import x`` counts as ``nbutils.x``."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import: write nbutils.x"
            found |= {f"nbutils.{alias.name}" for alias in node.names} if node.module == "nbutils" else {node.module or ""}
    return found


def inner(tree: ast.AST) -> set[str]:
    """The modules of this package that are imported."""
    return {name.split(".")[1] for name in imported(tree) if name.startswith("nbutils.") and name != "nbutils.__version__"}


def sources() -> list[Path]:
    return [p for p in sorted(PACKAGE.rglob("*.py")) if p.stem not in ("__init__", "__main__")]


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_imports_point_down(path: Path) -> None:
    name = name_of(path)
    assert name in RANK, f"module {name} has no place in the order of imports: add it to LAYERS in tests/test_imports.py"
    for target in inner(ast.parse(path.read_text(encoding="utf-8"))) - {name}:
        assert target in RANK, f"module {target} has no place in the order of imports: add it to LAYERS in tests/test_imports.py"
        assert (name, target) not in NEVER, f"{name} must not import {target}"
        assert RANK[target] < RANK[name] or (name, target) in BESIDE, f"{name} must not import {target}"


def test_the_package_itself_imports_errors_and_nothing_else() -> None:
    assert inner(ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))) <= {"errors"}


@pytest.mark.parametrize("name", ONLY)
def test_some_import_these_and_nothing_else(name: str) -> None:
    assert inner(ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))) == ONLY[name]


@pytest.mark.parametrize("name", [name for name in PURE if (PACKAGE / f"{name}.py").exists()])
def test_the_core_does_not_touch_the_world(name: str) -> None:
    tree = ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))
    assert not {module.split(".")[0] for module in imported(tree)} & WORLD
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not called & {"open", "print", "input", "exec", "eval", "__import__"}


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_optional_packages_are_imported_where_they_are_used(path: Path) -> None:
    top = ast.Module([node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.Import | ast.ImportFrom)], [])
    found = {module.split(".")[0] for module in imported(top)} & OPTIONAL
    assert not found, f"{path.stem} imports {', '.join(sorted(found))} at its top: move it into the function"


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("from nbutils.limits import mbu", {"limits"}),
        ("from nbutils import engine, paths", {"engine", "paths"}),
        ("import nbutils.engine", {"engine"}),
        ("def f():\n    from nbutils.cli import main", {"cli"}),
    ],
)
def test_every_way_to_write_an_import_is_seen(line: str, names: set[str]) -> None:
    assert inner(ast.parse(line)) == names
