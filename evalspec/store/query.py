"""One SELECT of a user over the store, and nothing else.

Three fences, each enough against most of it: the statement's syntax tree may hold only SELECT nodes, tables of the
store and harmless table functions; the connection's file access is closed and its configuration locked; the database
is attached read-only and the query runs in a read-only transaction.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from evalspec.data.interrupting import interruptible
from evalspec.errors import StoreError, suggest
from evalspec.store.formats import Table
from evalspec.store.schema import TABLES
from evalspec.store.segments import verify
from evalspec.store.store import Store
from evalspec.store.views import VIEWS

if TYPE_CHECKING:
    import duckdb

ALLOWED = "one SELECT (or WITH … SELECT, DESCRIBE, SUMMARIZE, SHOW TABLES)"
QUERY_NODES = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
TABLE_FUNCTIONS = {"unnest", "range", "generate_series", "json_each", "json_tree"}
REFUSED_FUNCTIONS = {"nextval", "setval", "currval", "write_log", "getvariable", "current_setting", "getenv"}
"""Scalar functions that write something, or read what is not in the store."""
SCHEMAS = {"", "main", "information_schema"}


def query(store: Store, sql: str) -> Table:
    """Run one SELECT over the database and its unmerged segments, read-only. Ctrl-C interrupts it.

    Raises StoreError: for anything but one SELECT over the store's own tables, with what was refused and where, and for
    SQL that is wrong, with DuckDB's message. A damaged segment is left out and named in `store.problems`.
    """
    import duckdb

    if any("\ud800" <= letter <= "\udfff" for letter in sql):  # bytes that the terminal's encoding has no letters for
        raise StoreError("the query is not text in this terminal's encoding; set one that is UTF-8 (LC_ALL=C.UTF-8)")
    reading = store.read()
    try:
        check(reading.connection, sql)
        try:
            return _fetch(reading.connection, sql)
        except duckdb.Error as error:
            damaged = {segment.path: trouble for segment in reading.segments if (trouble := verify(segment))}
            if not damaged:
                raise StoreError(_explain(error, sql)) from error
    finally:
        reading.connection.close()
    store.problems += [f"{trouble}; left out" for trouble in damaged.values()]
    reading = store.read(without=damaged)
    try:
        return _fetch(reading.connection, sql)
    except duckdb.Error as error:
        raise StoreError(_explain(error, sql)) from error
    finally:
        reading.connection.close()


def _fetch(connection: duckdb.DuckDBPyConnection, sql: str) -> Table:
    return interruptible(connection, lambda: _run(connection, sql))


def _run(connection: duckdb.DuckDBPyConnection, sql: str) -> Table:
    connection.execute("BEGIN TRANSACTION READ ONLY")
    connection.execute(sql)
    columns = [(str(entry[0]), str(entry[1])) for entry in connection.description or ()]
    if any("TIME ZONE" in kind for _, kind in columns):  # Python's side of these needs a package that we do not
        names = ", ".join(f"c{place}" for place in range(len(columns)))
        values = ", ".join(
            f"CAST(c{place} AS VARCHAR)" if "TIME ZONE" in kind else f"c{place}"
            for place, (_, kind) in enumerate(columns)
        )
        connection.execute(f"SELECT {values} FROM (\n{sql.strip().rstrip(';')}\n) AS t({names})")
        columns = [(name, "VARCHAR" if "TIME ZONE" in kind else kind) for name, kind in columns]
    return Table(tuple(name for name, _ in columns), tuple(kind for _, kind in columns), connection.fetchall())


def check(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    """Raise StoreError unless `sql` is one statement that only reads tables of the store."""
    import duckdb

    try:
        statements = connection.extract_statements(sql)
    except duckdb.Error as error:
        raise StoreError(_explain(error, sql)) from error
    if len(statements) != 1:
        raise StoreError(f"{len(statements)} statements; the store answers {ALLOWED}")
    row = connection.execute("SELECT json_serialize_sql($1)", [sql]).fetchone()
    tree = json.loads(row[0]) if row else {"error": True}
    if statements[0].type == duckdb.StatementType.MULTI:
        raise StoreError("PIVOT without IN is refused: name its values, as in PIVOT … ON metric IN ('accuracy')")
    if tree["error"]:
        word = (re.findall(r"[A-Za-z]+", _without_comments(sql)) or ["this"])[0].upper()
        raise StoreError(f"{word} is refused: the store is read-only and answers {ALLOWED}")
    nodes = list(_nodes(tree))
    ctes = {entry["key"].lower() for node in nodes if "cte_map" in node for entry in node["cte_map"]["map"]}
    for node in nodes:
        if refusal := _refusal(node, ctes):
            raise StoreError(refusal + _pointer(sql, node))


def _nodes(tree: Any, location: int | None = None) -> Iterator[dict[str, Any]]:
    """Every object of the syntax tree; one without a place in the text gets that of what is around it."""
    if isinstance(tree, dict):
        own = tree.get("query_location")
        location = own if isinstance(own, int) and own < 2**63 else location
        yield {**tree, "query_location": location}
    for value in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _nodes(value, location)


def _refusal(node: dict[str, Any], ctes: set[str]) -> str | None:
    kind = node.get("type")
    if "cte_map" in node and kind not in QUERY_NODES:
        return f"{str(kind).split('_')[0]} inside a query is refused: the store is read-only and answers {ALLOWED}"
    if kind == "TABLE_FUNCTION":
        name = str(node["function"]["function_name"]).lower()
        if name not in TABLE_FUNCTIONS:
            return (
                f"the table function `{name}` is refused: a query reads the tables of the store only "
                f"(and {', '.join(sorted(TABLE_FUNCTIONS))})"
            )
    if kind == "FUNCTION" and str(node.get("function_name", "")).lower() in REFUSED_FUNCTIONS:
        return f"the function `{node['function_name']}` is refused: a query reads the tables of the store only"
    if kind == "SHOW_REF" and not (node["show_type"] in ("DESCRIBE", "SUMMARY") or node["table_name"] == '"tables"'):
        return f"SHOW {node['table_name'].strip(chr(34)).upper()} is refused; SHOW TABLES lists what is here"
    if kind == "BASE_TABLE":
        return _refused_table(node, ctes)
    return None


def _refused_table(node: dict[str, Any], ctes: set[str]) -> str | None:
    name, schema = str(node["table_name"]), str(node["schema_name"])
    known = [*TABLES, *(view.name for view in VIEWS)]
    if node["catalog_name"] or schema.lower() not in SCHEMAS:
        return f"`{'.'.join(node['qualified_name']['path'])}` is refused: name the tables of the store plainly"
    if schema.lower() == "information_schema" or name.lower() in known or (not schema and name.lower() in ctes):
        return None
    if re.search(r"[/\\.*:]", name):
        return f"reading `{name}` is refused: a query reads the tables of the store only: {', '.join(known)}"
    return f"there is no table `{name}`.{suggest(name, known)} There are {', '.join(known)}"


def _pointer(sql: str, node: dict[str, Any]) -> str:
    """The line of the query and a mark under the place, as DuckDB shows them. Its locations count UTF-8 bytes."""
    location = node.get("query_location")
    if location is None:
        return ""
    before = sql.encode()[:location].decode("utf-8", "ignore")
    number, start = before.count("\n"), before.rfind("\n") + 1
    prefix = f"LINE {number + 1}: "
    return f"\n\n{prefix}{sql.splitlines()[number]}\n{' ' * (len(prefix) + len(before) - start)}^"


def _without_comments(sql: str) -> str:
    return re.sub(r"--[^\n]*|/\*.*?\*/", " ", sql, flags=re.DOTALL)


def _explain(error: Exception, sql: str) -> str:
    """DuckDB's message, its long lists of overloads cut, with the nearest column of the store where one is missing."""
    lines = str(error).splitlines()
    candidates = [place for place, line in enumerate(lines) if line.startswith("\t")]
    text = "\n".join(line for place, line in enumerate(lines) if place not in candidates[3:])
    text = re.sub(r"\n{3,}", "\n\n", text)
    if missing := re.search(r'Referenced column "([^"]+)" not found', text):
        named = [name for name in TABLES if re.search(rf"\b{name}\b", sql, re.IGNORECASE)] or list(TABLES)
        columns = {column for name in named for column in TABLES[name].names}
        holders = [f"`{name}`" for name in TABLES if missing[1].lower() in TABLES[name].names]
        said = f" It is a column of {', '.join(holders)}." if holders else suggest(missing[1], columns)
        text = text.replace("\n", f"{said}\n", 1)
    return text
