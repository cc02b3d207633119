"""The calculator in Python: its answers are those of the command line, and its data are small, plain and complete."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbutils import calculator, engine, frames_market, frames_predict, places, predict, registry
from nbutils.calculator import Query, answer, answer_of, compare, need
from nbutils.errors import UnknownId, UsageError
from nbutils.tensors import variant

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    return calculator.data(date(2026, 11, 20))


# ── the same as the command line ──────────────────────────────────────────────────────────────────

QUERIES = [
    Query(),
    Query(model="deepseek-v3", format="Q4_K_M", place="mac-studio-m3-ultra/512gb", n_ctx=32768, kv_type="q8_0"),
    Query(model="gemma-3-27b", format="Q4_K_M", place="rtx-4090/24gb", n_ctx=5000, batch=3),
    Query(model="qwen3-30b-a3b", format="MLX_4BIT", place="mac-studio-m4-max/128gb", n_ctx=40960, kv_type="q8"),
    Query(model="nemotron-3-super", format="FP8", place="rtx-pro-6000/96gb", n_ctx=16384, kv_type="fp8"),
    Query(model="gpt-oss-120b", format="MXFP4_MOE", place="strix-halo/128gb", n_ctx=131072, filled="full"),
]


def arguments(query: Query) -> list[str]:
    device, configuration = query.place.split("/")
    return [
        "-m",
        query.model,
        "-f",
        query.format,
        "-d",
        device,
        "--configuration",
        configuration,
        "--kv-type",
        query.kv_type,
        "--batch",
        str(query.batch),
    ]


def printed(run: Run, *arguments: object) -> Any:
    code, out, err = run(*arguments, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


@pytest.fixture
def nobody_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page cannot ask llama.cpp."""
    monkeypatch.setattr(engine, "has_engine", lambda: False)


@pytest.mark.usefixtures("nobody_to_ask")
@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.model)
def test_an_answer_says_what_fit_and_limits_print(query: Query, run: Run) -> None:
    found = answer(query)
    (row,) = printed(run, "fit", *arguments(query), "--ctx", query.n_ctx)
    shared = row.keys() & found.keys() - {"expected_tok_per_s"}
    assert {"total_bytes", "verdict", "max_ctx", "headroom_bytes", "compute_buffer_basis"} <= shared
    assert {name: found[name] for name in shared} == {name: row[name] for name in shared}
    if query.filled == "half" and query.batch == 1:
        assert found["expected_tok_per_s"] == pytest.approx(row["expected_tok_per_s"], rel=1e-12)
    (row,) = printed(run, "limits", *arguments(query), "--depth", query.depth)
    assert (found["ceiling_tok_per_s"], found["binding"]) == (row["decode_ceiling_tok_per_s"], row["binding"])
    assert (found["step_bytes"], found["peak_flop_per_s"]) == (row["bytes_per_token"] * query.batch, row["peak_flop_per_s"])
    (row,) = printed(run, "limits", *arguments(query), "--prompt", query.n_ctx)
    assert found["prompt"]["ceiling_tok_per_s"] == row["prefill_ceiling_tok_per_s"]


@pytest.mark.parametrize("query", [query for query in QUERIES if query.batch == 1], ids=lambda query: query.model)
def test_an_answer_expects_what_predict_prints(query: Query, run: Run) -> None:
    device, _ = query.place.split("/")
    found, about = answer(query), ("predict", "-d", device, "-m", query.model, "-f", query.format)
    decode = printed(run, *about, "--depth", query.depth)
    assert [found[f"{name}_tok_per_s"] for name in ("expected", "low", "high")] == [
        decode[f"{name}_tok_per_s"] for name in ("expected", "low", "high")
    ]
    assert found["basis"].startswith(decode["basis"])
    prefill = printed(run, *about, "--depth", query.n_ctx // 2, "--phase", "prefill")
    assert found["prompt"]["expected_tok_per_s"] == min(prefill["expected_tok_per_s"], found["prompt"]["ceiling_tok_per_s"])


@pytest.mark.usefixtures("nobody_to_ask")
@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.model)
def test_what_a_rate_needs_is_what_need_prints(query: Query, run: Run) -> None:
    about = ("-m", query.model, "-f", query.format, "--tok-s", 40, "--ctx", query.n_ctx, "--kv-type", query.kv_type)
    found, row = need(replace(query, want_tok_per_s=40)), printed(run, "need", *about)
    shared = found.keys() & row.keys()
    assert {"bytes_per_token", "bandwidth_bytes_per_s", "memory_bytes", "flop_per_token", "compute_flop_per_s"} <= shared
    assert {name: found[name] for name in shared} == {name: row[name] for name in shared}


