"""What a model is measured at when it runs alone: kinds × lengths × batch sizes, and what that costs.

A point that a model cannot be measured at (a context beyond what it holds) is kept with its reason: the plan shows it,
the run stores it, the report says it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from evalspec.models.card import Model
from evalspec.spec.measure import MeasureBlock

Kind = Literal["prefill", "decode", "throughput"]


@dataclass(frozen=True)
class Point:
    """One thing that is timed: `batch` sequences of `length` tokens of context each."""

    kind: Kind
    length: int
    batch: int


@dataclass(frozen=True, eq=False)
class MeasurePlan:
    """What one model is measured at. `skipped` maps points that it cannot be measured at to the reason."""

    cell_id: str
    model: Model
    params: Mapping[str, Any]
    measure: MeasureBlock
    points: tuple[Point, ...]
    skipped: Mapping[Point, str]

    @property
    def rows(self) -> int:
        """How many timings are stored."""
        return len(self.points) * self.measure.repeats

    def tokens(self, point: Point) -> tuple[int, int]:
        """Prompt tokens that one run of a point feeds (for decode the context before it), and tokens it generates."""
        return point.batch * point.length, 0 if point.kind == "prefill" else point.batch * self.measure.new_tokens

    def flops(self, point: Point) -> int | None:
        """Operations of what is timed in one run of a point; None for unknown architectures."""
        cost, new = self.model.cost, self.measure.new_tokens
        if cost is None:
            return None
        fed = 0 if point.kind == "decode" else cost.flops(point.length, scored=1)
        # What is generated last is never fed. Decode begins behind the first new token, which prefill has predicted.
        steps = {"prefill": 0, "decode": new, "throughput": new - 1}[point.kind]
        return point.batch * (fed + (cost.decode_flops(steps, point.length) if steps else 0))

    @property
    def all_flops(self) -> int | None:
        """Operations of everything: each point warmed up and repeated, contexts of decode that no prefill has fed."""
        cost, runs = self.model.cost, self.measure.warmup + self.measure.repeats
        if cost is None:
            return None
        fed = {(p.length, p.batch) for p in self.points if p.kind == "prefill"}
        contexts = sum(
            p.batch * cost.flops(p.length, scored=1)
            for p in self.points
            if p.kind == "decode" and (p.length, p.batch) not in fed
        )
        return runs * (contexts + sum(self.flops(point) or 0 for point in self.points))


def measure_plan(cell_id: str, model: Model, params: Mapping[str, Any], measure: MeasureBlock) -> MeasurePlan:
    """The points of a model: those that it holds, and those that it does not, with the reason."""
    points: list[Point] = []
    skipped: dict[Point, str] = {}
    for point in _points(measure):
        new = 0 if point.kind == "prefill" else measure.new_tokens
        if model.served:
            skipped[point] = (
                "a server has other users, and tells nothing of its memory; measure the model where it runs"
            )
        elif model.max_length is None or point.length + new <= model.max_length:
            points.append(point)
        else:
            asked = f"{point.length:,} tokens of context" + (f" and {new:,} new ones" if new else "")
            skipped[point] = f"{asked} are more than the {model.max_length:,} that the model holds"
    return MeasurePlan(cell_id, model, params, measure, tuple(points), skipped)


def _points(measure: MeasureBlock) -> list[Point]:
    """Each once: prefill and decode of one sequence at every length, batches at the lengths for batches."""
    batched = sorted(measure.lengths if measure.batch_lengths is None else measure.batch_lengths)
    points: list[Point] = []
    for length in sorted(measure.lengths):  # decode stands behind the prefill that it goes on from
        if "prefill" in measure.kinds:
            points.append(Point("prefill", length, 1))
        if "decode" in measure.kinds and 1 in measure.batch_sizes:
            points.append(Point("decode", length, 1))
    for length in batched:
        for batch in sorted(measure.batch_sizes):
            if "decode" in measure.kinds and batch > 1:
                points.append(Point("decode", length, batch))
            if "throughput" in measure.kinds:
                points.append(Point("throughput", length, batch))
    return points
