"""Frozen values, parsed once at the boundary: Device, Model, Format, Suite, Record.

Files say units and sources; properties give plain bytes, bytes per second and FLOP per second.
Unknown is ``None``, never zero and never infinity. A field that does not exist is an error.
"""

from __future__ import annotations

from datetime import date, datetime
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from nbutils.units import UNITS, to_base

__all__ = [
    "SCHEMA_VERSION",
    "AnyRecord",
    "Architecture",
    "Backend",
    "BackendCost",
    "BackendName",
    "BenchRecord",
    "BenchTest",
    "Block",
    "BufferAnswers",
    "Configuration",
    "Device",
    "Engine",
    "Engines",
    "Experts",
    "Family",
    "Figure",
    "FileFacts",
    "Format",
    "Gpu",
    "Kept",
    "KernelRate",
    "Latent",
    "LayerKind",
    "Machine",
    "Market",
    "MemoryStage",
    "MemoryUse",
    "Model",
    "NamedRun",
    "Neighbours",
    "Offer",
    "OwnBuffer",
    "Pages",
    "Peak",
    "Platform",
    "Point",
    "Price",
    "Published",
    "PublishedRate",
    "PublishedSource",
    "Record",
    "Recurrent",
    "Rent",
    "Runs",
    "Runtimes",
    "ServedRecord",
    "ServedRequest",
    "Settings",
    "Shape",
    "Source",
    "Standing",
    "Suite",
    "SuitePoint",
    "Supply",
    "SustainRecord",
    "SystemCost",
    "SystemName",
    "TensorGroup",
    "Trace",
    "TriedThreads",
    "Yardstick",
]

SCHEMA_VERSION = 1

Id = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.\-]{0,63}$")]
#: Text that reaches pages: bounded, one line. It is escaped where it becomes HTML, not here.
Line = Annotated[str, StringConstraints(max_length=400, pattern=r"^[^\x00-\x1f\x7f]*$")]
#: The same where one line lists many things: a machine's cards, overrides of tensors by pattern.
Words = Annotated[str, StringConstraints(max_length=4000, pattern=r"^[^\x00-\x1f\x7f]*$")]
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
#: No clock tells less than a picosecond, no run lasts 30 years; between the two every rate is a number.
Seconds = Annotated[float, Field(ge=1e-12, le=1e9, allow_inf_nan=False)]
#: Seconds from the start of a run.
Moment = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False)


BackendName = Literal["cpu", "cuda", "metal", "rocm", "sycl", "vulkan"]
SystemName = Literal["linux", "macos", "windows"]
Family = Literal["nvidia-unified", "nvidia-discrete", "apple", "amd-unified", "amd-discrete", "intel", "qualcomm"]


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


class Peak(Figure):
    """Peak arithmetic rate. Without the type, dense or sparse, and the accumulator it could mean four things."""

    dtype: Dtype
    basis: Literal["dense", "sparse"]
    accumulate: Literal["fp16", "fp32", "int32", "unstated"]

    @model_validator(mode="after")
    def _compute_unit(self) -> Self:
        self.base("compute")
        return self


class Configuration(Frozen):
    """One thing you can buy: an amount of memory, its bandwidth, what programs may use of it, a price."""

    id: Id
    memory: Figure
    bandwidth: Figure
    usable: Figure | None = None
    #: Whether the running system lives in what is not usable; otherwise it takes its share of what is.
    usable_leaves_system: bool = False
    price: Price | None = None
    #: Where this one has another chip than the rest of the file: its own peaks, all of them.
    peaks: tuple[Peak, ...] = ()

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


