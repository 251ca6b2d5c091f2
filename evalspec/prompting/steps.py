"""What templates can do to written steps: the filters `steps`, `first_steps`, `last_number` and `corrupt_number`.

    {{ outputs.main | first_steps(2) }}          3 + 9 = 2, 2 - 4 = 8, 8 + 1 = 9. Answer: 9   →   3 + 9 = 2, 2 - 4 = 8
    {{ outputs.main | steps | length }}          how many there are
    {{ "2 - 4 = 8" | corrupt_number(id) }}       2 - 4 = 5, the same for the same id each time
    {{ outputs.main | last_number }}             9

They are pure functions of what they are given, so that a plan stays what it is. A text that is not known yet stands in
a plan as a mark (`MARK`, see `prompting.stages`), which they pass on whole: all of the text might be left.
"""

from __future__ import annotations

import hashlib
import re

MARK = re.compile("\ue000([^\ue001]*)\ue001")
"""Stands for what a stage of this name will answer."""

_CURRENCY_AND_COMMAS = re.compile(r"[,$€£¥]")
_NUMBER = re.compile(r"-?\d+\.?\d*")
_DIGITS = re.compile(r"\d+")


def steps(text: str, separator: str = ", ", end: str = "Answer:") -> list[str]:
    """The steps of a text: what stands before the last `end` (the whole where there is none), split at `separator`.

    White space around a step and a full stop behind it do not belong to it; an empty step is none.
    """
    before, found, _ = text.rpartition(end) if end else ("", "", "")
    parts = (before if found else text).split(separator)
    stripped = [" ".join(part.split()).rstrip(".").rstrip() for part in parts]
    return [part for part in stripped if part]


def first_steps(text: str, n: float, separator: str = ", ", end: str = "Answer:") -> str:
    """The first `n` of a text's steps, joined again; a fraction below 1 is that share of them, rounded down."""
    if MARK.search(text):
        return text
    found = steps(text, separator, end)
    kept = int(n * len(found)) if isinstance(n, float) and n < 1 else int(n)
    return separator.join(found[: max(0, kept)])


def last_number(text: str) -> str | None:
    """The last number of a text, as GSM8K's answers are cleansed (arXiv 2205.11916); None where there is none.

    Commas and the signs $, €, £ and ¥ are removed, the last match of `-?\\d+\\.?\\d*` is taken, a full stop at its end
    dropped.
    """
    if MARK.search(text):
        return text
    found = _NUMBER.findall(_CURRENCY_AND_COMMAS.sub("", text))
    return found[-1].rstrip(".") if found else None


def corrupt_number(text: str, seed: object) -> str:
    """The text with its last run of digits replaced by another of the same length, drawn from (`seed`, the text).

    A longer number does not begin with 0. A text without a digit stays as it is.
    """
    matches = list(_DIGITS.finditer(text))
    if not matches or MARK.search(text):
        return text
    start, stop = matches[-1].span()
    right = int(text[start:stop])
    low = 10 ** (stop - start - 1) if stop - start > 1 else 0
    others = 10 ** (stop - start) - low - (right >= low)
    digest = hashlib.sha256(repr((str(seed), text)).encode()).digest()
    drawn = low + int.from_bytes(digest[:16], "big") % others
    return f"{text[:start]}{drawn + (low <= right <= drawn)}{text[stop:]}"
