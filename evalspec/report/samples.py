"""The samples that a page carries to be read: all of them, or a chosen part when there are too many.

The part is stratified over cells and drawn by a hash of the sample's id, so that it is the same every time: up to
three quarters failures (they teach the most), the rest successes; what a stage's `when` left out is not among them.
Prompts repeat each other, between models and by their shots, so the page stores each prompt once, as what it adds to
the one before it in sorted order.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evalspec.report.data import is_retrieval, rows
from evalspec.report.results import Results

if TYPE_CHECKING:
    import duckdb

MOST_SAMPLES = 2000
MOST_CHARACTERS = 16_000_000
"""Of prompts, before repetition is taken out: long prompts make the part smaller."""
FAILED_BELOW = 0.5

# Ranked by their keys alone: the prompts of a large run stay where they are until the part is chosen.
CHOSEN = """
WITH main AS (SELECT unnest($tasks) AS task, unnest($names) AS metric, unnest($filters) AS filter,
                     unnest($bounds) AS failed_below),
judged AS (
  SELECT s.cell_id, s.sample_id, s.draw, s.repeat, s.stage,
         s.error IS NULL AND j.value IS NOT NULL AND m.failed_below IS NOT NULL AS judged,
         s.error IS NOT NULL OR coalesce(j.value < m.failed_below, false) AS failed
  FROM samples s JOIN cells c USING (run_id, cell_id)
  LEFT JOIN main m ON m.task = c.task
  LEFT JOIN scores j ON j.run_id = s.run_id AND j.cell_id = s.cell_id AND j.sample_id = s.sample_id
    AND j.draw IS NOT DISTINCT FROM s.draw AND j.repeat IS NOT DISTINCT FROM s.repeat
    AND j.stage IS NOT DISTINCT FROM s.stage AND j.metric = m.metric AND j.filter IS NOT DISTINCT FROM m.filter
  WHERE s.run_id = $run AND s.finish_reason IS DISTINCT FROM 'skipped'),
placed AS (
  SELECT *, row_number() OVER (PARTITION BY cell_id, failed ORDER BY md5(sample_id), draw, repeat, stage) AS place,
         count(*) FILTER (failed) OVER (PARTITION BY cell_id) AS failures,
         count(*) FILTER (NOT failed) OVER (PARTITION BY cell_id) AS successes
  FROM judged),
