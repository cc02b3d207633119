"""Articles and their claims: what somebody printed, in our words, and what would decide it. No verdict stands here.

A claim is a number with a quantity. ``readings`` are the things it may mean, the most literal one first; each names what
its bound is computed from. ``evidence`` is a figure that somebody else gives or measured. Verdicts are computed by ``claims``.
"""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from nbutils.specs import Count, Dtype, Frozen, Id, Line, Name, Number, Source, Standing

__all__ = ["QUANTITIES", "Article", "Claim", "Evidence", "Known", "Quantity", "QuantityRule", "Reading"]

Quantity = Literal[
    "decode_rate",
    "prefill_rate",
    "training_rate",
    "decode_ceiling",
    "file_size",
    "bytes_per_token",
    "parameters",
    "active_parameters",
    "context",
    "memory_needed",
    "parameters_that_fit",
    "memory",
    "bandwidth",
    "power",
    "price",
    "peak_compute",
    "ratio",
    "figure",
    "date",
]


class QuantityRule(Frozen):
    """What a quantity is counted in, and what its readings must name. ``units`` empty: any."""

    units: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


_STORED = ("model", "format")
QUANTITIES: dict[str, QuantityRule] = {
    "decode_rate": QuantityRule(units=("tok/s",), needs=("device", *_STORED)),
    "prefill_rate": QuantityRule(units=("tok/s",), needs=("device", *_STORED)),
    "training_rate": QuantityRule(units=("tok/s",), needs=("device", *_STORED, "method")),
    "decode_ceiling": QuantityRule(units=("tok/s",), needs=("device", *_STORED)),
    "file_size": QuantityRule(units=("GB",), needs=_STORED),
    "bytes_per_token": QuantityRule(units=("GB",), needs=_STORED),
    "parameters": QuantityRule(units=("10^9",), needs=("model",)),
    "active_parameters": QuantityRule(units=("10^9",), needs=("model",)),
    "context": QuantityRule(units=("tokens",), needs=("device", *_STORED)),
    "memory_needed": QuantityRule(units=("GB",), needs=_STORED),
    "parameters_that_fit": QuantityRule(units=("10^9",), needs=("device", "bits_per_weight")),
    "memory": QuantityRule(units=("GB",), needs=("device",)),
    "bandwidth": QuantityRule(units=("GB/s",), needs=("device",)),
    "power": QuantityRule(units=("W",), needs=("device",)),
    "price": QuantityRule(units=("USD",), needs=("device",)),
    "peak_compute": QuantityRule(units=("TFLOP/s",), needs=("device", "dtype", "basis")),
    "ratio": QuantityRule(units=("times",), needs=("of", "over")),
    "figure": QuantityRule(),
    "date": QuantityRule(units=("date",)),
}


def _number_or_date(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float | date):
        raise ValueError("give a number, or a date as 2026-06-01")
    return value


Value = Annotated[float | date, BeforeValidator(_number_or_date)]


class Evidence(Frozen):
    """A figure that decides: what another source says, or what somebody measured.

    ``relation``: the true value is this one, at least this one, or at most this one.
    """

    value: Value
    #: The upper end where the source gives a range.
    value_high: Value | None = None
    relation: Literal["equals", "at_least", "at_most"] = "equals"
    kind: Literal["source", "measurement"] = "source"
    source: str
    standing: Standing
    #: What the figure is of, in our words.
    says: Line


class Reading(Frozen):
    """One thing a claim may mean."""

    #: What this reading takes for granted that the text does not say; empty for the plain one.
    assumes: Line = ""
    device: str = ""
    configuration: str = ""
    model: str = ""
    format: str = ""
    #: Tokens in the cache, of each sequence.
    depth: Annotated[int, Field(ge=0)] = 0
    #: Tokens of a prompt, or of context that must fit.
    n_tokens: Count = 2048
    batch_size: Count = 1
    method: Literal["full", "lora", "qlora", ""] = ""
    #: The type whose peak counts; for rates the best one that a kernel may use where none is named.
    dtype: Dtype | Literal[""] = ""
    basis: Literal["dense", "sparse", ""] = ""
    bits_per_weight: Number | None = None
    #: For a ratio: which quantity, and the same of what it is divided by.
    of: Quantity | Literal[""] = ""
    over: Reading | None = None
    evidence: tuple[Evidence, ...] = ()


class Known(Frozen):
    """What has become of a prediction. ``says`` may be 'not known here'."""

    as_of: date
    says: Line
    source: str = ""


