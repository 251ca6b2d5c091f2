"""Sentence embeddings, kept on disk by the hash of their texts and of what encoded them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from evalspec.retrieval.kept import Numbers, read, write
from evalspec.retrieval.sentence_models import SentenceModel


class Embedder(SentenceModel):
    """One encoder and the folder of its embeddings. The encoder is loaded when there is something new to encode."""

    said = "the encoder"
    asked_by = "the retriever `dense`"
    instead = "Name a folder or a sentence-transformers model of the hub, or keep the default, which needs no network"

    def __init__(self, encoder: str, cache: Path | None) -> None:
        super().__init__(encoder, cache)
        self._known: dict[str, Numbers] = {}

    def _load(self, source: str) -> Any:
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(source)

    def embed(self, texts: Sequence[str]) -> Numbers:
        """Embeddings (len(texts), d) of length one. Equal texts get equal embeddings: each is encoded once."""
        distinct = list(dict.fromkeys(texts))
        at = {text: index for index, text in enumerate(distinct)}
        return self._of_distinct(distinct)[[at[text] for text in texts]]

    def _of_distinct(self, texts: list[str]) -> Numbers:
        key = hashlib.sha256(json.dumps([self._identity, texts]).encode()).hexdigest()
        if key in self._known:
            return self._known[key]
        path = self._cache / "embeddings" / f"{key}.npz" if self._cache else None
        embeddings = read(path, len(texts)) if path else None
        if embeddings is None:
            embeddings = self._encode(texts)
            if path:
                write(path, embeddings)
        self._known[key] = embeddings
        return embeddings

    def _encode(self, texts: list[str]) -> Numbers:
        found = self._model.encode(
            texts, batch_size=64, show_progress_bar=False, normalize_embeddings=True, convert_to_numpy=True
        )
        return np.asarray(found, dtype=np.float32)


@lru_cache(maxsize=1)
def embedder_of(encoder: str, cache: Path | None) -> Embedder:
    """One encoder for all cells that ask for it: it is loaded, and its files are hashed, once."""
    return Embedder(encoder, cache)
