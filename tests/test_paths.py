"""Names that no file can have, wherever a spec names one: a sentence with its place, and never a traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from evalspec.errors import ModelError, SpecError
from evalspec.models.card import find_model
from evalspec.paths import is_file, is_folder, path_from
from evalspec.plan.compile import compile_plan
from evalspec.spec import load, loads
from evalspec.spec.model import ModelBlock

IMPOSSIBLE = ["x" * 5000, "/".join(["part"] * 2000), "a\0b", "~nobody-of-that-name/x", "a\nb"]


def spec(**instead: Any) -> dict[str, Any]:
    """A small spec of every place that names a file, each one there unless another is given."""
    retrieval = {"corpus": instead.get("corpus", {"generate": "world.passages"}), "gold": "{{ gold_ids }}"}
    values = {
        "name": "t",
        "models": {"m": {"weights": "zoo/mamba", **instead.get("model", {})}},
        "tasks": {
            "qa": {
                "data": instead.get("data", {"generate": "world.questions", "count": 3}),
                "prompt": {"template": instead.get("template", "{{ question }}"), "target": "{{ answer }}"},
                "retrieval": {**retrieval, **instead.get("retrieval", {})},
                "decode": {"max_tokens": 4},
                "metrics": ["exact_match"],
            }
        },
    }
    return {**values, **({"include": instead["include"]} if "include" in instead else {})}


@pytest.mark.parametrize("name", IMPOSSIBLE, ids=["long", "deep", "nul", "nobody", "lines"])
@pytest.mark.parametrize("key", ["include", "template", "data", "corpus", "weights", "tokenizer"])
def test_an_impossible_name_is_a_file_that_is_not_there(key: str, name: str) -> None:
    places: dict[str, dict[str, Any]] = {
        "include": {"include": [name]},
        "template": {"template": f"{name}.jinja"},
        "data": {"data": {"file": f"{name}.jsonl"}},
        "corpus": {"corpus": {"file": f"{name}.jsonl"}},
        "weights": {"model": {"weights": f"./{name}"}},
        "tokenizer": {"model": {"tokenizer": f"./{name}"}},
    }
    if key == "template" and name == "a\nb":
        return  # a template of two lines is the text itself
    with pytest.raises(SpecError) as raised:
        loads(yaml.safe_dump(spec(**places[key])))
    assert all(problem.line for problem in raised.value.problems)


@pytest.mark.parametrize("key", ["weights", "tokenizer"])
def test_an_impossible_hub_id_is_no_model(key: str) -> None:
    with pytest.raises(ModelError, match=r"models\.m|xxx"):
        find_model(
            "m", ModelBlock.model_validate({"weights": "zoo/mamba", key: "x" * 5000}), Path.cwd()
        ).tokenizer.encode(["a"])


def test_a_folder_that_may_not_be_read_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_file", refused)
    monkeypatch.setattr(Path, "is_dir", refused)
    assert not is_file(tmp_path / "x")
    assert not is_folder(tmp_path)


def test_paths_start_at_the_root_at_home_or_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert path_from(tmp_path, "a/b") == tmp_path / "a" / "b"
    assert path_from(tmp_path, "~/b") == tmp_path / "home" / "b"
    assert path_from(tmp_path, "/b") == Path("/b")


def test_a_folder_whose_name_looks_like_a_pattern_is_a_folder(tmp_path: Path) -> None:
    root = tmp_path / "run[1]"
    root.mkdir()
    for name in ("a", "b"):
        (root / f"{name}.jsonl").write_text('{"question": "a?", "answer": "b", "gold_ids": []}\n')
    assert len(loads(yaml.safe_dump(spec(data={"file": "*.jsonl"})), root=root).cells) == 1


def test_rows_are_read_from_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "rows.jsonl").write_text('{"question": "a?", "answer": "b", "gold_ids": []}\n')
    plan = compile_plan(load(spec(data={"file": "~/rows.jsonl"})))
    assert len(plan.cells) == 1
