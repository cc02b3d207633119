"""What ``--model`` names: a model of the registry, a file, an address. Whichever it is, the same arithmetic follows."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from nbutils import fit, gguf_files, limits, registry, subjects
from nbutils.errors import DataError, NbutilsError, UnknownId, UsageError
from nbutils.gguf_files import StandIn
from nbutils.gguf_header import Header, Skipped, TensorInfo, read_file
from nbutils.specs import Model
from nbutils.subjects import variant_of_header
from nbutils.tensors import Variant, variant

MIB = 2**20


def same_arithmetic(a: Variant, b: Variant) -> None:
    """Everything that memory and time depend on is the same, whatever the two are called."""
    assert a.groups == b.groups
    assert (a.layer_bytes, a.layer_expert_bytes) == (b.layer_bytes, b.layer_expert_bytes)
    assert (a.weight_bytes, a.step_weight_bytes) == (b.weight_bytes, b.step_weight_bytes)
    assert (a.n_parameters, a.n_active_parameters) == (b.n_parameters, b.n_active_parameters)
    assert a.shape.layer_kinds == b.shape.layer_kinds
    assert a.shape.n_ctx_train == b.shape.n_ctx_train
    assert limits.recurrent_state_bytes(a.shape) == limits.recurrent_state_bytes(b.shape)
    assert fit.output_buffer_bytes(a.shape) == fit.output_buffer_bytes(b.shape)
    for n in (1, 1000, 20_000, a.shape.n_ctx_train):
        assert limits.kv_bytes_read(a.shape, n) == limits.kv_bytes_read(b.shape, n)
        assert fit.kv_cache_bytes(a, n) == fit.kv_cache_bytes(b, n)
        assert limits.decode_step_bytes(a, depth=n, batch_size=7) == limits.decode_step_bytes(b, depth=n, batch_size=7)
        assert limits.decode_flop(a, depth=n) == limits.decode_flop(b, depth=n)
        assert limits.prefill_flop(a, n_tokens=n) == limits.prefill_flop(b, n_tokens=n)


# ── the registry ──────────────────────────────────────────────────────────────────────────────────


def test_a_registry_id_is_every_format_it_is_published_in() -> None:
    model = registry.load_model("gpt-oss-20b")
    with subjects.find_all("gpt-oss-20b") as found:
        assert [s.variant.format for s in found] == list(model.formats)
        assert all(s.model == model and s.path is None for s in found)
    with subjects.find("llama-3.1-8b", "Q4_K_M") as subject:
        assert subject.variant == variant(registry.load_model("llama-3.1-8b"), registry.load_format("Q4_K_M"))


@pytest.mark.parametrize(
    ("name", "format_id", "complaint"),
    [
        ("llama-3.3-70", "Q4_K_M", r"no model 'llama-3\.3-70' in data/models; did you mean 'llama-3\.3-70b'\? \(or give a \.gguf file or its URL\)"),
        ("llama-3.1-8b", "Q4_KM", r"no format 'Q4_KM' in data/formats\.yaml; did you mean 'Q4_K_M'\?"),
        ("gpt-oss-20b", "Q4_K_M", r"gpt-oss-20b is not published in Q4_K_M; it is in "),
        ("/", "", r"no model '/'"),
        ("x" * 5000, "", r"no model 'xxx"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(name: str, format_id: str, complaint: str) -> None:
    with pytest.raises(UnknownId, match=complaint), subjects.find_all(name, (format_id,) if format_id else ()):
        pass


def test_the_usual_format_is_for_a_model_of_the_registry_that_got_none(small_file: Path) -> None:
    for format_id, expected in (("", "Q8_0"), ("Q4_K_M", "Q4_K_M")):
        with subjects.find("llama-3.1-8b", format_id, usual="Q8_0") as subject:
            assert subject.variant.format == expected
    with subjects.find(str(small_file), "", usual="Q8_0") as subject:
        assert subject.variant.format == "Q4_K_M", "a file has its own"
    with pytest.raises(UsageError, match="--format Q4_K_M goes with a model of the registry"), subjects.find(str(small_file), "Q4_K_M", usual="Q8_0"):
        pass


@pytest.mark.parametrize("model_id", registry.model_ids())
def test_the_header_of_every_model_says_what_the_registry_says(model_id: str, tmp_path: Path) -> None:
    """Out and in again: a header has none of the registry's words, and still the same bytes, windows, states and experts."""
    model, path = registry.load_model(model_id), tmp_path / "hollow.gguf"
    for format_id in ("F16", "MXFP4_MOE" if model.architecture == "gpt-oss" else "Q4_K_M"):
        fmt = registry.load_format(format_id)
        gguf_files.write_hollow(path, model, fmt)
        found = variant_of_header(read_file(path))
        same_arithmetic(found, variant(model, fmt))
        assert fit.compute_buffer_bound_bytes(found.shape, 9000) == fit.compute_buffer_bound_bytes(model.shape, 9000)
        assert (found.architecture, found.engine, found.caveat) == (model.architecture, "llama.cpp", "")
        assert found.arithmetic == variant(model, fmt).arithmetic


