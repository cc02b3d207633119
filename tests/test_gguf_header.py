"""Headers of strangers' files: what is right is read as the gguf package reads it, what is wrong is one line, and nothing is taken on trust."""

from __future__ import annotations

import hashlib
import http.server
import os
import socket
import struct
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nbutils import gguf_header
from nbutils.errors import DataError, MissingExtra, NbutilsError, UsageError
from nbutils.gguf_header import MAX_HEADER_BYTES, TENSOR_TYPES, Header, Skipped, is_url, read_bytes, read_file, read_url, save_hollow

MIB = 2**20


# ── a writer that will write anything ─────────────────────────────────────────────────────────────

U8, U16, U32, F32, BOOL, STRING, ARRAY, U64 = 0, 2, 4, 6, 7, 8, 9, 10


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def kv(key: str | bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def u32(key: str, value: int) -> bytes:
    return kv(key, U32, struct.pack("<I", value))


def u16(key: str, value: int) -> bytes:
    return kv(key, U16, struct.pack("<H", value))


def array(kind: int, count: int, items: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + items


def tensor(name: str | bytes = "w", shape: tuple[int, ...] = (256, 4), type_id: int = 0, offset: int = 0, n_dims: int | None = None) -> bytes:
    n = len(shape) if n_dims is None else n_dims
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", n, *shape, type_id, offset)


def gguf_bytes(
    *parts: bytes, keys: list[bytes] | None = None, version: int = 3, n_tensors: int | None = None, n_keys: int | None = None, data: int = 4096
) -> bytes:
    """A file of ``parts``, each a tensor's entry (256 x 4 of F32 if none is given), with ``data`` bytes of weights. Counts may be lies."""
    keys = [u32("general.file_type", 1)] if keys is None else keys
    parts = parts or (tensor(),)
    counts = len(parts) if n_tensors is None else n_tensors, len(keys) if n_keys is None else n_keys
    head = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(keys) + b"".join(parts)
    return head + bytes(-len(head) % 32) + bytes(data)


def refusal(of: Callable[[], object], kind: type[NbutilsError] = DataError) -> str:
    """The one line that a call ends in."""
    with pytest.raises(NbutilsError) as caught:
        of()
    line = str(caught.value)
    assert type(caught.value) is kind, line
    assert line.isprintable(), line
    assert len(line) < 700, line
    assert "; " in line, f"no way out: {line}"
    return line


# ── what is read ──────────────────────────────────────────────────────────────────────────────────


def same_as_the_gguf_package(path: Path) -> Header:
    import gguf

    header, other = read_file(path), gguf.GGUFReader(path)
    found = [(t.name, t.shape, t.type_name, t.n_bytes, header.data_offset + t.offset) for t in header.tensors]
    assert found == [(t.name, tuple(map(int, t.shape)), t.tensor_type.name, int(t.n_bytes), int(t.data_offset)) for t in other.tensors]
    assert header.data_offset == int(other.data_offset)
    theirs = {name: entry for name, entry in other.fields.items() if not name.startswith("GGUF.")}
    assert list(header.metadata) == list(theirs)
    for key, value in header.metadata.items():
        if isinstance(value, Skipped):
            assert value.length == len(theirs[key].contents()), key
        else:
            assert value == theirs[key].contents(), key
    assert header.file_bytes == path.stat().st_size
    assert header.sha256 == hashlib.sha256(path.read_bytes()[: header.data_offset]).hexdigest()
    assert (header.name, header.n_parts) == (path.name, 1)
    return header


def test_a_stand_in_is_read_as_the_gguf_package_reads_it(small_file: Path) -> None:
    header = same_as_the_gguf_package(small_file)
    assert header.metadata["general.architecture"] == "qwen3"
    assert header.metadata["tokenizer.ggml.tokens"] == Skipped(2048)
    assert header.metadata["tokenizer.ggml.scores"][-1] < 0
    assert header.weight_bytes == sum(t.n_bytes for t in header.tensors) < header.file_bytes


def test_every_kind_of_value_and_many_types_are_read_as_the_gguf_package_reads_them(tmp_path: Path) -> None:
    import gguf
    import numpy as np

    path = tmp_path / "all.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(64)
    for name, value in (("uint8", 255), ("int8", -1), ("uint16", 65535), ("int16", -2), ("uint32", 2**32 - 1), ("int32", -3)):
        getattr(writer, f"add_{name}")(f"a.{name}", value)
    for name, value in (("uint64", 2**64 - 1), ("int64", -4), ("float32", 0.1), ("float64", 0.1), ("bool", True), ("string", "naïve")):
        getattr(writer, f"add_{name}")(f"b.{name}", value)
    writer.add_array("c.ints", [1, -2, 3])
    writer.add_array("c.floats", [0.5, 1.5])
    writer.add_array("c.truths", [True, False])
    writer.add_array("c.words", ["a", "bc"])
    writer.add_array("c.most", list(range(gguf_header.MAX_ARRAY_ITEMS)))
    writer.add_array("c.more", list(range(gguf_header.MAX_ARRAY_ITEMS + 1)))
    for kind in gguf.GGMLQuantizationType:
        _, n_bytes = gguf.GGML_QUANT_SIZES[kind]
        rows = np.zeros((2, 3, 4 * n_bytes), np.uint8)
        writer.add_tensor(f"t.{kind.name}", rows, raw_shape=(2, 3, 4 * n_bytes), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    header = same_as_the_gguf_package(path)
    assert header.data_offset % 64 == 0
    assert header.metadata["b.bool"] is True
    assert header.metadata["c.truths"] == [True, False]
    assert header.metadata["c.words"] == Skipped(2)
    assert isinstance(header.metadata["c.most"], list)
    assert header.metadata["c.more"] == Skipped(gguf_header.MAX_ARRAY_ITEMS + 1)
    assert {t.type_name for t in header.tensors} == {kind.name for kind in gguf.GGMLQuantizationType}


def test_the_table_of_types_is_ggmls() -> None:
    from gguf.constants import GGML_QUANT_SIZES

    ours = {name: (elements, n_bytes) for name, elements, n_bytes in TENSOR_TYPES.values()}
    theirs = {kind.name: sizes for kind, sizes in GGML_QUANT_SIZES.items()}
    assert {name: ours.get(name) for name in theirs} == theirs
    assert {kind.name: int(kind) for kind in GGML_QUANT_SIZES}.items() <= {name: i for i, (name, _, _) in TENSOR_TYPES.items()}.items()
    # llama.cpp's ggml.h has this one; the package lags behind.
    assert set(ours) - set(theirs) <= {"Q2_0"}


def test_the_least_file_there_can_be() -> None:
    data = gguf_bytes(tensor("w", (256, 2), type_id=12, offset=0), keys=[], data=288)
    header = read_bytes(data, "least.gguf")
    assert header.metadata == {}
    assert [(t.name, t.shape, t.type_name, t.n_bytes, t.offset) for t in header.tensors] == [("w", (256, 2), "Q4_K", 288, 0)]
    assert header.data_offset + header.weight_bytes == header.file_bytes == len(data)


@pytest.mark.parametrize("version", [2, 3])
def test_versions_two_and_three_are_the_same_to_read(version: int) -> None:
    assert read_bytes(gguf_bytes(version=version)).weight_bytes == 4096


def test_long_strings_and_arrays_in_arrays_are_passed_over_and_bad_text_is_replaced() -> None:
    long = "x" * (gguf_header.MAX_STRING_BYTES + 1)
    inner = array(U32, 2, bytes(8)) + array(STRING, 1, text("ab"))
    header = read_bytes(
        gguf_bytes(
            keys=[kv("a", STRING, text(long)), kv("b", ARRAY, array(ARRAY, 2, inner)), kv("c", STRING, text(b"\xff!")), kv("d", ARRAY, array(U8, 0))]
        )
    )
    assert header.metadata == {"a": Skipped(len(long)), "b": Skipped(2), "c": "\ufffd!", "d": []}


def test_data_may_lie_in_any_order_and_leave_gaps() -> None:
    header = read_bytes(gguf_bytes(tensor("b", offset=8192), tensor("a", offset=0), data=8192 + 4096))
    assert [t.name for t in header.tensors] == ["b", "a"]


def test_a_name_from_elsewhere_is_fit_to_print() -> None:
    assert read_bytes(gguf_bytes(), "a\x1b[31m\nb.gguf").name == "a?[31m?b.gguf"


def test_a_tokenizer_of_256k_tokens_and_500k_merges_is_passed_in_well_under_a_second_and_a_half(tmp_path: Path) -> None:
    tokens = kv("tokenizer.ggml.tokens", ARRAY, array(STRING, 262_144, b"".join(text(f"token{i}") for i in range(262_144))))
    scores = kv("tokenizer.ggml.scores", ARRAY, array(F32, 262_144, bytes(4 * 262_144)))
    merges = kv("tokenizer.ggml.merges", ARRAY, array(STRING, 500_000, b"".join(text(f"to ken{i}") for i in range(500_000))))
    path = tmp_path / "big.gguf"
    path.write_bytes(gguf_bytes(keys=[tokens, scores, merges]))
    start = time.perf_counter()
    header = read_file(path)
    assert time.perf_counter() - start < 1.5
    assert header.metadata == {
        "tokenizer.ggml.tokens": Skipped(262_144),
        "tokenizer.ggml.scores": Skipped(262_144),
        "tokenizer.ggml.merges": Skipped(500_000),
    }
    assert header.data_offset > 15e6


# ── what is refused ───────────────────────────────────────────────────────────────────────────────

HUGE = 2**64 - 1

DEFECTS: dict[str, tuple[bytes, list[str]]] = {
    "nothing": (b"", ["byte 0", "is empty", "fetch it again"]),
    "half a magic": (b"GG", ["ends within its first word"]),
    "another magic": (b"ABCD" + bytes(60), ["b'ABCD", "b'GGUF'"]),
    "control characters": (b"\x1b[2J\x07" * 9, ["\\x1b"]),
    "a web page": (b"\n<!DOCTYPE html><title>Log in</title>", ["web page", "the file itself"]),
    "XML": (b"<?xml version='1.0'?><Error/>", ["XML", "what the server said"]),
    "JSON": (b'{"error": "Repository not found"}', ["JSON", "what the server said"]),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", ["Git LFS pointer", "git lfs pull"]),
    "safetensors": (struct.pack("<Q", 1000) + b'{"__metadata__":{}}', ["safetensors", "convert_hf_to_gguf.py"]),
    "a zip archive": (b"PK\x03\x04" + bytes(60), ["zip", "PyTorch"]),
    "a gzip file": (b"\x1f\x8b\x08" + bytes(60), ["compressed", "unpack"]),
    "from before GGUF": (b"tjgg" + bytes(60), ["before GGUF"]),
    "version 1": (gguf_bytes(version=1), ["byte 4", "version 1", "convert"]),
    "version 0": (gguf_bytes(version=0), ["version 0"]),
    "version 4": (gguf_bytes(version=4), ["version 4", "update"]),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 1, 1) + bytes(99), ["byte 4", "big-endian", "convert"]),
    "no counts": (b"GGUF" + struct.pack("<I", 3), ["byte 8", "number of tensors", "cut short"]),
    "2**64 tensors": (gguf_bytes(n_tensors=HUGE), ["byte 8", "18,446,744,073,709,551,615 tensors"]),
    "2**64 keys": (gguf_bytes(n_keys=HUGE), ["byte 16", "18,446,744,073,709,551,615 metadata keys"]),
    "more tensors than bytes": (gguf_bytes(n_tensors=60_000), ["60,000 tensors", "cut short"]),
    "more keys than bytes": (gguf_bytes(n_keys=60_000), ["60,000 metadata keys", "cut short"]),
    "a key more than there is": (gguf_bytes(n_keys=2, data=0), ["byte"]),
    "a tensor more than there is": (gguf_bytes(n_tensors=2), ["tensor 2 of 2"]),
    "a tensor less than there is, and no data": (gguf_bytes(tensor("a"), tensor("b"), n_tensors=1, data=0), ["are missing"]),
    "an empty key": (gguf_bytes(keys=[u32("", 1)]), ["byte 24", "key 1 of 1", "0 bytes"]),
    "a key of 2**64 bytes": (gguf_bytes(keys=[struct.pack("<Q", HUGE)]), ["byte 24", "key 1 of 1", "1 to 65,535"]),
    "a key of 70 kB": (gguf_bytes(keys=[u32("k" * 70_000, 1)]), ["70,000 bytes"]),
    "a key that is not UTF-8": (gguf_bytes(keys=[kv(b"\xff\xfe", U32, bytes(4))]), ["key 1 of 1", "UTF-8"]),
    "a key twice": (gguf_bytes(keys=[u32("a.b", 1), u32("a.b", 2)]), ["byte 43", "'a.b'", "twice"]),
    "a value of no type": (gguf_bytes(keys=[kv("a.b", 77, bytes(8))]), ["'a.b'", "type 77"]),
    "an array of no type": (gguf_bytes(keys=[kv("a.b", ARRAY, array(77, 1, bytes(8)))]), ["'a.b'", "type 77"]),
    "a string of 2**64 bytes": (gguf_bytes(keys=[kv("a.b", STRING, struct.pack("<Q", HUGE))]), ["'a.b'", "18,446,744,073,709,551,615 bytes"]),
    "an array of 2**64 numbers": (gguf_bytes(keys=[kv("a.b", ARRAY, array(U32, HUGE))]), ["'a.b'", "73,786,976,294,838,206,460 bytes"]),
    "an array of 2**64 strings": (gguf_bytes(keys=[kv("a.b", ARRAY, array(STRING, HUGE))]), ["'a.b'", "cut short"]),
    "an array of 2**64 arrays": (gguf_bytes(keys=[kv("a.b", ARRAY, array(ARRAY, HUGE))]), ["'a.b'", "cut short"]),
    "100,000 arrays in an array": (
        gguf_bytes(keys=[kv("a.b", ARRAY, array(ARRAY, 100_000, array(U8, 0) * 100_000))]),
        ["'a.b'", "100,000 arrays inside"],
    ),
    "arrays three deep": (gguf_bytes(keys=[kv("a.b", ARRAY, array(ARRAY, 1, array(ARRAY, 1, array(U8, 0))))]), ["'a.b'", "nested deeper than 2"]),
    "a string in an array of 2**64 bytes": (
        gguf_bytes(keys=[kv("a.b", ARRAY, array(STRING, 2, text("x") + struct.pack("<Q", HUGE)))]),
        ["'a.b'", "18,446,744,073,709,551,615 bytes"],
    ),
    "a string in an array that ends behind the file": (
        gguf_bytes(keys=[kv("a.b", ARRAY, array(STRING, 2, text("x") + struct.pack("<Q", 9000)))]),
        ["'a.b'", "9,000 bytes"],
    ),
    "an alignment of 48": (gguf_bytes(keys=[u32("general.alignment", 48)]), ["general.alignment", "48", "power of two"]),
    "an alignment of 0": (gguf_bytes(keys=[u32("general.alignment", 0)]), ["general.alignment", "is 0"]),
    "an alignment of 4": (gguf_bytes(keys=[u32("general.alignment", 4)]), ["general.alignment", "is 4"]),
    "an alignment of 2**30": (gguf_bytes(keys=[u32("general.alignment", 2**30)]), ["general.alignment", "1073741824"]),
    "an alignment of text": (gguf_bytes(keys=[kv("general.alignment", STRING, text("32"))]), ["general.alignment", "type 8"]),
    "an alignment of half": (gguf_bytes(keys=[kv("general.alignment", F32, struct.pack("<f", 0.5))]), ["general.alignment", "0.5"]),
    "metadata without end": (
        gguf_bytes(keys=[kv(f"k{i}", ARRAY, array(U16, 4096, bytes(8192))) for i in range(500)]),
        ["more metadata than any real model"],
    ),
    "no tensors": (gguf_bytes(n_tensors=0, data=0), ["no tensors", "vocabulary", "name the file with the weights"]),
    "a tensor without a name": (gguf_bytes(tensor("")), ["name of tensor 1 of 1", "0 bytes"]),
    "a tensor's name of 513 bytes": (gguf_bytes(tensor("n" * 513)), ["name of tensor 1 of 1", "513 bytes", "512"]),
    "a tensor's name that is not UTF-8": (gguf_bytes(tensor(b"\xc3")), ["name of tensor 1 of 1", "UTF-8"]),
    "two tensors of a name": (gguf_bytes(tensor("blk.0.w"), tensor("blk.0.w", offset=4096), data=8192), ["two tensors", "'blk.0.w'"]),
    "no dimensions": (gguf_bytes(tensor("w", ())), ["'w'", "0 dimensions"]),
    "five dimensions": (gguf_bytes(tensor("w", (1, 1, 1, 1, 1))), ["'w'", "5 dimensions"]),
    "4,294,967,295 dimensions": (gguf_bytes(tensor("w", n_dims=2**32 - 1)), ["'w'", "4,294,967,295 dimensions"]),
    "a dimension of 0": (gguf_bytes(tensor("w", (256, 0))), ["'w'", "(256, 0)"]),
    "a shape of 2**64": (gguf_bytes(tensor("w", (2**32, 2**32))), ["'w'", "(4294967296, 4294967296)"]),
    "a shape that would wrap round to 0": (gguf_bytes(tensor("w", (2**62, 4))), ["'w'", "shape"]),
    "2**64 bytes of fewer elements": (gguf_bytes(tensor("w", (2**62,), type_id=28)), ["'w'", "36,893,488,147,419,103,232 bytes"]),
    "a type nobody knows": (gguf_bytes(tensor("w", type_id=99)), ["'w'", "type id 99", "unknown", "update nbutils"]),
    "a type that was given up": (gguf_bytes(tensor("w", type_id=31)), ["'w'", "type id 31", "given up"]),
    "a row of half a block": (gguf_bytes(tensor("w", (128, 2), type_id=12)), ["'w'", "rows of 128", "256", "Q4_K"]),
    "an offset beside the alignment": (gguf_bytes(tensor("w", offset=8)), ["'w'", "at 8", "alignment of 32"]),
    "two tensors in one place": (gguf_bytes(tensor("a"), tensor("b", offset=4064), data=9000), ["'a' and 'b'", "overlap"]),
    "weights cut short": (gguf_bytes(data=4000), ["cut short", "96 are missing", "fetch it again"]),
    "weights far behind the file": (gguf_bytes(tensor("w", offset=2**40)), ["cut short", "1,099,511,627,776 are missing"]),
    "weights that end behind 2**63": (gguf_bytes(tensor("w", offset=2**64 - 32)), ["'w'", "end at", "larger than any"]),
    "no padding and no data": (gguf_bytes(data=0).rstrip(b"\0"), ["byte", "cut short"]),
    "a part of a split file without the others": (gguf_bytes(keys=[u16("split.no", 0), u16("split.count", 2)]), ["one of 2 parts", "read the file"]),
    "a count of parts in words": (gguf_bytes(keys=[kv("split.count", STRING, text("two"))]), ["split.count", "'two'"]),
    "60,000 parts": (gguf_bytes(keys=[u16("split.no", 0), u16("split.count", 60_000)]), ["split.count", "60000"]),
    "a part without its number": (gguf_bytes(keys=[u16("split.count", 2)]), ["split.no", "None"]),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_one_line_that_names_it_and_the_way_out(defect: str) -> None:
    data, words = DEFECTS[defect]
    line = refusal(lambda: read_bytes(data, "model-00001-of-00002.gguf"))
    assert line.startswith("model-00001-of-00002.gguf")
    for word in words:
        assert word in line


@pytest.mark.parametrize("n", range(0, 420, 3))
def test_a_file_cut_anywhere_says_so(n: int, tmp_path: Path) -> None:
    keys = [u32("a", 1), kv("b", STRING, text("text")), kv("c", ARRAY, array(STRING, 3, text("x") * 3)), kv("d", ARRAY, array(F32, 3, bytes(12)))]
    whole = gguf_bytes(tensor("first"), tensor("second", offset=4096), keys=keys, data=8192)
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[:n])
    line = refusal(lambda: read_file(path))
    assert "fetch it again" in line
    assert any(word in line for word in ("cut short", "is empty", "first word"))


def test_names_from_the_file_are_shown_without_their_control_characters_and_not_in_full() -> None:
    line = refusal(lambda: read_bytes(gguf_bytes(tensor("\x1b[2J\n\u202e" + "n" * 400, type_id=99))))
    assert "\x1b" not in line
    assert "n" * 100 not in line


# ── files ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_header_of_10_gb_is_refused_at_once(tmp_path: Path) -> None:
    """A hole of 20 GB in which the first string claims 10: inside the file, and yet not read."""
    path = tmp_path / "endless.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + text("a.b") + struct.pack("<IQ", STRING, 10**10))
    os.truncate(path, 20 * 10**9)
    start = time.perf_counter()
    line = refusal(lambda: read_file(path))
    assert time.perf_counter() - start < 0.1
    assert "'a.b' needs 10,000,000,000 bytes" in line
    assert "longer than 128 MiB" in line


def test_the_slowest_file_takes_seconds_and_no_memory(tmp_path: Path) -> None:
    """As many strings as 128 MiB can hold, all of them empty."""
    path = tmp_path / "slow.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + text("a.b") + struct.pack("<IIQ", ARRAY, STRING, MAX_HEADER_BYTES // 8 - 20))
    os.truncate(path, 2 * MAX_HEADER_BYTES)
    start = time.perf_counter()
    refusal(lambda: read_file(path))
    assert time.perf_counter() - start < 20


def test_a_file_that_is_none_is_a_wrong_call(tmp_path: Path) -> None:
    for path, word in (
        (tmp_path / "no.gguf", "no file"),
        (tmp_path / "no" / "no.gguf", "no file"),
        (tmp_path, "a folder"),
        (tmp_path / "a\0b", "cannot be opened"),
        (tmp_path / ("n" * 5000), "cannot be opened"),
    ):
        assert word in refusal(lambda path=path: read_file(path), UsageError)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in the file system here")
def test_a_pipe_or_a_device_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "link.gguf").symlink_to("/dev/zero")
    for name in ("pipe.gguf", "link.gguf"):
        assert "a pipe or a device" in refusal(lambda name=name: read_file(tmp_path / name), UsageError)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="may read everything")
