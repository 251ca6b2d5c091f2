"""A harness task becomes a spec that asks the same, or is refused with every reason at its line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from evalspec.cli import main
from evalspec.errors import EvalspecError
from evalspec.importing.lm_eval_index import Index
from evalspec.importing.lm_eval_spec import Imported, import_lm_eval
from evalspec.importing.lm_eval_yaml import HarnessError
from evalspec.spec import loads

ROWS = [{"q": "one", "label": 1, "options": ["x", "y"]}, {"q": "two", "label": 0, "options": ["x", "y"]}]
KEPT = "; `--run-python` calls it once, while importing, and keeps the rows"
CHOICE = """
task: t
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl, train: rows.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: q
doc_to_choice: options
doc_to_target: label
"""
GENERATE = """
task: t
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
doc_to_text: "Q: {{q}}\\nA:"
doc_to_target: "{{label}}"
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("evalspec.importing.lm_eval_spec.installed_tasks", lambda: None)
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def imported(text: str, more: str = "", name: str = "t.yaml") -> Imported:
    Path(name).write_text(text + more)
    return import_lm_eval(name)


def block(text: str, more: str = "") -> dict[str, Any]:
    spec = imported(text, more)
    assert loads(spec.text, root=Path.cwd()).cells
    found: dict[str, Any] = yaml.safe_load(spec.text)["tasks"]["t"]
    return found


def reasons(text: str, more: str = "") -> list[str]:
    with pytest.raises(HarnessError) as caught:
        imported(text, more)
    return [f"{Path(p.file).name}:{p.line} {p.message}" for p in caught.value.problems]


def test_a_choice_task_is_carried_over_with_its_columns_and_default_metrics() -> None:
    assert block(CHOICE, "training_split: train\nnum_fewshot: 2\nfewshot_config: {sampler: first_n}\n") == {
        "data": {"file": "rows.jsonl"},
        "prompt": {
            "template": "{{ q }}",
            "choices": "{{ options }}",
            "target": "{{ label }}",
            "shots": {"n": 2, "sampler": "first", "data": {"file": "rows.jsonl"}},
        },
        "metrics": ["accuracy", "accuracy_norm"],
    }


def test_a_choice_may_be_held_against_its_likelihood_without_the_prompt() -> None:
    more = "metric_list: [{metric: acc}, {metric: acc_mutual_info, aggregation: mean, higher_is_better: true}]\n"
    assert block(CHOICE, more)["metrics"] == ["accuracy", "accuracy_pmi"]
    prompts = CHOICE.replace("doc_to_text: q", "doc_to_text: label").replace("doc_to_target: label", "doc_to_target: q")
    [said] = reasons(prompts, more)
    assert re.search(r"t\.yaml:10 `metric_list`: `acc_mutual_info` .* where each choice is a prompt of its own", said)


def test_a_generation_task_has_the_harnesss_defaults() -> None:
    made = block(GENERATE)
    assert made["decode"] == {"max_tokens": 256, "stop": ["\n\n"]}
    assert made["filters"] == {"none": []}, "the output as it is, white space and all"
    assert made["metrics"] == [{"metric": "exact_match", "literal": True}]
    assert made["prompt"]["template"] == "Q: {{q}}\nA:"


def test_a_word_that_is_no_column_of_the_data_is_that_word() -> None:
    assert block(GENERATE.replace('"{{label}}"', "nothing"))["prompt"]["target"] == "nothing"


def test_without_the_data_a_word_is_taken_for_a_column_and_said_to_be() -> None:
    spec = imported(
        CHOICE.replace("dataset_path: json", "dataset_path: owner/name").replace("dataset_kwargs", "metadata")
    )
    assert yaml.safe_load(spec.text)["tasks"]["t"]["prompt"]["target"] == "{{ label }}"
    assert any("doc_to_target: label` is taken for a column" in note for note in spec.notes)