class Device(Frozen):
    """A machine or a graphics card, with every configuration it is sold in."""

    id: Id
    name: Name
    family: Family
    memory_kind: Literal["unified", "discrete"]
    #: Whole strings, compared exactly: a 16 GB card is not found by the name of an 8 GB one.
    nvml_names: tuple[Line, ...] = ()
    chip_names: tuple[Line, ...] = ()
    configurations: Annotated[tuple[Configuration, ...], Field(min_length=1)]
    #: What llama.cpp runs on there, and the system it is sold or usually run with; see ``data/runtimes.yaml``.
    backend: BackendName
    system: SystemName
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

    def peak(self, *dtypes: str, configuration: Configuration | None = None) -> Peak | None:
        """The highest dense peak in any of ``dtypes``; ``None`` where none is known. Sums in FP16 count where ``dtype/any`` is asked for."""
        peaks = configuration.peaks if configuration and configuration.peaks else self.peaks
        dense = [p for p in peaks if p.basis == "dense" and (f"{p.dtype}/any" in dtypes or (p.dtype in dtypes and p.accumulate != "fp16"))]
        return max(dense, key=lambda p: p.base("compute"), default=None)


class Experts(Frozen):
    """Mixture-of-experts part of a layer."""

    n_expert: Count
    n_expert_used: Count
    n_ff_expert: Count
    #: Width of all experts that every token uses, together.
    n_ff_shared: int = Field(default=0, ge=0)
    #: Leading layers with a plain feed-forward part of ``n_ff`` instead.
    n_layer_dense: int = Field(default=0, ge=0)
    #: Width that experts work at where it is not ``n_embd``: tokens are projected down to it and up again.
    n_embd_latent: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _used(self) -> Self:
        if self.n_expert_used > self.n_expert:
            raise ValueError(f"n_expert_used {self.n_expert_used} is more than n_expert {self.n_expert}")
        return self


class Latent(Frozen):
    """Multi-head latent attention: one compressed vector per token and layer is cached for all heads."""

    q_lora_rank: Count
    kv_lora_rank: Count
    #: Of one head: the part of keys that is rotated, the part that is not, and the values.
    n_rot: Count
    head_dim_nope: Count
    head_dim_v: Count


class Recurrent(Frozen):
    """Layers that keep a state of fixed size instead of keys and values. Names are llama.cpp's ``ssm.*``."""

    conv_kernel: Count
    inner_size: Count
    state_size: Count
    time_step_rank: Count
    group_count: Count


LayerKind = Literal["full", "window", "latent", "recurrent", "none"]


class Shape(Frozen):
    """The sizes that decide bytes and FLOP. Names follow llama.cpp's hparams."""

    n_layer: Annotated[int, Field(gt=0, le=1000)]
    n_embd: Count
    n_head: Count
    n_head_kv: Count
    head_dim: Count
    #: Size of a value head where it differs from ``head_dim``, the size of a key head.
    head_dim_v: int | None = Field(default=None, gt=0)
    n_ff: int = Field(default=0, ge=0)
    n_vocab: Count
    n_ctx_train: Count
    tied_embedding: bool = False
    rope_freqs: int = Field(default=0, ge=0)
    #: Elements of a head that are rotated, where not all are.
    n_rot: int | None = Field(default=None, gt=0)
    experts: Experts | None = None
    #: Tokens a windowed layer can see; every ``full_every``-th layer sees everything.
    sliding_window: int | None = Field(default=None, gt=0)
    #: A chunked layer sees back to the last multiple of the window only.
    chunked: bool = False
    full_every: int | None = Field(default=None, gt=0)
    latent: Latent | None = None
    recurrent: Recurrent | None = None
    #: One letter per layer where layers differ in more than their attention: M recurrent, E experts, * attention.
    pattern: Annotated[str, StringConstraints(pattern=r"^[ME*]*$", max_length=1000)] = ""
    #: Extra layers that draft tokens; stored in the file, idle without speculative decoding.
    n_layer_mtp: int = Field(default=0, ge=0, le=100)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.n_head % self.n_head_kv:
            raise ValueError(f"n_head {self.n_head} is no multiple of n_head_kv {self.n_head_kv}")
        if not self.n_ff and self.experts is None and self.recurrent is None:
            raise ValueError("neither n_ff nor experts: a layer needs a feed-forward part")
        if self.experts and self.experts.n_layer_dense and not self.n_ff:
            raise ValueError("experts.n_layer_dense needs n_ff, the width of those layers")
        if self.pattern and len(self.pattern) != self.n_layer:
            raise ValueError(f"pattern names {len(self.pattern)} layers, n_layer is {self.n_layer}")
        mixed = self.sliding_window is not None or (self.recurrent is not None and not self.pattern)
        if mixed != (self.full_every is not None):
            raise ValueError("full_every goes with sliding_window or with recurrent layers, and these with it")
        return self

    @cached_property
    def layer_kinds(self) -> tuple[LayerKind, ...]:
        """What each layer keeps of the context; ``none`` for a layer without attention."""
        everything: LayerKind = "full" if self.latent is None else "latent"
        if self.pattern:
            by_letter: dict[str, LayerKind] = {"M": "recurrent", "E": "none", "*": everything}
            return tuple(by_letter[letter] for letter in self.pattern)
        other: LayerKind = "recurrent" if self.recurrent else "window"
        every = self.full_every or 1
        return tuple(everything if (i + 1) % every == 0 else other for i in range(self.n_layer))