def test_a_file_that_may_not_be_read_says_so(tmp_path: Path) -> None:
    path = tmp_path / "mine.gguf"
    path.write_bytes(gguf_bytes())
    path.chmod(0)
    assert "Permission denied" in refusal(lambda: read_file(path), UsageError)


def test_a_disk_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def read(self, n: int) -> bytes:
            raise OSError(5, "Input/output error")

    source = gguf_header._FileSource(Broken(), "a.gguf", 100, 100, False)
    assert "Input/output error" in refusal(lambda: gguf_header._Reader(source).part())


# ── split files ───────────────────────────────────────────────────────────────────────────────────

PARTS = tuple(f"m-{i:05}-of-00003.gguf" for i in (1, 2, 3))


def split_file(folder: Path, **changed: bytes) -> list[Path]:
    """Three parts as llama-gguf-split writes them: metadata in the first, tensors in all. ``changed`` replaces one by its last number."""
    for i, name in enumerate(PARTS):
        keys = [u16("split.no", i), u16("split.count", 3), kv("split.tensors.count", 5, struct.pack("<i", 3))]
        keys += [kv("general.architecture", STRING, text("llama"))] * (i == 0)
        (folder / name).write_bytes(changed.get(f"part{i + 1}", gguf_bytes(tensor(f"blk.{i}.w"), keys=keys)))
    return [folder / name for name in PARTS]


