"""llama.cpp, kept in a child process.

llama.cpp ends the process on bad input or a full device. Here that becomes one ``EngineError`` with a reason, the
notebook's kernel lives on, and nothing half-measured is kept.
"""

from __future__ import annotations

import json
import platform
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from nbutils import paths
from nbutils.errors import EngineError, MissingExtra, UsageError

__all__ = [
    "alone",
    "backend_name",
    "build",
    "describe",
    "has_engine",
    "inspect_file",
    "measure_file",
    "planned_buffers",
    "probe_speed",
    "quantised_types",
    "require_engine",
    "sustain_file",
    "time_reading",
    "tune_threads",
]

Progress = Callable[[str], None]

#: What times something, and so wants the machine for itself.
_TIMED = frozenset({"measure", "probe", "reading", "sustain", "tune"})
#: A child that says nothing for so long hangs. Loading a hundred GB from a slow disk takes minutes.
SILENCE_LIMIT_S = 1800.0


def require_engine() -> None:
    """Raise ``MissingExtra`` unless llama-cpp-python and what goes with it are installed."""
    missing = [name for name in ("llama_cpp", "gguf") if find_spec(name) is None]
    if missing:
        raise MissingExtra(f"measuring needs {', '.join(missing)}: pip install -e '.[engine]' (README says which build for which GPU)")


def has_engine() -> bool:
    """Whether llama.cpp can be asked on this machine."""
    return all(find_spec(name) is not None for name in ("llama_cpp", "gguf"))


def build() -> str:
    """The binding's name and version, which name the llama.cpp inside. Read without loading it."""
    return f"llama-cpp-python {version('llama-cpp-python')}"


def backend_name() -> str:
    """The backend that this build of llama.cpp would use: ``cpu``, ``cuda``, ``metal`` and so on."""
    return str(describe()["device"]["name"]).rstrip("0123456789").lower()


def describe() -> dict[str, Any]:
    """Binding, build flags, and the device this build would use: ``{binding, commit, system_info, gpu_offload, device}``."""
    found: dict[str, Any] = _call("describe")
    return found


def inspect_file(path: Path) -> dict[str, Any]:
    """Facts of a GGUF file, read from its header in the child. ``EngineError`` says what is wrong with it."""
    return _call("inspect", path=str(_existing(path)))


def planned_buffers(path: Path, asked: list[dict[str, Any]], *, backend: str = "cpu", progress: Progress | None = None) -> dict[str, Any]:
    """What llama.cpp would allocate for a file, whose weights may be a hole: ``{weight_bytes, n_parameters, answers}``.

    ``asked`` are contexts ``{n_ctx, kv_type, n_ubatch, n_seq}``; an answer has bytes by kind, or ``refused`` with the reason.
    ``backend`` is ``cpu``, or anything else for whatever device the build would use.
    """
    return _call("buffers", progress, path=str(_existing(path)), backend=backend, asked=asked)


def quantised_types(path: Path, file_type: str) -> dict[str, Any]:
    """The quantiser's dry run on a file: ``{types, shapes}`` by tensor name. Nothing is written."""
    return _call("quantised", path=str(_existing(path)), file_type=file_type)


def probe_speed(*, seconds: float, n_threads: int, use_gpu: bool, progress: Progress | None = None) -> dict[str, Any]:
    """Bandwidth by two methods and kernel rates, ``seconds`` for each."""
    return _call("probe", progress, seconds=seconds, n_threads=n_threads, use_gpu=use_gpu)


def time_reading(*, seconds: float, n_threads: int, progress: Progress | None = None) -> dict[str, Any]:
    """Read bandwidth by two methods, ``seconds`` for each, on the device the build would use."""
    return _call("reading", progress, seconds=seconds, n_threads=n_threads)


