"""Paired comparisons against statsmodels, scipy and closed forms, in any row order."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from evalspec.metrics import METRIC_FUNCTIONS, Score
from evalspec.metrics.paired import Paired, Scores, bonett_price, compare, detectable_share
from evalspec.metrics.significance import holm, mcnemar, permutation
from evalspec.metrics.verdicts import Verdict, judge

exact_match = METRIC_FUNCTIONS.get("exact_match")
token_f1 = METRIC_FUNCTIONS.get("token_f1")
perplexity = METRIC_FUNCTIONS.get("perplexity")
accuracy = METRIC_FUNCTIONS.get("accuracy")


def side(values: object, names: list[str] | None = None, clusters: list[str] | None = None) -> Scores:
    listed = [Score(float(value)) for value in values]  # type: ignore[attr-defined]
    return Scores(listed, names or [f"s{at}" for at in range(len(listed))], clusters)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_that_of_statsmodels(first: int, second: int) -> None:
    contingency = pytest.importorskip("statsmodels.stats.contingency_tables")
    theirs = contingency.mcnemar([[10, first], [second, 10]], exact=True).pvalue
    assert mcnemar(first, second) == pytest.approx(theirs, abs=1e-12)


def test_mcnemar_is_the_binomial_test_also_beyond_what_a_float_holds() -> None:
    assert mcnemar(600, 900) == pytest.approx(scipy.stats.binomtest(600, 1500).pvalue)
    assert mcnemar(0, 0) == 1.0


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_is_that_of_statsmodels(p_values: list[float]) -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    assert holm(p_values) == pytest.approx(list(multitest.multipletests(p_values, method="holm")[1]))
    with_gap = holm([*p_values, None])
    assert with_gap[-1] is None and with_gap[:-1] == holm(p_values)


def test_the_permutation_test_is_that_of_scipy() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random(9), rng.random(9) - 0.2
    theirs = scipy.stats.permutation_test(
        (a, b), lambda x, y: np.mean(x) - np.mean(y), permutation_type="samples", n_resamples=np.inf
    )
    ones = np.ones(9)
    assert permutation(token_f1, np.column_stack((a, ones)), np.column_stack((b, ones))) == theirs.pvalue
    many = rng.random((2, 60)) - [[0.0], [0.08]]
    drawn = compare(token_f1, side(many[0]), side(many[1]))
    theirs = scipy.stats.permutation_test(
        tuple(many), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", vectorized=True,
        n_resamples=20_000, rng=0,
    )  # fmt: skip
    assert drawn.method == "permutation" and drawn.p_value == pytest.approx(theirs.pvalue, abs=0.01)


def test_swapping_a_ratio_swaps_weights_with_the_values() -> None:
    a = [Score(3.0, 2.0), Score(8.0, 5.0), Score(1.0, 3.0)]
    b = [Score(5.0, 2.0), Score(9.0, 5.0), Score(2.0, 3.0)]
    names = ["x", "y", "z"]
    found = compare(perplexity, Scores(a, names), Scores(b, names))
    apart = []
    for swaps in itertools.product((False, True), repeat=3):
        sides = [[pair[swap ^ at] for pair, swap in zip(zip(a, b, strict=True), swaps, strict=True)] for at in (0, 1)]
        values = [math.exp(sum(s.value for s in one) / sum(s.weight or 0 for s in one)) for one in sides]
        apart.append(abs(values[0] - values[1]))
    assert found.p_value == np.mean([value >= apart[0] - 1e-12 for value in apart])


def test_a_mean_difference_is_the_paired_t_tests() -> None:
    rng = np.random.default_rng(2)
    a = rng.beta(4, 2, 3000)
    b = np.clip(a - rng.normal(0.01, 0.2, 3000), 0, 1)
    found = compare(token_f1, side(a), side(b))
    theirs = scipy.stats.ttest_rel(a, b)
    assert found.method == "Student" and found.p_value == pytest.approx(theirs.pvalue)
    assert found.stderr == pytest.approx(scipy.stats.sem(a - b))
    assert (found.ci_low, found.ci_high) == pytest.approx(tuple(theirs.confidence_interval()))
    assert found.effect == "d" and found.effect_size == pytest.approx(np.mean(a - b) / np.std(a - b, ddof=1))


def test_the_bootstrap_of_a_mean_difference_agrees_with_that_of_scipy() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.beta(4, 2, 150), rng.beta(3, 2, 150)
    found = compare(token_f1, side(a), side(b))
    theirs = scipy.stats.bootstrap((a - b,), np.mean, n_resamples=9999, rng=0).confidence_interval
    assert (found.ci_low, found.ci_high) == pytest.approx((theirs.low, theirs.high), abs=0.006)


def test_effect_sizes_and_power_are_those_of_statsmodels() -> None:
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    power = pytest.importorskip("statsmodels.stats.power")
    pair = compare(exact_match, side([1] * 7 + [0] * 3), side([1] * 4 + [0] * 6))
    assert pair.effect == "h" and pair.effect_size == pytest.approx(proportion.proportion_effectsize(0.7, 0.4))
    rng = np.random.default_rng(4)
    a, b = rng.random((2, 40))
    needed = power.TTestPower().solve_power(nobs=40, alpha=0.05, power=0.8) * np.std(a - b, ddof=1)
    assert compare(token_f1, side(a), side(b)).detectable == pytest.approx(needed, rel=0.01)
    assert compare(token_f1, side(a), side(a)).detectable is None  # no spread: not "any difference would be seen"


@pytest.mark.parametrize(("discordant", "n"), [(0.2, 100), (0.4, 300), (0.05, 2000)])
def test_a_difference_of_the_detectable_size_is_seen_four_times_out_of_five(discordant: float, n: int) -> None:
    delta = detectable_share(discordant, n)
    rng = np.random.default_rng(5)
    up, down, _ = rng.multinomial(n, ((discordant + delta) / 2, (discordant - delta) / 2, 1 - discordant), 4000).T
    # By the score test that Connor's formula describes; the exact one is a little more careful.
    seen = np.mean((up - down) ** 2 > 1.959964**2 * (up + down))
    exact = np.mean([mcnemar(int(u), int(d)) < 0.05 for u, d in zip(up, down, strict=True)])
    assert seen == pytest.approx(0.8, abs=0.04) and 0.65 < exact <= seen


def test_bonett_and_prices_interval_is_the_papers_formula() -> None:
    # 19 and 7 discordant pairs of 100: p̃₁₂ = 20/102, p̃₂₁ = 8/102
    up, down = 20 / 102, 8 / 102
    half = 1.959964 * math.sqrt((up + down - (up - down) ** 2) / 102)
    assert bonett_price(19, 7, 100) == pytest.approx((up - down - half, up - down + half), abs=1e-6)


def test_no_discordance_is_not_no_doubt() -> None:
    for metric in (exact_match, token_f1):
        same = compare(metric, side([1, 0] * 20), side([1, 0] * 20))
        assert same.difference == 0 and same.p_value == 1
        assert same.ci_low is not None and same.ci_high is not None and same.ci_low < -0.02 and same.ci_high > 0.02
    assert same.effect_size == 0


def test_a_difference_that_is_whole_in_every_unit_leaves_doubt_too() -> None:
    names = [f"s{at}" for at in range(30) for _ in range(5)]
    for values, other, sign in (([1] * 150, [0] * 150, 1), ([0] * 150, [1] * 150, -1)):
        found = compare(exact_match, side(values, names), side(other, names))
        low, high = bonett_price(30, 0, 30)
        assert (found.difference, found.units) == (sign, 30)
        assert (found.ci_low, found.ci_high) == pytest.approx((low, high) if sign > 0 else (-high, -low))
        assert 0.8 < low < 0.95 and high == 1


def test_a_sample_with_its_repeats_is_one_unit() -> None:
    rng = np.random.default_rng(6)
    a, b = (rng.random((2, 30, 5)) < [[[0.7]], [[0.4]]]).astype(float)
    names = [f"s{at}" for at in range(30) for _ in range(5)]
    found = compare(exact_match, side(a.ravel(), names), side(b.ravel(), names))
    means = compare(token_f1, side(a.mean(1)), side(b.mean(1)))
    assert (found.n, found.units, found.method) == (30, 30, "permutation")
    assert (found.difference, found.p_value) == pytest.approx((means.difference, means.p_value))
    assert (found.ci_low, found.ci_high) == pytest.approx((means.ci_low, means.ci_high))
    assert found.a_ahead == int((a.mean(1) > b.mean(1)).sum())


def test_clusters_widen_the_interval_and_lower_the_evidence() -> None:
    rng = np.random.default_rng(7)
    shift = np.repeat(rng.normal(0.05, 0.15, 12), 10)
    a = np.clip(rng.beta(4, 4, 120) + shift, 0, 1)
    b = rng.beta(4, 4, 120)
    clusters = [f"d{at // 10}" for at in range(120)]
    plain, grouped = compare(token_f1, side(a), side(b)), compare(token_f1, *(side(x, None, clusters) for x in (a, b)))
    assert grouped.units == 12 and grouped.n == 120 and grouped.difference == plain.difference
    assert (grouped.stderr or 0) > 1.3 * (plain.stderr or 0) and (grouped.p_value or 0) > (plain.p_value or 0)
    with pytest.raises(ValueError, match="is in cluster d0 and in cluster e"):
        compare(token_f1, side([1.0], None, ["d0"]), side([1.0], None, ["e"]))


def test_samples_of_one_side_only_are_counted_and_left_out() -> None:
    found = compare(exact_match, side([1, 1, 0], ["x", "y", "z"]), side([0, 1, 1, 1], ["y", "z", "u", "v"]))
    assert (found.n, found.only_a, found.only_b) == (2, 1, 2)
    assert (found.a.value, found.b.value, found.difference) == (0.5, 0.5, 0.0)
    nothing = compare(exact_match, side([1], ["x"]), side([1], ["y"]))
    assert (nothing.n, nothing.difference, nothing.p_value) == (0, None, None)
    assert judge(exact_match, nothing, None) == Verdict("undecided", "undefined")


def test_an_infinite_perplexity_is_compared_with_nothing() -> None:
    a = Scores([Score(math.inf, 1.0), Score(1.0, 1.0)], ["x", "y"])
    b = Scores([Score(1.0, 1.0), Score(1.0, 1.0)], ["x", "y"])
    assert compare(perplexity, a, b).difference is None


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 1.0]), st.sampled_from("abc")), min_size=2,
        max_size=20,
    ),
    st.randoms(),
)  # fmt: skip
def test_the_order_of_rows_changes_not_a_bit(rows: list[tuple[float, float, str]], order: random.Random) -> None:
    def answers(rows: list[tuple[str, float, float, str]]) -> list[Paired]:
        names, first, second, clusters = (list(column) for column in zip(*rows, strict=True))
        pairs = []
        for labels in (None, clusters):
            a, b = side(first, names, labels), side(second, names, labels)
            pairs.append(compare(token_f1, a, b))
            weighted = [Scores([Score(s.value, 1.0 + s.value) for s in x.scores], names, labels) for x in (a, b)]
            pairs.append(compare(perplexity, *weighted))
        return pairs

    named = [(f"s{at}", *row) for at, row in enumerate(rows)]
    shuffled = list(named)
    order.shuffle(shuffled)
    assert answers(named) == answers(shuffled)


def verdict(a: int, b: int, both: int, n: int, chance: float = 0.0, metric: object = exact_match) -> Verdict:
    """Of n samples `both` are right for both models, `a` and `b` for one only."""
    first = [1] * (both + a) + [0] * (n - both - a)
    second = [1] * both + [0] * a + [1] * b + [0] * (n - both - a - b)
    pair = compare(metric, side(first), side(second))  # type: ignore[arg-type]
    return judge(metric, pair, pair.p_value, chance)  # type: ignore[arg-type]


def test_verdicts_say_who_is_better_or_why_nobody_can_tell() -> None:
    assert verdict(30, 5, 30, 100) == Verdict("supported")
    assert verdict(5, 30, 30, 100) == Verdict("refuted")
    assert verdict(10, 8, 40, 100) == Verdict("undecided", "overlap")
    assert verdict(0, 0, 0, 100) == Verdict("undecided", "floor")
    assert verdict(0, 0, 100, 100) == Verdict("undecided", "ceiling")
    # Twelve of a thousand against none is clear by its p-value, and still the floor.
    assert verdict(12, 0, 0, 1000) == Verdict("undecided", "floor")
    assert verdict(12, 0, 988, 1000) == Verdict("undecided", "ceiling")
    # A quarter of the answers is the floor where there are four choices, and not where answers are written.
    assert verdict(25, 6, 4, 100, chance=0.25, metric=accuracy) == Verdict("undecided", "floor")
    assert verdict(25, 6, 4, 100) == Verdict("supported")


def test_less_is_better_where_the_metric_says_so() -> None:
    rng = np.random.default_rng(8)
    names = [str(at) for at in range(60)]
    low, high = ([Score(float(v), 5.0) for v in rng.normal(mean, 0.4, 60)] for mean in (5, 6))
    pair = compare(perplexity, Scores(low, names), Scores(high, names))
    assert (pair.difference or 0) < 0 and judge(perplexity, pair, pair.p_value) == Verdict("supported")


def test_holms_p_value_decides_and_not_the_bare_one() -> None:
    pair = compare(exact_match, side([1] * 20 + [0] * 20), side([1] * 8 + [0] * 32))
    assert judge(exact_match, pair, pair.p_value) == Verdict("supported")
    assert judge(exact_match, pair, 0.2) == Verdict("undecided", "overlap")
