"""What can be timed alone: a forking backend, an engine, an engine that tells when its first tokens came."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from evalspec.errors import BackendError
from evalspec.execute.backends.forking import ForkedState, ForkingModel
from evalspec.execute.protocols import DecodeRequest, Engine, ForkingBackend, Span, Timed
from evalspec.execute.walk import walk
from evalspec.plan.forest import Decoding, Request, Tokens, build_forest
from evalspec.plan.measurements import Point


@dataclass(frozen=True, eq=False)
class Work:
    """What is timed, and what is asked about it afterwards: tokens fed (prefill) or generated, bytes of one state.

    `seconds`: where only a part of what runs is what is timed, how long that part took.
    """

    run: Callable[[], None]
    tokens: Callable[[], int]
    state_bytes: Callable[[], int | None]
    seconds: Callable[[], float] | None = None


class Subject(Protocol):
    """A model that can be timed."""

    @property
    def gpus(self) -> Sequence[int]:
        """The GPUs that it stands on; none is a CPU."""
        ...

    def prepare(self, point: Point, prompts: Sequence[Tokens], new_tokens: int) -> Work:
        """Everything that is not timed (for decode: the contexts, fed), and then what is."""
        ...

    def wait(self) -> None:
        """Return when the device has done all that it was asked."""
        ...


class ForkedAlone:
    """A forking backend as a `Subject`."""

    def __init__(self, backend: ForkingModel[Any, Any]) -> None:
        self.backend = backend
        on = {parameter.device for parameter in backend.model.parameters()}
        self.gpus: Sequence[int] = sorted({device.index or 0 for device in on if device.type == "cuda"})
        self._left: tuple[bytes, list[ForkedState[Any]]] | None = None  # by the last prefill: its prompt, its state

    def wait(self) -> None:
        """Wait for its GPUs."""
        for index in self.gpus:
            torch.cuda.synchronize(index)

    def prepare(self, point: Point, prompts: Sequence[Tokens], new_tokens: int) -> Work:
        """See `Subject.prepare`. For decode the batch stands ready, and the timed steps begin with its second token."""
        backend, left = self.backend, self._left
        states: list[ForkedState[Any]] = []
        self._left = None

        def feed() -> None:
            last = np.array([point.length - 1])
            spans = [Span(prompt, None, last, np.zeros(1, np.int64), keep=True) for prompt in prompts]
            for extended in backend.extend(spans):
                assert extended.state is not None  # `keep` asked for it
                states.append(extended.state)

        def state_bytes() -> int:
            return bytes_held(states[0])

        if point.kind == "prefill":
            self._left = (prompts[0].tobytes(), states)
            return Work(feed, lambda: point.batch * point.length, state_bytes)
        count = new_tokens + (point.kind == "decode")
        asked = [DecodeRequest(Decoding(count), number, past_end=True) for number in range(point.batch)]
        generated = point.batch * new_tokens
        if point.kind == "throughput":

            def answer() -> None:
                feed()
                for _ in backend.decode(states, asked):
                    pass

            return Work(answer, lambda: generated, state_bytes)
        if left is not None and left[1] and left[0] == prompts[0].tobytes() and point.batch == 1:
            states = left[1]
        else:
            feed()
        steps = backend.decode_together(states, asked)
        next(steps)

        def step() -> None:
            for _ in steps:
                pass

        return Work(step, lambda: generated, state_bytes)


class EngineAlone:
    """An engine as a `Subject`: it owns its states, so decode is what its prefix cache leaves to be done."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.gpus: Sequence[int] = range(torch.cuda.device_count())

    def wait(self) -> None:
        """An engine has done what it was asked when it has answered."""

    def prepare(self, point: Point, prompts: Sequence[Tokens], new_tokens: int) -> Work:
        """See `Subject.prepare`. For decode the engine has seen the prompts once, for their first new token."""
        generated = 0

        def complete(count: int) -> int:
            forest = build_forest([Request(prompt, (), Decoding(count)) for prompt in prompts])
            return sum(result.output_tokens for result in walk(forest, self.engine))

        count = {"prefill": 1, "decode": new_tokens + 1, "throughput": new_tokens}[point.kind]
        if point.kind == "decode":
            complete(1)

        def run() -> None:
            nonlocal generated
            generated = complete(count)

        def tokens() -> int:
            first = point.batch if point.kind == "decode" else 0
            return point.batch * point.length if point.kind == "prefill" else generated - first

        return Work(run, tokens, lambda: None)


@runtime_checkable
class TimedEngine(Protocol):
    """An engine that tells when first tokens came, so that nothing of a cache is needed to time decoding."""

    def timed(self, prompts: Sequence[Tokens], new_tokens: int) -> Timed:
        """Generate `new_tokens` for each prompt, past end tokens."""
        ...


class TimedAlone:
    """An engine that tells when first tokens came, as a `Subject`; decode is what comes after the last of them."""

    def __init__(self, engine: TimedEngine) -> None:
        self.engine = engine
        self.gpus: Sequence[int] = range(torch.cuda.device_count())

    def wait(self) -> None:
        """An engine has done what it was asked when it has answered."""

    def prepare(self, point: Point, prompts: Sequence[Tokens], new_tokens: int) -> Work:
        """See `Subject.prepare`."""
        found: list[Timed] = []
        count = {"prefill": 1, "decode": new_tokens + 1, "throughput": new_tokens}[point.kind]
        fed, generated = point.batch * point.length, point.batch * new_tokens

        def run() -> None:
            found.append(self.engine.timed(prompts, count))

        if point.kind == "decode":
            # In a batch the first to be fed generate while the last wait: what counts is what came afterwards.
            return Work(run, lambda: found[0].tokens_after_first, lambda: None, lambda: found[0].all - found[0].first)
        return Work(run, lambda: fed if point.kind == "prefill" else generated, lambda: None)


def subject_of(backend: ForkingBackend | Engine) -> Subject:
    """A backend as something that can be timed. BackendError for one that is neither evalspec's own nor an engine."""
    if isinstance(backend, ForkingModel):
        return ForkedAlone(backend)
    if isinstance(backend, TimedEngine):
        return TimedAlone(backend)
    if isinstance(backend, Engine):
        return EngineAlone(backend)
    raise BackendError(f"backend `{backend.name}` cannot be measured: leave its models out by `measure.models`")


def bytes_held(state: object) -> int:
    """Bytes of memory that a state really holds: every storage that its tensors and arrays live in, once."""
    storages: dict[int, int] = {}
    seen: set[int] = set()
    waiting = [state]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, torch.Tensor):
            storage = one.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(one, np.ndarray):
            storages[one.__array_interface__["data"][0]] = one.nbytes
        elif isinstance(one, list | tuple):
            waiting.extend(one)
        elif hasattr(one, "__dict__"):
            waiting.extend(vars(one).values())
    return sum(storages.values())
