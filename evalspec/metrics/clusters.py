"""The effective size of clustered answers that are right or wrong: as many independent ones would say as much.

n_eff = R (1 − R) / v · (t / t')², with v the variance of the share R, t and t' Student's quantiles for n − 1 and m − 1
(Korn and Graubard 1998). With few clusters of which hardly one holds a failure, what the clusters show of v is next to
nothing, and an interval from it alone covers 88 to 90 %. So v is drawn towards what a beta-binomial model says, as if
that were ten clusters more:

    v = (m v_J (t' / t)² + 10 v_B) / (m + 10)      v_J   the jackknife's over the m clusters
                                                   v_B   R (1 − R) / n · (1 + (n_a − 1) ρ)    (Kish 1965)

with n_a = Σ n_i² / n the size of the cluster that a sample stands in, and ρ the posterior mean of the intracluster
correlation: p and ρ uniform in [0, 1] beforehand, k_i of n_i right ~ beta-binomial(p (1 − ρ) / ρ, (1 − p) (1 − ρ) / ρ).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from evalspec.metrics.registry import Floats
from evalspec.metrics.resampling import BOOTSTRAP_UNITS, student_quantile

WEIGHT = 10
"""Clusters that the model's variance weighs."""


def effective_size(right: Floats, size: Floats) -> float:
    """Of m ≥ 2 clusters (m,) with so many samples, so many of them right: at most the number of samples."""
    m, n = len(size), float(size.sum())
    share = float(right.sum()) / n
    # The jackknife's residuals: with few clusters of unequal size the plain ones are too small.
    residuals = (right - share * size) / (1 - size / n)
    jackknife = (m - 1) / m * float(residuals @ residuals) / n**2
    freedom = (student_quantile(m - 1) / student_quantile(n - 1)) ** 2
    one = share * (1 - share)
    if one == 0:  # equal answers everywhere show no spread: each cluster counts once, whatever there is within it,
        return min(n, float(m))  # and no quantile of Student's is due, since no variance was estimated
    variance = jackknife * freedom
    if m <= BOOTSTRAP_UNITS:
        effect = 1 + (float(size @ size) / n - 1) * correlation(right, size)
        variance = (m * variance + WEIGHT * one / n * effect) / (m + WEIGHT)
    return min(n, one / variance) if variance > 0 else n


def correlation(right: Floats, size: Floats) -> float:
    """ρ: the posterior mean of the intracluster correlation of m clusters (m,)."""
    from scipy.special import betaln

    p, rho, weight = _grid()
    alpha, beta = p * (1 - rho) / rho, (1 - p) * (1 - rho) / rho
    kinds, times = np.unique(np.stack([right, size], axis=1), axis=0, return_counts=True)
    # The binomial coefficients are the same everywhere, so they are left out.
    loglikelihood = np.zeros_like(p)
    for (k, n), count in zip(kinds, times, strict=True):
        loglikelihood += count * (betaln(k + alpha, n - k + beta) - betaln(alpha, beta))
    posterior = weight * np.exp(loglikelihood - loglikelihood.max())
    return float((posterior * rho).sum() / posterior.sum())


@lru_cache(maxsize=1)
def _grid() -> tuple[Floats, Floats, Floats]:
    """Gauss and Legendre's points in the unit square, flat: p, ρ and their weights."""
    (at_p, of_p), (at_rho, of_rho) = (np.polynomial.legendre.leggauss(points) for points in (48, 24))
    p, rho = np.meshgrid((at_p + 1) / 2, (at_rho + 1) / 2)
    return p.ravel(), rho.ravel(), np.outer(of_rho, of_p).ravel()
