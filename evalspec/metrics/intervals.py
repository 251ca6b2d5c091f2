"""Scores into one number with n, a standard error and a 95 % interval.

Everything here is a ratio Σ a / Σ b over *units* that are independent of each other. A unit is a sample with all its
repeats and draws, or a cluster of samples where the task names one; a is its sum of values, b its sum of weights (of
ones for a mean). With m units, R = Σ a / Σ b and residuals r = a − R b, the standard error of R is
√(m / (m − 1) · Σ r²) / Σ b, which is sd / √n for a plain mean and the cluster-robust one otherwise.

Intervals, by what the scores are:
- 0 or 1: Wilson's (1927), and for clustered scores Wilson's at the effective sample size R (1 − R) / stderr², with
  Student's t on m − 1 for the normal quantile (Dean and Pagano 2015). It stays honest when all scores are equal.
- anything else: bootstrap over units, 2,000 resamples, percentiles expanded for small m (Hesterberg 2015, section 4).
- anything else with more than 2,000 units: R ± t · stderr, from which the bootstrap no longer differs.

The same scores give the same numbers in any order: rows are sorted first, and resamples depend on m alone.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from evalspec.metrics.outcome import Score
from evalspec.metrics.registry import Metric

RESAMPLES = 2000
BOOTSTRAP_UNITS = 2000
TAIL = 0.025
NORMAL_QUANTILE = 1.959963984540054

Floats = NDArray[np.float64]


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
    Raises ValueError when the lengths differ, or a ratio's score has no positive weight.
    """
    n = len(scores)
    labels: Sequence[Hashable] = samples if clusters is None else clusters
    if len(samples) != n or len(labels) != n:
        raise ValueError(f"{n} scores, {len(samples)} samples, {len(labels)} cluster labels: they must be as many")
    if n == 0:
        return Aggregate(None, None, None, None, 0)
    values = np.fromiter((score.value for score in scores), np.float64, n)
    ratio = metric.aggregation == "exp_ratio"
    if ratio:
        weights = np.fromiter((score.weight or 0.0 for score in scores), np.float64, n)
        if not (weights > 0).all():
            raise ValueError(f"metric `{metric.name}` is a ratio; each of its scores needs a weight above 0")
    else:
        weights = np.ones(n)
    a, b = _units(values, weights, labels)
    estimate = float(a.sum() / b.sum())
    if not math.isfinite(estimate):
        return Aggregate(_exp(estimate) if ratio else estimate, None, None, None, n)
    stderr = _stderr(a, b, estimate)
    if not ratio and metric.values != "real" and bool(np.isin(values, (0.0, 1.0)).all()):
        interval = _proportion_interval(estimate, stderr, n, units=len(a))
    elif stderr is None:
        interval = None
    elif len(a) <= BOOTSTRAP_UNITS:
        interval = bootstrap_interval(a, b)
    else:
        half = student_quantile(len(a) - 1) * stderr
        interval = (estimate - half, estimate + half)
    low, high = interval or (None, None)
    if ratio:
        value = _exp(estimate)
        low, high = (None if low is None else _exp(low)), (None if high is None else _exp(high))
        # the delta method: exp has slope exp(R) at R
        return Aggregate(value, None if stderr is None or math.isinf(value) else value * stderr, low, high, n)
    return Aggregate(estimate, stderr, low, high, n)


def wilson_interval(share: float, n: float, quantile: float = NORMAL_QUANTILE) -> tuple[float, float]:
    """Wilson's score interval of a proportion `share` of n trials (n may be an effective size, not whole)."""
    z2 = quantile * quantile / n
    centre = (share + z2 / 2) / (1 + z2)
    half = math.sqrt(z2 * (share * (1 - share) + z2 / 4)) / (1 + z2)
    # at 0 and 1 the interval touches the end exactly; rounding would leave it 1e-17 away
    return (0.0 if share == 0 else centre - half), (1.0 if share == 1 else centre + half)


def bootstrap_interval(a: Floats, b: Floats) -> tuple[float, float]:
    """95 % interval of Σ a / Σ b over m ≥ 2 units (m,), by resampling units: expanded percentiles.

    Plain percentiles are too narrow by √((m − 1) / m) and take normal for Student quantiles; the expanded ones take
    the level Φ(−√(m / (m − 1)) · t) instead of 2.5 %, which undoes both.
    """
    m = len(a)
    counts = _resample_counts(m)
    level = 0.5 * math.erfc(math.sqrt(m / (m - 1)) * student_quantile(m - 1) / math.sqrt(2))
    low, high = np.quantile((counts @ a) / (counts @ b), (level, 1 - level))
    estimate = a.sum() / b.sum()  # equal ratios everywhere: rounding must not put the estimate outside its interval
    return float(min(low, estimate)), float(max(high, estimate))


@lru_cache(maxsize=512)
def student_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t."""
    from scipy.special import stdtrit  # 50 ms that only an aggregate needs

    return float(stdtrit(freedom, 1 - TAIL))


@lru_cache(maxsize=4)
def _resample_counts(m: int) -> Floats:
    # (RESAMPLES, m): how often each unit stands in each resample. Cells of one run mostly have the same m, so the
    # matrix is drawn once for all of them and a bootstrap is one matrix product.
    picks = np.random.default_rng(20_260_000 + m).integers(m, size=(RESAMPLES, m))
    picks += np.arange(RESAMPLES)[:, None] * m
    return np.bincount(picks.ravel(), minlength=RESAMPLES * m).reshape(RESAMPLES, m).astype(np.float64)


def _units(values: Floats, weights: Floats, labels: Sequence[Hashable]) -> tuple[Floats, Floats]:
    # Sums per unit, in an order that depends on the numbers alone. Labels meet a dict, not numpy: one long label would
    # make a fixed-width array of all.
    index: dict[Hashable, int] = {}
    unit = np.fromiter((index.setdefault(label, len(index)) for label in labels), np.int64, len(labels))
    order = np.lexsort((weights, values, unit))
    a = np.bincount(unit[order], weights=values[order]).astype(np.float64, copy=False)
    b = np.bincount(unit[order], weights=weights[order]).astype(np.float64, copy=False)
    order = np.lexsort((b, a))
    return a[order], b[order]


def _stderr(a: Floats, b: Floats, estimate: float) -> float | None:
    m = len(a)
    if m < 2:
        return None
    residuals = a - estimate * b
    return math.sqrt(m / (m - 1) * float(residuals @ residuals)) / float(b.sum())


def _proportion_interval(share: float, stderr: float | None, n: int, *, units: int) -> tuple[float, float] | None:
    if units == n:
        return wilson_interval(share, n)
    if stderr is None:
        return None  # one cluster of several samples says nothing of the spread between clusters
    # Equal scores everywhere show no spread to take an effective size from; then each unit counts once.
    effective = min(n, share * (1 - share) / stderr**2) if stderr > 0 else units
    return wilson_interval(share, effective, student_quantile(units - 1))


def _exp(exponent: float) -> float:
    try:
        return math.exp(exponent)
    except OverflowError:
        return math.inf
