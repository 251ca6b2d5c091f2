"""Metrics of a generated answer against the right ones, after SQuAD's normalisation (arXiv 1606.05250) or literally.

With several targets the best one counts. Absent where nothing was generated or there is no target.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

from evalspec.metrics.outcome import Outcome, Score
from evalspec.metrics.registry import METRIC_FUNCTIONS, Metric, Values
from evalspec.patterns import replaced
from evalspec.prompting.squad import normalise
from evalspec.spec.metric import MetricBlock
from evalspec.spec.needs import METRICS

TextFunction = Callable[[str, Sequence[str]], float]

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NO_DIGITS = str.maketrans("", "", string.digits)


def of_output(values: Values) -> Callable[[TextFunction], TextFunction]:
    """Enter a function of (prediction, targets) as the metric of its own name."""

    def enter(function: TextFunction) -> TextFunction:
        def measure(outcome: Outcome, k: int | None) -> Score | None:
            if outcome.output is None or not outcome.targets:
                return None
            return Score(function(outcome.output, outcome.targets))

        name = function.__name__
        METRIC_FUNCTIONS.register(name)(Metric(METRICS[name], measure, function.__doc__ or "", values))
        return function

    return enter


def exact_match(prediction: str, targets: Sequence[str]) -> float:
    """1.0 when the prediction equals a target after SQuAD's normalisation, else 0.0.

    Equals `exact_match` of the SQuAD evaluation (and of `evaluate.load("squad")`, there in percent). Two texts that
    normalisation empties are equal. It leaves nothing of the letter A, an article, and takes the minus sign from −5;
    `evalspec plan` names right answers that it spoils so, and `literal: true` compares them as they are.

    With `literal` or one of the `ignore_…` options the texts are compared as they are, but for what these leave out:
    the `exact_match` of `evaluate.load("exact_match")` and of lm-evaluation-harness 0.4. First go the matches of
    `regexes_to_ignore`, then case, punctuation (ASCII) and digits (ASCII).
    """
    return float(normalise(prediction) in {normalise(target) for target in targets})


def literal_match(prediction: str, targets: Sequence[str], options: MetricBlock) -> float:
    """1.0 when the prediction equals a target but for what the options leave out, else 0.0."""

    def left(text: str) -> str:
        for pattern in options.regexes_to_ignore:
            text = replaced(re.compile(pattern), "", text)
        text = text.lower() if options.ignore_case else text
        text = text.translate(_NO_PUNCTUATION) if options.ignore_punctuation else text
        text = text.translate(_NO_DIGITS) if options.ignore_numbers else text
        return text.rstrip("\0")  # the harness compares numpy's texts, which end before trailing NULs

    return float(left(prediction) in {left(target) for target in targets})


def _exact_match(outcome: Outcome, options: MetricBlock | None) -> Score | None:
    if outcome.output is None or not outcome.targets:
        return None
    if options is not None:
        return Score(literal_match(outcome.output, outcome.targets, options))
    return Score(exact_match(outcome.output, outcome.targets))


METRIC_FUNCTIONS.register("exact_match")(
    Metric(
        METRICS["exact_match"],
        lambda outcome, k: _exact_match(outcome, None),
        exact_match.__doc__ or "",
        "binary",
        measure_with=_exact_match,
    )
)


@of_output("unit")
def token_f1(prediction: str, targets: Sequence[str]) -> float:
    """Best F1 of bag-of-words overlap with any target, after SQuAD's normalisation.

    1.0 when both are empty, 0.0 when one is. Equals `compute_f1` of the SQuAD v2.0 evaluation; v1.1's `f1_score`
    differs in one point: it gives 0 when both are empty.
    """
    words = Counter(normalise(prediction).split())
    return max(_overlap_f1(words, Counter(normalise(target).split())) for target in targets)


@of_output("binary")
def contains(prediction: str, targets: Sequence[str]) -> float:
    """1.0 when a target stands somewhere in the prediction, both after SQuAD's normalisation, else 0.0.

    Equals `best_subspan_em` of Lost in the Middle (arXiv 2307.03172): characters are compared, so `12` contains `2`.
    One difference: a target that normalisation empties is found in an empty prediction only, not in every one.
    """
    normal = normalise(prediction)
    return float(any(normal == target or (target and target in normal) for target in map(normalise, targets)))


@of_output("unit")
def contains_all(prediction: str, targets: Sequence[str]) -> float:
    """Share of the targets that stand somewhere in the prediction, each judged as `contains` does.

    For questions with several answers that are all wanted. RULER's `string_match_all` is it without the normalisation
    (there characters are lowered and nothing else).
    """
    return sum(contains(prediction, [target]) for target in targets) / len(targets)


def _overlap_f1(prediction: Counter[str], target: Counter[str]) -> float:
    if not prediction or not target:
        return float(prediction == target)
    shared = (prediction & target).total()
    return 2 * shared / (prediction.total() + target.total())  # the harmonic mean of shared/|p| and shared/|t|
