"""What to expect of a machine: registry and CSV files in, expected rates with their ranges out, and the frames of the chapter about it.

Every answer says in words what it rests on: which constants, how many rows they come from, and what had to be filled in.
"""

from __future__ import annotations

import math
import re
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from nbutils import limits, paths, predict, registry
from nbutils.errors import NbutilsError, UnknownId, UsageError, did_you_mean
from nbutils.explain import Line
from nbutils.places import Place, family_of
from nbutils.specs import Configuration, Device, Model
from nbutils.specs_calibration import FORMAT_CLASSES, GROUPS, Calibration
from nbutils.tensors import Variant, variant

__all__ = [
    "COLUMNS",
    "GROUP_NAMES",
    "OUTCOMES",
    "PROMPT_TOKENS",
    "Expected",
    "Where",
    "constants_table",
    "errors_table",
    "expected",
    "expected_lines",
    "expected_of",
    "expected_of_stored",
    "expected_or_none",
    "misses_table",
    "naive_and_model",
    "predict_cases",
    "predict_file",
    "predicted_frame",
    "range_words",
    "rate_lines",
    "typed_facts",
    "usual_group",
    "where",
]

Phase = Literal["decode", "prefill"]

#: Columns of a file of cases, and what is added to them.
COLUMNS = (
    "device",
    "bandwidth_gb_per_s",
    "family",
    "backend",
    "engine",
    "phase",
    "model",
    "format",
    "n_layers",
    "weight_gb_read",
    "kv_bytes_per_token",
    "moe",
    "active_params_b",
    "depth",
)
OUTCOMES = ("ceiling_tok_per_s", "expected_tok_per_s", "low_tok_per_s", "high_tok_per_s", "basis")

#: What a family is usually run with, where no device says.
_USUAL_BACKEND = {
    "nvidia-discrete": "cuda",
    "nvidia-hbm": "cuda",
    "nvidia-unified": "cuda",
    "apple": "metal",
    "amd-discrete": "rocm",
    "amd-unified": "vulkan",
    "intel": "sycl",
    "qualcomm": "cpu",
    "cpu": "cpu",
}
_RUNS_ON = {"cuda": "nvidia", "metal": "apple", "rocm": "amd", "sycl": "intel"}
_SAID = {"cuda": "CUDA", "metal": "Metal", "rocm": "ROCm", "vulkan": "Vulkan", "sycl": "SYCL", "cpu": "CPU"}
_FAMILY_ALIASES = {
    **dict.fromkeys(("nvidia", "nvidia-dgpu", "nvidia-gpu", "geforce"), "nvidia-discrete"),
    **dict.fromkeys(("nvidia-datacenter", "nvidia-data-centre"), "nvidia-hbm"),
    **dict.fromkeys(("apple-silicon", "apple-unified", "apple-metal", "mac"), "apple"),
    **dict.fromkeys(("amd", "amd-dgpu", "amd-gpu", "radeon"), "amd-discrete"),
    **dict.fromkeys(("amd-apu", "strix-halo"), "amd-unified"),
    **dict.fromkeys(("intel-arc", "intel-discrete", "intel-gpu"), "intel"),
    **dict.fromkeys(("x86", "intel-cpu", "amd-cpu"), "cpu"),
    "snapdragon": "qualcomm",
}
_BACKEND_ALIASES = {"hip": "rocm", "oneapi": "sycl", "mps": "metal"}
_ENGINE_ALIASES = {"llamacpp": "llama.cpp", "llamabench": "llama.cpp", "llamaserver": "llama.cpp", "mlx": "mlx", "mlxlm": "mlx"}
_FP16 = ("fp16", "bf16", "fp32")
_ANY_TYPE = ("fp32", "fp16/any", "bf16", "fp8/any", "int8", "fp4/any")
#: FLOP per byte of nominal bandwidth that stands for a processor's peak: no device of the registry is one. A guess; the range says so.
_CPU_FLOP_PER_BYTE = {"cpu": 60.0, "apple-cpu": 6.0}
#: Added to the spread where something was estimated.
_LAYERS_SPREAD, _KV_SPREAD, _CPU_SPREAD = 0.1, 0.15, 0.5
#: Names of models whose layers mostly keep a state, as far as rows say them.
_HYBRID_NAMES = (
    r"qwen[-_ ]?3\.[5-9]",
    r"qwen[-_ ]?3[-_ ]?(?:coder[-_ ]?)?next",
    r"nemotron[-_ ]?(?:h|3|nano|super)",
    r"granite[-_ ]?4.*-h",
    "jamba",
    "mamba",
    "lfm2",
    r"kimi[-_ ]?linear",
)
#: Two nominal bandwidths are one machine's up to this share: makers round.
_SAME_BANDWIDTH = 0.006
#: From here on it is another chip that goes by the same name.
_SAME_CHIP = 0.03
#: From here the cache is a part of what a token reads that counts.
_DEEP_TOKENS = 4000
#: Tokens of a prompt, for the head that only the last one needs.
PROMPT_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """A rate in tok/s with its 90 % range, the ceiling that none of them passes (``None`` where unknown), and what it rests on."""

    ceiling_tok_per_s: float | None
    expected_tok_per_s: float
    low_tok_per_s: float
    high_tok_per_s: float
    basis: str


@dataclass(frozen=True, slots=True)
class Where:
    """A machine and an engine as numbers."""

    group: int
    bandwidth: float
    share: float
    layer: float
    known: bool
    ollama: bool
    engine: str
    peak: float
    #: The best peak of each kind of number; what a format may use of it is the model's word.
    device: Device | None
    configuration: Configuration | None
    #: FLOP/s that no machine of the family with this bandwidth passes; infinite where nothing is known.
    most: float
    peak_spread: float
    #: What the constants rest on, for decode and for prefill.
    notes: tuple[str, str]
    peak_note: str


@dataclass(frozen=True, slots=True)
class _What:
    """A model in a format as numbers; ``variant`` is the registry's."""

    model_id: str
    weight: float
    n_layers: float
    kv_per_token: float
    moe: bool
    hybrid: bool
    latent: bool
    format_index: int
    variant: Variant
    note: str


