"""``data/`` in: devices, models, formats, suites and named runs. The only reader of the registry's YAML.

Every mistake in a file is one line: the file, the field, what is wrong and what would be right.
"""

from __future__ import annotations

import json
from collections.abc import Hashable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from nbutils import paths
from nbutils.errors import DataError, UnknownId, did_you_mean
from nbutils.specs import Block, BufferAnswers, Configuration, Device, Format, Model, NamedRun, Runtimes, Source, Suite

__all__ = [
    "CACHE_TYPES",
    "check_data",
    "device_ids",
    "kept_compute_buffer",
    "kept_compute_buffers",
    "load_answers",
    "load_cache_type",
    "load_configuration",
    "load_device",
    "load_format",
    "load_format_of",
    "load_formats",
    "load_model",
    "load_run",
    "load_runtimes",
    "load_suite",
    "model_ids",
    "run_ids",
    "suite_ids",
    "write_answers",
]

_T = TypeVar("_T", bound=BaseModel)


class _NoRepeats(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # the parser in C is ten times as fast
    """YAML keeps the last of two equal keys in silence; a registry must not."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key.value, str):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a plain word", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def problems_of(error: ValidationError) -> list[str]:
    """Pydantic's complaints as ``field: what is wrong (got value)``, one line each."""
    lines = []
    items = error.errors()
    for item in items:
        # pydantic counts a broken item as missing; the item's own line says what is wrong.
        if item["type"] == "too_short" and any(len(o["loc"]) > len(n) and o["loc"][: len(n)] == n for n in [item["loc"]] for o in items):
            continue
        place = ".".join(str(part) for part in item["loc"]) or "file"
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "missing":
            message = "is missing; add it"
        elif item["type"] == "extra_forbidden":
            message = "no such field; data/README.md lists them"
        elif item["type"] not in ("value_error",):
            message = f"{message} (got {str(item['input'])[:60]!r})"
        lines.append(f"{place}: {message}")
    return lines


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        loaded = yaml.load(path.read_text(encoding="utf-8"), Loader=_NoRepeats)  # noqa: S506 - a SafeLoader
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{_short(path)}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise DataError(f"{_short(path)}{where}: not valid YAML: {getattr(error, 'problem', error)}") from None
    except ValueError as error:  # a date that no calendar has
        raise DataError(f"{_short(path)}: not valid YAML: {error}") from None
    if not isinstance(loaded, dict):
        raise DataError(f"{_short(path)}: holds {type(loaded).__name__}, expected a mapping of fields")
    return loaded


def _short(path: Path) -> str:
    return f"data/{path.relative_to(paths.data_dir()).as_posix()}" if path.is_relative_to(paths.data_dir()) else path.name


def _parse(kind: type[_T], fields: dict[str, Any], place: str) -> _T:
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        lines = problems_of(error)
        more = f" (and {len(lines) - 1} more; 'nbutils check-data' lists them)" if len(lines) > 1 else ""
        raise DataError(f"{place}: {lines[0]}{more}") from error


def _file(folder: str, wanted: str, what: str) -> Path:
    known = _ids(folder)
    if wanted not in known:
        raise UnknownId(f"no {what} {wanted!r} in data/{folder}{did_you_mean(wanted, known)}")
    return paths.data_dir() / folder / f"{wanted}.yaml"


def _ids(folder: str) -> list[str]:
    return sorted(p.stem for p in (paths.data_dir() / folder).glob("*.yaml"))


def _load(kind: type[_T], folder: str, wanted: str, what: str) -> _T:
    path = _file(folder, wanted, what)
    return _load_file(kind, path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1024)
def _load_file(kind: type[_T], path: Path, _mtime_ns: int) -> _T:
    value = _parse(kind, _read_yaml(path), _short(path))
    if value.id != path.stem:  # type: ignore[attr-defined]
        raise DataError(f"{_short(path)}: id is {value.id!r}; make it {path.stem!r}, the name of the file")  # type: ignore[attr-defined]
    return value


def device_ids() -> list[str]:
    return _ids("devices")


def model_ids() -> list[str]:
    return _ids("models")


def suite_ids() -> list[str]:
    return _ids("suites")


def run_ids() -> list[str]:
    return _ids("runs")


def load_device(device_id: str) -> Device:
    return _load(Device, "devices", device_id, "device")


def load_configuration(device: Device, configuration_id: str = "") -> Configuration:
    """One configuration of a device; the largest when no name is given."""
    try:
        return device.configuration(configuration_id)
    except KeyError:
        known = [c.id for c in device.configurations]
        raise UnknownId(f"{device.id} has no configuration {configuration_id!r}{did_you_mean(configuration_id, known)}") from None


def load_model(model_id: str) -> Model:
    return _load(Model, "models", model_id, "model")


def load_answers(model_id: str) -> BufferAnswers | None:
    """What llama.cpp said of a model's compute buffers; ``None`` where nobody asked."""
    path = paths.data_dir() / "buffers" / f"{model_id}.yaml"
    return _load_file(BufferAnswers, path, path.stat().st_mtime_ns) if path.is_file() else None


def write_answers(answers: BufferAnswers) -> Path:
    """Keep llama.cpp's answers in ``data/buffers``; the file appears by rename."""
    path = paths.data_dir() / "buffers" / f"{answers.id}.yaml"
    fields = answers.model_dump(mode="json")
    table = fields.pop("compute_bytes")
    lines = ["# Written by 'nbutils buffers': compute buffers in bytes that llama.cpp named, as pairs of context and bytes."]
    lines += [f"{name}: {json.dumps(value)}" for name, value in fields.items()]
    lines.append("compute_bytes:")
    for kv_type, pairs in table.items():
        lines += [f"  {kv_type}:", *(f"    - [{n_ctx}, {n_bytes}]" for n_ctx, n_bytes in pairs)]
    paths.write_text(path, "\n".join(lines) + "\n")
    return path


def kept_compute_buffers(model_id: str, kv_type: str) -> tuple[tuple[int, int], ...]:
    """Pairs of context and bytes of the compute buffer, from ``data/buffers``; empty where nobody asked."""
    found = load_answers(model_id)
    return () if found is None else found.compute_bytes.get(kv_type, ())


def kept_compute_buffer(model_id: str, n_ctx: int, kv_type: str) -> int | None:
    """Bytes of the compute buffer at exactly this context, padded to 256 as llama.cpp does; ``None`` where nobody asked."""
    return dict(kept_compute_buffers(model_id, kv_type)).get(-(-n_ctx // 256) * 256)


#: Cache types by engine, and the tensor type each is stored in.
CACHE_TYPES = {
    "llama.cpp": {"f16": "F16", "q8_0": "Q8_0", "q4_0": "Q4_0"},
    "vllm": {"f16": "F16", "fp8": "F8_E4M3"},
    "mlx": {"f16": "F16", "q8": "MLX8", "q4": "MLX4"},
}


def load_cache_type(engine: str, kv_type: str) -> Block:
    """The blocks of a cache type; ``UnknownId`` names those that the engine has."""
    types = CACHE_TYPES[engine]
    if kv_type not in types:
        raise UnknownId(f"{engine} has no cache type {kv_type!r}; it has {', '.join(types)}")
    return next(iter(load_formats().values())).block(types[kv_type])


def load_suite(suite_id: str) -> Suite:
    return _load(Suite, "suites", suite_id, "suite")


def load_run(run_id: str) -> NamedRun:
    """A named set of committed records: what a published chapter shows."""
    return _load(NamedRun, "runs", run_id, "run")


def load_runtimes() -> Runtimes:
    """What backends and systems take for themselves."""
    path = paths.data_dir() / "runtimes.yaml"
    try:
        return _load_runtimes(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise DataError(f"{_short(path)}: cannot be read: {error.strerror}; restore it") from None


@lru_cache(maxsize=8)
def _load_runtimes(path: Path, _mtime_ns: int) -> Runtimes:
    return _parse(Runtimes, _read_yaml(path), _short(path))


def load_formats() -> dict[str, Format]:
    """Every format, with the block sizes of its tensor types."""
    path = paths.data_dir() / "formats.yaml"
    try:
        return _load_formats(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise DataError(f"{_short(path)}: cannot be read: {error.strerror}; restore it") from None


@lru_cache(maxsize=8)
def _load_formats(path: Path, _mtime_ns: int) -> dict[str, Format]:
    fields = _read_yaml(path)
    place = _short(path)
    sources = {key: _parse(Source, value, f"{place}: sources.{key}") for key, value in fields.get("sources", {}).items()}
    blocks, formats = fields.get("blocks", {}), {}
    for format_id, entry in fields.get("formats", {}).items():
        if not isinstance(entry, dict):
            raise DataError(f"{place}: formats.{format_id}: expected a mapping of fields")
        fmt = _parse(Format, {"id": format_id, "blocks": blocks, **entry}, f"{place}: formats.{format_id}")
        for what, source in [
            (f"formats.{format_id}", fmt.source),
            (f"formats.{format_id}", fmt.arithmetic_source),
            *((f"blocks.{k}", b.source) for k, b in fmt.blocks.items()),
        ]:
            if source not in sources:
                raise DataError(f"{place}: {what}: source {source!r} is not listed under 'sources'")
        if missing := {fmt.base, fmt.more} - fmt.blocks.keys():
            raise DataError(f"{place}: formats.{format_id}: tensor type {sorted(missing)[0]!r} is not under 'blocks'")
        formats[format_id] = fmt
    return formats


def load_format(format_id: str) -> Format:
    formats = load_formats()
    if format_id not in formats:
        hint = did_you_mean(format_id.upper(), formats)
        raise UnknownId(f"no format {format_id!r} in data/formats.yaml{hint}")
    return formats[format_id]


def load_format_of(model: Model, format_id: str) -> Format:
    """A format that ``model`` is published in; ``UnknownId`` for one it is not."""
    fmt = load_format(format_id)
    if format_id not in model.formats:
        raise UnknownId(f"{model.id} is not published in {format_id}; it is in {', '.join(model.formats)}")
    return fmt


def check_data() -> list[str]:
    """Every problem in the registry, one line each; empty when all is well."""
    problems: list[str] = []
    kinds: list[tuple[type[Any], str]] = [
        (Device, "devices"),
        (Model, "models"),
        (BufferAnswers, "buffers"),
        (Suite, "suites"),
        (NamedRun, "runs"),
    ]
    for kind, folder in kinds:
        for path in sorted((paths.data_dir() / folder).glob("*")):
            problems += _problems_in(kind, path)
    try:
        load_runtimes()
    except DataError as error:
        problems.append(str(error))
    try:
        formats = load_formats()
    except DataError as error:
        return [*problems, str(error)]
    for model_id in model_ids():
        try:
            named = load_model(model_id).formats
        except DataError:
            continue
        problems += [f"data/models/{model_id}.yaml: formats: no format {f!r} in data/formats.yaml" for f in named if f not in formats]
    return problems


def _problems_in(kind: type[Any], path: Path) -> list[str]:
    place = _short(path)
    if path.suffix != ".yaml":
        return [f"{place}: not a .yaml file; rename or remove it"]
    try:
        value = kind.model_validate(_read_yaml(path))
    except DataError as error:
        return [str(error)]
    except ValidationError as error:
        return [f"{place}: {line}" for line in problems_of(error)]
    return [] if value.id == path.stem else [f"{place}: id is {value.id!r}; make it {path.stem!r}, the name of the file"]
