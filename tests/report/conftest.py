"""A made-up run in plain DuckDB tables of the store's contract: three models × seventeen conditions × 120 questions.

The numbers are drawn from a seeded generator, with the shapes that real runs have (reading gets harder with more
passages, recurrent models prefer late passages, retrievers miss some golds). They are results of no model.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

import duckdb
import pytest

from evalspec.data.worlds.rows import passages, questions
from evalspec.store.schema import TABLES
from evalspec.store.views import VIEWS

RUN = "r-20261122-0930"
MODELS = ("transformer", "mamba", "mamba2")
RETRIEVERS = ("bm25", "dense", "fusion", "oracle")
DEPTHS = (1, 3, 5, 10)
METRICS = ("exact_match", "token_f1", "recall", "reciprocal_rank", "ndcg")
READING = {"transformer": (0.985, 0.012, 0.0), "mamba": (0.97, 0.022, 0.020), "mamba2": (0.98, 0.015, 0.010)}
FINDING = {"bm25": (0.62, 0.55), "dense": (0.50, 0.50), "fusion": (0.66, 0.60)}
STATE_BYTES = {"transformer": 3_145_728, "mamba": 294_912, "mamba2": 1_212_416}
SPEED = {"transformer": 14_000.0, "mamba": 6_500.0, "mamba2": 9_000.0}

SPEC = """name: rag
description: Do state-space models read what a retriever finds?
models:
  transformer: {weights: zoo/transformer}
  mamba:       {weights: zoo/mamba}
  mamba2:      {weights: zoo/mamba2}
tasks:
  open_book:
    data: {generate: world.questions, count: 120, seed: 7}
    prompt: {template: prompts/rag.jinja, target: "{{ answer }}", shots: 2}
    retrieval: {corpus: {generate: world.passages, seed: 7}, gold: "{{ gold_ids }}"}
    decode: {max_tokens: 8, stop: ["\\n"]}
    metrics: [exact_match, token_f1, recall, reciprocal_rank, ndcg]
sweep:
  tasks.open_book.retrieval:
    - {retriever: none}
    - {retriever: [bm25, dense, fusion, oracle], k: [1, 3, 5, 10]}
