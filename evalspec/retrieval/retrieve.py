"""Passages for rows: checks what a retrieval block asks, builds the retriever once, and turns rankings into hits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path

from evalspec.errors import RetrievalError
from evalspec.retrieval.oracle import shuffle, stream
from evalspec.retrieval.passages import RETRIEVERS, Hit, Passage, Query, Ranking, Retriever, Settings, settings_of
from evalspec.retrieval.rerank import reranker_of
from evalspec.spec.retrieval import RetrievalBlock


def retrieve(
    block: RetrievalBlock,
    passages: Sequence[Passage],
    queries: Sequence[str],
    gold: Sequence[Sequence[str]] | None,
    row_ids: Sequence[str],
    cache: Path | None,
    withheld: Sequence[Collection[str]] | None = None,
) -> list[tuple[Hit, ...]]:
    """The hits of each row, best first: at most `block.k`, fewer where the corpus or the ranking ends.

    Args: queries, gold (ids of the documents that answer; None where the block has no `gold`) and row_ids are parallel
    · cache is the folder that keeps embeddings (None: keep nothing) · withheld: for each row the ids of documents
    that are left out. With the retriever `none` nothing else is looked at.
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
    asked = [
        Query(text, row, own, frozenset(index for name in out for index in places.get(name, ())))
        for text, row, own, out in zip(queries, row_ids, golds, withheld or [()] * len(row_ids), strict=True)
    ]
    built = _built(block.retriever, tuple(passages), settings_of(block), cache)
    rankings = _rankings(block, built, passages, asked, cache)
    hits = []
    for query, ranking in zip(asked, rankings, strict=True):
        relevant = None if gold is None else set(query.gold)
        order = _order(block, query.row_id, len(ranking))
        hits.append(
            tuple(
                Hit(passages[index], rank, score, None if relevant is None else index in relevant, place)
                for rank, ((index, score), place) in enumerate(zip(ranking, order, strict=True), start=1)
            )
        )
    return hits


def _rankings(
    block: RetrievalBlock, retriever: Retriever, passages: Sequence[Passage], asked: Sequence[Query], cache: Path | None
) -> list[Ranking]:
    """What the retriever finds without what is withheld, ordered anew by the reranker, cut at k."""
    if block.retriever == "oracle":
        return retriever.search(asked, block.k)  # it knows of withheld gold, and of numbers of distractors
    depth = max(block.rerank.depth, block.k) if block.rerank else block.k
    spare = max((len(query.withheld) for query in asked), default=0)
    found = retriever.search(asked, depth + spare)
    kept = [
        [hit for hit in ranking if hit[0] not in query.withheld][:depth]
        for query, ranking in zip(asked, found, strict=True)
    ]
    if block.rerank:
        kept = reranker_of(block.rerank.model, cache).rerank(asked, passages, kept)
    return [ranking[: block.k] for ranking in kept]


def _order(block: RetrievalBlock, row_id: str, count: int) -> list[int]:
    """The place in the prompt of each rank, both from 1."""
    if block.order == "random":
        return [place + 1 for place in shuffle(count, stream("order", block.seed, row_id))]
    ranks = range(1, count + 1)
    return list(ranks) if block.order == "rank" else list(reversed(ranks))


def search(retriever: str, passages: Sequence[Passage], queries: Sequence[str], k: int) -> list[Ranking]:
    """Rankings of `passages` for texts, with a retriever's default settings: [(index, score), …] each."""
    return _built(retriever, tuple(passages), Settings(), None).search([Query(text) for text in queries], k)


@lru_cache(maxsize=4)
def _built(retriever: str, passages: tuple[Passage, ...], settings: Settings, cache: Path | None) -> Retriever:
    """One index for all cells that share a corpus; the last few are kept."""
    return RETRIEVERS.get(retriever)(passages, settings, cache)


def _places(block: RetrievalBlock, passages: Sequence[Passage]) -> dict[str, list[int]]:
    """Where the passages of each document are."""
    if not passages:
        why = "say with `corpus:` where they are" if block.corpus is None else "its `corpus:` has no rows"
        raise RetrievalError(f"the retriever `{block.retriever}` needs passages; {why}")
    places: dict[str, list[int]] = {}
    for index, passage in enumerate(passages):
        places.setdefault(passage.document, []).append(index)
    if len({passage.id for passage in passages}) < len(passages):
        twice = [name for name, times in Counter(passage.id for passage in passages).items() if times > 1]
        raise RetrievalError(f"{len(twice)} passage ids of the corpus stand on more than one passage: {_some(twice)}")
    return places


def _gold_places(
    gold: Sequence[Sequence[str]], places: dict[str, list[int]], row_ids: Sequence[str]
) -> list[tuple[int, ...]]:
    missing = [(row, name) for row, names in zip(row_ids, gold, strict=True) for name in names if name not in places]
    if missing:
        distinct = list(dict.fromkeys(name for _, name in missing))
        raise RetrievalError(
            f"{len(distinct)} gold ids are in no passage of the corpus: {_some(distinct)} (row `{missing[0][0]}`, for "
            f"example). The corpus's ids look like {_some(list(places))}; name their column with `id:` in `corpus:`"
        )
    return [tuple(dict.fromkeys(index for name in names for index in places[name])) for names in gold]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
