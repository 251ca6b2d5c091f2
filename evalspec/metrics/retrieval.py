"""Metrics of a ranking of passages against the ones that answer, with binary relevance.

Absent, not 0, where nothing was retrieved (retriever `none`), where a row has no gold passage or it was withheld, and
where the metric's cut lies deeper than the retrieval went. A passage that stands twice in a ranking counts once, at its
better rank; so does a document of which several chunks were found, since chunks are judged by their documents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence, Set

from evalspec.metrics.outcome import Outcome, Score
from evalspec.metrics.registry import METRIC_FUNCTIONS, Metric
from evalspec.spec.needs import METRICS

RankingFunction = Callable[[Sequence[str], Set[str], int], float]


def of_ranking(function: RankingFunction) -> RankingFunction:
    """Enter a function of (hits, gold, k) as the metric of its own name."""

    def measure(outcome: Outcome, k: int | None) -> Score | None:
        depth = max(outcome.k or 0, len(outcome.hits))
        cut = k or outcome.k or len(outcome.hits)
        if not outcome.retrieved or not outcome.gold_ids or not 0 < cut <= depth:
            return None
        return Score(function(outcome.hits, outcome.gold_ids, cut))

    name = function.__name__
    METRIC_FUNCTIONS.register(name)(Metric(METRICS[name], measure, function.__doc__ or "", "unit"))
    return function


@of_ranking
def recall(hits: Sequence[str], gold: Set[str], k: int) -> float:
    """Share of the gold passages that stand among the first k.

    Equals `recall_k` of trec_eval: divided by all gold passages, even when they are more than k.
    """
    return len(gold & set(hits[:k])) / len(gold)


@of_ranking
def precision(hits: Sequence[str], gold: Set[str], k: int) -> float:
    """Share of the first k passages that are gold.

    Equals `P_k` of trec_eval: divided by k, even when fewer were found.
    """
    return len(gold & set(hits[:k])) / k


@of_ranking
def reciprocal_rank(hits: Sequence[str], gold: Set[str], k: int) -> float:
    """1 / rank of the first gold passage among the first k (the retrieval's k), 0.0 when there is none.

    Equals `recip_rank` of trec_eval on the ranking cut at k; its mean over samples is MRR@k.
    """
    return next((1 / rank for rank, hit in enumerate(hits[:k], start=1) if hit in gold), 0.0)


@of_ranking
def ndcg(hits: Sequence[str], gold: Set[str], k: int) -> float:
    """Discounted cumulative gain among the first k, Σ 1 / log2(rank + 1) over gold passages, over the best ranking's.

    Equals `ndcg_cut_k` of trec_eval with relevance 0 or 1: the best ranking has min(|gold|, k) gold passages in front.
    """
    ranks: dict[str, int] = {}
    for rank, hit in enumerate(hits[:k], start=1):
        if hit in gold:
            ranks.setdefault(hit, rank)
    # Both sums run from rank 1 on, so that a perfect ranking is exactly 1.0.
    return sum(map(_discount, ranks.values())) / sum(_discount(rank) for rank in range(1, min(len(gold), k) + 1))


def _discount(rank: int) -> float:
    return 1 / math.log2(rank + 1)
