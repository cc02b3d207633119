"""A claim and what bounds it, to a verdict. Pure: whoever calls has looked up devices, models and other articles.

Every reading of a claim is decided on its own; the verdict is about all of them together. Nothing is judged by hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from typing import Literal, get_args

from nbutils import fit, limits
from nbutils.explain import Line, limit_lines
from nbutils.specs import Alternative, Configuration, Device, Figure, Model, Source
from nbutils.specs_articles import Claim, Evidence, Reading
from nbutils.tensors import Variant, active_parameters, parameters

__all__ = ["RELATION", "VERDICTS", "Bound", "Case", "Expectation", "Judged", "Judgement", "Rival", "Verdict", "judge", "say_value"]

Verdict = Literal[
    "above_ceiling",
    "contradicts_source",
    "contradicts_measurement",
    "contradicts_other_article",
    "needs_condition",
    "implausible",
    "consistent",
    "cannot_check",
]
#: In the order in which they win; a claim that several apply to carries the first.
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)

#: Rarer than once in so many is far outside what such machines reach.
RARE = 100

#: How far two figures of the same thing may be apart: what different roundings do, what "about" allows, what two runs differ by.
SAME, ABOUT, MEASURED = 0.03, 0.05, 0.10

BoundKind = Literal[
    "decode_ceiling",
    "prefill_ceiling",
    "training_ceiling",
    "weights",
    "bytes_per_token",
    "parameters",
    "largest_context",
    "memory_needed",
    "parameters_that_fit",
    "listed_figure",
    "ratio",
    "evidence",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """An expected rate in tok/s with its 90 % range."""

    tok_per_s: float
    low_tok_per_s: float
    high_tok_per_s: float

    def odds(self, low: float, high: float) -> float:
        """How likely a rate as far off as this range is: both tails of a Laplace distribution of its logarithm, as the range was fitted.

        Each half of the range has its own width, because the upper one may be cut by a ceiling.
        """
        if low <= self.tok_per_s <= high:
            return 1.0
        nearest, edge = (low, self.high_tok_per_s) if low > self.tok_per_s else (high, self.low_tok_per_s)
        width = abs(math.log(edge / self.tok_per_s))
        # A range of no width says nothing about what lies outside it.
        return 1.0 if width == 0 else float(0.1 ** (abs(math.log(nearest / self.tok_per_s)) / width))


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A reading with everything that it names."""

    reading: Reading
    #: What it is, in words: a model in a format on a device.
    name: str
    device: Device | None = None
    configuration: Configuration | None = None
    model: Model | None = None
    variant: Variant | None = None
    room: fit.Room | None = None
    discrete: bool = False
    #: The peak that bounds arithmetic, in FLOP/s, and where it is from.
    peak_flop_per_s: float | None = None
    peak_source: str = ""
    #: What such machines are expected to reach in tok/s, and the range that should hold nine times in ten; ``None`` where nothing says.
    expected: Expectation | None = None
    over: Case | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """A claim of another article about the same thing."""

    article: str
    claim: Claim


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """What a reading says the number can be. ``at_most``: a wall; ``at_least``: what is needed; ``equals``: what it is."""

    kind: BoundKind
    #: ``None`` where an input is not known.
    value: float | date | None
    unit: str
    relation: Literal["equals", "at_least", "at_most"]
    #: How it comes about, in words.
    how: str
    lines: tuple[Line, ...] = ()
    #: The same as other sources give it.
    also: tuple[Alternative, ...] = ()
    #: Why the value may not decide; empty where it may.
    undecided: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One reading and what speaks against it. ``holds`` is ``None`` where nothing decides."""

    name: str
    assumes: str
    bound: Bound | None
    against: tuple[Verdict, ...]
    holds: bool | None
    because: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """The verdict, those that apply too, and why."""

    verdict: Verdict
    also: tuple[Verdict, ...]
    because: str
    #: Of the first reading that decides, which is the most literal one.
    bound: float | date | None
    bound_kind: BoundKind | None
    readings: tuple[Judged, ...] = ()
    #: The part of ``because`` that no reading says: the reason why nothing decides, and what other articles say.
    beside: str = ""


# ── intervals ─────────────────────────────────────────────────────────────────────────────────────


def _plain(value: float | date) -> float:
    return float(value.toordinal()) if isinstance(value, date) else float(value)


def _half_a_digit(value: float | date) -> float:
    """Half a unit of the last digit that is printed: 41 may be 40.5 to 41.5, but 2 is not 1.5. Days are exact."""
    if isinstance(value, date):
        return 0.0
    decimals = len(f"{value:.10g}".partition(".")[2])
    return float(min(0.5 * 10.0**-decimals, ABOUT * abs(value)))


@dataclass(frozen=True, slots=True)
class _Span:
    low: float
    high: float

    def meets(self, other: _Span, slack: float = 0.0) -> bool:
        """Whether they overlap when ``other`` is widened by a share of itself."""
        low, high = (slack * abs(end) if math.isfinite(end) else 0.0 for end in (other.low, other.high))  # 0 x infinity is no number
        return self.low <= other.high + high and self.high >= other.low - low


def _span(low: float | date, high: float | date | None, relation: str, *, pad: bool = False) -> _Span:
    first, last = _plain(low), _plain(low if high is None else high)
    if pad:
        first, last = first - _half_a_digit(low), last + _half_a_digit(low if high is None else high)
    return _Span(-math.inf if relation == "at_most" else first, math.inf if relation == "at_least" else last)


def _claimed(claim: Claim) -> _Span:
    return _span(claim.low, claim.high, claim.means, pad=True)


def _slack(claim: Claim) -> float:
    if claim.unit == "date":
        return 0.0
    return ABOUT if claim.rounded else SAME


# ── bounds ────────────────────────────────────────────────────────────────────────────────────────


def _stored(case: Case) -> Variant:
    assert case.variant is not None
    return case.variant


def _machine(case: Case) -> tuple[Device, Configuration]:
    assert case.device is not None
    assert case.configuration is not None
    return case.device, case.configuration


def _source(device: Device, figure: Alternative) -> str:
    return device.sources[figure.source].title


def _decode(case: Case, relation: Literal["at_most", "equals"]) -> Bound:
    variant, reading = _stored(case), case.reading
    device, configuration = _machine(case)
    bandwidth = configuration.bandwidth_bytes_per_s
    limit = limits.decode_limit(
        variant, bandwidth_bytes_per_s=bandwidth, peak_flop_per_s=case.peak_flop_per_s, depth=reading.depth, batch_size=reading.batch_size
    )
    lines = limit_lines(
        variant,
        limit,
        bandwidth_bytes_per_s=bandwidth,
        bandwidth_source=_source(device, configuration.bandwidth),
        peak_flop_per_s=case.peak_flop_per_s,
        peak_source=case.peak_source,
        depth=reading.depth,
    )
    how = f"{bandwidth / 1e9:,.4g} GB/s over {limit.step_bytes / 1e9:,.4g} GB read per {'token' if reading.batch_size == 1 else 'step'}"
    if limit.binding == "compute":
        how = f"{limit.flop:.3g} FLOP per step at {case.peak_flop_per_s or 0:.3g} FLOP/s"
    return Bound(kind="decode_ceiling", value=limit.ceiling_tok_per_s, unit="tok/s", relation=relation, how=how, lines=tuple(lines))


def _prefill(case: Case) -> Bound:
    variant, reading, (_, configuration) = _stored(case), case.reading, _machine(case)
    limit = limits.prefill_limit(
        variant,
        n_tokens=reading.n_tokens,
        bandwidth_bytes_per_s=configuration.bandwidth_bytes_per_s,
        peak_flop_per_s=case.peak_flop_per_s,
        depth=reading.depth,
    )
    lines = (
        Line("prompt", limit.flop, "FLOP", f"{reading.n_tokens:,} tokens, attention included"),
        Line("peak", case.peak_flop_per_s, "FLOP/s", "dense", case.peak_source),
        Line("prefill ceiling", limit.ceiling_tok_per_s, "tok/s", f"{limit.binding} binds" if limit.binding else "the peak is not known"),
    )
    how = f"{limit.flop / reading.n_tokens:.3g} FLOP per token at {(case.peak_flop_per_s or 0) / 1e12:,.4g} TFLOP/s dense"
    return Bound(kind="prefill_ceiling", value=limit.ceiling_tok_per_s, unit="tok/s", relation="at_most", how=how, lines=lines)


def _training(case: Case) -> Bound:
    assert case.reading.method
    flop = limits.training_flop_per_token(_stored(case), method=case.reading.method)
    value = None if case.peak_flop_per_s is None else case.peak_flop_per_s / flop
    lines = (
        Line("training", flop, "FLOP/token", "forward and backward; adapters taken as infinitely small"),
        Line("peak", case.peak_flop_per_s, "FLOP/s", "dense", case.peak_source),
        Line("training ceiling", value, "tok/s", "peak / FLOP"),
    )
    how = f"{flop:.3g} FLOP per token at {(case.peak_flop_per_s or 0) / 1e12:,.4g} TFLOP/s dense"
    return Bound(kind="training_ceiling", value=value, unit="tok/s", relation="at_most", how=how, lines=lines)


def _file_size(case: Case) -> Bound:
    variant = _stored(case)
    lines = tuple(Line(role, g.n_bytes, "bytes", f"{g.n_elements:,} weights") for role, g in variant.groups.items())
    whole = Line("file", variant.weight_bytes, "bytes", "their sum")
    return Bound(kind="weights", value=variant.weight_bytes / 1e9, unit="GB", relation="equals", how="all tensors, counted", lines=(*lines, whole))


def _bytes_per_token(case: Case) -> Bound:
    n_bytes = _stored(case).step_weight_bytes
    line = Line("weights read", n_bytes, "bytes/token", "each weight once, of experts those used")
    return Bound(kind="bytes_per_token", value=n_bytes / 1e9, unit="GB", relation="equals", how="weights read per token, counted", lines=(line,))


def _parameters(case: Case) -> Bound:
    assert case.model is not None
    return _counted(parameters(case.model), "all of them, counted tensor by tensor")


def _active_parameters(case: Case) -> Bound:
    assert case.model is not None
    return _counted(active_parameters(case.model), "those a token is multiplied with, the input embedding left out")


def _counted(n: int, how: str) -> Bound:
    return Bound(kind="parameters", value=n / 1e9, unit="10^9", relation="equals", how=how, lines=(Line("parameters", n, "", how),))


def _budget(case: Case, n_ctx: int, compute: fit.ComputeBuffer | None = None) -> fit.MemoryBudget:
    assert case.room is not None
    return fit.memory_budget(
        _stored(case),
        n_ctx=n_ctx,
        available_bytes=case.room.available_bytes,
        batch_size=case.reading.batch_size,
        compute=compute,
        overhead_bytes=case.room.overhead_bytes,
        elsewhere_bytes=fit.elsewhere_bytes(_stored(case), discrete=case.discrete, batch_size=case.reading.batch_size),
    )


#: Beyond any context that a model here is released for.
_ENOUGH_TOKENS = 2**22


def _context(case: Case) -> Bound:
    """The largest context that fits, at most what the model was trained for."""
    variant = _stored(case)
    trained = variant.shape.n_ctx_train
    found = fit.largest_context(trained, lambda n, compute: _budget(case, n, compute)) or 0
    by_memory = fit.largest_context(_ENOUGH_TOKENS, lambda n, compute: _budget(case, n, compute)) or 0
    lines = (
        Line("weights", variant.weight_bytes, "bytes"),
        Line("K and V", limits.kv_bytes_per_token(variant.shape), "bytes/token", "16 bits each, once every window is full"),
        Line("available", case.room.available_bytes if case.room else None, "bytes", "what the device lets a program use"),
        Line("trained for", trained, "tokens"),
        Line("memory alone", by_memory, "tokens", "or more" if by_memory == _ENOUGH_TOKENS else "would end there"),
        Line("largest context", found, "tokens", "beside weights and buffers"),
    )
    if not found:
        how = f"its {variant.weight_bytes / 1e9:,.1f} GB of weights do not fit"
    elif found == trained:
        more = f"{by_memory:,}{' or more' if by_memory == _ENOUGH_TOKENS else ''}"
        how = f"what it was trained for; memory alone would hold {more}"
    else:
        how = f"memory ends there; it was trained for {trained:,}"
    return Bound(kind="largest_context", value=float(found), unit="tokens", relation="at_most", how=how, lines=lines)


def _needed(case: Case) -> Bound:
    variant = _stored(case)
    if case.room is None:
        n_bytes, how = variant.weight_bytes, "the weights alone"
        lines = [Line("weights", n_bytes, "bytes")]
    else:
        budget = _budget(case, case.reading.n_tokens)
        n_bytes = budget.total_bytes + case.room.memory_bytes - case.room.available_bytes
        how = f"weights, {case.reading.n_tokens:,} tokens of context, buffers, and what the system keeps"
        lines = [
            Line("weights", budget.weight_bytes, "bytes"),
            Line("K and V", budget.kv_cache_bytes, "bytes"),
            Line("buffers and runtime", budget.total_bytes - budget.weight_bytes - budget.kv_cache_bytes, "bytes", "an upper bound"),
            Line("not available", case.room.memory_bytes - case.room.available_bytes, "bytes", "kept by system or firmware"),
        ]
    # Memory is sold by the binary gigabyte; the claim says what is sold.
    lines.append(Line("memory needed", n_bytes, "bytes", f"{n_bytes / 2**30:,.1f} GB as memory is sold (binary)"))
    return Bound(kind="memory_needed", value=n_bytes / 2**30, unit="GB", relation="at_least", how=how, lines=tuple(lines))


def _parameters_that_fit(case: Case) -> Bound:
    assert case.room is not None
    assert case.reading.bits_per_weight is not None
    free = case.room.available_bytes - case.room.overhead_bytes
    value = free * 8 / case.reading.bits_per_weight
    lines = (
        Line("available", free, "bytes", "what the device lets a program use, less what the backend takes"),
        Line("stored", float(case.reading.bits_per_weight), "bits/weight"),
        Line("parameters that fit", round(value), "", "with no context yet"),
    )
    how = f"{free / 1e9:,.1f} GB at {case.reading.bits_per_weight:g} bits per weight, with no context yet"
    return Bound(kind="parameters_that_fit", value=value / 1e9, unit="10^9", relation="at_most", how=how, lines=lines)


def _figure(quantity: str, case: Case) -> tuple[Figure | None, str]:
    """The device's own figure and the unit it is shown in."""
    device, configuration = _machine(case)
    match quantity:
        case "memory":
            return configuration.memory, "GB"
        case "bandwidth":
            return configuration.bandwidth, "GB/s"
        case "power":
            return device.power, "W"
        case "price":
            return configuration.price, "USD"
        case _:
            wanted = (case.reading.dtype, case.reading.basis)
            peaks = configuration.peaks or device.peaks
            return next((p for p in peaks if (p.dtype, p.basis) == wanted), None), "TFLOP/s"


