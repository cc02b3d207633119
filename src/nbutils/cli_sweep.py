"""``nbutils sweep``: many cells, gone on with where they stopped."""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from nbutils import grid, registry, sweep
from nbutils.errors import NbutilsError, UsageError
from nbutils.printing import AsJson, err, out, print_json
from nbutils.sweep import Cell, Store, Summary

__all__ = ["Shown", "register"]

#: As many reasons as fit in a line.
_FEW = 3


def register(app: typer.Typer) -> None:
    """Add this module's commands to ``app``."""
    app.command("sweep")(sweep_command)


def sweep_command(
    suite: Annotated[str, typer.Argument(help="A sweep of data/suites, by file stem: pages, what-fits, stand-ins.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would run and why, and run nothing.")] = False,
    jobs: Annotated[int, typer.Option("--jobs", "-j", help="Pages made side by side on this machine; 0 means one per core, 8 at most.")] = 0,
    scheduler: Annotated[str, typer.Option(help="Address of a Dask scheduler, as tcp://host:8786, whose workers run the cells.")] = "",
    wait_s: Annotated[float, typer.Option("--wait", min=0, help="With --scheduler: seconds to wait for a worker where none can run a cell.")] = 30.0,
    tls_ca: Annotated[str, typer.Option(help="With a scheduler at tls://: its authority's certificate, a file.")] = "",
    tls_cert: Annotated[str, typer.Option(help="The same: your certificate, a file.")] = "",
    tls_key: Annotated[str, typer.Option(help="The same: your key, a file.")] = "",
    as_json: AsJson = False,
) -> None:
    """Run a notebook over a grid of its parameters. What is done stays done: run it again to go on after a failure or a pulled plug.

    A cell runs when it is new, or its notebook, its parameters or a file that it read has changed. Example: nbutils sweep what-fits --dry-run
    """
    if jobs < 0:
        raise UsageError(f"--jobs is {jobs}; it must be 1 or more, or 0 for one per core")
    wanted = registry.load_sweep(suite)
    cells, left_out = grid.cells_of(wanted)
    elsewhere: list[Cell] = []
    if not scheduler:
        cells, elsewhere = grid.on_this_machine(cells)
    notes = [f"{count} left out: {reason}" for reason, count in left_out.items()]
    if elsewhere:
        names = ", ".join(sorted({cell.device for cell in elsewhere}))
        notes.append(f"{len(elsewhere)} left out: for {names}, and this is another machine; run it there, or give --scheduler")
    store = Store(suite)
    if dry_run:
        _list(cells, sweep.unfinished(cells, store), notes, as_json)
        return
    with ExitStack() as stack:
        stack.enter_context(store.lock())
        todo = sweep.unfinished(cells, store)
        for cell in cells:
            store.restore(cell)
        shown = stack.enter_context(Shown(len(todo)))
        try:
            waiting = [cell for cell, _ in todo]
            if scheduler and waiting:
                runner = _fleet(scheduler, store, waiting, shown, wait_s, ca=tls_ca, cert=tls_cert, key=tls_key)
            else:
                runner = sweep.Local(store, jobs or min(8, os.cpu_count() or 1))
            summary = sweep.run(waiting, store, runner, shown)
        except (KeyboardInterrupt, SystemExit):
            again = f"nbutils sweep {suite}" + (f" --scheduler {scheduler}" if scheduler else "")
            err.print(
                f"nbutils: {shown.done} of {len(todo)} cells are done and kept; to go on: {again}", markup=False, highlight=False, soft_wrap=True
            )
            raise
    _report(summary, len(cells) - len(todo), notes, as_json)
    if summary.failed:
        raise NbutilsError(f"{len(summary.failed)} of {len(todo)} cells failed; the others are done and kept")


def _fleet(scheduler: str, store: Store, cells: list[Cell], shown: Shown, wait_s: float, **tls: str) -> sweep.Runner:
    from nbutils import cluster

    return cluster.Fleet(scheduler, store, cells, tls=cluster.Tls(**tls), wait_s=wait_s, say=shown.say)


# ── what is shown ─────────────────────────────────────────────────────────────────────────────────


class Shown(sweep.Watch):
    """Shows a sweep on a terminal: how many are done and failed, what runs, the time left. In a log it is a line for each cell."""

    def __init__(self, total: int) -> None:
        self.done, self._failed, self._total = 0, 0, total
        self._running: dict[str, str] = {}
        self._guard = threading.Lock()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=err,
        )
        self._task = self._progress.add_task("", total=total)
        self._live = Live(console=err, get_renderable=self._rendered, transient=True, refresh_per_second=4)

    def __enter__(self) -> Shown:
        if err.is_terminal and self._total:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def say(self, line: str) -> None:
        """Show a line above what moves."""
        err.print(line, markup=False, highlight=False, soft_wrap=True)

    def started(self, cell: Cell) -> None:
        with self._guard:
            self._running[cell.id] = cell.name

    def told(self, cell: Cell, line: str) -> None:
        with self._guard:
            self._running[cell.id] = f"{cell.name}: {line}"

    def ended(self, cell: Cell, problem: str) -> None:
        with self._guard:
            self._running.pop(cell.id, None)
            self.done, self._failed = self.done + (not problem), self._failed + bool(problem)
            self._progress.advance(self._task)
        if problem:
            self.say(f"✗ {problem}")
        elif not err.is_terminal:
            self.say(f"✓ {self.done + self._failed} of {self._total}  {cell.name}")

    def _rendered(self) -> Group:
        with self._guard:
            counts = f"{self.done} done, {len(self._running)} running, {self._failed} failed"
            self._progress.update(self._task, description=counts)
            return Group(self._progress, *(Text(f"  {line}", no_wrap=True, overflow="ellipsis") for line in self._running.values()))


def _list(cells: list[Cell], todo: list[tuple[Cell, list[str]]], notes: list[str], as_json: bool) -> None:
    if as_json:
        rows = [
            {"output": cell.output, "notebook": cell.notebook, "parameters": cell.parameters, "device": cell.device, "why": why} for cell, why in todo
        ]
        print_json({"cells": len(cells), "would_run": rows, "notes": notes})
        return
    for cell, why in todo:
        more = f", and {len(why) - _FEW} more" if len(why) > _FEW else ""
        out.print(f"{cell.output}: {'; '.join(why[:_FEW])}{more}", markup=False, highlight=False, soft_wrap=True)
    for line in [*notes, f"{len(todo)} of {len(cells)} cells would run"]:
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def _report(summary: Summary, kept: int, notes: list[str], as_json: bool) -> None:
    if as_json:
        failed: list[dict[str, Any]] = [{"output": cell.output, "error": problem, "rerun": sweep.rerun(cell)} for cell, problem in summary.failed]
        print_json({"done": summary.done, "kept": kept, "failed": failed, "took_s": round(summary.took_s, 3), "notes": notes})
        return
    for cell, problem in summary.failed:
        out.print(
            f"failed: {problem}\n  run it by itself{f' on {cell.device}' if cell.device else ''}: {sweep.rerun(cell)}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    for line in notes:
        out.print(line, markup=False, highlight=False, soft_wrap=True)
    out.print(
        f"{summary.done} done in {summary.took_s:.1f} s, {len(summary.failed)} failed, {kept} had been done before",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
