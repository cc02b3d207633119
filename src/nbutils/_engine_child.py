"""The child process that may die: everything that hands a user's file to llama.cpp runs here.

One request as JSON on standard input; events as JSON lines on standard output: ``progress``, then ``result`` or
``error``. llama.cpp's own words go to standard error, where the parent finds them when there is no last event.
``engine`` is the other side.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from nbutils import _allocations
from nbutils._bench import Bench, rounded
from nbutils._ggml import TYPES, Ggml, Product, commit
from nbutils.errors import EngineError
from nbutils.fit import CONTEXT_PAD

Event = Callable[..., None]

#: Arrays of a yardstick: far larger than any cache on the market, small enough for an 8 GB laptop.
YARDSTICK_BYTES = 512 * 2**20
_KEYS_OF_PARTIAL_CACHES = ("attention.sliding_window", "attention.kv_lora_rank", "ssm.state_size", "ssm.conv_kernel")


def main() -> int:
    """Serve one request; the exit code is 0 when an answer, good or bad, was sent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal asks everybody; the parent decides, and ends us
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # whatever a C library prints to stdout must not mix with the answers

    def emit(event: str, **fields: Any) -> None:
        _send(answers, event, fields)

    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    operations: dict[str, Callable[..., Any]] = {
        "describe": _describe,
        "inspect": _inspect,
        "probe": _probe,
        "reading": _reading,
        "measure": _measure,
        "sustain": _sustain,
        "tune": _tune,
        "buffers": _allocations.buffers,
        "quantised": _allocations.quantised,
    }
    try:
        emit("result", value=operations[request.pop("op")](emit, **request))
    except EngineError as error:
        emit("error", message=str(error))
    except (MemoryError, OSError, RuntimeError, ValueError) as error:
        emit("error", message=f"{type(error).__name__}: {error}")
    return 0


def _end_with_parent() -> None:
    """The parent keeps our input open; when it ends, whatever ended it, so do we."""
    while sys.stdin.read(1):
        pass
    os._exit(1)


def _send(answers: TextIO, event: str, fields: dict[str, Any]) -> None:
    answers.write(json.dumps({"event": event, **fields}) + "\n")
    answers.flush()


# ── what llama.cpp is and sees ────────────────────────────────────────────────────────────────────


def _describe(emit: Event) -> dict[str, Any]:
    """The build's system information, and the device it would use."""
    llama_cpp, _ = _llama()
    ggml = Ggml(use_gpu=True, n_threads=1)
    try:
        return {
            "binding": f"llama-cpp-python {llama_cpp.__version__}",
            "system_info": llama_cpp.llama_print_system_info().decode().strip(),
            "commit": commit(),
            "gpu_offload": bool(llama_cpp.llama_supports_gpu_offload()),
            "device": ggml.describe(),
        }
    finally:
        ggml.close()


def _llama() -> tuple[Any, _allocations.Log]:
    """llama_cpp, with its log kept; warnings and errors go to standard error too, where the parent finds them."""
    import llama_cpp

    log = _allocations.Log(llama_cpp, complain_to=sys.stderr)
    llama_cpp.llama_backend_init()
    return llama_cpp, log


# ── what a file says ──────────────────────────────────────────────────────────────────────────────


