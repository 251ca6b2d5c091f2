"""Times that are launching and no arithmetic, told from measurements."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evalspec.metrics.overhead import overheads
from evalspec.report.alone import Alone, sentences


def rows(label: str, passes: Mapping[int, float], step: float | None = None) -> list[dict[str, Any]]:
    """Six repeats of each pass, milliseconds; a decoding step behind the shortest."""
    found = [("prefill", length, length, seconds) for length, seconds in passes.items()]
    if step is not None:
        found.append(("decode", min(passes), 10, 10 * step))
    return [
        {"label": label, "kind": kind, "length": length, "batch": 1, "tokens": tokens, "seconds": ms / 1e3 * factor,
         "state_bytes": 1, "device": "NVIDIA H200"}
        for kind, length, tokens, ms in found for factor in (0.98, 0.99, 1.0, 1.0, 1.01, 1.02)
    ]  # fmt: skip


FLAT = {128: 5.9, 512: 5.7, 2048: 5.5, 8192: 6.1}
GROWING = {128: 4.8, 512: 6.3, 2048: 7.7, 8192: 23.0}


def test_a_pass_over_many_more_tokens_in_the_same_time_is_launching() -> None:
    (one,) = overheads([*rows("flat", FLAT, step=5.4), *rows("growing", GROWING, step=0.25)])
    assert (one.label, one.shortest, one.longest) == ("flat", 128, 8192)
    assert one.step is not None
    assert abs(one.step.value - 5.4e-3) < 1e-4


def test_a_recorded_step_is_not_bound_by_it() -> None:
    (one,) = overheads(rows("flat", FLAT, step=0.3))
    assert one.step is None


def test_eight_times_the_tokens_are_too_few_to_tell() -> None:
    """Weights are read once, however few hundred tokens there are: so long a pass may well be flat."""
    assert overheads(rows("flat", {128: 5.0, 1024: 5.1}, step=5.0)) == []
    assert overheads([]) == []


def test_the_page_says_so() -> None:
    said = sentences(Alone(("flat", "growing"), (*rows("flat", FLAT, step=5.4), *rows("growing", GROWING)), ()))
    assert said[-1] == (
        "Not the architecture: flat reads 8,192 tokens in 6.1 ms and 128 in 5.9 ms, and a decoding step takes 5.4 ms. "
        "So long it takes to launch its operations one by one."
    )
    assert not any(
        "Not the architecture" in one for one in sentences(Alone(("growing",), tuple(rows("growing", GROWING)), ()))
    )
