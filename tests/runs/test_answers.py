"""What a run keeps of its models' answers: each as it was asked for, and never a number that is none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import evalspec
from evalspec.errors import BackendError
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


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_device_that_is_not_here_is_said_before_the_first_model_runs(tmp_path: Path) -> None:
    models = {"first": {"weights": "zoo/mamba"}, "second": {"weights": "zoo/mamba", "device": "cuda"}}
    with pytest.raises(BackendError, match=r"models\.second: `device: cuda`"):
        ran(tmp_path, plan(tmp_path, models, CHOOSE))
    assert not (tmp_path / "store.duckdb").exists()


def test_a_run_over_swept_weights_is_found_again(tmp_path: Path) -> None:
    swept = {"sweep": {"models.m.weights": ["zoo/mamba", "zoo/mamba2"]}}
    first = ran(tmp_path, plan(tmp_path, {"m": {"weights": "zoo/mamba"}}, CHOOSE, **swept))
    again = ran(tmp_path, plan(tmp_path, {"m": {"weights": "zoo/mamba"}}, CHOOSE, **swept))
    assert (first.computed, first.samples) == (8, 8)
    assert (again.run_id, again.computed, again.cached) == (first.run_id, 0, 0)


def test_other_end_tokens_or_another_tokenizer_are_asked_anew(tmp_path: Path) -> None:
    shutil.copytree(zoo_folder() / "mamba", tmp_path / "mine")
    models = {"m": {"weights": "mine"}}
    assert ran(tmp_path, plan(tmp_path, models, GENERATE)).computed == 4
    with evalspec.connect(tmp_path / "store.duckdb") as connection:
        [first] = connection.execute("SELECT output FROM samples WHERE sample_id = '0'").fetchall()[0]
    token = plan(tmp_path, models, GENERATE).models[0].model.tokenizer.encode([first])[0][0]
    (tmp_path / "mine" / "generation_config.json").write_text(json.dumps({"eos_token_id": token}))
    assert ran(tmp_path, plan(tmp_path, models, GENERATE)).computed == 4
    config = tmp_path / "mine" / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "some_new_key": 1}))
    assert ran(tmp_path, plan(tmp_path, models, GENERATE)).computed == 4


def test_what_the_prompt_adds_to_a_choice_is_scored_against_the_choice_alone(tmp_path: Path) -> None:
    models = {"m": {"weights": "zoo/transformer"}}
    ran(tmp_path, plan(tmp_path, models, {"metrics": ["accuracy", "accuracy_pmi"]}))
    bare = {"template": "", "target": "{{ a }}", "choices": ["yes", "no"]}
    ran(tmp_path, plan(tmp_path, models, {**CHOOSE, "prompt": bare}, name="bare"))
    query = """
        SELECT spec_name, sample_id, logprobs, output, max(value) FILTER (metric = 'accuracy') AS accuracy,
            max(value) FILTER (metric = 'accuracy_pmi') AS pmi
        FROM samples JOIN runs USING (run_id) JOIN scores USING (run_id, cell_id, sample_id) GROUP BY ALL
    """
    with evalspec.connect(tmp_path / "store.duckdb") as connection:
        found = {(spec, sample): rest for spec, sample, *rest in connection.execute(query).fetchall()}
    for number in "0123":
        logprobs, output, accuracy, pmi = found["x", number]
        sums = [sum(part) for part in json.loads(logprobs)]
        alone = [sum(part) for part in json.loads(found["bare", number][0])]
        assert sums[2:] == pytest.approx(alone, abs=1e-5), "an empty prompt leaves the choice alone"
        assert output == ("yes" if sums[0] >= sums[1] else "no")
        assert (accuracy, pmi) == (float(sums[0] >= sums[1]), float(sums[0] - sums[2] >= sums[1] - sums[3]))


def test_choices_without_their_prompt_are_reused_with_the_rest(tmp_path: Path) -> None:
    models, both = {"m": {"weights": "zoo/mamba"}}, {"metrics": ["accuracy_pmi"]}
    first = ran(tmp_path, plan(tmp_path, models, both))
    again = ran(tmp_path, plan(tmp_path, models, {"metrics": ["accuracy_pmi", "brier"]}))
    assert (first.computed, again.computed, again.cached) == (4, 0, 4)
    with evalspec.connect(tmp_path / "store.duckdb") as connection:
        values = connection.execute("SELECT value, n FROM metrics WHERE metric = 'accuracy_pmi'").fetchall()
    assert len(values) == 2 and len(set(values)) == 1
