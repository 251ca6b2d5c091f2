"""Cutting a forest into pieces of balanced cost, for workers that do not share states.

A piece is a stretch of the requests in the forest's depth-first order, with every node on their paths. The path that
leads into a piece was cut off from the piece before it, and is fed again: so a piece ends, within its share of the
work, before a request that shares little with the one before it.

    forest    a ┬ b ┬ c          cut before d     a ┬ b ┬ c      a ─ d
                │   └ e          feeds a again          └ e
                └ d

Pieces get smaller: half of the work in one piece a worker, half of what is left in one piece a worker, and so on. The
large ones repeat few tokens and fill their batches, the small ones let all workers end together (*factoring*,
S. F. Hummel, E. Schonberg, L. E. Flynn, Communications of the ACM 35(8), 1992).
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evalspec.models.cost import Cost
from evalspec.plan.forest import Forest, Ints, tokens_before

Floats = NDArray[np.float64]

LEAST_TOKENS = 1024
"""A model gets no more workers than it has so many tokens for each: starting one takes longer than computing them."""
ROUNDS = 5
"""Most pieces a worker: the last two are each a sixteenth of its share."""
WORSE = 1.05
"""How much longer the work may be predicted to take for the sake of more and smaller pieces."""
SLACK = 0.25
"""The share of a piece that may be missing for the sake of a cut that repeats less."""
LACKING = 0.1
"""What is missing, against what is repeated: the one is fed by another worker, the other is fed in vain."""


@dataclass(frozen=True, eq=False)
class Piece:
    """Requests of a forest (R',) that one worker answers together, in depth-first order."""

    requests: Ints
    cost: float
    """Operations, the path that is fed again included; tokens where the model's operations are unknown."""
    repeated_tokens: int
    """Tokens of the path into the piece, which the piece before it feeds too."""


@dataclass(frozen=True, eq=False)
class Cut:
    """The pieces of a forest in the order in which workers take them, and what they cost uncut."""

    pieces: tuple[Piece, ...]
    cost: float

    @property
    def repeated_tokens(self) -> int:
        """Tokens that are fed again because of the cut."""
        return sum(piece.repeated_tokens for piece in self.pieces)

    def loads(self, workers: int) -> list[float]:
        """The cost that each of equally fast workers comes to, who take the next piece whenever they are free."""
        loads = [0.0] * workers
        for piece in self.pieces:
            heapq.heapreplace(loads, loads[0] + piece.cost)
        return sorted(loads)


def cut(forest: Forest, workers: int, model: Cost | None = None) -> Cut:
    """The pieces of a forest for so many equally fast workers; every request is in one of them.

    In as many rounds as cost little (`WORSE`) against the best: where all requests share a long prefix, each further
    piece feeds it again. One worker gets one piece.
    """
    nodes, own = costs(forest, model)
    line = _Line(forest, nodes, own)
    cuts = [line.cut(_sizes(workers, rounds)) for rounds in range(1, 1 + (ROUNDS if workers > 1 else 1))]
    ends = [cut.loads(workers)[-1] for cut in cuts]
    return [cut for cut, end in zip(cuts, ends, strict=True) if end <= WORSE * min(ends)][-1]


def workers_for(tokens: int, room: int) -> int:
    """Workers that so many tokens, fed or generated, are worth, of as many as there is room for; at least one."""
    return max(1, min(room, tokens // LEAST_TOKENS))


def costs(forest: Forest, model: Cost | None) -> tuple[Floats, Floats]:
    """Operations of feeding each node (N,), and of each request (R,) by itself: the output head, new tokens.

    Where the model's operations are unknown, tokens.
    """
    decoded = [max(0, r.decoding.max_tokens - 1) if r.decoding else 0 for r in forest.requests]
    if model is None:
        return forest.length.astype(np.float64), np.asarray(decoded, np.float64)
    scored = np.asarray([len(r.targets) + (r.decoding is not None) for r in forest.requests], np.float64)
    contexts = [len(r.tokens) for r in forest.requests]
    nodes = model.flops_of_each(forest.length, tokens_before(forest))
    steps = model.flops_of_each(decoded, contexts, stepwise=True)
    return nodes, steps + (scored + np.asarray(decoded)) * model.head_flops


def subforest(forest: Forest, requests: Ints) -> Forest:
    """The forest of some of the requests, in this order: their nodes and those above, as they are."""
    kept = np.zeros(len(forest.parent), np.bool_)
    for node in set(forest.leaf[requests].tolist()):
        while node >= 0 and not kept[node]:
            kept[node] = True
            node = int(forest.parent[node])
    place = np.cumsum(kept) - 1
    length, parent = forest.length[kept], forest.parent[kept]
    return Forest(
        tokens=forest.tokens[np.repeat(kept, forest.length)],
        start=np.cumsum(length) - length,
        length=length,
        parent=np.where(parent >= 0, place[parent], -1),
        leaf=place[forest.leaf[requests]],
        requests=tuple(forest.requests[number] for number in requests.tolist()),
    )


def _sizes(workers: int, rounds: int) -> list[float]:
    """Shares of the work, one a piece: 1/2, 1/4, … of it in each round, the last round takes what is left."""
    shares = [0.5 ** min(number, rounds - 1) for number in range(1, rounds + 1)]
    return [share / workers for share in shares for _ in range(workers)]


class _Line:
    """The requests in depth-first order: what each costs behind the one before it, and what a cut before it repeats.

    All nodes that stand behind the last request's leaf and not behind this one's are on this one's path, since each
    node has a request at it or below: prefix sums over nodes say what is new.
    """

    def __init__(self, forest: Forest, nodes: Floats, own: Floats) -> None:
        self.order = np.argsort(forest.leaf, kind="stable")
        leaf = forest.leaf[self.order]
        first = np.concatenate([[-1], leaf[:-1]]) + 1
        self.again, new = _shared(forest, leaf, first, nodes)
        self.again_tokens, _ = _shared(forest, leaf, first, forest.length.astype(np.float64))
        self.begins = np.concatenate([[0.0], np.cumsum(new + own[self.order])])
        """What all requests before each cost, uncut; the last entry is the total."""

    def cut(self, sizes: Sequence[float]) -> Cut:
        """Pieces whose costs are in these proportions, what each feeds again included: by bisection over the sum of
        what they may cost."""
        total = float(self.begins[-1])
        low, high = total, total
        while not self._places(sizes, high)[1]:
            low, high = high, 2 * high
        while high - low > 0.002 * total:
            middle = (low + high) / 2
            low, high = (low, middle) if self._places(sizes, middle)[1] else (middle, high)
        places = self._places(sizes, high)[0]
        pieces = []
        for first, stop in itertools.pairwise(places):
            tokens = round(float(self.again_tokens[first]))
            pieces.append(Piece(self.order[first:stop], self._cost(first, stop), tokens))
        return Cut(tuple(pieces), total)

    def _cost(self, first: int, stop: int) -> float:
        return float(self.again[first] + self.begins[stop] - self.begins[first])

    def _places(self, sizes: Sequence[float], budget: float) -> tuple[list[int], bool]:
        """Where pieces begin that cost at most their share of a budget, the last one all that is left; whether that is
        within its share too. A request that costs more than the share of its piece is alone in it."""
        places, requests = [0], len(self.order)
        for size in sizes[:-1]:
            first, most = places[-1], size * budget
            limit = self.begins[first] + most - self.again[first]
            latest = int(np.searchsorted(self.begins, limit * (1 + 1e-9), side="right")) - 1
            earliest = int(np.searchsorted(self.begins, limit - SLACK * most))
            latest = max(latest, first + 1)
            if latest >= requests:
                break
            window = np.arange(min(max(earliest, first + 1), latest), latest + 1)
            lacking = self.begins[latest] - self.begins[window]
            places.append(int(window[np.argmin(self.again[window] + LACKING * lacking)]))
        first = places[-1]
        within = self._cost(first, requests) <= sizes[len(places) - 1] * budget * (1 + 1e-9)
        return [*places, requests], within or requests == first + 1


def _shared(forest: Forest, leaf: Ints, first: Ints, nodes: Floats) -> tuple[Floats, Floats]:
    """For each request of the line: what of its path the one before it has fed already, and what is new."""
    path = nodes.copy()
    for node, above in enumerate(forest.parent.tolist()):
        if above >= 0:
            path[node] += path[above]
    before = np.concatenate([[0.0], np.cumsum(nodes)])
    new = np.where(first <= leaf, before[leaf + 1] - before[np.minimum(first, leaf + 1)], 0.0)
    return np.maximum(path[leaf] - new, 0.0), new
