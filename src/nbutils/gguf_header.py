"""GGUF files: headers in, from a file or a URL, without the weights.

A header says what a model is made of: its metadata, and every tensor's shape, type and place. It is the first few MB of a file of many GB, so that a
model can be judged before it is fetched. Where it comes from is not trusted: nothing is believed before it is checked, no memory is set aside for
what a count merely claims, and everything that is wrong is one line of :class:`~nbutils.errors.DataError` or :class:`~nbutils.errors.UsageError`.
"""

from __future__ import annotations

import hashlib
import importlib
import math
import os
import re
import socket
import ssl
import stat
import struct
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn, Protocol

from nbutils import paths
from nbutils.errors import DataError, MissingExtra, NbutilsError, UsageError

__all__ = ["MAX_HEADER_BYTES", "TENSOR_TYPES", "Header", "Skipped", "TensorInfo", "is_url", "read_bytes", "read_file", "read_url", "save_hollow"]

#: Real headers are 1 to 20 MB, mostly tokenizer. For a split file this holds for all parts together.
MAX_HEADER_BYTES = 128 * 2**20
#: A string or an array longer than this is measured, checked and passed over.
MAX_STRING_BYTES, MAX_ARRAY_ITEMS = 64 * 2**10, 4096

_MAX_TENSORS, _MAX_KEYS, _MAX_PARTS = 65_536, 65_536, 1000
_MAX_KEY_BYTES, _MAX_NAME_BYTES, _MAX_DIMS = 65_535, 512, 4
_MAX_ARRAY_DEPTH, _MAX_INNER_ARRAYS = 2, 65_536
#: What may be kept, in estimated bytes of Python objects, which are up to 18 times larger than the file's own bytes. Real headers need under 2 MB.
_MAX_KEPT_BYTES = 64 * 2**20
#: The least that one more of each takes in a file: a name of one character, and one dimension or the shortest value.
_MIN_TENSOR_BYTES, _MIN_KEY_BYTES, _MIN_INNER_ARRAY_BYTES = 33, 14, 12
_MIN_ALIGNMENT, _MAX_ALIGNMENT = 8, 2**20
#: A pebibyte. Sums stay far from 2**63, and a hollow copy is a size that a file system can have.
_MAX_FILE_BYTES = 2**50

_FILE_CHUNK_BYTES, _FIRST_CHUNK_BYTES, _CHUNK_BYTES = 2**20, 2**19, 2**20
_MAX_REDIRECTS = 5
_AGAIN = "fetch it again"

#: ggml's type id -> name, elements per block, bytes per block. A block is stored whole, so a row is a whole number of blocks.
TENSOR_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
}
_REMOVED_TYPES = {4, 5, 31, 32, 33, 36, 37, 38}

#: GGUF's value type id -> struct code. 8 is a string, 9 an array.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_UINT32, _STRING, _ARRAY = 4, 8, 9
_U64 = struct.Struct("<Q")
_PART_NAME = re.compile(r"(?P<stem>.*)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf", re.DOTALL)
_PART_END = re.compile(r"-[0-9]{5}-of-[0-9]{5}\.gguf\Z")


@dataclass(frozen=True, slots=True)
class Skipped:
    """A metadata value that was passed over: ``length`` items of an array, or bytes of a string."""

    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """One tensor. ``shape`` is in ggml's order: ``shape[0]`` is the row length. ``offset`` is in bytes from where the data of its part start."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    n_bytes: int
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a GGUF file says about itself; for a split file, all its parts together.

    ``name`` is a file name, never a path or a URL. ``metadata`` holds scalars, strings of up to 64 KiB, and arrays of up to 4096 numbers or truth
    values as lists; longer ones, arrays of strings and arrays of arrays are :class:`Skipped`. ``data_offset`` is the size of the (first) header in
    bytes with its padding, ``sha256`` the digest of exactly these bytes, ``file_bytes`` the size of all parts.
    """

    name: str
    metadata: dict[str, Any]
    tensors: tuple[TensorInfo, ...]
    data_offset: int
    file_bytes: int
    n_parts: int = 1
    sha256: str

    @property
    def weight_bytes(self) -> int:
        """All tensors, without padding."""
        return sum(tensor.n_bytes for tensor in self.tensors)


# ── in and out ────────────────────────────────────────────────────────────────────────────────────


def is_url(text: str) -> bool:
    """Whether this is meant as an address rather than as a file."""
    return text.lower().startswith(("http://", "https://"))


def read_file(path: Path) -> Header:
    """Read a file's header; of a split file, every part's, whichever part is named.

    ``UsageError`` if there is no such regular file or it cannot be opened, ``DataError`` for what is wrong inside.
    """
    return _joined(_read_parts(_FilePlace(Path(path))))


def read_url(url: str, *, connect_s: float = 10.0, read_s: float = 20.0, deadline_s: float = 120.0) -> Header:
    """Read the header of a file on a server, of which at most the header and 1 MiB are fetched; of a split file, every part's.

    Times are in seconds: to connect, between two pieces of an answer, and for everything together. Proxies come from the environment. The token in
    ``HF_TOKEN`` goes to huggingface.co, over https, and nowhere else.

    ``UsageError`` for what is no address, is not there, or may not be read; ``DataError`` for servers and files that misbehave; ``MissingExtra``
    without httpx.
    """
    with _Web(connect_s, read_s, deadline_s) as web:
        return _joined(_read_parts(_UrlPlace(web, web.parse(url))))


