"""`--run-python`: what a task's Python makes of the rows is kept as rows, and the rest is a task without Python."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from evalspec.cli import main
from evalspec.importing.lm_eval_spec import Imported, import_lm_eval, write
from evalspec.importing.lm_eval_yaml import HarnessError
from evalspec.plan.compile import compile_plan
from evalspec.spec import load

PYTHON = """
import random
from functools import partial

import numpy as np

own = random.Random(1)

def prepare(rows):
    return rows.map(lambda row: {"asked": row["q"].upper()}).filter(lambda row: row["q"] != "no")

def which(row): return row["label"]
def both(row): return ["left " + row["q"], "right " + row["q"]]
def rest(row): return "is the answer"
def text(row, sign): return row["q"] + sign
ask, show = partial(text, sign="?"), partial(text, sign="!")
def samples(): return [{"q": "a", "label": 0}, {"q": "b", "label": 1}]
def rows(n, version=1): return {"test": [{"q": f"{i} of {version}", "label": 0} for i in range(n)]}
def none(rows): return rows.filter(lambda row: False)
def broken(row): return 1 // row["label"]
def leaves(row): raise SystemExit(3)
def lacks(row): import not_here.at_all
def dates(row): return {1, 2}
def score(row, results): return {"acc": 1}
def moves(row):
    import os
    os.chdir("/")
    return row["q"]
