"""Text metrics equal the published evaluations, re-stated here as their papers' scripts define them."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalspec.metrics import METRIC_FUNCTIONS, Outcome, Score
from evalspec.metrics.text import contains, exact_match, token_f1
from evalspec.prompting.squad import normalise, spoiled

answers = st.text(alphabet="aAn thecatsX.,'-—é0\n", max_size=12)


def squad_normalisation(text: str) -> str:
    """The four steps of the SQuAD script, in its order, written without the regular implementation's tools."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    for article in ("a", "an", "the"):
        text = re.sub(rf"(?<!\w){article}(?!\w)", " ", text)
    return " ".join(text.split())


@given(answers)
def test_normalisation_takes_the_steps_of_squad_in_its_order(text: str) -> None:
    assert normalise(text) == squad_normalisation(text)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Denver Broncos.", "denver broncos"),
        ("Santa Clara, California", "santa clara california"),
        ("a-the", "athe"),
        ("an ant at the theatre", "ant at theatre"),
        ("U.S.A.", "usa"),
        ("«é»", "«é»"),
        ("the.", ""),
    ],
)
def test_worked_examples_of_normalisation(text: str, normal: str) -> None:
    assert normalise(text) == normal


@pytest.mark.parametrize(
    ("prediction", "targets", "em", "f1"),
    [
        ("Denver Broncos", ["Denver Broncos", "the Broncos"], 1.0, 1.0),
        ("The Broncos!", ["Denver Broncos"], 0.0, 2 / 3),
        ("gold anniversary in gold", ["gold"], 0.0, 2 / 5),
        ("gold gold", ["gold gold gold"], 0.0, 4 / 5),
        ("blue", ["gold"], 0.0, 0.0),
        ("", ["gold"], 0.0, 0.0),
        ("gold", [""], 0.0, 0.0),
        ("the", [""], 1.0, 1.0),
    ],
)
def test_worked_examples_of_squad(prediction: str, targets: list[str], em: float, f1: float) -> None:
    assert exact_match(prediction, targets) == em
    assert token_f1(prediction, targets) == pytest.approx(f1)


@given(answers, st.lists(answers, min_size=1, max_size=4))
def test_scores_stay_in_bounds_and_ignore_the_order_of_targets(prediction: str, targets: list[str]) -> None:
    for function in (exact_match, token_f1, contains):
        assert 0.0 <= function(prediction, targets) <= 1.0
        assert function(prediction, targets) == function(prediction, targets[::-1])
    assert exact_match(prediction, targets) <= token_f1(prediction, targets)
    assert exact_match(prediction, targets) <= contains(prediction, targets)


@given(answers, answers)
def test_token_f1_is_the_harmonic_mean_of_precision_and_recall(prediction: str, target: str) -> None:
    said, right = squad_normalisation(prediction).split(), squad_normalisation(target).split()
    left = list(right)
    shared = 0
    for word in said:
        if word in left:
            left.remove(word)
            shared += 1
    if not said or not right:
        expected = float(said == right)
    elif shared == 0:
        expected = 0.0
    else:
        p, r = shared / len(said), shared / len(right)
        expected = 2 * p * r / (p + r)
    assert token_f1(prediction, [target]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "targets", "found"),
    [
        ("It was the Denver Broncos who won.", ["Denver Broncos"], 1.0),
        ("Broncos of Denver", ["Denver Broncos"], 0.0),
        ("It is 12.", ["2"], 1.0),
        ("anything", ["the"], 0.0),
        ("The.", ["a"], 1.0),
        ("anything", ["nothing", "any thing", "thing"], 1.0),
    ],
)
def test_contains_finds_a_target_anywhere(prediction: str, targets: list[str], found: float) -> None:
    assert contains(prediction, targets) == found


def test_without_an_output_or_a_target_the_text_metrics_are_absent() -> None:
    for name in ("exact_match", "token_f1", "contains"):
        metric = METRIC_FUNCTIONS.get(name)
        assert metric.score(Outcome(output=None, targets=("x",))) is None
        assert metric.score(Outcome(output="x")) is None
        assert metric.score(Outcome(output="X", targets=("x",))) == Score(1.0)
        assert metric.score(Outcome(output="", targets=("x",))) == Score(0.0)


def test_each_of_several_wanted_answers_counts() -> None:
    contains_all = METRIC_FUNCTIONS.get("contains_all")
    outcome = Outcome(output="Anna and the Harp.", targets=("anna", "harp", "lute", "Bruno"))
    assert contains_all.score(outcome) == Score(0.5)
    assert contains_all.score(Outcome(output="", targets=("a lute",))) == Score(0.0)
    assert contains_all.score(Outcome(targets=("lute",))) is None


def test_right_answers_that_the_normalisation_spoils_are_named() -> None:
    """It equals SQuAD's, so it stays what it is: `A` is an article, and punctuation goes."""
    assert exact_match("", ["A"]) == exact_match("5", ["-5"]) == 1.0
    assert spoiled(["Oslo", "A"]) == "leaves nothing of the right answer `A`"
    assert spoiled([" -5.2 "]) == "takes the minus sign from the right answer `-5.2`"
    assert spoiled(["A dog", "5", "3-5", "", "well-known"]) is None
