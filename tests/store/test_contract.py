"""The names that people outside the code rely on."""

from __future__ import annotations

from pathlib import Path

import pytest

from evalspec.errors import StoreError
from evalspec.store import Store, query
from evalspec.store.documentation import with_reference
from evalspec.store.schema import SCHEMA_VERSION, TABLES
from evalspec.store.views import VIEWS

CONTRACT = {
    "runs": "run_id, spec_name, spec, plan_id, status, started_at, finished_at, evalspec_version, git_commit, host, "
    "device, versions",
    "cells": "run_id, cell_id, model, weights_hash, task, params",
    "samples": "run_id, cell_id, sample_id, repeat, stage, prompt, target, output, choices, logprobs, shot_ids, "
    "prompt_tokens, truncated_tokens, finish_reason, cached, error",
    "scores": "run_id, cell_id, sample_id, repeat, stage, filter, metric, extracted, value",
    "metrics": "run_id, cell_id, filter, metric, value, stderr, ci_low, ci_high, n",
    "retrievals": "run_id, cell_id, sample_id, rank, passage_id, score, relevant",
    "efficiency": "run_id, cell_id, prompt_tokens, distinct_tokens, computed_tokens, seconds, tokens_per_second, "
    "peak_memory_bytes, state_bytes",
    "measurements": "run_id, cell_id, kind, length, batch, repeat, seconds, tokens, peak_memory_bytes, energy_joules",
    "representations": "run_id, cell_id, cell_b, layer, layer_b, position, measure, value, ci_low, ci_high, n, reason",
    "training": "run_id, model, seed, learning_rate, step, loss",
    "verdicts": "run_id, hypothesis, statistic, ci_low, ci_high, verdict",
}
JSON_COLUMNS = {("samples", "choices"), ("samples", "logprobs"), ("cells", "params")}


@pytest.mark.parametrize("table", CONTRACT)
def test_every_table_has_the_columns_of_the_contract(table: str, store: Store) -> None:
    described = {row[0]: row[1] for row in query(store, f"DESCRIBE {table}").rows}
    for column in CONTRACT[table].split(", "):
        assert column in described
        assert (described[column] == "JSON") == ((table, column) in JSON_COLUMNS or column in ("versions", "shot_ids"))


def test_segments_and_database_have_the_same_columns(store: Store, begin, samples) -> None:
    begin().commit({"samples": samples(0, 1)})
    unmerged = {name: query(store, f"DESCRIBE {name}").rows for name in TABLES}
    store.merge()
    for name in TABLES:
        assert [row[:2] for row in query(store, f"DESCRIBE {name}").rows] == [row[:2] for row in unmerged[name]]


def test_every_column_says_what_it_is_in_the_database_too(store: Store, begin) -> None:
    begin().finish()
    store.merge()
    with store.connect() as connection:
        comments = dict(
            connection.execute(
                "SELECT table_name || '.' || column_name, comment FROM duckdb_columns() "
                "WHERE database_name = 'evalspec_database' AND NOT internal"
            ).fetchall()
        )
        (version,) = connection.execute("SELECT schema_version FROM evalspec_database.store_info").fetchone()
    assert version == SCHEMA_VERSION
    for table in TABLES.values():
        for column in table.columns:
            assert column.about and comments[f"{table.name}.{column.name}"] == column.about


def test_the_views_answer_on_an_empty_store_and_leave_no_file(store: Store) -> None:
    for view in VIEWS:
        assert query(store, f"SELECT * FROM {view.name}").rows == []
    assert list(store.path.parent.iterdir()) == []


def test_the_views_answer_what_they_promise(store: Store, begin, samples) -> None:
    writer = begin()
    key = {"cell_id": "c1", "sample_id": "s0"}
    writer.commit(
        {
            "samples": samples(0, 2),
            "scores": [{**key, "repeat": 0, "draw": 0, "stage": "main", "metric": "exact_match", "value": 1.0}],
            "retrievals": [{**key, "rank": 1, "relevant": False}, {**key, "rank": 2, "relevant": True}],
            "metrics": [{"cell_id": "c1", "metric": "exact_match", "value": 1.0, "ci_low": 0.5, "ci_high": 1.0}],
            "efficiency": [{"cell_id": "c1", "prompt_tokens": 30, "distinct_tokens": 10.0}],
        }
    )
    writer.finish()
    store.merge()
    begin()  # a newer run of the same spec
    assert query(
        store, "SELECT count(*), max(run_id) <> ? FROM latest_runs".replace("?", f"'{writer.run_id}'")
    ).rows == [(1, True)]
    assert query(store, "SELECT spec_name, model, task, metric, value FROM results").rows == [
        ("rag", "mamba", "open_book", "exact_match", 1.0)
    ]
    assert query(store, "SELECT sample_id, metric, value FROM answers ORDER BY 1").rows == [
        ("s0", "exact_match", 1.0),
        ("s1", None, None),
    ]
    assert query(store, "SELECT passages, gold_rank, gold_shown, value FROM retrieval_and_answer").rows == [
        (2, 2, True, 1.0)
    ]
    assert query(store, "SELECT sharing FROM costs").rows == [(3.0,)]


def test_the_page_on_the_store_is_made_from_the_schema() -> None:
    page = (Path(__file__).parents[2] / "docs" / "store.md").read_text(encoding="utf-8")
    assert page == with_reference(page), "run `python -m evalspec.store.documentation`"


def test_a_wrong_column_a_missing_key_and_a_wrong_type_are_refused_before_anything_is_written(
    store, begin, samples
) -> None:
    writer = begin()
    for rows, message in [
        ({"samples": samples(0, 1, outputs="x")}, "no column `outputs`. Did you mean `output`?"),
        ({"samples": samples(0, 1, sample_id=None)}, "no `sample_id`"),
        ({"samples": samples(0, 1, prompt=3)}, "3 is not text"),
        ({"samples": samples(0, 1, prompt_tokens="3")}, "`samples.prompt_tokens` is BIGINT"),
        ({"samples": samples(0, 1, prompt_tokens=1.5)}, "`samples.prompt_tokens` is BIGINT"),
        ({"samples": samples(0, 1, cached="no")}, "`samples.cached` is BOOLEAN"),
        ({"samples": samples(0, 1, run_id="another")}, "belongs to run another"),
        ({"smaples": samples(0, 1)}, "no table `smaples`. Did you mean `samples`?"),
    ]:
        with pytest.raises(StoreError, match=message.replace("?", r"\?").replace(".", r"\.")):
            writer.commit({"scores": [], **rows})
    assert query(store, "SELECT count(*) FROM samples").rows == [(0,)]
    writer.commit({"samples": samples(0, 1)})
    assert query(store, "SELECT count(*) FROM samples").rows == [(1,)]
