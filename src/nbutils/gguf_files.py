"""GGUF files: stand-in models and hollow ones out.

A stand-in is a real architecture with random weights. For llama.cpp it is a model like any other: per token it goes
through as many bytes and as many operations as with trained weights of that shape. Its text is noise. It exists so that a machine can be
measured where no weights can be downloaded.

A hollow file has the header of a real model and a hole where its weights would be. It takes some kB on disk, and llama.cpp says
of it how much memory the model would take.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import string
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from nbutils import paths
from nbutils.errors import DataError, MissingExtra, UnknownId, did_you_mean
from nbutils.specs import Experts, Format, Model, Shape, Source
from nbutils.tensors import Tensor, tensor_type, tensors, weight_bytes, weight_bytes_read

__all__ = [
    "FORMATS",
    "ON_DEMAND",
    "SEED",
    "SIZES",
    "StandIn",
    "choose_size",
    "make",
    "make_all",
    "parse_stand_in",
    "sha256",
    "stand_in_model",
    "stand_in_path",
    "write_hollow",
]

#: What a book is measured in.
FORMATS = ("F16", "Q8_0", "Q4_K_M")
#: Made for who asks: four-bit floats, on which a processor may be slower than their bytes allow.
ON_DEMAND = ("MXFP4_GGUF", "NVFP4_GGUF")
SEED = 20261120
_N_SPECIAL, _N_BYTES = 3, 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A pair's common shape. Dense and MoE have the same attention and the same feed-forward total per layer."""

    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    n_ff: int
    n_vocab: int
    n_expert: int
    n_expert_used: int
    n_ctx_train: int = 32768


#: ``small`` is for tests and default notebook runs, ``base`` for CPUs, ``wide`` for GPUs: fewer and wider layers (the
#: width of an 8 B model), so that reading a layer takes longer than starting its kernels.
SIZES: dict[str, Size] = {
    "small": Size(n_layer=4, n_embd=256, n_head=4, n_head_kv=2, n_ff=2048, n_vocab=2048, n_expert=8, n_expert_used=2, n_ctx_train=4096),
    "base": Size(n_layer=12, n_embd=1280, n_head=16, n_head_kv=4, n_ff=8192, n_vocab=16384, n_expert=32, n_expert_used=4),
    "wide": Size(n_layer=8, n_embd=4096, n_head=32, n_head_kv=8, n_ff=12288, n_vocab=16384, n_expert=16, n_expert_used=2),
}


@dataclass(frozen=True, slots=True)
class StandIn:
    """One stand-in file: ``dense`` (qwen3 shapes) or ``moe`` (qwen3moe shapes), a size, a format."""

    kind: str
    size: str
    format: str

    @property
    def name(self) -> str:
        return f"stand-in-{self.kind}-{self.size}"

    @property
    def file_name(self) -> str:
        return f"{self.name}-{self.format}.gguf"


def parse_stand_in(name: str, format_id: str) -> StandIn:
    """Turn ``stand-in-dense-small`` and a format into a stand-in; ``UnknownId`` with the nearest name otherwise."""
    known = [f"stand-in-{kind}-{size}" for size in SIZES for kind in ("dense", "moe")]
    if name not in known:
        raise UnknownId(f"no stand-in {name!r}{did_you_mean(name, known)}, or give a path to a .gguf file")
    formats = (*FORMATS, *ON_DEMAND)
    if format_id not in formats:
        raise UnknownId(f"stand-ins are made as {', '.join(formats)}, not as {format_id!r}{did_you_mean(format_id, formats)}")
    _, _, kind, size = name.split("-")
    return StandIn(kind, size, format_id)


