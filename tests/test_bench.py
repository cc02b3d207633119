"""llama-bench's protocol on one loaded model: what is timed, restored, counted and allotted, seen from outside the child."""

from __future__ import annotations

import json
import random
import time
from itertools import pairwise
from math import comb, sqrt
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import pytest

from helpers import ENGINE_SETTINGS, MIB, in_child
from nbutils import engine, gguf_files, limits, registry
from nbutils.errors import EngineError

#: llama.cpp prints hundredths of a MiB.
PRINTED = 0.01 * MIB
#: All in one run, so that depths are read, kept, given up and restored in turn.
POINTS: list[dict[str, Any]] = [
    {"kind": "prefill", "n_tokens": 24, "depth": 0},
    {"kind": "decode", "n_tokens": 3, "depth": 0, "n_seq": 1},
    {"kind": "decode", "n_tokens": 2, "depth": 0, "n_seq": 4},
    {"kind": "decode", "n_tokens": 2, "depth": 0, "n_seq": 16},
    {"kind": "prefill", "n_tokens": 5, "depth": 40},
    {"kind": "decode", "n_tokens": 3, "depth": 40, "n_seq": 1},
    {"kind": "decode", "n_tokens": 4, "depth": 40, "n_seq": 4},
    {"kind": "decode", "n_tokens": 1, "depth": 300, "n_seq": 2},
]


def run_points(path: Path, points: list[dict[str, Any]], **settings: Any) -> dict[str, Any]:
    return engine.measure_file(path, points=points, repetitions=1, yardstick_s=0, settings=ENGINE_SETTINGS | settings)


@pytest.fixture(scope="module")
def moe_file() -> Path:
    return gguf_files.make(gguf_files.StandIn("moe", "small", "Q4_K_M"), registry.load_format("Q4_K_M"))


@pytest.fixture(scope="module")
def dense(small_file: Path) -> dict[str, Any]:
    zero_s = time.monotonic()
    found = engine.measure_file(small_file, points=POINTS, repetitions=2, yardstick_s=0, settings=ENGINE_SETTINGS, n_sample=12, zero_s=zero_s)
    return found | {"took_s": time.monotonic() - zero_s}


@pytest.fixture(scope="module")
def moe(moe_file: Path) -> dict[str, Any]:
    return run_points(moe_file, POINTS)


# ── samples ───────────────────────────────────────────────────────────────────────────────────────


def test_every_repetition_has_a_time_for_each_step_at_every_depth_and_batch(dense: dict[str, Any]) -> None:
    assert len(dense["points"]) == len(POINTS)
    for asked, point in zip(POINTS, dense["points"], strict=True):
        assert {k: point[k] for k in asked} == asked
        assert [len(r) for r in point["repetitions_s"]] == [1 if asked["kind"] == "prefill" else asked["n_tokens"]] * 2
        assert min(min(r) for r in point["repetitions_s"]) > 0
        assert point["warmup_s"] > 0


def test_moments_are_of_the_parents_clock_and_repetitions_do_not_overlap(dense: dict[str, Any]) -> None:
    """Beside them lie the traces of meters that run in the parent: both must count from the same zero."""
    spans = [(at, at + sum(times)) for p in dense["points"] for at, times in zip(p["at_s"], p["repetitions_s"], strict=True)]
    assert len(spans) == 2 * len(POINTS)
    assert spans[0][0] > 0
    assert spans[-1][1] <= dense["took_s"]
    assert all(end <= start + 1e-3 for (_, end), (start, _) in pairwise(spans))


def test_a_stand_in_says_its_noise_in_one_line(dense: dict[str, Any]) -> None:
    assert dense["sample_text"].isprintable()
    assert len(dense["sample_text"]) > 12
    assert dense["facts"]["description"] == "qwen3 ?B Q4_K - Medium"


# ── a depth that is restored ──────────────────────────────────────────────────────────────────────

