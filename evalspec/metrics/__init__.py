"""Outputs into scores, scores into aggregates with intervals."""

from evalspec.metrics import choice, likelihood, retrieval, text  # each enters its metrics into the registry
from evalspec.metrics.filters import FILTERS, extract
from evalspec.metrics.intervals import Aggregate, aggregate
from evalspec.metrics.outcome import Outcome, Score
from evalspec.metrics.registry import METRIC_FUNCTIONS, Metric, metric_name

__all__ = [
    "Aggregate",
    "FILTERS",
    "METRIC_FUNCTIONS",
    "Metric",
    "Outcome",
    "Score",
    "aggregate",
    "choice",
    "extract",
    "likelihood",
    "metric_name",
    "retrieval",
    "text",
]
