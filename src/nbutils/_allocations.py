"""In the child: what llama.cpp would allocate for a file, and what its quantiser would make of it. Nothing is computed.

Loading with ``no_alloc`` reads the header alone and simulates every allocation. The binding has no call for the
results; llama.cpp's log has them, to 0.01 MiB (0.1 MiB is 100 kB).
"""

from __future__ import annotations

import ctypes
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from nbutils._ggml import TYPES
from nbutils.errors import EngineError
from nbutils.fit import N_BATCH

__all__ = ["Log", "buffers", "own_buffers", "quantised"]

_LOAD_MODE_NONE = 0
_WARNING, _ERROR = 3, 4
_MIB = 2**20
_BUFFER = re.compile(r"(\S+)\s+(output|compute) buffer size =\s+([\d.]+) MiB")
_OWN = re.compile(r"(\S+)\s+(model|KV|RS|output|compute) buffer size =\s+([\d.]+) MiB")
_KINDS = {"model": "weights", "KV": "kv", "RS": "recurrent", "output": "output", "compute": "compute"}
_CACHE = re.compile(r"(llama_kv_cache|llama_memory_recurrent): size =\s+([\d.]+) MiB \(\s*(\d+) cells,\s*(\d+) layers")
_TENSOR = re.compile(r"^\[ *\d+/ *\d+\]\s+(\S+)\s+- \[([\d, ]+)\], type =\s+(\S+),(.*)$")


class Log:
    """llama.cpp's words, kept as whole lines; those that warn or complain are kept once more by themselves."""

    def __init__(self, llama: Any, *, complain_to: TextIO | None = None) -> None:
        self._complain_to = complain_to
        self.lines: list[str] = []
        self.complaints: list[tuple[bool, str]] = []
        self._part = ""
        self._callback = llama.llama_log_callback(self._take)  # kept: ctypes does not
        llama.llama_log_set(self._callback, ctypes.c_void_p(0))

    def _take(self, level: int, text: bytes, _: Any) -> None:
        if level >= _WARNING:
            self.complaints.append((level == _ERROR, text.decode(errors="replace").strip()))
            if self._complain_to:
                self._complain_to.write(text.decode(errors="replace"))
                self._complain_to.flush()
        self._part += text.decode(errors="replace")
        *whole, self._part = self._part.split("\n")
        self.lines += whole

    def take(self) -> list[str]:
        """All whole lines since last time; what was begun and not ended counts as a line."""
        lines = [*self.lines, *([self._part] if self._part else [])]
        self.lines, self.complaints, self._part = [], [], ""
        return lines

    def reason(self) -> str:
        """The first error since last time, or else the first warning: it is the cause, those after it are callers giving up."""
        telling = [line for _, line in sorted(self.complaints, key=lambda c: not c[0]) if line.strip(".\n ")]
        self.take()
        return re.sub(r"^[\w:.]+: (?:error loading model: )?", "", telling[0])[:300] if telling else "it gave no reason"


def _llama() -> tuple[Any, Log]:
    import llama_cpp

    log = Log(llama_cpp)
    llama_cpp.llama_backend_init()
    return llama_cpp, log


def buffers(emit: Callable[..., None], *, path: str, backend: str, asked: list[dict[str, Any]]) -> dict[str, Any]:
    """Buffers of each asked context ``{n_ctx, kv_type, n_ubatch, n_seq}``: bytes by kind, as printed.

    Returns ``{weight_bytes, n_parameters, answers}``; an answer is ``{kv, recurrent, compute, output, caches}``, or
    ``{refused: reason}`` where llama.cpp makes no such context.
    """
    llama, log = _llama()
    with _model(llama, log, path, cpu=backend == "cpu") as model:
        found = {"weight_bytes": llama.llama_model_size(model), "n_parameters": llama.llama_model_n_params(model)}
        answers = []
        for i, wanted in enumerate(asked):
            emit("progress", stage=f"asking llama.cpp: {i + 1} of {len(asked)}")
            answers.append(_answer(llama, log, model, wanted))
    return {**found, "answers": answers}


