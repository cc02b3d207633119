"""What ``--model`` names: a model of the registry in a format, a file, or a URL. All become a ``Variant``.

A file or a URL is judged by its header alone; no weight is read.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import ValidationError

from nbutils import gguf_files, gguf_header, registry
from nbutils.errors import DataError, UnknownId, UsageError, did_you_mean
from nbutils.gguf_header import Header, Skipped
from nbutils.specs import Experts, Format, Latent, Model, Recurrent, Shape
from nbutils.tensors import Stored, Tensor, Variant, gguf_arithmetic, variant, variant_of

__all__ = ["Subject", "find", "find_all", "of_model", "variant_of_header"]


@dataclass(frozen=True, slots=True)
class Subject:
    """A variant, and what llama.cpp can be asked about: a registry model (written as a hollow file when asked) or a header on disk."""

    variant: Variant
    #: A digest of what is asked about; answers are kept under it.
    digest: str
    model: Model | None = None
    path: Path | None = None

    @contextmanager
    def file(self) -> Iterator[Path]:
        """A path that llama.cpp can read the header from, for as long as the context lasts."""
        if self.path is not None:
            yield self.path
            return
        assert self.model is not None
        with TemporaryDirectory(prefix="nbutils-") as folder:
            path = Path(folder) / f"{self.model.id}.gguf"
            gguf_files.write_hollow(path, self.model, registry.load_format("F16"))
            yield path


@contextmanager
def find_all(text: str, format_ids: tuple[str, ...] = ()) -> Iterator[list[Subject]]:
    """Everything that ``--model`` and ``--format`` name; all formats of a registry model when none is given.

    ``UsageError`` or ``DataError`` says what is wrong with a name, a file or a server. What a URL's header was saved to
    is removed at the end.
    """
    is_file = text.endswith(".gguf") or _is_file(text)
    if format_ids and (is_file or gguf_header.is_url(text)):
        raise UsageError(f"--format {format_ids[0]} goes with a model of the registry; a file has the format it was made in")
    if gguf_header.is_url(text):
        with TemporaryDirectory(prefix="nbutils-") as folder:
            path = Path(folder) / _name_of(text)
            header = gguf_header.save_hollow(text, path)
            yield [Subject(variant_of_header(header), header.sha256, path=path)]
    elif is_file:
        header = gguf_header.read_file(Path(text))
        yield [Subject(variant_of_header(header), header.sha256, path=Path(text).resolve())]
    else:
        yield _of_registry(text, format_ids)


@contextmanager
def find(text: str, format_id: str, *, usual: str = "") -> Iterator[Subject]:
    """The one thing that a name, and a format for a model of the registry, stand for. A file has its own format.

    ``usual`` is the format of a registry model where none is given.
    """
    chosen = format_id or (usual if text in registry.model_ids() else "")
    with find_all(text, (chosen,) if chosen else ()) as found:
        yield found[0]


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:  # longer than any name may be
        return False


def _name_of(url: str) -> str:
    """The file's name at the end of a URL's path, of a split file its first part's; llama.cpp finds the others by it."""
    last = re.split(r"[/\\]", url.split("?", maxsplit=1)[0].split("#", maxsplit=1)[0])[-1]
    last = re.sub(r"-[0-9]{5}-of-([0-9]{5})\.gguf\Z", r"-00001-of-\1.gguf", last)
    return last if re.fullmatch(r"[\w.\-]{1,200}\.gguf", last) else "model.gguf"


def _of_registry(model_id: str, format_ids: tuple[str, ...]) -> list[Subject]:
    if model_id not in registry.model_ids():
        near = did_you_mean(model_id, registry.model_ids())
        raise UnknownId(f"no model {model_id!r} in data/models{near} (or give a .gguf file or its URL)")
    model = registry.load_model(model_id)
    formats = [registry.load_format_of(model, f) for f in format_ids or model.formats]
    return [of_model(model, fmt) for fmt in formats]


def of_model(model: Model, fmt: Format) -> Subject:
    """A model of the registry in a format. Its header, once written, depends on architecture and shape alone."""
    digest = hashlib.sha256(f"{model.architecture} {model.shape.model_dump_json()}".encode()).hexdigest()
    return Subject(variant(model, fmt), digest, model=model)


# ── headers ───────────────────────────────────────────────────────────────────────────────────────

#: Every so many layers one sees everything, where the header does not say (``load_swa_pattern`` in ``src/models/*.cpp`` of llama.cpp).
_FULL_EVERY = {
    "afmoe": 4,
    "cohere2": 4,
    "exaone-moe": 4,
    "exaone4": 4,
    "gemma2": 2,
    "gemma3": 6,
    "gemma3n": 5,
    "gpt-oss": 2,
    "llama4": 4,
    "mellum": 4,
    "olmo2": 4,
    "plamo3": 8,
}
#: Caches of kinds that are not told apart here.
_UNKNOWN_CACHES = ("wkv.", "shortconv.", "kda.", "attention.indexer.", "attention.compress")
_FILE_TYPES = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L"}
_FILE_TYPES |= {14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 25: "IQ4_NL", 30: "IQ4_XS", 32: "BF16"}
_FILE_TYPES |= {38: "MXFP4_MOE", 39: "NVFP4"}


