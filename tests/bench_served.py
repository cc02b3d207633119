"""A benchmark, not a test: does a rate measured through a server agree with the one measured in llama.cpp itself?

The same stand-in, threads, attention, cache and number of tokens at the same depth: once in the measuring child (``nbutils measure``), once through
llama-cpp-python's own server on loopback (``nbutils measure --endpoint``). Rounds alternate, so that both see the same neighbours.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from helpers import in_child
from nbutils import endpoint, frames_served, gguf_files, measure, paths, probe
from nbutils.specs import Suite, SuitePoint
from scripted_server import writes_plain_words

NOTE = (
    "Decode in tokens per second of one sequence. In process: llama_decode of one token after the other, timed call by call, nothing sampled "
    "and no text made. Through llama_cpp.server: from the first piece of an answer to its last, as a client on loopback sees it. That adds "
    "sampling (temperature 0), turning tokens into text (the whole answer so far, for every token), Python between them, a change of threads "
    "per token, JSON, and one event over HTTP per piece. The second row has the same Python without server and client, and so tells the two "
    "apart. One processor is left to the server's own loop and the client, because llama.cpp's threads wait for each other. The server counts "
    "no tokens in a stream; answers ended by length, so they have the tokens asked for. Ratios are served over in process, round by round."
)


def in_process_tok_per_s(model: measure.ModelFile, *, n_threads: int, depth: int, n_tokens: int) -> float:
    point = SuitePoint(kind="decode", n_tokens=n_tokens, depth=depth)
    suite = Suite(id="served", name="Beside a server", points=(point,), repetitions=1, yardstick_s=0.01)
    record = measure.measure(model, suite, knobs=measure.Knobs(n_threads=n_threads, flash_attn="on"), cpu=True)
    (samples_s,) = record.points[0].repetitions_s
    return n_tokens / sum(samples_s)


def served_tok_per_s(url: str, *, depth: int, n_tokens: int) -> float:
    record = endpoint.measure(url, prompt_tokens=depth, max_tokens=n_tokens, repetitions=1, interface="completions")
    (request,) = record.requests
    rate = frames_served.decode_tok_per_s(record, request)
    assert rate is not None
    assert not request.problem, request.problem
    return rate


_STREAM = """
import json, sys, time
import llama_cpp
path, prompt, n_threads, n_tokens = json.loads(sys.argv[1])
settings = dict(n_ctx=4096, n_batch=2048, n_threads=n_threads, n_threads_batch=n_threads, flash_attn=True, logits_all=False, verbose=False)
model = llama_cpp.Llama(path, **settings)
came_s = [time.perf_counter() for piece in model(prompt, max_tokens=n_tokens, temperature=0.0, stream=True) if piece["choices"][0]["text"]]
print(json.dumps([len(came_s), came_s[-1] - came_s[0]]))
"""


def streamed_tok_per_s(path: Path, text: str, *, n_threads: int, n_tokens: int) -> float:
    """llama_cpp's Python stream, that the server sends on, in a process without a server."""
    n_pieces, span_s = in_child(_STREAM, json.dumps([str(path), text, n_threads, n_tokens]))
    assert n_pieces == n_tokens
    return float((n_pieces - 1) / span_s)


def compare(size: str, *, rounds: int, n_threads: int, depth: int, n_tokens: int) -> list[dict[str, Any]]:
    made = measure.find_model(f"stand-in-dense-{size}")
    found: dict[str, list[float]] = {"in process": [], "served": [], "streamed": []}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        model = replace(made, path=writes_plain_words(made.path, Path(folder) / made.path.name))
        url = stack.enter_context(endpoint.own_server(model.path, n_threads))
        n_words = endpoint.measure(url, prompt_tokens=depth, max_tokens=2, repetitions=1, interface="completions").n_prompt_words
        ways = {
            "in process": lambda: in_process_tok_per_s(model, n_threads=n_threads, depth=depth, n_tokens=n_tokens),
            "served": lambda: served_tok_per_s(url, depth=depth, n_tokens=n_tokens),
            "streamed": lambda: streamed_tok_per_s(model.path, endpoint.prompt(n_words, random.Random()), n_threads=n_threads, n_tokens=n_tokens),
        }
        for number in range(rounds):
            for name in list(ways) if number % 2 == 0 else reversed(ways):
                found[name].append(round(ways[name](), 3))
            print(f"round {number + 1} of {rounds}: " + ", ".join(f"{name} {rates[-1]:.2f}" for name, rates in found.items()), flush=True)
    settings = {"n_threads": n_threads, "depth": depth, "n_tokens": n_tokens}
    rows = []
    for way, what in (("served", "through llama_cpp.server"), ("streamed", "its Python stream without a server")):
        ratios = [rate / own for own, rate in zip(found["in process"], found[way], strict=True)]
        rates = {"in_process_tok_per_s": found["in process"], "served_tok_per_s": found[way]}
        summary = {"ratio_median": round(median(ratios), 4), "ratio_low": round(min(ratios), 4), "ratio_high": round(max(ratios), 4)}
        rows.append({"name": f"stand-in-dense-{size} Q4_K_M, {what}"} | settings | rates | summary)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds of both ways (default: %(default)s)")
    parser.add_argument("--size", choices=list(gguf_files.SIZES), default="base", help="of the dense stand-in in Q4_K_M (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="processor threads; 0 means one per physical core but one (default: %(default)s)")
    parser.add_argument("--depth", type=int, default=256, help="tokens of the prompt, about (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of the answer (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=paths.data_dir() / "benchmarks" / "served.json", help="where the result goes (default: %(default)s)"
    )
    given = parser.parse_args()
    if not endpoint.has_server():
        sys.exit("the server's packages are not installed: pip install -e '.[engine,test]'")
    n_threads = given.threads or max(1, probe.n_threads_default() - 1)
    rows = compare(given.size, rounds=given.rounds, n_threads=n_threads, depth=given.depth, n_tokens=given.tokens)
    machine = probe.machine()
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cpu": machine.cpu, "cores": machine.n_cores, "memory_bytes": machine.memory_bytes, "system": machine.system},
        "versions": {name: version(name) for name in ("nbutils", "llama_cpp_python", "httpx2", "fastapi", "uvicorn", "sse_starlette")},
        "rounds": given.rounds,
        "rows": rows,
        "note": NOTE,
    }
    paths.write_text(given.out, json.dumps(result, indent=1) + "\n")
    for row in rows:
        print(row["name"])
        for name in ("in_process_tok_per_s", "served_tok_per_s"):
            print(f"  {name:<22} median {median(row[name]):8.2f}, {min(row[name]):.2f} to {max(row[name]):.2f}")
        print(f"  served / in process    median {row['ratio_median']:8.3f}, {row['ratio_low']:.3f} to {row['ratio_high']:.3f}")
    print(f"written: {given.out}")


if __name__ == "__main__":
    main()
