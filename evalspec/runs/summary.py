"""What the command line says of runs: the table after a run, the list of runs, one run."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import yaml

from evalspec.errors import StoreError, suggest
from evalspec.report.wording import plain
from evalspec.spec.conditions import Condition, Conditions
from evalspec.spec.needs import METRICS as DECLARED
from evalspec.spec.needs import metric_of
from evalspec.store import Store
from evalspec.tabular import table

if TYPE_CHECKING:
    import duckdb

    from evalspec.runs.run import Finished  # which brings torch: listing runs should not wait for it

RUNS = """
    SELECT r.run_id, r.spec_name, r.status, r.started_at, r.finished_at, r.plan_id,
           (SELECT count(*) FROM cells c WHERE c.run_id = r.run_id) AS cells,
           (SELECT count(*) FROM samples s WHERE s.run_id = r.run_id) AS samples,
           (SELECT count(*) FROM samples s WHERE s.run_id = r.run_id AND s.error IS NOT NULL) AS failed
    FROM runs r ORDER BY r.started_at DESC, r.run_id
"""
METRICS = """
    SELECT c.model, c.task, c.params, m.stage, m.filter, m.metric, m.value, m.ci_low, m.ci_high, m.n
    FROM metrics m JOIN cells c USING (run_id, cell_id) WHERE m.run_id = ?
    ORDER BY m.metric, c.task, c.params, m.stage, m.filter, c.model
"""
NOT_FOUND = """
    SELECT c.model, c.task, c.params, s.stage, s.filter, count(*) FILTER (NOT s.found) AS not_found, count(*) AS answers
    FROM (SELECT DISTINCT cell_id, sample_id, draw, repeat, stage, filter, found
          FROM scores WHERE run_id = ? AND found IS NOT NULL) s
    JOIN cells c ON c.run_id = ? AND c.cell_id = s.cell_id
    GROUP BY ALL HAVING not_found > 0 ORDER BY c.task, c.params, s.stage, s.filter, c.model
"""


MEASURED = """
    SELECT model, params, kind, length, batch, repeats, seconds, seconds_min, seconds_max, tokens_per_second,
           seconds_per_token, added_memory_bytes, state_bytes, predicted_state_bytes, energy_joules, device, error
    FROM measurement_summary WHERE run_id = ? ORDER BY kind, batch, length, model, params
"""


Grouped = dict[tuple["str | Condition", ...], dict[str, str]]
"""Of each line of a table, what each model's column says."""

MOST_COLUMNS = 6
"""Models side by side in a table for a terminal."""


def find_run(connection: duckdb.DuckDBPyConnection, wanted: str | None) -> str:
    """The run that a user means: an id, the beginning of one, or a spec's name (its newest run); None is the newest.

    Raises StoreError when there is none, or several begin so.
    """
    runs = connection.execute("SELECT run_id, spec_name FROM runs ORDER BY started_at DESC, run_id").fetchall()
    if not runs:
        raise StoreError("the store holds no runs yet; `evalspec run SPEC` makes one")
    if wanted is None:
        return str(runs[0][0])
    begin = [run_id for run_id, _ in runs if run_id.startswith(wanted)]
    if wanted in begin or len(begin) == 1:
        return wanted if wanted in begin else str(begin[0])
    named = [run_id for run_id, name in runs if name == wanted]
    if named:
        return str(named[0])
    if begin:
        raise StoreError(f"{len(begin)} runs begin with {wanted}: {', '.join(begin[:5])}")
    known = [name for run in runs for name in run]
    raise StoreError(f"there is no run `{wanted}`.{suggest(wanted, known)} `evalspec ls` lists them")


def _conditions(connection: duckdb.DuckDBPyConnection, run_id: str, *, alone: bool = False) -> Conditions:
    """What the conditions of a run are called, as in its report; `alone`: those of models that are measured alone."""
    query = f"SELECT params FROM cells WHERE run_id = ? AND task IS {'' if alone else 'NOT'} NULL"
    return Conditions(_params(found) for (found,) in connection.execute(query, [run_id]).fetchall())


def _params(stored: str | None) -> dict[str, Any]:
    return dict(json.loads(stored)) if stored else {}


def _metrics_text(store: Store, run_id: str, title: str, only: Collection[str] | None = None) -> str:
    """Metrics by condition, one column a model; `only` names the metrics to show."""
    with store.connect() as connection:
        rows = connection.execute(METRICS, [run_id]).fetchall()
        conditions = _conditions(connection, run_id)
    grouped: Grouped = {}
    for model, task, params, stage, chain, metric, value, low, high, _ in rows:
        if only is None or metric in only or metric_of(metric) in only:
            shown = plain(value) + ("" if low is None else f" [{plain(low)}, {plain(high)}]")
            key = (metric, task, stage, chain, conditions.of(_params(params)))
            grouped.setdefault(key, {})[model] = shown
    return _by_model(store, run_id, ("metric", "task", "stage", "filter", "condition"), grouped, title)


