"""The forest equals a naive trie, and its arrays keep their promises."""

from __future__ import annotations

import time

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from evalspec.plan.forest import Forest, Request, build_forest, share_by_user, users_of_nodes

sequences = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=9), min_size=1, max_size=25)


def forest_of(lists: list[list[int]]) -> Forest:
    return build_forest(Request(np.asarray(tokens, np.int32)) for tokens in lists)


def trie_size(lists: list[list[int]]) -> int:
    return len({tuple(tokens[: n + 1]) for tokens in lists for n in range(len(tokens))})


@given(sequences)
def test_distinct_tokens_are_the_nodes_of_a_trie(lists: list[list[int]]) -> None:
    assert forest_of(lists).distinct_tokens == trie_size(lists)


@given(sequences)
def test_each_request_finds_its_own_tokens_on_the_way_from_its_root(lists: list[list[int]]) -> None:
    forest = forest_of(lists)
    for request, leaf in zip(forest.requests, forest.leaf, strict=True):
        assert forest.path(int(leaf)).tolist() == request.tokens.tolist()


@given(sequences)
def test_nodes_are_in_depth_first_order_and_siblings_differ_in_their_first_token(lists: list[list[int]]) -> None:
    forest = forest_of(lists)
    assert all(forest.parent[n] < n for n in range(len(forest.parent)))
    assert (forest.length > 0).all()
    heads = [(int(forest.parent[n]), int(forest.node_tokens(n)[0])) for n in range(len(forest.parent))]
    assert len(heads) == len(set(heads))


@given(sequences, st.data())
def test_what_is_attributed_to_users_adds_up_to_the_distinct_tokens(
    lists: list[list[int]], data: st.DataObject
) -> None:
    forest = forest_of(lists)
    users = [frozenset(data.draw(st.sets(st.integers(0, 3), min_size=1))) for _ in lists]
    assert abs(sum(share_by_user(forest, users).values()) - forest.distinct_tokens) < 1e-9
    assert users_of_nodes(forest, users)[0] <= frozenset(range(4))


def test_a_large_forest_is_built_in_seconds() -> None:
    rng = np.random.default_rng(0)
    shots = rng.integers(0, 30000, 600)
    questions = [np.concatenate([shots, [q], rng.integers(0, 30000, 99)]) for q in range(2500)]
    requests = [
        Request(np.concatenate([q, [choice], rng.integers(0, 30000, 2)]).astype(np.int32))
        for q in questions
        for choice in range(4)
    ]
    began = time.perf_counter()
    forest = build_forest(requests)
    assert time.perf_counter() - began < 20
    assert forest.distinct_tokens == 600 + 2500 * 100 + 10000 * 3
