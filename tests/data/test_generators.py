"""Generators are called by name, and an option that one does not have is the user's mistake."""

from datetime import date
from pathlib import Path
from typing import Any

import pytest

from evalspec.data.generators import GENERATORS
from evalspec.data.rows import load_rows
from evalspec.errors import DataError, EvalspecError
from evalspec.spec.data import DataBlock


@GENERATORS.register("test.squares")
def squares(seed: int, count: int | None = None, *, power: int = 2) -> list[dict[str, Any]]:
    return [{"n": n, "square": (seed + n) ** power, "pair": (n, date(2020, 1, 1))} for n in range(count or 3)]


@GENERATORS.register("test.odd")
def odd(seed: int, count: int | None = None, *, needed: int) -> list[dict[str, Any]]:
    return [{"value": object()}]


def test_seed_count_and_options_reach_the_generator() -> None:
    loaded = load_rows(DataBlock(generate="test.squares", seed=1, count=2, options={"power": 3}), Path())
    assert [row.values["square"] for row in loaded.rows] == [1, 8]
    assert loaded.rows[0].values["pair"] == [0, "2020-01-01"]
    assert loaded.source == "generator test.squares(seed=1, count=2, power=3)"


def test_an_unknown_option_is_an_error_with_the_nearest() -> None:
    with pytest.raises(DataError, match=r"`test\.squares` has no option `powr`\. Did you mean `power`\? Known: power"):
        load_rows(DataBlock(generate="test.squares", options={"powr": 3}), Path())
    with pytest.raises(DataError, match=r"needs the option `needed`"):
        load_rows(DataBlock(generate="test.odd"), Path())


def test_a_value_that_json_cannot_hold_is_an_error() -> None:
    with pytest.raises(DataError, match=r"column `value` holds a object"):
        load_rows(DataBlock(generate="test.odd", options={"needed": 1}), Path())


def test_an_unknown_generator_is_an_error_with_the_nearest() -> None:
    with pytest.raises(EvalspecError, match=r"no generator `world\.question`\. Did you mean `world\.questions`\?"):
        load_rows(DataBlock(generate="world.question"), Path())


def test_the_worlds_are_there_and_their_golds_are_in_their_corpus() -> None:
    questions = load_rows(DataBlock(generate="world.questions", seed=7, count=20), Path())
    passages = load_rows(DataBlock(generate="world.passages", seed=7), Path())
    corpus = {row.id for row in passages.rows}
    assert len(questions.rows) == 20
    assert all(set(row.values["gold_ids"]) <= corpus for row in questions.rows)
    assert (
        load_rows(DataBlock(generate="world.questions", seed=8, count=20), Path()).content_hash
        != questions.content_hash
    )
