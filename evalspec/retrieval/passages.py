"""The words of retrieval: passages, queries, hits, and the one protocol of all retrievers.

Plugins join through the entry-point group `evalspec.retrievers`, each a `Build`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from evalspec.registry import Plugin, Registry
from evalspec.spec.retrieval import RetrievalBlock, SameBlock


@dataclass(frozen=True)
class Passage:
    """One document of a corpus, or one chunk of it, its text as prompts show it."""

    id: str
    text: str
    document: str = ""
    """Id of the document that it is cut from; its own where documents stay whole."""
    kind: str = ""
    """What distractors may have in common with it (`distractors: {same: …}`)."""

    def __post_init__(self) -> None:
        if not self.document:
            object.__setattr__(self, "document", self.id)


@dataclass(frozen=True)
class Query:
    """What is looked for. `gold` are indices of the passages that answer it; only the oracle looks at them.

    `withheld` are indices of passages that are not to be found.
    """

    text: str
    row_id: str = ""
    gold: tuple[int, ...] = ()
    withheld: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Hit:
    """A passage that was found. `relevant` is None where no gold is known."""

    passage: Passage
    rank: int
    """Its place in the ranking, from 1."""
    score: float
    relevant: bool | None
    place: int
    """Its place in the prompt, from 1."""


Ranking = list[tuple[int, float]]
"""Indices of passages with their scores, best first, each passage once."""


@dataclass(frozen=True)
class Settings:
    """What a retriever is built with: those fields of a retrieval block that an index may depend on."""

    stemmer: str = "english"
    encoder: str = "all-MiniLM-L6-v2"
    of: tuple[str, ...] = ("bm25", "dense")
    rank_constant: int = 60
    distractors: Literal["near", "random", "same"] = "near"
    n_distractors: int | None = None
    gold_at: Literal["random", "first", "last"] | int = "random"
    seed: int = 0


def settings_of(block: RetrievalBlock) -> Settings:
    """The settings of a block. Neither k nor the corpus is among them: k = 1, 3, 5 share one index."""
    return Settings(
        stemmer=block.stemmer,
        encoder=block.encoder,
        of=tuple(block.of),
        rank_constant=block.rank_constant,
        distractors="same" if isinstance(block.distractors, SameBlock) else block.distractors,
        n_distractors=block.n_distractors,
        gold_at=block.gold_at,
        seed=block.seed,
    )


class Retriever(Protocol):
    """An index over the passages it was built from."""

    def search(self, queries: Sequence[Query], k: int) -> list[Ranking]:
        """The best k passages of each query, fewer where fewer can be found. The same call gives the same answer."""
        ...


Build = Callable[[Sequence[Passage], Settings, Path | None], Retriever]
"""Makes a retriever from passages, settings, and a folder for what is worth keeping (None: keep nothing)."""


@dataclass(frozen=True)
class _Adopted:
    """A plugin's index, whose rankings are looked at before they are used."""

    plugin: Plugin
    theirs: Retriever
    passages: int

    def search(self, queries: Sequence[Query], k: int) -> list[Ranking]:
        with self.plugin.running():
            found = [
                [(int(index), float(score)) for index, score in ranking] for ranking in self.theirs.search(queries, k)
            ]
        if len(found) != len(queries):
            raise self.plugin.error(f"`search` gave {len(found)} rankings for {len(queries)} queries")
        for ranking in found:
            places = [index for index, _ in ranking]
            beyond = next((index for index in places if not 0 <= index < self.passages), None)
            if beyond is not None:
                raise self.plugin.error(f"`search` found passage {beyond} of {self.passages}, which count from 0")
            if len(set(places)) < len(places):
                raise self.plugin.error("`search` found a passage twice for one query")
        return [ranking[:k] for ranking in found]


def _adopted(build: Build, plugin: Plugin) -> Build:
    """A plugin's retriever."""
    theirs = plugin.guarded(build)

    def built(passages: Sequence[Passage], settings: Settings, cache: Path | None) -> Retriever:
        index = theirs(passages, settings, cache)
        if not callable(getattr(index, "search", None)):
            raise plugin.error(f"built a {type(index).__name__}, which has no `search(queries, k)`")
        return _Adopted(plugin, index, len(passages))

    return built


RETRIEVERS: Registry[Build] = Registry("retriever", "evalspec.retrievers", _adopted)
