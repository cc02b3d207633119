"""From a name to a record: what is measured, on what, and that a record names nobody's disk."""

from __future__ import annotations

import http.server
import os
import platform
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import MIB
from nbutils import measure, records, registry
from nbutils.errors import EngineError, MissingExtra, UnknownId, UsageError
from nbutils.specs import Record, Suite, SuitePoint, TriedThreads
from pynvml_stand_in import Card, StandIn

NBUTILS = [sys.executable, "-c", "from nbutils.cli import main; main()"]
REPO, FILE = "somebody/some-model-GGUF", "some-model-Q4_K_M.gguf"
BUILT_FOR_CPU = {"gpu_offload": False, "device": {"is_gpu": False, "memory_bytes": 2**30}}
BUILT_FOR_GPU = {"gpu_offload": True, "device": {"is_gpu": True}}


def assert_names_nobody(text: str, *folders: Path) -> None:
    """A record that somebody publishes must not tell where it was made."""
    private = {str(Path.home()), tempfile.gettempdir(), os.environ["NBUTILS_HOME"], platform.node(), *map(str, folders)}
    assert [word for word in private if len(word) > 3 and word in text] == []


# ── processor or graphics card ────────────────────────────────────────────────────────────────────


def test_a_build_without_gpu_on_a_machine_with_one_is_refused_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", StandIn(Card("NVIDIA GeForce RTX 4090", 24 * 2**30)))
    with pytest.raises(MissingExtra) as caught:
        measure.check_backend(BUILT_FOR_CPU, cpu=False)
    message = str(caught.value)
    for part in ("NVIDIA GeForce RTX 4090", "-DGGML_CUDA=on", "pip install", "llama-cpp-python==0.3.36", "--cpu"):
        assert part in message
    measure.check_backend(BUILT_FOR_CPU, cpu=True)
    measure.check_backend(BUILT_FOR_GPU, cpu=False)


def test_a_machine_without_gpu_is_measured_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", StandIn(has_driver=False))
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    measure.check_backend(BUILT_FOR_CPU, cpu=False)


def test_an_apple_machine_is_told_about_metal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure.probe, "machine", lambda: type("Machine", (), {"gpus": ()}))
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    with pytest.raises(MissingExtra, match=r"Apple GPU.*GGML_METAL"):
        measure.check_backend(BUILT_FOR_CPU, cpu=False)


@pytest.mark.parametrize(
    ("description", "cpu", "wanted"),
    [
        (BUILT_FOR_GPU, False, True),
        (BUILT_FOR_GPU, True, False),
        (BUILT_FOR_CPU, False, False),
        ({"gpu_offload": True, "device": {"is_gpu": False}}, False, False),
    ],
)
def test_layers_go_to_the_gpu_when_build_and_machine_can_and_nobody_minds(description: dict[str, Any], cpu: bool, wanted: bool) -> None:
    assert measure.wants_gpu(description, cpu=cpu) is wanted


# ── which file ────────────────────────────────────────────────────────────────────────────────────


def test_a_misspelt_stand_in_suggests_the_nearest() -> None:
    with pytest.raises(UnknownId, match="did you mean 'stand-in-dense-small'"):
        measure.find_model("stand-in-dence-small")


def test_a_name_that_is_neither_stand_in_nor_file_says_both_ways() -> None:
    with pytest.raises(UnknownId, match=r"or give a path to a \.gguf file"):
        measure.find_model("llama-3.3-70b")


def test_a_path_and_a_repository_together_are_refused() -> None:
    with pytest.raises(UsageError, match="give one"):
        measure.find_model("model.gguf", repo=REPO, file=FILE)


@pytest.mark.parametrize(("repo", "file"), [(REPO, ""), ("", FILE)])
def test_half_a_hub_model_is_refused_naming_both_halves(repo: str, file: str) -> None:
    with pytest.raises(UsageError, match=f"repo is {repo!r}, file is {file!r}"):
        measure.find_model(repo=repo, file=file)


def test_a_repository_name_with_spaces_is_refused_before_the_network() -> None:
    with pytest.raises(UsageError, match="is not the name of a repository"):
        measure.find_model(repo="not a repo!!", file=FILE)


def test_an_absent_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        measure.measure(measure.find_model(str(tmp_path / "absent.gguf")), registry.load_suite("smoke"), cpu=True)


# ── what is timed, and with what ──────────────────────────────────────────────────────────────────