@contextmanager
def _model(llama: Any, log: Log, path: str, *, cpu: bool) -> Iterator[Any]:
    parameters = llama.llama_model_default_params()
    parameters.no_alloc = True
    parameters.load_mode = _LOAD_MODE_NONE  # mapping the file and not allocating trips an assertion
    none = (ctypes.c_void_p * 1)()
    if cpu:
        parameters.n_gpu_layers = 0
        parameters.devices = ctypes.cast(none, ctypes.c_void_p)  # no device at all: a list that ends at once
    else:
        parameters.n_gpu_layers = -1
    log.take()
    model = llama.llama_model_load_from_file(os.fsencode(path), parameters)
    if not model:
        raise EngineError(f"{Path(path).name}: llama.cpp refused it: {log.reason()}")
    try:
        yield model
    finally:
        llama.llama_model_free(model)


def _answer(llama: Any, log: Log, model: Any, wanted: dict[str, Any]) -> dict[str, Any]:
    parameters = llama.llama_context_default_params()
    parameters.n_ctx = wanted["n_ctx"] * wanted["n_seq"]
    parameters.n_batch, parameters.n_ubatch = N_BATCH, wanted["n_ubatch"]
    parameters.n_seq_max = wanted["n_seq"]
    parameters.flash_attn_type = -1  # auto, as the tools
    parameters.type_k = parameters.type_v = TYPES[wanted["kv_type"].upper()]
    parameters.swa_full = False
    log.take()
    context = llama.llama_init_from_model(model, parameters)
    if not context:
        return {"refused": log.reason()}
    llama.llama_free(context)
    said = log.take()
    sizes: dict[str, list[tuple[str, int]]] = {"output": [], "compute": []}
    caches = []
    for line in said:
        if match := _BUFFER.search(line):
            sizes[match[2]].append((match[1], round(float(match[3]) * _MIB)))
        elif match := _CACHE.search(line):
            kind = "kv" if match[1] == "llama_kv_cache" else "recurrent"
            caches.append({"kind": kind, "bytes": round(float(match[2]) * _MIB), "cells": int(match[3]), "layers": int(match[4])})
    return {
        **{kind: sum(c["bytes"] for c in caches if c["kind"] == kind) for kind in ("kv", "recurrent")},
        "output": sum(n for _, n in sizes["output"]),
        "compute": _on_device(sizes["compute"]),
        "caches": caches,
    }


def own_buffers(lines: list[str]) -> list[dict[str, Any]]:
    """The buffers that llama.cpp says it has made: ``{what, where, n_bytes}``."""
    found = (_OWN.search(line) for line in lines)
    return [{"what": _KINDS[m[2]], "where": m[1], "n_bytes": round(float(m[3]) * _MIB)} for m in found if m]


def _on_device(sizes: list[tuple[str, int]]) -> int:
    """Of buffers on a GPU and its host side (``CUDA0``, ``CUDA_Host``) those on the GPU; all where there is none."""
    device = [n for name, n in sizes if not name.startswith("CPU") and not name.endswith("_Host")]
    return sum(device) if device else sum(n for _, n in sizes)


def quantised(emit: Callable[..., None], *, path: str, file_type: str) -> dict[str, Any]:
    """The type the quantiser would give to each tensor of a file: ``{types: {name: type}, shapes: {name: [..]}}``. Nothing is written."""
    import gguf

    llama, log = _llama()
    parameters = llama.llama_model_quantize_default_params()
    parameters.ftype = getattr(gguf.LlamaFileType, f"MOSTLY_{file_type}").value
    parameters.dry_run = True
    log.take()
    with tempfile.TemporaryDirectory() as folder:
        code = llama.llama_model_quantize(os.fsencode(path), os.fsencode(Path(folder) / "none.gguf"), ctypes.byref(parameters))
    if code:
        raise EngineError(f"{Path(path).name}: the quantiser refused {file_type}: {log.reason()}")
    said = log.take()
    types, shapes = {}, {}
    for line in said:
        if match := _TENSOR.match(line):
            target = re.findall(r"\(([A-Za-z0-9_]+)\)\s*$", match[4])
            types[match[1]] = (target[0] if target else match[3]).upper()
            shapes[match[1]] = [int(n) for n in match[2].split(",")]
    return {"types": types, "shapes": shapes}
