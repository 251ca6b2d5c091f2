"""What a server says is what the model itself says, by every way of scoring; what cannot be had rightly is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from little_server import LittleServer, make_spec

from evalspec.errors import BackendError
from evalspec.execute.backends.server.engine import ServerEngine
from evalspec.execute.opening import open_backend
from evalspec.execute.protocols import Engine, Result
from evalspec.execute.walk import walk
from evalspec.plan.compile import ModelPlan, compile_plan
from evalspec.spec import load

ROOT = Path(__file__).parents[2]
LOCAL = {"weights": "zoo/transformer", "backend": "transformers", "dtype": "float32", "device": "cpu"}
Spec = Callable[..., dict[str, Any]]
Serve = Callable[..., LittleServer]


def plans(spec: dict[str, Any]) -> list[ModelPlan]:
    return list(compile_plan(load(spec, root=ROOT)).models)


def results(part: ModelPlan) -> tuple[dict[Any, Result], Any]:
    """By what was asked, so that two models' can be laid side by side."""
    backend = open_backend(part.model)
    requests = part.forest.requests
    return {requests[result.request].key: result for result in walk(part.forest, backend)}, backend


@pytest.fixture(scope="module")
def ours() -> dict[Any, Result]:
    """What the model in this process says to both tasks."""
    [local] = plans(make_spec({"here": LOCAL}, "choose", "read"))
    return results(local)[0]


WAYS = [("vllm", "auto", "named"), ("vllm", "forced", "forced"), ("vllm", "echo", "echo"), ("sglang", "auto", "echo")]


@pytest.mark.parametrize(("dialect", "asked", "taken"), [*WAYS, ("llamacpp", "auto", "forced")])
def test_scores_are_the_models_own_to_the_last_token(
    serve: Serve, spec: Spec, ours: dict[Any, Result], dialect: str, asked: str, taken: str
) -> None:
    server = serve(dialect)
    [served] = plans(spec({"there": server.block(server={"scoring": asked})}, "choose", "read"))
    theirs, engine = results(served)
    assert isinstance(engine, ServerEngine)
    assert isinstance(engine, Engine)
    assert engine.way is not None
    assert engine.way.name == taken
    assert set(ours) == set(theirs)
    assert max(len(result.logprobs) for result in ours.values()) > 2, "continuations of several tokens are among them"
    for key, result in ours.items():
        assert theirs[key].error is None
        assert theirs[key].logprobs == pytest.approx(result.logprobs, abs=1e-4)
        assert theirs[key].greedy == result.greedy


def test_choices_that_go_on_from_one_place_are_one_request(serve: Serve, spec: Spec) -> None:
    server = serve()
    [part] = plans(spec({"there": server.block()}, "choose"))
    found, _ = results(part)
    asked = [body for body in server.seen if len(body["prompt"]) > 40]
    places = {tuple(body["prompt"]) for body in asked}
    assert len(asked) == len(places) < len(found), "no position is asked about twice"
    assert sum(len(body["logprob_token_ids"]) for body in asked) > len(asked)
    order = [body["prompt"] for body in asked]
    shared = sum(a[:40] == b[:40] for a, b in itertools.pairwise(order))
    assert shared >= len(order) - 3 - len({tuple(prompt[:40]) for prompt in order}), "neighbours begin alike"


def test_what_is_not_in_the_servers_cache_is_what_counts_as_computed(serve: Serve, spec: Spec) -> None:
    server = serve()
    [part] = plans(spec({"there": server.block(server={"concurrency": 1})}, "choose", "ask"))
    found, _ = results(part)
    sent = [body["prompt"] for body in server.seen]
    fed = sum(len(ids) - len(ids) // 16 * 16 for ids in sent)
    trials = sum(result.computed_tokens for result in found.values())
    assert 0 < trials <= fed
    assert fed - trials <= 4 * 40, "all but the trials"
    assert sum(result.seconds for result in found.values()) > 0


@pytest.mark.parametrize(
    ("dialect", "why"),
    [
        ("biased", "its list of the likeliest says otherwise"),
        ("logits", "the numbers that it calls log-probabilities are none"),
        ("shifted", "its list of the likeliest says otherwise"),
        ("tgi", "did not match any variant"),
    ],
)
def test_a_server_whose_numbers_are_not_the_tokens_log_probabilities_is_refused_before_anything_is_sent(
    serve: Serve, spec: Spec, dialect: str, why: str
) -> None:
    server = serve(dialect)
    wanted = "echo" if dialect == "shifted" else "auto"
    [part] = plans(spec({"there": server.block(server={"scoring": wanted})}, "choose"))
    with pytest.raises(BackendError, match="cannot say exactly how likely given tokens are") as found:
        results(part)
    assert why in str(found.value)
    assert len(server.seen) <= 7, "a few trials, none of the requests"
    assert all(len(body["prompt"]) <= 33 for body in server.seen)


def test_scoring_with_texts_is_refused_when_the_plan_is_compiled(serve: Serve, spec: Spec) -> None:
    block = {"weights": "m", "backend": "server", "url": "http://127.0.0.1:1/v1", "tokenizer": "zoo/transformer"}
    with pytest.raises(BackendError, match=r"models\.there\.server\.prompts: `text` can only generate"):
        plans(spec({"there": {**block, "server": {"prompts": "text"}}}, "choose"))