# ── files ─────────────────────────────────────────────────────────────────────────────────────────


def stand_in(kind: str, format_id: str) -> tuple[Path, Model]:
    path = gguf_files.make(StandIn(kind, "small", format_id), registry.load_format(format_id))
    return path, gguf_files.stand_in_model(kind, "small")


@pytest.mark.parametrize("kind", ["dense", "moe"])
@pytest.mark.parametrize("format_id", gguf_files.FORMATS)
def test_a_file_is_judged_by_its_header_alone(kind: str, format_id: str, tmp_path: Path) -> None:
    path, model = stand_in(kind, format_id)
    with subjects.find_all(str(path)) as (subject,):
        ours = variant(model, registry.load_format(format_id))
        same_arithmetic(subject.variant, ours)
        assert (subject.variant.name, subject.variant.format) == (path.name, format_id)
        assert subject.variant.arithmetic == ours.arithmetic
        assert (subject.variant.caveat, subject.model, subject.path) == ("", None, path)
        with subject.file() as readable:
            assert readable == path
    # The weights may be a hole: none is read.
    hollow = tmp_path / "hollow.gguf"
    hollow.write_bytes(path.read_bytes()[: read_file(path).data_offset])
    with hollow.open("r+b") as file:
        file.truncate(path.stat().st_size)
    with subjects.find(str(hollow), "") as subject:
        same_arithmetic(subject.variant, ours)


