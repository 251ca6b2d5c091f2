"""The retrieval block: which passages a row's prompt is given."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from evalspec.spec.base import Block, Misfit, misfits
from evalspec.spec.data import DataBlock


class SameBlock(Block):
    """Distractors that have something in common with the gold passage."""

    same: str
    """Template over the columns of the corpus: distractors are passages for which it gives what it gives for a gold
    one, in random order; where these run out, random ones follow."""


class ChunkBlock(Block):
    """Documents cut into passages of at most so many words, characters or tokens: exactly one of the three."""

    words: int | None = Field(default=None, ge=1)
    """Most words (what stands between white space) in a passage."""
    characters: int | None = Field(default=None, ge=1)
    """Most characters in a passage; it may end within a word."""
    tokens: int | None = Field(default=None, ge=1)
    """Most tokens of `tokenizer` in a passage."""
    overlap: int = Field(default=0, ge=0)
    """How many of them two neighbours share."""
    tokenizer: str | None = None
    """What counts `tokens`: `zoo/NAME`, a directory or a hub id."""

    @property
    def size(self) -> int:
        """The number that was given, of whichever unit."""
        return self.words or self.characters or self.tokens or 0

    @model_validator(mode="after")
    def _one_unit(self) -> ChunkBlock:
        found: list[Misfit] = []
        given = [name for name in ("words", "characters", "tokens") if getattr(self, name) is not None]
        if len(given) != 1:
            named = " and ".join(f"`{name}`" for name in given) or "none"
            found.append(((), f"needs exactly one of `words`, `characters`, `tokens`; found {named}"))
        elif self.overlap >= self.size:
            found.append(
                (("overlap",), f"must be less than `{given[0]}: {self.size}`, or no passage would get further")
            )
        if given == ["tokens"] and self.tokenizer is None:
            found.append(((), "needs `tokenizer` to count tokens: a model's name or directory"))
        if given != ["tokens"] and self.tokenizer is not None:
            found.append((("tokenizer",), "belongs to `tokens`"))
        if found:
            raise misfits(found)
        return self


class RerankBlock(Block):
    """A cross-encoder reads query and passage together and orders anew what the retriever found (extra `dense`)."""

    model: str
    """A cross-encoder with one output, as sentence-transformers loads it: a directory or a hub id."""
    depth: int = Field(default=50, ge=1)
    """How many of the retriever's passages it reads, k at least."""


class RetrievalBlock(Block):
    """Which passages a row's prompt is given."""

    corpus: DataBlock | None = None
    """Where the passages are."""
    text: str = "{{ text }}"
    """Template of a passage's text."""
    query: str = "{{ question }}"
    """Template of the query."""
    gold: str | None = None
    """Template yielding the id, or the list of ids, of the passages that answer the question."""
    retriever: str = "bm25"
    """`none`, `oracle`, `bm25`, `dense`, `fusion`, or a plugin's."""
    k: int = Field(default=5, ge=1)
    """How many passages."""
    chunk: ChunkBlock | None = None
    """Cut the corpus's documents into passages, `doc#1`, `doc#2` …; `gold` then names documents, and a passage is
    relevant when its document is gold."""
    rerank: RerankBlock | None = None
    """Order anew what the retriever found."""
    order: Literal["rank", "reverse", "random"] = "rank"
    """Order of the passages in the prompt: best first, best last, or at random."""
    withhold_gold: bool = False
    """Leave each evaluated row's gold passages out of its ranking and its shots', so that nothing relevant is there.
    Shots keep what answers themselves."""
    distractors: Literal["near", "random"] | SameBlock = "near"
    """Oracle: the passages beside the gold are BM25's best wrong ones, random ones, or those that have something in
    common with it."""
    n_distractors: int | None = Field(default=None, ge=0)
    """Oracle: how many distractors, beside all gold passages; by default as many as make k passages."""
    gold_at: Literal["random", "first", "last"] | int = "random"
    """Oracle: where the gold passage stands; a number counts from 1."""
    encoder: str = "all-MiniLM-L6-v2"
    """Dense: a sentence-transformers model; the default needs no network (extra `dense`)."""
    of: list[str] = Field(default=["bm25", "dense"], min_length=1)
    """Fusion: the retrievers whose rankings are merged (reciprocal rank)."""
    rank_constant: int = Field(default=60, ge=1)
    """Fusion: the constant c in Σ 1 / (c + rank)."""
    stemmer: str = "english"
    """BM25: language of the Snowball stemmer and stop words, or `none`."""
    seed: int = 0
    """Seed of a random `order`, and of the oracle's places and random distractors."""

    @property
    def cut(self) -> int | None:
        """Where metrics of the ranking are cut: k, or None (its end) where a row's gold decides how long it is."""
        return None if self.n_distractors is not None and self.retriever == "oracle" else self.k

    @model_validator(mode="after")
    def _has_what_its_retriever_needs(self) -> RetrievalBlock:
        found: list[Misfit] = []
        if self.retriever != "none" and self.corpus is None:
            found.append(((), f"needs `corpus`: the retriever `{self.retriever}` has nowhere to look"))
        if self.retriever == "oracle" and self.gold is None:
            found.append(((), "needs `gold`: the retriever `oracle` gives each row its gold passages"))
        if isinstance(self.gold_at, int) and self.gold_at < 1:
            found.append((("gold_at",), "counts places from 1"))
        if self.withhold_gold and self.gold is None:
            found.append((("withhold_gold",), "needs `gold`: which passages to leave out"))
        if found:
            raise misfits(found)
        return self
