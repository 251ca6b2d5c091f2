"""Models that say the same whatever they are asked: a score that a constant answer gets says nothing of reading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from evalspec.report.data import rows

if TYPE_CHECKING:
    import duckdb

SHARE = 0.95
"""Of a condition's answers: so many equal ones are the same answer."""
FEWEST = 10
"""Answers of a condition: fewer may well be equal."""

QUERY = """
WITH said AS (
  SELECT model, task, cell_id, trim(output) AS text, count(*) AS n
  FROM samples JOIN cells USING (run_id, cell_id)
  WHERE run_id = $run AND stage = 'main' AND error IS NULL AND output IS NOT NULL AND target IS NOT NULL
  GROUP BY ALL
), wanted AS (
  SELECT cell_id, trim(target) AS text, count(*) AS n
  FROM samples WHERE run_id = $run AND stage = 'main' AND error IS NULL AND output IS NOT NULL AND target IS NOT NULL
  GROUP BY ALL
)
SELECT model, task, cell_id, sum(s.n) AS n, max(s.n) AS most, arg_max(s.text, s.n) AS text,
       any_value(w.most) AS right_most
FROM said s JOIN (SELECT cell_id, max(n) AS most FROM wanted GROUP BY cell_id) w USING (cell_id)
GROUP BY model, task, cell_id
"""


def same_answers(connection: duckdb.DuckDBPyConnection, run_id: str, models: Sequence[str]) -> dict[str, str]:
    """By task, a sentence on the models that answer almost all samples of a condition alike though right answers
    differ; tasks without such a model are not in it."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    conditions: dict[tuple[str, str], int] = {}
    for row in rows(connection, QUERY, run=run_id):
        conditions[row["task"], row["model"]] = conditions.get((row["task"], row["model"]), 0) + 1
        enough = row["n"] >= FEWEST and row["most"] >= SHARE * row["n"]
        if enough and row["right_most"] < SHARE * row["n"]:
            found.setdefault(row["task"], []).append(row)
    return {
        task: _sentence([row for model in models for row in of if row["model"] == model], conditions)
        for task, of in found.items()
    }


def _sentence(alike: Sequence[Mapping[str, Any]], conditions: Mapping[tuple[str, str], int]) -> str:
    of_model: dict[str, list[Mapping[str, Any]]] = {}
    for row in alike:
        of_model.setdefault(row["model"], []).append(row)
    parts = []
    for model, found in of_model.items():
        texts = " or ".join(dict.fromkeys(_shown(row["text"]) for row in found))
        every = conditions[found[0]["task"], model]
        parts.append(f"{model} says {texts}" + (f" in {len(found)} of {every} conditions" if every > 1 else ""))
    shares = [row["right_most"] / row["n"] for row in alike]
    low, high = (f"{100 * share:.0f}" for share in (min(shares), max(shares)))
    constant = f"{low}%" if low == high else f"{low} to {high}%"
    return (
        f"The same answer whatever is asked (to {SHARE:.0%} of the samples or more): {'; '.join(parts)}. "
        f"Right answers differ: the most frequent of them alone is right for {constant}."
    )


def _shown(text: str) -> str:
    """An answer in quotes, as much of it as fits a sentence."""
    line = " ".join(text.split())
    return f"“{line if len(line) <= 40 else line[:39] + '…'}”" if line else "nothing"
