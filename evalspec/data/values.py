"""What a value of a row may be: what JSON can hold, so that it can be hashed, stored and shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evalspec.errors import DataError


def plain(value: Any, column: str, source: str) -> Any:
    """`value` as JSON would give it back: tuples become lists, dates ISO text, numpy's numbers and arrays Python's.

    DataError for what JSON cannot hold.
    """
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [plain(item, column, source) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: plain(item, column, source) for key, item in value.items()}
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if hasattr(value, "tolist") and type(held := value.tolist()) is not type(value):
        return plain(held, column, source)
    raise DataError(
        f"{source}: column `{column}` holds a {type(value).__name__}; "
        "rows hold text, numbers, booleans, lists and mappings"
    )