def lone_part(number: int, count: int, name: str = "w") -> bytes:
    return gguf_bytes(tensor(name), keys=[u16("split.no", number - 1), u16("split.count", count)])


@pytest.mark.parametrize("given", [0, 1, 2])
def test_the_parts_of_a_split_file_are_read_together_whichever_is_named(given: int, tmp_path: Path) -> None:
    paths = split_file(tmp_path)
    header = read_file(paths[given])
    assert (header.name, header.n_parts) == (PARTS[0], 3)
    assert [t.name for t in header.tensors] == ["blk.0.w", "blk.1.w", "blk.2.w"]
    assert header.file_bytes == sum(p.stat().st_size for p in paths)
    assert header.metadata["general.architecture"] == "llama"
    assert header.sha256 == hashlib.sha256(paths[0].read_bytes()[: header.data_offset]).hexdigest()


def test_a_split_file_that_the_gguf_package_wrote_is_the_one_it_did_not_split(tmp_path: Path) -> None:
    import gguf
    import numpy as np

    for name, split in (("whole", 0), ("parts", 2)):
        writer = gguf.GGUFWriter(tmp_path / f"{name}.gguf", "llama", split_max_tensors=split)
        writer.add_block_count(5)
        for i in range(5):
            writer.add_tensor(f"blk.{i}.w", np.ones((2, 32 * (i + 1)), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    whole, parts = read_file(tmp_path / "whole.gguf"), read_file(tmp_path / "parts-00001-of-00003.gguf")
    assert parts.n_parts == 3
    assert [(t.name, t.shape, t.type_name, t.n_bytes) for t in parts.tensors] == [(t.name, t.shape, t.type_name, t.n_bytes) for t in whole.tensors]
    assert parts.weight_bytes == whole.weight_bytes
    assert whole.metadata.items() <= parts.metadata.items()


def test_a_first_part_may_hold_metadata_only(tmp_path: Path) -> None:
    keys = [u16("split.no", 0), u16("split.count", 3)]
    bare = b"GGUF" + struct.pack("<IQQ", 3, 0, len(keys)) + b"".join(keys)
    assert len(bare) % 32 != 0  # nothing to be aligned
    header = read_file(split_file(tmp_path, part1=bare)[0])
    assert (len(header.tensors), header.data_offset) == (2, len(bare))


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_missing_part_is_named(missing: int, tmp_path: Path) -> None:
    paths = split_file(tmp_path)
    paths[missing].unlink()
    line = refusal(lambda: read_file(paths[(missing + 1) % 3]))
    assert f"{PARTS[missing]} is not there; fetch all 3 parts" in line


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"part2": lone_part(3, 3)}, ["m-00002-of-00003.gguf says that it is part 3 of 3, not 2 of 3"]),
        ({"part3": lone_part(3, 4)}, ["m-00003-of-00003.gguf says that it is part 3 of 4"]),
        ({"part2": gguf_bytes(tensor("x"))}, ["m-00002-of-00003.gguf", "split.no"]),
        ({"part1": lone_part(2, 3)}, ["says that it is part 2 of 3, its name does not"]),
        ({"part3": lone_part(3, 3, "blk.0.w")}, ["two parts have a tensor 'blk.0.w'"]),
        (
            {"part3": gguf_bytes(tensor("a"), tensor("b", offset=4096), keys=[u16("split.no", 2), u16("split.count", 3)], data=8192)},
            ["promises 3", "hold 4"],
        ),
        ({"part2": b"<html>"}, ["m-00002-of-00003.gguf", "web page"]),
        ({"part2": lone_part(2, 3)[:-1]}, ["m-00002-of-00003.gguf", "cut short", "1 are missing"]),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[-1],
)
def test_parts_that_do_not_belong_together_are_refused(changed: dict[str, bytes], words: list[str], tmp_path: Path) -> None:
    line = refusal(lambda: read_file(split_file(tmp_path, **changed)[0]))
    for word in words:
        assert word in line


