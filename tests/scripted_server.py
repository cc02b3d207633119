"""A server that speaks the OpenAI protocol from a script: it keeps known times, counts tokens by a rule, and has moods.

What it did and when, by the clock the client reads too, is in ``seen``: the truth that a measurement is compared with.
"""

from __future__ import annotations

import gzip
import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

#: A request for more tokens than this is measured; shorter ones come before.
WARMUP_TOKENS = 16
TEMPLATE_TOKENS = 11
#: Special tokens and bytes at the beginning of a stand-in's vocabulary.
N_NOT_WORDS = 3 + 256


def count_tokens(text: str) -> int:
    """The tokenizer: a token for a word of up to five letters, two for a longer one."""
    return sum(1 if len(word) <= 5 else 2 for word in text.split())


@dataclass(kw_only=True)
class Script:
    """Times in seconds. ``mood`` is what goes wrong, after ``after`` pieces, in the measured requests of ``on`` (empty: all of them)."""

    ttft_s: float = 0.0
    prefill_s_per_token: float = 0.0
    itl_s: float = 0.0
    #: Each further request in flight makes every token slower by as much again.
    shared: bool = False
    tokens_per_piece: int = 1
    stop_after: int | None = None
    n_reasoning: int = 0
    n_hidden: int = 0
    reasoning_field: str = "reasoning_content"
    usage: bool = True
    n_cached: int | None = None
    refuses: tuple[str, ...] = ()
    models: tuple[str, ...] = ("scripted",)
    lists: bool = True
    key: str = ""
    paths: tuple[str, ...] = ("/v1/chat/completions", "/v1/completions")
    mood: str = ""
    after: int = 3
    on: tuple[int, ...] = ()
    in_warmup: bool = False
    end: str = "\n"


@dataclass
class Seen:
    """One request as the server saw it."""

    path: str
    body: dict[str, Any]
    received_s: float
    n_prompt: int = 0
    pieces_s: list[float] = field(default_factory=list)


