"""In the child: one loaded model and contexts on it, timed by llama-bench's protocol.

Per point: warm up, then repeat with a cleared memory, the clock read after llama.cpp says that it has finished. What is
timed is llama.cpp alone: tokens are drawn and batches made before the clock starts.
"""

from __future__ import annotations

import ctypes
import gc
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from nbutils._allocations import Log, own_buffers
from nbutils._ggml import TYPES, kept_threads, tensor_values
from nbutils.errors import EngineError
from nbutils.fit import CONTEXT_PAD

__all__ = ["Bench", "rounded"]

Emit = Callable[..., None]

#: Steps whose experts are counted, outside every timing; with many layers fewer, so that a record stays small.
_COUNTED_STEPS, _MAX_COUNTS = 8, 2048


def rounded(samples: list[float]) -> list[float]:
    """Microseconds and a tenth: finer than any clock here is true, and short in a file."""
    return [round(s, 7) for s in samples]


class Bench:
    """One loaded model, and contexts on it. ``zero_s`` is the run's start on the monotonic clock."""

    def __init__(self, path: str, settings: dict[str, Any], *, zero_s: float, log: Log, llama: Any) -> None:
        self._path, self._settings, self._zero_s, self._log, self._llama = path, settings, zero_s, log, llama
        self.model: Any = None
        # Tokens are drawn, not read: speed does not depend on them, except through an MoE's router.
        self._random = random.Random(settings["seed"])
        # A prompt of some depth is read once and then restored, as llama-bench does. llama.cpp takes it back into contexts
        # of equally many sequences only.
        self._kept: dict[tuple[int, int], Any] = {}
        self._own: list[dict[str, Any]] = []
        self._stages = [self._stage("start")]
        self.flash_attn_used = ""

    def load(self) -> None:
        parameters = self._llama.llama_model_default_params()
        parameters.n_gpu_layers = self._settings["n_gpu_layers"]
        none = (ctypes.c_void_p * 1)()
        if not self._settings["n_gpu_layers"]:
            parameters.devices = ctypes.cast(none, ctypes.c_void_p)  # else a GPU would still be lent the products of long prompts
        self._log.take()
        self.model = self._llama.llama_model_load_from_file(os.fsencode(self._path), parameters)
        if not self.model:
            raise EngineError(f"{Path(self._path).name}: llama.cpp refused it: {self._log.reason()}")
        self._own = own_buffers(self._log.take())
        self._stages.append(self._stage("loaded"))
        self._vocab = self._llama.llama_model_get_vocab(self.model)
        self._n_vocab = self._llama.llama_vocab_n_tokens(self._vocab)

    def close(self) -> None:
        if self.model:
            self._llama.llama_model_free(self.model)
            self.model = None

    def description(self) -> str:
        """What llama.cpp calls the model: architecture, size class and file type."""
        text = ctypes.create_string_buffer(128)
        self._llama.llama_model_desc(self.model, text, len(text))
        return text.value.decode(errors="replace")

    # ── points ────────────────────────────────────────────────────────────────────────────────────

    def point(
        self, emit: Emit, *, kind: str, n_tokens: int, depth: int, repetitions: int, n_seq: int = 1, count_experts: bool = False, watch: bool = False
    ) -> dict[str, Any]:
        """Time one point. With ``watch`` memory is looked at before, with and after its context."""
        label = f"{'pp' if kind == 'prefill' else 'tg'}{n_tokens}"
        label += (f" of {n_seq} sequences" if n_seq > 1 else "") + (f" at depth {depth}" if depth else "")
        with self._context(n_tokens + depth, n_seq, watch=watch) as context:
            run = self._prefill if kind == "prefill" else self._decode
            emit("progress", stage=f"{label}: warm-up")
            warmup_s = sum(run(context, n_tokens if kind == "prefill" else 1, 0, n_seq))
            samples: list[list[float]] = []
            at_s: list[float] = []
            for repetition in range(repetitions):
                emit("progress", stage=f"{label}: {repetition + 1} of {repetitions}")
                self._go_to(emit, context, depth, n_seq)
                gc.collect()
                at_s.append(round(time.monotonic() - self._zero_s, 4))
                samples.append(rounded(run(context, n_tokens, depth, n_seq)))
            if watch:
                self._stages.append(self._stage("ran"))
        distinct = self._distinct_experts(n_seq) if count_experts and kind == "decode" else []
        fields = {"kind": kind, "n_tokens": n_tokens, "depth": depth, "n_seq": n_seq, "warmup_s": round(warmup_s, 7)}
        return {**fields, "repetitions_s": samples, "at_s": at_s, "distinct_experts": distinct}

    def sustain(self, emit: Emit, *, seconds: float, block_tokens: int, depth: int) -> dict[str, Any]:
        """Decode for ``seconds`` in blocks of ``block_tokens``, or of about a second each if that is 0."""
        with self._context(max(block_tokens, 512) + depth, 1) as context:
            emit("progress", stage="warm-up")
            self._go_to(emit, context, depth, 1)
            step_s = min(self._decode(context, 4, depth, 1))
            block_tokens = block_tokens or min(512, max(1, round(min(1.0, seconds / 20) / step_s)))
            at_s: list[float] = []
            block_s: list[float] = []
            end = time.monotonic() + seconds
            while time.monotonic() < end or not at_s:
                self._go_to(emit, context, depth, 1)
                at_s.append(round(time.monotonic() - self._zero_s, 4))
                block_s.append(round(sum(self._decode(context, block_tokens, depth, 1)), 7))
                emit("progress", stage=f"{max(0.0, end - time.monotonic()):.0f} s to go, {block_tokens / block_s[-1]:.1f} tok/s")
        return {"block_tokens": block_tokens, "at_s": at_s, "block_s": block_s}

    def tune(self, emit: Emit, *, tried: list[int], rounds: int, n_decode: int, n_prefill: int) -> list[dict[str, Any]]:
        """Time decode and prefill with each number of threads, interleaved in rounds that go up and down in turn."""
        found: dict[int, dict[str, Any]] = {
            n: {"n_threads": n, "decode_tokens": n_decode, "decode_s": [], "prefill_tokens": n_prefill, "prefill_s": []} for n in tried
        }
        with self._context(max(n_decode, n_prefill) + 8, 1) as context:
            for turn in range(rounds):
                for n in tried if turn % 2 == 0 else reversed(tried):
                    emit("progress", stage=f"{n} threads, round {turn + 1} of {rounds}")
                    self._llama.llama_set_n_threads(context, n, n)
                    with kept_threads(context, n):
                        for kind, run, n_tokens in (("prefill_s", self._prefill, n_prefill), ("decode_s", self._decode, n_decode)):
                            self._go_to(emit, context, 0, 1)
                            run(context, min(2, n_tokens), 0, 1)
                            self._go_to(emit, context, 0, 1)
                            found[n][kind].append(round(sum(run(context, n_tokens, 0, 1)), 7))
        return list(found.values())

    def memory(self) -> dict[str, Any]:
        """llama.cpp's own buffers and what the process held, for the watched point."""
        return {"own": self._own, "stages": self._stages}

    def sample(self, n_tokens: int) -> str:
        """Text of ``n_tokens`` tokens drawn at temperature 1 after one random token: what the model has to say."""
        draw = np.random.default_rng(self._settings["seed"])
        piece = ctypes.create_string_buffer(256)
        token, text = self._random.randrange(self._n_vocab), b""
        with self._context(n_tokens + 1, 1) as context:
            for _ in range(n_tokens):
                self._advance(context, self._llama.llama_batch_get_one((self._llama.llama_token * 1)(token), 1))
                logits = np.ctypeslib.as_array(self._llama.llama_get_logits_ith(context, -1), (self._n_vocab,)).astype(np.float64)
                weights = np.exp(logits - logits.max())
                token = int(draw.choice(self._n_vocab, p=weights / weights.sum()))
                length = self._llama.llama_token_to_piece(self._vocab, token, piece, len(piece), 0, False)
                text += piece.raw[: max(0, length)]
        return "".join(c if c.isprintable() else " " for c in text.decode(errors="replace")).strip()

    # ── contexts ──────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def _context(self, n_ctx: int, n_seq: int, *, watch: bool = False, callback: Any = None) -> Iterator[Any]:
        llama, settings = self._llama, self._settings
        parameters = llama.llama_context_default_params()
        # Every sequence gets its own share, which llama.cpp rounds up to a multiple of 256; rounded here, the buffers are those planned for.
        parameters.n_ctx = n_seq * -(-n_ctx // CONTEXT_PAD) * CONTEXT_PAD
        parameters.n_seq_max = n_seq
        # Buffers are made for so many tokens at once: as by llama.cpp's own tools, no more than were asked for, though the context is rounded.
        parameters.n_batch = min(settings["n_batch"], n_seq * n_ctx)
        parameters.n_ubatch = settings["n_ubatch"]
        parameters.n_threads = parameters.n_threads_batch = settings["n_threads"]
        parameters.flash_attn_type = {"auto": -1, "off": 0, "on": 1}[settings["flash_attn"]]
        parameters.type_k, parameters.type_v = TYPES[settings["type_k"]], TYPES[settings["type_v"]]
        parameters.swa_full = False  # as llama.cpp's own tools; the library's default keeps whole windows
        if callback is not None:
            parameters.cb_eval = callback
        if watch:
            self._stages.append(self._stage("before"))
        self._log.take()
        context = llama.llama_init_from_model(self.model, parameters)
        if not context:
            sequences = f" for each of {n_seq} sequences" if n_seq > 1 else ""
            raise EngineError(f"{Path(self._path).name}: llama.cpp could not make a context of {n_ctx} tokens{sequences}: {self._log.reason()}")
        said = self._log.take()
        if flash := re.search(r"Flash Attention (enabled|not supported)", "\n".join(said)):
            self.flash_attn_used = "on" if flash[1] == "enabled" else "off"
        elif settings["flash_attn"] != "auto":
            self.flash_attn_used = settings["flash_attn"]
        if watch:
            self._own += own_buffers(said)
            self._stages.append(self._stage("context"))
        try:
            with kept_threads(context, settings["n_threads"]):
                yield context
        finally:
            llama.llama_free(context)

    def _go_to(self, emit: Emit, context: Any, depth: int, n_seq: int) -> None:
        """Empty the memory, then fill it to ``depth`` for every sequence; a depth that was read before is restored."""
        llama = self._llama
        llama.llama_memory_clear(llama.llama_get_memory(context), False)
        if not depth:
            return
        done, key = 0, (depth, n_seq)
        if key not in self._kept:
            self._fill(emit, context, depth)
            state = (ctypes.c_uint8 * llama.llama_state_seq_get_size(context, 0))()
            if llama.llama_state_seq_get_data(context, state, len(state), 0) == len(state):
                self._kept = {key: state}  # one at a time: a deep one takes as much as its cache
            done = 1
        for sequence in range(done, n_seq):
            state = self._kept.get(key)
            if state is None or llama.llama_state_seq_set_data(context, state, len(state), sequence) == 0:
                self._kept.pop(key, None)
                self._fill(emit, context, depth, sequence)

    def _fill(self, emit: Emit, context: Any, depth: int, sequence: int = 0) -> None:
        """Read ``depth`` tokens outside every timing; told batch by batch, because a deep one takes longer than a hanging child is given."""
        n_batch = self._settings["n_batch"]
        for first in range(0, depth, n_batch):
            emit("progress", stage=f"filling the context: {first:,} of {depth:,}")
            self._prefill(context, min(n_batch, depth - first), first, 1, sequence)

    def _prefill(self, context: Any, n_tokens: int, at: int, n_seq: int, sequence: int = 0) -> list[float]:
        """Read ``n_tokens`` from position ``at`` on in batches of ``n_batch``; one time for all."""
        batches = []
        for first in range(0, n_tokens, self._settings["n_batch"]):
            count = min(self._settings["n_batch"], n_tokens - first)
            places = [(at + first + i, sequence) for i in range(count)]
            batches.append(self._batch(places, every=False))
        try:
            start = time.perf_counter()
            for batch in batches:
                self._advance(context, batch)
            self._llama.llama_synchronize(context)
            return [time.perf_counter() - start]
        finally:
            for batch in batches:
                self._llama.llama_batch_free(batch)

    def _decode(self, context: Any, n_tokens: int, at: int, n_seq: int) -> list[float]:
        """Produce ``n_tokens`` of each sequence, one step at a time; one time for each step."""
        batch = self._batch([(at, sequence) for sequence in range(n_seq)], every=True)
        drawn = [self._random.randrange(self._n_vocab) for _ in range(n_tokens * n_seq)]
        decode, synchronize, clock = self._llama.llama_decode, self._llama.llama_synchronize, time.perf_counter
        tokens, positions, sequences = batch.token, batch.pos, range(n_seq)
        times, status = [], 0
        last = clock()
        for step in range(n_tokens):
            for i in sequences:
                tokens[i] = drawn[step * n_seq + i]
                positions[i] = at + step
            status |= decode(context, batch)
            synchronize(context)
            now = clock()
            times.append(now - last)
            last = now
        self._llama.llama_batch_free(batch)
        if status:
            raise EngineError(f"llama_decode returned {status}")
        return times

    def _batch(self, places: list[tuple[int, int]], *, every: bool) -> Any:
        """A batch of random tokens at these positions of these sequences; logits of every token, or of the last alone."""
        batch = self._llama.llama_batch_init(len(places), 0, 1)
        batch.n_tokens = len(places)
        for i, (position, sequence) in enumerate(places):
            batch.token[i] = self._random.randrange(self._n_vocab)
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = every or i == len(places) - 1
        return batch

    def _advance(self, context: Any, batch: Any) -> None:
        status = self._llama.llama_decode(context, batch)
        if status != 0:
            raise EngineError(f"llama_decode returned {status}")

    # ── beside the timing ─────────────────────────────────────────────────────────────────────────

    def _distinct_experts(self, n_seq: int) -> list[int]:
        """How many different experts each layer used, for each layer of some steps; counted through llama.cpp's own callback."""
        found: list[int] = []

        @self._llama.ggml_backend_sched_eval_callback  # type: ignore[untyped-decorator]
        def look(tensor: Any, ask: bool, _: Any) -> bool:
            name, values = tensor_values(tensor, only="ffn_moe_topk", read=not ask)
            if values is not None:
                found.append(len(np.unique(values)))
            return bool(name) or not ask

        with self._context(_COUNTED_STEPS + 1, n_seq, callback=look) as context:
            self._decode(context, 1, 0, n_seq)
            n_layers = max(1, len(found))
            for step in range(1, max(1, min(_COUNTED_STEPS, _MAX_COUNTS // n_layers))):
                self._decode(context, 1, step, n_seq)
        return found

    def _stage(self, stage: str) -> dict[str, Any]:
        """What the process holds now, and each GPU as its driver says."""
        from nbutils.monitor import gpu_used_bytes

        now = psutil.Process().memory_info()
        return {"stage": stage, "resident_bytes": now.rss, "file_bytes": getattr(now, "shared", None), "gpu_used_bytes": gpu_used_bytes()}
