"""``nbutils fit``, ``limits``, ``need``, ``devices``, ``models``: what they print is a contract, and a wrong call is one line."""

from __future__ import annotations

import http.server
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from helpers import copy_of_data, make_model
from nbutils import engine, fit, limits, places, probe, registry
from nbutils.gguf_files import StandIn, make, stand_in_model, write_hollow
from nbutils.tensors import active_parameters, parameters, variant

Run = Callable[..., tuple[int, str, str]]
Rows = Callable[..., list[dict[str, Any]]]

needs_engine = pytest.mark.skipif(not engine.has_engine(), reason="llama-cpp-python is not installed: nobody to ask")


@pytest.fixture
def rows(run: Run) -> Rows:
    """The same with ``--json``: what was printed, and nothing beside it."""

    def call(*arguments: object) -> Any:
        code, out, err = run(*arguments, "--json")
        assert (code, err) == (0, "")
        return json.loads(out)

    return call


# ── fit ───────────────────────────────────────────────────────────────────────────────────────────

FIT: dict[str, Any] = {
    "model": str,
    "device": str,
    "configuration": str,
    "memory_gb": float,
    "format": str,
    "engine": str,
    "n_ctx": int,
    "kv_type": str,
    "batch": int,
    "expected_tok_per_s": (float, type(None)),
    "expected_low_tok_per_s": (float, type(None)),
    "expected_high_tok_per_s": (float, type(None)),
    "weight_bytes": int,
    "kv_cache_bytes": int,
    "recurrent_state_bytes": int,
    "compute_buffer_bytes": int,
    "compute_buffer_basis": str,
    "output_buffer_bytes": int,
    "overhead_bytes": int,
    "total_bytes": int,
    "memory_bytes": int,
    "unusable_bytes": int,
    "system_bytes": int,
    "elsewhere_bytes": int,
    "available_bytes": int,
    "headroom_bytes": int,
    "verdict": str,
    "max_ctx": (int, type(None)),
    "max_ctx_basis": str,
    "n_ctx_train": int,
    "caveat": str,
    "n_batch": int,
    "n_ubatch": int,
    "flash_attn": str,
    "swa_full": bool,
    "backend": str,
    "beyond_training": bool,
    "spill": list,
    "linked": (dict, type(None)),
}


def adds_up(row: dict[str, Any]) -> None:
    """A row of ``fit``: the fields that are promised, and sums that anybody can check."""
    assert FIT.keys() <= row.keys()
    for name, kind in FIT.items():
        assert isinstance(row[name], kind), name
    parts = ("weight", "kv_cache", "recurrent_state", "compute_buffer", "output_buffer", "overhead")
    assert row["total_bytes"] == sum(row[f"{part}_bytes"] for part in parts)
    own = row["memory_bytes"] - row["unusable_bytes"] - row["system_bytes"]
    assert 0 <= row["elsewhere_bytes"] < row["weight_bytes"] + row["output_buffer_bytes"]
    assert row["available_bytes"] == own + row["elsewhere_bytes"], "what lies elsewhere is listed, and is room"
    assert row["headroom_bytes"] == row["available_bytes"] - row["total_bytes"]
    tight = row["headroom_bytes"] < 0.05 * own
    assert row["verdict"] == ("does_not_fit" if row["headroom_bytes"] < 0 else "tight" if tight else "fits")
    assert row["compute_buffer_basis"] in (("asked", "kept", "upper_bound") if row["engine"] == "llama.cpp" else ("allowance",))
    assert row["max_ctx_basis"] in (("solved",) if row["max_ctx"] == row["n_ctx_train"] else ("solved", "safe"))
    if row["n_ctx"] <= row["n_ctx_train"] and row["n_ctx"] % 256 == 0:
        assert (row["verdict"] != "does_not_fit") <= (row["max_ctx"] is not None), "what fits has a largest context"
    assert row["max_ctx"] is None or row["max_ctx"] <= row["n_ctx_train"]


def test_fit_is_a_list_of_rows_that_add_up(rows: Rows) -> None:
    (row,) = rows("fit", "-m", "llama-3.3-70b", "-d", "dgx-spark", "-f", "Q4_K_M", "--ctx", 32768)
    adds_up(row)
    # 80 layers of 8 heads of 128, K and V, two bytes each: 320 KiB a token.
    assert row["kv_cache_bytes"] == 32768 * 320 * 1024
    assert (row["device"], row["configuration"], row["memory_gb"], row["verdict"]) == ("dgx-spark", "128gb", 128, "fits")
    assert (row["max_ctx"], row["n_ctx_train"], row["beyond_training"]) == (131072, 131072, False)
    assert (row["spill"], row["linked"], row["caveat"]) == ([], None, "")
    assert (row["n_batch"], row["n_ubatch"], row["flash_attn"], row["swa_full"]) == (2048, 512, "auto", False)
    assert rows("fit", "llama-3.3-70b", "-d", "dgx-spark", "-f", "Q4_K_M", "--ctx", 32768) == [row], "the option may be left out"


@pytest.mark.parametrize("n_ctx", [8192, 131072])
def test_the_verdict_is_in_the_answer_and_not_in_the_exit_code(n_ctx: int, rows: Rows) -> None:
    (row,) = rows("fit", "-m", "llama-3.3-70b", "-d", "rtx-4090", "-f", "Q4_K_M", "--ctx", n_ctx)
    adds_up(row)
    assert (row["verdict"], row["max_ctx"]) == ("does_not_fit", None)


def test_without_a_device_and_a_format_every_cell_is_a_row(rows: Rows) -> None:
    found = rows("fit", "-m", "gpt-oss-20b")
    model, whole = registry.load_model("gpt-oss-20b"), places.all_places()
    engines = {f: variant(model, registry.load_format(f)).engine for f in model.formats}
    expected = {(p.device_id, p.configuration, f) for p in whole for f in model.formats if p.runs(engines[f])}
    assert len(found) == len(expected)
    assert {(r["device"], r["configuration"], r["format"]) for r in found} == expected
    assert {r["engine"] for r in found} == set(engines.values())
    for row in found:
        adds_up(row)
        assert (row["max_ctx_basis"] == "solved") == (row["max_ctx"] == row["n_ctx_train"]), "so many are not asked about"


