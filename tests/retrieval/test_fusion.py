"""Reciprocal rank fusion is Σ 1 / (c + rank) over the rankings it merges."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from evalspec.errors import RetrievalError
from evalspec.retrieval import RETRIEVERS, Passage, Query, Settings, retrieve
from evalspec.retrieval.fusion import Fusion
from evalspec.retrieval.passages import Ranking
from evalspec.spec.data import DataBlock
from evalspec.spec.retrieval import RetrievalBlock


class Backwards:
    """A retriever for these tests: the corpus from its end."""

    def __init__(self, size: int) -> None:
        self.size = size

    def search(self, queries: Sequence[Query], k: int) -> list[Ranking]:
        return [[(index, float(index)) for index in reversed(range(self.size))][:k] for _ in queries]


class Fixed:
    """Always the same ranking."""

    def __init__(self, ranking: list[int]) -> None:
        self.ranking = ranking

    def search(self, queries: Sequence[Query], k: int) -> list[Ranking]:
        return [[(index, 1.0) for index in self.ranking[:k]] for _ in queries]


@pytest.fixture
def plugin() -> Iterator[str]:
    """A retriever that a plugin would bring."""

    def build(passages: Sequence[Passage], settings: Settings, cache: Path | None) -> Backwards:
        return Backwards(len(passages))

    RETRIEVERS.register("test.backwards")(build)
    yield "test.backwards"
    del RETRIEVERS._entries["test.backwards"]


def test_scores_are_sums_of_reciprocal_ranks() -> None:
    (ranking,) = Fusion([Fixed([3, 1, 0]), Fixed([1, 4])], 5, constant=60).search([Query("x")], 3)
    assert ranking == [(1, 1 / 62 + 1 / 61), (3, 1 / 61), (4, 1 / 62)]


def test_ties_stand_in_the_order_of_the_corpus_and_the_unfound_stay_out() -> None:
    (ranking,) = Fusion([Fixed([2, 1]), Fixed([1, 2])], 5).search([Query("x")], 5)
    assert [index for index, _ in ranking] == [1, 2]


def test_a_passage_ranked_low_by_both_can_win() -> None:
    (ranking,) = Fusion([Fixed([0, *range(10, 29), 5]), Fixed([1, *range(30, 49), 5])], 50, 60).search([Query("x")], 1)
    assert ranking[0][0] == 5


def block(**more: object) -> RetrievalBlock:
    return RetrievalBlock(corpus=DataBlock(file="x.jsonl"), retriever="fusion", **more)  # type: ignore[arg-type]


def test_it_merges_the_retrievers_it_names_with_a_plugins(plugin: str) -> None:
    corpus = [Passage(str(n), text) for n, text in enumerate(["red boat", "blue cart", "red cart"])]
    (hits,) = retrieve(block(of=["bm25", plugin], rank_constant=1, k=2), corpus, ["boat"], None, ["r"], None)
    assert [(hit.passage.id, hit.score) for hit in hits] == [("0", 1 / 2 + 1 / 4), ("2", 1 / 2)]


@pytest.mark.parametrize("of", [["bm25"], ["bm25", "bm25"], ["bm25", "oracle"], ["bm25", "none"], ["bm25", "fusion"]])
def test_it_needs_two_rankings(of: list[str]) -> None:
    with pytest.raises(RetrievalError, match="fusion merges two or more retrievers"):
        retrieve(block(of=of), [Passage("0", "x")], ["x"], None, ["r"], None)
