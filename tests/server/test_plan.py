"""A plan over a server's model says what is known without asking it, and what is missing."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import evalspec
from evalspec.errors import ModelError
from evalspec.models.card import find_model, zoo_folder
from evalspec.plan.compile import compile_plan
from evalspec.plan.price import plan_json, plan_table
from evalspec.plan.spread import spread_of
from evalspec.runs.run import run
from evalspec.spec import load
from evalspec.spec.model import ModelBlock
from evalspec.store import Store

ROOT = Path(__file__).parents[2]
BLOCK = {"weights": "my-model", "backend": "server", "url": "http://127.0.0.1:1/v1"}
Spec = Callable[..., dict[str, Any]]


def test_a_plan_asks_no_server_and_counts_with_the_tokenizer(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a plan opened a connection")

    monkeypatch.setattr(socket, "create_connection", never)
    made = spec({"there": {**BLOCK, "tokenizer": "zoo/transformer"}, "here": {"weights": "zoo/transformer"}}, "ask")
    plan = compile_plan(load(made, root=ROOT))
    there, here = plan_json(plan)["models"]
    assert there["distinct_tokens"] == here["distinct_tokens"]
    assert there["backend"] == "server"
    for unknown in ("flops", "seconds", "memory_bytes", "fits", "state_bytes", "kv_bytes", "parameters"):
        assert there[unknown] is None
        assert here[unknown] is not None
    json.dumps(plan_json(plan))
    assert "there: runs on the server at http://127.0.0.1:1/v1: its weights, memory and time are not" in plan_table(
        plan
    )


def test_no_worker_is_promised_for_a_model_that_none_would_compute(spec: Spec) -> None:
    made = spec({"there": {**BLOCK, "tokenizer": "zoo/transformer"}, "here": {"weights": "zoo/transformer"}}, "ask")
    made["tasks"]["ask"]["data"] = {**made["tasks"]["ask"]["data"], "count": 300}
    there, here = compile_plan(load(made, root=ROOT)).models
    assert (spread_of(there, 4).count, spread_of(there, 4).speed_up) == (1, 1.0)
    assert spread_of(here, 4).count > 1


def test_a_model_of_which_no_tokenizer_is_known_is_refused_with_what_to_add() -> None:
    with pytest.raises(
        ModelError, match=r"models\.there: `weights: my-model` is the model's name .* by `tokenizer: …`"
    ):
        find_model("there", ModelBlock(**BLOCK), ROOT)
    with pytest.raises(ModelError, match=r"name its tokenizer by `tokenizer: …` .*Of itself: .*there is no directory"):
        find_model("there", ModelBlock(**{**BLOCK, "weights": "/nowhere/model"}), ROOT)


def test_a_directory_that_the_server_names_is_its_tokenizer_and_says_how_long_it_is() -> None:
    model = find_model("there", ModelBlock(**{**BLOCK, "weights": str(zoo_folder() / "transformer")}), ROOT)
    assert model.max_length == 8192
    assert model.trained_length == 512
    assert model.cost is None
    assert model.weights_hash == f"server:http://127.0.0.1:1/v1:{zoo_folder() / 'transformer'}"
    known = find_model("there", ModelBlock(**{**BLOCK, "tokenizer": "zoo/transformer"}), ROOT)
    assert known.max_length is None, "another model's tokenizer says nothing of this one's length"
    assert len(known.tokenizer.encode(["some text"])[0]) > 1


def test_a_server_is_not_measured_and_the_reason_stands_in_the_table(spec: Spec, tmp_path: Path) -> None:
    made = {
        "name": "speed",
        "models": {"there": {**BLOCK, "tokenizer": "zoo/transformer"}},
        "measure": {"kinds": ["prefill"], "lengths": [16], "repeats": 1},
    }
    plan = compile_plan(load(made, root=ROOT))
    assert "measure the model where it runs" in plan_table(plan)
    finished = run(plan, Store(tmp_path / "store.duckdb"), tmp_path)
    assert finished.measured == 0
    with evalspec.connect(tmp_path / "store.duckdb") as connection:
        [(error,)] = connection.execute("SELECT error FROM measurements").fetchall()
    assert error == "a server has other users, and tells nothing of its memory; measure the model where it runs"
