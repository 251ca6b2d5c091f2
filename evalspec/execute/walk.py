"""The walk: feed each node of the forest once, from its parent's state, and yield a result for every request.

Nodes stand depth first, so any stretch of consecutive nodes is a pack: a node's parent is in the same pack, or on the
one path that leads into it. The walk takes stretch after stretch of as many tokens as the backend likes, and keeps no
states but those on the path that later nodes continue, and those of prompts that wait to be answered.

    forest, depth first    0 ┬ 1 ┬ 2 │ 3        packs: (0, 1, 2) and (3, 4, 5), the state after 1 is kept between them,
                             │   └───│ 4               the state after 0 too, for 5
                             └───────│ 5

States have a budget in bytes. Over it, prompts that wait are answered first; then states are dropped, the one that is
needed last before the others, and fed again when their turn comes.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

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
from evalspec.plan.forest import Forest, Request, alone


def walk(forest: Forest, backend: ForkingBackend | Engine, *, state_budget: int | None = None) -> Iterator[Result]:
    """Every request's result, once, in the order in which they are ready.

    `state_budget` is how many bytes of states may be kept; by default what the backend says.
    """
    if isinstance(backend, Engine):
        yield from backend.complete(forest)
        return
    # Where states cannot be forked, each request is fed from its beginning, and that is what is counted.
    yield from _Walk(forest if backend.forks else alone(forest), backend, state_budget).run()


def stream_of(request: Request) -> int:
    """The seed of a request's own sampling stream: it depends on what is asked and on nothing else."""
    text = repr((request.tokens.tobytes(), request.decoding, request.repeat)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "big")


