"""A run that asks a server, and what it kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import evalspec
from evalspec.plan.compile import compile_plan
from evalspec.runs.run import Finished, run
from evalspec.spec import load
from evalspec.store import Store

ROOT = Path(__file__).parents[2]


def go(spec: dict[str, Any], folder: Path, **settings: Any) -> Finished:
    return run(compile_plan(load(spec, root=ROOT)), Store(folder / "store.duckdb"), folder, **settings)


def samples(folder: Path) -> list[tuple[Any, ...]]:
    """(sample, output, error) of the only run."""
    with evalspec.connect(folder / "store.duckdb") as connection:
        found = connection.execute("SELECT sample_id, output, error FROM samples ORDER BY ALL").fetchall()
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (1,)
    return found
