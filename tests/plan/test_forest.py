"""The forest equals a naive trie, and its arrays keep their promises."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalspec.plan.forest import Forest, Request, alone, build_forest, share_by_user, users_of_nodes

sequences = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=9), min_size=1, max_size=25)


def forest_of(lists: list[list[int]]) -> Forest:
    return build_forest(Request(np.asarray(tokens, np.int32)) for tokens in lists)


def trie_size(lists: list[list[int]]) -> int:
    return len({tuple(tokens[: n + 1]) for tokens in lists for n in range(len(tokens))})


def naive_radix(lists: list[list[int]]) -> dict[tuple[int, ...], tuple[tuple[int, ...], list[int]]]:
    """By a dictionary trie: path of each radix node → its parent's path, and the requests that end in it.

    A node ends where a sequence ends or where the trie branches.
    """
    trie: dict[int, Any] = {}
    for tokens in lists:
        below = trie
        for token in tokens:
            below = below.setdefault(token, {})
    found: dict[tuple[int, ...], tuple[tuple[int, ...], list[int]]] = {}

    def visit(path: tuple[int, ...], above: tuple[int, ...], below: dict[int, Any]) -> None:
        ends = [number for number, tokens in enumerate(lists) if tuple(tokens) == path]
        if path and (ends or len(below) > 1):
            found[path] = (above, ends)
            above = path
        for token, further in below.items():
            visit((*path, token), above, further)

    visit((), (), trie)
    return found


@given(sequences)
def test_the_forest_is_the_radix_tree_of_a_naive_trie(lists: list[list[int]]) -> None:
    forest = forest_of(lists)
    paths = [tuple(forest.path(node).tolist()) for node in range(len(forest.parent))]
    assert len(set(paths)) == len(paths)
    found = {
        path: (paths[above] if above >= 0 else (), np.flatnonzero(forest.leaf == node).tolist())
        for node, (path, above) in enumerate(zip(paths, forest.parent.tolist(), strict=True))
    }
    assert found == naive_radix(lists)


@given(sequences)
def test_nodes_stand_one_after_the_other_and_a_subtree_is_one_range(lists: list[list[int]]) -> None:
    forest = forest_of(lists)
    assert forest.start.tolist() == (np.cumsum(forest.length) - forest.length).tolist()
    assert forest.length.sum() == len(forest.tokens)
    paths = [tuple(forest.path(node).tolist()) for node in range(len(forest.parent))]
    for node, path in enumerate(paths):
        below = [other for other, longer in enumerate(paths) if longer[: len(path)] == path]
        assert below == list(range(node, node + len(below)))


@given(sequences)
def test_identical_sequences_share_a_leaf_and_stay_requests_of_their_own(lists: list[list[int]]) -> None:
    twice = forest_of(lists + lists)
    assert twice.leaf[: len(lists)].tolist() == twice.leaf[len(lists) :].tolist()
    assert len(twice.requests) == 2 * len(lists)
    assert twice.prompt_tokens == 2 * sum(map(len, lists))
    assert twice.tokens.tolist() == forest_of(lists).tokens.tolist()


@given(sequences)
def test_alone_is_each_distinct_sequence_from_a_root_of_its_own(lists: list[list[int]]) -> None:
    forest = alone(forest_of(lists))
    assert (forest.parent == -1).all()
    assert forest.distinct_tokens == sum(map(len, {tuple(tokens) for tokens in lists}))
    for tokens, leaf in zip(lists, forest.leaf.tolist(), strict=True):
        assert forest.path(leaf).tolist() == tokens


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


LARGE = """
import json, resource, sys, time
import numpy as np
from evalspec.plan.forest import Request, build_forest, share_by_user

rng = np.random.default_rng(0)


def words(count):
    return rng.integers(0, 30000, count, dtype=np.int32)


def shared():
    for _ in range(5):
        shots = words(900)
        for _ in range(5000):
            question = np.concatenate([shots, words(80)])
            for _ in range(4):
                yield np.concatenate([question, words(20)])


def hardly_shared():
    instruction = words(8)
    for _ in range(100_000):
        yield np.concatenate([instruction, words(992)])


requests = [Request(tokens) for tokens in {"shared": shared, "hardly shared": hardly_shared}[sys.argv[1]]()]
began = time.perf_counter()
forest = build_forest(requests)
built = time.perf_counter() - began
share_by_user(forest, [frozenset([number % 7]) for number in range(len(requests))])
print(json.dumps({
    "seconds": built,
    "shares": time.perf_counter() - began - built,
    "bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    "prompt": forest.prompt_tokens,
    "distinct": forest.distinct_tokens,
}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "distinct"), [("shared", 5 * (900 + 5000 * (80 + 4 * 20))), ("hardly shared", 8 + 100_000 * 992)]
)
def test_a_hundred_thousand_requests_of_a_thousand_tokens_take_seconds_and_little_memory(
    kind: str, distinct: int
) -> None:
    """In a process of its own, whose peak of memory holds the requests as well."""
    done = subprocess.run([sys.executable, "-c", LARGE, kind], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    print(kind, found)
    assert found["prompt"] == 100_000 * 1000
    # Random tokens branch early here and there: a few more are shared than were put in common.
    assert 0 <= distinct - found["distinct"] < distinct / 100
    assert found["seconds"] < 60
    assert found["shares"] < 10
    assert found["bytes"] < 4e9


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
