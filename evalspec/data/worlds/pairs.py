"""Key-value records: a list in which each word is a key once, and what is asked is one key's value."""

from __future__ import annotations

from random import Random

from evalspec.data.worlds.chance import pick, shuffled
from evalspec.data.worlds.lexicon import KEYS


def draw_pairs(rng: Random, n: int) -> list[tuple[str, str]]:
    """`n` keys, all different, each with a value. No key is also a value, so that a key is seen once."""
    words = shuffled(rng, KEYS, min(2 * n, len(KEYS)))
    values = words[n:]
    return [(key, pick(rng, values)) for key in words[:n]]
