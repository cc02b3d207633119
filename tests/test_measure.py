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
from pathlib import Path
from typing import Any

import psutil
import pytest

from nbutils import measure, records, registry
from nbutils.errors import EngineError, MissingExtra, UnknownId, UsageError
from nbutils.specs import Record
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


# ── a record ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def record(small_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Record:
    """A user's own file, in a folder that must not show."""
    path = tmp_path_factory.mktemp("secret-folder") / "my-model.gguf"
    path.symlink_to(small_file)
    return measure.measure(measure.find_model(str(path)), registry.load_suite("smoke"), n_threads=1, cpu=True)


def test_a_record_says_what_was_run_and_survives_a_round_trip(record: Record, tmp_path: Path) -> None:
    assert (record.model.name, record.model.origin, record.model.reference) == ("my-model", "file", "")
    assert (record.settings.n_threads, record.settings.n_gpu_layers, record.backend.device) == (1, 0, "CPU")
    assert record.suite == registry.load_suite("smoke")
    assert record.machine.memory_bytes == psutil.virtual_memory().total
    assert record.versions["llama_cpp_python"] == "0.3.36"
    assert records.read(records.write(record, tmp_path)) == record


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
    command = [*NBUTILS, "measure", "--repo", REPO, "--file", file, "--suite", "smoke", "--cpu"]
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
