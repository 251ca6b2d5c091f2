"""Published figures: what others measured, held against what the run measures on the same task and models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from evalspec.errors import suggest
from evalspec.spec.base import Block
from evalspec.spec.hypotheses import Point
from evalspec.spec.params import scalar


class PublishedBlock(Block):
    """Figures of one task and metric from a publication, by model. Each is met where the run's value lies within the
    tolerance."""

    source: str = Field(min_length=1)
    """Where the figures stand: authors, title or number, table."""
    task: str
    """Name of the task."""
    metric: str
    """What the figures are of, `accuracy_norm` for example."""
    values: dict[str, float] = Field(min_length=1)
    """From a model's name to its figure, as reports of evalspec have it: shares from 0 to 1."""
    tolerance: float = Field(ge=0)
    """How far the run's value may be off on either side: what rounding, precision and versions of data can make."""
    n: int | None = Field(default=None, gt=0)
    """Samples that the figures are over. A value beyond the tolerance is *refuted* when the run has as many samples, or
    when its interval does not hold the figure, and *undecided* else."""
    where: dict[str, Any] = Field(default_factory=dict)
    """Points of the sweep, where the task is swept: from a parameter's short name (`shots`, `k`) to its value."""
    filter: str | None = None
    """The chain of `filters` whose scores these are, where the task generates answers; by default the task's first."""


def cells_of(block: PublishedBlock, points: Sequence[Point]) -> Mapping[str, Point]:
    """The one cell of each model that the figures are of.

    Raises ValueError, written for the author of the spec, for a name that is unknown and for too many cells.
    """
    for axis, names in (("task", [block.task]), ("model", list(block.values))):
        known = list(dict.fromkeys(str(point.axes[axis]) for point in points))
        for name in names:
            if name not in known:
                raise ValueError(f"names no {axis} of this spec: `{name}`.{suggest(name, known)}")
    found = {}
    for model in block.values:
        wanted = {"model": model, "task": block.task} | {name: scalar(value) for name, value in block.where.items()}
        here = [point for point in points if all(point.axes.get(name) == value for name, value in wanted.items())]
        said = ", ".join(f"{name} = {value}" for name, value in wanted.items())
        if not here:
            raise ValueError(f"no cell has {said}")
        if len(here) > 1:
            axes = [name for name in here[0].axes if name not in wanted]
            raise ValueError(f"{len(here)} cells have {said}; say in `where` which is meant ({', '.join(axes)})")
        found[model] = here[0]
    return found
