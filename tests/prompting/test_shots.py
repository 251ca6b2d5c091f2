"""Shots come from rows that are not evaluated, nest, and depend on ids and seeds alone."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalspec.data.rows import Row
from evalspec.errors import PromptError
from evalspec.prompting.shots import choose_shots, shown_answer, split_pool
from evalspec.spec.data import DataBlock
from evalspec.spec.prompt import ShotsBlock

ROWS = [Row(f"r{number}", {"text": f"word{number}", "label": "abc"[number % 3]}) for number in range(200)]


def chosen(block: ShotsBlock, pool: list[Row], samples: list[Row], draw: int = 0) -> list[tuple[str, ...]]:
    sets = choose_shots(
        block,
        pool,
        samples,
        draw=draw,
        label=lambda row: str(row.values["label"]),
        query=lambda row: str(row.values["text"]),
    )
    return [tuple(row.id for row in some) for some in sets]


@given(st.sets(st.integers(0, 199), min_size=1))
def test_the_split_looks_at_each_rows_own_id_only(kept: set[int]) -> None:
    all_pool = {row.id for row in split_pool(ROWS, 0.2)[0]}
    pool, evaluated = split_pool([ROWS[number] for number in sorted(kept)], 0.2)
    assert {row.id for row in pool} == all_pool & {f"r{number}" for number in kept}
    assert not {row.id for row in pool} & {row.id for row in evaluated}
    assert len(pool) + len(evaluated) == len(kept)


def test_a_fifth_of_the_rows_is_the_pool() -> None:
    many = [Row(f"row-{number}", {}) for number in range(20000)]
    assert 0.19 < len(split_pool(many, 0.2)[0]) / len(many) < 0.21


def test_fewer_shots_are_the_first_of_more_shots() -> None:
    pool, samples = map(list, split_pool(ROWS, 0.2))
    for sampler in ("random", "balanced", "first"):
        two = chosen(ShotsBlock(n=2, sampler=sampler), pool, samples)
        five = chosen(ShotsBlock(n=5, sampler=sampler), pool, samples)
        assert len(set(two)) == len(set(five)) == 1, "one set for all samples"
        assert five[0][:2] == two[0]


def test_order_and_number_of_rows_change_nothing() -> None:
    pool, samples = map(list, split_pool(ROWS, 0.2))
    shuffled = pool.copy()
    random.Random(1).shuffle(shuffled)
    block = ShotsBlock(n=4, seed=3)
    assert chosen(block, pool, samples)[0] == chosen(block, shuffled, samples[:5])[0]


def test_draws_and_seeds_differ() -> None:
    pool, samples = map(list, split_pool(ROWS, 0.2))
    sets = {chosen(ShotsBlock(n=4, seed=seed), pool, samples[:1], draw)[0] for seed in range(3) for draw in range(3)}
    assert len(sets) == 9


def test_balanced_shots_have_as_many_of_each_label() -> None:
    pool, samples = map(list, split_pool(ROWS, 0.2))
    by_id = {row.id: row for row in ROWS}
    [shots, *_] = chosen(ShotsBlock(n=6, sampler="balanced"), pool, samples)
    assert set(Counter(by_id[id].values["label"] for id in shots).values()) == {2}


def test_a_sample_is_never_among_its_own_shots() -> None:
    for block in (ShotsBlock(n=3), ShotsBlock(n=3, per_sample=True), ShotsBlock(n=3, sampler="nearest")):
        for row, shots in zip(ROWS[:30], chosen(block, ROWS[:30], ROWS[:30]), strict=True):
            assert row.id not in shots
            assert len(shots) == 3


def test_the_nearest_shot_stands_next_to_the_question() -> None:
    texts = {"a": "red apple", "b": "blue sky", "c": "red sky"}
    pool = [Row(id, {"text": text, "label": ""}) for id, text in texts.items()]
    sample = Row("s", {"text": "a red apple pie", "label": ""})
    assert chosen(ShotsBlock(n=2, sampler="nearest"), pool, [sample])[0][-1] == "a"


def test_per_sample_draws_depend_on_the_sample_alone() -> None:
    pool, samples = map(list, split_pool(ROWS, 0.2))
    block = ShotsBlock(n=3, per_sample=True)
    alone = chosen(block, pool, samples[7:8])[0]
    assert chosen(block, pool, samples)[7] == alone
    assert len(set(chosen(block, pool, samples))) > 10


def test_more_shots_than_rows_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(PromptError, match="5 shots are asked for but the pool has 3 rows"):
        chosen(ShotsBlock(n=5), ROWS[:3], ROWS[5:])


def test_in_data_of_the_shots_own_a_sample_is_known_by_what_it_holds_and_not_by_its_id() -> None:
    block = ShotsBlock(n=2, sampler="first", data=DataBlock(file="train.jsonl"))
    pool = [Row("1", {"text": "a"}), Row("2", {"text": "b"}), Row("3", {"text": "c"})]
    other, same = Row("1", {"text": "x"}), Row("9", {"text": "a"})
    assert chosen(block, pool, [other, same]) == [("1", "2"), ("2", "3")]
    with pytest.raises(PromptError, match="has 2 rows"):
        chosen(block.model_copy(update={"n": 3}), pool, [same])


def shown(labels: str, draw: int = 0, seed: int = 0, others: tuple[str, ...] = ("a", "b", "c")) -> list[str]:
    block = ShotsBlock.model_validate({"n": 4, "labels": labels, "seed": seed})
    return [shown_answer(block, draw, row.id, [str(row.values["label"])], others) for row in ROWS]


def test_wrong_labels_are_never_right_and_random_ones_are_at_chance() -> None:
    right = shown("right")
    assert right == [row.values["label"] for row in ROWS]
    wrong = Counter(label == true for label, true in zip(shown("wrong"), right, strict=True))
    assert wrong == {False: len(ROWS)}
    hits = sum(label == true for label, true in zip(shown("random"), right, strict=True))
    assert 0.22 < hits / len(ROWS) < 0.45
    assert set(Counter(shown("wrong"))) == {"a", "b", "c"}


def test_a_control_label_depends_on_seed_draw_and_shot_alone() -> None:
    assert shown("wrong") == shown("wrong", others=("c", "a", "b", "b"))
    assert shown("wrong") != shown("wrong", draw=1) != shown("wrong", seed=1)


def test_a_shot_without_any_wrong_answer_is_an_error() -> None:
    with pytest.raises(PromptError, match=r"no wrong answer for the shot r0"):
        shown_answer(ShotsBlock(n=1, labels="wrong"), 0, "r0", ["a"], ["a"])
