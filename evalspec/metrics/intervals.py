"""Scores into one number with n, a standard error and a 95 % interval.

Every metric is a function of sums over *units* that are independent of each other: a unit is a sample with all its
repeats and draws, or a cluster of samples where the task names one. For a mean, with a the sum of a unit's values and b
the number of them, R = Σ a / Σ b; with m units and residuals r = a − R b, the standard error of R is
√(m / (m − 1) · Σ r²) / Σ b, which is sd / √n for a plain mean and the cluster-robust one otherwise. Ratios have their
weights (tokens, words, bytes) as b. For a metric of all samples together (BLEU, say) it is the jackknife's.

Intervals, by what the scores are:
- 0 or 1: the mid-p interval. For clustered scores it is taken at the effective sample size R (1 − R) / v · (t / t')²,
  v being the variance by the jackknife over clusters, t and t' Student's quantiles for n − 1 and m − 1 (Korn and
  Graubard 1998).
- anything else: bootstrap over units, 2,000 resamples, percentiles expanded for small m (Hesterberg 2015, section 4).
- a metric of all samples together: the same, the bootstrap's own bias taken off before the percentiles.
- anything else with more than 2,000 units: R ± t · stderr, from which the bootstrap no longer differs.

The same scores give the same numbers in any order: rows are sorted first, and resamples depend on m alone.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from evalspec.metrics.outcome import Score
from evalspec.metrics.proportions import proportion_interval
from evalspec.metrics.registry import Floats, Metric
from evalspec.metrics.resampling import (
    BOOTSTRAP_UNITS,
    centred,
    expanded_percentiles,
    resample_counts,
    student_quantile,
)
from evalspec.metrics.totals import numbered, sorted_rows, summed, terms, value_of


@dataclass(frozen=True)
class Aggregate:
    """A metric over samples. `n` counts scores; what is not defined is None: all of it at n = 0, `stderr` with a single
    unit, the interval there too unless the score is 0 or 1, both beside an infinite value."""

    value: float | None
    stderr: float | None
    ci_low: float | None
    ci_high: float | None
    n: int


def aggregate(
    metric: Metric, scores: Sequence[Score], samples: Sequence[str], clusters: Sequence[str] | None = None
) -> Aggregate:
    """One number from the scores that exist (leave absent ones out).

    Args: scores (n) · samples (n), the sample each belongs to · clusters (n), the group each belongs to, or None.
    Raises ValueError when the lengths differ, or a score lacks the weight or the parts that its metric needs.
    """
    n = len(scores)
    labels: Sequence[Hashable] = samples if clusters is None else clusters
    if len(samples) != n or len(labels) != n:
        raise ValueError(f"{n} scores, {len(samples)} samples, {len(labels)} cluster labels: they must be as many")
    if n == 0:
        return Aggregate(None, None, None, None, 0)
    unit, m = numbered(labels)
    units = sorted_rows(summed(terms(metric, scores), unit, m))
    if metric.aggregation == "corpus":
        return _of_corpus(metric, units, n)
    a, b = units.T
    estimate = float(a.sum() / b.sum())
    exponential = metric.aggregation == "exp_ratio"
    if not math.isfinite(estimate):
        return Aggregate(_exp(estimate) if exponential else estimate, None, None, None, n)
    stderr = ratio_stderr(a, b, estimate)
    binary = metric.aggregation == "mean" and metric.values != "real"
    if binary and all(score.value in (0.0, 1.0) for score in scores):
        interval = _share_interval(a, b, estimate, n)
    elif stderr is None:
        interval = None
    elif m <= BOOTSTRAP_UNITS:
        interval = bootstrap_interval(a, b)
    else:
        half = student_quantile(m - 1) * stderr
        interval = (estimate - half, estimate + half)
    low, high = interval or (None, None)
    if exponential:
        value = _exp(estimate)
        low, high = (None if low is None else _exp(low)), (None if high is None else _exp(high))
        # the delta method: exp has slope exp(R) at R
        return Aggregate(value, None if stderr is None or math.isinf(value) else value * stderr, low, high, n)
    return Aggregate(estimate, stderr, low, high, n)


def bootstrap_interval(a: Floats, b: Floats) -> tuple[float, float]:
    """95 % interval of Σ a / Σ b over m ≥ 2 units (m,), by resampling units: expanded percentiles."""
    counts = resample_counts(len(a))
    return expanded_percentiles((counts @ a) / (counts @ b), float(a.sum() / b.sum()), len(a))


def ratio_stderr(a: Floats, b: Floats, estimate: float) -> float | None:
    """The standard error of Σ a / Σ b over m units (m,), None for a single one."""
    m = len(a)
    if m < 2:
        return None
    residuals = a - estimate * b
    return math.sqrt(m / (m - 1) * float(residuals @ residuals)) / float(b.sum())


def jackknife_stderr(metric: Metric, units: Floats) -> float | None:
    """The standard error of a metric of totals over m units (m, k): √((m − 1) / m · Σ (θ₋ᵢ − θ̄)²); None for one."""
    m = len(units)
    if m < 2:
        return None
    without = value_of(metric, units.sum(0) - units)
    return math.sqrt((m - 1) / m * float(((without - without.mean()) ** 2).sum()))


def _of_corpus(metric: Metric, units: Floats, n: int) -> Aggregate:
    m, estimate = len(units), float(value_of(metric, units.sum(0)[None])[0])
    stderr = jackknife_stderr(metric, units)
    if stderr is None or not math.isfinite(estimate):
        return Aggregate(estimate, None, None, None, n)
    if m > BOOTSTRAP_UNITS:
        half = student_quantile(m - 1) * stderr
        return Aggregate(estimate, stderr, estimate - half, estimate + half, n)
    resampled = centred(value_of(metric, resample_counts(m) @ units), estimate)
    low, high = expanded_percentiles(resampled, estimate, m)
    return Aggregate(estimate, stderr, low, high, n)


def _share_interval(a: Floats, b: Floats, share: float, n: int) -> tuple[float, float] | None:
    m, total = len(a), float(b.sum())
    if m == n:
        return proportion_interval(share, n)
    if m < 2:
        return None  # one cluster of several samples says nothing of the spread between clusters
    # The jackknife's residuals: with few clusters of unequal size the plain ones are too small.
    residuals = (a - share * b) / (1 - b / total)
    variance = (m - 1) / m * float(residuals @ residuals) / total**2
    # Equal scores everywhere show no spread to take an effective size from; then each unit counts once.
    effective = share * (1 - share) / variance if variance > 0 else m
    effective *= (student_quantile(n - 1) / student_quantile(m - 1)) ** 2
    return proportion_interval(share, min(float(n), effective))


def _exp(exponent: float) -> float:
    try:
        return math.exp(exponent)
    except OverflowError:
        return math.inf
