"""Constants of ``predict``, fitted to published speeds: CSV files of others' measurements and the rates of ``data/published``.

A time is a sum of parts, and each part a known size times the exponential of a sum of terms: its kind of machine and engine, its format, its machine.
Terms are drawn towards 0, the more so the fewer rows speak for them. Large misses count less than their square (soft l1), and rows of one machine
with one file count together as one. How good that is, is said by rows left out: all of one device, all of one model; which terms there are was
chosen by such rows as well. Needs scipy, which the prediction does not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from nbutils import limits, paths, predict, registry
from nbutils.errors import DataError
from nbutils.specs import Model, PublishedRate
from nbutils.specs_calibration import FORMAT_CLASSES, GROUPS, Calibration, RangeModel
from nbutils.tensors import variant

__all__ = ["DECODE_COLUMNS", "PREFILL_COLUMNS", "calibrate", "decode_rows", "model_key", "prefill_rows", "published_rows", "registry_device", "write"]

Floats = npt.NDArray[np.float64]

#: What CSV files of decode and of prefill have; more columns do no harm.
DECODE_COLUMNS = (
    "device",
    "backend",
    "engine",
    "model",
    "format",
    "moe",
    "n_layers",
    "kv_bytes_per_token",
    "nominal_bandwidth_gb_per_s",
    "weight_gb_read",
    "decode_tok_per_s",
    "mean_context",
    "date",
    "source",
)
PREFILL_COLUMNS = ("source", "date", "device", "backend", "software", "model", "params_B", "format", "test", "batch", "tokens_per_s")

#: Terms are logarithms: what well-kept kernels reach before any row is seen with how far that is free, and how far a group may lie from what all have
#: in common. Which freedoms was read off left-out rows, where half and twice as much do about as well.
_COMMON = {"share": (0.92, 0.1), "kv_share": (0.75, 0.1), "layer_us": (70.0, 0.1), "moe_us": (40.0, 0.5), "hybrid_us": (30.0, 0.5)}
_GROUP_FREE = {"share": 0.08, "kv_share": 0.25, "layer_us": 0.35, "moe_us": 0.25, "hybrid_us": 0.4}
_FORMAT_FREE = {"16": 0.05, "8": 0.05, "6": 0.05, "4": 0.05, "3": 0.08, "mxfp4": 0.08, "nvfp4": 0.3}
_DEVICE_SHARE_FREE, _DEVICE_LAYER_FREE = 0.04, 0.15
_OLLAMA_FREE, _LATENT_FREE, _OLD_FREE, _YEAR_FREE = 0.1, 0.4, 0.5, 0.1
#: Which parts of a time a constant is of, and whether it shortens or lengthens them.
_PARTS = {
    "share": {"weights": -1.0},
    "kv_share": {"cache": -1.0},
    "layer_us": {"layers": 1.0},
    "moe_us": {"experts": 1.0},
    "hybrid_us": {"states": 1.0},
}
#: From this miss on, as a logarithm, a row counts less than its square.
_SOFT, _PREFILL_SOFT = 0.1, 0.2
#: Rows that read a context of unknown size up to here are kept; deeper ones say nothing of the weights.
_SHALLOW_TOKENS = 6000
#: Of these no row was found. From the makers of fast kernels and of CPU tables; wide ranges say the rest.
_ASSUMED: dict[str, tuple[dict[str, float], str]] = {
    "nvidia-hbm": (
        {"share": 0.74, "layer_us": 72.0},
        "no current row; as gpt-fast, tinychat and others printed for A100 and H100 in 2023 and 2024, fitted the same way",
    ),
    "cpu": (
        {"share": 0.65, "kv_share": 0.5, "layer_us": 40.0, "moe_us": 20.0},
        "no row; a Ryzen 7950X and an EPYC 9554 read large dense models at 0.56 and 0.58 by median of formats, processors with fewer cores at less",
    ),
    "apple-cpu": (
        {"share": 0.25, "kv_share": 0.22, "layer_us": 60.0, "moe_us": 30.0},
        "no row; an M2 Max read at 0.21 of what its GPU may use, by median of formats",
    ),
    "qualcomm": ({"share": 0.6, "layer_us": 120.0}, "no row; a guess below Intel's"),
}
#: Added to the logarithm of their spread; and how far a group's may lie from what all have in common.
_RANGE_FREE = 0.15
_ASSUMED_SPREAD = {"nvidia-hbm": 0.6, "cpu": 1.3, "apple-cpu": 1.3, "qualcomm": 0.8}
_NO_ROW_SPREAD = 0.3
#: The same of prefill: a share of the peak, at 100 FLOP per byte.
_ASSUMED_PREFILL = {
    "nvidia-unified-vllm": (
        1.5,
        "no row; SGLang read prompts there at 0.9 of the FP16 peak in FP8 (Llama 3.3 70B, LMSYS), and other formats are slower",
    ),
}
#: Formats on a processor: as the published ratios to eight bits lie, where a weight costs at least as much as reading 0.7 bytes.
_CPU_FORMATS = {"16": 1.0, "8": 1.0, "6": 0.9, "4": 0.88, "3": 0.55, "mxfp4": 0.8, "nvfp4": 0.8}


# ── rows ──────────────────────────────────────────────────────────────────────────────────────────


def model_key(name: str) -> str:
    """What files of one model have in common: its name up to its size, without its publisher and its format.

    >>> model_key("unsloth/Qwen3-30B-A3B-UD-Q4_K_XL"), model_key("llama 7B Q4_K - Medium [llama-2-7b.Q4_K_M]"), model_key("Qwen3.6-27B mlx-lm 4bit")
    ('qwen3-30b-a3b', 'llama-2-7b', 'qwen3.6-27b')
    """
    inner = re.search(r"\[([^\]]{4,})\]?", name)
    said = re.sub(r"[\s_:\-]+", "-", (inner[1] if inner else name).lower().split("/")[-1])
    said = re.sub(r"^(?:meta|nvidia|ibm-granite|mistralai|microsoft|kwaipilot|allura-org|jackrong|qwen|mlx-community)-(?=[a-z])", "", said)
    said = re.sub(r"^qwen-(?=\d)", "qwen", said).replace("gemma4", "gemma-4").replace("gemma3", "gemma-3")
    sized = re.match(r".*?\d+(?:\.\d+)?b(?:[-.]a\d+(?:\.\d+)?b)?(?![a-z0-9])", said)
    key = sized[0].replace(".a", "-a") if sized else re.split(r"-(?:ud|q\d|iq\d|mlx|omlx|mxfp\d|turbo|\d(?:\.\d)?bit)", said)[0]
    return _SAME_MODEL.get(key, key)


#: Fine-tunes and short names of one shape.
_SAME_MODEL = {
    "qwen3.5": "qwen3.6-35b-a3b",
    "qwen3.6-35b": "qwen3.6-35b-a3b",
    "qwen3.5-35b": "qwen3.6-35b-a3b",
    "qwen3.5-35b-a3b": "qwen3.6-35b-a3b",
    "kat-coder-v2.5-dev": "qwen3.6-35b-a3b",
    "qwen3.8-27b": "qwen3.6-27b",
    "qwen2.5-coder-7b": "qwen2.5-7b",
    "deepseek-coder-6.7b": "deepseek-coder-7b",
    "llama-7b": "llama-2-7b",
    "llama-3.1-70b": "llama-3.3-70b",
    "shisa-v2-llama3.3-70b": "llama-3.3-70b",
    "nemotron-120b-a12b": "nemotron-3-super",
    "nemotron-3-super-120b-a12b": "nemotron-3-super",
    "nemotron-3-nano-30b-a3b": "nemotron-3-nano",
    "nemotron-3-nano-omni-30b-a3b": "nemotron-3-nano",
    "nemotron-cascade-2-30b-a3b": "nemotron-3-nano",
    "phi3-3b": "phi-3-mini",
    "phi-3-mini-4k-instruct": "phi-3-mini",
    "phi-3.5-mini-instruct": "phi-3-mini",
    "coder": "qwen3-coder-next",
}
_FAMILY_WORDS = (
    ("GB10", "nvidia-unified"),
    ("Jetson", "nvidia-unified"),
    ("N1X", "nvidia-unified"),
    ("NVIDIA", "nvidia-discrete"),
    ("Apple", "apple"),
    ("Strix", "amd-unified"),
    ("780M", "amd-unified"),
    ("890M", "amd-unified"),
    ("Radeon", "amd-discrete"),
    ("AMD RX", "amd-discrete"),
    ("Intel", "intel"),
    ("Snapdragon", "qualcomm"),
)


def registry_device(label: str) -> str:
    """The registry's id of a machine that others call ``label``; empty where it has none, or another bin.

    >>> registry_device("NVIDIA RTX 3080 10GB"), registry_device("NVIDIA RTX 3080 Ti"), registry_device("Apple M3 Ultra (80c GPU)")
    ('rtx-3080', '', 'mac-studio-m3-ultra')
    """
    plain = re.sub(r"\([^)]*\)|\d+ ?GB\b", " ", label)
    words = set(re.findall(r"[a-z0-9]+", plain.lower())) - {"nvidia", "amd", "apple", "intel", "geforce", "radeon"}
    for device_id in registry.device_ids():
        device = registry.load_device(device_id)
        names = [device_id.replace("-", " "), *device.chip_names]
        for name in names:
            if words == set(re.findall(r"[a-z0-9]+", re.sub(r"\d+gb", "", name.lower()))) - {"apple", "amd", "radeon"}:
                return "" if re.search(r"\((?:48|60|32|24)c", label) else device_id
    return ""


def _family(label: str, device_id: str) -> str:
    if device_id:
        return registry.load_device(device_id).family
    return next((family for word, family in _FAMILY_WORDS if word in label), "")


def _read(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


def decode_rows(path: Path) -> pd.DataFrame:
    """The decode rows of a CSV file, as the fit takes them. ``DataError`` names a column that is missing."""
    found = _read(path)
    if missing := [c for c in DECODE_COLUMNS if c not in found.columns]:
        raise DataError(f"{path.name}: no column {missing[0]!r}; decode files have {', '.join(DECODE_COLUMNS)}")
    ids = {label: registry_device(label) for label in found["device"].unique()}
    rows = pd.DataFrame(
        {
            "device": found["device"],
            "device_id": found["device"].map(ids),
            "family": [_family(label, ids[label]) for label in found["device"]],
            # Two that were not told apart: the second is what the source's newer rows name.
            "backend": found["backend"].str.lower().str.split("/").str[-1],
            "engine": found["engine"].str.lower(),
            "model": found["model"],
            "model_key": found["model"].map(model_key),
            "format": found["format"].astype(str),
            "moe": found["moe"].astype(bool),
            "n_layers": found["n_layers"].astype(float),
            "weight_gb": found["weight_gb_read"].astype(float),
            "kv_bytes_per_token": found["kv_bytes_per_token"].fillna(0).astype(float),
            "depth": found["mean_context"].astype(float),
            "bandwidth_gb_per_s": found["nominal_bandwidth_gb_per_s"].astype(float),
            "tok_per_s": found["decode_tok_per_s"].astype(float),
            "date": found["date"].astype(str),
            "source": found["source"].astype(str),
        }
    )
    rows["kv_gb"] = rows["kv_bytes_per_token"] * rows["depth"] / 1e9
    classes = rows["format"].map(predict.format_class)
    parameters = rows["weight_gb"] * 1e9 / classes.map(predict.BYTES_PER_WEIGHT)
    kv, layers = (rows[name].to_numpy(float) for name in ("kv_bytes_per_token", "n_layers"))
    rows["hybrid"] = predict.looks_hybrid(kv, layers, rows["moe"].to_numpy(bool), parameters.to_numpy(float))
    rows["latent"] = predict.looks_latent(kv, layers)
    return rows


def published_rows() -> pd.DataFrame:
    """The decode rates of ``data/published`` that a ceiling bounds, of one sequence and of engines that are predicted, in the same columns."""
    rows = [_published_row(source.id, rate) for source in registry.load_published() for rate in source.rows if _usable(rate, "decode")]
    return pd.DataFrame(rows)


def _usable(rate: PublishedRate, phase: str) -> bool:
    return rate.phase == phase and rate.batch_size == 1 and not rate.above_because and rate.engine in predict.ENGINES


def _published_row(source: str, rate: PublishedRate) -> dict[str, Any]:
    device = registry.load_device(rate.device)
    bandwidth = registry.load_configuration(device, rate.configuration).bandwidth_bytes_per_s
    model = registry.load_model(rate.model) if rate.model else None
    if model is not None:
        shape = model.shape
        weight = registry.published_step_bytes(rate) - limits.kv_bytes_read(shape, rate.depth)
        kv_token, kv = limits.kv_bytes_per_token(shape), limits.kv_bytes_read(shape, rate.depth)
        moe, hybrid, latent, n_layers = shape.experts is not None, shape.recurrent is not None, shape.latent is not None, shape.n_layer
    else:
        assert rate.weight_gb_read is not None
        assert rate.kv_bytes_per_token is not None
        assert rate.n_layer is not None
        kv_token, n_layers, moe = rate.kv_bytes_per_token, rate.n_layer, rate.kind == "MoE"
        kv, weight = kv_token * rate.depth, rate.weight_gb_read * 1e9
        weights = np.array([weight / predict.BYTES_PER_WEIGHT[predict.format_class(rate.format)]])
        sizes = np.array([float(kv_token)]), np.array([float(n_layers)])
        hybrid = bool(predict.looks_hybrid(*sizes, np.array([moe]), weights)[0])
        latent = bool(predict.looks_latent(*sizes)[0])
    return {
        "device": device.name,
        "device_id": rate.device,
        "family": device.family,
        "backend": rate.backend,
        "engine": rate.engine,
        "model": rate.model_name or rate.model or "",
        "model_key": rate.model or model_key(rate.model_name),
        "format": rate.format,
        "moe": moe,
        "n_layers": float(n_layers),
        "weight_gb": weight / 1e9,
        "kv_bytes_per_token": float(kv_token),
        "depth": float(rate.depth),
        "bandwidth_gb_per_s": bandwidth / 1e9,
        "tok_per_s": rate.tok_per_s,
        "date": rate.date,
        "source": source,
        "kv_gb": kv / 1e9,
        "hybrid": hybrid,
        "latent": latent,
    }


def _without_repeats(rows: pd.DataFrame, more: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``more`` that are not in ``rows`` already: the same machine, rate, depth and layers, and about the same bytes."""
    kept = []
    for row in more.to_dict("records"):
        same = rows[(rows["device_id"] == row["device_id"]) & ((rows["tok_per_s"] / row["tok_per_s"] - 1).abs() < 0.006)]
        same = same[(same["n_layers"] == row["n_layers"]) & (same["moe"] == row["moe"])]
        same = same[((same["weight_gb"] / row["weight_gb"] - 1).abs() < 0.15) & ((same["depth"] - row["depth"]).abs() <= 300)]
        kept.append(same.empty)
    return more[np.array(kept, dtype=bool)] if len(more) else more