class _Keys:
    """The metadata of one architecture, with every value checked before it is used."""

    def __init__(self, header: Header) -> None:
        self._metadata, self._name = header.metadata, header.name
        arch = header.metadata.get("general.architecture")
        if not isinstance(arch, str) or not arch:
            raise DataError(f"{self._name}: general.architecture is missing; not a language model, or not a whole one")
        self.architecture = arch

    def has(self, key: str) -> bool:
        return f"{self.architecture}.{key}" in self._metadata

    def any_with(self, prefix: str) -> bool:
        return any(key.startswith(f"{self.architecture}.{prefix}") for key in self._metadata)

    def number(self, key: str, default: int | None = None) -> int:
        """A whole number; the largest where there is one per layer."""
        value = self.numbers(key)
        if value is None:
            if default is None:
                raise DataError(f"{self._name}: {self.architecture}.{key} is missing; convert the model again")
            return default
        return max(value)

    def numbers(self, key: str) -> list[int] | None:
        """One number, or one per layer, as a list; ``None`` where the key is missing."""
        full = f"{self.architecture}.{key}"
        value: Any = self._metadata.get(full)
        if value is None:
            return None
        values = value if isinstance(value, list) else [value]
        if isinstance(value, Skipped) or not values or not all(isinstance(v, int) and 0 <= v < 2**40 for v in values):
            raise DataError(f"{self._name}: {full} is {str(value)[:60]!r}, expected a whole number; convert the model again")
        return [int(v) for v in values]


def variant_of_header(header: Header) -> Variant:
    """What a header says of memory and time. ``DataError`` where it contradicts itself.

    Caches of architectures that llama.cpp lays out in ways not known here are counted in full: an upper bound, said in
    ``caveat``.
    """
    keys = _Keys(header)
    caveats: list[str] = []
    try:
        shape = _shape(header, keys, caveats.append)
    except ValidationError as error:
        problem = registry.problems_of(error)[0].removeprefix("file: ")
        raise DataError(f"{header.name}: its header contradicts itself: {problem}; convert the model again") from None
    if header.n_parts == 1 and header.metadata.get("split.count", 0) not in (0, 1):
        caveats.append("one part of several")
    stored = [
        Stored(Tensor(name=t.name, shape=t.shape, layer=(n := _layer_of(t.name)), idle=n is not None and n >= shape.n_layer), t.n_bytes)
        for t in header.tensors
    ]
    _check_tensors(header, keys, shape, stored)
    sizes: dict[str, int] = {}
    for t in header.tensors:
        sizes[t.type_name] = sizes.get(t.type_name, 0) + t.n_bytes
    common = max(sizes, key=lambda name: sizes[name])
    types = {t.type_name for t, item in zip(header.tensors, stored, strict=True) if item.tensor.is_matrix}
    file_type = header.metadata.get("general.file_type")
    return variant_of(
        stored,
        shape=shape,
        name=header.name,
        # One type for all matrices says more than a recipe: MXFP4_MOE without a mixture, a K type made with --pure.
        format=_FILE_TYPES.get(file_type, common) if isinstance(file_type, int) and len(types) > 1 else common,
        architecture=keys.architecture,
        engine="llama.cpp",
        arithmetic=gguf_arithmetic(types),
        caveat="; ".join(caveats),
    )


def _check_tensors(header: Header, keys: _Keys, shape: Shape, stored: list[Stored]) -> None:
    """``DataError`` where the tensors are not those of the model that the metadata describe."""
    roles = {item.tensor.role for item in stored}
    n_layer = shape.n_layer + shape.n_layer_mtp
    last = max((item.tensor.layer for item in stored if item.tensor.layer is not None), default=0)
    problem = ""
    if "embedding" not in roles:
        problem = "no tensor token_embd.weight; not a language model, or not a whole one"
    elif shape.experts is not None and "experts" not in roles:
        problem = f"{keys.architecture}.expert_count is {shape.experts.n_expert} and no tensor holds experts"
    elif last >= n_layer:
        problem = f"{keys.architecture}.block_count leaves {n_layer} layers and there is a tensor of layer {last}"
    if problem:
        raise DataError(f"{header.name}: {problem}; convert the model again")


def _layer_of(name: str) -> int | None:
    match = re.match(r"blk\.(\d{1,6})\.", name)
    return int(match[1]) if match else None


