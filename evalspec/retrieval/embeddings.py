"""Sentence embeddings, kept on disk by the hash of their texts and of what encoded them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from evalspec.retrieval.kept import Numbers, kept
from evalspec.retrieval.sentence_models import SentenceModel


class Embedder(SentenceModel):
    """One encoder and the folder of its embeddings. The encoder is loaded when there is something new to encode."""

    said = "the encoder"
    asked_by = "the retriever `dense`"
    instead = "Name a folder or a sentence-transformers model of the hub, or keep the default, which needs no network"

    def __init__(self, encoder: str, cache: Path | None) -> None:
        super().__init__(encoder, cache)
        self._known: dict[tuple[str, ...], Numbers] = {}

    def _load(self, source: str) -> Any:
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(source)

    def embed(self, texts: Sequence[str]) -> Numbers:
        """Embeddings (len(texts), d) of length one. Equal texts get equal embeddings: each is encoded once."""
        distinct = list(dict.fromkeys(texts))
        at = {text: index for index, text in enumerate(distinct)}
        return self._of_distinct(distinct)[[at[text] for text in texts]]

    def _of_distinct(self, texts: list[str]) -> Numbers:
        key = tuple(texts)
        if key not in self._known:
            folder = self._cache / "embeddings" if self._cache else None
            self._known[key] = kept(texts, self._identity, folder, self._encode, f"{self.said} has read texts")
        return self._known[key]

    def _encode(self, texts: Sequence[str]) -> Numbers:
        found = self._model.encode(
            list(texts), batch_size=64, show_progress_bar=False, normalize_embeddings=True, convert_to_numpy=True
        )
        return np.asarray(found, dtype=np.float32)


@lru_cache(maxsize=1)
def embedder_of(encoder: str, cache: Path | None) -> Embedder:
    """One encoder for all cells that ask for it: it is loaded, and its files are hashed, once."""
    return Embedder(encoder, cache)