def _gather_decode(files: Sequence[Path]) -> tuple[pd.DataFrame, dict[str, int]]:
    own = published_rows()
    rows = pd.concat([decode_rows(path) for path in files], ignore_index=True) if files else own.iloc[:0]
    rows = pd.concat([rows, _without_repeats(rows, own)], ignore_index=True) if len(rows) else own
    known = rows["family"].isin(predict.FAMILIES) & rows["engine"].isin(predict.ENGINES)
    deep = (rows["kv_bytes_per_token"] == 0) & (rows["depth"] > _SHALLOW_TOKENS)
    dropped = {"decode rows of a machine or an engine that is not predicted": int((~known).sum())}
    dropped["decode rows deep in a context of unknown size"] = int((known & deep).sum())
    rows = rows[known & ~deep].reset_index(drop=True)
    # A page prints 409.6 GB/s where a maker says 400: the registry's figure is the one that predictions start from.
    for device_id in set(rows["device_id"]) - {""}:
        for c in registry.load_device(device_id).configurations:
            near = (rows["device_id"] == device_id) & ((rows["bandwidth_gb_per_s"] * 1e9 / c.bandwidth_bytes_per_s - 1).abs() < 0.03)
            rows.loc[near, "bandwidth_gb_per_s"] = c.bandwidth_bytes_per_s / 1e9
    # One machine has one name, and one bandwidth in its name.
    rows["machine"] = np.where(rows["device_id"] != "", rows["device_id"], rows["device"])
    return rows, dropped