class Published(Frozen):
    """A count or a file size that somebody else published: what our arithmetic must reproduce."""

    quantity: Literal["parameters", "tensor_bytes"]
    format: str = ""
    value: Count
    source: str
    standing: Standing


#: llama.cpp's names. Mistral, Mixtral and CodeLlama are of the architecture llama.
Architecture = Literal["llama", "llama4", "gemma3", "qwen3", "qwen3moe", "qwen35moe", "gpt-oss", "glm4moe", "deepseek2", "nemotron_h_moe"]
#: Shape fields that an architecture cannot be without; those of the others must be empty.
_NEEDS: dict[str, set[str]] = {
    "llama4": {"experts", "sliding_window"},
    "gemma3": {"sliding_window"},
    "qwen3moe": {"experts"},
    "qwen35moe": {"experts", "recurrent"},
    "gpt-oss": {"experts", "sliding_window"},
    "glm4moe": {"experts"},
    "deepseek2": {"experts", "latent"},
    "nemotron_h_moe": {"experts", "recurrent", "pattern"},
}


class Model(Frozen):
    """An architecture with its shape."""

    id: Id
    name: Name
    architecture: Architecture
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
    def _kinds_and_sources(self) -> Self:
        needs = _NEEDS.get(self.architecture, set())
        may = needs | ({"experts"} if self.architecture == "llama" else set())
        for field in ("experts", "sliding_window", "latent", "recurrent", "pattern"):
            has = bool(getattr(self.shape, field))
            if has and field not in may:
                raise ValueError(f"architecture {self.architecture!r} has no shape.{field}")
            if not has and field in needs:
                raise ValueError(f"architecture {self.architecture!r} needs shape.{field}")
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
    #: Where such weights are stored decides which engine runs them: llama.cpp, vLLM or MLX.
    container: Literal["gguf", "safetensors", "mlx"]
    rule: Literal["gguf-float", "gguf-mixture", "gguf-mxfp4-moe", "linear-only", "experts-only", "mlx"]
    base: str
    #: What the rule gives the tensors it singles out (the output head, the more sensitive projections).
    more: str
    #: Types whose peaks a kernel for this format may reach; the best of them is the prefill ceiling.
    arithmetic: Annotated[tuple[Dtype, ...], Field(min_length=1)]
    arithmetic_source: str
    source: str
    standing: Standing
    notes: Line = ""
    blocks: dict[str, Block] = Field(repr=False)

    def block(self, tensor_type: str) -> Block:
        return self.blocks[tensor_type]


class BackendCost(Frozen):
    """What a backend of llama.cpp takes for itself: its context, its libraries, its pools."""

    name: Name
    overhead: Figure


class SystemCost(Frozen):
    """What a system keeps of the memory that programs see: the rest of a unified memory, or of a card that also shows a desktop."""

    name: Name
    unified: Figure
    discrete: Figure


class Runtimes(Frozen):
    """What runs beside the model and how much memory it takes. A figure with a source each, never hidden in a margin."""

    backends: dict[BackendName, BackendCost]
    systems: dict[SystemName, SystemCost]
    sources: dict[str, Source]

    @model_validator(mode="after")
    def _sources(self) -> Self:
        for cost in self.backends.values():
            cost.overhead.base("memory")
        for system in self.systems.values():
            system.unified.base("memory")
            system.discrete.base("memory")
        _check_sources(self, self.sources)
        return self


