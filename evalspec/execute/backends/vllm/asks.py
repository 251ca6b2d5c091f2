"""What vLLM is asked so that it answers a forest's requests from its prefix cache.

vLLM reads no cached prefix for a request that wants log-probabilities of its prompt, so a forest is scored by what it
*generates*, each in the forest's order, where prompts that begin alike stand together:

    position   one token is generated, and the log-probabilities of all tokens wanted there are read: choices of a token
    chain      the continuation's own tokens are generated, forced (forced.py), and their log-probabilities read
    prompt     log-probabilities of the prompt after all: where a chain would take more steps than feeding is worth
    generate   an answer
    warm       a prefix that others begin with, fed before them: where the engine keeps a recurrent model's states
               only at the ends of prompts, a prefix is cached when it was a prompt itself

No token is fed that native backends would not feed: a continuation's last one is never.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from evalspec.plan.forest import Forest, Request, Tokens, build_forest

MOST_TOKENS = 128
"""Most tokens whose log-probabilities vLLM returns at one position."""

STEP_COST = 4
"""A step of decoding is taken to cost a sequence as much as so many tokens of a prompt with their log-probabilities. A
guess: vLLM feeds 67,000 of these a second on one H200 (2.8 B parameters, bfloat16); steps were not timed."""

WARM_GAIN = 64
"""Tokens that warming a prefix must spare: a request of its own costs about as much."""

Kind = Literal["position", "chain", "prompt", "generate", "warm"]


@dataclass(frozen=True, eq=False)
class Ask:
    """One request to the engine.

    tokens     the prompt
    requests   those of the forest that it answers: one, for a position one a target, for a warm one none
    targets    scored tokens: wanted at the position, forced one after the other, or the end of the prompt and one more
    after      number of the warm ask that has to be done before it
    """

    kind: Kind
    tokens: Tokens
    requests: tuple[int, ...] = ()
    targets: tuple[int, ...] = ()
    after: int | None = None


def asks_of(forest: Forest, *, cached: bool, snapshots: int | None = None) -> list[list[Ask]]:
    """What to ask, in rounds that do not overlap: a batch that mixes positions and chains loses the likeliest token.

    `cached`: the engine has a prefix cache. `snapshots`: it keeps states, and only at multiples of so many tokens at
    the ends of prompts.
    """
    groups: dict[bytes, list[int]] = {}  # requests that score from the same context
    others: list[list[Ask]] = [[], []]
    for number in np.argsort(forest.leaf, kind="stable").tolist():
        request = forest.requests[number]
        if request.decoding:
            others[0].append(Ask("generate", request.tokens, (number,)))
        else:
            groups.setdefault(_context(request).tobytes(), []).append(number)
    for numbers in groups.values():
        if all(len(forest.requests[number].targets) == 1 for number in numbers) and len(numbers) > 1:
            others[1] += _positions(forest, numbers)
        else:
            others[0] += [_scoring(number, forest.requests[number], cached) for number in numbers]
    rounds = [asks for asks in others if asks]
    return [warmed(asks, snapshots) for asks in rounds] if cached and snapshots else rounds


def _context(request: Request) -> Tokens:
    return request.tokens[: len(request.tokens) - len(request.targets) + 1]


def _positions(forest: Forest, numbers: Sequence[int]) -> list[Ask]:
    """All tokens wanted after one context, as many at a time as the engine tells."""
    asks = []
    for first in range(0, len(numbers), MOST_TOKENS):
        some = tuple(numbers[first : first + MOST_TOKENS])
        wanted = tuple(forest.requests[number].targets[0] for number in some)
        asks.append(Ask("position", forest.requests[some[0]].tokens, some, wanted))
    return asks


def _scoring(number: int, request: Request, cached: bool) -> Ask:
    """One continuation, in the cheaper way."""
    steps = len(request.targets)
    if steps == 1 or (cached and STEP_COST * steps <= len(request.tokens)):
        return Ask("chain", _context(request), (number,), request.targets)
    return Ask("prompt", request.tokens, (number,), request.targets)


def warmed(asks: Sequence[Ask], block: int) -> list[Ask]:
    """The asks with the prefixes that several of them share put in front of these, where that spares enough tokens."""
    shared = build_forest([Request(ask.tokens) for ask in asks])
    nodes = range(len(shared.parent))
    depth = [0] * len(nodes)
    uses = [0] * len(nodes)
    ends = np.zeros(len(nodes), np.int64)
    np.add.at(ends, shared.leaf, 1)
    for node in nodes:
        above = int(shared.parent[node])
        depth[node] = int(shared.length[node]) + (depth[above] if above >= 0 else 0)
        uses[node] += int(ends[node])
    for node in reversed(nodes):
        if shared.parent[node] >= 0:
            uses[int(shared.parent[node])] += uses[node]
    found: list[Ask] = []
    warm: list[int | None] = []  # for each node, the ask that warms it or the nearest node above it
    kept: list[int] = []  # and how many tokens that has cached
    at_leaf: dict[int, list[int]] = {}
    for number, leaf in enumerate(shared.leaf.tolist()):
        at_leaf.setdefault(leaf, []).append(number)
    for node in nodes:
        above = int(shared.parent[node])
        before = kept[above] if above >= 0 else 0
        nearest = warm[above] if above >= 0 else None
        # A prompt's last token is always fed, so one that ends here cannot have all of it from the cache.
        whole = (depth[node] - (1 if ends[node] else 0)) // block * block
        if uses[node] > 1 and (uses[node] - 1) * (whole - before) >= WARM_GAIN:
            # One token more, whichever: vLLM keeps the state at the last block that ends before a prompt's last token.
            prefix = shared.path(node)[:whole]
            found.append(Ask("warm", np.append(prefix, prefix[-1:]), after=nearest))
            nearest, before = len(found) - 1, whole
        warm.append(nearest)
        kept.append(before)
        found += [replace(asks[number], after=nearest) for number in at_leaf.get(node, ())]
    return found
