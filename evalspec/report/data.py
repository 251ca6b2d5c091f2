"""What a page shows of a run, read from the store: queries in, the values of `results` out.

Nothing here computes a metric; the one thing derived is where the gold passage stood for each answer, which is a
join of `retrievals` with `scores`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import yaml

from evalspec.errors import StoreError, suggest
from evalspec.report.alone import QUERY as MEASUREMENTS
from evalspec.report.alone import alone_of
from evalspec.report.claims import QUERY as CLAIMS
from evalspec.report.claims import Claim, claims_of
from evalspec.report.results import PLAIN_FILTERS, Cell, Cost, Estimate, GoldPlace, GoldUse, MainMetric, Results, Run
from evalspec.spec.blocks import MAIN
from evalspec.spec.conditions import Conditions
from evalspec.spec.needs import METRICS, metric_of

if TYPE_CHECKING:
    import duckdb

ASKED = f"""
SELECT cell_id, coalesce(stage, '{MAIN}') AS stage, count(DISTINCT sample_id) AS n
FROM samples WHERE run_id = $run AND error IS NULL AND finish_reason IS DISTINCT FROM 'skipped'
GROUP BY ALL"""

# Of choices, `prompt_tokens` counts the prompt once for each.
LENGTHS = f"""
SELECT cell_id, avg(prompt_tokens / greatest(1, coalesce(json_array_length(choices), 1))) AS tokens
FROM samples WHERE run_id = $run AND coalesce(stage, '{MAIN}') = '{MAIN}' AND error IS NULL
GROUP BY cell_id"""

GOLD_PLACES = """
WITH answers AS (
  SELECT cell_id, sample_id, avg(value) AS value FROM scores
  WHERE run_id = $run AND metric = $metric AND filter IS NOT DISTINCT FROM $filter AND value IS NOT NULL
  GROUP BY cell_id, sample_id),
gold AS (
  SELECT cell_id, sample_id, min(coalesce(place, rank)) AS place FROM retrievals
  WHERE run_id = $run AND relevant GROUP BY cell_id, sample_id)
SELECT cell_id, place, count(*) AS n, avg(value) AS value
FROM answers LEFT JOIN gold USING (cell_id, sample_id)
WHERE cell_id IN (SELECT cell_id FROM retrievals WHERE run_id = $run)
GROUP BY cell_id, place ORDER BY cell_id, place"""


GOLD_USES = (
    "SELECT * FROM gold_and_answer WHERE run_id = $run AND metric = $metric AND filter IS NOT DISTINCT FROM $filter"
)


def rows(connection: duckdb.DuckDBPyConnection, query: str, **values: Any) -> list[dict[str, Any]]:
    """The query's rows as dicts by column name; `$name` in the query takes the keyword of that name."""
    result = connection.execute(query, values or None)
    names = [column[0] for column in result.description or ()]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def read_results(connection: duckdb.DuckDBPyConnection, run_id: str) -> Results:
    """Read one run. StoreError if the store has no such run."""
    run = read_run(connection, run_id)
    spec = _mapping(run.spec_text)
    every = rows(connection, "SELECT * FROM cells WHERE run_id = $run", run=run_id)
    found = [row for row in every if row["task"] is not None]  # the others are models measured alone
    parameters = [_json(row["params"]) or {} for row in found]
    lengths = {row["cell_id"]: row["tokens"] for row in rows(connection, LENGTHS, run=run_id)}
    conditions = Conditions(parameters)
    cells = [
        Cell(
            row["cell_id"],
            row["model"],
            row["weights_hash"] or "",
            row["task"],
            conditions.of(params),
            row["trained_length"],
            lengths.get(row["cell_id"]),
        )
        for row, params in zip(found, parameters, strict=True)
    ]
    models, tasks = _order(spec, "models"), _order(spec, "tasks")
    cells.sort(key=lambda c: (models.get(c.model, 99), c.model, tasks.get(c.task, 99), c.task, c.condition.order))
    asked = {(row["cell_id"], row["stage"]): row["n"] for row in rows(connection, ASKED, run=run_id)}
    estimates = [
        Estimate(
            cell_id=row["cell_id"],
            metric=row["metric"],
            filter=row["filter"],
            stage=row["stage"] or MAIN,
            value=row["value"],
            stderr=_finite(row["stderr"]),
            low=_finite(row["ci_low"]),
            high=_finite(row["ci_high"]),
            n=row["n"],
            asked=asked.get((row["cell_id"], row["stage"] or MAIN)),
        )
        for row in rows(connection, "SELECT * FROM metrics WHERE run_id = $run", run=run_id)
        if row["value"] is not None and not math.isnan(row["value"])
    ]
    counts = rows(
        connection,
        """SELECT count(*) AS samples, count(*) FILTER (error IS NOT NULL) AS failed,
                  count(*) FILTER (truncated_tokens > 0) AS truncated, count(*) FILTER (cached) AS cached
           FROM samples WHERE run_id = $run""",
        run=run_id,
    )[0]
    costs = [
        Cost(
            row["cell_id"],
            int(row["prompt_tokens"] or 0),
            float(row["distinct_tokens"] or 0),
            float(row["computed_tokens"] or 0),
            int(row["output_tokens"] or 0),
            float(row["seconds"] or 0),
            row["peak_memory_bytes"],
            row["state_bytes"],
        )
        for row in rows(connection, "SELECT * FROM efficiency WHERE run_id = $run", run=run_id)
    ]
    main = _main_metrics(spec, cells, estimates)
    alone = [row for row in every if row["task"] is None]
    order = tuple(sorted({row["model"] for row in every}, key=lambda model: (models.get(model, 99), model)))
    measured = alone_of(rows(connection, MEASUREMENTS, run=run_id), _labels(alone), order)
    return Results(run, tuple(cells), tuple(estimates), tuple(costs), main, **counts, models=order, alone=measured)