def read_bytes(data: bytes, name: str = "model.gguf") -> Header:
    """Read the header of a whole file in memory. One part only: a part of a split file is a ``DataError``."""
    return _joined(_read_parts(_BytesPlace(data, name)))


def save_hollow(source: Path | str, target: Path, *, connect_s: float = 10.0, read_s: float = 20.0, deadline_s: float = 120.0) -> Header:
    """Copy the header of a file or URL, followed by a hole as long as the weights; return the header.

    The copy has the original's apparent size and takes some MB of disk where the file system knows holes. Of a split file every part is copied,
    beside ``target``, which must then be named like the first of as many parts (``x-00001-of-00003.gguf``). Nothing appears before all is written.

    ``UsageError`` if the target is the source or cannot be written; else as :func:`read_file` and :func:`read_url`.
    """
    with ExitStack() as stack:
        place: _Place
        if isinstance(source, str) and is_url(source):
            web = stack.enter_context(_Web(connect_s, read_s, deadline_s))
            place = _UrlPlace(web, web.parse(source))
        else:
            place = _FilePlace(Path(source))
        parts = _read_parts(place, keep=True)
    targets = [target]
    if len(parts) > 1:
        named = _PART_NAME.fullmatch(target.name)
        if not named or (int(named["number"]), int(named["count"])) != (1, len(parts)):
            like = _clean(_part_name(named["stem"] if named else target.name.removesuffix(".gguf"), 1, len(parts)))
            raise UsageError(f"{_clean(parts[0].name)} has {len(parts)} parts; name the copy like the first of as many, as {like}")
        targets = [target.with_name(_part_name(named["stem"], number, len(parts))) for number in range(1, len(parts) + 1)]
    header = _joined(parts)
    try:
        if isinstance(place, _FilePlace):
            originals = [place.path.with_name(part.name) for part in parts]
            for original, copy in ((o, c) for o in originals for c in targets):
                if copy.exists() and original.samefile(copy):
                    raise UsageError(f"{_clean(copy)} is the original: a hollow copy would replace its weights; name another file")
        with ExitStack() as stack:  # undone from the end: the first part, by which the others are found, appears last
            for part, copy in zip(parts, targets, strict=True):
                temporary = stack.enter_context(paths.atomic_path(copy))
                temporary.write_bytes(part.raw)
                paths.extend_with_hole(temporary, part.size)
    except (OSError, ValueError, OverflowError) as error:
        raise UsageError(f"{_clean(target)} cannot be written: {_reason(error)}; name another file or another disk") from None
    return header


# ── bytes, in order, and no further than the header ───────────────────────────────────────────────


class _Source:
    """A file's bytes from the front, checked against what there is before they are taken. Subclasses say where they come from.

    ``size`` is the file's in bytes, None if unknown. No more than ``limit`` bytes are given out. Everything that has been passed is hashed, and kept
    in ``raw`` if so asked.
    """

    def __init__(self, name: str, size: int | None, limit: int, keep: bool) -> None:
        self.name, self.size, self.limit = name, size, limit
        self._buffer, self._at, self._base = b"", 0, 0
        self._digest = hashlib.sha256()
        self._raw = bytearray() if keep else None

    def _more(self) -> bytes:
        """The bytes that come next, some or many; none at the end."""
        raise NotImplementedError

    @property
    def position(self) -> int:
        return self._base + self._at

    @property
    def left(self) -> int:
        """How many bytes may still come."""
        return min(self.limit, self.limit if self.size is None else self.size) - self.position

    def fail(self, what: str, way_out: str, at: int | None = None) -> NoReturn:
        raise DataError(f"{_clean(self.name)}: byte {self.position if at is None else at:,}: {what}; {way_out}")

    def need(self, n: int, what: str) -> None:
        """Refuse ``what`` unless ``n`` more bytes can follow; ``what`` begins the sentence."""
        if n <= self.left:
            return
        if self.size is not None and n > self.size - self.position:
            self.fail(f"{what} needs {n:,} bytes and the file ends after {self.size - self.position:,}: cut short or damaged", _AGAIN)
        limit = f"{MAX_HEADER_BYTES // 2**20} MiB"
        self.fail(f"{what} needs {n:,} bytes, which makes the header longer than {limit}, as no real one is", _AGAIN)

    def _forget(self) -> None:
        passed = self._buffer[: self._at]
        self._digest.update(passed)
        if self._raw is not None:
            self._raw += passed
        self._buffer, self._base, self._at = self._buffer[self._at :], self.position, 0

    def _fill(self, n: int) -> bool:
        """Have ``n`` bytes at hand, if there are as many."""
        have = len(self._buffer) - self._at
        if have >= n:
            return True
        self._forget()
        pieces = [self._buffer]
        while have < n:
            piece = self._more()
            if not piece:
                break
            pieces.append(piece)
            have += len(piece)
        self._buffer = b"".join(pieces)
        return have >= n

    def peek(self, n: int) -> bytes:
        """Up to ``n`` bytes that come next, without passing them."""
        self._fill(n)
        return self._buffer[self._at : self._at + n]

    def read(self, n: int, what: str) -> bytes:
        """Exactly ``n`` bytes, ``n`` being small: they are held at once."""
        self.need(n, what)
        if not self._fill(n):
            self.fail(f"the file ends inside {what}: cut short", _AGAIN, at=self._base + len(self._buffer))
        self._at += n
        return self._buffer[self._at - n : self._at]

    def skip(self, n: int, what: str) -> None:
        """Pass ``n`` bytes, however many."""
        self.need(n, what)
        while n:
            if not self._fill(1):
                self.fail(f"the file ends inside {what}: cut short", _AGAIN)
            step = min(n, len(self._buffer) - self._at)
            self._at += step
            n -= step

    def unpack(self, code: str, what: str) -> Any:
        """One number."""
        return struct.unpack(f"<{code}", self.read(struct.calcsize(f"<{code}"), what))[0]

    def length(self, what: str) -> int:
        """A string's length in bytes, which the file can hold."""
        n: int = self.unpack("Q", what)
        self.need(n, what)
        return n

    def skip_strings(self, count: int, what: str) -> None:
        """Pass ``count`` strings, checking every length. A tokenizer has half a million: they are walked, not made."""
        self.need(count * _U64.size, what)
        unpack = _U64.unpack_from
        while count:
            buffer, at, end = self._buffer, self._at, len(self._buffer)
            while count and at + 8 <= end:
                after = at + 8 + unpack(buffer, at)[0]
                if after > end:
                    break
                at = after
                count -= 1
            self._at = at
            if count:  # the one that reaches over the edge of the buffer
                self.skip(self.length(what), what)
                count -= 1

    def finish(self) -> tuple[str, bytes]:
        """The digest of all that was passed, and these bytes if they were to be kept."""
        self._forget()
        return self._digest.hexdigest(), bytes(self._raw or b"")

    def odd(self, first: bytes) -> str | None:
        """Why bytes that do not begin a GGUF file may have come, where the source knows better than the bytes."""
        return None


