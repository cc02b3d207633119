"""The calculator's data, and its answers in Python: what the page of the book must equal.

``data`` writes down every coefficient that the page needs, computed by the modules below, so that the page only adds, multiplies and compares.
``answer``, ``compare`` and ``need`` are the reference: they call those modules themselves, and ``tests/browser/test_calculator_core.py``
holds the page against them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from datetime import date
from decimal import Decimal
from functools import lru_cache
from typing import Any
from urllib.parse import quote

import numpy as np

import nbutils
from nbutils import explain, fit, frames, frames_market, frames_predict, limits, paths, places, predict, registry
from nbutils.errors import UnknownId, UsageError, did_you_mean
from nbutils.explain import Line
from nbutils.frames_predict import Expected, Phase
from nbutils.places import OWN, Place
from nbutils.specs import Block, Model
from nbutils.specs_calibration import FORMAT_CLASSES, GROUPS, Calibration
from nbutils.tensors import Variant, variant

__all__ = ["BUDGET", "FILLED", "RANGES", "Query", "answer", "answer_of", "cheapest", "compare", "data", "link", "need", "to_json"]

#: The place of a query that asks for the fastest configuration its money buys.
BUDGET = "budget"
#: How much of the context is filled while a rate is asked for.
FILLED = ("empty", "half", "full")
#: Least and most of every number of a query. Whole numbers are those of ``_WHOLE``.
RANGES: dict[str, tuple[float, float]] = {
    "n_ctx": (1, 10**9),
    "batch": (1, 10**9),
    "budget_usd": (1, 1e9),
    "memory_gb": (0.001, 1e6),
    "bandwidth_gb_per_s": (0.001, 1e6),
    "compute_tflop_per_s": (0.001, 1e6),
    "power_w": (0.001, 1e6),
    "price_usd": (0.01, 1e9),
    "want_tok_per_s": (0.001, 1e9),
    "years": (0.01, 100),
    "usd_per_kwh": (0, 100),
}
_WHOLE = ("n_ctx", "batch")
_MAY_BE_UNKNOWN = ("compute_tflop_per_s", "power_w", "price_usd")
#: The most bandwidth that the inverse looks for, in bytes per second: beyond it nothing is expected to be fast enough.
_MOST_BANDWIDTH = 1e15
_BISECTIONS = 64
_ONE_SEQUENCE = "the prediction is for one sequence"


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What the form and the address of the page hold. ``None`` is unknown."""

    model: str = "llama-3.3-70b"
    format: str = "Q4_K_M"
    n_ctx: int = 8192
    kv_type: str = "f16"
    batch: int = 1
    filled: str = "half"
    #: A device and its configuration with a slash between, ``own`` or ``budget``.
    place: str = "dgx-spark/128gb"
    budget_usd: float = 4000
    #: The own machine: memory as it is sold, nominal bandwidth, dense FP16 peak, one of ``predict.FAMILIES``.
    memory_gb: float = 64
    bandwidth_gb_per_s: float = 256
    compute_tflop_per_s: float | None = None
    family: str = "amd-unified"
    power_w: float | None = None
    price_usd: float | None = None
    want_tok_per_s: float = 20
    years: float = frames.YEARS
    usd_per_kwh: float = frames.USD_PER_KWH

    @property
    def depth(self) -> int:
        """Tokens in the context while it decodes."""
        return {"empty": 0, "half": self.n_ctx // 2, "full": self.n_ctx}[self.filled]


# ── the address ───────────────────────────────────────────────────────────────────────────────────

#: Keys of a link in their order; the first ten always stand in it, the others where they matter or are not what is usual.
_KEYS = {"m": "model", "f": "format", "c": "n_ctx", "k": "kv_type", "b": "batch", "d": "filled", "p": "place", "t": "want_tok_per_s"}
_KEYS |= {"y": "years", "kwh": "usd_per_kwh", "budget": "budget_usd", "gb": "memory_gb", "gbs": "bandwidth_gb_per_s"}
_KEYS |= {"tflops": "compute_tflop_per_s", "family": "family", "w": "power_w", "usd": "price_usd"}
_ALWAYS = tuple(_KEYS.values())[:10]
_OF_OWN = ("memory_gb", "bandwidth_gb_per_s", "compute_tflop_per_s", "power_w", "price_usd", "family")


def link(query: Query) -> str:
    """The fragment of an address that asks the page this question: ``CalculatorCore.link``."""
    matters = {*_ALWAYS, *(_OF_OWN if query.place == OWN else ("budget_usd",) if query.place == BUDGET else ())}
    said = {key: getattr(query, name) for key, name in _KEYS.items() if name in matters or getattr(query, name) != getattr(Query(), name)}
    return "#" + "&".join(f"{key}={quote(_in_link(value), safe=_SAFE)}" for key, value in said.items() if value is not None)


#: What JavaScript's ``encodeURIComponent`` leaves as it is, and the slash of a place.
_SAFE = "/-_.!~*'()"


def _in_link(value: str | float) -> str:
    """A number with all its digits and no exponent."""
    if isinstance(value, str):
        return value
    text = f"{Decimal(repr(value)):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


# ── one question ──────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A query whose names were found."""

    query: Query
    variant: Variant
    cache: Block

    def compute(self, n_ctx: int) -> fit.ComputeBuffer | None:
        """What llama.cpp said of this context; ``None`` leaves the bound."""
        return frames.kept_compute(self.variant, n_ctx, self.query.kv_type) if self.query.batch == 1 else None


@lru_cache(maxsize=1024)
def _variant(_registry: str, model_id: str, format_id: str) -> Variant:
    model = registry.load_model(model_id)
    return variant(model, registry.load_format_of(model, format_id))


def _asked(query: Query) -> _Asked:
    """``UsageError`` for names that the registry lacks, for numbers out of range, and for a cache that the engine or the model cannot have."""
    return _asked_of(_variant(str(paths.data_dir()), query.model, query.format), query)


def _asked_of(stored: Variant, query: Query) -> _Asked:
    _check_numbers(query, "n_ctx", "batch", "years", "usd_per_kwh")
    if query.filled not in FILLED:
        raise UsageError(f"filled is {query.filled!r}{did_you_mean(query.filled, FILLED)}")
    cache = registry.load_cache_type(stored.engine, query.kv_type)
    fit.check_cache(stored.shape, cache, query.kv_type)
    fit.check_windows(stored, query.kv_type)
    return _Asked(query=query, variant=stored, cache=cache)


def _check_numbers(query: Query, *names: str) -> None:
    for name in names:
        value, (least, most) = getattr(query, name), RANGES[name]
        if value is None and name in _MAY_BE_UNKNOWN:
            continue
        if value is None or not least <= value <= most or (name in _WHOLE and value != int(value)):
            raise UsageError(f"{name} is {value}; it must be {'a whole number ' if name in _WHOLE else ''}from {least:,g} to {most:,g}")


@lru_cache(maxsize=4)
def _all_places(_registry: str) -> dict[str, Place]:
    """Every configuration on sale or not, by its id on the page, at its latest price; of a card with the computer around it."""
    return {f"{p.device_id}/{p.configuration}": _priced(p) for p in places.all_places()}


def _priced(here: Place) -> Place:
    assert here.device is not None
    asked = frames_market.latest_price(here.device, here.device.configuration(here.configuration))
    if asked is None:
        return replace(here, price_usd=None)
    return replace(here, price_usd=asked.usd, sources={**here.sources, "price": asked.source.title})


def _registry_places() -> dict[str, Place]:
    return _all_places(str(paths.data_dir()))


def _own(query: Query) -> Place:
    _check_numbers(query, *_OF_OWN[:-1])
    if query.family not in predict.FAMILIES:
        raise UsageError(f"family is {query.family!r}{did_you_mean(query.family, predict.FAMILIES)}")
    return places.typed(
        memory_gb=query.memory_gb,
        bandwidth_gb_per_s=query.bandwidth_gb_per_s,
        family=query.family,
        peak_flop_per_s=None if query.compute_tflop_per_s is None else query.compute_tflop_per_s * 1e12,
        power_w=query.power_w,
        price_usd=query.price_usd,
    )


def _place(asked: _Asked) -> Place:
    """Where the question is about. ``UsageError`` for a place that is none, and for a budget that buys none."""
    query = asked.query
    if query.place == BUDGET:
        fitting = [row["place"] for row in compare(query) if row["verdict"] != "does_not_fit"]
        if not fitting:
            raise UsageError(f"nothing on sale for {query.budget_usd:,.10g} USD holds it")
        return _registry_places()[fitting[0]]
    here = _own(query) if query.place == OWN else _registry_places().get(query.place)
    if here is None:
        raise UnknownId(f"no place {query.place!r}{did_you_mean(query.place, _registry_places())}")
    return here


def answer(query: Query) -> dict[str, Any]:
    """Everything the page says about one model in one place, with the lines of its arithmetic. ``UsageError`` for what has no answer."""
    asked = _asked(query)
    return _answer(asked, _place(asked))


def answer_of(stored: Variant, here: Place, query: Query) -> dict[str, Any]:
    """The same for a file or a machine that no query can name; model, format and place of ``query`` do not count.

    A machine of the registry counts at its latest price, as in ``answer``.
    """
    return _answer(_asked_of(stored, query), here if here.device is None else _priced(here))


def _answer(asked: _Asked, here: Place) -> dict[str, Any]:
    if not here.runs(asked.variant.engine):
        raise UsageError(f"{asked.variant.engine} is not made for {_place_id(here)}; choose a format that llama.cpp opens")
    return _numbers(asked, here) | {"lines": _lines(asked, here)}


def _place_id(here: Place) -> str:
    return here.device_id if here.device is None else f"{here.device_id}/{here.configuration}"


def _bandwidth(here: Place) -> float:
    if here.bandwidth_bytes_per_s is None:
        raise UsageError(f"the bandwidth of {_place_id(here)} is not known; 'nbutils probe' measures that of this machine")
    return here.bandwidth_bytes_per_s


def _limits(asked: _Asked, here: Place) -> tuple[limits.DecodeLimit, limits.PrefillLimit]:
    query, (peak, _) = asked.query, here.peak(asked.variant.arithmetic)
    both: dict[str, Any] = {"bandwidth_bytes_per_s": _bandwidth(here), "peak_flop_per_s": peak, "cache": asked.cache}
    return (
        limits.decode_limit(asked.variant, depth=query.depth, batch_size=query.batch, **both),
        limits.prefill_limit(asked.variant, n_tokens=query.n_ctx, **both),
    )


def _most_tok_per_s(prompt: limits.PrefillLimit) -> float:
    """What no prompt is read faster than: its ceiling, and where no peak is known, reading the weights once."""
    return prompt.n_tokens / max(prompt.bandwidth_s, prompt.compute_s or 0.0)


def _expected(asked: _Asked, here: Place, phase: Phase, most: float) -> tuple[Expected | None, str]:
    """What is to be expected, never above ``most``, or why nothing can be said."""
    query = asked.query
    if phase == "decode" and query.batch > 1:
        return None, _ONE_SEQUENCE
    depth = query.depth if phase == "decode" else query.n_ctx // 2
    try:
        found = frames_predict.expected_of_stored(asked.variant, here, depth=depth, phase=phase)
    except UsageError as error:
        return None, str(error)
    rates = {name: min(getattr(found, name), most) for name in ("expected_tok_per_s", "low_tok_per_s", "high_tok_per_s")}
    return replace(found, **rates, basis=found.basis + _cache_words(query.kv_type)), ""


def _cache_words(kv_type: str) -> str:
    return "" if kv_type == "f16" else f"; for a 16-bit cache, {kv_type} is chosen"


def _numbers(asked: _Asked, here: Place) -> dict[str, Any]:
    query, stored = asked.query, asked.variant
    largest = frames.largest_context(stored, here, kv_type=query.kv_type, batch_size=query.batch)
    found = frames.fit_row(
        stored, here, n_ctx=query.n_ctx, kv_type=query.kv_type, batch_size=query.batch, compute=asked.compute(query.n_ctx), largest=largest
    )
    limit, prompt = _limits(asked, here)
    decode, why_not = _expected(asked, here, "decode", limit.ceiling_tok_per_s)
    rate = decode.expected_tok_per_s if decode else limit.ceiling_tok_per_s
    usd = frames.usd_per_million(here, tok_per_s=rate, years=query.years, usd_per_kwh=query.usd_per_kwh)
    return found | {
        "place": _place_id(here),
        "depth": query.depth,
        "beyond_training": query.n_ctx > stored.shape.n_ctx_train,
        "bandwidth_bytes_per_s": here.bandwidth_bytes_per_s,
        "peak_flop_per_s": here.peak(stored.arithmetic)[0],
        "step_bytes": limit.step_bytes,
        "ceiling_tok_per_s": limit.ceiling_tok_per_s,
        "binding": limit.binding,
        "expected_tok_per_s": decode and decode.expected_tok_per_s,
        "low_tok_per_s": decode and decode.low_tok_per_s,
        "high_tok_per_s": decode and decode.high_tok_per_s,
        "expected_why_not": why_not,
        "basis": decode.basis if decode else "",
        "prompt": _prompt(asked, here, prompt),
        "rate_used": "expected" if decode else "ceiling",
        "energy_j_per_token": None if here.power_w is None else limits.energy_j_per_token(here.power_w, rate),
        "usd_per_million_tokens": usd,
        "power_w": here.power_w,
        "price_usd": here.price_usd,
    }


def _prompt(asked: _Asked, here: Place, prompt: limits.PrefillLimit) -> dict[str, Any]:
    """Reading a prompt of the whole context: rates in tok/s, and how long it takes in seconds. A high rate is a short time."""
    n, ceiling = prompt.n_tokens, prompt.ceiling_tok_per_s
    found, why_not = _expected(asked, here, "prefill", _most_tok_per_s(prompt))
    return {
        "n_tokens": n,
        "ceiling_tok_per_s": ceiling,
        "ceiling_s": None if ceiling is None else n / ceiling,
        "expected_tok_per_s": found and found.expected_tok_per_s,
        "expected_s": found and n / found.expected_tok_per_s,
        "low_s": found and n / found.high_tok_per_s,
        "high_s": found and n / found.low_tok_per_s,
        "expected_why_not": why_not,
        "basis": found.basis if found else "",
    }


# ── its arithmetic ────────────────────────────────────────────────────────────────────────────────


def _lines(asked: _Asked, here: Place) -> dict[str, list[Line]]:
    query, stored = asked.query, asked.variant
    budget = frames.budget_of(stored, here, n_ctx=query.n_ctx, cache=asked.cache, batch_size=query.batch, compute=asked.compute(query.n_ctx))
    limit, prompt = _limits(asked, here)
    peak, peak_source = here.peak(stored.arithmetic)
    return {
        "fit": explain.fit_lines(stored, budget, here.room, n_ctx=query.n_ctx, kv_type=query.kv_type, batch_size=query.batch, sources=here.sources),
        "limits": explain.limit_lines(
            stored,
            limit,
            bandwidth_bytes_per_s=_bandwidth(here),
            bandwidth_source=here.sources.get("bandwidth", ""),
            peak_flop_per_s=peak,
            peak_source=peak_source,
            depth=query.depth,
            cache=asked.cache,
        ),
        "expected": _expected_lines(asked, here, "decode", limit.ceiling_tok_per_s),
        "prompt": explain.prefill_lines(prompt) + _expected_lines(asked, here, "prefill", _most_tok_per_s(prompt)) + _time_lines(asked, here, prompt),
        "cost": _cost_lines(asked, here, limit.ceiling_tok_per_s),
    }


def _expected_lines(asked: _Asked, here: Place, phase: Phase, most: float) -> list[Line]:
    """The lines of a prediction, and of the ceiling where that is lower; none where nothing can be said."""
    query, stored = asked.query, asked.variant
    bounded, _ = _expected(asked, here, phase, most)
    if bounded is None:
        return []
    if stored.name not in registry.model_ids():
        return frames_predict.rate_lines(bounded)
    depth = query.depth if phase == "decode" else query.n_ctx // 2
    free = frames_predict.expected_of_stored(stored, here, depth=depth, phase=phase)
    lines = frames_predict.expected_lines(here, stored.name, stored.format, depth=depth, phase=phase)
    if free.high_tok_per_s > most:
        lines.append(Line("at most", most, "tok/s", "the ceiling of this very case, which none of the three passes"))
    return lines


def _time_lines(asked: _Asked, here: Place, prompt: limits.PrefillLimit) -> list[Line]:
    found = _prompt(asked, here, prompt)
    if found["expected_s"] is not None:
        return [Line("reading it takes", found["expected_s"], "s", f"{prompt.n_tokens:,} tokens / expected")]
    if found["ceiling_s"] is not None:
        return [Line("reading it takes", found["ceiling_s"], "s", f"{prompt.n_tokens:,} tokens / prefill ceiling: at least")]
    return []


def _cost_lines(asked: _Asked, here: Place, ceiling: float) -> list[Line]:
    query = asked.query
    decode, _ = _expected(asked, here, "decode", ceiling)
    rate = decode.expected_tok_per_s if decode else ceiling
    return explain.cost_lines(
        energy_j=None if here.power_w is None else limits.energy_j_per_token(here.power_w, rate),
        usd_per_million=frames.usd_per_million(here, tok_per_s=rate, years=query.years, usd_per_kwh=query.usd_per_kwh),
        power_w=here.power_w,
        price_usd=here.price_usd,
        years=query.years,
        usd_per_kwh=query.usd_per_kwh,
        rate="expected rate" if decode else "decode ceiling",
        sources=here.sources,
    )


# ── every device ──────────────────────────────────────────────────────────────────────────────────

_ROW: tuple[str, ...] = ("place", "device", "memory_gb", "verdict", "total_bytes", "available_bytes", "headroom_bytes", "max_ctx")
_ROW += ("ceiling_tok_per_s", "expected_tok_per_s", "low_tok_per_s", "high_tok_per_s", "price_usd", "usd_per_million_tokens")


def compare(query: Query) -> list[dict[str, Any]]:
    """The same question in every place that the engine is made for, fastest first; then where it does not fit, by what is missing.

    With ``own`` the machine that is described is among them; with ``budget`` only what is on sale and costs no more.
    """
    asked = _asked(query)
    if query.place == BUDGET:
        _check_numbers(query, "budget_usd")
    found = [p for p in _registry_places().values() if query.place != BUDGET or _is_bought(p, query.budget_usd)]
    if query.place == OWN:
        found.append(_own(query))
    rows = [_row(asked, here) for here in found if here.runs(asked.variant.engine)]
    rate = {row["place"]: row["ceiling_tok_per_s"] if row["expected_tok_per_s"] is None else row["expected_tok_per_s"] for row in rows}
    fitting = sorted((row for row in rows if row["verdict"] != "does_not_fit"), key=lambda row: -rate[row["place"]])
    return fitting + sorted((row for row in rows if row["verdict"] == "does_not_fit"), key=lambda row: -row["headroom_bytes"])


def cheapest(query: Query) -> dict[str, Any] | None:
    """Of what is on sale, the row of the cheapest that holds it, and the faster of two; ``None`` where nothing does."""
    rows = compare(replace(query, place=BUDGET, budget_usd=RANGES["budget_usd"][1]))
    return min((row for row in rows if row["verdict"] != "does_not_fit"), key=lambda row: row["price_usd"], default=None)


def _row(asked: _Asked, here: Place) -> dict[str, Any]:
    numbers = _numbers(asked, here)
    seconds = numbers["prompt"]["expected_s"] or numbers["prompt"]["ceiling_s"]
    return {name: numbers[name] for name in _ROW} | {"name": _label(here), "prompt_s": seconds}


def _label(here: Place) -> str:
    return f"{frames.short_name(here.device, here.configuration)}, {here.memory_gb:g} GB" if here.device else "your own"


def _is_bought(here: Place, budget_usd: float) -> bool:
    supply = frames_market.supply_of(here.device_id, here.configuration)
    on_sale = supply is not None and supply.state in frames_market.TO_BE_HAD
    return on_sale and here.price_usd is not None and here.price_usd <= budget_usd


# ── the inverse ───────────────────────────────────────────────────────────────────────────────────


def need(query: Query) -> dict[str, Any]:
    """What a rate of one sequence takes with the whole context filled: the numbers of ``nbutils need``, and the bandwidth at which it is expected."""
    _check_numbers(query, "want_tok_per_s")
    asked, want = _asked(replace(query, batch=1)), float(query.want_tok_per_s)
    stored = asked.variant
    step = limits.decode_step_bytes(stored, depth=query.n_ctx, cache=asked.cache)
    flop = limits.decode_flop(stored, depth=query.n_ctx)
    memory = fit.memory_budget(stored, n_ctx=query.n_ctx, available_bytes=0, cache=asked.cache, compute=asked.compute(query.n_ctx)).total_bytes
    family = _family(asked)
    expected = None if family is None else _expected_bandwidth(asked, family, max(want * step, 1.0))
    how = "no machine is chosen"
    if family is not None:
        nominal = "no bandwidth is expected to be enough" if expected is None else "nominal"
        how = f"{nominal}, with the constants of {frames_predict.usual_group(family, stored.engine, (expected or 0.0) / 1e9)}"
    return {
        "want_tok_per_s": want,
        "n_ctx": query.n_ctx,
        "kv_type": query.kv_type,
        "family": family,
        "bytes_per_token": step,
        "bandwidth_bytes_per_s": want * step,
        "expected_bandwidth_bytes_per_s": expected,
        "memory_bytes": memory,
        "flop_per_token": flop,
        "compute_flop_per_s": want * flop,
        "lines": [
            Line("step", round(step), "bytes/token", f"weights, state, and K and V of {query.n_ctx:,} tokens in {query.kv_type}"),
            Line("bandwidth", want * step, "bytes/s", f"bytes x {want:g} tok/s; below it the rate is impossible"),
            Line("expected at", expected, "bytes/s", how),
            Line("memory", memory, "bytes", "weights, caches and buffers; the runtime and the system come on top"),
            Line("arithmetic", flop, "FLOP/token", "two per active weight, and attention"),
            Line("compute", want * flop, "FLOP/s", f"FLOP x {want:g} tok/s"),
        ],
    }


def _family(asked: _Asked) -> str | None:
    """The family of the machine that is chosen; ``None`` where there is none, or none for this engine."""
    try:
        here = _place(asked)
    except UsageError:
        return None
    return here.family if here.runs(asked.variant.engine) else None


def _expected_bandwidth(asked: _Asked, family: str, least: float) -> float | None:
    """The nominal bytes/s from which on a machine of a family, no better than others of its kind, is expected to reach a rate."""
    stored, hbm = asked.variant, predict.HBM_GB_PER_S * 1e9
    for low, high in ((least, max(least, hbm)), (max(least, hbm), max(least, _MOST_BANDWIDTH))):
        rate_at = _rate_at(asked, frames_predict.usual_group(family, stored.engine, low / 1e9))
        if rate_at(high) >= asked.query.want_tok_per_s:
            return _least_that_reaches(rate_at, asked.query.want_tok_per_s, low, high)
    return None


def _least_that_reaches(rate_at: Callable[[float], float], wanted: float, low: float, high: float) -> float:
    for _ in range(_BISECTIONS):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if rate_at(middle) >= wanted else (middle, high)
    return high


def _rate_at(asked: _Asked, group: str) -> Callable[[float], float]:
    """The expected rate by bandwidth, with the constants of a group and no machine's own; 16-bit cache, the whole context filled."""
    stored, found, one = asked.variant, registry.load_calibration(), np.ones(1)
    shape = stored.shape
    moe = shape.experts is not None
    format_index = FORMAT_CLASSES.index(predict.format_class(stored.format))
    hybrid, latent = shape.recurrent is not None, shape.latent is not None
    chosen = _constants(found, group, format_index=format_index, moe=moe, hybrid=hybrid, latent=latent)

    def rate_at(bandwidth_bytes_per_s: float) -> float:
        got = predict.predict_decode(
            found,
            chosen,
            weight_bytes=one * (stored.step_weight_bytes + limits.recurrent_state_bytes(shape)),
            kv_bytes=one * limits.kv_bytes_read(shape, asked.query.n_ctx),
            n_layers=one * shape.n_layer,
            bandwidth_bytes_per_s=one * bandwidth_bytes_per_s,
            moe=np.array([moe]),
        )
        return float(got.expected[0])

    return rate_at


def _constants(found: Calibration, group: str, *, format_index: int, moe: bool, hybrid: bool, latent: bool) -> predict.Constants:
    """The constants of one case on a machine that has no factors of its own."""
    return predict.constants(
        found,
        group=np.array([GROUPS.index(group)]),
        format_index=np.array([format_index]),
        device_share=np.ones(1),
        device_layer=np.ones(1),
        known=np.array([False]),
        moe=np.array([moe]),
        hybrid=np.array([hybrid]),
        latent=np.array([latent]),
        ollama=np.array([False]),
    )


# ── what the page is given ────────────────────────────────────────────────────────────────────────


class _Table:
    """Values that repeat, each once, and its place among them."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._index: dict[Any, int] = {}

    def __call__(self, value: Any) -> int:
        if value not in self._index:
            self._index[value] = len(self.values)
            self.values.append(value)
        return self._index[value]


def data(today: date | None = None) -> dict[str, Any]:
    """Everything that the page computes with, as plain values.

    Fields; units are bytes, bytes/s, FLOP/s, W and USD, and ``#text`` and ``#peak`` are places in the tables of that name:

    ``version, date, fitted``: of this program, of the page, of the constants. ``defaults, ranges, whole, unknown, filled``: of a query.
    ``engines``: by engine the multiple that contexts are padded to, and its cache types. ``formats``: name, engine, class of format.
    ``models``: by id

    - ``name``; ``trained`` tokens; ``usual`` format; ``layers`` in words; ``n_layer``; ``growing`` and ``windowed`` layers; ``window``; ``chunked``
    - ``state`` and ``logits``: bytes of a sequence. ``hybrid``, ``latent``. ``experts`` of a layer, and those used
    - ``flop``: of a layer for a token seen; of the recurrent layers, and of the output head, for a token
    - ``bound``: the fields of ``fit.BoundSizes``. ``kept``: contexts, and by cache type the compute buffers that llama.cpp named for them
    - ``cells``: of a full window by engine. ``kv``: by engine and cache type the bytes of a token in a layer
    - ``formats``: by id weights, weights that a step reads, experts, the input embedding that stays beside a card, layers that only draft
      (all bytes), active parameters, place in ``arithmetic``

    ``arithmetic``: types whose peaks a format may reach. ``peaks``: FLOP/s and #text. ``text``: words. ``basis``: words of a compute buffer's.
    ``places``: by device/configuration

    - ``device``, its ``name``, a short ``label``, ``family``, ``gb`` as sold, ``discrete``, ``bandwidth``, ``power``
    - ``room``: memory, unusable, system, overhead. ``usd, asked, stale, unverified``: the latest price, of a card with a computer; stale after
      ``stale_days``. ``state`` of supply, ``on_sale`` the states in which it can be bought
    - ``sources``: #text of memory, unusable, system, overhead, bandwidth, power, price. ``peaks``: #peak by ``arithmetic``
    - ``where``: by engine the group, factors of share and layer, whether it is among the machines of the constants, the FP16 peak and its
      spread, and #text of what decode, prefill and the peak rest on

    ``typed``: ``frames_predict.typed_facts``, and ``bare``: system, overhead and #text of the room where a family has no device.
    ``predict``: the constants of ``data/calibration.yaml``; those of decode by group, as ``_decode_data`` has them. ``fit``: constants of the budget.
    """
    text, peaks, arithmetic = _Table(), _Table(), _Table()
    models = {model_id: _model_data(registry.load_model(model_id), arithmetic) for model_id in registry.model_ids()}
    day = today or date.today()
    found = {place_id: _place_data(here, day, arithmetic.values, text, peaks) for place_id, here in _registry_places().items()}
    return {
        "version": nbutils.__version__,
        "date": str(day),
        "fitted": str(registry.load_calibration().fitted),
        "defaults": asdict(Query()),
        "ranges": RANGES,
        "whole": _WHOLE,
        "unknown": _MAY_BE_UNKNOWN,
        "filled": FILLED,
        "engines": {
            engine: {"pad": 16 if engine == "vllm" else fit.CONTEXT_PAD, "kv": list(types)} for engine, types in registry.CACHE_TYPES.items()
        },
        "formats": {format_id: _format_data(format_id) for format_id in registry.load_formats()},
        "models": models,
        "arithmetic": arithmetic.values,
        "places": found,
        "on_sale": frames_market.TO_BE_HAD,
        "stale_days": frames_market.STALE_DAYS,
        "peaks": peaks.values,
        "typed": _typed_data(text),
        "predict": _predict_data(),
        "fit": {
            "margin": fit.BOUND_MARGIN,
            "padding": fit.BOUND_PADDING,
            "tight": fit.TIGHT_MARGIN,
            "n_ubatch": fit.N_UBATCH,
            "pad": fit.CONTEXT_PAD,
        },
        "basis": explain.BASIS_WORDS,
        "text": text.values,
    }


def to_json(found: dict[str, Any]) -> str:
    """``data`` as one line of JSON that may stand in a script element: no ``<``."""
    return json.dumps(found, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _format_data(format_id: str) -> dict[str, Any]:
    found = registry.load_format(format_id)
    engine = {"gguf": "llama.cpp", "safetensors": "vllm", "mlx": "mlx"}[found.container]
    return {"name": found.name, "engine": engine, "class": FORMAT_CLASSES.index(predict.format_class(format_id))}


def _model_data(model: Model, arithmetic: _Table) -> dict[str, Any]:
    shape = model.shape
    stored = {format_id: variant(model, registry.load_format(format_id)) for format_id in model.formats}
    by_engine = {v.engine: v for v in stored.values()}
    some = next(iter(stored.values()))
    kept = registry.load_answers(model.id)
    return {
        "name": model.name,
        "trained": shape.n_ctx_train,
        "usual": frames.usual_format(model),
        "layers": explain.layer_words(some),
        "n_layer": shape.n_layer,
        "growing": limits.growing_layers(shape),
        "windowed": shape.layer_kinds.count("window"),
        "window": shape.sliding_window,
        "chunked": shape.chunked,
        "state": limits.recurrent_state_bytes(shape),
        "logits": fit.output_buffer_bytes(shape),
        "flop": [limits.flop_per_seen(shape), limits.recurrent_flop(shape), 2 * shape.n_embd * shape.n_vocab],
        "experts": shape.experts and [shape.experts.n_expert, shape.experts.n_expert_used],
        "hybrid": shape.recurrent is not None,
        "latent": shape.latent is not None,
        "bound": asdict(fit.bound_sizes(shape)),
        # No context is so long that a window would not be full.
        "cells": {engine: fit.layer_cells(v, "window", 2**40) for engine, v in by_engine.items()},
        "kv": {engine: _cache_rows(v) for engine, v in by_engine.items()},
        "kept": None if kept is None else _kept_data(kept.compute_bytes),
        "formats": {format_id: _stored_data(v, arithmetic) for format_id, v in stored.items()},
    }


def _cache_rows(stored: Variant) -> dict[str, int]:
    """Bytes of a token in a layer by cache type, of those that the model can have."""
    rows = {}
    for kv_type in registry.CACHE_TYPES[stored.engine]:
        cache = registry.load_cache_type(stored.engine, kv_type)
        try:
            fit.check_cache(stored.shape, cache, kv_type)
            fit.check_windows(stored, kv_type)
        except UsageError:
            continue
        rows[kv_type] = limits.kv_row_bytes(stored.shape, cache)
    return rows


def _kept_data(answers: dict[str, tuple[tuple[int, int], ...]]) -> dict[str, Any]:
    contexts = sorted({n_ctx for pairs in answers.values() for n_ctx, _ in pairs})
    return {"n_ctx": contexts, **{kv_type: [dict(pairs).get(n_ctx) for n_ctx in contexts] for kv_type, pairs in answers.items()}}


def _stored_data(stored: Variant, arithmetic: _Table) -> list[int]:
    idle = fit.elsewhere_bytes(stored, discrete=False)
    beside_a_card = fit.elsewhere_bytes(stored, discrete=True) - idle
    embedding = max(0, beside_a_card - fit.output_buffer_bytes(stored.shape))
    experts = stored.groups["experts"].n_bytes if "experts" in stored.groups else 0
    return [stored.weight_bytes, stored.step_weight_bytes, experts, embedding, idle, stored.n_active_parameters, arithmetic(stored.arithmetic)]


_SOURCES = ("memory", "unusable", "system", "overhead", "bandwidth", "power", "price")


def _place_data(here: Place, today: date, arithmetic: Iterable[tuple[str, ...]], text: _Table, peaks: _Table) -> dict[str, Any]:
    assert here.device is not None
    configuration = here.device.configuration(here.configuration)
    asked, supply = frames_market.latest_price(here.device, configuration), frames_market.supply_of(here.device_id, here.configuration)
    reached = [here.peak(types) for types in arithmetic]
    room = here.room
    return {
        "device": here.device_id,
        "name": here.device.name,
        "label": _label(here),
        "family": here.family,
        "gb": _plain(here.memory_gb),
        "room": [room.memory_bytes, room.unusable_bytes, room.system_bytes, room.overhead_bytes],
        "discrete": here.discrete,
        "bandwidth": _plain(here.bandwidth_bytes_per_s),
        "power": _plain(here.power_w),
        "usd": _plain(here.price_usd),
        "asked": asked and str(asked.figure.asked),
        "stale": bool(asked and frames_market.is_stale(asked.figure.asked, today)),
        "unverified": bool(asked and asked.is_unverified),
        "state": supply.state if supply else "",
        "sources": [text(here.sources.get(name, "")) for name in _SOURCES],
        "peaks": [peaks((_plain(flop_per_s), text(source))) for flop_per_s, source in reached],
        "where": {engine: _where_data(here, engine, text) for engine in _engines(here)},
    }


def _plain(value: float | None) -> float | None:
    """A whole number without its point, which is shorter."""
    return int(value) if value is not None and value == int(value) else value


def _engines(here: Place) -> list[str]:
    return [engine for engine in registry.CACHE_TYPES if here.runs(engine)]


#: A format that each engine opens.
_OPENED = {"llama.cpp": "Q4_K_M", "vllm": "FP8", "mlx": "MLX_4BIT"}


def _where_data(here: Place, engine: str, text: _Table) -> list[Any]:
    found = frames_predict.where(here, _OPENED[engine])
    words = [text(said) for said in (*found.notes, found.peak_note)]
    return [GROUPS[found.group], found.share, found.layer, found.known, _plain(found.peak), found.peak_spread, *words]


def _typed_data(text: _Table) -> dict[str, Any]:
    families = {here.family for here in _registry_places().values()}
    nowhere = next(family for family in predict.FAMILIES if family not in families)
    bare = places.typed(memory_gb=1, bandwidth_gb_per_s=1, family=nowhere)
    sources = [text(bare.sources[name]) for name in ("unusable", "system", "overhead")]
    return frames_predict.typed_facts() | {"bare": [bare.room.system_bytes, bare.room.overhead_bytes, *sources]}


def _decode_data(found: Calibration, group: str) -> dict[str, list[float]]:
    """The constants of a group on a machine with no factors of its own: by class of format; without and with latent attention; of a layer that
    is plain, has experts, keeps a state, or both."""

    def one(*, format_index: int = 0, moe: bool = False, hybrid: bool = False, latent: bool = False) -> predict.Constants:
        return _constants(found, group, format_index=format_index, moe=moe, hybrid=hybrid, latent=latent)

    return {
        "share": [float(one(format_index=i).share[0]) for i in range(len(FORMAT_CLASSES))],
        "kv_share": [float(one(latent=latent).kv_share[0]) for latent in (False, True)],
        "layer_s": [float(one(moe=moe, hybrid=hybrid).layer_s[0]) for hybrid in (False, True) for moe in (False, True)],
    }


def _predict_data() -> dict[str, Any]:
    found = registry.load_calibration()
    ranges = {phase: getattr(found, f"{phase}_range").model_dump(exclude={"coverage"}) for phase in ("decode", "prefill")}
    words = {"rows", "devices", "assumed", "note"}
    return {
        "decode": {group: _decode_data(found, group) for group in GROUPS},
        "prefill": {name: group.model_dump(exclude=words) for name, group in found.prefill.items()},
        "prefill_slope": found.prefill_slope,
        "prefill_batch": predict.PREFILL_BATCH,
        "usual_flop_per_byte": predict.USUAL_FLOP_PER_BYTE,
        "range": ranges,
        "widest": predict.WIDEST,
        "prompt_tokens": frames_predict.PROMPT_TOKENS,
        "bisections": _BISECTIONS,
        "most_bandwidth": _MOST_BANDWIDTH,
    }
