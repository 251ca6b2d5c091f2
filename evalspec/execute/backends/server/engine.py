"""An OpenAI-compatible server as an engine: vLLM, SGLang, llama.cpp, TGI, or a service behind the same API.

    forest ──► calls, in its order ──► a few at a time over HTTP (traffic, http) ──► results as they come
                 generation: generation.py
                 scoring:    scoring.py, by a way that a trial found right (trial.py)

A request that cannot be answered is a result with an error, and the others go on; a server that is gone ends the run.
"""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from evalspec.errors import BackendError
from evalspec.execute.backends.server import scoring
from evalspec.execute.backends.server.answers import Spent
from evalspec.execute.backends.server.generation import Written, as_sent, generation, written
from evalspec.execute.backends.server.http import Client, CutShort, RequestFailed
from evalspec.execute.backends.server.scoring import Told, Way
from evalspec.execute.backends.server.traffic import Traffic
from evalspec.execute.backends.server.trial import find_way, too_long, who
from evalspec.execute.protocols import NOT_A_NUMBER, Result
from evalspec.models.card import Model
from evalspec.models.served import settings_of
from evalspec.plan.forest import Forest

Answered = Written | tuple[list[Told], Spent]


@dataclass(frozen=True, eq=False)
class _Call:
    """One HTTP request: for a generation (`number`), or for positions of continuations (`scoring`)."""

    number: int = -1
    scoring: scoring.Call | None = None


@dataclass(eq=False)
class _Score:
    """A continuation's log-probabilities as they come in; `missing` counts those that have not."""

    logprobs: list[float]
    greedy: list[bool]
    missing: int
    error: str | None = None


class ServerEngine:
    """A model behind a server, as an `Engine`."""

    name = "server"
    version = "v1"  # of the API

    def __init__(self, model: Model) -> None:
        """Ask the server who it is. Raises BackendError where it does not answer, or has no such model."""
        self.model, self.settings = model, settings_of(model.block)
        self.traffic = Traffic()
        self.client = self.traffic.wait(self._connected())
        self._leave = weakref.finalize(self, self.traffic.end, self.client)
        self.served = self.traffic.wait(who(self.client, model))
        self.way: Way | None = None
        """How continuations are scored, once some were."""

    async def _connected(self) -> Client:
        assert self.model.block.url is not None  # the spec has seen to it
        return Client(self.model.name, self.model.block.url, self.settings)

    @property
    def identity(self) -> tuple[str, ...]:
        """Name, API and address: what its weights are it does not tell, so nothing is reused by it."""
        return (self.name, self.version, self.client.url, self.served.model)

    def close(self) -> None:
        """Close all connections."""
        self._leave()

    def peak_memory(self) -> int | None:
        """Nothing is known of a server's memory."""
        return None

    def complete(self, forest: Forest) -> Iterator[Result]:
        """Answer every request, as the server's answers come. Raises BackendError before anything is sent where some
        cannot be had at all, RunError where the server is gone."""
        self._try_out(forest)
        pending = _Pending(forest)
        before = time.perf_counter()
        for call, answer in self.traffic.answers(self._calls(forest), self._asker(forest), self.client):
            for result in pending.take(call, answer, self.model.tokenizer.encode):
                now = time.perf_counter()
                yield replace(result, seconds=now - before)  # what passed since the one before it
                before = now

    def _try_out(self, forest: Forest) -> None:
        """Short requests that show what the server can do of what a forest asks."""
        name, url, longest = self.model.name, self.client.url, self.served.longest
        long = too_long(self.served, forest)
        if long and longest is not None:
            raise BackendError(
                f"models.{name}: {long:,} of {len(forest.requests):,} requests are longer, with what they may "
                f"generate, than the {longest:,} tokens that {url} takes; say `max_length: {longest - 1}`, and they "
                "are cut and counted"
            )
        if any(request.targets for request in forest.requests):
            self.way = self.traffic.wait(find_way(self.client, self.served, forest, self.settings.scoring))
        asked = sorted((r for r in forest.requests if r.decoding), key=lambda request: -len(request.tokens))
        for request in {bool(request.turns): request for request in asked}.values():  # the shortest of either kind
            path, body = generation(self.served, request, self.model.tokenizer, as_text=self._as_text)
            try:
                read = partial(written, request=request, body=body)
                self.traffic.wait(self.client.ask(path, as_sent(body | {"max_tokens": 1}, self.settings), read))
            except RequestFailed as problem:
                said = f"models.{name}: {str(problem).rstrip('.')}{self.client.doubt}"
                if path == "completions" and not (self._as_text or problem.passing or isinstance(problem, CutShort)):
                    said += ". If it takes no token ids, say `server: {prompts: text}`"
                if "max_completion_tokens" in said and not self.settings.names:
                    said += ". Say `server: {names: {max_tokens: max_completion_tokens}}`"
                raise BackendError(said) from None

    @property
    def _as_text(self) -> bool:
        return self.settings.prompts == "text"

    def _calls(self, forest: Forest) -> Iterator[_Call]:
        """All requests to the server: scoring, then generation, each in the forest's order."""
        if self.way is not None:
            for call in scoring.calls(forest, self.served, self.way):
                yield _Call(scoring=call)
        for number in sorted(range(len(forest.requests)), key=lambda number: int(forest.leaf[number])):
            if forest.requests[number].decoding:
                yield _Call(number)

    def _asker(self, forest: Forest) -> Callable[[_Call], Any]:
        async def ask(call: _Call) -> Answered:
            if call.scoring is not None:
                return await self.client.ask("completions", call.scoring.body(), call.scoring.read)
            request = forest.requests[call.number]
            path, body = generation(self.served, request, self.model.tokenizer, as_text=self._as_text)
            read = partial(written, request=request, body=body)
            return await self.client.ask(path, as_sent(body, self.settings), read)

        return ask


