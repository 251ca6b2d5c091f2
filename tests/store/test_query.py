"""One SELECT over the store, and nothing else."""

from __future__ import annotations

import csv
import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from evalspec.errors import StoreError
from evalspec.store import Store, Table, query
from evalspec.store.formats import as_csv, as_json, as_parquet, as_text


@pytest.fixture
def filled(store: Store, begin, samples, tmp_path: Path) -> Store:
    """Some rows merged, some not, and files beside it that nobody may read."""
    writer = begin(run_id="run")
    f1 = {"cell_id": "c1", "metric": "f1", "value": 0.5}
    writer.commit({"samples": samples(0, 2, choices=["Oslo", "Rome"]), "metrics": [f1]})
    store.merge()
    writer.commit({"samples": samples(2, 4), "scores": [{**f1, "sample_id": "s0"}]})
    (tmp_path / "secret.csv").write_text("a,b\n1,2\n")
    (tmp_path / "secret.json").write_text('{"a": 1}')
    duckdb.sql("SELECT 42 AS a").write_parquet(str(tmp_path / "secret.parquet"))
    with duckdb.connect(str(tmp_path / "other.duckdb")) as other:
        other.execute("CREATE TABLE secret AS SELECT 42 AS a")
    return store


ALLOWED = [
    "SELECT 1",
    "select count(*) from samples;",
    "-- a comment\nSELECT /* ; DROP TABLE samples */ 'DROP TABLE samples; COPY' FROM samples -- end",
    "WITH a AS (SELECT * FROM samples), b AS (FROM a) SELECT count(*) FROM b",
    "WITH RECURSIVE r AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM r WHERE i < 5) SELECT sum(i) FROM r",
    "FROM samples SELECT sample_id LIMIT 1",
    "TABLE cells",
    "VALUES (1), (2)",
    "SELECT * FROM main.runs UNION ALL SELECT * FROM runs",
    "SELECT model, metric, value, ci_low, ci_high FROM metrics JOIN cells USING (run_id, cell_id) ORDER BY 1, 2",
    "SELECT params->>'$.k' FROM cells",
    "SELECT avg(value) OVER (PARTITION BY metric) FROM scores QUALIFY row_number() OVER () = 1",
    "SELECT s.sample_id, j.value FROM samples s, json_each(s.choices) j",
    "SELECT unnest(['a', 'b']), range FROM range(2)",
    "SELECT * FROM (PIVOT scores ON metric IN ('f1', 'exact_match') USING avg(value) GROUP BY cell_id)",
    "SELECT COLUMNS('c.*') FROM cells",
    "SELECT max(length(prompt)) FROM samples WHERE sample_id IN (SELECT sample_id FROM scores)",
    "DESCRIBE samples",
    "DESCRIBE SELECT * FROM samples",
    "SUMMARIZE samples",
    "SHOW TABLES",
    "SELECT table_name FROM information_schema.tables",
    "SELECT now(), [now()], TIMESTAMP '2026-01-01', DATE '2026-01-01'",
]

