"""Every way to get a spec wrong that we thought of, each a file in malformed/ that ends in what must be said of it.

A line `# ! 11:7:9 words` expects a problem at line 11, column 7, 9 characters wide; `# ! other.yaml:11:7:9 words` one
in another file. The list is complete: what is said must be all that is said, in this order.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from evalspec.errors import SpecError
from evalspec.spec import load, loads
from evalspec.spec.blocks import DecodeBlock, TaskBlock
from evalspec.spec.data import DataBlock
from evalspec.spec.grammar import ELSEWHERE
from evalspec.spec.model import ModelBlock
from evalspec.spec.prompt import PromptBlock
from evalspec.spec.retrieval import RetrievalBlock

FOLDER = Path(__file__).parent / "malformed"
CASES = sorted(FOLDER.glob("*.yaml"))


def expected(path: Path) -> list[str]:
    return [line[4:] for line in path.read_text().splitlines() if line.startswith("# ! ")]


def test_there_are_many_ways_to_be_wrong() -> None:
    assert len(CASES) >= 100


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_a_malformed_spec_gets_all_its_problems_in_place(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)
    with pytest.raises(SpecError) as caught:
        load(path.name)
    said = [
        f"{'' if problem.file == path.name else problem.file + ':'}{problem.line}:{problem.column}:{problem.width}"
        f" {problem.message}".replace(str(FOLDER), "ROOT")
        for problem in caught.value.problems
    ]
    assert said == expected(path)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_a_problem_underlines_characters_of_its_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)
    with pytest.raises(SpecError) as caught:
        load(path.name)
    for problem in caught.value.problems:
        lines = (FOLDER / problem.file).read_text().split("\n")
        assert problem.source == lines[problem.line - 1]
        assert problem.column + problem.width - 1 <= max(1, len(problem.source))


def test_an_error_looks_like_this() -> None:
    text = (FOLDER / "unknown_key_with_suggestion.yaml").read_text()
    with pytest.raises(SpecError) as caught:
        loads(text, name="specs/rag.yaml")
    assert str(caught.value) == (
        "specs/rag.yaml:11:7: tasks.t.retrieval has no key `retreiver`. Did you mean `retriever`?\n"
        "   11 |       retreiver: bm25\n"
        "      |       ^^^^^^^^^"
    )


def test_bytes_that_are_not_utf8_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"name: t\ndescription: caf\xe9\n")
    with pytest.raises(SpecError) as caught:
        load(path)
    (problem,) = caught.value.problems
    assert (problem.line, problem.column) == (2, 17)
    assert problem.message == "byte 0xe9 is not UTF-8; save it as UTF-8"


def test_a_missing_file_and_a_folder_say_so(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"nowhere\.yaml: cannot read this file: no such file or directory"):
        load(tmp_path / "nowhere.yaml")
    with pytest.raises(SpecError, match="cannot read this file: is a folder"):
        load(tmp_path)


def test_an_empty_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("")
    with pytest.raises(SpecError, match=r"empty\.yaml:1:1: this file is empty"):
        load(path)


def test_half_of_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(SpecError, match=r"spec:1:7: half of a surrogate pair is no character"):
        loads('name: "\\ud800"\n')


def test_python_values_that_yaml_cannot_hold_are_refused_by_path() -> None:
    with pytest.raises(SpecError, match=r"tasks\.t\.data cannot be a Python P"):
        load({"name": "t", "tasks": {"t": {"data": Path("x")}}})


def test_python_values_in_a_circle_are_refused() -> None:
    circle: dict[str, object] = {"name": "t"}
    circle["models"] = circle
    with pytest.raises(SpecError, match="nested more than 64 levels deep"):
        load(circle)


def test_a_set_that_is_wrong_names_itself() -> None:
    good = (FOLDER / "unknown_retriever.yaml").read_text().replace("bm52", "bm25")
    for override, said in {
        "tasks.t.retrieval.k": "--set tasks.t.retrieval.k: must be written as path=value",
        "=3": "--set =3: must be written as path=value",
        "tasks.t.retreival.k=3": "tasks.t has no key `retreival`. Did you mean `retrieval`?",
        "tasks.u.retrieval.k=3": "tasks has no `u`. There is `t`.",
        "tasks.t.retrieval.k=five": "tasks.t.retrieval.k must be a whole number ≥ 1, not the text 'five'",
        "tasks.t.retrieval.k=[1": "not YAML: this `[` is not closed, or a comma is missing behind it",
        "tasks.t.metrics.7=recall": "tasks.t.metrics is a list with places 0 to 1; `7` is none of them",
        "include=other.yaml": "`include` cannot be set; write it in the file",
        "models.m=3": "models.m must be a mapping, not 3",
        "name.x=3": "name holds text; it has no key `x`",
    }.items():
        with pytest.raises(SpecError) as caught:
            loads(good, [override])
        assert f"--set {override}: " in str(caught.value)
        assert said in str(caught.value)


@pytest.mark.parametrize(
    ("block", "key", "said"),
    [
        ("tasks.t.prompt", "text", "Did you mean `template`?"),
        ("tasks.t.prompt", "doc_to_choice", "Did you mean `choices`?"),
        ("tasks.t", "filter_list", "Did you mean `filters`?"),
        ("tasks.t", "max_tokens", "It belongs inside `decode`."),
        ("models.m", "pretrained", "Did you mean `weights`?"),
        ("models.m", "torch_dtype", "Did you mean `dtype`?"),
    ],
)
def test_a_key_as_another_tool_calls_it_is_answered_with_ours(block: str, key: str, said: str) -> None:
    good = (FOLDER / "unknown_retriever.yaml").read_text().replace("bm52", "bm25")
    with pytest.raises(SpecError) as caught:
        loads(good, [f"{block}.{key}=x"])
    assert f"{block} has no key `{key}`. {said}" in str(caught.value)


def test_the_names_of_other_tools_are_told_of_keys_that_are_there() -> None:
    blocks = (ModelBlock, TaskBlock, PromptBlock, DataBlock, DecodeBlock, RetrievalBlock)
    fields = {name for block in blocks for name in block.model_fields}
    assert set(ELSEWHERE) <= fields
