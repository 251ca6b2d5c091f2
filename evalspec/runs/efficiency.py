"""What each cell cost, from what its model cost: tokens and seconds of a shared forest attributed to its users.

A node's tokens, and an answer's, are split equally among the distinct cells that use it, so sums over a run are the
forest's totals. Shared rows say what a run cost; they compare nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evalspec.plan.compile import ModelPlan, Sample, forest_of
from evalspec.plan.forest import Forest, share_by_user
from evalspec.plan.price import state_bytes


class Meter:
    """Counts for one model while its forest is walked; `rows` gives the table `efficiency` so far.

    `before` holds the cells' rows of an earlier, interrupted part of the same run: counts go on from there. A later
    stage has a forest of its own; `counted` is the meter of the stage before it, whose counts it goes on from.
    """

    def __init__(
        self,
        part: ModelPlan,
        samples: Sequence[Sample],
        pending: Sequence[Sample],
        forest: Forest | None,
        before: Mapping[str, Mapping[str, Any]],
        counted: Meter | None = None,
    ) -> None:
        self.part = part
        self.counted: Mapping[str, Mapping[str, Any]] = (
            {str(row["cell_id"]): row for row in counted.rows()} if counted else {}
        )
        self.before = self.counted or before
        self.cells = [cell.cell_id for cell in part.cells]
        self.distinct = share_of_cells(samples, part.forest if samples is part.samples else forest_of(samples))
        self.pending = share_of_cells(pending, forest) if forest else {}
        self.total = max(1, forest.distinct_tokens if forest else 0)
        self.computed = 0
        self.seconds = 0.0
        self.output = dict.fromkeys(self.cells, 0)
        # What a cell asks never changes, and rows are wanted at every commit.
        self.prompt, self.requests, self.longest = (dict.fromkeys(self.cells, 0) for _ in range(3))
        if counted is not None:
            self.longest = dict(counted.longest)
        for sample in samples:
            cell = sample.cell.cell_id
            self.prompt[cell] += sample.prompt_tokens
            self.requests[cell] += len(sample.requests)
            self.longest[cell] = max([self.longest[cell], *(len(request.tokens) for request in sample.requests)])
        self.peak: int | None = None

    def add(self, computed: int, seconds: float) -> None:
        """Count what one result cost."""
        self.computed += computed
        self.seconds += seconds

    def answered(self, users: Sequence[str], tokens: int, request: int) -> None:
        """Split an answer's tokens equally among the distinct cells that use it; what is left over goes round."""
        cells = sorted(set(users))
        for place in range(len(cells)):
            whole, left = divmod(tokens, len(cells))
            self.output[cells[(request + place) % len(cells)]] += whole + (place < left)

    def rows(self) -> list[dict[str, object]]:
        """One row a cell; sums over the cells are the model's totals so far."""
        made = {cell: self.pending.get(cell, 0.0) * self.computed / self.total for cell in self.cells}
        work = {cell: made[cell] + self.output[cell] for cell in self.cells}
        all_work = sum(work.values()) or 1.0
        rows: list[dict[str, object]] = []
        for cell in self.cells:
            earlier, base = self.before.get(cell, {}), self.counted.get(cell, {})
            computed = made[cell] + (earlier.get("computed_tokens") or 0)
            output = self.output[cell] + (earlier.get("output_tokens") or 0)
            seconds = self.seconds * work[cell] / all_work + (earlier.get("seconds") or 0)
            rows.append(
                {
                    "cell_id": cell,
                    "prompt_tokens": self.prompt[cell] + (base.get("prompt_tokens") or 0),
                    "distinct_tokens": self.distinct.get(cell, 0.0) + (base.get("distinct_tokens") or 0),
                    "computed_tokens": computed,
                    "output_tokens": output,
                    "requests": self.requests[cell] + (base.get("requests") or 0),
                    "seconds": seconds,
                    "tokens_per_second": (computed + output) / seconds if seconds else None,
                    "peak_memory_bytes": max(filter(None, (self.peak, earlier.get("peak_memory_bytes"))), default=None),
                    "state_bytes": state_bytes(self.part.model, self.longest[cell]),
                }
            )
        return rows


def share_of_cells(samples: Sequence[Sample], forest: Forest) -> dict[str, float]:
    """Distinct tokens attributed to each cell by its id."""
    users: dict[tuple[object, ...], set[int]] = {}
    ids = sorted({sample.cell.cell_id for sample in samples})
    place = {cell: number for number, cell in enumerate(ids)}
    for sample in samples:
        for request in sample.requests:
            users.setdefault(request.key, set()).add(place[sample.cell.cell_id])
    shares = share_by_user(forest, [frozenset(users[request.key]) for request in forest.requests])
    return {cell: shares.get(number, 0.0) for number, cell in enumerate(ids)}