# {here} is the folder of the store, {segment} a Parquet file of its own.
REFUSED = [
    "DROP TABLE samples",
    "/* SELECT */ DROP TABLE samples",
    "DELETE FROM samples",
    "UPDATE samples SET output = 'right'",
    "INSERT INTO samples (run_id) VALUES ('x')",
    "TRUNCATE samples",
    "ALTER TABLE samples ADD COLUMN x INTEGER",
    "CREATE TABLE x AS SELECT 1",
    "CREATE TEMP TABLE x AS SELECT 1",
    "CREATE OR REPLACE VIEW samples AS SELECT 1",
    "CREATE MACRO f(x) AS TABLE FROM read_csv(x)",
    "CREATE SECRET (TYPE s3)",
    "MERGE INTO samples USING cells ON true WHEN MATCHED THEN DELETE",
    "COPY samples TO '{here}/out.csv'",
    "COPY (SELECT 1) TO '{here}/out.parquet'",
    "COPY (SELECT 1) TO '{segment}'",
    "COPY samples FROM '{here}/secret.csv'",
    "EXPORT DATABASE '{here}/out'",
    "IMPORT DATABASE '{here}/out'",
    "ATTACH '{here}/other.duckdb'",
    "ATTACH '{here}/evalspec.duckdb' AS again",
    "DETACH evalspec_database",
    "USE evalspec_database",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET threads = 1",
    "RESET threads",
    "SET VARIABLE x = 1",
    "SET enable_external_access = true",
    "PRAGMA database_list",
    "PRAGMA enable_profiling",
    "CALL pragma_version()",
    "CHECKPOINT",
    "VACUUM",
    "ANALYZE",
    "BEGIN",
    "COMMIT",
    "ROLLBACK",
    "PREPARE p AS SELECT 1",
    "EXECUTE p",
    "EXPLAIN SELECT 1",
    "EXPLAIN ANALYZE SELECT 1",
    "SELECT 1; SELECT 2",
    "SELECT 1; DROP TABLE samples",
    "",
    "  -- nothing",
    ";",
    "SELECT * FROM read_csv('{here}/secret.csv')",
    "SELECT * FROM read_csv_auto('{here}/secret.csv')",
    "SELECT * FROM READ_PARQUET('{here}/secret.parquet')",
    "SELECT * FROM parquet_scan('{here}/secret.parquet')",
    "SELECT * FROM read_parquet('{segment}')",
    "SELECT * FROM '{segment}'",
    "SELECT * FROM parquet_metadata('{segment}')",
    "SELECT * FROM read_json('{here}/secret.json')",
    "SELECT * FROM read_ndjson_objects('{here}/secret.json')",
    "SELECT * FROM read_text('{here}/secret.csv')",
    "SELECT * FROM read_blob('/etc/passwd')",
    "SELECT * FROM glob('{here}/*')",
    "SELECT * FROM sniff_csv('{here}/secret.csv')",
    "SELECT * FROM read_duckdb('{here}/other.duckdb')",
    "SELECT * FROM read_duckdb('{here}/evalspec.duckdb')",
    "FROM '{here}/secret.csv'",
    'FROM "{here}/secret.parquet"',
    "SELECT * FROM 'secret.csv'",
    "SELECT * FROM 'https://example.com/x.parquet'",
    "SELECT * FROM read_parquet('s3://bucket/x.parquet')",
    "DESCRIBE '{here}/secret.csv'",
    "SUMMARIZE '{here}/secret.parquet'",
    "DESCRIBE SELECT * FROM read_csv('{here}/secret.csv')",
    "SELECT (SELECT a FROM read_csv('{here}/secret.csv'))",
    "SELECT * FROM samples WHERE sample_id IN (SELECT a FROM '{here}/secret.csv')",
    "WITH a AS (SELECT * FROM read_csv('{here}/secret.csv')) SELECT * FROM a",
    "WITH a AS MATERIALIZED (FROM '{here}/secret.csv') SELECT 1 FROM a",
    "SELECT * FROM samples, LATERAL (SELECT * FROM read_text(samples.prompt))",
    "SELECT * FROM cells UNION ALL SELECT * FROM '{here}/secret.csv'",
    "SELECT * FROM (PIVOT '{here}/secret.csv' ON a IN (1) USING count(*))",
    "SELECT * FROM query('SELECT 1')",
    "SELECT * FROM query_table('samples')",
    "SELECT * FROM query_table(['{here}/secret.csv'])",
    "FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1'))",
    "WITH a AS (INSERT INTO samples (run_id) VALUES ('x') RETURNING *) SELECT * FROM a",
    "WITH a AS (DELETE FROM evalspec_database.samples RETURNING *) SELECT * FROM a",
    "WITH a AS (UPDATE evalspec_database.runs SET status = 'x' RETURNING *) FROM a",
    "SELECT * FROM evalspec_database.samples",
    "SELECT * FROM evalspec_database.main.samples",
    "SELECT * FROM recorded.runs",
    "SELECT * FROM duckdb_secrets()",
    "SELECT * FROM duckdb_settings()",
    "SELECT * FROM duckdb_databases",
    "SELECT * FROM pragma_database_list",
    "SELECT * FROM pg_catalog.pg_tables",
    "SHOW DATABASES",
    "SHOW ALL TABLES",
    "SELECT getenv('HOME')",
    "SELECT current_setting('home_directory')",
    "SELECT write_log('x')",
    "SELECT nextval('x')",
    "PIVOT scores ON metric USING avg(value)",
]


