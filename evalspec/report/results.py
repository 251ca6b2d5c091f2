"""What a page shows of a run, as frozen values: the run, its cells, their aggregates and costs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from evalspec.report.alone import Alone
from evalspec.spec.blocks import MAIN
from evalspec.spec.conditions import Condition

PLAIN_FILTERS = (None, "", "none", "default")
"""Filters that take the whole output; a reader need not be told of them."""


@dataclass(frozen=True)
class Run:
    """One row of `runs`, and what the spec says in it."""

    run_id: str
    spec_name: str
    spec_text: str
    description: str
    plan_id: str
    status: str
    started_at: datetime | None
    finished_at: datetime | None
    evalspec_version: str
    git_commit: str
    host: str
    device: str
    versions: Mapping[str, Any]

    @property
    def finished(self) -> bool:
        """Whether the run reached its end."""
        return self.status == "finished"


@dataclass(frozen=True)
class Cell:
    """One model on one task at one point of the sweep."""

    cell_id: str
    model: str
    weights_hash: str
    task: str
    condition: Condition
    trained_length: int | None = None
    """Tokens that its model was trained at, where that is known."""
    prompt_tokens: float | None = None
    """Tokens that one of its prompts has on average."""


@dataclass(frozen=True)
class Estimate:
    """An aggregate of a cell with its 95 % interval."""

    cell_id: str
    metric: str
    filter: str | None
    value: float
    stderr: float | None
    low: float | None
    high: float | None
    n: int
    stage: str = MAIN
    asked: int | None = None
    """Samples that these n scores are of: fewer where each is answered several times (repeats, draws of its shots)."""

    @property
    def samples(self) -> int:
        """How many samples were scored, each once or several times."""
        return self.n if self.asked is None else min(self.n, self.asked)


@dataclass(frozen=True)
class Cost:
    """One row of `efficiency`: what a cell's share of the run came to."""

    cell_id: str
    prompt_tokens: int
    distinct_tokens: float
    computed_tokens: float
    output_tokens: int
    seconds: float
    peak_memory_bytes: int | None
    state_bytes: int | None


@dataclass(frozen=True)
class MainMetric:
    """The metric of a task that its answer and its figures speak of."""

    name: str
    filter: str | None
    share: bool
    """Its values lie between 0 and 1 and are written as percentages."""
    higher_is_better: bool

    @property
    def words(self) -> str:
        """The name as a reader says it."""
        said = self.name.replace("_", " ")
        return said if self.filter in PLAIN_FILTERS else f"{said} ({self.filter})"


@dataclass(frozen=True)
class GoldPlace:
    """Answers of one cell whose first gold passage stood at `place` (None: it was not retrieved)."""

    cell_id: str
    place: int | None
    n: int
    value: float


@dataclass(frozen=True)
class GoldUse:
    """How many answers of one cell were of each kind; the names are those of the view `gold_and_answer`."""

    cell_id: str
    metric: str
    n: int
    counts: Mapping[str, int]

    def count(self, kind: str) -> int:
        """How many answers were `shown_right`, `missing_wrong` …"""
        return self.counts.get(kind, 0)


@dataclass(frozen=True)
class Results:
    """Everything of a run that tables and figures are made of."""

    run: Run
    cells: tuple[Cell, ...]
    estimates: tuple[Estimate, ...]
    costs: tuple[Cost, ...]
    main: Mapping[str, MainMetric]
    """Task → its main metric; a task with no answer metric is absent."""
    samples: int
    failed: int
    truncated: int
    cached: int
    models: tuple[str, ...]
    """The models in the order of the spec, those included that are only measured."""
    alone: Alone | None = None
    """Each model running alone, where the spec has `measure`."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks in the order of the spec."""
        return tuple(dict.fromkeys(cell.task for cell in self.cells))

    def conditions(self, task: str) -> tuple[Condition, ...]:
        """The points of the sweep that the task was run at, each once."""
        return tuple(dict.fromkeys(cell.condition for cell in self.cells if cell.task == task))

    def cells_of(self, task: str) -> dict[tuple[str, Condition], Cell]:
        """(model, condition) → the task's cell."""
        return {(cell.model, cell.condition): cell for cell in self.cells if cell.task == task}

    def main_of(self, task: str) -> dict[tuple[str, Condition], Estimate]:
        """(model, condition) → the task's main metric, where it is a finite number."""
        main = self.main.get(task)
        if main is None:
            return {}
        found = {
            e.cell_id: e
            for e in self.estimates
            if e.metric == main.name and e.filter == main.filter and e.stage == MAIN
        }
        return {
            key: found[cell.cell_id]
            for key, cell in self.cells_of(task).items()
            if cell.cell_id in found and math.isfinite(found[cell.cell_id].value)
        }
