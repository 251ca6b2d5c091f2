"""The generators of rows that a spec calls by name: `world.questions`, `.passages`, `.labels`, `.records`,
`.arithmetic`.

Columns:  questions  id, question, answer, gold_ids, kind, entity, attribute
          passages   id, text, kind, entity, attribute
          labels     id, text, label, options, category
          records    id, records (list of {key, value}), key, value, n, depth, length, context
          arithmetic id, question, steps, answer, turns
The generators of longer contexts have modules of their own beside this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evalspec.data.generators import GENERATORS
from evalspec.data.worlds import lexicon
from evalspec.data.worlds.arithmetic import draw_dial
from evalspec.data.worlds.chance import below, pick, shuffled, stream
from evalspec.data.worlds.contexts import check_count, check_depth, depth_of, pieces, places, sizes_of
from evalspec.data.worlds.facts import PEOPLE, THINGS, TOWNS, world_of
from evalspec.data.worlds.pairs import draw_pairs
from evalspec.errors import DataError

Row = dict[str, Any]

MOST_TURNS = 10_000
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
    check_count("world.labels", "categories", categories, 2, len(lexicon.CATEGORIES))
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
def records(
    seed: int,
    count: int | None = None,
    *,
    n: int | Sequence[int] = 10,
    queries: int = 1,
    depth: float | None = None,
) -> list[Row]:
    """Lists of `n` records, `queries` rows to a list, each with another key of it. With several `n`, lists take turns.

    `depth` is the place of the asked record from 0 (first) to 1 (last); as an option it says which are asked, those
    nearest to it. DataError unless 1 ≤ n ≤ the number of keys and queries ≤ n.
    """
    sizes = sizes_of("world.records", "n", n, len(lexicon.KEYS))
    for size in sizes:
        check_count("world.records", "queries", queries, 1, size)
    check_depth("world.records", depth)
    rng = stream("records", seed)
    rows = []
    for number in range(DEFAULT_COUNT if count is None else count):
        context, turn = divmod(number, queries)
        if turn == 0:
            size = sizes[context % len(sizes)]
            pairs = draw_pairs(rng, size)
            listed = [{"key": key, "value": value} for key, value in pairs]
            asked = places(rng, size, queries, depth)
            length = pieces("\n".join(f"{key}: {value}" for key, value in pairs))
        at = asked[turn]
        rows.append(
            {
                "id": f"r{seed}-{number:04d}",
                "records": listed,
                "key": pairs[at][0],
                "value": pairs[at][1],
                "n": size,
                "depth": depth_of(at, size),
                "length": length,
                "context": f"r{seed}-{context:04d}",
            }
        )
    return rows


@GENERATORS.register("world.arithmetic")
def arithmetic(seed: int, count: int | None = None, *, turns: int | Sequence[int] = 4) -> list[Row]:
    """A dial and its turns. With several numbers of `turns`, rows take them in turn. DataError for fewer than one."""
    sizes = sizes_of("world.arithmetic", "turns", turns, MOST_TURNS)
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
