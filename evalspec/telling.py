"""What takes long says how far it is, to whoever listens: a run that shows its progress, and nobody in a library."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

EVERY = 5.0  # seconds between two lines

_LISTENER: ContextVar[Callable[[str], None]] = ContextVar("listener", default=lambda text: None)


@contextmanager
def heard(by: Callable[[str], None]) -> Iterator[None]:
    """Within it, `by` is told."""
    token = _LISTENER.set(by)
    try:
        yield
    finally:
        _LISTENER.reset(token)


class Telling:
    """How far something is that has so many parts: a line every few seconds."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.done = what, total, 0
        self.began = self.told = time.monotonic()

    def advance(self, parts: int) -> None:
        """So many parts more are done."""
        self.done += parts
        now = time.monotonic()
        if now - self.told >= EVERY and self.done < self.total:
            self.told = now
            left = (now - self.began) * (self.total - self.done) / self.done
            _LISTENER.get()(f"  {self.what}: {self.done:,} of {self.total:,}, about {duration(left)} left")


def duration(seconds: float) -> str:
    """A time in the unit that it is read in."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
