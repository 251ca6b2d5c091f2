"""P-values of paired differences, two-sided, and Holm's correction for a family of them.

    McNemar, exact      pairs of 0 and 1, one a sample: of b + c discordant pairs, b ~ Binomial(b + c, ½) (McNemar 1947)
    permutation         anything else: under the null hypothesis the two models' scores of a unit may be swapped;
                        all swaps where at most 13 units differ, else 9,999 drawn from a seed and p = (1 + hits) /
                        10,000 (Phipson and Smyth 2010). It works on any function of sums: on BLEU as on a mean.
    Holm (1979)         the k-th smallest of m p-values times m − k + 1, never below the one before it

The swaps depend on the number of units that differ alone, and units are sorted: the order of rows changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from evalspec.metrics.registry import Floats, Metric
from evalspec.metrics.resampling import SEED
from evalspec.metrics.totals import value_of

EXACT_UNITS = 13
SWAPS = 9_999
BLOCK = 2_000_000
"""Swaps are drawn in blocks of about so many numbers, so that memory stays small."""


def mcnemar(first: int, second: int) -> float:
    """McNemar's exact p-value, from the pairs that only the first model has right and those that only the second has.

    Equals `statsmodels.stats.contingency_tables.mcnemar(exact=True)` and the two-sided binomial test at ½.
    """
    discordant, fewer = first + second, min(first, second)
    tail = sum(math.comb(discordant, k) for k in range(fewer + 1))
    # Divided as whole numbers: 2 ** discordant has no float beyond 1,023 pairs.
    return min(1.0, 2 * tail / (1 << discordant))


def permutation(metric: Metric, a: Floats, b: Floats) -> float:
    """The p-value of a metric's difference between two models, by swapping: a, b (m, k) are the sums of m units."""
    differing = (a != b).any(axis=1)
    k = int(differing.sum())
    if k == 0:
        return 1.0
    rows = np.column_stack((a, b))[differing]
    rows = rows[np.lexsort(rows.T[::-1])]
    half = a.shape[1]
    change = rows[:, half:] - rows[:, :half]
    total_a, total_b = a.sum(0), b.sum(0)

    def differences(swaps: Floats) -> Floats:
        moved = swaps @ change
        apart: Floats = value_of(metric, total_a + moved) - value_of(metric, total_b - moved)
        return np.abs(apart)

    observed = float(differences(np.zeros((1, k)))[0])
    least = observed * (1 - 1e-9)  # a swap that ends where it began must count as equal, whatever the rounding
    if k <= EXACT_UNITS:
        every = (np.arange(2**k)[:, None] >> np.arange(k) & 1).astype(np.float64)
        return float((differences(every) >= least).mean())
    hits = sum(int((differences(swaps) >= least).sum()) for swaps in _drawn(k))
    return (1 + hits) / (1 + SWAPS)


def _drawn(k: int) -> Iterator[Floats]:
    rng = np.random.default_rng(SEED + k)
    block = max(1, BLOCK // k)
    for start in range(0, SWAPS, block):
        yield rng.integers(2, size=(min(block, SWAPS - start), k)).astype(np.float64)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's adjusted p-values, in the order given; what is None has no part in the family.

    Equals `statsmodels.stats.multitest.multipletests(method="holm")`.
    """
    known = sorted((p, at) for at, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    reached = 0.0
    for rank, (p, at) in enumerate(known):
        reached = max(reached, min(1.0, p * (len(known) - rank)))
        adjusted[at] = reached
    return adjusted
