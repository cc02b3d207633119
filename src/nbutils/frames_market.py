"""What a machine costs and what that buys: prices and their age, what can be had, buying against renting, machines side by side.

Rates are ceilings throughout. Nothing here asks the clock: ``today`` is handed in.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import pandas as pd

from nbutils import frames, limits, registry
from nbutils.frames_predict import Phase, expected_or_none, range_words
from nbutils.places import Place, place
from nbutils.specs import Configuration, Device, Model, Price, Source, Supply
from nbutils.tensors import Variant, variant

__all__ = [
    "FIT_COLUMNS",
    "STALE_DAYS",
    "TO_BE_HAD",
    "Asked",
    "advice",
    "best_measured",
    "break_even_frame",
    "break_even_tokens",
    "budget_frame",
    "budget_table",
    "compare_frame",
    "compare_table",
    "cost_lines",
    "cost_table",
    "day_words",
    "fit_matrix",
    "is_stale",
    "latest_price",
    "price_lines",
    "prices_table",
    "rents_table",
    "speculative_frame",
    "speculative_tok_per_s",
    "supply_of",
    "supply_words",
    "tokens_per_pass",
]

#: A price or a state older than this is called stale.
STALE_DAYS = 90
#: States in which a configuration can be bought.
TO_BE_HAD = ("sold", "second-hand")


# ── prices and their age ──────────────────────────────────────────────────────────────────────────


def is_stale(asked: date, today: date) -> bool:
    """Whether what was asked on one day is too old on another.

    >>> is_stale(date(2026, 8, 22), date(2026, 11, 20)), is_stale(date(2026, 8, 21), date(2026, 11, 20))
    (False, True)
    """
    return (today - asked).days > STALE_DAYS


def day_words(asked: date, today: date) -> str:
    """The day, and ``stale`` behind it where it is.

    >>> day_words(date(2026, 6, 25), date(2026, 11, 20))
    '2026-06-25, stale'
    """
    return f"{asked}, stale" if is_stale(asked, today) else f"{asked}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The latest price of a configuration, in USD. ``host_usd`` is what the rest of the computer costs, for a card."""

    figure: Price
    source: Source
    host_usd: float = 0.0

    @property
    def usd(self) -> float:
        return self.figure.base("price") + self.host_usd

    @property
    def is_unverified(self) -> bool:
        return self.figure.standing == "unverified"

    @property
    def others(self) -> str:
        """What other sources say of the same, as a range with the one used."""
        values = [self.figure.value, *(other.value for other in self.figure.also)]
        return "" if len(values) == 1 else f"{min(values):,.0f} to {max(values):,.0f}"


def latest_price(device: Device, configuration: Configuration) -> Asked | None:
    """The price asked last: at the launch, or later. ``None`` where no source names one for this configuration."""
    market = registry.load_market()
    host = market.host.base("price") if device.memory_kind == "discrete" else 0.0
    found = [Asked(figure=p, source=device.sources[p.source], host_usd=host) for p in (configuration.price,) if p]
    found += [
        Asked(figure=offer, source=market.sources[offer.source], host_usd=host)
        for offer in market.offers
        if (offer.device, offer.configuration) == (device.id, configuration.id)
    ]
    return max(found, key=lambda a: a.figure.asked, default=None)


def supply_of(device_id: str, configuration_id: str) -> Supply | None:
    """Whether a configuration can be had: what is known of it, else of the device; ``None`` where nothing is known."""
    known = {(s.device, s.configuration): s for s in registry.load_market().supply}
    return known.get((device_id, configuration_id), known.get((device_id, "")))


def supply_words(supply: Supply | None, today: date) -> str:
    """The state in words, with its day; what nobody says is said to be unknown."""
    if supply is None:
        return "not known here"
    since = f" since {supply.since}" if supply.since else ""
    state = f"announced on {supply.since or supply.asked} for {supply.due}; whether it is sold yet is not known here"
    words = state if supply.state == "announced" else f"{supply.state}{since}"
    return f"{words} (source of {day_words(supply.asked, today)})"


