"""Whom a run asks, and with what key: what is wrong with either is a sentence, and a key goes nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml
from asking import ROOT, go, samples
from little_server import LittleServer, status

import evalspec
from evalspec.cli import main
from evalspec.errors import RunError, SpecError
from evalspec.plan.compile import compile_plan
from evalspec.spec import load

KEY = "sk-very-secret-0123456789"
Spec = Callable[..., dict[str, Any]]
Serve = Callable[..., LittleServer]


@pytest.mark.parametrize(
    ("variable", "value"),
    [("ALL_PROXY", "socks5://127.0.0.1:1"), ("HTTPS_PROXY", "foo://h:1"), ("SSL_CERT_FILE", "/nowhere")],
)
def test_an_environment_that_no_connection_can_be_made_by_is_said_in_a_sentence(
    spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    block = {"weights": "m", "backend": "server", "url": "https://h/v1", "tokenizer": "zoo/transformer"}
    with pytest.raises(RunError, match=r"models\.there: .*what the environment says of proxies and certificates"):
        go(spec({"there": block}, "ask"), tmp_path)


def test_a_model_that_the_server_does_not_have_is_named_with_those_that_it_has(
    serve: Serve, spec: Spec, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match=r"models\.there\.weights: .*has no model `other`; it has zoo-transformer"):
        go(spec({"there": serve().block(weights="other")}, "ask"), tmp_path)
    server = serve("llamacpp")  # lists one, and takes any name; here it does not
    with pytest.raises(RunError, match=r"answered 404: The model `other` does not exist\. Is `url` right") as found:
        go(spec({"there": server.block(weights="other")}, "ask"), tmp_path / "b")
    assert len(server.seen) == 1, str(found.value)


def test_a_server_without_a_list_of_models_serves_as_well_and_a_wrong_address_is_found_out(
    serve: Serve, spec: Spec, tmp_path: Path
) -> None:
    server = serve()
    server.listed = False
    assert go(spec({"there": server.block()}, "choose", "ask"), tmp_path).failed == 0
    wrong = server.block(url=server.url.replace("/v1", "/api"))
    with pytest.raises(RunError, match=r"answered 404: no such page\. Is `url` right \(most end in /v1\)"):
        go(spec({"there": wrong}, "ask"), tmp_path / "wrong")


def test_a_server_of_conversations_alone_is_to_be_asked_for_these(serve: Serve, spec: Spec, tmp_path: Path) -> None:
    server = serve()
    server.always = status(404, "This is a chat model")
    with pytest.raises(RunError, match=r"answered 404: This is a chat model\. .* wants `chat: true`"):
        go(spec({"there": server.block()}, "ask"), tmp_path)


def test_no_server_at_all_is_said_in_a_sentence(spec: Spec, tmp_path: Path) -> None:
    block = {"weights": "m", "backend": "server", "url": "http://127.0.0.1:1/v1", "tokenizer": "zoo/transformer"}
    with pytest.raises(
        RunError, match=r"models\.there: http://127\.0\.0\.1:1/v1 cannot be reached: .* Start the server"
    ):
        go(spec({"there": {**block, "server": {"backoff": 0.001}}}, "ask"), tmp_path)


def everything_written(folder: Path) -> bytes:
    """All bytes below a folder, and every value of its database as text (Parquet and DuckDB compress)."""
    found = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    for path in folder.rglob("*.parquet"):
        found += str(duckdb.sql(f"SELECT * FROM '{path}'").fetchall()).encode()
    for path in folder.rglob("*.duckdb"):
        with evalspec.connect(path) as connection:
            for (name,) in connection.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall():
                found += str(connection.execute(f'SELECT * FROM "{name}"').fetchall()).encode()
    return found


def test_a_key_goes_to_the_server_and_nowhere_else(
    serve: Serve, spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve(key=KEY)
    made = spec({"there": server.block(server={"key": "EVALSPEC_TEST_KEY", "retries": 0})}, "ask")
    [part] = compile_plan(load(made, root=ROOT)).models
    one = max((request.tokens.tolist() for request in part.forest.requests), key=len)  # the shortest is tried first
    server.when = lambda body: status(500, f"no luck with {KEY}") if body["prompt"] == one else None
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(made))
    (tmp_path / "prompts").symlink_to(ROOT / "prompts")
    command = ["run", str(path), "--store", str(tmp_path / "out/store.duckdb"), "--reports", str(tmp_path / "out")]

    monkeypatch.delenv("EVALSPEC_TEST_KEY", raising=False)
    assert main(command) == 1
    assert "models.there.server.key: the environment variable EVALSPEC_TEST_KEY is not set" in capsys.readouterr().err

    monkeypatch.setenv("EVALSPEC_TEST_KEY", "sk-wrong-9876543210")
    assert main(command) == 1
    told = capsys.readouterr()
    assert "answered 401" in told.err
    assert "The server refuses the key of $EVALSPEC_TEST_KEY" in told.err
    assert "sk-wrong-9876543210" not in told.err + told.out, "though the server repeated it"

    monkeypatch.setenv("EVALSPEC_TEST_KEY", KEY)
    assert main(command) == 1, "one sample failed"
    told = capsys.readouterr()
    assert [error for _, _, error in samples(tmp_path / "out") if error] == [
        f"{server.url}/completions answered 500: no luck with ***"
    ]
    written = everything_written(tmp_path / "out")
    assert b"EVALSPEC_TEST_KEY" in written, "the test looks where the spec is"
    for secret in (KEY, "sk-wrong-9876543210"):
        assert secret not in told.out + told.err
        assert secret.encode() not in written


def test_a_key_in_a_long_message_is_not_shown_in_part(
    serve: Serve, spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(key=KEY)
    monkeypatch.setenv("EVALSPEC_TEST_KEY", KEY)
    server.always = status(400, "x" * 390 + KEY)  # the message is cut in the middle of it
    with pytest.raises(RunError, match=r"x{390}") as found:
        go(spec({"there": server.block(server={"key": "EVALSPEC_TEST_KEY"})}, "ask"), tmp_path)
    assert KEY[:8] not in str(found.value)


def test_without_a_named_variable_no_key_is_sent(
    serve: Serve, spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(
        RunError, match=r"answered 401: Incorrect API key provided: None\. The server wants a key: name"
    ):
        go(spec({"there": serve(key=KEY).block()}, "ask"), tmp_path)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"url": "http://me:secret@host/v1"}, "holds a user or a password, and would be stored"),
        ({"url": "https://host/v1?api_key=secret"}, "holds a query"),
        ({"url": "http://host:99999/v1"}, "is no address"),
        ({"url": "http://host:port/v1"}, "is no address"),
        ({"url": "http://[::1/v1"}, "is no address"),
        ({"url": "http://my host/v1"}, "is no address"),
        ({"device": "cuda"}, "is the server's own to choose"),
        ({"dtype": "float16"}, "is the server's own to choose"),
        ({"backend": "transformers"}, "belongs to `backend: server`"),
    ],
)
def test_a_block_that_says_what_no_server_can_hear_is_refused(spec: Spec, keys: dict[str, Any], said: str) -> None:
    block = {"weights": "m", "backend": "server", "url": "http://host/v1", "tokenizer": "zoo/transformer", **keys}
    with pytest.raises(SpecError, match=said):
        load(spec({"there": block}, "ask"), root=ROOT)
