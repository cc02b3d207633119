"""The child process that may die: everything that hands a user's file to llama.cpp runs here.

One request as JSON on standard input; events as JSON lines on standard output: ``progress``, then ``result`` or
``error``. llama.cpp's own words go to standard error, where the parent finds them when there is no last event.
``engine`` is the other side.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from nbutils import _allocations
from nbutils._ggml import TYPES, Ggml, Product
from nbutils.errors import EngineError

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
    llama_cpp = _llama()
    ggml = Ggml(use_gpu=True, n_threads=1)
    try:
        return {
            "binding": f"llama-cpp-python {llama_cpp.__version__}",
            "system_info": llama_cpp.llama_print_system_info().decode().strip(),
            "gpu_offload": bool(llama_cpp.llama_supports_gpu_offload()),
            "device": ggml.describe(),
        }
    finally:
        ggml.close()


def _llama() -> Any:
    """Import llama_cpp with its log sent to standard error, warnings and errors only."""
    import llama_cpp

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def log(level: int, text: bytes, _: ctypes.c_void_p) -> None:
        if level >= 3:
            sys.stderr.write(text.decode(errors="replace"))
            sys.stderr.flush()

    _llama.keep = log  # type: ignore[attr-defined]  # ctypes does not keep a callback alive
    llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return llama_cpp


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
    for tensor in reader.tensors:
        role = Tensor(name=tensor.name, shape=tuple(int(n) for n in tensor.shape)).role
        group = groups.setdefault(role, [0, 0])
        group[0] += int(tensor.n_bytes)
        group[1] += int(tensor.n_elements)
        stored.append((role, tensor.tensor_type.name, int(tensor.n_bytes)))
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
        "gguf_type": _file_type(reader, common),
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
    return {"yardsticks": yardsticks, "kernels": kernels, "matrix": rulers.matrix_rates(seconds)}


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

    def matrix_rates(self, seconds: float) -> list[dict[str, Any]]:
        """Large matrix products, as prefill does them."""
        found = []
        with self._ggml() as ggml:
            n = 8192 if ggml.is_gpu else 2048
            for tensor_type in ("F32", "F16", "Q8_0", "Q4_K"):
                self._emit("progress", stage=f"matrix rate: {tensor_type}")
                product = Product(n, n, n_batch=512)
                found.append(self._kernel(ggml, product, seconds, when="probe", tensor_type=tensor_type, placement="memory"))
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
        return {**fields, "n_threads": self._n_threads, "n_bytes": n_bytes, "samples_s": _rounded(samples)}


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


def _rounded(samples: list[float]) -> list[float]:
    """Microseconds and a tenth: finer than any clock here is true, and short in a file."""
    return [round(s, 7) for s in samples]


# ── how fast a model is ───────────────────────────────────────────────────────────────────────────


def _measure(
    emit: Event, *, path: str, points: list[dict[str, Any]], repetitions: int, yardstick_s: float, settings: dict[str, Any], n_sample: int
) -> dict[str, Any]:
    """llama-bench's protocol on one file: per point warm up, then repeat with a cleared memory, every sample kept."""
    facts = _inspect(emit, path)
    rulers = _Rulers(emit, n_threads=settings["n_threads"], use_gpu=settings["n_gpu_layers"] != 0)
    bench = _Bench(_llama(), path, settings)
    try:
        emit("progress", stage="loading")
        bench.load()
        # The rulers run beside the loaded model, so that both see the same machine.
        yardsticks = rulers.yardsticks("before", yardstick_s)
        # A type that makes up a tenth of what a token reads has a say in its time.
        total = sum(facts["type_bytes_read"].values())
        types = [kind for kind, n in facts["type_bytes_read"].items() if n >= total / 10]
        kernels = [k for kind in types for k in rulers.kernels("before", kind, yardstick_s / 2)]
        measured = []
        for position, point in enumerate(points):
            measured.append(bench.point(emit, repetitions=repetitions, **point))
            yardsticks += rulers.yardsticks("between" if position + 1 < len(points) else "after", yardstick_s)
        kernels += [k for kind in types for k in rulers.kernels("after", kind, yardstick_s / 2)]
        text = bench.sample(n_sample) if n_sample else ""
    finally:
        bench.close()
    return {"facts": facts, "points": measured, "yardsticks": yardsticks, "kernels": kernels, "sample_text": text}


