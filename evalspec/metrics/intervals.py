"""Scores into one number with n, a standard error and a 95 % interval.

Every metric is a function of sums over *units* that are independent of each other: a unit is a sample with all its
repeats and draws, or a cluster of samples where the task names one. For a mean, with a the sum of a unit's values and b
the number of them, R = Σ a / Σ b; with m units and residuals r = a − R b, the standard error of R is
√(m / (m − 1) · Σ r²) / Σ b, which is sd / √n for a plain mean and the cluster-robust one otherwise. Ratios have their
weights (tokens, words, bytes) as b. For a metric of all samples together (BLEU, say) it is the jackknife's.

Intervals, by what the scores are:
- 0 or 1: the mid-p interval (`proportions`). For clustered scores it is taken at the effective sample size
  (`clusters`).
- between 0 and 1: bootstrap over units, 2,000 resamples, percentiles expanded for small m (Hesterberg 2015, section 4).
  Where all units are equal there is nothing to resample: what m units would not show may have any score.
- any number, which may be very skewed: bootstrap over units by its own t (`studentised`).
- a metric of all samples together: expanded percentiles, the bootstrap's own bias taken off before them.
- fewer than 5 units, whose resamples are too few, or more than 2,000, from which on the bootstrap no longer differs:
  R ± t · stderr.

The same scores give the same numbers in any order: rows are sorted first, and resamples depend on m alone.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from evalspec.metrics.clusters import effective_size
from evalspec.metrics.outcome import Score
from evalspec.metrics.proportions import proportion_interval
from evalspec.metrics.registry import Floats, Metric
from evalspec.metrics.resampling import (
    BOOTSTRAP_UNITS,
    centred,
    expanded_percentiles,
    resample_counts,
    student_quantile,
    studentised,
)
from evalspec.metrics.totals import numbered, sorted_rows, summed, terms, value_of

FEWEST = 5
"""With fewer units too many resamples are one unit over and over."""


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
    else:
        interval = mean_interval(a, b, estimate, stderr, bounded=metric.values != "real")
    low, high = interval or (None, None)
    if exponential:
        value = _exp(estimate)
        # No likelihood exceeds 1, so that nats are not negative and a perplexity is at least 1.
        low, high = (None if low is None else _exp(max(0.0, low))), (None if high is None else _exp(high))
        # the delta method: exp has slope exp(R) at R
        return Aggregate(value, None if stderr is None or math.isinf(value) else value * stderr, low, high, n)
    return Aggregate(estimate, stderr, low, high, n)


def mean_interval(a: Floats, b: Floats, estimate: float, stderr: float, *, bounded: bool) -> tuple[float, float]:
    """95 % interval of Σ a / Σ b over m ≥ 2 units (m,), by resampling units; `bounded`: all scores are from 0 to 1."""
    m = len(a)
    if bounded and stderr < 1e-12:
        return _unseen(estimate, m)
    if m < FEWEST or m > BOOTSTRAP_UNITS:
        half = student_quantile(m - 1) * stderr
        low, high = estimate - half, estimate + half
        return (max(low, 0.0), min(high, 1.0)) if bounded else (low, high)
    counts = resample_counts(m)
    resampled = (counts @ a) / (counts @ b)
    if bounded:
        return expanded_percentiles(resampled, estimate, m)
    squares = counts @ (a * a) - 2 * resampled * (counts @ (a * b)) + resampled**2 * (counts @ (b * b))
    errors = np.sqrt(m / (m - 1) * np.maximum(squares, 0.0)) / (counts @ b)
    return studentised(resampled, errors, estimate, stderr)


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
    if stderr is None or not math.isfinite(estimate) or metric.corpus is None:
        return Aggregate(estimate, None, None, None, n)
    if m > BOOTSTRAP_UNITS:
        half = student_quantile(m - 1) * stderr
        low, high = estimate - half, estimate + half
    else:
        resampled = centred(value_of(metric, resample_counts(m) @ units), estimate)
        low, high = expanded_percentiles(resampled, estimate, m)
    least, most = metric.corpus.within
    return Aggregate(estimate, stderr, max(low, least), min(high, most), n)


def _share_interval(a: Floats, b: Floats, share: float, n: int) -> tuple[float, float] | None:
    m = len(a)
    if m == n:
        return proportion_interval(share, n)
    if m < 2:
        return None  # one cluster of several samples says nothing of the spread between clusters
    return proportion_interval(share, effective_size(a, b))


def _unseen(value: float, m: int) -> tuple[float, float]:
    """Equal scores of m units: the share of others that m would not show may have any score from 0 to 1."""
    share = proportion_interval(0.0, m)[1]
    return value * (1 - share), value * (1 - share) + share


def _exp(exponent: float) -> float:
    try:
        return math.exp(exponent)
    except OverflowError:
        return math.inf
