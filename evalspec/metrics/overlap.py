"""Metrics of a generated text against reference texts: ROUGE of each sample, BLEU, chrF and TER of all together.

They are computed by the libraries that define them, rouge-score and sacrebleu, with these libraries' own settings.
With several targets ROUGE takes the best one; sacrebleu's metrics use them all, each in its own way. BLEU, chrF and TER
are no means: the counts of all samples are summed and make one score, and intervals resample samples' counts. What the
table `scores` shows for one sample is the score of that sample by itself. Absent where nothing was generated or there
is no target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from evalspec.metrics.outcome import Outcome, Score
from evalspec.metrics.registry import METRIC_FUNCTIONS, Corpus, Floats, Metric
from evalspec.metrics.text import of_output
from evalspec.spec.needs import METRICS


@of_output("unit")
def rouge1(prediction: str, targets: Sequence[str]) -> float:
    """F1 of the words that prediction and target share, the best over targets, 0 to 1.

    Equals `rouge1` (fmeasure) of rouge-score without stemming, which `evaluate.load("rouge")` averages.
    """
    return _rouge("rouge1", prediction, targets)


@of_output("unit")
def rouge2(prediction: str, targets: Sequence[str]) -> float:
    """F1 of the pairs of neighbouring words that prediction and target share, the best over targets, 0 to 1.

    Equals `rouge2` (fmeasure) of rouge-score without stemming.
    """
    return _rouge("rouge2", prediction, targets)


@of_output("unit")
def rougeL(prediction: str, targets: Sequence[str]) -> float:
    """F1 of the longest common subsequence of words, the best over targets, 0 to 1.

    Equals `rougeL` (fmeasure) of rouge-score without stemming; the text is one sentence, unlike for `rougeLsum`.
    """
    return _rouge("rougeL", prediction, targets)


def of_corpus(function: Callable[[], Any]) -> Callable[[], Any]:
    """Enter what makes a metric of sacrebleu as the metric of the function's own name."""
    made = lru_cache(maxsize=1)(function)

    def measure(outcome: Outcome, k: int | None) -> Score | None:
        if outcome.output is None or not outcome.targets:
            return None
        # sacrebleu's own way to keep a sample's counts for later sums, as its significance tests use it.
        [counts] = made()._extract_corpus_statistics([outcome.output], [[target] for target in outcome.targets])
        return Score(float(made()._compute_score_from_stats(list(counts)).score), parts=tuple(map(float, counts)))

    def value(totals: Floats) -> Floats:
        whole = bool((totals == np.round(totals)).all())  # TER's lengths are averages over references
        rows = np.round(totals).astype(np.int64).tolist() if whole else totals.tolist()
        return np.array([made()._compute_score_from_stats(row).score for row in rows], np.float64)

    measure.__module__ = __name__
    name = function.__name__
    corpus = Corpus(lambda parts: parts, value, (0.0, math.inf if name == "ter" else 100.0))
    METRIC_FUNCTIONS.register(name)(Metric(METRICS[name], measure, function.__doc__ or "", "real", "corpus", corpus))
    return made


@of_corpus
def bleu() -> Any:
    """BLEU-4 of all outputs together, 0 to 100.

    Equals `BLEU().corpus_score` of sacrebleu 2 with its defaults (case kept, tokenizer 13a, exponential smoothing).
    """
    from sacrebleu.metrics import BLEU

    return BLEU(force=True)  # no warning about outputs that look tokenised; the score is the same


@of_corpus
def chrf() -> Any:
    """chrF2 of all outputs together, 0 to 100: F with β = 2 of character n-grams up to 6.

    Equals `CHRF().corpus_score` of sacrebleu 2 with its defaults (case kept, white space left out).
    """
    from sacrebleu.metrics import CHRF

    return CHRF()


@of_corpus
def ter() -> Any:
    """Translation edit rate of all outputs together: 100 · edits and shifts / words of the references, from 0 upwards.

    Equals `TER().corpus_score` of sacrebleu 2 with its defaults (case ignored).
    """
    from sacrebleu.metrics import TER

    return TER()


def _rouge(name: str, prediction: str, targets: Sequence[str]) -> float:
    return float(_scorer(name).score_multi(list(targets), prediction)[name].fmeasure)


@lru_cache(maxsize=3)
def _scorer(name: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # a second, which only a task that asks for it spends

    return RougeScorer([name])
