"""Architectures from several training seeds: variance components and intervals against closed forms and simulation."""

from __future__ import annotations

import random

import numpy as np
import pytest
import scipy.stats

from evalspec.metrics import METRIC_FUNCTIONS
from evalspec.metrics.hierarchy import Hierarchical, Level, compare_architectures

exact_match, mcc, perplexity = (METRIC_FUNCTIONS.get(name) for name in ("exact_match", "mcc", "perplexity"))


def levels(y: np.ndarray) -> list[Level]:
    """An array (seeds, draws, samples) as rows."""
    return [Level(s, d, f"q{i}", float(y[s, d, i])) for s, d, i in np.ndindex(y.shape)]


def made(
    rng: np.random.Generator, shape: tuple[int, int, int], seeds: float, draws: float, samples: float
) -> np.ndarray:
    effects = [rng.normal(0, sd, size) for sd, size in zip((seeds, draws, samples), shape, strict=True)]
    noise = rng.normal(0, 0.1, shape)
    return effects[0][:, None, None] + effects[1][:, None] + effects[2] + noise


def test_seeds_that_are_all_there_is_make_it_welchs_test() -> None:
    a, b = np.array([0.61, 0.70, 0.66, 0.72, 0.64]), np.array([0.55, 0.52, 0.60, 0.57, 0.50])
    found = compare_architectures(levels(a[:, None, None]), levels(b[:, None, None]))
    theirs = scipy.stats.ttest_ind(a, b, equal_var=False)
    assert found.p_value == pytest.approx(theirs.pvalue) and found.freedom == pytest.approx(theirs.df)
    assert (found.ci_low, found.ci_high) == pytest.approx(tuple(theirs.confidence_interval()), abs=0.012)
    assert found.components == {"seeds": pytest.approx(found.stderr**2), "draws": None, "samples": None}


def test_one_seed_of_each_is_the_paired_test_on_samples() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 50))
    found = compare_architectures(levels(a[None, None]), levels(b[None, None]))
    theirs = scipy.stats.ttest_rel(a, b)
    assert found.p_value == pytest.approx(theirs.pvalue) and found.stderr == pytest.approx(scipy.stats.sem(a - b))
    assert (found.ci_low, found.ci_high) == pytest.approx(tuple(theirs.confidence_interval()), abs=0.01)


def test_no_interval_goes_further_than_the_greatest_difference() -> None:
    a, b = np.array([1.0, 1.0, 0.2]), np.array([0.0, 0.1, 0.0])
    free = compare_architectures(levels(a[:, None, None]), levels(b[:, None, None]))
    found = compare_architectures(levels(a[:, None, None]), levels(b[:, None, None]), greatest=1.0)
    assert free.ci_high is not None and free.ci_high > 1 == found.ci_high and found.ci_low == free.ci_low
    assert (
        exact_match.greatest_difference == 1 and mcc.greatest_difference == 2 and perplexity.greatest_difference > 1e9
    )


def test_components_find_where_the_variance_was_put() -> None:
    rng = np.random.default_rng(1)
    seen = {name: [] for name in ("seeds", "draws", "samples")}
    for _ in range(40):
        a = made(rng, (6, 4, 80), seeds=0.3, draws=0.2, samples=0.5)
        b = made(rng, (6, 4, 80), seeds=0.3, draws=0.2, samples=0.5)
        found = compare_architectures(levels(a), levels(b))
        for name, variance in found.components.items():
            seen[name].append(variance)
    assert np.mean(seen["seeds"]) == pytest.approx(2 * 0.3**2 / 6, rel=0.15)
    assert np.mean(seen["draws"]) == pytest.approx(2 * 0.2**2 / 4, rel=0.3)
    assert np.mean(seen["samples"]) == pytest.approx(2 * 0.5**2 / 80, rel=0.15)


def test_five_seeds_cover_where_samples_alone_do_not() -> None:
    rng = np.random.default_rng(2)
    held = alone = 0
    for _ in range(100):
        ease = rng.normal(0, 0.3, 60)
        a, b = (ease + made(rng, (5, 1, 60), seeds=0.1, draws=0.0, samples=0.1) for _ in range(2))
        found = compare_architectures(levels(a), levels(b))
        held += found.ci_low <= 0 <= found.ci_high
        apart = (a - b).mean(0)[0]
        alone += abs(apart.mean()) <= 2 * scipy.stats.sem(apart)
    assert held / 100 >= 0.9 and alone / 100 < 0.7


def test_repeats_are_averaged_and_samples_that_a_model_lacks_are_left_out() -> None:
    a = [Level(s, 0, q, v) for s in (0, 1) for q, v in (("x", 1.0), ("x", 0.0), ("y", 1.0), ("z", 0.0))]
    b = [Level(s, 0, q, v) for s in (0, 1) for q, v in (("x", 0.0), ("y", 0.0))]
    found = compare_architectures(a, b)
    assert (found.n, found.left_out, found.a, found.b) == (2, 1, 0.75, 0.0)
    with pytest.raises(ValueError, match="no sample has scores of all models"):
        compare_architectures(a, [Level(0, 0, "other", 1.0)])


def test_clusters_are_the_units_and_keep_the_mean_over_samples() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.random((2, 3, 1, 30))
    clusters = {f"q{i}": f"d{i % 7}" for i in range(30)}
    found = compare_architectures(levels(a), levels(b), clusters)
    assert found.units == 7 and found.n == 30 and found.difference == pytest.approx(a.mean() - b.mean())


def test_the_order_of_rows_changes_nothing() -> None:
    rng = np.random.default_rng(4)
    a, b = (levels(made(rng, (3, 2, 12), 0.1, 0.1, 0.2)) for _ in range(2))

    def answer() -> Hierarchical:
        return compare_architectures(a, b, {f"q{i}": f"d{i // 2}" for i in range(12)})

    before = answer()
    for rows in (a, b):
        random.Random(5).shuffle(rows)
    after = answer()
    assert (after.ci_low, after.ci_high, after.p_value) == pytest.approx(
        (before.ci_low, before.ci_high, before.p_value), rel=1e-9
    )
