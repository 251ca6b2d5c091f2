"""Writes docs/metrics.md from the metrics' own docstrings: `python -m evalspec.metrics.reference > docs/metrics.md`."""

from __future__ import annotations

import inspect

from evalspec.metrics import (
    calibration,
    choice,
    confusion,
    filters,
    grounding,
    intervals,
    likelihood,
    overlap,
    retrieval,
    steps,
    text,
)
from evalspec.metrics.registry import METRIC_FUNCTIONS, Metric
from evalspec.spec.needs import METRICS, Evidence

_FAMILIES = (
    ("output", "Generated answers", text),
    ("output", "Answers and passages", grounding),
    ("output", "Generated texts", overlap),
    ("output", "Written steps", steps),
    ("choices", "Choices", choice),
    ("choices", "Choices of all samples together", confusion),
    ("choices", "Probabilities of choices", calibration),
    ("likelihood", "Likelihood", likelihood),
    ("retrieval", "Retrieval", retrieval),
)
_ALSO = {"retrieval": "`retrieval`", "unknown": "`prompt.unknown`", "steps": "`prompt.steps`"}
_NEEDS: dict[Evidence, str] = {
    "output": "`decode` and `prompt.target`",
    "choices": "`prompt.choices`",
    "likelihood": "a scored target (neither `decode` nor `prompt.choices`)",
    "retrieval": "`retrieval.gold`",
}
_VALUES = {"binary": "0 or 1", "unit": "0 to 1", "real": "a number"}
_SUMS = {"mean": "", "ratio": ", with a weight", "exp_ratio": " of nats, with a weight", "corpus": ", with parts"}


def reference() -> str:
    """The text of docs/metrics.md: every built-in metric, what it equals, and how intervals are made."""
    lines = ["# Metrics", "", "Generated from the docstrings by `python -m evalspec.metrics.reference`; do not edit."]
    lines += ["", "| metric | says | needs | better | a score is |", "|---|---|---|---|---|"]
    for metric in map(METRIC_FUNCTIONS.get, METRICS):
        lines.append(f"| {' | '.join(_row(metric))} |")
    lines += [
        "",
        "A metric that is cut at a rank is stored with its cut: `recall` under retrieval `k: 5` is `recall@5`;",
    ]
    lines += ["`recall@3` in a spec fixes it; `nll@512` is cut at a position. An absent score is not 0: it has no row."]
    for evidence, title, module in _FAMILIES:
        lines += ["", f"## {title}", "", inspect.getdoc(module) or ""]
        for metric in map(METRIC_FUNCTIONS.get, METRICS):
            if metric.declaration.evidence == evidence and metric.measure.__module__ == module.__name__:
                lines += ["", f"### {metric.name}", "", inspect.cleandoc(metric.explanation)]
    lines += ["", "## Filters", "", inspect.getdoc(filters) or ""]
    lines += ["", "## Intervals", "", inspect.getdoc(intervals) or "", "", inspect.getdoc(intervals.Aggregate) or ""]
    return "\n".join(lines) + "\n"


def _row(metric: Metric) -> tuple[str, ...]:
    declared = metric.declaration
    better = "higher" if declared.higher_is_better else "lower"
    name = f"`{declared.name}@k`" if declared.at_k else f"`{declared.name}`"
    needs = _NEEDS[declared.evidence] if declared.compares else "`decode`"
    needs = " and ".join([needs, *(_ALSO[need] for need in declared.needs)])
    return name, declared.says, needs, better, _VALUES[metric.values] + _SUMS[metric.aggregation]


if __name__ == "__main__":
    print(reference(), end="")
