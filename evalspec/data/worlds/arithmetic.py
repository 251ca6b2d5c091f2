"""Arithmetic on a dial: several turns, each of them easy, with or without written steps.

The dial has the numbers 0 to 9 and wraps, so every number is one digit and a longer task differs from a shorter one in
nothing but its number of steps.
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple


class Dial(NamedTuple):
    """A task in words, its worked steps, and where the dial ends."""

    question: str
    steps: str
    answer: str


def draw_dial(rng: Random, turns: int) -> Dial:
    """A dial turned `turns` times. Each turn is by 1 to 9."""
    at = int(rng.random() * 10)
    told = [f"A dial with the numbers 0 to 9 shows {at}."]
    steps = []
    for _ in range(turns):
        by = 1 + int(rng.random() * 9)
        up = rng.random() < 0.5
        after = (at + by if up else at - by) % 10
        told.append(f"Turn it {'up' if up else 'down'} by {by}.")
        steps.append(f"{at} {'+' if up else '-'} {by} = {after}")
        at = after
    told.append("What does it show?")
    return Dial(" ".join(told), ", ".join(steps) + ".", str(at))
