"""How fast it will be: a time per token from four parts, and a range that says how sure that is. Pure arithmetic on arrays.

Decode: the weights are read at a share of the nominal bandwidth, every layer takes some time besides, K and V are read at a share of their own.

    seconds = weights / (share x bandwidth) + layers x cost of one + K and V / (K and V's share x bandwidth)

Prefill: two operations per active weight and the attention's, each at a share of the dense FP16 peak, and a time per layer and batch of tokens.
The more arithmetic a chip has for every byte of bandwidth, the smaller is the share of it that programs reach.

    seconds = (FLOP of weights / share + FLOP of attention / its share) / (richness x peak) + layers x cost of one / 512

The constants are those of ``data/calibration.yaml``, by kind of machine and engine. One row is a case; every function takes arrays of all cases.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nbutils.specs_calibration import FORMAT_CLASSES, GROUPS, Calibration, RangeModel

__all__ = [
    "BACKENDS",
    "ENGINES",
    "FAMILIES",
    "HBM_GB_PER_S",
    "MIDDLE_YEAR",
    "OLD_YEAR",
    "PREFILL_BATCH",
    "PROCESSORS",
    "USUAL_FLOP_PER_BYTE",
    "USUAL_KV_BYTES_PER_LAYER",
    "Constants",
    "Prediction",
    "age_factors",
    "attention_flop",
    "chip_year",
    "constants",
    "decode_s",
    "format_class",
    "group_of",
    "looks_hybrid",
    "looks_latent",
    "predict_decode",
    "predict_prefill",
    "richness",
    "spread",
]

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.intp]

FAMILIES = ("nvidia-discrete", "nvidia-hbm", "nvidia-unified", "apple", "amd-discrete", "amd-unified", "intel", "qualcomm", "cpu")
BACKENDS = ("cuda", "metal", "rocm", "vulkan", "sycl", "cpu")
ENGINES = ("llama.cpp", "mlx", "ollama", "vllm")
#: From here a card of NVIDIA's carries stacked memory.
HBM_GB_PER_S = 1850.0
#: Groups of processors, where arithmetic binds before the memory does: unpacking few bits costs them as much as reading them.
PROCESSORS = ("cpu", "apple-cpu")
#: Chips from before this year have no units for products of matrices. A layer's time is that on a chip of ``MIDDLE_YEAR``.
OLD_YEAR, MIDDLE_YEAR = 2018, 2023
#: Tokens of a prompt that programs compute at once.
PREFILL_BATCH = 512
#: Peaks are compared at so many FLOP per byte of bandwidth.
USUAL_FLOP_PER_BYTE = 100.0
#: What most attention layers keep of a token: eight heads of K and V, 128 elements of two bytes each.
USUAL_KV_BYTES_PER_LAYER = 4096.0
#: Latent attention keeps 512 + 64 elements of two bytes in every model that has it.
_LATENT_BYTES = 1152.0
#: Bytes per weight, roughly, by class of format: to tell the size of a model from the bytes it reads.
BYTES_PER_WEIGHT = {"16": 2.0, "8": 1.06, "6": 0.78, "4": 0.6, "3": 0.42, "mxfp4": 0.55, "nvfp4": 0.6}


def group_of(family: str, backend: str, engine: str, bandwidth_gb_per_s: float) -> str:
    """Which constants a machine and an engine have; names in the lower case of ``FAMILIES``, ``BACKENDS`` and ``ENGINES``.

    >>> group_of("nvidia-discrete", "cuda", "llama.cpp", 1008), group_of("apple", "metal", "mlx", 546), group_of("apple", "cpu", "llama.cpp", 546)
    ('nvidia-discrete', 'apple-mlx', 'apple-cpu')
    """
    if backend == "cpu" or family == "cpu":
        return "apple-cpu" if family == "apple" else "cpu"
    if family == "nvidia-discrete" and bandwidth_gb_per_s >= HBM_GB_PER_S:
        return "nvidia-hbm"
    if family == "nvidia-unified" and engine == "vllm":
        return "nvidia-unified-vllm"
    if family == "apple" and engine == "mlx":
        return "apple-mlx"
    if family in ("amd-discrete", "amd-unified"):
        return f"{family}-vulkan" if backend == "vulkan" else f"{family}-rocm"
    return family


#: When the generations of chips came out, by what their names say; the first that is found.
_YEARS = tuple(
    (re.compile(pattern, re.IGNORECASE), year)
    for pattern, year in (
        (r"\bM1\b", 2020.9),
        (r"\bM2\b", 2022.5),
        (r"\bM3\b", 2023.8),
        (r"\bM4\b", 2024.4),
        (r"\bM5\b", 2025.8),
        (r"\bGTX (?:9|10)\d0|\bP(?:40|100)\b|\bTITAN X", 2016.4),
        (r"\bV100|\bMI[56]0\b|\bRX [45]\d0\b|\bVega", 2017.6),
        (r"\bRTX 20\d0|\bGTX 16\d0|\bTITAN RTX|\bT4\b|\bRX 5\d00", 2018.8),
        (r"\bGB10\b|\b(?:DGX|RTX) Spark|\bN1X?\b|\bThor\b", 2025.8),
        (r"Blackwell|\bRTX 50\d0|\bB[23]00", 2025.1),
        (r"\bAda\b|\bRTX 40\d0|\bL4\b|\bL40S?\b|\bG?H[12]00|\bOrin|\bRX 7\d00|\bW7\d00|\b7[48]0M|\bMI300|\bArc A\d", 2022.8),
        (r"\bRTX 30\d0|\bA(?:2|10|16|30|40|100)\b|\bRTX A\d000|\bRX 6\d00|\bMI[12]\d{2}", 2020.7),
        (r"\bRX 90\d0|\bR9700|Strix Halo|\bAI Max|\b80[56]0S", 2025.2),
        (r"\bArc (?:Pro )?B\d|\b1[34]0[VT]\b|\b8[89]0M|Snapdragon X", 2024.7),
    )
)


def chip_year(name: str) -> float | None:
    """When a chip's generation came out, as far as its name says it.

    >>> [chip_year(n) for n in ("Apple MacBook Pro, M5 Max (40-core GPU)", "NVIDIA GeForce GTX 1080 Ti", "NVIDIA RTX A6000", "a box")]
    [2025.8, 2016.4, 2020.7, None]
    """
    return next((year for pattern, year in _YEARS if pattern.search(name)), None)


def age_factors(found: Calibration, year: float | None) -> tuple[float, float]:
    """Factors of the share and of a layer's time that a chip of a year has; 1 and 1 where its name does not say one."""
    if year is None:
        return 1.0, 1.0
    old_share = found.old_share if year < OLD_YEAR else 1.0
    return old_share, math.exp(found.layer_per_year * (max(year, OLD_YEAR) - MIDDLE_YEAR))


