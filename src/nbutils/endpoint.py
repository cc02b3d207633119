"""A server that speaks the OpenAI protocol, measured from outside: llama-server, Ollama, LM Studio, vLLM, NIM.

Every request streams one answer to a prompt that no server has seen before, and keeps when each piece of it came. The first piece with content, not
the first chunk, ends TTFT. What the server counts (tokens of the prompt, of the answer, from its cache, of reasoning) is kept beside what was seen.
Nothing a server does ends a run with less than was measured: a request that fails keeps its pieces and says why.
"""

from __future__ import annotations

import asyncio
import importlib
import ipaddress
import itertools
import json
import math
import random
import re
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Literal

import psutil
from pydantic import ValidationError

from nbutils import probe, records, registry
from nbutils.errors import EngineError, MissingExtra, UsageError, did_you_mean
from nbutils.measure import provenance
from nbutils.specs import ServedRecord, ServedRequest

__all__ = ["API_KEY", "SERVER_PACKAGES", "Answer", "Trouble", "has_server", "measure", "own_server", "prompt", "words_for"]

Progress = Callable[[str], None]
Interface = Literal["chat", "completions"]

#: The environment variable that callers take ``api_key`` from.
API_KEY = "NBUTILS_API_KEY"
#: What llama-cpp-python's own server imports.
SERVER_PACKAGES = ("fastapi", "uvicorn", "sse_starlette", "starlette_context", "pydantic_settings")

SEED = 20261120
_INTERFACES: dict[str, tuple[Interface, ...]] = {"auto": ("chat", "completions"), "chat": ("chat",), "completions": ("completions",)}
_PATHS: dict[Interface, str] = {"chat": "/chat/completions", "completions": "/completions"}
#: What is asked for, most first: a server that refuses the longer list (HTTP 400 or 422) is asked with the next. At temperature 0 sampling is least
#: work; a server that knows ``ignore_eos`` gives answers of one length.
_VALUES: dict[str, bool | int | float] = {"temperature": 0.0, "seed": SEED, "ignore_eos": True, "include_usage": True}
_VARIANTS = (("temperature", "seed", "ignore_eos", "include_usage"), ("temperature", "seed", "include_usage"), ("temperature", "seed"), ())

#: One event of a stream, one answer that is no stream, and what is read of a refusal.
_MAX_EVENT_BYTES, _MAX_BODY_BYTES, _MAX_REFUSAL_BYTES = 2**18, 2**21, 2**16
#: Pieces beyond ``max_tokens`` before a server is taken not to keep it.
_EXTRA_PIECES = 16
#: A finished answer may be followed by the server's counts; not for longer than this.
_AFTERWORD_S = 2.0
#: Estimated bytes in a record: of a request, of one of its pieces, of everything else. Times are kept to 10 microseconds.
_REQUEST_BYTES, _PIECE_BYTES, _OTHER_BYTES = 270, 9, 10_000
#: A stream that fails twice in a row sends no more.
_FAILURES = 2
#: How often it is looked whether this program gets to listen.
_WATCH_S = 0.01
#: Loading a hundred GB from a slow disk takes minutes.
_START_LIMIT_S = 1800.0


class Trouble(Exception):
    """Why an answer is not whole. The message is one line and may quote the server."""


# ── prompts ───────────────────────────────────────────────────────────────────────────────────────

#: Common words, most of them one token with the space before them.
_WORDS = (
    "apple arm army ball band bank bath beach bear bell bird boat body bone book bottle box boy bread bridge brother bus cake camera camp car "
    "card castle cat chair cheese child church circle city cloud coat coffee color corn cow cross cup dance day deer desk dinner doctor dog "
    "door dream dress driver duck ear earth egg engine evening eye face family farm father field finger fire fish flag floor flower food foot "
    "forest friend game garden gate girl glass gold grass green ground hair hall hand hat head heart hill history home horse hospital hotel "
    "house ice island jacket job key king kitchen knife lake lamp land leaf leg letter light line lion list market meat metal milk minute "
    "mirror money month moon morning mother mountain mouse mouth music name neck needle night nose number ocean office oil orange page paint "
    "paper park party pencil person picture pig plane plant plate pocket point police potato queen rain red rice ring river road rock roof room "
    "rope salt sand school sea season seat shadow sheep ship shirt shoe shop silver sister skin sky sleep smile snow song sound soup spoon "
    "spring square star station stick stone story street sugar summer sun table tail tea teacher team ticket tiger time town toy train tree "
    "truck uncle valley village voice wall watch water weather week wheel wind window winter wolf woman wood word work world yard year yellow "
    "young"
)
_TASK = "Write a very long story in which all of these occur."
#: Tokens per word where a server counts nothing.
_GUESS = 1.1
_MIN_WORDS = 4


