"""The proof: what we count without llama.cpp against what llama.cpp itself would store and allocate.

Nothing here compares us with ourselves. llama.cpp reads a header whose weights are a hole, plans its buffers, and says how large they are; its
quantiser says which type it would give to each tensor. Sizes are printed to 0.01 MiB, and two figures may be half of that apart.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from helpers import MIB, make_model
from nbutils import engine, fit, gguf_files, gguf_header, limits, oracle, paths, registry, subjects
from nbutils.errors import EngineError, UsageError
from nbutils.fit import ComputeBuffer, MemoryBudget
from nbutils.specs import Model
from nbutils.subjects import Subject
from nbutils.tensors import variant

needs_engine = pytest.mark.skipif(not engine.has_engine(), reason="llama-cpp-python is not installed: nobody to ask")

#: One model of each kind: dense, many experts, eight experts, windows, chunks, one latent vector, states beside attention, layers that draft.
KINDS = (
    "llama-3.1-8b",
    "qwen3-8b",
    "qwen3-30b-a3b",
    "mixtral-8x7b",
    "gpt-oss-20b",
    "gemma-3-27b",
    "llama-4-scout",
    "deepseek-v3",
    "qwen3.6-35b-a3b",
    "nemotron-3-nano",
    "glm-4.5-air",
)
each_kind = pytest.mark.parametrize("model_id", KINDS)
each_model = pytest.mark.parametrize("model_id", registry.model_ids())

#: Half of the last digit that llama.cpp prints, and what its own rounding of a binary fraction adds.
PRINTED = 0.00501 * MIB


@pytest.fixture(scope="module")
def hollow(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """A file of some kB with the header of a registry model and a hole for its weights, made once."""
    folder = tmp_path_factory.mktemp("hollow")

    @cache
    def make(model_id: str, format_id: str) -> Path:
        path = folder / f"{model_id}-{format_id}.gguf"
        gguf_files.write_hollow(path, registry.load_model(model_id), registry.load_format(format_id))
        return path

    return make


def question(n_ctx: int, kv_type: str = "f16", *, n_ubatch: int = 512, n_seq: int = 1) -> dict[str, Any]:
    return {"n_ctx": n_ctx, "kv_type": kv_type, "n_ubatch": n_ubatch, "n_seq": n_seq}


# ── weights; test_tensors asks the quantiser for the type of every tensor ─────────────────────────


@needs_engine
@each_kind
def test_llama_cpp_counts_as_many_bytes_and_parameters_as_we_do(model_id: str, hollow: Callable[[str, str], Path]) -> None:
    model = registry.load_model(model_id)
    for format_id in ("F16", "MXFP4_MOE" if model.architecture == "gpt-oss" else "Q4_K_M"):
        found, ours = engine.planned_buffers(hollow(model_id, format_id), []), variant(model, registry.load_format(format_id))
        assert (found["weight_bytes"], found["n_parameters"]) == (ours.weight_bytes, ours.n_parameters), format_id


# ── caches and buffers of a context ───────────────────────────────────────────────────────────────


def check_answer(answer: dict[str, Any], model: Model, asked: dict[str, Any]) -> None:
    """Every line that llama.cpp printed about one context is what we count, and the compute buffer is below its bound."""
    shape, n_ctx, n_seq = model.shape, asked["n_ctx"], asked["n_seq"]
    ours = variant(model, registry.load_format("F16"))
    stored_in = registry.load_cache_type("llama.cpp", asked["kv_type"])
    kinds = shape.layer_kinds
    lines = [c for c in answer["caches"] if c["kind"] == "kv"]
    # One line for the layers that keep everything, one for those with a window: as many layers, a row each per cell.
    assert [c["layers"] for c in lines] == [n for n in (kinds.count("full") + kinds.count("latent"), kinds.count("window")) if n], asked
    for line in lines:
        assert line["bytes"] == pytest.approx(n_seq * line["layers"] * line["cells"] * limits.kv_row_bytes(shape, stored_in), abs=PRINTED), asked
    total = fit.kv_cache_bytes(ours, n_ctx, stored_in, batch_size=n_seq, n_ubatch=asked["n_ubatch"])
    assert answer["kv"] == pytest.approx(total, abs=PRINTED * len(lines)), asked
    states = [c for c in answer["caches"] if c["kind"] == "recurrent"]
    assert len(states) == ("recurrent" in kinds)
    assert answer["recurrent"] == pytest.approx(n_seq * limits.recurrent_state_bytes(shape), abs=PRINTED), asked
    assert answer["output"] == pytest.approx(fit.output_buffer_bytes(shape, n_seq), abs=PRINTED), asked
    assert 0 < answer["compute"] <= fit.compute_buffer_bound_bytes(shape, n_ctx, batch_size=n_seq, n_ubatch=asked["n_ubatch"]), asked


@needs_engine
@each_model
def test_caches_and_output_buffer_are_what_llama_cpp_would_allocate(model_id: str, hollow: Callable[[str, str], Path]) -> None:
    model = registry.load_model(model_id)
    trained = model.shape.n_ctx_train
    asked = [question(n, kv_type) for n in sorted({4096, min(32768, trained), trained}) for kv_type in ("f16", "q8_0")]
    asked += [question(4096, "f16", n_seq=4), question(4096, "q4_0", n_seq=4), question(4096, n_ubatch=128)]
    found = engine.planned_buffers(hollow(model_id, "F16"), asked)
    for q, answer in zip(asked, found["answers"], strict=True):
        check_answer(answer, model, q)
    # The answers that data/buffers keeps are this build's, about this very header.
    kept = registry.load_answers(model_id)
    assert kept is not None
    assert gguf_header.read_file(hollow(model_id, "F16")).sha256 == kept.header_sha256, "the model has changed since: run 'nbutils buffers'"
    if kept.build != engine.build():
        pytest.skip(f"kept answers are of {kept.build}, this is {engine.build()}")
    again = {
        (q["kv_type"], q["n_ctx"]): a["compute"] for q, a in zip(asked, found["answers"], strict=True) if q["n_seq"] == 1 and q["n_ubatch"] == 512
    }
    told = {(kv_type, n): registry.kept_compute_buffer(model_id, n, kv_type) for kv_type, n in again}
    assert told == again


@needs_engine
@pytest.mark.parametrize("model_id", ["qwen3-0.6b", "gpt-oss-20b"])
def test_asking_for_all_kept_answers_again_gives_the_same_file(model_id: str, own_folder: Path) -> None:
    kept = registry.load_answers(model_id)
    assert kept is not None
    if kept.build != engine.build():
        pytest.skip(f"kept answers are of {kept.build}, this is {engine.build()}")
    assert oracle.keep_answers(subject_of(model_id)) == kept


@needs_engine
@pytest.mark.parametrize(
    ("model_id", "formats", "kept"),
    [
        ("qwen3-0.6b", {"F16", "Q8_0", "Q4_K_M"}, {"KV cache"}),
        ("gpt-oss-20b", {"F16", "MXFP4_MOE"}, {"KV cache"}),
        ("nemotron-3-nano", {"F16", "Q8_0", "Q4_K_M", "MXFP4_MOE"}, {"KV cache", "recurrent state"}),
    ],
)
def test_what_the_book_shows_as_proof_compares_everything_and_finds_no_difference(model_id: str, formats: set[str], kept: set[str]) -> None:
    found = oracle.compare(model_id, contexts=(4096,))
    assert {c.under for c in found if c.what == "weights"} == formats
    contexts = {4096, registry.load_model(model_id).shape.n_ctx_train}
    others = {(c.what, c.under, c.n_ctx) for c in found if c.what != "weights"}
    assert others == {(what, kv, n) for what in {*kept, "output buffer", "compute buffer"} for kv in ("f16", "q8_0") for n in contexts}
    for c in found:
        assert c.differs_by == 0, c
        assert c.printed_to <= (0 if c.what in ("weights", "compute buffer") else 2 * 0.006 * MIB)
        assert min(c.ours, c.llama_cpp) > 0


@needs_engine
def test_a_difference_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    real = engine.planned_buffers

    def off(*arguments: Any, **options: Any) -> dict[str, Any]:
        found = real(*arguments, **options)
        answers = [answer | {"kv": answer["kv"] + 20_000} for answer in found["answers"]]
        return found | {"weight_bytes": found["weight_bytes"] - 1, "answers": answers}

    monkeypatch.setattr(engine, "planned_buffers", off)
    found = oracle.compare("qwen3-0.6b", contexts=(4096,))
    assert {(c.what, c.under) for c in found if c.differs_by} == {("weights", "F16"), ("KV cache", "f16"), ("KV cache", "q8_0")}
    assert next(c.differs_by for c in found if c.what == "weights" and c.under == "F16") == 1


# ── any shape at all ──────────────────────────────────────────────────────────────────────────────


def random_model(architecture: str, r: random.Random) -> Model:
    """A model that nobody made, with the proportions that real ones have."""
    head_dim, n_head = r.choice([64, 128, 128, 256]), r.choice([4, 8, 16, 32, 64])
    n_ff = r.choice([512, 1408, 4096, 11008, 28672])
    sizes: dict[str, Any] = {
        "n_layer": r.choice([4, 8, 12]),
        "n_embd": r.choice([512, 1024, 2048, 2880, 4096, 5120, 8192]),
        "n_head": n_head,
        "n_head_kv": r.choice([n for n in (1, 2, 4, 8, 16) if n_head % n == 0]),
        "head_dim": head_dim,
        "n_ff": 0,
        "n_vocab": r.choice([4096, 32000, 65536, 151936, 262144]),
        "n_ctx_train": 131072,
    }
    experts: dict[str, Any] = {
        "n_expert": r.choice([8, 16, 64, 128, 256]),
        "n_expert_used": r.choice([1, 2, 4, 8]),
        "n_ff_expert": r.choice([256, 768, 1408, 2048, 8192]),
    }
    state: dict[str, Any] = {"conv_kernel": 4, "state_size": 128}
    match architecture:
        case "qwen3" | "gemma3":
            sizes["n_ff"] = n_ff
        case "llama" if r.random() < 0.6:
            sizes["n_ff"] = n_ff
        case _:
            sizes["experts"] = experts
    match architecture:
        case "gemma3":
            sizes |= {"n_layer": 12, "sliding_window": r.choice([512, 1024, 4096]), "full_every": 6, "tied_embedding": True}
        case "gpt-oss":
            sizes |= {"sliding_window": 128, "full_every": 2}
        case "llama4":
            sizes |= {"sliding_window": 8192, "full_every": 4, "chunked": True, "rope_freqs": head_dim // 2}
            experts["n_ff_shared"] = experts["n_ff_expert"]  # llama.cpp reads one width for both
        case "glm4moe":
            sizes |= {"n_ff": n_ff, "n_rot": head_dim // 2}
            experts |= {"n_ff_shared": experts["n_ff_expert"], "n_layer_dense": 1}
        case "deepseek2":
            latent = {"q_lora_rank": r.choice([768, 1536]), "kv_lora_rank": 512, "n_rot": 64, "head_dim_nope": 128, "head_dim_v": 128}
            sizes |= {"n_ff": n_ff, "n_head_kv": 1, "head_dim": 576, "latent": latent}
            experts |= {"n_ff_shared": experts["n_ff_expert"], "n_layer_dense": 1}
        case "qwen35moe":
            n = r.choice([16, 32, 64])
            state |= {"inner_size": 128 * n, "time_step_rank": n, "group_count": 16}
            sizes |= {"n_rot": 64 if head_dim > 64 else 32, "head_dim": max(head_dim, 128), "full_every": 4, "recurrent": state}
            experts["n_ff_shared"] = 512
        case "nemotron_h_moe":
            n = r.choice([32, 64, 128])
            state |= {"inner_size": 64 * n, "time_step_rank": n, "group_count": 8}
            sizes |= {"n_layer": 8, "pattern": "MEM*EMEM", "recurrent": state}
            experts |= {"n_ff_shared": 3712, "n_embd_latent": r.choice([None, 1024])}
    return make_model(architecture, **sizes)


ARCHITECTURES = ("llama", "llama4", "gemma3", "qwen3", "qwen3moe", "qwen35moe", "gpt-oss", "glm4moe", "deepseek2", "nemotron_h_moe")


@needs_engine
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_bound_is_never_below_whatever_the_shape(architecture: str, tmp_path: Path) -> None:
    r = random.Random(architecture)  # the same shapes every time
    path, n_answered = tmp_path / "made-up.gguf", 0
    for _ in range(4):
        model = random_model(architecture, r)
        gguf_files.write_hollow(path, model, registry.load_format("F16"))
        asked = [
            question(
                r.choice([256, 1024, 4096, 8192, 32768, 131072]),
                r.choice(["f16", "f16", "q8_0", "q4_0"]),
                n_ubatch=r.choice([512, 512, 128, 1024]),
                n_seq=r.choice([1, 1, 1, 4]),
            )
            for _ in range(3)
        ]
        try:
            found = engine.planned_buffers(path, asked)
        except EngineError:
            continue  # llama.cpp gives up on a few shapes, and then the child is gone: nothing to compare, and nobody hurt
        for q, answer in zip(asked, found["answers"], strict=True):
            if "refused" not in answer:
                check_answer(answer, model, q)
                n_answered += 1
    assert n_answered >= 6, "half of what was asked must have been answered, or this shows nothing"


# ── asking, and keeping answers ───────────────────────────────────────────────────────────────────


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without kept answers."""
    monkeypatch.setenv("NBUTILS_HOME", str(tmp_path / "home"))
    return Path(paths.cache_dir())


