"""Servers on loopback for the tests of the server backend, and what asks them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from little_server import LittleServer

ROOT = Path(__file__).parents[2]
WORLD = {"generate": "world.labels", "count": 48, "seed": 3}
LABELS = {"template": "prompts/labels.jinja", "target": "{{ label }}", "choices": "{{ options }}", "shots": 5}
QUESTIONS = {"generate": "world.questions", "count": 12, "seed": 3}


@pytest.fixture
def serve() -> Iterator[Callable[..., LittleServer]]:
    """A server by its dialect; all are stopped in the end."""
    started: list[LittleServer] = []

    def start(dialect: str = "vllm", **settings: Any) -> LittleServer:
        started.append(LittleServer(dialect, **settings))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def spec() -> Callable[..., dict[str, Any]]:
    """A spec with these models: labels by choice, questions answered, unless other tasks are named."""

    def make(models: dict[str, Any], *tasks: str) -> dict[str, Any]:
        known: dict[str, Any] = {
            "choose": {"data": WORLD, "prompt": LABELS, "metrics": ["accuracy"]},
            "ask": {
                "data": QUESTIONS,
                "prompt": {"template": "Q: {{ question }}\nA:", "target": "{{ answer }}"},
                "decode": {"max_tokens": 6, "stop": ["\n"]},
                "metrics": ["exact_match"],
            },
            "read": {
                "data": QUESTIONS,
                "prompt": {"template": "Q: {{ question }}\nA:", "target": "{{ answer }}, says {{ question }}"},
                "metrics": ["greedy", "target_perplexity"],
            },
        }
        return {"name": "served", "models": models, "tasks": {name: known[name] for name in tasks or known}}

    return make
