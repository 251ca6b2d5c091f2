"""Which cells are compared with which: models within a run at one condition, or the same cells of two runs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

from evalspec.errors import StoreError, suggest
from evalspec.report.data import read_results, rows
from evalspec.spec.conditions import Condition, Conditions
from evalspec.spec.needs import metric_of
from evalspec.store.scores import ScoreColumns, read_scores

if TYPE_CHECKING:
    import duckdb

Key = tuple[str | None, str | None, str]
"""Stage, filter and metric."""

CHANCE = """
SELECT cell_id, avg(1.0 / json_array_length(choices)) AS chance FROM samples
WHERE run_id = $run AND json_array_length(choices) > 0 GROUP BY cell_id"""


@dataclass(frozen=True)
class Wanted:
    """What to compare; by default the main metric of every task, for every pair of models."""

    metrics: tuple[str, ...] = ()
    """Names that results are stored under (`recall@5`); empty: each task's main metric."""
    tasks: tuple[str, ...] = ()
    """Empty: all."""
    filter: str | None = None
    """None: the main metric's own filter, or every filter of the metrics that are named."""
    models: tuple[tuple[str, str], ...] = ()
    """Pairs (A, B) of model names; empty: all pairs within a run, equal names between two."""


@dataclass(frozen=True)
class Side:
    """One cell of a run with its scores."""

    run_id: str
    cell_id: str
    model: str
    label: str
    """The model, with what was swept of the model itself."""
    task: str
    params: Mapping[str, Any]
    """The condition: what was swept, but for the model's own settings."""
    chance: float
    """What a guess among the choices would get right; 0 without choices."""
    scores: Mapping[Key, ScoreColumns]

    @property
    def place(self) -> tuple[str, str]:
        """Task and condition, by which cells are joined."""
        return self.task, json.dumps(self.params, sort_keys=True)


@dataclass(frozen=True)
class LeftOut:
    """Cells of two runs that no comparison is of, counted by task."""

    only_a: Mapping[str, int]
    """Cells that run B has nothing for: no cell of that task, condition and model."""
    only_b: Mapping[str, int]
    """The same of B."""
    unscored: Mapping[str, int]
    """Cells of A that B has too, with no score in common that could be compared."""

    @property
    def sentences(self) -> list[str]:
        """What a reader is told; empty where nothing was left out."""
        said = [f"{_counted(counts)} of {run}" for run, counts in (("A", self.only_a), ("B", self.only_b)) if counts]
        found = [f"Left out, since only one run has them: {' and '.join(said)}."] if said else []
        if self.unscored:
            found.append(f"Left out, since no score of theirs is in both runs: {_counted(self.unscored)}.")
        return found


def _counted(counts: Mapping[str, int]) -> str:
    total = sum(counts.values())
    each = ", ".join(f"{task} {count:,}" for task, count in counts.items())
    return f"{total:,} cell{'s' * (total != 1)} ({each})"


def read_sides(connection: duckdb.DuckDBPyConnection, run_id: str, wanted: Wanted) -> list[Side]:
    """The cells of a run that have scores of what is wanted, in the order of the spec.

    Raises StoreError when a task, metric or filter that is asked for is not in the run.
    """
    results = read_results(connection, run_id)
    _check("task", wanted.tasks, results.tasks, run_id)
    metrics: list[str] = []
    if wanted.metrics:
        query = "SELECT DISTINCT metric FROM scores WHERE run_id = $run ORDER BY metric"
        known = [row["metric"] for row in rows(connection, query, run=run_id)]
        _check("metric", wanted.metrics, [*known, *map(metric_of, known)], run_id)
        # As stored, or all that are called so but for their options and cuts.
        metrics = [label for label in known for name in wanted.metrics if name in (label, metric_of(label))]
    found = read_scores(connection, run_id, metrics or [main.name for main in results.main.values()])
    if wanted.filter is not None:
        _check("filter", [wanted.filter], {key.filter or "" for key in found}, run_id)
    chance = {row["cell_id"]: row["chance"] for row in rows(connection, CHANCE, run=run_id)}
    every = {side.cell_id: side for side in _read_cells(connection, run_id, wanted)}
    sides = []
    for cell in results.cells:
        main = results.main.get(cell.task)
        scores = {
            (key.stage, key.filter, key.metric): columns
            for key, columns in found.items()
            if key.cell_id == cell.cell_id
            and (wanted.metrics or (main is not None and key.metric == main.name))
            and (wanted.filter in (None, key.filter))
            and (wanted.metrics or wanted.filter or (main is not None and key.filter == main.filter))
        }
        if scores and cell.cell_id in every:
            sides.append(replace(every[cell.cell_id], chance=chance.get(cell.cell_id, 0.0), scores=scores))
    return sides


