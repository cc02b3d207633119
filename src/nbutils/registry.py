"""``data/`` in: devices, models, formats, suites and named runs. The only reader of the registry's YAML.

Every mistake in a file is one line: the file, the field, what is wrong and what would be right.
"""

from __future__ import annotations

import json
from collections.abc import Hashable
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from nbutils import limits, paths
from nbutils.errors import DataError, UnknownId, did_you_mean
from nbutils.specs import (
    Block,
    BufferAnswers,
    Configuration,
    Device,
    Engines,
    Format,
    Market,
    Model,
    NamedRun,
    Pages,
    PublishedRate,
    PublishedSource,
    Runtimes,
    Source,
    Suite,
)
from nbutils.specs_articles import Article, Claim, Reading
from nbutils.specs_calibration import Calibration
from nbutils.specs_sweeps import Sweep
from nbutils.tensors import variant

__all__ = [
    "CACHE_TYPES",
    "article_ids",
    "check_data",
    "device_ids",
    "kept_compute_buffer",
    "kept_compute_buffers",
    "load_answers",
    "load_article",
    "load_cache_type",
    "load_calibration",
    "load_configuration",
    "load_device",
    "load_engines",
    "load_format",
    "load_format_of",
    "load_formats",
    "load_market",
    "load_model",
    "load_published",
    "load_run",
    "load_runtimes",
    "load_suite",
    "load_sweep",
    "model_ids",
    "page_ids",
    "published_ids",
    "published_step_bytes",
    "run_ids",
    "suite_ids",
    "sweep_ids",
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


def article_ids() -> list[str]:
    return _ids("articles")


def suite_ids() -> list[str]:
    """Suites of timings; sweeps lie in the same folder."""
    return [name for name in _ids("suites") if not _is_sweep(name)]


def sweep_ids() -> list[str]:
    return [name for name in _ids("suites") if _is_sweep(name)]


def _is_sweep(name: str) -> bool:
    path = paths.data_dir() / "suites" / f"{name}.yaml"
    return _holds_cells(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=256)
def _holds_cells(path: Path, _mtime_ns: int) -> bool:
    try:
        return "cells" in _read_yaml(path)
    except DataError:
        return False  # it has a line of its own


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
    # By the list of the folder: a sweep sees what a page lists and opens, but not that it asked for one file which was not there.
    return _load(BufferAnswers, "buffers", model_id, "answers") if model_id in _ids("buffers") else None


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


def load_article(article_id: str) -> Article:
    """An article with its claims; what they name in the registry is there. ``DataError`` names the claim that is wrong."""
    article = _load(Article, "articles", article_id, "article")
    if problems := _unknown_names(article):
        raise DataError(problems[0])
    return article


def _unknown_names(article: Article) -> list[str]:
    """Readings that name a device, configuration, model or format which the registry does not have."""
    problems = []
    for claim in article.claims:
        for name in claim.devices:
            if name not in device_ids():
                hint = did_you_mean(name, device_ids())
                problems.append(f"data/articles/{article.id}.yaml: claims.{claim.id}.devices: no device {name!r} in the registry{hint}")
        for number, reading in enumerate(claim.readings):
            place = f"data/articles/{article.id}.yaml: claims.{claim.id}.readings.{number}"
            problems += [f"{place}: {problem}" for problem in _unknown_in(claim, reading)]
    return problems


def _unknown_in(claim: Claim, reading: Reading) -> list[str]:
    problems = []
    for field, known in (("device", device_ids()), ("model", model_ids()), ("format", list(load_formats()))):
        name = getattr(reading, field)
        if name and name not in known:
            problems.append(f"{field}: no {field} {name!r} in the registry{did_you_mean(name, known)}")
    if reading.configuration and not problems:
        try:
            load_configuration(load_device(reading.device), reading.configuration)
        except UnknownId as error:
            problems.append(f"configuration: {error}")
    return problems + (_unknown_in(claim, reading.over) if reading.over else [])


def load_suite(suite_id: str) -> Suite:
    if suite_id in _ids("suites") and _is_sweep(suite_id):
        raise UnknownId(f"{suite_id!r} is a sweep: 'nbutils sweep {suite_id}' runs it; suites of timings: {', '.join(suite_ids())}")
    return _load(Suite, "suites", suite_id, "suite")


def load_sweep(sweep_id: str) -> Sweep:
    """A sweep, whose devices are in the registry."""
    known = sweep_ids()
    if sweep_id not in known:
        what = "is a suite of timings, for 'nbutils measure --suite'; sweeps" if sweep_id in _ids("suites") else "is no sweep of data/suites"
        hint = f": {', '.join(known)}" if sweep_id in _ids("suites") else did_you_mean(sweep_id, known)
        raise UnknownId(f"{sweep_id!r} {what}{hint}")
    sweep = _load(Sweep, "suites", sweep_id, "sweep")
    if problems := _unknown_machines(sweep):
        raise DataError(problems[0])
    return sweep


def _unknown_machines(sweep: Sweep) -> list[str]:
    known, place = device_ids(), f"data/suites/{sweep.id}.yaml: machines"
    return [f"{place}: no device {name!r} in the registry{did_you_mean(name, known)}" for name in sweep.machines if name not in known]


def load_run(run_id: str) -> NamedRun:
    """A named set of committed records: what a published chapter shows."""
    return _load(NamedRun, "runs", run_id, "run")


def published_ids() -> list[str]:
    return _ids("published")


def load_published() -> tuple[PublishedSource, ...]:
    """What others measured and printed, a source each, in the order of their names."""
    return tuple(_load(PublishedSource, "published", wanted, "source") for wanted in published_ids())


#: Whose cache types each engine has.
_CACHES = {
    "llama.cpp": "llama.cpp",
    "ollama": "llama.cpp",
    "calm": "llama.cpp",
    "mlx": "mlx",
    "vllm": "vllm",
    "sglang": "vllm",
    "tensorrt-llm": "vllm",
}


def published_step_bytes(rate: PublishedRate) -> float:
    """Bytes that a decode step of a published rate reads: the weights its sequences need, and K, V and state of each at its depth.

    By the shape and the format of the registry; the weights, or all of it, by what the source prints where the registry has neither.
    """
    cache = load_cache_type(_CACHES[rate.engine], rate.kv_type)
    if rate.model is None:
        assert rate.weight_gb_read is not None
        assert rate.kv_bytes_per_token is not None
        return rate.weight_gb_read * 1e9 + rate.batch_size * rate.depth * rate.kv_bytes_per_token * cache.bytes / cache.elements / 2
    model = load_model(rate.model)
    if rate.weight_gb_read is None:
        return limits.decode_step_bytes(variant(model, load_format(rate.format)), depth=rate.depth, batch_size=rate.batch_size, cache=cache)
    kept = limits.kv_bytes_read(model.shape, rate.depth, cache) + limits.recurrent_state_bytes(model.shape)
    return rate.weight_gb_read * 1e9 + rate.batch_size * kept


def load_runtimes() -> Runtimes:
    """What backends and systems take for themselves."""
    return _load_single(Runtimes, "runtimes.yaml")


def load_market() -> Market:
    """Prices after the launch, rents, and what can be had."""
    return _load_single(Market, "market.yaml")


def load_calibration() -> Calibration:
    """What was fitted to published speeds."""
    return _load_single(Calibration, "calibration.yaml")


def load_engines() -> Engines:
    """Which engine runs on which kind of machine."""
    return _load_single(Engines, "engines.yaml")


def page_ids() -> tuple[str, ...]:
    """Devices with a page of their own, in the order of the book."""
    return _load_single(Pages, "pages.yaml").devices


def _load_single(kind: type[_T], name: str) -> _T:
    path = paths.data_dir() / name
    try:
        return _parse_single(kind, path, path.stat().st_mtime_ns)
    except OSError as error:
        raise DataError(f"{_short(path)}: cannot be read: {error.strerror}; restore it") from None


@lru_cache(maxsize=16)
def _parse_single(kind: type[_T], path: Path, _mtime_ns: int) -> _T:
    return _parse(kind, _read_yaml(path), _short(path))


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
        (Article, "articles"),
        (PublishedSource, "published"),
    ]
    for kind, folder in kinds:
        for path in sorted((paths.data_dir() / folder).glob("*")):
            problems += _problems_in(Sweep if folder == "suites" and path.suffix == ".yaml" and _is_sweep(path.stem) else kind, path)
    for load in (load_runtimes, load_engines, load_calibration):
        try:
            load()
        except DataError as error:
            problems += _lines_of(error)
    try:
        formats = load_formats()
    except DataError as error:
        return [*problems, str(error)]
    for sweep_id in sweep_ids():
        try:
            problems += _unknown_machines(_load(Sweep, "suites", sweep_id, "sweep"))
        except DataError:
            continue  # said above
    for article_id in article_ids():
        try:
            problems += _unknown_names(_load(Article, "articles", article_id, "article"))
        except DataError:
            continue  # said above
    for model_id in model_ids():
        try:
            named = load_model(model_id).formats
        except DataError:
            continue
        problems += [f"data/models/{model_id}.yaml: formats: no format {f!r} in data/formats.yaml" for f in named if f not in formats]
    return [*problems, *_page_problems(), *_market_problems(date.today()), *_published_problems(date.today())]


