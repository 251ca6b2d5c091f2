"""A model timed alone: one sequence, or a batch of equal ones, with nothing shared and nothing else in the batch.

What is timed is what runs use: a forking backend's own `extend` and decoding steps, an engine's own `complete`.

    prefill      feed a context, and predict its first new token
    decode       the new tokens after that one, from the state that prefill left
    throughput   from prompts to finished answers, as a run gets them

Prompts are random tokens, new ones in every repeat, so that no prefix cache knows them; decode of one sequence goes on
where prefill of the same length has just ended, so that its context is fed once for both. All points are warmed up
first, the largest first, so that batches have met their memory's limit and kernels are compiled before anything is
timed. Then come rounds of all points, and not all repeats of one: what drifts (a clock, a neighbour) spreads over all.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from evalspec.errors import RunError
from evalspec.execute.backends.memory import is_out_of_memory, release_memory
from evalspec.execute.energy import joules_of_a_run
from evalspec.execute.meters import Meters
from evalspec.execute.subjects import Subject
from evalspec.plan.forest import Tokens
from evalspec.plan.measurements import Point

KINDS = ("prefill", "decode", "throughput")


@dataclass(frozen=True)
class Measured:
    """One run of a point, or (`error`) why there is none. Bytes and joules are None where nobody tells them."""

    point: Point
    repeat: int
    seconds: float | None = None
    tokens: int | None = None
    peak_memory_bytes: int | None = None
    baseline_memory_bytes: int | None = None
    state_bytes: int | None = None
    energy_joules: float | None = None
    error: str | None = None


def measure(
    subject: Subject,
    meters: Meters,
    missing: Mapping[Point, Sequence[int]],
    *,
    vocabulary: int,
    new_tokens: int,
    warmup: int,
    seed: int,
    longest: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[Measured]:
    """Time each point's missing repeats. A point that does not fit in memory yields one `Measured` with its error.

    `longest`: the tokens that the model holds, if anything limits them.
    """
    run = _Runs(subject, meters, vocabulary, new_tokens, seed)
    failed: set[Point] = set()
    # On a CPU memory is watched here: giving freed memory back, which that needs, would slow what is timed.
    watched: dict[Point, tuple[int | None, int | None]] = {}
    joules: dict[Point, float | None] = {}  # of runs too short to be told by themselves
    for point in sorted(missing, key=lambda p: (-p.batch, -p.length, KINDS.index(p.kind))):
        for number in range(warmup):
            found = run(point, -1 - number, watch=number == warmup - 1)
            watched[point] = found.baseline_memory_bytes, found.peak_memory_bytes
            if found.error:
                failed.add(point)
                say(f"{point.kind} at {point.length:,} tokens, batch {point.batch}: {found.error}")
                yield Measured(point, 0, error=found.error)
                break
        if point not in failed:
            joules[point] = run.joules(point, longest)
    for repeat in sorted({repeat for repeats in missing.values() for repeat in repeats}):
        for point, repeats in missing.items():
            if repeat not in repeats or point in failed:
                continue
            found = run(point, repeat, watch=meters.memory_is_free)
            if found.error:
                failed.add(point)
            if not meters.memory_is_free and not found.error:
                baseline, peak = watched[point]
                found = replace(found, baseline_memory_bytes=baseline, peak_memory_bytes=peak)
            if found.energy_joules is None and not found.error:
                found = replace(found, energy_joules=joules[point])
            yield found


@dataclass(frozen=True)
class _Runs:
    """One run of a point: prepared, timed, asked, forgotten."""

    subject: Subject
    meters: Meters
    vocabulary: int
    new_tokens: int
    seed: int

    def __call__(self, point: Point, repeat: int, *, watch: bool) -> Measured:
        try:
            return self._once(point, repeat, watch)
        except (RuntimeError, MemoryError, RunError) as error:
            if not is_out_of_memory(error) and not (error.__cause__ and is_out_of_memory(error.__cause__)):
                raise
        release_memory()  # out of the except clause, whose traceback holds what was allocated
        return Measured(point, repeat, error="does not fit in memory")

    def joules(self, point: Point, longest: int | None) -> float | None:
        """Joules of one run, from as many as the device's counter needs; None where it does not come to a number."""
        try:
            return joules_of_a_run(
                self.subject,
                self.meters,
                point,
                lambda run: self._prompts(point, -(2**10) - run),
                self.new_tokens,
                longest,
            )
        except (RuntimeError, MemoryError, RunError) as error:
            if not is_out_of_memory(error) and not (error.__cause__ and is_out_of_memory(error.__cause__)):
                raise
        release_memory()
        return None

    def _prompts(self, point: Point, repeat: int) -> list[Tokens]:
        apart = int(point.kind == "throughput")  # decode has prefill's prompts
        chance = np.random.default_rng([self.seed, apart, point.length, point.batch, repeat + 2**20])
        return list(chance.integers(self.vocabulary, size=(point.batch, point.length)).astype(np.int32))

    def _once(self, point: Point, repeat: int, watch: bool) -> Measured:
        work = self.subject.prepare(point, self._prompts(point, repeat), self.new_tokens)
        baseline = self.meters.memory_now() if watch else None
        if watch:
            self.meters.reset_memory()
        self.subject.wait()
        gc.disable()
        try:
            joules = self.meters.joules()
            began = time.perf_counter()
            work.run()
            self.subject.wait()
            seconds = time.perf_counter() - began
            energy = self.meters.joules_since(joules, seconds)
        finally:
            gc.enable()
        if work.seconds is not None:
            seconds, energy = work.seconds(), None  # the counter has counted the rest too
        peak = self.meters.peak_memory() if watch else None
        return Measured(point, repeat, seconds, work.tokens(), peak, baseline, work.state_bytes(), energy)