def test_each_configuration_is_a_row_unless_one_is_named(rows: Rows) -> None:
    call = ("fit", "-m", "llama-3.1-8b", "-d", "mac-studio-m3-ultra", "-f", "Q8_0")
    assert [r["memory_gb"] for r in rows(*call)] == [96, 256, 512]
    assert [r["memory_gb"] for r in rows(*call, "--memory-gb", 256)] == [256]
    (named,) = rows(*call, "--configuration", "512gb")
    assert named["memory_gb"] == 512
    assert {r["memory_gb"] for r in rows("limits", "-m", "llama-3.1-8b", "-f", "Q8_0", "--memory-gb", 16)} == {16}
    assert [r["format"] for r in rows("limits", "-m", "llama-3.1-8b", "-d", "mac-mini-m4", "--memory-gb", 16)] == [
        f for f in registry.load_model("llama-3.1-8b").formats if registry.load_format(f).container in ("gguf", "mlx")
    ]


def test_a_cache_type_leaves_out_what_engines_have_none_of(rows: Rows) -> None:
    call = ("fit", "-m", "llama-3.1-8b", "-d", "mac-mini-m4", "--memory-gb", 32)
    assert {r["engine"] for r in rows(*call, "--kv-type", "q8_0")} == {"llama.cpp"}
    assert {r["engine"] for r in rows(*call, "--kv-type", "q4")} == {"mlx"}
    assert {r["format"] for r in rows("limits", "-m", "llama-3.1-8b", "-d", "rtx-4090", "--kv-type", "fp8")} == {"BF16", "FP8", "NVFP4"}


def test_a_format_that_is_named_is_shown_even_where_its_engine_does_not_run(rows: Rows, run: Run) -> None:
    for device, format_id, engine_name, caveat in (
        ("dgx-spark", "MLX_4BIT", "mlx", "mlx is not made for dgx-spark"),
        ("macbook-air-m5", "BF16", "vllm", "vllm is not made for macbook-air-m5"),
        ("dgx-spark", "BF16", "vllm", ""),
        ("macbook-air-m5", "MLX_4BIT", "mlx", ""),
    ):
        call = ("fit", "-m", "llama-3.1-8b", "-d", device, "-f", format_id)
        for row in rows(*call):
            adds_up(row)
            assert (row["engine"], row["compute_buffer_basis"], row["caveat"]) == (engine_name, "allowance", caveat)
        out = run(*call, "--explain")[1]
        assert ("caveat: " in out) == bool(caveat)
        assert caveat in out
        assert "an allowance: llama.cpp's upper bound" in out


def test_sequences_and_cache_types_scale_the_cache(rows: Rows) -> None:
    call = ("fit", "-m", "llama-3.1-8b", "-d", "dgx-spark", "-f", "Q4_K_M", "--ctx", 4096)
    (one,), (eight,), (small,) = rows(*call), rows(*call, "--batch", 8), rows(*call, "--kv-type", "q8_0")
    assert eight["kv_cache_bytes"] == 8 * one["kv_cache_bytes"]
    assert eight["output_buffer_bytes"] == 8 * one["output_buffer_bytes"]
    assert small["kv_cache_bytes"] * 2 * 32 == one["kv_cache_bytes"] * 34, "32 elements in 34 bytes instead of 64"
    assert eight["weight_bytes"] == one["weight_bytes"]
    for row in (one, eight, small):
        adds_up(row)


def test_beyond_training_is_allowed_and_said(rows: Rows) -> None:
    (row,) = rows("fit", "-m", "qwen3-8b", "-d", "dgx-spark", "-f", "Q4_K_M", "--ctx", 50_000)
    assert (row["n_ctx"], row["n_ctx_train"], row["beyond_training"], row["max_ctx"]) == (50_000, 40_960, True, 40_960)


@pytest.mark.parametrize(
    "call",
    [
        ("fit", "-m", "qwen3-8b", "-d", "dgx-spark", "-f", "Q4_K_M", "--ctx"),
        ("fit", "-m", "qwen3-8b", "-d", "rtx-3060", "-f", "Q4_K_M", "--ctx"),
        ("limits", "-m", "qwen3-8b", "-d", "dgx-spark", "-f", "Q4_K_M", "--depth"),
        ("limits", "-m", "qwen3-8b", "-d", "rtx-3060", "-f", "Q4_K_M", "--depth"),
        ("need", "-m", "qwen3-8b", "--tok-s", 10, "--ctx"),
    ],
    ids=["fit of one", "fits", "limits of one", "limits", "need"],
)
def test_beyond_training_is_said_once_below_lines_and_tables_and_in_json(call: tuple[object, ...], run: Run, rows: Rows) -> None:
    for n, beyond in ((40_960, False), (50_000, True)):
        found: Any = rows(*call, n)
        assert {row["beyond_training"] for row in ([found] if isinstance(found, dict) else found)} == {beyond}
        code, out, err = run(*call, n)
        assert (code, err) == (0, "")
        assert out.count("50,000 tokens is beyond the 40,960 that the model was trained for") == beyond
        assert out.count("beyond") == beyond


def test_the_explanation_has_every_part_with_its_unit_and_its_source(run: Run, rows: Rows) -> None:
    call = ("fit", "-m", "nemotron-3-nano", "-d", "dgx-spark", "-f", "Q4_K_M", "--ctx", 32768)
    (row,) = rows(*call)
    code, out, err = run(*call, "--explain")
    assert (code, err) == (0, "")
    shown = {line[:16].strip(): line for line in out.splitlines()}
    for part in ("weights", "KV cache", "recurrent state", "compute buffer", "output buffer", "total", "available", "headroom"):
        name = part.replace(" ", "_").lower().removesuffix("s") if part == "weights" else part.replace(" ", "_").lower()
        assert f"{row[f'{name}_bytes']:,} bytes" in shown[part], part
    for part in ("runtime", "memory", "out of reach", "system keeps"):
        assert re.search(r" bytes: .+\[.+\]$", shown[part]), f"{part} has a source"
    assert "6 layers keep all of it, 23 layers keep a state of fixed size, 23 layers keep nothing" in shown["KV cache"]
    assert "assumed: n_batch 2048, n_ubatch 512, flash_attn auto, swa_full false" in out
    assert f"largest context that fits: {row['max_ctx']:,} tokens; trained for {row['n_ctx_train']:,}" in out
    assert run(*call) == (code, out, err), "one row is explained without being asked"


