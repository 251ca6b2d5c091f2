"""The answer of a query for people (an aligned table) and for machines (JSON, CSV, Parquet)."""

from __future__ import annotations

import csv
import io
import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from evalspec.errors import StoreError
from evalspec.store.engine import start
from evalspec.store.segments import quoted

NUMBERS = ("INT", "DOUBLE", "FLOAT", "DECIMAL")


Format = Literal["table", "json", "csv", "parquet"]


@dataclass(frozen=True)
class Table:
    """What a query gave. `types` are DuckDB's names; times with a zone come as text, JSON as its text."""

    columns: tuple[str, ...]
    types: tuple[str, ...]
    rows: list[tuple[Any, ...]]

    def to_bytes(self, format: Format = "table") -> bytes:
        """The answer as an aligned table, JSON, CSV (both UTF-8) or a Parquet file."""
        match format:
            case "parquet":
                return as_parquet(self)
            case "json":
                return (as_json(self) + "\n").encode()
            case "csv":
                return as_csv(self).encode()
            case "table":
                return (as_text(self) + "\n").encode()
        raise StoreError(f"there is no format `{format}`; known: table, json, csv, parquet")


def as_text(table: Table, *, width: int = 60) -> str:
    """An aligned table; numbers to the right, NULL empty, long or many-lined values cut to `width` characters."""
    right = [any(word in kind for word in NUMBERS) and "[" not in kind for kind in table.types]
    cells = [[_cell(value, width) for value in row] for row in table.rows]
    widths = [max([len(name), *(len(row[place]) for row in cells)]) for place, name in enumerate(table.columns)]

    def line(values: Sequence[str]) -> str:
        padded = (v.rjust(w) if r else v.ljust(w) for v, w, r in zip(values, widths, right, strict=True))
        return "  ".join(padded).rstrip()

    count = f"({len(cells)} row{'' if len(cells) == 1 else 's'})"
    return "\n".join([line(table.columns), "  ".join("─" * w for w in widths), *map(line, cells), count])


def _cell(value: Any, width: int) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else json.dumps(_plain(value), ensure_ascii=False)
    text = text.strip('"') if not isinstance(value, str) else text
    text = text.replace("\r", "").replace("\n", "⏎").replace("\t", " ")
    return text if len(text) <= width else text[: width - 1] + "…"


def as_json(table: Table) -> str:
    """A JSON array of one object a row; JSON columns as values, infinities and NaN as null."""
    rows = [
        {
            name: json.loads(value) if kind == "JSON" and value is not None else _plain(value)
            for name, kind, value in zip(_distinct(table.columns), table.types, row, strict=True)
        }
        for row in table.rows
    ]
    return json.dumps(rows, ensure_ascii=False, indent=1)


def as_csv(table: Table) -> str:
    """Comma-separated, with a header; NULL is empty, lists and structs are JSON."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.columns)
    for row in table.rows:
        writer.writerow(
            json.dumps(_plain(value), ensure_ascii=False) if isinstance(value, list | dict | tuple) else value
            for value in row
        )
    return text.getvalue()


def as_parquet(table: Table) -> bytes:
    """The bytes of a Parquet file with the types of the query. Raises StoreError for a type Parquet cannot hold."""
    import duckdb

    connection = start(threads=1)
    names = _distinct(table.columns)
    columns = ", ".join(
        f'"{name.replace(chr(34), chr(34) * 2)}" {"VARCHAR" if "NULL" in kind else kind}'
        for name, kind in zip(names, table.types, strict=True)
    )
    try:
        connection.execute(f"CREATE TABLE answer ({columns})")
        appender = connection.appender("answer")
        appender.append_rows(table.rows)
        appender.flush()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "answer.parquet"
            connection.execute(f"COPY answer TO {quoted(path)} (FORMAT parquet, COMPRESSION zstd)")
            return path.read_bytes()
    except duckdb.Error as error:
        raise StoreError(f"the answer cannot be written as Parquet: {str(error).splitlines()[0]}") from error
    finally:
        connection.close()


def _distinct(columns: Sequence[str]) -> list[str]:
    """Column names made different from each other: a, a → a, a_2."""
    names: list[str] = []
    for column in columns:
        name, count = column, 2
        while name.lower() in (taken.lower() for taken in names):
            name, count = f"{column}_{count}", count + 1
        names.append(name)
    return names


def _plain(value: Any) -> Any:
    """A value that JSON has."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