@dataclass
class Server:
    script: Script
    url: str
    seen: list[Seen] = field(default_factory=list)
    active: int = 0
    closing: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def measured(self) -> list[Seen]:
        return [s for s in self.seen if s.body["stream"] and s.body["max_tokens"] > WARMUP_TOKENS]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server_version, sys_version = "Scripted", ""
    owner: ClassVar[Server]

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        pass

    def do_GET(self) -> None:
        script = self.owner.script
        if self.path != "/v1/models" or not script.lists:
            self.whole(404, {"detail": "Not Found"})
        elif self.allowed():
            self.whole(200, {"object": "list", "data": [{"id": name, "owned_by": "scripts"} for name in script.models]})

    def do_POST(self) -> None:
        received_s = time.perf_counter()
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        owner, script = self.owner, self.owner.script
        seen = Seen(self.path, body, received_s)
        seen.n_prompt = count_tokens(body.get("prompt") or body["messages"][0]["content"]) + (TEMPLATE_TOKENS if "messages" in body else 0)
        with owner.lock:
            owner.seen.append(seen)
            position = len(owner.measured) - 1
        if not self.allowed():
            return
        if self.path not in script.paths:
            self.whole(404, {"detail": "Not Found"})
        elif refused := [name for name in script.refuses if name in body]:
            self.whole(400, {"error": {"message": f"unknown argument {refused[0]}", "type": "invalid_request_error"}})
        elif not body["stream"]:
            self.whole(200, {"choices": [], "usage": {"prompt_tokens": seen.n_prompt, "completion_tokens": 1}})
        else:
            is_measured = body["max_tokens"] > WARMUP_TOKENS
            moody = script.in_warmup or (is_measured and (not script.on or position in script.on))
            self.stream(seen, script.mood if moody else "")

    # ── answers ──

    def allowed(self) -> bool:
        if self.owner.script.key and self.headers.get("Authorization") != f"Bearer {self.owner.script.key}":
            self.whole(401, {"error": {"message": f"bad key {self.headers.get('Authorization')}"}})
            return False
        return True

    def whole(self, status: int, value: object, **headers: str) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, said in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, said)
        self.end_headers()
        self.wfile.write(data)

    def put(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def event(self, text: str) -> None:
        end = self.owner.script.end
        self.put(f"data: {text}{end}{end}".encode())

    def chunk(self, finish: str | None = None, **said: object) -> None:
        is_chat = self.path.endswith("/chat/completions")
        choice = {"delta": said} if is_chat else {"text": said.get("content", "")}
        self.event(json.dumps({"system_fingerprint": "s-1", "choices": [{"index": 0, **choice, "finish_reason": finish}]}))

    def stream(self, seen: Seen, mood: str) -> None:
        before = {
            "http 500": lambda: self.whole(500, {"error": {"message": "out of\nmemory at /home/somebody/x.gguf"}}),
            "redirect": lambda: self.whole(307, b"", Location="http://127.0.0.1:9/v1"),
            "one piece": lambda: self.whole(200, {"choices": [{"message": {"content": "all at once"}}]}),
            "web page": lambda: self.whole(200, b"<html>hello</html>", **{"Content-Type": "text/html"}),
            "compressed": lambda: self.whole(200, gzip.compress(b"data: x\n\n"), **{"Content-Type": "text/event-stream", "Content-Encoding": "gzip"}),
            "no HTTP": lambda: self.wfile.write(b"hello\r\n\r\n"),
        }
        if mood in before:
            before[mood]()
            self.close_connection = True
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with self.owner.lock:
            self.owner.active += 1
        try:
            self.answer(seen, mood)
        except OSError:
            pass  # the client has had enough
        finally:
            with self.owner.lock:
                self.owner.active -= 1
            self.close_connection = True

    def sleep_until(self, moment_s: float) -> None:
        self.owner.closing.wait(max(0.0, moment_s - time.perf_counter()))

    def answer(self, seen: Seen, mood: str) -> None:
        script, owner = self.owner.script, self.owner
        if mood == "chatter":
            self.chunk(role="assistant", content="")
            self.put(b": still here\r\n\r\n: and here\n\n\n")
            self.put(b'event: ping\ndata: {"choices":\ndata: []}\n\ndata:\n\n')
        n_tokens = min(seen.body["max_tokens"], script.stop_after or 10**9)
        moment_s = seen.received_s + script.ttft_s + seen.n_prompt * script.prefill_s_per_token
        sent = script.n_hidden
        while sent < n_tokens:
            self.sleep_until(moment_s)
            if len(seen.pieces_s) == script.after and self.misbehave(mood):
                return
            n = min(script.tokens_per_piece, n_tokens - sent)
            seen.pieces_s.append(time.perf_counter())
            self.chunk(**{script.reasoning_field if sent < script.n_reasoning + script.n_hidden else "content": " w" * n})
            sent += n
            moment_s += script.itl_s * n * (owner.active if script.shared else 1)
            if mood == "endless":
                n_tokens += n
        self.finish(seen, mood, n_tokens)

    def finish(self, seen: Seen, mood: str, n_tokens: int) -> None:
        script = self.owner.script
        if mood not in ("no finish", "cut short"):
            self.chunk(finish="length" if n_tokens == seen.body["max_tokens"] else "stop")
        if script.usage and seen.body.get("stream_options", {}).get("include_usage"):
            usage: dict[str, Any] = {"prompt_tokens": seen.n_prompt, "completion_tokens": n_tokens}
            if script.n_cached is not None:
                usage["prompt_tokens_details"] = {"cached_tokens": script.n_cached}
            if script.n_reasoning + script.n_hidden:
                usage["completion_tokens_details"] = {"reasoning_tokens": script.n_reasoning + script.n_hidden}
            self.event(json.dumps({"choices": [], "usage": usage}))
        if mood not in ("no finish", "no [DONE]"):
            self.event("[DONE]")
        if mood == "lingers":
            self.owner.closing.wait(30)
        self.put(b"")

    def misbehave(self, mood: str) -> bool:
        """What ends an answer before its time; whether it did."""
        owner = self.owner
        if mood == "closes":
            return True
        if mood == "stalls":
            owner.closing.wait(30)
            return True
        if mood == "keeps alive":
            while not owner.closing.wait(0.02):
                self.put(b": wait\n\n")
            return True
        if mood == "broken JSON":
            self.event('{"choices": [{"delta": {"content"')
        elif mood == "error":
            self.event(json.dumps({"error": {"message": "the model\x07 crashed on http://10.0.0.1:80/x", "code": 500}}))
        elif mood == "no object":
            self.event("[1, 2]")
        elif mood == "garbage":
            for _ in range(64):
                self.put(b"x" * 2**16)
        elif mood == "deep":
            self.event("[" * 100_000)
        else:
            return False
        owner.closing.wait(5)
        return True


class Listener(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that left


def writes_plain_words(source: Path, target: Path) -> Path:
    """A copy of a stand-in whose next token is never a lone byte and never the end: the head's rows of these are zero, which is below the largest.

    llama_cpp.server keeps back text that could be the beginning of a character, and after a byte that can be none, everything up to the end.
    """
    import gguf

    shutil.copyfile(source, target)
    reader = gguf.GGUFReader(target, "r+")
    (head,) = (tensor for tensor in reader.tensors if tensor.name == "output.weight")
    head.data[:N_NOT_WORDS] = 0
    reader.data.flush()
    return target


@contextmanager
def scripted(**script: Any) -> Iterator[Server]:
    """Serve a script on loopback."""
    handler = type("Owned", (Handler,), {})
    listener = Listener(("127.0.0.1", 0), handler)
    server = handler.owner = Server(Script(**script), f"http://127.0.0.1:{listener.server_address[1]}/v1")  # type: ignore[attr-defined]
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        listener.shutdown()
        listener.server_close()
        thread.join()
