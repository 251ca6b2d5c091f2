"""Two models on the same samples: the difference with its interval, p-value and effect size, and what n could see.

Pairing removes what makes a sample hard for both. A unit is a sample with all its repeats and draws, or a cluster where
the task names one; both models' sums of a unit stay together in every resample.

    difference   A − B of the metric itself, over the samples that both have
    interval     pairs of 0 and 1, one a sample: Bonett and Price (2012), a Wald interval with one discordant pair added
                 to each side, so that no discordance does not mean no doubt; anything else: the bootstrap over units,
                 expanded percentiles; more than 2,000 units: difference ± t · stderr
    stderr       the jackknife's over units, which is sd / √m for a mean difference
    p-value      McNemar or permutation (see `significance`); Student's t for more than 2,000 units that are not 0 or 1
    effect size  Cohen's h, 2 asin √A − 2 asin √B, for metrics of 0 and 1; else d, difference / (√m · stderr)
    detectable   the smallest difference that this n would show (p < 0.05) four times out of five:
                 (t₀.₉₇₅ + t₀.₈) · stderr; for pairs of 0 and 1 the δ at which z₀.₉₇₅ √ψ + z₀.₈ √(ψ − δ²) = δ √n, with
                 ψ the share of discordant pairs, one added to each side (Connor 1987)
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from evalspec.metrics.intervals import Aggregate, aggregate
from evalspec.metrics.outcome import Score
from evalspec.metrics.registry import Floats, Metric
from evalspec.metrics.resampling import (
    BOOTSTRAP_UNITS,
    centred,
    expanded_percentiles,
    resample_counts,
    student_quantile,
)
from evalspec.metrics.significance import mcnemar, permutation
from evalspec.metrics.totals import numbered, summed, terms, value_of

Method = Literal["McNemar", "permutation", "Student", "hierarchical"]
Effect = Literal["h", "d"]

NORMAL_QUANTILE = 1.959963984540054
POWER_QUANTILE = 0.8416212335729143
"""Of the normal distribution at 80 %."""


@dataclass(frozen=True)
class Scores:
    """One model's scores: parallel lists of scores, the sample each belongs to, and its cluster (None: no clusters)."""

    scores: Sequence[Score]
    samples: Sequence[str]
    clusters: Sequence[str] | None = None

    def of(self, wanted: frozenset[str]) -> Scores:
        """Only the scores of some samples."""
        kept = [at for at, sample in enumerate(self.samples) if sample in wanted]
        clusters = None if self.clusters is None else [self.clusters[at] for at in kept]
        return Scores([self.scores[at] for at in kept], [self.samples[at] for at in kept], clusters)


@dataclass(frozen=True)
class Paired:
    """A paired comparison of models A and B; what is not defined is None: all of it where nothing is shared or a value
    is infinite, what needs a spread where there is a single unit."""

    a: Aggregate
    """A's own value, over the shared samples."""
    b: Aggregate
    n: int
    """Samples that both have."""
    only_a: int
    """Samples that only A has: they have no part in the comparison."""
    only_b: int
    units: int = 0
    """Independent units among the shared samples."""
    a_ahead: int = 0
    """Units whose own value is greater for A; with `b_ahead`, the discordant ones."""
    b_ahead: int = 0
    difference: float | None = None
    stderr: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    p_value: float | None = None
    method: Method | None = None
    effect_size: float | None = None
    effect: Effect | None = None
    detectable: float | None = None


def compare(metric: Metric, a: Scores, b: Scores) -> Paired:
    """Compare two models on the samples that both have scores of.

    Clusters are used where both sides have them. Raises ValueError when a sample lies in different clusters.
    """
    in_a, in_b = frozenset(a.samples), frozenset(b.samples)
    shared = in_a & in_b
    first, second = a.of(shared), b.of(shared)
    own_a, own_b = (aggregate(metric, side.scores, side.samples, side.clusters) for side in (first, second))
    result = Paired(own_a, own_b, n=len(shared), only_a=len(in_a - shared), only_b=len(in_b - shared))
    if not shared:
        return result
    sums_a, sums_b = _units(metric, first, second)
    m = len(sums_a)
    a_ahead, b_ahead = _ahead(value_of(metric, sums_a), value_of(metric, sums_b))
    result = replace(result, units=m, a_ahead=a_ahead, b_ahead=b_ahead)
    total_a, total_b = (float(value_of(metric, sums.sum(0)[None])[0]) for sums in (sums_a, sums_b))
    if not (math.isfinite(total_a) and math.isfinite(total_b)):
        return result
    difference = total_a - total_b
    shares = metric.values == "binary" and metric.aggregation == "mean"
    result = replace(result, difference=difference)
    if shares:
        result = replace(result, effect="h", effect_size=_cohens_h(total_a, total_b))
    if m < 2:
        return result
    stderr = _stderr(metric, sums_a, sums_b)
    if not shares:
        size = difference / (math.sqrt(m) * stderr) if stderr > 0 else (0.0 if difference == 0 else None)
        result = replace(result, effect="d", effect_size=size)
    binary = shares and _zeros_and_ones(sums_a) and _zeros_and_ones(sums_b)
    method: Method
    detectable: float | None
    if binary:
        method, p_value = "McNemar", mcnemar(a_ahead, b_ahead)
        low, high = bonett_price(a_ahead, b_ahead, m)
        detectable = detectable_share((a_ahead + b_ahead + 2) / (m + 2), m)
    else:
        if m <= BOOTSTRAP_UNITS:
            method, p_value = "permutation", permutation(metric, sums_a, sums_b)
        else:
            method, p_value = "Student", _student(difference, stderr, m)
        low, high = _interval(metric, sums_a, sums_b, difference, stderr)
        low, high = max(low, -metric.greatest_difference), min(high, metric.greatest_difference)
        spread = (student_quantile(m - 1) + student_quantile(m - 1, 0.2)) * stderr
        detectable = spread if stderr > 0 else None  # units that all differ alike say nothing of what n could show
    result = replace(result, stderr=stderr, ci_low=low, ci_high=high)
    return replace(result, method=method, p_value=p_value, detectable=detectable)


