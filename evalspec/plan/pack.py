"""A pack: a part of a forest laid out as one row of tokens, to be fed in one go.

Segments stand depth first, parents before children, so that a subtree is a contiguous range of tokens. One number a
token, `reach` (where the subtree that it stands above ends), then says all about who comes before whom:

    token s is on the path to token t        ⇔        s ≤ t < reach[s]

    segments   0: a b c ┬ 1: d e ┬ 2: f        tokens   a b c d e f g h
                        │        └ 3: g        reach    8 8 8 7 7 6 7 8
                        └ 4: h

Nothing is padded, and nothing is fed twice. Attention masks, convolution windows and the order of recurrences
are all read off these arrays (numpy; no torch here).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Pack:
    """Where each segment of a row of tokens begins, and what comes before it.

    length (s,)   tokens of each segment, at least one; they stand one after the other
    parent (s,)   the earlier segment whose last token comes before its first; −1 − i: it continues the given state i
    given         how many states from outside the segments continue
    keep   (k,)   segments after whose last token the state is asked for
    rows          (count, length) if the segments are rows of equal length that continue the given states 0, 1, …
    """

    length: Ints
    parent: Ints
    given: int
    keep: Ints
    rows: tuple[int, int] | None = None

    @classmethod
    @lru_cache(maxsize=64)
    def of_rows(cls, count: int, length: int) -> Pack:
        """Independent sequences of one length, all of whose states are kept: an ordinary batch."""
        numbers = np.arange(count, dtype=np.int64)
        return cls(np.full(count, length, np.int64), -1 - numbers, count, numbers, (count, length))

    @classmethod
    def of(cls, length: Sequence[int], parent: Sequence[int], given: int, keep: Sequence[int]) -> Pack:
        """From lists. ValueError if a segment is empty, or a parent does not stand before its child on its path."""
        numbers = [np.asarray(values, np.int64) for values in (length, parent, keep)]
        pack = cls(numbers[0], numbers[1], given, numbers[2])
        path: list[int] = []
        for number, above in enumerate(pack.parent.tolist()):
            while path and path[-1] != above:
                path.pop()
            if not (-given <= above < number) or (above >= 0 and not path) or pack.length[number] < 1:
                raise ValueError(f"segment {number} is empty, or its parent {above} is not on the path before it")
            path.append(number)
        return pack

    @property
    def tokens(self) -> int:
        """T, the length of the row."""
        return int(self.length.sum())

    @cached_property
    def start(self) -> Ints:
        """(s,) the first token of each segment."""
        return np.cumsum(self.length) - self.length

    @property
    def stop(self) -> Ints:
        """(s,) behind the last token of each segment."""
        return self.start + self.length

    @cached_property
    def below(self) -> Ints:
        """(s,) behind the last token of each segment's subtree."""
        found = self.stop.copy()
        for number in range(len(found) - 1, -1, -1):
            above = self.parent[number]
            if above >= 0:
                found[above] = max(found[above], found[number])
        return found

    @cached_property
    def reach(self) -> Ints:
        """(t,) behind the last token whose path leads through this one."""
        return np.repeat(self.below, self.length)

    @cached_property
    def depth(self) -> Ints:
        """(s,) how many segments of the pack stand above each: those of one depth can be fed together."""
        found = np.zeros(len(self.length), np.int64)
        for number, above in enumerate(self.parent.tolist()):
            if above >= 0:
                found[number] = found[above] + 1
        return found

    @cached_property
    def levels(self) -> list[Ints]:
        """Segments by depth."""
        return [np.flatnonzero(self.depth == level) for level in range(int(self.depth.max(initial=-1)) + 1)]

    @cached_property
    def origin(self) -> Ints:
        """(s,) the given state that each segment's path begins with."""
        found = np.zeros(len(self.length), np.int64)
        for number, above in enumerate(self.parent.tolist()):
            found[number] = found[above] if above >= 0 else -1 - above
        return found

    @cached_property
    def ends(self) -> Ints:
        """(m,) segments whose last state is needed: by a child in the pack, or afterwards."""
        return np.unique(np.concatenate([self.parent[self.parent >= 0], self.keep]))

    @cached_property
    def slot(self) -> Ints:
        """(s,) each segment's place among `ends`; −1 if nobody needs its last state."""
        found = np.full(len(self.length), -1, np.int64)
        found[self.ends] = np.arange(len(self.ends))
        return found

    def previous(self, width: int) -> Ints:
        """(given · width + t,) one step back along each path, over `width` slots a given state (oldest first), then
        all tokens: a segment's first token leads to the last one of its parent, or to a given state's last slot."""
        slots = self.given * width
        back = np.arange(-1, slots + self.tokens - 1)
        back[0 : slots : width or 1] = np.arange(0, slots, width or 1)  # before a state's first slot: never asked for
        last = self.stop[np.maximum(self.parent, 0)] - 1  # of the parent, if that is a segment
        above = np.where(self.parent >= 0, slots + last, (-self.parent) * width - 1)
        back[slots + self.start] = above
        return back

    def history(self, width: int) -> Ints:
        """(t, width) the `width` inputs before each token on its path, oldest first, as `previous` numbers them."""
        if width not in self._histories:
            back = self.previous(width)
            columns = [np.arange(self.given * width, self.given * width + self.tokens)]
            for _ in range(width):
                columns.append(back[columns[-1]])
            self._histories[width] = np.stack(columns[:0:-1], axis=1) if width else np.zeros((self.tokens, 0), np.int64)
        return self._histories[width]

    @cached_property
    def _histories(self) -> dict[int, Ints]:
        return {}  # every layer asks for the same one

    def window(self, width: int) -> Ints:
        """(k, width) the last `width` inputs up to the end of each kept segment, oldest first, numbered likewise."""
        last = self.stop[self.keep] - 1
        own = self.given * width + last
        return np.concatenate([self.history(width)[last], own[:, None]], axis=1)[:, 1:]

    def chunks(self, most: int) -> Chunks:
        """Cut into chunks of at most `most` tokens; a subtree that would fit in a chunk is not cut."""
        start, entry = [0], [int(self.parent[0])]
        stops, below = self.stop.tolist(), self.below.tolist()
        for number, (begin, above) in enumerate(zip(self.start.tolist(), self.parent.tolist(), strict=True)):
            before = stops[above] - 1 if above >= 0 else above
            inside = before >= start[-1]
            room = start[-1] + most - begin
            if begin > start[-1] and (not (inside or before == entry[-1]) or room < min(most, below[number] - begin)):
                start.append(begin)
                entry.append(before)
            while stops[number] > start[-1] + most:
                start.append(start[-1] + most)
                entry.append(start[-1] - 1)
        return Chunks(
            np.asarray(start, np.int64), np.asarray([*start[1:], self.tokens], np.int64), np.asarray(entry, np.int64)
        )


@dataclass(frozen=True, eq=False)
class Chunks:
    """Consecutive ranges of a pack's tokens whose paths all come in through the same token: each is a small forest of
    its own, hanging from one state.

    start, stop (c,)   the tokens of each chunk
    entry       (c,)   the token, in an earlier chunk, that comes before its first; −1 − i: the given state i
    """

    start: Ints
    stop: Ints
    entry: Ints
