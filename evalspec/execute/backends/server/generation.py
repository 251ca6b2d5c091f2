"""What is sent to a server to generate, and to which of its APIs; what differs between the servers that are known.

A request goes as token ids to `/completions`, so that the server reads exactly what the plan counted. For a model with
`chat: true` its conversation goes to `/chat/completions`, and the server renders it by its own template.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evalspec.execute.backends.server.answers import Spent, choice_of, spent_of, text_of
from evalspec.execute.backends.server.http import RequestFailed
from evalspec.execute.walk import stream_of
from evalspec.models.tokens import Tokenizer
from evalspec.plan.forest import Request
from evalspec.spec.model import ServerBlock

SEEDS = 2**31
"""Servers take seeds of 31 bits at least (llama.cpp: 32, vLLM and SGLang: 63)."""

# What a server would sample by if it were not told: a model's own generation_config.json (vLLM, SGLang), or a taste of
# the server's (llama.cpp: the 40 likeliest tokens). A spec that asks for none of it gets none.
_NEUTRAL: Mapping[str, Mapping[str, Any]] = {
    "vllm": {"repetition_penalty": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0, "min_p": 0.0, "top_k": -1},
    "sglang": {"repetition_penalty": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0, "min_p": 0.0, "top_k": -1},
    "llamacpp": {"repeat_penalty": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0, "min_p": 0.0, "top_k": 0},
}


@dataclass(frozen=True)
class Served:
    """A model as its server names it. `owner` is who the server's list of models says it is: `vllm`, `sglang`,
    `llamacpp`, `tgi` (which names the model itself), something else, or nothing. `longest` is the most tokens that it
    takes, where the list says so."""

    model: str
    owner: str = ""
    longest: int | None = None

    @property
    def neutral(self) -> Mapping[str, Any]:
        """Settings that keep this server from sampling by its own taste."""
        return _NEUTRAL.get(self.owner, {})


@dataclass(frozen=True)
class Written:
    """A generated answer."""

    text: str
    finish_reason: str | None
    spent: Spent


def generation(served: Served, request: Request, tokenizer: Tokenizer, *, as_text: bool) -> tuple[str, dict[str, Any]]:
    """The path and body of a generation request. Raises RequestFailed where its prompt cannot be sent as text."""
    decoding = request.decoding
    assert decoding is not None
    body: dict[str, Any] = {"model": served.model, **served.neutral}
    body |= {"max_tokens": decoding.max_tokens, "temperature": decoding.temperature}
    if decoding.stop:
        body["stop"] = list(decoding.stop)
    if decoding.temperature > 0:
        body["seed"] = stream_of(request) % SEEDS
        if decoding.top_p < 1 or served.owner != "tgi":  # which refuses 1, and takes it for none
            body["top_p"] = decoding.top_p
        if decoding.top_k:
            body["top_k"] = decoding.top_k
    if request.turns:
        messages = [{"role": role, "content": said} for role, said in request.turns]
        return "chat/completions", body | {"messages": messages}
    ids = request.tokens.tolist()
    if not as_text:
        return "completions", body | {"prompt": ids}
    text = tokenizer.decode(ids)
    if tokenizer.encode([text])[0] != ids:
        raise RequestFailed("this prompt is cut, or has tokens that its text has not: send tokens", passing=False)
    return "completions", body | {"prompt": text}


def as_sent(body: Mapping[str, Any], settings: ServerBlock) -> dict[str, Any]:
    """A generation request's body as this server wants it: by its own names, with what it is to hold beside."""
    named = {(settings.names or {}).get(key, key): value for key, value in body.items()}  # type: ignore[call-overload]
    return {key: value for key, value in (named | (settings.extra or {})).items() if value is not None}


def written(answer: Any, request: Request, body: Mapping[str, Any]) -> Written:
    """What came of a generation request: its text up to the first stop text, which TGI leaves in it. Raises Malformed,
    and CutShort where the server read less than it was sent."""
    assert request.decoding is not None
    choice = choice_of(answer)
    reason, text = choice.get("finish_reason"), text_of(choice)
    text = text[: min((at for at in map(text.find, request.decoding.stop) if at >= 0), default=len(text))]
    spent = spent_of(answer, len(request.tokens), exactly=isinstance(body.get("prompt"), list))
    return Written(text, None if reason is None else str(reason), spent)
