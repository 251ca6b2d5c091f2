"""Numbers as they are shown: with their units, and p-values."""

from __future__ import annotations


def in_seconds(seconds: float) -> str:
    """`2.31 s`, `14.2 ms`, `880 µs`."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def in_bytes(count: int | float | None) -> str:
    """`3.1 MB`; an empty text for None."""
    if count is None:
        return ""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def p_text(value: float | None, name: str = "") -> str:
    """A p-value to four places: `0.0312`, `< 0.0001`, with a name `p = 0.0312`; an empty text for None."""
    if value is None:
        return ""
    small = value < 0.0001
    said = "< 0.0001" if small else f"{value:.4f}"
    return f"{name} {said}" if name and small else f"{name} = {said}" if name else said