def _inspect(emit: Event, path: str) -> dict[str, Any]:
    """Facts of a GGUF file from its header. Raises ``EngineError`` saying what is wrong with the file."""
    import gguf

    from nbutils.tensors import Tensor

    file = Path(path)
    _check_magic(file)
    try:
        reader = gguf.GGUFReader(file)
    except Exception as error:
        raise EngineError(
            f"{file.name}: damaged or cut short: its header promises more than the file's {file.stat().st_size:,} bytes hold"
            f" ({type(error).__name__}); fetch it again"
        ) from None
    groups: dict[str, list[int]] = {}
    stored: list[tuple[str, str, int]] = []
    of_matrices: set[str] = set()
    for tensor in reader.tensors:
        known = Tensor(name=tensor.name, shape=tuple(int(n) for n in tensor.shape))
        role, kind = known.role, tensor.tensor_type.name
        of_matrices |= {kind} if known.is_matrix else set()
        group = groups.setdefault(role, [0, 0])
        group[0] += int(tensor.n_bytes)
        group[1] += int(tensor.n_elements)
        stored.append((role, kind, int(tensor.n_bytes)))
    if not groups:
        raise EngineError(f"{file.name}: holds no tensors (a vocabulary, or one part of several); name the file with the weights")
    if "general.architecture" not in reader.fields:
        raise EngineError(f"{file.name}: names no architecture; not a language model")
    arch = str(reader.fields["general.architecture"].contents())

    def number(key: str, default: int = 0) -> Any:
        found = reader.fields.get(f"{arch}.{key}")
        return default if found is None else found.contents()

    with file.open("rb") as stream:
        header = stream.read(int(reader.data_offset))
    common = max(reader.tensors, key=lambda t: t.n_elements).tensor_type.name
    return {
        "architecture": arch,
        # One type for all matrices says more than a recipe: MXFP4_MOE without a mixture, a K type made with --pure.
        "gguf_type": _file_type(reader, common) if len(of_matrices) > 1 else common,
        "n_parameters": sum(n for _, n in groups.values()),
        "file_bytes": file.stat().st_size,
        "n_layer": int(number("block_count")),
        "n_ctx_train": int(number("context_length")),
        "n_expert": int(number("expert_count")),
        "n_expert_used": int(number("expert_used_count")),
        "kv_bytes_per_token": _kv_bytes(number, arch, reader.fields),
        "tensors": [{"role": role, "n_bytes": b, "n_elements": n} for role, (b, n) in sorted(groups.items())],
        "type_bytes_read": _type_bytes_read(stored, int(number("expert_count")), int(number("expert_used_count"))),
        "header_sha256": hashlib.sha256(header).hexdigest(),
    }


def _type_bytes_read(stored: list[tuple[str, str, int]], n_expert: int, n_expert_used: int) -> dict[str, int]:
    """Bytes one token reads, by tensor type."""
    from nbutils.tensors import bytes_read_per_token

    # Whether the embedding is the head is a matter of all types together.
    has_head = any(role == "output" for role, _, _ in stored)
    kept = [(role, kind, n) for role, kind, n in stored if role != "embedding" or not has_head]
    by_type = {kind: [(role, n) for role, k, n in kept if k == kind] for _, kind, _ in kept}
    return {kind: bytes_read_per_token(groups, n_expert, n_expert_used) for kind, groups in by_type.items()}


def _check_magic(file: Path) -> None:
    size = file.stat().st_size
    if size == 0:
        raise EngineError(f"{file.name}: is empty; fetch it again")
    with file.open("rb") as stream:
        magic = stream.read(4)
    if magic != b"GGUF":
        raise EngineError(f"{file.name}: is not a GGUF file (starts with {magic!r}, not b'GGUF'); convert it, or name another file")
    if size < 32:
        raise EngineError(f"{file.name}: ends inside its header ({size} bytes); fetch it again")


def _file_type(reader: Any, common: str) -> str:
    import gguf

    field = reader.fields.get("general.file_type")
    try:
        return gguf.LlamaFileType(int(field.contents())).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    except (AttributeError, ValueError):
        return common


def _kv_bytes(number: Callable[..., Any], arch: str, fields: Any) -> int | None:
    if any(f"{arch}.{key}" in fields for key in _KEYS_OF_PARTIAL_CACHES):
        return None
    n_layer, n_head = number("block_count"), number("attention.head_count")
    n_head_kv = number("attention.head_count_kv", n_head)
    if not isinstance(n_head, int) or not n_head:
        return None
    head_dim = number("embedding_length") // n_head
    per_head = number("attention.key_length", head_dim) + number("attention.value_length", head_dim)
    heads = sum(n_head_kv) if isinstance(n_head_kv, list) else n_layer * n_head_kv
    return int(heads * per_head * 2) or None


# ── how fast the machine is ───────────────────────────────────────────────────────────────────────


def _probe(emit: Event, seconds: float, n_threads: int, use_gpu: bool) -> dict[str, Any]:
    """Yardsticks of reading and copying, and ggml's rates for the three types the stand-ins come in."""
    rulers = _Rulers(emit, n_threads=n_threads, use_gpu=use_gpu)
    yardsticks = rulers.yardsticks("probe", seconds, copy=True)
    kernels = [k for tensor_type in ("F16", "Q8_0", "Q4_K") for k in rulers.kernels("probe", tensor_type, seconds, placements=("cache", "memory"))]
    return {"yardsticks": yardsticks, "kernels": kernels, "matrix": rulers.matrix_rates("probe", ("F32", "F16", "Q8_0", "Q4_K"), seconds)}


