"""What a run says that it cost: every cell has a row, sums are the forest's totals, nothing is fed twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import evalspec
from evalspec.plan.compile import compile_plan
from evalspec.runs.run import run
from evalspec.spec import load
from evalspec.store import Store

ROOT = Path(__file__).parents[2]
WORLD = {"generate": "world.labels", "count": 24, "seed": 3}
PROMPT = {"template": "prompts/labels.jinja", "target": "{{ label }}", "choices": "{{ options }}", "shots": 2}
ASKED = {"template": "{{ question }}", "target": "{{ answer }}"}
SPEC: dict[str, Any] = {
    "name": "costs",
    "models": {name: {"weights": f"zoo/{name}"} for name in ("transformer", "mamba", "mamba2")},
    "tasks": {
        "choose": {"data": WORLD, "prompt": PROMPT, "metrics": ["accuracy"]},
        "ask": {
            "data": {"generate": "world.questions", "count": 8, "seed": 3},
            "prompt": ASKED,
            "decode": {"max_tokens": 4},
            "metrics": ["exact_match"],
        },
    },
    "sweep": {"tasks.choose.prompt.shots": [0, 2, 4]},
}


@pytest.mark.parametrize("batch_tokens", [64, 2048])
def test_sums_over_cells_are_the_forests_totals_and_every_distinct_token_is_computed_once(
    tmp_path: Path, batch_tokens: int
) -> None:
    models = {name: {**block, "batch_tokens": batch_tokens} for name, block in SPEC["models"].items()}
    plan = compile_plan(load({**SPEC, "models": models}, root=ROOT))
    run(plan, Store(tmp_path / "store.duckdb"), tmp_path)
    with evalspec.connect(tmp_path / "store.duckdb") as connection:
        found = connection.execute(
            "SELECT c.model, e.cell_id, prompt_tokens, distinct_tokens, computed_tokens, requests, output_tokens "
            "FROM efficiency e JOIN cells c USING (run_id, cell_id)"
        ).fetchall()
    assert {row[1] for row in found} == {cell.cell_id for cell in plan.cells}
    assert len(found) == len(plan.cells) == 12
    for part in plan.models:
        rows = [row[2:] for row in found if row[0] == part.model.name]
        prompt, distinct, computed, requests, output = (sum(column) for column in zip(*rows, strict=True))
        assert all(min(row[:4]) > 0 for row in rows)
        assert prompt == sum(sample.prompt_tokens for sample in part.samples)
        assert requests == sum(len(sample.requests) for sample in part.samples)
        assert distinct == pytest.approx(part.forest.distinct_tokens)
        assert computed == pytest.approx(part.forest.distinct_tokens), "each distinct token once"
        assert 8 <= output <= 8 * 4


def test_an_answer_that_several_cells_share_is_split_among_them(tmp_path: Path) -> None:
    """Two tasks ask the same: each cell has half of the generated tokens, and their sum is what was generated."""
    ask = SPEC["tasks"]["ask"]
    tasks = {"one": ask, "two": {**ask, "metrics": ["contains"]}}
    spec = {"name": "shared", "models": {"mamba": {"weights": "zoo/mamba"}}, "tasks": tasks}
    plan = compile_plan(load(spec, root=ROOT))
    store = Store(tmp_path / "store.duckdb")
    done = run(plan, store, tmp_path)
    output = [row["output_tokens"] for row in store.rows("efficiency", done.run_id)]
    assert len(output) == 2
    assert abs(output[0] - output[1]) <= 8  # at most one token an answer, and those go round
    assert 8 <= sum(output) <= 8 * 4
    assert min(output) > 0
