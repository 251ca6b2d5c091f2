"""What the zoo is trained on: sequences of generated worlds, four tasks in the formats of `prompts/`.

A sequence holds documents of one task; a document is one world (or one assignment of labels) asked about several
times, block after block, as a prompt with shots is. Answers and written steps are marked, since they carry the loss.
Every sequence is drawn from (seed, number) alone, so all models see the same sequences in the same order, whoever
draws them.

    rag         passages, a question about one of them (or several questions), the answer; near misses beside the gold
    records     key-value lists and queries of them
    labels      words under label words whose meaning is new in each document
    arithmetic  a dial, its turns, and where it stands, with or without written steps
    copy, echo, restate   primers, much of them early and few later: words, records and passages that come again
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import numpy as np
from numpy.typing import NDArray

from evalspec.data.worlds import lexicon
from evalspec.data.worlds.arithmetic import draw_dial
from evalspec.data.worlds.chance import between, pick, shuffled, stream
from evalspec.data.worlds.facts import Fact, World, draw_world
from evalspec.data.worlds.pairs import draw_pairs
from evalspec.zoo.tokenizer import BOS, EOS, encode_words, vocabulary

MARK = 0x8000  # the bit of a token that carries the loss
SHARES = {"rag": 0.5, "records": 0.2, "labels": 0.12, "arithmetic": 0.18}
TASKS = tuple(SHARES)
PRIMER = 0.45  # share of the primer tasks at first; it falls to a tenth of that as difficulty grows
PRIMERS = ("copy", "echo", "restate")
UNKNOWN = "unknown"  # the answer when no passage holds it

INSTRUCTIONS = {
    "rag": ("Answer the question from the passages.", "Read the passages and answer.", "Use only the passages below."),
    "records": ("Find the value of the key.", "Give the value of the key."),
    "labels": ("Choose the label of each word.", "Sort the words by their category."),
    "arithmetic": ("Think in steps.", "Follow the dial."),
}  # fmt: skip
# Difficulty below which questions are asked twice, records always several times, and most passages share an attribute.
EASY = 0.3
BULLETS = ("- ", "", "Passage: ", "* ")


class Page:
    """The tokens of one sequence while it is written."""

    def __init__(self, length: int) -> None:
        self.tokens: list[int] = []
        self.length = length

    @property
    def full(self) -> bool:
        """Whether nothing more is needed; what stands beyond the length is cut."""
        return len(self.tokens) >= self.length

    def write(self, text: str) -> None:
        """Text that is read. It must begin where a token does: a word after a newline, a newline, a space."""
        self.tokens += encode_words(text)

    def answer(self, text: str, *, marked: bool = True) -> None:
        """Text that the model should write, with the newline that ends it."""
        ids = encode_words(f" {text}\n")
        self.tokens += [at | MARK for at in ids] if marked else ids

    def repeat(self, text: str) -> None:
        """Text that stood before and is all marked; it must begin as in `write`."""
        self.tokens += [at | MARK for at in encode_words(text)]

    def special(self, token: str) -> None:
        """One special token."""
        self.tokens.append(vocabulary()[token])


def draw_sequence(
    seed: str, number: int, length: int, difficulty: float = 1.0, task: str | None = None
) -> NDArray[np.uint16]:
    """Sequence `number` of the stream `seed`: (length,) token ids, those that carry the loss with the bit MARK.

    `difficulty` in (0, 1] scales how many passages, records and turns there are; `task` fixes the task.
    """
    rng = stream("zoo", seed, number)
    drawn, chosen = rng.random(), task
    if chosen is None:
        primer = PRIMER * (1.0 - 0.9 * (difficulty - 0.1) / 0.9)
        chosen, drawn = pick(rng, PRIMERS), drawn - primer
        for name, share in SHARES.items():
            if drawn >= 0:
                chosen, drawn = name, drawn - share * (1.0 - primer)
    page = Page(length)
    if rng.random() < 0.2:
        page.special(BOS)
    while not page.full:
        if chosen in INSTRUCTIONS and rng.random() < 0.12 * difficulty:
            page.write(pick(rng, INSTRUCTIONS[chosen]) + "\n\n")
        DOCUMENTS[chosen](rng, page, difficulty)
        page.special(EOS)
    return np.array(page.tokens[:length], dtype=np.uint16)


def rag_document(rng: Random, page: Page, difficulty: float) -> None:
    """Blocks of passages and questions about one world."""
    people, others = max(4, round(40 * difficulty)), max(3, round(12 * difficulty))
    world = draw_world(
        rng, people=between(rng, people // 3 + 1, people), towns=between(rng, 2, others), things=between(rng, 2, others)
    )
    closed = rng.random() < 0.05
    bullet = BULLETS[0] if rng.random() < 0.85 else pick(rng, BULLETS)
    k = draw_k(rng, difficulty)
    varies, several = rng.random() < 0.15, rng.random() < 0.8 - 0.3 * difficulty
    neighbours = same_attribute if difficulty < EASY and rng.random() < 0.4 else pick(rng, NEIGHBOURS)
    blocks = between(rng, 1, 5) if rng.random() < 0.15 else 100
    seen: set[Fact] = set()
    while blocks > 0 and not page.full:
        blocks -= 1
        if closed:
            fact = pick(rng, world.facts)
            page.write(f"Question: {fact.question(between(rng, 0, 59))}\nAnswer:")
            page.answer(fact.value, marked=False)  # a guess: nothing to learn but the prior
            page.write("\n")
            continue
        if varies:
            k = draw_k(rng, difficulty)
        gold = pick(rng, world.facts)
        missing = rng.random() < 0.08 and gold not in seen
        shown = [] if missing else [gold]
        for fact in neighbours(rng, world, gold, k + 1):
            if len(shown) >= k:
                break
            if fact != gold and fact not in shown:
                shown.append(fact)
        seen.update(shown)
        page.write("".join(f"{bullet}{fact.text}\n" for fact in shuffled(rng, shown)))
        # Further questions are about the distractors, which are near misses of each other.
        asked = [gold, *shuffled(rng, [fact for fact in shown if fact != gold], between(rng, 1, 5) if several else 0)]
        for fact in shuffled(rng, asked * (2 if difficulty < EASY else 1)):
            page.write(f"Question: {fact.question(between(rng, 0, 59))}\nAnswer:")
            page.answer(fact.value if fact in shown else UNKNOWN)
        page.write("\n")


def draw_k(rng: Random, difficulty: float) -> int:
    """How many passages a block has: 1 to 20, most often up to 10; while it is easy 2 at least, to have a choice."""
    u = rng.random()
    low, high = (1, 5) if u < 0.4 else (5, 10) if u < 0.85 else (11, 20)
    k = between(rng, low, high)
    return k if difficulty == 1 else 2 + round((k - 1) * difficulty) - (rng.random() < 0.3 * difficulty)


def retrieved(rng: Random, world: World, gold: Fact, count: int) -> list[Fact]:
    """What a lexical retriever returns: facts of the same entity, then of entities that share a part of its name."""
    same = shuffled(rng, world.by_entity[gold.entity])
    named = [fact for attribute in ("mayor", "owner", "home", "origin") for fact in world.by_attribute[attribute]]
    same += [fact for fact in named if fact.value == gold.entity]
    if len(same) >= count:
        return same
    parts = gold.entity.split()
    kin = [e for e in world.by_entity if e != gold.entity and any(part in parts for part in e.split())]
    facts = [fact for e in shuffled(rng, kin, count) for fact in shuffled(rng, world.by_entity[e], 3)]
    return same + facts + shuffled(rng, world.facts, count)


def near_misses(rng: Random, world: World, gold: Fact, count: int) -> list[Fact]:
    """The same attribute of others and other attributes of the same entity, mixed."""
    others = shuffled(rng, world.by_attribute[gold.attribute], count)
    same = shuffled(rng, world.by_entity[gold.entity])
    return shuffled(rng, others + same) + shuffled(rng, world.facts, count)


def same_attribute(rng: Random, world: World, gold: Fact, count: int) -> list[Fact]:
    """The same attribute of others. Without these a model learns to match the attribute alone, and stops there."""
    return shuffled(rng, world.by_attribute[gold.attribute], count) + shuffled(rng, world.facts, count)


def anything(rng: Random, world: World, gold: Fact, count: int) -> list[Fact]:
    """Any facts of the world."""
    return shuffled(rng, world.facts, count)


NEIGHBOURS = (retrieved, near_misses, same_attribute, anything)


def records_document(rng: Random, page: Page, difficulty: float) -> None:
    """Lists of 2 to 40 records (small ones more often) and one or more queries of each."""
    while not page.full:
        n = round(2 * (1 + 19 * difficulty) ** rng.random())
        pairs = draw_pairs(rng, n)
        page.write("Records:\n" + "".join(f"{key}: {value}\n" for key, value in pairs) + "Find:\n")
        queries = between(rng, 2, 12) if rng.random() < 0.7 or difficulty < EASY else 1
        for key, value in shuffled(rng, pairs, queries):
            page.write(f"{key}:")
            page.answer(value)
        page.write("\n")


def labels_document(rng: Random, page: Page, difficulty: float) -> None:
    """Up to 40 examples of 2 to 6 categories. An example counts once its category has been shown."""
    categories = shuffled(rng, list(lexicon.CATEGORIES), between(rng, 2, max(2, round(6 * difficulty))))
    label = dict(zip(categories, shuffled(rng, lexicon.LABELS, len(categories)), strict=True))
    shown: set[str] = set()
    for _ in range(between(rng, 4, 40)):
        category = pick(rng, categories)
        page.write(f"Input: {pick(rng, lexicon.CATEGORIES[category])}\nLabel:")
        page.answer(label[category], marked=category in shown)
        page.write("\n")
        shown.add(category)
        if page.full:
            return


def arithmetic_document(rng: Random, page: Page, difficulty: float) -> None:
    """Dials of 1 to 10 turns, all with written steps or all without; without them mostly few turns."""
    written = rng.random() < 0.6
    for _ in range(between(rng, 1, 8)):
        most = 10 if written or rng.random() < 0.4 else 4
        dial = draw_dial(rng, between(rng, 1, max(2, round(most * difficulty))))
        page.write(f"Question: {dial.question}\n")
        if written:
            page.write("Steps:")
            page.answer(f"{dial.steps} Answer: {dial.answer}")
        else:
            page.write("Answer:")
            page.answer(dial.answer)
        page.write("\n")
        if page.full:
            return


def copy_document(rng: Random, page: Page, difficulty: float) -> None:
    """A primer: words in random order, then the same words in the same order, again and again.

    The primers are dense in tokens that only a search of the context predicts. Without them that search starts late or
    never: single answers give too little signal to leave the plateau of guessing among the values in sight.
    """
    while not page.full:
        words = " ".join(shuffled(rng, lexicon.WORDS, between(rng, 3, 8 + round(40 * difficulty))))
        page.write(words)
        for _ in range(between(rng, 1, 3)):
            page.write("\n" + words[: words.index(" ")])  # the first word says that they come again, and is no guess
            page.repeat(words[words.index(" ") :])
        page.write("\n\n")


def restate_document(rng: Random, page: Page, difficulty: float) -> None:
    """A primer: passages, then the same ones in another order; the values of the second time are marked."""
    world = draw_world(rng, people=max(4, round(24 * difficulty)), towns=4, things=4)
    while not page.full:
        gold = pick(rng, world.facts)
        shown = [gold]
        for fact in pick(rng, (near_misses, same_attribute))(rng, world, gold, 20):
            if fact not in shown and len(shown) < between(rng, 2, 3 + round(9 * difficulty)):
                shown.append(fact)
        page.write("".join(f"- {fact.text}\n" for fact in shown))
        for fact in shuffled(rng, shown):
            before, after = fact.text.split(" " + fact.value, 1) if " " + fact.value in fact.text else (fact.text, "")
            page.write(f"- {before}")
            page.repeat(" " + fact.value + after if after else "")
            page.write("\n")
        page.write("\n")


def echo_document(rng: Random, page: Page, difficulty: float) -> None:
    """A primer: records that come again and again, their values marked from the second time on."""
    pairs = draw_pairs(rng, between(rng, 2, 4 + round(28 * difficulty)))
    seen: set[str] = set()
    page.write("Records:\n")
    while not page.full:
        key, value = pick(rng, pairs)
        page.write(f"{key}:")
        page.answer(value, marked=key in seen)
        seen.add(key)


DOCUMENTS: dict[str, Callable[[Random, Page, float], None]] = {
    "rag": rag_document,
    "records": records_document,
    "labels": labels_document,
    "arithmetic": arithmetic_document,
    "copy": copy_document,
    "echo": echo_document,
    "restate": restate_document,
}