# ── the fit ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Term:
    """A logarithm that is fitted: where it is drawn to and how far it is free, and by how much each row's parts grow with it."""

    name: str
    mean: float
    free: float
    parts: Mapping[str, Floats]


class _Fit:
    """Rows whose time is a sum of parts: a size for each row, times the exponential of its terms."""

    def __init__(self, rows: pd.DataFrame, sizes: Mapping[str, Floats], terms: Sequence[_Term], cell: Sequence[str], soft: float) -> None:
        self.names = [term.name for term in terms]
        self.sizes = {part: size for part, size in sizes.items() if size.any()}
        self.measured = rows["tok_per_s"].to_numpy(float)
        none = np.zeros(len(rows))
        self._grow = {part: np.column_stack([term.parts.get(part, none) for term in terms]) for part in self.sizes}
        self._mean, self._free = (np.array([getattr(term, name) for term in terms]) for name in ("mean", "free"))
        # Rows of a cell count together as one.
        self._count = 1 / np.sqrt(rows.groupby(list(cell))["tok_per_s"].transform("size").to_numpy(float))
        self._soft = soft

    def parts(self, x: Floats) -> dict[str, Floats]:
        """Seconds of each part."""
        return {part: size * np.exp(self._grow[part] @ x) for part, size in self.sizes.items()}

    def seconds(self, x: Floats) -> Floats:
        total: Floats = np.sum(list(self.parts(x).values()), axis=0)
        return total

    def solve(self) -> Floats:
        """The terms that explain the rows best. One that no row has stays at its mean."""
        from scipy.optimize import least_squares

        def residuals(x: Floats) -> Floats:
            miss = np.log(self.seconds(x) * self.measured) / self._soft
            soft = np.sign(miss) * np.sqrt(2 * (np.sqrt(1 + miss**2) - 1)) * self._count
            return np.concatenate([soft, (x - self._mean) / self._free])

        def slopes(x: Floats) -> Floats:
            parts, seconds = self.parts(x), self.seconds(x)
            miss = np.log(seconds * self.measured) / self._soft
            root = np.sqrt(1 + miss**2)
            # Of sqrt(2 (root - 1)), which is |miss| where that is small.
            steep = np.where(np.abs(miss) < 1e-4, 1.0, np.abs(miss) / (root * np.sqrt(np.maximum(2 * (root - 1), 1e-12))))
            by_row = np.sum([(parts[part] / seconds)[:, None] * self._grow[part] for part in parts], axis=0)
            return np.vstack([(steep * self._count / self._soft)[:, None] * by_row, np.diag(1 / self._free)])

        found: Floats = least_squares(residuals, self._mean, jac=slopes, max_nfev=60, xtol=1e-6, ftol=1e-6).x
        return found


