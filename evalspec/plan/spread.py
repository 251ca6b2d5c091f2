"""What a plan will come to on several workers: how even the pieces are, what is fed again, how much sooner it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evalspec.plan.compile import ModelPlan, Plan
from evalspec.plan.cutting import cut, workers_for
from evalspec.plan.forest import alone
from evalspec.tabular import table


@dataclass(frozen=True)
class Spread:
    """A model's forest on several workers that are equally fast and take the next piece whenever they are free."""

    count: int
    """Workers that a run starts, of those that there are: as many as the tokens are worth."""
    pieces: int
    balance: float
    """The largest worker's share of the work over the mean one: 1.0 is even."""
    repeated_tokens: int
    """Tokens that the cut has fed again."""
    speed_up: float
    """How much sooner the pieces are done than the whole on one worker; starting workers is not counted."""


def spread_of(part: ModelPlan, workers: int) -> Spread:
    """The spread of one model's part of a plan, later stages left out, which depend on answers."""
    return _spread(part, workers)[0]


def _spread(part: ModelPlan, workers: int) -> tuple[Spread, float, float]:
    """The same, and what the forest costs whole and on its most loaded worker."""
    # A server is asked from where the run was started: nothing is computed by workers.
    workers = 1 if part.model.served else workers_for(part.forest.distinct_tokens + part.forest.new_tokens, workers)
    made = cut(alone(part.forest) if part.model.fed_again else part.forest, workers, part.model.cost)
    loads = made.loads(workers)
    total, most = made.cost, loads[-1]
    balance = most * workers / sum(loads) if sum(loads) else 1.0
    found = Spread(workers, len(made.pieces), balance, made.repeated_tokens, total / most if most else 1.0)
    return found, total, most


def spread_table(plan: Plan, workers: int) -> str:
    """The spread of each model for people, and of all of them one after the other."""
    if not plan.models:
        return f"on {workers} workers: nothing is left for them, since what is measured alone runs on one machine"
    found = [(part, *_spread(part, workers)) for part in plan.models]
    rows: list[Sequence[object]] = []
    for part, spread, _, _ in found:
        fed = part.forest.distinct_tokens
        again = f"{spread.repeated_tokens:,} ({spread.repeated_tokens / max(1, fed):.1%})"
        sooner = f"{spread.speed_up:.2f}x"
        rows.append((part.model.name, spread.count, spread.pieces, f"{spread.balance:.2f}", again, sooner))
    columns = ("model", "workers", "pieces", "largest share / mean", "tokens repeated", "speed-up")
    shown = table(columns, rows, f"on {workers} workers (`evalspec run --ray`)")
    known = [(total, most) for part, _, total, most in found if part.model.cost is not None]
    if len(known) == len(found) > 1:
        whole, most = (sum(column) for column in zip(*known, strict=True))
        shown += f"\nall models, one after the other: {whole / most:.2f}x" if most else ""
    return shown
