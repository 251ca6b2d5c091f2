"""One SELECT gives rows; anything else is refused, and DuckDB's own words are passed on."""

import signal
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from evalspec.data.rows import load_rows
from evalspec.errors import DataError
from evalspec.spec.data import DataBlock


def rows(root: Path, sql: str, **more: object) -> list[dict[str, object]]:
    return [dict(row.values) for row in load_rows(DataBlock(sql=sql, **more), root).rows]  # type: ignore[arg-type]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "questions.jsonl").write_text('{"id": 1, "q": "one"}\n{"id": 2, "q": "two"}\n')
    (tmp_path / "data" / "answers.csv").write_text("id,a\n1,eins\n2,zwei\n")
    return tmp_path


def test_relative_file_names_start_at_the_root(
    root: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "data").mkdir()
    (elsewhere / "data" / "answers.csv").write_text("id,a\n1,wrong\n2,wrong\n")
    monkeypatch.chdir(elsewhere)
    joined = "SELECT q, a FROM 'data/questions.jsonl' JOIN 'data/answers.csv' USING (id) ORDER BY id DESC"
    assert rows(root, joined) == [{"q": "two", "a": "zwei"}, {"q": "one", "a": "eins"}]
    assert Path.cwd() == elsewhere


def test_values_are_plain(root: Path) -> None:
    sql = (
        "SELECT 0.1 AS dec, DATE '2020-01-31' AS day, [1, NULL] AS l, {'a': 'x'} AS s, MAP {'k': 1} AS m, "
        "123456789012345678901234567890::HUGEINT AS big, '007' AS text, TRUE AS yes"
    )
    assert rows(root, sql) == [
        {
            "dec": 0.1,
            "day": "2020-01-31",
            "l": [1, None],
            "s": {"a": "x"},
            "m": {"k": 1},
            "big": 123456789012345678901234567890,
            "text": "007",
            "yes": True,
        }
    ]


def test_a_column_may_have_any_name(root: Path) -> None:
    assert rows(root, 'SELECT 1 AS "the rows", 2 AS "select", 3 AS "a ""b"""') == [
        {"the rows": 1, "select": 2, 'a "b"': 3}
    ]


@pytest.mark.parametrize(
    "sql", ["SELECT 1 AS a;", "FROM range(1) t(a)", "VALUES (1)", "WITH x AS (SELECT 1 AS a) FROM x -- end"]
)
def test_whatever_duckdb_calls_a_select_is_one(root: Path, sql: str) -> None:
    assert len(rows(root, sql)) == 1


def test_a_database_is_read_and_never_written(root: Path) -> None:
    with duckdb.connect(str(root / "it's.duckdb")) as connection:
        connection.execute("CREATE TABLE facts AS SELECT 'a' AS id, 1 AS n")
    before = (root / "it's.duckdb").read_bytes()
    found = rows(
        root, "SELECT facts.id, n, q FROM facts JOIN 'data/questions.jsonl' q1 ON q1.id = n", database="it's.duckdb"
    )
    assert found == [{"id": "a", "n": 1, "q": "one"}]
    assert (root / "it's.duckdb").read_bytes() == before


def test_the_same_query_gives_the_same_rows(root: Path) -> None:
    sql = "SELECT i % 7 AS g, count(*) AS n FROM range(100000) t(i) WHERE random() < 0.5 GROUP BY g"
    assert rows(root, sql) == rows(root, sql)


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("SELECT 1; SELECT 2", "2 statements"),
        ("", "0 statements"),
        ("COPY (SELECT 1) TO 'out.csv'", "kind COPY"),
        ("CREATE TABLE t AS SELECT 1", "kind CREATE"),
        ("INSTALL httpfs", "kind LOAD"),
        ("SET threads = 9", "kind SET"),
        ("SELEC 1", "syntax error"),
        ("SELECT nope FROM 'data/answers.csv'", "nope"),
        ("SELECT * FROM 'data/missing.csv'", "missing.csv"),
        ("SELECT a::INT AS n FROM 'data/answers.csv'", "eins"),
        ("SELECT 1 AS a, 2 AS A", "two columns are called"),
        ("SELECT 'x'::BLOB AS b", "column `b` holds bytes"),
        ("SELECT 1 AS a WHERE FALSE", "has no rows"),
        ("SELECT * FROM root", "root"),  # a Python variable of the code around is no table
    ],
)
def test_anything_else_is_refused_in_duckdbs_words(root: Path, sql: str, said: str) -> None:
    with pytest.raises(DataError) as caught:
        rows(root, sql)
    assert said in str(caught.value)
    assert not (root / "out.csv").exists()


def test_a_database_that_is_none_is_an_error(root: Path) -> None:
    with pytest.raises(DataError, match=r"there is no database nope\.duckdb"):
        rows(root, "SELECT 1", database="nope.duckdb")
    with pytest.raises(DataError, match=r"database data/answers\.csv cannot be opened"):
        rows(root, "SELECT 1", database="data/answers.csv")


def test_ctrl_c_interrupts_a_query() -> None:
    code = """
from pathlib import Path
from evalspec.data.tables import read_sql
print("asking", flush=True)
try:
    read_sql("SELECT count(*) FROM range(9999999) a, range(9999999) b WHERE a.range * b.range = 3", None, Path())
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "asking\n"
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(1)
        child.send_signal(signal.SIGINT)
        try:
            assert child.communicate(timeout=20)[0] == "interrupted\n"
        finally:
            child.kill()
