"""Probabilities of choices against scikit-learn and definitions written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import log_loss

from evalspec.metrics import METRIC_FUNCTIONS, Outcome, Score, aggregate

NAMES = ("choice_probability", "log_loss", "brier", "expected_calibration_error")


def outcome(lls: list[float], *gold: int) -> Outcome:
    return Outcome(choices=tuple("abcde")[: len(lls)], choice_logprobs=tuple(lls), gold_choices=frozenset(gold))


def value(name: str, shown: Outcome) -> float:
    score = METRIC_FUNCTIONS.get(name).score(shown)
    assert score is not None
    return score.value


def test_they_agree_with_scikit_learn_and_with_the_definitions() -> None:
    rng = np.random.default_rng(1)
    logits, gold = rng.normal(0, 3, (80, 4)) - 20, rng.integers(4, size=80)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    shown = [outcome(list(row), int(right)) for row, right in zip(logits, gold, strict=True)]
    assert np.mean([value("log_loss", o) for o in shown]) == pytest.approx(log_loss(gold, probabilities))
    assert [value("choice_probability", o) for o in shown] == pytest.approx(list(probabilities[range(80), gold]))
    brier = ((probabilities - np.eye(4)[gold]) ** 2).sum(1).mean()
    assert np.mean([value("brier", o) for o in shown]) == pytest.approx(brier)


def test_the_calibration_error_is_that_of_its_bins() -> None:
    rng = np.random.default_rng(2)
    logits, gold = rng.normal(0, 2, (300, 4)), rng.integers(4, size=300)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == gold
    expected = 0.0
    for bin_ in range(15):
        inside = (confidence > bin_ / 15) & (confidence <= (bin_ + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    metric = METRIC_FUNCTIONS.get("expected_calibration_error")
    scores = [metric.score(outcome(list(row), int(g))) for row, g in zip(logits, gold, strict=True)]
    found = aggregate(metric, scores, [str(at) for at in range(300)])
    assert found.value == pytest.approx(expected) and found.ci_low < expected < found.ci_high
    assert found.n == 300 and 0 < (found.stderr or 0) < 0.1


def test_its_interval_ends_where_there_are_no_errors() -> None:
    metric, rng = METRIC_FUNCTIONS.get("expected_calibration_error"), np.random.default_rng(3)
    logits = np.log([[0.5, 0.3, 0.2]] * 120)
    gold = rng.choice(3, 120, p=[0.5, 0.3, 0.2])  # as confident as right
    scores = [metric.score(outcome(list(row), int(g))) for row, g in zip(logits, gold, strict=True)]
    found = aggregate(metric, scores, [str(at) for at in range(120)])
    assert found.ci_low == 0 and found.value is not None and 0 <= found.value < 0.05


def test_the_edges() -> None:
    assert value("log_loss", outcome([-math.inf, -1.0], 0)) == math.inf
    assert value("choice_probability", outcome([-2.0, -2.0, -2.0, -2.0], 1, 3)) == pytest.approx(0.5)
    assert value("brier", outcome([0.0, -math.inf], 0)) == 0 and value("brier", outcome([0.0, -math.inf], 1)) == 2
    for name in NAMES:
        metric = METRIC_FUNCTIONS.get(name)
        assert metric.score(outcome([-1.0, math.nan], 0)) is None
        assert metric.score(outcome([-math.inf, -math.inf], 0)) is None
        assert metric.score(outcome([-1.0, -2.0])) is None


def test_accuracy_per_byte_counts_bytes() -> None:
    shown = Outcome(choices=("éé", "abc"), choice_logprobs=(-4.0, -3.3), gold_choices=frozenset({0}))
    assert METRIC_FUNCTIONS.get("accuracy_bytes").score(shown) == Score(1.0)  # −1.0 a byte against −1.1
    assert METRIC_FUNCTIONS.get("accuracy_norm").score(shown) == Score(0.0)  # −2.0 a character against −1.1


def test_bits_per_byte_are_the_base_two_logarithm_of_byte_perplexity() -> None:
    shown = [Outcome(target_logprob=-p, target_tokens=3, target_text=t) for p, t in ((4.0, "abcd"), (9.0, "zwölf"))]
    found = {}
    for name in ("bits_per_byte", "byte_perplexity"):
        metric = METRIC_FUNCTIONS.get(name)
        found[name] = aggregate(metric, [metric.score(o) for o in shown], ["x", "y"])
    assert found["bits_per_byte"].value == pytest.approx(math.log2(found["byte_perplexity"].value))
    assert found["bits_per_byte"].value == pytest.approx(13 / 10 / math.log(2))
