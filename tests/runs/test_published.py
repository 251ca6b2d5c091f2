"""Published figures are held against the run's own, to within their tolerance, and the page says what came of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evalspec.errors import SpecError
from evalspec.plan.compile import compile_plan
from evalspec.runs.published import judged
from evalspec.runs.run import run
from evalspec.spec import load
from evalspec.spec.published import PublishedBlock
from evalspec.store import Store

ROOT = Path(__file__).parents[2]


def spec(**published: Any) -> dict[str, Any]:
    return {
        "name": "published",
        "models": {"mamba": {"weights": "zoo/mamba"}, "mamba2": {"weights": "zoo/mamba2"}},
        "tasks": {
            "records": {
                "data": {"generate": "world.records", "count": 12, "seed": 11},
                "prompt": {"template": "prompts/records.jinja", "target": "{{ value }}"},
                "decode": {"max_tokens": 2, "stop": ["\n"]},
                "metrics": ["exact_match"],
            }
        },
        "published": published,
    }


def block(**values: Any) -> dict[str, Any]:
    return {"source": "a table", "task": "records", "metric": "exact_match", "tolerance": 0.01, **values}


def test_a_run_says_of_each_published_figure_whether_it_meets_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.duckdb")
    plain = run(compile_plan(load(spec(), root=ROOT)), store, tmp_path)
    mine = {row["cell_id"]: row["value"] for row in store.rows("metrics", plain.run_id)}
    value = next(iter(mine.values()))
    figures = {"mamba": value + 0.009, "mamba2": -3.0}
    done = run(compile_plan(load(spec(theirs=block(values=figures)), root=ROOT)), store, tmp_path)
    rows = {row["model_a"]: row for row in store.rows("verdicts", done.run_id)}
    assert rows["mamba"]["verdict"] == "supported"
    assert rows["mamba"]["statistic"] == pytest.approx(-0.009)
    assert rows["mamba"]["value_a"] == value
    assert rows["mamba2"]["verdict"] == "refuted"
    assert rows["mamba2"]["ci_low"] > 0 and rows["mamba2"]["value_b"] == -3.0
    page = done.report.read_text(encoding="utf-8")
    assert "records, exact_match: within 0.01 of what a table reports" in page
    assert "Published figures: what was measured here less the figure" in page


def test_beyond_the_tolerance_it_is_undecided_only_while_the_samples_are_too_few() -> None:
    figure = PublishedBlock.model_validate(block(values={"m": 0.5}, n=100))
    assert judged(0.51, 0.4, 0.6, 100, figure, 0.5) == ("supported", None)
    assert judged(0.53, 0.4, 0.6, 40, figure, 0.5) == ("undecided", "overlap")
    assert judged(0.53, 0.4, 0.6, 100, figure, 0.5) == ("refuted", None)
    assert judged(0.8, 0.7, 0.9, 40, figure, 0.5) == ("refuted", None)
    assert judged(None, None, None, 0, figure, 0.5) == ("undecided", "undefined")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"values": {"mamba3": 0.5}}, "names no model of this spec: `mamba3`. Did you mean `mamba`?"),
        ({"values": {"mamba": 0.5}, "task": "record"}, "names no task of this spec: `record`. Did you mean `records`?"),
        ({"values": {"mamba": 0.5}, "where": {"n": 3}}, "no cell has model = mamba, task = records, n = 3"),
        ({"values": {"mamba": 0.5}, "where": {}}, "2 cells have model = mamba, task = records; say in `where` which"),
    ],
)
def test_a_figure_of_no_cell_or_of_several_is_an_error_in_the_spec(wrong: dict[str, Any], said: str) -> None:
    written = spec(theirs=block(**wrong)) | {"sweep": {"tasks.records.data.options.n": [4, 16]}}
    with pytest.raises(SpecError) as raised:
        load(json.loads(json.dumps(written)), root=ROOT)
    assert said in str(raised.value) and "published.theirs" in str(raised.value)
