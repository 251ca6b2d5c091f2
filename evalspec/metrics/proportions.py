"""The 95 % interval of a proportion: Clopper and Pearson's with half the probability of what was seen (mid-p).

With x of n right, the ends are the shares π at which P(X > x) + ½ P(X = x) is 2.5 % and 97.5 % (Lancaster 1961; Berry
and Armitage 1995). Written with the incomplete beta function they exist for numbers that are not whole, so clustered
scores use them at an effective sample size (Korn and Graubard 1998). Why this one stands in docs/statistics.md, with
the coverage of Wilson's, Jeffreys', Blaker's and the exact interval beside it.
"""

from __future__ import annotations

from functools import lru_cache

from evalspec.metrics.resampling import TAIL


@lru_cache(maxsize=65_536)
def proportion_interval(share: float, n: float) -> tuple[float, float]:
    """The mid-p interval of a share of n trials (n may be an effective size): from 0 for none, to 1 for all."""
    from scipy.optimize import brentq
    from scipy.special import betainc

    right, wrong = share * n, n - share * n
    if share <= 0:
        right, wrong = 0.0, n
    elif share >= 1:
        right, wrong = n, 0.0

    def as_many(chance: float) -> float:
        """P(X > x) + ½ P(X = x) at this chance."""
        at_least = 1.0 if right == 0 else betainc(right, wrong + 1, chance)
        above = 0.0 if wrong == 0 else betainc(right + 1, wrong, chance)
        return float(at_least + above) / 2

    low = 0.0 if right == 0 else brentq(lambda chance: as_many(chance) - TAIL, 0.0, 1.0, xtol=1e-14)
    high = 1.0 if wrong == 0 else brentq(lambda chance: as_many(chance) - (1 - TAIL), 0.0, 1.0, xtol=1e-14)
    return float(min(low, share)), float(max(high, share))