def prompt(n_words: int, rng: random.Random) -> str:
    """``n_words`` random words and a task. Prompts differ from their first word on, so that no server finds a beginning of one in its cache."""
    return f"{' '.join(rng.choices(_WORDS.split(), k=n_words))}.\n\n{_TASK}"


def words_for(n_tokens: int, counted: Sequence[tuple[int, int]]) -> int:
    """How many words make a prompt of about ``n_tokens``, by what a server ``counted`` before: pairs of words and tokens.

    The two prompts with fewest words give tokens per word; from the prompt nearest to the length it is that many more or fewer.

    >>> words_for(1000, [(32, 62), (160, 222)])
    782
    >>> words_for(110, [])
    100
    """
    (few, first), *more = sorted(counted) or [(0, 0)]
    rest = [(words, tokens) for words, tokens in more if words > few and tokens > first]
    per_word = (rest[0][1] - first) / (rest[0][0] - few) if rest else max(0.5, first / few) if few else _GUESS
    words, tokens = min(((few, first), *rest), key=lambda pair: abs(pair[1] - n_tokens))
    return max(_MIN_WORDS, round(words + (n_tokens - tokens) / per_word))


# ── one answer ────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Answer:
    """One streamed answer so far: fed with the events of the stream and when they came. Touches nothing.

    ``secret`` is cut out of whatever the server says.
    """

    max_tokens: int
    secret: str = ""
    content_at_s: list[float] = field(default_factory=list)
    n_reasoning_pieces: int = 0
    n_prompt_tokens: int | None = None
    n_completion_tokens: int | None = None
    n_cached_tokens: int | None = None
    n_reasoning_tokens: int | None = None
    finish: str = ""
    done: bool = False
    fingerprint: str = ""
    #: When the last event came.
    heard_at_s: float = 0.0

    def take(self, data: str, at_s: float) -> bool:
        """The data of one event, ``at_s`` seconds after the request was sent. Whether it brought content. Raises ``Trouble``."""
        self.heard_at_s = at_s
        if self.done or not data.strip():
            return False
        if data.strip() == "[DONE]":
            self.done = True
            return False
        event = _json(data)
        if not isinstance(event, dict):
            raise Trouble(f"broken JSON in the stream, or no object: {_clean(data, self.secret, 60)!r}")
        if event.get("error"):
            raise Trouble(f"error in the stream: {_complaint(event, self.secret)}")
        self._count(event)
        found = event.get("choices")
        choice = found[0] if isinstance(found, list) and found and isinstance(found[0], dict) else {}
        if isinstance(choice.get("finish_reason"), str):
            self.finish = _clean(choice["finish_reason"], self.secret, 40)
        return self._piece(choice, at_s)

    def _piece(self, choice: dict[str, Any], at_s: float) -> bool:
        delta = choice.get("delta")
        said = delta if isinstance(delta, dict) else {}
        content = said.get("content") or choice.get("text")
        if not content and not (said.get("reasoning_content") or said.get("reasoning")):
            return False
        if len(self.content_at_s) >= self.max_tokens + _EXTRA_PIECES:
            raise Trouble(
                f"more than {len(self.content_at_s)} pieces where {self.max_tokens} tokens were asked for: the server does not keep max_tokens"
            )
        self.content_at_s.append(at_s)
        self.n_reasoning_pieces += not content
        return True

    def _count(self, event: dict[str, Any]) -> None:
        """Keep what the server counts, wherever it says it; llama-server says some of it as ``timings``."""
        usage, timings = _part(event, "usage"), _part(event, "timings")
        for name, value in (
            ("n_prompt_tokens", usage.get("prompt_tokens")),
            ("n_completion_tokens", usage.get("completion_tokens")),
            ("n_cached_tokens", _part(usage, "prompt_tokens_details").get("cached_tokens", timings.get("cache_n"))),
            ("n_reasoning_tokens", _part(usage, "completion_tokens_details").get("reasoning_tokens")),
        ):
            if type(value) is int and 0 <= value < 10**9:
                setattr(self, name, value)
        if isinstance(event.get("system_fingerprint"), str):
            self.fingerprint = _clean(event["system_fingerprint"], self.secret, 60)

    @property
    def ended(self) -> bool:
        """Whether the server has said that there is no more content."""
        return self.done or bool(self.finish)

    def missing(self) -> str:
        """What a stream that has ended still lacks; empty for a whole answer."""
        n = len(self.content_at_s)
        if self.finish in ("error", "abort"):
            return f"the server gave up after {n} pieces (finish reason {self.finish!r})"
        if not n:
            return f"an answer without content (finish reason {self.finish!r})" if self.finish else "the stream ended before any content"
        if self.finish or (self.done and n >= self.max_tokens):
            return ""
        return (
            f"[DONE] after {n} pieces without a finish reason: cut short"
            if self.done
            else f"the stream ended after {n} pieces without a finish reason"
        )


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _part(value: Any, key: str) -> dict[str, Any]:
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, dict) else {}