def _of_group(rows: pd.DataFrame) -> npt.NDArray[np.intp]:
    wanted = rows[["family", "backend", "engine", "bandwidth_gb_per_s"]].itertuples(index=False, name=None)
    return np.array([GROUPS.index(predict.group_of(*row)) for row in wanted], dtype=np.intp)


def _decode_fit(rows: pd.DataFrame, machines: Sequence[str]) -> _Fit:
    """The rows of decode with the terms of all groups, formats and these machines; in the same order for any rows."""
    one, group = np.ones(len(rows)), _of_group(rows)
    bandwidth = rows["bandwidth_gb_per_s"].to_numpy(float)
    layers, moe, hybrid = (rows[name].to_numpy(float) for name in ("n_layers", "moe", "hybrid"))
    sizes: dict[str, Floats] = {
        "weights": rows["weight_gb"].to_numpy(float) / bandwidth,
        "cache": rows["kv_gb"].to_numpy(float) / bandwidth,
        "layers": 1e-6 * layers,
        "experts": 1e-6 * layers * moe,
        "states": 1e-6 * layers * hybrid,
    }
    per_layer = dict.fromkeys(("layers", "experts", "states"), 1.0)
    years = rows["device"].map({name: predict.chip_year(name) or predict.MIDDLE_YEAR for name in rows["device"].unique()}).to_numpy(float)
    terms: list[_Term] = []

    def add(name: str, free: float, growth: npt.NDArray[Any], signs: Mapping[str, float], mean: float = 0.0) -> None:
        terms.append(_Term(name, mean, free, {part: sign * growth.astype(float) for part, sign in signs.items()}))

    for field, (start, free) in _COMMON.items():
        add(field, free, one, _PARTS[field], float(np.log(start)))
    for i, group_name in enumerate(GROUPS):
        for field, free in _GROUP_FREE.items():
            add(f"{field} {group_name}", free, group == i, _PARTS[field])
    classes = rows["format"].map(predict.format_class).to_numpy()
    for name, free in _FORMAT_FREE.items():
        add(f"format {name}", free, classes == name, {"weights": -1.0})
    add("ollama", _OLLAMA_FREE, (rows["engine"] == "ollama").to_numpy(), per_layer)
    add("latent", _LATENT_FREE, rows["latent"].to_numpy(), {"cache": -1.0})
    add("old", _OLD_FREE, years < predict.OLD_YEAR, {"weights": -1.0, "cache": -1.0})
    add("year", _YEAR_FREE, np.maximum(years, predict.OLD_YEAR) - predict.MIDDLE_YEAR, per_layer)
    for name in machines:
        own = (rows["machine"] == name).to_numpy()
        add(f"share of {name}", _DEVICE_SHARE_FREE, own, {"weights": -1.0, "cache": -1.0})
        add(f"layer of {name}", _DEVICE_LAYER_FREE, own, per_layer)
    return _Fit(rows, sizes, terms, ["machine", "backend", "engine", "model_key", "format"], _SOFT)


def _expected(rows: pd.DataFrame, fit: _Fit, x: Floats) -> pd.DataFrame:
    """tok/s of each row, never above what nominal bandwidth allows, with the parts of its time."""
    parts, seconds = fit.parts(x), fit.seconds(x)
    ceiling = rows["bandwidth_gb_per_s"].to_numpy(float) / (rows["weight_gb"] + rows["kv_gb"]).to_numpy(float)
    layers = np.sum([parts[name] for name in ("layers", "experts", "states") if name in parts], axis=0)
    cache = parts.get("cache", np.zeros(len(rows)))
    found = {"expected": np.minimum(1 / seconds, ceiling), "layers_part": layers / seconds, "kv_part": cache / seconds}
    return pd.DataFrame(found, index=rows.index)


def _left_out(rows: pd.DataFrame, by: str) -> pd.DataFrame:
    """What is expected of each row by constants found without all rows that share its ``by``, with the parts of its time."""
    found = []
    for name in rows[by].unique():
        out = (rows[by] == name).to_numpy()
        machines = sorted(rows.loc[~out, "machine"].unique())
        x = _decode_fit(rows[~out], machines).solve()
        part = _expected(rows[out], _decode_fit(rows[out], machines), x)
        found.append(part.assign(known=rows.loc[out, "machine"].isin(machines)))
    return pd.concat(found).reindex(rows.index)


# ── ranges ────────────────────────────────────────────────────────────────────────────────────────


