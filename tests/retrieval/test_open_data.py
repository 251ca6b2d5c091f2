"""The retrieval of specs/hub/rag_open.yaml on its real data: rows, gold and prompts are what they should be."""

from __future__ import annotations

import csv
import gzip
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from evalspec.plan.compile import Plan, compile_plan
from evalspec.spec import load

ROOT = Path(__file__).parents[2]
TEST_DATA = Path(os.environ.get("EVALSPEC_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
pytestmark = pytest.mark.skipif(not TEST_DATA.is_dir(), reason=f"no test data at {TEST_DATA} (EVALSPEC_TEST_DATA)")
LIMIT = 40


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the files that the spec asks for, laid out as their sources have them."""
    root = tmp_path_factory.mktemp("open")
    shutil.copytree(ROOT / "prompts", root / "prompts")
    scifact, qrels = root / "data" / "scifact", root / "data" / "scifact" / "qrels"
    qrels.mkdir(parents=True)
    shutil.copy(TEST_DATA / "lost_in_the_middle" / "nq-open-oracle.jsonl.gz", root / "data")
    shutil.copy(TEST_DATA / "scifact" / "queries.jsonl", scifact)
    shutil.copy(TEST_DATA / "scifact" / "qrels_test.tsv", qrels / "test.tsv")
    with gzip.open(TEST_DATA / "scifact" / "corpus.csv.gz", "rt", encoding="utf-8", newline="") as file:
        rows = [{"_id": r["doc_id"], "title": r["title"], "text": r["abstract"]} for r in csv.DictReader(file)]
    judged = {line.split("\t")[1] for line in (qrels / "test.tsv").read_text().splitlines()}
    rows = [row for at, row in enumerate(rows) if row["_id"] in judged or at < 800]  # a part, to be quick
    (scifact / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return root


def compiled(root: Path, task: str, conditions: list[dict[str, Any]]) -> Plan:
    """The plan of one of its tasks under some conditions, for a model that ships."""
    spec = yaml.safe_load((ROOT / "specs" / "hub" / "rag_open.yaml").read_text(encoding="utf-8"))
    spec["models"] = {"mamba2": {"weights": "zoo/mamba2"}}
    base = spec["tasks"][task].get("extends")
    spec["tasks"] = {name: block for name, block in spec["tasks"].items() if name in (task, base)}
    if base:
        spec["tasks"]["_" + base] = spec["tasks"].pop(base)
        spec["tasks"][task]["extends"] = "_" + base
    spec["sweep"] = {f"tasks.{task}.retrieval": conditions}
    return compile_plan(load(spec, root=root), limit=LIMIT)


def test_natural_questions_with_gold_passages_moved_and_withheld(root: Path) -> None:
    plan = compiled(
        root, "nq_abstention", [{"retriever": "bm25", "k": 10}, {"retriever": "oracle", "gold_at": [1, 10], "k": 10},
                                {"retriever": "oracle", "withhold_gold": True, "k": 10}],
    )  # fmt: skip
    found: dict[str, list[Any]] = {}
    for sample in plan.models[0].samples:
        found.setdefault(json.dumps(list(sample.cell.params.values())), []).append(sample.draft)
    bm25, first, last, withheld = found.values()
    assert [len(drafts) for drafts in found.values()] == [LIMIT] * 4
    assert sum(any(hit.relevant for hit in draft.hits) for draft in bm25) >= 0.7 * LIMIT
    for drafts, rank in ((first, 1), (last, 10)):
        assert all([hit.rank for hit in draft.hits if hit.relevant] == [rank] for draft in drafts)
    for draft in first:
        gold = next(hit.passage.text for hit in draft.hits if hit.relevant)
        assert any(target.lower() in gold.lower() for target in draft.targets), "the gold passage holds an answer"
        assert draft.prompt.split("- ")[1].startswith(gold[:60])
    assert not any(hit.relevant for draft in withheld for hit in draft.hits)
    assert all(len(draft.hits) == 10 for draft in withheld)


def test_scifact_claims_have_two_answers_and_chunks_of_their_abstracts(root: Path) -> None:
    plan = compiled(
        root,
        "claims",
        [{"retriever": "bm25", "k": 3}, {"retriever": "bm25", "k": 8, "chunk": {"words": 60, "overlap": 15}}],
    )
    whole, cut = ([s.draft for s in plan.models[0].samples if s.cell == cell] for cell in plan.cells)
    assert len(whole) == len(cut) == LIMIT
    assert {draft.choices for draft in whole} == {("supported", "refuted")}
    assert {len(draft.gold_choices) for draft in whole} == {1}
    for drafts in (whole, cut):
        assert sum(any(hit.relevant for hit in draft.hits) for draft in drafts) >= 0.7 * LIMIT
    assert all(len(hit.passage.text.split()) <= 60 for draft in cut for hit in draft.hits)
    assert all(hit.passage.id.startswith(hit.passage.document + "#") for draft in cut for hit in draft.hits)
