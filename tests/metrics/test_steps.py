"""Written steps are judged place by place; the world's own steps are right, and every alteration shows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalspec.data.worlds.arithmetic import draw_dial
from evalspec.data.worlds.chance import stream
from evalspec.metrics import METRIC_FUNCTIONS, Outcome
from evalspec.prompting.steps import corrupt_number, first_steps, last_number, steps


def score(metric: str, output: str, right: str, answer: str) -> float | None:
    outcome = Outcome(output=output, targets=(answer,), steps=tuple(steps(right)))
    found = METRIC_FUNCTIONS.get(metric).score(outcome)
    return None if found is None else found.value


@given(st.integers(0, 10_000), st.integers(1, 20))
def test_the_worlds_own_steps_are_right(seed: int, turns: int) -> None:
    dial = draw_dial(stream("arithmetic", seed), turns)
    output = f"{dial.steps} Answer: {dial.answer}"
    assert len(steps(output)) == turns
    assert score("steps_correct", output, dial.steps, dial.answer) == 1.0
    assert score("first_wrong_step", output, dial.steps, dial.answer) is None
    assert score("right_answer_wrong_steps", output, dial.steps, dial.answer) == 0.0


@given(st.integers(0, 10_000), st.integers(1, 20), st.data())
def test_one_altered_step_is_found_at_its_place(seed: int, turns: int, data: st.DataObject) -> None:
    dial = draw_dial(stream("arithmetic", seed), turns)
    written = steps(dial.steps)
    place = data.draw(st.integers(1, turns))
    written[place - 1] = corrupt_number(written[place - 1], seed)
    output = f"{', '.join(written)}. Answer: {dial.answer}"
    assert score("steps_correct", output, dial.steps, dial.answer) == pytest.approx((turns - 1) / turns)
    assert score("first_wrong_step", output, dial.steps, dial.answer) == place
    assert score("right_answer_wrong_steps", output, dial.steps, dial.answer) == 1.0
    assert score("right_answer_wrong_steps", f"{', '.join(written)}.", dial.steps, dial.answer) == 0.0


@pytest.mark.parametrize(
    ("output", "share", "first"),
    [
        ("a, b, c. Answer: 1", 1.0, None),
        ("a,  b. Answer: 1", 2 / 3, 3),
        ("a, b, c, d. Answer: 1", 3 / 4, 4),
        ("x, a, b, c. Answer: 1", 0.0, 1),
        ("", 0.0, 1),
    ],
)
def test_steps_too_few_or_too_many_are_wrong(output: str, share: float, first: float | None) -> None:
    assert score("steps_correct", output, "a, b, c.", "1") == pytest.approx(share)
    assert score("first_wrong_step", output, "a, b, c.", "1") == first


def test_a_row_without_right_steps_is_not_judged() -> None:
    assert METRIC_FUNCTIONS.get("steps_correct").score(Outcome(output="a", targets=("1",))) is None


def test_the_first_steps_of_an_output() -> None:
    output = " 3 + 9 = 2, 2 - 4 = 8, 8 + 1 = 9. Answer: 9"
    assert steps(output) == ["3 + 9 = 2", "2 - 4 = 8", "8 + 1 = 9"]
    assert first_steps(output, 2) == "3 + 9 = 2, 2 - 4 = 8"
    assert first_steps(output, 0) == ""
    assert first_steps(output, 9) == "3 + 9 = 2, 2 - 4 = 8, 8 + 1 = 9"
    assert first_steps(output, 0.5) == "3 + 9 = 2"
    assert first_steps("one\ntwo\n#### 2", 1, separator="\n", end="####") == "one"


@given(st.sampled_from(["", "a = ", "x"]), st.integers(0, 999_999), st.sampled_from(["", ".", " kg"]), st.integers())
def test_a_corrupted_number_differs_has_as_many_digits_and_is_the_same_each_time(
    before: str, number: int, after: str, seed: int
) -> None:
    text = f"{before}{number}{after}"
    other = corrupt_number(text, seed)
    assert other != text
    assert other == corrupt_number(text, seed)
    digits = "".join(filter(str.isdigit, text))
    changed = "".join(filter(str.isdigit, other))
    assert len(changed) == len(digits)
    assert len(changed) == 1 or not changed.startswith("0")
    assert other.replace(changed, "", 1) == text.replace(digits, "", 1)


def test_every_other_digit_is_drawn_about_as_often() -> None:
    drawn = [corrupt_number("8 + 1 = 9", seed)[-1] for seed in range(900)]
    assert set(drawn) == set("012345678")
    assert all(60 < drawn.count(digit) < 145 for digit in set(drawn))  # 100 each, 4.5 standard deviations


def test_a_text_without_a_number_stays_as_it_is() -> None:
    assert corrupt_number("nothing", 1) == "nothing"
    assert last_number("nothing") is None
