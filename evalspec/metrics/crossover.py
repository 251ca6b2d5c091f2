"""From which length on one model is faster, or smaller, than another: computed from `measurements` alone.

Each point is the median of its repeats with an interval from order statistics: the chance that the k-th smallest and
the k-th largest of n values enclose the true median is 1 − 2 P(Binomial(n, ½) < k), whatever the values' distribution.
The widest interval, k = 1, reaches 95 % from 6 repeats on. (A percentile bootstrap of a median is narrower and covers
less: 88 % for 7 values.) State bytes do not vary, and their interval is a point.

A model is ahead at a length where its interval lies wholly below the other's. It is ahead *from a length on* if it is
so there and at every longer length that was measured for both: where those of the longest overlap, nothing is said.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

Quantity = Literal["prefill", "decode", "state"]
QUANTITIES: tuple[Quantity, ...] = ("prefill", "decode", "state")
"""Seconds of prefill, seconds between two new tokens of one sequence, bytes of one sequence's state."""

LEVEL = 0.95
LEAST_LEVEL = 0.9
"""Intervals that cover less than this separate nothing (fewer than 5 repeats)."""


@dataclass(frozen=True)
class Median:
    """The median of n repeats, an interval for it, and the chance with which such an interval covers it."""

    value: float
    low: float
    high: float
    n: int
    level: float

    def below(self, other: Median) -> bool:
        """Whether it is smaller, by intervals that do not overlap and that cover enough."""
        return min(self.level, other.level) >= LEAST_LEVEL and self.high < other.low


def median_interval(values: Sequence[float]) -> Median:
    """The median and its narrowest interval of order statistics that covers 95 %; the widest where none does."""
    ordered, n = sorted(values), len(values)
    if not n:
        raise ValueError("no values have no median")
    k = max([1, *(k for k in range(1, (n + 1) // 2 + 1) if coverage(n, k) >= LEVEL)])
    middle = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    return Median(middle, ordered[k - 1], ordered[n - k], n, coverage(n, k))


def coverage(n: int, k: int) -> float:
    """Chance that the k-th smallest and the k-th largest of n values enclose the median of their distribution."""
    return 1.0 - 2.0 * sum(math.comb(n, i) for i in range(k)) / 2.0**n


Series = Mapping[int, Median]
"""Length → median."""


def series_of(rows: Iterable[Mapping[str, Any]], quantity: Quantity) -> dict[str, dict[int, Median]]:
    """Model → length → median, of one sequence alone. Rows are those of `measurements`, with the model as `label`."""
    found: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        if row["seconds"] is None or row["batch"] != 1:
            continue
        if quantity == "state":
            value = row["state_bytes"]
        elif row["kind"] != quantity or not row["tokens"]:
            continue
        else:
            value = row["seconds"] if quantity == "prefill" else row["seconds"] / row["tokens"]
        if value is not None:
            found.setdefault(row["label"], {}).setdefault(row["length"], []).append(float(value))
    exact = quantity == "state"
    return {
        label: {n: _exact(values) if exact else median_interval(values) for n, values in sorted(lengths.items())}
        for label, lengths in found.items()
    }


def _exact(values: Sequence[float]) -> Median:
    return Median(max(values), max(values), max(values), len(values), 1.0)


@dataclass(frozen=True)
class Crossover:
    """How two models compare in one quantity over the lengths that were measured for both.

    `ahead` is None where the longest length does not separate them. Otherwise it is ahead from `start` on, which is the
    first of `lengths` where nothing stands against it; `until` is the longest length below, if any, at which the other
    one was ahead: between the two their curves cross.
    """

    quantity: Quantity
    ahead: str | None
    behind: str | None
    pair: tuple[str, str]
    lengths: tuple[int, ...]
    start: int | None = None
    until: int | None = None


def crossover(quantity: Quantity, a: tuple[str, Series], b: tuple[str, Series]) -> Crossover | None:
    """Compare two models, None if no length was measured for both."""
    (first, mine), (second, theirs) = a, b
    lengths = tuple(sorted(set(mine) & set(theirs)))
    if not lengths:
        return None
    pair = (first, second)
    for ahead, behind, x, y in ((first, second, mine, theirs), (second, first, theirs, mine)):
        if not x[lengths[-1]].below(y[lengths[-1]]):
            continue
        start = lengths[-1]
        for length in reversed(lengths):
            if not x[length].below(y[length]):
                break
            start = length
        lost = [length for length in lengths if length < start and y[length].below(x[length])]
        return Crossover(quantity, ahead, behind, pair, lengths, start, max(lost, default=None))
    return Crossover(quantity, None, None, pair, lengths)


def crossovers(rows: Sequence[Mapping[str, Any]]) -> list[Crossover]:
    """Every pair of models in every quantity. Only what ran on the same device is compared (bytes always are): no times
    of a model whose run went on on another."""
    devices: dict[str, set[str]] = {}
    for row in rows:
        if row["seconds"] is not None:
            devices.setdefault(row["label"], set()).add(row["device"])
    found = []
    for quantity in QUANTITIES:
        for a, b in combinations(series_of(rows, quantity).items(), 2):
            if quantity == "state" or len(devices[a[0]] | devices[b[0]]) == 1:
                found.append(crossover(quantity, a, b))
    return [one for one in found if one is not None]


WORDS: Mapping[Quantity, str] = {
    "prefill": "is faster at prefill",
    "decode": "is faster at decoding",
    "state": "keeps fewer bytes of state",
}


def verdict_rows(found: Iterable[Crossover]) -> list[dict[str, Any]]:
    """Rows of the table `verdicts`, two a pair. `statistic` is the length from which on the hypothesis holds, and the
    interval the lengths between which the curves cross: the longest that speaks against it, and that one."""
    rows: list[dict[str, Any]] = []
    for one in found:
        for model, other in (one.pair, one.pair[::-1]):
            holds = one.ahead == model
            below = [length for length in one.lengths if one.start is not None and length < one.start]
            rows.append(
                {
                    "hypothesis": f"{model} {WORDS[one.quantity]} than {other} from a length on",
                    "statistic": float(one.start) if holds and one.start is not None else None,
                    "ci_low": float(below[-1]) if holds and below else None,
                    "ci_high": float(one.start) if holds and one.start is not None else None,
                    "verdict": "undecided" if one.ahead is None else "supported" if holds else "refuted",
                }
            )
    return rows