# ── what is expected ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("phase", ["decode", "prefill"])
@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.model)
def test_one_case_and_a_file_of_cases_expect_the_same(query: Query, phase: Any) -> None:
    here = places.find(query.place.split("/")[0], configuration=query.place.split("/")[1])[0]
    assert here.bandwidth_bytes_per_s is not None
    one = frames_predict.expected(here, query.model, query.format, depth=4096, phase=phase)
    case = {"device": here.device_id, "bandwidth_gb_per_s": f"{here.bandwidth_bytes_per_s / 1e9}", "model": query.model, "format": query.format}
    row = frames_predict.predict_cases(pd.DataFrame([case | {"depth": "4096", "phase": phase}])).iloc[0]
    for name in ("ceiling_tok_per_s", "expected_tok_per_s", "low_tok_per_s", "high_tok_per_s"):
        assert getattr(one, name) == pytest.approx(row[name], rel=1e-12)
    assert one.basis == row["basis"]


def test_several_sequences_have_a_ceiling_and_no_prediction() -> None:
    one, many = answer(Query()), answer(Query(batch=8))
    assert (many["expected_tok_per_s"], many["expected_why_not"], many["lines"]["expected"]) == (None, "the prediction is for one sequence", [])
    assert many["rate_used"] == "ceiling"
    assert many["ceiling_tok_per_s"] > one["ceiling_tok_per_s"]
    assert many["prompt"] == one["prompt"], "each sequence's prompt is read by itself"


def test_a_smaller_cache_does_not_move_what_is_expected_and_says_so() -> None:
    whole, small = answer(Query(n_ctx=65536)), answer(Query(n_ctx=65536, kv_type="q4_0"))
    assert whole["expected_tok_per_s"] == small["expected_tok_per_s"]
    assert small["ceiling_tok_per_s"] > whole["ceiling_tok_per_s"]
    assert small["basis"] == whole["basis"] + "; for a 16-bit cache, q4_0 is chosen"


def test_a_prompt_of_one_token_is_read_no_faster_than_the_weights() -> None:
    prompt = answer(Query(n_ctx=1))["prompt"]
    assert prompt["expected_tok_per_s"] == prompt["ceiling_tok_per_s"]
    assert prompt["expected_tok_per_s"] < 273e9 / 41.9e9, "a DGX Spark, and 41.9 GB without the input embedding"
    unknown = answer(Query(n_ctx=1, place="own", compute_tflop_per_s=None, bandwidth_gb_per_s=273))["prompt"]
    assert unknown["ceiling_tok_per_s"] is None
    assert unknown["expected_tok_per_s"] < 273e9 / 41.9e9, "no peak is known, and the weights are read all the same"


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.model)
@pytest.mark.parametrize("want", [5, 60])
def test_at_the_bandwidth_that_is_needed_the_rate_is_expected(query: Query, want: float) -> None:
    asked = replace(query, want_tok_per_s=want, place="own", family="apple" if "MLX" in query.format else "nvidia-discrete")
    found = need(asked)["expected_bandwidth_bytes_per_s"]
    if found is None:
        at_most = answer(replace(asked, bandwidth_gb_per_s=1e6, filled="full"))["expected_tok_per_s"]
        assert at_most is None or at_most < want
        return
    # A row of a file of cases knows nothing of the inverse.
    case = {"bandwidth_gb_per_s": repr(found / 1e9), "family": asked.family, "model": query.model, "format": query.format, "depth": str(query.n_ctx)}
    row = frames_predict.predict_cases(pd.DataFrame([case | {"phase": "decode"}])).iloc[0]
    if "with that bandwidth" not in row["basis"]:
        assert row["expected_tok_per_s"] == pytest.approx(want, rel=1e-6)
    assert found >= need(asked)["bandwidth_bytes_per_s"], "no machine is expected above its ceiling"


# ── what no query can name ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.model)
def test_an_answer_for_what_is_at_hand_is_that_for_its_name(query: Query) -> None:
    device, configuration = query.place.split("/")
    stored = variant(registry.load_model(query.model), registry.load_format(query.format))
    (here,) = places.find(device, configuration=configuration)
    assert answer_of(stored, here, replace(query, model="", format="", place="")) == answer(query)


