"""Whatever is wrong with data is said in one message: the file, the line, what to do."""

import gzip
from pathlib import Path

import pytest

from evalspec.data.rows import load_rows
from evalspec.errors import DataError, EvalspecError
from evalspec.spec.data import DataBlock

GOOD = b'{"a": 1}\n'


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.jsonl", GOOD + b'{"a": 2,}\n' + GOOD, ["x.jsonl:2:", "not JSON", '{"a": 2,}']),
        ("x.jsonl", GOOD * 3 + b'{"a": "open\n', ["x.jsonl:4:7", "not JSON"]),
        ("x.jsonl", GOOD + b"[1, 2]\n", ["x.jsonl:2:", "not a list", "[1, 2]"]),
        ("x.jsonl", GOOD + b'{"a": "\xff"}\n', ["x.jsonl:2:", "not UTF-8", "0xff", "iconv"]),
        ("x.jsonl", GOOD + b'{"a": "\\ud83d"}\n', ["x.jsonl:2:", "half a character"]),
        ("x.jsonl", GOOD + b'{"a": ' + b"[" * 100_000 + b"\n", ["x.jsonl:2:"]),
        ("x.jsonl", GOOD + b'{"a": ' + b"9" * 5_000 + b"}\n", ["x.jsonl:2:", "not readable"]),
        ("x.jsonl", GOOD + b'{"a": 1, "b": {"c": 1, "c": 2}}\n', ["x.jsonl:2:", "the key `c` stands twice"]),
        ("x.json", b'[\n {"a": 1},\n {"a": 2,}\n]', ["x.json:3:", "not JSON"]),
        ("x.json", GOOD + b'{"a": 2,}\n', ["x.json:2:", "not JSON"]),
        ("x.json", b'[{"a": 1}, 5]', ["x.json", "row 2", "a number"]),
        ("x.json", b'"text"', ["x.json", "not a text"]),
        ("x.json", b'{"a": {"b": 1}}', ["x.json", "one list of objects", "format: jsonl"]),
        ("x.json", b'{"a": [{"b": 1}], "c": [{"d": 1}]}', ["x.json", "a, c"]),
        ("x.csv", b"a,b\n1,2\n3\n", ["x.csv:3:", "1 values for 2 columns (a, b)"]),
        ("x.csv", b'a,b\n1,"x\ny"\n3,4,5\n', ["x.csv:4:", "3 values for 2 columns"]),
        ("x.csv", b'a,b\n1,2\n3,"open\n5,6\n', ["x.csv:3:", "not CSV"]),
        ("x.csv", b"a,b,a\n1,2,3\n", ["x.csv:1:", "two columns are called a"]),
        ("x.csv", b"a,b\n1,2\n3,\xe9\n", ["x.csv:3:", "not UTF-8"]),
        ("x.parquet", b"PAR1 not really", ["x.parquet", "cannot be read as Parquet"]),
        ("x.jsonl.gz", b"plain text", ["x.jsonl.gz", "not a whole gzip file"]),
        ("x.jsonl.gz", gzip.compress(GOOD * 1000)[:-20], ["x.jsonl.gz", "not a whole gzip file"]),
        ("x.jsonl", b"", ["x.jsonl is empty"]),
        ("x.jsonl", b"\n \n", ["x.jsonl has no rows"]),
        ("x.json", b"[]", ["x.json has no rows"]),
        ("x.csv", b"a,b\n", ["x.csv has no rows"]),
        ("x.dat", GOOD, ["x.dat", "format: jsonl", ".parquet"]),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path: Path, name: str, content: bytes, said: list[str]) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_rows(DataBlock(file=name), tmp_path)
    for words in said:
        assert words in str(caught.value)


def test_a_long_broken_line_is_shown_around_its_error(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"a": "' + "x" * 10_000 + '" "b": 1}')
    with pytest.raises(DataError) as caught:
        load_rows(DataBlock(file="x.jsonl"), tmp_path)
    message = str(caught.value)
    assert '" "b": 1}' in message
    shown, pointer = message.splitlines()[-2:]
    assert shown[pointer.index("^")] == '"'
    assert len(message) < 300


def test_a_missing_file_suggests_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "questions.jsonl").write_bytes(GOOD)
    with pytest.raises(DataError, match=r"no file data/question\.jsonl .*Did you mean `questions\.jsonl`\?"):
        load_rows(DataBlock(file="data/question.jsonl"), tmp_path)
    with pytest.raises(DataError, match=r"its folder .*dat does not exist"):
        load_rows(DataBlock(file="dat/questions.jsonl"), tmp_path)
    with pytest.raises(DataError, match=r"data is a folder; name a file in it"):
        load_rows(DataBlock(file="data"), tmp_path)
    with pytest.raises(DataError, match=r"no file matches data/\*\.csv"):
        load_rows(DataBlock(file="data/*.csv"), tmp_path)


def test_one_broken_file_of_a_glob_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(GOOD)
    (tmp_path / "b.jsonl").write_bytes(GOOD + b"oops\n")
    with pytest.raises(DataError, match=r"^b\.jsonl:2:1: not JSON"):
        load_rows(DataBlock(file="*.jsonl"), tmp_path)


def test_all_of_them_are_the_users_errors() -> None:
    assert issubclass(DataError, EvalspecError)
    assert DataError.exit_code == 2
