"""llama.cpp as the authority on its own memory: asked in a child process, and its answers kept.

An answer is kept by everything it depends on: the header, the context, the cache type, the micro-batch, the number of sequences,
the build and the backend. Those for the registry on the CPU backend lie in ``data/buffers``, so that a page, or a machine
without llama.cpp, has them too.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbutils import engine, gguf_header, paths, registry
from nbutils.errors import UsageError
from nbutils.fit import (
    CONTEXT_PAD,
    N_UBATCH,
    ComputeBuffer,
    MemoryBudget,
    bound_compute,
    kv_cache_bytes,
    largest_context,
    output_buffer_bytes,
)
from nbutils.gguf_header import TENSOR_TYPES
from nbutils.limits import recurrent_state_bytes
from nbutils.specs import BufferAnswers
from nbutils.subjects import Subject, of_model
from nbutils.tensors import Variant, variant

__all__ = ["Answer", "Comparison", "ask", "can_ask", "check_backend", "compare", "compute_buffer", "keep_answers", "own_backend", "solve_context"]

Progress = Callable[[str], None]

#: Cells that may be asked about. llama.cpp keeps some 50 bytes of bookkeeping for each, even where it allocates nothing: this is 0.9 GB.
_MOST_CELLS = 2**24
#: Sequences that llama.cpp takes at once (``LLAMA_MAX_SEQ``).
_MOST_SEQUENCES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Buffers of one context in bytes, as exact as llama.cpp prints them: 0.01 MiB."""

    kv: int
    recurrent: int
    output: int
    compute: int