def measure_file(
    path: Path,
    *,
    points: list[dict[str, Any]],
    repetitions: int,
    yardstick_s: float,
    settings: dict[str, Any],
    n_sample: int = 0,
    zero_s: float = 0.0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure one file; returns ``{facts, points, yardsticks, kernels, sample_text, memory, flash_attn_used}`` as plain values.

    ``yardstick_s`` 0 measures no yardsticks. ``n_sample`` tokens of text are produced afterwards, outside every timing.
    Moments are seconds of the monotonic clock, which child and parent share, since ``zero_s``.
    """
    request = {"points": points, "repetitions": repetitions, "yardstick_s": yardstick_s, "settings": settings, "n_sample": n_sample}
    return _call("measure", progress, path=str(_existing(path)), zero_s=zero_s, **request)


def sustain_file(
    path: Path,
    *,
    seconds: float,
    block_tokens: int,
    depth: int,
    settings: dict[str, Any],
    zero_s: float = 0.0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Decode for ``seconds``: ``{facts, flash_attn_used, block_tokens, at_s, block_s}``. ``block_tokens`` 0 means about a second each."""
    request = {"seconds": seconds, "block_tokens": block_tokens, "depth": depth, "settings": settings}
    return _call("sustain", progress, path=str(_existing(path)), zero_s=zero_s, **request)


def tune_threads(
    path: Path, *, tried: list[int], rounds: int, n_decode: int, n_prefill: int, settings: dict[str, Any], progress: Progress | None = None
) -> list[dict[str, Any]]:
    """Raw times of decode and prefill with each number of threads of ``tried``."""
    request = {"tried": tried, "rounds": rounds, "n_decode": n_decode, "n_prefill": n_prefill, "settings": settings}
    found: list[dict[str, Any]] = _call("tune", progress, path=str(_existing(path)), **request)
    return found


def _existing(path: Path) -> Path:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UsageError(f"model file {str(path)!r} {what}; give the path of a .gguf file")
    return path.resolve()


def _call(op: str, progress: Progress | None = None, **request: Any) -> Any:
    require_engine()
    with alone(progress) if op in _TIMED else nullcontext(), tempfile.TemporaryFile() as words:
        child = subprocess.Popen([sys.executable, "-m", "nbutils._engine_child"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=words)
        try:
            return _converse(child, {"op": op, **request}, words, progress)
        finally:
            child.kill()
            child.wait()
            for stream in (child.stdin, child.stdout):
                if stream is not None:
                    _close_quietly(stream)


@contextmanager
def alone(progress: Progress | None = None) -> Iterator[None]:
    """Wait until no other process of this user measures, and keep them waiting: notebooks, sweeps of any name, commands in other windows.

    What is timed here does so by itself. It may be held around that, so that no waiting is taken for a part of the run. The system lets go of a
    lock whose holder died. Where none can be had, as on a disk that is read-only, both measure: yardsticks will show it.
    """
    from filelock import FileLock, Timeout

    try:
        # Machines may share a home.
        path = paths.cache_dir() / f"measuring-{platform.node()}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, is_singleton=True)  # so that one inside another does not wait for itself
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if progress:
                progress("waiting for another measurement on this machine")
            lock.acquire(poll_interval=0.2)
    except (OSError, NotImplementedError):
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _close_quietly(stream: IO[bytes]) -> None:
    try:
        stream.close()
    except OSError:
        pass  # a dead child's pipe: its death is reported elsewhere


def _converse(child: subprocess.Popen[bytes], request: dict[str, Any], words: IO[bytes], progress: Progress | None) -> Any:
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(json.dumps(request).encode() + b"\n")
        child.stdin.flush()  # and left open: its end tells the child that nobody listens any more
    except OSError:
        pass  # it died at once: what follows reads how
    lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    threading.Thread(target=_drain, args=(child.stdout, lines), daemon=True).start()
    stage = "starting"
    while True:
        try:
            line = lines.get(timeout=SILENCE_LIMIT_S)
        except queue.Empty:
            raise EngineError(f"llama.cpp said nothing for {SILENCE_LIMIT_S / 60:.0f} min while {stage}; ended it, nothing was recorded") from None
        if line is None:
            raise EngineError(_obituary(child.wait(), stage, words))
        try:
            event = json.loads(line)
        except ValueError:
            continue  # printed by something else at start: not ours
        if event["event"] == "result":
            return event["value"]
        if event["event"] == "error":
            raise EngineError(_with_reason(event["message"], words))
        stage = event["stage"]
        if progress:
            progress(stage)


def _drain(stream: IO[bytes], lines: queue.SimpleQueue[bytes | None]) -> None:
    try:
        for line in stream:
            if line.endswith(b"\n"):  # a line cut by the child's death is no event
                lines.put(line)
    except (OSError, ValueError):
        pass  # closed under us: the end is reported just the same
    lines.put(None)


def _obituary(code: int, stage: str, words: IO[bytes]) -> str:
    if code < 0:
        try:
            how = f"was ended by {signal.Signals(-code).name}"
        except ValueError:
            how = f"was ended by signal {-code}"
        if -code == 9:
            how += " (somebody's kill, or the system was out of memory)"
    else:
        how = f"ended with code {code}"
    return _with_reason(f"llama.cpp's process {how} while {stage}; nothing was recorded, run it again", words)


def _with_reason(message: str, words: IO[bytes]) -> str:
    """Add llama.cpp's last telling line to a message."""
    words.seek(0)
    said = [line.strip() for line in words.read()[-20_000:].decode(errors="replace").splitlines() if line.strip()]
    telling = [line for line in said if re.search(r"error|assert|unknown|fail|invalid|unable|not (?:enough|supported)", line, re.IGNORECASE)]
    if not telling:
        return message
    # The first complaint is the cause; those after it are callers giving up.
    reason = re.sub(r"^[\w:.]+: (?:error loading model: )?", "", telling[0])[:300]
    return f"{message}: {reason}"
