"""``nbutils …``: the book and its parts from a terminal. Errors are one line; exit code 2 is misuse, 1 is failure."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

import nbutils
from nbutils import (
    build,
    cli_claims,
    cli_limits,
    cli_measure,
    cli_predict,
    cli_records,
    cli_sweep,
    contribute,
    frames,
    gguf_files,
    notebook,
    paths,
    records,
    registry,
    sweep,
)
from nbutils.cli_measure import Cpu, SuiteName, Threads, summary
from nbutils.errors import NbutilsError, UsageError, did_you_mean
from nbutils.printing import AsJson, err, out, print_json, rows_of

__all__ = ["main"]

app = typer.Typer(
    name="nbutils",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Limits, fit checks and measurements of local AI machines, and the book made of them.",
    epilog="Start with 'nbutils book'. Measurements go to your own data folder; nothing tracked by git is changed.",
)
cli_limits.register(app)
cli_claims.register(app)
cli_measure.register(app)
cli_predict.register(app)
cli_records.register(app)
cli_sweep.register(app)
Size = Annotated[str, typer.Option(help="Size of the stand-in models: small, base or wide; by default it suits the machine.")]
Small = Annotated[bool, typer.Option("--small", help="The same as --size small: some tens of MB, for trying things out.")]


def main() -> None:
    """Entry point: turns every expected error into one line and an exit code."""
    # A polite request to end must end what we started too, which happens on the way out of an exception.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        code = app(standalone_mode=False) or 0
        if code == 130:  # how typer says that the terminal interrupted
            raise KeyboardInterrupt
        sys.exit(code)
    except NbutilsError as error:
        err.print(f"nbutils: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        err.print("nbutils: interrupted")
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        # The parser's own complaints; typer carries click inside it, so their class has no stable name.
        if not hasattr(error, "format_message"):
            raise
        if message := error.format_message().strip():
            err.print(f"nbutils: {message.rstrip('.')} ('nbutils --help' lists the commands)", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        out.print(f"nbutils {nbutils.__version__}")
        raise typer.Exit


# ── the book ──────────────────────────────────────────────────────────────────────────────────────


@app.command()
def book(
    suite: SuiteName = "quick",
    size: Size = "",
    small: Small = False,
    cpu: Cpu = False,
    threads: Threads = 0,
    published: Annotated[bool, typer.Option("--published", help="Build what is published: no measuring, no page of this machine.")] = False,
    as_json: AsJson = False,
) -> None:
    """Probe and measure this machine, run every notebook, build the book.

    What has not changed since last time is not run again. Example: nbutils book --suite full
    """
    options = build.Options(suite=suite or "quick", size=_size(size, small), cpu=cpu, n_threads=threads, published=published)
    with records.underway():
        result = build.build_book(options, err if as_json else out)
    if as_json:
        measured = rows_of(frames.measured_frame(result.records)) if result.records else []
        print_json({"book": str(result.index), "stages_s": result.stages_s, "measured": measured})
        return
    if result.records:
        out.print(summary(result.records))
    out.print(f"stages: {', '.join(f'{name} {s:.1f} s' for name, s in result.stages_s.items())}", highlight=False, soft_wrap=True)
    out.print(f"book: {result.index}", highlight=False, soft_wrap=True, markup=False)


def _size(size: str, small: bool) -> str:
    if small and size not in ("", "small"):
        raise UsageError(f"both --small and --size {size} are given; give one")
    if size and size not in build.SIZES:
        raise UsageError(f"no size {size!r}{did_you_mean(size, build.SIZES)}")
    return "small" if small else size


@app.command("stand-ins")
def stand_ins(size: Size = "", small: Small = False, as_json: AsJson = False) -> None:
    """Make the stand-in models and say where they are: a dense and a MoE one, in three formats.

    They are real architectures with random weights, for measuring where no weights can be downloaded. Example: nbutils stand-ins --small
    """
    with err.status("making stand-in models …") as status:
        made = build.make_stand_ins(_size(size, small) or "base", status.update)
    rows = [{"name": s.name, "format": s.format, "bytes": p.stat().st_size, "sha256": gguf_files.sha256(p), "path": str(p)} for s, p in made]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        out.print(f"{row['bytes']:>13,} bytes  {row['name']} {row['format']:<6}  {row['path']}", highlight=False, soft_wrap=True, markup=False)


@app.command()
def clean() -> None:
    """Remove what builds made inside the checkout. Records and stand-in models lie elsewhere and stay."""
    gone = build.clean(paths.project_dir())
    out.print("removed: " + (", ".join(p.name for p in gone) if gone else "nothing"))


# ── its parts ─────────────────────────────────────────────────────────────────────────────────────


@app.command()
def run(
    name: Annotated[str, typer.Argument(help="A notebook of notebooks/, by stem: fit, device, probe, measure, sustain, endpoint.")],
    output: Annotated[Path, typer.Argument(help="Where the executed notebook goes.")],
    parameter: Annotated[list[str] | None, typer.Option("--parameter", "-p", help="NAME=VALUE; the value is YAML. May be repeated.")] = None,
) -> None:
    """Run one notebook by papermill, with its parameters checked first.

    Example: nbutils run fit out.ipynb -p device=rtx-4090 -p model=qwen3-32b
    """
    import yaml

    values = {}
    for item in parameter or []:
        key, equals, text = item.partition("=")
        if not equals:
            raise UsageError(f"parameter {item!r} has no '='; write NAME=VALUE")
        try:
            values[key] = yaml.safe_load(text) if text else ""
        except yaml.YAMLError:
            values[key] = text
    known = {p.stem: p for p in notebook.notebook_files()}
    path = known.get(name, Path(name)).absolute()
    if not path.exists():
        raise UsageError(f"no notebook {name!r}{did_you_mean(name, known)}")
    with records.underway():
        sweep.run_cell(sweep.Cell(notebook=str(path), output=str(output.absolute()), parameters=values), sys.stdout)
    out.print(f"notebook: {output}", highlight=False, soft_wrap=True, markup=False)


@app.command("check-data")
def check_data() -> None:
    """Check every file of the registry and every committed record; one line per problem."""
    problems = [*registry.check_data(), *contribute.store_problems()]
    committed = {path.relative_to(records.committed_dir()).as_posix() for path in records.list_records(records.committed_dir())}
    for run_id in registry.run_ids():
        try:
            missing = [name for name in registry.load_run(run_id).records if name not in committed]
        except NbutilsError:
            continue  # already among the problems
        problems += [f"data/runs/{run_id}.yaml: records: no file {name!r} in data/records" for name in missing]
    for problem in problems:
        err.print(problem, highlight=False, soft_wrap=True, markup=False)
    if problems:
        raise NbutilsError(f"{len(problems)} {'problem' if len(problems) == 1 else 'problems'} in data/")
    out.print(f"{len(registry.device_ids())} devices, {len(registry.model_ids())} models, {len(committed)} records: no problem")


@app.command()
def notebooks() -> None:
    """Run the notebooks of notebooks/ with their defaults and store the outputs that nbval compares."""
    for path in notebook.notebook_files():
        with err.status(f"{path.name} …"):
            changed = notebook.normalise(path)
        out.print(f"{path.name}: {'refreshed' if changed else 'unchanged'}", highlight=False)