class _BytesSource(_Source):
    def __init__(self, data: bytes, name: str, limit: int, keep: bool) -> None:
        super().__init__(name, len(data), limit, keep)
        self._rest = data

    def _more(self) -> bytes:
        rest, self._rest = self._rest, b""
        return rest


class _FileSource(_Source):
    def __init__(self, file: IO[bytes], name: str, size: int, limit: int, keep: bool) -> None:
        super().__init__(name, size, limit, keep)
        self._file = file

    def _more(self) -> bytes:
        try:
            return self._file.read(_FILE_CHUNK_BYTES)
        except OSError as error:
            self.fail(f"cannot be read: {_reason(error)}", "copy it to another disk, or fetch it again")


# ── the format ────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    name: str
    metadata: dict[str, Any]
    tensors: tuple[TensorInfo, ...]
    data_offset: int
    size: int
    sha256: str
    raw: bytes


class _Reader:
    """Goes once through one header, and knows how much it has kept."""

    def __init__(self, source: _Source) -> None:
        self.source = source
        self.kept_bytes = 0
        self.n_inner_arrays = 0

    def part(self) -> _Part:
        n_tensors, n_keys = self._start()
        metadata, alignment = self._metadata(n_keys)
        tensors = self._tensors(n_tensors, alignment)
        source = self.source
        padding = -source.position % alignment
        # llama.cpp pads to where data start; a part without tensors has none, and may end here.
        source.skip(padding if tensors else max(0, min(padding, source.left)), "the padding before the data")
        data_offset = source.position
        end = data_offset + self._extent(tensors)
        if source.size is not None and end > source.size:
            gap = end - source.size
            raise DataError(f"{_clean(source.name)}: cut short: {source.size:,} of at least {end:,} bytes, {gap:,} are missing; {_AGAIN}")
        if source.size is not None and source.size > _MAX_FILE_BYTES:
            raise DataError(f"{_clean(source.name)}: a size of {source.size:,} bytes, as no file has; look for another copy")
        sha256, raw = source.finish()
        return _Part(
            name=source.name,
            metadata=metadata,
            tensors=tuple(tensors),
            data_offset=data_offset,
            size=end if source.size is None else source.size,
            sha256=sha256,
            raw=raw,
        )

    def _start(self) -> tuple[int, int]:
        source = self.source
        first = source.peek(512)
        if first[:4] != b"GGUF":
            reason = source.odd(first) or _what_else(first)
            raise DataError(f"{_clean(source.name)}: byte 0: no GGUF file: {reason}")
        source.read(4, "the magic")
        version: int = source.unpack("I", "the version")
        if version & 0xFFFF == 0 and version:
            source.fail("a big-endian file", "convert the model again for a little-endian machine", at=4)
        if version not in (2, 3):
            way_out = "convert the model again with a current llama.cpp" if version < 2 else "update nbutils, or fetch a file of version 3"
            source.fail(f"GGUF version {version}, where 2 and 3 can be read", way_out, at=4)
        n_tensors: int = source.unpack("Q", "the number of tensors")
        n_keys: int = source.unpack("Q", "the number of metadata keys")
        for count, most, least_bytes, what, at in (
            (n_tensors, _MAX_TENSORS, _MIN_TENSOR_BYTES, "tensors", 8),
            (n_keys, _MAX_KEYS, _MIN_KEY_BYTES, "metadata keys", 16),
        ):
            if count > most:
                source.fail(f"{count:,} {what}, where {most:,} are the most", f"damaged: {_AGAIN}", at=at)
            source.need(count * least_bytes, f"a header of {count:,} {what}")
        return n_tensors, n_keys

    def _keep(self, n: int) -> None:
        self.kept_bytes += n
        if self.kept_bytes > _MAX_KEPT_BYTES:
            self.source.fail("more metadata than any real model has", f"damaged: {_AGAIN}")

    def _text(self, what: str, most: int) -> str:
        """A key or a name: short, of UTF-8, not empty."""
        source, at = self.source, self.source.position
        n: int = source.unpack("Q", what)
        if not 0 < n <= most:
            source.fail(f"{what} has {n:,} bytes, where 1 to {most:,} are right", f"damaged: {_AGAIN}", at=at)
        self._keep(100 + 4 * n)
        try:
            return source.read(n, what).decode("utf-8")
        except UnicodeDecodeError:
            source.fail(f"{what} is not UTF-8", f"damaged: {_AGAIN}", at=at)

    def _metadata(self, n_keys: int) -> tuple[dict[str, Any], int]:
        source = self.source
        metadata: dict[str, Any] = {}
        alignment = 32
        for i in range(n_keys):
            at = source.position
            key = self._text(f"metadata key {i + 1} of {n_keys}", _MAX_KEY_BYTES)
            if key in metadata:
                source.fail(f"the key {_quoted(key)} is there twice", "ask its maker for a file with one", at=at)
            what = f"the value of {_quoted(key)}"
            at, kind = source.position, source.unpack("I", what)
            metadata[key] = value = self._value(kind, what, at)
            if key == "general.alignment":
                if kind != _UINT32 or not _MIN_ALIGNMENT <= value <= _MAX_ALIGNMENT or value & (value - 1):
                    said = value if kind in _SCALARS else f"of type {kind}"
                    source.fail(f"{what} is {said}, not a power of two from 8 to 2**20 as u32", f"damaged: {_AGAIN}", at=at)
                alignment = value
        return metadata, alignment

    def _value(self, kind: int, what: str, at: int) -> Any:
        source = self.source
        if code := _SCALARS.get(kind):
            self._keep(32)
            return source.unpack(code, what)
        if kind == _STRING:
            n = source.length(what)
            if n > MAX_STRING_BYTES:
                source.skip(n, what)
                return Skipped(n)
            self._keep(100 + 4 * n)
            return source.read(n, what).decode("utf-8", errors="replace")
        if kind == _ARRAY:
            return self._array(what, depth=1)
        source.fail(f"{what} has type {kind}, which GGUF does not define", f"damaged: {_AGAIN}", at=at)

    def _array(self, what: str, depth: int) -> Any:
        """Numbers as a list if they are few, anything else by its length."""
        source, at = self.source, self.source.position
        kind: int = source.unpack("I", what)
        count: int = source.unpack("Q", what)
        if code := _SCALARS.get(kind):
            n = count * struct.calcsize(f"<{code}")
            if count > MAX_ARRAY_ITEMS or depth > 1:
                source.skip(n, what)
                return Skipped(count)
            self._keep(100 + 40 * count)
            return list(struct.unpack(f"<{count}{code}", source.read(n, what)))
        if kind == _STRING:
            source.skip_strings(count, what)
            return Skipped(count)
        if kind != _ARRAY:
            source.fail(f"{what} is an array of type {kind}, which GGUF does not define", f"damaged: {_AGAIN}", at=at)
        if depth >= _MAX_ARRAY_DEPTH:
            source.fail(
                f"{what} has arrays nested deeper than {_MAX_ARRAY_DEPTH}", "llama.cpp reads none of these: ask its maker for a file without", at=at
            )
        source.need(count * _MIN_INNER_ARRAY_BYTES, what)
        self.n_inner_arrays += count
        if self.n_inner_arrays > _MAX_INNER_ARRAYS:
            source.fail(f"{what} has {count:,} arrays inside", f"llama.cpp reads none of these: {_AGAIN}", at=at)
        for _ in range(count):
            self._array(what, depth + 1)
        return Skipped(count)

    def _tensors(self, n_tensors: int, alignment: int) -> list[TensorInfo]:
        source = self.source
        tensors: list[TensorInfo] = []
        names: set[str] = set()
        for i in range(n_tensors):
            at = source.position
            name = self._text(f"the name of tensor {i + 1} of {n_tensors}", _MAX_NAME_BYTES)
            if name in names:
                source.fail(f"two tensors are named {_quoted(name)}", "ask its maker for a file with one", at=at)
            names.add(name)
            tensors.append(self._tensor(name, alignment, at))
        return tensors

    def _tensor(self, name: str, alignment: int, at: int) -> TensorInfo:
        source = self.source
        what = f"tensor {_quoted(name)}"
        self._keep(400)
        n_dims: int = source.unpack("I", what)
        if not 1 <= n_dims <= _MAX_DIMS:
            source.fail(f"{what} has {n_dims:,} dimensions, where 1 to {_MAX_DIMS} are right", f"damaged: {_AGAIN}", at=at)
        shape: tuple[int, ...] = struct.unpack(f"<{n_dims}Q", source.read(8 * n_dims, what))
        type_id: int = source.unpack("I", what)
        offset: int = source.unpack("Q", what)
        if 0 in shape or math.prod(shape) >= 2**63:
            source.fail(f"{what} has the shape {shape}, which no tensor has", f"damaged: {_AGAIN}", at=at)
        if type_id not in TENSOR_TYPES:
            why = "which ggml has given up" if type_id in _REMOVED_TYPES else "which is unknown here"
            way_out = "fetch or make another quantisation" if type_id in _REMOVED_TYPES else f"update nbutils, or {_AGAIN}"
            source.fail(f"{what} has the type id {type_id}, {why}", way_out, at=at)
        type_name, block_elements, block_bytes = TENSOR_TYPES[type_id]
        if shape[0] % block_elements:
            source.fail(
                f"{what} has rows of {shape[0]:,}, not a multiple of the {block_elements} in a block of {type_name}", f"damaged: {_AGAIN}", at=at
            )
        n_bytes = math.prod(shape) // block_elements * block_bytes
        if n_bytes >= 2**63:
            source.fail(f"{what} would take {n_bytes:,} bytes", f"damaged: {_AGAIN}", at=at)
        if offset % alignment:
            source.fail(f"{what} lies at {offset:,}, not a multiple of the alignment of {alignment}", f"damaged: {_AGAIN}", at=at)
        return TensorInfo(name=name, shape=shape, type_name=type_name, n_bytes=n_bytes, offset=offset)

    def _extent(self, tensors: list[TensorInfo]) -> int:
        """Where the last tensor ends, in bytes from where data start; no two may share a byte."""
        end, before = 0, ""
        for tensor in sorted(tensors, key=lambda t: t.offset):
            if tensor.offset < end:
                said = f"tensors {_quoted(before)} and {_quoted(tensor.name)} overlap at {tensor.offset:,} in the data"
                self.source.fail(said, f"damaged: {_AGAIN}")
            end, before = tensor.offset + tensor.n_bytes, tensor.name
        if end > _MAX_FILE_BYTES:
            self.source.fail(f"tensor {_quoted(before)} would end at {end:,}, in a file larger than any", f"damaged: {_AGAIN}")
        return end