def price_lines(device: Device, configuration: Configuration, today: date) -> list[str]:
    """What a configuration costs and whether it can be had, a sentence each."""
    asked = latest_price(device, configuration)
    lines = [f"To be had: {supply_words(supply_of(device.id, configuration.id), today)}."]
    if asked is None:
        return [f"Price of {configuration.id}: no source names one.", *lines]
    mark = "⚠ unverified; " if asked.is_unverified else ""
    price = f"Price of {configuration.id}: {asked.figure.value:,.0f} USD, asked {day_words(asked.figure.asked, today)} ({mark}{asked.source.title})."
    if asked.figure.note:
        price += f" {asked.figure.note}"
    if asked.others:
        price += f" Sources give {asked.others} USD."
    if asked.host_usd:
        price += f" A card is no computer: the rest of one is counted with {asked.host_usd:,.0f} USD."
    return [price, *lines]


def prices_table(devices: Sequence[Device], today: date) -> tuple[pd.DataFrame, dict[str, str], dict[str, str], dict[str, str]]:
    """Every configuration with a price or a known state: what ``plots.table`` takes, links included."""
    rows = []
    for device in devices:
        for c in device.configurations:
            asked, supply = latest_price(device, c), supply_of(device.id, c.id)
            if asked is None and supply is None:
                continue
            rows.append(
                {
                    "device": frames.short_name(device),
                    "configuration": c.id,
                    "usd": None if asked is None else asked.figure.value,
                    "others": "" if asked is None else asked.others,
                    "asked": "" if asked is None else day_words(asked.figure.asked, today),
                    "standing": "" if asked is None else ("⚠ unverified" if asked.is_unverified else asked.figure.standing),
                    "supply": supply_words(supply, today),
                    "source": "no source names a price" if asked is None else asked.source.title,
                    "url": "" if asked is None else asked.source.url,
                    "note": "" if asked is None else asked.figure.note,
                }
            )
    headings = {"device": "device", "configuration": "configuration", "usd": "price (USD)", "others": "sources give (USD)", "asked": "asked"}
    headings |= {"standing": "standing", "supply": "to be had", "source": "source", "note": "note"}
    return pd.DataFrame(rows), headings, {"usd": "{:,.0f}"}, {"source": "url"}


def rents_table(today: date) -> tuple[pd.DataFrame, dict[str, str], dict[str, str], dict[str, str]]:
    """What an hour of a rented card costs; what ``plots.table`` takes, links included."""
    market = registry.load_market()
    rows = [
        {
            "device": registry.load_device(rent.device).name,
            "usd": rent.value,
            "range": f"{min(values):.2f} to {max(values):.2f}" if len(values) > 1 else "",
            "asked": day_words(rent.asked, today),
            "note": rent.note,
            "source": market.sources[rent.source].title,
            "url": market.sources[rent.source].url,
        }
        for rent, values in ((rent, [rent.value, *(other.value for other in rent.also)]) for rent in market.rents)
    ]
    headings = {"device": "card", "usd": "an hour (USD)", "range": "sources give (USD)", "asked": "asked", "note": "note", "source": "source"}
    return pd.DataFrame(rows), headings, {"usd": "{:,.2f}"}, {"source": "url"}


# ── what a budget buys ────────────────────────────────────────────────────────────────────────────