@pytest.mark.parametrize("sql", ALLOWED)
def test_what_reads_the_store_is_answered(sql: str, filled: Store) -> None:
    table = query(filled, sql)
    assert table.rows and all(len(row) == len(table.columns) == len(table.types) for row in table.rows)


def test_everything_else_is_refused_and_changes_nothing(filled: Store, tmp_path: Path) -> None:
    segment = next(filled.folder.glob("*/000002-*/samples.parquet"))
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    answered = []
    for sql in REFUSED:
        try:
            query(filled, sql.format(here=tmp_path, segment=segment))
            answered.append(sql)
        except StoreError as error:
            assert str(error).strip() and "Traceback" not in str(error)
    assert not answered
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files
    assert query(filled, "SELECT count(*) FROM samples").rows == [(4,)]


def test_the_connection_itself_is_closed_to_other_files_and_to_changes_of_the_store(
    filled: Store, tmp_path: Path
) -> None:
    with filled.connect() as connection:
        assert connection.execute("SELECT count(*) FROM samples").fetchone() == (4,)
        for sql in (
            f"FROM '{tmp_path}/secret.csv'",
            f"FROM read_duckdb('{tmp_path}/other.duckdb')",
            f"ATTACH '{tmp_path}/other.duckdb'",
            f"COPY samples TO '{tmp_path}/out.csv'",
            "SET enable_external_access = true",
            "SET allowed_directories = ['/']",
            "INSTALL httpfs",
            "INSERT INTO evalspec_database.runs (run_id) VALUES ('x')",
            "DROP TABLE evalspec_database.samples",
        ):
            with pytest.raises(duckdb.Error):
                connection.execute(sql)


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT * FROM runz", "there is no table `runz`. Did you mean `runs`?"),
        ("SELECT\n  modell\nFROM cells", "Did you mean `model`?"),
        ("SELECT output FROM results", "It is a column of `samples`."),
        ("SELECT\n  modell\nFROM cells", "LINE 2:   modell\n          ^^^^^^"),
        ("SELECT 'é😀', * FROM runz", "LINE 1: SELECT 'é😀', * FROM runz\n                            ^"),
        ("SELEC 1", "LINE 1: SELEC 1\n        ^"),
        ("SELECT model FROM cells GROUP", "syntax error"),
        ("SELECT prompt + 1 FROM samples", "No function matches"),
        ("SELECT 'a'::INTEGER", "Could not convert string 'a'"),
        ("SELECT $1", "parameter"),
        ("DROP TABLE samples", "DROP is refused: the store is read-only"),
        ("SELECT 1; SELECT 2", "2 statements"),
        ("PIVOT scores ON metric USING avg(value)", "name its values"),
        ("SELECT 1,\n * FROM read_csv('x')", "LINE 2:  * FROM read_csv('x')\n                ^"),
    ],
)
def test_wrong_sql_is_explained_with_the_place_and_the_nearest_name(sql: str, message: str, filled: Store) -> None:
    with pytest.raises(StoreError) as caught:
        query(filled, sql)
    assert message.lower() in str(caught.value).lower()
    assert len(str(caught.value).splitlines()) < 12


VALUES = """SELECT 1::HUGEINT AS n, 1.5::DECIMAL(4, 2) AS d, 'NaN'::DOUBLE AS nan, 'a,"b"\nc' AS text, NULL AS nothing,
    [1, NULL] AS list, {'a': 'x'} AS struct, MAP {'k': 1} AS map, '{"p": [1, "é"]}'::JSON AS json, 'xy'::BLOB AS blob,
    DATE '2026-01-02' AS day, TIMESTAMP '2026-01-02 03:04:05' AS time, TIMESTAMPTZ '2026-01-02 03:04:05+00' AS zoned,
    uuid() AS id, INTERVAL 1 DAY AS span, true AS n"""


