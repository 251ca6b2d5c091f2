"""A run judges the hypotheses of its spec by paired tests on its own samples, and its page begins with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evalspec.plan.compile import compile_plan
from evalspec.runs.run import Finished, run
from evalspec.spec import load
from evalspec.store import Store

ROOT = Path(__file__).parents[2]
SPEC: dict[str, Any] = {
    "name": "hypotheses",
    "models": {"transformer": {"weights": "zoo/transformer"}, "mamba2": {"weights": "zoo/mamba2"}},
    "tasks": {
        "records": {
            "data": {"generate": "world.records", "count": 24, "seed": 11},
            "prompt": {"template": "prompts/records.jinja", "target": "{{ value }}"},
            "decode": {"max_tokens": 2, "stop": ["\n"]},
            "metrics": ["exact_match"],
        }
    },
    "sweep": {"tasks.records.data.options.n": [4, 16]},
    "hypotheses": {
        "models": {
            "claim": "Mamba-2 recalls more", "each": ["n"],
            "better": {"model": "mamba2"}, "than": {"model": "transformer"},
        },
        "length": {
            "claim": "More records are harder", "each": ["model"],
            "better": {"where": {"n": 4}}, "than": {"where": {"n": 16}},
        },
        "beyond": {
            "claim": "Beyond", "better": {"model": "mamba2"}, "than": {"model": "transformer"}, "length": "beyond",
        },
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Finished]:
    folder = tmp_path_factory.mktemp("hypotheses")
    store = Store(folder / "store.duckdb")
    return store, run(compile_plan(load(SPEC, root=ROOT)), store, folder)


def test_verdicts_are_those_of_the_paired_scores(done: tuple[Store, Finished]) -> None:
    store, finished = done
    rows = {row["hypothesis"]: row for row in store.rows("verdicts", finished.run_id)}
    assert set(rows) == {"models (n = 4)", "models (n = 16)", "length (model = transformer)", "length (model = mamba2)"}
    query = """
        SELECT avg(b.value - a.value), count(*) FROM scores a JOIN scores b USING (run_id, sample_id, metric)
        JOIN cells ca ON ca.cell_id = a.cell_id AND ca.run_id = a.run_id
        JOIN cells cb ON cb.cell_id = b.cell_id AND cb.run_id = b.run_id
        WHERE run_id = ? AND ca.model = 'transformer' AND cb.model = 'mamba2' AND ca.params = cb.params
        AND json_extract_string(ca.params, '$."tasks.records.data.options.n"') = '4'"""
    with store.connect() as connection:
        expected = connection.execute(query, [finished.run_id]).fetchone()
    row = rows["models (n = 4)"]
    assert (row["statistic"], row["n"]) == pytest.approx(expected)
    assert (row["verdict"], row["method"], row["family"]) == ("supported", "McNemar", 4)
    assert row["ci_low"] < row["statistic"] < row["ci_high"]
    assert row["p_value"] <= row["p_holm"] < 0.05
    assert (rows["length (model = mamba2)"]["verdict"], rows["length (model = mamba2)"]["reason"]) == (
        "undecided",
        "ceiling",
    )


def test_the_page_begins_with_the_claims(done: tuple[Store, Finished]) -> None:
    page = done[1].report.read_text(encoding="utf-8")
    assert "Mamba-2 recalls more:" in page
    assert page.index("Mamba-2 recalls more:") < page.index("<table")
    assert "both at the ceiling" in page


def test_running_again_keeps_the_verdicts(done: tuple[Store, Finished]) -> None:
    store, finished = done
    again = run(compile_plan(load(SPEC, root=ROOT)), store, finished.report.parent)
    assert (again.run_id, again.computed) == (finished.run_id, 0)
    assert len(store.rows("verdicts", again.run_id)) == 4