def test_what_a_card_does_not_hold_is_listed_and_is_room(rows: Rows, run: Run) -> None:
    def shown(model: str, device: str) -> tuple[dict[str, Any], str]:
        call = ("fit", "-m", model, "-d", device, "-f", "Q4_K_M")
        (row,) = rows(*call)
        adds_up(row)
        return row, next((line for line in run(*call)[1].splitlines() if line.startswith("elsewhere")), "")

    # Rows of 2,048 in Q4_K, 144 bytes for 256 elements, for each of 151,936 words; and their logits in F32.
    row, line = shown("qwen3-30b-a3b", "rtx-5070")
    assert row["elsewhere_bytes"] == 151_936 * 2048 // 256 * 144 + 151_936 * 4
    assert f"{row['elsewhere_bytes']:,} bytes: the input embedding and the logits stay with the processor" in line
    # An embedding that is the output head too is multiplied with on the card: only the logits come back.
    row, _ = shown("qwen3-0.6b", "rtx-5070")
    assert row["elsewhere_bytes"] == row["output_buffer_bytes"] == 151_936 * 4
    # One memory holds all; drafting layers are on disk whatever the machine.
    row, line = shown("qwen3-30b-a3b", "dgx-spark")
    assert (row["elsewhere_bytes"], line) == (0, "")
    row, line = shown("glm-4.5-air", "dgx-spark")
    drafting = variant(registry.load_model("glm-4.5-air"), registry.load_format("Q4_K_M")).groups["idle"].n_bytes
    assert 0 < row["elsewhere_bytes"] == drafting
    assert line.endswith("bytes: layers that only draft tokens stay on disk")


def test_of_several_rows_each_is_explained_on_demand_and_listed_otherwise(run: Run) -> None:
    call = ("fit", "-m", "llama-3.1-8b", "-d", "rtx-3060", "-f", "Q4_K_M")
    assert run(*call, "--explain")[1].count("headroom") == 2
    code, out, _ = run(*call)
    assert code == 0
    assert "rtx-3060" in out
    assert "bytes:" not in out


def test_a_card_that_is_too_small_is_shown_with_what_can_be_left_behind(run: Run, rows: Rows) -> None:
    call = ("fit", "-m", "qwen3-30b-a3b", "-d", "rtx-5070", "-f", "Q4_K_M")
    (row,) = rows(*call, "--host-gb-s", 80)
    adds_up(row)
    (alone,) = rows("limits", "-m", "qwen3-30b-a3b", "-d", "rtx-5070", "-f", "Q4_K_M")
    layers, experts = row["spill"]
    assert (layers["what"], experts["what"]) == ("layers", "experts")
    for way in (layers, experts):
        assert 0 < way["n_left"] < way["n_layer"] == 48
        assert 0 <= way["headroom_bytes"] < row["weight_bytes"] / 48, "no more is left behind than must be"
        assert way["host_bandwidth_bytes_per_s"] == 80e9
        assert 80e9 / alone["bytes_per_token"] < way["decode_ceiling_tok_per_s"] < alone["decode_ceiling_tok_per_s"], "between the two memories"
    assert experts["decode_ceiling_tok_per_s"] > layers["decode_ceiling_tok_per_s"], "few of their bytes are read"
    code, out, _ = run(*call)
    assert code == 0
    assert f"with layers 0 to {layers['n_left'] - 1} ({layers['n_left']} of 48) left to a processor that reads 89.6 GB/s" in out
    assert f"with experts of layers 0 to {experts['n_left'] - 1}" in out
    (faster,) = rows(*call, "--host-gb-s", 160)
    assert faster["spill"][0]["decode_ceiling_tok_per_s"] > layers["decode_ceiling_tok_per_s"]


def test_a_machine_with_one_memory_has_nothing_to_leave_it_in(rows: Rows) -> None:
    (row,) = rows("fit", "-m", "llama-3.3-70b", "-d", "mac-mini-m4", "--memory-gb", 16, "-f", "Q4_K_M")
    assert (row["verdict"], row["spill"]) == ("does_not_fit", [])


def test_two_machines_hold_what_one_does_not(run: Run, rows: Rows) -> None:
    call = ("fit", "-m", "qwen3-235b-a22b", "-d", "dgx-spark", "-f", "Q4_K_M", "--machines", 2)
    (row,) = rows(*call)
    adds_up(row)
    two = row["linked"]
    assert (row["verdict"], two["machines"], two["verdict"]) == ("does_not_fit", 2, "fits")
    assert 0 < two["n_layer_first"] < registry.load_model("qwen3-235b-a22b").shape.n_layer
    assert row["total_bytes"] / 2 < two["fuller_total_bytes"] == row["available_bytes"] - row["elsewhere_bytes"] - two["headroom_bytes"]
    (alone,) = rows("limits", "-m", "qwen3-235b-a22b", "-d", "dgx-spark", "-f", "Q4_K_M")
    ceiling = alone["decode_ceiling_tok_per_s"]
    assert two["by_layer_tok_per_s"] < ceiling < two["by_tensor_tok_per_s"] < 2 * ceiling
    (slower,) = rows(*call, "--link-gb-s", 1.25)
    assert slower["linked"]["by_tensor_tok_per_s"] < two["by_tensor_tok_per_s"]
    code, out, _ = run(*call)
    assert code == 0
    assert "two of them over 25 GB/s: fits" in out


# ── files, addresses, this machine ────────────────────────────────────────────────────────────────


