"""From a shape to tensors, and from tensors to bytes: what is stored, and what one decode step reads.

The tensor lists are llama.cpp's own, one builder per architecture, and the type of each tensor follows
llama.cpp's quantiser (``src/llama-quant.cpp``, the source carried by llama-cpp-python 0.3.36).
The same list describes a model of the registry and writes a stand-in file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from nbutils.specs import Experts, Format, Model, Shape

__all__ = [
    "Group",
    "Role",
    "Stored",
    "Tensor",
    "Variant",
    "active_parameters",
    "bytes_read_per_token",
    "gguf_arithmetic",
    "parameters",
    "tensor_bytes",
    "tensor_type",
    "tensors",
    "variant",
    "variant_of",
    "weight_bytes",
    "weight_bytes_read",
]

#: What a decode step needs of a tensor: ``idle`` ones belong to layers that only draft tokens.
Role = Literal["embedding", "output", "experts", "other", "idle"]

#: llama.cpp's second choice where a row is no multiple of a type's 256 elements.
_FALLBACK = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "IQ4_XS": "IQ4_NL"}
#: Named weight, yet kept in F32 by the converter and left alone by the quantiser: routers and small convolutions.
_NEVER_QUANTISED = ("ffn_gate_inp", "ssm_conv1d")

_Part = tuple[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One tensor. ``shape`` is in ggml's order: ``shape[0]`` is the length of a row."""

    name: str
    shape: tuple[int, ...]
    layer: int | None = None
    #: Part of a layer that only drafts tokens (multi-token prediction).
    idle: bool = False

    #: The name without the layer and the suffix: ``blk.3.attn_v.weight`` is ``attn_v``.
    part: str = field(init=False)

    def __post_init__(self) -> None:
        name = self.name
        part = name.split(".")[-2] if name.endswith((".weight", ".bias")) else name.rsplit(".", 1)[-1]
        object.__setattr__(self, "part", part)

    @property
    def n_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def role(self) -> Role:
        if self.idle:
            return "idle"
        if self.part == "token_embd":
            return "embedding"
        if self.part == "output" and self.layer is None:
            return "output"
        return "experts" if self.part.endswith("_exps") else "other"

    @property
    def is_matrix(self) -> bool:
        """Whether the quantiser may touch it: a weight of two or more dimensions, no norm, no router, no convolution."""
        named = self.name.endswith(".weight") and not self.part.endswith("_norm") and self.part not in _NEVER_QUANTISED
        return named and len(self.shape) > 1


def tensors(model: Model) -> list[Tensor]:
    """Every tensor of the model, in file order."""
    return list(_tensors(model.architecture, model.shape))


@lru_cache(maxsize=64)
def _tensors(architecture: str, s: Shape) -> tuple[Tensor, ...]:
    found = [Tensor(name="token_embd.weight", shape=(s.n_embd, s.n_vocab))]
    if s.rope_freqs:
        found.append(Tensor(name="rope_freqs.weight", shape=(s.rope_freqs,)))
    for layer in range(s.n_layer + s.n_layer_mtp):
        idle = layer >= s.n_layer
        parts = [*_block(architecture, s, layer), *(_drafting(s) if idle else [])]
        found += [Tensor(name=f"blk.{layer}.{name}", shape=shape, layer=layer, idle=idle) for name, shape in parts]
    found.append(Tensor(name="output_norm.weight", shape=(s.n_embd,)))
    if not s.tied_embedding:
        found.append(Tensor(name="output.weight", shape=(s.n_embd, s.n_vocab)))
    return tuple(found)