def format_class(spelling: str) -> str:
    """The class of a format in any spelling; four bits where it cannot be told.

    >>> [format_class(s) for s in ("Q4_K_M", "MLX 8bit", "bf16", "UD-Q8_K_XL", "IQ2_XXS", "MXFP4 MoE", "nvfp4", "fp8", "")]
    ['4', '8', '16', '8', '3', 'mxfp4', 'nvfp4', '8', '4']
    """
    said = re.sub(r"[\s_\-]", "", spelling.lower())
    if "nvfp4" in said:
        return "nvfp4"
    if "mxfp4" in said or "mx4" in said:
        return "mxfp4"
    if re.search(r"b?f(p|loat)?16|f32", said):
        return "16"
    bits = re.search(r"(?:q|fp|int|bit|w|mlx)(\d)|(\d)(?:\.\d)?bit", said)
    n_bits = int(bits[1] or bits[2]) if bits else 4
    return "3" if n_bits <= 3 else "4" if n_bits == 4 else "6" if n_bits <= 6 else "8"


def looks_hybrid(kv_bytes_per_token: Floats, n_layers: Floats, moe: Bools, parameters: Floats) -> Bools:
    """Whether most layers keep a recurrent state: models whose cache is far smaller than attention in all layers would leave.

    A guess from sizes, for rows that name no model. ``parameters`` are those that a token reads. Zero bytes of K and V tell nothing.
    """
    per_layer = kv_bytes_per_token / n_layers
    weights = parameters / n_layers
    dense = (per_layer <= 1100) & (weights > 4e7) & (per_layer < 0.092 * np.sqrt(weights))
    return (kv_bytes_per_token > 0) & np.where(moe, per_layer <= 600, dense)