def _fit_range(cases: pd.DataFrame) -> dict[str, Any]:
    """The spread of log(measured / expected) as ``predict.spread`` computes it, and the quantiles of what it leaves.

    ``cases`` are rows that were left out: ``machine``, ``group``, ``moe``, ``layers_part``, ``kv_part``, ``known``, ``miss``.
    """
    from scipy.optimize import minimize

    group = cases["group"].to_numpy(np.intp)
    unseen = ~cases["known"]
    terms = np.column_stack([cases["moe"], cases["layers_part"], cases["kv_part"], unseen & ~cases["moe"], unseen & cases["moe"]]).astype(float)
    miss = cases["miss"].to_numpy(float)
    # A machine with many rows says more than one with few, but not as much more.
    count = 1 / np.sqrt(cases.groupby("machine")["miss"].transform("size").to_numpy(float))
    n = len(GROUPS)

    def spread(x: Floats) -> Floats:
        found: Floats = np.exp(np.maximum(x[0] + x[1 : 1 + n][group] + terms @ x[1 + n :], -3.6))
        return found

    def loss(x: Floats) -> float:
        likelihood = float(np.sum(count * (np.log(spread(x)) + np.abs(miss) / spread(x))))
        return likelihood + float(np.sum(x[1 : 1 + n] ** 2) / (2 * _RANGE_FREE**2)) + float(np.sum(x[1 + n :] ** 2) / 2)

    # A machine that nobody measured is never easier to tell.
    bounds = [(None, None)] * (n + 4) + [(0.0, None)] * 2
    x = minimize(loss, np.concatenate([[-2.5], np.zeros(n + 5)]), method="L-BFGS-B", bounds=bounds).x
    low, high = _quantiles(miss / np.minimum(spread(x), predict.WIDEST), count, (0.05, 0.95))
    groups = {name: round(float(x[0] + x[1 + i]) + _ASSUMED_SPREAD.get(name, 0.0), 3) for i, name in enumerate(GROUPS)}
    named = dict(zip(("moe", "layers", "kv", "unseen", "unseen_moe"), (round(float(v), 3) for v in x[1 + n :]), strict=True))
    return {"groups": groups, **named, "low": round(low, 3), "high": round(high, 3)}


def _quantiles(values: Floats, counts: Floats, shares: Sequence[float]) -> list[float]:
    order = np.argsort(values)
    below = (np.cumsum(counts[order]) - counts[order] / 2) / counts.sum()
    return [float(np.interp(share, below, values[order])) for share in shares]


def _range_of(model: dict[str, Any], cases: pd.DataFrame) -> tuple[Floats, Floats]:
    """Lowest and highest rate over the expected one, by a range model."""
    spread = predict.spread(
        RangeModel.model_validate(model | {"coverage": 0.9}),
        group=cases["group"].to_numpy(np.intp),
        moe=cases["moe"].to_numpy(bool),
        layers_part=cases["layers_part"].to_numpy(float),
        kv_part=cases["kv_part"].to_numpy(float),
        known=cases["known"].to_numpy(bool),
    )
    return np.exp(model["low"] * spread), np.exp(model["high"] * spread)


def _ranged(cases: pd.DataFrame, folds: int = 8) -> tuple[dict[str, Any], pd.DataFrame]:
    """The range model of all cases, and each case's range by a model that has not seen its device."""
    machines = sorted(cases["machine"].unique())
    low, high = pd.Series(np.nan, index=cases.index), pd.Series(np.nan, index=cases.index)
    for fold in range(min(folds, len(machines))):
        out = cases["machine"].isin(machines[fold::folds])
        low[out], high[out] = _range_of(_fit_range(cases[~out]), cases[out])
    ratio = np.exp(cases["miss"])
    found = cases.assign(low=low, high=high, inside=(ratio >= low) & (ratio <= high), width=high / low)
    model = _fit_range(cases)
    return model | {"coverage": round(float(np.average(found["inside"])), 3)}, found


# ── errors ────────────────────────────────────────────────────────────────────────────────────────


def _errors(cases: pd.DataFrame, phase: str, left_out: str) -> list[dict[str, Any]]:
    """Median, ninth decile, coverage and width by kind and group, and over all groups."""
    found = []
    parts = [("all", cases), *((GROUPS[i], part) for i, part in cases.groupby("group"))]
    for name, part in parts:
        for kind, chosen in (("dense", part[~part["moe"]]), ("MoE", part[part["moe"]])):
            if chosen.empty:
                continue
            off = (np.exp(-chosen["miss"]) - 1).abs()
            row = {"phase": phase, "group": name, "kind": kind, "left_out": left_out, "rows": len(chosen)}
            row |= {"median": round(float(off.median()), 4), "p90": round(float(off.quantile(0.9)), 4)}
            if "inside" in chosen:
                row |= {"coverage": round(float(chosen["inside"].mean()), 3), "width": round(float(np.exp(np.log(chosen["width"]).mean())), 2)}
            found.append(row)
    return found


def _misses(cases: pd.DataFrame, phase: str, left_out: str, most: int = 12) -> list[dict[str, Any]]:
    """The worst rates, one of each machine and model."""
    worst = cases.assign(size=cases["miss"].abs()).sort_values("size", ascending=False).drop_duplicates(["machine", "model_key"]).head(most)
    return [
        {
            "phase": phase,
            "device": row["device"],
            "model": row["model"][:80],
            "format": row["format"],
            "engine": row["engine"],
            "depth": float(row["depth"]),
            "left_out": left_out,
            "measured_tok_per_s": round(float(row["tok_per_s"]), 2),
            "expected_tok_per_s": round(float(row["tok_per_s"] * np.exp(-row["miss"])), 2),
            "source": row["source"][:120],
            "date": row["date"],
        }
        for row in worst.to_dict("records")
    ]


# ── prefill ───────────────────────────────────────────────────────────────────────────────────────


