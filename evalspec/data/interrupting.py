"""Ctrl-C for DuckDB, which misses it in long queries, while a thread that waits does not."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import duckdb

T = TypeVar("T")


def interruptible(connection: duckdb.DuckDBPyConnection, ask: Callable[[], T]) -> T:
    """What `ask` returns, which queries `connection` in a thread of its own; KeyboardInterrupt ends the query."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        answer = thread.submit(ask)
        try:
            return answer.result()
        except KeyboardInterrupt:
            while not answer.done():
                connection.interrupt()
                time.sleep(0.01)
            raise
