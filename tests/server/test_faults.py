"""A server that fails on purpose: what passes is asked again, what does not is one sample's error, and a server that is
gone ends the run in a sentence, with all that was answered kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import yaml
from asking import ROOT, go, samples
from little_server import LittleServer, answer, cut, cut_in_the_middle, hang, no_choices, no_json, status

import evalspec
from evalspec.errors import RunError
from evalspec.execute.backends.server.http import retry_after
from evalspec.execute.opening import open_backend
from evalspec.execute.walk import walk
from evalspec.plan.compile import compile_plan
from evalspec.spec import load

Spec = Callable[..., dict[str, Any]]
Serve = Callable[..., LittleServer]


def test_what_passes_is_asked_again_and_leaves_no_trace(serve: Serve, spec: Spec, tmp_path: Path) -> None:
    server = serve()
    past = formatdate(time.time() - 5, usegmt=True)
    faults = [status(429, Retry_After="0"), status(429, Retry_After=past), cut, cut_in_the_middle, no_json, no_choices]
    faults += [status(code) for code in (408, 425, 429, 500, 502, 503, 504, 520, 529)]
    faults += [answer(finish_reason="abort"), answer(text=None), answer(text=4)]
    server.faults.extend(faults)
    finished = go(spec({"there": server.block(server={"retries": len(faults)})}, "ask"), tmp_path)
    assert (finished.status, finished.failed, finished.samples) == ("finished", 0, 12)
    assert not server.faults, "all of them happened"
    assert len(server.seen) == 12 + 1 + len(faults)
    assert all(error is None for _, _, error in samples(tmp_path))


def test_a_server_that_says_when_to_come_back_is_left_alone_until_then(
    serve: Serve, spec: Spec, tmp_path: Path
) -> None:
    server = serve()
    arrived: list[float] = []

    def first_come_back_later(body: dict[str, Any]) -> Any:
        arrived.append(time.perf_counter())
        return status(429, Retry_After="0.4") if len(arrived) == 1 else None

    server.when = first_come_back_later
    [part] = compile_plan(load(spec({"there": server.block()}, "ask"), root=ROOT)).models
    assert all(result.error is None for result in walk(part.forest, open_backend(part.model)))
    assert arrived[1] - arrived[0] >= 0.4
    assert retry_after("7", 0) == 7
    assert retry_after(formatdate(1000, usegmt=True), 990) == 10
    assert retry_after(formatdate(1000, usegmt=True), 2000) == 0
    assert retry_after("soon", 0) is None


def test_a_server_that_says_to_come_back_at_once_is_left_alone_for_a_while_all_the_same(
    serve: Serve, spec: Spec
) -> None:
    server = serve()
    arrived: list[float] = []

    def busy_for_half_a_second(body: dict[str, Any]) -> Any:
        arrived.append(time.perf_counter())
        return status(429, Retry_After="0") if arrived[-1] - arrived[0] < 0.5 else None

    server.when = busy_for_half_a_second
    [part] = compile_plan(
        load(spec({"there": server.block(server={"backoff": 0.1, "retries": 6})}, "ask"), root=ROOT)
    ).models
    assert all(result.error is None for result in walk(part.forest, open_backend(part.model)))


def test_a_request_that_fails_to_the_end_is_one_samples_error_and_is_tried_again_by_the_next_run(
    serve: Serve, spec: Spec, tmp_path: Path
) -> None:
    server = serve()
    made = spec({"there": server.block()}, "ask")
    [part] = compile_plan(load(made, root=ROOT)).models
    broken = part.forest.requests[5].tokens.tolist()
    server.when = lambda body: status(500, "out of luck") if body["prompt"] == broken else None
    finished = go(made, tmp_path)
    assert (finished.status, finished.failed) == ("failed", 1)
    [error] = [error for _, _, error in samples(tmp_path) if error]
    assert error == f"{server.url}/completions answered 500: out of luck (asked 4 times)"
    server.when = lambda body: None
    before = len(server.seen)
    again = go(made, tmp_path)
    assert (again.status, again.failed, again.computed) == ("finished", 0, 1)
    assert len(server.seen) - before == 2, "the trial, and the one that was missing"


def test_a_request_that_hangs_is_given_up_after_its_time_and_the_others_go_on(
    serve: Serve, spec: Spec, tmp_path: Path
) -> None:
    server = serve()
    made = spec({"there": server.block(server={"timeout": 2.0, "retries": 1})}, "ask")
    [part] = compile_plan(load(made, root=ROOT)).models
    slow = part.forest.requests[0].tokens.tolist()
    server.when = lambda body: hang(60) if body["prompt"] == slow and body["max_tokens"] > 1 else None
    began = time.perf_counter()
    finished = go(made, tmp_path)
    assert time.perf_counter() - began < 50
    assert finished.failed == 1
    [error] = [error for _, _, error in samples(tmp_path) if error]
    assert error == f"{server.url} gave no answer within 2 s (asked 2 times)"


def test_what_one_prompt_cannot_have_is_not_asked_twice(serve: Serve, spec: Spec, tmp_path: Path) -> None:
    server = serve()
    made = spec({"there": server.block()}, "ask")
    [part] = compile_plan(load(made, root=ROOT)).models
    long = part.forest.requests[7].tokens.tolist()
    server.when = lambda body: status(400, "this prompt is too long") if body["prompt"] == long else None
    finished = go(made, tmp_path)
    assert finished.failed == 1
    [error] = [error for _, _, error in samples(tmp_path) if error]
    assert error == f"{server.url}/completions answered 400: this prompt is too long"
    assert sum(body["prompt"] == long for body in server.seen) == 1


@pytest.mark.parametrize(
    "usage",
    [
        None,
        [1],
        {"prompt_tokens": None, "completion_tokens": None},
        {"prompt_tokens": "many", "completion_tokens": "few", "prompt_tokens_details": {"cached_tokens": "none"}},
        {"prompt_tokens": -1, "completion_tokens": -1, "prompt_tokens_details": [1]},
        {"prompt_tokens": 99.0, "completion_tokens": 2.0},
    ],
)
def test_counts_that_are_none_are_counted_here(serve: Serve, spec: Spec, tmp_path: Path, usage: Any) -> None:
    server = serve()
    server.always = answer(text=" Paris", usage=usage)
    finished = go(spec({"there": server.block()}, "ask"), tmp_path)
    assert (finished.failed, finished.status) == (0, "finished")
    assert {output for _, output, _ in samples(tmp_path)} == {" Paris"}
    with evalspec.connect(tmp_path / "store.duckdb") as connection:
        [(fed, new)] = connection.execute("SELECT computed_tokens, output_tokens FROM efficiency").fetchall()
    assert fed > 0
    assert new > 0


def test_a_server_that_cuts_prompts_without_a_word_gives_errors_and_no_answers(
    serve: Serve, spec: Spec, tmp_path: Path
) -> None:
    server = serve()
    for task, most in (("ask", 14), ("choose", 34)):  # a trial of scoring has 33 tokens at most
        made = spec({"there": server.block()}, task)
        server.most = None
        assert go(made, tmp_path / f"{task}-whole").failed == 0
        server.most = most
        assert go(made, tmp_path / task).failed > 0
        errors = {error for _, _, error in samples(tmp_path / task) if error}
        assert all(error.startswith(f"the server read {most} of ") for error in errors), errors
        assert all("say `max_length`" in error for error in errors)


def test_half_a_character_is_shown_as_one_that_is_missing(serve: Serve, spec: Spec, tmp_path: Path) -> None:
    server = serve()
    text = b'{"choices": [{"text": " \\ud83d\\ude00 and \\ud83d", "finish_reason": "length"}]}'
    server.when = lambda body: (lambda handler: handler.say(200, text)) if body["max_tokens"] > 1 else None
    assert go(spec({"there": server.block()}, "ask"), tmp_path).failed == 0
    assert {output for _, output, _ in samples(tmp_path)} == {" \U0001f600 and \ufffd"}
    server.when = lambda body: (
        (lambda handler: handler.say(400, b'{"error": "not \\udead"}')) if body["max_tokens"] > 1 else None
    )
    go({**spec({"there": server.block()}, "ask")}, tmp_path / "refused")
    assert {error for _, _, error in samples(tmp_path / "refused")} == {
        f"{server.url}/completions answered 400: not \ufffd"
    }


def test_what_a_server_says_of_an_error_under_a_good_status_is_passed_on(
    serve: Serve, spec: Spec, tmp_path: Path
) -> None:
    server = serve()
    server.always = status(200, "the provider is out of order")
    with pytest.raises(RunError, match=r"has no choices: the provider is out of order \(asked 4 times\)"):
        go(spec({"there": server.block()}, "ask"), tmp_path)
    native = server.block(url=server.url.removesuffix("/v1"))  # where llama.cpp has an API of its own
    with pytest.raises(RunError, match=r"Is `url` right\? Most end in /v1"):
        go(spec({"there": native}, "ask"), tmp_path / "native")


def test_a_server_that_wants_to_be_paid_ends_the_run_and_what_was_answered_is_kept(
    serve: Serve, spec: Spec, tmp_path: Path
) -> None:
    server = serve()
    made = spec({"there": server.block(server={"concurrency": 1})}, "ask")
    server.when = lambda body: status(402, "Insufficient credits") if len(server.seen) > 6 else None
    with pytest.raises(RunError, match=r"answered 402: Insufficient credits\. The server wants to be paid first"):
        go(made, tmp_path)
    assert len(samples(tmp_path)) == 5, "the sixth request to come after the trial was refused"
    server.when = lambda body: None
    assert go(made, tmp_path).computed == 12 - 5


def test_a_server_that_is_gone_ends_the_run_and_a_later_one_goes_on(serve: Serve, spec: Spec, tmp_path: Path) -> None:
    server = serve()
    made = spec({"there": server.block(server={"concurrency": 2})}, "ask", "read")
    whole = go(made, tmp_path / "whole")
    assert whole.failed == 0

    answered = len(server.seen)
    server.when = lambda body: cut if len(server.seen) > answered + 12 else None
    threading.Thread(target=lambda: (_until(lambda: len(server.seen) > answered + 12), server.stop())).start()
    with pytest.raises(
        RunError, match=r"(?s)models\.there: .*What was finished is kept; run the same command again"
    ) as found:
        go(made, tmp_path / "cut")
    assert "requests all failed" in str(found.value) or "a request failed" in str(found.value)
    kept = [sample for sample, _, error in samples(tmp_path / "cut") if error is None]
    assert 0 < len(kept) < whole.samples

    server.always, server.when = None, lambda body: None
    server.start()  # on the same port
    before = len(server.seen)
    again = go(made, tmp_path / "cut")
    assert (again.status, again.failed, again.computed) == ("finished", 0, whole.samples - len(kept))
    assert len(server.seen) - before < answered, "what was answered is not asked again"
    assert samples(tmp_path / "cut") == samples(tmp_path / "whole")


def test_a_run_never_takes_what_a_server_told_another_one(serve: Serve, spec: Spec, tmp_path: Path) -> None:
    server = serve()
    made = spec({"there": server.block()}, "ask")
    go(made, tmp_path)
    asked = len(server.seen)
    assert go(made, tmp_path).computed == 0, "its own answers it keeps"
    patient = server.block(server={"timeout": 99.0, "retries": 9, "concurrency": 2})
    assert go(spec({"there": patient}, "ask"), tmp_path).computed == 0, "however it was asked"
    assert len(server.seen) == asked
    other = {**made, "name": "another"}
    finished = go(other, tmp_path)
    assert (finished.computed, finished.cached) == (12, 0)
    with evalspec.connect(tmp_path / "store.duckdb") as connection:
        assert connection.execute("SELECT count(cache_key) FROM samples").fetchone() == (0,)
        assert connection.execute("SELECT DISTINCT weights_hash FROM cells").fetchall() == [
            (f"server:{server.url}:zoo-transformer",)
        ]
        assert connection.execute("SELECT DISTINCT device FROM runs").fetchall() == [(f"server {server.url}",)]
        counts = connection.execute("SELECT sum(computed_tokens), sum(seconds), any_value(state_bytes) FROM efficiency")
        computed, seconds, state = counts.fetchone() or (0, 0, 0)
    assert computed > 0
    assert seconds > 0
    assert state is None


# Interruption --------------------------------------------------------------------------------------------------------


@pytest.fixture
def slow(serve: Serve) -> Iterator[LittleServer]:
    """Takes a minute over each answer but the trial."""
    server = serve()
    server.when = lambda body: hang(60) if body["max_tokens"] > 1 else None
    yield server


def test_ctrl_c_ends_a_run_at_once_though_the_server_says_nothing(
    slow: LittleServer, spec: Spec, tmp_path: Path
) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(spec({"there": slow.block()}, "ask")))
    command = [
        sys.executable,
        "-c",
        "import sys; from evalspec.cli import main; sys.exit(main())",
        "run",
        str(path),
        "--store",
        str(tmp_path / "store.duckdb"),
    ]
    running = subprocess.Popen(
        [*command, "--reports", str(tmp_path)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    _until(lambda: len(slow.seen) > 2, 60)
    began = time.perf_counter()
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=30)
    assert time.perf_counter() - began < 20
    assert running.returncode == 1
    assert "interrupted; what was finished is kept" in said
    assert "Traceback" not in said
    assert "Task" not in said, "asyncio has nothing to complain of"


def _until(true: Callable[[], bool], seconds: float = 30) -> None:
    end = time.perf_counter() + seconds
    while not true() and time.perf_counter() < end:
        time.sleep(0.005)
    assert true()