chosen AS (
  SELECT * FROM placed
  WHERE CASE WHEN failed THEN place <= greatest($quota - $quota // 4, $quota - successes)
             ELSE place <= greatest($quota // 4, $quota - failures) END)
SELECT s.*, c.judged, c.failed
FROM samples s JOIN chosen c ON c.cell_id = s.cell_id AND c.sample_id = s.sample_id
  AND c.draw IS NOT DISTINCT FROM s.draw AND c.repeat IS NOT DISTINCT FROM s.repeat
  AND c.stage IS NOT DISTINCT FROM s.stage
WHERE s.run_id = $run ORDER BY s.sample_id, s.draw, s.repeat, s.stage <> 'main', s.stage"""
WANTED = "(SELECT DISTINCT unnest($cells) AS cell_id, unnest($samples) AS sample_id) AS wanted"


@dataclass(frozen=True)
class SampleSet:
    """What the page embeds: how many samples there are and how many it shows, and the values its script reads."""

    total: int
    shown: int
    payload: Mapping[str, Any]


def samples_of(connection: duckdb.DuckDBPyConnection, results: Results, most: int = MOST_SAMPLES) -> SampleSet:
    """Choose at most `most` samples of the run, fewer when their prompts are very long, with scores and passages."""
    run_id = results.run.run_id
    size = rows(connection, "SELECT avg(length(prompt)) AS mean FROM samples WHERE run_id = $run", run=run_id)[0][
        "mean"
    ]
    most = max(1, min(most, int(MOST_CHARACTERS / (size or 1))))
    total = results.samples
    quota = total if total <= most else max(1, most // len(results.cells))
    main = results.main
    chosen = rows(
        connection,
        CHOSEN,
        run=run_id,
        tasks=list(main),
        names=[metric.name for metric in main.values()],
        filters=[metric.filter for metric in main.values()],
        bounds=[FAILED_BELOW if metric.share else None for metric in main.values()],
        quota=quota,
    )
    place = {cell.cell_id: at for at, cell in enumerate(results.cells)}
    # Python's sort is stable: within a cell the order of ids stays.
    chosen = sorted(chosen, key=lambda row: place[row["cell_id"]])[:most]
    return SampleSet(total, len(chosen), _payload(connection, results, chosen))


def _payload(connection: duckdb.DuckDBPyConnection, results: Results, chosen: list[dict[str, Any]]) -> dict[str, Any]:
    cells = {cell.cell_id: at for at, cell in enumerate(results.cells)}
    scores = _scores(connection, results.run.run_id, chosen)
    passages = _passages(connection, results.run.run_id, chosen)
    order = sorted({row["prompt"] or "" for row in chosen})
    prompt_at = {prompt: at for at, prompt in enumerate(order)}
    kinds: dict[tuple[str, str | None], int] = {}  # (metric, filter)
    known: dict[tuple[str, str | None], int] = {}  # (passage id, text)
    lists: dict[str, int] = {}
    samples = []
    for row in chosen:
        found = passages.get((row["cell_id"], row["sample_id"]))
        listed = None
        if found is not None:
            short = [[known.setdefault((p, text), len(known)), *rest] for p, text, *rest in found]
            listed = lists.setdefault(json.dumps(short), len(lists))
        judged = [
            [
                kinds.setdefault((metric, name), len(kinds)),
                value,
                *([said, 1] if taken is False else [] if said in (None, row["output"]) else [said]),
            ]
            # A vote over repeats belongs to each of them.
            for metric, name, value, said, taken in [*scores.get(_key(row), ()), *scores.get(_key(row, vote=True), ())]
        ]
        sample = {
            "cell": cells[row["cell_id"]],
            "id": row["sample_id"],
            "repeat": row["repeat"] or None,
            "stage": row["stage"],
            "draw": row["draw"] or None,
            "prompt": prompt_at[row["prompt"] or ""],
            "target": row["target"],
            "output": row["output"],
            "choices": _json(row["choices"]),
            "logprobs": _json(row["logprobs"]),
            "shots": _json(row["shot_ids"]) or None,
            "tokens": row["prompt_tokens"],
            "truncated": row["truncated_tokens"] or None,
            "finish": row["finish_reason"],
            "cached": row["cached"] or None,
            "error": row["error"],
            "failed": row["failed"] or None,
            "judged": row["judged"] or None,
            "scores": judged or None,
            "passages": listed,
        }
        samples.append({name: value for name, value in sample.items() if value is not None})
    return {
        "cells": [[cell.model, cell.task, cell.condition.label] for cell in results.cells],
        "prompts": shared_starts(order),
        "metrics": list(kinds),
        "passages": list(known),
        "retrieved": [json.loads(text) for text in lists],
        "samples": samples,
    }


def shared_starts(texts: list[str]) -> list[tuple[int, str]]:
    """Sorted texts as (length shared with the text before, the rest); lengths in UTF-16 units, as JavaScript counts."""
    pairs, before = [], ""
    for text in texts:
        shared = next(
            (at for at, (a, b) in enumerate(zip(before, text, strict=False)) if a != b), min(len(before), len(text))
        )
        pairs.append((len(text[:shared].encode("utf-16-le")) // 2, text[shared:]))
        before = text
    return pairs


def _scores(
    connection: duckdb.DuckDBPyConnection, run_id: str, chosen: list[dict[str, Any]]
) -> dict[tuple[Any, ...], list[list[Any]]]:
    """Sample → [metric, filter, value, extracted, whether it was found]; retrieval metrics last."""
    query = f"SELECT scores.* FROM scores JOIN {WANTED} USING (cell_id, sample_id) WHERE run_id = $run ORDER BY ALL"
    found: dict[tuple[Any, ...], list[list[Any]]] = {}
    for row in rows(connection, query, run=run_id, **_wanted(chosen)):
        score = [row["metric"], row["filter"], _rounded(row["value"]), row["extracted"], row["found"]]
        found.setdefault(_key(row), []).append(score)
    for scores in found.values():
        scores.sort(key=lambda score: is_retrieval(score[0]))
    return found


def _passages(
    connection: duckdb.DuckDBPyConnection, run_id: str, chosen: list[dict[str, Any]]
) -> dict[tuple[str, str], list[list[Any]]]:
    """(cell, sample) → [passage id, text, rank, score, relevant] by rank; text None in old rows."""
    query = f"SELECT r.* FROM retrievals r JOIN {WANTED} USING (cell_id, sample_id) WHERE run_id = $run ORDER BY rank"
    found: dict[tuple[str, str], list[list[Any]]] = {}
    for row in rows(connection, query, run=run_id, **_wanted(chosen)):
        score, relevant = _rounded(row["score"]), int(bool(row["relevant"]))
        passage = [row["passage_id"], row["text"], row["rank"], score, relevant]
        found.setdefault((row["cell_id"], row["sample_id"]), []).append(passage)
    return found


def _wanted(chosen: list[dict[str, Any]]) -> dict[str, list[str]]:
    return {"cells": [row["cell_id"] for row in chosen], "samples": [row["sample_id"] for row in chosen]}


def _key(row: Mapping[str, Any], *, vote: bool = False) -> tuple[Any, ...]:
    return row["cell_id"], row["sample_id"], row["draw"], None if vote else row["repeat"], row["stage"]


def _rounded(value: float | None) -> float | str | None:
    """Four digits; what JSON has no number for (an infinite loss) as text."""
    return value if value is None else round(value, 4) if math.isfinite(value) else str(value)


def _json(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value