def _what_else(first: bytes) -> str:
    """What a file that is no GGUF file looks like by its first bytes, and what to do then."""
    text = first.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    json_length = int.from_bytes(first[:8], "little") if first[8:9] == b"{" else 2**64
    for is_one, looks, way_out in (
        (not first, "is empty", _AGAIN),
        (b"GGUF".startswith(first), "ends within its first word", _AGAIN),
        (text.startswith(b"version https://git-lfs.github.com"), "is a Git LFS pointer, not the file", "run 'git lfs pull' in its folder"),
        (text.startswith((b"<!doctype html", b"<html")), "is a web page", "fetch the file itself, not the page about it"),
        (text.startswith(b"<"), "looks like XML, as servers send with an error", "open it to see what the server said, then fetch again"),
        (json_length < 2**32, "looks like safetensors", "convert it with llama.cpp's convert_hf_to_gguf.py, or fetch a .gguf file"),
        (text.startswith((b"{", b"[")), "looks like JSON, as servers send with an error", "open it to see what the server said, then fetch again"),
        (first.startswith(b"PK"), "looks like a zip archive or a PyTorch checkpoint", "unpack or convert it, or fetch a .gguf file"),
        (first.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd")), "is compressed", "unpack it first"),
        (first.startswith((b"lmgg", b"fmgg", b"tjgg")), "is a llama.cpp file from before GGUF", "fetch the model as .gguf"),
        (first.startswith(b"FUGG"), "is a big-endian file", "convert the model again for a little-endian machine"),
    ):
        if is_one:
            return f"it {looks} (begins with {first[:16]!r}); {way_out}"
    return f"it begins with {first[:16]!r}, not with b'GGUF'; name a .gguf file, or {_AGAIN}"


# ── where a file lies, and its siblings ───────────────────────────────────────────────────────────


class _MissingError(Exception):
    """There is no such file; the message is a whole line. A mistake in the call for the file named, a mistake in the data for its siblings."""


class _Place(Protocol):
    @property
    def name(self) -> str:
        """The file's name, without a folder."""

    def open(self, limit: int, keep: bool) -> AbstractContextManager[_Source]:
        """The file's bytes, no further than ``limit``."""

    def sibling(self, number: int, count: int) -> _Place:
        """Part ``number`` (from 1) of ``count``; the own name is known to be a part's."""


@dataclass(frozen=True, slots=True)
class _BytesPlace:
    data: bytes
    name: str

    @contextmanager
    def open(self, limit: int, keep: bool) -> Iterator[_Source]:
        yield _BytesSource(self.data, self.name, limit, keep)

    def sibling(self, number: int, count: int) -> _Place:
        name = _sibling_name(self.name, number, count)
        raise DataError(f"{_clean(self.name)} is one of {count} parts, and bytes have no siblings such as {_clean(name)}; read the file")


@dataclass(frozen=True, slots=True)
class _FilePlace:
    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @contextmanager
    def open(self, limit: int, keep: bool) -> Iterator[_Source]:
        shown = _clean(self.path)
        try:
            # Looked at before it is opened, because opening a pipe waits and opening a device may do something; and again after.
            _regular(shown, self.path.stat().st_mode)
            flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
            file = os.fdopen(os.open(self.path, flags), "rb", buffering=0)
        except (FileNotFoundError, NotADirectoryError):
            raise _MissingError(f"no file {shown}; name a .gguf file, or an address that begins with https://") from None
        except (OSError, ValueError) as error:
            raise UsageError(f"{shown} cannot be opened: {_reason(error)}; name a .gguf file that can be read") from None
        with file:
            status = os.fstat(file.fileno())
            _regular(shown, status.st_mode)
            yield _FileSource(file, self.name, status.st_size, limit, keep)

    def sibling(self, number: int, count: int) -> _Place:
        return _FilePlace(self.path.with_name(_sibling_name(self.name, number, count)))


def _regular(shown: str, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise UsageError(f"{shown} is a folder; name a .gguf file in it")
    if not stat.S_ISREG(mode):
        raise UsageError(f"{shown} is a pipe or a device; name a .gguf file")


def _part_name(stem: str, number: int, count: int) -> str:
    return f"{stem}-{number:05}-of-{count:05}.gguf"


def _sibling_name(name: str, number: int, count: int) -> str:
    return _PART_END.sub(_part_name("", number, count), name)


def _read_part(place: _Place, limit: int, keep: bool) -> _Part:
    with place.open(limit, keep) as source:
        return _Reader(source).part()


def _split_key(part: _Part, key: str, default: int | None, most: int) -> int:
    value = part.metadata.get(key, default)
    if type(value) is not int or not 0 <= value <= most:
        raise DataError(
            f"{_clean(part.name)}: the key {key!r} is {_clean(repr(value), 80)}, where a number from 0 to {most} is right; damaged: {_AGAIN}"
        )
    return value


def _read_parts(place: _Place, keep: bool = False) -> list[_Part]:
    """One part, or all of a split file in order, each checked against its name."""
    try:
        given = _read_part(place, MAX_HEADER_BYTES, keep)
    except _MissingError as error:
        raise UsageError(str(error)) from None
    count = _split_key(given, "split.count", 0, _MAX_PARTS)
    if count <= 1:
        return [given]
    number = _split_key(given, "split.no", None, count - 1) + 1
    shown, named = _clean(place.name), _PART_NAME.fullmatch(place.name)
    if not named or (int(named["number"]), int(named["count"])) != (number, count):
        like = _clean(_part_name(named["stem"] if named else place.name.removesuffix(".gguf"), number, count))
        raise DataError(f"{shown} says that it is part {number} of {count}, its name does not; name the parts as they were, like {like}")
    parts: list[_Part] = []
    left, n_tensors = MAX_HEADER_BYTES, 0
    for i in range(1, count + 1):
        if i == number:
            part = given
        else:
            sibling = place.sibling(i, count)
            try:
                part = _read_part(sibling, left, keep)
            except _MissingError:
                raise DataError(f"{shown} is part {number} of {count}, and {_clean(sibling.name)} is not there; fetch all {count} parts") from None
            says = (_split_key(part, "split.no", None, _MAX_PARTS) + 1, _split_key(part, "split.count", 0, _MAX_PARTS))
            if says != (i, count):
                raise DataError(f"{_clean(part.name)} says that it is part {says[0]} of {says[1]}, not {i} of {count}; fetch all parts again")
            if i > 1:
                part.metadata.clear()  # the first part's is the model's; the others' would only take memory
        parts.append(part)
        left, n_tensors = left - part.data_offset, n_tensors + len(part.tensors)
        if left < 0 or n_tensors > _MAX_TENSORS:
            raise DataError(f"{shown}: its {count} parts have longer headers together than any real model; damaged: {_AGAIN}")
    return parts


def _joined(parts: list[_Part]) -> Header:
    first = parts[0]
    shown = _clean(first.name)
    tensors = tuple(tensor for part in parts for tensor in part.tensors)
    if not tensors:
        raise DataError(f"{shown} holds no tensors, only a vocabulary or metadata; name the file with the weights")
    if len(parts) > 1:
        seen: set[str] = set()
        for tensor in tensors:
            if tensor.name in seen:
                raise DataError(f"{shown}: two parts have a tensor {_quoted(tensor.name)}; fetch all {len(parts)} parts again, from one place")
            seen.add(tensor.name)
        promised = first.metadata.get("split.tensors.count", len(tensors))
        if promised != len(tensors):
            said = f"promises {_clean(repr(promised), 80)} tensors in its key 'split.tensors.count', the {len(parts)} parts hold {len(tensors)}"
            raise DataError(f"{shown} {said}; fetch all parts again, from one place")
    return Header(
        name=_clean(first.name, 255),
        metadata=first.metadata,
        tensors=tensors,
        data_offset=first.data_offset,
        file_bytes=sum(part.size for part in parts),
        n_parts=len(parts),
        sha256=first.sha256,
    )


# ── HTTP ──────────────────────────────────────────────────────────────────────────────────────────


class _Web:
    """A client for one reading, however many parts and requests it takes, that ends at the deadline whatever the servers do."""

    def __init__(self, connect_s: float, read_s: float, deadline_s: float) -> None:
        self.httpx = _httpx()
        self.connect_s, self.read_s, self.deadline_s = connect_s, read_s, deadline_s
        self.end = time.monotonic() + deadline_s
        self._sockets: list[Any] = []
        # A timeout counts from byte to byte, and a server that sends one now and then never meets it. At the deadline the line is cut.
        self._timer = threading.Timer(deadline_s, self._cut)
        self._timer.daemon = True
        try:
            self._client = self.httpx.Client(follow_redirects=False)
        except (ValueError, OSError, ImportError, self.httpx.InvalidURL):
            raise UsageError("the proxy or certificate settings of the environment cannot be used; mend or unset HTTP_PROXY and its kin") from None
        self.errors: tuple[type[Exception], ...] = (self.httpx.HTTPError, self.httpx.InvalidURL, OSError, ValueError, RuntimeError)

    def __enter__(self) -> _Web:
        self._timer.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._timer.cancel()
        self._client.close()

    def parse(self, url: str) -> Any:
        """The address, taken apart by what will connect to it, so that no two readings of it can differ."""
        shown = _redacted(url)
        if not is_url(url):
            raise UsageError(f"{shown} is no address; one begins with http:// or https://")
        try:
            parsed = self.httpx.URL(url)
        except (self.httpx.InvalidURL, ValueError):
            raise UsageError(f"{shown} is no address that can be understood; copy it again") from None
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise UsageError(f"{shown} names no host; one is written like https://host/file.gguf")
        if _is_hugging_face(parsed.host) and "/blob/" in parsed.path:
            raise UsageError(f"{_shown(parsed)} is the page about a file; write /resolve/ for /blob/ to get the file")
        return parsed

    def late(self, url: Any) -> NoReturn:
        raise DataError(f"{_shown(url)}: no whole header within {self.deadline_s:g} s; try later, or fetch the file by other means and name it")

    def check(self, url: Any) -> None:
        if time.monotonic() >= self.end:
            self.late(url)

    def _cut(self) -> None:
        for line in self._sockets:
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)

    def _trace(self, event: str, info: dict[str, Any]) -> None:
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            line = info["return_value"].get_extra_info("socket")
            if line is not None:
                self._sockets.append(line)
                with suppress(OSError):  # what a server can push at us unasked
                    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**18)
            if time.monotonic() >= self.end:  # connected after the cut
                self._cut()

    @contextmanager
    def told(self, url: Any) -> Iterator[None]:
        """Turn what goes wrong on the way into one line. The library's own words are left out: they may hold the address, or a token."""
        try:
            yield
        except NbutilsError:
            raise
        except self.errors as error:
            self.check(url)
            raise DataError(f"{_shown(url)}: {_trouble(error, self.httpx, self.connect_s, self.read_s)}") from None

    @contextmanager
    def get(self, url: Any, start: int, stop: int) -> Iterator[Any]:
        """The answer to a request for bytes ``start`` to ``stop``, after redirections, as something to be read piece by piece."""
        origin = url
        for _ in range(_MAX_REDIRECTS + 1):
            self.check(origin)
            left = max(0.001, self.end - time.monotonic())
            timeout = self.httpx.Timeout(min(self.read_s, left), connect=min(self.connect_s, left))
            headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"} | _authorization(url)
            with ExitStack() as stack:
                with self.told(url):
                    request = self._client.stream("GET", url, headers=headers, timeout=timeout, extensions={"trace": self._trace})
                    response = stack.enter_context(request)
                if response.status_code not in (301, 302, 303, 307, 308):
                    yield response
                    return
                where = response.headers.get("location")
                if not where:
                    raise DataError(f"{_shown(url)}: the server redirects ({response.status_code}) to nowhere; look for another address")
                with self.told(url):
                    url = url.join(where)
                if url.scheme not in ("http", "https") or not url.host:
                    raise DataError(f"{_shown(origin)}: the server redirects to {url.scheme[:20]!r}, not to a web address; look for another address")
        raise DataError(f"{_shown(origin)}: more than {_MAX_REDIRECTS} redirections; look for another address")


