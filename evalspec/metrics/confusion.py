"""Metrics of all choices of a task together, from which was right and which was taken: F1 and Matthews' correlation.

The choice taken is the one with the greatest summed log-probability, the first of equals. Of several right choices the
taken one counts as right if it is among them, else the first. They are no means: what the table `scores` shows for one
sample is whether it was right. Absent where no choice is right, or where a log-probability is missing or not a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from evalspec.metrics.outcome import Outcome, Score
from evalspec.metrics.registry import METRIC_FUNCTIONS, Corpus, Floats, Metric
from evalspec.spec.needs import METRICS

MOST_CHOICES = 32

Parts = Callable[[int, int], tuple[float, ...] | None]


def of_confusion(function: Callable[[], tuple[Parts, Corpus]]) -> Callable[[], tuple[Parts, Corpus]]:
    """Enter what makes (parts of right and taken choice, how they are summed) as the metric of the function's name."""
    parts_of, corpus = function()

    def measure(outcome: Outcome, k: int | None) -> Score | None:
        logprobs, gold = outcome.choice_logprobs, outcome.gold_choices
        if not logprobs or len(logprobs) != len(outcome.choices) or not gold or any(map(math.isnan, logprobs)):
            return None
        taken = max(range(len(logprobs)), key=logprobs.__getitem__)
        parts = parts_of(taken if taken in gold else min(gold), taken)
        return None if parts is None else Score(float(taken in gold), parts=parts)

    name = function.__name__
    METRIC_FUNCTIONS.register(name)(Metric(METRICS[name], measure, function.__doc__ or "", "real", "corpus", corpus))
    return function


@of_confusion
def f1() -> tuple[Parts, Corpus]:
    """F1 of the second choice, the positive class: 2 · hits / (2 · hits + false alarms + misses), 0 to 1.

    Equals `f1` of lm-evaluation-harness 0.4 and `sklearn.metrics.f1_score` of two classes; 0 where nothing is positive.
    """

    def parts_of(right: int, taken: int) -> tuple[float, ...]:
        return float(right == taken == 1), float(taken == 1), float(right == 1)

    def value(totals: Floats) -> Floats:
        hits, taken, right = totals.T
        return _divided(2 * hits, taken + right)

    return parts_of, Corpus(lambda parts: parts, value, (0.0, 1.0))


@of_confusion
def mcc() -> tuple[Parts, Corpus]:
    """Matthews' correlation of the choices taken with the right ones, −1 to 1; 0 is chance, of classes of any size.

    With n samples, c of them right, and choice k taken t_k and right r_k times (Gorodkin 2004):
    (c · n − Σ t_k r_k) / √((n² − Σ t_k²) (n² − Σ r_k²)). Equals `mcc` of lm-evaluation-harness 0.4 and
    `sklearn.metrics.matthews_corrcoef`; 0 where one choice is always right, or always taken. For at most 32 choices:
    a sample where a later one is right or taken is left out.
    """

    def parts_of(right: int, taken: int) -> tuple[float, ...] | None:
        return (float(right), float(taken)) if max(right, taken) < MOST_CHOICES else None

    def terms(parts: Floats) -> Floats:
        """(n, 2) → (n, 2 + 2 · MOST_CHOICES): one, right or wrong, and ones in the places of both choices."""
        places, rows = parts.astype(np.int64), np.arange(len(parts))
        made = np.zeros((len(parts), 2 + 2 * MOST_CHOICES))
        made[:, 0], made[:, 1] = 1, places[:, 0] == places[:, 1]
        made[rows, 2 + places[:, 0]] = 1
        made[rows, 2 + MOST_CHOICES + places[:, 1]] = 1
        return made

    def value(totals: Floats) -> Floats:
        n, c, right, taken = totals[:, 0], totals[:, 1], totals[:, 2 : 2 + MOST_CHOICES], totals[:, 2 + MOST_CHOICES :]
        spread = (n**2 - (taken**2).sum(1)) * (n**2 - (right**2).sum(1))
        return _divided(c * n - (taken * right).sum(1), np.sqrt(spread))

    return parts_of, Corpus(terms, value, (-1.0, 1.0))


def _divided(above: Floats, below: Floats) -> Floats:
    """above / below, 0 where below is 0."""
    quotient: Floats = np.divide(above, below, out=np.zeros_like(above), where=below != 0)
    return quotient
