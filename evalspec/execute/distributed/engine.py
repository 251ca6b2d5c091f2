"""A forest answered by several workers: an `Engine` that cuts it, hands out the pieces and brings the results back.

    forest ──cut──► pieces ──► worker 0  ─┐
                          ├──► worker 1  ─┼─ results, every moment ──► one queue ──► whoever asked (the one writer)
                          └──► worker 2  ─┘

A thread of its own talks to the workers, so that none of them waits while its results are scored and written. What a
lost worker had not answered is cut again and given to others; a result is passed on once.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from evalspec.errors import BackendError, RunError
from evalspec.execute.distributed.shipping import Asked, Opened, Reported, Shipment, Trouble
from evalspec.execute.protocols import Result
from evalspec.models.cost import Cost
from evalspec.plan.cutting import cut, subforest
from evalspec.plan.forest import Forest, Ints, alone

REPORT_SECONDS = 1.0
"""How long a worker walks between two reports, in which its GPU waits some milliseconds; as much is lost with it."""
LOSSES = 3
"""How often a piece may lose its worker, and a worker its process while it opens a model."""
PATIENCE = 30.0
"""Seconds without any worker after which that is said, or, where the cluster has no room left, the run ends."""


@dataclass(eq=False)
class Job:
    """Requests that one worker is to answer, and how many workers were lost over them."""

    requests: Ints
    losses: int = 0


@dataclass(eq=False)
class Seat:
    """One worker: its actor, the call under way, what it works on. `ready` once it has opened the model."""

    number: int
    actor: Any
    call: Any = None
    job: Job | None = None
    ready: bool = False
    failures: int = 0
    node: str = "?"


class SpreadEngine:
    """An `Engine` over workers that all opened the same model. `identity` is what their backends say, all the same."""

    def __init__(
        self,
        ray: Any,
        start: Callable[[], Any],
        room: Callable[[], int],
        workers: int,
        asked: Asked,
        cost: Cost | None,
        say: Callable[[str], None],
    ) -> None:
        """Start workers on a model and wait until the first has opened it; the others join when they have.

        `start` starts an actor, `room` says for how many the cluster has room. Raises what a worker raises.
        """
        self.ray, self.start, self.room = ray, start, room
        self.asked, self.cost, self.say = asked, cost, say
        self.opened: Opened | None = None
        self.name = self.version = ""  # as the first worker says
        self.peak: int | None = None
        self.alone_since = time.monotonic()
        self.seats = [self._seat(number) for number in range(workers)]
        while self.opened is None:
            self._listen(self._hear_opening)

    # What an engine says of itself -----------------------------------------------------------------------------------

    @property
    def identity(self) -> tuple[str, ...]:
        """Everything about it that can change a result: where it ran and with how many others does not."""
        return self._first.identity

    def peak_memory(self) -> int | None:
        """The most device memory that any one worker had in use, if devices tell."""
        return self.peak

    @property
    def _first(self) -> Opened:
        assert self.opened is not None
        return self.opened

    # Answering -------------------------------------------------------------------------------------------------------

    def complete(self, forest: Forest) -> Iterator[Result]:
        """Answer every request of the forest, each once, as the workers report them."""
        found: queue.SimpleQueue[tuple[Result, ...] | BaseException | None] = queue.SimpleQueue()
        stop = threading.Event()
        thread = threading.Thread(target=self._serve, args=(forest, found.put, stop), daemon=True)
        thread.start()
        try:
            while (said := found.get()) is not None:
                if isinstance(said, BaseException):
                    raise said
                yield from said
        finally:
            stop.set()
            thread.join()

    def _serve(
        self,
        forest: Forest,
        put: Callable[[tuple[Result, ...] | BaseException | None], None],
        stop: threading.Event,
    ) -> None:
        try:
            _Service(self, forest if self._first.forks else alone(forest), put).run(stop)
            put(None)
        except BaseException as error:  # raised again where the results are read
            put(error)

    # Workers ---------------------------------------------------------------------------------------------------------

    def _seat(self, number: int) -> Seat:
        seat = Seat(number, self.start())
        seat.call = seat.actor.open.remote(self.asked)
        return seat

    def _listen(self, hear: Callable[[Seat, Any], None], lose: Callable[[Seat], None] = lambda _: None) -> None:
        """Wait a moment for what any worker says; replace the one that is lost."""
        calls = {seat.call: seat for seat in self.seats if seat.call is not None}
        ready, _ = self.ray.wait(list(calls), timeout=0.2)
        for call in ready:
            seat = calls[call]
            seat.call = None
            try:
                said = self.ray.get(call)
            except self.ray.exceptions.RayTaskError:
                raise  # a mistake in evalspec, with the worker's traceback
            except self.ray.exceptions.RayError as error:
                self._replace(seat, error)
                lose(seat)
                continue
            if isinstance(said, Trouble):
                raise said.error()
            hear(seat, said)
        self._mind_that_someone_works()

    def _hear_opening(self, seat: Seat, said: Opened) -> None:
        """A worker is ready; it must compute as the others do."""
        first = self.opened
        if first is not None and (said.identity, said.evalspec) != (first.identity, first.evalspec):
            raise BackendError(
                f"models.{self.asked.name}: node {said.node} runs {', '.join(said.identity)} with evalspec "
                f"{said.evalspec}, node {first.node} {', '.join(first.identity)} with evalspec {first.evalspec}; one "
                "run must not mix them: install the same versions on all nodes, or name `dtype` and `device`"
            )
        self.opened = first or said
        self.name, self.version = self.opened.name, self.opened.version
        seat.ready, seat.node, seat.failures = True, said.node, 0

    def _replace(self, seat: Seat, error: Exception) -> None:
        """Start a worker in the place of one that is lost: where it can, on another node."""
        reason = reason_of(error)
        opening = not seat.ready
        seat.failures += 1
        if opening and seat.failures >= LOSSES:
            raise RunError(
                f"models.{self.asked.name}: no worker can open it over Ray, {reason}; every node needs evalspec of the "
                "same version and memory for the model"
            ) from error
        where = "while it opened the model" if opening else f"on node {seat.node}"
        self.say(f"  {self.asked.name}: worker {seat.number} was lost {where} ({reason})")
        self.ray.kill(seat.actor, no_restart=True)
        fresh = self._seat(seat.number)
        seat.actor, seat.call, seat.ready = fresh.actor, fresh.call, False

    def _mind_that_someone_works(self) -> None:
        if any(seat.ready for seat in self.seats):
            self.alone_since = time.monotonic()
        elif time.monotonic() - self.alone_since > PATIENCE:
            self.alone_since = time.monotonic()
            if not self.room():
                raise RunError("the Ray cluster has no node left that has room for a worker; start nodes")
            self.say(f"  {self.asked.name}: no worker is ready yet; the cluster may be taken, or the model large")

    def close(self) -> None:
        """End all workers at once."""
        for seat in self.seats:
            self.ray.kill(seat.actor, no_restart=True)
        self.seats = []


class _Service:
    """One forest: which pieces wait, who has which, which requests are answered."""

    def __init__(self, engine: SpreadEngine, forest: Forest, put: Callable[[tuple[Result, ...]], None]) -> None:
        self.engine, self.forest, self.put = engine, forest, put
        made = cut(forest, len(engine.seats), engine.cost)
        self.jobs = deque(Job(piece.requests) for piece in made.pieces)
        self.unanswered = np.ones(len(forest.requests), np.bool_)
        repeated = made.repeated_tokens / max(1, forest.distinct_tokens)
        engine.say(
            f"  {engine.asked.name}: {len(engine.seats)} workers, {len(self.jobs)} pieces, "
            f"{made.repeated_tokens:,} tokens fed again because of the cut ({repeated:.1%})"
        )

    def run(self, stop: threading.Event) -> None:
        """Until every request is answered, or nobody wants to know."""
        while self.unanswered.any() and not stop.is_set():
            for seat in self.engine.seats:
                if seat.ready and seat.job is None and self.jobs:
                    seat.job = self.jobs.popleft()
                    shipment = Shipment.of(subforest(self.forest, seat.job.requests))
                    seat.call = seat.actor.walk.remote(shipment, REPORT_SECONDS)
            self.engine._listen(self._hear, self._lose)

    def _hear(self, seat: Seat, said: Opened | Reported) -> None:
        if isinstance(said, Opened):
            self.engine._hear_opening(seat, said)
            return
        assert seat.job is not None
        numbers = seat.job.requests
        results = [replace(result, request=int(numbers[result.request])) for result in said.results]
        new = tuple(result for result in results if self.unanswered[result.request])
        self.unanswered[[result.request for result in new]] = False
        self.engine.peak = max(filter(None, (self.engine.peak, said.peak_memory)), default=None)
        if said.done:
            seat.job = None
        else:
            seat.call = seat.actor.walk.remote(None, REPORT_SECONDS)
        if new:
            self.put(new)

    def _lose(self, seat: Seat) -> None:
        """Cut what a lost worker had not answered into a piece for each of the others."""
        job, seat.job = seat.job, None
        if job is None:
            return
        left = job.requests[self.unanswered[job.requests]]
        if job.losses + 1 >= LOSSES and len(left):
            raise RunError(
                f"models.{self.engine.asked.name}: {len(left)} requests were given up after the {LOSSES}rd worker that "
                "was lost over them; the workers' memory may be too small for them"
            )
        if len(left):
            ready = sum(other.ready for other in self.engine.seats)
            again = cut(subforest(self.forest, left), max(1, ready), self.engine.cost)
            self.jobs.extendleft(Job(left[piece.requests], job.losses + 1) for piece in again.pieces[::-1])
            self.engine.say(f"  {self.engine.asked.name}: its {len(left):,} unanswered requests go to others")


def reason_of(error: Exception) -> str:
    """Why Ray says that a worker is gone, in a few words."""
    text = str(error)
    if "ModuleNotFoundError" in text or "ImportError" in text:
        return next(line.strip() for line in text.splitlines()[::-1] if "Error" in line)
    for sign, words in (
        ("low on memory", "its node ran out of memory, and Ray ended it"),
        ("node died", "its node died"),
        ("node has died", "its node died"),
        ("node was terminated", "its node died"),
        ("unavailable", "its node cannot be reached"),
        ("exit", "its process ended"),
    ):
        if sign in text.lower():
            return words
    return f"{type(error).__name__}"