def _clean(text: object, secret: str = "", most: int = 160) -> str:
    """What a stranger says as it may be shown: one line, nothing unprintable, not endless, without our key."""
    said = str(text)[: 4 * most]
    if secret:
        said = said.replace(secret, "…")
    said = " ".join("".join(c if c.isprintable() else " " for c in said).split())
    return said if len(said) <= most else said[:most] + "…"


def _complaint(answer: Any, secret: str) -> str:
    """The server's own words for what went wrong, out of any of the usual places."""
    for place in (
        _part(answer, "error").get("message"),
        _part(answer, "error").get("type"),
        *(_get(answer, k) for k in ("error", "detail", "message")),
    ):
        if isinstance(place, str) and place.strip():
            return _clean(place, secret)
    return _clean(json.dumps(answer) if isinstance(answer, dict | list) else answer, secret)


def _get(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def _impersonal(text: str) -> str:
    """The same for a record, which must name no path, address or user: words that could are left out."""
    return " ".join("…" if re.search(r"[/\\@]|.:.|\d+\.\d+\.\d+\.\d+", word) else word for word in text.split())


def _model_name(model: str) -> str:
    """A model's name without the folders of somebody's disk; ``owner/name`` stays."""
    is_path = model.endswith(".gguf") or re.match(r"[/\\.~]|[A-Za-z]:[/\\]", model) is not None
    return _clean(re.split(r"[/\\]", model.rstrip("/\\"))[-1] if is_path else model) or "unnamed"


# ── talking to a server ───────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class _Heard:
    """What came of one request. Times in seconds of ``time.perf_counter``, but for those in ``answer``."""

    answer: Answer
    sent_s: float
    end_s: float = 0.0
    status: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class _Address:
    """Where the server is. ``base`` has no user, password or query; ``shown`` is what the user gave without them."""

    base: Any
    shown: str
    auth: tuple[str, str] | None

    @classmethod
    def parse(cls, url: str, httpx: Any) -> _Address:
        text = url.strip()
        hidden = f"{text.partition('://')[0][:20]}://…" if "@" in text else repr(_clean(text.partition("?")[0], most=80))
        if not text.lower().startswith(("http://", "https://")):
            raise UsageError(f"{hidden} is no address of a server; one is written like http://127.0.0.1:8080/v1")
        try:
            parsed = httpx.URL(text)
            path = parsed.path.rstrip("/")
            for end in (*_PATHS.values(), "/models"):
                path = path.removesuffix(end)
            base = parsed.copy_with(username=None, password=None, path=path or "/v1", query=None, fragment=None)
        except (httpx.InvalidURL, ValueError):
            raise UsageError(f"{hidden} is no address that can be understood; copy it again") from None
        if base.port is not None and not 0 < base.port < 2**16:
            raise UsageError(f"{hidden} has the port {base.port}; ports go from 1 to 65535")
        if not base.host:
            raise UsageError(f"{hidden} names no host; an address is written like http://127.0.0.1:8080/v1")
        plain = parsed.copy_with(username=None, password=None, query=None, fragment=None)
        auth = (parsed.username, parsed.password) if parsed.username or parsed.password else None
        return cls(base, _clean(plain if auth or parsed.query or parsed.fragment else text), auth)

    async def place(self) -> Literal["this machine", "private network", "elsewhere"]:
        """How far away it is, by the addresses of its name."""
        try:
            async with asyncio.timeout(10):
                found = await asyncio.get_running_loop().getaddrinfo(self.base.host, None, type=socket.SOCK_STREAM)
        except (OSError, TimeoutError, UnicodeError):
            return "elsewhere"  # perhaps a proxy knows it, or it is no name at all, which the first request says
        addresses = {ipaddress.ip_address(str(info[4][0]).partition("%")[0]) for info in found}
        own = {entry.address.partition("%")[0] for entries in psutil.net_if_addrs().values() for entry in entries}
        if all(a.is_loopback or a.is_unspecified or str(a) in own for a in addresses):
            return "this machine"
        return "elsewhere" if any(a.is_global for a in addresses) else "private network"


class _Client:
    """One server. A connection is opened for every request and its making is not timed: none is stale, and all are alike."""

    def __init__(self, httpx: Any, address: _Address, *, api_key: str, timeout_s: float, use_proxy: bool) -> None:
        self.httpx, self.address, self.secret, self.timeout_s = httpx, address, api_key, timeout_s
        headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {api_key}"} if api_key else {})
        try:
            self.http = httpx.AsyncClient(
                headers=headers,
                auth=None if api_key else address.auth,
                timeout=None,  # patience is counted here, from piece to piece, whatever trickles in between
                follow_redirects=False,
                trust_env=use_proxy,
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            )
        except (ValueError, OSError, ImportError, httpx.InvalidURL):
            raise UsageError("the proxy or certificate settings of the environment cannot be used; mend or unset HTTP_PROXY and its kin") from None
        self.errors: tuple[type[Exception], ...] = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, RuntimeError, ValueError)

    def url(self, path: str) -> str:
        return str(self.address.base).rstrip("/") + path

    async def whole(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any, str]:
        """An answer that is no stream: status, JSON (or text where it is none), the server's name. Raises ``Trouble``."""
        try:
            async with asyncio.timeout(self.timeout_s), self.http.stream(method, self.url(path), json=body) as response:
                text = await self._read(response, _MAX_BODY_BYTES)
                found = _json(text)
                return response.status_code, text if found is None else found, _clean(response.headers.get("server", ""), self.secret, 60)
        except TimeoutError:
            raise Trouble(f"no answer within {self.timeout_s:g} s") from None
        except self.errors as error:
            raise Trouble(self._why(error)) from None

    async def stream(self, path: str, body: dict[str, Any]) -> _Heard:
        """Send one request and listen to its end, or to that of our patience; what goes wrong is in ``problem``."""
        heard = _Heard(Answer(body["max_tokens"], self.secret), time.perf_counter())
        answer, loop = heard.answer, asyncio.get_running_loop()

        async def trace(event: str, info: dict[str, Any]) -> None:
            if event.endswith("send_request_headers.started"):
                heard.sent_s = time.perf_counter()

        try:
            async with (
                asyncio.timeout(self.timeout_s) as patience,
                self.http.stream("POST", self.url(path), json=body, extensions={"trace": trace}) as response,
            ):
                heard.status = response.status_code
                await self._require_stream(response)
                ended = False
                async for event in self.httpx.EventSource(response, max_event_size=_MAX_EVENT_BYTES):
                    came = answer.take(event.data, time.perf_counter() - heard.sent_s)
                    if not ended and (came or answer.ended):
                        ended = answer.ended
                        patience.reschedule(loop.time() + (_AFTERWORD_S if ended else self.timeout_s))
            heard.problem = answer.missing()
        except Trouble as trouble:
            heard.problem = str(trouble)
        except TimeoutError:
            n = len(answer.content_at_s)
            stalled = f"nothing new for {self.timeout_s:g} s after {n} pieces" if n else f"no content within {self.timeout_s:g} s"
            heard.problem = answer.missing() if answer.ended else stalled
        except self.errors as error:
            n = len(answer.content_at_s)
            cut = f"the server closed the connection after {n} pieces"
            is_cut = n and isinstance(error, (self.httpx.RemoteProtocolError, self.httpx.NetworkError))
            heard.problem = answer.missing() if answer.ended else cut if is_cut else self._why(error)
        heard.end_s = heard.sent_s + answer.heard_at_s if answer.ended else time.perf_counter()
        return heard

    async def _require_stream(self, response: Any) -> None:
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if response.status_code == 200 and kind == "text/event-stream":
            if response.headers.get("content-encoding", "identity").lower() != "identity":
                raise Trouble("the server compresses the stream although asked not to, so that pieces wait for each other")
            return
        if 300 <= response.status_code < 400:
            raise Trouble(f"HTTP {response.status_code}: it redirects to {_clean(response.headers.get('location', 'nowhere'), self.secret, 120)}")
        text = await self._read(response, _MAX_REFUSAL_BYTES)
        found = _json(text)
        said = _complaint(text if found is None else found, self.secret)
        if response.status_code != 200:
            raise Trouble(f"HTTP {response.status_code}" + (f": {said}" if said else ""))
        if _get(found, "error"):
            raise Trouble(f"no stream but an error: {said}")
        raise Trouble(
            "no stream but " + ("one whole answer" if _get(found, "choices") else "a web page" if kind == "text/html" else "something else")
        )

    async def _read(self, response: Any, most: int) -> str:
        pieces, size = [], 0
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise Trouble("the server compresses its answers although asked not to")
        async for piece in response.aiter_raw():
            pieces.append(piece[: most - size])
            size += len(pieces[-1])
            if size >= most:
                break
        return b"".join(pieces).decode(errors="replace")

    def _why(self, error: BaseException) -> str:
        """What happened on the way. The library's own words are left out: they may hold an address, or a key."""
        for cause in _causes(error):
            if isinstance(cause, socket.gaierror):
                return "no such host, or no network"
            if isinstance(cause, ssl.SSLError):
                return f"no secure connection (TLS): {_clean(getattr(cause, 'verify_message', '') or cause.reason or 'no details', most=80)}"
            if isinstance(cause, ConnectionRefusedError):
                return "connection refused: no server listens there"
        for name, said in (
            ("SSEError", f"an event of more than {_MAX_EVENT_BYTES // 1024} KiB, which is no piece of an answer"),
            ("ProxyError", "the proxy refuses; see HTTPS_PROXY and NO_PROXY"),
            ("ConnectError", "no connection"),
            ("RemoteProtocolError", "the server closed the connection or does not speak HTTP"),
            ("NetworkError", "the connection was cut"),
        ):
            if isinstance(error, getattr(self.httpx, name)):
                return said
        return f"the request failed ({type(error).__name__})"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, what it came from, and the members of groups among them; no more than a few."""
    waiting, seen = [error], 0
    while waiting and seen < 30:
        seen += 1
        cause = waiting.pop(0)
        yield cause
        if isinstance(cause, BaseExceptionGroup):
            waiting += cause.exceptions
        waiting += [c for c in (cause.__cause__, cause.__context__) if c is not None]


# ── a run ─────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class _Run:
    """What is known of a server and asked of it, and every request so far."""

    client: _Client
    model: str
    prompt_tokens: int
    max_tokens: int
    timeout_s: float
    tell: Progress
    interface: Interface = "chat"
    options: dict[str, bool | int | float] = field(default_factory=dict)
    counted: list[tuple[int, int]] = field(default_factory=list)
    software: list[str] = field(default_factory=list)
    requests: list[ServedRequest] = field(default_factory=list)
    warmup: list[ServedRequest] = field(default_factory=list)
    rng: random.Random = field(default_factory=random.Random)
    started_s: float = field(default_factory=time.perf_counter)
    #: When this program was kept from listening, and for how long.
    lags: list[tuple[float, float]] = field(default_factory=list)

    def failed(self, what: str, way_out: str) -> EngineError:
        return EngineError(f"{self.client.address.shown}: {what}; {way_out}")

    def body(self, n_words: int, max_tokens: int, *, stream: bool = True) -> dict[str, Any]:
        text = prompt(n_words, self.rng)
        said = {"messages": [{"role": "user", "content": text}]} if self.interface == "chat" else {"prompt": text}
        asked: dict[str, Any] = {name: value for name, value in self.options.items() if name != "include_usage"}
        if stream and self.options.get("include_usage"):
            asked["stream_options"] = {"include_usage": True}
        return {"model": self.model, "max_tokens": max_tokens, "stream": stream} | asked | said

    async def ask(self, concurrency: int, n_words: int, max_tokens: int) -> tuple[ServedRequest, _Heard]:
        heard = await self.client.stream(_PATHS[self.interface], self.body(n_words, max_tokens))
        answer = heard.answer
        if answer.fingerprint and (said := f"fingerprint {_impersonal(answer.fingerprint)}") not in self.software and len(self.software) < 4:
            self.software.append(said)
        request = ServedRequest(
            concurrency=concurrency,
            at_s=round(max(0.0, heard.sent_s - self.started_s), 5),
            n_prompt_tokens=answer.n_prompt_tokens,
            n_completion_tokens=answer.n_completion_tokens,
            n_cached_tokens=answer.n_cached_tokens,
            n_reasoning_tokens=answer.n_reasoning_tokens,
            content_at_s=tuple(round(max(0.0, at_s), 5) for at_s in answer.content_at_s),
            n_reasoning_pieces=answer.n_reasoning_pieces,
            end_s=round(max(0.0, heard.end_s - heard.sent_s), 5),
            finish=_impersonal(answer.finish),
            problem=_impersonal(heard.problem)[:400],
            lag_s=round(max((lag for until_s, lag in self.lags if until_s >= heard.sent_s), default=0.0), 5),
        )
        return request, heard

    async def watch(self) -> None:
        """Notice when this program does not get to listen: pieces that waited meanwhile seem to have come later, and all at once."""
        while True:
            before_s = time.perf_counter()
            await asyncio.sleep(_WATCH_S)
            now_s = time.perf_counter()
            if (lag := now_s - before_s - _WATCH_S) > _WATCH_S / 4:
                self.lags.append((now_s, lag))

    # ── before it is measured ──

    async def find_model(self, wanted: str) -> None:
        """Ask for the list of models and pick ``wanted``, or the only one. Raises ``EngineError``."""
        listed: list[str] = []
        try:
            status, found, name = await self.client.whole("GET", "/models")
        except Trouble as trouble:
            raise self.failed(str(trouble), "start the server, or check scheme, host and port") from None
        if status != 200 and status not in (404, 405, 501):
            raise self.refusal(status, _complaint(found, self.client.secret))
        data = _get(found, "data") if status == 200 else None
        for entry in data if isinstance(data, list) else []:
            if isinstance(_get(entry, "id"), str):
                listed.append(entry["id"])
                if isinstance(_get(entry, "owned_by"), str) and len(listed) == 1:
                    self.software.append(f"owned_by {_impersonal(_clean(entry['owned_by'], most=60))}")
        if name:
            self.software.insert(0, _impersonal(name))
        known = [_clean(model, self.client.secret, 120) for model in listed]
        if not wanted and len(listed) != 1:
            what = f"serves {len(listed)} models: {', '.join(known[:20])}" if listed else "does not list its models"
            raise self.failed(f"the server {what}", "name one with --model" + ("" if listed else self.other_path()))
        if wanted and listed and not {wanted, f"{wanted}:latest"} & set(listed):
            near = did_you_mean(wanted, known)
            raise self.failed(f"no model {wanted!r}{near if 'mean' in near else did_you_mean(wanted, known[:20])}", "name one the server has")
        self.model = wanted or listed[0]

    async def find_options(self, interfaces: Sequence[Interface]) -> None:
        """A short request that finds out what the server takes. Raises ``EngineError`` when it takes nothing."""
        tried: list[_Heard] = []
        for self.interface in interfaces:
            for names in _VARIANTS:
                self.options = {name: _VALUES[name] for name in names}
                request, heard = await self.ask(1, self.few_words, self.few_tokens)
                tried.append(heard)
                if heard.status not in (400, 422):
                    break
            if heard.status not in (400, 404, 405, 422, 501):
                break
        self.require(heard if heard.status == 200 else tried[0])
        self.warmup.append(request)

    @property
    def few_words(self) -> int:
        """Of the shortest prompt: it must not be longer than the one that is asked for."""
        return max(_MIN_WORDS, min(32, self.prompt_tokens // 4))

    @property
    def few_tokens(self) -> int:
        """Enough to see how a server answers."""
        return min(_EXTRA_PIECES, self.max_tokens)

    def require(self, heard: _Heard) -> None:
        """Raise ``EngineError`` unless the server answers. A few tokens may all be hidden ones: that they have no content is no trouble yet."""
        if heard.status not in (0, 200):
            raise self.refusal(heard.status, heard.problem.partition(": ")[2])
        if heard.problem and not heard.answer.finish and not heard.answer.content_at_s:
            raise self.failed(heard.problem, "look into the server's log: the prompt may be too long for it, or the timeout too short")

    def refusal(self, status: int, said: str) -> EngineError:
        """One line for a status that ends everything, with the way out."""
        what = f"HTTP {status}" + (f": {said}" if said else "")
        if status in (401, 403):
            return self.failed(what, f"the server wants a key: set {API_KEY} to it")
        if 300 <= status < 400:
            return self.failed(what, "give the address it leads to")
        if status in (404, 405, 501):
            return self.failed(what, "check the address" + self.other_path())
        if status in (400, 413, 422):
            return self.failed(what, "the server refuses the request: try fewer prompt tokens, another model or the other interface")
        return self.failed(what, "look into the server's log, or try later")

    def other_path(self) -> str:
        base = self.client.address.base
        return "" if base.path.rstrip("/").endswith("/v1") else f"; most servers answer at {_clean(base.copy_with(path='/v1'))}"

    async def calibrate(self) -> int:
        """How many words make the prompt, learnt from two short prompts and one of full length, which warms the server up."""
        few = self.few_words
        if tokens := self.warmup[0].n_prompt_tokens:
            self.counted.append((few, tokens))
        else:
            await self.count(few)
        await self.count(max(few + 4, min(160, self.prompt_tokens // 2)))
        n_words = words_for(self.prompt_tokens, self.counted)
        request, heard = await self.ask(1, n_words, self.few_tokens)
        self.require(heard)
        self.warmup.append(request)
        if request.n_prompt_tokens:
            self.counted.append((n_words, request.n_prompt_tokens))
        elif self.counted:
            await self.count(n_words)
        return words_for(self.prompt_tokens, self.counted)

    async def count(self, n_words: int) -> None:
        """Let the server count a prompt: at the end of a stream, or of an answer that is none where streams end without counts."""
        tokens: Any = None
        if self.warmup[0].n_prompt_tokens:
            request, _ = await self.ask(1, n_words, 2)
            self.warmup.append(request)
            tokens = request.n_prompt_tokens
        else:
            try:
                _, found, _ = await self.client.whole("POST", _PATHS[self.interface], self.body(n_words, 1, stream=False))
                tokens = _part(found, "usage").get("prompt_tokens")
            except Trouble:
                pass  # then the length is guessed, and the frames say so
        if type(tokens) is int and 0 < tokens < 10**9:
            self.counted.append((n_words, tokens))

    # ── measuring ──

    async def level(self, concurrency: int, repetitions: int, n_words: int) -> None:
        """``concurrency`` streams side by side, each sending its next request when the last has ended."""
        total, made = concurrency * repetitions, itertools.count(1)

        async def stream() -> list[ServedRequest]:
            mine: list[ServedRequest] = []
            while len(mine) < repetitions and not (len(mine) >= _FAILURES and all(r.problem for r in mine[-_FAILURES:])):
                request, heard = await self.ask(concurrency, n_words, self.max_tokens)
                mine.append(request)
                self.tell(f"{concurrency} in flight: request {next(made)} of {total}" + (f" failed: {heard.problem}" if heard.problem else ""))
            return mine

        found = await asyncio.gather(*(stream() for _ in range(concurrency)))
        self.requests += sorted(itertools.chain.from_iterable(found), key=lambda r: r.at_s)


def measure(
    url: str,
    model: str = "",
    *,
    prompt_tokens: int = 512,
    max_tokens: int = 128,
    concurrency: Sequence[int] = (1,),
    repetitions: int = 5,
    interface: str = "auto",
    api_key: str = "",
    timeout_s: float = 120.0,
    progress: Progress | None = None,
) -> ServedRecord:
    """Measure the server at ``url`` (``/v1`` is added where there is no path) and return the record; nothing is written.

    For each number of ``concurrency`` that many streams send ``repetitions`` requests each, one after the other, with fresh prompts of about
    ``prompt_tokens`` and answers of at most ``max_tokens``. An empty ``model`` means the only one the server has. ``timeout_s`` is the patience for a
    connection and the first piece together, and for every next piece. The key is sent and never kept.

    A request that fails is kept with what it brought and the reason. When every request of a level fails, later levels are not tried. Raises
    ``UsageError`` for what cannot be asked, ``EngineError`` when nothing could be measured.
    """
    levels = tuple(dict.fromkeys(concurrency))
    _check(prompt_tokens, max_tokens, levels, repetitions, interface, api_key, timeout_s)
    httpx = _httpx()
    address = _Address.parse(url, httpx)
    tell: Progress = progress or (lambda text: None)
    machine = probe.machine()

    async def run() -> ServedRecord:
        place = await address.place()
        client = _Client(httpx, address, api_key=api_key, timeout_s=timeout_s, use_proxy=place != "this machine")
        async with client.http:
            made = _Run(client, model, prompt_tokens, max_tokens, timeout_s, tell)
            tell(f"asking {address.shown} for its models")
            await made.find_model(model)
            tell(f"warming up {_clean(made.model)}, finding a prompt of {prompt_tokens} tokens")
            await made.find_options(_INTERFACES[interface])
            n_words = await made.calibrate()
            watching = asyncio.create_task(made.watch())
            for level in levels:
                await made.level(level, repetitions, n_words)
                if all(r.problem for r in made.requests if r.concurrency == level):
                    tell(f"every request with {level} in flight failed; stopped there, what was measured is kept")
                    break
            watching.cancel()
        if not any(r.content_at_s for r in made.requests):
            raise made.failed(f"every request failed: {made.requests[0].problem}", "look into the server's log; nothing was recorded")
        try:
            return ServedRecord(
                **provenance(),
                kind="endpoint",
                machine=machine,
                place=place,
                model=_model_name(made.model),
                software=", ".join(made.software),
                interface=made.interface,
                prompt_tokens_asked=prompt_tokens,
                max_tokens=max_tokens,
                concurrency=levels,
                repetitions=repetitions,
                timeout_s=timeout_s,
                options=made.options,
                n_prompt_words=n_words,
                calibration=tuple(made.counted),
                requests=tuple(made.requests),
                warmup=tuple(made.warmup),
            )
        except ValidationError as error:
            raise made.failed(f"the measurement makes no record: {registry.problems_of(error)[0]}", "report it") from None

    return _in_loop(run())


def _check(prompt_tokens: int, max_tokens: int, levels: tuple[int, ...], repetitions: int, interface: str, api_key: str, timeout_s: float) -> None:
    """Raise ``UsageError`` for what cannot be asked for, or would not fit a record."""
    for name, value, least, most in (
        ("prompt_tokens", prompt_tokens, 1, 2_000_000),
        ("max_tokens", max_tokens, 2, 20_000),
        ("repetitions", repetitions, 1, 1000),
        *(("concurrency", level, 1, 1024) for level in levels or (0,)),
    ):
        if not least <= value <= most:
            raise UsageError(f"{name} is {value}; it goes from {least} to {most:,}")
    if interface not in _INTERFACES:
        raise UsageError(f"no interface {interface!r}{did_you_mean(interface, _INTERFACES)}")
    if not (math.isfinite(timeout_s) and timeout_s > 0):
        raise UsageError(f"timeout is {timeout_s} s; give more than 0")
    if not re.fullmatch(r"[!-~]*", api_key):
        raise UsageError(f"{API_KEY} holds characters that no key has; set it again")
    n = sum(levels) * repetitions
    needed = n * (_REQUEST_BYTES + max_tokens * _PIECE_BYTES) + _OTHER_BYTES
    if needed > records.MAX_BYTES:
        raise UsageError(
            f"{n} requests of {max_tokens} tokens make a record of some {needed / 1e6:.1f} MB, over the limit of {records.MAX_BYTES / 1e6:.1f};"
            " ask for fewer repetitions, fewer tokens or less concurrency, or measure in several runs"
        )


def _httpx() -> Any:
    try:
        return importlib.import_module("httpx2")
    except ImportError:
        raise MissingExtra("measuring a server needs the package httpx2: pip install httpx2") from None


def _in_loop(work: Coroutine[Any, Any, ServedRecord]) -> ServedRecord:
    """Run to the end. A notebook's kernel has a loop of its own in this thread; then it is run in another, and still ends with an interrupt."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    loop = asyncio.new_event_loop()
    task = loop.create_task(work)

    def until_done() -> None:
        loop.run_until_complete(asyncio.wait([task]))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()

    thread = threading.Thread(target=until_done, daemon=True)
    thread.start()
    try:
        thread.join()
    except KeyboardInterrupt:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()
        raise
    return task.result()


