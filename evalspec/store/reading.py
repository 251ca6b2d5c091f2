"""A read-only view of the database and the segments that are not in it yet, as one set of tables.

Attach first, list afterwards: while the database is attached nobody can merge, so every segment on the disk is either
named in its `segments` table or unmerged. Where it is locked by a writer, or not there, the segments alone are read;
they hold everything, because they are kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from evalspec.errors import StoreError
from evalspec.store.engine import start
from evalspec.store.schema import SCHEMA_VERSION, TABLES, TableSchema
from evalspec.store.segments import Listing, Segment, list_segments, quoted, quoted_pattern, verify
from evalspec.store.views import VIEWS
from evalspec.store.writer import RunLock

if TYPE_CHECKING:
    import duckdb

DATABASE = "evalspec_database"
"""Name under which the database file is attached."""


@dataclass
class Reading:
    """An open view: the connection, the segments that it reads from files, and what could not be read."""

    connection: duckdb.DuckDBPyConnection
    segments: tuple[Segment, ...]
    problems: list[str] = field(default_factory=list)


def segment_folder(database: Path) -> Path:
    """Where the segments of a store stand: `<store>.d`."""
    return database.with_name(database.name + ".d")


def open_reading(
    database: Path, *, tables: Collection[str] = (), without: Collection[Path] = (), closed: bool = True
) -> Reading:
    """Open the view. `tables` makes these only, and no views (quicker where there are thousands of segments);
    `without` leaves out some segments; `closed` shuts file access and locks the configuration.

    Segments whose damage shows while the tables are made are left out too, and named in `problems`.
    Raises StoreError for a file that is not a store of this schema version.
    """
    import duckdb

    segments: tuple[Segment, ...] = ()
    connection = start()
    try:
        attached = database.exists() and attach(connection, database, read_only=True)
        merged = _merged(connection) if attached else {}
        listing = list_segments(segment_folder(database))
        segments = tuple(s for s in listing.segments if s.segment_id not in merged and s.path not in without)
        connection.execute("CREATE SCHEMA recorded")
        for name in tables or TABLES:
            merged_runs = set(merged.values())
            _create_table_view(connection, TABLES[name], segments, attached=attached, merged_runs=merged_runs)
        if not tables or "runs" in tables:
            _show_killed_runs(connection, segment_folder(database))
        for view in () if tables else VIEWS:
            connection.execute(f"CREATE VIEW {view.name} AS {view.sql}")
        if closed:
            files = [s.file(table) for s in segments for table in s.files]
            # A path is checked as a pattern and again as what the pattern matches, so both spellings are named.
            paths = ", ".join({spelling(file) for file in files for spelling in (quoted, quoted_pattern)})
            connection.execute(f"SET allowed_paths = [{paths}]")
            connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
    except duckdb.Error as error:
        connection.close()
        damaged = {s.path: trouble for s in segments if (trouble := verify(s))}
        if not damaged:
            if lacking := _lacking(segments):
                folder = segment_folder(database)
                raise StoreError(
                    f"{lacking}, which this evalspec reads: another state of evalspec wrote it. "
                    f"Move {database} and {folder} away, or give another store with --store"
                ) from error
            raise
        reading = open_reading(database, tables=tables, without={*without, *damaged}, closed=closed)
        reading.problems += [f"{trouble}; left out" for trouble in damaged.values()]
        return reading
    except BaseException:
        connection.close()
        raise
    return Reading(connection, segments, _problems(listing, merged))


def attach(connection: duckdb.DuckDBPyConnection, database: Path, *, read_only: bool) -> bool:
    """Attach the database file; False when another process (or connection) holds its lock.

    Raises StoreError for a file that DuckDB cannot read, or that is not a store of this version.
    """
    import duckdb

    try:
        connection.execute(f"ATTACH {quoted(database)} AS {DATABASE} {'(READ_ONLY)' if read_only else ''}")
    except duckdb.ResourceInUseException:
        return False
    except duckdb.Error as error:
        if "Could not set lock" in str(error):
            return False
        reason = str(error).splitlines()[0]
        if not database.is_file() or "Permission denied" in reason or "Read-only file system" in reason:
            raise StoreError(f"{database}: cannot be opened: {reason}") from error
        if not segment_folder(database).is_dir():  # never a store: somebody's file, and no advice may cost them it
            raise StoreError(f"{database}: is no store of evalspec but another file; give another path") from error
        raise StoreError(
            f"{database}: cannot be opened as a DuckDB database: {reason}. Move it away: the next run builds it anew "
            f"from the segments in {segment_folder(database)}"
        ) from error
    return _check_version(connection, database)


def _check_version(connection: duckdb.DuckDBPyConnection, database: Path) -> bool:
    """True for a store; False for a database without any table yet; StoreError for anything else."""
    tables = {
        name
        for (name,) in connection.execute(
            "SELECT table_name FROM duckdb_tables() WHERE database_name = ?", [DATABASE]
        ).fetchall()
    }
    if not tables:
        connection.execute(f"DETACH {DATABASE}")
        return False
    if "store_info" not in tables:
        raise StoreError(f"{database}: is a DuckDB database, but not a store of evalspec; give another path")
    row = connection.execute(f"SELECT schema_version FROM {DATABASE}.store_info").fetchone()
    version = row[0] if row else None
    if version != SCHEMA_VERSION:
        raise StoreError(
            f"{database}: has schema version {version}, this evalspec reads {SCHEMA_VERSION}. "
            + (
                "Upgrade evalspec"
                if version is not None and version > SCHEMA_VERSION
                else f"Move it away: the next run builds it anew from the segments in {segment_folder(database)}"
            )
        )
    has: dict[str, set[str]] = defaultdict(set)
    for table, column in connection.execute(
        "SELECT table_name, column_name FROM duckdb_columns() WHERE database_name = ?", [DATABASE]
    ).fetchall():
        has[table].add(column)
    for schema in TABLES.values():
        if missing := [name for name in schema.names if name not in has[schema.name]]:
            raise StoreError(
                f"{database}: its table `{schema.name}` lacks the column `{missing[0]}`, which this evalspec reads: "
                f"another state of evalspec wrote it. Move it and {segment_folder(database)} away, or give another "
                "store with --store"
            )
    return True


def _lacking(segments: Sequence[Segment]) -> str | None:
    """The first file of these segments without a column that is read, in words; None if all have all."""
    connection = start(threads=1)
    try:
        for segment in segments:
            for name in (name for name in segment.files if name in TABLES):
                source = f"read_parquet({quoted(segment.file(name))})"
                has = {row[0] for row in connection.execute(f"DESCRIBE FROM {source}").fetchall()}
                if missing := [column for column in TABLES[name].names if column not in has]:
                    return f"{segment.file(name)}: lacks the column `{missing[0]}`"
    finally:
        connection.close()
    return None


def _merged(connection: duckdb.DuckDBPyConnection) -> dict[str, str]:
    return dict(connection.execute(f"SELECT segment_id, run_id FROM {DATABASE}.segments").fetchall())


def _problems(listing: Listing, merged: dict[str, str]) -> list[str]:
    return [f"{message}; left out" for path, message in listing.damaged if path.name.split("-")[-1] not in merged] + [
        message for _, message in listing.foreign
    ]


def parquet_rows(table: TableSchema, segments: Sequence[Segment]) -> str:
    """SQL that reads one table from segments: each key once, as the last commit of its run left it."""
    files = ", ".join(quoted_pattern(segment.file(table.name)) for segment in segments)
    return f"read_parquet([{files}], hive_partitioning = false)"


def newest(table: TableSchema) -> str:
    """The QUALIFY clause that keeps, of rows with one key, the last committed: names sort by run and sequence."""
    return f"QUALIFY row_number() OVER (PARTITION BY {', '.join(table.key)} ORDER BY filename DESC) = 1"


def same_key(table: TableSchema, a: str, b: str) -> str:
    """The condition that two rows have the same key; NULL equals NULL."""
    return " AND ".join(f"{a}.{name} IS NOT DISTINCT FROM {b}.{name}" for name in table.key)


def _create_table_view(
    connection: duckdb.DuckDBPyConnection,
    table: TableSchema,
    segments: Sequence[Segment],
    *,
    attached: bool,
    merged_runs: set[str],
) -> None:
    """One table as a view. The costly clauses, which drop replaced rows, are there only when there are such rows."""
    columns = ", ".join(table.names)
    stored = f"{DATABASE}.{table.name}" if attached else None
    fresh = [segment for segment in segments if table.name in segment.files]
    parts = []
    if fresh:
        source = parquet_rows(table, fresh)
        (repeated,) = _one(
            connection,
            f"SELECT (SELECT count(*) FROM {source}) > (SELECT count(*) FROM (SELECT DISTINCT {', '.join(table.key)} "
            f"FROM {source}))",
        )
        parts.append(f"SELECT {columns} FROM {source} {newest(table) if repeated else ''}")
        if stored and any(segment.run_id in merged_runs for segment in fresh):
            replaced = f"SELECT 1 FROM {source} AS new WHERE {same_key(table, 'new', 'old')}"
            (overlap,) = _one(connection, f"SELECT EXISTS (FROM {stored} AS old WHERE EXISTS ({replaced}))")
            if overlap:
                stored = f"(SELECT * FROM {stored} AS old WHERE NOT EXISTS ({replaced}))"
    if stored:
        parts.insert(0, f"SELECT {columns} FROM {stored}")
    if not parts:
        nulls = ", ".join(f'CAST(NULL AS {c.type}) AS "{c.name}"' for c in table.columns)
        parts.append(f"SELECT {nulls} WHERE false")
    name = "recorded.runs" if table.name == "runs" else table.name
    connection.execute(f"CREATE VIEW {name} AS {' UNION ALL '.join(parts)}")


def _show_killed_runs(connection: duckdb.DuckDBPyConnection, folder: Path) -> None:
    """`runs`, where a run that says `running` but that no living process writes is `interrupted`."""
    running = connection.execute("SELECT run_id FROM recorded.runs WHERE status = 'running'").fetchall()
    killed = [run_id for (run_id,) in running if not RunLock.is_held(folder / run_id)]
    listed = ", ".join("'" + run_id.replace("'", "''") + "'" for run_id in killed)
    status = f"CASE WHEN run_id IN ({listed}) THEN 'interrupted' ELSE status END AS status" if killed else ""
    connection.execute(f"CREATE VIEW runs AS SELECT * {f'REPLACE ({status})' if killed else ''} FROM recorded.runs")


def _one(connection: duckdb.DuckDBPyConnection, sql: str) -> tuple[object, ...]:
    row = connection.execute(sql).fetchone()
    if row is None:
        raise StoreError(f"no row from: {sql}")
    return tuple(row)


def runs_of(segments: Iterable[Segment]) -> dict[str, list[Segment]]:
    """Segments by run."""
    grouped: dict[str, list[Segment]] = defaultdict(list)
    for segment in segments:
        grouped[segment.run_id].append(segment)
    return dict(grouped)
