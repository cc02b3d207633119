"""The calculator: one page that carries its styles, scripts and data, and asks nobody for anything.

It has a template of its own instead of the theme's. What may run in it is named by digest in its Content-Security-Policy, so that
nothing that a link brings along can. It is written anew by every build, because it reads far more than its chapter.
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

from sphinx.errors import ExtensionError

BOOK = Path(__file__).resolve().parents[1]
PAGE = "book/calculator"
#: In this order: each needs those before it.
SCRIPTS = ("vendor/preact.min.umd.js", "vendor/hooks.umd.js", "vendor/htm.umd.js", "core.js", "view.js")
LICENCES = ("vendor/preact-LICENSE.txt", "vendor/htm-LICENSE.txt")
#: The book's own choice of light or dark, before anything is drawn; where there is none, the system's.
THEME = """\
(() => {
  const system = matchMedia("(prefers-color-scheme: dark)");
  let mode = "auto";
  try { mode = localStorage.getItem("mode") || "auto"; } catch { /* a file may have no storage */ }
  const choose = () => { document.documentElement.dataset.theme = mode === "light" || mode === "dark" ? mode : system.matches ? "dark" : "light"; };
  choose();
  system.addEventListener("change", choose);
})();"""


def setup(app: Any) -> dict[str, bool]:
    """Register after the Open Graph tags are made, and have the page written every time."""
    app.connect("env-get-outdated", lambda app, env, *_: [PAGE] if PAGE in env.found_docs else [])
    app.connect("html-page-context", _page, priority=700)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _page(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> str | None:
    if pagename != PAGE:
        return None
    from nbutils import calculator

    context["calculator"] = parts(calculator.to_json(calculator.data()), context["body"])
    return "calculator.html"


def parts(data: str, body: str) -> dict[str, Any]:
    """What the template puts into the page: ``data``, JSON without ``<``, and ``body``, the chapter."""
    if "<" in data:
        raise ExtensionError("the data of the calculator could end the element that carries them; write them by nbutils.calculator.to_json")
    scripts = [_script(BOOK / "calculator" / name) for name in SCRIPTS]
    style = _text(BOOK / "calculator" / "page.css")
    icon = base64.b64encode((BOOK / "_static" / "favicon.svg").read_bytes()).decode()
    return {
        "policy": policy([THEME, *scripts], style),
        "icon": f"data:image/svg+xml;base64,{icon}",
        "style": style,
        "theme": THEME,
        "scripts": scripts,
        "licences": [_text(BOOK / "calculator" / name) for name in LICENCES],
        "data": data,
        "body": _about(body),
    }


def _about(body: str) -> str:
    """The chapter as a part of the page: without its title, a level of headings lower, and without the scripts that sphinx-thebe leaves in it."""
    body = re.sub(r"<h1>.*?</h1>|<script\b.*?</script>", "", body, flags=re.DOTALL)
    return re.sub(r"<(/?)h([2-5])\b", lambda found: f"<{found[1]}h{int(found[2]) + 1}", body)


def policy(scripts: list[str], style: str) -> str:
    """Only these scripts and this style run; nothing is fetched, sent or framed from anywhere."""
    allowed = " ".join(map(_digest, scripts))
    return f"default-src 'none'; script-src {allowed}; style-src {_digest(style)}; img-src data:; base-uri 'none'; form-action 'none'"


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _text(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if re.search(r"</(script|style)|<!--|-->", text, re.IGNORECASE):
        raise ExtensionError(f"{path.name} would end the element that it stands in: write <\\/, <\\!-- or --\\>")
    return text


def _script(path: Path) -> str:
    """A script without the address of its source map, which browsers would ask for."""
    return re.sub(r"^//# sourceMappingURL=\S*\s*", "", _text(path), flags=re.MULTILINE)
