"""Metrics of how likely a model holds a text: perplexity per token, word, byte and target, bits per byte, the loss by
position, and whether it would write the text.

A sample's value is the negative log-likelihood of its target (nats; bits for `bits_per_byte`) and its weight the units
it is spread over; over samples a perplexity is exp(Σ value / Σ weight), a loss Σ value / Σ weight, so that long targets
count by their length. Absent where no target was scored.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from evalspec.metrics.outcome import Outcome, Score
from evalspec.metrics.registry import METRIC_FUNCTIONS, Metric
from evalspec.spec.needs import METRICS

UnitFunction = Callable[[str, int], int]


def of_likelihood(function: UnitFunction) -> UnitFunction:
    """Enter a count of a target's units, a function of (text, tokens), as the metric of its own name."""

    def measure(outcome: Outcome, k: int | None) -> Score | None:
        logprob = outcome.target_logprob
        if logprob is None or math.isnan(logprob) or not outcome.target_tokens:
            return None
        units = function(outcome.target_text, outcome.target_tokens)
        return Score(-logprob, float(units)) if units else None

    name = function.__name__
    METRIC_FUNCTIONS.register(name)(Metric(METRICS[name], measure, function.__doc__ or "", "real", "exp_ratio"))
    return function


@of_likelihood
def perplexity(text: str, tokens: int) -> int:
    """exp(Σ −log p / Σ tokens): the exponential of the mean loss per token of the scored targets.

    Comparable only between models that share a tokenizer. It is not the `perplexity` of lm-evaluation-harness, which
    divides by the number of documents.
    """
    return tokens


@of_likelihood
def target_perplexity(text: str, tokens: int) -> int:
    """exp(Σ −log p / n): the exponential of the mean loss per target, however long each is.

    Equals `perplexity` of lm-evaluation-harness 0.4 on tasks of the type `loglikelihood` (LAMBADA).
    """
    return 1


@of_likelihood
def word_perplexity(text: str, tokens: int) -> int:
    r"""exp(Σ −log p / Σ words), words counted as `re.split(r"\s+", text)` does.

    Equals `word_perplexity` of lm-evaluation-harness 0.4; like there, white space at an end of the text adds one.
    """
    return len(re.split(r"\s+", text))


@of_likelihood
def byte_perplexity(text: str, tokens: int) -> int:
    """exp(Σ −log p / Σ bytes), the bytes of the text in UTF-8. Absent for an empty text.

    Equals `byte_perplexity` of lm-evaluation-harness 0.4; its base-2 logarithm is `bits_per_byte`.
    """
    return len(text.encode("utf-8", "surrogatepass"))  # a lone surrogate from a JSON file is 3 bytes, not an error


def greedy(outcome: Outcome, k: int | None = None) -> Score | None:
    """1.0 when every token of the target is the likeliest at its place, else 0.0: greedy decoding would write it.

    Equals `acc` of lm-evaluation-harness 0.4 on tasks of the type `loglikelihood` (LAMBADA).
    """
    return None if outcome.target_greedy is None else Score(float(outcome.target_greedy))


METRIC_FUNCTIONS.register("greedy")(Metric(METRICS["greedy"], greedy, greedy.__doc__ or "", "binary"))


def nll(outcome: Outcome, k: int | None) -> Score | None:
    """Mean loss per token, −log p in nats, of the targets' tokens at the positions k/2 < p ≤ k.

    The position of a token is how many tokens stand before it: those of the prompt and of the target itself. A text
    of its own (an empty template) counts from its beginning, across the windows it is scored in; its first token
    stands behind the start token, at 1. So `nll@64`, `nll@128`, `nll@256` … are octaves of one curve: it falls where
    more context helps, and rises where a model loses the thread. Absent where a sample has no token there.
    """
    if k is None or not outcome.target_logprobs:
        return None
    first = outcome.target_start
    losses = [-p for at, p in enumerate(outcome.target_logprobs, start=first) if k // 2 < at <= k]
    if not losses or any(map(math.isnan, losses)):
        return None
    return Score(math.fsum(losses), float(len(losses)))


METRIC_FUNCTIONS.register("nll")(Metric(METRICS["nll"], nll, nll.__doc__ or "", "real", "ratio"))


def _bits(outcome: Outcome, k: int | None) -> Score | None:
    """Σ −log2 p / Σ bytes, the bytes of the text in UTF-8. Absent for an empty text.

    Equals `bits_per_byte` of lm-evaluation-harness 0.4, and log2 of `byte_perplexity`.
    """
    score = METRIC_FUNCTIONS.get("byte_perplexity").score(outcome)
    return None if score is None else Score(score.value / math.log(2), score.weight)


METRIC_FUNCTIONS.register("bits_per_byte")(
    Metric(METRICS["bits_per_byte"], _bits, _bits.__doc__ or "", "real", "ratio")
)
