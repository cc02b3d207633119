"""Leave out the scripts of sphinx-thebe, which Jupyter Book always loads.

This book is read, not run in the page. The scripts name another host, and, declared twice, they put an error on the
console of every page.
"""

from __future__ import annotations

from typing import Any


def setup(app: Any) -> dict[str, bool]:
    """Register the filter, late, so that every script has been added."""
    app.connect("html-page-context", _drop, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _drop(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    context["script_files"] = [script for script in context.get("script_files", []) if not _is_thebe(script)]


def _is_thebe(script: Any) -> bool:
    body = getattr(script, "attributes", {}).get("body") or ""
    return "thebe" in str(getattr(script, "filename", "")) or "THEBE_JS_URL" in body
