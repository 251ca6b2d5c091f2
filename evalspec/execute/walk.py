"""The walk: feed each node of the forest once, from its parent's state, and yield a result for every request.

Nodes stand depth first, so any stretch of consecutive nodes is a pack: a node's parent is in the same pack, or on the
one path that leads into it. The walk takes stretch after stretch of as many tokens as the backend likes, and keeps no
states but those on the path that later nodes continue, and those of prompts that wait to be answered.

    forest, depth first    0 ┬ 1 ┬ 2 │ 3        packs: (0, 1, 2) and (3, 4, 5), the state after 1 is kept between them,
                             │   └───│ 4               the state after 0 too, for 5
                             └───────│ 5

States have a budget in bytes. Where it has no room for the next prompt's, those that wait are answered first; of the
path's, those that are cheapest to feed again are left out, and fed again when their turn comes. No more is ever held
than the budget, or two states where it has no room for them: one that is continued, and one that this gives.
"""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from evalspec.execute.protocols import (
    DecodeRequest,
    Engine,
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


class _Held:
    """The nodes whose states are kept, and how many bytes that takes; a node may be held for several reasons.

    A state that refers to its parent's memory counts what its own tokens added, and the path's before it once for all
    that refer to it. What does not grow with the length (a recurrent state beside a KV cache) each has for itself.
    """

    def __init__(self, backend: ForkingBackend, parent: list[int], length: list[int], depth: list[int]) -> None:
        self.refers = backend.states_refer
        self.state_bytes = backend.state_bytes
        self.parent, self.length, self.depth = parent, length, depth
        self.reasons: dict[int, int] = {}
        self.referring: dict[int, int] = {}
        self.bytes = 0

    def own(self, node: int) -> int:
        """Bytes that no other state shares with this node's."""
        return self.state_bytes(0 if self.refers else self.depth[node])

    def add(self, node: int) -> None:
        """Hold a node for one more reason."""
        self.reasons[node] = self.reasons.get(node, 0) + 1
        if self.reasons[node] > 1:
            return
        self.bytes += self.own(node)
        while self.refers and node >= 0:
            self.referring[node] = self.referring.get(node, 0) + 1
            if self.referring[node] > 1:
                break
            self.bytes += self.state_bytes(self.length[node]) - self.state_bytes(0)
            node = self.parent[node]

    def remove(self, node: int) -> None:
        """One reason less."""
        self.reasons[node] -= 1
        if self.reasons[node]:
            return
        del self.reasons[node]
        self.bytes -= self.own(node)
        while self.refers and node >= 0:
            self.referring[node] -= 1
            if self.referring[node]:
                break
            del self.referring[node]
            self.bytes -= self.state_bytes(self.length[node]) - self.state_bytes(0)
            node = self.parent[node]


class _Walk:
    """One pass over a forest. Scored positions are found beforehand: `wanted[node]` lists (offset, token)."""

    def __init__(self, forest: Forest, backend: ForkingBackend, budget: int | None) -> None:
        self.forest, self.backend = forest, backend
        self.budget = backend.state_budget if budget is None else budget
        self.length = forest.length.tolist()
        self.parent = forest.parent.tolist()
        self.depth: list[int] = []  # tokens from the root to the end of each node
        self.level: list[int] = []  # nodes above each
        self.last_child = [-1] * len(self.parent)
        for node, above in enumerate(self.parent):
            self.depth.append(self.length[node] + (self.depth[above] if above >= 0 else 0))
            self.level.append(self.level[above] + 1 if above >= 0 else 0)
            if above >= 0:
                self.last_child[above] = node
        self.ends: dict[int, list[int]] = defaultdict(list)
        self.generates: set[int] = set()
        leaves = forest.leaf.tolist()
        for number, leaf in enumerate(leaves):
            self.ends[leaf].append(number)
            if forest.requests[number].decoding:
                self.generates.add(leaf)
        self.wanted: dict[int, dict[tuple[int, int], int]] = defaultdict(dict)
        self.slots = [self._slots(*ending) for ending in zip(forest.requests, leaves, strict=True)]
        self.scored: dict[int, tuple[list[float], list[bool]]] = {}  # log-probabilities and greedy flags of a node
        self.states: dict[int, State] = {}  # after nodes of the path that later ones continue
        self.waiting: dict[int, State] = {}  # after prompts that are to be answered
        self.held = _Held(backend, self.parent, self.length, self.depth)  # both, and the next pack's prompts
        self.uncounted = dict(enumerate(self.length))
        self.again = 0  # tokens fed again since the last result

    def _slots(self, request: Request, node: int) -> list[tuple[int, int]]:
        """For each target of a request that ends in this node, the node whose position predicts it and its place among
        that node's targets."""
        found = []
        position, begin = len(request.tokens) - 1, self.depth[node] - self.length[node]
        for token in reversed(request.targets):
            while position < begin:
                node = self.parent[node]
                begin = self.depth[node] - self.length[node]
            places = self.wanted[node]
            found.append((node, places.setdefault((position - begin, token), len(places))))
            position -= 1
        return found[::-1]

    def run(self) -> Iterator[Result]:
        node, per_token = 0, 0.0
        while node < len(self.length):
            began = time.perf_counter()
            fed = self._bring_back(node)
            stop = self._stretch(node)
            path = [at for at in range(node, stop) if self.last_child[at] >= stop]
            if self.waiting and not self._fit(path):
                spent = time.perf_counter() - began
                yield from self._answer(per_token)
                began = time.perf_counter() - spent
            self._feed(range(node, stop), path)
            fed += sum(self.length[node:stop])
            per_token = (time.perf_counter() - began) / fed
            yield from self._finished(range(node, stop), per_token)
            node = stop
            self._keep([above for above in self.states if self.last_child[above] >= node])
            if self.waiting and not self._fit(self._needed_next(node)):
                yield from self._answer(per_token)
            self._keep(self._affordable(list(self.states), at_least=1))
        if self.waiting:
            yield from self._answer(per_token)

    # Feeding ---------------------------------------------------------------------------------------------------------

    def _stretch(self, node: int) -> int:
        """Behind the last node of the pack that begins here; the states of its prompts are held from now on.

        It ends where tokens or memory end, or before a node whose parent's state was left out. Where tokens end, it
        ends in its last quarter at the node for whose sake the fewest states have to be kept.
        """
        prompts = []
        stop, tokens, early = node, 0, node + 1
        while stop < len(self.length):
            above = self.parent[stop]
            tokens += self.length[stop]
            if stop > node:
                if 0 <= above < node and above not in self.states:
                    break
                if tokens > self.backend.batch_tokens:
                    stop = max(range(min(early, stop), stop + 1), key=lambda at: (-self.level[at], at))
                    break
                if stop in self.generates and not self._fit([stop]):
                    break
            if stop in self.generates:
                prompts.append(stop)
                self.held.add(stop)
            if stop == node and above >= 0:
                self._keep(self._affordable(list(self.states), fixed=[above]))
            stop += 1
            if 4 * tokens <= 3 * self.backend.batch_tokens:
                early = stop + 1
        for beyond in prompts:
            if beyond >= stop:
                self.held.remove(beyond)
        return stop

    def _fit(self, nodes: Sequence[int]) -> bool:
        """Whether the budget has room for these nodes' states beside all that are held."""
        for node in nodes:
            self.held.add(node)
        room = self.held.bytes <= self.budget
        for node in nodes:
            self.held.remove(node)
        return room

    def _needed_next(self, node: int) -> list[int]:
        """Nodes whose states will be held in addition when this one is fed: its own, its parent's."""
        if node == len(self.parent):
            return []
        above = self.parent[node]
        own = [node] if node in self.generates else []
        return own if above < 0 or above in self.states else [above, *own]

    def _feed(self, nodes: range, path: Sequence[int]) -> None:
        """Feed consecutive nodes; keep the log-probabilities, and the states of prompts and of the path from here."""
        kept = set(self._affordable([*self.states, *path], fixed=self.states))
        asked = [self.wanted.get(node, ()) for node in nodes]
        places = np.asarray([place for some in asked for place in some], np.int64).reshape(-1, 2)
        offsets, targets = places[:, 0], places[:, 1]
        spans = []
        done, begin = 0, int(self.forest.start[nodes.start])
        for node, some in zip(nodes, asked, strict=True):
            above = self.parent[node]
            parent = above - nodes.start if above >= nodes.start else self.states[above] if above >= 0 else None
            stop, here = begin + self.length[node], slice(done, done + len(some))
            keep = node in kept or node in self.generates
            spans.append(Span(self.forest.tokens[begin:stop], parent, offsets[here], targets[here], keep))
            done, begin = done + len(some), stop
        for node, extended in zip(nodes, self.backend.extend(spans), strict=True):
            if node in self.wanted:
                self.scored[node] = extended.logprobs.tolist(), extended.greedy.tolist()
            if node in kept:
                self.states[node] = extended.state
                self.held.add(node)
            if node in self.generates:
                self.waiting[node] = extended.state

    # States of the path ----------------------------------------------------------------------------------------------

    def _bring_back(self, node: int) -> int:
        """Feed the way to a node whose parent's state was left out, from the nearest state there is: how many tokens.

        States on the way that are needed later are kept again, as far as the budget goes.
        """
        way: list[int] = []
        above = self.parent[node]
        while above >= 0 and above not in self.states:
            way.append(above)
            above = self.parent[above]
        if not way:
            return 0
        way.reverse()
        start = [above] if above >= 0 else []
        needed = [at for at in way if self.last_child[at] >= node]
        kept = set(self._affordable([*self.states, *needed], fixed=[*start, way[-1]]))
        self._keep(kept)
        spans = [
            Span(self.forest.node_tokens(at), number - 1 if number else self.states.get(above), keep=at in kept)
            for number, at in enumerate(way)
        ]
        for at, extended in zip(way, self.backend.extend(spans), strict=True):
            if at in kept:
                self.states[at] = extended.state
                self.held.add(at)
        fed: int = sum(self.length[at] for at in way)
        self.again += fed
        return fed

    def _affordable(self, nodes: list[int], *, fixed: Collection[int] = (), at_least: int = 0) -> list[int]:
        """Of these nodes of one path, those whose states the budget has room for, `fixed` in any case.

        The one that is cheapest to feed again from the one before it is left out first.
        """
        kept = sorted(nodes)
        if not kept or not self.held.own(kept[0]):
            return kept  # those of a path are parts of the deepest one's memory: leaving them out would free nothing
        left_out = []
        new = [node for node in kept if node not in self.states]
        for node in new:
            self.held.add(node)
        while self.held.bytes > self.budget and len(kept) > at_least:
            before = [0, *(self.depth[node] for node in kept)]
            free = [(self.depth[node] - before[at], node) for at, node in enumerate(kept) if node not in fixed]
            if not free:
                break
            _, cheapest = min(free)
            kept.remove(cheapest)
            left_out.append(cheapest)
            self.held.remove(cheapest)
        for node in left_out:
            self.held.add(node)
        for node in new:
            self.held.remove(node)
        return kept

    def _keep(self, nodes: Collection[int]) -> None:
        """Drop all states of the path but these."""
        for node in set(self.states).difference(nodes):
            del self.states[node]
            self.held.remove(node)

    # Results ---------------------------------------------------------------------------------------------------------

    def _finished(self, nodes: Sequence[int], per_token: float) -> Iterator[Result]:
        """Results of the scoring requests that end in these nodes."""
        for node in nodes:
            for number in self.ends.get(node, ()):
                if self.forest.requests[number].decoding:
                    continue
                fed = self._count(node)
                logprobs, greedy = [], []
                for above, place in self.slots[number]:
                    of_node, likeliest = self.scored[above]
                    logprobs.append(of_node[place])
                    greedy.append(likeliest[place])
                yield Result.scored(number, logprobs, greedy, computed_tokens=fed, seconds=per_token * fed)

    def _count(self, node: int) -> int:
        """Tokens on the way to a node that no result has been charged with yet."""
        total, self.again = self.again, 0
        while node in self.uncounted:
            total += self.uncounted.pop(node)
            node = self.parent[node]
        return total

    def _answer(self, per_token: float) -> Iterator[Result]:
        """Generate for all prompts that wait."""
        waiting, self.waiting = self.waiting, {}
        nodes: dict[int, int] = {}
        asked, states = [], []
        for node, state in waiting.items():
            for number in self.ends[node]:
                request = self.forest.requests[number]
                if request.decoding:
                    nodes[number] = node
                    asked.append(DecodeRequest(request.decoding, number, request.repeat, stream_of(request)))
                    states.append(state)
        before = time.perf_counter()
        for output in self.backend.decode(states, asked):
            now = time.perf_counter()
            fed = self._count(nodes[output.request])
            yield Result.generated(output, computed_tokens=fed, seconds=per_token * fed + now - before)
            before = time.perf_counter()
        for node in waiting:
            self.held.remove(node)
