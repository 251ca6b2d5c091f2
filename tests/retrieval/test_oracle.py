"""The oracle gives the gold passages and distractors, and what it draws depends on the seed and the row alone."""

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalspec.errors import RetrievalError
from evalspec.retrieval import Hit, Passage, retrieve, search
from evalspec.retrieval.oracle import shuffle, stream
from evalspec.spec.data import DataBlock
from evalspec.spec.retrieval import RetrievalBlock, SameBlock

THINGS = [
    f"{colour} {thing}" for colour in "red green blue white".split() for thing in "boat cart lamp drum bell".split()
]
CORPUS = [Passage(f"p{number}", thing) for number, thing in enumerate(THINGS)]
GOLD = "p0"  # red boat


def oracle(
    *, rows: Sequence[str] = ("r1",), gold: Sequence[str] = (GOLD,), query: str = "red boat", **block: object
) -> list[tuple[Hit, ...]]:
    settings = RetrievalBlock(corpus=DataBlock(file="x.jsonl"), gold="{{ gold }}", retriever="oracle", **block)  # type: ignore[arg-type]
    return retrieve(settings, CORPUS, [query] * len(rows), [gold] * len(rows), rows, None)


def names(hits: Sequence[Hit]) -> list[str]:
    return [hit.passage.id for hit in hits]


@given(
    k=st.integers(1, 25), gold=st.integers(0, 5), near=st.booleans(), place=st.sampled_from(["random", "first", "last"])
)
def test_it_gives_all_gold_up_to_k_and_fills_up_with_others(k: int, gold: int, near: bool, place: str) -> None:
    golds = [f"p{3 * n}" for n in range(gold)]
    (hits,) = oracle(k=k, gold=golds, distractors="near" if near else "random", gold_at=place)
    assert len(hits) == min(k, len(CORPUS))
    assert len(set(names(hits))) == len(hits)
    assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))
    found = [name for name in names(hits) if name in golds]
    assert found == golds[:k]
    assert all(hit.relevant == (hit.passage.id in golds) == (hit.score == 1.0) for hit in hits)


def test_near_distractors_are_the_best_wrong_ones_of_bm25() -> None:
    ranked = [CORPUS[index].id for index, _ in search("bm25", CORPUS, ["red boat"], 20)[0]]
    assert ranked[0] == GOLD
    (hits,) = oracle(k=5, gold_at="first")
    assert names(hits) == [GOLD, *ranked[1:5]]
    everything = names(oracle(k=20, gold_at="first")[0])
    assert everything[: len(ranked)] == ranked  # beyond what BM25 finds, random ones
    assert sorted(everything) == sorted(passage.id for passage in CORPUS)


@pytest.mark.parametrize(("place", "rank"), [("first", 1), ("last", 5), (1, 1), (3, 3), (5, 5)])
def test_gold_stands_where_it_is_asked_to(place: str | int, rank: int) -> None:
    hits = oracle(rows=[f"r{n}" for n in range(20)], k=5, gold_at=place)
    assert {names(row).index(GOLD) + 1 for row in hits} == {rank}


def test_several_gold_passages_stand_side_by_side_and_never_fall_off_the_end() -> None:
    golds = ["p0", "p7", "p9"]
    assert names(oracle(gold=golds, k=5, gold_at=2)[0])[1:4] == golds
    assert names(oracle(gold=golds, k=5, gold_at=5)[0])[2:] == golds
    assert names(oracle(gold=golds, k=5, gold_at="last")[0])[2:] == golds


def test_a_place_beyond_k_is_an_error() -> None:
    with pytest.raises(RetrievalError, match=r"`gold_at: 6` is no place among k = 5"):
        oracle(k=5, gold_at=6)


def test_random_places_are_even() -> None:
    hits = oracle(rows=[f"r{n}" for n in range(2000)], k=4)
    count = Counter(names(row).index(GOLD) for row in hits)
    assert all(430 <= count[place] <= 570 for place in range(4))  # 500 ± 3.6 standard deviations


@pytest.mark.parametrize("distractors", ["near", "random"])
def test_what_a_row_gets_depends_on_its_id_and_the_seed_alone(distractors: str) -> None:
    rows = [f"r{n}" for n in range(10)]
    whole = dict(zip(rows, oracle(rows=rows, k=6, distractors=distractors), strict=True))
    other = dict(zip(rows[::-2], oracle(rows=rows[::-2], k=6, distractors=distractors), strict=True))
    assert all(whole[row] == hits for row, hits in other.items())
    assert len({tuple(names(hits)) for hits in whole.values()}) > 1
    changed = oracle(rows=rows, k=6, distractors=distractors, seed=1)
    assert list(whole.values()) != changed


@pytest.mark.parametrize("distractors", ["near", "random"])
def test_distractors_of_a_small_k_are_the_first_of_a_large_k(distractors: str) -> None:
    sets = [names(oracle(k=k, distractors=distractors, gold_at="first")[0]) for k in range(1, 21)]
    assert all(sets[-1][: len(each)] == each for each in sets)


def test_the_draw_is_the_same_on_every_machine() -> None:
    assert list(shuffle(8, stream("places", 0, "r1"))) == [3, 0, 6, 5, 2, 1, 7, 4]
    assert sorted(shuffle(100, stream("x", 1, "y"))) == list(range(100))


KINDS = [Passage(p.id, p.text, kind=p.text.split()[0]) for p in CORPUS]  # red, green, blue, white: five of each


def alike(k: int, seed: int = 0, row: str = "r1") -> list[str]:
    settings = RetrievalBlock(
        corpus=DataBlock(file="x.jsonl"), gold="{{ gold }}", retriever="oracle", k=k, gold_at="first", seed=seed,
        distractors=SameBlock(same="{{ colour }}"),
    )  # fmt: skip
    (hits,) = retrieve(settings, KINDS, ["red boat"], [[GOLD]], [row], None)
    return names(hits)


def test_distractors_have_in_common_with_the_gold_what_was_asked_then_random_ones_follow() -> None:
    kind = {passage.id: passage.kind for passage in KINDS}
    assert [kind[name] for name in alike(5)] == ["red"] * 5
    assert [kind[name] for name in alike(8)].count("red") == 5
    sets = [alike(k) for k in range(1, 21)]
    assert all(sets[-1][: len(each)] == each for each in sets)
    assert len({tuple(alike(3, row=f"r{n}")) for n in range(12)}) > 3
    assert alike(5) != alike(5, seed=3)


@pytest.mark.parametrize("distractors", ["near", "random"])
@pytest.mark.parametrize("count", [0, 1, 4, 30])
def test_a_number_of_distractors_stands_beside_all_gold_passages(distractors: str, count: int) -> None:
    for golds in ([], ["p0"], ["p0", "p7", "p9"]):
        (hits,) = oracle(gold=golds, n_distractors=count, distractors=distractors, k=2)
        found = [hit.relevant for hit in hits]
        assert found.count(True) == len(golds)
        assert found.count(False) == min(count, len(CORPUS) - len(golds))
        as_k = oracle(gold=golds, k=max(len(golds) + count, 1), distractors=distractors)[0]
        assert not count or names(hits) == names(as_k), "k = gold + distractors is the same prompt"


def test_a_place_beyond_the_distractors_is_an_error() -> None:
    oracle(n_distractors=3, gold_at=4)
    with pytest.raises(RetrievalError, match=r"`gold_at: 5` is no place among a gold passage and 3 distractors"):
        oracle(n_distractors=3, gold_at=5)