def _by_model(store: Store, run_id: str, names: tuple[str, ...], grouped: Grouped, title: str) -> str:
    """Tables of one column a model, a few models each; stage, filter and condition stand there only where something has
    another than the usual."""
    listed = list(_spec(store, run_id).get("models") or ())
    models = sorted(
        {model for found in grouped.values() for model in found},
        key=lambda model: listed.index(model) if model in listed else 99,
    )
    usual: dict[str, set[Any]] = {"stage": {"main"}, "filter": {"default"}, "condition": {Condition(())}}
    kept = [at for at, name in enumerate(names) if name not in usual or not {key[at] for key in grouped} <= usual[name]]
    ordered = sorted(grouped.items(), key=lambda item: [_order(part) for part in item[0]])
    heads = [names[at] for at in kept]
    tables: list[str] = []
    for some in _even(models):
        lines = [
            [*(_text(key[at]) for at in kept), *(found.get(model, "") for model in some)] for key, found in ordered
        ]
        tables.append(table([*heads, *some], lines, None if tables else title))
    return "\n\n".join(tables)


def _even(models: list[str]) -> list[list[str]]:
    """As few groups of at most `MOST_COLUMNS` models as there can be, of like size; one group of no models."""
    groups = max(1, -(-len(models) // MOST_COLUMNS))
    size = max(1, -(-len(models) // groups))
    return [models[at : at + size] for at in range(0, max(1, len(models)), size)]


def _not_found_text(store: Store, run_id: str) -> str:
    """Where extractions found no answer: how many of how many, one column a model; empty when every one did."""
    with store.connect() as connection:
        rows = connection.execute(NOT_FOUND, [run_id, run_id]).fetchall()
        conditions = _conditions(connection, run_id)
    grouped: Grouped = {}
    for model, task, params, stage, chain, missing, answers in rows:
        key = (task, stage, chain, conditions.of(_params(params)))
        grouped.setdefault(key, {})[model] = f"{missing:,} of {answers:,}"
    if not grouped:
        return ""
    title = "no answer found (scored as wrong; `SELECT * FROM scores WHERE NOT found` lists them)"
    return _by_model(store, run_id, ("task", "stage", "filter", "condition"), grouped, title)


def _order(part: str | Condition) -> list[Any]:
    return list(part.order) if isinstance(part, Condition) else _natural(part or "")


def _text(part: str | Condition) -> str:
    return part.label if isinstance(part, Condition) else part


def _natural(text: str) -> list[tuple[int, str]]:
    """A sorting key by which k=3 stands before k=10."""
    parts = re.split(r"(\d+)", text)
    return [(int(part), "") if part.isdecimal() else (0, part) for part in parts]


def _spec(store: Store, run_id: str) -> dict[str, Any]:
    """The spec of a run, as it was run."""
    with store.connect() as connection:
        found = connection.execute("SELECT spec FROM runs WHERE run_id = ?", [run_id]).fetchone()
    return dict(yaml.safe_load(found[0])) if found else {}


def _main_metrics(store: Store, run_id: str) -> list[str]:
    """The first metric of each task that judges answers, as the spec lists them."""
    tasks = _spec(store, run_id).get("tasks") or {}
    names = []
    for task in tasks.values():
        listed = [m if isinstance(m, str) else m.get("metric", "") for m in task.get("metrics") or ()]
        names += [name for name in listed if name not in DECLARED or DECLARED[name].evidence != "retrieval"][:1]
    return names


def _measurements(store: Store, run_id: str) -> list[dict[str, Any]]:
    """Every point of the run's `measure` block, summed up over its repeats."""
    with store.connect() as connection:
        cursor = connection.execute(MEASURED, [run_id])
        names = [column[0] for column in cursor.description or ()]
        rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    return [{**row, "params": json.loads(row["params"]) if row["params"] else {}} for row in rows]


def _measured_text(store: Store, run_id: str) -> str:
    """Medians of each model alone, by context and batch, one column a model; empty where nothing was measured."""
    rows = _measurements(store, run_id)
    with store.connect() as connection:
        conditions = _conditions(connection, run_id, alone=True)
    names = [conditions.model(row["model"], row["params"]) for row in rows]
    listed = list(_spec(store, run_id).get("models") or ())
    model_of = dict(zip(names, (row["model"] for row in rows), strict=True))
    models = sorted(model_of, key=lambda name: listed.index(model_of[name]) if model_of[name] in listed else 99)
    grouped: dict[tuple[str, int, int], dict[str, str]] = {}
    for name, row in zip(names, rows, strict=True):
        if row["seconds"] is None:
            shown = "–"
        elif row["kind"] == "throughput":
            shown = f"{row['tokens_per_second']:,.0f}"
        else:
            value = row["seconds_per_token"] if row["kind"] == "decode" else row["seconds"]
            shown = f"{1000 * value:,.1f}"
        grouped.setdefault((row["kind"], row["batch"], row["length"]), {})[name] = shown
    units = {"prefill": "prefill, ms", "decode": "decode, ms a token", "throughput": "throughput, new tokens/s"}
    ordered = sorted(grouped.items(), key=lambda item: (list(units).index(item[0][0]), item[0]))
    tables = [
        table(
            ["each model alone", "context", "batch", *some],
            [[units[kind], length, batch, *(found.get(name, "") for name in some)]
             for (kind, batch, length), found in ordered],
        )
        for some in _even(models)
    ]  # fmt: skip
    return "\n\n".join(tables) if ordered else ""


def _claims_text(store: Store, run_id: str) -> str:
    """The hypotheses of a run's spec with their verdicts, as its report begins with them; empty without any."""
    spec = _spec(store, run_id)
    if not spec.get("hypotheses") and not spec.get("published"):
        return ""
    from evalspec.report.data import read_claims, read_run  # which bring the report's packages: half a second

    with store.connect() as connection:
        claims = read_claims(connection, read_run(connection, run_id))
    lines = []
    for claim in claims:
        lines += [f"{claim.claim}: {claim.said}", *(f"  {line}" for line in claim.listed)]
    return "\n".join(lines).replace("\u00a0", " ")


def finished_table(finished: Finished, store: Store) -> str:
    """What a run came to: its metrics with 95 % intervals, what it cost, where the report is."""
    title = f"run {finished.run_id}: {finished.status} (95 % intervals; `evalspec show` has every metric)"
    parts = []
    if finished.samples:
        parts.append(_metrics_text(store, finished.run_id, title, _main_metrics(store, finished.run_id) or None))
    alone = _measured_text(store, finished.run_id)
    parts += [alone] if alone else []
    text = "\n\n".join(parts) if finished.samples else f"run {finished.run_id}: {finished.status}\n\n{alone}"
    counts = f"{finished.samples:,} samples: {finished.computed:,} computed now"
    if finished.cached:
        counts += f", {finished.cached:,} taken from earlier runs"
    if finished.failed:
        counts += f", {finished.failed:,} failed"
    if alone:
        counts += f"; {finished.measured:,} timings made now"
    counts += f"; {finished.computed_tokens:,} tokens fed; {finished.seconds:.1f} s"
    missing = _not_found_text(store, finished.run_id)
    claims = _claims_text(store, finished.run_id)
    text += f"\n\n{claims}\n" if claims else ""
    return "\n".join(part for part in (text, missing, counts, f"report: {finished.report}") if part)


def finished_json(finished: Finished, store: Store) -> dict[str, Any]:
    """The same for machines."""
    return {
        **vars(finished),
        "report": str(finished.report),
        "metrics": _metrics(store, finished.run_id),
        "not_found": _not_found(store, finished.run_id),
        "measurements": _measurements(store, finished.run_id),
    }


def _metrics(store: Store, run_id: str) -> list[dict[str, Any]]:
    return _with_params(store, METRICS, [run_id])


def _not_found(store: Store, run_id: str) -> list[dict[str, Any]]:
    return _with_params(store, NOT_FOUND, [run_id, run_id])


def _with_params(store: Store, query: str, values: list[str]) -> list[dict[str, Any]]:
    with store.connect() as connection:
        cursor = connection.execute(query, values)
        names = [column[0] for column in cursor.description or ()]
        rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    return [{**row, "params": json.loads(row["params"]) if row["params"] else {}} for row in rows]


def runs_json(store: Store) -> list[dict[str, Any]]:
    """All runs, newest first."""
    with store.connect() as connection:
        cursor = connection.execute(RUNS)
        names = [column[0] for column in cursor.description or ()]
        rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    return [{name: _plain(value) for name, value in row.items()} for row in rows]


def _plain(value: Any) -> Any:
    return value.isoformat(timespec="seconds") if hasattr(value, "isoformat") else value


def runs_table(store: Store) -> str:
    """All runs as a table, newest first."""
    columns = ["run_id", "spec_name", "status", "started_at", "cells", "samples", "failed"]
    return table(columns, [[run[name] for name in columns] for run in runs_json(store)])


def run_json(store: Store, wanted: str | None) -> dict[str, Any]:
    """One run and its metrics."""
    with store.connect() as connection:
        run_id = find_run(connection, wanted)
        cursor = connection.execute("SELECT * FROM runs WHERE run_id = ?", [run_id])
        names = [column[0] for column in cursor.description or ()]
        [row] = cursor.fetchall()
    return {
        **{name: _plain(value) for name, value in zip(names, row, strict=True)},
        "metrics": _metrics(store, run_id),
        "measurements": _measurements(store, run_id),
    }


def run_table(store: Store, wanted: str | None) -> str:
    """One run: what it was, and its metrics."""
    run = run_json(store, wanted)
    facts = [
        (name, value)
        for name, value in run.items()
        if name not in ("spec", "metrics", "measurements") and value is not None
    ]
    about = "\n".join(f"{name:>17}  {value}" for name, value in facts)
    parts = [about]
    if run["metrics"] or not run["measurements"]:
        parts.append(_metrics_text(store, run["run_id"], "metrics (95 % intervals)"))
    if run["measurements"]:
        parts.append(_measured_text(store, run["run_id"]))
    parts += [_claims_text(store, run["run_id"]), _not_found_text(store, run["run_id"])]
    return "\n\n".join(part for part in parts if part)
