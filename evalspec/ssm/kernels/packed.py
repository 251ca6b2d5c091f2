"""A pack's index arrays on a device: computed and copied once a pack, and then read by the kernels of every layer.

What is kept for a pack goes when the pack goes. All indices are int32; kernels widen them before they multiply. (Those
of `batches_on` index tensors in PyTorch, and are int64.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from evalspec.plan.pack import Ints, Pack

Made = TypeVar("Made")

_KEPT: WeakKeyDictionary[Pack, dict[tuple[object, ...], object]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Segments:
    """Segments in the order in which their programs should start: by level, the longest of a level first.

    levels               how many segments of each depth, roots first
    start, length (s,)   the tokens of each
    source        (s,)   the place among the pack's `ends` of the state that it continues; −1 − i: the given state i
    slot          (s,)   its own place among `ends`, −1 if its last state is not needed
    """

    levels: tuple[int, ...]
    start: Tensor
    length: Tensor
    source: Tensor
    slot: Tensor


@dataclass(frozen=True)
class Ports:
    """A pack in chunks, and the ports at which they hang together: the tokens behind which a state must be known.

    levels               how many runs of ports (see below) there are of each level
    start, stop   (c,)   the tokens of each chunk
    source        (c,)   the port that the chunk hangs from; −1 − i: the given state i
    reach         (t,)   as `Pack.reach`
    port_token    (r,)   ports: first the last tokens of the segments of `Pack.keep`, then other chunks' entries
    port_chunk    (r,)   the chunk each stands in
    chain_port    (r,)   ports in the order in which their states are found: runs in which each continues the one before
    chain_start, chain_stop (v,)   the runs, those of one level after those of the level that they continue
    """

    levels: tuple[int, ...]
    start: Tensor
    stop: Tensor
    source: Tensor
    reach: Tensor
    port_token: Tensor
    port_chunk: Tensor
    chain_port: Tensor
    chain_start: Tensor
    chain_stop: Tensor


@dataclass(frozen=True)
class Rows:
    """Segments of one depth and of like length as rows (r, l), for kernels that know rows of one length only.

    token (r, l)       the token at each place; behind a row's end its last one again
    real  (r, l)       whether the place is within the row
    source (r,)        the state that each row continues: the given ones are counted first, then the pack's `ends`
    ending, slot (k,)  rows whose last state is needed, and its place, counted likewise
    roots              whether they continue given states, and nothing that was computed here
    """

    token: Tensor
    real: Tensor
    source: Tensor
    ending: Tensor
    slot: Tensor
    roots: bool


@dataclass(frozen=True)
class Batches:
    """All segments of a pack in such rows, parents before children.

    order (t,)   where each token of the pack stands among all places, one batch's (r · l) behind the other's
    """

    rows: tuple[Rows, ...]
    order: Tensor


def segments_on(pack: Pack, device: torch.device) -> Segments:
    """The pack's segments for the kernels that walk along each."""

    def make() -> Segments:
        order = np.lexsort((-pack.length, pack.depth))
        source = np.where(pack.parent >= 0, pack.slot[pack.parent], pack.parent)
        arrays = (pack.start[order], pack.length[order], source[order], pack.slot[order])
        return Segments(tuple(len(level) for level in pack.levels), *_to(device, *arrays))

    return _kept(pack, ("segments", device), make)


def history_on(pack: Pack, width: int, device: torch.device) -> Tensor:
    """(t, width), as `Pack.history`."""
    return _kept(pack, ("history", width, device), lambda: _to(device, pack.history(width))[0])


def window_on(pack: Pack, width: int, device: torch.device) -> Tensor:
    """(k, width), as `Pack.window`."""
    return _kept(pack, ("window", width, device), lambda: _to(device, pack.window(width))[0])


def ports_on(pack: Pack, chunk: int, device: torch.device) -> Ports:
    """The pack in chunks of at most `chunk` tokens, for the kernels that compute a chunk at a time."""

    def make() -> Ports:
        chunks = pack.chunks(chunk)
        kept = pack.stop[pack.keep] - 1
        tokens = np.concatenate([kept, np.setdiff1d(chunks.entry[chunks.entry >= 0], kept)])
        number = np.full(pack.tokens, -1, np.int64)
        number[tokens] = np.arange(len(tokens))
        source = np.where(chunks.entry >= 0, number[chunks.entry], chunks.entry)
        chunk_of = np.searchsorted(chunks.start, tokens, side="right") - 1
        order, starts, stops, levels = _chains(source[chunk_of], tokens)
        arrays = (chunks.start, chunks.stop, source, pack.reach, tokens, chunk_of, order, starts, stops)
        return Ports(levels, *_to(device, *arrays))

    return _kept(pack, ("ports", chunk, device), make)