def prefill_rows(path: Path, decode: pd.DataFrame) -> pd.DataFrame:
    """The prefill rows of a CSV file whose machine the registry has and whose active parameters can be told; ``decode`` lends layers and K and V.

    Where builds and settings vary, the fastest of the latest year stands for a cell.
    """
    found = _read(path)
    if missing := [c for c in PREFILL_COLUMNS if c not in found.columns]:
        raise DataError(f"{path.name}: no column {missing[0]!r}; prefill files have {', '.join(PREFILL_COLUMNS)}")
    ids = {label: registry_device(label) for label in found["device"].unique()}
    test = found["test"].astype(str).str.extract(r"^pp(?P<n>\d+)(?: @ d(?P<d>\d+))?")
    alone = (found["batch"] == 1) & test["n"].notna() & found["device"].map(ids).ne("") & (found["date"].astype(str) >= "2024-09")
    alone &= ~found["software"].astype(str).str.contains("fa=0|batched", regex=True)
    found, test = found[alone], test[alone]
    lent = decode.drop_duplicates("model_key").set_index("model_key")
    rows = []
    for row, n, depth in zip(found.to_dict("records"), test["n"], test["d"].fillna(0), strict=True):
        sizes = _sizes(str(row["model"]), float(row["params_B"]), lent)
        if sizes is None:
            continue
        device = registry.load_device(ids[row["device"]])
        rows.append(
            _prefill_row(device.id, "", str(row["backend"]).lower().split(",")[0], str(row["software"]).lower(), sizes, int(n), float(depth))
            | {"device": row["device"], "model": row["model"], "format": str(row["format"]), "tok_per_s": float(row["tokens_per_s"])}
            | {"date": str(row["date"]), "source": str(row["source"])}
        )
    frame = pd.DataFrame(rows)
    if frame.empty:
        return frame
    frame = frame[frame["date"].str[:4] == frame.groupby(["machine", "backend", "model_key", "format"])["date"].transform(lambda d: d.str[:4].max())]
    cell = ["machine", "backend", "engine", "model_key", "format", "n_prompt", "depth"]
    return frame.assign(tok_per_s=frame.groupby(cell)["tok_per_s"].transform("max")).drop_duplicates(cell).reset_index(drop=True)


def _sizes(name: str, total_b: float, lent: pd.DataFrame) -> dict[str, Any] | None:
    """Active parameters, layers and K and V of a model that a row names; ``None`` where they cannot be told."""
    key = model_key(name)
    for model_id in registry.model_ids():
        model = registry.load_model(model_id)
        stored = variant(model, registry.load_format(model.formats[0]))
        if model_id == key or abs(stored.n_parameters / (total_b * 1e9) - 1) < 0.003:
            return {"model": model, "model_key": model_id, "moe": model.shape.experts is not None}
    active = re.search(r"[-.]a(\d+(?:\.\d+)?)b", key)
    moe = active is not None or "moe" in name.lower() or (key in lent.index and bool(lent.loc[key, "moe"]))
    total = re.search(r"(\d+(?:\.\d+)?)b", key)
    if np.isnan(total_b) and total is not None:
        total_b = float(total[1])
    if (moe and active is None) or key not in lent.index or np.isnan(total_b):
        return None
    n_layers, kv = float(lent.loc[key, "n_layers"]), float(lent.loc[key, "kv_bytes_per_token"])
    return {"model": None, "model_key": key, "moe": moe, "active": 1e9 * (float(active[1]) if active else total_b), "n_layers": n_layers, "kv": kv}


def _prefill_row(device_id: str, configuration: str, backend: str, engine: str, sizes: dict[str, Any], n: int, depth: float) -> dict[str, Any]:
    device = registry.load_device(device_id)
    chosen = registry.load_configuration(device, configuration)
    peak = device.peak("fp16", "bf16", "fp32", configuration=chosen)
    engine = next((name for name in ("mlx", "vllm", "ollama") if name in engine), "llama.cpp")
    middle = depth + n / 2
    model: Model | None = sizes["model"]
    if model is not None:
        stored = variant(model, registry.load_format(model.formats[0]))
        weight_flop = 2.0 * stored.n_active_parameters
        attention = limits.prefill_flop(stored, n_tokens=n, depth=int(depth)) / n - limits.prefill_flop(stored, n_tokens=1, depth=0)
    else:
        weight_flop = 2.0 * sizes["active"]
        arrays = (np.array([v]) for v in (sizes["active"], sizes["n_layers"], sizes["kv"], middle))
        attention = float(predict.attention_flop(*arrays)[0])
    return {
        "device_id": device_id,
        "machine": device_id,
        "family": device.family,
        "backend": backend,
        "engine": engine,
        "bandwidth_gb_per_s": chosen.bandwidth_bytes_per_s / 1e9,
        "model_key": sizes["model_key"],
        "moe": bool(sizes["moe"]),
        "n_prompt": n,
        "depth": depth,
        "weight_flop": weight_flop,
        "attention_flop": max(0.0, attention),
        "n_layers": float(model.shape.n_layer if model is not None else sizes["n_layers"]),
        "peak": peak.base("compute") if peak else np.nan,
    }


def _published_prefill() -> pd.DataFrame:
    rows = []
    for source in registry.load_published():
        for rate in source.rows:
            if not _usable(rate, "prefill") or rate.model is None:
                continue
            model = registry.load_model(rate.model)
            sizes = {"model": model, "model_key": rate.model, "moe": model.shape.experts is not None}
            rows.append(
                _prefill_row(rate.device, rate.configuration, rate.backend, rate.engine, sizes, rate.n_prompt, float(rate.depth))
                | {"device": registry.load_device(rate.device).name, "model": rate.model, "format": rate.format, "tok_per_s": rate.tok_per_s}
                | {"date": rate.date, "source": source.id}
            )
    return pd.DataFrame(rows)


#: As those of decode: the shares are for a chip of 100 FLOP per byte, and fall by a power of it.
_PREFILL_COMMON = {"share": (0.5, 0.6), "attention_share": (0.25, 0.6), "moe_factor": (0.5, 0.6)}
_PREFILL_GROUP_FREE = {"share": 0.5, "attention_share": 0.4, "moe_factor": 0.3}
_PREFILL_SLOPE, _PREFILL_LAYERS = (0.5, 0.5), (2.0, 0.7)


