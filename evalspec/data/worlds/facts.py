"""A world: its people, towns and things, and every fact about them, drawn anew from a seed.

People are drawn from twelve first and twelve last names, and things from a few materials and nouns, so that near-miss
names are common: for every fact there are others about the same entity, and the same attribute of an entity that
shares half its name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

from evalspec.data.worlds import lexicon
from evalspec.data.worlds.chance import shuffled, stream
from evalspec.data.worlds.grammar import BY_NAME, OF_KIND
from evalspec.errors import DataError

NAMES = 12  # first and last names of one world
PEOPLE, TOWNS, THINGS = 40, 12, 20


class Fact(NamedTuple):
    """One thing that is so, and which of its attribute's phrasings says it."""

    kind: str
    entity: str
    attribute: str
    value: str
    phrasing: int

    @property
    def text(self) -> str:
        """The passage that states the fact: one sentence."""
        sentence = BY_NAME[self.attribute].phrasings[self.phrasing]
        return sentence.replace("{e}", self.entity).replace("{v}", self.value)

    def question(self, phrasing: int) -> str:
        """A question that the fact answers, in one of its attribute's wordings."""
        questions = BY_NAME[self.attribute].questions
        return questions[phrasing % len(questions)].replace("{e}", self.entity)


@dataclass(frozen=True)
class World:
    """All facts, in the order of their entities, and the same facts by entity and by attribute."""

    facts: list[Fact]
    by_entity: dict[str, list[Fact]] = field(default_factory=dict)
    by_attribute: dict[str, list[Fact]] = field(default_factory=dict)


def draw_world(rng: Random, *, people: int = PEOPLE, towns: int = TOWNS, things: int = THINGS) -> World:
    """Draw entities and facts. Raises DataError when more entities are asked for than there are names."""
    for asked, most, what in (
        (people, NAMES * NAMES, "people"),
        (towns, len(lexicon.TOWNS), "towns"),
        (things, NAMES * NAMES, "things"),
    ):
        if type(asked) is not int or not 1 <= asked <= most:
            raise DataError(f"a world has 1 to {most} {what}, not {asked!r}")
    firsts = shuffled(rng, lexicon.FIRST_NAMES, NAMES)
    lasts = shuffled(rng, lexicon.LAST_NAMES, NAMES)
    materials = shuffled(rng, lexicon.MATERIALS, NAMES)
    nouns = shuffled(rng, lexicon.THINGS, NAMES)
    names = {
        "person": [f"{firsts[i // NAMES]} {lasts[i % NAMES]}" for i in shuffled(rng, range(NAMES * NAMES), people)],
        "town": shuffled(rng, lexicon.TOWNS, towns),
        "thing": [f"{materials[i // NAMES]} {nouns[i % NAMES]}" for i in shuffled(rng, range(NAMES * NAMES), things)],
    }
    world = World([])
    random = rng.random
    for kind, entities in names.items():
        attributes = [
            # Homes and birthplaces may be any town on the map; owners and mayors are people of this world.
            (
                a.name,
                {"person": names["person"], "town": lexicon.TOWNS}[a.values] if isinstance(a.values, str) else a.values,
                len(a.phrasings),
            )
            for a in OF_KIND[kind]
        ]
        for entity in entities:
            mine = world.by_entity[entity] = [
                Fact(kind, entity, name, values[int(random() * len(values))], int(random() * phrasings))
                for name, values, phrasings in attributes
            ]
            world.facts.extend(mine)
    for fact in world.facts:
        world.by_attribute.setdefault(fact.attribute, []).append(fact)
    return world


def world_of(seed: int, **sizes: int) -> World:
    """The world of a seed, the same for its questions and its passages."""
    return draw_world(stream("world", seed), **sizes)
