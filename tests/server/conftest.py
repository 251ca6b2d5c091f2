"""Servers on loopback for the tests of the server backend, and what asks them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from little_server import LittleServer, make_spec


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
    return make_spec
