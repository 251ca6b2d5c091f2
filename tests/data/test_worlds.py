"""The worlds: what their rows promise to specs, retrievers and prompts."""

import hashlib
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import bm25s
import pytest
import Stemmer

from evalspec.data import generators
from evalspec.data.generators import GENERATORS
from evalspec.data.worlds import lexicon
from evalspec.data.worlds.facts import world_of
from evalspec.data.worlds.grammar import ATTRIBUTES
from evalspec.errors import DataError, EvalspecError
from evalspec.spec import needs


def generate(name: str, seed: int, count: int | None = None, **options: Any) -> list[dict[str, Any]]:
    return generators.generate(name, seed, count, options)


def test_the_declared_generators_are_registered() -> None:
    assert set(needs.GENERATORS) <= set(GENERATORS.names())
    with pytest.raises(EvalspecError, match=r"world\.questions"):
        generate("world.question", 1)


def test_a_seed_means_the_same_rows_on_every_machine_and_python_version() -> None:
    rows = [generate(name, 7, 20) for name in sorted(GENERATORS.names()) if name.startswith("world.")]
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
    assert digest[:16] == "df73522089eb8aae"


@pytest.mark.parametrize("name", ["world.questions", "world.labels", "world.records", "world.arithmetic"])
def test_more_rows_begin_with_the_fewer_and_another_seed_differs(name: str) -> None:
    assert generate(name, 3, 40)[:10] == generate(name, 3, 10)
    assert generate(name, 4, 10) != generate(name, 3, 10)


def test_each_question_is_answered_by_its_gold_passage_and_by_no_other() -> None:
    passages = {row["id"]: row for row in generate("world.passages", 7)}
    questions = generate("world.questions", 7)
    assert len(questions) == len(passages) == 348
    for row in questions:
        (gold,) = row["gold_ids"]
        assert row["answer"] in passages[gold]["text"] and row["entity"] in passages[gold]["text"]
        same = [p for p in passages.values() if (p["entity"], p["attribute"]) == (row["entity"], row["attribute"])]
        assert [p["id"] for p in same] == [gold]


def test_near_misses_are_common() -> None:
    world = world_of(7)
    for fact in world.facts:
        assert len(world.by_entity[fact.entity]) >= 3
        assert len(world.by_attribute[fact.attribute]) >= 12
    people = [name for name, facts in world.by_entity.items() if facts[0].kind == "person"]
    shares = [sum(bool(set(a.split()) & set(b.split())) for b in people) - 1 for a in people]
    assert min(shares) >= 1 and sum(shares) / len(shares) > 4


def test_bm25_finds_the_person_but_not_always_the_fact() -> None:
    hits = {1: 0, 10: 0}
    stem = Stemmer.Stemmer("english")
    total = 0
    for seed in (1, 2):
        passages, questions = generate("world.passages", seed), generate("world.questions", seed, 200)
        index = bm25s.BM25()
        index.index(
            bm25s.tokenize([p["text"] for p in passages], stemmer=stem, show_progress=False), show_progress=False
        )
        asked = bm25s.tokenize([q["question"] for q in questions], stemmer=stem, show_progress=False)
        found, _ = index.retrieve(asked, k=10, show_progress=False)
        for question, row in zip(questions, found, strict=True):
            ids = [passages[i]["id"] for i in row]
            total += 1
            for k in hits:
                hits[k] += question["gold_ids"][0] in ids[:k]
    assert 0.2 < hits[1] / total < 0.6 and hits[10] / total > 0.8


def test_facts_differ_between_seeds_so_that_nothing_can_be_memorised() -> None:
    known: dict[str, list[str]] = {}
    for seed in range(30):
        for row in generate("world.questions", seed):
            known.setdefault(row["question"], []).append(row["answer"])
    repeated = [answers for answers in known.values() if len(answers) > 1]
    agree = sum(a == b for answers in repeated for a, b in pairwise(answers))
    pairs = sum(len(answers) - 1 for answers in repeated)
    assert pairs > 500 and agree / pairs < 0.08


