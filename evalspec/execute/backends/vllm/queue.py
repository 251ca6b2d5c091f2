"""The order in which asks go to an engine: as many as it works on at a time, none before the prefix it waits for.

States that were cached for others are used soon after: so few prefixes are open at a time that their states are still
there when those come that begin with them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from evalspec.execute.backends.vllm.asks import Ask

MOST_OPEN = 64
"""Warm prefixes whose users are not all done."""


class Queue:
    """Asks that wait, are under way, or are done."""

    def __init__(self, asks: Sequence[Ask], window: int, most_open: int = MOST_OPEN) -> None:
        self.asks, self.window, self.most_open = asks, window, most_open
        self.users = [0] * len(asks)  # of a warm ask: those that wait for it and are not done
        for ask in asks:
            if ask.after is not None:
                self.users[ask.after] += 1
        self.under_way: set[int] = set()
        self._done: set[int] = set()
        self._open: set[int] = set()
        self._next = 0
        self._held: dict[int, list[int]] = {}  # by the warm ask that they wait for
        self._ready: deque[int] = deque()

    def __bool__(self) -> bool:
        return bool(self.under_way or self._ready or self._held or self._next < len(self.asks))

    def take(self) -> Iterator[int]:
        """Numbers of the asks to send now."""
        while len(self.under_way) < self.window:
            if self._ready:
                number = self._ready.popleft()
            elif self._next < len(self.asks):
                number = self._next
                ask = self.asks[number]
                # Nothing else can go on while nothing is under way: a deep nest of prefixes is opened all the same.
                if ask.kind == "warm" and len(self._open) >= self.most_open and self.under_way:
                    return
                self._next += 1
                if ask.after is not None and ask.after not in self._done:
                    self._held.setdefault(ask.after, []).append(number)
                    continue
            else:
                return
            self.under_way.add(number)
            if self.asks[number].kind == "warm":
                self._open.add(number)
            yield number

    def done(self, number: int) -> None:
        """An ask was answered: those that waited for it come next."""
        self.under_way.discard(number)
        self._done.add(number)
        self._ready.extend(self._held.pop(number, ()))
        self._close(number)

    def _close(self, number: int) -> None:
        """A warm ask without users left is closed; one user less for the one above."""
        if self.asks[number].kind == "warm" and self.users[number]:
            return
        self._open.discard(number)
        above = self.asks[number].after
        if above is not None:
            self.users[above] -= 1
            if not self.users[above]:
                self._close(above)
