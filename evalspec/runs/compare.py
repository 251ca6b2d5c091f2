"""`evalspec compare`: paired comparisons from the store, as text, JSON or a page; kept in the table `verdicts`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalspec.errors import EvalspecError, StoreError
from evalspec.report.compare_page import render_comparison
from evalspec.report.comparisons import Comparison, compare_models, compare_seeds
from evalspec.report.differences import RunDifferences, run_differences
from evalspec.report.pairing import Wanted, left_out
from evalspec.report.seeds import Seeds, seeds_of
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
    differences: RunDifferences | None = None
    """What the two runs differ in; None within one run."""
    seeds: Seeds | None = None
    """The architectures that `seed_of` names, where nothing else was asked for."""

    @property
    def text(self) -> str:
        """For a terminal: the comparisons as tables, what the runs differ in, and the reading."""
        said = [self.seeds.sentence] if self.seeds else []
        if self.differences is not None:
            lines = self.differences.lines()
            said.append("\n".join([f"A: run {self.run_id}, B: run {self.run_b}", *(f"  {line}" for line in lines)]))
        return comparison_text(self.comparisons, said)


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

    Architectures are those that `architectures` names, or `seed_of` of the run's models where no pairs of models are.
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
        seeds = seeds_of(connection, run_id) if not (architectures or models or run_b) else None
        if seeds is not None:
            architectures = seeds.patterns
        if architectures:
            found, problems = compare_seeds(connection, run_id, architectures, wanted)
        else:
            found, problems = compare_models(connection, run_id, run_b, wanted), []
        differences = None
        if run_b is not None:
            lonely = left_out(connection, run_id, run_b, wanted, {c.cells for c in found})
            differences = run_differences(connection, run_id, run_b, lonely)
        if not found:
            raise StoreError("\n".join(_why_nothing(run_id, run_b, problems, seeds, differences)))
        written = None
        if page is not None:
            said = [seeds.sentence] if seeds else []
            try:
                written = render_comparison(connection, run_id, run_b, found, page, said=said, differences=differences)
            except OSError as error:
                raise EvalspecError(f"{page}: the page cannot be written: {error.strerror}") from None
    try:
        store.add(run_id, {"verdicts": [verdict_row(c) for c in found]})
        store.merge()
    except StoreError as error:
        problems.append(f"the verdicts were not kept: {error}")
    return Compared(run_id, run_b, tuple(found), written, tuple(problems), differences, seeds)


def comparison_json(compared: Compared) -> dict[str, Any]:
    """The same for machines."""
    return {
        "run_id": compared.run_id,
        "run_b": compared.run_b,
        "page": None if compared.page is None else str(compared.page),
        "seed_of": None if compared.seeds is None else dict(compared.seeds.architectures),
        "differences": None if compared.differences is None else compared.differences.json(),
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


def _why_nothing(
    run_id: str, run_b: str | None, problems: Sequence[str], seeds: Seeds | None, differences: RunDifferences | None
) -> Iterator[str]:
    """Why there is nothing to compare, and what may be done."""
    yield from problems
    if differences is not None:
        yield (
            f"runs {run_id} and {run_b} share no cell: no task, condition, model and metric is the same in both. "
            "Models of other names are compared with --model A=B. Of the runs, A and B:"
        )
        yield from (f"  {line}" for line in differences.lines())
    elif not problems:
        yield f"run {run_id} has nothing to compare: a pair of models with scores of one metric at one condition"
    if seeds is not None:
        yield seeds.sentence