_DIMENSION = {"memory": "memory", "bandwidth": "bandwidth", "power": "power", "price": "price", "peak_compute": "compute"}
_SCALE = {"GB/s": 1e9, "W": 1.0, "USD": 1.0, "TFLOP/s": 1e12}


def _listed(quantity: str, case: Case, own_url: str) -> Bound:
    figure, unit = _figure(quantity, case)
    if figure is None or case.device is None:
        return Bound(kind="listed_figure", value=None, unit=unit, relation="equals", how="no source names it", undecided="no source names it")

    def shown(f: Alternative) -> float:
        # Memory is claimed as it is sold, and kept so: 128 for "128 GB".
        return (
            f.value
            if quantity == "memory"
            else Figure(**f.model_dump(include={"value", "unit", "source", "standing"})).base(_DIMENSION[quantity]) / _SCALE[unit]
        )

    sources = case.device.sources
    # An article is no witness for itself, nor does a figure that nobody verified decide.
    witnesses = [f for f in (figure, *figure.also) if f.standing != "unverified" and not (own_url and sources[f.source].url == own_url)]
    lines = tuple(
        Line(quantity, shown(f), unit, ", ".join(x for x in (f.standing, f.note) if x), _source(case.device, f)) for f in (figure, *figure.also)
    )
    asked = f", asked {figure.asked.isoformat()}" if hasattr(figure, "asked") else ""
    return Bound(
        kind="listed_figure",
        value=shown(witnesses[0] if witnesses else figure),
        unit=unit,
        relation="equals",
        how=f"{_source(case.device, witnesses[0] if witnesses else figure)}{asked}",
        lines=lines,
        # What others say is no second truth, the registry says why; but a price is another one at another time.
        also=tuple(Alternative(value=shown(f), unit=unit, source=f.source, standing=f.standing) for f in witnesses[1:]),
        undecided="" if witnesses else "which is too weak a source to decide",
    )


