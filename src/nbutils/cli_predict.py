"""``nbutils predict`` and ``nbutils calibrate``: how fast it will be, and what that is fitted to."""

from __future__ import annotations

from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Annotated, Literal

import typer

from nbutils import calibrate, frames_predict, predict, registry
from nbutils.errors import MissingExtra, NbutilsError, UsageError, did_you_mean
from nbutils.explain import explain
from nbutils.frames_predict import Phase
from nbutils.printing import AsJson, err, out, print_json, rows_table

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add this module's commands to ``app``."""
    app.command("predict")(predict_command)
    app.command("calibrate")(calibrate_command)


def predict_command(
    device: Annotated[str, typer.Option("--device", "-d", help="A device id; 'nbutils devices' lists them.")] = "",
    model: Annotated[str, typer.Option("--model", "-m", help="A model id; 'nbutils models' lists them.")] = "",
    format_id: Annotated[str, typer.Option("--format", "-f", help="A format of data/formats.yaml; the usual one when left out.")] = "",
    depth: Annotated[int, typer.Option(help="Tokens in the cache, on average over what is decoded.")] = 0,
    engine: Annotated[str, typer.Option(help=f"{', '.join(predict.ENGINES)}; the usual one when left out.")] = "",
    backend: Annotated[str, typer.Option(help="CUDA, Metal, ROCm, Vulkan, SYCL or CPU; the device's usual one when left out.")] = "",
    phase: Annotated[str, typer.Option(help="decode or prefill.")] = "decode",
    cases: Annotated[Path | None, typer.Option(help="A CSV file of cases instead; data/README.md lists its columns.")] = None,
    out_file: Annotated[Path | None, typer.Option("--out", help="Where the cases go with their answers.")] = None,
    as_json: AsJson = False,
) -> None:
    """How fast it will be: the expected rate of one sequence with a range that holds nine times in ten, line by line.

    Constants are fitted to what others measured, by kind of machine and engine; the range is wider where few or none did.
    Example: nbutils predict --device rtx-spark-n1x --model qwen3-30b-a3b --format Q4_K_M --depth 8192
    """
    if cases is not None or out_file is not None:
        if cases is None or out_file is None:
            raise UsageError("--cases and --out go together: a CSV file of cases, and where the answers go")
        if device or model:
            raise UsageError("--cases has a device and a model in every row; leave --device and --model out")
        _file(cases, out_file, as_json)
        return
    if not device or not model:
        raise UsageError("--device and --model are needed, or --cases and --out")
    phase = phase.lower()
    if phase not in ("decode", "prefill"):
        raise UsageError(f"--phase is {phase!r}{did_you_mean(phase, ('decode', 'prefill'))}")
    if depth < 0:
        raise UsageError(f"--depth is {depth}; it must be 0 or more")
    chosen: Phase = "prefill" if phase == "prefill" else "decode"
    asked = {"depth": depth, "engine": engine, "backend": backend}
    if as_json:
        answer = frames_predict.expected(device, model, format_id, depth=depth, engine=engine, backend=backend, phase=chosen)
        print_json({"device": device, "model": model, "format": format_id, "phase": phase} | asked | asdict(answer))
        return
    lines = frames_predict.expected_lines(device, model, format_id, depth=depth, engine=engine, backend=backend, phase=chosen)
    out.print(explain(lines), highlight=False, soft_wrap=True, markup=False)


def _file(cases: Path, out_file: Path, as_json: bool) -> None:
    n_rows, n_bad = frames_predict.predict_file(cases, out_file)
    if as_json:
        print_json({"rows": n_rows, "without_answer": n_bad, "out": str(out_file)})
    else:
        out.print(f"{n_rows} {'row' if n_rows == 1 else 'rows'}: {out_file}", highlight=False, soft_wrap=True, markup=False)
    if n_bad:
        raise NbutilsError(f"{n_bad} of {n_rows} rows have no answer; the column 'basis' of {out_file} says why")


def calibrate_command(
    files: Annotated[
        list[Path] | None, typer.Argument(help="CSV files of published decode and prefill rates; data/README.md lists their columns.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fit the constants of 'predict' anew, to these files and to data/published, and write data/calibration.yaml.

    Takes some minutes: every device and every model is left out once. Example: nbutils calibrate decode.csv prefill.csv
    """
    try:
        import scipy  # noqa: F401 - needed below, and named here with the way out
    except ImportError:
        raise MissingExtra("fitting needs scipy: pip install 'nbutils[calibrate]', or scipy itself") from None
    for path in files or []:
        if not path.is_file():
            raise UsageError(f"no file {str(path)!r}; name CSV files of published rates")
    with err.status("fitting, with every device and every model left out once …"):
        found = calibrate.calibrate(files or [], date.today())
        path = calibrate.write(found)
    registry.load_calibration()
    errors = [e for e in found.errors if e.group in ("all", "naive")]
    if as_json:
        print_json({"out": str(path), "rows": found.rows, "errors": [e.model_dump() for e in errors]})
        return
    words: dict[Literal["none", "device", "model"], str] = {"none": "nothing", "device": "device", "model": "model"}
    rows = [e.model_dump() | {"left_out": words[e.left_out], "group": "naive" if e.group == "naive" else "fitted"} for e in errors]
    columns = {
        "phase": ("phase", "{}"),
        "group": ("formula", "{}"),
        "kind": ("model", "{}"),
        "left_out": ("left out", "{}"),
        "rows": ("rates", "{}"),
        "median": ("median off", "{:.1%}"),
        "p90": ("nine in ten", "{:.0%}"),
        "coverage": ("inside", "{:.0%}"),
        "width": ("width", "{:.2f}"),
    }
    out.print(rows_table(f"{path}", rows, columns))
