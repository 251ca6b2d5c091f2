"""Votes over repeats and later stages: what they read, what they score, and that a kill changes neither."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import evalspec
from evalspec.errors import PromptError, RunError
from evalspec.plan.compile import compile_plan
from evalspec.plan.price import plan_json, plan_table
from evalspec.report.charts import figures_of
from evalspec.report.data import read_results
from evalspec.report.samples import samples_of
from evalspec.runs import run as run_module
from evalspec.runs.run import Finished, run
from evalspec.spec import load
from evalspec.store import Store

ROOT = Path(__file__).parents[2]
HALF = {
    "prompt": {"template": "{{ prompts.main }} {{ outputs.main | first_steps(0.5) }}. Answer:"},
    "decode": {"max_tokens": 3, "stop": ["\n"]},
    "filters": {"number": ["last_number"], "vote": ["last_number", {"vote": 3}]},
    "metrics": ["exact_match"],
}
CHECK = {
    "when": "{{ extracted.main.number != answer }}",
    "prompt": {
        "template": "{{ question }} {{ extracted.half.number }}?",
        "choices": ["{{ extracted.main.number }}", "{{ extracted.main.vote3 }} or so"],
        "target": 0,
    },
    "metrics": ["accuracy", "accuracy_pmi"],
}
SPEC: dict[str, Any] = {
    "name": "staged",
    "models": {"transformer": {"weights": "zoo/transformer"}},
    "tasks": {
        "cot": {
            "data": {"generate": "world.arithmetic", "count": 8, "seed": 5, "options": {"turns": [2, 3]}},
            "prompt": {"template": "prompts/arithmetic.jinja", "target": "{{ answer }}", "steps": "{{ steps }}"},
            "decode": {"max_tokens": 40, "stop": ["\n"], "temperature": 1.7, "repeats": 3},
            "filters": {
                "strict": [{"regex": "Answer: ([0-9])$"}],
                "number": ["last_number"],
                "vote1": ["last_number", {"vote": 1}],
                "vote3": ["last_number", {"vote": 3}],
            },
            "metrics": ["exact_match", {"metric": "steps_correct", "filters": ["number"]}],
            "stages": {"half": HALF, "check": CHECK},
        },
        "choose": {
            "data": {"generate": "world.labels", "count": 6, "seed": 3},
            "prompt": {"template": "prompts/labels.jinja", "target": "{{ label }}", "choices": "{{ options }}"},
            "metrics": ["accuracy"],
            "stages": {
                "again": {
                    "prompt": {"template": "{{ prompts.main }} {{ outputs.main }}\nIs that right?"},
                    "metrics": ["perplexity"],
                }
            },
        },
    },
}


def go(folder: Path, spec: dict[str, Any] = SPEC, fresh: bool = False) -> Finished:
    return run(compile_plan(load(spec, root=ROOT)), Store(folder / "store.duckdb"), folder, fresh=fresh)


def select(folder: Path, query: str) -> list[tuple[Any, ...]]:
    with evalspec.connect(folder / "store.duckdb") as connection:
        return connection.execute(query).fetchall()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("done")
    finished = go(folder)
    assert (finished.status, finished.failed) == ("finished", 0)
    assert finished.samples == finished.computed + len(select(folder, "FROM samples WHERE finish_reason = 'skipped'"))
    return folder


def test_repeats_have_seeds_of_their_own(done: Path) -> None:
    [(most,)] = select(
        done,
        "SELECT max(n) FROM (SELECT count(DISTINCT output) AS n FROM samples WHERE stage = 'main' GROUP BY sample_id)",
    )
    assert most == 3


def test_a_vote_over_repeats_is_one_score_of_the_majority(done: Path) -> None:
    said: dict[str, list[str]] = {}
    for sample, text in select(
        done, "SELECT sample_id, extracted FROM scores WHERE filter = 'number' AND metric = 'exact_match' "
        "AND stage = 'main' ORDER BY sample_id, repeat"
    ):  # fmt: skip
        said.setdefault(sample, []).append(text)
    for n in (1, 3):
        votes = select(done, f"SELECT sample_id, repeat, extracted FROM scores WHERE filter = 'vote{n}'")
        assert {row[0]: row[1:] for row in votes} == {
            sample: (None, Counter(texts[:n]).most_common(1)[0][0]) for sample, texts in said.items()
        }
        [(count, value)] = select(done, f"SELECT n, value FROM metrics WHERE filter = 'vote{n}'")
        assert count == len(said)
        [(mean,)] = select(done, f"SELECT avg(value) FROM scores WHERE filter = 'vote{n}'")
        assert value == pytest.approx(mean)


def test_every_metric_is_scored_under_every_chain_unless_it_names_its_own(done: Path) -> None:
    found = select(done, "SELECT DISTINCT s.filter, metric FROM scores s JOIN cells USING (run_id, cell_id) "
                         "WHERE task = 'cot' AND stage = 'main'")  # fmt: skip
    chains = ("strict", "number", "vote1", "vote3")
    assert set(found) == {(chain, "exact_match") for chain in chains} | {("number", "steps_correct")}


def test_an_extraction_that_finds_nothing_is_wrong_counted_and_listed(done: Path) -> None:
    lost = select(done, "SELECT extracted, value FROM scores WHERE NOT found AND filter = 'strict'")
    [(outputs,)] = select(done, "SELECT count(*) FROM samples WHERE stage = 'main' "
                                "AND NOT regexp_matches(output, 'Answer: [0-9]$') AND output LIKE '%=%'")  # fmt: skip
    assert len(lost) == outputs > 0, "at this temperature some answers are no digit"
    assert set(lost) == {("[invalid]", 0.0)}


def test_a_later_stage_reads_what_the_earlier_ones_read_and_said(done: Path) -> None:
    both = "FROM samples h JOIN samples m USING (run_id, cell_id, sample_id, repeat) WHERE m.stage = 'main'"
    rows = select(done, f"SELECT h.prompt, m.prompt, m.output {both} AND h.stage = 'half'")
    assert len(rows) == 24
    for prompt, before, output in rows:
        begun, _, rest = output.partition("Answer:")
        steps = [step.strip().rstrip(".").rstrip() for step in begun.split(",") if step.strip(" .")]
        assert prompt.startswith(before)
        assert prompt.endswith(". Answer:")
        if rest and len(steps) > 1 and all(step.count("=") == 1 for step in steps):
            assert prompt == f"{before} {', '.join(steps[: len(steps) // 2])}. Answer:"
    chosen = select(done, f"SELECT h.prompt, m.prompt, m.output {both} AND h.stage = 'again'")
    assert len(chosen) == 6
    assert all(prompt == f"{before} {output}\nIs that right?" for prompt, before, output in chosen)


def test_when_leaves_samples_out_and_their_rows_say_so(done: Path) -> None:
    rows = select(done, "SELECT c.finish_reason, c.prompt, c.output, s.extracted = c.target, s.value "
                        "FROM samples c JOIN scores s USING (run_id, cell_id, sample_id, repeat) "
                        "WHERE c.stage = 'check' AND s.stage = 'main' AND s.filter = 'number' "
                        "AND s.metric = 'exact_match'")  # fmt: skip
    assert len(rows) == 24
    skipped = [row for row in rows if row[0] == "skipped"]
    assert skipped
    assert len(skipped) < 24
    assert all(row[1:3] == (None, None) and row[4] == 1.0 for row in skipped)
    assert all(row[1] and row[2] and row[3] for row in rows if row[0] != "skipped")
    [(scored,)] = select(done, "SELECT count(*) FROM scores WHERE stage = 'check'")
    assert scored == 2 * (24 - len(skipped)), "by two metrics each"


def test_aggregates_are_apart_by_stage_and_the_answers_view_has_them_all(done: Path) -> None:
    found = set(select(done, "SELECT task, stage, filter, metric FROM results"))
    assert ("cot", "main", "number", "exact_match") in found
    assert ("cot", "half", "number", "exact_match") in found
    assert ("cot", "half", "vote", "exact_match") in found
    assert ("cot", "check", "default", "accuracy") in found
    assert ("choose", "again", "default", "perplexity") in found


def test_efficiency_counts_every_stage_once(done: Path) -> None:
    [(tokens, requests, outputs)] = select(
        done, "SELECT sum(prompt_tokens), sum(requests), sum(output_tokens) FROM efficiency"
    )
    [(fed,)] = select(done, "SELECT sum(prompt_tokens) FROM samples")
    assert tokens == fed
    # Two choices of the check, with their prompt and without it.
    choices = 4 * 6 + 4 * len(select(done, "FROM samples WHERE stage = 'check' AND finish_reason IS NULL"))
    assert requests == 24 + 24 + 6 + choices
    assert outputs > 0
    [(distinct, computed)] = select(done, "SELECT sum(distinct_tokens), sum(computed_tokens) FROM efficiency")
    assert computed == pytest.approx(distinct)


def test_the_report_draws_the_vote_and_shows_no_sample_that_was_left_out(done: Path) -> None:
    with evalspec.connect(done / "store.duckdb") as connection:
        [(run_id,)] = connection.execute("SELECT run_id FROM runs").fetchall()
        results = read_results(connection, run_id)
        [figure] = [figure for figure in figures_of(results, "cot", []) if figure.name == "cot-by-votes"]
        shown = samples_of(connection, results)
    assert [row[1] for row in figure.rows] == ["1", "3"]
    assert results.main["cot"].filter == "strict", "the first of the spec's filters"
    left_out = len(select(done, "FROM samples WHERE finish_reason = 'skipped'"))
    assert shown.shown == results.samples - left_out
    stages = [sample["stage"] for sample in shown.payload["samples"] if sample["cell"] == 0]
    assert {"main", "half", "check"} == set(stages)
    lost = [score for sample in shown.payload["samples"] for score in sample.get("scores", ()) if len(score) == 4]
    assert lost, "an answer that was not found can be found"


def test_running_it_again_computes_nothing(done: Path) -> None:
    again = go(done)
    assert (again.computed, again.cached, again.computed_tokens) == (0, 0, 0)


EVERYTHING = (
    "SELECT sample_id, repeat, stage, output, prompt, target, finish_reason, error FROM samples ORDER BY ALL",
    "SELECT sample_id, repeat, stage, filter, metric, extracted, found, value FROM scores ORDER BY ALL",
    "SELECT stage, filter, metric, value, stderr, n FROM metrics ORDER BY ALL",
)


@pytest.mark.parametrize("commits", [1, 5, 9, 13])
def test_a_run_that_stops_anywhere_resumes_in_the_middle_of_a_stage(
    commits: int, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after so many commits of three samples or so: in `main`, in `half`, in `check`."""
    monkeypatch.setattr(run_module, "COMMIT_SAMPLES", 3)
    whole = run_module._Work._commit

    def stopping() -> Callable[..., None]:
        count = 0

        def commit(*arguments: Any) -> None:
            nonlocal count
            whole(*arguments)
            count += bool(arguments[1])
            if count == commits:
                raise RunError("struck")

        return commit

    with monkeypatch.context() as patched:
        patched.setattr(run_module._Work, "_commit", stopping())
        with pytest.raises(RunError, match="struck"):
            go(tmp_path)
    before = len(select(tmp_path, "FROM samples WHERE finish_reason IS DISTINCT FROM 'skipped'"))
    finished = go(tmp_path)
    everything = len(select(done, "FROM samples WHERE finish_reason IS DISTINCT FROM 'skipped'"))
    assert 0 < before < everything
    assert finished.computed == everything - before, "what was committed is not computed again"
    for query in EVERYTHING:
        assert select(tmp_path, query) == [
            tuple(pytest.approx(v) if isinstance(v, float) else v for v in row) for row in select(done, query)
        ]
    costs = "SELECT task, prompt_tokens, distinct_tokens, requests FROM costs ORDER BY task"
    assert select(tmp_path, costs) == [
        tuple(pytest.approx(v) if isinstance(v, float) else v for v in row) for row in select(done, costs)
    ]


