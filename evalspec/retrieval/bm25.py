"""BM25 with a Snowball stemmer and stop words (Lucene's variant, k1 = 1.5, b = 0.75, computed by bm25s).

    score(q, d) = Σ_t∈q  ln(1 + (N − df_t + ½) / (df_t + ½)) · tf / (tf + k1 (1 − b + b |d| / avg|d|))

bm25s is arXiv 2407.03618. A passage that shares no term with the query is not found: a ranking may be shorter than k.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from evalspec.errors import RetrievalError, suggest
from evalspec.retrieval.passages import RETRIEVERS, Passage, Query, Ranking, Settings
from evalspec.retrieval.ranking import best

WORD = re.compile(r"\w\w+")  # words of two signs and more, as scikit-learn's and bm25s's default
Terms = Callable[[str], list[str]]

# Languages by Snowball's names whose stop words bm25s has; the others are stemmed only.
STOP_WORDS = {
    name: f"STOPWORDS_{name.upper()}"
    for name in "danish dutch french german italian norwegian portuguese russian spanish swedish turkish".split()
} | {"english": "STOPWORDS_EN"}


class BM25:
    """A BM25 index of some texts."""

    def __init__(self, texts: Sequence[str], stemmer: str = "english") -> None:
        bm25s = _bm25s()
        self._terms = terms_of(stemmer)
        vocabulary: dict[str, int] = {}
        ids = [[vocabulary.setdefault(term, len(vocabulary)) for term in self._terms(text)] for text in texts]
        self._vocabulary = vocabulary
        self._index = bm25s.BM25()
        if vocabulary:
            self._index.index((ids, vocabulary), create_empty_token=False, show_progress=False)

    def search(self, queries: Sequence[Query], k: int) -> list[Ranking]:
        """See `Retriever`. Terms are summed in the query's order, so that scores are the same in each process."""
        rankings: list[Ranking] = []
        for query in queries:
            ids = [self._vocabulary[term] for term in self._terms(query.text) if term in self._vocabulary]
            if not ids:
                rankings.append([])
                continue
            found = best(np.asarray(self._index.get_scores_from_ids(ids)), k)
            rankings.append([(index, score) for index, score in found if score > 0])
        return rankings


def _bm25s(module: str = "") -> Any:
    """The package bm25s, or a module of it, without jax: where jax is installed, bm25s computes with it on importing,
    and it would take three quarters of the memory of each GPU for itself."""
    hidden = "jax" not in sys.modules
    if hidden:
        sys.modules["jax"] = None  # type: ignore[assignment]  # what importing takes for "not installed"
    try:
        return importlib.import_module(f"bm25s.{module}" if module else "bm25s")
    finally:
        if hidden:
            del sys.modules["jax"]


def terms_of(language: str) -> Terms:
    """A function from text to terms: lower case, stop words left out, stemmed. `none` keeps all words as they are."""
    if language == "none":
        return lambda text: WORD.findall(text.lower())
    import Stemmer

    stopwords = _bm25s("stopwords")

    known = [*Stemmer.algorithms(), "none"]
    if language not in known:
        raise RetrievalError(f"there is no stemmer `{language}`.{suggest(language, known)} Known: {', '.join(known)}")
    stop = frozenset(getattr(stopwords, STOP_WORDS[language]) if language in STOP_WORDS else ())
    stem = Stemmer.Stemmer(language).stemWord
    stems: dict[str, str] = {}

    def terms(text: str) -> list[str]:
        words = [word for word in WORD.findall(text.lower()) if word not in stop]
        for word in words:
            if word not in stems:
                stems[word] = stem(word)
        return [stems[word] for word in words]

    return terms


@RETRIEVERS.register("bm25")
def build_bm25(passages: Sequence[Passage], settings: Settings, cache: Path | None) -> BM25:
    """Index the passages' texts. Nothing is kept on disk: building takes less time than reading the corpus."""
    return bm25_of(tuple(passage.text for passage in passages), settings.stemmer)


@lru_cache(maxsize=2)
def bm25_of(texts: tuple[str, ...], stemmer: str) -> BM25:
    """One index for all that search the same texts: BM25 itself, fusion, and the oracle's near distractors."""
    return BM25(texts, stemmer)