@dataclass(frozen=True, slots=True)
class _UrlPlace:
    web: _Web
    url: Any

    @property
    def name(self) -> str:
        last = re.split(r"[/\\]", self.url.path)[-1]  # %2F and %5C are no part of a file's name either
        return last or str(self.url.host)

    @contextmanager
    def open(self, limit: int, keep: bool) -> Iterator[_Source]:
        source = _UrlSource(self.web, self.url, self.name, limit, keep)
        with closing(source.pieces):
            source.begin()
            yield source

    def sibling(self, number: int, count: int) -> _Place:
        path, mark, query = self.url.raw_path.decode("ascii").partition("?")
        if not _PART_END.search(path):
            raise DataError(f"{_shown(self.url)} is one of {count} parts whose addresses cannot be guessed; fetch them all and name the first")
        raw_path = _sibling_name(path, number, count) + mark + query
        return _UrlPlace(self.web, self.url.copy_with(raw_path=raw_path.encode("ascii")))


class _UrlSource(_Source):
    def __init__(self, web: _Web, url: Any, name: str, limit: int, keep: bool) -> None:
        super().__init__(name, None, limit, keep)
        self.web, self.url = web, url
        self.pieces = self._pieces()
        self._etag: str | None = None
        self._media_type = ""

    def _more(self) -> bytes:
        return next(self.pieces, b"")

    def begin(self) -> None:
        """Send the first request: only its answer tells the size."""
        self._buffer = self._more()

    def odd(self, first: bytes) -> str | None:
        page = self._media_type == "text/html" or first.lstrip().lower().startswith((b"<!doctype html", b"<html"))
        if not page:
            return None
        if "/blob/" in self.url.path:
            return "the server sent a web page; write /resolve/ for /blob/ in the address to get the file"
        return "the server sent a web page; open the address in a browser to see what it says, and use the address of the file itself"

    def _pieces(self) -> Generator[bytes, None, None]:
        """The file's bytes from the front: by ranges, or, where the server knows none, as one answer that is left off."""
        url, start = self.url, 0
        while self.size is None or start < self.size:
            stop = start + (_CHUNK_BYTES if start else _FIRST_CHUNK_BYTES)
            if self.size is not None:
                stop = min(stop, self.size)
            with self.web.get(url, start, stop) as response:
                url = response.url  # where redirections led: no need to ask for the way again
                if response.status_code == 416 and start:
                    return
                n = self._look_at(response, url, start, stop)
                got = 0
                with closing(self._body(response, url)) as body:
                    for piece in body:
                        got += len(piece)
                        if n is not None and got > n:
                            raise DataError(f"{_shown(url)}: the server sends more bytes than it announces; look for another address")
                        yield piece
                if n is None or response.status_code == 200:
                    return
                if got < n:
                    raise DataError(f"{_shown(url)}: the server sends fewer bytes than it announces; try again")
                start += n

    def _body(self, response: Any, url: Any) -> Generator[bytes, None, None]:
        pieces = response.iter_raw()
        while True:
            self.web.check(url)
            with self.web.told(url):
                piece = next(pieces, b"")
            if not piece:
                self.web.check(url)  # the line may have been cut rather than ended
                return
            yield piece

    def _look_at(self, response: Any, url: Any, start: int, stop: int) -> int | None:
        """Check an answer's head; return how many bytes it announces, None if it does not say."""
        headers, status, shown = response.headers, response.status_code, _shown(url)
        if status not in (200, 206):
            _refuse(status, shown)
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise DataError(f"{shown}: the server compresses the file although asked not to; fetch it by other means and name it")
        if status == 200:
            if start:
                raise DataError(f"{shown}: the server has stopped to answer with ranges; try again")
            self._media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
            said = headers.get("content-length", "")
            self.size = int(said) if re.fullmatch(r"[0-9]{1,19}", said) else None
            return self.size
        said = headers.get("content-range", "")
        found = re.fullmatch(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)", said.strip())
        if not found:
            raise DataError(f"{shown}: the server answers with the range {said[:80]!r}, which has no meaning; look for another address")
        first, last, total = int(found[1]), int(found[2]), None if found[3] == "*" else int(found[3])
        if first != start or not start <= last < stop or (total is not None and last >= total):
            raise DataError(f"{shown}: asked for bytes {start}-{stop - 1}, the server answers with {said[:80]!r}; look for another address")
        etag = headers.get("etag")
        if start == 0:
            self.size, self._etag = total, etag
            self._media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        elif (total or self.size) != (self.size or total) or (etag and self._etag and etag != self._etag):
            raise DataError(f"{shown}: the file changed while it was read; try again")
        return last - first + 1