def test_a_file_is_a_model(small_file: Path, rows: Rows, run: Run) -> None:
    (row,) = rows("fit", "-m", small_file, "-d", "dgx-spark", "--ctx", 1000)
    adds_up(row)
    ours = variant(stand_in_model("dense", "small"), registry.load_format("Q4_K_M"))
    assert (row["model"], row["format"], row["engine"]) == (small_file.name, "Q4_K_M", "llama.cpp")
    assert (row["weight_bytes"], row["kv_cache_bytes"]) == (ours.weight_bytes, fit.kv_cache_bytes(ours, 1000))
    assert row["compute_buffer_basis"] == ("asked" if engine.has_engine() else "upper_bound")
    (limit,) = rows("limits", "-m", small_file, "-d", "dgx-spark")
    assert limit["bytes_per_token"] == ours.step_weight_bytes
    assert 0 < row["expected_low_tok_per_s"] < row["expected_tok_per_s"] < limit["decode_ceiling_tok_per_s"], "by its numbers"
    assert rows("need", "-m", small_file)["bytes_per_token"] == ours.step_weight_bytes + limits.kv_bytes_read(ours.shape, 8192)
    assert small_file.name in run("fit", "-m", small_file, "-d", "rtx-3060", "--explain")[1]


def test_an_address_is_a_model_and_a_web_page_is_none(rows: Rows, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (find_spec("httpx") or find_spec("httpx2")):
        pytest.skip("no httpx: nothing can be fetched")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    whole = make(StandIn("moe", "small", "Q8_0"), registry.load_format("Q8_0")).read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = "page" in self.path
            first, last = (int(n) for n in self.headers["Range"].removeprefix("bytes=").split("-"))
            data = b"<!doctype html><title>Sign in</title>" * 9 if page else whole
            part = data[first : last + 1]
            self.send_response(206)
            self.send_header("Content-Type", "text/html" if page else "application/octet-stream")
            self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            self.wfile.write(part)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        site = f"http://127.0.0.1:{server.server_address[1]}"
        (row,) = rows("fit", "-m", f"{site}/tiny.gguf", "-d", "dgx-spark")
        code, _, err = run("fit", "-m", f"{site}/page.gguf", "-d", "dgx-spark")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    adds_up(row)
    assert (row["model"], row["weight_bytes"]) == (
        "tiny.gguf",
        variant(stand_in_model("moe", "small"), registry.load_format("Q8_0")).weight_bytes,
    )
    assert code in (1, 2)
    (line,) = err.splitlines()
    assert "web page" in line


def test_this_machine_is_a_device(small_file: Path, rows: Rows, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = rows("fit", "-m", small_file, "-d", "this")
    adds_up(row)
    bare = probe.machine()
    if bare.device != "unlisted":
        pytest.skip("the registry lists this machine: it is judged like any other")
    assert (row["device"], row["configuration"]) == ("this", "")
    assert row["memory_bytes"] in {bare.memory_bytes, *(g.memory_bytes for g in bare.gpus)}
    # Nobody has published its bandwidth: it is measured, and said to be.
    monkeypatch.setattr(probe, "bandwidth", lambda **options: 50e9)
    (limit,) = rows("limits", "-m", "llama-3.1-8b", "-d", "this", "-f", "Q8_0")
    assert limit["bandwidth_bytes_per_s"] == 50e9
    assert limit["decode_ceiling_tok_per_s"] == pytest.approx(50e9 / 7_974_764_800)
    assert (limit["peak_flop_per_s"], limit["prefill_ceiling_tok_per_s"], limit["usd_per_million_tokens"]) == (None, None, None)
    out = run("limits", "-m", "llama-3.1-8b", "-d", "this", "-f", "Q8_0")[1]
    assert "[measured now]" in out
    assert "unknown FLOP/s" in out


@needs_engine
def test_the_processor_can_always_be_asked_and_a_backend_that_is_not_there_cannot(small_file: Path, rows: Rows, run: Run) -> None:
    (row,) = rows("fit", "-m", small_file, "-d", "dgx-spark", "--backend", "cpu")
    assert row["backend"] == "cpu"
    absent = next(b for b in ("sycl", "vulkan", "rocm") if b != engine.backend_name())
    code, _, err = run("fit", "-m", small_file, "-d", "dgx-spark", "--backend", absent)
    assert code == 2
    assert f"no backend '{absent}'" in err
    assert len(err.splitlines()) == 1


def test_without_llama_cpp_everything_still_has_an_answer(small_file: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "has_engine", lambda: False)
    monkeypatch.setattr(engine, "_call", lambda *a, **k: pytest.fail("a child was started"))
    (kept,) = rows("fit", "-m", "llama-3.1-8b", "-d", "rtx-3060", "--memory-gb", 12, "-f", "Q4_K_M")
    (bound,) = rows("fit", "-m", small_file, "-d", "rtx-4090")
    assert (kept["compute_buffer_basis"], bound["compute_buffer_basis"]) == ("kept", "upper_bound")
    for row in (kept, bound):
        adds_up(row)
        assert row["max_ctx"] is not None
    assert (bound["max_ctx"], bound["max_ctx_basis"]) == (bound["n_ctx_train"], "solved"), "all of it fits even by the bound"
    assert kept["max_ctx"] < kept["n_ctx_train"]
    assert kept["max_ctx_basis"] == "safe"


@needs_engine
def test_the_largest_context_says_whether_it_is_exact(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    call = ("fit", "-m", "llama-3.1-8b", "-d", "rtx-3060", "--memory-gb", 12, "-f", "Q4_K_M")
    (exact,) = rows(*call)
    assert exact["max_ctx_basis"] == "solved"
    (none_fits,) = rows("fit", "-m", "llama-3.3-70b", "-d", "rtx-3060", "--memory-gb", 12, "-f", "Q4_K_M")
    assert (none_fits["max_ctx"], none_fits["max_ctx_basis"]) == (None, "solved"), "that nothing fits is exact too"
    (mlx,) = rows("fit", "-m", "llama-3.1-8b", "-d", "mac-mini-m4", "--memory-gb", 16, "-f", "MLX_4BIT")
    assert mlx["max_ctx"] < mlx["n_ctx_train"]
    assert mlx["max_ctx_basis"] == "safe", "MLX was not asked"
    monkeypatch.setattr(engine, "has_engine", lambda: False)
    (safe,) = rows(*call)
    assert safe["max_ctx_basis"] == "safe"
    assert 0.9 * exact["max_ctx"] < safe["max_ctx"] <= exact["max_ctx"] < exact["n_ctx_train"]


# ── limits and need ───────────────────────────────────────────────────────────────────────────────

LIMITS = {
    "model", "device", "configuration", "memory_gb", "format", "depth", "batch", "kv_type", "bytes_per_token", "flop_per_token",
    "bandwidth_bytes_per_s", "peak_flop_per_s", "peak", "decode_ceiling_tok_per_s", "n_prompt", "prefill_ceiling_tok_per_s",
    "ridge_point_flop_per_byte", "intensity_flop_per_byte", "binding", "compute_bound_batch", "energy_j_per_token", "usd_per_million_tokens",
    "rent_usd_per_million_tokens", "training_ceiling_tok_per_s", "training_flop_per_token", "beyond_training",
    "step_weight_bytes", "step_kv_bytes", "step_state_bytes", "step_bandwidth_s", "step_compute_s",
}  # fmt: skip


def test_limits_are_a_list_whose_ceilings_are_quotients(rows: Rows) -> None:
    (row,) = rows("limits", "-m", "llama-3.1-8b", "-d", "rtx-4090", "-f", "Q8_0", "--depth", 4096, "--prompt", 512)
    assert row.keys() >= LIMITS
    # 7.97 GB of weights, and 32 layers of 2 x 8 heads x 128 x 2 bytes for each of 4,096 tokens.
    assert row["bytes_per_token"] == 7_974_764_800 + 4096 * 32 * 2 * 8 * 128 * 2
    assert row["decode_ceiling_tok_per_s"] == pytest.approx(row["bandwidth_bytes_per_s"] / row["bytes_per_token"])
    assert row["ridge_point_flop_per_byte"] == pytest.approx(row["peak_flop_per_s"] / row["bandwidth_bytes_per_s"])
    assert row["intensity_flop_per_byte"] == pytest.approx(row["flop_per_token"] / row["bytes_per_token"])
    assert row["binding"] == "bandwidth"
    assert (row["depth"], row["n_prompt"], row["batch"], row["kv_type"]) == (4096, 512, 1, "f16")


def test_a_large_enough_batch_is_bound_by_arithmetic(rows: Rows) -> None:
    call = ("limits", "-m", "llama-3.1-8b", "-d", "rtx-4090", "-f", "Q8_0")
    (one,) = rows(*call)
    n = one["compute_bound_batch"]
    (below,), (at,) = rows(*call, "--batch", n - 1), rows(*call, "--batch", n)
    assert (below["binding"], at["binding"]) == ("bandwidth", "compute")
    assert one["decode_ceiling_tok_per_s"] < below["decode_ceiling_tok_per_s"] <= at["decode_ceiling_tok_per_s"]


def test_renting_owning_and_training_have_their_price(rows: Rows, run: Run) -> None:
    call = ("limits", "-m", "llama-3.1-8b", "-d", "dgx-spark", "-f", "Q8_0")
    (own,), (rented,) = rows(*call), rows(*call, "--rent-usd-hour", 3.6)
    assert own["rent_usd_per_million_tokens"] is None
    # 3.60 USD an hour is a thousandth of a dollar a second.
    assert rented["rent_usd_per_million_tokens"] == pytest.approx(1000 / own["decode_ceiling_tok_per_s"])
    power = registry.load_device("dgx-spark").power
    assert power is not None
    assert own["energy_j_per_token"] == pytest.approx(power.base("power") / own["decode_ceiling_tok_per_s"])
    assert own["usd_per_million_tokens"] > own["energy_j_per_token"] / 3.6e6 * 0.15 * 1e6, "electricity is a part of it"
    # Six operations a weight in full training; an adapter saves two of them.
    training = own["training_ceiling_tok_per_s"]
    assert training["lora"] / training["full"] == pytest.approx(6 / 4, rel=0.01)
    # 8,030,261,248 parameters as published; nobody multiplies with the 128,256 rows of 4,096 of the input embedding.
    flop = own["training_flop_per_token"]
    assert flop["full"] == pytest.approx(6 * (8_030_261_248 - 128_256 * 4096), rel=1e-6)
    assert flop["lora"] == flop["qlora"] == pytest.approx(4 / 6 * flop["full"], rel=1e-3)
    price = places.find("dgx-spark")[0].price_usd
    assert price is not None
    usd_per_s = price / (3 * 365.25 * 86400) + power.base("power") * 0.15 / 3.6e6
    assert own["usd_per_million_tokens"] == pytest.approx(1e6 * usd_per_s / own["decode_ceiling_tok_per_s"], rel=1e-3)


def test_below_the_ceilings_stands_what_a_token_costs(rows: Rows, run: Run) -> None:
    call = ("limits", "-m", "llama-3.1-8b", "-d", "dgx-spark", "-f", "Q8_0", "--rent-usd-hour", 3.6)
    (row,) = rows(*call)
    lines = run(*call)[1].splitlines()
    below = lines[1 + next(i for i, line in enumerate(lines) if line.startswith("prefill ceiling")) :]
    names = [line[:16].strip() for line in below]
    assert names == ["ridge point", "arithmetic binds", "energy", "owned", "rented", "training", "training", "training"]
    figures = [float(line[16:].split()[0].replace(",", "")) for line in below]
    flop = row["training_flop_per_token"]
    expected = [row[k] for k in ("ridge_point_flop_per_byte", "compute_bound_batch", "energy_j_per_token", "usd_per_million_tokens")]
    assert figures == pytest.approx([*expected, row["rent_usd_per_million_tokens"], flop["full"], flop["lora"], flop["qlora"]], rel=0.01)
    units = ["FLOP/byte: ", "sequences: ", "J/token: ", "USD/10⁶ tok: ", "USD/10⁶ tok: ", *["FLOP/token: "] * 3]
    assert all(unit in line for unit, line in zip(units, below, strict=True))
    for line in below[2:4]:
        assert re.search(r"\[.+\]$", line), "rated power and price have a source"
    for method, line in zip(("full", "lora", "qlora"), below[5:], strict=True):
        assert f": {method}: " in line
        assert f"at most {row['training_ceiling_tok_per_s'][method]:,.0f} tok/s at the FP16 peak" in line
    assert "rented" not in run(*call[:-2])[1]


@pytest.mark.parametrize("model", ["llama-3.1-8b", "qwen3.5-122b-a10b", "gpt-oss-20b"])
def test_a_step_is_weights_caches_and_states(model: str, rows: Rows) -> None:
    format_id = "MXFP4_MOE" if model == "gpt-oss-20b" else "Q4_K_M"
    call = ("limits", "-m", model, "-d", "dgx-spark", "-f", format_id, "--depth", 4096)
    (one,), (four,) = rows(*call), rows(*call, "--batch", 4)
    for row in (one, four):
        step = row["step_weight_bytes"] + row["step_kv_bytes"] + row["step_state_bytes"]
        assert step == pytest.approx(row["batch"] * row["bytes_per_token"], rel=1e-9)
        assert row["step_bandwidth_s"] == pytest.approx(step / row["bandwidth_bytes_per_s"])
        assert row["step_compute_s"] == pytest.approx(row["batch"] * row["flop_per_token"] / row["peak_flop_per_s"])
        assert row["decode_ceiling_tok_per_s"] == pytest.approx(row["batch"] / max(row["step_bandwidth_s"], row["step_compute_s"]))
    assert one["step_weight_bytes"] == variant(registry.load_model(model), registry.load_format(format_id)).step_weight_bytes
    assert (four["step_kv_bytes"], four["step_state_bytes"]) == (4 * one["step_kv_bytes"], 4 * one["step_state_bytes"])
    assert (one["step_state_bytes"] > 0) == (registry.load_model(model).shape.recurrent is not None)
    # All read the same dense weights; of experts more are needed, and at most four times as many.
    assert one["step_weight_bytes"] <= four["step_weight_bytes"] <= 4 * one["step_weight_bytes"]
    assert (four["step_weight_bytes"] == one["step_weight_bytes"]) == (model == "llama-3.1-8b")


def test_without_a_device_every_place_has_its_limits(rows: Rows, run: Run) -> None:
    found = rows("limits", "-m", "llama-3.1-8b", "-f", "Q4_K_M")
    assert [(r["device"], r["configuration"]) for r in found] == [(p.device_id, p.configuration) for p in places.all_places()]
    assert all(r.keys() >= LIMITS for r in found)
    assert len({r["bytes_per_token"] for r in found}) == 1
    code, out, _ = run("limits", "-m", "llama-3.1-8b", "-d", "dgx-spark")
    assert code == 0
    assert "decode ceiling" in out
    assert "reading takes" not in out


def test_the_explanation_of_a_limit_has_units_and_sources(run: Run) -> None:
    code, out, err = run("limits", "-m", "qwen3-30b-a3b", "-d", "rtx-5090", "-f", "Q4_K_M", "--depth", 4096, "--explain")
    assert (code, err) == (0, "")
    shown = {line[:16].strip(): line for line in out.splitlines()}
    for part, unit in {
        "weights read": "bytes",
        "K and V read": "bytes",
        "bandwidth": "bytes/s",
        "reading takes": "ms",
        "arithmetic": "FLOP",
        "peak": "FLOP/s",
        "decode ceiling": "tok/s",
        "prefill ceiling": "tok/s",
    }.items():
        assert re.search(rf"[\d,.]+ {unit}", shown[part]), part
    assert re.search(r"\[.+\]$", shown["bandwidth"])
    assert re.search(r"\[.+\]$", shown["peak"])
    assert "8.0 of 128 experts a layer" in shown["weights read"]
    for part, unit in {"ridge point": "FLOP/byte", "energy": "J/token", "owned": "USD/10⁶ tok", "training": "FLOP/token"}.items():
        assert re.search(rf" [\d,.]*[1-9]\d* {unit}: ", shown[part]), f"{part}: some digits of it are shown"
    assert out == run("limits", "-m", "qwen3-30b-a3b", "-d", "rtx-5090", "-f", "Q4_K_M", "--depth", 4096)[1]


def test_a_rate_needs_a_bandwidth_and_every_device_named_has_it(rows: Rows, run: Run) -> None:
    found: Any = rows("need", "-m", "llama-3.3-70b", "-f", "Q4_K_M", "--tok-s", 20, "--ctx", 8192)
    assert found.keys() >= {
        "model", "format", "tok_s", "n_ctx", "kv_type", "bytes_per_token", "bandwidth_bytes_per_s", "memory_bytes", "flop_per_token",
        "compute_flop_per_s", "devices",
    }  # fmt: skip
    assert found["bandwidth_bytes_per_s"] == pytest.approx(20 * found["bytes_per_token"])
    assert found["compute_flop_per_s"] == 20 * found["flop_per_token"]
    named = {(d["device"], d["configuration"]) for d in found["devices"]}
    fits = {(r["device"], r["configuration"]): r["verdict"] for r in rows("fit", "-m", "llama-3.3-70b", "-f", "Q4_K_M", "--ctx", 8192)}
    fast = {
        (r["device"], r["configuration"])
        for r in rows("limits", "-m", "llama-3.3-70b", "-f", "Q4_K_M", "--depth", 8192)
        if r["decode_ceiling_tok_per_s"] >= 20
    }
    assert named == {cell for cell in fast if fits[cell] != "does_not_fit"}
    for device in found["devices"]:
        assert device["share_needed"] == pytest.approx(20 / device["decode_ceiling_tok_per_s"])
    rates = [d["decode_ceiling_tok_per_s"] for d in found["devices"]]
    assert rates == sorted(rates, reverse=True)
    assert "Not ruled out" in run("need", "-m", "llama-3.3-70b")[1]
    assert "no device of the registry has all three" in run("need", "-m", "llama-3.3-70b", "--tok-s", 1e6)[1]


@pytest.mark.parametrize(("format_id", "apple"), [("MLX_4BIT", True), ("BF16", False)])
def test_only_machines_that_the_engine_is_made_for_are_named(format_id: str, apple: bool, rows: Rows) -> None:
    found: Any = rows("need", "-m", "llama-3.1-8b", "-f", format_id, "--tok-s", 5)
    assert found["format"] == format_id
    assert {registry.load_device(d["device"]).family == "apple" for d in found["devices"]} == {apple}
    fits = {
        (r["device"], r["configuration"]) for r in rows("fit", "-m", "llama-3.1-8b") if r["format"] == format_id and r["verdict"] != "does_not_fit"
    }
    assert {(d["device"], d["configuration"]) for d in found["devices"]} <= fits


def test_a_rate_is_for_q4_k_m_unless_a_format_is_given_and_a_file_has_its_own(rows: Rows, run: Run, small_file: Path) -> None:
    assert rows("need", "-m", "llama-3.1-8b") == rows("need", "-m", "llama-3.1-8b", "-f", "Q4_K_M")
    found: Any = rows("need", "-m", small_file)
    assert found["format"] == "Q4_K_M"
    for format_id in ("Q8_0", "Q4_K_M"):
        code, out, err = run("need", "-m", small_file, "-f", format_id)
        (line,) = err.splitlines()
        assert (code, out) == (2, "")
        assert f"--format {format_id} goes with a model of the registry" in line


# ── devices and models ────────────────────────────────────────────────────────────────────────────


def test_devices_are_listed_and_one_is_shown_whole(rows: Rows, run: Run) -> None:
    found = rows("devices")
    assert [d["id"] for d in found] == registry.device_ids()
    one: Any = rows("devices", "dgx-spark")
    assert one in found
    written = registry.load_device("dgx-spark").model_dump(mode="json")
    assert {k: v for k, v in one.items() if k != "configurations"} == {k: v for k, v in written.items() if k != "configurations"}
    for configuration, as_written in zip(one["configurations"], written["configurations"], strict=True):
        assert configuration.items() >= as_written.items()
        assert configuration["memory"]["source"] in one["sources"]
        assert (configuration["memory_bytes"], configuration["bandwidth_bytes_per_s"]) == (128 * 2**30, 273e9), "and in base units"
    code, out, err = run("devices", "dgx-spark")
    assert (code, err) == (0, "")
    assert "273 GB/s" in out
    assert "source" in out
    everything = run("devices")[1]
    assert all(device_id in everything for device_id in registry.device_ids())


def test_models_are_listed_with_their_counts_and_one_is_shown_whole(rows: Rows, run: Run) -> None:
    found = rows("models")
    assert [m["id"] for m in found] == registry.model_ids()
    for row in found:
        model = registry.load_model(row["id"])
        assert (row["n_parameters"], row["n_active_parameters"]) == (parameters(model), active_parameters(model))
    one: Any = rows("models", "deepseek-v3")
    assert one in found
    assert one.items() >= registry.load_model("deepseek-v3").model_dump(mode="json").items()
    code, out, err = run("models", "deepseek-v3")
    assert (code, err) == (0, "")
    for source in registry.load_model("deepseek-v3").sources.values():
        assert source.title in out
    assert "kv_lora_rank" in out
    assert "deepseek-v3" in run("models")[1]


@needs_engine
def test_kept_answers_are_written_as_they_are_committed(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = copy_of_data(tmp_path, monkeypatch) / "buffers" / "qwen3-0.6b.yaml"
    committed = path.read_bytes()
    kept = registry.load_answers("qwen3-0.6b")
    if kept is None or kept.build != engine.build():
        pytest.skip("another llama.cpp is installed than the kept answers speak of")
    path.unlink()
    assert run("buffers", "qwen3-0.6b")[:2] == (0, "data/buffers/qwen3-0.6b.yaml\n")
    assert path.read_bytes() == committed


# ── wrong calls ───────────────────────────────────────────────────────────────────────────────────

FIT_8B = ("fit", "-m", "llama-3.1-8b", "-d", "dgx-spark", "-f", "Q4_K_M")
LIMITS_8B = ("limits", "-m", "llama-3.1-8b", "-d", "dgx-spark", "-f", "Q4_K_M")
NEED_8B = ("need", "-m", "llama-3.1-8b")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("fit", "-m", "llama-3.1-8b", "-d", "dgx-sprak"), "no device 'dgx-sprak' in data/devices; did you mean 'dgx-spark'?"),
        (("fit", "-m", "llama-3.3-70", "-d", "dgx-spark"), "did you mean 'llama-3.3-70b'?"),
        (("limits", "-m", "llama-3.3-70"), "did you mean 'llama-3.3-70b'?"),
        (("need", "-m", "llama-3.3-70"), "did you mean 'llama-3.3-70b'?"),
        (("devices", "dgx-sprak"), "did you mean 'dgx-spark'?"),
        (("models", "llama-3.3-70"), "did you mean 'llama-3.3-70b'?"),
        (("buffers", "llama-3.3-70"), "did you mean 'llama-3.3-70b'?"),
        (("fit", "-m", "llama-3.1-8b", "-f", "Q4"), "no format 'Q4' in data/formats.yaml; did you mean 'Q4_0'?"),
        (("fit", "-m", "gpt-oss-20b", "-f", "Q4_K_M"), "gpt-oss-20b is not published in Q4_K_M"),
        (("fit", "-m", "llama-3.1-8b", "-d", "dgx-spark", "--configuration", "256gb"), "dgx-spark has no configuration '256gb'"),
        (("fit", "-m", "llama-3.1-8b", "--configuration", "128gb"), "--configuration '128gb' needs --device"),
        (("fit", "-m", "llama-3.1-8b", "-d", "dgx-spark", "--memory-gb", "77"), "dgx-spark is not sold with 77 GB; it is with 128"),
        (("fit", "-m", "llama-3.1-8b", "--memory-gb", "77"), "no device of the registry is sold with 77 GB; sizes are 4, "),
        (("fit", "-m", "llama-3.1-8b", "-d", "this", "--memory-gb", "8"), "does not go with --device this"),
        (("fit", "-m", "llama-3.1-8b", "--memory-gb", "-1"), "--memory-gb is -1; it must be above 0"),
        (("fit", "-m", "llama-3.1-8b", "--memory-gb", "nan"), "--memory-gb is nan"),
        ((*FIT_8B, "--ctx", "0"), "--ctx is 0; it must be at least 1"),
        ((*FIT_8B, "--ctx", "-8192"), "--ctx is -8192"),
        ((*FIT_8B, "--ctx", "1000000001"), "--ctx is 1000000001; nothing is that long"),
        ((*FIT_8B, "--batch", "0"), "--batch is 0; it must be at least 1"),
        ((*FIT_8B, "--kv-type", "fp8"), "llama.cpp has no cache type 'fp8'; it has f16, q8_0, q4_0"),
        (("fit", "-m", "llama-3.1-8b", "-d", "dgx-spark", "-f", "BF16", "--kv-type", "q8_0"), "vllm has no cache type 'q8_0'; it has f16, fp8"),
        (("fit", "-m", "llama-3.1-8b", "-d", "mac-mini-m4", "-f", "MLX_4BIT", "--kv-type", "fp8"), "mlx has no cache type 'fp8'; it has f16, q8, q4"),
        (("need", "-m", "gemma-3-27b", "-f", "MLX_4BIT", "--kv-type", "q4"), "MLX does not quantise"),
        (("limits", "-m", "gemma-3-27b", "-d", "mac-mini-m4", "-f", "MLX_4BIT", "--kv-type", "q4"), "MLX does not quantise"),
        (
            ("fit", "-m", "gemma-3-27b", "-d", "mac-mini-m4", "-f", "MLX_4BIT", "--kv-type", "q4"),
            "MLX does not quantise the caches of windowed layers",
        ),
        (("fit", "-m", "llama-4-scout", "-f", "MLX_4BIT", "--kv-type", "q8"), "llama-4-scout has some, use --kv-type f16"),
        (("fit", "-m", "llama-3.1-8b", "--kv-type", "q9"), "llama.cpp has no cache type 'q9'; it has f16, q8_0, q4_0; vllm has no"),
        (("limits", "-m", "llama-3.1-8b", "-d", "mac-mini-m4", "--kv-type", "fp8"), "mlx has no cache type 'fp8'"),
        ((*FIT_8B, "--machines", "2", "--link-gb-s", "inf"), "--link-gb-s is inf; it must be above 0 and at most"),
        (("fit", "-m", "llama-3.3-70b", "-d", "rtx-4090", "-f", "Q4_K_M", "--host-gb-s", "inf"), "--host-gb-s is inf; it must be above 0"),
        ((*NEED_8B, "--tok-s", "1e300"), "--tok-s is 1e+300; it must be above 0 and at most"),
        (("fit", "-m", "x" * 5000), "no model 'xxx"),
        ((*FIT_8B, "--link-gb-s", "0"), "--link-gb-s is 0; it must be above 0"),
        ((*FIT_8B, "--host-gb-s", "nan"), "--host-gb-s is nan; it must be above 0"),
        ((*FIT_8B, "--backend", "abacus"), "'abacus'"),
        ((*FIT_8B, "--machines", "3"), "--machines"),
        ((*LIMITS_8B, "--batch", "0"), "--batch is 0"),
        ((*LIMITS_8B, "--depth", "-1"), "--depth is -1; it must be at least 0"),
        ((*LIMITS_8B, "--prompt", "0"), "--prompt is 0"),
        ((*LIMITS_8B, "--kv-type", "q9"), "llama.cpp has no cache type 'q9'"),
        ((*NEED_8B, "--tok-s", "nan"), "--tok-s is nan; it must be above 0"),
        ((*NEED_8B, "--tok-s", "inf"), "--tok-s is inf; it must be above 0"),
        ((*NEED_8B, "--tok-s", "0"), "--tok-s is 0; it must be above 0"),
        ((*NEED_8B, "--tok-s", "-5"), "--tok-s is -5; it must be above 0"),
        ((*NEED_8B, "--ctx", "0"), "--ctx is 0"),
        ((*LIMITS_8B, "--rent-usd-hour", "0"), "--rent-usd-hour is 0; it must be above 0"),
        ((*LIMITS_8B, "--rent-usd-hour", "nan"), "--rent-usd-hour is nan"),
        (("fit", "qwen3-8b", "-m", "llama-3.1-8b"), "'qwen3-8b' and --model 'llama-3.1-8b' are both given; give one"),
        (("fit", "-d", "dgx-spark"), "no model is named: give --model"),
        (("fit", "-m", "absent.gguf", "-f", "Q8_0"), "--format Q8_0 goes with a model of the registry"),
        (("need", "-m", "absent.gguf", "-f", "Q8_0"), "--format Q8_0 goes with a model of the registry"),
        (("need", "-m", "gpt-oss-20b"), "gpt-oss-20b is not published in Q4_K_M"),
        (("fit", "-m", "absent.gguf"), "absent.gguf"),
        (("fit", "-m", "http://"), "http://"),
        (("fit",), "--model"),
        ((*FIT_8B, "--ctx", "many"), "--ctx"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_wrong_call_is_one_line_with_code_2(arguments: tuple[str, ...], said: str, run: Run) -> None:
    for more in ((), ("--json",)) if arguments[0] in ("fit", "limits", "need") else ((),):
        code, out, err = run(*arguments, *more)
        (line,) = err.splitlines()
        assert (code, out) == (2, "")
        assert line.startswith("nbutils: ")
        assert said in line


def test_a_model_file_of_text_is_one_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.gguf").write_text("dear diary\n" * 100)
    code, out, err = run("fit", "-m", tmp_path / "notes.gguf", "-d", "dgx-spark")
    (line,) = err.splitlines()
    assert (code, out) == (1, "")
    assert line.startswith("nbutils: notes.gguf: ")


def test_a_cache_type_that_no_head_divides_into_is_misuse(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "narrow.gguf"
    write_hollow(path, make_model(head_dim=48), registry.load_format("F16"))
    code, _, err = run("fit", "-m", path, "-d", "dgx-spark", "--kv-type", "q8_0")
    assert code == 2
    assert "a q8_0 cache has blocks of 32 elements and this model's heads have 48; use f16" in err


@pytest.mark.parametrize("command", ["fit", "limits", "need"])
def test_the_program_itself_ends_with_the_same_code_and_line(command: str) -> None:
    said = subprocess.run(
        [sys.executable, "-c", "from nbutils.cli import main; main()", command, "-m", "llama-3.3-70"], capture_output=True, text=True, check=False
    )
    assert (said.returncode, said.stdout) == (2, "")
    assert len(said.stderr.splitlines()) == 1
    assert "did you mean 'llama-3.3-70b'?" in said.stderr