def test_another_run_reuses_the_answers_of_its_stages(done: Path, tmp_path: Path) -> None:
    changed = json.loads(json.dumps(SPEC))
    changed["tasks"]["cot"]["stages"]["half"]["metrics"].append("contains")
    shutil.copytree(done, tmp_path / "copy")
    store = Store(tmp_path / "copy" / "store.duckdb")
    finished = run(compile_plan(load(changed, root=ROOT)), store, tmp_path)
    assert finished.computed == 0
    assert finished.cached + len(select(done, "FROM samples WHERE finish_reason = 'skipped'")) == finished.samples


def changed(path: str, value: Any) -> dict[str, Any]:
    spec = json.loads(json.dumps(SPEC))
    *above, last = path.split("/")
    place = spec["tasks"]["cot"]["stages"]
    for name in above:
        place = place[name]
    place[last] = value
    return spec


def test_the_plan_bounds_what_a_stage_can_come_to_and_is_another_when_its_template_is(done: Path) -> None:
    plan = compile_plan(load(SPEC, root=ROOT))
    cells = {cell["task"]: cell for cell in plan_json(plan)["cells"]}
    bounds = {bound["stage"]: bound for bound in cells["cot"]["stages"]}
    assert list(bounds) == ["half", "check"]
    for stage, bound in bounds.items():
        [(samples, tokens, longest)] = select(
            done, f"SELECT count(*), sum(prompt_tokens), max(prompt_tokens) FROM samples WHERE stage = '{stage}'"
        )
        assert bound["samples_at_most"] == samples
        assert bound["prompt_tokens_at_most"] >= tokens
        assert 2 * bound["longest_at_most"] >= longest
    assert bounds["half"]["new_tokens_at_most"] == 24 * 3
    assert (bounds["half"]["requests_at_most"], bounds["check"]["requests_at_most"]) == (24, 24 * 4)
    assert "half" in plan_table(plan)
    assert plan.plan_id == compile_plan(load(SPEC, root=ROOT)).plan_id
    other = changed("half/prompt/template", "{{ outputs.main }} Answer:")
    assert plan.plan_id != compile_plan(load(other, root=ROOT)).plan_id


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ output.main }}", "tasks.cot.stages.half.prompt.template: 'output' is undefined. Did you mean `outputs`"),
        ("{{ outputs.mian }}", "no attribute 'mian'"),
        ("{{ outputs.check }}", "no attribute 'check'"),
        ("{{ extracted.main.vote7 }}", "no attribute 'vote7'"),
        ("{{ outputs.main | first_step(2) }}", "No filter named 'first_step'"),
    ],
)
def test_a_misspelt_name_in_a_stage_is_found_before_anything_runs(template: str, said: str) -> None:
    with pytest.raises(PromptError, match="stages") as caught:
        compile_plan(load(changed("half/prompt/template", template), root=ROOT))
    assert said in str(caught.value)