class _Known:
    """The registry as rows ask for it, read once: a file of many rows must not ask the disk for each."""

    def __init__(self) -> None:
        self.calibration = registry.load_calibration()
        self.device_ids = registry.device_ids()
        self.model_ids = registry.model_ids()
        self.formats = registry.load_formats()
        self._devices: dict[str, Device] = {}
        self._models: dict[tuple[str, str, str], _What] = {}
        self._typical: dict[str, tuple[tuple[str, float, float, float], ...]] = {}
        self._middle: dict[str, tuple[float, float]] = {}
        self._most: dict[tuple[str, tuple[str, ...]], float] = {}
        self._flop: dict[tuple[str, str, int], tuple[float, float]] = {}
        self._trend: dict[bool, tuple[float, float]] = {}

    def device(self, device_id: str) -> Device:
        if device_id not in self._devices:
            self._devices[device_id] = registry.load_device(device_id)
        return self._devices[device_id]

    def model(self, model_id: str, format_said: str, engine: str) -> _What:
        """A model of the registry, in any casing. ``UsageError`` for a model or a format it does not have."""
        model_id = _plain(model_id) if _plain(model_id) in self.model_ids else model_id
        key = (model_id, format_said, engine)
        if key not in self._models:
            self._models[key] = _what(self, *key)
        return self._models[key]

    def most(self, device: Device, configuration: Configuration | None, dtypes: tuple[str, ...]) -> float:
        """A device's best dense peak in any of these types, in FLOP/s; infinite where none is known."""
        key = (device.id + (configuration.id if configuration else ""), dtypes)
        if key not in self._most:
            peak = device.peak(*dtypes, configuration=configuration)
            self._most[key] = peak.base("compute") if peak else math.inf
        return self._most[key]

    def flop(self, what: _What, depth: int) -> tuple[float, float]:
        """FLOP of a prompt's token at a depth in all, and what of it is for attention to that depth."""
        stored = what.variant
        key = (what.model_id, stored.format, depth)
        if key not in self._flop:
            depths = (max(0, depth - PROMPT_TOKENS // 2), 0)
            flop, shallow = (limits.prefill_flop(stored, n_tokens=PROMPT_TOKENS, depth=d) / PROMPT_TOKENS for d in depths)
            self._flop[key] = flop, flop - shallow
        return self._flop[key]

    def typical(self, family: str) -> tuple[tuple[str, float, float, float], ...]:
        """Of each device of a family: its name, its bandwidth in GB/s, its FP16 FLOP per byte, and its best in any type."""
        if family not in self._typical:
            self._typical[family] = _flop_per_byte([self.device(device_id) for device_id in self.device_ids], family)
        return self._typical[family]

    def middle(self, family: str) -> tuple[float, float]:
        """The middle of a family's FP16 FLOP per byte, and how far its devices lie from it, as a logarithm."""
        if family not in self._middle:
            logs = [math.log(ratio) for _, _, ratio, _ in self.typical(family)]
            self._middle[family] = math.exp(statistics.median(logs)), statistics.pstdev(logs) if len(logs) > 1 else 0.5
        return self._middle[family]

    def trend(self) -> dict[bool, tuple[float, float]]:
        if not self._trend:
            self._trend = _layers_trend()
        return self._trend


# ── one machine, one model ────────────────────────────────────────────────────────────────────────


def _plain(text: str) -> str:
    return re.sub(r"[\s_]+", "-", text.strip().lower())


def _backend(said: str) -> str:
    """A backend in any casing; of two with a slash the first that is one."""
    if not said.strip():
        return ""
    for part in _plain(said).split("/"):
        if (name := _BACKEND_ALIASES.get(part, part)) in predict.BACKENDS:
            return name
    raise UsageError(f"backend is {said.strip()!r}{did_you_mean(said.strip(), _SAID.values())}")


def _engine(said: str) -> str:
    if not said.strip():
        return ""
    name = _plain(said)
    name = _ENGINE_ALIASES.get(re.sub(r"[^a-z]", "", name), name)
    if name not in predict.ENGINES:
        raise UsageError(f"engine is {said.strip()!r}{did_you_mean(name, predict.ENGINES)}")
    return name


def _usual_engine(known: _Known, format_said: str) -> str:
    """Which engine opens a format; llama.cpp where it does not say."""
    found = known.formats.get(format_said.upper().replace("-", "_"))
    if found is not None:
        return {"gguf": "llama.cpp", "safetensors": "vllm", "mlx": "mlx"}[found.container]
    return "mlx" if "mlx" in format_said.lower() else "llama.cpp"


def _number(name: str, said: str, *, zero: bool = False) -> float | None:
    """A number of a cell; ``None`` where it is blank. ``UsageError`` for what is none, or below (or at) zero."""
    if not said.strip():
        return None
    try:
        value = float(said)
    except ValueError:
        raise UsageError(f"{name} is {said.strip()[:40]!r}; it must be a number") from None
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise UsageError(f"{name} is {said.strip()[:40]}; it must be {'0 or more' if zero else 'above 0'}")
    return value


def _where(
    known: _Known,
    device_said: str,
    bandwidth_said: str,
    family_said: str,
    backend_said: str,
    engine_said: str,
    format_said: str,
    typed_peak: float | None = None,
) -> Where:
    """A machine from the words of a row. ``UsageError`` says what is wrong with them."""
    found = known.calibration
    notes = []
    gb_per_s = _number("bandwidth_gb_per_s", bandwidth_said)
    device_id, label = device_said.strip(), ""
    if _plain(device_id) in known.device_ids:
        device_id = _plain(device_id)
    if device_id and device_id not in known.device_ids:
        if gb_per_s is None or not family_said.strip():
            raise UnknownId(f"no device {device_id!r} in data/devices{did_you_mean(device_id, known.device_ids)}")
        label, device_id = device_id, ""
        notes.append(f"no device {label[:60]!r} in the registry, so by bandwidth and family")
    device = known.device(device_id) if device_id else None
    configuration = device.configuration() if device else None
    family: str
    if device is not None and configuration is not None:
        family = device.family
        if gb_per_s is not None:
            same = [c for c in device.configurations if abs(c.bandwidth_bytes_per_s / gb_per_s / 1e9 - 1) < _SAME_BANDWIDTH]
            configuration = same[0] if same else configuration
        gb_per_s = gb_per_s or configuration.bandwidth_bytes_per_s / 1e9
    else:
        if gb_per_s is None:
            raise UsageError("neither device nor bandwidth_gb_per_s; give one of them")
        family = _family(family_said, backend_said)
    backend = _backend(backend_said)
    if not backend:
        backend = device.backend if device else _USUAL_BACKEND[family]
        notes.append(_backend_note(backend))
    engine = _engine(engine_said)
    if not engine:
        engine = _usual_engine(known, format_said)
        notes.append(_engine_note(engine))
    if backend == "cpu" and device is not None and device.memory_kind == "discrete" and not bandwidth_said.strip():
        raise UsageError("a processor does not read the card's memory; give its bandwidth_gb_per_s and family cpu")
    _require_runs(family, backend, engine)
    group = predict.group_of(family, backend, engine, gb_per_s)
    named = label or " ".join((device.name, *device.chip_names) if device else ())
    share, layer, measured, note = _factors(found, group, family, gb_per_s, device_id, named)
    if engine == "vllm" and group != "nvidia-unified-vllm":
        measured = False
        notes.append(_VLLM_NOTE)
    _, by_prefill = _group_words(found, group)
    typed = None if typed_peak is None else (typed_peak, typed_peak, 0.0, "")
    peak, most, peak_spread, peak_note = typed or _peaks(known, device, configuration, group, family, gb_per_s)
    return Where(
        group=GROUPS.index(group),
        bandwidth=1e9 * gb_per_s,
        share=share,
        layer=layer,
        known=measured,
        ollama=engine == "ollama",
        engine=engine,
        peak=peak,
        device=device,
        configuration=configuration,
        most=most,
        peak_spread=peak_spread,
        notes=("; ".join([note, *notes]), "; ".join([by_prefill, *notes, *([peak_note] if peak_note else [])])),
        peak_note=peak_note,
    )


def _require_runs(family: str, backend: str, engine: str) -> None:
    """``UsageError`` for a backend or an engine that is not made for such machines."""
    if (vendor := _RUNS_ON.get(backend)) and not family.startswith(vendor):
        raise UsageError(f"backend {_SAID[backend]} does not run on {family}; {_SAID[_USUAL_BACKEND[family]]} does")
    if engine == "mlx" and family != "apple":
        raise UsageError(f"engine mlx is for Apple machines, not for {family}; llama.cpp runs there")


_VLLM_NOTE = "hardly a rate of vllm there, taken as other programs do"


def _backend_note(backend: str) -> str:
    return f"backend not given, {_SAID[backend]} is usual there"


def _engine_note(engine: str) -> str:
    return f"engine not given, {engine} is usual for it"


def _group_words(found: Calibration, group: str) -> tuple[str, str]:
    """What a group's constants rest on, of decode and of prefill."""
    both = (found.decode[group], found.prefill[group])  # type: ignore[index]
    decode, prefill = (f"{group}: " + (f"assumed, {g.note}" if g.assumed else _counted(g.rows, g.devices)) for g in both)
    return decode, prefill


def _counted(rows: int, devices: int) -> str:
    return f"{rows} {'rate' if rows == 1 else 'rates'} of {devices} {'machine' if devices == 1 else 'machines'}"


def _family(said: str, backend_said: str) -> str:
    name = _FAMILY_ALIASES.get(_plain(said), _plain(said))
    if not name:
        by_backend = {"cuda": "nvidia-discrete", "metal": "apple", "sycl": "intel", "cpu": "cpu"}
        if (backend := _backend(backend_said)) in by_backend:
            return by_backend[backend]
        raise UsageError(f"family is missing beside bandwidth_gb_per_s; give one of {', '.join(predict.FAMILIES)}")
    if name not in predict.FAMILIES:
        raise UsageError(f"family is {said.strip()!r}{did_you_mean(name, predict.FAMILIES)}")
    return name


def _factors(found: Calibration, group: str, family: str, gb_per_s: float, device_id: str, named: str) -> tuple[float, float, bool, str]:
    """Factors of a machine: its own, those of the machines with its family and bandwidth, those of its chip's age, or none; and words."""
    constants = found.decode[group]  # type: ignore[index]
    words, _ = _group_words(found, group)
    own = [d for d in found.devices if (device_id and d.device == device_id) or (not device_id and named and d.name == named)]
    if constants.assumed or group in ("cpu", "apple-cpu"):
        # What was assumed for stacked memory comes from chips of about the middle year; of a later one it is too long.
        layer = predict.age_factors(found, predict.chip_year(named))[1] if group == "nvidia-hbm" else 1.0
        return 1.0, min(1.0, layer), False, words
    if own:
        same = abs(own[0].bandwidth_gb_per_s / gb_per_s - 1) < _SAME_CHIP
        here = group in own[0].groups and same
        how = "among them" if here else "under another program" if same else "with another bandwidth"
        return own[0].share, own[0].layer, here, f"{words}, this one {how}"
    year = predict.chip_year(named)
    if not device_id:
        alike = [d for d in found.devices if d.family == family and abs(d.bandwidth_gb_per_s / gb_per_s - 1) < _SAME_BANDWIDTH]
        alike = [d for d in alike if year in (None, predict.chip_year(d.name))]
        if alike:
            share, layer = (float(np.exp(np.mean(np.log([getattr(d, name) for d in alike])))) for name in ("share", "layer"))
            return share, layer, False, f"{words}; with that bandwidth {', '.join(d.name for d in alike)}"
    share, layer = predict.age_factors(found, year)
    return share, layer, False, f"{words}, none of this one" + (f", a chip of {int(year)}" if year else "")


def _peaks(
    known: _Known, device: Device | None, configuration: Configuration | None, group: str, family: str, gb_per_s: float
) -> tuple[float, float, float, str]:
    """The dense FP16 peak, the most that any number type gives, how much is unsure of the first (as a logarithm), and words."""
    own = device.peak(*_FP16, configuration=configuration) if device and group not in _CPU_FLOP_PER_BYTE else None
    if own is not None:
        return own.base("compute"), math.inf, 0.0, ""
    peak, most, spread, words = _peaks_per_byte(known, group, family, gb_per_s)
    return peak * gb_per_s * 1e9, most * gb_per_s * 1e9, spread, words


def _peaks_per_byte(known: _Known, group: str, family: str, gb_per_s: float) -> tuple[float, float, float, str]:
    """The same in FLOP per byte of bandwidth, where no source says the peak."""
    if group in _CPU_FLOP_PER_BYTE:
        guess = _CPU_FLOP_PER_BYTE[group]
        return guess, math.inf, _CPU_SPREAD, f"no peak known, {guess:g} FLOP per byte of bandwidth assumed"
    typical = known.typical(family)
    if not typical:
        return 50.0, math.inf, 1.0, "no peak known, 50 FLOP per byte of bandwidth assumed"
    most = max(best for *_, best in typical)
    same = [(name, ratio) for name, bandwidth, ratio, _ in typical if abs(bandwidth / gb_per_s - 1) < _SAME_BANDWIDTH]
    if same:
        middle = math.prod(ratio for _, ratio in same) ** (1 / len(same))
        return middle, most, 0.1, f"peak as of {', '.join(name for name, _ in same)}, which has that bandwidth"
    middle, spread = known.middle(family)
    return middle, most, spread, f"peak not known, {middle:.0f} FLOP per byte of bandwidth are typical of {family}"


def _flop_per_byte(devices: Sequence[Device], family: str) -> tuple[tuple[str, float, float, float], ...]:
    found = []
    for device in devices:
        configuration = device.configuration()
        gb_per_s = configuration.bandwidth_bytes_per_s / 1e9
        if family_of(device, configuration) != family:
            continue
        peak = device.peak(*_FP16, configuration=configuration)
        best = device.peak(*_ANY_TYPE, configuration=configuration)
        if peak and best:
            per_s = configuration.bandwidth_bytes_per_s
            found.append((device.name, gb_per_s, peak.base("compute") / per_s, best.base("compute") / per_s))
    return tuple(found)


def _what(known: _Known, model_id: str, format_said: str, engine: str) -> _What:
    if model_id not in known.model_ids:
        raise UnknownId(f"no model {model_id!r} in data/models{did_you_mean(model_id, known.model_ids)}")
    model = registry.load_model(model_id)
    note = ""
    if format_said:
        formats = known.formats
        name = format_said if format_said in formats else format_said.upper().replace("-", "_").replace(" ", "_")
        if name not in formats:
            raise UnknownId(f"no format {format_said!r} in data/formats.yaml{did_you_mean(name, formats)}")
        fmt = formats[name]
    else:
        name = _usual_format(model, engine)
        fmt, note = known.formats[name], f"format not given, {name} is usual"
    stored = variant(model, fmt)
    shape = model.shape
    return _What(
        model_id=model_id,
        weight=float(stored.step_weight_bytes + limits.recurrent_state_bytes(shape)),
        n_layers=float(shape.n_layer),
        kv_per_token=float(limits.kv_bytes_per_token(shape)),
        moe=shape.experts is not None,
        hybrid=shape.recurrent is not None,
        latent=shape.latent is not None,
        format_index=FORMAT_CLASSES.index(predict.format_class(name)),
        variant=stored,
        note=note,
    )


def _usual_format(model: Model, engine: str) -> str:
    container = {"mlx": "mlx", "vllm": "safetensors"}.get(engine, "gguf")
    opened = [f for f in model.formats if registry.load_format(f).container == container] or list(model.formats)
    wanted = {"mlx": "MLX_4BIT", "vllm": "FP8"}.get(engine, "Q4_K_M")
    return wanted if wanted in opened else opened[0]


def _layers_trend() -> dict[bool, tuple[float, float]]:
    """How many layers models of a size have, dense ones and mixtures: the trend of the registry, in logarithms of active parameters and layers."""
    found: dict[bool, tuple[float, float]] = {}
    models = [registry.load_model(model_id) for model_id in registry.model_ids()]
    for moe in (False, True):
        some = [m for m in models if (m.shape.experts is not None) == moe]
        sizes = [variant(m, registry.load_format(m.formats[0])).n_active_parameters for m in some]
        slope, level = np.polyfit(np.log(sizes), np.log([m.shape.n_layer for m in some]), 1)
        found[moe] = (float(slope), float(level))
    return found


# ── many cases ────────────────────────────────────────────────────────────────────────────────────


class _Cases:
    """Arrays of all rows, filled by those that are whole; ``problem`` holds the reason of the others."""

    def __init__(self, n: int) -> None:
        self.problem = np.full(n, "", dtype=object)
        self.notes: list[npt.NDArray[np.object_]] = []
        self.group = np.zeros(n, dtype=np.intp)
        self.format = np.full(n, FORMAT_CLASSES.index("4"), dtype=np.intp)
        for name in ("bandwidth", "share", "layer", "peak", "most", "peak_spread", "weight", "kv", "n_layers", "flop", "attention", "ceiling"):
            setattr(self, name, np.ones(n))
        for name in ("known", "ollama", "moe", "hybrid", "latent", "prefill", "named"):
            setattr(self, name, np.zeros(n, dtype=bool))
        self.more = np.zeros(n)

    bandwidth: predict.Floats
    share: predict.Floats
    layer: predict.Floats
    peak: predict.Floats
    most: predict.Floats
    peak_spread: predict.Floats
    weight: predict.Floats
    kv: predict.Floats
    n_layers: predict.Floats
    flop: predict.Floats
    attention: predict.Floats
    ceiling: predict.Floats
    known: predict.Bools
    ollama: predict.Bools
    moe: predict.Bools
    hybrid: predict.Bools
    latent: predict.Bools
    prefill: predict.Bools
    named: predict.Bools


def predict_cases(frame: pd.DataFrame) -> pd.DataFrame:
    """Every row with ceiling, expected rate, range and basis; a row that cannot be answered has its reason in ``basis`` and no figures.

    Columns as in ``COLUMNS``, all of text; one that is missing counts as blank.
    """
    said = pd.DataFrame({name: (frame[name].astype(str) if name in frame else "") for name in COLUMNS}, index=frame.index).fillna("")
    said = said.apply(lambda column: column.str.strip())
    n = len(said)
    cases = _Cases(n)
    phase = said["phase"].str.lower().to_numpy(object)
    cases.prefill = phase == "prefill"
    known = _Known()
    places = _fill_places(known, cases, said)
    _refuse(cases, ~np.isin(phase, ["decode", "prefill", ""]), lambda i: f"phase is {said['phase'].iloc[i][:40]!r}; it is decode or prefill")
    depth = _column(cases, said, "depth", zero=True)
    depth = np.where(np.isnan(depth), 0.0, depth)
    bytes_given, size_given = (said[name].ne("").to_numpy() for name in ("weight_gb_read", "active_params_b"))
    by_numbers = bytes_given | (cases.prefill & size_given)
    cases.named = ~by_numbers
    _fill_models(known, cases, said, places, depth)
    found = known.calibration
    # Numbers may be anything; what overflows is told below.
    with np.errstate(all="ignore"):
        _fill_numbers(known, cases, said, places, by_numbers, depth)
        good = cases.problem == ""
        outcome = {name: np.full(n, np.nan) for name in OUTCOMES[:-1]}
        for prefill in (False, True):
            chosen = good & (cases.prefill == prefill)
            if chosen.any():
                got = _prefill(found, cases, chosen) if prefill else _decode(found, cases, chosen)
                for name, values in zip(OUTCOMES, (got.ceiling, got.expected, got.low, got.high), strict=False):
                    outcome[name][chosen] = np.where(np.isfinite(values), values, np.nan)
    no_rate = good & ~(outcome["low_tok_per_s"] > 0)
    _refuse(cases, no_rate, lambda _: "numbers too large or too small for a rate")
    for values in outcome.values():
        values[no_rate] = np.nan
    good &= ~no_rate
    cases.notes.append(np.where(phase == "", "phase not given, taken as decode", "").astype(object))
    basis = cases.problem.copy()
    words = _joined(cases.notes, n)
    basis[good] = words[good]
    given = frame.drop(columns=[name for name in OUTCOMES if name in frame])
    return given.assign(**{name: "" for name in COLUMNS if name not in frame}, **outcome, basis=basis)


def _joined(notes: Sequence[npt.NDArray[np.object_]], n: int) -> npt.NDArray[np.object_]:
    words = np.full(n, "", dtype=object)
    for note in notes:
        both = (words != "") & (note != "")
        words = words + np.where(both, "; ", "").astype(object) + note
    return words


def _refuse(cases: _Cases, wrong: predict.Bools, reason: Any) -> None:
    for i in np.flatnonzero(wrong & (cases.problem == "")):
        cases.problem[i] = reason(i)


def _column(cases: _Cases, said: pd.DataFrame, name: str, *, zero: bool = False) -> predict.Floats:
    """A column of numbers, nan where it is blank; what is no number is the row's problem."""
    text = said[name]
    values = pd.to_numeric(text.where(text != ""), errors="coerce").to_numpy(float)
    blank = text.eq("").to_numpy()
    wrong = ~blank & ~(np.isfinite(values) & (values >= 0 if zero else values > 0))

    def reason(i: int) -> str:
        try:
            _number(name, text.iloc[i], zero=zero)
        except UsageError as error:
            return str(error)
        return f"{name} is {text.iloc[i][:40]!r}; it must be a plain number"

    _refuse(cases, wrong, reason)
    return np.where(wrong, np.nan, values)


def _fill_places(known: _Known, cases: _Cases, said: pd.DataFrame) -> list[Where | None]:
    keys = list(zip(*(said[name] for name in ("device", "bandwidth_gb_per_s", "family", "backend", "engine", "format")), strict=True))
    answers: dict[tuple[str, ...], Where | str] = {}
    for key in dict.fromkeys(keys):
        try:
            answers[key] = _where(known, *key)
        except NbutilsError as error:
            answers[key] = str(error)
    found = [answers[key] for key in keys]
    places = [None if isinstance(w, str) else w for w in found]
    notes = np.full(len(keys), "", dtype=object)
    whole = [i for i, w in enumerate(places) if w is not None]
    for i, w in enumerate(found):
        if isinstance(w, str):
            cases.problem[i] = w
        else:
            notes[i] = w.notes[int(cases.prefill[i])]
    _put_places(cases, whole, [w for w in places if w is not None])
    cases.notes.append(notes)
    return places


def _put_places(cases: _Cases, rows: Sequence[int], places: Sequence[Where]) -> None:
    for name in ("group", "bandwidth", "share", "layer", "known", "ollama", "peak", "most", "peak_spread"):
        getattr(cases, name)[rows] = [getattr(place, name) for place in places]


def _fill_models(known: _Known, cases: _Cases, said: pd.DataFrame, places: Sequence[Where | None], depth: predict.Floats) -> None:
    """Rows that name a model of the registry."""
    notes = np.full(len(said), "", dtype=object)
    models, formats = said["model"].to_numpy(object), said["format"].to_numpy(object)
    for i in np.flatnonzero(cases.named & (cases.problem == "")):
        place = places[int(i)]
        assert place is not None
        if not models[i]:
            wanted = "active_params_b" if cases.prefill[i] else "weight_gb_read"
            cases.problem[i] = f"neither model and format nor {wanted}; give one of them"
            continue
        try:
            what = known.model(models[i], formats[i], place.engine)
        except NbutilsError as error:
            cases.problem[i] = str(error)
            continue
        notes[i] = what.note
        _put_model(known, cases, int(i), what, place, int(depth[i]))
    cases.notes.append(notes)


def _put_model(known: _Known, cases: _Cases, i: int, what: _What, place: Where, depth: int) -> None:
    cases.weight[i], cases.n_layers[i], cases.format[i] = what.weight, what.n_layers, what.format_index
    cases.moe[i], cases.hybrid[i], cases.latent[i] = what.moe, what.hybrid, what.latent
    if cases.prefill[i]:
        cases.flop[i], cases.attention[i], cases.ceiling[i] = _prefill_of(known, what, place, depth)
    else:
        cases.kv[i] = limits.kv_bytes_read(what.variant.shape, depth)


def _prefill_of(known: _Known, what: _What, place: Where, depth: int) -> tuple[float, float, float]:
    """FLOP of a token in weights and in attention, and the ceiling in tok/s; infinite where no peak is known."""
    stored, most = what.variant, place.most
    flop, attention = known.flop(what, depth)
    if place.device is not None and GROUPS[place.group] not in _CPU_FLOP_PER_BYTE:
        most = known.most(place.device, place.configuration, stored.arithmetic)
    return 2.0 * stored.n_active_parameters, max(0.0, attention), most / flop


def _fill_numbers(
    known: _Known, cases: _Cases, said: pd.DataFrame, places: Sequence[Where | None], by_numbers: predict.Bools, depth: predict.Floats
) -> None:
    """Rows that say bytes and sizes themselves; what they leave out is estimated, and said."""
    weight = _column(cases, said, "weight_gb_read") * 1e9
    active = _column(cases, said, "active_params_b") * 1e9
    layers = _column(cases, said, "n_layers")
    kv = _column(cases, said, "kv_bytes_per_token", zero=True)
    moe_said = said["moe"].str.lower().map({"1": 1, "0": 0, "1.0": 1, "0.0": 0, "true": 1, "false": 0, "yes": 1, "no": 0, "": -1}).fillna(-2)
    moe_said = moe_said.to_numpy(int)
    _refuse(cases, by_numbers & (moe_said == -2), lambda i: f"moe is {said['moe'].iloc[i][:40]!r}; it is 0 or 1")
    rows = by_numbers & (cases.problem == "")
    if not rows.any():
        return
    classes = {text: predict.format_class(text) for text in said["format"].unique()}
    index = said["format"].map({text: FORMAT_CLASSES.index(name) for text, name in classes.items()}).to_numpy(int)
    per_weight = said["format"].map({text: predict.BYTES_PER_WEIGHT[name] for text, name in classes.items()}).to_numpy(float)
    moe = moe_said == 1
    with np.errstate(invalid="ignore", divide="ignore"):
        parameters = np.where(np.isnan(active), weight / per_weight, active)
        trend = known.trend()
        slope, level = (np.where(moe, trend[True][j], trend[False][j]) for j in (0, 1))
        estimated = np.round(np.exp(slope * np.log(parameters) + level))
        no_layers, no_kv = np.isnan(layers), np.isnan(kv)
        layers = np.where(no_layers, estimated, layers)
        usual_kv = predict.USUAL_KV_BYTES_PER_LAYER * layers * np.where(moe, 0.5, 1.0)
        kv = np.where(no_kv, usual_kv, kv)
        hybrid = predict.looks_hybrid(np.where(no_kv, 0.0, kv), layers, moe, parameters) | (_named_hybrid(said["model"]) & no_kv)
        latent = predict.looks_latent(kv, layers)
        attention = predict.attention_flop(parameters, layers, np.where(no_kv, 0.0, kv), depth)
        flop = 2 * parameters
    for name, values in (
        ("weight", weight),
        ("kv", kv * depth),
        ("n_layers", layers),
        ("format", index),
        ("moe", moe),
        ("hybrid", hybrid),
        ("latent", latent),
        ("flop", flop),
        ("attention", attention),
    ):
        getattr(cases, name)[rows] = values[rows]
    with np.errstate(over="ignore", invalid="ignore"):
        own_most = _own_most(known, cases, places)
        cases.ceiling[rows] = (own_most / flop)[rows]
    deep = depth > 0
    # Few models keep nothing of a context: a zero is often a size that nobody looked up.
    nothing = (kv == 0) & (depth > _DEEP_TOKENS)
    cases.more[rows] = np.hypot(np.where(no_layers, _LAYERS_SPREAD, 0.0), np.where((no_kv & deep) | nothing, _KV_SPREAD, 0.0))[rows]
    cases.notes.append(np.where(rows & nothing, "kv_bytes_per_token 0, so nothing of the context is read", "").astype(object))
    shown = np.array([f"{v:.0f}" if np.isfinite(v) else "" for v in np.unique(layers[rows])])
    positions = np.searchsorted(np.unique(layers[rows]), np.where(rows, layers, np.nan))
    named = shown[np.minimum(positions, len(shown) - 1)].astype(object)
    cases.notes.append(np.where(rows & no_layers, "n_layers not given, " + named + " is the trend of that size", "").astype(object))
    cases.notes.append(np.where(rows & (moe_said == -1), "moe not given, taken as 0", "").astype(object))
    cases.notes.append(np.where(rows & no_kv & deep, "kv_bytes_per_token not given, the usual 4,096 bytes a layer", "").astype(object))
    unknown_size = rows & cases.prefill & np.isnan(active)
    cases.notes.append(np.where(unknown_size, "active_params_b not given, from the bytes read", "").astype(object))
    cases.notes.append(np.where(rows & hybrid, "by its cache or its name most layers keep a state", "").astype(object))


def _own_most(known: _Known, cases: _Cases, places: Sequence[Where | None]) -> predict.Floats:
    """The most FLOP/s that any type of numbers gives: of a device of the registry its own best peak."""
    most = cases.most.copy()
    for i, place in enumerate(places):
        if place is not None and place.device is not None:
            most[i] = known.most(place.device, place.configuration, _ANY_TYPE)
    most[np.isin(cases.group, [GROUPS.index(name) for name in _CPU_FLOP_PER_BYTE])] = math.inf
    return most


def _named_hybrid(names: pd.Series) -> predict.Bools:
    """Names of models whose layers mostly keep a state."""
    pattern = "|".join(_HYBRID_NAMES)
    found = {name: bool(re.search(pattern, name.lower())) for name in names.unique()}
    return names.map(found).to_numpy(bool)


def _decode(found: Calibration, cases: _Cases, rows: predict.Bools) -> predict.Prediction:
    chosen = predict.constants(
        found,
        group=cases.group[rows],
        format_index=cases.format[rows],
        device_share=cases.share[rows],
        device_layer=cases.layer[rows],
        known=cases.known[rows],
        moe=cases.moe[rows],
        hybrid=cases.hybrid[rows],
        latent=cases.latent[rows],
        ollama=cases.ollama[rows],
    )
    kv = cases.kv[rows]
    return predict.predict_decode(
        found,
        chosen,
        weight_bytes=cases.weight[rows],
        kv_bytes=kv,
        n_layers=cases.n_layers[rows],
        bandwidth_bytes_per_s=cases.bandwidth[rows],
        moe=cases.moe[rows],
        more_spread=cases.more[rows],
    )


def _prefill(found: Calibration, cases: _Cases, rows: predict.Bools) -> predict.Prediction:
    return predict.predict_prefill(
        found,
        group=cases.group[rows],
        weight_flop=cases.flop[rows],
        attention_flop=cases.attention[rows],
        peak_flop_per_s=cases.peak[rows],
        bandwidth_bytes_per_s=cases.bandwidth[rows],
        n_layers=cases.n_layers[rows],
        ceiling=cases.ceiling[rows],
        moe=cases.moe[rows],
        known=cases.known[rows],
        more_spread=np.hypot(cases.more, cases.peak_spread)[rows],
    )


def predict_file(cases: Path, out: Path) -> tuple[int, int]:
    """Predict every row of a CSV file into another, which appears by rename: how many rows, and how many of them have no answer.

    ``UsageError`` for a file that is not there or has not the columns.
    """
    try:
        with warnings.catch_warnings():
            # Cells beyond the header are left out; they must not move the others.
            warnings.simplefilter("ignore", pd.errors.ParserWarning)
            frame = pd.read_csv(cases, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False)
    except FileNotFoundError:
        raise UsageError(f"no file {str(cases)!r}; --cases names a CSV file") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{cases}: cannot be read as CSV: {error}") from None
    frame.columns = [str(name).strip() for name in frame.columns]
    needed = [("device", "bandwidth_gb_per_s"), ("model", "weight_gb_read", "active_params_b"), ("phase",)]
    for any_of in needed:
        if not set(any_of) & set(frame.columns):
            raise UsageError(f"{cases.name}: no column {' or '.join(any_of)}; columns are {', '.join(COLUMNS)}")
    answered = predict_cases(frame)
    text = answered.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    try:
        paths.write_text(out, text)
    except OSError as error:
        raise UsageError(f"{out}: cannot be written: {error.strerror}; --out names a file in a folder of yours") from None
    return len(answered), int(answered["expected_tok_per_s"].isna().sum())


# ── one case ──────────────────────────────────────────────────────────────────────────────────────


def expected(
    place: Place | str, model_id: str, format_id: str = "", *, depth: int = 0, engine: str = "", backend: str = "", phase: Phase = "decode"
) -> Expected:
    """What to expect of one model on one machine: a registry id or a ``Place``. ``UsageError`` for what has no answer."""
    return _expected(_known(), _said(place), backend, engine, model_id, format_id, depth, phase)


def usual_group(family: str, engine: str, bandwidth_gb_per_s: float) -> str:
    """Which constants a family has with the backend that is usual there."""
    return predict.group_of(family, _USUAL_BACKEND[family], engine, bandwidth_gb_per_s)


def typed_facts() -> dict[str, Any]:
    """All that ``where`` makes of a machine which somebody describes, as plain values, for a program that cannot ask it.

    ``families``: by engine the group, and the one from ``HBM_GB_PER_S`` on where that is another, with words and whether machines have factors there;
    the devices of the family with GB/s, FP16 FLOP per byte and their best in any type; what stands for a peak where none has that bandwidth.
    ``devices``: name, family, GB/s and factors of the machines that constants were fitted to. ``cpu_groups``: groups without a known peak.
    """
    known = _known()
    found = known.calibration
    families = {}
    for family in predict.FAMILIES:
        engines = {}
        for engine in ("llama.cpp", "mlx" if family == "apple" else "vllm"):
            groups = dict.fromkeys(usual_group(family, engine, gb_per_s) for gb_per_s in (1.0, predict.HBM_GB_PER_S))
            engines[engine] = [_group_facts(found, family, engine, group) for group in groups]
        group = usual_group(family, "llama.cpp", 1.0)
        typical = known.typical(family)
        ratio, most, spread, words = _peaks_per_byte(known, group, family, 1.0)  # no device has 1 GB/s
        families[family] = {
            "engines": engines,
            "typical": [] if group in _CPU_FLOP_PER_BYTE else typical,
            "otherwise": {"flop_per_byte": ratio, "most": None if math.isinf(most) else most, "spread": spread, "words": words},
        }
    devices = [(d.name, d.family, d.bandwidth_gb_per_s, d.share, d.layer) for d in found.devices]
    constants = {"same_bandwidth": _SAME_BANDWIDTH, "hbm_gb_per_s": predict.HBM_GB_PER_S, "cpu_groups": list(_CPU_FLOP_PER_BYTE)}
    return {"families": families, "devices": devices, **constants}


def _group_facts(found: Calibration, family: str, engine: str, group: str) -> dict[str, Any]:
    decode, prefill = _group_words(found, group)
    notes = [_backend_note(_USUAL_BACKEND[family]), _engine_note(engine)]
    if engine == "vllm" and group != "nvidia-unified-vllm":
        notes.append(_VLLM_NOTE)
    has_factors = not (found.decode[group].assumed or group in _CPU_FLOP_PER_BYTE)  # type: ignore[index]
    return {"group": group, "decode": decode, "prefill": prefill, "notes": "; ".join(notes), "has_factors": has_factors}


def where(place: Place | str, format_id: str, *, engine: str = "", backend: str = "") -> Where:
    """A machine as the numbers of a prediction, under the engine that opens the format. ``UsageError`` for what has no answer."""
    return _where_said(_known(), _said(place), backend, engine, format_id)


def expected_or_none(place: Place | str, model_id: str, format_id: str = "", *, depth: int = 0, phase: Phase = "decode") -> Expected | None:
    """The same for tables, where a cell without an answer stays empty."""
    try:
        return expected(place, model_id, format_id, depth=depth, phase=phase)
    except UsageError:
        return None


def expected_of(cells: Sequence[tuple[Variant, Place, int]]) -> list[dict[str, float | None]]:
    """What to expect of decode for many stored models, places and depths at once; a field is ``None`` where nothing can be said.

    Fields: ``expected_tok_per_s, expected_low_tok_per_s, expected_high_tok_per_s``. A file that the registry does not know goes by its numbers.
    """
    if not cells:
        return []
    known = set(registry.model_ids())
    found = predict_cases(pd.DataFrame([_case_of(stored, place, depth, by_name=stored.name in known) for stored, place, depth in cells]).fillna(""))
    names = {"expected_tok_per_s": "expected", "low_tok_per_s": "expected_low", "high_tok_per_s": "expected_high"}
    return [
        {f"{short}_tok_per_s": None if pd.isna(row[name]) else float(row[name]) for name, short in names.items()} for row in found.to_dict("records")
    ]


def expected_of_stored(stored: Variant, place: Place, *, depth: int = 0, phase: Phase = "decode") -> Expected:
    """The same for one of them, of either phase. ``UsageError`` for what has no answer."""
    if stored.name in registry.model_ids():
        return expected(place, stored.name, stored.format, depth=depth, phase=phase)
    case = _case_of(stored, place, depth, by_name=False) | {"phase": phase}
    if phase == "prefill":
        case["active_params_b"] = f"{stored.n_active_parameters / 1e9:g}"
    row = predict_cases(pd.DataFrame([case])).iloc[0]
    if math.isnan(row["expected_tok_per_s"]):
        raise UsageError(str(row["basis"]))
    return Expected(
        ceiling_tok_per_s=None if math.isnan(row["ceiling_tok_per_s"]) else float(row["ceiling_tok_per_s"]),
        expected_tok_per_s=float(row["expected_tok_per_s"]),
        low_tok_per_s=float(row["low_tok_per_s"]),
        high_tok_per_s=float(row["high_tok_per_s"]),
        basis=str(row["basis"]),
    )


def _case_of(stored: Variant, place: Place, depth: int, *, by_name: bool) -> dict[str, str]:
    """A row of ``predict_cases``."""
    row = {"device": place.device_id if place.device else "", "format": stored.format, "phase": "decode", "depth": str(depth)}
    row |= {"family": place.family} if place.family and not place.device else {}
    if place.bandwidth_bytes_per_s is not None:
        row["bandwidth_gb_per_s"] = f"{place.bandwidth_bytes_per_s / 1e9:g}"
    if by_name:
        return row | {"model": stored.name}
    return row | {
        "n_layers": str(stored.shape.n_layer),
        "weight_gb_read": f"{stored.step_weight_bytes / 1e9:g}",
        "kv_bytes_per_token": str(limits.kv_bytes_per_token(stored.shape)),
        "moe": str(int(stored.shape.experts is not None)),
    }


def range_words(found: Expected | None) -> str:
    """An expected rate with its 90 % range, for a cell of a table."""
    if found is None:
        return "–"
    digits = 1 if found.expected_tok_per_s < 100 else 0
    return f"{found.expected_tok_per_s:,.{digits}f} ({found.low_tok_per_s:,.{digits}f} to {found.high_tok_per_s:,.{digits}f})"


#: Device, bandwidth in GB/s and family as a row says them, and a peak that somebody typed.
_Said = tuple[str, str, str, float | None]


def _said(place: Place | str) -> _Said:
    if isinstance(place, str):
        return place, "", "", None
    gb_per_s = "" if place.bandwidth_bytes_per_s is None else f"{place.bandwidth_bytes_per_s / 1e9!r}"
    if place.device is None and place.family:
        return "", gb_per_s, place.family, place.typed_peak_flop_per_s
    return place.device_id, gb_per_s, "", None


def _known() -> _Known:
    """The registry, read again where its constants were written anew."""
    return _known_of(str(paths.data_dir()), (paths.data_dir() / "calibration.yaml").stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _known_of(_registry: str, _mtime_ns: int) -> _Known:
    return _Known()


@lru_cache(maxsize=1024)
def _where_said(known: _Known, said: _Said, backend: str, engine: str, format_id: str) -> Where:
    device, gb_per_s, family, typed_peak = said
    return _where(known, device, gb_per_s, family, backend, engine, format_id, typed_peak)


@lru_cache(maxsize=8192)
def _expected(known: _Known, said: _Said, backend: str, engine: str, model_id: str, format_id: str, depth: int, phase: Phase) -> Expected:
    """One case, by the arrays of many."""
    _number("depth", str(depth), zero=True)
    where = _where_said(known, said, backend, engine, format_id)
    what = known.model(model_id, format_id, where.engine)
    cases = _Cases(1)
    cases.prefill[0] = phase == "prefill"
    _put_places(cases, [0], [where])
    # Numbers may be anything; what overflows is told below.
    with np.errstate(all="ignore"):
        _put_model(known, cases, 0, what, where, depth)
        found = (_prefill if phase == "prefill" else _decode)(known.calibration, cases, np.ones(1, dtype=bool))
    ceiling, expected, low, high = (float(values[0]) for values in (found.ceiling, found.expected, found.low, found.high))
    if not (low > 0 and math.isfinite(expected)):
        raise UsageError("numbers too large or too small for a rate")
    return Expected(
        ceiling_tok_per_s=ceiling if math.isfinite(ceiling) else None,
        expected_tok_per_s=expected,
        low_tok_per_s=low,
        high_tok_per_s=high,
        basis="; ".join(filter(None, (where.notes[int(phase == "prefill")], what.note))),
    )


def expected_lines(
    place: Place | str, model_id: str, format_id: str = "", *, depth: int = 0, engine: str = "", backend: str = "", phase: Phase = "decode"
) -> list[Line]:
    """One prediction, line by line."""
    known, said = _known(), _said(place)
    answer = _expected(known, said, backend, engine, model_id, format_id, depth, phase)
    found = known.calibration
    where = _where_said(known, said, backend, engine, format_id)
    what = known.model(model_id, format_id, where.engine)
    group = GROUPS[where.group]
    source = f"data/calibration.yaml, {found.fitted}"
    lines = (
        _prefill_lines(known, where, what, group, depth, source) if phase == "prefill" else _decode_lines(found, where, what, group, depth, source)
    )
    return [*lines, *rate_lines(answer)]


def rate_lines(answer: Expected) -> list[Line]:
    """A rate, its range, and what they rest on."""
    return [
        Line("expected", answer.expected_tok_per_s, "tok/s", "one over their sum, at most the ceiling"),
        Line("lowest", answer.low_tok_per_s, "tok/s", "one rate in twenty is below"),
        Line("highest", answer.high_tok_per_s, "tok/s", "one rate in twenty is above"),
        Line("basis", answer.basis),
    ]


def _decode_lines(found: Calibration, where: Where, what: _What, group: str, depth: int, source: str) -> list[Line]:
    one = np.ones(1)
    chosen = predict.constants(
        found,
        group=np.array([where.group]),
        format_index=np.array([what.format_index]),
        device_share=one * where.share,
        device_layer=one * where.layer,
        known=np.array([where.known]),
        moe=np.array([what.moe]),
        hybrid=np.array([what.hybrid]),
        latent=np.array([what.latent]),
        ollama=np.array([where.ollama]),
    )
    kv = limits.kv_bytes_read(what.variant.shape, depth)
    share, kv_share, layer_s = float(chosen.share[0]), float(chosen.kv_share[0]), float(chosen.layer_s[0])
    why = [words for words, yes in (("experts", what.moe), ("a recurrent state", what.hybrid)) if yes]
    return [
        Line("weights read", round(what.weight), "bytes/token", f"{what.variant.format}, state included" if what.hybrid else what.variant.format),
        Line("K and V read", kv, "bytes/token", f"depth {depth:,}"),
        Line("bandwidth", round(where.bandwidth), "bytes/s", "nominal"),
        Line("ceiling", where.bandwidth / (what.weight + kv), "tok/s", "bandwidth over bytes"),
        Line("share for weights", share, "", f"{group}, its format and its machine", source),
        Line("reading weights", 1e3 * what.weight / (share * where.bandwidth), "ms/token", "bytes / (share x bandwidth)"),
        Line("a layer takes", 1e6 * layer_s, "µs", "besides" + (f", with {' and '.join(why)}" if why else ""), source),
        Line("layers take", 1e3 * layer_s * what.n_layers, "ms/token", f"{what.n_layers:.0f} of them"),
        Line("share for K and V", kv_share, "", "", source),
        Line("reading K and V", 1e3 * kv / (kv_share * where.bandwidth), "ms/token", "bytes / (share x bandwidth)"),
    ]


def _prefill_lines(known: _Known, where: Where, what: _What, group: str, depth: int, source: str) -> list[Line]:
    flop, attention, ceiling = _prefill_of(known, what, where, depth)
    constants = known.calibration.prefill[group]  # type: ignore[index]
    rich = float(predict.richness(known.calibration, np.array([where.peak]), np.array([where.bandwidth]))[0])
    share = constants.share * rich * (constants.moe_factor if what.moe else 1)
    layers_s = 1e-6 * what.n_layers * constants.layer_us / predict.PREFILL_BATCH
    reached = f"{group}, at {where.peak / where.bandwidth:.0f} FLOP per byte"
    return [
        Line("arithmetic of weights", round(flop), "FLOP/token", "two per active weight"),
        Line("arithmetic of attention", round(attention), "FLOP/token", f"depth {depth:,}"),
        Line("peak", round(where.peak), "FLOP/s", where.peak_note or "dense FP16"),
        Line("ceiling", ceiling if math.isfinite(ceiling) else None, "tok/s", "by the best peak that the format's kernels may use"),
        Line("share for weights", share, "", reached + (", mixture of experts" if what.moe else ""), source),
        Line("weights take", 1e3 * flop / (share * where.peak), "ms/token", "FLOP / (share x peak)"),
        Line("share for attention", constants.attention_share * rich, "", "", source),
        Line("attention takes", 1e3 * attention / (constants.attention_share * rich * where.peak), "ms/token", "FLOP / (share x peak)"),
        Line("layers take", 1e3 * layers_s, "ms/token", f"{what.n_layers:.0f} of them, for every {predict.PREFILL_BATCH} tokens", source),
    ]


# ── the chapter: how well do we predict? ──────────────────────────────────────────────────────────

#: What ``plots.table`` takes: a frame, headings by column, formats by column.
_Table = tuple[pd.DataFrame, dict[str, str], dict[str, str]]
GROUP_NAMES = {
    "nvidia-discrete": "NVIDIA card",
    "nvidia-hbm": "NVIDIA, stacked memory",
    "nvidia-unified": "NVIDIA unified, llama.cpp",
    "nvidia-unified-vllm": "NVIDIA unified, vLLM",
    "apple": "Apple, llama.cpp",
    "apple-mlx": "Apple, MLX",
    "amd-discrete-rocm": "AMD card, ROCm",
    "amd-discrete-vulkan": "AMD card, Vulkan",
    "amd-unified-rocm": "AMD unified, ROCm",
    "amd-unified-vulkan": "AMD unified, Vulkan",
    "intel": "Intel",
    "qualcomm": "Qualcomm",
    "cpu": "processor",
    "apple-cpu": "Apple's processor",
}


def predicted_frame() -> pd.DataFrame:
    """The decode rates of ``data/published`` that a ceiling bounds, each beside what the shipped constants expect of it.

    ``off`` is expected over measured, less one; ``inside`` whether the measured rate lies in the range; ``naive_tok_per_s`` all the bandwidth
    over the bytes.
    """
    rows = []
    for source in registry.load_published():
        for rate in source.rows:
            if rate.phase != "decode" or rate.batch_size != 1 or rate.above_because or rate.engine not in predict.ENGINES:
                continue
            device = registry.load_device(rate.device)
            gb_per_s = registry.load_configuration(device, rate.configuration).bandwidth_bytes_per_s / 1e9
            known = rate.model is not None and rate.weight_gb_read is None
            model = registry.load_model(rate.model) if rate.model else None
            step = registry.published_step_bytes(rate)
            case = {"device": rate.device, "bandwidth_gb_per_s": f"{gb_per_s:g}", "backend": rate.backend, "engine": rate.engine}
            case |= {"phase": "decode", "format": rate.format, "depth": str(rate.depth), "model": rate.model or rate.model_name}
            if not known:
                kv = limits.kv_bytes_per_token(model.shape) if model else rate.kv_bytes_per_token
                weight = step - (limits.kv_bytes_read(model.shape, rate.depth) if model else rate.depth * (rate.kv_bytes_per_token or 0))
                case |= {"weight_gb_read": f"{weight / 1e9:.6g}", "kv_bytes_per_token": str(kv)}
                case |= {"n_layers": str(model.shape.n_layer if model else rate.n_layer)}
                case |= {"moe": str(int(model.shape.experts is not None if model else rate.kind == "MoE"))}
            kind = rate.kind or ("MoE" if model and model.shape.experts else "dense")
            words = {"device_name": device.name, "family": device.family, "kind": kind, "step_gb": step / 1e9, "measured_tok_per_s": rate.tok_per_s}
            words |= {"model_name": rate.model_name or (model.name if model else ""), "date": rate.date, "title": source.title, "url": source.url}
            rows.append(case | words)
    frame = pd.DataFrame(rows)
    case_columns = [name for name in COLUMNS if name in frame]
    answers = predict_cases(frame[case_columns].fillna(""))
    frame = frame.assign(**{name: answers[name] for name in OUTCOMES})
    measured = frame["measured_tok_per_s"]
    return frame.assign(
        naive_tok_per_s=frame["ceiling_tok_per_s"],
        off=frame["expected_tok_per_s"] / measured - 1,
        inside=(measured >= frame["low_tok_per_s"]) & (measured <= frame["high_tok_per_s"]),
    )


def errors_table(phase: Phase = "decode", group: str = "all") -> _Table:
    """How far off: in the fit, with the device left out, with the model left out; by kind. ``group`` ``""`` gives all groups a row each."""
    words = {"none": "none", "device": "its device", "model": "its model"}
    wanted = [e for e in registry.load_calibration().errors if e.phase == phase and (e.group == group if group else e.group not in ("all", "naive"))]
    rows = [
        {
            "group": GROUP_NAMES.get(e.group, e.group),
            "kind": e.kind,
            "left_out": words[e.left_out],
            "rows": e.rows,
            "median": e.median,
            "p90": e.p90,
            "coverage": e.coverage,
            "width": e.width,
        }
        for e in wanted
        if group or e.left_out == "device"
    ]
    headings = {
        **({"group": "kind of machine"} if not group else {"left_out": "left out"}),
        "kind": "model",
        "rows": "rates",
        "median": "off by (median)",
        "p90": "off by (nine in ten)",
        "coverage": "inside the range",
        "width": "highest over lowest",
    }
    formats = {"rows": "{:,}", "median": "{:.1%}", "p90": "{:.0%}", "coverage": "{:.0%}", "width": "{:.2f}"}
    return pd.DataFrame(rows), headings, formats


def misses_table(phase: Phase = "decode", most: int = 8) -> _Table:
    """The worst misses of rates whose device or model was left out, worst first, each machine and model once."""
    rows = pd.DataFrame([m.model_dump() for m in registry.load_calibration().misses if m.phase == phase])
    rows = rows.assign(times=rows["expected_tok_per_s"] / rows["measured_tok_per_s"])
    rows = rows.assign(size=np.abs(np.log(rows["times"]))).sort_values("size", ascending=False).drop_duplicates(["device", "model"]).head(most)
    headings = {
        "device": "device",
        "model": "model",
        "format": "format",
        "engine": "engine",
        "depth": "depth (tokens)",
        "measured_tok_per_s": "measured (tok/s)",
        "expected_tok_per_s": "expected (tok/s)",
        "times": "times the measured",
        "date": "date",
    }
    formats = {"depth": "{:,.0f}", "measured_tok_per_s": "{:,.4g}", "expected_tok_per_s": "{:,.4g}", "times": "{:.2f}"}
    return rows.reset_index(drop=True), headings, formats


def constants_table() -> _Table:
    """The constants of decode by kind of machine and engine, and how many rates they come from."""
    found = registry.load_calibration()
    rows = [
        {
            "group": GROUP_NAMES[name],
            "rows": group.rows,
            "devices": group.devices,
            "share": group.share,
            "layer_us": group.layer_us,
            "moe": group.layer_us + group.moe_us,
            "hybrid": group.layer_us + group.hybrid_us,
            "kv_share": group.kv_share,
            "note": group.note,
        }
        for name, group in found.decode.items()
    ]
    headings = {
        "group": "kind of machine",
        "rows": "rates",
        "devices": "machines",
        "share": "share for weights",
        "layer_us": "a layer (µs)",
        "moe": "with experts (µs)",
        "hybrid": "with a state (µs)",
        "kv_share": "share for K and V",
        "note": "note",
    }
    formats = {"rows": "{:,}", "share": "{:.0%}", "layer_us": "{:.0f}", "moe": "{:.0f}", "hybrid": "{:.0f}", "kv_share": "{:.0%}"}
    return pd.DataFrame(rows), headings, formats


def naive_and_model() -> _Table:
    """Off by how much: all the bandwidth over the bytes, and the model with the device left out."""
    found = registry.load_calibration().errors
    rows = []
    for kind in ("dense", "MoE"):
        for name, group, left_out in (("bandwidth over bytes", "naive", "none"), ("this model, device left out", "all", "device")):
            error = next(e for e in found if (e.phase, e.group, e.kind, e.left_out) == ("decode", group, kind, left_out))
            rows.append({"formula": name, "kind": kind, "median": error.median, "p90": error.p90})
    headings = {"kind": "model", "formula": "formula", "median": "off by (median)", "p90": "off by (nine in ten)"}
    return pd.DataFrame(rows), headings, {"median": "{:.0%}", "p90": "{:.0%}"}
