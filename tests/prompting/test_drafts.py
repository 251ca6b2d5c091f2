"""Drafts hold what their own row says, whatever other rows are called, and refuse what has no meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evalspec.data.rows import Row, Rows
from evalspec.errors import PromptError
from evalspec.prompting.drafts import Draft, Source, draft_task
from evalspec.spec.blocks import TaskBlock


def rows(*values: dict[str, Any]) -> Rows:
    return Rows(tuple(Row(str(row["id"]), row) for row in values), "test", "")


def drafts(evaluated: Rows, shots: Rows | None = None, few: dict[str, Any] | None = None, **prompt: Any) -> list[Draft]:
    task: dict[str, Any] = {
        "data": {"file": "rows.jsonl"},
        "prompt": {"template": "Q: {{ question }}\nA:", "target": "{{ answer }}", **prompt},
        "metrics": ["accuracy" if "choices" in prompt else "perplexity"],
    }
    if few:
        task["prompt"]["shots"] = few
    if shots:
        task["prompt"]["shots"] = {"n": 2, "sampler": "first", "data": {"file": "train.jsonl"}}
    block = TaskBlock.model_validate(task)
    return draft_task("t", block, Source(evaluated, shots, None), Path(), cache=Path())[0]


def test_shots_from_other_data_may_bear_the_ids_of_evaluated_rows() -> None:
    test = rows(*({"id": n, "question": f"test {n}?", "answer": f"right {n}"} for n in range(3)))
    train = rows(*({"id": n, "question": f"train {n}?", "answer": f"shown {n}"} for n in range(3)))
    found = drafts(test, train)
    assert [draft.targets for draft in found] == [("right 0",), ("right 1",), ("right 2",)]
    assert [draft.prompt.split("\n\n")[-1] for draft in found] == [f"Q: test {n}?\nA:" for n in range(3)]
    assert found[2].prompt.startswith("Q: train 0?\nA: shown 0\n\nQ: train 1?\nA: shown 1\n\n")


@pytest.mark.parametrize("prompt", [{}, {"choices": ["x", "y"]}])
def test_a_row_without_any_right_answer_is_refused(prompt: dict[str, Any]) -> None:
    with pytest.raises(PromptError, match=r"prompt\.target of row r7 is an empty list"):
        drafts(rows({"id": "r7", "question": "q", "answer": []}), **prompt)


CONTROL = [{"id": n, "question": f"q{n}", "answer": "xyz"[n % 3]} for n in range(30)]


@pytest.mark.parametrize("choices", [{}, {"choices": ["x", "y", "z"]}])
@pytest.mark.parametrize("sampler", ["random", "first", "nearest"])
def test_a_control_changes_the_answers_of_the_shots_and_nothing_else(sampler: str, choices: dict[str, Any]) -> None:
    def asked(labels: str) -> list[Draft]:
        return drafts(rows(*CONTROL), few={"n": 3, "sampler": sampler, "labels": labels, "draws": 2}, **choices)

    for right, wrong in zip(asked("right"), asked("wrong"), strict=True):
        assert (right.shot_ids, right.targets, right.gold_choices) == (
            wrong.shot_ids,
            wrong.targets,
            wrong.gold_choices,
        )
        one, other = right.prompt.split("\n"), wrong.prompt.split("\n")
        changed = [(a, b) for a, b in zip(one, other, strict=True) if a != b]
        assert len(changed) == 3 and all(a[:3] == b[:3] == "A: " and b[3:] in "xyz" for a, b in changed)


def test_the_answers_of_a_control_stand_with_a_shot_in_every_prompt_of_a_draw() -> None:
    found = drafts(rows(*CONTROL), few={"n": 3, "labels": "wrong"})
    assert len({draft.prompt.rsplit("Q:", 1)[0] for draft in found}) == 1