def budget_frame(models: Sequence[Model], budgets_usd: Sequence[float], today: date, *, n_ctx: int) -> pd.DataFrame:
    """For each budget and model: the fastest and the cheapest configuration that holds it and can be bought, and the fastest that is announced.

    Columns: ``budget_usd, model, kind, format, role, device, configuration, usd, host_usd, ceiling_tok_per_s, expected_tok_per_s, stale,
    unverified``. ``device`` is empty where no configuration with a known price does. Tight counts as holding. Models are taken in the format
    most people run.
    """
    options = _options(models, today, n_ctx=n_ctx)
    rows = []
    for budget in budgets_usd:
        for model in models:
            within = options[(options["model_id"] == model.id) & (options["usd"] <= budget)]
            sold, announced = within[within["state"].isin(TO_BE_HAD)], within[within["state"] == "announced"]
            for role, part, order, ascending in (
                ("fastest", sold, ["expected_tok_per_s", "usd"], [False, True]),
                ("cheapest", sold, ["usd", "expected_tok_per_s"], [True, False]),
                ("announced", announced, ["expected_tok_per_s", "usd"], [False, True]),
            ):
                best = part.sort_values(order, ascending=ascending).head(1).to_dict("records")
                named = {"budget_usd": budget, "model": model.name, "kind": "MoE" if model.shape.experts else "dense"}
                empty = {"format": frames.usual_format(model), "device": "", "configuration": "", "stale": False, "unverified": False}
                rows.append(named | {"role": role} | ({k: best[0][k] for k in _OPTION} if best else empty))
    return pd.DataFrame(rows, columns=["budget_usd", "model", "kind", "role", *_OPTION])


_OPTION = ("format", "device", "configuration", "usd", "host_usd", "ceiling_tok_per_s", "expected_tok_per_s", "stale", "unverified")


def _options(models: Sequence[Model], today: date, *, n_ctx: int) -> pd.DataFrame:
    """Every model on every configuration that holds it, has a price and a known state."""
    stored = [(model, variant(model, registry.load_format(frames.usual_format(model)))) for model in models]
    rows = []
    for device in (registry.load_device(device_id) for device_id in registry.device_ids()):
        for c in device.configurations:
            asked, supply = latest_price(device, c), supply_of(device.id, c.id)
            if asked is None or supply is None:
                continue
            here = place(device, c)
            for model, v in stored:
                if _holds(v, here, n_ctx):
                    rows.append(
                        {
                            "model_id": model.id,
                            "state": supply.state,
                            "format": v.format,
                            "device": frames.short_name(device),
                            "configuration": c.id,
                            "usd": asked.usd,
                            "host_usd": asked.host_usd,
                            "ceiling_tok_per_s": _ceiling(v, here),
                            "expected_tok_per_s": _expected(here, model.id, v.format),
                            "stale": is_stale(asked.figure.asked, today),
                            "unverified": asked.is_unverified,
                        }
                    )
    return pd.DataFrame(rows, columns=["model_id", "state", *_OPTION])


def _holds(stored: Variant, here: Place, n_ctx: int) -> bool:
    return frames.budget_of(stored, here, n_ctx=n_ctx, compute=frames.kept_compute(stored, n_ctx)).verdict != "does_not_fit"


def _expected(here: Place, model_id: str, format_id: str) -> float | None:
    found = expected_or_none(here, model_id, format_id)
    return None if found is None else found.expected_tok_per_s


def _ceiling(stored: Variant, here: Place) -> float:
    """Decode ceiling in tok/s of one sequence at depth 0."""
    assert here.bandwidth_bytes_per_s is not None
    return limits.decode_ceiling_tok_per_s(here.bandwidth_bytes_per_s, limits.decode_step_bytes(stored))