class Claim(Frozen):
    """One number of an article."""

    id: Id
    #: What is claimed, in our words.
    says: Line
    #: Where it stands: a heading of the article, a table, a list.
    where: Line
    subject: Line
    quantity: Quantity | Literal["audience"]
    value: Value
    value_high: Value | None = None
    unit: Line
    #: ``at_least`` for "40+" and "above", ``at_most`` for "up to" and "under".
    means: Literal["equals", "at_least", "at_most"] = "equals"
    #: Whether the text says about, around or roughly.
    rounded: bool = False
    #: Conditions that the text states, and those that it would have to.
    stated: tuple[Line, ...] = ()
    missing: tuple[Line, ...] = ()
    #: Claims of one topic speak of the same thing; those of different articles are held against each other.
    topic: str = ""
    #: Devices of the registry that it speaks of, beside those that readings name.
    devices: tuple[Id, ...] = ()
    readings: tuple[Reading, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    #: Why nothing here decides it; only without readings and evidence.
    cannot_check: Line = ""
    #: A prediction's day, and what is known of it.
    due: date | None = None
    known: Known | None = None

    @property
    def low(self) -> float | date:
        return self.value

    @property
    def high(self) -> float | date:
        return self.value if self.value_high is None else self.value_high

    @model_validator(mode="after")
    def _fits_its_quantity(self) -> Self:
        values = [v for v in (self.value, self.value_high) if v is not None]
        if any(isinstance(v, date) != (self.unit == "date") for v in values):
            raise ValueError("unit 'date' goes with dates, and other units with numbers")
        if self.value_high is not None and not self.value < self.value_high:  # type: ignore[operator]
            raise ValueError(f"value_high: {self.value_high} is not above value {self.value}; leave it out for a single figure")
        if self.quantity == "audience":
            if self.readings or self.evidence or self.cannot_check:
                raise ValueError("quantity 'audience' is not judged; leave out readings, evidence and cannot_check")
            return self
        rule = QUANTITIES[self.quantity]
        if rule.units and self.unit not in rule.units:
            raise ValueError(f"unit: {self.quantity} is in {' or '.join(rule.units)}, not {self.unit!r}")
        decided = bool(self.readings or self.evidence)
        if decided == bool(self.cannot_check):
            raise ValueError("give readings or evidence, or say in cannot_check why nothing decides it; one of the two")
        for number, reading in enumerate(self.readings):
            self._check_reading(reading, rule, f"readings.{number}")
        if (self.due is None) != (self.known is None):
            raise ValueError("a prediction has both: 'due', its day, and 'known', what is known of it ('not known here')")
        return self

    def _check_reading(self, reading: Reading, rule: QuantityRule, place: str) -> None:
        for field in rule.needs:
            if not getattr(reading, field):
                raise ValueError(f"{place}: {self.quantity} needs '{field}'")
        if not rule.needs and not reading.evidence:
            raise ValueError(f"{place}: a reading of {self.quantity} needs evidence of its own")
        if reading.over is not None:
            for side, name in ((reading, place), (reading.over, f"{place}.over")):
                for field in QUANTITIES[reading.of].needs if reading.of else ():
                    if not getattr(side, field):
                        raise ValueError(f"{name}: a ratio of {reading.of} needs '{field}'")
        if reading.configuration and not reading.device:
            raise ValueError(f"{place}: configuration without device")

    def every_evidence(self) -> list[Evidence]:
        return [*self.evidence, *(e for r in self.readings for e in r.evidence)]


class Article(Frozen):
    """One article and every number in it that is claimed of a machine, a model or a market."""

    id: Id
    title: Name
    publisher: Name
    #: Where it was read, empty where the page is not known; the day it carries, what it says of its day, and the day it was read.
    url: Line = ""
    published: date | None = None
    dated: Line = ""
    seen: date
    #: In a sentence, what it argues.
    about: Line
    claims: Annotated[tuple[Claim, ...], Field(min_length=1)]
    sources: dict[str, Source] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _ids_and_sources(self) -> Self:
        ids = [c.id for c in self.claims]
        if repeated := sorted({i for i in ids if ids.count(i) > 1}):
            raise ValueError(f"claims: ids repeat: {', '.join(repeated)}")
        if self.published is None and not self.dated:
            raise ValueError("give 'published', the day it carries, or say in 'dated' what is known of it")
        named = {e.source for c in self.claims for e in c.every_evidence()} | {c.known.source for c in self.claims if c.known and c.known.source}
        if missing := sorted(named - self.sources.keys()):
            raise ValueError(f"source {missing[0]!r} is not listed under 'sources'")
        if unused := sorted(self.sources.keys() - named):
            raise ValueError(f"sources.{unused[0]}: no claim uses it; remove it")
        return self
