"""Metrics of a choice made by likelihood, as lm-evaluation-harness makes it.

Absent where no choice is right, or where a log-probability is missing or not a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from evalspec.metrics.outcome import Outcome, Score
from evalspec.metrics.registry import METRIC_FUNCTIONS, Metric
from evalspec.spec.needs import METRICS

ChoiceFunction = Callable[[Sequence[float], Sequence[str], frozenset[int]], float]


def of_choices(function: ChoiceFunction) -> ChoiceFunction:
    """Enter a function of (logprobs, choices, gold) as the metric of its own name."""

    def measure(outcome: Outcome, k: int | None) -> Score | None:
        logprobs = outcome.choice_logprobs
        if not logprobs or len(logprobs) != len(outcome.choices) or not outcome.gold_choices:
            return None
        if any(math.isnan(logprob) for logprob in logprobs):
            return None  # a comparison with NaN would crown whatever stands first
        return Score(function(logprobs, outcome.choices, outcome.gold_choices))

    name = function.__name__
    METRIC_FUNCTIONS.register(name)(Metric(METRICS[name], measure, function.__doc__ or "", "binary"))
    return function


@of_choices
def accuracy(logprobs: Sequence[float], choices: Sequence[str], gold: frozenset[int]) -> float:
    """1.0 when the choice with the greatest summed log-probability is a right one, else 0.0; the first wins a tie.

    Equals `acc` of lm-evaluation-harness 0.4.
    """
    return float(_likeliest(logprobs) in gold)


@of_choices
def accuracy_norm(logprobs: Sequence[float], choices: Sequence[str], gold: frozenset[int]) -> float:
    """As `accuracy`, with each sum divided by the characters of its choice (without the delimiter).

    Equals `acc_norm` of lm-evaluation-harness 0.4. An empty choice has no characters and is never the likeliest.
    """
    lengths = [len(choice) for choice in choices]
    return float(_likeliest([p / n if n else -math.inf for p, n in zip(logprobs, lengths, strict=True)]) in gold)


@of_choices
def accuracy_bytes(logprobs: Sequence[float], choices: Sequence[str], gold: frozenset[int]) -> float:
    """As `accuracy`, with each sum divided by the UTF-8 bytes of its choice (without the delimiter).

    Equals `acc_bytes` of lm-evaluation-harness 0.4. An empty choice has no bytes and is never the likeliest.
    """
    lengths = [len(choice.encode("utf-8", "surrogatepass")) for choice in choices]
    return float(_likeliest([p / n if n else -math.inf for p, n in zip(logprobs, lengths, strict=True)]) in gold)


def accuracy_pmi(outcome: Outcome, k: int | None = None) -> Score | None:
    """1.0 when the choice of the greatest pointwise mutual information with the prompt is a right one, else 0.0.

    That is log p(choice | prompt) − log p(choice), the latter behind the start token alone, so that a choice that is
    likely whatever is asked gains nothing by it (arXiv 2104.08315, which puts a premise of the domain in front of
    both). The first wins a tie. Each distinct choice is scored once more for it, in tasks that name this metric only.
    Equals `acc_mutual_info` of lm-evaluation-harness 0.4. Absent where a choice is impossible either way.
    """
    logprobs, alone = outcome.choice_logprobs, outcome.unconditional_logprobs
    if len(alone) != len(logprobs):
        return None
    gains = tuple(with_prompt - without for with_prompt, without in zip(logprobs, alone, strict=True))
    return METRIC_FUNCTIONS.get("accuracy").measure(replace(outcome, choice_logprobs=gains), k)


METRIC_FUNCTIONS.register("accuracy_pmi")(
    Metric(METRICS["accuracy_pmi"], accuracy_pmi, accuracy_pmi.__doc__ or "", "binary")
)


def _likeliest(logprobs: Sequence[float]) -> int:
    return max(range(len(logprobs)), key=logprobs.__getitem__)  # max keeps the first of equals
