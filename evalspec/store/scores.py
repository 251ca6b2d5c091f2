"""The scores of a run as aggregates and paired tests need them: by cell, stage, filter and metric, with clusters."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import duckdb

_QUERY = """
    SELECT s.cell_id, s.stage, s.filter, s.metric, s.sample_id, s.draw, s.value, s.weight, s.parts, a.cluster
    FROM scores s LEFT JOIN (
        SELECT cell_id, sample_id, any_value(cluster) AS cluster FROM samples WHERE run_id = $run GROUP BY ALL
    ) a USING (cell_id, sample_id)
    WHERE s.run_id = $run AND s.value IS NOT NULL AND ($metrics IS NULL OR list_contains($metrics, s.metric))
    ORDER BY s.cell_id, s.stage, s.filter, s.metric, s.sample_id
"""


class Scored(NamedTuple):
    """Whose scores they are."""

    cell_id: str
    stage: str | None
    filter: str | None
    metric: str


@dataclass
class ScoreColumns:
    """Scores as parallel lists, in the order of sample ids. `clusters` is None where a sample has none."""

    samples: list[str] = field(default_factory=list)
    draws: list[int | None] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    weights: list[float | None] = field(default_factory=list)
    parts: list[tuple[float, ...] | None] = field(default_factory=list)
    clusters: list[str] | None = field(default_factory=list)


def read_scores(
    connection: duckdb.DuckDBPyConnection, run_id: str, metrics: Collection[str] | None = None
) -> dict[Scored, ScoreColumns]:
    """All scores of a run, or those of some metrics (by the names they are stored under)."""
    wanted = None if metrics is None else list(metrics)
    found: dict[Scored, ScoreColumns] = {}
    rows = connection.execute(_QUERY, {"run": run_id, "metrics": wanted}).fetchall()
    for cell, stage, filter_, metric, sample, draw, value, weight, parts, cluster in rows:
        columns = found.setdefault(Scored(cell, stage, filter_, metric), ScoreColumns())
        columns.samples.append(sample)
        columns.draws.append(draw)
        columns.values.append(value)
        columns.weights.append(weight)
        columns.parts.append(None if parts is None else tuple(json.loads(parts)))
        if cluster is None:
            columns.clusters = None
        elif columns.clusters is not None:
            columns.clusters.append(cluster)
    return found
