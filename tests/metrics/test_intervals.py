"""Aggregates against scipy and textbook formulas, in any row order, with intervals that cover what they say."""

from __future__ import annotations

import math
import random
import time

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from evalspec.metrics import METRIC_FUNCTIONS, Aggregate, Metric, Score, aggregate

exact_match = METRIC_FUNCTIONS.get("exact_match")
token_f1 = METRIC_FUNCTIONS.get("token_f1")
perplexity = METRIC_FUNCTIONS.get("perplexity")


def of(metric: Metric, values: object, clusters: list[str] | None = None) -> Aggregate:
    scores = [Score(float(value)) for value in values]  # type: ignore[attr-defined]
    return aggregate(metric, scores, [f"s{i}" for i in range(len(scores))], clusters)


def interval(result: Aggregate) -> tuple[float, float]:
    assert result.ci_low is not None and result.ci_high is not None
    return result.ci_low, result.ci_high


@pytest.mark.parametrize(("right", "n"), [(0, 1), (1, 1), (0, 20), (7, 20), (20, 20), (30, 100), (1, 4000)])
def test_a_proportion_has_the_mid_p_interval_with_exact_ends_beside_nothing_and_all(right: int, n: int) -> None:
    result = of(exact_match, [1] * right + [0] * (n - right))
    low, high = interval(result)
    assert result.value == right / n and result.n == n

    def half_of_what_was_seen(p: float) -> float:
        binomial = scipy.stats.binom(n, p)
        return float(binomial.sf(right) + binomial.pmf(right) / 2)

    exact = scipy.stats.binomtest(right, n).proportion_ci(0.95, "exact")
    if n - right <= 1:
        assert low == pytest.approx(exact.low)
    else:
        assert low == 0 if right == 0 else half_of_what_was_seen(low) == pytest.approx(0.025, abs=1e-9)
    if right <= 1:
        assert high == pytest.approx(exact.high)
    else:
        assert high == 1 if right == n else half_of_what_was_seen(high) == pytest.approx(0.975, abs=1e-9)
    assert exact.low <= low + 1e-12 and high <= exact.high + 1e-12


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=40))
def test_value_and_standard_error_are_those_of_scipy(values: list[float]) -> None:
    result = of(token_f1, values)
    assert result.value == pytest.approx(np.mean(values))
    assert result.stderr == pytest.approx(scipy.stats.sem(values), abs=1e-12)
    assert interval(result)[0] <= (result.value or 0) + 1e-12 and interval(result)[1] >= (result.value or 0) - 1e-12


def test_the_bootstrap_agrees_with_that_of_scipy() -> None:
    values = np.random.default_rng(0).beta(2, 5, 300)
    theirs = scipy.stats.bootstrap((values,), np.mean, n_resamples=9999, method="BCa", rng=0).confidence_interval
    assert interval(of(token_f1, values)) == pytest.approx((theirs.low, theirs.high), abs=0.002)


def test_the_closed_form_for_many_units_continues_the_bootstrap() -> None:
    values = np.random.default_rng(0).beta(2, 5, 2001)
    closed, resampled = interval(of(token_f1, values)), interval(of(token_f1, values[:2000]))
    assert closed == pytest.approx(resampled, abs=4e-4)


def test_nothing_is_null_and_one_has_no_spread() -> None:
    for metric in (exact_match, token_f1, perplexity):
        assert aggregate(metric, [], [], None) == Aggregate(None, None, None, None, 0)
    assert of(token_f1, [0.4]) == Aggregate(0.4, None, None, None, 1)
    single = aggregate(perplexity, [Score(2.0, 2.0)], ["s"])
    assert single == Aggregate(pytest.approx(math.e), None, None, None, 1)
    assert of(exact_match, [1]).stderr is None


def test_a_single_cluster_says_nothing_of_the_spread_between_clusters() -> None:
    assert of(exact_match, [1, 0, 1], ["d", "d", "d"]) == Aggregate(pytest.approx(2 / 3), None, None, None, 3)


def test_a_share_of_everything_or_nothing_still_has_an_interval() -> None:
    assert interval(of(token_f1, [1.0] * 10))[0] == pytest.approx(0.025 ** (1 / 10))  # p¹⁰ is 2.5 %
    clustered = interval(of(exact_match, [0] * 12, list("aabbccddeeff")))
    assert clustered[0] == 0.0 and 0.4 < clustered[1] < 0.6  # as of six, not of twelve


def test_equal_scores_between_nothing_and_all_leave_doubt_as_nothing_and_all_do() -> None:
    unseen = interval(of(exact_match, [0] * 20))[1]
    assert interval(of(token_f1, [0.5] * 20)) == pytest.approx((0.5 - unseen / 2, 0.5 + unseen / 2))
    few = 1 - 0.025 ** (1 / 3)
    assert interval(of(token_f1, [1 / 3] * 3)) == pytest.approx(((1 - few) / 3, (1 - few) / 3 + few))
    # All of twenty at 0.5 is what happens 2.5 times out of 100 where so large a share has another score.
    assert (1 - unseen) ** 20 == pytest.approx(0.025)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 9), st.integers(1, 9), st.sampled_from("abcd")), max_size=30), st.randoms())
def test_the_order_of_rows_changes_not_a_bit(rows: list[tuple[float, int, str]], order: random.Random) -> None:
    def answers(rows: list[tuple[float, int, str]]) -> list[Aggregate]:
        scores = [Score(value, float(weight)) for value, weight, _ in rows]
        samples = [f"{label}{value}" for value, _, label in rows]
        labels = [label for *_, label in rows]
        return [aggregate(m, scores, samples, c) for m in (token_f1, perplexity) for c in (None, labels)]

    shuffled = list(rows)
    order.shuffle(shuffled)
    assert answers(rows) == answers(shuffled)


