"""What an engine is asked: each request once, prefixes before what begins with them, the cheaper way of scoring.

No engine is needed for this.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalspec.execute.backends.vllm.asks import MOST_TOKENS, STEP_COST, Ask, asks_of, warmed
from evalspec.execute.backends.vllm.queue import Queue
from evalspec.plan.forest import Decoding, Request, build_forest


def tokens(*values: int) -> np.ndarray:
    return np.asarray(values, np.int32)


def long(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 900, count).astype(np.int32)


def score(context: np.ndarray, *targets: int) -> Request:
    return Request(np.concatenate([context, tokens(*targets[:-1])]), targets)


def test_without_vllm_choices_of_a_token_are_one_ask() -> None:
    context = long(0, 50)
    ((ask,),) = asks_of(build_forest([score(context, token) for token in (4, 9, 6)]), cached=True)
    assert ask.kind == "position"
    assert sorted(zip(ask.requests, ask.targets, strict=True)) == [(0, 4), (1, 9), (2, 6)]
    (asks,) = asks_of(build_forest([score(context, token) for token in range(300)]), cached=True)
    assert [len(ask.targets) for ask in asks] == [MOST_TOKENS, MOST_TOKENS, 300 - 2 * MOST_TOKENS]


def test_without_vllm_longer_choices_are_chains_from_their_context() -> None:
    context = long(0, 50)
    (asks,) = asks_of(build_forest([score(context, 4, 5), score(context, 4), score(context, 7, 5, 6)]), cached=True)
    assert {(ask.kind, ask.targets) for ask in asks} == {("chain", (4, 5)), ("chain", (4,)), ("chain", (7, 5, 6))}
    assert all(np.array_equal(ask.tokens, context) for ask in asks)


@pytest.mark.parametrize(("context", "targets"), [(1, 40), (400, 100), (400, 200)])
def test_without_vllm_a_long_continuation_is_fed_and_not_generated(context: int, targets: int) -> None:
    request = score(long(0, context), *range(targets))
    ((ask,),) = asks_of(build_forest([request]), cached=True)
    assert ask.kind == ("chain" if STEP_COST * targets <= len(request.tokens) else "prompt")
    ((ask,),) = asks_of(build_forest([request]), cached=False)
    assert ask.kind == "prompt"  # with no cache there is none to keep
    assert np.array_equal(ask.tokens, request.tokens)


def test_without_vllm_a_shared_prefix_is_fed_before_what_begins_with_it() -> None:
    shots, questions = long(1, 100), [long(2 + q, 40) for q in range(3)]
    asked = [
        score(np.concatenate([shots, question]), c, c + 1, c + 2) for question in questions for c in (10, 20, 30, 40)
    ]
    (asks,) = asks_of(build_forest(asked), cached=True, snapshots=16)
    warm = [number for number, ask in enumerate(asks) if ask.kind == "warm"]
    assert sorted(len(asks[number].tokens) - 1 for number in warm) == [96, 128, 128, 128]
    assert asks[0].kind == "warm" and asks[0].after is None
    for number, ask in enumerate(asks):
        if ask.after is not None:
            before = asks[ask.after]
            assert ask.after < number
            assert np.array_equal(before.tokens[:-1], ask.tokens[: len(before.tokens) - 1])
    assert all(ask.after in warm[1:] for ask in asks if ask.kind == "chain")
    assert sorted(r for ask in asks for r in ask.requests) == list(range(12))


def test_without_vllm_a_prefix_that_spares_little_is_not_fed_beforehand() -> None:
    context = long(1, 30)
    asked = [score(context, 1, 2), score(context, 3, 4)]
    (asks,) = asks_of(build_forest(asked), cached=True, snapshots=16)
    assert [ask.kind for ask in asks] == ["chain", "chain"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=60), min_size=1, max_size=25), st.integers(1, 6))
def test_without_vllm_every_ask_is_sent_once_and_after_its_prefix(prompts: list[list[int]], window: int) -> None:
    asks = warmed([Ask("generate", tokens(*p), (n,)) for n, p in enumerate(prompts)], 2)
    queue = Queue(asks, window, most_open=2)
    rng = np.random.default_rng(window)
    under_way: list[int] = []
    done: list[int] = []
    sent = 0
    while queue:
        for number in queue.take():
            after = asks[number].after
            assert after is None or after in done
            under_way.append(number)
            sent += 1
        assert 0 < len(under_way) <= window  # it always goes on
        done.append(under_way.pop(int(rng.integers(len(under_way)))))
        queue.done(done[-1])
    assert sent == len(asks) == len(set(done))
    assert sorted(r for ask in asks for r in ask.requests) == list(range(len(prompts)))


def test_without_vllm_generation_and_choices_of_a_token_are_separate_rounds() -> None:
    context = long(3, 20)
    asked = [score(context, 1), score(context, 2), Request(context, (), Decoding(3))]
    assert [[ask.kind for ask in asks] for asks in asks_of(build_forest(asked), cached=True)] == [
        ["generate"],
        ["position"],
    ]