_CHILD = """
import json, sys
import numpy as np
import llama_cpp
from nbutils._allocations import Log
from nbutils._bench import Bench

class Llama:
    "The library, with some functions exchanged."
    def __getattr__(self, name):
        return getattr(llama_cpp, name)

llama, settings = Llama(), json.loads(sys.argv[2])
llama_cpp.llama_backend_init()
bench = Bench(sys.argv[1], settings, zero_s=0.0, log=Log(llama_cpp), llama=llama)
bench.load()
read, prefill = [], bench._prefill

def counted(context, n_tokens, at, n_seq, sequence=0):
    read.append([n_tokens, at, sequence])
    return prefill(context, n_tokens, at, n_seq, sequence)

bench._prefill = counted

def print_nothing(*_, **__):
    pass

def logits(context, at, n_seq):
    batch = bench._batch([(at, s) for s in range(n_seq)], every=True)
    for i in range(n_seq):
        batch.token[i] = 5
    bench._advance(context, batch)
    return [np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, i), (bench._n_vocab,)).copy() for i in range(n_seq)]

def apart(a, b):
    return float(abs(a - b).max())

def point(**fields):
    read.clear()
    bench.point(lambda *a, **k: None, **fields)
    return list(read)
"""


def bench_child(path: Path, code: str) -> Any:
    return in_child(_CHILD + code, str(path), json.dumps(ENGINE_SETTINGS))


_RESTORED = """
found = {}
for n_seq in (1, 3):
    with bench._context(60, n_seq) as context:
        bench._go_to(print_nothing, context, 50, n_seq)
        fresh = logits(context, 50, n_seq)
        bench._go_to(print_nothing, context, 50, n_seq)
        again = logits(context, 50, n_seq)
        bench._go_to(print_nothing, context, 0, n_seq)
        empty = logits(context, 0, n_seq)
    found[n_seq] = [apart(fresh[0], other) for other in (*fresh, *again)], apart(fresh[0], empty[0])
print(json.dumps(found))
"""


def test_a_restored_prompt_is_the_one_that_was_read(small_file: Path) -> None:
    """The token after it is predicted to the same logits, in every sequence; without the prompt they would be others."""
    for same, without in bench_child(small_file, _RESTORED).values():
        assert same == pytest.approx([0.0] * len(same), abs=1e-4)
        assert without > 0.1


_COUNTED = """
found = [point(kind=kind, n_tokens=4, depth=depth, repetitions=3, n_seq=n_seq) for kind, depth, n_seq in (
    ("prefill", 50, 1), ("decode", 50, 1), ("decode", 50, 4), ("decode", 50, 4), ("decode", 20, 4)
)]
llama.llama_state_seq_set_data = lambda *a: 0
found.append(point(kind="decode", n_tokens=4, depth=50, repetitions=2, n_seq=2))
print(json.dumps(found))
"""


def test_a_prompt_is_read_once_for_all_repetitions_sequences_and_points_of_its_depth(small_file: Path) -> None:
    prefill, decode, four, four_again, shallow, refused = bench_child(small_file, _COUNTED)
    once = [50, 0, 0]
    assert prefill == [[4, 0, 0], once, [4, 50, 0], [4, 50, 0], [4, 50, 0]], "warm-up, the prompt once, three repetitions"
    assert decode == [], "the prompt of the point before is restored"
    assert four == [once], "contexts of more sequences take no other state: read for the first of them, restored for the rest"
    assert four_again == []
    assert shallow == [[20, 0, 0]], "one depth is kept at a time"
    assert refused == [once, [50, 0, 1]] * 2, "where llama.cpp takes no state back every sequence is read again, each time"


# ── experts ───────────────────────────────────────────────────────────────────────────────────────


def spread_of_distinct(n_expert: int, n_used: int, batch: int) -> float:
    """Standard deviation of how many experts a batch touches when every token takes ``n_used`` at random."""
    missed = (1 - n_used / n_expert) ** batch
    both_missed = (comb(n_expert - 2, n_used) / comb(n_expert, n_used)) ** batch
    return sqrt(max(0.0, n_expert * missed * (1 - missed) + n_expert * (n_expert - 1) * (both_missed - missed**2)))


def test_distinct_experts_are_as_many_as_an_even_router_touches(moe: dict[str, Any]) -> None:
    """``E(1 - (1 - k/E)^B)``: a stand-in's router is random, so counts must lie around it, and one token touches ``k`` exactly."""
    n_expert, n_used, n_layer = (moe["facts"][k] for k in ("n_expert", "n_expert_used", "n_layer"))
    assert (n_expert, n_used, n_layer) == (8, 2, 4)
    for point in (p for p in moe["points"] if p["kind"] == "decode"):
        counts, batch = point["distinct_experts"], point["n_seq"]
        assert len(counts) == 8 * n_layer, "eight steps, each layer of each"
        assert all(n_used <= n <= min(n_expert, batch * n_used) for n in counts)
        expected = limits.distinct_experts(n_expert, n_used, batch)
        # Five standard deviations of their mean: steps follow one another and are not quite independent.
        assert mean(counts) == pytest.approx(expected, abs=5 * spread_of_distinct(n_expert, n_used, batch) / sqrt(len(counts)) + 1e-9)


