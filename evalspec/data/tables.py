"""Rows from Parquet files and from SQL, through DuckDB.

Rows cross from DuckDB to Python as JSON text: dates, times and UUIDs become their ISO text, decimals numbers, structs
mappings, and nothing depends on pandas, Arrow or a time-zone package.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import duckdb

from evalspec.data.interrupting import interruptible
from evalspec.errors import DataError
from evalspec.paths import is_file, path_from

# One thread: without an ORDER BY, the order of a join's or an aggregate's rows must be the same each time.
# Names in a query are tables, never Python variables; extensions are code, and a spec fetches none.
SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "threads": 1,
    "python_enable_replacements": "false",
    "autoinstall_known_extensions": "false",
}
VIEW = "the rows of this query"  # a name that no column has


def read_parquet(path: Path, shown: str) -> list[dict[str, Any]]:
    """All rows of a Parquet file, in its order. `shown` is the file's name in messages."""
    with duckdb.connect(":memory:", config=SETTINGS) as connection:
        try:
            # Glob signs in a name that was found are letters of that name.
            literal = str(path).replace("'", "''")
            for sign in "[*?":
                literal = literal.replace(sign, f"[{sign}]")
            return _fetch(connection, f"SELECT * FROM read_parquet('{literal}')", shown)
        except duckdb.Error as error:
            raise DataError(f"{shown} cannot be read as Parquet: {error}") from error


def read_sql(query: str, database: str | None, root: Path) -> list[dict[str, Any]]:
    """Rows of one SELECT. Relative file names start at `root`; `database` is attached read-only.

    `random()` starts from the same seed each time. Raises DataError with DuckDB's words. Ctrl-C interrupts it.
    """
    # DuckDB tries the working directory before any search path, so a stray file of the same name would win.
    with duckdb.connect(":memory:", config=SETTINGS) as connection, contextlib.chdir(root):
        if database is not None:
            _attach(connection, database, root)
        try:
            kinds = [statement.type.name for statement in connection.extract_statements(query)]
            if kinds != ["SELECT"]:
                found = f"{len(kinds)} statements" if len(kinds) != 1 else f"a statement of the kind {kinds[0]}"
                raise DataError(f"`sql` is one SELECT; this is {found}: {_short(query)}")
            connection.execute("SELECT setseed(0)").fetchall()
            return interruptible(connection, lambda: _fetch(connection, query.strip().rstrip(";"), "the query"))
        except duckdb.Error as error:
            raise DataError(f"`sql` failed: {error}\n    in: {_short(query)}") from error


def _fetch(connection: duckdb.DuckDBPyConnection, query: str, shown: str) -> list[dict[str, Any]]:
    relation = connection.sql(query)
    for name, kind in zip(relation.columns, relation.types, strict=True):
        if "BLOB" in str(kind):
            raise DataError(
                f"{shown}: column `{name}` holds bytes ({kind}), which are no text; select other columns by SQL"
            )
    lower = [name.lower() for name in relation.columns]
    twice = {name for name in relation.columns if lower.count(name.lower()) > 1}
    if twice:
        raise DataError(f"{shown}: two columns are called {', '.join(sorted(twice))}; rename one with AS")
    found = relation.query(VIEW, f'SELECT to_json("{VIEW}") FROM "{VIEW}"')
    assert found is not None  # a SELECT always gives a relation
    return [json.loads(text) for (text,) in found.fetchall()]


def _attach(connection: duckdb.DuckDBPyConnection, database: str, root: Path) -> None:
    path = path_from(root, database)
    if not is_file(path):
        raise DataError(f"there is no database {database} (looked for {path})")
    literal = str(path).replace("'", "''")
    try:
        connection.execute(f"ATTACH '{literal}' AS attached (READ_ONLY)")
        connection.execute("USE attached")
    except duckdb.Error as error:
        raise DataError(f"the database {database} cannot be opened: {error}") from error


def _short(query: str) -> str:
    text = " ".join(query.split())
    return text if len(text) <= 200 else text[:199] + "…"
