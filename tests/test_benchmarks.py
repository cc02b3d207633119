"""The comparisons kept in ``data/benchmarks``, and the arithmetic of the program that makes one of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bench_parity
from nbutils import benchmarks, paths, plots
from nbutils.errors import DataError, UsageError

ROW = {"model": "stand-in-dense-base", "format": "F16", "test": "tg128 @ d4096"}
PARITY: dict[str, Any] = {
    "date": "2026-11-20",
    "machine": {"cpu": "Example CPU", "cores": 2, "memory_bytes": 8_000_000_000, "system": "Linux 6.8"},
    "versions": {"nbutils": "0.1.0", "llama_cpp_python": "0.3.36"},
    "rounds": 3,
    "rows": [ROW | {"ours_tok_per_s": [10.0, 11.0, 30.0], "llama_bench_tok_per_s": [10.0, 10.0, 20.0], "ratio": 1.1}],
}
SERVED = PARITY | {"rows": [{"name": "a model", "in_process_tok_per_s": [10.0, 20.0], "served_tok_per_s": [9.0, 19.0], "ratio_median": 0.925}]}
BOTH = [("parity.json", benchmarks.parity_table, PARITY, "make parity"), ("served.json", benchmarks.served_table, SERVED, "bench_served.py")]
each_file = pytest.mark.parametrize(("name", "table", "kept", "command"), BOTH, ids=[name for name, *_ in BOTH])


def write(folder: Path, name: str, kept: Any) -> Path:
    path = folder / name
    path.write_text(json.dumps(kept), encoding="utf-8")
    return path


# ── what is kept ──────────────────────────────────────────────────────────────────────────────────


def test_a_ratio_is_taken_in_each_pair_and_the_median_of_these_is_shown(tmp_path: Path) -> None:
    """Not the ratio of the medians: a repetition that something else slowed down had one beside it that was slowed too."""
    (row,) = benchmarks.parity_frame(write(tmp_path, "parity.json", PARITY)).to_dict("records")
    assert row == ROW | {
        "ours_tok_per_s": 11.0,
        "llama_bench_tok_per_s": 10.0,
        "ratio": 1.1,
        "ratio_low": 1.05,
        "ratio_high": 1.3,
        "n": 3,
    }


def test_served_is_over_in_process(tmp_path: Path) -> None:
    (row,) = benchmarks.served_frame(write(tmp_path, "served.json", SERVED)).to_dict("records")
    assert (row["ratio_low"], row["ratio"], row["ratio_high"]) == pytest.approx((0.9, 0.925, 0.95))


@each_file
def test_a_table_shows_rates_with_units_and_ratios(name: str, table: Any, kept: Any, command: str, tmp_path: Path) -> None:
    frame, headings, formats = table(write(tmp_path, name, kept))
    html = plots.table(frame, headings, formats).to_html()
    assert html.count("(tok/s)") == 2
    assert "ratio, median" in html


@each_file
@pytest.mark.parametrize(
    "broken",
    [
        None,
        "{",
        {},
        [],
        {"rows": [{"name": "a"}]},
        {"rows": 7},
        {"rows": [7]},
        {"rows": [ROW | {"name": "a"} | {f"{who}_tok_per_s": [0.0] for who in ("ours", "in_process", "llama_bench", "served")}]},
    ],
    ids=str,
)
def test_a_file_that_is_missing_or_broken_names_the_command_that_makes_it(
    name: str, table: Any, kept: Any, command: str, broken: Any, tmp_path: Path
) -> None:
    path = tmp_path / name
    if broken is not None:
        path.write_text(broken if isinstance(broken, str) else json.dumps(broken), encoding="utf-8")
    with pytest.raises(DataError, match=rf"{name}: no comparison to show .*{command}") as caught:
        table(path)
    assert str(tmp_path) not in str(caught.value)


def test_rounds_of_one_side_alone_are_no_comparison(tmp_path: Path) -> None:
    uneven = {"rows": [PARITY["rows"][0] | {"ours_tok_per_s": [10.0]}]}
    with pytest.raises(DataError, match="make parity"):
        benchmarks.parity_frame(write(tmp_path, "parity.json", uneven))


@each_file
def test_where_when_and_with_what_is_a_sentence(name: str, table: Any, kept: Any, command: str, tmp_path: Path) -> None:
    told = benchmarks.made_line(name.removesuffix(".json"), write(tmp_path, name, kept))
    n = "3 pairs" if name == "parity.json" else "2 rounds"
    assert told == f"Made 2026-11-20 on Example CPU, 2 cores, 8.0 GB, Linux 6.8, with nbutils 0.1.0, llama-cpp-python 0.3.36; {n}."
    for broken in ({"rounds": 1, "machine": "unknown"}, kept | {"machine": {}}, kept | {"date": None}, kept | {"versions": 7}):
        with pytest.raises(DataError, match=command):
            benchmarks.made_line(name.removesuffix(".json"), write(tmp_path, name, broken))


def test_how_far_the_rows_agree_is_a_sentence(tmp_path: Path) -> None:
    other = ROW | {"test": "pp512", "ours_tok_per_s": [10.04], "llama_bench_tok_per_s": [10.0], "ratio": 1.004}
    told = benchmarks.parity_line(write(tmp_path, "parity.json", PARITY | {"rows": [*PARITY["rows"], other]}))
    assert told == (
        "1 of 2 medians lie within 1% of llama-bench's; the median over all rows is 1.052, the furthest 1.100."
        " In the median row half of the pairs lie within 23.8% of each other, and the median has a standard error of 13.41%."
    )


@pytest.mark.parametrize("name", ["parity", "served", "power"])
def test_what_is_kept_in_the_registry_can_be_shown(name: str) -> None:
    path = paths.data_dir() / "benchmarks" / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"{path.name} was not made yet")
    assert benchmarks.made_line(name).startswith("Made 20")
    if table := {"parity": benchmarks.parity_table, "served": benchmarks.served_table}.get(name):
        for row, said in zip(table()[0].to_dict("records"), json.loads(path.read_text(encoding="utf-8"))["rows"], strict=True):
            assert row["ratio"] == pytest.approx(said.get("ratio", said.get("ratio_median")), abs=1e-4)


# ── make parity ───────────────────────────────────────────────────────────────────────────────────

pairs = st.tuples(st.floats(1, 1e5), st.floats(0.5, 2)).map(lambda drawn: (drawn[0] * drawn[1], drawn[0]))


@given(rounds=st.lists(st.lists(pairs, min_size=1, max_size=4), min_size=1, max_size=3))
def test_rounds_add_up(rounds: list[list[tuple[float, float]]], tmp_path_factory: pytest.TempPathFactory) -> None:
    rows: list[dict[str, Any]] = []
    for found in rounds:
        rows = bench_parity.add_round(rows, {(ROW["model"], ROW["format"], ROW["test"]): found})
    (row,) = rows
    every = [pair for found in rounds for pair in found]
    assert len(row["ours_tok_per_s"]) == len(row["llama_bench_tok_per_s"]) == len(every)
    assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
    assert row["ratio"] == pytest.approx(median(a / b for a, b in every), rel=5e-3)  # of rates kept to three decimals
    assert bench_parity.worst_percent(rows) == pytest.approx(abs(row["ratio"] - 1) * 100, abs=1e-3)
    shown = benchmarks.parity_frame(write(tmp_path_factory.mktemp("parity"), "parity.json", {"rows": rows}))
    assert shown["ratio"].iloc[0] == pytest.approx(row["ratio"], abs=1e-5)


def test_who_goes_first_alternates_from_pair_to_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are right beside each other, and a machine that gets slower favours neither."""
    monkeypatch.setattr(bench_parity, "QUIET_PERCENT", 101)  # however busy the machine is
    ran: list[str] = []
    bench_parity.in_turn(lambda turn: ran.append(f"ours {turn}"), lambda turn: ran.append(f"theirs {turn}"), 3, lambda: ran.append("-"))
    assert ran == ["ours 0", "theirs 0", "-", "theirs 1", "ours 1", "-", "ours 2", "theirs 2", "-"]


