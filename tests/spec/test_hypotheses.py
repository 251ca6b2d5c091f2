"""Hypotheses: which cells they hold against which, and what is said where that cannot be."""

from __future__ import annotations

from typing import Any

import pytest

from evalspec.errors import SpecError
from evalspec.spec import load
from evalspec.spec.blocks import TaskBlock
from evalspec.spec.hypotheses import comparisons
from evalspec.spec.loading import points
from evalspec.spec.meant import Meant, meant

SPEC: dict[str, Any] = {
    "name": "hypotheses",
    "models": {"a": {"weights": "zoo/mamba"}, "b": {"weights": "zoo/mamba2"}},
    "tasks": {
        "recall": {
            "data": {"generate": "world.records", "count": 4},
            "prompt": {"template": "{{ key }}:", "target": "{{ value }}"},
            "decode": {"max_tokens": 2},
            "metrics": ["exact_match"],
        },
        "other": {"extends": "recall", "prompt": {"template": "{{ key }}"}},
    },
    "sweep": {"tasks.*.data.options.n": [4, 8, 16]},
}
MODELS = {"claim": "A beats B", "better": {"model": "a"}, "than": {"model": "b"}}


def found(**hypothesis: Any) -> list[tuple[dict[str, Any], int]]:
    loaded = load(SPEC | {"hypotheses": {"h": {"claim": "c", **hypothesis}}})
    return [(dict(c.each), len(c.pairs)) for c in comparisons(loaded.spec.hypotheses["h"], points(loaded.cells))]


def test_what_neither_side_names_is_paired_with_its_like_and_taken_together() -> None:
    assert found(better={"model": "a"}, than={"model": "b"}) == [({}, 6)]


def test_each_gives_a_verdict_for_every_value() -> None:
    assert found(better={"model": "a"}, than={"model": "b"}, each=["task"]) == [
        ({"task": "recall"}, 3), ({"task": "other"}, 3),
    ]  # fmt: skip
    assert found(better={"where": {"n": 4}}, than={"where": {"n": 8}}, each=["model", "task"])[0] == (
        {"model": "a", "task": "recall"}, 1,
    )  # fmt: skip


def test_what_both_sides_name_alike_selects_and_still_pairs() -> None:
    sides = [{"model": model, "task": "recall", "where": {"n": [4, 8]}} for model in "ab"]
    assert found(better=sides[0], than=sides[1]) == [({}, 2)]


def test_two_chains_of_the_same_cells_can_be_compared() -> None:
    tasks: Any = SPEC["tasks"]
    chains = {"x": ["strip"], "y": ["first_line"]}
    spec = SPEC | {"tasks": tasks | {"recall": tasks["recall"] | {"filters": chains}}}
    sides = {side: {"task": "recall", "filter": name} for side, name in (("better", "x"), ("than", "y"))}
    loaded = load(spec | {"hypotheses": {"h": {"claim": "c", **sides}}})
    [comparison] = comparisons(loaded.spec.hypotheses["h"], points(loaded.cells))
    assert len(comparison.pairs) == 6


@pytest.mark.parametrize(
    ("hypothesis", "said"),
    [
        ({"better": {"model": "c"}, "than": {"model": "b"}}, "`better`: no cell has model = `c`; there are `a`, `b`"),
        ({"better": {"where": {"m": 4}}, "than": {"where": {"n": 8}}}, "`better` names no axis of this spec: `m`"),
        ({"better": {}, "than": {"model": "b"}}, "`better` names nothing"),
        ({"better": {"model": "a"}, "than": {"model": "b"}, "each": ["tusk"]}, "no axis of this spec: `tusk`"),
        ({"better": {"where": {"n": 4}}, "than": {"where": {"n": [8, 16]}}}, "`than` has several cells for one"),
        (MODELS | {"metric": "exact_mach"}, "is not among the task's metrics. Did you mean `exact_match`?"),
        (MODELS | {"better": {"model": "a", "stage": "again"}}, "the task has no stage `again`. There is none."),
        (MODELS | {"than": {"model": "b", "filter": "x"}}, "not taken under a filter `x`. There is `default`."),
    ],
)  # fmt: skip
def test_what_cannot_be_judged_is_an_error_at_the_hypothesis(hypothesis: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError) as caught:
        load(SPEC | {"hypotheses": {"h": {"claim": "c", **hypothesis}}})
    (problem,) = caught.value.problems
    assert problem.message.startswith("hypotheses.h: ")
    assert said in problem.message


def test_a_metric_is_called_by_its_name_alone_where_no_other_is_called_so() -> None:
    metrics = [{"metric": "exact_match", "ignore_case": True, "filters": ["line"]}, "token_f1", "recall@5", "recall"]
    task = TaskBlock.model_validate(
        SPEC["tasks"]["recall"]
        | {"metrics": metrics, "filters": {"raw": ["strip"], "line": ["first_line"]}}
        | {"retrieval": {"corpus": {"file": "p.jsonl"}, "k": 3, "gold": "{{ gold }}"}}
    )
    assert meant(task, None) == meant(task, "exact_match") == Meant("exact_match(ignore_case)", "line")
    assert meant(task, "token_f1") == Meant("token_f1", "raw")
    assert meant(task, "recall@3") == Meant("recall@3", "default")  # passages are under no filter of answers
    with pytest.raises(ValueError, match="`recall` is measured in several ways; name one: recall@5, recall@3"):
        meant(task, "recall")
    with pytest.raises(ValueError, match="`recall@5` does not look at a generated answer; leave out the `filter`"):
        meant(task, "recall@5", "line")


def test_a_hypothesis_belongs_to_what_a_plan_asks() -> None:
    assert load(SPEC).canonical != load(SPEC | {"hypotheses": {"h": MODELS}}).canonical
