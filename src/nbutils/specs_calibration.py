"""What was fitted to published speeds: constants by kind of machine and engine, how far off they are, and how wide a range must be.

``nbutils calibrate`` writes ``data/calibration.yaml``; ``predict`` computes with it. Every value is a plain number: nothing here is fitted.
"""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from nbutils.specs import Frozen, Line, Number

__all__ = [
    "FORMAT_CLASSES",
    "GROUPS",
    "Calibration",
    "CalibrationError",
    "DecodeGroup",
    "DeviceFactor",
    "Miss",
    "PrefillGroup",
    "RangeModel",
]

#: Formats whose kernels reach about the same share: by bits, and the two four-bit floats that differ.
FORMAT_CLASSES = ("16", "8", "6", "4", "3", "mxfp4", "nvfp4")
Group = Literal[
    "nvidia-discrete",
    "nvidia-hbm",
    "nvidia-unified",
    "nvidia-unified-vllm",
    "apple",
    "apple-mlx",
    "amd-discrete-rocm",
    "amd-discrete-vulkan",
    "amd-unified-rocm",
    "amd-unified-vulkan",
    "intel",
    "qualcomm",
    "cpu",
    "apple-cpu",
]
#: Kinds of machine and engine that share constants, in the order of pages.
GROUPS: tuple[Group, ...] = get_args(Group)
Share = Annotated[float, Field(gt=0, le=1.5, allow_inf_nan=False)]


class DecodeGroup(Frozen):
    """Constants of decode on one kind of machine and engine."""

    #: Of the nominal bandwidth, while weights are read, and while K and V are.
    share: Share
    kv_share: Share
    #: What a layer takes besides, in microseconds; what comes on top where it has experts, and where it keeps a recurrent state.
    layer_us: Number
    moe_us: Number
    hybrid_us: Number
    #: What they come from. ``assumed`` ones have no row here; ``note`` says where they are from.
    rows: int = Field(ge=0)
    devices: int = Field(ge=0)
    assumed: bool = False
    note: Line = ""


class PrefillGroup(Frozen):
    """Constants of prefill: shares of the dense FP16 peak, for a chip of 100 FLOP per byte."""

    share: Share
    attention_share: Share
    #: Of ``share``, for a mixture of experts.
    moe_factor: Number
    #: What a layer takes besides for every 512 tokens, in microseconds.
    layer_us: Number
    rows: int = Field(ge=0)
    devices: int = Field(ge=0)
    assumed: bool = False
    note: Line = ""


class DeviceFactor(Frozen):
    """How one machine of the rows differs from its group: factors of the share and of the time of a layer, drawn towards those of its age."""

    name: Line
    #: Empty where the registry does not have it.
    device: str = ""
    family: str
    bandwidth_gb_per_s: Number
    share: Number
    layer: Number
    rows: int = Field(gt=0)
    #: The groups that its rows are of.
    groups: tuple[Group, ...] = ()


class RangeModel(Frozen):
    """How wide 90 % is: the spread of log(measured / expected) is ``exp`` of a sum, and the range lies ``low`` and ``high`` spreads away.

    The sum has a term per group, and terms for what makes a rate harder to tell.
    """

    groups: dict[Group, float]
    moe: float
    #: Times the part of the expected time that the layers' own cost is, and that K and V are.
    layers: float
    kv: float
    #: On a machine that is not among the rows: for a dense model, and for a mixture of experts.
    unseen: float
    unseen_moe: float
    low: float = Field(lt=0)
    high: float = Field(gt=0)
    #: Coverage over rows that were left out, each range from the other devices' rows.
    coverage: Share


class CalibrationError(Frozen):
    """How far off rates were, as shares of the measured one; coverage and width of the printed range (highest over lowest)."""

    phase: Literal["decode", "prefill"]
    #: A group, ``all`` of them, or ``naive`` for bandwidth over bytes.
    group: str
    kind: Literal["dense", "MoE"]
    #: In the fit, or left out with all rows of its device, or of its model.
    left_out: Literal["none", "device", "model"]
    rows: int = Field(gt=0)
    median: float = Field(ge=0)
    p90: float = Field(ge=0)
    coverage: float | None = Field(default=None, ge=0, le=1)
    width: float | None = Field(default=None, ge=1)


class Miss(Frozen):
    """A rate far from what was expected of it when its device or its model was left out."""

    phase: Literal["decode", "prefill"]
    device: Line
    model: Line
    format: Line
    engine: Line
    depth: float = Field(ge=0)
    left_out: Literal["device", "model"]
    measured_tok_per_s: Number
    expected_tok_per_s: Number
    source: Line
    date: Line


class Calibration(Frozen):
    """All of ``data/calibration.yaml``."""

    #: When it was fitted, to how many rows, from which sources.
    fitted: date
    rows: dict[Literal["decode", "prefill"], int]
    sources: dict[str, int]
    dropped: dict[str, int]
    decode: dict[Group, DecodeGroup]
    #: Factors of the share by class of format; of the layer's time under Ollama; of the share of K and V under latent attention.
    formats: dict[str, Number]
    #: The same where a processor unpacks them.
    cpu_formats: dict[str, Number]
    ollama_factor: Number
    latent_factor: Number
    #: Of the time of a layer, as a logarithm per year of the chip from 2023 on; of the share, for chips before 2018.
    layer_per_year: float
    old_share: Number
    devices: tuple[DeviceFactor, ...]
    decode_range: RangeModel
    prefill: dict[Group, PrefillGroup]
    #: By which power of FLOP per byte the shares fall.
    prefill_slope: float
    prefill_range: RangeModel
    errors: tuple[CalibrationError, ...]
    misses: tuple[Miss, ...]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for name, found in (("decode", self.decode), ("prefill", self.prefill), ("decode_range", self.decode_range.groups)):
            missing: list[str] = sorted(set(GROUPS) - found.keys())
            if missing:
                raise ValueError(f"{name}: {missing[0]!r} is missing; it needs every group: {', '.join(GROUPS)}")
        for name, factors in (("formats", self.formats), ("cpu_formats", self.cpu_formats)):
            lacking: list[str] = sorted(set(FORMAT_CLASSES) - factors.keys())
            if lacking:
                raise ValueError(f"{name}: {lacking[0]!r} is missing; it needs {', '.join(FORMAT_CLASSES)}")
        return self
