"""Multi-document questions: one of n documents answers, the others are near misses, and no retriever is needed.

The world of a context is as small as n facts allow. So the same attribute of others and other attributes of the same
entity stand beside every gold document, as in Lost in the Middle (arXiv 2307.03172).
"""

from __future__ import annotations

import math
from random import Random
from typing import Any

from evalspec.data.generators import GENERATORS
from evalspec.data.worlds import lexicon
from evalspec.data.worlds.chance import below, shuffled, stream
from evalspec.data.worlds.contexts import check_count, check_depth, depth_of, listed, places
from evalspec.data.worlds.facts import NAMES, Fact, draw_world
from evalspec.data.worlds.grammar import OF_KIND

DEFAULT_COUNT = 200
PER_ENTITY = {kind: len(attributes) for kind, attributes in OF_KIND.items()}
MOST = {"person": NAMES * NAMES, "town": len(lexicon.TOWNS), "thing": NAMES * NAMES}
MOST_FACTS = sum(PER_ENTITY[kind] * most for kind, most in MOST.items())


def draw_facts(rng: Random, n: int) -> list[Fact]:
    """`n` facts in random order, of the smallest world that has as many. `n` is at most MOST_FACTS.

    Half of them are about people, a fifth about towns, the rest about things, as far as there are names.
    """
    towns = min(MOST["town"], _for(n / 5, "town"))
    people = min(MOST["person"], _for(n / 2, "person"))
    things = min(MOST["thing"], _for(n - towns * PER_ENTITY["town"] - people * PER_ENTITY["person"], "thing"))
    left = n - towns * PER_ENTITY["town"] - people * PER_ENTITY["person"] - things * PER_ENTITY["thing"]
    people = min(MOST["person"], people + max(0, math.ceil(left / PER_ENTITY["person"])))
    return shuffled(rng, draw_world(rng, people=people, towns=towns, things=things).facts, n)


def _for(facts: float, kind: str) -> int:
    """How many entities of a kind have as many facts together; at least one."""
    return max(1, math.ceil(facts / PER_ENTITY[kind]))


@GENERATORS.register("world.multi_document")
def multi_document(
    seed: int, count: int | None = None, *, n: int = 10, queries: int = 1, depth: float | None = None
) -> list[dict[str, Any]]:
    """`n` documents of one sentence each and a question that one of them answers; `queries` rows share the documents.

    Columns: id, passages (list of {id, text}), question, answer, gold_ids, entity, attribute, n, depth (of the gold),
    length, context. DataError unless n ≤ 1,416 and queries ≤ n.
    """
    check_count("world.multi_document", "n", n, 1, MOST_FACTS)
    check_count("world.multi_document", "queries", queries, 1, n)
    check_depth("world.multi_document", depth)
    rows: list[dict[str, Any]] = []
    for number in range(DEFAULT_COUNT if count is None else count):
        context, turn = divmod(number, queries)
        if turn == 0:
            rng = stream("multi_document", seed, context)
            facts = draw_facts(rng, n)
            passages = [{"id": f"d{seed}-{context:04d}-{at:04d}", "text": fact.text} for at, fact in enumerate(facts)]
            asked = places(rng, n, queries, depth)
            wording = below(rng, 60)
            length = listed([fact.text for fact in facts])
        at = asked[turn]
        rows.append(
            {
                "id": f"d{seed}-{number:04d}",
                "passages": passages,
                "question": facts[at].question(wording + turn),
                "answer": facts[at].value,
                "gold_ids": [passages[at]["id"]],
                "entity": facts[at].entity,
                "attribute": facts[at].attribute,
                "n": n,
                "depth": depth_of(at, n),
                "length": length,
                "context": f"d{seed}-{context:04d}",
            }
        )
    return rows
