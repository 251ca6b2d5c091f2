"""Segments into the database: whoever gets its lock does it, once a segment, in one transaction a run."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evalspec.errors import StoreError
from evalspec.store.encoding import utc_now
from evalspec.store.engine import start
from evalspec.store.reading import (
    DATABASE,
    attach,
    newest,
    parquet_rows,
    runs_of,
    same_key,
    segment_folder,
)
from evalspec.store.schema import SCHEMA_VERSION, TABLES
from evalspec.store.segments import Segment, list_segments, quoted, raise_if_interrupted, set_aside, sweep, verify
from evalspec.store.views import VIEWS
from evalspec.store.writer import RunLock

if TYPE_CHECKING:
    import duckdb


def merge(database: Path) -> tuple[int, list[str]]:
    """Bring every unmerged segment into the database. Returns how many, and what was set aside.

    0 where another process or connection holds the database: nothing is lost, the segments stay readable. Damaged
    segments are renamed to `corrupt-…`. Raises StoreError when the file is no store or the disk is full.
    """
    import duckdb

    folder = segment_folder(database)
    if not database.exists() and not list_segments(folder).segments:
        return 0, []
    connection = start()
    try:
        if not _open(connection, database):
            return 0, []
        listing = list_segments(folder)
        done = {row[0] for row in connection.execute(f"SELECT segment_id FROM {DATABASE}.segments").fetchall()}
        problems = [f"{message}; set aside as {set_aside(path)}" for path, message in listing.damaged]
        problems += [message for _, message in listing.foreign]
        sound = []
        for segment in listing.segments:
            if segment.segment_id in done:
                continue
            if trouble := verify(segment):
                problems.append(f"{trouble}; set aside as {set_aside(segment.path)}")
            else:
                sound.append(segment)
        for segments in runs_of(sound).values():
            _merge_run(connection, segments)
        connection.execute(f"DETACH {DATABASE}")
    except duckdb.Error as error:
        raise StoreError(
            f"{database}: results could not be merged: {str(error).splitlines()[0]}. "
            f"Nothing is lost: they stay in {folder} and are read from there"
        ) from error
    except RuntimeError as error:
        raise_if_interrupted(error)
        raise
    finally:
        connection.close()
    _sweep(folder)
    return len(sound), problems


def _open(connection: duckdb.DuckDBPyConnection, database: Path) -> bool:
    """Attach for writing, with all tables there; False where it is locked."""
    import duckdb

    if not attach(connection, database, read_only=False):
        # Locked, or a database without tables: the second way to ask tells them apart.
        try:
            connection.execute(f"ATTACH {quoted(database)} AS {DATABASE}")
        except (duckdb.ResourceInUseException, duckdb.IOException):
            return False
    connection.execute("BEGIN")
    connection.execute(
        f"CREATE TABLE IF NOT EXISTS {DATABASE}.store_info (schema_version INTEGER, created_at TIMESTAMP)"
    )
    connection.execute(
        f"CREATE TABLE IF NOT EXISTS {DATABASE}.segments "
        "(segment_id VARCHAR NOT NULL, run_id VARCHAR NOT NULL, sequence BIGINT NOT NULL, merged_at TIMESTAMP)"
    )
    if not connection.execute(f"FROM {DATABASE}.store_info").fetchall():
        connection.execute(f"INSERT INTO {DATABASE}.store_info VALUES (?, ?)", [SCHEMA_VERSION, utc_now()])
        for table in TABLES.values():
            connection.execute(table.create(f"{DATABASE}.{table.name}"))
            connection.execute(f"COMMENT ON TABLE {DATABASE}.{table.name} IS {_text(table.about)}")
            for column in table.columns:
                connection.execute(f"COMMENT ON COLUMN {DATABASE}.{table.name}.{column.name} IS {_text(column.about)}")
        connection.execute(f"USE {DATABASE}")
        for view in VIEWS:
            connection.execute(f"CREATE VIEW {view.name} AS {view.sql}")
        connection.execute("USE memory")
    connection.execute("COMMIT")
    return True


def _text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _merge_run(connection: duckdb.DuckDBPyConnection, segments: Sequence[Segment]) -> None:
    """One run's segments in one transaction; a later row replaces the earlier one of the same key."""
    connection.execute("BEGIN")
    try:
        for table in TABLES.values():
            files = [segment for segment in segments if table.name in segment.files]
            if not files:
                continue
            columns = ", ".join(table.names)
            stored = f"{DATABASE}.{table.name}"
            connection.execute(
                f"CREATE TEMP TABLE incoming AS SELECT {columns} FROM {parquet_rows(table, files)} {newest(table)}"
            )
            connection.execute(
                f"DELETE FROM {stored} AS old USING temp.incoming AS new WHERE {same_key(table, 'new', 'old')}"
            )
            connection.execute(f"INSERT INTO {stored} ({columns}) SELECT {columns} FROM temp.incoming")
            connection.execute("DROP TABLE temp.incoming")
        connection.executemany(
            f"INSERT INTO {DATABASE}.segments VALUES (?, ?, ?, ?)",
            [[s.segment_id, s.run_id, s.sequence, utc_now()] for s in segments],
        )
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def _sweep(folder: Path) -> None:
    """Remove the half-written segments of killed writers; a run that is being written is left alone."""
    for run in folder.iterdir() if folder.is_dir() else ():
        if run.is_dir() and any(entry.name.endswith(".tmp") for entry in run.iterdir()):
            with contextlib.suppress(StoreError, OSError):
                lock = RunLock(run, patience=0)
                sweep(run)
                lock.release()
