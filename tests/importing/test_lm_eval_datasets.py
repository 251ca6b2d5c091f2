"""Data sets of tasks whose Python makes rows: what is said where they cannot be had."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from evalspec.importing.lm_eval_spec import import_lm_eval
from evalspec.importing.lm_eval_yaml import HarnessError

CHOOSE = """
task: t
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl, train: shown.jsonl}}
test_split: test
training_split: train
output_type: multiple_choice
doc_to_choice: ["x", "y"]
doc_to_target: label
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("evalspec.importing.lm_eval_spec.installed_tasks", lambda: None)
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "utils.py").write_text(
        'def ask(row): return row["q"]\ndef samples(): return [{"q": "a", "label": 0}]\n'
    )
    for name in ("rows", "shown"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"q": "one", "label": 0}) + "\n")


def refused(text: str) -> str:
    Path("t.yaml").write_text(text)
    with pytest.raises(HarnessError) as caught:
        import_lm_eval("t.yaml", run_python=True)
    return "\n".join(f"{Path(p.file).name}:{p.line} {p.message}" for p in caught.value.problems)


def test_a_data_set_that_is_none_is_said() -> None:
    keys = "task: t\ncustom_dataset: !function utils.samples\ntest_split: test\ndoc_to_text: q\ndoc_to_target: label\n"
    assert re.search(r"t\.yaml:2 `!function utils\.samples` failed: \w+Error", refused(keys))
    text = (CHOOSE + "doc_to_text: !function utils.ask\n").replace("dataset_path: json", "dataset_path: parquet")
    assert re.search(r"t\.yaml:3 `dataset_path: parquet` cannot be loaded", refused(text))


def test_what_is_missing_is_said() -> None:
    text = CHOOSE + "doc_to_text: !function utils.ask\n"
    assert "has no split `validation`; it has `test`, `train`" in refused(
        text.replace("split: test", "split: validation")
    )
    Path("rows.jsonl").unlink()
    assert re.search(r"t\.yaml:4 .*rows\.jsonl.*from the folder where this is started", refused(text))


def test_where_the_hub_is_out_of_reach_it_says_so_and_what_to_do_once_a_data_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import datasets
    import huggingface_hub.constants

    tries, load_dataset = [], datasets.load_dataset

    def counted(path: str, **options: Any) -> Any:
        tries.append(path)
        return load_dataset(path, **options)

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets, "load_dataset", counted)
    keys = "task: t\ndataset_path: nobody/nothing\ntest_split: test\ndoc_to_text: !function utils.ask\n"
    Path("u.yaml").write_text(keys.replace("task: t", "task: u"))
    Path("t.yaml").write_text(keys)
    Path("both.yaml").write_text("group: both\ntask: [t, u]\n")
    with pytest.raises(HarnessError) as caught:
        import_lm_eval("both.yaml", run_python=True)
    said = str(caught.value)
    assert "t.yaml:2:1: `dataset_path: nobody/nothing` is not in the cache and the hub cannot be reached: Cou" in said
    for way in ("where the hub is reached", "into the cache of `datasets`", "lay `dataset_path: json` with files"):
        assert way in said
    assert "`file:`" not in said
    assert tries == ["nobody/nothing"]


def test_files_elsewhere_that_cannot_be_had_are_named_by_their_key() -> None:
    text = (CHOOSE + "doc_to_text: !function utils.ask\n").replace("rows.jsonl", "nowhere://at.all/rows.jsonl")
    assert re.search(
        r"t\.yaml:4 its files cannot be loaded .* Download them, and name the files in `data_f", refused(text)
    )


def test_without_the_package_datasets_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert r"t.yaml:3 `dataset_path: json` needs the package `datasets`" in refused(
        CHOOSE + "doc_to_text: !function utils.ask\n"
    )
