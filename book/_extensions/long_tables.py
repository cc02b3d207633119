"""Long tables can be sorted and filtered, by DataTables out of the wheel of itables.

It is carried there as a module, and browsers load no module from a file, which is how a book is read that was just built.
So the list of its exports, the last statement, becomes a global name. Pages without a long table load none of it, and
without JavaScript a long table is a table.
"""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from sphinx.errors import ExtensionError

BUNDLE = "datatables.js"
#: What ``nbutils.plots.table`` writes.
_LONG = re.compile(r'<table[^>]* class="long"')


def setup(app: Any) -> dict[str, bool]:
    """Put the bundle beside the other scripts, and name it where it is needed."""
    app.connect("builder-inited", _write)
    app.connect("html-page-context", _load)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def classic(module: str) -> str:
    """The module as a script that leaves DataTables behind as ``window.DataTable``."""
    script, n_exports = re.subn(r"\bexport\{[^}]*?([\w$]+) as jQuery\b[^}]*\};?", r"window.DataTable=\1.fn.dataTable;", module)
    if n_exports != 1:
        raise ExtensionError(
            f"itables: {n_exports} lists of exports with jQuery where one was expected; pin the version that {__name__} was written for"
        )
    return f'(() => {{"use strict";\n{script}\n}})();\n'


def _write(app: Any) -> None:
    if app.builder.format == "html":
        folder = Path(app.outdir) / "_static"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / BUNDLE).write_text(classic(files("itables").joinpath("html", "dt_bundle.js").read_text(encoding="utf-8")), encoding="utf-8")


def _load(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    if _LONG.search(context.get("body", "")):
        app.add_js_file(BUNDLE, loading_method="defer")
        app.add_js_file("long-tables.js", loading_method="defer")
