"""The plan is deterministic, exact, and changes whenever what it asks changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evalspec.errors import EvalspecError, PromptError
from evalspec.plan.compile import ModelPlan, Plan, compile_plan
from evalspec.plan.price import plan_json, plan_table
from evalspec.spec import load
from evalspec.tabular import bytes_text

ROWS = [
    {"id": f"q{number}", "question": f"Who is number {number}?", "answer": "Anna", "gold": [f"p{number}"]}
    for number in range(40)
]
ASKED = [{"asked" if key == "question" else key: value for key, value in row.items()} for row in ROWS]
PASSAGES = [{"id": f"p{number}", "text": f"Number {number} is Anna."} for number in range(40)]


def project(
    folder: Path, rows: list[dict[str, Any]] = ROWS, template: str = "Question: {{ question }}\nAnswer:"
) -> Path:
    (folder / "prompts").mkdir(parents=True, exist_ok=True)
    (folder / "prompts" / "ask.jinja").write_text(
        "{% for p in passages %}\n- {{ p.text }}\n{% endfor %}\n" + template + "\n"
    )
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "passages.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PASSAGES))
    return folder


def spec(**changes: Any) -> dict[str, Any]:
    task: dict[str, Any] = {
        "data": {"file": "rows.jsonl"},
        "prompt": {"template": "prompts/ask.jinja", "target": "{{ answer }}", "shots": 2},
        "retrieval": {"corpus": {"file": "passages.jsonl"}, "gold": "{{ gold }}", "retriever": "bm25", "k": 3},
        "decode": {"max_tokens": 4, "stop": ["\n"]},
        "metrics": ["exact_match", "recall"],
    }
    for path, value in changes.items():
        *above, last = path.split("__")
        place = task
        for name in above:
            place = place[name]
        place[last] = value
    return {
        "name": "test",
        "models": {"mamba": {"weights": "zoo/mamba"}, "transformer": {"weights": "zoo/transformer"}},
        "tasks": {"ask": task},
        "sweep": {"tasks.ask.retrieval": [{"retriever": "none"}, {"retriever": ["bm25", "oracle"], "k": [1, 3]}]},
    }


def compiled(folder: Path, **changes: Any) -> Plan:
    return compile_plan(load(spec(**changes), root=folder))


def test_the_same_spec_has_the_same_plan_wherever_it_stands(tmp_path: Path) -> None:
    first, second = project(tmp_path / "a"), project(tmp_path / "b")
    assert compiled(first).plan_id == compiled(first).plan_id == compiled(second).plan_id


def test_one_character_of_a_template_a_seed_or_a_row_makes_another_plan(tmp_path: Path) -> None:
    base = compiled(project(tmp_path / "a")).plan_id
    changed = [{**ROWS[0], "answer": "Anne"}, *ROWS[1:]]
    others = [
        compiled(project(tmp_path / "b", template="Question: {{ question }}\nAnswer: ")).plan_id,
        compiled(project(tmp_path / "c", rows=changed)).plan_id,
        compiled(tmp_path / "a", prompt__shots={"n": 2, "seed": 1}).plan_id,
        compiled(tmp_path / "a", decode__max_tokens=5).plan_id,
        compiled(tmp_path / "a", metrics=["exact_match"]).plan_id,
    ]
    assert len({base, *others}) == 6


def test_the_contracts_keys_are_there_and_the_tokens_are_exact(tmp_path: Path) -> None:
    plan = compiled(project(tmp_path))
    shown = plan_json(plan)
    assert {"plan_id", "cells", "models"} <= set(shown)
    assert {"cell_id", "model", "task", "params", "samples", "requests"} <= set(shown["cells"][0])
    for part, entry in zip(plan.models, shown["models"], strict=True):
        assert {"prompt_tokens", "distinct_tokens", "sharing", "flops", "seconds", "fits"} <= set(entry)
        fed = [tuple(request.tokens.tolist()) for sample in part.samples for request in sample.requests]
        assert entry["prompt_tokens"] == sum(map(len, fed))
        assert entry["distinct_tokens"] == len({tokens[: n + 1] for tokens in fed for n in range(len(tokens))})
        assert entry["sharing"] == entry["prompt_tokens"] / entry["distinct_tokens"] > 1
    assert json.loads(json.dumps(shown)) == shown
    assert "no passages" in plan_table(plan)


@pytest.mark.parametrize("retriever", [{"retriever": "none"}, {"retriever": "oracle", "distractors": "random"}])
def test_where_nothing_reads_a_query_rows_need_no_column_called_question(
    tmp_path: Path, retriever: dict[str, Any]
) -> None:
    folder = project(tmp_path, template="Q: {{ asked }}\nA:", rows=ASKED)
    asked = spec(retrieval__query="{{ asked }}")
    asked["sweep"] = {"tasks.ask.retrieval": [retriever, {"retriever": "bm25", "k": 1}]}
    samples = compile_plan(load(asked, root=folder)).models[0].samples
    assert {bool(sample.draft.hits) for sample in samples} == {retriever["retriever"] == "oracle", True}


def test_open_and_closed_book_show_the_same_nearest_examples(tmp_path: Path) -> None:
    folder = project(tmp_path, template="Q: {{ asked }}\nA:", rows=ASKED)
    asked = spec(retrieval__query="{{ asked }}", prompt__shots={"n": 2, "sampler": "nearest"})
    asked["sweep"] = {"tasks.ask.retrieval": [{"retriever": "none"}, {"retriever": "bm25", "k": 1}]}
    part = compile_plan(load(asked, root=folder)).models[0]
    closed, opened = (
        {sample.draft.sample_id: sample.draft.shot_ids for sample in part.samples if sample.cell is cell}
        for cell in part.cells
    )
    assert closed == opened
    assert any(closed.values())


def test_a_model_that_cannot_be_forked_is_said_and_priced_so(tmp_path: Path) -> None:
    asked = spec()
    asked["models"] = {"native": {"weights": "zoo/mamba"}, "other": {"weights": "zoo/mamba", "backend": "transformers"}}
    plan = compile_plan(load(asked, root=project(tmp_path)))
    native, other = plan_json(plan)["models"]
    assert native["fed_again"] is None
    assert "restarts its recurrence" in other["fed_again"]
    assert native["computed_tokens"] == native["distinct_tokens"] == other["distinct_tokens"]
    assert other["computed_tokens"] == sum(len(r.tokens) for r in plan.models[1].forest.requests)
    assert other["flops"] > 2 * native["flops"]
    (note,) = [line for line in plan_table(plan).splitlines() if line.startswith("other: ")]
    assert "`backend: native` could" in note


def test_states_in_bfloat16_are_priced_so(tmp_path: Path) -> None:
    asked = spec()
    asked["models"] = {
        "wide": {"weights": "zoo/mamba", "dtype": "float32"},
        "narrow": {"weights": "zoo/mamba", "dtype": "float32", "state_dtype": "bfloat16"},
    }
    plan = compile_plan(load(asked, root=project(tmp_path)))
    wide, narrow = plan_json(plan)["models"]
    config = plan.models[0].model.config
    numbers = config["num_hidden_layers"] * 2 * config["hidden_size"] * config["state_size"]  # L E N
    assert wide["state_bytes"] - narrow["state_bytes"] == 2 * numbers
    shown = {line.split()[0]: line for line in plan_table(plan).splitlines() if "native" in line}
    for entry in (wide, narrow):
        assert bytes_text(entry["state_bytes"]) in shown[entry["model"]]


def test_retriever_none_is_one_cell_a_model(tmp_path: Path) -> None:
    plan = compiled(project(tmp_path))
    none = [c for c in plan.cells if c.params.get("tasks.ask.retrieval.retriever") == "none"]
    assert sorted(cell.model_name for cell in none) == ["mamba", "transformer"]
    assert len(plan.cells) == 2 * (1 + 2 * 2)


def test_shots_carry_passages_of_their_own_by_the_cells_retriever(tmp_path: Path) -> None:
    plan = compiled(project(tmp_path))
    for sample in plan.models[0].samples:
        k = sample.cell.task.retrieval.k if sample.cell.task.retrieval else 0
        if sample.cell.params["tasks.ask.retrieval.retriever"] == "none":
            assert "- Number" not in sample.draft.prompt
        else:
            assert sample.draft.prompt.count("- Number") == 3 * k
        assert len(sample.draft.shot_ids) == 2
        assert sample.draft.sample_id not in sample.draft.shot_ids


def test_every_number_of_shots_is_evaluated_on_the_same_samples(tmp_path: Path) -> None:
    project(tmp_path)
    ids = []
    for shots in (0, 1, 4):
        plan = compiled(tmp_path, prompt__shots=shots)
        ids.append([sample.draft.sample_id for sample in plan.models[0].samples])
    assert ids[0] == ids[1] == ids[2]


def test_choices_share_their_question_and_a_target_may_be_text_or_index(tmp_path: Path) -> None:
    rows = [
        {"id": str(n), "q": f"Pick {n}", "options": ["one", "two", "three"], "right": "two", "place": 1}
        for n in range(6)
    ]
    project(tmp_path, rows)
    for target in ("{{ right }}", "{{ place }}"):
        task = {
            "data": {"file": "rows.jsonl"},
            "prompt": {"template": "{{ q }}:", "target": target, "choices": "{{ options }}"},
            "metrics": ["accuracy"],
        }
        loaded = load({"name": "c", "models": {"m": {"weights": "zoo/mamba"}}, "tasks": {"t": task}}, root=tmp_path)
        [part] = compile_plan(loaded).models
        assert all(sample.draft.gold_choices == {1} and len(sample.requests) == 3 for sample in part.samples)
        # The three continuations differ only in tokens that are never fed, so all feed the same question.
        assert part.forest.distinct_tokens < part.forest.prompt_tokens


def test_choices_are_fed_without_their_prompt_once_each_and_only_where_a_metric_compares_with_that(
    tmp_path: Path,
) -> None:
    project(tmp_path, [{"id": str(n), "q": f"Pick {n}", "options": ["one", "two", f"at {n}"]} for n in range(6)])

    def part(*metrics: str) -> ModelPlan:
        prompt = {"template": "{{ q }}:", "target": 1, "choices": "{{ options }}"}
        task = {"data": {"file": "rows.jsonl"}, "prompt": prompt, "metrics": list(metrics)}
        loaded = load({"name": "c", "models": {"m": {"weights": "zoo/mamba"}}, "tasks": {"t": task}}, root=tmp_path)
        return compile_plan(loaded).models[0]

    plain, asked = part("accuracy"), part("accuracy", "accuracy_pmi")
    assert [len(sample.requests) for sample in plain.samples] == [3] * 6
    tokenizer = asked.model.tokenizer
    for before, sample in zip(plain.samples, asked.samples, strict=True):
        given_prompt, alone = sample.requests[:3], sample.requests[3:]
        assert [request.key for request in given_prompt] == [request.key for request in before.requests]
        for choice, request in zip(sample.draft.choices, alone, strict=True):
            ids = tokenizer.encode([f" {choice}"], special=False)[0]
            assert request.targets == tuple(ids)
            assert request.tokens.tolist() == [tokenizer.start, *ids[:-1]]
    assert len(asked.forest.requests) == len(plain.forest.requests) + 2 + 6, "`one`, `two`, and six of their own"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt__template": "{{ questoin }}"}, "Did you mean `question`"),
        ({"prompt__shots": 30}, "30 shots are asked for but the pool has"),
        ({"retrieval__corpus": {"file": "passages.jsonl", "id": "name"}}, "name"),
        ({"retrieval__gold": "{{ question }}"}, "gold ids are in no passage"),
        ({"prompt__target": "{{ nothing }}"}, "nothing"),
        ({"decode__max_tokens": 9000}, "max_tokens"),
    ],
)
def test_bad_input_is_named_with_its_place(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    project(tmp_path)
    with pytest.raises(EvalspecError, match=message) as caught:
        compiled(tmp_path, **changes)
    assert "tasks.ask" in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_retriever_without_a_corpus_says_so(tmp_path: Path) -> None:
    project(tmp_path)
    asked = spec()
    del asked["tasks"]["ask"]["retrieval"]["corpus"]
    with pytest.raises(EvalspecError, match="corpus"):
        compile_plan(load(asked, root=tmp_path))


def test_a_text_alone_is_scored_in_windows_but_what_stands_in_front_of_it_is_always_fed(tmp_path: Path) -> None:
    rows = [{"id": "r", "text": "Anna lives in Inverley. " * 5}]
    project(tmp_path, rows)
    models: dict[str, dict[str, Any]] = {"m": {"weights": "zoo/mamba", "max_length": 16}}

    def request_tokens(**prompt: Any) -> list[list[int]]:
        block = {"template": "", "target": "{{ text }}", **prompt}
        task = {"data": {"file": "rows.jsonl"}, "prompt": block, "metrics": ["perplexity"]}
        [part] = compile_plan(load({"name": "p", "models": models, "tasks": {"t": task}}, root=tmp_path)).models
        [sample] = part.samples
        return [request.tokens.tolist() for request in sample.requests]

    assert len(request_tokens()) > 1
    models["m"]["max_length"] = 4096
    [alone], [instructed] = request_tokens(), request_tokens(description="Read this:")
    assert len(instructed) > len(alone)


def test_a_prompt_that_does_not_fit_is_cut_and_counted_or_refused(tmp_path: Path) -> None:
    project(tmp_path)
    asked = spec()
    asked["models"] = {"transformer": {"weights": "zoo/transformer", "max_length": 30}}
    [part] = compile_plan(load(asked, root=tmp_path)).models
    assert any(sample.truncated_tokens for sample in part.samples)
    assert max(len(request.tokens) for request in part.forest.requests) == 26
    asked["tasks"]["ask"]["prompt"]["overflow"] = "error"
    with pytest.raises(PromptError, match="longer than the 30 that model transformer holds"):
        compile_plan(load(asked, root=tmp_path))


def test_right_answers_that_squads_normalisation_spoils_are_named_with_what_compares_them_as_written(
    tmp_path: Path,
) -> None:
    rows = [{**row, "answer": "A" if number == 0 else row["answer"]} for number, row in enumerate(ROWS)]
    project(tmp_path, rows)
    changes = {"prompt__shots": {"n": 1, "data": {"file": "rows.jsonl"}}}
    table = plan_table(compiled(tmp_path, **changes))
    assert "ask: `exact_match` compares as SQuAD does, which leaves nothing of the right answer `A`" in table
    literal = {"metrics": [{"metric": "exact_match", "literal": True}]}
    assert "compares as SQuAD does" not in plan_table(compiled(tmp_path, **changes, **literal))


def test_a_line_break_that_yaml_leaves_between_a_prompt_and_its_answer_is_named(tmp_path: Path) -> None:
    project(tmp_path)
    said = "tasks.ask.prompt.template: ends in a line break"
    assert said in plan_table(compiled(tmp_path, prompt__template="Q: {{ question }}\nA:\n"))
    assert said not in plan_table(compiled(tmp_path, prompt__template="Q: {{ question }}\nA:"))
    meant = {"prompt__template": "{{ question }}\n", "prompt__delimiter": ""}
    assert said not in plan_table(compiled(tmp_path, **meant))
