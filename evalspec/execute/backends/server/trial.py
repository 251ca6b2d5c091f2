"""A few short requests before anything else: who the server is, and which ways of scoring it gets right.

A way is right when, for one prompt, it says of a token what the server's own list of likeliest tokens says of it. So
numbers that are taken after a bias, are logits, or belong to other tokens or positions are found out and refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from evalspec.errors import BackendError
from evalspec.execute.backends.server.answers import Position, Spent
from evalspec.execute.backends.server.generation import Served
from evalspec.execute.backends.server.http import Client, Malformed, Refused, RequestFailed
from evalspec.execute.backends.server.scoring import (
    CACHE_BLOCK,
    Told,
    Way,
    echo,
    forced,
    likeliest,
    named,
    read_echo,
    read_forced,
    read_likeliest,
    read_named,
)
from evalspec.models.card import Model
from evalspec.plan.forest import Forest, Request

TOLERANCE = 0.1
"""How far two answers of one server about one token may be apart: in bfloat16 they depend a little on the batch."""
TRIAL_TOKENS = 32
INSTEAD = "Use a backend that scores: native, transformers, vllm"


async def who(client: Client, model: Model) -> Served:
    """What the server says of the model in its list. Raises BackendError where it does not answer."""
    wanted = model.block.weights
    try:
        listed = await client.ask("models", None, _models, retries=min(2, client.settings.retries))
    except RequestFailed as problem:
        if not problem.passing:  # it answers, and has no list
            return Served(wanted)
        raise BackendError(f"models.{model.name}: {problem}. Start the server, or correct `url`") from None
    except Refused as problem:
        if problem.code == 404:  # the same; or `url` is wrong, which the first request will show
            return Served(wanted)
        raise
    for one in listed:
        if one.get("id") == wanted:
            longest = one.get("max_model_len")
            return Served(wanted, _owner(one), longest if isinstance(longest, int) else None)
    owners = {_owner(one) for one in listed}
    names = ", ".join(str(one.get("id")) for one in listed)
    if owners & {"vllm", "sglang"}:
        raise BackendError(f"models.{model.name}.weights: {client.url} has no model `{wanted}`; it has {names}")
    return Served(wanted, owners.pop() if len(owners) == 1 else "")


def _owner(listed: Mapping[str, Any]) -> str:
    """Whose server lists a model: TGI writes the model's own name there."""
    owner = str(listed.get("owned_by") or "")
    return "tgi" if owner and owner == listed.get("id") else owner


def _models(answer: Any) -> list[dict[str, Any]]:
    data = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(data, list):
        raise Malformed("is no list of models")
    return [one for one in data if isinstance(one, dict)]


def too_long(served: Served, forest: Forest) -> int:
    """How many requests are longer than the server says it takes; 0 where it says nothing."""
    if served.longest is None:
        return 0
    needed = (len(r.tokens) + (r.decoding.max_tokens if r.decoding else 1) for r in forest.requests)
    return sum(tokens > served.longest for tokens in needed)


async def find_way(client: Client, served: Served, forest: Forest, wanted: str) -> Way:
    """The way of scoring to take: the wanted one, or for `auto` the best that is right. BackendError where none is."""
    request = min((r for r in forest.requests if r.targets), key=lambda r: len(r.tokens))
    prompt, target = _short(request)
    try:
        plain = await client.ask("completions", likeliest(served, prompt), read_likeliest)
    except RequestFailed as problem:
        raise _refused(client, str(problem) + client.doubt) from None
    if not plain.top:
        raise _refused(client, "it lists no likeliest tokens")
    mass = sum(map(math.exp, plain.top.values()))
    if not 0 < mass <= 1 + TOLERANCE or max(plain.top.values()) > TOLERANCE:
        raise _refused(client, "the numbers that it calls log-probabilities are none")

    ranked = [token for token, _ in sorted(plain.top.items(), key=lambda item: -item[1]) if isinstance(token, int)]
    # The second: where it is forced, a number taken after the bias is 0, and its own is not. The last: a server that
    # does not know `logprob_token_ids` lists the likeliest token instead.
    probe, last = (ranked[1], ranked[-1]) if len(ranked) > 1 else (target, target)
    whole = [*prompt, probe]
    ways: dict[str, tuple[dict[str, Any], Callable[[Any], tuple[list[Told], Spent]]]] = {
        "named": (named(served, prompt, [last]), lambda answer: read_named(answer, prompt, [last])),
        "forced": (forced(served, prompt, probe), lambda answer: read_forced(answer, prompt, probe)),
        "echo": (echo(served, whole), lambda answer: read_echo(answer, whole, 1)),
    }
    reasons: dict[str, str | None] = {}

    async def tried(name: str) -> str | None:
        """Why a way is not to be had; None if it is right."""
        if name not in reasons:
            body, read = ways[name]
            try:
                [told], _ = await client.ask("completions", body, read, retries=min(1, client.settings.retries))
                reasons[name] = _wrong(told, plain)
            except RequestFailed as problem:
                reasons[name] = str(problem)
        return reasons[name]

    for name in ["named", "forced", "echo"] if wanted == "auto" else [wanted]:
        if await tried(name) is None:
            long = any(len(r.targets) > 1 for r in forest.requests)
            echoes = wanted == "auto" and long and await tried("echo") is None
            return Way(name, echoes, await _cache_block(client, served))
    raise _refused(client, "; ".join(f"{name}: {reason}" for name, reason in reasons.items()))


def _short(request: Request) -> tuple[list[int], int]:
    """The beginning of a request as a prompt for trials, and the token behind it."""
    ids = [*request.tokens.tolist(), request.targets[-1]]
    length = min(len(ids) - 1, TRIAL_TOKENS)
    return ids[:length], ids[length]


def _wrong(told: Told, plain: Position) -> str | None:
    """What is wrong with what was told of some tokens, held against the list of likeliest tokens."""
    lowest, highest = min(plain.top.values()), max(plain.top.values())
    for token, (logprob, best) in told.items():
        if token in plain.top:
            known: Sequence[float] = [plain.top[token]]
        elif logprob > lowest + TOLERANCE:  # then it must be one of the list, under its text
            known = list(plain.top.values())
        else:
            continue
        if all(abs(logprob - value) > TOLERANCE for value in known):
            return f"it says {logprob:.3f} of token {token}, and its list of the likeliest says otherwise"
        if best and logprob < highest - TOLERANCE:
            return f"it says that no token is likelier than {token}, and lists likelier ones"
    return None


async def _cache_block(client: Client, served: Served) -> int | None:
    """Tokens of a block of the server's prefix cache, None where it has none: vLLM tells among its metrics."""
    page = await client.page("/metrics") if served.owner == "vllm" else None
    told = dict(re.findall(r'[{,](enable_prefix_caching|block_size)="(\w+)"', page or ""))
    if told.get("enable_prefix_caching") == "False":
        return None
    return int(told["block_size"]) if told.get("block_size", "").isdecimal() else CACHE_BLOCK


def _refused(client: Client, reason: str) -> BackendError:
    return BackendError(
        f"models.{client.name}: {client.url} cannot say exactly how likely given tokens are ({reason}), and some tasks "
        f"are scored by that. {INSTEAD}"
    )
