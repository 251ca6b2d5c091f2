"""Chains of steps take answers from outputs as their sources define them, and say when they found none."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from evalspec.metrics.filters import STEPS as FUNCTIONS
from evalspec.metrics.filters import Extraction, extract, majority, vote
from evalspec.spec.extraction import Chain
from evalspec.spec.needs import STEPS

INVALID = Extraction("[invalid]", found=False)


def take(text: str, *steps: Any) -> Extraction:
    return extract(text, TypeAdapter(Chain).validate_python(list(steps)))


def test_every_named_step_has_its_function_and_no_other() -> None:
    assert FUNCTIONS.names() == sorted(STEPS)


def test_a_chain_without_steps_leaves_the_output_as_it_is() -> None:
    assert take(" Paris \n") == Extraction(" Paris \n")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("So she makes 9 * 2 = $18 every day.", "18"),
        ("The profit is $1,234,567.", "1234567"),
        ("#### 70,000", "70000"),
        ("It costs €12.50.", "12.50"),
        ("from -3 to -$5", "-5"),
        ("3 + 9 = 2, 2 - 4 = 8. Answer: 8", "8"),
        ("18.00", "18.00"),
    ],
)
def test_the_last_number_is_cleansed_as_answers_of_gsm8k_are(text: str, number: str) -> None:
    assert take(text, "last_number") == Extraction(number)


@given(st.text(alphabet="0123456789.,- ab\n", max_size=30))
def test_the_last_number_equals_the_published_cleansing(text: str) -> None:
    """Kojima et al.: commas out, every match of the pattern, the last one, a full stop at its end dropped."""
    found = list(re.findall(r"-?\d+\.?\d*", text.replace(",", "")))
    expected = None if not found else found[-1][:-1] if found[-1].endswith(".") else found[-1]
    assert take(text, "last_number") == (INVALID if expected is None else Extraction(expected))


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A train is faster. So the answer is (C).", "C"),
        ("The answer is B, not D", "B"),
        ("Answer: E", "E"),
        ("answer is: (a)", None),
        ("I choose (B) over (C)", "C"),
        ("C", "C"),
        ("A", "A"),
        ("A dog barks and I run", None),
        ("It is D because B is wrong.", "B"),
        ("no letter here", None),
    ],
)
def test_the_letter_of_a_choice(text: str, letter: str | None) -> None:
    assert take(text, "choice_letter") == (INVALID if letter is None else Extraction(letter))


def test_plain_steps() -> None:
    assert take("\n  first \nsecond", "first_line") == Extraction("first")
    assert take(" \n ", "first_line") == INVALID
    assert take(" Yes. ", "strip", "lower") == Extraction("yes.")
    assert take(" Yes. ", "remove_whitespace", "upper") == Extraction("YES.")
    assert take("1,000 kg", {"replace": "[, a-z]"}) == Extraction("1000")
    assert take("b=2", {"replace": r"(\w)=(\w)", "by": r"\2=\1"}) == Extraction("2=b")
    assert take("yes", {"map": {"yes": "A"}}) == Extraction("A")
    assert take("maybe", {"map": {"yes": "A"}, "fallback": "?"}) == Extraction("?", found=False)


PATTERNS = ("#### (-?[0-9.,]+)", r"(-?[$0-9.,]{2,})|(-?[0-9]+)", "[0-9]+", "a(b)?", "(a)|(b)?", "(x*)")


@given(st.sampled_from(PATTERNS), st.text(alphabet="#$0129.,-ab x", max_size=20), st.integers(-3, 2))
def test_the_regex_step_equals_lm_evaluation_harness(pattern: str, text: str, pick: int) -> None:
    """findall, group_select, the first group that is not empty, stripped, else the fallback."""
    found = re.findall(pattern, text)
    if not -len(found) <= pick < len(found):
        expected = INVALID  # the harness raises IndexError here, or falls back where nothing matched
    elif isinstance(found[pick], tuple):
        filled = [part for part in found[pick] if part]
        expected = Extraction(filled[0].strip()) if filled else INVALID
    else:
        expected = Extraction(found[pick].strip())
    assert take(text, {"regex": pattern, "pick": pick}) == expected


def test_the_two_filters_of_gsm8k() -> None:
    output = "He has 3 + 4 = 7 apples.\n#### 7\nQuestion: 12 pears"
    assert take(output, {"regex": "#### (\\-?[0-9\\.\\,]+)"}) == Extraction("7")
    assert take(output, {"regex": "(-?[$0-9.,]{2,})|(-?[0-9]+)", "pick": "last"}) == Extraction("12")
    assert take("seven", {"regex": "#### (\\-?[0-9\\.\\,]+)"}) == INVALID


def test_a_group_by_number_or_name() -> None:
    assert take("x=1 y=2", {"regex": r"(\w)=(\d)", "pick": "last", "group": 2}) == Extraction("2")
    assert take("x=1 y=2", {"regex": r"(?P<key>\w)=(\d)", "group": "key"}) == Extraction("x")
    assert take("x=1", {"regex": r"(\w)=(\d)", "group": 0}) == Extraction("x=1")
    assert take("b", {"regex": "(a)|(b)", "group": 1}) == INVALID


def test_a_field_of_json_wherever_the_object_stands() -> None:
    assert take('Sure!\n```json\n{"answer": 12, "unit": "kg"}\n```', {"json_field": "answer"}) == Extraction("12")
    assert take('{"a": {"b": "x y"}}', {"json_field": "a.b"}) == Extraction("x y")
    assert take('{broken {"answer": [1, 2]}', {"json_field": "answer"}) == Extraction("[1, 2]")
    assert take('{"answer": null}', {"json_field": "answer"}) == INVALID
    assert take('{"other": 1}', {"json_field": "answer"}) == INVALID
    assert take("[" * 5000 + "{" * 5000, {"json_field": "answer"}) == INVALID


def test_the_steps_after_one_that_found_nothing_go_on_with_its_fallback() -> None:
    assert take("none", "last_number", "upper") == Extraction("[INVALID]", found=False)
    assert take("none", {"step": "last_number", "fallback": "0"}, {"map": {"0": "zero"}}).found is False


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=8), st.integers(1, 8))
def test_a_vote_is_the_majority_of_the_first_n_and_ties_go_to_the_first_seen(outputs: list[str], n: int) -> None:
    chain = TypeAdapter(Chain).validate_python(["strip", {"vote": n}])
    verdict = vote([f" {text}" for text in outputs], chain)
    if n > len(outputs):
        assert verdict is None
    else:
        assert verdict == Extraction(Counter(outputs[:n]).most_common(1)[0][0])


def test_answers_that_were_not_found_can_abstain() -> None:
    chain = TypeAdapter(Chain).validate_python(["last_number", {"vote": 3, "abstain": True}])
    assert vote(["none", "none", "7"], chain) == Extraction("7")
    assert vote(["none", "none", "none"], chain) == INVALID
    assert vote(["none", "none", "none", "7"], chain) == INVALID, "only the first three vote"


def test_answers_that_were_not_found_vote_as_their_fallback() -> None:
    assert majority([INVALID, Extraction("7"), INVALID]) == INVALID
    assert majority([Extraction("7"), INVALID]) == Extraction("7")


# What lm-eval 0.4.13's `multi_choice_regex` makes of these (its class was run on 1,500 random cases beside the step).
OPTIONS = ("Guilty", "Guilty of Romance", "No!")


@pytest.mark.parametrize(
    ("text", "settings", "letter"),
    [
        ("(A), or rather (C).", {}, "(A)"),
        ("(A), or rather (C).", {"pick": "last"}, "(C)"),
        ("It is Guilty of Romance", {}, "(B)"),  # the longer option, though the shorter one stands there too
        ("It is guilty of romance", {}, None),
        ("It is GUILTY of romance", {"ignore_case": True}, "(B)"),
        ("I say no.", {"ignore_case": True, "ignore_punctuation": True}, "(C)"),
        ("Guilty? No!", {"pick": "last"}, "(C)"),
        ("Guilty , of Romance", {"ignore": [" ,"]}, "(B)"),
        ("The answer: B", {}, "(B)"),
        ("The answer is B", {}, None),
        ("The answer: D", {}, None),
    ],
)
def test_the_option_that_an_answer_names(text: str, settings: dict[str, Any], letter: str | None) -> None:
    chain = TypeAdapter(Chain).validate_python([{"option": r"\([A-Z]\)", **settings}])
    assert extract(text, chain, OPTIONS) == (INVALID if letter is None else Extraction(letter))
    assert vote([text] * 3, [*chain, *TypeAdapter(Chain).validate_python([{"vote": 3}])], OPTIONS) == extract(
        text, chain, OPTIONS
    )
