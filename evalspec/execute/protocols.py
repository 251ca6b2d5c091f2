"""What stands between the plan and the things that compute: two small protocols.

A `ForkingBackend` lets evalspec own the states: it feeds spans of tokens from a parent's state, and forks. An
`Engine` owns its states itself (a serving engine with a prefix cache), so it is handed whole requests in the
forest's order. `walk` (execute/walk.py) serves both and yields one `Result` a request.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from evalspec.plan.forest import Decoding, Forest, Tokens

State = Any
"""A backend's own: everything needed to go on after some tokens (KV cache, convolution and state-space states) and the
hidden vector of the last position, which predicts the next token."""


NOWHERE: NDArray[np.int64] = np.zeros(0, np.int64)


class Span(NamedTuple):
    """Tokens to feed from a state.

    tokens   (t,) int32, at least one
    parent   the state they continue; or the number of an earlier span of the same call; None starts a sequence
    offsets  (s,) int64: positions of the span whose prediction is scored; −1 is the parent's last position
    targets  (s,) int64: the token scored at each of them (one position may be scored for several tokens)
    keep     return the state after the span
    """

    tokens: Tokens
    parent: State | int | None = None
    offsets: NDArray[np.int64] = NOWHERE
    targets: NDArray[np.int64] = NOWHERE
    keep: bool = False


class Extended(NamedTuple):
    """What feeding a span gave: the state if asked, and for each target its natural log-probability (float32) and
    whether it was the likeliest token there."""

    state: State | None
    logprobs: NDArray[np.float32]
    greedy: NDArray[np.bool_]


@dataclass(frozen=True)
class DecodeRequest:
    """What to generate from one state: `request` names the sampling stream together with `repeat`."""

    decoding: Decoding
    request: int
    repeat: int = 0
    stream: int = 0
    """Seed of this request's own sampling stream: a hash of its prompt, decoding settings and repeat, so that a
    sampled answer depends on nothing else (not on batch, order, or the other requests)."""
    past_end: bool = False
    """Go on past the model's end tokens, so that the answer has `max_tokens`: for what is timed."""


@dataclass(frozen=True)
class Output:
    """A generated answer. `request` is the DecodeRequest's; `text` ends before the stop text; `finish_reason` is
    `stop` (a stop text or the end token), `length`, or `nan` (the model gave no numbers to choose a token by)."""

    request: int
    repeat: int
    tokens: tuple[int, ...]
    text: str
    finish_reason: str


@runtime_checkable
class ForkingBackend(Protocol):
    """A backend whose states evalspec forks and keeps."""

    name: str
    version: str
    forks: bool
    """Whether a state is really continued; False where the model's cache cannot be, and its tokens are fed again."""

    @property
    def identity(self) -> tuple[str, ...]:
        """Everything about it that can change a result: name, version, precision, kind of device."""
        ...

    batch_tokens: int
    """How many tokens it likes to be fed at a time."""
    states_refer: bool
    """Whether a state holds what its own span added and refers to its parent's for the rest (keys and values do)."""
    state_budget: int
    """Bytes of states that may be kept at a time, from the memory that was free when it was opened."""

    def extend(self, spans: Sequence[Span]) -> Sequence[Extended]:
        """Feed each span from its parent's state. The parents stay usable. Results in the order of the spans.

        Spans that continue each other stand depth first, as a forest's nodes do.
        """
        ...

    def decode(self, states: Sequence[State], requests: Sequence[DecodeRequest]) -> Iterator[Output]:
        """Generate from each state until its own stop; finished answers come as they finish."""
        ...

    def hidden_states(self, tokens: Tokens) -> NDArray[np.float32]:
        """(layers + 1, t, d): the embedding's output and the residual stream after each block, then nothing else."""
        ...

    def state_bytes(self, length: int) -> int:
        """Bytes that the state of one sequence of `length` tokens takes."""
        ...

    def peak_memory(self) -> int | None:
        """Most bytes of device memory in use since the backend was opened, if the device tells."""
        ...


NOT_A_NUMBER = (
    "the model gave no number (NaN): its weights are damaged, or `dtype` is too narrow for it; try bfloat16 or float32"
)


@dataclass(frozen=True)
class Result:
    """What one request of a forest came to."""

    request: int
    """Index into `forest.requests`."""
    logprobs: tuple[float, ...] = ()
    greedy: tuple[bool, ...] = ()
    text: str | None = None
    output_tokens: int = 0
    finish_reason: str | None = None
    computed_tokens: int = 0
    """Prompt tokens that were fed for this request, and for no other one before it."""
    seconds: float = 0.0
    """Its share of the time of its batch."""
    error: str | None = None

    @classmethod
    def generated(cls, output: Output, *, computed_tokens: int, seconds: float = 0.0) -> Result:
        """What an answer comes to; an error where the model gave no numbers to choose a token by."""
        return cls(
            output.request,
            text=output.text,
            output_tokens=len(output.tokens),
            finish_reason=output.finish_reason,
            computed_tokens=computed_tokens,
            seconds=seconds,
            error=NOT_A_NUMBER if output.finish_reason == "nan" else None,
        )

    @classmethod
    def scored(
        cls,
        request: int,
        logprobs: Sequence[float],
        greedy: Sequence[bool],
        *,
        computed_tokens: int,
        seconds: float = 0.0,
    ) -> Result:
        """What the log-probabilities of a continuation come to; an error where one is not a number."""
        return cls(
            request,
            tuple(logprobs),
            tuple(greedy),
            computed_tokens=computed_tokens,
            seconds=seconds,
            error=NOT_A_NUMBER if any(map(math.isnan, logprobs)) else None,
        )


@dataclass(frozen=True)
class Timed:
    """How long an engine took: seconds from the prompts to the last one's first token, and to the end; tokens that
    were generated after the former."""

    first: float
    all: float
    tokens_after_first: int


@runtime_checkable
class Closing(Protocol):
    """A backend that holds what must be given back: processes, connections."""

    def close(self) -> None:
        """Give it back. May be called again."""
        ...


@runtime_checkable
class Engine(Protocol):
    """A backend that owns its states: it gets whole requests, in the forest's order."""

    name: str
    version: str

    @property
    def identity(self) -> tuple[str, ...]:
        """Everything about it that can change a result."""
        ...

    def complete(self, forest: Forest) -> Iterator[Result]:
        """Answer every request of the forest, in any order."""
        ...

    def peak_memory(self) -> int | None:
        """Most bytes of device memory in use since the backend was opened, if the device tells."""
        ...