def test_an_index_in_the_text_makes_each_choice_a_prompt_of_its_own() -> None:
    made = block(
        CHOICE.replace("doc_to_text: q", "doc_to_text: label").replace("doc_to_target: label", "doc_to_target: q")
    )
    assert made["prompt"] | {"shots": None} == {
        "contexts": "{{ options }}",
        "continuation": "{{ q }}",
        "target": "{{ label }}",
        "shots": None,
    }


def test_digits_that_a_template_writes_are_an_index_and_what_writes_a_list_is_one() -> None:
    text = CHOICE.replace("doc_to_choice: options", 'doc_to_choice: "{{options}}"')
    made = block(text.replace("doc_to_target: label", 'doc_to_target: "{{label}}"'))
    assert made["prompt"]["choices"] == "{{ options | as_list }}"
    assert made["prompt"]["target"] == "{{ label | as_index }}"


def test_white_space_around_an_expression_is_part_of_the_target() -> None:
    made = block(GENERATE.replace('"{{label}}"', "' {{label}}'"))
    assert made["prompt"]["target"] == '{{ " " ~ label }}'


def test_a_scored_target_has_no_delimiter_but_its_shots_have() -> None:
    made = block(GENERATE, "output_type: loglikelihood\nnum_fewshot: 1\nfewshot_config: {sampler: first_n}\n")
    assert made["prompt"]["delimiter"] == ""
    assert made["prompt"]["shots"]["delimiter"] == " "
    assert made["metrics"] == ["target_perplexity", "greedy"]


def test_generation_settings_filters_and_votes() -> None:
    more = """
generation_kwargs: {until: ["Q:", ""], do_sample: true, temperature: 0.2, max_new_tokens: 9}
repeats: 64
filter_list:
  - {name: first, filter: [{function: regex, regex_pattern: "is (.*)"}, {function: take_first}]}
  - name: maj@8
    filter: [{function: take_first_k, k: 8}, {function: lowercase}, {function: majority_vote}, {function: take_first}]
"""
    made = block(GENERATE, more)
    assert made["decode"] == {"max_tokens": 9, "stop": ["Q:"], "temperature": 0.2, "top_k": 50, "repeats": 64}
    assert made["filters"] == {"first": [{"regex": "is (.*)"}, {"vote": 1}], "maj-8": ["lower", {"vote": 8}]}


def test_fixed_samples_stand_in_the_spec_and_may_have_columns_of_their_own() -> None:
    more = """
num_fewshot: 1
fewshot_config: {sampler: first_n, samples: [{q: three, label: '3'}], doc_to_text: 'Ask {{q}}'}
"""
    shots = block(GENERATE, more)["prompt"]["shots"]
    assert shots["data"] == {"rows": [{"q": "three", "label": "3"}]}
    assert shots["template"] == "Ask {{q}}"


def test_a_task_without_shots_needs_no_file_of_them_and_its_spec_says_so() -> None:
    text = CHOICE.replace(", train: rows.jsonl", "") + "training_split: train\n"
    assert "shots" not in block(text)["prompt"]
    assert any(note.startswith("- It asks for no shots and has no rows for any") for note in imported(text).notes)
    assert "`data_files` names no file for the split `train`" in reasons(text, "num_fewshot: 1\n")[0]


def test_includes_come_first_and_their_own_keys_win() -> None:
    Path("base.yaml").write_text(CHOICE)
    made = block("include: base.yaml\ntask: t\ndoc_to_text: 'Which, {{q}}?'\n")
    assert made["prompt"]["template"] == "Which, {{q}}?"