def looks_latent(kv_bytes_per_token: Floats, n_layers: Floats) -> Bools:
    """Whether one compressed vector per layer is kept, by its size."""
    return np.abs(kv_bytes_per_token / n_layers - _LATENT_BYTES) < 1


def decode_s(
    *, weight_bytes: Floats, kv_bytes: Floats, n_layers: Floats, bandwidth_bytes_per_s: Floats, share: Floats, kv_share: Floats, layer_s: Floats
) -> tuple[Floats, Floats, Floats]:
    """Seconds of a token in three parts: reading the weights, what the layers take besides, reading K and V."""
    return (
        weight_bytes / (share * bandwidth_bytes_per_s),
        n_layers * layer_s,
        kv_bytes / (kv_share * bandwidth_bytes_per_s),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """The constants of each case, put together; ``known`` where its machine is among the rows they were fitted to."""

    share: Floats
    kv_share: Floats
    layer_s: Floats
    group: Ints
    known: Bools


def constants(
    found: Calibration,
    *,
    group: Ints,
    format_index: Ints,
    device_share: Floats,
    device_layer: Floats,
    known: Bools,
    moe: Bools,
    hybrid: Bools,
    latent: Bools,
    ollama: Bools,
) -> Constants:
    """The constants of each case: its group's, with the factors of its format, its machine and its engine. Experts and a state cost a layer more.

    ``group`` and ``format_index`` are places in ``GROUPS`` and ``FORMAT_CLASSES``; the factors of an unknown machine are 1.
    """
    groups = [found.decode[name] for name in GROUPS]
    share, kv_share, layer_us, moe_us, hybrid_us = (
        np.array([getattr(g, name) for g in groups])[group] for name in ("share", "kv_share", "layer_us", "moe_us", "hybrid_us")
    )
    of_cards, of_processors = (np.array([by[name] for name in FORMAT_CLASSES])[format_index] for by in (found.formats, found.cpu_formats))
    formats = np.where(np.isin(group, [GROUPS.index(name) for name in PROCESSORS]), of_processors, of_cards)
    factor = device_layer * np.where(ollama, found.ollama_factor, 1.0)
    return Constants(
        share=share * device_share * formats,
        kv_share=kv_share * device_share * np.where(latent, found.latent_factor, 1.0),
        layer_s=1e-6 * (layer_us + moe_us * moe + hybrid_us * hybrid) * factor,
        group=group,
        known=known,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Rates in tok/s: never below, expected, never above but one time in twenty each; and the ceiling, which none of them passes."""

    ceiling: Floats
    expected: Floats
    low: Floats
    high: Floats


#: A spread beyond which a range would say nothing: highest over lowest is about fifteen then.
WIDEST = 0.6


def spread(model: RangeModel, *, group: Ints, moe: Bools, layers_part: Floats, kv_part: Floats, known: Bools) -> Floats:
    """The spread of log(measured / expected)."""
    base = np.array([model.groups[name] for name in GROUPS])[group]
    unseen = np.where(known, 0.0, np.where(moe, model.unseen_moe, model.unseen))
    log_spread = base + model.moe * moe + model.layers * layers_part + model.kv * kv_part + unseen
    spreads: Floats = np.minimum(np.exp(log_spread), WIDEST)
    return spreads


def _within(model: RangeModel, ceiling: Floats, expected: Floats, sigma: Floats) -> Prediction:
    expected = np.minimum(expected, ceiling)
    return Prediction(
        ceiling=ceiling,
        expected=expected,
        low=expected * np.exp(model.low * sigma),
        high=np.minimum(expected * np.exp(model.high * sigma), ceiling),
    )


def predict_decode(
    found: Calibration,
    chosen: Constants,
    *,
    weight_bytes: Floats,
    kv_bytes: Floats,
    n_layers: Floats,
    bandwidth_bytes_per_s: Floats,
    moe: Bools,
    more_spread: Floats | float = 0.0,
) -> Prediction:
    """Decode of one sequence. ``more_spread`` is added to the spread in quadrature, for cases with something estimated."""
    parts = decode_s(
        weight_bytes=weight_bytes,
        kv_bytes=kv_bytes,
        n_layers=n_layers,
        bandwidth_bytes_per_s=bandwidth_bytes_per_s,
        share=chosen.share,
        kv_share=chosen.kv_share,
        layer_s=chosen.layer_s,
    )
    seconds = parts[0] + parts[1] + parts[2]
    sigma = spread(found.decode_range, group=chosen.group, moe=moe, layers_part=parts[1] / seconds, kv_part=parts[2] / seconds, known=chosen.known)
    ceiling = bandwidth_bytes_per_s / (weight_bytes + kv_bytes)
    return _within(found.decode_range, ceiling, 1 / seconds, np.hypot(sigma, more_spread))


# ── prefill ───────────────────────────────────────────────────────────────────────────────────────


def attention_flop(active_parameters: Floats, n_layers: Floats, kv_bytes_per_token: Floats, depth: Floats) -> Floats:
    """FLOP of attention for one token that sees ``depth`` others, where no shape is known: two products per element of the queries.

    A layer has about twelve weights per squared width. One that keeps a quarter of the usual may have fewer heads of K and V, or be one that
    attends among three that do not: the root of what is kept lies between.
    """
    width = np.sqrt(active_parameters / (12 * n_layers))
    kept = np.sqrt(kv_bytes_per_token / (USUAL_KV_BYTES_PER_LAYER * n_layers))
    full = np.where(kv_bytes_per_token > 0, np.minimum(1.0, kept), 1.0)
    return 4 * n_layers * full * width * depth


def richness(found: Calibration, peak_flop_per_s: Floats, bandwidth_bytes_per_s: Floats) -> Floats:
    """A factor of the shares of the peak: 1 at 100 FLOP per byte, less for chips with more."""
    rich: Floats = (peak_flop_per_s / bandwidth_bytes_per_s / USUAL_FLOP_PER_BYTE) ** -found.prefill_slope
    return rich


def predict_prefill(
    found: Calibration,
    *,
    group: Ints,
    weight_flop: Floats,
    attention_flop: Floats,
    peak_flop_per_s: Floats,
    bandwidth_bytes_per_s: Floats,
    n_layers: Floats,
    ceiling: Floats,
    moe: Bools,
    known: Bools,
    more_spread: Floats | float = 0.0,
) -> Prediction:
    """Prefill: FLOP of one token, the dense FP16 peak, and the ceiling in tok/s by the best peak that may be used (infinite where none is known)."""
    reached = richness(found, peak_flop_per_s, bandwidth_bytes_per_s) * peak_flop_per_s
    share, attention_share, moe_factor, layer_us = (
        np.array([getattr(found.prefill[name], field) for name in GROUPS])[group] for field in ("share", "attention_share", "moe_factor", "layer_us")
    )
    linear_s = weight_flop / (share * np.where(moe, moe_factor, 1.0) * reached)
    attention_s = attention_flop / (attention_share * reached)
    layers_s = n_layers * 1e-6 * layer_us / PREFILL_BATCH
    seconds = linear_s + attention_s + layers_s
    sigma = spread(found.prefill_range, group=group, moe=moe, layers_part=layers_s / seconds, kv_part=attention_s / seconds, known=known)
    return _within(found.prefill_range, ceiling, 1 / seconds, np.hypot(sigma, more_spread))
