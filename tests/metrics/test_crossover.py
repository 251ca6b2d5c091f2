"""From which length on: medians with intervals that cover, and claims only where they do not overlap."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from evalspec.metrics.crossover import coverage, crossover, crossovers, median_interval, verdict_rows


@pytest.mark.parametrize("n", [5, 6, 9, 20, 40])
def test_the_interval_is_scipys_and_covers_what_it_says(n: int) -> None:
    chance = np.random.default_rng(n)
    values = chance.lognormal(size=n)
    found = median_interval(list(values))
    assert found.value == np.median(values)
    if n >= 6:  # below, no interval of order statistics reaches 95 %, and scipy gives none
        theirs = stats.quantile_test(values, q=np.median(values), p=0.5).confidence_interval(0.95)
        assert (found.low, found.high) == (theirs.low, theirs.high)
        assert found.level >= 0.95
    draws = np.sort(chance.lognormal(size=(4000, n)), axis=1)
    k = int(np.searchsorted(np.sort(values), found.low)) + 1
    covered = np.mean((draws[:, k - 1] <= 1.0) & (draws[:, n - k] >= 1.0))  # the median of this distribution is 1
    assert covered == pytest.approx(coverage(n, k), abs=0.02)


def times(label: str, medians: dict[int, float], repeats: int = 6, spread: float = 0.02) -> list[dict[str, Any]]:
    return [
        {"label": label, "kind": "prefill", "length": length, "batch": 1, "tokens": 1, "device": "CPU",
         "seconds": middle * (1 + spread * (n / (repeats - 1) - 0.5)), "state_bytes": 100}
        for length, middle in medians.items() for n in range(repeats)
    ]  # fmt: skip


def found_of(*rows: list[dict[str, Any]]) -> Any:
    [one] = [one for one in crossovers([row for part in rows for row in part]) if one.quantity == "prefill"]
    return one


def test_a_model_is_ahead_from_where_its_interval_stays_below_the_others() -> None:
    line = times("scan", {128: 2.0, 256: 4.0, 512: 8.0, 1024: 16.0})
    square = times("attention", {128: 1.0, 256: 4.01, 512: 12.0, 1024: 40.0})
    one = found_of(line, square)
    assert (one.ahead, one.start, one.until) == ("scan", 512, 128)
    first, second, *_ = verdict_rows([one])
    assert (first["verdict"], first["statistic"], first["ci_low"], first["ci_high"]) == ("supported", 512, 256, 512)
    assert (second["verdict"], second["statistic"]) == ("refuted", None)


def test_a_lead_that_is_lost_at_a_longer_length_is_no_lead() -> None:
    one = found_of(times("a", {1: 1.0, 2: 1.0, 4: 3.0, 8: 1.0}), times("b", {1: 2.0, 2: 2.0, 4: 2.0, 8: 2.0}))
    assert (one.ahead, one.start, one.until) == ("a", 8, 4)


def test_where_the_longest_length_does_not_separate_nothing_is_said() -> None:
    one = found_of(times("a", {1: 1.0, 2: 2.0}), times("b", {1: 5.0, 2: 2.01}))
    assert one.ahead is None
    assert {row["verdict"] for row in verdict_rows([one])} == {"undecided"}


def test_too_few_repeats_separate_nothing() -> None:
    assert found_of(times("a", {1: 1.0}, repeats=4), times("b", {1: 9.0}, repeats=4)).ahead is None
    assert found_of(times("a", {1: 1.0}, repeats=5), times("b", {1: 9.0}, repeats=5)).ahead == "a"


def test_times_of_different_devices_are_not_compared_but_bytes_are() -> None:
    rows = times("a", {1: 1.0}) + [{**row, "device": "GPU", "state_bytes": 7} for row in times("b", {1: 9.0})]
    [one] = crossovers(rows)
    assert (one.quantity, one.ahead) == ("state", "b")


def test_times_of_models_that_each_ran_on_two_devices_are_not_compared() -> None:
    begun = times("a", {1: 1.0}) + times("b", {1: 9.0})
    gone_on = [{**row, "device": "GPU"} for row in times("a", {2: 1.0}) + times("b", {2: 9.0})]
    assert [one.quantity for one in crossovers(begun + gone_on)] == ["state"]


def test_models_without_a_common_length_are_not_compared() -> None:
    assert crossover("prefill", ("a", {1: median_interval([1.0])}), ("b", {2: median_interval([1.0])})) is None
