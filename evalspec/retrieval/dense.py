"""Dense retrieval: cosine of sentence embeddings, exact over the whole corpus.

Embeddings are kept on disk by the hash of their texts and their encoder, so a corpus is encoded once; then neither
torch nor the encoder is loaded. An encoder reads a limited number of tokens (all-MiniLM-L6-v2: 256) and skips the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evalspec.retrieval.embeddings import Embedder, embedder_of
from evalspec.retrieval.passages import RETRIEVERS, Passage, Query, Ranking, Settings
from evalspec.retrieval.ranking import best

BLOCK = 256  # queries at a time: a block of scores against 1,000,000 passages takes 1 GB
DECIMALS = 6  # float32 sums differ in the seventh with the shape of the matrix; equal texts must tie


class Dense:
    """An index of embeddings (n, d), rows of length one."""

    def __init__(self, texts: Sequence[str], embedder: Embedder) -> None:
        self._embedder = embedder
        self._passages = embedder.embed(texts)

    def search(self, queries: Sequence[Query], k: int) -> list[Ranking]:
        """See `Retriever`. Scores are cosines, rounded to six decimals."""
        if not queries:
            return []
        asked = self._embedder.embed([query.text for query in queries])
        rankings = []
        for start in range(0, len(asked), BLOCK):
            cosines = np.round(asked[start : start + BLOCK] @ self._passages.T, DECIMALS)
            rankings += [best(row, k) for row in cosines]
        return rankings


@RETRIEVERS.register("dense")
def build_dense(passages: Sequence[Passage], settings: Settings, cache: Path | None) -> Dense:
    """Embed the passages' texts, or read their embeddings from the cache."""
    return Dense([passage.text for passage in passages], embedder_of(settings.encoder, cache))