def test_the_spread_that_is_allowed_is_that_of_drawing_without_replacement() -> None:
    draw = random.Random(1)
    counts = [len({e for _ in range(4) for e in draw.sample(range(8), 2)}) for _ in range(10_000)]
    assert mean(counts) == pytest.approx(limits.distinct_experts(8, 2, 4), abs=0.03)
    assert pstdev(counts) == pytest.approx(spread_of_distinct(8, 2, 4), abs=0.03)


def test_nothing_is_counted_where_there_are_no_experts_or_a_prompt_is_read(dense: dict[str, Any], moe: dict[str, Any]) -> None:
    assert {len(p["distinct_experts"]) for p in dense["points"]} == {0}
    assert {len(p["distinct_experts"]) for p in moe["points"] if p["kind"] == "prefill"} == {0}


# ── memory ────────────────────────────────────────────────────────────────────────────────────────


def by_kind(found: dict[str, Any]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for buffer in found["memory"]["own"]:
        sizes[buffer["what"]] = sizes.get(buffer["what"], 0) + buffer["n_bytes"]
    return sizes


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_what_a_run_allots_is_what_the_dry_run_says_of_the_same_context(kind: str, request: pytest.FixtureRequest) -> None:
    """The context that takes most is looked at: sixteen sequences of 2 tokens rather than two of 301, since each is padded to 256.

    Its buffers are made for the 32 tokens that it is asked to hold, not for as many as a batch may have.
    """
    found = request.getfixturevalue(kind)
    path = request.getfixturevalue("small_file" if kind == "dense" else "moe_file")
    (planned,) = engine.planned_buffers(path, [{"n_ctx": 256, "kv_type": "f16", "n_ubatch": 32, "n_seq": 16}])["answers"]
    own = by_kind(found)
    assert {what: own[what] for what in ("kv", "output", "compute")} == pytest.approx(
        {what: planned[what] for what in ("kv", "output", "compute")}, abs=PRINTED
    )
    assert own["kv"] == 16 * 256 * found["facts"]["kv_bytes_per_token"]


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_the_weights_are_the_file_mapped_and_what_was_copied_into_another_layout(kind: str, request: pytest.FixtureRequest) -> None:
    found = request.getfixturevalue(kind)
    stored = sum(group["n_bytes"] for group in found["facts"]["tensors"])
    places = [b for b in found["memory"]["own"] if b["what"] == "weights"]
    assert sum(b["n_bytes"] for b in places if "REPACK" not in b["where"]) == pytest.approx(stored, abs=PRINTED)
    assert all(b["n_bytes"] < stored for b in places if "REPACK" in b["where"])


def test_memory_is_looked_at_in_the_order_in_which_it_grows(dense: dict[str, Any]) -> None:
    stages = dense["memory"]["stages"]
    assert [s["stage"] for s in stages] == ["start", "loaded", "before", "context", "ran"]
    held = {s["stage"]: s["resident_bytes"] for s in stages}
    assert held["start"] < held["loaded"]
    # A buffer counts for the process once it is written to: the cache of 2 x 300 tokens surely is.
    assert held["ran"] - held["before"] > 2 * 300 * dense["facts"]["kv_bytes_per_token"]
    assert all(s["file_bytes"] is None or 0 < s["file_bytes"] < s["resident_bytes"] for s in stages)


# ── settings ──────────────────────────────────────────────────────────────────────────────────────

LONG = [{"kind": "decode", "n_tokens": 2, "depth": 0}]


@pytest.mark.parametrize("asked", ["on", "off", "auto"])
def test_flash_attention_is_what_was_asked_for_and_auto_says_what_it_came_to(asked: str, small_file: Path) -> None:
    used = run_points(small_file, LONG, flash_attn=asked)["flash_attn_used"]
    assert used in ("on", "off")
    assert asked in ("auto", used)


@pytest.mark.parametrize(("types", "share"), [(("Q8_0", "Q8_0"), 34 / 64), (("Q8_0", "F16"), (34 + 64) / 128), (("Q4_0", "Q4_0"), 18 / 64)])
def test_a_smaller_cache_type_makes_a_smaller_cache(types: tuple[str, str], share: float, small_file: Path, dense: dict[str, Any]) -> None:
    """Of 32 values 34 bytes instead of 64, and 18 with four bits."""
    found = run_points(small_file, LONG, type_k=types[0], type_v=types[1], flash_attn="on")
    assert by_kind(found)["kv"] == pytest.approx(share * 256 * dense["facts"]["kv_bytes_per_token"], abs=PRINTED)


@pytest.mark.parametrize(
    ("points", "settings", "complaint"),
    [
        (LONG, {"type_v": "Q8_0", "flash_attn": "off"}, r"could not make a context of 2 tokens: .*[Ff]lash"),
        ([LONG[0] | {"n_seq": 300}], {}, r"could not make a context of 2 tokens for each of 300 sequences: .*256"),
    ],
    ids=["values in 8 bits without flash attention", "more sequences than llama.cpp takes"],
)
def test_a_context_that_llama_cpp_refuses_is_one_line_with_its_reason(
    points: list[dict[str, Any]], settings: dict[str, Any], complaint: str, small_file: Path
) -> None:
    with pytest.raises(EngineError, match=rf"^{small_file.name}: llama\.cpp {complaint}") as caught:
        run_points(small_file, points, **settings)
    assert "\n" not in str(caught.value)


# ── on end, and with several numbers of threads ───────────────────────────────────────────────────


def test_blocks_follow_one_another_for_as_long_as_was_asked(small_file: Path) -> None:
    zero_s = time.monotonic()
    said: list[str] = []
    found = engine.sustain_file(small_file, seconds=0.3, block_tokens=4, depth=16, settings=ENGINE_SETTINGS, zero_s=zero_s, progress=said.append)
    assert found["block_tokens"] == 4
    assert len(found["at_s"]) == len(found["block_s"]) > 1
    ends = [at + took for at, took in zip(found["at_s"], found["block_s"], strict=True)]
    assert all(end <= start + 1e-3 for end, start in zip(ends, found["at_s"][1:], strict=False))
    assert found["at_s"][-1] - found["at_s"][0] < 0.3 <= time.monotonic() - zero_s
    assert any("s to go, " in stage for stage in said)


def test_blocks_of_no_stated_length_are_chosen_so_that_some_fit(small_file: Path) -> None:
    found = engine.sustain_file(small_file, seconds=0.4, block_tokens=0, depth=0, settings=ENGINE_SETTINGS)
    assert 1 <= found["block_tokens"] <= 512
    assert min(found["block_s"]) > 0


def test_numbers_of_threads_are_tried_up_and_down_in_turn(small_file: Path) -> None:
    """A machine that slows down while it is tuned must not speak for whoever came first."""
    said: list[str] = []
    found = engine.tune_threads(small_file, tried=[1, 2], rounds=3, n_decode=2, n_prefill=3, settings=ENGINE_SETTINGS, progress=said.append)
    assert [stage.split()[0] for stage in said if "round" in stage] == ["1", "2", "2", "1", "1", "2"]
    assert [t["n_threads"] for t in found] == [1, 2]
    for tried in found:
        assert (tried["decode_tokens"], tried["prefill_tokens"]) == (2, 3)
        assert [len(tried[k]) for k in ("decode_s", "prefill_s")] == [3, 3]
        assert min(tried["decode_s"] + tried["prefill_s"]) > 0


# ── structures that no header is read for ─────────────────────────────────────────────────────────

_LAYOUTS = """
import ctypes, json
from nbutils._ggml import TYPES, _functions, _InitParams, _TensorHead
f = _functions()
context = f["ggml_init"](_InitParams(1 << 16, None, True))
tensor = f["ggml_new_tensor_2d"](context, TYPES["F32"], 5, 3)
head = _TensorHead.from_address(tensor)
pool = f["ggml_threadpool_params_default"](7)
print(json.dumps({
    "type": head.type, "ne": list(head.ne), "nb": list(head.nb), "n_bytes": f["ggml_nbytes"](tensor),
    "pool": [pool.n_threads, pool.prio, pool.poll, pool.strict_cpu, pool.paused, any(pool.cpumask)],
}))
"""


def test_ggmls_structures_lie_where_we_read_them() -> None:
    found = in_child(_LAYOUTS)
    assert (found["type"], found["ne"], found["nb"], found["n_bytes"]) == (0, [5, 3, 1, 1], [4, 20, 60, 60], 60)
    assert found["pool"] == [7, 0, 50, False, False, False], "seven threads of normal priority that poll half the time, as llama-bench's"
