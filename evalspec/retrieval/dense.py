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

BLOCK = 64  # queries at a time: their scores against 1,000,000 passages take 256 MB
DECIMALS = 6  # float32 sums differ in the seventh with the number of threads and the shape of the matrix


class Dense:
    """An index of the distinct texts' embeddings (n, d), rows of length one: passages of the same text tie exactly."""

    def __init__(self, texts: Sequence[str], embedder: Embedder) -> None:
        self._embedder = embedder
        distinct = {text: index for index, text in enumerate(dict.fromkeys(texts))}
        self._distinct = embedder.embed(list(distinct))
        self._passages = np.asarray([distinct[text] for text in texts])  # each passage's row among them

    def search(self, queries: Sequence[Query], k: int) -> list[Ranking]:
        """See `Retriever`. Scores are cosines, rounded to six decimals."""
        if not queries:
            return []
        asked = self._embedder.embed([query.text for query in queries])
        rankings = []
        for start in range(0, len(asked), BLOCK):
            cosines = np.round(asked[start : start + BLOCK] @ self._distinct.T, DECIMALS)
            rankings += [best(row[self._passages], k) for row in cosines]
        return rankings


@RETRIEVERS.register("dense")
def build_dense(passages: Sequence[Passage], settings: Settings, cache: Path | None) -> Dense:
    """Embed the passages' texts, or read their embeddings from the cache."""
    return Dense([passage.text for passage in passages], embedder_of(settings.encoder, cache))
