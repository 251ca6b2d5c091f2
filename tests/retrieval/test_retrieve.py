"""The one call that the compiler makes: hits with ranks and relevance, and a clear word on what cannot be."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from evalspec.errors import EvalspecError, RetrievalError
from evalspec.retrieval import Hit, Passage, retrieve
from evalspec.spec.data import DataBlock
from evalspec.spec.retrieval import RetrievalBlock

CORPUS = [Passage("a", "red boat"), Passage("b", "red cart"), Passage("c", "blue cart")]


def block(retriever: str = "bm25", **more: object) -> RetrievalBlock:
    return RetrievalBlock(corpus=DataBlock(file="x.jsonl"), gold="{{ g }}", retriever=retriever, **more)  # type: ignore[arg-type]


def ask(
    block: RetrievalBlock, corpus: Sequence[Passage] = CORPUS, gold: Sequence[Sequence[str]] | None = (["b"],)
) -> list[tuple[Hit, ...]]:
    return retrieve(block, corpus, ["red cart"], gold, ["row 1"], None)


def test_hits_have_ranks_scores_and_relevance() -> None:
    (hits,) = ask(block(k=2))
    assert [(hit.passage.id, hit.rank, hit.relevant) for hit in hits] == [("b", 1, True), ("a", 2, False)]
    assert hits[0].score > hits[1].score > 0
    assert {hit.relevant for hit in ask(block(), gold=None)[0]} == {None}
    assert {hit.relevant for hit in ask(block(), gold=[[]])[0]} == {False}


def test_a_smaller_k_is_the_beginning_of_a_larger_one() -> None:
    assert [ask(block(k=k))[0] for k in (1, 2, 3)] == [ask(block(k=3))[0][:k] for k in (1, 2, 3)]


def test_none_needs_neither_corpus_nor_queries() -> None:
    assert retrieve(RetrievalBlock(retriever="none"), [], [], None, ["r1", "r2"], None) == [(), ()]


def test_no_rows_give_no_hits() -> None:
    assert retrieve(block(), CORPUS, [], [], [], None) == []


def test_an_empty_corpus_is_an_error() -> None:
    with pytest.raises(RetrievalError, match=r"`bm25` needs passages; its `corpus:` has no rows"):
        ask(block(), corpus=[])


def test_passage_ids_that_repeat_are_named() -> None:
    with pytest.raises(RetrievalError, match=r"1 passage ids of the corpus stand on more than one passage: a"):
        ask(block(), corpus=[*CORPUS, Passage("a", "again")])


def test_gold_ids_without_a_passage_are_named_and_counted() -> None:
    with pytest.raises(RetrievalError) as caught:
        retrieve(block(), CORPUS, ["x"] * 5, [["a", f"z{n}"] for n in range(5)], [f"row {n}" for n in range(5)], None)
    message = str(caught.value)
    assert "5 gold ids are in no passage" in message
    assert "z0, z1, z2 …" in message
    assert "row `row 0`" in message
    assert "look like a, b, c" in message


def test_an_oracle_without_gold_is_an_error() -> None:
    with pytest.raises(RetrievalError, match="say with `gold:`"):
        ask(block("oracle"), gold=None)


def test_an_unknown_retriever_is_an_error_with_the_nearest() -> None:
    with pytest.raises(EvalspecError, match=r"no retriever `bm52`\. Did you mean `bm25`\? Known: bm25, dense"):
        ask(block("bm52"))


def test_dense_without_its_packages_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(
        RetrievalError, match=r"sentence-transformers`, which is not installed: pip install 'evalspec\[dense\]'"
    ):
        ask(block("dense", encoder=str(tmp_path)))


COLOURS = [Passage(f"p{n}", f"{colour} cart") for n, colour in enumerate("red green blue white black grey".split())]
QUESTIONS = ["red cart", "green cart", "blue cart", "white cart"]
GOLDS = [["p0"], ["p1"], ["p2"], ["p3"]]


def asked(
    retriever: str = "bm25", withheld: Sequence[Sequence[str]] | None = None, **more: object
) -> list[tuple[Hit, ...]]:
    rows = [f"r{n}" for n in range(len(QUESTIONS))]
    return retrieve(block(retriever, **more), COLOURS, QUESTIONS, GOLDS, rows, None, withheld)


@pytest.mark.parametrize("retriever", ["bm25", "oracle"])
def test_an_order_changes_places_in_the_prompt_and_no_ranks(retriever: str) -> None:
    plain = asked(retriever, k=5)
    assert all([hit.place for hit in row] == [1, 2, 3, 4, 5] for row in plain)
    for order in ("reverse", "random"):
        found = asked(retriever, k=5, order=order)
        assert [[(hit.passage.id, hit.rank) for hit in row] for row in found] == [
            [(hit.passage.id, hit.rank) for hit in row] for row in plain
        ]
        places = [[hit.place for hit in row] for row in found]
        assert all(sorted(row) == [1, 2, 3, 4, 5] for row in places)
        assert (places == [[5, 4, 3, 2, 1]] * 4) == (order == "reverse")
    drawn = [[hit.place for hit in row] for row in asked(retriever, k=5, order="random")]
    assert drawn != [[hit.place for hit in row] for row in asked(retriever, k=5, order="random", seed=1)]
    assert len({tuple(row) for row in drawn}) > 1


@pytest.mark.parametrize("retriever", ["bm25", "oracle"])
def test_withheld_gold_is_not_found_and_the_prompt_stays_as_long(retriever: str) -> None:
    whole = asked(retriever, k=3, withhold_gold=True)
    found = asked(retriever, k=3, withhold_gold=True, withheld=[["p0"], [], ["p2", "p1"], []])
    assert [len(row) for row in found] == [3, 3, 3, 3]
    for number, (row, gold) in enumerate(zip(found, GOLDS, strict=True)):
        assert (gold[0] in [hit.passage.id for hit in row]) == (number not in (0, 2))
        assert [hit.rank for hit in row] == [1, 2, 3]
    assert "p1" not in [hit.passage.id for hit in found[2]], "what answers another row can be left out too"
    assert (found[1], found[3]) == (whole[1], whole[3])
    if retriever != "oracle":
        assert [hit.passage.id for hit in found[0]][:2] == [hit.passage.id for hit in whole[0]][1:]
