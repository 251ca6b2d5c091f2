"""Passages for rows: checks what a retrieval block asks, builds the retriever once, and turns rankings into hits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from evalspec.errors import RetrievalError
from evalspec.retrieval.passages import RETRIEVERS, Hit, Passage, Query, Ranking, Retriever, Settings, settings_of
from evalspec.spec.blocks import RetrievalBlock


def retrieve(
    block: RetrievalBlock,
    passages: Sequence[Passage],
    queries: Sequence[str],
    gold: Sequence[Sequence[str]] | None,
    row_ids: Sequence[str],
    cache: Path | None,
) -> list[tuple[Hit, ...]]:
    """The hits of each row, best first: at most `block.k`, fewer where the corpus or the ranking ends.

    Args: queries, gold (ids of the passages that answer; None where the block has no `gold`) and row_ids are parallel ·
    cache is the folder that keeps embeddings (None: keep nothing). With the retriever `none` nothing else is looked at.
    Raises: RetrievalError for a missing or empty corpus, passage ids that repeat, gold ids that no passage has, an
    oracle without gold, a missing package; EvalspecError for an unknown retriever.
    """
    RETRIEVERS.get(block.retriever)
    if block.retriever == "none":
        return [() for _ in row_ids]
    places = _places(block, passages)
    if block.retriever == "oracle" and gold is None:
        raise RetrievalError("the retriever `oracle` puts the gold passages in; say with `gold:` which these are")
    golds = [() for _ in row_ids] if gold is None else _gold_places(gold, places, row_ids)
    asked = [Query(*each) for each in zip(queries, row_ids, golds, strict=True)]
    retriever = _built(block.retriever, tuple(passages), settings_of(block), cache)
    hits = []
    for query, ranking in zip(asked, retriever.search(asked, block.k), strict=True):
        relevant = None if gold is None else set(query.gold)
        hits.append(
            tuple(
                Hit(passages[index], rank, score, None if relevant is None else index in relevant)
                for rank, (index, score) in enumerate(ranking, start=1)
            )
        )
    return hits


def search(retriever: str, passages: Sequence[Passage], queries: Sequence[str], k: int) -> list[Ranking]:
    """Rankings of `passages` for texts, with a retriever's default settings: [(index, score), …] each."""
    return _built(retriever, tuple(passages), Settings(), None).search([Query(text) for text in queries], k)


@lru_cache(maxsize=4)
def _built(retriever: str, passages: tuple[Passage, ...], settings: Settings, cache: Path | None) -> Retriever:
    """One index for all cells that share a corpus; the last few are kept."""
    return RETRIEVERS.get(retriever)(passages, settings, cache)


def _places(block: RetrievalBlock, passages: Sequence[Passage]) -> dict[str, int]:
    if not passages:
        why = "say with `corpus:` where they are" if block.corpus is None else "its `corpus:` has no rows"
        raise RetrievalError(f"the retriever `{block.retriever}` needs passages; {why}")
    places = {passage.id: index for index, passage in enumerate(passages)}
    if len(places) < len(passages):
        twice = [name for name, times in Counter(passage.id for passage in passages).items() if times > 1]
        raise RetrievalError(f"{len(twice)} passage ids of the corpus stand on more than one passage: {_some(twice)}")
    return places


def _gold_places(
    gold: Sequence[Sequence[str]], places: dict[str, int], row_ids: Sequence[str]
) -> list[tuple[int, ...]]:
    missing = [(row, name) for row, names in zip(row_ids, gold, strict=True) for name in names if name not in places]
    if missing:
        distinct = list(dict.fromkeys(name for _, name in missing))
        raise RetrievalError(
            f"{len(distinct)} gold ids are in no passage of the corpus: {_some(distinct)} (row `{missing[0][0]}`, for "
            f"example). The corpus's ids look like {_some(list(places))}; name their column with `id:` in `corpus:`"
        )
    return [tuple(dict.fromkeys(places[name] for name in names)) for names in gold]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