def budget_table(found: pd.DataFrame, budget_usd: float) -> tuple[pd.DataFrame, dict[str, str], dict[str, str]]:
    """One budget of ``budget_frame`` for ``plots.table``: a row per model and machine; what is both fastest and cheapest stands once.

    Models that nothing to be had holds say so. Marks tell which prices have a host added, are stale or are unverified.
    """
    rows: list[dict[str, Any]] = []
    for (model, fmt), part in found[found["budget_usd"] == budget_usd].groupby(["model", "format"], sort=False):
        name = {"model": f"{model} {fmt}"}
        if part.loc[part["role"] == "fastest", "device"].item() == "":
            rows.append(name | {"role": "to be had", "what": "none with a known price holds it", "marks": ""})
        for (device, configuration), same in part[part["device"] != ""].groupby(["device", "configuration"], sort=False):
            entry = same.to_dict("records")[0]
            rows.append(entry | name | {"role": " and ".join(same["role"]), "what": f"{device} {configuration}", "marks": _marks(entry)})
    headings = {
        "model": "model",
        "role": "which",
        "what": "machine",
        "usd": "price (USD)",
        "marks": "marks",
        "ceiling_tok_per_s": "ceiling (tok/s)",
        "expected_tok_per_s": "expected (tok/s)",
        "per_thousand_usd": "tok/s per 1,000 USD",
    }
    table = pd.DataFrame(rows, columns=[n for n in headings if n != "per_thousand_usd"])
    table["per_thousand_usd"] = 1000 * table["expected_tok_per_s"].astype(float) / table["usd"].astype(float)
    return table, headings, {"usd": "{:,.0f}", "ceiling_tok_per_s": "{:,.1f}", "expected_tok_per_s": "{:,.1f}", "per_thousand_usd": "{:,.1f}"}


def _marks(entry: dict[Hashable, Any]) -> str:
    marks = (("with host", entry["host_usd"] > 0), ("stale", entry["stale"]), ("⚠ unverified", entry["unverified"]))
    return ", ".join(word for word, is_so in marks if is_so)


# ── buying against renting ────────────────────────────────────────────────────────────────────────


def _own_usd_per_million(here: Place, asked: Asked, rate: float, *, years: float, hours_a_day: float) -> float | None:
    """Price of a million tokens from an own machine that works ``hours_a_day``; ``None`` where its power is unknown."""
    return frames.usd_per_million(replace(here, price_usd=asked.usd), tok_per_s=rate, years=years * hours_a_day / 24)


def cost_table(
    here: Place, models: Iterable[Model], *, n_ctx: int, years: float, hours_a_day: float, share: float
) -> tuple[pd.DataFrame, dict[str, str], dict[str, str]]:
    """USD for a million tokens of one user, decoded at ``share`` of the ceiling, from this machine and from rented cards; for ``plots.table``.

    Only models that fit this machine. A rented card is paid while it works, an own machine also while it rests. Idle power, the computer
    around a card and the prompt are not counted. Unknown is ``None``.
    """
    assert here.device is not None
    asked = latest_price(here.device, here.device.configuration(here.configuration))
    rented = _rented_places()
    rows = []
    for model in models:
        stored = variant(model, registry.load_format(frames.usual_format(model)))
        if not _holds(stored, here, n_ctx):
            continue
        rate = share * _ceiling(stored, here)
        row = {
            "model": f"{model.name} {stored.format}",
            "rate": rate,
            "own": None if asked is None else _own_usd_per_million(here, asked, rate, years=years, hours_a_day=hours_a_day),
        }
        for there, usd_per_hour in rented:
            fits = _holds(stored, there, n_ctx)
            rate_there = share * _ceiling(stored, there)
            row[there.device_id] = limits.usd_per_million_tokens(tok_per_s=rate_there, usd_per_hour=usd_per_hour) if fits else None
        rows.append(row)
    headings = {"model": "model", "rate": f"at {share:.0%} of the ceiling (tok/s)"}
    headings |= {"own": "own (USD)"} if asked is not None and here.power_w is not None else {}
    headings |= {there.device_id: f"rented {_name(there)} (USD)" for there, _ in rented}
    frame = pd.DataFrame(rows, columns=["model", "rate", "own", *(there.device_id for there, _ in rented)])
    return frame.sort_values("rate", ignore_index=True), headings, {"rate": "{:,.1f}"} | dict.fromkeys(list(headings)[2:], "{:,.2f}")


