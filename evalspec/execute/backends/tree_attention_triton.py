"""Attention over a pack in one launch, in Triton for CUDA and ROCm: forward only.

Each column (of the path before, or of the pack) is seen by an interval of rows. With columns c and rows r:

    o_r = Σ_c p_rc v_c / Σ_c p_rc        p_rc = exp(softcap(scale · q_r · k_c))        low_c ≤ r < high_c

and, with a window, position_r − position_c < window. A program takes a tile of rows and one head over the tiles of
columns that any of its rows sees. Which these are is found once a pack (`tiles_of`), and read by every layer.

A column of the past may be seen by several runs of rows: branches of one state that stand apart. Intervals of the past
then come in several *rounds*, (rounds, s); where a column has no further run, its interval is empty.

Glossary: H heads · t rows, the pack's tokens · s columns of the past · D head size
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evalspec.execute.backends.tree_layout import Layout, Rectangle, Scoring
from evalspec.plan.pack import Ints

LOG2_E = 1.4426950408889634


@cache
def _kernels() -> Any:
    """Triton is imported here and not above: the CPU build of torch comes without it."""
    import evalspec.execute.backends.tree_attention_triton_kernels as kernels

    return kernels


@dataclass(frozen=True)
class Shape:
    """How a launch is cut: rows and columns of a tile, warps of a program, loads in flight."""

    rows: int
    columns: int
    warps: int
    stages: int


def shape_for(size: int, dtype: torch.dtype, amd: bool, plain: bool) -> Shape:
    """Tiles that fit into registers and 64 KiB of local memory, for heads of this size; plain: no window, no cap."""
    wide, large = dtype == torch.float32, size > 128
    if amd:
        if wide:
            return Shape(32 if large else 64, 16, 4, 1)
        return Shape(64 if large else 128, 32 if plain and not large else 16, 8, 1)
    if wide:  # no matrix units: each thread holds whole rows of both factors
        return Shape(16 if large else 32, 16, 8, 1)
    if large:
        return Shape(64, 32, 8, 1)
    return Shape(128, 64, 8, 2 if size <= 80 else 1)


def parts_of(size: int) -> tuple[int, int]:
    """A head's size as a power of two and a rest of 16 or 0: 80 = 64 + 16; 96 is taken as 128.

    No other rest: 32 + 16, 64 + 32 and 128 + 32 came out wrong on an H200, where the code that triton 3.6 made read
    shared memory out of bounds; 64 + 16 and 128 + 16 are right.
    """
    main = max(16, 1 << (size.bit_length() - 1))
    if size <= main:
        return main, 0
    return (main, 16) if main >= 64 and size - main <= 16 else (2 * main, 0)


@dataclass(frozen=True)
class Tiles:
    """Which tiles of columns each tile of rows sees, on the device (int32).

    tile (n, 6)       the row tiles, those with most to do first: its number, and where in `item` its tiles of columns
                      lie: past seen by all its rows, other past, own seen by all, other own, and the end
    item (i, 2)       a column tile: its first column, and that one's place in `seen`
    seen (2, places)  low and high of each column: the past's rounds, then the pack's tokens; with a window (3, places),
                      for the columns' positions
    """

    tile: Tensor
    item: Tensor
    seen: Tensor


def tiles_of(layout: Layout, rows: int, columns: int, window: int | None) -> Tiles:
    """The pack's tiles, made once for all layers."""
    key = ("tiles", rows, columns, window)
    if key not in layout.kept:
        layout.kept[key] = _tiles(layout, rows, columns, window)
    found = layout.kept[key]
    assert isinstance(found, Tiles)
    return found


