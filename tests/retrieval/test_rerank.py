"""A cross-encoder orders anew what was found. Its weights are random here: the way is tested, not the quality."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evalspec.errors import RetrievalError
from evalspec.retrieval import Passage, retrieve
from evalspec.retrieval.rerank import Reranker, reranker_of
from evalspec.spec.data import DataBlock
from evalspec.spec.retrieval import RerankBlock, RetrievalBlock

pytest.importorskip("sentence_transformers")

WORDS = "red green blue white boat cart lamp drum bell".split()
CORPUS = [Passage(f"p{at}", f"{colour} {thing}") for at, (colour, thing) in enumerate(
    (colour, thing) for colour in WORDS[:4] for thing in WORDS[4:]
)]  # fmt: skip
QUERIES = ["red boat", "green lamp", "blue bell boat"]


def cross_encoder(folder: Path, labels: int = 1, seed: int = 0) -> Path:
    """A tiny BertForSequenceClassification with random weights and a word-level tokenizer, saved as a model is."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, num_labels=labels, initializer_range=1.0,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cross_encoder(tmp_path_factory.mktemp("cross") / "model")


def found(model: Path, cache: Path | None = None, **block: Any) -> list[list[tuple[str, float]]]:
    settings = RetrievalBlock(
        corpus=DataBlock(file="x.jsonl"), rerank=RerankBlock(model=str(model), depth=block.pop("depth", 50)), **block
    )
    hits = retrieve(settings, CORPUS, QUERIES, None, [f"r{at}" for at in range(len(QUERIES))], cache)
    return [[(hit.passage.id, hit.score) for hit in row] for row in hits]


def expected(model: Path, query: str, texts: list[str]) -> list[float]:
    """The logits by transformers alone, one pair at a time."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer, net = AutoTokenizer.from_pretrained(model), AutoModelForSequenceClassification.from_pretrained(model)
    with torch.no_grad():
        return [float(net.eval()(**tokenizer(query, text, return_tensors="pt")).logits[0, 0]) for text in texts]


def test_what_bm25_found_is_ordered_by_the_cross_encoders_logits(model: Path) -> None:
    plain = RetrievalBlock(corpus=DataBlock(file="x.jsonl"), k=8)
    first = retrieve(plain, CORPUS, QUERIES, None, ["a", "b", "c"], None)
    for query, before, after in zip(QUERIES, first, found(model, k=8, depth=8), strict=True):
        texts = [hit.passage.text for hit in before]
        logits = expected(model, query, texts)
        order = sorted(range(len(texts)), key=lambda at: -round(logits[at], 4))
        assert [name for name, _ in after] == [before[at].passage.id for at in order]
        assert [score for _, score in after] == pytest.approx([logits[at] for at in order], abs=1e-3)
    assert [[hit.passage.id for hit in row] for row in first] != [
        [name for name, _ in row] for row in found(model, k=8, depth=8)
    ]


def test_a_smaller_k_is_the_beginning_of_a_larger_one_at_one_depth(model: Path) -> None:
    long = found(model, k=8, depth=8)
    assert [row[:3] for row in long] == found(model, k=3, depth=8)
    assert [len(row) for row in found(model, k=8, depth=2)] == [8, 8, 8], "no less than k passages are read"


def test_scores_do_not_depend_on_what_else_is_read(model: Path) -> None:
    pairs = [(query, passage.text) for query in QUERIES for passage in CORPUS]
    reader = Reranker(str(model), None)
    whole = reader.scores(pairs)
    alone = np.concatenate([reader.scores(pairs[at : at + 1]) for at in range(0, len(pairs), 7)])
    np.testing.assert_allclose(alone, whole[::7], atol=2e-4)
    np.testing.assert_array_equal(reader.scores([pairs[3], pairs[3]]), [whole[3], whole[3]])


def test_scores_are_kept_by_content_and_read_back_without_the_model(tmp_path: Path) -> None:
    folder, cache = cross_encoder(tmp_path / "one"), tmp_path / "cache"
    pairs = [("red boat", "red boat"), ("red boat", "blue bell")]
    scores = Reranker(str(folder), cache).scores(pairs)
    (file,) = (cache / "rerankings").iterdir()
    again = Reranker(str(folder), cache)
    np.testing.assert_array_equal(again.scores(pairs[::-1]), scores[::-1])
    assert "_model" not in vars(again)
    other = Reranker(str(cross_encoder(tmp_path / "two", seed=1)), cache)
    assert not np.allclose(other.scores(pairs), scores)
    assert len(list((cache / "rerankings").iterdir())) == 2
    file.write_bytes(file.read_bytes()[:50])  # damaged: read anew
    np.testing.assert_array_equal(Reranker(str(folder), cache).scores(pairs), scores)


def test_a_classifier_is_no_reranker(tmp_path: Path) -> None:
    with pytest.raises(RetrievalError, match=r"gives 3 numbers for a pair, not one"):
        found(cross_encoder(tmp_path / "m", labels=3), k=3)


def test_a_reranker_that_is_none_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RetrievalError, match=r"the reranker `.*` cannot be loaded.*Name a folder or a cross-encoder"):
        found(tmp_path, k=3)


def test_nothing_found_is_nothing_to_read(model: Path) -> None:
    assert reranker_of(str(model), None).rerank([], CORPUS, []) == []
    assert Reranker(str(model), None).scores([]).shape == (0,)