def infinite(row): return [float("inf")]
def half(row): return "\\ud800"
def counted(row): return np.int32(row["label"])
def listed(row): return np.array(["left", "right"])
def spoils(row): row["seen"].append(1); row["q"] = "spoiled"; return "text"
def drawn(rows): return rows.map(lambda row: {"drawn": [random.random(), own.random(), float(np.random.random())]})
def drawn_again(rows): return drawn(rows)
def yielded(rows): yield from drawn(rows)
"""
TASK = """
task: t
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl, train: shown.jsonl}}
test_split: test
training_split: train
"""
CHOOSE = TASK + 'output_type: multiple_choice\ndoc_to_choice: ["x", "y"]\ndoc_to_target: label\n'


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("evalspec.importing.lm_eval_spec.installed_tasks", lambda: None)
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "utils.py").write_text(PYTHON)
    for name, words in (("rows", ["one", "no", "two"]), ("shown", ["three", "four"])):
        rows = [{"q": word, "label": number % 2} for number, word in enumerate(words)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def imported(text: str) -> Imported:
    Path("t.yaml").write_text(text)
    return import_lm_eval("t.yaml", run_python=True)


def block(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(imported(text).text)["tasks"]["t"]
    return found


def rows(name: str = "t") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(f"specs/data/{name}.jsonl").read_text().splitlines()]


def refused(text: str) -> str:
    with pytest.raises(HarnessError) as caught:
        imported(text)
    return "\n".join(f"{Path(p.file).name}:{p.line} {p.message}" for p in caught.value.problems)


def test_prepared_rows_stand_in_files_beside_the_spec_and_shots_are_prepared_too() -> None:
    made = block(CHOOSE + "process_docs: !function utils.prepare\ndoc_to_text: asked\nnum_fewshot: 1\n")
    assert made["data"] == {"file": "specs/data/t.jsonl"}
    assert made["prompt"]["template"] == "{{ asked }}"
    assert made["prompt"]["shots"]["data"] == {"file": "specs/data/t.shots.jsonl"}
    assert [row["asked"] for row in rows()] == ["ONE", "TWO"]
    assert [row["asked"] for row in rows("t.shots")] == ["THREE", "FOUR"]


def test_of_a_task_without_shots_no_rows_of_shots_are_kept_and_its_spec_says_so() -> None:
    spec = imported(CHOOSE + "process_docs: !function utils.prepare\ndoc_to_text: asked\nnum_fewshot: 0\n")
    assert "shots" not in yaml.safe_load(spec.text)["tasks"]["t"]["prompt"]
    assert "- It asks for no shots and has no rows for any; for shots, import a YAML" in spec.text
    assert [path.name for path in Path("specs/data").iterdir()] == ["t.jsonl"]
    write(spec, Path("specs"))
    samples = compile_plan(load("specs/t.yaml")).models[0].samples
    assert [sample.draft.prompt for sample in samples] == ["ONE", "TWO"], "no row is kept apart as a pool"


def test_shots_that_nobody_asks_for_need_no_rows() -> None:
    only_no = "process_docs: !function utils.prepare\ndoc_to_text: asked\n"
    Path("shown.jsonl").write_text(json.dumps({"q": "no", "label": 0}))
    assert "shots" not in block(CHOOSE + only_no)["prompt"], "none is left once they are prepared"
    assert "no row of `train` is left" in refused(CHOOSE + only_no + "num_fewshot: 1\n")
    Path("specs/data/t.jsonl").unlink()
    block(CHOOSE.replace(", train: shown.jsonl", "") + only_no)
    assert "has no split `train`; it has `test`" in refused(
        CHOOSE.replace(", train: shown.jsonl", "") + only_no + "num_fewshot: 1\n"
    )


def test_a_function_of_a_row_becomes_a_column_of_its_key() -> None:
    made = block(
        TASK + "output_type: multiple_choice\ndoc_to_text: !function utils.which\n"
        "doc_to_choice: !function utils.both\ndoc_to_target: !function utils.rest\n"
    )
    assert made["prompt"]["contexts"] == "{{ doc_to_choice }}"  # a number from doc_to_text: WinoGrande's way
    assert made["prompt"]["target"] == "{{ doc_to_text }}"
    assert rows()[0] == {
        "q": "one",
        "label": 0,
        "doc_to_text": 0,
        "doc_to_choice": ["left one", "right one"],
        "doc_to_target": "is the answer",
    }


def test_a_column_of_that_name_keeps_it() -> None:
    lines = [json.dumps({"q": "one", "label": 0, "doc_to_text": "mine"})]
    Path("rows.jsonl").write_text("\n".join(lines))
    assert block(CHOOSE + "doc_to_text: !function utils.ask\n")["prompt"]["template"] == "{{ doc_to_text_ }}"
    assert rows()[0]["doc_to_text"] == "mine"


def test_shots_that_functions_of_their_own_show() -> None:
    shots = "num_fewshot: 1\nfewshot_config: {sampler: first_n, doc_to_text: !function utils.show}\n"
    made = block(CHOOSE + "doc_to_text: !function utils.ask\n" + shots)
    assert made["prompt"]["shots"]["template"] == "{{ doc_to_text_of_shots }}"
    assert rows()[0]["doc_to_text"] == "one?"
    assert rows("t.shots")[0] == {"q": "three", "label": 0, "doc_to_text_of_shots": "three!"}


def test_rows_that_serve_as_shots_as_well_are_written_once() -> None:
    text = CHOOSE.replace("training_split: train\n", "fewshot_split: test\n") + "doc_to_text: !function utils.ask\n"
    made = block(text + "fewshot_config: {doc_to_text: !function utils.show}\n")
    assert made["prompt"]["shots"]["data"] == made["data"] == {"file": "specs/data/t.jsonl"}
    assert rows()[0] == {"q": "one", "label": 0, "doc_to_text": "one?", "doc_to_text_of_shots": "one!"}
    assert not Path("specs/data/t.shots.jsonl").exists()


def test_shots_that_a_function_lists() -> None:
    text = CHOOSE + "doc_to_text: !function utils.ask\nfewshot_config: {samples: !function utils.samples}\n"
    assert block(text)["prompt"]["shots"]["data"]["rows"] == [
        {"q": "a", "label": 0, "doc_to_text": "a?"},
        {"q": "b", "label": 1, "doc_to_text": "b?"},
    ]


def test_shots_may_be_prepared_otherwise_or_not_at_all() -> None:
    text = CHOOSE + "process_docs: !function utils.prepare\ndoc_to_text: q\nfewshot_split: train\nnum_fewshot: 1\n"
    imported(text + "fewshot_config: {process_docs: null}\n")
    assert "asked" in rows()[0]
    assert "asked" not in rows("t.shots")[0]


def test_a_data_set_of_its_own_gets_what_the_task_says() -> None:
    keys = "task: t\ncustom_dataset: !function utils.rows\ndataset_kwargs: {n: 2}\nmetadata: {version: 7}\n"
    block(keys + "test_split: test\ndoc_to_text: q\ndoc_to_target: label\n")
    assert [row["q"] for row in rows()] == ["0 of 7", "1 of 7"]


def test_an_imported_spec_needs_no_python_any_more_and_says_where_its_rows_come_from() -> None:
    spec = imported(CHOOSE + "process_docs: !function utils.prepare\ndoc_to_text: !function utils.ask\n")
    assert "rows were made by Python (utils.prepare, utils.ask) while it was imported" in spec.text
    write(spec, Path("specs"))
    for file in ("utils.py", "rows.jsonl", "shown.jsonl"):
        Path(file).unlink()
    assert len(compile_plan(load("specs/t.yaml")).cells) == 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("doc_to_text: !function utils.broken", r"t\.yaml:10 `!function utils\.broken` failed on row 1: ZeroDivision"),
        ("doc_to_text: !function utils.leaves", r"t\.yaml:10 `!function utils\.leaves` failed on row 1: SystemExit: 3"),
        ("doc_to_text: !function utils.absent", r"t\.yaml:10 .*AttributeError: .*absent"),
        (
            "doc_to_text: !function nowhere.at_all",
            r"t\.yaml:10 `!function nowhere\.at_all`: there is no file .*nowhere\.py, and no module `nowhere` is in",
        ),
        (
            "doc_to_text: !function utils.lacks",
            r"t\.yaml:10 .*No module named 'not_here'; install the package that has `not_here` where evalspec is",
        ),
        ("doc_to_text: !function utils.dates", r"t\.yaml:10 row 1: column `doc_to_text` holds a set;"),
        ("doc_to_text: !function utils.infinite", r"t\.yaml:10 row 1: column `doc_to_text` is no JSON: Out of range"),
        ("doc_to_text: !function utils.half", r"t\.yaml:10 row 1: column `doc_to_text` is no JSON: .*surrogates"),
        ("doc_to_text: q\nprocess_docs: !function utils.none", r"t\.yaml:11 no row of `test` is left"),
        (
            "doc_to_text: q\nprocess_docs: !function utils.none\nnum_fewshot: 1",
            r"t\.yaml:11 no row of `train` is left",
        ),
        ("doc_to_text: q\nprocess_docs: !function utils.which", r"t\.yaml:11 `!function utils\.which` failed: "),
        ("doc_to_text: !function utils.ask\nfewshot_config: 3", r"t\.yaml:11 `fewshot_config`: must be a mapping"),
        ("doc_to_text: !function utils.ask\nmetadata: [3]", r"t\.yaml:11 `metadata`: must be a mapping, not"),
        ("doc_to_text: !function utils.ask\nfewshot_config: {samples: [3]}", r"t\.yaml:11 .*must be a list of rows"),
        (
            "doc_to_text: q\nfewshot_config: {samples: !function utils.ask}",
            r"t\.yaml:11 .*utils\.ask` failed: TypeError",
        ),
        (
            "doc_to_text: !function utils.ask\nprocess_results: !function utils.score",
            r"`process_results` calls Python \(`!function utils\.score`\), and a spec never runs any$",
        ),
    ],
)
def test_what_goes_wrong_is_said_at_the_line_of_the_function(more: str, said: str) -> None:
    assert re.search(said, refused(f"{CHOOSE}{more}\n"), re.M), refused(f"{CHOOSE}{more}\n")
    assert not list(Path().glob("specs/data/*"))


def test_numbers_and_arrays_of_numpy_are_kept_as_python_has_them() -> None:
    made = block(
        TASK + "output_type: multiple_choice\ndoc_to_text: q\n"
        "doc_to_choice: !function utils.listed\ndoc_to_target: !function utils.counted\n"
    )
    assert made["prompt"]["target"] == "{{ doc_to_target }}"
    assert rows()[1] == {"q": "no", "label": 1, "doc_to_choice": ["left", "right"], "doc_to_target": 1}


def test_a_function_that_changes_its_row_changes_only_its_own() -> None:
    Path("rows.jsonl").write_text(json.dumps({"q": "one", "label": 0, "seen": []}))
    text = TASK.replace(", train: shown.jsonl", "").replace("training_split: train\n", "")
    block(text + "doc_to_text: !function utils.spoils\ndoc_to_target: !function utils.ask\n")
    assert rows() == [{"q": "one", "label": 0, "seen": [], "doc_to_text": "text", "doc_to_target": "one?"}]


def test_python_that_draws_makes_the_same_rows_in_every_import_and_beside_any_task() -> None:
    drawn = CHOOSE + "doc_to_text: q\nprocess_docs: !function utils.drawn\nnum_fewshot: 1\n"
    imported(drawn)
    import_lm_eval("t.yaml", run_python=True)  # what `datasets` keeps of the first is not taken for the second
    assert rows("t.shots")[0]["drawn"][0] == random.Random(0).random()  # the shots first, the harness's seed
    Path("other.yaml").write_text(drawn.replace("task: t", "task: other").replace("drawn", "drawn_again"))
    Path("both.yaml").write_text("group: both\ntask: [other, t]\n")
    import_lm_eval("both.yaml", run_python=True)
    assert rows("other") == rows("t")
    for name, function in (("bare", "drawn"), ("lazy", "yielded")):
        text = drawn.replace("task: t", f"task: {name}").replace("num_fewshot: 1", "num_fewshot: 0")
        Path(f"{name}.yaml").write_text(text.replace("utils.drawn", f"utils.{function}"))
        import_lm_eval(f"{name}.yaml", run_python=True)
        assert rows(name) == rows("t"), "the harness draws for shots that it never shows"


def test_two_tasks_of_one_name_and_other_rows_are_told_apart() -> None:
    Path("t.yaml").write_text(CHOOSE + "doc_to_text: !function utils.ask\n")
    Path("both.yaml").write_text("group: both\ntask: [t, {task: t, doc_to_text: !function utils.show}]\n")
    for _ in range(2):  # once more, where their rows are there already
        made = import_lm_eval("both.yaml", run_python=True)
        tasks = yaml.safe_load(made.text)["tasks"]
        assert {name: task["data"]["file"] for name, task in tasks.items()} == {
            "t": "specs/data/t.jsonl",
            "t-2": "specs/data/t-2.jsonl",
        }
        assert not made.refused
        assert (rows("t")[0]["doc_to_text"], rows("t-2")[0]["doc_to_text"]) == ("one?", "one!")


def test_a_task_of_a_name_that_was_imported_from_elsewhere_is_refused_and_nothing_of_it_is_left(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked, shown = (CHOOSE + f"doc_to_text: !function utils.{name}\n" for name in ("ask", "show"))
    for folder, text in (("one", asked), ("two", shown), ("three", asked + "num_fewshot: 1\n")):
        Path(folder).mkdir()
        Path(folder, "utils.py").write_text(PYTHON)
        Path(folder, "t.yaml").write_text(text)

    def imports(folder: str) -> int:
        return main(["import", "lm-eval", "t", "--include-path", folder, "--out", "specs", "--run-python"])

    def written() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in Path("specs").rglob("*") if path.is_file()}

    assert imports("one") == 0
    before = written()
    assert imports("two") == 2
    said = capsys.readouterr().err
    assert "t.jsonl is there already and says something else (rows of another task of this name" in said
    assert imports("three") == 2, "the same rows, and other shots"
    assert "t.yaml is there already and says something else; move it, or name another --out" in capsys.readouterr().err
    assert written() == before


def test_of_a_task_that_cannot_be_carried_over_no_rows_are_left() -> None:
    text = CHOOSE + "doc_to_text: !function utils.ask\nmetric_list: [{metric: likelihood}]\n"
    assert "`likelihood`" in refused(text)
    assert not Path("specs/data").exists()
    block(text.partition("metric_list")[0])
    assert "`likelihood`" in refused(text)
    assert len(rows()) == 3  # another import's


def test_files_of_rows_keep_the_letters_of_their_tasks() -> None:
    for name in ("größe", "grüße"):  # of as many letters that a file's name must not have
        imported((CHOOSE + "doc_to_text: !function utils.ask\n").replace("task: t", f"task: {name}"))
        assert len(rows(name)) == 3


def test_rows_that_are_there_are_never_written_over() -> None:
    text = CHOOSE + "doc_to_text: !function utils.ask\n"
    imported(text)
    imported(text)  # they say the same
    Path("specs/data/t.jsonl").write_bytes(b"mine\xff")
    with pytest.raises(HarnessError, match=r"t\.jsonl is there already and says something else"):
        imported(text)
    assert Path("specs/data/t.jsonl").read_bytes() == b"mine\xff"


def test_without_the_option_nothing_is_called_and_the_option_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("t.yaml").write_text(CHOOSE + "doc_to_text: !function utils.leaves\n")
    assert main(["import", "lm-eval", "t.yaml"]) == 2
    assert "`--run-python` calls it once, while importing" in capsys.readouterr().err
    Path("t.yaml").write_text(CHOOSE + "doc_to_text: !function utils.ask\nprocess_results: !function utils.score\n")
    assert main(["import", "lm-eval", "t.yaml"]) == 2
    assert "`--run-python`" not in capsys.readouterr().err  # it would not help
    assert main(["import", "lm-eval", "t.yaml", "--run-python"]) == 2
    assert "`doc_to_text`" not in capsys.readouterr().err  # it is not what keeps it from being imported
    Path("t.yaml").write_text(CHOOSE + "doc_to_text: !function utils.ask\n")
    assert main(["import", "lm-eval", "t.yaml", "--run-python"]) == 0
    assert "Its rows were made by Python (utils.ask)" in capsys.readouterr().out


def test_python_leaves_nothing_behind_in_the_program_that_imports() -> None:
    import datasets

    here, drawn, cached = Path.cwd(), random.getstate(), datasets.is_caching_enabled()
    imported(CHOOSE + "doc_to_text: !function utils.moves\n")
    assert (Path.cwd(), random.getstate(), datasets.is_caching_enabled()) == (here, drawn, cached)


def test_python_that_changes_no_score_is_left_out() -> None:
    Path("t.yaml").write_text(CHOOSE + "doc_to_text: q\ndoc_to_decontamination_query: !function utils.leaves\n")
    assert "doc_to_decontamination_query" in import_lm_eval("t.yaml").text
