"""A running vLLM engine as an `Engine`: its answers become `Result`s.

Log-probabilities are read where they were asked for, text is made and stopped as for every other backend (token ids go
in and come out), and the tokens that the engine really computed are counted from what it says of its cache.
"""

from __future__ import annotations

import contextlib
import math
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from evalspec.errors import EvalspecError, RunError
from evalspec.execute.backends.sampling import NO_TOKEN, Answer
from evalspec.execute.backends.vllm.asks import Ask, asks_of
from evalspec.execute.backends.vllm.queue import Queue
from evalspec.execute.backends.vllm.settings import as_prompt, settings_of, timing_settings
from evalspec.execute.backends.vllm.start import Started, reason, stop
from evalspec.execute.protocols import DecodeRequest, Output, Result, Timed
from evalspec.execute.walk import stream_of
from evalspec.models.tokens import Tokenizer
from evalspec.plan.forest import Forest, Request, Tokens

MOST_UNDER_WAY = 1024


@dataclass(eq=False)
class _Sent:
    """An ask under way: what has come of it."""

    ask: Ask
    answer: Answer | None = None
    output: Output | None = None
    cached: int = 0
    logprobs: list[Mapping[int, Any]] = field(default_factory=list)


class VllmEngine:
    """An `Engine` over `vllm.LLM`."""

    name = "vllm"

    def __init__(self, started: Started, tokenizer: Tokenizer, end_tokens: frozenset[int], where: str) -> None:
        self._started, self._engine = started, started.llm.llm_engine
        self.tokenizer, self.end_tokens, self._where = tokenizer, end_tokens, where
        self.version = started.version
        self.cached_tokens = self.asked_tokens = self.asks = 0
        """Since it was opened: prompt tokens that came from the prefix cache, all that were asked, requests made."""
        self._serial = 0
        self._longest = self._engine.vllm_config.model_config.max_model_len
        self._most = min(MOST_UNDER_WAY, 2 * self._engine.vllm_config.scheduler_config.max_num_seqs)
        self._close = weakref.finalize(self, stop, started)

    @property
    def identity(self) -> tuple[str, ...]:
        """Name, versions, precision, kind of device."""
        return (self.name, self.version, self._started.dtype, self._started.device)

    def peak_memory(self) -> int | None:
        """None: an engine takes its share of the memory when it starts, whatever it then needs."""
        return None

    def close(self) -> None:
        """Stop the engine's processes and give back what they held. May be called again."""
        self._close()

    # Answering a forest ----------------------------------------------------------------------------------------------

    def complete(self, forest: Forest) -> Iterator[Result]:
        """Answer every request of the forest; see `Engine`. RunError when the engine fails: what came before stands."""
        clock = _Clock()
        for asks in asks_of(forest, cached=self._started.cached, snapshots=self._started.snapshots):
            waiting = 0  # tokens fed for prefixes, which the next result is charged with
            for finished in self._run(asks, forest):
                results = []
                for sent in finished:
                    waiting += len(sent.ask.tokens) - sent.cached
                    if sent.ask.requests:
                        found = self._results(sent, forest, waiting)
                        results += found
                        waiting = 0
                yield from clock.share(results)

    def _run(self, asks: Sequence[Ask], forest: Forest) -> Iterator[list[_Sent]]:
        """Send asks and read answers, those that finish together at a time."""
        queue = Queue(asks, self._most)
        under_way: dict[str, tuple[int, _Sent]] = {}
        try:
            while queue:
                for number in queue.take():
                    self._serial += 1
                    under_way[str(self._serial)] = (number, self._send(str(self._serial), asks[number], forest))
                finished = []
                for output in self._step():
                    if output.request_id not in under_way:
                        continue  # it was stopped, and what it said meanwhile came late
                    number, sent = under_way[output.request_id]
                    if self._hear(sent, output):
                        del under_way[output.request_id]
                        queue.done(number)
                        finished.append(sent)
                if finished:
                    yield finished
        finally:
            if under_way:
                with contextlib.suppress(Exception):  # the engine may be what failed
                    self._engine.abort_request(list(under_way))

    def _send(self, name: str, ask: Ask, forest: Forest) -> _Sent:
        self.asks += 1
        self.asked_tokens += len(ask.tokens)
        request = forest.requests[ask.requests[0]] if ask.kind == "generate" else None
        self._add(name, ask.tokens, settings_of(ask, request, self.end_tokens))
        return _Sent(ask, self._answer(request, ask.requests[0]) if request else None)

    def _add(self, name: str, tokens: Tokens, settings: Any) -> None:
        if len(tokens) >= self._longest:
            raise RunError(
                f"{self._where}: a prompt has {len(tokens):,} tokens, and the engine takes {self._longest - 1:,}; "
                "say a larger `max_length`, if the model can be given that much"
            )
        try:
            self._engine.add_request(name, as_prompt(tokens), settings)
        except Exception as error:
            raise self._failed(error) from error

    def _answer(self, request: Request, number: int) -> Answer:
        assert request.decoding is not None
        asked = DecodeRequest(request.decoding, number, request.repeat, stream_of(request))
        return Answer(asked, self.tokenizer, self.end_tokens)

    def _step(self) -> Sequence[Any]:
        try:
            outputs: Sequence[Any] = self._engine.step()
        except Exception as error:  # of the engine's processes, by whatever name
            raise self._failed(error) from error
        return outputs

    def _failed(self, error: Exception) -> EvalspecError:
        """What is said of an engine that died; it is stopped for good."""
        said = reason(error, self._started.log)
        if self._close.detach():
            stop(self._started, failed=True)
        return RunError(f"{self._where}: vLLM's engine failed: {said}")

    # Reading answers -------------------------------------------------------------------------------------------------

    def _hear(self, sent: _Sent, output: Any) -> bool:
        """Take what the engine says of an ask; whether that is all."""
        (completion,) = output.outputs
        if output.num_cached_tokens:
            sent.cached = output.num_cached_tokens
        if sent.answer is None:
            if not output.finished:
                return False
            sent.logprobs = (
                [*(output.prompt_logprobs or ())[-len(sent.ask.targets) + 1 :]]
                if (sent.ask.kind == "prompt" and len(sent.ask.targets) > 1)
                else []
            )
            sent.logprobs += completion.logprobs or ()
            self.cached_tokens += sent.cached
            return True
        for token, told in zip(completion.token_ids, completion.logprobs, strict=True):
            nan = math.isnan(told[token].logprob)
            sent.output = sent.answer.add(NO_TOKEN if nan else token)
            if sent.output:
                break
        if sent.output is None and output.finished:
            sent.output = sent.answer.cut()
        if sent.output is None:
            return False
        if not output.finished:
            self._engine.abort_request([output.request_id])
        self.cached_tokens += sent.cached
        return True

    def _results(self, sent: _Sent, forest: Forest, fed: int) -> list[Result]:
        """The results of an ask's requests; the first is charged with what was fed."""
        ask = sent.ask
        if sent.output is not None:
            return [Result.generated(sent.output, computed_tokens=fed)]
        if ask.kind == "position":
            (told,) = sent.logprobs
            pairs = [[_score(told, token)] for token in ask.targets]
        else:
            fed += len(ask.targets) - 1 if ask.kind == "chain" else 0
            pairs = [[_score(told, token) for told, token in zip(sent.logprobs, ask.targets, strict=True)]]
        results = []
        for number, scores in zip(ask.requests, pairs, strict=True):
            logprobs, greedy = [logprob for logprob, _ in scores], [greedy for _, greedy in scores]
            results.append(Result.scored(number, logprobs, greedy, computed_tokens=fed))
            fed = 0
        return results

    # Timing ----------------------------------------------------------------------------------------------------------

    def timed(self, prompts: Sequence[Tokens], new_tokens: int) -> Timed:
        """Generate `new_tokens` for each prompt, past end tokens, by this process's clock."""
        began = time.perf_counter()
        for prompt in prompts:
            self._serial += 1
            self._add(str(self._serial), prompt, timing_settings(new_tokens))
        begun: set[str] = set()
        tokens, first = 0, 0.0
        running = len(prompts)
        while running:
            for output in self._step():
                if len(begun) == len(prompts):
                    tokens += len(output.outputs[0].token_ids)
                begun.add(output.request_id)
                running -= output.finished
            if not first and len(begun) == len(prompts):
                first = time.perf_counter() - began
        return Timed(first, time.perf_counter() - began, tokens)


class _Clock:
    """Wall time between results, split equally among those that come together; the reader's own time is left out."""

    def __init__(self) -> None:
        self._since = time.perf_counter()

    def share(self, results: Sequence[Result]) -> Iterator[Result]:
        if not results:
            return
        each = (time.perf_counter() - self._since) / len(results)
        for result in results:
            yield replace(result, seconds=each)
        self._since = time.perf_counter()


def _score(told: Mapping[int, Any], token: int) -> tuple[float, bool]:
    """A token's log-probability, and whether none was likelier. A token that is not told was none that the engine could
    be made to generate: its logits are NaN."""
    if token not in told:
        return math.nan, False
    logprob = float(told[token].logprob)
    return logprob, logprob >= max(float(other.logprob) for other in told.values())