def stand_in_model(kind: str, size: str) -> Model:
    """The stand-in as a ``Model``, so that the same arithmetic serves it and the real ones."""
    s = SIZES[size]
    experts = Experts(n_expert=s.n_expert, n_expert_used=s.n_expert_used, n_ff_expert=s.n_ff // s.n_expert) if kind == "moe" else None
    return Model(
        id=f"stand-in-{kind}-{size}",
        name=f"Stand-in, {kind}, {size}",
        architecture="qwen3moe" if experts else "qwen3",
        shape=Shape(
            n_layer=s.n_layer,
            n_embd=s.n_embd,
            n_head=s.n_head,
            n_head_kv=s.n_head_kv,
            head_dim=128,
            n_ff=0 if experts else s.n_ff,
            n_vocab=s.n_vocab,
            n_ctx_train=s.n_ctx_train,
            experts=experts,
        ),
        source="recipe",
        standing="derived",
        formats=(*FORMATS, *ON_DEMAND),
        sources={"recipe": Source(title="nbutils.gguf_files", seen=date(2026, 11, 20))},
    )


def choose_size(bandwidth_bytes_per_s: float, fmt: Format, *, has_gpu: bool) -> str:
    """The size whose layers take long to read compared with what a GPU needs to start a layer's kernels.

    On a CPU starting a layer costs next to nothing, so ``base`` serves. On a GPU a layer is some ten kernels of a
    few microseconds; ``wide`` is chosen when ``base``'s layer would be read in under 40 microseconds.
    """
    if not has_gpu:
        return "base"
    model = stand_in_model("dense", "base")
    layer_s = weight_bytes_read(model, fmt) / model.shape.n_layer / bandwidth_bytes_per_s
    return "base" if layer_s > 40e-6 else "wide"


def stand_in_path(stand_in: StandIn) -> Path:
    """Where the file lies, made or not. The recipe's digest is in the folder: another recipe is another file."""
    return paths.cache_dir() / "stand-ins" / _recipe_digest() / stand_in.file_name


def make(stand_in: StandIn, fmt: Format, progress: Callable[[int], None] | None = None) -> Path:
    """Make the file unless a checked one is there; return its path.

    ``progress`` is called with the number of bytes just written. The file appears by rename, with a side file of its
    SHA-256; a file whose size or time differs from the side file's is hashed again, and made again if it differs.
    """
    path = stand_in_path(stand_in)
    if _is_intact(path):
        return path
    model = stand_in_model(stand_in.kind, stand_in.size)
    try:
        with paths.atomic_path(path) as temporary:
            digest = _write(temporary, model, stand_in, fmt, progress or (lambda n: None))
    except OSError as error:
        need = weight_bytes(model, fmt) / 1e6
        raise DataError(
            f"stand-in {stand_in.file_name} ({need:,.0f} MB) cannot be written to {path.parent}: {error.strerror};"
            " free some space or set NBUTILS_HOME to another disk"
        ) from None
    _write_side_file(path, digest)
    return path


def make_all(stand_ins: list[StandIn], formats: dict[str, Format], progress: Callable[[int], None] | None = None) -> list[Path]:
    """Make several files, two at a time; drawing, hashing and writing all release the interpreter."""
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda s: make(s, formats[s.format], progress), stand_ins))


def sha256(path: Path) -> str:
    """The checksum kept beside a stand-in when it was made."""
    return str(json.loads(_side_file(path).read_text(encoding="utf-8"))["sha256"])


def _side_file(path: Path) -> Path:
    return path.with_suffix(".json")