def _lines_of(error: DataError) -> list[str]:
    """All that is wrong with a single file, where its error names the first of it."""
    place, cause = str(error).partition(":")[0], error.__cause__
    return [f"{place}: {line}" for line in problems_of(cause)] if isinstance(cause, ValidationError) else [str(error)]


def _page_problems() -> list[str]:
    try:
        wanted = page_ids()
    except DataError as error:
        return [str(error)]
    known = device_ids()
    return [f"data/pages.yaml: devices: no device {d!r} in data/devices{did_you_mean(d, known)}" for d in wanted if d not in known]


def _market_problems(today: date) -> list[str]:
    """Devices and configurations that do not exist, and days that have not come, in a market that is whole."""
    try:
        market = load_market()
    except DataError as error:
        return [str(error)]
    problems = []
    entries = [(f"offers.{i}", o.device, o.configuration, o.asked) for i, o in enumerate(market.offers)]
    entries += [(f"rents.{i}", r.device, "", r.asked) for i, r in enumerate(market.rents)]
    entries += [(f"supply.{i}", s.device, s.configuration, s.asked) for i, s in enumerate(market.supply)]
    for part, device_id, configuration_id, asked in [*entries, ("host", "", "", market.host.asked)]:
        place = f"data/market.yaml: {part}"
        if asked > today:
            problems.append(f"{place}.asked: {asked} has not come yet; write the day the source speaks of")
        try:
            if device_id:
                load_configuration(load_device(device_id), configuration_id)
        except UnknownId as error:
            problems.append(f"{place}: {error}")
        except DataError:
            continue  # the device's file has a line of its own
    return problems