def test_clustered_errors_are_the_cluster_robust_ones() -> None:
    # residuals by hand: mean 0.5; clusters a (1, 1, 1), b (0, 0), c (0): 1.5, −1, −0.5
    result = of(exact_match, [1, 1, 1, 0, 0, 0], list("aaabbc"))
    assert result.stderr == pytest.approx(math.sqrt(3 / 2 * (1.5**2 + 1 + 0.5**2)) / 6)


def test_equal_answers_everywhere_count_once_a_cluster() -> None:
    clusters = [f"c{number % 8}" for number in range(72)]
    every, plain = of(exact_match, [1] * 72, clusters), of(exact_match, [1] * 8)
    assert interval(every) == pytest.approx(interval(plain)), "eight questions, each answered nine times alike"


def test_clusters_of_one_change_nothing() -> None:
    values = [0.1, 0.5, 0.9, 1.0, 0.0]
    assert of(token_f1, values, list("abcde")) == of(token_f1, values)
    assert of(exact_match, [1, 0, 1, 1], list("abcd")) == of(exact_match, [1, 0, 1, 1])


def test_repeats_of_a_sample_count_as_one_piece_of_evidence() -> None:
    once = [1, 0, 1, 1, 0, 1, 0, 0]
    names = [f"s{i}" for i in range(8)]
    repeated = aggregate(exact_match, [Score(float(v)) for v in once * 5], names * 5)
    single = of(exact_match, once)
    assert repeated.value == single.value and repeated.n == 40
    assert repeated.stderr == pytest.approx(single.stderr)
    assert interval(repeated)[1] - interval(repeated)[0] > interval(single)[1] - interval(single)[0] - 0.02


def test_perplexitys_error_follows_from_the_delta_method() -> None:
    rng = np.random.default_rng(3)
    tokens = rng.integers(5, 50, 400)
    losses = tokens * rng.normal(2.0, 0.3, 400)
    scores = [Score(float(a), float(b)) for a, b in zip(losses, tokens, strict=True)]
    result = aggregate(perplexity, scores, [str(i) for i in range(400)])
    picks = rng.integers(400, size=(4000, 400))
    resampled = np.exp(losses[picks].sum(1) / tokens[picks].sum(1))
    assert result.stderr == pytest.approx(resampled.std(), rel=0.1)
    assert interval(result) == pytest.approx(tuple(np.quantile(resampled, (0.025, 0.975))), rel=0.01)


def test_a_perplexity_s_interval_ends_at_one() -> None:
    nats = [Score(value, 1.0) for value in (0.1, 0.2, 0.1, 0.3, 0.2, 40.0)]
    result = aggregate(perplexity, nats, [str(i) for i in range(6)])
    assert result.ci_low == 1.0
    assert result.value is not None
    assert result.ci_high is not None
    assert 1.0 < result.value < result.ci_high


def test_an_impossible_target_makes_an_infinite_perplexity_without_error_or_interval() -> None:
    scores = [Score(math.inf, 3.0), Score(1.0, 1.0)]
    assert aggregate(perplexity, scores, ["a", "b"]) == Aggregate(math.inf, None, None, None, 2)


def test_what_does_not_fit_together_is_refused() -> None:
    with pytest.raises(ValueError, match="as many"):
        aggregate(token_f1, [Score(1.0)], [])
    with pytest.raises(ValueError, match="weight above 0"):
        aggregate(perplexity, [Score(1.0)], ["a"])


def coverage(metric: Metric, draw: object, truth: float, trials: int, clusters: list[str] | None = None) -> float:
    held = 0
    for _ in range(trials):
        low, high = interval(of(metric, draw(), clusters))  # type: ignore[operator]
        held += low <= truth <= high
    return held / trials


@pytest.mark.parametrize("n", [15, 100])
def test_the_bootstrap_covers_95_percent_of_skewed_means(n: int) -> None:
    rng = np.random.default_rng(12)
    assert 0.92 <= coverage(token_f1, lambda: rng.beta(1, 3, n), 0.25, 1000) <= 0.975


def test_clustered_intervals_cover_where_plain_ones_do_not() -> None:
    rng = np.random.default_rng(13)
    labels = [f"d{i}" for i in range(40) for _ in range(5)]

    def binary() -> object:
        shared = np.repeat(rng.random(40) < 0.8, 5)
        return np.where(rng.random(200) < 0.7, shared, rng.random(200) < 0.8)

    def graded() -> object:
        return np.clip(np.repeat(rng.beta(2, 2, 40), 5) + rng.uniform(-0.05, 0.05, 200), 0, 1)

    assert 0.925 <= coverage(exact_match, binary, 0.8, 600, labels) <= 0.98
    assert coverage(exact_match, binary, 0.8, 600) < 0.85
    assert 0.925 <= coverage(token_f1, graded, 0.5, 600, labels) <= 0.98


def test_fifty_cells_of_six_metrics_and_one_of_a_hundred_thousand_samples_are_quick() -> None:
    rng = np.random.default_rng(14)
    names = [f"s{i}" for i in range(100_000)]
    cells = [[Score(float(v), 3.0) for v in rng.random(200)] for _ in range(50)]
    large = [Score(float(v)) for v in rng.random(100_000)]
    start = time.process_time()
    for cell in cells:
        for metric in (token_f1, token_f1, token_f1, perplexity, perplexity, exact_match):
            aggregate(metric, cell, names[:200])
    middle = time.process_time()
    aggregate(token_f1, large, names)
    assert middle - start < 3 and time.process_time() - middle < 3  # 0.4 s and 0.1 s on one quiet core
