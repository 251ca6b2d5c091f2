"""Numbers with their units, as the page shows them."""

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
