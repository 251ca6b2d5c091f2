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

TABLES = """
CREATE TABLE runs (run_id VARCHAR, spec_name VARCHAR, spec VARCHAR, plan_id VARCHAR, status VARCHAR,
  started_at TIMESTAMP, finished_at TIMESTAMP, evalspec_version VARCHAR, git_commit VARCHAR, host VARCHAR,
  device VARCHAR, versions JSON);
CREATE TABLE cells (run_id VARCHAR, cell_id VARCHAR, model VARCHAR, weights_hash VARCHAR, task VARCHAR, params JSON);
CREATE TABLE samples (run_id VARCHAR, cell_id VARCHAR, sample_id VARCHAR, repeat INTEGER, stage VARCHAR, draw INTEGER,
  prompt VARCHAR, target VARCHAR, output VARCHAR, choices JSON, logprobs JSON, shot_ids JSON, prompt_tokens INTEGER,
  truncated_tokens INTEGER, finish_reason VARCHAR, cached BOOLEAN, error VARCHAR);
CREATE TABLE scores (run_id VARCHAR, cell_id VARCHAR, sample_id VARCHAR, repeat INTEGER, stage VARCHAR,
  filter VARCHAR, metric VARCHAR, extracted VARCHAR, value DOUBLE, weight DOUBLE);
CREATE TABLE metrics (run_id VARCHAR, cell_id VARCHAR, filter VARCHAR, metric VARCHAR, value DOUBLE, stderr DOUBLE,
  ci_low DOUBLE, ci_high DOUBLE, n BIGINT);
CREATE TABLE retrievals (run_id VARCHAR, cell_id VARCHAR, sample_id VARCHAR, rank INTEGER, passage_id VARCHAR,
  score DOUBLE, relevant BOOLEAN, text VARCHAR);
CREATE TABLE efficiency (run_id VARCHAR, cell_id VARCHAR, prompt_tokens BIGINT, distinct_tokens BIGINT,
  computed_tokens BIGINT, output_tokens BIGINT, requests BIGINT, seconds DOUBLE, tokens_per_second DOUBLE,
  peak_memory_bytes BIGINT, state_bytes BIGINT);
"""


class MadeUpRun:
    """Draws one run and puts it into a connection's tables."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, run_id: str, *, count: int, seed: int) -> None:
        self.connection, self.run_id, self.rng = connection, run_id, random.Random(seed)
        self.rows: dict[str, list[tuple[object, ...]]] = {
            name: [] for name in ("cells", "samples", "scores", "metrics", "retrievals", "efficiency")
        }
        self.passages = passages(7)
        self.questions = questions(7, count + 2)
        self.shots, self.questions = self.questions[:2], self.questions[2:]
        self.found = {(r, q["id"]): self._gold_rank(r) for r in FINDING for q in self.questions}

    def fill(self, *, status: str = "finished", started: datetime = datetime(2026, 11, 22, 9, 30)) -> None:
        versions = json.dumps({"python": "3.11.7", "torch": "2.13.0", "transformers": "5.19.0", "duckdb": "2.0.0"})
        self.connection.execute(
            "INSERT INTO runs VALUES (?,?,?,?,?,?,?,?,?,?,?,?)",
            [self.run_id, "rag", SPEC, "p-3f1c9a5e20", status, started,
             started + timedelta(seconds=143) if status == "finished" else None,
             "0.1.0", "166f97c0ffee", "bench", "cpu", versions],
        )  # fmt: skip
        for model in MODELS:
            self._cell(model, "none", 0)
            for retriever in RETRIEVERS:
                for k in DEPTHS:
                    self._cell(model, retriever, k)
        for table, found in self.rows.items():
            columns = [list(column) for column in zip(*found, strict=True)]
            self.connection.execute(f"INSERT INTO {table} SELECT {','.join(['unnest(?)'] * len(columns))}", columns)

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
            prompt = "\n\n".join(
                [*(self._text(shot, self._passages(shot, "oracle", k)) + " " + shot["answer"] for shot in self.shots)]
                + [self._text(question, passages)]
            )
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
                score = 14.2 / (rank + 0.3 * self.rng.random())
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
                self.rows["scores"].append((*key, 0, "main", "none", metric, output, value, 1.0))
        for metric, found in values.items():
            n, mean = len(found), sum(found) / len(found)
            spread = math.sqrt(sum((v - mean) ** 2 for v in found) / (n - 1) / n)
            low, high = wilson(mean, n)
            self.rows["metrics"].append((self.run_id, cell, "none", metric, mean, spread, low, high, n))
        distinct = int(prompt_tokens * (0.35 if k else 0.5))
        seconds = distinct / SPEED[model]
        self.rows["efficiency"].append(
            (self.run_id, cell, prompt_tokens, distinct, distinct, 3 * len(self.questions), len(self.questions), seconds,
             distinct / seconds, None, STATE_BYTES[model])
        )  # fmt: skip

    def _passages(self, question: dict[str, object], retriever: str, k: int) -> list[dict[str, str]]:
        if not k:
            return []
        gold = next(p for p in self.passages if p["id"] in question["gold_ids"])
        near = [p for p in self.passages if p["id"] != gold["id"] and p["entity"] == gold["entity"]]
        others = [p for p in self.passages if p["attribute"] == gold["attribute"] and p["id"] != gold["id"]]
        wrong = (near + self.rng.sample(others, min(12, len(others))))[:k]
        rank = self.rng.randint(1, k) if retriever == "oracle" else self.found.get((retriever, question["id"]), 1)
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
        connection.execute(TABLES)
        MadeUpRun(connection, run_id, count=count, seed=seed).fill(status=status)
        return connection

    yield fill
    for connection in opened:
        connection.close()