class _Bench:
    """One loaded model, and contexts on it."""

    def __init__(self, llama_cpp: Any, path: str, settings: dict[str, Any]) -> None:
        self._llama, self._path, self._settings = llama_cpp, path, settings
        self._model: Any = None
        # Tokens are drawn, not read: speed does not depend on them, except through an MoE's router.
        self._random = random.Random(settings["seed"])

    def load(self) -> None:
        parameters = self._llama.llama_model_default_params()
        parameters.n_gpu_layers = self._settings["n_gpu_layers"]
        self._model = self._llama.llama_model_load_from_file(os.fsencode(self._path), parameters)
        if not self._model:
            raise EngineError(f"{Path(self._path).name}: llama.cpp refused it")
        self._vocab = self._llama.llama_model_get_vocab(self._model)
        self._n_vocab = self._llama.llama_vocab_n_tokens(self._vocab)

    def close(self) -> None:
        if self._model:
            self._llama.llama_model_free(self._model)
            self._model = None

    def point(self, emit: Event, *, kind: str, n_tokens: int, depth: int, repetitions: int) -> dict[str, Any]:
        label = f"{'pp' if kind == 'prefill' else 'tg'}{n_tokens}" + (f" at depth {depth}" if depth else "")
        context = self._context(n_tokens + depth)
        try:
            run = self._prefill if kind == "prefill" else self._decode
            emit("progress", stage=f"{label}: warm-up")
            warmup_s = sum(run(context, n_tokens if kind == "prefill" else 1))
            samples = []
            for repetition in range(repetitions):
                emit("progress", stage=f"{label}: {repetition + 1} of {repetitions}")
                self._llama.llama_memory_clear(self._llama.llama_get_memory(context), False)
                if depth:
                    self._prefill(context, depth)
                gc.collect()
                samples.append(_rounded(run(context, n_tokens)))
        finally:
            self._llama.llama_free(context)
        return {"kind": kind, "n_tokens": n_tokens, "depth": depth, "warmup_s": round(warmup_s, 7), "repetitions_s": samples}

    def sample(self, n_tokens: int) -> str:
        """Text of ``n_tokens`` tokens drawn at temperature 1 after one random token: what the model has to say."""
        context = self._context(n_tokens + 1)
        draw = np.random.default_rng(self._settings["seed"])
        piece = ctypes.create_string_buffer(256)
        token, text = self._random.randrange(self._n_vocab), b""
        try:
            for _ in range(n_tokens):
                self._advance(context, (self._llama.llama_token * 1)(token))
                logits = np.ctypeslib.as_array(self._llama.llama_get_logits_ith(context, -1), (self._n_vocab,)).astype(np.float64)
                weights = np.exp(logits - logits.max())
                token = int(draw.choice(self._n_vocab, p=weights / weights.sum()))
                length = self._llama.llama_token_to_piece(self._vocab, token, piece, len(piece), 0, False)
                text += piece.raw[: max(0, length)]
        finally:
            self._llama.llama_free(context)
        return "".join(c if c.isprintable() else " " for c in text.decode(errors="replace")).strip()

    def _context(self, n_ctx: int) -> Any:
        llama, settings = self._llama, self._settings
        parameters = llama.llama_context_default_params()
        parameters.n_ctx = n_ctx
        parameters.n_batch = settings["n_batch"]
        parameters.n_ubatch = settings["n_ubatch"]
        parameters.n_threads = parameters.n_threads_batch = settings["n_threads"]
        parameters.flash_attn_type = {"auto": -1, "off": 0, "on": 1}[settings["flash_attn"]]
        parameters.type_k = parameters.type_v = TYPES["F16"]
        parameters.swa_full = False  # as llama.cpp's own tools; the library's default keeps whole windows
        context = llama.llama_init_from_model(self._model, parameters)
        if not context:
            raise EngineError(f"{Path(self._path).name}: llama.cpp could not make a context of {n_ctx} tokens (out of memory?)")
        return context

    def _prefill(self, context: Any, n_tokens: int) -> list[float]:
        """Read ``n_tokens`` in batches of ``n_batch``; one time for all."""
        n_batch = self._settings["n_batch"]
        tokens = [self._random.randrange(self._n_vocab) for _ in range(n_tokens)]
        batches = [(self._llama.llama_token * len(part))(*part) for part in (tokens[i : i + n_batch] for i in range(0, n_tokens, n_batch))]
        start = time.perf_counter()
        for batch in batches:
            self._advance(context, batch)
        self._llama.llama_synchronize(context)
        return [time.perf_counter() - start]

    def _decode(self, context: Any, n_tokens: int) -> list[float]:
        """Produce ``n_tokens``, one at a time; one time for each. The clock is read after synchronising."""
        times = []
        last = time.perf_counter()
        for _ in range(n_tokens):
            self._advance(context, (self._llama.llama_token * 1)(self._random.randrange(self._n_vocab)))
            self._llama.llama_synchronize(context)
            now = time.perf_counter()
            times.append(now - last)
            last = now
        return times

    def _advance(self, context: Any, tokens: Any) -> None:
        status = self._llama.llama_decode(context, self._llama.llama_batch_get_one(tokens, len(tokens)))
        if status != 0:
            raise EngineError(f"llama_decode returned {status}")


if __name__ == "__main__":
    raise SystemExit(main())
