"""Units at the edges: files and pages say GB, GiB, GB/s and TFLOP/s, code holds bytes, bytes/s and FLOP/s."""

from __future__ import annotations

from typing import Final

__all__ = ["UNITS", "format_bytes", "format_rate", "format_si", "to_base"]

#: unit -> (dimension, factor to the base unit). GB is decimal, GiB is binary; there is no third reading.
UNITS: Final[dict[str, tuple[str, float]]] = {
    "bytes": ("memory", 1),
    "MB": ("memory", 10**6),
    "MiB": ("memory", 2**20),
    "GB": ("memory", 10**9),
    "GiB": ("memory", 2**30),
    "GB/s": ("bandwidth", 10**9),
    "TB/s": ("bandwidth", 10**12),
    "TFLOP/s": ("compute", 10**12),
    "PFLOP/s": ("compute", 10**15),
    "TOP/s": ("compute", 10**12),
    "W": ("power", 1),
    "USD": ("price", 1),
    "tok/s": ("rate", 1),
    "parameters": ("count", 1),
}


def to_base(value: float, unit: str, dimension: str) -> float:
    """Convert ``value`` in ``unit`` to the base unit of ``dimension``.

    Raises ``ValueError`` naming the units that would do when ``unit`` is unknown or of another dimension.

    >>> to_base(273, "GB/s", "bandwidth")
    273000000000.0
    """
    allowed = [name for name, (kind, _) in UNITS.items() if kind == dimension]
    if unit not in allowed:
        raise ValueError(f"unit {unit!r} is not a unit of {dimension}; use one of {', '.join(allowed)}")
    return float(value) * UNITS[unit][1]


def format_bytes(value: float, unit: str = "GB", digits: int = 2) -> str:
    """Format bytes in one stated unit.

    >>> format_bytes(42_512_531_712), format_bytes(2**30, "GiB", 1)
    ('42.51 GB', '1.0 GiB')
    """
    return f"{value / UNITS[unit][1]:,.{digits}f} {unit}"


def format_rate(value: float | None, digits: int = 1) -> str:
    """Format a rate in tokens per second; unknown shows as a dash.

    >>> format_rate(6.5121), format_rate(None)
    ('6.5 tok/s', '–')
    """
    return "–" if value is None else f"{value:,.{digits}f} tok/s"


def format_si(value: float | None, unit: str, digits: int = 3) -> str:
    """Format with an SI prefix and ``digits`` significant figures; unknown shows as a dash.

    >>> format_si(125e12, "FLOP/s"), format_si(None, "B/s")
    ('125 TFLOP/s', '–')
    """
    if value is None:
        return "–"
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if float(f"{abs(value) / factor:.{digits}g}") >= 1:
            return f"{value / factor:.{digits}g} {prefix}{unit}"
    return f"{value:.{digits}g} {unit}"
