"""The filters of specs/hub/chain_of_thought.yaml find the answers that the data's own authors wrote."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from evalspec.metrics import METRIC_FUNCTIONS, Outcome, extract
from evalspec.spec import load
from evalspec.spec.blocks import TaskBlock

ROOT = Path(__file__).parents[2]
TEST_DATA = Path(os.environ.get("EVALSPEC_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))

if not (TEST_DATA / "gsm8k").is_dir():
    pytest.skip(f"no data under {TEST_DATA} (EVALSPEC_TEST_DATA names their folder)", allow_module_level=True)


@pytest.fixture(scope="module")
def tasks() -> dict[str, TaskBlock]:
    return dict(load(ROOT / "specs" / "hub" / "chain_of_thought.yaml").spec.tasks)


def lines(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (TEST_DATA / path).read_text(encoding="utf-8").splitlines()]


def test_both_filters_of_gsm8k_make_every_worked_solution_right(tasks: dict[str, TaskBlock]) -> None:
    block = tasks["gsm8k"].metrics[0]
    rows = lines("gsm8k/test.jsonl")
    assert len(rows) == 1319
    for name, chain in tasks["gsm8k"].filters.items():
        for row in rows:
            outcome = Outcome(output=extract(row["answer"], chain).text, targets=(row["answer"],))
            score = METRIC_FUNCTIONS.get(block.metric).score(outcome, None, block)
            assert score is not None
            assert score.value == 1.0, (name, row["answer"])


def test_the_last_number_of_a_worked_solution_is_its_answer(tasks: dict[str, TaskBlock]) -> None:
    chain = tasks["gsm8k_trigger"].filters["number"]
    for row in lines("gsm8k/test.jsonl"):
        assert extract(row["answer"], chain).text == row["answer"].split("#### ")[-1].replace(",", "")


@pytest.mark.parametrize("task", ["object_counting", "multistep_arithmetic_two", "date_understanding"])
def test_the_worked_examples_of_big_bench_hard_end_in_an_answer(task: str, tasks: dict[str, TaskBlock]) -> None:
    text = (TEST_DATA / "bbh" / f"{task}.cot.txt").read_text(encoding="utf-8").split("-----\n")[-1]
    worked = text.split("\nA: Let's think step by step.")[1:]
    found = [extract(answer.split("\n\nQ:")[0], tasks["bbh_object_counting"].filters["answer"]) for answer in worked]
    assert len(found) == 3
    assert all(answer.found and re.fullmatch(r"-?\d+|\([A-Z]\)", answer.text) for answer in found)


def test_most_rationales_of_aqua_name_their_letter(tasks: dict[str, TaskBlock]) -> None:
    rows = lines("aqua/test.json")
    right = [extract(row["rationale"], tasks["aqua"].filters["letter"]).text == row["correct"] for row in rows]
    assert sum(right) / len(rows) > 0.9, "some rationales end without any"
