"""The generators of rows that a spec calls by name: `world.questions`, `.passages`, `.labels`, `.records`,
`.arithmetic`.

Columns:  questions  id, question, answer, gold_ids, kind, entity, attribute
          passages   id, text, kind, entity, attribute
          labels     id, text, label, options, category
          records    id, records (list of {key, value}), key, value, n, depth
          arithmetic id, question, steps, answer, turns
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evalspec.data.generators import GENERATORS
from evalspec.data.worlds import lexicon
from evalspec.data.worlds.arithmetic import draw_dial
from evalspec.data.worlds.chance import below, pick, shuffled, stream
from evalspec.data.worlds.facts import PEOPLE, THINGS, TOWNS, world_of
from evalspec.data.worlds.pairs import draw_pairs
from evalspec.errors import DataError

Row = dict[str, Any]

DEFAULT_COUNT = 200  # where a spec gives none and the world sets no bound of its own


@GENERATORS.register("world.questions")
def questions(
    seed: int, count: int | None = None, *, people: int = PEOPLE, towns: int = TOWNS, things: int = THINGS
) -> list[Row]:
    """One question for each fact of the world, in random order; all of them if `count` is None.

    `gold_ids` are ids of `world.passages` with the same seed and sizes. DataError when the world has fewer facts.
    """
    facts = world_of(seed, people=people, towns=towns, things=things).facts
    if count is not None and count > len(facts):
        raise DataError(
            f"the world of seed {seed} has {len(facts)} facts and so no {count} questions; "
            "ask for fewer, or for more `people` here and in its corpus"
        )
    rng = stream("questions", seed)
    rows = []
    for number, at in enumerate(shuffled(rng, range(len(facts)))[:count]):
        fact = facts[at]
        rows.append(
            {
                "id": f"q{seed}-{number:04d}",
                "question": fact.question(below(rng, 60)),
                "answer": fact.value,
                "gold_ids": [passage_id(seed, at)],
                "kind": fact.kind,
                "entity": fact.entity,
                "attribute": fact.attribute,
            }
        )
    return rows


@GENERATORS.register("world.passages")
def passages(
    seed: int, count: int | None = None, *, people: int = PEOPLE, towns: int = TOWNS, things: int = THINGS
) -> list[Row]:
    """The corpus of the world: one sentence for each fact. A `count` cuts it, and some golds with it."""
    facts = world_of(seed, people=people, towns=towns, things=things).facts
    return [
        {
            "id": passage_id(seed, at),
            "text": fact.text,
            "kind": fact.kind,
            "entity": fact.entity,
            "attribute": fact.attribute,
        }
        for at, fact in enumerate(facts[:count])
    ]


@GENERATORS.register("world.labels")
def labels(seed: int, count: int | None = None, *, categories: int = 4) -> list[Row]:
    """Words and their category under a label word that means nothing; all rows of a seed share the assignment.

    DataError unless 2 ≤ categories ≤ 12. Chance is 1 / categories.
    """
    if not 2 <= categories <= len(lexicon.CATEGORIES):
        raise DataError(f"`world.labels` has 2 to {len(lexicon.CATEGORIES)} categories, not {categories}")
    rng = stream("labels", seed)
    names = shuffled(rng, list(lexicon.CATEGORIES), categories)
    words = shuffled(rng, lexicon.LABELS, categories)
    rows = []
    for number in range(DEFAULT_COUNT if count is None else count):
        at = below(rng, categories)
        rows.append(
            {
                "id": f"l{seed}-{number:04d}",
                "text": pick(rng, lexicon.CATEGORIES[names[at]]),
                "label": words[at],
                "options": sorted(words),
                "category": names[at],
            }
        )
    return rows


@GENERATORS.register("world.records")
def records(seed: int, count: int | None = None, *, n: int | Sequence[int] = 10) -> list[Row]:
    """Lists of `n` records and the key of one of them. With several `n`, rows take them in turn.

    `depth` is the place of the asked record from 0 (first) to 1 (last). DataError unless 1 ≤ n ≤ the number of keys.
    """
    sizes = [n] if isinstance(n, int) else list(n)
    for size in sizes:
        if not 1 <= size <= len(lexicon.KEYS):
            raise DataError(f"`world.records` has 1 to {len(lexicon.KEYS)} records, not {size}")
    rng = stream("records", seed)
    rows = []
    for number in range(DEFAULT_COUNT if count is None else count):
        size = sizes[number % len(sizes)]
        pairs = draw_pairs(rng, size)
        at = below(rng, size)
        rows.append(
            {
                "id": f"r{seed}-{number:04d}",
                "records": [{"key": key, "value": value} for key, value in pairs],
                "key": pairs[at][0],
                "value": pairs[at][1],
                "n": size,
                "depth": at / (size - 1) if size > 1 else 1.0,
            }
        )
    return rows


@GENERATORS.register("world.arithmetic")
def arithmetic(seed: int, count: int | None = None, *, turns: int | Sequence[int] = 4) -> list[Row]:
    """A dial and its turns. With several numbers of `turns`, rows take them in turn. DataError for fewer than one."""
    sizes = [turns] if isinstance(turns, int) else list(turns)
    for size in sizes:
        if size < 1:
            raise DataError(f"`world.arithmetic` turns the dial at least once, not {size} times")
    rng = stream("arithmetic", seed)
    rows = []
    for number in range(DEFAULT_COUNT if count is None else count):
        size = sizes[number % len(sizes)]
        dial = draw_dial(rng, size)
        rows.append({"id": f"a{seed}-{number:04d}", **dial._asdict(), "turns": size})
    return rows


def passage_id(seed: int, at: int) -> str:
    """The id of the passage of a world's fact number `at`."""
    return f"p{seed}-{at:04d}"
