"""Stand-in models: the same everywhere, whole or absent, no two pages alike, and llama.cpp runs them."""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import in_child
from nbutils import _ggml, gguf_files, registry
from nbutils.errors import DataError, MissingExtra, UnknownId
from nbutils.gguf_files import FORMATS, ON_DEMAND, SIZES, StandIn, choose_size, make, make_all, parse_stand_in, stand_in_model, stand_in_path
from nbutils.gguf_header import read_file
from nbutils.subjects import variant_of_header
from nbutils.tensors import parameters, tensor_bytes, tensor_type, tensors, weight_bytes

SMALL = [StandIn(kind, "small", format_id) for kind in ("dense", "moe") for format_id in (*FORMATS, *ON_DEMAND)]
each_small = pytest.mark.parametrize("stand_in", SMALL, ids=lambda s: s.file_name.removesuffix(".gguf"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[StandIn, Path]]:
    """All small files, made once by :func:`make_all`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NBUTILS_HOME", str(tmp_path_factory.mktemp("home")))
        yield dict(zip(SMALL, make_all(SMALL, registry.load_formats()), strict=True))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NBUTILS_HOME", str(tmp_path))
    return tmp_path


def reader(path: Path) -> Any:
    import gguf

    return gguf.GGUFReader(path)


def make_one(stand_in: StandIn, **more: Any) -> Path:
    return make(stand_in, registry.load_format(stand_in.format), **more)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ── what is made ──────────────────────────────────────────────────────────────────────────────────


@each_small
def test_two_homes_hold_the_same_bytes(stand_in: StandIn, made: dict[StandIn, Path], home: Path) -> None:
    again = make_one(stand_in)
    assert again != made[stand_in]
    assert again.relative_to(home).parts[-3:] == made[stand_in].parts[-3:]
    assert sha256(again) == sha256(made[stand_in])


#: Digests of the weights, by kind and format. Another digest is another file, and rates that were measured with it are no longer of this one.
DIGESTS: dict[str, dict[str, str]] = {
    "dense": {
        "F16": "f07ac8a8a0b41e1f",
        "Q8_0": "fafde831aa5f4de6",
        "Q4_K_M": "0ce3ecfd0c2ba890",
        "MXFP4_GGUF": "bb3a93e927f6c935",
        "NVFP4_GGUF": "e02d3ec14ec0a68d",
    },
    "moe": {
        "F16": "7f8819a3e6409812",
        "Q8_0": "62b40ca290ff91ce",
        "Q4_K_M": "ba4b18b5a82c5493",
        "MXFP4_GGUF": "82dcab35e9640fd9",
        "NVFP4_GGUF": "23f00f29a39a9767",
    },
}


@each_small
def test_the_bytes_are_those_that_were_measured(stand_in: StandIn, made: dict[StandIn, Path]) -> None:
    data = made[stand_in].read_bytes()[read_file(made[stand_in]).data_offset :]
    assert hashlib.sha256(data).hexdigest()[:16] == DIGESTS[stand_in.kind][stand_in.format]


@each_small
def test_the_gguf_package_reads_it_and_counts_our_bytes(stand_in: StandIn, made: dict[StandIn, Path]) -> None:
    model, fmt = stand_in_model(stand_in.kind, stand_in.size), registry.load_format(stand_in.format)
    found = reader(made[stand_in]).tensors
    assert [t.name for t in found] == [t.name for t in tensors(model)]
    assert sum(int(t.n_bytes) for t in found) == weight_bytes(model, fmt)
    assert sum(int(t.n_elements) for t in found) == parameters(model)


@each_small
def test_progress_adds_up_to_the_weights(stand_in: StandIn, home: Path) -> None:
    seen: list[int] = []
    make_one(stand_in, progress=seen.append)
    assert sum(seen) == weight_bytes(stand_in_model(stand_in.kind, stand_in.size), registry.load_format(stand_in.format))


def test_no_two_pages_of_weights_are_alike_in_all_files(made: dict[StandIn, Path]) -> None:
    """Equal pages could be merged, and a cache or a compressing memory would then serve what should be read."""
    hashes: list[bytes] = []
    for path in made.values():
        data = path.read_bytes()
        for tensor in reader(path).tensors:
            if len(tensor.shape) == 1:
                continue  # norms: all ones
            first, end = -(-int(tensor.data_offset) // 4096), (int(tensor.data_offset) + int(tensor.n_bytes)) // 4096
            hashes += [hashlib.blake2b(data[4096 * page : 4096 * (page + 1)], digest_size=16).digest() for page in range(first, end)]
    assert len(hashes) > 10_000
    assert len(set(hashes)) == len(hashes)


@each_small
def test_weights_come_out_near_zero_and_0_02_wide(stand_in: StandIn, made: dict[StandIn, Path]) -> None:
    from gguf.quants import dequantize

    for tensor in reader(made[stand_in]).tensors:
        values = dequantize(tensor.data, tensor.tensor_type).ravel()
        if len(tensor.shape) == 1:
            assert (values == 1).all(), tensor.name
        else:
            assert np.isfinite(values).all(), tensor.name
            assert abs(values.mean()) < 0.005, tensor.name
            assert 0.01 < values.std() < 0.04, tensor.name


@pytest.mark.parametrize(("stand_in", "kind"), [(s, s.format.removesuffix("_GGUF")) for s in SMALL if s.format in ON_DEMAND], ids=str)
def test_a_four_bit_float_is_one_of_fifteen_values_as_llama_cpp_reads_it(stand_in: StandIn, kind: str, made: dict[StandIn, Path]) -> None:
    """E2M1 is 0, 1/2, 1, 3/2, 2, 3, 4 or 6 with a sign, here times 2^-7; ggml's own C function says so too."""
    import llama_cpp
    from gguf.quants import dequantize

    expected = {sign * value / 128 for sign in (-1, 1) for value in (0, 0.5, 1, 1.5, 2, 3, 4, 6)}
    (library,) = _ggml._library_files(Path(llama_cpp.__file__).parent / "lib")[:1]
    of_ggml = getattr(ctypes.CDLL(str(library)), f"dequantize_row_{kind.lower()}")
    of_ggml.argtypes, of_ggml.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64], None
    matrices = [t for t in reader(made[stand_in]).tensors if t.tensor_type.name != "F32"]
    assert {t.tensor_type.name for t in matrices} == {kind}
    for tensor in matrices:
        data = np.ascontiguousarray(tensor.data)
        values = np.empty(int(tensor.n_elements), np.float32)
        of_ggml(data.ctypes.data, values.ctypes.data, values.size)
        assert set(values[:4096].tolist()) == expected, tensor.name
        assert (values == dequantize(data, tensor.tensor_type).ravel()).all(), tensor.name


