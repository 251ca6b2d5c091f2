"""Which worked examples stand in front of a question.

Rows are split into a pool and evaluated rows by a hash of each row's own id, so the split depends on no other row,
on no limit and on no number of shots. Each (seed, draw) orders the pool once, again by hashes, and n shots are the
first n of that order: 4 shots are the 2 shots and two more, and every sample of a draw shares them.

A control may show answers that are not the right ones: what is still answered rightly was then not learned from them.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import zip_longest

from evalspec.data.rows import Row
from evalspec.errors import PromptError
from evalspec.retrieval.passages import Passage
from evalspec.spec.prompt import ShotsBlock


def unit_hash(*parts: object) -> float:
    """A number in [0, 1) that depends on nothing but its arguments, on any machine and in any process."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


def split_pool(rows: Sequence[Row], share: float) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """(pool, evaluated): a row is in the pool when the hash of its id falls below `share`."""
    pool = tuple(row for row in rows if unit_hash("pool", row.id) < share)
    inside = {row.id for row in pool}
    return pool, tuple(row for row in rows if row.id not in inside)


def _balanced(pool: Sequence[Row], label: Callable[[Row], str]) -> list[Row]:
    """Round robin over the labels, each in the pool's order, so that any first n are as even as n allows."""
    groups: dict[str, list[Row]] = {}
    for row in pool:
        groups.setdefault(label(row), []).append(row)
    return [row for turn in zip_longest(*groups.values()) for row in turn if row is not None]


def _hashed(pool: Sequence[Row], *key: object) -> list[Row]:
    return sorted(pool, key=lambda row: (unit_hash("shots", *key, row.id), row.id))


def order_pool(block: ShotsBlock, pool: Sequence[Row], draw: int, label: Callable[[Row], str]) -> list[Row]:
    """The pool in the order of one draw, for the samplers whose shots are the same for all samples."""
    if block.sampler == "first":
        return list(pool)
    ordered = _hashed(pool, block.seed, draw)
    return _balanced(ordered, label) if block.sampler == "balanced" else ordered


def choose_shots(
    block: ShotsBlock,
    pool: Sequence[Row],
    samples: Sequence[Row],
    *,
    draw: int,
    label: Callable[[Row], str],
    query: Callable[[Row], str],
) -> list[tuple[Row, ...]]:
    """The shots of each sample, in the order in which they stand in the prompt.

    `label` gives a row's label (for `balanced`), `query` the text by which `nearest` compares. A sample is never
    among its own shots: it is known by its id, and in data of the shots' own, which number themselves as they like, by
    what it holds. Raises PromptError when the pool is too small.
    """
    if block.n == 0:
        return [()] * len(samples)
    named = {id(row): row.id if block.data is None else _content(row) for row in (*pool, *samples)}
    in_pool = Counter(named[id(row)] for row in pool)
    available = len(pool) - max((in_pool[named[id(row)]] for row in samples), default=0)
    if available < block.n:
        raise PromptError(
            f"{block.n} shots are asked for but the pool has {available} rows; "
            "lower `n`, raise `pool`, give more rows, or name other rows under `shots.data`"
        )

    def without(sample: Row, ordered: Sequence[Row]) -> tuple[Row, ...]:
        name = named[id(sample)]
        others = [row for row in ordered if named[id(row)] != name] if in_pool[name] else ordered
        return tuple(others[: block.n])

    if block.sampler == "nearest":
        # The most similar one stands last, next to the question.
        nearest = _nearest(block, pool, samples, query)
        return [without(sample, ordered)[::-1] for sample, ordered in zip(samples, nearest, strict=True)]
    if block.per_sample:
        drawn = ([_hashed(pool, block.seed, draw, sample.id)] for sample in samples)
        return [
            without(sample, _balanced(ordered, label) if block.sampler == "balanced" else ordered)
            for sample, (ordered,) in zip(samples, drawn, strict=True)
        ]
    ordered = order_pool(block, pool, draw, label)
    return [without(sample, ordered) for sample in samples]


def _content(row: Row) -> str:
    return json.dumps(row.values, sort_keys=True)


def shown_answer(block: ShotsBlock, draw: int, shot: str, right: Sequence[str], others: Sequence[str]) -> str:
    """The answer that a shot shows: its right one, or what `labels` puts in its place.

    Args: `shot` is its row's id, `right` are its right answers, `others` all that could be shown: its choices, or the
    pool's targets. Depends on (seed, draw, shot id) and on `others` as a set. Raises PromptError where no other is.
    """
    if block.labels == "right":
        return next(iter(right), "")
    told = set(others) if block.labels == "random" else set(others) - set(right)
    if not told:
        raise PromptError(
            f"`labels: wrong` has no wrong answer for the shot {shot}: every answer in sight is a right one of it"
        )
    ordered = sorted(told)
    return ordered[int(unit_hash("labels", block.seed, draw, shot) * len(ordered))]


def _nearest(
    block: ShotsBlock, pool: Sequence[Row], samples: Sequence[Row], query: Callable[[Row], str]
) -> list[list[Row]]:
    from evalspec.retrieval import search

    found = search("bm25", [Passage(row.id, query(row)) for row in pool], [query(row) for row in samples], block.n + 1)
    rest = _hashed(pool, block.seed)
    ordered = []
    for hits in found:
        # Rows that share no word with the sample have no rank; they follow in the pool's hashed order.
        near = [pool[index] for index, _ in hits]
        ranked = {row.id for row in near}
        ordered.append(near + [row for row in rest if row.id not in ranked])
    return ordered