def _refuse(status: int, shown: str) -> NoReturn:
    if status in (404, 410):
        raise _MissingError(f"{shown}: the server has no such file (status {status}); check the address")
    if status in (401, 403):
        raise UsageError(
            f"{shown}: the server wants a permission (status {status}); for a gated model accept its terms and set HF_TOKEN to your token"
        )
    if status == 407:
        raise UsageError(f"{shown}: the proxy wants a password (status {status}); see the setting HTTPS_PROXY")
    if status == 416:
        raise DataError(f"{shown}: the file is empty (status {status}); look for another address")
    if status == 429:
        raise DataError(f"{shown}: the server has had too many requests (status {status}); wait a while")
    if status >= 500:
        raise DataError(f"{shown}: the server is in trouble (status {status}); try later")
    raise DataError(f"{shown}: the server answers with status {status} and no file; check the address")


def _httpx() -> Any:
    # Its second version has a name of its own and comes with huggingface_hub; what is used here is the same in both.
    for name in ("httpx", "httpx2"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise MissingExtra("reading a header from an address needs the package httpx: pip install httpx")


def _is_hugging_face(host: str) -> bool:
    return host == "huggingface.co" or host.endswith(".huggingface.co")


def _authorization(url: Any) -> dict[str, str]:
    """The header for Hugging Face's own hosts over https; for their stores, which they redirect to, and all others: nothing."""
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token or url.scheme != "https" or not _is_hugging_face(url.host):
        return {}
    if not re.fullmatch(r"[!-~]+", token):
        raise UsageError("HF_TOKEN holds characters that no token has; set it again")
    return {"Authorization": f"Bearer {token}"}


def _trouble(error: BaseException, httpx: Any, connect_s: float, read_s: float) -> str:
    """What happened on the way, and the way out."""
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and len(causes) < 10:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    for cause in causes:
        if isinstance(cause, socket.gaierror):
            return "no such host, or no network; check the address"
        if isinstance(cause, ssl.SSLError):
            why = getattr(cause, "verify_message", None) or cause.reason or "no details"
            return f"no secure connection (TLS): {_clean(why)}; check the address and this machine's clock and certificates"
        if isinstance(cause, ConnectionRefusedError):
            return "connection refused: no server listens there; check host and port, and HTTPS_PROXY if one is set"
    known: tuple[tuple[str, str], ...] = (
        ("ProxyError", "the proxy refuses; see the settings HTTPS_PROXY and NO_PROXY"),
        ("ConnectTimeout", f"no connection within {connect_s:g} s; check the address, or try later"),
        ("TimeoutException", f"the server sent nothing for {read_s:g} s; try later"),
        ("ConnectError", "no connection; check the address and the network"),
        ("RemoteProtocolError", "the server cut the connection or does not speak HTTP; try again"),
        ("NetworkError", "the connection was cut; try again"),
    )
    for name, said in known:
        if isinstance(error, getattr(httpx, name)):
            return said
    return f"the request failed ({type(error).__name__}); check the address and the proxy settings"


# ── words ─────────────────────────────────────────────────────────────────────────────────────────


def _clean(text: object, most: int = 200) -> str:
    """A name as it may be printed: one line, no control characters, not endless."""
    shown = "".join(c if c.isprintable() else "?" for c in str(text)[: most + 1])
    return shown if len(shown) <= most else shown[:most] + "…"


def _quoted(text: str) -> str:
    return repr(_clean(text, 80))


def _shown(url: Any) -> str:
    """An address without user, password, query and fragment."""
    port = "" if url.port is None else f":{url.port}"
    host = f"[{url.host}]" if ":" in url.host else url.host
    return _clean(f"{url.scheme}://{host}{port}{url.path}")


def _redacted(text: str) -> str:
    """The same for what may not even be an address: where a name or a password may be, nothing is shown."""
    scheme, mark, _ = text.partition("://")
    if "@" in text:
        return f"{_clean(scheme, 20)}://…" if mark else "…"
    return _quoted(re.split(r"[?#]", text)[0])


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
