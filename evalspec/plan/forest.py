"""The prefix forest: every distinct prefix of a model's requests, once.

All sequences that a model must be fed go into one radix tree over *token ids* (a prefix of a text is not always a
prefix of its tokens). A node holds a run of tokens; its path from the root is the concatenation of its ancestors'
tokens and its own. A request points to the node that ends its sequence, so one leaf may serve many requests.

    sequences      a b c d        forest    [a b]──[c]──[d]
                   a b c e                     │    └──[e]
                   a b f                       └──[f]          11 prompt tokens, 6 distinct

Scoring feeds context + continuation[:-1]: position p predicts token p+1, so the last token of a continuation is
never fed. Built by sorting sequences as bytes and taking longest common prefixes of neighbours, with numpy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Tokens = NDArray[np.int32]


@dataclass(frozen=True)
class Decoding:
    """How a generation request is decoded. `seed` already mixes the spec's seed; backends add (request, repeat)."""

    max_tokens: int
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Request:
    """One thing asked of a model: score `targets` after a context, or generate by `decoding`.

    `tokens` (int32) is what is fed: for scoring context + targets[:-1], for generation the prompt. The last
    len(targets) positions of `tokens` predict the targets, one each.
    """

    tokens: Tokens
    targets: tuple[int, ...] = ()
    decoding: Decoding | None = None
    repeat: int = 0
    turns: tuple[tuple[str, str], ...] = ()
    """(role, content) of the conversation that `tokens` render, for a server that renders it itself."""

    @property
    def key(self) -> tuple[object, ...]:
        """Names the request by content: equal exactly for requests that must have equal results."""
        return (self.tokens.tobytes(), self.targets, self.decoding, self.repeat, self.turns)


@dataclass(frozen=True)
class Forest:
    """The radix tree as arrays, and the requests that end in its nodes. Frozen; node 0 … N−1 in depth-first order,
    so a parent stands before its children and a subtree is a contiguous range.

    tokens  (T,) int32   the nodes' tokens, one after the other; T is the number of distinct prefixes
    start   (N,) int64   where a node's tokens begin
    length  (N,) int64   how many they are
    parent  (N,) int64   −1 for a root
    leaf    (R,) int64   for each request, the node where its sequence ends
    requests             the R requests
    """

    tokens: Tokens
    start: Ints
    length: Ints
    parent: Ints
    leaf: Ints
    requests: tuple[Request, ...]

    @property
    def distinct_tokens(self) -> int:
        """Tokens that must be fed when each distinct prefix is fed once."""
        return len(self.tokens)

    @property
    def prompt_tokens(self) -> int:
        """Tokens that are fed when each request is fed by itself."""
        return sum(int(request.tokens.size) for request in self.requests)

    @property
    def new_tokens(self) -> int:
        """The most that the requests can generate."""
        return sum(request.decoding.max_tokens for request in self.requests if request.decoding)

    def node_tokens(self, node: int) -> Tokens:
        """The tokens of one node alone."""
        return self.tokens[self.start[node] : self.start[node] + self.length[node]]

    def path(self, node: int) -> Tokens:
        """All tokens from the root to the end of a node."""
        parts = []
        while node >= 0:
            parts.append(self.node_tokens(node))
            node = int(self.parent[node])
        return np.concatenate(parts[::-1]) if parts else np.zeros(0, np.int32)


def _common(a: Tokens, b: Tokens) -> int:
    """Length of the longest common prefix."""
    shorter = min(len(a), len(b))
    differs = a[:shorter] != b[:shorter]
    first = int(differs.argmax())
    return first if differs[first] else shorter