def _block(architecture: str, s: Shape, layer: int) -> list[_Part]:
    """The tensors of one layer, as ``src/models/*.cpp`` of llama.cpp creates them."""
    parts: list[_Part] = [("attn_norm.weight", (s.n_embd,))]
    kind = s.layer_kinds[min(layer, s.n_layer - 1)]
    if kind == "recurrent":
        parts += _mamba2(s) if architecture == "nemotron_h_moe" else _delta_net(s)
    elif kind == "latent":
        parts += _latent_attention(s)
    elif kind != "none":
        parts += _attention(architecture, s)
    if not s.pattern or kind == "none":
        parts += _feed_forward(architecture, s, layer)
    return parts


def _attention(architecture: str, s: Shape) -> list[_Part]:
    q, kv = s.n_head * s.head_dim, s.n_head_kv * s.head_dim
    gated = 2 if architecture == "qwen35moe" else 1  # its queries carry a gate for the output
    parts: list[_Part] = [
        ("attn_q.weight", (s.n_embd, gated * q)),
        ("attn_k.weight", (s.n_embd, kv)),
        ("attn_v.weight", (s.n_embd, kv)),
        ("attn_output.weight", (q, s.n_embd)),
    ]
    if architecture in ("gemma3", "qwen3", "qwen3moe", "qwen35moe"):
        parts += [("attn_q_norm.weight", (s.head_dim,)), ("attn_k_norm.weight", (s.head_dim,))]
    if architecture in ("glm4moe", "gpt-oss"):
        parts += [("attn_q.bias", (q,)), ("attn_k.bias", (kv,)), ("attn_v.bias", (kv,))]
    if architecture == "gpt-oss":
        parts += [("attn_output.bias", (s.n_embd,)), ("attn_sinks.weight", (s.n_head,))]
    return parts


def _latent_attention(s: Shape) -> list[_Part]:
    a = s.latent
    assert a is not None
    return [
        ("attn_q_a.weight", (s.n_embd, a.q_lora_rank)),
        ("attn_q_a_norm.weight", (a.q_lora_rank,)),
        ("attn_q_b.weight", (a.q_lora_rank, s.n_head * (a.head_dim_nope + a.n_rot))),
        ("attn_kv_a_mqa.weight", (s.n_embd, a.kv_lora_rank + a.n_rot)),
        ("attn_kv_a_norm.weight", (a.kv_lora_rank,)),
        ("attn_k_b.weight", (a.head_dim_nope, a.kv_lora_rank, s.n_head)),
        ("attn_v_b.weight", (a.kv_lora_rank, a.head_dim_v, s.n_head)),
        ("attn_output.weight", (s.n_head * a.head_dim_v, s.n_embd)),
    ]


