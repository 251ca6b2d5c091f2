"""The metrics that specs can name are the ones that exist, under the names that results are stored by."""

from __future__ import annotations

from pathlib import Path

import pytest

from evalspec.errors import EvalspecError
from evalspec.metrics import METRIC_FUNCTIONS, Metric, metric_name
from evalspec.metrics.reference import reference
from evalspec.spec.metric import MetricBlock
from evalspec.spec.needs import METRICS

BUILT_IN = set(METRICS)


def test_every_declared_metric_has_its_function_and_no_other() -> None:
    metrics = {name: METRIC_FUNCTIONS.get(name) for name in METRIC_FUNCTIONS.names()}
    own = {name for name, metric in metrics.items() if metric.measure.__module__.startswith("evalspec.metrics")}
    assert own == BUILT_IN
    assert all(isinstance(metric, Metric) for metric in metrics.values())
    assert all(metrics[name].declaration is METRICS[name] and metrics[name].explanation for name in BUILT_IN)


@pytest.mark.parametrize(
    ("block", "k", "name"),
    [
        (MetricBlock(metric="recall"), 5, "recall@5"),
        (MetricBlock(metric="recall", k=3), 5, "recall@3"),
        (MetricBlock(metric="ndcg"), None, "ndcg"),
        (MetricBlock(metric="reciprocal_rank"), 5, "reciprocal_rank"),
        (MetricBlock(metric="token_f1"), 5, "token_f1"),
    ],
)
def test_results_are_stored_under_the_cut_they_were_taken_at(block: MetricBlock, k: int | None, name: str) -> None:
    assert metric_name(block, k) == name


def test_an_unknown_metric_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(EvalspecError, match="Did you mean `recall`"):
        metric_name(MetricBlock(metric="recal"), 5)


def test_the_reference_page_is_what_the_docstrings_say() -> None:
    page = Path(__file__).parents[2] / "docs" / "metrics.md"
    assert page.read_text(encoding="utf-8") == reference(), (
        "run: python -m evalspec.metrics.reference > docs/metrics.md"
    )