def test_every_key_that_cannot_be_carried_is_named_with_its_file_and_line() -> None:
    Path("base.yaml").write_text("dataset_path: owner/name\nprocess_docs: !function utils.process\n")
    assert reasons(
        "include: base.yaml\ntask: t\ndoc_to_text: !function utils.text\n",
        "fewshot_config:\n  samples: !function utils.shots\nblah: 3\n",
    ) == [
        "base.yaml:2 `process_docs` calls Python (`!function utils.process`), and a spec never runs any" + KEPT,
        "t.yaml:3 `doc_to_text` calls Python (`!function utils.text`), and a spec never runs any" + KEPT,
        "t.yaml:5 `fewshot_config` calls Python (`!function utils.shots`), and a spec never runs any" + KEPT,
        "t.yaml:6 `blah`: is no key that can be carried over.",
    ]


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ("metric_list: [{metric: likelihood}]\n", "the metric `likelihood`"),
        ("metric_list: [{metric: acc, aggregation: median}]\n", "is aggregated by `median`"),
        ("metric_list: [{metric: acc, higher_is_better: false}]\n", "higher_is_better"),
        ("metric_list: []\n", "nothing is measured"),
        ("fewshot_config: {sampler: balanced}\n", "the sampler `balanced`"),
        ("fewshot_config: {fewshot_indices: [1]}\n", "`fewshot_indices`"),
        ("filter_list: [{name: a, filter: [{function: lowercase}]}]\n", "filters of `multiple_choice` tasks"),
        ("use_prompt: promptsource:x\n", "promptsource"),
        ("doc_to_image: picture\n", "images"),
        ("num_fewshot: many\n", "a whole number"),
    ],
)
def test_what_has_no_counterpart_is_refused(more: str, line: str) -> None:
    assert any(line in reason for reason in reasons(CHOICE, more))


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ("generation_kwargs: {num_beams: 4}\n", "`num_beams`"),
        ("generation_kwargs: {do_sample: true}\n", "`temperature` above 0"),
        ("filter_list: [{name: a, filter: [{function: format_span}]}]\n", "`format_span`"),
        ("metric_list: [{metric: exact_match, hf_evaluate: true}]\n", "`evaluate`"),
        ("metric_list: [{metric: exact_match, odd: 1}]\n", "no option `odd`"),
        ("dataset_name: x\ndescription: '{{ q | nofilter }}'\n", "No filter named 'nofilter'"),
        ("generation_kwargs: {max_gen_toks: 0}\n", "`max_gen_toks` must be a whole number of at least 1, not 0"),
        ("generation_kwargs: {max_gen_toks: .inf}\n", "holds inf"),
        ("generation_kwargs: {temperature: 1, top_k: .nan}\n", "holds nan"),
        ("generation_kwargs: {temperature: 1, do_sample: maybe}\n", "`do_sample` must be true or false"),
        ("repeats: -2\ngeneration_kwargs: {temperature: 1}\n", "`repeats` must be a whole number"),
        ("filter_list: [{name: a, filter: [{function: take_first_k, k: some}]}]\n", "`a: k` must be a whole number"),
        ("filter_list: [{name: a, filter: [{function: map, mapping_dict: [x]}]}]\n", "from texts to texts"),
        ("filter_list: [{name: a, filter: []}, {name: a, filter: []}]\n", "two filters are called `a`"),
        ("output_type: [a]\n", "must be one of multiple_choice"),
        ("fewshot_split: [a]\n", "the split ['a'] is no text"),
        ("fewshot_config: {samples: [{q: 2020-01-31}]}\n", "holds datetime.date(2020, 1, 31)"),
        ("fewshot_config: {samples: [{3: x}]}\n", "columns named by texts"),
    ],
)
def test_what_a_generation_has_no_counterpart_for_is_refused(more: str, line: str) -> None:
    assert any(line in reason for reason in reasons(GENERATE, more))


def test_what_changes_no_score_is_left_out_and_named_once() -> None:
    spec = imported(CHOICE, "metadata: {version: 1}\ntag: [a, b]\ntask_alias: x\nshould_decontaminate: true\n")
    assert "# - Left out, since they change no score: metadata, tag, task_alias, should_decontaminate." in spec.text


