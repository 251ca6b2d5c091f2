"""Retrieval metrics against worked examples, scikit-learn's nDCG, and the definitions of trec_eval."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalspec.metrics import METRIC_FUNCTIONS, Outcome, Score
from evalspec.metrics.retrieval import ndcg, precision, recall, reciprocal_rank

passages = [f"p{i}" for i in range(12)]
rankings = st.permutations(passages)
golds = st.sets(st.sampled_from([*passages, "unfound"]), min_size=1, max_size=5)


def test_a_ranking_worked_by_hand() -> None:
    hits, gold = ["x", "g1", "y", "g2", "z"], {"g1", "g2", "g3"}
    assert recall(hits, gold, 5) == pytest.approx(2 / 3)
    assert recall(hits, gold, 1) == 0.0
    assert precision(hits, gold, 4) == pytest.approx(2 / 4)
    assert reciprocal_rank(hits, gold, 5) == pytest.approx(1 / 2)
    dcg = 1 / math.log2(3) + 1 / math.log2(5)
    ideal = 1 / math.log2(2) + 1 / math.log2(3) + 1 / math.log2(4)
    assert ndcg(hits, gold, 5) == pytest.approx(dcg / ideal)
    assert ndcg(hits, gold, 2) == pytest.approx((1 / math.log2(3)) / (1 / math.log2(2) + 1 / math.log2(3)))


@settings(deadline=None)
@given(rankings, st.sets(st.sampled_from(passages), min_size=1, max_size=5), st.integers(1, 12))
def test_ndcg_equals_that_of_scikit_learn(hits: list[str], gold: set[str], k: int) -> None:
    sklearn_metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn comes with the extra `dense`")
    relevance = np.array([[float(hit in gold) for hit in hits]])
    falling = -np.arange(len(hits), dtype=float)[None]
    assert ndcg(hits, gold, k) == pytest.approx(sklearn_metrics.ndcg_score(relevance, falling, k=k))


@given(rankings, golds, st.integers(1, 12))
def test_metrics_stay_in_bounds_and_agree_with_each_other(hits: list[str], gold: set[str], k: int) -> None:
    values = [function(hits, gold, k) for function in (recall, precision, reciprocal_rank, ndcg)]
    assert all(0.0 <= value <= 1.0 for value in values)
    assert len({value == 0.0 for value in values}) == 1  # one gold passage among the first k moves all four
    assert values[0] * len(gold) == pytest.approx(values[1] * k)
    if k < 12:
        assert recall(hits, gold, k) <= recall(hits, gold, k + 1)


@given(rankings, golds, st.integers(1, 11), st.randoms())
def test_what_stands_behind_the_cut_changes_nothing(hits: list[str], gold: set[str], k: int, random: object) -> None:
    tail = hits[k:]
    random.shuffle(tail)  # type: ignore[attr-defined]
    for function in (recall, precision, reciprocal_rank, ndcg):
        assert function(hits[:k] + tail, gold, k) == function(hits, gold, k)


def test_a_passage_that_stands_twice_counts_once() -> None:
    hits, gold = ["g", "g", "x"], {"g"}
    assert [f(hits, gold, 3) for f in (recall, precision, ndcg)] == [1.0, pytest.approx(1 / 3), 1.0]


def test_precision_divides_by_k_even_when_fewer_were_found() -> None:
    outcome = Outcome(hits=("g",), gold_ids=frozenset({"g"}), k=5, retrieved=True)
    assert METRIC_FUNCTIONS.get("precision").score(outcome) == Score(0.2)


def test_metrics_are_cut_at_the_retrievals_k_unless_the_spec_fixes_it() -> None:
    outcome = Outcome(hits=("x", "g", "y"), gold_ids=frozenset({"g"}), k=3, retrieved=True)
    metric = METRIC_FUNCTIONS.get("recall")
    assert (metric.score(outcome), metric.score(outcome, 1)) == (Score(1.0), Score(0.0))


@pytest.mark.parametrize("name", ["recall", "precision", "reciprocal_rank", "ndcg"])
def test_absent_is_not_zero(name: str) -> None:
    metric = METRIC_FUNCTIONS.get(name)
    gold = frozenset({"g"})
    assert metric.score(Outcome(gold_ids=gold, retrieved=False)) is None
    assert metric.score(Outcome(hits=("x",), k=1, retrieved=True)) is None
    assert metric.score(Outcome(hits=("x",), gold_ids=gold, k=1, retrieved=True), 3) is None
    assert metric.score(Outcome(gold_ids=gold, k=3, retrieved=True)) == Score(0.0)
