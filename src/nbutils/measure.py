"""A suite on a model file becomes a record."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, Literal

from pydantic import ValidationError

from nbutils import engine, fit, gguf_files, monitor, oracle, paths, probe, records, registry, subjects
from nbutils.errors import EngineError, MissingExtra, NbutilsError, UsageError, did_you_mean
from nbutils.specs import SCHEMA_VERSION, Backend, Block, FileFacts, MemoryUse, Record, Settings, Suite, SuitePoint, TriedThreads

__all__ = [
    "CACHE_TYPES",
    "Knobs",
    "ModelFile",
    "backend_of",
    "best_threads",
    "check_backend",
    "custom_suite",
    "find_model",
    "measure",
    "provenance",
    "settings_of",
    "threads_to_try",
    "tune",
    "wants_gpu",
]

SEED = 20261120
#: What llama.cpp keeps keys and values in.
CACHE_TYPES = tuple(name.upper() for name in registry.CACHE_TYPES["llama.cpp"])

#: Estimated bytes in a record: of one time, and of everything else at most, traces of many meters among it.
_TIME_BYTES, _OTHER_BYTES = 11, 280_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """A file to measure and how to speak of it without naming anybody's folders."""

    path: Path
    name: str
    origin: Literal["stand-in", "file", "hub"]
    reference: str = ""


def find_model(model: str = "", *, format_id: str = "Q4_K_M", repo: str = "", file: str = "", progress: engine.Progress | None = None) -> ModelFile:
    """A stand-in by name, a file by path, or ``file`` of a Hugging Face ``repo``.

    A stand-in is made when it is not there; a hub file is fetched into huggingface_hub's own cache.
    """
    if repo or file:
        if model.endswith(".gguf"):
            raise UsageError(f"both a path ({model!r}) and a repository ({repo or file!r}) are given; give one")
        return _from_hub(repo, file, progress)
    if model.startswith("stand-in-"):
        stand_in = gguf_files.parse_stand_in(model, format_id)
        path = gguf_files.make(stand_in, registry.load_format(format_id))
        return ModelFile(path=path, name=stand_in.name, origin="stand-in", reference=f"seed {gguf_files.SEED}")
    path = Path(model).expanduser()
    if path.suffix != ".gguf" and not path.is_file():
        gguf_files.parse_stand_in(model, format_id)  # says what would be known names
    return ModelFile(path=path, name=path.stem[:120], origin="file")


def _from_hub(repo: str, file: str, progress: engine.Progress | None) -> ModelFile:
    if not repo or not file:
        raise UsageError(f"a hub model needs a repository and a file; repo is {repo!r}, file is {file!r}")
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise MissingExtra("fetching a model by name needs huggingface_hub: pip install -e '.[engine]'") from None
    if progress:
        progress(f"fetching {file} from {repo}")
    try:
        path = hf_hub_download(repo, file)
    except HFValidationError as error:
        raise UsageError(f"{repo!r} is not the name of a repository: {error}") from None
    except LocalEntryNotFoundError:
        raise EngineError(f"{repo}/{file}: the hub cannot be reached and the file is not in the local cache; check the network") from None
    except HfHubHTTPError as error:
        answer = error.response.status_code
        raise EngineError(f"{repo}/{file}: the hub answered {answer}; check both names (and your token for a gated model)") from None
    except Exception as error:  # whatever the transport raises, cut connections among it
        raise EngineError(f"{repo}/{file}: could not be fetched: {type(error).__name__}: {error}") from None
    return ModelFile(path=Path(path), name=Path(file).stem[:120], origin="hub", reference=repo[:200])


def wants_gpu(description: dict[str, Any], *, cpu: bool) -> bool:
    """Whether to offload all layers: the build can, a device is there, and nobody asked for the processor."""
    return not cpu and bool(description["gpu_offload"]) and bool(description["device"]["is_gpu"])


