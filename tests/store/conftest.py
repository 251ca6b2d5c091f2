"""A store in a temporary folder, rows that look like a run's, and real processes to write and to lock it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from evalspec.store import RunWriter, Store

CELL = {"cell_id": "c1", "model": "mamba", "weights_hash": "w1", "task": "open_book", "params": {"k": 5}}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "evalspec.duckdb")


@pytest.fixture
def begin(store: Store) -> Iterator[Callable[..., RunWriter]]:
    """Begin a run with one cell; what a test leaves open is let go of at its end."""
    writers: list[RunWriter] = []

    def begin(**run: Any) -> RunWriter:
        writers.append(store.begin({"spec_name": "rag", "plan_id": "p1", **run}, [CELL]))
        return writers[-1]

    yield begin
    for writer in writers:
        writer.close()


@pytest.fixture
def samples() -> Callable[..., list[dict[str, Any]]]:
    def samples(start: int, stop: int, **changes: Any) -> list[dict[str, Any]]:
        return [
            {
                "cell_id": "c1",
                "sample_id": f"s{number}",
                "repeat": 0,
                "draw": 0,
                "stage": "main",
                "prompt": f"Where does Ada live? ({number})",
                "target": "Oslo",
                "output": "Oslo",
                "cache_key": f"k{number}",
                **changes,
            }
            for number in range(start, stop)
        ]

    return samples


@pytest.fixture
def process() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start Python code in another process; it prints a line when it is ready. Killed at the end of the test."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, *arguments: object, wait: bool = True) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(child)
        if wait:
            assert child.stdout is not None and child.stderr is not None
            line = child.stdout.readline()
            assert line, child.stderr.read()
        return child

    yield start
    for child in started:
        child.kill()
        child.communicate()


LOCK = """
import duckdb, sys
connection = duckdb.connect(sys.argv[1])
connection.execute("CREATE TABLE IF NOT EXISTS somebody_elses (i INTEGER)" if len(sys.argv) > 2 else "SELECT 1")
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def lock(process: Callable[..., subprocess.Popen[str]]) -> Callable[[Path], subprocess.Popen[str]]:
    """Hold a database open for writing in another process."""

    def lock(path: Path) -> subprocess.Popen[str]:
        return process(LOCK, path)

    return lock