def _prefill_fit(rows: pd.DataFrame, layer_us: Floats) -> _Fit:
    """The rows of prefill with the terms of all groups, in the same order for any rows. A layer takes some times the ``layer_us`` of decode there."""
    one, group, moe = np.ones(len(rows)), _of_group(rows), rows["moe"].to_numpy(float)
    peak = rows["peak"].to_numpy(float)
    sizes: dict[str, Floats] = {
        "weights": rows["weight_flop"].to_numpy(float) / peak,
        "attention": rows["attention_flop"].to_numpy(float) / peak,
        "layers": 1e-6 * layer_us[group] * rows["n_layers"].to_numpy(float) / np.minimum(rows["n_prompt"].to_numpy(float), predict.PREFILL_BATCH),
    }
    of_field = {"share": {"weights": -one}, "attention_share": {"attention": -one}, "moe_factor": {"weights": -moe}}
    terms = [_Term(field, float(np.log(start)), free, of_field[field]) for field, (start, free) in _PREFILL_COMMON.items()]
    for i, name in enumerate(GROUPS):
        for field, free in _PREFILL_GROUP_FREE.items():
            terms.append(_Term(f"{field} {name}", 0.0, free, {part: growth * (group == i) for part, growth in of_field[field].items()}))
    poor = np.log(peak / (1e9 * rows["bandwidth_gb_per_s"].to_numpy(float)) / predict.USUAL_FLOP_PER_BYTE)
    terms.append(_Term("slope", *_PREFILL_SLOPE, {"weights": poor, "attention": poor}))
    terms.append(_Term("layers", float(np.log(_PREFILL_LAYERS[0])), _PREFILL_LAYERS[1], {"layers": one}))
    return _Fit(rows, sizes, terms, ["machine", "backend", "engine", "model_key"], _PREFILL_SOFT)


def _prefill_cases(rows: pd.DataFrame, layer_us: Floats, by: str) -> pd.DataFrame:
    """Each row by constants found without those that share its ``by``; a machine that is alone in its group has nothing to be told from."""
    found = []
    alone = rows["machine"].groupby(_of_group(rows)).transform("nunique") == 1 if by == "machine" else pd.Series(False, index=rows.index)
    for name in rows.loc[~alone, by].unique() if by else [None]:
        out = (rows[by] == name).to_numpy() if by else np.ones(len(rows), dtype=bool)
        x = _prefill_fit(rows[~out] if by else rows, layer_us).solve()
        there = _prefill_fit(rows[out], layer_us)
        parts, seconds = there.parts(x), there.seconds(x)
        part = rows[out].assign(group=_of_group(rows[out]), layers_part=parts["layers"] / seconds, miss=np.log(there.measured * seconds))
        found.append(part.assign(kv_part=parts.get("attention", np.zeros(len(part))) / seconds, known=by != "machine"))
    return pd.concat(found, ignore_index=True)


# ── all of it ─────────────────────────────────────────────────────────────────────────────────────


def calibrate(files: Sequence[Path], today: date) -> Calibration:
    """Fit everything anew to ``files`` and ``data/published``. ``DataError`` for a file that is neither of decode nor of prefill."""
    decode_files, prefill_files = [], []
    for path in files:
        columns = set(_read(path).columns)
        if "decode_tok_per_s" in columns:
            decode_files.append(path)
        elif "tokens_per_s" in columns:
            prefill_files.append(path)
        else:
            raise DataError(f"{path.name}: neither decode_tok_per_s nor tokens_per_s among its columns; see data/README.md")
    rows, dropped = _gather_decode(decode_files)
    fields, cases = _decode_fields(rows)
    more, more_dropped = _prefill_fields(rows, np.array([fields["decode"][name]["layer_us"] for name in GROUPS]), prefill_files)
    counted = pd.concat([rows["source"], more.pop("sources")])
    fields["errors"] += more.pop("errors")
    fields["misses"] += more.pop("misses")
    # A naive formula on the same rows: all of the nominal bandwidth, over the bytes.
    naive = cases.assign(miss=np.log(cases["tok_per_s"] * (cases["weight_gb"] + cases["kv_gb"]) / cases["bandwidth_gb_per_s"]))
    fields["errors"] += [e | {"group": "naive"} for e in _errors(naive, "decode", "none") if e["group"] == "all"]
    sources = {str(name): int(n) for name, n in counted.str.slice(0, 120).value_counts().sort_index().items()}
    everything = {
        "fitted": today,
        "rows": {"decode": len(rows), "prefill": more.pop("n_rows")},
        "sources": sources,
        "dropped": dropped | more_dropped,
        **fields,
        **more,
    }
    return Calibration.model_validate(everything)