def batches_on(pack: Pack, most: int, device: torch.device) -> Batches:
    """The pack in batches of at most `most` rows; a row is at least half as long as its batch's longest."""

    def make() -> Batches:
        roots, arrays, first = [], [], 0
        order = np.empty(pack.tokens, np.int64)
        for segments in _alike(pack, most):
            length = pack.length[segments]
            place = np.arange(int(length.max()))
            real = place < length[:, None]
            token = pack.start[segments][:, None] + np.minimum(place, length[:, None] - 1)
            order[token[real]] = first + np.flatnonzero(real)
            above = pack.parent[segments]
            source = np.where(above >= 0, pack.given + pack.slot[above], -1 - above)
            ending = np.flatnonzero(pack.slot[segments] >= 0)
            arrays += [token, real, source, ending, pack.given + pack.slot[segments[ending]]]
            roots.append(bool(above[0] < 0))
            first += token.size
        *found, at = _to(device, *arrays, order, dtype=np.int64)
        parts = [found[5 * number : 5 * number + 5] for number in range(len(roots))]
        rows = (Rows(a, b.bool(), c, d, e, root) for (a, b, c, d, e), root in zip(parts, roots, strict=True))
        return Batches(tuple(rows), at)

    return _kept(pack, ("batches", most, device), make)


def _alike(pack: Pack, most: int) -> Iterator[Ints]:
    """Segments of one depth, long ones first, cut where a batch is full or a row would be mostly padding."""
    for level in pack.levels:
        level = level[np.argsort(-pack.length[level], kind="stable")]
        first = 0
        for at in range(len(level) + 1):
            if at == len(level) or at - first == most or 2 * pack.length[level[at]] < pack.length[level[first]]:
                yield level[first:at]
                first = at


def _chains(parent: Ints, token: Ints) -> tuple[Ints, Ints, Ints, tuple[int, ...]]:
    """Cut the forest of ports into runs, each continued by the child with the longest line below it.

    Args: parent (r,) the port that each continues, negative for none · token (r,) where each stands.
    Returns: the ports run by run, where each run starts and stops therein, and how many runs each level has; a run
        continues a port of an earlier level, or none.
    """
    upwards = np.argsort(-token, kind="stable").tolist()  # a child stands behind its parent
    parents, height, heir = parent.tolist(), [1] * len(parent), [-1] * len(parent)
    for port in upwards:
        above = parents[port]
        if above >= 0 and height[port] >= height[above]:
            height[above], heir[above] = height[port] + 1, port
    runs: list[list[list[int]]] = []
    level = [0] * len(parent)
    for port in reversed(upwards):
        above = parents[port]
        if above >= 0 and heir[above] == port:
            continue
        at = level[above] + 1 if above >= 0 else 0
        run = [port]
        while heir[run[-1]] >= 0:
            run.append(heir[run[-1]])
        for member in run:
            level[member] = at
        runs.extend([] for _ in range(at + 1 - len(runs)))
        runs[at].append(run)
    for same in runs:
        same.sort(key=len, reverse=True)
    sizes = np.asarray([len(run) for same in runs for run in same], np.int64)
    stops = np.cumsum(sizes)
    order = np.asarray([port for same in runs for run in same for port in run], np.int64)
    return order, stops - sizes, stops, tuple(len(same) for same in runs)


def _kept(pack: Pack, key: tuple[object, ...], make: Callable[[], Made]) -> Made:
    """What was made for this pack under this key, made now if it was not yet."""
    kept = _KEPT.setdefault(pack, {})
    if key not in kept:
        kept[key] = make()
    return cast(Made, kept[key])


def _to(device: torch.device, *arrays: Ints, dtype: type[np.signedinteger[Any]] = np.int32) -> list[Tensor]:
    """The arrays on the device, by one copy."""
    flat = torch.from_numpy(np.concatenate([array.ravel() for array in arrays]).astype(dtype)).to(device)
    stops = np.cumsum([array.size for array in arrays]).tolist()
    return [flat[stop - array.size : stop].view(array.shape) for array, stop in zip(arrays, stops, strict=True)]


def power_of_two(n: int) -> int:
    """The least power of two that holds n: Triton's blocks have such sizes."""
    return 1 << (n - 1).bit_length()
