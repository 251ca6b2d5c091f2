"""The walk: feed each node of the forest once, from its parent's state, and yield a result for every request.

A frontier of nodes whose parents' states are at hand is cut into chunks whose states fit the byte budget. A chunk is
fed as one call; then the walk goes down into its children before it takes the next chunk. So batches are formed
across the forest, and no more than one chunk a level of the tree is alive at a time.

    walk(frontier):  for chunk in frontier:  feed chunk ── yield what ended here ── walk(children of chunk)
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from evalspec.execute.protocols import (
    NOT_A_NUMBER,
    DecodeRequest,
    Engine,
    Extended,
    ForkingBackend,
    Result,
    Span,
    State,
)
from evalspec.plan.forest import Forest, Request


def walk(forest: Forest, backend: ForkingBackend | Engine, *, state_budget: int = 2**30) -> Iterator[Result]:
    """Every request's result, once, in the order in which they are ready.

    `state_budget` is how many bytes of states one level of the tree may keep alive.
    """
    if isinstance(backend, Engine):
        yield from backend.complete(forest)
    else:
        yield from _Walk(forest, backend, state_budget).run()


def stream_of(request: Request) -> int:
    """The seed of a request's own sampling stream: it depends on what is asked and on nothing else."""
    text = repr((request.tokens.tobytes(), request.decoding, request.repeat)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "big")


class _Walk:
    """One pass over a forest. Scored positions are found beforehand: `wanted[node]` lists (offset, token)."""

    def __init__(self, forest: Forest, backend: ForkingBackend, state_budget: int) -> None:
        self.forest, self.backend, self.budget = forest, backend, state_budget
        self.depth = self._depths()
        self.children: dict[int, list[int]] = defaultdict(list)
        for node, parent in enumerate(forest.parent):
            self.children[int(parent)].append(node)
        self.ends: dict[int, list[int]] = defaultdict(list)
        for number, leaf in enumerate(forest.leaf):
            self.ends[int(leaf)].append(number)
        self.wanted: dict[int, dict[tuple[int, int], int]] = defaultdict(dict)
        self.slots = [self._slots(number) for number in range(len(forest.requests))]
        self.scored: dict[int, Extended] = {}
        # A backend that cannot fork its states feeds the whole path of a node again, and that is what is counted.
        fed = forest.length if backend.forks else self.depth
        self.uncounted = {node: int(length) for node, length in enumerate(fed)}

    def _depths(self) -> list[int]:
        """Tokens from the root to the end of each node."""
        depth: list[int] = []
        for parent, length in zip(self.forest.parent, self.forest.length, strict=True):
            depth.append(int(length) + (depth[parent] if parent >= 0 else 0))
        return depth

    def _slots(self, number: int) -> list[tuple[int, int]]:
        """For each target of a request, the node whose position predicts it and its place among that node's targets."""
        request, node = self.forest.requests[number], int(self.forest.leaf[number])
        found = []
        position = len(request.tokens) - 1
        for token in reversed(request.targets):
            while position < self.depth[node] - int(self.forest.length[node]):
                node = int(self.forest.parent[node])
            offset = position - (self.depth[node] - int(self.forest.length[node]))
            places = self.wanted[node]
            found.append((node, places.setdefault((offset, token), len(places))))
            position -= 1
        return found[::-1]

    def run(self) -> Iterator[Result]:
        yield from self._descend([(node, None) for node in self.children[-1]])

    def _descend(self, frontier: Sequence[tuple[int, State | None]]) -> Iterator[Result]:
        for chunk in self._chunks(frontier):
            began = time.perf_counter()
            states = self._feed(chunk)
            seconds = time.perf_counter() - began
            yield from self._finished([node for node, _ in chunk], states, seconds)
            below = [(child, states[node]) for node, _ in chunk for child in self.children.get(node, ())]
            del states
            yield from self._descend(below)

    def _chunks(self, frontier: Sequence[tuple[int, State | None]]) -> Iterator[Sequence[tuple[int, State | None]]]:
        """Consecutive parts of a frontier, each with states of at most the budget (but at least one node)."""
        chunk: list[tuple[int, State | None]] = []
        held = 0
        for node, state in frontier:
            size = self.backend.state_bytes(self.depth[node])
            if chunk and held + size > self.budget:
                yield chunk
                chunk, held = [], 0
            chunk.append((node, state))
            held += size
        if chunk:
            yield chunk

    def _generates(self, node: int) -> list[int]:
        return [number for number in self.ends.get(node, ()) if self.forest.requests[number].decoding]

    def _feed(self, chunk: Sequence[tuple[int, State | None]]) -> dict[int, State]:
        """Feed a chunk; returns the states that are needed afterwards, and keeps the log-probabilities."""
        spans = []
        for node, parent in chunk:
            wanted = self.wanted.get(node, {})
            pairs = np.asarray(list(wanted), np.int64).reshape(-1, 2)
            keep = bool(self.children.get(node)) or bool(self._generates(node))
            spans.append(Span(self.forest.node_tokens(node), parent, pairs[:, 0], pairs[:, 1], keep))
        states = {}
        for (node, _), extended in zip(chunk, self.backend.extend(spans), strict=True):
            states[node] = extended.state
            if node in self.wanted:
                self.scored[node] = Extended(None, extended.logprobs, extended.greedy)
        return states

    def _finished(self, nodes: Sequence[int], states: dict[int, State], seconds: float) -> Iterator[Result]:
        """Results of the requests that end in these nodes."""
        tokens = sum(int(self.forest.length[node]) for node in nodes)
        per_token = seconds / max(1, tokens)
        decoding: list[tuple[int, int]] = []
        for node in nodes:
            for number in self.ends.get(node, ()):
                if self.forest.requests[number].decoding:
                    decoding.append((node, number))
                    continue
                slots = [(self.scored[above], place) for above, place in self.slots[number]]
                fed = self._count(node)
                logprobs = tuple(float(scored.logprobs[place]) for scored, place in slots)
                yield Result(
                    request=number,
                    logprobs=logprobs,
                    error=NOT_A_NUMBER if any(map(math.isnan, logprobs)) else None,
                    greedy=tuple(bool(scored.greedy[place]) for scored, place in slots),
                    computed_tokens=fed,
                    seconds=per_token * fed,
                )
        if decoding:
            yield from self._decode(decoding, states, per_token)

    def _count(self, node: int) -> int:
        """Tokens on the way to a node that no result has been charged with yet."""
        total = 0
        while node in self.uncounted:
            total += self.uncounted.pop(node)
            node = int(self.forest.parent[node])
        return total

    def _decode(self, pairs: Sequence[tuple[int, int]], states: dict[int, State], per_token: float) -> Iterator[Result]:
        nodes = {number: node for node, number in pairs}
        asked = []
        for _, number in pairs:
            request = self.forest.requests[number]
            assert request.decoding is not None
            asked.append(DecodeRequest(request.decoding, number, request.repeat, stream_of(request)))
        before = time.perf_counter()
        for output in self.backend.decode([states[node] for node, _ in pairs], asked):
            now = time.perf_counter()
            fed = self._count(nodes[output.request])
            yield Result(
                request=output.request,
                text=output.text,
                output_tokens=len(output.tokens),
                finish_reason=output.finish_reason,
                error=NOT_A_NUMBER if output.finish_reason == "nan" else None,
                computed_tokens=fed,
                seconds=per_token * fed + now - before,
            )
            before = time.perf_counter()
