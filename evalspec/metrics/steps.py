"""Metrics of written steps against the right ones (`prompt.steps`), compared place by place.

They look at what the filter left of the output: the steps stand before the last `end` (`Answer:`), split at
`separator`; white space runs count as one space, a full stop behind a step does not count. What stands behind `end` is
the answer.
Absent where nothing was generated or the row has no right steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest

from evalspec.metrics.outcome import Outcome, Score
from evalspec.metrics.registry import METRIC_FUNCTIONS, Metric, Values
from evalspec.metrics.text import exact_match
from evalspec.prompting.steps import steps
from evalspec.spec.needs import METRICS

StepsFunction = Callable[[Sequence[str], Sequence[str], bool], float | None]


def of_steps(values: Values) -> Callable[[StepsFunction], StepsFunction]:
    """Enter a function of (written steps, right steps, whether the answer is right) as the metric of its own name."""

    def enter(function: StepsFunction) -> StepsFunction:
        def measure(outcome: Outcome, k: int | None) -> Score | None:
            if outcome.output is None or not outcome.steps:
                return None
            written = steps(outcome.output, outcome.step_separator, outcome.steps_end)
            _, found, answer = outcome.output.rpartition(outcome.steps_end)
            right = bool(found and outcome.targets and exact_match(answer, outcome.targets))
            value = function(written, [" ".join(step.split()).rstrip(".") for step in outcome.steps], right)
            return None if value is None else Score(value)

        name = function.__name__
        METRIC_FUNCTIONS.register(name)(Metric(METRICS[name], measure, function.__doc__ or "", values))
        return function

    return enter


@of_steps("unit")
def steps_correct(written: Sequence[str], right: Sequence[str], answered: bool) -> float:
    """The share of steps that are right: equal steps at equal places, over the steps of the longer of the two.

    Steps too many count as wrong, like missing ones: nothing is won by writing more.
    """
    same = sum(mine == theirs for mine, theirs in zip(written, right, strict=False))
    return same / max(len(written), len(right))


@of_steps("real")
def first_wrong_step(written: Sequence[str], right: Sequence[str], answered: bool) -> float | None:
    """The place, from 1, of the first step that is wrong, missing or too much.

    Absent where every step is right, so that its mean is over the outputs that go wrong, and its n is how many do.
    """
    places = enumerate(zip_longest(written, right), start=1)
    return next((float(place) for place, (mine, theirs) in places if mine != theirs), None)


@of_steps("binary")
def right_answer_wrong_steps(written: Sequence[str], right: Sequence[str], answered: bool) -> float:
    """1.0 where the answer behind the steps equals a target (as `exact_match` does) although a step is wrong.

    The answer then does not come from what is written. 0.0 where the answer is wrong, or every step is right.
    """
    return float(answered and list(written) != list(right))
