"""An answer stands in a passage or it does not, and saying that nothing answers is no answer."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from evalspec.metrics import METRIC_FUNCTIONS, Outcome, Score, metric_name
from evalspec.spec.blocks import TaskBlock
from evalspec.spec.metric import MetricBlock
from evalspec.spec.retrieval import RetrievalBlock

PASSAGES = ("Maria Silva lives in the town of Porto.", "The tower is 112 metres high; its keeper is Ken Ito.")


def score(metric: str, output: str | None, **more: object) -> float | None:
    outcome = Outcome(output=output, passages=PASSAGES, retrieved=True, **more)  # type: ignore[arg-type]
    found = METRIC_FUNCTIONS.get(metric).score(outcome)
    assert found is None or isinstance(found, Score)
    return None if found is None else found.value


@pytest.mark.parametrize(
    ("output", "value"),
    [
        ("Porto", 1.0),
        ("the Porto!", 1.0),
        ("Silva lives in town of Porto", 1.0),  # SQuAD drops the article on both sides
        ("112", 1.0),
        ("12", 0.0),  # no whole word
        ("Porto tower", 0.0),  # side by side in no one passage
        ("Lisbon", 0.0),
        ("", 0.0),
        ("the", 0.0),
        ("unknown", 0.0),
    ],
)
def test_an_answer_is_grounded_when_its_words_stand_side_by_side_in_one_passage(output: str, value: float) -> None:
    assert score("grounded", output) == value


def test_an_abstention_claims_nothing_and_a_closed_book_has_nothing_to_stand_in() -> None:
    assert score("grounded", "Unknown.", unknown=("unknown",)) is None
    assert score("grounded", None) is None
    assert METRIC_FUNCTIONS.get("grounded").score(Outcome(output="Porto", retrieved=False)) is None
    assert METRIC_FUNCTIONS.get("grounded").score(Outcome(output="Porto", retrieved=True)) == Score(0.0)


@pytest.mark.parametrize(
    ("output", "value"),
    [("unknown", 1.0), ("Unknown.", 1.0), ("not given", 1.0), ("unknown town", 0.0), ("Porto", 0.0), ("", 0.0)],
)
def test_abstaining_is_one_of_the_given_answers_and_nothing_like_it(output: str, value: float) -> None:
    assert score("abstained", output, unknown=("unknown", "Not given")) == value


def test_without_such_answers_or_an_output_abstaining_is_absent() -> None:
    assert score("abstained", "unknown") is None
    assert score("abstained", None, unknown=("unknown",)) is None


def task(**more: object) -> TaskBlock:
    blocks = {"data": {"file": "x"}, "prompt": {"template": "{{ q }}"}, "decode": {}, "metrics": ["grounded"], **more}
    return TaskBlock.model_validate(blocks)


def test_a_task_must_have_what_they_look_at_and_needs_no_target() -> None:
    with pytest.raises(ValidationError, match="`grounded` looks at the passages shown"):
        task()
    with pytest.raises(ValidationError, match=r"`abstained` needs `prompt\.unknown`"):
        task(metrics=["abstained"])
    assert task(retrieval={"retriever": "none"}).prompt.target is None
    assert task(metrics=["abstained"], prompt={"template": "{{ q }}", "unknown": ["unknown"]})


def test_a_ranking_whose_length_the_gold_decides_is_measured_to_its_end() -> None:
    block = {"retriever": "oracle", "corpus": {"file": "x"}, "gold": "{{ g }}"}
    fixed, counted = (RetrievalBlock.model_validate(block | more) for more in ({"k": 4}, {"n_distractors": 3}))
    assert metric_name(MetricBlock(metric="precision"), fixed.cut) == "precision@4"
    assert metric_name(MetricBlock(metric="precision"), counted.cut) == "precision"
    outcome = Outcome(hits=("g1", "x", "g2", "y"), gold_ids=frozenset({"g1", "g2"}), k=counted.cut, retrieved=True)
    assert METRIC_FUNCTIONS.get("precision").score(outcome) == Score(0.5)
    assert METRIC_FUNCTIONS.get("recall").score(outcome) == Score(1.0)


def test_several_chunks_of_one_document_count_once() -> None:
    outcome = Outcome(hits=("d1", "d1", "d2", "d1"), gold_ids=frozenset({"d1"}), k=4, retrieved=True)
    found = {name: METRIC_FUNCTIONS.get(name).score(outcome) for name in ("recall", "precision", "ndcg")}
    assert found == {"recall": Score(1.0), "precision": Score(0.25), "ndcg": Score(1.0)}
