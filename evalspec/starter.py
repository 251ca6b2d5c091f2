"""What `evalspec init` writes: a spec, a template and two data files, ready to run, and the schema that editors read.

The data are files, not a generator, so that a user sees what their own must look like.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evalspec.errors import EvalspecError

SPEC = """\
# yaml-language-server: $schema=evalspec.schema.json
name: first
description: Do the models find the answer in the passages that a retriever hands them?

models:
  transformer: {weights: zoo/transformer}     # shipped with evalspec; a directory or a hub id works too
  mamba2:      {weights: zoo/mamba2}

tasks:
  reading:
    data: {file: data/questions.jsonl}        # one JSON object a line; its columns are the template's variables
    prompt:
      template: prompts/first.jinja
      target: "{{ answer }}"
      shots: 2                                # worked examples, from rows that are kept apart
    retrieval:
      corpus: {file: data/passages.jsonl}
      query: "{{ question }}"
      gold: "{{ gold_ids }}"                  # ids of the passages that answer the question
      retriever: bm25
      k: 3
    decode: {max_tokens: 8, stop: ["\\n"]}
    metrics: [exact_match, token_f1, recall]

sweep:
  tasks.reading.retrieval:
    - {retriever: none}
    - {retriever: [bm25, oracle], k: [1, 3]}
"""
TEMPLATE = """\
{% for passage in passages %}- {{ passage.text }}
{% endfor %}Question: {{ question }}
Answer:
"""


def write_starter(folder: Path) -> list[Path]:
    """Write the files and return their paths, the spec first. Raises EvalspecError rather than overwrite anything."""
    from evalspec.data.generators import generate
    from evalspec.spec.schema import schema_text

    world: Mapping[str, Any] = {"people": 12, "towns": 4, "things": 4}
    import evalspec.data.worlds  # noqa: F401  (its import enters the generators)

    questions, passages = generate("world.questions", 1, 60, world), generate("world.passages", 1, None, world)
    texts = {
        "specs/first.yaml": SPEC,
        "prompts/first.jinja": TEMPLATE,
        "data/questions.jsonl": _lines(questions, ("id", "question", "answer", "gold_ids")),
        "data/passages.jsonl": _lines(passages, ("id", "text")),
        "specs/evalspec.schema.json": schema_text(),
    }
    paths = [folder / name for name in texts]
    there = [str(path) for path in paths if path.exists()]
    if there:
        raise EvalspecError(f"{', '.join(there)} is there already; `evalspec init DIR` writes into another folder")
    for path, text in zip(paths, texts.values(), strict=True):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise EvalspecError(f"cannot write {path}: {error.strerror}") from None
    return paths


def _lines(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    return "".join(json.dumps({name: row[name] for name in columns}, ensure_ascii=False) + "\n" for row in rows)
