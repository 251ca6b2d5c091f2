"""The metrics by name, and what a metric is: a score for one outcome, and the way scores become one number.

A plugin's is a `Metric` too, entered under the entry-point group `evalspec.metrics` (docs/plugins.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from evalspec.metrics.outcome import Outcome, Score
from evalspec.registry import Plugin, Registry
from evalspec.spec.metric import MetricBlock
from evalspec.spec.needs import Declaration

Values = Literal["binary", "unit", "real"]
"""What one score can be: 0 or 1, between 0 and 1, any number. It decides the interval."""

Aggregation = Literal["mean", "ratio", "exp_ratio", "corpus"]
"""`mean`: Σ value / n. `ratio`: Σ value / Σ weight. `exp_ratio`: exp of that. `corpus`: a function of Σ parts."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Corpus:
    """How a metric of all samples together (BLEU, a calibration error) is made: a function of sums over samples.

    `terms` turns the scores' parts (n, p) into what is summed (n, k); `value` turns r such sums (r, k) into r values.
    """

    terms: Callable[[Floats], Floats]
    value: Callable[[Floats], Floats]
    within: tuple[float, float]
    """The least and the greatest value there is, where an interval ends too."""


@dataclass(frozen=True)
class Metric:
    """One metric. `explanation` is the docstring of the function that computes it; docs/metrics.md shows it."""

    declaration: Declaration
    measure: Callable[[Outcome, int | None], Score | None]
    explanation: str
    values: Values
    aggregation: Aggregation = "mean"
    corpus: Corpus | None = None
    """Of the aggregation `corpus`, and of no other."""
    measure_with: Callable[[Outcome, MetricBlock], Score | None] | None = None
    """In place of `measure` where the block says more than a name: the metric's options."""

    @property
    def name(self) -> str:
        """The name that specs use, without a cut."""
        return self.declaration.name

    @property
    def greatest_difference(self) -> float:
        """Of two aggregates; infinite where nothing bounds it."""
        if self.corpus is not None:
            return self.corpus.within[1] - self.corpus.within[0]
        return 1.0 if self.values != "real" and self.aggregation == "mean" else math.inf

    def score(self, outcome: Outcome, k: int | None = None, block: MetricBlock | None = None) -> Score | None:
        """The score of one outcome, cut at rank `k` (None: where the retrieval was cut), with the options of `block`.

        None where the metric says nothing, which is not 0: the outcome lacks what the metric needs.
        """
        if block is not None and block.options and self.measure_with is not None:
            return self.measure_with(outcome, block)
        return self.measure(outcome, k)


def _adopted(metric: Metric, plugin: Plugin) -> Metric:
    """A plugin's metric under the name of its entry point; what it gives is what its `values` say."""
    if not isinstance(metric, Metric):
        raise plugin.error(f"is a {type(metric).__name__}, and should be an evalspec.metrics.Metric")

    def score(given: Score | None) -> Score | None:
        if given is None:
            return None
        if not isinstance(given, Score):
            raise plugin.error(f"gave a {type(given).__name__}, and should give an evalspec.metrics.Score, or None")
        value = float(given.value)
        if metric.values != "real" and not (value in (0.0, 1.0) if metric.values == "binary" else 0.0 <= value <= 1.0):
            wanted = "0 or 1" if metric.values == "binary" else "a number from 0 to 1"
            raise plugin.error(f'gave {value:g}, and its `values`, "{metric.values}", say {wanted}')
        return replace(given, value=value)

    return replace(
        metric,
        declaration=replace(metric.declaration, name=plugin.name),
        measure=plugin.guarded(metric.measure, score),
        measure_with=metric.measure_with and plugin.guarded(metric.measure_with, score),
    )


METRIC_FUNCTIONS: Registry[Metric] = Registry("metric", "evalspec.metrics", _adopted)


def metric_name(block: MetricBlock, retrieval_k: int | None) -> str:
    """The name under which a metric's results are stored: `token_f1`, `recall@5`, `exact_match(ignore_case)`.

    A metric that is cut at a rank carries its cut: the spec's own, else the retrieval's.
    Raises EvalspecError when no metric is called so.
    """
    if not METRIC_FUNCTIONS.get(block.metric).declaration.at_k:
        return block.label
    return block.cut_at(retrieval_k)
