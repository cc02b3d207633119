"""Constants of ``predict``, fitted to published speeds: CSV files of others' measurements and the rates of ``data/published``.

One set of constants per kind of machine and engine, drawn towards what all have in common, the more so the fewer rows there are; factors for
machines, drawn towards 1. Large misses count less than their square (soft l1), and many rows of one machine with one file count less than as many
of different ones. How good that is, is said by rows left out: all of one device, all of one model. Needs scipy, which the prediction does not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from nbutils import limits, paths, predict, registry
from nbutils.errors import DataError
from nbutils.specs import Model, PublishedRate
from nbutils.specs_calibration import FORMAT_CLASSES, GROUPS, Calibration
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

#: Constants are fitted as logarithms: what well-kept kernels reach before any row is seen, and how far a group may lie from what all have in common.
_START = {"share": 0.92, "kv_share": 0.75, "layer_us": 70.0, "moe_factor": 1.7, "hybrid_factor": 1.4}
_FREE = {"share": 0.08, "kv_share": 0.25, "layer_us": 0.5, "moe_factor": 0.25, "hybrid_factor": 0.2}
_FIELDS = tuple(_START)
_START_FREE = 0.1
_FORMAT_FREE = {"16": 0.05, "8": 0.05, "6": 0.05, "4": 0.05, "3": 0.08, "mxfp4": 0.08, "nvfp4": 0.3}
_DEVICE_SHARE_FREE, _DEVICE_LAYER_FREE = 0.04, 0.15
#: From this miss on, as a logarithm, a row counts less than its square.
_SOFT = 0.1
#: Rows of one machine, engine, model and format count as many as this power of their number.
_REPEATS = 0.2
#: Rows that read a context of unknown size up to here are kept; deeper ones say nothing of the weights.
_SHALLOW_TOKENS = 6000
#: Of these no row was found. From the makers of fast kernels and of CPU tables; wide ranges say the rest.
_ASSUMED: dict[str, tuple[dict[str, float], str]] = {
    "nvidia-hbm": (
        {"share": 0.74, "layer_us": 72.0},
        "no current row; as gpt-fast, tinychat and others printed for A100 and H100 in 2023 and 2024, fitted the same way; a layer costs newer"
        " programs less, so small models and mixtures may run faster",
    ),
    "cpu": (
        {"share": 0.5, "kv_share": 0.5, "layer_us": 40.0, "moe_factor": 1.5},
        "no row; between the 0.56 of a Ryzen 7950X and the 0.58 of an EPYC 9554 with large dense models, less for processors with fewer cores",
    ),
    "apple-cpu": (
        {"share": 0.22, "kv_share": 0.22, "layer_us": 60.0, "moe_factor": 1.5},
        "no row; an M2 Max read at 0.21 of what its GPU may use",
    ),
    "qualcomm": ({"share": 0.6, "layer_us": 120.0}, "no row; a guess below Intel's"),
}
_ASSUMED_SPREAD = 0.45
#: Shares of prefill that older builds reached where no current row was found.
_ASSUMED_PREFILL = {
    "nvidia-hbm": (0.3, "no current row; between the A100 and the H100 under llama.cpp of May 2024, of which newer builds reach more")
}


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
    """The rows of ``more`` that are not in ``rows`` already: the same machine, rate and depth, and about the same bytes."""
    kept = []
    for row in more.to_dict("records"):
        same = rows[(rows["device_id"] == row["device_id"]) & ((rows["tok_per_s"] / row["tok_per_s"] - 1).abs() < 0.006)]
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


# ── the fit of decode ─────────────────────────────────────────────────────────────────────────────


class _Decode:
    """The rows as arrays, and the constants as one vector of logarithms."""

    def __init__(self, rows: pd.DataFrame, machines: Sequence[str]) -> None:
        def place(name: str, dtype: type) -> Any:
            return rows[name].to_numpy(dtype)

        self.machines = list(machines)
        groups = [predict.group_of(*row) for row in rows[["family", "backend", "engine", "bandwidth_gb_per_s"]].itertuples(index=False, name=None)]
        self.group = np.array([GROUPS.index(name) for name in groups], dtype=np.intp)
        where = {name: i for i, name in enumerate(machines)}
        self.device = np.array([where.get(name, -1) for name in rows["machine"]], dtype=np.intp)
        self.format = np.array([FORMAT_CLASSES.index(predict.format_class(f)) for f in rows["format"]], dtype=np.intp)
        self.moe, self.hybrid, self.latent = (place(name, bool) for name in ("moe", "hybrid", "latent"))
        self.ollama = (rows["engine"] == "ollama").to_numpy(bool)
        self.weight = 1e9 * place("weight_gb", float)
        self.kv = 1e9 * place("kv_gb", float)
        self.layers = place("n_layers", float)
        self.bandwidth = 1e9 * place("bandwidth_gb_per_s", float)
        self.measured = place("tok_per_s", float)
        repeats = rows.groupby(["machine", "backend", "engine", "model_key", "format"])["tok_per_s"].transform("size").to_numpy(float)
        self.counts = repeats ** ((_REPEATS - 1) / 2)

    def parts(self, x: Floats) -> tuple[Floats, Floats, Floats]:
        n, m = len(GROUPS), len(self.machines)
        common, groups = x[:5], x[5 : 5 + 5 * n].reshape(5, n)
        rest = x[5 + 5 * n :]
        share, kv_share, layer, moe, hybrid = (np.exp(common[i] + groups[i][self.group]) for i in range(5))
        device_share = np.exp(np.append(rest[:m], 0.0)[self.device])
        device_layer = np.exp(np.append(rest[m : 2 * m], 0.0)[self.device])
        formats = np.exp(rest[2 * m : 2 * m + len(FORMAT_CLASSES)][self.format])
        ollama, latent = np.exp(rest[-2]), np.exp(rest[-1])
        factor = device_layer * np.where(self.ollama, ollama, 1) * np.where(self.moe, moe, 1) * np.where(self.hybrid, hybrid, 1)
        return predict.decode_s(
            weight_bytes=self.weight,
            kv_bytes=self.kv,
            n_layers=self.layers,
            bandwidth_bytes_per_s=self.bandwidth,
            share=share * device_share * formats,
            kv_share=kv_share * device_share * np.where(self.latent, latent, 1),
            layer_s=1e-6 * layer * factor,
        )

    def expected(self, x: Floats) -> Floats:
        """tok/s, never above what nominal bandwidth allows."""
        return np.minimum(1 / sum(self.parts(x)), self.bandwidth / (self.weight + self.kv))

    def fit(self) -> Floats:
        from scipy.optimize import least_squares

        n, m = len(GROUPS), len(self.machines)
        start = np.log(np.array(list(_START.values())))
        free = np.repeat(list(_FREE.values()), n)
        format_free = np.array([_FORMAT_FREE[name] for name in FORMAT_CLASSES])

        def residuals(x: Floats) -> Floats:
            miss = np.log(sum(self.parts(x)) * self.measured) / _SOFT
            soft = np.sign(miss) * np.sqrt(2 * (np.sqrt(1 + miss**2) - 1)) * self.counts
            rest = x[5 + 5 * n :]
            return np.concatenate(
                [
                    soft,
                    (x[:5] - start) / _START_FREE,
                    x[5 : 5 + 5 * n] / free,
                    rest[:m] / _DEVICE_SHARE_FREE,
                    rest[m : 2 * m] / _DEVICE_LAYER_FREE,
                    rest[2 * m : 2 * m + len(FORMAT_CLASSES)] / format_free,
                    rest[-2:] / np.array([0.1, 0.4]),
                ]
            )

        x0 = np.concatenate([start, np.zeros(5 * n + 2 * m + len(FORMAT_CLASSES) + 2)])
        found: Floats = least_squares(residuals, x0, x_scale="jac", max_nfev=60).x
        return found


def _fit_decode(rows: pd.DataFrame) -> tuple[_Decode, Floats]:
    data = _Decode(rows, sorted(rows["machine"].unique()))
    return data, data.fit()


def _left_out(rows: pd.DataFrame, by: str) -> pd.DataFrame:
    """What is expected of each row by constants found without all rows that share its ``by``, with the parts of its time."""
    found = pd.DataFrame({"expected": np.nan, "layers_part": np.nan, "kv_part": np.nan}, index=rows.index)
    for name in rows[by].unique():
        out = (rows[by] == name).to_numpy()
        data, x = _fit_decode(rows[~out])
        there = _Decode(rows[out], data.machines)
        parts = there.parts(x)
        seconds = sum(parts)
        found.loc[out, "expected"] = there.expected(x)
        found.loc[out, "layers_part"] = parts[1] / seconds
        found.loc[out, "kv_part"] = parts[2] / seconds
        found.loc[out, "known"] = there.device >= 0
    found["known"] = found["known"].astype(bool)
    return found


# ── ranges ────────────────────────────────────────────────────────────────────────────────────────


def _fit_range(cases: pd.DataFrame) -> dict[str, Any]:
    """The spread of log(measured / expected) as ``predict.spread`` computes it, and the quantiles of what it leaves.

    ``cases`` are rows that were left out: ``group``, ``moe``, ``layers_part``, ``kv_part``, ``known``, ``miss``, ``count``.
    """
    from scipy.optimize import minimize

    group = cases["group"].to_numpy(np.intp)
    terms = np.column_stack([cases["moe"], cases["layers_part"], cases["kv_part"], ~cases["known"] & ~cases["moe"]]).astype(float)
    miss, count = cases["miss"].to_numpy(float), cases["count"].to_numpy(float)
    n = len(GROUPS)

    def loss(x: Floats) -> float:
        log_spread = np.maximum(x[0] + x[1 : 1 + n][group] + terms @ x[1 + n :], -3.6)
        likelihood = float(np.sum(count * (log_spread + np.abs(miss) / np.exp(log_spread))))
        return likelihood + float(np.sum(x[1 : 1 + n] ** 2) / (2 * 0.25**2)) + float(np.sum(x[1 + n :] ** 2) / 2)

    # A machine that nobody measured is never easier to tell.
    bounds = [(None, None)] * (n + 4) + [(0.0, None)]
    x = minimize(loss, np.concatenate([[-2.5], np.zeros(n + 4)]), method="L-BFGS-B", bounds=bounds).x
    spread = np.exp(np.maximum(x[0] + x[1 : 1 + n][group] + terms @ x[1 + n :], -3.6))
    low, high = _quantiles(miss / spread, count, (0.05, 0.95))
    groups = {name: round(float(x[0] + x[1 + i] + (_ASSUMED_SPREAD if name in _ASSUMED else 0)), 3) for i, name in enumerate(GROUPS)}
    named = dict(zip(("moe", "layers", "kv", "unseen"), (round(float(v), 3) for v in x[1 + n :]), strict=True))
    return {"groups": groups, **named, "low": round(low, 3), "high": round(high, 3)}


def _quantiles(values: Floats, counts: Floats, shares: Sequence[float]) -> list[float]:
    order = np.argsort(values)
    below = (np.cumsum(counts[order]) - counts[order] / 2) / counts.sum()
    return [float(np.interp(share, below, values[order])) for share in shares]


def _range_of(model: dict[str, Any], cases: pd.DataFrame) -> tuple[Floats, Floats]:
    """Lowest and highest rate over the expected one, by a range model."""
    base = np.array([model["groups"][name] for name in GROUPS])[cases["group"].to_numpy(np.intp)]
    log_spread = base + model["moe"] * cases["moe"] + model["layers"] * cases["layers_part"] + model["kv"] * cases["kv_part"]
    log_spread = (log_spread + model["unseen"] * (~cases["known"] & ~cases["moe"])).to_numpy(float)
    spread = np.minimum(np.exp(log_spread), predict.WIDEST)
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


_PREFILL_START = {"share": 0.5, "attention_share": 0.25, "moe_factor": 0.5}
_PREFILL_FREE = {"share": 0.5, "attention_share": 0.4, "moe_factor": 0.3}


class _Prefill:
    """Rows as arrays; shares as logarithms: one of each in common, and per group."""

    def __init__(self, rows: pd.DataFrame) -> None:
        groups = [predict.group_of(*row) for row in rows[["family", "backend", "engine", "bandwidth_gb_per_s"]].itertuples(index=False, name=None)]
        self.group = np.array([GROUPS.index(name) for name in groups], dtype=np.intp)
        self.moe = rows["moe"].to_numpy(bool)
        self.linear_s = rows["weight_flop"].to_numpy(float) / rows["peak"].to_numpy(float)
        self.attention_s = rows["attention_flop"].to_numpy(float) / rows["peak"].to_numpy(float)
        self.measured = rows["tok_per_s"].to_numpy(float)
        repeats = rows.groupby(["machine", "backend", "engine", "model_key"])["tok_per_s"].transform("size").to_numpy(float)
        self.counts = repeats ** ((_REPEATS - 1) / 2)

    def parts(self, x: Floats) -> tuple[Floats, Floats]:
        n = len(GROUPS)
        share, attention, moe = (np.exp(x[i] + x[3 + i * n : 3 + (i + 1) * n][self.group]) for i in range(3))
        return self.linear_s / (share * np.where(self.moe, moe, 1)), self.attention_s / attention

    def fit(self) -> Floats:
        from scipy.optimize import least_squares

        n = len(GROUPS)
        start, free = np.log(list(_PREFILL_START.values())), np.repeat(list(_PREFILL_FREE.values()), n)

        def residuals(x: Floats) -> Floats:
            miss = np.log(sum(self.parts(x)) * self.measured) / 0.2
            soft = np.sign(miss) * np.sqrt(2 * (np.sqrt(1 + miss**2) - 1)) * self.counts
            return np.concatenate([soft, (x[:3] - start) / 0.6, x[3:] / free])

        found: Floats = least_squares(residuals, np.concatenate([start, np.zeros(3 * n)]), x_scale="jac", max_nfev=60).x
        return found


def _prefill_cases(rows: pd.DataFrame, by: str) -> pd.DataFrame:
    """Each row by constants found without those that share its ``by``; a machine that is alone in its group has nothing to be told from."""
    found = []
    groups = pd.Series(_Prefill(rows).group, index=rows.index)
    alone = rows["machine"].groupby(groups).transform("nunique") == 1 if by == "machine" else pd.Series(False, index=rows.index)
    for name in rows.loc[~alone, by].unique() if by else [None]:
        out = (rows[by] == name).to_numpy() if by else np.ones(len(rows), dtype=bool)
        x = _Prefill(rows[~out] if by else rows).fit()
        there = _Prefill(rows[out])
        linear, attention = there.parts(x)
        part = rows[out].assign(group=there.group, count=there.counts**2, layers_part=0.0, kv_part=attention / (linear + attention))
        part["miss"] = np.log(there.measured * (linear + attention))
        part["known"] = by != "machine"
        found.append(part)
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
    more, more_dropped = _prefill_fields(rows, prefill_files)
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
    data, x = _fit_decode(rows)
    n, m = len(GROUPS), len(data.machines)
    groups, rest = x[5 : 5 + 5 * n].reshape(5, n), x[5 + 5 * n :]
    decode: dict[str, dict[str, Any]] = {}
    for i, name in enumerate(GROUPS):
        inside = rows[data.group == i]
        values = {field: round(float(np.exp(x[j] + groups[j][i])), 2 if field == "layer_us" else 3) for j, field in enumerate(_FIELDS)}
        decode[name] = values | {"rows": len(inside), "devices": int(inside["machine"].nunique())}
        if inside.empty:
            given, note = _ASSUMED[name]
            decode[name] |= given | {"assumed": True, "note": note}
    firsts = rows.drop_duplicates("machine").set_index("machine")
    sizes = rows["machine"].value_counts()
    devices = [
        {
            "name": firsts.loc[name, "device"],
            "device": firsts.loc[name, "device_id"],
            "family": firsts.loc[name, "family"],
            "bandwidth_gb_per_s": float(firsts.loc[name, "bandwidth_gb_per_s"]),
            "share": round(float(np.exp(rest[i])), 3),
            "layer": round(float(np.exp(rest[m + i])), 3),
            "rows": int(sizes[name]),
            "groups": sorted({GROUPS[g] for g in data.group[(rows["machine"] == name).to_numpy()]}),
        }
        for i, name in enumerate(data.machines)
    ]
    formats = {name: round(float(np.exp(rest[2 * m + i])), 3) for i, name in enumerate(FORMAT_CLASSES)}
    parts = data.parts(x)
    inside_cases = rows.assign(
        group=data.group,
        layers_part=parts[1] / sum(parts),
        kv_part=parts[2] / sum(parts),
        known=True,
        miss=np.log(data.measured / data.expected(x)),
    )
    left = []
    for by, column in (("device", "machine"), ("model", "model_key")):
        out = _left_out(rows, column)
        # Every row counts alike: of all rows nine in ten are to lie inside.
        left.append(rows.assign(group=data.group, count=1.0, **out, miss=np.log(rows["tok_per_s"] / out["expected"]), by=by))
    range_model, ranged = _ranged(pd.concat(left, ignore_index=True))
    errors = _errors(inside_cases, "decode", "none")
    misses = []
    for by in ("device", "model"):
        errors += _errors(ranged[ranged["by"] == by], "decode", by)
        misses += _misses(ranged[ranged["by"] == by], "decode", by)
    fields = {
        "decode": decode,
        "formats": formats,
        "ollama_factor": round(float(np.exp(rest[-2])), 3),
        "latent_factor": round(float(np.exp(rest[-1])), 3),
        "devices": devices,
        "decode_range": range_model,
        "errors": errors,
        "misses": misses,
    }
    return fields, inside_cases


def _prefill_fields(decode: pd.DataFrame, files: Sequence[Path]) -> tuple[dict[str, Any], dict[str, int]]:
    read = [prefill_rows(path, decode) for path in files]
    rows = pd.concat([*(r for r in read if len(r)), _published_prefill()], ignore_index=True)
    rows = rows.drop_duplicates(["machine", "backend", "engine", "model_key", "n_prompt", "depth", "tok_per_s"])
    known = rows["peak"].notna()
    rows = rows[known].reset_index(drop=True)
    data = _Prefill(rows)
    x, n = data.fit(), len(GROUPS)
    prefill: dict[str, dict[str, Any]] = {}
    for i, name in enumerate(GROUPS):
        inside = rows[data.group == i]
        values = {field: round(float(np.exp(x[j] + x[3 + j * n + i])), 3) for j, field in enumerate(_PREFILL_START)}
        prefill[name] = values | {"rows": len(inside), "devices": int(inside["machine"].nunique())}
        if inside.empty:
            prefill[name] |= {"assumed": True, "note": "no row; what all groups have in common"}
        if name in _ASSUMED_PREFILL and inside.empty:
            prefill[name] |= dict(zip(("share", "note"), _ASSUMED_PREFILL[name], strict=True))
    left = [_prefill_cases(rows, column).assign(by=by) for by, column in (("device", "machine"), ("model", "model_key"))]
    range_model, ranged = _ranged(pd.concat(left, ignore_index=True))
    empty = {name: round(range_model["groups"][name] + (0.3 if prefill[name]["rows"] == 0 and name not in _ASSUMED else 0), 3) for name in GROUPS}
    errors = _errors(_prefill_cases(rows, ""), "prefill", "none")
    misses = []
    for by in ("device", "model"):
        errors += _errors(ranged[ranged["by"] == by], "prefill", by)
        misses += _misses(ranged[ranged["by"] == by], "prefill", by, most=6)
    fields = {"prefill": prefill, "prefill_range": range_model | {"groups": empty}, "errors": errors, "misses": misses}
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
