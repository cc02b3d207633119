"""What several test modules share: a plausible record, small models, a copy of the registry, llama.cpp as an oracle."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st

from nbutils import paths, registry
from nbutils.specs import (
    AnyRecord,
    Backend,
    BenchRecord,
    BenchTest,
    Experts,
    FileFacts,
    Machine,
    Model,
    Point,
    Record,
    ServedRecord,
    ServedRequest,
    Settings,
    Shape,
    Source,
    Suite,
    SuitePoint,
    SustainRecord,
    TensorGroup,
    Trace,
    Yardstick,
)
from nbutils.tensors import Variant, variant

# No database of past failures, and the same examples every time: a red run can be run again.
settings.register_profile("nbutils", deadline=None, database=None, derandomize=True, max_examples=60)
settings.load_profile("nbutils")

MIB = 2**20

#: What the engine is told when nobody sets anything, with one thread.
ENGINE_SETTINGS: dict[str, Any] = {
    "n_threads": 1,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_gpu_layers": 0,
    "flash_attn": "auto",
    "type_k": "F16",
    "type_v": "F16",
    "seed": 1,
}


def make_record(**changes: Any) -> Record:
    """A plausible record of a two-point suite on a laptop without a GPU; ``changes`` replace whole fields."""
    suite = Suite(
        id="tiny",
        name="Tiny",
        points=(SuitePoint(kind="prefill", n_tokens=32), SuitePoint(kind="decode", n_tokens=4, depth=32)),
        repetitions=2,
        yardstick_s=0.2,
    )
    fields: dict[str, Any] = {
        "schema_version": 1,
        "created": datetime(2026, 1, 5, 12, 0, 0, tzinfo=UTC),
        "suite": suite,
        "machine": Machine(
            device="unlisted",
            system="Linux 6.8",
            architecture="x86_64",
            cpu="Example CPU",
            n_cores=2,
            n_threads_hw=4,
            memory_bytes=8 * 2**30,
            memory_available_bytes=6 * 2**30,
        ),
        "backend": Backend(binding="llama-cpp-python 0.3.36", device="CPU", memory_bytes=8 * 2**30, system_info="CPU : AVX2 = 1"),
        "model": FileFacts(
            name="stand-in-dense-small",
            origin="stand-in",
            reference="6bf802ac",
            architecture="qwen3",
            gguf_type="Q4_K_M",
            n_parameters=8_920_320,
            file_bytes=5_512_992,
            n_layer=4,
            n_ctx_train=4096,
            n_expert=0,
            n_expert_used=0,
            kv_bytes_per_token=4096,
            tensors=(
                TensorGroup(role="embedding", n_bytes=294_912, n_elements=524_288),
                TensorGroup(role="output", n_bytes=430_080, n_elements=524_288),
                TensorGroup(role="other", n_bytes=4_700_000, n_elements=7_871_744),
            ),
            type_bytes_read={"Q4_K": 4_000_000, "Q6_K": 1_130_080},
            header_sha256="0" * 64,
        ),
        "settings": Settings(
            n_threads=2, n_batch=2048, n_ubatch=512, n_ctx=256, flash_attn="auto", type_k="F16", type_v="F16", n_gpu_layers=0, seed=1
        ),
        "points": (
            Point(kind="prefill", n_tokens=32, warmup_s=0.02, depth=0, repetitions_s=((0.011,), (0.012,))),
            Point(
                kind="decode",
                n_tokens=4,
                warmup_s=0.02,
                depth=32,
                repetitions_s=((0.001, 0.0011, 0.001, 0.0012), (0.001, 0.001, 0.001, 0.001)),
            ),
        ),
        "yardsticks": (
            Yardstick(when="before", method="numpy sum", kind="read", where="cpu", n_threads=2, n_bytes=2**29, samples_s=(0.015, 0.014)),
            Yardstick(when="after", method="numpy sum", kind="read", where="cpu", n_threads=2, n_bytes=2**29, samples_s=(0.014, 0.016)),
        ),
        "versions": {"nbutils": "0.1.0", "python": "3.11.7"},
    }
    return Record(**(fields | changes))


#: Two bytes a weight, an embedding that nobody multiplies with, and a quarter of the experts for a token: sums for paper.
PAPER_MOE = FileFacts(
    name="paper-moe",
    origin="stand-in",
    architecture="qwen3moe",
    gguf_type="F16",
    n_parameters=500,
    file_bytes=1100,
    n_layer=1,
    n_ctx_train=64,
    n_expert=8,
    n_expert_used=2,
    kv_bytes_per_token=10,
    tensors=(
        TensorGroup(role="embedding", n_bytes=300, n_elements=150),
        TensorGroup(role="experts", n_bytes=400, n_elements=200),
        TensorGroup(role="output", n_bytes=100, n_elements=50),
        TensorGroup(role="other", n_bytes=200, n_elements=100),
    ),
    type_bytes_read={"F16": 400},
    header_sha256="0" * 64,
)


def make_sustain(**changes: Any) -> SustainRecord:
    """Six blocks of 16 tokens on the laptop of ``make_record``, each slower than the one before, with its thermometer beside them."""
    run = make_record()
    at_s = tuple(1.0 + 10.2 * i for i in range(6))
    fields: dict[str, Any] = {
        "schema_version": 1,
        "kind": "sustain",
        "created": run.created,
        "versions": run.versions,
        "machine": run.machine,
        "backend": run.backend,
        "model": run.model,
        "settings": run.settings,
        "minutes": 1.0,
        "block_tokens": 16,
        "depth": 32,
        "at_s": at_s,
        "block_s": tuple(10.0 + 0.02 * i for i in range(6)),
        "traces": (Trace(meter="system", at_s=at_s, values={"temperature_c": (50.0, 60.0, 70.0, 75.0, 78.0, None)}),),
    }
    return SustainRecord(**(fields | changes))


def make_served(**changes: Any) -> ServedRecord:
    """Two levels of requests to a server: one alone, then two in flight, of which one broke off."""

    def answer(concurrency: int, at_s: float, *, problem: str = "") -> ServedRequest:
        content = tuple(0.2 + 0.05 * concurrency * i for i in range(3 if problem else 8))
        return ServedRequest(
            concurrency=concurrency,
            at_s=at_s,
            n_prompt_tokens=64,
            n_completion_tokens=None if problem else 8,
            content_at_s=content,
            end_s=content[-1] + 0.01,
            finish="" if problem else "length",
            problem=problem,
        )

    fields: dict[str, Any] = {
        "schema_version": 1,
        "kind": "endpoint",
        "created": make_record().created,
        "versions": make_record().versions,
        "machine": make_record().machine,
        "place": "this machine",
        "model": "some-model",
        "software": "a server 1.0",
        "interface": "completions",
        "prompt_tokens_asked": 64,
        "max_tokens": 8,
        "concurrency": (1, 2),
        "repetitions": 1,
        "timeout_s": 30.0,
        "options": {"temperature": 0},
        "n_prompt_words": 48,
        "requests": (answer(1, 0.0), answer(2, 1.0), answer(2, 1.0, problem="the connection was cut")),
    }
    return ServedRecord(**(fields | changes))


def make_bench(**changes: Any) -> BenchRecord:
    """A prompt with two samples, and a generation of which only the mean was printed."""
    when = "2026-01-05T12:00:00Z"
    fields: dict[str, Any] = {
        "schema_version": 1,
        "kind": "llama-bench",
        "created": make_record().created,
        "versions": make_record().versions,
        "build_commit": "0a1b2c3d",
        "build_number": 7000,
        "cpu_info": "Example CPU",
        "backends": "CPU",
        "model_filename": "some-model-Q4_K_M.gguf",
        "model_type": "qwen3 8B Q4_K - Medium",
        "model_size": 5_000_000_000,
        "model_n_params": 8_000_000_000,
        "settings": {"n_batch": 2048, "n_ubatch": 512, "n_threads": 2, "n_gpu_layers": 0, "type_k": "f16", "type_v": "f16", "flash_attn": -1},
        "tests": (
            BenchTest(
                n_prompt=512, n_gen=0, n_depth=0, test_time=when, avg_ns=2 * 10**9, stddev_ns=14_142_135, samples_ns=(199 * 10**7, 201 * 10**7)
            ),
            BenchTest(n_prompt=0, n_gen=128, n_depth=4096, test_time=when, avg_ns=10**10, stddev_ns=0, avg_ts=12.8, stddev_ts=0.0),
        ),
    }
    return BenchRecord(**(fields | changes))


#: A plausible record of every kind, by the name of the kind.
MAKERS: dict[str, Callable[..., AnyRecord]] = {"run": make_record, "sustain": make_sustain, "endpoint": make_served, "llama-bench": make_bench}
each_record = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def make_model(architecture: str = "llama", *, formats: tuple[str, ...] = (), **shape: Any) -> Model:
    """A small model of any architecture; ``shape`` replaces single sizes. ``experts`` may be a tuple of three sizes."""
    sizes: dict[str, Any] = {
        "n_layer": 2,
        "n_embd": 256,
        "n_head": 4,
        "n_head_kv": 2,
        "head_dim": 64,
        "n_ff": 512,
        "n_vocab": 1024,
        "n_ctx_train": 4096,
    } | shape
    if isinstance(sizes.get("experts"), tuple):
        n_expert, n_expert_used, n_ff_expert = sizes["experts"]
        sizes |= {"n_ff": 0, "experts": Experts(n_expert=n_expert, n_expert_used=n_expert_used, n_ff_expert=n_ff_expert)}
    return Model(
        id="made-up",
        name="Made up",
        architecture=architecture,
        shape=Shape(**sizes),
        source="test",
        standing="derived",
        formats=formats,
        sources={"test": Source(title="A test", seen=date(2026, 11, 20))},
    )


_RECURRENT = {"conv_kernel": 4, "inner_size": 64, "state_size": 16, "time_step_rank": 2, "group_count": 1}
_LATENT = {"q_lora_rank": 64, "kv_lora_rank": 96, "n_rot": 32, "head_dim_nope": 32, "head_dim_v": 64}
_EXPERTS = {"n_expert": 8, "n_expert_used": 2, "n_ff_expert": 64, "n_ff_shared": 96}
#: A small model of every kind of layer and of every way to place experts.
ONE_OF_EACH: dict[str, Model] = {
    "llama": make_model(rope_freqs=32),
    "value heads of another size": make_model(head_dim_v=32),
    "qwen3 tied": make_model("qwen3", tied_embedding=True),
    "qwen3moe": make_model("qwen3moe", experts=(8, 2, 64)),
    "gpt-oss": make_model("gpt-oss", n_layer=5, experts=(4, 1, 64), sliding_window=8, full_every=2),
    "llama4, chunks": make_model("llama4", n_layer=5, n_ff=0, experts=_EXPERTS, sliding_window=8, chunked=True, full_every=4),
    "deepseek2": make_model("deepseek2", n_head_kv=1, head_dim=128, latent=_LATENT, experts=_EXPERTS | {"n_layer_dense": 1}),
    "glm4moe drafting": make_model("glm4moe", n_layer_mtp=1, experts=_EXPERTS | {"n_layer_dense": 1}),
    "qwen35moe": make_model("qwen35moe", n_layer=4, n_ff=0, experts=_EXPERTS, recurrent=_RECURRENT, full_every=4),
    "nemotron": make_model("nemotron_h_moe", n_layer=5, n_ff=0, experts=_EXPERTS, recurrent=_RECURRENT, pattern="ME*EM"),
}
each_kind = pytest.mark.parametrize("model", ONE_OF_EACH.values(), ids=ONE_OF_EACH)


def stored(model_id: str, format_id: str) -> Variant:
    """A model of the registry in any format, published in it or not."""
    return variant(registry.load_model(model_id), registry.load_format(format_id))


def small(architecture: str = "llama", format_id: str = "F16", **shape: Any) -> Variant:
    """A model of ``make_model`` as it is stored."""
    return variant(make_model(architecture, **shape), registry.load_format(format_id))


ARCHITECTURES = ("llama", "llama4", "gemma3", "qwen3", "qwen3moe", "qwen35moe", "gpt-oss", "glm4moe", "deepseek2", "nemotron_h_moe")


@st.composite
def models(draw: st.DrawFn, architectures: tuple[str, ...] = ARCHITECTURES) -> Model:
    """Models of every architecture with few layers: rows that K-quants like, and rows they do not."""
    architecture = draw(st.sampled_from(architectures))
    n_head_kv = draw(st.integers(1, 4))
    width = st.integers(1, 24).map(lambda n: 32 * n)
    n_layer = draw(st.integers(1, 9))
    sizes: dict[str, Any] = {
        "n_layer": n_layer,
        "n_embd": draw(width),
        "n_head": n_head_kv * draw(st.integers(1, 4)),
        "n_head_kv": n_head_kv,
        "head_dim": draw(st.sampled_from([32, 64, 128])),
        "n_ff": draw(width),
        "n_vocab": draw(st.integers(64, 2000)),
        "n_ctx_train": draw(st.integers(64, 40_000)),
        "tied_embedding": draw(st.booleans()),
    }
    if architecture not in ("gemma3", "llama", "qwen3") or (architecture == "llama" and draw(st.booleans())):
        n_expert = draw(st.integers(2, 16))
        sizes["experts"] = {"n_expert": n_expert, "n_expert_used": draw(st.integers(1, n_expert)), "n_ff_expert": draw(width)}
    if architecture in ("deepseek2", "glm4moe", "llama4", "nemotron_h_moe", "qwen35moe"):
        sizes["experts"]["n_ff_shared"] = draw(width)
    if architecture in ("deepseek2", "glm4moe"):
        sizes["experts"]["n_layer_dense"] = draw(st.integers(0, n_layer - 1))
    if architecture == "nemotron_h_moe":
        sizes["experts"]["n_embd_latent"] = draw(st.none() | width)
        letters = draw(st.lists(st.sampled_from("ME*"), max_size=7))
        sizes["pattern"] = "".join(draw(st.permutations(["E", "*", *letters])))  # llama.cpp ends over a model without any attention
        sizes["n_layer"] = len(sizes["pattern"])
    if architecture in ("gemma3", "gpt-oss", "llama4", "qwen35moe"):
        sizes["full_every"] = draw(st.integers(1, n_layer))
    if architecture in ("gemma3", "gpt-oss", "llama4"):
        sizes |= {"sliding_window": draw(st.integers(1, 2000)), "chunked": architecture == "llama4"}
    if architecture in ("qwen35moe", "nemotron_h_moe"):
        rank, groups = draw(st.integers(2, 4)), draw(st.integers(1, 2))
        sizes["recurrent"] = {"conv_kernel": 4, "inner_size": 32 * rank * groups, "state_size": draw(st.sampled_from([16, 64, 128]))}
        sizes["recurrent"] |= {"time_step_rank": rank, "group_count": groups}
    if architecture == "deepseek2":  # all heads share one cached vector, which GGUF writes as one head
        rank = draw(width)
        sizes["latent"] = {"q_lora_rank": draw(width), "kv_lora_rank": rank, "n_rot": 32, "head_dim_nope": 32, "head_dim_v": 64}
        sizes |= {"n_head": draw(st.integers(2, 8)), "n_head_kv": 1, "head_dim": rank + 32}
    if architecture == "glm4moe":
        sizes["n_layer_mtp"] = draw(st.integers(0, 1))
    return make_model(architecture, **sizes)


def copy_of_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of ``data/`` without its records; ``NBUTILS_DATA`` points at it from now on."""
    monkeypatch.delenv("NBUTILS_DATA", raising=False)
    copy = tmp_path / "data"
    shutil.copytree(paths.project_dir() / "data", copy, ignore=shutil.ignore_patterns("records", "runs"))
    monkeypatch.setenv("NBUTILS_DATA", str(copy))
    return copy