def _delta_net(s: Shape) -> list[_Part]:
    r = s.recurrent
    assert r is not None
    channels = r.inner_size + 2 * r.group_count * r.state_size
    return [
        ("attn_qkv.weight", (s.n_embd, channels)),
        ("attn_gate.weight", (s.n_embd, r.inner_size)),
        ("ssm_conv1d.weight", (r.conv_kernel, channels)),
        ("ssm_dt.bias", (r.time_step_rank,)),
        ("ssm_a", (r.time_step_rank,)),
        ("ssm_beta.weight", (s.n_embd, r.time_step_rank)),
        ("ssm_alpha.weight", (s.n_embd, r.time_step_rank)),
        ("ssm_norm.weight", (r.inner_size // r.time_step_rank,)),
        ("ssm_out.weight", (r.inner_size, s.n_embd)),
    ]


def _mamba2(s: Shape) -> list[_Part]:
    r = s.recurrent
    assert r is not None
    channels = r.inner_size + 2 * r.group_count * r.state_size
    return [
        ("ssm_in.weight", (s.n_embd, r.inner_size + channels + r.time_step_rank)),
        ("ssm_conv1d.weight", (r.conv_kernel, channels)),
        ("ssm_conv1d.bias", (channels,)),
        ("ssm_dt.bias", (r.time_step_rank,)),
        ("ssm_a", (1, r.time_step_rank)),
        ("ssm_d", (1, r.time_step_rank)),
        ("ssm_norm.weight", (r.inner_size // r.group_count, r.group_count)),
        ("ssm_out.weight", (r.inner_size, s.n_embd)),
    ]


def _feed_forward(architecture: str, s: Shape, layer: int) -> list[_Part]:
    parts: list[_Part] = []
    if architecture in ("glm4moe", "gpt-oss", "qwen35moe"):
        parts.append(("post_attention_norm.weight", (s.n_embd,)))
    elif architecture == "gemma3":
        parts += [(f"{name}.weight", (s.n_embd,)) for name in ("post_attention_norm", "ffn_norm", "post_ffw_norm")]
    elif not s.pattern:
        parts.append(("ffn_norm.weight", (s.n_embd,)))
    if s.experts is None or layer < s.experts.n_layer_dense:
        return [*parts, *_gated(s, "", s.n_ff)]
    return [*parts, *_experts_of(architecture, s, s.experts)]


def _gated(s: Shape, suffix: str, n_ff: int) -> list[_Part]:
    return [
        (f"ffn_gate{suffix}.weight", (s.n_embd, n_ff)),
        (f"ffn_up{suffix}.weight", (s.n_embd, n_ff)),
        (f"ffn_down{suffix}.weight", (n_ff, s.n_embd)),
    ]


def _experts_of(architecture: str, s: Shape, e: Experts) -> list[_Part]:
    n, ff, width = e.n_expert, e.n_ff_expert, e.n_embd_latent or s.n_embd
    plain = architecture == "nemotron_h_moe"  # two matrices and a squared ReLU, no gate
    parts: list[_Part] = [("ffn_gate_inp.weight", (s.n_embd, n))]
    if architecture in ("deepseek2", "glm4moe", "nemotron_h_moe"):
        parts.append(("exp_probs_b.bias", (n,)))
    if e.n_embd_latent:
        parts += [("ffn_latent_down.weight", (s.n_embd, width)), ("ffn_latent_up.weight", (width, s.n_embd))]
    if not plain:
        parts.append(("ffn_gate_exps.weight", (width, ff, n)))
    parts += [("ffn_up_exps.weight", (width, ff, n)), ("ffn_down_exps.weight", (ff, width, n))]
    if architecture == "gpt-oss":
        parts += [
            ("ffn_gate_inp.bias", (n,)),
            ("ffn_gate_exps.bias", (ff, n)),
            ("ffn_up_exps.bias", (ff, n)),
            ("ffn_down_exps.bias", (s.n_embd, n)),
        ]
    if e.n_ff_shared:
        parts += [part for part in _gated(s, "_shexp", e.n_ff_shared) if not (plain and part[0].startswith("ffn_gate"))]
        if architecture == "qwen35moe":
            parts.append(("ffn_gate_inp_shexp.weight", (s.n_embd,)))
    return parts


def _drafting(s: Shape) -> list[_Part]:
    """What a layer of multi-token prediction has besides a block of its own: it embeds, and it has a head."""
    return [
        ("nextn.eh_proj.weight", (2 * s.n_embd, s.n_embd)),
        ("nextn.enorm.weight", (s.n_embd,)),
        ("nextn.hnorm.weight", (s.n_embd,)),
        ("nextn.embed_tokens.weight", (s.n_embd, s.n_vocab)),
        ("nextn.shared_head_head.weight", (s.n_embd, s.n_vocab)),
        ("nextn.shared_head_norm.weight", (s.n_embd,)),
    ]


# ── types ─────────────────────────────────────────────────────────────────────────────────────────


def tensor_type(tensor: Tensor, model: Model, fmt: Format) -> str:
    """The type that ``fmt`` gives to ``tensor``, fallbacks for awkward row lengths included."""
    if fmt.container != "gguf":
        return _type_elsewhere(tensor, fmt)
    if not tensor.is_matrix:
        return "F32"
    # gpt-oss was trained with MXFP4 experts and is published with them, whatever the rest is stored as.
    if model.architecture == "gpt-oss" and tensor.role == "experts":
        return "MXFP4"
    chosen = fmt.base if fmt.rule == "gguf-float" else _quantised_type(tensor, model, fmt)
    if tensor.shape[0] % fmt.block(chosen).elements and chosen in _FALLBACK:
        chosen = _FALLBACK[chosen]
    return chosen if tensor.shape[0] % fmt.block(chosen).elements == 0 else "F16"


def _type_elsewhere(tensor: Tensor, fmt: Format) -> str:
    """Types outside GGUF. A row that is no whole number of blocks stays as it was released."""
    if not tensor.is_matrix:
        return "BF16"
    match fmt.rule:
        case "experts-only":
            chosen = fmt.base if tensor.role == "experts" else fmt.more
        case "linear-only":
            chosen = fmt.more if tensor.role in ("embedding", "output") else fmt.base
        case _:  # mlx quantises every matrix, the embedding too
            chosen = fmt.base
    return chosen if tensor.shape[0] % fmt.block(chosen).elements == 0 else "BF16"


def _quantised_type(tensor: Tensor, model: Model, fmt: Format) -> str:
    """llama.cpp's choice for one matrix (``llama_tensor_get_type_impl``), by file type, part, layer and model."""
    s, part = model.shape, tensor.part
    eight = s.experts is not None and s.experts.n_expert == 8
    chosen = fmt.base
    if tensor.name == "output.weight" or (tensor.name == "token_embd.weight" and s.tied_embedding):
        # The head is small and matters: never below six bits, whatever the file type.
        awkward = tensor.shape[0] % fmt.block(fmt.base).elements
        chosen = "Q8_0" if awkward or fmt.base == "Q8_0" else "Q6_K"
    elif fmt.rule == "gguf-mxfp4-moe":
        chosen = fmt.more if len(tensor.shape) > 2 else fmt.base
    elif part in ("attn_v", "attn_qkv"):
        chosen = _value_type(tensor, model, fmt)
    elif part == "attn_k" and eight:
        chosen = "Q8_0"
    elif part == "attn_output":
        chosen = _attention_output_type(fmt, eight=eight)
    elif part.startswith("ffn_down"):
        chosen = _down_type(tensor.layer or 0, s.n_layer + s.n_layer_mtp, fmt)
    return chosen


def _value_type(tensor: Tensor, model: Model, fmt: Format) -> str:
    """Values are sensitive and, with grouped queries, small: most mixtures spend more bits on them."""
    s = model.shape
    # Counted over the layers that have such a tensor, not over all.
    kinds = [kind for kind in s.layer_kinds if kind != "none" and (kind != "recurrent" or not s.pattern)]
    n = len(kinds) + s.n_layer_mtp
    layer = tensor.layer or 0
    i = sum(kind not in ("none", "recurrent") for kind in s.layer_kinds[:layer]) if s.pattern else layer
    # llama.cpp looks at the first layer, which may have no attention at all.
    grouped = s.n_head // s.n_head_kv >= 4 and s.pattern[:1] in ("", "*")
    chosen = fmt.base
    match fmt.id:
        case "Q2_K":
            chosen = "Q4_K" if grouped else "Q3_K"
        case "IQ4_NL" | "IQ4_XS" if grouped:
            chosen = "Q5_K"
        case "Q3_K_M":
            chosen = "Q5_K" if i < 2 else "Q4_K"
        case "Q3_K_L":
            chosen = "Q5_K"
        case "Q4_K_M" | "Q5_K_M" if _more_bits(i, n):
            chosen = "Q6_K"
        case "Q4_K_S" if i < 4:
            chosen = "Q5_K"
    # llama.cpp's 70B class: eight query heads share a value head, so it can afford more.
    if model.architecture == "llama" and s.n_layer == 80 and s.n_head != s.n_head_kv and chosen in ("Q3_K", "Q4_K"):
        chosen = "Q5_K"
    return "Q8_0" if s.experts is not None and s.experts.n_expert == 8 else chosen


def _attention_output_type(fmt: Format, *, eight: bool) -> str:
    if eight:  # next to eight experts attention is small and can afford more
        return "Q5_K" if fmt.id in ("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "IQ4_NL", "IQ4_XS") else fmt.base
    return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(fmt.id, fmt.base)


def _down_type(layer: int, n_layer: int, fmt: Format) -> str:
    match fmt.id:
        case "Q2_K":
            return "Q3_K"
        case "Q3_K_M":
            return "Q5_K" if layer < n_layer // 16 else "Q4_K"
        case "Q3_K_L":
            return "Q5_K"
        case "Q4_K_M" | "Q5_K_M" if _more_bits(layer, n_layer):
            return "Q6_K"
        case "Q4_K_S" | "IQ4_NL" | "IQ4_XS" if layer < n_layer // 8:
            return "Q5_K"
    return fmt.base


def _more_bits(layer: int, n_layer: int) -> bool:
    """The layers that a medium K-quant stores with more bits: the first and last eighth, and every third between."""
    eighth = n_layer // 8
    return layer < eighth or layer >= 7 * n_layer // 8 or (layer - eighth) % 3 == 2


# ── bytes ─────────────────────────────────────────────────────────────────────────────────────────


def tensor_bytes(tensor: Tensor, model: Model, fmt: Format) -> int:
    """Stored size of one tensor. Rows are whole blocks, so the division is exact."""
    block = fmt.block(tensor_type(tensor, model, fmt))
    return tensor.n_elements // block.elements * block.bytes


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors of one role, together."""

    n_bytes: int
    n_elements: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A model as it is stored: what memory and time depend on, and nothing else.

    It comes from the registry (``variant``) or from the header of a file (``gguf_files.variant_of_header``); what
    follows cannot tell which.
    """

    name: str
    format: str
    architecture: str
    #: Which engine runs such a file; caches differ by engine.
    engine: Literal["llama.cpp", "vllm", "mlx"]
    shape: Shape
    groups: dict[Role, Group]
    #: Bytes of each layer, and those of its experts: what can be left on another processor.
    layer_bytes: tuple[int, ...]
    layer_expert_bytes: tuple[int, ...]
    arithmetic: tuple[str, ...]
    #: What is not exact about it, in a sentence; empty when all is.
    caveat: str = ""

    @property
    def weight_bytes(self) -> int:
        """Stored bytes of all tensors, without the file's metadata (some MB, mostly the tokenizer)."""
        return sum(g.n_bytes for g in self.groups.values())

    @property
    def n_parameters(self) -> int:
        return sum(g.n_elements for g in self.groups.values())

    @property
    def step_weight_bytes(self) -> int:
        """Bytes of weights that one decode step of one sequence must read."""
        return bytes_read_per_token([(r, g.n_bytes) for r, g in self.groups.items()], *_expert_counts(self.shape))

    @property
    def n_active_parameters(self) -> int:
        """Parameters a token is multiplied with: no input embedding unless it is the output head, active experts only."""
        return bytes_read_per_token([(r, g.n_elements) for r, g in self.groups.items()], *_expert_counts(self.shape))


_ENGINES: dict[str, Literal["llama.cpp", "vllm", "mlx"]] = {"gguf": "llama.cpp", "safetensors": "vllm", "mlx": "mlx"}


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor and the bytes it takes."""

    tensor: Tensor
    n_bytes: int


def variant(model: Model, fmt: Format) -> Variant:
    """A model of the registry in a format."""
    # Rope frequencies are GGUF's way to keep a setting; conversions for MLX leave drafting layers out.
    kept = [t for t in tensors(model) if fmt.container == "gguf" or (t.part != "rope_freqs" and not (t.idle and fmt.container == "mlx"))]
    types = {tensor_type(t, model, fmt) for t in kept if t.is_matrix}
    stored = [Stored(t, tensor_bytes(t, model, fmt)) for t in kept]
    return variant_of(
        stored,
        name=model.id,
        format=fmt.id,
        architecture=model.architecture,
        engine=_ENGINES[fmt.container],
        shape=model.shape,
        arithmetic=gguf_arithmetic(types) if fmt.container == "gguf" else fmt.arithmetic,
    )


def gguf_arithmetic(types: Iterable[str]) -> tuple[str, ...]:
    """Types whose peaks llama.cpp's kernels may reach with matrices of these tensor types (``ggml-cuda``: ``mmq.cu`` and cuBLAS).

    F16 is multiplied with sums of either width, quantised weights in INT8 or as F16, MXFP4 and NVFP4 on Blackwell in FP4.
    """
    found = set(types)
    quantised = ("int8",) if found - {"F32", "F16", "BF16"} else ()
    return ("fp16/any", *quantised, *(("fp4",) if found & {"MXFP4", "NVFP4"} else ()))


def variant_of(stored: Iterable[Stored], *, shape: Shape, **fields: Any) -> Variant:
    """A variant from its tensors and their sizes; ``fields`` are the remaining ones of ``Variant``."""
    groups: dict[Role, Group] = {}
    whole, experts = [0] * shape.n_layer, [0] * shape.n_layer
    for item in stored:
        tensor, role = item.tensor, item.tensor.role
        old = groups.get(role, Group(0, 0))
        groups[role] = Group(old.n_bytes + item.n_bytes, old.n_elements + tensor.n_elements)
        if tensor.layer is not None and tensor.layer < shape.n_layer:
            whole[tensor.layer] += item.n_bytes
            experts[tensor.layer] += item.n_bytes if role == "experts" else 0
    return Variant(shape=shape, groups=groups, layer_bytes=tuple(whole), layer_expert_bytes=tuple(experts), **fields)


def parameters(model: Model) -> int:
    """Parameters, counted as llama.cpp counts them: every element of every tensor."""
    return sum(t.n_elements for t in tensors(model))


def active_parameters(model: Model) -> int:
    """Parameters a token is multiplied with: no input embedding unless it is the output head, active experts only."""
    groups = [(t.role, t.n_elements) for t in tensors(model)]
    return bytes_read_per_token(groups, *_expert_counts(model.shape))


def weight_bytes(model: Model, fmt: Format) -> int:
    """Stored bytes of all tensors, without the file's metadata (some MB, mostly the tokenizer)."""
    return variant(model, fmt).weight_bytes


def weight_bytes_read(model: Model, fmt: Format) -> int:
    """Bytes of weights that one decode step of one sequence must read."""
    return variant(model, fmt).step_weight_bytes


def bytes_read_per_token(groups: Iterable[tuple[str, int]], n_expert: int, n_expert_used: int) -> int:
    """Sum ``(role, bytes)`` over what one token needs.

    The input embedding gives one row of some kB, which is left out, unless no output head exists: then it is
    the head too and is read whole. Of the experts, ``n_expert_used`` of ``n_expert`` are read. Layers that only draft
    tokens are not read.

    >>> bytes_read_per_token([("embedding", 10), ("output", 10), ("experts", 80), ("other", 5)], 8, 2)
    35
    """
    by_role = dict.fromkeys(("embedding", "output", "experts", "other", "idle"), 0)
    for role, n_bytes in groups:
        by_role[role] += n_bytes
    head = by_role["output"] or by_role["embedding"]
    experts = by_role["experts"] * n_expert_used // n_expert if n_expert else 0
    return head + experts + by_role["other"]


def _expert_counts(shape: Shape) -> tuple[int, int]:
    experts = shape.experts
    return (0, 0) if experts is None else (experts.n_expert, experts.n_expert_used)
