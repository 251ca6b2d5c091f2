"""Reciprocal rank fusion: several retrievers' rankings merged by Σ 1 / (c + rank) (Cormack, Clarke, Büttcher 2009)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evalspec.errors import RetrievalError
from evalspec.retrieval.passages import RETRIEVERS, Passage, Query, Ranking, Retriever, Settings
from evalspec.retrieval.ranking import best

DEPTH = 100  # how deep each ranking is read: a passage that one retriever ranks 50th can still win


class Fusion:
    """Merges the rankings of `retrievers` over a corpus of `size` passages."""

    def __init__(self, retrievers: Sequence[Retriever], size: int, constant: int = 60) -> None:
        self._retrievers, self._size, self._constant = retrievers, size, constant

    def search(self, queries: Sequence[Query], k: int) -> list[Ranking]:
        """See `Retriever`. Passages that no retriever found are not found."""
        sums = [np.zeros(self._size) for _ in queries]
        for retriever in self._retrievers:
            for scores, ranking in zip(sums, retriever.search(queries, max(k, DEPTH)), strict=True):
                for rank, (index, _) in enumerate(ranking, start=1):
                    scores[index] += 1 / (self._constant + rank)
        return [[(index, score) for index, score in best(scores, k) if score > 0] for scores in sums]


@RETRIEVERS.register("fusion")
def build_fusion(passages: Sequence[Passage], settings: Settings, cache: Path | None) -> Fusion:
    """Build each retriever of `of`. RetrievalError where `of` holds what has no ranking of its own."""
    wrong = [name for name in settings.of if name in ("none", "oracle", "fusion")]
    if wrong or len(set(settings.of)) < 2:
        found = f"`{wrong[0]}` has no ranking to merge" if wrong else "`of` names fewer than two"
        raise RetrievalError(f"fusion merges two or more retrievers such as [bm25, dense]; {found}")
    built = [RETRIEVERS.get(name)(passages, settings, cache) for name in dict.fromkeys(settings.of)]
    return Fusion(built, len(passages), settings.rank_constant)