def _reading(emit: Event, seconds: float, n_threads: int) -> dict[str, Any]:
    """Read bandwidth alone, where this build would keep weights."""
    return {"yardsticks": _Rulers(emit, n_threads=n_threads, use_gpu=True).yardsticks("probe", seconds)}


class _Rulers:
    """What a machine's bandwidth and arithmetic are measured with, at one number of threads on one backend."""

    def __init__(self, emit: Event, *, n_threads: int, use_gpu: bool) -> None:
        self._emit, self._n_threads, self._use_gpu = emit, n_threads, use_gpu

    def yardsticks(self, when: str, seconds: float, *, copy: bool = False) -> list[dict[str, Any]]:
        """Bandwidth two ways: ggml's own matrix-vector product, and a plain program (numpy)."""
        self._emit("progress", stage=f"bandwidth {when}: ggml product")
        n_columns = 4096
        with self._ggml() as ggml:
            n_bytes, samples = ggml.time_product("F16", Product(YARDSTICK_BYTES // 2 // n_columns, n_columns), seconds=seconds)
            where = "gpu" if ggml.is_gpu else "cpu"
        found = [self._entry(n_bytes, samples, when=when, method="ggml F16 matrix-vector product", kind="read", where=where)]
        self._emit("progress", stage=f"bandwidth {when}: numpy")
        with ThreadPoolExecutor(self._n_threads) as pool:
            arrays = [np.full(YARDSTICK_BYTES // 8 // self._n_threads, 1.0) for _ in range(self._n_threads)]
            n_bytes = sum(a.nbytes for a in arrays)

            def add(method: str, kind: str, factor: int, call: Callable[[], Any]) -> None:
                samples = _sample(call, seconds)
                found.append(self._entry(factor * n_bytes, samples, when=when, method=method, kind=kind, where="cpu"))

            add("numpy maximum over an array per thread", "read", 1, lambda: list(pool.map(np.max, arrays)))
            if copy:
                targets = [np.empty_like(a) for a in arrays]
                pairs = [(t.ctypes.data, a.ctypes.data, a.nbytes) for t, a in zip(targets, arrays, strict=True)]
                add("numpy copy, bytes read plus bytes written", "copy", 2, lambda: list(pool.map(np.copyto, targets, arrays)))
                add("C memmove, bytes read plus bytes written", "copy", 2, lambda: list(pool.map(lambda p: ctypes.memmove(*p), pairs)))
        return found

    def kernels(self, when: str, tensor_type: str, seconds: float, *, placements: tuple[str, ...] = ("cache",)) -> list[dict[str, Any]]:
        """The matrix-vector product of one type, with weights in cache and far outside it; nothing for a type ggml is not asked for."""
        if tensor_type not in TYPES:
            return []
        found = []
        with self._ggml() as ggml:
            # 2 MiB of weights stay in the caches of two cores; a GPU has larger ones and needs more to keep busy.
            in_cache = Product(4096, 4096, n_products=20) if ggml.is_gpu else Product(1024, 1024 if tensor_type == "F16" else 2048, n_products=50)
            for placement in placements:
                product = in_cache if placement == "cache" else Product(65536, 4096)
                self._emit("progress", stage=f"{tensor_type} product, weights in {placement}")
                found.append(self._kernel(ggml, product, seconds, when=when, tensor_type=tensor_type, placement=placement))
        return found

    def matrix_rates(self, when: str, types: Iterable[str], seconds: float) -> list[dict[str, Any]]:
        """Large matrix products, as prefill does them."""
        found = []
        with self._ggml() as ggml:
            n = 8192 if ggml.is_gpu else 2048
            for tensor_type in (kind for kind in types if kind in TYPES):
                self._emit("progress", stage=f"matrix rate: {tensor_type}")
                product = Product(n, n, n_batch=512)
                found.append(self._kernel(ggml, product, seconds, when=when, tensor_type=tensor_type, placement="memory"))
        return found

    @contextmanager
    def _ggml(self) -> Iterator[Ggml]:
        ggml = Ggml(use_gpu=self._use_gpu, n_threads=self._n_threads)
        try:
            yield ggml
        finally:
            ggml.close()

    def _kernel(self, ggml: Ggml, product: Product, seconds: float, **fields: str) -> dict[str, Any]:
        n_bytes, samples = ggml.time_product(fields["tensor_type"], product, seconds=seconds)
        # A graph goes through the same weights n_products times, so its FLOP count as that many batches of rows.
        sizes = {"n_rows": product.n_rows * product.n_products, "n_columns": product.n_columns, "n_batch": product.n_batch}
        return self._entry(n_bytes, samples, **fields, **sizes)

    def _entry(self, n_bytes: int, samples: list[float], **fields: Any) -> dict[str, Any]:
        return {**fields, "n_threads": self._n_threads, "n_bytes": n_bytes, "samples_s": rounded(samples)}


def _sample(call: Callable[[], Any], seconds: float) -> list[float]:
    """Time a call for ``seconds``, at least five times; the first call is warm-up."""
    call()
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while len(samples) < 5 or (time.perf_counter() < end and len(samples) < 400):
        start = time.perf_counter()
        call()
        samples.append(time.perf_counter() - start)
    return samples


# ── how fast a model is ───────────────────────────────────────────────────────────────────────────


def _measure(
    emit: Event,
    *,
    path: str,
    points: list[dict[str, Any]],
    repetitions: int,
    yardstick_s: float,
    settings: dict[str, Any],
    n_sample: int,
    zero_s: float,
) -> dict[str, Any]:
    """llama-bench's protocol on one file: per point warm up, then repeat with a cleared memory, every sample kept.

    Yardsticks of ``yardstick_s`` seconds before, between and after; none at all if that is 0.
    """
    facts = _inspect(emit, path)
    rulers = _Rulers(emit, n_threads=settings["n_threads"], use_gpu=settings["n_gpu_layers"] != 0)
    # A type that makes up a tenth of what a token reads has a say in its time.
    total = sum(facts["type_bytes_read"].values())
    types = [kind for kind, n in facts["type_bytes_read"].items() if n >= total / 10]
    yardsticks: list[dict[str, Any]] = []
    kernels: list[dict[str, Any]] = []

    def rule(when: str) -> None:
        if yardstick_s:
            yardsticks.extend(rulers.yardsticks(when, yardstick_s))
            if when != "between":
                kernels.extend(k for kind in types for k in rulers.kernels(when, kind, yardstick_s / 2))
            if when == "before":
                kernels.extend(rulers.matrix_rates(when, types, yardstick_s / 2))

    longest = max(range(len(points)), key=lambda i: points[i].get("n_seq", 1) * -(-(points[i]["n_tokens"] + points[i]["depth"]) // CONTEXT_PAD))
    with _loaded(emit, path, settings, zero_s) as bench:
        # The rulers run beside the loaded model, so that both see the same machine.
        rule("before")
        measured = []
        for position, point in enumerate(points):
            watch = position == longest
            measured.append(bench.point(emit, repetitions=repetitions, count_experts=facts["n_expert"] > 0, watch=watch, **point))
            rule("between" if position + 1 < len(points) else "after")
        return {
            "facts": facts | {"description": bench.description()},
            "points": measured,
            "yardsticks": yardsticks,
            "kernels": kernels,
            "sample_text": bench.sample(n_sample) if n_sample else "",
            "memory": bench.memory(),
            "flash_attn_used": bench.flash_attn_used,
        }


def _sustain(emit: Event, *, path: str, seconds: float, block_tokens: int, depth: int, settings: dict[str, Any], zero_s: float) -> dict[str, Any]:
    """Decode for ``seconds`` on end, block after block."""
    facts = _inspect(emit, path)
    with _loaded(emit, path, settings, zero_s) as bench:
        found = bench.sustain(emit, seconds=seconds, block_tokens=block_tokens, depth=depth)
        return {"facts": facts | {"description": bench.description()}, "flash_attn_used": bench.flash_attn_used, **found}


def _tune(emit: Event, *, path: str, tried: list[int], rounds: int, n_decode: int, n_prefill: int, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Decode and prefill with each number of threads."""
    _inspect(emit, path)
    with _loaded(emit, path, settings, 0.0) as bench:
        return bench.tune(emit, tried=tried, rounds=rounds, n_decode=n_decode, n_prefill=n_prefill)


@contextmanager
def _loaded(emit: Event, path: str, settings: dict[str, Any], zero_s: float) -> Iterator[Bench]:
    llama_cpp, log = _llama()
    bench = Bench(path, settings, zero_s=zero_s, log=log, llama=llama_cpp)
    try:
        emit("progress", stage="loading")
        bench.load()
        yield bench
    finally:
        bench.close()


if __name__ == "__main__":
    raise SystemExit(main())
