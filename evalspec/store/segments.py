"""A commit is one segment: a directory of Parquet files that is there whole or not at all.

    <store>.d/<run_id>/lock                      held (flock) by the process that writes the run
    <store>.d/<run_id>/000007-<id>/              one segment
        samples.parquet, scores.parquet, …       one file a table that has rows
        segment.json                             schema version, and rows, bytes and CRC-32 of each file

It is written under a name that starts with a dot, every file and the directory fsynced, then renamed, and the parent
fsynced: after the rename the rows survive a crash of the process and of the machine; before it, nobody reads them.
Segments are kept after they were merged into the database, so that readers always have them where it is locked.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import uuid
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalspec.errors import RunError, StoreError, suggest
from evalspec.store.encoding import Row, encode
from evalspec.store.schema import SCHEMA_VERSION, TABLES

if TYPE_CHECKING:
    import duckdb

MANIFEST = "segment.json"
SEGMENT_NAME = re.compile(r"(\d{6,})-([0-9a-f]{12})")
SET_ASIDE = "corrupt-"


class CommitError(StoreError, RunError):
    """Rows could not be written in the middle of a run; everything committed before is kept."""

    exit_code = 1


@dataclass(frozen=True)
class Segment:
    """A committed segment. `files` maps a table to its (rows, bytes, CRC-32)."""

    path: Path
    run_id: str
    sequence: int
    segment_id: str
    files: Mapping[str, tuple[int, int, int]]

    def file(self, table: str) -> Path:
        """The Parquet file of one table."""
        return self.path / f"{table}.parquet"


def write_segment(
    connection: duckdb.DuckDBPyConnection,
    folder: Path,
    run_id: str,
    sequence: int,
    rows: Mapping[str, Sequence[Row]],
) -> Segment:
    """Write the rows of some tables as one segment of a run's folder. They are durable when this returns.

    Raises StoreError for rows that the schema refuses, before anything is written; OSError or duckdb.Error when the
    disk is full or the folder is not writable: then nothing of the segment is left behind.
    """
    for name in rows:
        if name not in TABLES:
            raise StoreError(f"there is no table `{name}`.{suggest(name, TABLES)}")
    tables = {name: encode(TABLES[name], some, run_id) for name, some in rows.items() if some}
    segment_id = uuid.uuid4().hex[:12]
    name = f"{sequence:06d}-{segment_id}"
    aside, final = folder / f".{name}.tmp", folder / name
    try:
        aside.mkdir()
        files = {}
        for table, columns in tables.items():
            path = aside / f"{table}.parquet"
            _write_parquet(connection, table, columns, path)
            files[table] = (len(rows[table]), *_sync(path))
        manifest = {
            "schema": SCHEMA_VERSION,
            "run_id": run_id,
            "sequence": sequence,
            "segment_id": segment_id,
            "files": files,
        }
        (aside / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
        _sync(aside / MANIFEST)
        sync_folder(aside)
        aside.rename(final)
    except BaseException:
        with contextlib.suppress(OSError):
            shutil.rmtree(aside)
        raise
    sync_folder(folder)
    return Segment(final, run_id, sequence, segment_id, files)


def _write_parquet(connection: duckdb.DuckDBPyConnection, table: str, columns: Mapping[str, Any], path: Path) -> None:
    casts = ", ".join(f'CAST("{c.name}" AS {c.type}) AS "{c.name}"' for c in TABLES[table].columns)
    connection.register("rows_to_write", columns)
    try:
        connection.execute(
            f"COPY (SELECT {casts} FROM rows_to_write) TO {quoted(path)} (FORMAT parquet, COMPRESSION zstd)"
        )
    finally:
        connection.unregister("rows_to_write")


def _sync(path: Path) -> tuple[int, int]:
    """Force a file to the disk. Returns its bytes and CRC-32."""
    with path.open("rb+") as file:
        checksum = zlib.crc32(file.read())
        os.fsync(file.fileno())
        return file.tell(), checksum


def sync_folder(folder: Path) -> None:
    """Force the names in a folder to the disk: without it, a rename may be undone by a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def raise_if_interrupted(error: RuntimeError) -> None:
    """DuckDB answers Ctrl-C with a RuntimeError; make it the KeyboardInterrupt that it is."""
    if "interrupted" in str(error).lower():
        raise KeyboardInterrupt from error