def _ratio(case: Case, own_url: str) -> Bound:
    assert case.over is not None
    one, other = (_BOUNDS[case.reading.of](part, own_url) for part in (case, case.over))
    value = None if one.value is None or other.value is None else _plain(one.value) / _plain(other.value)
    sides = ((case.name, one), (case.over.name, other))
    lines = [Line(name, None if b.value is None else _plain(b.value), b.unit, b.how) for name, b in sides]
    how = " over ".join(f"{say_value(b.value, b.unit)} ({name})" for name, b in sides)
    # Two upper bounds have no ratio that bounds anything; two exact figures have.
    walls = "" if one.relation == other.relation == "equals" else "and two ceilings have a ratio that bounds no ratio of rates"
    undecided = one.undecided or other.undecided or walls
    return Bound(
        kind="ratio", value=value, unit="times", relation="equals", how=how, lines=(*lines, Line("ratio", value, "times")), undecided=undecided
    )


#: What each quantity is bounded by; ``figure`` and ``date`` are decided by evidence alone.
_BOUNDS: Mapping[str, Callable[[Case, str], Bound]] = {
    "decode_rate": lambda case, _: _decode(case, "at_most"),
    "decode_ceiling": lambda case, _: _decode(case, "equals"),
    "prefill_rate": lambda case, _: _prefill(case),
    "training_rate": lambda case, _: _training(case),
    "file_size": lambda case, _: _file_size(case),
    "bytes_per_token": lambda case, _: _bytes_per_token(case),
    "parameters": lambda case, _: _parameters(case),
    "active_parameters": lambda case, _: _active_parameters(case),
    "context": lambda case, _: _context(case),
    "memory_needed": lambda case, _: _needed(case),
    "parameters_that_fit": lambda case, _: _parameters_that_fit(case),
    "ratio": _ratio,
    **{name: partial(_listed, name) for name in _DIMENSION},
}