def ask(
    subject: Subject,
    contexts: Iterable[int],
    *,
    kv_type: str = "f16",
    batch_size: int = 1,
    backend: str = "cpu",
    n_ubatch: int = N_UBATCH,
    progress: Progress | None = None,
) -> dict[int, Answer]:
    """What llama.cpp would allocate for each context (padded to 256), from kept answers or by asking for all others at once.

    Contexts that llama.cpp refuses, and those too long to ask about, are left out. Raises ``MissingExtra`` without llama.cpp and
    ``EngineError`` where it cannot read the header.
    """
    wanted = sorted({n for n in (-(-n // CONTEXT_PAD) * CONTEXT_PAD for n in contexts) if n * batch_size <= _MOST_CELLS})
    store = _Store(subject, kv_type=kv_type, batch_size=batch_size, backend=backend, n_ubatch=n_ubatch)
    kept = store.read()
    if missing := [n for n in wanted if n not in kept]:
        asked = [{"n_ctx": n, "kv_type": kv_type, "n_ubatch": n_ubatch, "n_seq": batch_size} for n in missing]
        with subject.file() as path:
            found = engine.planned_buffers(path, asked, backend=backend, progress=progress)
        for n, answer in zip(missing, found["answers"], strict=True):
            if "refused" not in answer:
                kept[n] = Answer(**{k: answer[k] for k in ("kv", "recurrent", "output", "compute")})
        store.write(kept)
    return {n: kept[n] for n in wanted if n in kept}


def compute_buffer(
    subject: Subject,
    n_ctx: int,
    *,
    kv_type: str = "f16",
    batch_size: int = 1,
    backend: str = "cpu",
    n_ubatch: int = N_UBATCH,
    may_ask: bool = True,
    progress: Progress | None = None,
) -> ComputeBuffer:
    """The compute buffer at one context: what ``data`` keeps, else llama.cpp's answer, else the upper bound.

    Never fails for want of llama.cpp; a header that llama.cpp refuses is ``EngineError``.
    """
    bound = bound_compute(subject.variant, n_ctx, batch_size=batch_size, n_ubatch=n_ubatch)
    if subject.variant.engine != "llama.cpp":
        return bound
    if subject.model is not None and batch_size == 1 and backend == "cpu" and n_ubatch == N_UBATCH and _same_build(subject.model.id):
        kept = registry.kept_compute_buffer(subject.model.id, n_ctx, kv_type)
        if kept is not None:
            return ComputeBuffer(kept, "kept")
    if not (may_ask and engine.has_engine()):
        return bound
    answers = ask(subject, [n_ctx], kv_type=kv_type, batch_size=batch_size, backend=backend, n_ubatch=n_ubatch, progress=progress)
    return ComputeBuffer(next(iter(answers.values())).compute, "asked") if answers else bound


def _same_build(model_id: str) -> bool:
    """Whether the kept answers speak of the llama.cpp that is installed, or none is."""
    answers = registry.load_answers(model_id)
    return answers is not None and (not engine.has_engine() or answers.build == engine.build())


def solve_context(
    subject: Subject,
    budget_at: Callable[[int, ComputeBuffer | None], MemoryBudget],
    *,
    kv_type: str = "f16",
    batch_size: int = 1,
    backend: str = "cpu",
    may_ask: bool = True,
    progress: Progress | None = None,
) -> int | None:
    """The largest context that fits, a multiple of 256 or what the model was trained for; ``None`` when not even 256 tokens do.

    Bracketed without asking, because the compute buffer is at least nothing and at most its bound, then narrowed down by asking for
    sixteen contexts at a time. Without llama.cpp the lower end of the bracket is the answer, or a kept answer above it.
    """
    trained = subject.variant.shape.n_ctx_train

    def at(n: int, compute: ComputeBuffer | None) -> MemoryBudget:
        return budget_at(min(n, trained), compute)

    speaks_of_this = subject.model is not None and batch_size == 1 and backend == "cpu" and _same_build(subject.model.id)
    kept = registry.kept_compute_buffers(subject.model.id, kv_type) if subject.model and speaks_of_this else ()
    low = largest_context(trained, at, kept) or 0
    if not (may_ask and engine.has_engine()) or subject.variant.engine != "llama.cpp":
        return low or None
    high = largest_context(trained, lambda n, _: at(n, ComputeBuffer(0, "asked"))) or 0
    top = -(-high // CONTEXT_PAD) * CONTEXT_PAD
    while low < high:
        n_steps = (top - low) // CONTEXT_PAD
        step = max(1, -(-n_steps // 16)) * CONTEXT_PAD
        tried = sorted({*range(low + step, top, step), top} - {low})
        said = ask(subject, tried, kv_type=kv_type, batch_size=batch_size, backend=backend, progress=progress)
        good = [n for n in tried if n in said and at(n, ComputeBuffer(said[n].compute, "asked")).headroom_bytes >= 0]
        if good:
            low = min(max(good), high)
        top = min((n for n in tried if n > low), default=low)
        if top - low <= CONTEXT_PAD:
            break
    return low or None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One figure of ours beside llama.cpp's, in bytes."""

    model: str
    #: ``weights`` by file type; ``KV cache``, ``recurrent state``, ``output buffer`` and the kept ``compute buffer`` by cache type and context.
    what: str
    under: str
    n_ctx: int | None
    ours: int
    llama_cpp: int
    #: How far apart the two may be and still be one number, because llama.cpp prints hundredths of a MiB.
    printed_to: int = 0

    @property
    def differs_by(self) -> int:
        """What no rounding explains."""
        return max(0, abs(self.ours - self.llama_cpp) - self.printed_to)


#: Half of 0.01 MiB, and of the last digit of the single-precision number that is printed.
_PRINTED_TO = round(0.005 * 2**20) + 64
#: What a quantiser's dry run is asked for; experts in MXFP4 only where there are experts.
PROVEN_FORMATS, PROVEN_CACHES = ("Q8_0", "Q4_K_M"), ("f16", "q8_0")


def compare(model_id: str, *, contexts: tuple[int, ...] = (4096, 32768), progress: Progress | None = None) -> list[Comparison]:
    """Our arithmetic beside llama.cpp's own for one model: every file type, ``contexts`` and the longest it was trained for.

    Weights: the quantiser's dry run names each tensor's type, and ggml's table of block sizes makes bytes of it; F16 is the
    total that llama.cpp adds up itself. Caches and buffers: the simulated allocation. Raises ``MissingExtra`` without llama.cpp.
    """
    model = registry.load_model(model_id)
    say = progress or (lambda text: None)
    blocks = {name: (elements, n_bytes) for name, elements, n_bytes in TENSOR_TYPES.values()}
    formats = ("MXFP4_MOE",) if model.architecture == "gpt-oss" else (*PROVEN_FORMATS, "MXFP4_MOE") if model.shape.experts else PROVEN_FORMATS
    longest = model.shape.n_ctx_train
    wanted = sorted({*contexts, longest})
    found: list[Comparison] = []
    subject = of_model(model, registry.load_format("F16"))
    plain = subject.variant
    with subject.file() as path:
        asked = [{"n_ctx": n, "kv_type": kv, "n_ubatch": N_UBATCH, "n_seq": 1} for n in wanted for kv in PROVEN_CACHES]
        said = engine.planned_buffers(path, asked, progress=progress)
        found.append(Comparison(model=model_id, what="weights", under="F16", n_ctx=None, ours=plain.weight_bytes, llama_cpp=said["weight_bytes"]))
        for name in formats:
            say(f"asking the quantiser for {name}")
            dry = engine.quantised_types(path, name)
            theirs = 0
            for tensor, kind in dry["types"].items():
                elements, n_bytes = blocks[kind]
                theirs += math.prod(dry["shapes"][tensor]) // elements * n_bytes
            ours = variant(model, registry.load_format(name)).weight_bytes
            found.append(Comparison(model=model_id, what="weights", under=name, n_ctx=None, ours=ours, llama_cpp=theirs))
    for question, answer in zip(asked, said["answers"], strict=True):
        if "refused" not in answer:
            found += _compare_buffers(plain, question, answer)
    return found


def _compare_buffers(plain: Variant, question: dict[str, Any], answer: dict[str, Any]) -> list[Comparison]:
    n_ctx, kv_type = question["n_ctx"], question["kv_type"]
    cache = registry.load_cache_type("llama.cpp", kv_type)
    n_lines = {kind: sum(c["kind"] == kind for c in answer["caches"]) for kind in ("kv", "recurrent")}
    figures = [
        ("KV cache", kv_cache_bytes(plain, n_ctx, cache), answer["kv"], n_lines["kv"]),
        ("recurrent state", recurrent_state_bytes(plain.shape), answer["recurrent"], n_lines["recurrent"]),
        ("output buffer", output_buffer_bytes(plain.shape), answer["output"], 1),
    ]
    kept = registry.kept_compute_buffer(plain.name, n_ctx, kv_type)
    if kept is not None:  # not our arithmetic, but what our pages show: is it still what llama.cpp says?
        figures.append(("compute buffer", kept, answer["compute"], 0))
    return [
        Comparison(model=plain.name, what=what, under=kv_type, n_ctx=n_ctx, ours=ours, llama_cpp=theirs, printed_to=n * _PRINTED_TO)
        for what, ours, theirs, n in figures
        if ours or theirs
    ]


#: Contexts whose answers ``data/buffers`` keeps, as far as a model was trained: powers of two, and the longest.
_KEPT_CONTEXTS = tuple(2**k for k in range(10, 24))


def keep_answers(subject: Subject, progress: Progress | None = None) -> BufferAnswers:
    """Ask for everything that ``data/buffers`` keeps of one registry model, on the CPU backend."""
    model = subject.model
    if model is None:
        raise UsageError(f"{subject.variant.name} is a file; answers are kept for models of the registry")
    trained = model.shape.n_ctx_train
    contexts = sorted({n for n in _KEPT_CONTEXTS if n < trained} | {trained})
    found = {}
    for kv_type in registry.CACHE_TYPES["llama.cpp"]:
        answers = ask(subject, contexts, kv_type=kv_type, progress=progress)
        found[kv_type] = tuple((n, answer.compute) for n, answer in answers.items())
    return BufferAnswers(
        id=model.id, build=engine.build(), backend="cpu", n_ubatch=N_UBATCH, header_sha256=hollow_digest(subject), compute_bytes=found
    )


def hollow_digest(subject: Subject) -> str:
    """SHA-256 of the header that llama.cpp is asked about."""
    with subject.file() as path:
        return gguf_header.read_file(path).sha256


class _Store:
    """Kept answers of one header under one setting: a small file in the cache folder, written by rename."""

    def __init__(self, subject: Subject, **settings: Any) -> None:
        build = engine.build() if engine.has_engine() else ""
        key = json.dumps([subject.digest, build, settings], sort_keys=True)
        self._path = Path(paths.cache_dir()) / "allocations" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"

    def read(self) -> dict[int, Answer]:
        try:
            return {int(n): Answer(**fields) for n, fields in json.loads(self._path.read_text(encoding="utf-8")).items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def write(self, answers: dict[int, Answer]) -> None:
        fields = {str(n): {"kv": a.kv, "recurrent": a.recurrent, "output": a.output, "compute": a.compute} for n, a in sorted(answers.items())}
        try:
            paths.write_text(self._path, json.dumps(fields) + "\n")
        except OSError:
            pass  # a cache that cannot be written only costs time


def can_ask(n_ctx: int = 0, batch_size: int = 1) -> bool:
    """Whether llama.cpp is installed here and answers for so many sequences, each one step longer than ``n_ctx``."""
    return engine.has_engine() and batch_size <= _MOST_SEQUENCES and (n_ctx + CONTEXT_PAD) * batch_size <= _MOST_CELLS


def own_backend() -> str:
    """The backend of the llama.cpp that is installed; ``cpu`` where none is."""
    return engine.backend_name() if engine.has_engine() else "cpu"


def check_backend(wanted: str) -> None:
    """``UsageError`` unless llama.cpp here has the backend."""
    if wanted in ("", "cpu"):
        return
    if not engine.has_engine():
        raise UsageError(f"backend {wanted!r} can be asked only where llama-cpp-python is installed; leave --backend out for the answers of the CPU")
    has = engine.backend_name()
    if has != wanted:
        known = "cpu" if has == "cpu" else f"cpu and {has}"
        raise UsageError(f"llama.cpp here has no backend {wanted!r}, it has {known}; README says how to build others")
