"""`include:`, `extends:`, `--set` and the project's root."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evalspec.errors import SpecError
from evalspec.spec import LoadedSpec, load, loads
from evalspec.spec.compose import project_root

TASK = """
    data: {generate: world.questions, count: 3}
    prompt: {template: "{{ question }}", target: "{{ answer }}", shots: 2}
    retrieval: {corpus: {generate: world.passages}, gold: "{{ gold_ids }}"}
    decode: {max_tokens: 4}
    metrics: [exact_match, recall]
"""
SPEC = f"name: t\nmodels:\n  m: {{weights: zoo/mamba}}\ntasks:\n  qa:{TASK}"


def task(loaded: LoadedSpec, name: str = "qa") -> Any:
    return loaded.spec.tasks[name]


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / f"{next(iter(files))}.yaml"


def test_included_files_come_first_and_the_includer_wins_key_by_key(tmp_path: Path) -> None:
    over = "tasks: {qa: {retrieval: {k: 9}, metrics: [contains]}}\n"
    loaded = load(write(tmp_path, main=f"include: base.yaml\nname: mine\n{over}", base=SPEC))
    assert loaded.spec.name == "mine"
    assert task(loaded).retrieval.k == 9
    assert task(loaded).retrieval.corpus.generate == "world.passages"
    assert [metric.metric for metric in task(loaded).metrics] == ["contains"]  # lists are replaced
    assert list(loaded.texts) == [str(tmp_path / "main.yaml"), str(tmp_path / "base.yaml")]
    assert "name: mine" in loaded.text
    assert "world.passages" in loaded.text


def test_of_several_included_files_the_later_wins(tmp_path: Path) -> None:
    more = "tasks: {qa: {retrieval: {k: %d}}}\n"
    path = write(tmp_path, main="include: [base.yaml, one.yaml, two.yaml]\n", base=SPEC, one=more % 1, two=more % 2)
    assert task(load(path)).retrieval.k == 2


def test_included_files_include_from_their_own_folder_or_the_root(tmp_path: Path) -> None:
    (tmp_path / "prompts").mkdir()
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "base.yaml").write_text(SPEC)
    (tmp_path / "a" / "b" / "near.yaml").write_text("include: base.yaml\n")  # only the root has it
    (tmp_path / "a" / "main.yaml").write_text("include: b/near.yaml\n")
    loaded = load(tmp_path / "a" / "main.yaml")
    assert loaded.root == tmp_path
    assert loaded.spec.name == "t"


def test_a_file_included_on_two_ways_is_no_circle(tmp_path: Path) -> None:
    path = write(tmp_path, main="include: [l.yaml, r.yaml]", l="include: base.yaml", r="include: base.yaml", base=SPEC)
    assert load(path).spec.name == "t"


def test_null_takes_an_included_key_away(tmp_path: Path) -> None:
    over = (
        "include: base.yaml\ntasks: {qa: {retrieval: null, metrics: [exact_match]}}\nmodels: {m: null, n: {weights: x}}"
    )
    loaded = load(write(tmp_path, main=over, base=SPEC))
    assert task(loaded).retrieval is None
    assert list(loaded.spec.models) == ["n"]


def test_a_number_of_shots_and_a_block_of_shots_merge(tmp_path: Path) -> None:
    over = "include: base.yaml\ntasks: {qa: {prompt: {shots: {sampler: first}}}}\n"
    shots = task(load(write(tmp_path, main=over, base=SPEC))).prompt.shots
    assert (shots.n, shots.sampler) == (2, "first")


def test_a_task_extends_another_through_a_chain() -> None:
    loaded = loads(SPEC + "  b: {extends: qa, retrieval: {k: 1}}\n  c: {extends: b, prompt: {shots: 0}}\n")
    assert task(loaded, "c").retrieval.k == 1
    assert task(loaded, "c").prompt.shots.n == 0
    assert task(loaded, "c").prompt.target == "{{ answer }}"
    assert task(loaded, "qa").retrieval.k == 5


def test_a_task_may_extend_one_that_stands_below_it() -> None:
    text = SPEC.replace("  qa:", "  early: {extends: qa, retrieval: {k: 2}}\n  qa:")
    assert task(loads(text), "early").retrieval.k == 2


def test_models_extend_models_too() -> None:
    loaded = loads(SPEC.replace("zoo/mamba}", "zoo/mamba, max_length: 64}\n  n: {extends: m, dtype: bfloat16}"))
    assert loaded.spec.models["n"].max_length == 64
    assert loaded.spec.models["n"].dtype == "bfloat16"


def test_a_block_with_an_underscore_is_only_there_to_be_extended() -> None:
    bare = SPEC.replace("  qa:", "  _base:").replace("    metrics: [exact_match, recall]\n", "")
    loaded = loads(bare + "  qa: {extends: _base, metrics: [contains]}\n")
    assert list(loaded.spec.tasks) == ["qa"]
    assert {cell.task_name for cell in loaded.cells} == {"qa"}


def test_an_inherited_block_is_the_same_cell_as_one_written_out() -> None:
    short = loads(SPEC + "  b: {extends: qa, retrieval: {k: 1}}\n")
    long = loads(SPEC + "  b:" + TASK.replace('gold: "{{ gold_ids }}"', 'gold: "{{ gold_ids }}", k: 1'))
    assert short.canonical == long.canonical


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("tasks.qa.retrieval.k=3", lambda t: t.retrieval.k, 3),
        ("tasks.qa.retrieval.k = 3", lambda t: t.retrieval.k, 3),
        ("tasks.*.retrieval.k=4", lambda t: t.retrieval.k, 4),
        ("tasks.qa.decode={temperature: 0.5}", lambda t: (t.decode.temperature, t.decode.max_tokens), (0.5, 4)),
        ('tasks.qa.decode.stop=["\\n"]', lambda t: t.decode.stop, ["\n"]),
        ("tasks.qa.prompt.shots=7", lambda t: t.prompt.shots.n, 7),
        ("tasks.qa.prompt.shots.sampler=first", lambda t: (t.prompt.shots.n, t.prompt.shots.sampler), (2, "first")),
        ("tasks.qa.prompt.target={{ other }}", lambda t: t.prompt.target, "{{ other }}"),
        ("tasks.qa.prompt.target=a=b", lambda t: t.prompt.target, "a=b"),
        ("tasks.qa.metrics.1=recall@2", lambda t: t.metrics[1].k, 2),
        ("tasks.qa.metrics=[contains]", lambda t: t.metrics[0].metric, "contains"),
        ("tasks.qa.data.options.people.most=3", lambda t: t.data.options, {"people": {"most": 3}}),
        ("tasks.qa.cluster={{ town }}", lambda t: t.cluster, "{{ town }}"),
        ("tasks.qa.retrieval.stemmer=", lambda t: t.retrieval.stemmer, "english"),
    ],
)
def test_set_lays_a_yaml_value_at_a_path(override: str, read: Any, value: Any) -> None:
    assert read(task(loads(SPEC, [override]))) == value


def test_set_null_takes_a_key_away_inherited_ones_too() -> None:
    loaded = loads(SPEC + "  b: {extends: qa, metrics: [contains]}\n", ["tasks.b.retrieval=null"])
    assert task(loaded, "b").retrieval is None
    assert task(loaded).retrieval is not None


def test_set_reaches_those_who_extend() -> None:
    loaded = loads(SPEC + "  b: {extends: qa}\n", ["tasks.qa.retrieval.k=8"])
    assert task(loaded, "b").retrieval.k == 8


def test_a_name_with_dots_is_one_step_of_a_path() -> None:
    text = SPEC.replace("  m: {", "  mamba-2.8b: {")
    assert loads(text, ["models.mamba-2.8b.dtype=float16"]).spec.models["mamba-2.8b"].dtype == "float16"
    assert loads(text + "sweep: {models.mamba-2.8b.dtype: [float16, bfloat16]}").cells[1].model.dtype == "bfloat16"


def test_set_changes_what_is_asked_and_shows_in_the_text() -> None:
    plain, changed = loads(SPEC), loads(SPEC, ["tasks.qa.retrieval.k=3"])
    assert plain.canonical != changed.canonical
    assert changed.text.endswith("# --set tasks.qa.retrieval.k=3")


def test_the_root_is_the_nearest_folder_with_prompts_or_a_pyproject(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b" / "c"
    deep.mkdir(parents=True)
    assert project_root(deep) == deep
    (tmp_path / "pyproject.toml").touch()
    assert project_root(deep) == tmp_path
    (tmp_path / "a" / "prompts").mkdir()
    assert project_root(deep) == tmp_path / "a"


def test_a_template_is_found_from_the_root(tmp_path: Path) -> None:
    (tmp_path / "prompts").mkdir()
    (tmp_path / "specs").mkdir()
    (tmp_path / "prompts" / "qa.jinja").write_text("{{ question }}")
    path = tmp_path / "specs" / "t.yaml"
    path.write_text(SPEC.replace('"{{ question }}"', "prompts/qa.jinja"))
    assert load(path).root == tmp_path
    (tmp_path / "prompts" / "qa.jinja").unlink()
    with pytest.raises(SpecError, match=r"there is no file .*prompts/qa\.jinja"):
        load(path)


def test_a_mapping_of_python_values_loads_like_a_file() -> None:
    values = {
        "name": "t",
        "models": {"m": {"weights": "zoo/mamba"}},
        "tasks": {
            "qa": {
                "data": {"generate": "world.questions", "count": 3},
                "prompt": {"template": "{{ question }}", "target": "{{ answer }}", "shots": 2},
                "retrieval": {"corpus": {"generate": "world.passages"}, "gold": "{{ gold_ids }}"},
                "decode": {"max_tokens": 4},
                "metrics": ("exact_match", "recall"),
            }
        },
    }
    assert load(values).canonical == loads(SPEC).canonical
    assert loads(load(values).text).canonical == loads(SPEC).canonical
