"""Ctrl-C ends what DuckDB does as it ends everything else."""

from __future__ import annotations

import os
import signal
import threading

import duckdb
import pytest

from evalspec.data.interrupting import keyboard


def test_ctrl_c_in_short_queries_is_always_an_interrupt() -> None:
    with duckdb.connect() as connection:
        for _ in range(20):
            timer = threading.Timer(0.03, os.kill, (os.getpid(), signal.SIGINT))
            with pytest.raises(KeyboardInterrupt), keyboard():
                timer.start()
                while True:
                    connection.execute("SELECT table_name FROM duckdb_tables() WHERE database_name = ?", ["none"])


def test_other_faults_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="out of order"), keyboard():
        raise RuntimeError("out of order")
