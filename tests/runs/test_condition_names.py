"""A condition has one name: in the plan, in a terminal's tables, on the page, in a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evalspec.plan.compile import compile_plan
from evalspec.plan.price import plan_table
from evalspec.runs.compare import compare
from evalspec.runs.run import run
from evalspec.runs.summary import finished_table, run_table
from evalspec.spec import load
from evalspec.store import Store

ROOT = Path(__file__).parents[2]
SPEC: dict[str, Any] = {
    "name": "names",
    "models": {"one": {"weights": "zoo/mamba2"}, "other": {"weights": "zoo/mamba2", "state_dtype": "bfloat16"}},
    "tasks": {
        "labels": {
            "data": {"generate": "world.labels", "count": 20, "seed": 5},
            "prompt": {
                "template": "prompts/labels.jinja", "target": "{{ label }}", "choices": "{{ options }}",
                "shots": {"n": 2, "pool": 0.5},
            },
            "metrics": ["accuracy"],
        },
    },
    "sweep": {"tasks.labels.prompt.shots": [{"n": 0}, {"sampler": ["random", "balanced"], "n": [2, 10]}]},
    "measure": {"lengths": [8], "kinds": ["prefill"], "repeats": 2, "models": ["one"]},
}  # fmt: skip
NAMES = ("shots = 0", "sampler = random, shots = 2", "sampler = balanced, shots = 10")


def test_a_condition_is_called_the_same_wherever_it_stands(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.duckdb")
    plan = compile_plan(load(SPEC, root=ROOT))
    finished = run(plan, store, tmp_path)
    told = (
        plan_table(plan), finished_table(finished, store), run_table(store, finished.run_id),
        finished.report.read_text(encoding="utf-8"), compare(store).text,
    )  # fmt: skip
    for text in told:
        assert all(name in text for name in NAMES)
        assert "n=2" not in text or text.startswith("<!DOCTYPE")  # whose scripts may say so
    table = told[1]
    places = [table.index(name) for name in ("shots = 2 ", "shots = 10 ")]
    assert places == sorted(places)  # by size, not by letters


def test_a_sweep_of_a_model_itself_stands_in_its_name(tmp_path: Path) -> None:
    swept = {**SPEC, "models": {"one": SPEC["models"]["one"]}, "sweep": {"models.one.kernels": ["auto", "torch"]}}
    store = Store(tmp_path / "store.duckdb")
    plan = compile_plan(load(swept, root=ROOT))
    finished = run(plan, store, tmp_path)
    assert "one, kernels = torch" in plan_table(plan)
    assert "one, kernels = torch" in run_table(store, finished.run_id)
    assert "one, kernels = torch" in finished.report.read_text(encoding="utf-8")


def test_without_a_sweep_there_is_no_column_of_conditions(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.duckdb")
    plain = {key: value for key, value in SPEC.items() if key not in ("sweep", "measure")}
    finished = run(compile_plan(load(plain, root=ROOT)), store, tmp_path)
    assert "condition" not in finished_table(finished, store)
