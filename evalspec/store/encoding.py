"""Rows of Python values to typed columns that DuckDB takes in one go, and back.

Columns go over as numpy arrays (masked where a value is NULL): twice as fast as JSON lines and three times as fast as
an appender, and nothing is guessed from the values: every column is then cast to the type that the schema gives it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from evalspec.errors import StoreError, suggest
from evalspec.store.schema import Column, TableSchema

Row = Mapping[str, object]
Columns = dict[str, Any]


def utc_now() -> datetime:
    """The time now in UTC, without a zone, as the store keeps it."""
    return datetime.now(UTC).replace(tzinfo=None)


def encode(table: TableSchema, rows: Sequence[Row], run_id: str) -> Columns:
    """The columns of some rows of one run; a column that no row has is all NULL. `run_id` may be left out of the rows.

    Raises StoreError on a column that the table has not, a missing key or a value of the wrong type.
    """
    known = set(table.names)
    for row in rows:
        if not row.keys() <= known:
            name = next(name for name in row if name not in known)
            raise StoreError(f"table `{table.name}` has no column `{name}`.{suggest(name, table.names)}")
        if row.get("run_id", run_id) != run_id:
            raise StoreError(f"a row of `{table.name}` belongs to run {row['run_id']}, not to {run_id}")
    columns = {}
    for column in table.columns:
        values = [run_id] * len(rows) if column.name == "run_id" else [row.get(column.name) for row in rows]
        if column.key and not column.nullable and None in values:
            raise StoreError(f"a row of `{table.name}` has no `{column.name}`")
        columns[column.name] = _column(table.name, column, values)
    return columns


def _column(table: str, column: Column, values: list[Any]) -> Any:
    try:
        match column.type:
            case "VARCHAR":
                return _objects([_text(value) for value in values])
            case "JSON":
                return _objects([None if value is None else json_text(value) for value in values])
            case "TIMESTAMP":
                return _objects([None if value is None else _time(value) for value in values])
            case "BOOLEAN":
                return _masked(values, "b", np.bool_)
            case "INTEGER" | "BIGINT":
                return _masked(values, "iu", np.int64)
            case "DOUBLE":
                return _masked(values, "fiu", np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise StoreError(f"`{table}.{column.name}` is {column.type}: {error}") from error
    raise StoreError(f"`{table}.{column.name}` has an unknown type {column.type}")


def _text(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    if not value.isascii():  # half of a surrogate pair (a broken emoji in the data) has no UTF-8
        return value.encode("utf-8", "replace").decode("utf-8")
    return value


def _time(value: Any) -> str:
    moment = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    return (moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment).isoformat(sep=" ")


def _objects(values: list[Any]) -> np.ndarray[Any, np.dtype[np.object_]]:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _masked(values: list[Any], kinds: str, dtype: type) -> np.ma.MaskedArray[Any, Any]:
    mask = np.fromiter((value is None for value in values), dtype=bool, count=len(values))
    present = np.array([value for value in values if value is not None])
    if present.size and present.dtype.kind not in kinds:
        raise TypeError(f"{present.tolist()[0]!r} does not fit")
    filled: np.ndarray[Any, Any] = np.zeros(len(values), dtype=dtype)
    filled[~mask] = present
    return np.ma.masked_array(filled, mask=mask)


def json_text(value: object) -> str:
    """JSON of a value; numpy numbers and arrays too. Text is taken as JSON already (no column holds bare text).

    Infinities and NaN become text: JSON has no number for them.
    """
    if isinstance(value, str):
        value = json.loads(value)
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError:
        text = json.dumps(_without_infinities(value), ensure_ascii=False, allow_nan=False, default=_plain)
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray | np.generic):
        return _without_infinities(value.tolist())
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, frozenset | set):
        return sorted(value)
    raise TypeError(f"{value!r} cannot be written as JSON")


def _without_infinities(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, Mapping):
        return {key: _without_infinities(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinities(inner) for inner in value]
    return value


def decode(table: TableSchema, names: Sequence[str], row: Sequence[Any]) -> dict[str, Any]:
    """A row as read from the store, JSON columns as Python values; in `logprobs`, infinities are numbers again."""
    kinds = {column.name: column.type for column in table.columns}
    decoded = {}
    for name, value in zip(names, row, strict=True):
        if kinds[name] == "JSON" and value is not None:
            value = json.loads(value)
            value = _with_infinities(value) if name == "logprobs" else value
        decoded[name] = value
    return decoded


def _with_infinities(value: Any) -> Any:
    if isinstance(value, str):
        return float(value)
    if isinstance(value, list):
        return [_with_infinities(inner) for inner in value]
    if isinstance(value, dict):
        return {key: _with_infinities(inner) for key, inner in value.items()}
    return value