def cost_lines(here: Place, today: date, *, years: float, hours_a_day: float, share: float) -> list[str]:
    """What ``cost_table`` assumes, a sentence each."""
    market = registry.load_market()
    rents = [f"{registry.load_device(r.device).name} {r.value:.2f} USD (asked {day_words(r.asked, today)})" for r in market.rents]
    lines = [f"One user, decoding at {share:.0%} of the ceiling. An hour rented: {'; '.join(rents)}."]
    assert here.device is not None
    asked = latest_price(here.device, here.device.configuration(here.configuration))
    missing = [what for what, is_missing in (("price", asked is None), ("power", here.power_w is None)) if is_missing]
    if missing:
        return [*lines, f"What an own one costs cannot be said: no source names its {' or its '.join(missing)}."]
    assert asked is not None
    mark = " (⚠ unverified)" if asked.is_unverified or asked.host_usd else ""
    own = f"The own machine: {asked.usd:,.0f} USD{mark} over {years:g} years at {hours_a_day:g} hours a day"
    return [*lines, f"{own}, {here.power_w:g} W at {frames.USD_PER_KWH} USD/kWh."]


def _rented_places() -> list[tuple[Place, float]]:
    """Cards that are rented out, with USD per hour."""
    devices = [(registry.load_device(rent.device), rent.base("price")) for rent in registry.load_market().rents]
    return [(place(device, device.configuration()), usd) for device, usd in devices]


def _name(here: Place) -> str:
    return frames.short_name(here.device) if here.device else here.device_id


def break_even_tokens(
    *, price_usd: float, power_w: float, usd_per_kwh: float, own_tok_per_s: float, rent_usd_per_hour: float, rent_tok_per_s: float
) -> float | None:
    """Tokens after which an own machine has cost as much as renting would have; ``None`` where renting stays cheaper for ever.

    A token costs the own machine its electricity alone, the rented one its share of an hour.

    >>> break_even_tokens(price_usd=3600, power_w=0, usd_per_kwh=0.15, own_tok_per_s=10, rent_usd_per_hour=3.6, rent_tok_per_s=100)
    360000000.0
    """
    rented = rent_usd_per_hour / 3600 / rent_tok_per_s
    own = power_w / 1000 * usd_per_kwh / 3600 / own_tok_per_s
    return price_usd / (rented - own) if rented > own else None


def break_even_frame(
    devices: Sequence[tuple[Device, Configuration]], model: Model, rented_id: str, today: date, *, n_ctx: int, share: float
) -> tuple[pd.DataFrame, dict[str, str], dict[str, str]]:
    """When a machine that is bought has paid for itself against one rented card, for one model; for ``plots.table``.

    ``own_hours`` is how long the bought machine must decode, ``rent_hours`` how long the rented card takes for the same tokens.
    """
    stored = variant(model, registry.load_format(frames.usual_format(model)))
    there, rent_usd_per_hour = next((p, usd) for p, usd in _rented_places() if p.device_id == rented_id)
    rent_rate = share * _ceiling(stored, there)
    rows = []
    for device, c in devices:
        here, asked = place(device, c), latest_price(device, c)
        if asked is None or here.power_w is None or not _holds(stored, here, n_ctx):
            continue
        rate = share * _ceiling(stored, here)
        tokens = break_even_tokens(
            price_usd=asked.usd,
            power_w=here.power_w,
            usd_per_kwh=frames.USD_PER_KWH,
            own_tok_per_s=rate,
            rent_usd_per_hour=rent_usd_per_hour,
            rent_tok_per_s=rent_rate,
        )
        rows.append(
            {
                "device": f"{frames.short_name(device)} {c.id}",
                "usd": asked.usd,
                "asked": day_words(asked.figure.asked, today),
                "rate": rate,
                "tokens": None if tokens is None else tokens / 1e6,
                "rent_hours": None if tokens is None else tokens / rent_rate / 3600,
                "own_hours": None if tokens is None else tokens / rate / 3600,
                "own_years": None if tokens is None else tokens / rate / 3600 / 8766,
            }
        )
    frame = pd.DataFrame(rows, columns=["device", "usd", "asked", "rate", "tokens", "rent_hours", "own_hours", "own_years"])
    headings = {"device": "bought", "usd": "price (USD)", "asked": "asked", "rate": "decode (tok/s)", "tokens": "even after (10⁶ tokens)"}
    headings |= {"rent_hours": "rented for (hours)", "own_years": "own, without a pause (years)"}
    formats = dict.fromkeys(("usd", "tokens", "rent_hours"), "{:,.0f}") | dict.fromkeys(("rate", "own_years"), "{:,.1f}")
    return frame.sort_values("own_hours", ignore_index=True), headings, formats


