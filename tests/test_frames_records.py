"""Records of every kind as tidy frames: against sums on paper, and whatever is in the cache."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import MAKERS, copy_of_data, each_record, make_bench, make_record, make_served, make_sustain
from nbutils import frames, frames_records, records
from nbutils.errors import DataError
from nbutils.frames_records import cells
from nbutils.specs import AnyRecord


def written(folder: Path, n: int) -> list[Path]:
    """Records of every kind, as many as asked for, no two alike."""
    makers = list(MAKERS.values())
    return [records.write(makers[i % 4](versions={"nbutils": f"0.{i}"}), folder) for i in range(n)]


# ── cells ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_has_a_rate_per_repetition_over_all_sequences() -> None:
    prefill, decode = make_record().points
    several = decode.model_copy(update={"n_seq": 3, "at_s": (1.0, 2.0)})
    suite = make_record().suite.model_copy(
        update={"points": (make_record().suite.points[0], make_record().suite.points[1].model_copy(update={"n_seq": 3}))}
    )
    first, second = cells(make_record(suite=suite, points=(prefill, several)))
    assert (first.test, first.prompt_tokens, first.generated_tokens, first.rates) == ("prefill", 32, 0, (32 / 0.011, 32 / 0.012))
    assert (second.test, second.prompt_tokens, second.generated_tokens, second.depth_tokens, second.sequences) == ("decode", 0, 4, 32, 3)
    assert second.rates == pytest.approx((12 / 0.0043, 12 / 0.004))
    assert (second.at_s, second.times_s) == ((1.0, 2.0), pytest.approx((0.0043, 0.004)))


def test_minutes_of_decode_have_a_rate_per_block() -> None:
    (cell,) = cells(make_sustain())
    assert (cell.test, cell.generated_tokens, cell.depth_tokens) == ("sustained decode", 16, 32)
    assert cell.rates == pytest.approx([16 / (10 + 0.02 * i) for i in range(6)])
    assert cell.at_s == make_sustain().at_s


def test_a_server_has_a_rate_per_whole_answer_and_what_was_in_flight_together_is_one_moment() -> None:
    found = {(cell.test, cell.sequences): cell for cell in cells(make_served())}
    assert found["served prefill", 1].rates == (64 / 0.2,)
    assert found["served decode", 1].rates == pytest.approx((7 / 0.35,))
    assert found["served decode", 2].rates == pytest.approx((7 / 0.7,)), "the other answer broke off"
    whole = make_served().requests[1]
    quick = whole.model_copy(update={"at_s": 1.5, "content_at_s": tuple(0.1 + 0.05 * i for i in range(8))})
    both = {cell.test: cell for cell in cells(make_served(requests=(whole, quick, quick.model_copy(update={"at_s": 9.0}))))}
    assert both["served decode"].rates == pytest.approx((10.0, 20.0, 20.0))
    assert both["served decode"].moments == pytest.approx((15.0, 20.0))


def test_a_server_that_answered_nothing_or_all_at_once_has_no_rate() -> None:
    first = make_served().requests[0].model_copy(update={"content_at_s": (0.2, 0.2), "at_s": 0.0})
    at_once = make_served().requests[0].model_copy(update={"content_at_s": (0.0, 5e-324)})
    assert [cell.test for cell in cells(make_served(requests=(first, at_once)))] == ["served prefill"]
    assert cells(make_served(requests=make_served().requests[2:])) == []


def test_llama_benchs_tests_have_their_samples_or_the_mean_that_was_printed() -> None:
    prompt, generated = cells(make_bench())
    assert (prompt.test, prompt.rates, prompt.printed) == ("prefill", pytest.approx((512 / 1.99, 512 / 2.01)), False)
    assert (generated.test, generated.rates, generated.depth_tokens, generated.printed) == ("decode", (12.8,), 4096, True)
    both = make_bench().tests[0].model_copy(update={"n_gen": 128})
    (one_after_the_other,) = cells(make_bench(tests=(both,)))
    assert (one_after_the_other.test, one_after_the_other.rates[0]) == ("prefill then decode", pytest.approx(640 / 1.99))


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("qwen3 8B Q4_K - Medium", "Q4_K_M"),
        ("llama 70B Q2_K - Small", "Q2_K_S"),
        ("llama 7B mostly Q4_0", "Q4_0"),
        ("llama 7B all F32", "F32"),
        ("qwen3 ?B F16", "F16"),
        ("gpt-oss 20B MXFP4 MoE", "MXFP4_MOE"),
        ("gemma3 27B IQ4_XS - 4.25 bpw", "IQ4_XS"),
        ("llama4 17Bx16E (Scout) Q4_K - Medium", "Q4_K_M"),
        ("llama 7B (guessed) Q8_0", "Q8_0"),
        ("llama 7B Q2_K - Medium", "Q2_K"),
        ("llama 7B IQ3_S mix - 3.66 bpw", "IQ3_M"),
        ("something else", "something"),
        ("", ""),
    ],
)
def test_a_format_has_one_name_whichever_program_says_it(words: str, name: str) -> None:
    assert frames_records.format_words(words) == name


def test_the_same_run_by_either_program_has_the_same_name_and_format() -> None:
    """Ours knows the file by its stem, llama-bench by its name; ours the type, llama-bench the words for it."""
    ours = make_record(model=make_record().model.model_copy(update={"name": "some-model-Q4_K_M"}))
    said = [frames_records.facts(record) for record in (ours, make_bench())]
    assert {(s["model"], s["format"], s["cache_types"]) for s in said} == {("some-model-Q4_K_M", "Q4_K_M", "f16/f16")}


# ── frames ────────────────────────────────────────────────────────────────────────────────────────


@each_record
def test_a_record_of_every_kind_makes_rows(make: Callable[..., AnyRecord], tmp_path: Path) -> None:
    path = records.write(make(), tmp_path)
    frame = frames_records.records_frame([path])
    assert len(frame) == len(cells(make()))
    assert set(frame["record"]) == {path.stem}
    assert set(frame["file"]) == {str(path)}
    assert (frame["low_tok_per_s"] <= frame["tok_per_s"]).all()
    assert (frame["tok_per_s"] <= frame["high_tok_per_s"]).all()
    assert frame["created"].iloc[0] == make().created


def test_a_run_has_the_ceilings_that_its_own_frame_has(tmp_path: Path) -> None:
    frame = frames_records.records_frame([records.write(make_record(), tmp_path)])
    measured = frames.measured_frame([make_record()])
    for ours, theirs in (
        ("tok_per_s", "tok_per_s"),
        ("share", "share"),
        ("ceiling_tok_per_s", "ceiling_tok_per_s"),
        ("noise", "noise"),
        ("cv", "cv"),
    ):
        pd.testing.assert_series_equal(frame[ours], measured[theirs], check_names=False)


def test_nominal_ceilings_are_of_the_configuration_and_none_is_made_up(tmp_path: Path) -> None:
    """By hand: 273 GB/s of a DGX Spark over the bytes of a step; the file's own kind of machine is not in the registry."""
    machine = make_record().machine.model_copy(update={"device": "dgx-spark"})
    files = [records.write(make(machine=m), tmp_path) for make in (make_record, make_sustain) for m in (machine, make_record().machine)]
    frame = frames_records.records_frame(files)
    decode = frame[frame["test"] != "prefill"]
    listed = decode[decode["device"] == "dgx-spark"]
    # A step reads the output, the other tensors, and K and V at the middle of the test.
    step = [430_080 + 4_700_000 + 4096 * (32 + n / 2) for n in (4, 16)]
    assert list(listed["step_bytes"]) == step
    assert list(listed["nominal_ceiling_tok_per_s"]) == pytest.approx([273e9 / n for n in step])
    assert list(listed["nominal_share"]) == pytest.approx(list(listed["tok_per_s"] / listed["nominal_ceiling_tok_per_s"]))
    assert decode.loc[decode["device"] == "unlisted", "nominal_ceiling_tok_per_s"].isna().all()
    assert frame.loc[frame["test"] == "prefill", "nominal_ceiling_tok_per_s"].isna().all()


