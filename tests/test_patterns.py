"""A spec's regular expressions end."""

from __future__ import annotations

import re
import signal
import threading
import time
from pathlib import Path

import pytest

from evalspec import patterns
from evalspec.errors import EvalspecError, RunError
from evalspec.metrics.filters import extract
from evalspec.metrics.text import literal_match
from evalspec.prompting.templates import compile_template
from evalspec.spec.extraction import StepBlock
from evalspec.spec.metric import MetricBlock

ENDLESS, TEXT = "(a+)+$", "a" * 60 + "b"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "SECONDS", 0.2)


def test_a_pattern_that_takes_for_ever_is_stopped_and_named() -> None:
    began = time.monotonic()
    with pytest.raises(RunError, match=re.escape("the pattern '(a+)+$' took more than 0.2 s on one text")):
        patterns.matches(re.compile(ENDLESS), TEXT)
    assert time.monotonic() - began < 5


def test_others_give_what_re_gives() -> None:
    pattern = re.compile(r"(\d)(\d)?")
    assert [match.groups() for match in patterns.matches(pattern, "12 3")] == [("1", "2"), ("3", None)]
    assert patterns.replaced(pattern, r"<\1>", "12 3 45", 2) == "<1> <3> 45"


def test_filters_metrics_and_templates_are_bounded() -> None:
    for step in ({"regex": ENDLESS}, {"replace": ENDLESS, "by": ""}):
        with pytest.raises(RunError, match="took more than"):
            extract(TEXT, [StepBlock.model_validate(step)])
    with pytest.raises(RunError, match="took more than"):
        literal_match(
            TEXT, ["a"], MetricBlock.model_validate({"metric": "exact_match", "regexes_to_ignore": [ENDLESS]})
        )
    template = compile_template("{{ text | regex_replace('(a+)+$', '') }}", Path(), "tasks.t.prompt")
    with pytest.raises(EvalspecError, match=r"tasks\.t\.prompt.*took more than"):
        template.render({"text": TEXT})


def test_a_timer_of_someone_else_goes_on() -> None:
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(time.monotonic()))
    theirs = signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        patterns.matches(re.compile("a"), TEXT)
        time.sleep(0.8)
        assert len(rung) == 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, *theirs)
        signal.signal(signal.SIGALRM, before)


def test_elsewhere_than_in_the_main_thread_it_works_unbounded() -> None:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(len(patterns.matches(re.compile("a"), TEXT))))
    thread.start()
    thread.join()
    assert found == [60]