# ── a server of our own ───────────────────────────────────────────────────────────────────────────

#: It ends when nobody holds its input open any more, and takes no settings from the environment.
_SERVER = """
import os, runpy, sys, threading
def end_with_parent():
    while sys.stdin.read(1):
        pass
    os._exit(1)
threading.Thread(target=end_with_parent, daemon=True).start()
from llama_cpp.server.settings import Settings
for name in list(os.environ):
    if name.lower() in Settings.model_fields or name == "CONFIG_FILE":
        del os.environ[name]
runpy.run_module("llama_cpp.server", run_name="__main__", alter_sys=True)
"""


def has_server() -> bool:
    """Whether llama-cpp-python's own server can be started here."""
    return all(find_spec(name) is not None for name in ("llama_cpp", *SERVER_PACKAGES))


@contextmanager
def own_server(path: Path, n_threads: int = 0, *, n_ctx: int = 4096, n_gpu_layers: int = 0, progress: Progress | None = None) -> Iterator[str]:
    """Serve a model file with llama-cpp-python's own server on loopback, and give its address; it ends with the block.

    ``n_threads`` 0 means one per physical core. Batches, threads and attention are as in ``measure.measure``. Raises ``MissingExtra`` without the
    server's packages, ``EngineError`` with the reason when it does not start.
    """
    missing = [name for name in ("llama_cpp", *SERVER_PACKAGES) if find_spec(name) is None]
    if missing:
        raise MissingExtra(f"a server of our own needs {', '.join(missing)}: pip install -e '.[engine,test]'")
    if not path.is_file():
        raise UsageError(f"model file {str(path)!r} does not exist; give the path of a .gguf file")
    threads = n_threads or probe.n_threads_default()
    settings: dict[str, object] = {"model": path.resolve(), "model_alias": path.stem[:120], "host": "127.0.0.1", "port": _free_port()}
    settings |= {"n_threads": threads, "n_threads_batch": threads, "n_ctx": n_ctx, "n_batch": 2048, "n_gpu_layers": n_gpu_layers, "flash_attn": True}
    # Without the first it keeps the logits of every prompt token; with the second a request ends the one before it.
    settings |= {"logits_all": False, "interrupt_requests": False, "verbose": False, "seed": SEED}
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    if progress:
        progress(f"starting llama_cpp.server {version('llama_cpp_python')} for {path.stem} with {threads} threads")
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen([sys.executable, "-c", _SERVER, *words], stdin=subprocess.PIPE, stdout=log, stderr=log)
        try:
            _wait_until_it_answers(child, f"http://127.0.0.1:{settings['port']}/v1", log)
            yield f"http://127.0.0.1:{settings['port']}/v1"
        finally:
            child.kill()
            child.wait()
            assert child.stdin is not None
            child.stdin.close()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def _wait_until_it_answers(child: subprocess.Popen[bytes], url: str, log: IO[bytes]) -> None:
    httpx = _httpx()
    end = time.monotonic() + _START_LIMIT_S
    with httpx.Client(trust_env=False, timeout=5) as client:
        while time.monotonic() < end:
            if child.poll() is not None:
                log.seek(0)
                said = [line.strip() for line in log.read()[-20_000:].decode(errors="replace").splitlines() if line.strip()]
                raise EngineError(f"llama_cpp.server ended with code {child.returncode}: {_clean(said[-1] if said else 'it said nothing', most=300)}")
            try:
                client.get(f"{url}/models")
                return
            except httpx.HTTPError:
                pass
            time.sleep(0.05)
    raise EngineError(f"llama_cpp.server does not answer after {_START_LIMIT_S / 60:.0f} min; try it with a smaller file")
