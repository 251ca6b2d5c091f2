"""Joules of a run that is shorter than the steps of the device's counter.

The counter moves some ten times a second (`meters`), and on a GPU a prefill takes milliseconds. So prefill and
throughput are run again and again until the counter has something to say, and their joules are divided by the runs;
decoding is measured over one longer answer, and what it took is taken for its share of the tokens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from evalspec.execute import meters as metering
from evalspec.execute.meters import Meters
from evalspec.execute.subjects import Subject
from evalspec.plan.forest import Tokens
from evalspec.plan.measurements import Point

ROOM = 1.25
"""Decoding is asked for so many times the tokens that should take long enough."""


def joules_of_a_run(
    subject: Subject,
    meters: Meters,
    point: Point,
    prompts: Callable[[int], Sequence[Tokens]],
    new_tokens: int,
    longest: int | None,
) -> float | None:
    """Joules of one run of a point; None where nothing counts them, or an answer cannot be made long enough.

    Args: prompts, the prompts of run 0, 1, …, other ones each time · longest, the tokens that the model holds.
    """
    if meters.joules() is None:
        return None
    if point.kind != "decode":
        seconds, runs = 0.0, 0
        before, began = meters.joules(), time.perf_counter()
        while seconds < metering.ENERGY_SECONDS:
            subject.prepare(point, prompts(runs), new_tokens).run()
            subject.wait()
            runs, seconds = runs + 1, time.perf_counter() - began
        told = meters.joules_since(before, seconds)
        return None if told is None else told / runs
    _, seconds, _ = _decoded(subject, meters, point, prompts(0), new_tokens)
    count = max(new_tokens, math.ceil(ROOM * metering.ENERGY_SECONDS / seconds * new_tokens))
    if longest is not None:
        count = min(count, longest - point.length)
    told, _, generated = _decoded(subject, meters, point, prompts(1), count)
    return None if told is None else told * point.batch * new_tokens / generated


def _decoded(
    subject: Subject, meters: Meters, point: Point, prompts: Sequence[Tokens], new_tokens: int
) -> tuple[float | None, float, int]:
    """Joules, seconds and number of so many new tokens after the contexts, which are fed before."""
    work = subject.prepare(point, prompts, new_tokens)
    subject.wait()
    before, began = meters.joules(), time.perf_counter()
    work.run()
    subject.wait()
    seconds = time.perf_counter() - began
    return meters.joules_since(before, seconds), seconds, work.tokens()
