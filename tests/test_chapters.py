"""What chapters and the README tell readers to type exists, and every term they link is in the glossary."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from papermill import inspect_notebook
from typer.main import get_command

from nbutils.cli import app
from nbutils.paths import project_dir

CHAPTERS = sorted((project_dir() / "book").glob("*.md"))
PAGES = [*CHAPTERS, project_dir() / "README.md", project_dir() / "CONTRIBUTING.md"]


def commands(program: str) -> Iterator[tuple[str, list[str]]]:
    """Page and words of every console line that starts with the program, with or without its folder."""
    for path in PAGES:
        for line in re.findall(rf"^[$>] (?:[\w.\\/]*[\\/])?({program} [^\n#]*)", path.read_text(encoding="utf-8"), re.MULTILINE):
            yield path.name, shlex.split(line)


@pytest.mark.parametrize(("page", "words"), commands("papermill"), ids=lambda found: found if isinstance(found, str) else " ".join(found[1:]))
def test_a_papermill_command_names_a_notebook_and_its_parameters(page: str, words: list[str]) -> None:
    known = inspect_notebook(str(project_dir() / words[1]))
    given = [words[i + 1] for i, word in enumerate(words) if word == "-p"]
    assert given
    assert set(given) <= known.keys()


@pytest.mark.parametrize(("page", "words"), commands("nbutils"), ids=lambda found: found if isinstance(found, str) else " ".join(found[1:]))
def test_an_nbutils_command_has_the_options_that_are_shown(page: str, words: list[str]) -> None:
    command = get_command(app)
    words = words[1:]
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]  # type: ignore[attr-defined]
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    assert {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)} <= options
    assert not hasattr(command, "commands"), "no command of nbutils"


def _terms(text: str) -> set[str]:
    """What ``{term}`` roles point at."""
    return {re.sub(r"^.*<([^>]+)>$", r"\1", found, flags=re.DOTALL).casefold() for found in re.findall(r"\{term\}`([^`]+)`", text)}


def test_every_term_that_a_chapter_links_is_in_the_glossary() -> None:
    glossary = (project_dir() / "book" / "glossary.md").read_text(encoding="utf-8")
    block = re.search(r"^```\{glossary\}\n(.*?)^```", glossary, re.MULTILINE | re.DOTALL)
    assert block is not None
    defined = {line.strip().casefold() for line in block[1].splitlines() if line and not line.startswith((" ", ":"))}
    linked = {path.name: _terms(path.read_text(encoding="utf-8")) - defined for path in CHAPTERS}
    assert {name: missing for name, missing in linked.items() if missing} == {}


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: Path(path).stem)
def test_the_words_that_a_page_must_not_show_are_not_in_its_prose(path: Path) -> None:
    prose = re.sub(r"```\{code-cell\}.*?\n```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert not re.findall(r"\bNone\b|\bnan\b|\binf\b|Error:|Traceback", prose)
