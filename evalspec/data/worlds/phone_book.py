"""A phone book: full names, none twice, each with a number or a town, and the entry of one name to look up.

First and last names repeat across entries, so an entry is found only by both (the task of arXiv 2402.01032, section 4).
"""

from __future__ import annotations

from random import Random
from typing import Any

from evalspec.data.generators import GENERATORS
from evalspec.data.worlds import lexicon
from evalspec.data.worlds.chance import below, pick, shuffled, stream
from evalspec.data.worlds.contexts import check_count, check_depth, depth_of, pieces, places

DEFAULT_COUNT = 200
NAMES = len(lexicon.FIRST_NAMES) * len(lexicon.LAST_NAMES)


def _numbers(rng: Random, n: int, digits: int) -> list[str]:
    if digits:
        return ["".join(str(below(rng, 10)) for _ in range(digits)) for _ in range(n)]
    return [pick(rng, lexicon.TOWNS) for _ in range(n)]


@GENERATORS.register("world.phone_book")
def phone_book(
    seed: int,
    count: int | None = None,
    *,
    n: int = 20,
    digits: int = 4,
    queries: int = 1,
    depth: float | None = None,
) -> list[dict[str, Any]]:
    """Books of `n` entries, `queries` rows to a book, each asking for another entry.

    Columns: id, entries (list of {name, number}), name, answer, n, depth, length, context (the book's id). `digits` 0
    gives towns in place of numbers: an address book. A longer book begins as a shorter one. DataError unless
    n ≤ 1,600 names and queries ≤ n.
    """
    check_count("world.phone_book", "n", n, 1, NAMES)
    check_count("world.phone_book", "digits", digits, 0, 12)
    check_count("world.phone_book", "queries", queries, 1, n)
    check_depth("world.phone_book", depth)
    rows: list[dict[str, Any]] = []
    for number in range(DEFAULT_COUNT if count is None else count):
        book, turn = divmod(number, queries)
        if turn == 0:
            rng = stream("phone_book", seed, book)
            wide = len(lexicon.LAST_NAMES)
            names = [
                f"{lexicon.FIRST_NAMES[at // wide]} {lexicon.LAST_NAMES[at % wide]}"
                for at in shuffled(rng, range(NAMES), n)
            ]
            numbers = _numbers(stream("phone_book numbers", seed, book), n, digits)
            entries = [{"name": name, "number": told} for name, told in zip(names, numbers, strict=True)]
            asked = places(rng, n, queries, depth)
            length = pieces("\n".join(f"{entry['name']}: {entry['number']}" for entry in entries))
        at = asked[turn]
        rows.append(
            {
                "id": f"b{seed}-{number:04d}",
                "entries": entries,
                "name": names[at],
                "answer": numbers[at],
                "n": n,
                "depth": depth_of(at, n),
                "length": length,
                "context": f"b{seed}-{book:04d}",
            }
        )
    return rows
