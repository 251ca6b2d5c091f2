"""A cut forest: every request in one piece, nothing but shared paths fed again, and the pieces even."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalspec.models.card import zoo_folder
from evalspec.models.cost import Cost, cost_of
from evalspec.plan.compile import compile_plan
from evalspec.plan.cutting import LEAST_TOKENS, ROUNDS, SLACK, WORSE, costs, cut, subforest
from evalspec.plan.forest import Decoding, Forest, Request, build_forest
from evalspec.plan.spread import spread_of, spread_table
from evalspec.spec import load

asked = st.lists(
    st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.integers(0, 3), st.integers(0, 9)),
    min_size=1,
    max_size=40,
)
workers = st.integers(1, 6)


def forest_of(lists: list[tuple[list[int], int, int]]) -> Forest:
    """Requests to score up to three targets, or to generate up to nine tokens; equal ones among them."""
    requests = []
    for number, (tokens, scored, new) in enumerate(lists):
        decoding = Decoding(max_tokens=new) if new else None
        targets = () if decoding else tuple(range(min(scored, len(tokens))))
        requests.append(Request(np.asarray(tokens, np.int32), targets, decoding, repeat=number))
    return build_forest(requests)


def model(name: str) -> Cost:
    import json

    found = cost_of(json.loads((zoo_folder() / name / "config.json").read_text()))
    assert found is not None
    return found


@given(asked, workers)
def test_every_request_is_in_exactly_one_piece(lists: list[tuple[list[int], int, int]], count: int) -> None:
    forest = forest_of(lists)
    made = cut(forest, count)
    numbers = np.concatenate([piece.requests for piece in made.pieces])
    assert sorted(numbers.tolist()) == list(range(len(lists)))
    assert len(made.pieces) <= count * ROUNDS
    assert forest.leaf[numbers].tolist() == sorted(forest.leaf.tolist()), "pieces are stretches in depth-first order"


@given(asked, workers)
def test_pieces_are_the_forest_and_what_the_cut_repeats(lists: list[tuple[list[int], int, int]], count: int) -> None:
    """Against forests that are built anew from each piece's requests."""
    forest = forest_of(lists)
    made = cut(forest, count)
    fed = 0
    for piece in made.pieces:
        ours = subforest(forest, piece.requests)
        anew = build_forest([forest.requests[number] for number in piece.requests.tolist()])
        assert ours.distinct_tokens == anew.distinct_tokens
        fed += anew.distinct_tokens
        nodes, own = costs(anew, None)
        assert piece.cost == pytest.approx(nodes.sum() + own.sum())
    assert fed == forest.distinct_tokens + made.repeated_tokens
    nodes, own = costs(forest, None)
    assert made.cost == pytest.approx(nodes.sum() + own.sum())


@given(asked, st.data())
def test_a_part_of_a_forest_keeps_its_promises(lists: list[tuple[list[int], int, int]], data: st.DataObject) -> None:
    """Depth first, every request at the end of its own tokens, and no node that no request needs."""
    forest = forest_of(lists)
    some = data.draw(st.lists(st.integers(0, len(lists) - 1), min_size=1, unique=True))
    part = subforest(forest, np.asarray(some, np.int64))
    assert [request.repeat for request in part.requests] == some
    for request, leaf in zip(part.requests, part.leaf.tolist(), strict=True):
        assert part.path(leaf).tolist() == request.tokens.tolist()
    assert all(above < node for node, above in enumerate(part.parent.tolist()))
    assert part.start.tolist() == (np.cumsum(part.length) - part.length).tolist()
    needed = set(part.leaf.tolist())
    for node in range(len(part.parent) - 1, -1, -1):
        assert node in needed
        needed.add(int(part.parent[node]))


@given(asked, workers)
def test_no_worker_has_much_more_than_its_share(lists: list[tuple[list[int], int, int]], count: int) -> None:
    """Its share, the longest path into a piece, one request; and a third more, since pieces may lack a quarter."""
    forest = forest_of(lists)
    _, own = costs(forest, None)
    dearest = max(len(forest.path(int(leaf))) + cost for leaf, cost in zip(forest.leaf, own, strict=True))
    longest = max(len(request.tokens) for request in forest.requests)
    made = cut(forest, count)
    loads = made.loads(count)
    assert loads[-1] <= WORSE * (made.cost / count + longest + dearest) / (1 - SLACK)
    assert sum(loads) == pytest.approx(sum(piece.cost for piece in made.pieces))


def shared(questions: int, shots: int) -> Forest:
    """Questions of 30 tokens with four choices of 3, behind the same shots."""
    rng = np.random.default_rng(0)
    before = rng.integers(0, 500, shots)
    requests = []
    for _ in range(questions):
        question = np.concatenate([before, rng.integers(0, 500, 30)])
        for choice in rng.integers(0, 500, (4, 3)):
            tokens = np.concatenate([question, choice[:-1]]).astype(np.int32)
            requests.append(Request(tokens, tuple(choice.tolist())))
    return build_forest(requests)


@pytest.mark.parametrize("count", [2, 3, 8])
@pytest.mark.parametrize("name", ["transformer", "mamba2"])
def test_a_few_shot_forest_is_cut_evenly_into_more_pieces_than_workers(name: str, count: int) -> None:
    made = cut(shared(questions=1000, shots=40), count, model(name))
    loads = made.loads(count)
    assert len(made.pieces) > count
    assert loads[-1] * count / sum(loads) < 1.05
    assert made.cost / loads[-1] > 0.85 * count
    cuts = len(made.pieces) - 1
    assert 40 * cuts <= made.repeated_tokens <= 42 * cuts, "never within a question (a few begin alike by chance)"
    sizes = [piece.cost for piece in made.pieces]
    assert sizes[-1] < 0.5 * sizes[0], "the last ones are small, so that all end together"


def test_a_long_prefix_that_all_share_is_not_fed_again_for_the_sake_of_small_pieces() -> None:
    forest = shared(questions=40, shots=4000)
    made = cut(forest, 4, model("mamba2"))
    loads = made.loads(4)
    assert made.repeated_tokens == 3 * 4000, "once for each further worker"
    assert loads[-1] * 4 / sum(loads) < 1.05


def test_samples_of_one_prompt_are_spread_too() -> None:
    prompt = np.arange(50, dtype=np.int32)
    forest = build_forest([Request(prompt, (), Decoding(max_tokens=100, temperature=1.0), n) for n in range(64)])
    made = cut(forest, 4)
    loads = made.loads(4)
    assert loads[-1] * 4 / sum(loads) < 1.1


def test_a_hundred_thousand_requests_are_cut_in_seconds() -> None:
    import time

    forest = shared(questions=25_000, shots=100)
    began = time.process_time()
    made = cut(forest, 16, model("mamba"))
    for piece in made.pieces:
        subforest(forest, piece.requests)
    assert time.process_time() - began < 10


def test_a_plan_spreads_a_model_over_no_more_workers_than_a_run_starts() -> None:
    root = Path(__file__).parents[2]
    plan = compile_plan(load(root / "specs" / "rag.yaml"), limit=4)
    (part, *_) = plan.models
    worth = (part.forest.distinct_tokens + part.forest.new_tokens) // LEAST_TOKENS
    assert 2 < worth < 1000
    assert spread_of(part, 2).count == 2
    assert spread_of(part, 1000) == spread_of(part, worth)
    assert spread_of(part, 1000).count == worth
    alone = compile_plan(load(root / "specs" / "measure.yaml"))
    assert "what is measured alone runs on one machine" in spread_table(alone, 3)
