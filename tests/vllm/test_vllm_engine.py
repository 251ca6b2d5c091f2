"""vLLM answers as the native backends do: the same scores, the same text, and what it computes is counted.

A real engine with a shipped Transformer, then one with a shipped Mamba-2 (on a CPU without a prefix cache, which vLLM's
build cannot keep for it).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from evalspec.errors import RunError
from evalspec.execute.protocols import Engine, Result
from evalspec.execute.walk import walk
from evalspec.plan.forest import Decoding, Forest, Request, Tokens, build_forest

TOLERANCE = 1e-3  # float32 both

Native = Callable[[str], Any]


def draw(seed: int, count: int) -> Tokens:
    return np.random.default_rng([11, seed]).integers(3, 1900, count).astype(np.int32)


def scoring(context: Tokens, continuation: Tokens) -> Request:
    return Request(np.concatenate([context, continuation[:-1]]), tuple(continuation.tolist()))


def answers(forest: Forest, backend: Any) -> list[Result]:
    found = {result.request: result for result in walk(forest, backend)}
    assert sorted(found) == list(range(len(forest.requests)))
    return [found[number] for number in range(len(forest.requests))]


def equal_scores(ours: list[Result], theirs: list[Result]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.error is None
        assert one.logprobs == pytest.approx(other.logprobs, abs=TOLERANCE)
        assert one.greedy == other.greedy


def choices(choice: int, questions: int = 5) -> Forest:
    """Shots, questions, and to each four choices of so many tokens; the third is the one that the model would write."""
    shots = draw(0, 180)
    asked = []
    for question in range(questions):
        context = np.concatenate([shots, draw(100 + question, 20 + question)])
        asked += [scoring(context, draw(1000 * question + number, choice)) for number in range(4)]
    return build_forest(asked)


def test_it_is_an_engine(engine: Any) -> None:
    assert isinstance(engine, Engine)
    assert engine.identity[0] == "vllm"
    assert "float32" in engine.identity


@pytest.mark.parametrize("tokens", [1, 2, 4])
def test_choices_are_scored_as_natively(engine: Any, native: Native, tokens: int) -> None:
    forest = choices(tokens)
    equal_scores(answers(forest, engine), answers(forest, native(engine.weights)))


def test_choices_of_different_lengths_are_scored_as_natively(engine: Any, native: Native) -> None:
    context = draw(7, 70)
    forest = build_forest([scoring(context, draw(number, 1 + number)) for number in range(5)])
    equal_scores(answers(forest, engine), answers(forest, native(engine.weights)))


def test_more_choices_of_a_token_than_one_answer_holds(engine: Any, native: Native) -> None:
    context = draw(8, 40)
    forest = build_forest([Request(context, (token,)) for token in range(3, 303)])
    equal_scores(answers(forest, engine), answers(forest, native(engine.weights)))


def test_what_the_model_would_write_is_greedy_and_nothing_else(engine: Any) -> None:
    """Several tokens, by forcing: the greedy answer's own are likeliest, one by one; another first token is not."""
    prompt = draw(9, 60)
    (written,) = answers(build_forest([Request(prompt, (), Decoding(5))]), engine)
    greedy = greedy_tokens(engine, prompt, written.output_tokens)
    other = np.concatenate([[(greedy[0] + 1) % 1900 + 3], greedy[1:]]).astype(np.int32)
    both = answers(build_forest([scoring(prompt, greedy), scoring(prompt, other)]), engine)
    assert all(both[0].greedy)
    assert not both[1].greedy[0]
    assert both[0].logprobs[0] > both[1].logprobs[0]


def greedy_tokens(engine: Any, prompt: Tokens, count: int) -> Tokens:
    """The likeliest continuation by scoring every token of the vocabulary, one position after the other."""
    vocabulary = len(engine.tokenizer.inner)
    tokens = prompt
    for _ in range(count):
        scored = answers(build_forest([Request(tokens, (token,)) for token in range(vocabulary)]), engine)
        (best,) = [token for token, result in enumerate(scored) if result.greedy[0]]
        tokens = np.append(tokens, np.int32(best))
    return tokens[len(prompt) :]


def test_a_long_text_is_scored_as_natively(engine: Any, native: Native) -> None:
    """By prompt log-probabilities, since forcing it token by token would take longer."""
    text = draw(10, 700)
    asked = [Request(text[:-1], tuple(text[1:].tolist())), scoring(text[:300], text[300:420])]
    forest = build_forest(asked)
    equal_scores(answers(forest, engine), answers(forest, native(engine.weights)))


def test_scores_do_not_depend_on_what_else_is_asked(engine: Any) -> None:
    forest = choices(3)
    together = answers(forest, engine)
    for number in (0, 7, 19):
        (one,) = answers(build_forest([forest.requests[number]]), engine)
        assert one.logprobs == pytest.approx(together[number].logprobs, abs=TOLERANCE)


