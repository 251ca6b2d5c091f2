"""Ctrl-C for DuckDB, which misses it in long queries, while a thread that waits does not.

In short ones it now and then makes a RuntimeError of it, which would pass for a fault of ours.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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


@contextmanager
def keyboard() -> Iterator[None]:
    """Inside, Ctrl-C is a KeyboardInterrupt whatever DuckDB makes of it."""
    try:
        yield
    except RuntimeError as error:
        if str(error) != "Query interrupted":
            raise
        raise KeyboardInterrupt from error
