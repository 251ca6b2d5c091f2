"""A metric as a function of sums: what each sample adds (its *terms*), what a *unit* adds, and the value of totals.

A unit is what is independent of every other: a sample with all its repeats and draws, or a cluster of samples where the
task names one. Intervals resample units and paired tests swap them; both need nothing of a metric but this file.

    mean       terms (value, 1)           value t₀ / t₁
    ratio      terms (value, weight)      value t₀ / t₁
    exp_ratio  terms (value, weight)      value exp(t₀ / t₁)
    corpus     terms made of the parts    value as the metric defines it
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from evalspec.metrics.outcome import Score
from evalspec.metrics.registry import Floats, Metric


def terms(metric: Metric, scores: Sequence[Score]) -> Floats:
    """What each score adds to the sums: (n, k). Raises ValueError when a score lacks the weight or parts it needs."""
    n = len(scores)
    if metric.aggregation == "corpus":
        if metric.corpus is None or any(score.parts is None for score in scores):
            raise ValueError(f"metric `{metric.name}` is made of parts; each of its scores needs them")
        return metric.corpus.terms(np.array([score.parts for score in scores], np.float64).reshape(n, -1))
    values = np.fromiter((score.value for score in scores), np.float64, n)
    if metric.aggregation == "mean":
        return np.column_stack((values, np.ones(n)))
    weights = np.fromiter((score.weight or 0.0 for score in scores), np.float64, n)
    if not (weights > 0).all():
        raise ValueError(f"metric `{metric.name}` is a ratio; each of its scores needs a weight above 0")
    return np.column_stack((values, weights))


def value_of(metric: Metric, totals: Floats) -> Floats:
    """The metric's value for each row of totals (r, k): (r,)."""
    if metric.corpus is not None:
        return metric.corpus.value(totals)
    ratios: Floats = totals[:, 0] / totals[:, 1]
    if metric.aggregation != "exp_ratio":
        return ratios
    with np.errstate(over="ignore"):
        exponentials: Floats = np.exp(ratios)
    return exponentials


def numbered(labels: Sequence[Hashable]) -> tuple[NDArray[np.int64], int]:
    """Each label's number, by first appearance, and how many there are. Labels meet a dict, not numpy: one long label
    would make a fixed-width array of all."""
    index: dict[Hashable, int] = {}
    numbers = np.fromiter((index.setdefault(label, len(index)) for label in labels), np.int64, len(labels))
    return numbers, len(index)


def summed(rows: Floats, unit: NDArray[np.int64], units: int) -> Floats:
    """Sums of the rows (n, k) of each unit: (units, k). Equal rows in another order give equal bits."""
    order = np.lexsort((*rows.T[::-1], unit))
    columns = [np.bincount(unit[order], weights=column[order], minlength=units) for column in rows.T]
    return np.column_stack(columns).astype(np.float64, copy=False)


def sorted_rows(rows: Floats) -> Floats:
    """The rows (m, k) in an order that depends on the numbers alone, so that no result depends on the order of rows."""
    return rows[np.lexsort(rows.T[::-1])]