def _decode_fields(rows: pd.DataFrame) -> tuple[dict[str, Any], pd.DataFrame]:
    machines = sorted(rows["machine"].unique())
    fit, group = _decode_fit(rows, machines), _of_group(rows)
    x = fit.solve()
    term = dict(zip(fit.names, x, strict=True))
    decode: dict[str, dict[str, Any]] = {}
    for i, name in enumerate(GROUPS):
        inside = rows[group == i]
        values = {field: float(np.exp(term[field] + term[f"{field} {name}"])) for field in _COMMON}
        decode[name] = {field: round(value, 2 if field.endswith("_us") else 3) for field, value in values.items()}
        decode[name] |= {"rows": len(inside), "devices": int(inside["machine"].nunique())}
        if inside.empty:
            given, note = _ASSUMED.get(name, ({}, "no row; what all groups have in common"))
            decode[name] |= given | {"assumed": True, "note": note}
    ages = {"layer_per_year": round(term["year"], 4), "old_share": round(float(np.exp(term["old"])), 3)}
    formats = {name: round(float(np.exp(term[f"format {name}"])), 3) for name in FORMAT_CLASSES}
    inside_cases = rows.assign(group=group, known=True, **_expected(rows, fit, x))
    inside_cases["miss"] = np.log(inside_cases["tok_per_s"] / inside_cases["expected"])
    left = []
    for by, column in (("device", "machine"), ("model", "model_key")):
        out = _left_out(rows, column)
        left.append(rows.assign(group=group, **out, miss=np.log(rows["tok_per_s"] / out["expected"]), by=by))
    range_model, ranged = _ranged(pd.concat(left, ignore_index=True))
    errors = _errors(inside_cases, "decode", "none")
    misses = []
    for by in ("device", "model"):
        errors += _errors(ranged[ranged["by"] == by], "decode", by)
        misses += _misses(ranged[ranged["by"] == by], "decode", by)
    fields = {
        "decode": decode,
        "formats": formats,
        "cpu_formats": _CPU_FORMATS,
        "ollama_factor": round(float(np.exp(term["ollama"])), 3),
        "latent_factor": round(float(np.exp(term["latent"])), 3),
        **ages,
        "devices": _device_factors(rows, group, machines, term),
        "decode_range": range_model,
        "errors": errors,
        "misses": misses,
    }
    return fields, inside_cases


def _device_factors(rows: pd.DataFrame, group: npt.NDArray[np.intp], machines: Sequence[str], term: Mapping[str, float]) -> list[dict[str, Any]]:
    """What each machine differs from its groups by: its age, and what is its own."""
    firsts = rows.drop_duplicates("machine").set_index("machine")
    sizes = rows["machine"].value_counts()
    found = []
    for name in machines:
        year = predict.chip_year(str(firsts.loc[name, "device"]))
        old, age = (0.0, 0.0) if year is None else (term["old"] * (year < predict.OLD_YEAR), max(year, predict.OLD_YEAR) - predict.MIDDLE_YEAR)
        found.append(
            {
                "name": firsts.loc[name, "device"],
                "device": firsts.loc[name, "device_id"],
                "family": firsts.loc[name, "family"],
                "bandwidth_gb_per_s": float(firsts.loc[name, "bandwidth_gb_per_s"]),
                "share": round(float(np.exp(term[f"share of {name}"] + old)), 3),
                "layer": round(float(np.exp(term[f"layer of {name}"] + term["year"] * age)), 3),
                "rows": int(sizes[name]),
                "groups": sorted({GROUPS[g] for g in group[(rows["machine"] == name).to_numpy()]}),
            }
        )
    return found


def _prefill_fields(decode: pd.DataFrame, layer_us: Floats, files: Sequence[Path]) -> tuple[dict[str, Any], dict[str, int]]:
    read = [prefill_rows(path, decode) for path in files]
    rows = pd.concat([*(r for r in read if len(r)), _published_prefill()], ignore_index=True)
    rows = rows.drop_duplicates(["machine", "backend", "engine", "model_key", "n_prompt", "depth", "tok_per_s"])
    known = rows["peak"].notna()
    rows = rows[known].reset_index(drop=True)
    fit, group = _prefill_fit(rows, layer_us), _of_group(rows)
    term = dict(zip(fit.names, fit.solve(), strict=True))
    prefill: dict[str, dict[str, Any]] = {}
    for i, name in enumerate(GROUPS):
        inside = rows[group == i]
        values = {field: round(float(np.exp(term[field] + term[f"{field} {name}"])), 3) for field in _PREFILL_COMMON}
        values["layer_us"] = round(float(np.exp(term["layers"]) * layer_us[i]), 1)
        prefill[name] = values | {"rows": len(inside), "devices": int(inside["machine"].nunique())}
        if inside.empty:
            share, note = _ASSUMED_PREFILL.get(name, (prefill[name]["share"], "no row; what all groups have in common"))
            prefill[name] |= {"share": share, "assumed": True, "note": note}
    left = [_prefill_cases(rows, layer_us, column).assign(by=by) for by, column in (("device", "machine"), ("model", "model_key"))]
    range_model, ranged = _ranged(pd.concat(left, ignore_index=True))
    no_row = {name for name in GROUPS if prefill[name]["rows"] == 0 and name not in _ASSUMED_SPREAD}
    groups = {name: round(spread + (_NO_ROW_SPREAD if name in no_row else 0.0), 3) for name, spread in range_model["groups"].items()}
    errors = _errors(_prefill_cases(rows, layer_us, ""), "prefill", "none")
    misses = []
    for by in ("device", "model"):
        errors += _errors(ranged[ranged["by"] == by], "prefill", by)
        misses += _misses(ranged[ranged["by"] == by], "prefill", by, most=6)
    fields = {
        "prefill": prefill,
        "prefill_slope": round(term["slope"], 3),
        "prefill_range": range_model | {"groups": groups},
        "errors": errors,
        "misses": misses,
    }
    dropped = {"prefill rows of a machine without a known peak": int((~known).sum())}
    return fields | {"n_rows": len(rows), "sources": rows["source"]}, dropped


_HEAD = "# Written by 'nbutils calibrate': constants of 'nbutils predict', the rows they were fitted to by source, and how far off they are."


def write(found: Calibration, path: Path | None = None) -> Path:
    """Keep a calibration in ``data/calibration.yaml``, an entry a line; the file appears by rename."""
    target = path or paths.data_dir() / "calibration.yaml"
    lines = [_HEAD]
    for name, value in found.model_dump(mode="json", exclude_none=True).items():
        if isinstance(value, dict):
            lines.append(f"{name}:")
            lines += [f"  {json.dumps(key, ensure_ascii=False)}: {json.dumps(entry, ensure_ascii=False)}" for key, entry in value.items()]
        elif isinstance(value, list):
            lines.append(f"{name}:")
            lines += [f"  - {json.dumps(entry, ensure_ascii=False)}" for entry in value]
        else:
            lines.append(f"{name}: {value}")
    paths.write_text(target, "\n".join(lines) + "\n")
    return target
