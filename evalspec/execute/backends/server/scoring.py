"""Scoring a continuation over HTTP, exactly: the log-probability of each of its tokens, given the token ids before it.

Three ways, each of which some servers have:

    named    one position at a time: prompt = the ids up to it, one token generated, and with it the log-probabilities
             of up to 128 named tokens (vLLM's `logprob_token_ids`). All choices that go on from there are one request.
    forced   one token of one position at a time: a `logit_bias` of 100 makes the server choose it, and what is reported
             is its log-probability before the bias (llama.cpp; vLLM in its default `--logprobs-mode raw_logprobs`)
    echo     context and continuation as the prompt, with the log-probabilities of the whole (`echo`: vLLM, SGLang)

The first two read the server's prefix cache; prompt log-probabilities bypass it (vLLM: by design). They feed the tokens
behind the last whole block of the cache again, so that echo is cheaper where a continuation is long (`Way.echo`).

None of them is believed: trial.py holds what each one says against the server's own list of likeliest tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from evalspec.execute.backends.server.answers import Position, Spent, choice_of, positions_of, spent_of
from evalspec.execute.backends.server.generation import Served
from evalspec.execute.backends.server.http import Malformed
from evalspec.plan.forest import Forest

MOST_NAMED = 128
"""Tokens that vLLM lets one request name (MAX_LOGPROB_TOKEN_IDS)."""
FORCE = 100.0
"""The largest `logit_bias` that servers take."""
CACHE_BLOCK = 16
"""Tokens of a block of a prefix cache where the server does not say (it is vLLM's on a GPU): what a position costs at
most, since those behind the last whole block are fed again."""
ASK_FOR_IDS = {"return_tokens_as_token_ids": True, "return_token_ids": True}

Told = dict[int, tuple[float, bool]]
"""For each token that was asked about at a position: its log-probability, and whether none was likelier."""


@dataclass(frozen=True, eq=False)
class Call:
    """One request to the server, made when its turn comes."""

    body: Callable[[], dict[str, Any]]
    read: Callable[[Any], tuple[list[Told], Spent]]
    """What the server told, for one position after the other."""
    slots: Sequence[Sequence[tuple[int, int, int]]]
    """For each position that is told, whom it is for: (request, place among its targets, token)."""


def named(served: Served, prompt: Sequence[int], targets: Sequence[int]) -> dict[str, Any]:
    """The body that asks for named tokens behind a prompt."""
    asked = {"logprobs": len(targets), "logprob_token_ids": list(targets)}
    return _one_more(served, prompt) | asked


def read_named(answer: Any, prompt: Sequence[int], targets: Sequence[int]) -> tuple[list[Told], Spent]:
    """What the server told of named tokens. Raises Malformed."""
    [position] = _generated(answer, 1)
    best = position.best
    missing = [token for token in targets if token not in position.top]
    if best is None or missing:
        raise Malformed(f"lacks log-probabilities of tokens that were asked for: {missing[:5]}")
    told = {token: (position.top[token], position.top[token] >= best) for token in targets}
    return [told], spent_of(answer, len(prompt))


def forced(served: Served, prompt: Sequence[int], target: int) -> dict[str, Any]:
    """The body that makes the server choose one token behind a prompt."""
    return _one_more(served, prompt) | {"logprobs": 1, "logit_bias": {str(target): FORCE}}


def read_forced(answer: Any, prompt: Sequence[int], target: int) -> tuple[list[Told], Spent]:
    """What the server told of a forced token. Raises Malformed."""
    [position] = _generated(answer, 1)
    if position.token != target or position.logprob is None or position.best is None:
        raise Malformed(f"does not say how likely token {target} is")
    return [{target: (position.logprob, position.logprob >= position.best)}], spent_of(answer, len(prompt))


def echo(served: Served, ids: Sequence[int]) -> dict[str, Any]:
    """The body that asks for the log-probabilities of a prompt."""
    new = 0 if served.owner == "vllm" else 1  # others may refuse to generate nothing
    return _one_more(served, ids) | {"echo": True, "max_tokens": new, "logprobs": 1}


def read_echo(answer: Any, ids: Sequence[int], scored: int) -> tuple[list[Told], Spent]:
    """What the server told of the last `scored` tokens of a prompt. Raises Malformed."""
    choice = choice_of(answer)
    positions = positions_of(choice)
    usage = answer.get("usage") or {}
    if len(positions) < len(ids) or usage.get("prompt_tokens", len(ids)) != len(ids):
        raise Malformed(
            f"speaks of {usage.get('prompt_tokens', len(positions))} prompt tokens, and {len(ids)} were sent"
        )
    told_ids = choice.get("prompt_token_ids") or [position.token for position in positions[: len(ids)]]
    if any(said is not None and said != sent for said, sent in itertools.zip_longest(told_ids, ids)):
        raise Malformed("speaks of other tokens than those that were sent")
    told: list[Told] = []
    for token, position in zip(ids[-scored:], positions[len(ids) - scored : len(ids)], strict=True):
        if position.logprob is None or position.best is None:
            raise Malformed("lacks log-probabilities of the prompt")
        told.append({token: (position.logprob, position.logprob >= position.best)})
    return told, spent_of(answer, len(ids))


def likeliest(served: Served, prompt: Sequence[int]) -> dict[str, Any]:
    """The body that asks for the five likeliest tokens behind a prompt."""
    return _one_more(served, prompt) | {"logprobs": 5}


def read_likeliest(answer: Any) -> Position:
    """What the server told of the next token. Raises Malformed."""
    return _generated(answer, 1)[0]


def _one_more(served: Served, prompt: Sequence[int]) -> dict[str, Any]:
    ids = {} if served.owner == "llamacpp" else ASK_FOR_IDS
    body = {"model": served.model, **served.neutral, **ids, "prompt": list(prompt)}
    return body | {"max_tokens": 1, "temperature": 0.0}


def _generated(answer: Any, count: int) -> list[Position]:
    positions = positions_of(choice_of(answer))
    if len(positions) != count:
        raise Malformed(f"has log-probabilities of {len(positions)} tokens where {count} was generated")
    return positions


@dataclass(frozen=True)
class Way:
    """How a server is asked for scores: `name` (named, forced or echo), whether it can `echo` long continuations too,
    and the tokens of a `block` of its prefix cache; None where it keeps no prefixes."""

    name: str
    echoes: bool = False
    block: int | None = CACHE_BLOCK

    def echo(self, fed: int, targets: int) -> bool:
        """Whether a continuation of so many tokens is echoed with all that is fed: where there is no other way, and
        where one request for each token would cost more."""
        if self.name == "echo":
            return True
        return self.echoes and targets > 1 and targets * min(fed, self.block or fed) >= fed


def calls(forest: Forest, served: Served, way: Way) -> Iterator[Call]:
    """The requests that score a forest's continuations, in the forest's order, so that a prefix cache hits. Those that
    ask about the same position ask together."""
    order = sorted(range(len(forest.requests)), key=lambda number: int(forest.leaf[number]))
    positions: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    behind: dict[int, list[tuple[int, int]]] = {}  # the positions that are first met in each request
    whole: set[int] = set()
    for number in order:
        request = forest.requests[number]
        if not request.targets:
            continue
        if way.echo(len(request.tokens), len(request.targets)):
            whole.add(number)
            continue
        for place, (key, token) in enumerate(zip(_places(forest, number), request.targets, strict=True)):
            if key not in positions:
                behind.setdefault(number, []).append(key)
            positions.setdefault(key, []).append((number, place, token))
    for number in order:
        if number in whole:
            yield _echoed(forest, served, number)
        for key in behind.get(number, ()):
            slots = positions[key]
            request = forest.requests[number]
            length = len(request.tokens) - len(request.targets) + 1 + slots[0][1]
            yield from _asked(served, request.tokens[:length].tolist(), slots, way.name)


def _places(forest: Forest, number: int) -> list[tuple[int, int]]:
    """For each target of a request the position that predicts it: a node, and how many of its tokens are read there."""
    request, node = forest.requests[number], int(forest.leaf[number])
    end, found = len(request.tokens), []
    start = end - int(forest.length[node])
    for read in range(len(request.tokens), len(request.tokens) - len(request.targets), -1):
        while read <= start:
            node = int(forest.parent[node])
            start -= int(forest.length[node])
        found.append((node, read - start))
    return found[::-1]


def _asked(served: Served, prompt: list[int], slots: Sequence[tuple[int, int, int]], way: str) -> Iterator[Call]:
    tokens = list(dict.fromkeys(token for _, _, token in slots))
    size = MOST_NAMED if way == "named" else 1
    for first in range(0, len(tokens), size):
        some = tokens[first : first + size]
        own = [[slot for slot in slots if slot[2] in some]]
        if way == "named":
            read = partial(read_named, prompt=prompt, targets=some)
            yield Call(partial(named, served, prompt, some), read, own)
        else:
            single = partial(read_forced, prompt=prompt, target=some[0])
            yield Call(partial(forced, served, prompt, some[0]), single, own)


def _echoed(forest: Forest, served: Served, number: int) -> Call:
    request = forest.requests[number]
    ids = [*request.tokens.tolist(), request.targets[-1]]
    return Call(
        partial(echo, served, ids),
        partial(read_echo, ids=ids, scored=len(request.targets)),
        [[(number, place, token)] for place, token in enumerate(request.targets)],
    )
