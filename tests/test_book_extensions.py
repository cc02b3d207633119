"""What the book adds to Sphinx, in ``book/_extensions``; how the pages come out is seen in ``tests/browser``."""

from __future__ import annotations

import copy
import json
import sys
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sphinx.errors import ExtensionError

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "book" / "_extensions"))

import long_tables  # noqa: E402
import page_furniture  # noqa: E402

# ── long tables ───────────────────────────────────────────────────────────────────────────────────


def test_the_bundle_that_is_installed_becomes_a_script_without_exports() -> None:
    script = long_tables.classic(files("itables").joinpath("html", "dt_bundle.js").read_text(encoding="utf-8"))
    assert "export{" not in script
    assert script.count("window.DataTable=") == 1


@pytest.mark.parametrize("module", ["var a=1;", "export{a as jQuery};export{b as jQuery};", "export{a as DateTime};"])
def test_another_bundle_stops_the_build_and_says_so(module: str) -> None:
    with pytest.raises(ExtensionError, match="pin the version"):
        long_tables.classic(module)


# ── addresses ─────────────────────────────────────────────────────────────────────────────────────


def config(url: str = "", baseurl: str = "") -> Any:
    return SimpleNamespace(html_theme_options={"repository_url": url}, html_baseurl=baseurl, ogp_site_url="")


def test_without_an_address_there_is_no_button_that_needs_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_REPOSITORY", raising=False)
    page_furniture.addresses(found := config())
    assert found.html_theme_options == {"repository_url": ""}
    assert found.ogp_site_url == ""


@pytest.mark.parametrize(
    ("repository", "book"), [("Owner/the-book", "https://owner.github.io/the-book/"), ("owner/owner.github.io", "https://owner.github.io/")]
)
def test_a_build_on_github_knows_where_it_is(repository: str, book: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_REPOSITORY", repository)
    monkeypatch.delenv("GITHUB_SERVER_URL", raising=False)
    page_furniture.addresses(found := config())
    assert found.html_theme_options["repository_url"] == f"https://github.com/{repository}"
    assert found.html_theme_options["launch_buttons"]["binderhub_url"]
    assert found.html_baseurl == found.ogp_site_url == book


def test_what_the_configuration_says_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_REPOSITORY", "a/fork")
    page_furniture.addresses(found := config("https://github.com/the/original", "https://book.example/"))
    assert found.html_theme_options["repository_url"] == "https://github.com/the/original"
    assert found.html_baseurl == found.ogp_site_url == "https://book.example/"


# ── notebooks behind pages ────────────────────────────────────────────────────────────────────────


def executed(name: str, parameters: str) -> Any:
    """A notebook as papermill leaves it for a page: another title, its parameters injected."""
    run = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
    run["cells"][0]["source"] = ["# Another title"]
    run["cells"].insert(
        2, {"cell_type": "code", "metadata": {"tags": ["injected-parameters"]}, "source": [f"# Parameters\n{parameters}\n"], "outputs": []}
    )
    return run


@pytest.mark.parametrize("name", [path.stem for path in sorted((ROOT / "notebooks").glob("*.ipynb"))])
def test_the_notebook_behind_a_page_is_a_file_of_the_repository(name: str) -> None:
    behind = page_furniture.notebook_behind(executed(name, "x = 1"), ROOT)
    assert behind == f"notebooks/{name}.ipynb"
    assert (ROOT / behind).is_file()


def test_a_page_of_other_cells_has_none() -> None:
    run = copy.deepcopy(executed("device", "x = 1"))
    run["cells"][-1]["source"] = ["1 + 1"]
    assert page_furniture.notebook_behind(run, ROOT) == ""