class Platform(Frozen):
    """A kind of machine: whose processor or card does the arithmetic, under which system."""

    name: Name
    system: SystemName
    #: Families of devices that are of this kind under this system; empty where the card does not matter.
    families: tuple[Family, ...] = ()


class Runs(Frozen):
    """Whether an engine runs on a platform, as a source said on the day it was read."""

    #: ``partly``: on some chips only, on the processor only, or by way of a plugin, a fork or WSL.
    runs: Literal["fully", "partly", "not"]
    how: Line
    #: The version or the day it began, where a source says.
    since: Line = ""
    source: str
    standing: Standing


class Engine(Frozen):
    """A program that runs models: what it opens, and where it runs. A platform that is left out is not known."""

    name: Name
    what: Line
    files: Line
    source: str
    standing: Standing
    platforms: Annotated[dict[Id, Runs], Field(min_length=1)]


class Engines(Frozen):
    """Which engine runs where."""

    platforms: Annotated[dict[Id, Platform], Field(min_length=1)]
    engines: Annotated[dict[Id, Engine], Field(min_length=1)]
    sources: dict[str, Source]

    @model_validator(mode="after")
    def _platforms_and_sources(self) -> Self:
        for engine_id, engine in self.engines.items():
            if unknown := engine.platforms.keys() - self.platforms.keys():
                raise ValueError(f"engines.{engine_id}.platforms: {sorted(unknown)[0]!r} is not under 'platforms'")
        seen: dict[tuple[str, str], str] = {}
        for platform_id, platform in self.platforms.items():
            for family in platform.families:
                other = seen.setdefault((family, platform.system), platform_id)
                if other != platform_id:
                    raise ValueError(f"platforms.{platform_id}.families: {family} under {platform.system} is {other!r} already")
        _check_sources(self, self.sources)
        return self


class BufferAnswers(Frozen):
    """Compute buffers that llama.cpp named for one model, kept so that no page has to ask again."""

    id: Id
    #: What was asked: the build, its backend, the micro-batch, one sequence, and the header by its digest.
    build: Line
    backend: BackendName
    n_ubatch: Count
    header_sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    #: By cache type: pairs of context and bytes, as exact as llama.cpp prints (0.01 MiB).
    compute_bytes: dict[Line, tuple[tuple[Count, Count], ...]]


class SuitePoint(Frozen):
    """One thing to time. ``prefill`` reads ``n_tokens`` at once; ``decode`` produces them one by one."""

    kind: Literal["prefill", "decode"]
    n_tokens: Annotated[int, Field(gt=0, le=65536)]
    depth: Annotated[int, Field(ge=0, le=1_048_576)] = 0
    #: Sequences decoded side by side, each with a cache of its own.
    n_seq: Annotated[int, Field(gt=0, le=256)] = 1


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


# ── what others measured ──────────────────────────────────────────────────────────────────────────


