"""Energy of runs that are shorter than the counter's steps: a real model on a device of constant power and pace.

The device is made up, since a CPU tells no energy: a fed token takes a millisecond, a new one ten, and it draws 40 W
whatever it does. So the joules of a run must be 40 times its seconds, however they were found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from evalspec.execute import energy, measuring
from evalspec.execute.measuring import Measured, measure
from evalspec.execute.meters import ENERGY_SECONDS, ProcessMeters
from evalspec.execute.opening import open_backend
from evalspec.execute.subjects import ForkedAlone, Work
from evalspec.models.card import find_model
from evalspec.plan.forest import Tokens
from evalspec.plan.measurements import Point
from evalspec.spec.model import ModelBlock

WATTS = 40.0
POINTS = {Point("prefill", 64, 1): [0, 1], Point("decode", 64, 1): [0, 1], Point("throughput", 64, 2): [0, 1]}
SECONDS = {"prefill": 0.064, "decode": 0.04, "throughput": 0.128 + 0.08}


class Clock:
    """Time on the device."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Powered(ProcessMeters):
    """Its counter."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def joules(self) -> float | None:
        return WATTS * self.clock.now

    def joules_since(self, before: float | None, seconds: float) -> float | None:
        assert before is not None
        return WATTS * self.clock.now - before if seconds >= ENERGY_SECONDS else None


class Paced(ForkedAlone):
    """The model, which takes the device's time."""

    def __init__(self, clock: Clock, slower: float) -> None:
        super().__init__(open_backend(find_model("m", ModelBlock(weights="zoo/mamba"), Path())))  # type: ignore[arg-type]
        self.clock, self.slower = clock, slower

    def prepare(self, point: Point, prompts: Sequence[Tokens], new_tokens: int) -> Work:
        work = super().prepare(point, prompts, new_tokens)
        fed = 0 if point.kind == "decode" else point.length
        new = 0 if point.kind == "prefill" else new_tokens

        def run() -> None:
            work.run()
            self.clock.now += self.slower * point.batch * (0.001 * fed + 0.01 * new)

        return replace(work, run=run)


def measured(
    monkeypatch: pytest.MonkeyPatch, *, longest: int | None = None, slower: float = 1.0, counted: bool = True
) -> list[Measured]:
    clock = Clock()
    for module in (energy, measuring):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=clock.perf_counter))
    meters = Powered(clock) if counted else ProcessMeters()
    subject = Paced(clock, slower)
    return list(measure(subject, meters, POINTS, vocabulary=1500, new_tokens=4, warmup=1, seed=0, longest=longest))


def test_short_runs_get_their_share_of_what_many_took(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(monkeypatch)
    assert len(found) == 6
    for one in found:
        assert one.seconds == pytest.approx(SECONDS[one.point.kind])
        assert one.energy_joules == pytest.approx(WATTS * SECONDS[one.point.kind])


def test_a_run_of_a_second_or_more_is_read_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    for one in measured(monkeypatch, slower=50.0):
        assert one.seconds == pytest.approx(50 * SECONDS[one.point.kind])
        assert one.energy_joules == pytest.approx(WATTS * one.seconds)  # type: ignore[operator]


def test_an_answer_that_cannot_be_made_long_enough_gets_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {one.point.kind: one.energy_joules for one in measured(monkeypatch, longest=68)}
    assert found["decode"] is None
    assert found["prefill"] == pytest.approx(WATTS * SECONDS["prefill"])


def test_what_is_measured_does_not_depend_on_whether_energy_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(found: list[Measured]) -> list[Measured]:
        gone = dict.fromkeys(("energy_joules", "peak_memory_bytes", "baseline_memory_bytes", "seconds"))
        return [replace(one, **gone) for one in found]  # type: ignore[arg-type]

    plain = measured(monkeypatch, counted=False)
    assert all(one.energy_joules is None for one in plain)
    assert without(plain) == without(measured(monkeypatch))