def _tiles(layout: Layout, rows: int, columns: int, window: int | None) -> Tiles:
    tokens, before = len(layout.reach), len(layout.past_position)
    past_low, past_high = intervals(layout.rectangles, before)
    rounds = len(past_low)
    position = past_position = None
    if window is not None:
        position, past_position = (both.cpu().numpy() for both in (layout.position, layout.past_position))
    parts = [(past_low[n], past_high[n], past_position, n * before) for n in range(rounds)]
    parts.append((np.arange(tokens), layout.reach, position, rounds * before))
    tiles = -(-tokens // rows)
    first_row = np.arange(tiles) * rows
    last_row = np.minimum(first_row + rows, tokens) - 1
    row_near = row_far = None
    if position is not None:
        row_near, row_far = (_over(position, rows, lead) for lead in (np.minimum, np.maximum))
    seen: list[NDArray[np.bool_]] = []
    whole: list[NDArray[np.bool_]] = []
    column: list[Ints] = []
    place: list[Ints] = []
    for low, high, its_position, offset in parts:
        first = np.arange(-(-len(low) // columns)) * columns
        nobody = low >= high
        some_low = _over(np.where(nobody, tokens, low), columns, np.minimum)
        some_high = _over(high, columns, np.maximum)
        all_low = _over(np.where(nobody, tokens, low), columns, np.maximum)
        all_high = _over(np.where(nobody, 0, high), columns, np.minimum)
        any_row = (some_low <= last_row[:, None]) & (some_high > first_row[:, None])
        all_rows = (all_low <= first_row[:, None]) & (all_high > last_row[:, None]) & (first + columns <= len(low))
        if window is not None:
            assert its_position is not None
            assert row_near is not None
            assert row_far is not None
            any_row &= row_near[:, None] - _over(its_position, columns, np.maximum) < window
            all_rows &= row_far[:, None] - _over(its_position, columns, np.minimum) < window
        seen.append(any_row)
        whole.append(any_row & all_rows)
        column.append(first)
        place.append(first + offset)
    # Kinds of items: 0 past and whole, 1 past, 2 own and whole, 3 own. An item's kind sorts it within its row tile.
    own = np.repeat([False] * rounds + [True], [len(first) for first in column])
    seen_, whole_ = np.concatenate(seen, axis=1), np.concatenate(whole, axis=1)
    order = np.argsort(-seen_.sum(1), kind="stable")
    row_tile, item = np.nonzero(seen_[order])
    kind = 2 * own[item] + ~whole_[order[row_tile], item]
    sort = np.argsort(4 * row_tile + kind, kind="stable")
    counts = np.bincount(4 * row_tile + kind, minlength=4 * tiles)
    stops = np.concatenate([[0], np.cumsum(counts)])
    bounds = stops[4 * np.arange(tiles)[:, None] + np.arange(5)]
    item = item[sort]
    rowwise = [[*past_low, np.arange(tokens)], [*past_high, layout.reach]]
    if position is not None and past_position is not None:
        rowwise.append([past_position] * rounds + [position])
    arrays = [
        np.concatenate([order[:, None], bounds], axis=1),
        np.stack([np.concatenate(column)[item], np.concatenate(place)[item]], axis=1),
        np.stack([np.concatenate(row) for row in rowwise]),
    ]
    return Tiles(*_to(layout.position.device, arrays))


def intervals(rectangles: Sequence[Rectangle], before: int) -> tuple[Ints, Ints]:
    """The rows that see each column of the past: low, high (rounds, s). Runs of rows that touch are one."""
    theirs = sorted((found for found in rectangles if not found.own), key=lambda found: found.rows)
    cuts = np.unique([0, before, *(cut for found in theirs for cut in found.columns)])
    runs: list[list[tuple[int, int]]] = [[] for _ in cuts[1:]]
    for found in theirs:
        first, last = np.searchsorted(cuts, found.columns).tolist()
        for run in runs[first:last]:
            if run and run[-1][1] >= found.rows[0]:
                run[-1] = (run[-1][0], max(run[-1][1], found.rows[1]))
            else:
                run.append(found.rows)
    low, high = np.zeros((2, max(map(len, runs), default=0), before), np.int64)
    for run, begin, end in zip(runs, cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
        for number, (start, stop) in enumerate(run):
            low[number, begin:end], high[number, begin:end] = start, stop
    return low, high


def _over(values: Ints, size: int, lead: np.ufunc) -> Ints:
    """The least or largest of each `size` values, the last ones maybe fewer."""
    found: Ints = lead.reduceat(values, np.arange(0, len(values), size)) if len(values) else values
    return found


def _to(device: torch.device, arrays: Sequence[Ints]) -> list[Tensor]:
    """The arrays as int32 on the device, by one copy; each begins at 16 bytes, or Triton would compile once more."""
    rooms = [-(-array.size // 4) * 4 for array in arrays]
    flat = np.concatenate([np.resize(array, room) for array, room in zip(arrays, rooms, strict=True)])
    there = torch.from_numpy(flat.astype(np.int32)).to(device)
    stops = np.cumsum(rooms).tolist()
    parts = zip(arrays, rooms, stops, strict=True)
    return [there[stop - room :][: array.size].view(array.shape) for array, room, stop in parts]


def tree_attention_triton(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    past: tuple[Tensor, Tensor] | None,
    layout: Layout,
    scoring: Scoring,
    *,
    shape: Shape | None = None,
) -> Tensor:
    """The attention of a pack's tokens.

    Args: query (H, t, D) · keys, values (H_kv, t, D) of the pack · past, keys and values (H_kv, s, D) of the columns
        before it. Heads and tokens may lie apart, a token's values in a head are copied together if they do not.
    Returns: (H, t, D) in query's dtype; in memory tokens come first.
    """
    heads, tokens, size = query.shape
    value_size = values.shape[-1]
    if past is not None and not past[0].shape[1]:
        past = None
    query, keys, values = (_together(tensor) for tensor in (query, keys, values))
    past_keys, past_values = (None, None) if past is None else (_together(past[0]), _together(past[1]))
    plain = scoring.window is None and scoring.softcap is None
    shape = shape or shape_for(max(size, value_size), query.dtype, torch.version.hip is not None, plain)
    tiles = tiles_of(layout, shape.rows, shape.columns, scoring.window)
    output = query.new_empty(tokens, heads, value_size).transpose(0, 1)
    sinks = None if scoring.sinks is None else scoring.sinks.contiguous()
    cap = None if scoring.softcap is None else float(scoring.softcap)
    # Triton's interpreter knows no products of bfloat16.
    wide = query.dtype == torch.float32 or not query.is_cuda
    with torch.cuda.device(query.device):
        _kernels().tree_kernel[(len(tiles.tile) * heads,)](
            query, keys, values, past_keys, past_values, sinks, output,
            tiles.seen, tiles.item, tiles.tile, tiles.seen.shape[1],
            heads, heads // keys.shape[0], tokens, 0 if past_keys is None else past_keys.shape[1],
            scoring.scale * (LOG2_E if cap is None else 1.0), cap, scoring.window,
            *query.stride()[:2], *keys.stride()[:2], *values.stride()[:2],
            *((0, 0) if past_keys is None else past_keys.stride()[:2]),
            *((0, 0) if past_values is None else past_values.stride()[:2]), *output.stride()[:2],
            size, *parts_of(size), value_size, *parts_of(value_size), shape.rows, shape.columns, wide,
            num_warps=shape.warps, num_stages=shape.stages,
        )  # fmt: skip
    return output


def _together(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
