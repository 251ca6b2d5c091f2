"""Retrieval quality on SciFact (BEIR's test split: 300 claims, 5,183 abstracts), to hold against published figures.

    python -m benchmarks.scifact [RETRIEVER …]        (default: bm25 dense fusion)

The data is found under $EVALSPEC_TEST_DATA/scifact. Encoding the corpus takes minutes on a CPU, once: it is kept.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from evalspec.data.rows import load_rows
from evalspec.metrics.retrieval import ndcg, recall
from evalspec.models.card import cache_folder
from evalspec.retrieval import Passage, retrieve
from evalspec.spec.data import DataBlock
from evalspec.spec.retrieval import RetrievalBlock

ROOT = Path(os.environ.get("EVALSPEC_TEST_DATA", Path(__file__).parents[2] / "shared" / "data")) / "scifact"
CORPUS = DataBlock(file="corpus.csv.gz", id="doc_id")


def main(retrievers: list[str]) -> None:
    """Print nDCG@10, recall@10 and recall@100 of each retriever."""
    gold: dict[str, set[str]] = {}
    for row in load_rows(DataBlock(file="qrels_test.tsv"), ROOT).rows:
        gold.setdefault(str(row.values["query-id"]), set()).add(str(row.values["corpus-id"]))
    texts = {row.id: row.values["text"] for row in load_rows(DataBlock(file="queries.jsonl"), ROOT).rows}
    passages = [
        Passage(row.id, f"{row.values['title']} {row.values['abstract']}") for row in load_rows(CORPUS, ROOT).rows
    ]
    names = list(gold)
    queries, golds = [texts[name] for name in names], [sorted(gold[name]) for name in names]
    print(f"{'retriever':10} {'nDCG@10':>8} {'recall@10':>9} {'recall@100':>10} {'seconds':>8}")
    for retriever in retrievers:
        block = RetrievalBlock(corpus=CORPUS, gold="{{ gold }}", retriever=retriever, k=100)
        start = time.perf_counter()
        found = retrieve(block, passages, queries, golds, names, cache_folder())
        seconds = time.perf_counter() - start
        rankings = [[hit.passage.id for hit in hits] for hits in found]
        means = [
            sum(metric(ranking, gold[name], k) for ranking, name in zip(rankings, names, strict=True)) / len(names)
            for metric, k in ((ndcg, 10), (recall, 10), (recall, 100))
        ]
        print(f"{retriever:10} {means[0]:8.4f} {means[1]:9.4f} {means[2]:10.4f} {seconds:8.1f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or ["bm25", "dense", "fusion"])