def _published_problems(today: date) -> list[str]:
    """What speaks against published rates in files that are whole: names that do not exist, rates that cannot be, rows that stand twice."""
    problems: list[str] = []
    seen: dict[tuple[object, ...], str] = {}
    for source_id in published_ids():
        place = f"data/published/{source_id}.yaml"
        try:
            source = _load(PublishedSource, "published", source_id, "source")
        except DataError:
            continue  # has a line of its own
        if source.seen > today:
            problems.append(f"{place}: seen: {source.seen} has not come yet; write the day the page was read")
        for i, rate in enumerate(source.rows):
            where = f"{place}: rows.{i}"
            if rate.date > today.isoformat():
                problems.append(f"{where}.date: {rate.date} has not come yet; write when it was measured or printed")
            # The same speed twice is no second measurement, whichever page repeats it.
            key = tuple(getattr(rate, name) for name in _SAME_RATE)
            if key in seen:
                problems.append(f"{where}: repeats {seen[key]}; keep the one nearer to who measured")
            seen.setdefault(key, f"{source_id} rows.{i}")
            try:
                problems += [f"{where}{problem}" for problem in _rate_problems(rate)]
            except DataError:
                continue  # a device, model or format that does not load has a line of its own
            except UnknownId as error:
                problems.append(f"{where}: {error}")
    return problems


_SAME_RATE = ("device", "backend", "engine", "model", "model_name", "format", "phase", "n_prompt", "depth", "batch_size", "tok_per_s")


def _rate_problems(rate: PublishedRate) -> list[str]:
    """Whether what a rate names exists, and whether it is above its ceiling without a word of why, or has the word and is not."""
    device = load_device(rate.device)
    configuration = load_configuration(device, rate.configuration)
    if rate.model is not None:
        load_model(rate.model)
    if rate.weight_gb_read is None:
        load_format(rate.format)
    step_bytes = published_step_bytes(rate)
    if rate.phase != "decode":
        return [".above_because: only decode has a ceiling here; leave it out"] if rate.above_because else []
    ceiling = limits.decode_ceiling_tok_per_s(configuration.bandwidth_bytes_per_s, step_bytes, batch_size=rate.batch_size)
    if rate.tok_per_s > ceiling and not rate.above_because:
        because = "mend what is wrong, leave the row out, or say why in 'above_because'"
        return [f".tok_per_s: {rate.tok_per_s:g} is above the ceiling of {ceiling:.4g}; {because}"]
    if rate.tok_per_s <= ceiling and rate.above_because:
        return [f".above_because: {rate.tok_per_s:g} is not above the ceiling of {ceiling:.4g}; use 'note'"]
    return []


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
