"""The bootstrap that all intervals share: units are resampled; percentiles are widened for small samples, or each
resample's distance is taken in its own standard errors.

Plain percentiles of a bootstrap are too narrow by √((m − 1) / m) and take normal for Student quantiles; the expanded
ones take the level Φ(−√(m / (m − 1)) · t) instead of 2.5 %, which undoes both (Hesterberg 2015, section 4).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from evalspec.metrics.registry import Floats

RESAMPLES = 2000
BOOTSTRAP_UNITS = 2000
"""With more units the interval is estimate ± t · stderr, from which the bootstrap no longer differs."""
TAIL = 0.025
SEED = 20_260_000


@lru_cache(maxsize=512)
def student_quantile(freedom: float, tail: float = TAIL) -> float:
    """The upper quantile of Student's t: 97.5 % unless told otherwise."""
    from scipy.special import stdtrit  # 50 ms that only an aggregate needs

    return float(stdtrit(freedom, 1 - tail))


@lru_cache(maxsize=4)
def resample_counts(m: int) -> Floats:
    """(RESAMPLES, m): how often each unit stands in each resample; the same for every call with this m.

    Cells of one run mostly have the same m, so the matrix is drawn once for all, and a bootstrap is one matrix product.
    """
    picks = np.random.default_rng(SEED + m).integers(m, size=(RESAMPLES, m))
    picks += np.arange(RESAMPLES)[:, None] * m
    return np.bincount(picks.ravel(), minlength=RESAMPLES * m).reshape(RESAMPLES, m).astype(np.float64)


def studentised(resampled: Floats, errors: Floats, estimate: float, stderr: float) -> tuple[float, float]:
    """The 95 % interval by the bootstrap's own t: resampled values and their standard errors (r,), the estimate's.

    A resample without spread tells no t: it counts as infinitely far on its side (Hall 1988; Efron and Tibshirani
    1993, section 12.5).
    """
    apart = resampled - estimate
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(errors > 1e-12 * np.abs(resampled), apart / errors, np.sign(apart) * np.inf)
    t = np.sort(np.where(apart == 0, 0.0, t))
    place = math.floor(TAIL * (len(t) + 1)) - 1
    # infinite ends only where most resamples have no spread; what is left then is the most that was seen
    finite = t[np.isfinite(t)]
    low, high = np.clip((t[place], t[-1 - place]), finite.min(), finite.max())
    return float(min(estimate - high * stderr, estimate)), float(max(estimate - low * stderr, estimate))


def centred(resampled: Floats, estimate: float) -> Floats:
    """Resampled values (r,) without the bootstrap's own bias: a calibration error, say, is larger when resampled."""
    moved: Floats = resampled - (resampled.mean() - estimate)
    return moved


def expanded_percentiles(resampled: Floats, estimate: float, m: int) -> tuple[float, float]:
    """The 95 % interval of an estimate over m ≥ 2 units from its resampled values (r,)."""
    level = 0.5 * math.erfc(math.sqrt(m / (m - 1)) * student_quantile(m - 1) / math.sqrt(2))
    low, high = np.quantile(resampled, (level, 1 - level))
    # equal values everywhere: rounding must not put the estimate outside its interval
    return float(min(low, estimate)), float(max(high, estimate))