def suite(prompts: str = "512", generated: str = "128", depths: str = "0", sequences: str = "1", repetitions: int = 5) -> Suite:
    def numbers(text: str) -> list[int]:
        return [int(n) for n in text.split(",") if n]

    lists = {"prompts": prompts, "generated": generated, "depths": depths, "sequences": sequences}
    return measure.custom_suite(**{name: numbers(text) for name, text in lists.items()}, repetitions=repetitions)


def words(found: Suite) -> list[str]:
    """Points as llama-bench names its tests."""
    return [
        f"{'pp' if p.kind == 'prefill' else 'tg'}{p.n_tokens}" + (f"@{p.depth}" if p.depth else "") + (f"x{p.n_seq}" if p.n_seq > 1 else "")
        for p in found.points
    ]


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({}, "pp512 tg128"),
        ({"prompts": "32,64", "generated": "8,16"}, "pp32 pp64 tg8 tg16"),
        ({"depths": "0,1024"}, "pp512 tg128 pp512@1024 tg128@1024"),  # a depth with all its tests after the other
        ({"prompts": "0"}, "tg128"),
        ({"generated": "0"}, "pp512"),
        ({"prompts": "0,16", "generated": "0", "depths": "8"}, "pp16@8"),
        ({"prompts": "", "generated": "4", "sequences": "1,2,16"}, "tg4 tg4x2 tg4x16"),
        ({"prompts": "4", "generated": "4", "depths": "0,8", "sequences": "1,2"}, "pp4 tg4 tg4x2 pp4@8 tg4@8 tg4@8x2"),
    ],
)
def test_tests_come_in_llama_benchs_order_and_0_leaves_one_out(asked: dict[str, str], found: str) -> None:
    made = suite(**asked)
    assert words(made) == found.split()
    assert (made.id, made.repetitions) == ("custom", 5)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"prompts": "0", "generated": "0"}, "nothing to time: both -p and -n are 0"),
        ({"depths": ""}, "nothing to time"),
        ({"prompts": "65537"}, r"n_tokens: .*less than or equal to 65536 \(got '65537'\)"),
        ({"depths": "1048577"}, r"depth: .*less than or equal to 1048576 \(got '1048577'\)"),
        ({"sequences": "257"}, r"n_seq: .*less than or equal to 256 \(got '257'\)"),
        ({"sequences": "0"}, r"n_seq: .*greater than 0"),
        ({"prompts": "-1"}, r"n_tokens: .*greater than 0 \(got '-1'\)"),
        ({"repetitions": 0}, r"repetitions: .*greater than 0"),
        ({"repetitions": 101}, r"repetitions: .*less than or equal to 100"),
        ({"prompts": "9" * 30}, r"n_tokens: "),
    ],
)
def test_absurd_numbers_are_refused_in_one_line(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        suite(**asked)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"flash_attn": "maybe"}, "flash attention 'maybe'; it is on, off or auto"),
        ({"type_k": "Q8"}, r"type_k 'Q8'; did you mean 'Q8_0'\?"),
        ({"type_v": "Q2_K"}, "type_v 'Q2_K'.*it is one of F16, Q8_0, Q4_0"),
        ({"n_batch": 256, "n_ubatch": 512}, "a micro-batch of 512 tokens is larger than the batch of 256"),
    ],
)
def test_a_setting_that_is_none_is_refused_before_anything_runs(knobs: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        measure.Knobs(**knobs)


def test_settings_follow_from_the_machine_where_nobody_sets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure.probe, "n_threads_default", lambda: 6)
    plain, card = (measure.settings_of(measure.Knobs(), use_gpu=gpu, n_ctx=64) for gpu in (False, True))
    assert (plain.n_threads, plain.n_gpu_layers, card.n_gpu_layers) == (6, 0, -1)
    assert (plain.n_batch, plain.n_ubatch, plain.flash_attn, plain.type_k) == (2048, 512, "auto", "F16")
    chosen = measure.Knobs(n_threads=3, n_gpu_layers=7, type_v="Q4_0")
    few, none = (measure.settings_of(chosen, use_gpu=gpu, n_ctx=64) for gpu in (True, False))
    assert (few.n_threads, few.n_gpu_layers, few.type_v) == (3, 7, "Q4_0")
    assert none.n_gpu_layers == 0, "without a GPU there is nothing to offload to"


