"""The store: where runs are begun, resumed, found again and read.

store = Store("reports/evalspec.duckdb")
with store.begin({"spec_name": "rag", "plan_id": plan_id, …}, cells) as run:
    run.commit({"samples": samples, "scores": scores})     # on the disk when it returns
    run.finish()
store.merge()
store.connect().sql("SELECT * FROM results")
"""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from evalspec.errors import StoreError, suggest
from evalspec.store import merging
from evalspec.store.encoding import Row, decode, utc_now
from evalspec.store.engine import start
from evalspec.store.reading import Reading, open_reading, segment_folder
from evalspec.store.schema import TABLES
from evalspec.store.segments import list_segments, sync_folder, write_segment
from evalspec.store.writer import RunLock, RunWriter

if TYPE_CHECKING:
    import duckdb

RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


class SampleKey(NamedTuple):
    """What names a sample within a run."""

    cell_id: str
    sample_id: str
    draw: int | None
    repeat: int | None
    stage: str | None


class Store:
    """A DuckDB file and, beside it, the folder of its segments. Opening one touches nothing.

    `problems` collects what was left out while reading (damaged segments), for the caller to print.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).absolute()
        if "?" in str(self.path):  # DuckDB takes what follows for a URL's query and puts its log elsewhere
            raise StoreError(f"{self.path}: the path of a store cannot contain `?`; give another path")
        self.folder = segment_folder(self.path)
        self.problems: list[str] = []

    def begin(self, run: Mapping[str, object], cells: Sequence[Row]) -> RunWriter:
        """Start a run: its row (status `running`) and its cells are on the disk when this returns.

        `run_id` is made from the time unless given. Raises StoreError when the store cannot be written or the run is
        there already.
        """
        import duckdb

        run_id = str(run.get("run_id") or f"{utc_now():%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}")
        folder = self._run_folder(run_id)
        row = {"started_at": utc_now(), **run, "run_id": run_id, "status": "running", "finished_at": None}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if folder.exists():
                raise StoreError(f"run {run_id} is in the store already; resume it, or give another run_id")
            folder.mkdir()
            lock = RunLock(folder)
        except OSError as error:
            raise StoreError(f"{self.folder}: the store cannot be written: {error.strerror}") from error
        connection = start(threads=1)
        try:
            write_segment(connection, folder, run_id, 0, {"runs": [row], "cells": cells})
            sync_folder(self.folder)
        except (OSError, duckdb.Error, StoreError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            lock.release()
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"{self.folder}: the store cannot be written: {str(error).splitlines()[0]}") from error
        finally:
            connection.close()
        return RunWriter(folder, row, lock, sequence=1)

    def resume(self, run_id: str) -> RunWriter:
        """Go on with a run that was interrupted, failed or is to be completed; its status is `running` again.

        Raises StoreError when there is no such run, or another process is writing it.
        """
        writer = self._writer(run_id)
        writer.commit({"runs": [{"status": "running", "finished_at": None}]})
        return writer

    def add(self, run_id: str, rows: Mapping[str, Sequence[Row]]) -> None:
        """Add rows (verdicts, say) to a run that has ended; its status stays what it is.

        Raises StoreError when there is no such run, another process is writing it, or it cannot be written.
        """
        writer = self._writer(run_id)
        try:
            writer.commit(rows)
        finally:
            writer.close()

    def _writer(self, run_id: str) -> RunWriter:
        """A writer of a run that is there, after the last of its segments."""
        folder = self._run_folder(run_id)
        found = self.rows("runs", run_id)
        if not found:
            raise StoreError(f"there is no run {run_id}.{suggest(run_id, [r['run_id'] for r in self.runs()])}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = RunLock(folder)
        except OSError as error:
            raise StoreError(f"{folder}: the run cannot be written: {error.strerror}") from error
        listing = list_segments(self.folder, run_id)
        taken = [s.sequence for s in listing.segments] + [_sequence(path) for path, _ in listing.damaged]
        return RunWriter(folder, found[0], lock, sequence=max(taken, default=self._last_merged(run_id)) + 1)

    def merge(self) -> int:
        """Bring unmerged segments into the database; returns how many. 0 where somebody holds it: never an error."""
        count, problems = merging.merge(self.path)
        self.problems += problems
        return count

    def connect(self) -> duckdb.DuckDBPyConnection:
        """A read-only connection over database and segments as one, with plain table names and the views.

        Its access to other files is closed and its configuration locked. It shows the store as it was when opened.
        """
        return self.read().connection

    def read(self, without: Collection[Path] = ()) -> Reading:
        """Like `connect`, with the segments that are read from files. `without` leaves some of them out."""
        reading = open_reading(self.path, without=without)
        self.problems += [problem for problem in reading.problems if problem not in self.problems]
        return reading

    def runs(self) -> list[dict[str, Any]]:
        """All runs, newest first. A run that was killed is `interrupted`."""
        return self._select("runs", "ORDER BY started_at DESC, run_id DESC")

    def rows(self, table: str, run_id: str) -> list[dict[str, Any]]:
        """All rows of one run in one table, JSON columns as Python values."""
        if table not in TABLES:
            raise StoreError(f"there is no table `{table}`.{suggest(table, TABLES)}")
        return self._select(table, "WHERE run_id = ?", [run_id])

    def find(self, plan_id: str, weights: Collection[tuple[str, str]]) -> dict[str, Any] | None:
        """The newest run of this plan whose models had just these weights, whatever its status.

        `weights` are (model, hash) pairs: a model whose weights are swept has several.
        """
        connection = open_reading(self.path, tables=("runs", "cells")).connection
        try:
            used: dict[str, set[tuple[str, str]]] = {}
            for run_id, model, weights_hash in connection.execute(
                "SELECT DISTINCT run_id, model, weights_hash FROM cells JOIN runs USING (run_id) WHERE plan_id = ?",
                [plan_id],
            ).fetchall():
                used.setdefault(run_id, set()).add((model, weights_hash))
        finally:
            connection.close()
        wanted = set(weights)
        return next((run for run in self.runs() if used.get(run["run_id"]) == wanted), None)

    def finished(self, run_id: str) -> frozenset[SampleKey]:
        """The samples of a run that are there without an error."""
        connection = open_reading(self.path, tables=("samples",)).connection
        try:
            rows = connection.execute(
                f"SELECT {', '.join(SampleKey._fields)} FROM samples WHERE run_id = ? AND error IS NULL", [run_id]
            ).fetchall()
        finally:
            connection.close()
        return frozenset(map(SampleKey._make, rows))

    def cached(self, cache_keys: Collection[str]) -> dict[str, dict[str, Any]]:
        """The samples of any run that were answered under these cache keys: what need not be computed again."""
        if not cache_keys:
            return {}
        keys = np.empty(len(cache_keys), dtype=object)
        keys[:] = list(cache_keys)
        reading = open_reading(self.path, tables=("samples",), closed=False)
        try:
            reading.connection.register("wanted", {"cache_key": keys})
            table = TABLES["samples"]
            rows = reading.connection.execute(
                f"SELECT {', '.join(table.names)} FROM samples SEMI JOIN wanted USING (cache_key) "
                "WHERE error IS NULL ORDER BY run_id DESC"
            ).fetchall()
        finally:
            reading.connection.close()
        place = table.names.index("cache_key")
        return {row[place]: decode(table, table.names, row) for row in rows}

    def _select(self, table: str, clauses: str, parameters: Sequence[object] = ()) -> list[dict[str, Any]]:
        names = TABLES[table].names
        connection = open_reading(self.path, tables=(table,)).connection
        try:
            rows = connection.execute(f"SELECT {', '.join(names)} FROM {table} {clauses}", list(parameters)).fetchall()
        finally:
            connection.close()
        return [decode(TABLES[table], names, row) for row in rows]

    def _last_merged(self, run_id: str) -> int:
        """The last sequence of a run whose segments were removed after a merge; −1 when there is none."""
        connection = open_reading(self.path, tables=("runs",)).connection
        try:
            if not connection.execute("FROM duckdb_tables() WHERE table_name = 'segments'").fetchall():
                return -1
            row = connection.execute(
                "SELECT max(sequence) FROM evalspec_database.segments WHERE run_id = ?", [run_id]
            ).fetchone()
        finally:
            connection.close()
        return -1 if row is None or row[0] is None else int(row[0])

    def _run_folder(self, run_id: str) -> Path:
        if not RUN_ID.fullmatch(run_id):
            raise StoreError(f"`{run_id}` cannot be a run_id: use letters, digits, `-`, `_` and `.`")
        return self.folder / run_id


def _sequence(path: Path) -> int:
    return int(path.name.split("-")[0])