#: What llama-bench does with llama.cpp, as far as bench_parity.c stands between: a model, then contexts of two blocks each.
LIKE_LLAMA_BENCH = """
#include <stdio.h>
#include <stdlib.h>
void *ggml_aligned_malloc(size_t), *llama_model_load_from_file(const char *);
void ggml_aligned_free(void *, size_t), llama_free(void *);
int _Z11llama_benchiPPc(int n_words, char **words) {
    void *model = llama_model_load_from_file(words[2]);
    for (int i = 0; i < 3; i++) {
        void *context = ggml_aligned_malloc(100000), *other = ggml_aligned_malloc(i < 2 ? 70000 : 80000);
        printf("%zu %zu %zu\\n", (size_t)model, (size_t)context, (size_t)other);
        fflush(stdout);
        ggml_aligned_free(other, 0);
        llama_free(context);
    }
    return n_words;
}
"""

#: Its contexts with one seed, the same again, and another.
TAKES_TURNS = """
import sys
from pathlib import Path
from types import SimpleNamespace
import bench_parity
from nbutils import measure
from nbutils.errors import EngineError
folder = Path(sys.argv[1])
between = bench_parity.load_between(folder / "libbench-parity.so")
settings = measure.settings_of(measure.Knobs(n_threads=1), use_gpu=False, n_ctx=512)
plan = bench_parity.Plan(folder / "llama-bench", folder / "libbench-parity.so", [], [0], 3, settings)
llama = SimpleNamespace(llama_free=lambda context: print("freed", context.value, flush=True))
theirs = bench_parity.LlamaBench(plan, "model.gguf", 0, llama, 4711, between)
for seed in (1, 1, 2):
    between.beside_context(seed)
    theirs.context()
    print("asked", between.beside_asked(), flush=True)
try:
    theirs.context()
except EngineError as error:
    print(error, flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="llama-bench is called inside a process as Linux can")
def test_contexts_of_a_pair_lie_in_the_same_places_and_what_they_ask_for_is_seen(tmp_path: Path) -> None:
    """In a process of its own, with a program that does to llama.cpp what llama-bench does."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    bench_parity.build_between(tmp_path)
    (tmp_path / "like.c").write_text(LIKE_LLAMA_BENCH)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "libllama-bench-impl.so", tmp_path / "like.c"], check=True)
    environment = os.environ | {"PYTHONPATH": str(Path(bench_parity.__file__).parent)}
    done = subprocess.run([sys.executable, "-c", TAKES_TURNS, tmp_path], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    made, freed, asked = lines[0:9:3], lines[1:9:3], lines[2:9:3]
    assert {int(model) for model, *_ in made} == {4711}, "the model that is loaded already"
    assert [line[1] for line in freed] == [context for _, context, _ in made], "left where a context is freed, which is done"
    assert made[0] == made[1], "one seed, the same places"
    assert set(made[1][1:]).isdisjoint(made[2][1:])
    assert asked[0] == asked[1] != asked[2], "80,000 bytes are not 70,000"
    assert " ".join(lines[9]) == "llama-bench ended before its last context"


def test_rounds_of_another_build_or_machine_are_not_added(tmp_path: Path) -> None:
    head = {"machine": PARITY["machine"], "threads": 2}
    path = write(tmp_path, "parity.json", PARITY | {"threads": 2})
    assert bench_parity.earlier(path, head)["rounds"] == 3
    with pytest.raises(UsageError, match="other threads than asked"):
        bench_parity.earlier(path, head | {"threads": 4})
    with pytest.raises(UsageError, match="leave --resume out"):
        bench_parity.earlier(tmp_path / "none.json", head)
    with pytest.raises(UsageError, match="no result of this program"):
        bench_parity.earlier(write(tmp_path, "other.json", [1]), head)


def test_the_source_is_pinned_with_its_hash() -> None:
    entry = bench_parity.locked_entry((paths.project_dir() / "requirements.lock").read_text(encoding="utf-8"))
    assert entry.startswith("llama-cpp-python==")
    assert entry.count("==") == 1
    assert "--hash=sha256:" in entry
    with pytest.raises(UsageError, match="pins no llama-cpp-python"):
        bench_parity.locked_entry("llama-cpp-python==1.0\n")


@pytest.mark.parametrize("text", ["", "a", "1,,2", "-1", "0,0", "1.5"])
def test_depths_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--depths"):
        bench_parity.numbers(text, "--depths")