def test_passages_are_single_sentences_of_few_words_with_nothing_left_to_fill_in() -> None:
    for row in generate("world.passages", 5):
        assert 4 <= len(row["text"].split()) <= 13
        assert row["text"].count(".") == 1 and not re.search(r"[{}]|\ba [aeiou]", row["text"])


def test_every_word_means_one_category() -> None:
    words = [word for group in lexicon.CATEGORIES.values() for word in group] + list(lexicon.LABELS)
    assert len(words) == len(set(words))
    assert all(len(a.phrasings) >= 3 and len(a.questions) >= 2 for a in ATTRIBUTES)


def test_labels_of_a_seed_share_one_assignment_and_another_seed_permutes_it() -> None:
    def assignment(seed: int) -> dict[str, str]:
        rows = generate("world.labels", seed, 200, categories=4)
        found = {(row["category"], row["label"]) for row in rows}
        assert len(found) == 4 and all(row["label"] in row["options"] for row in rows)
        return dict(found)

    assert len({tuple(sorted(assignment(seed).items())) for seed in range(10)}) == 10


def test_a_record_is_asked_by_a_key_that_occurs_once() -> None:
    for row in generate("world.records", 1, 40, n=[2, 40, 200]):
        pairs = {record["key"]: record["value"] for record in row["records"]}
        assert len(pairs) == row["n"] == len(row["records"]) and pairs[row["key"]] == row["value"]
        assert row["key"] not in pairs.values() and 0 <= row["depth"] <= 1
        assert row["records"][round(row["depth"] * (row["n"] - 1))]["key"] == row["key"]


def test_the_written_steps_lead_to_the_answer() -> None:
    for row in generate("world.arithmetic", 1, 40, turns=[1, 4, 20]):
        at = int(re.search(r"shows (\d)", row["question"])[1])  # type: ignore[index]
        turns = re.findall(r"(up|down) by (\d)", row["question"])
        assert len(turns) == row["turns"] == row["steps"].count("=")
        for way, by in turns:
            at = (at + int(by) if way == "up" else at - int(by)) % 10
        assert str(at) == row["answer"] == row["steps"].rstrip(".")[-1]


@pytest.mark.parametrize(
    ("name", "count", "options", "message"),
    [
        ("world.questions", 999, {}, "348 facts"),
        ("world.questions", 10, {"people": 1000}, "1 to 144 people"),
        ("world.questions", 10, {"persons": 3}, "persons"),
        ("world.labels", 10, {"categories": 40}, "2 to 12"),
        ("world.records", 10, {"n": 0}, "not 0"),
        ("world.arithmetic", 10, {"turns": 0}, "not 0"),
        ("world.arithmetic", 10, {"turns": []}, r"`turns` as a whole number from 1 to 10000, not \[\]"),
        ("world.arithmetic", 10, {"turns": [3, "four"]}, "not 'four'"),
        ("world.records", 10, {"n": 2.5}, "`n` as a whole number from 1 to 230, not 2.5"),
        ("world.labels", 10, {"categories": None}, "not None"),
        ("world.passages", 10, {"towns": "many"}, r"1 to \d+ towns, not 'many'"),
    ],
)
def test_what_a_world_cannot_give_is_said(name: str, count: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        generate(name, 1, count, **options)


def test_the_worlds_need_nothing_but_python() -> None:
    folder = Path(__file__).parents[2] / "evalspec" / "data" / "worlds"
    imported = {
        name for file in folder.glob("*.py") for name in re.findall(r"^(?:from|import) (\w+)", file.read_text(), re.M)
    }
    standard = {"collections", "dataclasses", "functools", "math", "pathlib", "random", "re", "typing"}
    assert imported <= standard | {"__future__", "evalspec"}