class _Walk:
    """One pass over a forest. Scored positions are found beforehand: `wanted[node]` lists (offset, token)."""

    def __init__(self, forest: Forest, backend: ForkingBackend, budget: int | None) -> None:
        self.forest, self.backend = forest, backend
        self.budget = backend.state_budget if budget is None else budget
        self.length = forest.length.tolist()
        self.parent = forest.parent.tolist()
        self.depth: list[int] = []  # tokens from the root to the end of each node
        self.last_child = [-1] * len(self.parent)
        for node, above in enumerate(self.parent):
            self.depth.append(self.length[node] + (self.depth[above] if above >= 0 else 0))
            if above >= 0:
                self.last_child[above] = node
        self.ends: dict[int, list[int]] = defaultdict(list)
        for number, leaf in enumerate(forest.leaf.tolist()):
            self.ends[leaf].append(number)
        self.wanted: dict[int, dict[tuple[int, int], int]] = defaultdict(dict)
        self.slots = [self._slots(number) for number in range(len(forest.requests))]
        self.scored: dict[int, Extended] = {}
        self.states: dict[int, State] = {}  # after nodes that later ones continue
        self.waiting: list[tuple[int, int, State]] = []  # prompts to be answered: node, request, state
        self.uncounted = dict(enumerate(self.length))
        self.again = 0  # tokens fed again since the last result

    def _slots(self, number: int) -> list[tuple[int, int]]:
        """For each target of a request, the node whose position predicts it and its place among that node's targets."""
        request, node = self.forest.requests[number], int(self.forest.leaf[number])
        found = []
        position = len(request.tokens) - 1
        for token in reversed(request.targets):
            while position < self.depth[node] - self.length[node]:
                node = self.parent[node]
            offset = position - (self.depth[node] - self.length[node])
            places = self.wanted[node]
            found.append((node, places.setdefault((offset, token), len(places))))
            position -= 1
        return found[::-1]

    def run(self) -> Iterator[Result]:
        node, count = 0, len(self.length)
        while node < count:
            stop, tokens = node + 1, self.length[node]
            while stop < count and tokens + self.length[stop] <= self.backend.batch_tokens:
                tokens += self.length[stop]
                stop += 1
            began = time.perf_counter()
            for above in {self.parent[n] for n in range(node, stop) if 0 <= self.parent[n] < node}:
                self._bring_back(above)
            self._feed(range(node, stop))
            per_token = (time.perf_counter() - began) / tokens
            yield from self._finished(range(node, stop), per_token)
            node = stop
            self.states = {above: state for above, state in self.states.items() if self.last_child[above] >= node}
            if self.waiting and self._held() > self.budget:
                yield from self._answer(per_token)
            self._drop()
        if self.waiting:
            yield from self._answer(0.0)

    # Feeding ---------------------------------------------------------------------------------------------------------

    def _feed(self, nodes: range) -> None:
        """Feed consecutive nodes; keep the states that are needed afterwards, and the log-probabilities."""
        spans = []
        for node in nodes:
            above = self.parent[node]
            parent = above - nodes.start if above >= nodes.start else self.states[above] if above >= 0 else None
            offsets, targets = self._asked(node)
            keep = self.last_child[node] >= nodes.stop or self._generates(node)
            spans.append(Span(self.forest.node_tokens(node), parent, offsets, targets, keep))
        for node, extended in zip(nodes, self.backend.extend(spans), strict=True):
            if node in self.wanted:
                self.scored[node] = Extended(None, extended.logprobs, extended.greedy)
            if self.last_child[node] >= nodes.stop:
                self.states[node] = extended.state
            for number in self.ends.get(node, ()):
                if self.forest.requests[number].decoding:
                    self.waiting.append((node, number, extended.state))

    def _asked(self, node: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        pairs = np.asarray(list(self.wanted.get(node, ())), np.int64).reshape(-1, 2)
        return pairs[:, 0], pairs[:, 1]

    def _generates(self, node: int) -> bool:
        return any(self.forest.requests[number].decoding for number in self.ends.get(node, ()))

    # States ----------------------------------------------------------------------------------------------------------

    def _held(self) -> int:
        """Bytes of all states that are kept. One that only refers to its parent's memory counts what it adds."""
        kept = {node: self.depth[node] for node in self.states}
        kept.update((node, self.depth[node]) for node, _, _ in self.waiting)
        size = self.backend.state_bytes
        if not self.backend.states_refer:
            return sum(map(size, kept.values()))
        nodes = set(kept)
        for node in kept:
            while (node := self.parent[node]) >= 0 and node not in nodes:
                nodes.add(node)
        # What does not grow with the length (recurrent states beside a KV cache) each state has for itself.
        return size(sum(self.length[node] for node in nodes)) + (len(kept) - 1) * size(0)

    def _drop(self) -> None:
        """Drop states until the budget holds: first the one that is needed last, which is the shallowest."""
        if self.backend.states_refer:
            return  # those of a path are parts of the deepest one's memory: dropping them would free nothing
        for node in sorted(self.states):
            if self._held() <= self.budget or len(self.states) == 1:
                break
            del self.states[node]

    def _bring_back(self, node: int) -> None:
        """Feed the way to a node whose state was dropped, from the nearest state that is left."""
        way = []
        while node >= 0 and node not in self.states:
            way.append(node)
            node = self.parent[node]
        if not way:
            return
        tokens = np.concatenate([self.forest.node_tokens(above) for above in reversed(way)])
        start = self.states[node] if node >= 0 else None
        (fed,) = self.backend.extend([Span(tokens, start, keep=True)])
        self.states[way[0]] = fed.state
        self.again += len(tokens)

    # Results ---------------------------------------------------------------------------------------------------------

    def _finished(self, nodes: Sequence[int], per_token: float) -> Iterator[Result]:
        """Results of the scoring requests that end in these nodes."""
        for node in nodes:
            for number in self.ends.get(node, ()):
                if self.forest.requests[number].decoding:
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

    def _count(self, node: int) -> int:
        """Tokens on the way to a node that no result has been charged with yet."""
        total, self.again = self.again, 0
        while node in self.uncounted:
            total += self.uncounted.pop(node)
            node = self.parent[node]
        return total

    def _answer(self, per_token: float) -> Iterator[Result]:
        """Generate for all prompts that wait."""
        waiting, self.waiting = self.waiting, []
        nodes = {number: node for node, number, _ in waiting}
        asked = []
        for _, number, _ in waiting:
            request = self.forest.requests[number]
            assert request.decoding is not None
            asked.append(DecodeRequest(request.decoding, number, request.repeat, stream_of(request)))
        states = [state for _, _, state in waiting]
        del waiting
        before = time.perf_counter()
        for output in self.backend.decode(states, asked):
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
