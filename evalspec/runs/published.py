"""Published figures beside the run's own: the rows of the table `verdicts` for a spec's `published`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from evalspec.metrics.registry import metric_name
from evalspec.plan.compile import Plan
from evalspec.spec.blocks import MAIN
from evalspec.spec.loading import points
from evalspec.spec.meant import Meant, meant
from evalspec.spec.published import PublishedBlock, cells_of
from evalspec.store import Store

Row = dict[str, object]
Word = Literal["supported", "refuted", "undecided"]


def published_rows(store: Store, run_id: str, plan: Plan) -> list[Row]:
    """One row a published figure; its statistic is the run's value less the figure."""
    blocks = plan.loaded.spec.published
    if not blocks:
        return []
    at, measured = points(plan.cells), store.rows("metrics", run_id)
    tasks = {cell.cell_id: cell.task for cell in plan.cells}
    rows: list[Row] = []
    for name, block in blocks.items():
        for model, point in cells_of(block, at).items():
            figure = meant(tasks[point.cell_id], block.metric, block.filter, naming=metric_name)
            wanted = {"cell_id": point.cell_id, "stage": MAIN, "filter": figure.filter, "metric": figure.metric}
            found = [row for row in measured if all(row.get(key) == value for key, value in wanted.items())]
            rows.append(_row(name, block, model, figure, found))
    return rows


def judged(
    value: float | None, low: float | None, high: float | None, n: int, block: PublishedBlock, figure: float
) -> tuple[Word, str | None]:
    """The verdict on a value with its interval over n samples, and why it is undecided, if it is.

    Rounding of the figure's last digit must not decide: the tolerance holds to within 1e-9.
    """
    if value is None:
        return "undecided", "undefined"
    if abs(value - figure) <= block.tolerance + 1e-9:
        return "supported", None
    holds = low is not None and high is not None and low <= figure <= high
    if holds and (block.n is None or n < block.n):
        return "undecided", "overlap"
    return "refuted", None


def _row(name: str, block: PublishedBlock, model: str, measured: Meant, found: Sequence[Mapping[str, Any]]) -> Row:
    figure, row = block.values[model], found[0] if found else {}
    value, low, high, n = (row.get(key) for key in ("value", "ci_low", "ci_high", "n"))
    word, reason = judged(value, low, high, n or 0, block, figure)
    return {
        "hypothesis": f"{name} (model = {model})",
        "claim": f"{block.task}, {block.metric}: within {block.tolerance:g} of what {block.source} reports",
        "task": block.task,
        "params": block.where,
        "model_a": model,
        "metric": measured.metric,
        "stage": MAIN,
        "filter": measured.filter,
        "statistic": None if value is None else value - figure,
        "ci_low": None if low is None else low - figure,
        "ci_high": None if high is None else high - figure,
        "verdict": word,
        "reason": reason,
        "value_a": value,
        "value_b": figure,
        "method": "published",
        "n": n,
    }
