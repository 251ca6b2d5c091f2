"""The oracle: the gold passages, and distractors up to k. What a perfect retriever would leave to the model.

Everything drawn depends on (seed, row id) alone: more rows, another order or a smaller k change nothing for a row, and
the distractors at a small k are the first ones of those at a large k.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from evalspec.errors import RetrievalError
from evalspec.retrieval.bm25 import bm25_of
from evalspec.retrieval.passages import RETRIEVERS, Passage, Query, Ranking, Settings


class Oracle:
    """Gold passages score 1, distractors 0.

    Distractors are BM25's best wrong passages, those that have their `kind` in common with a gold one, or random ones;
    where the first two run out, random ones follow.
    """

    def __init__(self, passages: Sequence[Passage], settings: Settings) -> None:
        self._size, self._settings = len(passages), settings
        self._kinds = [passage.kind for passage in passages]
        self._of_kind: dict[str, list[int]] = {}
        for index, kind in enumerate(self._kinds):
            self._of_kind.setdefault(kind, []).append(index)
        self._chunked = any(passage.document != passage.id for passage in passages)
        near = settings.distractors == "near" or self._chunked
        self._bm25 = bm25_of(tuple(passage.text for passage in passages), settings.stemmer) if near else None

    def search(self, queries: Sequence[Query], k: int) -> list[Ranking]:
        """See `Retriever`. All gold passages up to k, or all of them and `n_distractors`; of a chunked document's more
        chunks than k, BM25's best. A query without gold, or whose gold is withheld, gets distractors alone.
        """
        count, place = self._settings.n_distractors, self._settings.gold_at
        if isinstance(place, int) and place > (k if count is None else count + 1):
            among = f"k = {k} passages" if count is None else f"a gold passage and {count} distractors"
            raise RetrievalError(f"`gold_at: {place}` is no place among {among}; places count from 1")
        near: list[Ranking] = [[] for _ in queries]
        if self._bm25 is not None:
            most = max((len({*query.gold, *query.withheld}) for query in queries), default=0)
            near = self._bm25.search(queries, self._size if self._chunked else (k if count is None else count) + most)
        return [self._one(query, [index for index, _ in found], k) for query, found in zip(queries, near, strict=True)]

    def _one(self, query: Query, near: Sequence[int], k: int) -> Ranking:
        gold = [index for index in dict.fromkeys(query.gold) if index not in query.withheld]
        count = self._settings.n_distractors
        if count is None:
            if self._chunked and len(gold) > k:
                known = set(gold)
                gold = sorted(list(dict.fromkeys([*(index for index in near if index in known), *gold]))[:k])
            gold = gold[:k]
            count = k - len(gold)
        distractors = self._distractors(query, near, min(count, self._size))
        order = self._arranged(query, gold, distractors)
        return [(index, 1.0 if index in query.gold else 0.0) for index in order]

    def _distractors(self, query: Query, near: Sequence[int], count: int) -> list[int]:
        """`count` wrong passages, the first ones those of a smaller count."""
        taken = {*query.gold, *query.withheld}
        if self._settings.distractors == "near":
            first = [index for index in near if index not in taken]
        elif self._settings.distractors == "same":
            kinds = dict.fromkeys(self._kinds[index] for index in query.gold)
            alike = [index for kind in kinds for index in self._of_kind[kind] if index not in taken]
            rng = stream("alike", self._settings.seed, query.row_id)
            first = [alike[at] for at in islice(shuffle(len(alike), rng), max(count, 0))]
        else:
            first = []
        first = first[: max(count, 0)]
        return first + self._random(query, count - len(first), {*taken, *first})

    def _random(self, query: Query, wanted: int, taken: set[int]) -> list[int]:
        if wanted <= 0:
            return []
        shuffled = shuffle(self._size, stream("distractors", self._settings.seed, query.row_id))
        return list(islice((index for index in shuffled if index not in taken), wanted))

    def _arranged(self, query: Query, gold: list[int], distractors: list[int]) -> list[int]:
        """Gold passages in their own order, at random places or side by side from `gold_at` on."""
        total, place = len(gold) + len(distractors), self._settings.gold_at
        if place == "random":
            rng = stream("places", self._settings.seed, query.row_id)
            places = sorted(islice(shuffle(total, rng), len(gold)))
        else:
            last = total - len(gold)
            start = {"first": 0, "last": last}.get(place, 0) if isinstance(place, str) else min(place - 1, last)
            places = list(range(start, start + len(gold)))
        golds, others = iter(gold), iter(distractors)
        return [next(golds) if at in places else next(others) for at in range(total)]


def stream(purpose: str, seed: int, row_id: str) -> random.Random:
    """Random numbers of a row for one purpose. Only `.random()` is used: Python promises it never changes."""
    digest = hashlib.sha256(f"{purpose}\0{seed}\0{row_id}".encode()).digest()
    return random.Random(int.from_bytes(digest[:16]))


def shuffle(size: int, rng: random.Random) -> Iterator[int]:
    """0 … size − 1 in random order (Fisher and Yates), drawn only as far as it is read."""
    moved: dict[int, int] = {}
    for at in range(size):
        other = at + int(rng.random() * (size - at))
        yield moved.get(other, other)
        moved[other] = moved.get(at, at)


@RETRIEVERS.register("oracle")
def build_oracle(passages: Sequence[Passage], settings: Settings, cache: Path | None) -> Oracle:
    """An oracle over the passages; BM25 over them too where distractors are `near`."""
    return Oracle(passages, settings)
