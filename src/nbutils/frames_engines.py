"""Which engine runs where, as tables: one of all, one per device, and the words and sources behind both."""

from __future__ import annotations

from typing import Any

import pandas as pd

from nbutils import registry
from nbutils.specs import Device, Engines, Runs

__all__ = ["UNKNOWN", "device_engines", "engine_list", "engine_matrix", "engine_rows", "platform_of"]

#: Frame, headings, number formats: what ``plots.table`` takes.
Table = tuple[pd.DataFrame, dict[str, str], dict[str, str]]

UNKNOWN = "not known here"
_WORDS = {"fully": "yes", "partly": "partly", "not": "no"}


def _word(found: Runs | None) -> str:
    return UNKNOWN if found is None else _WORDS[found.runs]


def platform_of(device: Device) -> str | None:
    """The id of the platform that a device is of, under the system it is sold or usually run with; ``None`` where there is none."""
    platforms = registry.load_engines().platforms
    return next((name for name, p in platforms.items() if p.system == device.system and device.family in p.families), None)


def engine_matrix() -> Table:
    """One row per platform, one column per engine: yes, partly, no, or not known here."""
    engines = registry.load_engines()
    rows = [
        {"platform": platform.name} | {engine_id: _word(engine.platforms.get(platform_id)) for engine_id, engine in engines.engines.items()}
        for platform_id, platform in engines.platforms.items()
    ]
    return pd.DataFrame(rows), {"platform": "machine"} | {engine_id: engine.name for engine_id, engine in engines.engines.items()}, {}


def engine_list() -> Table:
    """What each engine is and which files it opens."""
    rows = [{"engine": e.name, "what": e.what, "files": e.files} for e in registry.load_engines().engines.values()]
    return pd.DataFrame(rows), {"engine": "engine", "what": "what it is", "files": "files it opens"}, {}


def _details(engines: Engines, engine_id: str, platform_id: str) -> dict[str, Any]:
    engine, platform = engines.engines[engine_id], engines.platforms[platform_id]
    found = engine.platforms.get(platform_id)
    source = engines.sources[found.source] if found else None
    return {
        "engine_id": engine_id,
        "engine": engine.name,
        "platform": platform.name,
        "runs": _word(found),
        "how": found.how if found else "",
        "since": found.since if found else "",
        "standing": "" if found is None else "⚠ unverified" if found.standing == "unverified" else found.standing,
        "source": source.title if source else "",
        "url": source.url if source else "",
        "seen": source.seen.isoformat() if source else "",
    }


_HEADINGS = {"runs": "runs", "how": "how", "since": "since", "standing": "standing", "source": "source", "seen": "read on"}


def engine_rows() -> Table:
    """Every engine on every platform, a row each, with words and sources; link ``source`` to ``url``."""
    engines = registry.load_engines()
    rows = [_details(engines, engine_id, platform_id) for engine_id in engines.engines for platform_id in engines.platforms]
    return pd.DataFrame(rows), {"engine": "engine", "platform": "machine"} | _HEADINGS, {}


def device_engines(device: Device) -> Table:
    """Every engine on one device, with words and sources; link ``source`` to ``url``. No row where the device is of no platform."""
    engines, platform_id = registry.load_engines(), platform_of(device)
    rows = [] if platform_id is None else [_details(engines, e, platform_id) for e in engines.engines]
    return pd.DataFrame(rows, columns=["engine", *_HEADINGS, "url"]), {"engine": "engine"} | _HEADINGS, {}
