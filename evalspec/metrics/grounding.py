"""Metrics of an output against what its prompt showed: does it stand in a passage, does it say that nothing does.

Both compare after SQuAD's normalisation, and with no target: a wrong answer may be grounded, a right one may not be.
"""

from __future__ import annotations

from evalspec.metrics.outcome import Outcome, Score
from evalspec.metrics.registry import METRIC_FUNCTIONS, Metric
from evalspec.prompting.squad import normalise
from evalspec.spec.needs import METRICS


def grounded(outcome: Outcome, k: int | None = None) -> Score | None:
    """1.0 when the words of the output stand side by side in one of the passages that the prompt showed, else 0.0.

    Whole words after SQuAD's normalisation: `12` does not stand in `112`. An output that normalisation empties stands
    nowhere. Absent for the retriever `none`, and for an output that abstains (one of `prompt.unknown`), which claims
    nothing.
    """
    if outcome.output is None or not outcome.retrieved or _abstains(outcome):
        return None
    words = normalise(outcome.output)
    return Score(float(bool(words) and any(f" {words} " in f" {normalise(text)} " for text in outcome.passages)))


def abstained(outcome: Outcome, k: int | None = None) -> Score | None:
    """1.0 when the output equals one of `prompt.unknown` after SQuAD's normalisation, else 0.0.

    Higher is better only where nothing in the prompt answers (`withhold_gold`); where the gold passage is shown, an
    abstention is a miss.
    """
    if outcome.output is None or not outcome.unknown:
        return None
    return Score(float(_abstains(outcome)))


def _abstains(outcome: Outcome) -> bool:
    return outcome.output is not None and normalise(outcome.output) in {normalise(text) for text in outcome.unknown}


for _function in (grounded, abstained):
    METRIC_FUNCTIONS.register(_function.__name__)(
        Metric(METRICS[_function.__name__], _function, _function.__doc__ or "", "binary")
    )
