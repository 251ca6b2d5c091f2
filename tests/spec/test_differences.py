"""Two specs differ in what they ask, and not in how they are written."""

from __future__ import annotations

from pathlib import Path

import pytest

from evalspec.runs.run import spec_text
from evalspec.spec import loads
from evalspec.spec.differences import Difference, differences, spec_differences

ROOT = Path(__file__).parents[2]
SPEC = """name: quiz
models:
  alpha: {weights: zoo/mamba}
  beta: {extends: alpha, dtype: bfloat16}
tasks:
  qa:
    data: {file: x.jsonl}
    prompt: {template: t.jinja, target: "{{ answer }}", shots: 2}
    decode: {max_tokens: 4}
    metrics: [exact_match, token_f1]
sweep:
  tasks.qa.prompt.shots.n: [0, 2]
"""


def said(old: str, new: str) -> list[str]:
    assert old in SPEC
    found = spec_differences(SPEC, SPEC.replace(old, new))
    assert found is not None
    return [difference.words for difference in found]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("shots: 2}", "shots: {n: 2, draws: 1}}"),  # a shorthand, and a default that is written
        ("{extends: alpha, dtype: bfloat16}", "{weights: zoo/mamba, dtype: bfloat16, backend: auto}"),
        ("metrics: [exact_match, token_f1]", "metrics: [{metric: exact_match}, token_f1]  # a comment"),
        ("    decode: {max_tokens: 4}\n", "    decode:\n      max_tokens: 4\n      stop: []\n"),
        ("  alpha: {weights: zoo/mamba}", "  _base: {weights: zoo/mamba}\n  alpha: {extends: _base}"),
    ],
)
def test_another_way_of_writing_the_same_is_no_difference(old: str, new: str) -> None:
    assert said(old, new) == []


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("shots: 2}", "shots: {n: 2, draws: 3}}", ["tasks.qa.prompt.shots.draws: 1 → 3"]),
        ("{max_tokens: 4}", "{max_tokens: 4, temperature: 0.5}", ["tasks.qa.decode.temperature: 0.0 → 0.5"]),
        ("zoo/mamba}", "zoo/mamba2}",
         [f"models.{model}.weights: zoo/mamba → zoo/mamba2" for model in ("alpha", "beta")]),
        ("[0, 2]", "[0, 2, 4]", ["sweep.tasks.qa.prompt.shots.n: [0, 2] → [0, 2, 4]"]),
        (", token_f1]", "]", ["tasks.qa.metrics: [exact_match, token_f1] → [exact_match]"]),
        (", token_f1]", ", contains_all]", ["tasks.qa.metrics[1].metric: token_f1 → contains_all"]),
        ("  beta: {extends: alpha, dtype: bfloat16}\n", "",
         ["models.beta: only in A, {weights: zoo/mamba, dtype: bfloat16}"]),
        ("sweep:\n", "hypotheses: {}\nsweep:\n", []),
        ("    decode:", '    cluster: "{{ document }}"\n    decode:', ["tasks.qa.cluster: only in B, {{ document }}"]),
    ],
)  # fmt: skip
def test_a_key_is_named_with_both_values(old: str, new: str, words: list[str]) -> None:
    assert said(old, new) == words


def test_a_spec_that_was_changed_by_set_is_compared_with_the_file_that_it_came_from() -> None:
    text = SPEC.replace("file: x.jsonl", "generate: world.questions, count: 9").replace("t.jinja", "prompts/rag.jinja")
    loaded = loads(text, root=ROOT)
    changed = loads(text, ["tasks.qa.decode.max_tokens=9"], root=ROOT)
    stored, plain = spec_text(changed), spec_text(loaded)
    assert "extends" in plain and "extends" not in stored
    found = spec_differences(plain, stored)
    assert found is not None
    assert [difference.words for difference in found] == ["tasks.qa.decode.max_tokens: 4 → 9"]


def test_a_spec_of_another_state_of_the_language_is_compared_as_it_is_written() -> None:
    old = SPEC.replace("max_tokens: 4", "max_tokens: 4, beams: 2")
    found = spec_differences(old, SPEC)
    assert found == [Difference("tasks.qa.decode.beams", 2, None)]
    assert [spec_differences(text, SPEC) for text in ("", "{", "- a list", "\x00")] == [None] * 4


def test_a_stored_text_reads_nothing_from_the_disk() -> None:
    assert spec_differences("include: /etc/passwd\n" + SPEC, SPEC) == []


def test_any_two_mappings_are_told_apart() -> None:
    a = {"k": 1, "same": [1], "blocks": [{"x": 1}, {"x": 2}], "gone": None, "flag": True}
    b = {"k": "1", "same": [1], "blocks": [{"x": 1}, {"x": 3, "y": 0}], "new": {"z": [1]}, "flag": 1}
    assert [(d.key, d.a, d.b) for d in differences(a, b)] == [
        ("k", 1, "1"), ("blocks[1].x", 2, 3), ("blocks[1].y", None, 0), ("flag", True, 1), ("new", None, {"z": [1]}),
    ]  # fmt: skip
    assert [d.words for d in differences({"k": 1}, {"k": "1"})] == ['k: 1 → "1"']
    assert differences(a, b)[2].json() == {"key": "blocks[1].y", "b": 0}


def test_long_values_are_cut_where_they_differ() -> None:
    before = "word " * 40
    [found] = differences({"t": before + "left" + " end" * 40}, {"t": before + "right" + " end" * 40})
    a, b = found.shown
    assert a is not None and b is not None and max(len(a), len(b)) <= 62
    assert "left" in a and "right" in b and a.startswith("…") and a.endswith("…")
    assert found.json()["a"] == found.a  # whole for machines
    [found] = differences({"t": before}, {"t": before + "and one"})
    assert "and one" in str(found.shown[1]) and found.shown[0] != found.shown[1]
