"""Rows: what a `data:` block yields, each with an id that names it everywhere else.

A row's id decides whether it is evaluated or kept as a shot, seeds its draws and names it in the store. So it hangs on
the row alone: the `id:` column, else a column `id` or `_id`, else a hash of the row's content.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalspec.data.generators import generate
from evalspec.data.values import plain
from evalspec.errors import DataError, suggest
from evalspec.spec.data import DataBlock

ID_COLUMNS = ("id", "_id")


@dataclass(frozen=True)
class Row:
    """One row: its id, and its columns in the source's order, as JSON gives them (dict, list, str, int, float, …)."""

    id: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Rows:
    """All rows of a source, in its order. `content_hash` changes with any id, any value and the order."""

    rows: tuple[Row, ...]
    source: str
    content_hash: str

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all columns, by first appearance; JSON rows may each have others."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row.values))


def load_rows(block: DataBlock, root: Path) -> Rows:
    """Read what `block` names. Relative file names start at `root`.

    Raises DataError when there is nothing to read, when it is broken (with file and line), and when ids are missing or
    not unique; EvalspecError for an unknown generator.
    """
    values, source = _read(block, root)
    if not values:
        raise DataError(f"{source} has no rows; an evaluation needs at least one")
    ids = _ids(values, block.id, source)
    rows = tuple(Row(name, row) for name, row in zip(ids, values, strict=True))
    return Rows(rows, source, content_hash(rows))


def content_hash(rows: Iterable[Row]) -> str:
    """SHA-256 over ids and values as JSON, one row a line, keys in the row's own order (a template may show it)."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([row.id, row.values], separators=(",", ":")).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _read(block: DataBlock, root: Path) -> tuple[Sequence[Mapping[str, Any]], str]:
    """The values of all rows, and the source in words. Readers are imported here: DuckDB and `datasets` are heavy."""
    if block.file is not None:
        from evalspec.data.files import read_files

        return read_files(block.file, block.format, root), f"file {block.file}"
    if block.sql is not None:
        from evalspec.data.tables import read_sql

        return read_sql(block.sql, block.database, root), f"query {' '.join(block.sql.split())}"
    if block.rows is not None:
        source = "the rows of the spec"
        return [{name: plain(value, name, source) for name, value in row.items()} for row in block.rows], source
    if block.hub is not None:
        from evalspec.data.hub import read_hub

        parts = (block.subset, block.split, block.revision)
        return read_hub(block.hub, *parts), "/".join(["hub " + block.hub, *(part for part in parts if part)])
    import evalspec.data.worlds  # noqa: F401  (enters the `world.*` generators)

    assert block.generate is not None  # DataBlock has exactly one source
    options = {"seed": block.seed, "count": block.count, **block.options}
    told = ", ".join(f"{name}={value}" for name, value in options.items() if value is not None)
    source = f"generator {block.generate}({told})"
    rows = generate(block.generate, block.seed, block.count, block.options, root)
    return [{name: plain(value, name, source) for name, value in row.items()} for row in rows], source


def _ids(rows: Sequence[Mapping[str, Any]], column: str | None, source: str) -> list[str]:
    if column is not None:
        names = list(dict.fromkeys(name for row in rows for name in row))
        if column not in names:
            raise DataError(
                f"{source} has no column `{column}`, which `id:` names.{suggest(column, names)} "
                f"Columns: {', '.join(names)}"
            )
    else:
        column = next((name for name in ID_COLUMNS if name in rows[0]), None)
    return _hashed_ids(rows) if column is None else _named_ids(rows, column, source)


def _named_ids(rows: Sequence[Mapping[str, Any]], column: str, source: str) -> list[str]:
    ids = []
    for number, row in enumerate(rows, start=1):
        value = row.get(column)
        # `True` and 1.0 are no names, and a number that JSON writes in two ways would name two rows.
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            found = "has no" if value is None or value == "" else f"has {json.dumps(value)[:40]} as"
            raise DataError(
                f"{source}: row {number} {found} id in column `{column}`; an id is a text or a whole number. "
                "Name another column with `id:`"
            )
        ids.append(str(value))
    twice = [name for name, times in Counter(ids).items() if times > 1]
    if twice:
        more = f" and {len(twice) - 3} more" if len(twice) > 3 else ""
        raise DataError(
            f"{source}: column `{column}` does not name rows: {', '.join(twice[:3])}{more} stand on more than one row. "
            "Name another column with `id:`"
        )
    return ids


def _hashed_ids(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """64 bits of SHA-256 of each row, its keys sorted; equal rows are told apart by their ordinal (`…-2`)."""
    seen: Counter[str] = Counter()
    ids = []
    for row in rows:
        text = json.dumps(row, sort_keys=True, separators=(",", ":"))
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        seen[name] += 1
        ids.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return ids
