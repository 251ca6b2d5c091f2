"""Key-value memory that forks for nothing, for models whose attention can be taken over (`tree_attention`).

A sequence keeps what its own span added, and points to its parent. A pack reads the path before it as columns that
stand once for all branches. So does a batch that decodes: what several rows have read is kept once for them (`Shared`),
only what each row has read alone stands in a buffer of its own.

Glossary: b rows · H key-value heads · t time · D head size · a *plane* is the keys or the values of one layer
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from evalspec.execute.backends.kv import Segment
from evalspec.execute.backends.tree_attention import attend, beyond, in_precision, merge, part_of, with_sinks
from evalspec.execute.backends.tree_layout import FAR, Layout, Scoring

Planes = tuple[Tensor, Tensor]
WORTH = 512  # columns saved from which on a stretch is kept once: attending to it costs a call a layer and step


def path_of(segments: Sequence[Segment | None]) -> tuple[list[Segment], list[list[tuple[int, int]]]]:
    """All segments on the way to these, each once, and the ranges of columns that each one's path takes among them."""
    place: dict[int, tuple[int, int]] = {}
    order: list[Segment] = []
    columns = 0
    ranges: list[list[tuple[int, int]]] = []
    for segment in segments:
        own: list[tuple[int, int]] = []
        for part in segment.chain() if segment is not None else ():
            if id(part) not in place:
                place[id(part)] = (columns, columns + part.tokens)
                order.append(part)
                columns += part.tokens
            begin, end = place[id(part)]
            if own and own[-1][1] == begin:
                own[-1] = (own[-1][0], end)
            else:
                own.append((begin, end))
        ranges.append(own)
    return order, ranges


def positions_of(order: Sequence[Segment], device: torch.device) -> Tensor:
    """Where in its sequence each column of a path stands."""
    parts = [torch.arange(part.length - part.tokens, part.length, device=device) for part in order]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long, device=device)


@dataclass(eq=False)
class PackPass:
    """One forward pass over a pack: it answers each layer's attention and keeps the layer's keys and values."""

    layout: Layout
    past: list[Planes] | None
    """Keys and values of the path before the pack, a layer."""
    seen: list[Planes]

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, scoring: Scoring) -> Tensor:
        """(1, H, t, D) → the same; the next layer's."""
        past = None if self.past is None else self.past[len(self.seen)]
        self.seen.append((keys[0], values[0]))
        return attend(query[0], keys[0], values[0], past, self.layout, scoring)[None]


@dataclass(frozen=True, eq=False)
class Shared:
    """What the rows `first` … `last` − 1 of a batch have all read: planes a layer (H, t, D), and its positions (t,)."""

    first: int
    last: int
    layers: tuple[Planes, ...]
    position: Tensor


@dataclass(frozen=True, eq=False)
class Branches:
    """A batch that decodes: what is shared, and each row's own keys and values (b, H, room, D), from the left; `own`
    (b,) says how many columns are in use, `lengths` (b,) how many tokens each sequence has, `position` (b, room) where
    the columns stand in it."""

    shared: tuple[Shared, ...]
    layers: tuple[Planes, ...]
    own: Tensor
    lengths: Tensor
    position: Tensor
    widest: int


def branch(segments: Sequence[Segment], room: int, planes_of: Sequence[tuple[int, int]]) -> Branches:
    """Sequences that go on side by side. `planes_of[i]`: (group, place) of plane i, keys and values in turn."""
    users: dict[int, list[int]] = {}
    parts: dict[int, Segment] = {}
    for row, segment in enumerate(segments):
        for part in segment.chain():
            parts[id(part)] = part
            users.setdefault(id(part), []).append(row)
    device = segments[0].planes[0].device if segments[0].planes else torch.device("cpu")  # no layer may attend
    # One stretch of segments that the same rows have read is one part.
    stretches: dict[tuple[int, int], list[Segment]] = {}
    private: list[list[Segment]] = [[] for _ in segments]
    for key, rows in users.items():
        contiguous = rows[-1] - rows[0] + 1 == len(rows)
        if contiguous and (len(rows) - 1) * parts[key].tokens >= WORTH:
            stretches.setdefault((rows[0], rows[-1] + 1), []).append(parts[key])
        else:
            for row in rows:
                private[row].append(parts[key])
    layers = range(0, len(planes_of), 2)

    def plane(part: Segment, number: int) -> Tensor:
        group, place = planes_of[number]
        return part.planes[group][place]

    shared = tuple(
        Shared(
            first,
            last,
            tuple(
                (torch.cat([plane(p, n) for p in found], 1), torch.cat([plane(p, n + 1) for p in found], 1))
                for n in layers
            ),
            positions_of(found, device),
        )
        for (first, last), found in stretches.items()
    )
    own = [sum(part.tokens for part in found) for found in private]
    widest = max(own)
    position = torch.zeros(len(segments), widest + room, dtype=torch.long, device=device)
    buffers: list[Tensor] = []
    for number in range(len(planes_of)):
        some = plane(segments[0], number)
        buffer = some.new_zeros(len(segments), some.shape[0], widest + room, some.shape[2])
        for row, found in enumerate(private):
            if found:
                buffer[row, :, : own[row]] = torch.cat([plane(part, number) for part in found], 1)
        buffers.append(buffer)
    for row, found in enumerate(private):
        position[row, : own[row]] = positions_of(found, device)
    return Branches(
        shared,
        tuple((buffers[number], buffers[number + 1]) for number in layers),
        torch.tensor(own, device=device),
        torch.tensor([segment.length for segment in segments], device=device),
        position,
        widest,
    )


