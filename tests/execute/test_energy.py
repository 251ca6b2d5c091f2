"""Energy of runs that are shorter than the counter's steps: a device of constant power, and a real model on it.

The device is made up, since a CPU tells no energy: it draws 40 W whatever it does, so joules are 40 times seconds.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from evalspec.execute import meters as metering
from evalspec.execute.measuring import ForkedAlone, Measured, measure
from evalspec.execute.meters import ProcessMeters
from evalspec.execute.opening import open_backend
from evalspec.models.card import find_model
from evalspec.plan.measurements import Point
from evalspec.spec.model import ModelBlock

WATTS = 40.0
POINTS = {Point("prefill", 64, 1): [0, 1], Point("decode", 64, 1): [0, 1], Point("throughput", 64, 2): [0, 1]}


class Powered(ProcessMeters):
    """A device that draws 40 W."""

    def joules(self) -> float | None:
        return WATTS * time.perf_counter()

    def joules_since(self, before: float | None, seconds: float) -> float | None:
        assert before is not None
        return WATTS * time.perf_counter() - before if seconds >= metering.ENERGY_SECONDS else None


def measured(monkeypatch: pytest.MonkeyPatch, longest: int | None = None, step: float = 0.3) -> list[Measured]:
    monkeypatch.setattr(metering, "ENERGY_SECONDS", step)
    backend = open_backend(find_model("m", ModelBlock(weights="zoo/mamba"), Path()))
    subject = ForkedAlone(backend)
    return list(measure(subject, Powered(), POINTS, vocabulary=1500, new_tokens=4, warmup=1, seed=0, longest=longest))


def test_short_runs_get_their_share_of_what_many_took(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(monkeypatch)
    assert len(found) == 6
    for one in found:
        assert one.energy_joules is not None
        assert one.seconds is not None
        assert one.seconds < 0.3
        assert 0.05 < one.energy_joules / (WATTS * one.seconds) < 20, "machines are noisy, orders of magnitude are not"
    by_point = {one.point: one.energy_joules for one in found if one.repeat == 0}
    assert {one.point: one.energy_joules for one in found if one.repeat == 1} == by_point


def test_a_run_of_a_second_or_more_is_read_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    for one in measured(monkeypatch, step=1e-9):
        assert one.seconds is not None
        assert one.energy_joules == pytest.approx(WATTS * one.seconds, rel=0.2, abs=0.05)


def test_an_answer_that_cannot_be_made_long_enough_gets_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {one.point.kind: one.energy_joules for one in measured(monkeypatch, longest=68)}
    assert found["decode"] is None
    assert found["prefill"]
    assert found["throughput"]


def test_what_is_measured_does_not_depend_on_whether_energy_is(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = open_backend(find_model("m", ModelBlock(weights="zoo/mamba"), Path()))
    plain = list(
        measure(ForkedAlone(backend), ProcessMeters(), POINTS, vocabulary=1500, new_tokens=4, warmup=1, seed=0)
    )
    told = measured(monkeypatch)
    assert [replace(one, seconds=None, energy_joules=None, peak_memory_bytes=None, baseline_memory_bytes=None)
            for one in plain] == [
        replace(one, seconds=None, energy_joules=None, peak_memory_bytes=None, baseline_memory_bytes=None)
        for one in told
    ]  # fmt: skip
    assert all(one.energy_joules is None for one in plain)
