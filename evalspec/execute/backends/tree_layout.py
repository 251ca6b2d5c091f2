"""How the attention over a forest falls into parts, and how its scores come about.

Queries are a pack's tokens, or the rows of a batch that decodes. Whom they attend to falls into rectangles, which run
without a mask, and small units, which run together with one:

    columns   what the path read before │ the pack's own tokens
                                        │ trunk  q1 a b c d   q2 a b c d
    trunk     ██████████████████████████│ ◣
    q1, a…d   ██████████████████████████│ █████  unit
    q2, a…d   ██████████████████████████│ █████               unit
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from evalspec.plan.pack import Ints, Pack

UNIT = 96  # tokens: subtrees of at most so many are units

FAR = -1e30
"""The score of what must not be seen: finite, so that a row that sees nothing in a part merges as nothing, not NaN."""


@dataclass(frozen=True)
class Rectangle:
    """All of these rows attend to all of these columns (of the keys before, or of the pack's own: `own`)."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    own: bool


@dataclass(frozen=True, eq=False)
class Units:
    """Small subtrees of like size: token (n, u), padded with the first; before (n, 1, u, u) float, 0 or FAR."""

    token: Tensor
    before: Tensor
    flat: Tensor
    """Which of the n · u places are real."""


@dataclass(frozen=True, eq=False)
class Layout:
    """How a pack's attention falls into parts.

    Every token is in one `trunk` (rows that attend causally to each other) or in one of the `small` subtrees;
    rectangles bring the rest. `position` (t,) and `past_position` (s,) count from a sequence's start; `reach` (t,) is
    the pack's.
    """

    trunks: tuple[tuple[int, int], ...]
    small: tuple[tuple[int, int], ...]
    rectangles: tuple[Rectangle, ...]
    position: Tensor
    past_position: Tensor
    reach: Ints
    kept: dict[tuple[object, ...], object] = field(default_factory=dict)
    """What a kernel has made of it, for the layers to come."""

    @cached_property
    def units(self) -> tuple[Units, ...]:
        """The small subtrees, in groups."""
        return _units(self.small, self.reach, self.position.device)


@dataclass(frozen=True)
class Scoring:
    """How scores come about: softcap(scale · q · k), and no further back than `window` tokens; with `sinks` (H,), each
    head's softmax has one more entry that brings no value. All of it in `dtype`, if not in the queries' own."""

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    dtype: torch.dtype | None = None


def lay_out(pack: Pack, past: Sequence[Sequence[tuple[int, int]]], position: Tensor, past_position: Tensor) -> Layout:
    """The parts of a pack's attention. `past[g]`: the ranges of columns before the pack that are given state g."""
    rectangles: list[Rectangle] = []
    start, stop, below = (values.tolist() for values in (pack.start, pack.stop, pack.below))
    origin = pack.origin.tolist()
    first = 0
    for number in range(1, len(origin) + 1):
        if number == len(origin) or origin[number] != origin[first]:
            rows = (start[first], stop[number - 1])
            rectangles += [Rectangle(rows, columns, own=False) for columns in past[origin[first]]]
            first = number
    trunks: list[tuple[int, int]] = []
    small: list[tuple[int, int]] = []
    covered = 0  # tokens before this one are in a unit already
    for begin, end, last in zip(start, stop, below, strict=True):
        if begin < covered:
            continue
        if last - begin <= UNIT:
            covered = last
            small.append((begin, last))
            continue
        (trunks if end - begin > UNIT else small).append((begin, end))
        if last > end:
            rectangles.append(Rectangle((end, last), (begin, end), own=True))
    return Layout(tuple(trunks), tuple(small), tuple(rectangles), position, past_position, pack.reach)


def _units(ranges: Sequence[tuple[int, int]], reach: Ints, device: torch.device) -> tuple[Units, ...]:
    """Subtrees in groups of like size, so that little is padded."""
    groups: dict[int, list[tuple[int, int]]] = {}
    for begin, end in ranges:
        groups.setdefault(-(-(end - begin) // 16), []).append((begin, end))
    found = []
    for group in groups.values():
        begins, sizes = np.asarray([begin for begin, _ in group]), np.asarray([end - begin for begin, end in group])
        place = np.arange(sizes.max())
        real = place < sizes[:, None]
        token = np.where(real, begins[:, None] + place, begins[:, None])
        # A padded row attends to its unit's first token, so that its softmax is not empty; nobody attends to it.
        ends = np.where(real, reach[token], 0)
        before = (token[:, None, :] <= token[:, :, None]) & (token[:, :, None] < ends[:, None, :])
        mask = torch.zeros(before.shape).masked_fill(torch.from_numpy(~before), FAR)
        found.append(
            Units(
                torch.from_numpy(token).to(device),
                mask[:, None].to(device),
                torch.from_numpy(np.flatnonzero(real.ravel())).to(device),
            )
        )
    return tuple(found)