def select(batch: Branches, rows: Sequence[int]) -> Branches:
    """Only these rows, in order."""
    index = torch.tensor(rows, device=batch.own.device)
    shared = []
    for part in batch.shared:
        inside = [place for place, row in enumerate(rows) if part.first <= row < part.last]
        if inside:
            shared.append(Shared(inside[0], inside[-1] + 1, part.layers, part.position))
    return Branches(
        tuple(shared),
        tuple((keys[index], values[index]) for keys, values in batch.layers),
        batch.own[index],
        batch.lengths[index],
        batch.position[index],
        batch.widest,
    )


def join(first: Branches, second: Branches) -> Branches:
    """Both batches in one, the rows of the first before the second's."""
    moved = len(first.own)
    room = max(first.position.shape[1], second.position.shape[1])

    def wide(plane: Tensor) -> Tensor:
        return functional.pad(plane, (0, 0, 0, room - plane.shape[2]))

    return Branches(
        first.shared + tuple(Shared(s.first + moved, s.last + moved, s.layers, s.position) for s in second.shared),
        tuple(
            (torch.cat([wide(k1), wide(k2)]), torch.cat([wide(v1), wide(v2)]))
            for (k1, v1), (k2, v2) in zip(first.layers, second.layers, strict=True)
        ),
        torch.cat([first.own, second.own]),
        torch.cat([first.lengths, second.lengths]),
        torch.cat([functional.pad(batch.position, (0, room - batch.position.shape[1])) for batch in (first, second)]),
        max(first.widest, second.widest),
    )


def grown(batch: Branches) -> Branches:
    """The same with room for one more token a row."""
    room = batch.position.shape[1]
    if batch.widest < room:
        return batch
    more = max(64, room // 2)
    layers = tuple(
        (functional.pad(keys, (0, 0, 0, more)), functional.pad(values, (0, 0, 0, more)))
        for keys, values in batch.layers
    )
    position = functional.pad(batch.position, (0, more))
    return Branches(batch.shared, layers, batch.own, batch.lengths, position, batch.widest)


@dataclass(eq=False)
class StepPass:
    """One forward pass in which each row of a batch takes one token; it writes the token's keys and values in place."""

    batch: Branches
    layer: int = 0

    def __post_init__(self) -> None:
        batch = self.batch
        self._rows = torch.arange(len(batch.own), device=batch.own.device)
        batch.position[self._rows, batch.own] = batch.lengths
        used = batch.widest + 1
        self._mask = torch.zeros(len(batch.own), 1, 1, used, device=batch.own.device)
        self._mask.masked_fill_((torch.arange(used, device=batch.own.device) > batch.own[:, None])[:, None, None], FAR)

    def after(self) -> Branches:
        """The batch, one token longer."""
        batch = self.batch
        return Branches(batch.shared, batch.layers, batch.own + 1, batch.lengths + 1, batch.position, batch.widest + 1)

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, scoring: Scoring) -> Tensor:
        """(b, H, 1, D) → the same; the next layer's."""
        batch, used = self.batch, self.batch.widest + 1
        all_keys, all_values = batch.layers[self.layer]
        all_keys[self._rows, :, batch.own] = keys[:, :, 0]
        all_values[self._rows, :, batch.own] = values[:, :, 0]
        mask = self._mask
        if scoring.window is not None:
            far = batch.lengths[:, None] - batch.position[:, :used] >= scoring.window
            mask = mask.masked_fill(far[:, None, None], FAR)
        given = query.dtype
        query, k, v = in_precision(scoring, query, all_keys[:, :, :used], all_values[:, :, :used])
        output, total = part_of(query, k, v, scoring, mask=mask)
        # Rows become the queries of one sequence: (1, H, rows, D) against what they share.
        output, total = output[:, :, 0].transpose(0, 1).contiguous(), total[:, :, 0].T.contiguous()
        queries = query[:, :, 0].transpose(0, 1)
        for part in batch.shared:
            rows = slice(part.first, part.last)
            k, v = in_precision(scoring, *part.layers[self.layer])
            near = beyond(scoring.window, batch.lengths[rows], part.position)
            o, its = part_of(queries[None, :, rows], k[None], v[None], scoring, mask=near)
            merge(output[:, rows], total[:, rows], o[0], its[0])
        self.layer += 1
        return with_sinks(output, total, scoring).transpose(0, 1)[:, :, None].to(given)