# ── past the ceiling of batch 1 ───────────────────────────────────────────────────────────────────


def tokens_per_pass(accept: float, n_draft: int) -> float:
    """Tokens that one reading of the weights is expected to yield when ``n_draft`` are drafted and each is accepted with probability ``accept``.

    ``(1 - a^(k+1)) / (1 - a)``: Leviathan et al. (2022, arXiv:2211.17192), equation 1. One more than are accepted, because the pass gives one of
    its own.

    >>> tokens_per_pass(0.0, 4), tokens_per_pass(0.5, 2), tokens_per_pass(1.0, 4)
    (1.0, 1.75, 5.0)
    """
    return float(n_draft + 1) if accept == 1 else (1 - accept ** (n_draft + 1)) / (1 - accept)


def speculative_tok_per_s(bandwidth_bytes_per_s: float, *, target_bytes: float, draft_bytes: float, accept: float, n_draft: int) -> float:
    """Expected upper bound with a draft model: tokens of a pass over reading the target once and the draft ``n_draft`` times."""
    return tokens_per_pass(accept, n_draft) * bandwidth_bytes_per_s / (target_bytes + n_draft * draft_bytes)


def speculative_frame(target: Variant, draft: Variant, bandwidth_bytes_per_s: float, accepts: Sequence[float], drafts: Sequence[int]) -> pd.DataFrame:
    """Tokens per pass and the bound in tok/s for each rate of acceptance and number of drafted tokens, depth 0; ``n_draft`` 0 is plain decode."""
    target_bytes, draft_bytes = limits.decode_step_bytes(target), limits.decode_step_bytes(draft)
    return pd.DataFrame(
        {
            "accept": accept,
            "n_draft": n_draft,
            "tokens_per_pass": tokens_per_pass(accept, n_draft),
            "tok_per_s": speculative_tok_per_s(
                bandwidth_bytes_per_s, target_bytes=target_bytes, draft_bytes=draft_bytes, accept=accept, n_draft=n_draft
            ),
        }
        for accept in accepts
        for n_draft in drafts
    )


# ── machines side by side ─────────────────────────────────────────────────────────────────────────


def compare_frame(devices: Sequence[Device], models: Sequence[Model], *, n_ctx: int, n_prompt: int) -> pd.DataFrame:
    """One row per model and device, its largest configuration, in the format most people run: fit, both ceilings in tok/s and the memory in GB."""
    rows = []
    for device in devices:
        here = place(device, device.configuration())
        frame = frames.device_frame(here, models, n_ctx=n_ctx, n_prompt=n_prompt)
        rows.append(frame[frame["usual"]].assign(device=frames.short_name(device), device_id=device.id, memory_gb=here.memory_gb))
    found = pd.concat(rows, ignore_index=True)
    order = {model.name: i for i, model in enumerate(models)}
    found["model_id"] = found["model"].map({model.name: model.id for model in models})
    answers = [expected_or_none(r.device_id, r.model_id, r.format) for r in found.itertuples()]
    for name in ("expected_tok_per_s", "low_tok_per_s", "high_tok_per_s"):
        found[name] = [None if answer is None else getattr(answer, name) for answer in answers]
    found["expected"] = [range_words(answer) for answer in answers]
    return found.sort_values("model", key=lambda names: names.map(order), kind="stable", ignore_index=True)