@pytest.mark.parametrize(("layers", "device"), [(None, "CUDA0: a card"), (4, "CUDA0: a card"), (0, "CPU")])
def test_where_no_layer_is_offloaded_the_processor_is_what_was_measured(
    layers: int | None, device: str, small_file: Path, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a share would be taken of the bandwidth of a card that held no weight."""
    fields = record.model_dump()
    whole = {name: fields[name] for name in ("points", "yardsticks", "kernels", "sample_text")}
    whole |= {"facts": {k: v for k, v in fields["model"].items() if k not in ("name", "origin", "reference")}, "flash_attn_used": "on"}
    whole |= {"memory": {"own": fields["memory"]["own"], "stages": fields["memory"]["stages"]}}
    card = {"is_gpu": True, "name": "CUDA0", "description": "a card", "memory_bytes": 2**34}
    monkeypatch.setattr(measure.engine, "measure_file", lambda *a, **k: whole)
    monkeypatch.setattr(measure.engine, "describe", lambda: {"gpu_offload": True, "device": card, "binding": "b", "system_info": "s"})
    monkeypatch.setattr(measure, "_predicted", lambda *a: ({}, ""))
    found = measure.measure(measure.find_model(str(small_file)), record.suite, knobs=measure.Knobs(n_gpu_layers=layers))
    assert found.backend.device == device
    assert found.settings.n_gpu_layers == (-1 if layers is None else layers)


# ── threads ───────────────────────────────────────────────────────────────────────────────────────


@given(threads=st.integers(1, 512).flatmap(lambda hw: st.tuples(st.integers(1, hw), st.just(hw))))
def test_threads_to_try_reach_from_one_to_all_and_have_the_cores_among_them(threads: tuple[int, int]) -> None:
    n_cores, n_threads_hw = threads
    tried = measure.threads_to_try(n_cores, n_threads_hw)
    assert tried == sorted(set(tried)), "each once, upwards"
    assert {1, n_cores, n_threads_hw, max(1, n_cores - 1)} <= set(tried)
    assert all(1 <= n <= n_threads_hw for n in tried)
    assert len(tried) <= 3 + n_threads_hw.bit_length(), "few enough to try them all"
    assert all(b <= 2 * a for a, b in pairwise(tried)), "no gap in which the best could hide"


def tried(n_threads: int, decode_s: tuple[float, ...], prefill_s: tuple[float, ...] = (1.0,)) -> TriedThreads:
    return TriedThreads(n_threads=n_threads, decode_tokens=8, decode_s=decode_s, prefill_tokens=64, prefill_s=prefill_s)


@pytest.mark.parametrize(
    ("decode_s", "best"),
    [
        ({1: (4.0,), 2: (2.0,), 4: (1.0,)}, 4),
        ({1: (4.0,), 2: (1.0,), 4: (2.0,)}, 2),
        ({1: (1.0,), 2: (1.0,), 4: (1.0,)}, 1),
        ({2: (1.009,), 4: (1.0,)}, 2),  # within one per cent fewer threads win
        ({2: (1.011,), 4: (1.0,)}, 4),
        ({2: (1.0, 1.0, 9.0), 4: (0.5, 2.0, 2.0)}, 2),  # the median, not the best moment
    ],
)
def test_the_best_number_of_threads_is_the_smallest_among_the_fastest(decode_s: dict[int, tuple[float, ...]], best: int) -> None:
    found = [tried(n, seconds) for n, seconds in decode_s.items()]
    assert measure.best_threads(found) == best
    assert measure.best_threads(found[::-1]) == best


def test_a_prompt_may_want_more_threads_than_decode() -> None:
    found = [tried(2, (1.0,), (4.0,)), tried(8, (2.0,), (1.0,))]
    assert (measure.best_threads(found), measure.best_threads(found, "prefill")) == (2, 8)


@given(seconds=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=9))
def test_no_number_of_threads_is_faster_than_the_best_by_more_than_a_hundredth(seconds: list[float]) -> None:
    best = measure.best_threads([tried(n + 1, (s,)) for n, s in enumerate(seconds)])
    assert seconds[best - 1] <= 1.01 * min(seconds)
    assert all(s > 1.01 * min(seconds) for s in seconds[: best - 1])


def test_tuning_asks_for_every_number_and_keeps_raw_times(small_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def engine(path: Path, **request: Any) -> list[dict[str, Any]]:
        asked.update(request)
        return [tried(n, (0.1, 0.2)).model_dump() for n in request["tried"]]

    monkeypatch.setattr(measure.engine, "describe", lambda: BUILT_FOR_CPU)
    monkeypatch.setattr(measure.engine, "tune_threads", engine)
    monkeypatch.setattr(measure.probe, "n_threads_default", lambda: 2)
    monkeypatch.setattr(measure.probe, "n_threads_allowed", lambda: 4)
    found = measure.tune(measure.find_model(str(small_file)), cpu=True, rounds=2)
    assert asked["tried"] == [1, 2, 4]
    assert asked["rounds"] == 2
    assert [t.n_threads for t in found] == [1, 2, 4]
    assert found[0].decode_s == (0.1, 0.2)


# ── a record ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def record(small_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Record:
    """A user's own file, in a folder that must not show."""
    path = tmp_path_factory.mktemp("secret-folder") / "my-model.gguf"
    path.symlink_to(small_file)
    return measure.measure(measure.find_model(str(path)), registry.load_suite("smoke"), knobs=measure.Knobs(n_threads=1), cpu=True)


def test_a_record_says_what_was_run_and_survives_a_round_trip(record: Record, tmp_path: Path) -> None:
    assert (record.model.name, record.model.origin, record.model.reference) == ("my-model", "file", "")
    assert (record.settings.n_threads, record.settings.n_gpu_layers, record.backend.device) == (1, 0, "CPU")
    assert record.suite == registry.load_suite("smoke")
    assert record.machine.memory_bytes == psutil.virtual_memory().total
    assert record.versions["llama_cpp_python"] == "0.3.36"
    assert records.read(records.write(record, tmp_path)) == record


def test_a_record_says_how_much_memory_was_foretold_made_and_taken(record: Record) -> None:
    """The fit arithmetic against the run it is about: the longest context, here a prompt of 32 tokens in a cache padded to 256."""
    use = record.memory
    assert use is not None
    assert (use.n_ctx, use.n_seq, use.compute_basis) == (32, 1, "asked")
    own = {what: sum(b.n_bytes for b in use.own if b.what == what) for what in ("kv", "compute", "output")}
    assert {what: use.predicted_bytes[what] for what in own} == pytest.approx(own, abs=0.01 * MIB), "as exactly as llama.cpp prints"
    assert use.predicted_bytes["kv"] == 256 * (record.model.kv_bytes_per_token or 0)
    assert use.predicted_bytes["weights"] == sum(group.n_bytes for group in record.model.tensors)
    assert use.predicted_bytes["recurrent"] == 0
    assert [s.stage for s in use.stages] == ["start", "loaded", "before", "context", "ran"]


def test_a_record_has_its_moments_and_meters_on_one_clock(record: Record) -> None:
    beside = record.neighbours
    assert beside is not None
    assert all(0 < at < beside.wall_s for point in record.points for at in point.at_s)
    assert beside.own_s > 0, "the child's work counts as ours"
    assert record.settings.flash_attn_used in ("on", "off")
    for trace in record.traces:
        assert list(trace.at_s) == sorted(trace.at_s)


@pytest.mark.parametrize(
    ("change", "basis", "share"),
    [
        ({"type_k": "Q8_0", "type_v": "F16"}, "upper_bound", (34 / 32 + 2) / 4),
        ({"type_k": "Q8_0", "type_v": "Q8_0"}, "asked", 34 / 64),
        ({"flash_attn": "off"}, "", 1),  # of which llama.cpp is not asked, and our bound does not hold
        ({"n_ubatch": 128}, "asked", 1),
        ({"n_gpu_layers": 3}, "upper_bound", 1),
    ],
)
def test_what_is_foretold_follows_the_settings(change: dict[str, Any], basis: str, share: float, record: Record, small_file: Path) -> None:
    settings = record.settings.model_copy(update=change)
    parts, told = measure._predicted(small_file, SuitePoint(kind="decode", n_tokens=200, depth=100, n_seq=3), settings)
    assert {"weights", "kv", "recurrent", "compute", "output"} - parts.keys() == (set() if basis else {"compute"})
    assert parts["kv"] == 3 * 512 * 4096 * share
    assert told == basis


def test_of_a_file_that_nobody_understands_nothing_is_foretold(record: Record, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + b"\xff" * 100)
    assert measure._predicted(path, record.suite.points[0], record.settings) == ({}, "")


def test_a_record_names_nobodys_disk(record: Record) -> None:
    text = record.model_dump_json()
    assert "secret-folder" not in text
    assert_names_nobody(text)


def test_a_measurement_that_makes_no_record_is_one_line(small_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {"facts": {}, "points": [], "yardsticks": [], "kernels": []}
    monkeypatch.setattr(measure.engine, "measure_file", lambda *a, **k: whole)
    monkeypatch.setattr(measure.engine, "describe", lambda: BUILT_FOR_CPU | {"binding": "b", "system_info": "s"})
    with pytest.raises(EngineError, match=r"the measurement makes no record"):
        measure.measure(measure.find_model(str(small_file)), registry.load_suite("smoke"), cpu=True)


# ── a hub that is not the hub ─────────────────────────────────────────────────────────────────────


class Hub(http.server.ThreadingHTTPServer):
    """Enough of the Hugging Face protocol for one file of one repository, on loopback. ``mood`` makes it misbehave."""

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.content, self.mood = content, "kind"
        self.asked: list[str] = []


class HubHandler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        hub = self.server
        hub.asked.append(f"{self.command} {self.path}")
        if self.path != f"/{REPO}/resolve/main/{FILE}" or hub.mood in ("absent", "gated"):
            gated = hub.mood == "gated"
            self.send_response(401 if gated else 404)
            self.send_header("X-Error-Code", "GatedRepo" if gated else "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("X-Repo-Commit", "0123456789" * 4)
        self.send_header("ETag", '"an-etag"')
        self.send_header("Content-Length", str(len(hub.content)))
        self.end_headers()
        if with_body and hub.mood == "stops":
            self.wfile.write(hub.content[: len(hub.content) // 2])
            self.wfile.flush()
            self.connection.close()
        elif with_body:
            self.wfile.write(hub.content)


@pytest.fixture
def hub(small_file: Path) -> Iterator[Hub]:
    server = Hub(small_file.read_bytes())
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def measure_from(hub: Hub, home: Path, file: str = FILE) -> subprocess.CompletedProcess[str]:
    """What a user types; huggingface_hub reads its address when it is imported, hence another process."""
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(home / "hub"),
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    command = [*NBUTILS, "measure", "--repo", REPO, "--file", file, "--suite", "smoke", "--cpu", "-t", "1"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def the_one_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stderr.splitlines() if line.startswith("nbutils: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


def test_a_file_of_the_hub_is_fetched_and_measured_and_called_by_its_repository(hub: Hub, own_home: Path) -> None:
    done = measure_from(hub, own_home)
    assert done.returncode == 0, done.stderr
    (path,) = records.list_records()
    record = records.read(path)
    assert (record.model.origin, record.model.reference, record.model.name) == ("hub", REPO, "some-model-Q4_K_M")
    assert record.model.file_bytes == len(hub.content)
    assert_names_nobody(path.read_text(encoding="utf-8"), own_home)
    assert {line.split()[1] for line in hub.asked} == {f"/{REPO}/resolve/main/{FILE}"}


@pytest.mark.parametrize(("mood", "status"), [("absent", "404"), ("gated", "401")])
def test_a_hub_that_refuses_is_one_line(hub: Hub, own_home: Path, mood: str, status: str) -> None:
    hub.mood = mood
    done = measure_from(hub, own_home)
    assert done.returncode == 1
    line = the_one_line(done)
    assert f"{REPO}/{FILE}: the hub answered {status}" in line
    assert "token" in line
    assert records.list_records() == []


def test_a_hub_that_stops_in_mid_file_leaves_no_record(hub: Hub, own_home: Path) -> None:
    hub.mood = "stops"
    done = measure_from(hub, own_home)
    assert done.returncode == 1
    line = the_one_line(done)
    assert f"{REPO}/{FILE}: " in line
    assert_names_nobody(line, own_home)
    assert records.list_records() == []


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub tries for half a minute before it says so; here it says so at once."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def refuse(*_: Any) -> None:
        raise LocalEntryNotFoundError("An error happened while trying to locate the file")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(EngineError, match=f"^{REPO}/{FILE}: the hub cannot be reached"):
        measure.find_model(repo=REPO, file=FILE)


def test_more_times_than_a_record_holds_are_refused_before_they_are_measured(small_file: Path) -> None:
    suite = measure.custom_suite(prompts=[0], generated=[2048], depths=[0], sequences=[1], repetitions=100)
    with pytest.raises(UsageError, match=r"204,800 times of tokens make a record of up to 2\.5 MB, over the limit of 0\.5"):
        measure.measure(measure.find_model(str(small_file)), suite, cpu=True)
