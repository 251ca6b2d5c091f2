"""Memory that forks: a sequence keeps the keys and values that its own span added, and points to its parent.

Models that mix attention with recurrent layers have states beside: each sequence holds its own, of a fixed size.

A batch puts sequences side by side, aligned at their right ends, so that all rows' next tokens stand in one column. Its
buffers have room beyond their last column, so that decoding writes a token where transformers' own cache copies all.

Glossary: b rows · H key-value heads · t time · D head size · a *plane* is the keys or the values of one layer · a
*state* is one tensor (b, …) that a recurrent layer carries on: its convolution's last inputs, or its recurrence
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.cache_utils import (
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)


@dataclass(frozen=True, eq=False)
class Segment:
    """What one span added to a sequence: for each group of like planes (planes, H, t, D); and what came before.

    `states` are the sequence's own after the span, for each group of like states (states, …).
    """

    planes: tuple[Tensor, ...]
    parent: Segment | None
    length: int
    """Tokens of the whole sequence, the parent's included."""
    states: tuple[Tensor, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens of this span alone."""
        return self.length - (0 if self.parent is None else self.parent.length)

    def chain(self) -> list[Segment]:
        """The segments from the sequence's first to this one."""
        found = [self]
        while found[-1].parent is not None:
            found.append(found[-1].parent)
        return found[::-1]


@dataclass(frozen=True, eq=False)
class KeyValues:
    """A batch's memory: keys and values of each layer (b, H, t, D); the first `columns` of t are in use, and row i's
    are the last lengths[i] of those; and the states (b, …). Feeding writes behind the keys and over the states, so a
    batch is fed once and then replaced."""

    layers: tuple[tuple[Tensor, Tensor], ...]
    lengths: tuple[int, ...]
    columns: int
    states: tuple[Tensor, ...] = ()


class RoomyLayer(DynamicLayer):  # type: ignore[misc]  # transformers is not typed
    """A cache layer over a buffer with room: new keys and values are written behind the old ones, in place."""

    columns = 0

    def hold(self, keys: Tensor, values: Tensor, columns: int) -> None:
        """Go on from a buffer, of which so many columns are in use."""
        self.lazy_initialization(keys, values)
        self.keys, self.values, self.columns = keys, values, columns

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write (b, H, new, D) behind what is there, in a larger buffer if need be; returns all columns in use."""
        if not self.columns:
            self.hold(key_states, value_states, key_states.shape[2])
            return key_states, value_states
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


class RoomyHybridLayer(RoomyLayer, LinearAttentionAndFullAttentionLayer):  # type: ignore[misc]
    """The same for a layer that attends and has states."""


_ATTENDING = (DynamicLayer, DynamicSlidingWindowLayer)
_RECURRENT = (LinearAttentionLayer,)
_BOTH = (LinearAttentionAndFullAttentionLayer, LinearAttentionAndSlidingWindowAttentionLayer)


@dataclass(frozen=True, eq=False)
class Layout:
    """What a model's cache holds, and how it moves between batches and single sequences.

    Caches made here keep every token, also for layers with a sliding window, which their masks enforce: a fork needs
    whole spans.

    layers   of each layer: if it has keys and values, and for how many pairs of states it has room
    planes   plane numbers (2 · i: keys, 2 · i + 1: values of the i-th layer that has them) in groups that pack together
    slots    where each state stands in the cache: layer, name, number
    states   numbers of slots, in groups likewise
    """

    layers: tuple[tuple[bool, int], ...]
    planes: tuple[tuple[int, ...], ...]
    slots: tuple[tuple[int, str, int], ...]
    states: tuple[tuple[int, ...], ...]
    bytes_a_token: int
    bytes_a_sequence: int

    @classmethod
    def of(cls, cache: Any) -> Layout | None:
        """Read off a cache that the model has filled with one row; None if it holds what is not known here."""
        if type(cache) is not DynamicCache or not cache.layers:
            return None
        layers, planes, slots, states = [], [], [], []
        for number, layer in enumerate(cache.layers):
            attends = isinstance(layer, DynamicLayer)
            if type(layer) not in _ATTENDING + _RECURRENT + _BOTH or (attends and layer.keys is None):
                return None
            if attends:
                planes += [layer.keys, layer.values]
            pairs = 0 if type(layer) in _ATTENDING else layer.number_of_states
            layers.append((attends, pairs))
            for name in ("conv_states", "recurrent_states") if pairs else ():
                for index, state in getattr(layer, name).items():
                    if state is not None:
                        slots.append((number, name, index))
                        states.append(state)
        return cls(
            tuple(layers),
            _groups((plane.device, plane.dtype, plane.shape[1], plane.shape[3]) for plane in planes),
            tuple(slots),
            _groups((state.device, state.dtype, state.shape) for state in states),
            sum(plane.nbytes // plane.shape[2] for plane in planes),
            sum(state.nbytes for state in states),
        )

    @property
    def recurrent(self) -> bool:
        """Whether there are states, which what a row reads enters for good."""
        return bool(self.slots)

    def state_bytes(self, length: int) -> int:
        """Bytes of the keys and values of `length` tokens, and of one sequence's states."""
        return self.bytes_a_token * length + self.bytes_a_sequence

    def as_cache(self, memory: KeyValues | None) -> DynamicCache:
        """A transformers cache over a batch's memory."""
        cache = DynamicCache()
        planes = iter(memory.layers if memory is not None else ())
        for attends, pairs in self.layers:
            if not attends:
                cache.layers.append(LinearAttentionLayer(pairs))
                continue
            layer = RoomyHybridLayer(pairs) if pairs else RoomyLayer()
            if memory is not None:
                layer.hold(*next(planes), memory.columns)
            cache.layers.append(layer)
        for (number, name, index), state in zip(
            self.slots if memory else (), memory.states if memory else (), strict=True
        ):
            layer = cache.layers[number]
            getattr(layer, name)[index] = state
            getattr(layer, f"is_{name}_initialized")[index] = True
            layer.has_previous_state[index] = True
            layer.dtype, layer.device = state.dtype, state.device
            if name == "conv_states":
                layer.conv_kernel_size[index] = state.shape[-1]
        return cache

    def from_cache(self, cache: DynamicCache, lengths: Sequence[int], columns: int) -> KeyValues:
        """The memory that a cache holds after a batch was fed, whose rows now have these lengths."""
        attending = (layer for layer, (attends, _) in zip(cache.layers, self.layers, strict=True) if attends)
        states = tuple(getattr(cache.layers[number], name)[index] for number, name, index in self.slots)
        return KeyValues(tuple((layer.keys, layer.values) for layer in attending), tuple(lengths), columns, states)

    def gather(self, segments: Sequence[Segment | None], room: int) -> KeyValues | None:
        """Sequences side by side, with room for more tokens; None is an empty one. Repeated ones are put together once.

        None if all of them are empty.
        """
        place: dict[int, int] = {}
        distinct: list[Segment | None] = []
        for segment in segments:
            if id(segment) not in place:
                place[id(segment)] = len(distinct)
                distinct.append(segment)
        some = next((segment for segment in distinct if segment is not None), None)
        if some is None:
            return None
        columns = max(segment.length for segment in distinct if segment is not None)
        index = [place[id(segment)] for segment in segments]

        def rows_of(packed: Tensor) -> tuple[Tensor, ...]:
            if index != list(range(len(distinct))):
                packed = packed.index_select(1, torch.tensor(index, device=packed.device))
            return packed.unbind(0)

        planes: dict[int, Tensor] = {}
        for number, group in enumerate(self.planes):
            size, heads, _, width = some.planes[number].shape
            packed = some.planes[number].new_zeros(size, len(distinct), heads, columns + room, width)
            for row, segment in enumerate(distinct):
                at = columns - segment.length if segment is not None else columns
                for part in segment.chain() if segment is not None else ():
                    stop = at + part.planes[number].shape[2]
                    packed[:, row, :, at:stop] = part.planes[number]
                    at = stop
            planes.update(zip(group, rows_of(packed), strict=True))
        states: dict[int, Tensor] = {}
        for number, group in enumerate(self.states):
            nothing = torch.zeros_like(some.states[number])
            packed = torch.stack([nothing if s is None else s.states[number] for s in distinct], dim=1)
            states.update(zip(group, rows_of(packed), strict=True))
        return KeyValues(
            tuple((planes[number], planes[number + 1]) for number in range(0, len(planes), 2)),
            tuple(0 if segment is None else segment.length for segment in segments),
            columns,
            tuple(states[number] for number in range(len(states))),
        )

    def states_of(self, segment: Segment) -> list[Tensor]:
        """The states of one sequence, in the order of the slots."""
        order = [slot for group in self.states for slot in group]
        states = [state for packed in segment.states for state in packed]
        return [states[order.index(slot)] for slot in range(len(order))]

    def scatter(
        self,
        batch: KeyValues,
        rows: Sequence[int],
        before: Sequence[Segment | None],
        past: int,
        lengths: Sequence[int],
    ) -> list[Segment]:
        """What some rows added to the sequences they continue: lengths[i] columns from column `past` on, copied."""
        flat = [plane for layer in batch.layers for plane in layer]
        segments = []
        for row in rows:
            parent, length = before[row], lengths[row]
            planes = tuple(
                torch.stack([flat[number][row, :, past : past + length] for number in group]) for group in self.planes
            )
            states = tuple(torch.stack([batch.states[number][row] for number in group]) for group in self.states)
            # A path needs its segments' keys and values, and the states of its last one alone.
            above = replace(parent, states=()) if parent is not None and planes else None
            segments.append(Segment(planes, above, length + (0 if parent is None else parent.length), states))
        return segments


def _groups(kinds: Iterable[object]) -> tuple[tuple[int, ...], ...]:
    """Numbers of the things of one kind."""
    groups: dict[object, list[int]] = {}
    for number, kind in enumerate(kinds):
        groups.setdefault(kind, []).append(number)
    return tuple(map(tuple, groups.values()))


def select(batch: KeyValues, rows: Sequence[int]) -> KeyValues:
    """Only these rows, without the columns that none of them needs."""
    lengths = tuple(batch.lengths[row] for row in rows)
    unused = batch.columns - max(lengths)

    def of(tensor: Tensor) -> Tensor:
        return tensor.index_select(0, torch.tensor(rows, device=tensor.device))

    layers = tuple((of(keys[:, :, unused:]), of(values[:, :, unused:])) for keys, values in batch.layers)
    return KeyValues(layers, lengths, max(lengths), tuple(map(of, batch.states)))


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
    states = tuple(torch.cat(pair) for pair in zip(first.states, second.states, strict=True))
    return KeyValues(layers, first.lengths + second.lengths, columns, states)