def subject_of(model_id: str, format_id: str = "F16") -> Subject:
    with subjects.find(model_id, format_id) as subject:
        return subject


def kept_files(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file() and "stand-ins" not in p.parts]


@pytest.fixture
def no_child(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From when it is called, asking llama.cpp fails the test."""
    return lambda: monkeypatch.setattr(engine, "planned_buffers", lambda *a, **k: pytest.fail("llama.cpp was asked"))


@needs_engine
def test_what_was_answered_once_is_not_asked_again(own_folder: Path, no_child: Callable[[], None]) -> None:
    subject = subject_of("qwen3-0.6b")
    first = oracle.ask(subject, [1000, 4096])
    assert list(first) == [1024, 4096], "llama.cpp pads a context to 256"
    (path,) = kept_files(own_folder)
    assert str(own_folder) in str(path)
    no_child()
    assert oracle.ask(subject, [4096, 1024]) == first
    # The format of the weights does not change what a context takes.
    assert oracle.ask(subject_of("qwen3-0.6b", "Q4_K_M"), [1024]) == {1024: first[1024]}


@pytest.fixture
def asked(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[Any, ...], ...]]:
    """What a llama.cpp that is not there was asked, call by call; it answers with the context itself."""
    calls: list[tuple[tuple[Any, ...], ...]] = []

    def answer(path: Path, questions: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
        assert path.is_file()
        calls.append(tuple((q["n_ctx"], q["kv_type"], q["n_seq"], q["n_ubatch"], options["backend"]) for q in questions))
        return {"answers": [dict.fromkeys(("kv", "recurrent", "output", "compute"), q["n_ctx"]) for q in questions]}

    monkeypatch.setattr(engine, "has_engine", lambda: True)
    monkeypatch.setattr(engine, "build", lambda: "llama-cpp-python 1.0")
    monkeypatch.setattr(engine, "planned_buffers", answer)
    return calls


def test_only_what_is_missing_is_asked_and_every_setting_has_its_own_answers(asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    subject = subject_of("qwen3-0.6b")
    oracle.ask(subject, [1024])
    oracle.ask(subject, [1024, 2048])
    oracle.ask(subject, [1024], kv_type="q8_0")
    oracle.ask(subject, [1024], batch_size=4)
    oracle.ask(subject, [1024], n_ubatch=128)
    oracle.ask(subject, [1024], backend="cuda")
    oracle.ask(subject_of("qwen3-1.7b"), [1024])
    monkeypatch.setattr(engine, "build", lambda: "llama-cpp-python 99.0")
    oracle.ask(subject, [1024, 2048])
    assert asked == [
        ((1024, "f16", 1, 512, "cpu"),),
        ((2048, "f16", 1, 512, "cpu"),),
        ((1024, "q8_0", 1, 512, "cpu"),),
        ((1024, "f16", 4, 512, "cpu"),),
        ((1024, "f16", 1, 128, "cpu"),),
        ((1024, "f16", 1, 512, "cuda"),),
        ((1024, "f16", 1, 512, "cpu"),),
        ((1024, "f16", 1, 512, "cpu"), (2048, "f16", 1, 512, "cpu")),
    ]


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"1024": {"kv": 1}}', b'{"1024": 7}', b'{"many": {}}'])
def test_a_damaged_answer_is_asked_for_again(damage: bytes, asked: list[Any], own_folder: Path) -> None:
    subject = subject_of("qwen3-0.6b")
    first = oracle.ask(subject, [1024])
    (path,) = kept_files(own_folder)
    whole = path.read_bytes()
    path.write_bytes(damage)
    assert oracle.ask(subject, [1024]) == first
    assert path.read_bytes() == whole
    assert len(asked) == 2


def test_a_cache_that_cannot_be_written_only_costs_time(asked: list[Any], own_folder: Path) -> None:
    own_folder.parent.mkdir(parents=True, exist_ok=True)
    own_folder.write_text("a file where the folder should be")
    for _ in range(2):
        assert oracle.ask(subject_of("qwen3-0.6b"), [1024])[1024].compute == 1024
    assert len(asked) == 2


@needs_engine
def test_what_llama_cpp_refuses_is_left_out(own_folder: Path) -> None:
    subject = subject_of("qwen3-0.6b")
    assert oracle.ask(subject, [256], batch_size=1000) == {}, "it takes 256 sequences at most"
    assert oracle.compute_buffer(subject, 256, batch_size=1000).basis == "upper_bound"


def test_a_context_too_long_to_ask_about_gets_the_bound(no_child: Callable[[], None]) -> None:
    """llama.cpp keeps some bytes for every cell, even where it allocates nothing: of 10**9 cells they would fill a machine."""
    no_child()
    for n_ctx, batch_size in ((10**9, 1), (2**20, 256)):
        assert oracle.compute_buffer(subject_of("qwen3-0.6b"), n_ctx, batch_size=batch_size) == bound("qwen3-0.6b", n_ctx, batch_size)


@needs_engine
def test_a_file_is_asked_about_by_its_own_header(small_file: Path, own_folder: Path) -> None:
    with subjects.find(str(small_file), "") as subject:
        found = oracle.ask(subject, [1024], kv_type="q8_0")[1024]
        stored = subject.variant
        assert found.kv == pytest.approx(fit.kv_cache_bytes(stored, 1024, registry.load_cache_type("llama.cpp", "q8_0")), abs=PRINTED)
        buffer = oracle.compute_buffer(subject, 1024, kv_type="q8_0")
        assert (buffer.n_bytes, buffer.basis) == (found.compute, "asked")
        with pytest.raises(UsageError, match="is a file; answers are kept for models of the registry"):
            oracle.keep_answers(subject)


@needs_engine
def test_a_header_that_llama_cpp_refuses_is_one_line_with_its_reason(small_file: Path, tmp_path: Path, own_folder: Path) -> None:
    bad = tmp_path / "renamed.gguf"
    bad.write_bytes(small_file.read_bytes().replace(b"blk.3.attn_k_norm", b"blk.3.attn_k_nord"))
    with subjects.find(str(bad), "") as subject, pytest.raises(EngineError, match=r"^renamed\.gguf: llama\.cpp refused it: .*blk\.3\.attn_k_nor"):
        oracle.compute_buffer(subject, 1024)
    assert kept_files(own_folder) == []


# ── whose figure the compute buffer is ────────────────────────────────────────────────────────────


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch, no_child: Callable[[], None]) -> None:
    """As on a machine without llama.cpp."""
    no_child()
    monkeypatch.setattr(engine, "has_engine", lambda: False)


def bound(model_id: str, n_ctx: int, batch_size: int = 1) -> ComputeBuffer:
    return ComputeBuffer(fit.compute_buffer_bound_bytes(registry.load_model(model_id).shape, n_ctx, batch_size=batch_size), "upper_bound")


def test_without_llama_cpp_it_is_a_kept_answer_or_the_bound(no_engine: None) -> None:
    subject = subject_of("llama-3.1-8b", "Q4_K_M")
    kept = registry.kept_compute_buffer("llama-3.1-8b", 8192, "q8_0")
    assert kept is not None
    assert oracle.compute_buffer(subject, 8192, kv_type="q8_0") == ComputeBuffer(kept, "kept")
    assert oracle.compute_buffer(subject, 8000, kv_type="q8_0") == ComputeBuffer(kept, "kept"), "8,000 tokens are padded to 8,192"
    assert oracle.compute_buffer(subject, 9000) == bound("llama-3.1-8b", 9000)
    assert oracle.compute_buffer(subject, 8192, batch_size=4) == bound("llama-3.1-8b", 8192, 4)
    assert oracle.compute_buffer(subject, 8192, backend="cuda") == bound("llama-3.1-8b", 8192)


def test_other_engines_are_allowed_the_bound(no_child: Callable[[], None]) -> None:
    """vLLM and MLX cannot be asked: llama.cpp's bound is lent to them, and said to be no bound of theirs."""
    no_child()
    for format_id in ("BF16", "MLX_4BIT"):
        for n_ctx, batch_size in ((8192, 1), (4096, 8)):
            found = oracle.compute_buffer(subject_of("llama-3.1-8b", format_id), n_ctx, batch_size=batch_size)
            assert found == ComputeBuffer(bound("llama-3.1-8b", n_ctx, batch_size).n_bytes, "allowance")


@needs_engine
def test_with_llama_cpp_it_is_kept_where_kept_and_asked_where_not(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = subject_of("qwen3-0.6b", "Q8_0")
    monkeypatch.setattr(engine, "build", lambda: "llama-cpp-python 99.0")
    kept = registry.kept_compute_buffer("qwen3-0.6b", 2048, "f16")
    assert kept is not None
    assert oracle.compute_buffer(subject, 2048).basis == "asked", "what another build said says nothing about this one"
    assert oracle.compute_buffer(subject, 2048, may_ask=False) == bound("qwen3-0.6b", 2048)
    said = registry.load_answers("qwen3-0.6b")
    assert said is not None
    monkeypatch.setattr(engine, "build", lambda: said.build)
    assert oracle.compute_buffer(subject, 2048) == ComputeBuffer(kept, "kept")
    assert oracle.compute_buffer(subject, 2048, batch_size=2).basis == "asked"
    assert oracle.compute_buffer(subject, 2304).basis == "asked"
    assert oracle.compute_buffer(subject, 2304, may_ask=False) == bound("qwen3-0.6b", 2304)


# ── the largest context ───────────────────────────────────────────────────────────────────────────


def budget_in(
    subject: Subject, available_bytes: int, kv_type: str = "f16", batch_size: int = 1
) -> Callable[[int, ComputeBuffer | None], MemoryBudget]:
    kept_in = registry.load_cache_type(subject.variant.engine, kv_type)
    return lambda n_ctx, compute: fit.memory_budget(
        subject.variant, n_ctx=n_ctx, available_bytes=available_bytes, cache=kept_in, batch_size=batch_size, compute=compute
    )


def room_for(subject: Subject, n_ctx: int, kv_type: str, batch_size: int) -> int:
    """Bytes that such a context takes with the bound on its compute buffer."""
    return budget_in(subject, 0, kv_type, batch_size)(n_ctx, None).total_bytes


@pytest.fixture(scope="module")
def shared_answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NBUTILS_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@needs_engine
@pytest.mark.parametrize(
    ("model_id", "format_id", "n_ctx", "kv_type", "batch_size"),
    [
        ("llama-3.1-8b", "Q4_K_M", 50_000, "f16", 1),
        ("qwen3-0.6b", "Q8_0", 3_000, "q8_0", 4),
        ("gemma-3-27b", "Q4_K_M", 20_000, "f16", 1),
        ("gpt-oss-20b", "MXFP4_MOE", 100_000, "q8_0", 1),
        ("deepseek-v3", "Q4_K_M", 130_000, "q4_0", 1),
        ("nemotron-3-nano", "Q4_K_M", 200_000, "f16", 2),
        ("llama-3.1-8b", "Q4_K_M", 300, "f16", 1),
    ],
)
def test_the_largest_context_fits_and_256_more_do_not(
    model_id: str, format_id: str, n_ctx: int, kv_type: str, batch_size: int, shared_answers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = subject_of(model_id, format_id)
    available = room_for(subject, n_ctx, kv_type, batch_size)
    budget_at = budget_in(subject, available, kv_type, batch_size)
    largest = oracle.solve_context(subject, budget_at, kv_type=kv_type, batch_size=batch_size)
    trained = subject.variant.shape.n_ctx_train
    assert largest is not None
    assert n_ctx - 256 < largest <= trained, "the bound is no less than what is needed"

    def left(n: int) -> int:
        compute = oracle.ask(subject, [n], kv_type=kv_type, batch_size=batch_size)[n].compute
        return budget_at(n, ComputeBuffer(compute, "asked")).headroom_bytes

    assert largest % 256 == 0
    assert left(largest) >= 0
    assert largest == trained or left(largest + 256) < 0
    monkeypatch.setattr(engine, "has_engine", lambda: False)
    safe = oracle.solve_context(subject, budget_at, kv_type=kv_type, batch_size=batch_size)
    assert safe is not None
    assert n_ctx - 256 < safe <= largest, "without llama.cpp a smaller one may be named, never a larger one"


@needs_engine
def test_everything_fits_or_nothing_does(shared_answers: None) -> None:
    subject = subject_of("qwen3-0.6b", "Q8_0")
    assert oracle.solve_context(subject, budget_in(subject, 10**12)) == subject.variant.shape.n_ctx_train
    assert oracle.solve_context(subject, budget_in(subject, subject.variant.weight_bytes)) is None


def test_other_engines_are_solved_by_the_bound(no_child: Callable[[], None]) -> None:
    no_child()
    subject = subject_of("llama-3.1-8b", "MLX_4BIT")
    available = room_for(subject, 10_240, "f16", 1)
    assert oracle.solve_context(subject, budget_in(subject, available)) == 10_240
    assert oracle.solve_context(subject, budget_in(subject, available - 1)) == 10_240 - 256


def test_what_may_not_be_asked_is_solved_by_kept_answers(no_child: Callable[[], None]) -> None:
    no_child()
    subject = subject_of("llama-3.1-8b", "Q4_K_M")
    kept = registry.kept_compute_buffer("llama-3.1-8b", 65536, "f16")
    assert kept is not None
    available = budget_in(subject, 0)(65536, ComputeBuffer(kept, "kept")).total_bytes
    assert available < room_for(subject, 65536, "f16", 1), "the bound alone would not allow it"
    assert oracle.solve_context(subject, budget_in(subject, available), may_ask=False) == 65536


def test_answers_of_another_build_do_not_bracket_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "has_engine", lambda: True)
    monkeypatch.setattr(engine, "build", lambda: "llama-cpp-python 99.0")
    subject = subject_of("llama-3.1-8b", "Q4_K_M")
    kept = registry.kept_compute_buffer("llama-3.1-8b", 65536, "f16")
    assert kept is not None
    available = budget_in(subject, 0)(65536, ComputeBuffer(kept, "kept")).total_bytes
    largest = oracle.solve_context(subject, budget_in(subject, available), may_ask=False)
    assert largest is not None
    assert room_for(subject, largest, "f16", 1) <= available


# ── backends ──────────────────────────────────────────────────────────────────────────────────────


def test_a_backend_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "has_engine", lambda: True)
    monkeypatch.setattr(engine, "backend_name", lambda: "metal")
    assert oracle.own_backend() == "metal"
    for there in ("", "cpu", "metal"):
        oracle.check_backend(there)
    with pytest.raises(UsageError, match="no backend 'cuda', it has cpu and metal; README says how to build others"):
        oracle.check_backend("cuda")
    monkeypatch.setattr(engine, "backend_name", lambda: "cpu")
    with pytest.raises(UsageError, match="no backend 'cuda', it has cpu; README"):
        oracle.check_backend("cuda")


def test_without_llama_cpp_the_only_backend_is_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "has_engine", lambda: False)
    assert not oracle.can_ask()
    assert oracle.own_backend() == "cpu"
    oracle.check_backend("cpu")
    with pytest.raises(UsageError, match="backend 'cuda' can be asked only where llama-cpp-python is installed; leave --backend out"):
        oracle.check_backend("cuda")
