"""Progress counts tokens that are fed and generated, and says a time left that the rate so far gives."""

from __future__ import annotations

import io

import pytest

from evalspec.runs import progress
from evalspec.runs.progress import Lines
from evalspec.telling import duration


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def test_off_a_terminal_a_plain_line_every_ten_seconds_says_the_time_left(clock: list[float]) -> None:
    stream = io.StringIO()
    lines = Lines(stream)
    lines.begin("mamba", 1000, 50)
    for _ in range(4):  # 25 tokens in 5 seconds
        clock[0] += 5
        lines.advance(25)
    lines.end()
    assert stream.getvalue().split("\n") == [
        "mamba: 50 samples, 1,000 distinct tokens",
        "  mamba:   5 %, 5 tokens/s, about 3 min left".ljust(70),
        "  mamba:  10 %, 5 tokens/s, about 3 min left".ljust(70),
        "mamba: done in 20.0 s",
        "",
    ]


def test_generated_tokens_count_and_answers_are_expected_to_be_as_long_as_before(clock: list[float]) -> None:
    stream = io.StringIO()
    lines = Lines(stream)
    lines.begin("mamba", 100, 10, new_tokens=10 * 40)
    clock[0] += 10
    lines.advance(20, generated=10, spared=30)  # one answer, a quarter of what it was allowed
    # 80 tokens to feed, and 9 answers of 10 tokens, at 3 tokens a second
    assert "at most 400 new ones" in stream.getvalue()
    assert "15 %, 3 tokens/s, about 57 s left" in stream.getvalue()


def test_tokens_that_are_fed_twice_give_no_negative_time(clock: list[float]) -> None:
    stream = io.StringIO()
    lines = Lines(stream)
    lines.begin("mamba", 100, 10)
    clock[0] += 10
    lines.advance(150)
    assert "100 %, 15 tokens/s, about 0 s left" in stream.getvalue()


@pytest.mark.parametrize(("seconds", "said"), [(0, "0 s"), (119, "119 s"), (600, "10 min"), (9000, "2.5 h")])
def test_durations_are_read_in_their_unit(seconds: float, said: str) -> None:
    assert duration(seconds) == said
