"""Frozen values, parsed once at the boundary: Device, Model, Format, Suite, Record.

Files say units and sources; properties give plain bytes, bytes per second and FLOP per second.
Unknown is ``None``, never zero and never infinity. A field that does not exist is an error.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from nbutils.units import UNITS, to_base

__all__ = [
    "SCHEMA_VERSION",
    "Backend",
    "Block",
    "Configuration",
    "Device",
    "Experts",
    "Figure",
    "FileFacts",
    "Format",
    "Gpu",
    "KernelRate",
    "Machine",
    "Model",
    "NamedRun",
    "Peak",
    "Point",
    "Published",
    "Record",
    "Settings",
    "Shape",
    "Source",
    "Standing",
    "Suite",
    "SuitePoint",
    "TensorGroup",
    "Yardstick",
]

SCHEMA_VERSION = 1

Id = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.\-]{0,63}$")]
#: Text that reaches pages: bounded, one line. It is escaped where it becomes HTML, not here.
Line = Annotated[str, StringConstraints(max_length=400, pattern=r"^[^\x00-\x1f\x7f]*$")]
#: A name that becomes the title of a page: templates put it where markup would count.
Name = Annotated[str, StringConstraints(min_length=1, max_length=120, pattern=r"^[^<>&\"\x00-\x1f\x7f]*$")]
Standing = Literal["vendor", "press", "derived", "measured", "unverified"]
Dtype = Literal["fp32", "fp16", "bf16", "fp8", "int8", "fp4"]
Count = Annotated[int, Field(gt=0)]


def _no_truth(value: Any) -> Any:
    """YAML's ``yes`` is no number."""
    if isinstance(value, bool):
        raise PydanticCustomError("number", "Input should be a valid number")
    return value


Number = Annotated[float, BeforeValidator(_no_truth), Field(gt=0)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False)


class Source(Frozen):
    """Where a figure comes from. ``url`` may be empty only for a derivation, which then says its formula."""

    title: Line
    url: Line = ""
    seen: date


class Alternative(Frozen):
    """A figure that another source gives for the same thing, and that is not the one used."""

    value: Number
    unit: str
    source: str
    standing: Standing
    note: Line = ""


class Figure(Alternative):
    """One number with its unit, source and standing. ``also`` keeps what other sources say, ``because`` why not."""

    also: tuple[Alternative, ...] = ()
    because: Line = ""

    @model_validator(mode="after")
    def _disagreement_is_explained(self) -> Self:
        figures: tuple[Alternative, ...] = (self, *self.also)
        for figure in figures:
            if figure.unit not in UNITS:
                raise ValueError(f"unit {figure.unit!r} is unknown; use one of {', '.join(UNITS)}")
        if self.also and not self.because:
            raise ValueError("sources disagree ('also' is set), so 'because' must say which is used and why")
        return self

    def base(self, dimension: str) -> float:
        """The value in the base unit of ``dimension``; ``ValueError`` when the unit is of another one."""
        return to_base(self.value, self.unit, dimension)


class Price(Figure):
    """A price means nothing without the day it was asked."""

    asked: date


class Configuration(Frozen):
    """One thing you can buy: an amount of memory, its bandwidth, what programs may use of it, a price."""

    id: Id
    memory: Figure
    bandwidth: Figure
    usable: Figure | None = None
    price: Price | None = None

    @model_validator(mode="after")
    def _units(self) -> Self:
        self.memory.base("memory")
        self.bandwidth.base("bandwidth")
        if self.usable is not None and self.usable.base("memory") > self.memory.base("memory"):
            raise ValueError("usable: more than the memory itself")
        if self.price is not None:
            self.price.base("price")
        return self

    @property
    def memory_bytes(self) -> int:
        return round(self.memory.base("memory"))

    @property
    def bandwidth_bytes_per_s(self) -> float:
        return self.bandwidth.base("bandwidth")

    @property
    def usable_bytes(self) -> int:
        """What a program may use; the whole memory where no source says."""
        return self.memory_bytes if self.usable is None else round(self.usable.base("memory"))


class Peak(Figure):
    """Peak arithmetic rate. Without the type, dense or sparse, and the accumulator it could mean four things."""

    dtype: Dtype
    basis: Literal["dense", "sparse"]
    accumulate: Literal["fp16", "fp32", "int32", "unstated"]

    @model_validator(mode="after")
    def _compute_unit(self) -> Self:
        self.base("compute")
        return self


