"""Generating over HTTP: as token ids, as text, as a conversation; sampled as a seed says."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from little_server import LittleServer
from test_scoring import LOCAL, plans, results

from evalspec.errors import BackendError, SpecError
from evalspec.execute.backends.server.answers import text_of
from evalspec.models.card import zoo_folder
from evalspec.models.served import on_this_machine

Spec = Callable[..., dict[str, Any]]
Serve = Callable[..., LittleServer]
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


@pytest.fixture
def chat_tokenizer(tmp_path: Path) -> Path:
    """The zoo's tokenizer with a chat template."""
    folder = tmp_path / "with_template"
    shutil.copytree(zoo_folder() / "transformer", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.mark.parametrize("dialect", ["vllm", "llamacpp"])
def test_greedy_answers_are_the_models_own(serve: Serve, spec: Spec, dialect: str) -> None:
    server = serve(dialect)
    local, served = plans(spec({"here": LOCAL, "there": server.block()}, "ask"))
    ours, _ = results(local)
    theirs, _ = results(served)
    assert {k: (r.text, r.finish_reason, r.output_tokens) for k, r in theirs.items()} == {
        k: (r.text, r.finish_reason, r.output_tokens) for k, r in ours.items()
    }
    assert server.paths[-1] == "/v1/completions"
    assert 1 < server.most_under_way <= 4, "`concurrency` at a time"
    assert all(body["min_p"] == 0 and body["top_k"] <= 0 for body in server.seen), "no taste of the server's own"


def test_a_server_that_takes_no_token_ids_is_asked_in_text_when_the_spec_says_so(serve: Serve, spec: Spec) -> None:
    server = serve("tgi")
    local, *_ = plans(spec({"here": LOCAL}, "ask"))
    [part] = plans(spec({"there": server.block()}, "ask"))
    with pytest.raises(BackendError, match=r"answered 422.*say `server: \{prompts: text\}`"):
        results(part)
    [part] = plans(spec({"there": server.block(server={"prompts": "text"})}, "ask"))
    ours, _ = results(local)
    theirs, _ = results(part)
    assert {k: r.text for k, r in theirs.items()} == {k: r.text for k, r in ours.items()}
    made = spec({"there": server.block(server={"prompts": "text"})}, "ask")
    made["tasks"]["ask"]["decode"] |= {"temperature": 1.0}  # with `top_p` of 1, which TGI refuses
    [part] = plans(made)
    sampled, _ = results(part)
    assert all(result.error is None for result in sampled.values())


def test_a_parameter_goes_by_the_servers_name_and_others_beside_it(serve: Serve, spec: Spec) -> None:
    server = serve("openai")
    local, *_ = plans(spec({"here": LOCAL}, "ask"))
    ours, _ = results(local)
    names, thinking = {"max_tokens": "max_completion_tokens"}, {"chat_template_kwargs": {"enable_thinking": False}}
    [part] = plans(spec({"there": server.block()}, "ask"))
    advice = r"answered 400.*Say `server: \{names: \{max_tokens: max_completion_tokens\}\}`"
    with pytest.raises(BackendError, match=advice):
        results(part)
    [part] = plans(spec({"there": server.block(server={"names": names})}, "ask"))
    with pytest.raises(BackendError, match=r"answered 400.*'temperature' is not supported"):
        results(part)
    server.seen.clear()
    settings = {"names": names, "extra": {"temperature": None, "top_p": 0.5, **thinking}}
    [part] = plans(spec({"there": server.block(server=settings)}, "ask"))
    theirs, _ = results(part)
    assert {k: r.text for k, r in theirs.items()} == {k: r.text for k, r in ours.items()}
    for body in server.seen:
        assert body.items() >= {"top_p": 0.5, **thinking}.items()
        assert not body.keys() & {"max_tokens", "temperature"}
    assert {body["max_completion_tokens"] for body in server.seen} == {1, 6}, "a trial of one token, and the answers"


def test_what_a_request_holds_beside_is_part_of_what_a_cell_is(serve: Serve, spec: Spec) -> None:
    server = serve()
    blocks = [server.block(server=more) for more in ({}, {"extra": {"reasoning_effort": "low"}}, {"retries": 9})]
    [plain], [low], [patient] = (plans(spec({"there": block}, "ask")) for block in blocks)
    assert plain.cells[0].cell_id == patient.cells[0].cell_id != low.cells[0].cell_id


def test_what_evalspec_asks_by_is_not_for_extra(spec: Spec) -> None:
    block = {"weights": "m", "backend": "server", "url": "http://localhost:1/v1", "tokenizer": "zoo/transformer"}
    made = spec({"there": {**block, "server": {"extra": {"n": 4, "max_tokens": 9, "user": "me"}}}}, "ask")
    with pytest.raises(SpecError) as caught:
        plans(made)
    assert str(caught.value).splitlines() == [
        "models.there.server.extra.n is evalspec's own to send: say `decode.repeats`",
        "models.there.server.extra.max_tokens is evalspec's own to send: say `decode.max_tokens`",
    ]


def test_samples_are_drawn_by_a_seed_of_their_own_that_does_not_change(serve: Serve, spec: Spec) -> None:
    server = serve()
    made = spec({"there": server.block()}, "ask")
    made["tasks"]["ask"]["decode"] |= {"temperature": 1.0, "top_p": 0.9, "top_k": 5, "repeats": 2}
    [part] = plans(made)
    first, _ = results(part)
    bodies = [body for body in server.seen if body["max_tokens"] > 1]
    seeds = {body["seed"] for body in bodies}
    assert len(seeds) == len(first) == 24
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert {(body["temperature"], body["top_p"], body["top_k"]) for body in bodies} == {(1.0, 0.9, 5)}
    again, _ = results(part)
    assert {k: r.text for k, r in again.items()} == {k: r.text for k, r in first.items()}


def test_a_conversation_goes_there_as_its_turns_with_the_system_message(
    serve: Serve, spec: Spec, chat_tokenizer: Path
) -> None:
    server = serve()
    made = spec({"there": server.block(chat=True, tokenizer=str(chat_tokenizer))}, "ask", "choose")
    made["tasks"]["ask"]["prompt"] |= {"system": "Answer in one word.", "shots": 1}
    [part] = plans(made)
    theirs, _ = results(part)
    assert all(result.error is None for result in theirs.values())
    talks = [body for body, path in zip(server.seen, server.paths, strict=True) if path == "/v1/chat/completions"]
    assert len(talks) == len([r for r in part.forest.requests if r.decoding]) + 1, "and one trial"
    assert [turn["role"] for turn in talks[-1]["messages"]] == ["system", "user", "assistant", "user"]
    assert talks[-1]["messages"][0]["content"] == "Answer in one word."
    scored = [body for body in server.seen if "logprob_token_ids" in body]
    assert scored, "continuations are scored behind the tokens of the rendered conversation"
    ids = server.tokenizer.encode(["user: "], special=False)[0][:1]
    assert all(ids[0] in body["prompt"][:3] for body in scored)
    # what the server renders by the same template is what the plan counted
    local, *_ = plans({**made, "models": {"here": {**LOCAL, "tokenizer": str(chat_tokenizer), "chat": True}}})
    ours, _ = results(local)
    answered = {key[0]: result.text for key, result in ours.items() if result.text is not None}
    assert answered == {key[0]: result.text for key, result in theirs.items() if result.text is not None}


def test_what_begins_the_answer_has_no_place_in_a_conversation_and_goes_as_token_ids(
    serve: Serve, spec: Spec, chat_tokenizer: Path
) -> None:
    server = serve()
    made = spec({"there": server.block(chat=True, tokenizer=str(chat_tokenizer))}, "ask")
    made["tasks"]["ask"]["prompt"]["prefix"] = "The answer is"
    [part] = plans(made)
    results(part)
    assert set(server.paths) == {"/v1/completions"}


def test_what_stands_beside_the_answer_is_not_the_answer() -> None:
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
    parts = [thought, {"type": "text", "text": "Par"}, {"type": "text", "text": "is"}]
    assert text_of({"message": {"role": "assistant", "content": parts}}) == "Paris"
    for message in ({"content": None, "tool_calls": [{"id": "1"}]}, {"content": None, "reasoning_content": "hm"}):
        assert text_of({"message": message}) == ""


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "0.0.0.0"])
def test_this_machine_is_asked_without_a_proxy(host: str) -> None:
    assert on_this_machine(f"http://{host}:8000/v1")
    assert not on_this_machine("http://models.example.org/v1")