# ── verdicts ──────────────────────────────────────────────────────────────────────────────────────


def say_value(value: float | date | None, unit: str, high: float | date | None = None) -> str:
    """A figure as a sentence says it: at most three digits where they say enough."""
    if value is None:
        return "unknown"
    if high is not None and high != value:
        return f"{'$' if unit == 'USD' else ''}{_digits(value)} to {say_value(high, unit)}"
    if unit == "date":
        return _digits(value)
    return {"USD": f"${_digits(value)}", "times": f"{_digits(value)} times", "10^9": f"{_digits(value)} billion"}.get(
        unit, f"{_digits(value)} {unit}"
    )


def _digits(value: float | date) -> str:
    if isinstance(value, date):
        return value.isoformat()
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    text = f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
    return text.rstrip("0").rstrip(".")


_RATES = ("decode_ceiling", "prefill_ceiling", "training_ceiling")


def _against_bound(claim: Claim, bound: Bound) -> tuple[Verdict, ...] | None:
    """What the bound says against the claim; ``None`` where it does not decide."""
    if bound.value is None or bound.undecided:
        return None
    claimed, truth = _claimed(claim), _plain(bound.value)
    if bound.relation == "at_most":
        # For "40 and more" the least that is meant; for a range all of it must be possible.
        most = claimed.low if claim.means == "at_least" else _plain(claim.high) - _half_a_digit(claim.high)
        if most <= truth:
            return ()
        return ("above_ceiling",) if bound.kind in _RATES else ("contradicts_source",)
    if bound.relation == "at_least":
        return () if claimed.high >= truth else ("contradicts_source",)
    slack = _slack(claim)
    others = [claimed.meets(_span(f.value, None, "equals"), slack) for f in bound.also]
    if claimed.meets(_span(bound.value, None, "equals"), slack) or (bound.unit == "USD" and any(others)):
        return ()
    measured = any(f.standing == "measured" and not meets for f, meets in zip(bound.also, others, strict=True))
    return ("contradicts_source", "contradicts_measurement") if measured else ("contradicts_source",)


