"""F1 and Matthews' correlation against scikit-learn, summed over samples in any order, resampled with the rest."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from sklearn.metrics import f1_score, matthews_corrcoef

from evalspec.metrics import METRIC_FUNCTIONS, Aggregate, Outcome, Score, aggregate
from evalspec.metrics.paired import Scores, compare

THEIRS = {"f1": f1_score, "mcc": matthews_corrcoef}


def outcome(taken: int, *gold: int, choices: int = 2) -> Outcome:
    logprobs = [-2.0] * choices
    logprobs[taken] = -1.0
    return Outcome(choices=("?",) * choices, choice_logprobs=tuple(logprobs), gold_choices=frozenset(gold))


def scored(name: str, outcomes: list[Outcome]) -> list[Score]:
    scores = [METRIC_FUNCTIONS.get(name).score(o) for o in outcomes]
    return [score for score in scores if score is not None]


def found(name: str, outcomes: list[Outcome]) -> Aggregate:
    return aggregate(METRIC_FUNCTIONS.get(name), scored(name, outcomes), [str(at) for at in range(len(outcomes))])


@pytest.mark.parametrize(("name", "choices"), [("f1", 2), ("mcc", 2), ("mcc", 5)])
def test_they_agree_with_scikit_learn(name: str, choices: int) -> None:
    rng = np.random.default_rng(3)
    gold = rng.integers(choices, size=200)
    taken = np.where(rng.random(200) < 0.6, gold, rng.integers(choices, size=200))
    result = found(name, [outcome(int(t), int(g), choices=choices) for t, g in zip(taken, gold, strict=True)])
    expected = THEIRS[name](gold, taken)
    assert result.value == pytest.approx(expected, abs=1e-12)
    assert result.ci_low is not None and result.ci_high is not None
    assert result.ci_low < expected < result.ci_high and result.n == 200


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize(("taken", "gold"), [([0, 0], [0, 1]), ([0, 1], [0, 0]), ([0, 0], [0, 0])])
def test_what_is_undefined_is_0_as_there(name: str, taken: list[int], gold: list[int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = THEIRS[name](gold, taken)
    assert found(name, [outcome(t, g) for t, g in zip(taken, gold, strict=True)]).value == expected == 0


def test_of_several_right_choices_any_is_right_and_equals_are_the_first() -> None:
    assert found("mcc", [outcome(1, 0, 1), outcome(0, 0)]).value == 1
    [score] = scored("f1", [Outcome(choices=("a", "b"), choice_logprobs=(-1.0, -1.0), gold_choices=frozenset({1}))])
    assert score.value == 0 and score.parts == (0, 0, 1)


@pytest.mark.parametrize("name", THEIRS)
def test_they_are_absent_without_a_right_choice_or_a_number(name: str) -> None:
    assert not scored(name, [outcome(0), Outcome(choices=("a", "b"), gold_choices=frozenset({0}))])
    assert not scored(name, [Outcome(choices=("a",), choice_logprobs=(math.nan,), gold_choices=frozenset({0}))])
    assert len(scored(name, [outcome(33, 0, choices=40)])) == (name == "f1")


def test_models_are_compared_by_them_on_the_same_samples() -> None:
    rng = np.random.default_rng(4)
    gold = [int(g) for g in rng.integers(3, size=120)]
    sides = []
    for right in (0.9, 0.4):
        taken = [g if rng.random() < right else int(rng.integers(3)) for g in gold]
        outcomes = [outcome(t, g, choices=3) for t, g in zip(taken, gold, strict=True)]
        sides.append(Scores(scored("mcc", outcomes), [str(at) for at in range(120)], None))
    pair = compare(METRIC_FUNCTIONS.get("mcc"), *sides)
    assert pair.p_value is not None and pair.p_value < 0.01 and pair.ci_low is not None and pair.ci_low > 0
