"""What stands around a page: its notebook and its data as files, how it was computed, a picture for links, where it runs.

Addresses come from ``_config.yml`` (``repository.url``, ``html.baseurl``), and where those are empty from the runner that
builds on GitHub. Where neither knows, pages do without the buttons that need one.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

#: What ``nbutils.plots.download`` writes.
_CSV = re.compile(r'download="([a-z0-9-]+\.csv)" href="data:text/csv;charset=utf-8;base64,([A-Za-z0-9+/=]*)"')
BINDER = {"binderhub_url": "https://mybinder.org", "notebook_interface": "jupyterlab"}
#: Wider than high, as the places that show a link want it.
_LEAST_ASPECT = 1.2


def setup(app: Any) -> dict[str, bool]:
    """Register before and after the theme, which makes its buttons at 501; the Open Graph tags are made at 500."""
    app.connect("config-inited", lambda _, config: addresses(config))
    app.connect("html-page-context", _before_the_theme, priority=400)
    app.connect("html-page-context", _after_the_theme, priority=600)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def addresses(config: Any) -> None:
    """Fill in where the repository and the book are, and switch on the buttons that need the former."""
    options, runner = config.html_theme_options, os.environ.get("GITHUB_REPOSITORY", "")
    if runner and not options.get("repository_url"):
        options["repository_url"] = f"{os.environ.get('GITHUB_SERVER_URL', 'https://github.com')}/{runner}"
    if runner and not config.html_baseurl:
        owner, name = runner.lower().split("/")
        config.html_baseurl = f"https://{owner}.github.io/" + ("" if name == f"{owner}.github.io" else f"{name}/")
    if options.get("repository_url"):
        options |= {"use_repository_button": True, "use_issues_button": True, "launch_buttons": BINDER}
    config.ogp_site_url = config.ogp_site_url or config.html_baseurl or ""


# ── a page ────────────────────────────────────────────────────────────────────────────────────────


def _before_the_theme(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    if doctree is None:
        return
    executed, out = _executed(app, pagename), Path(app.outdir)
    if executed is None:
        return
    if not context["sourcename"].endswith(".ipynb"):
        shutil.copy2(executed, _made(out / "_sources" / f"{pagename}.ipynb"))
        context["ipynb_source"] = f"{pagename}.ipynb"  # the theme makes a button of it
    picture = next(filter(_is_wide, _pictures(_read(executed))), None)
    if picture is not None:
        _made(out / "_images" / "shared" / f"{pagename}.png").write_bytes(picture)
        title = re.sub("<[^>]+>", "", context["title"])
        card = {"og:image": f"_images/shared/{pagename}.png", "og:image:alt": f"A figure of the page {title}"}
        context["meta"] = card | (context.get("meta") or {})
        context["metatags"] = context.get("metatags", "") + '<meta name="twitter:card" content="summary_large_image" />\n'


def _after_the_theme(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    if doctree is None:
        return
    body, names = _with_files(context["body"], pagename, Path(app.outdir), context["pathto"])
    executed = _executed(app, pagename)
    run = _read(executed) if executed else None
    behind = notebook_behind(run, Path(app.srcdir)) if run and context["sourcename"].endswith(".ipynb") else ""
    if behind:
        # The page itself is made by the build and lies in no repository.
        for button in (b for group in context["header_buttons"] for b in group.get("buttons", [])):
            if "urlpath=" in button.get("url", ""):
                button["url"] = button["url"].replace(f"{pagename}.ipynb", behind)
    context["body"] = body + _how(pagename, context, run, behind, names)


def _how(pagename: str, context: dict[str, Any], run: Any, behind: str, names: list[str]) -> str:
    """The block at the end of a page that says where its numbers come from."""
    to = context["pathto"]
    sources = to("_sources", 1)
    said = []
    if behind:
        given = _parameters(run)
        with_these = f" with <code>{escape(given)}</code>" if given else ""
        said.append(
            f'By <code>{escape(behind)}</code>{with_these}: <a href="{sources}/{context["sourcename"]}" download>this run of it, code and all</a>.'
        )
    elif run is not None:
        text, notebook = f"{sources}/{context['sourcename']}", f"{sources}/{pagename}.ipynb"
        said.append(
            f'By the cells of this chapter: <a href="{text}" download>its source</a>, <a href="{notebook}" download>as a notebook that was run</a>.'
        )
    if names:
        links = ", ".join(f'<a href="{to(_place(pagename, name), 1)}" download>{name}</a>' for name in names)
        said.append(f"Data of this page: {links}.")
    if said and pagename != "book/methods":
        said.append(f'What is measured, and how: <a href="{to("book/methods")}">Methods</a>.')
    return f'<aside class="behind"><p><strong>How was this computed?</strong> {" ".join(said)}</p></aside>' if said else ""


def _with_files(body: str, pagename: str, out: Path, to: Any) -> tuple[str, list[str]]:
    """The page with its embedded CSV files written beside it and linked, and their names."""
    names: list[str] = []

    def write(found: re.Match[str]) -> str:
        name = found[1]
        if name not in names:
            names.append(name)
        _made(out / _place(pagename, name)).write_bytes(base64.b64decode(found[2]))
        return f'download="{name}" href="{to(_place(pagename, name), 1)}"'

    return _CSV.sub(write, body), names


def _place(pagename: str, name: str) -> str:
    return f"data/{pagename.removeprefix('book/')}/{name}"


# ── notebooks ─────────────────────────────────────────────────────────────────────────────────────


def _executed(app: Any, pagename: str) -> Path | None:
    """The notebook that a page shows: what papermill left, or what MyST-NB ran for a chapter."""
    for path in (Path(app.srcdir) / f"{pagename}.ipynb", Path(app.outdir).parent / "jupyter_execute" / f"{pagename}.ipynb"):
        if path.exists():
            return path
    return None


@cache
def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _code(notebook: Any) -> tuple[str, ...]:
    cells = [c for c in notebook["cells"] if c["cell_type"] == "code" and "injected-parameters" not in c["metadata"].get("tags", [])]
    return tuple("".join(c["source"]).strip() for c in cells)


def notebook_behind(run: Any, root: Path) -> str:
    """The file in ``notebooks/`` whose cells these are, as a path in the repository; empty when it is none of them."""
    found = (path for path in sorted((root / "notebooks").glob("*.ipynb")) if _code(_read(path)) == _code(run))
    return next((path.relative_to(root).as_posix() for path in found), "")


def _parameters(run: Any) -> str:
    """What papermill was given, in one line; empty when that is nothing, or long."""
    given = ["".join(c["source"]) for c in run["cells"] if "injected-parameters" in c["metadata"].get("tags", [])]
    lines = [line for line in "\n".join(given).splitlines() if line and not line.startswith("#")]
    return ", ".join(lines) if len(", ".join(lines)) <= 120 else ""


def _pictures(run: Any) -> list[bytes]:
    outputs = (output.get("data", {}) for cell in run["cells"] for output in cell.get("outputs", []))
    return [base64.b64decode("".join(data["image/png"])) for data in outputs if "image/png" in data]


def _is_wide(png: bytes) -> bool:
    """Width over height, from the first block of a PNG."""
    width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
    return width >= _LEAST_ASPECT * height


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
