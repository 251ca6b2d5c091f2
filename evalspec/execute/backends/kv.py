"""Key-value memory that forks for nothing: a sequence keeps what its own span added, and points to its parent.

A batch puts sequences side by side, aligned at their right ends, so that all rows' next tokens stand in one column. Its
buffers have room beyond their last column, so that decoding writes a token where transformers' own cache copies all.

Glossary: b rows · H key-value heads · t time · D head size · a *plane* is the keys or the values of one layer
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.cache_utils import DynamicCache, DynamicLayer


@dataclass(frozen=True, eq=False)
class Segment:
    """What one span added to a sequence: for each group of like planes (planes, H, t, D); and what came before."""

    planes: tuple[Tensor, ...]
    parent: Segment | None
    length: int
    """Tokens of the whole sequence, the parent's included."""

    @property
    def tokens(self) -> int:
        """Tokens of this span alone."""
        return int(self.planes[0].shape[2])

    def chain(self) -> list[Segment]:
        """The segments from the sequence's first to this one."""
        found = [self]
        while found[-1].parent is not None:
            found.append(found[-1].parent)
        return found[::-1]


@dataclass(frozen=True, eq=False)
class KeyValues:
    """A batch's memory: keys and values of each layer (b, H, t, D); the first `columns` of t are in use, and row i's
    are the last lengths[i] of those. Feeding writes behind them, so a batch is fed once and then replaced."""

    layers: tuple[tuple[Tensor, Tensor], ...]
    lengths: tuple[int, ...]
    columns: int


class RoomyLayer(DynamicLayer):  # type: ignore[misc]  # transformers is not typed
    """A cache layer over a buffer with room: new keys and values are written behind the old ones, in place."""

    def __init__(self, keys: Tensor, values: Tensor, columns: int) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values, self.columns = keys, values, columns

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write (b, H, new, D) behind what is there, in a larger buffer if need be; returns all columns in use."""
        stop = self.columns + key_states.shape[2]
        if stop > self.keys.shape[2]:
            more = stop + max(64, stop) - self.columns
            self.keys = functional.pad(self.keys[:, :, : self.columns], (0, 0, 0, more))
            self.values = functional.pad(self.values[:, :, : self.columns], (0, 0, 0, more))
        self.keys[:, :, self.columns : stop] = key_states
        self.values[:, :, self.columns : stop] = value_states
        self.columns = stop
        return self.keys[:, :, :stop], self.values[:, :, :stop]

    def get_seq_length(self) -> int:
        """Columns in use."""
        return self.columns


def as_cache(memory: KeyValues | None) -> DynamicCache:
    """A transformers cache over a batch's memory.

    It keeps every token, also for layers with a sliding window, which their masks enforce: a fork needs whole spans.
    """
    cache = DynamicCache()
    if memory is not None:
        cache.layers.extend(RoomyLayer(keys, values, memory.columns) for keys, values in memory.layers)
    return cache


def from_cache(cache: DynamicCache, lengths: Sequence[int]) -> KeyValues:
    """The memory that a cache holds after a batch was fed, whose rows now have these lengths."""
    layers = tuple((layer.keys, layer.values) for layer in cache.layers)
    return KeyValues(layers, tuple(lengths), int(cache.layers[0].get_seq_length()))


def groups_of(layers: Sequence[tuple[Tensor, Tensor]]) -> list[list[int]]:
    """Plane numbers (2 · layer: keys, 2 · layer + 1: values) of one shape and device, which pack together."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for number, plane in enumerate(plane for layer in layers for plane in layer):
        groups.setdefault((plane.device, plane.shape[1], plane.shape[3]), []).append(number)
    return list(groups.values())


def gather(segments: Sequence[Segment | None], groups: Sequence[Sequence[int]], room: int) -> KeyValues:
    """Sequences side by side, with room for more tokens; None is an empty one. Repeated ones are put together once."""
    place: dict[int, int] = {}
    distinct: list[Segment | None] = []
    for segment in segments:
        if id(segment) not in place:
            place[id(segment)] = len(distinct)
            distinct.append(segment)
    some = next(segment for segment in distinct if segment is not None)
    columns = max(segment.length for segment in distinct if segment is not None)
    planes: dict[int, Tensor] = {}
    index = [place[id(segment)] for segment in segments]
    for number, group in enumerate(groups):
        size, heads, _, width = some.planes[number].shape
        packed = some.planes[number].new_zeros(size, len(distinct), heads, columns + room, width)
        for row, segment in enumerate(distinct):
            at = columns - segment.length if segment is not None else columns
            for part in segment.chain() if segment is not None else ():
                stop = at + part.planes[number].shape[2]
                packed[:, row, :, at:stop] = part.planes[number]
                at = stop
        if index != list(range(len(distinct))):
            packed = packed.index_select(1, torch.tensor(index, device=packed.device))
        planes.update(zip(group, packed.unbind(0), strict=True))
    layers = tuple((planes[number], planes[number + 1]) for number in range(0, len(planes), 2))
    return KeyValues(layers, tuple(0 if segment is None else segment.length for segment in segments), columns)


def scatter(
    batch: KeyValues,
    rows: Sequence[int],
    before: Sequence[Segment | None],
    past: int,
    lengths: Sequence[int],
    groups: Sequence[Sequence[int]],
) -> list[Segment]:
    """What some rows added to the sequences they continue: lengths[i] columns from column `past` on, copied."""
    flat = [plane for layer in batch.layers for plane in layer]
    segments = []
    for row in rows:
        parent, length = before[row], lengths[row]
        planes = tuple(
            torch.stack([flat[number][row, :, past : past + length] for number in group]) for group in groups
        )
        segments.append(Segment(planes, parent, length + (0 if parent is None else parent.length)))
    return segments


def select(batch: KeyValues, rows: Sequence[int]) -> KeyValues:
    """Only these rows, without the columns that none of them needs."""
    lengths = tuple(batch.lengths[row] for row in rows)
    unused = batch.columns - max(lengths)
    layers = []
    for keys, values in batch.layers:
        index = torch.tensor(rows, device=keys.device)
        layers.append((keys[:, :, unused:].index_select(0, index), values[:, :, unused:].index_select(0, index)))
    return KeyValues(tuple(layers), lengths, max(lengths))


def join(first: KeyValues, second: KeyValues, room: int) -> KeyValues:
    """Both batches in one, aligned at the right, with room for more tokens."""
    columns = max(first.columns, second.columns)

    def both(one: Tensor, other: Tensor) -> Tensor:
        return torch.cat(
            [
                functional.pad(plane[:, :, :used], (0, 0, columns - used, room))
                for plane, used in ((one, first.columns), (other, second.columns))
            ]
        )

    layers = tuple((both(k1, k2), both(v1, v2)) for (k1, v1), (k2, v2) in zip(first.layers, second.layers, strict=True))
    return KeyValues(layers, first.lengths + second.lengths, columns)