def test_a_gguf_file_may_be_called_something_else_and_what_is_none_is_one_line(small_file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "weights.bin"
    copy.write_bytes(small_file.read_bytes())
    with subjects.find(str(copy), "") as subject:
        assert subject.variant.format == "Q4_K_M"
    (tmp_path / "text.gguf").write_text("these are no weights\n")
    with pytest.raises(NbutilsError, match=r"^text\.gguf: "), subjects.find(str(tmp_path / "text.gguf"), ""):
        pass
    with pytest.raises(UsageError, match=r"absent\.gguf"), subjects.find(str(tmp_path / "absent.gguf"), ""):
        pass


def split_stand_in(folder: Path) -> list[Path]:
    """The stand-in of many experts in F16, in parts of 20 tensors."""
    import gguf
    import numpy as np

    path, _ = stand_in("moe", "F16")
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(folder / "parts.gguf", "qwen3moe", split_max_tensors=20)
    for name, value in read_file(path).metadata.items():
        if name.startswith("qwen3moe."):
            (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(name, value)
    for t in reader.tensors:
        writer.add_tensor(t.name, np.asarray(t.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    parts = sorted(folder.glob("parts-*.gguf"))
    assert len(parts) == -(-len(reader.tensors) // 20)
    return parts


def test_a_split_file_is_one_model_whichever_part_is_named(tmp_path: Path) -> None:
    parts, model = split_stand_in(tmp_path), gguf_files.stand_in_model("moe", "small")
    for part in parts:
        with subjects.find(str(part), "") as subject:
            same_arithmetic(subject.variant, variant(model, registry.load_format("F16")))
            assert subject.variant.caveat == ""
    parts[1].unlink()
    with pytest.raises(NbutilsError, match=parts[1].name), subjects.find(str(parts[0]), ""):
        pass


# ── headers that say odd things ───────────────────────────────────────────────────────────────────


def header_of(kind: str = "dense", drop: tuple[str, ...] = (), arch: str = "", **changes: Any) -> Header:
    """The header of a small stand-in with other sizes; ``__`` stands for a dot, and the architecture may get another name."""
    whole = read_file(stand_in(kind, "Q4_K_M")[0])
    old = whole.metadata["general.architecture"]
    new = arch or old
    metadata = {key.replace(f"{old}.", f"{new}.", 1): value for key, value in whole.metadata.items()} | {"general.architecture": new}
    metadata |= {f"{new}.{name.replace('__', '.')}": value for name, value in changes.items()}
    return replace(whole, metadata={k: v for k, v in metadata.items() if k not in {f"{new}.{name}" for name in drop}})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"attention__head_count": 0}, "attention.head_count is 0"),
        ({"attention__head_count_kv": 3}, "n_head 4 is no multiple of n_head_kv 3"),
        ({"attention__head_count": [4, 4, "4", 4]}, "attention.head_count is "),
        ({"attention__head_count": []}, "attention.head_count is '[]', expected a whole number"),
        ({"attention__key_length": 0}, "head_dim"),
        ({"block_count": 0}, "block_count leaves 0 layers"),
        ({"block_count": 10**9}, "block_count leaves 1000000000 layers"),
        ({"block_count": -4}, "block_count is '-4', expected a whole number"),
        ({"block_count": "four"}, "block_count is 'four', expected a whole number"),
        ({"block_count": 4.5}, "block_count is '4.5', expected a whole number"),
        ({"block_count": Skipped(5000)}, "block_count is "),
        ({"nextn_predict_layers": 4}, "block_count leaves 0 layers"),
        ({"context_length": 0}, "n_ctx_train"),
        ({"context_length": 2**63}, "context_length is '9223372036854775808', expected a whole number"),
        ({"embedding_length": "wide"}, "embedding_length is 'wide', expected a whole number"),
        ({"feed_forward_length": 0}, "neither n_ff nor experts"),
        ({"kind": "moe", "expert_used_count": 9}, "n_expert_used 9 is more than n_expert 8"),
        ({"kind": "moe", "expert_used_count": 0}, "n_expert_used"),
        ({"kind": "moe", "leading_dense_block_count": "one"}, "leading_dense_block_count is 'one'"),
        ({"drop": ("context_length",)}, "context_length is missing"),
        ({"drop": ("block_count",)}, "block_count is missing"),
        ({"drop": ("expert_used_count",), "kind": "moe"}, "expert_used_count is missing"),
        ({"block_count": 3}, "block_count leaves 3 layers and there is a tensor of layer 3"),
        ({"expert_count": 8, "expert_used_count": 2}, "expert_count is 8 and no tensor holds experts"),
    ],
    ids=str,
)
def test_a_header_that_contradicts_itself_is_one_line(changes: dict[str, Any], named: str) -> None:
    header = header_of(**changes)
    with pytest.raises(DataError) as caught:
        variant_of_header(header)
    message = str(caught.value)
    assert message.startswith(f"{header.name}: ")
    assert named in message
    assert "convert" in message
    assert "file: " not in message.removeprefix(header.name), "the file's name says which"
    assert len(message) < 300


def test_a_header_without_an_embedding_is_no_whole_model() -> None:
    header = header_of()
    for tensors in ((), tuple(t for t in header.tensors if t.name != "token_embd.weight")):
        with pytest.raises(DataError, match=r"no tensor token_embd\.weight; not a language model, or not a whole one"):
            variant_of_header(replace(header, tensors=tensors))


@pytest.mark.parametrize("value", [None, "", 7, Skipped(3)])
def test_a_header_without_an_architecture_is_no_language_model(value: Any) -> None:
    header = header_of()
    metadata = header.metadata | {"general.architecture": value}
    with pytest.raises(DataError, match=r"general\.architecture is missing"):
        variant_of_header(replace(header, metadata=metadata))


def kv_bytes(header: Header, n_ctx: int) -> int:
    return fit.kv_cache_bytes(variant_of_header(header), n_ctx)


def test_an_architecture_that_nobody_knows_is_counted_in_full() -> None:
    known, unknown = variant_of_header(header_of("moe")), variant_of_header(header_of("moe", arch="brand-new"))
    same_arithmetic(known, unknown)
    assert (unknown.architecture, unknown.caveat) == ("brand-new", "")


def test_windows_are_honoured_where_it_is_known_which_layers_have_one() -> None:
    full = kv_bytes(header_of(), 4096)  # four layers
    assert full == 4 * 4096 * 2 * 2 * 128 * 2
    # Every second layer of gpt-oss sees 256 tokens, and llama.cpp keeps a micro-batch of 512 more.
    assert kv_bytes(header_of(arch="gpt-oss", attention__sliding_window=256), 4096) == full // 2 + full // 2 * (256 + 512) // 4096
    assert kv_bytes(header_of(attention__sliding_window=256, attention__sliding_window_pattern=4), 4096) == full // 4 + 3 * full // 4 * 768 // 4096
    by_layer = header_of(attention__sliding_window=256, attention__sliding_window_pattern=[True, False, True, False])
    assert kv_bytes(by_layer, 4096) == full // 2 + full // 2 * 768 // 4096
    for unclear in (
        header_of(attention__sliding_window=256),
        header_of(attention__sliding_window=256, attention__sliding_window_pattern=[False, True, True, False]),
        header_of(attention__sliding_window=256, attention__sliding_window_pattern=[True, True, True, True]),
    ):
        assert kv_bytes(unclear, 4096) == full
        assert "sliding window is not known here; all are counted in full" in variant_of_header(unclear).caveat


@pytest.mark.parametrize("key", ["wkv.head_size", "shortconv.l_cache", "kda.head_dim", "attention.indexer.head_count"])
def test_a_cache_of_an_unknown_kind_is_counted_in_full_and_said(key: str) -> None:
    header = header_of(arch="odd")
    found = variant_of_header(replace(header, metadata=header.metadata | {f"odd.{key}": 64}))
    assert found.caveat == "odd keeps a cache of its own kind, counted here as full attention"
    same_arithmetic(found, variant_of_header(header))


STATE = {"ssm__conv_kernel": 4, "ssm__inner_size": 512, "ssm__state_size": 128, "ssm__time_step_rank": 8, "ssm__group_count": 2}


def test_recurrent_layers_keep_a_state_and_no_keys() -> None:
    """Four layers of 2 x 2 x 128 halves of K and V each, or a state of F32: 128 x 512, and 3 inputs of 512 + 2 x 2 x 128."""
    row, state = 2 * 2 * 128 * 2, 4 * (128 * 512 + 3 * 1024)
    every_second = variant_of_header(header_of(arch="qwen3next", full_attention_interval=2, **STATE))
    assert every_second.shape.layer_kinds == ("recurrent", "full", "recurrent", "full")
    by_heads = variant_of_header(header_of(arch="granitehybrid", attention__head_count_kv=[0, 2, 0, 0], feed_forward_length=[0, 0, 64, 0], **STATE))
    assert by_heads.shape.layer_kinds == ("recurrent", "full", "none", "recurrent")
    for found, n_full in ((every_second, 2), (by_heads, 1)):
        assert found.caveat == ""
        assert fit.kv_cache_bytes(found, 1024) == n_full * 1024 * row
        assert limits.recurrent_state_bytes(found.shape) == 2 * state
    nothing_but = variant_of_header(header_of(arch="mamba2", **STATE))
    assert (fit.kv_cache_bytes(nothing_but, 1024), limits.recurrent_state_bytes(nothing_but.shape)) == (0, 4 * state)
    unclear = variant_of_header(header_of(arch="odd", **STATE))
    assert fit.kv_cache_bytes(unclear, 1024) == 4 * 1024 * row
    assert "which layers of odd are recurrent is not known here" in unclear.caveat


def test_layers_that_differ_in_heads_are_counted_by_the_largest() -> None:
    found = variant_of_header(header_of(attention__head_count_kv=[2, 1, 2, 1]))
    assert fit.kv_cache_bytes(found, 1024) == kv_bytes(header_of(), 1024)
    assert found.caveat == "layers differ in their number of KV heads; the largest is counted for all"


def test_one_part_of_several_is_said() -> None:
    header = header_of()
    assert "one part of several" in variant_of_header(replace(header, metadata=header.metadata | {"split.count": 3})).caveat
    assert variant_of_header(replace(header, metadata=header.metadata | {"split.count": 1})).caveat == ""


def test_an_unknown_mixture_is_called_by_its_commonest_type_and_layers_that_draft_are_idle() -> None:
    header = header_of()
    metadata = {k: v for k, v in header.metadata.items() if k != "general.file_type"} | {"qwen3.nextn_predict_layers": 1, "qwen3.block_count": 5}
    drafting = TensorInfo(name="blk.4.nextn.eh_proj.weight", shape=(512, 256), type_name="Q8_0", n_bytes=139_264, offset=0)
    found = variant_of_header(replace(header, metadata=metadata, tensors=(*header.tensors, drafting)))
    assert found.format == "Q4_K"
    assert found.groups["idle"].n_bytes == 139_264
    assert found.step_weight_bytes == variant_of_header(header).step_weight_bytes, "nobody reads them to decode"
    assert (found.shape.n_layer, found.shape.n_layer_mtp, len(found.layer_bytes)) == (4, 1, 4)


# ── addresses ─────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Site:
    """A server on this machine that knows ranges and counts what it sends."""

    port: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    n_sent: int = 0

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port}/{name}"


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    if not (find_spec("httpx") or find_spec("httpx2")):
        pytest.skip("no httpx: nothing can be fetched")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    made = Site()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = made.files.get(self.path.partition("?")[0].lstrip("/"))
            if data is None:
                self.send_error(404)
                return
            first, last = (int(n) for n in self.headers["Range"].removeprefix("bytes=").split("-"))
            part = data[first : last + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            made.n_sent += len(part)
            self.wfile.write(part)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    made.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


def test_of_an_address_the_header_is_fetched_once_and_nothing_stays(site: Site) -> None:
    path, model = stand_in("dense", "F16")
    site.files["tiny-F16.gguf"] = path.read_bytes()
    with subjects.find_all(site.url("tiny-F16.gguf?download=true#part")) as (subject,):
        n_header = read_file(path).data_offset
        assert n_header <= site.n_sent <= n_header + MIB < path.stat().st_size, "the weights stay where they are"
        same_arithmetic(subject.variant, variant(model, registry.load_format("F16")))
        assert subject.digest == read_file(path).sha256
        sent = site.n_sent
        with subject.file() as first, subject.file() as again:
            assert first == again
            assert first.name == "tiny-F16.gguf"
            assert read_file(first).sha256 == subject.digest
            assert first.stat().st_size == path.stat().st_size
        assert site.n_sent == sent, "what was fetched is not fetched again"
    assert not first.exists()
    assert not first.parent.exists()


def test_nothing_stays_of_an_address_that_is_none(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    site.files["page.gguf"] = b"<!doctype html><title>Sign in</title>" * 10
    with pytest.raises(NbutilsError, match="web page"), subjects.find_all(site.url("page.gguf")):
        pass
    with pytest.raises(UsageError, match="no such file"), subjects.find_all(site.url("absent.gguf")):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_parts_behind_an_address_are_one_model_whichever_is_named(site: Site, tmp_path: Path) -> None:
    for part in split_stand_in(tmp_path):
        site.files[part.name] = part.read_bytes()
    for name in site.files:
        with subjects.find_all(site.url(name)) as (subject,):
            same_arithmetic(subject.variant, variant(gguf_files.stand_in_model("moe", "small"), registry.load_format("F16")))
            assert subject.path is not None
            assert sorted(p.name for p in subject.path.parent.iterdir()) == sorted(site.files)


def test_a_name_from_an_address_is_no_path(site: Site, small_file: Path) -> None:
    site.files["%2e%2e%5cup.gguf"] = small_file.read_bytes()
    with subjects.find_all(site.url("%2e%2e%5cup.gguf")) as (subject,):
        assert subject.path is not None
        assert subject.path.name == "model.gguf"
