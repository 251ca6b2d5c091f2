"""A run that was killed goes on where it stopped, and ends as if it had not been."""

from __future__ import annotations

import json
import multiprocessing
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import evalspec
from evalspec.plan.compile import compile_plan
from evalspec.runs import run as run_module
from evalspec.runs.run import run
from evalspec.spec import load
from evalspec.store import Store
from tests.runs.two_tasks import two_tasks

SPEC = two_tasks("resumed", transformer={"weights": "zoo/transformer"}, mamba={"weights": "zoo/mamba"})
ROOT = Path(__file__).parents[2]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["evalspec.api", "transformers.models.auto.modeling_auto"])


def go(folder: Path, fresh: bool = False) -> Any:
    # Small commits, so that a kill finds the run between many of them.
    run_module.COMMIT_SAMPLES, run_module.COMMIT_SECONDS = 5, 0.05
    plan = compile_plan(load(SPEC, root=ROOT))
    return run(plan, Store(folder / "store.duckdb"), folder, fresh=fresh)


def rows(folder: Path) -> tuple[dict[Any, Any], dict[Any, Any], dict[Any, Any]]:
    """What must not depend on kills: outputs and log-probabilities by sample, scores, aggregates."""
    with evalspec.connect(folder / "store.duckdb") as connection:
        samples = connection.execute(
            "SELECT cell_id, sample_id, repeat, output, prompt, target, finish_reason, error, logprobs FROM samples"
        ).fetchall()
        scores = connection.execute("SELECT cell_id, sample_id, repeat, filter, metric, value FROM scores").fetchall()
        metrics = connection.execute("SELECT cell_id, filter, metric, value, n FROM metrics").fetchall()
    assert len({row[:3] for row in samples}) == len(samples), "a sample stands twice"
    return (
        {row[:3]: (row[3:8], json.loads(row[8]) if row[8] else []) for row in samples},
        {row[:5]: row[5] for row in scores},
        {row[:3]: row[3:] for row in metrics},
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    go(folder)
    return folder


def commits(folder: Path) -> int:
    """How many segments a store has on the disk."""
    return len(list((folder / "store.duckdb.d").glob("*/[0-9]*")))


def kill_at_random_moment(folder: Path, most: int, chance: random.Random) -> None:
    """Start a run in a process of its own and SIGKILL it a moment after a random number of its commits."""
    process = CONTEXT.Process(target=go, args=(folder,))
    process.start()
    wanted = chance.randrange(most)
    while commits(folder) < wanted and process.is_alive():
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.05))
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "the run was over before it could be killed"


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(10))
def test_a_killed_run_resumes_with_the_same_rows(moment: int, whole: Path, tmp_path: Path) -> None:
    kill_at_random_moment(tmp_path, commits(whole) - 5, random.Random(moment))
    store = Store(tmp_path / "store.duckdb")
    before = store.finished(store.runs()[0]["run_id"]) if (tmp_path / "store.duckdb.d").exists() else frozenset()
    finished = go(tmp_path)
    assert len(store.runs()) == 1, "the killed run itself went on"
    assert finished.computed == finished.samples - len(before), "what was committed is not computed again"

    expected, got = rows(whole), rows(tmp_path)
    assert got[1] == expected[1]
    assert got[2] == expected[2]
    assert got[0].keys() == expected[0].keys()
    for key, (texts, logprobs) in got[0].items():
        assert texts == expected[0][key][0]
        for ours, theirs in zip(logprobs, expected[0][key][1], strict=True):
            assert ours == pytest.approx(theirs, abs=1e-4)


def test_running_a_finished_spec_again_computes_nothing(whole: Path) -> None:
    again = go(whole)
    assert (again.computed, again.computed_tokens, again.cached) == (0, 0, 0)
    assert len(Store(whole / "store.duckdb").runs()) == 1


def test_a_changed_spec_reuses_what_is_the_same_and_says_so(whole: Path, tmp_path: Path) -> None:
    go(tmp_path)
    changed = {**SPEC, "sweep": {"tasks.ask.retrieval": [{"retriever": "bm25", "k": [1, 3]}]}}
    store = Store(tmp_path / "store.duckdb")
    finished = run(compile_plan(load(changed, root=ROOT)), store, tmp_path)
    assert 0 < finished.cached < finished.samples
    assert finished.computed == finished.samples - finished.cached
    with evalspec.connect(store.path) as connection:
        cached = connection.execute(
            "SELECT c.params, bool_and(s.cached), bool_or(s.cached) FROM samples s "
            "JOIN cells c USING (run_id, cell_id) "
            "WHERE s.run_id = ? GROUP BY ALL",
            [finished.run_id],
        ).fetchall()
        computed = dict(
            connection.execute(
                "SELECT cell_id, computed_tokens FROM efficiency WHERE run_id = ?", [finished.run_id]
            ).fetchall()
        )
    assert {(every, some) for _, every, some in cached} == {(True, True), (False, False)}
    assert 0.0 in computed.values(), "reused cells count no computed tokens"


def test_fresh_computes_everything_again_under_a_run_of_its_own(tmp_path: Path) -> None:
    first = go(tmp_path)
    second = go(tmp_path, fresh=True)
    assert second.run_id != first.run_id
    assert second.computed == second.samples
    assert second.cached == 0


def test_efficiency_adds_up_to_the_forests_totals(whole: Path) -> None:
    plan = compile_plan(load(SPEC, root=ROOT))
    with evalspec.connect(whole / "store.duckdb") as connection:
        totals = connection.execute(
            "SELECT c.model, sum(prompt_tokens), sum(distinct_tokens), sum(computed_tokens) "
            "FROM efficiency JOIN cells c USING (run_id, cell_id) GROUP BY ALL"
        ).fetchall()
    found = {model: numbers for model, *numbers in totals}
    for part in plan.models:
        prompt, distinct, computed = found[part.model.name]
        assert prompt == sum(sample.prompt_tokens for sample in part.samples)
        assert distinct == pytest.approx(part.forest.distinct_tokens)
        assert part.forest.distinct_tokens <= computed + 1e-6 <= prompt + 1e-6
