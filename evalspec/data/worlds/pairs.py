"""Key-value records: a list in which each word is a key once, and what is asked is one key's value."""

from __future__ import annotations

from random import Random

from evalspec.data.worlds.chance import pick, shuffled
from evalspec.data.worlds.lexicon import KEYS, NAMES


def draw_pairs(rng: Random, n: int) -> list[tuple[str, str]]:
    """`n` different keys, all of them common nouns, each with a name as its value: "lantern: Anna".

    The values differ too as long as there are as many names; beyond that several keys share one.
    """
    keys = shuffled(rng, KEYS, n)
    values = shuffled(rng, NAMES, n)
    values += [pick(rng, NAMES) for _ in range(n - len(values))]
    return list(zip(keys, values, strict=True))
