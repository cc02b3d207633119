"""``nbutils sweep`` as somebody uses it: look, run, run again, change a figure, see one fail."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

SUITE = """
id: tried
name: Tried
cells:
  - notebook: fit
    parameters: {device: rtx-4090, model: [qwen3-8b, llama-3.1-8b], format: [Q4_K_M, MXFP4]}
    title: "{model_name} on {device_name}"
"""


@pytest.fixture(scope="module")
def checkout(fresh_checkout: Callable[[], Any]) -> Any:
    """A copy of the project with a sweep of two cells, and two that cannot be."""
    made = fresh_checkout()
    (made.root / "data" / "suites" / "tried.yaml").write_text(SUITE, encoding="utf-8")
    return made


def test_a_sweep_from_the_first_look_to_a_changed_figure(checkout: Any) -> None:
    left_out = "2 left out: a format that the model is not published in"
    look = checkout.nbutils("sweep", "tried", "--dry-run")
    assert look.returncode == 0, look.stderr
    first, second, *rest = look.stdout.splitlines()
    assert first == "_build/sweeps/tried/pages/fit-qwen3-8b-Q4_K_M.ipynb: new"
    assert second == "_build/sweeps/tried/pages/fit-llama-3.1-8b-Q4_K_M.ipynb: new"
    assert rest == [left_out, "2 of 2 cells would run"]
    assert not (checkout.root / "_build" / "sweeps" / "tried").exists(), "a look changes nothing"

    ran = checkout.nbutils("sweep", "tried", "--jobs", "2")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[0] == left_out
    assert ran.stdout.splitlines()[1].startswith("2 done in ")
    assert sorted(line.partition("  ")[2] for line in ran.stderr.splitlines()) == [
        "Llama 3.1 8B on NVIDIA GeForce RTX 4090",
        "Qwen3 8B on NVIDIA GeForce RTX 4090",
    ]
    page = checkout.root / "_build" / "sweeps" / "tried" / "pages" / "fit-qwen3-8b-Q4_K_M.ipynb"
    assert "# Qwen3 8B on NVIDIA GeForce RTX 4090" in page.read_text(encoding="utf-8")

    again = checkout.nbutils("sweep", "tried", "--json")
    assert {name: json.loads(again.stdout)[name] for name in ("done", "kept", "failed", "notes")} == {
        "done": 0,
        "kept": 2,
        "failed": [],
        "notes": [left_out],
    }

    model = checkout.root / "data" / "models" / "qwen3-8b.yaml"
    model.write_text(model.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    look = checkout.nbutils("sweep", "tried", "--dry-run", "--json")
    (would,) = json.loads(look.stdout)["would_run"]
    assert would["parameters"]["model"] == "qwen3-8b"
    assert would["why"] == ["data/models/qwen3-8b.yaml changed"]


def test_a_cell_that_fails_is_named_with_a_command_that_runs_it(checkout: Any, tmp_path: Path) -> None:
    suite = checkout.root / "data" / "suites" / "failing.yaml"
    suite.write_text(
        "id: failing\nname: Failing\ncells: [{notebook: fit, parameters: {device: [rtx-4009], model: qwen3-8b}}]\n",
        encoding="utf-8",
    )
    ran = checkout.nbutils("sweep", "failing", "--jobs", "1")
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1] == "nbutils: 1 of 1 cells failed; the others are done and kept"
    failed, command, last = ran.stdout.splitlines()
    assert failed.startswith("failed: fit.ipynb: UnknownId: no device 'rtx-4009' in data/devices; did you mean 'rtx-4090'?")
    assert failed.endswith("(the run is kept in fit-rtx-4009.failed.ipynb)")
    assert last.startswith("0 done in ")
    assert last.endswith("1 failed, 0 had been done before")
    program, *arguments = shlex.split(command.partition("by itself: ")[2])
    assert program == "nbutils"
    by_itself = checkout.nbutils(*arguments)
    assert by_itself.returncode == 2
    assert "no device 'rtx-4009'" in by_itself.stderr


def test_an_interrupt_says_what_is_done_and_how_to_go_on(checkout: Any) -> None:
    environment = os.environ | {"PYTHONPATH": str(checkout.root / "src"), "NBUTILS_HOME": str(checkout.home)}
    command = [sys.executable, "-c", "from nbutils.cli import main; main()", "sweep", "what-fits", "--jobs", "1"]
    parent = subprocess.Popen(command, cwd=checkout.root, env=environment, stderr=subprocess.PIPE, text=True)
    assert parent.stderr is not None
    assert parent.stderr.readline().startswith("✓ 1 of ")
    children = psutil.Process(parent.pid).children(recursive=True)
    parent.send_signal(signal.SIGINT)
    *_, how, last = parent.communicate(timeout=30)[1].splitlines()
    assert parent.returncode == 130
    assert re.fullmatch(r"nbutils: [12] of \d+ cells are done and kept; to go on: nbutils sweep what-fits", how)
    assert last == "nbutils: interrupted"
    assert not psutil.wait_procs(children, timeout=10)[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("pagse",), "'pagse' is no sweep of data/suites; did you mean 'pages'?"),
        (("pages", "--jobs", "-1"), "--jobs is -1; it must be 1 or more, or 0 for one per core"),
    ],
)
def test_misuse_is_one_line(arguments: tuple[str, ...], said: str, run: Callable[..., tuple[int, str, str]]) -> None:
    assert run("sweep", *arguments) == (2, "", f"nbutils: {said}\n")
