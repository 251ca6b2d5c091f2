"""What a run keeps of its models' answers: each as it was asked for, and never a number that is none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import evalspec
from evalspec.models.card import zoo_folder
from evalspec.plan.compile import Plan, compile_plan
from evalspec.runs.run import Finished, run
from evalspec.spec import load
from evalspec.store import Store

GENERATE = {"decode": {"max_tokens": 3}, "metrics": ["exact_match"]}
CHOOSE = {"metrics": ["accuracy"]}


def plan(folder: Path, models: dict[str, Any], task: dict[str, Any], **spec: Any) -> Plan:
    rows = [{"id": number, "q": f"question {number}", "a": "yes"} for number in range(4)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompt: dict[str, Any] = {"template": "Q: {{ q }}", "target": "{{ a }}"}
    if "decode" not in task:
        prompt["choices"] = ["yes", "no"]
    tasks = {"t": {"data": {"file": "rows.jsonl"}, "prompt": prompt, **task}}
    return compile_plan(load({"name": "x", "models": models, "tasks": tasks, **spec}, root=folder))


def ran(folder: Path, asked: Plan) -> Finished:
    return run(asked, Store(folder / "store.duckdb"), folder)


@pytest.mark.parametrize("task", [GENERATE, CHOOSE], ids=["generate", "choose"])
@pytest.mark.parametrize("name", ["transformer", "mamba", "mamba2"])
def test_a_model_that_gives_no_numbers_fails_its_samples_and_scores_nothing(
    tmp_path: Path, name: str, task: dict[str, Any]
) -> None:
    shutil.copytree(zoo_folder() / name, tmp_path / "broken")
    weights = load_file(tmp_path / "broken" / "model.safetensors")
    norm = next(key for key in weights if key.endswith(("norm_f.weight", "model.norm.weight")))
    weights[norm] *= float("nan")
    save_file(weights, tmp_path / "broken" / "model.safetensors", metadata={"format": "pt"})
    done = ran(tmp_path, plan(tmp_path, {"m": {"weights": "broken"}}, task))
    assert (done.status, done.failed) == ("failed", 4)
    with evalspec.connect(tmp_path / "store.duckdb") as connection:
        assert connection.execute("SELECT DISTINCT status FROM runs").fetchall() == [("failed",)]
        assert all("NaN" in error for (error,) in connection.execute("SELECT error FROM samples").fetchall())
        assert connection.execute("SELECT count(*) FROM scores").fetchall() == [(0,)]


def test_a_run_over_swept_weights_is_found_again(tmp_path: Path) -> None:
    swept = {"sweep": {"models.m.weights": ["zoo/mamba", "zoo/mamba2"]}}
    first = ran(tmp_path, plan(tmp_path, {"m": {"weights": "zoo/mamba"}}, CHOOSE, **swept))
    again = ran(tmp_path, plan(tmp_path, {"m": {"weights": "zoo/mamba"}}, CHOOSE, **swept))
    assert (first.computed, first.samples) == (8, 8)
    assert (again.run_id, again.computed, again.cached) == (first.run_id, 0, 0)
