"""The one process that writes a run: commits that are durable when they return, under a lock that dies with it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from evalspec.errors import StoreError
from evalspec.store.encoding import Row, utc_now
from evalspec.store.engine import start
from evalspec.store.segments import CommitError, raise_if_interrupted, sweep, write_segment

Status = Literal["finished", "failed", "interrupted"]


class RunLock:
    """An exclusive `flock` on a run's folder, released by the kernel when the process ends, however it ends.

    A reader may hold the lock for an instant to see whether a writer lives (`is_held`), so taking it tries for a while.
    """

    def __init__(self, folder: Path, patience: float = 1.0) -> None:
        self._descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    holder = os.pread(self._descriptor, 64, 0).decode("ascii", "replace").strip()
                    os.close(self._descriptor)
                    raise StoreError(
                        f"run {folder.name} is being written by another process{f' ({holder})' if holder else ''}; "
                        "wait until it ends, or stop it and run again to resume"
                    ) from None
                time.sleep(0.02)
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"process {os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let go. Safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @staticmethod
    def is_held(folder: Path) -> bool:
        """Whether a living process writes the run of this folder."""
        try:
            descriptor = os.open(folder / "lock", os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False


class RunWriter:
    """Writes one run, in one process. Not thread-safe. Made by `Store.begin` and `Store.resume`.

    As a context manager it ends the run as `interrupted` when it is left before `finish`.
    """

    def __init__(self, folder: Path, run: Mapping[str, object], lock: RunLock, sequence: int) -> None:
        self.run_id = folder.name
        self._folder, self._lock, self._sequence = folder, lock, sequence
        self._run: dict[str, Any] = dict(run)
        self._connection = start(threads=1)
        self._finished = False
        sweep(folder)

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        if not self._finished:
            # A disk too full for results is too full for this word too; the first error is the one to tell.
            with contextlib.suppress(*([StoreError] if exception[0] else [])):
                self.finish("interrupted")

    def commit(self, rows: Mapping[str, Sequence[Row]]) -> None:
        """Write rows, by table, all or nothing; they are on the disk when this returns.

        `run_id` may be left out of the rows. A row whose key was committed before replaces the earlier one. A `runs`
        row changes only the columns that it names.
        Raises StoreError when rows do not fit the schema; CommitError (exit code 1) when they cannot be written.
        """
        import duckdb

        if self._finished:
            raise StoreError(f"run {self.run_id} was finished; nothing can be added to it")
        for change in rows.get("runs", ()):
            self._run.update(change)
        if rows.get("runs"):
            rows = {**rows, "runs": [self._run]}
        if not any(rows.values()):
            return
        try:
            write_segment(self._connection, self._folder, self.run_id, self._sequence, rows)
        except (OSError, duckdb.Error) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
            raise CommitError(
                f"{self._folder}: results could not be written: {reason}. Everything committed before is kept; "
                "make room or give access, then run again to resume"
            ) from error
        except RuntimeError as error:
            raise_if_interrupted(error)
            raise
        self._sequence += 1

    def finish(self, status: Status = "finished", **changes: object) -> None:
        """Write how the run ended and let go of it. `changes` are further columns of its row."""
        try:
            self.commit({"runs": [{"status": status, "finished_at": utc_now(), **changes}]})
        finally:
            self._finished = True
            self.close()

    def close(self) -> None:
        """Let go of the run without a word: to readers it is interrupted, as after a kill. Safe to call twice."""
        self._finished = True
        self._connection.close()
        self._lock.release()
