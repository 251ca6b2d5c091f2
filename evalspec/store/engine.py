"""The one way the store starts DuckDB: in memory, silent, and fetching nothing from the network."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb


def start(*, threads: int | None = None) -> duckdb.DuckDBPyConnection:
    """A connection to a new in-memory database. What does not fit in memory goes to the system's temporary folder."""
    import duckdb

    config: dict[str, str | bool | int | float | list[str]] = {
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "python_enable_replacements": False,
        "temp_directory": str(Path(tempfile.gettempdir()) / "evalspec-duckdb"),
    }
    if threads:
        config["threads"] = threads
    connection = duckdb.connect(":memory:", config=config)
    connection.execute("SET enable_progress_bar = false")  # DuckDB draws one on standard output, even into a pipe
    return connection