class _Pending:
    """What is still to come for the requests of a forest."""

    def __init__(self, forest: Forest) -> None:
        self.scores = {
            number: _Score([math.nan] * len(request.targets), [False] * len(request.targets), len(request.targets))
            for number, request in enumerate(forest.requests)
            if request.targets
        }
        self.fed = 0  # tokens, for continuations of which no result has told yet

    def take(
        self, call: _Call, answer: Answered | RequestFailed, encode: Callable[[list[str]], list[list[int]]]
    ) -> Iterator[Result]:
        """The results that an answer completes; `encode` counts the tokens of a text where the server did not."""
        if isinstance(answer, Written):
            count = answer.spent.generated
            yield Result(
                call.number,
                text=answer.text,
                output_tokens=len(encode([answer.text])[0]) if count is None else count,
                finish_reason=answer.finish_reason,
                computed_tokens=answer.spent.fed,
            )
        elif call.scoring is None:
            yield Result(call.number, error=str(answer))
        else:
            told = None
            if not isinstance(answer, RequestFailed):
                told, spent = answer
                self.fed += spent.fed
            for position, slots in enumerate(call.scoring.slots):
                for number, place, token in slots:
                    score = self.scores[number]
                    score.missing -= 1
                    if told is None:
                        score.error = str(answer)
                    else:
                        score.logprobs[place], score.greedy[place] = told[position][token]
                    if not score.missing:
                        yield self._scored(number)

    def _scored(self, number: int) -> Result:
        score = self.scores.pop(number)
        fed, self.fed = self.fed, 0
        error = score.error
        if error is None and any(map(math.isnan, score.logprobs)):
            error = NOT_A_NUMBER
        if error is not None:
            return Result(number, error=error, computed_tokens=fed)
        return Result(number, tuple(score.logprobs), tuple(score.greedy), computed_tokens=fed)


def open_server(model: Model) -> ServerEngine:
    """Reach the server of a model. Raises BackendError where it does not answer or the key's variable is not set."""
    return ServerEngine(model)