def test_several_sequences_share_a_step(tmp_path: Path) -> None:
    machine = make_record().machine.model_copy(update={"device": "dgx-spark"})
    point, asked = make_record().points[1].model_copy(update={"n_seq": 2}), make_record().suite.points[1].model_copy(update={"n_seq": 2})
    record = make_record(machine=machine, points=(point,), suite=make_record().suite.model_copy(update={"points": (asked,)}))
    (row,) = frames_records.records_frame([records.write(record, tmp_path)]).to_dict("records")
    assert row["nominal_ceiling_tok_per_s"] == pytest.approx(2 * 273e9 / row["step_bytes"])


@given(values=st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=30), share=st.floats(0, 1))
def test_plain_floats_give_what_statistics_and_numpy_give(values: list[float], share: float) -> None:
    assert frames.variation(values) == pytest.approx(statistics.stdev(values) / statistics.mean(values), abs=1e-12)
    assert frames._quantile(sorted(values), share) == pytest.approx(float(np.quantile(values, share)))


def test_a_damaged_record_is_told_and_left_out(tmp_path: Path) -> None:
    good = records.write(make_record(), tmp_path)
    cut = tmp_path / "00000000T000000Z-cut-00000000.json"
    cut.write_bytes(good.read_bytes()[:2000])
    told: list[str] = []
    frame = frames_records.records_frame([cut, good, tmp_path / "gone.json"], complain=told.append)
    assert set(frame["record"]) == {good.stem}
    assert [line.split(":")[0] for line in told] == [cut.name, "gone.json"]
    assert "cut short?" in told[0]
    with pytest.raises(DataError, match="cut short"):
        frames_records.records_frame([cut])