def bonett_price(a_ahead: int, b_ahead: int, n: int) -> tuple[float, float]:
    """95 % interval of the difference of two paired proportions, from n pairs and those discordant either way."""
    up, down = (a_ahead + 1) / (n + 2), (b_ahead + 1) / (n + 2)
    half = NORMAL_QUANTILE * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    return max(-1.0, up - down - half), min(1.0, up - down + half)


def detectable_share(discordant: float, n: int) -> float:
    """The smallest difference of paired proportions that n pairs show with a power of 80 % at a level of 5 %, when this
    share of them is discordant (for a difference greater than that, as many as the difference)."""
    from scipy.optimize import brentq

    def short(delta: float) -> float:
        psi = max(discordant, delta)
        needed = NORMAL_QUANTILE * math.sqrt(psi) + POWER_QUANTILE * math.sqrt(max(0.0, psi - delta**2))
        return delta * math.sqrt(n) - needed

    return 1.0 if short(1.0) < 0 else float(brentq(short, 1e-12, 1.0))


def _units(metric: Metric, a: Scores, b: Scores) -> tuple[Floats, Floats]:
    """Sums of each unit, (m, k) for each model, in an order that depends on the numbers alone."""
    clusters: dict[str, str] = {}
    if a.clusters is not None and b.clusters is not None:
        for scores in (a, b):
            for sample, cluster in zip(scores.samples, scores.clusters or (), strict=True):
                if clusters.setdefault(sample, cluster) != cluster:
                    raise ValueError(f"sample {sample} is in cluster {clusters[sample]} and in cluster {cluster}")
    labels: list[Hashable] = [clusters.get(sample, sample) for scores in (a, b) for sample in scores.samples]
    unit, m = numbered(labels)
    cut = len(a.samples)
    sums_a = summed(terms(metric, a.scores), unit[:cut], m)
    sums_b = summed(terms(metric, b.scores), unit[cut:], m)
    order = np.lexsort((*sums_b.T[::-1], *sums_a.T[::-1]))
    return sums_a[order], sums_b[order]


def _zeros_and_ones(sums: Floats) -> bool:
    """Whether every unit is one score of 0 or 1."""
    return bool((sums[:, 1] == 1).all() and np.isin(sums[:, 0], (0.0, 1.0)).all())


def _stderr(metric: Metric, a: Floats, b: Floats) -> float:
    m = len(a)
    without = value_of(metric, a.sum(0) - a) - value_of(metric, b.sum(0) - b)
    return math.sqrt((m - 1) / m * float(((without - without.mean()) ** 2).sum()))


def _interval(metric: Metric, a: Floats, b: Floats, difference: float, stderr: float) -> tuple[float, float]:
    m = len(a)
    if metric.values != "real" and metric.aggregation == "mean":
        each = value_of(metric, a) - value_of(metric, b)
        if (each == each[0]).all() and each[0] in (-1, 0, 1):  # no spread to resample, and yet the next may differ
            return bonett_price(m * int(each[0] > 0), m * int(each[0] < 0), m)
    if m > BOOTSTRAP_UNITS:
        half = student_quantile(m - 1) * stderr
        return difference - half, difference + half
    counts = resample_counts(m)
    resampled = value_of(metric, counts @ a) - value_of(metric, counts @ b)
    if metric.aggregation == "corpus":
        resampled = centred(resampled, difference)
    return expanded_percentiles(resampled, difference, m)


def _ahead(a: Floats, b: Floats) -> tuple[int, int]:
    same = np.isclose(a, b, rtol=1e-12, atol=0)  # equal means of other repeats differ by rounding
    return int((a > b)[~same].sum()), int((b > a)[~same].sum())


def _student(difference: float, stderr: float, m: int) -> float:
    from scipy.special import stdtr

    if stderr == 0:
        return 1.0 if difference == 0 else 0.0
    return float(2 * stdtr(m - 1, -abs(difference) / stderr))


def _cohens_h(a: float, b: float) -> float:
    return 2 * (math.asin(math.sqrt(min(1.0, a))) - math.asin(math.sqrt(min(1.0, b))))