def test_a_part_under_another_name_is_told_its_own(tmp_path: Path) -> None:
    path = split_file(tmp_path)[0].rename(tmp_path / "renamed.gguf")
    assert "like renamed-00001-of-00003.gguf" in refusal(lambda: read_file(path))


def test_all_headers_of_a_split_file_together_keep_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = split_file(tmp_path)
    monkeypatch.setattr(gguf_header, "MAX_HEADER_BYTES", 500)
    assert "longer than" in refusal(lambda: read_file(paths[0]))


# ── any bytes at all ──────────────────────────────────────────────────────────────────────────────


def _seed() -> tuple[bytes, list[int]]:
    """A file with a bit of everything, and where its counts, lengths, types and sizes lie."""
    keys = [
        kv("general.architecture", STRING, text("llama")),
        u32("general.alignment", 32),
        kv("a", ARRAY, array(STRING, 3, text("one") + text("two") + text("three"))),
        kv("b", ARRAY, array(F32, 4, bytes(16))),
        kv("c", ARRAY, array(ARRAY, 2, array(U8, 3, b"abc") + array(STRING, 1, text("x")))),
        kv("d", BOOL, b"\1"),
        kv("e", U64, bytes(8)),
        u16("split.count", 1),
    ]
    data = gguf_bytes(tensor("a", (256, 2), 12, 0), tensor("b", (64,), 0, 288), tensor("c", (32, 2, 2), 8, 544), keys=keys, data=680)
    # Every number in such a file is small: wherever seven of eight bytes are zero, one begins.
    spots = [i for i in range(len(data) - 700) if data[i + 1 : i + 4] == bytes(3)]
    return data, [4, 8, 16, *spots]