def test_answers_come_as_json_csv_parquet_and_a_table(filled: Store, tmp_path: Path) -> None:
    table = query(filled, VALUES)
    (row,) = json.loads(as_json(table))
    assert row["n"] == 1 and row["n_2"] is True and row["d"] == 1.5 and row["nan"] is None and row["nothing"] is None
    assert row["list"] == [1, None] and row["struct"] == {"a": "x"} and row["json"] == {"p": [1, "é"]}
    assert (
        row["day"] == "2026-01-02" and row["time"] == "2026-01-02T03:04:05" and row["zoned"].startswith("2026-01-02 03")
    )
    header, values = csv.reader(io.StringIO(as_csv(table)))
    assert header[:2] == ["n", "d"] and values[3] == 'a,"b"\nc' and values[4] == "" and values[5] == "[1, null]"
    (tmp_path / "answer.parquet").write_bytes(as_parquet(table))
    with duckdb.connect() as connection:
        answer = connection.execute(f"SELECT d, text, list, struct, json, day, n_2 FROM '{tmp_path}/answer.parquet'")
        types = [str(entry[1]) for entry in answer.description]
        assert types == ["DECIMAL(4,2)", "VARCHAR", "INTEGER[]", "STRUCT(a VARCHAR)", "JSON", "DATE", "BOOLEAN"]
        assert answer.fetchone()[1:4] == ('a,"b"\nc', [1, None], {"a": "x"})
    text = as_text(table)
    assert len(text.splitlines()) == 4 and text.endswith("(1 row)") and "⏎" in text
    for name in ("table", "json", "csv", "parquet"):
        assert table.to_bytes(name)
        assert query(filled, "SELECT * FROM samples WHERE false").to_bytes(name)
    with pytest.raises(StoreError, match="no format"):
        table.to_bytes("xml")


def test_a_table_puts_numbers_to_the_right_and_cuts_what_is_long() -> None:
    text = as_text(Table(("model", "value"), ("VARCHAR", "DOUBLE"), [("mamba", 0.5), ("x" * 100, None)]), width=10)
    assert text.splitlines() == [
        "model       value",
        "──────────  ─────",
        "mamba         0.5",
        "xxxxxxxxx…",
        "(2 rows)",
    ]


def test_a_damaged_column_is_left_out_when_a_query_meets_it(store: Store, begin, samples) -> None:
    writer = begin()
    for number in range(2):
        prompt = "".join(f"{place * 7919 % 10007}-" for place in range(20_000))
        writer.commit({"samples": samples(number, number + 1, prompt=prompt)})
    (path,) = store.folder.glob("*/000001-*/samples.parquet")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2  # deep in the prompts: keys and footer are sound
    content[middle : middle + 1000] = bytes(1000)
    path.write_bytes(content)
    assert query(store, "SELECT sum(length(prompt)) > 0, count(*) FROM samples").rows == [(True, 1)]
    assert "checksum differs" in store.problems[0] and str(path) in store.problems[0]


SLOW = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
from evalspec.store import Store, query
print("ready", flush=True)
try:
    query(Store(sys.argv[1]), "SELECT count(*) FROM range(9999999) a, range(9999999) b WHERE a.range * b.range = 3")
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def test_ctrl_c_interrupts_a_query(filled: Store, process) -> None:
    child: subprocess.Popen[str] = process(SLOW, filled.path)
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(1.5)
    child.send_signal(signal.SIGINT)
    output, errors = child.communicate(timeout=20)
    assert output.strip() == "interrupted" and not errors


def test_queries_do_without_pandas_pyarrow_and_pytz(filled: Store) -> None:
    code = """
import sys
for name in ("pandas", "pyarrow", "pytz"):
    sys.modules[name] = None
from evalspec.store import Store, query
store = Store(sys.argv[1])
with store.begin({"spec_name": "x"}, []) as writer:
    writer.commit({"samples": [{"cell_id": "c", "sample_id": "s", "cached": None, "prompt_tokens": 3}]})
store.merge()
for name in ("table", "json", "csv", "parquet"):
    query(store, "SELECT now(), * FROM samples").to_bytes(name)
print(len(store.cached(["k0"])))
"""
    done = subprocess.run([sys.executable, "-c", code, str(filled.path)], capture_output=True, text=True)
    assert done.stdout.strip() == "1", done.stderr
