"""`evalspec compare`: paired comparisons from the store, as text, JSON or a page; kept in the table `verdicts`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalspec.errors import EvalspecError, StoreError
from evalspec.report.compare_page import render_comparison
from evalspec.report.comparisons import Comparison, compare_models, compare_seeds
from evalspec.report.pairing import Wanted
from evalspec.report.wording import comparison_text, reading
from evalspec.runs.summary import find_run
from evalspec.store import Store


@dataclass(frozen=True)
class Compared:
    """What a comparison came to."""

    run_id: str
    run_b: str | None
    comparisons: tuple[Comparison, ...]
    page: Path | None
    problems: tuple[str, ...]
    """What the user should know of: tasks left out, verdicts that could not be kept."""

    @property
    def text(self) -> str:
        """For a terminal."""
        return comparison_text(self.comparisons)


def compare(
    store: Store,
    run: str | None = None,
    other: str | None = None,
    *,
    metrics: Sequence[str] = (),
    tasks: Sequence[str] = (),
    filter: str | None = None,
    models: Sequence[tuple[str, str]] = (),
    architectures: Mapping[str, str] | None = None,
    page: Path | None = None,
) -> Compared:
    """Compare the models of a run pairwise, the same cells of two runs, or architectures over their training seeds.

    The verdicts are kept in the (first) run's rows of the table `verdicts`; `page` is the folder that a page goes to.
    Raises StoreError when what is asked for is not there, or nothing can be compared.
    """
    wanted = Wanted(tuple(metrics), tuple(tasks), filter, tuple(models))
    if architectures and (other or models):
        raise EvalspecError("--architecture compares within one run: leave out RUN_B and --model")
    if architectures and len(architectures) < 2:
        raise EvalspecError("--architecture needs at least two: --architecture mamba=mamba-s* --architecture …")
    with store.connect() as connection:
        run_id = find_run(connection, run)
        run_b = find_run(connection, other) if other else None
        if architectures:
            found, problems = compare_seeds(connection, run_id, architectures, wanted)
        else:
            found, problems = compare_models(connection, run_id, run_b, wanted), []
        if not found:
            raise StoreError("\n".join(problems) or _nothing(run_id, run_b))
        written = None
        if page is not None:
            try:
                written = render_comparison(connection, run_id, run_b, found, page)
            except OSError as error:
                raise EvalspecError(f"{page}: the page cannot be written: {error.strerror}") from None
    try:
        store.add(run_id, {"verdicts": [verdict_row(c) for c in found]})
        store.merge()
    except StoreError as error:
        problems.append(f"the verdicts were not kept: {error}")
    return Compared(run_id, run_b, tuple(found), written, tuple(problems))


def comparison_json(compared: Compared) -> dict[str, Any]:
    """The same for machines."""
    return {
        "run_id": compared.run_id,
        "run_b": compared.run_b,
        "page": None if compared.page is None else str(compared.page),
        "reading": reading(compared.comparisons),
        "comparisons": [verdict_row(c) for c in compared.comparisons],
    }


def verdict_row(c: Comparison) -> dict[str, Any]:
    """The row of the table `verdicts`. A number that is not finite is NULL there."""
    pair, seeds = c.pair, c.hierarchical
    row = {
        "hypothesis": c.hypothesis,
        "statistic": pair.difference,
        "ci_low": pair.ci_low,
        "ci_high": pair.ci_high,
        "verdict": c.verdict.word,
        "reason": c.verdict.reason,
        "task": c.family.task,
        "params": dict(c.params),
        "stage": c.family.stage,
        "filter": c.family.filter,
        "metric": c.family.metric,
        "model_a": c.model_a,
        "model_b": c.model_b,
        "run_b": c.run_b,
        "value_a": pair.a.value,
        "value_b": pair.b.value,
        "method": pair.method,
        "p_value": pair.p_value,
        "p_holm": c.p_holm,
        "family": c.compared,
        "effect": pair.effect,
        "effect_size": pair.effect_size,
        "n": pair.n,
        "units": pair.units,
        "a_ahead": pair.a_ahead if seeds is None else None,
        "b_ahead": pair.b_ahead if seeds is None else None,
        "only_a": pair.only_a if seeds is None else None,
        "only_b": pair.only_b if seeds is None else None,
        "detectable": pair.detectable,
        "components": None if seeds is None else dict(seeds.components),
    }
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in row.items()}


def _nothing(run_id: str, run_b: str | None) -> str:
    if run_b:
        return (
            f"runs {run_id} and {run_b} share no cell: no task, condition, model and metric is the same in both. "
            "Models of other names are compared with --model A=B"
        )
    return f"run {run_id} has nothing to compare: a pair of models with scores of one metric at one condition"
