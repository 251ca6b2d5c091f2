"""Prompts to choose from, shots that look otherwise than the question, answers that begin with a prefix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evalspec.data.rows import load_rows
from evalspec.errors import PromptError
from evalspec.prompting.drafts import Draft, Source, draft_task
from evalspec.spec.blocks import TaskBlock
from evalspec.spec.data import DataBlock

ROWS = [
    {"id": "1", "who": ["Ann", "Bob"], "rest": "left.", "right": 1},
    {"id": "2", "who": ["Cy", "Di"], "rest": "won.", "right": 0},
]
SHOTS = [{"id": "s", "who": ["Eve", "Flo"], "rest": "slept.", "right": 0}]


def drafts(prompt: dict[str, Any], rows: list[dict[str, Any]] = ROWS) -> list[Draft]:
    decode = None if {"choices", "contexts"} & set(prompt) else {"max_tokens": 1}
    metrics = ["accuracy"] if decode is None else ["exact_match"]
    task = TaskBlock.model_validate({"data": {"rows": rows}, "prompt": prompt, "decode": decode, "metrics": metrics})
    shots = task.prompt.shots
    pool = load_rows(shots.data, Path()) if shots and shots.data else None
    return draft_task("t", task, Source(load_rows(task.data, Path()), pool, None), Path(), cache=Path())[0]


def shots(**more: Any) -> dict[str, Any]:
    return {"n": 1, "sampler": "first", "data": {"rows": SHOTS}, **more}


def test_each_context_is_a_prompt_of_its_own_with_the_same_continuation_and_shots_show_the_right_one() -> None:
    [first, second] = drafts(
        {"contexts": "{{ who }}", "continuation": "{{ rest }}", "target": "{{ right }}", "shots": shots()}
    )
    assert first.pairs(" ") == [("Eve slept.\n\nAnn", " left."), ("Eve slept.\n\nBob", " left.")]
    assert (first.gold_choices, first.choices, first.targets) == ({1}, ("Ann", "Bob"), ("Bob",))
    assert second.gold_choices == {0}


def test_choices_are_continuations_of_one_prompt() -> None:
    [first, _] = drafts({"template": "Who?", "choices": "{{ who }}", "target": "{{ right }}"})
    assert first.pairs("->") == [("Who?", "->Ann"), ("Who?", "->Bob")]


def test_shots_may_look_otherwise_than_the_question() -> None:
    own = shots(template="{{ who[0] }}?", target="yes, {{ rest }}", delimiter="!")
    [first, _] = drafts({"template": "Who?", "choices": "{{ who }}", "target": "{{ right }}", "shots": own})
    assert first.prompt == "Eve?!yes, slept.\n\nWho?"


@pytest.mark.parametrize(
    ("question", "prefix", "expected"),
    [
        ("Who?", "It is", "Who? It is Eve\n\nWho? It is"),
        ("Who?\n", "It is ", "Who?\nIt is Eve\n\nWho?\nIt is "),
        ("Who?", "", "Who? Eve\n\nWho?"),
    ],
)
def test_an_answer_may_begin_with_a_prefix_that_the_model_is_given(question: str, prefix: str, expected: str) -> None:
    [first, _] = drafts({"template": question, "target": "{{ who[right] }}", "prefix": prefix, "shots": shots()})
    assert first.prompt == expected


def test_a_truth_value_is_the_index_that_it_stands_for_unless_a_choice_is_called_so() -> None:
    rows = [{"id": "1", "right": True}]
    [named] = drafts({"template": "q", "choices": ["True", "False"], "target": "{{ right }}"}, rows)
    [counted] = drafts({"template": "q", "choices": ["no", "yes"], "target": "{{ right }}"}, rows)
    assert (named.gold_choices, counted.gold_choices) == ({0}, {1})


def test_a_row_with_one_context_is_an_error() -> None:
    with pytest.raises(PromptError, match="row 1 has 1 contexts"):
        drafts({"contexts": "{{ who[:1] }}", "continuation": "c", "target": 0})


def test_rows_written_out_are_rows_with_ids_of_their_own() -> None:
    rows = load_rows(DataBlock.model_validate({"rows": [{"a": 1}, {"a": 2}]}), Path())
    assert [row.values["a"] for row in rows.rows] == [1, 2]
    assert len({row.id for row in rows.rows}) == 2