def build_forest(requests: Iterable[Request]) -> Forest:
    """The forest of some requests. Identical sequences share a leaf; the requests keep their order.

    Neighbours in sorted order share the longest prefixes, so one pass with a stack (the path to the current
    sequence) finds every branch point: pop what is deeper than the prefix shared with the neighbour, and where the
    shared prefix ends inside an edge, put a node there.
    """
    requests = tuple(requests)
    keys: dict[bytes, int] = {}  # distinct sequences, numbered as they come
    numbers = []  # each request's
    for request in requests:
        if not len(request.tokens):
            raise ValueError("a request must feed at least one token")
        numbers.append(keys.setdefault(request.tokens.astype(">u4").tobytes(), len(keys)))
    ordered = sorted(keys)
    sequences = [np.frombuffer(key, dtype=">u4").astype(np.int32) for key in ordered]

    end: list[int] = []  # depth at which a node's path ends
    first: list[int] = []  # the first sequence below a node
    parent: list[int] = []
    ends_at: list[int] = []  # node of each sequence
    stack: list[int] = []

    def node(depth: int, sequence: int) -> int:
        end.append(depth)
        first.append(sequence)
        parent.append(-1)
        return len(end) - 1

    for number, sequence in enumerate(sequences):
        shared = _common(sequences[number - 1], sequence) if number else 0
        below = -1
        while stack and end[stack[-1]] > shared:
            below = stack.pop()
            parent[below] = stack[-1] if stack else -1
        if below >= 0 and shared and (not stack or end[stack[-1]] < shared):
            inner = node(shared, first[below])
            parent[inner], parent[below] = parent[below], inner
            stack.append(inner)
        leaf = node(len(sequence), number)
        parent[leaf] = stack[-1] if stack else -1
        stack.append(leaf)
        ends_at.append(leaf)

    order = np.lexsort((np.asarray(end, np.int64), np.asarray(first, np.int64)))
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    ends = np.asarray(end, np.int64)[order]
    firsts = np.asarray(first, np.int64)[order]
    above = np.asarray(parent, np.int64)[order]
    parents = np.where(above >= 0, place[above], -1)
    begins = np.where(parents >= 0, ends[parents], 0)
    lengths = ends - begins
    edges = zip(firsts.tolist(), begins.tolist(), ends.tolist(), strict=True)
    tokens = [sequences[number][begin:stop] for number, begin, stop in edges]
    leaf_of = np.empty(len(keys), np.int64)
    leaf_of[[keys[key] for key in ordered]] = place[ends_at]
    return Forest(
        tokens=np.concatenate(tokens) if tokens else np.zeros(0, np.int32),
        start=np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64) if len(lengths) else lengths,
        length=lengths,
        parent=parents,
        leaf=leaf_of[numbers],
        requests=requests,
    )


def alone(forest: Forest) -> Forest:
    """The same requests, each distinct sequence from a root of its own: what is fed where no state can be forked."""
    places: dict[int, int] = {}
    for leaf in forest.leaf.tolist():
        places.setdefault(leaf, len(places))
    paths = [forest.path(leaf) for leaf in places]
    length = np.asarray([len(path) for path in paths], np.int64)
    return Forest(
        tokens=np.concatenate(paths) if paths else forest.tokens[:0],
        start=np.cumsum(length) - length,
        length=length,
        parent=np.full(len(length), -1, np.int64),
        leaf=np.asarray([places[leaf] for leaf in forest.leaf.tolist()], np.int64),
        requests=forest.requests,
    )


def tokens_before(forest: Forest) -> Ints:
    """How many tokens stand before each node on its path, (N,)."""
    before = np.zeros(len(forest.parent), np.int64)
    for node, above in enumerate(forest.parent.tolist()):
        if above >= 0:
            before[node] = before[above] + forest.length[above]
    return before


def users_of_nodes(forest: Forest, users: Sequence[frozenset[int]]) -> list[frozenset[int]]:
    """For each node, the users (cells, say) of all requests at or below it; `users[r]` are those of request r."""
    found: list[frozenset[int]] = [frozenset()] * len(forest.parent)
    for request, leaf in enumerate(forest.leaf):
        found[leaf] = found[leaf] | users[request]
    for number in range(len(forest.parent) - 1, -1, -1):
        above = forest.parent[number]
        if above >= 0:
            found[above] = found[above] | found[number]
    return found


def share_by_user(forest: Forest, users: Sequence[frozenset[int]]) -> dict[int, float]:
    """Distinct tokens attributed to each user: a node's tokens split equally among those who use it.

    The shares add up to `forest.distinct_tokens`.
    """
    shares: dict[int, float] = {}
    for length, who in zip(forest.length, users_of_nodes(forest, users), strict=True):
        for user in who:
            shares[user] = shares.get(user, 0.0) + int(length) / len(who)
    return shares