@pytest.mark.parametrize("stop", [(), ("\n",), (" is", "a"), ("Question",)])
def test_greedy_answers_stop_as_natively(engine: Any, native: Native, stop: tuple[str, ...]) -> None:
    tokenizer = engine.tokenizer
    texts = ["Question: What is the favourite food of Hugo Barlow?\nAnswer:", "The cat is", "2 + 3 =", "Name:"]
    prompts = [np.asarray(tokenizer.encode([text])[0], np.int32) for text in texts]
    forest = build_forest([Request(prompt, (), Decoding(count, stop)) for prompt in prompts for count in (1, 12)])
    reasons = set()
    for ours, theirs in zip(answers(forest, engine), answers(forest, native(engine.weights)), strict=True):
        assert (ours.text, ours.finish_reason, ours.output_tokens) == (
            theirs.text, theirs.finish_reason, theirs.output_tokens,
        )  # fmt: skip
        assert ours.text is not None and not any(text in ours.text for text in stop)
        reasons.add(ours.finish_reason)
    assert reasons <= {"stop", "length"}


def test_a_sampled_answer_depends_on_its_request_alone(engine: Any) -> None:
    """Not on the order, nor on what runs beside it; repeats and seeds differ from each other."""
    prompt = draw(12, 30)
    asked = [
        Request(prompt, (), Decoding(10, ("\n",), 1.0, 0.95, 40, seed), repeat)
        for seed in (1, 2)
        for repeat in range(4)
    ]
    forwards = answers(build_forest(asked), engine)
    crowd = [Request(draw(20 + number, 25), (), Decoding(6, (), 0.7, 1.0, 0, number)) for number in range(5)]
    backwards = answers(build_forest([*crowd, *asked[::-1]]), engine)[len(crowd) :][::-1]
    assert [result.text for result in forwards] == [result.text for result in backwards]
    assert len({result.text for result in forwards}) > 4


def test_a_sharp_distribution_is_sampled_greedily(engine: Any) -> None:
    prompt = draw(13, 30)
    asked = [
        Decoding(8),
        Decoding(8, (), 1.0, 1.0, 1, 5),
        Decoding(8, (), 1.0, 1e-6, 0, 5),
        Decoding(8, (), 1e-3, 1.0, 0, 5),
    ]
    found = answers(build_forest([Request(prompt, (), decoding) for decoding in asked]), engine)
    assert len({result.text for result in found}) == 1


def test_sampled_first_tokens_are_as_often_as_the_model_says(engine: Any) -> None:
    """400 draws against the probabilities that scoring gives, at temperature 1: each frequent token within 4 sigma."""
    prompt = np.asarray(engine.tokenizer.encode(["The favourite food of"])[0], np.int32)
    count = 400
    drawn = answers(
        build_forest([Request(prompt, (), Decoding(1, (), 1.0, 1.0, 0, 7), r) for r in range(count)]), engine
    )
    scored = answers(build_forest([Request(prompt, (token,)) for token in range(len(engine.tokenizer.inner))]), engine)
    chance: dict[str, float] = {}
    for token, result in enumerate(scored):
        text = "" if token in engine.end_tokens else engine.tokenizer.decode([token])
        chance[text] = chance.get(text, 0.0) + math.exp(result.logprobs[0])
    assert sum(chance.values()) == pytest.approx(1, abs=1e-3)
    frequent = {text: p for text, p in chance.items() if p * count >= 10}
    assert frequent
    for text, p in frequent.items():
        seen = sum(result.text == text for result in drawn)
        assert abs(seen - p * count) < 4 * math.sqrt(count * p * (1 - p)) + 1


def test_what_is_computed_is_counted(engine: Any) -> None:
    """With a prefix cache little more than the distinct tokens, else what each request has; seconds are shared out."""
    forest = choices(3, questions=8)
    before = engine.cached_tokens
    found = answers(forest, engine)
    computed = sum(result.computed_tokens for result in found)
    again = sum(result.computed_tokens for result in answers(forest, engine))
    assert all(result.seconds > 0 for result in found)
    if engine.weights == "transformer":
        assert engine.cached_tokens > before + 180 * 7 * 4
        assert computed < forest.distinct_tokens + len(forest.requests) * (32 + 3)
        assert again <= computed
    else:
        assert engine.cached_tokens == 0
        assert computed == again == forest.prompt_tokens


def test_scores_from_the_cache_are_those_of_prompt_logprobs(engine: Any) -> None:
    """The same requests put to vLLM the other way, which reads no cache."""
    from evalspec.execute.backends.vllm.asks import Ask

    forest = choices(4)
    ours = answers(forest, engine)
    asks = [Ask("prompt", request.tokens, (n,), request.targets) for n, request in enumerate(forest.requests)]
    before = engine.cached_tokens
    theirs: dict[int, Result] = {}
    for finished in engine._run(asks, forest):
        for sent in finished:
            for result in engine._results(sent, forest, 0):
                theirs[result.request] = result
    assert engine.cached_tokens == before
    equal_scores(ours, [theirs[number] for number in range(len(ours))])


def test_times_of_prefill_and_decoding_are_told_apart(engine: Any) -> None:
    found = engine.timed([draw(number, 50) for number in range(3)], 9)
    assert 0 < found.first < found.all
    assert 3 * 9 - 3 * 3 <= found.tokens_after_first <= 3 * 8


def test_a_prompt_longer_than_the_engine_takes_is_refused_in_a_sentence(engine: Any) -> None:
    longest = {"transformer": 8192, "mamba2": 131_072}[engine.weights]
    with pytest.raises(RunError, match=rf"models\.m: a prompt has {longest + 1:,} tokens, and the engine takes"):
        answers(build_forest([Request(draw(1, longest + 1), (5,))]), engine)
    assert len(answers(choices(1), engine)) == 20  # it goes on
