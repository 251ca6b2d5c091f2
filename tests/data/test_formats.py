"""Each format gives the rows that were written, in their order, with nothing of their content changed."""

import csv
import gzip
import io
import json
import os
from pathlib import Path
from typing import Literal

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalspec.data.rows import Rows, load_rows
from evalspec.spec.data import DataBlock

TEST_DATA = Path(os.environ.get("EVALSPEC_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_data = pytest.mark.skipif(not TEST_DATA.is_dir(), reason=f"no test data at {TEST_DATA} (EVALSPEC_TEST_DATA)")

ROWS = [
    {"id": "007", "text": "a\nb, \"c\" and 'd'", "date": "2020-01-01", "n": 1, "list": [1, "x", None, {"deep": True}]},
    {"id": "8", "text": "", "date": "x", "n": 2.5, "list": []},
    {"id": "é😀", "uuid": "550e8400-e29b-41d4-a716-446655440000", "n": 12345678901234567890123, "none": None},
]


def write(path: Path, text: str | bytes) -> Path:
    content = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def load(root: Path, file: str, **more: object) -> Rows:
    return load_rows(DataBlock(file=file, **more), root)  # type: ignore[arg-type]


def lines(rows: list[dict[str, object]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def values(rows: Rows) -> list[dict[str, object]]:
    return [dict(row.values) for row in rows.rows]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
columns = st.text().filter(lambda name: name not in ("id", "_id"))


@given(rows=st.lists(st.dictionaries(columns, json_values, max_size=4), min_size=1, max_size=5))
def test_any_rows_written_as_json_lines_come_back_equal(rows: list[dict[str, object]], tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    for ensure_ascii in (True, False):
        path.write_text("\n".join(json.dumps(row, ensure_ascii=ensure_ascii) for row in rows), encoding="utf-8")
        loaded = load(path.parent, path.name)
        assert values(loaded) == rows
        # 1, 1.0 and True are equal to Python, and not the same; nor is another order of the keys.
        assert [json.dumps(row) for row in values(loaded)] == [json.dumps(row) for row in rows]


@given(
    rows=st.lists(st.lists(st.text(), min_size=2, max_size=2), min_size=1, max_size=5),
    # Without \r in its line ends, Python's writer leaves a \r in a value unquoted unless it quotes everything.
    dialect=st.sampled_from([("\r\n", csv.QUOTE_MINIMAL), ("\n", csv.QUOTE_ALL)]),
)
def test_any_text_written_as_csv_comes_back_as_it_was_written(
    rows: list[list[str]], dialect: tuple[str, Literal[0, 1]], tmp_path_factory
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator=dialect[0], quoting=dialect[1]).writerows([["a", "b"], *rows])
    path.write_bytes(file.getvalue().encode())
    loaded = load(path.parent, path.name)
    back = [["" if value is None else str(value) for value in row.values.values()] for row in loaded.rows]
    assert back == rows


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.ndjson", "rows.jsonl.gz", "rows.json", "rows.json.gz"])
def test_json_lines_are_read_under_any_name_of_theirs(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, lines(ROWS))
    loaded = load(tmp_path, name)
    assert values(loaded) == ROWS
    assert [row.id for row in loaded.rows] == ["007", "8", "é😀"]
    assert loaded.columns == ("id", "text", "date", "n", "list", "uuid", "none")


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", ["rows.json", "rows.json.gz"])
def test_a_json_file_is_a_list_or_an_object_with_one_list(tmp_path: Path, name: str, indent: int | None) -> None:
    write(tmp_path / name, json.dumps(ROWS, indent=indent))
    assert values(load(tmp_path, name)) == ROWS
    write(tmp_path / name, json.dumps({"canary": "x", "tags": ["a"], "examples": ROWS}, indent=indent))
    assert values(load(tmp_path, name)) == ROWS


def test_a_byte_order_mark_and_blank_lines_are_no_content(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", b"\xef\xbb\xbf" + b'{"a": 1}\n\n  \r\n{"a": 2}\r\n\n')
    assert values(load(tmp_path, "rows.jsonl")) == [{"a": 1}, {"a": 2}]
    write(tmp_path / "rows.csv", b"\xef\xbb\xbfa,b\r\n1,x\r\n\r\n2,y\r\n")
    assert values(load(tmp_path, "rows.csv")) == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]


def test_a_line_separator_inside_a_text_does_not_break_the_row(tmp_path: Path) -> None:
    rows = [{"text": "one\u2028two\u0085three\x0bfour"}]
    write(tmp_path / "rows.jsonl", lines(rows))
    assert values(load(tmp_path, "rows.jsonl")) == rows


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz"])
def test_a_csv_column_is_numbers_only_where_nothing_is_lost(tmp_path: Path, name: str) -> None:
    header = "id,zip,price,day,count,mixed,share,yes,gaps\n"
    write(
        tmp_path / name, header + "007,01234,1.50,2020-01-01,3,1,0.5,true,\n010,99999,2.25,2020-01-02,-4,x,2,false,7\n"
    )
    loaded = load(tmp_path, name)
    assert values(loaded)[0] == {
        "id": "007",
        "zip": "01234",
        "price": "1.50",
        "day": "2020-01-01",
        "count": 3,
        "mixed": "1",
        "share": 0.5,
        "yes": "true",
        "gaps": None,
    }
    assert [type(value) for value in values(loaded)[1].values()] == [str, str, str, str, int, str, int, str, int]
    assert [row.id for row in loaded.rows] == ["007", "010"]


def test_a_tsv_file_is_split_at_tabs(tmp_path: Path) -> None:
    write(tmp_path / "rows.tsv", "id\ttext\nq1\ta, b; c\n")
    assert values(load(tmp_path, "rows.tsv")) == [{"id": "q1", "text": "a, b; c"}]


def test_a_csv_value_longer_than_a_megabyte_is_read(tmp_path: Path) -> None:
    write(tmp_path / "rows.csv", "text\n" + "x" * 2_000_000 + "\n")
    assert len(str(values(load(tmp_path, "rows.csv"))[0]["text"])) == 2_000_000


def test_parquet_gives_plain_values_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "it's [one].parquet"
    query = (
        "SELECT '00' || i AS id, i::DOUBLE AS d, DATE '2020-01-01' + i::INT AS day, "
        "TIMESTAMPTZ '2020-01-01 00:00:00+00' AS at, uuid '550e8400-e29b-41d4-a716-446655440000' AS u, "
        "1.25::DECIMAL(9, 2) AS dec, {'k': [i, NULL], 't': 'x'} AS nested, i % 2 = 0 AS even, "
        "NULL::INT AS nothing FROM range(3, 0, -1) t(i)"
    )
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        literal = str(path).replace("'", "''")
        connection.execute(f"COPY ({query}) TO '{literal}' (FORMAT parquet)")
    loaded = load(tmp_path, path.name)
    assert [row.id for row in loaded.rows] == ["003", "002", "001"]
    assert values(loaded)[0] == {
        "id": "003",
        "d": 3.0,
        "day": "2020-01-04",
        "at": "2020-01-01 00:00:00+00",
        "u": "550e8400-e29b-41d4-a716-446655440000",
        "dec": 1.25,
        "nested": {"k": [3, None], "t": "x"},
        "even": False,
        "nothing": None,
    }
    assert isinstance(values(loaded)[0]["d"], float)
    write(tmp_path / "rows.parquet.gz", path.read_bytes())
    assert load(tmp_path, "rows.parquet.gz").content_hash == loaded.content_hash


def test_a_glob_reads_its_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name, n in (("b.jsonl", 2), ("a.jsonl.gz", 1), ("c.csv", 3)):
        write(tmp_path / name, f'{{"n": {n}}}\n' if "json" in name else f"n\n{n}\n")
    (tmp_path / "deeper").mkdir()
    write(tmp_path / "deeper" / "d.jsonl", '{"n": 4}')
    assert values(load(tmp_path, "?.*")) == [{"n": 1}, {"n": 2}, {"n": 3}]
    assert values(load(tmp_path, "**/*.jsonl")) == [{"n": 2}, {"n": 4}]


def test_glob_signs_in_a_folders_name_are_letters(tmp_path: Path) -> None:
    root = tmp_path / "runs [1]*"
    root.mkdir()
    write(root / "a.jsonl", '{"n": 1}')
    write(root / "b [x].jsonl", '{"n": 2}')
    assert values(load(root, "*.jsonl")) == [{"n": 1}, {"n": 2}]
    assert values(load(root, "b [x].jsonl")) == [{"n": 2}]


def test_format_says_what_a_name_does_not(tmp_path: Path) -> None:
    write(tmp_path / "rows.txt", "a,b\n1,2\n")
    assert values(load(tmp_path, "rows.txt", format="csv")) == [{"a": 1, "b": 2}]


@needs_data
@pytest.mark.parametrize(
    ("file", "count", "columns"),
    [
        ("aqua/dev.json", 254, ("question", "options", "rationale", "correct")),
        ("bbh/object_counting.json", 250, ("input", "target")),
        ("gsm8k/test.jsonl", 1319, ("question", "answer")),
        ("svamp/SVAMP.json", 1000, ("ID", "Body", "Question", "Equation", "Answer", "Type")),
        ("scifact/corpus.csv.gz", 5183, ("doc_id", "title", "abstract", "structured")),
        ("scifact/qrels_test.tsv", 339, ("query-id", "corpus-id", "score")),
        ("lost_in_the_middle/nq-open-oracle.jsonl.gz", 2655, ("question", "answers", "ctxs", "nq_annotated_gold")),
    ],
)
def test_published_files_are_read_whole(file: str, count: int, columns: tuple[str, ...]) -> None:
    loaded = load(TEST_DATA, file)
    assert (len(loaded.rows), loaded.columns) == (count, columns)
    assert len({row.id for row in loaded.rows}) == count
