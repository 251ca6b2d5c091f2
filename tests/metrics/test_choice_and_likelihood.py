"""Choices and perplexities follow lm-evaluation-harness's formulas, computed here with numpy as it does."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalspec.metrics import METRIC_FUNCTIONS, Outcome, Score, aggregate

accuracy, accuracy_norm = METRIC_FUNCTIONS.get("accuracy"), METRIC_FUNCTIONS.get("accuracy_norm")
accuracy_pmi = METRIC_FUNCTIONS.get("accuracy_pmi")
logprobs = st.floats(-50, -0.001)


@given(st.lists(st.tuples(logprobs, st.text(min_size=1, max_size=8)), min_size=1, max_size=6), st.data())
def test_accuracies_equal_the_harness(options: list[tuple[float, str]], data: st.DataObject) -> None:
    lls, choices = [ll for ll, _ in options], [choice for _, choice in options]
    gold = data.draw(st.integers(0, len(options) - 1))
    outcome = Outcome(choices=tuple(choices), choice_logprobs=tuple(lls), gold_choices=frozenset({gold}))
    lengths = np.array([float(len(choice)) for choice in choices])
    assert accuracy.score(outcome) == Score(float(np.argmax(lls) == gold))
    assert accuracy_norm.score(outcome) == Score(float(np.argmax(np.array(lls) / lengths) == gold))


@given(st.lists(st.tuples(logprobs, logprobs), min_size=1, max_size=6), st.data())
def test_mutual_information_equals_the_harness(options: list[tuple[float, float]], data: st.DataObject) -> None:
    given_prompt, alone = zip(*options, strict=True)
    gold = data.draw(st.integers(0, len(options) - 1))
    outcome = Outcome(
        choices=("x",) * len(options),
        choice_logprobs=given_prompt,
        unconditional_logprobs=alone,
        gold_choices=frozenset({gold}),
    )
    assert accuracy_pmi.score(outcome) == Score(float(np.argmax(np.array(given_prompt) - np.array(alone)) == gold))


def test_a_choice_that_is_likely_whatever_is_asked_gains_nothing() -> None:
    outcome = replace(outcome_of((-1.0, -3.0), {1}), unconditional_logprobs=(-1.0, -9.0))
    assert (accuracy.score(outcome), accuracy_pmi.score(outcome)) == (Score(0.0), Score(1.0))


def test_a_gain_that_is_no_number_or_was_not_asked_for_leaves_no_score() -> None:
    impossible = outcome_of((-math.inf, -3.0), {1})
    assert accuracy_pmi.score(replace(impossible, unconditional_logprobs=(-math.inf, -9.0))) is None
    assert accuracy_pmi.score(replace(impossible, unconditional_logprobs=(-2.0, -9.0))) == Score(1.0)
    assert accuracy_pmi.score(impossible) is None


def outcome_of(lls: tuple[float, ...], gold: set[int], choices: tuple[str, ...] = ("aa", "b")) -> Outcome:
    return Outcome(choices=choices, choice_logprobs=lls, gold_choices=frozenset(gold))


def test_the_first_choice_wins_a_tie() -> None:
    assert accuracy.score(outcome_of((-1.0, -1.0), {0})) == Score(1.0)
    assert accuracy.score(outcome_of((-1.0, -1.0), {1})) == Score(0.0)


def test_the_longer_choice_gains_when_divided_by_characters() -> None:
    outcome = outcome_of((-3.0, -2.0), {0})
    assert (accuracy.score(outcome), accuracy_norm.score(outcome)) == (Score(0.0), Score(1.0))


def test_characters_are_counted_not_bytes() -> None:
    # by characters −3/2 against −4/3: the second; by bytes −3/4 against −4/3: the first
    outcome = outcome_of((-3.0, -4.0), {1}, ("éé", "bbb"))
    assert accuracy_norm.score(outcome) == Score(1.0)


def test_any_of_several_right_choices_will_do() -> None:
    assert accuracy.score(outcome_of((-3.0, -2.0), {0, 1})) == Score(1.0)


def test_an_empty_choice_is_never_the_likeliest_per_character() -> None:
    assert accuracy_norm.score(outcome_of((-0.1, -9.0), {1}, ("", "b"))) == Score(1.0)


def test_a_choice_that_cannot_be_compared_leaves_no_score() -> None:
    for metric in (accuracy, accuracy_norm):
        assert metric.score(outcome_of((math.nan, -1.0), {0})) is None
        assert metric.score(outcome_of((-1.0, -1.0), set())) is None
        assert metric.score(outcome_of((-1.0,), {0})) is None
        assert metric.score(Outcome()) is None


TEXTS = ["The cat sat.", " leading and trailing ", "naïve café", "one"]
LOGPROBS = [-11.5, -20.25, -7.0, -3.125]
TOKENS = [4, 6, 5, 1]


def perplexity_of(name: str) -> float:
    metric = METRIC_FUNCTIONS.get(name)
    outcomes = [
        Outcome(target_logprob=p, target_tokens=t, target_text=x)
        for p, t, x in zip(LOGPROBS, TOKENS, TEXTS, strict=True)
    ]
    scores = [score for outcome in outcomes if (score := metric.score(outcome))]
    value = aggregate(metric, scores, [str(i) for i in range(len(scores))]).value
    assert value is not None
    return value


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("perplexity", TOKENS),
        ("word_perplexity", [len(re.split(r"\s+", text)) for text in TEXTS]),
        ("byte_perplexity", [12, 22, 12, 3]),
    ],
)
def test_perplexities_weigh_samples_by_their_units(name: str, counts: list[int]) -> None:
    # weighted_perplexity of the harness: exp(−Σ logprob / Σ units)
    assert perplexity_of(name) == pytest.approx(math.exp(-sum(LOGPROBS) / sum(counts)))


def test_words_are_split_as_the_harness_splits_them() -> None:
    outcome = Outcome(target_logprob=-1.0, target_tokens=2, target_text=" leading and trailing ")
    assert METRIC_FUNCTIONS.get("word_perplexity").score(outcome) == Score(1.0, 5.0)


def test_a_uniform_model_has_the_vocabulary_size_as_perplexity() -> None:
    metric = METRIC_FUNCTIONS.get("perplexity")
    scores = [Score(n * math.log(512), float(n)) for n in (1, 7, 30)]
    assert aggregate(metric, scores, ["a", "b", "c"]).value == pytest.approx(512)


def test_without_a_scored_target_perplexities_are_absent() -> None:
    for name in ("perplexity", "word_perplexity", "byte_perplexity"):
        metric = METRIC_FUNCTIONS.get(name)
        assert metric.score(Outcome()) is None
        assert metric.score(Outcome(target_logprob=0.0, target_tokens=0, target_text="")) is None
        assert metric.score(Outcome(target_logprob=math.nan, target_tokens=3, target_text="x")) is None
    assert METRIC_FUNCTIONS.get("byte_perplexity").score(Outcome(target_logprob=-1.0, target_tokens=1)) is None


def text_of(losses: list[float], start: int = 1) -> Outcome:
    return Outcome(target_logprobs=tuple(-loss for loss in losses), target_start=start)


def test_octaves_of_positions_cut_a_text_without_gap_or_overlap() -> None:
    nll = METRIC_FUNCTIONS.get("nll")
    losses = [float(position) for position in range(1, 101)]
    found = {k: nll.score(text_of(losses), k) for k in (1, 2, 4, 8, 16, 32, 64, 128, 256)}
    assert found[8] == Score(5.0 + 6 + 7 + 8, 4.0) and found[1] == Score(1.0, 1.0)
    assert found[128] == Score(sum(range(65, 101)), 36.0) and found[256] is None
    assert sum(score.value for score in found.values() if score) == sum(losses)


def test_the_prompt_in_front_of_a_target_counts_as_positions() -> None:
    nll = METRIC_FUNCTIONS.get("nll")
    assert nll.score(text_of([1.0, 2.0, 3.0], start=7), 8) == Score(3.0, 2.0)  # positions 7, 8 and 9
    assert nll.score(text_of([1.0, 2.0, 3.0], start=7), 16) == Score(3.0, 1.0)
    assert nll.score(text_of([math.nan, 2.0]), 1) is None and nll.score(Outcome(), 8) is None


def test_a_loss_over_samples_weighs_tokens_alike() -> None:
    nll = METRIC_FUNCTIONS.get("nll")
    scores = [Score(6.0, 3.0), Score(1.0, 1.0), Score(8.0, 2.0)]
    found = aggregate(nll, scores, ["a", "b", "c"])
    assert found.value == pytest.approx(15 / 6) and found.n == 3
    assert found.ci_low is not None and found.ci_high is not None and found.ci_low < 2.5 < found.ci_high