def test_a_prompt_that_an_output_cannot_make_is_that_samples_error(tmp_path: Path) -> None:
    """The first stage divides by zero where the answer is 0; the stage after it says that it was not asked."""
    spec = changed("half/prompt/template", "{{ 10 // (extracted.main.number | int) }} Answer:")
    spec["tasks"] = {"cot": spec["tasks"]["cot"]}
    finished = go(tmp_path, spec)
    rows = select(tmp_path, "SELECT h.error, c.error, s.extracted FROM samples h JOIN samples c "
                            "USING (run_id, cell_id, sample_id, repeat) JOIN scores s "
                            "USING (run_id, cell_id, sample_id, repeat) WHERE h.stage = 'half' AND c.stage = 'check' "
                            "AND s.stage = 'main' AND s.filter = 'number' AND s.metric = 'exact_match'")  # fmt: skip
    failed = [row for row in rows if row[0] is not None]
    assert finished.status == "failed"
    assert finished.failed == 2 * len(failed) > 0
    for error, next_error, extracted in failed:
        assert "tasks.cot.stages.half.prompt.template" in error
        assert next_error == f"stage `half` has no answer: {error}"
        assert extracted in ("0", "[invalid]")


def test_a_chat_models_stage_reads_the_text_and_not_the_markup(tmp_path: Path) -> None:
    """`prompts.main` goes into the next message as it was meant, and the message into markup of its own."""
    model = tmp_path / "model"
    shutil.copytree(ROOT / "evalspec" / "zoo" / "transformer", model)
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings["chat_template"] = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    spec = json.loads(json.dumps(SPEC))
    spec["models"] = {"transformer": {"weights": str(model), "chat": True}}
    task = spec["tasks"]["cot"]
    task["prompt"]["shots"] = {"n": 1, "target": "{{ steps }} Answer: {{ answer }}"}
    task["decode"] = {"max_tokens": 6}
    task["filters"] = {"number": ["last_number"]}
    task["metrics"], task["stages"] = ["exact_match"], {"half": {**HALF, "filters": {}}}
    spec["tasks"] = {"cot": task}
    go(tmp_path, spec)
    rows = select(tmp_path, "SELECT m.prompt, h.prompt FROM samples h JOIN samples m USING (run_id, sample_id, repeat) "
                            "WHERE m.stage = 'main' AND h.stage = 'half'")  # fmt: skip
    assert rows
    for main, half in rows:
        shot, answer, question = (part for part in re.split(r"\[user\]|\[assistant\]", main) if part)
        assert half.startswith(f"[user]{shot} {answer}\n\n{question} ")
        assert half.endswith(". Answer:[assistant]")