class Device(Frozen):
    """A machine or a graphics card, with every configuration it is sold in."""

    id: Id
    name: Name
    family: Literal["nvidia-unified", "nvidia-discrete", "apple", "amd-unified", "amd-discrete", "intel", "qualcomm"]
    memory_kind: Literal["unified", "discrete"]
    #: Whole strings, compared exactly: a 16 GB card is not found by the name of an 8 GB one.
    nvml_names: tuple[Line, ...] = ()
    chip_names: tuple[Line, ...] = ()
    configurations: Annotated[tuple[Configuration, ...], Field(min_length=1)]
    peaks: tuple[Peak, ...] = ()
    power: Figure | None = None
    notes: Line = ""
    sources: dict[str, Source]

    @model_validator(mode="after")
    def _ids_and_sources(self) -> Self:
        ids = [c.id for c in self.configurations]
        if len(set(ids)) != len(ids):
            raise ValueError(f"configurations: ids repeat: {', '.join(ids)}")
        if self.power is not None:
            self.power.base("power")
        _check_sources(self, self.sources)
        return self

    def configuration(self, configuration_id: str = "") -> Configuration:
        """The named configuration; the largest when the name is empty. ``KeyError`` when there is none."""
        if not configuration_id:
            return max(self.configurations, key=lambda c: (c.memory_bytes, c.bandwidth_bytes_per_s))
        for configuration in self.configurations:
            if configuration.id == configuration_id:
                return configuration
        raise KeyError(configuration_id)

    def peak(self, *dtypes: str) -> Peak | None:
        """The highest dense peak in any of ``dtypes`` with a full-width accumulator; ``None`` where none is known."""
        dense = [p for p in self.peaks if p.dtype in dtypes and p.basis == "dense" and p.accumulate != "fp16"]
        return max(dense, key=lambda p: p.base("compute"), default=None)


class Experts(Frozen):
    """Mixture-of-experts part of a layer."""

    n_expert: Count
    n_expert_used: Count
    n_ff_expert: Count

    @model_validator(mode="after")
    def _used(self) -> Self:
        if self.n_expert_used > self.n_expert:
            raise ValueError(f"n_expert_used {self.n_expert_used} is more than n_expert {self.n_expert}")
        return self


class Shape(Frozen):
    """The sizes that decide bytes and FLOP. Names follow llama.cpp's hparams."""

    n_layer: Count
    n_embd: Count
    n_head: Count
    n_head_kv: Count
    head_dim: Count
    n_ff: int = Field(default=0, ge=0)
    n_vocab: Count
    n_ctx_train: Count
    tied_embedding: bool = False
    rope_freqs: int = Field(default=0, ge=0)
    experts: Experts | None = None
    #: Tokens a sliding-window layer can see; every ``full_every``-th layer sees everything.
    sliding_window: int | None = Field(default=None, gt=0)
    full_every: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.n_head % self.n_head_kv:
            raise ValueError(f"n_head {self.n_head} is no multiple of n_head_kv {self.n_head_kv}")
        if not self.n_ff and self.experts is None:
            raise ValueError("neither n_ff nor experts: a layer needs a feed-forward part")
        if (self.sliding_window is None) != (self.full_every is None):
            raise ValueError("sliding_window and full_every go together")
        return self


class Published(Frozen):
    """A count or a file size that somebody else published: what our arithmetic must reproduce."""

    quantity: Literal["parameters", "tensor_bytes"]
    format: str = ""
    value: Count
    source: str
    standing: Standing


class Model(Frozen):
    """An architecture with its shape."""

    id: Id
    name: Name
    architecture: Literal["llama", "qwen3", "qwen3moe", "gpt-oss"]
    shape: Shape
    #: Where the shape comes from, and how far to trust it.
    source: str
    standing: Standing
    #: The formats this model is published in; the book and the tests ask for these.
    formats: tuple[str, ...]
    published: tuple[Published, ...] = ()
    notes: Line = ""
    sources: dict[str, Source]

    @model_validator(mode="after")
    def _moe_and_sources(self) -> Self:
        moe = self.architecture in ("qwen3moe", "gpt-oss")
        if moe != (self.shape.experts is not None):
            raise ValueError(f"architecture {self.architecture!r} {'needs' if moe else 'has no'} shape.experts")
        _check_sources(self, self.sources)
        return self


