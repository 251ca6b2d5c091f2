"""A run judges the hypotheses of its spec by paired tests on its own samples, and its page begins with them."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest

from evalspec.errors import EvalspecError, SpecError
from evalspec.metrics.hierarchy import Level, compare_architectures
from evalspec.plan.compile import compile_plan
from evalspec.runs.run import Finished, run
from evalspec.runs.summary import finished_table, run_table
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
    assert "hierarchical" not in page


def test_the_terminal_says_the_claims_too(done: tuple[Store, Finished]) -> None:
    store, finished = done
    for text in (finished_table(finished, store), run_table(store, finished.run_id)):
        assert re.search(r"^Mamba-2 recalls more: supported for n = 4 \(\+\d+\.\d points \[", text, re.M)


def test_running_again_keeps_the_verdicts(done: tuple[Store, Finished]) -> None:
    store, finished = done
    again = run(compile_plan(load(SPEC, root=ROOT)), store, finished.report.parent)
    assert (again.run_id, again.computed) == (finished.run_id, 0)
    assert len(store.rows("verdicts", again.run_id)) == 4


# The zoo's models in two precisions stand for training seeds: what is judged is how seeds enter, not what they say.
ARCHITECTURES: dict[str, Any] = {
    **SPEC,
    "models": {
        "transformer": {"weights": "zoo/transformer", "seed_of": "attention"},
        "transformer-2": {"weights": "zoo/transformer", "seed_of": "attention", "dtype": "bfloat16"},
        "mamba": {"weights": "zoo/mamba", "seed_of": "recurrent"},
        "mamba2": {"weights": "zoo/mamba2", "seed_of": "recurrent"},
        "mamba2-2": {"weights": "zoo/mamba2", "seed_of": "recurrent", "dtype": "bfloat16"},
    },
    "sweep": {"tasks.records.data.options.n": [4, 48]},
    "hypotheses": {
        "recall": {
            "claim": "Recurrent models recall more",
            "better": {"architecture": "recurrent"}, "than": {"architecture": "attention"},
        },
        "each": {
            "claim": "At each length", "each": ["n"],
            "better": {"architecture": "recurrent"}, "than": {"architecture": "attention"},
        },
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Finished]:
    folder = tmp_path_factory.mktemp("architectures")
    store = Store(folder / "store.duckdb")
    return store, run(compile_plan(load(ARCHITECTURES, root=ROOT)), store, folder)


def test_architectures_are_judged_over_their_seeds(seeds: tuple[Store, Finished]) -> None:
    store, finished = seeds
    rows = {row["hypothesis"]: row for row in store.rows("verdicts", finished.run_id)}
    query = """
        SELECT c.model, s.draw, s.sample_id, s.value, c.params::JSON->>'tasks.records.data.options.n'
        FROM scores s JOIN cells c USING (run_id, cell_id) WHERE run_id = ?"""
    with store.connect() as connection:
        scores = connection.execute(query, [finished.run_id]).fetchall()
    for n in ("4", "48"):
        sides = [
            [
                Level(model, draw, sample, value)
                for model, draw, sample, value, at in scores
                if at == n and model in names
            ]
            for names in (("mamba", "mamba2", "mamba2-2"), ("transformer", "transformer-2"))
        ]
        expected, row = compare_architectures(*sides), rows[f"each (n = {n})"]
        assert (expected.seeds_a, expected.seeds_b) == (3, 2)
        for column in ("ci_low", "ci_high", "p_value", "n", "units"):
            assert row[column] == pytest.approx(getattr(expected, column)), column
        assert row["statistic"] == pytest.approx(expected.difference)
        assert row["components"] == pytest.approx(expected.components)
        assert (row["model_a"], row["model_b"], row["method"]) == ("recurrent", "attention", "hierarchical")
    both = rows["recall"]
    assert (both["n"], both["units"]) == (48, 24), "a sample at two points of the sweep is one unit"
    assert both["statistic"] == pytest.approx(
        (rows["each (n = 4)"]["statistic"] + rows["each (n = 48)"]["statistic"]) / 2
    )


def test_the_page_says_what_training_brings_to_the_uncertainty(seeds: tuple[Store, Finished]) -> None:
    page = seeds[1].report.read_text(encoding="utf-8")
    assert re.search(r"Recurrent models recall more:.{1,400}\d+\s% of the variance from training seeds", page, re.S)
    assert "Architectures: a hierarchical bootstrap over training seeds, draws and samples." in page


def test_saying_whose_seed_a_model_is_changes_no_answer_but_what_is_judged() -> None:
    without = copy.deepcopy(ARCHITECTURES)
    without["models"]["mamba2-2"]["seed_of"] = "attention"
    first, second = (compile_plan(load(spec, root=ROOT)) for spec in (ARCHITECTURES, without))
    assert [cell.cell_id for cell in first.cells] == [cell.cell_id for cell in second.cells]
    assert first.plan_id != second.plan_id


def test_architectures_are_compared_by_means_and_by_nothing_else(tmp_path: Path) -> None:
    task = {**SPEC["tasks"]["records"], "metrics": ["bleu"]}
    plan = compile_plan(load({**ARCHITECTURES, "tasks": {"records": task}}, root=ROOT))
    with pytest.raises(EvalspecError, match=r"hypotheses\.recall: `bleu` is no mean of samples"):
        run(plan, Store(tmp_path / "store.duckdb"), tmp_path)
    assert not (tmp_path / "store.duckdb").exists()


@pytest.mark.parametrize(
    ("better", "than", "said"),
    [
        ({"architecture": "recurrent"}, {"model": "transformer"}, "an `architecture` is held against another one"),
        ({"architecture": "recurrent"}, {"architecture": "recurrent"}, "are both `recurrent`; name two"),
        ({"architecture": "recurrent", "model": "mamba"}, {"architecture": "attention"}, "leave out `model`"),
        ({"architecture": "recurrant"}, {"architecture": "attention"}, "no cell has architecture = `recurrant`; there"),
        (
            {"architecture": "recurrent", "where": {"n": [4, 48]}},
            {"architecture": "attention", "where": {"n": 4}},
            "`better` has several cells of one seed; say in `where`",
        ),
    ],
)
def test_architectures_that_cannot_be_judged_are_refused(
    better: dict[str, Any], than: dict[str, Any], said: str
) -> None:
    one = {"claim": "c", "better": better, "than": than}
    with pytest.raises(SpecError, match=re.escape(said)):
        load({**ARCHITECTURES, "hypotheses": {"one": one}}, root=ROOT)


def test_an_architecture_needs_models_that_are_its_seeds() -> None:
    one = {"claim": "c", "better": {"architecture": "a"}, "than": {"architecture": "b"}}
    with pytest.raises(SpecError, match=r"no model says of which architecture it is a seed \(`seed_of: a`\)"):
        load({**SPEC, "hypotheses": {"one": one}}, root=ROOT)


def test_a_claim_may_be_about_what_was_found_and_about_a_metric_with_options(tmp_path: Path) -> None:
    sides = {"better": {"where": {"retriever": "oracle"}}, "than": {"where": {"retriever": "bm25"}}}
    task = {
        "data": {"generate": "world.questions", "count": 30, "seed": 7},
        "prompt": {"template": "prompts/rag.jinja", "target": "{{ answer }}"},
        "retrieval": {"corpus": {"generate": "world.passages", "seed": 7}, "k": 3, "gold": "{{ gold_ids }}"},
        "decode": {"max_tokens": 4},
        "filters": {"line": ["first_line"]},
        "metrics": [{"metric": "exact_match", "ignore_case": True}, "recall"],
    }
    spec = {
        "name": "claims",
        "models": {"mamba2": {"weights": "zoo/mamba2"}},
        "tasks": {"ask": task},
        "sweep": {"tasks.ask.retrieval.retriever": ["bm25", "oracle"]},
        "hypotheses": {name: {"claim": name, "metric": name, **sides} for name in ("recall", "exact_match")},
    }
    store = Store(tmp_path / "store.duckdb")
    finished = run(compile_plan(load(spec, root=ROOT)), store, tmp_path)
    rows = {row["hypothesis"]: row for row in store.rows("verdicts", finished.run_id)}
    assert (rows["recall"]["metric"], rows["recall"]["filter"]) == ("recall@3", "default")
    assert (rows["exact_match"]["metric"], rows["exact_match"]["filter"]) == ("exact_match(ignore_case)", "line")
    assert all(row["verdict"] == "supported" and row["n"] > 20 for row in rows.values())
