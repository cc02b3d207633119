"""What several test modules share: a plausible record, small models, a copy of the registry, llama.cpp as an oracle."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st

from nbutils import paths
from nbutils.specs import (
    Backend,
    Experts,
    FileFacts,
    Machine,
    Model,
    Point,
    Record,
    Settings,
    Shape,
    Source,
    Suite,
    SuitePoint,
    TensorGroup,
    Yardstick,
)
from nbutils.tensors import tensors

# No database of past failures, and the same examples every time: a red run can be run again.
settings.register_profile("nbutils", deadline=None, database=None, derandomize=True, max_examples=60)
settings.load_profile("nbutils")

MIB = 2**20


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


@st.composite
def models(draw: st.DrawFn) -> Model:
    """Models of every architecture with few layers: rows that K-quants like, and rows they do not."""
    architecture = draw(st.sampled_from(["llama", "qwen3", "qwen3moe", "gpt-oss"]))
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
    if architecture in ("qwen3moe", "gpt-oss"):
        n_expert = draw(st.integers(1, 16))
        sizes["experts"] = (n_expert, draw(st.integers(1, n_expert)), draw(width))
    if architecture == "gpt-oss":
        sizes |= {"sliding_window": draw(st.integers(1, 2000)), "full_every": draw(st.integers(1, n_layer))}
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
params = llama_cpp.llama_model_quantize_default_params()
params.dry_run, params.nthread, params.ftype = True, 1, getattr(llama_cpp, "LLAMA_FTYPE_MOSTLY_" + sys.argv[2])
status = llama_cpp.llama_model_quantize(sys.argv[1].encode(), (sys.argv[1] + ".never").encode(), ctypes.byref(params))
print(json.dumps([status, "".join(log)]))
"""
_LINE = re.compile(r"^\[\s*\d+/\s*\d+\]\s+(\S+)\s+- \[.*?\], type =\s*(\w+), size =[^\n]*?(?:\((\w+)\))?$", re.MULTILINE)


def quantiser_plan(path: Path, format_id: str) -> tuple[dict[str, str], float]:
    """What llama.cpp's own quantiser would make of an F16 file: the type of each tensor, and the total in MiB as it prints it."""
    status, log = in_child(_QUANTISE, str(path), format_id)
    assert status == 0, log[-2000:]
    assert not path.with_name(path.name + ".never").exists()
    total = re.search(r"quant size\s+=\s+([\d.]+) MiB", log)
    assert total, log[-2000:]
    return {name: (after or before).upper() for name, before, after in _LINE.findall(log)}, float(total[1])


def header_only_file(model: Model, path: Path) -> Path:
    """An F16 GGUF file of ``model`` whose tensor data is a hole: some kB on disk, whatever the size."""
    import gguf
    import numpy as np

    s, arch = model.shape, model.architecture
    writer = gguf.GGUFWriter(path, arch)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_block_count(s.n_layer)
    writer.add_context_length(s.n_ctx_train)
    writer.add_embedding_length(s.n_embd)
    writer.add_feed_forward_length(s.n_ff or 1)
    writer.add_head_count(s.n_head)
    writer.add_head_count_kv(s.n_head_kv)
    writer.add_key_length(s.head_dim)
    writer.add_value_length(s.head_dim)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_rope_dimension_count(s.head_dim)
    writer.add_vocab_size(s.n_vocab)
    if s.experts:
        writer.add_expert_count(s.experts.n_expert)
        writer.add_expert_used_count(s.experts.n_expert_used)
        writer.add_expert_feed_forward_length(s.experts.n_ff_expert)
    if s.sliding_window:
        writer.add_sliding_window(s.sliding_window)
    writer.add_tokenizer_model("no_vocab")
    end = 0
    for tensor in tensors(model):
        kind = gguf.GGMLQuantizationType.F16 if tensor.is_matrix else gguf.GGMLQuantizationType.F32
        n_bytes = tensor.n_elements * (2 if tensor.is_matrix else 4)
        writer.add_tensor_info(tensor.name, tuple(reversed(tensor.shape)), np.dtype(np.float32), n_bytes, raw_dtype=kind)
        end += -(-n_bytes // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        file.truncate(-(-path.stat().st_size // 32) * 32 + end)
    return path