def test_no_record_is_a_frame_without_rows() -> None:
    frame = frames_records.records_frame([])
    assert frame.empty
    assert {"tok_per_s", "nominal_ceiling_tok_per_s"} <= set(frame.columns)


# ── the cache ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def written_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    written(folder, frames_records._KEPT_FROM)
    return folder


@pytest.fixture
def many(home: Path, tmp_path: Path, written_once: Path) -> list[Path]:
    return sorted(shutil.copytree(written_once, tmp_path / "store").iterdir(), key=lambda path: path.name)


def kept(home: Path) -> list[Path]:
    return sorted((home / "cache").glob("record-rows-*.json"))


def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Which records are taken from their files from now on."""
    found: list[Path] = []
    read_any = records.read_any
    monkeypatch.setattr(records, "read_any", lambda path: found.append(path) or read_any(path))  # type: ignore[func-returns-value]
    return found


def test_what_comes_from_the_cache_is_what_came_from_the_files(many: list[Path], home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cold = frames_records.records_frame(many)
    assert len(kept(home)) == 1
    read = reads(monkeypatch)
    warm = frames_records.records_frame(many)
    assert read == []
    pd.testing.assert_frame_equal(cold, warm, check_exact=True)


def test_a_few_records_are_not_kept(home: Path, tmp_path: Path) -> None:
    frames_records.records_frame(written(tmp_path / "store", 4))
    assert kept(home) == []


def test_a_record_that_came_changed_or_went_is_noticed(many: list[Path], home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames_records.records_frame(many)
    new = records.write(make_record(sample_text="new"), many[0].parent)
    spoilt = many[3]
    text = spoilt.read_text(encoding="utf-8")
    spoilt.write_text(text.replace("Example CPU", "Exemple CPU"), encoding="utf-8")
    os.utime(spoilt, ns=(1, 1))
    many[5].unlink()
    read, told = reads(monkeypatch), list[str]()
    frame = frames_records.records_frame([*many, new], complain=told.append)
    assert read == [spoilt, new]
    assert [line.partition(":")[0] for line in told] == [spoilt.name, many[5].name]
    assert set(frame["record"]) == {path.stem for path in [*many, new]} - {spoilt.stem, many[5].stem}


@pytest.fixture
def three_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    monkeypatch.setattr(frames_records, "_WORTH_A_PROCESS", 20)


def spoil(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:500])


def test_several_processes_read_what_one_reads(
    three_processes: None, many: list[Path], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (0, 1, 2, 50):  # of all three shares
        spoil(many[number])
    told, alone, read = list[str](), list[str](), reads(monkeypatch)
    frame = frames_records.records_frame(many, complain=told.append)
    assert read == many[::3], "the others read the rest"
    monkeypatch.setattr(frames_records, "_WORTH_A_PROCESS", len(many) + 1)
    kept(home)[0].unlink()
    pd.testing.assert_frame_equal(frame, frames_records.records_frame(many, complain=alone.append), check_exact=True)
    assert told == alone
    assert [line.partition(":")[0] for line in told] == [many[number].name for number in (0, 1, 2, 50)]


@pytest.mark.parametrize("accident", ["no such program", "ends at once", "says nothing that can be read"])
def test_what_another_process_leaves_unread_is_read_here(
    accident: str, three_processes: None, many: list[Path], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = subprocess.Popen

    def instead(_: list[str], **places: Any) -> Any:
        if accident == "no such program":
            raise FileNotFoundError(2, "No such file or directory")
        return start([sys.executable, "-c", "raise SystemExit(1)" if accident == "ends at once" else "print('[[')"], **places)

    monkeypatch.setattr(subprocess, "Popen", instead)
    read = reads(monkeypatch)
    assert set(frames_records.records_frame(many)["record"]) == {path.stem for path in many}
    assert sorted(read) == sorted(many)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b'{"a": 1}'])
def test_a_damaged_cache_costs_time_only(content: bytes, many: list[Path], home: Path) -> None:
    cold = frames_records.records_frame(many)
    kept(home)[0].write_bytes(content)
    pd.testing.assert_frame_equal(frames_records.records_frame(many), cold)
    assert json.loads(kept(home)[0].read_text(encoding="utf-8"))


def test_a_cache_that_cannot_be_written_costs_time_only(many: list[Path], home: Path) -> None:
    home.mkdir(exist_ok=True)
    (home / "cache").write_text("a file where the folder should be")
    assert set(frames_records.records_frame(many)["record"]) == {path.stem for path in many}


def test_other_formats_or_another_program_have_another_cache(many: list[Path], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames_records.records_frame(many)
    (before,) = kept(home)
    data = copy_of_data(tmp_path, monkeypatch)
    with (data / "formats.yaml").open("a", encoding="utf-8") as file:
        file.write("# another\n")
    frames_records.records_frame(many)
    (after,) = kept(home)
    assert before != after


# ── repetitions ───────────────────────────────────────────────────────────────────────────────────


def test_every_repetition_is_a_row_with_its_units_in_the_names() -> None:
    found = [(Path(f"{kind}.json"), make()) for kind, make in MAKERS.items()]
    frame = frames_records.repetitions_frame(found)
    assert list(frame.groupby("record", sort=False).size()) == [4, 6, 4, 3]
    run = frame[frame["record"] == "run"]
    assert list(run["repetition"]) == [1, 2, 1, 2]
    assert list(run["time_s"]) == pytest.approx([0.011, 0.012, 0.0043, 0.004])
    assert list(run["tok_per_s"]) == pytest.approx([32 / 0.011, 32 / 0.012, 4 / 0.0043, 1000.0])
    assert run["threads"].tolist() == [2] * 4, "whole numbers stay whole beside records that say none"
    assert frame.loc[frame["record"] == "endpoint", "threads"].isna().all()
    printed = frame[(frame["record"] == "llama-bench") & (frame["test"] == "decode")]
    assert list(printed["tok_per_s"]) == [12.8]
    assert printed["repetition"].isna().all()


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("=1+1", "'=1+1"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@x", "'@x"),
        ("\tx", "'\tx"),
        ("\rx", "'\rx"),
        ("a=1", "a=1"),
        ("", ""),
        (-1.5, -1.5),
        (None, None),
    ],
)
def test_text_that_a_spreadsheet_would_run_begins_with_an_apostrophe(value: object, shown: object) -> None:
    assert frames_records.spreadsheet_text(value) == shown