SEED, SPOTS = _seed()
NUMBERS = [
    0,
    1,
    2,
    3,
    7,
    8,
    9,
    31,
    33,
    255,
    2**16,
    2**24 + 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**40,
    2**53,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 33,
    HUGE,
]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """The seed after one to four mishaps."""
    data = bytearray(SEED)
    for _ in range(draw(st.integers(1, 4))):
        place = st.integers(0, max(0, len(data) - 1))
        match draw(st.sampled_from(["flip", "number", "number", "cut", "splice", "insert", "noise", "grow"])):
            case "flip":
                for at in draw(st.lists(place, min_size=1, max_size=4)):
                    if at < len(data):
                        data[at] ^= 1 << draw(st.integers(0, 7))
            case "number":
                at = draw(st.one_of(st.sampled_from(SPOTS), place))
                width = draw(st.sampled_from(["<I", "<Q"]))
                n = struct.calcsize(width)
                data[at : at + n] = struct.pack(width, draw(st.sampled_from(NUMBERS)) % 2 ** (8 * n))
            case "cut":
                del data[draw(place) :]
            case "splice":
                start, n, at = draw(place), draw(st.integers(1, 200)), draw(place)
                data[at : at + draw(st.sampled_from([0, n]))] = data[start : start + n]
            case "insert":
                at = draw(place)
                data[at:at] = draw(st.binary(max_size=64))
            case "noise":
                at = draw(st.one_of(st.just(4), place))
                data[at : at + 200] = draw(st.binary(max_size=200))
            case "grow":
                data += bytes(draw(st.integers(0, 100_000)))
    return bytes(data)


def outcome(data: bytes, *, size_known: bool) -> Header | str:
    """What reading comes to, with its memory watched."""
    place = gguf_header._BytesPlace(data, "fuzz.gguf")

    def read() -> Header:
        if size_known:
            return gguf_header._joined(gguf_header._read_parts(place))
        with place.open(MAX_HEADER_BYTES, keep=False) as source:
            source.size = None  # as of a server that does not tell
            return gguf_header._joined([gguf_header._Reader(source).part()])

    tracemalloc.start()
    try:
        return read()
    except DataError as error:
        return str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 16 * MIB + 4 * len(data)


def test_the_seed_itself_is_sound() -> None:
    for size_known in (True, False):
        header = outcome(SEED, size_known=size_known)
        assert isinstance(header, Header)
        assert len(header.tensors) == 3
    assert len(SPOTS) > 40


@settings(max_examples=3000, deadline=timedelta(seconds=2), derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=mutated(), size_known=st.booleans())
def test_whatever_the_bytes_there_is_a_header_or_one_line(data: bytes, size_known: bool) -> None:
    found = outcome(data, size_known=size_known)
    if isinstance(found, str):
        assert found.isprintable()
        assert found.startswith("fuzz.gguf")
        assert len(found) < 700
        return
    assert found.tensors
    assert found.data_offset <= len(data)
    assert all(t.shape and min(t.shape) > 0 and t.n_bytes > 0 and t.offset >= 0 for t in found.tensors)
    if size_known:
        assert max(t.offset + t.n_bytes for t in found.tensors) + found.data_offset <= found.file_bytes == len(data)
        assert found.weight_bytes < len(data)
    assert found.sha256 == hashlib.sha256(data[: found.data_offset]).hexdigest()