@pytest.mark.parametrize("kind", _ggml.TYPES)
def test_a_yardstick_is_filled_with_small_finite_numbers_in_every_type(kind: str) -> None:
    import gguf
    from gguf.quants import dequantize

    tensor_type = gguf.GGMLQuantizationType[kind]
    filled = np.full(8 * gguf.GGML_QUANT_SIZES[tensor_type][1], 0x11, np.uint8)
    values = dequantize(filled if tensor_type > 1 else filled.view(f"float{16 << (kind == 'F32')}"), tensor_type)
    assert np.isfinite(values).all()
    assert abs(values).max() < 1


_MULTIPLY = """
import json
from nbutils._ggml import Ggml, Product
ggml = Ggml(use_gpu=False, n_threads=1)
print(json.dumps({kind: ggml.time_product(kind, Product(64, 256, n_products=2), seconds=0)[0] for kind in ("MXFP4", "NVFP4")}))
"""


def test_yardsticks_of_both_four_bit_floats_go_through_the_bytes_of_their_blocks() -> None:
    assert in_child(_MULTIPLY) == {"MXFP4": 2 * 64 * 256 * 17 // 32, "NVFP4": 2 * 64 * 256 * 36 // 64}


@pytest.mark.parametrize("stand_in", [s for s in SMALL if s.format in ON_DEMAND], ids=str)
def test_the_header_of_a_four_bit_float_says_what_it_is(stand_in: StandIn, made: dict[StandIn, Path]) -> None:
    found = variant_of_header(read_file(made[stand_in]))
    assert found.format == stand_in.format.removesuffix("_GGUF")
    assert found.arithmetic == ("fp16/any", "int8", "fp4")
    assert found.weight_bytes == weight_bytes(stand_in_model(stand_in.kind, stand_in.size), registry.load_format(stand_in.format))


@pytest.mark.parametrize("size", SIZES)
def test_pieces_of_text_are_ascii_and_distinct(size: str) -> None:
    n_vocab = SIZES[size].n_vocab
    pieces, kinds = gguf_files._vocabulary(n_vocab)
    assert len(pieces) == len(kinds) == len(set(pieces)) == n_vocab
    assert all(piece.isascii() and piece for piece in pieces)
    assert kinds.count(6) == 256  # every byte, so that any text can be read


@each_small
def test_the_vocabulary_in_the_file_is_that_one(stand_in: StandIn, made: dict[StandIn, Path]) -> None:
    pieces, kinds = gguf_files._vocabulary(SIZES["small"].n_vocab)
    fields = reader(made[stand_in]).fields
    assert fields["tokenizer.ggml.tokens"].contents() == [piece.decode() for piece in pieces]
    assert fields["tokenizer.ggml.token_type"].contents() == kinds


# ── the pairs ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", SIZES)
def test_dense_and_moe_of_a_size_weigh_the_same(size: str) -> None:
    dense, moe = stand_in_model("dense", size), stand_in_model("moe", size)
    assert parameters(dense) == pytest.approx(parameters(moe), rel=0.002)
    for format_id in ("F16", "Q8_0"):
        fmt = registry.load_format(format_id)
        assert weight_bytes(dense, fmt) == pytest.approx(weight_bytes(moe, fmt), rel=0.005)


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_the_base_pair_has_half_a_billion_parameters(kind: str) -> None:
    assert 0.45e9 < parameters(stand_in_model(kind, "base")) < 0.55e9


def test_the_six_base_files_take_under_4_gb() -> None:
    sizes = [weight_bytes(stand_in_model(kind, "base"), registry.load_format(f)) for kind in ("dense", "moe") for f in FORMATS]
    assert 2e9 < sum(sizes) < 4e9


def test_a_gpu_that_reads_a_layer_faster_than_it_starts_one_gets_wider_layers() -> None:
    fmt = registry.load_format("Q4_K_M")
    assert choose_size(4.8e12, fmt, has_gpu=False) == "base"
    assert choose_size(273e9, fmt, has_gpu=True) == "base"
    assert choose_size(4.8e12, fmt, has_gpu=True) == "wide"


# ── the router ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("format_id", [*FORMATS, *ON_DEMAND])
def test_routers_differ_and_spread_tokens_over_the_experts(format_id: str, made: dict[StandIn, Path]) -> None:
    """A router of equal rows would send every token to the same experts, which would stay in cache."""
    size = SIZES["small"]
    routers = [
        np.asarray(t.data).reshape(size.n_expert, size.n_embd)
        for t in reader(made[StandIn("moe", "small", format_id)]).tensors
        if t.name.endswith("ffn_gate_inp.weight")
    ]
    assert len(routers) == size.n_layer
    assert not any(np.array_equal(a, b) for i, a in enumerate(routers) for b in routers[:i])
    inputs = np.random.default_rng(1).standard_normal((200, size.n_embd))
    for router in routers:
        picked = np.argsort(inputs @ router.T, axis=1)[:, -size.n_expert_used :]
        shares = np.bincount(picked.ravel(), minlength=size.n_expert) / picked.size
        assert (shares > 0.25 / size.n_expert).all()


# ── whole or absent ───────────────────────────────────────────────────────────────────────────────

TINY = StandIn("dense", "small", "Q4_K_M")


def test_a_file_that_is_there_is_not_made_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_one(TINY)
    monkeypatch.setattr(gguf_files, "_write", lambda *arguments: pytest.fail("made again"))
    assert make_one(TINY) == path
    os.utime(path)  # another time, the same bytes: hashed, and kept
    assert make_one(TINY) == path


@pytest.mark.parametrize("damage", ["a flipped byte", "cut short", "no side file", "side file of nonsense", "side file of another kind"])
def test_a_damaged_file_is_made_again(damage: str, home: Path) -> None:
    path = make_one(TINY)
    good = sha256(path)
    side = path.with_suffix(".json")
    if damage == "a flipped byte":
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        os.utime(path, ns=(1, 1))
    elif damage == "cut short":
        os.truncate(path, path.stat().st_size - 1)
    else:
        path.write_bytes(b"")
        side.unlink() if damage == "no side file" else side.write_text("{" if damage == "side file of nonsense" else "[]")
    assert sha256(make_one(TINY)) == good


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError()])
def test_an_interrupted_write_leaves_no_file(error: BaseException, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, drawn = gguf_files._draw, []

    def stop_later(*arguments: Any) -> Any:
        drawn.append(1)
        if len(drawn) == 10:
            raise error
        return draw(*arguments)

    monkeypatch.setattr(gguf_files, "_draw", stop_later)
    with pytest.raises(type(error)):
        make_one(TINY)
    assert [p for p in home.rglob("*") if p.is_file()] == []
    monkeypatch.undo()


def test_a_full_disk_is_one_line_with_a_way_out(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf_files, "_draw", full)
    with pytest.raises(DataError, match="No space left on device; free some space or set NBUTILS_HOME to another disk"):
        make_one(TINY)
    assert [p for p in home.rglob("*") if p.is_file()] == []


def test_another_recipe_is_another_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = stand_in_path(TINY)
    monkeypatch.setattr(gguf_files, "SEED", gguf_files.SEED + 1)
    assert stand_in_path(TINY) != before
    assert stand_in_path(TINY).name == before.name


def test_without_the_gguf_package_the_error_holds_the_command(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtra, match=r"pip install -e '\.\[engine\]'"):
        make_one(TINY)


# ── hollow files ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("model_id", "format_id"), [("llama-3.1-8b", "Q4_K_M"), ("deepseek-v3", "F16"), ("nemotron-3-nano", "Q8_0")])
def test_a_hollow_file_has_every_tensor_and_takes_no_room(model_id: str, format_id: str, tmp_path: Path) -> None:
    model, fmt, path = registry.load_model(model_id), registry.load_format(format_id), tmp_path / "hollow.gguf"
    gguf_files.write_hollow(path, model, fmt)
    found = reader(path)
    expected = [(t.name, t.shape, tensor_type(t, model, fmt), tensor_bytes(t, model, fmt)) for t in tensors(model)]
    assert [(t.name, tuple(int(n) for n in t.shape), t.tensor_type.name, int(t.n_bytes)) for t in found.tensors] == expected
    # What our own reader says, which believes nothing: the data fit into the file, and none is missing.
    header = read_file(path)
    assert [(t.name, t.shape, t.type_name, t.n_bytes) for t in header.tensors] == expected
    assert header.weight_bytes == weight_bytes(model, fmt)
    padding = path.stat().st_size - header.data_offset - header.weight_bytes
    assert 0 <= padding < 32 * len(expected), "each tensor begins at a multiple of 32"
    if hasattr(path.stat(), "st_blocks"):
        assert path.stat().st_blocks * 512 < 2**20, "a file of gigabytes, and some kB of disk"


def test_a_hollow_file_says_the_size_of_its_vocabulary_and_no_words(tmp_path: Path) -> None:
    model, path = registry.load_model("qwen3-0.6b"), tmp_path / "hollow.gguf"
    gguf_files.write_hollow(path, model, registry.load_format("F16"))
    metadata = read_file(path).metadata
    assert metadata["qwen3.vocab_size"] == model.shape.n_vocab
    assert metadata["tokenizer.ggml.model"] == "no_vocab"
    assert metadata["general.name"] == model.name
    assert "tokenizer.ggml.tokens" not in metadata


def test_without_the_gguf_package_a_hollow_file_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtra, match=r"pip install -e '\.\[engine\]'"):
        gguf_files.write_hollow(tmp_path / "hollow.gguf", registry.load_model("qwen3-0.6b"), registry.load_format("F16"))
    assert list(tmp_path.iterdir()) == []