def expected_table(found: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str], dict[str, str]]:
    """What decode to expect, of ``compare_frame``: a row per device and a column per model, each cell a rate with its 90 % range."""
    words = found["expected"].where(found["verdict"] != "does_not_fit", "does not fit")
    table = found.assign(words=words).pivot(index="device", columns="model", values="words")
    table = table.reindex(index=found["device"].unique(), columns=found["model"].unique()).rename_axis(columns=None).reset_index()
    named = dict(zip(found["model"], found["format"], strict=True))
    return table, {"device": "device"} | {model: f"{model} {fmt}" for model, fmt in named.items()}, dict.fromkeys(named, "{}")


def expectations(here: Place, rows: pd.DataFrame, models: Sequence[Model]) -> tuple[pd.DataFrame, dict[str, str], dict[str, str]]:
    """Rows of ``frames.device_frame`` that fit, with the decode ceiling and what to expect of decode and prefill, for ``plots.table``."""
    ids = {model.name: model.id for model in models}
    shown = rows[rows["verdict"] != "does_not_fit"]
    ways: tuple[Phase, ...] = ("decode", "prefill")
    words = {p: [range_words(expected_or_none(here, ids[r.model], r.format, phase=p)) for r in shown.itertuples()] for p in ways}
    headings = {
        "model": "model",
        "format": "format",
        "decode_ceiling_tok_per_s": "decode ceiling (tok/s)",
        "decode": "decode to expect (tok/s)",
        "prefill": "prefill to expect (tok/s)",
    }
    return shown.assign(**words), headings, {"decode_ceiling_tok_per_s": "{:,.1f}"}


def best_measured(lawful: pd.DataFrame) -> dict[tuple[str, str, str], float]:
    """The best rate in tok/s by device, model and format, of the models of the registry. Give it what ``frames_published.lawful`` gives.

    A rate of a slower configuration than the largest is left out: it would stand beside a ceiling that is not its own.
    """
    fits = [_is_as_fast(r.device, r.configuration) for r in lawful.itertuples()]
    lawful = lawful[fits]
    best: dict[tuple[str, str, str], float] = lawful[lawful["model"] != ""].groupby(["device", "model", "format"])["tok_per_s"].max().to_dict()
    return best


def _is_as_fast(device_id: str, configuration_id: str) -> bool:
    device = registry.load_device(device_id)
    largest = device.configuration()
    return not configuration_id or registry.load_configuration(device, configuration_id).bandwidth_bytes_per_s == largest.bandwidth_bytes_per_s


def compare_table(
    found: pd.DataFrame, best: Mapping[tuple[str, str, str], float], value: str, digits: int
) -> tuple[pd.DataFrame, dict[str, str], dict[str, str]]:
    """``value`` of ``compare_frame``, a row per device and a column per model, for ``plots.table``.

    Each cell says the ceiling, or that the model does not fit, and in parentheses what ``best_measured`` knows of it.
    """
    rows: dict[str, dict[str, str]] = {}
    for row in found.to_dict("records"):
        cells = rows.setdefault(row["device"], {"device": row["device"], "memory": f"{row['memory_gb']:g}"})
        seen = best.get((row["device_id"], row["model_id"], row["format"]))
        if row["verdict"] == "does_not_fit":
            cells[row["model"]] = "does not fit"
        else:
            shown = "unknown" if pd.isna(row[value]) else f"{row[value]:,.{digits}f}"
            cells[row["model"]] = shown + ("*" if row["verdict"] == "tight" else "") + ("" if seen is None else f" ({seen:,.{digits}f})")
    named = dict(zip(found["model"], found["format"], strict=True))
    headings = {"device": "device", "memory": "GB"} | {model: f"{model} {fmt}" for model, fmt in named.items()}
    return pd.DataFrame(rows.values()), headings, dict.fromkeys(["memory", *named], "{}")