@settings(max_examples=500, deadline=timedelta(seconds=2), derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(rest=st.binary(max_size=300))
def test_random_bytes_behind_the_magic_are_refused(rest: bytes) -> None:
    assert isinstance(outcome(b"GGUF" + struct.pack("<I", 3) + rest, size_known=True), str)


# ── servers ───────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Site:
    """A server on this machine: files by path, answers of its own by path, and what was asked and sent."""

    folder: Path
    port: int = 0
    ranges: bool = True
    length: bool = True
    etags: Iterator[str] | None = None
    answers: dict[str, Callable[[Any], None]] = field(default_factory=dict)
    sent: int = 0
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def url(self, path: str = "m.gguf", userinfo: str = "") -> str:
        return f"http://{userinfo}127.0.0.1:{self.port}/{path}"

    def file(self, data: bytes, name: str = "m.gguf", size: int | None = None) -> Path:
        path = self.folder / name
        path.write_bytes(data)
        if size is not None:
            os.truncate(path, size)
        return path


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def setup(self) -> None:
        super().setup()
        # Little waits in the system, so that what is counted as sent is about what was taken.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].lstrip("/")
        self.site.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        if answer := self.site.answers.get(path):
            return answer(self)
        return self.serve(path)

    def serve(self, path: str) -> None:
        """A file, or the range of it that was asked for."""
        file = self.site.folder / path
        if not file.is_file():
            return self.reply(404, b"no such file")
        size, asked = file.stat().st_size, self.headers.get("Range", "")
        if not (self.site.ranges and asked):
            headers = {"Content-Length": str(size)} if self.site.length else {"Connection": "close"}
            return self.send(200, headers, file, 0, size)
        first, last = (int(n) for n in asked.removeprefix("bytes=").split("-"))
        last = min(last, size - 1)
        headers = {"Content-Range": f"bytes {first}-{last}/{size}", "Content-Length": str(last - first + 1)}
        if self.site.etags:
            headers["ETag"] = next(self.site.etags)
        return self.send(206, headers, file, first, last + 1)

    def head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.head(status, {"Content-Length": str(len(body))} | {name.replace("_", "-"): value for name, value in headers.items()})
        self.wfile.write(body)
        self.site.sent += len(body)

    def send(self, status: int, headers: dict[str, str], file: Path, first: int, stop: int) -> None:
        self.head(status, headers)
        with file.open("rb") as data:
            data.seek(first)
            while first < stop:
                piece = data.read(min(32768, stop - first))
                self.wfile.write(piece)
                self.site.sent += len(piece)
                first += len(piece)
        if "Connection" in headers:
            self.close_connection = True


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        assert isinstance(sys.exc_info()[1], OSError), sys.exc_info()  # the other side has gone


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    folder = tmp_path / "site"
    folder.mkdir()
    made = Site(folder)
    server = Server(("127.0.0.1", 0), type("OneHandler", (Handler,), {"site": made}))
    made.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    made.stop.set()
    server.shutdown()
    thread.join()
    server.server_close()


def with_tokenizer(n_bytes: int, data: int = 4096) -> bytes:
    return gguf_bytes(keys=[kv("tokenizer.ggml.scores", ARRAY, array(U8, n_bytes, os.urandom(n_bytes)))], data=data)


def test_what_a_server_gives_is_what_the_file_gives(site: Site) -> None:
    path = site.file(with_tokenizer(3 * MIB))
    assert read_url(site.url()) == read_file(path)
    ranges = [headers["range"] for _, headers in site.asked]
    assert ranges[0] == "bytes=0-524287"
    assert all(headers["accept-encoding"] == "identity" for _, headers in site.asked)


@pytest.mark.parametrize("tokenizer_bytes", [100, 600_000, 5 * MIB])
@pytest.mark.parametrize("ranges", [True, False], ids=["with ranges", "without"])
def test_of_40_mb_the_header_and_a_mib_are_fetched(ranges: bool, tokenizer_bytes: int, site: Site) -> None:
    head = with_tokenizer(tokenizer_bytes, data=0)
    site.file(head, size=40 * MIB)
    site.ranges = ranges
    header = read_url(site.url())
    assert (header.data_offset, header.file_bytes) == (len(head), 40 * MIB)
    time.sleep(0.1)  # a server without ranges has noticed by now
    assert site.sent <= header.data_offset + MIB


def test_a_server_that_tells_no_size_gives_the_least_there_must_be(site: Site) -> None:
    path = site.file(gguf_bytes() + bytes(500))
    site.ranges = site.length = False
    assert read_url(site.url()).file_bytes == path.stat().st_size - 500


def test_a_server_may_send_less_than_asked_and_hide_the_size(site: Site) -> None:
    data = with_tokenizer(5000)

    def stingy(request: Any) -> None:
        first = int(request.headers["Range"].removeprefix("bytes=").split("-")[0])
        piece = data[first : first + 1000]
        request.reply(206, piece, Content_Range=f"bytes {first}-{first + len(piece) - 1}/*")

    site.answers["m.gguf"] = stingy
    header = read_url(site.url())
    assert header.file_bytes == len(data)
    assert len(site.asked) == 6


def test_a_redirection_is_followed_once_and_its_end_is_asked_from_then_on(site: Site) -> None:
    site.file(with_tokenizer(2 * MIB), "store.bin")
    site.answers["m.gguf"] = lambda request: request.reply(302, Location="/store.bin?signature=secret")
    assert read_url(site.url()).name == "m.gguf"
    assert [path for path, _ in site.asked].count("/m.gguf") == 1


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("/m.gguf", "more than 5 redirections"),
        ("file:///etc/passwd", "redirects to 'file'"),
        ("ftp://example.com/m.gguf", "redirects to 'ftp'"),
        ("http://h:port/", "m.gguf: the "),
        ("", "to nowhere"),
    ],
)
def test_a_redirection_that_leads_nowhere_is_one_line(where: str, words: str, site: Site) -> None:
    site.answers["m.gguf"] = lambda request: request.reply(302, Location=where)
    assert words in refusal(lambda: read_url(site.url()))
    assert len(site.asked) <= 6


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (404, UsageError, ["no such file", "status 404", "check the address"]),
        (410, UsageError, ["no such file", "status 410"]),
        (401, UsageError, ["status 401", "HF_TOKEN"]),
        (403, UsageError, ["status 403", "HF_TOKEN"]),
        (407, UsageError, ["status 407", "proxy"]),
        (416, DataError, ["empty"]),
        (429, DataError, ["status 429", "wait"]),
        (500, DataError, ["status 500", "try later"]),
        (503, DataError, ["status 503", "try later"]),
        (204, DataError, ["status 204", "no file"]),
        (304, DataError, ["status 304", "no file"]),
    ],
)
def test_a_status_is_one_line_with_what_to_do(status: int, kind: type[NbutilsError], words: list[str], site: Site) -> None:
    site.answers["m.gguf"] = lambda request: request.reply(status)
    line = refusal(lambda: read_url(site.url()), kind)
    for word in words:
        assert word in line


@pytest.mark.parametrize("body", [b"<!DOCTYPE html><title>Log in</title>", b"Please log in"])
@pytest.mark.parametrize(("path", "hint"), [("m.gguf", "open the address in a browser"), ("o/m/blob/main/m.gguf", "write /resolve/ for /blob/")])
def test_a_web_page_in_place_of_the_file_is_recognised(body: bytes, path: str, hint: str, site: Site) -> None:
    site.answers[path] = lambda request: request.reply(200, body, Content_Type="Text/HTML; charset=utf-8")
    line = refusal(lambda: read_url(site.url(path)))
    assert "web page" in line
    assert hint in line


def test_a_page_of_hugging_face_is_not_even_asked_for() -> None:
    line = refusal(lambda: read_url("https://huggingface.co/o/m/blob/main/m.gguf"), UsageError)
    assert "write /resolve/ for /blob/" in line


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("bytes 5-104/200000", "asked for bytes 0-524287"),
        ("bytes 0-99/50", "asked for bytes 0-524287"),
        ("bytes 0-524288/600000", "asked for bytes 0-524287"),
        ("bytes 9-0/100", "asked for bytes 0-524287"),
        ("bytes 0-99999999999999999999999999/*", "has no meaning"),
        ("bytes */100", "has no meaning"),
        ("lines 0-99/100", "has no meaning"),
        ("\x1b[2J", "has no meaning"),
        ("", "has no meaning"),
        ("bytes 0-49/4194", "more bytes than it announces"),
        ("bytes 0-149/4194", "fewer bytes than it announces"),
    ],
)
def test_a_range_that_cannot_be_is_refused(said: str, words: str, site: Site) -> None:
    site.answers["m.gguf"] = lambda request: request.reply(206, with_tokenizer(200)[:100], Content_Range=said)
    assert words in refusal(lambda: read_url(site.url()))