def _labels(cells: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What the model of each cell without a task is called: its name, and what the sweep changed about it."""
    parameters = {row["cell_id"]: _json(row["params"]) or {} for row in cells}
    conditions = Conditions(parameters.values())
    return {row["cell_id"]: conditions.model(row["model"], parameters[row["cell_id"]]) for row in cells}


def read_run(connection: duckdb.DuckDBPyConnection, run_id: str) -> Run:
    """One run's row. StoreError if there is none."""
    for run in read_runs(connection):
        if run.run_id == run_id:
            return run
    known = [row["run_id"] for row in rows(connection, "SELECT run_id FROM runs")]
    raise StoreError(f"the store has no run `{run_id}`.{suggest(run_id, known)} `evalspec ls` lists its runs.")


def read_runs(connection: duckdb.DuckDBPyConnection) -> list[Run]:
    """All runs, the newest first."""
    return [
        Run(
            run_id=row["run_id"],
            spec_name=row["spec_name"],
            spec_text=row["spec"] or "",
            description=str(_mapping(row["spec"] or "").get("description") or ""),
            plan_id=row["plan_id"] or "",
            status=row["status"] or "",
            started_at=row["started_at"],
            finished_at=row["finished_at"],
            evalspec_version=row["evalspec_version"] or "",
            git_commit=row["git_commit"] or "",
            host=row["host"] or "",
            device=row["device"] or "",
            versions=_json(row["versions"]) or {},
        )
        for row in rows(connection, "SELECT * FROM runs ORDER BY started_at DESC NULLS LAST, run_id")
    ]


def read_weights(connection: duckdb.DuckDBPyConnection, run_id: str) -> list[tuple[str, str]]:
    """(model, hash of its weights), in the order of their names."""
    query = "SELECT DISTINCT model, weights_hash FROM cells WHERE run_id = $run ORDER BY ALL"
    return [(row["model"], row["weights_hash"] or "") for row in rows(connection, query, run=run_id)]


def gold_places(connection: duckdb.DuckDBPyConnection, run_id: str, main: MainMetric) -> list[GoldPlace]:
    """Mean answer of each cell by the place of the first gold passage; repeats of a sample are averaged first."""
    found = rows(connection, GOLD_PLACES, run=run_id, metric=main.name, filter=main.filter)
    return [GoldPlace(row["cell_id"], row["place"], row["n"], row["value"]) for row in found]


def gold_uses(connection: duckdb.DuckDBPyConnection, results: Results, task: str) -> list[GoldUse]:
    """For each cell of a task, its answers by whether the gold passage was shown and whether they were right."""
    judge = judging_metric(results, task)
    if judge is None:
        return []
    found = rows(connection, GOLD_USES, run=results.run.run_id, metric=judge, filter=results.main[task].filter)
    names = ("run_id", "cell_id", "model", "task", "params", "stage", "filter", "metric", "n")
    return [
        GoldUse(row["cell_id"], judge, row["n"], {name: count for name, count in row.items() if name not in names})
        for row in found
        if row["task"] == task
    ]


def judging_metric(results: Results, task: str) -> str | None:
    """The metric that says which answers are right: the main one, or the first declared where that compares nothing."""
    cells = {cell.cell_id for cell in results.cells if cell.task == task}
    measured = {e.metric for e in results.estimates if e.cell_id in cells}
    main = results.main.get(task)
    judging = [n for n, d in METRICS.items() if n in measured and d.compares and d.evidence in ("output", "choices")]
    if main is None or not judging:
        return None
    return main.name if main.name in judging else judging[0]


def read_claims(connection: duckdb.DuckDBPyConnection, run: Run) -> list[Claim]:
    """A spec's hypotheses and published figures with their verdicts, in its order; none before the run is done."""
    spec = _mapping(run.spec_text)
    order = [*(spec.get("hypotheses") or {}), *(spec.get("published") or {})]
    return claims_of(rows(connection, CLAIMS, run=run.run_id), order)


def _main_metrics(
    spec: Mapping[str, Any], cells: Sequence[Cell], estimates: Sequence[Estimate]
) -> dict[str, MainMetric]:
    """Each task's first metric in the spec that judges answers, under the first of its filters.

    Without a readable spec it is the first one declared. Later stages have none.
    """
    declared = list(METRICS)
    blocks = spec.get("tasks") or {}
    chosen: dict[str, MainMetric] = {}
    for task in dict.fromkeys(cell.task for cell in cells):
        ids = {cell.cell_id for cell in cells if cell.task == task}
        of_task = [e for e in estimates if e.cell_id in ids and e.stage == MAIN and not is_retrieval(e.metric)]
        if not of_task:
            continue
        block = blocks.get(task) or {}
        while "metrics" not in block and block.get("extends") in blocks:
            block = blocks[block["extends"]]
        written = [m if isinstance(m, str) else m.get("metric", "") for m in block.get("metrics") or ()]
        order = {name: at for at, name in reversed(list(enumerate([*written, *declared])))}
        chains = {chain: at for at, chain in enumerate(block.get("filters") or ())}
        best = min(
            of_task,
            key=lambda e: (
                order.get(e.metric, order.get(metric_of(e.metric), len(order))),  # stored with its options, or its cut
                e.metric,
                chains.get(e.filter, -1 if e.filter in PLAIN_FILTERS else len(chains)),
                e.filter or "",
            ),
        )
        values = [e.value for e in of_task if e.metric == best.metric]
        declaration = METRICS.get(metric_of(best.metric))
        bounded = all(0 <= value <= 1 for value in values)
        share = bounded and (declaration is None or declaration.evidence != "likelihood")
        higher = declaration.higher_is_better if declaration else True
        chosen[task] = MainMetric(best.metric, best.filter, share, higher)
    return chosen


def is_retrieval(metric: str) -> bool:
    """Whether the metric (`recall@5`, say) judges passages and not answers."""
    declaration = METRICS.get(metric_of(metric))
    return declaration is not None and declaration.evidence == "retrieval"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _json(value: Any) -> Any:
    """DuckDB hands JSON columns over as text, and MAP or STRUCT columns as objects."""
    return json.loads(value) if isinstance(value, str) and value else value


def _mapping(spec_text: str) -> Mapping[str, Any]:
    """The spec's keys; JSON is YAML too."""
    loaded = yaml.safe_load(spec_text) if spec_text else {}
    return loaded if isinstance(loaded, dict) else {}


def _order(spec: Mapping[str, Any], block: str) -> dict[str, int]:
    names = spec.get(block)
    return {name: at for at, name in enumerate(names)} if isinstance(names, dict) else {}
