"""A model that says the same whatever it is asked is named, with what a constant answer scores."""

from __future__ import annotations

import duckdb
import pytest

from evalspec.report.sameness import same_answers


def said(*cells: tuple[str, str, list[tuple[str | None, str]]]) -> dict[str, str]:
    """What is said of cells: the model, the task, and (output, target) of each sample."""
    connection = duckdb.connect()
    connection.execute("CREATE TABLE cells (run_id VARCHAR, cell_id VARCHAR, model VARCHAR, task VARCHAR)")
    connection.execute(
        "CREATE TABLE samples (run_id VARCHAR, cell_id VARCHAR, stage VARCHAR, output VARCHAR, target VARCHAR, "
        "error VARCHAR)"
    )
    for number, (model, task, answers) in enumerate(cells):
        connection.execute("INSERT INTO cells VALUES ('r', ?, ?, ?)", [str(number), model, task])
        for output, target in answers:
            connection.execute("INSERT INTO samples VALUES ('r', ?, 'main', ?, ?, NULL)", [str(number), output, target])
    return same_answers(connection, "r", list(dict.fromkeys(model for model, _, _ in cells)))


LABELS = ["yes"] * 14 + ["no"] * 6


def test_a_constant_answer_is_named_with_what_it_scores() -> None:
    constant = [("yes", label) for label in LABELS]
    reading = [(label, label) for label in LABELS]
    found = said(("a", "t", constant), ("b", "t", reading), ("a", "t", constant), ("a", "t", reading))
    assert found == {
        "t": "The same answer whatever is asked (to 95% of the samples or more): a says “yes” in 2 of 3 conditions. "
        "Right answers differ: the most frequent of them alone is right for 70%."
    }


def test_white_space_and_nothing_at_all_are_answers_too() -> None:
    assert "a says nothing. Right" in said(("a", "t", [(" \n", label) for label in LABELS]))["t"]


@pytest.mark.parametrize(
    "answers",
    [
        [("yes", "yes")] * 20,  # right answers do not differ
        [("yes", label) for label in ["yes", "no"] * 4],  # too few to tell
        [("yes", label) for label in LABELS[:18]] + [("no", label) for label in LABELS[:2]],  # 90 %
        [(None, label) for label in LABELS],  # scored, not answered
    ],
)
def test_other_models_are_not(answers: list[tuple[str | None, str]]) -> None:
    assert said(("a", "t", answers)) == {}