class Block(Frozen):
    """A tensor type: ``elements`` weights are stored in ``bytes`` bytes."""

    elements: Count
    bytes: Count
    source: str
    standing: Standing
    note: Line = ""


class Format(Frozen):
    """How a model is stored: the rule that gives each tensor its type, and the types' sizes."""

    id: Annotated[str, StringConstraints(pattern=r"^[A-Z0-9][A-Z0-9_]{1,31}$")]
    name: Line
    container: Literal["gguf", "safetensors"]
    rule: Literal["gguf-float", "gguf-plain", "gguf-k-medium", "gguf-mxfp4-moe", "linear-only"]
    base: str
    #: What the rule gives the tensors it singles out (the output head, the more sensitive projections).
    more: str
    #: Types whose peaks a kernel for this format may reach; the best of them is the prefill ceiling.
    arithmetic: Annotated[tuple[Dtype, ...], Field(min_length=1)]
    arithmetic_source: str
    source: str
    standing: Standing
    notes: Line = ""
    blocks: dict[str, Block]

    def block(self, tensor_type: str) -> Block:
        return self.blocks[tensor_type]


class SuitePoint(Frozen):
    """One thing to time. ``prefill`` reads ``n_tokens`` at once; ``decode`` produces them one by one."""

    kind: Literal["prefill", "decode"]
    n_tokens: Annotated[int, Field(gt=0, le=65536)]
    depth: Annotated[int, Field(ge=0, le=1_048_576)] = 0


class Suite(Frozen):
    """Points to measure, with llama-bench's protocol: warm up, repeat, keep every sample."""

    id: Id
    name: Name
    points: Annotated[tuple[SuitePoint, ...], Field(min_length=1)]
    repetitions: Annotated[int, Field(gt=0, le=100)]
    #: Seconds of bandwidth reading before and after; the yardstick a share is taken of.
    yardstick_s: Seconds