"""

COLUMNS = {
    "runs": "run_id spec_name spec plan_id status started_at finished_at evalspec_version git_commit host device "
    "versions",
    "cells": "run_id cell_id model weights_hash task params",
    "samples": "run_id cell_id sample_id repeat stage draw prompt target output choices logprobs shot_ids "
    "prompt_tokens truncated_tokens finish_reason cached error",
    "scores": "run_id cell_id sample_id repeat stage draw filter metric extracted value",
    "metrics": "run_id cell_id filter metric value stderr ci_low ci_high n",
    "retrievals": "run_id cell_id sample_id rank passage_id score relevant text",
    "efficiency": "run_id cell_id prompt_tokens distinct_tokens computed_tokens output_tokens requests seconds "
    "tokens_per_second peak_memory_bytes state_bytes",
}


def create_tables(connection: duckdb.DuckDBPyConnection) -> None:
    for table in TABLES.values():
        connection.execute(table.create(table.name))
    for view in VIEWS:
        connection.execute(f"CREATE VIEW {view.name} AS {view.sql}")


class MadeUpRun:
    """Draws one run and puts it into a connection's tables."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, run_id: str, *, count: int, seed: int) -> None:
        self.connection, self.run_id, self.rng = connection, run_id, random.Random(seed)
        self.rows: dict[str, list[tuple[object, ...]]] = {name: [] for name in COLUMNS}
        self.passages = passages(7)
        self.questions = questions(7, count + 2)
        self.shots, self.questions = self.questions[:2], self.questions[2:]
        self.found = {(r, q["id"]): self._gold_rank(r) for r in FINDING for q in self.questions}

    def fill(self, *, status: str = "finished", started: datetime = datetime(2026, 11, 22, 9, 30)) -> None:
        versions = json.dumps({"python": "3.11.7", "torch": "2.13.0", "transformers": "5.19.0", "duckdb": "2.0.0"})
        finished = started + timedelta(seconds=143) if status == "finished" else None
        self.rows["runs"].append(
            (
                self.run_id,
                "rag",
                SPEC,
                "p-3f1c9a5e20",
                status,
                started,
                finished,
                "0.1.0",
                "166f97c",
                "bench",
                "cpu",
                versions,
            )
        )
        for model in MODELS:
            self._cell(model, "none", 0)
            for retriever in RETRIEVERS:
                for k in DEPTHS:
                    self._cell(model, retriever, k)
        for table, found in self.rows.items():
            values = [list(column) for column in zip(*found, strict=True)]
            names = ", ".join(COLUMNS[table].split())
            self.connection.execute(
                f"INSERT INTO {table} ({names}) SELECT {','.join(['unnest(?)'] * len(values))}", values
            )

    def _gold_rank(self, retriever: str) -> int:
        first, decay = FINDING[retriever]
        if self.rng.random() < first:
            return 1
        return 2 + int(math.log(1 - self.rng.random()) / math.log(decay))

    def _cell(self, model: str, retriever: str, k: int) -> None:
        cell = f"{model}-{retriever}-{k}"
        path = "tasks.open_book.retrieval."
        params = {f"{path}retriever": retriever} | ({f"{path}k": k} if k else {})
        self.rows["cells"].append(
            (self.run_id, cell, model, f"sha256:{hash_of(model)}", "open_book", json.dumps(params))
        )
        values: dict[str, list[float]] = {}
        prompt_tokens = 0
        for question in self.questions:
            passages = self._passages(question, retriever, k)
            shots = [self._text(shot, self._passages(shot, "oracle", k)) + f" {shot['answer']}" for shot in self.shots]
            prompt = "\n\n".join([*shots, self._text(question, passages)])
            gold = next((rank for rank, p in enumerate(passages, 1) if p["id"] in question["gold_ids"]), None)
            output = self._output(model, question, gold, len(passages))
            prompt_tokens += len(prompt.split()) + 12
            key = (self.run_id, cell, question["id"])
            self.rows["samples"].append(
                (*key, 0, "main", 0, prompt, question["answer"], output, None, None,
                 json.dumps([shot["id"] for shot in self.shots]), len(prompt.split()), 0, "stop", False, None)
            )  # fmt: skip
            for rank, passage in enumerate(passages, 1):
                relevant = passage["id"] in question["gold_ids"]
                score = 14.2 / (rank + 0.1 * len(question["id"]))
                self.rows["retrievals"].append((*key, rank, passage["id"], score, relevant, passage["text"]))
            right = float(output == question["answer"])
            scores = {"exact_match": right, "token_f1": right}
            if k:
                scores |= {
                    f"recall@{k}": float(gold is not None),
                    "reciprocal_rank": 1 / gold if gold else 0.0,
                    f"ndcg@{k}": 1 / math.log2(1 + gold) if gold else 0.0,
                }
            for metric, value in scores.items():
                values.setdefault(metric, []).append(value)
                self.rows["scores"].append((*key, 0, "main", 0, "default", metric, output, value))
        for metric, found in values.items():
            n, mean = len(found), sum(found) / len(found)
            spread = math.sqrt(sum((v - mean) ** 2 for v in found) / (n - 1) / n)
            low, high = wilson(mean, n)
            self.rows["metrics"].append((self.run_id, cell, "default", metric, mean, spread, low, high, n))
        distinct = int(prompt_tokens * (0.35 if k else 0.5))
        seconds = distinct / SPEED[model]
        self.rows["efficiency"].append(
            (self.run_id, cell, prompt_tokens, distinct, distinct, 3 * len(self.questions), len(self.questions),
             seconds, distinct / seconds, None, STATE_BYTES[model])
        )  # fmt: skip

    def _passages(self, question: dict[str, object], retriever: str, k: int) -> list[dict[str, str]]:
        if not k:
            return []
        gold = next(p for p in self.passages if p["id"] in question["gold_ids"])
        near = [p for p in self.passages if p["id"] != gold["id"] and p["entity"] == gold["entity"]]
        others = [p for p in self.passages if p["attribute"] == gold["attribute"] and p["id"] != gold["id"]]
        # Retrieval knows no model: the same question gets the same passages from each.
        rng = random.Random(f"{retriever} {question['id']}")
        wrong = near + rng.sample(others, min(12, len(others)))
        rank = 1 + int(k * rng.random()) if retriever == "oracle" else self.found.get((retriever, question["id"]), 1)
        return wrong[:k] if rank > k else [*wrong[: rank - 1], gold, *wrong[rank - 1 : k - 1]]

    def _text(self, question: dict[str, object], passages: list[dict[str, str]]) -> str:
        lines = "".join(f"- {p['text']}\n" for p in passages)
        return f"{lines}Question: {question['question']}\nAnswer:"

    def _output(self, model: str, question: dict[str, object], gold: int | None, k: int) -> str:
        start, per_passage, per_distance = READING[model]
        right = 0.05 if gold is None else start - per_passage * (k - 1) ** 0.9 - per_distance * (k - gold)
        if self.rng.random() < right:
            return str(question["answer"])
        same = [q["answer"] for q in self.questions if q["attribute"] == question["attribute"]]
        return str(self.rng.choice([a for a in same if a != question["answer"]] or ["unknown"]))


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share."""
    z = 1.959964
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return centre - half, centre + half


def hash_of(name: str) -> str:
    return f"{random.Random(name).getrandbits(256):064x}"


Filled = Callable[..., duckdb.DuckDBPyConnection]


@pytest.fixture
def filled() -> Iterator[Filled]:
    """A function that gives a connection with the made-up run in it."""
    opened: list[duckdb.DuckDBPyConnection] = []

    def fill(
        *, run_id: str = "r-20261122-0930", count: int = 120, seed: int = 0, status: str = "finished"
    ) -> duckdb.DuckDBPyConnection:
        connection = duckdb.connect()
        opened.append(connection)
        create_tables(connection)
        MadeUpRun(connection, run_id, count=count, seed=seed).fill(status=status)
        return connection

    yield fill
    for connection in opened:
        connection.close()
