"""Pattern induction: words that come again and again, and which one comes next.

    river lamp Anna ⏎ river lamp Anna ⏎ river lamp      → Anna

With `repeats` 0 nothing was shown and the answer is a guess; each repeat is one more example of the same pattern. A
`gap` puts words between the last repeat and the question that have nothing to do with it.
"""

from __future__ import annotations

from typing import Any

from evalspec.data.generators import GENERATORS
from evalspec.data.worlds import lexicon
from evalspec.data.worlds.chance import between, shuffled, stream
from evalspec.data.worlds.contexts import check_count, pieces
from evalspec.errors import DataError

DEFAULT_COUNT = 200
MOST_REPEATS = 100_000


@GENERATORS.register("world.patterns")
def patterns(
    seed: int, count: int | None = None, *, period: int = 8, repeats: int = 1, gap: int = 0
) -> list[dict[str, Any]]:
    """`period` different words, `repeats` times over, one repeat a line; then its beginning, and the next is asked for.

    Columns: id, lines (the repeats, and the gap as a line of its own), start (one word of the pattern or more), answer
    (the next one), options (all its words, sorted), text (the pattern `repeats` + 1 times as one text), period,
    repeats, gap, length (of what stands before the answer). Patterns depend on seed and period alone, so more repeats
    begin as fewer do. DataError unless 2 ≤ period and period + gap words are known.
    """
    check_count("world.patterns", "period", period, 2)
    check_count("world.patterns", "repeats", repeats, 0, MOST_REPEATS)
    check_count("world.patterns", "gap", gap, 0)
    if period + gap > len(lexicon.WORDS):
        raise DataError(
            f"`world.patterns` knows {len(lexicon.WORDS)} words; a period of {period} and a gap of {gap} need "
            f"{period + gap} different ones"
        )
    rows = []
    for number in range(DEFAULT_COUNT if count is None else count):
        rng = stream("patterns", seed, period, number)
        at = between(rng, 1, period - 1)
        words = shuffled(rng, lexicon.WORDS, period + gap)
        pattern, noise = words[:period], words[period:]
        line = " ".join(pattern)
        lines = [line] * repeats + ([" ".join(noise)] if gap else [])
        start = " ".join(pattern[:at])
        rows.append(
            {
                "id": f"t{seed}-{number:04d}",
                "lines": lines,
                "start": start,
                "answer": pattern[at],
                "options": sorted(pattern),
                "text": "\n".join([line] * (repeats + 1)),
                "period": period,
                "repeats": repeats,
                "gap": gap,
                "length": pieces("\n".join([*lines, start])),
            }
        )
    return rows
