"""Documents are cut without losing or changing a sign, and judged by the document that a passage comes from."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from evalspec.errors import RetrievalError
from evalspec.models.card import zoo_folder
from evalspec.models.tokens import Tokenizer
from evalspec.retrieval import Hit, Passage, chunked, retrieve
from evalspec.spec.data import DataBlock
from evalspec.spec.retrieval import ChunkBlock, RetrievalBlock

TEXT = "one  two\nthree four five six seven"


def texts(text: str, **block: int | str) -> list[str]:
    cut = chunked([Passage("doc", text)], ChunkBlock.model_validate(block), Path())
    assert [passage.id for passage in cut] == [f"doc#{number}" for number in range(1, len(cut) + 1)]
    assert {passage.document for passage in cut} == {"doc"}
    return [passage.text for passage in cut]


def test_words_keep_what_stands_between_them() -> None:
    assert texts(TEXT, words=3) == ["one  two\nthree", "four five six", "seven"]
    assert texts(TEXT, words=3, overlap=1) == ["one  two\nthree", "three four five", "five six seven"]
    assert texts(TEXT, words=100) == [TEXT]
    assert texts("  \n", words=3) == ["  \n"], "a document without a word stays, so that its id is known"


@given(st.text(max_size=60), st.integers(1, 12), st.integers(0, 11))
def test_characters_are_all_there_and_neighbours_share_the_overlap(text: str, size: int, overlap: int) -> None:
    overlap = min(overlap, size - 1)
    cut = texts(text, characters=size, overlap=overlap)
    assert cut[0] + "".join(part[overlap:] for part in cut[1:]) == text
    assert all(len(part) <= size for part in cut)
    assert all(before[len(before) - overlap :] == after[:overlap] for before, after in itertools.pairwise(cut))
    assert all(len(part) > overlap for part in cut[1:]), "no passage says only what its neighbour says"


def test_tokens_are_those_of_the_named_tokenizer() -> None:
    sentence = "Maria Silva lives in Porto. The mayor of Porto is Ken Ito, and the tower is 40 metres high."
    ids = Tokenizer(str(zoo_folder() / "mamba")).encode([sentence], special=False)[0]
    cut = texts(sentence, tokens=5, tokenizer="zoo/mamba")
    assert len(cut) == -(-len(ids) // 5)
    assert "".join(cut).replace(" ", "") == sentence.replace(" ", "")
    with pytest.raises(RetrievalError, match=r"`chunk\.tokenizer`"):
        texts(sentence, tokens=5, tokenizer="./nowhere")


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({}, "exactly one of"),
        ({"words": 3, "tokens": 3, "tokenizer": "x"}, "exactly one of"),
        ({"words": 3, "overlap": 3}, "must be less than"),
        ({"tokens": 3}, "needs `tokenizer`"),
        ({"words": 3, "tokenizer": "x"}, "belongs to `tokens`"),
    ],
)
def test_a_cut_that_has_no_meaning_is_refused(block: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ChunkBlock.model_validate(block)


DOCUMENTS = [
    Passage("a", "red boat at sea. green lamp on land. white drum"),
    Passage("b", "blue cart. blue bell. blue lamp. blue drum"),
    Passage("c", "red cart with a red bell and a red lamp"),
]


def hits(retriever: str, gold: list[str], **more: object) -> tuple[Hit, ...]:
    block = RetrievalBlock.model_validate(
        {"corpus": DataBlock(file="x"), "gold": "{{ g }}", "retriever": retriever, "chunk": {"words": 4}, **more}
    )
    assert block.chunk
    (found,) = retrieve(block, chunked(DOCUMENTS, block.chunk, Path()), ["green lamp"], [gold], ["r1"], None)
    return found


def test_a_chunk_is_relevant_when_its_document_is_gold() -> None:
    found = hits("bm25", ["a"], k=3)
    assert found[0].passage.id == "a#2"
    assert [hit.relevant for hit in found] == [hit.passage.document == "a" for hit in found]


def test_the_oracle_shows_the_gold_chunks_that_answer_best() -> None:
    assert [hit.passage.id for hit in hits("oracle", ["a"], k=1)] == ["a#2"]
    assert {hit.passage.id for hit in hits("oracle", ["a"], k=3)} == {"a#1", "a#2", "a#3"}
    shown = hits("oracle", ["a"], n_distractors=2)
    assert sorted(hit.relevant is True for hit in shown) == [False, False, True, True, True]


def test_withheld_documents_are_withheld_whole() -> None:
    block = RetrievalBlock.model_validate(
        {"corpus": DataBlock(file="x"), "gold": "{{ g }}", "chunk": {"words": 4}, "withhold_gold": True, "k": 9}
    )
    assert block.chunk
    (found,) = retrieve(
        block, chunked(DOCUMENTS, block.chunk, Path()), ["green red lamp"], [["a"]], ["r"], None, [["a"]]
    )
    assert found and {hit.passage.document for hit in found} == {"b", "c"}