def test_a_file_goes_by_its_numbers() -> None:
    stored = variant(registry.load_model("qwen3-30b-a3b"), registry.load_format("Q4_K_M"))
    (here,) = places.find("dgx-spark")
    named, file = (answer_of(v, here, Query()) for v in (stored, replace(stored, name="mine")))
    for found in (file, file["prompt"]):
        assert found["expected_tok_per_s"] > 0
        assert found["expected_why_not"] == ""
    assert file["expected_tok_per_s"] == pytest.approx(named["expected_tok_per_s"], rel=0.01)
    assert [line.what for line in file["lines"]["expected"]] == ["expected", "lowest", "highest", "basis"]


def test_a_machine_whose_bandwidth_nobody_knows_has_no_answer() -> None:
    stored = variant(registry.load_model("qwen3-8b"), registry.load_format("Q4_K_M"))
    here = replace(places.typed(memory_gb=16, bandwidth_gb_per_s=1, family="cpu"), bandwidth_bytes_per_s=None)
    with pytest.raises(UsageError, match="the bandwidth of own is not known"):
        answer_of(stored, here, Query())


# ── places ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("place_id", ["dgx-spark/128gb", "mac-studio-m3-ultra/96gb", "rtx-5090/32gb", "strix-halo/96gb", "h200-sxm/141gb"])
def test_a_machine_typed_like_one_of_the_registry_holds_as_much(place_id: str) -> None:
    device, configuration = place_id.split("/")
    (here,) = places.find(device, configuration=configuration)
    assert here.bandwidth_bytes_per_s is not None
    own = places.typed(memory_gb=here.memory_gb, bandwidth_gb_per_s=here.bandwidth_bytes_per_s / 1e9, family=here.family)
    assert own.room == here.room
    assert (own.discrete, own.backend) == (here.discrete, here.backend)
    assert [own.runs(engine) for engine in registry.CACHE_TYPES] == [here.runs(engine) for engine in registry.CACHE_TYPES]


def test_a_processor_keeps_back_what_linux_does() -> None:
    own = places.typed(memory_gb=64, bandwidth_gb_per_s=89.6, family="cpu")
    assert (own.room.memory_bytes, own.room.unusable_bytes) == (64 * 2**30, 0)
    assert own.room.system_bytes == round(5.84 * 2**30)
    assert (own.backend, own.discrete) == ("cpu", False)


def test_a_typed_peak_bounds_and_moves_the_prompt() -> None:
    slow, fast, unknown = (answer(Query(place="own", compute_tflop_per_s=peak))["prompt"] for peak in (10, 100, None))
    assert fast["ceiling_tok_per_s"] == pytest.approx(10 * slow["ceiling_tok_per_s"])
    assert slow["expected_tok_per_s"] < fast["expected_tok_per_s"] < 10 * slow["expected_tok_per_s"], "the richer reach a smaller share"
    assert unknown["ceiling_tok_per_s"] is None
    assert "peak as of AMD Ryzen AI Max+ 395" in unknown["basis"], "which has those 256 GB/s"


def test_a_budget_buys_the_fastest_that_is_on_sale_and_holds_it() -> None:
    found = answer(Query(place="budget", budget_usd=5000))
    held = [row for row in compare(Query()) if row["verdict"] != "does_not_fit" and (row["price_usd"] or 1e9) <= 5000]
    states = {row["place"]: frames_market.supply_of(*row["place"].split("/")) for row in held}
    on_sale = [row for row in held if (supply := states[row["place"]]) and supply.state in ("sold", "second-hand")]
    assert found["place"] == on_sale[0]["place"]
    assert found["expected_tok_per_s"] == max(row["expected_tok_per_s"] for row in on_sale)
    with pytest.raises(UsageError, match="nothing on sale for 10 USD holds it"):
        answer(Query(place="budget", budget_usd=10))


