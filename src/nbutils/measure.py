"""A suite on a model file becomes a record."""

from __future__ import annotations

import platform
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from nbutils import engine, gguf_files, paths, probe, registry
from nbutils.errors import EngineError, MissingExtra, UsageError
from nbutils.specs import Backend, FileFacts, Record, Settings, Suite

__all__ = ["ModelFile", "check_backend", "find_model", "measure", "wants_gpu"]

SEED = 20261120


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


def measure(model: ModelFile, suite: Suite, *, n_threads: int = 0, cpu: bool = False, progress: engine.Progress | None = None) -> Record:
    """Run ``suite`` on ``model`` in the child process and return the record; nothing is written.

    ``n_threads`` 0 means one per physical core. Raises ``EngineError`` when llama.cpp refuses, crashes or hangs.
    """
    description = engine.describe()
    check_backend(description, cpu=cpu)
    use_gpu = wants_gpu(description, cpu=cpu)
    longest = max(p.n_tokens + p.depth for p in suite.points)
    settings = Settings(
        n_threads=n_threads or probe.n_threads_default(),
        n_batch=2048,
        n_ubatch=512,
        n_ctx=longest,
        flash_attn="auto",
        type_k="F16",
        type_v="F16",
        n_gpu_layers=-1 if use_gpu else 0,
        seed=SEED,
    )
    machine = probe.machine()
    before = probe.gpu_states("before")
    found = engine.measure_file(
        model.path,
        points=[p.model_dump() for p in suite.points],
        repetitions=suite.repetitions,
        yardstick_s=suite.yardstick_s,
        settings=settings.model_dump(),
        n_sample=24 if model.origin == "stand-in" else 0,
        progress=progress,
    )
    try:
        return Record(
            schema_version=1,
            created=datetime.now(UTC).replace(microsecond=0),
            suite=suite,
            machine=machine,
            backend=Backend(
                binding=description["binding"],
                device=_backend_name(description, use_gpu),
                memory_bytes=description["device"]["memory_bytes"],
                system_info=description["system_info"][:2000],
            ),
            model=FileFacts(name=model.name, origin=model.origin, reference=model.reference, **found["facts"]),
            settings=settings,
            points=found["points"],
            yardsticks=found["yardsticks"],
            kernels=found["kernels"],
            sample_text=found["sample_text"][:400],
            states=tuple(before + probe.gpu_states("after")),
            versions=_versions(),
            commit=_commit(),
        )
    except ValidationError as error:
        raise EngineError(f"{model.path.name}: the measurement makes no record: {registry.problems_of(error)[0]}") from None


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
