"""A spec's regular expressions on texts that a model wrote: what they match, and an end where they would take for ever.

Repeats within repeats, `(a+)+` say, take Python's `re` twice as long with every further character. It hears signals
while it searches; a timer's ends it.
"""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from evalspec.errors import RunError

SECONDS = 10.0
"""What one pattern may take on one text; ordinary ones take microseconds."""


class _OutOfTimeError(Exception):
    pass


def matches(pattern: re.Pattern[str], text: str) -> list[re.Match[str]]:
    """All matches, as `finditer` finds them. RunError if that takes too long."""
    with _within_time(pattern.pattern):
        return list(pattern.finditer(text))


def replaced(pattern: re.Pattern[str], by: str, text: str, count: int = 0) -> str:
    """The text with matches replaced, as `re.sub` does. RunError if that takes too long."""
    with _within_time(pattern.pattern):
        return pattern.sub(by, text, count)


@contextmanager
def _within_time(pattern: str) -> Iterator[None]:
    """Only the main thread hears signals, and Windows has no such timer: elsewhere nothing is bounded."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return
    began = time.monotonic()
    before = signal.signal(signal.SIGALRM, _out_of_time)
    theirs, _ = signal.setitimer(signal.ITIMER_REAL, SECONDS)  # a timer that someone else has set
    try:
        yield
    except _OutOfTimeError:
        raise RunError(
            f"the pattern {pattern!r} took more than {SECONDS:g} s on one text; repeats within repeats, as in (a+)+, "
            "take twice as long with every further character: write it without"
        ) from None
    finally:
        left = max(0.001, theirs - (time.monotonic() - began)) if theirs else 0.0
        signal.setitimer(signal.ITIMER_REAL, left)
        signal.signal(signal.SIGALRM, before)


def _out_of_time(number: int, frame: FrameType | None) -> None:
    raise _OutOfTimeError
