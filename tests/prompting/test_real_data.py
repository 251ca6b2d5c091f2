"""specs/hub/long_context.yaml asks real data by their files alone: Lost in the Middle's pairs and its gold passages."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from evalspec.plan.compile import compile_plan
from evalspec.prompting.drafts import Draft
from evalspec.spec import load

ROOT = Path(__file__).parents[2]
TEST_DATA = Path(os.environ.get("EVALSPEC_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
OTHERS = ("book", "needle", "needles", "values", "variables", "documents", "loss")
FOLDER = TEST_DATA / "lost_in_the_middle"


@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no test data at {FOLDER} (EVALSPEC_TEST_DATA)")
def test_the_hub_spec_reads_lost_in_the_middle_by_its_files() -> None:
    pairs = f"SELECT * FROM '{FOLDER / 'kv-retrieval-75_keys.jsonl.gz'}'"
    questions = f"SELECT * FROM '{FOLDER / 'nq-open-oracle.jsonl.gz'}'"
    loaded = load(
        ROOT / "specs" / "hub" / "long_context.yaml",
        [
            "models={transformer: null, hybrid: null, mamba2: {weights: zoo/mamba2, tokenizer: null, dtype: float32}}",
            *(f"tasks.{name}=null" for name in OTHERS),
            "sweep=null",
            f"tasks.key_values.data.sql={pairs}",
            f"tasks.natural_questions.data.sql={questions}",
            f"tasks.natural_questions.retrieval.corpus.sql={questions}",
            "tasks.natural_questions.retrieval={k: 5, gold_at: 4}",
        ],
    )
    plan = compile_plan(loaded, limit=3)
    by_task: dict[str, list[Draft]] = {"key_values": [], "natural_questions": []}
    for sample in plan.models[0].samples:
        by_task[sample.cell.task_name].append(sample.draft)
    for draft in by_task["key_values"]:
        key = draft.prompt.rsplit('Key: "', 1)[1].split('"')[0]
        assert f'"{key}": "{draft.targets[0]}"' in draft.prompt and draft.prompt.count('": "') == 75
        assert draft.prompt.endswith('Corresponding value: "')
    for draft in by_task["natural_questions"]:
        assert [hit.relevant for hit in draft.hits] == [False, False, False, True, False]
        assert draft.prompt.count("\nDocument [") == 5
        gold = draft.prompt.split("Document [4] ")[1].split("\nDocument [5]")[0]
        assert any(target.lower() in gold.lower() for target in draft.targets)
