"""The 95 % interval of a proportion: Clopper and Pearson's with half the probability of what was seen (mid-p).

With x of n right, the ends are the shares π at which P(X > x) + ½ P(X = x) is 2.5 % and 97.5 % (Lancaster 1961; Berry
and Armitage 1995). Near 0 and 1 that falls short of 95 %, since one outcome then holds more than a tail: with none or
one right the upper end is the exact one, and with none or one wrong the lower end (as Brown, Cai and DasGupta 2001
modify Jeffreys'). Written with the incomplete beta function the ends exist for numbers that
are not whole, so clustered scores use them at an effective sample size (Korn and Graubard 1998). Why this one stands in
docs/statistics.md, with the coverage of five others beside it.
"""

from __future__ import annotations

from functools import lru_cache

from evalspec.metrics.resampling import TAIL

FEW = 1
"""Up to so many right (wrong) the upper (lower) end is exact, from one more on it is mid-p; in between it is both."""


@lru_cache(maxsize=65_536)
def proportion_interval(share: float, n: float) -> tuple[float, float]:
    """The interval of a share of n trials (n may be an effective size): from 0 for none, to 1 for all."""
    right, wrong = share * n, n - share * n
    if share <= 0:
        right, wrong = 0.0, n
    elif share >= 1:
        right, wrong = n, 0.0
    low, high = _low(right, wrong), 1 - _low(wrong, right)
    return float(min(low, share)), float(max(high, share))


def _low(right: float, wrong: float) -> float:
    """The chance of being right at which P(X > x) + w P(X = x) is 2.5 %, w from ½ (mid-p) to 1 (exact)."""
    from scipy.optimize import brentq
    from scipy.special import betainc

    if right == 0:
        return 0.0
    own = 0.5 + 0.5 * min(max(FEW + 1 - wrong, 0.0), 1.0)

    def as_many(chance: float) -> float:
        at_least = betainc(right, wrong + 1, chance)
        above = 0.0 if wrong == 0 else betainc(right + 1, wrong, chance)
        return float(own * at_least + (1 - own) * above)

    return float(brentq(lambda chance: as_many(chance) - TAIL, 0.0, 1.0, xtol=1e-14))
