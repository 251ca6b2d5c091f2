"""Needles in a haystack: facts to find among sentences that have nothing to do with them.

The kinds are RULER's (arXiv 2404.06654):  single       one needle
                                           multi_key    more needles of other entities, and one of them is asked for
                                           multi_value  one entity has several values, and all are asked for
                                           multi_query  several needles, each of them asked for
The filler is facts of a world about other things, or the sentences of any file of documents.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any, Literal, get_args

from evalspec.data.generators import GENERATORS
from evalspec.data.worlds import lexicon
from evalspec.data.worlds.chance import below, pick, shuffled, stream
from evalspec.data.worlds.contexts import check_count, check_depth, depth_of, listed
from evalspec.data.worlds.facts import NAMES, Fact, World, draw_world
from evalspec.errors import DataError, suggest

Kind = Literal["single", "multi_key", "multi_value", "multi_query"]
DEFAULT_COUNT = 200
MOST_NEEDLES = 16
MOST_WORDS = 10_000_000
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\s*\n\s*")


@GENERATORS.register("world.haystack")
def haystack(
    seed: int,
    count: int | None = None,
    *,
    kind: str = "single",
    length: int = 512,
    depth: float | None = None,
    needles: int = 4,
    documents: str | None = None,
    column: str = "text",
    root: Path = Path(),
) -> list[dict[str, Any]]:
    """Haystacks of about `length` words, digits, marks and lines, and a question about what is hidden in them.

    `depth` says where the asked needle stands (a random place if None), for `single` and `multi_key`; the needles of
    the others are spread at random. `needles` is how many there are, 1 for `single`. `documents` is a file (or glob)
    of rows whose `column` is the filler, or of plain text (`.txt`), from the project's root. With `multi_query`, each
    `needles` rows in turn share a haystack and ask for another needle.

    Columns: id, passages (list of {text}), question, answer (a text; all values for `multi_value`), questions and
    answers (of all that is asked in this haystack), kind, n (passages), needles, depth, length, context.
    """
    _check(kind, length, depth, needles)
    needles = 1 if kind == "single" else needles
    for option, said in (("documents", documents), ("column", column)):
        if said is not None and not isinstance(said, str):
            raise DataError(f"`world.haystack` needs `{option}` as a text, not {said!r}")
    sentences = _sentences(documents, column, root) if documents is not None else None
    each = needles if kind == "multi_query" else 1
    rows: list[dict[str, Any]] = []
    for number in range(DEFAULT_COUNT if count is None else count):
        context, turn = divmod(number, each)
        if turn == 0:
            rng = stream("haystack", seed, context)
            world = draw_world(rng, people=NAMES * NAMES, towns=len(lexicon.TOWNS), things=NAMES * NAMES)
            hidden = _needles(rng, world, kind, needles)
            wording = below(rng, 60)
            order, spots = shuffled(rng, hidden), [rng.random() for _ in hidden]
            if depth is not None:
                spots[order.index(hidden[0])] = float(depth)
            room = length - listed([fact.text for fact in hidden])
            hay = _run(rng, sentences, room) if sentences is not None else _filler(rng, world, hidden, room)
            passages, stands = _hide(hay, order, spots, ends=depth is not None)
            asked = order if kind == "multi_query" else hidden[:1]
            questions = [fact.question(wording) for fact in asked]
            answers: list[Any] = [fact.value for fact in asked]
            if kind == "multi_value":
                answers = [[fact.value for fact in order]]
            shown = [{"text": text} for text in passages]
            words = listed(passages)
        rows.append(
            {
                "id": f"h{seed}-{number:04d}",
                "passages": shown,
                "question": questions[turn],
                "answer": answers[turn],
                "questions": questions,
                "answers": answers,
                "kind": kind,
                "n": len(passages),
                "needles": needles,
                "depth": depth_of(stands[asked[turn]], len(passages)),
                "length": words,
                "context": f"h{seed}-{context:04d}",
            }
        )
    return rows


def _check(kind: str, length: int, depth: float | None, needles: int) -> None:
    kinds = get_args(Kind)
    if kind not in kinds:
        raise DataError(f"`world.haystack` has no kind `{kind}`.{suggest(kind, kinds)} Kinds: {', '.join(kinds)}")
    check_count("world.haystack", "length", length, 1, MOST_WORDS)
    check_count("world.haystack", "needles", needles, 1, MOST_NEEDLES)
    check_depth("world.haystack", depth)
    if depth is not None and kind in ("multi_value", "multi_query"):
        raise DataError(f"`world.haystack` of kind `{kind}` spreads its needles; `depth` has nothing to place there")


def _needles(rng: Random, world: World, kind: str, needles: int) -> list[Fact]:
    """The hidden facts, the asked one first: one attribute of several entities, or several values of one entity's."""
    gold = pick(rng, world.facts)
    same = [fact for fact in shuffled(rng, world.by_attribute[gold.attribute]) if fact.entity != gold.entity]
    if kind != "multi_value":
        return [gold, *same[: needles - 1]]
    values = list(dict.fromkeys([gold.value, *(fact.value for fact in same)]))[:needles]
    return [gold._replace(value=value, phrasing=at) for at, value in enumerate(values)]