def group(folder: Path) -> None:
    (folder / "a.yaml").write_text(CHOICE.replace("task: t", "task: a\ntag: few"))
    (folder / "b.yaml").write_text(CHOICE.replace("task: t", "task: b") + "process_docs: !function utils.f\n")
    (folder / "c.yaml").write_text(CHOICE.replace("task: t", "task: c\ntag: few"))
    (folder / "g.yaml").write_text(
        "group: g\ntask: [a, b, {task: c, num_fewshot: 1, task_alias: see}]\n"
        "fewshot_config: {sampler: first_n}\naggregate_metric_list: [{metric: acc}]\n"
    )


def test_a_group_imports_what_can_be_and_lists_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    group(tmp_path)
    assert main(["import", "lm-eval", "g", "--include-path", str(tmp_path), "--out", "specs"]) == 1
    said = capsys.readouterr()
    assert "wrote specs/g.yaml: 2 tasks" in said.out
    assert "The group's average over its tasks is not computed" in said.out
    assert "left behind: b: " in said.err and "b.yaml:10: `process_docs` calls Python" in said.err
    tasks = yaml.safe_load(Path("specs/g.yaml").read_text())["tasks"]
    assert {name: task["prompt"]["shots"]["n"] for name, task in tasks.items()} == {"a": 0, "c": 1}
    assert tasks["a"]["prompt"]["shots"]["sampler"] == "first", "what a group says is laid over its tasks"
    assert main(["validate", "specs/g.yaml"]) == 0


def test_a_task_that_a_group_holds_twice_is_there_twice_only_where_it_differs(tmp_path: Path) -> None:
    group(tmp_path)
    Path("h.yaml").write_text("group: h\ntask: [a, a, {task: a, num_fewshot: 2}, {task: a, num_fewshot: 3}]\n")
    tasks = yaml.safe_load(import_lm_eval("h.yaml").text)["tasks"]
    assert {name: task["prompt"]["shots"]["n"] for name, task in tasks.items()} == {"a": 0, "a-2": 2, "a-3": 3}


def test_a_tag_is_its_tasks_and_a_file_of_a_group_finds_them_beside_it(tmp_path: Path) -> None:
    group(tmp_path)
    assert [leaf.name for leaf in Index([tmp_path]).leaves("few")] == ["a", "c"]
    assert [task.name for task in import_lm_eval("g.yaml").tasks] == ["a", "c"]


def test_a_task_that_cannot_be_imported_at_all_is_the_users_error(capsys: pytest.CaptureFixture[str]) -> None:
    Path("t.yaml").write_text("task: t\nclass: !function task.Mine\n")
    assert main(["import", "lm-eval", "t.yaml"]) == 2
    assert "t.yaml:2:1: `class` calls Python" in capsys.readouterr().err
    assert not Path("specs").exists()


def test_a_spec_of_the_same_name_is_not_written_over(capsys: pytest.CaptureFixture[str]) -> None:
    Path("t.yaml").write_text(CHOICE)
    assert main(["import", "lm-eval", "t.yaml"]) == 0
    assert main(["import", "lm-eval", "t.yaml"]) == 0, "the same once more"
    Path("specs/t.yaml").write_text("mine")
    assert main(["import", "lm-eval", "t.yaml"]) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a list\n", "a task is a mapping"),
        ("task: [\n", "t.yaml:2:1: not YAML"),
        ("task: t\ninclude: nowhere.yaml\n", "t.yaml:2:1: there is no file"),
        ("task: t\ninclude: t.yaml\n", "in a circle"),
        ("include: base.yaml\n", "there is no file"),
        ("dataset_path: json\n", "neither `task:` nor `group:`"),
        ("task: t\nx: !!python/object:os.system {}\n", "not YAML"),
        ("task: t\nx: &a [*a]\n", "t.yaml:2:1: this anchor holds an alias to itself"),
        (
            "a: &a [x]\n" + "".join(f"{b}: &{b} [{f'*{a},' * 9}]\n" for a, b in zip("abcdef", "bcdefg", strict=True)),
            "100,000 values",
        ),
        ("task: t\ndescription: 'caf\udce9'\n", "t.yaml:2:1: not YAML: invalid trailing UTF-8 octet; save it as UTF-8"),
        ("task: null\n", "`task` is the name"),
        ("group: [g]\ntask: t\n", "`group` is the name"),
        ("group: g\ntask: 3\n", "a name or a list of names, not 3"),
    ],
)
def test_a_broken_file_says_where(text: str, said: str) -> None:
    Path("t.yaml").write_text(text, errors="surrogateescape")
    with pytest.raises(EvalspecError, match=re.escape(said)):
        import_lm_eval("t.yaml")