def _shape(header: Header, keys: _Keys, caveat: Callable[[str], None]) -> Shape:
    sizes = {t.name: t.shape for t in header.tensors}
    n_layer_mtp = keys.number("nextn_predict_layers", 0)
    n_layer = keys.number("block_count") - n_layer_mtp
    if not 1 <= n_layer <= 1000:
        raise DataError(f"{header.name}: {keys.architecture}.block_count leaves {n_layer} layers; a model has 1 to 1,000; convert it again")
    n_embd, heads = keys.number("embedding_length"), keys.numbers("attention.head_count") or [1]
    n_head = max(heads)
    if n_head < 1:
        raise DataError(f"{header.name}: {keys.architecture}.attention.head_count is 0; a model has at least one head; convert it again")
    kv_heads = keys.numbers("attention.head_count_kv") or heads
    if len({n for n in kv_heads if n}) > 1:
        caveat("layers differ in their number of KV heads; the largest is counted for all")
    embedding = sizes.get("token_embd.weight", (n_embd, 0))
    n_vocab = embedding[1] if len(embedding) > 1 and embedding[1] else keys.number("vocab_size", 1)
    latent = _latent(keys)
    recurrent = _recurrent(keys)
    fields: dict[str, Any] = {
        "n_layer": n_layer,
        "n_embd": n_embd,
        "n_head": n_head,
        "n_head_kv": max(kv_heads) or 1,
        "head_dim": keys.number("attention.key_length", n_embd // n_head),
        "head_dim_v": keys.number("attention.value_length", n_embd // n_head),
        "n_ff": keys.number("feed_forward_length", 0),
        "n_vocab": n_vocab,
        "n_ctx_train": keys.number("context_length"),
        "tied_embedding": "output.weight" not in sizes,
        "experts": _experts(keys),
        "latent": latent,
        "recurrent": recurrent,
        "n_layer_mtp": n_layer_mtp,
    }
    if recurrent:
        fields |= _mixed_layers(keys, n_layer, kv_heads, caveat)
    elif (window := keys.number("attention.sliding_window", 8192 if keys.architecture == "llama4" else 0)) and keys.architecture != "phi3":
        fields |= _windows(keys, window, caveat)
    for prefix in _UNKNOWN_CACHES:
        if keys.any_with(prefix):
            caveat(f"{keys.architecture} keeps a cache of its own kind, counted here as full attention")
    return Shape(**fields)


def _latent(keys: _Keys) -> Latent | None:
    if not (keys.has("attention.kv_lora_rank") and keys.has("attention.key_length_mla")):
        return None  # older files of such models keep whole heads
    n_rot = keys.number("rope.dimension_count")
    return Latent(
        q_lora_rank=keys.number("attention.q_lora_rank", 1),
        kv_lora_rank=keys.number("attention.kv_lora_rank"),
        n_rot=n_rot,
        head_dim_nope=keys.number("attention.key_length_mla") - n_rot,
        head_dim_v=keys.number("attention.value_length_mla"),
    )


def _recurrent(keys: _Keys) -> Recurrent | None:
    if not keys.has("ssm.state_size"):
        return None
    return Recurrent(
        conv_kernel=keys.number("ssm.conv_kernel"),
        inner_size=keys.number("ssm.inner_size"),
        state_size=keys.number("ssm.state_size"),
        time_step_rank=keys.number("ssm.time_step_rank"),
        group_count=keys.number("ssm.group_count", 1),
    )


def _experts(keys: _Keys) -> Experts | None:
    if not keys.number("expert_count", 0):
        return None
    n_ff = keys.number("expert_feed_forward_length", keys.number("feed_forward_length", 0))
    return Experts(
        n_expert=keys.number("expert_count"),
        n_expert_used=keys.number("expert_used_count"),
        n_ff_expert=n_ff,
        n_ff_shared=keys.number("expert_shared_feed_forward_length", keys.number("expert_shared_count", 0) * n_ff),
        n_layer_dense=keys.number("leading_dense_block_count", 0),
        n_embd_latent=keys.number("moe_latent_size", 0) or None,
    )


def _mixed_layers(keys: _Keys, n_layer: int, kv_heads: list[int], caveat: Callable[[str], None]) -> dict[str, Any]:
    """Which layers are recurrent: by the header's interval, or where a layer has no KV heads and no feed-forward part of its own."""
    if len(kv_heads) > 1:
        n_ff = keys.numbers("feed_forward_length") or [0]
        widths = n_ff if len(n_ff) > 1 else [0] * len(kv_heads)
        letters = ["*" if heads else "E" if width else "M" for heads, width in zip(kv_heads, widths, strict=False)]
        return {"pattern": "".join(letters[:n_layer])}
    if keys.architecture in ("qwen35", "qwen35moe", "qwen3next"):
        return {"full_every": keys.number("full_attention_interval", 4)}
    if keys.architecture in ("mamba", "mamba2"):
        return {"pattern": "M" * n_layer}
    caveat(f"which layers of {keys.architecture} are recurrent is not known here; all are counted with keys and values")
    return {"recurrent": None}


def _windows(keys: _Keys, window: int, caveat: Callable[[str], None]) -> dict[str, Any]:
    pattern = keys.numbers("attention.sliding_window_pattern")
    every = _FULL_EVERY.get(keys.architecture)
    if pattern is not None and len(pattern) == 1:
        every = pattern[0]
    elif pattern is not None:  # one truth value per layer: does it slide?
        every = pattern.index(0) + 1 if 0 in pattern else None
        if every is None or any(bool(slides) == ((i + 1) % every == 0) for i, slides in enumerate(pattern)):
            every = None
    if not every:
        caveat("which layers see a sliding window is not known here; all are counted in full")
        return {}
    return {"sliding_window": window, "full_every": every, "chunked": keys.architecture == "llama4"}