# ── names ─────────────────────────────────────────────────────────────────────────────────────────


@each_small
def test_a_name_and_a_format_are_a_stand_in(stand_in: StandIn) -> None:
    assert parse_stand_in(stand_in.name, stand_in.format) == stand_in


@pytest.mark.parametrize(
    ("name", "format_id", "near"),
    [
        ("stand-in-dense-smal", "F16", "stand-in-dense-small"),
        ("standin-moe-base", "F16", "stand-in-moe-base"),
        ("stand-in-moe-base", "Q4_KM", "Q4_K_M"),
        ("stand-in-moe-base", "Q8", "Q8_0"),
        ("stand-in-dense-base", "NVFP4", "NVFP4_GGUF"),  # that is another engine's
        ("stand-in-dense-base", "MXFP4", "MXFP4_GGUF"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(name: str, format_id: str, near: str) -> None:
    with pytest.raises(UnknownId, match=f"did you mean '{near}'"):
        parse_stand_in(name, format_id)


def test_an_unknown_format_is_told_all_that_can_be_made() -> None:
    with pytest.raises(UnknownId, match=r"^stand-ins are made as F16, Q8_0, Q4_K_M, MXFP4_GGUF, NVFP4_GGUF, not as 'FP8'"):
        parse_stand_in("stand-in-dense-base", "FP8")


# ── llama.cpp itself, in a child that may die ─────────────────────────────────────────────────────

_DECODE = """
import ctypes, json, math, sys
import llama_cpp as l
@l.llama_log_callback
def quiet(level, text, data):
    pass
l.llama_log_set(quiet, ctypes.c_void_p(0))
l.llama_backend_init()
answers = []
for path in sys.argv[1:]:
    params = l.llama_model_default_params()
    params.n_gpu_layers = 0
    model = l.llama_model_load_from_file(path.encode(), params)
    assert model, path
    params = l.llama_context_default_params()
    params.n_ctx, params.n_threads, params.n_threads_batch = 256, 1, 1
    context, vocab = l.llama_init_from_model(model, params), l.llama_model_get_vocab(model)
    n_vocab, token, rows = l.llama_vocab_n_tokens(vocab), 300, []
    for _ in range(4):
        tokens = (l.llama_token * 1)(token)
        assert l.llama_decode(context, l.llama_batch_get_one(tokens, 1)) == 0
        rows.append(l.llama_get_logits_ith(context, -1)[:n_vocab])
        token = max(range(n_vocab), key=rows[-1].__getitem__)
    text = ctypes.create_string_buffer(64 * n_vocab)
    # All but the 256 bytes, of which the upper half is no ASCII by nature.
    every = (l.llama_token * (n_vocab - 259))(*range(259, n_vocab))
    n = l.llama_detokenize(vocab, every, len(every), text, len(text), False, False)
    said = b"any-text:\\xc3\\xa9"
    back = (l.llama_token * 64)()
    n_back = l.llama_tokenize(vocab, said, len(said), back, 64, False, False)
    again = ctypes.create_string_buffer(256)
    n_again = l.llama_detokenize(vocab, back, n_back, again, 256, False, False)
    answers.append({
        "finite": all(math.isfinite(x) for row in rows for x in row),
        "spread": min(max(row) - min(row) for row in rows),
        "text": text.raw[:n].decode("latin-1"),
        "same": again.raw[:n_again] == said,
        "n_parameters": l.llama_model_n_params(model),
        "n_bytes": l.llama_model_size(model),
    })
    l.llama_free(context)
    l.llama_model_free(model)
print(json.dumps(answers))
"""


def test_llama_cpp_loads_them_all_decodes_finite_logits_and_speaks_ascii(made: dict[StandIn, Path]) -> None:
    answers = in_child(_DECODE, *map(str, made.values()))
    assert len(answers) == len(SMALL)
    for stand_in, answer in zip(SMALL, answers, strict=True):
        model = stand_in_model(stand_in.kind, stand_in.size)
        assert answer["n_parameters"] == parameters(model), stand_in
        assert answer["n_bytes"] == weight_bytes(model, registry.load_format(stand_in.format)), stand_in
        assert answer["finite"], stand_in
        assert answer["spread"] > 0, stand_in
        assert answer["text"].isascii(), stand_in
        assert len(answer["text"].split()) == SIZES["small"].n_vocab - 259, stand_in
        assert answer["same"], stand_in


def test_the_checksum_beside_a_file_is_the_files(small_file: Path) -> None:
    with small_file.open("rb") as file:
        assert gguf_files.sha256(small_file) == hashlib.file_digest(file, "sha256").hexdigest()


def test_a_disk_without_room_for_a_hole_is_one_line_that_says_where_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Any, length: int) -> None:
        raise OSError(27, "File too large")

    monkeypatch.setattr(os, "truncate", refuse)
    with pytest.raises(DataError, match=r"cannot hold a file of 1,342 GB that is nearly all hole: File too large; set TMPDIR"):
        gguf_files.write_hollow(tmp_path / "deepseek-v3.gguf", registry.load_model("deepseek-v3"), registry.load_format("F16"))