# ── llama.cpp as an oracle ────────────────────────────────────────────────────────────────────────


def in_child(code: str, *arguments: str) -> Any:
    """Run Python that may abort, in a process of its own; return the JSON on the last line it printed."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


_QUANTISE = """
import ctypes, json, sys
import llama_cpp
log = []
@llama_cpp.llama_log_callback
def keep(level, text, data):
    log.append(text.decode(errors="replace"))
llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
llama_cpp.llama_backend_init()
names = [name for name, _ in llama_cpp.llama_model_quantize_params._fields_]
assert "dry_run" in names, "the binding has no dry_run: setting it would do nothing and write a file"
found = {}
for format_id in sys.argv[2:]:
    log.clear()
    params = llama_cpp.llama_model_quantize_default_params()
    params.dry_run, params.nthread = True, 1
    params.ftype = getattr(llama_cpp, "LLAMA_FTYPE_MOSTLY_" + format_id)
    status = llama_cpp.llama_model_quantize(sys.argv[1].encode(), (sys.argv[1] + ".never").encode(), ctypes.byref(params))
    found[format_id] = [status, "".join(log)]
print(json.dumps(found))
"""
_LINE = re.compile(r"^\[\s*\d+/\s*\d+\]\s+(\S+)\s+- \[.*?\], type =\s*(\w+), size =[^\n]*?(?:\((\w+)\))?$", re.MULTILINE)


def quantiser_plans(path: Path, format_ids: Sequence[str]) -> dict[str, tuple[dict[str, str], float]]:
    """What llama.cpp's own quantiser would make of an F16 file: by format, the type of each tensor, and the total in MiB as it prints it."""
    plans = {}
    for format_id, (status, log) in in_child(_QUANTISE, str(path), *format_ids).items():
        assert status == 0, log[-2000:]
        total = re.search(r"quant size\s+=\s+([\d.]+) MiB", log)
        assert total, log[-2000:]
        plans[format_id] = ({name: (after or before).upper() for name, before, after in _LINE.findall(log)}, float(total[1]))
    assert not path.with_name(path.name + ".never").exists()
    return plans
