"""Three files say what to install: for pip with any version, for conda, and pinned. They must say the same."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
GROUPS = {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
WANTED = {canonicalize_name(r.name): r for r in (Requirement(text) for group in GROUPS.values() for text in group)}
each_package = pytest.mark.parametrize("name", sorted(WANTED))


def conda() -> dict[str, str]:
    """Name and version rule of every line of ``environment.yml``, its pip section included; one ``=`` of conda is pip's ``==``."""
    parsed = {}
    for line in yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]:
        for item in line["pip"] if isinstance(line, dict) else [line]:
            found = re.fullmatch(r"([A-Za-z0-9._-]+)\s*(.*)", item)
            assert found, item
            parsed[canonicalize_name(found[1])] = re.sub(r"^=(?!=)", "==", found[2])
    return parsed


@dataclass(frozen=True)
class Pin:
    version: Version
    hashes: list[str]
    marker: Marker | None

    def applies(self, python: str) -> bool:
        environment = {"python_version": python.rpartition(".")[0], "python_full_version": python}
        return self.marker is None or self.marker.evaluate(environment)


@cache
def locked() -> dict[str, list[Pin]]:
    """The pins of ``requirements.lock``; a package may have one per version of Python."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    joined = re.sub(r"\\\n\s*", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE))
    found: dict[str, list[Pin]] = {}
    for line in filter(None, map(str.strip, joined.splitlines())):
        requirement, *hashes = re.split(r"\s+--hash=", line)
        parsed = Requirement(requirement)
        (rule,) = parsed.specifier
        assert rule.operator == "==", line[:80]
        found.setdefault(canonicalize_name(parsed.name), []).append(Pin(Version(rule.version), hashes, parsed.marker))
    return found


@each_package
def test_conda_gets_the_same_package_by_the_same_rule(name: str) -> None:
    assert name in conda(), f"{name} stands in pyproject.toml and not in environment.yml"
    assert SpecifierSet(conda()[name]) == WANTED[name].specifier


def test_conda_gets_nothing_else_but_what_compiles_llama_cpp() -> None:
    assert set(conda()) - set(WANTED) <= {"python", "pip", "cmake", "cxx-compiler", "ninja"}


def test_python_is_the_same_for_both() -> None:
    assert SpecifierSet(conda()["python"]) == SpecifierSet(PROJECT["requires-python"])


@each_package
@pytest.mark.parametrize("python", ["3.11.7", "3.12.3", "3.13.1"])
def test_the_lock_has_one_pin_within_the_rule_for_every_python(name: str, python: str) -> None:
    (pin,) = [pin for pin in locked()[name] if pin.applies(python)]
    assert pin.version in WANTED[name].specifier


def test_every_pin_has_hashes() -> None:
    assert len(locked()) > len(WANTED), "the lock holds what the packages need, too"
    for name, pins in locked().items():
        for pin in pins:
            assert pin.hashes, name
            assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", h) for h in pin.hashes), name


def test_the_lock_names_no_index_and_no_address() -> None:
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert not re.search(r"https?:|--index|--extra-index|--find-links|--trusted-host|file:| @ ", text)


def test_the_engine_that_runs_here_is_the_locked_one() -> None:
    (pin,) = locked()["llama-cpp-python"]
    assert Version(version("llama-cpp-python")) == pin.version, "records name the build; it is pinned exactly"
