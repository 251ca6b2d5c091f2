"""What both forking backends share: spans laid out as a pack, the head at scored positions alone, continuous decoding.

A backend brings its memory (recurrent states or KV caches) in two shapes: of one sequence, kept in a `ForkedState`,
and of a batch that decodes. A few operations move between them; all else is here, once.

Glossary: t tokens of a pack · b rows that decode · d model width · v vocabulary · n scored positions
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import psutil
import torch
from torch import Tensor

from evalspec.errors import RunError
from evalspec.execute.backends.memory import is_out_of_memory, release_memory
from evalspec.execute.backends.sampling import Answer, next_tokens
from evalspec.execute.backends.spans import lay_out, places_within, put_together, read_tokens, score
from evalspec.execute.protocols import DecodeRequest, Extended, Output, Span
from evalspec.models.tokens import Tokenizer
from evalspec.plan.pack import Pack

Row = TypeVar("Row")
Batch = TypeVar("Batch")


@dataclass(frozen=True, eq=False)
class ForkedState(Generic[Row]):
    """One sequence so far: its memory, the hidden vector (d,) of its last position, and how many tokens it has read."""

    memory: Row
    hidden: Tensor
    length: int


@dataclass(frozen=True, eq=False)
class Fed(Generic[Row]):
    """What feeding a pack gave: logits (n, v) float32, and of each kept segment its last hidden vector (k, d) and its
    sequence's memory."""

    logits: Tensor
    last: Tensor
    memories: list[Row]


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
    model: Any
    forks: bool = True
    states_refer: bool = False
    batch_invariant: bool = False
    """Whether results are promised not to depend, by as much as a bit, on what else is in a batch."""
    most_spans: int | None = None  # in one pack

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
        # On a CPU larger packs leave its caches and gain nothing; a GPU wants the most that fits.
        self.batch_tokens = batch_tokens or (16384 if on_gpu else 2048)
        self.most_rows = 256 if on_gpu else 64
        free = torch.cuda.mem_get_info(device)[0] if on_gpu else psutil.virtual_memory().available
        self.batch_bytes = free // 4
        self.state_budget = free // 2

    @property
    def identity(self) -> tuple[str, ...]:
        """What, beside weights and request, can change a result: backend, versions, precision, kind of device."""
        invariant = ["batch_invariant"] if self.batch_invariant else []
        return (self.name, self.version, str(self.dtype).removeprefix("torch."), self.device.type, *invariant)

    # What a subclass brings ------------------------------------------------------------------------------------------

    @abstractmethod
    def _feed(
        self, tokens: Tensor, pack: Pack, given: Sequence[Row | None], scored: Tensor, hidden: Tensor | None
    ) -> Fed[Row]:
        """Feed a pack's tokens (t,), whose given states are these memories (None: nothing was read before).

        `scored` (n,) are token positions; the logits are theirs, followed by those of the vectors `hidden` (m, d).
        """

    @abstractmethod
    def _gather(self, states: Sequence[ForkedState[Row]], room: int) -> Batch:
        """Sequences side by side, each about to be fed up to `room` tokens. One may appear more than once."""

    @abstractmethod
    def _step(self, tokens: Tensor, batch: Batch) -> tuple[Tensor, Batch]:
        """Feed one token a row (b,): the logits (b, v), float32, that follow, and the memory after it."""

    @abstractmethod
    def _select(self, batch: Batch, rows: Sequence[int]) -> Batch:
        """Only these rows of a batch that decodes."""

    @abstractmethod
    def _join(self, first: Batch, second: Batch) -> Batch:
        """Both batches in one, the rows of the first before the second's."""

    @abstractmethod
    def _logits(self, hidden: Tensor) -> Tensor:
        """Logits (m, v), float32, of hidden vectors (m, d)."""

    @abstractmethod
    def state_bytes(self, length: int) -> int:
        """Bytes that the state of one sequence of `length` tokens takes."""

    # Scoring ---------------------------------------------------------------------------------------------------------

    def extend(self, spans: Sequence[Span]) -> Sequence[Extended]:
        """Feed each span from its parent's state; see `ForkingBackend.extend`.

        In as many packs as tokens, logits and memory need; where memory runs out, packs of half the size go on.
        """
        last_child = {span.parent: number for number, span in enumerate(spans) if isinstance(span.parent, int)}
        states: dict[int, ForkedState[Row]] = {}
        results: list[Extended | None] = [None] * len(spans)
        number = offset = 0  # the next token to feed
        while number < len(spans):
            parts = self._parts(spans, number, offset)
            first, (last, _, reached) = number, parts[-1]
            whole = reached == len(spans[last].tokens)
            if len(parts) == len(spans) and whole and not offset:
                extended = self._extend_or_shrink(spans)
                if extended is None:
                    continue
                return extended
            asked: list[Span] = []
            for at, begin, stop in parts:
                span = spans[at]
                parent = span.parent
                if begin:
                    parent = states[at]
                elif isinstance(parent, int):
                    parent = parent - first if parent >= first else states[parent]
                keep = span.keep or last_child.get(at, -1) > last or (at == last and not whole)
                if stop - begin == len(span.tokens):
                    asked.append(Span(span.tokens, parent, span.offsets, span.targets, keep))
                else:
                    here = places_within(span, begin, stop)
                    asked.append(
                        Span(span.tokens[begin:stop], parent, span.offsets[here] - begin, span.targets[here], keep)
                    )
            extended = self._extend_or_shrink(asked)
            if extended is None:
                continue
            for (at, begin, stop), part in zip(parts, extended, strict=True):
                if part.state is not None:
                    states[at] = part.state
                state = part.state if spans[at].keep else None
                if stop - begin == len(spans[at].tokens):
                    results[at] = Extended(state, part.logprobs, part.greedy)
                else:
                    results[at] = put_together(spans[at], results[at], begin, stop, part, state)
            number, offset = (last + 1, 0) if whole else (last, reached)
        return [found for found in results if found is not None]

    def _parts(self, spans: Sequence[Span], number: int, offset: int) -> list[tuple[int, int, int]]:
        """What fits into one pack from there on: (span, first token, behind the last), at least one token."""
        parts: list[tuple[int, int, int]] = []
        tokens, scored = self.batch_tokens, max(1, self.batch_bytes // (8 * self.vocab_size))
        behind = len(spans) if self.most_spans is None else min(len(spans), number + self.most_spans)
        for at in range(number, behind):
            span, begin = spans[at], offset if at == number else 0
            length, count = len(span.tokens), len(span.offsets)
            stop = min(length, begin + max(tokens, 0 if parts else 1))
            if stop - begin < length or count > scored:
                asked = np.sort(span.offsets[places_within(span, begin, stop)])
                count = len(asked)
                if count > scored:
                    stop = min(stop, max(int(asked[scored]), begin + (0 if parts else 1)))
                if stop == begin:
                    break
            parts.append((at, begin, stop))
            if stop < length:
                break
            tokens, scored = tokens - (stop - begin), scored - count
        return parts

    def _extend_or_shrink(self, spans: Sequence[Span]) -> list[Extended] | None:
        """One pack, or None if it does not fit in memory: from then on packs are half as large."""
        tokens = sum(len(span.tokens) for span in spans)
        try:
            return self._extend(spans)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if tokens == 1:
                raise RunError(f"one token alone does not fit in memory: {error}") from error
        # Out of the except clause, so that its traceback no longer holds the pack's tensors.
        release_memory()
        self.batch_tokens = (tokens + 1) // 2
        return None

    @torch.inference_mode()
    def _extend(self, spans: Sequence[Span]) -> list[Extended]:
        """One pack of spans."""
        given: list[ForkedState[Row] | None]
        pack, given = lay_out(spans)
        # Each position meets the head once, however many tokens are scored there. What precedes a span's first token is
        # its parent's last position: in the pack, or a hidden vector that the parent's state has kept (numbered behind
        # the pack's tokens).
        offsets = np.concatenate([span.offsets for span in spans])
        number = np.repeat(np.arange(len(spans)), [len(span.offsets) for span in spans])
        above = pack.parent[number]
        before = np.where(above >= 0, pack.stop[np.maximum(above, 0)] - 1, pack.tokens - 1 - above)
        places, at = np.unique(np.where(offsets >= 0, pack.start[number] + offsets, before), return_inverse=True)
        inside, outside = places[places < pack.tokens], places[places >= pack.tokens] - pack.tokens
        behind = [state.hidden for place in outside.tolist() if (state := given[place]) is not None]
        fed = self._feed(
            torch.from_numpy(np.concatenate([span.tokens for span in spans]).astype(np.int64)).to(self.device),
            pack,
            [None if state is None else state.memory for state in given],
            torch.from_numpy(inside).to(self.device),
            torch.stack(behind) if behind else None,
        )
        states: dict[int, ForkedState[Row]] = {}
        lengths = read_tokens(pack, [0 if state is None else state.length for state in given])
        for place, kept in enumerate(pack.keep.tolist()):
            states[kept] = ForkedState(fed.memories[place], fed.last[place].clone(), lengths[kept])
        # Last: until then a GPU works while this goes on.
        logprobs, greedy = score(fed.logits, at, np.concatenate([span.targets for span in spans]))
        results, done = [], 0
        for which, span in enumerate(spans):
            stop = done + len(span.offsets)
            results.append(Extended(states.get(which), logprobs[done:stop], greedy[done:stop]))
            done = stop
        return results

    # Generation ------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def decode(self, states: Sequence[ForkedState[Row]], requests: Sequence[DecodeRequest]) -> Iterator[Output]:
        """Generate from each state until its own stop, new requests joining as others finish."""
        if self.tokenizer is None:
            raise RunError("this model was opened without a tokenizer, which generation needs for its text")
        waiting = deque(range(len(states)))  # in the forest's order: neighbours share what they have read
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

    @torch.inference_mode()
    def decode_together(
        self, states: Sequence[ForkedState[Row]], requests: Sequence[DecodeRequest]
    ) -> Iterator[Sequence[Output]]:
        """The steps of `decode` one by one, all requests in one batch whatever its size: what finished in each.

        The first item comes before any step, when the batch stands ready: what is timed begins there.
        """
        running: Running[Batch] | None = self._admit(None, list(range(len(states))), states, requests)
        yield []
        while running:
            running, finished = self._advance(running)
            yield finished

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
        memory = self._gather([states[i] for i in joining], max(requests[i].decoding.max_tokens for i in joining))
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
        logits, memory = self._step(
            torch.tensor([tokens[row] for row in going], device=self.device),
            self._select(running.memory, going) if finished else running.memory,
        )
        indices = [running.indices[row] for row in going]
        return Running(indices, [answers[row] for row in going], memory, logits), finished

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
        if request.past_end:
            return frozenset()
        inner = self.tokenizer.inner if self.tokenizer else None
        special = dict(zip(inner.all_special_tokens, inner.all_special_ids, strict=True)) if inner else {}
        return self.end_tokens | {special[stop] for stop in request.decoding.stop if stop in special}

    def peak_memory(self) -> int | None:
        """Most bytes of GPU memory in use since the backend was opened; None on a CPU, which does not tell."""
        if self.device.type != "cuda":
            return None
        return sum(torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count()))
