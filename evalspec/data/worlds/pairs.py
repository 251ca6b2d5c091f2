"""Key-value records: a list in which each word is a key once, and what is asked is one key's value."""

from __future__ import annotations

from random import Random

from evalspec.data.worlds.chance import pick, shuffled
from evalspec.data.worlds.lexicon import KEYS


def draw_pairs(rng: Random, n: int) -> list[tuple[str, str]]:
    """`n` keys and their values, all different, and no key is also a value, so that each is seen once in the list.

    Where there are too few words for that, several keys share a value.
    """
    words = shuffled(rng, KEYS, min(2 * n, len(KEYS)))
    keys, values = words[:n], words[n:]
    return list(zip(keys, values if len(values) == n else [pick(rng, values) for _ in keys], strict=True))
