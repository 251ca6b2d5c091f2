"""ROUGE, BLEU, chrF and TER against the libraries' own numbers, as scores of a corpus and in any order."""

from __future__ import annotations

import random

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from evalspec.metrics import METRIC_FUNCTIONS, Outcome, aggregate
from evalspec.metrics.paired import Scores, compare

OUTPUTS = [
    "The cat sat on the mat.",
    "A dog barked loudly at the old postman in the street",
    "",
    "State-space models keep a state of fixed size, Transformers do not.",
    "the quick brown fox jumped over a lazy dog",
    "It rains .",
]
TARGETS = [
    ("The cat is sitting on the mat.", "There is a cat on the mat."),
    ("The dog barked at the postman in the street.",),
    ("Nothing was said.",),
    ("State-space models hold a state of fixed size; Transformers do not.", "SSMs have fixed-size states."),
    ("The quick brown fox jumps over the lazy dog.",),
    ("It is raining.", "Rain falls.", "It rains."),
]


def scored(name: str, outputs: list[str] = OUTPUTS) -> Scores:
    metric = METRIC_FUNCTIONS.get(name)
    found = [metric.score(Outcome(output=o, targets=t)) for o, t in zip(outputs, TARGETS, strict=True)]
    return Scores([score for score in found if score], [f"s{at}" for at in range(len(found))])


@pytest.mark.parametrize("name", ["rouge1", "rouge2", "rougeL"])
def test_rouge_is_that_of_rouge_score_with_the_best_target(name: str) -> None:
    scorer = RougeScorer([name])
    for score, output, targets in zip(scored(name).scores, OUTPUTS, TARGETS, strict=True):
        assert score.value == max(scorer.score(target, output)[name].fmeasure for target in targets)


@pytest.mark.parametrize(
    ("name", "library"), [("bleu", sacrebleu.BLEU), ("chrf", sacrebleu.CHRF), ("ter", sacrebleu.TER)]
)
def test_a_corpus_has_sacrebleus_corpus_score(name: str, library: type) -> None:
    metric, found = METRIC_FUNCTIONS.get(name), scored(name)
    most = max(map(len, TARGETS))
    streams = [[t[at] if at < len(t) else None for t in TARGETS] for at in range(most)]
    expected = library().corpus_score(OUTPUTS, streams).score
    result = aggregate(metric, found.scores, found.samples)
    assert result.value == pytest.approx(expected, abs=1e-12) and result.n == len(OUTPUTS)
    assert result.ci_low < expected < result.ci_high
    # The mean of sentences' scores is another number.
    assert np.mean([score.value for score in found.scores]) != pytest.approx(expected, abs=1.0)


@pytest.mark.parametrize("name", ["bleu", "chrf", "ter"])
def test_a_corpus_score_does_not_depend_on_the_order_of_samples(name: str) -> None:
    metric, found = METRIC_FUNCTIONS.get(name), scored(name)
    order = list(range(len(OUTPUTS)))
    random.Random(1).shuffle(order)
    again = aggregate(metric, [found.scores[at] for at in order], [found.samples[at] for at in order])
    assert again == aggregate(metric, found.scores, found.samples)


def test_the_interval_of_bleu_is_sacrebleus_bootstrap() -> None:
    rng = np.random.default_rng(2)
    words = "the a cat dog sat ran on over mat hill quickly slowly and then".split()
    targets = [" ".join(rng.choice(words, 12)) for _ in range(150)]
    outputs = [" ".join(w if rng.random() < 0.7 else rng.choice(words) for w in t.split()) for t in targets]
    metric = METRIC_FUNCTIONS.get("bleu")
    scores = [metric.score(Outcome(output=o, targets=(t,))) for o, t in zip(outputs, targets, strict=True)]
    found = aggregate(metric, scores, [str(at) for at in range(150)])
    theirs = sacrebleu.BLEU().corpus_score(outputs, [targets], n_bootstrap=1000)
    assert found.value == pytest.approx(theirs.score) and found.stderr == pytest.approx(theirs._ci / 1.96, rel=0.12)
    assert (found.ci_high - found.ci_low) / 2 == pytest.approx(theirs._ci, rel=0.12)


def test_two_models_bleu_is_compared_by_swapping_outputs() -> None:
    worse = [output[: len(output) // 2] for output in OUTPUTS]
    metric = METRIC_FUNCTIONS.get("bleu")
    found = compare(metric, scored("bleu"), scored("bleu", worse))
    assert found.method == "permutation" and (found.difference or 0) > 0 and 0 < (found.p_value or 0) < 0.3
    assert found.effect == "d"


def test_what_was_not_generated_has_no_score() -> None:
    for name in ("rouge1", "bleu", "chrf", "ter"):
        metric = METRIC_FUNCTIONS.get(name)
        assert metric.score(Outcome(output=None, targets=("x",))) is None
        assert metric.score(Outcome(output="x")) is None