class PublishedRate(Frozen):
    """One speed that somebody else measured and printed: on what, of what, how, and when.

    What a token reads follows from ``model`` and ``format``. Where either is none of the registry, ``weight_gb_read`` says it instead.
    """

    device: Id
    #: Empty where the source does not say, or says one that no registry file has.
    configuration: str = ""
    backend: BackendName
    engine: Literal["llama.cpp", "ollama", "mlx", "vllm", "sglang", "tensorrt-llm", "calm"]
    version: Line = ""
    #: A model of the registry; of a fine-tune, the one whose shape it has. Otherwise ``model_name`` and what follows it.
    model: Id | None = None
    #: As the source calls it, where that is another name than the registry's.
    model_name: Line = ""
    #: A format of the registry, or any name where ``weight_gb_read`` says what a token reads.
    format: Annotated[str, StringConstraints(min_length=1, max_length=32, pattern=r"^[A-Za-z0-9_ \-]+$")]
    phase: Literal["decode", "prefill"]
    #: Tokens read and tokens decoded; 0 where the source does not say.
    n_prompt: int = Field(default=0, ge=0)
    n_gen: int = Field(default=0, ge=0)
    #: Tokens in the cache: before a prompt, and on average over what is decoded.
    depth: int = Field(ge=0)
    batch_size: Count = 1
    tok_per_s: Number
    stddev: float | None = Field(default=None, ge=0)
    #: As exact as the source is: a year, a month or a day.
    date: Annotated[str, StringConstraints(pattern=r"^20[0-9]{2}(-(0[1-9]|1[0-2])(-(0[1-9]|[12][0-9]|3[01]))?)?$")]
    #: Type of the KV cache, in the words of the engine.
    kv_type: Line = "f16"
    #: GB (decimal) of weights that one token reads, and where that is known from.
    weight_gb_read: Number | None = None
    basis: Line = ""
    kind: Literal["dense", "MoE"] | None = None
    n_layer: Count | None = None
    kv_bytes_per_token: Count | None = None
    #: Why it is above its ceiling, which nothing lawful is; only for rates that are.
    above_because: Line = ""
    note: Line = ""

    @model_validator(mode="after")
    def _what_a_token_reads(self) -> Self:
        alone = {"kind": self.kind, "n_layer": self.n_layer, "kv_bytes_per_token": self.kv_bytes_per_token}
        if (self.weight_gb_read is None) != (not self.basis):
            raise ValueError("weight_gb_read and basis go together: how many GB a token reads, and where that is known from")
        if self.model is None:
            if not self.model_name or self.weight_gb_read is None or None in alone.values():
                raise ValueError(
                    "no model of the registry: model_name, weight_gb_read, basis, kind, n_layer and kv_bytes_per_token are needed instead"
                )
        elif given := [name for name, value in alone.items() if value is not None]:
            raise ValueError(f"{given[0]}: the model of the registry says it; leave it out")
        if self.phase == "prefill" and not self.n_prompt:
            raise ValueError("n_prompt is 0: how long was the prompt that was read?")
        return self


class PublishedSource(Frozen):
    """A page on which somebody printed speeds they measured, with what they ran and what to beware of."""

    id: Id
    title: Name
    url: Annotated[str, StringConstraints(pattern=r"^https://[^\s<>\"]+$", max_length=400)]
    seen: date
    #: In our words.
    what: Line
    cautions: tuple[Line, ...] = ()
    rows: Annotated[tuple[PublishedRate, ...], Field(min_length=1)]


