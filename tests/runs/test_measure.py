"""`measure:` times each model alone: a row a repeat, nothing taken from elsewhere, what is missing told with a reason.

Seconds are only asked to be there: what they are is the machine's. Bytes are checked against closed forms.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evalspec.errors import BackendError
from evalspec.execute import measuring
from evalspec.execute.measuring import measure
from evalspec.execute.meters import ProcessMeters, meters_of
from evalspec.execute.opening import open_backend
from evalspec.execute.processor import processor_name
from evalspec.execute.protocols import Result
from evalspec.execute.subjects import EngineAlone, ForkedAlone
from evalspec.execute.walk import walk
from evalspec.models.card import find_model
from evalspec.plan.compile import Plan, compile_plan
from evalspec.plan.forest import Forest
from evalspec.plan.measurements import Point
from evalspec.plan.price import plan_json, plan_table
from evalspec.runs.run import Finished, run
from evalspec.spec import load
from evalspec.spec.model import ModelBlock
from evalspec.store import Store

ROOT = Path(__file__).parents[2]
ASK = {
    "data": {"generate": "world.questions", "count": 6, "seed": 3},
    "prompt": {"template": "{{ question }}", "target": "{{ answer }}"},
    "decode": {"max_tokens": 2},
    "metrics": ["exact_match"],
}
MEASURE: dict[str, Any] = {
    "lengths": [8, 32, 64], "batch_sizes": [1, 2], "batch_lengths": [8], "new_tokens": 3, "repeats": 2, "threads": 1,
}  # fmt: skip
SPEC: dict[str, Any] = {
    "name": "alone",
    "models": {
        "transformer": {"weights": "zoo/transformer", "max_length": 64},
        "mamba": {"weights": "zoo/mamba"},
        "mamba2": {"weights": "zoo/mamba2"},
    },
    "measure": MEASURE,
}


def compiled(**changes: Any) -> Plan:
    return compile_plan(load({**SPEC, **changes}, root=ROOT))


def rows(store: Store) -> list[dict[str, Any]]:
    with store.connect() as connection:
        cursor = connection.execute(
            "SELECT * FROM measurements JOIN cells USING (run_id, cell_id) ORDER BY model, kind, batch, length, repeat"
        )
        names = [column[0] for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Finished]:
    folder = tmp_path_factory.mktemp("measured")
    store = Store(folder / "store.duckdb")
    return store, run(compiled(), store, folder)


def test_every_repeat_of_every_point_is_a_row_and_a_spec_needs_no_tasks(measured: tuple[Store, Finished]) -> None:
    store, finished = measured
    found = [row for row in rows(store) if row["error"] is None]
    points = {(row["model"], row["kind"], row["length"], row["batch"]) for row in found}
    alone = {(kind, length, 1) for kind in ("prefill", "decode") for length in (8, 32, 64)}
    batched = {("decode", 8, 2), ("throughput", 8, 1), ("throughput", 8, 2)}
    every = {(model, *point) for model in SPEC["models"] for point in alone | batched}
    assert points == every - {("transformer", "decode", 64, 1)}
    assert len(found) == 2 * len(points) == finished.measured
    assert finished.status == "finished"
    for row in found:
        generated = 3 * row["batch"]
        assert row["tokens"] == (row["length"] if row["kind"] == "prefill" else generated)
        assert row["seconds"] > 0
        assert row["device"].startswith("CPU") and "1 thread)" in row["device"], "all models on as many threads"
        assert row["energy_joules"] is None, "a CPU tells no energy"
        assert row["task"] is None


def test_a_length_beyond_the_models_own_is_told_with_its_reason(measured: tuple[Store, Finished]) -> None:
    store, finished = measured
    [row] = [row for row in rows(store) if row["error"] is not None]
    assert (row["model"], row["kind"], row["length"], row["seconds"]) == ("transformer", "decode", 64, None)
    assert row["error"] == "64 tokens of context and 3 new ones are more than the 64 that the model holds"
    assert row["error"] in finished.report.read_text()


@pytest.mark.browser
def test_the_page_of_a_run_that_only_measures_draws_its_figures(measured: tuple[Store, Finished], visit: Any) -> None:
    seen = visit(measured[1].report)
    assert seen.complaints == [] and seen.requests == []
    assert seen.page.locator("#alone svg.marks").count() == 5
    assert "keeps fewer bytes than transformer" in seen.page.locator("#answer").inner_text()
    assert seen.page.locator("#samples").count() == 0


def test_state_bytes_are_those_of_the_closed_form(measured: tuple[Store, Finished]) -> None:
    config = {name: json.loads((ROOT / f"evalspec/zoo/{name}/config.json").read_text()) for name in SPEC["models"]}
    found = {(r["model"], r["length"]): r["state_bytes"] for r in rows(measured[0]) if r["kind"] == "prefill"}
    c = config["transformer"]
    heads = c.get("num_key_value_heads", c["num_attention_heads"])
    width = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
    for length in (8, 32, 64):  # keys and values of every token, and the last hidden vector; float32
        cache = 2 * c["num_hidden_layers"] * heads * width * length * 4
        assert found["transformer", length] == cache + 4 * c["hidden_size"]
    m = config["mamba"]
    inner = m.get("intermediate_size") or m["expand"] * m["hidden_size"]
    # E N of the recurrence and E (K − 1) of the convolution a layer: the last input of K is the token itself
    layer = inner * m["state_size"] + inner * (m["conv_kernel"] - 1)
    two = config["mamba2"]
    e = two["expand"] * two["hidden_size"]
    convolved = e + 2 * two["n_groups"] * two["state_size"]
    layer2 = e * two["state_size"] + convolved * (two["conv_kernel"] - 1)
    for length in (8, 32, 64):
        assert found["mamba", length] == 4 * (m["num_hidden_layers"] * layer + m["hidden_size"])
        assert found["mamba2", length] == 4 * (two["num_hidden_layers"] * layer2 + two["hidden_size"])
    for row in rows(measured[0]):
        if row["state_bytes"]:
            assert row["state_bytes"] == pytest.approx(row["predicted_state_bytes"], rel=0.05)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel of this system tells no peak")
def test_memory_grows_with_what_is_fed() -> None:
    meters = ProcessMeters()
    before = meters.memory_now()
    meters.reset_memory()
    block = np.ones(50_000_000, np.uint8)
    peak = meters.peak_memory()
    assert before is not None and peak is not None
    assert peak - before == pytest.approx(len(block), rel=0.1)


def test_running_again_times_nothing_and_another_run_starts_anew(
    measured: tuple[Store, Finished], tmp_path: Path
) -> None:
    store, finished = measured
    again = run(compiled(), store, tmp_path)
    assert (again.run_id, again.measured) == (finished.run_id, 0)
    longer = compiled(measure={**MEASURE, "lengths": [8, 16], "models": ["mamba"], "kinds": ["prefill"]})
    other = run(longer, store, tmp_path)
    assert other.run_id != finished.run_id
    assert other.measured == 4, "no timing of another run is taken for one of this"


def test_a_run_that_was_cut_off_keeps_its_rows_and_times_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "store.duckdb")
    plan = compiled(measure={**MEASURE, "models": ["mamba"], "kinds": ["prefill"]}, tasks={"ask": ASK})
    whole = measuring.measure

    def cut(*arguments: Any, **named: Any) -> Iterator[measuring.Measured]:
        for number, found in enumerate(whole(*arguments, **named)):
            if number == 4:
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr("evalspec.runs.measuring.measure", cut)
    monkeypatch.setattr("evalspec.runs.measuring.COMMIT_SECONDS", 0)
    with pytest.raises(KeyboardInterrupt):
        run(plan, store, tmp_path)
    monkeypatch.undo()
    before = rows(store)
    assert len(before) == 4
    finished = run(plan, store, tmp_path)
    assert (finished.status, finished.computed, finished.measured) == ("finished", 0, 2)
    after = rows(store)
    assert len(after) == 6
    assert all(row in after for row in before), "what was timed stays as it was"


def test_without_measure_the_block_waits_for_a_later_run(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.duckdb")
    plan = compiled(measure={**MEASURE, "models": ["mamba"], "kinds": ["prefill"]}, tasks={"ask": ASK})
    first = run(plan, store, tmp_path, measure=False)
    assert (first.status, first.samples, first.measured) == ("finished", 18, 0)
    second = run(plan, store, tmp_path)
    assert (second.run_id, second.computed, second.measured) == (first.run_id, 0, 6)


def test_what_does_not_fit_in_memory_is_told_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = ForkedAlone.prepare

    def scarce(self: ForkedAlone, point: Point, *rest: Any) -> Any:
        if point.length == 64:
            raise MemoryError
        return prepare(self, point, *rest)

    monkeypatch.setattr(ForkedAlone, "prepare", scarce)
    store = Store(tmp_path / "store.duckdb")
    plan = compiled(measure={**MEASURE, "models": ["mamba"], "kinds": ["prefill"]})
    finished = run(plan, store, tmp_path)
    assert (finished.status, finished.measured) == ("finished", 4)
    [failed] = [row for row in rows(store) if row["error"]]
    assert (failed["length"], failed["error"]) == (64, "does not fit in memory")
    monkeypatch.undo()
    assert run(plan, store, tmp_path).measured == 2, "it is tried again, as whatever failed"
    assert not [row for row in rows(store) if row["error"]]


def test_the_plan_shows_what_will_be_measured_and_leaves_the_tasks_as_they_were() -> None:
    plan = compiled(tasks={"ask": ASK})
    told = plan_json(plan)
    transformer, mamba, _ = told["measurements"]
    assert (mamba["timings"], len(mamba["points"])) == (18, 9)
    assert transformer["skipped"][0]["reason"].endswith("more than the 64 that the model holds")
    prefill = next(p for p in mamba["points"] if (p["kind"], p["length"]) == ("prefill", 32))
    cost = plan.measured[1].model.cost
    assert cost is not None
    assert prefill["flops"] == cost.flops(32, scored=1)
    assert prefill["state_bytes"] == cost.state_bytes(32, 4, 4)
    step = next(p for p in mamba["points"] if (p["kind"], p["length"], p["batch"]) == ("decode", 8, 2))
    assert step["flops"] == 2 * cost.decode_flops(3, 8)
    assert "measured alone" in plan_table(plan) and "not measured, decode: transformer" in plan_table(plan)
    without = compile_plan(load({**SPEC, "measure": None, "tasks": {"ask": ASK}}, root=ROOT))
    assert [cell.cell_id for cell in without.cells] == [cell.cell_id for cell in plan.cells]
    assert without.plan_id != plan.plan_id


class Served:
    """A backend as an engine, which is handed whole requests; it remembers the prompts that it was given."""

    name, version, identity = "served", "0", ("served",)

    def __init__(self, backend: Any) -> None:
        self.backend, self.prompts = backend, []

    def complete(self, forest: Forest) -> Iterator[Result]:
        self.prompts += [(request.tokens.tobytes(), request.decoding.max_tokens) for request in forest.requests]
        yield from walk(forest, self.backend)

    def peak_memory(self) -> int | None:
        return None


def test_an_engine_is_measured_through_its_own_complete() -> None:
    engine = Served(open_backend(find_model("m", ModelBlock(weights="zoo/mamba"), ROOT)))
    points = {Point(kind, 16, batch): [0, 1] for kind in ("prefill", "decode", "throughput") for batch in (1, 2)}
    made = list(measure(EngineAlone(engine), meters_of([]), points, vocabulary=1500, new_tokens=4, warmup=1, seed=0))
    assert len(made) == 12
    for found in made:
        most = found.point.batch * 4  # an engine may end an answer; what is counted is what it generated
        assert found.tokens is not None
        assert found.tokens == 16 * found.point.batch if found.point.kind == "prefill" else 0 < found.tokens <= most
        assert found.state_bytes is None
    fed = [prompt for prompt, most in engine.prompts if most == 4]
    assert len(set(fed)) == len(fed), "no prompt comes twice, for a prefix cache to know"


def test_decoding_goes_past_the_end_token() -> None:
    backend = open_backend(find_model("m", ModelBlock(weights="zoo/mamba"), ROOT))
    backend.end_tokens = frozenset(range(backend.vocab_size))
    point = Point("decode", 8, 2)
    work = ForkedAlone(backend).prepare(point, [np.arange(8, dtype=np.int32)] * 2, 5)
    steps = 0
    advance = backend._advance

    def counted(running: Any) -> Any:
        nonlocal steps
        steps += 1
        return advance(running)

    backend._advance = counted
    work.run()
    assert steps == 6, "five new tokens after the one that prefill predicts"
    assert work.tokens() == 10


def test_one_timing_is_called_one_and_names_the_processor(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.duckdb")
    models = {name: SPEC["models"][name] for name in ("mamba", "mamba2")}
    finished = run(compiled(models=models, measure={**MEASURE, "lengths": [8, 32], "repeats": 1}), store, tmp_path)
    assert {row["device"] for row in rows(store)} == {f"CPU ({processor_name()}, 1 thread)"}
    assert finished.report is not None
    page = finished.report.read_text()
    assert "one timing of each point, by which nothing is compared" in page
    assert "One timing of each point, which tells no spread." in page
    assert "medians of 1" not in page.lower()


def test_more_threads_than_processors_are_refused_before_anything_runs(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.duckdb")
    with pytest.raises(BackendError, match=r"^`measure\.threads: 4000`: this machine has \d+ processors?$"):
        run(compiled(measure={**MEASURE, "threads": 4000}), store, tmp_path)
    assert not store.runs()
