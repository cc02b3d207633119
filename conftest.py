"""Every test, and every kernel that nbval starts, gets a home of its own: nobody's records or caches are read or written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import pytest

# Before nbutils or huggingface_hub is imported; both read their environment early. Stand-ins made once are kept for the session.
HOME = Path(tempfile.mkdtemp(prefix="nbutils-tests-"))
os.environ |= {"NBUTILS_HOME": str(HOME / "home"), "HF_HOME": str(HOME / "hub"), "HF_HUB_DISABLE_TELEMETRY": "1", "NO_COLOR": "1"}
# Here, not by MPLBACKEND: kernels inherit the environment and need their inline backend.
matplotlib.use("Agg")

PROJECT = Path(__file__).resolve().parent
NBUTILS = [sys.executable, "-c", "from nbutils.cli import main; main()"]


def pytest_unconfigure() -> None:
    # llama_cpp opens the null device twice on import and never closes it; Python would complain about that at the end.
    utils = sys.modules.get("llama_cpp._utils")
    for name in ("outnull_file", "errnull_file"):
        if file := getattr(utils, name, None):
            file.close()
    shutil.rmtree(HOME, ignore_errors=True)


# ── nbval ─────────────────────────────────────────────────────────────────────────────────────────


class _TextOnly(tuple[str, ...]):
    """Keys that nbval does not compare: its own, and every rendering of an output but the plain text."""

    __slots__ = ()

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or str(key).startswith(("text/html", "text/latex", "image/", "application/"))


def pytest_collectstart(collector: pytest.Collector) -> None:
    if hasattr(collector, "skip_compare"):
        collector.skip_compare = _TextOnly(collector.skip_compare)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    failed = terminalreporter.stats.get("failed", []) + terminalreporter.stats.get("error", [])
    if any(".ipynb::" in report.nodeid for report in failed):
        terminalreporter.write_line("outputs moved: if the change is meant, run 'nbutils notebooks' and commit the diff")


# ── what several tests start from ─────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Checkout:
    """A copy of the project that a test may build in, with a home of its own."""

    root: Path
    home: Path

    def nbutils(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command line with the copy's code and data."""
        environment = os.environ | {"PYTHONPATH": str(self.root / "src"), "NBUTILS_HOME": str(self.home)}
        environment.pop("NBUTILS_DATA", None)
        return subprocess.run([*NBUTILS, *arguments], cwd=self.root, env=environment, capture_output=True, text=True, timeout=400, check=False)

    def git(self, *arguments: str) -> str:
        identity = ["-c", "user.name=A Test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", *identity, *arguments], cwd=self.root, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def html(self) -> Path:
        return self.root / "_build" / "html"

    def copy(self, folder: Path) -> Checkout:
        """Another copy, with what is built; the home is shared."""
        shutil.copytree(self.root, folder, symlinks=True)
        return Checkout(folder, self.home)


@pytest.fixture(scope="session")
def fresh_checkout(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Checkout]:
    """Makes copies of the files that git knows or would add: what a clone has, with today's changes."""

    def make() -> Checkout:
        folder = tmp_path_factory.mktemp("checkout")
        listed = subprocess.run(["git", "ls-files", "-coz", "--exclude-standard"], cwd=PROJECT, capture_output=True, check=False)
        if listed.returncode != 0:
            pytest.skip("not a git checkout: what a clone would have is unknown")
        for name in filter(None, listed.stdout.decode().split("\0")):
            if (PROJECT / name).is_file():  # a deleted file is still listed
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(PROJECT / name, folder / name)
        _keep_three_device_pages(folder)
        checkout = Checkout(folder, tmp_path_factory.mktemp("home"))
        checkout.git("init", "--quiet")
        checkout.git("add", "--all")
        checkout.git("commit", "--quiet", "--message", "as cloned")
        return checkout

    return make


def _keep_three_device_pages(folder: Path) -> None:
    """A page for each of the other devices would show nothing new and take minutes."""
    (folder / "data" / "pages.yaml").write_text("devices: [dgx-spark, strix-halo, mac-studio-m4-max]\n", encoding="utf-8")


@dataclass(frozen=True)
class Built:
    """A checkout in which ``nbutils book`` has run, and what that said."""

    checkout: Checkout
    said: subprocess.CompletedProcess[str]


@pytest.fixture(scope="session")
def built(fresh_checkout: Callable[[], Checkout]) -> Built:
    """The book, built once per session with the smallest models and the shortest suite. Tests must leave it as it is."""
    checkout = fresh_checkout()
    said = checkout.nbutils("book", "--suite", "smoke", "--size", "small", "--cpu")
    assert said.returncode == 0, said.stdout[-3000:] + said.stderr[-3000:]
    return Built(checkout, said)


@pytest.fixture(scope="session")
def small_file() -> Path:
    """The smallest dense stand-in in Q4_K_M."""
    from nbutils import gguf_files, registry

    return gguf_files.make(gguf_files.StandIn("dense", "small", "Q4_K_M"), registry.load_format("Q4_K_M"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a home of one test's own will be; nothing is there, stand-ins neither."""
    monkeypatch.setenv("NBUTILS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry of one test's own, which it may change."""
    from helpers import copy_of_data

    return copy_of_data(tmp_path, monkeypatch)


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home for one test, with the session's stand-ins."""
    home, shared = tmp_path / "home", HOME / "home" / "cache"
    shared.mkdir(parents=True, exist_ok=True)
    home.mkdir()
    (home / "cache").symlink_to(shared, target_is_directory=True)
    monkeypatch.setenv("NBUTILS_HOME", str(home))
    return home


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process; gives exit code, standard output, standard error."""

    from nbutils import cli

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["nbutils", *map(str, arguments)])
        code: object = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code
        said = capfd.readouterr()
        return int(str(code or 0)), said.out, said.err

    return call
