"""What both forking backends share: spans in batches, the head at scored positions alone, continuous decoding.

A backend brings its memory (recurrent states or KV caches) in two shapes: of one sequence, kept in a
`ForkedState`, and of a batch, which is being fed. A few operations move between them; all else is here, once.

Glossary: b rows of a batch · l its longest span · d model width · v vocabulary · n scored positions
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from evalspec.errors import RunError
from evalspec.execute.backends.batches import Load, batches_of, is_out_of_memory, release_memory, run_halving
from evalspec.execute.backends.sampling import Answer, next_tokens
from evalspec.execute.protocols import DecodeRequest, Extended, Output, Span
from evalspec.models.tokens import Tokenizer
from evalspec.plan.forest import Tokens

Row = TypeVar("Row")
Batch = TypeVar("Batch")


@dataclass(frozen=True, eq=False)
class ForkedState(Generic[Row]):
    """One sequence so far: its memory, the hidden vector (d,) of its last position, and how many tokens it has read."""

    memory: Row
    hidden: Tensor
    length: int


@dataclass(frozen=True, eq=False)
class Fed(Generic[Batch]):
    """What feeding a batch gave: logits (n, v) float32, hidden vectors (b, d) of the rows' ends, the batch's memory."""

    logits: Tensor
    last: Tensor
    memory: Batch


@dataclass(frozen=True, eq=False)
class Running(Generic[Batch]):
    """Requests being decoded, one a row: their places among all, answers, memory and next logits (b, v)."""

    indices: list[int]
    answers: list[Answer]
    memory: Batch
    logits: Tensor


class ForkingModel(ABC, Generic[Row, Batch]):
    """A model whose states are forked here. Subclasses load the model and move its memory."""

    name: str
    version: str
    forks: bool = True

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        *,
        device: torch.device,
        dtype: torch.dtype,
        vocab_size: int,
        end_tokens: frozenset[int],
        batch_tokens: int | None,
    ) -> None:
        self.tokenizer = tokenizer
        self.device = device
        self.dtype = dtype
        self.vocab_size = vocab_size
        self.end_tokens = end_tokens
        on_gpu = device.type == "cuda"
        # On a CPU larger batches leave its caches and gain nothing; a GPU wants the most that fits.
        self.batch_tokens = batch_tokens or (16384 if on_gpu else 1024)
        self.most_rows = 256 if on_gpu else 64
        free = torch.cuda.mem_get_info(device)[0] if on_gpu else psutil.virtual_memory().available
        self.batch_bytes = free // 4

    @property
    def identity(self) -> tuple[str, ...]:
        """What, beside weights and request, can change a result: backend, versions, precision, kind of device."""
        return (self.name, self.version, str(self.dtype).removeprefix("torch."), self.device.type)

    # What a subclass brings ------------------------------------------------------------------------------------------

    @abstractmethod
    def _gather(self, rows: Sequence[Row | None], room: int) -> Batch | None:
        """Put sequences side by side in a batch, as copies; None starts a new one, and all None is None.

        A row may appear more than once. `room` is how many tokens each is likely to be fed.
        """

    @abstractmethod
    def _scatter(
        self, batch: Batch, rows: Sequence[int], before: Sequence[Row | None], tokens: list[Tokens]
    ) -> list[Row]:
        """Memories of some rows, each on its own, of a batch gathered from `before` and then fed `tokens`."""

    @abstractmethod
    def _select(self, batch: Batch, rows: Sequence[int]) -> Batch:
        """Only these rows of a batch that decodes."""

    @abstractmethod
    def _join(self, first: Batch, second: Batch) -> Batch:
        """Both batches in one, the rows of the first before the second's."""

    @abstractmethod
    def _feed(
        self, tokens: Tensor, lengths: Sequence[int], memory: Batch | None, scored: Tensor, hidden: Tensor | None
    ) -> Fed[Batch]:
        """Feed tokens (b, l), padded on the right, of which row i has lengths[i].

        `scored` (n,) are positions in the flattened (b · l) grid; the logits are theirs, followed by those of the
        vectors `hidden` (m, d), if any.
        """

    @abstractmethod
    def _logits(self, hidden: Tensor) -> Tensor:
        """Logits (m, v), float32, of hidden vectors (m, d)."""

    @abstractmethod
    def state_bytes(self, length: int) -> int:
        """Bytes that the state of one sequence of `length` tokens takes."""

    # Scoring ---------------------------------------------------------------------------------------------------------

    def extend(self, spans: Sequence[Span]) -> Sequence[Extended]:
        """Feed each span from its parent's state; see `ForkingBackend.extend`."""
        loads = []
        for span in spans:
            past = span.parent.length if span.parent is not None else 0
            scored = 0 if span.offsets is None else len(span.offsets)
            size = self.state_bytes(past + len(span.tokens)) + 8 * self.vocab_size * scored
            loads.append(Load(len(span.tokens), past, size))
        batches = batches_of(loads, most_tokens=self.batch_tokens, most_bytes=self.batch_bytes)
        results: dict[int, Extended] = {}
        for batch, extended in run_halving(batches, lambda rows: self._extend([spans[i] for i in rows]), self._smaller):
            results.update(zip(batch, extended, strict=True))
        return [results[index] for index in range(len(spans))]

    @torch.inference_mode()
    def _extend(self, spans: Sequence[Span]) -> list[Extended]:
        """One batch of spans."""
        lengths = [len(span.tokens) for span in spans]
        longest = max(lengths)
        tokens = np.zeros((len(spans), longest), np.int64)
        for row, span in enumerate(spans):
            tokens[row, : lengths[row]] = span.tokens

        # Each position meets the head once, however many tokens are scored there. A parent's last position, −1, is a
        # hidden vector that its state has kept.
        places: dict[tuple[int, int], int] = {}
        for row, span in enumerate(spans):
            for offset in () if span.offsets is None else span.offsets.tolist():
                places.setdefault((row, offset), 0)
        inside = [place for place in places if place[1] >= 0]
        behind = [place for place in places if place[1] < 0]
        places.update({place: at for at, place in enumerate(inside + behind)})
        at = [places[row, offset] for row, span in enumerate(spans) for offset in _listed(span.offsets)]
        targets = [target for span in spans for target in _listed(span.targets)]

        before = [None if span.parent is None else span.parent.memory for span in spans]
        fed = self._feed(
            torch.from_numpy(tokens).to(self.device),
            lengths,
            self._gather(before, longest),
            torch.tensor([row * longest + offset for row, offset in inside], dtype=torch.long, device=self.device),
            torch.stack([spans[row].parent.hidden for row, _ in behind]) if behind else None,  # type: ignore[union-attr]
        )
        logprobs, greedy = score(fed.logits, at, targets)

        kept = [row for row, span in enumerate(spans) if span.keep]
        memories = self._scatter(fed.memory, kept, before, [span.tokens for span in spans]) if kept else []
        states: dict[int, ForkedState[Row]] = {}
        for row, memory in zip(kept, memories, strict=True):
            past = spans[row].parent.length if spans[row].parent is not None else 0  # type: ignore[union-attr]
            states[row] = ForkedState(memory, fed.last[row].clone(), past + lengths[row])
        results, done = [], 0
        for row, span in enumerate(spans):
            count = len(_listed(span.offsets))
            results.append(Extended(states.get(row), logprobs[done : done + count], greedy[done : done + count]))
            done += count
        return results

    # Generation ------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def decode(self, states: Sequence[ForkedState[Row]], requests: Sequence[DecodeRequest]) -> Iterator[Output]:
        """Generate from each state until its own stop, new requests joining as others finish."""
        if self.tokenizer is None:
            raise RunError("this model was opened without a tokenizer, which generation needs for its text")
        waiting = deque(sorted(range(len(states)), key=lambda i: (states[i].length, i)))
        running: Running[Batch] | None = None
        while waiting or running:
            joining = [waiting.popleft() for _ in range(self._room(states, requests, waiting, running))]
            taken = (running.indices if running else []) + joining
            finished: list[Output] | None = None
            try:
                if joining:
                    running = self._admit(running, joining, states, requests)
                running, finished = self._advance(running)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if len(taken) == 1:
                    raise RunError(f"one sequence alone does not fit in memory: {error}") from error
            if finished is None:
                # A request's answer depends on nothing but the request: starting them again changes no result.
                self.most_rows = (len(taken) + 1) // 2
                waiting.extendleft(reversed(taken))
                running = None
                release_memory()
            else:
                yield from finished

    def _admit(
        self,
        running: Running[Batch] | None,
        joining: list[int],
        states: Sequence[ForkedState[Row]],
        requests: Sequence[DecodeRequest],
    ) -> Running[Batch]:
        """Add requests to the running ones: their first token is predicted by their state's hidden vector."""
        assert self.tokenizer is not None
        answers = [Answer(requests[i], self.tokenizer, self._ends(requests[i])) for i in joining]
        memory = self._gather(
            [states[i].memory for i in joining], max(requests[i].decoding.max_tokens for i in joining)
        )
        assert memory is not None
        logits = self._logits(torch.stack([states[i].hidden for i in joining]))
        if running is None:
            return Running(joining, answers, memory, logits)
        return Running(
            running.indices + joining,
            running.answers + answers,
            self._join(running.memory, memory),
            torch.cat([running.logits, logits]),
        )

    def _advance(self, running: Running[Batch] | None) -> tuple[Running[Batch] | None, list[Output]]:
        """One token for each running request: what still runs, and what has finished."""
        assert running is not None
        answers = running.answers
        tokens = next_tokens(
            running.logits, [answer.request.decoding for answer in answers], [answer.draw() for answer in answers]
        )
        outputs = [answer.add(token) for answer, token in zip(answers, tokens, strict=True)]
        finished = [output for output in outputs if output is not None]
        going = [row for row, output in enumerate(outputs) if output is None]
        if not going:
            return None, finished
        fed = self._feed(
            torch.tensor([[tokens[row]] for row in going], device=self.device),
            [1] * len(going),
            self._select(running.memory, going) if finished else running.memory,
            torch.arange(len(going), device=self.device),
            None,
        )
        indices = [running.indices[row] for row in going]
        return Running(indices, [answers[row] for row in going], fed.memory, fed.logits), finished

    def _room(
        self,
        states: Sequence[ForkedState[Row]],
        requests: Sequence[DecodeRequest],
        waiting: deque[int],
        running: Running[Batch] | None,
    ) -> int:
        """How many waiting requests join now: in groups, since each joining copies the batch's memory."""
        if not waiting:
            return 0
        active = len(running.indices) if running else 0
        longest = max(states[i].length + requests[i].decoding.max_tokens for i in waiting)
        rows = max(1, min(self.most_rows, self.batch_bytes // max(1, self.state_bytes(longest))))
        free = min(rows - active, len(waiting))
        return free if active == 0 or free >= max(1, rows // 4) else 0

    def _ends(self, request: DecodeRequest) -> frozenset[int]:
        """The model's end tokens, and stop texts that are one special token, which the decoded text leaves out."""
        inner = self.tokenizer.inner if self.tokenizer else None
        special = dict(zip(inner.all_special_tokens, inner.all_special_ids, strict=True)) if inner else {}
        return self.end_tokens | {special[stop] for stop in request.decoding.stop if stop in special}

    # The device ------------------------------------------------------------------------------------------------------

    def _smaller(self) -> None:
        """Memory ran out: ask less of the batches to come."""
        self.batch_tokens = max(1, self.batch_tokens // 2)
        self.batch_bytes //= 2

    def peak_memory(self) -> int | None:
        """Most bytes of GPU memory in use since the backend was opened; None on a CPU, which does not tell."""
        if self.device.type != "cuda":
            return None
        return sum(torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count()))


def score(logits: Tensor, at: Sequence[int], targets: Sequence[int]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Natural log-probability (float32) of targets[i] under logits[at[i]], and if it is the first of the likeliest."""
    if not targets:
        return np.zeros(0, np.float32), np.zeros(0, np.bool_)
    rows = torch.tensor(at, device=logits.device)
    columns = torch.tensor(targets, device=logits.device)
    logits = logits.float()
    logprobs = logits[rows, columns] - logits.logsumexp(-1)[rows]
    greedy = logits.argmax(-1)[rows] == columns
    return logprobs.cpu().numpy(), greedy.cpu().numpy()


def _listed(values: NDArray[np.int64] | None) -> list[int]:
    return [] if values is None else values.tolist()
