"""Metrics of the probabilities that a model gives to the choices: softmax over the summed log-probabilities.

They ask whether a model knows what it knows, which accuracy does not. Absent where no choice is right, and where a
log-probability is missing, not a number, or minus infinity for every choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from evalspec.metrics.outcome import Outcome, Score
from evalspec.metrics.registry import METRIC_FUNCTIONS, Corpus, Floats, Metric, Values
from evalspec.spec.needs import METRICS

BINS = 15

ProbabilityFunction = Callable[[Floats, frozenset[int]], float]


def of_probabilities(values: Values) -> Callable[[ProbabilityFunction], ProbabilityFunction]:
    """Enter a function of (probabilities of the choices, gold) as the metric of its own name."""

    def enter(function: ProbabilityFunction) -> ProbabilityFunction:
        def measure(outcome: Outcome, k: int | None) -> Score | None:
            probabilities = choice_probabilities(outcome)
            return None if probabilities is None else Score(function(probabilities, outcome.gold_choices))

        name = function.__name__
        METRIC_FUNCTIONS.register(name)(Metric(METRICS[name], measure, function.__doc__ or "", values))
        return function

    return enter


def choice_probabilities(outcome: Outcome) -> Floats | None:
    """Softmax over the choices' summed log-probabilities; None where the metrics of this file are absent."""
    logprobs = np.array(outcome.choice_logprobs, np.float64)
    if not len(logprobs) or len(logprobs) != len(outcome.choices) or not outcome.gold_choices:
        return None
    if np.isnan(logprobs).any() or not np.isfinite(logprobs.max()):
        return None
    unscaled: Floats = np.exp(logprobs - logprobs.max())
    probabilities: Floats = unscaled / unscaled.sum()
    return probabilities


@of_probabilities("unit")
def choice_probability(probabilities: Floats, gold: frozenset[int]) -> float:
    """Probability of the right choice among the choices (of all right ones together, where several are)."""
    return min(1.0, float(probabilities[sorted(gold)].sum()))


@of_probabilities("real")
def log_loss(probabilities: Floats, gold: frozenset[int]) -> float:
    """−log of `choice_probability`, in nats; infinite where a right choice was held impossible.

    Its mean equals `sklearn.metrics.log_loss` where one choice is right.
    """
    held = choice_probability(probabilities, gold)
    return -math.log(held) if held > 0 else math.inf


@of_probabilities("real")
def brier(probabilities: Floats, gold: frozenset[int]) -> float:
    """Σ over choices of (probability − y)², y being 1 for the right choice and 0 else: 0 is best, 2 is worst.

    Its mean is Brier's (1950), and equals `brier_score` of lm-evaluation-harness 0.4. With several right choices y is
    shared equally among them.
    """
    right = np.zeros(len(probabilities))
    right[sorted(gold)] = 1 / len(gold)
    return float(((probabilities - right) ** 2).sum())


def _expected_calibration_error(outcome: Outcome, k: int | None) -> Score | None:
    """Σ over bins of (samples in the bin / n) · |accuracy − mean confidence|: 0 is best (Guo and others 2017).

    Confidence is the probability of the likeliest choice, which is right or not; 15 bins of equal width, (0, 1/15] to
    (14/15, 1]. Over all samples together; for one sample by itself it is |right − confidence|. With few samples a bin
    it is biased upwards, also for a calibrated model: compare it only at the same n.
    """
    probabilities = choice_probabilities(outcome)
    if probabilities is None:
        return None
    confidence, right = float(probabilities.max()), float(int(probabilities.argmax()) in outcome.gold_choices)
    return Score(abs(right - confidence), parts=(confidence, right))


def _in_bins(parts: Floats) -> Floats:
    """(n, 2) of confidence and right or wrong → (n, 1 + BINS): one, and right − confidence in the place of its bin."""
    place = np.clip(np.ceil(parts[:, 0] * BINS).astype(np.int64) - 1, 0, BINS - 1)
    terms = np.zeros((len(parts), 1 + BINS))
    terms[:, 0] = 1
    terms[np.arange(len(parts)), 1 + place] = parts[:, 1] - parts[:, 0]
    return terms


def _calibration_error(totals: Floats) -> Floats:
    # n_bin / n · |Σ right / n_bin − Σ confidence / n_bin| is |Σ (right − confidence)| / n: the bin's own n falls out.
    errors: Floats = np.abs(totals[:, 1:]).sum(1) / totals[:, 0]
    return errors


METRIC_FUNCTIONS.register("expected_calibration_error")(
    Metric(
        METRICS["expected_calibration_error"],
        _expected_calibration_error,
        _expected_calibration_error.__doc__ or "",
        "real",
        "corpus",
        Corpus(_in_bins, _calibration_error, (0.0, 1.0)),
    )
)