@pytest.mark.parametrize("what", ["its tag", "its size", "ranges or none"])
def test_a_file_that_changes_while_it_is_read_is_noticed(what: str, site: Site) -> None:
    path = site.file(with_tokenizer(2 * MIB))
    site.etags = iter(f'"{i}"' for i in range(9)) if what == "its tag" else None

    def change(request: Any) -> None:
        if len(site.asked) == 2 and what == "its size":
            path.write_bytes(path.read_bytes() + b"\0")
        site.ranges = len(site.asked) == 1 or what != "ranges or none"
        request.serve("m.gguf")

    site.answers["m.gguf"] = change
    line = refusal(lambda: read_url(site.url()))
    assert ("stopped to answer with ranges" if what == "ranges or none" else "changed while it was read") in line


def test_a_compressed_answer_is_refused(site: Site) -> None:
    site.answers["m.gguf"] = lambda request: request.reply(200, bytes(50), Content_Encoding="gzip")
    assert "compresses" in refusal(lambda: read_url(site.url()))


@pytest.mark.parametrize("ranges", [True, False])
def test_a_header_cut_short_on_the_server_is_named(ranges: bool, site: Site) -> None:
    site.file(with_tokenizer(2 * MIB)[: MIB + 5])
    site.ranges = ranges
    assert "cut short" in refusal(lambda: read_url(site.url()))


def test_a_header_without_size_cut_short_is_named(site: Site) -> None:
    site.file(with_tokenizer(2 * MIB)[: MIB + 5])
    site.ranges = site.length = False
    assert "the file ends inside the value of 'tokenizer.ggml.scores'" in refusal(lambda: read_url(site.url()))


def test_a_connection_that_is_cut_is_one_line(site: Site) -> None:
    def cut(request: Any) -> None:
        request.head(200, {"Content-Length": "100000"})
        request.wfile.write(with_tokenizer(90_000)[:1000])
        request.close_connection = True

    site.answers["m.gguf"] = cut
    assert "cut the connection" in refusal(lambda: read_url(site.url()))


def drip_body(request: Any) -> None:
    request.head(200, {"Content-Length": "100000"})
    for byte in with_tokenizer(90_000):
        request.wfile.write(bytes([byte]))
        if request.site.stop.wait(0.02):
            return


def drip_head(request: Any) -> None:
    for byte in b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 5000:
        request.wfile.write(bytes([byte]))
        if request.site.stop.wait(0.02):
            return


def drip_ranges(request: Any) -> None:
    first = int(request.headers["Range"].removeprefix("bytes=").split("-")[0])
    request.site.stop.wait(0.02)
    request.reply(206, with_tokenizer(90_000)[first : first + 1], Content_Range=f"bytes {first}-{first}/94200")


@pytest.mark.parametrize("drip", [drip_body, drip_head, drip_ranges])
def test_a_server_that_drips_ends_at_the_deadline(drip: Callable[[Any], None], site: Site) -> None:
    """Each byte comes in time, so that no timeout ever ends it."""
    site.answers["m.gguf"] = drip
    start = time.perf_counter()
    line = refusal(lambda: read_url(site.url(), deadline_s=0.5))
    assert 0.4 < time.perf_counter() - start < 1.5
    assert "no whole header within 0.5 s" in line


def test_a_server_that_says_nothing_is_given_up(site: Site) -> None:
    site.answers["m.gguf"] = lambda request: request.site.stop.wait(5)
    assert "sent nothing for 0.2 s" in refusal(lambda: read_url(site.url(), read_s=0.2))