def _read_cells(connection: duckdb.DuckDBPyConnection, run_id: str, wanted: Wanted) -> list[Side]:
    """All cells of the tasks that are wanted, without their scores."""
    query = "SELECT cell_id, model, task, params FROM cells WHERE run_id = $run AND task IS NOT NULL ORDER BY ALL"
    sides = []
    for row in rows(connection, query, run=run_id):
        if wanted.tasks and row["task"] not in wanted.tasks:
            continue
        params = json.loads(row["params"] or "{}")
        own = {path: value for path, value in params.items() if path.startswith(f"models.{row['model']}.")}
        swept = ", ".join(f"{path.rsplit('.', 1)[-1]} = {value}" for path, value in own.items())
        sides.append(
            Side(
                run_id=run_id,
                cell_id=row["cell_id"],
                model=row["model"],
                label=f"{row['model']} ({swept})" if swept else row["model"],
                task=row["task"],
                params={path: value for path, value in params.items() if path not in own},
                chance=0.0,
                scores={},
            )
        )
    return sides


def left_out(
    connection: duckdb.DuckDBPyConnection,
    run_id: str,
    other: str,
    wanted: Wanted,
    compared: Collection[tuple[str, str] | None],
) -> LeftOut:
    """The cells of two runs that are not among those `compared` (pairs of ids), of the tasks and models wanted.

    With `metrics` or a `filter` wanted, nothing is said of cells that both runs have: what was asked for chose them.
    """
    sides, others = (_read_cells(connection, run, wanted) for run in (run_id, other))
    pairs = list(between(sides, others, wanted.models))
    only: list[dict[str, int]] = []
    for at, cells in ((0, sides), (1, others)):
        met, named = {pair[at].cell_id for pair in pairs}, {pair[at] for pair in wanted.models}
        here = (side for side in cells if not named or named & {side.model, side.label})
        only.append(_by_task(side for side in here if side.cell_id not in met))
    chosen = wanted.metrics or wanted.filter is not None
    scored = {a.cell_id for a, b in pairs if (a.cell_id, b.cell_id) in compared}
    unscored = {a.cell_id: a for a, _ in pairs if not chosen and a.cell_id not in scored}
    return LeftOut(only[0], only[1], _by_task(unscored.values()))


def _by_task(sides: Iterable[Side]) -> dict[str, int]:
    return dict(sorted(Counter(side.task for side in sides).items()))


def within(sides: Sequence[Side], models: Sequence[tuple[str, str]]) -> Iterator[tuple[Side, Side]]:
    """Pairs of models at one place, in the order of the spec; `models` names the pairs, empty: all of them."""
    _check_models(models, sides, sides)
    for here in _by_place(sides).values():
        if models:
            yield from ((a, b) for first, second in models for a in _of(here, first) for b in _of(here, second))
        else:
            yield from combinations(here, 2)


def between(
    sides: Sequence[Side], others: Sequence[Side], models: Sequence[tuple[str, str]]
) -> Iterator[tuple[Side, Side]]:
    """Pairs of a model in one run and a model in another at one place; `models` names them, empty: of equal names."""
    _check_models(models, sides, others)
    places = _by_place(others)
    for a in sides:
        for b in places.get(a.place, []):
            if ((a.model, b.model) in models or (a.label, b.label) in models) if models else a.label == b.label:
                yield a, b


def conditions_of(sides: Sequence[Side]) -> dict[tuple[str, str], Condition]:
    """Each place's condition, with the same short names for all."""
    conditions = Conditions(side.params for side in sides)
    return {side.place: conditions.of(side.params) for side in sides}


def _by_place(sides: Iterable[Side]) -> dict[tuple[str, str], list[Side]]:
    """Places in the order of the spec's conditions, not of its models."""
    places: dict[tuple[str, str], list[Side]] = {}
    for side in sides:
        places.setdefault(side.place, []).append(side)
    return places


def _of(sides: Sequence[Side], model: str) -> list[Side]:
    return [side for side in sides if model in (side.model, side.label)]


def _check_models(models: Sequence[tuple[str, str]], sides: Sequence[Side], others: Sequence[Side]) -> None:
    for at, there in ((0, sides), (1, others)):
        if there:
            known = [side.model for side in there]
            _check("model", [pair[at] for pair in models], [*known, *(side.label for side in there)], there[0].run_id)


def _check(what: str, names: Collection[str], known: Collection[str], run_id: str) -> None:
    for name in names:
        if name not in known:
            listed = ", ".join(sorted(set(known))) or "none"
            near = suggest(name, known) or f" It has: {listed}."
            raise StoreError(f"run {run_id} has no {what} `{name}`.{near}")
