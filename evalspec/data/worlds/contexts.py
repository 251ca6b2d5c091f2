"""Long contexts and what is asked of them: how long one is, and which of its items a row asks for.

Several rows may share one context and ask for different items. The items do not depend on the depth that is asked
for, so prompts that differ in nothing but their depth begin alike and are computed once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random
from typing import Any

from evalspec.data.worlds.chance import shuffled
from evalspec.errors import DataError

PIECE = re.compile(r"[A-Za-z]+|[0-9]|[^\sA-Za-z0-9]|\n")


def pieces(text: str) -> int:
    """Length of a text in words, digits, marks and line breaks: its tokens in the zoo, fewer than a BPE's elsewhere."""
    return len(PIECE.findall(text))


def listed(passages: Sequence[str]) -> int:
    """Length of passages in a list: each with the bullet before it and the line break behind it."""
    return sum(pieces(passage) + 2 for passage in passages)


def places(rng: Random, n: int, queries: int, depth: float | None) -> list[int]:
    """The `queries` places of 0 … n − 1 that rows ask for, in their order.

    With a depth (0 is the first item, 1 the last) the nearest ones to it; without one, a random place in each of
    `queries` equal parts of the context, the parts in random order. The same number of draws is made either way.
    """
    order = shuffled(rng, range(queries)) if queries > 1 else [0]
    strata = [int((part + rng.random()) * n / queries) for part in order]
    if depth is None:
        return strata
    wanted = depth * (n - 1)
    return sorted(sorted(range(n), key=lambda at: (abs(at - wanted), at))[:queries])


def depth_of(at: int, n: int) -> float:
    """Where place `at` of `n` stands, from 0 (first) to 1 (last); the only one of its context is the last."""
    return at / (n - 1) if n > 1 else 1.0


def check_depth(generator: str, depth: object) -> None:
    """DataError unless `depth` is None or a number of 0 … 1."""
    if depth is None:
        return
    if isinstance(depth, bool) or not isinstance(depth, int | float) or not 0 <= depth <= 1:
        raise DataError(f"`{generator}` has a `depth` from 0 (first) to 1 (last), not {depth!r}")


def check_count(generator: str, option: str, value: object, low: int, high: int | None = None) -> None:
    """DataError unless `value` is a whole number of low … high."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        bounds = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise DataError(f"`{generator}` needs `{option}` as a whole number {bounds}, not {value!r}")


def sizes_of(generator: str, option: str, value: int | Sequence[int], high: int) -> Sequence[int]:
    """The sizes that rows take in turn, each of 1 … `high`. DataError for any other, and for none at all."""
    sizes: list[Any] = list(value) if isinstance(value, list | tuple) and value else [value]
    for size in sizes:
        check_count(generator, option, size, 1, high)
    return sizes
