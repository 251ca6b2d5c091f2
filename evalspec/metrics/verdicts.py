"""What a paired comparison lets one say of "A is better than B": supported, refuted or undecided, and why undecided.

    floor      both models are at the floor: within chance's reach (the interval of each holds chance or lies below it),
               or within 2 points of it
    ceiling    both are at the ceiling: the interval of each reaches 1, or they are within 2 points of it
    overlap    the difference's interval holds 0, or Holm's p-value is 0.05 or more
    undefined  there is no p-value: nothing shared, a single unit, an infinite value

At the floor and the ceiling a difference is undecided whatever its p-value: there the task cannot show what the models
can do. They exist for scores between 0 and 1 of which more is better; chance is 0 unless the task has choices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from evalspec.metrics.intervals import Aggregate
from evalspec.metrics.paired import Paired
from evalspec.metrics.registry import Metric

Word = Literal["supported", "refuted", "undecided"]
Reason = Literal["floor", "ceiling", "overlap", "undefined"]

LEVEL = 0.05
EDGE = 0.02
"""So near to chance or to 1 a model counts as being there."""


@dataclass(frozen=True)
class Verdict:
    """The word, and the reason where it is `undecided`."""

    word: Word
    reason: Reason | None = None


def judge(metric: Metric, pair: Paired, p_holm: float | None, chance: float = 0.0) -> Verdict:
    """The verdict on "A is better than B", A and B as in the pair; `chance` is what a guess among choices would get."""
    if pair.difference is None or pair.ci_low is None or pair.ci_high is None or p_holm is None:
        return Verdict("undecided", "undefined")
    if bounded(metric):
        if _at_floor(pair.a, chance) and _at_floor(pair.b, chance):
            return Verdict("undecided", "floor")
        if _at_ceiling(pair.a) and _at_ceiling(pair.b):
            return Verdict("undecided", "ceiling")
    if p_holm >= LEVEL or pair.ci_low <= 0 <= pair.ci_high:
        return Verdict("undecided", "overlap")
    return Verdict("supported" if (pair.difference > 0) == metric.declaration.higher_is_better else "refuted")


def bounded(metric: Metric) -> bool:
    """Whether the metric has a floor and a ceiling: scores between 0 and 1, more is better."""
    return metric.values != "real" and metric.aggregation == "mean" and metric.declaration.higher_is_better


def _at_floor(own: Aggregate, chance: float) -> bool:
    return own.value is not None and (own.value <= chance + EDGE or (own.ci_low is not None and own.ci_low <= chance))


def _at_ceiling(own: Aggregate) -> bool:
    return own.value is not None and (own.value >= 1 - EDGE or (own.ci_high is not None and own.ci_high >= 1))
