"""Reranking: a cross-encoder reads each query with each passage that a retriever found, and orders them anew.

Its scores are the raw output (a logit; a sigmoid would round the best ones to the same 1), kept on disk by the hash of
the pairs and of the model's files. Like any encoder it reads a limited number of tokens and skips the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from evalspec.errors import RetrievalError
from evalspec.retrieval.kept import Numbers, kept
from evalspec.retrieval.passages import Passage, Query, Ranking
from evalspec.retrieval.sentence_models import SentenceModel

DECIMALS = 4  # of logits: float32 sums differ in the sixth with the number of threads and with what is batched together


class Reranker(SentenceModel):
    """One cross-encoder. It is loaded when there is a pair that it has not read yet."""

    said = "the reranker"
    asked_by = "`rerank`"
    instead = "Name a folder or a cross-encoder of the hub"

    def _load(self, source: str) -> Any:
        from sentence_transformers import CrossEncoder

        return CrossEncoder(source)

    def rerank(
        self, queries: Sequence[Query], passages: Sequence[Passage], rankings: Sequence[Ranking]
    ) -> list[Ranking]:
        """Each ranking by the cross-encoder's scores, best first; of equal ones the retriever's better stays first."""
        pairs = [
            (query.text, passages[index].text)
            for query, ranking in zip(queries, rankings, strict=True)
            for index, _ in ranking
        ]
        scores = iter(self.scores(pairs).tolist())
        scored = [[(index, next(scores)) for index, _ in ranking] for ranking in rankings]
        return [sorted(ranking, key=lambda hit: -hit[1]) for ranking in scored]

    def scores(self, pairs: Sequence[tuple[str, str]]) -> Numbers:
        """Logits (len(pairs),) of (query, passage). Equal pairs get equal scores: each is read once.

        Raises RetrievalError for a model that cannot be loaded or does not give one number a pair.
        """
        if not pairs:
            return np.zeros(0, dtype=np.float32)
        distinct = sorted(set(pairs))
        at = {pair: index for index, pair in enumerate(distinct)}
        folder = self._cache / "rerankings" if self._cache else None
        numbers = kept(distinct, self._identity, folder, self._read_pairs, f"{self.said} has read pairs")
        return numbers[[at[pair] for pair in pairs], 0]

    def _read_pairs(self, pairs: Sequence[tuple[str, str]]) -> Numbers:
        import torch

        found = np.asarray(
            self._model.predict(pairs, batch_size=32, show_progress_bar=False, activation_fn=torch.nn.Identity())
        )
        if found.ndim != 1:
            raise RetrievalError(
                f"the reranker `{self._name}` gives {found.shape[-1]} numbers for a pair, not one: it is a classifier, "
                "not a cross-encoder for ranking"
            )
        if not np.isfinite(found).all():
            raise RetrievalError(
                f"the reranker `{self._name}` gives scores that are no numbers; its weights are broken"
            )
        return np.asarray(np.round(found, DECIMALS), dtype=np.float32)[:, None]


@lru_cache(maxsize=1)
def reranker_of(model: str, cache: Path | None) -> Reranker:
    """One reranker for all cells that ask for it: it is loaded, and its files are hashed, once."""
    return Reranker(model, cache)
