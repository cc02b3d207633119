"""Decode for minutes on end, with the meters beside it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from pydantic import ValidationError

from nbutils import engine, monitor, probe, registry
from nbutils.errors import EngineError, UsageError
from nbutils.measure import Knobs, ModelFile, backend_of, check_backend, provenance, settings_of, wants_gpu
from nbutils.specs import FileFacts, SustainRecord

__all__ = ["MAX_BLOCKS", "MAX_MINUTES", "joined", "sustain"]

MAX_MINUTES = 24 * 60.0
#: A record keeps no more; neighbours are joined until they are few enough.
MAX_BLOCKS = 4000
#: The child chooses blocks of about a second, up to this many tokens.
_LARGEST_BLOCK = 512


def sustain(
    model: ModelFile,
    *,
    minutes: float,
    knobs: Knobs | None = None,
    cpu: bool = False,
    block_tokens: int = 0,
    depth: int = 0,
    progress: engine.Progress | None = None,
) -> SustainRecord:
    """Decode ``model`` for ``minutes`` in the child process and return the record; nothing is written.

    ``block_tokens`` 0 means blocks of about a second; each starts at ``depth``. Raises ``UsageError`` for a number out of
    range, ``EngineError`` when llama.cpp refuses, crashes or hangs.
    """
    if not 0 < minutes <= MAX_MINUTES:
        raise UsageError(f"{minutes:g} minutes; give more than 0 and at most {MAX_MINUTES:,.0f}")
    if block_tokens < 0 or depth < 0:
        raise UsageError(f"blocks of {block_tokens} tokens at depth {depth}; neither can be below 0")
    description = engine.describe()
    check_backend(description, cpu=cpu)
    use_gpu = wants_gpu(description, cpu=cpu)
    settings = settings_of(knobs or Knobs(), use_gpu=use_gpu, n_ctx=depth + (block_tokens or _LARGEST_BLOCK))
    machine = probe.machine()
    with engine.alone(progress), monitor.Monitor() as watch:
        found = engine.sustain_file(
            model.path,
            seconds=60 * minutes,
            block_tokens=block_tokens,
            depth=depth,
            settings=settings.model_dump(exclude={"flash_attn_used"}),
            zero_s=watch.zero_s,
            progress=progress and _slower(progress, watch, every_s=min(10.0, 6 * minutes)),
        )
    n_tokens, at_s, block_s = joined(found["block_tokens"], found["at_s"], found["block_s"])
    try:
        return SustainRecord(
            **provenance(description.get("commit", "")),
            kind="sustain",
            machine=machine,
            backend=backend_of(description, use_gpu=use_gpu),
            model=FileFacts(name=model.name, origin=model.origin, reference=model.reference, **found["facts"]),
            settings=settings.model_copy(update={"flash_attn_used": found["flash_attn_used"]}),
            minutes=minutes,
            block_tokens=n_tokens,
            depth=depth,
            at_s=tuple(at_s),
            block_s=tuple(block_s),
            traces=watch.traces(),
            neighbours=watch.neighbours(),
        )
    except ValidationError as error:
        raise EngineError(f"{model.path.name}: the measurement makes no record: {registry.problems_of(error)[0]}") from None


def joined(block_tokens: int, at_s: list[float], block_s: list[float], *, most: int = MAX_BLOCKS) -> tuple[int, list[float], list[float]]:
    """The blocks, at most ``most`` of them: as often as needed, pairs become one block of twice the tokens. An odd one at the end goes.

    >>> joined(8, [0.0, 1.0, 2.0], [0.5, 0.7, 0.9], most=2)
    (16, [0.0], [1.2])
    """
    while len(block_s) > most:
        n_pairs = len(block_s) // 2
        block_tokens *= 2
        at_s = at_s[: 2 * n_pairs : 2]
        block_s = [round(block_s[2 * i] + block_s[2 * i + 1], 7) for i in range(n_pairs)]
    return block_tokens, at_s, block_s


def _slower(progress: engine.Progress, watch: monitor.Monitor, *, every_s: float, clock: Callable[[], float] = time.monotonic) -> engine.Progress:
    """What the child says, with the temperature; of its blocks, which may be short, one in ``every_s`` is told."""
    last = -math.inf

    def tell(stage: str) -> None:
        nonlocal last
        if "to go" in stage:
            if clock() - last < every_s:
                return
            last = clock()
            if (temperature := watch.latest("temperature_c")) is not None:
                stage += f", {temperature:.0f} °C"
        progress(stage)

    return tell
