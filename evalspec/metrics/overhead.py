"""Whether measured times are the model's arithmetic, or what it takes to launch its operations one by one.

A forward pass over sixteen times as many tokens is sixteen times the arithmetic. Where it takes as long all the same,
the time is neither arithmetic nor memory (weights are read once for a few hundred tokens, then hide behind products):
it is the processor, which hands small operations to a GPU more slowly than that runs them. A decoding step is a pass
too, and one that takes as long as such a pass is bound like it. These times say which program launches faster, and
nothing of architectures; a larger model, or recorded steps, would.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from evalspec.metrics.crossover import Median, series_of

GROWN = 16
"""How many times more tokens a pass must have read,"""
FLAT = 1.5
"""in at most so many times the time, for that time to be no arithmetic."""
A_PASS = 0.5
"""From this share of such a pass on, a decoding step is bound likewise."""


@dataclass(frozen=True)
class Overhead:
    """One model's passes of the same duration, from `shortest` to `longest` tokens; `step` if decoding is bound too."""

    label: str
    shortest: int
    longest: int
    at_shortest: Median
    at_longest: Median
    step: Median | None


def overheads(rows: Iterable[Mapping[str, Any]]) -> list[Overhead]:
    """Models whose times are bound by launching. Rows are those of `measurements`, with the model as `label`."""
    rows = list(rows)
    decoding = series_of(rows, "decode")
    found = []
    for label, passes in series_of(rows, "prefill").items():
        shortest = min(passes)
        first = passes[shortest]
        longest = max(length for length, median in passes.items() if median.value <= FLAT * first.value)
        if longest < GROWN * shortest:
            continue
        steps = decoding.get(label)
        step = steps[min(steps)] if steps else None
        bound = step is not None and step.value >= A_PASS * first.value
        found.append(Overhead(label, shortest, longest, first, passes[longest], step if bound else None))
    return found
