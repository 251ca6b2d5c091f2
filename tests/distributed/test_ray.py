"""A run over a real Ray cluster of three nodes, of which a worker and a node are killed, equals a plain run.

Ray is a package of its own (`pip install 'evalspec[ray]'`); its nodes run on this machine, each with one CPU.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import evalspec
from evalspec.plan.compile import Plan, compile_plan
from evalspec.runs.progress import Quiet
from evalspec.runs.run import run
from evalspec.spec import load
from evalspec.store import Store

ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'evalspec[ray]'")

ROOT = Path(__file__).parents[2]
SPEC: dict[str, Any] = {
    "name": "spread",
    "models": {"mamba2": {"weights": "zoo/mamba2"}, "transformer": {"weights": "zoo/transformer"}},
    "tasks": {
        "ask": {
            "data": {"generate": "world.questions", "count": 80, "seed": 3},
            "prompt": {"template": "prompts/rag.jinja", "target": "{{ answer }}", "shots": 1},
            "retrieval": {"corpus": {"generate": "world.passages", "seed": 3}, "gold": "{{ gold_ids }}", "k": 10},
            "decode": {"max_tokens": 16, "temperature": 0.8, "repeats": 6, "seed": 5},
            "filters": {"first": ["first_line"], "vote": ["first_line", {"vote": 3}]},
            "metrics": ["exact_match", "recall"],
            "stages": {
                "again": {
                    "prompt": {"template": "{{ prompts.main }}{{ outputs.main }}. Answer:"},
                    "decode": {"max_tokens": 4},
                    "metrics": ["exact_match"],
                }
            },
        },
        "choose": {
            "data": {"generate": "world.labels", "count": 60, "seed": 3},
            "prompt": {
                "template": "prompts/labels.jinja",
                "target": "{{ label }}",
                "choices": "{{ options }}",
                "shots": {"n": 4, "draws": 2},
            },
            "metrics": ["accuracy", "brier"],
        },
    },
}


class Killer(Quiet):
    """Kills what works for a model, once, when its first results have come; hears what is said."""

    def __init__(self, kill: dict[str, Any]) -> None:
        self.kill, self.model, self.said = dict(kill), "", list[str]()

    def say(self, text: str) -> None:
        self.said.append(text)

    def begin(self, model: str, tokens: int, samples: int, new_tokens: int = 0) -> None:
        self.model = model

    def advance(self, fed: int, generated: int = 0, spared: int = 0) -> None:
        if self.model in self.kill and self.kill[self.model]():
            del self.kill[self.model]


def walking() -> list[psutil.Process]:
    """Worker processes of this test's cluster that are walking a piece at this moment."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[0].startswith("ray::Worker.walk"):
                found.append(process)
        except (psutil.Error, IndexError):
            continue
    return found


class Nodes:
    """Three nodes of one CPU each. The first holds the cluster's own records, so it is never removed."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        quick = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500}
        small = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args={**small, "_system_config": quick})
        self.others = [self.cluster.add_node(**small) for _ in range(2)]
        self.address = self.cluster.address

    def kill_a_worker(self) -> bool:
        for process in walking()[:1]:
            os.kill(process.pid, signal.SIGKILL)
            return True
        return False

    def kill_a_node(self) -> bool:
        """Where a worker is walking; its worker ends with it."""
        above = {parent.pid for process in walking() for parent in process.parents()}
        for node in self.others:
            if any(info.process.pid in above for info in node.all_processes["raylet"]):
                self.cluster.remove_node(node, allow_graceful=False)
                self.others.remove(node)
                return True
        return False


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    made = Nodes()
    yield made
    ray.shutdown()
    made.cluster.shutdown()


def plan_of(spec: dict[str, Any] = SPEC, limit: int | None = None) -> Plan:
    return compile_plan(load(spec, root=ROOT), limit=limit)


def rows(folder: Path) -> tuple[dict[Any, Any], dict[Any, Any], dict[Any, Any]]:
    """Decisions, outputs and log-probabilities by sample; scores; aggregates."""
    with evalspec.connect(folder / "store.duckdb") as connection:
        samples = connection.execute(
            "SELECT cell_id, sample_id, repeat, stage, output, prompt, target, finish_reason, error, greedy::VARCHAR, "
            "logprobs FROM samples"
        ).fetchall()
        scores = connection.execute(
            "SELECT cell_id, sample_id, repeat, stage, filter, metric, extracted, value FROM scores"
        ).fetchall()
        metrics = connection.execute("SELECT cell_id, stage, filter, metric, value, n FROM metrics").fetchall()
    assert len({row[:4] for row in samples}) == len(samples), "a sample stands twice"
    assert len({row[:6] for row in scores}) == len(scores), "a score stands twice"
    return (
        {row[:4]: (row[4:10], json.loads(row[10]) if row[10] else []) for row in samples},
        {row[:6]: row[6:] for row in scores},
        {row[:4]: row[4:] for row in metrics},
    )


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    run(plan_of(), Store(folder / "store.duckdb"), folder)
    return folder


def test_a_run_that_loses_a_worker_and_a_node_equals_a_plain_one(plain: Path, nodes: Nodes, tmp_path: Path) -> None:
    killer = Killer({"mamba2": nodes.kill_a_worker, "transformer": nodes.kill_a_node})
    finished = run(plan_of(), Store(tmp_path / "store.duckdb"), tmp_path, ray=nodes.address, progress=killer)
    print(killer.said)
    assert not killer.kill, "both were killed in the middle"
    for model in ("mamba2", "transformer"):
        assert any(text.startswith(f"  {model}: 3 workers") for text in killer.said)
        assert any(text.startswith(f"  {model}: worker") and "was lost on node" in text for text in killer.said)
        assert any("unanswered requests go to others" in text for text in killer.said)
    assert (finished.status, finished.failed, finished.computed) == ("finished", 0, finished.samples)

    expected, got = rows(plain), rows(tmp_path)
    assert got[0].keys() == expected[0].keys()
    for key, (texts, logprobs) in got[0].items():
        assert texts == expected[0][key][0]
        for ours, theirs in zip(logprobs, expected[0][key][1], strict=True):
            assert ours == pytest.approx(theirs, abs=1e-5)
    assert got[1].keys() == expected[1].keys()
    for key, (extracted, value) in got[1].items():
        assert extracted == expected[1][key][0]
        assert value == pytest.approx(expected[1][key][1], abs=1e-4)
    assert got[2].keys() == expected[2].keys()
