"""The child process may die; the parent may not. Each damaged file, kill and hang here ends as one readable line."""

from __future__ import annotations

import ast
import json
import platform
import random
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import psutil
import pytest

from helpers import ENGINE_SETTINGS, in_child
from nbutils import _allocations, _bench, engine, gguf_files, registry
from nbutils._ggml import TYPES
from nbutils.errors import EngineError, NbutilsError, UsageError
from nbutils.tensors import weight_bytes_read

POINTS = [{"kind": "prefill", "n_tokens": 16, "depth": 0}, {"kind": "decode", "n_tokens": 4, "depth": 16}]


def measure(path: Path, progress: Callable[[str], None] | None = None, *, yardstick_s: float = 0) -> dict[str, Any]:
    return engine.measure_file(path, points=POINTS, repetitions=2, yardstick_s=yardstick_s, settings=ENGINE_SETTINGS, progress=progress)


def children() -> list[psutil.Process]:
    """Engine children of this process that still run."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "nbutils._engine_child" in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


# ── files that are not what they should be ────────────────────────────────────────────────────────


def n_header(whole: bytes, path: Path) -> int:
    return int(gguf.GGUFReader(path).data_offset)


DAMAGE: dict[str, tuple[Callable[[bytes, int], bytes], str]] = {
    "empty": (lambda whole, header: b"", "is empty"),
    "a zip archive": (lambda whole, header: b"PK\x03\x04" + whole[4:], "is not a GGUF file"),
    "random bytes": (lambda whole, header: random.Random(1).randbytes(10_000), "is not a GGUF file"),
    "random bytes after the magic": (lambda whole, header: b"GGUF" + random.Random(2).randbytes(10_000), "damaged or cut short"),
    "cut after the magic": (lambda whole, header: whole[:4], "ends inside its header"),
    "cut in the counts": (lambda whole, header: whole[:20], "ends inside its header"),
    "cut in the first key": (lambda whole, header: whole[:40], "damaged or cut short"),
    "cut in the vocabulary": (lambda whole, header: whole[: header // 3], "damaged or cut short"),
    "cut in the list of tensors": (lambda whole, header: whole[: header - 200], "damaged or cut short"),
    "cut where the data starts": (lambda whole, header: whole[:header], "damaged or cut short"),
    "cut in the middle of the data": (lambda whole, header: whole[: (header + len(whole)) // 2], "damaged or cut short"),
    "the last tensor's end missing": (lambda whole, header: whole[:-64], "damaged or cut short"),
    "2**60 tensors": (lambda whole, header: whole[:8] + struct.pack("<Q", 2**60) + whole[16:], "damaged or cut short"),
    "2**60 keys": (lambda whole, header: whole[:16] + struct.pack("<Q", 2**60) + whole[24:], "damaged or cut short"),
    "a key 2**60 bytes long": (lambda whole, header: whole[:24] + struct.pack("<Q", 2**60) + whole[32:], "damaged or cut short"),
    "no tensors": (lambda whole, header: b"GGUF" + struct.pack("<IQQ", 3, 0, 0) + bytes(64), "holds no tensors"),
    "an architecture that nobody knows": (lambda whole, header: whole[:header].replace(b"qwen3", b"qwen9") + whole[header:], "qwen9"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_one_line_that_names_it(damage: str, small_file: Path, tmp_path: Path) -> None:
    change, complaint = DAMAGE[damage]
    whole = small_file.read_bytes()
    bad = tmp_path / "bad-file.gguf"
    bad.write_bytes(change(whole, n_header(whole, small_file)))
    with pytest.raises(EngineError) as caught:
        measure(bad)
    message = str(caught.value)
    assert message.startswith("bad-file.gguf: ")
    assert complaint in message
    assert "\n" not in message
    assert len(message) < 500
    assert str(tmp_path) not in message
    assert children() == []


def test_a_file_that_llama_cpp_refuses_carries_llama_cpps_own_reason(small_file: Path, tmp_path: Path) -> None:
    bad = tmp_path / "renamed.gguf"
    bad.write_bytes(small_file.read_bytes().replace(b"blk.3.attn_k_norm", b"blk.3.attn_k_nord"))
    with pytest.raises(EngineError, match=r"^renamed\.gguf: llama\.cpp refused it: .*blk\.3\.attn_k_nor"):
        measure(bad)


@pytest.mark.parametrize(("what", "complaint"), [("absent.gguf", "does not exist"), (".", "is a folder")])
def test_what_is_not_a_file_is_refused_before_a_process_starts(what: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.subprocess, "Popen", lambda *a, **k: pytest.fail("a process was started"))
    with pytest.raises(UsageError, match=complaint) as caught:
        engine.inspect_file(tmp_path / what)
    assert "give the path of a .gguf file" in str(caught.value)


# ── a child that dies, hangs or is left alone ─────────────────────────────────────────────────────


def test_a_killed_child_is_one_line_that_says_what_it_was_doing(small_file: Path) -> None:
    def kill(stage: str) -> None:
        if stage.startswith("tg"):
            for child in children():
                child.kill()

    with pytest.raises(EngineError, match=r"ended by SIGKILL .*out of memory.* while (?:tg4 at depth 16|filling the context).*nothing was recorded"):
        measure(small_file, kill)
    assert children() == []


def test_a_child_that_says_nothing_for_too_long_is_ended(small_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(stage: str) -> None:
        if stage.startswith("pp"):
            monkeypatch.setattr(engine, "SILENCE_LIMIT_S", 0.6)
            for child in children():
                child.send_signal(signal.SIGSTOP)

    with pytest.raises(EngineError, match=r"said nothing for .* while pp16.*ended it, nothing was recorded"):
        measure(small_file, stop)
    assert children() == []


def test_an_interrupted_caller_leaves_no_child_behind(small_file: Path) -> None:
    def interrupt(stage: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(small_file, interrupt)
    assert children() == []


def test_a_measurement_waits_for_another_one(small_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBUTILS_HOME", str(tmp_path))
    told: list[str] = []
    code = "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print('held', flush=True); sys.stdin.read()"
    lock = tmp_path / "cache" / f"measuring-{platform.node()}.lock"
    lock.parent.mkdir()
    with subprocess.Popen([sys.executable, "-c", code, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        assert engine.inspect_file(small_file), "what times nothing does not wait"

        def let_go(stage: str) -> None:
            told.append(stage)
            if stage.startswith("waiting"):
                assert children() == []
                other.kill()

        assert measure(small_file, let_go)["points"]
    assert told[0] == "waiting for another measurement on this machine"
    assert any(stage.startswith("pp16") for stage in told)


def test_where_no_lock_can_be_had_it_is_measured_all_the_same(small_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBUTILS_HOME", str(tmp_path))
    (tmp_path / "cache").write_text("a file where the folder should be", encoding="utf-8")
    assert measure(small_file)["points"]


def test_a_child_that_cannot_even_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.sys, "executable", "/bin/false")
    with pytest.raises(EngineError, match=r"ended with code 1 while starting"):
        engine.describe()


def test_a_child_that_says_something_else_than_events_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chatty = tmp_path / "chatty"
    chatty.write_text("#!/bin/sh\necho hello\n", encoding="utf-8")
    chatty.chmod(0o755)
    monkeypatch.setattr(engine.sys, "executable", str(chatty))
    with pytest.raises(NbutilsError) as caught:
        engine.describe()
    assert "\n" not in str(caught.value)


# ── what is measured ──────────────────────────────────────────────────────────────────────────────


def test_every_point_has_its_samples_and_every_sample_is_positive(small_file: Path) -> None:
    stages: list[str] = []
    found = measure(small_file, stages.append, yardstick_s=0.01)
    prefill, decode = found["points"]
    assert [len(r) for r in prefill["repetitions_s"]] == [1, 1]
    assert [len(r) for r in decode["repetitions_s"]] == [4, 4]
    assert all(t > 0 for point in found["points"] for r in point["repetitions_s"] for t in (*r, point["warmup_s"]))
    for entry in [*found["yardsticks"], *found["kernels"]]:
        assert len(entry["samples_s"]) >= 3
        assert min(entry["samples_s"]) > 0
    assert {"before", "after"} <= {y["when"] for y in found["yardsticks"]}
    # The rulers are for the types that matter: a tenth or more of what a token reads.
    read = found["facts"]["type_bytes_read"]
    matter = {kind for kind, n in read.items() if n >= sum(read.values()) / 10}
    assert matter == {"Q4_K", "Q6_K"}
    vectors, matrices = ({(k["tensor_type"], k["when"]) for k in found["kernels"] if (k["n_batch"] > 1) == many} for many in (False, True))
    assert vectors == {(kind, when) for kind in matter for when in ("before", "after")}
    assert matrices == {(kind, "before") for kind in matter}, "what a prompt can reach at most is asked once"
    assert {k["placement"] for k in found["kernels"] if k["n_batch"] == 1} == {"cache"}
    assert stages[0] == "loading"
    assert children() == []


def test_yardsticks_of_no_length_are_none(small_file: Path) -> None:
    """What is timed is the same; a tool that only wants rates need not wait for the rulers."""
    found = measure(small_file)
    assert (found["yardsticks"], found["kernels"]) == ([], [])
    assert [len(p["repetitions_s"]) for p in found["points"]] == [2, 2]


def test_facts_agree_with_the_reader_of_the_gguf_project(small_file: Path) -> None:
    facts, reader = engine.inspect_file(small_file), gguf.GGUFReader(small_file)
    assert facts["n_parameters"] == sum(int(t.n_elements) for t in reader.tensors)
    assert sum(t["n_bytes"] for t in facts["tensors"]) == sum(int(t.n_bytes) for t in reader.tensors)
    assert facts["file_bytes"] == small_file.stat().st_size
    assert (facts["architecture"], facts["gguf_type"], facts["n_layer"]) == ("qwen3", "Q4_K_M", 4)
    assert facts["kv_bytes_per_token"] == 4 * 2 * 2 * 128 * 2  # layers x (K and V) x heads x width x 2 bytes


def parameters_set_in(module: ModuleType) -> Iterator[tuple[str, str]]:
    """Name of the struct and of the field, of every assignment to what a ``..._default_params()`` made."""
    for function in ast.walk(ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))):
        if not isinstance(function, ast.FunctionDef):
            continue
        struct_of = {}
        for node in ast.walk(function):
            if not isinstance(node, ast.Assign):
                continue
            made = ast.unparse(node.value)
            for target in (t for outer in node.targets for t in (outer.elts if isinstance(outer, ast.Tuple) else [outer])):
                if isinstance(target, ast.Name) and made.endswith("_default_params()"):
                    struct_of[target.id] = made.rsplit(".", 1)[-1].replace("_default_params()", "_params")
                elif isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id in struct_of:
                    yield struct_of[target.value.id], target.attr


def test_every_parameter_that_we_set_is_a_field_of_the_installed_binding() -> None:
    """ctypes takes any attribute name in silence: setting a field that was renamed would do nothing."""
    structs = ("llama_model_params", "llama_context_params", "llama_model_quantize_params")
    fields = in_child(f"import json, llama_cpp as l; print(json.dumps({{s: [f[0] for f in getattr(l, s)._fields_] for s in {structs}}}))")
    measuring, planning = set(parameters_set_in(_bench)), set(parameters_set_in(_allocations))
    for struct_name, name in measuring | planning:
        assert name in fields[struct_name], f"{struct_name} has no {name}"
    context = {"n_ctx", "n_batch", "n_ubatch", "flash_attn_type", "type_k", "type_v", "swa_full"}
    assert {"n_gpu_layers", "n_threads", "n_threads_batch", "n_seq_max", "cb_eval", *context} <= {name for _, name in measuring}
    assert {"no_alloc", "load_mode", "devices", "n_gpu_layers", "n_seq_max", "ftype", "dry_run", *context} <= {name for _, name in planning}


def test_the_description_names_the_binding_and_a_device() -> None:
    import llama_cpp

    found = engine.describe()
    assert found["binding"] == f"llama-cpp-python {llama_cpp.__version__}"
    assert found["device"]["memory_bytes"] > 0
    assert found["system_info"]


def test_the_backend_is_named_without_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, backend in (("CUDA0", "cuda"), ("Metal", "metal"), ("Vulkan12", "vulkan"), ("CPU", "cpu")):
        monkeypatch.setattr(engine, "describe", lambda name=name: {"device": {"name": name}})
        assert engine.backend_name() == backend


# ── planning without measuring ────────────────────────────────────────────────────────────────────

ASKED = [{"n_ctx": 1024, "kv_type": "f16", "n_ubatch": 512, "n_seq": 1}]


def test_a_plan_reads_no_weight_and_takes_no_memory_for_them(small_file: Path, tmp_path: Path) -> None:
    """Of 5.5 MB only the header is left, the rest is a hole: the answers are the same."""
    hollow = tmp_path / small_file.name
    whole = small_file.read_bytes()
    hollow.write_bytes(whole[: n_header(whole, small_file)])
    with hollow.open("r+b") as file:
        file.truncate(len(whole))
    stages: list[str] = []
    found = engine.planned_buffers(hollow, ASKED, progress=stages.append)
    assert found == engine.planned_buffers(small_file, ASKED)
    assert found["weight_bytes"] == sum(t["n_bytes"] for t in engine.inspect_file(small_file)["tensors"])
    assert stages == ["asking llama.cpp: 1 of 1"]
    assert children() == []


def test_a_context_that_llama_cpp_refuses_does_not_take_the_others_with_it(small_file: Path) -> None:
    asked = [ASKED[0] | {"n_seq": 1000}, *ASKED]
    refused, answered = engine.planned_buffers(small_file, asked)["answers"]
    assert refused.keys() == {"refused"}
    assert refused["refused"]
    assert answered == engine.planned_buffers(small_file, ASKED)["answers"][0]


@pytest.mark.parametrize("damage", ["empty", "random bytes after the magic", "cut in the list of tensors", "an architecture that nobody knows"])
def test_a_damaged_file_cannot_be_planned_for_or_quantised(damage: str, small_file: Path, tmp_path: Path) -> None:
    whole, bad = small_file.read_bytes(), tmp_path / "bad-file.gguf"
    bad.write_bytes(DAMAGE[damage][0](whole, n_header(whole, small_file)))
    for call in (lambda: engine.planned_buffers(bad, ASKED), lambda: engine.quantised_types(bad, "Q8_0")):
        with pytest.raises(EngineError, match=r"^bad-file\.gguf: ") as caught:
            call()
        assert "\n" not in str(caught.value)
        assert str(tmp_path) not in str(caught.value)
    assert children() == []


def test_a_refusal_gives_the_error_and_not_a_warning_before_it(tmp_path: Path) -> None:
    path = tmp_path / "hollow.gguf"
    gguf_files.write_hollow(path, registry.load_model("qwen3-0.6b"), registry.load_format("F16"))
    header = path.read_bytes()[: 2**20]
    with path.open("r+b") as file:
        file.write(header.replace(b"blk.3.attn_k_norm", b"blk.3.attn_k_nord"))
    with pytest.raises(EngineError, match=r"llama\.cpp refused it: .*blk\.3\.attn_k_norm"):
        engine.planned_buffers(path, ASKED)


def test_the_quantiser_writes_nothing(small_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    source = gguf_files.make(gguf_files.StandIn("dense", "small", "F16"), registry.load_format("F16"))
    beside = sorted(source.parent.iterdir())
    found = engine.quantised_types(source, "Q4_K_M")
    # Another program has written the same mixture, tensor by tensor: it is the one that the stand-in holds.
    assert found["types"] == {t.name: t.tensor_type.name for t in gguf.GGUFReader(small_file).tensors}
    assert list(tmp_path.iterdir()) == []
    assert sorted(source.parent.iterdir()) == beside


def test_a_planning_child_that_is_killed_is_one_line(small_file: Path) -> None:
    def kill(stage: str) -> None:
        for child in children():
            child.kill()

    many = [ASKED[0] | {"n_ctx": 1024 * (i + 1)} for i in range(50)]
    with pytest.raises(EngineError, match=r"ended by SIGKILL .* while asking llama\.cpp: \d+ of 50"):
        engine.planned_buffers(small_file, many, progress=kill)
    assert children() == []


# ── products of ggml ──────────────────────────────────────────────────────────────────────────────

_PRODUCTS = """
import json
from nbutils._ggml import TYPES, Ggml, Product
ggml = Ggml(use_gpu=False, n_threads=1)
found = {name: ggml.time_product(name, Product(64, 512, n_batch=3, n_products=5), seconds=0.001) for name in TYPES}
ggml.close()
print(json.dumps(found))
"""


def test_a_product_goes_through_the_bytes_that_the_format_says() -> None:
    found = in_child(_PRODUCTS)
    for name, (n_bytes, samples) in found.items():
        elements, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
        assert n_bytes == 5 * 64 * 512 // elements * block_bytes, name
        assert len(samples) >= 3
        assert min(samples) > 0


def test_the_type_numbers_are_those_of_the_format() -> None:
    assert {name: int(gguf.GGMLQuantizationType[name]) for name in TYPES} == TYPES


def test_answers_are_json_lines_whatever_the_libraries_print() -> None:
    """llama.cpp writes to both streams; only our own lines may reach the parent."""
    code = (
        "import json, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-m', 'nbutils._engine_child'], stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        'child.stdin.write(b\'{"op": "describe"}\\n\')\n'
        "child.stdin.flush()\n"
        "print(json.dumps(child.stdout.read().decode()))"
    )
    events = [json.loads(line) for line in in_child(code).splitlines()]
    assert events[-1]["event"] == "result"


def test_the_bytes_read_by_type_are_those_of_the_model(small_file: Path) -> None:
    model, fmt = gguf_files.stand_in_model("dense", "small"), registry.load_format("Q4_K_M")
    assert sum(engine.inspect_file(small_file)["type_bytes_read"].values()) == weight_bytes_read(model, fmt)


def test_a_child_whose_parent_is_gone_ends() -> None:
    """However the parent ended, it cannot have closed things in order: the end of the child's input is the sign."""
    child = subprocess.Popen([sys.executable, "-m", "nbutils._engine_child"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None
    child.stdin.write(b'{"op": "probe", "seconds": 60, "n_threads": 1, "use_gpu": false}\n')
    child.stdin.flush()
    assert child.stdout is not None
    assert json.loads(child.stdout.readline())["event"] == "progress"
    child.stdin.close()
    assert child.wait(timeout=60) == 1
    child.stdout.close()