def quoted(path: Path) -> str:
    """A path as a SQL string."""
    return "'" + str(path).replace("'", "''") + "'"


def quoted_pattern(path: Path) -> str:
    """A path as a SQL string for a reader that takes patterns, so that `*`, `?` and `[` stand for themselves."""
    return "'" + re.sub(r"[*?\[]", lambda found: f"[{found[0]}]", str(path)).replace("'", "''") + "'"


class ForeignSegmentError(StoreError):
    """A segment is sound, but of a schema that this evalspec does not read."""


@dataclass(frozen=True)
class Listing:
    """The segments of a store, in the order of their runs and sequence.

    damaged  segments that nobody can read, with what is wrong
    foreign  sound ones of another schema version, likewise
    """

    segments: tuple[Segment, ...] = ()
    damaged: tuple[tuple[Path, str], ...] = ()
    foreign: tuple[tuple[Path, str], ...] = ()


def list_segments(folder: Path, run_id: str | None = None) -> Listing:
    """All committed segments below `<store>.d` (or of one run). Cheap: names, manifests and sizes are looked at."""
    segments: list[Segment] = []
    damaged: list[tuple[Path, str]] = []
    foreign: list[tuple[Path, str]] = []
    try:
        runs = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()) if run_id is None else [run_id]
        for run in runs:
            names = sorted(entry.name for entry in os.scandir(folder / run)) if (folder / run).is_dir() else []
            for name in names:
                if SEGMENT_NAME.fullmatch(name):
                    try:
                        segments.append(read_manifest(folder / run / name))
                    except ForeignSegmentError as error:
                        foreign.append((folder / run / name, str(error)))
                    except StoreError as error:
                        damaged.append((folder / run / name, str(error)))
    except FileNotFoundError:
        return Listing()
    except OSError as error:
        raise StoreError(f"{folder}: cannot be read: {error.strerror}") from error
    return Listing(tuple(segments), tuple(damaged), tuple(foreign))


def read_manifest(path: Path) -> Segment:
    """A segment by its directory; raises StoreError when a file of it is missing, short or not a segment's."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        version = manifest["schema"]
        if version == SCHEMA_VERSION:
            files = {table: (int(r), int(b), int(c)) for table, (r, b, c) in manifest["files"].items()}
            segment = Segment(path, manifest["run_id"], manifest["sequence"], manifest["segment_id"], files)
    except FileNotFoundError:
        raise StoreError(f"{path}: {MANIFEST} is missing") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{path / MANIFEST}: is not a segment's manifest ({error})") from error
    if version != SCHEMA_VERSION:
        raise ForeignSegmentError(
            f"{path}: was written with schema version {version}, this evalspec reads {SCHEMA_VERSION}; "
            "read it with the evalspec that wrote it"
        )
    for table, (_, size, _) in files.items():
        try:
            found = segment.file(table).stat().st_size
        except FileNotFoundError:
            raise StoreError(f"{segment.file(table)}: is missing") from None
        if found != size:
            raise StoreError(f"{segment.file(table)}: has {found} bytes instead of {size}")
    return segment


def verify(segment: Segment) -> str | None:
    """What is wrong with the bytes of a segment, or None. Reads every file."""
    for table, (_, _, checksum) in segment.files.items():
        try:
            if zlib.crc32(segment.file(table).read_bytes()) != checksum:
                return f"{segment.file(table)}: its content is damaged (the checksum differs)"
        except OSError as error:
            return f"{segment.file(table)}: {error.strerror}"
    return None


def set_aside(path: Path) -> Path:
    """Rename a damaged segment so that nobody reads it again. Returns where it is then; a read-only disk keeps it."""
    target = path.with_name(SET_ASIDE + path.name)
    try:
        return path.rename(target)
    except OSError:
        return path


def sweep(folder: Path) -> int:
    """Remove what killed writers left in a run's folder. The caller holds the run's lock. Returns how many."""
    leftovers = [entry for entry in folder.iterdir() if entry.name.startswith(".") and entry.name.endswith(".tmp")]
    for leftover in leftovers:
        shutil.rmtree(leftover, ignore_errors=True)
    return len(leftovers)
