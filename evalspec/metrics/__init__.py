"""Outputs into scores, scores into aggregates with intervals."""

from evalspec.metrics import (  # each enters its metrics into the registry
    calibration,
    choice,
    confusion,
    grounding,
    likelihood,
    overlap,
    retrieval,
    steps,
    text,
)
from evalspec.metrics.filters import STEPS, Extraction, extract, majority
from evalspec.metrics.intervals import Aggregate, aggregate
from evalspec.metrics.outcome import Outcome, Score
from evalspec.metrics.registry import METRIC_FUNCTIONS, Metric, metric_name
from evalspec.spec.needs import Declaration

__all__ = [
    "Aggregate",
    "Declaration",
    "Extraction",
    "METRIC_FUNCTIONS",
    "Metric",
    "Outcome",
    "STEPS",
    "Score",
    "aggregate",
    "calibration",
    "choice",
    "confusion",
    "extract",
    "grounding",
    "likelihood",
    "majority",
    "metric_name",
    "overlap",
    "retrieval",
    "steps",
    "text",
]