# ── the page of one device ────────────────────────────────────────────────────────────────────────

#: Columns of ``fit_matrix`` in this order, where a machine runs them: those of llama.cpp that most people run first.
FIT_COLUMNS = ("Q4_K_M", "Q8_0", "F16", "MXFP4_MOE", "MLX_4BIT", "MLX_8BIT", "NVFP4", "MXFP4", "FP8", "BF16", "Q4_0", "Q2_K")


def fit_matrix(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """``frames.device_frame`` as two frames with a row per model and a column per format: words with GB needed, and bare verdicts.

    Smallest model first. Empty where the model is not published in the format.
    """
    cells = rows.assign(words=[f"{_SHORT[v]} {n / 1e9:,.1f} GB" for v, n in zip(rows["verdict"], rows["total_bytes"], strict=True)])
    order = rows.groupby("model")["weight_bytes"].max().sort_values().index
    columns = [name for name in FIT_COLUMNS if name in set(rows["format"])]
    columns += sorted(set(rows["format"]) - set(columns))
    wide = cells.pivot_table(index="model", columns="format", values=["words", "verdict"], aggfunc="first").reindex(order)
    return wide["words"][columns].fillna(""), wide["verdict"][columns].fillna("")


_SHORT = {"fits": "fits", "tight": "tight", "does_not_fit": "no"}


def advice(rows: pd.DataFrame, *, pace_tok_per_s: float, n_prompt: int) -> list[str]:
    """Whom a machine suits, in sentences that follow from ``rows`` of ``frames.device_frame`` alone: what it holds, and how fast at best."""
    usual = rows[rows["usual"]].sort_values("weight_bytes", ascending=False)
    held, out = usual[usual["verdict"] != "does_not_fit"], usual[usual["verdict"] == "does_not_fit"]
    quick, slow = held[held["decode_ceiling_tok_per_s"] >= pace_tok_per_s], held[held["decode_ceiling_tok_per_s"] < pace_tok_per_s]
    lines = []
    for kind, words in (("dense", "dense models"), ("MoE", "mixtures of experts")):
        part = quick[quick["kind"] == kind]
        if part.empty:
            lines.append(f"For {words} at {pace_tok_per_s:g} tok/s or more: nobody; no {kind} model of this book that it holds has such a ceiling.")
        else:
            lines.append(f"For {words} at {pace_tok_per_s:g} tok/s or more: up to {_with_ceiling(part.iloc[0])}.")
    if len(slow):
        lines.append(f"It holds, and cannot decode at that pace: {'; '.join(_with_ceiling(row) for _, row in slow.iterrows())}.")
    if len(out):
        lines.append(f"Not for: {', '.join(reversed(list(out['model'])))}. It does not hold them in the format most people run.")
    else:
        lines.append("It holds every model of this book in the format most people run.")
    dense = held[held["kind"] == "dense"].dropna(subset=["prefill_ceiling_tok_per_s"])
    if len(dense):
        first = dense.iloc[0]
        seconds = n_prompt / first["prefill_ceiling_tok_per_s"]
        lines.append(f"Reading a prompt of {n_prompt:,} tokens into {first['model']} {first['format']} takes {seconds:,.1f} s at least.")
    else:
        lines.append("How long a prompt takes cannot be said: its arithmetic is not known.")
    return lines


def _with_ceiling(row: pd.Series) -> str:
    rate = row["decode_ceiling_tok_per_s"]
    return (
        f"{row['model']} {row['format']} (at most {rate:,.0f} tok/s)"
        if rate >= 100
        else f"{row['model']} {row['format']} (at most {rate:,.1f} tok/s)"
    )
