"""Batches that fit: items of like length together, within tokens and bytes, halved where memory runs out."""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from evalspec.errors import RunError

T = TypeVar("T")


@dataclass(frozen=True)
class Load:
    """What one item asks of a batch: tokens to feed, what it reads before them, and bytes that it takes by itself."""

    tokens: int
    past: int
    bytes: int


def batches_of(loads: Sequence[Load], *, most_tokens: int, most_bytes: int) -> list[list[int]]:
    """Indices of the items in batches of like length, padded tokens and bytes within the budget (or one item)."""
    order = sorted(range(len(loads)), key=lambda i: (-loads[i].tokens, -loads[i].past, i))
    batches: list[list[int]] = []
    taken = 0
    for index in order:
        load = loads[index]
        longest = loads[batches[-1][0]].tokens if batches else 0
        fits = batches and (len(batches[-1]) + 1) * longest <= most_tokens and taken + load.bytes <= most_bytes
        if fits:
            batches[-1].append(index)
            taken += load.bytes
        else:
            batches.append([index])
            taken = load.bytes
    return batches


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def release_memory() -> None:
    """Give back what an aborted batch held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def run_halving(
    batches: Sequence[list[int]], run: Callable[[list[int]], T], on_halving: Callable[[], None]
) -> Iterator[tuple[list[int], T]]:
    """Run each batch; one that does not fit in memory runs again as two halves. RunError if one item does not fit."""
    waiting = deque(batches)
    while waiting:
        batch = waiting.popleft()
        try:
            result = run(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(batch) == 1:
                raise RunError(f"one sequence alone does not fit in memory: {error}") from error
        else:
            yield batch, result
            continue
        # Out of the except clause, so that its traceback no longer holds the batch's tensors.
        release_memory()
        on_halving()
        middle = (len(batch) + 1) // 2
        waiting.extendleft([batch[middle:], batch[:middle]])
