"""BM25 scores as its formula says, ranks ties in the corpus's order, and reaches the published figure on SciFact."""

import math
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from evalspec.data.rows import load_rows
from evalspec.errors import RetrievalError
from evalspec.retrieval import Passage, Query, retrieve, search
from evalspec.retrieval.bm25 import BM25, terms_of
from evalspec.spec.data import DataBlock
from evalspec.spec.retrieval import RetrievalBlock

TEST_DATA = Path(os.environ.get("EVALSPEC_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_data = pytest.mark.skipif(not TEST_DATA.is_dir(), reason=f"no test data at {TEST_DATA} (EVALSPEC_TEST_DATA)")

TEXTS = [
    "The silver ladle stands in the cellar.",
    "The silver kettle stands in the attic.",
    "Mira lives in Oldham and sells kettles.",
    "The silver ladle stands in the cellar.",
    "",
]


def passages(texts: Sequence[str] = TEXTS) -> list[Passage]:
    return [Passage(f"p{number}", text) for number, text in enumerate(texts)]


def test_scores_equal_the_formula() -> None:
    documents = [re.findall(r"\w\w+", text.lower()) for text in TEXTS]
    mean = sum(map(len, documents)) / len(documents)

    def expected(query: str, document: list[str]) -> float:
        score = 0.0
        for term in re.findall(r"\w\w+", query.lower()):
            df = sum(term in each for each in documents)
            tf = document.count(term)
            idf = math.log(1 + (len(documents) - df + 0.5) / (df + 0.5))
            score += idf * tf / (tf + 1.5 * (1 - 0.75 + 0.75 * len(document) / mean))
        return score

    query = "the silver silver ladle in Oldham"
    (ranking,) = BM25(TEXTS, "none").search([Query(query)], 10)
    assert dict(ranking) == pytest.approx({index: expected(query, documents[index]) for index in range(4)}, rel=1e-5)


def test_ties_stand_in_the_order_of_the_corpus_at_each_cut() -> None:
    texts = ["a red boat", "a red cart", "a red boat", "blue", "a red boat"] * 20
    whole = [index for index, _ in search("bm25", passages(texts), ["red boat"], 100)[0]]
    boats, carts = ([index for index, text in enumerate(texts) if word in text] for word in ("boat", "cart"))
    assert whole == boats + carts
    for k in (1, 2, 7, 59, 61):
        assert [index for index, _ in search("bm25", passages(texts), ["red boat"], k)[0]] == whole[:k]


def test_words_are_stemmed_and_stop_words_left_out() -> None:
    assert terms_of("english")("The kettles ARE boiling, in Oldham") == ["kettl", "boil", "oldham"]
    assert terms_of("none")("The kettles") == ["the", "kettles"]
    assert terms_of("german")("Die Häuser und der Garten") == ["haus", "gart"]
    assert terms_of("finnish")("talossa") == ["talo"]
    assert [index for index, _ in search("bm25", passages(), ["kettle"], 5)[0]] == [1, 2]


def test_an_unknown_stemmer_is_an_error_with_the_nearest() -> None:
    with pytest.raises(RetrievalError, match=r"no stemmer `englsh`\. Did you mean `english`\?"):
        BM25(TEXTS, "englsh")


def test_what_shares_no_word_with_the_query_is_not_found() -> None:
    assert search("bm25", passages(), ["", "the", "zebra", "Oldham"], 5)[:3] == [[], [], []]
    assert [index for index, _ in search("bm25", passages(), ["Oldham"], 5)[0]] == [2]
    assert search("bm25", passages(["", "the"]), ["the", "x"], 5) == [[], []]
    assert search("bm25", passages(), [], 5) == []


def test_k_may_exceed_the_corpus() -> None:
    assert len(search("bm25", passages(), ["silver stands"], 1000)[0]) == 3


def test_a_ranking_does_not_depend_on_the_process_or_on_the_other_queries() -> None:
    code = (
        "import sys; from evalspec.retrieval import Passage, search; "
        f"texts = {TEXTS!r}; found = search('bm25', [Passage(str(i), t) for i, t in enumerate(texts)], "
        "['silver ladle kettle cellar', 'Mira'], 3); print(found); assert 'torch' not in sys.modules"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        for seed in ("1", "2")
    ]
    assert runs[0].stdout == runs[1].stdout
    assert [run.stderr for run in runs] == ["", ""]  # no progress bars
    alone = search("bm25", passages(), ["silver ladle kettle cellar"], 3)
    assert runs[0].stdout.startswith(str(alone)[:-1])


def ndcg(ranking: Sequence[str], gold: set[str], k: int = 10) -> float:
    """With binary relevance (Järvelin and Kekäläinen 2002), written here to depend on nothing that is tested."""
    gained = sum(1 / math.log2(rank + 1) for rank, name in enumerate(ranking[:k], start=1) if name in gold)
    return gained / sum(1 / math.log2(rank + 1) for rank in range(1, min(len(gold), k) + 1))


@needs_data
def test_scifact_ndcg_is_at_least_068() -> None:
    root = TEST_DATA / "scifact"
    gold: dict[str, set[str]] = {}
    for row in load_rows(DataBlock(file="qrels_test.tsv"), root).rows:
        gold.setdefault(str(row.values["query-id"]), set()).add(str(row.values["corpus-id"]))
    queries = {row.id: row.values["text"] for row in load_rows(DataBlock(file="queries.jsonl"), root).rows}
    data = DataBlock(file="corpus.csv.gz", id="doc_id")
    corpus = load_rows(data, root).rows
    names = list(gold)
    hits = retrieve(
        RetrievalBlock(corpus=data, gold="{{ gold }}", k=10),
        [Passage(row.id, f"{row.values['title']} {row.values['abstract']}") for row in corpus],
        [queries[name] for name in names],
        [sorted(gold[name]) for name in names],
        names,
        None,
    )
    scores = [ndcg([hit.passage.id for hit in row], gold[name]) for name, row in zip(names, hits, strict=True)]
    assert len(scores) == 300
    assert sum(scores) / len(scores) >= 0.68


def test_an_index_does_not_start_jax(tmp_path: Path) -> None:
    """Where jax is installed it would take most of a GPU's memory as soon as it computes."""
    package = tmp_path / "jax"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('jax was imported')")
    code = "from evalspec.retrieval.bm25 import BM25; print(len(BM25(['one two', 'three']).search([], 1)))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (ran.stdout.strip(), ran.stderr) == ("0", "")