def test_a_comparison_is_sorted_and_names_every_place_of_the_engine_once() -> None:
    rows = compare(Query(model="qwen3-30b-a3b", place="own"))
    fits = [row for row in rows if row["verdict"] != "does_not_fit"]
    assert rows[: len(fits)] == fits
    assert [row["expected_tok_per_s"] for row in fits] == sorted((row["expected_tok_per_s"] for row in fits), reverse=True)
    assert [row["headroom_bytes"] for row in rows[len(fits) :]] == sorted((row["headroom_bytes"] for row in rows[len(fits) :]), reverse=True)
    assert sorted(row["place"] for row in rows) == sorted([*(f"{p.device_id}/{p.configuration}" for p in places.all_places()), "own"])
    assert {row["device"] for row in compare(Query(model="qwen3-30b-a3b", format="MLX_4BIT"))} == {
        p.device_id for p in places.all_places() if p.family == "apple"
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "none"}, "no model 'none'"),
        ({"format": "MXFP4"}, "MXFP4"),
        ({"place": "dgx-spark"}, "no place 'dgx-spark'"),
        ({"kv_type": "fp8"}, "llama.cpp has no cache type 'fp8'"),
        ({"format": "MLX_4BIT"}, "mlx is not made for dgx-spark/128gb"),
        ({"n_ctx": 0}, "n_ctx is 0; it must be a whole number from 1"),
        ({"filled": "quarter"}, "filled is 'quarter'"),
        ({"place": "own", "family": "sparc"}, "family is 'sparc'"),
        ({"place": "own", "memory_gb": -1}, "memory_gb is -1"),
    ],
)
def test_a_wrong_question_is_one_line(change: dict[str, Any], words: str) -> None:
    with pytest.raises((UsageError, UnknownId)) as caught:
        answer(Query(**change))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@given(
    st.sampled_from(["llama-3.1-8b", "gpt-oss-20b", "qwen3.6-35b-a3b", "llama-4-scout"]),
    st.integers(1, 2 * 10**6),
    st.floats(20, 9000),
    st.one_of(st.none(), st.floats(1, 2000)),
    st.sampled_from(predict.FAMILIES),
)
def test_nothing_expected_is_above_its_ceiling(model: str, n_ctx: int, gb_per_s: float, tflops: float | None, family: str) -> None:
    query = Query(model=model, n_ctx=n_ctx, place="own", bandwidth_gb_per_s=gb_per_s, compute_tflop_per_s=tflops, family=family)
    query = replace(query, format=registry.load_model(model).formats[0])
    found = answer(query)
    assert 0 < found["low_tok_per_s"] <= found["expected_tok_per_s"] <= found["high_tok_per_s"] <= found["ceiling_tok_per_s"]
    prompt = found["prompt"]
    assert 0 < prompt["low_s"] <= prompt["expected_s"] <= prompt["high_s"]
    if prompt["ceiling_s"] is not None:
        assert prompt["ceiling_s"] <= prompt["low_s"]


# ── the data of the page ──────────────────────────────────────────────────────────────────────────


def test_the_data_are_small_and_may_stand_in_a_script_element(data: dict[str, Any]) -> None:
    text = calculator.to_json(data)
    assert len(text.encode()) < 130_000
    assert "<" not in text
    assert "\n" not in text
    assert json.loads(text) == json.loads(json.dumps(data))


def test_the_data_hold_the_whole_registry(data: dict[str, Any]) -> None:
    assert list(data["models"]) == registry.model_ids()
    assert {name: list(model["formats"]) for name, model in data["models"].items()} == {
        i: list(registry.load_model(i).formats) for i in registry.model_ids()
    }
    assert list(data["places"]) == [f"{p.device_id}/{p.configuration}" for p in places.all_places()]
    assert list(data["formats"]) == list(registry.load_formats())
    # The smaller M4 Max stands in the registry as a configuration and as a device of its own.
    assert len({(place["label"], place["device"]) for place in data["places"].values()}) == len(data["places"]), "a label names one machine"


def test_a_label_names_the_cores_of_its_configuration(data: dict[str, Any]) -> None:
    labels = {place_id: found["label"] for place_id, found in data["places"].items()}
    assert labels["mac-studio-m4-max/36gb-32c"] == "Mac Studio M4 Max 32c, 36 GB"
    for place_id, label in labels.items():
        if named := re.search(r"-(\d+c)$", place_id):
            assert f" {named[1]}, " in label


def test_every_whole_number_is_exact_in_the_page(data: dict[str, Any]) -> None:
    def whole(value: Any) -> list[int]:
        items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
        return [value] if isinstance(value, int) else [n for item in items for n in whole(item)]

    assert 10**11 < max(whole(data["models"])) < 2**53
    assert max(n for place in data["places"].values() for n in place["room"]) < 2**53