def test_no_server_no_host_no_tls_are_one_line_each(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert "connection refused" in refusal(lambda: read_url(f"http://127.0.0.1:{port}/m.gguf"))
    assert "no secure connection (TLS)" in refusal(lambda: read_url(site.url().replace("http:", "https:")))

    def unknown(*arguments: Any, **more: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert "no such host" in refusal(lambda: read_url("http://nowhere.invalid/m.gguf"))


@pytest.mark.parametrize("mishap", ["404", "401", "refused", "cut", "redirects", "defect", "no scheme", "bad port"])
def test_no_line_holds_a_password_or_a_signature(mishap: str, site: Site) -> None:
    url = site.url("m.gguf?sig=hunter3#hunter4", userinfo="me:hunter2@")
    answers: dict[str, Callable[[Any], None]] = {
        "401": lambda request: request.reply(401),
        "cut": lambda request: request.head(200, {"Content-Length": "9"}),
        "redirects": lambda request: request.reply(302, Location="http://me:hunter2@127.0.0.1:1/?sig=hunter3"),
        "defect": lambda request: request.reply(200, bytes(100)),
    }
    if mishap in answers:
        site.answers["m.gguf"] = answers[mishap]
    elif mishap == "refused":
        url = url.replace(str(site.port), "1")
    elif mishap == "no scheme":
        url = url.replace("http", "ftp")
    elif mishap == "bad port":
        url = url.replace(str(site.port), "port")
    with pytest.raises(NbutilsError) as caught:
        read_url(url, read_s=0.5)
    assert "hunter" not in str(caught.value)
    assert "me:" not in str(caught.value)


def test_the_token_goes_to_hugging_face_over_https_and_nowhere_else(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    parse = gguf_header._httpx().URL
    for url, goes in (
        ("https://huggingface.co/o/m/resolve/main/m.gguf", True),
        ("https://HuggingFace.co/m.gguf", True),
        ("https://cdn.huggingface.co/m.gguf", True),
        ("http://huggingface.co/m.gguf", False),
        ("https://huggingface.co.example.com/m.gguf", False),
        ("https://nothuggingface.co/m.gguf", False),
        ("https://huggingface.co@example.com/m.gguf", False),
        ("https://example.com/huggingface.co/m.gguf", False),
        ("https://example.com?huggingface.co", False),
        ("https://cas-bridge.xethub.hf.co/m.gguf", False),
    ):
        assert gguf_header._authorization(parse(url)) == ({"Authorization": "Bearer hf_secret"} if goes else {}), url
    site.file(gguf_bytes())
    read_url(site.url())
    assert all("authorization" not in headers for _, headers in site.asked)
    monkeypatch.setenv("HF_TOKEN", "hf_sec ret")
    line = refusal(lambda: gguf_header._authorization(parse("https://huggingface.co/m")), UsageError)
    assert "ret" not in line.replace("HF_TOKEN", "")


def test_a_name_and_password_in_the_address_are_used(site: Site) -> None:
    site.file(gguf_bytes())
    read_url(site.url(userinfo="me:pass@"))
    assert site.asked[0][1]["authorization"].startswith("Basic ")


@pytest.mark.parametrize("given", [1, 3])
def test_the_parts_of_a_split_file_are_fetched_by_their_addresses(given: int, site: Site) -> None:
    paths = split_file(site.folder)
    header = read_url(site.url(f"{PARTS[given - 1]}?download=true"))
    assert header == read_file(paths[0])
    assert sorted(path for path, _ in site.asked) == [f"/{name}?download=true" for name in PARTS]


def test_a_part_that_the_server_lacks_is_named(site: Site) -> None:
    split_file(site.folder)[1].unlink()
    assert f"{PARTS[1]} is not there; fetch all 3 parts" in refusal(lambda: read_url(site.url(PARTS[0])))


def test_parts_under_addresses_without_numbers_cannot_be_found(site: Site) -> None:
    site.file(lone_part(1, 3))
    assert "its name does not" in refusal(lambda: read_url(site.url()))


def test_the_name_is_the_files_and_never_the_address(site: Site) -> None:
    for path, name in (("a/b/m%20x.gguf?sig=1", "m x.gguf"), ("a/..%2f..%2fm.gguf", "m.gguf"), ("get/?file=m.gguf", "127.0.0.1")):
        site.answers[path.partition("?")[0]] = lambda request: request.reply(200, gguf_bytes())
        assert read_url(site.url(path)).name == name


@pytest.mark.parametrize(
    "url", ["", "m.gguf", "ftp://example.com/m.gguf", "file:///etc/passwd", "http://", "https:///m.gguf", "http://[::1/m", "http://h/\x01"]
)
def test_what_is_no_address_is_a_wrong_call(url: str) -> None:
    refusal(lambda: read_url(url), UsageError)


def test_what_looks_like_an_address() -> None:
    assert is_url("https://example.com/m.gguf")
    assert is_url("HTTP://example.com")
    assert not any(map(is_url, ("m.gguf", "/http://x", "ftp://x", "https:x", "")))


def test_a_proxy_that_is_not_there_and_one_that_makes_no_sense_are_one_line(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.file(gguf_bytes())
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert "HTTPS_PROXY" in refusal(lambda: read_url(site.url()))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert read_url(site.url()).weight_bytes == 4096
    monkeypatch.setenv("HTTP_PROXY", "nonsense://me:hunter2@x")
    line = refusal(lambda: read_url(site.url()), UsageError)
    assert "HTTP_PROXY" in line
    assert "hunter2" not in line


def test_without_httpx_the_error_holds_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("httpx", "httpx2"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match="pip install httpx"):
        read_url("https://example.com/m.gguf")


def test_no_thread_and_no_connection_stays_behind(site: Site) -> None:
    site.file(with_tokenizer(2 * MIB))
    site.ranges = False
    before = threading.active_count()
    for _ in range(5):
        read_url(site.url())
    site.stop.wait(0.2)
    assert threading.active_count() <= before


# ── hollow copies ─────────────────────────────────────────────────────────────────────────────────


def on_disk(path: Path) -> int:
    return getattr(path.stat(), "st_blocks", 0) * 512


@pytest.mark.parametrize("origin", ["file", "address"])
def test_a_hollow_copy_has_the_header_and_the_size_and_takes_no_room(origin: str, site: Site, tmp_path: Path) -> None:
    head = with_tokenizer(100_000, data=0)
    path = site.file(head, size=50 * MIB)
    target = tmp_path / "new folder" / "hollow.gguf"
    header = save_hollow(path if origin == "file" else site.url(), target)
    assert header == read_file(path)
    assert target.stat().st_size == 50 * MIB
    assert on_disk(target) < MIB
    with target.open("rb") as file:
        assert file.read(len(head)) == head
        assert not any(file.read(MIB))
    again = read_file(target)
    assert (again.sha256, again.tensors, again.metadata) == (header.sha256, header.tensors, header.metadata)
    assert [p.name for p in target.parent.iterdir()] == ["hollow.gguf"]


def test_a_path_as_text_will_do(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(gguf_bytes())
    save_hollow(str(tmp_path / "m.gguf"), tmp_path / "h.gguf")
    assert (tmp_path / "h.gguf").read_bytes() == gguf_bytes()


@pytest.mark.parametrize("origin", ["file", "address"])
def test_a_split_file_gives_a_hollow_file_per_part(origin: str, site: Site, tmp_path: Path) -> None:
    paths = split_file(site.folder)
    target = tmp_path / "out" / "h-00001-of-00003.gguf"
    save_hollow(paths[2] if origin == "file" else site.url(PARTS[2]), target)
    copies = sorted(target.parent.iterdir())
    assert [p.name for p in copies] == [f"h-{i:05}-of-00003.gguf" for i in (1, 2, 3)]
    assert [p.stat().st_size for p in copies] == [p.stat().st_size for p in paths]
    assert read_file(target).tensors == read_file(paths[0]).tensors


@pytest.mark.parametrize("name", ["h.gguf", "h-00001-of-00002.gguf", "h-00002-of-00003.gguf"])
def test_the_copy_of_a_split_file_must_be_named_like_its_first_part(name: str, tmp_path: Path) -> None:
    paths = split_file(tmp_path)
    line = refusal(lambda: save_hollow(paths[0], tmp_path / "out" / name), UsageError)
    assert "-00001-of-00003.gguf" in line
    assert not (tmp_path / "out").exists()


def test_the_original_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes(data=5000))
    (tmp_path / "link.gguf").symlink_to(path)
    for target in (path, tmp_path / "x" / ".." / "m.gguf", tmp_path / "link.gguf"):
        (tmp_path / "x").mkdir(exist_ok=True)
        assert "is the original" in refusal(lambda target=target: save_hollow(path, target), UsageError)
    parts = split_file(tmp_path)
    assert "is the original" in refusal(lambda: save_hollow(parts[1], parts[0]), UsageError)
    assert path.read_bytes() == gguf_bytes(data=5000)


def test_a_target_that_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes())
    (tmp_path / "folder").mkdir()
    for target in (tmp_path / "folder", path / "below.gguf", tmp_path / "a\0b", tmp_path / ("n" * 5000)):
        assert "cannot be written" in refusal(lambda target=target: save_hollow(path, target), UsageError)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "m.gguf"]


@pytest.mark.parametrize("size", [2**50 + 1, 2**63 - 1, 10**19 - 1])
def test_a_size_that_no_file_has_makes_no_file(size: int, tmp_path: Path, site: Site) -> None:
    site.answers["m.gguf"] = lambda request: request.reply(206, gguf_bytes()[:1000], Content_Range=f"bytes 0-999/{size}")
    assert f"{size:,} bytes" in refusal(lambda: save_hollow(site.url(), tmp_path / "out" / "h.gguf"))
    assert not (tmp_path / "out").exists()


def test_a_disk_that_fills_up_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    paths = split_file(tmp_path)
    monkeypatch.setattr(Path, "replace", full)
    line = refusal(lambda: save_hollow(paths[0], tmp_path / "out" / "h-00001-of-00003.gguf"), UsageError)
    assert "No space left on device" in line
    assert list((tmp_path / "out").iterdir()) == []


def test_a_bad_part_leaves_no_copy_of_the_good_ones(tmp_path: Path) -> None:
    paths = split_file(tmp_path, part3=b"GGUF")
    refusal(lambda: save_hollow(paths[0], tmp_path / "out" / "h-00001-of-00003.gguf"))
    assert not (tmp_path / "out").exists()
