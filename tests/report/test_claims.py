"""A claim with few verdicts is a sentence, with many a list, and its reasons never contradict its intervals."""

from __future__ import annotations

from typing import Any

from evalspec.report.claims import claims_of


def verdict(place: int, **changed: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "hypothesis": f"votes (turns = {place})",
        "claim": "Votes help",
        "metric": "exact_match",
        "statistic": 0.039,
        "ci_low": -0.01,
        "ci_high": 0.061,
        "verdict": "undecided",
        "reason": "overlap",
        "value_a": 1.0,
        "value_b": 0.961,
        "p_holm": 0.9647,
        "components": None,
    }
    return row | changed


def test_an_interval_without_zero_that_the_correction_undoes_is_not_called_no_difference() -> None:
    [claim] = claims_of([verdict(2), verdict(10, ci_low=0.017)], ["votes"])
    assert "turns = 2 (no difference that these samples show: +3.9 points [−1.0,\u00a06.1])" in claim.said
    assert "turns = 10 (p = 0.9647 after the correction: +3.9 points [1.7,\u00a06.1])" in claim.said


def test_more_than_four_verdicts_of_a_claim_are_a_list_and_a_count() -> None:
    few, many = ([verdict(place) for place in range(count)] for count in (4, 5))
    many[3] |= {"verdict": "supported", "reason": None}
    assert claims_of(few, ["votes"])[0].listed == ()
    [claim] = claims_of(many, ["votes"])
    assert claim.said == "supported in 1, undecided in 4 of 5:"
    assert claim.listed[0] == "supported for turns = 3 (+3.9 points [−1.0,\u00a06.1])"
    assert len(claim.listed) == 5
