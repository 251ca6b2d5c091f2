"""What answers of OpenAI-compatible servers hold, wherever each server puts it.

    completion   choices[0].text · logprobs: {tokens, token_logprobs, top_logprobs}            OpenAI, vLLM, SGLang, TGI
                                   logprobs: {content: [{id, logprob, top_logprobs}]}          llama.cpp
    chat         choices[0].message.content
    usage        prompt_tokens, completion_tokens, prompt_tokens_details.cached_tokens (where the server counts them)

vLLM writes tokens as `token_id:42` when asked to (`return_tokens_as_token_ids`), llama.cpp names each id; others give
texts only, which several tokens may share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evalspec.execute.backends.server.http import CutShort, Malformed, message_of

PLACEHOLDER = "token_id:"

BROKEN_OFF = ("abort", "error", "cancelled")
"""Why an answer ended, where its server stopped in the middle of it (vLLM and SGLang: `abort`; gateways: `error`)."""


@dataclass(frozen=True)
class Spent:
    """What an answer cost, by the server's own count: prompt tokens that it fed, tokens that it generated."""

    fed: int
    generated: int | None


@dataclass(frozen=True)
class Position:
    """What a server says of one position. `token` and the keys of `top` are ids, or None and texts where it names none;
    `logprob` is None at the first position of an echoed prompt."""

    token: int | None
    logprob: float | None
    top: Mapping[int | str, float]

    @property
    def best(self) -> float | None:
        """The log-probability of the likeliest token, where the server lists any."""
        return max([*self.top.values(), *([] if self.logprob is None else [self.logprob])]) if self.top else None


def choice_of(answer: Any) -> Mapping[str, Any]:
    """The first choice. Raises Malformed where there is none, or its server did not come to its end."""
    choices = answer.get("choices") if isinstance(answer, Mapping) else None
    if not isinstance(choices, Sequence) or not choices or not isinstance(choices[0], Mapping):
        said = message_of(answer) if isinstance(answer, Mapping) and answer.get("error") else ""
        raise Malformed("has no choices" + (f": {said}" if said else ""))
    first: Mapping[str, Any] = choices[0]
    if first.get("finish_reason") in BROKEN_OFF:
        raise Malformed(f"was broken off (`{first['finish_reason']}`)")
    return first


def text_of(choice: Mapping[str, Any]) -> str:
    """What was written. A message without content (a model that only thought, say) is empty."""
    if "message" in choice:
        message = choice["message"]
        text = message.get("content") if isinstance(message, Mapping) else 0
        text = "" if text is None else text
        if isinstance(text, list):  # in parts, of which a thought may be one
            text = "".join(str(part.get("text") or "") for part in text if part.get("type") == "text")
    else:
        text = choice.get("text")
    if not isinstance(text, str):
        raise Malformed("has no text")
    return text


def spent_of(answer: Mapping[str, Any], sent: int, *, exactly: bool = True) -> Spent:
    """What the answer to `sent` prompt tokens cost; all of them where the server counts nothing.

    Raises CutShort where the server read fewer of the ids that it was sent; not `exactly`, where it makes ids itself.
    """
    usage = answer.get("usage")
    usage = usage if isinstance(usage, Mapping) else {}
    details = usage.get("prompt_tokens_details")
    cached = _count(details.get("cached_tokens")) if isinstance(details, Mapping) else 0
    read = _count(usage.get("prompt_tokens")) or sent
    if exactly and read < sent:
        raise CutShort(
            f"the server read {read:,} of {sent:,} prompt tokens: it cuts what is longer than it takes. Let it take "
            "more, or say `max_length`",
            passing=False,
        )
    return Spent(max(0, read - (cached or 0)), _count(usage.get("completion_tokens")))


def _count(value: Any) -> int | None:
    """A number of tokens, None where it is none."""
    whole = isinstance(value, int | float) and value >= 0 and value == value // 1
    return int(value) if whole else None


def positions_of(choice: Mapping[str, Any]) -> list[Position]:
    """The positions that log-probabilities were asked for. Raises Malformed where the answer has none."""
    found = choice.get("logprobs")
    if not isinstance(found, Mapping):
        raise Malformed("has no log-probabilities")
    try:
        if isinstance(found.get("content"), list):
            return [
                Position(one.get("id"), _number(one["logprob"]), _listed(one.get("top_logprobs") or ()))
                for one in found["content"]
            ]
        tokens, numbers = found["tokens"], found["token_logprobs"]
        tops = found.get("top_logprobs") or [None] * len(tokens)
        return [
            Position(_id(token), _number(number), {_key(t): float(p) for t, p in (top or {}).items()})
            for token, number, top in zip(tokens, numbers, tops, strict=True)
        ]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise Malformed("has log-probabilities in an unknown form") from None


def _listed(top: Sequence[Mapping[str, Any]]) -> dict[int | str, float]:
    return {one.get("id", one.get("token", "")): float(one["logprob"]) for one in top}


def _id(token: Any) -> int | None:
    return int(token.removeprefix(PLACEHOLDER)) if isinstance(token, str) and token.startswith(PLACEHOLDER) else None


def _key(token: str) -> int | str:
    number = _id(token)
    return token if number is None else number


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