class Pages(Frozen):
    """Which devices have a page of their own; the others are rows of the comparison."""

    devices: Annotated[tuple[Id, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _once(self) -> Self:
        if repeated := sorted({d for d in self.devices if self.devices.count(d) > 1}):
            raise ValueError(f"devices: {repeated[0]!r} stands twice")
        return self


class Offer(Price):
    """What a configuration was sold for on a day after its launch. The launch price stands with the device."""

    device: Id
    configuration: Id


class Rent(Price):
    """USD for an hour of one card in somebody else's computer, paid while it is held."""

    device: Id


class Supply(Frozen):
    """Whether a device can be had, as a source said on a day. Empty ``configuration`` means the whole device."""

    device: Id
    configuration: Id | Literal[""] = ""
    state: Literal["announced", "sold", "second-hand", "withdrawn", "rented"]
    #: The day the state began, where a source says.
    since: date | None = None
    #: Of something announced: when it is to be sold, in the source's terms.
    due: Line = ""
    source: str
    standing: Standing
    asked: date
    note: Line = ""

    @model_validator(mode="after")
    def _due(self) -> Self:
        if bool(self.due) != (self.state == "announced"):
            raise ValueError("due: goes with state 'announced', and that with it")
        return self


class Market(Frozen):
    """Prices after the launch, rents, and what can be had: figures that age, each with the day it was asked."""

    offers: tuple[Offer, ...]
    rents: tuple[Rent, ...]
    supply: tuple[Supply, ...]
    #: The rest of a computer around a graphics card.
    host: Price
    sources: dict[str, Source]

    @model_validator(mode="after")
    def _units_and_sources(self) -> Self:
        for name, figures in (("offers", self.offers), ("rents", self.rents), ("host", (self.host,))):
            for figure in figures:
                if figure.unit != "USD" or any(other.unit != "USD" for other in figure.also):
                    raise ValueError(f"{name}: a price is in USD")
        for entries in (self.offers, self.supply):
            keys = [(e.device, e.configuration) for e in entries]
            if repeated := sorted({k for k in keys if keys.count(k) > 1}):
                raise ValueError(f"{' '.join(repeated[0]).strip()} stands twice; keep the latest and put the other under 'also'")
        if repeated_rents := sorted({r.device for r in self.rents if [x.device for x in self.rents].count(r.device) > 1}):
            raise ValueError(f"rents: {repeated_rents[0]} stands twice; put the other under 'also'")
        _check_sources(self, self.sources)
        return self


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
    #: What llama.cpp calls it: architecture, size class, file type.
    description: Line = ""


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
    #: What ``auto`` came to, as llama.cpp says when it makes the context.
    flash_attn_used: Literal["on", "off", ""] = ""


class Backend(Frozen):
    """Which llama.cpp ran, and on what."""

    engine: Literal["llama.cpp"] = "llama.cpp"
    binding: Line
    device: Line
    #: What the backend says its device has: on Apple the working set that Metal recommends, on a CPU the system's memory.
    memory_bytes: Count
    system_info: Annotated[str, StringConstraints(max_length=2000)]


class Point(Frozen):
    """Raw times of one suite point. ``prefill``: one time per repetition. ``decode``: one per step and repetition.

    A step decodes one token of each of ``n_seq`` sequences.
    """

    kind: Literal["prefill", "decode"]
    n_tokens: Count
    depth: int = Field(ge=0)
    n_seq: Count = 1
    warmup_s: Seconds
    repetitions_s: Annotated[tuple[Annotated[tuple[Seconds, ...], Field(min_length=1)], ...], Field(min_length=1)]
    #: When each repetition began, in seconds of the run: its place beside ``traces``, and the way to see a drift.
    at_s: tuple[Moment, ...] = ()
    #: Of an MoE: how many different experts a layer used, for each layer of some steps counted outside the timing.
    distinct_experts: Annotated[tuple[Count, ...], Field(max_length=4096)] = ()

    @model_validator(mode="after")
    def _lengths(self) -> Self:
        expected = 1 if self.kind == "prefill" else self.n_tokens
        for samples in self.repetitions_s:
            if len(samples) != expected:
                raise ValueError(f"{self.kind}: {len(samples)} times in a repetition, expected {expected}")
        if self.at_s and len(self.at_s) != len(self.repetitions_s):
            raise ValueError(f"{self.kind}: {len(self.at_s)} starts for {len(self.repetitions_s)} repetitions")
        return self


class Trace(Frozen):
    """What one meter said in the background of a run, moment by moment.

    ``values`` has a list per quantity, named with its unit (``power_w``, ``energy_j``, ``temperature_c``,
    ``graphics_clock_mhz``, ``memory_clock_mhz``, ``throttle_reasons`` as NVML's bits, ``used_bytes``), ``None`` where the
    meter gave no answer. ``energy_j`` counts up; everything else is of the moment.
    """

    #: Which meter: ``NVML GPU 0``, ``RAPL package-0``, ``system``.
    meter: Line
    at_s: tuple[Moment, ...]
    values: dict[Line, tuple[float | None, ...]]
    #: What it refuses to say.
    refused: tuple[Line, ...] = ()
    #: When it stopped answering, if it did.
    lost_at_s: Moment | None = None

    @model_validator(mode="after")
    def _lengths(self) -> Self:
        for quantity, values in self.values.items():
            if len(values) != len(self.at_s):
                raise ValueError(f"{self.meter}: {len(values)} values of {quantity} at {len(self.at_s)} moments")
        return self


class OwnBuffer(Frozen):
    """One buffer that llama.cpp says it made, as exactly as it prints it."""

    what: Literal["weights", "kv", "recurrent", "compute", "output"]
    #: The backend's name for the place: ``CPU``, ``CPU_Mapped``, ``CPU_REPACK``, ``CUDA0``.
    where: Line
    n_bytes: int = Field(ge=0)


class MemoryStage(Frozen):
    """What the process and the driver held at a moment of the run: ``before`` and ``context`` are just before and after the context is made."""

    stage: Literal["start", "loaded", "before", "context", "ran"]
    #: Resident memory of the process, and of that what mirrors files; ``None`` where the system does not tell them apart.
    resident_bytes: Count
    file_bytes: int | None = None
    #: Memory in use on each GPU, by all processes, as its driver says.
    gpu_used_bytes: tuple[int | None, ...] = ()


class MemoryUse(Frozen):
    """Memory three ways for the longest context of the run: predicted before it, llama.cpp's own word, what really grew."""

    n_ctx: Count
    n_seq: Count = 1
    #: By part (weights, kv, recurrent, compute, output), as this nbutils had it before the run; empty for a file it cannot count.
    predicted_bytes: dict[Line, int]
    #: Whether the compute buffer among them was asked for, kept or bounded.
    compute_basis: Line = ""
    own: tuple[OwnBuffer, ...]
    stages: tuple[MemoryStage, ...]


class Neighbours(Frozen):
    """Processor time during the run, in seconds over all processors: ours, other programs', and what the host took away."""

    wall_s: Seconds
    n_cpus: Count
    own_s: float = Field(ge=0)
    others_s: float = Field(ge=0)
    #: Steal: a virtual machine's processor wanted to run and did not. ``None`` where the system does not count it.
    stolen_s: float | None = None


class TriedThreads(Frozen):
    """One number of threads that ``tune`` tried: raw times of each round."""

    n_threads: Count
    decode_tokens: Count
    decode_s: tuple[Seconds, ...]
    prefill_tokens: Count
    prefill_s: tuple[Seconds, ...]


class Kept(Frozen):
    """What every kind of record has."""

    schema_version: Literal[1]
    created: datetime
    versions: dict[str, Line]
    commit: Line = ""

    @model_validator(mode="after")
    def _time_zone(self) -> Self:
        if self.created.tzinfo is None:
            raise ValueError("created: needs a time zone")
        if not 2000 <= self.created.year <= 2200:  # near the ends of what a date can be, another zone would be none
            raise ValueError(f"created: {self.created.year} is no year in which anything was measured")
        return self


class Record(Kept):
    """One run of one suite on one file on one machine: settings and samples, never a summary."""

    kind: Literal["run"] = "run"
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
    traces: tuple[Trace, ...] = ()
    memory: MemoryUse | None = None
    neighbours: Neighbours | None = None
    #: What ``tune`` tried before; empty when the number of threads was given.
    tuned: tuple[TriedThreads, ...] = ()

    @model_validator(mode="after")
    def _suite_is_what_was_run(self) -> Self:
        asked = [(p.kind, p.n_tokens, p.depth, p.n_seq) for p in self.suite.points]
        ran = [(p.kind, p.n_tokens, p.depth, p.n_seq) for p in self.points]
        if asked != ran:
            raise ValueError(f"points {ran} are not the suite's {asked}")
        for point in self.points:
            if len(point.repetitions_s) != self.suite.repetitions:
                raise ValueError(f"{point.kind}: {len(point.repetitions_s)} repetitions, the suite says {self.suite.repetitions}")
        return self


class SustainRecord(Kept):
    """Decode for minutes on end, in blocks of equally many tokens, with the meters beside it."""

    kind: Literal["sustain"]
    machine: Machine
    backend: Backend
    model: FileFacts
    settings: Settings
    minutes: Number
    #: Tokens of a block, and the depth at which every block starts.
    block_tokens: Count
    depth: int = Field(ge=0)
    at_s: Annotated[tuple[Moment, ...], Field(min_length=1, max_length=20_000)]
    block_s: Annotated[tuple[Seconds, ...], Field(min_length=1, max_length=20_000)]
    traces: tuple[Trace, ...] = ()
    neighbours: Neighbours | None = None

    @model_validator(mode="after")
    def _lengths(self) -> Self:
        if len(self.at_s) != len(self.block_s):
            raise ValueError(f"{len(self.at_s)} starts for {len(self.block_s)} blocks")
        return self


class ServedRequest(Frozen):
    """One streamed completion. Times in seconds from the moment the request was sent, when a connection was open already."""

    #: How many requests were in flight at most, of which this one was one; and when it was sent, in seconds of the run.
    concurrency: Count
    at_s: Moment
    #: As the server counts; ``None`` where it does not say.
    n_prompt_tokens: int | None = None
    n_completion_tokens: int | None = None
    n_cached_tokens: int | None = None
    n_reasoning_tokens: int | None = None
    #: Arrival of each piece of content, reasoning included; the first is TTFT.
    content_at_s: tuple[Moment, ...] = ()
    #: How many of these pieces are reasoning, at the start.
    n_reasoning_pieces: int = Field(default=0, ge=0)
    end_s: Moment
    finish: Line = ""
    #: Why the samples end early; empty for a whole answer.
    problem: Line = ""
    #: The longest that the measuring program was kept from listening meanwhile: other programs had the processor.
    lag_s: Moment = 0.0


class ServedRecord(Kept):
    """A server that speaks the OpenAI protocol, measured from outside."""

    kind: Literal["endpoint"]
    machine: Machine
    #: Never the address: whether the server is on this machine, on a private network or elsewhere.
    place: Literal["this machine", "private network", "elsewhere"]
    model: Line
    #: What the server says it is, in its own words.
    software: Line = ""
    #: ``chat`` or ``completions``, and what was asked for.
    interface: Literal["chat", "completions"]
    prompt_tokens_asked: Count
    max_tokens: Count
    #: Requests in flight, level after level; a level without requests was not reached. Each stream of a level sends ``repetitions``.
    concurrency: Annotated[tuple[Count, ...], Field(min_length=1)]
    repetitions: Count
    #: How long a request waits for a connection, the first piece and every next one.
    timeout_s: Seconds
    #: What the server took beside the prompt: ``temperature``, ``seed``, ``ignore_eos``, ``include_usage``.
    options: dict[Line, bool | int | float] = {}
    #: Words of a prompt, and how many tokens the server counted in prompts of how many words before the run; empty where it does not count.
    n_prompt_words: Count
    calibration: tuple[tuple[Count, Count], ...] = ()
    requests: Annotated[tuple[ServedRequest, ...], Field(min_length=1)]
    warmup: tuple[ServedRequest, ...] = ()


class BenchTest(Frozen):
    """One row of llama-bench: a prompt, a generation or one after the other."""

    n_prompt: int = Field(ge=0)
    n_gen: int = Field(ge=0)
    n_depth: int = Field(ge=0)
    test_time: Line
    avg_ns: Count
    #: As printed: the program's whole numbers overflow when a repetition takes some seconds.
    stddev_ns: int = Field(ge=0)
    #: Empty where the file has none, as CSV.
    samples_ns: tuple[Count, ...] = ()
    #: As printed, kept only where the samples do not give them to the last digit. CSV has no samples.
    avg_ts: float | None = Field(default=None, gt=0)
    stddev_ts: float | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if not self.n_prompt and not self.n_gen:
            raise ValueError("n_prompt and n_gen are both 0: nothing was timed")
        if not self.samples_ns and (self.avg_ts is None or self.stddev_ts is None):
            raise ValueError("neither samples_ns nor avg_ts and stddev_ts")
        return self


class BenchRecord(Kept):
    """What llama-bench measured: one file with one set of settings. ``settings`` keeps the program's own names and words."""

    kind: Literal["llama-bench"]
    build_commit: Line
    build_number: int = Field(ge=0)
    cpu_info: Words
    gpu_info: Words = ""
    backends: Line
    #: The file's name without its folder.
    model_filename: Line
    model_type: Line
    model_size: Count
    model_n_params: Count
    settings: dict[Line, bool | int | float | Words]
    tests: Annotated[tuple[BenchTest, ...], Field(min_length=1)]


AnyRecord = Record | SustainRecord | ServedRecord | BenchRecord


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
