"""How a fact is said and how it is asked: the sentences of the worlds.

An attribute belongs to one kind of entity and has several phrasings and several questions. A question shares the
entity with its passage but not always the other words, so that a lexical retriever finds the person sooner than the
fact. In a sentence {e} stands for the entity and {v} for the value.
"""

from __future__ import annotations

from typing import NamedTuple

from evalspec.data.worlds import lexicon


class Attribute(NamedTuple):
    """What can be said of one kind of entity. `values` is what fills it: `person`, `town`, or a list of words."""

    kind: str
    name: str
    values: str | tuple[str, ...]
    phrasings: tuple[str, ...]
    questions: tuple[str, ...]


ATTRIBUTES = (
    Attribute(
        "person",
        "home",
        "town",
        (
            "{e} lives in the town of {v}.",
            "The house of {e} stands in {v}.",
            "These days {e} has a home in {v}.",
            "Letters for {e} are sent to {v}.",
        ),
        ("Where does {e} live?", "In which town is the home of {e}?", "To what town do letters for {e} go?"),
    ),
    Attribute(
        "person",
        "birthplace",
        "town",
        (
            "{e} was born in the town of {v}.",
            "The birthplace of {e} is {v}.",
            "{e} spent the first years of life in {v}.",
            "The family of {e} comes from {v}.",
        ),
        ("Where was {e} born?", "What is the birthplace of {e}?", "From which town does {e} come?"),
    ),
    Attribute(
        "person",
        "job",
        lexicon.JOBS,
        (
            "{e} works as a {v} every day.",
            "{e} earns a living as a {v}.",
            "By trade {e} is a {v}.",
            "People hire {e} as their {v}.",
        ),
        ("What work does {e} do?", "What is the job of {e}?", "How does {e} earn a living?"),
    ),
    Attribute(
        "person",
        "pet",
        lexicon.PETS,
        (
            "{e} keeps a {v} at home.",
            "The pet of {e} is a {v}.",
            "Every morning {e} feeds a {v}.",
            "A {v} sleeps next to {e} at night.",
        ),
        ("Which animal does {e} keep?", "What pet does {e} have?", "What kind of animal lives with {e}?"),
    ),
    Attribute(
        "person",
        "instrument",
        lexicon.INSTRUMENTS,
        (
            "{e} plays the {v} very well.",
            "In the evening {e} practises the {v}.",
            "{e} is learning the {v} this year.",
            "Friends listen when {e} plays the {v}.",
        ),
        ("What instrument does {e} play?", "Which instrument is {e} learning?", "On what does {e} make music?"),
    ),
    Attribute(
        "person",
        "food",
        lexicon.FOODS,
        (
            "{e} likes to eat {v} most of all.",
            "The favourite food of {e} is {v}.",
            "At dinner {e} always asks for {v}.",
            "No meal pleases {e} more than {v}.",
        ),
        ("What does {e} like to eat?", "What is the favourite food of {e}?", "Which meal pleases {e} most?"),
    ),
    Attribute(
        "town",
        "river",
        lexicon.RIVERS,
        (
            "The river {v} flows through {e}.",
            "{e} lies on the banks of the {v}.",
            "The old mill of {e} is turned by the {v}.",
            "The bridge of {e} crosses the {v}.",
        ),
        ("Which river flows through {e}?", "On which river does {e} lie?", "What is the name of the river in {e}?"),
    ),
    Attribute(
        "town",
        "product",
        lexicon.PRODUCTS,
        (
            "{e} is famous for its {v}.",
            "The best {v} are made in {e}.",
            "The workers of {e} make fine {v}.",
            "Merchants go to {e} to buy {v}.",
        ),
        ("What is {e} famous for?", "What do the workers of {e} make?", "What do merchants buy in {e}?"),
    ),
    Attribute(
        "town",
        "gate",
        lexicon.COLOURS,
        (
            "The gate of {e} is painted {v}.",
            "{e} has a {v} gate in its wall.",
            "You enter {e} through a {v} gate.",
            "The gate that guards {e} is {v}.",
        ),
        (
            "What colour is the gate of {e}?",
            "Which colour does the gate of {e} have?",
            "How is the gate of {e} painted?",
        ),
    ),
    Attribute(
        "town",
        "mayor",
        "person",
        (
            "The mayor of {e} is called {v}.",
            "{v} was elected mayor of {e}.",
            "{v} leads the council of {e}.",
            "The town of {e} is governed by {v}.",
        ),
        ("Who is the mayor of {e}?", "Who governs the town of {e}?", "Who was elected to lead {e}?"),
    ),
    Attribute(
        "thing",
        "owner",
        "person",
        (
            "The {e} belongs to {v}.",
            "{v} is the owner of the {e}.",
            "{v} bought the {e} last year.",
            "The {e} was given to {v}.",
        ),
        ("Who owns the {e}?", "To whom does the {e} belong?", "What is the name of the owner of the {e}?"),
    ),
    Attribute(
        "thing",
        "place",
        lexicon.PLACES,
        (
            "The {e} is kept in the {v}.",
            "You will find the {e} in the {v}.",
            "Someone has hidden the {e} in the {v}.",
            "The {e} stands in a corner of the {v}.",
        ),
        ("Where is the {e} kept?", "In which place can one find the {e}?", "Where does the {e} stand?"),
    ),
    Attribute(
        "thing",
        "origin",
        "town",
        (
            "The {e} was made in the town of {v}.",
            "A smith from {v} made the {e}.",
            "The {e} was brought here from {v}.",
            "Long ago the {e} came from {v}.",
        ),
        (
            "Where was the {e} made?",
            "From which town was the {e} brought?",
            "What town does the {e} come from?",
        ),
    ),
)

BY_NAME = {attribute.name: attribute for attribute in ATTRIBUTES}
OF_KIND = {kind: tuple(a for a in ATTRIBUTES if a.kind == kind) for kind in ("person", "town", "thing")}