class NamedRun(Frozen):
    """Committed records that belong together and that chapters show under one name."""

    id: Id
    name: Name
    #: What the machine is and under which conditions it ran, in a sentence.
    description: Line
    #: Files under ``data/records``.
    records: Annotated[tuple[Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.\-]*/[A-Za-z0-9._\-]+\.json$")], ...], Field(min_length=1)]


# ── records ───────────────────────────────────────────────────────────────────────────────────────


class Gpu(Frozen):
    name: Line
    memory_bytes: Count | None = None
    driver: Line = ""
    power_limit_w: float | None = None
    #: What NVML refused to say, by name of the question.
    refused: tuple[Line, ...] = ()


class Machine(Frozen):
    """What the machine is. No host name, no user name, no serial number."""

    device: Id | Literal["unlisted"]
    configuration: Line = ""
    system: Line
    architecture: Line
    cpu: Line
    n_cores: Count
    n_threads_hw: Count
    memory_bytes: Count
    memory_available_bytes: Count
    gpus: tuple[Gpu, ...] = ()
    apple_working_set_bytes: Count | None = None
    notes: tuple[Line, ...] = ()


class Yardstick(Frozen):
    """Memory bandwidth, timed in the same run: ``n_bytes`` moved in each of ``samples_s``."""

    when: Literal["before", "between", "after", "probe"]
    method: Line
    kind: Literal["read", "copy"]
    where: Literal["cpu", "gpu"]
    n_threads: Count
    n_bytes: Count
    samples_s: Annotated[tuple[Seconds, ...], Field(min_length=1, max_length=500)]


class KernelRate(Frozen):
    """One ggml matrix product, timed: weights of ``tensor_type``, in cache or far larger than it."""

    when: Literal["before", "after", "probe"]
    tensor_type: Line
    placement: Literal["cache", "memory"]
    n_rows: Count
    n_columns: Count
    n_batch: Count
    n_bytes: Count
    n_threads: Count
    samples_s: Annotated[tuple[Seconds, ...], Field(min_length=1, max_length=500)]


class TensorGroup(Frozen):
    """Stored bytes of the tensors with one role; what a decode step reads of them is derived, not stored."""

    role: Literal["embedding", "output", "experts", "other"]
    n_bytes: Count
    n_elements: Count


class FileFacts(Frozen):
    """What was measured: facts of the file, from its header."""

    name: Line
    origin: Literal["stand-in", "file", "hub"]
    #: Repository for a hub file, recipe for a stand-in. Never a path: a path names a person's disk.
    reference: Line = ""
    architecture: Line
    gguf_type: Line
    n_parameters: Count
    file_bytes: Count
    n_layer: Count
    n_ctx_train: Count
    n_expert: int = Field(ge=0)
    n_expert_used: int = Field(ge=0)
    #: Bytes of K and V per token in F16; ``None`` where layers keep less than everything (windows, latents, states).
    kv_bytes_per_token: Count | None = None
    tensors: Annotated[tuple[TensorGroup, ...], Field(min_length=1, max_length=4)]
    #: Bytes of weights that one token reads, by tensor type: which kernels its time is spent in.
    type_bytes_read: dict[Line, Count]
    header_sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Settings(Frozen):
    """llama.cpp's settings that change speed; nothing else."""

    n_threads: Count
    n_batch: Count
    n_ubatch: Count
    n_ctx: Count
    flash_attn: Literal["auto", "on", "off"]
    type_k: Line
    type_v: Line
    n_gpu_layers: int = Field(ge=-1)
    seed: int


class Backend(Frozen):
    """Which llama.cpp ran, and on what."""

    engine: Literal["llama.cpp"] = "llama.cpp"
    binding: Line
    device: Line
    #: What the backend says its device has: on Apple the working set that Metal recommends, on a CPU the system's memory.
    memory_bytes: Count
    system_info: Annotated[str, StringConstraints(max_length=2000)]


class Point(Frozen):
    """Raw times of one suite point. ``prefill``: one time per repetition. ``decode``: one per token and repetition."""

    kind: Literal["prefill", "decode"]
    n_tokens: Count
    depth: int = Field(ge=0)
    warmup_s: Seconds
    repetitions_s: Annotated[tuple[Annotated[tuple[Seconds, ...], Field(min_length=1)], ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _lengths(self) -> Self:
        expected = 1 if self.kind == "prefill" else self.n_tokens
        for samples in self.repetitions_s:
            if len(samples) != expected:
                raise ValueError(f"{self.kind}: {len(samples)} times in a repetition, expected {expected}")
        return self


class Record(Frozen):
    """One run of one suite on one file on one machine: settings and samples, never a summary."""

    schema_version: Literal[1]
    created: datetime
    suite: Suite
    machine: Machine
    backend: Backend
    model: FileFacts
    settings: Settings
    points: Annotated[tuple[Point, ...], Field(min_length=1)]
    yardsticks: tuple[Yardstick, ...]
    kernels: tuple[KernelRate, ...] = ()
    #: What a stand-in has to say: noise. Empty for a real model, whose words are nobody's measurement.
    sample_text: Line = ""
    #: NVML's clocks, power, temperature and throttle reasons before and after; empty without a GPU.
    states: tuple[dict[str, Any], ...] = ()
    versions: dict[str, Line]
    commit: Line = ""

    @model_validator(mode="after")
    def _suite_is_what_was_run(self) -> Self:
        asked = [(p.kind, p.n_tokens, p.depth) for p in self.suite.points]
        ran = [(p.kind, p.n_tokens, p.depth) for p in self.points]
        if asked != ran:
            raise ValueError(f"points {ran} are not the suite's {asked}")
        for point in self.points:
            if len(point.repetitions_s) != self.suite.repetitions:
                raise ValueError(f"{point.kind}: {len(point.repetitions_s)} repetitions, the suite says {self.suite.repetitions}")
        if self.created.tzinfo is None:
            raise ValueError("created: needs a time zone")
        return self


def _check_sources(value: BaseModel, sources: dict[str, Source]) -> None:
    """Every ``source`` named anywhere in ``value`` must be listed, and every listed one used."""
    named = set(_named_sources(value))
    if missing := named - sources.keys():
        raise ValueError(f"source {sorted(missing)[0]!r} is not listed under 'sources'")
    if unused := sources.keys() - named:
        raise ValueError(f"source {sorted(unused)[0]!r} is listed and never used")


def _named_sources(value: Any) -> list[str]:
    if isinstance(value, Source):
        return []
    if isinstance(value, BaseModel):
        return [
            name
            for field in type(value).model_fields
            for name in ([getattr(value, field)] if field == "source" else _named_sources(getattr(value, field)))
        ]
    if isinstance(value, tuple | list):
        return [name for item in value for name in _named_sources(item)]
    if isinstance(value, dict):
        return [name for item in value.values() for name in _named_sources(item)]
    return []
