"""Two sides of records: what is paired, what is left out and why, and what is said of the difference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from helpers import make_bench, make_record, make_served, make_sustain
from nbutils import frames_compared, frames_records, ratios, records, registry
from nbutils.errors import DataError, UsageError
from nbutils.frames_compared import Comparison, Side, compare, side
from nbutils.specs import AnyRecord, Gpu, Neighbours, Record, Trace


def of(*found: AnyRecord, name: str = "side") -> Side:
    return Side(name, tuple((Path(f"{name}{i}-{id(record)}.json"), record) for i, record in enumerate(found)))


def between(a: AnyRecord, b: AnyRecord) -> Comparison:
    return compare(of(a, name="a"), of(b, name="b"))


def timed(factor: float = 1.0, *, noise: float = 0.0, seed: int = 0, **changes: Any) -> Record:
    """The run of ``make_record`` with ten repetitions, so many times as fast, and so noisy."""
    draw = np.random.default_rng(seed)
    prefill, decode = make_record().points
    moved = [float(np.exp(noise * draw.standard_normal())) / factor for _ in range(10)]
    points = (
        prefill.model_copy(update={"repetitions_s": tuple((0.011 * m,) for m in moved)}),
        decode.model_copy(update={"repetitions_s": tuple((0.001 * m,) * 4 for m in reversed(moved))}),
    )
    suite = make_record().suite.model_copy(update={"repetitions": 10})
    return make_record(**({"suite": suite, "points": points, "yardsticks": make_record().yardsticks[:1]} | changes))


def model(**changes: Any) -> Any:
    return make_record().model.model_copy(update=changes)


# ── pairs ─────────────────────────────────────────────────────────────────────────────────────────


def test_the_same_tests_are_paired_and_their_ratio_is_told() -> None:
    found = between(timed(noise=0.01, seed=1), timed(1.5, noise=0.01, seed=2))
    assert list(found.pairs["words"]) == ["prefill 32", "decode 4 at depth 32"]
    assert list(found.pairs["ratio"]) == pytest.approx([1.5, 1.5], rel=0.02)
    assert set(found.pairs["verdict"]) == {"faster"}
    assert list(found.pairs["b_tok_per_s"] / found.pairs["a_tok_per_s"]) == pytest.approx(list(found.pairs["ratio"]))
    assert found.left_out == []
    assert found.summary[0].startswith("decode: B is 1.5")
    assert found.summary[0].endswith(" times as fast over 1 pair: 1 faster")


def test_two_runs_of_one_machine_are_no_different() -> None:
    found = between(timed(noise=0.02, seed=1), timed(noise=0.02, seed=2))
    assert set(found.pairs["verdict"]) == {"no_difference"}
    assert ((found.pairs["ratio_low"] < 1) & (found.pairs["ratio_high"] > 1)).all()


def test_five_minutes_on_a_shared_machine_are_not_a_different_machine_every_half_minute() -> None:
    """Each stretch of 40 blocks in two halves: a plain t-test, which takes blocks for independent, calls most of the halves different."""
    (record,) = records.load_any(registry.load_run("dev-machine-sustain"))
    (cell,) = frames_records.cells(record)
    halves = [(cell.rates[i : i + 20], cell.rates[i + 20 : i + 40]) for i in range(0, len(cell.rates) - 39, 10)]
    ours = sum(ratios.ratio([ratios.Run(a)], [ratios.Run(b)]).verdict != "no_difference" for a, b in halves)
    plain = sum(stats.ttest_ind(np.log(a), np.log(b)).pvalue < 0.05 for a, b in halves)
    assert plain > len(halves) / 2
    assert ours <= 0.12 * len(halves)


def test_a_machine_whose_yardsticks_moved_is_less_sure() -> None:
    calm, moved = ([make_record().yardsticks[0], make_record().yardsticks[1].model_copy(update={"samples_s": (s,)})] for s in (0.0145, 0.02))
    sure, unsure = (
        between(timed(noise=0.01, seed=1, yardsticks=tuple(y)), timed(1.2, noise=0.01, seed=2, yardsticks=tuple(y))) for y in (calm, moved)
    )
    assert set(sure.pairs["verdict"]) == {"faster"}
    assert set(unsure.pairs["verdict"]) == {"no_difference"}


def test_records_of_one_machine_count_as_runs() -> None:
    a = of(*(timed(1 + 0.01 * i) for i in range(3)), name="a")
    b = of(*(timed(1.3 + 0.01 * i) for i in range(3)), name="b")
    found = compare(a, b)
    assert set(found.pairs["basis"]) == {"runs"}
    assert list(found.pairs["a_runs"]) == [3, 3]
    assert list(found.pairs["a_repetitions"]) == [30, 30]
    assert set(found.pairs["verdict"]) == {"faster"}


def test_llama_bench_and_ours_meet_where_they_did_the_same() -> None:
    prefill = make_record().suite.points[0].model_copy(update={"n_tokens": 512})
    point = make_record().points[0].model_copy(update={"n_tokens": 512, "repetitions_s": ((1.0,), (1.01,))})
    ours = make_record(model=model(name="some-model-Q4_K_M"), points=(point,), suite=make_record().suite.model_copy(update={"points": (prefill,)}))
    found = between(make_bench(), ours)
    (row,) = found.pairs.to_dict("records")
    assert (row["words"], row["ratio"]) == ("prefill 512", pytest.approx(2.0, rel=0.01))
    assert "kind of record: llama-bench | run" in row["notes"]
    assert any("means without their samples" in line for line in found.noisy)


def test_servers_and_minutes_are_compared_with_their_like() -> None:
    again = [request.model_copy(update={"at_s": request.at_s + 20}) for request in make_served().requests]
    served = make_served(requests=(*make_served().requests, *again))
    found = between(served, served.model_copy(update={"software": "a server 2.0"}))
    assert sorted(found.pairs["words"]) == sorted(f"served {phase} 64 + 8{more}" for phase in ("prefill", "decode") for more in ("", ", 2 in flight"))
    assert set(found.pairs["verdict"]) == {"no_difference"}
    assert found.pairs["notes"].iloc[0] == ["engine: a server 1.0 | a server 2.0"]
    slower = between(make_sustain(), make_sustain(block_s=tuple(2 * s for s in make_sustain().block_s)))
    assert (slower.pairs["verdict"].item(), slower.pairs["ratio"].item()) == ("slower", pytest.approx(0.5))
    assert between(make_sustain(), timed()).pairs.empty


def test_what_was_timed_once_on_both_sides_is_not_judged() -> None:
    once = make_bench(tests=make_bench().tests[1:])
    found = between(once, make_bench(tests=(make_bench().tests[1].model_copy(update={"avg_ts": 25.6}),)))
    (row,) = found.pairs.to_dict("records")
    assert (row["ratio"], row["verdict"], row["interval"]) == (pytest.approx(2.0), "unknown", "")
    assert row["verdict_words"] == "not known: each side was timed once"


# ── what has no partner ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (timed(model=model(name="another")), "B has no model stand-in-dense-small; it has model another"),
        (timed(model=model(gguf_type="Q8_0")), "B has no format Q4_K_M; it has format Q8_0"),
        (make_sustain(), "B has no prefill; it has sustained decode"),
        (
            timed(settings=make_record().settings.model_copy(update={"type_k": "Q8_0"})),
            "B has no cache f16/f16; it has cache q8_0/f16",
        ),
    ],
)
def test_what_has_no_partner_is_left_out_with_the_reason(other: AnyRecord, reason: str) -> None:
    found = between(timed(), other)
    assert found.pairs.empty
    first = found.left_out[0]
    assert (first["side"], first["test"], first["reason"]) == ("A", "prefill 32", reason)
    assert {entry["side"] for entry in found.left_out} == {"A", "B"}


def test_other_lengths_depths_and_numbers_of_sequences_are_other_tests() -> None:
    def decode(n_tokens: int, depth: int, n_seq: int) -> Record:
        asked = make_record().suite.points[1].model_copy(update={"n_tokens": n_tokens, "depth": depth, "n_seq": n_seq})
        point = (
            make_record()
            .points[1]
            .model_copy(update={"n_tokens": n_tokens, "depth": depth, "n_seq": n_seq, "repetitions_s": ((0.001,) * n_tokens,) * 2})
        )
        return make_record(points=(point,), suite=make_record().suite.model_copy(update={"points": (asked,)}))

    reasons = [between(decode(4, 32, 1), other).left_out[0]["reason"] for other in (decode(8, 32, 1), decode(4, 64, 1), decode(4, 32, 2))]
    assert reasons == [
        "B has no 4 tokens generated; it has 8 tokens generated",
        "B has no depth 32; it has depth 64",
        "B has no 1 at once; it has 2 at once",
    ]


def test_a_record_without_a_rate_is_named() -> None:
    found = between(make_served(), make_served(requests=make_served().requests[2:]))
    assert found.left_out[-1]["side"] == "B"
    assert found.left_out[-1]["reason"].endswith("holds no whole answer, so no rate")


# ── what to keep in mind ──────────────────────────────────────────────────────────────────────────


def test_what_differs_beside_the_rate_is_told() -> None:
    settings = make_record().settings.model_copy(update={"n_threads": 8, "flash_attn_used": "on", "n_gpu_layers": 99, "n_ubatch": 1024})
    other = timed(
        settings=settings,
        backend=make_record().backend.model_copy(update={"device": "CUDA0: A card"}),
        machine=make_record().machine.model_copy(update={"gpus": (Gpu(name="A card"),)}),
        versions={"nbutils": "0.2.0", "llama.cpp": "abc"},
        traces=(Trace(meter="NVML GPU 0", at_s=(), values={}),),
        model=model(file_bytes=5_512_993),
    )
    assert between(timed(), other).pairs["notes"].iloc[0] == [
        "bytes of the file: 5,512,992 | 5,512,993",
        "machine: Example CPU | A card",
        "backend: CPU | CUDA0: A card",
        "engine: llama.cpp | llama.cpp abc",
        "threads: 2 | 8",
        "layers on the GPU: 0 | 99",
        "flash attention: auto | on",
        "micro-batch: 512 | 1,024",
        "nbutils: 0.1.0 | 0.2.0",
        "meters: none | NVML GPU 0",
    ]
    assert between(timed(seed=1), timed(seed=2)).pairs["notes"].iloc[0] == []


def test_a_machine_that_was_not_quiet_is_named_by_its_own_record() -> None:
    busy = Neighbours(wall_s=10.0, n_cpus=2, own_s=10.0, others_s=8.0)
    moved = make_record().yardsticks[1].model_copy(update={"samples_s": (0.03,)})
    found = between(timed(neighbours=busy, yardsticks=(make_record().yardsticks[0], moved)), make_sustain(neighbours=busy))
    (a, b) = found.noisy
    assert a.startswith("A, a0-")
    assert "A noisy machine: within one run the same yardstick varied by a factor of 2.07" in a
    assert "Other programs took 40% of the processors during the run." in a
    assert b.startswith("B, b0-")
    assert "Other programs took 40%" in b


# ── sides ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_side_is_a_record_a_folder_a_run_a_device_or_a_machine(home: Path, data: Path) -> None:
    store = data / "records"
    spark = make_record().machine.model_copy(update={"device": "dgx-spark"})
    mine = records.write(make_record(machine=spark))
    theirs = records.write(timed(machine=spark), store / "dgx-spark")
    unlisted = records.write(make_bench(), store / "unlisted")
    (data / "runs").mkdir()
    (data / "runs" / "my-run.yaml").write_text(f"id: my-run\nname: A\ndescription: x\nrecords: [dgx-spark/{theirs.name}]\n", encoding="utf-8")
    assert registry.run_ids() == ["my-run"]
    for name, files in {
        str(mine): [mine],
        mine.stem[-8:]: [mine],
        str(store): [theirs, unlisted],
        "my-run": [theirs],
        "dgx-spark": [mine, theirs],
        "example cpu": [unlisted],
    }.items():
        found = side(name)
        assert sorted(path for path, _ in found.found) == sorted(files), name
        assert found.damaged == ()


def test_a_name_that_is_no_side_says_what_there_is(home: Path, data: Path) -> None:
    records.write(make_record(machine=make_record().machine.model_copy(update={"device": "dgx-spark"})))
    with pytest.raises(UsageError, match=r"no record, folder, run, device or machine 'dgx-sprak'; did you mean 'dgx-spark'\?"):
        side("dgx-sprak")


def test_a_damaged_record_of_many_is_left_out_and_one_alone_is_an_error(home: Path, data: Path) -> None:
    path = records.write(make_record())
    cut = path.parent / "00000000T000000Z-cut-00000000.json"
    cut.write_text("{")
    found = side(str(path.parent))
    assert [p for p, _ in found.found] == [path]
    compared = compare(found, of(timed()))
    assert compared.left_out[-1] == {"side": "A", "model": "", "format": "", "test": "", "reason": found.damaged[0]}
    with pytest.raises(DataError, match="cut short"):
        side(str(cut))
    path.unlink()
    with pytest.raises(DataError, match="cut short"):
        side(str(path.parent))


def test_a_record_is_never_compared_with_itself(home: Path) -> None:
    first, second = (records.write(timed(factor)) for factor in (1.0, 1.1))
    every, one = side(str(first.parent)), side(str(first))
    for a, b in ((every, one), (one, every)):
        found = compare(a, b)
        assert list(found.pairs["a_runs"]) == list(found.pairs["b_runs"]) == [1, 1]
    assert compare(every, one).pairs["ratio"].iloc[0] == pytest.approx(1 / 1.1)
    assert second in [path for path, _ in every.found]
    with pytest.raises(UsageError, match="are the same records"):
        compare(one, one)


def test_the_method_names_what_the_interval_is_made_of() -> None:
    assert "95 times in 100" in frames_compared.METHOD