def _filler(rng: Random, world: World, hidden: list[Fact], room: int) -> list[str]:
    """Facts of other entities and other attributes than the needles', told again when there are no more."""
    entities = {fact.entity for fact in hidden}
    others = [f for f in world.facts if f.attribute != hidden[0].attribute and f.entity not in entities]
    hay: list[str] = []
    while room > 0:
        for fact in shuffled(rng, others):
            room -= listed([fact.text])
            if room < 0:
                break
            hay.append(fact.text)
    return hay


def _run(rng: Random, sentences: tuple[str, ...], room: int) -> list[str]:
    """Sentences as they follow each other in the documents, from a random one on; behind the last comes the first."""
    at = below(rng, len(sentences))
    hay: list[str] = []
    while True:
        text = sentences[at % len(sentences)]
        room -= listed([text])
        if room < 0:
            return hay
        hay.append(text)
        at += 1


def _hide(hay: list[str], order: list[Fact], spots: list[float], *, ends: bool) -> tuple[list[str], dict[Fact, int]]:
    """The passages, and where each needle stands among them. A spot is a share of the haystack, 0 to 1.

    With `ends`, a needle at 0 is the very first passage and one at 1 the very last, whatever else is hidden.
    """
    gaps = [(round(spot * len(hay)), spot if ends else 0.5, fact) for fact, spot in zip(order, spots, strict=True)]
    gaps.sort(key=lambda gap: gap[:2])
    passages: list[str] = []
    stands: dict[Fact, int] = {}
    done = 0
    for gap, _, fact in gaps:
        passages += hay[done:gap]
        done = gap
        stands[fact] = len(passages)
        passages.append(fact.text)
    return passages + hay[done:], stands


@lru_cache(maxsize=4)
def _sentences(documents: str, column: str, root: Path) -> tuple[str, ...]:
    """The sentences of all documents, in the order of the file. DataError when there are none."""
    from evalspec.data.files import find_files, read_files  # heavy, and only where there are documents

    texts: list[str] = []
    if documents.endswith(".txt"):
        for path in find_files(documents, root):
            try:
                texts.append(path.read_text(encoding="utf-8"))
            except UnicodeDecodeError as error:
                raise DataError(f"{path}: not UTF-8 at byte {error.start}; convert it first") from None
    else:
        for number, row in enumerate(read_files(documents, "auto", root), start=1):
            if not isinstance(row.get(column), str):
                raise DataError(
                    f"{documents}: row {number} has no text in column `{column}`.{suggest(column, row)} "
                    f"It has {', '.join(row)}; name another one with `options.column`"
                )
            texts.append(row[column])
    sentences = tuple(part.strip() for text in texts for part in SENTENCE_END.split(text) if part.strip())
    if not sentences:
        raise DataError(f"{documents} has no text to hide needles in")
    return sentences
