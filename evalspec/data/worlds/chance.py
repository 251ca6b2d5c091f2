"""Draws that give the same result in every version of Python.

Only `random.Random.random()` is promised to stay the same for a seed; `choice`, `sample` and `shuffle` are not. So
everything here is made of `random()`, and a seed means the same world everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")


def stream(*names: str | int) -> Random:
    """A generator of its own for each tuple of names: the same names, the same draws."""
    return Random("/".join(str(name) for name in names))


def below(rng: Random, n: int) -> int:
    """An integer of 0 … n − 1, each equally likely."""
    return int(rng.random() * n)


def between(rng: Random, low: int, high: int) -> int:
    """An integer of low … high, both included."""
    return low + int(rng.random() * (high - low + 1))


def pick(rng: Random, items: Sequence[T]) -> T:
    """One of the items."""
    return items[int(rng.random() * len(items))]


def shuffled(rng: Random, items: Sequence[T], count: int | None = None) -> list[T]:
    """`count` of the items (all, if None) in random order, none twice: the first steps of a Fisher–Yates shuffle."""
    pool = list(items)
    size = len(pool)
    steps = size if count is None else min(count, size)
    random = rng.random
    for i in range(steps):
        j = i + int(random() * (size - i))
        pool[i], pool[j] = pool[j], pool[i]
    return pool[:steps]
