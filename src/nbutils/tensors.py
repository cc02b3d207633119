"""From a shape to tensors, and from tensors to bytes: what is stored, and what one decode step reads.

The tensor lists are llama.cpp's own, one builder per architecture, and the type of each tensor follows
llama.cpp's quantiser (``src/llama-quant.cpp``, the source carried by llama-cpp-python 0.3.36).
The same list describes a model of the registry and writes a stand-in file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from nbutils.specs import Format, Model, Shape

__all__ = [
    "Role",
    "Tensor",
    "active_parameters",
    "bytes_read_per_token",
    "parameters",
    "tensor_bytes",
    "tensor_type",
    "tensors",
    "weight_bytes",
    "weight_bytes_read",
]

Role = Literal["embedding", "output", "experts", "other"]

# llama.cpp's second choice where a row is no multiple of a K-quant's 256 elements.
_EIGHT_EXPERTS = {"attn_k": "Q8_0", "attn_v": "Q8_0", "attn_output": "Q5_K"}
_FALLBACK = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One tensor. ``shape`` is in ggml's order: ``shape[0]`` is the length of a row."""

    name: str
    shape: tuple[int, ...]
    layer: int | None = None

    @property
    def part(self) -> str:
        """The name without the layer and the suffix: ``blk.3.attn_v.weight`` is ``attn_v``."""
        return self.name.split(".")[-2] if self.name.endswith((".weight", ".bias")) else self.name

    @property
    def n_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def role(self) -> Role:
        if self.part == "token_embd":
            return "embedding"
        if self.part == "output":
            return "output"
        return "experts" if self.part.endswith("_exps") else "other"

    @property
    def is_matrix(self) -> bool:
        """Whether the quantiser may touch it: a weight of two or more dimensions that is not the router."""
        return self.name.endswith(".weight") and len(self.shape) > 1 and self.part != "ffn_gate_inp"


def tensors(model: Model) -> list[Tensor]:
    """Every tensor of the model, in file order."""
    s = model.shape
    found = [Tensor(name="token_embd.weight", shape=(s.n_embd, s.n_vocab))]
    if s.rope_freqs:
        found.append(Tensor(name="rope_freqs.weight", shape=(s.rope_freqs,)))
    for layer in range(s.n_layer):
        parts = [*_attention(model.architecture, s), *_feed_forward(model.architecture, s)]
        found += [Tensor(name=f"blk.{layer}.{name}", shape=shape, layer=layer) for name, shape in parts]
    found.append(Tensor(name="output_norm.weight", shape=(s.n_embd,)))
    if not s.tied_embedding:
        found.append(Tensor(name="output.weight", shape=(s.n_embd, s.n_vocab)))
    return found


def _attention(architecture: str, s: Shape) -> list[tuple[str, tuple[int, ...]]]:
    q, kv = s.n_head * s.head_dim, s.n_head_kv * s.head_dim
    parts: list[tuple[str, tuple[int, ...]]] = [
        ("attn_norm.weight", (s.n_embd,)),
        ("attn_q.weight", (s.n_embd, q)),
        ("attn_k.weight", (s.n_embd, kv)),
        ("attn_v.weight", (s.n_embd, kv)),
        ("attn_output.weight", (q, s.n_embd)),
    ]
    if architecture in ("qwen3", "qwen3moe"):
        parts += [("attn_q_norm.weight", (s.head_dim,)), ("attn_k_norm.weight", (s.head_dim,))]
    if architecture == "gpt-oss":
        parts += [
            ("attn_q.bias", (q,)),
            ("attn_k.bias", (kv,)),
            ("attn_v.bias", (kv,)),
            ("attn_output.bias", (s.n_embd,)),
            ("attn_sinks.weight", (s.n_head,)),
        ]
    return parts


def _feed_forward(architecture: str, s: Shape) -> list[tuple[str, tuple[int, ...]]]:
    norm = "post_attention_norm.weight" if architecture == "gpt-oss" else "ffn_norm.weight"
    parts: list[tuple[str, tuple[int, ...]]] = [(norm, (s.n_embd,))]
    if s.experts is None:
        return [
            *parts,
            ("ffn_gate.weight", (s.n_embd, s.n_ff)),
            ("ffn_up.weight", (s.n_embd, s.n_ff)),
            ("ffn_down.weight", (s.n_ff, s.n_embd)),
        ]
    n, ff = s.experts.n_expert, s.experts.n_ff_expert
    parts += [
        ("ffn_gate_inp.weight", (s.n_embd, n)),
        ("ffn_gate_exps.weight", (s.n_embd, ff, n)),
        ("ffn_up_exps.weight", (s.n_embd, ff, n)),
        ("ffn_down_exps.weight", (ff, s.n_embd, n)),
    ]
    if architecture == "gpt-oss":
        parts += [
            ("ffn_gate_inp.bias", (n,)),
            ("ffn_gate_exps.bias", (ff, n)),
            ("ffn_up_exps.bias", (ff, n)),
            ("ffn_down_exps.bias", (s.n_embd, n)),
        ]
    return parts