def test_a_name_that_is_missing_beside_a_broken_file_names_that_file() -> None:
    Path("broken.yaml").write_text("task: [\n")
    with pytest.raises(
        HarnessError, match=r"`nope` that is not there. 1 files there cannot be read; the first: .*broken"
    ):
        imported("group: g\ntask: [nope]\n")


def test_a_key_that_stands_twice_is_told_and_counts_as_in_the_harness() -> None:
    spec = imported(CHOICE, "description: one\ndescription: two\n")
    assert yaml.safe_load(spec.text)["tasks"]["t"]["prompt"]["description"] == "two"
    assert any("`description` stands twice in t.yaml, on lines 10 and 11" in note for note in spec.notes)


def test_data_that_cannot_be_read_is_told_since_names_are_then_taken_for_columns() -> None:
    Path("rows.jsonl").write_text('{"q": ')
    assert any("cannot be read: rows.jsonl:1:6: not JSON" in note for note in imported(CHOICE).notes)


@pytest.mark.parametrize("written", ["²", "-" * 50_000 + "1", "[" * 5_000])
def test_what_only_looks_like_a_number_or_a_list_is_a_text(written: str) -> None:
    assert block(CHOICE.replace("doc_to_target: label", f'doc_to_target: "{written}"'))["prompt"]["target"] == written
    assert (
        "one `{{ expression }}`" in reasons(CHOICE.replace("doc_to_choice: options", f'doc_to_choice: "{written}"'))[0]
    )


def test_a_name_that_is_nowhere_says_what_to_do() -> None:
    with pytest.raises(HarnessError, match="name a YAML file, or a folder of tasks with --include-path"):
        import_lm_eval("mmlu")


@pytest.mark.parametrize(
    "text",
    ["yes", "1e-4", "010", "a: b", "# no", " leading", "two\nlines", "tab\there", "end \nblank", "\n", "“q” 🜁", ""],
)
def test_any_text_comes_through_the_yaml_of_the_spec(text: str) -> None:
    Path("rows.jsonl").write_text(json.dumps({"q": "x", "label": 0}) + "\n")
    more = f"description: {json.dumps(text, ensure_ascii=False)}\n"
    assert loads(imported(GENERATE, more).text, root=Path.cwd()).spec.tasks["t"].prompt.description == text


def test_a_choice_among_the_options_becomes_a_step_and_the_prompt_gets_them() -> None:
    rows = [{"q": "one", "label": "(A)", "choices": ["x", "y"]}, {"q": "two", "label": "(B)", "choices": ["x", "y"]}]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = "{function: multi_choice_regex, group_select: -1, ignore_case: true, regexes_to_ignore: [a]}"
    made = block(GENERATE, f"filter_list: [{{name: f, filter: [{chosen}, {{function: take_first}}]}}]\n")
    assert made["prompt"]["options"] == "{{ choices }}"
    assert made["filters"] == {
        "f": [{"option": r"#### (\-?[0-9\.\,]+)", "pick": "last", "ignore": ["a"], "ignore_case": True}]
    }


def test_options_that_no_column_holds_are_refused() -> None:
    said = reasons(GENERATE, "filter_list: [{name: f, filter: [{function: multi_choice_regex}]}]\n")
    assert said == ["t.yaml:8 `filter_list`: `multi_choice_regex` reads the column `choices`, which is missing"]