def check_backend(description: dict[str, Any], *, cpu: bool) -> None:
    """Refuse to measure the processor by accident on a machine that has a GPU.

    Raises ``MissingExtra`` with the command that mends it, unless ``cpu`` says that the processor is meant.
    """
    if cpu or description["device"]["is_gpu"]:
        return
    gpus = [gpu.name for gpu in probe.machine().gpus]
    apple = platform.system() == "Darwin" and platform.machine() == "arm64"
    if not gpus and not apple:
        return
    name, flag = (gpus[0], "GGML_CUDA") if gpus else ("Apple GPU", "GGML_METAL")
    if description["gpu_offload"]:
        raise EngineError(
            f"this machine has a GPU ({name}) and llama.cpp is built for one, but finds none it can use; check the driver and"
            " CUDA_VISIBLE_DEVICES, or pass --cpu to measure the processor"
        )
    raise MissingExtra(
        f"this machine has a GPU ({name}) but the installed llama.cpp cannot use it: "
        f'CMAKE_ARGS="-D{flag}=on" {sys.executable} -m pip install --force-reinstall --no-deps --no-cache-dir '
        f"--no-binary llama-cpp-python llama-cpp-python=={version('llama_cpp_python')} (or pass --cpu to measure the processor)"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Knobs:
    """What of llama.cpp's settings a user may choose; the defaults are its own tools'. Raises ``UsageError`` for what is no choice."""

    n_threads: int = 0  #: 0 means one per physical core
    n_batch: int = 2048
    n_ubatch: int = 512
    flash_attn: Literal["auto", "on", "off"] = "auto"
    type_k: str = "F16"
    type_v: str = "F16"
    n_gpu_layers: int | None = None  #: ``None`` means all where there is a GPU to use

    def __post_init__(self) -> None:
        if self.flash_attn not in ("auto", "on", "off"):
            raise UsageError(f"flash attention {self.flash_attn!r}; it is on, off or auto")
        for name in ("type_k", "type_v"):
            given = getattr(self, name)
            if given not in CACHE_TYPES:
                raise UsageError(f"{name} {given!r}{did_you_mean(given, CACHE_TYPES)}; it is one of {', '.join(CACHE_TYPES)}")
        if self.n_ubatch > self.n_batch:
            raise UsageError(f"a micro-batch of {self.n_ubatch} tokens is larger than the batch of {self.n_batch}; it is a part of it")


def settings_of(knobs: Knobs, *, use_gpu: bool, n_ctx: int) -> Settings:
    """The knobs and what follows from the machine, as a record keeps them."""
    every = -1 if knobs.n_gpu_layers is None else knobs.n_gpu_layers
    return Settings(
        n_threads=knobs.n_threads or probe.n_threads_default(),
        n_batch=knobs.n_batch,
        n_ubatch=knobs.n_ubatch,
        n_ctx=n_ctx,
        flash_attn=knobs.flash_attn,
        type_k=knobs.type_k,
        type_v=knobs.type_v,
        n_gpu_layers=every if use_gpu else 0,
        seed=SEED,
    )


def custom_suite(*, prompts: Sequence[int], generated: Sequence[int], depths: Sequence[int], sequences: Sequence[int], repetitions: int) -> Suite:
    """llama-bench's ``-p``, ``-n``, ``-d`` and ``-r`` as a suite: at each depth every prompt, then every generation. 0 leaves one out.

    Raises ``UsageError`` when nothing is left to measure or a number is out of range.
    """
    points: list[dict[str, Any]] = []
    for depth in depths:
        points += [{"kind": "prefill", "n_tokens": n, "depth": depth} for n in prompts if n]
        points += [{"kind": "decode", "n_tokens": n, "depth": depth, "n_seq": k} for n in generated if n for k in sequences]
    if not points:
        raise UsageError("nothing to time: both -p and -n are 0; give one of them")
    try:
        return Suite(id="custom", name="Custom", points=tuple(SuitePoint(**p) for p in points), repetitions=repetitions, yardstick_s=0.5)
    except ValidationError as error:
        raise UsageError(registry.problems_of(error)[0].removeprefix("file: ")) from None


def measure(
    model: ModelFile,
    suite: Suite,
    *,
    knobs: Knobs | None = None,
    cpu: bool = False,
    tuned: Sequence[TriedThreads] = (),
    progress: engine.Progress | None = None,
) -> Record:
    """Run ``suite`` on ``model`` in the child process and return the record; nothing is written.

    Raises ``EngineError`` when llama.cpp refuses, crashes or hangs.
    """
    _require_room(suite)
    description = engine.describe()
    check_backend(description, cpu=cpu)
    knobs = knobs or Knobs()
    use_gpu = wants_gpu(description, cpu=cpu) and knobs.n_gpu_layers != 0
    settings = settings_of(knobs, use_gpu=use_gpu, n_ctx=max(p.n_tokens + p.depth for p in suite.points))
    machine = probe.machine()
    longest = max(suite.points, key=lambda p: p.n_seq * -(-(p.n_tokens + p.depth) // fit.CONTEXT_PAD))
    predicted, basis = _predicted(model.path, longest, settings) if model.path.is_file() else ({}, "")
    with engine.alone(progress), monitor.Monitor() as watch:
        before = probe.gpu_states("before")
        found = engine.measure_file(
            model.path,
            points=[p.model_dump() for p in suite.points],
            repetitions=suite.repetitions,
            yardstick_s=suite.yardstick_s,
            settings=settings.model_dump(exclude={"flash_attn_used"}),
            n_sample=24 if model.origin == "stand-in" else 0,
            zero_s=watch.zero_s,
            progress=progress,
        )
    try:
        return Record(
            **provenance(description.get("commit", "")),
            suite=suite,
            machine=machine,
            backend=backend_of(description, use_gpu=use_gpu),
            model=FileFacts(name=model.name, origin=model.origin, reference=model.reference, **found["facts"]),
            settings=settings.model_copy(update={"flash_attn_used": found["flash_attn_used"]}),
            points=found["points"],
            yardsticks=found["yardsticks"],
            kernels=found["kernels"],
            sample_text=found["sample_text"][:400],
            states=tuple(before + probe.gpu_states("after")),
            traces=tuple(watch.traces()),
            memory=MemoryUse(
                n_ctx=longest.n_tokens + longest.depth, n_seq=longest.n_seq, predicted_bytes=predicted, compute_basis=basis, **found["memory"]
            ),
            neighbours=watch.neighbours(),
            tuned=tuple(tuned),
        )
    except ValidationError as error:
        raise EngineError(f"{model.path.name}: the measurement makes no record: {registry.problems_of(error)[0]}") from None


def _require_room(suite: Suite) -> None:
    """Raise ``UsageError`` for more times than a record holds: better before hours of measuring than after them."""
    n_times = suite.repetitions * sum(p.n_tokens for p in suite.points if p.kind == "decode")
    if (needed := n_times * _TIME_BYTES + _OTHER_BYTES) > records.MAX_BYTES:
        raise UsageError(
            f"{n_times:,} times of tokens make a record of up to {needed / 1e6:.1f} MB, over the limit of {records.MAX_BYTES / 1e6:.1f};"
            " ask for fewer tokens, repetitions or depths, or measure in several runs"
        )


def _predicted(path: Path, longest: SuitePoint, settings: Settings) -> tuple[dict[str, int], str]:
    """What the run's longest context will take, by part, as ``nbutils fit`` has it; empty for a file that is not understood.

    The compute buffer is llama.cpp's own answer to the question what it would allot, or the upper bound; the second value
    says which. Without flash attention nobody here knows it, and it is left out.
    """
    n_ctx, kv_type = longest.n_tokens + longest.depth, settings.type_k.lower()
    n_ubatch = min(settings.n_ubatch, longest.n_seq * n_ctx)  # no more at once than the context takes
    try:
        cache = _both(*(registry.load_cache_type("llama.cpp", kind.lower()) for kind in (settings.type_k, settings.type_v)))
        with subjects.find(str(path), "") as subject:
            compute = fit.bound_compute(subject.variant, n_ctx, batch_size=longest.n_seq, n_ubatch=n_ubatch)
            if settings.type_k == settings.type_v and settings.n_gpu_layers in (-1, 0):
                backend = oracle.own_backend() if settings.n_gpu_layers else "cpu"
                compute = oracle.compute_buffer(subject, n_ctx, kv_type=kv_type, batch_size=longest.n_seq, backend=backend, n_ubatch=n_ubatch)
            budget = fit.memory_budget(
                subject.variant, n_ctx=n_ctx, available_bytes=0, cache=cache, batch_size=longest.n_seq, compute=compute, n_ubatch=n_ubatch
            )
    except NbutilsError:
        return {}, ""
    parts = {
        "weights": budget.weight_bytes,
        "kv": budget.kv_cache_bytes,
        "recurrent": budget.recurrent_state_bytes,
        "output": budget.output_buffer_bytes,
    }
    return (parts, "") if settings.flash_attn == "off" else (parts | {"compute": budget.compute.n_bytes}, budget.compute.basis)


def _both(keys: Block, values: Block) -> Block:
    """What an element takes on average where keys and values are kept in different types and are equally many."""
    n_bytes = keys.bytes * values.elements + values.bytes * keys.elements
    return keys if keys == values else keys.model_copy(update={"elements": 2 * keys.elements * values.elements, "bytes": n_bytes})


def tune(
    model: ModelFile, *, knobs: Knobs | None = None, cpu: bool = False, rounds: int = 3, progress: engine.Progress | None = None
) -> list[TriedThreads]:
    """Time decode and prefill with several numbers of threads: one, every power of two, the physical cores, all the system has."""
    description = engine.describe()
    check_backend(description, cpu=cpu)
    settings = settings_of(knobs or Knobs(), use_gpu=wants_gpu(description, cpu=cpu), n_ctx=512)
    found = engine.tune_threads(
        model.path,
        tried=threads_to_try(probe.n_threads_default(), probe.n_threads_allowed()),
        rounds=rounds,
        n_decode=16,
        n_prefill=64,
        settings=settings.model_dump(exclude={"flash_attn_used"}),
        progress=progress,
    )
    return [TriedThreads.model_validate(f) for f in found]


def threads_to_try(n_cores: int, n_threads_hw: int) -> list[int]:
    """Powers of two up to all threads, the physical cores, one core fewer, and all threads.

    >>> threads_to_try(6, 12)
    [1, 2, 4, 5, 6, 8, 12]
    """
    powers = {2**i for i in range(n_threads_hw.bit_length()) if 2**i <= n_threads_hw}
    return sorted(powers | {max(1, n_cores - 1), n_cores, n_threads_hw})


def best_threads(tried: Sequence[TriedThreads], phase: Literal["decode", "prefill"] = "decode") -> int:
    """The number of threads with the shortest median; fewer threads win a tie within one per cent."""
    medians = {t.n_threads: median(t.decode_s if phase == "decode" else t.prefill_s) for t in tried}
    return min(n for n, seconds in medians.items() if seconds <= 1.01 * min(medians.values()))


def provenance(llama_cpp_commit: str = "") -> dict[str, Any]:
    """What every record begins with: schema, time, versions (llama.cpp's by its commit, where it ran here), our own commit."""
    versions = _versions() | ({"llama.cpp": llama_cpp_commit} if llama_cpp_commit else {})
    return {"schema_version": SCHEMA_VERSION, "created": datetime.now(UTC).replace(microsecond=0), "versions": versions, "commit": _commit()}


def backend_of(description: dict[str, Any], *, use_gpu: bool) -> Backend:
    """Which llama.cpp runs, and on what, from ``engine.describe``."""
    return Backend(
        binding=description["binding"],
        device=_backend_name(description, use_gpu),
        memory_bytes=description["device"]["memory_bytes"],
        system_info=description["system_info"][:2000],
    )


def _backend_name(description: dict[str, Any], use_gpu: bool) -> str:
    device = description["device"]
    return f"{device['name']}: {device['description']}" if use_gpu else "CPU"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("nbutils", "llama_cpp_python", "numpy", "gguf"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> str:
    """The checkout's commit, with ``+`` when it has changes; empty outside git."""
    try:
        git = ["git", "-C", str(paths.project_dir())]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True).stdout.strip()
        dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
    return head + ("+" if dirty else "")
