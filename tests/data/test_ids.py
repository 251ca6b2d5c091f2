"""Ids name rows; the content hash changes with whatever a row holds."""

import json
from pathlib import Path

import pytest

from evalspec.data.rows import Rows, load_rows
from evalspec.errors import DataError
from evalspec.spec.data import DataBlock


def load(tmp_path: Path, rows: list[dict[str, object]], id: str | None = None) -> Rows:
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return load_rows(DataBlock(file="x.jsonl", id=id), tmp_path)


def ids(rows: Rows) -> list[str]:
    return [row.id for row in rows.rows]


def test_the_id_column_is_the_one_named_else_id_else_underscore_id(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"id": "a", "_id": "b", "key": 7}, {"id": "c", "_id": "d", "key": 8}]
    assert ids(load(tmp_path, rows)) == ["a", "c"]
    assert ids(load(tmp_path, rows, id="key")) == ["7", "8"]
    assert ids(load(tmp_path, [{"_id": "b"}])) == ["b"]


def test_without_an_id_column_a_row_is_named_by_its_content_alone(tmp_path: Path) -> None:
    first = ids(load(tmp_path, [{"q": "x", "n": 1}, {"q": "y", "n": 1}]))
    again = ids(load(tmp_path, [{"q": "new"}, {"n": 1, "q": "y"}, {"q": "x", "n": 1}]))
    assert again[1:] == first[::-1]
    assert len(set(first)) == 2
    assert all(len(name) == 16 for name in first)


def test_identical_rows_are_told_apart_by_their_ordinal(tmp_path: Path) -> None:
    one, two, three = ids(load(tmp_path, [{"q": "x"}, {"q": "x"}, {"q": "x"}]))
    assert (two, three) == (f"{one}-2", f"{one}-3")


def test_an_id_that_stands_twice_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"column `id` does not name rows: a, b stand on more than one row"):
        load(tmp_path, [{"id": name} for name in "abcab"])
    with pytest.raises(DataError, match=r"0, 1, 2 and 2 more"):
        load(tmp_path, [{"k": n % 5} for n in range(10)], id="k")
    with pytest.raises(DataError, match=r"1 stand"):
        load(tmp_path, [{"id": 1}, {"id": "1"}])


def test_a_missing_id_column_is_an_error_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no column `kye`, .*Did you mean `key`\? Columns: key, text"):
        load(tmp_path, [{"key": 1, "text": "x"}], id="kye")


@pytest.mark.parametrize("bad", [None, "", 1.5, True, ["a"]])
def test_an_id_is_a_text_or_a_whole_number(tmp_path: Path, bad: object) -> None:
    with pytest.raises(DataError, match=r"row 2 .* id in column `id`"):
        load(tmp_path, [{"id": "a"}, {"id": bad}])


def test_a_row_that_lacks_the_id_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 2 has no id in column `id`"):
        load(tmp_path, [{"id": "a"}, {"x": 1}])


def test_the_content_hash_changes_with_every_cell_and_nothing_else(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"id": "a", "n": 1, "deep": {"x": [1, 2]}}, {"id": "b", "n": 2, "deep": None}]
    changed: list[list[dict[str, object]]] = [
        [{**rows[0], "id": "c"}, rows[1]],
        [{**rows[0], "n": 1.0}, rows[1]],
        [{**rows[0], "n": "1"}, rows[1]],
        [{**rows[0], "n": True}, rows[1]],
        [{**rows[0], "deep": {"x": [2, 1]}}, rows[1]],
        [rows[0], {**rows[1], "deep": {}}],
        [rows[0], {**rows[1], "more": 1}],
        rows[::-1],
        rows[:1],
    ]
    hashes = [load(tmp_path, each).content_hash for each in [rows, *changed]]
    assert len(set(hashes)) == len(hashes)
    assert all(len(each) == 64 for each in hashes)
    (tmp_path / "same.json").write_text(json.dumps(rows, indent=3))
    assert load_rows(DataBlock(file="same.json"), tmp_path).content_hash == hashes[0]