def _bound_words(claim: Claim, case: Case, bound: Bound, against: tuple[Verdict, ...] | None) -> str:
    value = say_value(bound.value, bound.unit)
    if bound.value is None or (bound.kind == "largest_context" and not bound.value):
        return f"{case.name}: {bound.how}."
    if against is None:
        return f"{case.name}: {value} ({bound.how}), {bound.undecided}."
    if bound.relation == "at_most":
        return f"{case.name}: at most {value} ({bound.how}); {_shares(claim, _plain(bound.value))}."
    if bound.relation == "at_least":
        return f"{case.name}: {value} needed ({bound.how}); the claim {'has less' if against else 'has that'}."
    return f"{case.name}: {value} ({bound.how}); {_difference(claim, bound, bool(against))}."


def _shares(claim: Claim, truth: float) -> str:
    """The claim as parts of a wall."""
    low, high = _plain(claim.low), _plain(claim.low if claim.means == "at_least" else claim.high)
    if low <= truth < high:
        return f"the upper end of the claim is {high / truth:.2f} times that"
    if high <= truth:
        return f"the claim is {100 * low / truth:.0f}{'' if low == high else f' to {100 * high / truth:.0f}'} % of that"
    return f"the claim is {low / truth:.2f}{'' if low == high else f' to {high / truth:.2f}'} times that"