def tensor_type(tensor: Tensor, model: Model, fmt: Format) -> str:
    """The type that ``fmt`` gives to ``tensor``, fallbacks for awkward row lengths included."""
    if not tensor.is_matrix:
        return "BF16" if fmt.rule == "linear-only" else "F32"
    # gpt-oss was trained with MXFP4 experts and is published with them, whatever the rest is stored as.
    if model.architecture == "gpt-oss" and tensor.role == "experts":
        return "MXFP4"
    chosen = _chosen_type(tensor, model, fmt)
    if tensor.shape[0] % fmt.block(chosen).elements and chosen in _FALLBACK:
        chosen = _FALLBACK[chosen]
    return chosen if tensor.shape[0] % fmt.block(chosen).elements == 0 else "F16"


def _chosen_type(tensor: Tensor, model: Model, fmt: Format) -> str:
    match fmt.rule:
        case "gguf-float" | "gguf-plain":
            return fmt.base
        case "gguf-mxfp4-moe":
            return fmt.more if len(tensor.shape) > 2 else fmt.base
        case "linear-only":
            return fmt.more if tensor.role in ("embedding", "output") else fmt.base
        case "gguf-k-medium":
            return _k_medium_type(tensor, model, fmt)


def _k_medium_type(tensor: Tensor, model: Model, fmt: Format) -> str:
    """A medium K-quant spends more bits on the head, and on value and down projections of chosen layers."""
    s = model.shape
    if tensor.role == "output" or (tensor.role == "embedding" and s.tied_embedding):
        return fmt.more
    # llama.cpp's Mixtral class: next to eight experts, attention is small and can afford more.
    if s.experts is not None and s.experts.n_expert == 8 and tensor.part in _EIGHT_EXPERTS:
        return _EIGHT_EXPERTS[tensor.part]
    if tensor.part in ("attn_v", "ffn_down", "ffn_down_exps"):
        layer = tensor.layer or 0
        if _more_bits(layer, s.n_layer):
            return fmt.more
        # llama.cpp's 70B class: eight query heads share attn_v, so it can afford more.
        if tensor.part == "attn_v" and model.architecture == "llama" and s.n_layer == 80 and s.n_head != s.n_head_kv:
            return "Q5_K"
    return fmt.base


def _more_bits(layer: int, n_layer: int) -> bool:
    """The layers that a medium K-quant stores with more bits: the first and last eighth, and every third between."""
    eighth = n_layer // 8
    return layer < eighth or layer >= 7 * n_layer // 8 or (layer - eighth) % 3 == 2


def tensor_bytes(tensor: Tensor, model: Model, fmt: Format) -> int:
    """Stored size of one tensor. Rows are whole blocks, so the division is exact."""
    block = fmt.block(tensor_type(tensor, model, fmt))
    return tensor.n_elements // block.elements * block.bytes


def parameters(model: Model) -> int:
    """Parameters, counted as llama.cpp counts them: every element of every tensor."""
    return sum(t.n_elements for t in tensors(model))


def active_parameters(model: Model) -> int:
    """Parameters a token is multiplied with: no input embedding unless it is the output head, active experts only."""
    groups = [(t.role, t.n_elements) for t in tensors(model)]
    return bytes_read_per_token(groups, *_experts(model))


def weight_bytes(model: Model, fmt: Format) -> int:
    """Stored bytes of all tensors, without the file's metadata (some MB, mostly the tokenizer)."""
    return sum(tensor_bytes(t, model, fmt) for t in tensors(model))


def weight_bytes_read(model: Model, fmt: Format) -> int:
    """Bytes of weights that one decode step of one sequence must read."""
    groups = [(t.role, tensor_bytes(t, model, fmt)) for t in tensors(model)]
    return bytes_read_per_token(groups, *_experts(model))


def bytes_read_per_token(groups: Iterable[tuple[str, int]], n_expert: int, n_expert_used: int) -> int:
    """Sum ``(role, bytes)`` over what one token needs.

    The input embedding gives one row of some kB, which is left out, unless no output head exists: then it is
    the head too and is read whole. Of the experts, ``n_expert_used`` of ``n_expert`` are read.

    >>> bytes_read_per_token([("embedding", 10), ("output", 10), ("experts", 80), ("other", 5)], 8, 2)
    35
    """
    by_role = dict.fromkeys(("embedding", "output", "experts", "other"), 0)
    for role, n_bytes in groups:
        by_role[role] += n_bytes
    head = by_role["output"] or by_role["embedding"]
    experts = by_role["experts"] * n_expert_used // n_expert if n_expert else 0
    return head + experts + by_role["other"]


def _experts(model: Model) -> tuple[int, int]:
    experts = model.shape.experts
    return (0, 0) if experts is None else (experts.n_expert, experts.n_expert_used)