def _write_side_file(path: Path, digest: str) -> None:
    stat = path.stat()
    paths.write_text(_side_file(path), json.dumps({"sha256": digest, "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}) + "\n")


def _is_intact(path: Path) -> bool:
    try:
        stat, said = path.stat(), json.loads(_side_file(path).read_text(encoding="utf-8"))
        if (stat.st_size, stat.st_mtime_ns) == (said["bytes"], said["mtime_ns"]):
            return True
        with path.open("rb") as file:
            if stat.st_size != said["bytes"] or hashlib.file_digest(file, "sha256").hexdigest() != said["sha256"]:
                return False
    except (OSError, ValueError, KeyError, TypeError):
        return False
    _write_side_file(path, said["sha256"])
    return True


def _recipe_digest() -> str:
    return hashlib.sha256(f"3 {SEED} {SIZES}".encode()).hexdigest()[:8]


# ── writing ───────────────────────────────────────────────────────────────────────────────────────


def write_hollow(path: Path, model: Model, fmt: Format) -> None:
    """Write the header of ``model`` in ``fmt`` and a hole of the right length. The vocabulary has a size and no words."""
    gguf = _gguf()
    writer = gguf.GGUFWriter(path, model.architecture)
    writer.add_name(model.name)
    _add_sizes(writer, model)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(model.shape.n_vocab)
    n_data = 0
    for tensor in tensors(model):
        n_bytes = _add_tensor(writer, tensor, tensor_type(tensor, model, fmt), fmt)
        n_data += n_bytes + -n_bytes % gguf.GGUF_DEFAULT_ALIGNMENT
    _write_header(writer)
    size = path.stat().st_size
    paths.extend_with_hole(path, size + -size % gguf.GGUF_DEFAULT_ALIGNMENT + n_data)


def _gguf() -> Any:
    try:
        import gguf
    except ImportError:
        raise MissingExtra("writing model files needs the package gguf: pip install -e '.[engine]'") from None
    return gguf


def _add_tensor(writer: Any, tensor: Tensor, type_name: str, fmt: Format) -> int:
    block = fmt.block(type_name)
    n_bytes = tensor.n_elements // block.elements * block.bytes
    kind = _gguf().GGMLQuantizationType[type_name]
    writer.add_tensor_info(tensor.name, tuple(reversed(tensor.shape)), np.dtype(np.float32), n_bytes, raw_dtype=kind)
    return n_bytes


def _write_header(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def _add_sizes(writer: Any, model: Model) -> None:
    """The keys that llama.cpp needs to know the architecture's sizes (``load_arch_hparams`` of ``src/models/*.cpp``)."""
    s, arch = model.shape, model.architecture
    writer.add_block_count(s.n_layer + s.n_layer_mtp)
    writer.add_context_length(s.n_ctx_train)
    writer.add_embedding_length(s.n_embd)
    writer.add_head_count(s.n_head)
    writer.add_head_count_kv([s.n_head_kv if k == "full" else 0 for k in s.layer_kinds] if s.pattern else s.n_head_kv)
    writer.add_key_length(s.head_dim)
    writer.add_value_length(s.latent.kv_lora_rank if s.latent else s.head_dim_v or s.head_dim)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    if s.n_rot or s.rope_freqs or arch == "llama":
        writer.add_rope_dimension_count(s.n_rot or (2 * s.rope_freqs) or s.head_dim)
    if s.n_layer_mtp:
        writer.add_nextn_predict_layers(s.n_layer_mtp)
    if s.sliding_window:
        writer.add_sliding_window(s.sliding_window)
    if s.latent:
        writer.add_q_lora_rank(s.latent.q_lora_rank)
        writer.add_kv_lora_rank(s.latent.kv_lora_rank)
        writer.add_key_length_mla(s.latent.head_dim_nope + s.latent.n_rot)
        writer.add_value_length_mla(s.latent.head_dim_v)
        writer.add_rope_dimension_count(s.latent.n_rot)
    if s.recurrent:
        _add_recurrent(writer, s)
    _add_feed_forward(writer, s, arch)


def _add_recurrent(writer: Any, s: Shape) -> None:
    assert s.recurrent is not None
    writer.add_ssm_conv_kernel(s.recurrent.conv_kernel)
    writer.add_ssm_inner_size(s.recurrent.inner_size)
    writer.add_ssm_state_size(s.recurrent.state_size)
    writer.add_ssm_time_step_rank(s.recurrent.time_step_rank)
    writer.add_ssm_group_count(s.recurrent.group_count)
    if s.full_every:
        writer.add_full_attention_interval(s.full_every)
        writer.add_rope_dimension_sections([11, 11, 10, 0])
    else:
        writer.add_layer_norm_eps(1e-5)


def _add_feed_forward(writer: Any, s: Shape, arch: str) -> None:
    e = s.experts
    if e is None:
        writer.add_feed_forward_length(s.n_ff)
        return
    if s.pattern:
        writer.add_feed_forward_length([e.n_ff_expert if k == "none" else 0 for k in s.layer_kinds])
    else:  # where all layers have experts the key must exist, and for Mixtral it is their width
        writer.add_feed_forward_length(s.n_ff or e.n_ff_expert)
    writer.add_expert_count(e.n_expert)
    writer.add_expert_used_count(e.n_expert_used)
    if arch != "llama":
        writer.add_expert_feed_forward_length(e.n_ff_expert)
    if e.n_ff_shared:
        writer.add_expert_shared_feed_forward_length(e.n_ff_shared)
        writer.add_expert_shared_count(max(1, e.n_ff_shared // e.n_ff_expert))
    if e.n_layer_dense:
        writer.add_leading_dense_block_count(e.n_layer_dense)
    if e.n_embd_latent:
        writer.add_moe_latent_size(e.n_embd_latent)
    if arch == "llama4":
        writer.add_interleave_moe_layer_step(1)
    if arch in ("deepseek2", "glm4moe", "nemotron_h_moe"):
        writer.add_expert_weights_scale(1.0)
        writer.add_expert_weights_norm(True)
        writer.add_expert_gating_func(_gguf().ExpertGatingFuncType.SIGMOID)
    if arch in ("deepseek2", "nemotron_h_moe"):
        writer.add_expert_group_count(1)
        writer.add_expert_group_used_count(1)


def _write(path: Path, model: Model, stand_in: StandIn, fmt: Format, progress: Callable[[int], None]) -> str:
    gguf = _gguf()
    writer = gguf.GGUFWriter(path, model.architecture)
    _add_header(writer, model, fmt)
    listed = [(t, tensor_type(t, model, fmt)) for t in tensors(model)]
    for tensor, type_name in listed:
        _add_tensor(writer, tensor, type_name, fmt)
    _write_header(writer)
    with path.open("r+b") as file:
        digest = hashlib.file_digest(file, "sha256")
        _put(file, digest, b"\0" * (-file.tell() % gguf.GGUF_DEFAULT_ALIGNMENT))
        for tensor, type_name in listed:
            data = _draw(tensor, type_name, stand_in, fmt)
            _put(file, digest, data.data)
            _put(file, digest, b"\0" * (-file.tell() % gguf.GGUF_DEFAULT_ALIGNMENT))
            progress(data.nbytes)
    return str(digest.hexdigest())


def _put(file: IO[bytes], digest: Any, data: bytes | memoryview) -> None:
    file.write(data)
    digest.update(data)


def _add_header(writer: Any, model: Model, fmt: Format) -> None:
    import gguf

    s = model.shape
    writer.add_name(model.name)
    writer.add_description("Random weights of a real architecture, for measuring speed. Its text is noise.")
    # MXFP4_MOE is also what llama-quantize writes when it gives every matrix MXFP4 (--pure); there is no other file type for it.
    file_type = {"MXFP4_GGUF": "MXFP4_MOE", "NVFP4_GGUF": "NVFP4"}.get(fmt.id, fmt.id)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{file_type}"])
    writer.add_block_count(s.n_layer)
    writer.add_context_length(s.n_ctx_train)
    writer.add_embedding_length(s.n_embd)
    writer.add_feed_forward_length(s.n_ff or SIZES[model.id.rsplit("-", 1)[1]].n_ff)
    writer.add_head_count(s.n_head)
    writer.add_head_count_kv(s.n_head_kv)
    writer.add_key_length(s.head_dim)
    writer.add_value_length(s.head_dim)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    if s.experts:
        writer.add_expert_count(s.experts.n_expert)
        writer.add_expert_used_count(s.experts.n_expert_used)
        writer.add_expert_feed_forward_length(s.experts.n_ff_expert)
    pieces, kinds = _vocabulary(s.n_vocab)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores([0.0] * (_N_SPECIAL + _N_BYTES) + [-float(i) for i in range(s.n_vocab - _N_SPECIAL - _N_BYTES)])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)


def _vocabulary(n_vocab: int) -> tuple[list[bytes], list[int]]:
    """Bytes, so that any text can be read, and ASCII pieces, so that any token can be streamed as text."""
    unknown, control, byte, normal = 2, 3, 6, 1
    pieces = [b"<unk>", b"<s>", b"</s>", *(f"<0x{i:02X}>".encode() for i in range(_N_BYTES))]
    kinds = [unknown, control, control, *[byte] * _N_BYTES]
    for piece in itertools.islice(_words(), n_vocab - len(pieces)):
        pieces.append(piece.encode("ascii"))
        kinds.append(normal)
    return pieces, kinds


def _words() -> Iterator[str]:
    """Pronounceable, distinct pieces: ``ba``, ``ca`` … then two syllables, then three."""
    syllables = [c + v for v in "aeiou" for c in string.ascii_lowercase if c not in "aeiou"]
    for n in itertools.count(1):
        for parts in itertools.product(syllables, repeat=n):
            yield " " + "".join(parts)


def _draw(tensor: Tensor, type_name: str, stand_in: StandIn, fmt: Format) -> npt.NDArray[np.uint8]:
    """Random weights of about zero mean and 0.02 spread, drawn in the stored form, seeded by name and format."""
    if len(tensor.shape) == 1:  # norms: one, as in a freshly initialised model
        return np.ones(tensor.n_elements, np.float32).view(np.uint8)
    seed = [SEED, zlib.crc32(f"{stand_in.file_name}/{tensor.name}".encode())]
    rng = np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed)))
    block = fmt.block(type_name)
    n_bytes = tensor.n_elements // block.elements * block.bytes
    if type_name == "F32":  # the router
        return (rng.standard_normal(tensor.n_elements, np.float32) * np.float32(0.02)).view(np.uint8)
    data = rng.integers(0, 2**64, -(-n_bytes // 8), np.uint64).view(np.uint8)[:n_bytes]
    if type_name == "F16":
        # Keep sign and mantissa, fix the exponent: magnitudes between 2^-6 and 2^-5.
        halves = data.view(np.uint16)
        np.bitwise_and(halves, np.uint16(0x83FF), out=halves)
        np.bitwise_or(halves, np.uint16(9 << 10), out=halves)
        return data
    # Quantised: codes stay as drawn, the scales of each block are set so that values come out near 0.02.
    blocks = data.reshape(-1, block.bytes)
    offset, scales = _SCALES[type_name]
    blocks[:, offset : offset + len(scales)] = np.frombuffer(scales, np.uint8)
    return data


def _halves(*values: float) -> bytes:
    return np.array(values, np.float16).tobytes()


#: Where a block's scales lie and what they are set to (layouts: ggml-common.h). Q4_K and Q5_K subtract a minimum: 7.5 times
#: the scale centres codes 0…15 on zero. The scale of both four-bit floats is 2^-7: as a power of two that is stored plus 127
#: (MXFP4), and as four E4M3 below their smallest normal number, in units of 2^-9 (NVFP4).
_SCALES: dict[str, tuple[int, bytes]] = {
    "Q8_0": (0, _halves(2.7e-4)),
    "Q4_K": (0, _halves(7.7e-5, 7.5 * 7.7e-5)),
    "Q5_K": (0, _halves(3.85e-5, 15.5 * 3.85e-5)),
    "Q6_K": (208, _halves(1.46e-5)),
    "MXFP4": (0, bytes([127 - 7])),
    "NVFP4": (0, bytes([4, 4, 4, 4])),
}