def _difference(claim: Claim, bound: Bound, against: bool) -> str:
    truth = _plain(bound.value) if bound.value is not None else 0.0
    if against:
        nearest = min((_plain(claim.low), _plain(claim.high)), key=lambda v: abs(v - truth))
        return f"the claim is {100 * abs(nearest / truth - 1):.0f} % {'higher' if nearest > truth else 'lower'}"
    same = _claimed(claim).meets(_span(truth, None, "equals"), _slack(claim))
    return "the claim agrees" if same else "the claim agrees with the price at another time"


def _implausible(claim: Claim, case: Case | None) -> str:
    """In words why a possible rate is not to be believed; empty where it is, or where nothing was expected."""
    if case is None or case.expected is None:
        return ""
    e, claimed = case.expected, _claimed(claim)
    odds = e.odds(max(claimed.low, 1e-9), claimed.high)
    if odds >= 1 / RARE:
        return ""
    times = f"one in {round(1 / odds, -len(str(round(1 / odds))) + 1):,.0f}" if odds > 1e-6 else "less than one in a million"
    return (
        f"{case.name}: {say_value(e.tok_per_s, 'tok/s')} are to be expected, nine times in ten from"
        f" {say_value(e.low_tok_per_s, 'tok/s', e.high_tok_per_s)}; a rate as far off as the claim has odds of {times}."
    )


def _against_evidence(claim: Claim, evidence: Evidence) -> Verdict | None:
    slack = 0.0 if claim.unit == "date" else MEASURED if evidence.kind == "measurement" else _slack(claim)
    claimed = _claimed(claim)
    if evidence.relation == "at_most" and claim.means == "equals":
        # Of a range all must be possible, as below a ceiling.
        most = _plain(claim.high) - _half_a_digit(claim.high)
        claimed = _Span(most, most)
    if claimed.meets(_span(evidence.value, evidence.value_high, evidence.relation), slack):
        return None
    return "contradicts_measurement" if evidence.kind == "measurement" else "contradicts_source"


#: How a relation reads before its figure.
RELATION = {"equals": "", "at_least": "at least ", "at_most": "at most "}


def _evidence_words(claim: Claim, evidence: Evidence, sources: Mapping[str, Source], against: Verdict | None) -> str:
    value = say_value(evidence.value, claim.unit, evidence.value_high)
    said = f"{evidence.says[:1].upper()}{evidence.says[1:]}: {RELATION[evidence.relation]}{value} ({sources[evidence.source].title})"
    if evidence.standing == "unverified":
        return f"{said}, which is too weak a source to decide."
    return f"{said}; the claim {'contradicts that' if against else 'agrees'}."


