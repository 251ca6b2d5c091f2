"""Worlds of long contexts: where the answer stands is exactly where the row says, and depth moves nothing else."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from evalspec.data.rows import load_rows
from evalspec.data.worlds import lexicon
from evalspec.data.worlds.contexts import pieces
from evalspec.data.worlds.facts import Fact
from evalspec.data.worlds.grammar import ATTRIBUTES
from evalspec.errors import DataError, SpecError
from evalspec.spec import load
from evalspec.spec.data import DataBlock
from evalspec.zoo.tokenizer import encode_words


def rows(name: str, count: int = 12, seed: int = 3, root: Path = Path(), **options: Any) -> list[dict[str, Any]]:
    block = DataBlock(generate=name, seed=seed, count=count, options=options)
    return [dict(row.values) for row in load_rows(block, root).rows]


SHARING: list[tuple[str, dict[str, Any]]] = [
    ("world.records", {"n": 30}),
    ("world.phone_book", {"n": 30}),
    ("world.phone_book", {"n": 30, "digits": 0}),
    ("world.variables", {"chains": 10, "hops": 2}),
    ("world.multi_document", {"n": 30}),
]


@pytest.mark.parametrize(
    ("name", "options"),
    [*SHARING, ("world.patterns", {"repeats": 3, "gap": 5}), ("world.haystack", {"length": 200})]
    + [("world.haystack", {"kind": kind}) for kind in ("multi_key", "multi_value", "multi_query")],
)
def test_more_rows_begin_with_the_fewer_and_another_seed_differs(name: str, options: dict[str, Any]) -> None:
    assert rows(name, 12, **options)[:5] == rows(name, 5, **options)
    assert rows(name, 5, seed=4, **options) != rows(name, 5, **options)


@pytest.mark.parametrize(("name", "options"), SHARING)
def test_rows_that_share_a_context_ask_for_different_places_of_it(name: str, options: dict[str, Any]) -> None:
    found = rows(name, 12, queries=4, **options)
    for group in (found[:4], found[4:8], found[8:]):
        assert len({row["context"] for row in group}) == 1
        assert len({row["depth"] for row in group}) == 4
    assert len({row["context"] for row in found}) == 3


def askable(row: dict[str, Any]) -> list[float]:
    """The depths at which something can be asked for: anywhere, or where a chain of variables ends."""
    read = {line["value"] for line in row.get("assignments", ())}
    names = [line["name"] for line in row.get("assignments", ())] or [""] * row["n"]
    return [at / (row["n"] - 1) for at, name in enumerate(names) if name not in read]


@pytest.mark.parametrize(("name", "options"), SHARING)
def test_the_depth_that_is_asked_for_changes_no_context(name: str, options: dict[str, Any]) -> None:
    held = {"records", "entries", "assignments", "passages"}
    contexts = []
    for depth in (0, 0.25, 1):
        found = rows(name, 4, depth=depth, **options)
        contexts.append([{key: row[key] for key in held & set(row)} for row in found])
        for row in found:
            assert abs(row["depth"] - depth) == pytest.approx(min(abs(at - depth) for at in askable(row)))
    assert contexts[0] == contexts[1] == contexts[2]


def test_a_longer_phone_book_begins_as_a_shorter_one_and_has_each_name_once() -> None:
    for short, long in zip(rows("world.phone_book", n=20), rows("world.phone_book", n=1600), strict=True):
        assert long["entries"][:20] == short["entries"]
        assert len({entry["name"] for entry in long["entries"]}) == 1600
        entry = long["entries"][round(long["depth"] * 1599)]
        assert entry == {"name": long["name"], "number": long["answer"]} and len(long["answer"]) == 4


def test_the_next_word_of_a_pattern_is_what_followed_its_beginning_before() -> None:
    for row in rows("world.patterns", period=6, repeats=3, gap=4):
        assert row["lines"][0] == row["lines"][2] and len(row["lines"]) == 4 and len(row["lines"][3].split()) == 4
        assert row["lines"][0].startswith(f"{row['start']} {row['answer']}") and row["answer"] in row["options"]
        assert not set(row["lines"][3].split()) & set(row["options"])
        assert row["length"] == len(encode_words("\n".join([*row["lines"], row["start"]])))
    shown = rows("world.patterns", period=6, repeats=0)
    assert all(row["lines"] == [] for row in shown)
    assert [row["answer"] for row in shown] == [row["answer"] for row in rows("world.patterns", period=6, repeats=9)]


@pytest.mark.parametrize("hops", [0, 1, 3])
def test_following_the_assignments_leads_to_the_answer(hops: int) -> None:
    for row in rows("world.variables", hops=hops, chains=7):
        assignments = {line["name"]: line["value"] for line in row["assignments"]}
        assert len(assignments) == row["n"] == 7 * (hops + 1)
        at, steps = row["name"], 0
        while at in assignments:
            at, steps = assignments[at], steps + 1
        assert (at, steps) == (row["answer"], hops + 1)
        places = [list(assignments).index(name) for name in row["chain"]]
        assert places == sorted(places) and places[-1] == round(row["depth"] * (row["n"] - 1))


def test_one_document_answers_and_others_share_its_entity_or_its_attribute() -> None:
    for n in (2, 10, 40, 400, 1416):
        for row in rows("world.multi_document", 3, n=n):
            assert len(row["passages"]) == n == len({passage["text"] for passage in row["passages"]})
            gold = row["passages"][round(row["depth"] * (n - 1))]
            assert [gold["id"]] == row["gold_ids"]
            assert row["answer"] in gold["text"] and row["entity"] in gold["text"]
    dense = rows("world.multi_document", 40, n=20)
    kin = [sum(row["entity"] in passage["text"] for passage in row["passages"]) - 1 for row in dense]
    assert sum(kin) / len(kin) > 1


def stated(text: str) -> set[str]:
    """The attributes that a sentence of the worlds may state."""
    found = set()
    for attribute in ATTRIBUTES:
        for at in range(len(attribute.phrasings)):
            before, _, rest = Fact("", "\0", attribute.name, "\1", at).text.replace("\1", "\0").partition("\0")
            middle, _, end = rest.partition("\0")
            if text.startswith(before) and middle in text and text.endswith(end):
                found.add(attribute.name)
    return found


def test_a_single_needle_stands_alone_and_where_it_was_put() -> None:
    for depth in (0, 0.5, 1):
        for row in rows("world.haystack", 8, length=400, depth=depth):
            at = round(row["depth"] * (row["n"] - 1))
            assert abs(row["depth"] - depth) <= 0.5 / (row["n"] - 2)
            (attribute,) = stated(row["passages"][at]["text"])
            assert row["answer"] in row["passages"][at]["text"]
            assert not any(stated(p["text"]) == {attribute} for i, p in enumerate(row["passages"]) if i != at)
            text = "".join(f"- {passage['text']}\n" for passage in row["passages"])
            assert len(encode_words(text)) == row["length"] and 370 <= row["length"] <= 400


def test_needles_of_each_kind_are_what_their_kind_says() -> None:
    for row in rows("world.haystack", 8, kind="multi_key", needles=5, length=300):
        (attribute,) = stated(row["passages"][round(row["depth"] * (row["n"] - 1))]["text"])
        assert sum(stated(passage["text"]) == {attribute} for passage in row["passages"]) == 5
    for row in rows("world.haystack", 8, kind="multi_value", needles=3, length=300):
        assert len(set(row["answer"])) == 3 and row["answers"] == [row["answer"]]
        assert all(any(value in passage["text"] for passage in row["passages"]) for value in row["answer"])
    found = rows("world.haystack", 8, kind="multi_query", needles=4, length=300)
    for group in (found[:4], found[4:]):
        assert all(row["passages"] == group[0]["passages"] for row in group)
        assert [row["question"] for row in group] == group[0]["questions"]
        assert [row["answer"] for row in group] == group[0]["answers"] and len({row["depth"] for row in group}) == 4


def test_any_file_of_documents_is_a_haystack(tmp_path: Path) -> None:
    sentences = [f"Sentence number {number} says nothing." for number in range(50)]
    (tmp_path / "book.txt").write_text(" ".join(sentences))
    with gzip.open(tmp_path / "book.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps({"body": " ".join(sentences[at : at + 5])}) + "\n" for at in range(0, 50, 5)))
    for options in ({"documents": "book.txt"}, {"documents": "book.jsonl.gz", "column": "body"}):
        for row in rows("world.haystack", 5, root=tmp_path, length=200, depth=0.5, **options):
            texts = [passage["text"] for passage in row["passages"]]
            at = round(row["depth"] * (row["n"] - 1))
            assert row["answer"] in texts.pop(at) and set(texts) <= set(sentences)
            first = sentences.index(texts[0])
            assert texts == [sentences[(first + i) % 50] for i in range(len(texts))], "documents keep their order"
            assert pieces("".join(f"- {text}\n" for text in texts)) <= 200


def test_a_haystack_without_its_documents_is_said_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"body": "Text."}\n')
    for options, message in (
        ({"documents": "no.txt"}, "there is no file no.txt"),
        ({"documents": "rows.jsonl"}, "row 1 has no text in column `text`.*It has body"),
    ):
        with pytest.raises(DataError, match=message):
            rows("world.haystack", root=tmp_path, **options)
    task = {
        "data": {"generate": "world.haystack", "options": {"documents": "no.txt"}},
        "prompt": {"template": "{{ question }}", "target": "{{ answer }}"},
        "metrics": ["perplexity"],
    }
    with pytest.raises(SpecError, match=r"tasks\.t\.data\.options\.documents: there is no file"):
        load({"name": "x", "models": {"m": {"weights": "zoo/mamba"}}, "tasks": {"t": task}}, root=tmp_path)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("world.patterns", {"period": 1}, "`period` as a whole number of at least 2, not 1"),
        ("world.patterns", {"period": 300, "gap": 300}, r"knows \d+ words; .* need 600"),
        ("world.phone_book", {"n": 1601}, "from 1 to 1600, not 1601"),
        ("world.phone_book", {"n": 4, "queries": 5}, "`queries` as a whole number from 1 to 4, not 5"),
        ("world.phone_book", {"depth": 1.5}, "`depth` from 0 .* to 1 .*, not 1.5"),
        ("world.records", {"n": 4, "queries": 5}, "from 1 to 4, not 5"),
        ("world.haystack", {"kind": "multikey"}, "no kind `multikey`. Did you mean `multi_key`"),
        ("world.haystack", {"kind": "multi_query", "depth": 0.5}, "spreads its needles"),
        ("world.haystack", {"length": "long"}, "`length` as a whole number"),
        ("world.haystack", {"length": 10**9}, "from 1 to 10000000"),
        ("world.haystack", {"documents": ["a.txt"]}, r"`documents` as a text, not \['a.txt'\]"),
        ("world.patterns", {"repeats": 10**9}, "`repeats` as a whole number from 0 to 100000"),
        ("world.variables", {"hops": 9, "chains": 99}, "need 990"),
        ("world.multi_document", {"n": 2000}, "from 1 to 1416, not 2000"),
    ],
)
def test_what_a_context_cannot_give_is_said(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        rows(name, **options)


def test_the_project_root_is_no_option() -> None:
    with pytest.raises(DataError, match=r"`world\.haystack` has no option `root`\. Known: kind, length"):
        load_rows(DataBlock(generate="world.haystack", options={"root": "/"}), Path())


def test_every_word_of_the_contexts_is_one_token_of_the_zoo() -> None:
    for row in [*rows("world.phone_book", digits=0), *rows("world.phone_book")]:
        encode_words("\n".join(f"{entry['name']}: {entry['number']}" for entry in row["entries"]))  # else KeyError
    assert set(lexicon.TOWNS) >= {row["answer"] for row in rows("world.phone_book", digits=0)}
