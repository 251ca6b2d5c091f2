"""English-like text from a seed: the corpus of the benchmark's tokenizer and the rows of its tasks.

Half of the words are the worlds' own, half are invented from syllables, so that a word is one to three tokens of a
tokenizer of 4,096 and no two questions are alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

from evalspec.data.worlds.rows import passages

Row = dict[str, Any]

STOP = "§§§"
"""A stop text that nothing generates: both sides look for it, and all answers run to their full length."""

_ONSETS = "b br c ch d dr f fl g gr h j k l m n p pl qu r s sh st t tr v w z".split()
_VOWELS = "a e i o u ai ea oo ou".split()
_CODAS = " |l|m|n|r|s|t|nd|rk|st".split("|")


@dataclass(frozen=True)
class Sizes:
    """How much of everything: the bar's sizes, and small ones to see that all of it runs."""

    questions: int = 60
    shots: int = 10
    generations: int = 100
    generation_shots: int = 8
    new_tokens: int = 64
    documents: int = 10
    document_words: int = 2010
    document_questions: int = 50
    rounds: int = 3


QUICK = Sizes(
    questions=6,
    shots=2,
    generations=9,
    generation_shots=2,
    new_tokens=8,
    documents=2,
    document_words=200,
    document_questions=8,
    rounds=1,
)


@cache
def words() -> tuple[str, ...]:
    """The lexicon: words of the worlds' passages and as many invented ones, none twice."""
    rng = Random("lexicon")
    known = sorted({word.strip(".,?").lower() for text in _world() for word in text.split()})
    invented: set[str] = set()
    while len(invented) < 2500:
        syllables = rng.choice((1, 2, 2, 3))
        invented.add("".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(syllables)) + rng.choice(_CODAS))
    both = known + sorted(word.strip() for word in invented)
    rng.shuffle(both)
    return tuple(dict.fromkeys(both))


def _world() -> list[str]:
    return [row["text"] for seed in range(4) for row in passages(seed)]


def phrase(rng: Random, count: int) -> str:
    """Some words in a row."""
    return " ".join(rng.choices(words(), k=count))


def sentence(rng: Random, least: int, most: int) -> str:
    """A sentence of `least` to `most` words."""
    return phrase(rng, rng.randint(least, most)).capitalize() + "."


def corpus() -> list[str]:
    """What the tokenizer is trained on."""
    rng = Random("corpus")
    return _world() * 4 + [" ".join(sentence(rng, 5, 14) for _ in range(4)) for _ in range(4000)]


def choice_rows(name: str, count: int) -> list[Row]:
    """Questions with four choices of several tokens each, and which is right."""
    rng = Random(f"choice {name}")
    return [
        {
            "id": f"{name}-{number:04d}",
            "question": f"{sentence(rng, 5, 7)} Which {phrase(rng, 4)}?",
            "choices": [phrase(rng, rng.choice((3, 3, 4))) for _ in range(4)],
            "gold": rng.randrange(4),
        }
        for number in range(count)
    ]


def reasoning_rows(name: str, count: int) -> list[Row]:
    """Sums told as stories, answered with written steps."""
    rng = Random(f"reasoning {name}")
    rows = []
    for number in range(count):
        who, what = rng.choice(words()).capitalize(), rng.choice(words())
        terms = [rng.randint(2, 60) for _ in range(3)]
        told = " ".join(f"Then {who} buys {term} more." for term in terms[1:])
        steps, total = [], terms[0]
        for term in terms[1:]:
            steps.append(f"{total} + {term} = {total + term}.")
            total += term
        rows.append(
            {
                "id": f"{name}-{number:04d}",
                "question": f"{who} has {terms[0]} {what}. {told} How many {what} are there?",
                "answer": f"{' '.join(steps)} The answer is {total}.",
            }
        )
    return rows


def document_rows(documents: int, length: int, questions: int) -> list[Row]:
    """Questions on long documents: each row holds its whole document."""
    rows = []
    for document in range(documents):
        rng = Random(f"document {document}")
        text, total = [], 0
        while total < length:
            text.append(sentence(rng, 6, 16))
            total += len(text[-1].split())
        rows += [
            {
                "id": f"d{document:02d}-{number:03d}",
                "document": " ".join(text),
                "question": f"What is {phrase(rng, 6)}?",
                "answer": phrase(rng, 2),
            }
            for number in range(questions)
        ]
    return rows