def _judge_reading(claim: Claim, case: Case | None, evidences: Sequence[Evidence], sources: Mapping[str, Source], own_url: str) -> Judged:
    against: list[Verdict] = []
    words: list[str] = []
    decided = False
    bound = _BOUNDS[claim.quantity](case, own_url) if case is not None and claim.quantity in _BOUNDS else None
    if bound is not None and case is not None:
        found = _against_bound(claim, bound)
        decided |= found is not None
        against += found or ()
        if bound.value is not None or not evidences:
            words.append(_bound_words(claim, case, bound, found))
    for evidence in evidences:
        weak = evidence.standing == "unverified"
        contradiction = None if weak else _against_evidence(claim, evidence)
        decided |= not weak
        against += [contradiction] if contradiction else []
        words.append(_evidence_words(claim, evidence, sources, contradiction))
    if bound is None and evidences:
        first = next((e for e in evidences if e.standing != "unverified"), evidences[0])
        bound = Bound(
            kind="evidence", value=first.value, unit=claim.unit, relation="equals", how=first.says, lines=_evidence_lines(claim, evidences, sources)
        )
    return Judged(
        name=case.name if case else "",
        assumes=case.reading.assumes if case else "",
        bound=bound,
        against=tuple(v for v in VERDICTS if v in against),
        holds=not against if decided else None,
        because=" ".join(words),
    )


def _evidence_lines(claim: Claim, evidences: Sequence[Evidence], sources: Mapping[str, Source]) -> tuple[Line, ...]:
    return tuple(
        Line(
            e.says,
            e.value.isoformat() if isinstance(e.value, date) else float(e.value),
            "" if claim.unit == "date" else claim.unit,
            RELATION[e.relation].strip(),
            sources[e.source].title,
        )
        for e in evidences
    )


def _rival_words(claim: Claim, rivals: Sequence[Rival]) -> list[str]:
    """What other articles say of the same thing that cannot be true together with this."""
    words = []
    for rival in rivals:
        theirs = _span(rival.claim.low, rival.claim.high, rival.claim.means, pad=True)
        if not _claimed(claim).meets(theirs, max(_slack(claim), _slack(rival.claim))):
            says = say_value(rival.claim.low, rival.claim.unit, rival.claim.high)
            words.append(f"Another article ({rival.article}) says {RELATION[rival.claim.means]}{says}.")
    return words


def judge(
    claim: Claim,
    cases: Sequence[Case],
    *,
    sources: Mapping[str, Source],
    rivals: Sequence[Rival] = (),
    own_url: str = "",
) -> Judgement:
    """The verdict on a claim. ``cases`` are its readings, looked up; ``rivals`` claims of the same topic and unit in other articles.

    Evidence of the claim itself counts for every reading. A claim of quantity ``audience`` must not come here.
    """
    rival_words = _rival_words(claim, rivals)
    judged = [_judge_reading(claim, case, case.reading.evidence, sources, own_url) for case in cases]
    general = _judge_reading(claim, None, claim.evidence, sources, own_url) if claim.evidence else None
    decided = [j for j in judged if j.holds is not None]
    applies: set[Verdict] = set(general.against) if general else set()
    words = [f"{j.assumes}: {j.because}" if j.assumes else j.because for j in judged]
    if decided and all(j.holds is False for j in decided):
        applies |= {v for j in decided for v in j.against}
    elif any(j.holds for j in decided) and any(j.holds is False for j in decided):
        applies.add("needs_condition")
    if general:
        words.append(general.because)
    if rival_words:
        applies.add("contradicts_other_article")
    holds = any(j.holds for j in (*decided, *([general] if general else [])))
    unlikely = [_implausible(claim, case) for case in cases]
    if holds and applies <= {"contradicts_other_article"}:
        # Only where every reading is: one that is likely rescues the claim.
        applies.add("implausible" if cases and all(unlikely) else "consistent")
    if not applies:
        applies.add("cannot_check")
    told = unlikely if "implausible" in applies else []
    beside = " ".join([*([claim.cannot_check] if claim.cannot_check else []), *told, *rival_words])
    ordered = [v for v in VERDICTS if v in applies]
    shown = next((j for j in [*decided, *judged, *([general] if general else [])] if j.bound is not None), None)
    # A figure that decides nothing is told in words; as a bound it would look like one.
    bound = shown.bound if shown and ordered != ["cannot_check"] else None
    return Judgement(
        verdict=ordered[0],
        also=tuple(ordered[1:]),
        because=" ".join([*words, beside]).strip(),
        bound=bound.value if bound else None,
        bound_kind=bound.kind if bound else None,
        readings=(*judged, *([general] if general else [])),
        beside=beside,
    )
