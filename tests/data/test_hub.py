"""The hub through the real `datasets`: a data set in a folder loads; one that cannot be reached says what to do."""

import json
from pathlib import Path

import pytest

from evalspec.data.rows import load_rows
from evalspec.errors import DataError
from evalspec.spec.data import DataBlock

pytest.importorskip("datasets")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    home = tmp_path / "things"
    home.mkdir()
    for split in ("train", "test"):
        rows = [{"id": f"{split}{n}", "tags": ["a", "b"], "n": n} for n in range(3)]
        (home / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return home


def test_a_split_gives_its_rows_in_order(folder: Path) -> None:
    loaded = load_rows(DataBlock(hub=str(folder), split="test"), Path())
    assert [row.id for row in loaded.rows] == ["test0", "test1", "test2"]
    assert loaded.rows[2].values == {"id": "test2", "tags": ["a", "b"], "n": 2}


def test_several_splits_need_a_choice(folder: Path) -> None:
    with pytest.raises(DataError, match=r"has the splits train, test; choose one with `split:`"):
        load_rows(DataBlock(hub=str(folder)), Path())
    with pytest.raises(DataError, match=r"cannot be loaded.*validation"):
        load_rows(DataBlock(hub=str(folder), split="validation"), Path())


def test_without_its_package_it_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"needs the package `datasets`.*pip install 'evalspec\[hub\]'"):
        load_rows(DataBlock(hub="nobody/nothing", split="test"), Path())


def test_offline_it_says_so_and_what_to_do(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"hub nobody/nothing .*(unset HF_HUB_OFFLINE).*`file:`"):
        load_rows(DataBlock(hub="nobody/nothing", split="test"), Path())
